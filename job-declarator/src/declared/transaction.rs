//! A transaction of a declared block, taken apart where it lies: ids, weight and signature operations
//! without a copy. Called by `check` with what a miner supplied, by `coinbase`, and by whoever keeps
//! transactions for later checks.
//!
//! Must never panic, and never allocates on a length's word: what a count announces has to be there.
//! Stricter than the network's encoding in one thing: a transaction without inputs or outputs, which no
//! block may hold, is none.

use std::sync::Arc;

use bitcoin::Script;
use bitcoin::hashes::{Hash, sha256d};

use crate::limits::{BLOCK_LEN_MAX, WITNESS_SCALE};

/// A transaction with what a block's check asks of it. A clone costs a reference count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    bytes: Arc<[u8]>,
    txid: [u8; 32],
    wtxid: [u8; 32],
    weight: u32,
    sigop_cost: u32,
    is_coinbase: bool,
}

impl Transaction {
    /// Reads a transaction that fills `bytes`, with its witness where it has one. `None` if they are
    /// anything else.
    #[must_use]
    pub fn read(bytes: Arc<[u8]>) -> Option<Self> {
        if bytes.len() > BLOCK_LEN_MAX {
            return None;
        }
        let layout = Layout::read(&bytes)?;
        let wtxid = sha256d::Hash::hash(&bytes).to_byte_array();
        let txid = if layout.has_witness() { layout.txid() } else { wtxid };
        // Both fit: bytes are bounded above, and each is at most 20 operations, weighted by 4.
        let weight = layout.weight() as u32;
        let sigop_cost = layout.legacy_sigops as u32 * WITNESS_SCALE as u32;
        let is_coinbase = layout.is_coinbase();
        Some(Self { bytes, txid, wtxid, weight, sigop_cost, is_coinbase })
    }

    /// In full, as it stands in a block.
    #[must_use]
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Header byte order.
    #[must_use]
    pub fn txid(&self) -> &[u8; 32] {
        &self.txid
    }

    /// Header byte order; equals the txid where there is no witness.
    #[must_use]
    pub fn wtxid(&self) -> &[u8; 32] {
        &self.wtxid
    }

    /// Weight units (BIP141).
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Bytes without marker and witness, as a signature from before BIP143 hashes them.
    #[must_use]
    pub fn stripped_len(&self) -> u64 {
        (u64::from(self.weight) - self.bytes.len() as u64) / (WITNESS_SCALE - 1)
    }

    /// Cost of the signature operations that stand in the open (BIP141). Those of the scripts behind
    /// spent outputs come on top; only a node knows them.
    #[must_use]
    pub fn sigop_cost(&self) -> u32 {
        self.sigop_cost
    }

    /// Whether it carries a witness, so that a block with it must commit to witnesses.
    #[must_use]
    pub fn has_witness(&self) -> bool {
        self.txid != self.wtxid
    }

    /// Whether it spends nothing, as only the first of a block may.
    #[must_use]
    pub fn is_coinbase(&self) -> bool {
        self.is_coinbase
    }
}

/// Where the fields of a transaction lie in its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'a> {
    pub(super) version: u32,
    pub(super) input_count: u64,
    pub(super) first_input: Input<'a>,
    /// The outputs with their count.
    pub(super) counted_outputs: &'a [u8],
    /// The witness stacks of all inputs; `None` in the form without a marker.
    pub(super) witness: Option<&'a [u8]>,
    pub(super) lock_time: u32,
    /// Signature operations in scripts that stand in the open, counted as before BIP16.
    pub(super) legacy_sigops: u64,
    /// Inputs and outputs with their counts.
    body: &'a [u8],
    len: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) previous_output: &'a [u8; 36],
    pub(super) script_sig: &'a [u8],
    pub(super) sequence: u32,
}

/// The previous output of a coinbase: no transaction's, at the last position.
pub(crate) const NULL_OUTPOINT: [u8; 36] = {
    let mut outpoint = [0; 36];
    let mut at = 32;
    while at < 36 {
        outpoint[at] = 0xff;
        at += 1;
    }
    outpoint
};

