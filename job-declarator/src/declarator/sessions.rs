//! Sessions with pools: opened and left as `upstream` says, heard, and ended by their first failure. Part of
//! `declarator.rs`; what one session is stands in `session.rs`.

use std::sync::Arc;

use bitcoin::Network;
use bitcoin::consensus::Params;
use proto::connection::Violation;
use proto::declare::client as declare;
use proto::limits::NTIME_AHEAD_MAX_S;
use proto::message::{FrameHeader, Message, Received};
use proto::mining::Now;
use proto::mining::client as mining;
use proto::target::Target;
use ruint::aliases::U256;

use super::outputs::{fill, of_coinbase};
use super::session::{Channel, Failure, OLD_SHARE, Promised, Session};
use super::tally::ShareLoss;
use super::view::Note;
use super::{Declarator, Effect, Elsewhere, End, LinkId};
use crate::limits::{
    CUSTOM_ANSWER_MAX_MS, FLEET_UNKNOWN, NODE_FIRST_WORD_MS, SESSION_LINGER_MS,
    SESSIONS_LINGERING_MAX, THEIR_TARGET_EASIER_MAX,
};
use crate::upstream::{Kind, Source, Step};

impl Declarator {
    pub(super) fn on_link_up(&mut self, link: LinkId, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&link.session) else { return };
        let mut frames = Vec::new();
        match (link.end, &mut session.declare) {
            (End::Mining, _) => session.mining.start(&mut frames),
            (End::Declare, Some(client)) => client.start(&mut frames),
            (End::Declare, None) => return,
        }
        out.push(Effect::Send(link, frames));
    }

    pub(super) fn on_frame(
        &mut self,
        now: Now,
        link: LinkId,
        header: FrameHeader,
        payload: &[u8],
        out: &mut Vec<Effect>,
    ) {
        let Some(session) = self.sessions.get_mut(&link.session) else { return };
        let mut frames = Vec::new();
        let heard = match Message::decode(header.extension(), header.msg_type, payload) {
            Ok(Received::Known(message, tlvs)) => match (link.end, &mut session.declare) {
                (End::Mining, _) => {
                    let event = session.mining.handle(now.mono_ms, message, tlvs, &mut frames);
                    event.map(|event| event.map(Heard::Mining))
                }
                (End::Declare, Some(client)) => {
                    let event = client.handle(now.mono_ms, message, &mut frames);
                    // Tokens are asked for where something is declared, and once set up.
                    if matches!(event, Ok(None)) && !frames.is_empty() {
                        session.declared.iter_mut().for_each(|one| one.was_asked = true);
                    }
                    event.map(|event| event.map(Heard::Declare))
                }
                (End::Declare, None) => Ok(None),
            },
            Ok(Received::UnknownExtension(_)) => Ok(None),
            Ok(Received::UnknownCore(number)) => Err(Violation::UnknownMessage(number)),
            Err(error) => Err(error.into()),
        };
        if !frames.is_empty() {
            out.push(Effect::Send(link, frames));
        }
        let failed = match heard {
            Ok(None) => Ok(()),
            Ok(Some(Heard::Mining(event))) => self.on_mining(now, link.session, event, out),
            Ok(Some(Heard::Declare(event))) => self.on_declare(now, link.session, event, out),
            Err(violation) => Err(violation.into()),
        };
        if let Err(failure) = failed {
            self.fail(now, link.session, failure, out);
        }
        self.is_it_ready(now, link.session);
    }

    pub(super) fn on_mining(
        &mut self,
        now: Now,
        id: u64,
        event: mining::Event,
        out: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        use mining::Event;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        match event {
            Event::Opened { target, extranonce_size, extranonce_prefix, .. } => {
                let (prefix, size) = (extranonce_prefix, extranonce_size);
                session.channel = Some(Channel { prefix, size, target });
            }
            Event::PrefixChanged(prefix) => {
                if let Some(channel) = &mut session.channel {
                    channel.prefix = prefix;
                }
                // A promise that comes now is of jobs with the new one, which no device works on.
                let pool = session.pool;
                let works = self.works.iter_mut();
                for work in works.filter(|one| one.session == Some(id) && one.awaits_promise()) {
                    let lost = work.give_up();
                    self.pools[pool].0.lose(ShareLoss::NeverPromised, lost);
                }
            }
            Event::TargetChanged(target) => {
                if let Some(channel) = &mut session.channel {
                    channel.target = target;
                }
            }
            Event::NewWork { .. } => {
                self.judge_their_work(now, id)?;
                self.look_at_their_tip(id);
            }
            Event::CustomAccepted { request_id, job_id } => {
                let target = session.channel.map(|channel| channel.target);
                let work = session.take_asked(request_id);
                if let (Some(work), Some(target)) = (work, target) {
                    let promised = Promised { job: job_id, target };
                    self.on_promised(now, id, work, promised, out);
                }
            }
            Event::CustomRefused { request_id, code } => {
                if let Some(work) = session.take_asked(request_id) {
                    self.on_not_promised(now, id, work, code, Failure::CustomJob, out)?;
                }
            }
            Event::Acknowledged { last_sequence, count, .. } => {
                let (credited, passed_over, verdict) =
                    session.acknowledged(last_sequence, count, now.mono_ms);
                self.pools[session.pool].0.acknowledge(&credited);
                self.pools[session.pool].0.pass_over(passed_over);
                return verdict;
            }
            Event::Refused { sequence, code } => {
                return self.on_share_refused(now, id, sequence, &code);
            }
            // It goes on at the rate that it knows.
            Event::UpdateRefused { .. } => {}
            Event::SetupRefused { code, .. } => return Err(Failure::Setup(code)),
            Event::ExtensionsRequired(ids) => {
                return Err(Failure::Setup(format!("it requires extensions {ids:?}")));
            }
            Event::OpenRefused { code } => return Err(Failure::Open(code)),
            Event::ChannelClosed { reason } => return Err(Failure::Closed(reason)),
            Event::Reconnect { host, port } => {
                self.elsewhere.insert(session.pool, Elsewhere { host, port });
                return Err(Failure::Reconnect);
            }
        }
        Ok(())
    }

    fn on_share_refused(
        &mut self,
        now: Now,
        id: u64,
        sequence: u32,
        code: &str,
    ) -> Result<(), Failure> {
        let tip = self.works.back().map(|newest| newest.tip);
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        session.saw_tip(tip, now.mono_ms);
        // Of one that was answered before nothing more is counted.
        let Some(verdict) = session.refused(sequence, code, now.mono_ms) else { return Ok(()) };
        let pool = session.pool;
        // Another way to say that our tip is an old one: its own job will tell.
        let is_of_tip = session.kind == Kind::Own && OLD_SHARE.contains(&code);
        if verdict.is_err() && is_of_tip && !self.node.on_our_tip.contains(&pool) {
            self.node.stale_to.insert(pool);
        }
        self.pools[pool].0.refuse(code);
        verdict
    }

    pub(super) fn on_declare(
        &mut self,
        now: Now,
        id: u64,
        event: declare::Event,
        out: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        use declare::Event;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        match event {
            Event::SetUp => {}
            Event::TokenCame => self.learn_outputs(id)?,
            Event::SetupRefused { code, .. } => return Err(Failure::Setup(code)),
            Event::Declared { request_id, token } => {
                if let Some(work) = session.take_declared(request_id, now.mono_ms) {
                    self.ask_for(now, id, work, &token, out)?;
                }
            }
            Event::Refused { request_id, code, details } => {
                if let Some(work) = session.take_declared(request_id, now.mono_ms) {
                    let why = move |code| match details.is_empty() {
                        true => Failure::Declaration(code),
                        false => Failure::Declaration(format!("{code} ({details})")),
                    };
                    self.on_not_promised(now, id, work, code, why, out)?;
                }
            }
            Event::Unanswered { .. } => {
                let seconds = proto::limits::CLIENT_ANSWER_MAX_MS / 1_000;
                return Err(Failure::Silent { what: "about a template", seconds });
            }
            Event::NoToken if session.declare.as_ref().is_some_and(|one| one.tokens() == 0) => {
                let seconds = proto::limits::CLIENT_ANSWER_MAX_MS / 1_000;
                return Err(Failure::Silent { what: "for a token", seconds });
            }
            Event::NoToken => {}
        }
        Ok(())
    }

    /// The next token says what the next coinbase has to pay.
    pub(super) fn learn_outputs(&mut self, id: u64) -> Result<(), Failure> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let outputs = session.declare.as_ref().and_then(declare::Client::next_outputs);
        let Some(outputs) = outputs.filter(|new| session.outputs.as_ref() != Some(new)) else {
            return Ok(());
        };
        // What part of a reward that is does not depend on how large it is, but for fixed amounts, which are
        // judged again with each template.
        let value = self.node.template.as_ref();
        let value = value.map_or(1, |node| node.template.coinbase_value_sats);
        let limit = &self.options.pools[session.pool].limit;
        limit.judge(&fill(outputs, value)?)?;
        session.outputs = Some(Arc::clone(outputs));
        Ok(())
    }

    /// A pool's own job pays nobody beyond the owner's limit either, and where devices are to do it, it is one
    /// that can become a block.
    pub(super) fn judge_their_work(&mut self, now: Now, id: u64) -> Result<(), Failure> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let Some(work) = session.mining.work() else { return Ok(()) };
        let Some(coinbase) = work.coinbase() else { return Ok(()) };
        let limit = &self.options.pools[session.pool].limit;
        limit.judge(&of_coinbase(&coinbase, work.extranonce_size)?)?;
        if session.kind == Kind::Own {
            return Ok(());
        }
        let ahead_s = work.min_ntime.saturating_sub(now.unix_s);
        if ahead_s > NTIME_AHEAD_MAX_S {
            let why = format!("it starts {ahead_s} s ahead of this computer's clock");
            return Err(Failure::NoJob(why));
        }
        // With a target of its own a pool could call every share a block.
        let is_easy = self.node.target(now.mono_ms).is_some_and(|ours| {
            // Work is rounded down.
            let theirs = Target::from_compact(work.nbits).work().saturating_add(U256::from(1));
            theirs.saturating_mul(U256::from(THEIR_TARGET_EASIER_MAX)) < ours.work()
        });
        if is_easy && !may_be_easiest(limit.network, work.nbits) {
            let why = format!("its target {:08x} is far easier than your node's", work.nbits);
            return Err(Failure::NoJob(why));
        }
        Ok(())
    }

    /// A pool whose own job is on our tip has no reason to call it an old one: if it was behind itself, it has
    /// followed, and else its next such word is a refusal (`on_not_promised`). Our node is not behind.
    pub(super) fn look_at_their_tip(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id).filter(|one| one.kind == Kind::Theirs) else {
            return;
        };
        let Some(tip) = session.mining.work().map(|work| work.prev_hash) else { return };
        if self.node.template.as_ref().is_some_and(|node| node.prev_hash.hash == tip) {
            self.node.on_our_tip.insert(session.pool);
            self.node.is_not_behind();
            // Shares wait for its next word.
            if let Some(newest) = self.works.back_mut() {
                newest.is_wanted_now();
            }
        }
    }

    pub(super) fn is_it_ready(&mut self, now: Now, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.is_ready && session.can_be_mined() && session.lingers_until_ms.is_none() {
            session.is_ready = true;
            self.upstream.is_ready(session.pool, session.kind, now.mono_ms);
        }
    }

    pub(super) fn look_at_the_clock(&mut self, now: Now, out: &mut Vec<Effect>) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        let tip = self.works.back().map(|newest| newest.tip);
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.saw_tip(tip, now.mono_ms);
            if session.lingers_until_ms.is_some_and(|until| until <= now.mono_ms) {
                self.end(id, ShareLoss::PoolLeft, out);
                continue;
            }
            let mut overdue = session.overdue(now.mono_ms, CUSTOM_ANSWER_MAX_MS);
            overdue = overdue.or_else(|| session.wrong(now.mono_ms, self.fleet));
            while overdue.is_none() {
                let client = self.sessions.get_mut(&id).and_then(|one| one.declare.as_mut());
                let Some(late) = client.and_then(|client| client.pass(now.mono_ms)) else { break };
                overdue = self.on_declare(now, id, late, out).err();
            }
            if let Some(failure) = overdue {
                self.fail(now, id, failure, out);
            }
        }
    }

    /// The session is of no more use; `upstream` hears of it.
    pub(super) fn fail(&mut self, now: Now, id: u64, failure: Failure, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (pool, kind) = (session.pool, session.kind);
        let lingers = session.lingers_until_ms.is_some();
        let credited = session.credited(&failure);
        // Work that nobody promised was for nothing from its start.
        let unpromised = self.works.iter().filter(|work| work.session == Some(id));
        let unpromised =
            unpromised.filter(|work| work.awaits_promise()).map(|work| work.given_ms()).min();
        let missed = [session.in_vain_from_ms(), unpromised].into_iter().flatten().min();
        let missed_ms = missed.unwrap_or(now.mono_ms);
        self.end(id, ShareLoss::PoolGone, out);
        if lingers {
            return;
        }
        let why = failure.to_string();
        self.pools[pool].1 = Some((now.unix_s, failure.clone()));
        if failure == Failure::Reconnect {
            self.upstream.is_asked_back(pool, kind, credited, now.mono_ms);
        } else {
            let refuses = failure.is_refusal();
            self.upstream.has_failed(pool, kind, refuses, credited, now.mono_ms);
        }
        if self.upstream.using() == (Source::Pool { pool, kind }) {
            let name = &self.options.pools[pool].name;
            self.leaving.get_or_insert((format!("{name}: {why}"), missed_ms));
        } else {
            out.push(Effect::Note(Note::PoolFailed { pool, why }));
        }
    }

    /// Ends a session: what waited for it is counted as lost.
    pub(super) fn end(&mut self, id: u64, loss: ShareLoss, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.remove(&id) else { return };
        out.extend(session.ends().map(Effect::Hang));
        let unanswered = session.unanswered.len() as u64;
        self.pools[session.pool].0.lose(ShareLoss::Unanswered, unanswered);
        for work in self.works.iter_mut().filter(|work| work.session == Some(id)) {
            let waiting = work.give_up();
            self.pools[session.pool].0.lose(loss, waiting);
        }
    }

    /// Nothing is known of the node yet, and it has had little time to say something.
    pub(super) fn waits_for_node(&mut self, now: Now) -> bool {
        let until_ms = now.mono_ms.saturating_add(NODE_FIRST_WORD_MS);
        let until_ms = *self.waits_for_node_until_ms.get_or_insert(until_ms);
        let is_silent = self.node.template.is_none() && self.node.away.is_none();
        is_silent && now.mono_ms < until_ms
    }

    pub(super) fn follow_upstream(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.waits_for_node(now) {
            return;
        }
        for step in self.upstream.steps(now.mono_ms) {
            match step {
                Step::Dial(pool, kind) => self.dial(now, pool, kind, out),
                Step::Drop(pool, kind) => self.leave(now, pool, kind, out),
                Step::Use(_) => {}
            }
        }
    }

    pub(super) fn dial(&mut self, now: Now, pool: usize, kind: Kind, out: &mut Vec<Effect>) {
        let id = self.next_session;
        self.next_session += 1;
        let options = &self.options.pools[pool];
        let fleet = if self.fleet > 0.0 { self.fleet } else { FLEET_UNKNOWN };
        let session =
            Session::new(id, (pool, options), kind, self.options.mode, fleet, now.mono_ms);
        let elsewhere = self.elsewhere.remove(&pool);
        let dials = session.ends().map(|link| {
            let elsewhere = elsewhere.clone().filter(|_| link.end == End::Mining);
            Effect::Dial { link, pool, elsewhere }
        });
        out.extend(dials);
        self.sessions.insert(id, session);
    }

    /// A session that is not to be used any more, but may still answer for shares.
    pub(super) fn leave(&mut self, now: Now, pool: usize, kind: Kind, out: &mut Vec<Effect>) {
        let left = |session: &&mut Session| {
            (session.pool, session.kind) == (pool, kind) && session.lingers_until_ms.is_none()
        };
        let Some(session) = self.sessions.values_mut().find(left) else { return };
        session.lingers_until_ms = Some(now.mono_ms + SESSION_LINGER_MS);
        if !session.is_ready {
            let id = session.id;
            return self.end(id, ShareLoss::PoolLeft, out);
        }
        let lingering = self.sessions.values();
        let lingering = lingering.filter(|session| session.lingers_until_ms.is_some());
        let lingering: Vec<u64> = lingering.map(|session| session.id).collect();
        if lingering.len() > SESSIONS_LINGERING_MAX {
            self.end(lingering[0], ShareLoss::PoolLeft, out);
        }
    }

    /// The session in use.
    pub(super) fn session_of(&self, source: Source) -> Option<&Session> {
        let Source::Pool { pool, kind } = source else { return None };
        self.sessions.values().find(|session| {
            (session.pool, session.kind) == (pool, kind) && session.lingers_until_ms.is_none()
        })
    }
}

/// Test networks take a block of the easiest target once twenty minutes have brought none.
fn may_be_easiest(network: Network, nbits: u32) -> bool {
    let params = Params::new(network);
    let is_rule = params.allow_min_difficulty_blocks && !params.no_pow_retargeting;
    is_rule && nbits == params.max_attainable_target.to_compact_lossy().to_consensus()
}

/// What a protocol client made of a frame.
enum Heard {
    Mining(mining::Event),
    Declare(declare::Event),
}
