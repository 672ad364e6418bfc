//! A found block: to disk with fsync before anything else, then to every node until one has it, then
//! into the store. Called by `miner` with the share still unanswered, and by `declarer` with a pushed
//! solution; `run` has it take up at start what an earlier run left on disk.
//!
//! A block of a declared job comes by up to three routes: the miner's own node, PushSolution, the share.
//! The first wins and is written down; the same block by another is not kept twice.
//!
//! Must never lose a block to a crash, a full disk, a node that is away or a database that is down:
//! each step goes on when another fails.

mod files;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use job_declarator::node::{Node, NodeError, Submitted};
use proto::mining::server::FoundBlock;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::files::OnDisk;
pub use self::files::read_kept;
use crate::limits::{
    BLOCKS_REMEMBERED, BLOCKS_UNDER_WAY_MAX, BLOCKS_WAITING_MAX, NODE_RETRY_FIRST, NODE_RETRY_MAX,
    THEIR_BLOCK_LOOKS_MAX, WAITING_BLOCKS_AT_ONCE,
};
use crate::metrics::Metrics;
use crate::store::{BlockRecord, BlockState, DeclaredRecord, Route, Store, StoreError};
use crate::templates::hex_of;

/// Where connections hand in blocks. A clone leads to the same place.
#[derive(Clone)]
pub struct BlocksHandle {
    dir: PathBuf,
    queue: mpsc::Sender<Kept>,
    metrics: Arc<Metrics>,
    /// The newest blocks by hash, each kept once.
    kept: Arc<Mutex<VecDeque<KeptOnce>>>,
}

type KeptOnce = ([u8; 32], Arc<OnceCell<()>>);

/// Takes blocks to the nodes and records what became of them.
pub struct Blocks {
    dir: PathBuf,
    nodes: Vec<Arc<dyn Node>>,
    store: Store,
    metrics: Arc<Metrics>,
}

/// A block on its way to the nodes.
struct Kept {
    block: OnDisk,
    /// `None` if the disk refused it.
    file: Option<PathBuf>,
    /// It was found in this run and by now only its miner may have shown it to a node.
    is_new: bool,
}

/// What the nodes made of a block.
struct Offered {
    outcome: Submitted,
    /// They knew it before we offered it for the first time.
    was_known: bool,
}

/// Which blocks are seen to now and which wait on disk for their turn. Those that only their miners can send
/// are looked for, for minutes each, so that they have places of their own.
struct Turns {
    ours: Lane,
    miners: Lane,
}

struct Lane {
    new_places: Arc<Semaphore>,
    old_places: Arc<Semaphore>,
    /// The oldest first.
    waiting: VecDeque<PathBuf>,
}

impl Blocks {
    /// Blocks kept under `data_dir/blocks`, offered to all of `nodes`.
    pub fn new(
        data_dir: &Path,
        nodes: Vec<Arc<dyn Node>>,
        store: Store,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let dir = data_dir.join("blocks");
        fs::create_dir_all(dir.join("settled"))?;
        Ok(Self { dir, nodes, store, metrics })
    }

    /// Starts the task; blocks that an earlier run did not settle are its first work. It ends when
    /// every handle is gone and all blocks are settled, or soon after `shutdown`: what is not settled
    /// then lies on disk for the next start.
    pub fn spawn(
        self,
        shutdown: CancellationToken,
    ) -> io::Result<(BlocksHandle, tokio::task::JoinHandle<()>)> {
        let (ours, miners) = files::unsettled(&self.dir)?;
        let turns = Turns { ours: Lane::new(ours), miners: Lane::new(miners) };
        let (queue, kept) = mpsc::channel(BLOCKS_UNDER_WAY_MAX);
        let handle = BlocksHandle {
            dir: self.dir.clone(),
            queue,
            metrics: Arc::clone(&self.metrics),
            kept: Arc::default(),
        };
        let task = tokio::spawn(Arc::new(self).run(turns, kept, shutdown));
        Ok((handle, task))
    }

    async fn run(
        self: Arc<Self>,
        mut turns: Turns,
        mut kept: mpsc::Receiver<Kept>,
        shutdown: CancellationToken,
    ) {
        let mut under_way = JoinSet::new();
        loop {
            // A waiting block has places of its own, so that however many there are, and however long
            // a node is away, a new one is offered at once.
            for (file, place) in turns.due(&shutdown) {
                under_way.spawn(Arc::clone(&self).take_up(file, place, shutdown.clone()));
            }
            tokio::select! {
                Some(_) = under_way.join_next() => {}
                block = kept.recv() => match block {
                    None => break,
                    Some(block) => {
                        let Some((block, place)) = turns.place_for_new(block).await else { continue };
                        under_way.spawn(Arc::clone(&self).settle(block, place, shutdown.clone()));
                    }
                },
            }
        }
        while under_way.join_next().await.is_some() {}
    }

