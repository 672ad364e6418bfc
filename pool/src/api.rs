//! The loopback HTTP port: metrics for Prometheus, health for whoever restarts us, JSON for people's
//! pages. Started by `run.rs`; reads the board, the store and what the node said last.
//!
//! Must never change anything, wait longer than a second, answer without a bound on its rows, or speak
//! HTML. It asks for no password, so it belongs on a loopback address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use job_declarator::http::{self, Problem, in_slot, in_time};
use job_declarator::limits::{PAGE_TIME_MAX, PAGES_MAX};
use job_declarator::rate::HashRates;
use proto::target::Target;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::board::{BoardHandle, ConnectionSnapshot, DeclarerSnapshot, JobRow, VerdictRow};
use crate::credit::FailingSince;
use crate::limits::{
    BLOCK_ROWS_MAX, CHANNEL_ROWS_MAX, CONNECTION_ROWS_MAX, CREDIT_FAILING_MAX, DECLARED_ROWS_MAX,
    DECLARER_ROWS_MAX, NODE_SIGN_OF_LIFE_EVERY, NODE_SILENCE_MAX, STORE_PAGES_MAX, WORKER_ROWS_MAX,
};
use crate::metrics::Metrics;
use crate::store::{BlockRecord, DeclaredTotals, Route, Store, StoreError, Totals, WorkerTotals};

/// How often the histograms' samples are folded when nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What the pages are made from.
pub struct Sources {
    /// Told at start, true until the end.
    pub facts: Facts,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Who is connected.
    pub board: BoardHandle,
    /// What is credited.
    pub store: Store,
    /// What the node said last; `None` until it answers for the first time.
    pub node: watch::Receiver<Option<NodeView>>,
    /// Whether credit can be written; closed when the ledger has ended.
    pub ledger: watch::Receiver<FailingSince>,
}

/// What does not change while the pool runs.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Of the program.
    pub version: &'static str,
    /// Text in the coinbase.
    pub tag: String,
    /// What miners pin.
    pub authority_public_key: String,
    /// Where miners connect, as configured or, for port 0, as bound.
    pub listen: SocketAddr,
    /// Where declarers connect; absent where no jobs are declared.
    pub declare: Option<SocketAddr>,
    /// Unix seconds.
    pub started_at: u64,
}

/// What the node said last. Published at each good answer; a quiet node is asked for a sign of life
/// well within `NODE_SILENCE_MAX`, or the pool counts as not ready.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// The node's name, without credentials.
    pub name: String,
    /// "main", "test", "testnet4", "signet", "regtest".
    pub network: String,
    /// Of the block being mined.
    pub height: u32,
    /// The tip, header byte order.
    pub prev_hash: [u8; 32],
    /// Compact target of the block being mined.
    pub nbits: u32,
    /// Subsidy and fees.
    pub coinbase_value_sats: u64,
    /// In the template, without the coinbase.
    pub transactions: usize,
    /// When this was heard.
    pub answered_at: Instant,
}

/// GET /api/v1/pool
#[derive(Debug, Serialize)]
struct PoolPage<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    connections: usize,
    channels: usize,
    /// Hashes per second of all channels.
    hash_rate: HashRates,
    /// Absent until the node has answered.
    work: Option<WorkPage>,
    /// Since the store was made.
    totals: TotalsPage,
}

/// What is being mined.
#[derive(Debug, Serialize)]
struct WorkPage {
    node: String,
    network: String,
    height: u32,
    /// As people write it: most significant byte first.
    prev_hash: String,
    network_difficulty: f64,
    coinbase_value_sats: u64,
    transactions: usize,
    /// Since the node's last good answer.
    node_answer_age_s: u64,
}

#[derive(Debug, Serialize)]
struct TotalsPage {
    shares: u64,
    /// Expected hashes, decimal.
    work: String,
    /// What of that was credited, decimal.
    credit: String,
    accounts: u64,
    workers: u64,
    blocks_found: u64,
    blocks_accepted: u64,
}

