//! Who is let in at the doors for miners and for declarers: as many as there are places, and one more is
//! refused before a handshake. Those who are in do not feel it, and a place that is left is given again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

mod declarator;
mod session;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use declarator::{Declarator, Wire};
use pool::config::{Config, NodeKind};
use pool::run::{self, Running};
use proto::message::{Protocol, setup_flags};
use proto::mining::client::ChannelKind;
use proto::net::Link;
use session::{PATIENCE, Session, link_on, stream_from};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const HOME: [u8; 4] = [127, 0, 0, 2];
const FARM: [u8; 4] = [127, 0, 0, 3];
const STRANGER: [u8; 4] = [127, 0, 0, 4];

/// A pool with other settings than the usual, and what happens at its doors.
fn at_the_doors<F: Future<Output = ()>>(
    change: impl FnOnce(&mut Config),
    acts: impl FnOnce(Arc<Running>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.pool.data_dir = folder.path().to_owned();
        config.pool.drain_s = 1;
        config.node.kind = NodeKind::Embedded;
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        config.listen.address = anywhere;
        config.declare.address = anywhere;
        config.http.address = anywhere;
        config.difficulty.floor_log2 = -24;
        config.embedded.block_hashes = 1_000_000_000;
        config.embedded.tx_count = 24;
        change(&mut config);
        let pool = run::start(&config, &CancellationToken::new()).await.unwrap();
        let pool = Arc::new(pool);
        timeout(PATIENCE, acts(Arc::clone(&pool))).await.expect("the pool does not answer");
        Arc::into_inner(pool).expect("nobody else has it").stop().await.unwrap();
    });
}

/// A link, unless the door is closed before a handshake.
async fn knock(household: [u8; 4], at: SocketAddr) -> Option<Link> {
    link_on(stream_from(household, at).await).await.ok()
}

/// A link as soon as there is a place: the task of whoever left has to see it first.
async fn knock_until_let_in(household: [u8; 4], at: SocketAddr) -> Link {
    loop {
        match knock(household, at).await {
            Some(link) => return link,
            None => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// How many were refused because all places were taken, and because their household's were.
fn refused(pool: &Running) -> [u32; 2] {
    let rendered = pool.metrics.render();
    ["full", "address-full"].map(|reason| {
        let series = format!("pool_handshake_failures_total{{reason=\"{reason}\"}} ");
        let count = rendered.lines().find_map(|line| line.strip_prefix(&series));
        count.unwrap_or_else(|| panic!("no {series} in {rendered}")).parse().unwrap()
    })
}

async fn miner(link: Link) -> Session {
    let kind = ChannelKind::Extended { min_extranonce_size: 4 };
    Session::on(link, kind, "mi.ner").await.unwrap()
}

async fn declarer(link: Link, pool: &Running) -> Declarator {
    let wire = Wire::on(link, Protocol::JobDeclaration, setup_flags::DECLARE_TX_DATA).await;
    Declarator::with(wire, pool, "mi.ner").await
}

#[test]
fn a_miner_beyond_all_places_is_refused_until_another_leaves() {
    let two = |config: &mut Config| {
        config.listen.max_connections = 2;
        config.listen.max_connections_per_address = 2;
    };
    at_the_doors(two, |pool| async move {
        let mut home = miner(knock(HOME, pool.listen).await.unwrap()).await;
        let mut farm = miner(knock(FARM, pool.listen).await.unwrap()).await;
        assert!(knock(STRANGER, pool.listen).await.is_none(), "a third of two");
        assert_eq!(refused(&pool), [1, 0]);
        home.mine_acknowledged(1).await;
        farm.mine_acknowledged(1).await;
        drop(home);
        let mut stranger = miner(knock_until_let_in(STRANGER, pool.listen).await).await;
        assert!(knock(HOME, pool.listen).await.is_none(), "one place was left, not two");
        stranger.mine_acknowledged(1).await;
        farm.mine_acknowledged(1).await;
    });
}

#[test]
fn a_declarer_beyond_all_places_is_refused_until_another_leaves() {
    let two = |config: &mut Config| {
        config.declare.max_connections = 2;
        config.declare.max_connections_per_address = 2;
    };
    at_the_doors(two, |pool| async move {
        let at = pool.declare.unwrap();
        let mut home = declarer(knock(HOME, at).await.unwrap(), &pool).await;
        let mut farm = declarer(knock(FARM, at).await.unwrap(), &pool).await;
        assert!(knock(STRANGER, at).await.is_none(), "a third of two");
        assert_eq!(refused(&pool), [1, 0]);
        home.allocate().await;
        farm.set_up(&pool, 0).await;
        drop(home);
        let mut stranger = declarer(knock_until_let_in(STRANGER, at).await, &pool).await;
        assert!(knock(HOME, at).await.is_none(), "one place was left, not two");
        stranger.set_up(&pool, 0).await;
        farm.allocate().await;
    });
}

#[test]
fn a_declarer_beyond_its_households_places_is_refused_and_another_household_is_not() {
    let two_of_four = |config: &mut Config| {
        config.declare.max_connections = 4;
        config.declare.max_connections_per_address = 2;
    };
    at_the_doors(two_of_four, |pool| async move {
        let at = pool.declare.unwrap();
        let mut one = declarer(knock(HOME, at).await.unwrap(), &pool).await;
        let mut other = declarer(knock(HOME, at).await.unwrap(), &pool).await;
        assert!(knock(HOME, at).await.is_none(), "a third of the household's two");
        assert_eq!(refused(&pool), [0, 1]);
        let mut farm = declarer(knock(FARM, at).await.unwrap(), &pool).await;
        one.allocate().await;
        other.set_up(&pool, 0).await;
        farm.set_up(&pool, 0).await;
        drop(one);
        let mut again = declarer(knock_until_let_in(HOME, at).await, &pool).await;
        assert!(knock(HOME, at).await.is_none(), "one place was left, not two");
        again.set_up(&pool, 0).await;
        other.allocate().await;
    });
}

#[test]
fn places_for_declarers_are_none_of_the_miners_and_the_other_way_round() {
    let one_each = |config: &mut Config| {
        config.listen.max_connections = 1;
        config.listen.max_connections_per_address = 1;
        config.declare.max_connections = 1;
        config.declare.max_connections_per_address = 1;
    };
    at_the_doors(one_each, |pool| async move {
        let mut declarer = declarer(knock(HOME, pool.declare.unwrap()).await.unwrap(), &pool).await;
        assert!(knock(STRANGER, pool.listen).await.is_none(), "its other link is the one miner");
        declarer.set_up(&pool, 0).await;
    });
}
