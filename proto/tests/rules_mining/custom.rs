//! Custom jobs: rules P60 to P65. Whether a token and a coinbase are good the pool decides; here a test
//! does. That no header is paid by choice is in `tests/unbiased.rs`, too.

use bitcoin::consensus::deserialize;
use bitcoin::hashes::Hash;
use proptest::prelude::*;

use proto::limits::{
    COINBASE_OUTPUTS_MAX, CUSTOM_JOB_EVERY_MS, CUSTOM_JOBS_BURST, CUSTOM_REQUESTS_MAX,
    CUSTOM_SPACES_MAX, CUSTOM_SPACES_PER_CHANNEL, EXTRANONCE_LEN, JOBS_PER_TIP, MERKLE_PATH_MAX,
    PAST_JOBS_MAX, SCRIPT_SIG_MAX,
};
use proto::message::setup_flags::{REQUIRES_STANDARD_JOBS, REQUIRES_WORK_SELECTION};
use proto::mining::server::Policy;
use proto::mining::{ChannelId, CustomJobRequest, CustomRefusal, Kind, Worth};
use proto::target::Difficulty;
use proto::template::{PrevHash, Template};
use proto::token::MiningJobToken;

use crate::common::client::Work;
use crate::common::{
    ANY_TARGET, Chain, Custom, HARD_NBITS, Ledger, Link, REGTEST_NBITS, Said, Share, easy_policy,
    lively_policy, worth,
};

/// A client that selects its own work, with one channel.
fn selecting(chain: &Chain) -> (Link, u32) {
    let mut link = Link::with(easy_policy(), REQUIRES_WORK_SELECTION, chain.active());
    let channel = link.open_at_floor(Kind::Extended);
    (link, channel)
}

fn code(said: &[Said]) -> &str {
    match said {
        [one] => one.code().unwrap_or_else(|| panic!("{one:?} is no refusal")),
        other => panic!("{other:?}"),
    }
}

fn request(link: &mut Link) -> CustomJobRequest {
    let mut requests = link.requests();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

#[test]
fn who_did_not_say_so_at_setup_selects_no_work_p60() {
    for flags in [0, REQUIRES_STANDARD_JOBS] {
        let chain = Chain::new(HARD_NBITS);
        let mut link = Link::with(easy_policy(), flags, chain.active());
        let kind = if flags == 0 { Kind::Extended } else { Kind::Standard };
        let open = link.open_at_floor(kind);
        for channel in [open, 1, 77] {
            let said = link.ask(channel, 5, &Custom::of(&chain.active()));
            let refused =
                Said::CustomError { channel, request_id: 5, code: "jd-not-supported".to_owned() };
            assert_eq!(said, [refused]);
        }
        assert!(link.requests().is_empty());
        assert_eq!(link.customs_refused().len(), 3, "the history has each");
    }
}

#[test]
fn who_selects_his_work_is_told_of_no_job_and_no_tip_p60_p21() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::with(easy_policy(), REQUIRES_WORK_SELECTION, chain.active());
    for _ in 0..3 {
        let said = link.open(Kind::Extended, 0.0, ANY_TARGET);
        assert!(matches!(said[..], [Said::Opened { .. }]), "{said:?}");
    }
    assert!(link.template(chain.fuller()).is_empty());
    assert!(link.template(chain.advance()).is_empty());
    assert!(link.template(chain.without_next()).is_empty());
    assert!(link.pass(100_000).iter().all(|said| matches!(said, Said::Target { .. })));
}

#[test]
fn the_pool_is_asked_and_its_answer_is_told_by_request_and_channel_p62_p65() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    assert!(link.ask(channel, 4_242, &custom).is_empty(), "nothing is promised unasked");
    let asked = request(&mut link);
    assert_eq!(asked.channel, ChannelId(channel));
    assert_eq!(asked.token, MiningJobToken([7; 16]));
    assert_eq!((&*asked.account, asked.request_id), ("alice", 4_242));
    assert_eq!((asked.prev_hash, asked.nbits), (custom.tip.hash, HARD_NBITS));
    assert_eq!((asked.min_ntime, asked.version), (custom.tip.min_ntime, custom.version));
    assert_eq!(asked.merkle_path, custom.path);
    assert_eq!(asked.coinbase(), chain.active().job.coinbase());
    let said = link.promise(&asked, &custom.template, worth(1, 990_000));
    let [Said::CustomSuccess { channel: to, request_id: 4_242, job }] = said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(to, channel);
    let accepted = link.customs_accepted().remove(0);
    assert_eq!((accepted.channel.0, accepted.request_id), (channel, 4_242));
    assert_eq!((accepted.job_id.0, accepted.token), (job, asked.token));
    assert_eq!(accepted.worth, worth(1, 990_000));
    // One answer.
    assert!(link.promise(&asked, &custom.template, worth(1, 990_000)).is_empty());
    assert!(link.customs_accepted().is_empty());
}

