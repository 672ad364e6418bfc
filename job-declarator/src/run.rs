//! `job-declarator run`: start order, who owns what, shutdown. The page to read first.
//!
//! One task owns the `Declarator`; links to pools, devices and the node have tasks of their own and talk to it
//! over bounded queues. Work goes to every device at once over a `watch`.
//!
//! Order: data folder, keys, ports, status page; then the node and the pools, whichever has work first; then the
//! doors for devices. Must never open a door without work behind it, nor end because a pool or the node does.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bitcoin::Network;
use proto::connection::SetupPolicy;
use proto::extranonce::ExtranonceAllocator;
use proto::message::{EXTENSION_WORKER_HASHRATE, setup_flags};
use proto::mining::server::Policy;
use proto::noise::{AuthorityPublicKey, Identity};
use proto::target::Difficulty;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::blocks::{self, BlocksHandle};
use crate::clock::{Clock, unix_s};
use crate::command::{cancelled_by_signal, wait_for_signal};
use crate::config::{Config, DeclareMode};
use crate::credit;
use crate::declarator::{
    Declarator, Effect, Elsewhere, Input, LinkId, Mode, Note, Options, OutputLimit, PoolOptions,
    PoolTally, Published, Switch, View,
};
use crate::device::{ChannelSnapshot, DeviceSnapshot, Dialect, FromDevice, House};
use crate::door::{Door, Room};
use crate::feed::{self, FromNode, NodeFacts};
use crate::folder;
use crate::http;
use crate::keys::IdentityWatch;
use crate::limits::{
    CORE_QUEUE_MAX, DEVICE_FLOOR_LOG2, DEVICES_GONE_SHOWN, FLEET_BELIEVED_MS, FLEET_MEASURED_FROM,
    FLEET_UNKNOWN, HOUSE_CHANNELS_MAX, LINK_QUEUE_MAX, LINKS_DRAIN, REFUSED_SHOWN, SHOWN_EVERY,
};
use crate::link::{self, FromLink, Goal};
use crate::node::embedded::{EmbeddedChain, EmbeddedOptions};
use crate::node::late::LateNode;
use crate::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes};
use crate::node::{Node, NodeTemplate};
use crate::report;
use crate::settings::{NodeKind, NodeLogin};
use crate::status::{self, Listen};
use crate::upstream::Source;

/// Runs until SIGTERM or Ctrl-C.
///
/// # Errors
/// What keeps it from starting.
pub async fn run(config: Config) -> Result<()> {
    let shutdown = cancelled_by_signal();
    // Before anything is made.
    config.payout_script()?;
    let keys = CancellationToken::new();
    let (authority, identity) = load_keys(&config, &keys)?;
    let node = node_of(&config)?;
    let running = start(settings_of(&config, identity)?, node).await?;
    info!(
        sv2 = %running.sv2,
        sv1 = running.sv1.map(tracing::field::display),
        page = running.http.map(tracing::field::display),
        authority_key = %authority,
        "devices can connect there as soon as there is work"
    );
    let mut work = running.work.clone();
    let core_ended = async { while work.changed().await.is_ok() {} };
    let failed = shutdown.run_until_cancelled(core_ended).await.is_some();
    keys.cancel();
    // A second signal does not wait.
    tokio::select! {
        () = running.stop() => info!("stopped"),
        () = wait_for_signal() => warn!("stopped at once on a second signal"),
    }
    if failed {
        // Whoever supervises the program starts it again, and the devices come back by themselves.
        bail!("the declarator's own task failed: this is a bug, please report it");
    }
    Ok(())
}

/// Who we are to devices, and a watch on the files that say so.
fn load_keys(
    config: &Config,
    stop: &CancellationToken,
) -> Result<(AuthorityPublicKey, watch::Receiver<Arc<Identity>>)> {
    let data_dir = &config.declarator.data_dir;
    folder::make(data_dir)?;
    let files = config.key_files();
    let identity = files.load_or_make(unix_s()).context("the declarator's keys")?;
    let authority = identity.authority;
    let watched = IdentityWatch::new(files, identity, |_| ());
    let identity = watched.subscribe();
    tokio::spawn(watched.run(stop.clone()).context("catching SIGHUP")?);
    Ok((authority, identity))
}

