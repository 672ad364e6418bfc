//! The pool as a whole: what is started in which order, who owns what, and how it stops. The page to
//! read first. Called by `cli` (`pool run`) and by `demo`.
//!
//! Order matters twice. Starting: both ports are taken first, so that a wrong one is told at once; HTTP
//! answers while the node is waited for; and miners are let in only when the keys, the store, the seen
//! proofs, the node's first template and the blocks of an earlier run are in hand. Stopping: miners first, then the
//! ledger that their last batches need, then the rest.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use job_declarator::accept::Room;
use job_declarator::clock::{Clock, unix_s};
use job_declarator::command::{cancelled_by_signal, wait_for_signal};
use job_declarator::declared::Rule;
use job_declarator::folder;
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes};
use job_declarator::node::{ChainInfo, Node};
use proto::connection::SetupPolicy;
use proto::extranonce::ExtranonceAllocator;
use proto::message::{EXTENSION_WORKER_HASHRATE, setup_flags};
use proto::mining::server::Policy;
use proto::noise::{AuthorityPublicKey, Identity};
use proto::target::Difficulty;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::{self, Facts, Sources};
use crate::block::Blocks;
use crate::board::{BoardHandle, board};
use crate::checks::{Bookkeeping, Checks};
use crate::config::{Config, NodeKind, NodeLogin};
use crate::credit::{Credit, GaveUp};
use crate::custom::Judge;
use crate::declarer::Declarers;
use crate::handshakes::Handshakes;
use crate::keys;
use crate::library;
use crate::limits::{
    CLOSE_WAIT, FILES_RESERVED, LISTEN_BACKLOG, NODE_RETRY_FIRST, NODE_RETRY_MAX,
    NODE_WAIT_SAID_EVERY,
};
use crate::listener::{self, Clients};
use crate::metrics::Metrics;
use crate::miner::Shared;
use crate::pace::Pace;
use crate::places::{ChannelRoom, Places};
use crate::store::Store;
use crate::templates::{self, Published, Templates};
use crate::tokens;

/// What the mining port serves. Where no jobs are declared a client that selects its own work hears so at
/// once.
fn mining_setup(config: &Config) -> SetupPolicy {
    let selection = if config.declare.enabled { setup_flags::REQUIRES_WORK_SELECTION } else { 0 };
    SetupPolicy {
        supported_flags: setup_flags::REQUIRES_STANDARD_JOBS
            | setup_flags::REQUIRES_VERSION_ROLLING
            | selection,
        supported_extensions: &[EXTENSION_WORKER_HASHRATE],
        ..SetupPolicy::MINING
    }
}

/// What the port for declarers serves.
fn declare_setup(config: &Config) -> SetupPolicy {
    SetupPolicy { requires_tx_data: !config.declare.coinbase_only, ..SetupPolicy::JOB_DECLARATION }
}

/// A pool that runs.
pub struct Running {
    /// Where miners connect.
    pub listen: SocketAddr,
    /// Where declarers connect; `None` where no jobs are declared.
    pub declare: Option<SocketAddr>,
    /// Where the API listens.
    pub http: SocketAddr,
    /// Keys, blocks, and the SQLite file if there is one.
    pub data_dir: PathBuf,
    /// No other pool uses the folder while this is open.
    _data_dir_lock: File,
    /// What miners pin.
    pub authority: AuthorityPublicKey,
    /// What is mined.
    pub templates: watch::Receiver<Published>,
    /// What is credited.
    pub store: Store,
    /// Who is connected.
    pub board: BoardHandle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The node that templates come from.
    pub node: Arc<dyn Node>,
    drain: Duration,
    door: JoinHandle<()>,
    declarers_door: Option<JoinHandle<()>>,
    ledger: JoinHandle<Result<(), GaveUp>>,
    blocks: JoinHandle<()>,
    feed: JoinHandle<()>,
    miners_stop: CancellationToken,
    rest_stop: CancellationToken,
}

