//! The mining protocol, both ends (spec chapter 5): `server` is the pool's side of one connection,
//! `client` a miner's. What both name stands here.

mod batch;
mod channel;
mod channels;
pub mod client;
mod custom;
mod given;
pub mod grind;
pub mod server;

use std::sync::Arc;

pub use custom::{CustomJob, CustomJobRequest, CustomRefusal, CustomRefused, DeclaredId, Worth};

use crate::extranonce::ExtranoncePrefix;
use crate::limits::USER_IDENTITY_MAX;
use crate::share::Proof;
use crate::template::TemplateId;

/// Names a channel or a group on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u32);

/// The two kinds of channel (spec 05 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Header-only mining: the merkle root is given.
    Standard,
    /// The client rolls extranonce bytes.
    Extended,
}

/// Time as a machine is told it: a clock that only goes forward, and the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since some start; never goes back.
    pub mono_ms: u64,
    /// Seconds since 1970; may jump.
    pub unix_s: u32,
}

/// Who is credited: `account.worker` as the client wrote it, cut at the first dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Before the first dot; printable ASCII, 1 to 128 bytes ("anonymous" where nothing was said).
    pub account: Arc<str>,
    /// After it; may be empty.
    pub worker: Arc<str>,
}

impl Owner {
    /// `account.worker`, cut at the first dot. `None` if it is too long or not printable ASCII: it will
    /// stand in logs, tables and pages.
    #[must_use]
    pub fn of_identity(identity: &[u8]) -> Option<Self> {
        let printable = identity.iter().all(|byte| (0x20..=0x7e).contains(byte));
        if !printable || identity.len() > USER_IDENTITY_MAX {
            return None;
        }
        let text = std::str::from_utf8(identity).ok()?;
        let (account, worker) = text.split_once('.').unwrap_or((text, ""));
        let account = if account.is_empty() { "anonymous" } else { account };
        Some(Self { account: account.into(), worker: worker.into() })
    }
}

/// Accepted shares of one owner on one job, on their way to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditGroup {
    /// Channel on which they came.
    pub channel: ChannelId,
    /// Who earns them.
    pub owner: Owner,
    /// The server's part of the channel's extranonce.
    pub extranonce_prefix: ExtranoncePrefix,
    /// The template that the job was made of.
    pub template: TemplateId,
    /// nSequence of the job's coinbase input, by which jobs of one template differ.
    pub coinbase_sequence: u32,
    /// The tip that it built on, header byte order.
    pub prev_hash: [u8; 32],
    /// What the job's work is worth.
    pub worth: Worth,
    /// The shares, in the order they came; never empty.
    pub proofs: Vec<Proof>,
}

/// What leaves a connection for the ledger at once and is committed at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditBatch {
    /// Counts up on the connection; comes back with the commit.
    pub id: u64,
    /// At least one group; at most `CREDIT_BATCH_MAX` proofs in all, or
    /// `CREDIT_BATCH_WAITING_MAX` after the ledger was behind.
    pub groups: Vec<CreditGroup>,
}

impl CreditBatch {
    /// In all its groups.
    #[must_use]
    pub fn shares(&self) -> usize {
        self.groups.iter().map(|group| group.proofs.len()).sum()
    }
}

/// The ledger's word that a batch is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The batch's id.
    pub id: u64,
    /// Hashes of proofs that were credited before and now were not.
    pub duplicates: Vec<[u8; 32]>,
}