/// What the configuration comes to.
///
/// # Errors
/// An address or a key that is none.
pub fn settings_of(config: &Config, identity: watch::Receiver<Arc<Identity>>) -> Result<Settings> {
    let payout_script = config.payout_script()?.into_bytes();
    let (mut pools, mut authorities) = (Vec::new(), Vec::new());
    for (at, pool) in config.pool.iter().enumerate() {
        let known = pool.known(at, config.network())?;
        pools.push(PoolOptions {
            name: pool.shown_name().to_owned(),
            address: pool.address.clone(),
            declare_address: pool.declares_at().map(str::to_owned),
            user: config.user_at(pool).to_owned(),
            limit: OutputLimit {
                own: payout_script.clone(),
                known,
                // At most 100, as the configuration was checked.
                others_max_percent: pool.reward_to_others_max_percent as u8,
                network: config.network(),
            },
        });
        authorities.push(pool.authority(at)?);
    }
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).context("randomness")?;
    let devices = &config.devices;
    Ok(Settings {
        options: Options {
            pools,
            payout_script,
            tag: config.declarator.tag.clone().into_bytes(),
            mode: match config.declarator.mode {
                DeclareMode::FullTemplate => Mode::FullTemplate,
                DeclareMode::CoinbaseOnly => Mode::CoinbaseOnly,
            },
            refresh_ms: u64::from(config.declarator.own_job_refresh_s) * 1_000,
            seed: u64::from_le_bytes(seed),
        },
        authorities,
        network: config.network(),
        sv2: devices.sv2_address,
        sv1: Some(devices.sv1_address),
        room: Room {
            connections_max: devices.max_connections as usize,
            per_address_max: devices.max_connections_per_address as usize,
        },
        policy: Policy {
            shares_per_minute: f64::from(devices.shares_per_minute),
            floor: Difficulty::from_log2(DEVICE_FLOOR_LOG2),
            ..Policy::default()
        },
        handshake_deadline: Duration::from_secs(devices.handshake_deadline_s.into()),
        first_channel: Duration::from_secs(devices.first_channel_s.into()),
        data_dir: config.declarator.data_dir.clone(),
        identity,
        page: Some(PageSettings {
            address: config.http.address,
            hosts: names_of_this_machine().chain(config.http.hosts.iter().cloned()).collect(),
            device_host: Some(devices.host.clone()).filter(|host| !host.is_empty()),
            apis: apis_of(config)?,
        }),
    })
}

/// Names by which machines at home know each other, that nobody else there should answer to.
fn names_of_this_machine() -> impl Iterator<Item = String> {
    let uname = rustix::system::uname();
    let own = uname.nodename().to_string_lossy().to_ascii_lowercase();
    [format!("{own}.local"), own, "umbrel.local".to_owned()].into_iter()
}

/// The pools that say what they credited.
fn apis_of(config: &Config) -> Result<Vec<credit::Asked>> {
    let mut asked = Vec::new();
    for (at, pool) in config.pool.iter().enumerate().filter(|(_, pool)| !pool.api_url.is_empty()) {
        let api = pool.api_url.parse().with_context(|| format!("pool.{at}.api_url"))?;
        let name = pool.shown_name().to_owned();
        asked.extend(credit::Asked::new(at, name, api, config.user_at(pool)));
    }
    Ok(asked)
}

/// The node of the configuration. Bitcoin Core need not run yet.
///
/// # Errors
/// The development chain cannot be opened, or Bitcoin Core's settings contradict each other.
pub fn node_of(config: &Config) -> Result<Arc<dyn Node>> {
    match config.node.kind {
        NodeKind::Embedded => {
            let data_dir = Some(config.declarator.data_dir.join("chain"));
            let options = EmbeddedOptions { data_dir, ..EmbeddedOptions::default() };
            Ok(Arc::new(EmbeddedChain::new(options).context("the development chain")?))
        }
        NodeKind::BitcoinCore => match bitcoin_core(config) {
            Ok(node) => Ok(node),
            // Its cookie appears when it starts.
            Err(NoLogin::NotYet(_)) => {
                let (name, config) =
                    (format!("Bitcoin Core at {}", config.node_url()), config.clone());
                let make = move || bitcoin_core(&config).map_err(|no_login| no_login.to_string());
                Ok(Arc::new(LateNode::new(name, Box::new(make))))
            }
            Err(NoLogin::Never(error)) => Err(error),
        },
    }
}

/// Why Bitcoin Core cannot be asked.
#[derive(Debug, thiserror::Error)]
enum NoLogin {
    #[error("{0}")]
    NotYet(String),
    #[error("{0:#}")]
    Never(anyhow::Error),
}

fn bitcoin_core(config: &Config) -> Result<Arc<dyn Node>, NoLogin> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let auth = match config.node_login(home.as_deref()) {
        Ok(NodeLogin::Cookie(file)) => RpcAuth::CookieFile(file),
        Ok(NodeLogin::Password { user, password }) => {
            RpcAuth::UserPass { user, password: password.expose().to_owned() }
        }
        Err(error) if error.may_pass() => return Err(NoLogin::NotYet(error.to_string())),
        Err(error) => return Err(NoLogin::Never(error.into())),
    };
    let options = RpcOptions { url: config.node_url(), auth, times: RpcTimes::default() };
    let node = RpcNode::new(options).context("node.url").map_err(NoLogin::Never)?;
    Ok(Arc::new(node))
}

