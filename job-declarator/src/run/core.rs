//! The declarator's task: it hears the node, the links to pools and the devices, gives all of it to the pure
//! `Declarator`, and does what that asks for. Part of `run.rs`. Must never wait for anything but the next word.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use proto::noise::AuthorityPublicKey;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::declarator::{
    Declarator, Effect, Elsewhere, End, Input, LinkId, Note, Options, PoolTally, Published, Switch,
    View,
};
use crate::device::{ChannelSnapshot, DeviceSnapshot, FromDevice};
use crate::feed::FromNode;
use crate::limits::{
    CORE_QUEUE_MAX, DEVICES_GONE_SHOWN, FLEET_BELIEVED_MS, FLEET_MEASURED_FROM, FLEET_UNKNOWN,
    LINK_QUEUE_MAX, LINKS_DRAIN, REFUSED_SHOWN, SHOWN_EVERY,
};
use crate::link::{self, FromLink, Goal};
use crate::node::NodeTemplate;
use crate::upstream::{Kind, Source};

/// All that can be shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// What the declarator says.
    pub view: View,
    /// Devices, by id.
    pub devices: Vec<Arc<DeviceSnapshot>>,
    /// Who went last and why: peer, reason, unix seconds.
    pub gone: VecDeque<(SocketAddr, String, u32)>,
    /// Who was refused last, the newest last.
    pub refused: VecDeque<RefusedPeer>,
    /// The monotonic clock that `view` counts by, ms.
    pub now_ms: u64,
    /// Unix seconds.
    pub now: u32,
}

impl Shown {
    fn of_the_start(declarator: &Declarator, clock: Clock) -> Self {
        Self {
            view: declarator.view(0),
            devices: Vec::new(),
            gone: VecDeque::new(),
            refused: VecDeque::new(),
            now_ms: 0,
            now: clock.now().unix_s,
        }
    }
}

/// Somebody who was turned away, or refused what he asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPeer {
    /// Where he came from the last time.
    pub peer: SocketAddr,
    /// For people.
    pub why: String,
    /// How often, from this address.
    pub count: u64,
    /// The last time, unix seconds.
    pub at: u32,
}

/// Starts the task: its end, work once there is any, and what can be shown. `authorities` are the pools' keys, in the
/// order of their options. Once `stop` is cancelled it ends with the last device.
pub(super) fn spawn(
    options: Options,
    authorities: Vec<AuthorityPublicKey>,
    clock: Clock,
    node: mpsc::Receiver<FromNode>,
    devices: mpsc::Receiver<FromDevice>,
    stop: CancellationToken,
) -> (JoinHandle<()>, watch::Receiver<Option<Published>>, watch::Receiver<Arc<Shown>>) {
    let goals = options.pools.iter().zip(authorities);
    let goals = goals.map(|(pool, authority)| {
        (pool.address.clone(), pool.declare_address.clone().unwrap_or_default(), authority)
    });
    let goals = goals.collect();
    let names = options.pools.iter().map(|pool| pool.name.clone()).collect();
    let declarator = Declarator::new(options);
    let (links_say, links) = mpsc::channel(CORE_QUEUE_MAX);
    let (work, published) = watch::channel(None);
    let (show, shown) = watch::channel(Arc::new(Shown::of_the_start(&declarator, clock)));
    let core = Core {
        declarator,
        clock,
        goals,
        names,
        links: BTreeMap::new(),
        link_tasks: JoinSet::new(),
        links_say,
        devices: BTreeMap::new(),
        gone: VecDeque::new(),
        refused: VecDeque::new(),
        work,
        show,
        stop,
    };
    (tokio::spawn(core.run(node, links, devices)), published, shown)
}

/// See above.
struct Core {
    declarator: Declarator,
    clock: Clock,
    /// Of each pool: its two addresses and its key.
    goals: Vec<(String, String, AuthorityPublicKey)>,
    names: Vec<String>,
    /// Dropped to hang up.
    links: BTreeMap<LinkId, mpsc::Sender<Vec<u8>>>,
    link_tasks: JoinSet<()>,
    links_say: mpsc::Sender<FromLink>,
    devices: BTreeMap<u64, Arc<DeviceSnapshot>>,
    gone: VecDeque<(SocketAddr, String, u32)>,
    refused: VecDeque<RefusedPeer>,
    work: watch::Sender<Option<Published>>,
    show: watch::Sender<Arc<Shown>>,
    stop: CancellationToken,
}

