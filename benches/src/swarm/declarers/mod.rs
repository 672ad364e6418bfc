//! Miners who choose their own transactions, beside the swarm's honest ones and in the middle half of a run:
//! so the same run shows what acknowledgements take without and with them. `lists.rs` is their mempool,
//! `declarer.rs` one of them, `report.rs` what is said of it. Called by `swarm::run_declaring`.
//!
//! Everybody declares once a refresh, evenly spread: nobody waits for another, and a late one is late.

mod declarer;
mod lists;
mod report;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until};

use super::book::{Span, count_word};
use super::histogram::Histogram;
use super::kept::idle_s;
use super::local::{page, series};
use super::options::{Options, Rate, duration};
use super::process::{Usage, usage};
use declarer::{Declarer, Places};
pub use lists::Lists;
use lists::Mempool;

/// Each is two connections and an address.
const DECLARERS_MAX: usize = 5_000;
/// How often it is looked whether enough have a job.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often the pool's development chain changes its transactions, seconds.
const POOL_REFRESH_S: u64 = 30;
/// Changes that are further ahead than the run is long: miners are let in first.
const POOL_AHEAD: u64 = 5;

/// How many there are and what they do.
#[derive(Debug, Clone, Args)]
pub struct DeclarerOptions {
    /// Miners who declare jobs of their own, each with two connections, in the middle half of the run.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub declarers: usize,
    /// Each declares a new job this often; a quarter of the transactions is new as often.
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub refresh: Duration,
    /// Which transactions they declare.
    #[arg(long, value_enum, default_value_t = Lists::Same)]
    pub lists: Lists,
}

impl DeclarerOptions {
    /// Refuses what cannot be measured.
    ///
    /// # Errors
    /// In the words of the command line.
    pub fn check(&self, options: &Options) -> Result<()> {
        if self.declarers == 0 {
            return Ok(());
        }
        ensure!(self.declarers <= DECLARERS_MAX, "--declarers must be at most {DECLARERS_MAX}");
        ensure!(self.refresh >= Duration::from_millis(100), "--refresh must be at least 0.1s");
        ensure!(
            options.length / 2 >= self.refresh * 2,
            "--for must be at least four times --refresh: half of it is theirs, and each declares twice"
        );
        let steady = matches!(options.shares_per_second, Rate::PerSecond(rate) if rate > 0.0);
        ensure!(
            steady && !options.idle,
            "--declarers needs --shares-per-second NUMBER: honest miners at a steady rate are what they \
             are measured by"
        );
        ensure!(
            !options.hostile && options.tips_every.is_none(),
            "--declarers goes without --hostile and --tips-every: their chain is a copy of the pool's"
        );
        Ok(())
    }
}

/// What `run` has to know of the pool.
#[derive(Debug, Clone)]
pub struct Declaring {
    /// What to do.
    pub options: DeclarerOptions,
    /// Its port for job declaration.
    pub declare: SocketAddr,
    /// Its page of metrics.
    pub http: SocketAddr,
    /// Folder of its development chain.
    pub chain: PathBuf,
    /// Transactions in that chain's templates.
    pub tx_count: u32,
    /// Hashes for one of its blocks.
    pub block_hashes: u64,
}

/// What all declarers saw.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Declaration written to verdict read, transactions that were asked for in between.
    pub(super) answers: Histogram,
    /// Of these, the ones in which transactions were asked for.
    pub(super) asked: Histogram,
    /// SetCustomMiningJob written to its answer.
    pub(super) set: Histogram,
    /// Transactions that were asked for.
    pub(super) supplied: u64,
    /// Shares of their own jobs that were acknowledged.
    pub(super) credited: u64,
    /// Declarers who have had a job to mine.
    pub(super) standing: usize,
    /// Declarations, jobs and shares that were told no, by code.
    pub(super) refused: BTreeMap<String, u64>,
    /// Declarers that ended before the run, by reason.
    pub(super) failed: BTreeMap<String, u64>,
}

