//! A node for tests: `job-declarator`'s embedded chain behind the doors that pools and declarators know,
//! Bitcoin Core's JSON-RPC (`rpc.rs`), Template Distribution (`distribution.rs`) and, with feature `ipc`,
//! Core's mining interface (`ipc.rs`). Used by the program `dev_node` (and so by `scripts/interop`) and by
//! `compare --pool`.
//!
//! On loopback only; it must never be taken for a node of any network, and is part of no product.

mod distribution;
#[cfg(feature = "ipc")]
mod ipc;
mod provider;
mod rpc;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{Node, NodeTemplate, Submitted};
use proto::job::{HeaderFields, Job};
use proto::limits::EXTRANONCE_LEN;
use proto::noise::AuthorityPublicKey;
use proto::target::Target;
use proto::template::Output;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

pub use provider::{Effect, Input, Outbox, Provider};

/// Events that wait to be read; what comes beyond is not told.
const EVENTS_MAX: usize = 1_024;
/// Hashes of a block on command, at most: some seconds of one core.
const TIP_HASHES_MAX: u64 = 1 << 24;
/// Between two questions to a chain that did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How the node is set up.
#[derive(Debug, Clone)]
pub struct DevNodeOptions {
    /// Transactions in a template besides the coinbase; 2,048 to 4,095 make a merkle path of 12.
    pub tx_count: usize,
    /// Expected hashes of a block.
    pub block_hashes: u64,
    /// After so long without a block there is another template of the same tip.
    pub refresh: Duration,
    /// What Template Distribution's clients find does not reach the chain.
    pub drop_submit_solution: bool,
    /// Port of JSON-RPC; 0 for any.
    pub rpc_port: u16,
    /// Port of Template Distribution; 0 for any.
    pub template_port: u16,
    /// Where the cookie file is made.
    pub folder: PathBuf,
    /// UNIX socket of the mining interface, which feature `ipc` brings; none without.
    pub ipc_socket: Option<PathBuf>,
}

/// The way that a block came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `submitblock`.
    Rpc,
    /// SubmitSolution.
    TemplateDistribution,
    /// `submitSolution` of the mining interface.
    Ipc,
    /// `DevNode::tip`.
    Command,
}

impl Door {
    /// As it stands in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rpc => "rpc",
            Self::TemplateDistribution => "template-distribution",
            Self::Ipc => "ipc",
            Self::Command => "command",
        }
    }
}

/// What happened at a door.
#[derive(Debug, Clone)]
pub enum Event {
    /// A block was judged.
    Block {
        /// The way it came.
        door: Door,
        /// Hash of its header, header byte order.
        hash: [u8; 32],
        /// What the chain made of it.
        verdict: Submitted,
    },
    /// A block of a SubmitSolution was thrown away, as was asked.
    Dropped,
    /// A SubmitSolution that no block could be made of.
    BadSolution {
        /// Why.
        why: String,
    },
    /// A client of Template Distribution is gone.
    Left {
        /// Who.
        peer: SocketAddr,
        /// Why.
        why: String,
    },
}

impl Event {
    /// One line of the program's output.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Block { door, hash, verdict } => {
                let mut shown = *hash;
                shown.reverse();
                let (verdict, reason) = match verdict {
                    Submitted::Accepted => ("accepted", None),
                    Submitted::AlreadyKnown => ("already-known", None),
                    Submitted::Stale => ("stale", None),
                    Submitted::Rejected(reason) => ("rejected", Some(reason)),
                };
                json!({
                    "event": "block", "door": door.as_str(), "hash": rpc::hex(&shown),
                    "verdict": verdict, "reason": reason,
                })
            }
            Self::Dropped => json!({ "event": "solution-dropped" }),
            Self::BadSolution { why } => json!({ "event": "bad-solution", "why": why }),
            Self::Left { peer, why } => {
                json!({ "event": "left", "peer": peer.to_string(), "why": why })
            }
        }
    }
}

/// What all doors share.
struct Inner {
    chain: EmbeddedChain,
    drop_submit_solution: bool,
    events: mpsc::Sender<Event>,
}

impl Inner {
    fn tell(&self, event: Event) {
        // Nobody has to listen.
        let _ = self.events.try_send(event);
    }

    /// The chain's verdict, told to whoever watches; `None` if the chain is broken.
    async fn submit(&self, door: Door, block: &[u8]) -> Option<Submitted> {
        let verdict = self.chain.submit_block(block).await.ok()?;
        let hash = block.first_chunk::<80>().map(|header| proto::template::sha256d(header));
        self.tell(Event::Block { door, hash: hash.unwrap_or_default(), verdict: verdict.clone() });
        Some(verdict)
    }
}

/// A tip made on command.
#[derive(Debug, Clone, Copy)]
pub struct NewTip {
    /// Hash of the block, header byte order.
    pub hash: [u8; 32],
    /// When the chain took it.
    pub at: Instant,
}

/// A node that runs as long as its runtime.
pub struct DevNode {
    inner: Arc<Inner>,
    /// `http://` address of JSON-RPC.
    pub rpc: SocketAddr,
    /// Its credentials.
    pub cookie_file: PathBuf,
    /// Where Template Distribution listens.
    pub template_distribution: SocketAddr,
    /// What its clients may pin.
    pub authority: AuthorityPublicKey,
    /// Closed with the node.
    #[cfg(feature = "ipc")]
    _ipc: Option<ipc::Open>,
}

