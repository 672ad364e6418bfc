//! What work on a job of a miner's own is worth beside work on the pool's: a factor in parts per
//! million, by what its coinbase pays the pool (rule P64). Exact integers. Called by the pool when it
//! takes a custom job.

/// What a pool job's work is worth.
pub const FACTOR_ONE_PPM: u32 = 1_000_000;
/// Fees count up to this much of the pool's own template's, in percent. Who finds more is paid for it,
/// within what a better view of the mempool can bring; beyond, a job full of the miner's own fees could
/// buy credit with money that only comes due when he finds a block.
const FEES_COUNTED_PERCENT: u128 = 105;

/// How far a job's fees are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeeTrust {
    /// A node has validated the whole block.
    Checked,
    /// Nobody knows the transactions (coinbase-only): never worth more than the pool's own job.
    Claimed,
    /// Fees of a coinbase-only job that do not count at all.
    Ignored,
}

/// Worth of a job in parts per million of a pool job's on the same tip:
/// `10^6 (S + min(F, c F_ref)) / (S + F_ref)`, rounded down, where S is the subsidy, F what the job
/// pays beyond it and c is 1.05, 1 or 0 by `trust`. A job that pays less than the subsidy earns as much
/// less.
///
/// `pool_sats` is what its coinbase pays by the payout rule, `reference_fees_sats` the fees of the
/// pool's own best template. All are amounts of money, at most 21 million bitcoin each.
#[must_use]
pub fn factor_ppm(
    subsidy_sats: u64,
    pool_sats: u64,
    reference_fees_sats: u64,
    trust: FeeTrust,
) -> u32 {
    let (subsidy, paid) = (u128::from(subsidy_sats), u128::from(pool_sats));
    let reference_fees = u128::from(reference_fees_sats);
    let counted_percent = match trust {
        FeeTrust::Checked => FEES_COUNTED_PERCENT,
        FeeTrust::Claimed => 100,
        FeeTrust::Ignored => 0,
    };
    // In hundredths of a satoshi, so that the cap is exact.
    let most = subsidy * 100 + reference_fees * counted_percent;
    let counted = (paid * 100).min(most);
    let reference = (subsidy + reference_fees) * 100;
    // Of nothing everybody's share is the whole.
    let factor = (counted * u128::from(FACTOR_ONE_PPM))
        .checked_div(reference)
        .unwrap_or(FACTOR_ONE_PPM.into());
    // At most 1,050,000 by the cap.
    factor as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MONEY_MAX_SATS;

    const S: u64 = 312_500_000;

    fn checked(pool_sats: u64, reference_fees_sats: u64) -> u32 {
        factor_ppm(S, pool_sats, reference_fees_sats, FeeTrust::Checked)
    }

    #[test]
    fn a_job_that_pays_what_the_pools_does_is_worth_the_same_p64() {
        for fees in [0, 1, 6_250_000, 40_000_000_000] {
            assert_eq!(checked(S + fees, fees), 1_000_000);
        }
        assert_eq!(checked(S + 99, 100), 999_999, "one satoshi less rounds down");
        assert_eq!(checked(S - 1, 0), 999_999);
    }

    #[test]
    fn a_satoshi_counts_exactly_where_it_makes_a_part_per_million_p64() {
        // With a reference of 10^9 sats a part per million is 1,000 of them.
        let (subsidy, fees) = (900_000_000, 100_000_000);
        let factor = |paid| factor_ppm(subsidy, paid, fees, FeeTrust::Checked);
        assert_eq!(factor(999_000_000), 999_000);
        assert_eq!(factor(998_999_999), 998_999);
        assert_eq!(factor(1_000), 1);
        assert_eq!(factor(999), 0);
        assert_eq!(factor(0), 0);
    }

    #[test]
    fn fees_count_up_to_five_percent_above_the_pools_own_p64() {
        let (subsidy, fees) = (900_000_000, 100_000_000);
        let factor = |paid| factor_ppm(subsidy, paid, fees, FeeTrust::Checked);
        assert_eq!(factor(1_005_000_000), 1_005_000);
        assert_eq!(factor(1_004_999_999), 1_004_999);
        assert_eq!(factor(1_005_000_001), 1_005_000);
        assert_eq!(factor(MONEY_MAX_SATS), 1_005_000);
        // 5 % of 10 sats is half a satoshi, which is not lost: 1,000,000 * 20.5 / 20.
        assert_eq!(factor_ppm(10, 21, 10, FeeTrust::Checked), 1_025_000);
        assert_eq!(factor_ppm(0, 200, 100, FeeTrust::Checked), 1_050_000);
        assert_eq!(checked(S + 1_000, 0), 1_000_000, "no fees to compare with: none count");
    }

    #[test]
    fn fees_that_nobody_checked_are_never_worth_more_than_the_pools_p64() {
        let (subsidy, fees) = (900_000_000, 100_000_000);
        let claimed = |paid| factor_ppm(subsidy, paid, fees, FeeTrust::Claimed);
        assert_eq!(claimed(1_000_000_000), 1_000_000);
        assert_eq!(claimed(1_000_000_001), 1_000_000);
        assert_eq!(claimed(MONEY_MAX_SATS), 1_000_000);
        assert_eq!(claimed(999_999_999), 999_999);
        let ignored = |paid| factor_ppm(subsidy, paid, fees, FeeTrust::Ignored);
        assert_eq!(ignored(900_000_000), 900_000);
        assert_eq!(ignored(1_000_000_000), 900_000);
        assert_eq!(ignored(899_999_999), 899_999);
    }

    #[test]
    fn the_greatest_amounts_do_not_overflow_and_nothing_of_nothing_is_whole() {
        for trust in [FeeTrust::Checked, FeeTrust::Claimed, FeeTrust::Ignored] {
            let most = factor_ppm(MONEY_MAX_SATS, MONEY_MAX_SATS, MONEY_MAX_SATS, trust);
            assert_eq!(most, 500_000);
            assert!(factor_ppm(u64::MAX, u64::MAX, u64::MAX, trust) <= 1_050_000);
            assert_eq!(factor_ppm(0, 0, 0, trust), 1_000_000);
        }
    }
}
