//! SRI's side: channels that hold the very job that ours hold, and messages as its crates take them.
//! Made the way its own pool makes them. Used by `shares`.

use anyhow::{Context, Result, anyhow, ensure};
use binary_sv2::{Sv2OptionOwned, U256Owned};
use bitcoin::hashes::Hash;
use channels_sv2::extranonce_manager::ExtranonceAllocator;
use channels_sv2::server::extended::ExtendedChannel;
use channels_sv2::server::jobs::extended::ExtendedJob;
use channels_sv2::server::share_accounting::{ShareValidationError, ShareValidationResult};
use channels_sv2::server::standard::StandardChannel;
use mining_sv2::{NewExtendedMiningJobOwned, SubmitSharesExtendedOwned, SubmitSharesStandard};
use template_distribution_sv2::{NewTemplateOwned, SetNewPrevHashOwned};

use proto::limits::{EXTRANONCE_LEN, EXTRANONCE_ROLLABLE_LEN};
use proto::mining::Kind;
use proto::share::Claim;

use super::inputs::{CHANNEL, World};

/// What a side says of a share: the header's hash, or no.
pub type Verdict = Option<[u8; 32]>;

/// Its duplicate cache is bounded by the share rate it is told to expect: enough for a round.
const SHARES_PER_MINUTE: f32 = 10_000.0;

/// A channel of either kind; each takes its own message.
#[derive(Debug)]
pub enum Channel {
    /// Header-only mining.
    Standard(Box<StandardChannel>),
    /// The client rolls the extranonce.
    Extended(Box<ExtendedChannel>),
}

/// A share as its channel takes it, by value.
#[derive(Debug, Clone)]
pub enum Submit {
    /// For a standard channel.
    Standard(SubmitSharesStandard),
    /// For an extended one.
    Extended(SubmitSharesExtendedOwned),
}

impl Channel {
    /// A fresh channel with the job of `world` active.
    ///
    /// # Errors
    /// SRI refuses something of it, or gives another extranonce prefix than ours.
    pub fn new(world: &World) -> Result<Self> {
        let any = bitcoin::Target::from_le_bytes([0xff; 32]);
        let target = bitcoin::Target::from_le_bytes(world.difficulty.target().to_le_bytes());
        let ours = world.prefix.as_bytes();
        let (name, tag) = ("alice".to_owned(), "pool".to_owned());
        let mut allocator = ExtranonceAllocator::new(ours[..7].to_vec(), EXTRANONCE_LEN as u8, 256)
            .map_err(refused)?;
        let (rate, batch, hashes) = (SHARES_PER_MINUTE, 10, 1e12);
        let job = job(world)?;
        let tip = prev_hash(world);
        match world.kind {
            Kind::Standard => {
                let prefix = allocator.allocate_standard().map_err(refused)?;
                ensure!(prefix.as_bytes() == world.prefix.standard().as_slice());
                let mut channel = StandardChannel::new_for_pool(
                    CHANNEL, name, prefix, any, hashes, batch, rate, tag, None,
                )
                .map_err(refused)?;
                channel.set_target(target).map_err(refused)?;
                channel.on_group_channel_job(job).map_err(refused)?;
                channel.on_set_new_prev_hash(tip).map_err(refused)?;
                Ok(Self::Standard(Box::new(channel)))
            }
            Kind::Extended => {
                let rollable = EXTRANONCE_ROLLABLE_LEN;
                let prefix = allocator.allocate_extended(rollable).map_err(refused)?;
                ensure!(prefix.as_bytes() == ours);
                let mut channel = ExtendedChannel::new_for_pool(
                    CHANNEL,
                    name,
                    prefix,
                    any,
                    hashes,
                    true,
                    rollable as u16,
                    batch,
                    rate,
                    tag,
                    None,
                )
                .map_err(refused)?;
                channel.set_target(target).map_err(refused)?;
                channel.on_group_channel_job(job).map_err(refused)?;
                channel.on_set_new_prev_hash(tip).map_err(refused)?;
                Ok(Self::Extended(Box::new(channel)))
            }
        }
    }

