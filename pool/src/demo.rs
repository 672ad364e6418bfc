//! `pool demo`: the whole pool on a development chain of its own, with a CPU miner that connects over
//! real TCP and Noise, so that a person sees a block within seconds and can point a device at it.
//! Called by `cli`; uses nothing that `pool run` does not.
//!
//! Must never touch a real network's coins: the chain is regtest, made and checked in this process.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bitcoin::Address;
use job_declarator::command::cancelled_by_signal;
use proto::template::sha256d;
use ruint::aliases::U256;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::board::ConnectionSnapshot;
use crate::cli::DemoOptions;
use crate::config::{Config, NodeKind};
use crate::cpu_miner::{self, CpuMinerOptions, MinerReport};
use crate::run::{self, Running};
use crate::store::{BlockRecord, BlockState, Totals};
use crate::templates::hex_of;

/// What a demo did, as `--json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoResult {
    /// Shares that their miners were told Success for: each is in the store.
    pub shares_acknowledged: u64,
    /// Shares told no, for any reason.
    pub shares_rejected: u64,
    /// Shares whose header was a block.
    pub blocks_found: u64,
    /// Blocks that the chain took.
    pub blocks_accepted: u64,
    /// Expected hashes behind the credited shares.
    pub credited_work: u64,
    /// From the start of the program to the first Success; null if there was none.
    pub seconds_to_first_share: Option<f64>,
}

/// How often the screen is looked at anew.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often shares and blocks are summed up in a line.
const SUM_EVERY: Duration = Duration::from_secs(3);
/// A block takes this long on average at the measured rate, of which a busy machine's miner reaches a
/// third: none in ten seconds should then still be one run in some hundred.
const BLOCK_S: f64 = 0.6;
/// How long the machine's speed is measured.
const MEASURED_FOR: Duration = Duration::from_millis(100);
/// 2^16 hashes a share at the easiest, so that the first comes at once on the slowest machine.
pub const FLOOR_LOG2: i16 = -16;
/// Two a second: something to look at.
pub const SHARES_PER_MINUTE: u32 = 120;

/// `pool demo`: until its time is up or a signal.
pub async fn run(options: DemoOptions) -> Result<()> {
    demo(options, cancelled_by_signal()).await.map(drop)
}

/// Runs the demo; `Err` also if it was to stop by itself and no share or no block was accepted.
pub async fn demo(options: DemoOptions, shutdown: CancellationToken) -> Result<DemoResult> {
    let began = Instant::now();
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(temporary_folder()?),
    };
    let data_dir = options.data_dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.0.clone()));
    let config = config_of(&options, data_dir.context("a data folder")?)?;
    // The pool's own stop comes after the miner's, so that Ctrl-C ends both in order.
    let pool_stop = CancellationToken::new();
    let running = tokio::select! {
        running = run::start(&config, &pool_stop) => running.map_err(in_words_of_a_demo)?,
        () = shutdown.cancelled() => bail!("stopped before the pool was ready"),
    };
    let mut screen = Screen::new(io::stdout(), options.json, began);
    screen.welcome(&running, &options, &config);

    let before = running.store.totals().await.context("reading the store")?;
    let report = Arc::new(MinerReport::default());
    let miner_stop = CancellationToken::new();
    let miner = options.miner.then(|| {
        let at = loopback_of(running.listen);
        let mining = CpuMinerOptions::new(&at.ip().to_string(), at.port(), running.authority);
        tokio::spawn(cpu_miner::run(mining, Arc::clone(&report), miner_stop.clone()))
    });
    let shown = miner.is_some().then_some(&*report);
    let seen = watch(&running, shown, &options, &mut screen, &shutdown).await;
    miner_stop.cancel();
    if let Some(miner) = miner {
        miner.await.context("the built-in miner")??;
    }
    let metrics = Arc::clone(&running.metrics);
    let store = running.store.clone();
    let after = store.totals().await.context("reading the store")?;
    running.stop().await?;
    seen?;

    let result = DemoResult {
        shares_acknowledged: after.shares - before.shares,
        shares_rejected: metrics.rejected_so_far(),
        blocks_found: after.blocks_found - before.blocks_found,
        blocks_accepted: after.blocks_accepted - before.blocks_accepted,
        credited_work: (after.work - before.work).saturating_to(),
        seconds_to_first_share: metrics
            .first_acknowledged()
            .map(|at| at.saturating_duration_since(began.into_std()).as_secs_f64()),
    };
    if options.json {
        let json = serde_json::to_string(&result).context("writing the result")?;
        writeln!(io::stdout(), "{json}").context("writing the result")?;
    } else {
        screen.farewell(&result);
    }
    if options.time.is_some() && (result.shares_acknowledged == 0 || result.blocks_accepted == 0) {
        let why = if options.miner { "" } else { ": no device mined a block" };
        bail!("no share or no block was accepted in the time given{why}");
    }
    Ok(result)
}