#[test]
fn whatever_the_pool_finds_wrong_is_told_and_kept_in_the_history_p62_p63() {
    for refusal in CustomRefusal::ALL {
        let chain = Chain::new(HARD_NBITS);
        let (mut link, channel) = selecting(&chain);
        link.ask(channel, 9, &Custom::of(&chain.active()));
        let asked = request(&mut link);
        let said = link.verdict(&asked, Err((refusal, "1 sat short".to_owned())));
        let code = refusal.code_on_wire().to_owned();
        assert_eq!(said, [Said::CustomError { channel, request_id: 9, code }]);
        let kept = link.customs_refused().remove(0);
        assert_eq!((kept.channel.0, kept.request_id, kept.refusal), (channel, 9, refusal));
        assert_eq!(kept.reason, "1 sat short");
        // Nothing was promised, so nothing is credited.
        assert!(link.client.device(channel).works.is_empty());
        assert!(link.customs_accepted().is_empty());
    }
}

#[test]
fn what_is_our_fault_sends_no_client_away() {
    for refusal in [CustomRefusal::Internal, CustomRefusal::TooManyJobs] {
        let chain = Chain::new(HARD_NBITS);
        let (mut link, channel) = selecting(&chain);
        let custom = Custom::of(&chain.active());
        link.ask(channel, 9, &custom);
        let asked = request(&mut link);
        let said = link.verdict(&asked, Err((refusal, "no tokens now".to_owned())));
        assert_eq!(code(&said), "stale-chain-tip");
        assert_eq!(link.customs_refused().remove(0).refusal, refusal, "the history has the truth");
        link.custom(channel, &custom, Worth::POOL_JOB);
    }
}

#[test]
fn a_channel_that_is_none_is_told_so_p62() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    assert_eq!(code(&link.ask(channel + 1, 1, &custom)), "invalid-channel-id");
    link.close(channel);
    for gone in [channel, 1] {
        assert_eq!(code(&link.ask(gone, 1, &custom)), "invalid-channel-id");
    }
}

#[test]
fn a_job_for_the_group_is_one_for_each_extended_channel_p61() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, first) = selecting(&chain);
    // A standard channel, which such a job would pass by, cannot be there (rule P3).
    let said = link.open(Kind::Standard, 0.0, ANY_TARGET);
    assert!(matches!(said[..], [Said::OpenError { .. }]));
    let second = link.open_at_floor(Kind::Extended);
    link.custom(1, &Custom::of(&chain.active()), worth(1, 1_000_000));
    // Whoever comes later has no part in it.
    let third = link.open_at_floor(Kind::Extended);
    for channel in [first, second] {
        let share = link.client.good_share(channel);
        assert!(link.submit(&share).is_empty());
    }
    let mut share = link.client.good_share(first);
    share.channel = third;
    assert_eq!(code(&link.submit(&share)), "invalid-job-id");
    let batch = link.batches().remove(0);
    assert_eq!(batch.groups.len(), 2);
    assert_ne!(batch.groups[0].extranonce_prefix, batch.groups[1].extranonce_prefix);
}

#[test]
fn a_group_of_several_accounts_has_no_token_in_common_p61() {
    use proto::message::OpenExtendedMiningChannel;
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    link.say(OpenExtendedMiningChannel {
        request_id: 1,
        user_identity: proto::wire::Str0255::text("bob.rig"),
        nominal_hash_rate: 0.0,
        max_target: ANY_TARGET,
        min_extranonce_size: 0,
    });
    assert_eq!(code(&link.ask(1, 1, &Custom::of(&chain.active()))), "invalid-channel-id");
    assert!(link.ask(channel, 2, &Custom::of(&chain.active())).is_empty());
    assert_eq!(&*request(&mut link).account, "alice");
}

