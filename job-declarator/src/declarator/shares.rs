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
use proto::target::{Difficulty, Target};
use proto::template::TemplateId;
use proto::wire::B032;

use super::session::{Channel, Failure, Promised, Sent};
use super::tally::ShareLoss;
use super::work::OwnWork;
use super::{Declarator, Effect, End, LinkId, Mode, Note};
use crate::limits::{
    BLOCKS_SENT_KEPT, SEND_JOINED_MAX, SHARE_NTIME_AHEAD_MAX_S, SHARES_UNANSWERED_MAX,
    SHARES_WAITING_MAX, STALE_MAX_MS, STALE_RETRY_MS, STALE_TRIES_MAX,
};

/// A job that devices were given.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) id: TemplateId,
    /// Whose session it is for; `None`: solo.
    pub(super) session: Option<u64>,
    pub(super) tip: [u8; 32],
    height: u32,
    /// Unix seconds that devices were told to start from, and when, mono ms.
    start_s: u32,
    given_ms: u64,
    /// The pool's part of the extranonce, and the zeros between it and a house's.
    prefix: B032,
    padding: usize,
    /// Of the owner's work all that a header is made of but what is rolled.
    pub(super) space: Option<[u8; 32]>,
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
        stale: Option<Stale>,
    },
    /// Ours, or the pool's own.
    Promised(Promised),
    /// Nobody will promise it any more.
    GivenUp,
}

/// The pool said that its tip is an old one: how often, and when first, mono ms.
#[derive(Debug, Clone, Copy)]
struct Stale {
    tries: u32,
    since_ms: u64,
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
        let space = own.as_ref().map(OwnWork::space);
        let state = match (session, own, theirs) {
            (None, ..) => State::Solo,
            (Some(_), Some(own), _) => {
                let wish = Wish::From(now.mono_ms);
                State::Own { own: Box::new(own), wish, stale: None }
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
            start_s: active.tip.min_ntime,
            given_ms: now.mono_ms,
            prefix: channel.map(|channel| channel.prefix).unwrap_or_default(),
            padding: channel.map_or(0, Channel::padding),
            space,
            state,
            waiting: VecDeque::new(),
        }
    }

    /// Beyond every honest time of a share of it: one second a second from where it starts, which may be ahead of
    /// our clock, or our clock's time.
    fn is_ahead(&self, now: Now, ntime: u32) -> bool {
        let since_s = now.mono_ms.saturating_sub(self.given_ms) / 1_000;
        let rolled = self.start_s.saturating_add(u32::try_from(since_s).unwrap_or(u32::MAX));
        ntime > rolled.max(now.unix_s).saturating_add(SHARE_NTIME_AHEAD_MAX_S)
    }

    pub(super) fn is_promised(&self) -> bool {
        matches!(self.state, State::Solo | State::Promised(_))
    }

    /// What the pool takes as a share of it, once that is settled.
    pub(super) fn promised_target(&self) -> Option<Target> {
        match &self.state {
            State::Promised(promised) => Some(promised.target),
            State::Solo | State::Own { .. } | State::GivenUp => None,
        }
    }

    /// Nobody was asked for it yet, or nobody who said yes.
    pub(super) fn is_undeclared(&self) -> bool {
        matches!(self.state, State::Own { wish: Wish::From(_), .. })
    }

    /// It stands in for one of the same tip that the pool called stale, and waits as long.
    pub(super) fn takes_the_place_of(&mut self, before: &Self) {
        if let (
            State::Own { wish, stale, .. },
            State::Own { wish: Wish::From(from_ms), stale: before, .. },
        ) = (&mut self.state, &before.state)
        {
            (*wish, *stale) = (Wish::From(*from_ms), *before);
        }
    }

