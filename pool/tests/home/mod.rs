//! A house and what it depends on, in one process and over real sockets: two pools, one development chain, a
//! way to each pool and to the node that can be cut, a declarator, and devices that hash.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses its part; builders outside a #[test] fail it just as well"
)]

pub(crate) mod proxy;
pub(crate) mod refuser;
pub(crate) mod v1;
pub(crate) mod witness;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::Network;
use job_declarator::accept::Room;
use job_declarator::declarator::{Mode, Options, OutputLimit, PoolOptions, Switch, View};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
};
use job_declarator::run::{Running, Settings, Shown};
use job_declarator::upstream::{Kind, Source};
use pool::config::{Config, NodeKind};
use pool::cpu_miner::{self, CpuMinerOptions, MinerReport};
use pool::keys::{make_authority, make_identity};
use pool::run as pool_run;
use proto::mining::client::ChannelKind;
use proto::mining::server::Policy;
use proto::noise::AuthorityPublicKey;
use proto::target::Difficulty;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use proxy::Proxy;

/// Far beyond what anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);
/// Where solo blocks of the house pay: OP_TRUE.
pub(crate) const OWN_SCRIPT: [u8; 1] = [0x51];

/// A pool, the ways to it, and its own way to its node.
pub(crate) struct PoolRig {
    pub(crate) pool: pool_run::Running,
    pub(crate) mining: Proxy,
    pub(crate) declare: Proxy,
    pub(crate) node: Arc<NodeWay>,
    /// Where its blocks pay.
    pub(crate) script: Vec<u8>,
    _folder: TempDir,
}

impl PoolRig {
    pub(crate) async fn start(chain: &Arc<EmbeddedChain>) -> Self {
        Self::start_with(chain, |_| {}).await
    }

    pub(crate) async fn start_with(
        chain: &Arc<EmbeddedChain>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::default();
        config.pool.payout_address = nobodys_address();
        config.pool.data_dir = folder.path().to_owned();
        config.pool.drain_s = 1;
        config.node.kind = NodeKind::Embedded;
        config.listen.address = any;
        config.declare.address = any;
        config.http.address = any;
        config.difficulty.floor_log2 = -24;
        config.difficulty.shares_per_minute = 120;
        // A house says that it hashes like one at first; these devices would wait for the pool to find out.
        config.difficulty.ceiling_log2 = -20;
        change(&mut config);
        let node = NodeWay::new(Arc::clone(chain) as _);
        let front = Arc::clone(&node) as Arc<dyn Node>;
        let stop = CancellationToken::new();
        let pool = pool_run::start_behind(&config, &stop, |_| front).await.unwrap();
        let mining = Proxy::to(pool.listen).await;
        let declare = Proxy::to(pool.declare.unwrap()).await;
        let script = config.payout_script(Network::Regtest).unwrap().into_bytes();
        Self { pool, mining, declare, node, script, _folder: folder }
    }

    /// Shares that this pool has credited to a device of the house.
    pub(crate) async fn credited(&self, device: &str) -> u64 {
        let account = self.pool.store.account("alice").await.unwrap();
        let workers = account.map(|account| account.workers).unwrap_or_default();
        workers.iter().find(|row| row.worker == device).map_or(0, |row| row.shares)
    }

    /// Until each of the devices has another share credited here, under its own name.
    pub(crate) async fn until_credited(&self, devices: &[&str]) {
        for device in devices {
            let before = self.credited(device).await;
            let more = async {
                while self.credited(device).await <= before {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            if timeout(PATIENCE, more).await.is_err() {
                let account = self.pool.store.account("alice").await.unwrap();
                panic!("{device} is not credited: {account:?}");
            }
        }
    }

    pub(crate) fn set(&self, way: proxy::Way) {
        self.mining.set(way);
        self.declare.set(way);
    }

    /// How the house knows it.
    pub(crate) fn options(&self, name: &str) -> (PoolOptions, AuthorityPublicKey) {
        let limit = OutputLimit {
            own: OWN_SCRIPT.to_vec(),
            known: Vec::new(),
            others_max_percent: 100,
            network: bitcoin::Network::Regtest,
        };
        let options = PoolOptions {
            name: name.to_owned(),
            address: self.mining.address.to_string(),
            declare_address: Some(self.declare.address.to_string()),
            user: "alice.home".to_owned(),
            limit,
        };
        (options, self.pool.authority)
    }
}

/// Another one for each pool, by which a device's work tells whose it is.
fn nobodys_address() -> String {
    static POOLS: AtomicU8 = AtomicU8::new(1);
    let hash = [POOLS.fetch_add(1, Ordering::Relaxed); 20];
    let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V0, &hash).unwrap();
    bitcoin::Address::from_witness_program(program, Network::Regtest).to_string()
}

/// Somebody's way to a node.
pub(crate) struct NodeWay {
    node: Arc<dyn Node>,
    pub(crate) state: AtomicU8,
    /// Wakes who waits for a template when the way changes.
    changed: watch::Sender<()>,
    /// Blocks that were offered, by whatever fate.
    pub(crate) offered: Mutex<Vec<Vec<u8>>>,
}

pub(crate) const UP: u8 = 0;
pub(crate) const DEAD: u8 = 1;
pub(crate) const STALLED: u8 = 2;
/// On another network than the house's.
pub(crate) const ELSEWHERE: u8 = 3;
/// In initial block download.
pub(crate) const BEHIND: u8 = 4;
/// Gives templates and takes no block.
pub(crate) const TAKES_NO_BLOCK: u8 = 5;
/// To which every block that it is asked about is invalid.
pub(crate) const REFUSES_ALL: u8 = 6;

impl NodeWay {
    pub(crate) fn new(node: Arc<dyn Node>) -> Arc<Self> {
        Arc::new(Self {
            node,
            state: AtomicU8::new(UP),
            changed: watch::Sender::new(()),
            offered: Mutex::default(),
        })
    }

