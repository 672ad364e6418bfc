//! What can be shown of the declarator: for the page, the log and tests. Part of `declarator.rs`; decides nothing.

use std::collections::VecDeque;

use super::Declarator;
use super::outputs::BadOutputs;
use super::session::Failure;
use super::shares::Work;
use super::tally::{PoolTally, Tally};
use crate::upstream::{Kind, Source};

/// Something that a person at home may want to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// The devices' work is another's.
    Switched(Switch),
    /// A session with a pool failed that was not in use.
    PoolFailed {
        /// Its place in the list.
        pool: usize,
        /// For people.
        why: String,
    },
    /// The own node cannot be built upon.
    NodeAway(String),
    /// It can again.
    NodeBack,
    /// The pool says that the owner's template is of an old tip, again and again.
    NodeBehind,
    /// A job was not promised; the next try is later.
    NotPromised {
        /// Which pool.
        pool: usize,
        /// Its code.
        code: String,
    },
    /// The pool has promised the owner's template for the first time on this tip.
    Promised {
        /// Which pool.
        pool: usize,
        /// Height of the block to be found.
        height: u32,
    },
    /// A job is larger than devices with small buffers take, for the first time with this session.
    LargeJob {
        /// Which pool.
        pool: usize,
        /// Of the job, as a message.
        bytes: usize,
    },
}

/// One change of whose work it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    /// When, unix seconds.
    pub at: u32,
    /// From whom.
    pub from: Source,
    /// To whom.
    pub to: Source,
    /// Why.
    pub reason: String,
    /// For how long the devices may have worked for nobody before, ms: since the last word that was missed,
    /// or until there was new work.
    pub idle_ms: u64,
    /// Hashes that they made meanwhile.
    pub idle_hashes: f64,
}

/// How it stands with one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolState {
    /// Its work is done.
    InUse(Kind),
    /// It can be mined for, and another is preferred or it has yet to prove itself.
    Ready,
    /// It is being dialled.
    Trying,
    /// It will be tried then, mono ms.
    Waiting {
        /// The moment.
        until_ms: u64,
    },
    /// A better one is in use.
    Unused,
}

/// What can be shown of one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolView {
    /// As the owner calls it.
    pub name: String,
    /// How it stands.
    pub state: PoolState,
    /// It takes the owner's templates, as far as he has said where.
    pub declares: bool,
    /// Scripts that the owner knows to be its own.
    pub known: Vec<Vec<u8>>,
    /// Its last failure, and when, unix seconds.
    pub last_failure: Option<(u32, String)>,
    /// That was for the owner's own limit.
    pub is_beyond_limit: bool,
    /// What became of shares.
    pub tally: PoolTally,
}

/// What can be shown of the work.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkView {
    /// Whose.
    pub source: Source,
    /// Height of the block to be found; of a pool's job unknown.
    pub height: Option<u32>,
    /// What the block pays in all, sats.
    pub value_sats: u64,
    /// To whom: sats and script.
    pub outputs: Vec<(u64, Vec<u8>)>,
    /// Transactions beside the coinbase; of a pool's job unknown.
    pub transactions: Option<usize>,
    /// Tip, header byte order.
    pub tip: [u8; 32],
    /// Whether devices with the smallest buffers take it: a NerdQAxe+ and an older Bitaxe would leave.
    pub fits_every_device: bool,
    /// Whether the pool has promised it. Solo work needs no promise.
    pub is_promised: bool,
    /// Since when, mono ms.
    pub since_ms: u64,
}

/// All that can be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// Whose work it is.
    pub using: Source,
    /// The work, once there is any.
    pub work: Option<WorkView>,
    /// Why the node cannot be built upon, if it cannot.
    pub node_away: Option<String>,
    /// By the owner's order.
    pub pools: Vec<PoolView>,
    /// What became of shares.
    pub tally: Tally,
    /// The newest last.
    pub switches: VecDeque<Switch>,
    /// The devices' rate, H/s.
    pub fleet: f64,
}

impl Declarator {
    /// What can be shown.
    #[must_use]
    pub fn view(&self, now_ms: u64) -> View {
        let pools = self.options.pools.iter().zip(&self.pools).enumerate();
        let pools = pools.map(|(at, (options, (tally, last_failure)))| PoolView {
            name: options.name.clone(),
            state: self.pool_state(at, now_ms),
            declares: options.declare_address.is_some(),
            known: options.limit.known.iter().map(|known| known.script.clone()).collect(),
            last_failure: last_failure.as_ref().map(|(at, failure)| (*at, failure.to_string())),
            is_beyond_limit: last_failure.as_ref().is_some_and(|(_, failure)| {
                matches!(failure, Failure::Outputs(BadOutputs::BeyondLimit { .. }))
            }),
            tally: tally.clone(),
        });
        let is_promised = self.works.back().is_none_or(Work::is_promised);
        let work = self.shown.as_ref().map(|shown| WorkView { is_promised, ..shown.view.clone() });
        View {
            using: self.upstream.using(),
            work,
            node_away: self.node.away(now_ms),
            pools: pools.collect(),
            tally: self.tally.clone(),
            switches: self.switches.clone(),
            fleet: self.fleet,
        }
    }

    pub(super) fn pool_state(&self, pool: usize, now_ms: u64) -> PoolState {
        if let Source::Pool { pool: used, kind } = self.upstream.using()
            && used == pool
        {
            return PoolState::InUse(kind);
        }
        let mut sessions = self.sessions.values();
        let session =
            sessions.find(|session| session.pool == pool && session.lingers_until_ms.is_none());
        match session {
            Some(session) if session.is_ready => PoolState::Ready,
            Some(_) => PoolState::Trying,
            None => match self.upstream.retry_at_ms(pool) {
                Some(until_ms) if until_ms > now_ms => PoolState::Waiting { until_ms },
                Some(_) | None => PoolState::Unused,
            },
        }
    }
}
