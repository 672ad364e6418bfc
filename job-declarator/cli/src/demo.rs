//! `job-declarator demo`: a development chain, a pool, a declarator between them and a CPU miner, all in
//! this process, so that a person sees a block of his own choice declared, promised and mined before he sets
//! anything up. Uses nothing that `job-declarator run` and `pool run` do not.
//!
//! Must never touch a real network's coins: the chain is regtest, made and checked in this process.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, ScriptBuf};
use job_declarator::accept::Room;
use job_declarator::blocks::BlockState;
use job_declarator::clock::unix_s;
use job_declarator::command::cancelled_by_signal;
use job_declarator::config::Config;
use job_declarator::credit;
use job_declarator::declarator::{Mode, Options, OutputLimit, PoolOptions, Switch};
use job_declarator::node::Node;
use job_declarator::run::{self, PageSettings, Running, Settings, Shown};
use job_declarator::upstream::{Kind, Source};
use pool::config::{Config as PoolConfig, NodeKind};
use pool::cpu_miner::{self, CpuMinerOptions, MinerReport};
use pool::demo::{
    FLOOR_LOG2, SHARES_PER_MINUTE, chains_block_hashes, device_host, loopback_of, rate_for_people,
    temporary_folder,
};
use proto::mining::server::Policy;
use proto::noise::AuthorityPublicKey;
use proto::target::Difficulty;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// What the command line says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// `None`: until a signal.
    pub time: Option<Duration>,
    /// One JSON object on stdout at the end, nothing else there.
    pub json: bool,
    /// Where Stratum V2 devices connect.
    pub sv2: SocketAddr,
    /// Where Stratum V1 devices connect.
    pub sv1: SocketAddr,
    /// The status page; port 0 takes a free one, so that a demo starts beside whatever else runs here.
    pub http: SocketAddr,
    /// `None`: a temporary folder that goes with the demo.
    pub data_dir: Option<PathBuf>,
    /// Start the CPU miner.
    pub miner: bool,
}

/// What a demo did, as `--json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoResult {
    /// Templates of the house's own node that the pool promised to credit.
    pub jobs_promised: u64,
    /// Good shares of the devices.
    pub shares_found: u64,
    /// Of those that the pool takes, the ones that it acknowledged.
    pub shares_acknowledged: u64,
    /// Those that it refused.
    pub shares_refused: u64,
    /// Blocks that the devices found.
    pub blocks_found: u64,
    /// Blocks that the pool has in the chain.
    pub blocks_accepted: u64,
    /// From the start of the program to the first share that the pool acknowledged; null if there was none.
    pub seconds_to_first_share: Option<f64>,
}

/// How often the screen is looked at anew.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often shares and blocks are summed up in a line.
const SUM_EVERY: Duration = Duration::from_secs(3);
/// A template is this old at least before the next one is declared: often enough to see it.
const REFRESH_MS: u64 = 5_000;
/// How the house is called at its pool.
const USER: &str = "demo";

/// Runs it until its time is over or a signal comes.
///
/// # Errors
/// It did not show what it should.
pub async fn run(options: DemoOptions) -> Result<()> {
    demo(options, cancelled_by_signal()).await.map(drop)
}

