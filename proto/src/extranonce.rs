//! Search space. A channel's extranonce is a prefix that we choose and, on an extended channel, bytes
//! that the client rolls; together always `EXTRANONCE_LEN`. Called by `mining::server`, and by `job`, which
//! puts the two together.
//!
//! A pool's prefix is node id, start epoch, channel number. The number only counts up and the epoch is new
//! at each start, so no two channels ever share search space: not on one connection, not across pool
//! nodes, not across restarts (rule P8). Nothing is given back, so there is no lease to get wrong.
//!
//! In a house a channel has its number alone. What comes before it is the job's (`Job::for_house`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::limits::{
    EXTRANONCE_LEN, EXTRANONCE_PREFIX_LEN, EXTRANONCE_ROLLABLE_LEN, HOUSE_LEAD_LEN,
    HOUSE_PREFIX_LEN, HOUSE_ROLLABLE_LEN,
};

/// A full extranonce: the server's part and the client's.
pub type Extranonce = [u8; EXTRANONCE_LEN];

/// Who says what in a full extranonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The channel's prefix 8, rolled 16.
    Pool,
    /// The job's lead 12, the channel's prefix 4, rolled 8.
    House,
}

impl Layout {
    /// Bytes that are the job's and stand in the coinbase prefix that devices are sent.
    #[must_use]
    pub const fn lead_len(self) -> usize {
        match self {
            Self::Pool => 0,
            Self::House => HOUSE_LEAD_LEN,
        }
    }

    /// Bytes that an extended channel may roll.
    #[must_use]
    pub const fn rollable_len(self) -> usize {
        match self {
            Self::Pool => EXTRANONCE_ROLLABLE_LEN,
            Self::House => HOUSE_ROLLABLE_LEN,
        }
    }
}

/// The server's part of a channel's extranonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExtranoncePrefix {
    /// Node id 2, epoch 2, channel number 4, each big-endian.
    Pool([u8; EXTRANONCE_PREFIX_LEN]),
    /// The channel number, big-endian.
    House([u8; HOUSE_PREFIX_LEN]),
}

impl ExtranoncePrefix {
    /// As an extended channel is told it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Pool(bytes) => bytes,
            Self::House(bytes) => bytes,
        }
    }

    /// A pool's, from bytes kept in the store.
    #[must_use]
    pub fn from_bytes(bytes: [u8; EXTRANONCE_PREFIX_LEN]) -> Self {
        Self::Pool(bytes)
    }

    /// The layout that it is a part of.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        match self {
            Self::Pool(_) => Layout::Pool,
            Self::House(_) => Layout::House,
        }
    }

    /// The full extranonce with the client's part behind the prefix, a house's still without its lead:
    /// zeros (`Job::extranonce` puts it there). `None` if the client's part has not exactly the length
    /// that was granted (rule P44).
    #[must_use]
    #[inline]
    pub fn followed_by(&self, rolled: &[u8]) -> Option<Extranonce> {
        let mut full = self.standard();
        match self {
            Self::Pool(_) => {
                let rolled: &[u8; EXTRANONCE_ROLLABLE_LEN] = rolled.try_into().ok()?;
                full[EXTRANONCE_LEN - EXTRANONCE_ROLLABLE_LEN..].copy_from_slice(rolled);
            }
            Self::House(_) => {
                let rolled: &[u8; HOUSE_ROLLABLE_LEN] = rolled.try_into().ok()?;
                full[EXTRANONCE_LEN - HOUSE_ROLLABLE_LEN..].copy_from_slice(rolled);
            }
        }
        Some(full)
    }

    /// The one extranonce of a standard channel: the prefix and zeros, a house's still without its lead
    /// (`Job::standard_extranonce`).
    #[must_use]
    #[inline]
    pub fn standard(&self) -> Extranonce {
        let mut full = [0; EXTRANONCE_LEN];
        match self {
            Self::Pool(prefix) => full[..EXTRANONCE_PREFIX_LEN].copy_from_slice(prefix),
            Self::House(prefix) => {
                full[HOUSE_LEAD_LEN..][..HOUSE_PREFIX_LEN].copy_from_slice(prefix);
            }
        }
        full
    }
}

