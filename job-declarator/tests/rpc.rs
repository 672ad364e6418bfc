//! Claims about `RpcNode` against a mock node: credentials, templates good and bad, long-polls, refusals,
//! silence. What a real Bitcoin Core does with it is in `real_core.rs`.

#![allow(clippy::unwrap_used, clippy::panic)] // all of it is test

mod common;
#[path = "common/mock_core.rs"]
mod mock_core;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::mine;
use job_declarator::limits::{
    RPC_CALLS_MAX, RPC_CHECKS_MAX, RPC_COOKIE_LEN_MAX, RPC_SUBMISSIONS_MAX,
};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::rpc::{RpcAuth, RpcNode, RpcOptions, RpcTimes, read_cookie};
use job_declarator::node::{Checked, Node, NodeError, NodeTemplate, Submitted};
use mock_core::{Answer, Asked, MockCore, http, template_json};
use serde_json::{Value, json};

const TIP: &str = "00000000000000000001aabbccddeeff00112233445566778899aabbccddeeff";

fn times() -> RpcTimes {
    RpcTimes {
        call: Duration::from_secs(1),
        submit: Duration::from_secs(1),
        long_poll: Duration::from_secs(2),
        probe: Duration::from_millis(50),
        poll: Duration::from_millis(10),
        refresh: Duration::from_millis(100),
    }
}

fn node(core: &MockCore) -> RpcNode {
    let auth = RpcAuth::UserPass { user: "pool".to_owned(), password: "secret".to_owned() };
    RpcNode::new(RpcOptions { url: core.url(), auth, times: times() }).unwrap()
}

/// A template of the embedded chain, to be told as if by Core.
async fn shown(tx_count: usize) -> NodeTemplate {
    let options = EmbeddedOptions { tx_count, block_hashes: 2, ..EmbeddedOptions::default() };
    EmbeddedChain::new(options).unwrap().next_template(None).await.unwrap()
}

fn chain_info(asked: &Asked, chain: &str) -> Option<Answer> {
    (asked.method == "getblockchaininfo").then(|| {
        Answer::Result(json!({
            "chain": chain, "blocks": 120, "headers": 120, "bestblockhash": TIP,
            "initialblockdownload": false, "warnings": [], "new_field": {"a": 1},
        }))
    })
}

/// A core whose `getblocktemplate` answers `reply`.
fn core_with_template(reply: Value) -> MockCore {
    MockCore::start(move |asked| {
        chain_info(asked, "regtest").unwrap_or_else(|| Answer::Result(reply.clone()))
    })
}

fn core_with(method: &'static str, answer: fn() -> Answer) -> MockCore {
    MockCore::start(move |asked| {
        if asked.method == method {
            return answer();
        }
        chain_info(asked, "regtest").unwrap_or(Answer::Status(404))
    })
}

#[tokio::test]
async fn a_template_is_read_whole_and_its_block_is_accepted_by_the_chain_it_came_from() {
    for tx_count in [0, 1, 7] {
        let options = EmbeddedOptions { tx_count, block_hashes: 2, ..EmbeddedOptions::default() };
        let chain = EmbeddedChain::new(options).unwrap();
        let shown = chain.next_template(None).await.unwrap();
        let core = core_with_template(template_json(&shown, "lp1"));
        let read = node(&core).next_template(None).await.unwrap();
        assert_eq!(read.prev_hash, shown.prev_hash);
        assert_eq!(read.earliest_ntime, shown.earliest_ntime);
        assert_eq!(read.template.merkle_path, shown.template.merkle_path);
        assert_eq!(read.template.transactions, shown.template.transactions);
        assert_eq!(read.template.required_outputs, shown.template.required_outputs);
        let (next, expected) = (read.next.clone().unwrap(), shown.next.unwrap());
        assert_eq!((next.height, next.coinbase_value_sats), (122, expected.coinbase_value_sats));
        assert!(next.id > read.template.id);
        let submitted = chain.submit_block(&mine(&read, 1)).await.unwrap();
        assert_eq!(submitted, Submitted::Accepted);
    }
}

