//! What the node tests share: a job from a template, a block ground from a job, and a block taken
//! apart, changed and put together again.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::sync::Arc;

use bitcoin::Block;
use job_declarator::node::NodeTemplate;
use proto::extranonce::Extranonce;
use proto::job::{HeaderFields, Job};
use proto::limits::EXTRANONCE_LEN;
use proto::target::Target;
use proto::template::{Output, PrevHash, Template};

/// A pay-to-witness-public-key-hash script of nobody.
pub fn payout_script() -> Vec<u8> {
    [&[0x00, 0x14][..], &[7; 20]].concat()
}

pub fn job(template: &Arc<Template>) -> Job {
    let outputs = [Output { sats: template.coinbase_value_sats, script: payout_script() }];
    Job::new(Arc::clone(template), &outputs, b"/test/").unwrap()
}

/// A block of `job` on that tip, ground until it meets the tip's target.
pub fn mine_job(job: &Job, prev_hash: &PrevHash, extranonce_byte: u8) -> Vec<u8> {
    let extranonce: Extranonce = [extranonce_byte; EXTRANONCE_LEN];
    let mut header = HeaderFields {
        version: job.version(),
        prev_hash: prev_hash.hash,
        merkle_root: job.merkle_root(&extranonce),
        ntime: prev_hash.min_ntime,
        nbits: prev_hash.nbits,
        nonce: 0,
    };
    let target = Target::from_compact(prev_hash.nbits);
    while !target.is_met_by(&header.hash()) {
        header.nonce += 1;
    }
    job.block(&header, &extranonce).unwrap()
}

/// The block that `shown` asks for.
pub fn mine(shown: &NodeTemplate, extranonce_byte: u8) -> Vec<u8> {
    mine_job(&job(&shown.template), &shown.prev_hash, extranonce_byte)
}

/// Whether a forged block has the proof of work that its own header asks for.
#[derive(Clone, Copy)]
pub enum Grind {
    Met,
    Missed,
}

/// `block` with a change, its merkle root and proof of work made to fit again.
pub fn forge(block: &[u8], change: impl FnOnce(&mut Block)) -> Vec<u8> {
    let mut block: Block = bitcoin::consensus::deserialize(block).unwrap();
    change(&mut block);
    block.header.merkle_root = block.compute_merkle_root().unwrap();
    grind(block, Grind::Met)
}

/// `block` with a change to the header or to what the merkle root covers; only the nonce is adapted.
pub fn forge_header(block: &[u8], how: Grind, change: impl FnOnce(&mut Block)) -> Vec<u8> {
    let mut block: Block = bitcoin::consensus::deserialize(block).unwrap();
    change(&mut block);
    grind(block, how)
}

fn grind(mut block: Block, how: Grind) -> Vec<u8> {
    let met = |block: &Block| block.header.target().is_met_by(block.block_hash());
    while met(&block) != matches!(how, Grind::Met) {
        block.header.nonce = block.header.nonce.wrapping_add(1);
    }
    bitcoin::consensus::serialize(&block)
}

/// The witness commitment made to fit the block's transactions again.
pub fn commit_to_witnesses(block: &mut Block) {
    let root = block.witness_root().unwrap();
    let commitment = Block::compute_witness_commitment(&root, &[0; 32]);
    let output = block.txdata[0].output.last_mut().unwrap();
    let mut script = output.script_pubkey.to_bytes();
    script[6..38].copy_from_slice(commitment.as_ref());
    output.script_pubkey = script.into();
}
