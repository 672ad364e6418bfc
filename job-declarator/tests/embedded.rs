//! Claims about the embedded chain through `Node`: what it accepts, what it refuses and in which words,
//! whom it wakes, and what survives a restart.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use bitcoin::{Amount, Block, CompactTarget, ScriptBuf};
use common::{Grind, commit_to_witnesses, forge, forge_header, job, mine, mine_job};
use job_declarator::node::embedded::{Clock, EmbeddedChain, EmbeddedError, EmbeddedOptions};
use job_declarator::node::{Checked, Node, NodeTemplate, Submitted};
use proto::job::JobId;
use proto::template::{PrevHash, TemplateId};

const NOW: u32 = 1_790_000_000;
const TX_COUNT: usize = 20;

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        tx_count: TX_COUNT,
        block_hashes: 2,
        clock: Arc::new(|| NOW),
        ..EmbeddedOptions::default()
    }
}

fn chain() -> EmbeddedChain {
    EmbeddedChain::new(options()).unwrap()
}

async fn present(chain: &EmbeddedChain) -> NodeTemplate {
    chain.next_template(None).await.unwrap()
}

/// A chain and a good block for its tip.
async fn chain_and_block() -> (EmbeddedChain, Vec<u8>) {
    let chain = chain();
    let block = mine(&present(&chain).await, 1);
    (chain, block)
}

async fn reason(chain: &EmbeddedChain, block: &[u8]) -> String {
    let submitted = chain.submit_block(block).await.unwrap();
    let Submitted::Rejected(reason) = submitted else { panic!("not refused: {submitted:?}") };
    reason
}

/// Refused with `word`, submitted as well as checked, and the tip stays.
async fn is_refused(chain: &EmbeddedChain, block: &[u8], word: &str) {
    let before = chain.chain_info().await.unwrap();
    let reason = reason(chain, block).await;
    assert!(reason.starts_with(word), "{reason}");
    let checked = chain.check_block(block).await.unwrap();
    let expected = match word {
        "prev-blk-not-found" => Checked::NotOnTip(reason),
        _ => Checked::Invalid(reason),
    };
    assert_eq!(checked, expected);
    assert_eq!(chain.chain_info().await.unwrap(), before);
}

#[tokio::test]
async fn a_block_mined_from_the_template_is_accepted_and_then_known() {
    let (chain, block) = chain_and_block().await;
    assert_eq!(chain.chain_info().await.unwrap().height, 120);
    assert_eq!(chain.check_block(&block).await.unwrap(), Checked::Valid);
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::AlreadyKnown);
    let known = Checked::NotOnTip("duplicate".to_owned());
    assert_eq!(chain.check_block(&block).await.unwrap(), known);
    let info = chain.chain_info().await.unwrap();
    assert_eq!(info.height, 121);
    assert_eq!(chain.height_of(&info.tip).await.unwrap(), Some(121));
    assert_eq!(chain.height_of(&[9; 32]).await.unwrap(), None);
}

#[tokio::test]
async fn a_long_chain_of_full_templates_stays_valid_over_halvings() {
    let chain = chain();
    for round in 0..200 {
        let shown = present(&chain).await;
        assert_eq!(shown.template.known_transactions().len(), TX_COUNT);
        assert_eq!(shown.template.merkle_path.len(), 5);
        let submitted = chain.submit_block(&mine(&shown, round as u8)).await.unwrap();
        assert_eq!(submitted, Submitted::Accepted, "round {round}");
    }
    let shown = present(&chain).await;
    let subsidy = 5_000_000_000 >> (321 / 150);
    let fees = shown.template.coinbase_value_sats - subsidy;
    assert!((200 * TX_COUNT as u64..1_000 * TX_COUNT as u64).contains(&fees));
}

#[tokio::test]
async fn the_future_block_is_accepted_on_the_block_before_it() {
    let chain = chain();
    let shown = present(&chain).await;
    let next = shown.next.clone().unwrap();
    assert_eq!(next.height, shown.template.height + 1);
    assert!(next.known_transactions().is_empty() && next.merkle_path.is_empty());
    assert_eq!(chain.submit_block(&mine(&shown, 1)).await.unwrap(), Submitted::Accepted);
    let tip = present(&chain).await.prev_hash;
    let block = mine_job(&job(&next), &tip, 1);
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
}

