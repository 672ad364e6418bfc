//! The declarator without its sockets: templates of the own node and sessions with pools in, work for the
//! devices, messages and blocks out. Owned by one task (`run.rs`); which pool is used, `upstream.rs` says.
//!
//! Devices work on a new template at once; their shares wait until the pool has promised the job, and then go
//! out in order. Must never let a share go without counting what became of it, nor leave the devices without
//! work while there is a node or a pool.

mod evidence;
mod give;
mod node;
mod outputs;
mod promise;
mod session;
mod sessions;
mod shares;
mod tally;
mod view;
mod work;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use proto::job::ActiveTemplate;
use proto::message::FrameHeader;
use proto::mining::server::FoundBlock;
use proto::mining::{CreditGroup, Now};
use proto::target::Difficulty;

pub use self::outputs::{BadOutputs, Known, OutputLimit, WHOLE_REWARD, fill, of_suffix};
pub use self::session::Failure;
pub use self::tally::{PoolTally, ShareLoss, Tally};
pub use self::view::{Note, PoolState, PoolView, Switch, View, WorkView};

use self::give::Shown;
use self::node::NodeSeen;
use self::session::Session;
use self::shares::Work;
use crate::limits::CUSTOM_ANSWER_MAX_MS;
use crate::node::NodeTemplate;
use crate::upstream::{Source, Upstream};

/// How much a pool is told of the owner's templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every transaction: the pool checks the block and can send it.
    FullTemplate,
    /// The coinbase alone.
    CoinbaseOnly,
}

/// A pool as the owner wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// For people.
    pub name: String,
    /// `host:port` of its mining connections.
    pub address: String,
    /// `host:port` of its job declaration; `None`: only its own jobs are mined.
    pub declare_address: Option<String>,
    /// Whom it credits: `account.worker`.
    pub user: String,
    /// What it may take.
    pub limit: OutputLimit,
}

/// What the owner decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The most preferred first; at most `POOLS_MAX`.
    pub pools: Vec<PoolOptions>,
    /// Where a solo block pays.
    pub payout_script: Vec<u8>,
    /// Text in the coinbase.
    pub tag: Vec<u8>,
    /// How much pools are told.
    pub mode: Mode,
    /// The least time between two templates on one tip.
    pub refresh_ms: u64,
    /// Spreads retries; not secret.
    pub seed: u64,
}

/// Which of a session's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Mining protocol.
    Mining,
    /// Job declaration protocol.
    Declare,
}

/// Names a link; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    /// Counts up.
    pub session: u64,
    /// Which of its two.
    pub end: End,
}

/// Where a pool asked to be dialled instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// `None`: the same host.
    pub host: Option<String>,
    /// `None`: the same port.
    pub port: Option<u16>,
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The node has something newer.
    Template(NodeTemplate),
    /// The node answers, with nothing new.
    NodeAnswers,
    /// The node cannot be built upon, in its words or ours.
    NodeAway(String),
    /// A link that was dialled has shaken hands.
    LinkUp(LinkId),
    /// A link could not be made or has ended, with why.
    LinkDown(LinkId, String),
    /// The peer does not take what it is sent.
    LinkStalled(LinkId),
    /// A frame of a link, in clear.
    Frame(LinkId, FrameHeader, &'a [u8]),
    /// Good shares of a device.
    Shares(Vec<CreditGroup>),
    /// A block was found; it is on its way to the node already.
    Block(Box<FoundBlock>),
    /// The devices' rate, H/s.
    Fleet(f64),
    /// Time went by (`Declarator::deadline_ms`).
    Time,
}

/// What is to be done; in order.
#[derive(Debug)]
pub enum Effect {
    /// Connect a link: to the pool of this place in the list, or where that asked for.
    Dial {
        /// The link's name.
        link: LinkId,
        /// Which pool.
        pool: usize,
        /// Not its own address; its authority key all the same (rule C10).
        elsewhere: Option<Elsewhere>,
    },
    /// Plaintext frames for a link.
    Send(LinkId, Vec<u8>),
    /// End a link; nothing more is heard of it.
    Hang(LinkId),
    /// What devices do from now on.
    Publish(Published),
    /// For the log and the page.
    Note(Note),
}

/// Work for every device.
#[derive(Debug, Clone)]
pub struct Published {
    /// Tip and job.
    pub active: Arc<ActiveTemplate>,
    /// No device may be harder: the pool would see less than its work.
    pub ceiling: Difficulty,
}

/// See above.
pub struct Declarator {
    options: Options,
    upstream: Upstream,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    /// Where a pool asked to be dialled the next time.
    elsewhere: BTreeMap<usize, Elsewhere>,
    node: NodeSeen,
    /// Jobs that shares may be of, the oldest first; at most `WORKS_KEPT_MAX`.
    works: VecDeque<Work>,
    next_work: u64,
    shown: Option<Shown>,
    fleet: f64,
    tally: Tally,
    pools: Vec<(PoolTally, Option<(u32, Failure)>)>,
    switches: VecDeque<Switch>,
    /// Of the switch that is about to happen: why, and since when work may have been for nobody.
    leaving: Option<(String, u64)>,
    /// The tip of which a promise was told last.
    promised_tip: Option<[u8; 32]>,
    /// Blocks whose shares were sent at once: the shares that follow are the same. At most `BLOCKS_SENT_KEPT`.
    blocks_sent: VecDeque<[u8; 32]>,
    /// The session of which a large job was told last.
    said_large: Option<u64>,
    /// Pools are left alone until then, mono ms, or until the node said a first word: whose jobs to ask them
    /// for depends on it. Set by the first input.
    waits_for_node_until_ms: Option<u64>,
}

