//! Who is connected now: a task that owns one row per connection. `miner.rs` publishes its row, `api.rs`
//! reads all. For people to look at; nothing is decided by it.
//!
//! Must never make a miner's task wait: a row that finds the queue full is dropped and counted, and the
//! next one, seconds later, says the same and more.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use job_declarator::rate::HashRates;
use serde::{Serialize, Serializer};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::limits::{BOARD_EVERY_MS, BOARD_QUEUE_MAX, REFUSALS_SHOWN, VERDICTS_SHOWN};
use crate::metrics::Metrics;
use crate::store::DeclaredRecord;

/// One connection as it was a moment ago.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConnectionSnapshot {
    /// Counts up within one run of the pool.
    pub id: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// As SetupConnection says; a peer's text.
    pub vendor: String,
    /// As SetupConnection says; a peer's text.
    pub hardware: String,
    /// As SetupConnection says; a peer's text.
    pub firmware: String,
    /// Unix seconds.
    pub opened_at: u64,
    /// Its channels, by id.
    pub channels: Vec<ChannelSnapshot>,
    /// What became of its own jobs; `None` of a connection that mines the pool's.
    pub custom_jobs: Option<CustomJobsSnapshot>,
}

/// What became of the jobs that a miner chose himself, on the connection that he mines them on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CustomJobsSnapshot {
    /// Promised and mined.
    pub accepted: u64,
    /// Refused, by error code; codes that did not occur are absent.
    pub refused: BTreeMap<&'static str, u64>,
    /// The newest refusals, the last at the end.
    pub refusals: Vec<RefusalRow>,
}

/// One refusal, as the connection's history has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalRow {
    /// Unix seconds.
    pub at: u64,
    /// What the client was told.
    pub code: &'static str,
    /// Why, for people.
    pub reason: String,
}

/// A declarer as he was a moment ago.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeclarerSnapshot {
    /// Counts up within one run of the pool, apart from those of mining connections.
    pub id: u64,
    /// Where he comes from.
    pub peer: SocketAddr,
    /// As SetupConnection says; a peer's text.
    pub vendor: String,
    /// As SetupConnection says; a peer's text.
    pub firmware: String,
    /// "full-template" or "coinbase-only".
    pub mode: &'static str,
    /// Unix seconds.
    pub opened_at: u64,
    /// Who asked for a token last; empty until then.
    pub account: String,
    /// Tokens given out.
    pub tokens: u64,
    /// Declarations that were approved.
    pub approved: u64,
    /// Those that were refused, by error code; codes that did not occur are absent.
    pub refused: BTreeMap<&'static str, u64>,
    /// How long after us his first job on the last tip came, milliseconds; `None` until there was one.
    pub tip_lag_ms: Option<u64>,
    /// Blocks of his that PushSolution brought.
    pub solutions: u64,
    /// The newest refusals, the last at the end.
    pub refusals: Vec<RefusalRow>,
}

/// What the check of a declaration, or of a coinbase-only job, came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerdictRow {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// On the declarer's connection, or the mining connection of a coinbase-only job.
    pub connection: u64,
    /// Whose token it was; empty where it was nobody's.
    pub account: String,
    /// "full-template" or "coinbase-only".
    pub mode: &'static str,
    /// "approved" or the error code.
    pub verdict: &'static str,
    /// Why it was refused, for people; empty of an approved one.
    pub reason: String,
    /// From the declaration to the verdict, waiting for turns and for the node included.
    pub check_ms: u64,
    /// In the declaration, without the coinbase.
    pub transactions: usize,
    /// Of those, how many had to be sent.
    pub supplied: usize,
    /// What it claims, pays and is worth; `None` of a refused one.
    pub job: Option<JobRow>,
}

/// What a declared job claims, pays and is worth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRow {
    /// Names it in the store; hexadecimal.
    pub id: String,
    /// Of the block that it would be.
    pub height: u32,
    /// Sum of all outputs.
    pub value_sats: u64,
    /// Of these what goes to the pool's script.
    pub pool_sats: u64,
    /// What it claims above the subsidy.
    pub fees_sats: u64,
    /// Fees of the pool's own best template of the same tip.
    pub reference_fees_sats: u64,
    /// Credit for a million hashes.
    pub factor_ppm: u32,
    /// The same in words.
    pub earns: String,
}

