//! Claims about Stratum V1 devices in front of a real mining server: whole conversations in lines, orders
//! and errors as firmware has them, and one step beyond each bound.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "common/sv1.rs"]
mod device;

use device::{EASY, Rig, START, active};
use job_declarator::limits::{
    SV1_BAD_LINES_MAX, SV1_ID_LEN_MAX, SV1_LINE_MAX, SV1_OPEN_WAIT_MS, SV1_REQUEST_EVERY_MS,
    SV1_REQUESTS_BURST, SV1_UNANSWERED_MAX, SV1_UNANSWERED_SPARE,
};
use job_declarator::sv1::{End, Out, Session, Terms};
use proptest::prelude::*;
use proto::limits::REFUSED_IN_A_ROW_MAX;
use proto::message::{
    CloseChannel, Message, OpenExtendedMiningChannelSuccess, OpenMiningChannelError,
    SetExtranoncePrefix, SubmitSharesSuccess,
};
use proto::target::Difficulty;
use proto::wire::{B032, Str0255};
use serde_json::{Value, json};

/// The server grants so much.
fn opened(prefix: &[u8], size: u16) -> Message<'static> {
    Message::from(OpenExtendedMiningChannelSuccess {
        request_id: 1,
        channel_id: 2,
        target: EASY.target().to_le_bytes(),
        extranonce_size: size,
        extranonce_prefix: B032::new(prefix).unwrap(),
        group_channel_id: 1,
    })
}

#[test]
fn a_share_put_together_from_lines_alone_is_accepted_by_the_server() {
    let mut rig = Rig::new();
    let job = rig.hello();
    assert!(job.clean);
    assert_eq!(job.header.prev_hash, active(900_000, 1).tip.hash);
    assert_eq!(job.path, active(900_000, 1).job.merkle_path());
    let (params, hash) = rig.ground(&job, 5, 0x2000, true);
    let answer = rig.ask("mining.submit", &params);
    assert_eq!((&answer["result"], &answer["error"]), (&json!(true), &Value::Null));
    let view = rig.server.channels().next().unwrap();
    assert_eq!((view.tally.accepted, view.tally.best), (1, Some(hash)));
    assert_eq!(rig.session.unanswered(), 0);
}

#[test]
fn difficulty_and_job_follow_the_answers_in_this_order() {
    let mut rig = Rig::new();
    rig.hello();
    let lines: Vec<Value> =
        rig.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<&str> = lines.iter().filter_map(|line| line["method"].as_str()).collect();
    assert_eq!(told, ["mining.set_difficulty", "mining.notify"]);
    // configure, authorize, subscribe before them.
    assert!(lines[..3].iter().all(|line| line["id"].is_u64()));
    assert_eq!(lines.len(), 5);
}

#[test]
fn the_channel_bears_the_name_that_follows_the_subscription() {
    let mut rig = Rig::new();
    rig.call("mining.subscribe", &json!([]));
    rig.call("mining.authorize", &json!(["alice.garage", "x"]));
    assert!(rig.asked.is_empty(), "a wish may still come");
    rig.wait(SV1_OPEN_WAIT_MS);
    assert_eq!(rig.identities, ["alice.garage"]);
}

#[test]
fn a_name_before_the_subscription_opens_nothing() {
    let mut rig = Rig::new();
    let answer = rig.ask("mining.authorize", &json!(["alice", "d=0.001"]));
    assert_eq!(answer["result"], true);
    rig.wait(60_000);
    assert!(rig.asked.is_empty());
    // Name and wish are known: nothing to wait for.
    let answer = rig.ask("mining.subscribe", &json!([]));
    rig.subscribed(&answer);
    assert_eq!(rig.identities, ["alice"]);
    assert_eq!(rig.notified().len(), 1);
}

