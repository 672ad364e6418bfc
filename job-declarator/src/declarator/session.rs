//! One session with a pool: its mining connection, and for own templates its job declaration connection,
//! both as protocol clients; what was asked there and has no answer; whether the pool can be mined for.
//! Owned by `declarator.rs`, which decides what is said.
//!
//! A session ends with its first failure, whose text the owner reads. It must never outlive one: what a pool
//! did wrong once it does again in the next session, after a pause.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::connection::Violation;
use proto::declare::client as declare;
use proto::job::JobId;
use proto::limits::{CLIENT_CUSTOM_REQUESTS_MAX, HOUSE_EXTRANONCE_LEN};
use proto::message::{EXTENSION_WORKER_HASHRATE, setup_flags};
use proto::mining::client::{self as mining, ChannelKind, ClientOptions};
use proto::target::{Difficulty, Target};
use proto::template::TemplateId;
use proto::wire::B032;
use thiserror::Error;

use super::evidence::Evidence;
use super::outputs::BadOutputs;
use super::{End, LinkId, Mode, PoolOptions};
use crate::credit::for_display;
use crate::limits::{
    DECLARED_ANSWER_MIN_MS, FLEET_TOLD_AGAIN_MS, FLEET_TOLD_EVERY_MS, SESSION_SETUP_MAX_MS,
    SHARE_AGE_MAX_MS, SHARE_ANSWER_MAX_MS, SHARE_ANSWER_MIN_MS, SHARE_BATCH_MAX, SHARE_BATCH_USUAL,
    SHARES_REFUSED_IN_A_ROW_MAX, SHARES_STALE_IN_A_ROW_MAX, STALE_AFTER_TIP_MS,
    STALE_BEFORE_TIP_MS,
};
use crate::upstream::{Credited, Kind};

/// Tokens to have in hand: a new tip must not wait for one, nor the template behind it.
const TOKENS: usize = 3;
/// The code of every refusal that is about a tip and nothing else.
pub(super) const STALE_CHAIN_TIP: &str = "stale-chain-tip";
/// The code of a share whose tip is gone.
const STALE_SHARE: &str = "stale-share";
/// How pools call a share of a tip that they have left: some forget its jobs.
pub(super) const OLD_SHARE: [&str; 2] = [STALE_SHARE, "invalid-job-id"];
/// What a share is counted under that an acknowledgement passed over, as if that were the pool's code.
pub(super) const PASSED_OVER: &str = "passed over";

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// A link could not be made or was lost, with what the system says.
    #[error("{0}")]
    Link(String),
    /// The pool's answer is overdue.
    #[error("it has not answered {what} for {seconds} s")]
    Silent {
        /// What was asked.
        what: &'static str,
        /// How long ago.
        seconds: u64,
    },
    /// It could not be mined on in time.
    #[error("it was not ready after {} s", SESSION_SETUP_MAX_MS / 1_000)]
    NotReady,
    /// It wants no such connection.
    #[error("it refuses the connection: {code}{}", at_the_wrong_port(.0), code = .0)]
    Setup(String),
    /// It wants no such channel.
    #[error("it opens no channel: {0}")]
    Open(String),
    /// It closed the channel.
    #[error("it closed the channel: {0}")]
    Closed(String),
    /// It broke the protocol.
    #[error("it broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// It wants more than the owner gives.
    #[error("{0}")]
    Outputs(#[from] BadOutputs),
    /// It refuses the owner's template.
    #[error("it refuses your template: {0}")]
    Declaration(String),
    /// It refuses to have the owner's template mined.
    #[error("it refuses your job: {0}")]
    CustomJob(String),
    /// It refuses shares that are good.
    #[error("it refuses good shares: {0}")]
    Shares(String),
    /// What it acknowledges is far from what was found for it; both in shares of its own size.
    #[error("it credits less than it is sent: {credited} of {found} shares' work")]
    Uncredited {
        /// It acknowledged so many.
        credited: u64,
        /// The devices found so many.
        found: u64,
    },
    /// Its shares are found so seldom that nobody can tell whether it credits any.
    #[error("its shares are too hard for your devices: one in {minutes} minutes")]
    TooHard {
        /// From one to the next.
        minutes: u64,
    },
    /// It asks to be connected to anew.
    #[error("it asks to be connected to anew")]
    Reconnect,
    /// A template that no job can be made of for this pool.
    #[error("no job for it can be made: {0}")]
    NoJob(String),
    /// It does not read what it is sent.
    #[error("it does not take what it is sent")]
    Stalled,
}

