//! Job declaration over real links against a whole pool on a development chain: a declarator of ours
//! declares, mines and finds blocks by each route; and whoever attacks is told no while it goes on.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "builders outside a #[test] fail it just as well"
)]

mod declarator;
mod session;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use declarator::{Declarator, ELSEWHERE, OwnJob, Wire, setup, spend, unseen, with_transactions};
use job_declarator::limits::SUPPLIED_STRIPPED_MAX;
use job_declarator::node::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
};
use pool::board::ConnectionSnapshot;
use pool::config::{Config, NodeKind};
use pool::limits::AHEAD_WAIT_MAX;
use pool::run::{self, Running};
use pool::store::{BlockRecord, BlockState, DeclareMode, Route};
use proto::limits::{DECLARER_TOKENS_BURST, EXTRANONCE_LEN, PAST_JOBS_MAX};
use proto::message::{AllocateMiningJobToken, Message, Protocol, SetCustomMiningJob, setup_flags};
use proto::template::{Output, Template};
use proto::wire::{B064K, B0255, Seq0255U256, Str0255};
use session::{PATIENCE, link};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// A pool that takes declared jobs, on a chain with a block every so many hashes.
struct Rig {
    pool: Running,
    _folder: TempDir,
}

/// More hashes than any test makes.
const NO_BLOCKS: u64 = 1_000_000_000;
/// A share of the tests' difficulty takes 256: most are blocks.
const MANY_BLOCKS: u64 = 64;
/// A moment's work, and more than a header that is no block has luck.
const RARE_BLOCKS: u64 = 65_536;

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
    config.embedded.tx_count = 24;
    config
}

impl Rig {
    async fn start(block_hashes: u64) -> Self {
        Self::start_with(block_hashes, |_| {}).await
    }

    async fn start_with(block_hashes: u64, change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path(), block_hashes);
        change(&mut config);
        let pool = run::start(&config, &CancellationToken::new()).await.unwrap();
        Self { pool, _folder: folder }
    }

    /// With a node whose verdicts are as the test says.
    async fn start_behind(verdicts: Arc<AtomicU8>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), NO_BLOCKS);
        let front = |node| Arc::new(Front { node, verdicts }) as Arc<dyn Node>;
        let stop = CancellationToken::new();
        let pool = run::start_behind(&config, &stop, front).await.unwrap();
        Self { pool, _folder: folder }
    }

    async fn stop(self) {
        self.pool.stop().await.unwrap();
    }

    /// The one block that was found, once a node has answered for it.
    async fn settled_block(&self) -> BlockRecord {
        let settled = async {
            loop {
                let blocks = self.pool.store.blocks(9).await.unwrap();
                if let [block] = &blocks[..]
                    && block.state != BlockState::Found
                {
                    return block.clone();
                }
                assert!(blocks.len() <= 1, "{blocks:?}");
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, settled).await.expect("no block is settled")
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.pool.metrics.render();
        let prefix = format!("{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }
}

/// The node, which gives its verdicts on blocks or does not.
struct Front {
    node: Arc<dyn Node>,
    verdicts: Arc<AtomicU8>,
}

const GIVEN: u8 = 0;
const AWAY: u8 = 1;
const BROKEN: u8 = 2;
/// Two seconds late: longer than a household may keep a node busy.
const SLOW: u8 = 3;

impl Node for Front {
    fn name(&self) -> String {
        self.node.name()
    }
    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        self.node.chain_info()
    }
    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        self.node.next_template(after)
    }
    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        self.node.submit_block(block)
    }
    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        match self.verdicts.load(Ordering::SeqCst) {
            GIVEN => self.node.check_block(block),
            AWAY => Box::pin(async { Err(NodeError::Unreachable("away".into())) }),
            SLOW => Box::pin(async {
                sleep(Duration::from_secs(2)).await;
                self.node.check_block(block).await
            }),
            _ => panic!("as a bug would"),
        }
    }
    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        self.node.height_of(hash)
    }
}

