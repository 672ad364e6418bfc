//! The pool's side of one mining connection: its channels, their jobs, their shares (spec chapter 5).
//! Driven by the connection's task (`pool/miner.rs`): what happened goes into `handle`, what to say and
//! what to do comes out in an `Outbox`. Jobs in `jobs.rs`, those that a client makes itself in `custom.rs`,
//! opening and updating in `open.rs`, shares in `shares.rs`.
//!
//! Must never touch a socket, a clock or a store, and must never say `Success` for a share that the
//! ledger has not committed.

mod custom;
mod jobs;
mod open;
mod shares;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::connection::Violation;
use crate::extranonce::{Extranonce, ExtranonceAllocator};
use crate::job::{ActiveTemplate, HeaderFields, Job, JobId};
use crate::limits::{
    CHANNELS_PER_CONNECTION_MAX, DIFFICULTY_LOG2_MAX, JOB_REFRESH_MS, OPENS_BURST,
    REFUSED_IN_A_ROW_MAX, VARDIFF_CHECK_MS,
};
use crate::message::{Message, Tlvs, setup_flags};
use crate::mining::batch::Batches;
pub use crate::mining::channel::Tally;
use crate::mining::channels::Channels;
use crate::mining::given::GivenJobs;
use crate::mining::{
    ChannelId, Committed, CreditBatch, CustomJob, CustomJobRequest, CustomRefusal, CustomRefused,
    DeclaredId, Kind, Now, Owner, Worth,
};
use crate::share::Refusal;
use crate::target::Difficulty;
use crate::token::MiningJobToken;

/// What the operator decides; the same for every connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Shares a minute that difficulty aims at, for each channel.
    pub shares_per_minute: f64,
    /// No channel is ever easier than this, whatever a client asks.
    pub floor: Difficulty,
    /// No channel is ever harder than this, unless its client asks for it (`max_target`).
    pub ceiling: Difficulty,
    /// A NaN, infinite or negative hash rate ends the connection (rule G13, the stricter reading). Off:
    /// it is answered with an error code.
    pub bad_floats_end_connection: bool,
    /// Jobs for several channels go to their group once. Off: to each channel by its own id.
    pub group_addressing: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            shares_per_minute: 12.0,
            floor: Difficulty::from_log2(8),
            ceiling: Difficulty::from_log2(DIFFICULTY_LOG2_MAX),
            bad_floats_end_connection: true,
            group_addressing: true,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The client said something.
    Message(Message<'a>, Tlvs<'a>),
    /// Everybody mines something else now.
    Template(Arc<ActiveTemplate>),
    /// Nothing more has come for now: what was put off is done. Shares of the burst are judged
    /// together; the jobs behind a new tip are said. Follows every burst of messages and, once the
    /// tip is on its way, every `Template`; any other input does the same first.
    BurstEnd,
    /// The ledger has a batch on disk.
    Committed(Committed),
    /// Whether a custom job is to be promised (`Effect::CustomJob`), for each request once.
    CustomJob {
        /// The request's.
        channel: ChannelId,
        /// The request's.
        request_id: u32,
        /// The job, or why there is none.
        verdict: Result<Box<CustomJob>, (CustomRefusal, String)>,
    },
    /// Time went by (`Server::deadline_ms`).
    Time,
}

/// What to say and what to do about it, in order. Effects come first: a found block is on disk before
/// its share is answered.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Plaintext frames, back to back.
    pub frames: Vec<u8>,
    /// What the task is to do.
    pub effects: Vec<Effect>,
}

impl Outbox {
    pub(crate) fn say<'a>(&mut self, message: impl Into<Message<'a>>) {
        message.into().encode(&mut self.frames);
    }
}