/// The likeliest cause of a code: a pool's two ports say the same words until then.
fn at_the_wrong_port(code: &str) -> &'static str {
    if code == "unsupported-protocol" {
        return "; are address and declare_address swapped?";
    }
    ""
}

impl Failure {
    /// The pool said no, so that trying again at once is of no use.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Link(_)
            | Self::Silent { .. }
            | Self::NotReady
            | Self::Reconnect
            | Self::Stalled => false,
            Self::Setup(_)
            | Self::Open(_)
            | Self::Closed(_)
            | Self::Violation(_)
            | Self::Outputs(_)
            | Self::Declaration(_)
            | Self::CustomJob(_)
            | Self::Shares(_)
            | Self::Uncredited { .. }
            | Self::TooHard { .. }
            | Self::NoJob(_) => true,
        }
    }

    /// It is about what the pool credits, so that nothing which it credited before speaks for it.
    fn is_about_shares(&self) -> bool {
        matches!(self, Self::Shares(_) | Self::Uncredited { .. } | Self::TooHard { .. })
    }
}

/// The channel with the pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    /// The pool's part of the extranonce.
    pub(super) prefix: B032,
    /// Ours, at least `HOUSE_EXTRANONCE_LEN`.
    pub(super) size: usize,
    /// What the pool takes as a share of jobs to come.
    pub(super) target: Target,
}

impl Channel {
    /// Bytes of the whole extranonce, as a coinbase has it.
    pub(super) fn extranonce_len(&self) -> usize {
        self.prefix.len() + self.size
    }

    /// Zeros between the pool's part and a house's own.
    pub(super) fn padding(&self) -> usize {
        self.size - HOUSE_EXTRANONCE_LEN
    }
}

/// A share without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) sequence: u32,
    pub(super) at_ms: u64,
    /// What the pool takes as a share of its job.
    pub(super) target: Target,
    /// Of its job.
    pub(super) tip: [u8; 32],
    /// A block that is no share: the pool may say no to it.
    pub(super) is_below: bool,
}

/// A custom job without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) request_id: u32,
    pub(super) work: TemplateId,
    pub(super) at_ms: u64,
}

/// A declaration without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Declared {
    pub(super) request_id: u32,
    pub(super) work: TemplateId,
    pub(super) at_ms: u64,
    /// The pool wanted transactions: their way takes what it takes.
    pub(super) was_asked: bool,
}

/// See above.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) pool: usize,
    pub(super) kind: Kind,
    pub(super) mining: mining::Client,
    pub(super) declare: Option<declare::Client>,
    pub(super) channel: Option<Channel>,
    /// What a coinbase for the pool must have, as its newest token says.
    pub(super) outputs: Option<Arc<[u8]>>,
    /// Was told to `upstream`.
    pub(super) is_ready: bool,
    /// Left; ends then, mono ms.
    pub(super) lingers_until_ms: Option<u64>,
    began_ms: u64,
    pub(super) asked: Vec<Asked>,
    pub(super) declared: Vec<Declared>,
    pub(super) unanswered: VecDeque<Sent>,
    /// The longest that an answer took from the share on that made it due, once there was one.
    slowest_ms: Option<u64>,
    /// The fewest shares that were answered at once: SRI's pool answers ten, and none before.
    batch: usize,
    /// The longest that a declaration's answer took, once there was one.
    slowest_declared_ms: Option<u64>,
    /// The longest that a share waited with others of its batch, once there was one.
    oldest_ms: Option<u64>,
    refused_in_a_row: u32,
    stale_in_a_row: u32,
    /// When the first of those was found, mono ms.
    refused_from_ms: Option<u64>,
    pub(super) evidence: Evidence,
    /// What the pool takes as a share of the job that it promised last.
    promised_target: Option<Target>,
    /// The devices' tip, since when, and when the pool first called a share of it stale, mono ms.
    tip: Option<([u8; 32], u64, Option<u64>)>,
    /// The fleet's rate as the pool knows it, and since when, mono ms.
    pub(super) told: (f64, u64),
}

