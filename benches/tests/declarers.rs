//! Declarers of the load generator against a whole pool in this process: each has its jobs approved and mined,
//! and what the pool lacks is handed in. By counts, never by time.

#![allow(clippy::unwrap_used, reason = "a builder outside a #[test] fails it just as well")]

use std::net::SocketAddr;

use benches::swarm::declarers::{DeclarerOptions, Declaring};
use benches::swarm::{self, Options, Report};
use clap::Parser;
use pool::config::{Config, NodeKind};
use pool::run;
use tokio_util::sync::CancellationToken;

const TRANSACTIONS: u32 = 20;
/// No block is found by chance.
const BLOCK_HASHES: u64 = 1_000_000_000_000;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    declarers: DeclarerOptions,
}

/// Three declarers with two turns each beside two miners, and the shares that the store then holds.
/// `change` is made to what they know of the pool.
async fn measure(more: &str, change: impl FnOnce(&mut Declaring)) -> (Report, u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.pool.data_dir = folder.path().to_owned();
    config.pool.drain_s = 5;
    config.node.kind = NodeKind::Embedded;
    config.listen.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.declare.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.http.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.difficulty.floor_log2 = -32;
    config.difficulty.ceiling_log2 = -32;
    config.embedded.block_hashes = BLOCK_HASHES;
    config.embedded.tx_count = TRANSACTIONS;
    let pool = run::start(&config, &CancellationToken::new()).await.unwrap();
    let line = format!(
        "load --connections 2 --shares-per-second 20 --for 4s --declarers 3 --refresh 1s {more}"
    );
    let Line { options, declarers } = Line::try_parse_from(line.split_whitespace()).unwrap();
    let mut declaring = Declaring {
        options: declarers,
        declare: pool.declare.unwrap(),
        http: pool.http,
        chain: folder.path().join("chain"),
        tx_count: TRANSACTIONS,
        block_hashes: BLOCK_HASHES,
    };
    change(&mut declaring);
    let address = pool.listen;
    let load = move || swarm::run_declaring(address, &options, Some(declaring)).unwrap();
    let report = tokio::task::spawn_blocking(load).await.unwrap();
    let stored = pool.store.totals().await.unwrap().shares;
    pool.stop().await.unwrap();
    (report, stored)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_declarer_has_a_job_approved_and_mined_at_each_turn() {
    for lists in ["same", "own"] {
        let (report, stored) = measure(&format!("--lists {lists}"), |_| {}).await;
        assert!(report.is_clean(), "{lists}: {report}");
        assert_eq!(report.count("declarers_standing"), 3, "{report}");
        assert_eq!(report.count("declarations"), 6, "{report}");
        assert_eq!(report.count("custom_jobs_answered"), 6, "{report}");
        // One hash in 65,536 misses the easiest target.
        let missed = &report.to_json()["declarers_refused"]["difficulty-too-low"];
        let credited = report.count("custom_shares_acknowledged");
        assert_eq!(credited + missed.as_u64().unwrap_or(0), 6, "{report}");
        assert_eq!(report.count("acknowledged") + credited, stored, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_refresh_brings_is_handed_in_when_the_pool_asks() {
    let (report, _) = measure("", |_| {}).await;
    assert!(report.is_clean(), "{report}");
    // A quarter of them is new at the second turn, and its first declarer is asked for all of that.
    let supplied = report.count("declared_transactions_supplied");
    assert_eq!(supplied, 5 * report.count("declarations_asked"), "{report}");
    assert!(supplied >= 5, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn declarers_that_are_not_let_in_are_told_and_meet_no_goal() {
    // Its page of metrics is no port of job declaration.
    let (report, _) = measure("", |declaring| declaring.declare = declaring.http).await;
    assert!(!report.is_clean(), "{report}");
    assert!(!report.meets_goals(), "{report}");
    assert_eq!(report.count("declarers_standing"), 0, "{report}");
    assert_eq!(report.count("declarations"), 0, "{report}");
}
