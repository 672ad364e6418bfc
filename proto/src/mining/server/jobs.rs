//! Jobs to channels: what a new template, a new tip, a new channel or a new difficulty makes a server
//! say, and in which order. Part of `mining::server`.
//!
//! The order is the product: SetNewPrevHash first on a new tip (its job was sent ahead), then the
//! fuller job, then the next job ahead. No two jobs of a channel share a header: devices start their
//! search over with each job and would find the same shares again, and a hash that two
//! jobs could claim would be paid by the better of them (`Job::numbered`).

use std::sync::Arc;

use super::{GROUP, Outbox, Server};
use crate::job::{ActiveTemplate, Job, JobId};
use crate::limits::NTIME_AHEAD_MAX_S;
use crate::message::{NewExtendedMiningJob, NewMiningJob, SetNewPrevHash, SetTarget, setup_flags};
use crate::mining::channel::{Channel, Given};
use crate::mining::{ChannelId, Kind, Now};
use crate::template::PrevHash;
use crate::wire::{B064K, Seq0255U256};

/// The job that waits for the next tip.
#[derive(Debug, Clone)]
pub(super) struct Ahead {
    pub(super) id: JobId,
    /// As it was published.
    source: Arc<Job>,
    /// As it was said.
    job: Arc<Job>,
    /// It was said to the group, so the group may be told that it starts. SRI's proxy keeps a group's
    /// jobs apart from those of its channels and leaves a pool that mixes them.
    to_group: bool,
}

impl Server {
    fn new_job_id(&mut self) -> JobId {
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
        let active = Arc::clone(&self.active);
        let job_id = self.new_job_id();
        if self.future.is_none() {
            self.future = active.next.as_ref().map(|next| self.ahead(next, false));
        }
        let Some(channel) = self.channels.get_mut(&id) else { return };
        say_job(id, channel, job_id, &active.job, None, out);
        out.say(set_new_prev_hash(id, job_id, &active.tip));
        let tip = active.tip;
        channel.give(given(job_id, &active.job, tip, tip.min_ntime, now));
        if let Some(ahead) = &self.future {
            say_job(id, channel, ahead.id, &ahead.job, None, out);
        }
    }

    pub(super) fn on_template(&mut self, now: Now, new: Arc<ActiveTemplate>, out: &mut Outbox) {
        let old = std::mem::replace(&mut self.active, Arc::clone(&new));
        if self.channels.is_empty() {
            // Whoever opens a channel later is told of the job ahead then.
            self.future = None;
            return;
        }
        if old.tip.hash != new.tip.hash {
            self.on_tip(now, &new, out);
        } else if !Arc::ptr_eq(&old.job, &new.job) {
            self.give_running_job(now, &new, out);
        }
        let ahead_is_known = match (&self.future, &new.next) {
            (Some(sent), Some(next)) => Arc::ptr_eq(&sent.source, next),
            (_, None) => true,
            (None, Some(_)) => false,
        };
        if let Some(next) = new.next.as_ref().filter(|_| !ahead_is_known) {
            let ahead = self.ahead(next, self.speaks_to_group());
            self.say_job_to_all(ahead.id, &ahead.job, None, out);
            self.future = Some(ahead);
        }
    }

    /// A job that is about to be said without a tip.
    fn ahead(&mut self, source: &Arc<Job>, to_group: bool) -> Ahead {
        let id = self.new_job_id();
        Ahead { id, source: Arc::clone(source), job: source.numbered(id), to_group }
    }

