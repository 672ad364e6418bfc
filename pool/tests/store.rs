//! What the store and the ledger promise, claimed once and tested on SQLite and on PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails fails its test")]

mod databases;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use databases::Database;
use pool::credit::{Credit, CreditHandle, GaveUp, LedgerEnded};
use pool::limits::{ACCOUNT_WORKERS_MAX, SEEN_TIPS_MAX, SQLITE_ROWS_MAX};
use pool::metrics::Metrics;
use pool::store::{
    Appended, BlockRecord, BlockState, CommitId, DeclareMode, DeclaredRecord, DeclaredTotals,
    Route, ShareBatch, Store, StoreError, Totals,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use proto::extranonce::ExtranoncePrefix;
use proto::mining::{ChannelId, Committed, CreditBatch, CreditGroup, DeclaredId, Owner, Worth};
use proto::share::Proof;
use proto::target::Difficulty;
use proto::template::TemplateId;
use ruint::aliases::U256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const NODE: u16 = 7;

/// Each claim is one test on each database.
macro_rules! claims {
    ($($claim:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let database = super::Database::sqlite().await;
                super::$claim(&database).await;
                database.end().await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                if !super::databases::postgres_is_wanted() {
                    return;
                }
                let database = super::Database::postgres().await;
                super::$claim(&database).await;
                database.end().await;
            })*
        }
    };
}

claims! {
    an_appended_share_is_there_after_reopen
    sums_are_exact_with_works_near_two_to_the_two_hundred
    the_best_hash_is_the_lowest_and_the_last_share_the_latest
    the_same_commit_again_changes_nothing
    a_commit_that_fails_half_way_leaves_nothing
    a_commit_of_more_rows_than_a_statement_takes_is_whole
    the_epoch_counts_up_across_reopen_and_by_node
    the_epoch_starts_over_after_sixteen_bits
    two_writers_keep_the_counters_exact
    the_newest_tips_come_first_and_no_more_than_asked
    workers_are_listed_by_their_last_share
    an_account_lists_no_more_workers_than_its_bound_and_sums_them_all
    an_account_without_a_share_is_none
    a_found_block_is_kept_and_its_state_follows
    a_block_recorded_again_stays_as_it_is
    a_block_that_was_never_recorded_has_no_state
    a_block_keeps_its_declared_job_and_the_route_that_won
    a_declared_jobs_row_is_there_with_its_first_shares_and_written_once
    shares_of_a_declared_job_that_has_no_row_are_not_written
    a_declared_job_stays_as_it_was_first_written
    declared_jobs_are_listed_the_newest_first_and_no_more_than_asked
    credit_is_work_by_the_jobs_factor_and_work_stays_what_was_hashed
    what_was_credited_before_declared_jobs_counts_in_full
    a_share_whose_declared_job_was_lost_on_the_way_is_credited_all_the_same
    a_proof_twice_in_one_batch_is_credited_once_and_named
    a_proof_on_two_connections_is_credited_once_and_named
    a_proof_again_after_a_restart_is_not_credited
    a_proof_of_a_tip_that_was_forgotten_is_not_credited_again
    a_proof_of_a_tip_older_than_the_rebuild_is_not_credited_again
    a_batch_of_duplicates_alone_is_answered
    a_name_that_a_database_cannot_write_stops_nobody
    a_store_that_is_away_delays_answers_and_loses_none
    a_connection_that_is_gone_is_credited_all_the_same
    a_shutdown_commits_what_waits_and_takes_no_more
    random_batches_agree_with_a_plain_model
}

// ---- builders ----

fn tip(number: u8) -> [u8; 32] {
    [number; 32]
}

/// A header hash with leading zeros where work puts them, distinct for each tip and number.
fn hash(tip: u8, number: u64) -> [u8; 32] {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&number.to_le_bytes());
    hash[8] = tip;
    hash[20] = (number % 251) as u8;
    hash
}

fn proof(tip: u8, number: u64, log2: i16) -> Proof {
    Proof {
        hash: hash(tip, number),
        nonce: number as u32,
        ntime: 1_700_000_000,
        version: 0x2000_0000,
        rolled: [3; 16],
        difficulty: Difficulty::from_log2(log2),
        is_block: false,
    }
}

fn group(account: &str, worker: &str, tip_number: u8, proofs: Vec<Proof>) -> CreditGroup {
    CreditGroup {
        channel: ChannelId(1),
        owner: Owner { account: account.into(), worker: worker.into() },
        extranonce_prefix: ExtranoncePrefix::from_bytes([0, 7, 0, 1, 0, 0, 0, 9]),
        template: TemplateId(4),
        coinbase_sequence: 5,
        prev_hash: tip(tip_number),
        worth: Worth::POOL_JOB,
        proofs,
    }
}

/// One group of shares of difficulty 1 by `alice.rig`.
fn shares(tip_number: u8, numbers: impl IntoIterator<Item = u64>) -> CreditGroup {
    let proofs = numbers.into_iter().map(|number| proof(tip_number, number, 0)).collect();
    group("alice", "rig", tip_number, proofs)
}

fn at(received_at_ms: u64, group: CreditGroup) -> ShareBatch {
    ShareBatch { received_at_ms, group, declared: None }
}

