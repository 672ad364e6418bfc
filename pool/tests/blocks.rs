//! A found block's way, with a node that can be away: on disk first, offered until somebody has it, taken
//! up again at the next start, recorded once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "builders outside a #[test] fail it just as well"
)]

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
};
use pool::block::{Blocks, BlocksHandle};
use pool::metrics::Metrics;
use pool::store::{BlockRecord, BlockState, DeclareMode, DeclaredRecord, Route, Store};
use proto::extranonce::Extranonce;
use proto::job::{HeaderFields, Job};
use proto::limits::EXTRANONCE_LEN;
use proto::mining::server::FoundBlock;
use proto::mining::{DeclaredId, Owner, Worth};
use proto::target::Target;
use proto::template::{Output, Template};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// A development chain behind a line that can be cut.
struct Line {
    chain: EmbeddedChain,
    is_cut: AtomicBool,
    offered: AtomicUsize,
    headers: Mutex<HashSet<Vec<u8>>>,
}

impl Line {
    fn new(is_cut: bool) -> Arc<Self> {
        let options = EmbeddedOptions { block_hashes: 2, ..EmbeddedOptions::default() };
        Arc::new(Self {
            chain: EmbeddedChain::new(options).unwrap(),
            is_cut: AtomicBool::new(is_cut),
            offered: AtomicUsize::new(0),
            headers: Mutex::default(),
        })
    }
}

impl Node for Line {
    fn name(&self) -> String {
        "a line that can be cut".into()
    }
    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        self.chain.chain_info()
    }
    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        self.chain.next_template(after)
    }
    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        self.offered.fetch_add(1, Ordering::SeqCst);
        self.headers.lock().unwrap().insert(block[..80].to_vec());
        if self.is_cut.load(Ordering::SeqCst) {
            return Box::pin(async { Err(NodeError::Unreachable("cut".into())) });
        }
        self.chain.submit_block(block)
    }
    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        self.chain.check_block(block)
    }
    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        self.chain.height_of(hash)
    }
}

/// A block of `alice.rig` on the chain's tip; `salt` makes it another one.
async fn found(line: &Line, salt: u8) -> FoundBlock {
    let shown = line.next_template(None).await.unwrap();
    let output = Output { sats: shown.template.coinbase_value_sats, script: vec![0x51] };
    let job = Job::new(shown.template, &[output], b"test").unwrap();
    let extranonce: Extranonce = [salt; EXTRANONCE_LEN];
    let mut header = HeaderFields {
        version: job.version(),
        prev_hash: shown.prev_hash.hash,
        merkle_root: job.merkle_root(&extranonce),
        ntime: shown.prev_hash.min_ntime,
        nbits: shown.prev_hash.nbits,
        nonce: 0,
    };
    while !Target::from_compact(header.nbits).is_met_by(&header.hash()) {
        header.nonce += 1;
    }
    let owner = Owner { account: "alice".into(), worker: "rig".into() };
    FoundBlock { hash: header.hash(), header, extranonce, job, worth: Worth::POOL_JOB, owner }
}

struct Pool {
    handle: BlocksHandle,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

fn start(folder: &Path, nodes: &[&Arc<Line>], store: &Store) -> Pool {
    let nodes = nodes.iter().map(|line| Arc::clone(line) as Arc<dyn Node>).collect();
    let blocks = Blocks::new(folder, nodes, store.clone(), Arc::new(Metrics::new())).unwrap();
    let stop = CancellationToken::new();
    let (handle, task) = blocks.spawn(stop.clone()).unwrap();
    Pool { handle, task, stop }
}

impl Pool {
    async fn stop(self) {
        self.stop.cancel();
        drop(self.handle);
        timeout(PATIENCE, self.task).await.expect("blocks do not stop").unwrap();
    }
}

impl Line {
    fn was_offered(&self, block: &[u8]) -> bool {
        self.headers.lock().unwrap().contains(&block[..80])
    }
}

fn bytes_of(block: &FoundBlock) -> Vec<u8> {
    block.job.block(&block.header, &block.extranonce).unwrap()
}

/// Waits for what must become true.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let became = timeout(PATIENCE, async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(became.await.is_ok(), "{what}");
}

async fn store(folder: &Path) -> Store {
    Store::open(&format!("sqlite://{}", folder.join("pool.sqlite").display())).await.unwrap()
}

