//! One channel of a mining server: who owns it, its search space, its difficulty, the jobs it was given
//! and the proofs it has shown. Used by `server` alone, which owns every channel of a connection.
//!
//! A job is frozen when it is given out; nothing here changes one afterwards.

use std::collections::VecDeque;
use std::sync::Arc;

use ruint::aliases::U256;

use crate::extranonce::ExtranoncePrefix;
use crate::job::{Job, JobId};
use crate::limits::{PAST_JOBS_MAX, STALE_JOBS_MAX};
use crate::mining::{Kind, Owner};
use crate::share::{FrozenJob, Proof, Refusal, Seen};
use crate::target::{Difficulty, Target};
use crate::template::PrevHash;
use crate::vardiff::Vardiff;

/// A channel and everything that belongs to it.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) kind: Kind,
    pub(super) owner: Owner,
    pub(super) prefix: ExtranoncePrefix,
    pub(super) vardiff: Vardiff,
    /// Mono time of the last UpdateChannel whose hash rate was listened to.
    pub(super) declared_at_ms: u64,
    /// Jobs on the present tip, newest last.
    jobs: VecDeque<FrozenJob>,
    /// Jobs on earlier tips, newest last.
    stale: VecDeque<FrozenJob>,
    seen: Seen,
    /// Difficulty acknowledged but not yet shown in a `new_shares_sum`, scaled by 2^32.
    sum_remainder: U256,
    pub(super) tally: Tally,
}

/// What a channel did since it was opened.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Shares credited (committed).
    pub accepted: u64,
    /// Shares refused, by `Refusal::ALL`'s order.
    pub refused: [u64; Refusal::ALL.len()],
    /// Expected hashes of the credited shares.
    pub work: U256,
    /// Mono time of the newest good share.
    pub last_share_ms: Option<u64>,
    /// Lowest hash of a credited share, header byte order.
    pub best: Option<[u8; 32]>,
}

/// Where a job id leads on this channel.
pub(super) enum Found<'a> {
    Live(&'a FrozenJob),
    Stale(&'a FrozenJob),
    Nothing,
}

impl Channel {
    pub(super) fn new(
        kind: Kind,
        owner: Owner,
        prefix: ExtranoncePrefix,
        vardiff: Vardiff,
        now_ms: u64,
    ) -> Self {
        Self {
            kind,
            owner,
            prefix,
            vardiff,
            declared_at_ms: now_ms,
            jobs: VecDeque::new(),
            stale: VecDeque::new(),
            seen: Seen::default(),
            sum_remainder: U256::ZERO,
            tally: Tally::default(),
        }
    }

    /// The merkle root that a standard channel mines of `job`; nothing on an extended one.
    pub(super) fn root_of(&self, job: &Job) -> Option<[u8; 32]> {
        match self.kind {
            Kind::Standard => Some(job.merkle_root(&self.prefix.standard())),
            Kind::Extended => None,
        }
    }

    /// Gives the channel a job on `tip` at its present difficulty. Beyond `PAST_JOBS_MAX` the oldest
    /// is forgotten: its shares become `invalid-job-id`.
    pub(super) fn give(&mut self, given: Given<'_>) {
        let difficulty = self.vardiff.difficulty();
        self.jobs.push_back(FrozenJob {
            id: given.id,
            job: Arc::clone(given.job),
            tip: given.tip,
            network_target: Target::from_compact(given.tip.nbits),
            difficulty,
            target: difficulty.target(),
            min_ntime: given.min_ntime,
            since: given.since,
            prefix: self.prefix,
            merkle_root: self.root_of(given.job),
            version_rolling: given.version_rolling,
        });
        if self.jobs.len() > PAST_JOBS_MAX + 1 {
            self.jobs.pop_front();
        }
    }

    /// A new tip: every job is stale from now on, every proof impossible.
    pub(super) fn retire_jobs(&mut self) {
        self.stale.append(&mut self.jobs);
        while self.stale.len() > STALE_JOBS_MAX {
            self.stale.pop_front();
        }
        self.seen.clear();
    }

    pub(super) fn find(&self, id: JobId) -> Found<'_> {
        let newest_with = |jobs: &'_ VecDeque<FrozenJob>| jobs.iter().rposition(|job| job.id == id);
        if let Some(at) = newest_with(&self.jobs) {
            return Found::Live(&self.jobs[at]);
        }
        newest_with(&self.stale).map_or(Found::Nothing, |at| Found::Stale(&self.stale[at]))
    }

    /// The newest job, if there is one.
    pub(super) fn newest(&self) -> Option<&FrozenJob> {
        self.jobs.back()
    }

    /// `false` if the proof was shown on this channel before.
    pub(super) fn remember(&mut self, proof: &Proof) -> bool {
        self.seen.insert(&proof.hash)
    }

    /// Counts a credited share; its difficulty leaves by `take_sum`.
    pub(super) fn credit(&mut self, hash: &[u8; 32], difficulty: Difficulty) {
        self.tally.accepted += 1;
        self.tally.work = self.tally.work.saturating_add(difficulty.target().work());
        self.sum_remainder = self.sum_remainder.saturating_add(difficulty.scaled());
        let better = self
            .tally
            .best
            .is_none_or(|best| U256::from_le_bytes(*hash) < U256::from_le_bytes(best));
        if better {
            self.tally.best = Some(*hash);
        }
    }

    /// Whole difficulty since the last call; the fraction stays for the next, so that over time no
    /// share below difficulty 1 is lost from the sum.
    pub(super) fn take_sum(&mut self) -> u64 {
        let whole: U256 = self.sum_remainder >> 32;
        self.sum_remainder -= whole << 32;
        whole.saturating_to()
    }
}

