//! The ledger task: the owner of all credit, and the one place where a proof becomes one. Connections
//! submit batches; the task takes all that waits, drops proofs that were credited before, writes one
//! transaction, and only then says `Committed`. Started by `run`, called by `miner`.
//!
//! It must never acknowledge before the store has committed, never credit a header hash twice, and
//! never lose a batch because the store was away: it tries again until the store answers.
//!
//! Several pool nodes on one PostgreSQL each hold only their own proofs in memory. That is enough: node
//! and start stand in every extranonce prefix, so two nodes cannot be sent the same header.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::mining::{Committed, CreditBatch, CreditGroup, DeclaredId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::limits::{
    CREDIT_COMMIT_BATCHES_MAX, CREDIT_COMMIT_SHARES_MAX, CREDIT_QUEUE_MAX, CREDIT_RETRY_FIRST,
    CREDIT_RETRY_MAX, CREDIT_SHUTDOWN_GRACE, DECLARED_WRITTEN_MAX, SEEN_TIPS_MAX,
};
use crate::metrics::Metrics;
use crate::store::{CommitId, DeclaredRecord, ShareBatch, Store, StoreError};

/// The ledger before it runs, knowing every proof that could come again.
pub struct Credit {
    store: Store,
    node: u16,
    commits: CommitIds,
    seen: Seen,
    written: Written,
    failing_since: watch::Sender<FailingSince>,
    metrics: Arc<Metrics>,
}

/// Since when the store has refused what the ledger gives it; `None` while it takes it.
pub type FailingSince = Option<Instant>;

/// Where batches are handed in. A clone leads to the same ledger.
#[derive(Debug, Clone)]
pub struct CreditHandle {
    queue: mpsc::Sender<Submitted>,
    failing_since: watch::Receiver<FailingSince>,
}

/// The store was away during the whole grace of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the store was away to the end: the last shares are neither credited nor acknowledged")]
pub struct GaveUp;

/// The ledger has ended (shutdown): the batch is not credited and must not be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the ledger has ended")]
pub struct LedgerEnded;

#[derive(Debug)]
struct Submitted {
    received_at_ms: u64,
    batch: CreditBatch,
    /// Of every declared job that the batch has shares of.
    declared: Vec<Arc<DeclaredRecord>>,
    /// Answering a slow or dead connection never waits or fails.
    reply: oneshot::Sender<Committed>,
}

impl Credit {
    /// Reads from the store what the ledger must know before the pool listens.
    pub async fn load(store: Store, node: u16, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let mut seen = Seen::default();
        let mut newest = store.recent_prev_hashes(SEEN_TIPS_MAX).await?;
        newest.reverse();
        let tips = newest.len();
        for prev_hash in newest {
            seen.load(prev_hash, store.proofs_of(prev_hash).await?);
        }
        info!(tips, proofs = seen.len(), "credit rebuilt");
        let failing_since = watch::Sender::new(None);
        let (commits, written) = (CommitIds::new(), Written::default());
        Ok(Self { store, node, commits, seen, written, failing_since, metrics })
    }

    /// Starts the task. It ends when `shutdown` is cancelled or every handle is gone, after it has
    /// committed what waits; await the second value to know when, and whether the store took it all.
    #[must_use]
    pub fn spawn(
        self,
        shutdown: CancellationToken,
    ) -> (CreditHandle, JoinHandle<Result<(), GaveUp>>) {
        let (queue, submitted) = mpsc::channel(CREDIT_QUEUE_MAX);
        let handle = CreditHandle { queue, failing_since: self.failing_since.subscribe() };
        let ledger = Ledger { credit: self, submitted, shutdown };
        (handle, tokio::spawn(ledger.run()))
    }
}