    /// Since when devices have it, mono ms.
    pub(super) fn given_ms(&self) -> u64 {
        self.given_ms
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

    /// There is no reason for a pause any more.
    pub(super) fn is_wanted_now(&mut self) {
        if let State::Own { wish: Wish::From(from_ms), .. } = &mut self.state {
            *from_ms = 0;
        }
    }

    /// The pool says that its tip is an old one: again in a while, if it was not asked often or long enough.
    pub(super) fn is_stale_to_them(&mut self, now_ms: u64) -> bool {
        let State::Own { wish, stale, .. } = &mut self.state else { return true };
        let Stale { tries, since_ms } = stale.unwrap_or(Stale { tries: 0, since_ms: now_ms });
        *stale = Some(Stale { tries: tries + 1, since_ms });
        let last_ms = since_ms.saturating_add(STALE_MAX_MS);
        let is_asked_again = tries + 1 < STALE_TRIES_MAX && now_ms < last_ms;
        let next_ms = now_ms.saturating_add(STALE_RETRY_MS << tries.min(16));
        *wish = Wish::From(if is_asked_again { next_ms.min(last_ms) } else { next_ms });
        is_asked_again
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
                self.tally.work = self.tally.work.saturating_add(work);
                let sent = self.blocks_sent.iter().position(|hash| *hash == proof.hash);
                // It went out and was counted as the block that it is.
                if let Some(at) = sent.filter(|_| proof.is_block) {
                    self.blocks_sent.remove(at);
                    continue;
                }
                self.tally.shares += 1;
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
        let newest_tip = self.works.back().map(|newest| newest.tip);
        let Some(work) = self.works.iter_mut().rev().find(|work| work.id == of) else {
            self.tally.forgotten += 1;
            return;
        };
        let of_newest_tip = Some(work.tip) == newest_tip;
        let session = work.session.and_then(|id| self.sessions.get_mut(&id));
        let pool = session.as_ref().map(|one| one.pool);
        let is_ahead = work.is_ahead(now, proof.ntime);
        if let (true, false, Some(pool)) = (is_ahead, proof.is_block, pool) {
            self.pools[pool].0.lose(ShareLoss::Ahead, 1);
            return;
        }
        let channel_target =
            session.as_ref().and_then(|one| one.channel).map(|channel| channel.target);
        // What is found on a tip that is gone is nobody's debt.
        if let Some(session) = session.filter(|_| of_newest_tip) {
            session.found(now.mono_ms, proof.difficulty, work.promised_target());
        }
        let misses = |target: Target| !target.is_met_by(&proof.hash) && !proof.is_block;
        match (&work.state, pool) {
            (State::Solo, _) => {
                self.tally.solo_shares += 1;
                let work = proof.difficulty.target().work();
                self.tally.solo_work = self.tally.solo_work.saturating_add(work);
            }
            // Its session has ended: the device had not heard of it yet.
            (_, None) => self.tally.forgotten += 1,
            (State::GivenUp, Some(pool)) => {
                self.pools[pool].0.lose_at_once(ShareLoss::NeverPromised);
            }
            // Places are for shares that the pool takes: any device may fill them with others.
            (State::Own { .. }, Some(pool)) if channel_target.is_some_and(misses) => {
                self.pools[pool].0.below += 1;
            }
            (State::Own { .. }, Some(pool))
                if work.waiting.len() >= SHARES_WAITING_MAX && !proof.is_block =>
            {
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
                    tip: work.tip,
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
        mut promised: Promised,
        out: &mut Vec<Effect>,
    ) {
        let Some(pool) = self.sessions.get(&id).map(|session| session.pool) else { return };
        let Some(at) = self.works.iter().position(|work| work.id == of) else { return };
        // What was given up meanwhile stays so: the pool may mean another extranonce by it.
        if !self.works[at].awaits_promise() {
            return;
        }
        // A pool may keep the target that the same work was first promised with; the harder of the two is
        // good for either kind.
        let space = self.works[at].space;
        let same = self.works.iter().filter(|one| one.session == Some(id) && one.space == space);
        let first = same.filter_map(Work::promised_target).min();
        promised.target = first.map_or(promised.target, |first| first.min(promised.target));
        let work = &mut self.works[at];
        self.pools[pool].0.promised += 1;
        work.state = State::Promised(promised);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_promised(promised.target);
        }
        let (waiting, padding) = (std::mem::take(&mut work.waiting), work.padding);
        let (height, tip) = (work.height, work.tip);
        if self.promised_tip.replace(tip) != Some(tip) {
            out.push(Effect::Note(Note::Promised { pool, height }));
        }
        for (proof, worker) in waiting {
            self.pools[pool].0.waiting = self.pools[pool].0.waiting.saturating_sub(1);
            let share = Share { promised, padding, tip, proof, worker };
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
        let Some(session) = self.sessions.get_mut(&id) else {
            return self.pools[pool].0.lose_at_once(ShareLoss::PoolGone);
        };
        let Share { promised: Promised { job, target }, padding, tip, proof, worker } = share;
        let is_below = !target.is_met_by(&proof.hash);
        if is_below && !proof.is_block {
            self.pools[pool].0.below += 1;
            return;
        }
        if session.unanswered.len() >= SHARES_UNANSWERED_MAX && !proof.is_block {
            self.pools[pool].0.lose(ShareLoss::TooMany, 1);
            return;
        }
        let mut frames = Vec::new();
        let found = found(proof, *padding);
        match session.mining.submit_for(worker, JobId(job.0), found, &mut frames) {
            Ok(sequence) => {
                session.unanswered.push_back(Sent {
                    sequence,
                    at_ms: now.mono_ms,
                    target: *target,
                    tip: *tip,
                    is_below,
                });
                self.pools[pool].0.sent += 1;
                send_joined(LinkId { session: id, end: End::Mining }, frames, out);
            }
            // The pool granted another size than it has now, or has closed the channel.
            Err(error) => {
                let failure = Failure::NoJob(error.to_string());
                self.pools[pool].0.lose_at_once(ShareLoss::PoolGone);
                self.fail(now, id, failure, out);
            }
        }
    }

    /// A block is said to the pool at once: it is on disk, and of a pool's own job the pool alone has the
    /// transactions. The house's server may yet refuse its share, as stale or for its time.
    pub(super) fn on_block(&mut self, now: Now, block: &FoundBlock, out: &mut Vec<Effect>) {
        self.tally.blocks += 1;
        self.send_share_of(now, block, out);
        // Behind its share, under which it would move the pool's tip.
        self.push_solution(block, out);
    }

    /// The share that a block is, unless it is solo. What the house's own server thinks of it does not matter.
    fn send_share_of(&mut self, now: Now, block: &FoundBlock, out: &mut Vec<Effect>) {
        let of = block.job.template().id;
        let work = self.works.iter().rev().find(|work| work.id == of);
        let is_for_pool = work.is_some_and(|work| match work.state {
            State::Own { .. } | State::Promised(_) => work.session.is_some(),
            State::Solo | State::GivenUp => false,
        });
        if !is_for_pool {
            return;
        }
        if self.blocks_sent.len() >= BLOCKS_SENT_KEPT {
            self.blocks_sent.pop_front();
        }
        self.blocks_sent.push_back(block.hash);
        let mut rolled = [0; HOUSE_EXTRANONCE_LEN];
        rolled.copy_from_slice(house_extranonce(block));
        let proof = Proof {
            hash: block.hash,
            nonce: block.header.nonce,
            ntime: block.header.ntime,
            version: block.header.version,
            rolled,
            // What it counts as in the house is said with its share.
            difficulty: Difficulty::MIN,
            is_block: true,
        };
        self.tally.shares += 1;
        self.on_share(now, of, proof, &block.owner.worker, out);
    }

    /// PushSolution (rule JC9).
    fn push_solution(&mut self, block: &FoundBlock, out: &mut Vec<Effect>) {
        let of = block.job.template().id;
        let Some(work) = self.works.iter().rev().find(|work| work.id == of) else { return };
        let Some(id) = work.session.filter(|_| self.options.mode == Mode::FullTemplate) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(client) = &mut session.declare else { return };
        let full =
            [work.prefix.as_slice(), &vec![0; work.padding], house_extranonce(block)].concat();
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

/// What a house rolls of a block's extranonce.
fn house_extranonce(block: &FoundBlock) -> &[u8] {
    &block.extranonce[block.extranonce.len() - HOUSE_EXTRANONCE_LEN..]
}

/// Behind what goes to the same link already, as long as that is not too long.
fn send_joined(link: LinkId, mut frames: Vec<u8>, out: &mut Vec<Effect>) {
    if let Some(Effect::Send(last, before)) = out.last_mut()
        && *last == link
        && before.len() + frames.len() <= SEND_JOINED_MAX
    {
        before.append(&mut frames);
    } else {
        out.push(Effect::Send(link, frames));
    }
}

/// One share for a pool.
struct Share {
    promised: Promised,
    padding: usize,
    tip: [u8; 32],
    proof: Proof,
    worker: Arc<str>,
}

/// As it is submitted: the padding, the job's number, the device's channel and what it rolled.
fn found(proof: &Proof, padding: usize) -> Found {
    let extranonce = [&vec![0; padding], &proof.rolled[..]].concat();
    let extranonce =
        B032::new(&extranonce).expect("the client refuses a channel of more than 32 bytes");
    let Proof { nonce, ntime, version, .. } = *proof;
    Found { nonce, ntime, version, extranonce }
}
