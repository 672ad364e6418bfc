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

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoinkernel::prelude::*;
use bitcoinkernel::{
    ChainType, ChainstateManager, ChainstateManagerBuilder, Context, ContextBuilder,
};
use common::{Grind, forge, forge_header, mine, mine_job};
use declare::{Desk, NOW, declaration};
use job_declarator::declared::{
    BuiltJob, DeclaredJob, Outcome, Refusal, Transaction, check, coinbase_only,
};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{Checked, Node, Submitted};
use mutate::{Random, coinbase_bytes, move_value, mutated, recommit};
use proto::declare::Declaration;
use proto::job::HeaderFields;
use proto::limits::{EXTRANONCE_LEN, VERSION_ROLLING_MASK};
use proto::target::Target;
use proto::template::{merkle_path, merkle_root, sha256d, write_compact_size};

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
        self.tip() == sha256d(&block[..80])
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

/// A block of these parts on the tip, whatever they are, its header ground until it meets the target.
fn assembled(
    both: &Both,
    version: u32,
    merkle_root: [u8; 32],
    coinbase: &[u8],
    others: &[Arc<[u8]>],
) -> Vec<u8> {
    let tip = both.desk.shown.prev_hash;
    let mut header = HeaderFields {
        version,
        prev_hash: tip.hash,
        merkle_root,
        ntime: tip.min_ntime,
        nbits: tip.nbits,
        nonce: 0,
    };
    let target = Target::from_compact(tip.nbits);
    while !target.is_met_by(&header.hash()) {
        header.nonce += 1;
    }
    let mut block = header.to_bytes().to_vec();
    write_compact_size(others.len() as u64 + 1, &mut block);
    block.extend_from_slice(coinbase);
    others.iter().for_each(|one| block.extend_from_slice(one));
    block
}

/// The id that Core gives to a transaction; `None` if the bytes are none to it, or one and something more.
fn txid_by_core(bytes: &[u8]) -> Option<[u8; 32]> {
    let read = bitcoinkernel::Transaction::new(bytes).ok()?;
    let is_all = read.consensus_encode().is_ok_and(|written| written == bytes);
    is_all.then(|| read.txid().to_bytes())
}

/// The block of a declaration as it was declared, whatever we think of it: with what was supplied, and
/// with what the pool knows. `None` where something of it is no transaction to Core, or nobody has it.
fn as_declared(both: &Both, declared: &Declaration) -> Option<Vec<u8>> {
    let supplied =
        |at: usize| declared.supplied.iter().find(|(position, _)| usize::from(*position) == at);
    let others = declared.wtxids.iter().enumerate().map(|(at, wtxid)| match supplied(at) {
        Some((_, bytes)) => Some(Arc::clone(bytes)),
        None => both.desk.known.get(wtxid).map(|one| Arc::clone(one.bytes())),
    });
    let others = others.collect::<Option<Vec<_>>>()?;
    let txids = others.iter().map(|one| txid_by_core(one)).collect::<Option<Vec<_>>>()?;
    let coinbase = coinbase_bytes(declared, &[5; EXTRANONCE_LEN]);
    let merkle_root = merkle_root(txid_by_core(&coinbase)?, &merkle_path(&txids));
    Some(assembled(both, declared.version, merkle_root, &coinbase, &others))
}

/// Refusals of ours that consensus does not ask for.
fn is_our_rule(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Underpaid { .. }
            | Refusal::NothingPaid
            | Refusal::ExtranonceNotLast
            | Refusal::CoinbaseTooLong(_)
    )
}

/// What we and Core agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Agreed {
    /// Its block is one, and is the tip now.
    Taken,
    /// Its block is none.
    Refused,
    /// Not even transactions that a block could be made of.
    Unreadable,
    /// Refused by a rule that is not consensus'.
    OurRule,
    /// Nobody here has all of its transactions.
    Missing,
}

