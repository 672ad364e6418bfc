//! The load generator against a whole pool in this process: what it counts is what the pool's ledger holds.
//! By counts, never by time.

#![allow(clippy::unwrap_used, reason = "a builder outside a #[test] fails it just as well")]

use std::net::SocketAddr;

use benches::swarm::{self, Options, Report};
use clap::Parser;
use pool::config::{Config, NodeKind};
use pool::run::{self, Running};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// A pool with a difficulty that takes 16 hashes, pinned, on a chain with a block every `block_hashes`.
async fn pool(folder: &std::path::Path, block_hashes: u64) -> Running {
    let mut config = Config::default();
    config.pool.data_dir = folder.to_owned();
    config.pool.drain_s = 5;
    config.node.kind = NodeKind::Embedded;
    config.listen.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.declare.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.http.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.difficulty.floor_log2 = -28;
    config.difficulty.ceiling_log2 = -28;
    config.embedded.block_hashes = block_hashes;
    run::start(&config, &CancellationToken::new()).await.unwrap()
}

/// A run against it, and the shares that the store then holds.
async fn measure(block_hashes: u64, arguments: &str) -> (Report, u64) {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(folder.path(), block_hashes).await;
    let words = std::iter::once("swarm").chain(arguments.split_whitespace());
    let options = Line::try_parse_from(words).unwrap().options;
    let address = pool.listen;
    let report = tokio::task::spawn_blocking(move || swarm::run(address, &options).unwrap());
    let report = report.await.unwrap();
    let stored = pool.store.totals().await.unwrap().shares;
    pool.stop().await.unwrap();
    (report, stored)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_share_is_good_and_every_acknowledged_share_is_in_the_store() {
    for kind in ["extended", "standard", "mixed"] {
        let arguments =
            format!("--connections 3 --channels-per-connection 2 --kind {kind} --for 2s");
        let (report, stored) = measure(1_000_000_000_000, &arguments).await;
        assert!(report.is_clean(), "{kind}: {report}");
        assert_eq!(report.count("opened"), 3);
        assert!(report.count("acknowledged") > 0);
        assert_eq!(report.count("refused"), 0);
        assert_eq!(report.count("acknowledged"), report.count("submitted"));
        assert_eq!(report.count("acknowledged"), stored);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_by_the_clock_are_as_many_as_the_clock_says() {
    let arguments = "--connections 3 --shares-per-second 90 --for 2s";
    let (report, stored) = measure(1_000_000_000_000, arguments).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.count("submitted"), 180);
    assert_eq!(stored, 180);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_found_block_is_a_tip_that_every_connection_hears_of() {
    let arguments = "--connections 3 --idle --for 4s --tips-every 1s";
    let (report, _) = measure(20_000, arguments).await;
    assert!(report.is_clean(), "{report}");
    let json = report.to_json();
    let tips = json["tips"].as_array().unwrap();
    assert!(!tips.is_empty(), "{report}");
    assert!(tips.iter().all(|tip| tip["connections"] == 3), "{report}");
}
