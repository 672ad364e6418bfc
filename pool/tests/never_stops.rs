//! The miner never stops: a declarator with devices, two pools and a node, each of which fails in every manner
//! that it can, over real sockets. What a switch may cost is held against what the declarator itself measures,
//! and against when a device has other work.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so")]

mod home;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use home::proxy::{Proxy, Way};
use home::refuser::Refuser;
use home::witness::Witness;
use home::{
    BEHIND, DEAD, Device, ELSEWHERE, Home, NO_BLOCKS, NodeWay, OWN_SCRIPT, PoolRig, REFUSES_ALL,
    STALLED, UP, chain, own, theirs,
};
use job_declarator::declarator::{Known, Mode, OutputLimit, PoolOptions, WHOLE_REWARD};
use job_declarator::node::embedded::EmbeddedChain;
use job_declarator::run::Settings;
use job_declarator::upstream::Source;
use pool::store::DeclareMode;
use proto::mining::client::ChannelKind;
use tokio::net::TcpStream;
use tokio::time::sleep_until;

/// Two pools on one chain, a house that prefers the first, and a device in it that mines for that.
struct Rig {
    a: PoolRig,
    b: PoolRig,
    node: Arc<NodeWay>,
    home: Home,
    device: Device,
}

impl Rig {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let (a, b, chain) = pools().await;
        let node = NodeWay::new(chain);
        let pools = vec![a.options("A"), b.options("B")];
        let home = Home::start_with(pools, Arc::clone(&node) as _, change).await;
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

async fn pools() -> (PoolRig, PoolRig, Arc<EmbeddedChain>) {
    let chain = chain(NO_BLOCKS);
    let (a, b) = tokio::join!(PoolRig::start(&chain), PoolRig::start(&chain));
    assert_ne!(a.script, b.script);
    (a, b, chain)
}

// ---- a pool's way ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_socket_costs_a_second_at_most_and_the_house_is_back() {
    let rig = Rig::start().await;
    let witness = rig.home.witness().await;
    let cut_at = Instant::now();
    rig.a.set(Way::Cut);
    let took = witness.took_since(cut_at, |payee| payee != rig.a.script).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    rig.home.until_using(own(1)).await;
    rig.home.until_mined_for(1, 3).await;
    for switch in rig.home.view().switches {
        assert!(switch.idle_ms <= 1_000, "{switch:?}");
    }
    is_back_on_a(&rig, &witness).await;
    assert!(rig.home.view().switches.len() >= 3);
    rig.stop().await;
}

