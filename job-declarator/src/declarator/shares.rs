//! Devices' shares on their way to the pool whose job they are of: at once if the job is promised, behind its
//! promise if it is not yet. Part of `declarator.rs`.
//!
//! A share goes out in the order in which it came, under the target that the pool had when it promised the job.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::declare::Solution;
use proto::job::{ActiveTemplate, JobId};
use proto::limits::HOUSE_EXTRANONCE_LEN;
use proto::mining::client::{Found, Work as PoolWork};
use proto::mining::server::FoundBlock;
use proto::mining::{CreditGroup, Now};
use proto::share::Proof;
use proto::template::TemplateId;
use proto::wire::B032;

use super::session::{Channel, Failure, Promised, Sent};
use super::tally::ShareLoss;
use super::work::OwnWork;
use super::{Declarator, Effect, End, LinkId, Mode, Note};
use crate::limits::{SHARES_UNANSWERED_MAX, SHARES_WAITING_MAX};

/// A job that devices were given.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) id: TemplateId,
    /// Whose session it is for; `None`: solo.
    pub(super) session: Option<u64>,
    pub(super) tip: [u8; 32],
    height: u32,
    /// The pool's part of the extranonce, and the zeros between it and a house's.
    prefix: B032,
    padding: usize,
    state: State,
    waiting: VecDeque<(Proof, Arc<str>)>,
}

#[derive(Debug)]
enum State {
    Solo,
    /// Ours, and not promised.
    Own {
        own: Box<OwnWork>,
        wish: Wish,
        stale_tries: u32,
    },
    Promised(Promised),
    /// Nobody will promise it any more.
    GivenUp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To be declared from then on, mono ms.
    From(u64),
    /// An answer is awaited.
    Said,
}

