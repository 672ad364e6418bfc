//! A load generator: many miners against one Stratum V2 pool. The programs `swarm` and `load` call `run`;
//! `connection.rs` is one miner, `session.rs` what it knows, `report.rs` what is printed.
//!
//! It must never be part of a pool, never aim at a host that is not this one unless told to, and stop
//! by itself: every loop is bounded in count and time.

mod book;
mod connection;
pub mod declarers;
pub mod fanout;
mod finder;
mod histogram;
mod hostile;
pub mod house;
mod kept;
pub mod local;
pub mod options;
mod probe;
mod process;
mod raw;
mod report;
mod session;
mod work;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proto::target::Target;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::LocalSet;

use book::{Book, Span};
use connection::{DRAIN_MAX, Phase, Plan};
use declarers::Declaring;
use kept::Cores;
pub use options::{Options, check_target};
pub use probe::{Verdicts, probe};
use process::{Usage, usage};
pub use report::Report;
use session::Opening;

/// Connections of one thread that open at a time: a pool has a bound on handshakes, too.
const DOORS: usize = 32;
/// Everything is open within this, and a second for every so many connections.
const OPEN_MAX: Duration = Duration::from_secs(60);
const OPENS_PER_S: usize = 200;
/// Between the last connection and the first share: everybody's timer is set by then.
const LEAD: Duration = Duration::from_millis(200);
/// How often slow things are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a pool is given to take back memory after everybody left.
const AFTER_CLOSE: Duration = Duration::from_secs(3);
/// Files that are not connections.
const FILES_RESERVED: u64 = 64;

/// What the pool's process, and this one, used by when.
#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    /// Before the first connection.
    before: Option<Usage>,
    /// Everything is open, nothing is sent yet.
    open: Option<Usage>,
    /// Every share is answered; connections are still open.
    end: Option<Usage>,
    /// Connections are closed.
    closed: Option<Usage>,
}

/// Makes a tip from outside the pool, and says its hash (header byte order) and when the chain had it.
pub type TipMaker = Box<dyn FnMut() -> Result<([u8; 32], Instant)> + Send>;

/// Runs `options` against the pool at `address`; blocks until it is over.
///
/// # Errors
/// Nothing could be measured: bad options, no connection, a thread that failed.
pub fn run(address: SocketAddr, options: &Options) -> Result<Report> {
    run_beside(address, options, None, None)
}

/// The same; tips are made by `tips`, where there is one, and not by blocks found in the pool.
///
/// # Errors
/// As `run`.
pub fn run_with_tips(
    address: SocketAddr,
    options: &Options,
    tips: Option<TipMaker>,
) -> Result<Report> {
    run_beside(address, options, tips, None)
}

/// The same, with declarers in the middle half of the run.
///
/// # Errors
/// As `run`.
pub fn run_declaring(
    address: SocketAddr,
    options: &Options,
    declaring: Option<Declaring>,
) -> Result<Report> {
    run_beside(address, options, None, declaring)
}