/// Addresses are a demo's options, not settings of a file.
fn in_words_of_a_demo(error: anyhow::Error) -> anyhow::Error {
    let taken = error.downcast_ref::<io::Error>().map(io::Error::kind);
    match taken == Some(io::ErrorKind::AddrInUse) {
        true => error.context("is another pool running? If so, see --listen and --http"),
        false => error,
    }
}

fn config_of(options: &DemoOptions, data_dir: PathBuf) -> Result<Config> {
    let mut config = Config::default();
    config.pool.data_dir = data_dir;
    config.pool.drain_s = 2;
    config.node.kind = NodeKind::Embedded;
    config.embedded.block_hashes = chains_block_hashes(&config.pool.data_dir)?;
    config.embedded.tx_count = options.tx_count;
    config.listen.address = options.listen;
    // Ten above the miners' port, as by default; any, where any will do for those.
    let port = Some(options.listen.port()).filter(|port| *port != 0);
    let port = port.and_then(|port| port.checked_add(10)).unwrap_or(0);
    config.declare.address = SocketAddr::new(options.listen.ip(), port);
    config.http.address = options.http;
    config.difficulty.floor_log2 = FLOOR_LOG2;
    config.difficulty.shares_per_minute = SHARES_PER_MINUTE;
    Ok(config)
}

/// How hard a block of this folder's chain is: as its first demo measured it, so that a later one goes on
/// with the chain however fast the machine is then.
///
/// # Errors
/// The folder cannot be written, or what it says is no number.
pub fn chains_block_hashes(data_dir: &Path) -> Result<u64> {
    let note = data_dir.join("demo-block-hashes");
    if let Ok(text) = std::fs::read_to_string(&note) {
        let known = text.trim().parse();
        return known.with_context(|| format!("{} holds no number", note.display()));
    }
    let measured = block_hashes(measured_hash_rate());
    std::fs::create_dir_all(data_dir)
        .and_then(|()| std::fs::write(&note, format!("{measured}\n")))
        .with_context(|| format!("writing {}", note.display()))?;
    Ok(measured)
}

/// What makes a block take `BLOCK_S` at this rate, as a power of two; bounded so that neither a wrong
/// clock nor a very fast machine makes a chain that no one else could go on with.
fn block_hashes(hashes_per_s: f64) -> u64 {
    let log2 = (hashes_per_s * BLOCK_S).max(1.0).log2().round();
    1 << (log2 as u32).clamp(16, 26)
}

/// Header hashes a second of one core of this machine, as it is loaded now.
fn measured_hash_rate() -> f64 {
    let began = Instant::now();
    let mut header = [0; 80];
    let mut hashes = 0u32;
    while began.elapsed() < MEASURED_FOR {
        for _ in 0..1_000 {
            hashes += 1;
            header[76..].copy_from_slice(&hashes.to_le_bytes());
            std::hint::black_box(sha256d(&header));
        }
    }
    f64::from(hashes) / began.elapsed().as_secs_f64()
}

