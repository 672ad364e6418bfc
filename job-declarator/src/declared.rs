//! A job of a miner's own: made from his template (`build`, the miner's side) and checked against our
//! tip and payout rule (`check`, the pool's side), inverse functions. Called by the pool's tasks of job
//! declaration and of custom jobs, and by the declarator.
//!
//! Here is everything that a declaration says without a chain: its coinbase, its payout, its witness
//! commitment, its size. Whether its transactions are valid is the node's to say (`Node::check_block`
//! with `DeclaredJob::proposal`). Must never panic, and needs time and memory only for bytes that are
//! there.

mod body;
mod build;
mod coinbase;
mod custom;
mod refusal;
mod rule;
mod transaction;
mod worth;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use proto::declare::Declaration;
use proto::extranonce::Extranonce;
use proto::job::{HeaderFields, Job};
use proto::limits::{EXTRANONCE_LEN, VERSION_ROLLING_MASK};
use proto::template::{PrevHash, Template, TemplateId};

pub use self::body::Body;
pub use self::build::{BuiltJob, build};
pub use self::coinbase::Coinbase;
pub(crate) use self::coinbase::read_outputs;
pub use self::custom::coinbase_only;
pub use self::refusal::Refusal;
pub use self::rule::Rule;
pub(crate) use self::transaction::NULL_OUTPOINT;
pub use self::transaction::Transaction;
pub use self::worth::{FACTOR_ONE_PPM, FeeTrust, factor_ppm};

use self::coinbase::Judged;
use crate::limits::{
    BLOCK_TRANSACTIONS_MAX, BLOCK_WEIGHT_MAX, SIGOP_COST_MAX, SUPPLIED_STRIPPED_MAX, WITNESS_SCALE,
};
use crate::node::assemble::witness_commitment;

/// Header versions below it are from before BIP65 and no blocks any more.
const VERSION_MIN: i32 = 4;
/// Bytes of a header.
const HEADER_LEN: u64 = 80;

/// What the pool knows of the block that a declaration is for.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Height of the block to be found: our tip's plus one.
    pub height: u32,
    /// Our tip.
    pub tip: PrevHash,
    /// What the block makes out of nothing (`node::subsidy_sats`).
    pub subsidy_sats: u64,
    /// Whom its coinbase has to pay.
    pub rule: &'a Rule,
}

/// What a declaration comes to, if it is not refused.
#[derive(Debug)]
pub enum Outcome {
    /// Positions of the transactions that nobody here knows, ascending.
    Missing(Vec<u16>),
    /// All that can be said without a chain is in order.
    Sound {
        /// To be handed to a node, then mined.
        job: Box<DeclaredJob>,
        /// Transactions that came with the declaration, to be kept if the node agrees and not before.
        supplied: Vec<Transaction>,
    },
}

/// A job as a miner declared it. Immutable.
#[derive(Debug)]
pub struct DeclaredJob {
    job: Job,
    coinbase: Coinbase,
    /// `None`: only the miner knows the transactions.
    body: Option<Arc<Body>>,
    height: u32,
    prev_hash: [u8; 32],
    value_sats: u64,
    pool_sats: u64,
    fees_sats: u64,
    size: Size,
}

/// What a block may only have so much of, as far as it is known.
#[derive(Debug, Clone, Copy)]
struct Size {
    weight: u64,
    sigop_cost: u64,
}

/// Checks a declaration (DeclareMiningJob, with what was supplied since) against our tip and rule.
///
/// `known` finds a transaction by its wtxid among those that need not be asked for. `same` finds the body
/// of an earlier job by the id of its list (`Body::list_id`): then no transaction is looked up. Rule JS10.
pub fn check(
    declaration: &Declaration,
    context: &Context<'_>,
    known: &dyn Fn(&[u8; 32]) -> Option<Transaction>,
    same: &dyn Fn(&[u8; 32]) -> Option<Arc<Body>>,
) -> Result<Outcome, Refusal> {
    // The cheap first: what fails here is not worth asking anybody for transactions.
    let Declaration { coinbase_prefix, coinbase_suffix, wtxids, .. } = declaration;
    check_version(declaration.version)?;
    let coinbase = Coinbase::read(coinbase_prefix, coinbase_suffix, EXTRANONCE_LEN)?;
    let judged = coinbase.judge(context)?;
    // One place is the coinbase's.
    if wtxids.len() >= BLOCK_TRANSACTIONS_MAX {
        return Err(Refusal::TooManyTransactions(wtxids.len()));
    }
    let id = Body::list_id(wtxids);
    let (body, supplied) = match same(&id).filter(|body| *body.id() == id) {
        Some(body) => {
            check_commitment(&coinbase, &judged, body.commitment())?;
            (body, Vec::new())
        }
        None => {
            check_repeats(wtxids)?;
            let commitment = witness_commitment(wtxids);
            check_commitment(&coinbase, &judged, &commitment)?;
            match gather(declaration, known)? {
                Gathered::Missing(positions) => return Ok(Outcome::Missing(positions)),
                Gathered::All { transactions, supplied } => {
                    (Arc::new(Body::new(&transactions, id, commitment)), supplied)
                }
            }
        }
    };
    check_block(&judged, &body, context)?;
    let path = body.merkle_path().to_vec();
    let job = DeclaredJob::new(declaration.version, coinbase, &judged, Some(body), path, context);
    Ok(Outcome::Sound { job: Box::new(job), supplied })
}

