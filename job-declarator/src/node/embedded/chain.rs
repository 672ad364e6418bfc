//! The embedded chain's rules and state: which blocks there are, which coins can be spent, what the
//! next block must obey. Called by `embedded.rs` under its lock; pure: no clock, no file, no thread.
//!
//! Rules are regtest's with every soft fork on, refusals are named as Bitcoin Core names them. Two are
//! stricter, because no script interpreter is here: only outputs of `P2WSH(OP_TRUE)` can be spent, and
//! transactions must not use lock times. There is no reorganisation: the first block on the tip stays.

use std::collections::{BTreeMap, HashMap, HashSet};

use bitcoin::blockdata::block::Version;
use bitcoin::hashes::Hash;
use bitcoin::{
    Block, BlockHash, OutPoint, Script, Transaction, TxMerkleNode, TxOut, Txid, merkle_tree,
};
use proto::target::Target;
use thiserror::Error;

use crate::limits::{
    BLOCK_LEN_MAX, BLOCK_WEIGHT_MAX, HALVING_INTERVAL_REGTEST, MONEY_MAX_SATS, SIGOP_COST_MAX,
};
use crate::node::assemble::{COMMITMENT_HEADER, height_push, subsidy_sats};

/// The easiest target, regtest's: every second hash is a block.
pub(super) const REGTEST_NBITS: u32 = 0x207f_ffff;
/// A coinbase can be spent by the block this much higher.
const COINBASE_MATURITY: u32 = 100;
/// Blocks whose middle time a new one must exceed.
const MEDIAN_TIME_SPAN: usize = 11;
/// How far a block may be ahead of the clock, seconds.
const AHEAD_MAX_S: u32 = 7_200;
/// The one witness script that this chain can run: OP_TRUE.
const OP_TRUE_SCRIPT: [u8; 1] = [0x51];

/// What a chain is made with; never changes afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    /// Up to this height every second hash is a block.
    pub(super) start_height: u32,
    /// Compact target from there on.
    pub(super) nbits: u32,
}

/// A coin that can be spent here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coin {
    pub(super) sats: u64,
    /// Of the block that made it.
    pub(super) height: u32,
    pub(super) from_coinbase: bool,
}

/// What a block does to the coins, found while verifying it.
#[derive(Debug)]
pub(super) struct Changes {
    spent: Vec<OutPoint>,
    made: Vec<(OutPoint, Coin)>,
}

/// Whether a block's hash must meet the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProofOfWork {
    Required,
    Ignored,
}

/// A block with what can be said of it without knowing any other, so that this much of the work is done
/// before anybody takes the chain's lock.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) block: Block,
    txids: Vec<Txid>,
    body: Result<(), BlockFault>,
}

impl Candidate {
    /// Hashes every transaction some times.
    pub(super) fn new(block: Block) -> Self {
        let txids: Vec<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
        let body = verify_body(&block, &txids);
        Self { block, txids, body }
    }
}

/// Why a block is refused, in Core's words first.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum BlockFault {
    #[error("prev-blk-not-found")]
    UnknownPrevious,
    #[error("inconclusive-not-best-prevblk")]
    NotOnTip,
    #[error("high-hash, proof of work failed")]
    HighHash,
    #[error("bad-diffbits: {found:08x}, expected {expected:08x}")]
    Bits { found: u32, expected: u32 },
    #[error("time-too-old: {found}, must be above {median}")]
    TimeTooOld { found: u32, median: u32 },
    #[error("time-too-new: {found}, must not be above {latest}")]
    TimeTooNew { found: u32, latest: u32 },
    #[error("bad-version(0x{0:08x})")]
    Version(i32),
    #[error("bad-blk-length")]
    Length,
    #[error("bad-blk-weight: {0}")]
    Weight(u64),
    #[error("bad-blk-sigops: {0}")]
    Sigops(usize),
    #[error("bad-cb-missing")]
    CoinbaseMissing,
    #[error("bad-cb-multiple")]
    CoinbaseMultiple,
    #[error("bad-cb-length: scriptSig of {0} bytes")]
    CoinbaseLength(usize),
    #[error("bad-cb-height: expected {0}")]
    CoinbaseHeight(u32),
    #[error("bad-cb-amount: {paid} sats, {allowed} allowed")]
    CoinbaseAmount { paid: u64, allowed: u64 },
    #[error("bad-txnmrklroot, hashMerkleRoot mismatch")]
    MerkleRoot,
    #[error("bad-txns-duplicate")]
    DuplicateTransaction,
    #[error("bad-witness-nonce-size")]
    WitnessNonce,
    #[error("bad-witness-merkle-match")]
    WitnessCommitment,
    #[error("unexpected-witness")]
    UnexpectedWitness,
    #[error("bad-txns-vin-empty or bad-txns-vout-empty")]
    EmptyTransaction,
    #[error("bad-txns-vout-toolarge")]
    OutputTooLarge,
    #[error("bad-txns-nonfinal: lock times are not checked here")]
    LockTime,
    #[error("bad-txns-inputs-missingorspent (or not P2WSH(OP_TRUE)): {0}")]
    InputMissing(OutPoint),
    #[error("bad-txns-premature-spend-of-coinbase: {0}")]
    Immature(OutPoint),
    #[error("block-script-verify-flag-failed: the witness of {0} is not the script OP_TRUE")]
    Script(OutPoint),
    #[error("bad-txns-in-belowout")]
    FeeNegative,
}