fn declared(number: u8, declared_at_ms: u64) -> DeclaredRecord {
    DeclaredRecord {
        id: DeclaredId([number; 16]),
        node: NODE,
        declared_at_ms,
        account: "alice".into(),
        mode: DeclareMode::FullTemplate,
        height: 800_000 + u32::from(number),
        prev_hash: tip(number),
        nbits: 0x1703_4219,
        version: 0x2000_0000,
        coinbase_prefix: vec![1; 60],
        coinbase_suffix: vec![2; 130],
        merkle_path: vec![[3; 32], [4; 32]],
        transactions: Some(3),
        value_sats: 312_600_000,
        pool_sats: 312_500_001,
        fees_sats: 100_000,
        reference_fees_sats: 200_000,
        factor_ppm: 999_680,
    }
}

/// Shares of difficulty 1 on a declared job, with its row or without.
fn on_job(job: &DeclaredRecord, numbers: impl IntoIterator<Item = u64>) -> ShareBatch {
    let tip_number = job.prev_hash[0];
    let worth = Worth { declared: Some(job.id), factor_ppm: job.factor_ppm };
    let group = CreditGroup { worth, ..shares(tip_number, numbers) };
    ShareBatch { received_at_ms: 1, group, declared: Some(Arc::new(job.clone())) }
}

fn commit_id() -> CommitId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 16];
    id[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    CommitId(id)
}

async fn append(store: &Store, batches: &[ShareBatch]) -> Result<Appended, StoreError> {
    store.append(NODE, commit_id(), batches).await
}

fn work(log2: i16) -> U256 {
    Difficulty::from_log2(log2).target().work()
}

fn block(number: u8, found_at_ms: u64) -> BlockRecord {
    BlockRecord {
        hash: [number; 32],
        height: 800_000 + u32::from(number),
        prev_hash: tip(number),
        found_at_ms,
        account: "alice".into(),
        worker: "rig".into(),
        value_sats: 312_500_000,
        nbits: 0x1703_4219,
        state: BlockState::Found,
        detail: String::new(),
        route: Route::Share,
        declared: None,
    }
}

/// A running ledger and the way to end it.
struct Ledger {
    handle: CreditHandle,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), GaveUp>>,
}

impl Ledger {
    async fn start(store: &Store) -> Self {
        let shutdown = CancellationToken::new();
        let credit = Credit::load(store.clone(), NODE, Arc::new(Metrics::new())).await.unwrap();
        let (handle, task) = credit.spawn(shutdown.clone());
        Self { handle, shutdown, task }
    }

