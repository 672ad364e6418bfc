//! What a share costs to hash, by each SHA-256 kernel of this CPU: `cargo bench -p benches --bench share`.
//! The extended share is the one of BENCHMARKS.md: a coinbase of 248 bytes with its extranonce at 71, and
//! 12 branches. Figures are per element: a compression, or a share.

#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use proto::limits::MERKLE_PATH_MAX;
use proto::sha256::{CoinbaseFields, CoinbaseHasher, Kernel, header_hashes_with};

/// Shares in one call: a lone one, a vector full, and a burst.
const COUNTS: [usize; 3] = [1, 16, 64];

fn available() -> impl Iterator<Item = Kernel> {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

fn coinbases(count: usize) -> Vec<CoinbaseFields> {
    let fields = |number| CoinbaseFields { extranonce: [number as u8; 24], sequence: Some(1) };
    (0..count).map(fields).collect()
}

/// A path so long that little else is left: 1 + 1 + 3 for each branch.
fn compression(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compression");
    let hasher = CoinbaseHasher::new(&[], &[2; 4], &[[7; 32]; MERKLE_PATH_MAX]);
    for kernel in available() {
        let coinbases = coinbases(kernel.lanes());
        let mut roots = vec![[0; 32]; kernel.lanes()];
        group.throughput(Throughput::Elements((kernel.lanes() * (2 + 3 * MERKLE_PATH_MAX)) as u64));
        group.bench_function(format!("{kernel:?}"), |bencher| {
            bencher.iter(|| hasher.roots_with(kernel, black_box(&coinbases), &mut roots));
        });
    }
    group.finish();
}

fn extended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("extended share");
    let hasher = CoinbaseHasher::new(&[1; 71], &[2; 153], &[[7; 32]; 12]);
    for (kernel, count) in available().flat_map(|kernel| COUNTS.map(|count| (kernel, count))) {
        let coinbases = coinbases(count);
        let mut headers = vec![[5; 80]; count];
        let mut hashes = vec![[0; 32]; count];
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new(format!("{kernel:?}"), count), |bencher| {
            bencher.iter(|| {
                let coinbases = black_box(&coinbases);
                hasher.shares_with(kernel, coinbases, &mut headers, &mut hashes);
            });
        });
    }
    group.finish();
}

fn standard(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("standard share");
    for (kernel, count) in available().flat_map(|kernel| COUNTS.map(|count| (kernel, count))) {
        let headers = vec![[5; 80]; count];
        let mut hashes = vec![[0; 32]; count];
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new(format!("{kernel:?}"), count), |bencher| {
            bencher.iter(|| header_hashes_with(kernel, black_box(&headers), &mut hashes));
        });
    }
    group.finish();
}

fn job(criterion: &mut Criterion) {
    criterion.bench_function("what is done once for a template", |bencher| {
        bencher.iter(|| CoinbaseHasher::new(black_box(&[1; 71]), &[2; 153], &[[7; 32]; 12]));
    });
}

criterion_group!(benches, compression, extended, standard, job);
criterion_main!(benches);