async fn recorded(store: &Store) -> Vec<BlockRecord> {
    timeout(PATIENCE, async {
        loop {
            let blocks = store.blocks(10).await.unwrap();
            if blocks.first().is_some_and(|block| block.state != BlockState::Found) {
                return blocks;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the block is not settled")
}

fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let blocks = names.filter(|entry| entry.path().extension().is_some_and(|end| end == "block"));
    blocks.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_block_is_whole_on_disk_when_keep_returns_though_no_node_answers() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(true);
    let pool = start(folder.path(), &[&line], &store(folder.path()).await);
    let block = found(&line, 1).await;
    let bytes = block.job.block(&block.header, &block.extranonce).unwrap();
    pool.handle.keep(block, Route::Share, None).await;
    let [name] = &files(&folder.path().join("blocks"))[..] else { panic!("not one file") };
    assert_eq!(std::fs::read(folder.path().join("blocks").join(name)).unwrap(), bytes);
    pool.stop().await;
}

#[tokio::test]
async fn a_block_is_offered_until_the_node_is_back_p52() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(true);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    let block = found(&line, 1).await;
    let hash = block.hash;
    pool.handle.keep(block, Route::Share, None).await;
    while line.offered.load(Ordering::SeqCst) < 2 {
        sleep(Duration::from_millis(10)).await;
    }
    let blocks = store.blocks(10).await.unwrap();
    assert_eq!(blocks[0].state, BlockState::Found, "the store knows of it while the node is away");
    line.is_cut.store(false, Ordering::SeqCst);
    let blocks = recorded(&store).await;
    assert_eq!((blocks[0].hash, blocks[0].state), (hash, BlockState::Accepted));
    assert_eq!(line.chain_info().await.unwrap().tip, hash);
    pool.stop().await;
    assert!(files(&folder.path().join("blocks")).is_empty(), "it would be offered again");
    assert_eq!(files(&folder.path().join("blocks/settled")).len(), 1);
}

#[tokio::test]
async fn what_one_run_left_on_disk_the_next_one_offers_and_records() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(true);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    let block = found(&line, 1).await;
    let hash = block.hash;
    pool.handle.keep(block, Route::Share, None).await;
    pool.stop().await;
    assert_eq!(files(&folder.path().join("blocks")).len(), 1);

    line.is_cut.store(false, Ordering::SeqCst);
    let pool = start(folder.path(), &[&line], &store);
    let blocks = recorded(&store).await;
    assert_eq!((blocks[0].hash, blocks[0].state), (hash, BlockState::Accepted));
    assert_eq!((&*blocks[0].account, &*blocks[0].worker), ("alice", "rig"));
    assert_eq!(line.chain_info().await.unwrap().tip, hash);
    pool.stop().await;
}

#[tokio::test]
async fn one_dead_node_does_not_hold_a_block_back_from_another() {
    let folder = tempfile::tempdir().unwrap();
    let (dead, alive) = (Line::new(true), Line::new(false));
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&dead, &alive], &store);
    let block = found(&alive, 1).await;
    let hash = block.hash;
    pool.handle.keep(block, Route::Share, None).await;
    recorded(&store).await;
    assert_eq!(alive.chain_info().await.unwrap().tip, hash);
    pool.stop().await;
}

#[tokio::test]
async fn a_block_that_comes_second_is_recorded_as_stale() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(false);
    let (first, second) = (found(&line, 1).await, found(&line, 2).await);
    let other = first.job.block(&first.header, &first.extranonce).unwrap();
    assert_eq!(line.submit_block(&other).await.unwrap(), Submitted::Accepted);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    pool.handle.keep(second, Route::Share, None).await;
    assert_eq!(recorded(&store).await[0].state, BlockState::Stale);
    pool.stop().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_does_not_hold_a_block_back() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(false);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    std::fs::remove_dir_all(folder.path().join("blocks")).unwrap();
    let block = found(&line, 1).await;
    let hash = block.hash;
    pool.handle.keep(block, Route::Share, None).await;
    assert_eq!(recorded(&store).await[0].hash, hash);
    pool.stop().await;
}

#[tokio::test]
async fn a_file_that_is_no_block_is_left_alone_and_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = folder.path().join("blocks");
    std::fs::create_dir_all(&blocks).unwrap();
    std::fs::write(blocks.join("7-torn.block"), b"half a blo").unwrap();
    let line = Line::new(false);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    pool.handle.keep(found(&line, 1).await, Route::Share, None).await;
    recorded(&store).await;
    pool.stop().await;
    assert_eq!(std::fs::read(blocks.join("7-torn.block.unreadable")).unwrap(), b"half a blo");
}

