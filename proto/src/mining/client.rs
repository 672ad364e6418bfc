//! A miner's end of one mining connection: setup, extensions, one channel, its jobs and its shares. A
//! declarator's too, who selects his own work and has it promised (SetCustomMiningJob).
//! Driven by the declarator, the pool's built-in CPU miner, the benches and the tests of the server; whoever
//! drives it owns the socket, the clock and the hashing.
//!
//! It must never trust the server with order or size: a message that may not come now is a `Violation`,
//! and what it keeps is bounded. Rules C1 to C11 of the protocol notes are its half of the bargain.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::connection::Violation;
use crate::job::{HeaderFields, JobId};
use crate::limits::{CLIENT_CUSTOM_REQUESTS_MAX, CLIENT_FUTURE_JOBS_MAX, VERSION_ROLLING_MASK};
use crate::message::{
    CloseChannel, EXTENSION_WORKER_HASHRATE, Message, NewExtendedMiningJob, NewMiningJob,
    OpenExtendedMiningChannel, OpenExtendedMiningChannelSuccess, OpenMiningChannelError,
    OpenStandardMiningChannel, OpenStandardMiningChannelSuccess, Protocol, Reconnect,
    RequestExtensions, RequestExtensionsError, RequestExtensionsSuccess, SetCustomMiningJob,
    SetCustomMiningJobError, SetCustomMiningJobSuccess, SetExtranoncePrefix, SetGroupChannel,
    SetNewPrevHash, SetTarget, SetupConnection, SetupConnectionError, SetupConnectionSuccess,
    SubmitSharesError, SubmitSharesExtended, SubmitSharesStandard, SubmitSharesSuccess,
    TLV_WORKER_USER_IDENTITY, Tlvs, UpdateChannel, setup_flags, write_tlv,
};
use crate::mining::ChannelId;
use crate::target::Target;
use crate::template::{PrevHash, merkle_root};
use crate::wire::{B032, B064K, B0255, Seq064K, Seq0255U256, Str0255};

/// The one version of the protocol there is.
const PROTOCOL_VERSION: u16 = 2;

/// What kind of channel to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// Header work only: the server fixes the merkle root.
    Standard,
    /// The client rolls at least this many bytes of extranonce.
    Extended {
        /// Bytes needed; more may be granted.
        min_extranonce_size: u16,
    },
}

/// Who connects, and for what. Texts longer than 255 bytes are cut there.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientOptions {
    /// Channel to open.
    pub kind: ChannelKind,
    /// `account.worker` by convention.
    pub user_identity: String,
    /// H/s, as far as it is known.
    pub nominal_hash_rate: f32,
    /// The easiest target that is welcome.
    pub max_target: Target,
    /// Requirements (`message::setup_flags`), sent as they stand.
    pub flags: u32,
    /// Host that is dialled.
    pub endpoint_host: String,
    /// Port that is dialled.
    pub endpoint_port: u16,
    /// Maker of the device; the protocol wants one (rule C1).
    pub vendor: String,
    /// Model.
    pub hardware_version: String,
    /// Firmware and its version.
    pub firmware: String,
    /// Empty unless telemetry is wanted.
    pub device_id: String,
    /// Extensions to ask for; none, and nothing is asked.
    pub extensions: Vec<u16>,
    /// Name sent with each extended share if extension 0x0002 is agreed on; cut at 32 bytes.
    pub worker: String,
}

impl ClientOptions {
    /// The usual client of this kind for `user_identity`: any target, no extension.
    #[must_use]
    pub fn new(kind: ChannelKind, user_identity: &str) -> Self {
        Self {
            kind,
            user_identity: user_identity.to_owned(),
            nominal_hash_rate: 1e6,
            max_target: Target::MAX,
            flags: match kind {
                ChannelKind::Standard => setup_flags::REQUIRES_STANDARD_JOBS,
                ChannelKind::Extended { .. } => setup_flags::REQUIRES_VERSION_ROLLING,
            },
            endpoint_host: String::new(),
            endpoint_port: 0,
            vendor: "smallholder".to_owned(),
            hardware_version: "cpu".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            device_id: String::new(),
            extensions: Vec::new(),
            worker: String::new(),
        }
    }
}

