//! What a new tip costs a pool for each connection, beside a raw loop that does nothing but seal the same
//! frames and send them over as many sockets: the program `fanout`. Pool and loop have their tips in turn.
//!
//! The pool's figure is of its whole process: every thread, from the block that makes the tip to the last
//! job of the last connection. What a tip costs where nobody is connected (checking a block, making a
//! template) is measured on a second pool and taken off.
//!
//! Must never send a connection other bytes from the loop than the pool sent it.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use proto::message::{Message, Received};
use proto::net::Link;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::sleep;

use super::connection::dial;
use super::finder::Finder;
use super::histogram::percentile;
use super::local::{LocalPool, Running};
use super::options::{Kind, Options, loopback};
use super::raw::{Frames, RawLoop, Sent};
use super::session::{Opening, Session};
use super::{FILES_RESERVED, book::Book, raise_file_limit, runtime};

/// Pool or loop: so many times the loop's CPU time for each connection.
const GOAL: f64 = 1.3;
/// Connections that open at a time.
const DOORS: usize = 32;
/// Connections from one source address.
const PER_SOURCE: usize = 500;
/// A tip that takes longer did not come.
const TIP_MAX: Duration = Duration::from_secs(20);
/// Without a frame for so long nothing more comes.
const QUIET: Duration = Duration::from_millis(250);
/// From the last frame until the pool's tasks are asleep again.
const SETTLE: Duration = Duration::from_millis(20);
/// How often it is looked whether all have heard.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub struct FanoutOptions {
    /// Connections to the pool, and as many to the loop.
    #[arg(long, default_value_t = 5_000)]
    pub connections: usize,
    /// Tips that each of them has.
    #[arg(long, default_value_t = 9)]
    pub tips: usize,
    /// Transactions in a template: few, so that the chain's own work is small beside a fan-out's.
    #[arg(long, default_value_t = 100)]
    pub transactions: u32,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// One tip, on all three.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// CPU time of the pool's process, ns.
    pool_ns: f64,
    /// The same where only the finder is connected.
    bare_ns: f64,
    /// Of the loop's thread.
    raw: Sent,
    /// First connection to last, ms.
    pool_spread_ms: f64,
    raw_spread_ms: f64,
}

/// What came out.
pub struct FanoutReport {
    connections: usize,
    /// Bytes of each frame that a tip brings a connection, in clear.
    frames: Vec<usize>,
    rounds: Vec<Round>,
}

/// Measures; blocks until it is over.
///
/// # Errors
/// Nothing could be measured: no pool, no connection, a tip that did not come.
pub fn run(local: &LocalPool, options: &FanoutOptions) -> Result<FanoutReport> {
    ensure!((1..=15_000).contains(&options.connections), "--connections is 1 to 15000");
    ensure!((1..=999).contains(&options.tips), "--tips is 1 to 999");
    // Both ends of the loop's are ours.
    raise_file_limit(3 * options.connections + FILES_RESERVED as usize)?;
    let full = Running::start(local, &idle(options.connections)?)?;
    let bare = Running::start(local, &idle(1)?)?;
    LocalSet::new().block_on(&runtime()?, measure(&full, &bare, options))
}

/// What a pool is told to be ready for: so many connections, on a chain where blocks are found.
fn idle(connections: usize) -> Result<Options> {
    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let connections = connections.to_string();
    let words = ["fanout", "--idle", "--tips-every", "1s", "--connections", &connections];
    Ok(Line::try_parse_from(words)?.options)
}

async fn measure(full: &Running, bare: &Running, options: &FanoutOptions) -> Result<FanoutReport> {
    let mut full = Side::open(full, options.connections).await?;
    let mut bare = Side::open(bare, 0).await?;
    let (opening, frames) = full.listen_to_a_tip().await?;
    let raw = RawLoop::start(options.connections, opening, frames.clone())?;
    let crowd = Crowd::open(raw.address, options.connections).await?;
    let mut rounds = Vec::with_capacity(options.tips);
    for _ in 0..options.tips {
        let (pool_ns, pool_spread_ms) = full.tip(frames.count()).await?;
        let (bare_ns, _) = bare.tip(frames.count()).await?;
        raw.go()?;
        crowd.wait_for(frames.count()).await?;
        let raw_sent = raw.sent()?;
        let raw_spread_ms = crowd.spread_ms();
        crowd.forget();
        rounds.push(Round { pool_ns, bare_ns, raw: raw_sent, pool_spread_ms, raw_spread_ms });
    }
    Ok(FanoutReport { connections: options.connections, frames: frames.lengths(), rounds })
}