/// One block of the chain as far as later ones need it.
#[derive(Debug)]
struct Link {
    hash: BlockHash,
    time: u32,
}

/// Blocks and coins. Memory grows by about 100 bytes a block and a spendable coin; blocks cost work.
#[derive(Debug)]
pub(super) struct Chain {
    parameters: Parameters,
    /// By height; the genesis block is always there.
    links: Vec<Link>,
    heights: HashMap<BlockHash, u32>,
    coins: BTreeMap<OutPoint, Coin>,
}

impl Chain {
    /// Regtest's genesis block alone.
    pub(super) fn new(parameters: Parameters) -> Self {
        let genesis = bitcoin::constants::genesis_block(bitcoin::Network::Regtest).header;
        let hash = genesis.block_hash();
        Self {
            parameters,
            links: vec![Link { hash, time: genesis.time }],
            heights: HashMap::from([(hash, 0)]),
            coins: BTreeMap::new(),
        }
    }

    pub(super) fn tip(&self) -> BlockHash {
        self.links.last().expect("the genesis block is always there").hash
    }

    pub(super) fn height(&self) -> u32 {
        (self.links.len() - 1) as u32
    }

    pub(super) fn height_of(&self, hash: &BlockHash) -> Option<u32> {
        self.heights.get(hash).copied()
    }

    /// Compact target of the block at `height`.
    pub(super) fn nbits_at(&self, height: u32) -> u32 {
        if height <= self.parameters.start_height { REGTEST_NBITS } else { self.parameters.nbits }
    }

    /// Subsidy at `height`.
    pub(super) fn subsidy_sats(height: u32) -> u64 {
        subsidy_sats(height, HALVING_INTERVAL_REGTEST)
    }

    /// The next block's time must be above this.
    pub(super) fn median_time_past(&self) -> u32 {
        let from = self.links.len().saturating_sub(MEDIAN_TIME_SPAN);
        let mut times: Vec<u32> = self.links[from..].iter().map(|link| link.time).collect();
        times.sort_unstable();
        times[times.len() / 2]
    }

    /// Coins that the next block may spend, in a fixed order.
    pub(super) fn spendable(&self) -> impl Iterator<Item = (OutPoint, Coin)> {
        let height = self.height() + 1;
        self.coins
            .iter()
            .filter(move |(_, coin)| coin.is_mature_at(height))
            .map(|(outpoint, coin)| (*outpoint, *coin))
    }

    /// Whether a block may follow the tip; what to hand to `connect` if so.
    pub(super) fn verify(
        &self,
        candidate: &Candidate,
        now: u32,
        proof_of_work: ProofOfWork,
    ) -> Result<Changes, BlockFault> {
        let block = &candidate.block;
        self.verify_header(block, proof_of_work)?;
        candidate.body.clone()?;
        if block.header.prev_blockhash != self.tip() {
            return Err(BlockFault::NotOnTip);
        }

        let (found, median) = (block.header.time, self.median_time_past());
        if found <= median {
            return Err(BlockFault::TimeTooOld { found, median });
        }
        let latest = now.saturating_add(AHEAD_MAX_S);
        if found > latest {
            return Err(BlockFault::TimeTooNew { found, latest });
        }
        // Below 4 are the versions from before BIP65; signed, as consensus reads it.
        if block.header.version < Version::from_consensus(4) {
            return Err(BlockFault::Version(block.header.version.to_consensus()));
        }
        let height = self.height() + 1;
        let script_sig = block.txdata[0].input[0].script_sig.as_bytes();
        if !script_sig.starts_with(&height_push(height)) {
            return Err(BlockFault::CoinbaseHeight(height));
        }
        self.verify_coins(candidate, height)
    }