/// A declaration is judged by us, and then its block by Core.
async fn agree(both: &mut Both, declared: &Declaration, random: &mut Random, what: &str) -> Agreed {
    let refusal = match both.desk.check(declared) {
        Ok(Outcome::Sound { job, .. }) => {
            let block = found(both, &job, random);
            is_what_was_declared(&block, declared, &job);
            return agree_on_sound(both, &job, &block, what).await;
        }
        Ok(Outcome::Missing(_)) => return Agreed::Missing,
        Err(refusal) if is_our_rule(&refusal) => return Agreed::OurRule,
        Err(refusal) => refusal,
    };
    let mut declared = declared.clone();
    if matches!(refusal, Refusal::Version(_)) {
        // It is no block with just these bits rolled.
        declared.version &= !VERSION_ROLLING_MASK;
    }
    let Some(block) = as_declared(both, &declared) else { return Agreed::Unreadable };
    both.core_refuses(&block, &format!("{what}, {refusal}"));
    Agreed::Refused
}

/// What the node says of a job that our check finds sound, Core says of its block.
async fn agree_on_sound(both: &mut Both, job: &DeclaredJob, block: &[u8], what: &str) -> Agreed {
    let proposal = job.proposal(&both.desk.shown.prev_hash).unwrap();
    match both.desk.chain.check_block(&proposal).await.unwrap() {
        Checked::Valid => {
            both.go_on(block, what).await;
            Agreed::Taken
        }
        Checked::Invalid(reason) => {
            both.core_refuses(block, &format!("{what}, {reason}"));
            Agreed::Refused
        }
        Checked::NotOnTip(reason) => panic!("{what}: {reason}"),
    }
}

/// The block holds what was declared and nothing else, and pays the pool all that it pays.
fn is_what_was_declared(block: &[u8], declared: &Declaration, job: &DeclaredJob) {
    let block: bitcoin::Block = bitcoin::consensus::deserialize(block).unwrap();
    let coinbase = bitcoin::consensus::serialize(&block.txdata[0]);
    assert!(coinbase.starts_with(&declared.coinbase_prefix));
    assert_eq!(
        coinbase[declared.coinbase_prefix.len() + EXTRANONCE_LEN..],
        declared.coinbase_suffix
    );
    let wtxids = block.txdata[1..].iter().map(|one| one.compute_wtxid().to_byte_array());
    assert!(wtxids.eq(declared.wtxids.iter().copied()));
    assert_eq!(job.pool_sats(), job.value_sats());
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
    let mut seen = BTreeMap::new();
    for seed in 0..3_000 {
        let mut random = Random(seed);
        let declared = mutated(&both.desk.built(), &mut random);
        let agreed = agree(&mut both, &declared, &mut random, &format!("seed {seed}")).await;
        *seen.entry(agreed).or_insert(0) += 1;
    }
    assert!(seen[&Agreed::Taken] > 500 && seen[&Agreed::Refused] > 200, "{seen:?}");
}

/// A byte of a declaration.
#[derive(Debug, Clone, Copy)]
enum Place {
    Version(usize),
    Prefix(usize),
    Suffix(usize),
    Supplied(usize, usize),
}

/// Every byte of a declaration that its block is made of.
fn places(declared: &Declaration) -> Vec<Place> {
    let Declaration { coinbase_prefix, coinbase_suffix, supplied, .. } = declared;
    let version = (0..4).map(Place::Version);
    let prefix = (0..coinbase_prefix.len()).map(Place::Prefix);
    let suffix = (0..coinbase_suffix.len()).map(Place::Suffix);
    let supplied = supplied.iter().enumerate();
    let supplied = supplied
        .flat_map(|(of, (_, bytes))| (0..bytes.len()).map(move |at| Place::Supplied(of, at)));
    version.chain(prefix).chain(suffix).chain(supplied).collect()
}

fn flip(declared: &mut Declaration, place: Place, bit: u8) {
    let mask = 1 << bit;
    match place {
        Place::Version(at) => declared.version ^= u32::from(mask) << (8 * at),
        Place::Prefix(at) => declared.coinbase_prefix[at] ^= mask,
        Place::Suffix(at) => declared.coinbase_suffix[at] ^= mask,
        Place::Supplied(of, at) => {
            let bytes = &mut declared.supplied[of].1;
            let mut flipped = bytes.to_vec();
            flipped[at] ^= mask;
            *bytes = flipped.into();
        }
    }
}

