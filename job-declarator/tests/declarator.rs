//! Claims about the declarator, each from one pool's and one node's words to what devices and pools are told.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "builders outside a #[test] fail it just as well"
)]

#[path = "declarator/rig.rs"]
mod rig;

use job_declarator::declarator::{
    End, Input, Mode, Note, Options, PoolState, ShareLoss, of_suffix,
};
use job_declarator::limits::{
    BLOCKS_SENT_KEPT, CEILING_EVERY_MS, DECLARED_ANSWER_MIN_MS, FLEET_TOLD_EVERY_MS, HARD_MAX_MS,
    NODE_TARGET_KNOWN_MS, POOL_RETRY_REFUSED_MS, POOL_STAGGER_MS, SHARE_ANSWER_MAX_MS,
    SHARE_ANSWER_MIN_MS, SHARE_BATCH_MAX, SHARE_BATCH_USUAL, SHARE_NTIME_AHEAD_MAX_S,
    SHARES_REFUSED_IN_A_ROW_MAX, SHARES_UNANSWERED_MAX, SHARES_WAITING_MAX, STALE_AFTER_TIP_MS,
    STALE_BEFORE_TIP_MS, STALE_MAX_MS, STALE_RETRY_MS, STALE_TRIES_MAX, THEIR_JOBS_EVERY_MS,
};
use job_declarator::upstream::{Kind, Source};
use proto::extranonce::ExtranonceAllocator;
use proto::limits::{COINBASE_OUTPUTS_MAX, JOB_PAYLOAD_UNKNOWN_DEVICE_MAX, NTIME_AHEAD_MAX_S};
use proto::message::{
    DeclareMiningJobError, Message, Reconnect, SetCustomMiningJobError, SetCustomMiningJobSuccess,
    SetExtranoncePrefix, SetTarget,
};
use proto::mining::server::FoundBlock;
use proto::mining::{Owner, Worth};
use proto::target::Difficulty;
use proto::wire::{B032, B064K, Str0255};

use rig::{CHANNEL, DIFFICULTY, NOW_S, PREFIX, PoolJob, Rig, ends, options, outputs, template};

const OWN: Source = Source::Pool { pool: 0, kind: Kind::Own };

fn scripts(rig: &Rig) -> Vec<Vec<u8>> {
    let suffix = rig.published.last().unwrap().active.job.coinbase().suffix;
    of_suffix(&suffix).unwrap().into_iter().map(|output| output.script).collect()
}

#[test]
fn devices_work_on_a_template_before_the_pool_has_said_a_word_about_it() {
    let (mut rig, _) = Rig::at_pool();
    assert_eq!(rig.declarator.using(), OWN);
    assert_eq!(scripts(&rig), [vec![0x51]], "the pool's job");
    assert!(rig.names().contains(&"DeclareMiningJob"));
    assert!(!rig.declarator.view(rig.now_ms).work.unwrap().is_promised);
    rig.tell(Input::Template(template(2, 2)));
    assert_eq!(rig.published.last().unwrap().active.tip.hash, [2; 32]);
}

#[test]
fn shares_wait_for_the_promise_and_then_go_in_order_each_with_its_device() {
    let (mut rig, session) = Rig::at_pool();
    rig.approve(session);
    let request_id = rig.asked();
    for worker in ["attic", "shed", "attic"] {
        rig.find_as(worker, [0; 32], false);
    }
    assert_eq!(rig.names().len(), 0);
    assert_eq!(rig.tally(0).waiting, 3);
    let success = SetCustomMiningJobSuccess { channel_id: CHANNEL, request_id, job_id: 40 };
    rig.say(ends(session).0, success);
    let sent = rig.sent(|_, message, tlvs| match message {
        Message::SubmitSharesExtended(share) => {
            assert_eq!((share.job_id, share.extranonce.as_slice()), (40, &[5; 16][..]));
            let name = tlvs.worker().unwrap().unwrap().to_vec();
            Some((share.nonce, String::from_utf8(name).unwrap()))
        }
        _ => None,
    });
    let named = |nonce, name: &str| (nonce, name.to_owned());
    assert_eq!(sent, [named(1, "attic"), named(2, "shed"), named(3, "attic")]);
    rig.acknowledge(session, 3, 3);
    let tally = rig.tally(0);
    assert_eq!((tally.sent, tally.acknowledged, tally.waiting), (3, 3, 0));
}

#[test]
fn one_share_more_than_may_wait_is_let_go_and_counted() {
    let (mut rig, _) = Rig::at_pool();
    for _ in 0..=SHARES_WAITING_MAX {
        rig.find();
    }
    let tally = rig.tally(0);
    assert_eq!(tally.waiting, SHARES_WAITING_MAX as u64);
    assert_eq!(tally.lost[&ShareLoss::TooMany], 1);
}

/// The pool says of every try that its tip is an old one.
fn say_stale(rig: &mut Rig, session: u64) {
    for tries in 1..=STALE_TRIES_MAX {
        assert!(!rig.notes.contains(&Note::NodeBehind), "{tries}");
        rig.approve(session);
        rig.give_tokens(session, &[0x51]);
        let (channel_id, request_id) = (CHANNEL, rig.asked());
        let error_code = Str0255::text("stale-chain-tip");
        rig.say(ends(session).0, SetCustomMiningJobError { channel_id, request_id, error_code });
        assert!(!rig.names().contains(&"DeclareMiningJob"), "not at once");
        if tries < STALE_TRIES_MAX {
            rig.wait(STALE_RETRY_MS << (tries - 1));
        }
    }
}

#[test]
fn a_stale_tip_is_asked_about_again_and_when_every_pool_says_so_the_node_is_behind() {
    let (mut rig, session) = Rig::at_pool();
    say_stale(&mut rig, session);
    assert!(rig.notes.contains(&Note::NodeBehind));
    assert!(rig.declarator.view(rig.now_ms).node_away.unwrap().contains("old one"));
    rig.tell(Input::Template(template(2, 2)));
    assert_eq!(rig.declarator.view(rig.now_ms).node_away, None, "another tip, another try");
}

/// The pool takes so long to say of the newest try that its tip is an old one.
fn say_stale_after(rig: &mut Rig, session: u64, ms: u64) {
    rig.approve(session);
    rig.give_tokens(session, &[0x51]);
    let (channel_id, request_id) = (CHANNEL, rig.asked());
    rig.wait(ms);
    let error_code = Str0255::text("stale-chain-tip");
    rig.say(ends(session).0, SetCustomMiningJobError { channel_id, request_id, error_code });
}

