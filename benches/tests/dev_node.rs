//! The development node through its doors: what our own `RpcNode` makes of the one, a client of Template
//! Distribution of the other, and with feature `ipc` a client of Bitcoin Core's mining interface of the third.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a builder outside a #[test] fails just as well"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use benches::dev_node::{DevNode, DevNodeOptions, Door, Event};
use job_declarator::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes};
use job_declarator::node::{Node, NodeError, NodeTemplate, Submitted};
use proto::job::{HeaderFields, Job};
use proto::message::{
    CoinbaseOutputConstraints, Message, Protocol, Received, SetupConnection, SubmitSolution,
};
use proto::net::Link;
use proto::noise::EphemeralSecret;
use proto::target::Target;
use proto::template::Output;
use proto::wire::{B064K, Str0255};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const EXTRANONCE: [u8; 24] = [5; 24];
const SOCKET: &str = "node.sock";

async fn node(folder: &Path, drop_submit_solution: bool) -> (DevNode, mpsc::Receiver<Event>) {
    let options = DevNodeOptions {
        tx_count: 7,
        block_hashes: 2,
        refresh: Duration::from_secs(3_600),
        drop_submit_solution,
        rpc_port: 0,
        template_port: 0,
        folder: folder.to_owned(),
        ipc_socket: cfg!(feature = "ipc").then(|| folder.join(SOCKET)),
    };
    DevNode::start(&options).await.unwrap()
}

fn rpc(node: &DevNode, auth: RpcAuth) -> RpcNode {
    let url = format!("http://{}", node.rpc);
    RpcNode::new(RpcOptions { url, auth, times: RpcTimes::default() }).unwrap()
}

fn let_in(node: &DevNode) -> RpcNode {
    rpc(node, RpcAuth::CookieFile(node.cookie_file.clone()))
}

/// A block of the template, which every second nonce makes.
fn solved(shown: &NodeTemplate) -> (HeaderFields, Job) {
    let outputs = [Output { sats: shown.template.coinbase_value_sats, script: vec![0x51] }];
    let job = Job::new(Arc::clone(&shown.template), &outputs, b"test").unwrap();
    let mut header = HeaderFields {
        version: job.version(),
        prev_hash: shown.prev_hash.hash,
        merkle_root: job.merkle_root(&EXTRANONCE),
        ntime: shown.prev_hash.min_ntime,
        nbits: shown.prev_hash.nbits,
        nonce: 0,
    };
    while !Target::from_compact(header.nbits).is_met_by(&header.hash()) {
        header.nonce += 1;
    }
    (header, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_rpc_node_takes_templates_and_hands_in_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let (node, _events) = node(folder.path(), false).await;
    let rpc = let_in(&node);
    let info = rpc.chain_info().await.unwrap();
    assert_eq!(info.network, bitcoin::Network::Regtest);
    let shown = rpc.next_template(None).await.unwrap();
    assert_eq!((shown.prev_hash.hash, shown.template.height), (info.tip, info.height + 1));
    assert_eq!(shown.template.merkle_path.len(), 3);
    let (header, job) = solved(&shown);
    let block = job.block(&header, &EXTRANONCE).unwrap();
    let cut = rpc.submit_block(&block[..90]).await.unwrap();
    assert!(matches!(cut, Submitted::Rejected(_)), "{cut:?}");
    assert_eq!(rpc.submit_block(&block).await.unwrap(), Submitted::Accepted);
    assert_eq!(rpc.submit_block(&block).await.unwrap(), Submitted::AlreadyKnown);
    assert_eq!(rpc.height_of(&header.hash()).await.unwrap(), Some(info.height + 1));
    assert_eq!(rpc.height_of(&[1; 32]).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_ends_with_a_tip_made_on_command() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut events) = node(folder.path(), false).await;
    let rpc = let_in(&node);
    let first = rpc.next_template(None).await.unwrap();
    let waiting = rpc.next_template(Some(&first.mark));
    let (next, tip) = tokio::join!(waiting, node.tip());
    assert_eq!(next.unwrap().prev_hash.hash, tip.unwrap().hash);
    let told = events.recv().await.unwrap();
    let Event::Block { door: Door::Command, verdict: Submitted::Accepted, .. } = told else {
        panic!("{told:?}");
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_let_in_without_the_cookie() {
    let folder = tempfile::tempdir().unwrap();
    let (node, _events) = node(folder.path(), false).await;
    let password = "0".repeat(64);
    let stranger = rpc(&node, RpcAuth::UserPass { user: "__cookie__".into(), password });
    assert!(matches!(stranger.chain_info().await, Err(NodeError::Unauthorized)));
}

/// A client that has its first template.
async fn client(node: &DevNode) -> Link {
    let stream = TcpStream::connect(node.template_distribution).await.unwrap();
    let ephemeral = EphemeralSecret::new([3; 32], [4; 32]).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_secs() as u32;
    let mut link = Link::connect(stream, Some(&node.authority), ephemeral, now).await.unwrap();
    let outbound = &mut link.connection().outbound;
    outbound.send(&Message::from(SetupConnection {
        protocol: Protocol::TemplateDistribution as u8,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: Str0255::default(),
        endpoint_port: 0,
        vendor: Str0255::default(),
        hardware_version: Str0255::default(),
        firmware: Str0255::default(),
        device_id: Str0255::default(),
    }));
    outbound.send(&Message::from(CoinbaseOutputConstraints {
        coinbase_output_max_additional_size: 43,
        coinbase_output_max_additional_sigops: 4,
    }));
    link.flush().await.unwrap();
    hear(&mut link, "TemplateSetNewPrevHash").await;
    link
}

/// Reads until a message of this name has come.
async fn hear(link: &mut Link, name: &str) {
    loop {
        while let Some(frame) = link.connection().inbound.next_frame().unwrap() {
            if let Received::Known(message, _) = frame.message().unwrap()
                && message.name() == name
            {
                return;
            }
        }
        assert!(link.fill().await.unwrap() > 0, "closed before {name}");
    }
}

/// Hands in the block of the template that both doors show.
async fn submit_solution(node: &DevNode, link: &mut Link) -> [u8; 32] {
    let shown = let_in(node).next_template(None).await.unwrap();
    let (header, job) = solved(&shown);
    let coinbase = job.coinbase().with_witness(&EXTRANONCE, true);
    link.connection().outbound.send(&Message::from(SubmitSolution {
        template_id: 1,
        version: header.version,
        header_timestamp: header.ntime,
        header_nonce: header.nonce,
        coinbase_tx: B064K::new(&coinbase).unwrap(),
    }));
    link.flush().await.unwrap();
    header.hash()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solution_is_the_next_tip_and_both_doors_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut events) = node(folder.path(), false).await;
    let mut link = client(&node).await;
    let hash = submit_solution(&node, &mut link).await;
    hear(&mut link, "TemplateSetNewPrevHash").await;
    assert_eq!(let_in(&node).chain_info().await.unwrap().tip, hash);
    let told = events.recv().await.unwrap();
    assert!(matches!(told, Event::Block { door: Door::TemplateDistribution, .. }), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solution_is_thrown_away_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (node, mut events) = node(folder.path(), true).await;
    let mut link = client(&node).await;
    let hash = submit_solution(&node, &mut link).await;
    assert!(matches!(events.recv().await.unwrap(), Event::Dropped));
    assert_ne!(let_in(&node).chain_info().await.unwrap().tip, hash);
}

#[cfg(feature = "ipc")]
#[path = "dev_node/ipc.rs"]
mod ipc;
