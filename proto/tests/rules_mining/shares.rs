//! Which shares are good: rules P40 to P48, P50, P51, P53 and G19.

use std::collections::BTreeSet;

use proptest::prelude::*;

use proto::connection::Violation;
use proto::extranonce::ExtranoncePrefix;
use proto::job::JobId;
use proto::limits::{
    EARLY_SHARE_WAIT_MS, EARLY_SHARES_MAX, EXTRANONCE_ROLLABLE_LEN, NTIME_AHEAD_MAX_S,
    NTIME_SLACK_S, PAST_JOBS_MAX, REFUSED_IN_A_ROW_MAX, STALE_JOBS_MAX, VARDIFF_CHECK_MS,
    VERSION_ROLLING_MASK,
};
use proto::message::{SubmitSharesExtended, Tlvs};
use proto::mining::Kind;
use proto::mining::server::{Effect, Input, Outbox, Policy};
use proto::share::{Claim, FrozenJob, Refusal};
use proto::target::{Difficulty, Target};
use proto::template::{Template, merkle_path, merkle_root, sha256d};
use proto::wire::B032;

use crate::common::{
    ANY_TARGET, Chain, HARD_NBITS, JobBody, Ledger, Link, REGTEST_NBITS, START_S, Said, Share,
    easy_policy, hashed, judge, kept,
};

/// A job as channel `prefix` was given it, with the easiest target there is.
fn frozen(chain: &Chain, prefix: [u8; 8]) -> FrozenJob<'static> {
    let active = chain.active();
    let difficulty = Difficulty::MIN;
    FrozenJob {
        job: kept(active.job.clone()),
        tip: kept(active.tip),
        network_target: kept(Target::from_compact(active.tip.nbits)),
        difficulty,
        target: Target::MAX,
        min_ntime: active.tip.min_ntime,
        since: START_S,
        prefix: ExtranoncePrefix::from_bytes(prefix),
        merkle_root: None,
        version_rolling: true,
    }
}

fn claim_on(job: &FrozenJob<'_>) -> Claim {
    Claim {
        job: JobId(1),
        nonce: 7,
        ntime: job.min_ntime,
        version: job.job.version(),
        rolled: Some(B032::new(&[3; EXTRANONCE_ROLLABLE_LEN]).unwrap()),
    }
}

