//! Shares: ours through `proto::share` and through the whole mining server, SRI's through its channels'
//! `validate_share`. Both are given the same claims, on a fresh channel each round, and the hashes and
//! refusals of every round are held against each other: a side that did less work is found out.
//!
//! `share` finds the job by its number first, as SRI's channel does, and remembers the hash.

use std::hint::black_box;

use anyhow::{Result, ensure};

use proto::job::JobId;
use proto::message::{Message, Tlvs};
use proto::mining::server::{Effect, Input, Outbox, Server};
use proto::mining::{Committed, Kind};
use proto::share::{Claim, FrozenJob, Refusal, Seen, Submitted, hash};
use proto::target::Difficulty;
use proto::wire::B032;

use super::clock::{Cost, rounds, time, try_time};
use super::cpu::{Cpu, Needs};
use super::hashing::Hashed;
use super::inputs::{NOW, World, submit};
use super::report::{Goal, Row, Unit};
use super::sri::{self, Channel, Submit, Verdict};
use super::{Effort, allocations};

/// Shares of one read that are hashed together.
const BURST: usize = 64;

/// Every row about shares, and what ours took of each kind: extended, standard.
///
/// # Errors
/// Two sides that do not agree on a share.
pub(super) fn compare(effort: Effort, cpu: Cpu) -> Result<(Vec<Row>, Hashed, Hashed)> {
    let (mut rows, extended) = of_kind(effort, cpu, Kind::Extended)?;
    let (more, standard) = of_kind(effort, cpu, Kind::Standard)?;
    rows.extend(more);
    Ok((rows, extended, standard))
}

fn of_kind(effort: Effort, cpu: Cpu, kind: Kind) -> Result<(Vec<Row>, Hashed)> {
    mixed_verdicts_agree(kind, effort.shares)?;
    let name = name_of(kind);
    let set = Set::new(kind, effort.shares)?;
    let [one, many, server_one, server_many, sri] = rounds(effort.rounds, || set.round())?;
    let [ours, theirs] = set.allocations()?;
    let zero = Goal::AtMost(0.001);
    let rows = vec![
        single_row(kind, one, sri),
        // Not quite zero: a channel's table of proofs grows, once in many shares.
        Row::counted(&format!("{name} share, single"), Unit::Allocations, ours, theirs, zero),
        burst_row(cpu, kind, many, sri),
        server_row(name, "single", server_one, sri),
        server_row(name, "64 in a burst", server_many, sri),
    ];
    Ok((rows, Hashed { single: one, batched: many }))
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Standard => "standard",
        Kind::Extended => "extended",
    }
}

fn single_row(kind: Kind, ours: Cost, sri: Cost) -> Row {
    let goal = match kind {
        Kind::Standard => Goal::Faster(2.4),
        Kind::Extended => Goal::Faster(1.9),
    };
    Row::time(format!("{} share, single", name_of(kind)), ours, sri, goal).on_cpus_with(Needs::Sha)
}

/// By the goal of the widest instructions that the CPU has: with sixteen lanes more is wanted of an extended
/// share than with two streams of SHA-NI.
fn burst_row(cpu: Cpu, kind: Kind, ours: Cost, sri: Cost) -> Row {
    let goal = match kind {
        Kind::Standard => Goal::Faster(5.0),
        Kind::Extended if cpu.avx512 => Goal::Faster(5.0),
        Kind::Extended => Goal::Faster(3.0),
    };
    let path = format!("{} share, {BURST} in a burst", name_of(kind));
    Row::time(path, ours, sri, goal).on_cpus_with(Needs::ShaOrAvx512)
}

fn server_row(name: &str, how: &str, ours: Cost, sri: Cost) -> Row {
    let path = format!("{name} share, {how}: mining server up to SubmitShares.Success");
    Row::time(path, ours, sri, Goal::Shown)
}

/// The same shares in the form that each side takes.
struct Set {
    world: World,
    claims: Vec<Claim>,
    messages: Vec<Message<'static>>,
    theirs: Vec<Submit>,
}

