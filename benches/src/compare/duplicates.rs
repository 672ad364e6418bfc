//! The duplicate check: `Seen` beside the `HashSet` of whole hashes that SRI's channels keep, which is
//! asked first and then added to. New hashes into an empty set, as on a new channel; and again after a
//! tip, for which each side clears its set as it does when one comes.

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
    let [ours_ns, theirs_ns, ours_next, theirs_next] = rounds(effort.rounds, || {
        let (mut seen, mut set) = (Seen::default(), HashSet::new());
        let [ours, sri] = one_tip(&hashes, &theirs, &mut seen, &mut set)?;
        let [ours_next, sri_next] = one_tip(&hashes, &theirs, &mut seen, &mut set)?;
        Ok([ours, sri, ours_next, sri_next])
    })?;
    let (mut seen, mut set) = (Seen::default(), HashSet::new());
    let (ours, _) = allocations::during(|| ours_take(&mut seen, &hashes));
    let (sri, _) = allocations::during(|| theirs_take(&mut set, &theirs));
    let each = |counted: allocations::Counted| counted.bytes_kept as f64 / hashes.len() as f64;
    Ok(vec![
        Row::time("duplicate check", ours_ns, theirs_ns, Goal::Faster(20.0)),
        Row::time("duplicate check, after a tip", ours_next, theirs_next, Goal::Faster(20.0)),
        Row::counted(
            "duplicate check, a share remembered",
            Unit::Bytes,
            each(ours),
            each(sri),
            Goal::AtMost(17.0),
        ),
    ])
}

/// A tip comes, then all these shares: what each took of either side.
fn one_tip(
    hashes: &[[u8; 32]],
    theirs: &[sha256d::Hash],
    seen: &mut Seen,
    set: &mut HashSet<sha256d::Hash>,
) -> Result<[f64; 2]> {
    let (mut new, mut also_new) = (0, 0);
    let ours = time(hashes.len(), || {
        seen.clear();
        new = ours_take(seen, hashes);
    });
    let sri = time(hashes.len(), || {
        set.clear();
        also_new = theirs_take(set, theirs);
    });
    ensure!((new, also_new) == (hashes.len(), hashes.len()), "{new} and {also_new} are new");
    let again = (ours_take(seen, hashes), theirs_take(set, theirs));
    ensure!(again == (0, 0), "{again:?} are new the second time");
    Ok([ours, sri])
}

fn ours_take(seen: &mut Seen, hashes: &[[u8; 32]]) -> usize {
    hashes.iter().filter(|hash| seen.insert(black_box(*hash))).count()
}

fn theirs_take(set: &mut HashSet<sha256d::Hash>, hashes: &[sha256d::Hash]) -> usize {
    let new = |hash: &&sha256d::Hash| !set.contains(black_box(*hash)) && set.insert(**hash);
    hashes.iter().filter(new).count()
}