    /// As one connection of its own: hands in a batch and waits for the answer.
    async fn credit(&self, groups: Vec<CreditGroup>) -> Committed {
        let answer = self.handle.submit(CreditBatch { id: 31, groups }, vec![]).await.unwrap();
        let committed = answer.await.unwrap();
        assert_eq!(committed.id, 31);
        committed
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

// ---- the store ----

async fn an_appended_share_is_there_after_reopen(database: &Database) {
    let store = database.open().await;
    let batch = at(1_000, shares(1, 1..=3));
    assert_eq!(append(&store, &[batch]).await.unwrap(), Appended::New);
    store.close().await;

    let store = database.open().await;
    store.ping().await.unwrap();
    let mut proofs = store.proofs_of(tip(1)).await.unwrap();
    proofs.sort_unstable();
    let mut expected = [hash(1, 1), hash(1, 2), hash(1, 3)];
    expected.sort_unstable();
    assert_eq!(proofs, expected);
    assert_eq!(store.proofs_of(tip(2)).await.unwrap(), Vec::<[u8; 32]>::new());
    let expected = Totals {
        shares: 3,
        work: work(0) * U256::from(3),
        credit: work(0) * U256::from(3),
        accounts: 1,
        workers: 1,
        ..Totals::default()
    };
    assert_eq!(store.totals().await.unwrap(), expected);
}

async fn sums_are_exact_with_works_near_two_to_the_two_hundred(database: &Database) {
    let store = database.open().await;
    assert_eq!(store.totals().await.unwrap(), Totals::default());
    let heavy = || group("alice", "rig", 1, vec![proof(1, 1, 168), proof(1, 2, 168)]);
    let light = || group("alice", "cpu", 1, vec![proof(1, 3, -32)]);
    for _ in 0..3 {
        append(&store, &[at(1, heavy()), at(1, light()), at(1, heavy())]).await.unwrap();
    }

    let expected = work(168) * U256::from(12) + U256::from(3);
    assert!(expected > U256::from(1) << 200);
    assert_eq!(work(-32), U256::from(1));
    assert_eq!(store.totals().await.unwrap().work, expected);
    let account = store.account("alice").await.unwrap().unwrap();
    assert_eq!((account.work, account.shares), (expected, 15));
}

async fn the_best_hash_is_the_lowest_and_the_last_share_the_latest(database: &Database) {
    let store = database.open().await;
    // Low in its first byte, which counts least; and the other way round.
    let mut better = proof(1, 1, 0);
    better.hash = [0xff; 32];
    better.hash[31] = 0;
    let mut worse = proof(1, 2, 0);
    worse.hash = [0; 32];
    worse.hash[31] = 1;
    let one = |at_ms, proof: &Proof| [at(at_ms, group("alice", "rig", 1, vec![*proof]))];
    append(&store, &one(5_000, &worse)).await.unwrap();
    append(&store, &one(9_000, &better)).await.unwrap();
    append(&store, &one(7_000, &worse)).await.unwrap();

    let account = store.account("alice").await.unwrap().unwrap();
    assert_eq!(account.best_hash, better.hash);
    assert_eq!(account.last_share_at_ms, 9_000);
    assert_eq!(account.workers[0].best_hash, better.hash);
    assert_eq!(account.workers[0].last_share_at_ms, 9_000);
}

async fn the_same_commit_again_changes_nothing(database: &Database) {
    let store = database.open().await;
    let id = commit_id();
    let batches = [at(1_000, shares(1, 1..=3)), at(1_001, shares(2, 1..=2))];
    assert_eq!(store.append(NODE, id, &batches).await.unwrap(), Appended::New);
    let before = store.totals().await.unwrap();
    assert_eq!(store.append(NODE, id, &batches).await.unwrap(), Appended::AlreadyThere);
    assert_eq!(store.totals().await.unwrap(), before);
    assert_eq!(store.proofs_of(tip(1)).await.unwrap().len(), 3);

    // The id is what decides, not the content.
    assert_eq!(append(&store, &batches).await.unwrap(), Appended::New);
    assert_eq!(store.totals().await.unwrap().shares, 2 * before.shares);
}

async fn a_commit_that_fails_half_way_leaves_nothing(database: &Database) {
    let store = database.open().await;
    let id = commit_id();
    let batches = [at(1_000, shares(1, 1..=3))];
    database.execute("ALTER TABLE worker_total RENAME TO away").await;
    store.append(NODE, id, &batches).await.unwrap_err();
    database.execute("ALTER TABLE away RENAME TO worker_total").await;

    assert_eq!(store.totals().await.unwrap(), Totals::default());
    assert!(store.proofs_of(tip(1)).await.unwrap().is_empty());
    assert!(store.recent_prev_hashes(9).await.unwrap().is_empty());
    assert_eq!(store.append(NODE, id, &batches).await.unwrap(), Appended::New);
}

async fn a_commit_of_more_rows_than_a_statement_takes_is_whole(database: &Database) {
    let store = database.open().await;
    let rows = SQLITE_ROWS_MAX as u64 + 1;
    let batches: Vec<ShareBatch> = (0..rows)
        .map(|n| at(n, group("alice", &format!("rig{n}"), 1, vec![proof(1, n, 0)])))
        .collect();
    let id = commit_id();
    assert_eq!(store.append(NODE, id, &batches).await.unwrap(), Appended::New);
    assert_eq!(store.append(NODE, id, &batches).await.unwrap(), Appended::AlreadyThere);
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.shares, totals.workers, totals.accounts), (rows, rows, 1));
}

async fn the_epoch_counts_up_across_reopen_and_by_node(database: &Database) {
    let store = database.open().await;
    assert_eq!(store.begin_epoch(1).await.unwrap(), 1);
    assert_eq!(store.begin_epoch(1).await.unwrap(), 2);
    assert_eq!(store.begin_epoch(u16::MAX).await.unwrap(), 1);
    store.close().await;
    let store = database.open().await;
    assert_eq!(store.begin_epoch(1).await.unwrap(), 3);
    assert_eq!(store.begin_epoch(u16::MAX).await.unwrap(), 2);
}

async fn the_epoch_starts_over_after_sixteen_bits(database: &Database) {
    let store = database.open().await;
    store.begin_epoch(1).await.unwrap();
    database.execute("UPDATE node_start SET starts = 65534").await;
    for expected in [65_535, 0, 1] {
        assert_eq!(store.begin_epoch(1).await.unwrap(), expected);
    }
}

async fn two_writers_keep_the_counters_exact(database: &Database) {
    const COMMITS: u64 = 40;
    let first = database.open().await;
    let second = database.open().await;
    // The same workers in opposite order: what would deadlock if rows were taken as they come.
    let write = async |store: &Store, node: u64, mut names: Vec<&'static str>| {
        for commit in 0..COMMITS {
            names.rotate_left(1);
            let batch = |name: &&str| {
                let number = (node * COMMITS + commit) * 3 + u64::from(name.as_bytes()[0]) * 1_000;
                at(commit, group(name, "rig", 1, vec![proof(1, number, 100)]))
            };
            let batches: Vec<ShareBatch> = names.iter().map(batch).collect();
            append(store, &batches).await.unwrap();
        }
    };
    tokio::join!(write(&first, 0, vec!["a", "b", "c"]), write(&second, 1, vec!["c", "b", "a"]));

    let totals = first.totals().await.unwrap();
    assert_eq!(totals.shares, 2 * 3 * COMMITS);
    assert_eq!(totals.work, work(100) * U256::from(2 * 3 * COMMITS));
    for name in ["a", "b", "c"] {
        let account = second.account(name).await.unwrap().unwrap();
        assert_eq!(account.work, work(100) * U256::from(2 * COMMITS));
    }
}