/// As a Core of 5 GB says it that was built without wallet or told `-disablewallet`.
fn pruned_and_walletless(asked: &Asked, template: &Value) -> Answer {
    match asked.method.as_str() {
        "getblockchaininfo" => Answer::Result(json!({
            "chain": "regtest", "blocks": 120, "headers": 120, "bestblockhash": TIP,
            "initialblockdownload": false, "size_on_disk": 5_000_000_000_u64, "pruned": true,
            "pruneheight": 100, "automatic_pruning": true, "prune_target_size": 5_242_880_000_u64,
        })),
        "getblocktemplate" if asked.params[0]["mode"] == "proposal" => Answer::Result(json!(null)),
        "getblocktemplate" => Answer::Result(template.clone()),
        "submitblock" => Answer::Result(json!(null)),
        "getblockheader" => Answer::Result(json!({"confirmations": 1, "height": 121})),
        // A wallet's methods, as Core answers where there is none, and all that would read an old block.
        _ => Answer::Error(-32_601, "Method not found"),
    }
}

#[tokio::test]
async fn a_pruned_node_without_a_wallet_gives_templates_and_takes_blocks() {
    let options = EmbeddedOptions { tx_count: 7, block_hashes: 2, ..EmbeddedOptions::default() };
    let chain = EmbeddedChain::new(options).unwrap();
    let shown = chain.next_template(None).await.unwrap();
    let reply = template_json(&shown, "lp1");
    let core = MockCore::start(move |asked| pruned_and_walletless(asked, &reply));
    let node = node(&core);
    let info = node.chain_info().await.unwrap();
    assert!(info.pruned && !info.initial_block_download);
    let read = node.next_template(None).await.unwrap();
    let block = mine(&read, 1);
    assert_eq!(node.check_block(&block).await.unwrap(), Checked::Valid);
    assert_eq!(node.submit_block(&block).await.unwrap(), Submitted::Accepted);
    assert_eq!(node.height_of(&[1; 32]).await.unwrap(), Some(121));
    assert_eq!(chain.submit_block(&block).await.unwrap(), Submitted::Accepted);
    // Neither a wallet's method nor one that reads an old block.
    let asked: std::collections::BTreeSet<_> =
        core.asked().into_iter().map(|asked| asked.method).collect();
    let served = ["getblockchaininfo", "getblockheader", "getblocktemplate", "submitblock"];
    assert_eq!(asked, served.map(str::to_owned).into());
}

#[tokio::test]
async fn a_node_that_does_not_say_whether_it_is_pruned_is_not() {
    let core = MockCore::start(|asked| chain_info(asked, "main").unwrap_or(Answer::Status(404)));
    assert!(!node(&core).chain_info().await.unwrap().pruned);
}

#[tokio::test]
async fn unknown_rules_and_fields_do_not_make_a_template_unreadable() {
    let mut reply = template_json(&shown(2).await, "lp1");
    reply["rules"] = json!(["csv", "!segwit", "taproot", "bip54", "a rule of 2031"]);
    reply["capabilities"] = json!(["proposal", "telepathy"]);
    reply["mutable"] = json!([]);
    reply["coinbasetxn"] = json!({"data": 7});
    reply["transactions"][0]["new"] = json!([1, 2]);
    assert!(node(&core_with_template(reply)).next_template(None).await.is_ok());
}

#[tokio::test]
async fn what_we_cannot_mine_is_not_ready_and_no_work() {
    let good = template_json(&shown(2).await, "lp1");
    for (field, value) in
        [("rules", json!(["!segwit", "!novel"])), ("signet_challenge", json!("512103ad"))]
    {
        let mut reply = good.clone();
        reply[field] = value;
        let answer = node(&core_with_template(reply)).next_template(None).await;
        assert!(matches!(answer, Err(NodeError::NotReady(_))), "{field}: {answer:?}");
    }
    let mut open_signet = good;
    open_signet["signet_challenge"] = json!("51");
    let core = MockCore::start(move |asked| {
        chain_info(asked, "signet").unwrap_or_else(|| Answer::Result(open_signet.clone()))
    });
    let read = node(&core).next_template(None).await.unwrap();
    assert_eq!(read.next.unwrap().coinbase_value_sats, 5_000_000_000, "210,000 blocks a halving");
    assert_eq!(core.asked().last().unwrap().params[0]["rules"], json!(["segwit", "signet"]));
}

