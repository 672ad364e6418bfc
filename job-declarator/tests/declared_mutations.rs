//! Ten thousand declarations with changes in them: each is refused, by the check or by the node, or is a
//! valid block that holds what was declared and pays the pool everything.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

mod common;
#[path = "common/declare.rs"]
mod declare;
#[path = "common/mutate.rs"]
mod mutate;

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use declare::Desk;
use job_declarator::declared::{DeclaredJob, Outcome};
use job_declarator::node::{Checked, Node};
use mutate::{Random, coinbase_bytes, mutated};
use proto::declare::Declaration;
use proto::limits::EXTRANONCE_LEN;

/// What became of a declaration; the node's or the check's reason, without its numbers.
async fn judged(desk: &Desk, declared: &mut Declaration) -> String {
    let job = match desk.check(declared) {
        Err(refusal) => return format!("{:?}", refusal.declare()),
        Ok(Outcome::Missing(positions)) => {
            // The miner has what he listed, and nothing for what nobody has.
            let all = desk.shown.template.known_transactions();
            let has = |at: &u16| Some((*at, Arc::clone(all.get(usize::from(*at))?)));
            declared.supplied = positions.iter().filter_map(has).collect();
            match desk.check(declared) {
                Err(refusal) => return format!("{:?}", refusal.declare()),
                Ok(Outcome::Missing(_)) => return "missing".to_owned(),
                Ok(Outcome::Sound { job, .. }) => job,
            }
        }
        Ok(Outcome::Sound { job, .. }) => job,
    };
    let proposal = job.proposal(&desk.shown.prev_hash).unwrap();
    match desk.chain.check_block(&proposal).await.unwrap() {
        Checked::Valid => {
            is_what_was_declared(desk, declared, &job, &proposal);
            "valid".to_owned()
        }
        Checked::Invalid(reason) => reason.split([' ', ':', '(']).next().unwrap().to_owned(),
        Checked::NotOnTip(reason) => panic!("the tip has not moved: {reason}"),
    }
}

/// The block is the declaration's to the byte, and pays the pool all that it pays.
fn is_what_was_declared(desk: &Desk, declared: &Declaration, job: &DeclaredJob, proposal: &[u8]) {
    let block: bitcoin::Block = bitcoin::consensus::deserialize(proposal).unwrap();
    let coinbase = bitcoin::consensus::serialize(&block.txdata[0]);
    assert_eq!(coinbase, coinbase_bytes(declared, &[0; EXTRANONCE_LEN]));
    let wtxids: Vec<[u8; 32]> =
        block.txdata[1..].iter().map(|one| one.compute_wtxid().to_byte_array()).collect();
    assert_eq!(wtxids, declared.wtxids);
    assert_eq!(block.header.version.to_consensus() as u32, declared.version);
    let ours = common::payout_script();
    let outputs = &block.txdata[0].output;
    let elsewhere = outputs.iter().filter(|output| output.script_pubkey.as_bytes() != ours);
    assert_eq!(elsewhere.map(|output| output.value.to_sat()).sum::<u64>(), 0);
    let paid: u64 = outputs.iter().map(|output| output.value.to_sat()).sum();
    assert!(paid > 0 && paid <= desk.shown.template.coinbase_value_sats);
    assert_eq!((job.pool_sats(), job.value_sats()), (paid, paid));
}

async fn many(desk: &Desk, seeds: std::ops::Range<u64>) -> BTreeMap<String, u32> {
    let built = desk.built();
    let mut seen = BTreeMap::new();
    for seed in seeds {
        let mut declared = mutated(&built, &mut Random(seed));
        *seen.entry(judged(desk, &mut declared).await).or_insert(0) += 1;
    }
    seen
}

#[tokio::test]
async fn ten_thousand_changed_declarations_are_refused_or_equally_good_js10() {
    let mut desk = Desk::new(24).await;
    let seen = many(&desk, 0..8_000).await;
    for word in ["valid", "bad-cb-amount", "bad-txns-inputs-missingorspent"] {
        assert!(seen.get(word).is_some_and(|count| *count > 20), "{word}: {seen:?}");
    }
    // Half of them unknown to the pool, so that they have to be asked for.
    desk.known.retain(|wtxid, _| wtxid[0] % 2 == 0);
    let seen = many(&desk, 8_000..12_000).await;
    for word in ["valid", "MissingTransactions"] {
        assert!(seen.get(word).is_some_and(|count| *count > 20), "{word}: {seen:?}");
    }
}

#[tokio::test]
async fn any_flipped_byte_of_a_declaration_is_refused_or_equally_good_js10() {
    let desk = Desk::new(3).await;
    let declared = desk.declaration();
    let mut valid = Vec::new();
    let (prefix, suffix) = (declared.coinbase_prefix.len(), declared.coinbase_suffix.len());
    for at in 0..prefix + suffix + 96 {
        for bit in [0x01, 0x80] {
            let mut flipped = declared.clone();
            match at {
                at if at < prefix => flipped.coinbase_prefix[at] ^= bit,
                at if at < prefix + suffix => flipped.coinbase_suffix[at - prefix] ^= bit,
                at => flipped.wtxids[(at - prefix - suffix) / 32][at % 32] ^= bit,
            }
            if judged(&desk, &mut flipped).await == "valid" {
                valid.push(at);
            }
        }
    }
    valid.dedup();
    // What a miner is free in: the coinbase's version, his tag and how the extranonce is introduced, its
    // sequence, to pay less (bits of the first output's value), the lock time of a final coinbase.
    let is_free = |at: &usize| {
        let at_suffix = at.wrapping_sub(prefix);
        let in_prefix = *at < 4 || (46..prefix).contains(at);
        let in_suffix = at_suffix < 4 || (5..13).contains(&at_suffix);
        in_prefix || in_suffix || (suffix - 4..suffix).contains(&at_suffix)
    };
    assert!(valid.iter().all(is_free), "{valid:?}");
    assert!(valid.len() > 10, "{valid:?}");
}
