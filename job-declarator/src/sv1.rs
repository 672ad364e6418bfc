//! One Stratum V1 device in front of a mining server: lines of JSON on its side, the messages of one
//! extended channel on the other. Driven by the device's task, which owns the socket and the
//! `proto::mining::server::Server`: bytes of the socket go into `feed`, what the server says into `hear`,
//! and of each `Out` the lines go to the socket and the requests to the server. Lines are cut and answered in
//! `lines.rs`, the first words of a device in `hello.rs`, its jobs in `jobs.rs`, its shares in `shares.rs`.
//!
//! Must never touch a socket or a clock, and must never tell a device that a share is good before the
//! server did.
//!
//! **Whose channel it is.** A channel needs its owner's name when it is opened, and a V1 device says the name
//! with mining.authorize: before mining.subscribe, right behind it, or only when that was answered, which
//! takes a channel. So the opening waits for the name (and for a wished difficulty, which comes with it)
//! `SV1_OPEN_WAIT_MS` at most, and is then done as `sv1`. What the device is called is always `worker()`:
//! whoever drives this shows that on his page, and credits by it.

mod hello;
mod jobs;
mod lines;
mod shares;

use proto::message::{
    Message, OpenExtendedMiningChannel, OpenExtendedMiningChannelSuccess, SetExtranoncePrefix,
    SubmitSharesExtended, UpdateChannel,
};
use proto::mining::Now;
use proto::target::{Difficulty, Target};
use proto::wire::{B032, Str0255};
use serde_json::{Value, json};
use thiserror::Error;

use self::hello::Wishes;
use self::jobs::Jobs;
use self::lines::{Cutter, Line, Pace, Refused, answer, say};
use self::shares::Shares;
use crate::limits::{
    SV1_BAD_LINES_MAX, SV1_EXTRANONCE2_LEN_MIN, SV1_LINE_MAX, SV1_OPEN_WAIT_MS,
    SV1_SUBSCRIBES_WAITING_MAX,
};

/// Expected hashes of a share of difficulty 1.
const HASHES_AT_ONE: f64 = 4_294_967_296.0;

/// What its driver knows of the server behind the session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// The server's own (`Policy`): a difficulty that a device wishes for is told as the hash rate that
    /// would get it.
    pub shares_per_minute: f64,
    /// What a device that wishes nothing is taken to do, H/s.
    pub nominal_hash_rate: f32,
}

impl Default for Terms {
    /// 1e12 is what SV2 firmware says of itself, whatever it does.
    fn default() -> Self {
        Self { shares_per_minute: 12.0, nominal_hash_rate: 1e12 }
    }
}

/// What to send and what to ask of the server, each in order.
#[derive(Debug, Default)]
pub struct Out {
    /// Whole lines for the device.
    pub lines: Vec<u8>,
    /// For `Server::handle`.
    pub requests: Vec<Request>,
}

/// What the session asks of its server.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// The one channel.
    Open {
        /// The worker's name if it is known, or `sv1`.
        user_identity: String,
        /// H/s.
        nominal_hash_rate: f32,
        /// The easiest target that the device takes.
        max_target: [u8; 32],
    },
    /// A share to be judged.
    Share(SubmitSharesExtended),
    /// Another difficulty is wished for.
    Update(UpdateChannel),
}

impl Request {
    /// As the server takes it; without TLVs.
    #[must_use]
    pub fn message(&self) -> Message<'_> {
        match self {
            Self::Open { user_identity, nominal_hash_rate, max_target } => {
                OpenExtendedMiningChannel {
                    request_id: 1,
                    user_identity: Str0255::text(user_identity),
                    nominal_hash_rate: *nominal_hash_rate,
                    max_target: *max_target,
                    min_extranonce_size: SV1_EXTRANONCE2_LEN_MIN,
                }
                .into()
            }
            Self::Share(share) => (*share).into(),
            Self::Update(update) => (*update).into(),
        }
    }
}