/// What a message from the server means to the driver. Error codes are for logs and nothing else: what
/// to do follows from the event, never from the code (rule G10).
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The server does not want this connection; it closes it.
    SetupRefused {
        /// Bits of ours that it does not support; 0 means another reason.
        flags: u32,
        /// Printable.
        code: String,
    },
    /// The server demands extensions that were not asked for; there is no going on.
    ExtensionsRequired(Vec<u16>),
    /// The channel is open; work follows.
    Opened {
        /// Channel.
        channel: ChannelId,
        /// First share target.
        target: Target,
        /// Bytes to roll; 0 on a standard channel.
        extranonce_size: usize,
        /// What the server puts before them.
        extranonce_prefix: B032,
    },
    /// Jobs that come from now on have this before the rolled bytes (rule P51). Custom jobs that are promised
    /// keep theirs.
    PrefixChanged(B032),
    /// A custom job is promised: shares may name it.
    CustomAccepted {
        /// As `custom_job` gave it.
        request_id: u32,
        /// Its name on the connection.
        job_id: JobId,
    },
    /// A custom job is not.
    CustomRefused {
        /// As `custom_job` gave it.
        request_id: u32,
        /// Printable.
        code: String,
    },
    /// The server does not like what `update` said of the channel.
    UpdateRefused {
        /// Printable.
        code: String,
    },
    /// No channel: refused by the server, or not asked for because the server said it would (rule C4).
    OpenRefused {
        /// Printable.
        code: String,
    },
    /// `Client::work` is other work than before: leave the old at once (rule C5).
    NewWork {
        /// The old work is void, not only outdated.
        new_tip: bool,
    },
    /// Work that comes from now on has this target; the present work keeps its own (rule P41).
    TargetChanged(Target),
    /// Shares are credited.
    Acknowledged {
        /// Newest one that is.
        last_sequence: u32,
        /// How many.
        count: u32,
        /// Sum of their difficulties, rounded by the server.
        sum: u64,
    },
    /// A share is not credited.
    Refused {
        /// Which.
        sequence: u32,
        /// Printable.
        code: String,
    },
    /// The channel is gone; there is no work any more.
    ChannelClosed {
        /// Printable.
        reason: String,
    },
    /// The server asks to be left for another address. The driver must do the handshake anew and hold
    /// the new address to the same authority key (rules C10, C11).
    Reconnect {
        /// `None`: the same host.
        host: Option<String>,
        /// `None`: the same port.
        port: Option<u16>,
    },
}

/// A share that was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotSubmitted {
    /// No channel is open, or the work is of another one.
    #[error("the channel that the work belongs to is not open")]
    NoChannel,
    /// The rolled extranonce has not the granted size (rule C7).
    #[error("an extranonce of another size than granted")]
    ExtranonceSize,
}

/// A custom job that was not asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAsked {
    /// No channel is open, or its setup did not say that work is selected here.
    #[error("no channel that jobs are asked for on")]
    NoChannel,
    /// `CLIENT_CUSTOM_REQUESTS_MAX` have no answer.
    #[error("too many requests have no answer")]
    TooMany,
    /// Longer than a message takes.
    #[error("a job that no message holds")]
    NoMessage,
}

/// A job of one's own on the present tip, as SetCustomMiningJob says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnWork<'a> {
    /// From AllocateMiningJobToken.Success or from DeclareMiningJob.Success.
    pub token: &'a [u8],
    /// Header version before rolling.
    pub version: u32,
    /// The tip; its `min_ntime` is where hashing starts.
    pub tip: PrevHash,
    /// nVersion of the coinbase.
    pub coinbase_tx_version: u32,
    /// scriptSig before the extranonce.
    pub coinbase_prefix: &'a [u8],
    /// nSequence of the coinbase's input.
    pub coinbase_sequence: u32,
    /// CompactSize count and outputs, as declared (rule JC4).
    pub coinbase_outputs: &'a [u8],
    /// nLockTime of the coinbase.
    pub coinbase_locktime: u32,
    /// Siblings of the coinbase, deepest first.
    pub merkle_path: &'a [[u8; 32]],
}

/// A found share, for `Client::submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Nonce.
    pub nonce: u32,
    /// Full header time.
    pub ntime: u32,
    /// Full header version.
    pub version: u32,
    /// What was rolled; empty on a standard channel.
    pub extranonce: B032,
}

/// Everything that is needed to hash: frozen, so that threads may share it.
#[derive(Debug, PartialEq)]
pub struct Work {
    /// Channel.
    pub channel: ChannelId,
    /// Job.
    pub job_id: JobId,
    /// As the server sent it.
    pub version: u32,
    /// Bits that may be rolled; 0 if none.
    pub version_mask: u32,
    /// Tip, header byte order.
    pub prev_hash: [u8; 32],
    /// Compact network target.
    pub nbits: u32,
    /// Time to start from.
    pub min_ntime: u32,
    /// When the message that gave `min_ntime` came, on the driver's clock.
    pub received_ms: u64,
    /// Shares at or below it count.
    pub target: Target,
    /// Bytes to roll; 0 on a standard channel.
    pub extranonce_size: usize,
    root: Root,
}

/// What the merkle root of an extended job is made of, around the rolled bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkCoinbase<'a> {
    /// Up to the rolled bytes, the server's part of the extranonce included.
    pub head: &'a [u8],
    /// Behind them.
    pub tail: &'a [u8],
    /// Siblings of the coinbase, deepest first.
    pub path: &'a [[u8; 32]],
}

/// Where a merkle root comes from.
#[derive(Debug, Clone, PartialEq)]
enum Root {
    /// The server's: standard jobs.
    Fixed([u8; 32]),
    /// Ours to make, around an extranonce.
    Coinbase {
        /// Job prefix and extranonce prefix behind each other: what precedes the rolled bytes.
        head: Vec<u8>,
        tail: Vec<u8>,
        path: Vec<[u8; 32]>,
    },
}

