//! Work for the devices: made of what the node, a pool or neither has, published when it is news. Part of
//! `declarator.rs`; how a job is put together stands in `work.rs`.

use std::sync::Arc;

use proto::job::{ActiveTemplate, Job};
use proto::mining::Now;
use proto::target::{Difficulty, Target};
use proto::template::{Template, TemplateId};

use super::outputs::fill;
use super::session::{Channel, Failure, Session};
use super::shares::Work;
use super::tally::ShareLoss;
use super::view::{Note, Switch, WorkView};
use super::work::{self, OwnWork};
use super::{Declarator, Effect, Options, Published};
use crate::limits::{CEILING_EVERY_MS, SWITCHES_SHOWN, THEIR_JOBS_EVERY_MS, WORKS_KEPT_MAX};
use crate::node::NodeTemplate;
use crate::upstream::{Kind, Source};

/// What was published last.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) published: Published,
    /// Whose.
    pub(super) source: Source,
    pub(super) session: Option<u64>,
    /// The node's template that it was made of, or the pool's job.
    pub(super) made_of: u64,
    /// What the pool asks for and where, when it was made.
    pub(super) outputs: Option<Arc<[u8]>>,
    pub(super) channel: Option<Channel>,
    pub(super) at_ms: u64,
    /// When the ceiling may be another, mono ms.
    ceiling_from_ms: u64,
    /// When the work of the same session before it was.
    before_ms: Option<u64>,
    pub(super) view: WorkView,
}

impl Shown {
    /// When other work of the pool's may follow, mono ms: on the same tip, and for another tip or another
    /// prefix, which are not to wait but where they come in a flood.
    fn theirs_from_ms(&self) -> (u64, u64) {
        let before_ms = self.before_ms.map_or(0, |before| before + THEIR_JOBS_EVERY_MS);
        (self.at_ms + THEIR_JOBS_EVERY_MS, before_ms)
    }

    /// When what a pool said may become work that did not at once, mono ms.
    pub(super) fn deadline_ms(&self, now_ms: u64) -> Option<u64> {
        let (same_tip_ms, other_ms) = self.theirs_from_ms();
        let session = self.session.into_iter();
        let all = session.flat_map(|_| [other_ms, same_tip_ms, self.ceiling_from_ms]);
        all.filter(|at_ms| *at_ms > now_ms).min()
    }
}

impl Declarator {
    /// Publishes new work if there is any to be had. Whether that went well: where it did not, a session has
    /// ended, and solo or the next pool follows in the same breath.
    pub(super) fn give_work(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        match self.make_work(now) {
            Ok(None) => self.keep_ceiling(now, out),
            Ok(Some(made)) => self.publish(now, made, out),
            Err((Some(session), failure)) => {
                self.fail(now, session, failure, out);
                return false;
            }
            // A template of our own node's that no solo job can be made of: the last one stands.
            Err((None, failure)) => self.node.unusable = Some(failure.to_string()),
        }
        true
    }