impl Set {
    /// `count` (a multiple of `BURST`) distinct shares that meet the easiest target.
    fn new(kind: Kind, count: usize) -> Result<Self> {
        let world = World::new(kind, Difficulty::MIN)?;
        let count = count.next_multiple_of(BURST);
        let frozen = [(world.job_id, world.frozen())];
        // One hash in 65,536 is above even that target.
        let good = |claim: &Claim| judged(&frozen, claim).is_ok();
        let claims: Vec<Claim> =
            (0..).map(|number| world.claim(number)).filter(good).take(count).collect();
        let numbered = || claims.iter().zip(0..);
        let messages = numbered().map(|(claim, number)| submit(claim, number)).collect();
        let theirs: Result<_> =
            numbered().map(|(claim, number)| sri::submit(claim, number)).collect();
        Ok(Self { theirs: theirs?, messages, claims, world })
    }

    /// Every side once: `share` one by one, in bursts, the server in both ways, SRI.
    fn round(&self) -> Result<[f64; 5]> {
        let (one, by_one) = self.side(|verdicts| {
            let mut seen = Seen::default();
            let jobs = self.jobs();
            Ok(time(self.claims.len(), || self.singly(&jobs, &mut seen, verdicts)))
        })?;
        let (many, by_many) = self.side(|verdicts| {
            let mut seen = Seen::default();
            let jobs = self.jobs();
            Ok(time(self.claims.len(), || self.in_bursts(&jobs, &mut seen, verdicts)))
        })?;
        let (server_one, by_server) = self.side(|verdicts| self.through_server(1, verdicts))?;
        let (server_many, by_bursts) =
            self.side(|verdicts| self.through_server(BURST, verdicts))?;
        let (sri, by_sri) = self.side(|verdicts| {
            let mut channel = Channel::new(&self.world)?;
            let shares = self.theirs.clone();
            Ok(time(self.claims.len(), || {
                verdicts.extend(shares.into_iter().map(|share| channel.validate(share)));
            }))
        })?;
        ensure!(by_sri.iter().all(Option::is_some), "SRI refuses one of the good shares");
        for ours in [by_one, by_many, by_server, by_bursts] {
            ensure!(ours == by_sri, "ours and SRI's verdicts or hashes differ");
        }
        Ok([one, many, server_one, server_many, sri])
    }

    /// What a side says of every share, in memory that is there before its time starts.
    fn side(
        &self,
        run: impl FnOnce(&mut Vec<Verdict>) -> Result<f64>,
    ) -> Result<(f64, Vec<Verdict>)> {
        let mut verdicts = Vec::with_capacity(self.claims.len());
        let figure = run(&mut verdicts)?;
        Ok((figure, verdicts))
    }

