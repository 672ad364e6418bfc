//! Opening, updating and closing channels: rules P1 to P16.

use std::collections::BTreeSet;

use proto::connection::Violation;
use proto::extranonce::ExtranonceAllocator;
use proto::limits::{
    CHANNELS_PER_CONNECTION_MAX, DIFFICULTY_LOG2_MAX, EXTRANONCE_LEN, EXTRANONCE_ROLLABLE_LEN,
    OPEN_EVERY_MS, OPENS_BURST, USER_IDENTITY_MAX,
};
use proto::message::{
    CloseChannel, OpenExtendedMiningChannel, OpenStandardMiningChannel, setup_flags,
};
use proto::mining::Kind;
use proto::mining::server::{Effect, Input, Policy};
use proto::target::{Difficulty, Target};
use proto::wire::Str0255;

use crate::common::{
    ANY_TARGET, Chain, DECLARED_RATE, HARD_NBITS, Link, Said, easy_policy, lively_policy,
};

const KINDS: [Kind; 2] = [Kind::Standard, Kind::Extended];

fn target_of(log2: i16) -> [u8; 32] {
    Difficulty::from_log2(log2).target().to_le_bytes()
}

fn open_extended(min_extranonce_size: u16) -> OpenExtendedMiningChannel<'static> {
    OpenExtendedMiningChannel {
        request_id: 5,
        user_identity: Str0255::text("alice"),
        nominal_hash_rate: DECLARED_RATE,
        max_target: ANY_TARGET,
        min_extranonce_size,
    }
}

fn only_code(said: &[Said]) -> &str {
    assert_eq!(said.len(), 1, "{said:?}");
    said[0].code().expect("a refusal")
}

#[test]
fn both_kinds_of_channel_open_p1_p2() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for kind in KINDS {
        let said = link.open(kind, DECLARED_RATE, ANY_TARGET);
        assert!(matches!(said[0], Said::Opened { kind: opened, .. } if opened == kind));
    }
}

#[test]
fn a_kind_that_the_setup_ruled_out_is_refused_p3() {
    let cases = [
        (setup_flags::REQUIRES_WORK_SELECTION, Kind::Standard, Kind::Extended),
        (setup_flags::REQUIRES_STANDARD_JOBS, Kind::Extended, Kind::Standard),
    ];
    for (flags, refused, opened) in cases {
        let mut link = Link::with(easy_policy(), flags, Chain::new(HARD_NBITS).active());
        let said = link.open(refused, DECLARED_RATE, ANY_TARGET);
        assert!(matches!(said[..], [Said::OpenError { .. }]), "{said:?}");
        let said = link.open(opened, DECLARED_RATE, ANY_TARGET);
        assert!(matches!(said[0], Said::Opened { .. }));
    }
}

#[test]
fn a_target_limit_is_kept_and_one_beyond_reach_is_refused_p4() {
    for kind in KINDS {
        let mut link = Link::new(&Chain::new(HARD_NBITS));
        for log2 in [-32, 0, 40, DIFFICULTY_LOG2_MAX] {
            let said = link.open(kind, 0.0, target_of(log2));
            let Said::Opened { target, .. } = said[0] else { panic!("{said:?}") };
            assert_eq!(target, Difficulty::from_log2(log2).target());
        }
        let mut one = [0; 32];
        one[0] = 1;
        for beyond in [target_of(DIFFICULTY_LOG2_MAX + 1), one, [0; 32]] {
            let said = link.open(kind, 0.0, beyond);
            assert_eq!(only_code(&said), "max-target-out-of-range");
        }
    }
}

#[test]
fn a_limit_between_two_powers_of_two_is_rounded_to_the_harder_p4() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let mut just_below = target_of(10);
    just_below[0] = 0xff;
    just_below[30] = 0;
    let said = link.open(Kind::Extended, 0.0, just_below);
    let Said::Opened { target, .. } = said[0] else { panic!("{said:?}") };
    assert!(target <= Target::from_le_bytes(just_below));
}

#[test]
fn the_extranonce_that_was_asked_for_is_granted_or_the_open_refused_p5() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for enough in [0, 4, EXTRANONCE_ROLLABLE_LEN as u16] {
        let said = link.say(open_extended(enough));
        let Said::Opened { rollable, ref prefix, .. } = said[0] else { panic!("{said:?}") };
        assert!(rollable >= usize::from(enough));
        assert!(prefix.len() + rollable <= 32);
    }
    for too_much in [EXTRANONCE_ROLLABLE_LEN as u16 + 1, 33, u16::MAX] {
        assert_eq!(only_code(&link.say(open_extended(too_much))), "min-extranonce-size-too-large");
    }
}

