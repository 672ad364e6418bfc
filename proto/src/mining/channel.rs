//! One channel of a mining server: who owns it, its search space, its difficulty, the jobs that it alone
//! was given and the proofs it has shown. Used by `server` alone, which owns every channel of a
//! connection; the jobs of all channels are in `given`.
//!
//! A job is frozen when it is given out; nothing here changes one afterwards.

use ruint::aliases::U256;

use crate::extranonce::{Extranonce, ExtranoncePrefix};
use crate::job::{Job, JobId};
use crate::limits::PAST_JOBS_MAX;
use crate::mining::given::{Given, GivenJobs, Tip};
use crate::mining::{Kind, Owner, Worth};
use crate::share::{FrozenJob, Proof, Refusal, Seen};
use crate::target::Difficulty;
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
    /// The connection's jobs are this channel's from this turn on.
    since_turn: u32,
    /// The difficulty from a turn on, oldest first; never empty.
    steps: Vec<(u32, Difficulty)>,
    /// Jobs that went to this channel alone, and custom jobs, newest last.
    own: Vec<OwnJob>,
    /// A standard channel's merkle roots of its newest jobs, newest last: what nearly every share is
    /// on. Others are computed again when one is named.
    roots: Option<Box<Roots>>,
    seen: Seen,
    /// Difficulty acknowledged but not yet shown in a `new_shares_sum`, scaled by 2^32.
    sum_remainder: U256,
    pub(super) tally: Tally,
}

type Roots = [Option<(JobId, [u8; 32])>; 2];

#[derive(Debug)]
struct OwnJob {
    given: Given,
    /// Serial of its tip.
    tip: u32,
    /// How many jobs the connection had been given before it.
    turn: u32,
    difficulty: Difficulty,
    worth: Worth,
}

/// What a channel did since it was opened.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Shares credited (committed).
    pub accepted: u64,
    /// Shares refused, by `Refusal::ALL`'s order; those beyond four billion of a kind are not counted.
    pub refused: [u32; Refusal::ALL.len()],
    /// Expected hashes of the credited shares.
    pub work: U256,
    /// Mono time of the newest good share.
    pub last_share_ms: Option<u64>,
    /// Lowest hash of a credited share, header byte order.
    pub best: Option<[u8; 32]>,
}

