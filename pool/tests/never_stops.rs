//! The miner never stops: a declarator with devices, two pools and a node, each of which fails in every manner
//! that it can, over real sockets. What a switch may cost is held against what the declarator itself measures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so")]

mod home;

use std::sync::Arc;

use home::proxy::Way;
use home::{DEAD, Home, NO_BLOCKS, NodeWay, PoolRig, STALLED, UP, chain, own, theirs};
use job_declarator::upstream::Source;

/// Two pools on one chain, a house that prefers the first, and a device in it that mines for that.
struct Rig {
    a: PoolRig,
    b: PoolRig,
    node: Arc<NodeWay>,
    home: Home,
    device: home::Device,
}

impl Rig {
    async fn start(block_hashes: u64) -> Self {
        let chain = chain(block_hashes);
        let (a, b) = (PoolRig::start(&chain).await, PoolRig::start(&chain).await);
        let node = NodeWay::new(chain);
        let pools = vec![a.options("A"), b.options("B")];
        let home = Home::start(pools, Arc::clone(&node) as _).await;
        let device = home.device("alice.bitaxe").await;
        let rig = Self { a, b, node, home, device };
        rig.home.until_using(own(0)).await;
        rig.home.until_mined_for(0, 3).await;
        rig
    }

    /// Ends all; the device never had to connect again.
    async fn stop(self) {
        let Self { a, b, home, device, .. } = self;
        device.stop().await;
        home.running.stop().await;
        for rig in [a, b] {
            rig.pool.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_socket_costs_a_second_at_most_and_the_house_is_back() {
    let rig = Rig::start(NO_BLOCKS).await;
    rig.a.set(Way::Cut);
    rig.home.until_using(own(1)).await;
    rig.home.until_mined_for(1, 3).await;
    for switch in rig.home.view().switches {
        assert!(switch.idle_ms <= 1_000, "{switch:?}");
    }
    rig.a.set(Way::Open);
    let back = rig.home.until_using(own(0)).await;
    assert!(back.view.switches.len() >= 3);
    rig.home.until_mined_for(0, 3).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_left_within_fifteen_seconds() {
    let rig = Rig::start(NO_BLOCKS).await;
    rig.a.set(Way::BlackHole);
    let left = rig.home.until("A is left", |shown| shown.view.using != own(0)).await;
    let switch = left.view.switches.back().unwrap();
    assert!(switch.idle_ms <= 15_000, "{switch:?}");
    rig.home.until_mined_for(1, 3).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_pool_it_is_solo_at_once_on_a_template_that_was_warm() {
    let rig = Rig::start(NO_BLOCKS).await;
    rig.b.set(Way::Cut);
    rig.a.set(Way::Cut);
    rig.home.until_using(Source::Solo).await;
    let switch = rig.home.last_switch();
    assert!(switch.to == Source::Solo && switch.idle_ms <= 250, "{switch:?}");
    let solo = rig.home.view().tally.solo_shares;
    rig.home.until("solo shares", |shown| shown.view.tally.solo_shares > solo + 3).await;
    rig.a.set(Way::Open);
    rig.home.until_using(own(0)).await;
    rig.home.until_mined_for(0, 3).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_node_is_away_the_pools_own_jobs_are_mined() {
    for how in [DEAD, STALLED] {
        let rig = Rig::start(NO_BLOCKS).await;
        rig.node.set(how);
        rig.home.until_using(theirs(0)).await;
        rig.home.until_mined_for(0, 3).await;
        assert!(rig.home.view().node_away.is_some());
        rig.node.set(UP);
        rig.home.until_using(own(0)).await;
        rig.home.until_mined_for(0, 3).await;
        rig.stop().await;
    }
}