impl DeclaredJob {
    fn new(
        version: u32,
        coinbase: Coinbase,
        judged: &Judged,
        body: Option<Arc<Body>>,
        merkle_path: Vec<[u8; 32]>,
        context: &Context<'_>,
    ) -> Self {
        let size = size_of(judged, body.as_deref());
        let template = Template {
            // Counts the templates of nodes; a declared job has a name of its own.
            id: TemplateId(0),
            height: context.height,
            version,
            coinbase_tx_version: coinbase.version,
            script_sig_prefix: coinbase.script_sig_prefix.clone(),
            coinbase_sequence: coinbase.sequence,
            coinbase_value_sats: judged.value_sats,
            required_outputs: Vec::new(),
            required_outputs_count: 0,
            coinbase_locktime: coinbase.lock_time,
            merkle_path,
            transactions: body.as_ref().map(|body| Arc::clone(body.transactions())),
            commits_to_witnesses: coinbase.has_witness,
        };
        let job = Job::from_parts(Arc::new(template), coinbase.parts(EXTRANONCE_LEN));
        Self {
            job,
            coinbase,
            body,
            height: context.height,
            prev_hash: context.tip.hash,
            value_sats: judged.value_sats,
            pool_sats: judged.pool_sats,
            fees_sats: judged.value_sats.saturating_sub(context.subsidy_sats),
            size,
        }
    }

    /// What is mined. Its coinbase stays as it is: the job cannot be numbered.
    #[must_use]
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The coinbase, field by field.
    #[must_use]
    pub fn coinbase(&self) -> &Coinbase {
        &self.coinbase
    }

    /// The other transactions. `None`: only the miner knows them, and the pool cannot make the block.
    #[must_use]
    pub fn body(&self) -> Option<&Arc<Body>> {
        self.body.as_ref()
    }

    /// Takes the transactions from an equal list, so that two jobs hold it once; nothing if it is another.
    pub fn share(&mut self, body: Arc<Body>) {
        let is_equal = |own: &Arc<Body>| own.id() == body.id() && !Arc::ptr_eq(own, &body);
        if !self.body.as_ref().is_some_and(is_equal) {
            return;
        }
        let transactions = Some(Arc::clone(body.transactions()));
        let template = Template { transactions, ..self.job.template().as_ref().clone() };
        self.job = Job::from_parts(Arc::new(template), self.job.coinbase());
        self.body = Some(body);
    }

    /// Height of the block to be found.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The tip that it was checked on, header byte order.
    #[must_use]
    pub fn prev_hash(&self) -> &[u8; 32] {
        &self.prev_hash
    }

    /// Satoshi that its coinbase pays in all.
    #[must_use]
    pub fn value_sats(&self) -> u64 {
        self.value_sats
    }

    /// Satoshi that its coinbase pays by the payout rule.
    #[must_use]
    pub fn pool_sats(&self) -> u64 {
        self.pool_sats
    }

    /// Satoshi of fees that it claims: its value beyond the subsidy.
    #[must_use]
    pub fn fees_sats(&self) -> u64 {
        self.fees_sats
    }

    /// Weight units of the whole block; of its header and coinbase alone if only the miner knows more.
    #[must_use]
    pub fn weight(&self) -> u64 {
        self.size.weight
    }

    /// Cost of the block's signature operations that stand in the open (BIP141), as far as its weight.
    #[must_use]
    pub fn sigop_cost(&self) -> u64 {
        self.size.sigop_cost
    }

    /// The whole block on `tip` for `Node::check_block`: extranonce and nonce are zeros, and there is
    /// no proof of work. `None` if only the miner knows its transactions.
    #[must_use]
    pub fn proposal(&self, tip: &PrevHash) -> Option<Vec<u8>> {
        let extranonce: Extranonce = [0; EXTRANONCE_LEN];
        let header = HeaderFields {
            version: self.job.version(),
            prev_hash: tip.hash,
            merkle_root: self.job.merkle_root(&extranonce),
            ntime: tip.min_ntime,
            nbits: tip.nbits,
            nonce: 0,
        };
        self.job.block(&header, &extranonce)
    }
}

/// Whatever bits are rolled (BIP323), the header's version must stay one of a block.
fn check_version(version: u32) -> Result<(), Refusal> {
    let lowest = (version & !VERSION_ROLLING_MASK) as i32;
    if lowest < VERSION_MIN { Err(Refusal::Version(version)) } else { Ok(()) }
}