/// Everything that is decided before the start.
pub struct Settings {
    /// What the declarator goes by.
    pub options: Options,
    /// Each pool's authority key, in the order of `options.pools`.
    pub authorities: Vec<AuthorityPublicKey>,
    /// What the node must be on.
    pub network: Network,
    /// For Stratum V2 devices.
    pub sv2: SocketAddr,
    /// For Stratum V1 devices.
    pub sv1: Option<SocketAddr>,
    /// How many devices.
    pub room: Room,
    /// How channels are run.
    pub policy: Policy,
    /// From accept to the answer of SetupConnection.
    pub handshake_deadline: Duration,
    /// Until a connection must have opened a channel.
    pub first_channel: Duration,
    /// Blocks and keys.
    pub data_dir: PathBuf,
    /// Who we are to devices.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The status page.
    pub page: Option<PageSettings>,
}

/// What the status page needs.
pub struct PageSettings {
    /// Where it is.
    pub address: SocketAddr,
    /// Names by which it may be asked for beside the usual ones.
    pub hosts: Vec<String>,
    /// What devices are to dial, if the owner says so.
    pub device_host: Option<String>,
    /// Pools whose own count is asked for.
    pub apis: Vec<credit::Asked>,
}

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

/// A declarator that runs.
pub struct Running {
    /// Where Stratum V2 devices connect, once there is work.
    pub sv2: SocketAddr,
    /// Where Stratum V1 devices do.
    pub sv1: Option<SocketAddr>,
    /// Work, once there is any.
    pub work: watch::Receiver<Option<Published>>,
    /// What can be shown, a second old at most.
    pub shown: watch::Receiver<Arc<Shown>>,
    /// The node.
    pub node: watch::Receiver<NodeFacts>,
    /// Blocks.
    pub blocks: BlocksHandle,
    /// Where the status page is.
    pub http: Option<SocketAddr>,
    stop: CancellationToken,
    core: JoinHandle<()>,
    doors: JoinHandle<()>,
    _data_dir_lock: File,
}

impl Running {
    /// Ends every connection and every task, the devices' last shares first.
    pub async fn stop(self) {
        self.stop.cancel();
        for (task, how) in [("doors", self.doors.await), ("declarator", self.core.await)] {
            if let Err(error) = how {
                warn!(task, %error, "a task failed");
            }
        }
    }
}

/// Starts everything and returns at once; devices can connect when there is work.
///
/// # Errors
/// The data folder is another program's, or a port is.
#[expect(
    clippy::too_many_lines,
    reason = "the order of a start is one story, cut where a name helps"
)]
pub async fn start(settings: Settings, node: Arc<dyn Node>) -> Result<Running> {
    let lock = folder::take(&settings.data_dir, "declarator.data_dir")?;
    let sv2 = Door::take("devices.sv2_address", settings.sv2, Dialect::V2)?;
    let sv1 = settings.sv1.map(|at| Door::take("devices.sv1_address", at, Dialect::V1));
    let sv1 = sv1.transpose()?;
    let (sv2_at, sv1_at) = (sv2.address, sv1.as_ref().map(|door| door.address));
    let page = match settings.page {
        Some(page) => Some((http::bind(page.address).await?, page)),
        None => None,
    };

    let stop = CancellationToken::new();
    let clock = Clock::start();
    let blocks = blocks::spawn(&settings.data_dir, Arc::clone(&node), stop.clone());
    let blocks = blocks.context("the folder of found blocks")?;
    let (node_says, from_node) = mpsc::channel(CORE_QUEUE_MAX);
    let facts = feed::spawn(node, settings.network, node_says, stop.clone());
    let (devices_say, from_devices) = mpsc::channel(CORE_QUEUE_MAX);
    let (links_say, from_links) = mpsc::channel(CORE_QUEUE_MAX);

    let Settings { options, authorities, policy, identity, .. } = settings;
    let payout_script = options.payout_script.clone();
    let authority = identity.borrow().authority;
    let goals = options.pools.iter().zip(authorities);
    let goals = goals.map(|(pool, authority)| {
        (pool.address.clone(), pool.declare_address.clone().unwrap_or_default(), authority)
    });
    let goals = goals.collect();
    let names = options.pools.iter().map(|pool| pool.name.clone()).collect();
    let declarator = Declarator::new(options);
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
        stop: stop.clone(),
    };
    let core = tokio::spawn(core.run(from_node, from_links, from_devices));

    let mut http = None;
    if let Some((listener, page)) = page {
        http = listener.local_addr().ok();
        let sources = report::Sources {
            shown: shown.clone(),
            node: facts.clone(),
            block: blocks.newest(),
            credit: counted_by_pools(page.apis, shown.clone(), stop.clone()),
            network: settings.network,
            listen: Listen {
                host: page.device_host,
                sv2: sv2_at,
                sv1: sv1_at,
                authority_key: authority.to_string(),
            },
            payout_script,
            started_at: unix_s(),
        };
        let status = report::spawn(sources, stop.clone());
        tokio::spawn(status::serve(listener, status, page.hosts, stop.clone()));
    }

    let house = HouseParts {
        policy: Arc::new(policy),
        identity,
        core: devices_say,
        blocks: blocks.clone(),
        handshake_deadline: settings.handshake_deadline,
        first_channel: settings.first_channel,
        clock,
        room: settings.room,
    };
    let doors = open_doors(house, sv2, sv1, published.clone(), stop.clone());
    let doors = tokio::spawn(doors);
    Ok(Running {
        sv2: sv2_at,
        sv1: sv1_at,
        work: published,
        shown,
        node: facts,
        blocks,
        http,
        stop,
        core,
        doors,
        _data_dir_lock: lock,
    })
}

