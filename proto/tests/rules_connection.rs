//! The transport and setup rules of the protocol reference, by number: G1 to G18, S1 to S11, E1 to E7,
//! from the server's side, and the bounds of a connection's memory.
//!
//! Elsewhere: G1 and S8 need a socket (`net.rs`), G2 to G4 are in `noise_oracle.rs`, G5 and the TLV
//! rules G16 to G18 and E7 in `messages_oracle.rs`, G12 in `rules_listed.rs`, G19 in `rules_mining`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod link;

use link::{carry, connections, transports};
use proptest::prelude::*;
use proto::connection::{
    Connection, Negotiated, Setup, SetupMachine, SetupPolicy, SetupStep, Violation, answer_setup,
    negotiate, setup_error,
};
use proto::limits::{
    DECLARE_CLIENT_PAYLOAD_MAX, DECLARE_PROVIDE_PAYLOAD_MAX, EXTENSIONS_MAX, FRAME_PAYLOAD_MAX,
    MINING_CLIENT_PAYLOAD_MAX, READ_MAX, SETUP_PAYLOAD_MAX,
};
use proto::message::*;
use proto::noise::NoiseError;
use proto::share::Refusal;
use proto::wire::{B032, Seq064KU16, Str0255, WireError};

// ---- builders ----

fn setup() -> SetupConnection<'static> {
    SetupConnection {
        protocol: Protocol::Mining as u8,
        min_version: 2,
        max_version: 2,
        flags: 0,
        endpoint_host: Str0255::text("pool.example"),
        endpoint_port: 34_254,
        vendor: Str0255::text("vendor"),
        hardware_version: Str0255::text("1"),
        firmware: Str0255::text("2"),
        device_id: Str0255::text(""),
    }
}

const WORKERS: SetupPolicy = SetupPolicy {
    supported_extensions: &[EXTENSION_WORKER_HASHRATE, 0x0007],
    ..SetupPolicy::MINING
};

const WORKERS_REQUIRED: SetupPolicy =
    SetupPolicy { required_extensions: &[EXTENSION_WORKER_HASHRATE], ..WORKERS };

fn known<'a>(message: impl Into<Message<'a>>) -> Received<'a> {
    Received::Known(message.into(), Tlvs::NONE)
}

fn share() -> SubmitSharesExtended {
    SubmitSharesExtended {
        channel_id: 2,
        sequence_number: 1,
        job_id: 3,
        nonce: 4,
        ntime: 5,
        version: 6,
        extranonce: B032::default(),
    }
}

/// A machine behind a Success, which is not in the way any more.
fn agreed(policy: SetupPolicy) -> SetupMachine {
    let mut machine = SetupMachine::new(policy);
    let step = machine.receive(known(setup()), &mut Vec::new()).unwrap();
    assert!(matches!(step, SetupStep::Agreed(_)));
    machine
}

/// Ids in wire order, and the request that asks for them.
fn request<'a>(ids: &[u16], wire: &'a mut Vec<[u8; 2]>) -> RequestExtensions<'a> {
    *wire = ids.iter().map(|id| id.to_le_bytes()).collect();
    RequestExtensions { request_id: 9, requested_extensions: Seq064KU16::new(wire).unwrap() }
}

/// What the machine says to a request for `ids`.
fn ask(machine: &mut SetupMachine, ids: &[u16]) -> Result<Vec<u8>, Violation> {
    let (mut wire, mut out) = (Vec::new(), Vec::new());
    let step = machine.receive(known(request(ids, &mut wire)), &mut out)?;
    assert_eq!(step, SetupStep::Negotiated);
    Ok(out)
}

/// Every frame in `out`.
fn frames(mut out: &[u8]) -> Vec<(FrameHeader, Message<'_>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = out.split_first_chunk() {
        let header = FrameHeader::decode(*header);
        let (payload, rest) = rest.split_at(header.length);
        out = rest;
        let received = Message::decode(header.extension(), header.msg_type, payload).unwrap();
        let Received::Known(message, Tlvs::NONE) = received else { panic!("{received:?}") };
        frames.push((header, message));
    }
    frames
}