/// A pool, its connections, and who finds its blocks.
struct Side {
    pid: u32,
    address: SocketAddr,
    crowd: Crowd,
    finder: Finder,
}

impl Side {
    async fn open(pool: &Running, connections: usize) -> Result<Self> {
        let crowd = Crowd::open(pool.address, connections).await?;
        let finder = Finder::open(pool.address, None).await.map_err(anyhow::Error::msg)?;
        Ok(Self { pid: pool.pid(), address: pool.address, crowd, finder })
    }

    /// What a connection is told when it opens, and what one more tip brings it.
    async fn listen_to_a_tip(&mut self) -> Result<(Frames, Frames)> {
        let mut probe = Probe::open(self.address).await?;
        let opening = probe.until_quiet().await?;
        let found = self.search().await?;
        self.submit(found).await?;
        let tip = probe.until_quiet().await?;
        ensure!(tip.count() > 1, "a tip of {} frames", tip.count());
        sleep(QUIET).await;
        self.crowd.forget();
        Ok((opening, tip))
    }

    async fn search(&mut self) -> Result<[u8; 32]> {
        let end = Instant::now() + TIP_MAX;
        let found = self.finder.search(end).await.map_err(anyhow::Error::msg)?;
        found.context("no block was found in time")
    }

    async fn submit(&mut self, found: [u8; 32]) -> Result<()> {
        self.finder.submit(found).await.map(drop).map_err(anyhow::Error::msg)
    }

    /// CPU time of the pool for one tip, ns, and the milliseconds from the first connection to the last.
    async fn tip(&mut self, frames: usize) -> Result<(f64, f64)> {
        self.finder.hear_for(QUIET).await.map_err(anyhow::Error::msg)?;
        let found = self.search().await?;
        let before = cpu_ns(self.pid)?;
        self.submit(found).await?;
        self.crowd.wait_for(frames).await?;
        sleep(SETTLE).await;
        let used = cpu_ns(self.pid)? - before;
        let spread = self.crowd.spread_ms();
        self.crowd.forget();
        Ok((used as f64, spread))
    }
}

/// What the connections of a side have heard since it was last forgotten.
#[derive(Default)]
struct Heard {
    frames: AtomicU64,
    /// Nanoseconds since `Crowd::start` of the first and the last SetNewPrevHash.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    gone: AtomicU64,
}

/// Connections that listen and count.
struct Crowd {
    connections: usize,
    start: Instant,
    heard: Arc<Heard>,
}

impl Crowd {
    async fn open(address: SocketAddr, connections: usize) -> Result<Self> {
        let crowd = Self { connections, start: Instant::now(), heard: Arc::default() };
        let doors = Rc::new(Semaphore::new(DOORS));
        let opened = Rc::new(std::cell::Cell::new(0));
        let mut tasks = Vec::with_capacity(connections);
        for index in 0..connections {
            let (doors, heard) = (Rc::clone(&doors), Arc::clone(&crowd.heard));
            let (start, done) = (crowd.start, Rc::clone(&opened));
            tasks.push(tokio::task::spawn_local(async move {
                let door = doors.acquire().await;
                let link = open_one(address, index).await?;
                done.set(done.get() + 1);
                drop(door);
                listen(link, start, &heard).await;
                heard.gone.fetch_add(1, Ordering::Relaxed);
                anyhow::Ok(())
            }));
        }
        let mut last = (0, Instant::now());
        while opened.get() < connections {
            sleep(LOOK_EVERY).await;
            if opened.get() > last.0 {
                last = (opened.get(), Instant::now());
            }
            if last.1.elapsed() > TIP_MAX {
                return Err(why(tasks, opened.get()).await);
            }
        }
        sleep(QUIET).await;
        crowd.forget();
        Ok(crowd)
    }

    fn forget(&self) {
        self.heard.frames.store(0, Ordering::Relaxed);
        self.heard.first_ns.store(u64::MAX, Ordering::Relaxed);
        self.heard.last_ns.store(0, Ordering::Relaxed);
    }