#[tokio::test]
async fn a_wrong_proof_of_work_is_refused_but_passes_the_check() {
    let (chain, block) = chain_and_block().await;
    let weak = forge_header(&block, Grind::Missed, |_| {});
    assert!(reason(&chain, &weak).await.starts_with("high-hash"));
    assert_eq!(chain.check_block(&weak).await.unwrap(), Checked::Valid);
}

#[tokio::test]
async fn a_wrong_header_is_refused_by_name() {
    let (chain, block) = chain_and_block().await;
    let forged = |change: fn(&mut Block)| forge_header(&block, Grind::Met, change);
    let median = NOW - 5 * 600;
    for (word, change) in [
        ("bad-txnmrklroot", (|block| flip(&mut block.header.merkle_root)) as fn(&mut Block)),
        ("prev-blk-not-found", |block| flip(&mut block.header.prev_blockhash)),
        ("bad-diffbits", |block| block.header.bits = CompactTarget::from_consensus(0x207f_fffe)),
        ("time-too-new", |block| block.header.time = NOW + 7_201),
        ("time-too-old", |block| block.header.time = NOW - 5 * 600),
        ("bad-version(0x00000003)", |block| {
            block.header.version = bitcoin::block::Version::from_consensus(3);
        }),
        ("bad-version(0x80000000)", |block| {
            block.header.version = bitcoin::block::Version::from_consensus(i32::MIN);
        }),
    ] {
        is_refused(&chain, &forged(change), word).await;
    }
    for time in [median + 1, NOW + 7_200] {
        let good = forge_header(&block, Grind::Met, |block| block.header.time = time);
        assert_eq!(chain.check_block(&good).await.unwrap(), Checked::Valid, "{time}");
    }
}

fn flip<H: bitcoin::hashes::Hash<Bytes = [u8; 32]>>(hash: &mut H) {
    let mut bytes = hash.to_byte_array();
    bytes[0] ^= 1;
    *hash = H::from_byte_array(bytes);
}

#[tokio::test]
async fn a_wrong_coinbase_is_refused_by_name() {
    let (chain, block) = chain_and_block().await;
    for (word, change) in [
        ("bad-cb-amount", add_a_satoshi as fn(&mut Block)),
        ("bad-cb-height", |block| edit_script_sig(block, |script| script[1] += 1)),
        ("bad-cb-length", |block| edit_script_sig(block, |script| script.resize(101, 0))),
        ("bad-cb-length", |block| edit_script_sig(block, |script| script.truncate(1))),
        ("bad-witness-merkle-match", |block| {
            let output = block.txdata[0].output.last_mut().unwrap();
            let mut script = output.script_pubkey.to_bytes();
            script[37] ^= 1;
            output.script_pubkey = script.into();
        }),
        ("bad-witness-nonce-size", |block| block.txdata[0].input[0].witness.clear()),
        ("unexpected-witness", |block| drop(block.txdata[0].output.pop())),
        ("bad-cb-missing", |block| block.txdata[0].input[0].previous_output.vout = 0),
        ("bad-cb-multiple", |block| {
            let mut second = block.txdata[0].clone();
            second.lock_time = bitcoin::absolute::LockTime::from_height(1).unwrap();
            block.txdata.push(second);
        }),
        ("bad-txns-vout-toolarge", |block| {
            block.txdata[0].output[0].value = Amount::from_sat(u64::MAX);
        }),
    ] {
        is_refused(&chain, &forge(&block, change), word).await;
    }
    let longest = forge(&block, |block| edit_script_sig(block, |script| script.resize(100, 0)));
    assert_eq!(chain.check_block(&longest).await.unwrap(), Checked::Valid);
}

fn add_a_satoshi(block: &mut Block) {
    block.txdata[0].output[0].value += Amount::from_sat(1);
}

fn edit_script_sig(block: &mut Block, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut script = block.txdata[0].input[0].script_sig.to_bytes();
    edit(&mut script);
    block.txdata[0].input[0].script_sig = ScriptBuf::from_bytes(script);
}

