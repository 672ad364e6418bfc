//! The demo's miner: a client of the pool like any other, over real TCP and Noise with the authority
//! key pinned, hashing on threads of its own. Started by `demo.rs` and by tests; tells what it sees through a
//! `MinerReport`.
//!
//! It must never take a way into the pool that a device does not have, and never keep a laptop busier
//! than `duty_percent` says.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use proto::limits::MINING_SERVER_PAYLOAD_MAX;
use proto::message::Received;
use proto::mining::client::{ChannelKind, Client, ClientOptions, Event, Found, Work};
use proto::mining::grind::Grinder;
use proto::net::Link;
use proto::noise::{AuthorityPublicKey, EphemeralSecret};
use proto::wire::B032;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::limits::CPU_MINER_FOUND_MAX;

/// From dialling to the end of the handshake; devices give up after as long.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Without a byte for this long the pool counts as gone (Bitaxe and NerdQAxe+ wait as long).
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// Wait before the first reconnect; doubles up to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// The longest wait between two tries.
const BACKOFF_LAST: Duration = Duration::from_secs(10);
/// How long a thread hashes without looking up: what new work waits at most.
const SLICE: Duration = Duration::from_millis(5);

/// Where to mine, as whom, and how much of the machine may be used for it.
#[derive(Debug, Clone)]
pub struct CpuMinerOptions {
    /// Host of the pool.
    pub host: String,
    /// Its mining port.
    pub port: u16,
    /// The key that every server must be certified by, also one that a Reconnect names (rule C10).
    pub authority: AuthorityPublicKey,
    /// `account.worker`.
    pub user_identity: String,
    /// Channel to open.
    pub kind: ChannelKind,
    /// Hashing threads, at least 1.
    pub threads: usize,
    /// Part of their time that they hash, 1 to 100.
    pub duty_percent: u32,
}

impl CpuMinerOptions {
    /// One thread with all of its time on an extended channel.
    #[must_use]
    pub fn new(host: &str, port: u16, authority: AuthorityPublicKey) -> Self {
        Self {
            host: host.to_owned(),
            port,
            authority,
            user_identity: "demo.cpu".to_owned(),
            kind: ChannelKind::Extended { min_extranonce_size: 8 },
            threads: 1,
            duty_percent: 100,
        }
    }
}

/// What the miner has seen so far; written by it, read by anyone at any time.
#[derive(Debug, Default)]
pub struct MinerReport {
    connected: AtomicBool,
    sessions: AtomicU64,
    hashes: AtomicU64,
    hashes_per_s: AtomicU64,
    submitted: AtomicU64,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    first_acknowledged: OnceLock<Instant>,
}

/// A `MinerReport` at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinerStatus {
    /// A channel is open.
    pub connected: bool,
    /// Channels opened since the start.
    pub sessions: u64,
    /// Hashes tried.
    pub hashes: u64,
    /// Hashes per second over the last seconds.
    pub hashes_per_s: u64,
    /// Shares sent.
    pub submitted: u64,
    /// Shares that the pool acknowledged.
    pub acknowledged: u64,
    /// Shares that it refused.
    pub refused: u64,
    /// When the first acknowledgement came.
    pub first_acknowledged: Option<Instant>,
}

impl MinerReport {
    /// The numbers now.
    #[must_use]
    pub fn status(&self) -> MinerStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MinerStatus {
            connected: self.connected.load(Ordering::Relaxed),
            sessions: read(&self.sessions),
            hashes: read(&self.hashes),
            hashes_per_s: read(&self.hashes_per_s),
            submitted: read(&self.submitted),
            acknowledged: read(&self.acknowledged),
            refused: read(&self.refused),
            first_acknowledged: self.first_acknowledged.get().copied(),
        }
    }
}