/// The only thing said must be a refusal of this share.
fn refusal(said: &[Said], share: &Share) -> String {
    match said {
        [Said::Refused { channel, sequence, code }] => {
            assert_eq!((*channel, *sequence), (share.channel, share.sequence));
            code.clone()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hash_at_the_target_is_good_and_one_above_it_is_not_p40() {
    let mut job = frozen(&Chain::new(HARD_NBITS), [1; 8]);
    let claim = claim_on(&job);
    let hash = hashed(&job, &claim).header().hash();
    job.target = Target::from_le_bytes(hash);
    assert!(judge(&job, &claim, START_S).outcome.is_ok());
    let mut below = hash;
    below[0] = hash[0].checked_sub(1).expect("this header's lowest byte is not 0");
    job.target = Target::from_le_bytes(below);
    assert_eq!(judge(&job, &claim, START_S).outcome, Err(Refusal::DifficultyTooLow));
}

#[test]
fn the_target_that_was_said_is_the_one_that_is_kept_p40() {
    let floor = Difficulty::from_log2(-28);
    for kind in [Kind::Standard, Kind::Extended] {
        let policy = Policy { floor, ..easy_policy() };
        let mut link = Link::with(policy, 0, Chain::new(HARD_NBITS).active());
        let channel = link.open_at_floor(kind);
        let work = link.client.work(channel).clone();
        for _ in 0..20 {
            let share = link.client.share_on(channel, &work);
            let good = work.target.is_met_by(&link.client.hash(&work, &share));
            let said = link.submit(&share);
            assert_eq!(said.is_empty(), good);
            assert!(good || refusal(&said, &share) == "difficulty-too-low");
        }
        let share = link.client.good_share(channel);
        assert!(link.submit(&share).is_empty());
    }
}

/// Merkle paths over other selections and orders of a template's transactions.
fn other_paths(template: &Template) -> Vec<Vec<[u8; 32]>> {
    let txids: Vec<[u8; 32]> =
        template.known_transactions().iter().map(|body| sha256d(body)).collect();
    let (mut swapped, mut repeated) = (txids.clone(), txids.clone());
    swapped.swap(0, 1);
    repeated[2] = repeated[3];
    let reversed: Vec<[u8; 32]> = txids.iter().rev().copied().collect();
    let orders = [&swapped, &reversed, &repeated, &txids[1..], &txids[..5], &[]];
    orders.into_iter().map(merkle_path).collect()
}

#[test]
fn other_transactions_or_another_order_of_them_are_no_search_space_g19() {
    let mut chain = Chain::new(HARD_NBITS);
    chain.transactions = 6;
    let active = chain.advance();
    let template = active.job.template();
    for kind in [Kind::Standard, Kind::Extended] {
        let policy = Policy { floor: Difficulty::from_log2(-26), ..easy_policy() };
        let mut link = Link::with(policy, 0, active.clone());
        let channel = link.open_at_floor(kind);
        let honest = link.client.work(channel).clone();
        let device = link.client.device(channel);
        let coinbase = active.job.numbered(JobId(honest.job)).coinbase();
        // What a standard channel's root is made of it knows only if it knows the pool's coinbase.
        let txid = sha256d(&[&coinbase.prefix, &device.prefix[..], &coinbase.suffix].concat());
        for other in other_paths(template) {
            assert_ne!(other, template.merkle_path);
            let mut work = honest.clone();
            match &mut work.body {
                JobBody::Standard { merkle_root: root } => *root = merkle_root(txid, &other),
                JobBody::Extended { path, .. } => *path = other,
            }
            // Good by its own path and, as one in 64 would be by luck, not by the template's.
            let share = loop {
                let share = link.client.good_share_on(channel, &work);
                if !honest.target.is_met_by(&link.client.hash(&honest, &share)) {
                    break share;
                }
            };
            assert_eq!(refusal(&link.submit(&share), &share), "difficulty-too-low");
        }
        let share = link.client.good_share(channel);
        assert!(link.submit(&share).is_empty(), "over the template's own it is one");
    }
}

#[test]
fn a_running_job_keeps_its_target_and_the_next_has_the_new_p41() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let old = link.client.work(channel).clone();
    let harder = Difficulty::from_log2(-28).target();
    let easy_hash = |hash: &[u8; 32]| old.target.is_met_by(hash) && !harder.is_met_by(hash);
    let before = link.client.grind(channel, &old, easy_hash);

    link.update(channel, 0.0, harder.to_le_bytes());
    assert!(link.submit(&before).is_empty(), "sent at the target of its time");
    let behind = link.client.work(channel).clone();
    assert_eq!(behind.target, harder);
    let after = link.client.grind(channel, &behind, easy_hash);
    assert_eq!(refusal(&link.submit(&after), &after), "difficulty-too-low");

    // A job that was waiting when the target changed starts with the new one.
    link.template(chain.advance());
    let started = link.client.work(channel).clone();
    let late = link.client.grind(channel, &started, easy_hash);
    assert_eq!(refusal(&link.submit(&late), &late), "difficulty-too-low");
    let good = link.client.good_share(channel);
    assert!(link.submit(&good).is_empty());
}

#[test]
fn ntime_runs_from_the_jobs_start_as_far_as_time_went_by_p42() {
    let mut chain = Chain::new(HARD_NBITS);
    chain.advance_at(START_S - 1_000);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let work = link.client.work(channel).clone();
    let verdict = |link: &mut Link, ntime: u32| {
        let target = work.target;
        let mut share = link.client.share_on(channel, &work);
        share.ntime = ntime;
        while !target.is_met_by(&link.client.hash(&work, &share)) {
            share.nonce += 1_000_000;
        }
        let said = link.submit(&share);
        said.is_empty().then_some(()).ok_or_else(|| refusal(&said, &share))
    };
    let start = work.min_ntime;
    let refused = Err("invalid-ntime".to_string());
    assert_eq!(verdict(&mut link, start - 1), refused);
    assert_eq!(verdict(&mut link, start), Ok(()));
    assert_eq!(verdict(&mut link, start + NTIME_SLACK_S), Ok(()));
    assert_eq!(verdict(&mut link, start + NTIME_SLACK_S + 1), refused);
    assert_eq!(verdict(&mut link, 0), refused);
    assert_eq!(verdict(&mut link, u32::MAX), refused);
    link.now.unix_s += 100;
    assert_eq!(verdict(&mut link, start + NTIME_SLACK_S + 100), Ok(()));
    assert_eq!(verdict(&mut link, start + NTIME_SLACK_S + 101), refused);
}

#[test]
fn ntime_never_runs_further_ahead_of_our_clock_than_a_block_may_p42() {
    let mut chain = Chain::new(HARD_NBITS);
    chain.advance_at(START_S + NTIME_AHEAD_MAX_S - 10);
    let job = frozen(&chain, [1; 8]);
    let at = |ntime| judge(&job, &Claim { ntime, ..claim_on(&job) }, START_S).outcome.is_ok();
    assert!(at(START_S + NTIME_AHEAD_MAX_S));
    assert!(!at(START_S + NTIME_AHEAD_MAX_S + 1));
    // A tip that starts later still can be mined at its start and nowhere else.
    chain.advance_at(START_S + 2 * NTIME_AHEAD_MAX_S);
    let job = frozen(&chain, [1; 8]);
    let at = |ntime| judge(&job, &Claim { ntime, ..claim_on(&job) }, START_S).outcome.is_ok();
    assert!(at(job.min_ntime) && !at(job.min_ntime + 1) && !at(job.min_ntime - 1));
}

#[test]
fn ntime_rolled_once_a_second_is_good_for_hours_p43() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let work = link.client.work(channel).clone();
    for second in 0..20_000 {
        link.now.unix_s = START_S + second;
        if second % 500 == 0 {
            let mut share = link.client.share_on(channel, &work);
            share.ntime = work.min_ntime + second;
            while !work.target.is_met_by(&link.client.hash(&work, &share)) {
                share.nonce += 1_000_000;
            }
            assert!(link.submit(&share).is_empty(), "after {second} s");
        }
    }
}

#[test]
fn only_the_granted_extranonce_length_is_taken_p44() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let granted = link.client.device(channel).rollable;
    for wrong in [0, granted - 1, granted + 1, 32] {
        let mut share = link.client.good_share(channel);
        share.rolled = Some(vec![0; wrong]);
        assert_eq!(refusal(&link.submit(&share), &share), "bad-extranonce-size", "{wrong}");
    }
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
}