#[test]
fn the_request_id_comes_back_in_every_answer_p6() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for id in [0, 7, u32::MAX] {
        let good = OpenExtendedMiningChannel { request_id: id, ..open_extended(4) };
        let said = link.say(good);
        assert!(matches!(said[0], Said::Opened { request_id, .. } if request_id == id));
        let bad = OpenExtendedMiningChannel { min_extranonce_size: 17, ..good };
        let said = link.say(bad);
        assert!(matches!(said[..], [Said::OpenError { request_id, .. }] if request_id == id));
    }
}

#[test]
fn no_id_is_given_twice_nor_to_a_group_and_a_channel_p7_p12() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let mut ids = BTreeSet::new();
    for _ in 0..40 {
        let opened: Vec<u32> = (0..25).map(|_| link.open_at_floor(Kind::Extended)).collect();
        for channel in opened {
            assert!(ids.insert(channel), "{channel} twice");
            link.close(channel);
        }
    }
    assert_eq!(ids.len(), 1_000);
}

#[test]
fn no_two_channels_anywhere_share_search_space_p8() {
    let chain = Chain::new(HARD_NBITS);
    let mut prefixes: Vec<Vec<u8>> = Vec::new();
    for (node, epoch) in [(1, 1), (1, 2), (2, 1)] {
        let allocator = ExtranonceAllocator::new(node, epoch);
        for _ in 0..3 {
            let mut link = Link::on(allocator.clone(), easy_policy(), 0, chain.active());
            for kind in [Kind::Standard, Kind::Extended, Kind::Extended] {
                let channel = link.open_at_floor(kind);
                prefixes.push(link.client.device(channel).prefix.clone());
                link.close(channel);
            }
        }
    }
    for (at, one) in prefixes.iter().enumerate() {
        for other in &prefixes[at + 1..] {
            assert!(!one.starts_with(other) && !other.starts_with(one), "{one:?} {other:?}");
        }
    }
}

#[test]
fn every_channel_has_the_same_full_extranonce_length_p9() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for kind in [Kind::Standard, Kind::Extended, Kind::Standard, Kind::Extended] {
        let channel = link.open_at_floor(kind);
        let device = link.client.device(channel);
        assert_eq!(device.prefix.len() + device.rollable, EXTRANONCE_LEN);
    }
}

#[test]
fn a_client_of_standard_jobs_never_hears_of_a_group_p11() {
    let mut chain = Chain::new(HARD_NBITS);
    let flags = setup_flags::REQUIRES_STANDARD_JOBS;
    let mut link = Link::with(easy_policy(), flags, chain.active());
    for _ in 0..3 {
        link.open_at_floor(Kind::Standard);
    }
    let mut said = link.template(chain.fuller());
    said.extend(link.template(chain.advance()));
    said.extend(link.pass(60_000));
    let own = |one: &Said| match one {
        Said::Job { channel, .. }
        | Said::PrevHash { channel, .. }
        | Said::Target { channel, .. } => *channel != 1,
        other => panic!("{other:?}"),
    };
    assert!(said.len() >= 15 && said.iter().all(own), "{said:?}");
}

#[test]
fn nothing_is_said_to_a_closed_channel_p13() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    let closed = link.open_at_floor(Kind::Extended);
    let stays = link.open_at_floor(Kind::Extended);
    let share = link.client.good_share(closed);
    assert!(link.submit(&share).is_empty());

    assert!(link.close(closed).is_empty());
    assert!(
        link.effects.iter().any(|effect| matches!(effect, Effect::Closed(id, _) if id.0 == closed))
    );

    // Its share is in the ledger's hands and stays credited; nobody is told.
    let mut ledger = crate::common::Ledger::default();
    assert!(link.commit(&mut ledger).is_empty());
    assert_eq!(ledger.credited.len(), 1);
    // The client refuses to hear any of this for the closed channel.
    link.template(chain.fuller());
    link.template(chain.advance());
    link.pass(120_000);
    assert_eq!(link.server.channels().map(|view| view.id.0).collect::<Vec<_>>(), [stays]);
}

#[test]
fn closing_the_group_closes_every_member_and_an_unknown_id_none_p13() {
    let mut chain = Chain::new(HARD_NBITS);
    let mut link = Link::new(&chain);
    for kind in KINDS {
        link.open_at_floor(kind);
    }
    link.say(CloseChannel { channel_id: 77, reason_code: Str0255::text("") });
    assert_eq!(link.server.channels().count(), 2);
    assert!(link.close(1).is_empty());
    assert_eq!(link.server.channels().count(), 0);
    assert!(link.template(chain.advance()).is_empty());
    assert!(link.pass(120_000).is_empty());
    // The connection lives on.
    link.open_at_floor(Kind::Extended);
    link.template(chain.advance());
}

