//! A found block: to disk with fsync before anything else, then to every node until one has it, then
//! into the store. Called by `miner` with the share still unanswered, and by `declarer` with a pushed
//! solution; `run` has it take up at start what an earlier run left on disk.
//!
//! A block of a declared job comes by up to three routes: the miner's own node, PushSolution, the share.
//! The first wins and is written down; the same block by another is not kept twice.
//!
//! Must never lose a block to a crash, a full disk, a node that is away or a database that is down:
//! each step goes on when another fails.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bitcoin::hashes::Hash;
use job_declarator::node::{Node, NodeError, Submitted};
use proto::mining::DeclaredId;
use proto::mining::server::FoundBlock;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::limits::{
    BLOCKS_REMEMBERED, BLOCKS_UNDER_WAY_MAX, BLOCKS_WAITING_MAX, NODE_RETRY_FIRST, NODE_RETRY_MAX,
    SETTLED_BLOCKS_KEPT, THEIR_BLOCK_LOOKS_MAX, WAITING_BLOCKS_AT_ONCE,
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
    record: BlockRecord,
    /// `None` of a job whose transactions its miner keeps to himself: only he can send it.
    bytes: Option<Vec<u8>>,
    /// `None` if the disk refused it.
    file: Option<PathBuf>,
    /// The declared job that it was found on.
    job: Option<Arc<DeclaredRecord>>,
    /// It was found in this run and by now only its miner may have shown it to a node.
    is_new: bool,
}

/// What the nodes made of a block.
struct Offered {
    outcome: Submitted,
    /// They knew it before we offered it for the first time.
    was_known: bool,
}

