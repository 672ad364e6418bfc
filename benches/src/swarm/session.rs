//! One connection's channels as a miner has to keep them: jobs, tips and targets as they come, shares as
//! they are due, answers held against what was sent. No socket and no clock; driven by `connection.rs`,
//! `finder.rs` and `hostile.rs`.
//!
//! Must never make a share that the pool would be right to refuse, and never believe an acknowledgement
//! that covers another number of shares than it says.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use proto::message::{
    Message, NewExtendedMiningJob, NewMiningJob, OpenExtendedMiningChannel,
    OpenStandardMiningChannel, Protocol, Received, SetNewPrevHash, SetupConnection,
    SubmitSharesExtended, SubmitSharesStandard, SubmitSharesSuccess, setup_flags,
};
use proto::target::Target;
use proto::wire::{B032, Str0255};

use super::book::Book;
use super::options::Kind;
use super::work::{Body, Job, Rolled, Tip, Work};

/// Future jobs of a channel; a pool has one or two waiting.
const FUTURE_JOBS_MAX: usize = 16;
/// Tips that a connection writes down: one a second for four minutes.
const TIPS_MAX: usize = 256;
/// The rollable bytes that an extended channel asks for.
const EXTRANONCE_MIN: u16 = 8;

/// What to open on a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    /// Kind of every channel.
    pub(super) kind: Kind,
    /// How many.
    pub(super) channels: usize,
    /// Declared for each, H/s.
    pub(super) hash_rate: f32,
    /// The easiest target that is asked for.
    pub(super) max_target: Target,
}

/// When a connection heard of a tip.
#[derive(Debug, Clone, Copy)]
pub(super) struct TipSeen {
    /// Header byte order.
    pub(super) prev_hash: [u8; 32],
    /// SetNewPrevHash was read.
    pub(super) at: Instant,
    /// The first job after it was read.
    pub(super) job_at: Option<Instant>,
}

/// Shares that went out in one write: sequence numbers `first` to `last`.
#[derive(Debug, Clone, Copy)]
struct Sent {
    first: u32,
    last: u32,
    at: Instant,
}

#[derive(Debug)]
struct Channel {
    id: u32,
    group: u32,
    /// For jobs to come.
    target: Target,
    prefix: B032,
    extranonce_size: usize,
    /// With the target and prefix of when they came.
    future: VecDeque<(Rc<Job>, Target, B032)>,
    tip: Option<Tip>,
    work: Option<Work>,
    sequence: u32,
    /// Made since the last write.
    unsent: u32,
    sent: VecDeque<Sent>,
    /// Refused and not covered by an acknowledgement yet.
    refused: Vec<u32>,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    opening: Opening,
    channels: Vec<Channel>,
    by_id: HashMap<u32, usize>,
    /// Whose turn it is to send a share.
    turn: usize,
    outstanding: u32,
    /// Channels with shares that are made and not sent.
    touched: Vec<usize>,
    tips: Vec<TipSeen>,
    prev_hash: Option<[u8; 32]>,
}

impl Session {
    /// Nothing said yet.
    #[must_use]
    pub(super) fn new(opening: Opening) -> Self {
        Self {
            opening,
            channels: Vec::with_capacity(opening.channels),
            by_id: HashMap::new(),
            turn: 0,
            outstanding: 0,
            touched: Vec::new(),
            tips: Vec::new(),
            prev_hash: None,
        }
    }

    /// The first message.
    pub(super) fn start(&self, out: &mut Vec<u8>) {
        Message::from(SetupConnection {
            protocol: Protocol::Mining as u8,
            min_version: 2,
            max_version: 2,
            flags: match self.opening.kind {
                Kind::Standard => setup_flags::REQUIRES_STANDARD_JOBS,
                Kind::Extended => 0,
            },
            endpoint_host: Str0255::text("127.0.0.1"),
            endpoint_port: 0,
            vendor: Str0255::text("swarm"),
            hardware_version: Str0255::text("none"),
            firmware: Str0255::text(env!("CARGO_PKG_VERSION")),
            device_id: Str0255::default(),
        })
        .encode(out);
    }

    /// Whether every channel is open and has work.
    #[must_use]
    pub(super) fn is_ready(&self) -> bool {
        self.channels.len() == self.opening.channels
            && self.channels.iter().all(|channel| channel.work.is_some())
    }

