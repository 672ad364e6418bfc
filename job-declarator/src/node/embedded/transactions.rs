//! Transactions for the embedded chain's templates: valid ones that nobody sent, so that merkle paths,
//! fees and witness commitments are real. Called by `embedded.rs`; the same chain, count and revision
//! give the same transactions.

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut};

use super::chain::{Chain, op_true_output, op_true_witness};

/// Coins that chains of transactions start from side by side.
const LANES_MAX: usize = 16;
/// Fees are spread from here, about two satoshi a byte of virtual size ...
const FEE_MIN_SATS: u64 = 200;
/// ... up to here, exclusive.
const FEE_END_SATS: u64 = 1_000;
/// A coin below this is left alone.
const COIN_MIN_SATS: u64 = 10_000;

/// Up to `count` transactions for the next block, in block order, and the sum of their fees. Fewer if
/// the chain's money is used up, which takes tens of thousands of full blocks. `revision` changes the
/// last quarter, as time changes a mempool.
pub(super) fn transactions(chain: &Chain, count: usize, revision: u64) -> (Vec<Transaction>, u64) {
    let mut lanes: Vec<(OutPoint, u64)> = chain
        .spendable()
        .filter(|(_, coin)| coin.sats >= COIN_MIN_SATS)
        .map(|(outpoint, coin)| (outpoint, coin.sats))
        .take(LANES_MAX)
        .collect();
    let script = ScriptBuf::from_bytes(op_true_output());
    let mut made = Vec::with_capacity(count);
    let mut fees = 0;
    for index in 0..count {
        if lanes.is_empty() {
            break;
        }
        let lane = index % lanes.len();
        let (outpoint, sats) = lanes[lane];
        let newness = if index >= count - count.div_ceil(4) { revision } else { 0 };
        let fee = fee_sats(chain.height(), index as u64, newness);
        let left = sats - fee;
        let transaction = spend(outpoint, left, &script);
        lanes[lane] = (OutPoint { txid: transaction.compute_txid(), vout: 0 }, left);
        if left < COIN_MIN_SATS {
            lanes.swap_remove(lane);
        }
        fees += fee;
        made.push(transaction);
    }
    (made, fees)
}

fn spend(previous_output: OutPoint, sats: u64, script: &ScriptBuf) -> Transaction {
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: op_true_witness(),
        }],
        output: vec![TxOut { value: Amount::from_sat(sats), script_pubkey: script.clone() }],
    }
}

/// Spreads fees so that neighbours, heights and revisions differ (the finaliser of splitmix64).
fn fee_sats(height: u32, index: u64, revision: u64) -> u64 {
    let mut mixed = (u64::from(height) << 32) ^ (index << 16) ^ revision;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    FEE_MIN_SATS + (mixed ^ (mixed >> 31)) % (FEE_END_SATS - FEE_MIN_SATS)
}