#[test]
fn only_the_rollable_version_bits_may_differ_p45() {
    for kind in [Kind::Standard, Kind::Extended] {
        let mut link = Link::new(&Chain::new(HARD_NBITS));
        let channel = link.open_at_floor(kind);
        let work = link.client.work(channel).clone();
        for bit in 0..32 {
            let mut share = link.client.share_on(channel, &work);
            share.version ^= 1 << bit;
            while !work.target.is_met_by(&link.client.hash(&work, &share)) {
                share.nonce += 1_000_000;
            }
            let said = link.submit(&share);
            if VERSION_ROLLING_MASK & (1 << bit) != 0 {
                assert!(said.is_empty(), "bit {bit}");
            } else {
                assert_eq!(refusal(&said, &share), "invalid-non-rollable-version-bit", "{bit}");
            }
        }
    }
}

#[test]
fn a_job_that_forbids_rolling_takes_its_version_alone_p45() {
    let mut job = frozen(&Chain::new(HARD_NBITS), [1; 8]);
    job.version_rolling = false;
    let claim = claim_on(&job);
    assert!(judge(&job, &claim, START_S).outcome.is_ok());
    let rolled = Claim { version: claim.version ^ (1 << 13), ..claim };
    let outcome = judge(&job, &rolled, START_S).outcome;
    assert_eq!(outcome, Err(Refusal::VersionRollingNotAllowed));
}

