//! THE HOT PATH: is this share good, is it a block. Called by `mining::server` for every share and by
//! nothing else. No allocation, no lock, no log, no clone of a job.
//!
//! Three steps, so that the shares of one read are hashed together: `Submitted::new` puts the header
//! together, `hash` makes the hashes of many, `verdict` judges one.
//!
//! A share is judged by the job it names, frozen as it was sent: its target, its tip, its extranonce
//! prefix. What the channel's target is now does not matter here.

mod seen;

use std::array;

use crate::extranonce::{Extranonce, ExtranoncePrefix};
use crate::job::{HeaderFields, Job, JobId};
use crate::limits::{
    EXTRANONCE_PREFIX_LEN, EXTRANONCE_ROLLABLE_LEN, NTIME_AHEAD_MAX_S, NTIME_SLACK_S,
    VERSION_ROLLING_MASK,
};
use crate::sha256::{CoinbaseFields, Kernel, header_hashes_by};
pub use crate::share::seen::Seen;
use crate::target::{Difficulty, Target};
use crate::template::PrevHash;
use crate::wire::B032;

/// A job as one channel was given it. Nothing in it changes afterwards: that is what makes a share's
/// verdict the same whenever it arrives.
#[derive(Debug, Clone)]
pub struct FrozenJob<'a> {
    /// What is mined.
    pub job: &'a Job,
    /// The tip that it builds on.
    pub tip: &'a PrevHash,
    /// Target of `tip.nbits`: a header that meets it is a block.
    pub network_target: &'a Target,
    /// What a share of it is worth.
    pub difficulty: Difficulty,
    /// `difficulty` as a threshold.
    pub target: Target,
    /// First ntime that the miner was told to use.
    pub min_ntime: u32,
    /// Our clock (unix seconds) when he was told.
    pub since: u32,
    /// The channel's prefix when the job was sent (rule P51).
    pub prefix: ExtranoncePrefix,
    /// Set on a standard channel, whose extranonce never moves.
    pub merkle_root: Option<[u8; 32]>,
    /// Whether BIP323 bits may differ from the job's version.
    pub version_rolling: bool,
}

/// What a miner says he found on a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The job he names.
    pub job: JobId,
    /// Nonce.
    pub nonce: u32,
    /// Full header time.
    pub ntime: u32,
    /// Full header version.
    pub version: u32,
    /// What he rolled; `None` from a standard channel.
    pub rolled: Option<B032>,
}

/// Why a share is refused; each is a code that the miner reads (`RULES.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// No such channel, or one of the other kind.
    InvalidChannelId,
    /// No such job on this channel, or one long replaced.
    InvalidJobId,
    /// The job's tip is no longer the tip.
    StaleShare,
    /// The extranonce has not the granted length.
    BadExtranonceSize,
    /// Before the job's start or further ahead than time went by.
    InvalidNtime,
    /// The job forbids rolling and the version differs.
    VersionRollingNotAllowed,
    /// A version bit outside BIP323 differs.
    InvalidVersionBit,
    /// The hash is above the job's target.
    DifficultyTooLow,
    /// This header was credited before.
    DuplicateShare,
    /// A worker name (extension 0x0002) that is too long or not text (rule G17).
    InvalidUserIdentity,
}

impl Refusal {
    /// Every refusal, for tables and metrics.
    pub const ALL: [Self; 10] = [
        Self::InvalidChannelId,
        Self::InvalidJobId,
        Self::StaleShare,
        Self::BadExtranonceSize,
        Self::InvalidNtime,
        Self::VersionRollingNotAllowed,
        Self::InvalidVersionBit,
        Self::DifficultyTooLow,
        Self::DuplicateShare,
        Self::InvalidUserIdentity,
    ];

    /// The error_code of SubmitShares.Error. The first four that the spec once suggested are the ones
    /// that firmware explains to its owner.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidChannelId => "invalid-channel-id",
            Self::InvalidJobId => "invalid-job-id",
            Self::StaleShare => "stale-share",
            Self::BadExtranonceSize => "bad-extranonce-size",
            Self::InvalidNtime => "invalid-ntime",
            Self::VersionRollingNotAllowed => "version-rolling-not-allowed",
            Self::InvalidVersionBit => "invalid-non-rollable-version-bit",
            Self::DifficultyTooLow => "difficulty-too-low",
            Self::DuplicateShare => "duplicate-share",
            Self::InvalidUserIdentity => "invalid-user-identity",
        }
    }
}

/// What became of a claim.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// The header met the network's target. True also for shares that are refused: a block is a block.
    pub is_block: bool,
    /// A proof to be credited, once it is known to be new.
    pub outcome: Result<Proof, Refusal>,
}