impl CreditHandle {
    /// Hands in a batch; waits while the queue is full. What it gives says when the batch is committed;
    /// batches of one submitter are answered in the order they were handed in. Cancel safe: a call that
    /// was dropped handed nothing in. `declared` has the job of every group whose worth names one.
    pub async fn submit(
        &self,
        batch: CreditBatch,
        declared: Vec<Arc<DeclaredRecord>>,
    ) -> Result<oneshot::Receiver<Committed>, LedgerEnded> {
        let (reply, committed) = oneshot::channel();
        let submitted = Submitted { received_at_ms: unix_ms(), batch, declared, reply };
        self.queue.send(submitted).await.map_err(|_| LedgerEnded)?;
        Ok(committed)
    }

    /// Whether the store is away. The channel closes when the ledger ends.
    #[must_use]
    pub fn failing_since(&self) -> watch::Receiver<FailingSince> {
        self.failing_since.clone()
    }
}

struct Ledger {
    credit: Credit,
    submitted: mpsc::Receiver<Submitted>,
    shutdown: CancellationToken,
}

impl Ledger {
    async fn run(mut self) -> Result<(), GaveUp> {
        loop {
            let first = tokio::select! {
                () = self.shutdown.cancelled(), if !self.submitted.is_closed() => {
                    // What was handed in stays in the queue and is committed; nothing new comes.
                    self.submitted.close();
                    continue;
                }
                first = self.submitted.recv() => match first {
                    Some(first) => first,
                    None => return Ok(()),
                },
            };
            let waiting = self.with_those_behind(first);
            self.credit.metrics.credit_waits(self.submitted.len());
            self.settle(waiting).await?;
        }
    }

    /// All that waits and goes into one transaction.
    fn with_those_behind(&mut self, first: Submitted) -> Vec<Submitted> {
        let mut shares = first.batch.shares();
        let mut waiting = vec![first];
        while waiting.len() < CREDIT_COMMIT_BATCHES_MAX && shares < CREDIT_COMMIT_SHARES_MAX {
            let Ok(next) = self.submitted.try_recv() else { break };
            shares += next.batch.shares();
            waiting.push(next);
        }
        waiting
    }

    /// Credits what is new in all of these batches, in one transaction, then answers each.
    async fn settle(&mut self, waiting: Vec<Submitted>) -> Result<(), GaveUp> {
        let mut rows = Vec::new();
        let mut answers = Vec::with_capacity(waiting.len());
        for Submitted { received_at_ms, batch, declared, reply } in waiting {
            let id = batch.id;
            let selection = self.select(batch).await?;
            let fresh = selection.groups.into_iter();
            rows.extend(fresh.map(|group| with_its_job(received_at_ms, group, &declared)));
            let duplicates = selection.duplicates;
            answers.push((reply, Committed { id, duplicates }));
        }
        if !rows.is_empty() {
            self.commit(rows).await?;
        }
        for (reply, committed) in answers {
            // A connection that ended hears nothing; its shares are credited all the same.
            let _ = reply.send(committed);
        }
        self.credit.seen.forget_oldest(SEEN_TIPS_MAX);
        self.credit.metrics.credit_remembers(self.credit.seen.len());
        Ok(())
    }

    /// Judges a batch, having loaded from the store the tips that are not in memory.
    async fn select(&mut self, batch: CreditBatch) -> Result<Selection, GaveUp> {
        let Credit { store, seen, failing_since, metrics, .. } = &mut self.credit;
        let mut patience = Patience::new(&self.shutdown, metrics, failing_since);
        while let Some(tip) = seen.not_loaded(&batch.groups) {
            match store.proofs_of(tip).await {
                Ok(known) => seen.load(tip, known),
                Err(error) => {
                    metrics.credit_waits(self.submitted.len());
                    patience.after(error).await?;
                }
            }
        }
        patience.over();
        Ok(seen.select(batch.groups))
    }