    pub(super) fn make_work(&mut self, now: Now) -> Result<Option<Made>, (Option<u64>, Failure)> {
        let source = self.upstream.using();
        let id = TemplateId(self.next_work);
        let session = self.session_of(source);
        match source {
            Source::Solo => {
                let Some(node) = &self.node.template else { return Ok(None) };
                if !self.is_due(now, source, None, node) {
                    return Ok(None);
                }
                let Options { payout_script, tag, .. } = &self.options;
                let active = work::solo(id, node, payout_script, tag);
                let active = active.map_err(|failure| (None, failure))?;
                let sats = node.template.coinbase_value_sats;
                let outputs = vec![(sats, payout_script.clone())];
                let made_of = node.template.id.0;
                Ok(Some(Made { active, source, session: None, made_of, own: None, outputs }))
            }
            Source::Pool { kind: Kind::Own, pool } => {
                let (Some(node), Some(session)) = (&self.node.template, session) else {
                    return Ok(None);
                };
                let (Some(channel), Some(asked)) = (&session.channel, &session.outputs) else {
                    return Ok(None);
                };
                if !self.is_due(now, source, Some(session), node) {
                    return Ok(None);
                }
                let failed = |failure| (Some(session.id), failure);
                let value = node.template.coinbase_value_sats;
                let outputs = fill(asked, value).map_err(|bad| failed(bad.into()))?;
                let limit = &self.options.pools[pool].limit;
                limit.judge(&outputs).map_err(|bad| failed(bad.into()))?;
                let (active, own) =
                    work::own(id, node, &outputs, &self.options.tag, channel).map_err(failed)?;
                let outputs =
                    outputs.into_iter().map(|output| (output.sats, output.script)).collect();
                let (session, made_of) = (Some(session.id), node.template.id.0);
                Ok(Some(Made { active, source, session, made_of, own: Some(own), outputs }))
            }
            Source::Pool { kind: Kind::Theirs, .. } => {
                let Some(session) = session else { return Ok(None) };
                let (Some(channel), Some(work)) = (&session.channel, session.mining.work()) else {
                    return Ok(None);
                };
                let made_of = u64::from(work.job_id.0);
                let is_shown = self.shown.as_ref().is_some_and(|shown| {
                    (shown.session, shown.made_of) == (Some(session.id), made_of)
                });
                if is_shown || !self.is_their_turn(now, session.id, &work.prev_hash) {
                    return Ok(None);
                }
                let active = work::theirs(id, &work, channel);
                let (active, outputs) = active.map_err(|failure| (Some(session.id), failure))?;
                let outputs =
                    outputs.into_iter().map(|output| (output.sats, output.script)).collect();
                let session = Some(session.id);
                Ok(Some(Made { active, source, session, made_of, own: None, outputs }))
            }
        }
    }

    /// Whether a pool's next job is to become work already.
    fn is_their_turn(&self, now: Now, session: u64, tip: &[u8; 32]) -> bool {
        let shown = self.shown.as_ref().filter(|shown| shown.session == Some(session));
        shown.is_none_or(|shown| {
            let (same_tip_ms, other_ms) = shown.theirs_from_ms();
            let is_same = shown.published.active.tip.hash == *tip;
            now.mono_ms >= if is_same { same_tip_ms } else { other_ms }
        })
    }

    /// Whether the node's template is to become work: it is another's work than shown, of another tip, or a
    /// newer one whose time has come.
    pub(super) fn is_due(
        &self,
        now: Now,
        source: Source,
        session: Option<&Session>,
        node: &NodeTemplate,
    ) -> bool {
        let Some(shown) = &self.shown else { return true };
        let is_other = shown.source != source
            || shown.session != session.map(|session| session.id)
            || !shown.published.active.tip.is_same_tip(&node.prev_hash);
        let outputs = session.and_then(|session| session.outputs.as_ref());
        let prefix = session.and_then(|session| session.channel).map(|channel| channel.prefix);
        // What is declared keeps what it pays: a pool may ask for other outputs with each token.
        let newest = self.works.back();
        let pays_otherwise =
            newest.is_some_and(Work::is_undeclared) && shown.outputs.as_ref() != outputs;
        if is_other || pays_otherwise {
            return true;
        }
        if shown.channel.map(|channel| channel.prefix) != prefix {
            return now.mono_ms >= shown.theirs_from_ms().1;
        }
        // One that waits for its promise would lose the shares that wait with it.
        let waits = newest.is_some_and(Work::awaits_promise);
        let is_newer = !is_same_work(shown.published.active.job.template(), &node.template);
        is_newer && !waits && now.mono_ms >= shown.at_ms.saturating_add(self.options.refresh_ms)
    }