/// Runs until SIGTERM or Ctrl-C, then drains.
pub async fn run(config: Config) -> Result<()> {
    let shutdown = cancelled_by_signal();
    let running = match start(&config, &shutdown).await {
        Ok(running) => running,
        Err(_) if shutdown.is_cancelled() => {
            info!("stopped before the pool was ready");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    info!(
        listen = %running.listen,
        declare = running.declare.map(tracing::field::display),
        http = %running.http,
        authority_key = %running.authority,
        "pool is ready"
    );
    shutdown.cancelled().await;
    // A second signal does not wait.
    tokio::select! {
        stopped = running.stop() => {
            stopped?;
            info!("stopped");
        }
        () = wait_for_signal() => warn!("stopped at once on a second signal"),
    }
    Ok(())
}

/// Starts everything; `shutdown` gives up a start that waits for a node or a store.
pub async fn start(config: &Config, shutdown: &CancellationToken) -> Result<Running> {
    start_behind(config, shutdown, |node| node).await
}

/// As `start`, with everything that is asked of the node going through what `front` makes of it.
#[expect(
    clippy::too_many_lines,
    reason = "the order of a start is one story, cut where a name helps"
)]
pub async fn start_behind(
    config: &Config,
    shutdown: &CancellationToken,
    front: impl FnOnce(Arc<dyn Node>) -> Arc<dyn Node>,
) -> Result<Running> {
    // What can be known to be wrong before anything is made or waited for.
    config.payout_script(config.network())?;
    if config.node.kind == NodeKind::BitcoinCore {
        config.node_login()?;
    }
    let declarers_max = if config.declare.enabled { config.declare.max_connections } else { 0 };
    raise_file_limit(config.listen.max_connections + declarers_max);
    let metrics = Arc::new(Metrics::new());
    let data_dir = config.pool.data_dir.as_path();
    let data_dir_lock = folder::take(data_dir, "pool.data_dir")?;
    let door = bind("listen.address", config.listen.address)?;
    let listen = door.local_addr().context("the address for miners")?;
    let declarers_door = match config.declare.enabled {
        true => Some(bind("declare.address", config.declare.address)?),
        false => None,
    };
    let declare = declarers_door.as_ref().map(TcpSocket::local_addr).transpose();
    let declare = declare.context("the address for declarers")?;
    let pages = job_declarator::http::bind(config.http.address).await?;
    let http = pages.local_addr().context("the HTTP address listened on")?;

    let rest_stop = CancellationToken::new();
    // What was started ends with a start that fails.
    let unless_started = rest_stop.clone().drop_guard();
    let (authority, identity) = load_keys(config, &metrics, &rest_stop)?;
    let store = Store::open(config.store_url()?.expose()).await.context("opening the store")?;
    let epoch = store.begin_epoch(config.pool.node_id).await.context("counting this start")?;
    let credit = Credit::load(store.clone(), config.pool.node_id, Arc::clone(&metrics))
        .await
        .context("rebuilding credit")?;
    let (credit, ledger) = credit.spawn(rest_stop.clone());
    let (board, board_task) = board(Arc::clone(&metrics));
    tokio::spawn(board_task);

    let node_view = watch::Sender::new(None);
    let sources = Sources {
        facts: facts(config, &authority, listen, declare),
        metrics: Arc::clone(&metrics),
        board: board.clone(),
        store: store.clone(),
        node: node_view.subscribe(),
        ledger: credit.failing_since(),
    };
    tokio::spawn(api::serve(pages, sources, rest_stop.clone()));

    let (node, chain) = connect_node(config, shutdown, front).await?;
    let payout_script = config.payout_script(chain.network)?.into_bytes();
    let book = Bookkeeping {
        network: chain.network,
        node_id: config.pool.node_id,
        rule: Arc::new(Rule::whole(payout_script.clone())),
    };

    let miners_stop = shutdown.child_token();
    let blocks =
        Blocks::new(data_dir, vec![Arc::clone(&node)], store.clone(), Arc::clone(&metrics))
            .context("the folder of found blocks")?;
    let (blocks, blocks_task) =
        blocks.spawn(rest_stop.clone()).context("blocks of an earlier run")?;

    let tag = config.pool.tag.clone().into_bytes();
    let metered = Arc::clone(&metrics);
    let mut templates =
        Templates::new(Arc::clone(&node), chain.network, payout_script, tag, metered, node_view);
    let first = templates.first(shutdown).await.context("stopped before the first template")?;
    let feed = templates.spawn(first, rest_stop.clone());

    let listener = door
        .listen(LISTEN_BACKLOG)
        .map_err(|error| listener::cannot_bind("listen.address", listen, &error))?;
    let declarers_listener = declarers_door.map(|door| {
        door.listen(LISTEN_BACKLOG).map_err(|error| {
            listener::cannot_bind("declare.address", config.declare.address, &error)
        })
    });
    let declarers_listener = declarers_listener.transpose()?;
    let clock = Clock::start();
    let published = feed.templates.clone();
    let tokens = tokens::spawn(published.clone(), clock, Arc::clone(&metrics), rest_stop.clone());
    let judge = Judge {
        book: book.clone(),
        tokens: tokens.clone(),
        templates: published.clone(),
        coinbase_only: config.declare.coinbase_only,
        board: board.clone(),
    };
    let shared = Shared {
        policy: Arc::new(policy(config)),
        setup: mining_setup(config),
        identity,
        calls: templates::call(published.clone(), miners_stop.clone()),
        judge: declare.map(|_| Arc::new(judge)),
        extranonces: ExtranonceAllocator::new(config.pool.node_id, epoch),
        credit,
        places: Arc::new(Places::new(channel_room(config), Arc::clone(&metrics))),
        blocks,
        board: board.clone(),
        metrics: Arc::clone(&metrics),
        handshake_deadline: Duration::from_secs(config.listen.handshake_deadline_s.into()),
        first_channel: Duration::from_secs(config.listen.first_channel_s.into()),
        pace: Pace::default(),
        handshakes: Handshakes::start().context("threads for handshakes")?,
        drain: Duration::from_secs(config.pool.drain_s.into()),
        complain_at_ms: AtomicU64::new(0),
        clock,
        shutdown: miners_stop.clone(),
    };
    let shared = Arc::new(shared);
    let miners = Clients::Miners(Arc::clone(&shared));
    let door = tokio::spawn(listener::serve(listener, room(config), miners));
    let declarers_door = match declarers_listener {
        None => None,
        Some(listener) => {
            let library =
                library::spawn(published.clone(), Arc::clone(&metrics), rest_stop.clone());
            let (node, metrics) = (Arc::clone(&node), Arc::clone(&metrics));
            let checks =
                Checks::new(node, book, published, tokens, library, board.clone(), metrics);
            let declarers =
                Declarers { pool: shared, setup: declare_setup(config), checks: Arc::new(checks) };
            let clients = Clients::Declarers(Arc::new(declarers));
            Some(tokio::spawn(listener::serve(listener, declarers_room(config), clients)))
        }
    };
    unless_started.disarm();
    Ok(Running {
        listen,
        declare,
        http,
        data_dir: data_dir.to_owned(),
        _data_dir_lock: data_dir_lock,
        authority,
        templates: feed.templates,
        store,
        board,
        metrics,
        node,
        drain: Duration::from_secs(config.pool.drain_s.into()),
        door,
        declarers_door,
        ledger,
        blocks: blocks_task,
        feed: feed.task,
        miners_stop,
        rest_stop,
    })
}

