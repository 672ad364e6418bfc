//! The job declaration protocol (spec chapter 6): `server` is the pool's side of one declarer's connection,
//! `client` the declarator's.
//! What its task, the check of a declaration and tests name stands here.

pub mod client;
pub mod server;

use std::sync::Arc;

use crate::token::MiningJobToken;
use crate::wire::B032;

/// DeclareMiningJob, and the transactions that its declarer was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// The declarer's number for his request.
    pub request_id: u32,
    /// Allocated to him, or so he says: the book of tokens knows (`Tokens::account_of`).
    pub token: MiningJobToken,
    /// Header version before rolling.
    pub version: u32,
    /// The coinbase up to the extranonce, with segwit marker and flag if it has a witness.
    pub coinbase_prefix: Vec<u8>,
    /// The coinbase behind the extranonce, with its witness.
    pub coinbase_suffix: Vec<u8>,
    /// Of every transaction but the coinbase, in block order; at most `DECLARED_TRANSACTIONS_MAX`.
    pub wtxids: Vec<[u8; 32]>,
    /// What the declarer was asked for: position and bytes, in the order asked. They are what he says,
    /// nothing is checked of them but their number. Empty until he was asked.
    pub supplied: Vec<(u16, Arc<[u8]>)>,
    /// He was asked once and will not be again: what is missing now is missing.
    pub was_asked: bool,
}

/// PushSolution: a header that meets the network's target, without a word about which job it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solution {
    /// The full extranonce: the channel's prefix and what was rolled.
    pub extranonce: B032,
    /// Tip, header byte order.
    pub prev_hash: [u8; 32],
    /// Nonce.
    pub nonce: u32,
    /// Header time.
    pub ntime: u32,
    /// Compact target.
    pub nbits: u32,
    /// Full header version.
    pub version: u32,
}

/// Why a declaration is refused, each with its code (`RULES.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeclareRefusal {
    /// The setup said that transactions are kept private, so no full template can be declared.
    NoTransactionData,
    /// No such token, one that is used up, or one of another account.
    InvalidToken,
    /// Transactions that we do not have and that did not come when they were asked for.
    MissingTransactions,
    /// The coinbase cannot be read, is too large, or breaks a consensus rule.
    InvalidCoinbaseTx,
    /// The coinbase's input: height, length of the script, room for the extranonce.
    InvalidCoinbaseTxInput,
    /// The coinbase pays less to whom the pool says than it must, or more than there is (rule JS4).
    InvalidCoinbaseOutputs,
    /// The tip moved while the declaration was checked.
    StaleChainTip,
    /// Not a block that the network would take.
    InvalidJob,
    /// More declarations than a declarer has reason to make.
    TooMany,
    /// Our fault.
    Internal,
}

impl DeclareRefusal {
    /// Every refusal, for tables and metrics.
    pub const ALL: [Self; 10] = [
        Self::NoTransactionData,
        Self::InvalidToken,
        Self::MissingTransactions,
        Self::InvalidCoinbaseTx,
        Self::InvalidCoinbaseTxInput,
        Self::InvalidCoinbaseOutputs,
        Self::StaleChainTip,
        Self::InvalidJob,
        Self::TooMany,
        Self::Internal,
    ];

    /// What histories, logs and metrics call it.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NoTransactionData => "missing-declare-tx-data-flag",
            Self::InvalidToken => "invalid-mining-job-token",
            Self::MissingTransactions => "missing-txs",
            Self::InvalidCoinbaseTx => "invalid-coinbase-tx",
            Self::InvalidCoinbaseTxInput => "invalid-coinbase-tx-input",
            Self::InvalidCoinbaseOutputs => "invalid-coinbase-tx-outputs",
            Self::StaleChainTip => "stale-chain-tip",
            Self::InvalidJob => "invalid-job",
            Self::TooMany => "too-many-declarations",
            Self::Internal => "internal-error",
        }
    }

    /// The error_code of DeclareMiningJob.Error: `code`, but for what is our state and no fault of the
    /// declarer's. SRI's declarator leaves a pool for good on any code but `stale-chain-tip`, on which it
    /// declares its next template; a pool whose node restarts must not lose every one of them.
    #[must_use]
    pub const fn code_on_wire(self) -> &'static str {
        match self {
            Self::TooMany | Self::Internal => Self::StaleChainTip.code(),
            Self::NoTransactionData
            | Self::InvalidToken
            | Self::MissingTransactions
            | Self::InvalidCoinbaseTx
            | Self::InvalidCoinbaseTxInput
            | Self::InvalidCoinbaseOutputs
            | Self::StaleChainTip
            | Self::InvalidJob => self.code(),
        }
    }
}
