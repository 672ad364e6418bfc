//! What a pool credits beside what the devices found for it, and whether its shares can be found by them at
//! all. Kept by a session, which ends by it; pure, time is a number.
//!
//! Evidence, not money: f64 does, which neither overflows nor fails. Must never end a session by bad luck, nor
//! by what may still be on its way.

use std::collections::VecDeque;

use crate::limits::{
    CREDIT_EXCUSED_MS, CREDIT_MISSING_SHARES_MAX, CREDIT_SETTLES_AFTER_MS, CREDIT_SHARES_JUDGED,
    CREDIT_STEP_MS, HARD_MAX_MS, HARD_SHARE_MAX_S,
};
use crate::upstream::Credited;

/// See above.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Of so long ago that it must have been answered.
    settled: Sums,
    /// By steps of time, the oldest first.
    young: VecDeque<(u64, Sums)>,
    /// Of the whole session.
    total: Sums,
    /// For how long shares were too hard; a tenth of the time that they are not is taken off.
    hard_ms: u64,
    seen_ms: Option<u64>,
}

/// Expected hashes.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    found: f64,
    /// Of each share found its hashes times those of a share of the pool's: how coarsely it is credited.
    found_by_share: f64,
    acknowledged: f64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.found += other.found;
        self.found_by_share += other.found_by_share;
        self.acknowledged += other.acknowledged;
    }

    /// A share of the pool's on average over what was found.
    fn share(&self) -> f64 {
        if self.found > 0.0 { self.found_by_share / self.found } else { 0.0 }
    }
}

impl Evidence {
    /// A device found a good share of so many expected hashes, where the pool takes one of `share`.
    pub(super) fn found(&mut self, now_ms: u64, hashes: f64, share: f64) {
        let found_by_share = hashes * share.max(hashes);
        self.count(now_ms, Sums { found: hashes, found_by_share, acknowledged: 0.0 });
    }

    /// The pool credits so many expected hashes.
    pub(super) fn acknowledged(&mut self, now_ms: u64, hashes: f64) {
        self.count(now_ms, Sums { acknowledged: hashes, ..Sums::default() });
    }

    fn count(&mut self, now_ms: u64, sums: Sums) {
        self.total.add(sums);
        let step_ms = now_ms - now_ms % CREDIT_STEP_MS;
        match self.young.back_mut() {
            Some((at_ms, young)) if *at_ms >= step_ms => young.add(sums),
            Some(_) | None => self.young.push_back((step_ms, sums)),
        }
    }

    /// The own node has another tip: what was just found on the old one may be worth nothing by nobody's fault.
    pub(super) fn tip_changed(&mut self, now_ms: u64) {
        for (at_ms, young) in &mut self.young {
            if now_ms.saturating_sub(*at_ms) < CREDIT_EXCUSED_MS {
                (young.found, young.found_by_share) = (0.0, 0.0);
            }
        }
    }

    /// Time went by. If the pool credits too little: how many shares' work of how many.
    pub(super) fn shortfall(&mut self, now_ms: u64) -> Option<(u64, u64)> {
        while let Some((at_ms, young)) = self.young.front().copied() {
            if now_ms < at_ms.saturating_add(CREDIT_STEP_MS + CREDIT_SETTLES_AFTER_MS) {
                break;
            }
            self.young.pop_front();
            self.settled.add(young);
        }
        let Sums { found, acknowledged, .. } = self.settled;
        let acknowledged =
            self.young.iter().fold(acknowledged, |sum, (_, young)| sum + young.acknowledged);
        let share = self.settled.share();
        if found - acknowledged > CREDIT_MISSING_SHARES_MAX * share + found / 2.0 {
            return Some(((acknowledged / share) as u64, (found / share) as u64));
        }
        // What was long ago counts less and less, and what was credited beyond what was found not at all.
        while self.settled.found > CREDIT_SHARES_JUDGED * share {
            let Sums { found, found_by_share, acknowledged } = &mut self.settled;
            for sum in [found, found_by_share, acknowledged] {
                *sum /= 2.0;
            }
        }
        let most = self.settled.found + CREDIT_MISSING_SHARES_MAX * share;
        self.settled.acknowledged = self.settled.acknowledged.min(most);
        None
    }