/// GET /api/v1/channels
#[derive(Debug, Serialize)]
struct ChannelsPage<'a> {
    /// Of all connections, listed or not.
    connections_total: usize,
    /// Of all connections, listed or not.
    channels_total: usize,
    connections: Vec<&'a ConnectionSnapshot>,
}

/// GET /api/v1/blocks
#[derive(Debug, Serialize)]
struct BlocksPage {
    blocks: Vec<BlockRow>,
}

#[derive(Debug, Serialize)]
struct BlockRow {
    height: u32,
    hash: String,
    prev_hash: String,
    found_at_ms: u64,
    account: String,
    worker: String,
    value_sats: u64,
    difficulty: f64,
    /// found, accepted, stale, rejected, confirmed.
    state: &'static str,
    /// What a node said.
    detail: String,
    /// By which way it came first: share, solution, miner.
    route: &'static str,
    /// The declared job that it was found on, as /api/v1/declared names it.
    declared_job: Option<String>,
}

/// GET /api/v1/workers
#[derive(Debug, Serialize)]
struct WorkersPage {
    /// Of all workers, listed or not.
    workers_total: u64,
    workers: Vec<WorkerRow>,
}

#[derive(Debug, Serialize)]
struct WorkerRow {
    account: String,
    worker: String,
    shares: u64,
    /// Expected hashes, decimal.
    work: String,
    /// What of that was credited, decimal.
    credit: String,
    last_share_at_ms: u64,
    /// Of its best share ever.
    best_difficulty: f64,
}

/// GET /api/v1/declared
#[derive(Debug, Serialize)]
struct DeclaredPage<'a> {
    /// Of all declarers, listed or not.
    declarers_total: usize,
    declarers: Vec<&'a DeclarerSnapshot>,
    /// What checks came to, the newest first.
    verdicts: Vec<&'a VerdictRow>,
    /// Jobs that shares were credited on, the newest first.
    jobs: Vec<DeclaredRow>,
    /// Blocks that nodes took, since the store was made.
    blocks_by_route: Vec<RouteRow>,
}

#[derive(Debug, Serialize)]
struct DeclaredRow {
    declared_at_ms: u64,
    account: String,
    /// full-template, coinbase-only.
    mode: &'static str,
    prev_hash: String,
    /// Absent in coinbase-only mode.
    transactions: Option<u32>,
    shares: u64,
    #[serde(flatten)]
    job: JobRow,
}

#[derive(Debug, Serialize)]
struct RouteRow {
    /// share, solution, miner.
    route: &'static str,
    blocks: u64,
    /// Of these, found on declared jobs.
    on_declared_jobs: u64,
}

/// GET /health/ready
#[derive(Debug, Serialize)]
struct ReadyPage {
    ready: bool,
    /// "ok" or what is wrong.
    node: String,
    /// "ok" or what is wrong.
    store: String,
    /// "ok" or what is wrong.
    ledger: String,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) {
    let metrics = Arc::clone(&sources.metrics);
    let upkeep = async {
        let mut upkeep = interval(UPKEEP_INTERVAL);
        loop {
            upkeep.tick().await;
            metrics.upkeep();
        }
    };
    tokio::select! {
        () = http::serve(listener, router(sources), stop) => {}
        never = upkeep => never,
    }
}

/// All pages, for `serve` and for tests without a socket.
pub fn router(sources: Sources) -> Router {
    let (slots, turns) = (Semaphore::new(PAGES_MAX), Semaphore::new(STORE_PAGES_MAX));
    let (slots, turns) = (Arc::new(slots), Arc::new(turns));
    Router::new()
        .route("/api/v1/pool", get(pool_page))
        .route("/api/v1/blocks", get(blocks_page))
        .route("/api/v1/workers", get(workers_page))
        .route("/api/v1/declared", get(declared_page))
        .route_layer(middleware::from_fn(move |page, next| in_turn(turns.clone(), page, next)))
        .route("/api/v1/channels", get(channels_page))
        .route("/metrics", get(metrics_page))
        .route_layer(middleware::from_fn(move |page, next| in_slot(slots.clone(), page, next)))
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(ready_page))
        .fallback(|| async { Problem(StatusCode::NOT_FOUND, "no such page").into_response() })
        .layer(middleware::from_fn(in_time))
        .with_state(Arc::new(sources))
}

