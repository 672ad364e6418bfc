//! Claims about both nodes that only a real Bitcoin Core can judge. Runs if `BITCOIND_EXE` names a
//! `bitcoind` and says so loudly if not. Each test has its own regtest node on 127.0.0.1, which ends
//! with it.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

mod common;
#[path = "common/core.rs"]
mod core;

use std::time::{Duration, Instant};

use bitcoin::hashes::Hash;
use bitcoin::{Amount, Block, CompactTarget};
use common::{Grind, commit_to_witnesses, forge, forge_header, job, mine, mine_job};
#[cfg(feature = "ipc")]
use core::has_socket;
use core::{Core, NOBODY, say_loudly};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::rpc::RpcNode;
use job_declarator::node::{Checked, Node, NodeError, NodeTemplate, Submitted};
use proto::job::JobId;

async fn ready(node: &RpcNode) -> NodeTemplate {
    let start = Instant::now();
    loop {
        match node.next_template(None).await {
            Ok(shown) => return shown,
            Err(NodeError::NotReady(_) | NodeError::Unreachable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Changes that make a good block bad. The reason's first word is the same from both nodes.
type Change = (&'static str, fn(&[u8]) -> Vec<u8>);

fn bad_coinbases() -> Vec<Change> {
    vec![
        ("bad-cb-amount", |block| {
            forge(block, |block| block.txdata[0].output[0].value += Amount::from_sat(1))
        }),
        ("bad-cb-height", |block| {
            forge(block, |block| {
                let mut script = block.txdata[0].input[0].script_sig.to_bytes();
                script[1] ^= 1;
                block.txdata[0].input[0].script_sig = script.into();
            })
        }),
        ("bad-cb-length", |block| {
            forge(block, |block| {
                let mut script = block.txdata[0].input[0].script_sig.to_bytes();
                script.resize(101, 0);
                block.txdata[0].input[0].script_sig = script.into();
            })
        }),
        ("bad-witness-merkle-match", |block| {
            forge(block, |block| {
                let output = block.txdata[0].output.last_mut().unwrap();
                let mut script = output.script_pubkey.to_bytes();
                script[37] ^= 1;
                output.script_pubkey = script.into();
            })
        }),
        ("bad-witness-nonce-size", |block| {
            forge(block, |block| block.txdata[0].input[0].witness.clear())
        }),
        ("unexpected-witness", |block| forge(block, |block| drop(block.txdata[0].output.pop()))),
    ]
}

fn bad_transactions() -> Vec<Change> {
    vec![
        ("bad-txns-in-belowout", |block| {
            forge(block, |block| {
                let last = block.txdata.last_mut().unwrap();
                last.output[0].value += Amount::from_sat(10_000_000_000);
                commit_to_witnesses(block);
            })
        }),
        ("bad-txns-inputs-missingorspent", |block| {
            forge(block, |block| {
                let last = block.txdata.last_mut().unwrap();
                last.input[0].previous_output.txid = Hash::from_byte_array([3; 32]);
                commit_to_witnesses(block);
            })
        }),
    ]
}

fn bad_headers() -> Vec<Change> {
    vec![
        ("bad-txnmrklroot", |block| {
            forge_header(block, Grind::Met, |block| {
                block.header.merkle_root = Hash::from_byte_array([1; 32]);
            })
        }),
        ("bad-diffbits", |block| {
            forge_header(block, Grind::Met, |block| {
                block.header.bits = CompactTarget::from_consensus(0x207f_fffe);
            })
        }),
        ("time-too-new", |block| {
            forge_header(block, Grind::Met, |block| block.header.time += 7_300)
        }),
        ("time-too-old", |block| {
            forge_header(block, Grind::Met, |block| block.header.time -= 1_000_000)
        }),
        ("bad-version(0x00000003)", |block| {
            forge_header(block, Grind::Met, |block| {
                block.header.version = bitcoin::block::Version::from_consensus(3);
            })
        }),
        ("inconclusive-not-best-prevblk", |block| {
            forge_header(block, Grind::Met, |block| {
                let genesis = bitcoin::constants::genesis_block(bitcoin::Network::Regtest);
                block.header.prev_blockhash = genesis.block_hash();
            })
        }),
    ]
}

async fn refuses_what_is_bad(node: &dyn Node, block: &[u8]) {
    assert_eq!(node.check_block(block).await.unwrap(), Checked::Valid);
    let weak = forge_header(block, Grind::Missed, |_| {});
    let checked = node.check_block(&weak).await.unwrap();
    assert_eq!(checked, Checked::Valid, "proof of work is not looked at");
    for (word, change) in [bad_coinbases(), bad_transactions(), bad_headers()].concat() {
        let checked = node.check_block(&change(block)).await.unwrap();
        let (Checked::Invalid(reason) | Checked::NotOnTip(reason)) = checked else {
            panic!("{}: valid for {word}", node.name());
        };
        assert!(reason.starts_with(word), "{}: {reason} for {word}", node.name());
    }
    let checked = node.check_block(&block[..block.len() - 1]).await.unwrap();
    let Checked::Invalid(cut) = checked else { panic!("not refused: {checked:?}") };
    assert!(cut.to_lowercase().contains("decode failed"), "{cut}");
}

async fn is_accepted(node: &dyn Node, block: &[u8]) {
    assert_eq!(node.submit_block(block).await.unwrap(), Submitted::Accepted);
    assert_eq!(node.submit_block(block).await.unwrap(), Submitted::AlreadyKnown);
}

#[tokio::test]
async fn bitcoin_core_gives_work_takes_blocks_and_comes_back_from_a_restart() {
    let Some(mut core) = Core::start("bitcoin_core_gives_work") else { return };
    let node = core.node();
    let answer = node.next_template(None).await;
    assert!(matches!(answer, Err(NodeError::NotReady(_))), "a chain of 2011: {answer:?}");
    core.generate(17, NOBODY);
    let bare = node.next_template(None).await.unwrap();
    assert_eq!(bare.template.height, 18);
    assert!(bare.template.merkle_path.is_empty() && bare.template.commits_to_witnesses);
    is_accepted(&node, &mine(&bare, 1)).await;

    let has_wallet = core.pay(30);
    let shown = node.next_template(None).await.unwrap();
    if has_wallet {
        assert_eq!(shown.template.known_transactions().len(), 30);
        refuses_what_is_bad(&node, &mine(&shown, 1)).await;
    } else {
        say_loudly("templates with transactions: this bitcoind has no wallet");
    }

    long_poll_sees_a_new_tip(&core, &node, &shown).await;
    blocks_find_their_place(&node).await;

    let shown = node.next_template(None).await.unwrap();
    let height = shown.template.height;
    let cookie = std::fs::read(core.cookie()).unwrap();
    let waiting = node.next_template(Some(&shown.mark));
    let (answer, core) = tokio::join!(
        waiting,
        tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(300));
            core.stop();
            core
        })
    );
    let mut core = core.unwrap();
    assert!(
        matches!(answer, Err(NodeError::NotReady(_) | NodeError::Unreachable(_))),
        "{answer:?}"
    );
    assert!(matches!(node.chain_info().await, Err(NodeError::Unreachable(_))));
    core.start_again();
    let shown = ready(&node).await;
    assert_ne!(std::fs::read(core.cookie()).unwrap(), cookie, "the cookie is another");
    assert_eq!(shown.template.height, height);
    // As a miner's later jobs are: told apart by the coinbase's nSequence.
    let numbered = job(&shown.template).numbered(JobId(70_000));
    is_accepted(&node, &mine_job(&numbered, &shown.prev_hash, 1)).await;
}

async fn long_poll_sees_a_new_tip(core: &Core, node: &RpcNode, shown: &NodeTemplate) {
    let waiting = async {
        let news = node.next_template(Some(&shown.mark)).await.unwrap();
        (news, Instant::now())
    };
    let generating = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        core.generate(1, NOBODY);
        Instant::now()
    };
    let ((news, told), generated) = tokio::join!(waiting, generating);
    assert_eq!(news.template.height, shown.template.height + 1);
    assert!(told.saturating_duration_since(generated) < Duration::from_secs(1));
}

/// Accepted on the tip, stale beside it; the block sent ahead is good on the new tip.
async fn blocks_find_their_place(node: &RpcNode) {
    let shown = node.next_template(None).await.unwrap();
    let (first, second) = (mine(&shown, 1), mine(&shown, 2));
    is_accepted(node, &first).await;
    assert_eq!(node.submit_block(&second).await.unwrap(), Submitted::Stale);
    assert!(matches!(
        node.submit_block(&forge_header(&second, Grind::Missed, |_| {})).await.unwrap(),
        Submitted::Rejected(reason) if reason == "high-hash"
    ));
    let hash = |block: &[u8]| proto::template::sha256d(&block[..80]);
    assert_eq!(node.height_of(&hash(&first)).await.unwrap(), Some(shown.template.height));
    assert_eq!(node.height_of(&hash(&second)).await.unwrap(), None);
    assert_eq!(node.height_of(&[5; 32]).await.unwrap(), None);

    let tip = node.next_template(None).await.unwrap().prev_hash;
    assert_eq!(tip.hash, hash(&first));
    let ahead = mine_job(&job(&shown.next.unwrap()), &tip, 1);
    is_accepted(node, &ahead).await;
    let info = node.chain_info().await.unwrap();
    assert_eq!((info.tip, info.height), (hash(&ahead), shown.template.height + 1));
}

/// Blocks of the embedded chain's file.
fn blocks_in(dir: &tempfile::TempDir) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(dir.path().join("embedded-chain.blocks")).unwrap();
    let mut rest = &bytes[16..];
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        blocks.push(rest[8..8 + len].to_vec());
        rest = &rest[8 + len..];
    }
    blocks
}