fn check_repeats(wtxids: &[[u8; 32]]) -> Result<(), Refusal> {
    let mut seen = HashSet::with_capacity(wtxids.len());
    match wtxids.iter().position(|wtxid| !seen.insert(wtxid)) {
        Some(position) => Err(Refusal::Repeated(position)),
        None => Ok(()),
    }
}

/// BIP141: a commitment must be that of the block, and a coinbase has a witness just where it commits.
fn check_commitment(
    coinbase: &Coinbase,
    judged: &Judged,
    expected: &[u8; 32],
) -> Result<(), Refusal> {
    match (judged.commitment, coinbase.has_witness) {
        (None, false) => Ok(()),
        (Some(found), true) if found == *expected => Ok(()),
        (Some(_), true) => Err(Refusal::Commitment),
        (Some(_), false) => Err(Refusal::ReservedValue),
        (None, true) => Err(Refusal::NoCommitment),
    }
}

enum Gathered {
    Missing(Vec<u16>),
    All { transactions: Vec<Transaction>, supplied: Vec<Transaction> },
}

/// Every transaction of the list, from what was supplied for its position or from those known.
fn gather(
    declaration: &Declaration,
    known: &dyn Fn(&[u8; 32]) -> Option<Transaction>,
) -> Result<Gathered, Refusal> {
    let wtxids = &declaration.wtxids;
    let supplied = read_supplied(declaration)?;
    let mut by_position: HashMap<u16, &Transaction> =
        supplied.iter().map(|(position, transaction)| (*position, transaction)).collect();
    if by_position.len() != supplied.len() {
        return Err(Refusal::SuppliedTwice);
    }
    let mut transactions = Vec::with_capacity(wtxids.len());
    let mut missing = Vec::new();
    for (position, wtxid) in wtxids.iter().enumerate() {
        // Fits: the list is no longer than a block holds.
        let position = position as u16;
        match by_position.remove(&position).cloned().or_else(|| known(wtxid)) {
            Some(found) if found.is_coinbase() => return Err(Refusal::CoinbaseInside(position)),
            Some(found) => transactions.push(found),
            None => missing.push(position),
        }
    }
    if !missing.is_empty() {
        return Ok(Gathered::Missing(missing));
    }
    let supplied = supplied.into_iter().map(|(_, transaction)| transaction).collect();
    Ok(Gathered::All { transactions, supplied })
}

/// What was supplied must be the transactions that the list names at those positions.
fn read_supplied(declaration: &Declaration) -> Result<Vec<(u16, Transaction)>, Refusal> {
    let mut read = Vec::with_capacity(declaration.supplied.len());
    let mut weight = 0;
    for (position, bytes) in &declaration.supplied {
        let transaction = Transaction::read(Arc::clone(bytes));
        let transaction = transaction.ok_or(Refusal::NotATransaction(*position))?;
        if declaration.wtxids.get(usize::from(*position)) != Some(transaction.wtxid()) {
            return Err(Refusal::OtherTransaction(*position));
        }
        let stripped = transaction.stripped_len();
        if stripped > SUPPLIED_STRIPPED_MAX {
            return Err(Refusal::TransactionTooLong { position: *position, stripped });
        }
        weight += u64::from(transaction.weight());
        if weight > BLOCK_WEIGHT_MAX {
            return Err(Refusal::Weight(weight));
        }
        read.push((*position, transaction));
    }
    Ok(read)
}

/// What the block is as a whole, as far as can be known without the coins that it spends.
fn check_block(judged: &Judged, body: &Body, context: &Context<'_>) -> Result<(), Refusal> {
    let count = body.transactions().len();
    if body.has_witness() && judged.commitment.is_none() {
        return Err(Refusal::NoCommitment);
    }
    if count == 0 && judged.value_sats > context.subsidy_sats {
        return Err(Refusal::Money);
    }
    let Size { weight, sigop_cost } = size_of(judged, Some(body));
    if weight > BLOCK_WEIGHT_MAX {
        return Err(Refusal::Weight(weight));
    }
    if sigop_cost > SIGOP_COST_MAX {
        return Err(Refusal::Sigops(sigop_cost));
    }
    Ok(())
}

fn size_of(judged: &Judged, body: Option<&Body>) -> Size {
    let (weight, sigop_cost, count) = body
        .map_or((0, 0, 0), |body| (body.weight(), body.sigop_cost(), body.transactions().len()));
    // The count of transactions, the coinbase among them, is a CompactSize of at most 16,667.
    let count_len = if count + 1 < 0xfd { 1 } else { 3 };
    Size {
        weight: WITNESS_SCALE * (HEADER_LEN + count_len) + judged.weight + weight,
        sigop_cost: judged.sigop_cost + sigop_cost,
    }
}
