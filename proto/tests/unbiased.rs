//! A hash is worth the same whatever targets it was done under (P-unbiased). A client may choose its
//! targets, when to change them, which job to name and what to show; its expected credit per hash stays
//! one. Real headers, real verdicts, fixed seeds; the margins are wide (five standard deviations or
//! more), the mistakes they are for are not small.

// A test that meets the unexpected panics, also in its helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

mod common;

use std::collections::HashSet;

use common::client::Work;
use common::{
    Chain, Custom, HARD_NBITS, Ledger, Link, REGTEST_NBITS, Random, Share, easy_policy, worth,
};
use proto::limits::{CUSTOM_JOB_EVERY_MS, PAST_JOBS_MAX};
use proto::message::setup_flags::REQUIRES_WORK_SELECTION;
use proto::mining::Kind;
use proto::mining::server::{Effect, Input};
use proto::target::{Difficulty, Target};

/// A client that keeps account of its work and of what it is credited.
struct Adversary {
    chain: Chain,
    link: Link,
    ledger: Ledger,
    channel: u32,
    random: Random,
    /// Headers hashed: the work that was really done.
    hashed: HashSet<[u8; 32]>,
    credited: f64,
}

impl Adversary {
    fn new(nbits: u32, kind: Kind, seed: u64) -> Self {
        Self::with(0, nbits, kind, seed)
    }

    /// It makes its jobs itself.
    fn selecting(seed: u64) -> Self {
        Self::with(REQUIRES_WORK_SELECTION, HARD_NBITS, Kind::Extended, seed)
    }

    fn with(flags: u32, nbits: u32, kind: Kind, seed: u64) -> Self {
        let chain = Chain::new(nbits);
        let mut link = Link::with(easy_policy(), flags, chain.active());
        let channel = link.open_at_floor(kind);
        Self {
            chain,
            link,
            ledger: Ledger::default(),
            channel,
            random: Random::new(seed),
            hashed: HashSet::new(),
            credited: 0.0,
        }
    }

    /// A job of its own, at the difficulty that it has now and a part of a million.
    fn custom(&mut self, custom: &Custom, factor_ppm: u32) -> Work {
        self.link.now.mono_ms += CUSTOM_JOB_EVERY_MS;
        let work = self.link.custom(self.channel, custom, worth(1, factor_ppm));
        self.link.effects.retain(|effect| matches!(effect, Effect::Credit(_)));
        work
    }

    fn works(&self) -> Vec<Work> {
        self.link.client.device(self.channel).works.clone()
    }

    fn newest(&self) -> Work {
        self.link.client.work(self.channel).clone()
    }

    fn hash(&mut self, work: &Work, share: &Share) -> [u8; 32] {
        let hash = self.link.client.hash(work, share);
        self.hashed.insert(hash);
        hash
    }

    /// Asks for 2^`log2` or harder.
    fn ask(&mut self, log2: i16) {
        let limit = Difficulty::from_log2(log2).target();
        self.link.update(self.channel, 0.0, limit.to_le_bytes());
    }

    /// A new tip, so that old jobs are void, and the difficulty back at the floor.
    fn start_over(&mut self) {
        let tip = self.chain.advance_at(self.link.now.unix_s);
        self.link.close(self.channel);
        self.channel = self.link.open_at_floor(Kind::Extended);
        self.link.template(tip);
    }

    fn submit(&mut self, share: &Share) {
        self.link.submit(share);
        if self.link.server.batches_under_way() > 8 {
            self.collect();
        }
    }

    fn collect(&mut self) {
        for batch in self.link.batches() {
            let committed = self.ledger.commit(&batch);
            for group in &batch.groups {
                let credited =
                    group.proofs.iter().filter(|proof| !committed.duplicates.contains(&proof.hash));
                let hashes: f64 = credited.map(|proof| proof.difficulty.hashes()).sum();
                self.credited += hashes * f64::from(group.worth.factor_ppm) / 1e6;
            }
            self.link.handle(Input::Committed(committed)).unwrap();
        }
        self.link.effects.clear();
    }

    /// Credit per hash, of which one is expected.
    fn yield_per_hash(mut self) -> f64 {
        self.collect();
        self.credited / self.hashed.len() as f64
    }
}

/// Difficulties that a client plays with: 1 to 64 hashes a share.
const LADDER: std::ops::RangeInclusive<i16> = -32..=-26;