#[tokio::test]
async fn wrong_transactions_are_refused_by_name() {
    let (chain, block) = chain_and_block().await;
    for (word, change) in [
        (
            "bad-txns-in-belowout",
            (|block| {
                block.txdata[TX_COUNT].output[0].value += Amount::from_sat(1_000);
            }) as fn(&mut Block),
        ),
        ("bad-txns-inputs-missingorspent", |block| {
            block.txdata[3].input[0].previous_output.txid =
                bitcoin::hashes::Hash::from_byte_array([3; 32]);
        }),
        // The same coin twice, by two transactions.
        ("bad-txns-inputs-missingorspent", |block| {
            let mut again = block.txdata[TX_COUNT].clone();
            again.output[0].value -= Amount::from_sat(1);
            block.txdata.push(again);
        }),
        // Spent before it is made.
        ("bad-txns-inputs-missingorspent", |block| block.txdata.swap(1, 17)),
        ("block-script-verify-flag-failed", |block| {
            block.txdata[TX_COUNT].input[0].witness = bitcoin::Witness::from_slice(&[[0x52]]);
        }),
        ("bad-txns-nonfinal", |block| {
            block.txdata[TX_COUNT].input[0].sequence = bitcoin::Sequence::from_height(1);
        }),
    ] {
        let forged = forge(&block, |block| {
            change(block);
            commit_to_witnesses(block);
        });
        is_refused(&chain, &forged, word).await;
    }
}

#[tokio::test]
async fn a_coinbase_can_be_spent_a_hundred_blocks_later_and_not_before() {
    let chain = chain();
    let shown = present(&chain).await;
    let op_true = ScriptBuf::new_p2wsh(&ScriptBuf::from_bytes(vec![0x51]).wscript_hash());
    let block = forge(&mine(&shown, 1), |block| block.txdata[0].output[0].script_pubkey = op_true);
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
    let block: Block = bitcoin::consensus::deserialize(&block).unwrap();
    let coin = bitcoin::OutPoint { txid: block.txdata[0].compute_txid(), vout: 0 };
    let spending = |block: &[u8]| {
        forge(block, |block| {
            // Alone, because the template's own transactions spend the coin as soon as they may.
            let mut only = block.txdata[TX_COUNT].clone();
            only.input[0].previous_output = coin;
            only.output[0].value = Amount::from_sat(1_000);
            block.txdata.truncate(1);
            block.txdata.push(only);
            commit_to_witnesses(block);
        })
    };
    for round in 1..=99 {
        let block = mine(&present(&chain).await, round);
        if round == 99 {
            is_refused(&chain, &spending(&block), "bad-txns-premature-spend-of-coinbase").await;
        }
        assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
    }
    let block = spending(&mine(&present(&chain).await, 100));
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
}

#[tokio::test]
async fn a_transaction_twice_at_the_end_is_refused_though_the_root_is_the_same() {
    let (chain, block) = chain_and_block().await;
    // 21 transactions: the last row pairs the 21st with itself.
    let forged = forge_header(&block, Grind::Met, |block| {
        let last = block.txdata.last().unwrap().clone();
        block.txdata.push(last);
        assert!(block.check_merkle_root());
    });
    is_refused(&chain, &forged, "bad-txns-duplicate").await;
}

#[tokio::test]
async fn any_flipped_byte_of_a_block_is_refused() {
    let (chain, block) = chain_and_block().await;
    let stride = if cfg!(debug_assertions) { 7 } else { 1 };
    // The version may be rolled and the time may differ, so only what lies outside them.
    for at in (4..68).chain((72..block.len()).step_by(stride)) {
        let mut wrong = block.clone();
        wrong[at] ^= 1;
        let submitted = chain.submit_block(&wrong).await.unwrap();
        assert!(matches!(submitted, Submitted::Rejected(_)), "byte {at}: {submitted:?}");
    }
    for cut in (0..block.len()).step_by(stride) {
        assert!(matches!(chain.submit_block(&block[..cut]).await, Ok(Submitted::Rejected(_))));
    }
}

