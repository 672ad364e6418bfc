//! The rules of a job declaration server (`RULES.md`, JS), on the machine alone: what is checked, and
//! whether it is good, the test decides.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_enum_match_arm)]

mod declarer;

use std::collections::HashMap;
use std::sync::Arc;

use bitcoin::TxOut;
use declarer::{Job, Link, OUTPUTS, Said};
use proptest::prelude::*;
use proto::connection::Violation;
use proto::declare::server::{CheckOutcome, Effect, Input, Server};
use proto::declare::{DeclareRefusal, Solution};
use proto::limits::{
    COINBASE_OUTPUTS_MAX, DECLARATION_EVERY_MS, DECLARATIONS_BURST, DECLARATIONS_OPEN_MAX,
    DECLARE_CLIENT_PAYLOAD_MAX, DECLARE_PROVIDE_PAYLOAD_MAX, DECLARED_PREFIX_MAX,
    DECLARED_TRANSACTIONS_MAX, DECLARER_TOKEN_EVERY_MS, DECLARER_TOKENS_BURST, DETAILS_MAX,
    JOBS_PER_TIP, PROVIDE_WAIT_MS, SOLUTION_EVERY_MS, SOLUTIONS_BURST, SUFFIX_BESIDES_OUTPUTS_MAX,
    TOKEN_REQUESTS_WAITING_MAX,
};
use proto::message::{AllocateMiningJobToken, Message, PushSolution, SetTarget};
use proto::token::MiningJobToken;
use proto::wire::{B032, Str0255};

fn token(number: u8) -> MiningJobToken {
    MiningJobToken([number; 16])
}