impl Work {
    /// The merkle root with these rolled bytes, which must be `extranonce_size` long to be worth
    /// anything.
    #[must_use]
    pub fn merkle_root(&self, rolled: &[u8]) -> [u8; 32] {
        match &self.root {
            Root::Fixed(root) => *root,
            Root::Coinbase { head, tail, path } => {
                let txid = Sha256::new().chain_update(head).chain_update(rolled).chain_update(tail);
                merkle_root(Sha256::digest(txid.finalize()).into(), path)
            }
        }
    }

    /// The header to start from with these rolled bytes: `version_with(0)`, `min_ntime`, nonce 0.
    #[must_use]
    pub fn header(&self, rolled: &[u8]) -> HeaderFields {
        HeaderFields {
            version: self.version_with(0),
            prev_hash: self.prev_hash,
            merkle_root: self.merkle_root(rolled),
            ntime: self.min_ntime,
            nbits: self.nbits,
            nonce: 0,
        }
    }

    /// The version with `rolled` in the bits that may be rolled. What the server had in those bits does
    /// not count; where rolling is forbidden its version stands as it is (rule C6).
    #[must_use]
    pub fn version_with(&self, rolled: u32) -> u32 {
        (self.version & !self.version_mask) | (rolled & self.version_mask)
    }

    /// The latest honest time: one second per second since the work came (rule C9).
    #[must_use]
    pub fn ntime(&self, now_ms: u64) -> u32 {
        let elapsed_s = now_ms.saturating_sub(self.received_ms) / 1_000;
        self.min_ntime.saturating_add(u32::try_from(elapsed_s).unwrap_or(u32::MAX))
    }

    /// The coinbase of an extended job before and behind the rolled bytes, txid form, with its merkle path.
    #[must_use]
    pub fn coinbase(&self) -> Option<WorkCoinbase<'_>> {
        match &self.root {
            Root::Fixed(_) => None,
            Root::Coinbase { head, tail, path } => Some(WorkCoinbase { head, tail, path }),
        }
    }

    /// A hash at or below this is a block.
    #[must_use]
    pub fn network_target(&self) -> Target {
        Target::from_compact(self.nbits)
    }
}

/// A job that has no tip yet.
#[derive(Debug)]
struct FutureJob {
    id: JobId,
    version: u32,
    version_mask: u32,
    root: Root,
}

#[derive(Debug)]
struct Channel {
    id: u32,
    /// Jobs, tips and targets may come for the group instead.
    group: Option<u32>,
    /// For work to come.
    target: Target,
    /// For jobs to come.
    extranonce_prefix: B032,
    extranonce_size: usize,
    tip: Option<PrevHash>,
    /// Oldest first, at most `CLIENT_FUTURE_JOBS_MAX`.
    future: Vec<FutureJob>,
    work: Option<Arc<Work>>,
    last_sequence: u32,
    /// Requests for custom jobs without an answer, at most `CLIENT_CUSTOM_REQUESTS_MAX`.
    asked: Vec<u32>,
    last_request: u32,
}

#[derive(Debug)]
enum State {
    /// Nothing said yet.
    Fresh,
    AwaitSetup,
    AwaitExtensions,
    AwaitOpen,
    Open(Channel),
    /// Refused or closed: only `Reconnect` can still mean anything.
    Closed,
}

/// One connection of a miner.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    state: State,
    /// The server refuses rolled versions on the whole connection.
    fixed_version: bool,
    /// Extension 0x0002 was confirmed (rule E6: not before).
    worker_names: bool,
}

/// Request id of the one extension request and of the one channel of a connection.
const REQUEST_ID: u32 = 1;

const EXTENDED_SUCCESS: &str = "OpenExtendedMiningChannel.Success";
const LONG_EXTRANONCE: &str = "an extranonce of more than 32 bytes";

impl Client {
    /// A connection that has not said anything yet.
    #[must_use]
    pub fn new(options: ClientOptions) -> Self {
        Self { options, state: State::Fresh, fixed_version: false, worker_names: false }
    }

