//! The declarator without its sockets: templates of the own node and sessions with pools in, work for the
//! devices, messages and blocks out. Owned by one task (`run.rs`); which pool is used, `upstream.rs` says.
//!
//! Devices work on a new template at once; their shares wait until the pool has promised the job, and then go
//! out in order. Must never let a share go without counting what became of it, nor leave the devices without
//! work while there is a node or a pool.

mod outputs;
mod session;
mod shares;
mod tally;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proto::connection::Violation;
use proto::declare::client as declare;
use proto::job::ActiveTemplate;
use proto::message::{FrameHeader, Message, Received};
use proto::mining::client as mining;
use proto::mining::server::FoundBlock;
use proto::mining::{CreditGroup, Now};
use proto::target::{Difficulty, Target};
use proto::template::{Template, TemplateId};

pub use self::outputs::{BadOutputs, OutputLimit, fill, of_suffix};
pub use self::session::Failure;
pub use self::tally::{PoolTally, ShareLoss, Tally};

use self::session::{Asked, Channel, Declared, Promised, STALE_CHAIN_TIP, Session};
use self::shares::Work;
use self::work::OwnWork;
use crate::limits::{
    CUSTOM_ANSWER_MAX_MS, FLEET_UNKNOWN, NODE_AWAY_AFTER_MS, NODE_FIRST_WORD_MS,
    NODE_SILENCE_MAX_MS, SESSION_LINGER_MS, SESSIONS_LINGERING_MAX, STALE_RETRY_MS,
    STALE_TRIES_MAX, SWITCHES_SHOWN, WORKS_KEPT_MAX,
};
use crate::node::NodeTemplate;
use crate::upstream::{Kind, Source, Step, Upstream};

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
    /// Its last failure, and when, unix seconds.
    pub last_failure: Option<(u32, String)>,
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

/// What was published last.
#[derive(Debug)]
struct Shown {
    published: Published,
    /// Whose.
    source: Source,
    session: Option<u64>,
    /// The node's template that it was made of, or the pool's job.
    made_of: u64,
    /// What the pool asks for and where, when it was made.
    outputs: Option<Arc<[u8]>>,
    channel: Option<Channel>,
    at_ms: u64,
    view: WorkView,
}

#[derive(Debug, Default)]
struct NodeSeen {
    template: Option<NodeTemplate>,
    heard_ms: u64,
    /// Since when it has failed, and how.
    away: Option<(u64, String)>,
    /// No job can be made of its template, for this reason.
    unusable: Option<String>,
    /// When it was last found to be away, or to be back.
    changed_ms: u64,
    /// Pools to which our tip is an old one.
    stale_to: BTreeSet<usize>,
    /// All pools say so.
    is_behind: bool,
    was_up: bool,
}

impl NodeSeen {
    /// Why it cannot be built upon.
    fn away(&self, now_ms: u64) -> Option<String> {
        let Some(_) = &self.template else {
            let why = self.away.as_ref().map(|(_, why)| why.clone());
            return Some(why.unwrap_or_else(|| "it has not answered yet".to_owned()));
        };
        if let Some((since_ms, why)) = &self.away
            && now_ms.saturating_sub(*since_ms) >= NODE_AWAY_AFTER_MS
        {
            return Some(why.clone());
        }
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        if silent_ms >= NODE_SILENCE_MAX_MS {
            return Some(format!("it has not answered for {} s", silent_ms / 1_000));
        }
        if self.unusable.is_some() {
            return self.unusable.clone();
        }
        let behind = "every pool says that its tip is an old one";
        self.is_behind.then(|| behind.to_owned())
    }

