//! Why a job of a miner's own is refused: what he reads, and the code that his program does. Made by
//! `check`, `custom_job` and `coinbase_only`.

use proto::declare::DeclareRefusal;
use proto::mining::CustomRefusal;
use thiserror::Error;

/// What is wrong with a declaration or a custom job. `Display` is for the miner's log.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Prefix, suffix or outputs longer than a coinbase needs.
    #[error("a coinbase part of {0} bytes is longer than a job may have")]
    CoinbaseTooLong(usize),
    /// The parts around an extranonce are no transaction, or something follows it.
    #[error("the coinbase is no transaction around an extranonce of the pool's length")]
    NoTransaction,
    /// A coinbase has one input.
    #[error("the coinbase has {0} inputs")]
    InputCount(u64),
    /// It spends something.
    #[error("the coinbase's input names a transaction")]
    PreviousOutput,
    /// scriptSig must have 2 to 100 bytes.
    #[error("a scriptSig of {0} bytes with the extranonce; 2 to 100 are allowed")]
    ScriptSigLength(usize),
    /// The prefix does not end where the extranonce has to begin.
    #[error("the extranonce does not end the coinbase's scriptSig")]
    ExtranonceNotLast,
    /// scriptSig starts with no height (BIP34).
    #[error("the coinbase's scriptSig does not start with a height")]
    NoHeight,
    /// It is for another block than the next one here.
    #[error("the coinbase is for height {found}; the next block here is {expected}")]
    OtherHeight {
        /// The height in its scriptSig; one more than `expected` from a miner who is ahead of us.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// It would not be final at its height.
    #[error("the coinbase is locked until {0}")]
    LockTime(u32),
    /// Its outputs cannot be read to their end, or there is none.
    #[error("the coinbase's outputs cannot be read, or there are none")]
    Outputs,
    /// More money than can be.
    #[error("the coinbase pays more than there can be")]
    Money,
    /// A required output is missing or short.
    #[error("the coinbase pays {paid} sats to {script}, which is due {due}")]
    Underpaid {
        /// scriptPubKey, hex.
        script: String,
        /// What it gets.
        paid: u64,
        /// What it must get.
        due: u64,
    },
    /// No satoshi at all for the pool (rule P63).
    #[error("the coinbase pays the pool nothing")]
    NothingPaid,
    /// It commits to witnesses without the reserved value of 32 zero bytes, or has something else.
    #[error("the coinbase's witness is not the reserved value of 32 zero bytes")]
    ReservedValue,
    /// There are witnesses, and no output commits to them.
    #[error("the coinbase does not commit to the block's witnesses")]
    NoCommitment,
    /// The commitment is another list's.
    #[error("the coinbase's witness commitment is not that of the transactions")]
    Commitment,
    /// A header version that is none any more, whatever bits are rolled.
    #[error("a header version of {0:#010x}")]
    Version(u32),
    /// More than a block holds.
    #[error("{0} transactions are more than a block holds")]
    TooManyTransactions(usize),
    /// A wtxid stands twice in the list.
    #[error("transaction {0} is in the list twice")]
    Repeated(usize),
    /// Only the first transaction of a block may spend nothing.
    #[error("transaction {0} is a coinbase")]
    CoinbaseInside(u16),
    /// What was supplied for a position cannot be read.
    #[error("what was supplied as transaction {0} is none")]
    NotATransaction(u16),
    /// What was supplied for a position is not what the list names.
    #[error("what was supplied as transaction {0} is not the declared one")]
    OtherTransaction(u16),
    /// A node takes long over one: its signatures may each hash all of it.
    #[error(
        "transaction {position} has {stripped} bytes without its witness, and the pool does not know it"
    )]
    TransactionTooLong {
        /// In the list.
        position: u16,
        /// Bytes without the witness.
        stripped: u64,
    },
    /// A position was supplied twice.
    #[error("a transaction was supplied twice")]
    SuppliedTwice,
    /// Above four million.
    #[error("a block of weight {0}")]
    Weight(u64),
    /// Above eighty thousand.
    #[error("signature operations of cost {0}")]
    Sigops(u64),
    /// Its prev_hash is not our tip, or not the tip that it was declared on.
    #[error("the job is not for the present tip")]
    OtherTip,
    /// Not our next block's target.
    #[error("nbits {0:08x} is not the next block's")]
    Nbits(u32),
    /// Before what consensus takes, or too far ahead.
    #[error("min_ntime {0} is before what a block may have, or too far ahead")]
    MinNtime(u32),
    /// Another header version than declared.
    #[error("another version than declared")]
    DeclaredVersion,
    /// Another coinbase version than declared.
    #[error("another coinbase version than declared")]
    DeclaredCoinbaseVersion,
    /// Another scriptSig than declared.
    #[error("another coinbase prefix than declared")]
    DeclaredPrefix,
    /// Another nSequence than declared.
    #[error("another coinbase sequence than declared")]
    DeclaredSequence,
    /// Other outputs than declared.
    #[error("other coinbase outputs than declared")]
    DeclaredOutputs,
    /// Another lock time than declared.
    #[error("another coinbase lock time than declared")]
    DeclaredLockTime,
    /// Another path than the declared transactions give, or one that no block needs.
    #[error("a merkle path that is not the declared transactions', or of too many branches")]
    MerklePath,
}