/// Where a job id leads on this channel.
pub(super) enum Found<'a> {
    Live(FrozenJob<'a>, Worth),
    Stale(FrozenJob<'a>, Worth),
    Nothing,
}

impl Channel {
    /// A channel that the next job of `jobs` is the first for.
    pub(super) fn new(
        kind: Kind,
        owner: Owner,
        prefix: ExtranoncePrefix,
        vardiff: Vardiff,
        now_ms: u64,
        jobs: &GivenJobs,
    ) -> Self {
        let since_turn = jobs.next_turn();
        Self {
            kind,
            owner,
            prefix,
            declared_at_ms: now_ms,
            since_turn,
            steps: vec![(since_turn, vardiff.difficulty())],
            vardiff,
            own: Vec::new(),
            roots: None,
            seen: Seen::default(),
            sum_remainder: U256::ZERO,
            tally: Tally::default(),
        }
    }

    /// The one extranonce that a standard channel mines of `job`. None on an extended channel, and none of
    /// a job of the other layout: such a job is not said and its shares are refused.
    pub(super) fn standard_extranonce(&self, job: &Job) -> Option<Extranonce> {
        match self.kind {
            Kind::Standard => job.standard_extranonce(&self.prefix),
            Kind::Extended => None,
        }
    }

    /// The merkle root that comes of it.
    pub(super) fn root_of(&self, job: &Job) -> Option<[u8; 32]> {
        Some(job.merkle_root(&self.standard_extranonce(job)?))
    }

    /// Keeps the root that a standard channel was just told.
    pub(super) fn told_root(&mut self, id: JobId, root: [u8; 32]) {
        let roots = self.roots.get_or_insert_default();
        **roots = [roots[1], Some((id, root))];
    }

    /// Gives a job of the pool's on the present tip to this channel alone, at its present difficulty.
    pub(super) fn give_own(&mut self, given: Given, jobs: &GivenJobs) {
        self.give(given, self.vardiff.difficulty(), Worth::POOL_JOB, jobs);
    }

    /// Gives a job on the present tip to this channel.
    pub(super) fn give(
        &mut self,
        given: Given,
        difficulty: Difficulty,
        worth: Worth,
        jobs: &GivenJobs,
    ) {
        if self.own.len() > PAST_JOBS_MAX {
            self.own.remove(0);
        }
        let (tip, turn) = (jobs.tip().serial, jobs.next_turn());
        if self.own.is_empty() {
            // A quiet channel has one.
            self.own.reserve_exact(1);
        }
        self.own.push(OwnJob { given, tip, turn, difficulty, worth });
    }

    /// Jobs from the next on are at the difficulty that `vardiff` has now.
    pub(super) fn step(&mut self, jobs: &GivenJobs) {
        let (turn, oldest) = (jobs.next_turn(), jobs.oldest_turn());
        self.steps.retain(|(from, _)| *from != turn);
        self.steps.push((turn, self.vardiff.difficulty()));
        // Of the steps at or before the oldest job only the last says anything. That bounds them by
        // the jobs that are known.
        let known = self.steps.iter().rposition(|(from, _)| *from <= oldest).unwrap_or(0);
        self.steps.drain(..known);
    }

    /// A new tip: every proof is impossible, and jobs of a tip that is forgotten are too.
    pub(super) fn retire_jobs(&mut self, jobs: &GivenJobs) {
        self.own.retain(|own| jobs.tip_of(own.tip).is_some());
        self.own.shrink_to_fit();
        self.seen.clear();
    }

    /// A job by its id. Of the present tip's the newest and `PAST_JOBS_MAX` before it are known, those
    /// of all channels and its own counted together.
    pub(super) fn find<'a>(&'a self, id: JobId, jobs: &'a GivenJobs) -> Found<'a> {
        let own = self.own.iter().rposition(|own| own.given.id == id);
        let worth = own.map_or(Worth::POOL_JOB, |at| self.own[at].worth);
        let found = match own {
            Some(at) => self.find_own(at, jobs),
            None => self.find_given(id, jobs),
        };
        let Some((job, is_live, later)) = found else { return Found::Nothing };
        match is_live {
            true if later > PAST_JOBS_MAX => Found::Nothing,
            true => Found::Live(job, worth),
            false => Found::Stale(job, worth),
        }
    }

    /// The job, whether its tip is the tip, and how many jobs came after it.
    fn find_own<'a>(
        &'a self,
        at: usize,
        jobs: &'a GivenJobs,
    ) -> Option<(FrozenJob<'a>, bool, usize)> {
        let OwnJob { given, tip, turn, difficulty, .. } = &self.own[at];
        let tip = jobs.tip_of(*tip)?;
        let later = jobs.next_turn().wrapping_sub(*turn) as usize + self.own.len() - 1 - at;
        Some((self.frozen(given, tip, *difficulty), jobs.is_live(tip), later))
    }

    /// The same for a job of all channels.
    fn find_given<'a>(
        &'a self,
        id: JobId,
        jobs: &'a GivenJobs,
    ) -> Option<(FrozenJob<'a>, bool, usize)> {
        let found = jobs.find(id).filter(|found| found.turn >= self.since_turn)?;
        let job = self.frozen(found.given, found.tip, self.difficulty_at(found.turn));
        let own = self.own.iter().rev().take_while(|own| own.turn > found.turn).count();
        let later = jobs.next_turn().wrapping_sub(found.turn) as usize - 1 + own;
        Some((job, jobs.is_live(found.tip), later))
    }

    fn difficulty_at(&self, turn: u32) -> Difficulty {
        let step = self.steps.iter().rev().find(|(from, _)| *from <= turn);
        step.or(self.steps.first()).map_or(self.vardiff.difficulty(), |(_, difficulty)| *difficulty)
    }

    fn frozen<'a>(&self, given: &'a Given, tip: &'a Tip, difficulty: Difficulty) -> FrozenJob<'a> {
        let told = self
            .roots
            .iter()
            .flat_map(|roots| roots.iter().flatten())
            .find(|(id, _)| *id == given.id);
        FrozenJob {
            job: &given.job,
            tip: &tip.prev,
            network_target: &tip.network_target,
            difficulty,
            target: difficulty.target(),
            min_ntime: given.min_ntime,
            since: given.since,
            prefix: self.prefix,
            merkle_root: told.map(|(_, root)| *root).or_else(|| self.root_of(&given.job)),
            version_rolling: true,
        }
    }

    /// `false` if the proof was shown on this channel before.
    pub(super) fn remember(&mut self, proof: &Proof) -> bool {
        self.seen.insert(&proof.hash)
    }

    /// Counts credited shares of one difficulty, the best of them with this hash; their difficulty
    /// leaves by `take_sum`.
    pub(super) fn credit(&mut self, shares: u32, best: &[u8; 32], difficulty: Difficulty) {
        let count = U256::from(shares);
        let work = difficulty.target().work().saturating_mul(count);
        let sum = difficulty.scaled().saturating_mul(count);
        self.tally.accepted += u64::from(shares);
        self.tally.work = self.tally.work.saturating_add(work);
        self.sum_remainder = self.sum_remainder.saturating_add(sum);
        let better = |known: &[u8; 32]| best.iter().rev().lt(known.iter().rev());
        if self.tally.best.as_ref().is_none_or(better) {
            self.tally.best = Some(*best);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extranonce::ExtranonceAllocator;
    use crate::template::PrevHash;
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
        let tip = PrevHash { hash: [0; 32], nbits: 0x1d00_ffff, min_ntime: 0 };
        Channel::new(Kind::Extended, owner, prefix, vardiff, 0, &GivenJobs::on(tip))
    }

    #[test]
    fn fractions_of_difficulty_are_carried_to_the_next_sum_p49() {
        let mut channel = channel();
        let mut sums = Vec::new();
        for _ in 0..9 {
            for _ in 0..3 {
                channel.credit(1, &[1; 32], Difficulty::from_log2(-3));
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
        channel.credit(1, &[1; 32], Difficulty::from_log2(10));
        channel.credit(1, &[1; 32], Difficulty::from_log2(-32));
        assert_eq!(channel.take_sum(), 1_024);
        assert_eq!(channel.take_sum(), 0);
        channel.credit(1, &[1; 32], Difficulty::from_log2(62));
        assert_eq!(channel.take_sum(), 1 << 62);
    }

    #[test]
    fn the_best_share_is_the_lowest_hash_read_as_a_number() {
        let mut channel = channel();
        let (mut low, mut high) = ([0; 32], [0; 32]);
        (low[0], high[31]) = (0xff, 1);
        for hash in [high, low, high] {
            channel.credit(1, &hash, Difficulty::MIN);
        }
        assert_eq!(channel.tally.best, Some(low));
        assert_eq!(channel.tally.accepted, 3);
    }
}