impl Running {
    /// Drains and stops. When this returns, every acknowledged share is committed and every found block
    /// is settled or on disk.
    ///
    /// # Errors
    /// Accepted shares were given up: the store was away, or the ledger's task failed.
    pub async fn stop(self) -> Result<()> {
        self.miners_stop.cancel();
        // Connections may wait for a ledger or a node that only the second stop frees.
        let doors = async {
            let miners = self.door.await;
            match self.declarers_door {
                Some(declarers) => miners.and(declarers.await),
                None => miners,
            }
        };
        match tokio::time::timeout(self.drain + CLOSE_WAIT, doors).await {
            Ok(how) => ended("listener", how),
            Err(_) => {
                warn!("some connections did not end in time; their last shares are not credited")
            }
        }
        self.rest_stop.cancel();
        let ledger = self.ledger.await;
        ended("blocks", self.blocks.await);
        ended("templates", self.feed.await);
        self.store.close().await;
        Ok(ledger.context("the ledger's task")??)
    }
}

fn ended(task: &str, how: Result<(), tokio::task::JoinError>) {
    if let Err(error) = how {
        warn!(task, %error, "a task failed");
    }
}

/// Takes a port for miners or declarers and does not open it yet: whoever connects before there is work is
/// refused and goes to its next pool, instead of waiting for a handshake. `key` is its setting.
fn bind(key: &str, address: SocketAddr) -> Result<TcpSocket> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // As every server: a restart finds the port free though old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    bound().map_err(|error| listener::cannot_bind(key, address, &error).into())
}

fn policy(config: &Config) -> Policy {
    Policy {
        shares_per_minute: f64::from(config.difficulty.shares_per_minute),
        floor: Difficulty::from_log2(config.difficulty.floor_log2),
        ceiling: Difficulty::from_log2(config.difficulty.ceiling_log2),
        ..Policy::default()
    }
}

fn room(config: &Config) -> Room {
    Room {
        connections_max: config.listen.max_connections as usize,
        per_household_max: config.listen.max_connections_per_address as usize,
    }
}

fn declarers_room(config: &Config) -> Room {
    Room {
        connections_max: config.declare.max_connections as usize,
        per_household_max: config.declare.max_connections_per_address as usize,
    }
}

fn channel_room(config: &Config) -> ChannelRoom {
    ChannelRoom {
        channels_max: config.listen.max_channels as usize,
        per_household_max: config.listen.max_channels_per_address as usize,
    }
}

/// Every connection is a file to the system, and a found block needs one at any time: asks for all that
/// the system gives and says so if it is less than the configuration promises.
fn raise_file_limit(connections_max: u32) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(%error, "the limit on open files stays as it is");
    }
    let wanted = u64::from(connections_max) + FILES_RESERVED;
    if let Some(limit) = getrlimit(Resource::Nofile).current.filter(|limit| *limit < wanted) {
        warn!(
            limit,
            wanted, "fewer open files than listen.max_connections needs: raise `ulimit -n`"
        );
    }
}

