//! A development chain inside the process: regtest's rules with proof of work at a low target of our
//! choice, and transactions of its own making. Called by the pool's `demo` and by tests, through
//! `Node`; must never be taken for a network, nor lose a block that it accepted.
//!
//! The chain lies behind one mutex. Every use takes it on a blocking thread and gives it back before
//! anything is awaited, so validation and fsync hold up nobody's task and a dropped future leaves
//! nothing half done. Waiting for a tip is a `watch`, outside the lock.

mod chain;
mod file;
mod transactions;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Network};
use proto::job::{HeaderFields, Job};
use proto::target::Target;
use proto::template::{Output, PrevHash, Template, TemplateId, merkle_path};
use thiserror::Error;
use tokio::sync::watch;
use tracing::info;

use self::chain::{BlockFault, Candidate, Chain, Parameters, ProofOfWork, REGTEST_NBITS};
use self::file::BlockFile;
use super::{
    ChainInfo, Checked, Node, NodeError, NodeFuture, NodeTemplate, Submitted, TemplateMark,
    assemble,
};
use crate::limits::{
    EMBEDDED_START_HEIGHT_MAX, EMBEDDED_START_HEIGHT_MIN, EMBEDDED_TRANSACTIONS_MAX,
};

/// Header version of templates: BIP9's top bits, all others the miner's.
const VERSION: u32 = 0x2000_0000;
/// Seconds between prepared blocks.
const PREPARED_SPACING_S: u32 = 600;

/// Unix seconds now; a test hands in its own.
pub type Clock = Arc<dyn Fn() -> u32 + Send + Sync>;

/// What an embedded chain is made with.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Transactions in each template besides the coinbase, at most `EMBEDDED_TRANSACTIONS_MAX`.
    pub tx_count: usize,
    /// Expected hashes until a block is found; 2 or less is regtest's target (207fffff).
    pub block_hashes: u64,
    /// Folder of the block file; without one the chain ends with the process.
    pub data_dir: Option<PathBuf>,
    /// Blocks that are there from the start, so that the first coinbases can be spent. At least
    /// `EMBEDDED_START_HEIGHT_MIN`. A chain read from `data_dir` keeps its own.
    pub start_height: u32,
    /// After so long without a block a waiting caller gets a template with some other transactions.
    pub refresh: Duration,
    /// Unix seconds now.
    pub clock: Clock,
}

impl Default for EmbeddedOptions {
    /// Eight transactions, a block in some seconds of one core, nothing kept.
    fn default() -> Self {
        Self {
            tx_count: 8,
            block_hashes: 1 << 22,
            data_dir: None,
            start_height: 120,
            refresh: Duration::from_secs(30),
            clock: Arc::new(system_clock),
        }
    }
}

impl std::fmt::Debug for EmbeddedOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedOptions")
            .field("tx_count", &self.tx_count)
            .field("block_hashes", &self.block_hashes)
            .field("data_dir", &self.data_dir)
            .field("start_height", &self.start_height)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}

/// Why an embedded chain cannot be opened or written.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    /// Too many to fit a block.
    #[error("{0} transactions in a template; {EMBEDDED_TRANSACTIONS_MAX} is the limit")]
    TooManyTransactions(usize),
    /// Too low to have a coinbase that can be spent, or too high to prepare in reasonable time.
    #[error(
        "a start height of {0}; it must be {EMBEDDED_START_HEIGHT_MIN} to {EMBEDDED_START_HEIGHT_MAX}"
    )]
    StartHeight(u32),
    /// The operating system said no.
    #[error("{path}: {source}")]
    File {
        /// The block file, or its folder.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Another process has this chain open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The chain there was made for another difficulty.
    #[error("{path} holds a chain of target {found:08x}, not {wanted:08x}: use another folder")]
    OtherDifficulty {
        /// The block file.
        path: PathBuf,
        /// Compact target of the chain in it.
        found: u32,
        /// Compact target that the options ask for.
        wanted: u32,
    },
    /// Not what was once written.
    #[error("{path} is damaged at byte {at}: {why}")]
    Damaged {
        /// The block file.
        path: PathBuf,
        /// Offset of the damaged record.
        at: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// A block of the file, or one that was being prepared, breaks the chain's rules.
    #[error("block {height} of the embedded chain is invalid: {reason}")]
    Block {
        /// Its height.
        height: u32,
        /// The rule it breaks.
        reason: String,
    },
}

/// The development chain. Cheap to share behind an `Arc<dyn Node>`.
#[derive(Debug)]
pub struct EmbeddedChain {
    state: Arc<Mutex<State>>,
    /// The state's own, to subscribe to without the lock.
    tip: watch::Sender<BlockHash>,
    /// How long a caller waits for a tip; `None` if there are no transactions to refresh with.
    refresh: Option<Duration>,
}

struct State {
    chain: Chain,
    /// Hash of the best block; told when one is accepted, whether or not the submitter still listens.
    tip: watch::Sender<BlockHash>,
    file: Option<BlockFile>,
    clock: Clock,
    tx_count: usize,
    /// The id that the next template gets.
    next_id: u64,
    /// Counts template refreshes on this tip.
    revision: u64,
    /// The template of this tip and revision, once somebody asked for it.
    shown: Option<Shown>,
}

#[derive(Clone)]
struct Shown {
    template: Arc<Template>,
    next: Arc<Template>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("height", &self.chain.height()).finish_non_exhaustive()
    }
}