    /// `validate_share`. A share of the other kind is told no.
    pub fn validate(&mut self, submit: Submit) -> Verdict {
        match (self, submit) {
            (Self::Standard(channel), Submit::Standard(share)) => {
                verdict(channel.validate_share(share))
            }
            (Self::Extended(channel), Submit::Extended(share)) => {
                verdict(channel.validate_share(share))
            }
            (Self::Standard(_), Submit::Extended(_)) | (Self::Extended(_), Submit::Standard(_)) => {
                None
            }
        }
    }
}

/// A claim as SRI's channels take it.
///
/// # Errors
/// An extranonce of more than 32 bytes, which no claim has.
pub fn submit(claim: &Claim, sequence_number: u32) -> Result<Submit> {
    let Claim { job, nonce, ntime, version, rolled } = claim;
    let (channel_id, job_id) = (CHANNEL, job.0);
    let (nonce, ntime, version) = (*nonce, *ntime, *version);
    Ok(match rolled {
        None => Submit::Standard(SubmitSharesStandard {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
        }),
        Some(rolled) => Submit::Extended(SubmitSharesExtendedOwned {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
            extranonce: rolled.as_slice().to_vec().try_into().map_err(refused)?,
        }),
    })
}

fn verdict(result: Result<ShareValidationResult, ShareValidationError>) -> Verdict {
    match result {
        Ok(ShareValidationResult::Valid(hash) | ShareValidationResult::BlockFound(hash, _, _)) => {
            Some(hash.to_byte_array())
        }
        Err(_) => None,
    }
}

/// NewExtendedMiningJob of the world's job, as a future job: without a start.
///
/// # Errors
/// SRI refuses a field.
pub fn job_message(world: &World) -> Result<NewExtendedMiningJobOwned> {
    let coinbase = world.job.coinbase();
    let path: Vec<U256Owned> = world.job.merkle_path().iter().map(|node| (*node).into()).collect();
    Ok(NewExtendedMiningJobOwned {
        channel_id: CHANNEL,
        job_id: world.job_id.0,
        min_ntime: Sv2OptionOwned::new(None),
        version: world.job.version(),
        version_rolling_allowed: true,
        merkle_path: path.try_into().map_err(refused)?,
        coinbase_tx_prefix: coinbase.prefix.try_into().map_err(refused)?,
        coinbase_tx_suffix: coinbase.suffix.try_into().map_err(refused)?,
    })
}

/// The job as SRI's channels hold one. Its template id is the job id.
fn job(world: &World) -> Result<ExtendedJob> {
    let template = world.job.template();
    let message = job_message(world)?;
    let theirs = NewTemplateOwned {
        template_id: u64::from(world.job_id.0),
        future_template: true,
        version: template.version,
        coinbase_tx_version: template.coinbase_tx_version,
        coinbase_prefix: template.script_sig_prefix.clone().try_into().map_err(refused)?,
        coinbase_tx_input_sequence: world.job.coinbase_sequence(),
        coinbase_tx_value_remaining: template.coinbase_value_sats,
        coinbase_tx_outputs_count: template.required_outputs_count,
        coinbase_tx_outputs: template.required_outputs.clone().try_into().map_err(refused)?,
        coinbase_tx_locktime: template.coinbase_locktime,
        merkle_path: message.merkle_path.clone(),
    };
    let coinbase = world.job.coinbase();
    let (prefix, suffix) = (coinbase.prefix, coinbase.suffix);
    ExtendedJob::from_template(theirs, Vec::new(), Vec::new(), prefix, suffix, message)
        .map_err(refused)
        .context("SRI takes our job")
}

fn prev_hash(world: &World) -> SetNewPrevHashOwned {
    let tip = world.tip();
    SetNewPrevHashOwned {
        template_id: u64::from(world.job_id.0),
        prev_hash: tip.hash.into(),
        header_timestamp: tip.min_ntime,
        n_bits: tip.nbits,
        target: [0xff; 32].into(),
    }
}

/// SRI's errors are not all `std::error::Error`.
fn refused(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("SRI: {error:?}")
}
