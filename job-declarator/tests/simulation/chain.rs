//! A chain that is a number: tips and templates of it, which a node and pools show.

use std::sync::Arc;

use job_declarator::node::{NodeTemplate, TemplateMark};
use proto::template::{PrevHash, Template, TemplateId};

/// Unix seconds when an episode starts.
pub const START_S: u32 = 1_800_000_000;

pub fn tip_of(tip: u64) -> PrevHash {
    let mut hash = [0x11; 32];
    hash[..8].copy_from_slice(&tip.to_le_bytes());
    PrevHash { hash, nbits: 0x1d00_ffff, min_ntime: START_S - 20 }
}

/// The tip that this is the hash of.
pub fn number_of(hash: &[u8; 32]) -> u64 {
    u64::from_le_bytes(*hash.first_chunk().unwrap())
}

/// The block on a tip; `number` makes it differ from others on the same.
pub fn template(tip: u64, number: u64) -> Template {
    let height = 900_000 + tip as u32;
    let [low, middle, high, _] = height.to_le_bytes();
    Template {
        id: TemplateId(number),
        height,
        version: 0x2000_0000,
        coinbase_tx_version: 2,
        script_sig_prefix: vec![3, low, middle, high],
        coinbase_sequence: 0xffff_fffe,
        coinbase_value_sats: 312_500_000 + number,
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        coinbase_locktime: height - 1,
        merkle_path: vec![[number as u8; 32]],
        transactions: Some(Arc::new(vec![vec![number as u8; 64].into()])),
        commits_to_witnesses: false,
    }
}

pub fn node_template(tip: u64, number: u64) -> NodeTemplate {
    let prev_hash = tip_of(tip);
    NodeTemplate {
        prev_hash,
        template: Arc::new(template(tip, number)),
        next: None,
        earliest_ntime: prev_hash.min_ntime,
        mark: TemplateMark(String::new()),
    }
}
