//! Found blocks on their way to the own node: first to disk, then offered until the node has an answer. Devices'
//! tasks hand them in, one task offers them; the folder is its queue, so a restart goes on where the program
//! stopped.
//!
//! Must never let a share be answered before its block is on disk, nor delete a block without an answer.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use proto::mining::server::FoundBlock;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::unix_s;
use crate::limits::{BLOCK_RETRY, BLOCKS_SETTLED_KEPT};
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
    /// The device.
    pub finder: String,
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
}

/// Where blocks are handed in.
#[derive(Clone)]
pub struct BlocksHandle {
    dir: Arc<Path>,
    news: Arc<Notify>,
    seen: watch::Sender<Option<BlockSeen>>,
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
    let handle =
        BlocksHandle { dir, news: Arc::new(Notify::new()), seen: watch::Sender::new(None) };
    let offered = handle.clone();
    tokio::spawn(async move {
        stop.run_until_cancelled(offered.offer_all(node)).await;
    });
    Ok(handle)
}

impl BlocksHandle {
    /// The newest block, as it stands.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<Option<BlockSeen>> {
        self.seen.subscribe()
    }

    /// Returns when the block is on disk, to be offered with `offer`. One that cannot be written is said loudly
    /// and offered by nobody but the pool, which has its share.
    pub async fn keep(&self, found: &FoundBlock, finder: &str) {
        let template = found.job.template();
        let hash = BlockHash::from_byte_array(found.hash);
        let bytes = found.job.block(&found.header, &found.extranonce);
        let seen = BlockSeen {
            hash: found.hash,
            height: bytes.is_some().then_some(template.height),
            at: unix_s(),
            finder: finder.to_owned(),
            state: if bytes.is_some() { BlockState::OnItsWay } else { BlockState::WithThePool },
        };
        info!(%hash, finder = seen.finder, "BLOCK FOUND");
        self.seen.send_replace(Some(seen));
        let Some(bytes) = bytes else { return };
        let (dir, name) = (Arc::clone(&self.dir), format!("{}-{hash}.{BLOCK}", template.height));
        let written = tokio::task::spawn_blocking(move || write_durably(&dir, &name, &bytes)).await;
        match written.map_err(io::Error::other).and_then(|written| written) {
            Ok(()) => {}
            Err(error) => error!(%hash, %error, "a found block cannot be written to disk"),
        }
    }

    /// Offers what is kept to the node, now.
    pub fn offer(&self) {
        self.news.notify_one();
    }

    async fn offer_all(self, node: Arc<dyn Node>) {
        loop {
            let unsettled = unsettled(&self.dir).unwrap_or_else(|error| {
                warn!(%error, "the folder of found blocks cannot be read");
                Vec::new()
            });
            let mut is_left = false;
            for file in unsettled {
                is_left |= !self.offer_one(&*node, &file).await;
            }
            if is_left {
                sleep(BLOCK_RETRY).await;
            } else {
                let _ = timeout(BLOCK_RETRY * 30, self.news.notified()).await;
            }
        }
    }

    /// `true` once the node has answered.
    async fn offer_one(&self, node: &dyn Node, file: &Path) -> bool {
        let bytes = match fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) => {
                warn!(file = %file.display(), %error, "a found block cannot be read");
                return false;
            }
        };
        let name = file.file_stem().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let state = match node.submit_block(&bytes).await {
            Ok(Submitted::Accepted | Submitted::AlreadyKnown) => BlockState::Accepted,
            Ok(Submitted::Stale) => BlockState::Stale,
            Ok(Submitted::Rejected(why)) => BlockState::Rejected(why),
            Err(error) => {
                warn!(block = name, %error, "the node has not taken the block yet");
                return false;
            }
        };
        match &state {
            BlockState::Accepted => info!(block = name, "BLOCK ACCEPTED by your node"),
            BlockState::Stale => warn!(block = name, "another block was first"),
            BlockState::Rejected(why) => error!(block = name, why, "your node refuses the block"),
            BlockState::OnItsWay | BlockState::WithThePool => {}
        }
        self.seen.send_if_modified(|seen| match seen {
            Some(seen) if name.ends_with(&BlockHash::from_byte_array(seen.hash).to_string()) => {
                seen.state = state;
                true
            }
            Some(_) | None => false,
        });
        if let Err(error) = settle(&self.dir, file) {
            warn!(block = name, %error, "a settled block stays where it is");
        }
        true
    }
}

/// The file is whole and on disk under its name, or there is an error and no such file.
fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let unfinished = dir.join(format!("{name}.part"));
    let mut out = File::create(&unfinished)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&unfinished, dir.join(name))?;
    // The name itself is only durable once its folder is.
    File::open(dir)?.sync_all()
}

/// Blocks without an answer, the oldest first.
fn unsettled(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == BLOCK) {
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, file)| file).collect())
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