#[tokio::test]
async fn foolish_templates_are_nonsense_and_never_a_panic() {
    let good = template_json(&shown(3).await, "lp1");
    let data = good["transactions"][0]["data"].as_str().unwrap().to_owned();
    let first = good["transactions"][0].clone();
    let coinbase = "01000000010000000000000000000000000000000000000000000000000000000000000000ffffffff025151ffffffff010000000000000000015100000000";
    let wrong = [
        ("/version", json!("4")),
        ("/version", json!(4_294_967_296_u64)),
        ("/previousblockhash", json!("00")),
        ("/previousblockhash", json!("zz".repeat(32))),
        ("/previousblockhash", json!(12)),
        ("/transactions", json!({"a": 1})),
        ("/transactions", json!([17])),
        ("/transactions/0/data", json!(data[..data.len() - 2])),
        ("/transactions/0/data", json!(data[..data.len() - 1])),
        ("/transactions/0/data", json!(format!("{data}00"))),
        ("/transactions/0/data", json!("")),
        ("/transactions/0/data", json!("ffffffffffffffffffffff")),
        ("/transactions/0", json!({"data": coinbase})),
        ("/transactions/1", first),
        ("/transactions/0/txid", good["transactions"][1]["txid"].clone()),
        ("/coinbasevalue", json!(-1)),
        ("/coinbasevalue", json!(1.5)),
        ("/coinbasevalue", json!(2_100_000_000_000_001_u64)),
        ("/coinbasevalue", json!(1e300)),
        ("/longpollid", json!("x".repeat(201))),
        ("/longpollid", json!("a\nb")),
        ("/mintime", json!(4_294_967_296_u64)),
        ("/curtime", json!(-5)),
        ("/bits", json!("00000000")),
        ("/bits", json!("ff123456")),
        ("/bits", json!("+07fffff")),
        ("/bits", json!("207fff")),
        ("/bits", json!("207fffff00")),
        ("/height", json!(0)),
        ("/height", json!(499_999_999)),
        ("/height", json!(4_294_967_296_u64)),
        ("/default_witness_commitment", json!(null)),
        ("/default_witness_commitment", json!("")),
        ("/default_witness_commitment", json!(format!("6a24aa21a9ed{}", "00".repeat(32)))),
        ("/default_witness_commitment", json!("00".repeat(1_001))),
        ("/rules", json!("segwit")),
    ];
    for (path, value) in wrong {
        let mut reply = good.clone();
        *reply.pointer_mut(path).unwrap() = value.clone();
        let answer = node(&core_with_template(reply)).next_template(None).await;
        assert!(matches!(answer, Err(NodeError::Nonsense { .. })), "{path} {value}: {answer:?}");
    }
    for field in ["version", "previousblockhash", "transactions", "bits", "height", "curtime"] {
        let mut reply = good.clone();
        reply.as_object_mut().unwrap().remove(field);
        let answer = node(&core_with_template(reply)).next_template(None).await;
        assert!(matches!(answer, Err(NodeError::Nonsense { .. })), "without {field}");
    }
    for reply in [json!(null), json!([]), json!("duplicate"), json!(7)] {
        let answer = node(&core_with_template(reply)).next_template(None).await;
        assert!(matches!(answer, Err(NodeError::Nonsense { .. })));
    }
}

#[tokio::test]
async fn more_transactions_than_a_block_can_hold_are_nonsense() {
    let mut reply = template_json(&shown(1).await, "lp1");
    let many = job_declarator::limits::BLOCK_TRANSACTIONS_MAX;
    reply["transactions"] = json!(vec![json!({"data": ""}); many]);
    let answer = node(&core_with_template(reply)).next_template(None).await;
    assert!(matches!(answer, Err(NodeError::Nonsense { why, .. }) if why.contains("16667")));
}

#[tokio::test]
async fn the_time_of_work_is_never_below_what_consensus_asks() {
    let mut reply = template_json(&shown(0).await, "lp1");
    reply["mintime"] = json!(1_800_000_000);
    reply["curtime"] = json!(1_799_999_999);
    let read = node(&core_with_template(reply)).next_template(None).await.unwrap();
    assert_eq!(read.prev_hash.min_ntime, 1_800_000_000);
}