#[test]
fn a_pool_that_takes_its_time_to_say_stale_is_asked_for_eight_seconds_and_not_six_times() {
    let (mut rig, session) = Rig::at_pool();
    let mut tries = 0;
    while !rig.notes.contains(&Note::NodeBehind) {
        tries += 1;
        say_stale_after(&mut rig, session, 4_000);
        rig.wait(STALE_RETRY_MS << (tries - 1));
    }
    assert_eq!(tries, 3, "the second is four seconds after the first");
}

#[test]
fn the_last_try_is_not_put_off_beyond_eight_seconds_and_a_pool_is_never_left_by_one_word() {
    let (mut rig, session) = Rig::at_pool();
    say_stale_after(&mut rig, session, 9_000);
    assert!(!rig.notes.contains(&Note::NodeBehind), "one word, however late");
    let first_ms = rig.now_ms;
    for tries in 1..STALE_TRIES_MAX - 1 {
        rig.wait(STALE_RETRY_MS << (tries - 1));
        say_stale_after(&mut rig, session, 200);
        assert!(!rig.notes.contains(&Note::NodeBehind), "{tries}");
    }
    rig.wait(first_ms + STALE_MAX_MS - 1 - rig.now_ms);
    assert!(!rig.names().contains(&"DeclareMiningJob"));
    rig.wait(1);
    say_stale_after(&mut rig, session, 200);
    assert!(rig.notes.contains(&Note::NodeBehind));
    assert!(!rig.names().contains(&"DeclareMiningJob"), "nor asked at once again");
}

#[test]
fn newer_templates_and_other_addresses_do_not_make_a_pool_that_says_stale_start_anew() {
    let (mut rig, session) = Rig::at_pool();
    // The first tokens are for one address, and each that follows is for the other of two.
    let script = |number: u8| if number.is_multiple_of(2) { [0x51] } else { [0x53] };
    for number in 1..=2 * STALE_TRIES_MAX as u8 {
        rig.approve(session);
        rig.give_tokens(session, &script(number));
        let (channel_id, request_id) = (CHANNEL, rig.asked());
        rig.tell(Input::Template(template(1, number + 1)));
        let error_code = Str0255::text("stale-chain-tip");
        rig.say(ends(session).0, SetCustomMiningJobError { channel_id, request_id, error_code });
        if rig.notes.contains(&Note::NodeBehind) {
            assert_eq!(u32::from(number), STALE_TRIES_MAX);
            return;
        }
        rig.wait(STALE_RETRY_MS << (number - 1).min(16));
    }
    panic!("still at it");
}

fn is_away(rig: &mut Rig, pool: usize) {
    let (mining, _) = ends(rig.session(pool));
    rig.tell(Input::LinkDown(mining, "refused".to_owned()));
}

/// The pool has a tip that our node does not have, and devices are on it.
fn follows(rig: &mut Rig, pool: usize) {
    assert!(rig.notes.contains(&Note::NodeBehind));
    let theirs = rig.open_theirs(pool);
    rig.give_job(theirs, 8);
    assert_eq!(rig.declarator.using(), Source::Pool { pool, kind: Kind::Theirs });
    assert_eq!(rig.published.last().unwrap().active.tip.hash, [8; 32]);
}

#[test]
fn one_pool_that_is_away_keeps_nobody_on_a_tip_that_is_old_to_the_other() {
    let mut rig = Rig::new(options(2));
    let session = rig.make_ready(0, &[0x51]);
    say_stale(&mut rig, session);
    assert!(!rig.notes.contains(&Note::NodeBehind), "the other may know better");
    is_away(&mut rig, 1);
    follows(&mut rig, 0);
    rig.tell(Input::Template(template(8, 2)));
    assert!(rig.session(0) > session, "and no pause is left of what was true");
    rig.make_ready(0, &[0x51]);
    rig.wait(100);
    assert_eq!(rig.declarator.using(), OWN);
}

#[test]
fn a_pool_that_has_not_come_back_yet_is_not_waited_for_by_a_node_that_is_behind() {
    let mut rig = Rig::new(options(2));
    is_away(&mut rig, 0);
    let session = rig.make_ready(1, &[0x51]);
    say_stale(&mut rig, session);
    assert!(!rig.hung.contains(&ends(session).0), "nor is the one that says so left");
    // Asked for its own job first, being preferred.
    is_away(&mut rig, 0);
    follows(&mut rig, 1);
}

#[test]
fn a_pool_alone_in_calling_our_tip_old_is_not_believed_while_another_is_there() {
    let mut rig = Rig::new(options(2));
    let session = rig.make_ready(0, &[0x51]);
    say_stale(&mut rig, session);
    rig.wait(POOL_STAGGER_MS - 1);
    let other = rig.make_ready(1, &[0x51]);
    rig.promise(other, 1);
    assert_eq!(rig.declarator.using(), Source::Pool { pool: 1, kind: Kind::Own });
    for _ in 0..4 {
        rig.wait(POOL_RETRY_REFUSED_MS);
        is_away(&mut rig, 0);
    }
    assert!(!rig.notes.contains(&Note::NodeBehind));
    assert_eq!(rig.declarator.using(), Source::Pool { pool: 1, kind: Kind::Own });
}

#[test]
fn a_pool_that_was_behind_itself_has_the_own_templates_back_when_it_follows() {
    let (mut rig, session) = Rig::at_pool();
    say_stale(&mut rig, session);
    let theirs = rig.open_theirs(0);
    rig.give_job(theirs, 8);
    assert_eq!(rig.declarator.using(), Source::Pool { pool: 0, kind: Kind::Theirs });
    assert_eq!(rig.published.last().unwrap().active.tip.hash, [8; 32]);
    assert!(rig.declarator.view(rig.now_ms).node_away.is_some());
    rig.give_job(theirs, 1);
    assert_eq!(rig.declarator.view(rig.now_ms).node_away, None);
    assert!(rig.session(0) > theirs, "and is dialled for them");
}

#[test]
fn outputs_beyond_the_owners_limit_end_the_session_by_name() {
    let mut rig = Rig::new(options(1));
    let session = rig.make_ready(0, &[0x99]);
    assert!(rig.hung.contains(&ends(session).0) && rig.hung.contains(&ends(session).1));
    let view = rig.declarator.view(rig.now_ms);
    assert!(view.pools[0].is_beyond_limit);
    let (_, why) = view.pools[0].last_failure.clone().unwrap();
    assert!(why.contains("100 %") && why.contains("reward_to_others_max_percent"), "{why}");
    assert!(matches!(view.pools[0].state, PoolState::Waiting { .. }));
    assert_eq!(scripts(&rig), [vec![0x52]], "solo");
}

