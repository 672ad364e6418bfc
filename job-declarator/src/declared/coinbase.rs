//! A coinbase of a miner's own making around the extranonce, field by field: read from the two parts of
//! a declaration or the fields of a custom job, written as either, and judged by what can be said of it
//! without its block. Called by `check`, `custom` and `build`; must never panic for any bytes.

use std::collections::HashMap;

use proto::limits::{COINBASE_OUTPUTS_MAX, EXTRANONCE_LEN, SCRIPT_SIG_MAX};
use proto::template::CoinbaseParts;

use super::transaction::{Cursor, Layout, NULL_OUTPOINT, sigops};
use super::{Context, Refusal};
use crate::limits::{
    COINBASE_PREFIX_LEN_MAX, COINBASE_SUFFIX_LEN_MAX, MONEY_MAX_SATS, WITNESS_SCALE,
};
use crate::node::assemble::{COMMITMENT_HEADER, height_push};

/// Marker and flag of BIP144.
const SEGWIT_MARK: [u8; 2] = [0, 1];
/// The witness of a coinbase: one item, the reserved value, of 32 zero bytes (BIP141).
const RESERVED_WITNESS: [u8; 34] = {
    let mut witness = [0; 34];
    witness[0] = 1;
    witness[1] = 32;
    witness
};
/// The opcode that pushes as many bytes as an extranonce has.
const EXTRANONCE_PUSH: u8 = EXTRANONCE_LEN as u8;
/// What the extranonce adds at most if it is run as opcodes: each may be OP_CHECKMULTISIG.
const EXTRANONCE_SIGOPS_MAX: u64 = 20 * EXTRANONCE_LEN as u64;

/// A coinbase whose scriptSig ends in an extranonce that is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coinbase {
    /// nVersion.
    pub version: u32,
    /// scriptSig up to the extranonce.
    pub script_sig_prefix: Vec<u8>,
    /// nSequence of the input.
    pub sequence: u32,
    /// The outputs as they stand in the transaction, their count (CompactSize) first.
    pub outputs: Vec<u8>,
    /// nLockTime.
    pub lock_time: u32,
    /// It carries the witness reserved value, 32 zero bytes, because its block commits to witnesses.
    pub has_witness: bool,
}

impl Coinbase {
    /// Reads the parts of a DeclareMiningJob, which have marker, flag and witness where the block has
    /// them. Between them belongs an extranonce of `extranonce_len` bytes, at the end of scriptSig.
    pub fn read(prefix: &[u8], suffix: &[u8], extranonce_len: usize) -> Result<Self, Refusal> {
        if prefix.len() > COINBASE_PREFIX_LEN_MAX {
            return Err(Refusal::CoinbaseTooLong(prefix.len()));
        }
        if suffix.len() > COINBASE_SUFFIX_LEN_MAX {
            return Err(Refusal::CoinbaseTooLong(suffix.len()));
        }
        let bytes = [prefix, &vec![0; extranonce_len], suffix].concat();
        let layout = Layout::read(&bytes).ok_or(Refusal::NoTransaction)?;
        if layout.input_count != 1 {
            return Err(Refusal::InputCount(layout.input_count));
        }
        let input = layout.first_input;
        if *input.previous_output != NULL_OUTPOINT {
            return Err(Refusal::PreviousOutput);
        }
        check_script_sig_len(input.script_sig.len())?;
        // Version, marker and flag, count, previous output, and a length of one byte come before it.
        let mark_len = if layout.has_witness() { SEGWIT_MARK.len() } else { 0 };
        let script_sig_end = 4 + mark_len + 1 + 36 + 1 + input.script_sig.len();
        if prefix.len() + extranonce_len != script_sig_end {
            return Err(Refusal::ExtranonceNotLast);
        }
        if layout.witness.is_some_and(|witness| *witness != RESERVED_WITNESS) {
            return Err(Refusal::ReservedValue);
        }
        // It ends in the extranonce, as was just seen.
        let script_sig_prefix =
            input.script_sig[..input.script_sig.len() - extranonce_len].to_vec();
        Ok(Self {
            version: layout.version,
            script_sig_prefix,
            sequence: input.sequence,
            outputs: layout.counted_outputs.to_vec(),
            lock_time: layout.lock_time,
            has_witness: layout.has_witness(),
        })
    }