fn only_message(out: &[u8]) -> Message<'_> {
    let frames = frames(out);
    assert_eq!(frames.len(), 1);
    frames[0].1
}

fn ids(list: &Seq064KU16<'_>) -> Vec<u16> {
    list.iter().collect()
}

// ---- G: any link ----

#[test]
fn what_does_not_open_is_a_violation_and_nothing_is_answered_g2() {
    let (_, mut server) = connections();
    server.inbound.feed(&[0; 22]);
    assert!(matches!(server.inbound.next_frame(), Err(Violation::Noise(_))));
    assert!(server.outbound.pending().is_empty());
}

/// Frames as they travel, each the Reconnect to the port of its number.
fn numbered_frames(client: &mut Connection, count: u16) -> Vec<Vec<u8>> {
    let frame = |new_port| {
        client.outbound.send(&Reconnect { new_host: Str0255::text(""), new_port }.into());
        let sealed = client.outbound.pending().to_vec();
        client.outbound.advance(sealed.len());
        sealed
    };
    (0..count).map(frame).collect()
}

/// Feeds the frames of these numbers; what was read of them, and how it ended.
fn arrive(order: &[usize]) -> (Vec<u16>, Result<(), Violation>) {
    let (mut client, mut server) = connections();
    let sealed = numbered_frames(&mut client, 6);
    let mut read = Vec::new();
    for number in order {
        server.inbound.feed(&sealed[*number]);
        loop {
            match server.inbound.next_frame() {
                Ok(Some(frame)) => {
                    let said = frame.message().unwrap();
                    let Received::Known(Message::Reconnect(said), _) = said else {
                        panic!("{said:?}")
                    };
                    read.push(said.new_port);
                }
                Ok(None) => break,
                Err(violation) => return (read, Err(violation)),
            }
        }
    }
    (read, Ok(()))
}

proptest! {
    // The transport is to be ordered and reliable: what a broken one would do to the stream is never
    // taken for what the peer said.
    #[test]
    fn a_frame_lost_repeated_or_out_of_order_ends_the_link_and_is_not_read_g14(
        order in prop::collection::vec(0..6_usize, 0..8),
    ) {
        let in_order = order.iter().enumerate().take_while(|(at, number)| at == *number).count();
        let (read, ended) = arrive(&order);
        prop_assert_eq!(read, (0..in_order as u16).collect::<Vec<_>>());
        let refused = Err(Violation::Noise(NoiseError::Decrypt));
        prop_assert_eq!(ended, if in_order == order.len() { Ok(()) } else { refused });
    }
}

#[test]
fn all_frames_in_order_are_read_and_one_more_of_them_is_not_g14() {
    assert_eq!(arrive(&[0, 1, 2, 3, 4, 5]), ((0..6).collect(), Ok(())));
    let refused = Err(Violation::Noise(NoiseError::Decrypt));
    assert_eq!(arrive(&[0, 1, 2, 3, 4, 5, 5]), ((0..6).collect(), refused));
}

#[test]
fn the_first_payload_bytes_of_channel_messages_are_the_channel_g5() {
    let mut frame = Vec::new();
    Message::from(share()).encode(&mut frame);
    assert_eq!(frame[..3], [0x00, 0x80, 0x1b]);
    assert_eq!(frame[6..10], 2_u32.to_le_bytes());
    frame.clear();
    Message::from(setup()).encode(&mut frame);
    assert_eq!(frame[..3], [0x00, 0x00, 0x00]);
}

#[test]
fn a_wrong_channel_bit_changes_no_message_g5_r04() {
    let mut frame = Vec::new();
    Message::from(share()).encode(&mut frame);
    for extension_type in [0x0000, CHANNEL_BIT] {
        let header = FrameHeader { extension_type, msg_type: 0x1b, length: 0 };
        let read = Message::decode(header.extension(), header.msg_type, &frame[6..]);
        assert_eq!(read, Ok(known(share())));
        assert_eq!(header.channel_bit(), extension_type == 0x8000);
    }
    let lowest_bit = FrameHeader { extension_type: 1, msg_type: 0, length: 0 };
    assert!(!lowest_bit.channel_bit(), "bit 15 it is, not bit 0");
}

