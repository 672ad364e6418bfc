//! Custom jobs: what a client asks for with SetCustomMiningJob, what it is told, and what the shares of
//! such a job are worth (spec 05 §5.3.18). Named by `server`, by the pool's judge of these requests and
//! by `job-declarator`, which makes the job. Nothing here decides anything.

use std::sync::Arc;

use crate::job::Job;
use crate::limits::EXTRANONCE_LEN;
use crate::mining::ChannelId;
use crate::template::{CoinbaseParts, PrevHash};
use crate::token::MiningJobToken;

/// Names an approved declaration in the store, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeclaredId(pub [u8; 16]);

/// What the work of a job is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worth {
    /// The declaration that it is of; `None` of the pool's own jobs.
    pub declared: Option<DeclaredId>,
    /// Parts in a million that its work is credited with (floor): what its coinbase pays the pool against
    /// the pool's own template of the same tip.
    pub factor_ppm: u32,
}

impl Worth {
    /// Work on a job of the pool's own.
    pub const POOL_JOB: Self = Self { declared: None, factor_ppm: 1_000_000 };
}

/// SetCustomMiningJob, as far as it can be held to be sane without knowing of tokens and tips: lengths are
/// within bounds, the token has a token's length, the channel is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomJobRequest {
    /// An extended channel, or the group for all extended channels of the connection.
    pub channel: ChannelId,
    /// The client's number for its request.
    pub request_id: u32,
    /// From Allocate.Success (coinbase-only) or DeclareMiningJob.Success (full template).
    pub token: MiningJobToken,
    /// Whom the shares are credited to: the token must have been issued to him.
    pub account: Arc<str>,
    /// Header version before rolling.
    pub version: u32,
    /// Tip, header byte order.
    pub prev_hash: [u8; 32],
    /// When hashing starts, unix seconds.
    pub min_ntime: u32,
    /// Compact target.
    pub nbits: u32,
    /// nVersion of the coinbase.
    pub coinbase_tx_version: u32,
    /// scriptSig before the extranonce, of any length that leaves room for it.
    pub coinbase_prefix: Vec<u8>,
    /// nSequence of the coinbase's input.
    pub coinbase_sequence: u32,
    /// CompactSize count and outputs.
    pub outputs: Vec<u8>,
    /// nLockTime of the coinbase.
    pub locktime: u32,
    /// Siblings of the coinbase, deepest first.
    pub merkle_path: Vec<[u8; 32]>,
}

impl CustomJobRequest {
    /// The coinbase that it asks for, txid form: the extranonce ends scriptSig.
    #[must_use]
    pub fn coinbase(&self) -> CoinbaseParts {
        let script_sig = self.coinbase_prefix.len() + EXTRANONCE_LEN;
        let mut prefix = Vec::with_capacity(42 + self.coinbase_prefix.len());
        prefix.extend_from_slice(&self.coinbase_tx_version.to_le_bytes());
        prefix.push(1);
        prefix.extend_from_slice(&[0; 32]);
        prefix.extend_from_slice(&[0xff; 4]);
        // One byte: the server refuses what leaves no room within SCRIPT_SIG_MAX.
        prefix.push(script_sig as u8);
        prefix.extend_from_slice(&self.coinbase_prefix);
        let mut suffix = Vec::with_capacity(8 + self.outputs.len());
        suffix.extend_from_slice(&self.coinbase_sequence.to_le_bytes());
        suffix.extend_from_slice(&self.outputs);
        suffix.extend_from_slice(&self.locktime.to_le_bytes());
        CoinbaseParts { prefix, suffix }
    }
}

/// A custom job that the pool promises to credit.
#[derive(Debug, Clone)]
pub struct CustomJob {
    /// What is mined, of `Job::from_parts`.
    pub job: Job,
    /// The tip that it builds on, with the start that the client asked for.
    pub tip: PrevHash,
    /// What its work is worth.
    pub worth: Worth,
}

/// Why there is no custom job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomRefused {
    /// As the client named it.
    pub channel: ChannelId,
    /// The client's number for its request.
    pub request_id: u32,
    /// What the client is told.
    pub refusal: CustomRefusal,
    /// What the connection's history says besides, for people.
    pub reason: String,
}