impl Tally {
    fn answered(&mut self, after: Duration, supplied: usize) {
        self.answers.record(after, 1);
        if supplied > 0 {
            self.asked.record(after, 1);
        }
        self.supplied += supplied as u64;
    }

    fn refused(&mut self, code: &str) {
        count_word(&mut self.refused, code, 1);
    }
}

/// One look at everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    at: Instant,
    pool: Option<Usage>,
    own: Usage,
    idle_s: f64,
    metrics: CheckMetrics,
}

/// What the pool itself says of its checks, since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct CheckMetrics {
    /// Declaration to verdict, seconds in all, without the link.
    answer_s: f64,
    answers: f64,
    /// Our own part of these, without turns and node.
    check_s: f64,
    checks: f64,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) declaring: Declaring,
    tally: Tally,
    /// First share of the run, begin and end of their half, last share.
    looks: [Look; 4],
    /// The pool's memory when so many had their first job: a quarter of them, and all.
    memory: Vec<(usize, Usage)>,
}

/// Runs them in the middle half of `span`; blocks until that is over.
///
/// # Errors
/// Nothing could be measured. What a single declarer suffers is in the tally.
pub(super) fn run(
    runtime: &Runtime,
    declaring: Declaring,
    mine: SocketAddr,
    options: &Options,
    span: Span,
) -> Result<Outcome> {
    let local = LocalSet::new();
    local.block_on(runtime, run_all(declaring, mine, options, span))
}

async fn run_all(
    declaring: Declaring,
    mine: SocketAddr,
    options: &Options,
    span: Span,
) -> Result<Outcome> {
    let quarter = (span.until - span.from) / 4;
    let (from, until) = (span.from + quarter, span.until - quarter);
    sleep_until(span.from.into()).await;
    let mempool = Mempool::open(&declaring).await?;
    // Ahead of the pool's own, so that what a refresh brings is unknown to it until it is declared.
    for _ in 0..options.length.as_secs() / POOL_REFRESH_S + POOL_AHEAD {
        mempool.refresh().await?;
    }
    let mempool = Rc::new(mempool);
    let first = look(&declaring, options.pid)?;
    sleep_until(from.into()).await;
    let before = look(&declaring, options.pid)?;
    let tally = Rc::new(RefCell::new(Tally::default()));
    let places = Rc::new(Places {
        declare: declaring.declare,
        mine,
        authority: options.authority,
        lists: declaring.options.lists,
    });
    let DeclarerOptions { declarers, refresh, .. } = declaring.options;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..declarers {
        let turn =
            Turns { next: from + refresh.mul_f64(number as f64 / declarers as f64), refresh };
        let task =
            one(Rc::clone(&places), number, Rc::clone(&mempool), Rc::clone(&tally), turn, until);
        tasks.spawn_local(task);
    }
    let refreshing = tokio::task::spawn_local(refreshes(Rc::clone(&mempool), from, refresh, until));
    let memory = memory_looks(&tally, declarers, options.pid, until).await;
    sleep_until(until.into()).await;
    // The last of them are being answered; nobody begins any more.
    sleep(LOOK_EVERY).await;
    let end = look(&declaring, options.pid)?;
    refreshing.await.context("the mempool's task failed")??;
    while let Some(ended) = tasks.join_next().await {
        ended.context("a declarer's task failed")?;
    }
    sleep_until(span.until.into()).await;
    let last = look(&declaring, options.pid)?;
    let tally = tally.take();
    Ok(Outcome { declaring, tally, looks: [first, before, end, last], memory })
}

/// When a declarer's turns are.
struct Turns {
    next: Instant,
    refresh: Duration,
}

