//! What a pool asks to be paid, held against what the owner allows. Called by the declarator with the outputs
//! of a token and with the coinbase of a pool's own job; knows nothing of sessions.
//!
//! Must never pay an output that the owner's limit forbids: what is refused here is not mined.

use std::collections::BTreeMap;

use bitcoin::{Address, Network, Script};
use proto::limits::{COINBASE_SCRIPT_SIG_AT, SCRIPT_SIG_MAX};
use proto::mining::client::WorkCoinbase;
use proto::template::Output;
use thiserror::Error;

use crate::declared::{NULL_OUTPOINT, Refusal, read_outputs};
use crate::limits::MONEY_MAX_SATS;

/// Bytes of a script without an address that a refusal shows: a pay-to-public-key's are 67.
const SCRIPT_SHOWN_MAX: usize = 67;

/// A whole reward, in the parts that shares of it are counted in.
pub const WHOLE_REWARD: u32 = 10_000;

/// What the owner lets one pool take of a block's reward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputLimit {
    /// The owner's own script: what goes there is not taken from him.
    pub own: Vec<u8>,
    /// The distribution that the owner knows of: what stands twice may have the larger share.
    pub known: Vec<Known>,
    /// Percent of the reward, 0 to 100, that may go to anybody else or beyond a known one's share.
    pub others_max_percent: u8,
    /// Whose addresses a refusal names.
    pub network: Network,
}

/// A script that the owner knows to be the pool's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// scriptPubKey.
    pub script: Vec<u8>,
    /// What it may have of the reward, up to `WHOLE_REWARD`.
    pub share_max: u32,
}

/// Why a pool is not mined for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadOutputs {
    /// No outputs, or bytes that are none.
    #[error("its outputs cannot be read: {0}")]
    Unreadable(Refusal),
    /// Its own job's coinbase is none around what is rolled.
    #[error("its coinbase cannot be read: {0}")]
    Coinbase(Refusal),
    /// More than 21 million bitcoin, in one output or in all.
    #[error("its outputs are worth more than there can be")]
    Money,
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
        "it wants {} % of the reward beyond what you allow, most of it for {to}; your limit is {limit} % \
         (reward_to_others_max_percent)",
        percent(*hundredths)
    )]
    BeyondLimit {
        /// Of a percent, rounded up.
        hundredths: u64,
        /// Who would have most of it: an address, or a script in hex.
        to: String,
        /// The owner's.
        limit: u8,
    },
}