impl Declarator {
    /// Before anything happened.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let declares = options.pools.iter().map(|pool| pool.declare_address.is_some());
        let upstream = Upstream::new(declares.collect::<Vec<_>>(), options.seed);
        let pools = options.pools.iter().map(|_| Default::default()).collect();
        Self {
            options,
            upstream,
            sessions: BTreeMap::new(),
            next_session: 1,
            elsewhere: BTreeMap::new(),
            node: NodeSeen::default(),
            works: VecDeque::new(),
            next_work: 1,
            shown: None,
            fleet: 0.0,
            tally: Tally::default(),
            pools,
            switches: VecDeque::new(),
            leaving: None,
            promised_tip: None,
            blocks_sent: VecDeque::new(),
            said_large: None,
            waits_for_node_until_ms: None,
        }
    }

    /// Takes what happened; what is to be done is appended to `out`.
    pub fn handle(&mut self, now: Now, input: Input<'_>, out: &mut Vec<Effect>) {
        match input {
            Input::Template(template) => self.on_template(now, template),
            Input::NodeAnswers => {
                self.node.heard_ms = now.mono_ms;
                self.node.away = None;
            }
            Input::NodeAway(why) => {
                let since_ms = self.node.away.as_ref().map_or(now.mono_ms, |(since, _)| *since);
                self.node.away = Some((since_ms, why));
            }
            Input::LinkUp(link) => self.on_link_up(link, out),
            Input::LinkDown(link, why) => self.fail(now, link.session, Failure::Link(why), out),
            Input::LinkStalled(link) => self.fail(now, link.session, Failure::Stalled, out),
            Input::Frame(link, header, payload) => self.on_frame(now, link, header, payload, out),
            Input::Shares(groups) => self.on_shares(now, groups, out),
            Input::Block(block) => self.on_block(now, &block, out),
            Input::Fleet(rate) => self.fleet = if rate.is_finite() { rate } else { 0.0 },
            Input::Time => {}
        }
        self.look_at_the_clock(now, out);
        // Each round but the last ends a session.
        loop {
            self.look_at_the_node(now, out);
            self.follow_upstream(now, out);
            if self.give_work(now, out) && self.pursue(now, out) {
                break;
            }
        }
        if self.shown.as_ref().is_some_and(|shown| shown.source == self.upstream.using()) {
            self.leaving = None;
        }
        self.tell_fleet(now, out);
    }

    /// When `Input::Time` is due, mono ms.
    #[must_use]
    pub fn deadline_ms(&self, now_ms: u64) -> Option<u64> {
        let sessions = self.sessions.values();
        let sessions = sessions.filter_map(|session| session.deadline_ms(CUSTOM_ANSWER_MAX_MS));
        let node = self.node.was_up.then(|| self.node.deadline_ms());
        let retry = self.works.back().and_then(Work::retry_at_ms);
        let refresh = self.shown.as_ref().map(|shown| shown.at_ms + self.options.refresh_ms);
        let theirs = self.shown.as_ref().and_then(|shown| shown.deadline_ms(now_ms));
        let fleet = self.sessions.values().filter_map(|session| session.tell_at_ms(self.fleet));
        let fleet = fleet.min().map(|at_ms| at_ms.max(now_ms + 1));
        let first_word = self.waits_for_node_until_ms;
        let upstream = self.upstream.deadline_ms(now_ms);
        let others = [upstream, node, retry, refresh, theirs, fleet, first_word];
        sessions.chain(others.into_iter().flatten()).filter(|at| *at > now_ms).min()
    }

    /// Whose work the devices do.
    #[must_use]
    pub fn using(&self) -> Source {
        self.upstream.using()
    }

    /// The work, once there is any.
    #[must_use]
    pub fn published(&self) -> Option<&Published> {
        self.shown.as_ref().map(|shown| &shown.published)
    }

    fn on_template(&mut self, now: Now, template: NodeTemplate) {
        let known = self.node.template.as_ref();
        if known.is_none_or(|known| !known.prev_hash.is_same_tip(&template.prev_hash)) {
            self.node.is_not_behind();
            self.node.on_our_tip.clear();
        }
        self.node.template = Some(template);
        self.node.heard_ms = now.mono_ms;
        self.node.away = None;
        self.node.unusable = None;
    }

    fn look_at_the_node(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.hear_of_our_tip(now, out);
        let away = self.node.away(now.mono_ms);
        let is_up = away.is_none();
        self.upstream.node_is_up(is_up);
        match (std::mem::replace(&mut self.node.was_up, is_up), away) {
            (true, Some(why)) => {
                self.node.changed_ms = now.mono_ms;
                out.push(Effect::Note(Note::NodeAway(why)));
            }
            (false, None) => {
                self.node.changed_ms = now.mono_ms;
                out.push(Effect::Note(Note::NodeBack));
            }
            (true, None) | (false, Some(_)) => {}
        }
    }

    /// The pool's word for the fleet's rate, at most once a second.
    fn tell_fleet(&mut self, now: Now, out: &mut Vec<Effect>) {
        for session in self.sessions.values_mut() {
            if session.tell_at_ms(self.fleet).is_some_and(|at_ms| at_ms <= now.mono_ms) {
                session.told = (self.fleet, now.mono_ms);
                let mut frames = Vec::new();
                session.mining.update(self.fleet as f32, &mut frames);
                let link = LinkId { session: session.id, end: End::Mining };
                out.push(Effect::Send(link, frames));
            }
        }
    }
}