#[test]
fn odd_booleans_and_options_are_judged_inside_messages_too_g6_g7() {
    let job = NewExtendedMiningJob {
        channel_id: 1,
        job_id: 2,
        min_ntime: None,
        version: 3,
        version_rolling_allowed: false,
        merkle_path: proto::wire::Seq0255U256::default(),
        coinbase_tx_prefix: proto::wire::B064K::default(),
        coinbase_tx_suffix: proto::wire::B064K::default(),
    };
    let mut payload = Vec::new();
    Message::from(job).write_payload(&mut payload);
    let (option, boolean) = (8, 13);
    for (byte, allowed) in [(0xfe, false), (0xff, true)] {
        payload[boolean] = byte;
        let read = Message::decode(0, 0x1f, &payload);
        let job = NewExtendedMiningJob { version_rolling_allowed: allowed, ..job };
        assert_eq!(read, Ok(known(job)));
    }
    payload[option] = 2;
    assert_eq!(Message::decode(0, 0x1f, &payload), Err(WireError::OptionCount(2)));
}

#[test]
fn a_message_of_an_unknown_extension_is_dropped_in_silence_g8() {
    let mut machine = agreed(SetupPolicy::MINING);
    let mut out = Vec::new();
    for number in [0x00, 0x1b, 0xff] {
        let received = Message::decode(0x3abc, number, b"anything").unwrap();
        assert_eq!(machine.receive(received, &mut out), Ok(SetupStep::Discarded));
    }
    assert!(out.is_empty());
    let step = machine.receive(known(share()), &mut out);
    assert_eq!(step, Ok(SetupStep::Pass(known(share()))), "the session goes on");
}

#[test]
fn nothing_of_an_extension_is_sent_to_who_did_not_ask_g9() {
    let mut machine = SetupMachine::new(WORKERS);
    let mut out = Vec::new();
    machine.receive(known(setup()), &mut out).unwrap();
    machine.receive(known(share()), &mut out).unwrap();
    assert!(frames(&out).iter().all(|(header, _)| header.extension() == EXTENSION_CORE));
}

#[test]
fn an_error_code_nobody_knows_is_read_like_any_other_g10() {
    for code in [&b"no-such-code"[..], b"", &[0xff; 255]] {
        let error = SubmitSharesError {
            channel_id: 1,
            sequence_number: 2,
            error_code: Str0255::new(code).unwrap(),
        };
        let mut payload = Vec::new();
        Message::from(error).write_payload(&mut payload);
        assert_eq!(Message::decode(0, 0x1d, &payload), Ok(known(error)));
    }
}

#[test]
fn our_error_codes_are_printable_ascii_g11() {
    let setup = [
        setup_error::UNSUPPORTED_FEATURE_FLAGS,
        setup_error::UNSUPPORTED_PROTOCOL,
        setup_error::PROTOCOL_VERSION_MISMATCH,
    ];
    for code in setup.into_iter().chain(Refusal::ALL.map(Refusal::code)) {
        assert!(!code.is_empty() && code.bytes().all(|byte| byte.is_ascii_graphic()), "{code}");
    }
}

#[test]
fn no_experimental_extension_is_spoken_g15() {
    let policies = [SetupPolicy::MINING, SetupPolicy::JOB_DECLARATION];
    let served = policies.iter().flat_map(|policy| policy.supported_extensions);
    for id in served.chain(&[EXTENSION_NEGOTIATION, EXTENSION_WORKER_HASHRATE]) {
        assert!(*id < 0x4000);
    }
    for id in 0x4000..0x8000 {
        let read = Message::decode(id, 0, &[0; 64]);
        assert_eq!(read, Ok(Received::UnknownExtension(id)));
    }
}

// ---- S: setup ----

#[test]
fn setup_is_answered_once_and_with_nothing_before_it_s1_s2() {
    for (setup, success) in [(setup(), true), (SetupConnection { protocol: 1, ..setup() }, false)] {
        let mut machine = SetupMachine::new(WORKERS);
        let mut out = Vec::new();
        machine.receive(known(setup), &mut out).unwrap();
        let answer = only_message(&out);
        assert_eq!(matches!(answer, Message::SetupConnectionSuccess(_)), success);
        assert_eq!(matches!(answer, Message::SetupConnectionError(_)), !success);
    }
}