impl Session {
    pub(super) fn new(
        id: u64,
        pool: (usize, &PoolOptions),
        kind: Kind,
        mode: Mode,
        fleet: f64,
        now_ms: u64,
    ) -> Self {
        let (pool, options) = pool;
        let min_extranonce_size = HOUSE_EXTRANONCE_LEN as u16;
        let channel = ChannelKind::Extended { min_extranonce_size };
        let mut client = ClientOptions::new(channel, &options.user);
        (client.endpoint_host, client.endpoint_port) = host_and_port(&options.address);
        client.hardware_version = "job-declarator".to_owned();
        client.nominal_hash_rate = fleet as f32;
        client.extensions = vec![EXTENSION_WORKER_HASHRATE];
        if kind == Kind::Own {
            client.flags |= setup_flags::REQUIRES_WORK_SELECTION;
        }
        let declare = options.declare_address.as_deref().filter(|_| kind == Kind::Own);
        let declare = declare.map(|address| {
            let (endpoint_host, endpoint_port) = host_and_port(address);
            declare::Client::new(declare::ClientOptions {
                tells_transactions: mode == Mode::FullTemplate,
                user_identifier: options.user.clone(),
                tokens: TOKENS,
                endpoint_host,
                endpoint_port,
                vendor: "smallholder".to_owned(),
                firmware: env!("CARGO_PKG_VERSION").to_owned(),
            })
        });
        Self {
            id,
            pool,
            kind,
            mining: mining::Client::new(client),
            declare,
            channel: None,
            outputs: None,
            is_ready: false,
            lingers_until_ms: None,
            began_ms: now_ms,
            asked: Vec::new(),
            declared: Vec::new(),
            unanswered: VecDeque::new(),
            slowest_ms: None,
            batch: usize::MAX,
            slowest_declared_ms: None,
            oldest_ms: None,
            refused_in_a_row: 0,
            stale_in_a_row: 0,
            refused_from_ms: None,
            evidence: Evidence::default(),
            promised_target: None,
            tip: None,
            told: (fleet, now_ms),
        }
    }

    /// The links that it needs.
    pub(super) fn ends(&self) -> impl Iterator<Item = LinkId> + use<> {
        let session = self.id;
        let declare = self.declare.is_some().then_some(End::Declare);
        [Some(End::Mining), declare].into_iter().flatten().map(move |end| LinkId { session, end })
    }

    /// Everything is there that work for the pool needs.
    pub(super) fn can_be_mined(&self) -> bool {
        let has_work = match self.kind {
            Kind::Own => self.outputs.is_some(),
            Kind::Theirs => self.mining.work().is_some(),
        };
        self.channel.is_some() && has_work
    }

    /// When the pool is to be told the devices' rate, mono ms: soon where it knows another, again where it
    /// asks for shares more than twice as often, or seldom, than it should.
    pub(super) fn tell_at_ms(&self, fleet: f64) -> Option<u64> {
        let channel = self.channel.as_ref().filter(|_| self.is_ready && fleet > 0.0)?;
        let (told, at_ms) = self.told;
        if !(0.9..=1.1).contains(&(fleet / told)) {
            return Some(at_ms + FLEET_TOLD_EVERY_MS);
        }
        let hashes = Difficulty::easiest_within(channel.target).map_or(0.0, Difficulty::hashes);
        let is_heard = (2.0..=20.0).contains(&(hashes / fleet));
        (!is_heard).then_some(at_ms + FLEET_TOLD_AGAIN_MS)
    }