enum Event {
    Node(FromNode),
    Link(FromLink),
    Device(FromDevice),
    Time,
}

impl Core {
    async fn run(
        mut self,
        mut node: mpsc::Receiver<FromNode>,
        mut links: mpsc::Receiver<FromLink>,
        mut devices: mpsc::Receiver<FromDevice>,
    ) {
        self.apply(Event::Time);
        let mut show_at = Instant::now();
        loop {
            let now = self.clock.now();
            let due = self.declarator.deadline_ms(now.mono_ms);
            let due = due.map_or(show_at, |due| self.clock.instant(due).min(show_at));
            let event = tokio::select! {
                Some(said) = node.recv() => Event::Node(said),
                Some(said) = links.recv() => Event::Link(said),
                Some(said) = devices.recv() => Event::Device(said),
                () = self.stop.cancelled() => break,
                () = sleep_until(due) => Event::Time,
            };
            self.apply(event);
            if Instant::now() >= show_at {
                self.measure_fleet();
                self.show();
                show_at = Instant::now() + SHOWN_EVERY;
            }
        }
        // Devices hand in their last shares, which the pool may still take.
        while let Some(said) = devices.recv().await {
            self.apply(Event::Device(said));
        }
        self.show();
        self.links.clear();
        let written = async { while self.link_tasks.join_next().await.is_some() {} };
        let _ = timeout(LINKS_DRAIN, written).await;
    }

    fn apply(&mut self, event: Event) {
        let input = match &event {
            Event::Node(FromNode::Template(_)) => None,
            Event::Node(FromNode::Answers) => Some(Input::NodeAnswers),
            Event::Node(FromNode::Away(why)) => Some(Input::NodeAway(why.clone())),
            Event::Link(FromLink::Up(link)) => Some(Input::LinkUp(*link)),
            Event::Link(FromLink::Frame(link, header, payload)) => {
                Some(Input::Frame(*link, *header, payload))
            }
            Event::Link(FromLink::Down(link, why)) => Some(Input::LinkDown(*link, why.clone())),
            Event::Link(FromLink::Stalled(link)) => Some(Input::LinkStalled(*link)),
            Event::Device(_) => None,
            Event::Time => Some(Input::Time),
        };
        if let Some(input) = input {
            return self.handle(input);
        }
        match event {
            Event::Node(FromNode::Template(template)) => {
                self.heed_its_time(&template);
                self.handle(Input::Template(*template));
            }
            Event::Device(said) => self.on_device(said),
            Event::Node(_) | Event::Link(_) | Event::Time => {}
        }
    }

    /// A template is of now, but where the chain's past lets it be no earlier than it says.
    fn heed_its_time(&self, template: &NodeTemplate) {
        let node_s = template.prev_hash.min_ntime;
        if node_s <= template.earliest_ntime {
            return;
        }
        match self.clock.heed(node_s) {
            Some(0) => info!("this computer's clock and your node's are one again"),
            Some(ahead_s) => warn!(
                ahead_s,
                "this computer's clock is not your node's, which is used: set one of them right"
            ),
            None => {}
        }
    }

    fn on_device(&mut self, said: FromDevice) {
        match said {
            FromDevice::Shares(groups) => self.handle(Input::Shares(groups)),
            FromDevice::Block(block) => self.handle(Input::Block(block)),
            FromDevice::Shown(row) => {
                self.devices.insert(row.id, Arc::from(row));
            }
            FromDevice::Gone(id, peer, why) => {
                self.devices.remove(&id);
                if self.gone.len() >= DEVICES_GONE_SHOWN {
                    self.gone.pop_front();
                }
                self.gone.push_back((peer, why, self.clock.now().unix_s));
            }
            FromDevice::Refused { peer, why, count } => self.on_refused(peer, why, count),
        }
    }

    /// One row for an address and a reason, however often.
    fn on_refused(&mut self, peer: SocketAddr, why: String, count: u64) {
        let same = |row: &RefusedPeer| row.peer.ip() == peer.ip() && row.why == why;
        let before = self.refused.iter().position(same).and_then(|at| self.refused.remove(at));
        if self.refused.len() >= REFUSED_SHOWN {
            self.refused.pop_front();
        }
        let count = before.map_or(0, |row| row.count).saturating_add(count);
        self.refused.push_back(RefusedPeer { peer, why, count, at: self.clock.now().unix_s });
    }

