//! Targets and work. A share's target is what it is credited by, so everything here is integers: a
//! hash rate becomes a power of two of difficulty, and work is a count of expected hashes (`U256`).
//! Called by `job`, `share`, `vardiff` and `mining`; knows nothing of channels.
//!
//! Power-of-two difficulties only: the one kind that every firmware computes exactly.

use ruint::aliases::U256;

/// Difficulty 1, as miners and pools count it: 0x00000000FFFF0000...0000.
const DIFFICULTY_ONE: U256 = U256::from_limbs([0, 0, 0, 0x0000_0000_ffff_0000]);

/// A threshold on a header hash read as a little-endian number; the hash must not be above it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(U256);

impl Target {
    /// Every hash meets it.
    pub const MAX: Self = Self(U256::MAX);

    /// From a U256 field of the wire (little-endian).
    #[must_use]
    pub fn from_le_bytes(bytes: [u8; 32]) -> Self {
        Self(U256::from_le_bytes(bytes))
    }

    /// As a U256 field of the wire (little-endian).
    #[must_use]
    pub fn to_le_bytes(self) -> [u8; 32] {
        self.0.to_le_bytes()
    }

    /// The target of a header's `nbits`. Negative and overflowing encodings give zero, which no hash
    /// meets (Bitcoin Core, `arith_uint256::SetCompact`).
    #[must_use]
    pub fn from_compact(nbits: u32) -> Self {
        let exponent = nbits >> 24;
        let mantissa = U256::from(nbits & 0x007f_ffff);
        let negative = nbits & 0x0080_0000 != 0;
        if negative || exponent > 34 || mantissa.is_zero() {
            return Self(U256::ZERO);
        }
        if exponent <= 3 {
            return Self(mantissa >> (8 * (3 - exponent) as usize));
        }
        let shift = 8 * (exponent - 3) as usize;
        if mantissa.bit_len() + shift > 256 {
            return Self(U256::ZERO);
        }
        Self(mantissa << shift)
    }

    /// Whether a header hash (SHA256d, header byte order) is at or below the target. The top word
    /// decides practically every share.
    #[must_use]
    #[inline]
    pub fn is_met_by(&self, hash: &[u8; 32]) -> bool {
        let words = hash.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        words.rev().cmp(self.0.as_limbs().iter().rev().copied()).is_le()
    }

    /// Expected hashes until one meets the target: floor(2^256 / (target + 1)), as Bitcoin Core counts
    /// chain work. Zero targets count as the work of target 0: 2^256 - 1, the nearest number.
    #[must_use]
    pub fn work(self) -> U256 {
        match self.0.checked_add(U256::from(1)) {
            None => U256::from(1),
            // 2^256 / (t + 1) = (2^256 - 1 - t) / (t + 1) + 1, and the first term is !t.
            Some(next) if next == U256::from(1) => U256::MAX,
            Some(next) => (!self.0) / next + U256::from(1),
        }
    }

    /// No hash meets a zero target.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// For people: difficulty as a float, display only.
    #[must_use]
    pub fn difficulty_for_display(self) -> f64 {
        let approximate = |n: U256| {
            n.as_limbs().iter().rev().fold(0.0, |sum, limb| sum * 2f64.powi(64) + *limb as f64)
        };
        approximate(DIFFICULTY_ONE) / approximate(self.0).max(1.0)
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({:064x})", self.0)
    }
}

/// A share difficulty of 2^k, k from -32 (one hash in about one) to 192. Ordered: harder is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difficulty(i16);

impl Difficulty {
    /// The easiest: 2^-32, a target of 0xFFFF followed by zeros.
    pub const MIN: Self = Self(-32);
    /// The hardest that keeps all sixteen bits of the 0xFFFF.
    pub const MAX: Self = Self(192);

    /// 2^`log2`, clamped to what can be expressed.
    #[must_use]
    pub const fn from_log2(log2: i16) -> Self {
        if log2 < Self::MIN.0 {
            Self::MIN
        } else if log2 > Self::MAX.0 {
            Self::MAX
        } else {
            Self(log2)
        }
    }

    /// k of 2^k.
    #[must_use]
    pub const fn log2(self) -> i16 {
        self.0
    }

    /// Difficulty 1's target shifted by k, exactly.
    #[must_use]
    pub fn target(self) -> Target {
        let shift = self.0.unsigned_abs() as usize;
        Target(if self.0 < 0 { DIFFICULTY_ONE << shift } else { DIFFICULTY_ONE >> shift })
    }