fn refused(policy: &SetupPolicy, setup: SetupConnection<'_>) -> SetupConnectionError<'static> {
    answer_setup(policy, &setup).expect_err("it is refused")
}

#[test]
fn only_the_ports_own_subprotocol_is_served_s3() {
    for policy in [SetupPolicy::MINING, SetupPolicy::JOB_DECLARATION] {
        for protocol in 0..=u8::MAX {
            let setup = SetupConnection { protocol, ..setup() };
            if protocol == policy.protocol as u8 {
                assert_eq!(answer_setup(&policy, &setup).unwrap().protocol, policy.protocol);
            } else {
                let code = Str0255::text("unsupported-protocol");
                let error = SetupConnectionError { flags: 0, error_code: code };
                assert_eq!(refused(&policy, setup), error);
            }
        }
    }
}

#[test]
fn a_version_range_must_hold_two_s4_s5() {
    for (min_version, max_version) in [(2, 2), (1, 2), (2, 3), (0, u16::MAX)] {
        let setup = SetupConnection { min_version, max_version, ..setup() };
        assert_eq!(answer_setup(&SetupPolicy::MINING, &setup).unwrap().version, 2);
    }
    for (min_version, max_version) in [(3, 2), (2, 1), (1, 1), (3, 3), (0, 0), (3, 1)] {
        let setup = SetupConnection { min_version, max_version, ..setup() };
        let code = Str0255::text("protocol-version-mismatch");
        let error = SetupConnectionError { flags: 0, error_code: code };
        assert_eq!(refused(&SetupPolicy::MINING, setup), error);
    }
}

#[test]
fn every_unsupported_bit_is_listed_and_no_other_s6() {
    let all = SetupConnection { flags: u32::MAX, ..setup() };
    let code = Str0255::text("unsupported-feature-flags");
    let error = SetupConnectionError { flags: 0xffff_fff8, error_code: code };
    assert_eq!(refused(&SetupPolicy::MINING, all), error);

    let protocol = Protocol::JobDeclaration as u8;
    let all = SetupConnection { protocol, ..all };
    assert_eq!(refused(&SetupPolicy::JOB_DECLARATION, all).flags, 0xffff_fffe);
}

#[test]
fn one_unsupported_bit_is_refused_unless_the_operator_says_otherwise_s7() {
    let bit_9 = SetupConnection { flags: 1 << 9 | 1 << 2, ..setup() };
    assert_eq!(refused(&SetupPolicy::MINING, bit_9).flags, 1 << 9);

    let lenient = SetupPolicy { accept_unknown_flags: true, ..SetupPolicy::MINING };
    assert_eq!(answer_setup(&lenient, &bit_9).unwrap().flags, 1 << 9 | 1 << 2);
}

#[test]
fn supported_flags_are_granted_and_custom_work_wants_extended_channels() {
    for flags in 0..8 {
        let agreed = answer_setup(&SetupPolicy::MINING, &SetupConnection { flags, ..setup() });
        let wants_work_selection = flags & setup_flags::REQUIRES_WORK_SELECTION != 0;
        let success_flags = if wants_work_selection { 0b10 } else { 0 };
        let setup = Setup { protocol: Protocol::Mining, version: 2, flags, success_flags };
        assert_eq!(agreed, Ok(setup));
    }
}

#[test]
fn a_declarator_that_keeps_its_transactions_is_told_so_where_they_are_required() {
    let protocol = Protocol::JobDeclaration as u8;
    let keeps = SetupConnection { protocol, flags: 0, ..setup() };
    let shows = SetupConnection { flags: setup_flags::DECLARE_TX_DATA, ..keeps };
    let policy = SetupPolicy { requires_tx_data: true, ..SetupPolicy::JOB_DECLARATION };
    let code = Str0255::text("missing-declare-tx-data-flag");
    assert_eq!(refused(&policy, keeps), SetupConnectionError { flags: 0, error_code: code });
    assert_eq!(answer_setup(&policy, &shows).unwrap().flags, setup_flags::DECLARE_TX_DATA);
    assert_eq!(answer_setup(&SetupPolicy::JOB_DECLARATION, &keeps).unwrap().flags, 0);
}

#[test]
fn a_refusal_is_said_before_the_close_s8() {
    let mut machine = SetupMachine::new(SetupPolicy::MINING);
    let mut out = Vec::new();
    let step = machine.receive(known(SetupConnection { protocol: 7, ..setup() }), &mut out);
    let Ok(SetupStep::Refused(error)) = step else { panic!("{step:?}") };
    assert_eq!(only_message(&out), error.into());
    // That it arrives before the end of the stream is tested on a socket in `net.rs`.
    let after = machine.receive(known(share()), &mut out);
    assert_eq!(after, Err(Violation::SetupMissing), "nothing is served after it");
    assert_eq!(machine.receive(known(setup()), &mut out), Err(Violation::SetupTwice));
}

proptest! {
    #[test]
    fn a_fixed_version_is_never_asked_of_anyone_s9(flags: u32, accept_unknown_flags: bool) {
        let policy = SetupPolicy { accept_unknown_flags, ..SetupPolicy::MINING };
        if let Ok(agreed) = answer_setup(&policy, &SetupConnection { flags, ..setup() }) {
            let fixed = agreed.success_flags & setup_flags::SUCCESS_REQUIRES_FIXED_VERSION;
            prop_assert_eq!(fixed, 0);
        }
    }
}

#[test]
fn the_first_message_must_be_setup_and_there_is_one_s10() {
    let mut wire = Vec::new();
    for first in [
        known(share()),
        known(request(&[2], &mut wire)),
        known(SetupConnectionSuccess { used_version: 2, flags: 0 }),
        Received::UnknownCore(0x1e),
        Received::UnknownExtension(0x3abc),
    ] {
        let mut machine = SetupMachine::new(WORKERS);
        let mut out = Vec::new();
        assert_eq!(machine.receive(first, &mut out), Err(Violation::SetupMissing), "{first:?}");
        assert!(out.is_empty());
    }
    let mut machine = agreed(WORKERS);
    let mut out = Vec::new();
    assert_eq!(machine.receive(known(setup()), &mut out), Err(Violation::SetupTwice));
    assert!(out.is_empty());
}

#[test]
fn empty_and_full_length_strings_are_accepted_s11() {
    let full = [0xff; 255];
    for bytes in [&b""[..], &full] {
        let text = Str0255::new(bytes).unwrap();
        let setup = SetupConnection {
            endpoint_host: text,
            vendor: text,
            hardware_version: text,
            firmware: text,
            device_id: text,
            ..setup()
        };
        assert!(answer_setup(&SetupPolicy::MINING, &setup).is_ok());

        let (mut client, mut server) = connections();
        client.outbound.send(&setup.into());
        carry(&mut client, &mut server);
        let frame = server.inbound.next_frame().unwrap().unwrap();
        assert_eq!(frame.message(), Ok(known(setup)), "the setup limit holds it");
    }
}

#[test]
fn each_subprotocol_has_the_limit_of_its_largest_message() {
    let limit =
        |protocol| Setup { protocol, version: 2, flags: 0, success_flags: 0 }.client_payload_max();
    assert_eq!(limit(Protocol::Mining), MINING_CLIENT_PAYLOAD_MAX);
    assert_eq!(limit(Protocol::JobDeclaration), DECLARE_CLIENT_PAYLOAD_MAX);
    assert_eq!(limit(Protocol::TemplateDistribution), MINING_CLIENT_PAYLOAD_MAX);
}

// ---- E: extensions ----

#[test]
fn a_request_right_after_success_is_answered_with_what_is_served_e1_e5() {
    let mut machine = agreed(WORKERS);
    let out = ask(&mut machine, &[0x0003, 0x0002, 0x0002, 0x0007]).unwrap();
    let (header, message) = frames(&out)[0];
    assert_eq!(header.extension_type, EXTENSION_NEGOTIATION);
    let Message::RequestExtensionsSuccess(success) = message else { panic!("{message:?}") };
    assert_eq!(success.request_id, 9);
    assert_eq!(ids(&success.supported_extensions), [2, 7]);
}

#[test]
fn a_server_without_extensions_says_so_instead_of_letting_clients_wait_e2_e3() {
    let mut machine = agreed(SetupPolicy::MINING);
    let out = ask(&mut machine, &[2, 3]).unwrap();
    let (header, message) = frames(&out)[0];
    assert_eq!(header.extension_type, EXTENSION_NEGOTIATION);
    let Message::RequestExtensionsError(error) = message else { panic!("{message:?}") };
    assert_eq!(error.request_id, 9);
    assert_eq!(ids(&error.unsupported_extensions), [2, 3]);
    assert_eq!(ids(&error.required_extensions), []);
    let step = machine.receive(known(share()), &mut Vec::new());
    assert!(matches!(step, Ok(SetupStep::Pass(_))), "nothing was required: the session goes on");
}

#[test]
fn missing_required_ids_are_listed_e3() {
    let mut wire = Vec::new();
    let answer = |supported: &[u16], required: &[u16], asked: &RequestExtensions<'_>| {
        negotiate(supported, required, asked).unwrap()
    };
    let error = |unsupported: &[[u8; 2]], required: &[[u8; 2]]| Negotiated::Error {
        request_id: 9,
        unsupported: unsupported.to_vec(),
        required: required.to_vec(),
    };
    let asked = request(&[7, 8], &mut wire);
    assert_eq!(answer(&[2, 7], &[2], &asked), error(&[[8, 0]], &[[2, 0]]));
    let asked = request(&[], &mut wire);
    assert_eq!(answer(&[2, 7], &[2], &asked), error(&[], &[[2, 0]]));
    assert_eq!(answer(&[2, 7], &[], &asked), error(&[], &[]), "none of none is served");
    let asked = request(&[2, 8], &mut wire);
    let supported = vec![[2, 0]];
    assert_eq!(answer(&[2, 7], &[2], &asked), Negotiated::Success { request_id: 9, supported });
}