    pub(crate) fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
        self.changed.send_replace(());
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::SeqCst) == state
    }

    async fn through<T>(
        &self,
        asked: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        let mut changed = self.changed.subscribe();
        tokio::pin!(asked);
        loop {
            match self.state.load(Ordering::SeqCst) {
                DEAD => return Err(NodeError::Unreachable("connection refused".to_owned())),
                STALLED => {
                    let _ = changed.changed().await;
                }
                _ => tokio::select! {
                    answer = &mut asked => return answer,
                    _ = changed.changed() => {}
                },
            }
        }
    }

    async fn where_it_stands(&self) -> Result<ChainInfo, NodeError> {
        let mut chain = self.through(self.node.chain_info()).await?;
        if self.is(ELSEWHERE) {
            chain.network = Network::Signet;
        }
        chain.initial_block_download |= self.is(BEHIND);
        Ok(chain)
    }

    async fn submit(&self, block: &[u8]) -> Result<Submitted, NodeError> {
        self.offered.lock().unwrap().push(block.to_owned());
        if self.is(TAKES_NO_BLOCK) {
            return Err(NodeError::Unreachable("it takes no block".to_owned()));
        }
        self.through(self.node.submit_block(block)).await
    }

    async fn check(&self, block: &[u8]) -> Result<Checked, NodeError> {
        if self.is(REFUSES_ALL) {
            return Ok(Checked::Invalid("bad-txns-inputs-missingorspent-ever".to_owned()));
        }
        self.through(self.node.check_block(block)).await
    }
}

impl Node for NodeWay {
    fn name(&self) -> String {
        "a node at the end of a way".to_owned()
    }
    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        Box::pin(self.where_it_stands())
    }
    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        Box::pin(self.through(self.node.next_template(after)))
    }
    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        Box::pin(self.submit(block))
    }
    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        Box::pin(self.check(block))
    }
    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        Box::pin(self.through(self.node.height_of(hash)))
    }
}

/// A chain with a block every so many hashes.
pub(crate) fn chain(block_hashes: u64) -> Arc<EmbeddedChain> {
    let options = EmbeddedOptions {
        tx_count: 12,
        block_hashes,
        refresh: Duration::from_secs(3),
        ..EmbeddedOptions::default()
    };
    Arc::new(EmbeddedChain::new(options).unwrap())
}

/// More hashes than any test makes.
pub(crate) const NO_BLOCKS: u64 = 1_000_000_000_000;

/// The declarator in its house.
pub(crate) struct Home {
    pub(crate) running: Running,
    pub(crate) authority: AuthorityPublicKey,
    pub(crate) folder: TempDir,
}

impl Home {
    pub(crate) async fn start(
        pools: Vec<(PoolOptions, AuthorityPublicKey)>,
        node: Arc<dyn Node>,
    ) -> Self {
        Self::start_with(pools, node, |_| {}).await
    }