fn block(rig: &Rig) -> Box<FoundBlock> {
    let active = &rig.published.last().unwrap().active;
    let mut extranonce = [3; 24];
    extranonce[8..].copy_from_slice(&[5; 16]);
    Box::new(FoundBlock {
        hash: [0; 32],
        header: proto::job::HeaderFields {
            version: 1,
            prev_hash: active.tip.hash,
            merkle_root: [0; 32],
            ntime: 2,
            nbits: 3,
            nonce: 4,
        },
        extranonce,
        job: active.job.clone(),
        worth: Worth::POOL_JOB,
        owner: Owner { account: "house".into(), worker: "shed".into() },
    })
}

fn pushed(rig: &mut Rig) -> Vec<Vec<u8>> {
    rig.sent(|link, message, _| match message {
        Message::PushSolution(push) => {
            assert_eq!(link.end, End::Declare);
            Some(push.extranonce.as_slice().to_vec())
        }
        _ => None,
    })
}

#[test]
fn a_block_is_pushed_with_the_extranonce_that_the_pool_knows() {
    let (mut rig, _) = Rig::promised();
    let block = block(&rig);
    rig.tell(Input::Block(block));
    let full = [&PREFIX[..], &[5; 16]].concat();
    assert_eq!(pushed(&mut rig), [full]);
}

#[test]
fn what_a_pool_grants_beyond_a_houses_extranonce_stays_zero() {
    let mut rig = Rig::new(options(1));
    rig.size = 20;
    let session = rig.make_ready(0, &[0x51]);
    rig.approve(session);
    let asked = rig.sent(|_, message, _| match message {
        Message::SetCustomMiningJob(custom) => {
            Some((custom.request_id, custom.coinbase_prefix.as_slice().to_vec()))
        }
        _ => None,
    });
    let (request_id, prefix) = asked[0].clone();
    assert_eq!(prefix.last(), Some(&24), "the extranonce's push: 4 of the pool's and 20 of ours");
    let success = SetCustomMiningJobSuccess { channel_id: CHANNEL, request_id, job_id: 1 };
    rig.say(ends(session).0, success);
    rig.find();
    let rolled = rig.sent(|_, message, _| match message {
        Message::SubmitSharesExtended(share) => Some(share.extranonce.as_slice().to_vec()),
        _ => None,
    });
    assert_eq!(rolled, [[&[0; 4][..], &[5; 16]].concat()]);
    let block = block(&rig);
    rig.tell(Input::Block(block));
    assert_eq!(pushed(&mut rig), [[&PREFIX[..], &[0; 4], &[5; 16]].concat()]);
}

#[test]
fn coinbase_only_asks_with_the_allocated_token_and_declares_nothing() {
    let mut rig = Rig::new(Options { mode: Mode::CoinbaseOnly, ..options(1) });
    rig.make_ready(0, &[0x51]);
    let asked = rig.sent(|_, message, _| match message {
        Message::SetCustomMiningJob(custom) => Some(custom.mining_job_token.as_slice().to_vec()),
        Message::DeclareMiningJob(_) => panic!("nothing is declared"),
        _ => None,
    });
    assert_eq!(asked, [vec![1; 16]], "the first token");
    let block = block(&rig);
    rig.tell(Input::Block(block));
    assert!(pushed(&mut rig).is_empty());
}

#[test]
fn the_fleets_rate_is_told_once_a_second_and_not_for_a_tenth_of_it() {
    let (mut rig, _) = Rig::promised();
    let told = |rig: &mut Rig| {
        rig.sent(|_, message, _| match message {
            Message::UpdateChannel(update) => Some(update.nominal_hash_rate),
            _ => None,
        })
    };
    rig.wait(FLEET_TOLD_EVERY_MS);
    rig.tell(Input::Fleet(3e10));
    assert_eq!(told(&mut rig), [3e10]);
    rig.tell(Input::Fleet(6e10));
    rig.wait(FLEET_TOLD_EVERY_MS - 1);
    assert_eq!(told(&mut rig), [] as [f32; 0]);
    rig.wait(1);
    assert_eq!(told(&mut rig), [6e10]);
    rig.tell(Input::Fleet(6.1e10));
    rig.wait(FLEET_TOLD_EVERY_MS);
    rig.tell(Input::Fleet(f64::NAN));
    rig.wait(FLEET_TOLD_EVERY_MS);
    assert_eq!(told(&mut rig), [] as [f32; 0]);
}

/// Nonces of the shares that went out.
fn shares(rig: &mut Rig) -> Vec<u32> {
    rig.sent(|_, message, _| match message {
        Message::SubmitSharesExtended(share) => {
            assert_eq!(share.extranonce.as_slice(), [5; 16]);
            Some(share.nonce)
        }
        _ => None,
    })
}

#[test]
fn a_block_of_a_pools_own_job_is_sent_to_it_whatever_becomes_of_its_share_and_once() {
    let (mut rig, session) = at_their_pool();
    rig.give(session, &PoolJob::new(1));
    let block = block(&rig);
    rig.tell(Input::Block(block));
    assert_eq!(shares(&mut rig), [4], "before its share, which the house's server may refuse");
    rig.find_as("shed", [0; 32], true);
    assert_eq!(shares(&mut rig), [0; 0]);
    rig.find_as("shed", [1; 32], true);
    assert_eq!(shares(&mut rig).len(), 1, "another block");
    let view = rig.declarator.view(rig.now_ms);
    assert_eq!((view.tally.shares, view.tally.blocks, rig.tally(0).sent), (2, 1, 2));
}

#[test]
fn a_block_of_a_job_that_is_not_promised_waits_for_the_promise_with_the_shares_and_goes_out_once() {
    let (mut rig, session) = Rig::at_pool();
    let found = block(&rig);
    rig.tell(Input::Block(found));
    rig.find_as("shed", [0; 32], true);
    assert_eq!((rig.tally(0).waiting, rig.declarator.view(rig.now_ms).tally.shares), (1, 1));
    rig.promise(session, 1);
    assert_eq!(shares(&mut rig), [4]);
    let found = block(&rig);
    rig.tell(Input::Block(found));
    rig.find_as("shed", [0; 32], true);
    assert_eq!(shares(&mut rig), [4], "promised");
}

#[test]
fn no_more_blocks_are_remembered_than_may_and_solo_ones_go_to_nobody() {
    let (mut rig, session) = at_their_pool();
    let solo = block(&rig);
    rig.tell(Input::Block(solo));
    assert_eq!(shares(&mut rig), [0; 0]);
    rig.give(session, &PoolJob::new(1));
    for number in 0..=BLOCKS_SENT_KEPT {
        let mut found = block(&rig);
        found.hash[0] = number as u8;
        rig.tell(Input::Block(found));
    }
    shares(&mut rig);
    let again = |rig: &mut Rig, number: u8| {
        let mut hash = [0; 32];
        hash[0] = number;
        rig.find_as("shed", hash, true);
        shares(rig).len()
    };
    assert_eq!((again(&mut rig, 1), again(&mut rig, BLOCKS_SENT_KEPT as u8)), (0, 0));
    assert_eq!(again(&mut rig, 0), 1, "forgotten: the pool says that it has it");
}