    fn handle(&mut self, input: Input<'_>) {
        let mut effects = Vec::new();
        self.declarator.handle(self.clock.now(), input, &mut effects);
        let mut stalled = self.carry_out(effects);
        // Each session fails once, so this ends.
        while let Some(link) = stalled.pop() {
            let mut effects = Vec::new();
            let input = Input::LinkStalled(link);
            self.declarator.handle(self.clock.now(), input, &mut effects);
            stalled.extend(self.carry_out(effects));
        }
    }

    /// The links that do not take what they are sent.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<LinkId> {
        let mut stalled = Vec::new();
        for effect in effects {
            match effect {
                Effect::Dial { link, pool, elsewhere } => self.dial(link, pool, elsewhere),
                Effect::Send(link, frames) => {
                    let Some(queue) = self.links.get(&link) else { continue };
                    // One that has ended says so itself.
                    if let Err(mpsc::error::TrySendError::Full(_)) = queue.try_send(frames) {
                        stalled.push(link);
                    }
                }
                Effect::Hang(link) => {
                    self.links.remove(&link);
                }
                Effect::Publish(published) => {
                    if self.work.send_replace(Some(published)).is_none() {
                        self.say_first();
                    }
                }
                Effect::Note(note) => self.say(&note),
            }
        }
        stalled
    }

    fn dial(&mut self, link: LinkId, pool: usize, elsewhere: Option<Elsewhere>) {
        let Some((mining, declare, authority)) = self.goals.get(pool) else { return };
        let address = match link.end {
            End::Mining => mining,
            End::Declare => declare,
        };
        let is_asked_for = elsewhere.is_some();
        let address = address_of(address, elsewhere);
        let goal = Goal { link, address, authority: *authority, is_asked_for };
        let (queue, frames) = mpsc::channel(LINK_QUEUE_MAX);
        self.links.insert(link, queue);
        while self.link_tasks.try_join_next().is_some() {}
        self.link_tasks.spawn(link::run(goal, frames, self.links_say.clone()));
    }

    fn measure_fleet(&mut self) {
        let fleet = fleet_of(self.devices.values().flat_map(|device| &device.channels));
        self.handle(Input::Fleet(fleet));
    }

    fn show(&mut self) {
        let now = self.clock.now();
        let view = self.declarator.view(now.mono_ms);
        self.say_shares(&view);
        let shown = Shown {
            view,
            devices: self.devices.values().cloned().collect(),
            gone: self.gone.clone(),
            refused: self.refused.clone(),
            now_ms: now.mono_ms,
            now: now.unix_s,
        };
        self.show.send_replace(Arc::new(shown));
    }

    /// What became of shares at each pool since it was shown last.
    fn say_shares(&self, view: &View) {
        let shown = self.show.borrow();
        for (pool, before) in view.pools.iter().zip(&shown.view.pools) {
            if pool.tally == before.tally {
                continue;
            }
            let (refused, lost) = (pool.tally.refused_in_all(), pool.tally.lost_in_all());
            let PoolTally { below, waiting, sent, acknowledged, .. } = pool.tally;
            let name = &pool.name;
            debug!(pool = name, below, waiting, sent, acknowledged, refused, lost, "shares so far");
        }
    }

    fn name_of(&self, source: Source) -> String {
        match source {
            Source::Solo => "solo".to_owned(),
            Source::Pool { pool, kind } => {
                let name = self.names.get(pool).map_or("?", String::as_str);
                match kind {
                    Kind::Own => format!("your template for {name}"),
                    Kind::Theirs => format!("a template of {name}"),
                }
            }
        }
    }

    /// What is mined from the start on.
    fn say_first(&self) {
        let Some(work) = self.declarator.view(self.clock.now().mono_ms).work else { return };
        let what = self.name_of(work.source);
        match work.height {
            Some(height) => info!(height, "mining {what}, block {height}"),
            None => info!("mining {what}"),
        }
    }

    fn say(&self, note: &Note) {
        let name = |pool: &usize| self.names.get(*pool).map_or("?", String::as_str);
        match note {
            Note::Switched(Switch { from, to, reason, idle_ms, idle_hashes, .. }) => {
                let (from, to) = (self.name_of(*from), self.name_of(*to));
                let idle_s = *idle_ms as f64 / 1_000.0;
                info!(from, to, reason, idle_s, idle_hashes, "switched from {from} to {to}");
            }
            Note::PoolFailed { pool, why } => {
                warn!(pool = name(pool), why, "a pool cannot be used")
            }
            Note::NodeAway(why) => warn!(why, "your node cannot be built upon"),
            Note::NodeBack => info!("your node can be built upon"),
            Note::NodeBehind => {
                warn!(
                    "all pools in reach say that your node's tip is an old one: is it connected?"
                );
            }
            Note::NotPromised { pool, code } => {
                warn!(pool = name(pool), code, "the pool has not promised your template yet");
            }
            Note::Promised { pool, height } => {
                info!(pool = name(pool), height, "the pool has promised your template");
            }
            Note::LargeJob { pool, bytes } => warn!(
                pool = name(pool),
                bytes, "jobs are larger than a NerdQAxe+ or an older Bitaxe takes; they will leave"
            ),
        }
    }
}

