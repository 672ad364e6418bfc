//! The jobs that a connection was given and may still name: those of the present tip, and of the two
//! before it. Kept once for all channels; what a channel alone was given it keeps itself. Used by
//! `server` and `channel`.
//!
//! Nothing of a job changes after it was given: a share is judged by it as it was sent.

use std::collections::VecDeque;

use crate::job::{Job, JobId};
use crate::limits::{PAST_JOBS_MAX, STALE_JOBS_MAX, STALE_TIPS_MAX};
use crate::target::Target;
use crate::template::PrevHash;

/// A job as it was sent.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) id: JobId,
    /// Numbered, if it can be.
    pub(super) job: Job,
    /// First ntime that the miner was told to use.
    pub(super) min_ntime: u32,
    /// Our clock (unix seconds) when he was told.
    pub(super) since: u32,
}

/// A tip and the jobs on it that went to every channel.
#[derive(Debug)]
pub(super) struct Tip {
    /// Counts the tips of this connection.
    pub(super) serial: u32,
    pub(super) prev: PrevHash,
    /// Target of `prev.nbits`: a header that meets it is a block.
    pub(super) network_target: Target,
    /// Oldest first.
    jobs: Vec<Given>,
    /// How many jobs this connection was given before the first of `jobs`.
    first_turn: u32,
}

/// All that may still be named; the present tip is the last.
#[derive(Debug)]
pub(super) struct GivenJobs {
    tips: VecDeque<Tip>,
}

/// Where an id leads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) given: &'a Given,
    pub(super) tip: &'a Tip,
    /// The how manieth job it was: tells which channels were there and at what difficulty.
    pub(super) turn: u32,
}

impl Tip {
    fn keep_newest(&mut self, count: usize) {
        let surplus = self.jobs.len().saturating_sub(count);
        self.jobs.drain(..surplus);
        self.first_turn = self.first_turn.wrapping_add(surplus as u32);
        self.jobs.shrink_to_fit();
    }
}

impl GivenJobs {
    pub(super) fn on(prev: PrevHash) -> Self {
        let mut jobs = Self { tips: VecDeque::with_capacity(STALE_TIPS_MAX + 1) };
        jobs.push_tip(prev, 0, 0);
        jobs
    }

    fn push_tip(&mut self, prev: PrevHash, serial: u32, first_turn: u32) {
        let network_target = Target::from_compact(prev.nbits);
        self.tips.push_back(Tip { serial, prev, network_target, jobs: Vec::new(), first_turn });
    }

    /// Every job so far is stale from now on, and of the tip that ends only its newest are kept.
    pub(super) fn move_to(&mut self, prev: PrevHash) {
        let (serial, turn) = (self.tip().serial.wrapping_add(1), self.next_turn());
        if let Some(ended) = self.tips.back_mut() {
            ended.keep_newest(STALE_JOBS_MAX);
        }
        if self.tips.len() > STALE_TIPS_MAX {
            self.tips.pop_front();
        }
        self.push_tip(prev, serial, turn);
    }

    /// The present one.
    pub(super) fn tip(&self) -> &Tip {
        self.tips.back().expect("one is pushed in `on` and none is popped without another")
    }

    /// A tip by its serial, while it is known.
    pub(super) fn tip_of(&self, serial: u32) -> Option<&Tip> {
        self.tips.iter().rev().find(|tip| tip.serial == serial)
    }

    pub(super) fn is_live(&self, tip: &Tip) -> bool {
        tip.serial == self.tip().serial
    }

    /// A job goes to every channel. Beyond `PAST_JOBS_MAX` the oldest is forgotten.
    pub(super) fn give(&mut self, given: Given) {
        let tip = self.tips.back_mut().expect("one is pushed in `on` and none is popped alone");
        if tip.jobs.len() > PAST_JOBS_MAX {
            tip.jobs.remove(0);
            tip.first_turn = tip.first_turn.wrapping_add(1);
        }
        // An idle link's memory is counted: no doubling beyond the bound.
        tip.jobs.reserve_exact(if tip.jobs.len() < 4 { 1 } else { 4 });
        tip.jobs.push(given);
    }

    /// The last job that went to every channel, if there is one on this tip.
    pub(super) fn newest(&self) -> Option<&Given> {
        self.tip().jobs.last()
    }

    /// Turn of the next job.
    pub(super) fn next_turn(&self) -> u32 {
        let tip = self.tip();
        tip.first_turn.wrapping_add(tip.jobs.len() as u32)
    }

    /// Turn of the oldest job that is known.
    pub(super) fn oldest_turn(&self) -> u32 {
        self.tips.front().map_or(0, |tip| tip.first_turn)
    }

    pub(super) fn find(&self, id: JobId) -> Option<Found<'_>> {
        self.tips.iter().rev().find_map(|tip| {
            let at = tip.jobs.iter().rposition(|given| given.id == id)?;
            let turn = tip.first_turn.wrapping_add(at as u32);
            Some(Found { given: &tip.jobs[at], tip, turn })
        })
    }
}