async fn the_newest_tips_come_first_and_no_more_than_asked(database: &Database) {
    let store = database.open().await;
    for (number, at_ms) in [(1, 10), (2, 30), (3, 20), (1, 90)] {
        append(&store, &[at(at_ms, shares(number, [at_ms]))]).await.unwrap();
    }
    assert_eq!(store.recent_prev_hashes(9).await.unwrap(), [tip(2), tip(3), tip(1)]);
    assert_eq!(store.recent_prev_hashes(2).await.unwrap(), [tip(2), tip(3)]);
}

async fn workers_are_listed_by_their_last_share(database: &Database) {
    let store = database.open().await;
    for (number, (account, worker)) in
        [("b", "x"), ("a", ""), ("a", "Z"), ("a", "b")].into_iter().enumerate()
    {
        let at_ms = if number == 0 { 9 } else { 5 };
        let one = group(account, worker, 1, vec![proof(1, number as u64, 1)]);
        append(&store, &[at(at_ms, one)]).await.unwrap();
    }
    let listed = store.workers(9).await.unwrap();
    let names: Vec<(&str, &str)> =
        listed.iter().map(|one| (one.account.as_str(), one.worker.as_str())).collect();
    assert_eq!(names, [("b", "x"), ("a", ""), ("a", "Z"), ("a", "b")]);
    assert_eq!((listed[0].shares, listed[0].work), (1, work(1)));
    assert_eq!(store.workers(3).await.unwrap(), listed[..3]);
}

async fn an_account_lists_no_more_workers_than_its_bound_and_sums_them_all(database: &Database) {
    let store = database.open().await;
    let count = ACCOUNT_WORKERS_MAX as u64 + 1;
    let batches: Vec<ShareBatch> =
        (0..count).map(|n| at(n, group("farm", &n.to_string(), 1, vec![proof(1, n, 0)]))).collect();
    append(&store, &batches).await.unwrap();
    let account = store.account("farm").await.unwrap().unwrap();
    assert_eq!(account.shares, count);
    assert_eq!(account.workers.len(), ACCOUNT_WORKERS_MAX);
    assert_eq!(account.workers[0].worker, (count - 1).to_string());
}

async fn an_account_without_a_share_is_none(database: &Database) {
    let store = database.open().await;
    append(&store, &[at(1, shares(1, [1]))]).await.unwrap();
    assert!(store.account("alice").await.unwrap().is_some());
    for name in ["", "alic", "alice.rig", "Alice", "a\0", "' OR 1=1 --"] {
        assert_eq!(store.account(name).await.unwrap(), None);
    }
}

async fn a_found_block_is_kept_and_its_state_follows(database: &Database) {
    let store = database.open().await;
    for (number, at_ms) in [(1, 10), (2, 30), (3, 20)] {
        store.record_block(&block(number, at_ms)).await.unwrap();
    }
    assert_eq!(store.totals().await.unwrap().blocks_found, 3);
    assert_eq!(store.totals().await.unwrap().blocks_accepted, 0);
    store.set_block_state([1; 32], BlockState::Accepted, Route::Share, "by node 1").await.unwrap();
    store.set_block_state([2; 32], BlockState::Confirmed, Route::Share, "").await.unwrap();
    store.set_block_state([3; 32], BlockState::Stale, Route::Share, "inconclusive").await.unwrap();
    store.close().await;

    let store = database.open().await;
    let accepted =
        BlockRecord { state: BlockState::Accepted, detail: "by node 1".into(), ..block(1, 10) };
    let confirmed = BlockRecord { state: BlockState::Confirmed, ..block(2, 30) };
    let stale =
        BlockRecord { state: BlockState::Stale, detail: "inconclusive".into(), ..block(3, 20) };
    assert_eq!(store.blocks(9).await.unwrap(), [confirmed.clone(), stale, accepted]);
    assert_eq!(store.blocks(1).await.unwrap(), [confirmed]);
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.blocks_found, totals.blocks_accepted), (3, 2));
}

async fn a_block_recorded_again_stays_as_it_is(database: &Database) {
    let store = database.open().await;
    store.record_block(&block(1, 10)).await.unwrap();
    store.set_block_state([1; 32], BlockState::Accepted, Route::Share, "").await.unwrap();
    store.record_block(&block(1, 99)).await.unwrap();
    let expected = BlockRecord { state: BlockState::Accepted, ..block(1, 10) };
    assert_eq!(store.blocks(9).await.unwrap(), [expected]);
}

async fn a_block_that_was_never_recorded_has_no_state(database: &Database) {
    let store = database.open().await;
    store.record_block(&block(1, 10)).await.unwrap();
    let refused = store.set_block_state([2; 32], BlockState::Accepted, Route::Share, "").await;
    assert!(matches!(refused, Err(StoreError::NoSuchBlock(_))));
    assert_eq!(store.blocks(9).await.unwrap(), [block(1, 10)]);
}