/// Each with its code (`RULES.md`): SRI's strings, on which its declarator decides whether it looks for
/// another pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CustomRefusal {
    /// The setup did not say REQUIRES_WORK_SELECTION, or no job is declared here (rule P60).
    NotSupported,
    /// No such channel, or one that is not extended, or a group of several accounts.
    InvalidChannelId,
    /// No such token, one of another account, one that is used up.
    InvalidToken,
    /// A token that was allocated and not declared, where a full template is asked for; or a declaration
    /// whose check is not over.
    NotYetValidated,
    /// Not our tip, and not within the time that a miner may be ahead of us.
    StaleChainTip,
    /// A start that the chain does not allow, or that lies too far ahead.
    InvalidMinNtime,
    /// Not the target of the block to be found.
    InvalidNbits,
    /// Another version than declared.
    InvalidVersion,
    /// Another coinbase version than declared.
    InvalidCoinbaseTxVersion,
    /// No room for the extranonce, or another prefix than declared.
    InvalidCoinbasePrefix,
    /// Another sequence than declared.
    InvalidCoinbaseSequence,
    /// No outputs, too many bytes of them, not what was declared, or not what the pool asks for (rule P63).
    InvalidCoinbaseOutputs,
    /// Another lock time than declared.
    InvalidCoinbaseLocktime,
    /// Longer than a block's, or not of the declared transactions.
    InvalidMerklePath,
    /// A coinbase that is none in another way.
    InvalidCoinbaseTx,
    /// More custom jobs, or requests for them, than a client has reason to have.
    TooManyJobs,
    /// Our fault.
    Internal,
}

impl CustomRefusal {
    /// Every refusal, for tables and metrics.
    pub const ALL: [Self; 17] = [
        Self::NotSupported,
        Self::InvalidChannelId,
        Self::InvalidToken,
        Self::NotYetValidated,
        Self::StaleChainTip,
        Self::InvalidMinNtime,
        Self::InvalidNbits,
        Self::InvalidVersion,
        Self::InvalidCoinbaseTxVersion,
        Self::InvalidCoinbasePrefix,
        Self::InvalidCoinbaseSequence,
        Self::InvalidCoinbaseOutputs,
        Self::InvalidCoinbaseLocktime,
        Self::InvalidMerklePath,
        Self::InvalidCoinbaseTx,
        Self::TooManyJobs,
        Self::Internal,
    ];

    /// What histories, logs and metrics call it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotSupported => "jd-not-supported",
            Self::InvalidChannelId => "invalid-channel-id",
            Self::InvalidToken => "invalid-mining-job-token",
            Self::NotYetValidated => "job-not-yet-validated",
            Self::StaleChainTip => "stale-chain-tip",
            Self::InvalidMinNtime => "invalid-min-ntime",
            Self::InvalidNbits => "invalid-nbits",
            Self::InvalidVersion => "invalid-version",
            Self::InvalidCoinbaseTxVersion => "invalid-coinbase-tx-version",
            Self::InvalidCoinbasePrefix => "invalid-coinbase-prefix",
            Self::InvalidCoinbaseSequence => "invalid-coinbase-tx-input-n-sequence",
            Self::InvalidCoinbaseOutputs => "invalid-coinbase-tx-outputs",
            Self::InvalidCoinbaseLocktime => "invalid-coinbase-tx-locktime",
            Self::InvalidMerklePath => "invalid-merkle-path",
            Self::InvalidCoinbaseTx => "invalid-coinbase-tx",
            Self::TooManyJobs => "too-many-jobs",
            Self::Internal => "internal-error",
        }
    }

    /// The error_code of SetCustomMiningJob.Error: `code`, but for what is our state and no fault of the
    /// client's, as `DeclareRefusal::code_on_wire` has it.
    #[must_use]
    pub const fn code_on_wire(self) -> &'static str {
        match self {
            Self::TooManyJobs | Self::Internal => Self::StaleChainTip.code(),
            Self::NotSupported
            | Self::InvalidChannelId
            | Self::InvalidToken
            | Self::NotYetValidated
            | Self::StaleChainTip
            | Self::InvalidMinNtime
            | Self::InvalidNbits
            | Self::InvalidVersion
            | Self::InvalidCoinbaseTxVersion
            | Self::InvalidCoinbasePrefix
            | Self::InvalidCoinbaseSequence
            | Self::InvalidCoinbaseOutputs
            | Self::InvalidCoinbaseLocktime
            | Self::InvalidMerklePath
            | Self::InvalidCoinbaseTx => self.code(),
        }
    }
}
