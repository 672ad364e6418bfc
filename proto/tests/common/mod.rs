//! Builders for the mining tests: a chain that makes templates, a link (one connection's server and its
//! clock), a client that understands what is said to it, and a ledger. Used by every mining test and by
//! the fuzz harness, so it needs nothing but `proto`.
//!
//! The client is the judge of the device rules: it fails at the first frame that a real device, or
//! SRI's proxy, could not have lived with. It computes merkle roots from the wire alone.

// Each test binary uses its own part of this; a test that meets the unexpected panics.
#![allow(dead_code, unused_imports, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

pub mod chain;
pub mod client;
pub mod custom;
pub mod house;
pub mod said;

use std::collections::HashSet;
use std::sync::Arc;

use proto::connection::Violation;
use proto::extranonce::ExtranonceAllocator;
use proto::job::{ActiveTemplate, Job};
use proto::message::{
    CloseChannel, Message, OpenExtendedMiningChannel, OpenStandardMiningChannel, Tlvs,
    UpdateChannel,
};
use proto::mining::server::{Effect, FoundBlock, Input, Outbox, Policy, Server};
use proto::mining::{Committed, CreditBatch, Kind, Now};
use proto::share::{Claim, FrozenJob, Submitted, Verdict, hash};
use proto::target::{Difficulty, Target};
use proto::wire::Str0255;

pub use chain::{Chain, HARD_NBITS, REGTEST_NBITS};
pub use client::{Client, Share};
pub use custom::{Custom, worth};
pub use house::{AtPool, Promised};
pub use said::{JobBody, Said, decode};

/// Unix seconds at which every link starts.
pub const START_S: u32 = 1_790_000_000;
/// What firmware declares of itself whatever it is.
pub const DECLARED_RATE: f32 = 1e12;
/// "Any target will do."
pub const ANY_TARGET: [u8; 32] = [0xff; 32];

/// Nearly every hash is a share: a test grinds none or one. So many are wanted that no burst of them
/// makes the difficulty rise.
pub fn easy_policy() -> Policy {
    Policy { shares_per_minute: 1e9, ..lively_policy() }
}

/// The same floor with a difficulty that follows the shares.
pub fn lively_policy() -> Policy {
    Policy { floor: Difficulty::MIN, ..Policy::default() }
}

/// A claim judged by itself; it must be one that a header can be made of.
pub fn judge(job: &FrozenJob<'_>, claim: &Claim, clock: u32) -> Verdict {
    hashed(job, claim).verdict(clock)
}

/// The same before its verdict.
pub fn hashed<'a>(job: &'a FrozenJob<'a>, claim: &Claim) -> Submitted<'a> {
    let mut share = Submitted::new(job, claim).unwrap();
    hash(&mut [&mut share]);
    share
}

/// A part of a job for as long as the test runs.
pub fn kept<T>(part: T) -> &'static T {
    Box::leak(Box::new(part))
}

/// One connection as both ends see it: the server, the client's understanding of what it said, time.
pub struct Link {
    pub server: Server,
    pub client: Client,
    pub now: Now,
    /// Added to the calendar: a clock that was set.
    pub clock_set_s: i32,
    /// What the server asked to be done and nobody has taken yet.
    pub effects: Vec<Effect>,
    request_id: u32,
}

impl Link {
    /// A connection without flags under `easy_policy`.
    pub fn new(chain: &Chain) -> Self {
        Self::with(easy_policy(), 0, chain.active())
    }

    pub fn with(policy: Policy, flags: u32, active: Arc<ActiveTemplate>) -> Self {
        Self::on(ExtranonceAllocator::new(7, 9), policy, flags, active)
    }

