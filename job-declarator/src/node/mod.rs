//! The only folder that talks to Bitcoin Core. One trait, two nodes: `rpc` (Bitcoin Core over JSON-RPC; with
//! feature `ipc` its verdicts on declared blocks come over its UNIX socket) and `embedded` (a development
//! chain inside the process). Called by the pool's `templates.rs`, `checks.rs` and `block.rs`; must never
//! know of miners, shares or money.
//!
//! Every call may fail and says how; nothing here retries for ever or ends the process. Whoever calls
//! decides what to do while a node is away.

pub(crate) mod assemble;
pub mod embedded;
#[cfg(feature = "ipc")]
pub mod ipc;
pub mod late;
pub mod rpc;
pub mod shared;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bitcoin::Network;
use proto::template::{PrevHash, Template};
use thiserror::Error;

use crate::limits::{HALVING_INTERVAL, HALVING_INTERVAL_REGTEST};

/// A node's answer, on its way.
pub type NodeFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, NodeError>> + Send + 'a>>;

/// Why a node did not do as asked. Ours to handle, never a miner's fault.
#[derive(Debug, Error)]
pub enum NodeError {
    /// No answer: refused, timed out, gone. Worth trying again.
    #[error("the node does not answer: {0}")]
    Unreachable(String),
    /// HTTP status 503: Core says it while it starts, and when its work queue is full.
    #[error("the node is starting, or has too much to do")]
    Busy,
    /// Its cookie cannot be read, which nothing can be asked without.
    #[error("{0}")]
    Cookie(String),
    /// It answers but has nothing to give yet (initial block download, warming up).
    #[error("the node is not ready: {0}")]
    NotReady(String),
    /// It refused our credentials, also after reading the cookie again.
    #[error("the node refuses our credentials")]
    Unauthorized,
    /// An answer that is not what the call promises.
    #[error("the node's answer to {call} makes no sense: {why}")]
    Nonsense {
        /// The RPC's name.
        call: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It said no, in its own words.
    #[error("the node refused {call}: {message} (code {code})")]
    Refused {
        /// The RPC's name.
        call: &'static str,
        /// JSON-RPC error code.
        code: i32,
        /// JSON-RPC error message.
        message: String,
    },
}

/// Work as a node sees it now.
#[derive(Debug, Clone)]
pub struct NodeTemplate {
    /// The tip it builds on; `min_ntime` is when hashing starts.
    pub prev_hash: PrevHash,
    /// The block to be found on that tip.
    pub template: Arc<Template>,
    /// The coinbase-only block to be found on the block that `template` will become, sent ahead as a
    /// future job so that a new tip costs one small message. `None` if its subsidy cannot be known.
    pub next: Option<Arc<Template>>,
    /// The earliest time that consensus lets a block on the tip have: the median of the past plus one
    /// second. A miner's clock may be behind the one that `min_ntime` is from.
    pub earliest_ntime: u32,
    /// What to hand back to `next_template` to be told of something newer.
    pub mark: TemplateMark,
}

/// A node's own name for the state that a template shows (Core: `longpollid`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateMark(pub String);

/// What a node made of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// In the chain or on its way there.
    Accepted,
    /// The node had it already.
    AlreadyKnown,
    /// Valid but not on the best chain (another block was first).
    Stale,
    /// Invalid, with the node's reason.
    Rejected(String),
}

/// What a node says of a block that has no proof of work yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// Valid on the node's tip but for that.
    Valid,
    /// Not built on the node's tip, with the node's reason: one of the two is behind, and nothing else
    /// was looked at.
    NotOnTip(String),
    /// Invalid, with the node's reason.
    Invalid(String),
}

impl Checked {
    /// By Core's reason for not taking a block (BIP22, BIP23); none is a valid block.
    fn from_reason(reason: Option<String>) -> Self {
        let Some(reason) = reason else { return Self::Valid };
        // A block that the node has is no proposal any more: its tip was the tip once. One whose parent
        // it does not have, or has found invalid, stands on another chain.
        const NOT_ON_TIP: [&str; 5] = [
            "inconclusive-not-best-prevblk",
            "prev-blk-not-found",
            "bad-prevblk",
            "duplicate",
            "duplicate-inconclusive",
        ];
        if NOT_ON_TIP.contains(&reason.as_str()) {
            Self::NotOnTip(reason)
        } else {
            Self::Invalid(reason)
        }
    }
}

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// The network that addresses are for.
    pub network: bitcoin::Network,
    /// Height of the best block.
    pub height: u32,
    /// Hash of the best block, header byte order.
    pub tip: [u8; 32],
    /// Still catching up: templates would be of the past.
    pub initial_block_download: bool,
    /// Old blocks are thrown away, which takes nothing from templates and new ones.
    pub pruned: bool,
}

/// A source of templates and a sink of blocks.
pub trait Node: Send + Sync + 'static {
    /// For logs: what and where, without credentials.
    fn name(&self) -> String;

    /// Where the node stands.
    fn chain_info(&self) -> NodeFuture<'_, ChainInfo>;

    /// The present template with `after: None`; otherwise waits until there is another tip, or
    /// transactions worth a new template, than `after` showed.
    fn next_template<'a>(&'a self, after: Option<&'a TemplateMark>)
    -> NodeFuture<'a, NodeTemplate>;

    /// Offers a whole block (header, count, transactions with witness).
    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted>;

    /// Whether a block would be valid on the present tip but for its proof of work. Few of these run at
    /// once and the others wait; submissions and questions about the tip never wait for them.
    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked>;

    /// Height of a block in the best chain; `None` if it is unknown or off that chain.
    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>>;
}

/// Satoshi that the block at `height` makes out of nothing.
#[must_use]
pub fn subsidy_sats(height: u32, network: Network) -> u64 {
    let interval =
        if network == Network::Regtest { HALVING_INTERVAL_REGTEST } else { HALVING_INTERVAL };
    assemble::subsidy_sats(height, interval)
}

/// Words of the node's that go into our messages and logs: printable and short.
fn abridged(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}