    /// The devices are on this tip now.
    pub(super) fn saw_tip(&mut self, tip: Option<[u8; 32]>, now_ms: u64) {
        let Some(tip) = tip else { return };
        let before = self.tip.filter(|(before, ..)| *before == tip);
        // A pool's own tips are its own word, and excuse nothing.
        if before.is_none() && self.kind == Kind::Own {
            self.evidence.tip_changed(now_ms);
        }
        self.tip = before.or(Some((tip, now_ms, None)));
    }

    /// A device found a good share for this pool, which takes those of a target; it may be waiting for a promise.
    pub(super) fn found(&mut self, now_ms: u64, difficulty: Difficulty, target: Option<Target>) {
        let target = target.or(self.channel.map(|channel| channel.target));
        let share = target.map_or(0.0, |target| for_display(target.work()));
        // Where a device cannot be made as easy as the pool is, the pool is not to blame.
        self.evidence.found(now_ms, difficulty.hashes().min(share), share);
    }

    /// A job was promised with this target.
    pub(super) fn is_promised(&mut self, target: Target) {
        self.promised_target = Some(target);
    }

    /// What speaks for the pool when its session ends by this.
    pub(super) fn credited(&self, failure: &Failure) -> Credited {
        if failure.is_about_shares() { Credited::No } else { self.evidence.credited() }
    }

    /// The hardest of what the pool takes as a share now.
    fn hardest_target(&self) -> Option<Target> {
        let theirs = self.mining.work().filter(|_| self.kind == Kind::Theirs);
        let theirs = theirs.map(|work| work.target).or(self.promised_target);
        self.channel.map(|channel| channel.target).into_iter().chain(theirs).min()
    }

    /// The pool credits less than it should, or nothing that could be found. `fleet` is the devices' rate.
    pub(super) fn wrong(&mut self, now_ms: u64, fleet: f64) -> Option<Failure> {
        if let Some((credited, found)) = self.evidence.shortfall(now_ms) {
            return Some(Failure::Uncredited { credited, found });
        }
        let share = self.hardest_target().filter(|_| self.is_ready)?;
        let minutes = self.evidence.too_hard(now_ms, for_display(share.work()), fleet)?;
        Some(Failure::TooHard { minutes })
    }

    /// What the pool owes us for too long.
    pub(super) fn overdue(&self, now_ms: u64, custom_max_ms: u64) -> Option<Failure> {
        let since = |at_ms: u64| now_ms.saturating_sub(at_ms);
        let silent = |what, ms| Some(Failure::Silent { what, seconds: ms / 1_000 });
        if !self.is_ready && since(self.began_ms) >= SESSION_SETUP_MAX_MS {
            return Some(Failure::NotReady);
        }
        let share = self.due_share().map(|sent| since(sent.at_ms));
        if let Some(ms) = share.filter(|ms| *ms >= self.patience_ms()) {
            return silent("a share", ms);
        }
        let oldest = self.aging_share().map(|sent| since(sent.at_ms));
        if let Some(ms) = oldest.filter(|ms| *ms >= self.age_max_ms()) {
            return silent("a share", ms);
        }
        let declared = self.due_declaration();
        let declared = declared.filter(|(at_ms, max_ms)| since(*at_ms) >= *max_ms);
        if let Some((at_ms, _)) = declared {
            return silent("about a template", since(at_ms));
        }
        let custom = self.asked.first().map(|asked| since(asked.at_ms));
        custom.filter(|ms| *ms >= custom_max_ms).and_then(|ms| silent("about a job", ms))
    }

