//! Found blocks on their way to the own node: first to disk, then offered until the node has an answer. Devices'
//! tasks hand them in, one task offers them; the folder is its queue, so a restart goes on where the program
//! stopped.
//!
//! Must never let a share be answered before its block is on disk, nor delete a block without an answer. One
//! that the disk does not take is offered all the same.

mod earlier;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use proto::mining::server::FoundBlock;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::unix_s;
use crate::folder::write_durably;
use crate::limits::{
    BLOCK_DISK_ASKED_MAX, BLOCK_RETRY, BLOCK_UNANSWERED_SAID_EVERY, BLOCK_WRITE_MAX,
    BLOCKS_SETTLED_KEPT, BLOCKS_UNWRITTEN_MAX,
};
use crate::node::{Node, Submitted};

const BLOCK: &str = "block";

/// What became of the newest block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSeen {
    /// Header byte order.
    pub hash: [u8; 32],
    /// Of a pool's job unknown.
    pub height: Option<u32>,
    /// Found then, unix seconds.
    pub at: u32,
    /// The device; unknown of an earlier run's.
    pub finder: String,
    /// What it pays to whom, sats and script, as far as that can be read.
    pub outputs: Vec<(u64, Vec<u8>)>,
    /// What the node says.
    pub state: BlockState,
}

/// What the own node says of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockState {
    /// It is on disk and has no answer yet.
    OnItsWay,
    /// It is in the chain.
    Accepted,
    /// Another one was first.
    Stale,
    /// It is none, in the node's words.
    Rejected(String),
    /// The pool's job: only the pool has its transactions, and the share is on its way there.
    WithThePool,
    /// Of an earlier run, to which the node has said what it has said.
    Answered,
}

/// Where blocks are handed in.
#[derive(Clone)]
pub struct BlocksHandle {
    dir: Arc<Path>,
    /// Threads that may wait for it.
    disk: Arc<Semaphore>,
    news: Arc<Notify>,
    /// Blocks that could not be written.
    unwritten: mpsc::Sender<Arc<Block>>,
    seen: watch::Sender<Option<BlockSeen>>,
}

/// A whole block and what it is called.
#[derive(Debug)]
struct Block {
    name: String,
    bytes: Vec<u8>,
}

/// Makes the folder and starts the task that offers blocks to `node`, those of an earlier run first.
///
/// # Errors
/// The folder cannot be made.
pub fn spawn(
    data_dir: &Path,
    node: Arc<dyn Node>,
    stop: CancellationToken,
) -> io::Result<BlocksHandle> {
    let dir: Arc<Path> = data_dir.join("blocks").into();
    fs::create_dir_all(dir.join("settled"))?;
    // A new folder's name is only durable once its own folder is.
    File::open(data_dir)?.sync_all()?;
    let (unwritten, from_memory) = mpsc::channel(BLOCKS_UNWRITTEN_MAX);
    let (news, seen) = (Arc::new(Notify::new()), watch::Sender::new(earlier::newest(&dir)));
    let disk = Arc::new(Semaphore::new(BLOCK_DISK_ASKED_MAX));
    let handle = BlocksHandle { dir, disk, news, unwritten, seen };
    let offered = handle.clone();
    tokio::spawn(async move {
        stop.run_until_cancelled(offered.offer_all(node, from_memory)).await;
    });
    Ok(handle)
}

