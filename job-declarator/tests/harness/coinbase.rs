//! A declaration whose coinbase is any bytes: it is refused, or the `bitcoin` crate reads it as the
//! coinbase that the check took it for, and it is written again to the byte. The same for a supplied
//! transaction and for a coinbase-only job's fields.

use std::sync::Arc;

use bitcoin::hashes::Hash;
use job_declarator::declared::{
    Coinbase, Context, Outcome, Rule, Transaction, check, coinbase_only,
};
use proto::declare::Declaration;
use proto::limits::EXTRANONCE_LEN;
use proto::mining::{ChannelId, CustomJobRequest};
use proto::template::PrevHash;
use proto::token::MiningJobToken;

const HEIGHT: u32 = 840_000;
const SUBSIDY: u64 = 312_500_000;
const SCRIPT: [u8; 3] = [0x51, 0x52, 0x53];
const TIP: PrevHash = PrevHash { hash: [1; 32], nbits: 0x1700_0000, min_ntime: 1_790_000_000 };

/// The first byte says what comes before the rest, so that most inputs get past the first checks.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let cut = usize::from(*kind >> 3) * rest.len() / 31;
    let (first, second) = rest.split_at(cut);
    match kind & 7 {
        0 => declared(first, second),
        1 | 2 => {
            let (prefix, suffix) = good_parts(kind & 1 == 0);
            let edited = edit(&[prefix.as_slice(), &suffix].concat(), rest);
            let (prefix, suffix) = edited.split_at(prefix.len().min(edited.len()));
            declared(prefix, suffix);
        }
        3 => declared(&[&good_parts(true).0, first].concat(), second),
        4 => declared(&good_parts(true).0, rest),
        5 => supplied(rest),
        _ => custom(first, second),
    }
}

/// Parts of a coinbase as it should be.
fn good_parts(has_witness: bool) -> (Vec<u8>, Vec<u8>) {
    let mut outputs = vec![1];
    outputs.extend_from_slice(&SUBSIDY.to_le_bytes());
    outputs.push(SCRIPT.len() as u8);
    outputs.extend_from_slice(&SCRIPT);
    if has_witness {
        outputs[0] = 2;
        outputs.extend_from_slice(&[0; 8]);
        outputs.extend_from_slice(&[38, 0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed]);
        outputs.extend_from_slice(&proto::template::sha256d(&[0; 64]));
    }
    let coinbase = Coinbase {
        version: 2,
        script_sig_prefix: vec![3, 0x40, 0xd1, 0x0c, EXTRANONCE_LEN as u8],
        sequence: u32::MAX,
        outputs,
        lock_time: 0,
        has_witness,
    };
    let parts = coinbase.declared_parts(EXTRANONCE_LEN);
    (parts.prefix, parts.suffix)
}

/// Four bytes an edit: what, where (two), with what.
fn edit(bytes: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in edits.chunks_exact(4).take(16) {
        let at = usize::from(u16::from_le_bytes([edit[1], edit[2]])) % (bytes.len() + 1);
        match edit[0] % 4 {
            0 if at < bytes.len() => bytes[at] = edit[3],
            1 => bytes.insert(at, edit[3]),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at.max(100)),
            _ => {}
        }
    }
    bytes
}

