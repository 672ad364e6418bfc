//! Having the newest own work promised: declared, asked for, and asked for again where the pool says that its
//! tip is an old one. Part of `declarator.rs`.

use std::sync::Arc;

use proto::declare::client as declare;
use proto::mining::Now;
use proto::mining::client as mining;
use proto::template::TemplateId;

use super::session::{Asked, Declared, Failure, STALE_CHAIN_TIP};
use super::tally::ShareLoss;
use super::view::Note;
use super::{Declarator, Effect, End, LinkId, Mode};
use crate::upstream::Kind;

impl Declarator {
    /// Has the newest work promised, as far as it is not and can be. Whether that went well: where it did not,
    /// its session has ended.
    pub(super) fn pursue(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let asked = match self.declare_newest(now, out) {
            Ok(None) => Ok(()),
            Ok(Some((id, work, token))) => {
                let asked = match token {
                    Some(token) => self.ask_for(now, id, work, &token, out),
                    None => Ok(()),
                };
                asked.and_then(|()| self.learn_outputs(id)).map_err(|failure| (id, failure))
            }
            Err(failed) => Err(failed),
        };
        if let Err((id, failure)) = asked {
            self.fail(now, id, failure, out);
            return false;
        }
        true
    }

    /// Declares the newest work if it is to be; session, work and, where nothing is declared, the token to ask
    /// for it with.
    pub(super) fn declare_newest(
        &mut self,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Pursued>, (u64, Failure)> {
        let Some(work) = self.works.back_mut() else { return Ok(None) };
        let Some(id) = work.session else { return Ok(None) };
        let Some(own) = work.to_be_declared(now.mono_ms) else { return Ok(None) };
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(None) };
        let takes_more = session.takes_more_jobs();
        let Some(client) = session.declare.as_mut().filter(|_| takes_more) else {
            return Ok(None);
        };
        // A token is for these outputs; others make other work, which is made first.
        let of_work = self.shown.as_ref().and_then(|shown| shown.outputs.as_ref());
        if client.next_outputs().is_none() || client.next_outputs() != of_work {
            return Ok(None);
        }
        let mut frames = Vec::new();
        let link = LinkId { session: id, end: End::Declare };
        let no_job = |why: &str| Err((id, Failure::NoJob(why.to_owned())));
        let token = match self.options.mode {
            Mode::FullTemplate => {
                let Some(job) = own.declaration() else {
                    return no_job("its transactions are not known");
                };
                match client.declare(now.mono_ms, &job, &mut frames) {
                    Ok(request_id) => session.declared.push(Declared {
                        request_id,
                        work: work.id,
                        at_ms: now.mono_ms,
                        was_asked: false,
                    }),
                    Err(declare::NotDeclared::NoMessage) => {
                        return no_job("it is larger than a message");
                    }
                    Err(
                        declare::NotDeclared::NotSetUp
                        | declare::NotDeclared::NoToken
                        | declare::NotDeclared::TooMany,
                    ) => return Ok(None),
                }
                None
            }
            Mode::CoinbaseOnly => match client.take_token(now.mono_ms, &mut frames) {
                None => return Ok(None),
                Some(token) => Some(token.bytes),
            },
        };
        if !frames.is_empty() {
            out.push(Effect::Send(link, frames));
        }
        work.is_declared();
        Ok(Some((id, work.id, token)))
    }

    /// SetCustomMiningJob, with the token that allows it.
    pub(super) fn ask_for(
        &mut self,
        now: Now,
        id: u64,
        work: TemplateId,
        token: &[u8],
        out: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let tip = self.works.back().map(|newest| newest.tip);
        let Some(work_of) = self.works.iter_mut().find(|one| one.id == work) else {
            return Ok(());
        };
        // Its tip is gone: a promise would be worth nothing, and the pool's patience is.
        if Some(work_of.tip) != tip {
            let lost = work_of.give_up();
            self.pools[session.pool].0.lose(ShareLoss::NeverPromised, lost);
            return Ok(());
        }
        let Some(own) = work_of.own() else { return Ok(()) };
        let (coinbase, mut frames) = (&own.built.coinbase, Vec::new());
        let asked = mining::OwnWork {
            token,
            version: own.built.version,
            tip: own.tip,
            coinbase_tx_version: coinbase.version,
            coinbase_prefix: &coinbase.script_sig_prefix,
            coinbase_sequence: coinbase.sequence,
            coinbase_outputs: &coinbase.outputs,
            coinbase_locktime: coinbase.lock_time,
            merkle_path: &own.built.merkle_path,
        };
        let request_id = session
            .mining
            .custom_job(&asked, &mut frames)
            .map_err(|error| Failure::NoJob(error.to_string()))?;
        session.asked.push(Asked { request_id, work, at_ms: now.mono_ms });
        out.push(Effect::Send(LinkId { session: id, end: End::Mining }, frames));
        Ok(())
    }

    pub(super) fn on_not_promised(
        &mut self,
        now: Now,
        id: u64,
        work: TemplateId,
        code: String,
        failure: impl FnOnce(String) -> Failure,
        out: &mut Vec<Effect>,
    ) -> Result<(), Failure> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let pool = session.pool;
        let newest = self.works.back().map(|newest| (newest.id, newest.tip));
        let refused = self.works.iter_mut().find(|one| one.id == work);
        // A pool may have forgotten what it knew of a tip that is gone, and say so in other words.
        let is_of_old =
            refused.as_ref().is_none_or(|one| newest.is_none_or(|(_, tip)| tip != one.tip));
        if code != STALE_CHAIN_TIP && !is_of_old {
            return Err(failure(code));
        }
        out.push(Effect::Note(Note::NotPromised { pool, code: code.clone() }));
        let Some(refused) = refused else { return Ok(()) };
        if newest != Some((work, refused.tip)) {
            // A newer one is on its way; nobody will ask for this one again.
            let lost = refused.give_up();
            self.pools[pool].0.lose(ShareLoss::NeverPromised, lost);
            return Ok(());
        }
        if refused.is_stale_to_them(now.mono_ms) {
            return Ok(());
        }
        // Whose own jobs are on this tip means something else by its word.
        if self.node.on_our_tip.contains(&pool) {
            return Err(failure(code));
        }
        self.node.stale_to.insert(pool);
        self.hear_of_our_tip(now, out);
        if self.node.is_behind { Ok(()) } else { Err(failure(code)) }
    }

    /// Our node is behind if a pool says so and every other that could be asked. Who cannot be reached says
    /// nothing, and on an old tip there is nothing to wait for.
    pub(super) fn hear_of_our_tip(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.node.stale_to.is_empty() || self.node.is_behind {
            return;
        }
        let mut pools = self.options.pools.iter().enumerate();
        let everybody = pools.all(|(at, pool)| {
            pool.declare_address.is_none()
                || self.node.stale_to.contains(&at)
                || self.upstream.is_out_of_reach(at, now.mono_ms)
        });
        if !everybody {
            return;
        }
        self.node.is_behind = true;
        for pool in &self.node.stale_to {
            self.upstream.was_right(*pool, Kind::Own);
        }
        out.push(Effect::Note(Note::NodeBehind));
    }
}

/// Session, work, token.
type Pursued = (u64, TemplateId, Option<Arc<[u8]>>);
