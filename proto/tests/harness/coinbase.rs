//! Any template and any outputs: a coinbase is refused for the reason that holds, or it is one that the
//! `bitcoin` crate reads to what was put in; merkle paths lead to the root that it computes.

use std::sync::Arc;

use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::hashes::Hash;
use bitcoin::{Amount, ScriptBuf, Transaction, TxOut, Txid};
use proto::limits::{EXTRANONCE_LEN, MERKLE_PATH_MAX, SCRIPT_SIG_MAX};
use proto::template::{
    CoinbaseError, CoinbaseParts, Output, Template, TemplateId, merkle_path, merkle_root, sha256d,
};

use super::Bytes;

pub fn run(data: &[u8]) {
    let mut data = Bytes::new(data);
    let outputs: Vec<Output> = (0..data.byte() % 5).map(|_| output(&mut data)).collect();
    let required: Vec<Output> = (0..data.byte() % 3).map(|_| output(&mut data)).collect();
    let tag_len = usize::from(data.byte() % 90);
    let tag = data.take(tag_len);
    let sum: u128 = outputs.iter().map(|output| u128::from(output.sats)).sum();
    // Mostly what the outputs sum to, or nothing else would be seen.
    let off = u64::from(data.byte() == 1);
    let value = u64::try_from(sum).unwrap_or(u64::MAX).wrapping_add(off);
    let template = template(&mut data, &required, value);

    match template.coinbase(&outputs, tag) {
        Ok(parts) => check(&template, &parts, &outputs, &required, tag, &mut data),
        Err(CoinbaseError::Sum { outputs, value: given }) => {
            assert!(outputs == sum && given == value && u128::from(value) != sum);
        }
        Err(CoinbaseError::ScriptSig(length)) => {
            assert!(length > SCRIPT_SIG_MAX || tag.len() > 75);
        }
        Err(CoinbaseError::MerklePath(count)) => assert!(count > MERKLE_PATH_MAX),
        Err(CoinbaseError::TooLong(length)) => assert!(length > 65_535),
        Err(CoinbaseError::NoLead(_)) => panic!("only a house's jobs have a lead"),
    }
}

fn output(data: &mut Bytes<'_>) -> Output {
    let sats = data.u64() >> (data.byte() % 64);
    let length = usize::from(data.byte()) << (data.byte() % 9);
    Output { sats, script: vec![data.byte(); length] }
}

fn template(data: &mut Bytes<'_>, required: &[Output], value: u64) -> Template {
    let mut required_outputs = Vec::new();
    required.iter().for_each(|output| required_outputs.extend(serialize(&tx_out(output))));
    let prefix_len = 1 + usize::from(data.byte() % 8);
    let txids: Vec<[u8; 32]> = (0..data.byte() % 40).map(|_| data.array()).collect();
    let mut path = merkle_path(&txids);
    path.resize(path.len() + usize::from(data.byte() / 11), [7; 32]);
    Template {
        id: TemplateId(1),
        height: data.u32(),
        version: data.u32(),
        coinbase_tx_version: data.u32(),
        script_sig_prefix: data.array::<8>()[..prefix_len].to_vec(),
        coinbase_sequence: data.u32(),
        coinbase_value_sats: value,
        required_outputs,
        required_outputs_count: required.len() as u32,
        coinbase_locktime: data.u32(),
        merkle_path: path,
        transactions: Some(Arc::default()),
        commits_to_witnesses: data.byte() & 1 == 0,
    }
}

fn tx_out(output: &Output) -> TxOut {
    TxOut {
        value: Amount::from_sat(output.sats),
        script_pubkey: ScriptBuf::from_bytes(output.script.clone()),
    }
}

fn check(
    template: &Template,
    parts: &CoinbaseParts,
    outputs: &[Output],
    required: &[Output],
    tag: &[u8],
    data: &mut Bytes<'_>,
) {
    let extranonce: [u8; EXTRANONCE_LEN] = data.array();
    let stripped = [&parts.prefix[..], &extranonce, &parts.suffix].concat();
    let block_form = parts.with_witness(&extranonce, template.commits_to_witnesses);
    let tx: Transaction = deserialize(&block_form).unwrap();

    assert!(tx.is_coinbase());
    assert_eq!(tx.version.0 as u32, template.coinbase_tx_version);
    assert_eq!(tx.lock_time.to_consensus_u32(), template.coinbase_locktime);
    assert_eq!(tx.input[0].sequence.0, template.coinbase_sequence);
    let paid: Vec<TxOut> = outputs.iter().chain(required).map(tx_out).collect();
    assert_eq!(tx.output, paid);
    let script_sig = tx.input[0].script_sig.as_bytes();
    assert!(script_sig.len() <= SCRIPT_SIG_MAX);
    assert!(script_sig.starts_with(&template.script_sig_prefix));
    assert!(script_sig.ends_with(&extranonce));
    assert!(tag.is_empty() || script_sig.windows(tag.len()).any(|window| window == tag));
    let witness: Vec<&[u8]> = tx.input[0].witness.iter().collect();
    let reserved: &[&[u8]] = if template.commits_to_witnesses { &[&[0; 32]] } else { &[] };
    assert_eq!(witness, reserved);
    assert_eq!(tx.compute_txid().to_byte_array(), sha256d(&stripped));

    merkle(sha256d(&stripped), data);
}

fn merkle(coinbase: [u8; 32], data: &mut Bytes<'_>) {
    let others: Vec<[u8; 32]> = (0..data.byte()).map(|_| data.array()).collect();
    let root = merkle_root(coinbase, &merkle_path(&others));
    let all = std::iter::once(coinbase).chain(others).map(Txid::from_byte_array);
    let theirs = bitcoin::merkle_tree::calculate_root(all).unwrap();
    assert_eq!(root, theirs.to_byte_array());
}