#[test]
fn the_other_kinds_submit_message_is_refused_p46() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let standard = link.open_at_floor(Kind::Standard);
    let extended = link.open_at_floor(Kind::Extended);
    let mut share = link.client.good_share(standard);
    share.rolled = Some(vec![0; EXTRANONCE_ROLLABLE_LEN]);
    assert_eq!(refusal(&link.submit(&share), &share), "invalid-channel-id");
    let mut share = link.client.good_share(extended);
    share.rolled = None;
    assert_eq!(refusal(&link.submit(&share), &share), "invalid-channel-id");
}

#[test]
fn an_unknown_channel_or_job_is_named_with_the_shares_number_p47() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let good = link.client.good_share(channel);
    for id in [0, 1, channel + 1, u32::MAX] {
        let share = Share { channel: id, ..good.clone() };
        assert_eq!(refusal(&link.submit(&share), &share), "invalid-channel-id");
    }
    for job in [0, 1_000, u32::MAX] {
        let share = Share { job, sequence: job, ..good.clone() };
        assert_eq!(refusal(&link.submit(&share), &share), "invalid-job-id");
    }
}

#[test]
fn another_channels_job_is_unknown_here_p47() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let one = link.open_at_floor(Kind::Extended);
    let other = link.open_at_floor(Kind::Extended);
    let mut share = link.client.good_share(one);
    share.channel = other;
    assert_eq!(refusal(&link.submit(&share), &share), "invalid-job-id");
}

#[test]
fn the_newest_jobs_of_a_tip_are_good_and_one_older_is_unknown_p47() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let oldest = link.client.good_share(channel);
    for _ in 0..PAST_JOBS_MAX {
        link.template(chain.fuller());
    }
    assert!(link.submit(&oldest).is_empty());
    link.template(chain.fuller());
    assert_eq!(refusal(&link.submit(&oldest), &oldest), "invalid-job-id");
}

#[test]
fn the_newest_jobs_of_a_tip_that_ended_are_stale_and_one_older_is_unknown() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    // The job that the channel was opened with is its own; these are everybody's.
    link.template(chain.fuller());
    let too_old = link.client.good_share(channel);
    link.template(chain.fuller());
    let oldest = link.client.good_share(channel);
    for _ in 1..STALE_JOBS_MAX {
        link.template(chain.fuller());
    }
    link.template(chain.reorganise());
    assert_eq!(refusal(&link.submit(&too_old), &too_old), "invalid-job-id");
    assert_eq!(refusal(&link.submit(&oldest), &oldest), "stale-share");
}

#[test]
fn each_bad_share_is_told_at_once_and_one_by_one_p48() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    for _ in 0..200 {
        let mut share = link.client.good_share(channel);
        share.ntime = 1;
        assert_eq!(refusal(&link.submit(&share), &share), "invalid-ntime");
    }
    let view = link.server.channels().next().unwrap();
    assert_eq!(view.tally.refused[Refusal::InvalidNtime as usize], 200);
    assert_eq!(Refusal::ALL[Refusal::InvalidNtime as usize], Refusal::InvalidNtime);
}