#[tokio::test]
async fn of_two_competing_blocks_the_second_is_stale() {
    let chain = chain();
    let shown = present(&chain).await;
    let (first, second) = (mine(&shown, 1), mine(&shown, 2));
    assert_eq!(chain.submit_block(&first).await.unwrap(), Submitted::Accepted);
    assert_eq!(chain.submit_block(&second).await.unwrap(), Submitted::Stale);
    let checked = chain.check_block(&second).await.unwrap();
    assert_eq!(checked, Checked::NotOnTip("inconclusive-not-best-prevblk".to_owned()));
    // Being late excuses no missing proof of work.
    let weak = forge_header(&second, Grind::Missed, |_| {});
    assert!(reason(&chain, &weak).await.starts_with("high-hash"));
    let hash = proto::template::sha256d(&second[..80]);
    assert_eq!(chain.height_of(&hash).await.unwrap(), None);
}

#[tokio::test]
async fn everybody_who_waits_wakes_on_a_new_tip() {
    let chain = Arc::new(chain());
    let shown = present(&chain).await;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (chain, mark) = (Arc::clone(&chain), shown.mark.clone());
            tokio::spawn(async move { chain.next_template(Some(&mark)).await.unwrap() })
        })
        .collect();
    tokio::task::yield_now().await;
    let block = mine(&shown, 1);
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
    for waiting in waiting {
        let woken = waiting.await.unwrap();
        assert_eq!(woken.prev_hash.hash, proto::template::sha256d(&block[..80]));
        assert_eq!(woken.template.height, shown.template.height + 1);
        assert!(woken.template.id > shown.next.as_ref().unwrap().id);
    }
    // A mark of the past does not wait.
    let again = chain.next_template(Some(&shown.mark)).await.unwrap();
    assert_eq!(again.template.height, shown.template.height + 1);
}

#[tokio::test]
async fn a_block_whose_submitter_went_away_still_wakes_those_who_wait() {
    let chain = Arc::new(chain());
    let shown = present(&chain).await;
    let waiting = chain.next_template(Some(&shown.mark));
    let block = mine(&shown, 1);
    let submitting = async {
        // Polled once, so that it is on its way, and dropped.
        let mut submitted = chain.submit_block(&block);
        std::future::poll_fn(|context| Poll::Ready(submitted.as_mut().poll(context).is_ready()))
            .await;
    };
    let (woken, ()) = tokio::join!(waiting, submitting);
    assert_eq!(woken.unwrap().template.height, shown.template.height + 1);
}

#[tokio::test]
async fn without_a_block_a_waiting_caller_gets_new_transactions_on_the_same_tip() {
    let options = EmbeddedOptions { refresh: Duration::from_millis(1), ..options() };
    let chain = EmbeddedChain::new(options).unwrap();
    let shown = present(&chain).await;
    let fresh = chain.next_template(Some(&shown.mark)).await.unwrap();
    assert_eq!(fresh.prev_hash.hash, shown.prev_hash.hash);
    assert!(fresh.template.id > shown.template.id);
    let (old, new) = (shown.template.known_transactions(), fresh.template.known_transactions());
    assert_eq!(old[..15], new[..15]);
    assert!(old[15..].iter().zip(&new[15..]).all(|(old, new)| old != new));
    // Both are good blocks still.
    for shown in [&shown, &fresh] {
        assert_eq!(chain.check_block(&mine(shown, 1)).await.unwrap(), Checked::Valid);
    }
    assert_eq!(present(&chain).await.template.id, fresh.template.id);
}

#[tokio::test]
async fn without_transactions_the_template_is_a_bare_coinbase_and_only_a_block_changes_it() {
    let options = EmbeddedOptions { tx_count: 0, refresh: Duration::from_millis(1), ..options() };
    let chain = EmbeddedChain::new(options).unwrap();
    let shown = present(&chain).await;
    assert!(shown.template.merkle_path.is_empty());
    let waited =
        tokio::time::timeout(Duration::from_millis(50), chain.next_template(Some(&shown.mark)));
    assert!(waited.await.is_err());
    assert_eq!(chain.submit_block(&mine(&shown, 1)).await.unwrap(), Submitted::Accepted);
}

#[tokio::test]
async fn the_time_of_a_template_follows_the_clock_and_never_breaks_the_median() {
    let time = Arc::new(AtomicU32::new(NOW));
    let read = Arc::clone(&time);
    let clock: Clock = Arc::new(move || read.load(Ordering::Relaxed));
    let chain = EmbeddedChain::new(EmbeddedOptions { clock, ..options() }).unwrap();
    assert_eq!(present(&chain).await.prev_hash.min_ntime, NOW);
    time.store(NOW + 77, Ordering::Relaxed);
    assert_eq!(present(&chain).await.prev_hash.min_ntime, NOW + 77);
    time.store(NOW - 1_000_000, Ordering::Relaxed);
    assert_eq!(present(&chain).await.prev_hash.min_ntime, NOW - 5 * 600 + 1);
}

