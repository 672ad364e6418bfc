//! The owner's own count of his work: what his devices found and what became of it at each pool. Part of
//! `declarator.rs`; compared with what a pool says by `credit.rs`.
//!
//! Every share is counted once: below the pool's target, waiting, sent, or lost with its reason; and of those
//! sent every one is acknowledged, refused, or unanswered.

use std::collections::BTreeMap;

use proto::target::Difficulty;
use ruint::aliases::U256;

use super::session::{PASSED_OVER, Sent};

/// Different refusals that are counted by name; all others together.
const CODES_MAX: usize = 16;
/// A pool's code as a key: nobody's text is kept at any length.
const CODE_LEN_MAX: usize = 64;

/// Why a share earned nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShareLoss {
    /// Its job was not promised while its tip was one.
    NeverPromised,
    /// The pool was lost while its job waited for a promise.
    PoolGone,
    /// The pool was left for a better one.
    PoolLeft,
    /// It was sent, and the pool was gone before it answered.
    Unanswered,
    /// Too many waited.
    TooMany,
    /// Its time is further ahead than pools take.
    Ahead,
}

impl ShareLoss {
    /// Every reason, for tables.
    pub const ALL: [Self; 6] = [
        Self::NeverPromised,
        Self::PoolGone,
        Self::PoolLeft,
        Self::Unanswered,
        Self::TooMany,
        Self::Ahead,
    ];

    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NeverPromised => "its job was not promised in time",
            Self::PoolGone => "the pool was lost before it promised the job",
            Self::PoolLeft => "the pool was left for a better one",
            Self::Unanswered => "the pool was lost before it answered",
            Self::TooMany => "too many waited for a promise",
            Self::Ahead => "the device's clock is too far ahead",
        }
    }
}

/// What the devices found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Good shares of all devices.
    pub shares: u64,
    /// Expected hashes of them.
    pub work: U256,
    /// Those of solo work.
    pub solo_shares: u64,
    /// Expected hashes of them.
    pub solo_work: U256,
    /// Of jobs that were forgotten: they came very late.
    pub forgotten: u64,
    /// Blocks.
    pub blocks: u64,
}

/// What became of shares at one pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolTally {
    /// Good for the device and below what the pool takes: the device's own measure is finer.
    pub below: u64,
    /// Waiting for their job's promise.
    pub waiting: u64,
    /// Sent.
    pub sent: u64,
    /// Acknowledged.
    pub acknowledged: u64,
    /// Expected hashes of those, at the targets that the pool set.
    pub acknowledged_work: U256,
    /// Refused, by the pool's code.
    pub refused: BTreeMap<String, u64>,
    /// Lost, by reason.
    pub lost: BTreeMap<ShareLoss, u64>,
    /// Jobs of the owner's that the pool promised.
    pub promised: u64,
}

impl PoolTally {
    /// A share that does not even wait any more.
    pub(super) fn lose_at_once(&mut self, loss: ShareLoss) {
        self.waiting += 1;
        self.lose(loss, 1);
    }

    pub(super) fn acknowledge(&mut self, credited: &[Sent]) {
        self.acknowledged += credited.len() as u64;
        for sent in credited {
            // A block that misses the share's target shows no more than that it is one.
            let target = if sent.is_below { Difficulty::MIN.target() } else { sent.target };
            let work = target.work();
            self.acknowledged_work = self.acknowledged_work.saturating_add(work);
        }
    }

    /// Shares that an acknowledgement left out. Kept apart from the pool's own words, however many those are.
    pub(super) fn pass_over(&mut self, shares: u64) {
        if shares > 0 {
            *self.refused.entry(PASSED_OVER.to_owned()).or_default() += shares;
        }
    }

    pub(super) fn refuse(&mut self, code: &str) {
        let code = &code[..code.floor_char_boundary(CODE_LEN_MAX)];
        let is_known = self.refused.contains_key(code);
        let code = if is_known || self.refused.len() < CODES_MAX { code } else { "other" };
        *self.refused.entry(code.to_owned()).or_default() += 1;
    }

    /// Waiting shares, or those without an answer, that earn nothing.
    pub(super) fn lose(&mut self, loss: ShareLoss, shares: u64) {
        if shares == 0 {
            return;
        }
        *self.lost.entry(loss).or_default() += shares;
        if !matches!(loss, ShareLoss::Unanswered | ShareLoss::TooMany | ShareLoss::Ahead) {
            self.waiting = self.waiting.saturating_sub(shares);
        }
    }

    /// All refusals.
    #[must_use]
    pub fn refused_in_all(&self) -> u64 {
        self.refused.values().sum()
    }

    /// All losses.
    #[must_use]
    pub fn lost_in_all(&self) -> u64 {
        self.lost.values().sum()
    }
}