#[test]
fn a_flood_of_bad_shares_ends_and_one_good_share_starts_the_count_anew() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let bad = Share { ntime: 1, ..link.client.good_share(channel) };
    let submit = |link: &mut Link, share: &Share, times: u32| {
        for _ in 0..times {
            link.submit(share);
        }
    };
    submit(&mut link, &bad, REFUSED_IN_A_ROW_MAX - 1);
    let good = link.client.good_share(channel);
    assert!(link.submit(&good).is_empty());
    submit(&mut link, &bad, REFUSED_IN_A_ROW_MAX - 1);
    let rolled = B032::new(&bad.rolled.unwrap()).unwrap();
    let last = SubmitSharesExtended {
        channel_id: channel,
        sequence_number: 1,
        job_id: bad.job,
        nonce: 0,
        ntime: 1,
        version: bad.version,
        extranonce: rolled,
    };
    let mut out = Outbox::default();
    // The last is still answered; the next word is one too many.
    let message = || Input::Message(last.into(), Tlvs::NONE);
    link.server.handle(link.now, message(), &mut out).unwrap();
    link.server.handle(link.now, Input::BurstEnd, &mut out).unwrap();
    assert!(!out.frames.is_empty());
    let over = link.server.handle(link.now, message(), &mut out);
    assert_eq!(over, Err(Violation::OnlyBadShares(REFUSED_IN_A_ROW_MAX)));
}

#[test]
fn a_header_is_credited_once_p50() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
    assert_eq!(refusal(&link.submit(&share), &share), "duplicate-share");
    link.template(Chain::new(HARD_NBITS).fuller());
    let again = Share { sequence: 99, ..share };
    assert_eq!(refusal(&link.submit(&again), &again), "duplicate-share");
}

#[test]
fn no_header_belongs_to_two_jobs_p50_r36() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channels = [link.open_at_floor(Kind::Standard), link.open_at_floor(Kind::Extended)];
    // A refresh, a new difficulty, a template that brings nothing new.
    link.pass(30_000);
    for channel in channels {
        link.update(channel, 0.0, Difficulty::from_log2(-31).target().to_le_bytes());
    }
    link.template(chain.fuller());
    link.template(chain.active());
    for channel in channels {
        let works = link.client.device(channel).works.clone();
        assert!(works.len() >= 4);
        let plain = link.client.share_on(channel, &works[0]);
        let roots: BTreeSet<[u8; 32]> =
            works.iter().map(|work| link.client.header(work, &plain).merkle_root).collect();
        assert_eq!(roots.len(), works.len());
    }
}

#[test]
fn a_tip_that_only_moves_its_start_forgets_no_share_p50_r14() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
    chain.min_ntime += 1;
    link.template(chain.fuller());
    assert_eq!(refusal(&link.submit(&share), &share), "duplicate-share");
}

#[test]
fn a_share_is_judged_with_the_prefix_of_its_job_p51() {
    let chain = Chain::new(HARD_NBITS);
    let (before, after) = (frozen(&chain, [1; 8]), frozen(&chain, [2; 8]));
    let claim = claim_on(&before);
    let root = |job| hashed(job, &claim).header().merkle_root;
    assert_ne!(root(&before), root(&after));
    let full = before.prefix.followed_by(&[3; EXTRANONCE_ROLLABLE_LEN]).unwrap();
    assert_eq!(root(&before), before.job.merkle_root(&full));
}

#[test]
fn a_share_from_a_client_that_is_ahead_of_us_waits_for_our_tip_p53() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let ahead = link.client.ahead(channel).unwrap();
    // What the client will be told of the tip he knows already.
    let mut told = Link::new(&chain);
    told.open_at_floor(Kind::Extended);
    let new = chain.advance();
    told.template(new.clone());
    let work = told.client.devices[&channel].works[0].clone();
    assert_eq!(work.job, ahead);
    let share = link.client.grind(channel, &work, |hash| work.target.is_met_by(hash));
    let bad = Share { ntime: 1, sequence: 50, ..share.clone() };

    assert!(link.submit(&share).is_empty() && link.submit(&bad).is_empty());
    assert!(link.batches().is_empty());
    let said = link.template(new);
    let refused = said.iter().filter_map(Said::code).collect::<Vec<_>>();
    assert_eq!(refused, ["invalid-ntime"]);
    assert!(matches!(said[0], Said::PrevHash { .. }));
    assert_eq!(link.batches().len(), 1);
}

