//! A whole pool on a real Bitcoin Core: a job is declared to it, checked by Core, mined, and its block is in
//! Core's chain. Runs if `BITCOIND_EXE` names one, and says so loudly if not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "builders outside a #[test] fail it just as well"
)]

#[path = "../../job-declarator/tests/common/core.rs"]
mod core;
mod declarator;
mod session;

use std::net::SocketAddr;
use std::time::Duration;

use core::{Core, NOBODY, has_socket};
use declarator::Declarator;
use pool::config::{Config, NetworkName, NodeKind};
use pool::run;
use pool::store::BlockState;
use session::PATIENCE;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_job_is_checked_by_bitcoin_core_and_its_block_is_in_its_chain() {
    let Some(core) = Core::start("a_declared_job_is_checked_by_bitcoin_core") else { return };
    core.generate(17, NOBODY);
    let over_socket = cfg!(feature = "ipc") && has_socket(&core.exe);
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.pool.data_dir = folder.path().to_owned();
    config.pool.payout_address = NOBODY.to_owned();
    config.pool.drain_s = 5;
    config.node.kind = NodeKind::BitcoinCore;
    config.node.network = NetworkName::Regtest;
    config.node.url = core.url();
    config.node.cookie_file = core.cookie();
    if over_socket {
        config.node.ipc_socket = core.socket();
    }
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    config.listen.address = anywhere;
    config.declare.address = anywhere;
    config.http.address = anywhere;
    config.difficulty.floor_log2 = -32;
    let pool = run::start(&config, &CancellationToken::new()).await.unwrap();

    let mut alice = Declarator::open(&pool, "alice.rig").await;
    let (job, id) = alice.set_up(&pool, 0).await;
    assert_eq!(core.log().contains("Mining.checkBlock"), over_socket);
    let (header, extranonce) = alice.grind(&job, true);
    alice.submit(id, &header, &extranonce).await.unwrap();
    let settled = async {
        loop {
            let blocks = pool.store.blocks(9).await.unwrap();
            if let [block] = &blocks[..]
                && block.state != BlockState::Found
            {
                return block.clone();
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let block = timeout(PATIENCE, settled).await.expect("no block is settled");
    assert_eq!((block.hash, block.state), (header.hash(), BlockState::Accepted));
    assert!(block.declared.is_some());
    assert_eq!(pool.node.chain_info().await.unwrap().tip, header.hash());
    pool.stop().await.unwrap();
}