// ---- a pool's own jobs, of a pool that means ill ----

const THEIRS: Source = Source::Pool { pool: 0, kind: Kind::Theirs };

/// With a pool that takes no declared jobs.
fn at_their_pool() -> (Rig, u64) {
    let mut options = options(1);
    options.pools[0].declare_address = None;
    let mut rig = Rig::new(options);
    let session = rig.open_theirs(0);
    (rig, session)
}

/// Why the first pool is not mined for.
fn failed(rig: &Rig) -> String {
    assert_ne!(rig.declarator.using(), THEIRS);
    let (_, why) = rig.declarator.view(rig.now_ms).pools[0].last_failure.clone().unwrap();
    why
}

#[test]
fn a_job_of_more_money_than_there_can_be_fails_the_pool_and_nothing_else() {
    let (mut rig, session) = at_their_pool();
    let outputs = outputs(&[(1 << 63, &[0x51]), (1 << 63, &[0x51])]);
    rig.give(session, &PoolJob { outputs, ..PoolJob::new(1) });
    assert!(failed(&rig).contains("more than there can be"), "{}", failed(&rig));
    assert_eq!(scripts(&rig), [vec![0x52]], "solo");
}

#[test]
fn a_target_that_makes_every_share_a_block_fails_the_pool_while_the_nodes_is_known() {
    let easy = |nbits| PoolJob { nbits, ..PoolJob::new(1) };
    let (mut rig, session) = at_their_pool();
    // The node's is 1d00ffff.
    rig.give(session, &easy(0x1d03_fffc));
    assert_eq!(rig.declarator.using(), THEIRS, "four times as easy, as after a retarget");
    let (mut rig, session) = at_their_pool();
    rig.give(session, &easy(0x1d03_fffd));
    assert!(failed(&rig).contains("1d03fffd"), "{}", failed(&rig));
    let (mut rig, session) = at_their_pool();
    rig.give(session, &easy(0x207f_ffff));
    assert!(failed(&rig).contains("far easier"), "{}", failed(&rig));
    let (mut rig, session) = at_their_pool();
    rig.give(session, &PoolJob::new(1));
    rig.now_ms += NODE_TARGET_KNOWN_MS;
    rig.give(session, &PoolJob { id: 2, ..easy(0x207f_ffff) });
    assert_eq!(rig.declarator.using(), THEIRS, "of a day ago nothing is known");
}

#[test]
fn a_test_networks_easiest_target_after_twenty_minutes_fails_no_pool() {
    use bitcoin::Network::{Bitcoin, Regtest, Signet, Testnet, Testnet4};
    for network in [Bitcoin, Signet, Regtest, Testnet, Testnet4] {
        let mut options = options(1);
        options.pools[0].declare_address = None;
        options.pools[0].limit.network = network;
        let mut rig = Rig::new(options);
        let session = rig.open_theirs(0);
        let mut hard = template(1, 2);
        hard.prev_hash.nbits = 0x1a00_ffff;
        rig.tell(Input::Template(hard));
        rig.give(session, &PoolJob::new(1));
        if matches!(network, Testnet | Testnet4) {
            assert_eq!(rig.declarator.using(), THEIRS, "{network}");
            rig.give(session, &PoolJob { id: 2, nbits: 0x1c7f_ffff, ..PoolJob::new(1) });
        }
        assert!(failed(&rig).contains("far easier"), "{network}: the rule knows one target");
    }
}

#[test]
fn a_job_that_starts_too_far_ahead_of_our_clock_fails_the_pool() {
    let (mut rig, session) = at_their_pool();
    let ahead = |s| PoolJob { min_ntime: NOW_S + s, ..PoolJob::new(1) };
    rig.give(session, &ahead(NTIME_AHEAD_MAX_S));
    assert_eq!(rig.declarator.using(), THEIRS);
    rig.give(session, &PoolJob { id: 2, ..ahead(NTIME_AHEAD_MAX_S + 1) });
    assert!(failed(&rig).contains("7001 s ahead"), "{}", failed(&rig));
}

/// Outputs that make a job so many bytes larger than one with a single output of one byte.
fn larger_by(mut bytes: usize) -> Vec<u8> {
    let script = vec![0x6a; 250];
    let mut paid: Vec<(u64, &[u8])> = vec![(9, &[0x51])];
    while bytes > 0 {
        // Nothing is left that is less than an output.
        let length = if bytes > 250 { bytes.min(259) - 9 } else { bytes };
        paid.push((0, &script[..length - 9]));
        bytes -= length;
    }
    outputs(&paid)
}

#[test]
fn a_large_job_is_mined_with_a_warning_and_none_is_larger_than_devices_can_take() {
    let (mut rig, session) = at_their_pool();
    let mut given = 0;
    let mut give = |rig: &mut Rig, outputs| {
        rig.wait(THEIR_JOBS_EVERY_MS);
        given += 1;
        rig.give(session, &PoolJob { outputs, ..PoolJob::new(given) });
        rig.published.last().unwrap().active.job.payload_len()
    };
    let small = give(&mut rig, larger_by(0));
    let fits = |rig: &Rig| rig.declarator.view(rig.now_ms).work.unwrap().fits_every_device;
    let said =
        |rig: &Rig| rig.notes.iter().filter(|note| matches!(note, Note::LargeJob { .. })).count();
    assert_eq!(give(&mut rig, larger_by(JOB_PAYLOAD_UNKNOWN_DEVICE_MAX - small)), 1_900);
    assert!(fits(&rig) && said(&rig) == 0);
    assert_eq!(give(&mut rig, larger_by(JOB_PAYLOAD_UNKNOWN_DEVICE_MAX + 1 - small)), 1_901);
    assert!(!fits(&rig) && said(&rig) == 1);
    let full = larger_by(COINBASE_OUTPUTS_MAX - larger_by(0).len());
    assert!(give(&mut rig, full) < 6_500, "the largest there is");
    assert_eq!((said(&rig), rig.declarator.using()), (1, THEIRS), "once with a session");
    give(&mut rig, larger_by(COINBASE_OUTPUTS_MAX + 1 - larger_by(0).len()));
    assert!(failed(&rig).contains("4097 bytes is longer"), "{}", failed(&rig));
}

