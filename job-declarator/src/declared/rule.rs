//! What a declared coinbase has to pay, and to whom. Made by the pool from its payout policy, kept by
//! `check`; knows nothing of blocks.

use proto::template::write_compact_size;

/// How a coinbase must be shared out: each script gets at least its part of what is paid in all, so
/// that everybody has to be paid exactly and outputs of no value are free.
///
/// Weights, and not amounts, because the miner knows best what his template brings (the open extension
/// 0x0003 counts the same way).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The pool's own first.
    outputs: Vec<Required>,
}

/// One script's part.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Required {
    script: Vec<u8>,
    weight: u64,
}

impl Rule {
    /// Everything that a coinbase pays goes to `script`.
    #[must_use]
    pub fn whole(script: Vec<u8>) -> Self {
        Self::split(script, 1, Vec::new())
    }

    /// `script` gets `weight` parts and what the divisions leave, the others theirs. Scripts must
    /// differ from each other.
    #[must_use]
    pub fn split(script: Vec<u8>, weight: u64, others: Vec<(Vec<u8>, u64)>) -> Self {
        let pool = Required { script, weight };
        let others = others.into_iter().map(|(script, weight)| Required { script, weight });
        Self { outputs: std::iter::once(pool).chain(others).collect() }
    }

    /// Each script with the satoshi that it is due of a coinbase that pays `value_sats` in all; they
    /// sum to it. Rounded down, and the remainder is the pool's.
    pub fn due(&self, value_sats: u64) -> impl Iterator<Item = (&[u8], u64)> {
        let weights: u128 = self.outputs.iter().map(|one| u128::from(one.weight)).sum();
        // At most `value_sats`, for a weight is at most the sum of all.
        let part = move |one: &Required| {
            (u128::from(value_sats) * u128::from(one.weight))
                .checked_div(weights)
                .unwrap_or_default() as u64
        };
        let others: u64 = self.outputs.iter().skip(1).map(part).sum();
        self.outputs.iter().enumerate().map(move |(index, one)| {
            let sats = if index == 0 { value_sats - others } else { part(one) };
            (one.script.as_slice(), sats)
        })
    }

    /// The outputs that AllocateMiningJobToken.Success carries: count first, the pool's own first, each
    /// of no value, for the miner to fill (spec 06 §6.4.3).
    #[must_use]
    pub fn zero_value_outputs(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_compact_size(self.outputs.len() as u64, &mut bytes);
        for output in &self.outputs {
            bytes.extend_from_slice(&0_u64.to_le_bytes());
            write_compact_size(output.script.len() as u64, &mut bytes);
            bytes.extend_from_slice(&output.script);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(rule: &Rule, value_sats: u64) -> Vec<u64> {
        rule.due(value_sats).map(|(_, sats)| sats).collect()
    }

    #[test]
    fn one_script_is_due_everything() {
        let rule = Rule::whole(vec![0x51]);
        for value in [0, 1, 312_500_000, u64::MAX] {
            assert_eq!(due(&rule, value), [value]);
        }
        assert_eq!(rule.zero_value_outputs(), [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x51]);
    }

    #[test]
    fn a_split_is_rounded_down_and_the_pool_has_the_remainder() {
        let rule = Rule::split(vec![1], 1, vec![(vec![2], 2), (vec![3], 4)]);
        assert_eq!(due(&rule, 7), [1, 2, 4]);
        assert_eq!(due(&rule, 6), [2, 1, 3]);
        assert_eq!(due(&rule, 13), [3, 3, 7]);
        let greatest = Rule::split(vec![1], u64::MAX, vec![(vec![2], u64::MAX)]);
        for value in [0, 1, 2, 99_999, u64::MAX] {
            assert_eq!(
                due(&rule, value).iter().map(|sats| u128::from(*sats)).sum::<u128>(),
                value.into()
            );
            assert_eq!(due(&greatest, value), [value - value / 2, value / 2]);
        }
        let nobody = Rule::split(vec![1], 0, vec![(vec![2], 0)]);
        assert_eq!(due(&nobody, 5), [5, 0]);
    }
}