#[test]
fn a_client_gets_one_more_try_for_what_is_required_e4() {
    let mut machine = agreed(WORKERS_REQUIRED);
    assert!(matches!(
        only_message(&ask(&mut machine, &[7]).unwrap()),
        Message::RequestExtensionsError(_)
    ));
    assert!(matches!(
        only_message(&ask(&mut machine, &[2]).unwrap()),
        Message::RequestExtensionsSuccess(_)
    ));
    assert!(machine.receive(known(share()), &mut Vec::new()).is_ok());

    let mut machine = agreed(WORKERS_REQUIRED);
    ask(&mut machine, &[7]).unwrap();
    assert_eq!(ask(&mut machine, &[7]), Err(Violation::ExtensionsRequired));
}

#[test]
fn a_client_that_goes_on_without_what_is_required_is_cut_off_e4() {
    let mut machine = agreed(WORKERS_REQUIRED);
    let mut out = Vec::new();
    let went_on = machine.receive(known(share()), &mut out);
    assert_eq!(went_on, Err(Violation::ExtensionsRequired));
    let mut machine = agreed(WORKERS_REQUIRED);
    ask(&mut machine, &[7]).unwrap();
    let went_on = machine.receive(known(share()), &mut out);
    assert_eq!(went_on, Err(Violation::ExtensionsRequired));
    assert!(out.is_empty());
}