#[test]
fn a_channel_of_another_account_has_no_part_in_a_job_that_was_judged_when_it_opened() {
    use proto::message::OpenExtendedMiningChannel;
    for closes in [false, true] {
        let chain = Chain::new(HARD_NBITS);
        let (mut link, alices) = selecting(&chain);
        let custom = Custom::of(&chain.active());
        link.ask(1, 1, &custom);
        let asked = request(&mut link);
        let said = link.say(OpenExtendedMiningChannel {
            request_id: 1,
            user_identity: proto::wire::Str0255::text("mallory"),
            nominal_hash_rate: 0.0,
            max_target: ANY_TARGET,
            min_extranonce_size: 0,
        });
        let [Said::Opened { channel: mallorys, .. }] = said[..] else { panic!("{said:?}") };
        if closes {
            link.close(alices);
            assert!(link.promise(&asked, &custom.template, Worth::POOL_JOB).is_empty());
            assert!(link.customs_accepted().is_empty(), "the token is still alice's");
            continue;
        }
        link.promise(&asked, &custom.template, Worth::POOL_JOB);
        let share = link.client.good_share(alices);
        assert!(link.submit(&share).is_empty());
        let share = link.client.good_share(mallorys);
        assert_eq!(code(&link.submit(&share)), "invalid-job-id");
    }
}

#[test]
fn a_custom_job_is_asked_for_up_to_each_bound_and_not_a_step_beyond() {
    let chain = Chain::new(HARD_NBITS);
    let plain = Custom::of(&chain.active());
    let most = Custom {
        script: vec![1; SCRIPT_SIG_MAX - EXTRANONCE_LEN],
        outputs: vec![1; COINBASE_OUTPUTS_MAX],
        path: vec![[3; 32]; MERKLE_PATH_MAX],
        ..plain.clone()
    };
    let least = Custom { script: Vec::new(), outputs: vec![0], path: Vec::new(), ..plain.clone() };
    for good in [most.clone(), least] {
        let (mut link, channel) = selecting(&chain);
        assert!(link.ask(channel, 1, &good).is_empty());
        assert_eq!(link.requests().len(), 1);
    }
    let prefix = Custom { script: vec![1; SCRIPT_SIG_MAX - EXTRANONCE_LEN + 1], ..most.clone() };
    let outputs = Custom { outputs: vec![1; COINBASE_OUTPUTS_MAX + 1], ..most.clone() };
    let huge = Custom { outputs: vec![1; 65_535], ..most.clone() };
    let none = Custom { outputs: Vec::new(), ..most.clone() };
    let path = Custom { path: vec![[3; 32]; MERKLE_PATH_MAX + 1], ..most.clone() };
    let beyond = [
        (Custom { token: vec![7; 15], ..most.clone() }, "invalid-mining-job-token"),
        (Custom { token: vec![7; 17], ..most.clone() }, "invalid-mining-job-token"),
        (Custom { token: Vec::new(), ..most }, "invalid-mining-job-token"),
        (prefix, "invalid-coinbase-prefix"),
        (Custom { script: vec![1; 255], ..plain }, "invalid-coinbase-prefix"),
        (outputs, "invalid-coinbase-tx-outputs"),
        (huge, "invalid-coinbase-tx-outputs"),
        (none, "invalid-coinbase-tx-outputs"),
        (path, "invalid-merkle-path"),
    ];
    for (custom, expected) in beyond {
        let (mut link, channel) = selecting(&chain);
        assert_eq!(code(&link.ask(channel, 1, &custom)), expected);
        assert!(link.requests().is_empty());
    }
}

#[test]
fn so_many_requests_are_judged_at_a_time_and_so_many_come_in_a_minute() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    for request_id in 0..CUSTOM_REQUESTS_MAX as u32 {
        assert!(link.ask(channel, request_id, &custom).is_empty());
    }
    assert_eq!(code(&link.ask(channel, 77, &custom)), "stale-chain-tip");
    assert_eq!(link.customs_refused().remove(0).refusal, CustomRefusal::TooManyJobs);
    for asked in link.requests() {
        link.promise(&asked, &custom.template, Worth::POOL_JOB);
    }
    let left = CUSTOM_JOBS_BURST as u32 - CUSTOM_REQUESTS_MAX as u32;
    let ask = |link: &mut Link, number: u32| {
        let said = link.ask(channel, 100 + number, &custom.numbered(number));
        for asked in link.requests() {
            link.promise(&asked, &custom.template, Worth::POOL_JOB);
        }
        said.is_empty()
    };
    assert!((0..left).all(|number| ask(&mut link, number)));
    assert!(!ask(&mut link, 500));
    link.pass(CUSTOM_JOB_EVERY_MS - 1);
    assert!(!ask(&mut link, 501));
    link.pass(1);
    assert!(ask(&mut link, 502) && !ask(&mut link, 503));
}