/// What a machine cannot do itself.
#[derive(Debug)]
pub enum Effect {
    /// A header met the network's target. Before anything else.
    BlockFound(Box<FoundBlock>),
    /// Shares for the ledger.
    Credit(CreditBatch),
    /// Shares of one channel and one difficulty were acknowledged.
    Acknowledged {
        /// Whose.
        channel: ChannelId,
        /// What each is worth.
        difficulty: Difficulty,
        /// How many.
        shares: u32,
        /// When the oldest of its batch came, mono ms.
        oldest_ms: u64,
    },
    /// A share was told no.
    Refused {
        /// On which channel (as the client named it).
        channel: ChannelId,
        /// Why.
        refusal: Refusal,
    },
    /// A client wants to mine a job of its own: to be answered with `Input::CustomJob`.
    CustomJob(Box<CustomJobRequest>),
    /// A custom job was promised: its token is used up, its shares are credited from now on.
    CustomAccepted(Box<CustomAccepted>),
    /// A custom job was told no.
    CustomRefused(Box<CustomRefused>),
    /// A channel was opened.
    Opened(ChannelId),
    /// An open was told no, with this code.
    OpenRefused(&'static str),
    /// A channel was closed.
    Closed(ChannelId, Owner),
}

/// A custom job that shares may name from now on.
#[derive(Debug, Clone)]
pub struct CustomAccepted {
    /// The channel, or the group for all its extended channels.
    pub channel: ChannelId,
    /// The client's number for its request.
    pub request_id: u32,
    /// The token that it was asked for with.
    pub token: MiningJobToken,
    /// Its id on the connection.
    pub job_id: JobId,
    /// What its work is worth: as the verdict said, or as the same work was given before.
    pub worth: Worth,
}

/// Everything that is needed to make a block of a share.
#[derive(Debug, Clone)]
pub struct FoundBlock {
    /// Header hash, header byte order.
    pub hash: [u8; 32],
    /// The winning header.
    pub header: HeaderFields,
    /// The full extranonce of its coinbase.
    pub extranonce: Extranonce,
    /// The job that holds the rest of the block; of a coinbase-only job there is no rest.
    pub job: Job,
    /// What the job's work is worth, and which declaration it is of.
    pub worth: Worth,
    /// Who found it.
    pub owner: Owner,
}

/// The pool's side of one mining connection, after SetupConnection.
#[derive(Debug)]
pub struct Server {
    policy: Arc<Policy>,
    /// Flags of the client's SetupConnection.
    flags: u32,
    /// Extension 0x0002 was negotiated.
    worker_hashrate: bool,
    extranonces: ExtranonceAllocator,
    /// No channel of this connection is harder: the policy's, or what was said since.
    ceiling: Difficulty,
    active: Arc<ActiveTemplate>,
    /// The job sent ahead for the next tip, known to every channel under this id.
    future: Option<jobs::Ahead>,
    /// The channels know the tip and not yet its jobs.
    owes_jobs: bool,
    /// On a connection that selects its own work.
    custom: Option<Box<custom::CustomWork>>,
    /// The jobs that went to every channel.
    given: GivenJobs,
    channels: Channels,
    /// How many channels there may be.
    channels_max: usize,
    next_channel: u32,
    next_job: u32,
    batches: Batches,
    /// Shares of this burst.
    submitted: Vec<shares::Submitted>,
    /// Since the last good share.
    refused_in_a_row: u32,
    early: Vec<shares::EarlyShare>,
    /// Hashes of the blocks that were sent last, newest last.
    blocks_sent: VecDeque<[u8; 32]>,
    jobs_sent_ms: u64,
    vardiff_checked_ms: u64,
    /// Opens that the connection may still make, and up to when they are counted.
    opens_left: u64,
    opens_counted_ms: u64,
}

/// The one group of a connection: id 1, so that no channel ever has it (rules P7, P12).
const GROUP: ChannelId = ChannelId(1);

impl Server {
    /// A connection without channels. `flags` are those of the client's SetupConnection.
    #[must_use]
    pub fn new(
        policy: Arc<Policy>,
        flags: u32,
        extranonces: ExtranonceAllocator,
        active: Arc<ActiveTemplate>,
        now: Now,
    ) -> Self {
        Self {
            ceiling: policy.ceiling,
            policy,
            flags,
            worker_hashrate: false,
            extranonces,
            custom: (flags & setup_flags::REQUIRES_WORK_SELECTION != 0)
                .then(|| Box::new(custom::CustomWork::new(&active, now))),
            given: GivenJobs::on(active.tip),
            active,
            future: None,
            owes_jobs: false,
            channels: Channels::default(),
            channels_max: CHANNELS_PER_CONNECTION_MAX,
            next_channel: GROUP.0 + 1,
            next_job: 1,
            batches: Batches::default(),
            submitted: Vec::new(),
            refused_in_a_row: 0,
            early: Vec::new(),
            blocks_sent: VecDeque::new(),
            jobs_sent_ms: now.mono_ms,
            vardiff_checked_ms: now.mono_ms,
            opens_left: OPENS_BURST,
            opens_counted_ms: now.mono_ms,
        }
    }