/// A claim on its way to a verdict.
#[derive(Debug, Clone)]
pub struct Submitted<'a> {
    job: &'a FrozenJob<'a>,
    /// On an extended channel, in full: what the merkle root is yet to be made of.
    extranonce: Option<Extranonce>,
    header: HeaderFields,
    hash: [u8; 32],
}

impl<'a> Submitted<'a> {
    /// A header as far as it can be put together without hashing.
    ///
    /// # Errors
    /// No header can be made of the claim.
    #[inline]
    pub fn new(job: &'a FrozenJob<'a>, claim: &Claim) -> Result<Self, Refusal> {
        let (merkle_root, extranonce) = match (&claim.rolled, job.merkle_root) {
            (None, Some(root)) => (root, None),
            (Some(rolled), None) => {
                let full = job.job.extranonce(&job.prefix, rolled.as_slice());
                ([0; 32], Some(full.ok_or(Refusal::BadExtranonceSize)?))
            }
            // The other kind of channel's message: the server looks before it asks. Or a job of the
            // other layout, which has no root on this channel.
            (None, None) | (Some(_), Some(_)) => return Err(Refusal::InvalidChannelId),
        };
        let header = HeaderFields {
            version: claim.version,
            prev_hash: job.tip.hash,
            merkle_root,
            ntime: claim.ntime,
            nbits: job.tip.nbits,
            nonce: claim.nonce,
        };
        Ok(Self { job, extranonce, header, hash: [0; 32] })
    }

    /// The job that it names.
    #[must_use]
    pub fn job(&self) -> &'a FrozenJob<'a> {
        self.job
    }

    /// The claim in full; on an extended channel once it is hashed.
    #[must_use]
    pub fn header(&self) -> &HeaderFields {
        &self.header
    }

