//! A pool process for a measurement: started from the binary beside our own, on the embedded chain or a node,
//! in a folder that goes away with it, with the difficulty pinned. Used by the program `load`, by
//! `compare --pool`, which starts another's pool in the same way, and by `house.rs`, which starts a declarator so.
//!
//! Must never leave a pool behind, and never use one that it did not start.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::declarers::{DeclarerOptions, Declaring};
use super::options::Options;

/// From the start until the pool listens.
const START_MAX: Duration = Duration::from_secs(60);
/// From SIGTERM to the end; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Hashes for a block where no tips are asked for: none is found by chance.
const NO_BLOCKS: u64 = 1_000_000_000_000;
/// Hashes for a block where they are: a tenth of a second of the finder.
const BLOCK_HASHES: u64 = 500_000;
/// Connections beyond the honest ones that the pool has room for: the finder, and attackers up to the
/// limit that the attack then meets.
const ROOM: usize = 2_000;
/// Practically every hash is a share.
const DIFFICULTY_LOG2: i16 = -32;
/// A page of metrics, at most.
const PAGE_MAX: u64 = 4 * 1024 * 1024;
const PAGE_DEADLINE: Duration = Duration::from_secs(10);
/// The same on the port of job declaration, whose limit for all must not be below that for one address.
const DECLARERS_ROOM: usize = 250;

/// How the pool is set up.
#[derive(Debug, Clone, Args)]
pub struct LocalPool {
    /// The pool's binary [default: "pool" beside this one]
    #[arg(long, value_name = "FILE")]
    pub pool: Option<PathBuf>,
    /// Difficulty of every share as a power of two: at -32 practically every hash is one.
    #[arg(long, default_value_t = DIFFICULTY_LOG2, allow_hyphen_values = true)]
    pub difficulty_log2: i16,
    /// Transactions in a template: 4,000 make a merkle path of 12.
    #[arg(long, default_value_t = 4_000)]
    pub tx_count: u32,
    /// Where credit is kept, as store.url [default: SQLite in a folder that is removed]
    #[arg(long, value_name = "URL")]
    pub store_url: Option<String>,
    /// Where the temporary folder is made: the disk that commits go to [default: the system's].
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

impl LocalPool {
    /// As the arguments have it by default, but for the binary and the size of a template.
    #[must_use]
    pub fn of(pool: Option<PathBuf>, tx_count: u32) -> Self {
        Self { pool, difficulty_log2: DIFFICULTY_LOG2, tx_count, store_url: None, folder: None }
    }
}

/// A node that the pool is to use instead of a chain of its own.
#[derive(Debug, Clone)]
pub struct NodeAt {
    /// `http://` address of its JSON-RPC.
    pub url: String,
    /// Its cookie.
    pub cookie_file: PathBuf,
    /// Where rewards go, on regtest.
    pub payout_address: String,
}

/// A pool that runs; stopped when dropped.
pub struct Running {
    process: Child,
    folder: tempfile::TempDir,
    /// Where miners connect.
    pub address: SocketAddr,
    /// Where declarers do, and where its metrics are, if it takes any.
    declares: Option<[SocketAddr; 2]>,
}

impl Running {
    /// Starts the pool for a run with `options` and waits until it listens.
    ///
    /// # Errors
    /// With the last lines that the pool said.
    pub fn start(local: &LocalPool, options: &Options) -> Result<Self> {
        Self::start_on(None, local, options)
    }

    /// The same on `node`, if one is given.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_on(node: Option<&NodeAt>, local: &LocalPool, options: &Options) -> Result<Self> {
        Self::start_for(node, local, options, 0)
    }