#[test]
fn an_early_share_whose_tip_never_comes_is_refused_in_the_end_p53() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let ahead = link.client.ahead(channel).unwrap();
    for sequence in 0..EARLY_SHARES_MAX as u32 {
        let share = Share { job: ahead, sequence, ..link.client.good_share(channel) };
        assert!(link.submit(&share).is_empty());
    }
    let one_more = Share { job: ahead, sequence: 500, ..link.client.good_share(channel) };
    assert_eq!(refusal(&link.submit(&one_more), &one_more), "invalid-job-id");

    let said = link.pass(EARLY_SHARE_WAIT_MS - 1);
    assert_eq!(said.iter().filter_map(Said::code).count(), 0);
    let said = link.pass(VARDIFF_CHECK_MS + 1);
    assert_eq!(said.iter().filter_map(Said::code).count(), EARLY_SHARES_MAX);
}

#[test]
fn an_early_share_of_a_closed_channel_is_forgotten_p53_p13() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    link.open_at_floor(Kind::Extended);
    let ahead = link.client.ahead(channel).unwrap();
    let share = Share { job: ahead, ..link.client.good_share(channel) };
    link.submit(&share);
    link.close(channel);
    let said = link.template(chain.advance());
    assert_eq!(said.iter().filter_map(Said::code).count(), 0);
    let said = link.pass(2 * EARLY_SHARE_WAIT_MS);
    assert_eq!(said.iter().filter_map(Said::code).count(), 0);
}