/// The same until `shutdown`, with what it did.
///
/// # Errors
/// As `run`: also if it was to stop by itself and no share of an own template was acknowledged.
pub async fn demo(options: DemoOptions, shutdown: CancellationToken) -> Result<DemoResult> {
    let began = Instant::now();
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(temporary_folder()?),
    };
    let data_dir = options.data_dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.0.clone()));
    let data_dir = data_dir.context("a data folder")?;
    let (pool, node) = start_pool(&data_dir.join("pool")).await?;
    let (running, authority) =
        start_declarator(&options, &data_dir.join("home"), &pool, node).await?;

    let mut screen = Screen { out: io::stdout(), quiet: options.json, began };
    screen.welcome(&running, &authority, &options, &data_dir);
    let report = Arc::new(MinerReport::default());
    let miner_stop = CancellationToken::new();
    let mut work = running.work.clone();
    let there_is_work = work.wait_for(Option::is_some);
    if shutdown.run_until_cancelled(there_is_work).await.is_none_or(|work| work.is_err()) {
        bail!("stopped before there was work");
    }
    let miner = options.miner.then(|| {
        let at = loopback_of(running.sv2);
        let mut mining = CpuMinerOptions::new(&at.ip().to_string(), at.port(), authority);
        mining.user_identity = "cpu".to_owned();
        tokio::spawn(cpu_miner::run(mining, Arc::clone(&report), miner_stop.clone()))
    });
    let first = watch(&running, &report, &options, &mut screen, &shutdown).await;
    miner_stop.cancel();
    if let Some(miner) = miner {
        miner.await.context("the built-in miner")??;
    }
    let shown = running.shown.clone();
    running.stop().await;
    let view = shown.borrow().view.clone();
    let blocks_accepted = pool.store.totals().await.context("reading the store")?.blocks_accepted;
    pool.stop().await?;

    let tally = view.pools.first().map(|pool| pool.tally.clone()).unwrap_or_default();
    let result = DemoResult {
        jobs_promised: tally.promised,
        shares_found: view.tally.shares,
        shares_acknowledged: tally.acknowledged,
        shares_refused: tally.refused_in_all(),
        blocks_found: view.tally.blocks,
        blocks_accepted,
        seconds_to_first_share: first.map(|at| at.duration_since(began).as_secs_f64()),
    };
    if options.json {
        let json = serde_json::to_string(&result).context("writing the result")?;
        writeln!(io::stdout(), "{json}").context("writing the result")?;
    } else {
        screen.farewell(&result);
    }
    if options.time.is_some() && (result.jobs_promised == 0 || result.shares_acknowledged == 0) {
        let why = if options.miner { "" } else { ": no device mined" };
        bail!("no share of an own template was acknowledged in the time given{why}");
    }
    Ok(result)
}

/// A pool on a chain of its own, and the way to that chain for the declarator.
async fn start_pool(data_dir: &Path) -> Result<(pool::run::Running, Arc<dyn Node>)> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = PoolConfig::default();
    config.pool.data_dir = data_dir.to_owned();
    config.pool.drain_s = 2;
    config.node.kind = NodeKind::Embedded;
    config.embedded.block_hashes = chains_block_hashes(data_dir)?;
    config.listen.address = any;
    config.declare.address = any;
    config.http.address = any;
    config.difficulty.floor_log2 = FLOOR_LOG2;
    config.difficulty.shares_per_minute = SHARES_PER_MINUTE;
    let seen = OnceLock::new();
    let stop = CancellationToken::new();
    let front = |node: Arc<dyn Node>| Arc::clone(seen.get_or_init(|| node));
    let pool = pool::run::start_behind(&config, &stop, front).await.context("the demo's pool")?;
    let node = seen.into_inner().context("the demo's chain")?;
    Ok((pool, node))
}