#[test]
fn who_waits_for_the_subscription_is_answered_and_named_later() {
    let mut rig = Rig::new();
    let id = rig.call("mining.subscribe", &json!(["cgminer/4.11.1"]));
    rig.wait(SV1_OPEN_WAIT_MS - 1);
    assert_eq!(rig.answer_if_there(&id), None);
    assert_eq!(rig.session.deadline_ms(), Some(START.mono_ms + SV1_OPEN_WAIT_MS));
    rig.wait(1);
    let answer = rig.answer_to(&id);
    rig.subscribed(&answer);
    assert_eq!((&rig.identities[..], rig.session.worker()), (&["sv1".to_owned()][..], None));
    assert!(rig.heard.is_empty(), "no work before a name");
    let refused = rig.ask("mining.submit", &json!(["a", "1", "00", "0", "0"]));
    assert_eq!(refused["error"][0], 24);
    // Jobs that come meanwhile: the newest is the first to be seen.
    rig.template(active(900_000, 2));
    rig.call("mining.authorize", &json!(["bob.attic\u{e9}\n"]));
    assert_eq!(rig.session.worker(), Some("bob.attic??"));
    assert_eq!(rig.session.user_agent(), Some("cgminer/4.11.1"));
    let jobs = rig.notified();
    assert_eq!((jobs.len(), jobs[0].clean), (1, true));
    assert_eq!(jobs[0].path, active(900_000, 2).job.merkle_path());
    let mut share = rig.found(&jobs[0], 1, 0x6000);
    share.as_array_mut().unwrap().pop();
    assert_eq!(rig.ask("mining.submit", &share)["error"], Value::Null);
}

#[test]
fn a_second_subscription_gets_the_same_answer_and_a_second_name_changes_nothing() {
    let mut rig = Rig::new();
    let ids = [(); 5].map(|()| rig.call("mining.subscribe", &json!([])));
    assert_eq!(rig.answer_to(&ids[4])["error"][0], 20, "four may wait");
    rig.call("mining.authorize", &json!(["alice"]));
    rig.wait(SV1_OPEN_WAIT_MS);
    let answers = [0, 1, 2, 3].map(|at: usize| rig.answer_to(&ids[at])["result"].clone());
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(rig.ask("mining.subscribe", &Value::Null)["result"], answers[0]);
    assert_eq!(rig.ask("mining.authorize", &json!(["mallory"]))["result"], true);
    assert_eq!(rig.session.worker(), Some("alice"));
    assert_eq!(rig.identities.len(), 1);
    assert_eq!(rig.notified().len(), 1);
}

#[test]
fn a_difficulty_below_one_is_said_in_all_its_digits_and_can_be_met() {
    let mut rig = Rig::with(Difficulty::from_log2(-26), active(900_000, 1));
    rig.call("mining.subscribe", &json!([]));
    rig.call("mining.suggest_difficulty", &json!([0.0000001]));
    rig.call("mining.authorize", &json!(["nerd"]));
    // 2^-23 is the power of two nearest to the wish.
    let said = "\"params\":[0.00000011920928955078125]}";
    assert!(rig.text.contains(said), "{}", rig.text);
    assert_eq!(rig.notified()[0].difficulty, 2f64.powi(-23));
}

#[test]
fn a_wish_that_comes_late_is_told_once_the_server_listens() {
    for (method, params) in [
        ("mining.suggest_difficulty", json!([0.001])),
        ("mining.suggest_difficulty", json!(["0.001"])),
        ("mining.suggest_target", json!([format!("{:0<64}", "000003fffc")])),
        ("mining.authorize", json!(["alice", "x,d=0.001"])),
    ] {
        let mut rig = Rig::new();
        rig.hello();
        let answer = rig.ask(method, &params);
        assert_eq!(answer["result"], true, "{method}");
        rig.wait(10_999);
        assert_eq!(rig.asked, ["OpenExtendedMiningChannel"]);
        rig.notified();
        rig.wait(1);
        assert_eq!(rig.asked, ["OpenExtendedMiningChannel", "UpdateChannel"]);
        let job = rig.notified().pop().unwrap();
        assert_eq!((job.difficulty, job.clean), (2f64.powi(-10), false), "{method}");
        assert_eq!(rig.session.deadline_ms(), None);
    }
}

