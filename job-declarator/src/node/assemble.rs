//! The parts of a template that every node's answer is turned into the same way: height push, subsidy,
//! witness commitment, the coinbase-only block to come. Called by `rpc` and `embedded`; must never ask
//! a node or a clock.

use std::sync::Arc;

use proto::template::{Template, TemplateId, merkle_path, merkle_root, sha256d};

/// scriptPubKey of the witness commitment: OP_RETURN, 36 bytes, `aa21a9ed` (BIP141).
pub(crate) const COMMITMENT_HEADER: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
/// nSequence of our coinbases: final, no lock time.
pub(crate) const COINBASE_SEQUENCE: u32 = 0xffff_ffff;

/// How a coinbase's scriptSig begins (BIP34).
pub(crate) fn height_push(height: u32) -> Vec<u8> {
    bitcoin::script::Builder::new().push_int(i64::from(height)).into_bytes()
}

/// What a block may make out of nothing.
pub(crate) fn subsidy_sats(height: u32, halving_interval: u32) -> u64 {
    5_000_000_000_u64.checked_shr(height / halving_interval).unwrap_or(0)
}

/// What the coinbase of a block with these transactions behind it commits to (BIP141), its reserved
/// value being zeros. Ids in header byte order.
pub(crate) fn witness_commitment(wtxids: &[[u8; 32]]) -> [u8; 32] {
    // The coinbase stands in the witness tree as zeros, so its witness cannot depend on itself.
    let root = merkle_root([0; 32], &merkle_path(wtxids));
    let mut preimage = [0; 64];
    preimage[..32].copy_from_slice(&root);
    sha256d(&preimage)
}

/// The script that commits to the witnesses of a block with these transactions behind its coinbase.
pub(crate) fn commitment_script(wtxids: &[[u8; 32]]) -> Vec<u8> {
    [&COMMITMENT_HEADER[..], &witness_commitment(wtxids)].concat()
}

/// An output of nothing with `script`, as it stands in a transaction.
pub(crate) fn valueless_output(script: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    proto::template::write_compact_size(script.len() as u64, &mut bytes);
    bytes.extend_from_slice(script);
    bytes
}

/// The block of a coinbase alone at `height`. It has no witness and so needs no commitment.
pub(crate) fn coinbase_only(
    id: TemplateId,
    height: u32,
    version: u32,
    coinbase_value_sats: u64,
) -> Template {
    Template {
        id,
        height,
        version,
        coinbase_tx_version: 2,
        script_sig_prefix: height_push(height),
        coinbase_sequence: COINBASE_SEQUENCE,
        coinbase_value_sats,
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        coinbase_locktime: 0,
        merkle_path: Vec::new(),
        transactions: Some(Arc::default()),
        commits_to_witnesses: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{HALVING_INTERVAL, HALVING_INTERVAL_REGTEST};

    #[test]
    fn heights_are_pushed_as_consensus_compares_them() {
        assert_eq!(height_push(1), [0x51]);
        assert_eq!(height_push(16), [0x60]);
        assert_eq!(height_push(17), [1, 17]);
        assert_eq!(height_push(127), [1, 127]);
        assert_eq!(height_push(128), [2, 128, 0]);
        assert_eq!(height_push(840_000), [3, 0x40, 0xd1, 0x0c]);
        assert!(height_push(crate::limits::HEIGHT_MAX).len() <= 8);
    }

    #[test]
    fn the_subsidy_halves_and_ends() {
        assert_eq!(subsidy_sats(209_999, HALVING_INTERVAL), 5_000_000_000);
        assert_eq!(subsidy_sats(840_000, HALVING_INTERVAL), 312_500_000);
        assert_eq!(subsidy_sats(149, HALVING_INTERVAL_REGTEST), 5_000_000_000);
        assert_eq!(subsidy_sats(150, HALVING_INTERVAL_REGTEST), 2_500_000_000);
        assert_eq!(subsidy_sats(32 * 150, HALVING_INTERVAL_REGTEST), 1);
        assert_eq!(subsidy_sats(33 * 150, HALVING_INTERVAL_REGTEST), 0);
        assert_eq!(subsidy_sats(u32::MAX, HALVING_INTERVAL_REGTEST), 0);
    }
}