async fn a_block_keeps_its_declared_job_and_the_route_that_won(database: &Database) {
    let store = database.open().await;
    let on_a_declared = BlockRecord { declared: Some(DeclaredId([7; 16])), ..block(2, 20) };
    for block in [block(1, 10), on_a_declared, block(3, 30)] {
        store.record_block(&block).await.unwrap();
    }
    let none_yet = Route::ALL.map(|route| (route, 0, 0));
    assert_eq!(store.blocks_by_route().await.unwrap(), none_yet, "found is not brought");
    store.set_block_state([1; 32], BlockState::Accepted, Route::Share, "").await.unwrap();
    store.set_block_state([2; 32], BlockState::Accepted, Route::Solution, "").await.unwrap();
    store.set_block_state([3; 32], BlockState::Stale, Route::Miner, "").await.unwrap();
    let blocks = store.blocks(9).await.unwrap();
    let kept: Vec<_> = blocks.iter().map(|block| (block.route, block.declared)).collect();
    let job = Some(DeclaredId([7; 16]));
    assert_eq!(kept, [(Route::Miner, None), (Route::Solution, job), (Route::Share, None)]);
    let expected = [(Route::Share, 1, 0), (Route::Solution, 1, 1), (Route::Miner, 0, 0)];
    assert_eq!(store.blocks_by_route().await.unwrap(), expected);
}

// ---- declared jobs ----

async fn a_declared_jobs_row_is_there_with_its_first_shares_and_written_once(database: &Database) {
    let store = database.open().await;
    let (job, half) = (declared(1, 10), declared(2, 5));
    let half = DeclaredRecord { mode: DeclareMode::CoinbaseOnly, transactions: None, ..half };
    assert!(store.declared_jobs(9).await.unwrap().is_empty());
    append(&store, &[on_job(&job, 1..=2), on_job(&half, 1..=1)]).await.unwrap();
    append(&store, &[on_job(&job, 3..=5)]).await.unwrap();
    store.close().await;
    let store = database.open().await;
    let expected =
        [DeclaredTotals { job: job.clone(), shares: 5 }, DeclaredTotals { job: half, shares: 1 }];
    assert_eq!(store.declared_jobs(9).await.unwrap(), expected);
    assert_eq!(store.proofs_of(job.prev_hash).await.unwrap().len(), 5);
}

async fn shares_of_a_declared_job_that_has_no_row_are_not_written(database: &Database) {
    let store = database.open().await;
    let job = declared(1, 10);
    let without = ShareBatch { declared: None, ..on_job(&job, 1..=2) };
    append(&store, std::slice::from_ref(&without)).await.unwrap_err();
    assert_eq!(store.totals().await.unwrap(), Totals::default());
    append(&store, &[on_job(&job, 3..=3)]).await.unwrap();
    append(&store, &[without]).await.unwrap();
    assert_eq!(store.totals().await.unwrap().shares, 3);
}

async fn a_declared_job_stays_as_it_was_first_written(database: &Database) {
    let store = database.open().await;
    let job = declared(1, 10);
    store.record_declared(&job).await.unwrap();
    let other = DeclaredRecord { factor_ppm: 1, ..job.clone() };
    store.record_declared(&other).await.unwrap();
    append(&store, &[on_job(&other, 1..=1)]).await.unwrap();
    assert_eq!(store.declared_jobs(9).await.unwrap(), [DeclaredTotals { job, shares: 1 }]);
}

async fn declared_jobs_are_listed_the_newest_first_and_no_more_than_asked(database: &Database) {
    let store = database.open().await;
    for (number, at_ms) in [(1, 10), (2, 30), (3, 20)] {
        store.record_declared(&declared(number, at_ms)).await.unwrap();
    }
    let listed = async |limit| -> Vec<u8> {
        let jobs = store.declared_jobs(limit).await.unwrap();
        jobs.iter().map(|listed| listed.job.id.0[0]).collect()
    };
    assert_eq!(listed(9).await, [2, 3, 1]);
    assert_eq!(listed(2).await, [2, 3]);
}

async fn credit_is_work_by_the_jobs_factor_and_work_stays_what_was_hashed(database: &Database) {
    let store = database.open().await;
    let job = declared(1, 10);
    append(&store, &[on_job(&job, 1..=3), at(1, shares(2, [4]))]).await.unwrap();
    append(&store, &[on_job(&job, 5..=5)]).await.unwrap();
    // Rounded down for each row: 3 shares, then 1.
    let of_row =
        |count: u64| work(0) * U256::from(count) * U256::from(999_680) / U256::from(1_000_000);
    let credit = of_row(3) + of_row(1) + work(0);
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.work, totals.credit), (work(0) * U256::from(5), credit));
    let account = store.account("alice").await.unwrap().unwrap();
    assert_eq!((account.work, account.credit), (totals.work, credit));
    assert_eq!(account.workers[0].credit, credit);
    assert_eq!(store.workers(1).await.unwrap()[0].credit, credit);
}