#[test]
fn a_flood_of_a_pools_own_jobs_reaches_devices_once_a_second_and_a_new_tip_at_once() {
    let (mut rig, session) = at_their_pool();
    rig.give(session, &PoolJob::new(1));
    let before = rig.published.len();
    let shown = |rig: &Rig| {
        (rig.published.len() - before, rig.published.last().unwrap().active.tip.hash[0])
    };
    let on = |id, tip: u8| PoolJob { prev_hash: [tip; 32], ..PoolJob::new(id) };
    for id in 2..100 {
        rig.give(session, &on(id, 1));
    }
    assert_eq!(shown(&rig), (0, 1));
    rig.wait(THEIR_JOBS_EVERY_MS - 1);
    assert_eq!(shown(&rig), (0, 1));
    rig.wait(1);
    assert_eq!(shown(&rig), (1, 1), "the newest of them");
    rig.give(session, &on(100, 2));
    assert_eq!(shown(&rig), (2, 2), "a tip does not wait");
    for tip in 3..100 {
        rig.give(session, &on(100 + u32::from(tip), tip));
    }
    assert_eq!(shown(&rig), (2, 2), "but for one that came a moment ago");
    rig.wait(THEIR_JOBS_EVERY_MS);
    assert_eq!(shown(&rig), (3, 99));
}

#[test]
fn a_flood_of_prefixes_makes_work_twice_a_second() {
    let (mut rig, session) = Rig::promised();
    rig.wait(5 * THEIR_JOBS_EVERY_MS);
    let before = rig.published.len();
    for prefix in 10..100 {
        let extranonce_prefix = B032::new(&[prefix; 4]).unwrap();
        rig.say(ends(session).0, SetExtranoncePrefix { channel_id: CHANNEL, extranonce_prefix });
    }
    assert_eq!(rig.published.len(), before + 2);
    rig.wait(THEIR_JOBS_EVERY_MS);
    assert_eq!(rig.published.len(), before + 3, "with the newest");
    let device = ExtranonceAllocator::for_house().allocate().unwrap();
    let job = &rig.published.last().unwrap().active.job;
    assert_eq!(job.standard_extranonce(&device).unwrap()[4..8], [99; 4]);
}

#[test]
fn a_pool_whose_own_jobs_are_on_our_tip_and_that_calls_it_old_refuses_and_our_node_is_not_behind() {
    let (mut rig, session) = Rig::at_pool();
    say_stale(&mut rig, session);
    assert!(rig.declarator.view(rig.now_ms).node_away.is_some());
    let theirs = rig.open_theirs(0);
    rig.give_job(theirs, 1);
    assert_eq!(rig.declarator.view(rig.now_ms).node_away, None, "it is on our tip itself");
    assert_eq!(rig.declarator.using(), OWN);
    rig.notes.clear();
    // At once: what is known now leaves nothing to wait for, and shares do.
    rig.approve(session);
    let (channel_id, request_id) = (CHANNEL, rig.asked());
    let error_code = Str0255::text("stale-chain-tip");
    rig.say(ends(session).0, SetCustomMiningJobError { channel_id, request_id, error_code });
    assert!(failed(&rig).contains("refuses your job: stale-chain-tip"), "{}", failed(&rig));
    assert_eq!(rig.declarator.view(rig.now_ms).node_away, None);
    assert!(!rig.notes.contains(&Note::NodeBehind));
    assert_eq!(rig.declarator.using(), Source::Solo, "the owner's templates, for himself");
}

// ---- what went wrong once ----

#[test]
fn a_job_that_cannot_be_declared_leaves_no_device_with_it() {
    let (mut rig, _) = Rig::promised();
    let mut without = template(2, 2);
    std::sync::Arc::make_mut(&mut without.template).transactions = None;
    rig.tell(Input::Template(without));
    assert_eq!(rig.declarator.using(), Source::Solo);
    assert_eq!(scripts(&rig), [vec![0x52]], "solo work in the same breath");
}

#[test]
fn a_job_pays_what_its_own_token_asks_for() {
    let (mut rig, session) = Rig::promised();
    // Two tokens for the first address are left; the third is for another.
    rig.give_tokens(session, &[0x53]);
    let mut paid = Vec::new();
    for tip in 2..6 {
        rig.tell(Input::Template(template(tip, tip)));
        let declared = rig.sent(|_, message, _| match message {
            Message::DeclareMiningJob(declared) => {
                Some(declared.coinbase_tx_suffix.as_slice().to_vec())
            }
            _ => None,
        });
        assert_eq!(declared.len(), usize::from(tip < 5), "one for each token: {tip}");
        for suffix in declared {
            paid.push(of_suffix(&suffix).unwrap()[0].script.clone());
        }
    }
    assert_eq!(paid, [vec![0x51], vec![0x51], vec![0x53]]);
}

#[test]
fn a_pool_with_an_address_for_each_token_is_declared_to_once_a_template() {
    let (mut rig, session) = Rig::promised();
    for tip in 2..10 {
        let before = rig.published.len();
        rig.tell(Input::Template(template(tip, tip)));
        for script in [0x53, 0x51, 0x53] {
            rig.give_tokens(session, &[script]);
        }
        rig.approve(session);
        assert_eq!(rig.published.len(), before + 1);
    }
}

#[test]
fn a_promise_under_another_extranonce_prefix_is_none() {
    let (mut rig, session) = Rig::at_pool();
    rig.approve(session);
    let request_id = rig.asked();
    rig.find();
    let extranonce_prefix = B032::new(&[8; 4]).unwrap();
    rig.say(ends(session).0, SetExtranoncePrefix { channel_id: CHANNEL, extranonce_prefix });
    assert_eq!(rig.tally(0).lost[&ShareLoss::NeverPromised], 1);
    let success = SetCustomMiningJobSuccess { channel_id: CHANNEL, request_id, job_id: 3 };
    rig.say(ends(session).0, success);
    assert!(!rig.names().contains(&"SubmitSharesExtended"));
    let device = ExtranonceAllocator::for_house().allocate().unwrap();
    let job = &rig.published.last().unwrap().active.job;
    assert_eq!(job.standard_extranonce(&device).unwrap()[4..8], [8; 4], "new work at once");
}

