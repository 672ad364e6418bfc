//! Whether honest miners kept their latency under an attack, and what of it was ours and not the pool's:
//! how late the timers of the threads that measure were, and who had the cores. Used by `mod.rs` and
//! `report.rs`.
//!
//! Must never call a pool slow for what its load generator did to the machine, nor quick for it.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::book::{Book, Span};
use super::connection::Phase;
use super::process::{TICKS_PER_S, usage};

/// Between two timers by which a thread looks how late it is.
const TIMER_EVERY: Duration = Duration::from_millis(5);
/// An attack may make the p99 so much longer ...
const FACTOR: f64 = 2.0;
/// ... or longer by this, whichever is more, ms: a batch of shares waits 25 for its commit.
const SLACK_MS: f64 = 25.0;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The p99 is within what is allowed.
    Kept,
    /// It is not, and the pool is to blame.
    Missed,
    /// It is not, but our own threads were late by what it is missed by: the figure says nothing.
    NotJudged,
}

/// The p99 of acknowledgements, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Kept {
    pub(super) before: f64,
    pub(super) during: f64,
    /// p99 of how late our own timers were meanwhile.
    pub(super) late: f64,
}

impl Kept {
    /// The longest p99 that counts as kept.
    #[must_use]
    pub(super) fn allowed(&self) -> f64 {
        (self.before * FACTOR).max(self.before + SLACK_MS)
    }

    #[must_use]
    pub(super) fn verdict(&self) -> Verdict {
        match self.during - self.allowed() {
            missed_by if missed_by <= 0.0 => Verdict::Kept,
            missed_by if missed_by <= self.late => Verdict::NotJudged,
            _ => Verdict::Missed,
        }
    }
}

/// Looks how late this thread is while the shares are sent.
pub(super) async fn watch_lateness(book: Rc<RefCell<Book>>, mut phase: watch::Receiver<Phase>) {
    let span = loop {
        match *phase.borrow_and_update() {
            Phase::Opening => {}
            Phase::Running(span) => break span,
            Phase::Over => return,
        }
        if phase.changed().await.is_err() {
            return;
        }
    };
    let mut due = span.from;
    while due < span.until {
        sleep_until(due.into()).await;
        let now = Instant::now();
        book.borrow_mut().lateness[span.part(due)].record(now.saturating_duration_since(due), 1);
        due = now.max(due) + TIMER_EVERY;
    }
}

/// Who had the cores during the attack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cores {
    pub(super) all: f64,
    pub(super) pool: Option<f64>,
    pub(super) ours: f64,
    pub(super) idle: f64,
}

impl Cores {
    /// Waits for the attack and until it is over.
    pub(super) fn during(span: Span, pool: Option<u32>) -> Result<Self> {
        let quarter = (span.until - span.from) / 4;
        sleep_till(span.from + quarter);
        let began = Look::now(pool)?;
        sleep_till(span.until - quarter);
        let ended = Look::now(pool)?;
        let seconds = (ended.at - began.at).as_secs_f64();
        let each = |began: f64, ended: f64| (ended - began) / seconds;
        Ok(Self {
            all: thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64,
            pool: began.pool_s.zip(ended.pool_s).map(|(began, ended)| each(began, ended)),
            ours: each(began.ours_s, ended.ours_s),
            idle: each(began.idle_s, ended.idle_s),
        })
    }
}

struct Look {
    at: Instant,
    pool_s: Option<f64>,
    ours_s: f64,
    idle_s: f64,
}

impl Look {
    fn now(pool: Option<u32>) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            pool_s: pool.and_then(|pid| usage(pid).ok()).map(|usage| usage.cpu_s),
            ours_s: usage(std::process::id())?.cpu_s,
            idle_s: idle_s()?,
        })
    }
}

/// Seconds that all cores together had nothing to do, since the machine started.
///
/// # Errors
/// /proc is not that of Linux.
pub(super) fn idle_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    idle_seconds(&stat).context("no idle time in /proc/stat")
}

/// Of all cores: idle, and waiting for a disk.
fn idle_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().skip(3);
    let idle: u64 = fields.next()?.parse().ok()?;
    let waiting: u64 = fields.next()?.parse().ok()?;
    Some((idle + waiting) as f64 / TICKS_PER_S)
}

fn sleep_till(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(before: f64, during: f64, late: f64) -> Verdict {
        Kept { before, during, late }.verdict()
    }

    #[test]
    fn twice_the_p99_is_kept_and_so_is_a_batch_more() {
        assert_eq!(verdict(40.0, 80.0, 0.0), Verdict::Kept);
        assert_eq!(verdict(40.0, 80.1, 0.0), Verdict::Missed);
        assert_eq!(verdict(5.0, 30.0, 0.0), Verdict::Kept);
        assert_eq!(verdict(5.0, 30.1, 0.0), Verdict::Missed);
    }

    #[test]
    fn a_generator_that_was_late_itself_blames_nobody_for_so_much_and_no_more() {
        assert_eq!(verdict(40.0, 100.0, 20.0), Verdict::NotJudged);
        assert_eq!(verdict(40.0, 100.1, 20.0), Verdict::Missed);
        assert_eq!(verdict(40.0, 50.0, 1_000.0), Verdict::Kept);
    }

    #[test]
    fn idle_time_is_that_of_all_cores() {
        let stat = "cpu  100 0 50 700 100 0 7 0 0 0\ncpu0 50 0 25 350 50 0 3 0 0 0\n";
        assert_eq!(idle_seconds(stat), Some(8.0));
        assert_eq!(idle_seconds("cpu0 1 2 3 4 5"), None);
    }
}