async fn what_was_credited_before_declared_jobs_counts_in_full(database: &Database) {
    let store = database.open().await;
    append(&store, &[at(1, shares(1, 1..=3))]).await.unwrap();
    store.record_block(&block(1, 10)).await.unwrap();
    store.close().await;
    // As the store was: the last step undone, in its words backwards.
    for undo in [
        "ALTER TABLE block DROP COLUMN route",
        "ALTER TABLE block DROP COLUMN declared_id",
        "ALTER TABLE worker_total DROP COLUMN credit",
        "DROP INDEX share_batch_by_declared",
        "ALTER TABLE share_batch DROP COLUMN factor_ppm",
        "ALTER TABLE share_batch DROP COLUMN declared_id",
        "DROP TABLE declared_job",
        "DELETE FROM _sqlx_migrations WHERE version = 4",
    ] {
        database.execute(undo).await;
    }
    let store = database.open().await;
    let totals = store.totals().await.unwrap();
    assert_eq!((totals.shares, totals.credit), (3, work(0) * U256::from(3)));
    assert_eq!(totals.credit, totals.work);
    assert_eq!(store.blocks(9).await.unwrap(), [block(1, 10)]);
    append(&store, &[on_job(&declared(1, 10), 7..=7)]).await.unwrap();
}

// ---- the ledger ----

async fn a_share_whose_declared_job_was_lost_on_the_way_is_credited_all_the_same(
    database: &Database,
) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    let ShareBatch { group, .. } = on_job(&declared(1, 10), 1..=2);
    // Were it written as it came, the database would refuse it for ever, and everybody's credit with it.
    ledger.credit(vec![group]).await;
    let totals = store.totals().await.unwrap();
    let factor = U256::from(999_680);
    assert_eq!(totals.credit, work(0) * U256::from(2) * factor / U256::from(1_000_000));
    assert!(store.declared_jobs(9).await.unwrap().is_empty());
    ledger.end().await;
}

async fn a_proof_twice_in_one_batch_is_credited_once_and_named(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    let committed = ledger.credit(vec![shares(1, [1, 2, 1]), shares(1, [2, 3])]).await;
    assert_eq!(committed.duplicates, [hash(1, 1), hash(1, 2)]);
    assert_eq!(store.totals().await.unwrap().shares, 3);
    ledger.end().await;
}

async fn a_proof_on_two_connections_is_credited_once_and_named(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    assert!(ledger.credit(vec![shares(1, [1, 2])]).await.duplicates.is_empty());
    let thief = group("mallory", "rig", 1, vec![proof(1, 2, 0), proof(1, 3, 0)]);
    assert_eq!(ledger.credit(vec![thief]).await.duplicates, [hash(1, 2)]);
    assert_eq!(store.account("alice").await.unwrap().unwrap().shares, 2);
    assert_eq!(store.account("mallory").await.unwrap().unwrap().shares, 1);
    ledger.end().await;
}

async fn a_proof_again_after_a_restart_is_not_credited(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    ledger.credit(vec![shares(1, [1, 2])]).await;
    ledger.end().await;
    store.close().await;

    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    assert_eq!(ledger.credit(vec![shares(1, [2, 3])]).await.duplicates, [hash(1, 2)]);
    assert_eq!(store.totals().await.unwrap().shares, 3);
    ledger.end().await;
}

async fn a_proof_of_a_tip_that_was_forgotten_is_not_credited_again(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    let tips = SEEN_TIPS_MAX as u8 + 1;
    for number in 1..=tips {
        ledger.credit(vec![shares(number, [1])]).await;
    }
    for number in 1..=tips {
        assert_eq!(ledger.credit(vec![shares(number, [1])]).await.duplicates, [hash(number, 1)]);
    }
    // More tips in one batch than are held.
    let all = (1..=tips).map(|number| shares(number, [1, 2])).collect();
    assert_eq!(ledger.credit(all).await.duplicates.len(), usize::from(tips));
    assert_eq!(store.totals().await.unwrap().shares, 2 * u64::from(tips));
    ledger.end().await;
}

async fn a_proof_of_a_tip_older_than_the_rebuild_is_not_credited_again(database: &Database) {
    let store = database.open().await;
    for number in 1..=SEEN_TIPS_MAX as u8 + 1 {
        let at_ms = u64::from(number);
        append(&store, &[at(at_ms, shares(number, [1]))]).await.unwrap();
    }
    let ledger = Ledger::start(&store).await;
    assert_eq!(ledger.credit(vec![shares(1, [1, 2])]).await.duplicates, [hash(1, 1)]);
    ledger.end().await;
}

async fn a_batch_of_duplicates_alone_is_answered(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    ledger.credit(vec![shares(1, [1])]).await;
    assert_eq!(ledger.credit(vec![shares(1, [1])]).await.duplicates, [hash(1, 1)]);
    assert_eq!(store.totals().await.unwrap().shares, 1);
    ledger.end().await;
}

async fn a_name_that_a_database_cannot_write_stops_nobody(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    let names = ["nul\0nul", "', ''); --", "{}\"\\", "\u{10ffff}\u{7f}", &"w".repeat(255)];
    for (number, name) in names.into_iter().enumerate() {
        ledger.credit(vec![group(name, name, 1, vec![proof(1, number as u64, 0)])]).await;
        let account = store.account(name).await.unwrap().unwrap();
        assert_eq!(account.workers[0].worker, name.replace('\0', "\u{fffd}"));
    }
    ledger.end().await;
}