#[tokio::test]
async fn a_block_that_the_store_did_not_take_stays_on_disk_for_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(false);
    let away = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &away);
    away.close().await;
    let block = found(&line, 1).await;
    let hash = block.hash;
    pool.handle.keep(block, Route::Share, None).await;
    while line.chain_info().await.unwrap().tip != hash {
        sleep(Duration::from_millis(10)).await;
    }
    pool.stop().await;
    assert_eq!(files(&folder.path().join("blocks")).len(), 1, "in no book and on no list");

    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    assert_eq!(recorded(&store).await[0].state, BlockState::Accepted);
    pool.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_take_one_nodes_refusal_for_the_silent_ones_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (refuses, silent) = (Line::new(false), Line::new(true));
    let (first, second) = (found(&refuses, 1).await, found(&refuses, 2).await);
    let other = first.job.block(&first.header, &first.extranonce).unwrap();
    assert_eq!(refuses.submit_block(&other).await.unwrap(), Submitted::Accepted);
    let pool = start(folder.path(), &[&refuses, &silent], &store(folder.path()).await);
    pool.handle.keep(second, Route::Share, None).await;
    while silent.offered.load(Ordering::SeqCst) < 1 {
        sleep(Duration::from_millis(10)).await;
    }
    pool.stop().await;
    assert_eq!(files(&folder.path().join("blocks")).len(), 1, "the silent node may still take it");
}

#[tokio::test]
async fn many_blocks_of_an_earlier_run_do_not_hold_up_a_new_one_while_the_node_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = folder.path().join("blocks");
    let line = Line::new(true);
    let mut chain = Vec::new();
    for salt in 0..101 {
        chain.push(found(&line, salt).await);
    }
    let new = chain.pop().unwrap();
    std::fs::create_dir_all(&blocks).unwrap();
    for (at, block) in chain.iter().enumerate() {
        std::fs::write(blocks.join(format!("2-{at}.block")), bytes_of(block)).unwrap();
    }
    let pool = start(folder.path(), &[&line], &store(folder.path()).await);
    let bytes = bytes_of(&new);
    timeout(PATIENCE, pool.handle.keep(new, Route::Share, None)).await.expect("its finder waits");
    until("the new block is not offered", || line.was_offered(&bytes)).await;
    assert!(line.headers.lock().unwrap().len() < 50, "all the old ones at once");

    line.is_cut.store(false, Ordering::SeqCst);
    until("old blocks are left", || files(&blocks).is_empty()).await;
    assert!(chain.iter().all(|block| line.was_offered(&bytes_of(block))));
    pool.stop().await;
}

#[tokio::test]
async fn more_new_blocks_than_are_offered_at_once_wait_on_disk_and_their_finder_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let blocks = folder.path().join("blocks");
    let line = Line::new(true);
    let pool = start(folder.path(), &[&line], &store(folder.path()).await);
    // As many as were offered and queued before a finder had to wait, and more.
    for salt in 0..140 {
        let block = found(&line, salt).await;
        timeout(PATIENCE, pool.handle.keep(block, Route::Share, None))
            .await
            .expect("its finder waits");
    }
    assert_eq!(files(&blocks).len(), 140);
    line.is_cut.store(false, Ordering::SeqCst);
    until("blocks are left", || files(&blocks).is_empty()).await;
    assert_eq!(line.headers.lock().unwrap().len(), 140);
    pool.stop().await;
}

/// As `found`, on a declared job.
async fn found_on_declared(line: &Line, salt: u8) -> FoundBlock {
    let worth = Worth { declared: Some(DeclaredId([salt; 16])), factor_ppm: 990_000 };
    FoundBlock { worth, ..found(line, salt).await }
}

#[tokio::test]
async fn a_declared_block_keeps_its_route_and_its_job_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(true);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    pool.handle.keep(found_on_declared(&line, 1).await, Route::Solution, None).await;
    pool.stop().await;

    // A node that knew it from us in the first run does not make it its miner's.
    let [name] = &files(&folder.path().join("blocks"))[..] else { panic!("not one file") };
    let block = std::fs::read(folder.path().join("blocks").join(name)).unwrap();
    line.is_cut.store(false, Ordering::SeqCst);
    assert_eq!(line.submit_block(&block).await.unwrap(), Submitted::Accepted);
    sqlx_forget(folder.path()).await;
    let store = self::store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    let blocks = recorded(&store).await;
    assert_eq!(blocks[0].state, BlockState::Accepted);
    assert_eq!((blocks[0].route, blocks[0].declared), (Route::Solution, Some(DeclaredId([1; 16]))));
    pool.stop().await;
}

