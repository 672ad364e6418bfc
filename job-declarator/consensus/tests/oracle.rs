//! The consensus oracle: every block that we would submit from a declared job is accepted by Bitcoin Core's
//! own code, every block of a refused one is not. The embedded chain and Core's kernel go in step, block by
//! block, so that each judges on the same tip.
//!
//! The kernel answers `NewBlock` for a block that it stores and then finds invalid, so what counts is its
//! tip. It is a snapshot of Core's development branch on regtest's rules.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/common/declare.rs"]
mod declare;
#[path = "../../tests/common/mutate.rs"]
mod mutate;

use std::path::Path;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoinkernel::prelude::*;
use bitcoinkernel::{
    ChainType, ChainstateManager, ChainstateManagerBuilder, Context, ContextBuilder,
};
use common::{Grind, forge, forge_header, mine, mine_job};
use declare::{Desk, NOW, declaration};
use job_declarator::declared::{DeclaredJob, Outcome, Refusal, Transaction};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{Checked, Node, Submitted};
use mutate::{Random, coinbase_bytes, mutated, recommit};
use proto::declare::Declaration;
use proto::limits::{EXTRANONCE_LEN, VERSION_ROLLING_MASK};
use proto::template::{merkle_path, write_compact_size};

/// Blocks that the embedded chain has from its start.
const START_HEIGHT: u32 = 120;

/// Bitcoin Core's consensus code with a chain of its own.
struct Kernel {
    chain: ChainstateManager,
    _context: Context,
    _folder: tempfile::TempDir,
}

impl Kernel {
    fn new() -> Self {
        // A second call would end the process.
        static SILENCE: std::sync::Once = std::sync::Once::new();
        SILENCE.call_once(bitcoinkernel::disable_logging);
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let context = ContextBuilder::new().chain_type(ChainType::Regtest).build().unwrap();
        let chain = ChainstateManagerBuilder::new(&context, &path("data"), &path("blocks"))
            .unwrap()
            .block_tree_db_in_memory(true)
            .chainstate_db_in_memory(true)
            .build()
            .unwrap();
        Self { chain, _context: context, _folder: folder }
    }

    /// Whether the block is the new tip.
    fn takes(&self, block: &[u8]) -> bool {
        let Ok(parsed) = bitcoinkernel::Block::new(block) else { return false };
        let _ = self.chain.process_block(&parsed);
        self.tip() == proto::template::sha256d(&block[..80])
    }

    fn tip(&self) -> [u8; 32] {
        self.chain.active_chain().tip().block_hash().to_bytes()
    }
}

/// A miner's desk and Core's kernel on the same tip.
struct Both {
    desk: Desk,
    kernel: Kernel,
    _folder: tempfile::TempDir,
}

impl Both {
    async fn new(tx_count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions {
            tx_count,
            block_hashes: 2,
            data_dir: Some(folder.path().to_owned()),
            start_height: START_HEIGHT,
            clock: Arc::new(|| NOW),
            ..EmbeddedOptions::default()
        };
        let desk = Desk::on(EmbeddedChain::new(options).unwrap()).await;
        let kernel = Kernel::new();
        let prepared = blocks_in(folder.path());
        assert_eq!(prepared.len(), START_HEIGHT as usize);
        for block in prepared {
            assert!(kernel.takes(&block), "a block that the embedded chain starts with");
        }
        Self { desk, kernel, _folder: folder }
    }

    /// A block that must be good, onto both chains; then the template that follows.
    async fn go_on(&mut self, block: &[u8], what: &str) {
        assert!(self.kernel.takes(block), "Core refuses {what}");
        let submitted = self.desk.chain.submit_block(block).await.unwrap();
        assert_eq!(submitted, Submitted::Accepted, "{what}");
        self.desk.refresh().await;
    }

    /// A block that must not be good.
    fn core_refuses(&self, block: &[u8], what: &str) {
        let before = self.kernel.tip();
        assert!(!self.kernel.takes(block), "Core takes {what}");
        assert_eq!(self.kernel.tip(), before, "{what}");
    }
}