#[test]
fn a_block_goes_out_whatever_else_is_wrong_with_its_share() {
    let mut link = Link::new(&Chain::new(REGTEST_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let work = link.client.work(channel).clone();
    let network = Target::from_compact(REGTEST_NBITS);
    type Spoil = fn(&mut Share);
    let cases: [(Spoil, &str); 3] = [
        (|share| share.ntime -= 1, "invalid-ntime"),
        (|share| share.ntime += 50_000, "invalid-ntime"),
        (|share| share.version ^= 1, "invalid-non-rollable-version-bit"),
    ];
    for (spoil, code) in cases {
        let mut share = link.client.share_on(channel, &work);
        spoil(&mut share);
        while !network.is_met_by(&link.client.hash(&work, &share)) {
            share.nonce += 1_000_000;
        }
        assert_eq!(refusal(&link.submit(&share), &share), code);
        let blocks = link.blocks();
        assert_eq!(blocks.len(), 1, "{code}");
        assert_eq!(blocks[0].header, link.client.header(&work, &share));
    }
    assert!(link.batches().is_empty());
}

#[test]
fn a_block_on_a_stale_job_goes_out_and_is_not_credited() {
    let mut chain = Chain::new(REGTEST_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Standard);
    let work = link.client.work(channel).clone();
    let network = Target::from_compact(REGTEST_NBITS);
    let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
    link.template(chain.advance());
    assert_eq!(refusal(&link.submit(&share), &share), "stale-share");
    assert_eq!(link.blocks().len(), 1);
    assert!(link.batches().is_empty());
}

#[test]
fn a_block_is_sent_once_however_often_its_share_comes_r13() {
    let mut chain = Chain::new(REGTEST_NBITS);
    let mut link = Link::new(&chain);
    let channel = link.open_at_floor(Kind::Extended);
    let network = Target::from_compact(REGTEST_NBITS);
    let work = link.client.work(channel).clone();
    let good = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
    let mut early = link.client.share_on(channel, &work);
    early.ntime -= 1;
    while !network.is_met_by(&link.client.hash(&work, &early)) {
        early.nonce += 1_000_000;
    }
    for share in [&good, &early] {
        link.submit(share);
        assert_eq!(link.blocks().len(), 1);
        // Credited, refused, and in a moment stale: the network has it already.
        link.submit(share);
        assert!(link.blocks().is_empty());
    }
    link.template(chain.advance());
    for share in [&good, &early] {
        link.submit(share);
        assert!(link.blocks().is_empty(), "sent again once stale");
    }
}

#[test]
fn a_block_comes_before_its_credit_and_is_one_effect() {
    let mut link = Link::new(&Chain::new(REGTEST_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let work = link.client.work(channel).clone();
    let network = Target::from_compact(REGTEST_NBITS);
    for _ in 0..64 {
        let share = link
            .client
            .grind(channel, &work, |hash| network.is_met_by(hash) && work.target.is_met_by(hash));
        assert!(link.submit(&share).is_empty());
    }
    let kinds: Vec<bool> =
        link.effects.iter().skip(1).map(|e| matches!(e, Effect::BlockFound(_))).collect();
    assert_eq!(kinds.iter().filter(|block| **block).count(), 64);
    assert!(matches!(link.effects.last(), Some(Effect::Credit(batch)) if batch.groups.len() == 1));
}

#[test]
fn a_block_above_its_jobs_target_is_worth_nothing_as_a_share_r36() {
    // The client asked for a target beyond the network's. Were its blocks paid at that difficulty, a
    // block would be worth 2^30 times the hashes that it took.
    let mut link = Link::new(&Chain::new(REGTEST_NBITS));
    let said = link.open(Kind::Extended, 0.0, Difficulty::from_log2(0).target().to_le_bytes());
    let Said::Opened { channel, .. } = said[0] else { panic!("{said:?}") };
    let work = link.client.work(channel).clone();
    let network = Target::from_compact(REGTEST_NBITS);
    let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
    assert!(link.submit(&share).is_empty(), "a block is no error");
    assert_eq!(link.blocks().len(), 1);
    let batches = link.batches();
    assert_eq!(batches[0].groups[0].proofs[0].difficulty, Difficulty::MIN);
}

#[test]
fn a_replay_is_credited_neither_after_a_reopen_nor_on_another_connection() {
    let chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let mut ledger = Ledger::default();
    let channel = link.open_at_floor(Kind::Extended);
    let work = link.client.work(channel).clone();
    let share = link.client.good_share(channel);
    link.submit(&share);
    link.commit(&mut ledger);
    link.close(channel);
    // Elsewhere the same nonce makes another header: whatever is credited is other work.
    let mut other = Link::on(
        proto::extranonce::ExtranonceAllocator::new(7, 10),
        easy_policy(),
        0,
        chain.active(),
    );
    for link in [&mut link, &mut other] {
        let again = link.open_at_floor(Kind::Extended);
        let mut replay = link.client.good_share(again);
        replay.nonce = share.nonce;
        link.submit(&replay);
        for batch in link.batches() {
            for proof in &batch.groups[0].proofs {
                assert!(ledger.credited.insert(proof.hash));
            }
        }
    }
    assert_ne!(work.nbits, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a submit message says, it is answered with one refusal or taken without a word.
    #[test]
    fn every_claim_has_one_answer(
        standard: bool, channel in 0u32..5, job in 0u32..6, nonce: u32, ntime: u32, version: u32,
        rolled in proptest::collection::vec(any::<u8>(), 0..=32),
    ) {
        let mut link = Link::new(&Chain::new(HARD_NBITS));
        link.open(Kind::Standard, 0.0, ANY_TARGET);
        link.open(Kind::Extended, 0.0, ANY_TARGET);
        let rolled = (!standard).then_some(rolled);
        let share = Share { channel, sequence: 3, job, nonce, ntime, version, rolled };
        let said = link.submit(&share);
        prop_assert!(said.len() <= 1);
        let its_refusal = |one: &Said| matches!(one, Said::Refused { sequence: 3, .. });
        prop_assert!(said.iter().all(its_refusal));
    }
}