#[test]
fn what_is_no_difficulty_is_no_wish() {
    let mut rig = Rig::new();
    rig.hello();
    for wish in [json!([]), json!([0]), json!([-1]), json!(["NaN"]), json!([{}]), Value::Null] {
        assert_eq!(rig.ask("mining.suggest_difficulty", &wish)["error"][0], 20, "{wish}");
    }
    for wish in [json!(["xyz"]), json!(["00"]), json!([format!("{:0>65}", 1)]), json!([7])] {
        assert_eq!(rig.ask("mining.suggest_target", &wish)["error"][0], 20, "{wish}");
    }
    rig.wait(20_000);
    assert_eq!(rig.asked, ["OpenExtendedMiningChannel"]);
}

#[test]
fn extensions_are_granted_or_denied_one_by_one() {
    let mut rig = Rig::new();
    let ask = json!([["version-rolling", "minimum-difficulty", "subscribe-extranonce", "info"], {
        "version-rolling.mask": "0000f000", "minimum-difficulty.value": 0.003,
    }]);
    let result = rig.ask("mining.configure", &ask)["result"].clone();
    assert_eq!(
        result,
        json!({
            "version-rolling": true, "version-rolling.mask": "0000e000",
            "minimum-difficulty": true, "subscribe-extranonce": true, "info": false,
        })
    );
    // 2^-8 is the easiest power of two above the minimum, whatever the device wishes.
    rig.call("mining.subscribe", &json!([]));
    rig.call("mining.authorize", &json!(["alice", "d=0.000001"]));
    assert_eq!(rig.notified()[0].difficulty, 2f64.powi(-8));
    // An order counts at once.
    let ask = json!([["minimum-difficulty"], {"minimum-difficulty.value": 16}]);
    assert_eq!(rig.ask("mining.configure", &ask)["result"], json!({"minimum-difficulty": true}));
    assert_eq!(rig.notified()[0].difficulty, 16.0);
    for mask in [json!("00001fff"), json!("123456789"), json!("+1ffe000"), json!(1)] {
        let ask = json!([["version-rolling"], {"version-rolling.mask": mask}]);
        let result = rig.ask("mining.configure", &ask)["result"].clone();
        assert_eq!(result["version-rolling"], false, "{mask}");
    }
    let ask = json!([["version-rolling"], {"version-rolling.min-bit-count": 17}]);
    assert_eq!(rig.ask("mining.configure", &ask)["result"]["version-rolling"], false);
}

#[test]
fn an_order_that_comes_while_the_channel_opens_counts_once_it_is_open() {
    let mut session = Session::new(Terms::default(), START);
    let mut out = Out::default();
    let hello = b"{\"id\":1,\"method\":\"mining.authorize\",\"params\":[\"a\",\"d=1\"]}\n\
                  {\"id\":2,\"method\":\"mining.subscribe\"}\n\
                  {\"id\":3,\"method\":\"mining.ping\"}\n";
    session.feed(START, hello, &mut out).unwrap();
    let order = b"{\"id\":4,\"method\":\"mining.configure\",\"params\":\
                  [[\"minimum-difficulty\"],{\"minimum-difficulty.value\":4}]}\n";
    session.feed(START, order, &mut out).unwrap();
    assert_eq!(out.requests.len(), 1);
    session.hear(START, &opened(&[7; 8], 16), &mut out).unwrap();
    assert_eq!(session.deadline_ms(), Some(START.mono_ms));
    session.time(START, &mut out);
    let Message::UpdateChannel(update) = out.requests[1].message() else { unreachable!() };
    assert_eq!(update.maximum_target, Difficulty::from_log2(2).target().to_le_bytes());
    assert_eq!(session.deadline_ms(), None);
}