    /// Puts a verified block on the tip.
    pub(super) fn connect(&mut self, block: &Block, changes: Changes) {
        for outpoint in &changes.spent {
            self.coins.remove(outpoint);
        }
        self.coins.extend(changes.made);
        let hash = block.block_hash();
        self.links.push(Link { hash, time: block.header.time });
        self.heights.insert(hash, self.height());
    }

    fn verify_header(&self, block: &Block, proof_of_work: ProofOfWork) -> Result<(), BlockFault> {
        let header = &block.header;
        let previous = self.height_of(&header.prev_blockhash).ok_or(BlockFault::UnknownPrevious)?;
        let (found, expected) = (header.bits.to_consensus(), self.nbits_at(previous + 1));
        if found != expected {
            return Err(BlockFault::Bits { found, expected });
        }
        let target = Target::from_compact(found);
        let hash = header.block_hash().to_byte_array();
        if proof_of_work == ProofOfWork::Required && !target.is_met_by(&hash) {
            return Err(BlockFault::HighHash);
        }
        Ok(())
    }

    /// Every input exists, is unlocked by its witness and is spent once; nobody makes money.
    fn verify_coins(&self, candidate: &Candidate, height: u32) -> Result<Changes, BlockFault> {
        let block = &candidate.block;
        let mut made: BTreeMap<OutPoint, Coin> = BTreeMap::new();
        let mut spent = HashSet::new();
        let mut fees = 0;
        let mut sigop_cost = 0;
        let transactions = block.txdata.iter().zip(&candidate.txids);
        for (position, (transaction, txid)) in transactions.enumerate() {
            let mut inputs_sats = 0;
            for input in transaction.input.iter().filter(|_| position > 0) {
                let outpoint = input.previous_output;
                let coin = made
                    .get(&outpoint)
                    .or_else(|| self.coins.get(&outpoint))
                    .filter(|_| !spent.contains(&outpoint))
                    .ok_or(BlockFault::InputMissing(outpoint))?;
                if !coin.is_mature_at(height) {
                    return Err(BlockFault::Immature(outpoint));
                }
                let mut witness = input.witness.iter();
                let is_op_true =
                    witness.next() == Some(&OP_TRUE_SCRIPT) && witness.next().is_none();
                if !is_op_true || !input.script_sig.is_empty() {
                    return Err(BlockFault::Script(outpoint));
                }
                inputs_sats += coin.sats;
                spent.insert(outpoint);
            }
            let outputs_sats = outputs_sum(transaction)?;
            if position > 0 {
                let fee = inputs_sats.checked_sub(outputs_sats);
                fees += fee.ok_or(BlockFault::FeeNegative)?;
            }
            // Spent outputs are P2WSH without signatures, so only what stands in the open counts.
            sigop_cost += transaction.total_sigop_cost(|_| None::<TxOut>);
            made.extend(spendable_outputs(transaction, *txid, height, position == 0));
        }
        if sigop_cost as u64 > SIGOP_COST_MAX {
            return Err(BlockFault::Sigops(sigop_cost));
        }
        let (paid, allowed) = (outputs_sum(&block.txdata[0])?, Self::subsidy_sats(height) + fees);
        if paid > allowed {
            return Err(BlockFault::CoinbaseAmount { paid, allowed });
        }
        made.retain(|outpoint, _| !spent.contains(outpoint));
        Ok(Changes { spent: spent.into_iter().collect(), made: made.into_iter().collect() })
    }
}

impl Coin {
    fn is_mature_at(&self, height: u32) -> bool {
        !self.from_coinbase || height >= self.height + COINBASE_MATURITY
    }
}

/// scriptPubKey of the outputs that this chain can spend: `P2WSH(OP_TRUE)`.
pub(super) fn op_true_output() -> Vec<u8> {
    let script = Script::from_bytes(&OP_TRUE_SCRIPT);
    bitcoin::ScriptBuf::new_p2wsh(&script.wscript_hash()).into_bytes()
}