    pub fn on(
        extranonces: ExtranonceAllocator,
        policy: Policy,
        flags: u32,
        active: Arc<ActiveTemplate>,
    ) -> Self {
        let now = Now { mono_ms: 1_000, unix_s: START_S };
        Self {
            server: Server::new(Arc::new(policy), flags, extranonces, active, now),
            client: Client::new(flags),
            now,
            clock_set_s: 0,
            effects: Vec::new(),
            request_id: 100,
        }
    }

    /// Hands one input to the server and what it says to the client.
    pub fn handle(&mut self, input: Input<'_>) -> Result<Vec<Said>, Violation> {
        let mut out = Outbox::default();
        let answer = self.server.handle(self.now, input, &mut out);
        let ended = self.server.handle(self.now, Input::BurstEnd, &mut out);
        let answer = answer.and(ended);
        let said = self.hear(out);
        answer.map(|()| said)
    }

    fn hear(&mut self, out: Outbox) -> Vec<Said> {
        let said = decode(&out.frames);
        self.client.hear_all(&said);
        self.effects.extend(out.effects);
        said
    }

    /// A message without TLVs that does not end the connection.
    pub fn say<'a>(&mut self, message: impl Into<Message<'a>>) -> Vec<Said> {
        self.handle(Input::Message(message.into(), Tlvs::NONE)).unwrap()
    }

    pub fn open(&mut self, kind: Kind, rate: f32, max_target: [u8; 32]) -> Vec<Said> {
        self.try_open(kind, rate, max_target).unwrap()
    }

    pub fn try_open(
        &mut self,
        kind: Kind,
        rate: f32,
        max_target: [u8; 32],
    ) -> Result<Vec<Said>, Violation> {
        let user_identity = Str0255::text("alice.rig1");
        self.request_id += 1;
        let request_id = self.request_id;
        let message: Message<'_> = match kind {
            Kind::Standard => OpenStandardMiningChannel {
                request_id,
                user_identity,
                nominal_hash_rate: rate,
                max_target,
            }
            .into(),
            Kind::Extended => OpenExtendedMiningChannel {
                request_id,
                user_identity,
                nominal_hash_rate: rate,
                max_target,
                min_extranonce_size: 4,
            }
            .into(),
        };
        let said = self.handle(Input::Message(message, Tlvs::NONE))?;
        if let Some(Said::Opened { channel, target, .. }) = said.first() {
            let limit = Target::from_le_bytes(max_target);
            assert!(*target <= limit, "rule P4: above the client's limit");
            self.client.limit(*channel, limit);
        }
        Ok(said)
    }

    /// Opens a channel that declares nothing and takes any target: it starts at the policy's floor.
    pub fn open_at_floor(&mut self, kind: Kind) -> u32 {
        match self.open(kind, 0.0, ANY_TARGET).first() {
            Some(Said::Opened { channel, .. }) => *channel,
            other => panic!("an open was answered with {other:?}"),
        }
    }

    pub fn update(&mut self, channel: u32, rate: f32, max_target: [u8; 32]) -> Vec<Said> {
        self.try_update(channel, rate, max_target).unwrap()
    }

    pub fn try_update(
        &mut self,
        channel: u32,
        rate: f32,
        max_target: [u8; 32],
    ) -> Result<Vec<Said>, Violation> {
        // The limit holds from the client's word on, so also for what is said in answer to it; one
        // that is refused leaves the old one.
        let before = self.client.devices.get(&channel).map(|device| device.limit);
        self.client.limit(channel, Target::from_le_bytes(max_target));
        let update = UpdateChannel {
            channel_id: channel,
            nominal_hash_rate: rate,
            maximum_target: max_target,
        };
        let said = self.handle(Input::Message(update.into(), Tlvs::NONE))?;
        if let (Some(Said::UpdateError { .. }), Some(before)) = (said.first(), before) {
            self.client.limit(channel, before);
        }
        Ok(said)
    }

    pub fn close(&mut self, channel: u32) -> Vec<Said> {
        self.client.forget(channel);
        self.say(CloseChannel { channel_id: channel, reason_code: Str0255::text("done") })
    }

    pub fn submit(&mut self, share: &Share) -> Vec<Said> {
        self.submit_with(share, Tlvs::NONE)
    }

    pub fn submit_with(&mut self, share: &Share, tlvs: Tlvs<'_>) -> Vec<Said> {
        self.handle(Input::Message(share.message(), tlvs)).unwrap()
    }

    /// Shares that one read brings.
    pub fn submit_together(&mut self, shares: &[Share]) -> Vec<Said> {
        let mut out = Outbox::default();
        for share in shares {
            let input = Input::Message(share.message(), Tlvs::NONE);
            self.server.handle(self.now, input, &mut out).unwrap();
        }
        self.server.handle(self.now, Input::BurstEnd, &mut out).unwrap();
        self.hear(out)
    }

    pub fn template(&mut self, active: Arc<ActiveTemplate>) -> Vec<Said> {
        self.handle(Input::Template(active)).unwrap()
    }

    pub fn set_ceiling(&mut self, ceiling: Difficulty) -> Vec<Said> {
        let mut out = Outbox::default();
        self.server.set_ceiling(ceiling, self.now, &mut out);
        self.hear(out)
    }

    /// Lets time pass and the server act on it whenever it wanted to.
    pub fn pass(&mut self, ms: u64) -> Vec<Said> {
        let end = self.now.mono_ms + ms;
        let mut said = Vec::new();
        while self.server.deadline_ms() <= end {
            let due = self.server.deadline_ms().max(self.now.mono_ms);
            self.set_clock(due);
            said.extend(self.handle(Input::Time).unwrap());
            assert!(self.server.deadline_ms() > due, "a deadline that does not move");
        }
        self.set_clock(end);
        said
    }

    pub fn set_clock(&mut self, mono_ms: u64) {
        let unix_s = START_S + (mono_ms / 1_000) as u32;
        self.now = Now { mono_ms, unix_s: unix_s.saturating_add_signed(self.clock_set_s) };
    }

    /// Sends off the open batch and commits every batch as `ledger` sees it.
    pub fn commit(&mut self, ledger: &mut Ledger) -> Vec<Said> {
        let mut said = Vec::new();
        for batch in self.batches() {
            said.extend(self.handle(Input::Committed(ledger.commit(&batch))).unwrap());
        }
        said
    }

    /// The batches that are on their way to the ledger, the open one too.
    pub fn batches(&mut self) -> Vec<CreditBatch> {
        let mut out = Outbox::default();
        self.server.close_batch(&mut out);
        assert!(out.frames.is_empty(), "closing a batch says nothing");
        self.effects.extend(out.effects);
        let (credits, rest) = std::mem::take(&mut self.effects)
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Credit(_)));
        self.effects = rest;
        let credits: Vec<Effect> = credits;
        credits
            .into_iter()
            .map(|effect| match effect {
                Effect::Credit(batch) => batch,
                other => panic!("{other:?} is no credit"),
            })
            .collect()
    }

    /// Blocks found since the effects were last looked at.
    pub fn blocks(&mut self) -> Vec<FoundBlock> {
        std::mem::take(&mut self.effects)
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::BlockFound(block) => Some(*block),
                other => {
                    self.effects.push(other);
                    None
                }
            })
            .collect()
    }
}

/// What the ledger task answers: the first of two equal proofs is credited, ever.
#[derive(Default)]
pub struct Ledger {
    pub credited: HashSet<[u8; 32]>,
}

impl Ledger {
    pub fn commit(&mut self, batch: &CreditBatch) -> Committed {
        let proofs = batch.groups.iter().flat_map(|group| &group.proofs);
        let duplicates = proofs
            .filter(|proof| !self.credited.insert(proof.hash))
            .map(|proof| proof.hash)
            .collect();
        Committed { id: batch.id, duplicates }
    }
}

/// A small generator for tests and harnesses: the same seed, the same run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