impl JobRow {
    /// As people read it.
    #[must_use]
    pub fn of(job: &DeclaredRecord) -> Self {
        Self {
            id: hex::encode(job.id.0),
            height: job.height,
            value_sats: job.value_sats,
            pool_sats: job.pool_sats,
            fees_sats: job.fees_sats,
            reference_fees_sats: job.reference_fees_sats,
            factor_ppm: job.factor_ppm,
            earns: earns(job.factor_ppm),
        }
    }
}

/// "your template earns 99.4 % of ours": a tenth of a percent, rounded down.
fn earns(factor_ppm: u32) -> String {
    let tenths = factor_ppm / 1_000;
    format!("your template earns {}.{} % of ours", tenths / 10, tenths % 10)
}

/// Declarers by id, and the newest verdicts, the newest first.
#[derive(Debug, Clone, Default)]
pub struct DeclaredSnapshot {
    /// Who declares.
    pub declarers: Vec<Arc<DeclarerSnapshot>>,
    /// At most `VERDICTS_SHOWN`.
    pub verdicts: Vec<Arc<VerdictRow>>,
}

/// The newest refusals of a connection and how many of each code there were. Bounded: codes are ours.
#[derive(Debug, Default)]
pub struct History {
    counts: BTreeMap<&'static str, u64>,
    newest: VecDeque<RefusalRow>,
}

impl History {
    /// Notes one more.
    pub fn refused(&mut self, row: RefusalRow) {
        *self.counts.entry(row.code).or_default() += 1;
        if self.newest.len() >= REFUSALS_SHOWN {
            self.newest.pop_front();
        }
        self.newest.push_back(row);
    }

    /// By code, and the newest, the last at the end.
    #[must_use]
    pub fn shown(&self) -> (BTreeMap<&'static str, u64>, Vec<RefusalRow>) {
        (self.counts.clone(), self.newest.iter().cloned().collect())
    }
}

/// One channel as it was a moment ago.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelSnapshot {
    /// On its connection.
    pub id: u32,
    /// Standard or extended.
    pub kind: ChannelKind,
    /// Who earns its shares.
    #[serde(serialize_with = "as_text")]
    pub account: Arc<str>,
    /// The device; may be empty.
    #[serde(serialize_with = "as_text")]
    pub worker: Arc<str>,
    /// Share difficulty now, as a power of two.
    pub difficulty_log2: i16,
    /// Committed and acknowledged.
    pub shares_accepted: u64,
    /// Refused, by error code; codes that did not occur are absent.
    pub shares_rejected: BTreeMap<&'static str, u64>,
    /// Expected hashes behind the accepted shares: decimal, it may exceed what JSON numbers hold.
    pub work: String,
    /// Unix seconds of the last accepted share.
    pub last_share_at: Option<u64>,
    /// From the accepted shares alone; what the client declares is not looked at.
    pub hash_rate: HashRates,
}

impl ConnectionSnapshot {
    /// Of all its channels over the last five minutes, H/s.
    #[must_use]
    pub fn hash_rate(&self) -> f64 {
        self.channels.iter().map(|channel| channel.hash_rate.five_minutes.estimate).sum()
    }
}

// serde's own way to serialise an `Arc` is a feature that every crate here would be built anew for.
fn as_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Kind of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelKind {
    /// Header-only mining.
    Standard,
    /// The client rolls an extranonce.
    Extended,
}

/// Where rows are handed in and read. A clone leads to the same board.
#[derive(Clone)]
pub struct BoardHandle {
    queue: mpsc::Sender<Entry>,
    large_from: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

/// All rows, by connection id. Rows are shared, so a copy costs a pointer each.
pub type Snapshot = Vec<Arc<ConnectionSnapshot>>;

/// The board's task has ended: the pool is going down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the board has ended")]
pub struct BoardEnded;

enum Entry {
    Publish(Arc<ConnectionSnapshot>),
    Remove(u64),
    Read(oneshot::Sender<Snapshot>),
    PublishDeclarer(Arc<DeclarerSnapshot>),
    RemoveDeclarer(u64),
    Verdict(Arc<VerdictRow>),
    ReadDeclared(oneshot::Sender<DeclaredSnapshot>),
}

impl BoardHandle {
    /// Shows a connection's row in place of its last. Never waits; a full queue drops the row.
    pub fn publish(&self, row: ConnectionSnapshot) {
        self.offer(Entry::Publish(Arc::new(row)));
    }

    /// Takes a connection's row away: the last thing that its task does. Waits for a place in the
    /// queue, for a row that stayed would stay for ever.
    pub async fn remove(&self, id: u64) {
        // An ended board shows no row.
        let _ = self.queue.send(Entry::Remove(id)).await;
    }