impl EmbeddedChain {
    /// Opens the chain in `data_dir`, or prepares a new one. Reads and writes files and hashes for
    /// some milliseconds; call it before serving anybody.
    pub fn new(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        if options.tx_count > EMBEDDED_TRANSACTIONS_MAX {
            return Err(EmbeddedError::TooManyTransactions(options.tx_count));
        }
        let start_height = options.start_height;
        if !(EMBEDDED_START_HEIGHT_MIN..=EMBEDDED_START_HEIGHT_MAX).contains(&start_height) {
            return Err(EmbeddedError::StartHeight(start_height));
        }

        let wanted = Parameters { start_height, nbits: nbits_for(options.block_hashes) };
        let (mut file, parameters) = match &options.data_dir {
            None => (None, wanted),
            Some(dir) => {
                let (file, parameters) = BlockFile::open(dir, wanted)?;
                (Some(file), parameters)
            }
        };
        let mut chain = Chain::new(parameters);
        if let Some(file) = &mut file {
            // No block there was too new when it was accepted; a clock set back since loses none.
            file.replay(|block| extend(&mut chain, block, u32::MAX))?;
        }
        let (tip, _) = watch::channel(chain.tip());
        let mut state = State {
            chain,
            tip: tip.clone(),
            file,
            clock: options.clock,
            tx_count: options.tx_count,
            next_id: 1,
            revision: 0,
            shown: None,
        };
        state.prepare(parameters.start_height)?;
        info!(
            height = state.chain.height(),
            nbits = format_args!("{:08x}", parameters.nbits),
            "embedded chain open"
        );
        tip.send_replace(state.chain.tip());
        let refresh = (options.tx_count > 0).then_some(options.refresh);
        Ok(Self { state: Arc::new(Mutex::new(state)), tip, refresh })
    }

    /// Runs `job` with the chain on a blocking thread.
    async fn with_state<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        self.prepared(|| (), |state, ()| job(state)).await
    }

    /// Runs `prepare` on a blocking thread, and then `job` with the chain.
    async fn prepared<P, T: Send + 'static>(
        &self,
        prepare: impl FnOnce() -> P + Send + 'static,
        job: impl FnOnce(&mut State, P) -> T + Send + 'static,
    ) -> Result<T, NodeError> {
        let state = Arc::clone(&self.state);
        let done = tokio::task::spawn_blocking(move || {
            let prepared = prepare();
            let mut state = state.lock().ok()?;
            Some(job(&mut state, prepared))
        });
        // Both mean that a thread ended in the middle of its work, so the state cannot be trusted.
        let broken = || NodeError::Unreachable("the embedded chain stopped".to_owned());
        done.await.map_err(|_| broken())?.ok_or_else(broken)
    }

    async fn next(&self, after: Option<&TemplateMark>) -> Result<NodeTemplate, NodeError> {
        // Subscribed before looking, so a block that comes in between is not missed.
        let mut tip = self.tip.subscribe();
        let after = after.cloned();
        let looked = after.clone();
        let is_known = self.with_state(move |state| looked == Some(state.mark())).await?;
        if is_known {
            let changed = async {
                // The sender lives in `self`, so this ends with a block and never with an error.
                let _ = tip.changed().await;
            };
            match self.refresh {
                None => changed.await,
                Some(refresh) => {
                    let _ = tokio::time::timeout(refresh, changed).await;
                }
            }
        }
        self.with_state(move |state| {
            if after == Some(state.mark()) {
                state.revision += 1;
                state.shown = None;
            }
            state.present()
        })
        .await
    }

    async fn submit(&self, block: Vec<u8>) -> Result<Submitted, NodeError> {
        let prepare = move || (decode(&block), block);
        self.prepared(prepare, |state, (candidate, block)| match candidate {
            Ok(candidate) => state.submit(&candidate, &block),
            Err(reason) => Ok(Submitted::Rejected(reason)),
        })
        .await?
        .map_err(|error| NodeError::Unreachable(error.to_string()))
    }

    /// Checks are many, and the chain's lock is not theirs to keep: what can be, is done without it.
    async fn check(&self, block: Vec<u8>) -> Result<Checked, NodeError> {
        let prepare = move || decode(&block);
        self.prepared(prepare, |state, candidate| {
            Checked::from_reason(candidate.and_then(|candidate| state.check(&candidate)).err())
        })
        .await
    }
}