    pub(super) fn publish(&mut self, now: Now, made: Made, out: &mut Vec<Effect>) {
        let Made { active, source, session, made_of, own, outputs } = made;
        self.next_work += 1;
        let active = Arc::new(active);
        let before = self.shown.as_ref().map(|shown| shown.source);
        if before != Some(source) {
            self.say_switch(now, before, source, out);
        }
        // Also of a newer template: how often a pool called the tip old is about the tip.
        let is_remade = self.shown.as_ref().is_some_and(|shown| {
            shown.session == session && shown.published.active.tip.is_same_tip(&active.tip)
        });
        let theirs = session.and_then(|id| self.sessions.get(&id));
        let channel = theirs.and_then(|session| session.channel);
        let their_job = theirs.and_then(|session| session.mining.work());
        let is_ours = own.is_some() || session.is_none();
        let mut work =
            Work::new(now, &active, session, own, channel.as_ref(), their_job.as_deref());
        if let Some(before) = self.works.back().filter(|_| is_remade) {
            work.takes_the_place_of(before);
        }
        for (pool, shares) in self.retire_works(is_ours.then_some(active.tip.hash)) {
            self.pools[pool].0.lose(ShareLoss::NeverPromised, shares);
        }
        self.works.push_back(work);
        self.say_large(session, &active.job, out);
        let template = active.job.template();
        let is_theirs = matches!(source, Source::Pool { kind: Kind::Theirs, .. });
        let view = WorkView {
            source,
            height: (!is_theirs).then_some(template.height),
            value_sats: template.coinbase_value_sats,
            outputs,
            transactions: template.transactions.as_ref().map(|all| all.len()),
            tip: active.tip.hash,
            fits_every_device: active.job.fits_every_device(),
            is_promised: false,
            since_ms: now.mono_ms,
        };
        let ceiling = channel.map_or(Difficulty::MAX, |channel| ceiling_under(channel.target));
        let published = Published { active, ceiling };
        let outputs = session.and_then(|id| self.sessions.get(&id)?.outputs.clone());
        let before = self.shown.as_ref().filter(|shown| shown.session == session);
        let before_ms = before.map(|shown| shown.at_ms);
        self.shown = Some(Shown {
            published: published.clone(),
            source,
            session,
            made_of,
            outputs,
            channel,
            at_ms: now.mono_ms,
            ceiling_from_ms: now.mono_ms,
            before_ms,
            view,
        });
        out.push(Effect::Publish(published));
    }

    /// Once with each session: a pool's split makes a job large, and the next one as large.
    fn say_large(&mut self, session: Option<u64>, job: &Job, out: &mut Vec<Effect>) {
        let Some(session) = session.and_then(|id| self.sessions.get(&id)) else { return };
        if !job.fits_every_device() && self.said_large != Some(session.id) {
            self.said_large = Some(session.id);
            let (pool, bytes) = (session.pool, job.payload_len());
            out.push(Effect::Note(Note::LargeJob { pool, bytes }));
        }
    }

    /// Before there is newer work: jobs of tips that are gone, as our node has it, have no more shares to come
    /// but late ones, and those that were never promised take theirs along. So do those that nobody was asked
    /// for, since only the newest is pursued.
    pub(super) fn retire_works(&mut self, tip: Option<[u8; 32]>) -> Vec<(usize, u64)> {
        let mut lost = Vec::new();
        for work in &mut self.works {
            let pool = work.session.and_then(|id| self.sessions.get(&id)).map(|one| one.pool);
            let Some(pool) = pool else { continue };
            let is_old = tip.is_some_and(|tip| work.tip != tip);
            // With its promise, whose time is over, goes the template that it holds.
            if work.is_undeclared() || (is_old && work.awaits_promise()) {
                lost.push((pool, work.give_up()));
            }
        }
        while self.works.len() >= WORKS_KEPT_MAX {
            let Some(mut oldest) = self.works.pop_front() else { break };
            let pool = oldest.session.and_then(|id| self.sessions.get(&id)).map(|one| one.pool);
            if let Some(pool) = pool {
                lost.push((pool, oldest.let_waiting_go()));
            }
        }
        lost
    }