    fn jobs(&self) -> [(JobId, FrozenJob<'_>); 1] {
        [(self.world.job_id, self.world.frozen())]
    }

    fn singly(
        &self,
        jobs: &[(JobId, FrozenJob<'_>)],
        seen: &mut Seen,
        verdicts: &mut Vec<Verdict>,
    ) {
        for claim in &self.claims {
            verdicts.push(judged(jobs, black_box(claim)).ok().filter(|hash| seen.insert(hash)));
        }
    }

    fn in_bursts(
        &self,
        jobs: &[(JobId, FrozenJob<'_>)],
        seen: &mut Seen,
        verdicts: &mut Vec<Verdict>,
    ) {
        let mut burst = Vec::with_capacity(BURST);
        for claims in self.claims.chunks(BURST) {
            burst.clear();
            burst.extend(claims.iter().map(|claim| {
                submitted(jobs, black_box(claim)).expect("Set::new judged every claim to be good")
            }));
            let mut waiting: Vec<_> = burst.iter_mut().collect();
            hash(&mut waiting);
            verdicts.extend(burst.iter().map(|share| {
                let proof = share.verdict(NOW.unix_s).outcome.ok()?;
                Some(proof.hash).filter(|hash| seen.insert(hash))
            }));
        }
    }

    /// Decoded messages into a fresh server, `burst` of them between two looks at what came of it. A
    /// full batch is answered as if it were committed, so the answer to the miner is made here, too.
    fn through_server(&self, burst: usize, verdicts: &mut Vec<Verdict>) -> Result<f64> {
        let mut server = self.world.server()?;
        let mut out = Outbox::default();
        try_time(self.messages.len(), || {
            for messages in self.messages.chunks(burst) {
                server_takes(&mut server, messages, &mut out, verdicts)?;
            }
            server.close_batch(&mut out);
            settle(&mut server, &mut out, verdicts)
        })
    }

    /// Allocations of one share of ours and of SRI's.
    fn allocations(&self) -> Result<[f64; 2]> {
        let count = self.claims.len() as f64;
        let mut verdicts = Vec::with_capacity(self.claims.len());
        let (jobs, mut seen) = (self.jobs(), Seen::default());
        let (ours, ()) = allocations::during(|| self.singly(&jobs, &mut seen, &mut verdicts));
        let (mut channel, shares) = (Channel::new(&self.world)?, self.theirs.clone());
        verdicts.clear();
        let (theirs, ()) = allocations::during(|| {
            verdicts.extend(shares.into_iter().map(|share| channel.validate(share)));
        });
        Ok([ours.allocations as f64 / count, theirs.allocations as f64 / count])
    }
}

/// The job that a claim names, looked for as the mining server does, and the header made of both.
#[inline]
fn submitted<'a>(
    jobs: &'a [(JobId, FrozenJob<'a>)],
    claim: &Claim,
) -> Result<Submitted<'a>, Refusal> {
    let found = jobs.iter().rfind(|(id, _)| *id == claim.job);
    let (_, job) = found.ok_or(Refusal::InvalidJobId)?;
    Submitted::new(job, claim)
}

fn judged(jobs: &[(JobId, FrozenJob<'_>)], claim: &Claim) -> Result<[u8; 32], Refusal> {
    let mut share = submitted(jobs, claim)?;
    hash(&mut [&mut share]);
    share.verdict(NOW.unix_s).outcome.map(|proof| proof.hash)
}

fn server_takes(
    server: &mut Server,
    messages: &[Message<'_>],
    out: &mut Outbox,
    verdicts: &mut Vec<Verdict>,
) -> Result<()> {
    for message in messages {
        server.handle(NOW, Input::Message(*black_box(message), Tlvs::NONE), out)?;
    }
    server.handle(NOW, Input::BurstEnd, out)?;
    settle(server, out, verdicts)
}

/// Takes what the server wants done: its good shares are credited, its refusals noted.
fn settle(server: &mut Server, out: &mut Outbox, verdicts: &mut Vec<Verdict>) -> Result<()> {
    while let Some(effect) = out.effects.pop() {
        match effect {
            Effect::Credit(batch) => {
                let proofs = batch.groups.iter().flat_map(|group| &group.proofs);
                verdicts.extend(proofs.map(|proof| Some(proof.hash)));
                let committed = Committed { id: batch.id, duplicates: Vec::new() };
                server.handle(NOW, Input::Committed(committed), out)?;
            }
            Effect::Refused { .. } => verdicts.push(None),
            Effect::BlockFound(_)
            | Effect::Acknowledged { .. }
            | Effect::Opened(_)
            | Effect::OpenRefused(_)
            | Effect::CustomJob(_)
            | Effect::CustomAccepted(_)
            | Effect::CustomRefused(_)
            | Effect::Closed(..) => {}
        }
    }
    out.frames.clear();
    Ok(())
}

/// Good and bad shares in turn, at a target that half of them miss, twice over: what one side takes the
/// other takes, with the same hash, and what one refuses the other refuses.
fn mixed_verdicts_agree(kind: Kind, count: usize) -> Result<()> {
    let world = World::new(kind, Difficulty::from_log2(-31))?;
    let jobs = [(world.job_id, world.frozen())];
    let (mut seen, mut channel) = (Seen::default(), Channel::new(&world)?);
    let mut server = world.server()?;
    let (mut taken, mut refused) = (0, 0);
    for number in (0..count as u32).flat_map(|number| [number, number / 2]) {
        let claim = spoilt(world.claim(number), number);
        let ours = judged(&jobs, &claim).ok().filter(|hash| seen.insert(hash));
        let theirs = channel.validate(sri::submit(&claim, number)?);
        ensure!(ours == theirs, "share {number}: ours {ours:02x?}, SRI {theirs:02x?}");
        let (mut out, mut verdicts) = (Outbox::default(), Vec::new());
        server_takes(&mut server, &[submit(&claim, number)], &mut out, &mut verdicts)?;
        server.close_batch(&mut out);
        settle(&mut server, &mut out, &mut verdicts)?;
        ensure!(
            verdicts == [ours],
            "share {number}: the server {verdicts:02x?}, alone {ours:02x?}"
        );
        *(if ours.is_some() { &mut taken } else { &mut refused }) += 1;
    }
    ensure!(
        taken > count / 8 && refused > count / 8,
        "{taken} taken, {refused} refused of {count}"
    );
    Ok(())
}

/// Every eighth claim keeps its place with one thing wrong that both sides refuse.
fn spoilt(mut claim: Claim, number: u32) -> Claim {
    match number % 40 {
        3 => claim.job = JobId(claim.job.0 + 1_000),
        11 => claim.version ^= 1,
        19 => claim.ntime = NOW.unix_s - 1,
        // SRI allows 7,200 s, we allow less.
        27 => claim.ntime = NOW.unix_s + 7_201,
        35 => claim.rolled = claim.rolled.and(B032::new(&[7; 15]).ok()),
        _ => {}
    }
    claim
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    const BOTH: Cpu = Cpu { sha: true, avx512: true };
    const SHA: Cpu = Cpu { sha: true, avx512: false };
    const AVX512: Cpu = Cpu { sha: false, avx512: true };
    const NEITHER: Cpu = Cpu { sha: false, avx512: false };

    /// Of a burst that is so many times as fast as SRI.
    fn burst(cpu: Cpu, kind: Kind, ratio: f64) -> Verdict {
        burst_row(cpu, kind, Cost::exact(1.0), Cost::exact(ratio)).verdict(cpu)
    }

    #[test]
    fn an_extended_burst_is_judged_by_avx512_where_it_is_and_by_sha_ni_where_only_that_is() {
        for (cpu, least) in [(BOTH, 5.0), (AVX512, 5.0), (SHA, 3.0)] {
            assert_eq!(burst(cpu, Kind::Extended, least), Verdict::Met, "{cpu}");
            assert_eq!(burst(cpu, Kind::Extended, least - 0.01), Verdict::Missed, "{cpu}");
        }
    }

    #[test]
    fn a_standard_burst_has_one_goal_on_every_cpu_that_hashes_bursts() {
        for cpu in [BOTH, AVX512, SHA] {
            assert_eq!(burst(cpu, Kind::Standard, 5.0), Verdict::Met, "{cpu}");
            assert_eq!(burst(cpu, Kind::Standard, 4.99), Verdict::Missed, "{cpu}");
        }
    }

    #[test]
    fn no_burst_is_judged_where_neither_is() {
        for kind in [Kind::Extended, Kind::Standard] {
            assert_eq!(burst(NEITHER, kind, 1.0), Verdict::NotHere(Needs::ShaOrAvx512));
        }
    }

    #[test]
    fn a_lone_share_is_judged_by_sha_ni_alone() {
        for kind in [Kind::Extended, Kind::Standard] {
            let row = single_row(kind, Cost::exact(1.0), Cost::exact(1.0));
            for cpu in [BOTH, SHA] {
                assert_eq!(row.verdict(cpu), Verdict::Missed, "{cpu}");
            }
            for cpu in [AVX512, NEITHER] {
                assert_eq!(row.verdict(cpu), Verdict::NotHere(Needs::Sha), "{cpu}");
            }
        }
    }
}