    /// Says the first message (rule C1). Everything else follows from `handle`.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        let options = &self.options;
        let setup = SetupConnection {
            protocol: Protocol::Mining as u8,
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            flags: options.flags,
            endpoint_host: Str0255::text(&options.endpoint_host),
            endpoint_port: options.endpoint_port,
            vendor: Str0255::text(&options.vendor),
            hardware_version: Str0255::text(&options.hardware_version),
            firmware: Str0255::text(&options.firmware),
            device_id: Str0255::text(&options.device_id),
        };
        Message::from(setup).encode(out);
        self.state = State::AwaitSetup;
    }

    /// The work to do now; shared, so that a thread can take it along.
    #[must_use]
    pub fn work(&self) -> Option<Arc<Work>> {
        match &self.state {
            State::Open(channel) => channel.work.clone(),
            State::Fresh
            | State::AwaitSetup
            | State::AwaitExtensions
            | State::AwaitOpen
            | State::Closed => None,
        }
    }

    /// Sends a share, appending the frame to `out`. Sequence numbers count up from 1 (rule C8).
    pub fn submit(
        &mut self,
        work: &Work,
        found: Found,
        out: &mut Vec<u8>,
    ) -> Result<u32, NotSubmitted> {
        match &self.state {
            State::Open(channel) if channel.id == work.channel.0 => {}
            State::Open(_)
            | State::Fresh
            | State::AwaitSetup
            | State::AwaitExtensions
            | State::AwaitOpen
            | State::Closed => return Err(NotSubmitted::NoChannel),
        }
        let worker = std::mem::take(&mut self.options.worker);
        let submitted = self.submit_for(&worker, work.job_id, found, out);
        self.options.worker = worker;
        submitted
    }

    /// Sends a share of any job of the channel, found by `worker`: a proxy's, behind whose channel are many.
    /// The name goes along where extension 0x0002 was agreed on (rule E7).
    pub fn submit_for(
        &mut self,
        worker: &str,
        job: JobId,
        found: Found,
        out: &mut Vec<u8>,
    ) -> Result<u32, NotSubmitted> {
        let names_worker = self.worker_names;
        let State::Open(channel) = &mut self.state else { return Err(NotSubmitted::NoChannel) };
        if found.extranonce.len() != channel.extranonce_size {
            return Err(NotSubmitted::ExtranonceSize);
        }
        let (channel_id, job_id) = (channel.id, job.0);
        let Found { nonce, ntime, version, extranonce } = found;
        // Four billion shares are 680 years at 12 a minute; the last number then stays.
        channel.last_sequence = channel.last_sequence.saturating_add(1);
        let sequence_number = channel.last_sequence;
        match self.options.kind {
            ChannelKind::Standard => Message::from(SubmitSharesStandard {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
            })
            .encode(out),
            ChannelKind::Extended { .. } => Message::from(SubmitSharesExtended {
                channel_id,
                sequence_number,
                job_id,
                nonce,
                ntime,
                version,
                extranonce,
            })
            .encode_with(out, |out| {
                if names_worker {
                    write_worker(worker, out);
                }
            }),
        }
        Ok(sequence_number)
    }

    /// Asks the server to promise a job of one's own; the request's number. The answer is an event.
    pub fn custom_job(&mut self, own: &OwnWork<'_>, out: &mut Vec<u8>) -> Result<u32, NotAsked> {
        if !self.selects_work() {
            return Err(NotAsked::NoChannel);
        }
        let State::Open(channel) = &mut self.state else { return Err(NotAsked::NoChannel) };
        if channel.asked.len() >= CLIENT_CUSTOM_REQUESTS_MAX {
            return Err(NotAsked::TooMany);
        }
        let no_message = |_| NotAsked::NoMessage;
        let request_id = channel.last_request.wrapping_add(1);
        let custom = SetCustomMiningJob {
            channel_id: channel.id,
            request_id,
            mining_job_token: B0255::new(own.token).map_err(no_message)?,
            version: own.version,
            prev_hash: own.tip.hash,
            min_ntime: own.tip.min_ntime,
            nbits: own.tip.nbits,
            coinbase_tx_version: own.coinbase_tx_version,
            coinbase_prefix: B0255::new(own.coinbase_prefix).map_err(no_message)?,
            coinbase_tx_input_sequence: own.coinbase_sequence,
            coinbase_tx_outputs: B064K::new(own.coinbase_outputs).map_err(no_message)?,
            coinbase_tx_locktime: own.coinbase_locktime,
            merkle_path: Seq0255U256::new(own.merkle_path).map_err(no_message)?,
        };
        Message::from(custom).encode(out);
        channel.last_request = request_id;
        channel.asked.push(request_id);
        Ok(request_id)
    }

    /// Says how fast the channel's miners are now, H/s. No answer means yes (rule P14).
    pub fn update(&mut self, nominal_hash_rate: f32, out: &mut Vec<u8>) {
        let maximum_target = self.options.max_target.to_le_bytes();
        let State::Open(channel) = &self.state else { return };
        let channel_id = channel.id;
        Message::from(UpdateChannel { channel_id, nominal_hash_rate, maximum_target }).encode(out);
    }

    /// Whether jobs are this end's to make.
    fn selects_work(&self) -> bool {
        self.options.flags & setup_flags::REQUIRES_WORK_SELECTION != 0
    }

    /// Whether shares say who found them (extension 0x0002).
    #[must_use]
    pub fn names_workers(&self) -> bool {
        self.worker_names
    }

    /// A message came at `now_ms`; answers are appended to `out`. After a `Violation` the connection is
    /// to be closed.
    pub fn handle(
        &mut self,
        now_ms: u64,
        message: Message<'_>,
        _tlvs: Tlvs<'_>,
        out: &mut Vec<u8>,
    ) -> Handled {
        match message {
            Message::SetupConnectionSuccess(success) => self.set_up(success, out),
            Message::SetupConnectionError(error) => self.setup_refused(error),
            Message::RequestExtensionsSuccess(success) => self.extensions_agreed(success, out),
            Message::RequestExtensionsError(error) => self.extensions_refused(error, out),
            Message::OpenStandardMiningChannelSuccess(success) => self.opened_standard(success),
            Message::OpenExtendedMiningChannelSuccess(success) => self.opened_extended(success),
            Message::OpenMiningChannelError(error) => self.open_refused(error),
            // Some servers send their own work to those who select theirs, too.
            Message::NewExtendedMiningJob(_) | Message::SetNewPrevHash(_)
                if self.selects_work() =>
            {
                self.channel().map(|_| None)
            }
            Message::NewMiningJob(job) => self.standard_job(now_ms, job),
            Message::NewExtendedMiningJob(job) => self.extended_job(now_ms, job),
            Message::SetNewPrevHash(tip) => self.channel()?.new_prev_hash(now_ms, tip),
            Message::SetTarget(set) => {
                let max_target = self.options.max_target;
                self.channel()?.set_target(set, max_target)
            }
            Message::SetExtranoncePrefix(set) => self.channel()?.set_extranonce_prefix(set),
            Message::SetGroupChannel(group) => self.set_group(group),
            Message::SubmitSharesSuccess(success) => self.channel()?.acknowledged(success),
            Message::SubmitSharesError(error) => self.channel()?.refused(error),
            Message::CloseChannel(close) => self.closed(close),
            Message::ChannelEndpointChanged(changed) => {
                // Nothing to reset: the only extension spoken keeps no state.
                self.channel()?.expect_mine(changed.channel_id)?;
                Ok(None)
            }
            Message::Reconnect(reconnect) => self.reconnect(reconnect),
            Message::UpdateChannelError(error) => {
                self.channel()?.expect_mine(error.channel_id)?;
                Ok(Some(Event::UpdateRefused { code: error.error_code.printable() }))
            }
            Message::SetCustomMiningJobSuccess(success) => self.channel()?.custom_accepted(success),
            Message::SetCustomMiningJobError(error) => self.channel()?.custom_refused(error),
            // A client's own messages, and other protocols' altogether.
            Message::SetupConnection(_)
            | Message::OpenStandardMiningChannel(_)
            | Message::OpenExtendedMiningChannel(_)
            | Message::UpdateChannel(_)
            | Message::SubmitSharesStandard(_)
            | Message::SubmitSharesExtended(_)
            | Message::SetCustomMiningJob(_)
            | Message::RequestExtensions(_)
            | Message::AllocateMiningJobToken(_)
            | Message::AllocateMiningJobTokenSuccess(_)
            | Message::ProvideMissingTransactions(_)
            | Message::ProvideMissingTransactionsSuccess(_)
            | Message::DeclareMiningJob(_)
            | Message::DeclareMiningJobSuccess(_)
            | Message::DeclareMiningJobError(_)
            | Message::PushSolution(_)
            | Message::CoinbaseOutputConstraints(_)
            | Message::NewTemplate(_)
            | Message::TemplateSetNewPrevHash(_)
            | Message::RequestTransactionData(_)
            | Message::RequestTransactionDataSuccess(_)
            | Message::RequestTransactionDataError(_)
            | Message::SubmitSolution(_) => Err(Violation::Unexpected(message.name())),
        }
    }

    fn set_up(&mut self, success: SetupConnectionSuccess, out: &mut Vec<u8>) -> Handled {
        in_order(matches!(self.state, State::AwaitSetup), "SetupConnection.Success")?;
        in_order(success.used_version == PROTOCOL_VERSION, "a version that was not offered")?;
        self.fixed_version = success.flags & setup_flags::SUCCESS_REQUIRES_FIXED_VERSION != 0;
        let rolls = self.options.flags & setup_flags::REQUIRES_VERSION_ROLLING != 0;
        // Rule S9: a server may not demand what the client excluded.
        in_order(!(self.fixed_version && rolls), "REQUIRES_FIXED_VERSION")?;
        let extended_only = success.flags & setup_flags::SUCCESS_REQUIRES_EXTENDED_CHANNELS != 0;
        if extended_only && self.options.kind == ChannelKind::Standard {
            self.state = State::Closed;
            let code = "requires-extended-channels".to_owned();
            return Ok(Some(Event::OpenRefused { code }));
        }
        if self.options.extensions.is_empty() {
            self.open(out);
            return Ok(None);
        }
        // Rule E1: nothing else may be said before the answer.
        let mut ids: Vec<[u8; 2]> =
            self.options.extensions.iter().map(|id| id.to_le_bytes()).collect();
        ids.truncate(crate::limits::EXTENSIONS_MAX);
        let requested_extensions =
            Seq064K::new(&ids).expect("EXTENSIONS_MAX is far below what the sequence holds");
        let request_id = REQUEST_ID as u16;
        Message::from(RequestExtensions { request_id, requested_extensions }).encode(out);
        self.state = State::AwaitExtensions;
        Ok(None)
    }

    fn setup_refused(&mut self, error: SetupConnectionError<'_>) -> Handled {
        in_order(matches!(self.state, State::AwaitSetup), "SetupConnection.Error")?;
        self.state = State::Closed;
        let code = error.error_code.printable();
        Ok(Some(Event::SetupRefused { flags: error.flags, code }))
    }

    fn extensions_agreed(
        &mut self,
        success: RequestExtensionsSuccess<'_>,
        out: &mut Vec<u8>,
    ) -> Handled {
        let awaited = matches!(self.state, State::AwaitExtensions)
            && u32::from(success.request_id) == REQUEST_ID;
        in_order(awaited, "RequestExtensions.Success")?;
        let asked = self.options.extensions.contains(&EXTENSION_WORKER_HASHRATE);
        let mut agreed = success.supported_extensions.iter();
        self.worker_names = asked && agreed.any(|id| id == EXTENSION_WORKER_HASHRATE);
        self.open(out);
        Ok(None)
    }

    fn extensions_refused(
        &mut self,
        error: RequestExtensionsError<'_>,
        out: &mut Vec<u8>,
    ) -> Handled {
        let awaited = matches!(self.state, State::AwaitExtensions)
            && u32::from(error.request_id) == REQUEST_ID;
        in_order(awaited, "RequestExtensions.Error")?;
        let required: Vec<u16> =
            error.required_extensions.iter().take(crate::limits::EXTENSIONS_MAX).collect();
        if required.is_empty() {
            self.open(out);
            return Ok(None);
        }
        self.state = State::Closed;
        Ok(Some(Event::ExtensionsRequired(required)))
    }

    /// Asks for the one channel (rule C3).
    fn open(&mut self, out: &mut Vec<u8>) {
        let options = &self.options;
        let user_identity = Str0255::text(&options.user_identity);
        let nominal_hash_rate = options.nominal_hash_rate;
        let max_target = options.max_target.to_le_bytes();
        match options.kind {
            ChannelKind::Standard => Message::from(OpenStandardMiningChannel {
                request_id: REQUEST_ID,
                user_identity,
                nominal_hash_rate,
                max_target,
            }),
            ChannelKind::Extended { min_extranonce_size } => {
                Message::from(OpenExtendedMiningChannel {
                    request_id: REQUEST_ID,
                    user_identity,
                    nominal_hash_rate,
                    max_target,
                    min_extranonce_size,
                })
            }
        }
        .encode(out);
        self.state = State::AwaitOpen;
    }

    fn opened_standard(&mut self, success: OpenStandardMiningChannelSuccess) -> Handled {
        let asked = self.options.kind == ChannelKind::Standard;
        in_order(asked && success.request_id == REQUEST_ID, "OpenStandardMiningChannel.Success")?;
        let ids = (success.channel_id, success.group_channel_id);
        self.opened(ids, success.target, success.extranonce_prefix, 0)
    }

    fn opened_extended(&mut self, success: OpenExtendedMiningChannelSuccess) -> Handled {
        let ChannelKind::Extended { min_extranonce_size } = self.options.kind else {
            return Err(Violation::Unexpected(EXTENDED_SUCCESS));
        };
        in_order(success.request_id == REQUEST_ID, EXTENDED_SUCCESS)?;
        in_order(
            success.extranonce_size >= min_extranonce_size,
            "a smaller extranonce than needed",
        )?;
        let ids = (success.channel_id, success.group_channel_id);
        let size = usize::from(success.extranonce_size);
        self.opened(ids, success.target, success.extranonce_prefix, size)
    }

    fn opened(
        &mut self,
        (id, group): (u32, u32),
        target: [u8; 32],
        extranonce_prefix: B032,
        extranonce_size: usize,
    ) -> Handled {
        in_order(matches!(self.state, State::AwaitOpen), "a second channel")?;
        // Rules P7, P5, P4: what no server may answer.
        in_order(id != group, "a channel with its group's id")?;
        in_order(extranonce_prefix.len() + extranonce_size <= 32, LONG_EXTRANONCE)?;
        let target = acceptable(target, self.options.max_target)?;
        self.state = State::Open(Channel {
            id,
            group: Some(group),
            target,
            extranonce_prefix,
            extranonce_size,
            tip: None,
            future: Vec::new(),
            work: None,
            last_sequence: 0,
            asked: Vec::new(),
            last_request: REQUEST_ID,
        });
        let channel = ChannelId(id);
        Ok(Some(Event::Opened { channel, target, extranonce_size, extranonce_prefix }))
    }

    fn open_refused(&mut self, error: OpenMiningChannelError<'_>) -> Handled {
        let awaited = matches!(self.state, State::AwaitOpen) && error.request_id == REQUEST_ID;
        in_order(awaited, "OpenMiningChannel.Error")?;
        self.state = State::Closed;
        Ok(Some(Event::OpenRefused { code: error.error_code.printable() }))
    }

    fn standard_job(&mut self, now_ms: u64, job: NewMiningJob) -> Handled {
        // Rule P22: never for an extended channel, never for a group.
        let standard = self.options.kind == ChannelKind::Standard;
        let version_mask = self.version_mask(true);
        let channel = self.channel()?;
        in_order(standard && job.channel_id == channel.id, "NewMiningJob")?;
        let root = Root::Fixed(job.merkle_root);
        let id = JobId(job.job_id);
        let future = FutureJob { id, version: job.version, version_mask, root };
        channel.new_job(now_ms, job.min_ntime, future)
    }

    /// Also for a standard channel, if it comes for its group: then the merkle root is ours to make, of
    /// the whole extranonce that the server gave.
    fn extended_job(&mut self, now_ms: u64, job: NewExtendedMiningJob<'_>) -> Handled {
        let requires = |flag| self.options.flags & flag != 0;
        // Rules P11 and P29: what the flags of the setup excluded.
        in_order(!requires(setup_flags::REQUIRES_STANDARD_JOBS), "NewExtendedMiningJob")?;
        let rolling = job.version_rolling_allowed;
        let fixed = !rolling && requires(setup_flags::REQUIRES_VERSION_ROLLING);
        in_order(!fixed, "a job of a fixed version")?;
        let version_mask = self.version_mask(rolling);
        let standard = self.options.kind == ChannelKind::Standard;
        let channel = self.channel()?;
        channel.expect_mine(job.channel_id)?;
        in_order(!(standard && job.channel_id == channel.id), "NewExtendedMiningJob")?;
        let prefix = channel.extranonce_prefix;
        let root = Root::Coinbase {
            head: [job.coinbase_tx_prefix.as_slice(), prefix.as_slice()].concat(),
            tail: job.coinbase_tx_suffix.as_slice().to_vec(),
            path: job.merkle_path.as_slice().to_vec(),
        };
        let id = JobId(job.job_id);
        let future = FutureJob { id, version: job.version, version_mask, root };
        channel.new_job(now_ms, job.min_ntime, future)
    }

    fn version_mask(&self, rolling_allowed: bool) -> u32 {
        if rolling_allowed && !self.fixed_version { VERSION_ROLLING_MASK } else { 0 }
    }

    fn set_group(&mut self, group: SetGroupChannel<'_>) -> Handled {
        // Rule P11.
        let standard_only = self.options.flags & setup_flags::REQUIRES_STANDARD_JOBS != 0;
        in_order(!standard_only, "SetGroupChannel")?;
        let channel = self.channel()?;
        // Rule P12: a channel's id is no group's.
        in_order(group.group_channel_id != channel.id, "a group with a channel's id")?;
        if group.channel_ids.iter().any(|id| id == channel.id) {
            channel.group = Some(group.group_channel_id);
        } else if channel.group == Some(group.group_channel_id) {
            channel.group = None;
        }
        Ok(None)
    }

    fn closed(&mut self, close: CloseChannel<'_>) -> Handled {
        self.channel()?.expect_mine(close.channel_id)?;
        self.state = State::Closed;
        Ok(Some(Event::ChannelClosed { reason: close.reason_code.printable() }))
    }

    fn reconnect(&self, reconnect: Reconnect<'_>) -> Handled {
        let set_up = !matches!(self.state, State::Fresh | State::AwaitSetup);
        in_order(set_up, "Reconnect")?;
        let host = reconnect.new_host.as_slice();
        // A host is dialled: only what can be one, nothing that needs escaping.
        in_order(host.iter().all(u8::is_ascii_graphic), "a host with unprintable bytes")?;
        let host = (!host.is_empty()).then(|| reconnect.new_host.printable());
        let port = (reconnect.new_port != 0).then_some(reconnect.new_port);
        Ok(Some(Event::Reconnect { host, port }))
    }

    fn channel(&mut self) -> Result<&mut Channel, Violation> {
        match &mut self.state {
            State::Open(channel) => Ok(channel),
            State::Fresh
            | State::AwaitSetup
            | State::AwaitExtensions
            | State::AwaitOpen
            | State::Closed => Err(Violation::Unexpected("a channel message without a channel")),
        }
    }
}

