//! The promise that an acknowledgement makes, against a real process: what a client was told Success for
//! is in the store once, whenever SIGKILL comes. On SQLite and on PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

mod databases;
mod session;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use databases::Database;
use proto::mining::client::ChannelKind;
use session::{PATIENCE, Session};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const KILLS: usize = 20;
/// Miners at once, half of them on standard channels.
const MINERS: usize = 6;

#[test]
fn no_acknowledged_share_is_lost_and_none_counts_twice_by_twenty_kills() {
    survives_kills(&block_on(Database::sqlite()));
}

#[test]
fn no_acknowledged_share_is_lost_and_none_counts_twice_by_twenty_kills_on_postgresql() {
    if !databases::postgres_is_wanted() {
        return;
    }
    let database = block_on(Database::postgres());
    survives_kills(&database);
    block_on(database.end());
}

fn survives_kills(database: &Database) {
    let folder = tempfile::tempdir().unwrap();
    let listen = free_address();
    let config = write_config(folder.path(), &database.url, listen);
    let mut transcript = BTreeSet::new();
    for kill in 0..KILLS {
        let mut pool = start(&config);
        let stop = CancellationToken::new();
        // A thread for each: grinding would keep a shared runtime from looking at its clock.
        let miners = (0..MINERS).map(|number| {
            let stop = stop.clone();
            thread::spawn(move || block_on(mine_until_dead(listen, number, stop)))
        });
        let miners: Vec<_> = miners.collect();
        // The first kills come while channels are still being opened, the later ones in full load.
        thread::sleep(Duration::from_millis(150 + 67 * kill as u64));
        pool.kill().unwrap();
        pool.wait().unwrap();
        stop.cancel();
        for miner in miners {
            for hash in miner.join().unwrap() {
                assert!(transcript.insert(hash), "one share was acknowledged twice");
            }
        }
    }
    block_on(compare(database, transcript));
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn compare(database: &Database, transcript: BTreeSet<[u8; 32]>) {
    assert!(transcript.len() > KILLS * MINERS, "too few acknowledgements to prove anything");

    let store = database.open().await;
    let mut stored = BTreeSet::new();
    let mut count = 0;
    for prev_hash in store.recent_prev_hashes(1_000).await.unwrap() {
        for hash in store.proofs_of(prev_hash).await.unwrap() {
            count += 1;
            assert!(stored.insert(hash), "one proof is credited twice");
        }
    }
    let lost = transcript.difference(&stored).count();
    assert_eq!(lost, 0, "{lost} of {} acknowledged shares are not in the store", transcript.len());
    assert_eq!(store.totals().await.unwrap().shares, count, "the counters tell another story");
    store.close().await;
}

/// Connects as soon as the pool listens and mines until the connection breaks. Gives what was
/// acknowledged.
async fn mine_until_dead(at: SocketAddr, number: usize, stop: CancellationToken) -> Vec<[u8; 32]> {
    let kind = match number % 2 {
        0 => ChannelKind::Extended { min_extranonce_size: 4 },
        _ => ChannelKind::Standard,
    };
    let user = format!("kill.{number}");
    let mut session = loop {
        let opened = stop.run_until_cancelled(Session::open(at, kind, &user)).await;
        match opened {
            None => return Vec::new(),
            Some(Ok(session)) => break session,
            Some(Err(_)) => sleep(Duration::from_millis(10)).await,
        }
    };
    let mining = async {
        loop {
            // A few in the pipe, so that a kill finds some shares in every stage.
            while session.book.unanswered.len() < 8 {
                session.mine_one().await?;
            }
            session.hear().await?;
        }
    };
    let ended: Result<Result<(), proto::net::LinkError>, _> = timeout(PATIENCE, mining).await;
    assert!(ended.is_ok(), "a killed pool's connection does not end");
    session.book.acknowledged
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn write_config(folder: &Path, store: &str, listen: SocketAddr) -> PathBuf {
    let config = folder.join("pool.toml");
    let data = folder.join("data");
    let text = format!(
        "[pool]\ndata_dir = {data:?}\n[store]\nurl = {store:?}\n[listen]\naddress = \"{listen}\"\n\
         [declare]\naddress = \"127.0.0.1:0\"\n\
         [node]\nkind = \"embedded\"\nnetwork = \"regtest\"\n\
         [difficulty]\nfloor_log2 = -24\nshares_per_minute = 600\n\
         [embedded]\nblock_hashes = 1000000000\n[http]\naddress = \"127.0.0.1:0\"\n\
         [log]\nfilter = \"warn\"\n"
    );
    std::fs::write(&config, text).unwrap();
    config
}

fn start(config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_pool"))
        .args(["run", "-c"])
        .arg(config)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}
