//! The work and the shares that both sides are given: a coinbase of 248 bytes with its extranonce at 71,
//! 12 branches, and claims made at random from a fixed seed. Used by every part of `compare` and by the
//! criterion benches, so that figures of one stand beside figures of another.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use proto::extranonce::{ExtranonceAllocator, ExtranoncePrefix};
use proto::job::{ActiveTemplate, Job, JobId};
use proto::limits::{EXTRANONCE_LEN, EXTRANONCE_ROLLABLE_LEN, FRAME_HEADER_LEN};
use proto::message::{
    FrameHeader, Message, OpenExtendedMiningChannel, OpenStandardMiningChannel, Received,
    SubmitSharesExtended, SubmitSharesStandard, Tlvs,
};
use proto::mining::server::{Input, Outbox, Policy, Server};
use proto::mining::{Kind, Now};
use proto::share::{Claim, FrozenJob};
use proto::target::{Difficulty, Target};
use proto::template::{Output, PrevHash, Template, TemplateId, sha256d};
use proto::wire::{B032, Str0255};

/// When everything here takes place: our clock and the first ntime of the job.
pub const NOW: Now = Now { mono_ms: 1_000, unix_s: 1_790_000_000 };
/// SHA-256 compressions of an extended share: coinbase 4 (its first block is the job's), txid 1, twelve
/// nodes of 3, header 3.
pub const EXTENDED_COMPRESSIONS: f64 = 44.0;
/// The header alone.
pub const STANDARD_COMPRESSIONS: f64 = 3.0;
/// The channel that `World::server` has opened.
pub const CHANNEL: u32 = 2;

const BRANCHES: usize = 12;
const COINBASE_LEN: usize = 248;
const EXTRANONCE_AT: usize = 71;
const VERSION: u32 = 0x2000_0000;
/// Difficulty 1: none of the shares here is a block.
const NBITS: u32 = 0x1d00_ffff;
const NODE: (u16, u16) = (7, 9);

/// One channel's work, from which each side makes what it needs.
#[derive(Debug)]
pub struct World {
    /// Standard or extended.
    pub kind: Kind,
    /// What a share must meet.
    pub difficulty: Difficulty,
    /// The job as the channel was given it.
    pub job: Job,
    /// Its number on the channel.
    pub job_id: JobId,
    /// The channel's part of the extranonce.
    pub prefix: ExtranoncePrefix,
    active: Arc<ActiveTemplate>,
    network_target: Target,
}

impl World {
    /// A channel of `kind` whose shares must meet `difficulty`.
    ///
    /// # Errors
    /// The job is not the one described above: this file is wrong.
    pub fn new(kind: Kind, difficulty: Difficulty) -> Result<Self> {
        let job = Job::new(Arc::new(template()), &outputs(), &[b's'; 23])?;
        let parts = job.coinbase();
        ensure!(parts.prefix.len() == EXTRANONCE_AT, "the extranonce is at {}", parts.prefix.len());
        let length = parts.prefix.len() + EXTRANONCE_LEN + parts.suffix.len();
        ensure!(length == COINBASE_LEN, "a coinbase of {length} bytes");
        let tip = PrevHash { hash: sha256d(b"tip"), nbits: NBITS, min_ntime: NOW.unix_s };
        let prefix = extranonces().allocate().context("the first of 2^32")?;
        let active = Arc::new(ActiveTemplate { tip, job, next: None });
        let job_id = JobId(0);
        let (job, network_target) = (active.job.clone(), Target::from_compact(NBITS));
        let mut world = Self { kind, difficulty, job, job_id, prefix, active, network_target };
        world.job_id = world.open()?.1;
        world.job = world.active.job.numbered(world.job_id);
        Ok(world)
    }

    /// The tip that the job builds on.
    #[must_use]
    pub fn tip(&self) -> PrevHash {
        self.active.tip
    }

    /// Work on the tip so many blocks later, as a pool publishes it: the full job, and one of the coinbase
    /// alone for the tip after that.
    ///
    /// # Errors
    /// No job can be made of it: this file is wrong.
    pub fn blocks_later(&self, blocks: u32) -> Result<ActiveTemplate> {
        let full = template();
        let height = full.height + blocks;
        let full = Template { height, ..full };
        let coinbase_only =
            Template { height: height + 1, merkle_path: Vec::new(), ..full.clone() };
        let job = |template| Job::new(Arc::new(template), &outputs(), &[b's'; 23]);
        Ok(ActiveTemplate {
            tip: PrevHash { hash: sha256d(&blocks.to_le_bytes()), ..self.active.tip },
            next: Some(job(coinbase_only)?),
            job: job(full)?,
        })
    }

    /// Our side of a fresh connection that has opened the channel.
    ///
    /// # Errors
    /// It was told no.
    pub fn server(&self) -> Result<Server> {
        let (server, job) = self.open()?;
        ensure!(job == self.job_id, "the first job is {job:?} now and was {:?}", self.job_id);
        Ok(server)
    }

