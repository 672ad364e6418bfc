//! `job-declarator run`: start order, who owns what, shutdown. The page to read first.
//!
//! One task owns the `Declarator` (`run/core.rs`); links to pools, devices and the node have tasks of their own and
//! talk to it over bounded queues. Work goes to every device at once over a `watch`. What the configuration comes
//! to stands in `run/configured.rs`.
//!
//! Order: data folder, keys, ports, status page; then the node and the pools, whichever has work first; then the
//! doors for devices. Must never open a door without work behind it, nor end because a pool or the node does.

mod configured;
mod core;

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
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::configured::{node_of, settings_of};
pub use self::core::{RefusedPeer, Shown};
use crate::accept::Room;
use crate::blocks::{self, BlocksHandle};
use crate::clock::{Clock, unix_s};
use crate::command::{cancelled_by_signal, wait_for_signal};
use crate::config::Config;
use crate::credit;
use crate::declarator::{Options, Published};
use crate::device::{Dialect, FromDevice, House};
use crate::door::Door;
use crate::feed::{self, NodeFacts};
use crate::folder;
use crate::http;
use crate::keys::IdentityWatch;
use crate::limits::{CORE_QUEUE_MAX, HOUSE_CHANNELS_MAX};
use crate::node::Node;
use crate::report;
use crate::status::{self, Listen};

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

    let Settings { options, authorities, policy, identity, .. } = settings;
    let payout_script = options.payout_script.clone();
    let authority = identity.borrow().authority;
    let (core, published, shown) =
        core::spawn(options, authorities, clock, from_node, from_devices, stop.clone());

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