    /// Offers a block that has waited on disk.
    async fn take_up(
        self: Arc<Self>,
        file: PathBuf,
        place: OwnedSemaphorePermit,
        shutdown: CancellationToken,
    ) {
        let read = tokio::task::spawn_blocking(move || {
            let block = files::read(&file)?;
            Ok(block.map(|block| Kept { block, file: Some(file), is_new: false }))
        });
        let read: Result<io::Result<Option<Kept>>, _> = read.await;
        match read {
            Ok(Ok(Some(kept))) => {
                info!(hash = %hex_of(&kept.block.record.hash), "block from the disk, taken up again");
                self.settle(kept, place, shutdown).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => warn!(%error, "block on disk not read; the next start tries again"),
            Err(panic) => error!(%panic, "block on disk not read; the next start tries again"),
        }
    }

    /// Nodes first, bookkeeping after.
    async fn settle(
        self: Arc<Self>,
        kept: Kept,
        _place: OwnedSemaphorePermit,
        shutdown: CancellationToken,
    ) {
        let Kept { mut block, mut file, is_new } = kept;
        // The nodes do not wait for the store, nor the store for a node that is away.
        let (offered, _) = tokio::join!(
            self.settled(&block, &mut file, &shutdown),
            self.record(&block.record, block.job.as_ref(), &shutdown),
        );
        let Some(Offered { outcome, was_known }) = offered else {
            let hash = hex_of(&block.record.hash);
            match (&file, &block.bytes) {
                (Some(_), _) => warn!(%hash, "block not settled before the stop; kept on disk"),
                // The log is the last place left.
                (None, Some(bytes)) => {
                    error!(%hash, block = hex::encode(bytes), "block neither settled nor on disk: submit it by hand")
                }
                (None, None) => warn!(%hash, "its miner's block is not in our node's chain yet"),
            }
            return;
        };
        if was_known && is_new && block.record.declared.is_some() {
            block.record.route = Route::Miner;
        }
        self.note(&mut block.record, outcome);
        // What the store does not know yet stays on disk for the next start.
        if !self.record(&block.record, block.job.as_ref(), &shutdown).await {
            return;
        }
        let Some(file) = file else { return };
        let (dir, name) = (self.dir.clone(), file.clone());
        let moved = tokio::task::spawn_blocking(move || files::move_to_settled(&dir, &name)).await;
        if let Err(error) = moved.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            warn!(%error, file = %file.display(), "settled block not moved; it will be taken up again");
        }
    }

    /// Says what became of a block, and puts it into its record.
    fn note(&self, record: &mut BlockRecord, outcome: Submitted) {
        (record.state, record.detail) = match outcome {
            Submitted::Accepted | Submitted::AlreadyKnown => (BlockState::Accepted, String::new()),
            Submitted::Stale => (BlockState::Stale, String::new()),
            Submitted::Rejected(why) => (BlockState::Rejected, why),
        };
        let hash = hex_of(&record.hash);
        let BlockRecord { height, account, worker, value_sats, state, detail, route, .. } = record;
        match state {
            BlockState::Accepted => {
                let route = route.as_str();
                info!(height, %hash, account, worker, sats = value_sats, route, "block accepted");
                self.metrics.block_came_by(record.route);
            }
            BlockState::Stale => warn!(height, %hash, account, "block came second"),
            BlockState::Rejected => {
                error!(height, %hash, why = detail, "node rejects our block");
            }
            BlockState::Found | BlockState::Confirmed => {}
        }
        self.metrics.block_became(record.state.as_str());
    }

    /// What the nodes make of a block that is ours to offer, or of one that its miner has to.
    async fn settled(
        &self,
        block: &OnDisk,
        file: &mut Option<PathBuf>,
        shutdown: &CancellationToken,
    ) -> Option<Offered> {
        match &block.bytes {
            Some(bytes) => self.offer(bytes, block, file, shutdown).await,
            None => self.look_for(&block.record, shutdown).await,
        }
    }