#[test]
fn a_job_of_a_tip_that_is_gone_is_not_asked_for_and_its_refusal_is_no_fault() {
    let (mut rig, session) = Rig::promised();
    rig.give_tokens(session, &[0x51]);
    rig.names();
    rig.tell(Input::Template(template(2, 2)));
    rig.approve(session);
    let request_id = rig.asked();
    rig.tell(Input::Template(template(3, 3)));
    let error_code = Str0255::text("invalid-mining-job-token");
    rig.say(
        ends(session).0,
        SetCustomMiningJobError { channel_id: CHANNEL, request_id, error_code },
    );
    assert_eq!(rig.declarator.using(), OWN, "of the old tip");
    rig.give_tokens(session, &[0x51]);
    let declared = rig.sent(|_, message, _| match message {
        Message::DeclareMiningJob(declared) => Some(declared.request_id),
        _ => None,
    });
    rig.tell(Input::Template(template(4, 4)));
    let new_mining_job_token = proto::wire::B0255::new(&[1; 16]).unwrap();
    let request_id = declared[0];
    let success = proto::message::DeclareMiningJobSuccess { request_id, new_mining_job_token };
    rig.say(ends(session).1, success);
    assert!(!rig.names().contains(&"SetCustomMiningJob"), "its tip is gone");
    let declared = rig.declarator.view(rig.now_ms);
    assert_eq!(declared.using, OWN);
}

#[test]
fn a_template_with_nothing_new_in_it_is_no_new_work() {
    let (mut rig, _) = Rig::promised();
    rig.wait(60_000);
    let before = rig.published.len();
    let mut same = template(1, 1);
    std::sync::Arc::make_mut(&mut same.template).id = proto::template::TemplateId(99);
    rig.tell(Input::Template(same));
    assert_eq!(rig.published.len(), before);
    rig.tell(Input::Template(template(1, 2)));
    assert_eq!(rig.published.len(), before + 1);
}

#[test]
fn work_that_comes_back_keeps_the_target_that_the_pool_keeps_for_it() {
    let (mut rig, session) = Rig::promised();
    let easier = SetTarget {
        channel_id: CHANNEL,
        maximum_target: Difficulty::from_log2(0).target().to_le_bytes(),
    };
    for (number, job) in [(2, 2), (1, 3)] {
        rig.give_tokens(session, &[0x51]);
        rig.wait(10_000);
        rig.tell(Input::Template(template(1, number)));
        rig.promise(session, job);
        rig.say(ends(session).0, easier);
    }
    // Between the first target and the easier one.
    let mut hash = [0; 32];
    hash[27] = 0x7f;
    assert!(Difficulty::from_log2(0).target().is_met_by(&hash));
    assert!(!Difficulty::from_log2(4).target().is_met_by(&hash));
    rig.find_as("shed", hash, false);
    rig.find();
    assert_eq!((rig.tally(0).below, rig.tally(0).sent), (1, 1));
}

#[test]
fn a_promised_job_keeps_devices_as_easy_as_it_is_when_the_pool_gets_harder() {
    let (mut rig, session) = Rig::promised();
    let set = |log2| SetTarget {
        channel_id: CHANNEL,
        maximum_target: Difficulty::from_log2(log2).target().to_le_bytes(),
    };
    rig.say(ends(session).0, set(6));
    assert_eq!(rig.published.last().unwrap().ceiling, Difficulty::from_log2(4));
    rig.say(ends(session).0, set(2));
    assert_eq!(rig.published.last().unwrap().ceiling, Difficulty::from_log2(2));
}

#[test]
fn a_pool_that_answers_ten_shares_at_once_is_not_left_while_nine_wait() {
    let (mut rig, session) = Rig::promised();
    for _ in 0..10 {
        rig.find();
        rig.wait(2_000);
    }
    rig.acknowledge(session, 10, 10);
    for _ in 0..9 {
        rig.find();
    }
    rig.wait(2 * SHARE_ANSWER_MAX_MS);
    assert_eq!(rig.declarator.using(), OWN, "nothing is due");
    rig.find();
    rig.wait(SHARE_ANSWER_MIN_MS);
    assert_eq!(rig.declarator.using(), Source::Solo, "ten were");
    assert_eq!(rig.tally(0).lost[&ShareLoss::Unanswered], 10);
}

#[test]
fn a_pool_that_falls_silent_is_left_in_seconds() {
    let (mut rig, session) = Rig::promised();
    rig.find();
    rig.wait(100);
    rig.acknowledge(session, 1, 1);
    rig.find();
    rig.wait(SHARE_ANSWER_MIN_MS - 1);
    assert_eq!(rig.declarator.using(), OWN);
    rig.wait(1);
    assert_eq!(rig.declarator.using(), Source::Solo);
    let (reason, idle_ms) = last_switch(&rig);
    assert!(reason.contains("has not answered a share for 5 s"), "{reason}");
    assert_eq!(idle_ms, SHARE_ANSWER_MIN_MS);
}

/// Why devices work for another, and what that cost.
fn last_switch(rig: &Rig) -> (String, u64) {
    let switched = rig.notes.iter().rev().find_map(|note| match note {
        Note::Switched(switch) => Some((switch.reason.clone(), switch.idle_ms)),
        _ => None,
    });
    switched.expect("a switch")
}

#[test]
fn what_was_found_in_vain_is_what_a_switch_has_cost() {
    let (mut rig, session) = Rig::promised();
    rig.find();
    rig.acknowledge(session, 1, 1);
    rig.wait(7_000);
    for sequence in 2..=SHARES_REFUSED_IN_A_ROW_MAX + 1 {
        rig.find();
        rig.wait(1_000);
        rig.refuse(session, sequence, "invalid-job-id");
    }
    assert_eq!(rig.declarator.using(), Source::Solo);
    let cost_ms = u64::from(SHARES_REFUSED_IN_A_ROW_MAX) * 1_000;
    assert_eq!(last_switch(&rig).1, cost_ms, "from the first that was refused");
}

#[test]
fn a_pool_that_falls_silent_about_templates_alone_is_left_in_seconds() {
    let (mut rig, session) = Rig::promised();
    rig.give_tokens(session, &[0x51]);
    rig.tell(Input::Template(template(2, 2)));
    rig.wait(DECLARED_ANSWER_MIN_MS - 1);
    assert_eq!(rig.declarator.using(), OWN);
    rig.wait(1);
    assert_eq!(rig.declarator.using(), Source::Solo);
    assert_eq!(last_switch(&rig).1, DECLARED_ANSWER_MIN_MS, "nobody promised any of it");
}

#[test]
fn good_shares_that_are_refused_in_a_row_end_it_and_blocks_below_the_target_do_not() {
    let (mut rig, session) = Rig::promised();
    for sequence in 1..=10 {
        rig.find_as("shed", [0xff; 32], true);
        rig.refuse(session, sequence, "difficulty-too-low");
    }
    assert_eq!(rig.declarator.using(), OWN, "blocks that are no shares");
    for sequence in 11..11 + SHARES_REFUSED_IN_A_ROW_MAX {
        assert_eq!(rig.declarator.using(), OWN);
        rig.find();
        rig.refuse(session, sequence, "difficulty-too-low");
    }
    assert_eq!(rig.declarator.using(), Source::Solo);
}