/// Until the time is up or somebody stops it.
async fn watch(
    running: &Running,
    report: Option<&MinerReport>,
    options: &DemoOptions,
    screen: &mut Screen<impl Write>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let before = running.store.totals().await?;
    let mut known = before.clone();
    let mut summed_at = Instant::now();
    let mut told = running.store.blocks(BLOCKS_LOOKED_AT).await?;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = look.tick() => {}
        }
        screen.connections(&running.board.read().await?);
        let totals = running.store.totals().await?;
        let first = known.shares == before.shares && totals.shares > before.shares;
        if first || (summed_at.elapsed() >= SUM_EVERY && totals.shares != known.shares) {
            screen.sums(&before, &known, &totals, summed_at.elapsed(), report);
            known = totals;
            summed_at = Instant::now();
        }
        let mut blocks = running.store.blocks(BLOCKS_LOOKED_AT).await?;
        blocks.retain(|block| block.state != BlockState::Found);
        let is_new = |block: &&BlockRecord| !told.iter().any(|old| old.hash == block.hash);
        for block in blocks.iter().rev().filter(is_new) {
            screen.block(block, running);
        }
        if blocks.iter().filter(is_new).any(|block| block.state == BlockState::Rejected) {
            bail!("the development chain refused a block of ours: this is a bug, please report it");
        }
        told = blocks;
        if options.time.is_some_and(|limit| screen.began.elapsed() >= limit) {
            return Ok(());
        }
    }
}

/// More than are found between two looks.
const BLOCKS_LOOKED_AT: usize = 32;
/// Lines between two showings of the four fields: with the fields themselves a terminal of 24 lines
/// always has them.
const FIELDS_EVERY_LINES: usize = 14;
/// Workers whose first block is shown in full. Later blocks, and those of more workers, are counted.
const FINDERS_SHOWN_MAX: usize = 16;
/// Connections that one look shows; of a storm the rest passes in silence.
const CONNECTIONS_SHOWN_MAX: usize = 4;

/// What a person reads: at most 80 columns, so that nothing wraps. Silent with `--json`.
struct Screen<W> {
    out: W,
    quiet: bool,
    began: Instant,
    /// What a device needs, and a line that says so.
    fields: Vec<String>,
    /// Since the fields were last shown.
    lines: usize,
    /// Whose first block was shown.
    finders: Vec<String>,
    /// Connections that were shown, while they last.
    connected: Vec<u64>,
}

impl<W: Write> Screen<W> {
    fn new(out: W, quiet: bool, began: Instant) -> Self {
        let (fields, finders, connected) = (Vec::new(), Vec::new(), Vec::new());
        Self { out, quiet, began, fields, lines: 0, finders, connected }
    }

    fn say(&mut self, line: &str) {
        if !self.quiet {
            // Whoever read has gone (`| head`): the demo goes on without a reader.
            let _ = writeln!(self.out, "{line}");
        }
    }

    /// Something happened: one line with its time, and what belongs to it.
    fn event(&mut self, line: &str, details: &[String]) {
        if self.lines + 1 + details.len() > FIELDS_EVERY_LINES {
            self.show_fields();
        }
        self.lines += 1 + details.len();
        self.say(&format!("{:>6.1} s  {line}", self.began.elapsed().as_secs_f64()));
        for detail in details {
            self.say(&format!("    {detail}"));
        }
    }

    fn show_fields(&mut self) {
        self.lines = 0;
        for line in self.fields.clone() {
            self.say(&line);
        }
    }

    fn welcome(&mut self, running: &Running, options: &DemoOptions, config: &Config) {
        let host = device_host(running.listen);
        self.fields = vec![
            "Four fields for a Stratum V2 device (Bitaxe: AxeOS 2.14 or later):".to_owned(),
            format!("    host            {host}"),
            format!("    port            {}", running.listen.port()),
            "    user            anything.device".to_owned(),
            format!("    authority key   {}", running.authority),
        ];
        self.say("Smallholder demo: a whole pool on a development chain of its own.");
        self.say("Nothing here is real money. Stop with Ctrl-C.");
        self.say("");
        self.show_fields();
        if host.is_loopback() {
            self.say("Other machines cannot reach that host: leave out --listen if one shall.");
        }
        self.say("");
        self.say(&format!("API and metrics     http://{}/api/v1/pool  /metrics", running.http));
        self.say(&format!("data                {}", config.pool.data_dir.display()));
        self.say(&format!("transactions        {} in each template", config.embedded.tx_count));
        if !options.miner {
            self.say("No built-in miner: waiting for a device.");
        }
        self.say("");
        // What stands below the fields by now, at most.
        self.lines = 7;
    }

