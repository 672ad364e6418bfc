//! Search space. A channel's extranonce is a prefix that we choose and, on an extended channel, bytes
//! that the client rolls; together always `EXTRANONCE_LEN`. Called by `mining::server`.
//!
//! A prefix is node id, start epoch, channel number. The number only counts up and the epoch is new at
//! each start, so no two channels ever share search space: not on one connection, not across pool
//! nodes, not across restarts (rule P8). Nothing is given back, so there is no lease to get wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::limits::{EXTRANONCE_LEN, EXTRANONCE_PREFIX_LEN};

/// A full extranonce: the server's part and the client's.
pub type Extranonce = [u8; EXTRANONCE_LEN];

/// The server's part of a channel's extranonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtranoncePrefix([u8; EXTRANONCE_PREFIX_LEN]);

impl ExtranoncePrefix {
    /// The 8 bytes: node id, epoch, channel number, each big-endian.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; EXTRANONCE_PREFIX_LEN] {
        &self.0
    }

    /// From bytes kept in the store.
    #[must_use]
    pub fn from_bytes(bytes: [u8; EXTRANONCE_PREFIX_LEN]) -> Self {
        Self(bytes)
    }

    /// The full extranonce with the client's part behind the prefix. `None` if that part is not
    /// exactly `EXTRANONCE_ROLLABLE_LEN` bytes (rule P44).
    #[must_use]
    pub fn followed_by(&self, rolled: &[u8]) -> Option<Extranonce> {
        let mut full = [0; EXTRANONCE_LEN];
        let (head, tail) = full.split_at_mut(EXTRANONCE_PREFIX_LEN);
        if tail.len() != rolled.len() {
            return None;
        }
        head.copy_from_slice(&self.0);
        tail.copy_from_slice(rolled);
        Some(full)
    }

    /// The one extranonce of a standard channel: the prefix and zeros.
    #[must_use]
    pub fn standard(&self) -> Extranonce {
        let mut full = [0; EXTRANONCE_LEN];
        full[..EXTRANONCE_PREFIX_LEN].copy_from_slice(&self.0);
        full
    }
}

/// Hands out prefixes. The counter is the one thing that connections share and change; it is a number
/// that only grows.
#[derive(Debug, Clone)]
pub struct ExtranonceAllocator {
    node: u16,
    epoch: u16,
    next: Arc<AtomicU32>,
}

impl ExtranonceAllocator {
    /// For this node and this start of it. `epoch` must be one that this node id never used while
    /// blocks found then could still be mined (the store counts starts).
    #[must_use]
    pub fn new(node: u16, epoch: u16) -> Self {
        Self { node, epoch, next: Arc::new(AtomicU32::new(0)) }
    }

    /// A prefix that nobody else has. `None` after 2^32 - 1 channels since the start: then opens are
    /// refused (`channel-capacity-exhausted`) until a restart, never a prefix given twice.
    #[must_use]
    pub fn allocate(&self) -> Option<ExtranoncePrefix> {
        let number = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| number.checked_add(1))
            .ok()?;
        let mut prefix = [0; EXTRANONCE_PREFIX_LEN];
        prefix[..2].copy_from_slice(&self.node.to_be_bytes());
        prefix[2..4].copy_from_slice(&self.epoch.to_be_bytes());
        prefix[4..].copy_from_slice(&number.to_be_bytes());
        Some(ExtranoncePrefix(prefix))
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
}