/// "97.5" of 9,750 hundredths.
fn percent(hundredths: u64) -> String {
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The outputs of a coinbase worth `value_sats` that pays as the pool asks (`asked`: CompactSize count and
/// outputs). Fixed amounts stay; what is left goes to its first output (rule JC2), in integer sats.
pub fn fill(asked: &[u8], value_sats: u64) -> Result<Vec<Output>, BadOutputs> {
    let mut outputs = read(asked)?;
    let fixed = total(&outputs)?;
    let too_much = BadOutputs::TooMuch { asked: fixed, value: value_sats };
    let rest = value_sats.checked_sub(fixed).ok_or(too_much)?;
    if let Some(first) = outputs.first_mut() {
        first.sats += rest;
    }
    debug_assert_eq!(outputs.iter().map(|output| output.sats).sum::<u64>(), value_sats);
    Ok(outputs)
}

/// What outputs come to in all.
pub(super) fn total(outputs: &[Output]) -> Result<u64, BadOutputs> {
    let add = |sum: u64, output: &Output| {
        sum.checked_add(output.sats).filter(|sum| *sum <= MONEY_MAX_SATS)
    };
    outputs.iter().try_fold(0, add).ok_or(BadOutputs::Money)
}

/// CompactSize count and outputs, that many and nothing behind them, of what money there can be.
fn read(bytes: &[u8]) -> Result<Vec<Output>, BadOutputs> {
    let read = read_outputs(bytes).map_err(BadOutputs::Unreadable)?;
    let output = |(sats, script): (u64, &[u8])| Output { sats, script: script.to_vec() };
    let outputs: Vec<Output> = read.into_iter().map(output).collect();
    total(&outputs)?;
    Ok(outputs)
}

impl OutputLimit {
    /// Whether a coinbase with these outputs is one that the owner would mine.
    pub fn judge(&self, outputs: &[Output]) -> Result<(), BadOutputs> {
        let value: u128 = outputs.iter().map(|output| u128::from(output.sats)).sum();
        // By script: a share that is split over many outputs is one share.
        let mut paid: BTreeMap<&[u8], u128> = BTreeMap::new();
        for output in outputs {
            *paid.entry(&output.script).or_default() += u128::from(output.sats);
        }
        let beyond = |(script, sats): (&&[u8], &u128)| {
            (sats.saturating_sub(self.may_have(script, value)), script.to_vec())
        };
        let beyond: Vec<(u128, Vec<u8>)> = paid.iter().map(beyond).collect();
        let others: u128 = beyond.iter().map(|(sats, _)| sats).sum();
        if others * 100 <= value * u128::from(self.others_max_percent) {
            return Ok(());
        }
        // Above zero, for nothing taken of nothing is within every limit.
        let hundredths = (others * u128::from(WHOLE_REWARD)).div_ceil(value) as u64;
        let most = beyond.into_iter().max().map(|(_, script)| script).unwrap_or_default();
        let to = self.shown(&most);
        Err(BadOutputs::BeyondLimit { hundredths, to, limit: self.others_max_percent })
    }

    fn shown(&self, script: &[u8]) -> String {
        let address = Address::from_script(Script::from_bytes(script), self.network);
        let short = &script[..script.len().min(SCRIPT_SHOWN_MAX)];
        address.map_or_else(|_| format!("script {}", hex::encode(short)), |to| to.to_string())
    }

    /// Sats of a reward that are not counted against the limit. A share is rounded up: a pool that rounds to
    /// its favour is one sat beyond it.
    fn may_have(&self, script: &[u8], value: u128) -> u128 {
        if script == self.own {
            return value;
        }
        let known = self.known.iter().filter(|known| known.script == script);
        let share = known.map(|known| known.share_max).max().unwrap_or(0);
        (value * u128::from(share)).div_ceil(u128::from(WHOLE_REWARD))
    }
}

/// The outputs of a coinbase that stands already around `rolled` bytes, as the network will read them: where
/// scriptSig ends its own length says, and a pool that has text behind the extranonce has it in the tail. A
/// head that only looks like a coinbase's would show us other outputs than the network pays.
pub(super) fn of_coinbase(
    coinbase: &WorkCoinbase<'_>,
    rolled: usize,
) -> Result<Vec<Output>, BadOutputs> {
    let bad = |refusal| Err(BadOutputs::Coinbase(refusal));
    let no_transaction = BadOutputs::Coinbase(Refusal::NoTransaction);
    let Some((fixed, before)) = coinbase.head.split_at_checked(COINBASE_SCRIPT_SIG_AT) else {
        return Err(no_transaction);
    };
    // Version; a count of inputs, where BIP144 has its marker of 0; the outpoint; a length of one byte.
    if fixed[4] != 1 {
        return bad(Refusal::InputCount(u64::from(fixed[4])));
    }
    if fixed[5..COINBASE_SCRIPT_SIG_AT - 1] != NULL_OUTPOINT {
        return bad(Refusal::PreviousOutput);
    }
    let length = usize::from(fixed[COINBASE_SCRIPT_SIG_AT - 1]);
    if !(2..=SCRIPT_SIG_MAX).contains(&length) {
        return bad(Refusal::ScriptSigLength(length));
    }
    let Some(behind) = length.checked_sub(before.len() + rolled) else {
        return bad(Refusal::ExtranonceNotLast);
    };
    of_suffix(coinbase.tail.get(behind..).ok_or(no_transaction)?)
}

/// The outputs of a coinbase that stands already, by what follows its scriptSig: nSequence, outputs, lock
/// time, and nothing more.
pub fn of_suffix(suffix: &[u8]) -> Result<Vec<Output>, BadOutputs> {
    let outputs = suffix.get(4..suffix.len().saturating_sub(4)).unwrap_or_default();
    read(outputs)
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
        let known = vec![known(b"pool", WHOLE_REWARD), known(b"fee", 250)];
        OutputLimit { own: b"own".to_vec(), known, others_max_percent, network: Network::Bitcoin }
    }

    fn known(script: &[u8], share_max: u32) -> Known {
        Known { script: script.to_vec(), share_max }
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
        assert_eq!(overflow, Err(BadOutputs::Money));
    }

    #[test]
    fn no_more_money_is_read_than_there_can_be_in_one_output_nor_in_all() {
        let read = |outputs: &[(u64, &[u8])]| {
            let suffix = [&[0xff; 4][..], &asked(outputs), &[0; 4]].concat();
            let read = of_suffix(&suffix).map(|_| ());
            assert_eq!(fill(&asked(outputs), MONEY_MAX_SATS).map(|_| ()), read);
            read
        };
        assert_eq!(read(&[(MONEY_MAX_SATS - 1, b"pool"), (1, b"who")]), Ok(()));
        let more: [&[(u64, &[u8])]; 3] = [
            &[(MONEY_MAX_SATS - 1, b"pool"), (2, b"who")],
            &[(MONEY_MAX_SATS + 1, b"pool")],
            &[(1 << 63, b"pool"), (1 << 63, b"pool")],
        ];
        for outputs in more {
            assert_eq!(read(outputs), Err(BadOutputs::Money), "{outputs:?}");
        }
    }

    /// A coinbase's head and tail around 16 rolled bytes, of which scriptSig claims `length` bytes and has
    /// `behind` behind them.
    fn parts(length: u8, behind: &[u8], outputs: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let head = [&[2, 0, 0, 0, 1][..], &NULL_OUTPOINT, &[length], &[7; 10]].concat();
        (head, [behind, &[0xff; 4], outputs, &[0; 4]].concat())
    }

    fn read_parts((head, tail): &(Vec<u8>, Vec<u8>)) -> Result<Vec<Output>, BadOutputs> {
        of_coinbase(&WorkCoinbase { head, tail, path: &[] }, 16)
    }

    #[test]
    fn outputs_are_read_where_script_sig_ends_and_nowhere_else() {
        let good = asked(&[(7, b"pool")]);
        let pool = vec![Output { sats: 7, script: b"pool".to_vec() }];
        assert_eq!(read_parts(&parts(26, b"", &good)), Ok(pool.clone()));
        assert_eq!(read_parts(&parts(30, b"text", &good)), Ok(pool));
        // To one who takes the tail for nSequence and on, it pays the pool; the network reads on behind it.
        let shown = [&[0xff; 4][..], &good].concat();
        let shown_len = shown.len() as u8;
        let hidden = parts(26 + shown_len, &shown, &asked(&[(7, b"who")]));
        assert_eq!(read_parts(&hidden).unwrap()[0].script, b"who");
        for (length, why) in [
            (25, Refusal::ExtranonceNotLast),
            (1, Refusal::ScriptSigLength(1)),
            (101, Refusal::ScriptSigLength(101)),
            (0xfd, Refusal::ScriptSigLength(0xfd)),
            (100, Refusal::NoTransaction),
        ] {
            let read = read_parts(&parts(length, b"", &good));
            assert_eq!(read, Err(BadOutputs::Coinbase(why)), "{length}");
        }
        let too_far = read_parts(&parts(27, b"", &good));
        assert!(matches!(too_far, Err(BadOutputs::Unreadable(_))), "{too_far:?}");
        let (head, tail) = parts(26, b"", &good);
        let longer = read_parts(&(head, [&tail[..], &[0]].concat()));
        assert!(matches!(longer, Err(BadOutputs::Unreadable(_))), "{longer:?}");
    }

    #[test]
    fn a_head_that_is_no_coinbases_is_refused_by_what_it_is() {
        let (head, tail) = parts(26, b"", &asked(&[(7, b"pool")]));
        let refused = |head: Vec<u8>| match read_parts(&(head, tail.clone())) {
            Err(BadOutputs::Coinbase(why)) => why,
            other => panic!("{other:?}"),
        };
        for at in [5, 36, 37, 40] {
            let mut other = head.clone();
            other[at] ^= 1;
            assert_eq!(refused(other), Refusal::PreviousOutput, "{at}");
        }
        let segwit = [&head[..4], &[0, 1], &head[4..]].concat();
        assert_eq!(refused(segwit), Refusal::InputCount(0));
        let mut two = head.clone();
        two[4] = 2;
        assert_eq!(refused(two), Refusal::InputCount(2));
        assert_eq!(refused(head[..41].to_vec()), Refusal::NoTransaction);
        // What is rolled stands in an output's script, and the outputs that count before it.
        let ends_before = [&head[..41], &[2, 7, 7, 0xff, 0xff, 0xff, 0xff, 1]].concat();
        assert_eq!(refused(ends_before), Refusal::ExtranonceNotLast);
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
        let to = format!("script {}", hex::encode(b"who"));
        let beyond = Err(BadOutputs::BeyondLimit { hundredths: 600, to, limit: 5 });
        assert_eq!(limit(5).judge(&of(6)), beyond);
        assert_eq!(limit(0).judge(&of(0)), Ok(()));
        assert!(limit(0).judge(&of(1)).is_err());
        assert_eq!(limit(100).judge(&of(100)), Ok(()));
        let own = [Output { sats: 100, script: b"own".to_vec() }];
        assert_eq!(limit(0).judge(&own), Ok(()));
    }

    #[test]
    fn a_refusal_names_who_would_have_most_and_the_percents_as_they_are() {
        let program = [&[0, 20][..], &[1; 20]].concat();
        let outputs = [(25, b"pool".to_vec()), (900, program), (75, b"who".to_vec())]
            .map(|(sats, script)| Output { sats, script });
        let said = limit(0).judge(&outputs).unwrap_err().to_string();
        assert_eq!(
            said,
            "it wants 97.5 % of the reward beyond what you allow, most of it for \
             bc1qqyqszqgpqyqszqgpqyqszqgpqyqszqgpyfl4f3; your limit is 0 % (reward_to_others_max_percent)"
        );
        let percents = [1, 10, 600, 10_000].map(percent);
        assert_eq!(percents, ["0.01", "0.1", "6", "100"]);
    }

    #[test]
    fn a_known_script_gets_up_to_its_share_and_the_rest_counts_as_others() {
        // 2.5 percent of a reward that it does not divide, rounded up.
        const VALUE: u64 = 3_125_000_011;
        const SHARE: u64 = 78_125_001;
        let judged = |limit: &OutputLimit, fees: &[u64]| {
            let rest = VALUE - fees.iter().sum::<u64>();
            let mut outputs = vec![Output { sats: rest, script: b"pool".to_vec() }];
            outputs.extend(fees.iter().map(|sats| Output { sats: *sats, script: b"fee".to_vec() }));
            limit.judge(&outputs)
        };
        assert_eq!(judged(&limit(0), &[SHARE]), Ok(()));
        assert_eq!(judged(&limit(0), &[SHARE - 9, 9]), Ok(()));
        let to = format!("script {}", hex::encode(b"fee"));
        let beyond = Err(BadOutputs::BeyondLimit { hundredths: 1, to, limit: 0 });
        assert_eq!(judged(&limit(0), &[SHARE + 1]), beyond);
        assert_eq!(judged(&limit(0), &[SHARE, 1]), beyond, "split over two outputs");
        // What is beyond the share, and nothing else, is held against the limit.
        let one_percent = VALUE / 100;
        assert_eq!(judged(&limit(1), &[SHARE + one_percent]), Ok(()));
        assert!(judged(&limit(1), &[SHARE + one_percent + 1]).is_err());

        let mut twice = limit(0);
        twice.known.push(known(b"fee", WHOLE_REWARD));
        assert_eq!(judged(&twice, &[VALUE]), Ok(()), "the larger share holds");
        let mut own = limit(0);
        own.own = b"fee".to_vec();
        assert_eq!(judged(&own, &[VALUE]), Ok(()), "what is the owner's is his");
    }

    #[test]
    fn a_standing_coinbase_is_read_between_its_sequence_and_lock_time() {
        let suffix = [&[0xff; 4][..], &asked(&[(7, b"pool")]), &[0; 4]].concat();
        let outputs = of_suffix(&suffix).unwrap();
        assert_eq!(outputs, [Output { sats: 7, script: b"pool".to_vec() }]);
    }
}