async fn a_store_that_is_away_delays_answers_and_loses_none(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    // The tip is in memory from here on, so that it is the commit that fails.
    ledger.credit(vec![shares(1, [99])]).await;
    database.execute("ALTER TABLE share_batch RENAME TO away").await;
    let mut answers = Vec::new();
    for id in 0..10 {
        // Each batch repeats the last share of the one before.
        let groups = vec![shares(1, [id, id + 1])];
        answers.push(ledger.handle.submit(CreditBatch { id, groups }, vec![]).await.unwrap());
    }
    let early = tokio::time::timeout(Duration::from_millis(300), &mut answers[0]).await;
    assert!(early.is_err(), "acknowledged without a store");

    database.execute("ALTER TABLE away RENAME TO share_batch").await;
    for (id, answer) in (0..10).zip(answers) {
        let committed = answer.await.unwrap();
        let duplicates = if id == 0 { vec![] } else { vec![hash(1, id)] };
        assert_eq!(committed, Committed { id, duplicates });
    }
    assert_eq!(store.totals().await.unwrap().shares, 12);
    ledger.end().await;
}

async fn a_connection_that_is_gone_is_credited_all_the_same(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    let batch = CreditBatch { id: 1, groups: vec![shares(1, [1])] };
    drop(ledger.handle.submit(batch, vec![]).await.unwrap());
    assert_eq!(ledger.credit(vec![shares(1, [1])]).await.duplicates, [hash(1, 1)]);
    assert_eq!(store.totals().await.unwrap().shares, 1);
    ledger.end().await;
}

async fn a_shutdown_commits_what_waits_and_takes_no_more(database: &Database) {
    let store = database.open().await;
    let ledger = Ledger::start(&store).await;
    let mut answers = Vec::new();
    for id in 0..20 {
        let batch = CreditBatch { id, groups: vec![shares(1, [id])] };
        answers.push(ledger.handle.submit(batch, vec![]).await.unwrap());
    }
    let handle = ledger.handle.clone();
    ledger.end().await;
    for (id, answer) in (0..20).zip(answers) {
        assert_eq!(answer.await.unwrap(), Committed { id, duplicates: vec![] });
    }
    assert_eq!(store.totals().await.unwrap().shares, 20);
    let late = CreditBatch { id: 21, groups: vec![shares(1, [21])] };
    assert_eq!(handle.submit(late, vec![]).await.err(), Some(LedgerEnded));
    assert_eq!(store.totals().await.unwrap().shares, 20);
}

// ---- against a model ----

/// One share as a number: which worker, under which tip, which proof.
type Draw = (u8, u8, u64);

const DIFFICULTIES: [i16; 4] = [-32, 0, 60, 170];

fn group_of(&(worker, tip_number, number): &Draw) -> CreditGroup {
    let log2 = DIFFICULTIES[number as usize % DIFFICULTIES.len()];
    let account = ["alice", "bob"][usize::from(worker) % 2];
    group(account, &worker.to_string(), tip_number, vec![proof(tip_number, number, log2)])
}

async fn random_batches_agree_with_a_plain_model(database: &Database) {
    // More tips than the ledger holds, few enough proofs that many come twice; `true` restarts.
    let tips = SEEN_TIPS_MAX as u8 + 3;
    let batch =
        (prop::collection::vec((0..4u8, 0..tips, 0..12u64), 1..16), prop::bool::weighted(0.1));
    let strategy = prop::collection::vec(batch, 1..16);
    let config =
        ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    let run = || {
        TestRunner::new(config).run(&strategy, |batches| {
            runtime.block_on(async {
                let fresh = database.another().await;
                let agrees = ledger_agrees_with_model(&fresh, batches).await;
                fresh.end().await;
                agrees
            })
        })
    };
    tokio::task::block_in_place(run).unwrap();
}

async fn ledger_agrees_with_model(
    database: &Database,
    batches: Vec<(Vec<Draw>, bool)>,
) -> Result<(), TestCaseError> {
    let mut credited = HashSet::new();
    let mut workers: BTreeMap<(String, String), (u64, U256)> = BTreeMap::new();
    let mut store = database.open().await;
    let mut ledger = Ledger::start(&store).await;
    for (draws, restart) in batches {
        if restart {
            ledger.end().await;
            store.close().await;
            store = database.open().await;
            ledger = Ledger::start(&store).await;
        }
        let groups: Vec<CreditGroup> = draws.iter().map(group_of).collect();
        let mut duplicates = Vec::new();
        for group in &groups {
            let proof = &group.proofs[0];
            if credited.insert(proof.hash) {
                let owner = (group.owner.account.to_string(), group.owner.worker.to_string());
                let counted = workers.entry(owner).or_default();
                counted.0 += 1;
                counted.1 += proof.difficulty.target().work();
            } else {
                duplicates.push(proof.hash);
            }
        }
        prop_assert_eq!(ledger.credit(groups).await.duplicates, duplicates);
    }
    ledger.end().await;

    let mut stored = BTreeMap::new();
    for worker in store.workers(100).await.unwrap() {
        stored.insert((worker.account, worker.worker), (worker.shares, worker.work));
    }
    let totals = store.totals().await.unwrap();
    prop_assert_eq!(totals.shares, credited.len() as u64);
    prop_assert_eq!(totals.work, workers.values().fold(U256::ZERO, |sum, one| sum + one.1));
    prop_assert_eq!(stored, workers);
    store.close().await;
    Ok(())
}

// ---- a commit whose answer is lost ----