    /// One transaction under one id, however many attempts it takes.
    async fn commit(&mut self, mut rows: Vec<ShareBatch>) -> Result<(), GaveUp> {
        let Credit { store, node, commits, written, metrics, failing_since, .. } = &mut self.credit;
        let id = commits.next();
        let started = Instant::now();
        let shares: usize = rows.iter().map(|row| row.group.proofs.len()).sum();
        let mut patience = Patience::new(&self.shutdown, metrics, failing_since);
        let mut left_out = written.leave_out(&mut rows);
        let appended = loop {
            match store.append(*node, id, &rows).await {
                Ok(appended) => break appended,
                Err(error) => {
                    // Perhaps the store is another by now, which has lost what it said yes to.
                    put_back(&mut rows, &mut left_out);
                    metrics.credit_waits(self.submitted.len());
                    patience.after(error).await?;
                }
            }
        };
        patience.over();
        written.note(&rows);
        let took = started.elapsed();
        debug!(shares, groups = rows.len(), ?took, ?appended, "credited");
        metrics.credit_committed(took.as_secs_f64(), shares);
        Ok(())
    }
}

/// A group with the declared job that it names. One whose job was lost on the way, by a fault of ours, is
/// credited without its name: the database would refuse it for ever, and everybody's credit with it.
fn with_its_job(
    received_at_ms: u64,
    mut group: CreditGroup,
    declared: &[Arc<DeclaredRecord>],
) -> ShareBatch {
    let Some(id) = group.worth.declared else {
        return ShareBatch { received_at_ms, group, declared: None };
    };
    let job = declared.iter().find(|job| job.id == id).cloned();
    if job.is_none() {
        error!(id = hex::encode(id.0), "shares of a declared job that is not at hand");
        group.worth.declared = None;
    }
    ShareBatch { received_at_ms, group, declared: job }
}

/// Declared jobs whose rows the store has for certain: they need not be written with each of their shares.
#[derive(Default)]
struct Written {
    ids: HashSet<DeclaredId>,
    oldest_first: VecDeque<DeclaredId>,
}

impl Written {
    /// Takes out of the rows the jobs that are written: each with its row's place.
    fn leave_out(&self, rows: &mut [ShareBatch]) -> Vec<(usize, Arc<DeclaredRecord>)> {
        let take = |row: &mut ShareBatch| row.declared.take_if(|job| self.ids.contains(&job.id));
        rows.iter_mut().enumerate().filter_map(|(at, row)| Some((at, take(row)?))).collect()
    }

    /// After the store has said yes.
    fn note(&mut self, rows: &[ShareBatch]) {
        for job in rows.iter().filter_map(|row| row.declared.as_ref()) {
            if !self.ids.insert(job.id) {
                continue;
            }
            self.oldest_first.push_back(job.id);
            if self.oldest_first.len() > DECLARED_WRITTEN_MAX
                && let Some(oldest) = self.oldest_first.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
    }
}

fn put_back(rows: &mut [ShareBatch], left_out: &mut Vec<(usize, Arc<DeclaredRecord>)>) {
    for (at, job) in left_out.drain(..) {
        rows[at].declared = Some(job);
    }
}

/// What the ledger does between two attempts of the same thing: waits longer each time, for ever in
/// service and for a grace in a shutdown. One warning per outage, so that a log stays readable.
struct Patience<'a> {
    shutdown: &'a CancellationToken,
    metrics: &'a Metrics,
    failing_since: &'a watch::Sender<FailingSince>,
    began: Instant,
    pause: Duration,
    give_up_at: Option<Instant>,
}

impl<'a> Patience<'a> {
    fn new(
        shutdown: &'a CancellationToken,
        metrics: &'a Metrics,
        failing_since: &'a watch::Sender<FailingSince>,
    ) -> Self {
        let (began, pause) = (Instant::now(), CREDIT_RETRY_FIRST);
        Self { shutdown, metrics, failing_since, began, pause, give_up_at: None }
    }

    /// After a failure: returns when it is time for the next attempt.
    async fn after(&mut self, error: StoreError) -> Result<(), GaveUp> {
        self.metrics.store_failed();
        if self.failing_since.borrow().is_none() {
            self.failing_since.send_replace(Some(self.began));
            warn!(%error, "the store failed; shares wait unacknowledged until it answers");
        }
        let ending = self.shutdown.is_cancelled();
        let Some(pause) = self.next_pause(Instant::now(), ending) else {
            error!(%error, "ending without the store; unacknowledged shares are not credited");
            return Err(GaveUp);
        };
        if ending {
            tokio::time::sleep(pause).await;
        } else {
            // A shutdown ends the pause at once, and the next failure begins its grace.
            let _ = tokio::time::timeout(pause, self.shutdown.cancelled()).await;
        }
        Ok(())
    }