fn facts(
    config: &Config,
    authority: &AuthorityPublicKey,
    listen: SocketAddr,
    declare: Option<SocketAddr>,
) -> Facts {
    Facts {
        version: env!("CARGO_PKG_VERSION"),
        tag: config.pool.tag.clone(),
        authority_public_key: authority.to_string(),
        listen,
        declare,
        started_at: u64::from(unix_s()),
    }
}

/// Who we are, and a watch on the files that say so.
fn load_keys(
    config: &Config,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> Result<(AuthorityPublicKey, watch::Receiver<Arc<Identity>>)> {
    let files = config.key_files();
    let identity = files.load_or_make(unix_s()).context("the pool's keys")?;
    let authority = identity.authority;
    info!(authority_key = %authority, "miners know this pool by its authority key");
    let watched = keys::watch(files, identity, Arc::clone(metrics));
    let identity = watched.subscribe();
    tokio::spawn(watched.run(stop.clone()).context("catching SIGHUP")?);
    Ok((authority, identity))
}

/// The node, once it answers and is known to be on the network that was configured.
async fn connect_node(
    config: &Config,
    shutdown: &CancellationToken,
    front: impl FnOnce(Arc<dyn Node>) -> Arc<dyn Node>,
) -> Result<(Arc<dyn Node>, ChainInfo)> {
    let node = front(match config.node.kind {
        NodeKind::Embedded => Arc::new(embedded_chain(config, &config.pool.data_dir)?),
        NodeKind::BitcoinCore => with_ipc(config, bitcoin_core(config)?)?,
    });
    let chain = wait_for_chain(&*node, shutdown).await?;
    config.check_network(&node.name(), chain.network)?;
    Ok((node, chain))
}

fn embedded_chain(config: &Config, data_dir: &Path) -> Result<EmbeddedChain> {
    let options = EmbeddedOptions {
        tx_count: config.embedded.tx_count as usize,
        block_hashes: config.embedded.block_hashes,
        data_dir: Some(data_dir.join("chain")),
        clock: Arc::new(unix_s),
        ..EmbeddedOptions::default()
    };
    EmbeddedChain::new(options).context("the development chain")
}

fn bitcoin_core(config: &Config) -> Result<RpcNode> {
    let auth = match config.node_login()? {
        NodeLogin::Cookie(file) => RpcAuth::CookieFile(file),
        NodeLogin::Password { user, password } => {
            RpcAuth::UserPass { user, password: password.expose().to_owned() }
        }
    };
    let options = RpcOptions { url: config.node.url.clone(), auth, times: RpcTimes::default() };
    RpcNode::new(options).context("node.url")
}

/// Has the node check declared jobs over its socket, if one is set.
#[cfg(feature = "ipc")]
fn with_ipc(config: &Config, node: RpcNode) -> Result<Arc<dyn Node>> {
    use job_declarator::node::ipc::{IpcCheck, IpcTimes, WithIpc};
    let Some(socket) = config.ipc_socket() else { return Ok(Arc::new(node)) };
    let ipc = IpcCheck::start(socket, IpcTimes::default()).context("node.ipc_socket")?;
    Ok(Arc::new(WithIpc::new(node, ipc)))
}

/// The configuration refuses a socket.
#[cfg(not(feature = "ipc"))]
fn with_ipc(_: &Config, node: RpcNode) -> Result<Arc<dyn Node>> {
    Ok(Arc::new(node))
}

/// Where the node stands, waiting for one that is starting or catching up.
async fn wait_for_chain(node: &dyn Node, shutdown: &CancellationToken) -> Result<ChainInfo> {
    let mut pause = NODE_RETRY_FIRST;
    let mut said: Option<(String, Instant)> = None;
    loop {
        let why = match node.chain_info().await {
            Ok(chain) if !chain.initial_block_download => return Ok(chain),
            Ok(chain) => format!("catching up, at height {}", chain.height),
            Err(error) => error.to_string(),
        };
        // A day of catching up should be seen to go on, and a new reason at once.
        let again = said.as_ref().is_none_or(|(last, at)| {
            let other_reason = last.split(',').next() != why.split(',').next();
            other_reason || at.elapsed() >= NODE_WAIT_SAID_EVERY
        });
        if again {
            warn!(node = node.name(), why, "waiting for the node");
            said = Some((why.clone(), Instant::now()));
        }
        tokio::select! {
            () = shutdown.cancelled() => bail!("stopped while waiting for the node: {why}"),
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(NODE_RETRY_MAX),
        }
    }
}