    /// Whether both can be hashed at once: on extended channels their jobs are of one work.
    fn goes_with(&self, other: &Self) -> bool {
        match (&self.extranonce, &other.extranonce) {
            (Some(_), Some(_)) => self.job.job.is_work_of(other.job.job),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Judges the claim once it is hashed. `clock` is ours, unix seconds. Whether the proof is new is
    /// not asked here (`Seen`).
    #[must_use]
    #[inline]
    pub fn verdict(&self, clock: u32) -> Verdict {
        let Self { job, extranonce, header, hash } = self;
        // Asked before anything can refuse the share: a header that our rules dislike is still a block
        // to the network (and on regtest a block can miss the channel's target).
        let is_block = job.network_target.is_met_by(hash);
        let outcome = check_rolled_fields(job, header, clock).and_then(|()| {
            let meets_target = job.target.is_met_by(hash);
            if !is_block && !meets_target {
                return Err(Refusal::DifficultyTooLow);
            }
            // Credit is for meeting the job's target. Paying a block that missed it at the job's
            // difficulty would pay a client that asks for a target beyond the network's many times for
            // each hash.
            let difficulty = if meets_target { job.difficulty } else { Difficulty::MIN };
            Ok(Proof {
                hash: *hash,
                nonce: header.nonce,
                ntime: header.ntime,
                version: header.version,
                rolled: extranonce
                    .or_else(|| standard_in_house(job))
                    .map_or([0; EXTRANONCE_ROLLABLE_LEN], rolled_of),
                difficulty,
                is_block,
            })
        });
        Verdict { is_block, outcome }
    }
}

/// Of a standard channel in a house, whose extranonce is not all zeros to the pool.
#[inline]
fn standard_in_house(job: &FrozenJob<'_>) -> Option<Extranonce> {
    match job.prefix {
        ExtranoncePrefix::Pool(_) => None,
        ExtranoncePrefix::House(_) => job.job.standard_extranonce(&job.prefix),
    }
}

/// What the client added to the pool's prefix. A house is the client of the pool that it mines at.
fn rolled_of(extranonce: Extranonce) -> [u8; EXTRANONCE_ROLLABLE_LEN] {
    let mut rolled = [0; EXTRANONCE_ROLLABLE_LEN];
    rolled.copy_from_slice(&extranonce[EXTRANONCE_PREFIX_LEN..]);
    rolled
}

/// Hashes every claim's header, and on extended channels what its merkle root is made of first: those
/// of one work that stand together at once.
pub fn hash(shares: &mut [&mut Submitted<'_>]) {
    hash_by(Kernel::for_next_of, shares);
}

/// `hash` by a kernel of the caller's choice (by `Portable` if the CPU has it not).
pub fn hash_with(kernel: Kernel, shares: &mut [&mut Submitted<'_>]) {
    hash_by(|left| (kernel, left), shares);
}

fn hash_by(next: impl Fn(usize) -> (Kernel, usize) + Copy, mut shares: &mut [&mut Submitted<'_>]) {
    while let Some(first) = shares.first() {
        let run = shares.iter().take(RUN_MAX).take_while(|share| share.goes_with(first)).count();
        let (run, rest) = shares.split_at_mut(run);
        match run {
            // Room for a whole run would cost a lone share as much as its hash.
            [one] => hash_run::<1>(next, &mut [one]),
            run => hash_run::<RUN_MAX>(next, run),
        }
        shares = rest;
    }
}

/// Shares that are hashed at once: what the widest kernel takes.
const RUN_MAX: usize = 16;

/// At least one share, at most `N`, that go with each other.
fn hash_run<const N: usize>(
    next: impl Fn(usize) -> (Kernel, usize),
    run: &mut [&mut Submitted<'_>],
) {
    let count = run.len();
    let mut headers: [[u8; 80]; N] =
        array::from_fn(|at| run.get(at).map_or([0; 80], |share| share.header.to_bytes()));
    let mut hashes = [[0; 32]; N];
    let (headers, hashes) = (&mut headers[..count], &mut hashes[..count]);
    if run[0].extranonce.is_some() {
        let coinbases: [CoinbaseFields; N] = array::from_fn(|at| {
            let share = run.get(at).unwrap_or(&run[0]);
            share.job.job.coinbase_fields(share.extranonce.unwrap_or_default())
        });
        run[0].job.job.hash_shares(next, &coinbases[..count], headers, hashes);
    } else {
        header_hashes_by(next, headers, hashes);
    }
    for ((share, header), hash) in run.iter_mut().zip(headers).zip(hashes) {
        share.header.merkle_root.copy_from_slice(&header[36..68]);
        share.hash = *hash;
    }
}

/// ntime and version (rules P42, P43, P45).
fn check_rolled_fields(
    job: &FrozenJob<'_>,
    header: &HeaderFields,
    clock: u32,
) -> Result<(), Refusal> {
    let elapsed = clock.saturating_sub(job.since);
    let latest = job
        .min_ntime
        .saturating_add(elapsed)
        .saturating_add(NTIME_SLACK_S)
        .min(clock.saturating_add(NTIME_AHEAD_MAX_S))
        // A tip from a node whose clock runs ahead of ours may start later than that.
        .max(job.min_ntime);
    if header.ntime < job.min_ntime || header.ntime > latest {
        return Err(Refusal::InvalidNtime);
    }
    let changed = header.version ^ job.job.version();
    if changed & !VERSION_ROLLING_MASK != 0 {
        return Err(Refusal::InvalidVersionBit);
    }
    if changed != 0 && !job.version_rolling {
        return Err(Refusal::VersionRollingNotAllowed);
    }
    Ok(())
}

/// What is kept of a credited share for ever: 64 bytes from which, with its batch's job, anyone can
/// recompute the proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Header hash, header byte order.
    pub hash: [u8; 32],
    /// As submitted.
    pub nonce: u32,
    /// As submitted.
    pub ntime: u32,
    /// As submitted: the full header version.
    pub version: u32,
    /// What the client rolled; zeros on a standard channel. In a house what the pool sees rolled: number
    /// of the job, number of the channel, and what the device rolled (zeros on a standard channel).
    pub rolled: [u8; EXTRANONCE_ROLLABLE_LEN],
    /// What the share is worth: the difficulty of the job's target, or the least there is for a block
    /// that missed it.
    pub difficulty: Difficulty,
    /// The header also met the network's target.
    pub is_block: bool,
}

impl Proof {
    /// Bytes of a packed proof.
    pub const LEN: usize = 64;

    /// hash 32, nonce 4, ntime 4, version 4 (each little-endian), rolled 16, log2 of the difficulty as
    /// I16, flags U16 (bit 0: block).
    #[must_use]
    pub fn pack(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..32].copy_from_slice(&self.hash);
        bytes[32..36].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.ntime.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.version.to_le_bytes());
        bytes[44..60].copy_from_slice(&self.rolled);
        bytes[60..62].copy_from_slice(&self.difficulty.log2().to_le_bytes());
        bytes[62..64].copy_from_slice(&u16::from(self.is_block).to_le_bytes());
        bytes
    }

    /// The inverse of `pack`.
    #[must_use]
    pub fn unpack(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[0..32]);
        let mut rolled = [0; EXTRANONCE_ROLLABLE_LEN];
        rolled.copy_from_slice(&bytes[44..60]);
        Self {
            hash,
            nonce: word(32),
            ntime: word(36),
            version: word(40),
            rolled,
            difficulty: Difficulty::from_log2(i16::from_le_bytes([bytes[60], bytes[61]])),
            is_block: bytes[62] & 1 == 1,
        }
    }
}
