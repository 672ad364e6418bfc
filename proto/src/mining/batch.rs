//! Accepted shares between their check and their acknowledgement: the batch that is still open, and
//! those that wait for the ledger's word. Used by `server`. A share is told `Success` only from here,
//! and only when its batch came back committed.

use std::collections::VecDeque;

use crate::limits::{
    CREDIT_BATCH_AGE_MS, CREDIT_BATCH_MAX, CREDIT_BATCH_WAITING_MAX, CREDIT_BATCHES_OPEN_MAX,
};
use crate::mining::{ChannelId, Committed, CreditBatch, CreditGroup, DeclaredId};
use crate::share::Proof;
use crate::target::Difficulty;

/// What is told about a share once its batch is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Receipt {
    pub(super) channel: ChannelId,
    pub(super) sequence_number: u32,
    pub(super) hash: [u8; 32],
    pub(super) difficulty: Difficulty,
    pub(super) received_ms: u64,
}

/// The open batch and the ones under way.
#[derive(Debug, Default)]
pub(super) struct Batches {
    next_id: u64,
    groups: Vec<CreditGroup>,
    receipts: Vec<Receipt>,
    under_way: VecDeque<(u64, Vec<Receipt>)>,
}

impl Batches {
    /// Puts a proof into the open batch; the batch itself once that makes it full.
    pub(super) fn add(
        &mut self,
        group: impl FnOnce() -> CreditGroup,
        belongs: impl Fn(&CreditGroup) -> bool,
        proof: Proof,
        receipt: Receipt,
    ) -> Option<CreditBatch> {
        match self.groups.iter_mut().rev().find(|group| belongs(group)) {
            Some(open) => open.proofs.push(proof),
            None => {
                let mut new = group();
                new.proofs.push(proof);
                self.groups.push(new);
            }
        }
        self.receipts.push(receipt);
        let leaves = self.receipts.len() >= CREDIT_BATCH_MAX && !self.ledger_is_behind();
        leaves.then(|| self.close()).flatten()
    }

    /// As many batches wait for the ledger as may: the open one stays and grows, so that shares are
    /// still read and a block among them is not held back by a store that is away.
    fn ledger_is_behind(&self) -> bool {
        self.under_way.len() >= CREDIT_BATCHES_OPEN_MAX
    }

    /// Whether so many shares still find a place.
    pub(super) fn has_room_for(&self, shares: usize) -> bool {
        !self.ledger_is_behind() || self.receipts.len() + shares <= CREDIT_BATCH_WAITING_MAX
    }

    /// When the open batch must leave, mono ms; not before the ledger answers if it is behind.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        let first = self.receipts.first().filter(|_| !self.ledger_is_behind());
        first.map(|first| first.received_ms.saturating_add(CREDIT_BATCH_AGE_MS))
    }

    /// Closes the open batch if there is anything in it.
    pub(super) fn close(&mut self) -> Option<CreditBatch> {
        if self.receipts.is_empty() {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.under_way.push_back((id, std::mem::take(&mut self.receipts)));
        Some(CreditBatch { id, groups: std::mem::take(&mut self.groups) })
    }

    /// The receipts of a batch that came back. A batch nobody knows (there is none unless we are
    /// wrong) gives nothing.
    pub(super) fn committed(&mut self, committed: &Committed) -> Vec<Receipt> {
        match self.under_way.iter().position(|(id, _)| *id == committed.id) {
            Some(at) => self.under_way.remove(at).map(|(_, receipts)| receipts).unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// The declared jobs that the open batch has shares of; one may be named twice.
    pub(super) fn open_declared(&self) -> impl Iterator<Item = DeclaredId> {
        self.groups.iter().filter_map(|group| group.worth.declared)
    }

    /// Batches that wait for the ledger.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }
}
