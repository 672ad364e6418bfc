//! SetCustomMiningJob: the same content as was declared, or a job whose transactions its miner keeps to
//! himself. Called by the pool when a channel of its asks for either.

use std::ops::RangeInclusive;
use std::sync::Arc;

use proto::job::Job;
use proto::limits::MERKLE_PATH_MAX;
use proto::mining::CustomJobRequest;
use proto::template::PrevHash;

use super::body::Body;
use super::coinbase::Coinbase;
use super::{Context, DeclaredJob, Refusal, check_block, check_commitment, check_version};
use crate::node::assemble::witness_commitment;

impl DeclaredJob {
    /// The job that `request` asks for, if it is this one on our tip.
    ///
    /// `tip` is our node's now, and `ntime` what a block's time may be (unix seconds): from what
    /// consensus asks to what our clock allows.
    pub fn custom_job(
        &self,
        request: &CustomJobRequest,
        tip: &PrevHash,
        ntime: &RangeInclusive<u32>,
    ) -> Result<Job, Refusal> {
        if tip.hash != self.prev_hash {
            return Err(Refusal::OtherTip);
        }
        check_tip(request, tip, ntime)?;
        let declared = &self.coinbase;
        let differs = [
            (request.version != self.job.version(), Refusal::DeclaredVersion),
            (request.coinbase_tx_version != declared.version, Refusal::DeclaredCoinbaseVersion),
            (request.coinbase_prefix != declared.script_sig_prefix, Refusal::DeclaredPrefix),
            (request.coinbase_sequence != declared.sequence, Refusal::DeclaredSequence),
            (request.outputs != declared.outputs, Refusal::DeclaredOutputs),
            (request.locktime != declared.lock_time, Refusal::DeclaredLockTime),
            (request.merkle_path != self.job.merkle_path(), Refusal::MerklePath),
        ];
        match differs.into_iter().find(|(differs, _)| *differs) {
            Some((_, refusal)) => Err(refusal),
            None => Ok(self.job.clone()),
        }
    }
}

/// A job that was never declared: its transactions are nobody's business but its miner's, so only its
/// coinbase can be judged. One without any (an empty path) is known in full all the same, and the pool
/// can make its block.
pub fn coinbase_only(
    request: &CustomJobRequest,
    context: &Context<'_>,
    ntime: &RangeInclusive<u32>,
) -> Result<DeclaredJob, Refusal> {
    check_tip(request, &context.tip, ntime)?;
    check_version(request.version)?;
    if request.merkle_path.len() > MERKLE_PATH_MAX {
        return Err(Refusal::MerklePath);
    }
    let mut coinbase = Coinbase {
        version: request.coinbase_tx_version,
        script_sig_prefix: request.coinbase_prefix.clone(),
        sequence: request.coinbase_sequence,
        outputs: request.outputs.clone(),
        lock_time: request.locktime,
        has_witness: false,
    };
    let mut judged = coinbase.judge(context)?;
    if judged.commitment.is_some() {
        coinbase.has_witness = true;
        judged = coinbase.judge(context)?;
    }
    let body = if request.merkle_path.is_empty() {
        let commitment = witness_commitment(&[]);
        check_commitment(&coinbase, &judged, &commitment)?;
        let body = Body::new(&[], Body::list_id(&[]), commitment);
        check_block(&judged, &body, context)?;
        Some(Arc::new(body))
    } else {
        None
    };
    let path = request.merkle_path.clone();
    Ok(DeclaredJob::new(request.version, coinbase, &judged, body, path, context))
}

/// What a custom job says of the tip must be what our node says.
fn check_tip(
    request: &CustomJobRequest,
    tip: &PrevHash,
    ntime: &RangeInclusive<u32>,
) -> Result<(), Refusal> {
    if request.prev_hash != tip.hash {
        return Err(Refusal::OtherTip);
    }
    if request.nbits != tip.nbits {
        return Err(Refusal::Nbits(request.nbits));
    }
    if !ntime.contains(&request.min_ntime) {
        return Err(Refusal::MinNtime(request.min_ntime));
    }
    Ok(())
}