impl Channel {
    /// By its own id or its group's; anything else is not ours to hear.
    fn expect_mine(&self, id: u32) -> Result<(), Violation> {
        in_order(id == self.id || self.group == Some(id), "a message for a channel of nobody")
    }

    fn new_job(&mut self, now_ms: u64, min_ntime: Option<u32>, job: FutureJob) -> Handled {
        // Rule P23: an id in use names one job.
        let taken = self.work.as_ref().is_some_and(|work| work.job_id == job.id)
            || self.future.iter().any(|future| future.id == job.id);
        in_order(!taken, "a job with the id of another")?;
        let Some(min_ntime) = min_ntime else {
            if self.future.len() == CLIENT_FUTURE_JOBS_MAX {
                self.future.remove(0);
            }
            self.future.push(job);
            return Ok(None);
        };
        // Rules P20, P21: before the first tip only a future job can come.
        let tip = self.tip.ok_or(Violation::Unexpected("a job to start on before any tip"))?;
        self.start_on(now_ms, PrevHash { min_ntime, ..tip }, job);
        Ok(Some(Event::NewWork { new_tip: false }))
    }

    fn new_prev_hash(&mut self, now_ms: u64, set: SetNewPrevHash) -> Handled {
        self.expect_mine(set.channel_id)?;
        // Rule P24. Only the named job survives (rule P26).
        let named = self.future.iter().position(|job| job.id.0 == set.job_id);
        let named = named.ok_or(Violation::Unexpected("SetNewPrevHash for a job not sent"))?;
        let job = self.future.swap_remove(named);
        self.future.clear();
        let tip = PrevHash { hash: set.prev_hash, nbits: set.nbits, min_ntime: set.min_ntime };
        self.tip = Some(tip);
        self.start_on(now_ms, tip, job);
        Ok(Some(Event::NewWork { new_tip: true }))
    }

