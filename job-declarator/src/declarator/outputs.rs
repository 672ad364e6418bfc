//! What a pool asks to be paid, held against what the owner allows. Called by the declarator with the outputs
//! of a token and with the coinbase of a pool's own job; knows nothing of sessions.
//!
//! Must never pay an output that the owner's limit forbids: what is refused here is not mined.

use proto::template::Output;
use thiserror::Error;

use crate::declared::Refusal;
use crate::declared::read_outputs;

/// What the owner lets one pool take of a block's reward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputLimit {
    /// The owner's own script: what goes there is not taken from him.
    pub own: Vec<u8>,
    /// Scripts that the owner knows to be the pool's.
    pub known: Vec<Vec<u8>>,
    /// Percent of the reward that may go to anybody else, 0 to 100.
    pub others_max_percent: u8,
}

/// Why a pool is not mined for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadOutputs {
    /// No outputs, or bytes that are none.
    #[error("its outputs cannot be read: {0}")]
    Unreadable(Refusal),
    /// Fixed amounts of more than the block has.
    #[error("it asks for {asked} sats of a block that has {value}")]
    TooMuch {
        /// In all.
        asked: u64,
        /// The block's reward.
        value: u64,
    },
    /// Beyond the owner's limit.
    #[error(
        "{percent} percent of the reward would go to addresses that you do not know, your limit is {limit} \
         (reward_to_others_max_percent)"
    )]
    BeyondLimit {
        /// Rounded up.
        percent: u64,
        /// The owner's.
        limit: u8,
    },
}

/// The outputs of a coinbase worth `value_sats` that pays as the pool asks (`asked`: CompactSize count and
/// outputs). Fixed amounts stay; what is left goes to its first output (rule JC2), in integer sats.
pub fn fill(asked: &[u8], value_sats: u64) -> Result<Vec<Output>, BadOutputs> {
    let read = read_outputs(asked).map_err(BadOutputs::Unreadable)?;
    let output = |(sats, script): &(u64, &[u8])| Output { sats: *sats, script: script.to_vec() };
    let mut outputs: Vec<Output> = read.iter().map(output).collect();
    let fixed = outputs.iter().try_fold(0_u64, |sum, output| sum.checked_add(output.sats));
    let fixed = fixed.unwrap_or(u64::MAX);
    let too_much = BadOutputs::TooMuch { asked: fixed, value: value_sats };
    let rest = value_sats.checked_sub(fixed).ok_or(too_much)?;
    if let Some(first) = outputs.first_mut() {
        first.sats += rest;
    }
    debug_assert_eq!(outputs.iter().map(|output| output.sats).sum::<u64>(), value_sats);
    Ok(outputs)
}

impl OutputLimit {
    /// Whether a coinbase with these outputs is one that the owner would mine.
    pub fn judge(&self, outputs: &[Output]) -> Result<(), BadOutputs> {
        let value: u128 = outputs.iter().map(|output| u128::from(output.sats)).sum();
        let is_known = |script: &Vec<u8>| *script == self.own || self.known.contains(script);
        let others = outputs.iter().filter(|output| !is_known(&output.script));
        let others: u128 = others.map(|output| u128::from(output.sats)).sum();
        if others * 100 <= value * u128::from(self.others_max_percent) {
            return Ok(());
        }
        // Above zero, for nothing taken of nothing is within every limit.
        let percent = (others * 100).div_ceil(value) as u64;
        Err(BadOutputs::BeyondLimit { percent, limit: self.others_max_percent })
    }
}

/// The outputs of a coinbase that stands already, by what follows its extranonce: nSequence, outputs, lock
/// time.
pub fn of_suffix(suffix: &[u8]) -> Result<Vec<Output>, BadOutputs> {
    let outputs = suffix.get(4..suffix.len().saturating_sub(4)).unwrap_or_default();
    let read = read_outputs(outputs).map_err(BadOutputs::Unreadable)?;
    let output = |(sats, script): (u64, &[u8])| Output { sats, script: script.to_vec() };
    Ok(read.into_iter().map(output).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(outputs: &[(u64, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![outputs.len() as u8];
        for (sats, script) in outputs {
            bytes.extend_from_slice(&sats.to_le_bytes());
            bytes.push(script.len() as u8);
            bytes.extend_from_slice(script);
        }
        bytes
    }

    fn limit(others_max_percent: u8) -> OutputLimit {
        OutputLimit { own: b"own".to_vec(), known: vec![b"pool".to_vec()], others_max_percent }
    }

    #[test]
    fn what_is_left_goes_to_the_first_output_and_nothing_is_lost() {
        let outputs = fill(&asked(&[(0, b"pool"), (30, b"fund"), (0, b"mark")]), 100).unwrap();
        let sats: Vec<u64> = outputs.iter().map(|output| output.sats).collect();
        assert_eq!(sats, [70, 30, 0]);
        let all = fill(&asked(&[(0, b"pool"), (100, b"fund")]), 100).unwrap();
        assert_eq!(all[0].sats, 0);
        let beyond = fill(&asked(&[(0, b"pool"), (101, b"fund")]), 100);
        assert_eq!(beyond, Err(BadOutputs::TooMuch { asked: 101, value: 100 }));
        let overflow = fill(&asked(&[(u64::MAX, b"pool"), (2, b"fund")]), 100);
        assert!(matches!(overflow, Err(BadOutputs::TooMuch { .. })), "{overflow:?}");
    }

    #[test]
    fn bytes_that_are_no_outputs_are_refused() {
        for bytes in [&[][..], &[0], &[1], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 5, 1], &[0xff; 9]] {
            assert!(matches!(fill(bytes, 100), Err(BadOutputs::Unreadable(_))), "{bytes:?}");
            assert!(matches!(of_suffix(bytes), Err(BadOutputs::Unreadable(_))), "{bytes:?}");
        }
    }

    #[test]
    fn others_get_up_to_the_owners_limit_and_not_one_sat_more() {
        let of = |others: u64| {
            [(100 - others, b"pool".to_vec()), (others, b"who".to_vec())]
                .map(|(sats, script)| Output { sats, script })
        };
        assert_eq!(limit(5).judge(&of(5)), Ok(()));
        let beyond = Err(BadOutputs::BeyondLimit { percent: 6, limit: 5 });
        assert_eq!(limit(5).judge(&of(6)), beyond);
        assert_eq!(limit(0).judge(&of(0)), Ok(()));
        assert!(limit(0).judge(&of(1)).is_err());
        assert_eq!(limit(100).judge(&of(100)), Ok(()));
        let own = [Output { sats: 100, script: b"own".to_vec() }];
        assert_eq!(limit(0).judge(&own), Ok(()));
    }

    #[test]
    fn a_standing_coinbase_is_read_between_its_sequence_and_lock_time() {
        let suffix = [&[0xff; 4][..], &asked(&[(7, b"pool")]), &[0; 4]].concat();
        let outputs = of_suffix(&suffix).unwrap();
        assert_eq!(outputs, [Output { sats: 7, script: b"pool".to_vec() }]);
    }
}