    /// Scaled by 2^32 so that the easiest is 1: what sums of difficulty are kept in.
    #[must_use]
    pub fn scaled(self) -> U256 {
        U256::from(1) << ((self.0 - Self::MIN.0) as usize)
    }

    /// The easiest difficulty whose target is not above `max_target`: what a client may be given that
    /// said what it can take. `None` if even the hardest is too easy (zero and near it).
    #[must_use]
    pub fn easiest_within(max_target: Target) -> Option<Self> {
        if max_target < Self::MAX.target() {
            return None;
        }
        // The target of 2^k is 0xFFFF << (240 - 32 - 32 - k ..): compare by bit length, then settle
        // the one case where the top sixteen bits are below 0xFFFF.
        let bits = max_target.0.bit_len() as i16;
        let guess = Self::from_log2(224 - bits);
        Some(if guess.target() <= max_target { guess } else { Self::from_log2(guess.0 + 1) })
    }

    /// The power of two nearest (in ratio) to `hashes` expected hashes per share.
    #[must_use]
    pub fn nearest_to_hashes(hashes: f64) -> Self {
        if hashes.is_nan() || hashes <= 1.0 {
            return Self::MIN;
        }
        // log2 of a finite f64 is below 1,024, so the cast keeps it.
        Self::from_log2((hashes.log2().round() as i16).saturating_sub(32))
    }

    /// Expected hashes per share, 2^(32 + k), for rates and displays.
    #[must_use]
    pub fn hashes(self) -> f64 {
        2f64.powi(i32::from(self.0) + 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn difficulty_one_is_the_well_known_target_and_work() {
        let target = Difficulty::from_log2(0).target();
        assert_eq!(target, Target::from_compact(0x1d00_ffff));
        assert_eq!(target.work(), U256::from(0x1_0001_0001u64));
    }

    #[test]
    fn compact_targets_follow_core() {
        assert!(Target::from_compact(0).is_zero());
        assert!(Target::from_compact(0x0492_3456).is_zero(), "negative");
        assert!(Target::from_compact(0xff12_3456).is_zero(), "overflow");
        assert_eq!(Target::from_compact(0x0112_3456).0, U256::from(0x12));
        assert_eq!(Target::from_compact(0x207f_ffff).0 >> 232, U256::from(0x7f_ffff));
    }

    #[test]
    fn a_hash_equal_to_the_target_meets_it_and_one_more_does_not_p40() {
        let target = Difficulty::from_log2(0).target();
        assert!(target.is_met_by(&target.to_le_bytes()));
        assert!(!target.is_met_by(&(target.0 + U256::from(1)).to_le_bytes::<32>()));
    }

    #[test]
    fn a_declared_limit_is_never_exceeded_and_never_missed_by_two() {
        for log2 in -32..=192 {
            let exact = Difficulty::from_log2(log2);
            assert_eq!(Difficulty::easiest_within(exact.target()), Some(exact));
        }
        assert_eq!(Difficulty::easiest_within(Target::MAX), Some(Difficulty::MIN));
        assert_eq!(Difficulty::easiest_within(Target::from_le_bytes([0; 32])), None);
    }

    proptest! {
        #[test]
        fn compact_targets_and_work_agree_with_the_bitcoin_crate(
            exponent in 0u32..=32,
            mantissa in 0u32..0x0080_0000,
        ) {
            // Above 32 the oracle keeps what overflows; consensus refuses such bits either way.
            let nbits = exponent << 24 | mantissa;
            let oracle = bitcoin::Target::from_compact(bitcoin::CompactTarget::from_consensus(nbits));
            let ours = Target::from_compact(nbits);
            prop_assert_eq!(ours.to_le_bytes(), oracle.to_le_bytes());
            // For a target of 1 the oracle says 2^256 - 1 instead of 2^255.
            if ours.0 > U256::from(1) {
                prop_assert_eq!(ours.work().to_le_bytes::<32>(), oracle.to_work().to_le_bytes());
            }
        }

        #[test]
        fn the_difficulty_within_a_limit_is_the_easiest_such(limit: [u8; 32]) {
            let limit = Target::from_le_bytes(limit);
            if let Some(found) = Difficulty::easiest_within(limit) {
                prop_assert!(found.target() <= limit);
                prop_assert!(found == Difficulty::MIN
                    || Difficulty::from_log2(found.log2() - 1).target() > limit);
            }
        }
    }
}