#[test]
fn an_extension_is_in_use_once_it_is_confirmed_and_not_before_e6_e7() {
    let mut machine = agreed(WORKERS);
    assert!(!machine.has_extension(EXTENSION_WORKER_HASHRATE));
    ask(&mut machine, &[3]).unwrap();
    assert!(!machine.has_extension(3), "asked for is not confirmed");
    ask(&mut machine, &[2, 3]).unwrap();
    assert!(machine.has_extension(EXTENSION_WORKER_HASHRATE));
    ask(&mut machine, &[3]).unwrap();
    assert!(machine.has_extension(EXTENSION_WORKER_HASHRATE), "an Error takes nothing back");
    ask(&mut machine, &[7]).unwrap();
    assert!(!machine.has_extension(EXTENSION_WORKER_HASHRATE), "the last Success stands");
}

#[test]
fn the_servers_own_lines_are_not_the_clients_to_say() {
    let mut machine = agreed(WORKERS);
    let success =
        RequestExtensionsSuccess { request_id: 1, supported_extensions: Seq064KU16::default() };
    let said = machine.receive(known(success), &mut Vec::new());
    assert_eq!(said, Err(Violation::Unexpected("RequestExtensionsSuccess")));
}

#[test]
fn a_request_holds_extensions_max_and_not_one_more() {
    let asked: Vec<u16> = (0..=EXTENSIONS_MAX as u16).collect();
    let mut machine = agreed(WORKERS);
    assert!(ask(&mut machine, &asked[..EXTENSIONS_MAX]).is_ok());
    let one_more = ask(&mut machine, &asked);
    assert_eq!(one_more, Err(Violation::TooManyExtensions(EXTENSIONS_MAX + 1)));
}

