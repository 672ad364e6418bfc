//! `compare`: our paths beside SRI's crates, in one process, on the same inputs, in turn. Called by
//! `bin/compare.rs`; the criterion benches use its inputs.
//!
//! No goal may be met by measuring less work: every part holds the two sides' results against each other
//! in the run that it times, and fails if they differ.

pub mod allocations;
pub mod clock;
pub mod cpu;
pub mod inputs;
pub mod pool;
pub mod report;
pub mod sri;

mod codec;
mod duplicates;
mod hashing;
mod link;
mod shares;

use anyhow::Result;

use cpu::Cpu;
use report::Row;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Rounds of every path.
    pub rounds: usize,
    /// Shares in a round; other paths do as many, or fewer where one takes long.
    pub shares: usize,
}

impl Effort {
    /// What ratios are judged by.
    pub const FULL: Self = Self { rounds: 11, shares: 16_000 };
    /// Enough to hold verdicts against each other, too little to time anything.
    pub const QUICK: Self = Self { rounds: 1, shares: 256 };
}

/// Every row.
///
/// # Errors
/// Two sides that do not agree; the message says on what.
pub fn compare(effort: Effort, cpu: Cpu) -> Result<Vec<Row>> {
    let (mut rows, extended, standard) = shares::compare(effort, cpu)?;
    rows.extend(duplicates::compare(effort)?);
    rows.extend(codec::compare(effort)?);
    rows.extend(link::compare(effort)?);
    rows.extend(hashing::compare(effort, extended, standard)?);
    Ok(rows)
}