    /// The target in force now is the work's for good (rule P41).
    fn start_on(&mut self, now_ms: u64, tip: PrevHash, job: FutureJob) {
        self.work = Some(Arc::new(Work {
            channel: ChannelId(self.id),
            job_id: job.id,
            version: job.version,
            version_mask: job.version_mask,
            prev_hash: tip.hash,
            nbits: tip.nbits,
            min_ntime: tip.min_ntime,
            received_ms: now_ms,
            target: self.target,
            extranonce_size: self.extranonce_size,
            root: job.root,
        }));
    }

    fn set_target(&mut self, set: SetTarget, max_target: Target) -> Handled {
        self.expect_mine(set.channel_id)?;
        self.target = acceptable(set.maximum_target, max_target)?;
        Ok(Some(Event::TargetChanged(self.target)))
    }

    /// For jobs to come (rule P51), so the jobs that are here keep theirs.
    fn set_extranonce_prefix(&mut self, set: SetExtranoncePrefix) -> Handled {
        in_order(set.channel_id == self.id, "SetExtranoncePrefix for another channel")?;
        in_order(set.extranonce_prefix.len() + self.extranonce_size <= 32, LONG_EXTRANONCE)?;
        self.extranonce_prefix = set.extranonce_prefix;
        Ok(Some(Event::PrefixChanged(set.extranonce_prefix)))
    }

