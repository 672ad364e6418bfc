//! Blocks that a device of the house finds: each way by which they come to the chain, alone; to whom they pay;
//! and that none is lost between its share and its node.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so")]

mod home;
mod session;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::hashes::Hash;
use home::proxy::Way;
use home::{Home, NodeWay, OWN_SCRIPT, PATIENCE, PoolRig, TAKES_NO_BLOCK, UP, chain, own, theirs};
use job_declarator::blocks::BlockState;
use job_declarator::node::Node;
use job_declarator::node::embedded::EmbeddedChain;
use job_declarator::upstream::Source;
use pool::store::{BlockRecord, BlockState as PoolBlockState, Route};
use proto::mining::client::ChannelKind;
use proto::mining::grind::Grinder;
use proto::wire::B032;
use session::Session;
use tokio::time::{sleep, timeout};

/// A moment's work, and more than a share that is no block has luck.
const RARE_BLOCKS: u64 = 1 << 16;
const EXTENDED: ChannelKind = ChannelKind::Extended { min_extranonce_size: 8 };

/// A pool, a house that mines for it, and a device that has not sent anything yet.
struct Rig {
    chain: Arc<EmbeddedChain>,
    pool: PoolRig,
    node: Arc<NodeWay>,
    home: Home,
    device: Session,
}

impl Rig {
    /// Of a pool that takes declared jobs, or only gives its own.
    async fn start(declares: bool) -> Self {
        let chain = chain(RARE_BLOCKS);
        let pool = PoolRig::start(&chain).await;
        let node = NodeWay::new(Arc::clone(&chain) as _);
        let (mut options, key) = pool.options("A");
        options.declare_address = options.declare_address.filter(|_| declares);
        let home = Home::start(vec![(options, key)], Arc::clone(&node) as _).await;
        home.until_using(if declares { own(0) } else { theirs(0) }).await;
        home.until_open().await;
        let mut device = Session::open(home.running.sv2, EXTENDED, "alice.bitaxe").await.unwrap();
        newest_work(&mut device).await;
        home.until("the job is promised", |shown| {
            shown.view.work.as_ref().is_some_and(|work| work.is_promised)
        })
        .await;
        Self { chain, pool, node, home, device }
    }

    /// The chain has it, and the house builds on it.
    async fn until_in_the_chain(&self, hash: [u8; 32]) {
        until_tip(&self.chain, hash).await;
        self.home
            .until("work on the block", |shown| {
                shown.view.work.as_ref().is_some_and(|work| work.tip == hash)
            })
            .await;
        assert_eq!(self.home.view().tally.blocks, 1);
    }

    /// The block came with a share: that is sent, credited and counted once.
    async fn counts_its_share_once(&self) {
        let credited = self
            .home
            .until("its share is credited", |shown| shown.view.pools[0].tally.acknowledged > 0);
        let view = credited.await.view.clone();
        assert_eq!((view.tally.shares, view.pools[0].tally.sent), (1, 1), "{view:#?}");
        assert_eq!(view.pools[0].tally.refused_in_all(), 0);
    }