impl Node for EmbeddedChain {
    fn name(&self) -> String {
        "embedded development chain".to_owned()
    }

    fn chain_info(&self) -> NodeFuture<'_, ChainInfo> {
        Box::pin(self.with_state(|state| ChainInfo {
            network: Network::Regtest,
            height: state.chain.height(),
            tip: state.chain.tip().to_byte_array(),
            initial_block_download: false,
            pruned: false,
        }))
    }

    fn next_template<'a>(
        &'a self,
        after: Option<&'a TemplateMark>,
    ) -> NodeFuture<'a, NodeTemplate> {
        Box::pin(self.next(after))
    }

    fn submit_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Submitted> {
        Box::pin(self.submit(block.to_vec()))
    }

    fn check_block<'a>(&'a self, block: &'a [u8]) -> NodeFuture<'a, Checked> {
        Box::pin(self.check(block.to_vec()))
    }

    fn height_of<'a>(&'a self, hash: &'a [u8; 32]) -> NodeFuture<'a, Option<u32>> {
        let hash = BlockHash::from_byte_array(*hash);
        Box::pin(self.with_state(move |state| state.chain.height_of(&hash)))
    }
}

impl State {
    fn now(&self) -> u32 {
        (self.clock)()
    }

    fn mark(&self) -> TemplateMark {
        TemplateMark(format!("{}:{}", self.chain.tip(), self.revision))
    }

    fn present(&mut self) -> NodeTemplate {
        let shown = match &self.shown {
            Some(shown) => shown.clone(),
            None => self.assemble(),
        };
        let height = shown.template.height;
        let earliest_ntime = self.chain.median_time_past() + 1;
        NodeTemplate {
            prev_hash: PrevHash {
                hash: self.chain.tip().to_byte_array(),
                nbits: self.chain.nbits_at(height),
                min_ntime: self.now().max(earliest_ntime),
            },
            earliest_ntime,
            template: shown.template,
            next: Some(shown.next),
            mark: self.mark(),
        }
    }

    /// The block to be found now, and the coinbase-only one above it.
    fn assemble(&mut self) -> Shown {
        let height = self.chain.height() + 1;
        let (transactions, fees) =
            transactions::transactions(&self.chain, self.tx_count, self.revision);
        let mut template =
            assemble::coinbase_only(self.take_id(), height, VERSION, Chain::subsidy_sats(height));
        template.coinbase_value_sats += fees;
        if !transactions.is_empty() {
            let txids: Vec<_> =
                transactions.iter().map(|one| one.compute_txid().to_byte_array()).collect();
            let wtxids: Vec<_> =
                transactions.iter().map(|one| one.compute_wtxid().to_byte_array()).collect();
            let raw = transactions.iter().map(bitcoin::consensus::serialize);
            template.merkle_path = merkle_path(&txids);
            template.transactions = Some(Arc::new(raw.map(Arc::from).collect()));
            template.required_outputs =
                assemble::valueless_output(&assemble::commitment_script(&wtxids));
            template.required_outputs_count = 1;
            template.commits_to_witnesses = true;
        }
        let next = assemble::coinbase_only(
            self.take_id(),
            height + 1,
            VERSION,
            Chain::subsidy_sats(height + 1),
        );
        let shown = Shown { template: Arc::new(template), next: Arc::new(next) };
        self.shown = Some(shown.clone());
        shown
    }

    fn take_id(&mut self) -> TemplateId {
        let id = TemplateId(self.next_id);
        self.next_id += 1;
        id
    }

    /// An error means that the block could not be kept and so was not accepted.
    fn submit(&mut self, candidate: &Candidate, bytes: &[u8]) -> Result<Submitted, EmbeddedError> {
        let block = &candidate.block;
        if self.chain.height_of(&block.block_hash()).is_some() {
            return Ok(Submitted::AlreadyKnown);
        }
        let changes = match self.chain.verify(candidate, self.now(), ProofOfWork::Required) {
            Ok(changes) => changes,
            Err(BlockFault::NotOnTip) => return Ok(Submitted::Stale),
            Err(fault) => return Ok(Submitted::Rejected(fault.to_string())),
        };
        if let Some(file) = &mut self.file {
            file.append(&[bytes])?;
        }
        self.chain.connect(block, changes);
        self.revision = 0;
        self.shown = None;
        self.tip.send_replace(self.chain.tip());
        Ok(Submitted::Accepted)
    }