    /// Whether the block of a miner who has its transactions alone came to a node of ours. `None` if the
    /// pool stops before that is known.
    async fn look_for(
        &self,
        record: &BlockRecord,
        shutdown: &CancellationToken,
    ) -> Option<Offered> {
        let mut pause = NODE_RETRY_FIRST;
        let mut looks = 0;
        while looks < THEIR_BLOCK_LOOKS_MAX {
            let mut all_answered = true;
            for node in &self.nodes {
                match node.height_of(&record.hash).await {
                    Ok(Some(_)) => {
                        let outcome = Submitted::AlreadyKnown;
                        return Some(Offered { outcome, was_known: true });
                    }
                    Ok(None) => {}
                    // A node that is away has not been looked at.
                    Err(_) => all_answered = false,
                }
            }
            looks += usize::from(all_answered);
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(NODE_RETRY_MAX),
            }
        }
        Some(Offered { outcome: Submitted::Stale, was_known: false })
    }

    /// Offers the block to every node, over and over, until one has it or all refuse it. `None` if the
    /// pool stops before that.
    async fn offer(
        &self,
        bytes: &[u8],
        block: &OnDisk,
        file: &mut Option<PathBuf>,
        shutdown: &CancellationToken,
    ) -> Option<Offered> {
        let mut pause = NODE_RETRY_FIRST;
        // From the second time on a node may know the block of us.
        let mut was_offered = false;
        loop {
            let (mut refused, mut silent, mut taken, mut known) = (None, false, false, false);
            for (node, answer) in self.ask_all(bytes).await {
                match answer {
                    Ok(Submitted::Accepted) => taken = true,
                    Ok(Submitted::AlreadyKnown) => known = true,
                    Ok(no @ (Submitted::Stale | Submitted::Rejected(_))) => refused = Some(no),
                    Err(error) => {
                        silent = true;
                        warn!(node, hash = %hex_of(&block.record.hash), %error, "block not taken yet");
                    }
                }
            }
            if taken || known {
                let was_known = known && !taken && !was_offered;
                return Some(Offered { outcome: Submitted::Accepted, was_known });
            }
            was_offered = true;
            // A disk that was full or read-only may have room by now.
            if file.is_none() {
                *file = write_apart(self.dir.clone(), block.clone()).await.0.ok();
            }
            // One node's refusal counts only when no other may still take the block.
            if refused.is_some() && !silent {
                return refused.map(|outcome| Offered { outcome, was_known: false });
            }
            tokio::select! {
                // A refusal that stands here has a silent node beside it.
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(NODE_RETRY_MAX),
            }
        }
    }

    async fn ask_all(&self, bytes: &[u8]) -> Vec<(String, Result<Submitted, NodeError>)> {
        let mut asked = JoinSet::new();
        let bytes: Arc<[u8]> = bytes.into();
        for node in &self.nodes {
            let (node, bytes) = (Arc::clone(node), Arc::clone(&bytes));
            asked.spawn(async move { (node.name(), node.submit_block(&bytes).await) });
        }
        asked.join_all().await
    }

    /// Has the store know the block in the state that it is in, however long the store is away. `false`
    /// if the pool stops before.
    async fn record(
        &self,
        record: &BlockRecord,
        job: Option<&DeclaredRecord>,
        shutdown: &CancellationToken,
    ) -> bool {
        let mut pause = NODE_RETRY_FIRST;
        while let Err(error) = self.try_record(record, job).await {
            warn!(hash = %hex_of(&record.hash), %error, "block not recorded yet");
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(NODE_RETRY_MAX),
            }
        }
        true
    }

    async fn try_record(
        &self,
        record: &BlockRecord,
        job: Option<&DeclaredRecord>,
    ) -> Result<(), StoreError> {
        self.store.record_block(record).await?;
        if let Some(job) = job {
            self.store.record_declared(job).await?;
        }
        match record.state {
            BlockState::Found => Ok(()),
            settled @ (BlockState::Accepted
            | BlockState::Stale
            | BlockState::Rejected
            | BlockState::Confirmed) => {
                let BlockRecord { hash, route, detail, .. } = record;
                self.store.set_block_state(*hash, settled, *route, detail).await
            }
        }
    }
}

impl BlocksHandle {
    /// Keeps a block that came by this route: on disk with fsync when this returns, and on its way to the
    /// nodes. A disk that refuses does not hold it back. The same block by another route is kept once, and
    /// both return when it is. `job` is the declared job that it was found on.
    pub async fn keep(&self, found: FoundBlock, route: Route, job: Option<Arc<DeclaredRecord>>) {
        let once = self.once(found.hash);
        once.get_or_init(|| self.keep_new(found, route, job)).await;
    }