fn run_beside(
    address: SocketAddr,
    options: &Options,
    tips: Option<TipMaker>,
    declaring: Option<Declaring>,
) -> Result<Report> {
    options.check()?;
    if let Some(declaring) = &declaring {
        declaring.options.check(options)?;
    }
    let declarers = declaring.as_ref().map_or(0, |declaring| declaring.options.declarers);
    let before = options.pid.map(usage).transpose()?;
    let attackers = if options.hostile { hostile::FILES } else { 0 };
    raise_file_limit(options.connections + attackers + 2 * declarers)?;
    let plan = Arc::new(Plan {
        address,
        options: options.clone(),
        opening: Opening {
            kind: options.kind.of(0),
            channels: options.channels_per_connection,
            hash_rate: options.hash_rate,
            max_target: Target::MAX,
        },
        settled: AtomicUsize::new(0),
        drained: AtomicUsize::new(0),
    });
    let (to_phase, phase) = watch::channel(Phase::Opening);
    let mut threads = Vec::with_capacity(options.threads);
    for number in 0..options.threads {
        let (plan, phase) = (Arc::clone(&plan), phase.clone());
        let thread = thread::Builder::new().name(format!("swarm-{number}"));
        threads.push(thread.spawn(move || thread_of(plan, number, phase)).context("a thread")?);
    }
    let opening_since = Instant::now();
    wait(open_deadline(options), || plan.settled.load(Ordering::Relaxed) == options.connections);
    let opening_s = opening_since.elapsed().as_secs_f64();

    let mut pool = Looks { before, open: look(options), ..Looks::default() };
    let own_open = usage(std::process::id())?;
    let from = Instant::now() + LEAD;
    let span = Span { from, until: from + options.length };
    to_phase.send_replace(Phase::Running(span));
    let beside = beside(address, options, span, tips, declaring)?;
    let cores = options.hostile.then(|| Cores::during(span, options.pid)).transpose()?;
    let is_drained = || plan.drained.load(Ordering::Relaxed) == options.connections;
    // With a number of shares to send it is over when they are answered.
    let left = (span.until + LEAD).saturating_duration_since(Instant::now());
    wait(left, || options.shares_per_connection.is_some() && is_drained());
    wait(DRAIN_MAX + Duration::from_secs(1), is_drained);
    pool.end = look(options);
    let own_end = usage(std::process::id())?;

    to_phase.send_replace(Phase::Over);
    let mut book = Book::default();
    for thread in threads {
        book.add(thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
    }
    book.span = Some(span);
    let Beside { finder, hostile, declarers } = beside;
    let found = finder.map(join).transpose()?;
    let attack = hostile.map(join).transpose()?;
    let declared = declarers.map(join).transpose()?.transpose()?;
    if options.pid.is_some() {
        thread::sleep(AFTER_CLOSE);
        pool.closed = look(options);
    }
    if book.opened == 0 {
        bail!("no connection could be opened: {:?}", book.failed);
    }
    Ok(Report::new(
        options,
        book,
        &report::Around { pool, own_open, own_end, opening_s, found, attack, cores, declared },
    ))
}

type Found = (Vec<finder::Submitted>, Option<String>);

/// What runs beside the honest miners.
struct Beside {
    finder: Option<thread::JoinHandle<Found>>,
    hostile: Option<thread::JoinHandle<hostile::Attack>>,
    declarers: Option<thread::JoinHandle<Result<declarers::Outcome>>>,
}

fn beside(
    address: SocketAddr,
    options: &Options,
    span: Span,
    tips: Option<TipMaker>,
    declaring: Option<Declaring>,
) -> Result<Beside> {
    let authority = options.authority;
    let finder = options.tips_every.map(|every| {
        let runtime = runtime()?;
        let work = move || match tips {
            Some(tips) => finder::make(tips, every, span),
            None => runtime.block_on(finder::run(address, authority, every, span)),
        };
        thread::Builder::new().name("finder".into()).spawn(work).context("a thread")
    });
    let hostile = options.hostile.then(|| {
        let runtime = runtime()?;
        let work =
            move || LocalSet::new().block_on(&runtime, hostile::run(address, authority, span));
        thread::Builder::new().name("hostile".into()).spawn(work).context("a thread")
    });
    let declarers = declaring.map(|declaring| {
        let (runtime, options) = (runtime()?, options.clone());
        let work = move || declarers::run(&runtime, declaring, address, &options, span);
        thread::Builder::new().name("declarers".into()).spawn(work).context("a thread")
    });
    Ok(Beside {
        finder: finder.transpose()?,
        hostile: hostile.transpose()?,
        declarers: declarers.transpose()?,
    })
}

fn join<T>(thread: thread::JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("a runtime")
}

/// The connections `number`, `number + threads` and so on.
fn thread_of(plan: Arc<Plan>, number: usize, phase: watch::Receiver<Phase>) -> Result<Book> {
    let book = Rc::new(RefCell::new(Book::default()));
    let local = LocalSet::new();
    let doors = Rc::new(Semaphore::new(DOORS));
    let mut tasks = vec![local.spawn_local(kept::watch_lateness(Rc::clone(&book), phase.clone()))];
    for index in (number..plan.options.connections).step_by(plan.options.threads) {
        let (plan, doors) = (Arc::clone(&plan), Rc::clone(&doors));
        let connection = connection::run(plan, index, Rc::clone(&book), doors, phase.clone());
        tasks.push(local.spawn_local(connection));
    }
    local.block_on(&runtime()?, async {
        for task in tasks {
            task.await.context("a task failed")?;
        }
        anyhow::Ok(())
    })?;
    drop(local);
    let book = Rc::try_unwrap(book).map_err(|_| anyhow::anyhow!("a task is still running"))?;
    Ok(book.into_inner())
}

fn look(options: &Options) -> Option<Usage> {
    // A pool that is gone is told by its connections.
    options.pid.and_then(|pid| usage(pid).ok())
}

fn open_deadline(options: &Options) -> Duration {
    OPEN_MAX + Duration::from_secs((options.connections / OPENS_PER_S) as u64)
}

/// Waits until `done`, `longest` at most.
fn wait(longest: Duration, done: impl Fn() -> bool) {
    let end = Instant::now() + longest;
    while !done() && Instant::now() < end {
        thread::sleep(LOOK_EVERY);
    }
}

/// Every connection is a file: asks for all that the system gives.
fn raise_file_limit(connections: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("raising the limit on open files")?;
    let wanted = connections as u64 + FILES_RESERVED;
    if let Some(limit) = maximum.filter(|limit| *limit < wanted) {
        bail!(
            "{connections} connections need {wanted} open files; the limit is {limit} (ulimit -n)"
        );
    }
    Ok(())
}