/// A job on its way to a channel.
pub(super) struct Given<'a> {
    pub(super) id: JobId,
    pub(super) job: &'a Arc<Job>,
    pub(super) tip: PrevHash,
    pub(super) min_ntime: u32,
    pub(super) since: u32,
    pub(super) version_rolling: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extranonce::ExtranonceAllocator;
    use crate::vardiff::VardiffPolicy;

    fn channel() -> Channel {
        let policy = VardiffPolicy {
            shares_per_minute: 12.0,
            floor: Difficulty::MIN,
            ceiling: Difficulty::from_log2(62),
        };
        let owner = Owner { account: "alice".into(), worker: "".into() };
        let prefix = ExtranonceAllocator::new(1, 1).allocate().expect("the first of 2^32");
        let vardiff = Vardiff::new(policy, 0.0, Difficulty::MIN, 0);
        Channel::new(Kind::Extended, owner, prefix, vardiff, 0)
    }

    #[test]
    fn fractions_of_difficulty_are_carried_to_the_next_sum_p49() {
        let mut channel = channel();
        let mut sums = Vec::new();
        for _ in 0..9 {
            for _ in 0..3 {
                channel.credit(&[1; 32], Difficulty::from_log2(-3));
            }
            sums.push(channel.take_sum());
        }
        // 3/8 a batch: nothing is lost and nothing is told twice.
        assert_eq!(sums, [0, 0, 1, 0, 0, 1, 0, 1, 0]);
        assert_eq!(sums.iter().sum::<u64>(), 9 * 3 / 8);
    }

    #[test]
    fn whole_difficulty_is_told_with_the_batch_it_came_in_p49() {
        let mut channel = channel();
        channel.credit(&[1; 32], Difficulty::from_log2(10));
        channel.credit(&[1; 32], Difficulty::from_log2(-32));
        assert_eq!(channel.take_sum(), 1_024);
        assert_eq!(channel.take_sum(), 0);
        channel.credit(&[1; 32], Difficulty::from_log2(62));
        assert_eq!(channel.take_sum(), 1 << 62);
    }

    #[test]
    fn the_best_share_is_the_lowest_hash_read_as_a_number() {
        let mut channel = channel();
        let (mut low, mut high) = ([0; 32], [0; 32]);
        (low[0], high[31]) = (0xff, 1);
        for hash in [high, low, high] {
            channel.credit(&hash, Difficulty::MIN);
        }
        assert_eq!(channel.tally.best, Some(low));
        assert_eq!(channel.tally.accepted, 3);
    }
}