/// The blocks of an embedded chain's file (`node/embedded/file.rs` says how they lie there).
fn blocks_in(folder: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::read(folder.join("embedded-chain.blocks")).unwrap();
    let mut rest = &file[16..];
    let mut blocks = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let (block, after) = after.split_at(length as usize);
        blocks.push(block.to_vec());
        rest = after;
    }
    blocks
}

/// A share of `job` that is a block, with some version bits rolled.
fn found(both: &Both, job: &DeclaredJob, random: &mut Random) -> Vec<u8> {
    let block = mine_job(job.job(), &both.desk.shown.prev_hash, random.next() as u8);
    let rolled = random.next() as u32 & VERSION_ROLLING_MASK;
    forge_header(&block, Grind::Met, |block| {
        let version = block.header.version.to_consensus() as u32;
        let version = (version & !VERSION_ROLLING_MASK | rolled) as i32;
        block.header.version = bitcoin::block::Version::from_consensus(version);
    })
}

/// The block of a declaration as it was declared, whatever we think of it; `None` where its coinbase is
/// no transaction or a transaction of its list is nobody's.
fn as_declared(both: &Both, declared: &Declaration) -> Option<Vec<u8>> {
    let coinbase = coinbase_bytes(declared, &[5; EXTRANONCE_LEN]);
    let coinbase: bitcoin::Transaction = bitcoin::consensus::deserialize(&coinbase).ok()?;
    let known = |wtxid| both.desk.known.get(wtxid);
    let others = declared.wtxids.iter().map(known).collect::<Option<Vec<_>>>()?;
    let txids: Vec<[u8; 32]> = others.iter().map(|one| *one.txid()).collect();
    let header = proto::job::HeaderFields {
        version: declared.version,
        prev_hash: both.desk.shown.prev_hash.hash,
        merkle_root: proto::template::merkle_root(
            coinbase.compute_txid().to_byte_array(),
            &merkle_path(&txids),
        ),
        ntime: both.desk.shown.prev_hash.min_ntime,
        nbits: both.desk.shown.prev_hash.nbits,
        nonce: 0,
    };
    let mut block = header.to_bytes().to_vec();
    write_compact_size(others.len() as u64 + 1, &mut block);
    block.extend_from_slice(&coinbase_bytes(declared, &[5; EXTRANONCE_LEN]));
    others.iter().for_each(|one| block.extend_from_slice(one.bytes()));
    Some(forge_header(&block, Grind::Met, |_| {}))
}

/// Refusals of ours that consensus does not ask for.
fn is_our_rule(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Underpaid { .. }
            | Refusal::NothingPaid
            | Refusal::ExtranonceNotLast
            | Refusal::CoinbaseTooLong(_)
            // With bits rolled it would be none.
            | Refusal::Version(_)
    )
}

#[tokio::test]
async fn core_takes_the_blocks_of_the_embedded_chain() {
    for tx_count in [0, 1, 20] {
        let mut both = Both::new(tx_count).await;
        for round in 0..40 {
            let block = mine(&both.desk.shown, round);
            both.go_on(&block, "a block of the embedded chain").await;
        }
    }
}

#[tokio::test]
async fn core_refuses_what_is_wrong_with_a_block() {
    let mut both = Both::new(20).await;
    let block = mine(&both.desk.shown, 1);
    type Change = fn(&mut bitcoin::Block);
    let wrong: [(&str, Change); 5] = [
        ("a satoshi too much", |block| {
            block.txdata[0].output[0].value += bitcoin::Amount::from_sat(1);
        }),
        ("another height", |block| {
            let mut script = block.txdata[0].input[0].script_sig.to_bytes();
            script[1] += 1;
            block.txdata[0].input[0].script_sig = script.into();
        }),
        ("no reserved value", |block| block.txdata[0].input[0].witness.clear()),
        ("a coin spent twice", |block| {
            let again = block.txdata[3].clone();
            block.txdata.push(again);
            common::commit_to_witnesses(block);
        }),
        ("a script that fails", |block| {
            block.txdata[4].input[0].witness = bitcoin::Witness::from_slice(&[[0x52]]);
            common::commit_to_witnesses(block);
        }),
    ];
    for (what, change) in wrong {
        both.core_refuses(&forge(&block, change), what);
    }
    let old = forge_header(&block, Grind::Met, |block| block.header.time -= 100_000);
    both.core_refuses(&old, "a block before its time");
    both.go_on(&block, "the block itself").await;
}

