//! Which proofs a channel has shown under one tip. Asked and told by `mining::channel` with every share
//! that is otherwise good. Must never refuse a share for want of room: the ledger judges in the end.

use crate::limits::SEEN_SHARES_MAX;

/// Hashes by 64 of their bits. A collision needs two of the sender's own shares with 64 equal bits and
/// costs only the sender; the ledger compares more.
///
/// A table of keys alone, 8 bytes each, at most three quarters full. A key is looked for from the bucket
/// that its own bits name: they are bits of a SHA-256 hash, and whoever would crowd a bucket must find
/// that many shares for it.
#[derive(Debug, Default)]
pub struct Seen {
    /// As many as a power of two, or none.
    buckets: Box<[Bucket]>,
    count: usize,
}

/// Keys that stand together: a line of the cache, compared at once. Split in two words each, because
/// every CPU compares vectors of those. The used ones come first.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    low: [u32; BUCKET],
    high: [u32; BUCKET],
}

#[derive(Debug, Clone, Copy)]
struct Key {
    low: u32,
    high: u32,
}

const BUCKET: usize = 8;
/// Keys for each bucket at which the table grows.
const FULL: usize = 6;
/// The low word of no key: one that would have it is taken for its neighbour.
const FREE: u32 = 0;

impl Seen {
    /// `false` if this hash was here before. At `SEEN_SHARES_MAX` nothing more is remembered and the
    /// ledger alone judges: a flood can end nobody's channel.
    pub fn insert(&mut self, hash: &[u8; 32]) -> bool {
        let key = Key::of(hash);
        if self.count >= self.buckets.len() * FULL {
            self.grow();
        }
        let mut at = key.home(self.buckets.len());
        loop {
            let bucket = &mut self.buckets[at];
            if bucket.has(key) {
                return false;
            }
            let used = bucket.used();
            if used < BUCKET {
                if self.count < SEEN_SHARES_MAX {
                    bucket.put(used, key);
                    self.count += 1;
                }
                return true;
            }
            // Full: its keys go on in the next, and there always is one with room.
            at = (at + 1) & (self.buckets.len() - 1);
        }
    }

    /// Twice as many buckets, each old one's keys in two that stand together.
    #[cold]
    fn grow(&mut self) {
        let len = (self.buckets.len() * 2).max(1);
        let mut grown = vec![Bucket::EMPTY; len].into_boxed_slice();
        for (at, bucket) in self.buckets.iter().enumerate() {
            let first = 2 * at;
            // Counted here: to look for room would be to read back what was just written.
            let (mut left, mut right) = (grown[first].used(), grown[first + 1].used());
            for key in bucket.keys() {
                let half = key.home(len).wrapping_sub(first);
                let used = if half == 0 { left } else { right };
                if half < 2 && used < BUCKET {
                    grown[first + half].put(used, key);
                    (left, right) = (left + 1 - half, right + half);
                } else {
                    // It stood here because its own bucket was full, or has to move on now.
                    place(&mut grown, key);
                    (left, right) = (grown[first].used(), grown[first + 1].used());
                }
            }
        }
        self.buckets = grown;
    }

    /// Forgets everything: a new tip makes every old header impossible. A table that was put to use is
    /// kept, because the next tip will want as much; one that was not is given back, so that a channel
    /// that has fallen silent holds nothing.
    pub fn clear(&mut self) {
        if self.count * 4 >= self.buckets.len() * FULL {
            self.buckets.fill(Bucket::EMPTY);
            self.count = 0;
        } else {
            *self = Self::default();
        }
    }
}

/// Puts a key that is not there into the first bucket with room from its own on.
fn place(buckets: &mut [Bucket], key: Key) {
    let mut at = key.home(buckets.len());
    while buckets[at].used() == BUCKET {
        at = (at + 1) & (buckets.len() - 1);
    }
    buckets[at].put(buckets[at].used(), key);
}

impl Key {
    /// The low bytes of a header hash are as good as random; the high ones are the zeros that the miner
    /// worked for.
    #[inline]
    fn of(hash: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *hash;
        let low = u32::from_le_bytes([a, b, c, d]).max(FREE + 1);
        Self { low, high: u32::from_le_bytes([e, f, g, h]) }
    }