/// Why a session is over. What stands in `Out` is still sent; then the socket is closed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum End {
    /// A line without an end.
    #[error("a line of more than {SV1_LINE_MAX} bytes")]
    LineTooLong,
    /// Somebody speaks something else.
    #[error("{0} lines in a row that are no JSON-RPC")]
    NotJson(u32),
    /// Beyond `SV1_REQUESTS_BURST` and its pace.
    #[error("more requests than a device has reason for")]
    Flood,
    /// Shares that were refused here, before they came to the server.
    #[error("{0} malformed shares in a row")]
    OnlyBadShares(u32),
    /// The server opens no channel, with its code.
    #[error("the server opened no channel: {0}")]
    OpenRefused(String),
    /// The server closed the channel, with its code.
    #[error("the server closed the channel: {0}")]
    ChannelClosed(String),
    /// The server gave another extranonce prefix and the device did not say that it can follow: it is to
    /// come again.
    #[error("the extranonce changed, which this device cannot follow")]
    ExtranonceChanged,
}

/// The channel behind a session.
#[derive(Debug, Clone, Copy)]
enum Channel {
    /// Nobody subscribed.
    None,
    /// To be opened then, or before.
    Due {
        open_ms: u64,
    },
    /// The server is asked.
    Asked,
    Open(Opened),
}

#[derive(Debug, Clone, Copy)]
struct Opened {
    id: u32,
    /// What V1 calls extranonce1.
    prefix: B032,
    /// Bytes of what V1 calls extranonce2.
    size: usize,
}

/// One device.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    cutter: Cutter,
    pace: Pace,
    /// In a row.
    bad_lines: u32,
    user_agent: Option<String>,
    /// Authorised, if it has a name.
    worker: Option<String>,
    channel: Channel,
    /// Ids of mining.subscribe that wait for the channel.
    waiting: Vec<Box<str>>,
    wishes: Wishes,
    /// Version bits that the device may roll.
    version_mask: u32,
    /// It understands mining.set_extranonce.
    follows_extranonce: bool,
    jobs: Jobs,
    shares: Shares,
}

impl Session {
    /// A device that said nothing yet.
    #[must_use]
    pub fn new(terms: Terms, now: Now) -> Self {
        Self {
            terms,
            cutter: Cutter::default(),
            pace: Pace::new(now),
            bad_lines: 0,
            user_agent: None,
            worker: None,
            channel: Channel::None,
            waiting: Vec::new(),
            wishes: Wishes::default(),
            version_mask: 0,
            follows_extranonce: false,
            jobs: Jobs::default(),
            shares: Shares::default(),
        }
    }

    /// Takes what the device sent, in pieces of any size.
    ///
    /// # Errors
    /// The session is over.
    pub fn feed(&mut self, now: Now, mut bytes: &[u8], out: &mut Out) -> Result<(), End> {
        let mut cutter = std::mem::take(&mut self.cutter);
        while let Some(line) = cutter.next_line(&mut bytes)? {
            self.on_line(now, line, out)?;
        }
        self.cutter = cutter;
        self.time(now, out);
        Ok(())
    }

    /// Takes what the server said.
    ///
    /// # Errors
    /// The session is over.
    // Of the messages that a server may say these concern a V1 device; any other, also one that is added
    // some day, does not.
    #[expect(clippy::wildcard_enum_match_arm)]
    pub fn hear(&mut self, now: Now, message: &Message<'_>, out: &mut Out) -> Result<(), End> {
        match message {
            Message::OpenExtendedMiningChannelSuccess(opened) => self.on_opened(now, opened, out),
            Message::OpenMiningChannelError(error) => {
                let code = error.error_code.printable();
                for id in self.waiting.drain(..) {
                    Refused::other(&code).write(&id, out);
                }
                return Err(End::OpenRefused(code));
            }
            Message::CloseChannel(close) => {
                return Err(End::ChannelClosed(close.reason_code.printable()));
            }
            Message::SetExtranoncePrefix(set) => self.on_extranonce_prefix(set, out)?,
            Message::NewExtendedMiningJob(job) => self.jobs.on_job(job, out),
            Message::SetNewPrevHash(tip) => self.jobs.on_tip(tip, out),
            Message::SetTarget(set) => {
                self.jobs.set_target(Target::from_le_bytes(set.maximum_target), out);
            }
            Message::SubmitSharesSuccess(success) => self.shares.on_success(success, out),
            Message::SubmitSharesError(error) => self.shares.on_error(error, out),
            _ => {}
        }
        Ok(())
    }