    /// Until each connection has heard so many frames.
    async fn wait_for(&self, frames: usize) -> Result<()> {
        let wanted = (frames * self.connections) as u64;
        let end = Instant::now() + TIP_MAX;
        loop {
            let heard = self.heard.frames.load(Ordering::Relaxed);
            if heard == wanted {
                return Ok(());
            }
            let gone = self.heard.gone.load(Ordering::Relaxed);
            ensure!(gone == 0, "{gone} connections were closed");
            ensure!(
                heard < wanted && Instant::now() < end,
                "{heard} frames where {wanted} are due"
            );
            sleep(LOOK_EVERY).await;
        }
    }

    fn spread_ms(&self) -> f64 {
        let Heard { first_ns, last_ns, .. } = &*self.heard;
        let (first, last) = (first_ns.load(Ordering::Relaxed), last_ns.load(Ordering::Relaxed));
        last.saturating_sub(first) as f64 / 1e6
    }
}

/// Why connections do not open: what the first that failed says.
async fn why(tasks: Vec<JoinHandle<Result<()>>>, opened: usize) -> anyhow::Error {
    let all = tasks.len();
    for task in tasks.into_iter().filter(JoinHandle::is_finished) {
        if let Ok(Err(error)) = task.await {
            return error.context(format!("{opened} of {all} connections opened"));
        }
    }
    anyhow::anyhow!("{opened} of {all} connections opened, and no more")
}

async fn open_one(address: SocketAddr, index: usize) -> Result<Link> {
    let source = loopback(1, (index / PER_SOURCE) as u32);
    let mut link = dial(address, Some(source), None).await.map_err(anyhow::Error::msg)?;
    let mut session = one_channel();
    let (mut frames, mut book) = (Vec::new(), Book::default());
    session.start(&mut frames);
    while !session.is_ready() {
        link.connection().outbound.send_frames(&frames);
        frames.clear();
        link.flush().await?;
        ensure!(link.fill().await? > 0, "closed by the pool");
        while let Some(frame) = link.connection().inbound.next_frame()? {
            let heard = session.hear(frame.message()?, Instant::now(), &mut frames, &mut book);
            heard.map_err(anyhow::Error::msg)?;
        }
    }
    Ok(link)
}

fn one_channel() -> Session {
    let max_target = proto::target::Target::MAX;
    Session::new(Opening { kind: Kind::Extended, channels: 1, hash_rate: 1e6, max_target })
}

/// Until the other side closes or says what is no frame.
async fn listen(mut link: Link, start: Instant, heard: &Heard) {
    while link.fill().await.is_ok_and(|count| count > 0) {
        let mut frames = 0;
        while let Ok(Some(frame)) = link.connection().inbound.next_frame() {
            frames += 1;
            if matches!(frame.message(), Ok(Received::Known(Message::SetNewPrevHash(_), _))) {
                let at = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                heard.first_ns.fetch_min(at, Ordering::Relaxed);
                heard.last_ns.fetch_max(at, Ordering::Relaxed);
            }
        }
        heard.frames.fetch_add(frames, Ordering::Relaxed);
    }
}

/// One connection whose frames are written down.
struct Probe {
    link: Link,
}

impl Probe {
    /// Says SetupConnection and opens a channel, and leaves what is answered to `until_quiet`.
    async fn open(address: SocketAddr) -> Result<Self> {
        let link = dial(address, Some(loopback(2, 0)), None).await.map_err(anyhow::Error::msg)?;
        let mut probe = Self { link };
        let (session, mut frames) = (one_channel(), Vec::new());
        session.start(&mut frames);
        probe.say(&frames).await?;
        ensure!(probe.until_quiet().await?.count() == 1, "SetupConnection was answered with more");
        frames.clear();
        session.open(&mut frames);
        probe.say(&frames).await?;
        Ok(probe)
    }

    async fn say(&mut self, frames: &[u8]) -> Result<()> {
        self.link.connection().outbound.send_frames(frames);
        Ok(self.link.flush().await?)
    }

    async fn until_quiet(&mut self) -> Result<Frames> {
        let mut frames = Frames::default();
        let end = Instant::now() + TIP_MAX;
        let mut last = Instant::now();
        while frames.count() == 0 || last.elapsed() < QUIET {
            ensure!(Instant::now() < end, "nothing came");
            let filled = tokio::time::timeout(QUIET, self.link.fill()).await;
            if !matches!(filled, Ok(Ok(1..)) | Err(_)) {
                bail!("closed by the pool");
            }
            while let Some(frame) = self.link.connection().inbound.next_frame()? {
                last = Instant::now();
                frames.push(frame);
            }
        }
        Ok(frames)
    }
}