/// Mines until `stop`, through every loss of the pool. An error is one of this machine: no thread, no
/// randomness.
pub async fn run(
    options: CpuMinerOptions,
    report: Arc<MinerReport>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let epoch = Instant::now();
    let (assign, assigned) = watch::channel(None);
    let (found_tx, found) = mpsc::channel(CPU_MINER_FOUND_MAX);
    let threads = options.threads.max(1);
    let mut grinding = Vec::with_capacity(threads);
    for index in 0..threads {
        let worker = Hasher {
            assigned: assigned.clone(),
            found: found_tx.clone(),
            report: Arc::clone(&report),
            runtime: tokio::runtime::Handle::current(),
            epoch,
            index: index as u64,
            threads: threads as u64,
            duty_percent: options.duty_percent.clamp(1, 100),
        };
        let name = format!("cpu-miner-{index}");
        let thread = thread::Builder::new().name(name).spawn(move || worker.run());
        grinding.push(thread.context("starting a hashing thread")?);
    }
    drop((assigned, found_tx));

    let mut miner = Miner { options, report, epoch, assign, found, session: 0 };
    let ended = stop.run_until_cancelled(miner.mine()).await;
    // Without an assigner the threads end, within a slice.
    miner.report.connected.store(false, Ordering::Relaxed);
    drop(miner);
    tokio::task::spawn_blocking(move || {
        grinding.into_iter().try_for_each(thread::JoinHandle::join)
    })
    .await
    .context("waiting for the hashing threads")?
    .map_err(|_| anyhow::anyhow!("a hashing thread panicked"))?;
    ended.unwrap_or(Ok(()))
}

/// What a thread works on. The session tells shares of a lost connection from those of this one: both
/// may know a channel 2 and a job 1.
#[derive(Debug, Clone)]
struct Assignment {
    session: u64,
    work: Arc<Work>,
}

/// Owner of the connection.
struct Miner {
    options: CpuMinerOptions,
    report: Arc<MinerReport>,
    epoch: Instant,
    assign: watch::Sender<Option<Assignment>>,
    found: mpsc::Receiver<(Assignment, Found)>,
    session: u64,
}

/// What the task waits for.
enum Input {
    Bytes(usize),
    Found(Assignment, Found),
    Second,
}

/// Why a session ended without anyone's fault.
struct Elsewhere {
    host: Option<String>,
    port: Option<u16>,
}