#[tokio::test]
async fn a_new_cookie_is_read_after_a_401_and_the_call_repeated_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(".cookie");
    let core = MockCore::start(|asked| {
        if asked.credentials != "__cookie__:second" {
            return Answer::Status(401);
        }
        chain_info(asked, "main").unwrap()
    });
    let auth = RpcAuth::CookieFile(path.clone());
    let node = RpcNode::new(RpcOptions { url: core.url(), auth, times: times() }).unwrap();

    let answer = node.chain_info().await;
    let Err(NodeError::Cookie(said)) = answer else { panic!("no file yet: {answer:?}") };
    assert!(
        said.ends_with("/.cookie is not there: is Core running, and is this its folder?"),
        "{said}"
    );
    assert_eq!(core.asked().len(), 0);

    std::fs::write(&path, "__cookie__:first\n").unwrap();
    assert!(matches!(node.chain_info().await, Err(NodeError::Unauthorized)));
    assert_eq!(core.asked().len(), 1, "the same cookie is not tried twice");

    std::fs::write(&path, "__cookie__:second").unwrap();
    assert_eq!(node.chain_info().await.unwrap().network, bitcoin::Network::Bitcoin);
    assert_eq!(core.asked().len(), 3);
    assert!(node.chain_info().await.is_ok());
    assert_eq!(core.asked().len(), 4, "the new cookie is kept");

    std::fs::write(&path, "x".repeat(2_000)).unwrap();
    assert!(node.chain_info().await.is_ok(), "the file is read only when it is needed");
}

#[tokio::test]
async fn a_wrong_password_is_unauthorized_and_shown_nowhere() {
    let core = MockCore::start(|_| Answer::Status(401));
    let node = node(&core);
    let answer = node.chain_info().await;
    assert!(matches!(answer, Err(NodeError::Unauthorized)));
    assert_eq!(core.asked()[0].credentials, "pool:secret");
    assert_eq!(core.asked().len(), 1);
    assert_eq!(node.name(), format!("Bitcoin Core at {}", core.url()));
    assert!(!format!("{node:?}").contains("secret"));
}

#[test]
fn an_url_with_credentials_or_another_scheme_is_refused() {
    for url in
        ["http://a:b@127.0.0.1:1", "https://127.0.0.1", "127.0.0.1:8332", "http://", "http://a b"]
    {
        let auth = RpcAuth::CookieFile("none".into());
        let options = RpcOptions { url: url.to_owned(), auth, times: times() };
        assert!(RpcNode::new(options).is_err(), "{url}");
    }
}

#[tokio::test]
async fn warming_up_and_initial_download_are_not_ready() {
    for (code, message) in [
        (-28, "Loading block index..."),
        (-10, "Bitcoin Core is in initial sync and waiting for blocks..."),
        (-9, "Bitcoin Core is not connected!"),
    ] {
        let starts = if code == -28 { "it is starting: " } else { "" };
        let core = MockCore::start(move |asked| {
            chain_info(asked, "main").unwrap_or(Answer::Error(code, message))
        });
        let answer = node(&core).next_template(None).await;
        assert!(
            matches!(&answer, Err(NodeError::NotReady(said)) if said == &format!("{starts}{message}")),
            "{answer:?}"
        );
    }
    // Regtest gives templates of the past without a word, so its own admission counts.
    let core = MockCore::start(|_| {
        Answer::Result(json!({
            "chain": "regtest", "blocks": 3, "bestblockhash": TIP, "initialblockdownload": true,
        }))
    });
    assert!(matches!(node(&core).next_template(None).await, Err(NodeError::NotReady(_))));
    assert_eq!(core.count("getblocktemplate"), 0);
}