// ---- bounds ----

/// A frame of `length` bytes, sealed by a client, and the server that is to open it.
fn frame_of(length: usize) -> (Vec<u8>, Connection) {
    let (mut client, server) = transports();
    let header = FrameHeader { extension_type: 0, msg_type: 0, length };
    let mut sealed = Vec::new();
    client.sealer.seal_frame(header, &vec![0x55; length], &mut sealed).unwrap();
    (sealed, Connection::new(server))
}

#[test]
fn a_header_that_claims_16_mib_reserves_nothing_r08() {
    let (sealed, mut server) = frame_of(FRAME_PAYLOAD_MAX);
    server.inbound.set_limit(FRAME_PAYLOAD_MAX);
    server.inbound.feed(&sealed[..22]);
    assert_eq!(server.inbound.next_frame(), Ok(None), "the header is allowed, its payload awaited");
    assert_eq!(server.inbound.reserved(), 0, "an idle link holds no buffer");

    // Ten reads later there is what ten reads brought, doubled at most by a growing buffer.
    for bytes in sealed[22..].chunks(READ_MAX).take(10) {
        server.inbound.feed(bytes);
        assert_eq!(server.inbound.next_frame(), Ok(None));
    }
    assert!(server.inbound.reserved() <= 4 * 11 * READ_MAX, "{}", server.inbound.reserved());
}

#[test]
fn each_phases_limit_holds_and_one_byte_more_is_refused_at_the_header() {
    for limit in [
        SETUP_PAYLOAD_MAX,
        MINING_CLIENT_PAYLOAD_MAX,
        DECLARE_CLIENT_PAYLOAD_MAX,
        DECLARE_PROVIDE_PAYLOAD_MAX,
    ] {
        let (sealed, mut server) = frame_of(limit);
        server.inbound.set_limit(limit);
        server.inbound.feed(&sealed);
        assert_eq!(server.inbound.next_frame().unwrap().unwrap().payload.len(), limit);

        let (sealed, mut server) = frame_of(limit + 1);
        server.inbound.set_limit(limit);
        server.inbound.feed(&sealed[..22]);
        let refused = Violation::FrameTooLarge { length: limit + 1, limit };
        assert_eq!(server.inbound.next_frame(), Err(refused));
        server.inbound.feed(&sealed[22..]);
        assert_eq!(server.inbound.next_frame(), Err(refused), "and there is no way around");
        assert_eq!(server.inbound.reserved(), 0, "nothing more is kept of such a peer");
    }
}

#[test]
fn the_limit_before_setup_is_that_of_setup() {
    let (sealed, mut server) = frame_of(SETUP_PAYLOAD_MAX + 1);
    server.inbound.feed(&sealed);
    assert!(matches!(server.inbound.next_frame(), Err(Violation::FrameTooLarge { .. })));
}