#[test]
fn version_bits_are_good_inside_of_the_mask_and_refused_one_beyond() {
    let mut rig = Rig::new();
    let job = rig.hello();
    for bits in [0, 0x2000, 0x1000_0000, 0x1fff_e000] {
        let share = rig.found(&job, 1, bits);
        assert_eq!(rig.ask("mining.submit", &share)["result"], true, "{bits:x}");
    }
    for bits in [0x1000, 0x2000_0000] {
        let share = rig.found(&job, 2, bits);
        assert_eq!(rig.ask("mining.submit", &share)["error"][0], 20, "{bits:x}");
    }
    // Without bits the version is the job's.
    let mut share = rig.found(&job, 3, 0x6000);
    share.as_array_mut().unwrap().pop();
    assert_eq!(rig.ask("mining.submit", &share)["result"], true);
}

#[test]
fn a_device_that_negotiated_no_bits_may_roll_none() {
    let mut rig = Rig::new();
    rig.call("mining.subscribe", &json!([]));
    rig.call("mining.authorize", &json!(["alice", "d=0.0000001"]));
    let answer = rig.ask("mining.subscribe", &json!([]));
    rig.subscribed(&answer);
    let job = rig.notified().pop().unwrap();
    let mut share = rig.found(&job, 1, 0x6000);
    assert_eq!(rig.ask("mining.submit", &share)["error"][0], 20);
    share[5] = json!("00000000");
    assert_eq!(rig.ask("mining.submit", &share)["result"], true);
}

#[test]
fn a_new_tip_is_clean_and_a_fuller_job_is_not() {
    let mut rig = Rig::new();
    let old = rig.hello();
    rig.template(active(900_000, 2));
    let fuller = rig.notified();
    assert_eq!((fuller.len(), fuller[0].clean), (1, false));
    assert_eq!(fuller[0].header.prev_hash, old.header.prev_hash);
    // A share of the job before it is still good.
    let share = rig.found(&old, 1, 0);
    assert_eq!(rig.ask("mining.submit", &share)["result"], true);

    let late = rig.found(&old, 2, 0);
    rig.template(active(900_001, 1));
    let jobs = rig.notified();
    assert_eq!(jobs.iter().map(|job| job.clean).collect::<Vec<_>>(), [true, false]);
    assert!(jobs.iter().all(|job| job.header.prev_hash == active(900_001, 1).tip.hash));
    for job in &jobs {
        let share = rig.found(job, 1, 0);
        assert_eq!(rig.ask("mining.submit", &share)["result"], true);
    }
    let stale = rig.ask("mining.submit", &late);
    assert_eq!(stale["error"], json!([21, "Stale share", null]));
}

#[test]
fn each_bad_share_has_its_number() {
    let mut rig = Rig::new();
    let answer = rig.ask("mining.submit", &json!(["a", "1", "00", "0", "0"]));
    assert_eq!(answer["error"], json!([25, "Not subscribed", null]));
    let job = rig.hello();
    let share = rig.found(&job, 1, 0);
    assert_eq!(rig.ask("mining.submit", &share)["result"], true);
    let mut again = share.clone();
    again[2] = json!(share[2].as_str().unwrap().to_uppercase());
    assert_eq!(rig.ask("mining.submit", &again)["error"], json!([22, "Duplicate share", null]));
    let (low, _) = rig.ground(&job, 2, 0, false);
    assert_eq!(rig.ask("mining.submit", &low)["error"], json!([23, "Low difficulty share", null]));
    let server_saw = rig.asked.len();

    let changed = |at: usize, value: Value| {
        let mut share = share.clone();
        share[at] = value;
        share
    };
    let long = format!("{}00", share[2].as_str().unwrap());
    for (params, code) in [
        (changed(1, json!("fff")), 21),
        (changed(1, json!(1)), 21),
        (changed(2, json!("00")), 20),
        (changed(2, json!(long)), 20),
        (changed(2, json!("zz")), 20),
        (changed(3, json!("123456789")), 20),
        (changed(4, json!("+1")), 20),
        (changed(4, json!("")), 20),
        (changed(5, json!("g")), 20),
        (json!(["alice"]), 20),
        (json!({"job": 1}), 20),
        (Value::Null, 20),
    ] {
        assert_eq!(rig.ask("mining.submit", &params)["error"][0], code, "{params}");
    }
    assert_eq!(rig.asked.len(), server_saw);
    // One of them was submitted before anything else.
    assert_eq!(rig.session.refused(), 13);
    let early = changed(3, json!("00000001"));
    let refused = rig.ask("mining.submit", &early);
    assert_eq!(refused["error"], json!([20, "invalid-ntime", null]));
}