    /// Says whether extension 0x0002 is spoken from now on.
    pub fn set_worker_hashrate(&mut self, negotiated: bool) {
        self.worker_hashrate = negotiated;
    }

    /// Says how many channels the connection may hold from now on; never more than
    /// `CHANNELS_PER_CONNECTION_MAX`. Those that are open stay, an open beyond is refused with
    /// `channel-capacity-exhausted`.
    pub fn set_channels_max(&mut self, channels: usize) {
        self.channels_max = channels.min(CHANNELS_PER_CONNECTION_MAX);
    }

    /// Says that no channel may be harder than this from now on, for as long as nothing else is said; never
    /// above the policy's ceiling. A house's channels are held at the target that the pool asks of it: what
    /// they find between that and a harder one of their own, the pool would never see.
    ///
    /// A channel above it comes down at once, with a fresh job, since its jobs keep the difficulty that they
    /// were sent with. A higher one than before only gives room to rise. What holds against the policy's
    /// ceiling holds against this: the policy's floor, and a client's own `max_target`, since a device that
    /// was promised nothing easier may drop what is.
    pub fn set_ceiling(&mut self, ceiling: Difficulty, now: Now, out: &mut Outbox) {
        self.judge_burst(now, out);
        self.say_owed_jobs(now, out);
        self.ceiling = ceiling.min(self.policy.ceiling);
        let ceiling = self.ceiling;
        let lowered: Vec<ChannelId> = self
            .channels
            .iter_mut()
            .filter_map(|(id, channel)| channel.vardiff.set_ceiling(ceiling).map(|_| *id))
            .collect();
        for id in lowered {
            self.announce_target(now, id, out);
        }
    }

    /// How many channels are open.
    #[must_use]
    pub fn channels_open(&self) -> usize {
        self.channels.len()
    }

    /// Takes what happened; an `Err` ends the connection.
    pub fn handle(
        &mut self,
        now: Now,
        input: Input<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        if let Input::Message(message, tlvs) = input {
            if self.refused_in_a_row >= REFUSED_IN_A_ROW_MAX {
                return Err(Violation::OnlyBadShares(self.refused_in_a_row));
            }
            return self.on_message(now, &message, tlvs, out);
        }
        self.judge_burst(now, out);
        // A template that follows on the heels of another makes what that one owes old.
        if !matches!(input, Input::Template(_)) {
            self.say_owed_jobs(now, out);
        }
        match input {
            Input::Message(..) | Input::BurstEnd => Ok(()),
            Input::Template(template) => {
                self.on_template(now, template, out);
                Ok(())
            }
            Input::Committed(committed) => {
                self.on_committed(&committed, out);
                Ok(())
            }
            Input::CustomJob { channel, request_id, verdict } => {
                self.on_custom_verdict(now, (channel, request_id), verdict, out);
                Ok(())
            }
            Input::Time => {
                self.on_time(now, out);
                Ok(())
            }
        }
    }

