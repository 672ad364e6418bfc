//! What a block is made of before anyone has mined it: the template as a node gave it, the tip it
//! stands on, the coinbase split around the extranonce, and the merkle path. Called by the node side
//! (which fills a `Template`) and by `job.rs` (which makes work of it).
//!
//! Consensus is the node's business; here only lengths and sums are checked, because a job that breaks
//! them would waste every hash spent on it.

use sha2::{Digest, Sha256};
use std::sync::Arc;
use thiserror::Error;

use crate::limits::{EXTRANONCE_LEN, MERKLE_PATH_MAX, SCRIPT_SIG_MAX};
use crate::sha256::pair_hashes;

/// Names a template within one run of the pool; counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TemplateId(pub u64);

/// The tip that work builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrevHash {
    /// Hash of the block before, header byte order (not the reversed hex that people read).
    pub hash: [u8; 32],
    /// Compact target of the block to be found.
    pub nbits: u32,
    /// Unix seconds at which hashing starts; never below what consensus asks (median time past + 1).
    pub min_ntime: u32,
}

impl PrevHash {
    /// Whether work on one is work on the other. On test networks the target of the next block changes
    /// under one tip when none was found for twenty minutes; headers of before are then no blocks.
    #[must_use]
    pub fn is_same_tip(&self, other: &Self) -> bool {
        (self.hash, self.nbits) == (other.hash, other.nbits)
    }
}

/// A coinbase output of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Value in satoshi.
    pub sats: u64,
    /// scriptPubKey.
    pub script: Vec<u8>,
}

/// Transactions in full (with witness), in block order. Shared one by one: templates and declared jobs
/// of one time have nearly all of theirs in common, and so hold each once.
pub type Transactions = Arc<Vec<Arc<[u8]>>>;

/// A block without its coinbase and without its tip, as a node gave it. Immutable, shared by `Arc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Counts up.
    pub id: TemplateId,
    /// Height of the block to be found.
    pub height: u32,
    /// Header version; the BIP323 bits are the miner's to roll.
    pub version: u32,
    /// nVersion of the coinbase transaction.
    pub coinbase_tx_version: u32,
    /// Start of scriptSig: the BIP34 height push, at most 8 bytes.
    pub script_sig_prefix: Vec<u8>,
    /// nSequence of the coinbase input.
    pub coinbase_sequence: u32,
    /// Satoshi that our outputs must sum to: subsidy and fees.
    pub coinbase_value_sats: u64,
    /// Outputs that the template demands (witness commitment), serialised without a count; they go last.
    pub required_outputs: Vec<u8>,
    /// How many they are.
    pub required_outputs_count: u32,
    /// nLockTime of the coinbase transaction.
    pub coinbase_locktime: u32,
    /// Siblings of the coinbase, deepest first; empty for a block of the coinbase alone.
    pub merkle_path: Vec<[u8; 32]>,
    /// Every transaction but the coinbase, in block order. `None` of a declared job whose miner keeps
    /// them to himself (coinbase-only mode): its block is his alone to make.
    pub transactions: Option<Transactions>,
    /// The coinbase carries the witness reserved value (32 zero bytes) because the template commits to
    /// witnesses (BIP141).
    pub commits_to_witnesses: bool,
}

/// A template that no valid coinbase can be made of with what we want in it. Our fault, never a peer's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CoinbaseError {
    /// scriptSig must be 2 to 100 bytes.
    #[error("scriptSig of {0} bytes, 100 is the limit")]
    ScriptSig(usize),
    /// Every satoshi of the template goes somewhere, and no more.
    #[error("outputs of {outputs} sats for a coinbase value of {value}")]
    Sum {
        /// What the outputs sum to.
        outputs: u128,
        /// What the template has to give.
        value: u64,
    },
    /// Prefix and suffix travel as B0_64K.
    #[error("a coinbase of {0} bytes does not fit a job message")]
    TooLong(usize),
    /// A house's job has its number in scriptSig (`Job::for_house`).
    #[error("a coinbase prefix of {0} bytes has no room for a job's number in its scriptSig")]
    NoLead(usize),
    /// A path of more branches than devices take.
    #[error("a merkle path of {0} branches")]
    MerklePath(usize),
}

/// The coinbase transaction around its extranonce, in txid form: no segwit marker, no witness (rule
/// P25; spec 03 §3.7.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoinbaseParts {
    /// Up to and including the push opcode before the extranonce.
    pub prefix: Vec<u8>,
    /// From nSequence on.
    pub suffix: Vec<u8>,
}

impl Template {
    /// The transactions as far as they are known: none of a coinbase-only job.
    #[must_use]
    pub fn known_transactions(&self) -> &[Arc<[u8]>] {
        self.transactions.as_deref().map_or(&[], Vec::as_slice)
    }