    /// Says who came, once its first channel is open.
    fn connections(&mut self, rows: &[Arc<ConnectionSnapshot>]) {
        self.connected.retain(|id| rows.iter().any(|row| row.id == *id));
        let is_new = |row: &&Arc<ConnectionSnapshot>| !self.connected.contains(&row.id);
        let new: Vec<_> = rows.iter().filter(is_new).cloned().collect();
        let mut shown = 0;
        for row in new {
            let Some(channel) = row.channels.first() else { continue };
            self.connected.push(row.id);
            shown += 1;
            if shown <= CONNECTIONS_SHOWN_MAX {
                let device = cut(&format!("{} {}", row.vendor, row.hardware), 20);
                let user = cut(&name_of(&channel.account, &channel.worker), 32);
                self.event(&format!("{device} mines as {user}"), &[]);
            }
        }
    }

    fn sums(
        &mut self,
        before: &Totals,
        last: &Totals,
        now: &Totals,
        over: Duration,
        report: Option<&MinerReport>,
    ) {
        let shares = now.shares - before.shares;
        let blocks = now.blocks_accepted - before.blocks_accepted;
        let rate = report.map_or_else(
            || approximate(now.work - last.work) / over.as_secs_f64().max(0.25),
            |report| report.status().hashes_per_s as f64,
        );
        // Nothing is known of the rate when the first share comes.
        let rate = match rate > 0.0 {
            true => format!("; hash rate {}", rate_for_people(rate)),
            false => String::new(),
        };
        let (shares, blocks) = (counted(shares, "share"), counted(blocks, "block"));
        self.event(&format!("{shares} acknowledged, {blocks} accepted{rate}"), &[]);
    }

    /// A worker's first block in full; later ones are summed up. A refused one always.
    fn block(&mut self, block: &BlockRecord, running: &Running) {
        let finder = name_of(&block.account, &block.worker);
        let is_first = self.finders.len() < FINDERS_SHOWN_MAX && !self.finders.contains(&finder);
        let state = match block.state {
            BlockState::Accepted | BlockState::Confirmed if is_first => "found and accepted",
            BlockState::Rejected => "found and REJECTED",
            // Of two in one moment the chain takes one.
            BlockState::Accepted
            | BlockState::Confirmed
            | BlockState::Found
            | BlockState::Stale => return,
        };
        let line = format!("BLOCK {} {state}, by {}", block.height, cut(&finder, 28));
        let mut details = vec![format!("hash      {}", hex_of(&block.hash))];
        details.extend(coinbase_of(block, running).iter().flat_map(coinbase_lines));
        self.event(&line, &details);
        self.finders.push(finder);
    }

    fn farewell(&mut self, result: &DemoResult) {
        self.say("");
        self.say(&format!(
            "{} shares acknowledged, {} rejected; {} blocks found, {} accepted.",
            result.shares_acknowledged,
            result.shares_rejected,
            result.blocks_found,
            result.blocks_accepted
        ));
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `account.worker`, as the device was told to say it.
fn name_of(account: &str, worker: &str) -> String {
    match worker {
        "" => account.to_owned(),
        worker => format!("{account}.{worker}"),
    }
}

/// At most so many characters.
fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn coinbase_lines(coinbase: &bitcoin::Transaction) -> Vec<String> {
    let mut lines = vec![format!("coinbase  {}", coinbase.compute_txid())];
    if let Some(input) = coinbase.input.first() {
        let printable = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' };
        let text: String = input.script_sig.as_bytes().iter().map(printable).collect();
        lines.push(format!("scriptSig {}", cut(&text, 60)));
    }
    for output in coinbase.output.iter().filter(|output| output.value.to_sat() > 0) {
        let to = Address::from_script(&output.script_pubkey, bitcoin::Network::Regtest)
            .map_or_else(|_| output.script_pubkey.to_string(), |address| address.to_string());
        lines.push(format!("pays      {} sats to", output.value.to_sat()));
        lines.push(format!("          {}", cut(&to, 64)));
    }
    lines
}

/// The block's first transaction, from the file that was written before the node had it.
fn coinbase_of(block: &BlockRecord, running: &Running) -> Option<bitcoin::Transaction> {
    let bytes = crate::block::read_kept(&running.data_dir, block)?;
    let block: bitcoin::Block = bitcoin::consensus::deserialize(&bytes).ok()?;
    block.txdata.into_iter().next()
}

fn approximate(work: U256) -> f64 {
    work.as_limbs().iter().rev().fold(0.0, |sum, limb| sum * 2f64.powi(64) + *limb as f64)
}

/// Hashes a second with a unit that a person can read.
#[must_use]
pub fn rate_for_people(rate: f64) -> String {
    let units = ["H/s", "kH/s", "MH/s", "GH/s", "TH/s", "PH/s", "EH/s"];
    let mut value = rate;
    let mut unit = 0;
    while value >= 1_000.0 && unit + 1 < units.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// Where this machine reaches a listener of its own.
#[must_use]
pub fn loopback_of(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::from(([127, 0, 0, 1], listen.port())),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, listen.port()).into()
        }
        IpAddr::V4(_) | IpAddr::V6(_) => listen,
    }
}