    /// Does what is due.
    pub fn time(&mut self, now: Now, out: &mut Out) {
        if self.deadline_ms().is_none_or(|deadline| now.mono_ms < deadline) {
            return;
        }
        match self.channel {
            Channel::Due { .. } => self.open(out),
            Channel::Open(opened) => self.update(now, opened, out),
            Channel::None | Channel::Asked => {}
        }
    }

    /// When `time` is due, mono ms.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.channel {
            // All that the opening waits for is there.
            Channel::Due { .. } if self.worker.is_some() && self.wishes.difficulty.is_some() => {
                Some(0)
            }
            Channel::Due { open_ms } => Some(open_ms),
            Channel::Open(_) => self.wishes.due_ms,
            Channel::None | Channel::Asked => None,
        }
    }

    /// Whether the socket may be read. At the bound it is left alone until the server answers shares: what
    /// comes behind them may be a block.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.shares.take_a_read_more()
    }

    /// What the device calls itself, from the first mining.authorize on: printable ASCII, at most as long as
    /// an identity may be, perhaps empty. Later names change nothing: a session is one device.
    #[must_use]
    pub fn worker(&self) -> Option<&str> {
        self.worker.as_deref()
    }

    /// The firmware, as it says; printable ASCII.
    #[must_use]
    pub fn user_agent(&self) -> Option<&str> {
        self.user_agent.as_deref()
    }

    /// Shares that were refused here and that the server never saw.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shares.refused()
    }

    /// Shares that wait for the server's word.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.shares.unanswered()
    }

    fn on_line(&mut self, now: Now, line: &[u8], out: &mut Out) -> Result<(), End> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(());
        }
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else {
            self.bad_lines += 1;
            if self.bad_lines > SV1_BAD_LINES_MAX {
                return Err(End::NotJson(self.bad_lines));
            }
            self.pace.take(now)?;
            Refused::other("Parse error").write("null", out);
            return Ok(());
        };
        self.bad_lines = 0;
        let id = match line.id() {
            Ok(id) => id,
            Err(refused) => {
                self.pace.take(now)?;
                refused.write("null", out);
                return Ok(());
            }
        };
        match line.method.as_deref() {
            Some("mining.submit") => self.on_submit(id, line.params(), out),
            Some(method) => {
                self.pace.take(now)?;
                self.on_request(now, id, method, line.params(), out);
                Ok(())
            }
            // An answer, though nothing was asked.
            None => self.pace.take(now),
        }
    }

    fn on_request(&mut self, now: Now, id: &str, method: &str, params: &[Value], out: &mut Out) {
        match method {
            "mining.subscribe" => self.on_subscribe(now, id, params, out),
            "mining.authorize" => self.on_authorize(now, id, params, out),
            "mining.configure" => self.on_configure(now, id, params, out),
            "mining.suggest_difficulty" => {
                self.on_wish(now, id, params.first().and_then(hello::number), out);
            }
            "mining.suggest_target" => {
                self.on_wish(now, id, params.first().and_then(hello::target), out);
            }
            "mining.extranonce.subscribe" => {
                self.follows_extranonce = true;
                answer(id, &json!(true), out);
            }
            "mining.multi_version" => answer(id, &json!(true), out),
            "mining.ping" => answer(id, &json!("pong"), out),
            // A block's transactions are not a device's business.
            "mining.get_transactions" => answer(id, &json!([]), out),
            _ => Refused::METHOD_NOT_FOUND.write(id, out),
        }
    }

    fn on_subscribe(&mut self, now: Now, id: &str, params: &[Value], out: &mut Out) {
        if let Some(user_agent) = params.first().and_then(Value::as_str) {
            self.user_agent = Some(hello::printable(user_agent));
        }
        if let Channel::Open(opened) = self.channel {
            return answer_subscribe(id, &opened, out);
        }
        if self.waiting.len() >= SV1_SUBSCRIBES_WAITING_MAX {
            return Refused::other("Already subscribing").write(id, out);
        }
        self.waiting.push(id.into());
        if matches!(self.channel, Channel::None) {
            self.channel = Channel::Due { open_ms: now.mono_ms.saturating_add(SV1_OPEN_WAIT_MS) };
        }
    }

    fn open(&mut self, out: &mut Out) {
        self.channel = Channel::Asked;
        out.requests.push(Request::Open {
            user_identity: self.worker.clone().unwrap_or_else(|| "sv1".to_owned()),
            nominal_hash_rate: self.hash_rate(),
            max_target: self.max_target(),
        });
    }

    fn update(&mut self, now: Now, opened: Opened, out: &mut Out) {
        self.wishes.told(now);
        out.requests.push(Request::Update(UpdateChannel {
            channel_id: opened.id,
            nominal_hash_rate: self.hash_rate(),
            maximum_target: self.max_target(),
        }));
    }

    /// The rate at which the wished difficulty gives as many shares as the server wants.
    fn hash_rate(&self) -> f32 {
        let Terms { shares_per_minute, nominal_hash_rate } = self.terms;
        let Some(difficulty) = self.wishes.difficulty else { return nominal_hash_rate };
        (difficulty * HASHES_AT_ONE * shares_per_minute / 60.0) as f32
    }

    fn max_target(&self) -> [u8; 32] {
        self.wishes.minimum.map_or(Target::MAX, Difficulty::target).to_le_bytes()
    }

    fn on_opened(&mut self, now: Now, opened: &OpenExtendedMiningChannelSuccess, out: &mut Out) {
        if !matches!(self.channel, Channel::Asked) {
            return;
        }
        let target = Target::from_le_bytes(opened.target);
        let opened = Opened {
            id: opened.channel_id,
            prefix: opened.extranonce_prefix,
            size: usize::from(opened.extranonce_size),
        };
        self.channel = Channel::Open(opened);
        self.wishes.opened(now);
        for id in self.waiting.drain(..) {
            answer_subscribe(&id, &opened, out);
        }
        self.jobs.set_target(target, out);
        if self.worker.is_some() {
            self.jobs.start(out);
        }
    }

    /// For jobs to come, as in SV2.
    fn on_extranonce_prefix(
        &mut self,
        set: &SetExtranoncePrefix,
        out: &mut Out,
    ) -> Result<(), End> {
        let Channel::Open(opened) = &mut self.channel else { return Ok(()) };
        if !self.follows_extranonce {
            return Err(End::ExtranonceChanged);
        }
        opened.prefix = set.extranonce_prefix;
        let prefix = hex::encode(opened.prefix.as_slice());
        say("mining.set_extranonce", &json!([prefix, opened.size]), out);
        Ok(())
    }

    fn on_submit(&mut self, id: &str, params: &[Value], out: &mut Out) -> Result<(), End> {
        let share = match (&self.channel, &self.worker) {
            (Channel::None | Channel::Due { .. } | Channel::Asked, _) => {
                Err(Refused::NOT_SUBSCRIBED)
            }
            (Channel::Open(_), None) => Err(Refused::UNAUTHORIZED),
            (Channel::Open(opened), Some(_)) => {
                shares::claim(params, opened, self.version_mask, &self.jobs)
            }
        };
        match share.and_then(|share| self.shares.submit(id, share)) {
            Ok(share) => {
                out.requests.push(Request::Share(share));
                Ok(())
            }
            Err(refused) => {
                refused.write(id, out);
                self.shares.count_refused()
            }
        }
    }
}

fn answer_subscribe(id: &str, opened: &Opened, out: &mut Out) {
    let prefix = hex::encode(opened.prefix.as_slice());
    // Subscription ids that nobody uses; of one channel they may be the same.
    let subscriptions = json!([["mining.set_difficulty", prefix], ["mining.notify", prefix]]);
    answer(id, &json!([subscriptions, prefix, opened.size]), out);
}