/// Which blocks are offered now and which wait on disk for their turn, the oldest first.
struct Turns {
    new_places: Arc<Semaphore>,
    old_places: Arc<Semaphore>,
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
        let turns = Turns {
            new_places: Arc::new(Semaphore::new(BLOCKS_UNDER_WAY_MAX)),
            old_places: Arc::new(Semaphore::new(WAITING_BLOCKS_AT_ONCE)),
            waiting: unsettled_files(&self.dir)?,
        };
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
            while let Some(place) = turns.place_for_waiting(&shutdown) {
                let Some(file) = turns.waiting.pop_front() else { break };
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
        let read = tokio::task::spawn_blocking(move || read_unsettled(file)).await;
        match read {
            Ok(Ok(Some(block))) => {
                info!(hash = %hex_of(&block.record.hash), "block from the disk, offered again");
                self.settle(block, place, shutdown).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => warn!(%error, "block on disk not read; the next start tries again"),
            Err(panic) => error!(%panic, "block on disk not read; the next start tries again"),
        }
    }

    /// Nodes first, bookkeeping after.
    async fn settle(
        self: Arc<Self>,
        mut block: Kept,
        _place: OwnedSemaphorePermit,
        shutdown: CancellationToken,
    ) {
        // The nodes do not wait for the store, nor the store for a node that is away.
        let (offered, _) = tokio::join!(
            self.settled(&block.bytes, &block.record, &mut block.file, &shutdown),
            self.record(&block.record, block.job.as_deref(), &shutdown),
        );
        let Some(Offered { outcome, was_known }) = offered else {
            let hash = hex_of(&block.record.hash);
            match (&block.file, &block.bytes) {
                (Some(_), _) => warn!(%hash, "block not settled before the stop; kept on disk"),
                // The log is the last place left.
                (None, Some(bytes)) => {
                    error!(%hash, block = hex::encode(bytes), "block neither settled nor on disk: submit it by hand")
                }
                (None, None) => warn!(%hash, "its miner's block is not in our node's chain yet"),
            }
            return;
        };
        if was_known && block.is_new && block.record.declared.is_some() {
            block.record.route = Route::Miner;
        }
        self.note(&mut block.record, outcome);
        // What the store does not know yet stays on disk for the next start.
        if !self.record(&block.record, block.job.as_deref(), &shutdown).await {
            return;
        }
        let Some(file) = block.file else { return };
        let (dir, name) = (self.dir.clone(), file.clone());
        let moved = tokio::task::spawn_blocking(move || move_to_settled(&dir, &name)).await;
        if let Err(error) = moved.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            warn!(%error, file = %file.display(), "settled block not moved; it will be offered again");
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
        bytes: &Option<Vec<u8>>,
        record: &BlockRecord,
        file: &mut Option<PathBuf>,
        shutdown: &CancellationToken,
    ) -> Option<Offered> {
        match bytes {
            Some(bytes) => self.offer(bytes, record, file, shutdown).await,
            None => self.look_for(record, shutdown).await,
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
        for _ in 0..THEIR_BLOCK_LOOKS_MAX {
            for node in &self.nodes {
                if let Ok(Some(_)) = node.height_of(&record.hash).await {
                    return Some(Offered { outcome: Submitted::AlreadyKnown, was_known: true });
                }
            }
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
        record: &BlockRecord,
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
                        warn!(node, hash = %hex_of(&record.hash), %error, "block not taken yet");
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
                *file = write_apart(self.dir.clone(), record.clone(), bytes.to_vec()).await.0.ok();
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
        let (mut file, mut kept) = (None, None);
        if let Some(bytes) = bytes {
            let (written, bytes) = write_apart(self.dir.clone(), record.clone(), bytes).await;
            file = written
                .inspect_err(|error| {
                    let dir = self.dir.display();
                    error!(%error, %dir, "block not on disk; offered all the same");
                })
                .ok();
            // Where the writing failed beyond an error, the bytes went with it.
            kept = bytes.or_else(|| found.job.block(&found.header, &found.extranonce));
        }
        let kept = Kept { record, bytes: kept, file, job, is_new: true };
        if self.queue.send(kept).await.is_err() {
            warn!("the pool is stopping: the block is offered again at the next start");
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

/// `HEIGHT-HASH.block`: raw bytes, as `submitblock` takes them in hex.
fn file_name(record: &BlockRecord) -> String {
    format!("{}-{}.block", record.height, hex_of(&record.hash))
}

impl Turns {
    /// A place for a block that waits; none while all are taken, or once the pool stops.
    fn place_for_waiting(&self, shutdown: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        if self.waiting.is_empty() || shutdown.is_cancelled() {
            return None;
        }
        Arc::clone(&self.old_places).try_acquire_owned().ok()
    }

    /// A place for a new block. Without one it waits on disk; one that is not there is waited for, and
    /// its finder with it: then neither a node nor the disk takes blocks.
    async fn place_for_new(&mut self, block: Kept) -> Option<(Kept, OwnedSemaphorePermit)> {
        let places = Arc::clone(&self.new_places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Some((block, place));
        }
        match block.file {
            Some(file) if self.waiting.len() < BLOCKS_WAITING_MAX => self.waiting.push_back(file),
            Some(file) => {
                warn!(file = %file.display(), "too many blocks wait; this one for the next start");
            }
            None => return places.acquire_owned().await.ok().map(|place| (block, place)),
        }
        None
    }
}

/// Writes a block where it holds up nobody else's work, and gives back its bytes, unless they were lost
/// to a panic. Who found it is worth knowing after a crash and not worth an error.
async fn write_apart(
    dir: PathBuf,
    record: BlockRecord,
    bytes: Vec<u8>,
) -> (io::Result<PathBuf>, Option<Vec<u8>>) {
    let written = tokio::task::spawn_blocking(move || {
        let file = write_durably(&dir, &file_name(&record), &bytes);
        if let Ok(file) = &file {
            let BlockRecord { account, worker, route, declared, .. } = &record;
            let job = declared.map(|id| hex::encode(id.0)).unwrap_or_default();
            let owner = format!("{account}\n{worker}\n{}\n{job}\n", route.as_str());
            if let Err(error) = fs::write(file.with_extension("owner"), owner) {
                warn!(%error, "owner of the block not noted on disk");
            }
        }
        (file, bytes)
    });
    match written.await {
        Ok((file, bytes)) => (file, Some(bytes)),
        Err(panic) => (Err(io::Error::other(panic)), None),
    }
}

/// The file is whole and on disk under its name, or there is an error and no such file.
fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<PathBuf> {
    let file = dir.join(name);
    let unfinished = dir.join(format!("{name}.part"));
    let mut out = File::create(&unfinished)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&unfinished, &file)?;
    // The name itself is only durable once its folder is.
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// The bytes of a block of ours, wherever its file stands. `None` once it was dropped.
#[must_use]
pub fn read_kept(data_dir: &Path, record: &BlockRecord) -> Option<Vec<u8>> {
    let (dir, name) = (data_dir.join("blocks"), file_name(record));
    fs::read(dir.join("settled").join(&name)).or_else(|_| fs::read(dir.join(&name))).ok()
}

/// Files of blocks that no node has answered for, the oldest first.
fn unsettled_files(dir: &Path) -> io::Result<VecDeque<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "block") {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, file)| file).collect())
}

/// A block on disk. A file that is none is set aside with a warning, never deleted.
fn read_unsettled(file: PathBuf) -> io::Result<Option<Kept>> {
    let bytes = fs::read(&file)?;
    if let Some(record) = record_from(&file, &bytes) {
        let (bytes, file) = (Some(bytes), Some(file));
        return Ok(Some(Kept { record, bytes, file, job: None, is_new: false }));
    }
    warn!(file = %file.display(), "not a block; left alone under another name");
    fs::rename(&file, file.with_extension("unreadable"))?;
    Ok(None)
}

fn record_from(file: &Path, bytes: &[u8]) -> Option<BlockRecord> {
    let block: bitcoin::Block = bitcoin::consensus::deserialize(bytes).ok()?;
    let owner = fs::read_to_string(file.with_extension("owner")).unwrap_or_default();
    let mut owner = owner.lines().map(str::to_owned);
    let outputs = &block.txdata.first()?.output;
    Some(BlockRecord {
        hash: block.block_hash().to_byte_array(),
        height: u32::try_from(block.bip34_block_height().ok()?).ok()?,
        prev_hash: block.header.prev_blockhash.to_byte_array(),
        found_at_ms: u64::from(block.header.time) * 1_000,
        account: owner.next().unwrap_or_else(|| "unknown".into()),
        worker: owner.next().unwrap_or_default(),
        route: owner.next().and_then(|text| Route::parse(&text).ok()).unwrap_or(Route::Share),
        declared: owner.next().and_then(|text| declared_from(&text)),
        value_sats: outputs.iter().map(|output| output.value.to_sat()).sum(),
        nbits: block.header.bits.to_consensus(),
        state: BlockState::Found,
        detail: String::new(),
    })
}

/// What `write_apart` noted of a declared job; `None` of one of the pool's own.
fn declared_from(text: &str) -> Option<DeclaredId> {
    hex::decode(text).ok()?.try_into().ok().map(DeclaredId)
}

/// Out of the folder that a start offers from. Beyond `SETTLED_BLOCKS_KEPT` the oldest are dropped: the
/// chain and the store have them.
fn move_to_settled(dir: &Path, file: &Path) -> io::Result<()> {
    let settled = dir.join("settled");
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    fs::rename(file, settled.join(name))?;
    let owner = file.with_extension("owner");
    if owner.exists() {
        fs::remove_file(owner)?;
    }
    let mut kept: Vec<_> = fs::read_dir(&settled)?.collect::<Result<_, _>>()?;
    if kept.len() > SETTLED_BLOCKS_KEPT {
        kept.sort_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok());
        for entry in &kept[..kept.len() - SETTLED_BLOCKS_KEPT] {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