#[test]
fn an_honest_miner_is_credited_what_it_hashed_whatever_its_targets() {
    for (seed, kind) in [(1, Kind::Standard), (2, Kind::Extended)] {
        let mut miner = Adversary::new(HARD_NBITS, kind, seed);
        for _ in 0..60 {
            let log2 = -32 + miner.random.below(7) as i16;
            if miner.random.below(4) == 0 {
                let tip = miner.chain.advance_at(miner.link.now.unix_s);
                miner.link.template(tip);
            }
            miner.ask(log2);
            // Silence lets the difficulty fall again.
            miner.link.pass(6_000);
            for _ in 0..1_000 {
                let work = miner.newest();
                let share = miner.link.client.share_on(miner.channel, &work);
                if work.target.is_met_by(&miner.hash(&work, &share)) {
                    miner.submit(&share);
                }
            }
        }
        let got = miner.yield_per_hash();
        assert!((0.8..1.2).contains(&got), "{kind:?}: {got} per hash");
    }
}

#[test]
fn naming_the_best_paying_job_for_each_header_gains_nothing() {
    let mut thief = Adversary::new(HARD_NBITS, Kind::Extended, 3);
    for _ in 0..10 {
        // A job at each difficulty, all of one template, all live.
        for log2 in LADDER {
            thief.ask(log2);
        }
        let works = thief.works();
        let start = works.iter().map(|work| work.min_ntime).max().unwrap();
        for _ in 0..1_000 {
            let plain = thief.link.client.share_on(thief.channel, &works[0]);
            let mut best: Option<Share> = None;
            for work in &works {
                let share = Share { job: work.job, ntime: start, ..plain.clone() };
                if work.target.is_met_by(&thief.hash(work, &share)) {
                    // Later jobs pay more.
                    best = Some(share);
                }
            }
            if let Some(best) = best {
                thief.submit(&best);
            }
        }
        thief.start_over();
    }
    let got = thief.yield_per_hash();
    assert!(got < 1.2, "{got} per hash");
}

#[test]
fn raising_the_difficulty_once_the_hash_is_known_gains_nothing() {
    let mut thief = Adversary::new(HARD_NBITS, Kind::Extended, 4);
    for _ in 0..400 {
        let easy = thief.newest();
        let mut kept: Option<([u8; 32], Share)> = None;
        for _ in 0..64 {
            let mut share = thief.link.client.share_on(thief.channel, &easy);
            // Far enough ahead that a job which comes later may take it too.
            share.ntime += 300;
            let hash = thief.hash(&easy, &share);
            let lower =
                |known: &[u8; 32]| Target::from_le_bytes(hash) < Target::from_le_bytes(*known);
            if kept.as_ref().is_none_or(|(known, _)| lower(known)) {
                kept = Some((hash, share));
            }
        }
        let (hash, mut share) = kept.unwrap();
        // The hardest difficulty that the best of them meets, asked for afterwards.
        let meets = |log2: &i16| Difficulty::from_log2(*log2).target().is_met_by(&hash);
        let log2 = LADDER.rev().find(meets).unwrap_or(-32);
        thief.ask(log2);
        let hard = thief.newest();
        share.job = hard.job;
        thief.hash(&hard, &share);
        thief.submit(&share);
        thief.start_over();
    }
    let got = thief.yield_per_hash();
    assert!(got < 0.5, "{got} per hash for a 64th of the shares");
}

#[test]
fn blocks_are_no_way_around_the_target_that_was_asked_for() {
    let mut thief = Adversary::new(REGTEST_NBITS, Kind::Extended, 5);
    thief.ask(0);
    let work = thief.newest();
    let network = Target::from_compact(work.nbits);
    for _ in 0..2_000 {
        let share = thief.link.client.share_on(thief.channel, &work);
        if network.is_met_by(&thief.hash(&work, &share)) {
            thief.submit(&share);
        }
    }
    // Each is worth one hash and took two.
    let got = thief.yield_per_hash();
    assert!(got < 1.0, "{got} per hash");
}

#[test]
fn what_misses_its_target_is_worth_nothing() {
    let mut sloppy = Adversary::new(HARD_NBITS, Kind::Extended, 6);
    sloppy.ask(-27);
    let work = sloppy.newest();
    for _ in 0..20_000 {
        let share = sloppy.link.client.share_on(sloppy.channel, &work);
        sloppy.hash(&work, &share);
        sloppy.submit(&share);
    }
    let got = sloppy.yield_per_hash();
    assert!((0.75..1.25).contains(&got), "{got} per hash");
}