/// The declaration of a job whose transactions were all asked for.
fn in_full(desk: &Desk, built: &BuiltJob) -> Declaration {
    let transactions = desk.shown.template.known_transactions().iter().cloned();
    let supplied = (0..).zip(transactions).collect();
    Declaration { supplied, was_asked: true, ..declaration(built) }
}

#[tokio::test]
async fn core_agrees_on_every_flipped_byte_of_a_declaration_js10() {
    let mut both = Both::new(3).await;
    // From a height of 128 on its push keeps its length, and each byte its place.
    for round in 0..10 {
        let block = mine(&both.desk.shown, round);
        both.go_on(&block, "a block of the embedded chain").await;
    }
    let mut random = Random(4);
    let mut seen = BTreeMap::new();
    let places = places(&in_full(&both.desk, &both.desk.built()));
    for place in &places {
        let bits = match place {
            Place::Version(_) | Place::Prefix(_) | Place::Suffix(_) => 0..8,
            // Any makes it another transaction than the list names.
            Place::Supplied(_, at) => (*at % 8) as u8..(*at % 8) as u8 + 1,
        };
        for bit in bits {
            let mut declared = in_full(&both.desk, &both.desk.built());
            flip(&mut declared, *place, bit);
            let what = format!("bit {bit} of {place:?}");
            let agreed = agree(&mut both, &declared, &mut random, &what).await;
            *seen.entry(agreed).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.get(&Agreed::Missing), None, "all was supplied");
    // Free are the coinbase's version, sequence and lock time, the tag, the rolled bits, and to take less.
    assert!(seen[&Agreed::Taken] > 100, "{seen:?}");
    assert!(seen[&Agreed::Refused] > 800, "{seen:?}");
}

#[tokio::test]
async fn core_agrees_on_a_transaction_with_any_byte_flipped_before_it_is_declared_js10() {
    let mut both = Both::new(1).await;
    let mut random = Random(5);
    let mut seen = BTreeMap::new();
    let length = both.desk.shown.template.known_transactions()[0].len();
    for (at, bit) in (0..length).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        if both.desk.shown.template.known_transactions().is_empty() {
            // The coins that the chain starts with are paid away.
            both = Both::new(1).await;
        }
        let mut built = both.desk.built();
        let mut declared = in_full(&both.desk, &built);
        flip(&mut declared, Place::Supplied(0, at), bit);
        let supplied = declared.supplied;
        built.wtxids = Some(vec![sha256d(&supplied[0].1)]);
        recommit(&mut built);
        let declared = Declaration { supplied, ..declaration(&built) };
        let what = format!("bit {bit} of byte {at}");
        let agreed = agree(&mut both, &declared, &mut random, &what).await;
        *seen.entry(agreed).or_insert(0) += 1;
    }
    // Its version, its sequence and lock time, whom it pays, and to leave more in fees.
    assert!(seen[&Agreed::Taken] > 300 && seen[&Agreed::Refused] > 300, "{seen:?}");
}

#[tokio::test]
async fn core_refuses_every_flipped_byte_of_a_wtxid_js10() {
    let both = Both::new(3).await;
    for of in 0..3 {
        for at in 0..32 {
            let mut built = both.desk.built();
            built.wtxids.as_mut().unwrap()[of][at] ^= 1 << (at % 8);
            assert_eq!(both.desk.refusal(&declaration(&built)), Refusal::Commitment);
            // The list fits its commitment; the transaction that there is does not.
            recommit(&mut built);
            let declared = in_full(&both.desk, &built);
            assert_eq!(both.desk.refusal(&declared), Refusal::OtherTransaction(of as u16));
            let block = as_declared(&both, &declared).unwrap();
            both.core_refuses(&block, &format!("byte {at} of wtxid {of}"));
        }
    }
}

