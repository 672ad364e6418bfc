//! Jobs to channels: what a new template, a new tip, a new channel or a new difficulty makes a server
//! say, and in which order. Part of `mining::server`.
//!
//! The order is the product: SetNewPrevHash first on a new tip (its job was sent ahead) and alone, then,
//! when everybody has it, the fuller job and the next job ahead. No two jobs of a channel share a header: devices start their
//! search over with each job and would find the same shares again, and a hash that two
//! jobs could claim would be paid by the better of them (`Job::numbered`).

use std::sync::Arc;

use super::{GROUP, Outbox, Server};
use crate::job::{ActiveTemplate, Job, JobId};
use crate::message::{NewMiningJob, SetNewPrevHash, SetTarget, setup_flags};
use crate::mining::channel::Channel;
use crate::mining::given::Given;
use crate::mining::{ChannelId, Kind, Now};
use crate::sha256::CoinbaseFields;
use crate::template::PrevHash;

/// The job that waits for the next tip.
#[derive(Debug, Clone)]
pub(super) struct Ahead {
    pub(super) id: JobId,
    /// As it was said.
    job: Job,
    /// It was said to the group, so the group may be told that it starts. SRI's proxy keeps a group's
    /// jobs apart from those of its channels and leaves a pool that mixes them.
    to_group: bool,
}

impl Server {
    pub(super) fn new_job_id(&mut self) -> JobId {
        let id = JobId(self.next_job);
        // One counter for the whole connection, group jobs included (rule P23). It wraps after 2^32
        // jobs, when every job of that time is long forgotten.
        self.next_job = self.next_job.wrapping_add(1).max(1);
        id
    }

    /// One frame for all channels instead of one each (rule P32), where the client can take it (rule
    /// P11) and there is something to save.
    fn speaks_to_group(&self) -> bool {
        self.policy.group_addressing
            && self.flags & setup_flags::REQUIRES_STANDARD_JOBS == 0
            && self.channels.len() > 1
    }