    fn on_tip(&mut self, now: Now, new: &ActiveTemplate, out: &mut Outbox) {
        for channel in self.channels.values_mut() {
            channel.retire_jobs();
        }
        let fits = |sent: &Ahead| sent.source.template().height == new.job.template().height;
        let Ahead { id, source, job, to_group } = match self.future.take().filter(fits) {
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
        for channel in self.channels.values_mut() {
            channel.give(given(id, &job, new.tip, new.tip.min_ntime, now));
        }
        self.jobs_sent_ms = now.mono_ms;
        self.judge_early_shares(now, id, out);
        if !Arc::ptr_eq(&source, &new.job) {
            self.give_running_job(now, new, out);
        }
    }

    /// The active template's job, to start at once.
    fn give_running_job(&mut self, now: Now, active: &ActiveTemplate, out: &mut Outbox) {
        let id = self.new_job_id();
        let job = active.job.numbered(id);
        let min_ntime =
            self.channels.values().map(|channel| later_ntime(channel, active.tip, now)).max();
        let min_ntime = min_ntime.unwrap_or(active.tip.min_ntime);
        self.say_job_to_all(id, &job, Some(min_ntime), out);
        for channel in self.channels.values_mut() {
            channel.give(given(id, &job, active.tip, min_ntime, now));
        }
        self.jobs_sent_ms = now.mono_ms;
    }

    /// The same template with fresh search space.
    pub(super) fn refresh_jobs(&mut self, now: Now, out: &mut Outbox) {
        if !self.channels.is_empty() {
            let active = Arc::clone(&self.active);
            self.give_running_job(now, &active, out);
        }
        self.jobs_sent_ms = now.mono_ms;
    }

    /// Looks at every channel's difficulty.
    pub(super) fn check_difficulties(&mut self, now: Now, out: &mut Outbox) {
        let ids: Vec<ChannelId> = self.channels.keys().copied().collect();
        for id in ids {
            let changed = self
                .channels
                .get_mut(&id)
                .is_some_and(|channel| channel.vardiff.check(now.mono_ms).is_some());
            if changed {
                self.announce_target(now, id, out);
            }
        }
    }

    /// SetTarget and, because it binds only jobs to come (rule P41), a fresh job right behind it.
    pub(super) fn announce_target(&mut self, now: Now, id: ChannelId, out: &mut Outbox) {
        let tip = self.active.tip;
        let job_id = self.new_job_id();
        let job = self.active.job.numbered(job_id);
        let Some(channel) = self.channels.get_mut(&id) else { return };
        out.say(SetTarget {
            channel_id: id.0,
            maximum_target: channel.vardiff.difficulty().target().to_le_bytes(),
        });
        let min_ntime = later_ntime(channel, tip, now);
        say_job(id, channel, job_id, &job, Some(min_ntime), out);
        channel.give(given(job_id, &job, tip, min_ntime, now));
    }

    fn say_job_to_all(&self, id: JobId, job: &Arc<Job>, min_ntime: Option<u32>, out: &mut Outbox) {
        if self.speaks_to_group() {
            say_extended_job(GROUP, id, job, min_ntime, out);
            return;
        }
        for (channel_id, channel) in &self.channels {
            say_job(*channel_id, channel, id, job, min_ntime, out);
        }
    }
}

fn given(id: JobId, job: &Arc<Job>, tip: PrevHash, min_ntime: u32, now: Now) -> Given<'_> {
    Given { id, job, tip, min_ntime, since: now.unix_s, version_rolling: true }
}

/// An ntime that the channel has not been given under this tip: now, or a second more than the last.
/// Where that would make its blocks too new for the network (rule P30) the clock was set back by
/// hours, and now is right again.
fn later_ntime(channel: &Channel, tip: PrevHash, now: Now) -> u32 {
    let last = channel.newest().filter(|job| job.tip.hash == tip.hash).map(|job| job.min_ntime);
    let latest = now.unix_s.saturating_add(NTIME_AHEAD_MAX_S);
    let after_last = last.and_then(|last| last.checked_add(1)).filter(|next| *next <= latest);
    now.unix_s.max(tip.min_ntime).max(after_last.unwrap_or(0))
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

/// The job in the form that this kind of channel takes (rule P22).
fn say_job(
    id: ChannelId,
    channel: &Channel,
    job_id: JobId,
    job: &Job,
    min_ntime: Option<u32>,
    out: &mut Outbox,
) {
    match (channel.kind, channel.root_of(job)) {
        (Kind::Standard, Some(merkle_root)) => out.say(NewMiningJob {
            channel_id: id.0,
            job_id: job_id.0,
            min_ntime,
            version: job.version(),
            merkle_root,
        }),
        (Kind::Extended, _) | (Kind::Standard, None) => {
            say_extended_job(id, job_id, job, min_ntime, out);
        }
    }
}

fn say_extended_job(
    id: ChannelId,
    job_id: JobId,
    job: &Job,
    min_ntime: Option<u32>,
    out: &mut Outbox,
) {
    let coinbase = job.coinbase();
    out.say(NewExtendedMiningJob {
        channel_id: id.0,
        job_id: job_id.0,
        min_ntime,
        version: job.version(),
        version_rolling_allowed: true,
        merkle_path: Seq0255U256::new(job.merkle_path())
            .expect("Template::coinbase refuses paths above MERKLE_PATH_MAX"),
        coinbase_tx_prefix: B064K::new(&coinbase.prefix)
            .expect("Template::coinbase bounds the prefix by SCRIPT_SIG_MAX"),
        coinbase_tx_suffix: B064K::new(&coinbase.suffix)
            .expect("Template::coinbase refuses a suffix above 65,535 bytes"),
    });
}