    /// When `shortfall` has something new, mono ms.
    pub(super) fn settles_at_ms(&self) -> Option<u64> {
        let (at_ms, _) = self.young.front()?;
        Some(at_ms.saturating_add(CREDIT_STEP_MS + CREDIT_SETTLES_AFTER_MS))
    }

    /// Time went by, and the pool takes a share of so many hashes where the devices make so many a second.
    /// Minutes from one share to the next, if they were too many for too long.
    pub(super) fn too_hard(&mut self, now_ms: u64, share: f64, fleet: f64) -> Option<u64> {
        let passed_ms = now_ms.saturating_sub(self.seen_ms.replace(now_ms).unwrap_or(now_ms));
        let is_hard = fleet > 0.0 && share > fleet * HARD_SHARE_MAX_S;
        if !is_hard {
            self.hard_ms = self.hard_ms.saturating_sub(passed_ms / 10);
            return None;
        }
        self.hard_ms = self.hard_ms.saturating_add(passed_ms);
        (self.hard_ms >= HARD_MAX_MS).then_some((share / fleet / 60.0) as u64)
    }

    /// What the session was good for.
    pub(super) fn credited(&self) -> Credited {
        let Sums { found, acknowledged, .. } = self.total;
        if found <= 0.0 {
            Credited::NothingFound
        } else if acknowledged > 0.0 && acknowledged >= found / 4.0 {
            Credited::Yes
        } else {
            Credited::No
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64, from 0 to 1.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        /// Milliseconds to the next of events that come so far apart.
        fn wait(&mut self, mean_ms: f64) -> u64 {
            (-mean_ms * (1.0 - self.next()).ln()) as u64 + 1
        }
    }

    /// One session of `hours` with a pool that credits `honesty` of the shares that it takes: when it ended.
    fn session(seed: u64, hours: u64, honesty: f64) -> Option<u64> {
        let mut random = Random(seed);
        // How much harder the pool is than the devices, how fast they are, how many it answers at once.
        let mut harder = 2f64.powi((random.next() * 10.0) as i32);
        let pace_ms = [1_000.0, 2_000.0, 5_000.0, 20_000.0][(random.next() * 4.0) as usize];
        let pace_ms = if seed.is_multiple_of(250) { 50.0 } else { pace_ms };
        let batch = [1, 1, 10, 30][(random.next() * 4.0) as usize];
        let late_ms = (random.next() * 20_000.0) as u64;
        let (mut evidence, mut now_ms, mut tip_ms, mut changes_ms) =
            (Evidence::default(), 0, random.wait(600_000.0), random.wait(900_000.0));
        // Answers under way, each when and how much.
        let (mut answers, mut held) = (VecDeque::new(), Vec::new());
        while now_ms < hours * 3_600_000 {
            now_ms += random.wait(pace_ms);
            while let Some((at_ms, hashes)) =
                answers.front().copied().filter(|(at, _)| *at <= now_ms)
            {
                evidence.acknowledged(at_ms, hashes);
                answers.pop_front();
            }
            if now_ms >= tip_ms {
                // What is held and on its way is lost with its tip, with one chance in two.
                if random.next() < 0.5 {
                    held.clear();
                }
                evidence.tip_changed(now_ms);
                tip_ms = now_ms + random.wait(600_000.0);
            }
            if now_ms >= changes_ms {
                harder = 2f64.powi((random.next() * 10.0) as i32);
                changes_ms = now_ms + random.wait(900_000.0);
            }
            evidence.found(now_ms, 1.0, harder);
            if random.next() < honesty / harder {
                held.push(harder);
            }
            // Patience with a share that is due ends a session elsewhere.
            let is_slow = pace_ms * harder * f64::from(batch) > 60_000.0;
            if held.len() >= batch as usize || (is_slow && !held.is_empty()) {
                answers.extend(held.drain(..).map(|hashes| (now_ms + late_ms, hashes)));
            }
            if evidence.shortfall(now_ms).is_some() {
                return Some(now_ms);
            }
        }
        None
    }

    #[test]
    fn none_of_a_thousand_honest_pools_is_left_within_hours() {
        for seed in 0..1_000 {
            assert_eq!(session(seed, 2 + seed % 5, 1.0), None, "{seed}");
        }
    }

    #[test]
    fn a_pool_that_credits_a_fifth_is_left_however_coarse_its_shares_are() {
        let left = (0..100).filter(|seed| session(*seed, 12, 0.2).is_some()).count();
        assert!(left >= 60, "{left}: the others had too few shares");
        for seed in 0..100 {
            assert_eq!(session(seed, 4, 0.9), None, "a tenth lost is no reason: {seed}");
        }
    }

    #[test]
    fn forty_shares_without_credit_are_borne_and_the_next_is_not_once_it_had_its_time() {
        let mut evidence = Evidence::default();
        for _ in 0..40 {
            evidence.found(0, 1.0, 1.0);
        }
        let late_ms = CREDIT_STEP_MS + CREDIT_SETTLES_AFTER_MS;
        assert_eq!(evidence.settles_at_ms(), Some(late_ms));
        assert_eq!(evidence.shortfall(late_ms), None);
        evidence.found(late_ms, 1.0, 1.0);
        assert_eq!(evidence.shortfall(2 * late_ms - 1), None, "it may be on its way");
        assert_eq!(evidence.shortfall(2 * late_ms), Some((0, 41)));
    }

    #[test]
    fn a_pool_that_was_honest_for_a_year_has_no_credit_for_it() {
        let mut evidence = Evidence::default();
        let mut now_ms = 0;
        for share in 0..200_000u32 {
            now_ms += 5_000;
            evidence.found(now_ms, 1.0, 1.0);
            if share < 199_800 {
                evidence.acknowledged(now_ms, 1.0);
                assert_eq!(evidence.shortfall(now_ms), None);
            }
        }
        assert!(evidence.shortfall(now_ms).is_some(), "200 shares, a quarter of an hour");
    }

    #[test]
    fn two_minutes_of_shares_too_hard_are_borne_and_taking_turns_does_not_help() {
        let mut evidence = Evidence::default();
        for s in 0..3_600 {
            assert_eq!(evidence.too_hard(s * 1_000, 600.0, 1.0), None, "ten minutes are not");
            assert_eq!(evidence.too_hard(s * 1_000, 1e300, 0.0), None, "nobody hashes");
        }
        let from_ms = 3_599_000;
        assert_eq!(evidence.too_hard(from_ms + HARD_MAX_MS - 1, 660.0, 1.0), None);
        assert_eq!(evidence.too_hard(from_ms + HARD_MAX_MS, 660.0, 1.0), Some(11));
        let mut evidence = Evidence::default();
        let ended = (0..3_600).find(|s| {
            let share = if s % 10 < 5 { 1e9 } else { 1.0 };
            evidence.too_hard(s * 1_000, share, 1.0).is_some()
        });
        assert!(ended.is_some_and(|s| s < 300), "{ended:?}");
    }

    #[test]
    fn no_number_makes_nonsense() {
        let mut evidence = Evidence::default();
        evidence.found(u64::MAX, f64::MAX, f64::MAX);
        evidence.acknowledged(0, f64::INFINITY);
        evidence.tip_changed(u64::MAX);
        assert_eq!(evidence.shortfall(u64::MAX), None);
        assert_eq!(evidence.too_hard(u64::MAX, f64::INFINITY, f64::MIN_POSITIVE), None);
    }
}