/// The witness that spends them.
pub(super) fn op_true_witness() -> bitcoin::Witness {
    bitcoin::Witness::from_slice(&[OP_TRUE_SCRIPT])
}

/// What can be said of a block without knowing any other; `txids` are those of its transactions.
fn verify_body(block: &Block, txids: &[Txid]) -> Result<(), BlockFault> {
    let coinbase = block.txdata.first().ok_or(BlockFault::Length)?;
    let root = merkle_tree::calculate_root(txids.iter().map(|txid| txid.to_raw_hash()));
    if root.map(TxMerkleNode::from_raw_hash) != Some(block.header.merkle_root) {
        return Err(BlockFault::MerkleRoot);
    }
    // A repeated transaction at the end can leave the root as it was (CVE-2012-2459).
    let mut seen = HashSet::with_capacity(txids.len());
    if !txids.iter().all(|txid| seen.insert(txid)) {
        return Err(BlockFault::DuplicateTransaction);
    }
    if block.total_size() > BLOCK_LEN_MAX {
        return Err(BlockFault::Length);
    }
    if !coinbase.is_coinbase() {
        return Err(BlockFault::CoinbaseMissing);
    }
    if block.txdata[1..].iter().any(Transaction::is_coinbase) {
        return Err(BlockFault::CoinbaseMultiple);
    }
    let script_sig = coinbase.input[0].script_sig.len();
    if !(2..=proto::limits::SCRIPT_SIG_MAX).contains(&script_sig) {
        return Err(BlockFault::CoinbaseLength(script_sig));
    }
    for transaction in &block.txdata {
        if transaction.input.is_empty() || transaction.output.is_empty() {
            return Err(BlockFault::EmptyTransaction);
        }
        // BIP68 leaves the coinbase out: its nSequence is the pool's to use.
        let relative = !transaction.is_coinbase()
            && transaction.input.iter().any(|input| input.sequence.is_relative_lock_time());
        let locked = transaction.lock_time.to_consensus_u32() != 0 || relative;
        if locked && transaction.is_lock_time_enabled() {
            return Err(BlockFault::LockTime);
        }
    }
    verify_witness_commitment(block)?;
    let weight = block.weight().to_wu();
    if weight > BLOCK_WEIGHT_MAX { Err(BlockFault::Weight(weight)) } else { Ok(()) }
}

/// BIP141: a coinbase output that looks like a commitment is one, and witnesses need one.
fn verify_witness_commitment(block: &Block) -> Result<(), BlockFault> {
    let coinbase = &block.txdata[0];
    let commits = coinbase.output.iter().any(|output| {
        output.script_pubkey.len() >= 38
            && output.script_pubkey.as_bytes().starts_with(&COMMITMENT_HEADER)
    });
    if !commits {
        let has_witness = block
            .txdata
            .iter()
            .any(|transaction| transaction.input.iter().any(|input| !input.witness.is_empty()));
        return if has_witness { Err(BlockFault::UnexpectedWitness) } else { Ok(()) };
    }
    let witness = &coinbase.input[0].witness;
    if witness.len() != 1 || witness.nth(0).map(<[u8]>::len) != Some(32) {
        return Err(BlockFault::WitnessNonce);
    }
    // The crate takes the last such output and the reserved value from the witness, as consensus does.
    if block.check_witness_commitment() { Ok(()) } else { Err(BlockFault::WitnessCommitment) }
}

/// Sum of a transaction's outputs, which no coin of the chain can bring above 21 million.
fn outputs_sum(transaction: &Transaction) -> Result<u64, BlockFault> {
    transaction.output.iter().try_fold(0_u64, |sum, output| {
        sum.checked_add(output.value.to_sat())
            .filter(|sum| *sum <= MONEY_MAX_SATS)
            .ok_or(BlockFault::OutputTooLarge)
    })
}

fn spendable_outputs(
    transaction: &Transaction,
    txid: Txid,
    height: u32,
    from_coinbase: bool,
) -> impl Iterator<Item = (OutPoint, Coin)> {
    let ours = op_true_output();
    transaction.output.iter().enumerate().filter_map(move |(vout, output)| {
        let coin = Coin { sats: output.value.to_sat(), height, from_coinbase };
        let is_ours = output.script_pubkey.as_bytes() == ours;
        is_ours.then_some((OutPoint { txid, vout: vout as u32 }, coin))
    })
}