#[test]
fn a_request_that_waits_has_its_number_to_itself() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let other_channel = link.open_at_floor(Kind::Extended);
    let custom = Custom::of(&chain.active());
    link.ask(channel, 9, &custom);
    let asked = request(&mut link);
    let second = Custom { token: vec![8; 16], ..custom.numbered(2) };
    assert_eq!(code(&link.ask(channel, 9, &second)), "stale-chain-tip");
    assert!(link.requests().is_empty(), "whose token a verdict is for must be sure");
    assert_eq!(link.customs_refused().remove(0).refusal, CustomRefusal::TooManyJobs);
    // On another channel it is another request, and one that was answered waits no more.
    assert!(link.ask(other_channel, 9, &second).is_empty());
    link.promise(&asked, &custom.template, Worth::POOL_JOB);
    assert_eq!(link.customs_accepted().remove(0).token, asked.token);
    assert!(link.ask(channel, 9, &second).is_empty());
    assert_eq!(link.requests().len(), 2);
}

#[test]
fn a_new_tip_pays_for_its_jobs_whatever_the_pace() {
    let mut chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let ask_until_refused = |link: &mut Link, custom: &Custom| {
        let is_taken = |number: &u32| {
            let said = link.ask(channel, *number, &custom.numbered(*number));
            for asked in link.requests() {
                link.promise(&asked, &custom.template, Worth::POOL_JOB);
            }
            said.is_empty()
        };
        (1..100).take_while(is_taken).count() as u64
    };
    // A full purse holds no more for it.
    link.template(chain.advance());
    assert_eq!(ask_until_refused(&mut link, &Custom::of(&chain.active())), CUSTOM_JOBS_BURST);
    for _ in 0..3 {
        link.template(chain.advance());
        assert_eq!(ask_until_refused(&mut link, &Custom::of(&chain.active())), JOBS_PER_TIP);
    }
    link.template(chain.fuller());
    assert_eq!(ask_until_refused(&mut link, &Custom::of(&chain.active())), 0, "no other tip");
}

#[test]
fn shares_of_a_promised_job_are_credited_with_what_it_is_worth_p64_p65() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    link.custom(channel, &custom, worth(1, 994_000));
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
    link.custom(channel, &custom.numbered(2), worth(2, 1_000_000));
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
    let batch = link.batches().remove(0);
    let worths: Vec<Worth> = batch.groups.iter().map(|group| group.worth).collect();
    assert_eq!(worths, [worth(1, 994_000), worth(2, 1_000_000)]);
    let mut ledger = Ledger::default();
    let committed = proto::mining::server::Input::Committed(ledger.commit(&batch));
    let said = link.handle(committed).unwrap();
    assert!(matches!(said[..], [Said::Accepted { count: 2, .. }]), "{said:?}");
}

#[test]
fn a_job_that_was_not_promised_yet_has_no_shares_p65() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    let work = link.custom(channel, &custom, Worth::POOL_JOB);
    link.ask(channel, 2, &custom.numbered(2));
    let asked = request(&mut link);
    // The id that it will have is easily guessed.
    let mut guess = link.client.good_share(channel);
    guess.job = work.job + 1;
    assert_eq!(code(&link.submit(&guess)), "invalid-job-id");
    link.promise(&asked, &custom.template, Worth::POOL_JOB);
    let share = link.client.good_share(channel);
    assert_eq!(share.job, work.job + 1);
    assert!(link.submit(&share).is_empty());
}

#[test]
fn many_jobs_of_a_tip_are_good_at_once_and_one_older_is_unknown() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    let works: Vec<Work> = (0..PAST_JOBS_MAX as u32 + 2)
        .map(|number| link.custom(channel, &custom.numbered(number), Worth::POOL_JOB))
        .collect();
    for (at, work) in works.iter().enumerate() {
        let share = link.client.grind(channel, work, |hash| work.target.is_met_by(hash));
        let said = link.submit(&share);
        match at {
            0 => assert_eq!(code(&said), "invalid-job-id"),
            _ => assert!(said.is_empty(), "job {at}: {said:?}"),
        }
    }
}