#[test]
fn a_nonce_without_its_leading_zeros_is_a_number_all_the_same() {
    let mut rig = Rig::new();
    let job = rig.hello();
    let mut share = rig.found(&job, 1, 0);
    let nonce = share[4].as_str().unwrap().trim_start_matches('0').to_owned();
    share[4] = json!(nonce);
    assert!(nonce.len() < 8);
    assert_eq!(rig.ask("mining.submit", &share)["result"], true);
}

#[test]
fn one_acknowledgement_answers_each_share_of_its_batch_under_its_own_id() {
    let mut rig = Rig::new();
    let job = rig.hello();
    rig.commits = false;
    let good: Vec<Value> = (1..4).map(|at| rig.found(&job, at, 0)).collect();
    let (low, _) = rig.ground(&job, 9, 0, false);
    let line = |id: Value, params: &Value| {
        format!("{}\n", json!({"id": id, "method": "mining.submit", "params": params}))
    };
    let burst = [
        line(json!("a"), &good[0]),
        line(json!(7), &low),
        line(json!(null), &good[1]),
        line(json!("\u{e9}"), &good[2]),
    ];
    rig.feed(burst.concat().as_bytes());
    // Told no at once, though it came in between.
    assert_eq!(rig.answer_to(&json!(7))["error"][0], 23);
    assert_eq!((rig.session.unanswered(), rig.answer_if_there(&json!("a"))), (3, None));
    rig.commit();
    for id in [json!("a"), json!(null), json!("\u{e9}")] {
        assert_eq!(rig.answer_to(&id)["result"], true, "{id}");
    }
    assert_eq!(rig.session.unanswered(), 0);
}

#[test]
fn batches_that_are_committed_out_of_turn_answer_their_own_shares() {
    let mut rig = Rig::new();
    let job = rig.hello();
    rig.commits = false;
    let mut ids = Vec::new();
    for at in 1..4 {
        let share = rig.found(&job, at, 0);
        ids.push(rig.call("mining.submit", &share));
    }
    rig.batches.rotate_left(1);
    rig.commit();
    assert_eq!(rig.answer_to(&ids[1])["result"], true);
    assert_eq!((rig.answer_if_there(&ids[0]), rig.answer_if_there(&ids[2])), (None, None));
    rig.commit();
    rig.commit();
    assert_eq!(rig.answer_to(&ids[0])["result"], true);
    assert_eq!(rig.answer_to(&ids[2])["result"], true);
}

#[test]
fn ids_come_back_as_they_were_written() {
    let mut rig = Rig::new();
    for id in ["1", "-7", "1.50", "18446744073709551616", r#""a\u0041\"""#, "null"] {
        rig.feed(format!("{{\"id\":{id},\"method\":\"mining.ping\"}}\n").as_bytes());
        let answer = format!("{{\"id\":{id},\"result\":\"pong\",\"error\":null}}\n");
        assert!(rig.text.ends_with(&answer), "{}", rig.text);
    }
    let longest = "7".repeat(SV1_ID_LEN_MAX);
    rig.feed(format!("{{\"id\":{longest},\"method\":\"mining.ping\"}}\n").as_bytes());
    assert!(rig.text.ends_with("\"result\":\"pong\",\"error\":null}\n"));
    for id in [&format!("{longest}7"), "true", "[1]", "{}"] {
        rig.feed(format!("{{\"id\":{id},\"method\":\"mining.ping\"}}\n").as_bytes());
        assert!(rig.text.ends_with("number\",null]}\n"), "{}", rig.text);
    }
    assert_eq!(rig.ended, None);
}