/// One of the few that read the store now; the others wait.
async fn in_turn(turns: Arc<Semaphore>, page: Request, next: Next) -> Response {
    let _turn = turns.acquire().await;
    next.run(page).await
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        // Its words may name tables and hosts: for the log, not for the page.
        warn!(%error, "the store did not answer a page");
        Self(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer")
    }
}

impl From<crate::board::BoardEnded> for Problem {
    fn from(_: crate::board::BoardEnded) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, "the pool is going down")
    }
}

type Shared = State<Arc<Sources>>;

async fn metrics_page(State(sources): Shared) -> impl IntoResponse {
    if let Some(node) = sources.node.borrow().as_ref() {
        sources.metrics.template_is_aged(node.answered_at.elapsed().as_secs_f64());
    }
    let failing = sources.ledger.borrow().map_or(0.0, |since| since.elapsed().as_secs_f64());
    sources.metrics.store_is_failing_for(failing);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], sources.metrics.render())
}

async fn ready_page(State(sources): Shared) -> impl IntoResponse {
    let silence = sources.node.borrow().as_ref().map(|node| node.answered_at.elapsed());
    let node = match silence {
        None => Err("has not answered yet".to_owned()),
        Some(silence) if silence > NODE_SILENCE_MAX => {
            Err(format!("silent for {} s", silence.as_secs()))
        }
        Some(_) => Ok(()),
    };
    let quiet = silence.filter(|silence| *silence > NODE_SIGN_OF_LIFE_EVERY + PAGE_TIME_MAX);
    // Short of the whole second, so that a store that hangs is named and not only "too long".
    let store = match timeout(PAGE_TIME_MAX * 3 / 4, sources.store.ping()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            warn!(%error, "the store is not ready");
            Err("does not answer".to_owned())
        }
        Err(_) => Err("too slow".to_owned()),
    };
    let ledger = ledger_state(&sources.ledger);
    let ready = node.is_ok() && store.is_ok() && ledger.is_ok();
    let word = |state: Result<(), String>| state.err().unwrap_or_else(|| "ok".to_owned());
    let node = match quiet {
        Some(silence) if node.is_ok() => format!("no answer for {} s", silence.as_secs()),
        _ => word(node),
    };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ReadyPage { ready, node, store: word(store), ledger: word(ledger) }))
}

fn ledger_state(ledger: &watch::Receiver<FailingSince>) -> Result<(), String> {
    if ledger.has_changed().is_err() {
        return Err("has ended".to_owned());
    }
    match ledger.borrow().map(|since| since.elapsed()) {
        Some(away) if away >= CREDIT_FAILING_MAX => {
            let seconds = away.as_secs();
            Err(format!("the store has refused credit for {seconds} s; shares wait for it"))
        }
        Some(_) | None => Ok(()),
    }
}

async fn pool_page(State(sources): Shared) -> Result<Response, Problem> {
    let rows = sources.board.read().await?;
    let totals = totals_page(sources.store.totals().await?);
    let channels = || rows.iter().flat_map(|row| &row.channels);
    let page = PoolPage {
        facts: &sources.facts,
        connections: rows.len(),
        channels: channels().count(),
        hash_rate: HashRates::sum(channels().map(|channel| channel.hash_rate)),
        work: sources.node.borrow().as_ref().map(work_page),
        totals,
    };
    Ok(Json(page).into_response())
}

fn work_page(node: &NodeView) -> WorkPage {
    WorkPage {
        node: node.name.clone(),
        network: node.network.clone(),
        height: node.height,
        prev_hash: people_read(node.prev_hash),
        network_difficulty: Target::from_compact(node.nbits).difficulty_for_display(),
        coinbase_value_sats: node.coinbase_value_sats,
        transactions: node.transactions,
        node_answer_age_s: node.answered_at.elapsed().as_secs(),
    }
}

