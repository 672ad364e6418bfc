//! The duplicate check: `Seen` beside the `HashSet` of whole hashes that SRI's channels keep, which is
//! asked first and then added to. New hashes into an empty set, as after a tip.

use std::collections::HashSet;
use std::hint::black_box;

use anyhow::{Result, ensure};
use bitcoin::hashes::{Hash, sha256d};

use proto::share::Seen;
use proto::template;

use super::clock::{rounds, time};
use super::report::{Goal, Row, Unit};
use super::{Effort, allocations};

/// Time and memory of a remembered share.
///
/// # Errors
/// The two sides do not agree on what was there before.
pub(super) fn compare(effort: Effort) -> Result<Vec<Row>> {
    let hashes: Vec<[u8; 32]> =
        (0..effort.shares as u32).map(|number| template::sha256d(&number.to_le_bytes())).collect();
    let theirs: Vec<sha256d::Hash> =
        hashes.iter().map(|hash| sha256d::Hash::from_byte_array(*hash)).collect();
    let [ours_ns, theirs_ns] = rounds(effort.rounds, || {
        let (mut seen, mut set) = (Seen::default(), HashSet::new());
        let (mut new, mut also_new) = (0, 0);
        let ours = time(hashes.len(), || new = ours_take(&mut seen, &hashes));
        let sri = time(hashes.len(), || also_new = theirs_take(&mut set, &theirs));
        ensure!((new, also_new) == (hashes.len(), hashes.len()), "{new} and {also_new} are new");
        let again = (ours_take(&mut seen, &hashes), theirs_take(&mut set, &theirs));
        ensure!(again == (0, 0), "{again:?} are new the second time");
        Ok([ours, sri])
    })?;
    let (mut seen, mut set) = (Seen::default(), HashSet::new());
    let (ours, _) = allocations::during(|| ours_take(&mut seen, &hashes));
    let (sri, _) = allocations::during(|| theirs_take(&mut set, &theirs));
    let each = |counted: allocations::Counted| counted.bytes_kept as f64 / hashes.len() as f64;
    Ok(vec![
        Row::time("duplicate check", ours_ns, theirs_ns, Goal::Faster(20.0)),
        Row::counted(
            "duplicate check, a share remembered",
            Unit::Bytes,
            each(ours),
            each(sri),
            Goal::AtMost(17.0),
        ),
    ])
}

fn ours_take(seen: &mut Seen, hashes: &[[u8; 32]]) -> usize {
    hashes.iter().filter(|hash| seen.insert(black_box(*hash))).count()
}

fn theirs_take(set: &mut HashSet<sha256d::Hash>, hashes: &[sha256d::Hash]) -> usize {
    let new = |hash: &&sha256d::Hash| !set.contains(black_box(*hash)) && set.insert(**hash);
    hashes.iter().filter(new).count()
}
