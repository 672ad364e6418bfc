//! A house and what it depends on, in one process and over real sockets: two pools, one development chain, a
//! way to each pool and to the node that can be cut, a declarator, and devices that hash.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses its part; builders outside a #[test] fail it just as well"
)]

pub(crate) mod proxy;

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bitcoin::Network;
use job_declarator::declarator::{Mode, Options, OutputLimit, PoolOptions, Switch, View};
use job_declarator::door::Room;
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
use proto::mining::server::Policy;
use proto::noise::AuthorityPublicKey;
use proto::target::Difficulty;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use proxy::Proxy;

/// Far beyond what anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Where solo blocks of the house pay: OP_TRUE.
pub(crate) const OWN_SCRIPT: [u8; 1] = [0x51];

/// A pool and the ways to it.
pub(crate) struct PoolRig {
    pub(crate) pool: pool_run::Running,
    pub(crate) mining: Proxy,
    pub(crate) declare: Proxy,
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
        config.pool.data_dir = folder.path().to_owned();
        config.pool.drain_s = 1;
        config.node.kind = NodeKind::Embedded;
        config.listen.address = any;
        config.declare.address = any;
        config.http.address = any;
        config.difficulty.floor_log2 = -24;
        config.difficulty.shares_per_minute = 120;
        change(&mut config);
        let shared = Arc::clone(chain) as Arc<dyn Node>;
        let stop = CancellationToken::new();
        let pool = pool_run::start_behind(&config, &stop, |_| shared).await.unwrap();
        let mining = Proxy::to(pool.listen).await;
        let declare = Proxy::to(pool.declare.unwrap()).await;
        Self { pool, mining, declare, _folder: folder }
    }

    pub(crate) fn set(&self, way: proxy::Way) {
        self.mining.set(way);
        self.declare.set(way);
    }

    /// How the house knows it.
    pub(crate) fn options(&self, name: &str) -> (PoolOptions, AuthorityPublicKey) {
        let limit =
            OutputLimit { own: OWN_SCRIPT.to_vec(), known: Vec::new(), others_max_percent: 100 };
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

/// The house's way to its node.
pub(crate) struct NodeWay {
    node: Arc<dyn Node>,
    pub(crate) state: AtomicU8,
    /// Wakes who waits for a template when the way changes.
    changed: watch::Sender<()>,
}

pub(crate) const UP: u8 = 0;
pub(crate) const DEAD: u8 = 1;
pub(crate) const STALLED: u8 = 2;

impl NodeWay {
    pub(crate) fn new(node: Arc<dyn Node>) -> Arc<Self> {
        Arc::new(Self { node, state: AtomicU8::new(UP), changed: watch::Sender::new(()) })
    }

    pub(crate) fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
        self.changed.send_replace(());
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
}

impl Node for NodeWay {
    fn name(&self) -> String {
        "the house's node".to_owned()
    }
    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        Box::pin(self.through(self.node.chain_info()))
    }
    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        Box::pin(self.through(self.node.next_template(after)))
    }
    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        Box::pin(self.through(self.node.submit_block(block)))
    }
    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        Box::pin(self.through(self.node.check_block(block)))
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
            room: Room { connections_max: 64, per_address_max: 64 },
            policy: Policy {
                shares_per_minute: 240.0,
                floor: Difficulty::from_log2(-24),
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
            Err(_) => panic!("never: {what}; {:#?}", self.view()),
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

    pub(crate) async fn device(&self, name: &str) -> Device {
        // The door opens with the first work.
        let mut work = self.running.work.clone();
        timeout(PATIENCE, work.wait_for(Option::is_some)).await.unwrap().unwrap();
        let at = self.running.sv2;
        let mut options = CpuMinerOptions::new(&at.ip().to_string(), at.port(), self.authority);
        options.user_identity = name.to_owned();
        options.duty_percent = 20;
        let report = Arc::new(MinerReport::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(cpu_miner::run(options, Arc::clone(&report), stop.clone()));
        Device { report, stop, task }
    }
}

/// A Stratum V2 device that hashes.
pub(crate) struct Device {
    pub(crate) report: Arc<MinerReport>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Device {
    /// It never had to connect again, and nothing that it found was refused but what came behind a tip.
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

/// Something that never happens, for `select!`.
pub(crate) async fn never() {
    pending::<()>().await;
}