/// What the devices do together, H/s: measured, but for what has just come, of which its pace is believed. Who
/// asks for hard shares and finds none would else raise the pool's target for all: what was not measured counts
/// no more than all that was, or than one device.
fn fleet_of<'a>(channels: impl Iterator<Item = &'a ChannelSnapshot>) -> f64 {
    let (mut measured, mut believed) = (0.0, 0.0);
    for channel in channels {
        let is_new = channel.accepted < FLEET_MEASURED_FROM && channel.age_ms < FLEET_BELIEVED_MS;
        let (sum, rate) = match is_new {
            true => (&mut believed, channel.aimed_rate),
            false => (&mut measured, channel.hash_rate.minute.estimate),
        };
        *sum += rate;
    }
    let most = f64::max(measured, FLEET_UNKNOWN);
    measured + believed.min(most)
}

/// Where a pool is dialled: at its own address, or where it asked to be.
fn address_of(own: &str, elsewhere: Option<Elsewhere>) -> String {
    let Some(Elsewhere { host, port }) = elsewhere else { return own.to_owned() };
    let (own_host, own_port) = own.rsplit_once(':').unwrap_or((own, ""));
    let port = port.map_or(own_port.to_owned(), |port| port.to_string());
    format!("{}:{port}", host.as_deref().unwrap_or(own_host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::HashRate;

    fn channel(measured: f64, aimed_rate: f64, accepted: u64, age_ms: u64) -> ChannelSnapshot {
        let mut hash_rate = crate::rate::HashRates::default();
        hash_rate.minute = HashRate { estimate: measured, ..hash_rate.minute };
        ChannelSnapshot {
            kind: proto::mining::Kind::Extended,
            name: "a".into(),
            hash_rate,
            aimed_rate,
            difficulty_log2: 0,
            accepted,
            refused: Default::default(),
            last_share_at: None,
            best_difficulty: 0.0,
            age_ms,
        }
    }

    #[test]
    fn a_device_that_asks_for_hard_shares_and_finds_none_does_not_make_the_fleet_fast() {
        let honest = channel(5e12, 4e12, 1_000, 3_600_000);
        let liar = |age_ms| channel(0.0, 2e24, 0, age_ms);
        let fleet = fleet_of([&honest, &liar(0)].into_iter());
        assert_eq!(fleet, 10e12, "as much as all that was measured");
        assert_eq!(fleet_of([&honest, &liar(FLEET_BELIEVED_MS)].into_iter()), 5e12);
        assert_eq!(fleet_of([&liar(0)].into_iter()), FLEET_UNKNOWN);
        let new = channel(0.0, 2e11, 3, 1_000);
        assert_eq!(fleet_of([&new].into_iter()), 2e11, "who has just come is believed");
        assert!(fleet_of([].into_iter()).is_sign_positive());
    }

    #[test]
    fn a_pool_is_dialled_where_it_asks_for_and_else_where_it_is() {
        let elsewhere = |host: Option<&str>, port| {
            let host = host.map(str::to_owned);
            address_of("pool.example:1", Some(Elsewhere { host, port }))
        };
        assert_eq!(address_of("pool.example:1", None), "pool.example:1");
        assert_eq!(elsewhere(Some("b.example"), None), "b.example:1");
        assert_eq!(elsewhere(None, Some(2)), "pool.example:2");
    }
}