    /// The coinbase paying `outputs` (which must sum to `coinbase_value_sats`), with `tag` in its
    /// scriptSig between height and extranonce. Outputs keep their order; the template's own go last.
    pub fn coinbase(&self, outputs: &[Output], tag: &[u8]) -> Result<CoinbaseParts, CoinbaseError> {
        if self.merkle_path.len() > MERKLE_PATH_MAX {
            return Err(CoinbaseError::MerklePath(self.merkle_path.len()));
        }
        let sum: u128 = outputs.iter().map(|output| u128::from(output.sats)).sum();
        if sum != u128::from(self.coinbase_value_sats) {
            return Err(CoinbaseError::Sum { outputs: sum, value: self.coinbase_value_sats });
        }

        let tag_push = if tag.is_empty() { 0 } else { 1 + tag.len() };
        let script_sig = self.script_sig_prefix.len() + tag_push + 1 + EXTRANONCE_LEN;
        // A tag of 76 bytes or more would need another push opcode; the whole is below that with it.
        if script_sig > SCRIPT_SIG_MAX || tag.len() > 75 {
            return Err(CoinbaseError::ScriptSig(script_sig));
        }
        let mut prefix = Vec::with_capacity(64 + script_sig);
        prefix.extend_from_slice(&self.coinbase_tx_version.to_le_bytes());
        prefix.push(1);
        prefix.extend_from_slice(&[0; 32]);
        prefix.extend_from_slice(&[0xff; 4]);
        prefix.push(script_sig as u8);
        prefix.extend_from_slice(&self.script_sig_prefix);
        if !tag.is_empty() {
            prefix.push(tag.len() as u8);
            prefix.extend_from_slice(tag);
        }
        prefix.push(EXTRANONCE_LEN as u8);

        let mut suffix = Vec::new();
        suffix.extend_from_slice(&self.coinbase_sequence.to_le_bytes());
        let count = outputs.len() as u64 + u64::from(self.required_outputs_count);
        write_compact_size(count, &mut suffix);
        for output in outputs {
            suffix.extend_from_slice(&output.sats.to_le_bytes());
            write_compact_size(output.script.len() as u64, &mut suffix);
            suffix.extend_from_slice(&output.script);
        }
        suffix.extend_from_slice(&self.required_outputs);
        suffix.extend_from_slice(&self.coinbase_locktime.to_le_bytes());
        if suffix.len() > 65_535 {
            return Err(CoinbaseError::TooLong(suffix.len()));
        }
        Ok(CoinbaseParts { prefix, suffix })
    }
}

impl CoinbaseParts {
    /// The transaction as it stands in a block: with marker and witness if the template commits to
    /// witnesses, as the parts are otherwise.
    #[must_use]
    pub fn with_witness(&self, extranonce: &[u8], commits_to_witnesses: bool) -> Vec<u8> {
        if !commits_to_witnesses {
            return [&self.prefix, extranonce, &self.suffix].concat();
        }
        let (version, inputs) = self.prefix.split_at(4);
        let (body, locktime) = self.suffix.split_at(self.suffix.len() - 4);
        let mut bytes = Vec::with_capacity(self.prefix.len() + self.suffix.len() + 100);
        bytes.extend_from_slice(version);
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(inputs);
        bytes.extend_from_slice(extranonce);
        bytes.extend_from_slice(body);
        // One witness item: the 32-byte reserved value, zeros (BIP141).
        bytes.extend_from_slice(&[1, 32]);
        bytes.extend_from_slice(&[0; 32]);
        bytes.extend_from_slice(locktime);
        bytes
    }
}

/// SHA256 of SHA256.
#[must_use]
pub fn sha256d(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

/// Hash of two tree nodes.
fn parent(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let first = Sha256::new().chain_update(left).chain_update(right).finalize();
    Sha256::digest(first).into()
}

/// The coinbase's siblings in a block of `txids` (every transaction but the coinbase, block order,
/// header byte order), deepest first.
#[must_use]
pub fn merkle_path(txids: &[[u8; 32]]) -> Vec<[u8; 32]> {
    // Position 0 is the coinbase, whose hash is not known yet and which never meets another's sum.
    let mut level: Vec<[u8; 32]> = std::iter::once([0; 32]).chain(txids.iter().copied()).collect();
    let mut path = Vec::new();
    while level.len() > 1 {
        path.push(level[1]);
        // A last node without a partner is paired with itself (the protocol's oldest rule).
        if level.len() % 2 == 1 {
            level.extend_from_within(level.len() - 1..);
        }
        let mut above = vec![[0; 32]; level.len() / 2];
        let (pairs, _) = level[2..].as_flattened().as_chunks();
        pair_hashes(pairs, &mut above[1..]);
        level = above;
    }
    path
}

/// The merkle root over a coinbase txid and its path.
#[must_use]
pub fn merkle_root(coinbase_txid: [u8; 32], path: &[[u8; 32]]) -> [u8; 32] {
    path.iter().fold(coinbase_txid, |node, sibling| parent(&node, sibling))
}

/// Bitcoin's CompactSize.
pub fn write_compact_size(value: u64, out: &mut Vec<u8>) {
    match value {
        0..=0xfc => out.push(value as u8),
        0xfd..=0xffff => {
            out.push(0xfd);
            out.extend_from_slice(&(value as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xfe);
            out.extend_from_slice(&(value as u32).to_le_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}