    /// Prefix and suffix as DeclareMiningJob carries them: with marker, flag and witness, if any.
    #[must_use]
    pub fn declared_parts(&self, extranonce_len: usize) -> CoinbaseParts {
        let (mark, witness): (&[u8], &[u8]) =
            if self.has_witness { (&SEGWIT_MARK, &RESERVED_WITNESS) } else { (&[], &[]) };
        self.parts_with(mark, witness, extranonce_len)
    }

    /// Prefix and suffix in txid form, as jobs carry them.
    #[must_use]
    pub fn parts(&self, extranonce_len: usize) -> CoinbaseParts {
        self.parts_with(&[], &[], extranonce_len)
    }

    fn parts_with(&self, mark: &[u8], witness: &[u8], extranonce_len: usize) -> CoinbaseParts {
        // A script of 253 bytes or more would need a longer length; 100 is the limit of all makers.
        let script_sig_len = (self.script_sig_prefix.len() + extranonce_len) as u8;
        let prefix = [
            &self.version.to_le_bytes()[..],
            mark,
            &[1],
            &NULL_OUTPOINT,
            &[script_sig_len],
            &self.script_sig_prefix,
        ];
        let suffix = [
            &self.sequence.to_le_bytes()[..],
            &self.outputs,
            witness,
            &self.lock_time.to_le_bytes(),
        ];
        CoinbaseParts { prefix: prefix.concat(), suffix: suffix.concat() }
    }

    /// Whether it can be the coinbase of the next block and pays as it must.
    pub(super) fn judge(&self, context: &Context<'_>) -> Result<Judged, Refusal> {
        check_script_sig_len(self.script_sig_prefix.len() + EXTRANONCE_LEN)?;
        self.check_height(context.height)?;
        self.check_lock_time(context.height)?;
        let outputs = read_outputs(&self.outputs)?;
        let value_sats = outputs.iter().try_fold(0_u64, |sum, (sats, _)| {
            // No overflow: both stay below 2^51.
            Some(sum + Some(*sats).filter(|sats| *sats <= MONEY_MAX_SATS)?)
                .filter(|sum| *sum <= MONEY_MAX_SATS)
        });
        let value_sats = value_sats.ok_or(Refusal::Money)?;
        let pool_sats = check_due(&outputs, value_sats, context)?;
        // Of several commitments the last counts (BIP141).
        let commitment = outputs.iter().rev().find_map(|(_, script)| commitment(script));
        let script_sigops: u64 = outputs.iter().map(|(_, script)| sigops(script)).sum();
        let sigop_cost = WITNESS_SCALE * (self.script_sig_sigops() + script_sigops);
        Ok(Judged { value_sats, pool_sats, commitment, sigop_cost, weight: self.weight() })
    }

    fn check_height(&self, expected: u32) -> Result<(), Refusal> {
        if self.script_sig_prefix.starts_with(&height_push(expected)) {
            return Ok(());
        }
        Err(match pushed_height(&self.script_sig_prefix) {
            Some(found) => Refusal::OtherHeight { found, expected },
            None => Refusal::NoHeight,
        })
    }

    /// Times are seconds from 500 million on, which no height reaches: a coinbase that waits for one
    /// is taken for one that waits too long, because nobody makes such.
    fn check_lock_time(&self, height: u32) -> Result<(), Refusal> {
        let is_final = self.lock_time < height || self.sequence == u32::MAX;
        if is_final { Ok(()) } else { Err(Refusal::LockTime(self.lock_time)) }
    }