fn totals_page(totals: Totals) -> TotalsPage {
    TotalsPage {
        shares: totals.shares,
        work: totals.work.to_string(),
        credit: totals.credit.to_string(),
        accounts: totals.accounts,
        workers: totals.workers,
        blocks_found: totals.blocks_found,
        blocks_accepted: totals.blocks_accepted,
    }
}

async fn channels_page(State(sources): Shared) -> Result<Response, Problem> {
    let rows = sources.board.read().await?;
    let channels_total = rows.iter().map(|row| row.channels.len()).sum();
    // A connection is listed whole or not at all.
    let mut channels_left = CHANNEL_ROWS_MAX;
    let fits = |row: &&ConnectionSnapshot| {
        let left = channels_left.checked_sub(row.channels.len());
        channels_left = left.unwrap_or(channels_left);
        left.is_some()
    };
    let connections =
        rows.iter().map(AsRef::as_ref).filter(fits).take(CONNECTION_ROWS_MAX).collect();
    let page = ChannelsPage { connections_total: rows.len(), channels_total, connections };
    Ok(Json(page).into_response())
}

async fn blocks_page(State(sources): Shared) -> Result<Json<BlocksPage>, Problem> {
    let blocks = sources.store.blocks(BLOCK_ROWS_MAX).await?;
    Ok(Json(BlocksPage { blocks: blocks.into_iter().map(block_row).collect() }))
}

fn block_row(block: BlockRecord) -> BlockRow {
    BlockRow {
        height: block.height,
        hash: people_read(block.hash),
        prev_hash: people_read(block.prev_hash),
        found_at_ms: block.found_at_ms,
        difficulty: block.difficulty_for_display(),
        account: block.account,
        worker: block.worker,
        value_sats: block.value_sats,
        state: block.state.as_str(),
        detail: block.detail,
        route: block.route.as_str(),
        declared_job: block.declared.map(|id| hex::encode(id.0)),
    }
}

async fn workers_page(State(sources): Shared) -> Result<Json<WorkersPage>, Problem> {
    let workers = sources.store.workers(WORKER_ROWS_MAX).await?;
    let workers_total = sources.store.totals().await?.workers;
    Ok(Json(WorkersPage { workers_total, workers: workers.into_iter().map(worker_row).collect() }))
}

fn worker_row(worker: WorkerTotals) -> WorkerRow {
    WorkerRow {
        account: worker.account,
        worker: worker.worker,
        shares: worker.shares,
        work: worker.work.to_string(),
        credit: worker.credit.to_string(),
        last_share_at_ms: worker.last_share_at_ms,
        best_difficulty: Target::from_le_bytes(worker.best_hash).difficulty_for_display(),
    }
}

async fn declared_page(State(sources): Shared) -> Result<Response, Problem> {
    let shown = sources.board.read_declared().await?;
    let jobs = sources.store.declared_jobs(DECLARED_ROWS_MAX).await?;
    let by_route = sources.store.blocks_by_route().await?;
    let declarers = shown.declarers.iter().map(AsRef::as_ref);
    let page = DeclaredPage {
        declarers_total: shown.declarers.len(),
        declarers: declarers.take(DECLARER_ROWS_MAX).collect(),
        verdicts: shown.verdicts.iter().map(AsRef::as_ref).collect(),
        jobs: jobs.into_iter().map(declared_row).collect(),
        blocks_by_route: by_route.into_iter().map(route_row).collect(),
    };
    Ok(Json(page).into_response())
}

fn declared_row(DeclaredTotals { job, shares }: DeclaredTotals) -> DeclaredRow {
    DeclaredRow {
        declared_at_ms: job.declared_at_ms,
        mode: job.mode.as_str(),
        prev_hash: people_read(job.prev_hash),
        transactions: job.transactions,
        shares,
        job: JobRow::of(&job),
        account: job.account,
    }
}

fn route_row((route, blocks, on_declared_jobs): (Route, u64, u64)) -> RouteRow {
    RouteRow { route: route.as_str(), blocks, on_declared_jobs }
}

/// A hash as people write it.
fn people_read(mut hash: [u8; 32]) -> String {
    hash.reverse();
    hex::encode(hash)
}