impl BlocksHandle {
    /// The newest block, as it stands.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<Option<BlockSeen>> {
        self.seen.subscribe()
    }

    /// Returns when the block is on disk, to be offered with `offer_now`. One that cannot be written is said loudly
    /// and offered from memory, for as long as the program runs.
    pub async fn keep(&self, found: &FoundBlock, finder: &str) {
        let template = found.job.template();
        let hash = BlockHash::from_byte_array(found.hash);
        let bytes = found.job.block(&found.header, &found.extranonce);
        let seen = BlockSeen {
            hash: found.hash,
            height: bytes.is_some().then_some(template.height),
            at: unix_s(),
            finder: finder.to_owned(),
            outputs: earlier::paid(&found.job.coinbase().with_witness(&found.extranonce, false)),
            state: if bytes.is_some() { BlockState::OnItsWay } else { BlockState::WithThePool },
        };
        info!(%hash, finder = seen.finder, "BLOCK FOUND");
        self.seen.send_replace(Some(seen));
        let Some(bytes) = bytes else { return };
        let block = Arc::new(Block { name: format!("{}-{hash}", template.height), bytes });
        let (dir, kept) = (Arc::clone(&self.dir), Arc::clone(&block));
        let written = self
            .ask_disk(move || write_durably(&dir, &format!("{}.{BLOCK}", kept.name), &kept.bytes));
        let Err(error) = written.await else { return };
        error!(%hash, %error, "a found block cannot be written to disk");
        // Beyond the bound, on a disk that takes nothing, the pool alone has it.
        let _ = self.unwritten.try_send(block);
    }

    /// Offers what is kept to the node, now.
    pub fn offer_now(&self) {
        self.news.notify_one();
    }

    async fn offer_all(self, node: Arc<dyn Node>, mut from_memory: mpsc::Receiver<Arc<Block>>) {
        let mut in_memory = Vec::new();
        let mut said_at = None;
        loop {
            let says =
                said_at.is_none_or(|at: Instant| at.elapsed() >= BLOCK_UNANSWERED_SAID_EVERY);
            while in_memory.len() < BLOCKS_UNWRITTEN_MAX
                && let Ok(block) = from_memory.try_recv()
            {
                in_memory.push(block);
            }
            let mut unanswered = Vec::new();
            for block in in_memory {
                if !self.offer(&*node, &block, says).await {
                    unanswered.push(block);
                }
            }
            in_memory = unanswered;
            let is_left = !self.offer_files(&*node, says).await || !in_memory.is_empty();
            if is_left && says {
                said_at = Some(Instant::now());
            }
            // A new one does not wait for the old ones' turn, and what becomes of it is said.
            let pause = if is_left { BLOCK_RETRY } else { BLOCK_RETRY * 30 };
            if timeout(pause, self.news.notified()).await.is_ok() || !is_left {
                said_at = None;
            }
        }
    }

    /// `true` once the node has answered for each. The oldest first: one may build on another.
    async fn offer_files(&self, node: &dyn Node, says: bool) -> bool {
        let dir = Arc::clone(&self.dir);
        let files = match self.ask_disk(move || unsettled(&dir)).await {
            Ok(files) => files,
            Err(error) => {
                if says {
                    warn!(%error, "the folder of found blocks cannot be read");
                }
                return false;
            }
        };
        let mut are_settled = true;
        for file in files {
            let path = file.clone();
            let bytes = match self.ask_disk(move || fs::read(path)).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    if says {
                        warn!(file = %file.display(), %error, "a found block cannot be read");
                    }
                    are_settled = false;
                    continue;
                }
            };
            let name = file.file_stem().map(|name| name.to_string_lossy().into_owned());
            let block = Block { name: name.unwrap_or_default(), bytes };
            if !self.offer(node, &block, says).await {
                are_settled = false;
                continue;
            }
            let dir = Arc::clone(&self.dir);
            if let Err(error) = self.ask_disk(move || settle(&dir, &file)).await {
                warn!(block = block.name, %error, "a settled block stays where it is");
            }
        }
        are_settled
    }

    /// What a disk is asked, on a thread that may wait for it, when its turn comes. One that hangs is given up, and
    /// holds no more threads than there are turns.
    async fn ask_disk<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let asked = async {
            let turn = Arc::clone(&self.disk).acquire_owned().await.map_err(io::Error::other)?;
            let asked = tokio::task::spawn_blocking(move || {
                let answer = ask();
                drop(turn);
                answer
            });
            asked.await.map_err(io::Error::other)?
        };
        timeout(BLOCK_WRITE_MAX, asked)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// `true` once the node has answered.
    async fn offer(&self, node: &dyn Node, block: &Block, says: bool) -> bool {
        let Block { name, bytes } = block;
        let state = match node.submit_block(bytes).await {
            Ok(Submitted::Accepted | Submitted::AlreadyKnown) => BlockState::Accepted,
            Ok(Submitted::Stale) => BlockState::Stale,
            Ok(Submitted::Rejected(why)) => BlockState::Rejected(why),
            Err(error) => {
                if says {
                    warn!(block = name, %error, "the node has not taken the block yet");
                }
                return false;
            }
        };
        match &state {
            BlockState::Accepted => info!(block = name, "BLOCK ACCEPTED by your node"),
            BlockState::Stale => warn!(block = name, "another block was first"),
            BlockState::Rejected(why) => error!(block = name, why, "your node refuses the block"),
            BlockState::OnItsWay | BlockState::WithThePool | BlockState::Answered => {}
        }
        self.seen.send_if_modified(|seen| match seen {
            Some(seen) if name.ends_with(&BlockHash::from_byte_array(seen.hash).to_string()) => {
                seen.state = state;
                true
            }
            Some(_) | None => false,
        });
        true
    }
}

/// Blocks without an answer, the oldest first.
fn unsettled(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(files(dir)?.into_iter().map(|(_, file)| file).collect())
}

/// Blocks in a folder, each with the time that it was written, the oldest first.
fn files(dir: &Path) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == BLOCK) {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// Out of the way, and of those that are the oldest let go.
fn settle(dir: &Path, file: &Path) -> io::Result<()> {
    let settled = dir.join("settled");
    if let Some(name) = file.file_name() {
        fs::rename(file, settled.join(name))?;
    }
    let kept = unsettled(&settled)?;
    for old in kept.iter().take(kept.len().saturating_sub(BLOCKS_SETTLED_KEPT)) {
        fs::remove_file(old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn however_many_blocks_come_at_once_each_has_its_turn_at_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let handle = BlocksHandle {
            dir: folder.path().into(),
            disk: Arc::new(Semaphore::new(BLOCK_DISK_ASKED_MAX)),
            news: Arc::default(),
            unwritten: mpsc::channel(1).0,
            seen: watch::Sender::new(None),
        };
        let mut asked = tokio::task::JoinSet::new();
        for at in 0..8 * BLOCK_DISK_ASKED_MAX {
            let handle = handle.clone();
            asked.spawn(async move {
                let dir = Arc::clone(&handle.dir);
                handle.ask_disk(move || write_durably(&dir, &format!("{at}.block"), b"x")).await
            });
        }
        for written in asked.join_all().await {
            assert!(written.is_ok(), "{written:?}");
        }
    }
}