#[test]
fn small_talk_is_answered_and_unknown_methods_are_told_so() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask("mining.multi_version", &json!([1]))["result"], true);
    assert_eq!(rig.ask("mining.extranonce.subscribe", &json!([]))["result"], true);
    assert_eq!(rig.ask("mining.get_transactions", &json!(["1"]))["result"], json!([]));
    let unknown = rig.ask("mining.capabilities", &json!({}));
    assert_eq!(unknown["error"], json!([-3, "Method not found", null]));
    let said = rig.text.len();
    // Answers to what was never asked, blank lines, and the end that Windows writes.
    rig.feed(b"\r\n\n   \n{\"id\":3,\"result\":true,\"error\":null}\r\n");
    assert_eq!((rig.text.len(), &rig.ended), (said, &None));
}

#[test]
fn lines_may_come_in_pieces_and_end_in_a_carriage_return() {
    let mut rig = Rig::new();
    for byte in b"{\"id\":1,\"method\":\"mining.ping\",\"extra\":{}}\r\n" {
        rig.feed(&[*byte]);
    }
    rig.feed(b"{\"id\":2,\"method\":\"mining.ping\"}\n{\"id\":3,\"method\":\"mini");
    rig.feed(b"ng.ping\"}\n");
    for id in 1..4 {
        assert_eq!(rig.answer_to(&json!(id))["result"], "pong");
    }
}

#[test]
fn a_line_of_the_longest_length_passes_and_one_byte_more_ends_the_session() {
    let line = |len: usize| {
        let line = r#"{"id":1,"method":"mining.ping"}"#;
        format!("{line}{}\n", " ".repeat(len - line.len()))
    };
    for cut in [0, 700] {
        let mut rig = Rig::new();
        let longest = line(SV1_LINE_MAX);
        rig.feed(&longest.as_bytes()[..cut]);
        rig.feed(&longest.as_bytes()[cut..]);
        assert_eq!(rig.answer_to(&json!(1))["result"], "pong");
        let longer = line(SV1_LINE_MAX + 1);
        rig.feed(&longer.as_bytes()[..cut]);
        rig.feed(&longer.as_bytes()[cut..]);
        assert_eq!(rig.ended, Some(End::LineTooLong));
    }
    // Also without an end.
    let mut rig = Rig::new();
    rig.feed(&[b' '; SV1_LINE_MAX]);
    assert_eq!(rig.ended, None);
    rig.feed(b" ");
    assert_eq!(rig.ended, Some(End::LineTooLong));
}

#[test]
fn bad_lines_are_told_so_until_they_are_too_many_in_a_row() {
    let mut rig = Rig::new();
    for bad in ["GET / HTTP/1.1", "{\"id\":1", "[]{}", "7", "\u{1}\u{2}"] {
        rig.feed(format!("{bad}\n").as_bytes());
        assert_eq!(rig.answer_to(&json!(null))["error"], json!([20, "Parse error", null]));
    }
    rig.call("mining.ping", &json!([]));
    for _ in 0..SV1_BAD_LINES_MAX {
        rig.feed(b"{\"method\":7}\n");
    }
    assert_eq!(rig.ended, None);
    rig.feed(b"\xff\xfe\n");
    assert_eq!(rig.ended, Some(End::NotJson(SV1_BAD_LINES_MAX + 1)));
}