#[tokio::test]
async fn the_largest_template_is_a_valid_block() {
    let tx_count = job_declarator::limits::EMBEDDED_TRANSACTIONS_MAX;
    let chain = EmbeddedChain::new(EmbeddedOptions { tx_count, ..options() }).unwrap();
    let shown = present(&chain).await;
    assert_eq!(shown.template.known_transactions().len(), tx_count);
    assert_eq!(chain.submit_block(&mine(&shown, 1)).await.unwrap(), Submitted::Accepted);
}

#[tokio::test]
async fn a_harder_target_holds_from_the_start_height_on() {
    let chain = EmbeddedChain::new(EmbeddedOptions { block_hashes: 256, ..options() }).unwrap();
    let shown = present(&chain).await;
    assert_eq!(shown.prev_hash.nbits, 0x2000_ff00, "2^256 / 257, cut to 16 bits");
    assert_eq!(chain.submit_block(&mine(&shown, 1)).await.unwrap(), Submitted::Accepted);
    let easy = PrevHash { nbits: 0x207f_ffff, ..present(&chain).await.prev_hash };
    let forged = mine_job(&job(&present(&chain).await.template), &easy, 1);
    is_refused(&chain, &forged, "bad-diffbits").await;
}

#[tokio::test]
async fn a_restarted_chain_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let options = || EmbeddedOptions { data_dir: Some(dir.path().to_owned()), ..options() };
    let chain = EmbeddedChain::new(options()).unwrap();
    for round in 0..5 {
        let block = mine(&present(&chain).await, round);
        assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
    }
    let before = chain.chain_info().await.unwrap();
    let mark = present(&chain).await.mark;
    assert!(matches!(EmbeddedChain::new(options()), Err(EmbeddedError::InUse(_))));
    drop(chain);

    // Another start height changes nothing: the chain has its own.
    let other = EmbeddedOptions { start_height: 200, ..options() };
    let chain = EmbeddedChain::new(other).unwrap();
    assert_eq!(chain.chain_info().await.unwrap(), before);
    let shown = present(&chain).await;
    assert_eq!(shown.mark, mark);
    assert_eq!(shown.template.id, TemplateId(1));
    assert_eq!(chain.submit_block(&mine(&shown, 9)).await.unwrap(), Submitted::Accepted);
    drop(chain);

    // A crash in the middle of the last block loses that one and no other.
    let file = dir.path().join("embedded-chain.blocks");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let chain = EmbeddedChain::new(options()).unwrap();
    assert_eq!(chain.chain_info().await.unwrap(), before);
    drop(chain);

    let harder = EmbeddedOptions { block_hashes: 256, ..options() };
    assert!(matches!(EmbeddedChain::new(harder), Err(EmbeddedError::OtherDifficulty { .. })));
}

#[tokio::test]
async fn a_block_in_the_file_that_breaks_a_rule_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let options = || EmbeddedOptions { data_dir: Some(dir.path().to_owned()), ..options() };
    drop(EmbeddedChain::new(options()).unwrap());
    // The last prepared block once more, with its checksum: it no longer stands on the tip.
    let file = dir.path().join("embedded-chain.blocks");
    let mut bytes = std::fs::read(&file).unwrap();
    let len = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let first = bytes[16..24 + len].to_vec();
    bytes.extend(first);
    std::fs::write(&file, bytes).unwrap();
    let refused = EmbeddedChain::new(options());
    assert!(matches!(refused, Err(EmbeddedError::Block { height: 121, .. })), "{refused:?}");
}

#[tokio::test]
async fn a_block_of_a_numbered_job_is_accepted() {
    let chain = chain();
    for number in [1, 2, 70_000, u32::MAX] {
        let shown = present(&chain).await;
        let job = job(&shown.template).numbered(JobId(number));
        let block = mine_job(&job, &shown.prev_hash, 1);
        assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted, "{number}");
    }
}