#[tokio::test]
async fn the_embedded_chain_is_a_regtest_chain_in_bitcoin_cores_eyes() {
    let Some(core) = Core::start("the_embedded_chain_is_a_regtest_chain") else { return };
    let node = core.node();
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        tx_count: 40,
        block_hashes: 2,
        data_dir: Some(dir.path().to_owned()),
        ..EmbeddedOptions::default()
    };
    let chain = EmbeddedChain::new(options).unwrap();
    for block in blocks_in(&dir) {
        is_accepted(&node, &block).await;
    }
    for round in 0..60 {
        let shown = chain.next_template(None).await.unwrap();
        let block = mine(&shown, round);
        if round == 0 {
            refuses_what_is_bad(&chain, &block).await;
            refuses_what_is_bad(&node, &block).await;
        }
        is_accepted(&chain, &block).await;
        is_accepted(&node, &block).await;
        let ahead = mine_job(
            &job(&shown.next.unwrap()),
            &chain.next_template(None).await.unwrap().prev_hash,
            round,
        );
        is_accepted(&chain, &ahead).await;
        is_accepted(&node, &ahead).await;
    }
    let (ours, cores) = (chain.chain_info().await.unwrap(), node.chain_info().await.unwrap());
    assert_eq!(ours, cores);
    assert_eq!(ours.height, 240);

    // Core's own template on that chain is a good block of the embedded chain.
    let shown = node.next_template(None).await.unwrap();
    is_accepted(&chain, &mine(&shown, 1)).await;
}

