//! What a commit of so many shares costs, durable (SQLite, synchronous=FULL), from the connection's batch
//! to the ledger's last word; it takes what waits in one transaction after the other. Wall time, since a disk
//! is waited for: `cargo bench -p benches --bench ledger`.

#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pool::credit::{Credit, CreditHandle};
use pool::metrics::Metrics;
use pool::store::Store;
use proto::extranonce::ExtranonceAllocator;
use proto::mining::{ChannelId, CreditBatch, CreditGroup, Owner};
use proto::share::Proof;
use proto::target::Difficulty;
use proto::template::{TemplateId, sha256d};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Shares in a commit: a connection's full batch, many of them, and a second of a large pool.
const SHARES: [usize; 3] = [64, 1_024, 32_768];
/// What a connection hands in at once.
const BATCH: usize = 64;

fn commit(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime of two threads");
    let folder = tempfile::tempdir().expect("a folder for the database");
    let mut ledger = runtime.block_on(Ledger::open(folder.path()));
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for shares in SHARES {
        group.throughput(Throughput::Elements(shares as u64));
        group.bench_function(BenchmarkId::new("SQLite, durable", shares), |bencher| {
            bencher.iter_custom(|times| runtime.block_on(ledger.commits(times, shares)));
        });
    }
    group.finish();
}

struct Ledger {
    handle: CreditHandle,
    next: u64,
}

impl Ledger {
    async fn open(folder: &std::path::Path) -> Self {
        let url = format!("sqlite://{}", folder.join("ledger.sqlite").display());
        let store = Store::open(&url).await.expect("a new database");
        let credit = Credit::load(store, 7, Arc::new(Metrics::new())).await.expect("it is empty");
        let (handle, _) = credit.spawn(CancellationToken::new());
        Self { handle, next: 0 }
    }

    /// Time from the first batch handed in to the last answer, `times` over; making the batches is not
    /// in it.
    async fn commits(&mut self, times: u64, shares: usize) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let batches: Vec<_> = (0..shares / BATCH).map(|_| self.batch()).collect();
            let mut answers = Vec::with_capacity(batches.len());
            let start = Instant::now();
            for batch in batches {
                answers.push(self.handle.submit(batch, Vec::new()).await.expect("the ledger runs"));
            }
            for answer in answers {
                let committed = answer.await.expect("the store takes it");
                assert!(committed.duplicates.is_empty(), "every proof is new");
            }
            took += start.elapsed();
        }
        took
    }

    /// New proofs of one miner on one job.
    fn batch(&mut self) -> CreditBatch {
        let prefix = ExtranonceAllocator::new(7, 1).allocate().expect("the first of 2^32");
        let proofs = (0..BATCH as u32).map(|number| self.proof(number)).collect();
        let owner = Owner { account: "alice".into(), worker: "rig1".into() };
        let group = CreditGroup {
            channel: ChannelId(2),
            owner,
            extranonce_prefix: prefix,
            template: TemplateId(1),
            coinbase_sequence: 1,
            prev_hash: [1; 32],
            worth: proto::mining::Worth::POOL_JOB,
            proofs,
        };
        CreditBatch { id: self.next, groups: vec![group] }
    }

    fn proof(&mut self, nonce: u32) -> Proof {
        self.next += 1;
        Proof {
            hash: sha256d(&self.next.to_le_bytes()),
            nonce,
            ntime: 1_790_000_000,
            version: 0x2000_0000,
            rolled: [0; 16],
            difficulty: Difficulty::MIN,
            is_block: false,
        }
    }
}

criterion_group!(benches, commit);
criterion_main!(benches);