    /// Shows a declarer's row in place of its last. Never waits; a full queue drops the row.
    pub fn publish_declarer(&self, row: DeclarerSnapshot) {
        self.offer(Entry::PublishDeclarer(Arc::new(row)));
    }

    /// Takes a declarer's row away: the last thing that its task does.
    pub async fn remove_declarer(&self, id: u64) {
        let _ = self.queue.send(Entry::RemoveDeclarer(id)).await;
    }

    /// Shows a verdict among the newest. Never waits; a full queue drops it.
    pub fn verdict(&self, row: VerdictRow) {
        self.offer(Entry::Verdict(Arc::new(row)));
    }

    /// Declarers and verdicts now.
    ///
    /// # Errors
    /// The pool is going down.
    pub async fn read_declared(&self) -> Result<DeclaredSnapshot, BoardEnded> {
        let (answer, shown) = oneshot::channel();
        self.queue.send(Entry::ReadDeclared(answer)).await.map_err(|_| BoardEnded)?;
        shown.await.map_err(|_| BoardEnded)
    }

    fn offer(&self, entry: Entry) {
        if self.queue.try_send(entry).is_err() {
            self.metrics.board_dropped();
        }
    }

    /// Whether a connection of this hash rate (H/s) is among the large ones, which together have half of
    /// the pool's: they are told of a new tip first.
    #[must_use]
    pub fn is_large(&self, hash_rate: f64) -> bool {
        hash_rate >= f64::from_bits(self.large_from.load(Ordering::Relaxed))
    }

    /// All rows now.
    ///
    /// # Errors
    /// The pool is going down.
    pub async fn read(&self) -> Result<Snapshot, BoardEnded> {
        let (answer, rows) = oneshot::channel();
        self.queue.send(Entry::Read(answer)).await.map_err(|_| BoardEnded)?;
        rows.await.map_err(|_| BoardEnded)
    }
}

/// The board, and the future that is its task: spawn it. It ends when the last handle is gone.
pub fn board(metrics: Arc<Metrics>) -> (BoardHandle, impl Future<Output = ()> + Send + 'static) {
    let (queue, mut entries) = mpsc::channel(BOARD_QUEUE_MAX);
    let large_from = Arc::new(AtomicU64::new(0));
    let large = Arc::clone(&large_from);
    let task = async move {
        let mut rows: BTreeMap<u64, Arc<ConnectionSnapshot>> = BTreeMap::new();
        let mut declared = Declared::default();
        let mut looked = Instant::now();
        while let Some(entry) = entries.recv().await {
            if looked.elapsed() >= Duration::from_millis(BOARD_EVERY_MS) {
                looked = Instant::now();
                let rates = rows.values().map(|row| row.hash_rate()).collect();
                large.store(large_from_of(rates).to_bits(), Ordering::Relaxed);
            }
            match entry {
                Entry::Publish(row) => {
                    rows.insert(row.id, row);
                }
                Entry::Remove(id) => {
                    rows.remove(&id);
                }
                Entry::Read(answer) => {
                    // Who asked may have given up.
                    let _ = answer.send(rows.values().cloned().collect());
                }
                Entry::PublishDeclarer(row) => {
                    declared.declarers.insert(row.id, row);
                }
                Entry::RemoveDeclarer(id) => {
                    declared.declarers.remove(&id);
                }
                Entry::Verdict(row) => declared.verdict(row),
                Entry::ReadDeclared(answer) => {
                    let _ = answer.send(declared.shown());
                }
            }
        }
    };
    (BoardHandle { queue, large_from, metrics }, task)
}

/// What is shown of job declaration.
#[derive(Default)]
struct Declared {
    declarers: BTreeMap<u64, Arc<DeclarerSnapshot>>,
    /// The newest first.
    verdicts: VecDeque<Arc<VerdictRow>>,
}

impl Declared {
    fn verdict(&mut self, row: Arc<VerdictRow>) {
        self.verdicts.truncate(VERDICTS_SHOWN - 1);
        self.verdicts.push_front(row);
    }

    fn shown(&self) -> DeclaredSnapshot {
        DeclaredSnapshot {
            declarers: self.declarers.values().cloned().collect(),
            verdicts: self.verdicts.iter().cloned().collect(),
        }
    }
}

/// The rate from which on connections have half of all hash rate together; 0 where nobody has any.
fn large_from_of(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(|one, other| other.total_cmp(one));
    let half = rates.iter().sum::<f64>() / 2.0;
    let mut together = 0.0;
    let last = rates.into_iter().find(|rate| {
        together += rate;
        together >= half
    });
    last.unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, vendor: &str) -> ConnectionSnapshot {
        ConnectionSnapshot {
            id,
            peer: SocketAddr::from(([192, 168, 1, 7], 50_000)),
            vendor: vendor.into(),
            hardware: "BM1370".into(),
            firmware: String::new(),
            opened_at: 1_700_000_000,
            channels: Vec::new(),
            custom_jobs: None,
        }
    }