#[test]
fn a_share_is_credited_as_often_as_the_pool_says_and_answered_once() {
    let (mut rig, session) = Rig::promised();
    for _ in 0..5 {
        rig.find();
    }
    rig.acknowledge(session, 4, 3);
    rig.refuse(session, 2, "duplicate-share");
    rig.refuse(session, 5, "stale-share");
    let tally = rig.tally(0);
    assert_eq!((tally.acknowledged, tally.refused_in_all()), (3, 2));
    assert_eq!(tally.refused["passed over"], 1);
}

#[test]
fn a_node_that_answers_again_is_not_away() {
    let (mut rig, _) = Rig::promised();
    rig.tell(Input::NodeAway("busy".to_owned()));
    rig.now_ms += 1_000;
    rig.tell(Input::NodeAnswers);
    rig.now_ms += 5_000;
    rig.tell(Input::Time);
    assert_eq!(rig.declarator.view(rig.now_ms).node_away, None);
}

#[test]
fn a_switch_knows_its_own_reason_and_not_an_older_one() {
    let mut rig = Rig::new(options(1));
    rig.now_ms = 1_000_000;
    rig.tell(Input::NodeAway("busy".to_owned()));
    rig.now_ms = 1_010_000;
    rig.tell(Input::Time);
    rig.now_ms = 5_000_000;
    rig.tell(Input::Template(template(2, 2)));
    rig.make_ready(0, &[0x51]);
    let Some(Note::Switched(switch)) = rig.notes.last() else { panic!("{:?}", rig.notes) };
    assert_eq!((switch.to, switch.idle_ms), (OWN, 0));
    assert!(!switch.reason.contains("busy"), "{}", switch.reason);
}

#[test]
fn a_pool_that_always_asks_to_be_dialled_anew_is_not_dialled_at_its_pace() {
    let mut rig = Rig::new(options(1));
    let mut dialled = Vec::new();
    for _ in 0..5 {
        let session = rig.session(0);
        dialled.push(rig.now_ms);
        let (mining, _) = ends(session);
        rig.tell(Input::LinkUp(mining));
        rig.say(mining, proto::message::SetupConnectionSuccess { used_version: 2, flags: 0 });
        let (new_host, new_port) = (Str0255::text("b"), 1);
        rig.say(mining, Reconnect { new_host, new_port });
        while rig.session(0) == session {
            rig.wait(100);
        }
    }
    let pauses: Vec<u64> = dialled.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses[0] == 0 && pauses[1] >= 750 && pauses[3] >= 3_000, "{pauses:?}");
}

#[test]
fn a_declaration_that_is_refused_sends_the_devices_elsewhere_at_once() {
    let (mut rig, session) = Rig::at_pool();
    rig.find();
    let declared = rig.sent(|_, message, _| match message {
        Message::DeclareMiningJob(declared) => Some(declared.request_id),
        _ => None,
    });
    let error_code = Str0255::text("invalid-job");
    let error_details = B064K::new(b"no good").unwrap();
    let request_id = declared[0];
    rig.say(ends(session).1, DeclareMiningJobError { request_id, error_code, error_details });
    assert_eq!(rig.declarator.using(), Source::Solo);
    assert_eq!(scripts(&rig), [vec![0x52]]);
    assert_eq!(rig.tally(0).lost[&ShareLoss::PoolGone], 1);
}

// ---- a pool that wants work and credits none ----

fn why(rig: &Rig) -> String {
    assert_eq!(rig.declarator.using(), Source::Solo, "it is left");
    rig.declarator.view(rig.now_ms).pools[0].last_failure.clone().unwrap().1
}

#[test]
fn an_acknowledgement_of_nothing_is_a_refusal_by_another_word() {
    let (mut rig, session) = Rig::promised();
    for _ in 0..SHARES_REFUSED_IN_A_ROW_MAX - 1 {
        rig.find();
    }
    rig.acknowledge(session, SHARES_REFUSED_IN_A_ROW_MAX - 1, 0);
    assert_eq!(rig.declarator.using(), OWN);
    rig.find();
    rig.acknowledge(session, SHARES_REFUSED_IN_A_ROW_MAX, 0);
    assert!(why(&rig).contains("passed over"), "{}", why(&rig));
    let tally = rig.tally(0);
    assert_eq!(tally.refused["passed over"], u64::from(SHARES_REFUSED_IN_A_ROW_MAX));
    assert_eq!(tally.lost_in_all(), 0, "no pool was lost");
}

#[test]
fn a_pool_whose_shares_no_device_can_find_is_left_though_it_owes_no_answer() {
    let (mut rig, session) = Rig::promised();
    rig.tell(Input::Fleet(1e12));
    let maximum_target = Difficulty::MAX.target().to_le_bytes();
    rig.say(ends(session).0, SetTarget { channel_id: CHANNEL, maximum_target });
    rig.wait(HARD_MAX_MS - 2_000);
    assert_eq!(rig.declarator.using(), OWN, "it may not have heard of the rate");
    rig.wait(2_000);
    assert!(why(&rig).contains("too hard for your devices"), "{}", why(&rig));
}

#[test]
fn a_pool_that_changes_its_prefix_before_each_promise_is_left() {
    let (mut rig, session) = Rig::at_pool();
    rig.difficulty = DIFFICULTY;
    let mut rounds = 0;
    while rig.declarator.using() == OWN {
        rig.give_tokens(session, &[0x51]);
        rig.approve(session);
        let request_id = rig.asked();
        for _ in 0..4 {
            rig.find();
        }
        rig.wait(5_000);
        rounds += 1;
        let extranonce_prefix = B032::new(&[rounds; 4]).unwrap();
        rig.say(ends(session).0, SetExtranoncePrefix { channel_id: CHANNEL, extranonce_prefix });
        let success = SetCustomMiningJobSuccess { channel_id: CHANNEL, request_id, job_id: 3 };
        rig.say(ends(session).0, success);
        assert!(rounds < 60, "five minutes");
    }
    assert!(why(&rig).contains("credits less than it is sent: 0 "), "{}", why(&rig));
}

#[test]
fn a_pool_that_credits_a_share_in_five_is_left() {
    let (mut rig, session) = Rig::promised();
    rig.difficulty = DIFFICULTY;
    for sequence in 1..200 {
        if rig.declarator.using() != OWN {
            break;
        }
        rig.find();
        match sequence % 5 {
            0 => rig.acknowledge(session, sequence, 1),
            _ => rig.refuse(session, sequence, "difficulty-too-low"),
        }
        rig.wait(2_000);
    }
    assert!(why(&rig).contains("credits less than it is sent"), "{}", why(&rig));
}

