//! The HTTP port, asked over a socket as Prometheus, a dashboard and a container's healthcheck ask it.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use job_declarator::credit::{Api, Shown};
use job_declarator::rate::{HashRate, HashRates};
use pool::api::{self, Facts, NodeView, Sources};
use pool::board::{
    BoardHandle, ChannelKind, ChannelSnapshot, ConnectionSnapshot, JobRow, VerdictRow,
};
use pool::credit::FailingSince;
use pool::metrics::Metrics;
use pool::store::{BlockRecord, BlockState, DeclareMode, DeclaredRecord, Route, Store};
use proto::mining::DeclaredId;
use ruint::aliases::U256;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Server {
    address: SocketAddr,
    board: BoardHandle,
    store: Store,
    metrics: Arc<Metrics>,
    node: watch::Sender<Option<NodeView>>,
    ledger: watch::Sender<FailingSince>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// What becomes of a page that asks who is connected.
#[derive(Clone, Copy)]
enum Board {
    Answers,
    Hangs,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Board::Answers).await
    }

    async fn start_with(asked: Board) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("pool.sqlite").display());
        let store = Store::open(&url).await.unwrap();
        let metrics = Arc::new(Metrics::new());
        let (board, board_task) = pool::board::board(metrics.clone());
        tokio::spawn(async move {
            if let Board::Hangs = asked {
                std::future::pending::<()>().await;
            }
            board_task.await;
        });
        let node = watch::Sender::new(None);
        let ledger = watch::Sender::new(None);
        let facts = Facts {
            version: "1.2.3",
            tag: "/Test/".into(),
            authority_public_key: "9abc".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 34_254)),
            declare: None,
            started_at: 1_700_000_000,
        };
        let sources = Sources {
            facts,
            metrics: metrics.clone(),
            board: board.clone(),
            store: store.clone(),
            node: node.subscribe(),
            ledger: ledger.subscribe(),
        };
        let listener =
            job_declarator::http::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(api::serve(listener, sources, stop.clone()));
        Self { address, board, store, metrics, node, ledger, stop, task, _folder: folder }
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let (address, path) = (self.address, path.to_owned());
        tokio::task::spawn_blocking(move || get(address, &path)).await.unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        let (status, headers, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(headers.contains("content-type: application/json"), "{headers}");
        serde_json::from_str(&body).unwrap()
    }
}

fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

/// A connection that has had a page and is kept open.
fn kept_open(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    stream
}

fn node_view(silent_s: u64) -> NodeView {
    let mut prev_hash = [0; 32];
    prev_hash[0] = 0xab;
    NodeView {
        name: "development chain".into(),
        network: "regtest".into(),
        height: 102,
        prev_hash,
        nbits: 0x1d00_ffff,
        coinbase_value_sats: 5_000_000_000,
        transactions: 7,
        answered_at: Instant::now().checked_sub(Duration::from_secs(silent_s)).unwrap(),
    }
}