async fn start_declarator(
    options: &DemoOptions,
    data_dir: &Path,
    pool: &pool::run::Running,
    node: Arc<dyn Node>,
) -> Result<(Running, AuthorityPublicKey)> {
    let mut config = Config::default();
    config.declarator.data_dir = data_dir.to_owned();
    config.node.kind = NodeKind::Embedded;
    // Not where the pool's play money goes, so that the page shows whom a block pays.
    let payout_script =
        ScriptBuf::new_p2wsh(&ScriptBuf::from_bytes(b"home".to_vec()).wscript_hash());
    let payout_script = payout_script.into_bytes();
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("making the data folder {}", data_dir.display()))?;
    let identity = config.key_files().load_or_make(unix_s()).context("the declarator's keys")?;
    let authority = identity.authority;
    // A demo does not outlive its certificate: the last value stays.
    let (_, identity) = watch::channel(Arc::new(identity));
    let declare = pool.declare.context("the pool takes declared jobs")?;
    let pool_options = PoolOptions {
        name: "the demo's pool".to_owned(),
        address: loopback_of(pool.listen).to_string(),
        declare_address: Some(loopback_of(declare).to_string()),
        user: USER.to_owned(),
        limit: OutputLimit {
            own: payout_script.clone(),
            known: Vec::new(),
            others_max_percent: 100,
            network: config.network(),
        },
    };
    let api = format!("http://{}", pool.http).parse().context("the pool's own count")?;
    let asked = credit::Asked::new(0, pool_options.name.clone(), api, USER).context("a user")?;
    let settings = Settings {
        options: Options {
            pools: vec![pool_options],
            payout_script,
            tag: b"/my own template/".to_vec(),
            mode: Mode::FullTemplate,
            refresh_ms: REFRESH_MS,
            seed: 1,
        },
        authorities: vec![pool.authority],
        network: config.network(),
        sv2: options.sv2,
        sv1: Some(options.sv1),
        room: Room { connections_max: 1_000, per_household_max: 250 },
        policy: Policy {
            shares_per_minute: f64::from(SHARES_PER_MINUTE),
            floor: Difficulty::from_log2(FLOOR_LOG2),
            ..Policy::default()
        },
        handshake_deadline: Duration::from_secs(10),
        first_channel: Duration::from_secs(600),
        data_dir: data_dir.to_owned(),
        identity,
        page: Some(PageSettings {
            address: options.http,
            hosts: Vec::new(),
            device_host: None,
            apis: vec![asked],
        }),
    };
    let running = run::start(settings, node).await.map_err(in_words_of_a_demo)?;
    Ok((running, authority))
}

/// Addresses are a demo's options, not settings of a file.
fn in_words_of_a_demo(error: anyhow::Error) -> anyhow::Error {
    let taken = error.downcast_ref::<io::Error>().map(io::Error::kind);
    match taken == Some(io::ErrorKind::AddrInUse) {
        true => error.context("is another declarator running? If so, see --sv2 and --sv1"),
        false => error,
    }
}

/// Until the time is up or somebody stops it; when the first share was acknowledged.
async fn watch(
    running: &Running,
    report: &MinerReport,
    options: &DemoOptions,
    screen: &mut Screen<impl Write>,
    shutdown: &CancellationToken,
) -> Option<Instant> {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut newest = running.blocks.newest();
    let mut told = Told::default();
    let mut first = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return first,
            _ = look.tick() => {}
        }
        let shown = Arc::clone(&running.shown.borrow());
        let acknowledged = shown.view.pools.first().map_or(0, |pool| pool.tally.acknowledged);
        if acknowledged > 0 && first.is_none() {
            first = Some(Instant::now());
        }
        screen.look(&shown, report, &mut told);
        if newest.has_changed().unwrap_or(false) {
            let block = newest.borrow_and_update().clone();
            if let Some(block) = block.filter(|block| block.state == BlockState::Accepted) {
                screen.block(&block, &mut told);
            }
        }
        if options.time.is_some_and(|limit| screen.began.elapsed() >= limit) {
            return first;
        }
    }
}

/// What was shown already.
#[derive(Default)]
struct Told {
    switches: usize,
    promised: u64,
    devices: usize,
    acknowledged: u64,
    summed_at: Option<Instant>,
    block: bool,
}

/// What a person reads: at most 80 columns, so that nothing wraps. Silent with `--json`.
struct Screen<W> {
    out: W,
    quiet: bool,
    began: Instant,
}

impl<W: Write> Screen<W> {
    fn say(&mut self, line: &str) {
        if !self.quiet {
            // Whoever read has gone (`| head`): the demo goes on without a reader.
            let _ = writeln!(self.out, "{line}");
        }
    }

    fn event(&mut self, line: &str) {
        self.say(&format!("{:>6.1} s  {line}", self.began.elapsed().as_secs_f64()));
    }