#[test]
fn a_pools_word_for_stale_is_good_around_a_change_of_tip_alone() {
    let (mut rig, session) = Rig::promised();
    rig.wait(STALE_AFTER_TIP_MS);
    for sequence in 1..=10 {
        rig.find();
        rig.refuse(session, sequence, "stale-share");
    }
    assert_eq!(rig.declarator.using(), OWN, "our node may be the slower one");
    rig.wait(STALE_BEFORE_TIP_MS);
    for sequence in 11..11 + SHARES_REFUSED_IN_A_ROW_MAX {
        assert_eq!(rig.declarator.using(), OWN);
        rig.find();
        rig.refuse(session, sequence, "stale-share");
    }
    assert!(why(&rig).contains("stale-share"), "{}", why(&rig));
}

#[test]
fn a_pool_that_calls_all_shares_of_our_tip_stale_is_asked_for_its_own_job() {
    let (mut rig, session) = Rig::promised();
    rig.wait(STALE_AFTER_TIP_MS + STALE_BEFORE_TIP_MS);
    let refuse_all = |rig: &mut Rig, session| {
        for sequence in 1..=SHARES_REFUSED_IN_A_ROW_MAX {
            rig.find();
            rig.refuse(session, sequence, "invalid-job-id");
        }
    };
    refuse_all(&mut rig, session);
    follows(&mut rig, 0);
    let theirs = rig.session(0);
    rig.give_job(theirs, 1);
    assert_eq!(rig.declarator.view(rig.now_ms).node_away, None, "on our tip itself");
    let again = rig.make_ready(0, &[0x51]);
    rig.promise(again, 3);
    rig.notes.clear();
    refuse_all(&mut rig, again);
    assert!(!rig.notes.contains(&Note::NodeBehind), "then it is a refusal");
    assert!(why(&rig).contains("invalid-job-id"), "{}", why(&rig));
}

#[test]
fn a_pool_that_answered_thousands_at_once_owes_the_next_answer_all_the_same() {
    let (mut rig, session) = Rig::promised();
    for _ in 0..1_000 {
        rig.find();
    }
    rig.acknowledge(session, 1_000, 1_000);
    for _ in 0..SHARE_BATCH_MAX {
        rig.find();
    }
    rig.wait(SHARE_ANSWER_MIN_MS);
    assert!(why(&rig).contains("not answered a share for 5 s"), "{}", why(&rig));
    // Fewer, and the first is old.
    let (mut rig, session) = Rig::promised();
    for _ in 0..1_000 {
        rig.find();
    }
    rig.acknowledge(session, 1_000, 1_000);
    for _ in 0..=SHARE_BATCH_USUAL {
        rig.find();
    }
    rig.wait(SHARE_ANSWER_MAX_MS - 1);
    assert_eq!(rig.declarator.using(), OWN);
    rig.wait(1);
    assert!(why(&rig).contains("not answered a share for 120 s"), "{}", why(&rig));
}

#[test]
fn a_device_that_floods_takes_no_waiting_place_from_shares_that_the_pool_takes() {
    let (mut rig, session) = Rig::at_pool();
    rig.approve(session);
    let request_id = rig.asked();
    for _ in 0..=SHARES_WAITING_MAX {
        rig.find_as("flood", [0xff; 32], false);
    }
    rig.find();
    let tally = rig.tally(0);
    assert_eq!((tally.waiting, tally.below), (1, SHARES_WAITING_MAX as u64 + 1));
    for _ in 1..SHARES_WAITING_MAX {
        rig.find();
    }
    rig.find_as("shed", [0xff; 32], true);
    assert_eq!(rig.tally(0).waiting, SHARES_WAITING_MAX as u64 + 1, "a block finds its place");
    rig.sends = 0;
    let success = SetCustomMiningJobSuccess { channel_id: CHANNEL, request_id, job_id: 4 };
    rig.say(ends(session).0, success);
    assert!(rig.sends <= 16, "{} messages would be our own burst", rig.sends);
    let tally = rig.tally(0);
    assert_eq!((tally.waiting, tally.sent), (0, SHARES_UNANSWERED_MAX as u64 + 1), "the block too");
    rig.find();
    assert_eq!(rig.tally(0).lost[&ShareLoss::TooMany], 1);
}

#[test]
fn a_job_that_starts_ahead_of_our_clock_has_its_shares_sent() {
    const AHEAD_S: u32 = 600;
    let mut options = options(1);
    options.pools[0].declare_address = None;
    let mut rig = Rig::new(options);
    let session = rig.open_theirs(0);
    rig.give(session, &PoolJob { min_ntime: NOW_S + AHEAD_S, ..PoolJob::new(1) });
    // A device goes on by the seconds that go by.
    rig.wait(1_000 * u64::from(SHARE_NTIME_AHEAD_MAX_S));
    rig.ntime = NOW_S + AHEAD_S + 2 * SHARE_NTIME_AHEAD_MAX_S;
    rig.find();
    assert_eq!((rig.tally(0).sent, rig.tally(0).lost_in_all()), (1, 0));
    rig.ntime += 1;
    rig.find();
    assert_eq!((rig.tally(0).sent, rig.tally(0).lost[&ShareLoss::Ahead]), (1, 1));
}

#[test]
fn a_pools_target_that_flickers_is_followed_once_a_second() {
    let mut options = options(1);
    options.pools[0].declare_address = None;
    let mut rig = Rig::new(options);
    let session = rig.open_theirs(0);
    rig.give_job(session, 1);
    rig.wait(CEILING_EVERY_MS);
    let before = rig.published.len();
    for at in 0..1_000 {
        let maximum_target = Difficulty::from_log2(2 + at % 2).target().to_le_bytes();
        rig.say(ends(session).0, SetTarget { channel_id: CHANNEL, maximum_target });
    }
    assert_eq!(rig.published.len(), before + 1);
    rig.wait(CEILING_EVERY_MS);
    assert_eq!(rig.published.len(), before + 2, "the last one counts");
    assert_eq!(rig.published.last().unwrap().ceiling, Difficulty::from_log2(3));
}

#[test]
fn a_share_whose_time_is_too_far_ahead_is_our_loss_and_no_reason_to_be_refused() {
    let (mut rig, _) = Rig::promised();
    rig.ntime = 1_800_000_000 + SHARE_NTIME_AHEAD_MAX_S;
    rig.find();
    assert_eq!(rig.tally(0).sent, 1);
    rig.ntime += 1;
    rig.find();
    rig.find_as("shed", [0; 32], true);
    let tally = rig.tally(0);
    assert_eq!((tally.sent, tally.lost[&ShareLoss::Ahead]), (2, 1), "a block goes all the same");
}
