//! The transactions of a declared block besides its coinbase, and what follows from them alone. Made by
//! `check`, shared by all who declare the same list: whoever comes second costs a reference count.

use std::sync::Arc;

use bitcoin::hashes::{Hash, sha256};
use proto::template::merkle_path;

use super::transaction::Transaction;

/// Immutable; shared by `Arc`.
#[derive(Debug)]
pub struct Body {
    id: [u8; 32],
    /// In block order, in full.
    transactions: Arc<Vec<Arc<[u8]>>>,
    /// Siblings of the coinbase, deepest first.
    merkle_path: Vec<[u8; 32]>,
    /// What a coinbase commits to with a reserved value of zeros.
    commitment: [u8; 32],
    weight: u64,
    sigop_cost: u64,
    has_witness: bool,
}

impl Body {
    /// `transactions` in block order; `id` and `commitment` are those of their list.
    pub(super) fn new(transactions: &[Transaction], id: [u8; 32], commitment: [u8; 32]) -> Self {
        let txids: Vec<[u8; 32]> = transactions.iter().map(|one| *one.txid()).collect();
        Self {
            id,
            merkle_path: merkle_path(&txids),
            commitment,
            weight: transactions.iter().map(|one| u64::from(one.weight())).sum(),
            sigop_cost: transactions.iter().map(|one| u64::from(one.sigop_cost())).sum(),
            has_witness: transactions.iter().any(Transaction::has_witness),
            transactions: Arc::new(
                transactions.iter().map(|one| Arc::clone(one.bytes())).collect(),
            ),
        }
    }

    /// What names a list of wtxids: its SHA256.
    #[must_use]
    pub fn list_id(wtxids: &[[u8; 32]]) -> [u8; 32] {
        sha256::Hash::hash(wtxids.as_flattened()).to_byte_array()
    }

    /// The `list_id` of its transactions.
    #[must_use]
    pub fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// In block order, in full.
    #[must_use]
    pub fn transactions(&self) -> &Arc<Vec<Arc<[u8]>>> {
        &self.transactions
    }

    /// Siblings of the coinbase, deepest first.
    #[must_use]
    pub fn merkle_path(&self) -> &[[u8; 32]] {
        &self.merkle_path
    }

    /// Weight units of the transactions.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    pub(super) fn sigop_cost(&self) -> u64 {
        self.sigop_cost
    }

    pub(super) fn has_witness(&self) -> bool {
        self.has_witness
    }
}