#[test]
fn a_smaller_limit_is_answered_with_a_target_within_it_p14() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let channel = link.open_at_floor(Kind::Extended);
    let before = link.client.device(channel).target;
    assert!(link.update(channel, 0.0, before.to_le_bytes()).is_empty(), "not smaller: no answer");
    let said = link.update(channel, 0.0, target_of(5));
    assert!(matches!(said[..], [Said::Target { .. }, Said::Job { min_ntime: Some(_), .. }]));
    assert_eq!(link.client.device(channel).target, Difficulty::from_log2(5).target());
    assert!(link.update(channel, 0.0, ANY_TARGET).is_empty(), "a looser limit asks for nothing");
}

#[test]
fn an_update_that_cannot_be_is_told_so_p15() {
    let policy = Policy { bad_floats_end_connection: false, ..easy_policy() };
    let mut link = Link::with(policy, 0, Chain::new(HARD_NBITS).active());
    let channel = link.open_at_floor(Kind::Extended);
    let before = link.client.device(channel).target;
    for (id, rate, limit, code) in [
        (channel + 1, 1.0, ANY_TARGET, "invalid-channel-id"),
        (1, 1.0, ANY_TARGET, "invalid-channel-id"),
        (channel, 1.0, [0; 32], "max-target-out-of-range"),
        (channel, f32::NAN, ANY_TARGET, "invalid-nominal-hashrate"),
        (channel, f32::INFINITY, ANY_TARGET, "invalid-nominal-hashrate"),
        (channel, -1.0, ANY_TARGET, "invalid-nominal-hashrate"),
        (channel, -0.0, ANY_TARGET, "invalid-nominal-hashrate"),
    ] {
        let said = link.update(id, rate, limit);
        assert_eq!(only_code(&said), code, "rate {rate}");
    }
    link.client.limit(channel, Target::MAX);
    assert_eq!(link.client.device(channel).target, before);
}

#[test]
fn difficulty_never_falls_below_the_clients_limit_p16() {
    let mut link = Link::with(lively_policy(), 0, Chain::new(HARD_NBITS).active());
    // Half an hour of silence lowers the difficulty; `Client` fails at a target above the limit.
    let said = link.open(Kind::Extended, DECLARED_RATE, target_of(3));
    let Said::Opened { channel, .. } = said[0] else { panic!("{said:?}") };
    let said = link.pass(1_800_000);
    assert!(said.iter().any(|one| matches!(one, Said::Target { .. })), "vardiff never spoke");
    assert_eq!(link.client.device(channel).target, Difficulty::from_log2(3).target());
}

#[test]
fn a_hash_rate_that_is_none_ends_the_connection_g13() {
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0];
    for rate in bad {
        for kind in KINDS {
            let mut link = Link::new(&Chain::new(HARD_NBITS));
            let user_identity = Str0255::text("alice");
            let answer = match kind {
                Kind::Standard => link.handle(message(OpenStandardMiningChannel {
                    request_id: 1,
                    user_identity,
                    nominal_hash_rate: rate,
                    max_target: ANY_TARGET,
                })),
                Kind::Extended => link.handle(message(OpenExtendedMiningChannel {
                    nominal_hash_rate: rate,
                    ..open_extended(4)
                })),
            };
            assert_eq!(answer, Err(Violation::BadFloat("nominal_hash_rate")), "{rate}");
            assert_eq!(link.server.channels().count(), 0);
        }
    }
}

#[test]
fn a_hash_rate_that_is_none_is_refused_where_the_policy_says_so_g13() {
    let policy = Policy { bad_floats_end_connection: false, ..easy_policy() };
    let mut link = Link::with(policy, 0, Chain::new(HARD_NBITS).active());
    for rate in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -0.0] {
        for kind in KINDS {
            let said = link.open(kind, rate, ANY_TARGET);
            assert_eq!(only_code(&said), "invalid-nominal-hashrate", "{rate}");
        }
    }
    for fine in [0.0, f32::MIN_POSITIVE, f32::MAX] {
        assert!(matches!(link.open(Kind::Extended, fine, ANY_TARGET)[0], Said::Opened { .. }));
    }
}

#[test]
fn nothing_a_client_says_gets_it_below_the_floor_r36() {
    let floor = Difficulty::from_log2(8);
    let policy = Policy { floor, ..Policy::default() };
    for kind in KINDS {
        for rate in [0.0, 1e-30, f32::MIN_POSITIVE, 1.0] {
            let mut link = Link::with(policy.clone(), 0, Chain::new(HARD_NBITS).active());
            let said = link.open(kind, rate, ANY_TARGET);
            let Said::Opened { channel, target, .. } = said[0] else { panic!("{said:?}") };
            assert_eq!(target, floor.target());
            link.pass(11_000);
            link.update(channel, 0.0, ANY_TARGET);
            link.pass(3_600_000);
            assert_eq!(link.client.device(channel).target, floor.target());
        }
    }
}