#[test]
fn a_new_tip_makes_custom_jobs_stale_and_a_late_block_is_still_one_p65() {
    let mut chain = Chain::new(REGTEST_NBITS);
    let (mut link, channel) = selecting(&chain);
    let work = link.custom(channel, &Custom::of(&chain.active()), worth(3, 999_999));
    let network = proto::target::Target::from_compact(REGTEST_NBITS);
    let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
    link.template(chain.advance());
    assert_eq!(code(&link.submit(&share)), "stale-share");
    let block = link.blocks().remove(0);
    assert_eq!((block.hash, block.worth), (block.header.hash(), worth(3, 999_999)));
    // On the new tip there is a new job.
    link.custom(channel, &Custom::of(&chain.active()), Worth::POOL_JOB);
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
}

#[test]
fn a_miner_whose_node_is_ahead_of_ours_mines_on_and_our_template_takes_nothing_back() {
    let mut chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let old = link.custom(channel, &Custom::of(&chain.active()), Worth::POOL_JOB);
    let ahead = chain.advance();
    // The pool knows of the tip; its template for it has not come to this connection.
    let work = link.custom(channel, &Custom::of(&ahead), Worth::POOL_JOB);
    let late = link.client.grind(channel, &old, |hash| old.target.is_met_by(hash));
    assert_eq!(code(&link.submit(&late)), "stale-share");
    let share = link.client.good_share(channel);
    assert!(link.submit(&share).is_empty());
    assert!(link.template(ahead).is_empty());
    let next = link.client.grind(channel, &work, |hash| work.target.is_met_by(hash));
    assert!(link.submit(&next).is_empty());
    assert_eq!(code(&link.submit(&share)), "duplicate-share");
}

#[test]
fn a_job_that_a_tip_overtook_while_it_was_judged_is_told_so() {
    let mut chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let before = Custom::of(&chain.active());
    link.ask(channel, 1, &before);
    let asked = request(&mut link);
    link.template(chain.advance());
    assert_eq!(code(&link.promise(&asked, &before.template, Worth::POOL_JOB)), "stale-chain-tip");
    // Nor is one good that is of the height we are at, and of another tip.
    let here = Custom::of(&chain.active());
    let beside = PrevHash { hash: [9; 32], ..here.tip };
    link.ask(channel, 2, &Custom { tip: beside, ..here.clone() });
    let asked = request(&mut link);
    assert_eq!(code(&link.promise(&asked, &here.template, Worth::POOL_JOB)), "stale-chain-tip");
    link.custom(channel, &here, Worth::POOL_JOB);
}

#[test]
fn nothing_is_said_of_a_request_whose_channel_is_closed_by_now_p13() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    link.ask(channel, 1, &custom);
    let asked = request(&mut link);
    link.close(channel);
    assert!(link.promise(&asked, &custom.template, Worth::POOL_JOB).is_empty());
    assert!(link.customs_accepted().is_empty(), "its token is not used up");
    // Its place is free again.
    let channel = link.open_at_floor(Kind::Extended);
    link.custom(channel, &custom, Worth::POOL_JOB);
}

#[test]
fn a_target_that_changes_is_told_without_a_job_and_holds_for_the_next_p41() {
    let chain = Chain::new(HARD_NBITS);
    let mut link = Link::with(lively_policy(), REQUIRES_WORK_SELECTION, chain.active());
    let channel = link.open_at_floor(Kind::Extended);
    let custom = Custom::of(&chain.active());
    let easy = link.custom(channel, &custom, Worth::POOL_JOB);
    let harder = Difficulty::from_log2(-28).target();
    let said = link.update(channel, 0.0, harder.to_le_bytes());
    assert_eq!(said, [Said::Target { channel, target: harder }]);
    let hard = link.custom(channel, &custom.numbered(2), Worth::POOL_JOB);
    assert_eq!((easy.target, hard.target), (Difficulty::MIN.target(), harder));
    // Each is judged by its own.
    let between = |hash: &[u8; 32]| !harder.is_met_by(hash);
    let share = link.client.grind(channel, &easy, between);
    assert!(link.submit(&share).is_empty());
    let share = link.client.grind(channel, &hard, between);
    assert_eq!(code(&link.submit(&share)), "difficulty-too-low");
    let batch = link.batches().remove(0);
    assert_eq!(batch.groups[0].proofs[0].difficulty, Difficulty::MIN);
}