#[test]
fn requests_have_a_burst_and_a_pace_and_shares_do_not_count() {
    let mut rig = Rig::new();
    let job = rig.hello();
    rig.wait(60_000);
    for _ in 0..SV1_REQUESTS_BURST {
        rig.call("mining.ping", &json!([]));
    }
    for at in 1..20 {
        let share = rig.found(&job, at, 0);
        assert_eq!(rig.ask("mining.submit", &share)["result"], true);
    }
    rig.wait(SV1_REQUEST_EVERY_MS);
    assert_eq!(rig.ask("mining.ping", &json!([]))["result"], "pong");
    assert_eq!(rig.ended, None);
    rig.wait(SV1_REQUEST_EVERY_MS - 1);
    rig.call("mining.ping", &json!([]));
    assert_eq!(rig.ended, Some(End::Flood));
}

#[test]
fn malformed_shares_in_a_row_end_the_session_at_the_servers_own_bound() {
    let mut rig = Rig::new();
    rig.hello();
    let (now, bad) = (rig.now, "{\"id\":1,\"method\":\"mining.submit\"}\n");
    let mut out = Out::default();
    for _ in 1..REFUSED_IN_A_ROW_MAX {
        rig.session.feed(now, bad.as_bytes(), &mut out).unwrap();
    }
    let end = rig.session.feed(now, bad.as_bytes(), &mut out);
    assert_eq!(end, Err(End::OnlyBadShares(REFUSED_IN_A_ROW_MAX)));
}

#[test]
fn unanswered_shares_stop_the_reading_and_beyond_it_are_refused() {
    let mut rig = Rig::new();
    let job = rig.hello();
    let line = |nonce: usize| {
        let extranonce2 = "00".repeat(rig.extranonce2_len);
        let params = json!(["a", job.id, extranonce2, "0", format!("{nonce:x}")]);
        format!("{}\n", json!({"id": nonce, "method": "mining.submit", "params": params}))
    };
    let lines: Vec<String> = (0..=SV1_UNANSWERED_MAX).map(line).collect();
    let mut out = Out::default();
    // A server that says nothing.
    for (at, line) in lines.iter().enumerate() {
        let may = at + SV1_UNANSWERED_SPARE <= SV1_UNANSWERED_MAX;
        assert_eq!(rig.session.takes_more(), may, "{at}");
        rig.session.feed(rig.now, line.as_bytes(), &mut out).unwrap();
    }
    assert_eq!(out.requests.len(), SV1_UNANSWERED_MAX);
    assert_eq!(rig.session.unanswered(), SV1_UNANSWERED_MAX);
    let refused = String::from_utf8(out.lines).unwrap();
    assert!(refused.contains("Too many shares") && refused.lines().count() == 1);
}

#[test]
fn a_channel_that_is_refused_or_closed_ends_the_session_with_the_servers_word() {
    let mut rig = Rig::new();
    let id = rig.call("mining.subscribe", &json!([]));
    // Known to the session as asked for, but answered with no.
    let mut out = Out::default();
    rig.now.mono_ms += SV1_OPEN_WAIT_MS;
    rig.session.time(rig.now, &mut out);
    let error_code = Str0255::text("channel-capacity-exhausted");
    let refused = Message::from(OpenMiningChannelError { request_id: 1, error_code });
    let end = rig.session.hear(rig.now, &refused, &mut out);
    assert_eq!(end, Err(End::OpenRefused("channel-capacity-exhausted".to_owned())));
    let answer: Value = serde_json::from_slice(&out.lines).unwrap();
    assert_eq!((&answer["id"], &answer["error"][0]), (&id, &json!(20)));

    let mut rig = Rig::new();
    rig.hello();
    let reason_code = Str0255::text("bye");
    let close = Message::from(CloseChannel { channel_id: 2, reason_code });
    let end = rig.session.hear(rig.now, &close, &mut out);
    assert_eq!(end, Err(End::ChannelClosed("bye".to_owned())));
}