    fn once(&self, hash: [u8; 32]) -> Arc<OnceCell<()>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, once)) = kept.iter().find(|(known, _)| *known == hash) {
            return Arc::clone(once);
        }
        if kept.len() >= BLOCKS_REMEMBERED {
            kept.pop_front();
        }
        let once = Arc::new(OnceCell::new());
        kept.push_back((hash, Arc::clone(&once)));
        once
    }

    async fn keep_new(&self, found: FoundBlock, route: Route, job: Option<Arc<DeclaredRecord>>) {
        let bytes = found.job.block(&found.header, &found.extranonce);
        // What only its miner can send can have come by no other way.
        let route = if bytes.is_some() { route } else { Route::Miner };
        let record = record_of(&found, route);
        info!(
            height = record.height,
            hash = %hex_of(&record.hash),
            account = record.account,
            worker = record.worker,
            route = route.as_str(),
            declared = record.declared.is_some(),
            "block found"
        );
        self.metrics.block_became(BlockState::Found.as_str());
        let job = job.map(|job| DeclaredRecord::clone(&job));
        let again = (record.clone(), job.clone());
        let (written, block) = write_apart(self.dir.clone(), OnDisk { record, bytes, job }).await;
        let file = written.inspect_err(|error| {
            let dir = self.dir.display();
            error!(%error, %dir, "block not on disk; offered all the same");
        });
        // Where the writing failed beyond an error, the block went with it.
        let block = block.unwrap_or_else(|| {
            let (record, job) = again;
            OnDisk { record, bytes: found.job.block(&found.header, &found.extranonce), job }
        });
        let kept = Kept { block, file: file.ok(), is_new: true };
        if self.queue.send(kept).await.is_err() {
            warn!("the pool is stopping: the block is taken up again at the next start");
        }
    }
}

fn record_of(found: &FoundBlock, route: Route) -> BlockRecord {
    let template = found.job.template();
    BlockRecord {
        hash: found.hash,
        height: template.height,
        prev_hash: found.header.prev_hash,
        found_at_ms: u64::from(found.header.ntime) * 1_000,
        account: found.owner.account.to_string(),
        worker: found.owner.worker.to_string(),
        value_sats: template.coinbase_value_sats,
        nbits: found.header.nbits,
        state: BlockState::Found,
        detail: String::new(),
        route,
        declared: found.worth.declared,
    }
}

impl Turns {
    /// Waiting blocks whose turn it is, each with its place; none once the pool stops.
    fn due(&mut self, shutdown: &CancellationToken) -> Vec<(PathBuf, OwnedSemaphorePermit)> {
        let mut due = Vec::new();
        for lane in [&mut self.ours, &mut self.miners] {
            while !shutdown.is_cancelled()
                && !lane.waiting.is_empty()
                && let Ok(place) = Arc::clone(&lane.old_places).try_acquire_owned()
            {
                due.extend(lane.waiting.pop_front().map(|file| (file, place)));
            }
        }
        due
    }

    /// A place for a new block. Without one it waits on disk.
    async fn place_for_new(&mut self, kept: Kept) -> Option<(Kept, OwnedSemaphorePermit)> {
        let lane = if kept.block.bytes.is_some() { &mut self.ours } else { &mut self.miners };
        if let Ok(place) = Arc::clone(&lane.new_places).try_acquire_owned() {
            return Some((kept, place));
        }
        match kept.file {
            Some(file) if lane.waiting.len() < BLOCKS_WAITING_MAX => lane.waiting.push_back(file),
            Some(file) => {
                warn!(file = %file.display(), "too many blocks wait; this one for the next start");
            }
            // Neither a node nor the disk takes blocks: its finder waits with it.
            None if kept.block.bytes.is_some() => {
                let place = Arc::clone(&lane.new_places).acquire_owned().await;
                return place.ok().map(|place| (kept, place));
            }
            None => {
                let hash = hex_of(&kept.block.record.hash);
                warn!(%hash, "its miner's block is not looked for: too many are, and the disk is full");
            }
        }
        None
    }
}

impl Lane {
    fn new(waiting: VecDeque<PathBuf>) -> Self {
        Self {
            new_places: Arc::new(Semaphore::new(BLOCKS_UNDER_WAY_MAX)),
            old_places: Arc::new(Semaphore::new(WAITING_BLOCKS_AT_ONCE)),
            waiting,
        }
    }
}

/// Writes a block where it holds up nobody else's work, and gives it back, unless it was lost to a panic.
async fn write_apart(dir: PathBuf, block: OnDisk) -> (io::Result<PathBuf>, Option<OnDisk>) {
    let written = tokio::task::spawn_blocking(move || (files::write(&dir, &block), block));
    match written.await {
        Ok((file, block)) => (file, Some(block)),
        Err(panic) => (Err(io::Error::other(panic)), None),
    }
}