#[test]
fn a_connection_is_small_again_after_a_large_frame() {
    let (mut client, mut server) = connections();
    server.inbound.set_limit(DECLARE_PROVIDE_PAYLOAD_MAX);
    let header = FrameHeader { extension_type: 0, msg_type: 0x7f, length: 4 << 20 };
    let mut frame = header.encode().to_vec();
    frame.resize(6 + header.length, 0);
    client.outbound.send_frames(&frame);
    while !client.outbound.pending().is_empty() {
        let part = client.outbound.pending();
        let part = &part[..part.len().min(READ_MAX)];
        server.inbound.feed(part);
        let count = part.len();
        client.outbound.advance(count);
        let is_whole = server.inbound.next_frame().unwrap().is_some();
        assert_ne!(is_whole, server.inbound.is_amid_frame());
    }
    assert!(server.inbound.reserved() > 4 << 20 && !server.inbound.is_amid_frame());
    assert_eq!(server.inbound.next_frame(), Ok(None));
    assert_eq!(server.inbound.reserved(), 0, "an idle link holds no buffer");
}

#[test]
fn a_steady_stream_of_shares_grows_no_buffer() {
    let (mut client, mut server) = connections();
    let mut reserved = None;
    for _ in 0..1_000 {
        for _ in 0..10 {
            client.outbound.send(&share().into());
        }
        carry(&mut client, &mut server);
        let mut count = 0;
        while let Some(frame) = server.inbound.next_frame().unwrap() {
            assert_eq!(frame.message(), Ok(known(share())));
            count += 1;
        }
        assert_eq!(count, 10);
        assert_eq!(*reserved.get_or_insert(server.inbound.reserved()), server.inbound.reserved());
    }
}

#[test]
fn a_frame_may_be_answered_while_it_is_borrowed() {
    let (mut client, mut server) = connections();
    client.outbound.send(&setup().into());
    carry(&mut client, &mut server);
    let Connection { inbound, outbound } = &mut server;
    let frame = inbound.next_frame().unwrap().unwrap();
    let mut machine = SetupMachine::new(SetupPolicy::MINING);
    let mut out = Vec::new();
    machine.receive(frame.message().unwrap(), &mut out).unwrap();
    outbound.send_frames(&out);
    assert_eq!(frame.payload.len(), frame.header.length);

    carry(&mut server, &mut client);
    let answer = client.inbound.next_frame().unwrap().unwrap();
    let success = SetupConnectionSuccess { used_version: 2, flags: 0 };
    assert_eq!(answer.message(), Ok(known(success)));
}

#[test]
fn a_malformed_message_is_a_violation_of_its_frame_alone() {
    let (mut client, mut server) = connections();
    let header = FrameHeader { extension_type: CHANNEL_BIT, msg_type: 0x1b, length: 3 };
    client.outbound.send_frames(&[&header.encode()[..], &[1, 2, 3]].concat());
    client.outbound.send(&share().into());
    carry(&mut client, &mut server);
    let frame = server.inbound.next_frame().unwrap().unwrap();
    assert_eq!(frame.message(), Err(Violation::Wire(WireError::Truncated)));
    assert!(server.inbound.next_frame().unwrap().is_some(), "the link itself is whole");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However the socket cuts the stream, the frames are the same.
    #[test]
    fn frames_do_not_depend_on_how_the_bytes_come(
        lengths in proptest::collection::vec(
            prop_oneof![0_usize..100, 65_500_usize..65_540, 131_030_usize..131_050],
            1..6,
        ),
        reads in proptest::collection::vec(1_usize..20_000, 1..40),
    ) {
        let (mut client, mut server) = connections();
        server.inbound.set_limit(FRAME_PAYLOAD_MAX);
        for (number, length) in lengths.iter().enumerate() {
            let header =
                FrameHeader { extension_type: 0, msg_type: number as u8, length: *length };
            let mut frame = header.encode().to_vec();
            frame.resize(6 + length, number as u8);
            client.outbound.send_frames(&frame);
        }
        let mut reads = reads.into_iter().cycle();
        let mut got = Vec::new();
        while !client.outbound.pending().is_empty() {
            let pending = client.outbound.pending();
            let count = reads.next().unwrap().min(pending.len());
            server.inbound.feed(&pending[..count]);
            client.outbound.advance(count);
            while let Some(frame) = server.inbound.next_frame().unwrap() {
                let number = frame.header.msg_type;
                prop_assert!(frame.payload.iter().all(|byte| *byte == number));
                got.push(frame.payload.len());
            }
        }
        prop_assert_eq!(got, lengths);
    }
}