/// Hands out prefixes. The counter is the one thing that connections share and change; it is a number
/// that only grows.
#[derive(Debug, Clone)]
pub struct ExtranonceAllocator {
    origin: Origin,
    next: Arc<AtomicU32>,
}

/// What stands before a channel's number.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Pool { node: u16, epoch: u16 },
    House,
}

impl ExtranonceAllocator {
    /// For this node and this start of it. `epoch` must be one that this node id never used while
    /// blocks found then could still be mined (the store counts starts).
    #[must_use]
    pub fn new(node: u16, epoch: u16) -> Self {
        Self { origin: Origin::Pool { node, epoch }, next: Arc::default() }
    }

    /// For the devices in a house, whose jobs are all of `Job::for_house`. One for all of them: their
    /// numbers alone keep them apart.
    #[must_use]
    pub fn for_house() -> Self {
        Self { origin: Origin::House, next: Arc::default() }
    }

    /// The layout of what is handed out.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        match self.origin {
            Origin::Pool { .. } => Layout::Pool,
            Origin::House => Layout::House,
        }
    }

    /// A prefix that nobody else has. `None` after 2^32 - 1 channels since the start: then opens are
    /// refused (`channel-capacity-exhausted`) until a restart, never a prefix given twice.
    #[must_use]
    pub fn allocate(&self) -> Option<ExtranoncePrefix> {
        let number = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1))
            .ok()?
            .to_be_bytes();
        Some(match self.origin {
            Origin::Pool { node, epoch } => {
                let mut prefix = [0; EXTRANONCE_PREFIX_LEN];
                prefix[..2].copy_from_slice(&node.to_be_bytes());
                prefix[2..4].copy_from_slice(&epoch.to_be_bytes());
                prefix[4..].copy_from_slice(&number);
                ExtranoncePrefix::Pool(prefix)
            }
            Origin::House => ExtranoncePrefix::House(number),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_nodes_starts_or_channels_share_a_prefix_p8() {
        let mut seen = BTreeSet::new();
        for (node, epoch) in [(1, 1), (1, 2), (2, 1)] {
            let allocator = ExtranonceAllocator::new(node, epoch);
            let clone = allocator.clone();
            for _ in 0..100 {
                assert!(seen.insert(allocator.allocate().unwrap()));
                assert!(seen.insert(clone.allocate().unwrap()));
            }
        }
    }

    #[test]
    fn an_exhausted_counter_refuses_instead_of_starting_over() {
        let allocator = ExtranonceAllocator::new(1, 1);
        allocator.next.store(u32::MAX - 1, Ordering::Relaxed);
        assert!(allocator.allocate().is_some());
        assert!(allocator.allocate().is_none());
        assert!(allocator.allocate().is_none());
    }

    #[test]
    fn only_the_granted_length_completes_an_extranonce_p44() {
        let prefix = ExtranonceAllocator::new(1, 1).allocate().unwrap();
        assert!(prefix.followed_by(&[7; 16]).is_some());
        for wrong in [0, 15, 17, 32] {
            assert!(prefix.followed_by(&vec![7; wrong]).is_none());
        }
        assert_eq!(prefix.standard(), prefix.followed_by(&[0; 16]).unwrap());
    }

    #[test]
    fn a_house_gives_numbers_alone_and_half_as_much_to_roll_p44() {
        let allocator = ExtranonceAllocator::for_house();
        assert_eq!(allocator.allocate().unwrap().as_bytes(), [0, 0, 0, 0]);
        let prefix = allocator.clone().allocate().unwrap();
        assert_eq!(prefix.as_bytes(), [0, 0, 0, 1]);
        assert_eq!((prefix.layout(), allocator.layout()), (Layout::House, Layout::House));
        let full = prefix.followed_by(&[7; 8]).unwrap();
        assert_eq!(full[..12], [0; 12], "the job's lead comes here");
        assert_eq!(full[12..], [0, 0, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7]);
        for wrong in [0, 7, 9, 16, 32] {
            assert!(prefix.followed_by(&vec![7; wrong]).is_none());
        }
        assert_eq!(prefix.standard(), prefix.followed_by(&[0; 8]).unwrap());
    }
}