/// The address that a device in the same network would use: that of the interface with the default
/// route. Asking for the route sends nothing.
#[must_use]
pub fn device_host(listen: SocketAddr) -> IpAddr {
    if !listen.ip().is_unspecified() {
        return listen.ip();
    }
    let route = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
        // A documentation address (RFC 5737): no packet leaves for a UDP connect.
        socket.connect(("192.0.2.1", 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    route().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// Removed when the demo ends.
#[derive(Debug)]
pub struct TemporaryFolder(pub PathBuf);

/// A new folder among the system's temporary ones.
///
/// # Errors
/// It cannot be made.
pub fn temporary_folder() -> Result<TemporaryFolder> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let path = std::env::temp_dir().join(format!("smallholder-demo-{}", hex::encode(random)));
    std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(TemporaryFolder(path))
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_fields_stand_on_a_terminal_of_24_lines_at_any_time() {
        let mut screen = Screen::new(Vec::new(), false, Instant::now());
        screen.fields = ["fields:", "host", "port", "user", "key"].map(str::to_owned).into();
        screen.show_fields();
        for event in 0..200 {
            let details = vec!["detail".to_owned(); [0, 0, 0, 5][event % 4]];
            screen.event("event", &details);
        }
        let text = String::from_utf8(screen.out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() > 400);
        for terminal in lines.windows(24) {
            for field in ["host", "port", "user", "key"] {
                assert!(terminal.contains(&field), "no {field} in {terminal:?}");
            }
        }
    }

    #[test]
    fn who_came_is_said_once_and_a_storm_in_few_lines() {
        use crate::board::{ChannelKind, ChannelSnapshot};
        let row = |id, channels: usize| {
            let channel = ChannelSnapshot {
                id: 2,
                kind: ChannelKind::Extended,
                account: "bc1q".into(),
                worker: "garage".into(),
                difficulty_log2: 8,
                shares_accepted: 0,
                shares_rejected: Default::default(),
                work: String::new(),
                last_share_at: None,
                hash_rate: Default::default(),
            };
            Arc::new(ConnectionSnapshot {
                id,
                peer: SocketAddr::from(([10, 0, 0, 1], 1)),
                vendor: "bitaxe".into(),
                hardware: "BM1370".into(),
                firmware: String::new(),
                opened_at: 0,
                channels: vec![channel; channels],
                custom_jobs: None,
            })
        };
        let mut screen = Screen::new(Vec::new(), false, Instant::now());
        screen.connections(&[row(1, 0)]);
        assert!(screen.out.is_empty(), "it has no channel yet");
        screen.connections(&[row(1, 1)]);
        screen.connections(&[row(1, 1)]);
        let said = String::from_utf8(std::mem::take(&mut screen.out)).unwrap();
        assert!(said.ends_with("s  bitaxe BM1370 mines as bc1q.garage\n"), "{said}");
        assert_eq!(said.lines().count(), 1);
        screen.connections(&(2..100).map(|id| row(id, 1)).collect::<Vec<_>>());
        let said = String::from_utf8(std::mem::take(&mut screen.out)).unwrap();
        assert_eq!(said.lines().count(), CONNECTIONS_SHOWN_MAX);
        screen.connections(&[]);
        assert!(screen.connected.is_empty(), "who left is forgotten");
    }
}