    /// When `overdue` may have something, mono ms.
    pub(super) fn deadline_ms(&self, custom_max_ms: u64) -> Option<u64> {
        let setup = (!self.is_ready).then_some(self.began_ms + SESSION_SETUP_MAX_MS);
        let share = self.due_share().map(|sent| sent.at_ms + self.patience_ms());
        let oldest = self.aging_share().map(|sent| sent.at_ms + self.age_max_ms());
        let settles = self.evidence.settles_at_ms();
        let declared = self.due_declaration().map(|(at_ms, max_ms)| at_ms + max_ms);
        let custom = self.asked.first().map(|asked| asked.at_ms + custom_max_ms);
        let declare = self.declare.as_ref().and_then(declare::Client::deadline_ms);
        let others = [declared, custom, declare, self.lingers_until_ms];
        [setup, share, oldest, settles].into_iter().chain(others).flatten().min()
    }

    /// The share whose answer is due: the oldest, or the one that completed what this pool answers at once.
    /// Those of a batch that is not full wait for others to be found.
    fn due_share(&self) -> Option<&Sent> {
        let at = if self.slowest_ms.is_some() { self.batch - 1 } else { 0 };
        self.unanswered.get(at)
    }

    /// The oldest, where so many wait that it is not for others to be found.
    fn aging_share(&self) -> Option<&Sent> {
        self.unanswered.front().filter(|_| self.unanswered.len() > SHARE_BATCH_USUAL)
    }

    /// How old it may be: twice what one ever waited.
    fn age_max_ms(&self) -> u64 {
        let twice = self.oldest_ms.map_or(0, |ms| ms.saturating_mul(2));
        twice.clamp(SHARE_ANSWER_MAX_MS, SHARE_AGE_MAX_MS)
    }

    /// Since when a declaration has no answer, and how long it may take: three times what this pool ever took.
    /// Before there was one, and where it has to be sent transactions, the protocol client's own bound holds.
    fn due_declaration(&self) -> Option<(u64, u64)> {
        let oldest = self.declared.first().filter(|declared| !declared.was_asked)?;
        let max_ms = self.slowest_declared_ms?.saturating_mul(3);
        Some((oldest.at_ms, max_ms.max(DECLARED_ANSWER_MIN_MS)))
    }

    /// How long this pool may leave a share unanswered that is due: twice what it ever took.
    fn patience_ms(&self) -> u64 {
        let twice = self.slowest_ms.map_or(SHARE_ANSWER_MAX_MS, |ms| ms.saturating_mul(2));
        twice.clamp(SHARE_ANSWER_MIN_MS, SHARE_ANSWER_MAX_MS)
    }

    /// `count` shares up to this one are credited: those, in the order sent, and how many beside them are
    /// passed over, which is a refusal by another word; a failure if those are too many.
    pub(super) fn acknowledged(
        &mut self,
        last_sequence: u32,
        count: u32,
        now_ms: u64,
    ) -> (Vec<Sent>, u64, Result<(), Failure>) {
        let known = self.unanswered.iter().take_while(|sent| sent.sequence <= last_sequence);
        let known = known.count();
        let mut credited: Vec<Sent> = self.unanswered.drain(..known).collect();
        let passed_over = known.saturating_sub(count as usize);
        credited.drain(..passed_over);
        let passed = u32::try_from(passed_over).unwrap_or(u32::MAX);
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(passed);
        if let Some(oldest) = credited.first() {
            self.oldest_ms = self.oldest_ms.max(Some(now_ms.saturating_sub(oldest.at_ms)));
            self.batch = self.batch.min(credited.len()).min(SHARE_BATCH_MAX);
            for sent in &credited {
                self.evidence.acknowledged(now_ms, for_display(sent.target.work()));
            }
            let took_ms = now_ms.saturating_sub(credited[self.batch - 1].at_ms);
            self.slowest_ms = self.slowest_ms.max(Some(took_ms));
            (self.refused_in_a_row, self.stale_in_a_row) = (0, 0);
            self.refused_from_ms = None;
        }
        let in_a_row = self.refused_in_a_row;
        let is_too_many = in_a_row >= SHARES_REFUSED_IN_A_ROW_MAX;
        let verdict = match is_too_many {
            true => Err(Failure::Shares(format!("{in_a_row} in a row, {PASSED_OVER}"))),
            false => Ok(()),
        };
        (credited, passed_over as u64, verdict)
    }