fn connection(id: u64) -> ConnectionSnapshot {
    let rate = HashRate { estimate: 1e12, low: 0.5e12, high: 2e12 };
    ConnectionSnapshot {
        id,
        peer: SocketAddr::from(([192, 168, 1, 7], 50_000)),
        vendor: "<script>".into(),
        hardware: "BM1370".into(),
        firmware: "2.14".into(),
        opened_at: 1_700_000_100,
        channels: vec![ChannelSnapshot {
            id: 3,
            kind: ChannelKind::Extended,
            account: "bc1qme".into(),
            worker: "garage".into(),
            difficulty_log2: 8,
            shares_accepted: 5,
            shares_rejected: BTreeMap::from([("stale-share", 2)]),
            work: "5497558138880".into(),
            last_share_at: Some(1_700_000_200),
            hash_rate: HashRates { minute: rate, five_minutes: rate, hour: rate },
        }],
        custom_jobs: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_is_always_and_ready_only_with_a_node_that_answered_lately() {
    let server = Server::start().await;
    assert_eq!(server.get("/health/live").await.0, 200);
    let (status, _, body) = server.get("/health/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("\"ready\":false") && body.contains("has not answered yet"), "{body}");
    server.node.send_replace(Some(node_view(15)));
    let ready = server.json("/health/ready").await;
    let want =
        |node| serde_json::json!({ "ready": true, "node": node, "store": "ok", "ledger": "ok" });
    assert_eq!(ready, want("ok"));
    // It misses its sign of life: still ready, and no longer called well.
    server.node.send_replace(Some(node_view(50)));
    let ready = server.json("/health/ready").await;
    assert_eq!(ready, want("no answer for 50 s"));
    server.node.send_replace(Some(node_view(61)));
    let (status, _, body) = server.get("/health/ready").await;
    assert_eq!((status, body.contains("silent for 61 s")), (503, true), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_is_not_ready_and_gives_no_page() {
    let server = Server::start().await;
    server.node.send_replace(Some(node_view(0)));
    server.store.close().await;
    let (status, _, body) = server.get("/health/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("\"node\":\"ok\"") && !body.contains("\"store\":\"ok\""), "{body}");
    for page in ["/api/v1/pool", "/api/v1/blocks", "/api/v1/workers"] {
        let (status, _, body) = server.get(page).await;
        assert_eq!((status, body.contains("error")), (503, true), "{page}: {body}");
    }
    assert_eq!(server.get("/health/live").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_the_store_refuses_for_seconds_is_not_ready_and_says_why() {
    let server = Server::start().await;
    server.node.send_replace(Some(node_view(0)));
    let since = |seconds| std::time::Instant::now().checked_sub(Duration::from_secs(seconds));
    server.ledger.send_replace(since(1));
    assert_eq!(server.json("/health/ready").await["ledger"], "ok", "one failed try is none");
    server.ledger.send_replace(since(6));
    let (status, _, body) = server.get("/health/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("refused credit for 6 s") && body.contains("\"store\":\"ok\""), "{body}");
    let (_, _, metrics) = server.get("/metrics").await;
    let failing =
        metrics.lines().find_map(|line| line.strip_prefix("pool_credit_store_failing_seconds "));
    assert!((6.0..60.0).contains(&failing.unwrap().parse::<f64>().unwrap()), "{failing:?}");
    server.ledger.send_replace(None);
    assert_eq!(server.json("/health/ready").await["ready"], true);
    assert!(server.get("/metrics").await.2.contains("\npool_credit_store_failing_seconds 0\n"));
    drop(server.ledger);
    let (status, _, body) =
        tokio::task::spawn_blocking(move || get(server.address, "/health/ready")).await.unwrap();
    assert_eq!((status, body.contains("has ended")), (503, true), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_page_says_what_a_miner_needs_and_what_is_mined() {
    let server = Server::start().await;
    let before = server.json("/api/v1/pool").await;
    assert_eq!(before["work"], Value::Null);
    server.node.send_replace(Some(node_view(2)));
    server.board.publish(connection(1));
    server.board.publish(connection(2));
    let page = server.json("/api/v1/pool").await;
    assert_eq!(page["authority_public_key"], "9abc");
    assert_eq!(page["listen"], "127.0.0.1:34254");
    assert_eq!((&page["connections"], &page["channels"]), (&2.into(), &2.into()));
    assert_eq!(page["hash_rate"]["5m"]["estimate"], 2e12);
    assert_eq!(page["work"]["height"], 102);
    assert_eq!(page["work"]["network_difficulty"], 1.0);
    let prev_hash = page["work"]["prev_hash"].as_str().unwrap();
    assert!(prev_hash.starts_with("0000") && prev_hash.ends_with("00ab"), "{prev_hash}");
    assert_eq!(page["totals"]["work"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_listed_until_they_go() {
    let server = Server::start().await;
    server.board.publish(connection(1));
    let page = server.json("/api/v1/channels").await;
    assert_eq!(page["connections_total"], 1);
    let channel = &page["connections"][0]["channels"][0];
    assert_eq!(channel["kind"], "extended");
    assert_eq!(channel["account"], "bc1qme");
    assert_eq!(channel["shares_rejected"]["stale-share"], 2);
    assert_eq!(channel["hash_rate"]["1m"]["high"], 2e12);
    server.board.remove(1).await;
    let page = server.json("/api/v1/channels").await;
    assert_eq!(page["connections"], Value::Array(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_cut_and_says_how_long_it_was() {
    let server = Server::start().await;
    for id in 0..1_001 {
        server.board.publish(connection(id));
    }
    let page = server.json("/api/v1/channels").await;
    assert_eq!(page["connections_total"], 1_001);
    assert_eq!(page["connections"].as_array().unwrap().len(), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_channels_is_bounded_over_all_connections_and_totals_are_not() {
    let server = Server::start().await;
    for (id, channels) in [(1, 1_024), (2, 1_023), (3, 2), (4, 1), (5, 1)] {
        let mut row = connection(id);
        row.channels = vec![row.channels[0].clone(); channels];
        server.board.publish(row);
    }
    let page = server.json("/api/v1/channels").await;
    assert_eq!(page["connections_total"], 5);
    assert_eq!(page["channels_total"], 2_051);
    let listed = page["connections"].as_array().unwrap();
    // 2,048 exactly; the third would be one too many, and so is the fifth.
    let ids: Vec<_> = listed.iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_dashboard_never_makes_a_health_check_fail() {
    let server = Server::start_with(Board::Hangs).await;
    server.node.send_replace(Some(node_view(0)));
    let pages: Vec<_> = (0..40)
        .map(|_| {
            let address = server.address;
            tokio::task::spawn_blocking(move || get(address, "/api/v1/channels"))
        })
        .collect();
    // From the first "busy" on all places for pages are taken, for most of a second.
    while !pages.iter().any(|page| page.is_finished()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for health in ["/health/ready", "/health/live"] {
        let (status, _, body) = server.get(health).await;
        assert_eq!(status, 200, "{health}: {body}");
    }
    let mut busy = 0;
    for page in pages {
        let (status, _, body) = page.await.unwrap();
        assert_eq!(status, 503);
        busy += usize::from(body.contains("busy"));
    }
    assert_eq!(busy, 40 - 16, "as many at once as there are places");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_closes_the_one_open_the_longest_and_is_served() {
    let server = Server::start().await;
    let address = server.address;
    let looked = tokio::task::spawn_blocking(move || {
        let mut open: Vec<TcpStream> = (0..64).map(|_| kept_open(address)).collect();
        let is_open = |stream: &mut TcpStream| {
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            !matches!(stream.read(&mut [0]), Ok(0))
        };
        assert!(is_open(&mut open[0]), "64 are as many as there may be");
        assert_eq!(get(address, "/health/live").0, 200);
        open[0].set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(open[0].read(&mut [0]).unwrap(), 0);
        assert!(is_open(&mut open[1]));
    });
    looked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_nothing_or_half_a_question_is_let_go_of() {
    let server = Server::start().await;
    let address = server.address;
    let looked = tokio::task::spawn_blocking(move || {
        let idle = kept_open(address);
        let mut half = TcpStream::connect(address).unwrap();
        half.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(half, "GET /health/live HTTP/1.1\r\nHost: x\r\n").unwrap();
        let mut huge = TcpStream::connect(address).unwrap();
        huge.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // The pool may close before it has read all of it.
        let _ = write!(huge, "GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        let mut said = String::new();
        // Closed over what it had not read, so what it said may be lost.
        let _ = huge.read_to_string(&mut said);
        for mut stream in [idle, half] {
            stream.read_to_string(&mut said).expect("closed by the pool");
        }
        assert!(!said.contains(" 200 "), "{said}");
    });
    looked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_and_workers_come_from_the_store() {
    let server = Server::start().await;
    let mut hash = [0; 32];
    hash[0] = 0xcd;
    let block = BlockRecord {
        hash,
        height: 102,
        prev_hash: [0; 32],
        found_at_ms: 1_700_000_000_123,
        account: "bc1qme".into(),
        worker: "garage".into(),
        value_sats: 5_000_000_000,
        nbits: 0x1d00_ffff,
        state: BlockState::Accepted,
        detail: String::new(),
        route: Route::Solution,
        declared: Some(DeclaredId([0x5a; 16])),
    };
    server.store.record_block(&block).await.unwrap();
    let page = server.json("/api/v1/blocks").await;
    assert_eq!(page["blocks"][0]["state"], "accepted");
    assert_eq!(page["blocks"][0]["route"], "solution");
    assert_eq!(page["blocks"][0]["declared_job"], "5a".repeat(16));
    assert_eq!(page["blocks"][0]["value_sats"], 5_000_000_000u64);
    assert!(page["blocks"][0]["hash"].as_str().unwrap().ends_with("cd"));
    let page = server.json("/api/v1/workers").await;
    assert_eq!(page, serde_json::json!({ "workers_total": 0, "workers": [] }));
    // As a miner's own program asks.
    let api: Api = format!("http://{}", server.address).parse().unwrap();
    let none = Shown { work: U256::ZERO, credit: Some(U256::ZERO) };
    assert_eq!(api.shown_for("bc1qme").await, Ok(none));
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_jobs_are_shown_with_what_they_earn_and_refusals_with_their_reason() {
    let server = Server::start().await;
    let job = DeclaredRecord {
        id: DeclaredId([0x5a; 16]),
        node: 0,
        declared_at_ms: 1_700_000_000_123,
        account: "bc1qme".into(),
        mode: DeclareMode::FullTemplate,
        height: 102,
        prev_hash: [0; 32],
        nbits: 0x1d00_ffff,
        version: 0x2000_0000,
        coinbase_prefix: vec![1],
        coinbase_suffix: vec![2],
        merkle_path: vec![[3; 32]],
        transactions: Some(1),
        value_sats: 5_000_001_000,
        pool_sats: 5_000_001_000,
        fees_sats: 1_000,
        reference_fees_sats: 30_181_087,
        factor_ppm: 994_000,
    };
    server.store.record_declared(&job).await.unwrap();
    let verdict = |verdict, reason: &str| VerdictRow {
        at_ms: 1_700_000_000_456,
        connection: 7,
        account: "bc1qme".into(),
        mode: "full-template",
        verdict,
        reason: reason.into(),
        check_ms: 12,
        transactions: 4_000,
        supplied: 2,
        job: None,
    };
    server.board.verdict(verdict("invalid-coinbase-tx-outputs", "one satoshi short"));
    let approved = VerdictRow { job: Some(JobRow::of(&job)), ..verdict("approved", "") };
    server.board.verdict(approved);
    let page = server.json("/api/v1/declared").await;
    assert_eq!(page["jobs"][0]["id"], "5a".repeat(16));
    assert_eq!(page["jobs"][0]["earns"], "your template earns 99.4 % of ours");
    assert_eq!(page["jobs"][0]["reference_fees_sats"], 30_181_087);
    assert_eq!(page["verdicts"][0]["job"]["factor_ppm"], 994_000);
    assert_eq!(page["verdicts"][1]["verdict"], "invalid-coinbase-tx-outputs");
    assert_eq!(page["verdicts"][1]["reason"], "one satoshi short");
    assert_eq!(page["declarers_total"], 0);
    let none = |route| serde_json::json!({ "route": route, "blocks": 0, "on_declared_jobs": 0 });
    let routes = serde_json::json!([none("share"), none("solution"), none("miner")]);
    assert_eq!(page["blocks_by_route"], routes);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_prometheus_text_with_the_templates_age() {
    let server = Server::start().await;
    server.metrics.connection_opened();
    server.node.send_replace(Some(node_view(30)));
    let (status, headers, body) = server.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(headers.contains("content-type: text/plain; version=0.0.4"), "{headers}");
    assert!(body.contains("\npool_connections 1\n"), "{body}");
    let age = body.lines().find_map(|line| line.strip_prefix("pool_template_age_seconds "));
    assert!((30.0..40.0).contains(&age.unwrap().parse::<f64>().unwrap()), "{age:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_taken_for_a_web_page_or_changed() {
    let server = Server::start().await;
    server.board.publish(connection(1));
    for path in ["/api/v1/channels", "/metrics", "/health/live", "/", "/api/v1/%3Cscript%3E"] {
        let (_, headers, _) = server.get(path).await;
        assert!(headers.contains("x-content-type-options: nosniff"), "{path}: {headers}");
        assert!(!headers.contains("text/html"), "{path}: {headers}");
    }
    assert_eq!(server.get("/nowhere").await.0, 404);
    let address = server.address;
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "POST /api/v1/pool HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.await.unwrap().starts_with("HTTP/1.1 405"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_not_held_up_by_an_open_connection() {
    let server = Server::start().await;
    let _idle = TcpStream::connect(server.address).unwrap();
    assert_eq!(server.get("/health/live").await.0, 200);
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), server.task).await.unwrap().unwrap();
}