    fn custom_accepted(&mut self, success: SetCustomMiningJobSuccess) -> Handled {
        let SetCustomMiningJobSuccess { channel_id, request_id, job_id } = success;
        self.custom_answered(channel_id, request_id)?;
        Ok(Some(Event::CustomAccepted { request_id, job_id: JobId(job_id) }))
    }

    fn custom_refused(&mut self, error: SetCustomMiningJobError<'_>) -> Handled {
        let request_id = error.request_id;
        self.custom_answered(error.channel_id, request_id)?;
        Ok(Some(Event::CustomRefused { request_id, code: error.error_code.printable() }))
    }

    fn custom_answered(&mut self, channel: u32, request_id: u32) -> Result<(), Violation> {
        let at = self.asked.iter().position(|asked| *asked == request_id);
        let at = at.filter(|_| channel == self.id);
        let at = at.ok_or(Violation::Unexpected("an answer to no custom job"))?;
        self.asked.remove(at);
        Ok(())
    }

    fn acknowledged(&self, success: SubmitSharesSuccess) -> Handled {
        let sent = self.was_sent(success.last_sequence_number);
        in_order(success.channel_id == self.id && sent, "SubmitShares.Success for no share")?;
        Ok(Some(Event::Acknowledged {
            last_sequence: success.last_sequence_number,
            count: success.new_submits_accepted_count,
            sum: success.new_shares_sum,
        }))
    }