    pub(super) fn say_switch(
        &mut self,
        now: Now,
        before: Option<Source>,
        to: Source,
        out: &mut Vec<Effect>,
    ) {
        let from = before.unwrap_or(Source::Solo);
        if from == to {
            // The first work, and nobody's before.
            self.leaving = None;
            return;
        }
        let (reason, since_ms) = match (self.leaving.take(), self.node.away(now.mono_ms)) {
            (Some(leaving), _) => leaving,
            (None, Some(why)) => (format!("your node: {why}"), self.node.changed_ms),
            (None, None) if before.is_none() => ("your node is there".to_owned(), now.mono_ms),
            (None, None)
                if matches!(from, Source::Pool { kind: Kind::Theirs, .. })
                    && matches!(to, Source::Pool { kind: Kind::Own, .. }) =>
            {
                ("your node is there".to_owned(), now.mono_ms)
            }
            (None, None) => match to {
                Source::Pool { pool, .. } => {
                    let name = &self.options.pools[pool].name;
                    (format!("{name} is there, and preferred"), now.mono_ms)
                }
                Source::Solo => ("no pool is there".to_owned(), now.mono_ms),
            },
        };
        let idle_ms = now.mono_ms.saturating_sub(since_ms);
        let idle_hashes = self.fleet * idle_ms as f64 / 1_000.0;
        let switch = Switch { at: now.unix_s, from, to, reason, idle_ms, idle_hashes };
        if self.switches.len() >= SWITCHES_SHOWN {
            self.switches.pop_front();
        }
        self.switches.push_back(switch.clone());
        out.push(Effect::Note(Note::Switched(switch)));
    }

    /// The pool's target moved: devices follow with the work that they have.
    pub(super) fn keep_ceiling(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(shown) = &mut self.shown else { return };
        let Some(session) = shown.session.and_then(|id| self.sessions.get(&id)) else { return };
        let Some(channel) = session.channel else { return };
        // A job that is promised keeps its target.
        let promised = self.works.back().and_then(Work::promised_target);
        let ceiling = ceiling_under(channel.target);
        let ceiling = promised.map_or(ceiling, |target| ceiling.min(ceiling_under(target)));
        if ceiling != shown.published.ceiling && shown.ceiling_from_ms <= now.mono_ms {
            shown.ceiling_from_ms = now.mono_ms + CEILING_EVERY_MS;
            shown.published.ceiling = ceiling;
            out.push(Effect::Publish(shown.published.clone()));
        }
    }
}

/// Work that is about to be published.
pub(super) struct Made {
    active: ActiveTemplate,
    source: Source,
    session: Option<u64>,
    made_of: u64,
    own: Option<OwnWork>,
    outputs: Vec<(u64, Vec<u8>)>,
}

/// Templates of which the same work would be made. Of the same siblings the transactions are the same.
pub(super) fn is_same_work(one: &Template, other: &Template) -> bool {
    let of = |template: &Template| {
        let Template { version, coinbase_tx_version, coinbase_sequence, .. } = *template;
        let Template { coinbase_value_sats, coinbase_locktime, .. } = *template;
        let fields = [version, coinbase_tx_version, coinbase_sequence, coinbase_locktime];
        (fields, coinbase_value_sats)
    };
    of(one) == of(other)
        && one.script_sig_prefix == other.script_sig_prefix
        && one.required_outputs == other.required_outputs
        && one.merkle_path == other.merkle_path
}

/// The hardest difficulty at which a device says every share of this target that it finds.
pub(super) fn ceiling_under(target: Target) -> Difficulty {
    match Difficulty::easiest_within(target) {
        None => Difficulty::MAX,
        Some(within) if within.target() == target => within,
        Some(within) => Difficulty::from_log2(within.log2() - 1),
    }
}