    fn deadline_ms(&self) -> u64 {
        let silent = self.heard_ms.saturating_add(NODE_SILENCE_MAX_MS);
        let away = self.away.as_ref().map(|(since, _)| since.saturating_add(NODE_AWAY_AFTER_MS));
        away.map_or(silent, |away| away.min(silent))
    }
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
    pools: Vec<(PoolTally, Option<(u32, String)>)>,
    switches: VecDeque<Switch>,
    /// Of the switch that is about to happen: why, and since when work may have been for nobody.
    leaving: Option<(String, u64)>,
    /// The tip of which a promise was told last.
    promised_tip: Option<[u8; 32]>,
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
            Input::Block(block) => self.on_block(&block, out),
            Input::Fleet(rate) => self.fleet = if rate.is_finite() { rate } else { 0.0 },
            Input::Time => {}
        }
        self.look_at_the_clock(now, out);
        self.look_at_the_node(now, out);
        // Each round but the last ends a session.
        loop {
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
        let fleet = self.sessions.values().filter_map(|session| session.tell_at_ms(self.fleet));
        let fleet = fleet.min().map(|at_ms| at_ms.max(now_ms + 1));
        let first_word = self.waits_for_node_until_ms;
        let others = [self.upstream.deadline_ms(now_ms), node, retry, refresh, fleet, first_word];
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

    /// What can be shown.
    #[must_use]
    pub fn view(&self, now_ms: u64) -> View {
        let pools = self.options.pools.iter().zip(&self.pools).enumerate();
        let pools = pools.map(|(at, (options, (tally, last_failure)))| PoolView {
            name: options.name.clone(),
            state: self.pool_state(at, now_ms),
            last_failure: last_failure.clone(),
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

    fn pool_state(&self, pool: usize, now_ms: u64) -> PoolState {
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

    fn on_template(&mut self, now: Now, template: NodeTemplate) {
        let known = self.node.template.as_ref();
        if known.is_none_or(|known| !known.prev_hash.is_same_tip(&template.prev_hash)) {
            self.node.stale_to.clear();
            self.node.is_behind = false;
        }
        self.node.template = Some(template);
        self.node.heard_ms = now.mono_ms;
        self.node.away = None;
        self.node.unusable = None;
    }

    fn on_link_up(&mut self, link: LinkId, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&link.session) else { return };
        let mut frames = Vec::new();
        match (link.end, &mut session.declare) {
            (End::Mining, _) => session.mining.start(&mut frames),
            (End::Declare, Some(client)) => client.start(&mut frames),
            (End::Declare, None) => return,
        }
        out.push(Effect::Send(link, frames));
    }

    fn on_frame(
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

    fn on_mining(
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
                self.judge_their_work(id)?;
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
                let (credited, passed_over) =
                    session.acknowledged(last_sequence, count, now.mono_ms);
                self.pools[session.pool].0.acknowledge(&credited);
                self.pools[session.pool].0.lose(ShareLoss::Unanswered, passed_over);
            }
            Event::Refused { sequence, code } => {
                let tip = self.works.back().map(|newest| newest.tip);
                // Of one that was answered before nothing more is counted.
                let Some(verdict) = session.refused(sequence, &code, tip) else { return Ok(()) };
                self.pools[session.pool].0.refuse(&code);
                return verdict;
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

    fn on_declare(
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
    fn learn_outputs(&mut self, id: u64) -> Result<(), Failure> {
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

    /// A pool's own job pays nobody beyond the owner's limit either.
    fn judge_their_work(&mut self, id: u64) -> Result<(), Failure> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let Some(work) = session.mining.work() else { return Ok(()) };
        let Some(coinbase) = work.coinbase() else { return Ok(()) };
        let limit = &self.options.pools[session.pool].limit;
        Ok(limit.judge(&of_suffix(coinbase.tail)?)?)
    }

    /// A pool that comes to our tip was behind, and not our node. One that was on it all the time meant
    /// something else by its word, and goes on with its own jobs until there is another tip.
    fn look_at_their_tip(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(tip) = session.mining.work().map(|work| work.prev_hash) else { return };
        let before = session.their_tip.replace(tip);
        let ours = self.node.template.as_ref().map(|node| node.prev_hash.hash);
        if before.is_some_and(|before| before != tip) && ours == Some(tip) {
            self.node.stale_to.clear();
            self.node.is_behind = false;
        }
    }

    fn is_it_ready(&mut self, now: Now, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if !session.is_ready && session.can_be_mined() && session.lingers_until_ms.is_none() {
            session.is_ready = true;
            self.upstream.is_ready(session.pool, session.kind, now.mono_ms);
        }
    }

    fn look_at_the_clock(&mut self, now: Now, out: &mut Vec<Effect>) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if session.lingers_until_ms.is_some_and(|until| until <= now.mono_ms) {
                self.end(id, ShareLoss::PoolLeft, out);
                continue;
            }
            let mut overdue = session.overdue(now.mono_ms, CUSTOM_ANSWER_MAX_MS);
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

    fn look_at_the_node(&mut self, now: Now, out: &mut Vec<Effect>) {
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

    /// The session is of no more use; `upstream` hears of it.
    fn fail(&mut self, now: Now, id: u64, failure: Failure, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (pool, kind) = (session.pool, session.kind);
        let lingers = session.lingers_until_ms.is_some();
        let missed_ms = session.unanswered.front().map_or(now.mono_ms, |sent| sent.at_ms);
        self.end(id, ShareLoss::PoolGone, out);
        if lingers {
            return;
        }
        let why = failure.to_string();
        self.pools[pool].1 = Some((now.unix_s, why.clone()));
        if failure == Failure::Reconnect {
            self.upstream.is_asked_back(pool, kind, now.mono_ms);
        } else {
            self.upstream.has_failed(pool, kind, failure.is_refusal(), now.mono_ms);
        }
        if self.upstream.using() == (Source::Pool { pool, kind }) {
            let name = &self.options.pools[pool].name;
            self.leaving.get_or_insert((format!("{name}: {why}"), missed_ms));
        } else {
            out.push(Effect::Note(Note::PoolFailed { pool, why }));
        }
    }

    /// Ends a session: what waited for it is counted as lost.
    fn end(&mut self, id: u64, loss: ShareLoss, out: &mut Vec<Effect>) {
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
    fn waits_for_node(&mut self, now: Now) -> bool {
        let until_ms = now.mono_ms.saturating_add(NODE_FIRST_WORD_MS);
        let until_ms = *self.waits_for_node_until_ms.get_or_insert(until_ms);
        let is_silent = self.node.template.is_none() && self.node.away.is_none();
        is_silent && now.mono_ms < until_ms
    }

    fn follow_upstream(&mut self, now: Now, out: &mut Vec<Effect>) {
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

    fn dial(&mut self, now: Now, pool: usize, kind: Kind, out: &mut Vec<Effect>) {
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
    fn leave(&mut self, now: Now, pool: usize, kind: Kind, out: &mut Vec<Effect>) {
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
    fn session_of(&self, source: Source) -> Option<&Session> {
        let Source::Pool { pool, kind } = source else { return None };
        self.sessions.values().find(|session| {
            (session.pool, session.kind) == (pool, kind) && session.lingers_until_ms.is_none()
        })
    }

    /// Publishes new work if there is any to be had. Whether that went well: where it did not, a session has
    /// ended, and solo or the next pool follows in the same breath.
    fn give_work(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        match self.make_work(now) {
            Ok(None) => self.keep_ceiling(out),
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

    fn make_work(&mut self, now: Now) -> Result<Option<Made>, (Option<u64>, Failure)> {
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
                if is_shown {
                    return Ok(None);
                }
                let active = work::theirs(id, &work, channel);
                let active = active.map_err(|failure| (Some(session.id), failure))?;
                let outputs = work.coinbase().map(|coinbase| of_suffix(coinbase.tail));
                let outputs = outputs.and_then(Result::ok).unwrap_or_default();
                let outputs =
                    outputs.into_iter().map(|output| (output.sats, output.script)).collect();
                let session = Some(session.id);
                Ok(Some(Made { active, source, session, made_of, own: None, outputs }))
            }
        }
    }

    /// Whether the node's template is to become work: it is another's work than shown, of another tip, or a
    /// newer one whose time has come.
    fn is_due(
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
        if is_other || pays_otherwise || shown.channel.map(|channel| channel.prefix) != prefix {
            return true;
        }
        // One that waits for its promise would lose the shares that wait with it.
        let waits = newest.is_some_and(Work::awaits_promise);
        let is_newer = !is_same_work(shown.published.active.job.template(), &node.template);
        is_newer && !waits && now.mono_ms >= shown.at_ms.saturating_add(self.options.refresh_ms)
    }

    fn publish(&mut self, now: Now, made: Made, out: &mut Vec<Effect>) {
        let Made { active, source, session, made_of, own, outputs } = made;
        self.next_work += 1;
        let active = Arc::new(active);
        let before = self.shown.as_ref().map(|shown| shown.source);
        if before != Some(source) {
            self.say_switch(now, before, source, out);
        }
        let is_remade = self.shown.as_ref().is_some_and(|shown| {
            (shown.session, shown.made_of) == (session, made_of)
                && shown.published.active.tip.is_same_tip(&active.tip)
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
        let template = active.job.template();
        let is_theirs = matches!(source, Source::Pool { kind: Kind::Theirs, .. });
        let view = WorkView {
            source,
            height: (!is_theirs).then_some(template.height),
            value_sats: template.coinbase_value_sats,
            outputs,
            transactions: template.transactions.as_ref().map(|all| all.len()),
            tip: active.tip.hash,
            is_promised: false,
            since_ms: now.mono_ms,
        };
        let ceiling = channel.map_or(Difficulty::MAX, |channel| ceiling_under(channel.target));
        let published = Published { active, ceiling };
        let outputs = session.and_then(|id| self.sessions.get(&id)?.outputs.clone());
        self.shown = Some(Shown {
            published: published.clone(),
            source,
            session,
            made_of,
            outputs,
            channel,
            at_ms: now.mono_ms,
            view,
        });
        out.push(Effect::Publish(published));
    }

    /// Before there is newer work: jobs of tips that are gone, as our node has it, have no more shares to come
    /// but late ones, and those that were never promised take theirs along. So do those that nobody was asked
    /// for, since only the newest is pursued.
    fn retire_works(&mut self, tip: Option<[u8; 32]>) -> Vec<(usize, u64)> {
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

    fn say_switch(&mut self, now: Now, before: Option<Source>, to: Source, out: &mut Vec<Effect>) {
        let from = before.unwrap_or(Source::Solo);
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
            (None, None) => ("it is preferred and good".to_owned(), now.mono_ms),
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
    fn keep_ceiling(&mut self, out: &mut Vec<Effect>) {
        let Some(shown) = &mut self.shown else { return };
        let Some(session) = shown.session.and_then(|id| self.sessions.get(&id)) else { return };
        let Some(channel) = session.channel else { return };
        // A job that is promised keeps its target.
        let promised = self.works.back().and_then(Work::promised_target);
        let ceiling = ceiling_under(channel.target);
        let ceiling = promised.map_or(ceiling, |target| ceiling.min(ceiling_under(target)));
        if ceiling != shown.published.ceiling {
            shown.published.ceiling = ceiling;
            out.push(Effect::Publish(shown.published.clone()));
        }
    }

    /// Has the newest work promised, as far as it is not and can be. Whether that went well: where it did not,
    /// its session has ended.
    fn pursue(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
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
    fn declare_newest(
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
    fn ask_for(
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

    fn on_not_promised(
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
        let tries = refused.is_stale_to_them(now.mono_ms, STALE_RETRY_MS);
        if tries < STALE_TRIES_MAX {
            return Ok(());
        }
        self.node.stale_to.insert(pool);
        let mut declaring = self.options.pools.iter().enumerate();
        let everybody = declaring
            .all(|(at, pool)| pool.declare_address.is_none() || self.node.stale_to.contains(&at));
        if everybody {
            self.node.is_behind = true;
            out.push(Effect::Note(Note::NodeBehind));
            return Ok(());
        }
        Err(failure(code))
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

/// What a protocol client made of a frame.
enum Heard {
    Mining(mining::Event),
    Declare(declare::Event),
}

/// Session, work, token.
type Pursued = (u64, TemplateId, Option<Arc<[u8]>>);

/// Work that is about to be published.
struct Made {
    active: ActiveTemplate,
    source: Source,
    session: Option<u64>,
    made_of: u64,
    own: Option<OwnWork>,
    outputs: Vec<(u64, Vec<u8>)>,
}

/// Templates of which the same work would be made. Of the same siblings the transactions are the same.
fn is_same_work(one: &Template, other: &Template) -> bool {
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
fn ceiling_under(target: Target) -> Difficulty {
    match Difficulty::easiest_within(target) {
        None => Difficulty::MAX,
        Some(within) if within.target() == target => within,
        Some(within) => Difficulty::from_log2(within.log2() - 1),
    }
}