    /// A share is refused that had no answer; a failure if that is one too many. The newest tip was seen.
    pub(super) fn refused(
        &mut self,
        sequence: u32,
        code: &str,
        now_ms: u64,
    ) -> Option<Result<(), Failure>> {
        let at = self.unanswered.iter().position(|sent| sent.sequence == sequence)?;
        let sent = self.unanswered.remove(at)?;
        if sent.is_below {
            return Some(Ok(()));
        }
        let is_stale = match &mut self.tip {
            Some((tip, since_ms, said_ms)) if *tip == sent.tip => {
                // Its tip is ours: the pool's word is good for a while around a change.
                let said_ms = *said_ms.get_or_insert(now_ms);
                code == STALE_SHARE
                    && (now_ms.saturating_sub(*since_ms) < STALE_AFTER_TIP_MS
                        || now_ms.saturating_sub(said_ms) < STALE_BEFORE_TIP_MS)
            }
            // A pool may have forgotten the job along with its tip, and say so instead.
            Some(_) | None => true,
        };
        let (in_a_row, max) = if is_stale {
            (&mut self.stale_in_a_row, SHARES_STALE_IN_A_ROW_MAX)
        } else {
            (&mut self.refused_in_a_row, SHARES_REFUSED_IN_A_ROW_MAX)
        };
        *in_a_row += 1;
        self.refused_from_ms.get_or_insert(sent.at_ms);
        let failure = || Failure::Shares(format!("{in_a_row} in a row, {code}"));
        Some(if *in_a_row >= max { Err(failure()) } else { Ok(()) })
    }

    /// Since when what devices did for the pool may have been for nothing, mono ms: the first share of those without
    /// an answer, or of those that it refused.
    pub(super) fn in_vain_from_ms(&self) -> Option<u64> {
        let unanswered = self.unanswered.front().map(|sent| sent.at_ms);
        [unanswered, self.refused_from_ms].into_iter().flatten().min()
    }

    /// The request that this answer is of.
    pub(super) fn take_asked(&mut self, request_id: u32) -> Option<TemplateId> {
        let at = self.asked.iter().position(|asked| asked.request_id == request_id)?;
        Some(self.asked.remove(at).work)
    }

    /// The declaration that this answer is of.
    pub(super) fn take_declared(&mut self, request_id: u32, now_ms: u64) -> Option<TemplateId> {
        let at = self.declared.iter().position(|declared| declared.request_id == request_id)?;
        let Declared { work, at_ms, was_asked, .. } = self.declared.remove(at);
        if !was_asked {
            let took_ms = now_ms.saturating_sub(at_ms);
            self.slowest_declared_ms = self.slowest_declared_ms.max(Some(took_ms));
        }
        Some(work)
    }

    /// Whether one more job may be on its way: each that is declared is asked for, too.
    pub(super) fn takes_more_jobs(&self) -> bool {
        self.asked.len() + self.declared.len() < CLIENT_CUSTOM_REQUESTS_MAX
    }
}

/// A job as the pool knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promised {
    pub(super) job: JobId,
    /// What the pool takes as a share of it.
    pub(super) target: Target,
}

/// `host:port`; an address without a port has been refused before.
fn host_and_port(address: &str) -> (String, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_addresses_in_each_others_place_are_guessed_from_the_pools_word() {
        let said = |code: &str| Failure::Setup(code.to_owned()).to_string();
        let swapped = "it refuses the connection: unsupported-protocol; are address and declare_address \
                       swapped?";
        assert_eq!(said("unsupported-protocol"), swapped);
        assert_eq!(
            said("protocol-version-mismatch"),
            "it refuses the connection: protocol-version-mismatch"
        );
    }
}