#[tokio::test]
async fn core_takes_every_block_of_a_declared_job_js10() {
    let mut random = Random(1);
    for tx_count in [0, 1, 2, 7, 20] {
        let mut both = Both::new(tx_count).await;
        for _ in 0..20 {
            let job = both.desk.sound(&both.desk.declaration());
            let block = found(&both, &job, &mut random);
            both.go_on(&block, "a declared block").await;
        }
    }
}

#[tokio::test]
async fn core_agrees_on_three_thousand_changed_declarations_js10() {
    let mut both = Both::new(20).await;
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let declared = mutated(&both.desk.built(), &mut random);
        let what = format!("seed {seed}");
        match both.desk.check(&declared) {
            Ok(Outcome::Sound { job, .. }) => {
                let proposal = job.proposal(&both.desk.shown.prev_hash).unwrap();
                let block = found(&both, &job, &mut random);
                match both.desk.chain.check_block(&proposal).await.unwrap() {
                    Checked::Valid => {
                        both.go_on(&block, &what).await;
                        taken += 1;
                    }
                    Checked::Invalid(reason) => {
                        both.core_refuses(&block, &format!("{what}, {reason}"));
                        refused += 1;
                    }
                    Checked::NotOnTip(reason) => panic!("{what}: {reason}"),
                }
            }
            Ok(Outcome::Missing(_)) => {}
            Err(refusal) if is_our_rule(&refusal) => {}
            Err(refusal) => {
                let Some(block) = as_declared(&both, &declared) else { continue };
                both.core_refuses(&block, &format!("{what}, {refusal}"));
                refused += 1;
            }
        }
    }
    assert!(taken > 500 && refused > 200, "{taken} taken, {refused} refused");
}

/// The one transaction of the template with an output more, of nothing.
fn with_output(both: &Both, script: Vec<u8>) -> Transaction {
    let bytes = &both.desk.shown.template.known_transactions()[0];
    let mut changed: bitcoin::Transaction = bitcoin::consensus::deserialize(bytes).unwrap();
    let value = bitcoin::Amount::ZERO;
    changed.output.push(bitcoin::TxOut { value, script_pubkey: script.into() });
    Transaction::read(bitcoin::consensus::serialize(&changed).into()).unwrap()
}

/// The declaration of a block with this transaction alone.
fn declaring(desk: &mut Desk, transaction: Transaction) -> Declaration {
    let mut built = desk.built();
    built.wtxids = Some(vec![*transaction.wtxid()]);
    recommit(&mut built);
    desk.known.insert(*transaction.wtxid(), transaction);
    declaration(&built)
}

#[tokio::test]
async fn core_draws_the_limits_of_size_and_signature_operations_where_we_do_js10() {
    const OP_RETURN: u8 = 0x6a;
    const OP_CHECKSIG: u8 = 0xac;
    let mut both = Both::new(1).await;
    let small = with_output(&both, vec![OP_RETURN; 70_000]);
    let declared = declaring(&mut both.desk, small);
    let job = both.desk.sound(&declared);
    // A byte of a script weighs four.
    let longest = 70_000 + (4_000_000 - job.weight()) as usize / 4;
    for (fits, beyond) in [
        (vec![OP_RETURN; longest], vec![OP_RETURN; longest + 1]),
        (vec![OP_CHECKSIG; 20_000], vec![OP_CHECKSIG; 20_001]),
    ] {
        let beyond = with_output(&both, beyond);
        let declared = declaring(&mut both.desk, beyond);
        let refusal = both.desk.refusal(&declared);
        assert!(matches!(refusal, Refusal::Weight(_) | Refusal::Sigops(_)), "{refusal}");
        both.core_refuses(&as_declared(&both, &declared).unwrap(), "a step beyond a limit");
        let fits = with_output(&both, fits);
        let declared = declaring(&mut both.desk, fits);
        let job = both.desk.sound(&declared);
        let block = found(&both, &job, &mut Random(3));
        both.go_on(&block, "a block at a limit").await;
    }
}