/// CPU time of all threads of a process that live, ns.
fn cpu_ns(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let path = task.context("a thread's folder")?.path().join("schedstat");
        // A thread may end between the two.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let ran = text.split_ascii_whitespace().next().and_then(|ran| ran.parse::<u64>().ok());
        sum += ran.with_context(|| format!("no time in {}", path.display()))?;
    }
    Ok(sum)
}

impl FanoutReport {
    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.rounds.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        percentile(&figures, 50.0).unwrap_or(f64::NAN)
    }

    fn each(&self, ns: f64) -> f64 {
        ns / self.connections as f64 / 1e3
    }

    fn ratio(&self) -> f64 {
        self.median(|round| {
            (round.pool_ns - round.bare_ns) / (round.raw.tip_ns + round.raw.jobs_ns)
        })
    }

    /// Whether the goal is met.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.ratio() <= GOAL
    }

    /// Everything as one object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rounds = self.rounds.iter().map(|round| {
            json!({
                "pool_cpu_ns": round.pool_ns,
                "pool_alone_cpu_ns": round.bare_ns,
                "raw_tip_cpu_ns": round.raw.tip_ns,
                "raw_jobs_cpu_ns": round.raw.jobs_ns,
                "pool_spread_ms": round.pool_spread_ms,
                "raw_spread_ms": round.raw_spread_ms,
            })
        });
        json!({
            "connections": self.connections,
            "frames": self.frames,
            "rounds": rounds.collect::<Vec<_>>(),
            "ratio": self.ratio(),
            "goal": GOAL,
            "met": self.is_met(),
        })
    }
}

impl fmt::Display for FanoutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |figure: &dyn Fn(&Round) -> f64| self.each(self.median(figure));
        let pool = us(&|round| round.pool_ns - round.bare_ns);
        let bare_ms = self.median(|round| round.bare_ns) / 1e6;
        let (tip, jobs) = (us(&|round| round.raw.tip_ns), us(&|round| round.raw.jobs_ns));
        let raw = us(&|round| round.raw.tip_ns + round.raw.jobs_ns);
        let spread =
            [self.median(|round| round.pool_spread_ms), self.median(|round| round.raw_spread_ms)];
        writeln!(
            f,
            "{} connections, {} tips of {:?} bytes in clear; medians, CPU time of a connection",
            self.connections,
            self.rounds.len(),
            self.frames
        )?;
        writeln!(f, "{:<16} {pool:.2} us: the whole process, tip and jobs", "pool")?;
        writeln!(f, "{:<16} {bare_ms:.2} ms a tip where nobody is connected, taken off", "...")?;
        writeln!(
            f,
            "{:<16} {raw:.2} us: {tip:.2} for the tip, {jobs:.2} for the jobs",
            "raw loop"
        )?;
        let [pool_ms, raw_ms] = spread;
        writeln!(f, "{:<16} {pool_ms:.1} ms, raw loop {raw_ms:.1} ms", "first to last")?;
        let verdict = if self.is_met() { "met" } else { "MISSED" };
        writeln!(f, "{:<16} {:.2}x, goal <= {GOAL}x: {verdict}", "pool / raw loop", self.ratio())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pool_ns: f64) -> FanoutReport {
        let raw = Sent { tip_ns: 600.0, jobs_ns: 400.0 };
        let round = Round { pool_ns, bare_ns: 100.0, raw, pool_spread_ms: 1.0, raw_spread_ms: 1.0 };
        FanoutReport { connections: 1, frames: vec![48], rounds: vec![round; 3] }
    }

    #[test]
    fn what_a_tip_costs_without_connections_is_not_counted_and_the_rest_is() {
        assert!(report(1_400.0).is_met());
        assert!(!report(1_401.0).is_met());
    }

    #[test]
    fn the_cpu_time_of_this_process_grows_with_work() {
        let before = cpu_ns(std::process::id()).unwrap();
        let mut sum = 0u64;
        for number in 0..3_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
        }
        assert!(cpu_ns(std::process::id()).unwrap() > before);
        assert!(cpu_ns(u32::MAX).is_err());
    }
}
