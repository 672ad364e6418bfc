//! Claims about proto's block assembly, with the `bitcoin` crate as the judge: merkle path and root,
//! the coinbase in both forms, and whole blocks, over any number of transactions.

use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Block, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use proptest::collection::vec;
use proptest::prelude::*;
use proto::job::{HeaderFields, Job};
use proto::limits::EXTRANONCE_LEN;
use proto::template::{Output, Template, TemplateId, merkle_path, merkle_root};

prop_compose! {
    /// Valid in form: some inputs, with or without witness, some outputs.
    fn transaction()(
        inputs in vec((any::<[u8; 32]>(), any::<u32>(), vec(any::<u8>(), 0..40), any::<u32>()), 1..4),
        outputs in vec((0_u64..1 << 50, vec(any::<u8>(), 0..300)), 1..4),
        witness in vec(vec(any::<u8>(), 0..80), 0..3),
        lock_time: u32,
    ) -> Transaction {
        Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::from_consensus(lock_time),
            input: inputs.into_iter().map(|(txid, vout, script_sig, sequence)| TxIn {
                previous_output: OutPoint { txid: Hash::from_byte_array(txid), vout },
                script_sig: ScriptBuf::from_bytes(script_sig),
                sequence: Sequence::from_consensus(sequence),
                witness: Witness::from_slice(&witness),
            }).collect(),
            output: outputs.into_iter().map(|(sats, script)| TxOut {
                value: Amount::from_sat(sats),
                script_pubkey: ScriptBuf::from_bytes(script),
            }).collect(),
        }
    }
}

fn template(transactions: &[Transaction], commits_to_witnesses: bool) -> Template {
    let txids: Vec<_> = transactions.iter().map(|one| one.compute_txid().to_byte_array()).collect();
    let output =
        TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(vec![0x6a; 38]) };
    Template {
        id: TemplateId(1),
        height: 840_000,
        version: 0x2000_0000,
        coinbase_tx_version: 2,
        script_sig_prefix: vec![3, 0x40, 0xd1, 0x0c],
        coinbase_sequence: 0xffff_fffe,
        coinbase_value_sats: 312_500_000,
        required_outputs: bitcoin::consensus::serialize(&output),
        required_outputs_count: 1,
        coinbase_locktime: 839_999,
        merkle_path: merkle_path(&txids),
        transactions: Some(Arc::new(
            transactions.iter().map(|one| bitcoin::consensus::serialize(one).into()).collect(),
        )),
        commits_to_witnesses,
    }
}

proptest! {
    #[test]
    fn a_jobs_block_is_what_the_bitcoin_crate_reads_and_hashes(
        transactions in vec(transaction(), 0..=40),
        commits_to_witnesses: bool,
        extranonce: [u8; EXTRANONCE_LEN],
        payouts in vec(vec(any::<u8>(), 0..300), 1..20),
        tag in vec(any::<u8>(), 0..40),
        (version, ntime, nonce) in any::<(u32, u32, u32)>(),
        prev_hash: [u8; 32],
    ) {
        let template = template(&transactions, commits_to_witnesses);
        let share = template.coinbase_value_sats / payouts.len() as u64;
        let mut outputs: Vec<_> =
            payouts.iter().map(|script| Output { sats: share, script: script.clone() }).collect();
        outputs[0].sats += template.coinbase_value_sats - share * payouts.len() as u64;
        let job = Job::new(Arc::new(template), &outputs, &tag).unwrap();
        let header = HeaderFields {
            version, prev_hash, merkle_root: job.merkle_root(&extranonce), ntime,
            nbits: 0x207f_ffff, nonce,
        };

        let bytes = job.block(&header, &extranonce).unwrap();
        let block: Block = bitcoin::consensus::deserialize(&bytes).unwrap();
        prop_assert_eq!(bitcoin::consensus::serialize(&block), bytes);
        prop_assert_eq!(block.block_hash().to_byte_array(), header.hash());
        prop_assert!(block.check_merkle_root());
        prop_assert_eq!(&block.txdata[1..], &transactions[..]);

        let coinbase = &block.txdata[0];
        prop_assert!(coinbase.is_coinbase());
        let txid = coinbase.compute_txid().to_byte_array();
        let root = proto::template::merkle_root(txid, job.merkle_path());
        prop_assert_eq!(job.merkle_root(&extranonce), root);
        prop_assert_eq!(coinbase.output.len(), payouts.len() + 1);
        let paid: u64 = coinbase.output.iter().map(|output| output.value.to_sat()).sum();
        prop_assert_eq!(paid, 312_500_000);
        prop_assert_eq!(coinbase.lock_time.to_consensus_u32(), 839_999);
        prop_assert_eq!(coinbase.input[0].sequence.to_consensus_u32(), 0xffff_fffe);
        prop_assert!(coinbase.input[0].script_sig.as_bytes().starts_with(&[3, 0x40, 0xd1, 0x0c]));
        let witness: Vec<_> = coinbase.input[0].witness.iter().collect();
        let reserved: &[&[u8]] = if commits_to_witnesses { &[&[0; 32]] } else { &[] };
        prop_assert_eq!(&witness[..], reserved);
        // Prefix and suffix carry no marker: what miners hash is the transaction without witness.
        let parts = job.coinbase();
        let mut bare = coinbase.clone();
        bare.input[0].witness.clear();
        prop_assert_eq!(
            [&parts.prefix, extranonce.as_slice(), &parts.suffix].concat(),
            bitcoin::consensus::serialize(&bare)
        );
    }

    #[test]
    fn the_merkle_root_over_the_path_is_the_trees(txids in vec(any::<[u8; 32]>(), 0..=600)) {
        let coinbase = [0xcb; 32];
        let leaves = std::iter::once(coinbase).chain(txids.iter().copied());
        let leaves: Vec<_> = leaves.map(bitcoin::Txid::from_byte_array).collect();
        let expected = bitcoin::merkle_tree::calculate_root(leaves.into_iter()).unwrap();
        let path = merkle_path(&txids);
        prop_assert_eq!(merkle_root(coinbase, &path), expected.to_byte_array());
        prop_assert_eq!(path.len(), (txids.len() + 1).next_power_of_two().ilog2() as usize);
    }
}
