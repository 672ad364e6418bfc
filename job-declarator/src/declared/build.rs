//! The miner's side: a job from his own template that pays the pool, in the form of DeclareMiningJob
//! and of SetCustomMiningJob. What is made here `check` accepts.

use proto::limits::SCRIPT_SIG_MAX;
use proto::template::{
    CoinbaseError, CoinbaseParts, Output, Template, sha256d, write_compact_size,
};

use super::coinbase::Coinbase;

/// A job to be declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltJob {
    /// Header version before rolling.
    pub version: u32,
    /// The coinbase around the extranonce of the pool's channel; its fields are those of
    /// SetCustomMiningJob.
    pub coinbase: Coinbase,
    /// Ids of the other transactions with their witnesses, block order, header byte order; `None` if
    /// the template names no transactions, so that the job can only be mined undeclared.
    pub wtxids: Option<Vec<[u8; 32]>>,
    /// Siblings of the coinbase, deepest first.
    pub merkle_path: Vec<[u8; 32]>,
    /// Bytes of the channel's full extranonce.
    extranonce_len: usize,
}

impl BuiltJob {
    /// Prefix and suffix of the coinbase as DeclareMiningJob carries them, with witness (rule JC5).
    #[must_use]
    pub fn declared_parts(&self) -> CoinbaseParts {
        self.coinbase.declared_parts(self.extranonce_len)
    }
}

/// The job of `template` paying `outputs`, which must sum to its value, with `tag` in scriptSig between
/// the height and an extranonce of `extranonce_len` bytes (1 to 32). The template's own outputs go last.
pub fn build(
    template: &Template,
    outputs: &[Output],
    tag: &[u8],
    extranonce_len: usize,
) -> Result<BuiltJob, CoinbaseError> {
    let sum: u128 = outputs.iter().map(|output| u128::from(output.sats)).sum();
    if sum != u128::from(template.coinbase_value_sats) {
        return Err(CoinbaseError::Sum { outputs: sum, value: template.coinbase_value_sats });
    }
    let script_sig_prefix = script_sig_prefix(template, tag, extranonce_len)?;
    let coinbase = Coinbase {
        version: template.coinbase_tx_version,
        script_sig_prefix,
        sequence: template.coinbase_sequence,
        outputs: counted_outputs(template, outputs),
        lock_time: template.coinbase_locktime,
        has_witness: template.commits_to_witnesses,
    };
    let wtxids = template
        .transactions
        .as_ref()
        .map(|transactions| transactions.iter().map(|bytes| sha256d(bytes)).collect());
    Ok(BuiltJob {
        version: template.version,
        coinbase,
        wtxids,
        merkle_path: template.merkle_path.clone(),
        extranonce_len,
    })
}

/// Height, tag and the opcode that pushes the extranonce.
fn script_sig_prefix(
    template: &Template,
    tag: &[u8],
    extranonce_len: usize,
) -> Result<Vec<u8>, CoinbaseError> {
    let mut prefix = template.script_sig_prefix.clone();
    if !tag.is_empty() {
        prefix.push(tag.len() as u8);
        prefix.extend_from_slice(tag);
    }
    prefix.push(extranonce_len as u8);
    let length = prefix.len() + extranonce_len;
    // Another opcode would push more than 75 bytes, which no scriptSig has room for.
    if length > SCRIPT_SIG_MAX || tag.len() > 75 {
        return Err(CoinbaseError::ScriptSig(length));
    }
    Ok(prefix)
}

fn counted_outputs(template: &Template, outputs: &[Output]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let count = outputs.len() as u64 + u64::from(template.required_outputs_count);
    write_compact_size(count, &mut bytes);
    for output in outputs {
        bytes.extend_from_slice(&output.sats.to_le_bytes());
        write_compact_size(output.script.len() as u64, &mut bytes);
        bytes.extend_from_slice(&output.script);
    }
    bytes.extend_from_slice(&template.required_outputs);
    bytes
}
