//! A whole pool in this process, and one as a program of its own: what a miner sees of blocks, idleness
//! and a stop.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

mod session;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pool::config::{Config, NetworkName, NodeKind, Secret};
use pool::keys;
use pool::run::{self, Running};
use pool::store::{BlockState, Store};
use proto::message::{Message, Protocol, SetupConnection};
use proto::mining::client::ChannelKind;
use proto::wire::Str0255;
use session::{PATIENCE, Session, link};
use sqlx::Connection;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const KINDS: [ChannelKind; 2] =
    [ChannelKind::Standard, ChannelKind::Extended { min_extranonce_size: 4 }];

fn config(folder: &Path, block_hashes: u64) -> Config {
    let mut config = Config::default();
    config.pool.data_dir = folder.to_owned();
    config.pool.drain_s = 5;
    config.node.kind = NodeKind::Embedded;
    config.listen.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.declare.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.http.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.difficulty.floor_log2 = -24;
    config.embedded.block_hashes = block_hashes;
    config
}

async fn start(config: &Config) -> Running {
    run::start(config, &CancellationToken::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miners_block_is_in_the_chain_and_the_next_work_builds_on_it_p52() {
    for kind in KINDS {
        let folder = tempfile::tempdir().unwrap();
        // Every share of the floor's 256 hashes is likely a block of 64.
        let pool = start(&config(folder.path(), 64)).await;
        let mut session = Session::open(pool.listen, kind, "finder.one").await.unwrap();
        let first = session.client.work().unwrap();
        session.mine_acknowledged(3).await;
        let blocks = pool.store.blocks(10).await.unwrap();
        let ours = blocks.iter().filter(|block| block.state == BlockState::Accepted);
        assert!(ours.clone().count() > 0, "no block in the chain: {blocks:?}");
        assert!(ours.clone().all(|block| (&*block.account, &*block.worker) == ("finder", "one")));
        for block in ours {
            assert_eq!(pool.node.height_of(&block.hash).await.unwrap(), Some(block.height));
        }
        let moved = async {
            while session.client.work().unwrap().prev_hash == first.prev_hash {
                session.hear().await.unwrap();
            }
        };
        timeout(PATIENCE, moved).await.expect("the miner was not told of the new tip");
        drop(session);
        pool.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_opens_no_channel_in_time_is_closed_p10() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), 1_000_000_000);
    config.listen.first_channel_s = 1;
    let pool = start(&config).await;
    let mut miner = Session::open(pool.listen, KINDS[1], "in.time").await.unwrap();
    let mut idle = link(pool.listen).await.unwrap();
    let setup = SetupConnection {
        protocol: Protocol::Mining as u8,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: Str0255::default(),
        endpoint_port: 0,
        vendor: Str0255::text("idle"),
        hardware_version: Str0255::default(),
        firmware: Str0255::default(),
        device_id: Str0255::default(),
    };
    idle.connection().outbound.send(&Message::from(setup));
    idle.flush().await.unwrap();
    let closed = async { while idle.fill().await.is_ok_and(|count| count > 0) {} };
    timeout(PATIENCE, closed).await.expect("an idle connection stays");
    miner.mine_acknowledged(1).await;
    drop(miner);
    pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_up_and_open_sessions_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 1_000_000_000);
    let pool = start(&config).await;
    let mut session = Session::open(pool.listen, KINDS[1], "before.it").await.unwrap();
    session.mine_acknowledged(1).await;

    let authority = keys::read_authority(&config.authority_file()).unwrap();
    let ten_years = keys::make_identity(&authority, None, session::unix_s(), 3_650).unwrap();
    keys::replace_identity(&config.identity_file(), &ten_years).unwrap();
    let hangup = Command::new("kill").args(["-HUP", &std::process::id().to_string()]).status();
    assert!(hangup.unwrap().success());
    let taken_up = async {
        while seconds_left(&pool.metrics.render()) < 3_000.0 * 86_400.0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, taken_up).await.expect("the new certificate is not taken up");

    session.mine_acknowledged(1).await;
    let mut newcomer = Session::open(pool.listen, KINDS[1], "after.it").await.unwrap();
    newcomer.mine_acknowledged(1).await;
    drop((session, newcomer));
    pool.stop().await.unwrap();
}

fn seconds_left(metrics: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with("pool_certificate_seconds_left "));
    line.map_or(0.0, |line| line.split(' ').nth(1).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_what_was_credited() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), 1_000_000_000);
    let mut credited = 0;
    for start_number in 1..=3 {
        let pool = start(&config).await;
        assert_eq!(pool.store.totals().await.unwrap().shares, credited);
        let mut session = Session::open(pool.listen, KINDS[1], "same.miner").await.unwrap();
        session.mine_acknowledged(2).await;
        credited = pool.store.totals().await.unwrap().shares;
        assert!(credited >= 2 * start_number);
        drop(session);
        pool.stop().await.unwrap();
    }
}