    /// The pool's record of the one block, once its node has answered.
    async fn settled_at_the_pool(&self) -> BlockRecord {
        let settled = async {
            loop {
                let blocks = self.pool.pool.store.blocks(9).await.unwrap();
                assert!(blocks.len() <= 1, "{blocks:?}");
                match blocks.into_iter().next() {
                    Some(block) if block.state != PoolBlockState::Found => return block,
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(PATIENCE, settled).await.expect("the pool has no block")
    }

    async fn stop(self) {
        drop(self.device);
        self.home.running.stop().await;
        self.pool.pool.stop().await.unwrap();
    }
}

/// What the house says until it has nothing more to say.
async fn newest_work(device: &mut Session) {
    while let Ok(heard) = timeout(Duration::from_millis(200), device.hear()).await {
        heard.unwrap();
    }
}

/// A block on the work that the device has: the share that makes it, not sent, and its hash.
fn ground_block(device: &mut Session) -> (Vec<u8>, [u8; 32]) {
    let work = device.client.work().expect("a channel that is open has work");
    for rolled in 0_u64.. {
        let extranonce = [&vec![0; work.extranonce_size - 8][..], &rolled.to_be_bytes()].concat();
        let extranonce = B032::new(&extranonce).unwrap();
        let all = (0, 1 << 32);
        let mut grinder = Grinder::new(&work, extranonce, work.min_ntime, work.version, all);
        for _ in 0..1_024 {
            let Some(found) = grinder.run(1 << 20) else { break };
            let mut header = work.header(extranonce.as_slice());
            (header.version, header.nonce) = (found.version, found.nonce);
            if work.network_target().is_met_by(&header.hash()) {
                let mut frames = Vec::new();
                let sequence = device.client.submit(&work, found, &mut frames).unwrap();
                device.book.unanswered.push_back((sequence, header.hash()));
                return (frames, header.hash());
            }
        }
    }
    unreachable!("more headers than there are")
}

/// Sends the share and hears that it is good.
async fn submit(device: &mut Session, share: &[u8]) {
    device.send(share).await.unwrap();
    let answered = async {
        while device.book.acknowledged.is_empty() {
            device.hear().await.unwrap();
            assert!(device.book.refused.is_empty(), "{:?}", device.book.refused);
        }
    };
    timeout(PATIENCE, answered).await.expect("a block's share has no answer");
}

async fn until_tip(chain: &EmbeddedChain, hash: [u8; 32]) {
    let there = async {
        while chain.chain_info().await.unwrap().tip != hash {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, there).await.expect("the block is not in the chain");
}

async fn until_state(home: &Home, state: BlockState) {
    let mut newest = home.running.blocks.newest();
    let is_so = newest.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.state == state));
    timeout(PATIENCE, is_so).await.expect("the block's state does not change").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_block_comes_to_the_chain_by_the_own_node_alone() {
    let mut rig = Rig::start(true).await;
    rig.pool.set(Way::BlackHole);
    let (share, hash) = ground_block(&mut rig.device);
    submit(&mut rig.device, &share).await;
    rig.until_in_the_chain(hash).await;
    until_state(&rig.home, BlockState::Accepted).await;
    assert!(rig.pool.pool.store.blocks(9).await.unwrap().is_empty());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_block_comes_to_the_chain_by_push_solution_alone() {
    let mut rig = Rig::start(true).await;
    rig.node.set(TAKES_NO_BLOCK);
    rig.pool.mining.set(Way::BlackHole);
    let (share, hash) = ground_block(&mut rig.device);
    submit(&mut rig.device, &share).await;
    rig.until_in_the_chain(hash).await;
    let block = rig.settled_at_the_pool().await;
    assert_eq!((block.state, block.route), (PoolBlockState::Accepted, Route::Solution));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_block_comes_to_the_chain_by_its_share_alone() {
    let mut rig = Rig::start(true).await;
    rig.node.set(TAKES_NO_BLOCK);
    rig.pool.declare.set(Way::BlackHole);
    let (share, hash) = ground_block(&mut rig.device);
    submit(&mut rig.device, &share).await;
    rig.until_in_the_chain(hash).await;
    let block = rig.settled_at_the_pool().await;
    assert_eq!((block.state, block.route), (PoolBlockState::Accepted, Route::Share));
    assert_eq!((&*block.account, &*block.worker), ("alice", "bitaxe"));
    rig.counts_its_share_once().await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_on_the_pools_own_job_goes_by_its_share() {
    let mut rig = Rig::start(false).await;
    let (share, hash) = ground_block(&mut rig.device);
    submit(&mut rig.device, &share).await;
    rig.until_in_the_chain(hash).await;
    until_state(&rig.home, BlockState::WithThePool).await;
    let block = rig.settled_at_the_pool().await;
    assert_eq!((block.state, block.route), (PoolBlockState::Accepted, Route::Share));
    assert!(rig.node.offered.lock().unwrap().is_empty(), "it does not know the transactions");
    rig.counts_its_share_once().await;
    rig.stop().await;
}

// ---- solo ----

async fn solo(node: &Arc<NodeWay>, data_dir: PathBuf) -> Home {
    let node = Arc::clone(node) as Arc<dyn Node>;
    let home = Home::start_with(Vec::new(), node, |settings| settings.data_dir = data_dir).await;
    home.until("work", |shown| shown.view.work.is_some()).await;
    assert_eq!(home.view().using, Source::Solo);
    home.until_open().await;
    home
}

/// A device's block is in the chain and accepted; its hash.
async fn finds_a_block(home: &Home, chain: &EmbeddedChain) -> [u8; 32] {
    let mut device = Session::open(home.running.sv2, EXTENDED, "bitaxe").await.unwrap();
    let (share, hash) = ground_block(&mut device);
    submit(&mut device, &share).await;
    until_tip(chain, hash).await;
    until_state(home, BlockState::Accepted).await;
    hash
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_solo_block_pays_the_owner_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let chain = chain(RARE_BLOCKS);
    let node = NodeWay::new(Arc::clone(&chain) as _);
    let home = solo(&node, folder.path().join("data")).await;
    let hash = finds_a_block(&home, &chain).await;
    let seen = home.running.blocks.newest().borrow().clone().unwrap();
    assert_eq!((seen.hash, seen.height, &*seen.finder), (hash, Some(121), "bitaxe"));
    let bytes = node.offered.lock().unwrap().pop().unwrap();
    let block: bitcoin::Block = bitcoin::consensus::deserialize(&bytes).unwrap();
    let paid: Vec<_> = block.txdata[0].output.iter().filter(|out| out.value.to_sat() > 0).collect();
    assert_eq!(paid.len(), 1);
    assert_eq!(paid[0].script_pubkey.as_bytes(), OWN_SCRIPT);
    assert!(block.txdata.len() > 1, "its transactions are in it");
    home.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_on_disk_before_its_share_is_answered_and_offered_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let chain = chain(RARE_BLOCKS);
    let node = NodeWay::new(Arc::clone(&chain) as _);
    let home = solo(&node, data_dir.clone()).await;
    node.set(TAKES_NO_BLOCK);
    let mut device = Session::open(home.running.sv2, EXTENDED, "bitaxe").await.unwrap();
    let (share, hash) = ground_block(&mut device);
    submit(&mut device, &share).await;
    let [file] = &files(&data_dir.join("blocks"))[..] else { panic!("not one file") };
    let bytes = std::fs::read(file).unwrap();
    let block: bitcoin::Block = bitcoin::consensus::deserialize(&bytes).unwrap();
    assert_eq!(block.block_hash().to_byte_array(), hash);
    until_state(&home, BlockState::OnItsWay).await;
    home.running.stop().await;
    assert_ne!(chain.chain_info().await.unwrap().tip, hash);

    node.set(UP);
    let home = solo(&node, data_dir.clone()).await;
    until_tip(&chain, hash).await;
    let settled = async {
        while !files(&data_dir.join("blocks")).is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, settled).await.expect("it would be offered for ever");
    assert_eq!(files(&data_dir.join("blocks/settled")).len(), 1);
    home.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_the_disk_does_not_take_is_offered_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let chain = chain(RARE_BLOCKS);
    let node = NodeWay::new(Arc::clone(&chain) as _);
    let home = solo(&node, data_dir.clone()).await;
    node.set(TAKES_NO_BLOCK);
    std::fs::remove_dir_all(data_dir.join("blocks")).unwrap();
    let mut device = Session::open(home.running.sv2, EXTENDED, "bitaxe").await.unwrap();
    let (share, hash) = ground_block(&mut device);
    submit(&mut device, &share).await;
    until_state(&home, BlockState::OnItsWay).await;
    node.set(UP);
    until_tip(&chain, hash).await;
    until_state(&home, BlockState::Accepted).await;
    home.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_block_in_the_folder_holds_up_none_that_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    std::fs::create_dir_all(data_dir.join("blocks/9-a-folder.block")).unwrap();
    std::fs::write(data_dir.join("blocks/7-torn.block"), b"half a blo").unwrap();
    std::fs::write(data_dir.join("blocks/8-unfinished.block.part"), b"half a blo").unwrap();
    let chain = chain(RARE_BLOCKS);
    let node = NodeWay::new(Arc::clone(&chain) as _);
    let home = solo(&node, data_dir.clone()).await;
    finds_a_block(&home, &chain).await;
    home.running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_on_an_old_block_holds_up_no_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let hangs = data_dir.join("blocks/9-hangs.block");
    std::fs::create_dir_all(data_dir.join("blocks")).unwrap();
    // Whoever opens one waits until somebody writes to it.
    assert!(std::process::Command::new("mkfifo").arg(&hangs).status().unwrap().success());
    let chain = chain(RARE_BLOCKS);
    let node = NodeWay::new(Arc::clone(&chain) as _);
    let home = solo(&node, data_dir.clone()).await;
    finds_a_block(&home, &chain).await;
    timeout(PATIENCE, home.running.stop()).await.expect("it waits for the disk");
    // Lets the threads of this test go that wait.
    drop(std::fs::File::options().read(true).write(true).open(&hangs).unwrap());
}