#[test]
fn the_same_work_keeps_its_difficulty_and_factor_whatever_it_is_called_p50() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::with(
        Policy { shares_per_minute: 1e9, ..lively_policy() },
        REQUIRES_WORK_SELECTION,
        chain.active(),
    );
    let channel = link.open_at_floor(Kind::Extended);
    let custom = Custom::of(&chain.active());
    let first = link.custom(channel, &custom, worth(1, 900_000));
    let harder = Difficulty::from_log2(-28).target();
    link.update(channel, 0.0, harder.to_le_bytes());
    // Bits that may be rolled make no other work, nor does another start.
    let rolled = Custom { version: custom.version ^ 0x2000, ..custom.clone() };
    let later = PrevHash { min_ntime: custom.tip.min_ntime + 1, ..custom.tip };
    let later = Custom { tip: later, ..custom.clone() };
    for (number, same) in [custom.clone(), rolled, later].into_iter().enumerate() {
        let work = link.custom(channel, &same, worth(2, 1_000_000));
        assert_ne!(work.job, first.job);
        let accepted = link.customs_accepted().pop().unwrap();
        assert_eq!(accepted.worth, worth(2, 900_000));
        let share = link.client.grind(channel, &work, |hash| !harder.is_met_by(hash));
        assert!(link.submit(&share).is_empty(), "case {number} is judged as at first");
        // By another job's name it is the same header.
        let again = Share { job: first.job, ..share.clone() };
        assert_eq!(code(&link.submit(&again)), "duplicate-share");
    }
    // What differs in anything a header is made of is other work.
    let [mut output, mut script, mut path] = [0; 3].map(|_| custom.clone());
    output.outputs[3] ^= 1;
    script.script[6] ^= 1;
    path.path[0][0] ^= 1;
    let version = Custom { version: custom.version ^ 1, ..custom.clone() };
    let locktime = Custom { locktime: custom.locktime + 1, ..custom.clone() };
    for other in [output, script, path, version, locktime, custom.numbered(77)] {
        link.custom(channel, &other, worth(3, 1_000_000));
        assert_eq!(link.customs_accepted().pop().unwrap().worth, worth(3, 1_000_000));
        let work = link.client.work(channel).clone();
        let share = link.client.grind(channel, &work, |hash| !harder.is_met_by(hash));
        assert_eq!(code(&link.submit(&share)), "difficulty-too-low");
    }
    // Under another tip its headers are others.
    let custom = Custom { tip: chain.advance().tip, ..custom };
    link.template(chain.active());
    link.custom(channel, &custom, worth(4, 950_000));
    assert_eq!(link.customs_accepted().pop().unwrap().worth, worth(4, 950_000));
}

#[test]
fn work_whose_difficulty_could_not_be_kept_waits_for_the_next_tip() {
    let mut chain = Chain::new(HARD_NBITS);
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    for number in 0..CUSTOM_SPACES_MAX as u32 {
        link.now.mono_ms += CUSTOM_JOB_EVERY_MS;
        link.custom(channel, &custom.numbered(number), Worth::POOL_JOB);
    }
    link.now.mono_ms += 10 * CUSTOM_JOB_EVERY_MS;
    link.ask(channel, 2, &custom.numbered(CUSTOM_SPACES_MAX as u32));
    let asked = request(&mut link);
    let said = link.promise(&asked, &custom.template, Worth::POOL_JOB);
    assert_eq!(code(&said), "stale-chain-tip");
    assert_eq!(link.customs_refused().remove(0).refusal, CustomRefusal::TooManyJobs);
    // Known work is no burden.
    link.custom(channel, &custom.numbered(0), Worth::POOL_JOB);
    link.template(chain.advance());
    link.custom(channel, &Custom::of(&chain.active()), Worth::POOL_JOB);
}