    fn welcome(
        &mut self,
        running: &Running,
        authority: &AuthorityPublicKey,
        options: &DemoOptions,
        data_dir: &Path,
    ) {
        let host = device_host(running.sv2);
        self.say("Smallholder demo: a node, a pool, and your declarator between them.");
        self.say("Nothing here is real money. Stop with Ctrl-C.");
        self.say("");
        self.say("Four fields for a Stratum V2 device (Bitaxe: AxeOS 2.14 or later):");
        self.say(&format!("    host            {host}"));
        self.say(&format!("    port            {}", running.sv2.port()));
        self.say("    user            any name");
        self.say(&format!("    authority key   {authority}"));
        if let Some(sv1) = running.sv1 {
            self.say(&format!("For a Stratum V1 device: {host}:{}, any user", sv1.port()));
        }
        if host.is_loopback() {
            self.say("Other machines cannot reach that host: leave out --sv2 if one shall.");
        }
        self.say("");
        if let Some(http) = running.http {
            self.say(&format!("status page     http://{http}/"));
        }
        self.say(&format!("data            {}", data_dir.display()));
        if !options.miner {
            self.say("No built-in miner: waiting for a device.");
        }
        self.say("");
    }

    fn look(&mut self, shown: &Shown, report: &MinerReport, told: &mut Told) {
        let view = &shown.view;
        for Switch { to, reason, .. } in view.switches.iter().skip(told.switches) {
            self.event(&format!("now mining {}:", in_words(*to)));
            self.say(&format!("          {}", cut(reason, 70)));
        }
        told.switches = view.switches.len();
        let tally = view.pools.first().map(|pool| pool.tally.clone()).unwrap_or_default();
        if told.promised == 0 && tally.promised > 0 {
            let work = view.work.as_ref();
            let height = work.and_then(|work| work.height).unwrap_or_default();
            let transactions = work.and_then(|work| work.transactions).unwrap_or_default();
            self.event("the pool checked your template and promised to credit it");
            self.say(&format!(
                "          block {height}, {transactions} transactions of your node's choice"
            ));
        }
        told.promised = tally.promised;
        let devices: usize = shown.devices.iter().map(|device| device.channels.len()).sum();
        if devices != told.devices {
            told.devices = devices;
            self.event(&counted(devices as u64, "device"));
        }
        let is_due = told.summed_at.is_none_or(|at| at.elapsed() >= SUM_EVERY);
        if tally.acknowledged > told.acknowledged && is_due {
            told.acknowledged = tally.acknowledged;
            told.summed_at = Some(Instant::now());
            let rate = report.status().hashes_per_s as f64;
            let rate = if rate > 0.0 { rate } else { view.fleet };
            self.event(&format!(
                "{} credited, {} promised, {}; {}",
                counted(tally.acknowledged, "share"),
                counted(tally.promised, "template"),
                counted(view.tally.blocks, "block"),
                rate_for_people(rate)
            ));
        }
    }

    /// The first in full; later ones are counted.
    fn block(&mut self, block: &job_declarator::blocks::BlockSeen, told: &mut Told) {
        if std::mem::replace(&mut told.block, true) {
            return;
        }
        let height = block.height.unwrap_or_default();
        self.event(&format!("BLOCK {height} of your template found by {}", cut(&block.finder, 20)));
        self.say(&format!("          {}", BlockHash::from_byte_array(block.hash)));
    }

    fn farewell(&mut self, result: &DemoResult) {
        self.say("");
        self.say(&format!(
            "{} promised, {} acknowledged, {} refused; {} accepted.",
            counted(result.jobs_promised, "template"),
            counted(result.shares_acknowledged, "share"),
            result.shares_refused,
            counted(result.blocks_accepted, "block")
        ));
    }
}

fn in_words(source: Source) -> &'static str {
    match source {
        Source::Solo => "solo on your own node",
        Source::Pool { kind: Kind::Own, .. } => "your template for the pool",
        Source::Pool { kind: Kind::Theirs, .. } => "the pool's own jobs",
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// At most so many characters.
fn cut(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}
