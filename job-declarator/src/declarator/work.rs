//! What devices are given to hash, made of a template and of whom it is for: solo, the owner's template for a
//! pool, a pool's own job. Called by `declarator.rs`; decides nothing.
//!
//! Every job here has a house's extranonce: what the pool puts before it stands in the job's coinbase, so that
//! devices keep theirs whatever pool it is.

use std::sync::Arc;

use proto::declare::client::OwnJob;
use proto::job::{ActiveTemplate, Job};
use proto::limits::{EXTRANONCE_LEN, HOUSE_EXTRANONCE_LEN, HOUSE_NUMBER_LEN};
use proto::mining::client::Work as PoolWork;
use proto::template::{CoinbaseParts, Output, PrevHash, Template, TemplateId, sha256d};

use super::outputs::{of_coinbase, total};
use super::session::{Channel, Failure};
use crate::declared::{BuiltJob, build};
use crate::node::NodeTemplate;

/// The owner's template as a job for a pool: what is declared, asked for and mined are one.
#[derive(Debug)]
pub(super) struct OwnWork {
    pub(super) built: BuiltJob,
    pub(super) tip: PrevHash,
    pub(super) template: Arc<Template>,
}

impl OwnWork {
    /// A name for all that a header is made of but what is rolled and the pool's part of the extranonce. By it
    /// a pool tells whether it promised the work before.
    pub(super) fn space(&self) -> [u8; 32] {
        let coinbase = &self.built.coinbase;
        let fields = [self.built.version, coinbase.version, coinbase.sequence, coinbase.lock_time];
        let mut bytes = fields.map(u32::to_le_bytes).concat();
        // Lengths first: no two works may come to the same bytes.
        for part in [
            &coinbase.script_sig_prefix[..],
            &coinbase.outputs,
            self.built.merkle_path.as_flattened(),
            &self.tip.hash,
        ] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        sha256d(&bytes)
    }

    /// As DeclareMiningJob has it; nothing of a template whose transactions are not known.
    pub(super) fn declaration(&self) -> Option<OwnJob> {
        let parts = self.built.declared_parts();
        Some(OwnJob {
            version: self.built.version,
            coinbase_prefix: parts.prefix,
            coinbase_suffix: parts.suffix,
            wtxids: self.built.wtxids.clone()?,
            transactions: Arc::clone(self.template.transactions.as_ref()?),
        })
    }
}

/// The whole reward to the owner.
pub(super) fn solo(
    id: TemplateId,
    node: &NodeTemplate,
    payout_script: &[u8],
    tag: &[u8],
) -> Result<ActiveTemplate, Failure> {
    let sats = node.template.coinbase_value_sats;
    let output = Output { sats, script: payout_script.to_vec() };
    let built = build(&node.template, &[output], tag, EXTRANONCE_LEN).map_err(no_job)?;
    let before = EXTRANONCE_LEN - HOUSE_EXTRANONCE_LEN;
    active(
        id,
        &node.template,
        node.prev_hash,
        built.coinbase.parts(EXTRANONCE_LEN),
        &[0; 32][..before],
        0,
    )
}

/// The owner's template, paying as the pool asks.
pub(super) fn own(
    id: TemplateId,
    node: &NodeTemplate,
    outputs: &[Output],
    tag: &[u8],
    channel: &Channel,
) -> Result<(ActiveTemplate, OwnWork), Failure> {
    let length = channel.extranonce_len();
    let built = build(&node.template, outputs, tag, length).map_err(no_job)?;
    let (tip, prefix) = (node.prev_hash, channel.prefix.as_slice());
    let parts = built.coinbase.parts(length);
    let active = active(id, &node.template, tip, parts, prefix, channel.padding())?;
    Ok((active, OwnWork { built, tip, template: Arc::clone(&node.template) }))
}

/// The pool's job, as it stands, and whom it pays.
pub(super) fn theirs(
    id: TemplateId,
    work: &PoolWork,
    channel: &Channel,
) -> Result<(ActiveTemplate, Vec<Output>), Failure> {
    let coinbase = work.coinbase().ok_or_else(|| no_job("it sent no coinbase"))?;
    let paid = of_coinbase(&coinbase, work.extranonce_size)?;
    let template = Template {
        id,
        // Its own name for it is the coinbase's business.
        height: 0,
        version: work.version,
        coinbase_tx_version: 0,
        script_sig_prefix: Vec::new(),
        coinbase_sequence: 0,
        coinbase_value_sats: total(&paid)?,
        required_outputs: Vec::new(),
        required_outputs_count: 0,
        coinbase_locktime: 0,
        merkle_path: coinbase.path.to_vec(),
        transactions: None,
        commits_to_witnesses: false,
    };
    let tip = PrevHash { hash: work.prev_hash, nbits: work.nbits, min_ntime: work.min_ntime };
    let parts = CoinbaseParts { prefix: coinbase.head.to_vec(), suffix: coinbase.tail.to_vec() };
    // The head ends in the pool's part of the extranonce already.
    Ok((active(id, &template, tip, parts, &[], channel.padding())?, paid))
}

/// `parts` around a hole for `pool_prefix`, `padding` zeros and a house's extranonce.
fn active(
    id: TemplateId,
    template: &Template,
    tip: PrevHash,
    mut parts: CoinbaseParts,
    pool_prefix: &[u8],
    padding: usize,
) -> Result<ActiveTemplate, Failure> {
    parts.prefix.extend_from_slice(pool_prefix);
    parts.prefix.resize(parts.prefix.len() + padding + HOUSE_NUMBER_LEN, 0);
    let template = Template { id, ..template.clone() };
    let job = Job::for_house(Arc::new(template), parts).map_err(no_job)?;
    Ok(ActiveTemplate { tip, job, next: None })
}

fn no_job(why: impl ToString) -> Failure {
    Failure::NoJob(why.to_string())
}