impl DevNode {
    /// Makes the chain and opens its doors, on 127.0.0.1.
    ///
    /// # Errors
    /// A port, socket or file that cannot be had, or options beyond the chain's limits.
    pub async fn start(options: &DevNodeOptions) -> Result<(Self, mpsc::Receiver<Event>)> {
        ensure!(
            options.refresh >= Duration::from_millis(100),
            "a refresh below 0.1 s is a busy loop"
        );
        let chain = EmbeddedChain::new(EmbeddedOptions {
            tx_count: options.tx_count,
            block_hashes: options.block_hashes,
            refresh: options.refresh,
            ..EmbeddedOptions::default()
        })
        .context("the development chain")?;
        let (events, told) = mpsc::channel(EVENTS_MAX);
        let inner =
            Arc::new(Inner { chain, drop_submit_solution: options.drop_submit_solution, events });
        let templates = watch_templates(Arc::clone(&inner)).await?;
        let on = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let rpc = rpc::serve(Arc::clone(&inner), on(options.rpc_port), &options.folder).await?;
        let distribution =
            distribution::serve(Arc::clone(&inner), on(options.template_port), templates).await?;
        #[cfg(feature = "ipc")]
        let ipc = match &options.ipc_socket {
            Some(socket) => Some(ipc::serve(Arc::clone(&inner), socket)?),
            None => None,
        };
        #[cfg(not(feature = "ipc"))]
        ensure!(options.ipc_socket.is_none(), "built without feature `ipc`");
        let node = Self {
            inner,
            rpc: rpc.address,
            cookie_file: rpc.cookie_file,
            template_distribution: distribution.address,
            authority: distribution.authority,
            #[cfg(feature = "ipc")]
            _ipc: ipc,
        };
        Ok((node, told))
    }

    /// Where everything is, as one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "rpc": format!("http://{}", self.rpc),
            "cookie_file": self.cookie_file,
            "template_distribution": self.template_distribution.to_string(),
            "template_port": self.template_distribution.port(),
            "authority_key": self.authority.to_string(),
        })
    }

    /// Finds a block on the tip and takes it.
    ///
    /// # Errors
    /// A chain whose blocks are out of reach, or somebody else's block in between.
    pub async fn tip(&self) -> Result<NewTip> {
        let shown = self.inner.chain.next_template(None).await?;
        let found = tokio::task::spawn_blocking(move || find_block(&shown)).await?;
        let (block, hash) = found?;
        let verdict = self.inner.submit(Door::Command, &block).await;
        let at = Instant::now();
        ensure!(verdict == Some(Submitted::Accepted), "the block was not accepted: {verdict:?}");
        Ok(NewTip { hash, at })
    }
}

/// The newest template, always.
async fn watch_templates(inner: Arc<Inner>) -> Result<watch::Receiver<Arc<NodeTemplate>>> {
    let first = inner.chain.next_template(None).await?;
    let mut mark = first.mark.clone();
    let (publish, templates) = watch::channel(Arc::new(first));
    tokio::spawn(async move {
        loop {
            match inner.chain.next_template(Some(&mark)).await {
                Ok(next) => {
                    mark = next.mark.clone();
                    if publish.send(Arc::new(next)).is_err() {
                        return;
                    }
                }
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
    });
    Ok(templates)
}

/// Work on a template that pays anybody, and the header that its search starts with.
fn anybodys_job(shown: &NodeTemplate) -> Result<(Job, HeaderFields)> {
    const ANYBODY: u8 = 0x51;
    let sats = shown.template.coinbase_value_sats;
    let outputs = [Output { sats, script: vec![ANYBODY] }];
    let job = Job::new(Arc::clone(&shown.template), &outputs, b"dev_node")?;
    let header = HeaderFields {
        version: job.version(),
        prev_hash: shown.prev_hash.hash,
        merkle_root: job.merkle_root(&[0; EXTRANONCE_LEN]),
        ntime: shown.prev_hash.min_ntime,
        nbits: shown.prev_hash.nbits,
        nonce: 0,
    };
    Ok((job, header))
}

/// A block of the template, paid to anybody, and its hash.
fn find_block(shown: &NodeTemplate) -> Result<(Vec<u8>, [u8; 32])> {
    let (job, mut header) = anybodys_job(shown)?;
    let mut extranonce = [0; EXTRANONCE_LEN];
    let target = Target::from_compact(header.nbits);
    for tried in 0..TIP_HASHES_MAX {
        header.nonce = tried as u32;
        let hash = header.hash();
        if target.is_met_by(&hash) {
            let block =
                job.block(&header, &extranonce).context("a template of our own is whole")?;
            return Ok((block, hash));
        }
        if tried & 0xf_ffff == 0xf_ffff {
            extranonce[0] = extranonce[0].wrapping_add(1);
            header.merkle_root = job.merkle_root(&extranonce);
        }
    }
    bail!("no block in {TIP_HASHES_MAX} hashes: this chain is too hard for blocks on command")
}

/// Unix seconds.
fn unix_s() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// A folder of this process's own for the cookie, gone with it.
///
/// # Errors
/// There is none to be had.
pub fn temporary_folder(under: Option<&Path>) -> Result<tempfile::TempDir> {
    let made = match under {
        Some(under) => tempfile::tempdir_in(under),
        None => tempfile::tempdir(),
    };
    made.context("a temporary folder")
}