impl Miner {
    /// Sessions without end. Every way a session can end is a reason to dial again.
    async fn mine(&mut self) -> anyhow::Result<()> {
        let home = (self.options.host.clone(), self.options.port);
        let mut address = home.clone();
        let mut backoff = BACKOFF_FIRST;
        loop {
            let sessions = self.report.sessions.load(Ordering::Relaxed);
            let ended = self.session(&address).await;
            self.assign.send_replace(None);
            self.report.connected.store(false, Ordering::Relaxed);
            if self.report.sessions.load(Ordering::Relaxed) > sessions {
                backoff = BACKOFF_FIRST;
            }
            match ended {
                Ok(Elsewhere { host, port }) => {
                    address = (host.unwrap_or(address.0), port.unwrap_or(address.1));
                    info!(host = address.0, port = address.1, "asked to reconnect");
                }
                Err(error) => {
                    warn!(host = address.0, port = address.1, "mining stopped: {error:#}");
                    address.clone_from(&home);
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_LAST);
        }
    }

    async fn session(&mut self, address: &(String, u16)) -> anyhow::Result<Elsewhere> {
        self.session += 1;
        let mut link = timeout(CONNECT_DEADLINE, self.connect(address))
            .await
            .context("no handshake within the deadline")??;
        link.connection().inbound.set_limit(MINING_SERVER_PAYLOAD_MAX);
        let mut client = Client::new(ClientOptions {
            nominal_hash_rate: self.nominal_hash_rate().await?,
            endpoint_host: address.0.clone(),
            endpoint_port: address.1,
            ..ClientOptions::new(self.options.kind, &self.options.user_identity)
        });
        let mut out = Vec::new();
        client.start(&mut out);
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hashes = HashCounter::new(self.report.hashes.load(Ordering::Relaxed));
        loop {
            link.connection().outbound.send_frames(&out);
            out.clear();
            link.flush().await?;
            match timeout(SILENCE_MAX, self.next(&mut link, &mut second)).await?? {
                Input::Bytes(0) => bail!("the pool closed the connection"),
                Input::Bytes(_) => {
                    if let Some(elsewhere) = self.hear(&mut link, &mut client, &mut out)? {
                        return Ok(elsewhere);
                    }
                }
                Input::Found(of, found) => self.submit(&mut client, &of, found, &mut out),
                Input::Second => {
                    let rate = hashes.rate(self.report.hashes.load(Ordering::Relaxed));
                    self.report.hashes_per_s.store(rate, Ordering::Relaxed);
                }
            }
        }
    }

    async fn connect(&self, address: &(String, u16)) -> anyhow::Result<Link> {
        let stream = TcpStream::connect((address.0.as_str(), address.1)).await?;
        let mut random = [[0; 32]; 2];
        getrandom::fill(random.as_flattened_mut()).context("no randomness")?;
        let ephemeral = EphemeralSecret::new(random[0], random[1])?;
        let now_unix = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let now_unix = u32::try_from(now_unix).context("a clock beyond 2106")?;
        Ok(Link::connect(stream, Some(&self.options.authority), ephemeral, now_unix).await?)
    }

    /// Only waits; cancel safe.
    async fn next(
        &mut self,
        link: &mut Link,
        second: &mut tokio::time::Interval,
    ) -> anyhow::Result<Input> {
        tokio::select! {
            filled = link.fill() => Ok(Input::Bytes(filled?)),
            Some((of, found)) = self.found.recv() => Ok(Input::Found(of, found)),
            _ = second.tick() => Ok(Input::Second),
        }
    }

    fn hear(
        &mut self,
        link: &mut Link,
        client: &mut Client,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<Option<Elsewhere>> {
        let now_ms = elapsed_ms(self.epoch);
        while let Some(frame) = link.connection().inbound.next_frame()? {
            let Received::Known(message, tlvs) = frame.message()? else {
                continue;
            };
            let Some(event) = client.handle(now_ms, message, tlvs, out)? else { continue };
            if let Some(elsewhere) = self.apply(event, client)? {
                return Ok(Some(elsewhere));
            }
        }
        Ok(None)
    }

    fn apply(&mut self, event: Event, client: &Client) -> anyhow::Result<Option<Elsewhere>> {
        let report = &self.report;
        match event {
            Event::Opened { channel, target, .. } => {
                report.sessions.fetch_add(1, Ordering::Relaxed);
                report.connected.store(true, Ordering::Relaxed);
                let difficulty = target.difficulty_for_display();
                info!(channel = channel.0, difficulty, "channel open");
            }
            Event::NewWork { .. } => {
                let session = self.session;
                let assignment = client.work().map(|work| Assignment { session, work });
                self.assign.send_replace(assignment);
            }
            Event::TargetChanged(target) => {
                debug!(difficulty = target.difficulty_for_display(), "new target");
            }
            Event::Acknowledged { count, .. } => {
                report.acknowledged.fetch_add(u64::from(count), Ordering::Relaxed);
                report.first_acknowledged.get_or_init(Instant::now);
            }
            Event::Refused { sequence, code } => {
                report.refused.fetch_add(1, Ordering::Relaxed);
                debug!(sequence, code, "share refused");
            }
            Event::Reconnect { host, port } => return Ok(Some(Elsewhere { host, port })),
            // Work that comes has the new prefix already; the others answer what this miner never asks.
            Event::PrefixChanged(_)
            | Event::CustomAccepted { .. }
            | Event::CustomRefused { .. }
            | Event::UpdateRefused { .. } => {}
            Event::SetupRefused { flags, code } => {
                bail!("the pool refuses this client: {code} (flags {flags:#x})")
            }
            Event::ExtensionsRequired(ids) => bail!("the pool requires extensions {ids:?}"),
            Event::OpenRefused { code } => bail!("the pool opens no channel: {code}"),
            Event::ChannelClosed { reason } => bail!("the pool closed the channel: {reason}"),
        }
        Ok(None)
    }

    fn submit(&self, client: &mut Client, of: &Assignment, found: Found, out: &mut Vec<u8>) {
        let current = client.work().is_some_and(|work| work.prev_hash == of.work.prev_hash);
        // A share of another connection or another tip is worth nothing to anyone.
        if of.session != self.session || !current {
            return;
        }
        match client.submit(&of.work, found, out) {
            Ok(sequence) => {
                self.report.submitted.fetch_add(1, Ordering::Relaxed);
                debug!(sequence, job = of.work.job_id.0, "share sent");
            }
            Err(error) => debug!("share not sent: {error}"),
        }
    }

    /// What the threads do together, H/s, from a short try: the pool's first difficulty follows it.
    async fn nominal_hash_rate(&self) -> anyhow::Result<f32> {
        let one_thread = tokio::task::spawn_blocking(measure_hash_rate).await?;
        let duty = f64::from(self.options.duty_percent.clamp(1, 100)) / 100.0;
        Ok((one_thread * duty * self.options.threads.max(1) as f64) as f32)
    }
}

/// Header hashes per second of this thread.
fn measure_hash_rate() -> f64 {
    let mut header = [0; 80];
    let start = Instant::now();
    let mut hashes = 0u32;
    while start.elapsed() < 10 * SLICE {
        for _ in 0..256 {
            hashes += 1;
            header[76..].copy_from_slice(&hashes.to_le_bytes());
            std::hint::black_box(proto::template::sha256d(&header));
        }
    }
    f64::from(hashes) / start.elapsed().as_secs_f64()
}

/// Counts to a rate, smoothed over about five readings.
struct HashCounter {
    since: Instant,
    hashes: u64,
    smooth: Option<f64>,
}

impl HashCounter {
    fn new(hashes: u64) -> Self {
        Self { since: Instant::now(), hashes, smooth: None }
    }

    fn rate(&mut self, hashes: u64) -> u64 {
        let elapsed = self.since.elapsed().as_secs_f64();
        // The first tick of an interval comes at once.
        if elapsed < 0.1 {
            return 0;
        }
        let now = (hashes - self.hashes) as f64 / elapsed;
        let smooth = self.smooth.map_or(now, |before| 0.8 * before + 0.2 * now);
        (self.since, self.hashes, self.smooth) = (Instant::now(), hashes, Some(smooth));
        smooth as u64
    }
}

fn elapsed_ms(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One hashing thread.
struct Hasher {
    assigned: watch::Receiver<Option<Assignment>>,
    found: mpsc::Sender<(Assignment, Found)>,
    report: Arc<MinerReport>,
    runtime: tokio::runtime::Handle,
    epoch: Instant,
    index: u64,
    threads: u64,
    duty_percent: u32,
}

impl Hasher {
    /// Hashes what is assigned, in slices, until the miner is gone.
    fn run(mut self) {
        let mut header = self.index;
        let mut slice = 1_024;
        loop {
            let assignment = self.assigned.borrow_and_update().clone();
            let Some(assignment) = assignment else {
                // Nothing to do: sleep until there is, or nobody is left to say so.
                if self.runtime.clone().block_on(self.assigned.changed()).is_err() {
                    return;
                }
                continue;
            };
            let mut grinder = self.grinder(&assignment.work, header);
            // Every header is hashed once, also when work comes back under another id.
            header += self.threads;
            while !grinder.is_spent() {
                let start = Instant::now();
                let before = grinder.position();
                let found = grinder.run(slice);
                let tried = grinder.position() - before;
                self.report.hashes.fetch_add(tried, Ordering::Relaxed);
                if let Some(found) = found
                    && self.found.blocking_send((assignment.clone(), found)).is_err()
                {
                    return;
                }
                slice = self.pace(start.elapsed(), tried, slice);
                match self.assigned.has_changed() {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(_) => return,
                }
            }
        }
    }

    /// Header number `header` of this work, all threads counted: on an extended channel an extranonce,
    /// on a standard one a part of the nonces and, after those, a later second.
    fn grinder(&self, work: &Work, header: u64) -> Grinder {
        let version = work.version_with(0);
        let ntime = work.ntime(elapsed_ms(self.epoch));
        let mut rolled = [0; 32];
        let Some(rolled) =
            rolled.get_mut(..work.extranonce_size).filter(|rolled| !rolled.is_empty())
        else {
            let part = (1 << 32) / self.threads;
            let nonces = (self.index * part, (self.index + 1) * part);
            return Grinder::new(work, B032::default(), ntime, version, nonces);
        };
        for (byte, value) in rolled.iter_mut().rev().zip(header.to_le_bytes()) {
            *byte = value;
        }
        let extranonce = B032::new(rolled).expect("a slice of 32 bytes is at most 32 bytes");
        Grinder::new(work, extranonce, ntime, version, (0, 1 << 32))
    }

    /// Rests as `duty_percent` asks, and says how many nonces the next slice should have.
    fn pace(&self, took: Duration, tried: u64, slice: u64) -> u64 {
        if self.duty_percent < 100 {
            thread::sleep(took * (100 - self.duty_percent) / self.duty_percent);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let fitting = tried.saturating_mul(SLICE.as_nanos() as u64) / nanos;
        // A slice cut short by a hit says little: at most doubled or halved at a time.
        fitting.clamp(slice / 2, slice * 2).max(64)
    }
}