/// The first pool can be reached from now on, and a device has its work soon.
async fn is_back_on_a(rig: &Rig, witness: &Witness) {
    let healthy_at = Instant::now();
    rig.a.set(Way::Open);
    let took = witness.took_since(healthy_at, |payee| payee == rig.a.script).await;
    assert!(took <= Duration::from_secs(90), "{took:?}");
    rig.home.until_using(own(0)).await;
    rig.home.until_mined_for(0, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_house_is_back_also_after_an_outage_that_made_it_patient() {
    let rig = Rig::start().await;
    let witness = rig.home.witness().await;
    let cut_at = Instant::now();
    rig.a.set(Way::Cut);
    rig.home.until_using(own(1)).await;
    rig.home.until_mined_for(1, 3).await;
    // Tried in vain after pauses of 1, 2, 4, 8 and 16 s, whatever their spread; now it waits for the longest.
    sleep_until((cut_at + Duration::from_secs(40)).into()).await;
    is_back_on_a(&rig, &witness).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_left_within_fifteen_seconds_and_the_house_is_back() {
    let rig = Rig::start().await;
    let witness = rig.home.witness().await;
    let since = Instant::now();
    rig.a.set(Way::BlackHole);
    let took = witness.took_since(since, |payee| payee != rig.a.script).await;
    assert!(took <= Duration::from_secs(15), "{took:?}");
    let left = rig.home.until("A is left", |shown| shown.view.using != own(0)).await;
    let switch = left.view.switches.back().unwrap();
    assert!(switch.idle_ms <= 15_000, "{switch:?}");
    rig.home.until_mined_for(1, 3).await;
    is_back_on_a(&rig, &witness).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_on_the_declarations_way_alone_is_left_too() {
    let rig = Rig::start().await;
    let witness = rig.home.witness().await;
    let since = Instant::now();
    rig.a.declare.set(Way::BlackHole);
    let took = witness.took_since(since, |payee| payee != rig.a.script).await;
    assert!(took <= Duration::from_secs(15), "{took:?}");
    rig.home.until_using(own(1)).await;
    rig.home.until_mined_for(1, 3).await;
    let (_, why) = rig.home.view().pools[0].last_failure.clone().unwrap();
    assert!(why.contains("it has not answered"), "{why}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_way_is_not_left() {
    let rig = Rig::start().await;
    rig.a.set(Way::Slow(700));
    rig.home.until_mined_for(0, 10).await;
    let view = rig.home.view();
    assert_eq!((view.using, view.pools[0].last_failure.clone()), (own(0), None));
    assert_eq!(view.pools[1].tally.sent, 0);
    rig.stop().await;
}

// ---- a pool's word ----

/// A house with these two pools leaves the first for the second, with this in the first one's failure.
async fn leaves_the_first(rig: Rig, because: &str) {
    let left = rig.home.until_using(own(1)).await;
    rig.home.until_mined_for(1, 3).await;
    let (_, why) = left.view.pools[0].last_failure.clone().unwrap();
    assert!(why.contains(because), "{why}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_refuses_the_template_is_left_for_the_next() {
    let rig = Rig::start().await;
    rig.a.node.set(REFUSES_ALL);
    leaves_the_first(rig, "it refuses your template").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_refuses_good_shares_is_left_for_the_next() {
    let chain = chain(NO_BLOCKS);
    let (refuser, b) =
        (Refuser::start(Arc::clone(&chain) as _).await, PoolRig::start(&chain).await);
    let home = Home::start(vec![refuser.options("no"), b.options("B")], chain).await;
    let device = home.device("alice.bitaxe").await;
    let left = home.until("no share is taken", |shown| shown.view.pools[0].last_failure.is_some());
    let pool = left.await.view.pools[0].clone();
    assert_eq!((pool.tally.acknowledged, pool.tally.refused["difficulty-too-low"]), (0, 5));
    let (_, why) = pool.last_failure.unwrap();
    assert!(why.contains("it refuses good shares: 5 in a row"), "{why}");
    home.until_using(own(1)).await;
    home.until_mined_for(1, 3).await;
    device.stop().await;
    home.running.stop().await;
    b.pool.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_with_another_key_is_named_and_the_next_is_used() {
    let (a, b, chain) = pools().await;
    let pools = vec![(a.options("A").0, b.pool.authority), b.options("B")];
    let home = Home::start(pools, chain).await;
    let device = home.device("alice.bitaxe").await;
    let using = home.until_using(own(1)).await;
    home.until_mined_for(1, 3).await;
    let (_, why) = using.view.pools[0].last_failure.clone().unwrap();
    assert!(why.contains("Is its authority_key the one that the pool shows?"), "{why}");
    assert_eq!(home.view().pools[0].tally.sent, 0);
    device.stop().await;
    home.running.stop().await;
    for rig in [a, b] {
        rig.pool.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_takes_more_than_the_owner_allows_is_refused_unless_its_script_is_known() {
    let (a, b, chain) = pools().await;
    // The first is known, too, but may have a hundredth at most.
    let known = |options: PoolOptions, script: &[u8], share_max: u32| {
        let limit = OutputLimit {
            known: vec![Known { script: script.to_vec(), share_max }],
            others_max_percent: 0,
            ..options.limit.clone()
        };
        PoolOptions { limit, ..options }
    };
    let ((first, first_key), (second, second_key)) = (a.options("A"), b.options("B"));
    let pools = vec![
        (known(first, &a.script, WHOLE_REWARD / 100), first_key),
        (known(second, &b.script, WHOLE_REWARD), second_key),
    ];
    let home = Home::start(pools, chain).await;
    let device = home.device("alice.bitaxe").await;
    let using = home.until_using(own(1)).await;
    home.until_mined_for(1, 3).await;
    let (_, why) = using.view.pools[0].last_failure.clone().unwrap();
    assert!(why.contains(" % of the reward") && why.contains("your limit is 0 %"), "{why}");
    let work = home.view().work.unwrap();
    assert_eq!(work.outputs, [(work.value_sats, b.script.clone())]);
    device.stop().await;
    home.running.stop().await;
    for rig in [a, b] {
        rig.pool.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_may_be_told_of_the_coinbase_alone() {
    let rig = Rig::start_with(|settings| settings.options.mode = Mode::CoinbaseOnly).await;
    let jobs = rig.a.pool.store.declared_jobs(9).await.unwrap();
    assert!(!jobs.is_empty());
    assert!(jobs.iter().all(|job| job.job.mode == DeclareMode::CoinbaseOnly), "{jobs:?}");
    rig.stop().await;
}

// ---- without a pool, without a node ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_pool_it_is_solo_at_once_on_a_template_that_was_warm() {
    let rig = Rig::start().await;
    let witness = rig.home.witness().await;
    rig.b.set(Way::Cut);
    let since = Instant::now();
    rig.a.set(Way::Cut);
    let took = witness.took_since(since, |payee| payee == OWN_SCRIPT).await;
    assert!(took <= Duration::from_millis(250), "{took:?}");
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

/// While the node is like this, the pool's jobs are mined, and the page says why.
async fn while_the_node_is(how: u8, because: &str) {
    let rig = Rig::start().await;
    rig.node.set(how);
    rig.home.until_using(theirs(0)).await;
    rig.home.until_mined_for(0, 3).await;
    let why = rig.home.view().node_away.expect("the node is away");
    assert!(why.contains(because), "{why}");
    rig.node.set(UP);
    rig.home.until_using(own(0)).await;
    rig.home.until_mined_for(0, 3).await;
    assert_eq!(rig.home.view().node_away, None);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_node_is_dead_the_pools_own_jobs_are_mined() {
    while_the_node_is(DEAD, "is it running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_node_is_silent_the_pools_own_jobs_are_mined() {
    while_the_node_is(STALLED, "it has not answered for").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_node_is_on_another_network_the_pools_own_jobs_are_mined() {
    while_the_node_is(ELSEWHERE, "it is on signet and your settings say regtest").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_node_catches_up_the_pools_own_jobs_are_mined() {
    while_the_node_is(BEHIND, "it is still catching up with the chain, at height 120").await;
}

/// What can be away.
#[derive(Debug, Clone, Copy)]
enum Lost {
    A,
    B,
    Node,
}

impl Rig {
    fn set(&self, what: Lost, is_there: bool) {
        let way = if is_there { Way::Open } else { Way::Cut };
        match what {
            Lost::A => self.a.set(way),
            Lost::B => self.b.set(way),
            Lost::Node => self.node.set(if is_there { UP } else { DEAD }),
        }
    }
}

/// All are lost in this order, then come back in that one; the device hashes on all the while.
async fn lost_and_back(lost: [Lost; 3], back: [Lost; 3]) {
    let rig = Rig::start().await;
    for what in lost {
        rig.set(what, false);
        rig.device.until_acknowledged(2).await;
    }
    rig.home
        .until("nothing is there", |shown| {
            shown.view.using == Source::Solo && shown.view.node_away.is_some()
        })
        .await;
    rig.device.until_acknowledged(2).await;
    for what in back {
        rig.set(what, true);
        rig.device.until_acknowledged(2).await;
    }
    rig.home.until_using(own(0)).await;
    rig.home.until_mined_for(0, 3).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_then_the_node_are_lost_and_the_node_is_back_first() {
    lost_and_back([Lost::A, Lost::B, Lost::Node], [Lost::Node, Lost::B, Lost::A]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_then_the_pools_are_lost_and_the_pools_are_back_first() {
    lost_and_back([Lost::Node, Lost::A, Lost::B], [Lost::B, Lost::A, Lost::Node]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_pool_is_lost_first_and_the_first_is_back_first() {
    lost_and_back([Lost::B, Lost::Node, Lost::A], [Lost::A, Lost::Node, Lost::B]).await;
}

// ---- the start ----

/// Before there is work the doors are closed; the first of what is missing opens them.
async fn a_start_before_everything_else(first: Lost) {
    let (a, b, chain) = pools().await;
    let node = NodeWay::new(chain);
    for rig in [&a, &b] {
        rig.set(Way::Cut);
    }
    node.set(DEAD);
    let pools = vec![a.options("A"), b.options("B")];
    let home = Home::start(pools, Arc::clone(&node) as _).await;
    let tried = home.until("all are tried", |shown| {
        shown.view.node_away.is_some()
            && shown.view.pools.iter().all(|pool| pool.last_failure.is_some())
    });
    let (_, why) = tried.await.view.pools[0].last_failure.clone().unwrap();
    assert!(why.contains(&a.mining.address.to_string()), "{why}");
    for door in [home.running.sv2, home.running.sv1.unwrap()] {
        assert!(TcpStream::connect(door).await.is_err(), "a door without work behind it");
    }
    match first {
        Lost::Node => node.set(UP),
        Lost::A | Lost::B => a.set(Way::Open),
    }
    let (v2, v1) = tokio::join!(home.device("alice.bitaxe"), home.v1_device("alice.old"));
    tokio::join!(v2.until_acknowledged(2), v1.until_accepted(2));
    a.set(Way::Open);
    node.set(UP);
    home.until_using(own(0)).await;
    home.until_mined_for(0, 3).await;
    v2.stop().await;
    v1.stop().await;
    home.running.stop().await;
    for rig in [a, b] {
        rig.pool.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_before_everything_else_waits_for_the_node() {
    a_start_before_everything_else(Lost::Node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_before_everything_else_waits_for_a_pool() {
    a_start_before_everything_else(Lost::A).await;
}

// ---- the devices ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_keeps_its_connection_and_its_name_through_every_switch() {
    let rig = Rig::start().await;
    let header_only = rig.home.device_of("alice.nerd", ChannelKind::Standard).await;
    let old = rig.home.v1_device("alice.s9").await;
    let names = ["bitaxe", "nerd", "s9"];
    rig.a.until_credited(&names).await;
    rig.a.set(Way::Cut);
    rig.home.until_using(own(1)).await;
    rig.b.until_credited(&names).await;
    rig.node.set(DEAD);
    rig.home.until_using(theirs(1)).await;
    rig.b.until_credited(&names).await;
    rig.b.set(Way::Cut);
    rig.home.until_using(Source::Solo).await;
    header_only.until_acknowledged(2).await;
    old.until_accepted(2).await;
    rig.a.set(Way::Open);
    rig.node.set(UP);
    rig.home.until_using(own(0)).await;
    rig.a.until_credited(&names).await;
    let devices = rig.home.running.shown.borrow().devices.clone();
    let mut shown: Vec<_> = devices.iter().flat_map(|device| &device.channels).collect();
    shown.sort_by_key(|channel| channel.name.clone());
    assert_eq!(shown.iter().map(|channel| &*channel.name).collect::<Vec<_>>(), names);
    // Nothing that a device found was refused but what came behind a tip or was of work long gone.
    assert_eq!(old.report.refused.load(Ordering::SeqCst), 0);
    old.stop().await;
    header_only.stop().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_behind_a_port_that_says_nothing_is_passed_over() {
    // Takes connections and never says a word: the handshake is given up, the next pool used.
    let (a, b, chain) = pools().await;
    let mute = Proxy::to(a.pool.listen).await;
    mute.set(Way::BlackHole);
    let (mut first, key) = a.options("A");
    first.address = mute.address.to_string();
    let home = Home::start(vec![(first, key), b.options("B")], chain).await;
    let device = home.device("alice.bitaxe").await;
    home.until_using(own(1)).await;
    home.until_mined_for(1, 3).await;
    let named = home.until("it is named", |shown| shown.view.pools[0].last_failure.is_some());
    let (_, why) = named.await.view.pools[0].last_failure.clone().unwrap();
    assert!(why.contains("no handshake within 7 s"), "{why}");
    device.stop().await;
    home.running.stop().await;
    for rig in [a, b] {
        rig.pool.stop().await.unwrap();
    }
}