    #[test]
    fn the_large_are_those_who_have_half_of_the_hash_rate_together() {
        assert_eq!(large_from_of(vec![]), 0.0);
        assert_eq!(large_from_of(vec![0.0, 0.0]), 0.0);
        assert_eq!(large_from_of(vec![1.0, 7.0, 2.0, 3.0]), 7.0);
        assert_eq!(large_from_of(vec![1.0, 4.0, 3.0, 4.0]), 4.0);
        // Where all are alike half of them suffice, and none is small.
        assert_eq!(large_from_of(vec![5.0; 100]), 5.0);
    }

    fn dropped(metrics: &Metrics) -> String {
        let text = metrics.render();
        let line = text.lines().find(|line| line.starts_with("pool_board_drops_total "));
        line.unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn a_row_replaces_the_last_and_leaves_with_its_connection() {
        let (board, task) = board(Arc::new(Metrics::new()));
        let task = tokio::spawn(task);
        board.publish(row(2, "old"));
        board.publish(row(1, "bitaxe"));
        board.publish(row(2, "new"));
        let rows = board.read().await.unwrap();
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(rows[1].vendor, "new");
        board.remove(2).await;
        assert_eq!(board.read().await.unwrap().len(), 1);
        drop(board);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_board_that_does_not_keep_up_drops_rows_and_counts_them() {
        let metrics = Arc::new(Metrics::new());
        let (board, _never_run) = board(metrics.clone());
        for id in 0..BOARD_QUEUE_MAX as u64 {
            board.publish(row(id, ""));
        }
        assert_eq!(dropped(&metrics), "pool_board_drops_total 0");
        board.publish(row(9, ""));
        assert_eq!(dropped(&metrics), "pool_board_drops_total 1");
    }

    fn verdict(at_ms: u64) -> VerdictRow {
        VerdictRow {
            at_ms,
            connection: 1,
            account: "alice".into(),
            mode: "full-template",
            verdict: "approved",
            reason: String::new(),
            check_ms: 12,
            transactions: 4_000,
            supplied: 3,
            job: None,
        }
    }

    #[tokio::test]
    async fn the_newest_verdicts_come_first_and_no_more_than_are_shown() {
        let (board, task) = board(Arc::new(Metrics::new()));
        let task = tokio::spawn(task);
        for at_ms in 0..=VERDICTS_SHOWN as u64 {
            board.verdict(verdict(at_ms));
        }
        let shown = board.read_declared().await.unwrap().verdicts;
        assert_eq!(shown.len(), VERDICTS_SHOWN);
        assert_eq!(
            (shown[0].at_ms, shown[1].at_ms),
            (VERDICTS_SHOWN as u64, VERDICTS_SHOWN as u64 - 1)
        );
        drop(board);
        task.await.unwrap();
    }

    #[test]
    fn a_history_counts_all_refusals_and_shows_the_newest() {
        let mut history = History::default();
        for at in 0..=REFUSALS_SHOWN as u64 {
            history.refused(RefusalRow { at, code: "stale-chain-tip", reason: String::new() });
        }
        let (counts, shown) = history.shown();
        assert_eq!(counts["stale-chain-tip"], REFUSALS_SHOWN as u64 + 1);
        assert_eq!(shown.len(), REFUSALS_SHOWN);
        assert_eq!((shown[0].at, shown[REFUSALS_SHOWN - 1].at), (1, REFUSALS_SHOWN as u64));
    }

    #[test]
    fn what_a_template_earns_is_said_in_tenths_of_a_percent_rounded_down() {
        assert_eq!(earns(994_999), "your template earns 99.4 % of ours");
        assert_eq!(earns(1_000_000), "your template earns 100.0 % of ours");
        assert_eq!(earns(1_049_999), "your template earns 104.9 % of ours");
        assert_eq!(earns(0), "your template earns 0.0 % of ours");
    }

    #[tokio::test]
    async fn an_ended_board_says_so_to_readers() {
        let (board, task) = board(Arc::new(Metrics::new()));
        drop(task);
        assert_eq!(board.read().await, Err(BoardEnded));
        board.remove(1).await;
    }
}