/// As `found_on_declared`, by a miner who keeps his transactions to himself; and the whole block.
async fn found_on_undeclared(line: &Line, salt: u8) -> (FoundBlock, Vec<u8>, Arc<DeclaredRecord>) {
    let found = found_on_declared(line, salt).await;
    let bytes = bytes_of(&found);
    let template = Template { transactions: None, ..found.job.template().as_ref().clone() };
    let job = Job::from_parts(Arc::new(template), found.job.coinbase());
    let record = DeclaredRecord {
        id: DeclaredId([salt; 16]),
        node: 1,
        declared_at_ms: 1_700_000_000_000,
        account: "alice".into(),
        mode: DeclareMode::CoinbaseOnly,
        height: job.template().height,
        prev_hash: found.header.prev_hash,
        nbits: found.header.nbits,
        version: job.version(),
        coinbase_prefix: vec![1],
        coinbase_suffix: vec![2],
        merkle_path: job.merkle_path().to_vec(),
        transactions: None,
        value_sats: 7,
        pool_sats: 7,
        fees_sats: 0,
        reference_fees_sats: 1,
        factor_ppm: 990_000,
    };
    (FoundBlock { job, ..found }, bytes, Arc::new(record))
}

#[tokio::test]
async fn a_block_that_only_its_miner_can_send_is_looked_for_after_a_restart_too() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(false);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    let (block, bytes, job) = found_on_undeclared(&line, 1).await;
    pool.handle.keep(block, Route::Share, Some(Arc::clone(&job))).await;
    pool.stop().await;
    // As if the first run had been killed before the store knew of it.
    sqlx_forget(folder.path()).await;
    let store = self::store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    assert_eq!(line.submit_block(&bytes).await.unwrap(), Submitted::Accepted);
    let blocks = recorded(&store).await;
    assert_eq!((blocks[0].state, blocks[0].route), (BlockState::Accepted, Route::Miner));
    assert_eq!((&*blocks[0].account, blocks[0].declared), ("alice", Some(job.id)));
    let [declared] = &store.declared_jobs(9).await.unwrap()[..] else { panic!("no job") };
    assert_eq!(declared.job, *job);
    pool.stop().await;
    let left = std::fs::read_dir(folder.path().join("blocks")).unwrap();
    assert_eq!(left.filter(|entry| entry.as_ref().unwrap().path().is_file()).count(), 0);
}

#[tokio::test]
async fn blocks_that_only_their_miners_can_send_hold_up_none_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(false);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    for salt in 0..100 {
        let (block, _, job) = found_on_undeclared(&line, salt).await;
        pool.handle.keep(block, Route::Share, Some(job)).await;
    }
    let ours = found(&line, 200).await;
    let hash = ours.hash;
    pool.handle.keep(ours, Route::Share, None).await;
    let accepted = async {
        loop {
            let blocks = store.blocks(200).await.unwrap();
            let ours = blocks.into_iter().find(|block| block.hash == hash);
            if ours.is_some_and(|block| block.state == BlockState::Accepted) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, accepted).await.expect("ours waits for theirs");
    pool.stop().await;
}

/// As if the store had been away when the block was found.
async fn sqlx_forget(folder: &Path) {
    use sqlx::Connection;
    let file = format!("sqlite://{}", folder.join("pool.sqlite").display());
    let mut store = sqlx::SqliteConnection::connect(&file).await.unwrap();
    for table in ["block", "declared_job"] {
        let delete = sqlx::AssertSqlSafe(format!("DELETE FROM {table}"));
        sqlx::query(delete).execute(&mut store).await.unwrap();
    }
}

#[tokio::test]
async fn a_declared_block_that_a_node_knew_before_us_is_its_miners_and_one_of_ours_is_not() {
    for declared in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let line = Line::new(false);
        let block =
            if declared { found_on_declared(&line, 1).await } else { found(&line, 1).await };
        assert_eq!(line.submit_block(&bytes_of(&block)).await.unwrap(), Submitted::Accepted);
        let store = store(folder.path()).await;
        let pool = start(folder.path(), &[&line], &store);
        pool.handle.keep(block, Route::Share, None).await;
        let route = if declared { Route::Miner } else { Route::Share };
        assert_eq!(recorded(&store).await[0].route, route);
        pool.stop().await;
    }
}

#[tokio::test]
async fn a_block_that_comes_twice_is_on_disk_when_either_keep_returns_and_offered_once() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::new(false);
    let store = store(folder.path()).await;
    let pool = start(folder.path(), &[&line], &store);
    let block = found_on_declared(&line, 1).await;
    tokio::join!(
        pool.handle.keep(block.clone(), Route::Solution, None),
        pool.handle.keep(block.clone(), Route::Share, None),
    );
    assert_eq!(recorded(&store).await.len(), 1);
    pool.handle.keep(block, Route::Share, None).await;
    pool.stop().await;
    assert_eq!(line.offered.load(Ordering::SeqCst), 1);
    assert_eq!(store.blocks(9).await.unwrap().len(), 1);
}