    pub(crate) async fn start_with(
        pools: Vec<(PoolOptions, AuthorityPublicKey)>,
        node: Arc<dyn Node>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret = make_authority(&folder.path().join("authority.txt")).unwrap();
        let now = job_declarator::clock::unix_s();
        let identity = make_identity(&secret, None, now, 1).unwrap();
        let authority = identity.authority;
        // Its sender is gone, and the last value stays.
        let (_, identity) = watch::channel(Arc::new(identity));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (pools, authorities) = pools.into_iter().unzip();
        let mut settings = Settings {
            options: Options {
                pools,
                payout_script: OWN_SCRIPT.to_vec(),
                tag: b"/home/".to_vec(),
                mode: Mode::FullTemplate,
                refresh_ms: 1_000,
                seed: 7,
            },
            authorities,
            network: Network::Regtest,
            sv2: any,
            sv1: Some(any),
            room: Room { connections_max: 64, per_household_max: 64 },
            policy: Policy {
                shares_per_minute: 240.0,
                floor: Difficulty::from_log2(-24),
                // A V1 device is taken for a fast one until it has shown that it is not.
                ceiling: Difficulty::from_log2(-20),
                ..Policy::default()
            },
            handshake_deadline: Duration::from_secs(10),
            first_channel: Duration::from_secs(60),
            data_dir: folder.path().join("data"),
            identity,
            page: None,
        };
        change(&mut settings);
        let running = job_declarator::run::start(settings, node).await.unwrap();
        Self { running, authority, folder }
    }

    /// Until what is shown is as `is_so` says.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Shown) -> bool) -> Arc<Shown> {
        let mut shown = self.running.shown.clone();
        let seen = timeout(PATIENCE, shown.wait_for(|shown| is_so(shown))).await;
        match seen {
            Ok(Ok(shown)) => Arc::clone(&shown),
            Ok(Err(_)) => panic!("the declarator ended before {what}"),
            Err(_) => panic!("never: {what}; {:#?}", self.running.shown.borrow()),
        }
    }

    pub(crate) async fn until_using(&self, source: Source) -> Arc<Shown> {
        self.until(&format!("{source:?}"), |shown| shown.view.using == source).await
    }

    /// Until the pool promised the work that is done, and has credited this many more shares.
    pub(crate) async fn until_mined_for(&self, pool: usize, shares: u64) -> Arc<Shown> {
        let before = self.view().pools[pool].tally.acknowledged;
        self.until(&format!("{shares} shares for pool {pool}"), |shown| {
            shown.view.pools[pool].tally.acknowledged >= before + shares
        })
        .await
    }

    pub(crate) fn view(&self) -> View {
        self.running.shown.borrow().view.clone()
    }

    pub(crate) fn last_switch(&self) -> Switch {
        self.view().switches.back().cloned().expect("a switch")
    }

    /// The doors open with the first work.
    pub(crate) async fn until_open(&self) {
        let mut work = self.running.work.clone();
        timeout(PATIENCE, work.wait_for(Option::is_some)).await.unwrap().unwrap();
        for door in [self.running.sv2, self.running.sv1.unwrap()] {
            while TcpStream::connect(door).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    pub(crate) async fn device(&self, name: &str) -> Device {
        self.device_of(name, ChannelKind::Extended { min_extranonce_size: 8 }).await
    }

    pub(crate) async fn device_of(&self, name: &str, kind: ChannelKind) -> Device {
        self.until_open().await;
        let at = self.running.sv2;
        let mut options = CpuMinerOptions::new(&at.ip().to_string(), at.port(), self.authority);
        options.user_identity = name.to_owned();
        options.kind = kind;
        options.duty_percent = 15;
        let report = Arc::new(MinerReport::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(cpu_miner::run(options, Arc::clone(&report), stop.clone()));
        Device { report, stop, task }
    }

    pub(crate) async fn v1_device(&self, name: &str) -> v1::V1Device {
        self.until_open().await;
        v1::V1Device::start(self.running.sv1.unwrap(), name).await
    }

    pub(crate) async fn witness(&self) -> witness::Witness {
        self.until_open().await;
        witness::Witness::start(self.running.sv2, self.authority).await
    }
}

/// A Stratum V2 device that hashes.
pub(crate) struct Device {
    pub(crate) report: Arc<MinerReport>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Device {
    /// Until so many more of its shares are acknowledged.
    pub(crate) async fn until_acknowledged(&self, shares: u64) {
        let goal = self.report.status().acknowledged + shares;
        let mined = async {
            while self.report.status().acknowledged < goal {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, mined).await.expect("a device's shares are not acknowledged");
    }

    /// It never had to connect again.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        let status = self.report.status();
        assert_eq!(status.sessions, 1, "{status:?}");
        assert!(status.acknowledged > 0, "{status:?}");
    }
}

pub(crate) const fn own(pool: usize) -> Source {
    Source::Pool { pool, kind: Kind::Own }
}

pub(crate) const fn theirs(pool: usize) -> Source {
    Source::Pool { pool, kind: Kind::Theirs }
}