/// One declarer, from its first turn until `until`.
async fn one(
    places: Rc<Places>,
    number: usize,
    mempool: Rc<Mempool>,
    tally: Rc<RefCell<Tally>>,
    mut turns: Turns,
    until: Instant,
) {
    let lived = async {
        sleep_until(turns.next.into()).await;
        let mut declarer = Declarer::open(&places, number, Rc::clone(&tally)).await?;
        declarer.turn(&mempool).await?;
        tally.borrow_mut().standing += 1;
        loop {
            turns.next += turns.refresh;
            if turns.next >= until {
                break;
            }
            sleep_until(turns.next.into()).await;
            declarer.turn(&mempool).await?;
        }
        // What it holds in the pool is there until the last look.
        sleep_until((until + 2 * LOOK_EVERY).into()).await;
        Ok::<(), String>(())
    };
    if let Err(why) = lived.await {
        count_word(&mut tally.borrow_mut().failed, &why, 1);
    }
}

async fn refreshes(
    mempool: Rc<Mempool>,
    from: Instant,
    refresh: Duration,
    until: Instant,
) -> Result<()> {
    let mut next = from + refresh;
    while next < until {
        sleep_until(next.into()).await;
        mempool.refresh().await?;
        next += refresh;
    }
    Ok(())
}

/// The pool's memory when a quarter of them, and when all have had a job.
async fn memory_looks(
    tally: &RefCell<Tally>,
    declarers: usize,
    pid: Option<u32>,
    until: Instant,
) -> Vec<(usize, Usage)> {
    let mut looks = Vec::new();
    for wanted in [declarers.div_ceil(4), declarers] {
        while tally.borrow().standing < wanted && Instant::now() < until {
            sleep(LOOK_EVERY).await;
        }
        let standing = tally.borrow().standing;
        if let Some(usage) = pid.and_then(|pid| usage(pid).ok()) {
            looks.push((standing, usage));
        }
    }
    looks
}

fn look(declaring: &Declaring, pid: Option<u32>) -> Result<Look> {
    Ok(Look {
        at: Instant::now(),
        pool: pid.and_then(|pid| usage(pid).ok()),
        own: usage(std::process::id())?,
        idle_s: idle_s()?,
        metrics: CheckMetrics::of(&page(declaring.http, "/metrics").context("the pool's metrics")?),
    })
}

impl CheckMetrics {
    fn of(page: &str) -> Self {
        let value = |name| series(page, name);
        Self {
            answer_s: value("pool_declaration_answer_seconds_sum"),
            answers: value("pool_declaration_answer_seconds_count"),
            check_s: value("pool_declaration_check_seconds_sum"),
            checks: value("pool_declaration_check_seconds_count"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        declarers: DeclarerOptions,
    }

    fn is_allowed(arguments: &str) -> bool {
        let words = std::iter::once("load").chain(arguments.split_whitespace());
        let line = Line::try_parse_from(words).unwrap();
        line.declarers.check(&line.options).is_ok()
    }

    #[test]
    fn declarers_are_measured_beside_miners_at_a_steady_rate_and_long_enough() {
        assert!(is_allowed("--for 1s"), "without declarers nothing is asked");
        let sound = "--declarers 3 --shares-per-second 10 --for 8s --refresh 2s";
        assert!(is_allowed(sound));
        assert!(!is_allowed("--declarers 3 --for 8s --refresh 2s"));
        assert!(!is_allowed("--declarers 3 --shares-per-second 10 --for 7.9s --refresh 2s"));
        for more in ["--idle", "--hostile", "--tips-every 1s"] {
            assert!(!is_allowed(&format!("{sound} {more}")), "{more}");
        }
        assert!(is_allowed(&sound.replace("rs 3", "rs 5000")));
        assert!(!is_allowed(&sound.replace("rs 3", "rs 5001")));
    }

    #[test]
    fn a_series_that_begins_like_another_is_not_taken_for_it() {
        let page = "# HELP x\npool_declaration_answer_seconds_sum_of 9\n\
                    pool_declaration_answer_seconds_sum 1.5\npool_declaration_check_seconds_count 4\n";
        let expected = CheckMetrics { answer_s: 1.5, answers: 0.0, check_s: 0.0, checks: 4.0 };
        assert_eq!(CheckMetrics::of(page), expected);
        assert_eq!(CheckMetrics::of(""), CheckMetrics::default());
    }
}