/// A pool whose node does not answer, and the port where it does not.
fn waiting_for_its_node(folder: &Path) -> Config {
    let mut config = config(folder, 64);
    config.node.kind = NodeKind::BitcoinCore;
    config.node.network = NetworkName::Regtest;
    config.pool.payout_address = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080".into();
    config.node.user = "me".into();
    config.node.password = Secret::new("secret");
    config.node.url = format!("http://{}", free_port());
    config
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Status and body of a page; `None` if nobody listens.
fn page(at: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = std::net::TcpStream::connect(at).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Some((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_node_is_waited_for_http_answers_and_miners_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = waiting_for_its_node(folder.path());
    (config.http.address, config.listen.address) = (free_port(), free_port());
    let (http, listen) = (config.http.address, config.listen.address);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let starting = tokio::spawn(async move { run::start(&config, &stop).await.map(drop) });
    let answers = tokio::task::spawn_blocking(move || {
        let live = loop {
            if let Some(live) = page(http, "/health/live") {
                break live;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(live.0, 200);
        let (status, body) = page(http, "/health/ready").unwrap();
        assert_eq!(status, 503);
        assert!(body.contains(r#""node":"has not answered yet","store":"ok""#), "{body}");
        assert_eq!(page(http, "/metrics").unwrap().0, 200);
        assert!(std::net::TcpStream::connect(listen).is_err(), "there is no work for miners yet");
    });
    timeout(PATIENCE, answers).await.expect("no answer while the node is away").unwrap();
    shutdown.cancel();
    assert!(timeout(PATIENCE, starting).await.expect("a start goes on").unwrap().is_err());
    let closed = async {
        while std::net::TcpStream::connect(http).is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, closed).await.expect("a start that was given up still answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_told_with_its_key_before_the_node_is_waited_for() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for key in ["listen.address", "declare.address", "http.address"] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = waiting_for_its_node(folder.path());
        match key {
            "listen.address" => config.listen.address = address,
            "declare.address" => config.declare.address = address,
            _ => config.http.address = address,
        }
        let shutdown = CancellationToken::new();
        let started = run::start(&config, &shutdown);
        let refused = timeout(PATIENCE, started).await.expect("the node was waited for").err();
        let said = format!("{:#}", refused.unwrap());
        assert!(said.starts_with(&format!("{key} {address}: ")), "{said}");
        assert!(said.ends_with(&format!("or change {key}")), "{said}");
    }
}

/// The pool as a program of its own, ready for miners.
async fn program(folder: &Path, variables: &[(&str, &str)]) -> (Child, Session) {
    let listen = free_port();
    let program = Command::new(env!("CARGO_BIN_EXE_pool"))
        .arg("run")
        .env("POOL__POOL__DATA_DIR", folder)
        .env("POOL__NODE__KIND", "embedded")
        .env("POOL__NODE__NETWORK", "regtest")
        .env("POOL__LISTEN__ADDRESS", listen.to_string())
        .env("POOL__DECLARE__ADDRESS", "127.0.0.1:0")
        .env("POOL__HTTP__ADDRESS", "127.0.0.1:0")
        .env("POOL__DIFFICULTY__FLOOR_LOG2", "-24")
        .env("POOL__EMBEDDED__BLOCK_HASHES", "1000000000")
        .env("POOL__LOG__FILTER", "warn")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let opened = timeout(PATIENCE, async {
        loop {
            match Session::open(listen, KINDS[1], "term.miner").await {
                Ok(session) => return session,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    });
    (program, opened.await.expect("the pool does not start"))
}

fn terminate(program: &Child) {
    let term = Command::new("kill").args(["-TERM", &program.id().to_string()]).status();
    assert!(term.unwrap().success());
}

#[tokio::test]
async fn a_stop_that_gives_up_shares_ends_with_a_failure_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (mut program, mut session) = program(folder.path(), &[("POOL__POOL__DRAIN_S", "0")]).await;
    session.mine_acknowledged(1).await;
    // Another program writes and does not come to an end.
    let file = format!("sqlite://{}", folder.path().join("pool.sqlite").display());
    let mut other = sqlx::SqliteConnection::connect(&file).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    session.mine_one().await.unwrap();
    let ending = tokio::task::spawn_blocking(move || {
        let mut says = BufReader::new(program.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(says.any(|line| line.contains("the store failed")), "the ledger never tried");
        terminate(&program);
        (says.collect::<Vec<_>>(), program.wait().unwrap())
    });
    let (said, ended) = ending.await.unwrap();
    assert_eq!(ended.code(), Some(1), "{said:?}");
    assert!(said.iter().any(|line| line.contains("ending without the store")), "{said:?}");
    assert!(said.last().unwrap().starts_with("pool: the store was away"), "{said:?}");
}

#[test]
fn sigterm_under_load_ends_in_good_order_and_loses_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let (mut program, mut session) = program(folder.path(), &[]).await;
        session.mine_acknowledged(3).await;
        // Some on their way when the signal comes.
        for _ in 0..5 {
            session.mine_one().await.unwrap();
        }
        terminate(&program);
        // The acknowledgements of a drain are still read, then the stream ends.
        while timeout(PATIENCE, session.hear()).await.expect("no end of the stream").is_ok() {}
        let ended = tokio::task::spawn_blocking(move || program.wait().unwrap()).await.unwrap();
        assert!(ended.success(), "{ended}");

        let url = format!("sqlite://{}", folder.path().join("pool.sqlite").display());
        let store = Store::open(&url).await.unwrap();
        let mut stored = BTreeSet::new();
        for tip in store.recent_prev_hashes(10).await.unwrap() {
            stored.extend(store.proofs_of(tip).await.unwrap());
        }
        let told: BTreeSet<_> = session.book.acknowledged.iter().copied().collect();
        assert!(told.is_subset(&stored));
        assert_eq!(told.len(), stored.len(), "a share was credited and its miner never told");
    });
}