impl Refusal {
    /// What DeclareMiningJob.Error says.
    #[must_use]
    pub const fn declare(&self) -> DeclareRefusal {
        match self {
            Self::OtherHeight { .. } | Self::OtherTip => DeclareRefusal::StaleChainTip,
            Self::InputCount(_)
            | Self::PreviousOutput
            | Self::ScriptSigLength(_)
            | Self::ExtranonceNotLast
            | Self::NoHeight
            | Self::DeclaredPrefix
            | Self::DeclaredSequence => DeclareRefusal::InvalidCoinbaseTxInput,
            Self::Outputs
            | Self::Money
            | Self::Underpaid { .. }
            | Self::NothingPaid
            | Self::DeclaredOutputs => DeclareRefusal::InvalidCoinbaseOutputs,
            Self::CoinbaseTooLong(_)
            | Self::NoTransaction
            | Self::LockTime(_)
            | Self::ReservedValue
            | Self::NoCommitment
            | Self::Commitment
            | Self::DeclaredCoinbaseVersion
            | Self::DeclaredLockTime => DeclareRefusal::InvalidCoinbaseTx,
            Self::NotATransaction(_) | Self::OtherTransaction(_) | Self::SuppliedTwice => {
                DeclareRefusal::MissingTransactions
            }
            Self::Version(_)
            | Self::TooManyTransactions(_)
            | Self::Repeated(_)
            | Self::CoinbaseInside(_)
            | Self::TransactionTooLong { .. }
            | Self::Weight(_)
            | Self::Sigops(_)
            | Self::Nbits(_)
            | Self::MinNtime(_)
            | Self::DeclaredVersion
            | Self::MerklePath => DeclareRefusal::InvalidJob,
        }
    }

    /// What SetCustomMiningJob.Error says: the field that is wrong.
    #[must_use]
    pub const fn custom(&self) -> CustomRefusal {
        match self {
            Self::OtherTip => CustomRefusal::StaleChainTip,
            Self::Nbits(_) => CustomRefusal::InvalidNbits,
            Self::MinNtime(_) => CustomRefusal::InvalidMinNtime,
            Self::Version(_) | Self::DeclaredVersion => CustomRefusal::InvalidVersion,
            Self::DeclaredCoinbaseVersion => CustomRefusal::InvalidCoinbaseTxVersion,
            Self::ScriptSigLength(_)
            | Self::NoHeight
            | Self::OtherHeight { .. }
            | Self::DeclaredPrefix => CustomRefusal::InvalidCoinbasePrefix,
            Self::DeclaredSequence => CustomRefusal::InvalidCoinbaseSequence,
            Self::CoinbaseTooLong(_)
            | Self::Outputs
            | Self::Money
            | Self::Underpaid { .. }
            | Self::NothingPaid
            | Self::NoCommitment
            | Self::Commitment
            | Self::DeclaredOutputs => CustomRefusal::InvalidCoinbaseOutputs,
            Self::LockTime(_) | Self::DeclaredLockTime => CustomRefusal::InvalidCoinbaseLocktime,
            Self::MerklePath => CustomRefusal::InvalidMerklePath,
            Self::NoTransaction
            | Self::InputCount(_)
            | Self::PreviousOutput
            | Self::ExtranonceNotLast
            | Self::ReservedValue
            | Self::TooManyTransactions(_)
            | Self::Repeated(_)
            | Self::CoinbaseInside(_)
            | Self::NotATransaction(_)
            | Self::OtherTransaction(_)
            | Self::TransactionTooLong { .. }
            | Self::SuppliedTwice
            | Self::Weight(_)
            | Self::Sigops(_) => CustomRefusal::InvalidCoinbaseTx,
        }
    }
}