    fn open(&self) -> Result<(Server, JobId)> {
        // So many shares are wanted that no burst of them makes the difficulty rise.
        let policy = Policy { shares_per_minute: 1e9, floor: self.difficulty, ..Policy::default() };
        let mut server =
            Server::new(Arc::new(policy), 0, extranonces(), Arc::clone(&self.active), NOW);
        let (request_id, user_identity) = (1, Str0255::text("alice.rig1"));
        let (nominal_hash_rate, max_target) = (0.0, [0xff; 32]);
        let open: Message<'_> = match self.kind {
            Kind::Standard => OpenStandardMiningChannel {
                request_id,
                user_identity,
                nominal_hash_rate,
                max_target,
            }
            .into(),
            Kind::Extended => OpenExtendedMiningChannel {
                request_id,
                user_identity,
                nominal_hash_rate,
                max_target,
                min_extranonce_size: EXTRANONCE_ROLLABLE_LEN as u16,
            }
            .into(),
        };
        let mut out = Outbox::default();
        server.handle(NOW, Input::Message(open, Tlvs::NONE), &mut out)?;
        let job = first_job(&out.frames)?;
        Ok((server, job))
    }

    /// The job as `share` is asked about it.
    #[must_use]
    pub fn frozen(&self) -> FrozenJob<'_> {
        let tip = &self.active.tip;
        FrozenJob {
            job: &self.job,
            tip,
            network_target: &self.network_target,
            difficulty: self.difficulty,
            target: self.difficulty.target(),
            min_ntime: tip.min_ntime,
            since: NOW.unix_s,
            prefix: self.prefix,
            merkle_root: match self.kind {
                Kind::Standard => Some(self.job.merkle_root(&self.prefix.standard())),
                Kind::Extended => None,
            },
            version_rolling: true,
        }
    }

    /// A claim from a seed: distinct ones from distinct `number`s, good but for the hash.
    #[must_use]
    pub fn claim(&self, number: u32) -> Claim {
        let random = sha256d(&number.to_le_bytes());
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| random[4 * at + byte]));
        let rolled = match self.kind {
            Kind::Standard => None,
            Kind::Extended => B032::new(&random[..EXTRANONCE_ROLLABLE_LEN]).ok(),
        };
        Claim {
            job: self.job_id,
            nonce: word(4),
            ntime: NOW.unix_s + word(5) % 500,
            version: VERSION | (word(6) & 0x1fff_e000),
            rolled,
        }
    }
}

/// A claim as the message that carries it; its sequence number is `number`.
#[must_use]
pub fn submit(claim: &Claim, number: u32) -> Message<'static> {
    let Claim { job, nonce, ntime, version, rolled } = *claim;
    let (channel_id, sequence_number, job_id) = (CHANNEL, number, job.0);
    match rolled {
        Some(extranonce) => SubmitSharesExtended {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
            extranonce,
        }
        .into(),
        None => SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version }
            .into(),
    }
}

fn extranonces() -> ExtranonceAllocator {
    ExtranonceAllocator::new(NODE.0, NODE.1)
}

/// Number of the job that an open was answered with.
#[expect(clippy::wildcard_enum_match_arm, reason = "jobs are looked for among all that was said")]
fn first_job(mut frames: &[u8]) -> Result<JobId> {
    while let Some((header, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*header);
        let (payload, rest) = rest.split_at(header.length);
        frames = rest;
        let received = Message::decode(header.extension(), header.msg_type, payload)?;
        let Received::Known(message, _) = received else { continue };
        match message {
            Message::NewMiningJob(job) => return Ok(JobId(job.job_id)),
            Message::NewExtendedMiningJob(job) => return Ok(JobId(job.job_id)),
            _ => {}
        }
    }
    bail!("an open was answered without a job")
}

fn outputs() -> [Output; 3] {
    let key_hash = |seed: u8, before: &[u8], after: &[u8]| [before, &[seed; 20], after].concat();
    [
        Output { sats: 300_000_000, script: key_hash(1, &[0, 20], &[]) },
        Output { sats: 10_000_000, script: key_hash(2, &[0x76, 0xa9, 20], &[0x88, 0xac]) },
        Output { sats: 2_500_000, script: key_hash(3, &[0xa9, 20], &[0x87]) },
    ]
}

fn template() -> Template {
    let commitment = [&[0; 8][..], &[38, 0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed], &[4; 32]].concat();
    Template {
        id: TemplateId(1),
        height: 900_001,
        version: VERSION,
        coinbase_tx_version: 2,
        script_sig_prefix: vec![3, 0xa1, 0xbb, 0x0d],
        coinbase_sequence: 0xffff_fffe,
        coinbase_value_sats: 312_500_000,
        required_outputs: commitment,
        required_outputs_count: 1,
        coinbase_locktime: 900_000,
        merkle_path: (0..BRANCHES).map(|at| sha256d(&[at as u8])).collect(),
        transactions: Some(Arc::default()),
        commits_to_witnesses: true,
    }
}