    /// The same on `node`, with room for one who declares jobs, such as a home's declarator.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_above(node: &NodeAt, local: &LocalPool, options: &Options) -> Result<Self> {
        Self::start_for(Some(node), local, options, 1)
    }

    /// The same on its own chain, with room for these declarers.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_declaring(
        local: &LocalPool,
        options: &Options,
        declarers: &DeclarerOptions,
    ) -> Result<Self> {
        Self::start_for(None, local, options, declarers.declarers)
    }

    fn start_for(
        node: Option<&NodeAt>,
        local: &LocalPool,
        options: &Options,
        declarers: usize,
    ) -> Result<Self> {
        let binary = match &local.pool {
            Some(binary) => binary.clone(),
            None => beside_us("pool", "cargo build --release -p pool")?,
        };
        let [declare, http] = [free_port()?, free_port()?];
        let config = |folder: &Path, address| {
            let listens = Listens { address, declare, declarers, http };
            let payout = node.map_or("", |node| &node.payout_address);
            format!("[pool]\npayout_address = {payout:?}\n")
                + &config_text(local, options, folder, listens)
                + &chain_text(node, local, options)
        };
        let mut running = Self::launch(&binary, &["run", "-c"], local.folder.as_deref(), config)?;
        running.declares = (declarers > 0).then_some([declare, http]);
        Ok(running)
    }

    /// Starts `binary` with `arguments` and a configuration file behind them, in a new folder, and waits
    /// until it listens at the address that `config` was given.
    ///
    /// # Errors
    /// With the last lines that it said.
    pub fn launch(
        binary: &Path,
        arguments: &[&str],
        under: Option<&Path>,
        config: impl FnOnce(&Path, SocketAddr) -> String,
    ) -> Result<Self> {
        let folder = match under {
            Some(under) => tempfile::tempdir_in(under),
            None => tempfile::tempdir(),
        };
        let folder = folder.context("a temporary folder")?;
        let address = free_port()?;
        let path = folder.path().join("config.toml");
        fs::write(&path, config(folder.path(), address)).context("writing its configuration")?;
        let log = File::create(folder.path().join("log")).context("its log")?;
        let process = Command::new(binary)
            .args(arguments)
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("its log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut running = Self { process, folder, address, declares: None };
        running.wait_until_it_listens()?;
        Ok(running)
    }

    /// Where declarers connect, and where its metrics are, if it takes any.
    #[must_use]
    pub fn declares(&self) -> Option<[SocketAddr; 2]> {
        self.declares
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What declarers have to know of it; `None` if there are to be none.
    #[must_use]
    pub fn declaring(
        &self,
        local: &LocalPool,
        options: &Options,
        declarers: DeclarerOptions,
    ) -> Option<Declaring> {
        self.declares.map(|[declare, http]| Declaring {
            options: declarers,
            declare,
            http,
            chain: self.folder.path().join("data").join("chain"),
            tx_count: local.tx_count,
            block_hashes: block_hashes(options),
        })
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let end = Instant::now() + START_MAX;
        loop {
            if TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait().context("waiting for it")? {
                bail!("it ended with {status}:\n{}", self.last_words());
            }
            ensure!(Instant::now() < end, "it does not listen:\n{}", self.last_words());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// What it said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; then there is nobody to tell.
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + STOP_MAX;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() >= end {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// The program `name` in the folder of this one.
///
/// # Errors
/// There is none; `how` builds it.
pub fn beside_us(name: &str, how: &str) -> Result<PathBuf> {
    let ours = std::env::current_exe().context("where this program is")?;
    let binary = ours.with_file_name(name);
    ensure!(
        binary.is_file(),
        "there is no {}: build it with `{how}`, or name one",
        binary.display()
    );
    Ok(binary)
}

/// A page of a process on this machine, its head included; asked a few times in a run.
pub(super) fn page(http: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&http, PAGE_DEADLINE)?;
    stream.set_read_timeout(Some(PAGE_DEADLINE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut page = String::new();
    stream.take(PAGE_MAX).read_to_string(&mut page)?;
    Ok(page)
}

/// A series of a page of metrics. What was never counted is 0, and may not be on the page.
pub(super) fn series(page: &str, name: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// A port that is free now. Another process may be quicker; then the pool says so.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    listener.local_addr().context("a free port")
}

/// Of a block of its chain.
pub(super) fn block_hashes(options: &Options) -> u64 {
    if options.tips_every.is_some() { BLOCK_HASHES } else { NO_BLOCKS }
}

/// The pool's ports and who comes to them.
struct Listens {
    address: SocketAddr,
    declare: SocketAddr,
    declarers: usize,
    http: SocketAddr,
}

fn config_text(local: &LocalPool, options: &Options, folder: &Path, listens: Listens) -> String {
    let Listens { address, declare, declarers, http } = listens;
    let data_dir = folder.join("data");
    let connections = options.connections + declarers + ROOM;
    let declare = match declarers {
        0 => "enabled = false".to_owned(),
        _ => format!("address = \"{declare}\"\nmax_connections = {}", declarers + DECLARERS_ROOM),
    };
    let LocalPool { difficulty_log2, store_url, .. } = local;
    let store = store_url.as_deref().unwrap_or_default();
    format!(
        "data_dir = {data_dir:?}\n\
         [listen]\naddress = \"{address}\"\nmax_connections = {connections}\n\
         max_connections_per_address = 1000\n\
         [declare]\n{declare}\n\
         [http]\naddress = \"{http}\"\n\
         [store]\nurl = {store:?}\n\
         [difficulty]\nfloor_log2 = {difficulty_log2}\nceiling_log2 = {difficulty_log2}\n\
         [log]\nfilter = \"warn\"\n"
    )
}

/// The sections of the chain or of the node.
fn chain_text(node: Option<&NodeAt>, local: &LocalPool, options: &Options) -> String {
    match node {
        None => {
            let block_hashes = block_hashes(options);
            let tx_count = local.tx_count;
            format!(
                "[node]\nkind = \"embedded\"\n\
                 [embedded]\ntx_count = {tx_count}\nblock_hashes = {block_hashes}\n"
            )
        }
        Some(NodeAt { url, cookie_file, .. }) => format!(
            "[node]\nkind = \"bitcoin-core\"\nnetwork = \"regtest\"\nurl = {url:?}\n\
             cookie_file = {cookie_file:?}\n"
        ),
    }
}