    /// `None` when a shutdown has waited long enough.
    fn next_pause(&mut self, now: Instant, ending: bool) -> Option<Duration> {
        if ending && now >= *self.give_up_at.get_or_insert(now + CREDIT_SHUTDOWN_GRACE) {
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(CREDIT_RETRY_MAX);
        Some(pause)
    }

    /// The attempt worked.
    fn over(self) {
        if self.failing_since.borrow().is_none() {
            return;
        }
        if let Some(since) = self.failing_since.send_replace(None) {
            info!(away = ?since.elapsed(), "the store answers again; credit goes on");
        }
    }
}

/// Ids of transactions: 64 random bits of this start and a counter.
struct CommitIds {
    start: u64,
    next: u64,
}

impl CommitIds {
    fn new() -> Self {
        // Uniqueness is all that is asked of it, not secrecy. Where the system has no randomness the
        // start time serves: the id also stands beside the share's time and is per commit.
        let start = getrandom::u64().unwrap_or_else(|_| unix_ms());
        Self { start, next: 0 }
    }

    fn next(&mut self) -> CommitId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.start.to_be_bytes());
        id[8..].copy_from_slice(&self.next.to_be_bytes());
        self.next += 1;
        CommitId(id)
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

// ---- the judge, pure ----

/// Which header hashes were credited, by tip. A header has one tip, so a hash is looked for under one.
#[derive(Default)]
struct Seen {
    /// The least recently used first; few, so a walk finds one.
    tips: Vec<Tip>,
}

struct Tip {
    prev_hash: [u8; 32],
    keys: Keys,
}

/// The keys are pieces of SHA-256 hashes already.
type Keys = HashSet<u128, BuildHasherDefault<KeyIsHash>>;

#[derive(Default)]
struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// What is new in a batch and what is not.
#[derive(Debug, Default, PartialEq, Eq)]
struct Selection {
    /// As they came, without the duplicates; none is empty.
    groups: Vec<CreditGroup>,
    /// In the order they came.
    duplicates: Vec<[u8; 32]>,
}

impl Seen {
    /// A tip that shares name and that is not in memory: `load` it before `select`.
    fn not_loaded(&self, groups: &[CreditGroup]) -> Option<[u8; 32]> {
        let known = |tip: &[u8; 32]| self.tips.iter().any(|held| held.prev_hash == *tip);
        groups.iter().map(|group| group.prev_hash).find(|tip| !known(tip))
    }

    /// Splits groups on loaded tips into new proofs, which count as seen from now on, and others.
    fn select(&mut self, mut groups: Vec<CreditGroup>) -> Selection {
        let mut duplicates = Vec::new();
        for group in &mut groups {
            let keys = self.keys_of(group.prev_hash);
            group.proofs.retain(|proof| {
                let is_new = keys.insert(key(&proof.hash));
                if !is_new {
                    duplicates.push(proof.hash);
                }
                is_new
            });
        }
        groups.retain(|group| !group.proofs.is_empty());
        Selection { groups, duplicates }
    }

    /// Adds what the store has of a tip; none is an answer too.
    fn load(&mut self, prev_hash: [u8; 32], hashes: Vec<[u8; 32]>) {
        self.keys_of(prev_hash).extend(hashes.iter().map(key));
    }

    /// Keeps the `keep` most recently used tips.
    fn forget_oldest(&mut self, keep: usize) {
        let surplus = self.tips.len().saturating_sub(keep);
        self.tips.drain(..surplus);
    }

    fn len(&self) -> usize {
        self.tips.iter().map(|tip| tip.keys.len()).sum()
    }