#[test]
fn a_group_of_many_channels_has_as_many_jobs_under_a_tip_as_it_has_reason_for() {
    let chain = Chain::new(HARD_NBITS);
    let (mut link, _) = selecting(&chain);
    let channels = CUSTOM_SPACES_MAX / CUSTOM_SPACES_PER_CHANNEL + 1;
    for _ in 1..channels {
        link.open_at_floor(Kind::Extended);
    }
    let custom = Custom::of(&chain.active());
    for number in 0..CUSTOM_SPACES_PER_CHANNEL as u32 {
        link.now.mono_ms += CUSTOM_JOB_EVERY_MS;
        link.custom(1, &custom.numbered(number), Worth::POOL_JOB);
    }
    link.now.mono_ms += CUSTOM_JOB_EVERY_MS;
    link.ask(1, 2, &custom.numbered(CUSTOM_SPACES_PER_CHANNEL as u32));
    let asked = request(&mut link);
    assert_eq!(code(&link.promise(&asked, &custom.template, Worth::POOL_JOB)), "stale-chain-tip");
    assert_eq!(link.customs_refused().remove(0).refusal, CustomRefusal::TooManyJobs);
}

#[test]
fn a_share_of_a_full_template_is_a_block_and_of_a_coinbase_only_one_is_not_ours_to_make() {
    let mut chain = Chain::new(REGTEST_NBITS);
    chain.transactions = 6;
    chain.advance();
    let (mut link, channel) = selecting(&chain);
    let custom = Custom::of(&chain.active());
    let network = proto::target::Target::from_compact(REGTEST_NBITS);
    let template = Template::clone(&custom.template);
    let private = Template { transactions: None, ..template.clone() };
    for (number, template) in [template, private].into_iter().enumerate() {
        link.ask(channel, 1, &custom.numbered(number as u32));
        let asked = request(&mut link);
        link.promise(&asked, &template, worth(number as u8, 1_000_000));
        let work = link.client.work(channel).clone();
        let share = link.client.grind(channel, &work, |hash| network.is_met_by(hash));
        assert!(link.submit(&share).is_empty());
        let found = link.blocks().pop().expect("a block");
        assert_eq!(found.worth, worth(number as u8, 1_000_000));
        let bytes = found.job.block(&found.header, &found.extranonce);
        assert_eq!(bytes.is_some(), number == 0);
        let Some(bytes) = bytes else { continue };
        let block: bitcoin::Block = deserialize(&bytes).expect("a whole block");
        assert!(block.check_merkle_root() && block.check_witness_commitment());
        assert_eq!(block.block_hash().to_byte_array(), found.hash);
        assert_eq!(block.txdata.len(), 7);
    }
}

proptest! {
    #[test]
    fn the_coinbase_of_a_request_is_what_its_fields_say(
        version in any::<u32>(),
        script in proptest::collection::vec(any::<u8>(), 0..=SCRIPT_SIG_MAX - EXTRANONCE_LEN),
        sequence in any::<u32>(),
        locktime in any::<u32>(),
        outputs in proptest::collection::vec(
            (0u64..=2_100_000_000_000_000, proptest::collection::vec(any::<u8>(), 0..60)), 1..20),
    ) {
        let outputs: Vec<bitcoin::TxOut> = outputs.into_iter().map(|(sats, script)| bitcoin::TxOut {
            value: bitcoin::Amount::from_sat(sats),
            script_pubkey: bitcoin::ScriptBuf::from_bytes(script),
        }).collect();
        let request = CustomJobRequest {
            channel: ChannelId(2),
            request_id: 1,
            token: MiningJobToken([0; 16]),
            account: "alice".into(),
            version: 0,
            prev_hash: [0; 32],
            min_ntime: 0,
            nbits: 0,
            coinbase_tx_version: version,
            coinbase_prefix: script.clone(),
            coinbase_sequence: sequence,
            outputs: bitcoin::consensus::serialize(&outputs),
            locktime,
            merkle_path: Vec::new(),
        };
        let extranonce = [0x5a; EXTRANONCE_LEN];
        let parts = request.coinbase();
        let bytes = [&parts.prefix[..], &extranonce, &parts.suffix].concat();
        let coinbase: bitcoin::Transaction = deserialize(&bytes).unwrap();
        prop_assert!(coinbase.is_coinbase());
        prop_assert_eq!(coinbase.version.0 as u32, version);
        prop_assert_eq!(coinbase.lock_time.to_consensus_u32(), locktime);
        prop_assert_eq!(coinbase.input[0].sequence.0, sequence);
        prop_assert_eq!(coinbase.input[0].script_sig.as_bytes(), [&script[..], &extranonce].concat());
        prop_assert_eq!(&coinbase.output, &outputs);
    }
}