    /// A channel's first words after its Success (rules P20, P21): the running template as a future
    /// job, the tip that starts it, and the job that waits for the next tip.
    pub(super) fn introduce(&mut self, now: Now, id: ChannelId, out: &mut Outbox) {
        if self.selects_work() {
            return;
        }
        let active = Arc::clone(&self.active);
        let job_id = self.new_job_id();
        if self.future.is_none() {
            self.future = active.next.as_ref().map(|next| self.ahead(next, false));
        }
        let job = active.job.numbered(job_id);
        self.say_job(id, job_id, &job, None, out);
        out.say(set_new_prev_hash(id, job_id, &active.tip));
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.give_own(given(job_id, job, active.tip.min_ntime, now), &self.given);
        }
        if let Some(Ahead { id: ahead, job, .. }) = self.future.clone() {
            self.say_job(id, ahead, &job, None, out);
        }
    }

    pub(super) fn on_template(&mut self, now: Now, new: Arc<ActiveTemplate>, out: &mut Outbox) {
        let old = std::mem::replace(&mut self.active, Arc::clone(&new));
        if self.selects_work() {
            self.on_template_unsaid(old.tip);
            return;
        }
        let new_tip = !old.tip.is_same_tip(&new.tip);
        if new_tip {
            self.given.move_to(new.tip);
        }
        if self.channels.is_empty() {
            // Whoever opens a channel later is told of the job ahead then.
            self.future = None;
            return;
        }
        if new_tip {
            self.on_tip(now, &new, out);
            self.owes_jobs = true;
        }
        if self.owes_jobs {
            return;
        }
        if !old.job.is_work_of(&new.job) {
            self.give_running_job(now, &new, out);
        }
        self.say_ahead(out);
    }

    /// The jobs behind a new tip: the fuller one, and the one for the tip after. They are put off so
    /// that every connection hears of the tip before any hears of its jobs.
    pub(super) fn say_owed_jobs(&mut self, now: Now, out: &mut Outbox) {
        if !std::mem::take(&mut self.owes_jobs) || self.channels.is_empty() {
            return;
        }
        let active = Arc::clone(&self.active);
        if !self.given.newest().is_some_and(|given| given.job.is_work_of(&active.job)) {
            self.give_running_job(now, &active, out);
        }
        self.say_ahead(out);
    }

    fn say_ahead(&mut self, out: &mut Outbox) {
        let Some(next) = self.active.next.clone() else { return };
        if self.future.as_ref().is_some_and(|sent| sent.job.is_work_of(&next)) {
            return;
        }
        let ahead = self.ahead(&next, self.speaks_to_group());
        self.say_job_to_all(ahead.id, &ahead.job, None, out);
        self.future = Some(ahead);
    }

    /// A job that is about to be said without a tip.
    fn ahead(&mut self, work: &Job, to_group: bool) -> Ahead {
        let id = self.new_job_id();
        Ahead { id, job: work.numbered(id), to_group }
    }

    fn on_tip(&mut self, now: Now, new: &ActiveTemplate, out: &mut Outbox) {
        for channel in self.channels.values_mut() {
            channel.retire_jobs(&self.given);
        }
        let fits = |sent: &Ahead| sent.job.template().height == new.job.template().height;
        let Ahead { id, job, to_group } = match self.future.take().filter(fits) {
            Some(sent) => sent,
            None => {
                // Nothing was sent ahead for this height: the job goes first, then the tip (P24).
                let ahead = self.ahead(&new.job, self.speaks_to_group());
                self.say_job_to_all(ahead.id, &ahead.job, None, out);
                ahead
            }
        };
        if to_group && self.speaks_to_group() {
            out.say(set_new_prev_hash(GROUP, id, &new.tip));
        } else {
            for channel in self.channels.keys() {
                out.say(set_new_prev_hash(*channel, id, &new.tip));
            }
        }
        self.given.give(given(id, job, new.tip.min_ntime, now));
        self.jobs_sent_ms = now.mono_ms;
        self.judge_early_shares(now, id, out);
    }

    /// The active template's job, to start at once.
    fn give_running_job(&mut self, now: Now, active: &ActiveTemplate, out: &mut Outbox) {
        let id = self.new_job_id();
        let job = active.job.numbered(id);
        let min_ntime = now.unix_s.max(active.tip.min_ntime);
        self.say_job_to_all(id, &job, Some(min_ntime), out);
        self.given.give(given(id, job, min_ntime, now));
        self.jobs_sent_ms = now.mono_ms;
    }

    /// The same template with fresh search space.
    pub(super) fn refresh_jobs(&mut self, now: Now, out: &mut Outbox) {
        if !self.channels.is_empty() && !self.selects_work() {
            let active = Arc::clone(&self.active);
            self.give_running_job(now, &active, out);
        }
        self.jobs_sent_ms = now.mono_ms;
    }

    /// Looks at every channel's difficulty.
    pub(super) fn check_difficulties(&mut self, now: Now, out: &mut Outbox) {
        let ids: Vec<ChannelId> = self.channels.keys().copied().collect();
        for id in ids {
            self.check_difficulty(now, id, out);
        }
    }

    /// Asks the evidence whether a channel's difficulty should be another.
    pub(super) fn check_difficulty(&mut self, now: Now, id: ChannelId, out: &mut Outbox) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.vardiff.check(now.mono_ms).is_some() {
            self.announce_target(now, id, out);
        }
    }

    /// SetTarget and, because it binds only jobs to come (rule P41), a fresh job right behind it. A client
    /// that selects its own work makes that job itself.
    pub(super) fn announce_target(&mut self, now: Now, id: ChannelId, out: &mut Outbox) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        out.say(SetTarget {
            channel_id: id.0,
            maximum_target: channel.vardiff.difficulty().target().to_le_bytes(),
        });
        channel.step(&self.given);
        if self.selects_work() {
            return;
        }
        let job_id = self.new_job_id();
        let job = self.active.job.numbered(job_id);
        let min_ntime = now.unix_s.max(self.active.tip.min_ntime);
        self.say_job(id, job_id, &job, Some(min_ntime), out);
        if let Some(channel) = self.channels.get_mut(&id) {
            channel.give_own(given(job_id, job, min_ntime, now), &self.given);
        }
    }

    fn say_job_to_all(&mut self, id: JobId, job: &Job, min_ntime: Option<u32>, out: &mut Outbox) {
        if self.speaks_to_group() {
            job.say_extended(GROUP.0, id, min_ntime, &mut out.frames);
            return;
        }
        let standard =
            self.channels.values().filter_map(|channel| channel.standard_extranonce(job));
        let coinbases: Vec<CoinbaseFields> =
            standard.map(|extranonce| job.coinbase_fields(extranonce)).collect();
        let mut roots = vec![[0; 32]; coinbases.len()];
        job.merkle_roots(&coinbases, &mut roots);
        let mut roots = roots.into_iter();
        for (channel_id, channel) in self.channels.iter_mut() {
            let root = match channel.kind {
                Kind::Standard => roots.next(),
                Kind::Extended => None,
            };
            say_job_with(*channel_id, channel, id, job, root, min_ntime, out);
        }
    }

    /// The job in the form that this kind of channel takes (rule P22).
    fn say_job(
        &mut self,
        channel_id: ChannelId,
        id: JobId,
        job: &Job,
        min_ntime: Option<u32>,
        out: &mut Outbox,
    ) {
        let Some(channel) = self.channels.get_mut(&channel_id) else { return };
        let root = channel.root_of(job);
        say_job_with(channel_id, channel, id, job, root, min_ntime, out);
    }
}

/// With its merkle root to a standard channel, in full to an extended one.
fn say_job_with(
    channel_id: ChannelId,
    channel: &mut Channel,
    id: JobId,
    job: &Job,
    root: Option<[u8; 32]>,
    min_ntime: Option<u32>,
    out: &mut Outbox,
) {
    let merkle_root = match (channel.kind, root) {
        (Kind::Extended, _) => {
            return job.say_extended(channel_id.0, id, min_ntime, &mut out.frames);
        }
        (Kind::Standard, Some(root)) => root,
        (Kind::Standard, None) => return,
    };
    channel.told_root(id, merkle_root);
    out.say(NewMiningJob {
        channel_id: channel_id.0,
        job_id: id.0,
        min_ntime,
        version: job.version(),
        merkle_root,
    });
}

fn given(id: JobId, job: Job, min_ntime: u32, now: Now) -> Given {
    Given { id, job, min_ntime, since: now.unix_s }
}

fn set_new_prev_hash(channel: ChannelId, job: JobId, tip: &PrevHash) -> SetNewPrevHash {
    SetNewPrevHash {
        channel_id: channel.0,
        job_id: job.0,
        prev_hash: tip.hash,
        min_ntime: tip.min_ntime,
        nbits: tip.nbits,
    }
}