    /// Signature operations that scriptSig counts as, whatever the extranonce will be.
    fn script_sig_sigops(&self) -> u64 {
        let script_sig = [&self.script_sig_prefix[..], &[0; EXTRANONCE_LEN]].concat();
        let Some((last, before)) = self.script_sig_prefix.split_last() else {
            return EXTRANONCE_SIGOPS_MAX;
        };
        let mut instructions = bitcoin::Script::from_bytes(before).instructions();
        let is_pushed = *last == EXTRANONCE_PUSH && instructions.all(|each| each.is_ok());
        sigops(&script_sig) + if is_pushed { 0 } else { EXTRANONCE_SIGOPS_MAX }
    }

    fn weight(&self) -> u64 {
        let parts = self.parts(EXTRANONCE_LEN);
        let stripped = parts.prefix.len() + EXTRANONCE_LEN + parts.suffix.len();
        let witness = if self.has_witness { SEGWIT_MARK.len() + RESERVED_WITNESS.len() } else { 0 };
        stripped as u64 * WITNESS_SCALE + witness as u64
    }
}

/// What a coinbase comes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    /// What it pays in all.
    pub(super) value_sats: u64,
    /// What of that goes where the rule says.
    pub(super) pool_sats: u64,
    /// The commitment to the witnesses of its block, if it makes one.
    pub(super) commitment: Option<[u8; 32]>,
    /// Signature operations, weighted.
    pub(super) sigop_cost: u64,
    pub(super) weight: u64,
}

fn check_script_sig_len(length: usize) -> Result<(), Refusal> {
    if (2..=SCRIPT_SIG_MAX).contains(&length) {
        return Ok(());
    }
    Err(Refusal::ScriptSigLength(length))
}

/// Satoshi and script of each output; at least one.
pub(crate) fn read_outputs(bytes: &[u8]) -> Result<Vec<(u64, &[u8])>, Refusal> {
    if bytes.len() > COINBASE_OUTPUTS_MAX {
        return Err(Refusal::CoinbaseTooLong(bytes.len()));
    }
    let mut cursor = Cursor(bytes);
    let count = cursor.compact_size().ok_or(Refusal::Outputs)?;
    let mut outputs = Vec::new();
    for _ in 0..count {
        outputs.push(cursor.output().ok_or(Refusal::Outputs)?);
    }
    if outputs.is_empty() || !cursor.0.is_empty() {
        return Err(Refusal::Outputs);
    }
    Ok(outputs)
}

/// Everybody whom the rule names gets at least what he is due; the sum of what they get.
fn check_due(
    outputs: &[(u64, &[u8])],
    value_sats: u64,
    context: &Context<'_>,
) -> Result<u64, Refusal> {
    let mut paid: HashMap<&[u8], u64> = HashMap::with_capacity(outputs.len());
    for (sats, script) in outputs {
        *paid.entry(script).or_default() += sats;
    }
    let mut pool_sats = 0;
    for (script, due) in context.rule.due(value_sats) {
        let paid = paid.get(script).copied().unwrap_or_default();
        if paid < due {
            return Err(Refusal::Underpaid { script: hex::encode(script), paid, due });
        }
        pool_sats += paid;
    }
    if pool_sats == 0 { Err(Refusal::NothingPaid) } else { Ok(pool_sats) }
}

/// The commitment that a script is, if it is one: 38 bytes or more that start as BIP141 says.
fn commitment(script: &[u8]) -> Option<[u8; 32]> {
    script.strip_prefix(&COMMITMENT_HEADER)?.first_chunk().copied()
}

/// The height that a scriptSig starts with (BIP34), if it pushes one as consensus writes it.
fn pushed_height(script: &[u8]) -> Option<u32> {
    let (first, rest) = script.split_first()?;
    let height = match first {
        0x51..=0x60 => u32::from(first - 0x50),
        1..=4 => {
            let mut bytes = [0; 4];
            let length = usize::from(*first);
            bytes[..length].copy_from_slice(rest.get(..length)?);
            u32::from_le_bytes(bytes)
        }
        _ => return None,
    };
    script.starts_with(&height_push(height)).then_some(height)
}