    /// The bucket that it is looked for first: by the top bits, so that a table that grows stays in order.
    #[inline]
    fn home(self, buckets: usize) -> usize {
        ((u64::from(self.high) * buckets as u64) >> 32) as usize
    }
}

impl Bucket {
    const EMPTY: Self = Self { low: [FREE; BUCKET], high: [0; BUCKET] };

    // No early end in either: which key it is that ends a search cannot be predicted.

    #[inline]
    fn has(&self, key: Key) -> bool {
        let words = self.low.iter().zip(&self.high);
        words.fold(false, |found, (low, high)| found | ((*low == key.low) & (*high == key.high)))
    }

    #[inline]
    fn used(&self) -> usize {
        self.low.iter().map(|low| usize::from(*low != FREE)).sum()
    }

    #[inline]
    fn put(&mut self, at: usize, key: Key) {
        (self.low[at], self.high[at]) = (key.low, key.high);
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let words = self.low.iter().zip(&self.high);
        words.take_while(|(low, _)| **low != FREE).map(|(low, high)| Key { low: *low, high: *high })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn hash(number: u64) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        hash
    }

    /// As hashes are: all over the table.
    fn scattered(number: u64) -> [u8; 32] {
        hash(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    proptest! {
        #[test]
        fn what_was_shown_is_known_and_nothing_else_is(
            // Few places for many: also those that all crowd one, the last one too.
            keys in proptest::collection::vec(
                (1u64..40, prop::sample::select(vec![1u64, 16, 1 << 32, 1 << 58, u64::MAX])),
                0..400,
            ),
        ) {
            let (mut seen, mut model) = (Seen::default(), HashSet::new());
            for (number, stride) in keys {
                let key = number.wrapping_mul(stride);
                prop_assert_eq!(seen.insert(&hash(key)), model.insert(key));
            }
            prop_assert_eq!(seen.count, model.len());
            for key in model {
                prop_assert!(!seen.insert(&hash(key)));
            }
        }

        #[test]
        fn growing_loses_nothing_and_takes_no_more_than_it_says(count in 1u64..20_000) {
            let mut seen = Seen::default();
            for number in 1..=count {
                prop_assert!(seen.insert(&scattered(number)));
            }
            for number in 1..=count {
                prop_assert!(!seen.insert(&scattered(number)));
            }
            // Twice what is three quarters full, at most; a bucket for the first.
            let bytes = size_of_val(&*seen.buckets);
            prop_assert!(bytes <= (count as usize * 8 * 8 / 3).max(64), "{} bytes", bytes);
        }
    }

    #[test]
    fn a_table_is_kept_for_the_next_tip_and_given_back_when_it_is_not_used() {
        let mut seen = Seen::default();
        let fill =
            |seen: &mut Seen, count| (1..=count).all(|number| seen.insert(&scattered(number)));
        assert!(fill(&mut seen, 1_000));
        let len = seen.buckets.len();
        seen.clear();
        assert!(fill(&mut seen, len as u64 * FULL as u64 / 4), "what was cleared is new again");
        assert_eq!(seen.buckets.len(), len);
        seen.clear();
        assert!(fill(&mut seen, len as u64 * FULL as u64 / 4 - 1));
        assert_eq!(seen.buckets.len(), len, "a quarter was used");
        seen.clear();
        assert_eq!(seen.buckets.len(), 0, "one less was");
        assert!(fill(&mut seen, 10));
    }

    #[test]
    fn a_hash_of_zeros_is_remembered_like_any_other() {
        let mut seen = Seen::default();
        assert!(seen.insert(&[0; 32]));
        assert!(!seen.insert(&[0; 32]));
    }

    #[test]
    fn beyond_its_bound_it_forgets_nothing_and_remembers_no_more() {
        let mut seen = Seen::default();
        for number in 1..=SEEN_SHARES_MAX as u64 {
            assert!(seen.insert(&scattered(number)));
        }
        let more = scattered(SEEN_SHARES_MAX as u64 + 1);
        assert!(seen.insert(&more) && seen.insert(&more));
        assert!(!seen.insert(&scattered(1)) && !seen.insert(&scattered(SEEN_SHARES_MAX as u64)));
        seen.clear();
        assert!(seen.insert(&scattered(1)));
    }
}