    fn check(&self, candidate: &Candidate) -> Result<(), String> {
        if self.chain.height_of(&candidate.block.block_hash()).is_some() {
            return Err("duplicate".to_owned());
        }
        self.chain
            .verify(candidate, self.now(), ProofOfWork::Ignored)
            .map(drop)
            .map_err(|fault| fault.to_string())
    }

    /// Mines what is missing up to `height`, each coinbase to anyone, which templates then spend.
    fn prepare(&mut self, height: u32) -> Result<(), EmbeddedError> {
        let now = self.now();
        let mut blocks = Vec::new();
        while self.chain.height() < height {
            let found = self.chain.height() + 1;
            let ntime = now
                .saturating_sub((height - found) * PREPARED_SPACING_S)
                .max(self.chain.median_time_past() + 1);
            let block = prepared_block(&self.chain, ntime)
                .map_err(|reason| EmbeddedError::Block { height: found, reason })?;
            extend(&mut self.chain, &block, now)?;
            blocks.push(block);
        }
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        match &mut self.file {
            Some(file) if !blocks.is_empty() => file.append(&blocks),
            Some(_) | None => Ok(()),
        }
    }
}

/// A coinbase-only block on the tip, ground at the prepared blocks' easy target.
fn prepared_block(chain: &Chain, ntime: u32) -> Result<Vec<u8>, String> {
    let height = chain.height() + 1;
    let value = Chain::subsidy_sats(height);
    let template = assemble::coinbase_only(TemplateId(0), height, VERSION, value);
    let outputs = [Output { sats: value, script: chain::op_true_output() }];
    let job =
        Job::new(Arc::new(template), &outputs, b"prepared").map_err(|error| error.to_string())?;
    let extranonce = [0; proto::limits::EXTRANONCE_LEN];
    let mut header = HeaderFields {
        version: VERSION,
        prev_hash: chain.tip().to_byte_array(),
        merkle_root: job.merkle_root(&extranonce),
        ntime,
        nbits: chain.nbits_at(height),
        nonce: 0,
    };
    let target = Target::from_compact(header.nbits);
    while !target.is_met_by(&header.hash()) {
        // Every second nonce does.
        header.nonce = header.nonce.checked_add(1).ok_or("no nonce meets the target")?;
    }
    job.block(&header, &extranonce).ok_or("a template without its transactions".into())
}

/// A block of our own file or making onto the tip.
fn extend(chain: &mut Chain, bytes: &[u8], now: u32) -> Result<(), EmbeddedError> {
    let height = chain.height() + 1;
    let refused = |reason: String| EmbeddedError::Block { height, reason };
    let candidate = decode(bytes).map_err(refused)?;
    let changes = chain
        .verify(&candidate, now, ProofOfWork::Required)
        .map_err(|fault| refused(fault.to_string()))?;
    chain.connect(&candidate.block, changes);
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<Candidate, String> {
    bitcoin::consensus::deserialize(bytes)
        .map(Candidate::new)
        .map_err(|error| format!("block decode failed: {error}"))
}

/// The compact target nearest to `hashes` expected hashes, never above regtest's.
fn nbits_for(hashes: u64) -> u32 {
    if hashes <= 2 {
        return REGTEST_NBITS;
    }
    let mut work = [0; 32];
    work[..8].copy_from_slice(&hashes.to_le_bytes());
    bitcoin::Work::from_le_bytes(work).to_target().to_compact_lossy().to_consensus()
}

fn system_clock() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_hashes_become_the_target_they_name() {
        for log2 in 1..=40 {
            let hashes = 1_u64 << log2;
            let work = Target::from_compact(nbits_for(hashes)).work();
            let work: u64 = work.try_into().unwrap();
            // A compact target keeps 15 bits at least, rounded down.
            assert!(work >= hashes && work <= hashes + hashes / 16_384 + 1, "{hashes}: {work}");
        }
        assert_eq!(nbits_for(0), REGTEST_NBITS);
        assert_eq!(nbits_for(2), REGTEST_NBITS);
        assert!(!Target::from_compact(nbits_for(u64::MAX)).is_zero());
    }

    #[test]
    fn limits_of_the_options_are_kept_one_step_beyond() {
        let too_many = EmbeddedOptions {
            tx_count: EMBEDDED_TRANSACTIONS_MAX + 1,
            ..EmbeddedOptions::default()
        };
        assert!(matches!(EmbeddedChain::new(too_many), Err(EmbeddedError::TooManyTransactions(_))));
        for start_height in [EMBEDDED_START_HEIGHT_MIN - 1, EMBEDDED_START_HEIGHT_MAX + 1] {
            let options = EmbeddedOptions { start_height, ..EmbeddedOptions::default() };
            assert!(matches!(EmbeddedChain::new(options), Err(EmbeddedError::StartHeight(_))));
        }
    }
}