/// A job of the template's transactions whose coinbase has room for another's: a longer tag, and an output
/// of signature operations.
fn roomy(desk: &Desk) -> DeclaredJob {
    const OP_CHECKSIG: u8 = 0xac;
    let mut built = desk.built();
    let outputs = &mut built.coinbase.outputs;
    outputs[0] += 1;
    outputs.extend([0; 8]);
    outputs.extend([40]);
    outputs.extend([OP_CHECKSIG; 40]);
    // Before the opcode that pushes the extranonce.
    let end = built.coinbase.script_sig_prefix.len() - 1;
    built.coinbase.script_sig_prefix.splice(end..end, [&[20][..], &[0x61; 20]].concat());
    desk.sound(&declaration(&built))
}

/// What the pool does not ask its node about (`Taken` in `pool/src/checks.rs`) once it took `other`.
fn asks_for_no_more(job: &DeclaredJob, other: &DeclaredJob) -> bool {
    job.job().version() == other.job().version()
        && job.value_sats() <= other.value_sats()
        && job.weight() <= other.weight()
        && job.sigop_cost() <= other.sigop_cost()
}

#[tokio::test]
async fn core_takes_a_coinbase_that_asks_for_no_more_than_one_found_valid_js10() {
    let mut both = Both::new(7).await;
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..2_000 {
        let first = roomy(&both.desk);
        let proposal = first.proposal(&both.desk.shown.prev_hash).unwrap();
        assert_eq!(both.desk.chain.check_block(&proposal).await.unwrap(), Checked::Valid);
        let mut random = Random(seed);
        let second = mutated(&both.desk.built(), &mut random);
        // The list of the first, or none that anybody knows.
        let body = first.body().unwrap();
        let same = |id: &[u8; 32]| (id == body.id()).then(|| Arc::clone(body));
        let checked = check(&second, &both.desk.context(), &|_| None, &same);
        let Ok(Outcome::Sound { job, .. }) = checked else { continue };
        let block = found(&both, &job, &mut random);
        is_what_was_declared(&block, &second, &job);
        if asks_for_no_more(&job, &first) {
            both.go_on(&block, &format!("seed {seed}")).await;
            taken += 1;
        } else if job.value_sats() > first.value_sats() {
            both.core_refuses(&block, &format!("seed {seed}, a satoshi more than there is"));
            refused += 1;
        }
    }
    assert!(taken > 300 && refused > 30, "{taken} taken, {refused} refused");
}

/// The block that a miner makes of an undeclared job: the header that the pool judges his share by, and
/// transactions that the pool never saw.
fn miners_block(
    both: &Both,
    job: &DeclaredJob,
    transactions: &[Arc<[u8]>],
    random: &mut Random,
) -> Vec<u8> {
    let extranonce = [random.next() as u8; EXTRANONCE_LEN];
    let parts = job.coinbase().declared_parts(EXTRANONCE_LEN);
    let coinbase = [&parts.prefix[..], &extranonce, &parts.suffix].concat();
    let version = job.job().version() ^ random.next() as u32 & VERSION_ROLLING_MASK;
    assembled(both, version, job.job().merkle_root(&extranonce), &coinbase, transactions)
}

#[tokio::test]
async fn core_takes_the_block_of_an_undeclared_job_and_its_miners_transactions() {
    let mut random = Random(6);
    for tx_count in [0, 1, 2, 7, 20] {
        let mut both = Both::new(tx_count).await;
        for _ in 0..10 {
            let (desk, request) = (&both.desk, both.desk.request());
            let job = coinbase_only(&request, &desk.context(), &desk.ntime()).unwrap();
            let transactions = desk.shown.template.known_transactions().to_vec();
            assert_eq!(job.body().is_some(), transactions.is_empty());
            if let Some((_, fewer)) = transactions.split_last() {
                let block = miners_block(&both, &job, fewer, &mut random);
                both.core_refuses(&block, "other transactions than the job is of");
                // Nobody here can know that there is less to take.
                let mut greedy = request;
                move_value(&mut greedy.outputs, 1);
                let greedy = coinbase_only(&greedy, &desk.context(), &desk.ntime()).unwrap();
                let block = miners_block(&both, &greedy, &transactions, &mut random);
                both.core_refuses(&block, "a satoshi too much");
            }
            let block = miners_block(&both, &job, &transactions, &mut random);
            both.go_on(&block, "an undeclared block").await;
        }
    }
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