fn refused(said: &[Said]) -> &str {
    match said {
        [Said::Refused { code, .. }] => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_comes_with_the_outputs_to_fill_the_pools_first_js1_js8() {
    let mut link = Link::new();
    assert!(link.allocate(7).is_empty());
    assert_eq!(link.allocations(), [(7, Arc::from("alice"))]);
    let said = link.allocated(7, Some(token(5)));
    let outputs = OUTPUTS.to_vec();
    assert_eq!(said, [Said::Token { request_id: 7, token: token(5), outputs: outputs.clone() }]);
    let outputs: Vec<TxOut> = bitcoin::consensus::deserialize(&outputs).unwrap();
    assert!(outputs[0].value.to_sat() == 0 && outputs[0].script_pubkey.is_p2wpkh());
    // Answered once.
    assert!(link.allocated(7, Some(token(6))).is_empty());
}

#[test]
fn the_outputs_are_the_same_for_every_token_of_a_connection_js2() {
    let mut link = Link::new();
    for request_id in 0..10 {
        link.pass(600_000);
        link.allocate(request_id);
        let said = link.allocated(request_id, Some(token(1)));
        assert!(matches!(&said[..], [Said::Token { outputs, .. }] if *outputs == OUTPUTS));
    }
}

#[test]
#[should_panic(expected = "outputs of 4097 bytes")]
fn outputs_that_no_job_could_carry_are_the_operators_mistake() {
    let _ = Server::new(0, vec![0; COINBASE_OUTPUTS_MAX + 1].into(), 0);
}

#[test]
fn of_a_thousand_requests_for_tokens_as_many_are_served_as_the_pace_allows_js3() {
    let mut link = Link::new();
    for request_id in 0..1_000 {
        link.allocate(request_id);
    }
    let served = link.allocations();
    assert!(served.iter().map(|(id, _)| *id).eq(0..DECLARER_TOKENS_BURST as u32));
    // The book of tokens has not answered yet, so these count as waiting.
    let waiting = TOKEN_REQUESTS_WAITING_MAX - served.len();
    let dropped = link.effects.iter().filter(|e| matches!(e, Effect::NoToken { .. })).count();
    assert_eq!(dropped, 1_000 - served.len() - waiting);
    for (request_id, _) in served {
        assert_eq!(link.allocated(request_id, Some(token(1))).len(), 1);
    }
    // The others have their turn, each in its time.
    link.pass(DECLARER_TOKEN_EVERY_MS - 1);
    assert!(link.allocations().is_empty());
    for turn in 0..waiting as u32 {
        link.pass(1);
        assert_eq!(link.allocations(), [(DECLARER_TOKENS_BURST as u32 + turn, Arc::from("alice"))]);
        link.pass(DECLARER_TOKEN_EVERY_MS - 1);
        assert!(link.allocations().is_empty());
    }
    assert_eq!(link.server.deadline_ms(), None);
}

#[test]
fn a_request_that_the_book_of_tokens_denies_is_made_again_later() {
    let mut link = Link::new();
    link.allocate(1);
    for _ in 0..3 {
        assert_eq!(link.allocations().len(), 1);
        assert!(link.allocated(1, None).is_empty());
        assert!(link.allocations().is_empty());
        link.pass(DECLARER_TOKEN_EVERY_MS);
    }
    assert_eq!(link.allocations().len(), 1);
    assert_eq!(link.allocated(1, Some(token(1))).len(), 1);
}

#[test]
fn a_name_that_nobody_can_be_paid_by_ends_the_connection() {
    for (name, good) in [("", true), ("alice", true), ("caf\u{e9}", false), ("a\nb", false)] {
        let mut link = Link::new();
        let user_identifier = Str0255::text(name);
        let message = AllocateMiningJobToken { user_identifier, request_id: 1 };
        assert_eq!(link.handle(Input::Message(message.into())).is_ok(), good, "{name:?}");
    }
}

#[test]
fn a_declaration_is_checked_as_it_was_made_and_answered_js8() {
    let mut link = Link::new();
    let job = Job::new(3, 4_000);
    assert!(link.declare(&job).is_empty());
    let declaration = link.check();
    assert_eq!((declaration.request_id, declaration.token), (3, token(1)));
    assert_eq!(declaration.version, 0x2000_0000);
    assert_eq!(declaration.coinbase_prefix, job.prefix);
    assert_eq!(declaration.coinbase_suffix, job.suffix);
    assert_eq!(declaration.wtxids, job.wtxids);
    assert!(declaration.supplied.is_empty() && !declaration.was_asked);
    let said = link.checked(3, CheckOutcome::Approved(token(9)));
    assert_eq!(said, [Said::Declared { request_id: 3, token: token(9) }]);
    assert!(matches!(link.effects[..], [Effect::Declared { request_id: 3 }]));
    // Once.
    assert!(link.checked(3, CheckOutcome::Approved(token(9))).is_empty());
    // Its number is free again.
    assert!(link.declare(&job).is_empty());
}

#[test]
fn whatever_the_check_finds_wrong_the_declarer_is_told_the_code_and_why_js4_js10() {
    for refusal in DeclareRefusal::ALL {
        let mut link = Link::new();
        link.declare(&Job::new(3, 1));
        let details = "outputs pay 1 sat less than they must".to_owned();
        let said = link.checked(3, CheckOutcome::Refused { refusal, details: details.clone() });
        let code = refusal.code_on_wire().to_owned();
        assert_eq!(said, [Said::Refused { request_id: 3, code, details: details.clone() }]);
        // And the connection's history.
        let told = link.effects.pop().unwrap();
        assert!(
            matches!(told, Effect::Refused { request_id: 3, refusal: r, details: d } if r == refusal && d == details)
        );
    }
}

#[test]
fn what_is_our_fault_sends_no_declarer_away_and_the_history_has_the_truth() {
    for refusal in [DeclareRefusal::Internal, DeclareRefusal::TooMany] {
        let mut link = Link::new();
        link.declare(&Job::new(3, 1));
        let details = "the node does not answer".to_owned();
        let said = link.checked(3, CheckOutcome::Refused { refusal, details: details.clone() });
        let code = "stale-chain-tip".to_owned();
        assert_eq!(said, [Said::Refused { request_id: 3, code, details }]);
        let kept = link.effects.pop().unwrap();
        assert!(matches!(kept, Effect::Refused { refusal: kept, .. } if kept == refusal));
        // The same connection is served when the node is back.
        link.declare(&Job::new(4, 1));
        let said = link.checked(4, CheckOutcome::Approved(token(9)));
        assert_eq!(said, [Said::Declared { request_id: 4, token: token(9) }]);
    }
}

#[test]
fn details_are_cut_where_a_character_ends() {
    for (fill, len) in [("a", DETAILS_MAX), ("\u{20ac}", DETAILS_MAX - DETAILS_MAX % 3)] {
        let mut link = Link::new();
        link.declare(&Job::new(3, 1));
        let refusal = DeclareRefusal::InvalidJob;
        let said = link.checked(3, CheckOutcome::Refused { refusal, details: fill.repeat(70_000) });
        assert!(matches!(&said[..], [Said::Refused { details, .. }] if details.len() == len));
    }
}

#[test]
fn transactions_are_asked_for_by_position_and_come_back_in_place_js5() {
    let mut link = Link::new();
    link.declare(&Job::new(3, 10));
    let declaration = link.check();
    let said = link.missing(declaration, &[0, 4, 9]);
    assert_eq!(said, [Said::Asked { request_id: 3, positions: vec![0, 4, 9] }]);
    assert!(link.provide(3, &[vec![1], vec![2; 70_000], vec![]]).is_empty());
    let declaration = link.check();
    let supplied: Vec<(u16, usize)> =
        declaration.supplied.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(supplied, [(0, 1), (4, 70_000), (9, 0)]);
    assert!(declaration.was_asked && declaration.wtxids.len() == 10);
}

#[test]
fn nothing_is_promised_before_the_transactions_are_there_and_they_are_asked_for_once_js5_js6() {
    let mut link = Link::new();
    link.declare(&Job::new(3, 10));
    let declaration = link.check();
    link.missing(declaration, &[1]);
    // The check has not got it back: no answer of it counts.
    assert!(link.checked(3, CheckOutcome::Approved(token(9))).is_empty());
    link.provide(3, &[vec![1]]);
    let declaration = link.check();
    let said = link.missing(declaration, &[1]);
    assert_eq!(refused(&said), "missing-txs");
}

#[test]
fn other_transactions_than_were_asked_for_are_no_answer_js5() {
    for count in [0, 1, 3, 500] {
        let mut link = Link::new();
        link.declare(&Job::new(3, 10));
        let declaration = link.check();
        link.missing(declaration, &[0, 1]);
        assert_eq!(refused(&link.provide(3, &vec![vec![1]; count])), "missing-txs");
        assert!(link.checks().is_empty());
    }
}

#[test]
fn transactions_that_nobody_asked_for_end_the_connection_js5() {
    let mut link = Link::new();
    assert!(link.try_provide(3, &[]).is_err());
    let mut link = Link::new();
    link.declare(&Job::new(3, 10));
    let declaration = link.check();
    assert!(link.try_provide(3, &[vec![1]]).is_err(), "before they are");
    let mut link = Link::new();
    link.declare(&Job::new(3, 10));
    link.missing(declaration, &[1]);
    assert!(link.try_provide(4, &[vec![1]]).is_err(), "for another request");
}

#[test]
fn a_declarer_that_never_sends_what_it_is_asked_for_is_told_no_in_time() {
    let mut link = Link::new();
    link.declare(&Job::new(3, 10));
    let declaration = link.check();
    link.missing(declaration, &[1]);
    assert_eq!(link.server.deadline_ms(), Some(link.now_ms + PROVIDE_WAIT_MS));
    assert!(link.pass(PROVIDE_WAIT_MS - 1).is_empty());
    assert_eq!(refused(&link.pass(1)), "missing-txs");
    // What was on its way then is let by, once.
    assert!(link.provide(3, &[vec![1]]).is_empty() && link.checks().is_empty());
    assert!(link.try_provide(3, &[vec![1]]).is_err());
}

#[test]
fn one_declarations_transactions_are_asked_for_at_a_time() {
    let mut link = Link::new();
    for request_id in 1..=3 {
        link.declare(&Job::new(request_id, 10));
    }
    let said: Vec<Said> =
        link.checks().into_iter().flat_map(|declaration| link.missing(declaration, &[2])).collect();
    assert_eq!(said, [Said::Asked { request_id: 1, positions: vec![2] }]);
    // While what came is checked, no more is asked for.
    assert!(link.provide(1, &[vec![1]]).is_empty());
    let said = link.checked(1, CheckOutcome::Approved(token(9)));
    let asked = Said::Asked { request_id: 2, positions: vec![2] };
    assert_eq!(said, [Said::Declared { request_id: 1, token: token(9) }, asked]);
    // Nor is a wait of one held against the next.
    let said = link.pass(PROVIDE_WAIT_MS);
    assert!(matches!(
        said[..],
        [Said::Refused { request_id: 2, .. }, Said::Asked { request_id: 3, .. }]
    ));
}

#[test]
fn the_large_frame_is_taken_only_while_transactions_are_asked_for() {
    let mut link = Link::new();
    assert_eq!(link.server.payload_max(), DECLARE_CLIENT_PAYLOAD_MAX);
    link.declare(&Job::new(3, 10));
    let declaration = link.check();
    assert_eq!(link.server.payload_max(), DECLARE_CLIENT_PAYLOAD_MAX);
    link.missing(declaration, &[1]);
    assert_eq!(link.server.payload_max(), DECLARE_PROVIDE_PAYLOAD_MAX);
    link.provide(3, &[vec![1]]);
    assert_eq!(link.server.payload_max(), DECLARE_CLIENT_PAYLOAD_MAX);
}

#[test]
fn who_keeps_his_transactions_gets_tokens_and_declares_nothing_js5() {
    let mut link = Link::with(0);
    link.allocate(1);
    assert_eq!(link.allocations().len(), 1);
    assert_eq!(link.allocated(1, Some(token(1))).len(), 1);
    assert_eq!(refused(&link.declare(&Job::new(3, 1))), "missing-declare-tx-data-flag");
    assert!(link.checks().is_empty());
    link.say(solution());
    assert!(!link.effects.iter().any(|effect| matches!(effect, Effect::Solution(_))));
    assert!(link.try_provide(3, &[]).is_err());
}

fn solution() -> PushSolution {
    PushSolution {
        extranonce: B032::new(&[4; 24]).unwrap(),
        prev_hash: [5; 32],
        nonce: 6,
        ntime: 7,
        nbits: 8,
        version: 9,
    }
}

#[test]
fn a_solution_is_passed_on_at_once_whatever_is_under_way_js7() {
    let mut link = Link::new();
    for request_id in 0..DECLARATIONS_OPEN_MAX as u32 - 1 {
        link.declare(&Job::new(request_id, 1));
    }
    link.effects.clear();
    assert!(link.say(solution()).is_empty(), "nothing is answered");
    let Some(Effect::Solution(passed)) = link.effects.pop() else { panic!("no solution") };
    let PushSolution { extranonce, prev_hash, nonce, ntime, nbits, version } = solution();
    assert_eq!(*passed, Solution { extranonce, prev_hash, nonce, ntime, nbits, version });
}

#[test]
fn solutions_are_passed_on_at_a_pace_js7() {
    let mut link = Link::new();
    for _ in 0..SOLUTIONS_BURST + 10 {
        link.say(solution());
    }
    assert_eq!(link.effects.len() as u64, SOLUTIONS_BURST);
    link.pass(SOLUTION_EVERY_MS);
    link.say(solution());
    link.say(solution());
    assert_eq!(link.effects.len() as u64, SOLUTIONS_BURST + 1);
}

#[test]
fn thirty_jobs_may_be_declared_at_once_and_one_every_two_seconds_after() {
    let mut link = Link::new();
    let declare = |link: &mut Link| {
        let said = link.declare(&Job::new(1, 1));
        match said[..] {
            [] => drop(link.checked(1, CheckOutcome::Approved(token(2)))),
            _ => assert_eq!(refused(&said), "stale-chain-tip"),
        }
        said.is_empty()
    };
    let at_once = (0..100).filter(|_| declare(&mut link)).count();
    assert_eq!(at_once as u64, DECLARATIONS_BURST);
    link.pass(DECLARATION_EVERY_MS - 1);
    assert!(!declare(&mut link));
    link.pass(1);
    assert!(declare(&mut link) && !declare(&mut link));
}

#[test]
fn a_new_tip_pays_for_its_tokens_and_declarations_whatever_the_pace() {
    let mut link = Link::new();
    let declare_until_refused = |link: &mut Link| {
        let is_taken = |_: &u32| {
            let said = link.declare(&Job::new(1, 1));
            link.checked(1, CheckOutcome::Approved(token(2)));
            said.is_empty()
        };
        (1..100).take_while(is_taken).count() as u64
    };
    // A full purse holds no more for it.
    assert!(link.handle(Input::NewTip).unwrap().is_empty());
    assert_eq!(declare_until_refused(&mut link), DECLARATIONS_BURST);
    for request_id in 0..DECLARER_TOKENS_BURST as u32 + 2 * JOBS_PER_TIP as u32 {
        link.allocate(request_id);
    }
    assert_eq!(link.allocations().len() as u64, DECLARER_TOKENS_BURST);
    for _ in 0..2 {
        // Who waits for a token has it at once.
        link.handle(Input::NewTip).unwrap();
        assert_eq!(link.allocations().len() as u64, JOBS_PER_TIP);
        assert_eq!(declare_until_refused(&mut link), JOBS_PER_TIP);
    }
}

#[test]
fn a_job_is_declared_up_to_each_bound_and_not_a_step_beyond() {
    let most = Job {
        token: vec![1; 16],
        prefix: vec![2; DECLARED_PREFIX_MAX],
        suffix: vec![3; COINBASE_OUTPUTS_MAX + SUFFIX_BESIDES_OUTPUTS_MAX],
        ..Job::new(1, DECLARED_TRANSACTIONS_MAX)
    };
    assert!(Link::new().declare(&most).is_empty());
    let longer = |bytes: &Vec<u8>| [bytes.as_slice(), &[0]].concat();
    let beyond = [
        (Job { token: longer(&most.token), ..most.clone() }, "invalid-mining-job-token"),
        (Job { token: vec![1; 15], ..most.clone() }, "invalid-mining-job-token"),
        (Job { prefix: longer(&most.prefix), ..most.clone() }, "invalid-coinbase-tx"),
        (Job { suffix: longer(&most.suffix), ..most.clone() }, "invalid-coinbase-tx"),
        (Job { suffix: vec![3; 65_535], ..most.clone() }, "invalid-coinbase-tx"),
        (Job::new(1, DECLARED_TRANSACTIONS_MAX + 1), "invalid-job"),
        (Job::new(1, 65_535), "invalid-job"),
    ];
    for (job, code) in beyond {
        let mut link = Link::new();
        assert_eq!(refused(&link.declare(&job)), code);
        assert!(link.checks().is_empty());
    }
}

#[test]
fn the_socket_is_left_alone_while_as_many_as_may_be_are_under_check() {
    let mut link = Link::new();
    for request_id in 1..=DECLARATIONS_OPEN_MAX as u32 {
        assert!(link.server.takes_more());
        link.declare(&Job::new(request_id, 10));
    }
    assert!(!link.server.takes_more());
    // What was in the same read all the same.
    assert_eq!(refused(&link.declare(&Job::new(77, 1))), "stale-chain-tip");
    link.checked(2, CheckOutcome::Approved(token(2)));
    assert!(link.server.takes_more());
}

#[test]
fn the_oldest_that_waits_for_its_declarer_gives_way_to_a_new_one() {
    let mut link = Link::new();
    let most = DECLARATIONS_OPEN_MAX as u32;
    for request_id in 1..=most {
        link.declare(&Job::new(request_id, 10));
    }
    for declaration in link.checks().into_iter().skip(1) {
        link.missing(declaration, &[1]);
    }
    assert!(link.server.takes_more());
    // 1 is under check and stays, 2 is asked for.
    let said = link.declare(&Job::new(77, 1));
    assert!(matches!(
        said[..],
        [Said::Refused { request_id: 2, .. }, Said::Asked { request_id: 3, .. },]
    ));
    assert_eq!(link.check().request_id, 77);
    assert!(link.provide(2, &[vec![1]]).is_empty(), "it was on its way");
}

#[test]
fn a_request_id_that_waits_for_its_answer_is_taken_js8() {
    let mut link = Link::new();
    link.declare(&Job::new(3, 1));
    let twice = Violation::Unexpected("a second DeclareMiningJob of one request_id");
    assert_eq!(link.try_declare(&Job::new(3, 1)), Err(twice));
}

#[test]
fn what_is_not_a_declarers_to_say_ends_the_connection() {
    let mut link = Link::new();
    let other = SetTarget { channel_id: 1, maximum_target: [0; 32] };
    let said = link.handle(Input::Message(Message::from(other)));
    assert_eq!(said, Err(Violation::Unexpected("SetTarget")));
}

proptest! {
    #[test]
    fn each_declaration_has_one_answer_whatever_the_order_js8(
        steps in proptest::collection::vec((0u8..6, any::<prop::sample::Index>()), 1..200),
    ) {
        let mut link = Link::new();
        let mut next = 0;
        // Under check; asked for; answers that each request had.
        let mut checking = Vec::new();
        let mut asked = Vec::new();
        let mut answers: HashMap<u32, u32> = HashMap::new();
        for (step, pick) in steps {
            let said = match step {
                0 | 1 => {
                    next += 1;
                    answers.insert(next, 0);
                    link.declare(&Job::new(next, 5))
                }
                2 | 3 if !checking.is_empty() => {
                    let declaration: Box<proto::declare::Declaration> =
                        checking.swap_remove(pick.index(checking.len()));
                    let id = declaration.request_id;
                    match (step, pick.index(4)) {
                        (2, _) => link.missing(declaration, &[0, 3]),
                        (_, 0) => link.checked(id, CheckOutcome::Refused {
                            refusal: DeclareRefusal::InvalidJob,
                            details: String::new(),
                        }),
                        _ => link.checked(id, CheckOutcome::Approved(token(1))),
                    }
                }
                4 if !asked.is_empty() => {
                    let id = asked.remove(0);
                    link.provide(id, &[vec![1], vec![2]])
                }
                5 => link.pass(pick.index(40_000) as u64),
                _ => Vec::new(),
            };
            checking.extend(link.checks());
            for one in said {
                match one {
                    Said::Asked { request_id, .. } => asked.push(request_id),
                    Said::Declared { request_id, .. } | Said::Refused { request_id, .. } => {
                        *answers.get_mut(&request_id).unwrap() += 1;
                    }
                    Said::Token { .. } => panic!("unasked"),
                }
            }
            prop_assert!(answers.values().all(|answers| *answers <= 1));
        }
        // In the end all have theirs.
        while !checking.is_empty() || answers.values().any(|answers| *answers == 0) {
            let mut said = Vec::new();
            for declaration in std::mem::take(&mut checking) {
                said.extend(link.checked(declaration.request_id, CheckOutcome::Approved(token(1))));
            }
            said.extend(link.pass(PROVIDE_WAIT_MS));
            for one in said {
                if let Said::Declared { request_id, .. } | Said::Refused { request_id, .. } = one {
                    *answers.get_mut(&request_id).unwrap() += 1;
                }
            }
        }
        prop_assert!(answers.values().all(|answers| *answers == 1));
    }
}