/// Where the link breaks.
#[derive(Clone, Copy)]
enum Cut {
    /// The server never hears COMMIT.
    Before,
    /// The server commits, and its answer is lost.
    After,
}

/// A link to a PostgreSQL server that breaks at the next `cuts` COMMITs.
async fn breaking_link(server: String, cut: Cut, cuts: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(carry(client, server, cut, Arc::clone(&cuts)));
        }
    });
    port
}

async fn carry(mut client: TcpStream, mut server: TcpStream, cut: Cut, cuts: Arc<AtomicUsize>) {
    let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(length @ 1..) = read else { return };
                let is_commit = up[..length].windows(7).any(|bytes| bytes == b"COMMIT\0");
                let breaks = is_commit
                    && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
                match (breaks, cut) {
                    (true, Cut::Before) => return,
                    (true, Cut::After) => {
                        server.write_all(&up[..length]).await.unwrap();
                        // Whatever it answers, it has committed by then.
                        let answered = server.read(&mut down).await.unwrap();
                        assert!(answered > 0);
                        return;
                    }
                    (false, Cut::Before | Cut::After) => {
                        if server.write_all(&up[..length]).await.is_err() { return }
                    }
                }
            }
            read = server.read(&mut down) => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&down[..length]).await.is_err() { return }
            }
        }
    }
}

async fn shares_are_counted_once_over_a_breaking_link(cut: Cut) {
    if !databases::postgres_is_wanted() {
        return;
    }
    let database = Database::postgres().await;
    let direct = database.open().await;
    let (user, place) = database.url.rsplit_once('@').unwrap();
    let (server, name) = place.split_once('/').unwrap();
    let cuts = Arc::new(AtomicUsize::new(0));
    let port = breaking_link(server.to_owned(), cut, Arc::clone(&cuts)).await;
    let store = Store::open(&format!("{user}@127.0.0.1:{port}/{name}")).await.unwrap();
    let ledger = Ledger::start(&store).await;

    cuts.store(3, Ordering::SeqCst);
    for id in 0..5 {
        let committed = ledger.credit(vec![shares(1, [2 * id, 2 * id + 1])]).await;
        assert!(committed.duplicates.is_empty());
    }
    assert_eq!(cuts.load(Ordering::SeqCst), 0, "the link never broke");
    assert_eq!(direct.totals().await.unwrap().shares, 10);
    assert_eq!(direct.proofs_of(tip(1)).await.unwrap().len(), 10);
    ledger.end().await;
    database.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_commit_answer_does_not_credit_twice() {
    shares_are_counted_once_over_a_breaking_link(Cut::After).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_arrived_is_credited_by_the_next_attempt() {
    shares_are_counted_once_over_a_breaking_link(Cut::Before).await;
}

// ---- one database alone ----

#[cfg(unix)]
#[tokio::test]
async fn the_sqlite_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let database = Database::sqlite().await;
    let store = database.open().await;
    append(&store, &[at(1, shares(1, [1]))]).await.unwrap();
    let path = database.url.strip_prefix("sqlite:").unwrap();
    let mode = |path: &str| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path), 0o600);
    assert_eq!(mode(&format!("{path}-wal")), 0o600);
    assert_eq!(mode(std::path::Path::new(path).parent().unwrap().to_str().unwrap()), 0o700);
}

#[tokio::test]
async fn a_plain_path_and_both_spellings_of_sqlite_are_one_file() {
    let database = Database::sqlite().await;
    let path = database.url.strip_prefix("sqlite:").unwrap();
    for (expected, url) in [path.to_owned(), format!("sqlite:{path}"), format!("sqlite://{path}")]
        .into_iter()
        .enumerate()
    {
        let store = Store::open(&url).await.unwrap();
        assert_eq!(usize::from(store.begin_epoch(1).await.unwrap()), expected + 1);
        store.close().await;
    }
}

/// Not a claim: prints how long a commit takes (least, median, most). `cargo test -p pool --test store -- --ignored
/// --nocapture`, with POOL_TEST_POSTGRES naming a server that does wait for its disk.
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_a_commit_takes() {
    for database in [Database::sqlite().await, Database::postgres().await] {
        let store = database.open().await;
        let kind = database.url.split(':').next().unwrap();
        for (groups, each) in [(1, 64), (64, 1), (16, 64), (1_000, 1)] {
            let mut took = Vec::new();
            for round in 0..50 {
                let batches = batches_of_round(round, groups, each);
                let started = Instant::now();
                append(&store, &batches).await.unwrap();
                took.push(started.elapsed());
            }
            took.sort_unstable();
            let (least, median, most) = (took[0], took[25], took[49]);
            println!("{kind}: {groups} x {each} shares: {least:?}, {median:?}, {most:?}");
        }
        store.close().await;
        database.end().await;
    }
}

fn batches_of_round(round: u64, groups: u64, each: u64) -> Vec<ShareBatch> {
    let batch = |n: u64| {
        let first = (round * 1_000 + n) * 64;
        let proofs = (first..first + each).map(|n| proof(1, n, 10)).collect();
        at(round, group(&format!("account{n}"), "rig", 1, proofs))
    };
    (0..groups).map(batch).collect()
}