#[tokio::test]
async fn a_node_that_comes_back_on_another_network_gives_no_work() {
    let good = template_json(&shown(1).await, "lp1");
    let is_down = Arc::new(AtomicBool::new(false));
    let was_down = Arc::clone(&is_down);
    let core = MockCore::start(move |asked| {
        if was_down.load(Ordering::SeqCst) && asked.method == "getblocktemplate" {
            return Answer::Error(-28, "Loading wallet...");
        }
        let chain = if was_down.load(Ordering::SeqCst) { "signet" } else { "regtest" };
        chain_info(asked, chain).unwrap_or_else(|| Answer::Result(good.clone()))
    });
    let node = node(&core);
    assert!(node.next_template(None).await.is_ok());
    is_down.store(true, Ordering::SeqCst);
    let warming_up = node.next_template(None).await;
    assert!(
        matches!(&warming_up, Err(NodeError::NotReady(why)) if why == "it is starting: Loading wallet...")
    );
    let answer = node.next_template(None).await;
    assert!(
        matches!(&answer, Err(NodeError::NotReady(why)) if why.contains("regtest and is on signet")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn other_refusals_keep_their_code_and_words_in_bounds() {
    let core = core_with("getblocktemplate", || Answer::Error(-8, "No\r\nsuch \u{1b}[31mthing"));
    match node(&core).next_template(None).await {
        Err(NodeError::Refused { call: "getblocktemplate", code: -8, message }) => {
            assert_eq!(message, "Nosuch [31mthing");
        }
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn a_cookie_that_cannot_be_read_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let said = |name: &str| read_cookie(&dir.path().join(name)).unwrap_err().to_string();
    assert!(said("").ends_with(" is a folder: name the file .cookie in it"), "{}", said(""));
    let path = dir.path().join("long");
    std::fs::write(&path, "a:".repeat(RPC_COOKIE_LEN_MAX)).unwrap();
    assert!(said("long").ends_with("/long is no cookie of Core's"), "{}", said("long"));
    std::fs::write(&path, "__cookie__:00\n").unwrap();
    assert_eq!(read_cookie(&path).unwrap(), "__cookie__:00");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads it all the same.
    if std::fs::read(&path).is_err() {
        let said = said("long");
        assert!(
            said.contains("permission denied") && said.contains("rpccookieperms=group"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_node_that_does_not_listen_is_told_in_two_words() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let auth = RpcAuth::UserPass { user: "me".into(), password: "x".into() };
    let node = RpcNode::new(RpcOptions { url, auth, times: times() }).unwrap();
    let said = node.chain_info().await.unwrap_err().to_string();
    assert_eq!(said, "the node does not answer: connection refused");
}

#[tokio::test]
async fn broken_answers_are_errors_of_the_right_kind() {
    let core = MockCore::start(|_| Answer::Raw(http(503, "Work queue depth exceeded")));
    let error = node(&core).chain_info().await.unwrap_err();
    assert_eq!(error.to_string(), "the node is starting, or has too much to do");
    let unreachable: [fn() -> Answer; 5] = [
        || Answer::Raw(Vec::new()),
        || {
            Answer::Raw(
                b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"result\": {\"ch".to_vec(),
            )
        },
        || Answer::Raw(b"HTTP/1.1 200 OK\r\n\r\n{\"result\":".to_vec()),
        || Answer::Status(404),
        || Answer::Status(302),
    ];
    for answer in unreachable {
        let core = MockCore::start(move |_| answer());
        let error = node(&core).chain_info().await.unwrap_err();
        assert!(matches!(error, NodeError::Unreachable(_)), "{error:?}");
    }
    let nonsense: [fn() -> Answer; 9] = [
        || Answer::Raw(http(200, "<html>hello</html>")),
        || Answer::Raw(http(200, "{\"id\": 1}")),
        || Answer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: minus\r\n\r\n{}".to_vec()),
        || Answer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec()),
        || Answer::Raw([&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'a'; 20_000]].concat()),
        // As long as may be, where `minreq` miscounts and its thread panics: an error to us.
        || {
            let line = [b'a'; job_declarator::limits::RPC_HEADERS_LEN_MAX - 3];
            Answer::Raw([&b"HTTP/1.1 200 OK\r\nX: "[..], &line, b"\r\n\r\n{}"].concat())
        },
        || Answer::Result(json!("a string")),
        || {
            Answer::Result(json!({"chain": "dogecoin", "blocks": 1, "bestblockhash": TIP,
            "initialblockdownload": false}))
        },
        || {
            Answer::Result(json!({"chain": "main", "blocks": 1e40, "bestblockhash": TIP,
            "initialblockdownload": false}))
        },
    ];
    for answer in nonsense {
        let core = MockCore::start(move |_| answer());
        let error = node(&core).chain_info().await.unwrap_err();
        assert!(matches!(error, NodeError::Nonsense { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off_at_the_bound() {
    let core = MockCore::start(|_| {
        let mut bytes = b"HTTP/1.1 200 OK\r\n\r\n\"".to_vec();
        bytes.resize(job_declarator::limits::RPC_ANSWER_LEN_MAX + 100, b'a');
        Answer::Raw(bytes)
    });
    let times = RpcTimes { call: Duration::from_secs(60), ..times() };
    let auth = RpcAuth::UserPass { user: String::new(), password: String::new() };
    let node = RpcNode::new(RpcOptions { url: core.url(), auth, times }).unwrap();
    let error = node.chain_info().await.unwrap_err();
    assert!(matches!(error, NodeError::Nonsense { .. }), "{error:?}");
}

#[tokio::test]
async fn a_node_that_is_not_there_is_unreachable_at_once() {
    let url = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let auth = RpcAuth::UserPass { user: String::new(), password: String::new() };
    let node = RpcNode::new(RpcOptions { url, auth, times: times() }).unwrap();
    assert!(matches!(node.chain_info().await, Err(NodeError::Unreachable(_))));
    assert!(matches!(node.submit_block(&[0; 80]).await, Err(NodeError::Unreachable(_))));
}

#[tokio::test]
async fn a_stalled_node_costs_a_deadline_and_a_fixed_number_of_threads() {
    let core = MockCore::start(|_| Answer::Stall);
    let node = Arc::new(node(&core));
    let start = Instant::now();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.chain_info().await })
        })
        .collect();
    // A block has its own places and does not wait behind them.
    assert!(matches!(node.submit_block(&[0; 80]).await, Err(NodeError::Unreachable(_))));
    assert!(start.elapsed() < Duration::from_secs(3));
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(NodeError::Unreachable(_))));
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    // Four places for a second each; whoever got none within his second asked nothing.
    let asked = core.count("getblockchaininfo");
    assert!(asked <= 2 * job_declarator::limits::RPC_CALLS_MAX, "{asked}");
    assert_eq!(core.count("submitblock"), 1);
}

#[tokio::test]
async fn answers_to_a_submitted_block_mean_what_bip22_says() {
    let answers: [(fn() -> Answer, Submitted); 7] = [
        (|| Answer::Result(json!(null)), Submitted::Accepted),
        (|| Answer::Result(json!("duplicate")), Submitted::AlreadyKnown),
        (|| Answer::Result(json!("inconclusive")), Submitted::Stale),
        (|| Answer::Result(json!("duplicate-inconclusive")), Submitted::Stale),
        (|| Answer::Result(json!("high-hash")), Submitted::Rejected("high-hash".to_owned())),
        (
            || Answer::Result(json!("duplicate-invalid")),
            Submitted::Rejected("duplicate-invalid".to_owned()),
        ),
        (
            || Answer::Error(-22, "Block decode failed"),
            Submitted::Rejected("Block decode failed".to_owned()),
        ),
    ];
    for (answer, expected) in answers {
        let core = core_with("submitblock", answer);
        let submitted = node(&core).submit_block(&[0xab, 0xcd]).await.unwrap();
        assert_eq!(submitted, expected);
        assert_eq!(core.asked()[0].params, json!(["abcd"]));
    }
    let core = core_with("submitblock", || Answer::Result(json!({"accepted": true})));
    assert!(matches!(node(&core).submit_block(&[1]).await, Err(NodeError::Nonsense { .. })));
}

#[tokio::test]
async fn a_proposal_is_good_or_has_a_reason() {
    let core = core_with("getblocktemplate", || Answer::Result(json!(null)));
    assert_eq!(node(&core).check_block(&[0xab]).await.unwrap(), Checked::Valid);
    assert_eq!(core.asked()[0].params, json!([{"mode": "proposal", "data": "ab"}]));
    for (answer, reason) in [
        ((|| Answer::Result(json!("bad-cb-amount"))) as fn() -> Answer, "bad-cb-amount"),
        (|| Answer::Result(json!("duplicate-invalid")), "duplicate-invalid"),
        (|| Answer::Error(-22, "Block decode failed"), "Block decode failed"),
    ] {
        let core = core_with("getblocktemplate", answer);
        let checked = node(&core).check_block(&[0xab]).await.unwrap();
        assert_eq!(checked, Checked::Invalid(reason.to_owned()));
    }
}

#[tokio::test]
async fn a_proposal_on_another_tip_is_told_from_an_invalid_one() {
    for (answer, reason) in [
        (
            (|| Answer::Result(json!("inconclusive-not-best-prevblk"))) as fn() -> Answer,
            "inconclusive-not-best-prevblk",
        ),
        (|| Answer::Result(json!("bad-prevblk")), "bad-prevblk"),
        (|| Answer::Result(json!("prev-blk-not-found")), "prev-blk-not-found"),
        (|| Answer::Result(json!("duplicate")), "duplicate"),
    ] {
        let core = core_with("getblocktemplate", answer);
        let checked = node(&core).check_block(&[0xab]).await.unwrap();
        assert_eq!(checked, Checked::NotOnTip(reason.to_owned()));
    }
}

#[tokio::test]
async fn stalled_checks_hold_up_neither_a_question_nor_a_block() {
    let core = MockCore::start(|asked| match asked.method.as_str() {
        "getblocktemplate" => Answer::Stall,
        "submitblock" => Answer::Result(json!(null)),
        _ => chain_info(asked, "regtest").unwrap_or(Answer::Status(404)),
    });
    let times = RpcTimes { call: Duration::from_secs(60), ..times() };
    let auth = RpcAuth::UserPass { user: "pool".to_owned(), password: "secret".to_owned() };
    let node = Arc::new(RpcNode::new(RpcOptions { url: core.url(), auth, times }).unwrap());
    // Twice as many as there are places for all kinds of calls.
    let checks: Vec<_> = (0..2 * (RPC_CHECKS_MAX + RPC_CALLS_MAX + RPC_SUBMISSIONS_MAX))
        .map(|_| {
            let node = Arc::clone(&node);
            tokio::spawn(async move { node.check_block(&[0xab]).await })
        })
        .collect();
    while core.count("getblocktemplate") < RPC_CHECKS_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.chain_info().await.unwrap().height, 120);
    assert_eq!(node.submit_block(&[0xab]).await.unwrap(), Submitted::Accepted);
    assert_eq!(core.count("getblocktemplate"), RPC_CHECKS_MAX, "no more at once");
    checks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn only_a_block_in_the_best_chain_has_a_height() {
    let answers = [
        (
            (|| Answer::Result(json!({"confirmations": 3, "height": 77, "x": []})))
                as fn() -> Answer,
            Some(77),
        ),
        (|| Answer::Result(json!({"confirmations": -1, "height": 77})), None),
        (|| Answer::Error(-5, "Block not found"), None),
    ];
    for (answer, expected) in answers {
        let core = core_with("getblockheader", answer);
        let mut hash = [0; 32];
        hash[31] = 0xaa;
        assert_eq!(node(&core).height_of(&hash).await.unwrap(), expected);
        let expected = format!("aa{}", "00".repeat(31));
        assert_eq!(core.asked()[0].params, json!([expected, true]));
    }
}

/// A core on whose tip nothing happens until `moved`; long-polls stall or answer as told.
fn core_of_two_tips(
    first: Value,
    second: Value,
    moved: Arc<AtomicBool>,
    on_long_poll: fn() -> Option<Answer>,
) -> MockCore {
    MockCore::start(move |asked| {
        if let Some(info) = chain_info(asked, "regtest") {
            return info;
        }
        if asked.long_poll_id().is_some()
            && let Some(answer) = on_long_poll()
        {
            return answer;
        }
        let now = if moved.load(Ordering::SeqCst) { &second } else { &first };
        if asked.method == "getbestblockhash" {
            return Answer::Result(now["previousblockhash"].clone());
        }
        Answer::Result(now.clone())
    })
}

async fn two_tips() -> (Value, Value) {
    let first = template_json(&shown(2).await, "lp1");
    let mut second = template_json(&shown(2).await, "lp2");
    second["previousblockhash"] = json!(TIP);
    second["height"] = json!(122);
    (first, second)
}

#[tokio::test]
async fn a_long_poll_hands_back_cores_own_mark_and_its_answer_is_the_news() {
    let (first, second) = two_tips().await;
    let moved = Arc::new(AtomicBool::new(false));
    let core = core_of_two_tips(first, second, Arc::clone(&moved), || None);
    let node = node(&core);
    let shown = node.next_template(None).await.unwrap();
    moved.store(true, Ordering::SeqCst);
    let news = node.next_template(Some(&shown.mark)).await.unwrap();
    assert_eq!(core.asked().last().unwrap().long_poll_id(), Some("lp1"));
    assert_eq!(news.template.height, 122);
    assert!(news.template.id > shown.next.unwrap().id);
    assert_ne!(news.mark, shown.mark);
    assert_eq!(core.count("getblockchaininfo"), 1, "asked once, not before each template");
}

#[tokio::test]
async fn a_new_tip_is_seen_though_the_long_poll_never_answers() {
    let (first, second) = two_tips().await;
    let moved = Arc::new(AtomicBool::new(false));
    let core = core_of_two_tips(first, second, Arc::clone(&moved), || Some(Answer::Stall));
    let times = RpcTimes { long_poll: Duration::from_secs(30), ..times() };
    let auth = RpcAuth::UserPass { user: String::new(), password: String::new() };
    let node = RpcNode::new(RpcOptions { url: core.url(), auth, times }).unwrap();
    let shown = node.next_template(None).await.unwrap();
    let waiting = node.next_template(Some(&shown.mark));
    let mover = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        moved.store(true, Ordering::SeqCst);
    };
    let (news, ()) = tokio::join!(waiting, mover);
    let news = news.unwrap();
    assert_eq!(news.template.height, 122);

    // The dead long-poll still has the only place: the tip is looked at, no second one is started.
    let same = node.next_template(Some(&news.mark)).await.unwrap();
    assert_eq!(same.mark, news.mark);
    let long_polls = core.asked().iter().filter(|asked| asked.long_poll_id().is_some()).count();
    assert_eq!(long_polls, 1);
}

#[tokio::test]
async fn a_long_poll_given_up_by_its_caller_still_has_its_place() {
    let (first, second) = two_tips().await;
    let moved = Arc::new(AtomicBool::new(false));
    let core = core_of_two_tips(first, second, moved, || Some(Answer::Stall));
    let node = node(&core);
    let shown = node.next_template(None).await.unwrap();
    for _ in 0..5 {
        let waiting = node.next_template(Some(&shown.mark));
        assert!(tokio::time::timeout(Duration::from_millis(30), waiting).await.is_err());
    }
    let long_polls = core.asked().iter().filter(|asked| asked.long_poll_id().is_some()).count();
    assert_eq!(long_polls, 1);
}

#[tokio::test]
async fn a_long_poll_cut_off_or_without_news_is_followed_by_a_plain_question() {
    let cut: [fn() -> Option<Answer>; 2] =
        [|| Some(Answer::Raw(Vec::new())), || Some(Answer::Stall)];
    for on_long_poll in cut {
        let (first, second) = two_tips().await;
        let moved = Arc::new(AtomicBool::new(false));
        let core = core_of_two_tips(first, second, moved, on_long_poll);
        let node = node(&core);
        let shown = node.next_template(None).await.unwrap();
        let again = node.next_template(Some(&shown.mark)).await.unwrap();
        assert_eq!(again.mark, shown.mark);
        assert!(again.template.id > shown.template.id);
    }
}

#[tokio::test]
async fn a_long_poll_answered_with_what_it_had_is_no_news_and_no_busy_loop() {
    let (first, second) = two_tips().await;
    let moved = Arc::new(AtomicBool::new(false));
    // As Core does while it shuts down: every long-poll ends at once with the same template.
    let core = core_of_two_tips(first, second, Arc::clone(&moved), || None);
    let node = node(&core);
    let shown = node.next_template(None).await.unwrap();
    let start = Instant::now();
    let same = node.next_template(Some(&shown.mark)).await.unwrap();
    assert_eq!(same.mark, shown.mark);
    assert!(start.elapsed() >= times().refresh);
    assert_eq!(core.count("getblocktemplate"), 3);

    let waiting = node.next_template(Some(&shown.mark));
    let mover = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        moved.store(true, Ordering::SeqCst);
    };
    let (news, ()) = tokio::join!(waiting, mover);
    assert_eq!(news.unwrap().template.height, 122);
}

#[tokio::test]
async fn a_node_that_dies_during_a_long_poll_is_reported_within_a_probe() {
    let (first, _) = two_tips().await;
    let looks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&looks);
    let core = MockCore::start(move |asked| {
        if let Some(info) = chain_info(asked, "regtest") {
            return info;
        }
        if asked.long_poll_id().is_some() {
            return Answer::Stall;
        }
        if asked.method == "getbestblockhash" {
            return match count.fetch_add(1, Ordering::SeqCst) {
                0 => Answer::Result(first["previousblockhash"].clone()),
                _ => Answer::Raw(Vec::new()),
            };
        }
        Answer::Result(first.clone())
    });
    let node = node(&core);
    let shown = node.next_template(None).await.unwrap();
    let start = Instant::now();
    let answer = node.next_template(Some(&shown.mark)).await;
    assert!(matches!(answer, Err(NodeError::Unreachable(_))), "{answer:?}");
    assert_eq!(looks.load(Ordering::SeqCst), 2);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_node_without_long_polls_is_looked_at() {
    let (mut first, mut second) = two_tips().await;
    first.as_object_mut().unwrap().remove("longpollid");
    second.as_object_mut().unwrap().remove("longpollid");
    let moved = Arc::new(AtomicBool::new(false));
    let core = core_of_two_tips(first, second, Arc::clone(&moved), || None);
    let node = node(&core);
    let shown = node.next_template(None).await.unwrap();
    let same = node.next_template(Some(&shown.mark)).await.unwrap();
    assert_eq!(same.mark, shown.mark);
    moved.store(true, Ordering::SeqCst);
    assert_eq!(node.next_template(Some(&same.mark)).await.unwrap().template.height, 122);
}