#[test]
fn an_honest_miner_of_his_own_jobs_is_credited_what_he_hashed_times_their_factor() {
    let mut miner = Adversary::selecting(7);
    for turn in 0..60 {
        if miner.random.below(4) == 0 {
            let tip = miner.chain.advance_at(miner.link.now.unix_s);
            miner.link.template(tip);
        }
        let log2 = -32 + miner.random.below(7) as i16;
        miner.ask(log2);
        miner.link.pass(6_000);
        let custom = Custom::of(&miner.chain.active()).numbered(turn);
        let work = miner.custom(&custom, 500_000);
        for _ in 0..1_000 {
            let share = miner.link.client.share_on(miner.channel, &work);
            if work.target.is_met_by(&miner.hash(&work, &share)) {
                miner.submit(&share);
            }
        }
    }
    let got = miner.yield_per_hash();
    assert!((0.4..0.6).contains(&got), "{got} per hash at a factor of a half");
}

#[test]
fn asking_for_the_same_work_at_each_difficulty_gains_nothing() {
    let mut thief = Adversary::selecting(8);
    for _ in 0..10 {
        let custom = Custom::of(&thief.chain.active());
        let mut works = Vec::new();
        for log2 in LADDER {
            thief.ask(log2);
            works.push(thief.custom(&custom, 1_000_000));
        }
        for _ in 0..1_000 {
            let plain = thief.link.client.share_on(thief.channel, &works[0]);
            // He does not believe what he was told: every job was asked for at its own difficulty.
            let hash = thief.hash(&works[0], &plain);
            let meets = |log2: &i16| Difficulty::from_log2(*log2).target().is_met_by(&hash);
            let Some(best) = LADDER.rev().find(meets) else { continue };
            let job = works[(best + 32) as usize].job;
            thief.submit(&Share { job, ..plain });
        }
        thief.start_over();
    }
    let got = thief.yield_per_hash();
    assert!(got < 1.2, "{got} per hash");
}

#[test]
fn waiting_until_his_job_is_forgotten_gains_nothing() {
    let mut thief = Adversary::selecting(9);
    for _ in 0..200 {
        let custom = Custom::of(&thief.chain.active());
        let easy = thief.custom(&custom, 1_000_000);
        let mut kept: Vec<([u8; 32], Share)> = Vec::new();
        for _ in 0..64 {
            let share = thief.link.client.share_on(thief.channel, &easy);
            kept.push((thief.hash(&easy, &share), share));
        }
        let lowest = |(hash, _): &&([u8; 32], Share)| Target::from_le_bytes(*hash);
        let (hash, share) = kept.iter().min_by_key(lowest).cloned().unwrap();
        // The hardest difficulty that the best of them meets, asked for when the job is long replaced.
        let meets = |log2: &i16| Difficulty::from_log2(*log2).target().is_met_by(&hash);
        thief.ask(LADDER.rev().find(meets).unwrap_or(-32));
        for number in 0..PAST_JOBS_MAX as u32 + 2 {
            thief.custom(&custom.numbered(1_000 + number), 1_000_000);
        }
        let again = thief.custom(&custom, 1_000_000);
        thief.submit(&Share { job: again.job, ..share });
        thief.start_over();
    }
    let got = thief.yield_per_hash();
    assert!(got < 0.5, "{got} per hash for a 64th of the shares");
}

#[test]
fn declaring_the_same_work_when_it_is_worth_more_gains_nothing() {
    let mut thief = Adversary::selecting(10);
    let custom = Custom::of(&thief.chain.active());
    let poor = thief.custom(&custom, 500_000);
    let shares: Vec<Share> = (0..2_000)
        .map(|_| {
            let share = thief.link.client.share_on(thief.channel, &poor);
            thief.hash(&poor, &share);
            share
        })
        .collect();
    let rich = thief.custom(&custom, 1_000_000);
    for share in shares {
        thief.submit(&Share { job: rich.job, ..share });
    }
    let got = thief.yield_per_hash();
    assert!((0.4..0.6).contains(&got), "{got} per hash for work that was worth a half");
}
