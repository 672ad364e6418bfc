//! What the declarers' nodes hold: the pool's development chain read a second time, so that templates are
//! on its tip and its transactions are valid to it. Called by `mod.rs`, and by each declarer for its jobs.
//!
//! Must never write to the pool's chain: it works on a copy, which ends with the run.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use job_declarator::declared::{BuiltJob, Transaction, build};
use job_declarator::node::embedded::{EmbeddedChain, EmbeddedOptions};
use job_declarator::node::{Node, NodeTemplate};
use proto::limits::EXTRANONCE_LEN;
use proto::template::{Output, PrevHash, Template, merkle_path, merkle_root, sha256d};
use tempfile::TempDir;

use super::Declaring;

/// More than any transaction of that chain pays in fees: a coinbase may claim less than there is.
const FEE_MAX_SATS: u64 = 1_000;
/// In front of a witness commitment: OP_RETURN, a push of 36 bytes, BIP141's header.
const COMMITMENT_HEAD: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];

/// Which transactions the declarers declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lists {
    /// The same, in the same order: one mempool.
    Same,
    /// Each leaves out another number of the last ones, so that no two lists are equal.
    Own,
}

/// The chain and what it shows now.
pub(super) struct Mempool {
    chain: EmbeddedChain,
    shown: RefCell<Rc<Shown>>,
    _folder: TempDir,
}

/// One template with the ids of its transactions, which are hashed once for all declarers.
struct Shown {
    node: NodeTemplate,
    txids: Vec<[u8; 32]>,
    wtxids: Vec<[u8; 32]>,
}

/// A job to be declared.
pub(super) struct OwnJob {
    /// What `build` made of it; its wtxids are below.
    pub(super) built: BuiltJob,
    /// All but the coinbase, block order.
    pub(super) wtxids: Vec<[u8; 32]>,
    /// The tip it builds on.
    pub(super) tip: PrevHash,
    transactions: Arc<Vec<Arc<[u8]>>>,
}

impl OwnJob {
    /// The transactions at these positions; `None` if the pool asks for one that was not declared.
    pub(super) fn at(&self, positions: &[[u8; 2]]) -> Option<Vec<Vec<u8>>> {
        let at = |position: &[u8; 2]| {
            let position = usize::from(u16::from_le_bytes(*position));
            Some(self.transactions.get(..self.wtxids.len())?.get(position)?.to_vec())
        };
        positions.iter().map(at).collect()
    }
}

impl Mempool {
    /// Copies the pool's chain and reads it.
    ///
    /// # Errors
    /// There is none, or it is not made with these numbers.
    pub(super) async fn open(declaring: &Declaring) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the chain's copy")?;
        copy_files(&declaring.chain, folder.path()).context("copying the pool's chain")?;
        let chain = EmbeddedChain::new(EmbeddedOptions {
            tx_count: declaring.tx_count as usize,
            block_hashes: declaring.block_hashes,
            data_dir: Some(folder.path().to_owned()),
            // `refresh` is called when the time has come.
            refresh: Duration::ZERO,
            ..EmbeddedOptions::default()
        });
        let chain = chain.context("the chain's copy")?;
        let shown = Shown::next(&chain, None).await?;
        Ok(Self { chain, shown: RefCell::new(Rc::new(shown)), _folder: folder })
    }

    /// Some transactions go and others come, as time changes a mempool.
    pub(super) async fn refresh(&self) -> Result<()> {
        let before = Rc::clone(&self.shown.borrow());
        let shown = Shown::next(&self.chain, Some(&before.node)).await?;
        self.shown.replace(Rc::new(shown));
        Ok(())
    }

    /// Declarer `number`'s job of now, all of it paid to `script`.
    ///
    /// # Errors
    /// No coinbase can be made of it.
    pub(super) fn job(&self, number: usize, lists: Lists, script: &[u8]) -> Result<OwnJob, String> {
        let shown = Rc::clone(&self.shown.borrow());
        let mut template = Template::clone(&shown.node.template);
        // `build` would hash every one of them again.
        let transactions = template.transactions.take().unwrap_or_default();
        let left_out = match lists {
            Lists::Same => 0,
            // At most the last quarter: the sizes stay comparable.
            Lists::Own => number % (shown.wtxids.len() / 4).max(1),
        };
        let kept = shown.wtxids.len() - left_out;
        if left_out > 0 {
            shorten(&mut template, &shown.txids[..kept], &shown.wtxids[..kept]);
            template.coinbase_value_sats -= left_out as u64 * FEE_MAX_SATS;
        }
        let sats = template.coinbase_value_sats;
        let outputs = [Output { sats, script: script.to_vec() }];
        let tag = format!("/{number}/");
        let built = build(&template, &outputs, tag.as_bytes(), EXTRANONCE_LEN);
        let built = built.map_err(|error| format!("no job: {error}"))?;
        let wtxids = shown.wtxids[..kept].to_vec();
        Ok(OwnJob { built, wtxids, tip: shown.node.prev_hash, transactions })
    }
}

impl Shown {
    async fn next(chain: &EmbeddedChain, after: Option<&NodeTemplate>) -> Result<Self> {
        let node = chain.next_template(after.map(|node| &node.mark)).await?;
        let ids = node.template.known_transactions().iter().map(|bytes| {
            let transaction = Transaction::read(Arc::clone(bytes))?;
            Some((*transaction.txid(), *transaction.wtxid()))
        });
        let ids: Option<Vec<_>> = ids.collect();
        let (txids, wtxids) = ids.context("the chain made no transactions")?.into_iter().unzip();
        Ok(Self { node, txids, wtxids })
    }
}

/// Path and commitment of a block of these transactions.
fn shorten(template: &mut Template, txids: &[[u8; 32]], wtxids: &[[u8; 32]]) {
    template.merkle_path = merkle_path(txids);
    let root = merkle_root([0; 32], &merkle_path(wtxids));
    let commitment = sha256d(&[root, [0; 32]].concat());
    let script = [&COMMITMENT_HEAD[..], &commitment].concat();
    template.required_outputs = [&[0; 8][..], &[script.len() as u8], &script].concat();
    template.required_outputs_count = 1;
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