#[tokio::test]
async fn the_largest_embedded_block_is_valid() {
    let Some(core) = Core::start("the_largest_embedded_block_is_valid") else { return };
    let node = core.node();
    let dir = tempfile::tempdir().unwrap();
    let chain = EmbeddedChain::new(EmbeddedOptions {
        tx_count: job_declarator::limits::EMBEDDED_TRANSACTIONS_MAX,
        block_hashes: 2,
        data_dir: Some(dir.path().to_owned()),
        ..EmbeddedOptions::default()
    })
    .unwrap();
    for block in blocks_in(&dir) {
        is_accepted(&node, &block).await;
    }
    let shown = chain.next_template(None).await.unwrap();
    let block = mine(&shown, 1);
    let weight = bitcoin::consensus::deserialize::<Block>(&block).unwrap().weight();
    assert!(weight.to_wu() > 3_000_000);
    assert_eq!(node.check_block(&block).await.unwrap(), Checked::Valid);
    is_accepted(&node, &block).await;
}

#[cfg(feature = "ipc")]
#[tokio::test]
async fn bitcoin_core_says_over_its_socket_what_it_says_by_rpc() {
    use job_declarator::node::ipc::{IpcCheck, IpcTimes, WithIpc};

    let Some(core) = Core::start("bitcoin_core_says_over_its_socket") else { return };
    if !has_socket(&core.exe) {
        say_loudly("checks over IPC: BITCOIND_EXE is no bitcoin-node");
        return;
    }
    let socket = core.socket();
    let over_socket = |times| IpcCheck::start(socket.clone(), times).unwrap();
    let node = core.node();
    let dir = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        tx_count: 40,
        block_hashes: 2,
        data_dir: Some(dir.path().to_owned()),
        ..EmbeddedOptions::default()
    };
    let chain = EmbeddedChain::new(options).unwrap();
    for block in blocks_in(&dir) {
        is_accepted(&node, &block).await;
    }
    let block = mine(&chain.next_template(None).await.unwrap(), 1);
    let ipc = over_socket(IpcTimes::default());
    assert_eq!(ipc.check(&block).await, Ok(Checked::Valid));
    let weak = forge_header(&block, Grind::Missed, |_| {});
    assert_eq!(ipc.check(&weak).await, Ok(Checked::Valid), "proof of work is not looked at");
    for (word, change) in [bad_coinbases(), bad_transactions(), bad_headers()].concat() {
        let bad = change(&block);
        let by_rpc = node.check_block(&bad).await.unwrap();
        assert_eq!(ipc.check(&bad).await, Ok(by_rpc), "{word}");
    }
    // What is no block Core answers with an exception, and the RPC is asked; the next goes over the socket again.
    let times = IpcTimes { retry: Duration::ZERO, ..IpcTimes::default() };
    let both = WithIpc::new(core.node(), over_socket(times));
    refuses_what_is_bad(&both, &block).await;
    is_accepted(&node, &block).await;
    assert!(matches!(ipc.check(&block).await, Ok(Checked::NotOnTip(_))));
    assert!(core.log().contains("Mining.checkBlock"));
}