    fn refused(&self, error: SubmitSharesError<'_>) -> Handled {
        let sent = self.was_sent(error.sequence_number);
        in_order(error.channel_id == self.id && sent, "SubmitShares.Error for no share")?;
        let code = error.error_code.printable();
        Ok(Some(Event::Refused { sequence: error.sequence_number, code }))
    }

    fn was_sent(&self, sequence: u32) -> bool {
        (1..=self.last_sequence).contains(&sequence)
    }
}

type Handled = Result<Option<Event>, Violation>;

/// Rule E7: with 0x0002 agreed on every extended share names its worker, without it none does.
fn write_worker(name: &str, out: &mut Vec<u8>) {
    let name = &name.as_bytes()[..name.floor_char_boundary(crate::limits::WORKER_TLV_MAX)];
    write_tlv(EXTENSION_WORKER_HASHRATE, TLV_WORKER_USER_IDENTITY, name, out);
}

/// A target that no hash meets, or one easier than the client asked for, is no target (rules P4, P16).
fn acceptable(target: [u8; 32], max_target: Target) -> Result<Target, Violation> {
    let target = Target::from_le_bytes(target);
    in_order(!target.is_zero() && target <= max_target, "a target that was not asked for")?;
    Ok(target)
}

/// `what` completes "... has no place here".
fn in_order(ok: bool, what: &'static str) -> Result<(), Violation> {
    if ok { Ok(()) } else { Err(Violation::Unexpected(what)) }
}

#[cfg(test)]
#[path = "client/tests.rs"]
mod tests;