    /// When `Input::Time` is due, mono ms.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        let check = self.vardiff_checked_ms.saturating_add(VARDIFF_CHECK_MS);
        let refresh = self.jobs_sent_ms.saturating_add(JOB_REFRESH_MS);
        check.min(refresh).min(self.batches.deadline_ms().unwrap_or(u64::MAX))
    }

    /// Whether another frame may be handled now. At the bound the socket is left alone until the
    /// ledger answers.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        // Early shares come into the batch all at once, with the tip that they wait for.
        self.batches.has_room_for(self.submitted.len() + self.early.len() + 1)
    }

    /// Batches that the ledger has not answered yet.
    #[must_use]
    pub fn batches_under_way(&self) -> usize {
        self.batches.under_way()
    }

    /// The declared jobs that shares of the open batch are of; one may be named twice. However old their
    /// tips are, the ledger is still to be told of them.
    pub fn open_declared(&self) -> impl Iterator<Item = DeclaredId> {
        self.batches.open_declared()
    }

    /// Sends off the open batch now, whatever its age: the connection ends, its shares do not.
    pub fn close_batch(&mut self, out: &mut Outbox) {
        out.effects.extend(self.batches.close().map(Effect::Credit));
    }

    /// What is there to show of each channel.
    pub fn channels(&self) -> impl Iterator<Item = ChannelView<'_>> {
        self.channels.iter().map(|(id, channel)| ChannelView {
            id: *id,
            kind: channel.kind,
            owner: &channel.owner,
            difficulty: channel.vardiff.difficulty(),
            tally: &channel.tally,
        })
    }

    // Six messages are a mining client's to say; any other, also one that is added some day, is not.
    #[expect(clippy::wildcard_enum_match_arm)]
    fn on_message(
        &mut self,
        now: Now,
        message: &Message<'_>,
        tlvs: Tlvs<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        match message {
            Message::SubmitSharesExtended(share) => {
                self.on_extended_share(now, share, tlvs, out);
                return Ok(());
            }
            Message::SubmitSharesStandard(share) => {
                self.on_standard_share(now, share, out);
                return Ok(());
            }
            _ => {
                self.judge_burst(now, out);
                self.say_owed_jobs(now, out);
            }
        }
        match message {
            Message::OpenStandardMiningChannel(open) => self.open_standard(now, open, out)?,
            Message::OpenExtendedMiningChannel(open) => self.open_extended(now, open, out)?,
            Message::UpdateChannel(update) => self.on_update(now, update, out)?,
            Message::CloseChannel(close) => self.on_close(ChannelId(close.channel_id), out),
            Message::SetCustomMiningJob(custom) => self.on_custom_job(now, custom, out),
            other => return Err(Violation::Unexpected(other.name())),
        }
        Ok(())
    }

    fn on_time(&mut self, now: Now, out: &mut Outbox) {
        if self.batches.deadline_ms().is_some_and(|deadline| deadline <= now.mono_ms) {
            self.close_batch(out);
        }
        if now.mono_ms >= self.vardiff_checked_ms.saturating_add(VARDIFF_CHECK_MS) {
            self.vardiff_checked_ms = now.mono_ms;
            self.check_difficulties(now, out);
            self.expire_early_shares(now, out);
        }
        if now.mono_ms >= self.jobs_sent_ms.saturating_add(JOB_REFRESH_MS) {
            self.refresh_jobs(now, out);
        }
    }
}

/// A channel as others may see it.
#[derive(Debug, Clone, Copy)]
pub struct ChannelView<'a> {
    /// Its id on the connection.
    pub id: ChannelId,
    /// Standard or extended.
    pub kind: Kind,
    /// Who is credited.
    pub owner: &'a Owner,
    /// What its next job will ask.
    pub difficulty: Difficulty,
    /// What it did.
    pub tally: &'a Tally,
}