// ---- the way of a declared job ----

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_job_is_mined_and_its_shares_are_credited_by_what_it_pays_p64() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.rig").await;
    let (job, id) = alice.set_up(&rig.pool, 2).await;
    assert_eq!(alice.asked, [24, 25], "what the pool has is not asked for");
    for _ in 0..3 {
        alice.mine_one(&job, id).await;
    }
    let account = rig.pool.store.account("alice").await.unwrap().unwrap();
    assert_eq!((account.shares, &*account.workers[0].worker), (3, "rig"));
    let jobs = rig.pool.store.declared_jobs(9).await.unwrap();
    let [declared] = &jobs[..] else { panic!("{jobs:?}") };
    assert_eq!((declared.shares, &*declared.job.account), (3, "alice"));
    assert_eq!(declared.job.mode, DeclareMode::FullTemplate);
    assert_eq!(declared.job.transactions, Some(26));
    assert_eq!(declared.job.pool_sats, job.template.coinbase_value_sats);
    // Two more transactions than ours: a little more than ours, and no more than five percent of fees.
    let ours = job.shown.template.coinbase_value_sats;
    let subsidy = ours - declared.job.reference_fees_sats;
    let most = declared.job.reference_fees_sats * 105 / 100;
    let counted = subsidy + declared.job.fees_sats.min(most);
    let factor = (u128::from(counted) * 1_000_000 / u128::from(ours)) as u32;
    assert_eq!(declared.job.factor_ppm, factor);
    assert!(account.credit >= account.work, "{} of {}", account.credit, account.work);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_declarer_of_the_same_transactions_is_asked_for_none() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let mut bob = Declarator::open(&rig.pool, "bob").await;
    alice.set_up(&rig.pool, 3).await;
    assert_eq!(alice.asked.len(), 3);
    let (job, id) = bob.set_up(&rig.pool, 3).await;
    assert!(bob.asked.is_empty(), "{:?}", bob.asked);
    bob.mine_one(&job, id).await;
    // And of those, one by one: his fourth alone is new.
    let (job, id) = bob.set_up(&rig.pool, 4).await;
    assert_eq!(bob.asked, [27]);
    bob.mine_one(&job, id).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_holds_no_room_once_no_share_can_name_it() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let mut held = Vec::new();
    // Each is measured while those before are mined.
    for _ in 0..PAST_JOBS_MAX + 4 {
        alice.set_up(&rig.pool, 0).await;
        held.push(rig.metric("pool_declare_approved_bytes"));
    }
    let full = &held[PAST_JOBS_MAX..];
    assert!(held[PAST_JOBS_MAX - 1] < full[1], "{held:?}");
    // The first had the list to itself.
    assert!(full[1] >= full[2] && full[2] >= full[3], "{held:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_are_declared_at_the_same_time_are_held_once() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut declarators = Vec::new();
    let mut jobs = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        let mut declarator = Declarator::open(&rig.pool, name).await;
        let allocated = declarator.allocate().await;
        jobs.push((OwnJob::new(&rig.pool, &[], &allocated.script).await, allocated));
        declarators.push(declarator);
    }
    let mut asked = Vec::new();
    for (declarator, (job, allocated)) in declarators.iter_mut().zip(&jobs) {
        asked.push(declarator.say_declaration(&allocated.token, job).await);
    }
    for (declarator, request_id) in declarators.iter_mut().zip(asked) {
        let verdict = declarator.finish_declaration(request_id, |_| panic!("nothing is missing"));
        verdict.await.unwrap();
    }
    // Two more of the same, one by one, show what a job takes beside its list.
    let (job, _) = &jobs[0];
    let mut held = Vec::new();
    for _ in 0..2 {
        let allocated = declarators[0].allocate().await;
        declarators[0].declare(&allocated.token, job).await.unwrap();
        held.push(rig.metric("pool_declare_approved_bytes"));
    }
    let alone = held[1] - held[0];
    // Where each lies, and its place in the library.
    let list = (job.template.known_transactions().len() * 56) as f64;
    // And what it takes to tell that it is one.
    assert!(held[0] <= 7.0 * alone + list + 256.0, "{held:?}, a list of {list}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_approved_is_not_in_the_library_js10() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let allocated = alice.allocate().await;
    let shown = rig.pool.node.next_template(None).await.unwrap();
    let mut extra = unseen(&shown.template, 1);
    // It spends the same coin a second time, which only the node can see.
    extra.push(spend(&last_of(&shown.template), 999));
    let job = OwnJob::of(shown, &extra, &allocated.script);
    for _ in 0..2 {
        let (code, details) = alice.declare(&allocated.token, &job).await.unwrap_err();
        // The miner's node may be on another tip of this height, which has the coin.
        assert_eq!(code, "stale-chain-tip");
        assert!(details.contains("missingorspent"), "{details}");
        assert_eq!(alice.asked, [24, 25], "asked for again: it was not kept");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_verdict_costs_a_declarer_his_job_and_not_his_token_nor_his_link() {
    let verdicts = Arc::new(AtomicU8::new(GIVEN));
    let rig = Rig::start_behind(Arc::clone(&verdicts)).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let allocated = alice.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    for (state, says) in [(AWAY, "the node does not answer"), (BROKEN, "the check failed")] {
        verdicts.store(state, Ordering::SeqCst);
        let refused = alice.declare(&allocated.token, &job).await.unwrap_err();
        // What SRI's declarator goes on after.
        assert_eq!(refused, ("stale-chain-tip".to_owned(), says.to_owned()));
    }
    assert_eq!(rig.metric("pool_declarations_total{verdict=\"internal-error\"}"), 2.0);
    verdicts.store(GIVEN, Ordering::SeqCst);
    let token = alice.declare(&allocated.token, &job).await.unwrap();
    let id = alice.set_custom(&token, &job).await.unwrap();
    alice.mine_one(&job, id).await;
    // What the node took once it need not be asked for again.
    verdicts.store(AWAY, Ordering::SeqCst);
    let allocated = alice.allocate().await;
    alice.declare(&allocated.token, &job).await.unwrap();
    rig.stop().await;
}

fn last_of(template: &Template) -> bitcoin::Transaction {
    bitcoin::consensus::deserialize(template.known_transactions().last().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_its_account_and_for_one_job_and_only_success_uses_it_up() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.one").await;
    let mut thief = Declarator::open(&rig.pool, "mallory").await;
    let allocated = alice.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    let token = alice.declare(&allocated.token, &job).await.unwrap();
    assert_ne!(token, allocated.token);
    let again = alice.declare(&allocated.token, &job).await.unwrap_err();
    assert_eq!(again.0, "invalid-mining-job-token", "it was used up by its job");
    let stolen = thief.set_custom(&token, &job).await.unwrap_err();
    assert_eq!(stolen, "invalid-mining-job-token");
    // What is refused leaves the token: another job than declared, then the declared one.
    let mut other = job.clone();
    other.built.coinbase.lock_time = 1;
    let refused = alice.set_custom(&token, &other).await.unwrap_err();
    assert_eq!(refused, "invalid-coinbase-tx-locktime");
    let id = alice.set_custom(&token, &job).await.unwrap();
    assert_eq!(alice.set_custom(&token, &job).await.unwrap_err(), "invalid-mining-job-token");
    alice.mine_one(&job, id).await;

    // The thief's connection has it in its history, with the reason.
    let history = async {
        loop {
            let rows = rig.pool.board.read().await.unwrap();
            let is_thiefs = |row: &ConnectionSnapshot| {
                row.channels.iter().any(|channel| &*channel.account == "mallory")
            };
            let row = rows.iter().find(|row| is_thiefs(row));
            let jobs = row.and_then(|row| row.custom_jobs.clone()).unwrap_or_default();
            if let [refusal] = &jobs.refusals[..] {
                return (jobs.refused.clone(), refusal.clone());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let (counts, refusal) = timeout(PATIENCE, history).await.expect("no history");
    assert_eq!((counts["invalid-mining-job-token"], refusal.code), (1, "invalid-mining-job-token"));
    assert_eq!(refusal.reason, "the token of another account");
    assert_eq!(rig.metric("pool_custom_jobs_total{verdict=\"invalid-mining-job-token\"}"), 2.0);
    assert_eq!(rig.metric("pool_custom_jobs_total{verdict=\"accepted\"}"), 1.0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coinbase_only_job_earns_the_subsidy_and_is_refused_where_full_templates_are_asked_for() {
    for allowed in [true, false] {
        let rig = Rig::start_with(NO_BLOCKS, |config| config.declare.coinbase_only = allowed).await;
        let mut alice = Declarator::open(&rig.pool, "alice").await;
        let allocated = alice.allocate().await;
        let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
        let set = alice.set_custom(&allocated.token, &job).await;
        if !allowed {
            assert_eq!(set.unwrap_err(), "job-not-yet-validated");
            let mut keeps = Wire(link(rig.pool.declare.unwrap()).await.unwrap());
            keeps.send(setup(Protocol::JobDeclaration, 0)).await;
            let code = keeps.hear(|message| match message {
                Message::SetupConnectionError(error) => Some(error.error_code.printable()),
                _ => None,
            });
            assert_eq!(code.await, "missing-declare-tx-data-flag");
            rig.stop().await;
            continue;
        }
        alice.mine_one(&job, set.unwrap()).await;
        let jobs = rig.pool.store.declared_jobs(9).await.unwrap();
        assert_eq!((jobs[0].job.mode, jobs[0].job.transactions), (DeclareMode::CoinbaseOnly, None));
        assert!(jobs[0].job.fees_sats > 0 && jobs[0].job.factor_ppm < 1_000_000);
        let account = rig.pool.store.account("alice").await.unwrap().unwrap();
        assert!(account.credit < account.work);
        rig.stop().await;
    }
}

// ---- blocks, each by one route with the others cut ----

#[tokio::test(flavor = "multi_thread")]
async fn a_block_comes_by_the_share_alone_p52() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.rig").await;
    let (job, id) = alice.set_up(&rig.pool, 2).await;
    let (header, extranonce) = alice.grind(&job, true);
    // A block that misses its share's difficulty is sent all the same.
    let _ = alice.submit(id, &header, &extranonce).await;
    let block = rig.settled_block().await;
    assert_eq!((block.state, block.route), (BlockState::Accepted, Route::Share));
    assert_eq!((&*block.account, &*block.worker), ("alice", "rig"));
    assert_eq!(rig.pool.node.height_of(&header.hash()).await.unwrap(), Some(block.height));
    let job = rig.pool.store.declared_jobs(9).await.unwrap();
    assert_eq!(block.declared, Some(job[0].job.id));
    assert_eq!(rig.metric("pool_blocks_by_route_total{route=\"share\"}"), 1.0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_comes_by_push_solution_alone_also_for_an_older_job_js7() {
    let rig = Rig::start(RARE_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.rig").await;
    let (first, _) = alice.set_up(&rig.pool, 2).await;
    alice.set_up(&rig.pool, 3).await;
    let (mut header, extranonce) = alice.grind(&first, true);
    // What does not meet the target, or is of no job of his, is nothing.
    header.nonce = header.nonce.wrapping_add(1);
    alice.push_solution(&header, &extranonce).await;
    header.nonce = header.nonce.wrapping_sub(1);
    alice.push_solution(&header, &[7; EXTRANONCE_LEN]).await;
    alice.push_solution(&header, &extranonce[1..]).await;
    alice.allocate().await;
    assert!(rig.pool.store.blocks(9).await.unwrap().is_empty());
    alice.push_solution(&header, &extranonce).await;
    let block = rig.settled_block().await;
    assert_eq!((block.state, block.route), (BlockState::Accepted, Route::Solution));
    assert_eq!((block.hash, &*block.account), (header.hash(), "alice"));
    assert_eq!(rig.pool.node.height_of(&header.hash()).await.unwrap(), Some(block.height));
    let [declared] = &rig.pool.store.declared_jobs(9).await.unwrap()[..] else { panic!() };
    assert_eq!((block.declared, declared.shares), (Some(declared.job.id), 0));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_the_miners_own_node_brought_is_known_as_his() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.rig").await;
    let (job, id) = alice.set_up(&rig.pool, 2).await;
    let (header, extranonce) = alice.grind(&job, true);
    let block = job.block(&header, &extranonce);
    assert_eq!(rig.pool.node.submit_block(&block).await.unwrap(), Submitted::Accepted);
    alice.push_solution(&header, &extranonce).await;
    let _ = alice.submit(id, &header, &extranonce).await;
    let block = rig.settled_block().await;
    assert_eq!((block.state, block.route), (BlockState::Accepted, Route::Miner));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_by_two_routes_is_kept_once() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.rig").await;
    let (job, id) = alice.set_up(&rig.pool, 2).await;
    let (header, extranonce) = alice.grind(&job, true);
    alice.push_solution(&header, &extranonce).await;
    let _ = alice.submit(id, &header, &extranonce).await;
    let block = rig.settled_block().await;
    assert_eq!(block.state, BlockState::Accepted);
    assert_ne!(block.route, Route::Miner, "nobody but us has it");
    assert_eq!(rig.metric("pool_blocks_total{state=\"found\"}"), 1.0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coinbase_only_block_is_noted_as_its_miners() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice.rig").await;
    let allocated = alice.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    let id = alice.set_custom(&allocated.token, &job).await.unwrap();
    let (header, extranonce) = alice.grind(&job, true);
    let _ = alice.submit(id, &header, &extranonce).await;
    let block = job.block(&header, &extranonce);
    assert_eq!(rig.pool.node.submit_block(&block).await.unwrap(), Submitted::Accepted);
    let block = rig.settled_block().await;
    assert_eq!((block.state, block.route), (BlockState::Accepted, Route::Miner));
    rig.stop().await;
}

// ---- tips ----

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_tip_that_is_gone_is_stale_and_leaves_its_token() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let (allocated, other) = (alice.allocate().await, alice.allocate().await);
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    let token = alice.declare(&allocated.token, &job).await.unwrap();
    next_block(&rig, &mut alice, &job).await;
    assert_eq!(alice.set_custom(&token, &job).await.unwrap_err(), "stale-chain-tip");
    let (code, _) = alice.declare(&other.token, &job).await.unwrap_err();
    assert_eq!(code, "stale-chain-tip");
    // The token of the refused declaration is good for the next tip's.
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    let token = alice.declare(&other.token, &job).await.unwrap();
    let id = alice.set_custom(&token, &job).await.unwrap();
    alice.mine_one(&job, id).await;
    rig.stop().await;
}

/// Another's block on the job's tip, and the pool's templates on it.
async fn next_block(rig: &Rig, miner: &mut Declarator, job: &OwnJob) {
    let (header, extranonce) = miner.grind(job, true);
    let block = job.block(&header, &extranonce);
    assert_eq!(rig.pool.node.submit_block(&block).await.unwrap(), Submitted::Accepted);
    let mut templates = rig.pool.templates.clone();
    let moved = templates.wait_for(|published| published.active.tip.hash == header.hash());
    timeout(PATIENCE, moved).await.expect("the pool stays on the old tip").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declaration_one_block_ahead_of_our_node_is_held_until_it_follows() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let allocated = alice.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    // The job of the block after, which nobody can know but whose coinbase says so.
    let ahead = one_ahead(&job, &allocated.script);
    let request_id = alice.say_declaration(&allocated.token, &ahead).await;
    sleep(Duration::from_millis(200)).await;
    let (header, extranonce) = alice.grind(&job, true);
    let block = job.block(&header, &extranonce);
    assert_eq!(rig.pool.node.submit_block(&block).await.unwrap(), Submitted::Accepted);
    let verdict = alice.finish_declaration(request_id, |_| panic!("nothing is missing")).await;
    verdict.expect("it was on the tip that our node came to");
    // Two ahead is no race.
    let allocated = alice.allocate().await;
    let mut far = ahead.clone();
    far.built.coinbase.script_sig_prefix[1] += 2;
    let began = Instant::now();
    assert_eq!(alice.declare(&allocated.token, &far).await.unwrap_err().0, "stale-chain-tip");
    assert!(began.elapsed() < Duration::from_secs(3), "it was held");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeclared_job_one_block_ahead_of_our_node_is_held_until_it_follows_or_four_seconds() {
    let rig = Rig::start(MANY_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let allocated = alice.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    let (header, extranonce) = alice.grind(&job, true);
    let block = job.block(&header, &extranonce);
    // What her node has mined on since: our node's next template, as it will be.
    let mut ahead = one_ahead(&job, &allocated.script);
    ahead.shown.prev_hash.hash = header.hash();
    let node = Arc::clone(&rig.pool.node);
    let follows = async {
        sleep(Duration::from_millis(300)).await;
        assert_eq!(node.submit_block(&block).await.unwrap(), Submitted::Accepted);
    };
    let (set, ()) = tokio::join!(alice.set_custom(&allocated.token, &ahead), follows);
    set.expect("our node came to its tip");
    // Of a tip that nobody comes to.
    let allocated = alice.allocate().await;
    ahead.shown.prev_hash.hash = [7; 32];
    let began = Instant::now();
    let refused = alice.set_custom(&allocated.token, &ahead).await.unwrap_err();
    assert_eq!(refused, "stale-chain-tip");
    assert!(began.elapsed() >= AHEAD_WAIT_MAX, "it was not held");
    rig.stop().await;
}

/// An empty block's job, one above `job`'s; its tip is still that one's.
fn one_ahead(job: &OwnJob, script: &[u8]) -> OwnJob {
    let height = job.template.height + 1;
    let sats = job.template.coinbase_value_sats - fees_of(job);
    let template = Template {
        height,
        script_sig_prefix: bitcoin::script::Builder::new().push_int(i64::from(height)).into_bytes(),
        coinbase_value_sats: sats,
        transactions: Some(Default::default()),
        merkle_path: Vec::new(),
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        commits_to_witnesses: false,
        ..job.template.clone()
    };
    OwnJob::paying(template, job.shown.clone(), vec![Output { sats, script: script.to_vec() }])
}

fn fees_of(job: &OwnJob) -> u64 {
    let height = job.template.height;
    let subsidy = job_declarator::node::subsidy_sats(height, bitcoin::Network::Regtest);
    job.template.coinbase_value_sats - subsidy
}

// ---- attacks, beside an honest declarer ----

/// How the honest one is served while others attack: from a token to a credited share.
async fn honest_is_served(rig: &Rig, honest: &mut Declarator) {
    let served = async {
        let (job, id) = honest.set_up(&rig.pool, 1).await;
        honest.mine_one(&job, id).await;
    };
    timeout(Duration::from_secs(20), served).await.expect("the honest declarer waits");
}

/// An attack, and the honest one beside it, who lives elsewhere: served once before it begins, over and over
/// while it goes on, and once when it is over. What an attack leaves is less than a megabyte.
async fn beside_an_honest_one(rig: &Rig, attack: impl Future<Output = ()>) {
    let mut honest = Declarator::open_from(ELSEWHERE, &rig.pool, "alice").await;
    honest_is_served(rig, &mut honest).await;
    let is_over = AtomicBool::new(false);
    let attacks = async {
        attack.await;
        is_over.store(true, Ordering::SeqCst);
    };
    let serves = async {
        // As often as he may declare without waiting for his own pace.
        for _ in 0..12 {
            if is_over.load(Ordering::SeqCst) {
                break;
            }
            honest_is_served(rig, &mut honest).await;
        }
    };
    tokio::join!(attacks, serves);
    honest_is_served(rig, &mut honest).await;
    let held = rig.metric("pool_declare_approved_bytes");
    assert!(held < 1_000_000.0, "{held} bytes are held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coinbase_that_pays_the_pool_one_satoshi_less_is_refused_js4() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let allocated = mallory.allocate().await;
        let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
        let value = job.template.coinbase_value_sats;
        let to_pool = |sats| Output { sats, script: allocated.script.clone() };
        let to_self = |sats| Output { sats, script: vec![0x51] };
        for outputs in [
            vec![to_pool(value - 1), to_self(1)],
            vec![to_self(value)],
            vec![to_pool(0), to_self(value)],
        ] {
            let short = OwnJob::paying(job.template.clone(), job.shown.clone(), outputs);
            let (code, _) = mallory.declare(&allocated.token, &short).await.unwrap_err();
            assert_eq!(code, "invalid-coinbase-tx-outputs");
            let undeclared = mallory.set_custom(&allocated.token, &short).await.unwrap_err();
            assert_eq!(undeclared, "invalid-coinbase-tx-outputs");
        }
        // More than there is: the node knows the fees.
        let template = Template { coinbase_value_sats: value + 1, ..job.template.clone() };
        let rich = OwnJob::paying(template, job.shown.clone(), vec![to_pool(value + 1)]);
        let (code, details) = mallory.declare(&allocated.token, &rich).await.unwrap_err();
        assert_eq!(code, "invalid-job");
        assert!(details.contains("bad-cb-amount"), "{details}");
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_coinbases_and_wrong_commitments_are_refused_and_stop_nobody() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        let job = OwnJob::new(&rig.pool, &[], &token.script).await;
        let parts = job.built.declared_parts();
        let wtxids = job.built.wtxids.clone().unwrap();
        let mut prefixes: Vec<Vec<u8>> =
            [0, 1, 5, 41, 42, 43, 44].map(|length| parts.prefix[..length].to_vec()).to_vec();
        prefixes.push(vec![0xff; 65_535]);
        prefixes.push([&parts.prefix[..], &[0; 80]].concat());
        for prefix in &prefixes {
            let id = mallory.request();
            mallory.say_raw_declaration(id, &token.token, prefix, &parts.suffix, &wtxids).await;
            let refused = mallory.finish_declaration(id, |_| Vec::new()).await.unwrap_err();
            assert!(refused.0.starts_with("invalid-coinbase-tx"), "{refused:?}");
        }
        for suffix in [Vec::new(), vec![0; 4], vec![0xff; 65_535], parts.suffix[1..].to_vec()] {
            let id = mallory.request();
            mallory.say_raw_declaration(id, &token.token, &parts.prefix, &suffix, &wtxids).await;
            let refused = mallory.finish_declaration(id, |_| Vec::new()).await.unwrap_err();
            assert!(refused.0.starts_with("invalid-coinbase-tx"), "{refused:?}");
        }
        let mut other = job.clone();
        other.built.wtxids = Some(wtxids[1..].to_vec());
        let (code, details) = mallory.declare(&token.token, &other).await.unwrap_err();
        assert_eq!(code, "invalid-coinbase-tx", "{details}");
        assert!(details.contains("commitment"), "{details}");
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_five_thousand_unknown_or_equal_wtxids_cost_little_and_are_refused() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        let job = OwnJob::new(&rig.pool, &[], &token.script).await;
        let parts = job.built.declared_parts();
        let unknown = |count: u32| -> Vec<[u8; 32]> {
            let wtxid = |number: u32| {
                let mut wtxid = [7; 32];
                wtxid[..4].copy_from_slice(&number.to_le_bytes());
                wtxid
            };
            (0..count).map(wtxid).collect()
        };
        let one = job.built.wtxids.clone().unwrap()[0];
        for wtxids in [unknown(65_535), vec![one; 65_535], vec![one; 2], unknown(16_000)] {
            let began = Instant::now();
            let id = mallory.request();
            mallory
                .say_raw_declaration(id, &token.token, &parts.prefix, &parts.suffix, &wtxids)
                .await;
            let refused = mallory.finish_declaration(id, |_| Vec::new()).await.unwrap_err();
            assert!(["invalid-job", "invalid-coinbase-tx"].contains(&&*refused.0), "{refused:?}");
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_are_not_those_asked_for_are_refused_js5() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        let shown = rig.pool.node.next_template(None).await.unwrap();
        // Others than the honest one's, which the pool comes to know.
        let first = spend(&last_of(&shown.template), 801);
        let extra = [spend(&first, 802)];
        let extra = [&[first], &extra[..]].concat();
        let job = OwnJob::of(shown, &extra, &token.script);
        let known = job.template.known_transactions();
        let (first, second) = (known[24].to_vec(), known[25].to_vec());
        for provided in [
            vec![second.clone(), first.clone()],
            vec![first.clone(), first.clone()],
            vec![first.clone(), vec![0xff; 300]],
            vec![first.clone(), Vec::new()],
        ] {
            let id = mallory.say_declaration(&token.token, &job).await;
            let give = |asked: &[u16]| {
                assert_eq!(asked, [24, 25]);
                provided.clone()
            };
            let (code, _) = mallory.finish_declaration(id, give).await.unwrap_err();
            assert_eq!(code, "missing-txs");
        }
        mallory.declare(&token.token, &job).await.expect("the token is still good");
        // Of a number that was not asked for, or when nothing was asked: the protocol is broken.
        let token = mallory.allocate().await;
        mallory.say_declaration(&token.token, &job).await;
        mallory.provide(999, &[first]).await;
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_a_node_would_take_long_over_is_refused_js10() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        for (surplus, is_refused) in [(1, true), (0, false)] {
            let shown = rig.pool.node.next_template(None).await.unwrap();
            let mut long = unseen(&shown.template, 1).remove(0);
            let note = |bytes: usize| bitcoin::TxOut {
                value: bitcoin::Amount::ZERO,
                script_pubkey: bitcoin::ScriptBuf::from_bytes(vec![0x6a; bytes]),
            };
            long.output.push(note(90_000));
            let rest = SUPPLIED_STRIPPED_MAX as usize - long.base_size();
            long.output[1] = note(90_000 + rest + surplus);
            assert_eq!(long.base_size(), SUPPLIED_STRIPPED_MAX as usize + surplus);
            let job = OwnJob::of(shown, &[long], &token.script);
            let told = mallory.declare(&token.token, &job).await;
            assert_eq!(told.is_err(), is_refused, "{told:?}");
            if let Err((code, details)) = told {
                assert_eq!(code, "invalid-job");
                assert!(details.contains("100001 bytes"), "{details}");
            }
        }
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn double_spends_inside_are_refused_and_stop_nobody() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        let shown = rig.pool.node.next_template(None).await.unwrap();
        let last = last_of(&shown.template);
        let job = OwnJob::of(shown, &[spend(&last, 900), spend(&last, 901)], &token.script);
        for _ in 0..3 {
            let (_, details) = mallory.declare(&token.token, &job).await.unwrap_err();
            assert!(details.contains("missingorspent"), "{details}");
        }
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_sends_what_he_was_asked_for_holds_up_nobody() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut silent = Vec::new();
    for number in 0..12 {
        let mut mallory = Declarator::open(&rig.pool, &format!("mallory{number}")).await;
        let token = mallory.allocate().await;
        let shown = rig.pool.node.next_template(None).await.unwrap();
        let extra = unseen(&shown.template, 3 + number);
        let job = OwnJob::of(shown, &extra, &token.script);
        mallory.say_declaration(&token.token, &job).await;
        silent.push(mallory);
    }
    // At home the turns are taken; what the pool has all of needs none.
    let mut neighbour = Declarator::open(&rig.pool, "bob").await;
    let (job, id) = neighbour.set_up(&rig.pool, 0).await;
    neighbour.mine_one(&job, id).await;
    // Who lives elsewhere is asked for what he alone has.
    let mut honest = Declarator::open_from(ELSEWHERE, &rig.pool, "alice").await;
    honest_is_served(&rig, &mut honest).await;
    assert_eq!(honest.asked, [24]);
    drop(silent);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_the_node_busy_rests_and_nobody_else_though_he_hangs_up() {
    let verdicts = Arc::new(AtomicU8::new(GIVEN));
    let rig = Rig::start_behind(Arc::clone(&verdicts)).await;
    let mut mallory = Declarator::open(&rig.pool, "mallory").await;
    let token = mallory.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &token.script).await;
    verdicts.store(SLOW, Ordering::SeqCst);
    mallory.say_declaration(&token.token, &job).await;
    while rig.metric("pool_declaration_check_seconds_count") < 1.0 {
        sleep(Duration::from_millis(10)).await;
    }
    // It is with the node by then, or is about to be.
    sleep(Duration::from_millis(500)).await;
    drop(mallory);
    // The node is at it for two seconds, and his household has its one turn again after eighteen more.
    sleep(Duration::from_secs(2)).await;
    verdicts.store(GIVEN, Ordering::SeqCst);
    let mut again = Declarator::open(&rig.pool, "mallory").await;
    let token = again.allocate().await;
    let shown = rig.pool.node.next_template(None).await.unwrap();
    let job = OwnJob::of(shown.clone(), &[spend(&last_of(&shown.template), 800)], &token.script);
    let declared = again.declare(&token.token, &job);
    let mut honest = Declarator::open_from(ELSEWHERE, &rig.pool, "alice").await;
    let served = async {
        honest_is_served(&rig, &mut honest).await;
        sleep(Duration::from_secs(3)).await;
    };
    tokio::select! {
        biased;
        told = declared => panic!("he has the node again at once: {told:?}"),
        () = served => {}
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_tokens_and_declarations_is_slowed_and_others_are_served() {
    let rig = Rig::start(NO_BLOCKS).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        let job = OwnJob::new(&rig.pool, &[], &token.script).await;
        let mut told = Vec::new();
        let parts = job.built.declared_parts();
        let wtxids = job.built.wtxids.clone().unwrap();
        for _ in 0..60 {
            let id = mallory.request();
            // A token that nobody has.
            mallory.say_raw_declaration(id, &[9; 16], &parts.prefix, &parts.suffix, &wtxids).await;
            told.push(mallory.finish_declaration(id, |_| Vec::new()).await.unwrap_err());
        }
        // Requests for tokens, which nobody may be refused: his first are answered, the others wait or are let
        // fall, and his link goes on.
        for request_id in 1_000..2_000 {
            let user_identifier = Str0255::text("mallory");
            mallory.declare.send(AllocateMiningJobToken { user_identifier, request_id }).await;
        }
        let first = mallory.declare.hear(|message| match message {
            Message::AllocateMiningJobTokenSuccess(success) => Some(success.request_id),
            _ => None,
        });
        assert!((1_000..1_000 + DECLARER_TOKENS_BURST as u32).contains(&first.await));
        assert!(rig.metric("pool_declare_tokens") < 100.0);
        let too_fast = ("stale-chain-tip".to_owned(), "asked for too fast".to_owned());
        let too_fast = told.iter().filter(|answer| **answer == too_fast).count();
        assert!(too_fast > 0, "{told:?}");
        let counted = rig.metric("pool_declarations_total{verdict=\"too-many-declarations\"}");
        assert_eq!(counted, too_fast as f64, "under the name that it has here, not on the wire");
        assert!(told.iter().any(|(code, _)| code == "invalid-mining-job-token"), "{told:?}");
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_heavy_a_block_is_refused_js10() {
    let rig = Rig::start_with(NO_BLOCKS, |config| config.embedded.tx_count = 4_000).await;
    let attack = async {
        let mut mallory = Declarator::open(&rig.pool, "mallory").await;
        let token = mallory.allocate().await;
        let shown = rig.pool.node.next_template(None).await.unwrap();
        let mut template = Template::clone(&shown.template);
        let mut transactions = template.transactions.as_deref().unwrap().clone();
        // Some 620 bytes of 4 weight units each, 1,000 of them: two and a half million more.
        let mut previous = last_of(&template);
        for _ in 0..1_000 {
            previous = spend(&previous, 1);
            let script = bitcoin::ScriptBuf::from_bytes(vec![0x6a; 520]);
            previous
                .output
                .push(bitcoin::TxOut { value: bitcoin::Amount::ZERO, script_pubkey: script });
            transactions.push(bitcoin::consensus::serialize(&previous).into());
        }
        with_transactions(&mut template, transactions);
        let outputs =
            vec![Output { sats: template.coinbase_value_sats, script: token.script.clone() }];
        let job = OwnJob::paying(template, shown, outputs);
        let (code, details) = mallory.declare(&token.token, &job).await.unwrap_err();
        assert_eq!(code, "invalid-job");
        assert!(details.contains("weight"), "{details}");
    };
    beside_an_honest_one(&rig, attack).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mining_client_that_did_not_say_that_it_selects_work_sets_no_job_p60() {
    let rig = Rig::start(NO_BLOCKS).await;
    let mut alice = Declarator::open(&rig.pool, "alice").await;
    let allocated = alice.allocate().await;
    let job = OwnJob::new(&rig.pool, &[], &allocated.script).await;
    let token = alice.declare(&allocated.token, &job).await.unwrap();
    let mut plain = Wire::open(rig.pool.listen, Protocol::Mining, 0).await;
    let coinbase = &job.built.coinbase;
    plain
        .send(SetCustomMiningJob {
            channel_id: 2,
            request_id: 5,
            mining_job_token: B0255::new(&token).unwrap(),
            version: job.built.version,
            prev_hash: job.shown.prev_hash.hash,
            min_ntime: job.shown.prev_hash.min_ntime,
            nbits: job.shown.prev_hash.nbits,
            coinbase_tx_version: coinbase.version,
            coinbase_prefix: B0255::new(&coinbase.script_sig_prefix).unwrap(),
            coinbase_tx_input_sequence: coinbase.sequence,
            coinbase_tx_outputs: B064K::new(&coinbase.outputs).unwrap(),
            coinbase_tx_locktime: coinbase.lock_time,
            merkle_path: Seq0255U256::new(&job.built.merkle_path).unwrap(),
        })
        .await;
    let code = plain.hear(|message| match message {
        Message::SetCustomMiningJobError(error) => Some(error.error_code.printable()),
        _ => None,
    });
    assert_eq!(code.await, "jd-not-supported");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_jobs_are_declared_there_is_no_port_and_work_selection_is_refused() {
    let rig = Rig::start_with(NO_BLOCKS, |config| config.declare.enabled = false).await;
    assert_eq!(rig.pool.declare, None);
    let mut wire = Wire(link(rig.pool.listen).await.unwrap());
    wire.send(setup(Protocol::Mining, setup_flags::REQUIRES_WORK_SELECTION)).await;
    let flags = wire.hear(|message| match message {
        Message::SetupConnectionError(error) => Some(error.flags),
        _ => None,
    });
    assert_eq!(flags.await, setup_flags::REQUIRES_WORK_SELECTION);
    rig.stop().await;
}