impl<'a> Layout<'a> {
    /// A transaction that fills `bytes`.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let version = cursor.u32()?;
        // There is always an input, so a zero is the marker of BIP144 and the flag follows.
        let has_marker = cursor.0.first() == Some(&0);
        if has_marker && cursor.array()? != &[0, 1] {
            return None;
        }
        let from_body = cursor.0;
        let input_count = cursor.compact_size()?;
        let mut legacy_sigops = 0;
        let mut first_input = None;
        for _ in 0..input_count {
            let input = cursor.input()?;
            legacy_sigops += sigops(input.script_sig);
            first_input.get_or_insert(input);
        }
        let first_input = first_input?;
        let from_outputs = cursor.0;
        let output_count = cursor.compact_size()?;
        for _ in 0..output_count {
            legacy_sigops += sigops(cursor.output()?.1);
        }
        let counted_outputs = up_to(from_outputs, cursor);
        let body = up_to(from_body, cursor);
        let witness = if has_marker { Some(cursor.witnesses(input_count)?) } else { None };
        let lock_time = cursor.u32()?;
        (cursor.0.is_empty() && output_count > 0).then_some(Self {
            version,
            input_count,
            first_input,
            counted_outputs,
            witness,
            lock_time,
            legacy_sigops,
            body,
            len: bytes.len(),
        })
    }

    pub(super) fn has_witness(&self) -> bool {
        self.witness.is_some()
    }

    pub(super) fn is_coinbase(&self) -> bool {
        self.input_count == 1 && *self.first_input.previous_output == NULL_OUTPOINT
    }

    /// Weight units (BIP141): bytes without marker and witness count four times.
    pub(super) fn weight(&self) -> u64 {
        let stripped = 4 + self.body.len() + 4;
        (stripped as u64) * (WITNESS_SCALE - 1) + self.len as u64
    }

    fn txid(&self) -> [u8; 32] {
        let mut stripped = Vec::with_capacity(self.body.len() + 8);
        stripped.extend_from_slice(&self.version.to_le_bytes());
        stripped.extend_from_slice(self.body);
        stripped.extend_from_slice(&self.lock_time.to_le_bytes());
        sha256d::Hash::hash(&stripped).to_byte_array()
    }
}

/// Signature operations as they were counted before BIP16: any script, each OP_CHECKMULTISIG as 20.
pub(super) fn sigops(script: &[u8]) -> u64 {
    Script::from_bytes(script).count_sigops_legacy() as u64
}

/// What `cursor` has taken of `from`, which it once stood before.
fn up_to<'a>(from: &'a [u8], cursor: Cursor<'a>) -> &'a [u8] {
    &from[..from.len() - cursor.0.len()]
}

/// Takes a transaction's parts off the front of some bytes; `None` where they are not there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().copied().map(u32::from_le_bytes)
    }

    /// A CompactSize in its shortest form; the network takes no other.
    pub(super) fn compact_size(&mut self) -> Option<u64> {
        let [first] = *self.array()?;
        match first {
            0..=0xfc => Some(first.into()),
            0xfd => {
                self.array().copied().map(u16::from_le_bytes).map(u64::from).filter(|v| *v > 0xfc)
            }
            0xfe => self.u32().map(u64::from).filter(|value| *value > 0xffff),
            0xff => {
                self.array().copied().map(u64::from_le_bytes).filter(|value| *value > 0xffff_ffff)
            }
        }
    }

    /// Bytes behind their length.
    fn counted_bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.compact_size()?).ok()?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn input(&mut self) -> Option<Input<'a>> {
        Some(Input {
            previous_output: self.array()?,
            script_sig: self.counted_bytes()?,
            sequence: self.u32()?,
        })
    }

    /// Satoshi and script.
    pub(super) fn output(&mut self) -> Option<(u64, &'a [u8])> {
        let sats = u64::from_le_bytes(*self.array()?);
        Some((sats, self.counted_bytes()?))
    }

    /// A stack for each input. All empty is no witness, and then there may be no marker.
    fn witnesses(&mut self, input_count: u64) -> Option<&'a [u8]> {
        let from = self.0;
        let mut is_empty = true;
        for _ in 0..input_count {
            let items = self.compact_size()?;
            is_empty &= items == 0;
            for _ in 0..items {
                self.counted_bytes()?;
            }
        }
        (!is_empty).then_some(up_to(from, *self))
    }
}