    /// Shares sent and not answered.
    #[must_use]
    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding
    }

    /// The tips heard of since the first.
    #[must_use]
    pub(super) fn tips(&self) -> &[TipSeen] {
        &self.tips
    }

    /// The present work of the first channel, and its id.
    #[must_use]
    pub(super) fn first_work(&mut self) -> Option<(u32, &mut Work)> {
        let channel = self.channels.first_mut()?;
        Some((channel.id, channel.work.as_mut()?))
    }

    /// Takes what a frame said at `now`.
    ///
    /// # Errors
    /// Why there is no going on with this connection.
    // A pool may say more than a load generator listens to.
    #[expect(clippy::wildcard_enum_match_arm)]
    pub(super) fn hear(
        &mut self,
        received: Received<'_>,
        now: Instant,
        out: &mut Vec<u8>,
        book: &mut Book,
    ) -> Result<(), String> {
        let Received::Known(message, _) = received else { return Ok(()) };
        match message {
            Message::SubmitSharesSuccess(success) => self.acknowledged(&success, now, book),
            Message::SubmitSharesError(error) => {
                self.refused(error.channel_id, error.sequence_number);
                book.refused(&error.error_code.printable());
            }
            Message::SetNewPrevHash(tip) => self.new_tip(&tip, now),
            Message::NewExtendedMiningJob(job) => self.extended_job(&job, now),
            Message::NewMiningJob(job) => self.standard_job(&job, now),
            Message::SetTarget(set) => {
                let target = Target::from_le_bytes(set.maximum_target);
                self.each(set.channel_id, |channel| {
                    channel.target = target;
                    // Harder at once: right by those who mean the running job, too, and by those who
                    // mean only the next.
                    if let Some(work) = channel.work.as_mut() {
                        work.at_most(target);
                    }
                });
            }
            Message::SetExtranoncePrefix(set) => {
                self.each(set.channel_id, |channel| channel.prefix = set.extranonce_prefix);
            }
            Message::SetupConnectionSuccess(_) => self.open(out),
            Message::OpenStandardMiningChannelSuccess(open) => {
                self.opened(open.channel_id, open.group_channel_id, open.target);
                self.each(open.channel_id, |channel| channel.prefix = open.extranonce_prefix);
            }
            Message::OpenExtendedMiningChannelSuccess(open) => {
                self.opened(open.channel_id, open.group_channel_id, open.target);
                self.each(open.channel_id, |channel| {
                    channel.prefix = open.extranonce_prefix;
                    channel.extranonce_size = usize::from(open.extranonce_size);
                });
            }
            Message::SetupConnectionError(error) => {
                return Err(format!("setup refused: {}", error.error_code.printable()));
            }
            Message::OpenMiningChannelError(error) => {
                return Err(format!("channel refused: {}", error.error_code.printable()));
            }
            Message::CloseChannel(close) => {
                return Err(format!("channel closed: {}", close.reason_code.printable()));
            }
            Message::Reconnect(_) => return Err("told to reconnect".to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// Asks for every channel.
    pub(super) fn open(&self, out: &mut Vec<u8>) {
        let Opening { kind, channels, hash_rate, max_target } = self.opening;
        for number in 0..channels {
            let request_id = number as u32;
            let user_identity = Str0255::text("swarm.miner");
            let (nominal_hash_rate, max_target) = (hash_rate, max_target.to_le_bytes());
            match kind {
                Kind::Standard => Message::from(OpenStandardMiningChannel {
                    request_id,
                    user_identity,
                    nominal_hash_rate,
                    max_target,
                })
                .encode(out),
                Kind::Extended => Message::from(OpenExtendedMiningChannel {
                    request_id,
                    user_identity,
                    nominal_hash_rate,
                    max_target,
                    min_extranonce_size: EXTRANONCE_MIN,
                })
                .encode(out),
            }
        }
    }

    fn opened(&mut self, id: u32, group: u32, target: [u8; 32]) {
        // A pool that opens more than was asked for is not worth memory.
        if self.channels.len() >= self.opening.channels {
            return;
        }
        self.by_id.insert(id, self.channels.len());
        self.channels.push(Channel {
            id,
            group,
            target: Target::from_le_bytes(target),
            prefix: B032::default(),
            extranonce_size: 0,
            future: VecDeque::new(),
            tip: None,
            work: None,
            sequence: 0,
            unsent: 0,
            sent: VecDeque::new(),
            refused: Vec::new(),
        });
    }

    /// The channel of this id, or every channel of the group of this id.
    fn each(&mut self, id: u32, mut what: impl FnMut(&mut Channel)) {
        if let Some(index) = self.by_id.get(&id) {
            what(&mut self.channels[*index]);
            return;
        }
        self.channels.iter_mut().filter(|channel| channel.group == id).for_each(what);
    }

    fn new_tip(&mut self, said: &SetNewPrevHash, now: Instant) {
        let tip = Tip { prev_hash: said.prev_hash, nbits: said.nbits };
        if self.prev_hash != Some(tip.prev_hash) {
            // The first is the one that the connection was born on.
            if self.prev_hash.is_some() && self.tips.len() < TIPS_MAX {
                self.tips.push(TipSeen { prev_hash: tip.prev_hash, at: now, job_at: None });
            }
            self.prev_hash = Some(tip.prev_hash);
        }
        self.each(said.channel_id, |channel| {
            channel.tip = Some(tip);
            let started = channel.future.iter().position(|(job, ..)| job.id == said.job_id);
            // Jobs of before are void, also when the one that is named never came.
            channel.work = started.and_then(|index| channel.future.swap_remove_back(index)).map(
                |(job, target, prefix)| {
                    let target = target.min(channel.target);
                    Work::new(job, tip, said.min_ntime, target, prefix, channel.extranonce_size)
                },
            );
        });
    }

    fn extended_job(&mut self, said: &NewExtendedMiningJob<'_>, now: Instant) {
        let job = Job {
            id: said.job_id,
            version: said.version,
            body: Body::Coinbase {
                head: said.coinbase_tx_prefix.as_slice().into(),
                tail: said.coinbase_tx_suffix.as_slice().into(),
                path: said.merkle_path.as_slice().into(),
            },
        };
        self.job(said.channel_id, job, said.min_ntime, now);
    }

    fn standard_job(&mut self, said: &NewMiningJob, now: Instant) {
        let body = Body::Root(said.merkle_root);
        let job = Job { id: said.job_id, version: said.version, body };
        self.job(said.channel_id, job, said.min_ntime, now);
    }

    fn job(&mut self, id: u32, job: Job, min_ntime: Option<u32>, now: Instant) {
        let job = Rc::new(job);
        if let Some(tip) = self.tips.last_mut() {
            tip.job_at.get_or_insert(now);
        }
        self.each(id, |channel| {
            let (target, prefix) = (channel.target, channel.prefix);
            match (min_ntime, channel.tip) {
                (Some(ntime), Some(tip)) => {
                    let size = channel.extranonce_size;
                    channel.work =
                        Some(Work::new(Rc::clone(&job), tip, ntime, target, prefix, size));
                }
                (Some(_), None) => {}
                (None, _) => {
                    if channel.future.len() == FUTURE_JOBS_MAX {
                        channel.future.pop_front();
                    }
                    channel.future.push_back((Rc::clone(&job), target, prefix));
                }
            }
        });
    }

    /// Appends up to `want` shares as frames, taking turns between channels. Fewer come out where a
    /// share has to be searched for and `hashes` are tried without one.
    pub(super) fn make_shares(&mut self, want: u32, mut hashes: u32, out: &mut Vec<u8>) -> u32 {
        let mut made = 0;
        let mut without_work = 0;
        while made < want && without_work < self.channels.len() {
            let index = self.turn;
            self.turn = (self.turn + 1) % self.channels.len();
            let channel = &mut self.channels[index];
            let Some(work) = channel.work.as_mut() else {
                without_work += 1;
                continue;
            };
            without_work = 0;
            let Some(rolled) = work.next_share(&mut hashes) else { break };
            channel.submit(self.opening.kind, rolled, out);
            if channel.unsent == 0 {
                self.touched.push(index);
            }
            channel.unsent += 1;
            made += 1;
        }
        made
    }

    /// What was made is written at `now`.
    pub(super) fn sent(&mut self, now: Instant) {
        for index in self.touched.drain(..) {
            let channel = &mut self.channels[index];
            let first = channel.sequence - channel.unsent + 1;
            channel.sent.push_back(Sent { first, last: channel.sequence, at: now });
            self.outstanding += channel.unsent;
            channel.unsent = 0;
        }
    }

    fn acknowledged(&mut self, success: &SubmitSharesSuccess, now: Instant, book: &mut Book) {
        let last = success.last_sequence_number;
        let Some(index) = self.by_id.get(&success.channel_id) else {
            book.miscounted += 1;
            return;
        };
        let channel = &mut self.channels[*index];
        let mut covered = 0;
        while let Some(sent) = channel.sent.front_mut() {
            if sent.first > last {
                break;
            }
            let upto = sent.last.min(last);
            let refused = channel.refused.iter().filter(|at| (sent.first..=upto).contains(at));
            let count = upto - sent.first + 1 - refused.count() as u32;
            book.acknowledged(now, sent.at, u64::from(count));
            covered += count;
            if upto < sent.last {
                sent.first = upto + 1;
                break;
            }
            channel.sent.pop_front();
        }
        channel.refused.retain(|at| *at > last);
        self.outstanding -= covered;
        if covered != success.new_submits_accepted_count {
            book.miscounted += 1;
        }
    }

    fn refused(&mut self, channel: u32, sequence: u32) {
        let Some(index) = self.by_id.get(&channel) else { return };
        let channel = &mut self.channels[*index];
        let waits = |sent: &Sent| (sent.first..=sent.last).contains(&sequence);
        if channel.sent.iter().any(waits) && !channel.refused.contains(&sequence) {
            channel.refused.push(sequence);
            self.outstanding -= 1;
        }
    }
}

impl Channel {
    fn submit(&mut self, kind: Kind, rolled: Rolled, out: &mut Vec<u8>) {
        self.sequence += 1;
        let Rolled { job_id, version, ntime, nonce, extranonce } = rolled;
        match kind {
            Kind::Standard => Message::from(SubmitSharesStandard {
                channel_id: self.id,
                sequence_number: self.sequence,
                job_id,
                nonce,
                ntime,
                version,
            })
            .encode(out),
            Kind::Extended => Message::from(SubmitSharesExtended {
                channel_id: self.id,
                sequence_number: self.sequence,
                job_id,
                nonce,
                ntime,
                version,
                extranonce,
            })
            .encode(out),
        }
    }
}