fn with_context<T>(run: impl FnOnce(&Context<'_>) -> T) -> T {
    let rule = Rule::whole(SCRIPT.to_vec());
    run(&Context { height: HEIGHT, tip: TIP, subsidy_sats: SUBSIDY, rule: &rule })
}

fn declared(prefix: &[u8], suffix: &[u8]) {
    let declaration = Declaration {
        request_id: 1,
        token: MiningJobToken([1; 16]),
        version: 0x2000_0000,
        coinbase_prefix: prefix.to_vec(),
        coinbase_suffix: suffix.to_vec(),
        wtxids: Vec::new(),
        supplied: Vec::new(),
        was_asked: false,
    };
    let checked = with_context(|context| check(&declaration, context, &|_| None, &|_| None));
    // Read or not, an extranonce of another length must not be misread either.
    for extranonce_len in [0, 1, 8, EXTRANONCE_LEN, 32] {
        let Ok(coinbase) = Coinbase::read(prefix, suffix, extranonce_len) else { continue };
        let parts = coinbase.declared_parts(extranonce_len);
        assert_eq!((&parts.prefix[..], &parts.suffix[..]), (prefix, suffix));
        let bytes = [prefix, &vec![7; extranonce_len], suffix].concat();
        let read: bitcoin::Transaction = bitcoin::consensus::deserialize(&bytes).unwrap();
        assert!(read.is_coinbase());
        assert!(read.input[0].script_sig.as_bytes().ends_with(&vec![7; extranonce_len]));
    }
    if let Ok(outcome) = checked {
        let Outcome::Sound { job, .. } = outcome else { panic!("nothing was listed") };
        let block: bitcoin::Block =
            bitcoin::consensus::deserialize(&job.proposal(&TIP).unwrap()).unwrap();
        is_good(&block);
        let extranonce = [0; EXTRANONCE_LEN];
        let coinbase = [prefix, &extranonce, suffix].concat();
        assert_eq!(bitcoin::consensus::serialize(&block.txdata[0]), coinbase);
    }
}

/// All that can be seen of a block of the coinbase alone without its chain.
fn is_good(block: &bitcoin::Block) {
    let coinbase = &block.txdata[0];
    assert!(coinbase.is_coinbase() && block.check_merkle_root());
    assert!(block.check_witness_commitment() || !block.txdata[0].input[0].witness.is_empty());
    let script_sig = coinbase.input[0].script_sig.as_bytes();
    assert!((2..=100).contains(&script_sig.len()));
    assert_eq!(block.bip34_block_height().unwrap(), u64::from(HEIGHT));
    let paid = |to_pool| {
        let outputs = coinbase.output.iter();
        let outputs = outputs.filter(|one| (one.script_pubkey.as_bytes() == SCRIPT) == to_pool);
        outputs.map(|output| output.value.to_sat()).sum::<u64>()
    };
    assert!(paid(true) > 0 && paid(true) <= SUBSIDY && paid(false) == 0);
}

fn supplied(bytes: &[u8]) {
    let read = Transaction::read(Arc::from(bytes));
    let theirs = bitcoin::consensus::deserialize::<bitcoin::Transaction>(bytes).ok();
    let theirs = theirs.filter(|one| !one.input.is_empty() && !one.output.is_empty());
    assert_eq!(read.is_some(), theirs.is_some());
    let Some((ours, theirs)) = read.zip(theirs) else { return };
    assert_eq!(*ours.txid(), theirs.compute_txid().to_byte_array());
    assert_eq!(*ours.wtxid(), theirs.compute_wtxid().to_byte_array());
    assert_eq!(u64::from(ours.weight()), theirs.weight().to_wu());
    assert_eq!(ours.sigop_cost() as usize, theirs.total_sigop_cost(|_| None));
    assert_eq!(ours.is_coinbase(), theirs.is_coinbase());
}

fn custom(prefix: &[u8], outputs: &[u8]) {
    let height = [3, 0x40, 0xd1, 0x0c];
    let request = CustomJobRequest {
        channel: ChannelId(1),
        request_id: 1,
        token: MiningJobToken([1; 16]),
        account: "alice".into(),
        version: 0x2000_0000,
        prev_hash: TIP.hash,
        min_ntime: TIP.min_ntime,
        nbits: TIP.nbits,
        coinbase_tx_version: 2,
        coinbase_prefix: [&height, prefix].concat(),
        coinbase_sequence: u32::MAX,
        outputs: outputs.to_vec(),
        locktime: 0,
        merkle_path: Vec::new(),
    };
    let ntime = TIP.min_ntime..=TIP.min_ntime;
    let Ok(job) = with_context(|context| coinbase_only(&request, context, &ntime)) else { return };
    is_good(&bitcoin::consensus::deserialize(&job.proposal(&TIP).unwrap()).unwrap());
}