/// What pools say that they credited, beside the owner's own count of it.
fn counted_by_pools(
    apis: Vec<credit::Asked>,
    shown: watch::Receiver<Arc<Shown>>,
    stop: CancellationToken,
) -> watch::Receiver<Vec<credit::Comparison>> {
    let own = move |pool: usize| {
        let shown = shown.borrow();
        shown.view.pools.get(pool).map(|pool| credit::Own::from(&pool.tally)).unwrap_or_default()
    };
    let (said, heard) = watch::channel(Vec::new());
    tokio::spawn(credit::watch(apis, own, said, stop));
    heard
}

/// What stands before there is work.
struct HouseParts {
    policy: Arc<Policy>,
    identity: watch::Receiver<Arc<Identity>>,
    core: mpsc::Sender<FromDevice>,
    blocks: BlocksHandle,
    handshake_deadline: Duration,
    first_channel: Duration,
    clock: Clock,
    room: Room,
}

/// Waits for the first work, opens both doors, and passes on what is published to everybody behind them.
async fn open_doors(
    parts: HouseParts,
    sv2: Door,
    sv1: Option<Door>,
    mut published: watch::Receiver<Option<Published>>,
    stop: CancellationToken,
) {
    let first = async {
        loop {
            if let Some(first) = published.borrow_and_update().clone() {
                return Some(first);
            }
            published.changed().await.ok()?;
        }
    };
    let Some(Some(first)) = stop.run_until_cancelled(first).await else { return };
    let (pass_on, work) = watch::channel(first);
    let house = House {
        policy: parts.policy,
        setup: SetupPolicy {
            supported_flags: setup_flags::REQUIRES_STANDARD_JOBS
                | setup_flags::REQUIRES_VERSION_ROLLING,
            supported_extensions: &[EXTENSION_WORKER_HASHRATE],
            ..SetupPolicy::MINING
        },
        identity: parts.identity,
        work,
        channels: ExtranonceAllocator::for_house(),
        core: parts.core,
        blocks: parts.blocks,
        handshake_deadline: parts.handshake_deadline,
        first_channel: parts.first_channel,
        clock: parts.clock,
        places: Arc::new(Semaphore::new(HOUSE_CHANNELS_MAX)),
        shutdown: stop.clone(),
    };
    let (house, ids) = (Arc::new(house), Arc::new(AtomicU64::new(1)));
    let mut open = Vec::new();
    for door in [Some(sv2), sv1].into_iter().flatten() {
        let address = door.address;
        match door.open(parts.room, Arc::clone(&house), Arc::clone(&ids)) {
            Ok(door) => {
                info!(%address, "devices can connect");
                open.push(door);
            }
            Err(error) => tracing::error!(%error, "no device can connect there"),
        }
    }
    drop(house);
    while let Some(Ok(())) = stop.run_until_cancelled(published.changed()).await {
        if let Some(newest) = published.borrow_and_update().clone() {
            pass_on.send_replace(newest);
        }
    }
    // Also if the declarator's task is gone: nobody would take what devices find.
    stop.cancel();
    for door in open {
        let _ = door.await;
    }
}

/// The declarator's task.
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
            crate::declarator::End::Mining => mining,
            crate::declarator::End::Declare => declare,
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
        use crate::upstream::Kind;
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
    use proto::mining::Kind;

    fn channel(measured: f64, aimed_rate: f64, accepted: u64, age_ms: u64) -> ChannelSnapshot {
        let mut hash_rate = crate::rate::HashRates::default();
        hash_rate.minute = HashRate { estimate: measured, ..hash_rate.minute };
        ChannelSnapshot {
            kind: Kind::Extended,
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
