//! A pool process for a measurement: started from the binary beside our own, on the embedded chain in a
//! folder that goes away with it, with the difficulty pinned. Used by the program `load`.
//!
//! Must never leave a pool behind, and never use one that it did not start.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

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

/// How the pool is set up.
#[derive(Debug, Clone, Args)]
pub struct LocalPool {
    /// The pool's binary [default: "pool" beside this one]
    #[arg(long, value_name = "FILE")]
    pub pool: Option<PathBuf>,
    /// Difficulty of every share as a power of two: at -32 practically every hash is one.
    #[arg(long, default_value_t = -32, allow_hyphen_values = true)]
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

/// A pool that runs; stopped when dropped.
pub struct Running {
    process: Child,
    folder: tempfile::TempDir,
    /// Where miners connect.
    pub address: SocketAddr,
}

impl Running {
    /// Starts the pool for a run with `options` and waits until it listens.
    ///
    /// # Errors
    /// With the last lines that the pool said.
    pub fn start(local: &LocalPool, options: &Options) -> Result<Self> {
        let binary = match &local.pool {
            Some(binary) => binary.clone(),
            None => beside_us()?,
        };
        let folder = match &local.folder {
            Some(folder) => tempfile::tempdir_in(folder),
            None => tempfile::tempdir(),
        };
        let folder = folder.context("a temporary folder")?;
        let address = free_port()?;
        let config = folder.path().join("pool.toml");
        fs::write(&config, config_text(local, options, folder.path(), address, free_port()?))
            .context("writing the pool's configuration")?;
        let log = File::create(folder.path().join("log")).context("the pool's log")?;
        let process = Command::new(&binary)
            .args(["run", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("the pool's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut running = Self { process, folder, address };
        running.wait_until_it_listens()?;
        Ok(running)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let end = Instant::now() + START_MAX;
        loop {
            if TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait().context("waiting for the pool")? {
                bail!("the pool ended with {status}:\n{}", self.last_words());
            }
            ensure!(Instant::now() < end, "the pool does not listen:\n{}", self.last_words());
            thread::sleep(LOOK_EVERY);
        }
    }

    /// What the pool said last.
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

fn beside_us() -> Result<PathBuf> {
    let ours = std::env::current_exe().context("where this program is")?;
    let binary = ours.with_file_name("pool");
    ensure!(
        binary.is_file(),
        "there is no {}: build it with `cargo build --release -p pool`, or name one with --pool",
        binary.display()
    );
    Ok(binary)
}

/// A port that is free now. Another process may be quicker; then the pool says so.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    listener.local_addr().context("a free port")
}

fn config_text(
    local: &LocalPool,
    options: &Options,
    folder: &Path,
    address: SocketAddr,
    http: SocketAddr,
) -> String {
    let data_dir = folder.join("data");
    let connections = options.connections + ROOM;
    let block_hashes = if options.tips_every.is_some() { BLOCK_HASHES } else { NO_BLOCKS };
    let LocalPool { difficulty_log2, tx_count, store_url, .. } = local;
    let store = store_url.as_deref().unwrap_or_default();
    format!(
        "[pool]\ndata_dir = {data_dir:?}\n\
         [listen]\naddress = \"{address}\"\nmax_connections = {connections}\n\
         max_connections_per_address = 1000\n\
         [declare]\nenabled = false\n\
         [http]\naddress = \"{http}\"\n\
         [node]\nkind = \"embedded\"\n\
         [store]\nurl = {store:?}\n\
         [difficulty]\nfloor_log2 = {difficulty_log2}\nceiling_log2 = {difficulty_log2}\n\
         [log]\nfilter = \"warn\"\n\
         [embedded]\ntx_count = {tx_count}\nblock_hashes = {block_hashes}\n"
    )
}