impl Work {
    pub(super) fn new(
        now: Now,
        active: &ActiveTemplate,
        session: Option<u64>,
        own: Option<OwnWork>,
        channel: Option<&Channel>,
        theirs: Option<&PoolWork>,
    ) -> Self {
        let state = match (session, own, theirs) {
            (None, ..) => State::Solo,
            (Some(_), Some(own), _) => {
                let wish = Wish::From(now.mono_ms);
                State::Own { own: Box::new(own), wish, stale_tries: 0 }
            }
            (Some(_), None, Some(work)) => {
                State::Promised(Promised { job: work.job_id, target: work.target })
            }
            (Some(_), None, None) => State::GivenUp,
        };
        let template = active.job.template();
        Self {
            id: template.id,
            session,
            tip: active.tip.hash,
            height: template.height,
            prefix: channel.map(|channel| channel.prefix).unwrap_or_default(),
            padding: channel.map_or(0, Channel::padding),
            state,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn is_promised(&self) -> bool {
        matches!(self.state, State::Solo | State::Promised(_))
    }

    /// It was not promised and still may be.
    pub(super) fn awaits_promise(&self) -> bool {
        matches!(self.state, State::Own { .. })
    }

    pub(super) fn own(&self) -> Option<&OwnWork> {
        match &self.state {
            State::Own { own, .. } => Some(own),
            State::Solo | State::Promised(_) | State::GivenUp => None,
        }
    }

    /// If it is to be declared now.
    pub(super) fn to_be_declared(&self, now_ms: u64) -> Option<&OwnWork> {
        match &self.state {
            State::Own { own, wish: Wish::From(from_ms), .. } if *from_ms <= now_ms => Some(own),
            State::Own { .. } | State::Solo | State::Promised(_) | State::GivenUp => None,
        }
    }

    /// When it is to be declared again, mono ms.
    pub(super) fn retry_at_ms(&self) -> Option<u64> {
        match self.state {
            State::Own { wish: Wish::From(from_ms), .. } => Some(from_ms),
            State::Own { .. } | State::Solo | State::Promised(_) | State::GivenUp => None,
        }
    }

    pub(super) fn is_declared(&mut self) {
        if let State::Own { wish, .. } = &mut self.state {
            *wish = Wish::Said;
        }
    }

    /// The pool says that its tip is an old one: again in a while. How often it said so.
    pub(super) fn is_stale_to_them(&mut self, now_ms: u64, pause_ms: u64) -> u32 {
        match &mut self.state {
            State::Own { wish, stale_tries, .. } => {
                *wish = Wish::From(now_ms.saturating_add(pause_ms << *stale_tries));
                *stale_tries += 1;
                *stale_tries
            }
            State::Solo | State::Promised(_) | State::GivenUp => 0,
        }
    }

    /// No promise will come: how many shares waited for it.
    pub(super) fn give_up(&mut self) -> u64 {
        if !matches!(self.state, State::Solo) {
            self.state = State::GivenUp;
        }
        self.let_waiting_go()
    }

    /// The shares that wait have no time left: how many they were.
    pub(super) fn let_waiting_go(&mut self) -> u64 {
        let waiting = self.waiting.len() as u64;
        self.waiting = VecDeque::new();
        waiting
    }
}

impl Declarator {
    pub(super) fn on_shares(&mut self, now: Now, groups: Vec<CreditGroup>, out: &mut Vec<Effect>) {
        for group in groups {
            for proof in group.proofs {
                let work = proof.difficulty.target().work();
                self.tally.shares += 1;
                self.tally.work = self.tally.work.saturating_add(work);
                self.on_share(now, group.template, proof, &group.owner.worker, out);
            }
        }
    }

    fn on_share(
        &mut self,
        now: Now,
        of: TemplateId,
        proof: Proof,
        worker: &Arc<str>,
        out: &mut Vec<Effect>,
    ) {
        let Some(work) = self.works.iter_mut().rev().find(|work| work.id == of) else {
            self.tally.forgotten += 1;
            return;
        };
        let pool = work.session.and_then(|id| self.sessions.get(&id)).map(|one| one.pool);
        match (&work.state, pool) {
            (State::Solo, _) => {
                self.tally.solo_shares += 1;
                let work = proof.difficulty.target().work();
                self.tally.solo_work = self.tally.solo_work.saturating_add(work);
            }
            // Its session has ended: the device had not heard of it yet.
            (_, None) => self.tally.forgotten += 1,
            (State::GivenUp, Some(pool)) => {
                self.pools[pool].0.waiting += 1;
                self.pools[pool].0.lose(ShareLoss::NeverPromised, 1);
            }
            (State::Own { .. }, Some(pool)) if work.waiting.len() >= SHARES_WAITING_MAX => {
                self.pools[pool].0.lose(ShareLoss::TooMany, 1);
            }
            (State::Own { .. }, Some(pool)) => {
                self.pools[pool].0.waiting += 1;
                work.waiting.push_back((proof, Arc::clone(worker)));
            }
            (State::Promised(promised), Some(pool)) => {
                let share = Share {
                    promised: *promised,
                    padding: work.padding,
                    proof,
                    worker: Arc::clone(worker),
                };
                let id = work.session.unwrap_or_default();
                self.send_share(now, (id, pool), &share, out);
            }
        }
    }

    /// The pool's word: what waited goes out.
    pub(super) fn on_promised(
        &mut self,
        now: Now,
        id: u64,
        of: TemplateId,
        promised: Promised,
        out: &mut Vec<Effect>,
    ) {
        let Some(pool) = self.sessions.get(&id).map(|session| session.pool) else { return };
        let Some(work) = self.works.iter_mut().find(|work| work.id == of) else { return };
        self.pools[pool].0.promised += 1;
        work.state = State::Promised(promised);
        let (waiting, padding) = (std::mem::take(&mut work.waiting), work.padding);
        let (height, tip) = (work.height, work.tip);
        if self.promised_tip.replace(tip) != Some(tip) {
            out.push(Effect::Note(Note::Promised { pool, height }));
        }
        for (proof, worker) in waiting {
            self.pools[pool].0.waiting = self.pools[pool].0.waiting.saturating_sub(1);
            let share = Share { promised, padding, proof, worker };
            self.send_share(now, (id, pool), &share, out);
        }
    }

    fn send_share(
        &mut self,
        now: Now,
        (id, pool): (u64, usize),
        share: &Share,
        out: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Share { promised: Promised { job, target }, padding, proof, worker } = share;
        if !proof.is_block && !target.is_met_by(&proof.hash) {
            self.pools[pool].0.below += 1;
            return;
        }
        if session.unanswered.len() >= SHARES_UNANSWERED_MAX {
            self.pools[pool].0.lose(ShareLoss::TooMany, 1);
            return;
        }
        let mut frames = Vec::new();
        let Some(found) = found(proof, *padding) else { return };
        match session.mining.submit_for(worker, JobId(job.0), found, &mut frames) {
            Ok(sequence) => {
                session.unanswered.push_back(Sent {
                    sequence,
                    at_ms: now.mono_ms,
                    target: *target,
                });
                self.pools[pool].0.sent += 1;
                out.push(Effect::Send(LinkId { session: id, end: End::Mining }, frames));
            }
            // The pool granted another size than it has now, or has closed the channel.
            Err(error) => {
                let failure = Failure::NoJob(error.to_string());
                self.fail(now, id, failure, out);
            }
        }
    }

    /// PushSolution (rule JC9). The node has the block already, and the share follows it to the pool.
    pub(super) fn on_block(&mut self, block: &FoundBlock, out: &mut Vec<Effect>) {
        self.tally.blocks += 1;
        let of = block.job.template().id;
        let Some(work) = self.works.iter().rev().find(|work| work.id == of) else { return };
        let Some(id) = work.session.filter(|_| self.options.mode == Mode::FullTemplate) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(client) = &mut session.declare else { return };
        let house = &block.extranonce[block.extranonce.len() - HOUSE_EXTRANONCE_LEN..];
        let full = [work.prefix.as_slice(), &vec![0; work.padding], house].concat();
        let Ok(extranonce) = B032::new(&full) else { return };
        let header = block.header;
        let solution = Solution {
            extranonce,
            prev_hash: header.prev_hash,
            nonce: header.nonce,
            ntime: header.ntime,
            nbits: header.nbits,
            version: header.version,
        };
        let mut frames = Vec::new();
        client.push_solution(&solution, &mut frames);
        if !frames.is_empty() {
            out.push(Effect::Send(LinkId { session: id, end: End::Declare }, frames));
        }
    }
}

/// One share for a pool.
struct Share {
    promised: Promised,
    padding: usize,
    proof: Proof,
    worker: Arc<str>,
}

/// As it is submitted: the padding, the job's number, the device's channel and what it rolled.
fn found(proof: &Proof, padding: usize) -> Option<Found> {
    let extranonce = [&vec![0; padding], &proof.rolled[..]].concat();
    let extranonce = B032::new(&extranonce).ok()?;
    let Proof { nonce, ntime, version, .. } = *proof;
    Some(Found { nonce, ntime, version, extranonce })
}