    /// The tip's keys, made if they are not there, and the tip now the most recently used.
    fn keys_of(&mut self, prev_hash: [u8; 32]) -> &mut Keys {
        let at = self.tips.iter().position(|tip| tip.prev_hash == prev_hash);
        let tip = match at {
            Some(at) => self.tips.remove(at),
            None => Tip { prev_hash, keys: Keys::default() },
        };
        self.tips.push(tip);
        let last = self.tips.len() - 1;
        &mut self.tips[last].keys
    }
}

/// Half of the hash: the half without the zeros of its work. Two different proofs with the same would
/// be found once in 2^64 shares of one tip, and cost their finder one share.
fn key(hash: &[u8; 32]) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    u128::from_le_bytes(half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::extranonce::ExtranoncePrefix;
    use proto::mining::{ChannelId, Owner};
    use proto::share::Proof;
    use proto::target::Difficulty;
    use proto::template::TemplateId;

    use crate::store::DeclareMode;

    fn group(tip: u8, numbers: &[u8]) -> CreditGroup {
        let proof = |number: &u8| Proof {
            hash: [*number; 32],
            nonce: 0,
            ntime: 0,
            version: 0,
            rolled: [0; 16],
            difficulty: Difficulty::MIN,
            is_block: false,
        };
        CreditGroup {
            channel: ChannelId(0),
            owner: Owner { account: "a".into(), worker: "".into() },
            extranonce_prefix: ExtranoncePrefix::from_bytes([0; 8]),
            template: TemplateId(0),
            coinbase_sequence: 5,
            prev_hash: [tip; 32],
            worth: proto::mining::Worth::POOL_JOB,
            proofs: numbers.iter().map(proof).collect(),
        }
    }

    #[test]
    fn a_tip_that_is_not_loaded_is_asked_for_and_nothing_is_taken_as_seen() {
        let mut seen = Seen::default();
        seen.load([1; 32], vec![]);
        let groups = vec![group(1, &[1]), group(2, &[2])];
        assert_eq!(seen.not_loaded(&groups), Some([2; 32]));
        seen.load([2; 32], vec![[2; 32]]);
        assert_eq!(seen.not_loaded(&groups), None);
        let selection = seen.select(groups);
        assert_eq!(
            selection,
            Selection { groups: vec![group(1, &[1])], duplicates: vec![[2; 32]] }
        );
    }

    #[test]
    fn new_proofs_keep_their_group_and_order_and_the_others_are_named_in_theirs() {
        let mut seen = Seen::default();
        seen.load([1; 32], vec![[9; 32]]);
        let selection = seen.select(vec![group(1, &[3, 9, 1, 3]), group(1, &[1])]);
        assert_eq!(selection.groups, [group(1, &[3, 1])]);
        assert_eq!(selection.duplicates, [[9; 32], [3; 32], [1; 32]]);
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn the_tip_used_longest_ago_is_forgotten_first() {
        let mut seen = Seen::default();
        for tip in 1..=3 {
            seen.load([tip; 32], vec![]);
        }
        seen.select(vec![group(1, &[1])]);
        seen.forget_oldest(2);
        assert_eq!(seen.not_loaded(&[group(1, &[])]), None);
        assert_eq!(seen.not_loaded(&[group(3, &[])]), None);
        assert_eq!(seen.not_loaded(&[group(2, &[])]), Some([2; 32]));
    }

    /// A share of a declared job that is at hand.
    fn share_of(number: u16) -> ShareBatch {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        let job = DeclaredRecord {
            id: DeclaredId(id),
            node: 0,
            declared_at_ms: 1,
            account: "a".to_owned(),
            mode: DeclareMode::FullTemplate,
            height: 1,
            prev_hash: [1; 32],
            nbits: 0x207f_ffff,
            version: 0x2000_0000,
            coinbase_prefix: vec![],
            coinbase_suffix: vec![],
            merkle_path: vec![],
            transactions: Some(0),
            value_sats: 1,
            pool_sats: 1,
            fees_sats: 0,
            reference_fees_sats: 0,
            factor_ppm: 1_000_000,
        };
        let mut group = group(1, &[1]);
        group.worth.declared = Some(job.id);
        with_its_job(1, group, &[Arc::new(job)])
    }

    #[test]
    fn a_declared_job_is_written_with_its_first_shares_alone() {
        let mut written = Written::default();
        let job_goes_in = |written: &Written, number| {
            let mut rows = [share_of(number)];
            let mut left_out = written.leave_out(&mut rows);
            assert!(rows[0].group.worth.declared.is_some(), "the share names it all the same");
            let goes_in = rows[0].declared.is_some();
            put_back(&mut rows, &mut left_out);
            assert_eq!(rows, [share_of(number)], "what is tried again is whole");
            goes_in
        };
        assert!(job_goes_in(&written, 0), "the store has not said yes");
        written.note(&[share_of(0), share_of(0), share_of(1)]);
        assert!(!job_goes_in(&written, 0) && !job_goes_in(&written, 1) && job_goes_in(&written, 2));
        for number in 2..DECLARED_WRITTEN_MAX as u16 {
            written.note(&[share_of(number)]);
        }
        assert!(!job_goes_in(&written, 0));
        written.note(&[share_of(DECLARED_WRITTEN_MAX as u16)]);
        assert!(job_goes_in(&written, 0) && !job_goes_in(&written, 1), "one beyond the bound");
        assert_eq!(written.ids.len(), DECLARED_WRITTEN_MAX);
    }

    #[test]
    fn in_service_the_store_is_asked_for_ever_and_never_less_often_than_the_bound() {
        let shutdown = CancellationToken::new();
        let metrics = Metrics::new();
        let failing_since = watch::Sender::new(None);
        let mut patience = Patience::new(&shutdown, &metrics, &failing_since);
        let start = Instant::now();
        let pauses: Vec<Duration> =
            (0..100).map(|_| patience.next_pause(start, false).unwrap()).collect();
        assert_eq!(pauses[0], CREDIT_RETRY_FIRST);
        assert!(pauses.is_sorted());
        assert_eq!(pauses[99], CREDIT_RETRY_MAX);
    }

    #[tokio::test]
    async fn a_ledger_without_its_store_says_since_when_and_how_many_batches_wait() {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite://{}", folder.path().join("pool.sqlite").display());
        let (store, metrics) = (Store::open(&file).await.unwrap(), Arc::new(Metrics::new()));
        let credit = Credit::load(store.clone(), 1, Arc::clone(&metrics)).await.unwrap();
        let (handle, task) = credit.spawn(CancellationToken::new());
        let mut failing_since = handle.failing_since();
        assert!(failing_since.borrow_and_update().is_none());
        store.close().await;
        let submit = async |id| {
            let batch = CreditBatch { id, groups: vec![group(1, &[id as u8])] };
            drop(handle.submit(batch, vec![]).await.unwrap());
        };
        submit(1).await;
        failing_since.changed().await.unwrap();
        assert!(failing_since.borrow().is_some());
        submit(2).await;
        submit(3).await;
        let shown = async {
            while !metrics.render().contains("\npool_credit_waiting_batches 2\n") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let shown = tokio::time::timeout(Duration::from_secs(60), shown).await;
        assert!(shown.is_ok(), "{}", metrics.render());
        task.abort();
    }

    #[test]
    fn a_shutdown_gives_up_when_its_grace_is_over_and_not_before() {
        let shutdown = CancellationToken::new();
        let metrics = Metrics::new();
        let failing_since = watch::Sender::new(None);
        let mut patience = Patience::new(&shutdown, &metrics, &failing_since);
        let start = Instant::now();
        let last = start + CREDIT_SHUTDOWN_GRACE - Duration::from_millis(1);
        assert!(patience.next_pause(start, true).is_some());
        assert!(patience.next_pause(last, true).is_some());
        assert!(patience.next_pause(start + CREDIT_SHUTDOWN_GRACE, true).is_none());
    }

    #[test]
    fn no_two_commits_share_an_id() {
        let (mut one, mut other) = (CommitIds::new(), CommitIds::new());
        let ids: HashSet<CommitId> = (0..100).flat_map(|_| [one.next(), other.next()]).collect();
        assert_eq!(ids.len(), 200);
    }
}
