//! SHA-256: what a compression costs by each kernel of this CPU, and what of that limit the share paths
//! reach. The limit is the fastest kernel's own speed times the compressions of a share.

use std::hint::black_box;

use anyhow::{Result, ensure};

use proto::limits::{EXTRANONCE_LEN, MERKLE_PATH_MAX};
use proto::mining::Kind;
use proto::sha256::{CoinbaseFields, CoinbaseHasher, Kernel};

use super::Effort;
use super::clock::{Cost, rounds, time};
use super::cpu::Needs;
use super::inputs::{EXTENDED_COMPRESSIONS, STANDARD_COMPRESSIONS};
use super::report::{Goal, Row};

/// Coinbase and txid of one block each, and three for each branch of the longest path.
const COMPRESSIONS: usize = 2 + 3 * MERKLE_PATH_MAX;

/// What our two ways of hashing shares took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hashed {
    pub(super) single: Cost,
    pub(super) batched: Cost,
}

/// The kernels beside `sha2`, and the shares beside the kernels.
///
/// # Errors
/// Two kernels that do not agree.
pub(super) fn compare(effort: Effort, extended: Hashed, standard: Hashed) -> Result<Vec<Row>> {
    let kernels: Vec<Kernel> =
        Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).collect();
    let paths = Paths::new()?;
    let count = effort.shares;
    let mut rows = Vec::new();
    let mut fastest: Option<Cost> = None;
    let mut stream = None;
    for kernel in kernels {
        let [ours, sha2] = rounds(effort.rounds, || {
            Ok([paths.compression(kernel, count), sha2_compression(count)])
        })?;
        let path = format!("SHA-256 compression, {kernel:?}, {} at once", kernel.lanes());
        rows.push(Row::time(path, ours, sha2, Goal::Shown).against("one stream of sha2"));
        stream = Some(sha2);
        fastest = fastest.into_iter().chain([ours]).min_by(|a, b| a.median.total_cmp(&b.median));
    }
    let (Some(stream), Some(fastest)) = (stream, fastest) else { return Ok(rows) };
    rows.extend(of_limits(Kind::Extended, extended, stream, fastest));
    rows.extend(of_limits(Kind::Standard, standard, stream, fastest));
    Ok(rows)
}

/// Shares of one kind beside what their compressions alone would take: a lone one in one stream of `sha2`, a
/// burst in the fastest kernel.
fn of_limits(kind: Kind, hashed: Hashed, stream: Cost, fastest: Cost) -> [Row; 2] {
    let (name, compressions, [single, batched]) = match kind {
        Kind::Extended => {
            ("extended", EXTENDED_COMPRESSIONS, [Goal::OfLimit(0.80), Goal::OfLimit(0.85)])
        }
        Kind::Standard => ("standard", STANDARD_COMPRESSIONS, [Goal::Shown; 2]),
    };
    let row = |how: &str, ours, one: Cost, goal| {
        let path = format!("{name} share, {how}, {compressions} compressions");
        Row::time(path, ours, one.times(compressions), goal).against("limit")
    };
    let burst = "64 in a burst: of the fastest kernel";
    [
        row("single: of one stream", hashed.single, stream, single).on_cpus_with(Needs::Sha),
        row(burst, hashed.batched, fastest, batched).on_cpus_with(Needs::ShaOrAvx512),
    ]
}

/// Merkle paths so long that little else is hashed: as on a share, two of three compressions are of
/// nodes and the third is the padding that follows each.
struct Paths {
    hasher: CoinbaseHasher,
    coinbases: Vec<CoinbaseFields>,
}

impl Paths {
    fn new() -> Result<Self> {
        let fields =
            |number| CoinbaseFields { extranonce: [number; EXTRANONCE_LEN], sequence: Some(1) };
        let hasher = CoinbaseHasher::new(&[], &[0; 4], &[[7; 32]; MERKLE_PATH_MAX]);
        let paths = Self { hasher, coinbases: (0..16).map(fields).collect() };
        let reference = paths.roots(Kernel::Portable);
        for kernel in Kernel::ALL {
            ensure!(paths.roots(kernel) == reference, "{kernel:?} and sha2 differ");
        }
        Ok(paths)
    }

    fn roots(&self, kernel: Kernel) -> Vec<[u8; 32]> {
        let mut roots = vec![[0; 32]; self.coinbases.len()];
        self.hasher.roots_with(kernel, black_box(&self.coinbases), &mut roots);
        roots
    }

    /// Nanoseconds of one, over about `count`.
    fn compression(&self, kernel: Kernel, count: usize) -> f64 {
        let mut roots = vec![[0; 32]; self.coinbases.len()];
        let calls = count.div_ceil(COMPRESSIONS * roots.len()).max(1);
        time(calls * COMPRESSIONS * roots.len(), || {
            for _ in 0..calls {
                self.hasher.roots_with(kernel, black_box(&self.coinbases), &mut roots);
                black_box(&roots);
            }
        })
    }
}

fn sha2_compression(count: usize) -> f64 {
    let mut state = [1; 8];
    let block = [9; 64].into();
    time(count, || {
        for _ in 0..count {
            sha2::compress256(&mut state, std::slice::from_ref(black_box(&block)));
        }
        black_box(state);
    })
}

#[cfg(test)]
mod tests {
    use super::super::cpu::Cpu;
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn a_burst_is_held_against_its_limit_with_avx512_too_and_a_lone_share_with_sha_ni_alone() {
        let hashed = Hashed { single: Cost::exact(100.0), batched: Cost::exact(100.0) };
        let verdicts = |sha, avx512| {
            let one = Cost::exact(84.0 / EXTENDED_COMPRESSIONS);
            let rows = of_limits(Kind::Extended, hashed, one, one);
            rows.map(|row| row.verdict(Cpu { sha, avx512 }))
        };
        assert_eq!(verdicts(true, true), [Verdict::Met, Verdict::Missed]);
        assert_eq!(verdicts(true, false), [Verdict::Met, Verdict::Missed]);
        assert_eq!(verdicts(false, true), [Verdict::NotHere(Needs::Sha), Verdict::Missed]);
        let neither = [Verdict::NotHere(Needs::Sha), Verdict::NotHere(Needs::ShaOrAvx512)];
        assert_eq!(verdicts(false, false), neither);
    }
}