#[test]
fn a_ceiling_at_the_floor_pins_the_difficulty_and_a_client_may_still_ask_for_more() {
    let floor = Difficulty::from_log2(-28);
    let policy = Policy { floor, ceiling: floor, ..Policy::default() };
    for kind in KINDS {
        let harder = Difficulty::from_log2(-20);
        for (asked, given) in [(ANY_TARGET, floor), (harder.target().to_le_bytes(), harder)] {
            let mut link = Link::with(policy.clone(), 0, Chain::new(HARD_NBITS).active());
            let said = link.open(kind, 1e15, asked);
            let Said::Opened { target, .. } = said[0] else { panic!("{said:?}") };
            assert_eq!(target, given.target());
        }
    }
}

#[test]
fn the_last_channel_opens_and_the_one_after_is_refused() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for _ in 0..CHANNELS_PER_CONNECTION_MAX {
        link.open_at_floor(Kind::Standard);
    }
    let said = link.open(Kind::Standard, 0.0, ANY_TARGET);
    assert_eq!(only_code(&said), "channel-capacity-exhausted");
    link.close(2);
    link.pass(OPEN_EVERY_MS);
    link.open_at_floor(Kind::Standard);
}

#[test]
fn a_connection_told_to_hold_fewer_channels_keeps_what_it_has_and_opens_no_more() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    link.open_at_floor(Kind::Standard);
    let second = link.open_at_floor(Kind::Standard);
    link.server.set_channels_max(1);
    let said = link.open(Kind::Standard, 0.0, ANY_TARGET);
    assert_eq!(only_code(&said), "channel-capacity-exhausted");
    assert_eq!(link.server.channels_open(), 2);
    link.close(second);
    link.server.set_channels_max(2);
    link.open_at_floor(Kind::Standard);
    link.server.set_channels_max(usize::MAX);
    for _ in 2..CHANNELS_PER_CONNECTION_MAX {
        link.open_at_floor(Kind::Standard);
        link.pass(OPEN_EVERY_MS);
    }
    let said = link.open(Kind::Standard, 0.0, ANY_TARGET);
    assert_eq!(only_code(&said), "channel-capacity-exhausted");
}

#[test]
fn opening_and_closing_without_end_uses_up_the_connections_own_budget_alone() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for _ in 0..OPENS_BURST {
        let channel = link.open_at_floor(Kind::Standard);
        link.close(channel);
    }
    let said = link.open(Kind::Standard, 0.0, ANY_TARGET);
    assert_eq!(only_code(&said), "channel-capacity-exhausted");
    link.pass(2 * OPEN_EVERY_MS);
    link.open_at_floor(Kind::Standard);
    link.open_at_floor(Kind::Standard);
    let said = link.open(Kind::Standard, 0.0, ANY_TARGET);
    assert_eq!(only_code(&said), "channel-capacity-exhausted");
}

#[test]
fn a_name_that_would_not_print_or_is_too_long_is_refused() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let longest = [b'a'; USER_IDENTITY_MAX];
    let too_long = [b'a'; USER_IDENTITY_MAX + 1];
    for (name, fine) in [
        (&b""[..], true),
        (b"alice.rig 1", true),
        (&longest, true),
        (&too_long, false),
        (b"al\x1bice", false),
        (b"al\xffice", false),
        ("mälice".as_bytes(), false),
    ] {
        let user_identity = Str0255::new(name).unwrap();
        let said = link.say(OpenExtendedMiningChannel { user_identity, ..open_extended(4) });
        assert_eq!(matches!(said[0], Said::Opened { .. }), fine, "{name:?}");
        if !fine {
            assert_eq!(only_code(&said), "invalid-user-identity");
        }
    }
}

#[test]
fn the_account_is_what_stands_before_the_first_dot() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    for (name, account, worker) in [
        ("alice.rig.7", "alice", "rig.7"),
        ("alice", "alice", ""),
        (".rig", "anonymous", "rig"),
        ("", "anonymous", ""),
    ] {
        link.say(OpenExtendedMiningChannel {
            user_identity: Str0255::text(name),
            ..open_extended(4)
        });
        let view = link.server.channels().last().unwrap();
        assert_eq!((&*view.owner.account, &*view.owner.worker), (account, worker));
    }
}

#[test]
fn what_only_a_server_says_ends_the_connection() {
    let mut link = Link::new(&Chain::new(HARD_NBITS));
    let answer = link
        .handle(message(proto::message::SetTarget { channel_id: 2, maximum_target: ANY_TARGET }));
    assert_eq!(answer, Err(Violation::Unexpected("SetTarget")));
}

fn message<'a>(message: impl Into<proto::message::Message<'a>>) -> Input<'a> {
    Input::Message(message.into(), proto::message::Tlvs::NONE)
}