#[test]
fn another_extranonce_goes_to_those_who_can_follow() {
    let prefix = B032::new(&[0xab; 4]).unwrap();
    let set = Message::from(SetExtranoncePrefix { channel_id: 2, extranonce_prefix: prefix });
    let mut rig = Rig::new();
    rig.hello();
    let mut out = Out::default();
    assert_eq!(rig.session.hear(rig.now, &set, &mut out), Err(End::ExtranonceChanged));
    let mut rig = Rig::new();
    rig.call("mining.extranonce.subscribe", &json!([]));
    rig.hello();
    rig.session.hear(rig.now, &set, &mut out).unwrap();
    let said: Value = serde_json::from_slice(&out.lines).unwrap();
    assert_eq!(said["method"], "mining.set_extranonce");
    assert_eq!(said["params"], json!(["abababab", rig.extranonce2_len]));
}

#[test]
fn lengths_are_those_that_the_server_granted() {
    let mut session = Session::new(Terms::default(), START);
    let mut out = Out::default();
    let hello = b"{\"id\":1,\"method\":\"mining.authorize\",\"params\":[\"a\",\"d=1\"]}\n\
                  {\"id\":2,\"method\":\"mining.subscribe\"}\n";
    session.feed(START, hello, &mut out).unwrap();
    assert_eq!(out.requests.len(), 1);
    out.lines.clear();
    session.hear(START, &opened(&[0, 0, 0, 5], 8), &mut out).unwrap();
    let text = String::from_utf8(out.lines).unwrap();
    let answer: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&answer["result"][1], &answer["result"][2]), (&json!("00000005"), &json!(8)));
}

#[test]
fn a_success_that_fits_nothing_answers_nothing() {
    let mut rig = Rig::new();
    rig.hello();
    let mut out = Out::default();
    for (last, count) in [(0, 1), (u32::MAX, u32::MAX), (7, 0)] {
        let success = Message::from(SubmitSharesSuccess {
            channel_id: 2,
            last_sequence_number: last,
            new_submits_accepted_count: count,
            new_shares_sum: 1,
        });
        rig.session.hear(rig.now, &success, &mut out).unwrap();
    }
    assert!(out.lines.is_empty());
}

/// Pieces of what devices say, and of what they do not.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n",
        "{\"id\":\"x\",\"method\":\"mining.authorize\",\"params\":[\"a\",\"d=1e999\"]}\n",
        "{\"id\":1,\"method\":\"mining.submit\",\"params\":[\"a\",\"1\",\"",
        "00000000000000000000000000000000",
        "\",\"0\",\"0\",\"1fffe000\"]}\n",
        "{\"id\":1,\"method\":\"mining.configure\",\"params\":[[\"version-rolling\",\"minimum-difficulty\"],{",
        "\"version-rolling.mask\":\"ffffffffffffffffff\"}]}\n",
        "\"minimum-difficulty.value\":-1e308}]}\n",
        "{\"id\":1,\"method\":\"mining.suggest_target\",\"params\":[\"\u{e9}",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        "\"]}\n",
        "\n",
        "\r",
    ]);
    prop_oneof![
        4 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..1_200),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic_or_make_more_than_a_few_times_as_many(
        pieces in prop::collection::vec(piece(), 0..60),
        pause_ms in 0_u64..400,
    ) {
        let mut rig = Rig::new();
        let mut fed = 0;
        for piece in pieces {
            fed += piece.len();
            rig.feed(&piece);
            if rig.ended.is_some() {
                break;
            }
            rig.wait(pause_ms);
            prop_assert!(rig.session.unanswered() <= SV1_UNANSWERED_MAX);
        }
        // Each line of 33 bytes or more has an answer of at most 200 besides its id, and a minute brings a
        // few jobs of 700.
        prop_assert!(rig.text.len() <= 8 * fed + 40_000, "{} of {fed}", rig.text.len());
    }
}
