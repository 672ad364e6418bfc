//! Our handshake and frames against SRI's (`noise_sv2`, `codec_sv2`), both roles, and what must be
//! refused. Rules G2, G3, G4.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod link;

use std::time::Duration;

use codec_sv2::{
    Decrypted, NoiseDecoder, NoiseEncoder, TransportDecryptState, TransportEncryptState,
};
use framing_sv2::framing::SerializedFrame;
use link::{NOW, authority, ephemeral, identity, identity_valid, transports};
use proptest::prelude::*;
use proto::connection::{Connection, Violation};
use proto::limits::{CHUNK_MAX, CLOCK_DRIFT_S, FRAME_PAYLOAD_MAX, MAC_LEN, SEALED_HEADER_LEN};
use proto::message::FrameHeader;
use proto::noise::{
    AuthorityPublicKey, AuthoritySecretKey, Certificate, CertificateError, Identity, Initiator,
    NoiseError, Responder, Transport, sealed_payload_len,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Rule G4's payloads, on both sides of each chunk's end, and the shapes of common messages.
const LENGTHS: [usize; 8] = [0, 1, 8, 37, 65_519, 65_520, 131_038, 131_039];

struct Sri {
    seal: TransportEncryptState,
    open: Option<TransportDecryptState>,
    encoder: NoiseEncoder,
    decoder: NoiseDecoder,
}

impl Sri {
    fn new(transport: codec_sv2::Transport) -> Self {
        let (seal, open) = transport.split();
        let (encoder, decoder) = (NoiseEncoder::new(), NoiseDecoder::new());
        Self { seal, open: Some(open), encoder, decoder }
    }

    fn seal(&mut self, header: FrameHeader, payload: &[u8]) -> Vec<u8> {
        let frame = [&header.encode()[..], payload].concat();
        let frame = SerializedFrame::<Vec<u8>>::from_bytes(frame).unwrap();
        self.encoder.encode_transport(frame, &mut self.seal).unwrap()[..].to_vec()
    }

    fn open(&mut self, mut sealed: &[u8]) -> (FrameHeader, Vec<u8>) {
        loop {
            let room = self.decoder.writable();
            let (now, later) = sealed.split_at(room.len());
            room.copy_from_slice(now);
            sealed = later;
            match self.decoder.next_transport_frame(self.open.take().unwrap()).unwrap() {
                Decrypted::Frame(mut frame, state) => {
                    self.open = Some(state);
                    assert!(sealed.is_empty());
                    let header = FrameHeader::decode(*frame.as_bytes().first_chunk().unwrap());
                    return (header, frame.payload().to_vec());
                }
                Decrypted::Incomplete(_, state) => self.open = Some(state),
            }
        }
    }
}

fn sri_initiator_with(
    identity: &Identity,
    pinned: AuthorityPublicKey,
    now: u32,
) -> Result<(Sri, Transport), codec_sv2::Error> {
    let initiator = noise_sv2::Initiator::from_raw_k(pinned.x_only()).unwrap();
    let (act_one, initiator) = codec_sv2::Handshake::initiator(initiator).step_0().unwrap();
    let act_one = act_one.payload().try_into().unwrap();
    let (act_two, ours) = Responder::new(identity, ephemeral(5)).step(&act_one).unwrap();
    Ok((Sri::new(initiator.step_2_with_now(act_two, now)?), ours))
}

/// Act 2 of SRI's responder, certified from `now` for an hour, and its session.
fn sri_responder(act_one: [u8; 64], now: u32) -> ([u8; 234], codec_sv2::Transport) {
    let secret = [7; 32];
    let responder = noise_sv2::Responder::from_authority_kp(
        &authority().public().x_only(),
        &secret,
        Duration::from_secs(3_600),
    );
    let handshake = codec_sv2::Handshake::responder(responder.unwrap());
    let mut rng = StdRng::seed_from_u64(1);
    let (act_two, transport) = handshake.step_1_with_now_rng(act_one, now, &mut rng).unwrap();
    (act_two.payload().try_into().unwrap(), transport)
}

fn our_initiator(now: u32) -> Result<(Transport, Sri), NoiseError> {
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (act_two, sri) = sri_responder(act_one, NOW);
    let ours = initiator.finish(&act_two, Some(&authority().public()), now)?;
    Ok((ours, Sri::new(sri)))
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

fn frames_cross_both_ways(mut ours: Transport, mut sri: Sri) {
    for (number, length) in LENGTHS.into_iter().enumerate() {
        let header = FrameHeader { extension_type: 0x8000, msg_type: number as u8, length };
        let sent = payload(length);
        let on_the_wire = 22 + length + 16 * length.div_ceil(65_519);

        let mut sealed = Vec::new();
        ours.sealer.seal_frame(header, &sent, &mut sealed).unwrap();
        assert_eq!(sealed.len(), on_the_wire);
        assert_eq!(sri.open(&sealed), (header, sent.clone()));

        let sealed = sri.seal(header, &sent);
        assert_eq!(sealed.len(), on_the_wire);
        let (head, body) = sealed.split_first_chunk().unwrap();
        assert_eq!(ours.opener.open_header(head), Ok(header));
        let mut opened = Vec::new();
        for chunk in body.chunks(CHUNK_MAX + MAC_LEN) {
            ours.opener.open_chunk(chunk, &mut opened).unwrap();
        }
        assert!(opened == sent);
    }
}

#[test]
fn our_responder_and_sris_initiator_exchange_frames_g4() {
    let identity = identity();
    let (sri, ours) = sri_initiator_with(&identity, identity.authority, NOW).unwrap();
    frames_cross_both_ways(ours, sri);
}

#[test]
fn our_initiator_and_sris_responder_exchange_frames_g4() {
    let (ours, sri) = our_initiator(NOW).unwrap();
    frames_cross_both_ways(ours, sri);
}

#[test]
fn an_opened_identity_file_serves_sris_initiator() {
    let identity = Identity::from_text(&identity().to_text()).unwrap();
    let (sri, ours) = sri_initiator_with(&identity, identity.authority, NOW).unwrap();
    frames_cross_both_ways(ours, sri);
}

#[test]
fn the_wire_length_is_the_formulas_g4() {
    for (length, on_the_wire) in [
        (0, 22),
        (1, 39),
        (8, 46),
        (37, 75),
        (65_519, 65_557),
        (65_520, 65_574),
        (FRAME_PAYLOAD_MAX, 16_781_349),
    ] {
        assert_eq!(SEALED_HEADER_LEN + sealed_payload_len(length), on_the_wire);
    }
}

#[test]
fn authority_keys_read_as_sri_writes_them() {
    let secret: AuthoritySecretKey =
        "mkDLTBBRxdBv998612qipDYoTK3YUrqLe8uWw7gu3iXbSrn2n".parse().unwrap();
    let public = "9auqWEzQDVyd2oe1JVGFLMLHZtCo2FFqZwtKA5gd9xbuEu7PH72";
    assert_eq!(secret.public().to_string(), public);
    assert_eq!(secret.to_text().as_str(), "mkDLTBBRxdBv998612qipDYoTK3YUrqLe8uWw7gu3iXbSrn2n");
}

#[test]
fn a_server_of_another_authority_is_refused_g3() {
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (act_two, _) = sri_responder(act_one, NOW);
    let other = AuthoritySecretKey::from_secret([1; 32]).unwrap().public();
    let refused = initiator.finish(&act_two, Some(&other), NOW).err();
    assert_eq!(refused, Some(NoiseError::Certificate(CertificateError::Signature)));

    assert!(sri_initiator_with(&identity(), other, NOW).is_err());
}

#[test]
fn an_unpinned_initiator_accepts_whoever_answers() {
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (act_two, _) = sri_responder(act_one, NOW);
    assert!(initiator.finish(&act_two, None, 0).is_ok());
}

#[test]
fn sris_certificate_holds_through_the_drift_and_no_second_longer_g3() {
    let end = NOW + 3_600;
    assert!(our_initiator(NOW - CLOCK_DRIFT_S).is_ok());
    assert!(our_initiator(end + CLOCK_DRIFT_S).is_ok());

    let early = NOW - CLOCK_DRIFT_S - 1;
    let not_yet = CertificateError::NotYetValid { valid_from: NOW, now: early };
    assert_eq!(our_initiator(early).err(), Some(NoiseError::Certificate(not_yet)));
    let late = end + CLOCK_DRIFT_S + 1;
    let expired = CertificateError::Expired { not_valid_after: end, now: late };
    assert_eq!(our_initiator(late).err(), Some(NoiseError::Certificate(expired)));
}

#[test]
fn our_certificate_holds_for_sri_as_it_does_for_us_r06() {
    let identity = identity_valid(NOW, NOW + 100);
    let sri = |now| sri_initiator_with(&identity, identity.authority, now).is_ok();
    for offset in 0..=120 {
        // From 20 s before the start to 20 s after the end, in steps that meet both edges.
        for now in [NOW - 20 + offset, NOW + offset] {
            let x_only = identity.static_key.x_only();
            let ours = identity.certificate.verify(&x_only, &identity.authority, now).is_ok();
            assert_eq!(sri(now), ours, "at {now}");
        }
    }
}

#[test]
fn a_certificate_of_version_one_is_refused_g3() {
    let mut identity = identity();
    identity.certificate = Certificate { version: 1, ..identity.certificate };
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (act_two, _) = Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap();
    let refused = initiator.finish(&act_two, Some(&identity.authority), NOW).err();
    assert_eq!(refused, Some(NoiseError::Certificate(CertificateError::Version(1))));

    assert!(sri_initiator_with(&identity, identity.authority, NOW).is_err());
}

#[test]
fn a_certificate_of_another_static_key_is_refused_g3() {
    let x_only = proto::noise::StaticKey::from_secret([2; 32], [2; 32]).unwrap().x_only();
    let mut identity = identity();
    identity.certificate = authority().certify(&x_only, NOW, NOW, &[0; 32]);
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (act_two, _) = Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap();
    let refused = initiator.finish(&act_two, Some(&identity.authority), NOW).err();
    assert_eq!(refused, Some(NoiseError::Certificate(CertificateError::Signature)));
}

#[test]
fn a_bit_flipped_in_act_one_is_noticed_by_the_client_g2() {
    let identity = identity();
    for byte in 0..64 {
        let (initiator, mut act_one) = Initiator::new(ephemeral(3));
        act_one[byte] ^= 1 << (byte % 8);
        // Any 64 bytes are a key, so the server answers; its answer opens for nobody.
        let (act_two, _) = Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap();
        let ended = initiator.finish(&act_two, Some(&identity.authority), NOW).err();
        assert_eq!(ended, Some(NoiseError::Decrypt), "byte {byte}");
    }
}

#[test]
fn a_bit_flipped_anywhere_in_act_two_ends_the_handshake_g2() {
    let identity = identity();
    for byte in 0..234 {
        let (initiator, act_one) = Initiator::new(ephemeral(3));
        let (mut act_two, _) = Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap();
        act_two[byte] ^= 1 << (byte % 8);
        let ended = initiator.finish(&act_two, None, NOW).err();
        assert_eq!(ended, Some(NoiseError::Decrypt), "byte {byte}");
    }
}

#[test]
fn handshakes_with_one_ephemeral_key_are_the_same_and_with_another_differ() {
    let identity = identity();
    let act_two = |client, server| {
        let (_, act_one) = Initiator::new(ephemeral(client));
        Responder::new(&identity, ephemeral(server)).step(&act_one).unwrap().0
    };
    assert_eq!(act_two(3, 5), act_two(3, 5), "nothing is drawn from anywhere else");
    assert_ne!(act_two(3, 5), act_two(3, 6));
    assert_ne!(act_two(3, 5)[64..], act_two(4, 5)[64..]);
}

/// A frame of three chunks, sealed, and the end that would open it.
fn sealed_frame() -> (Vec<u8>, Connection) {
    let (mut client, server) = transports();
    let header = FrameHeader { extension_type: 0, msg_type: 1, length: 0 };
    let mut sealed = Vec::new();
    client.sealer.seal_frame(header, &payload(2 * 65_519 + 1), &mut sealed).unwrap();
    let mut server = Connection::new(server);
    server.inbound.set_limit(FRAME_PAYLOAD_MAX);
    (sealed, server)
}

#[test]
fn an_untouched_frame_of_three_chunks_opens() {
    let (sealed, mut server) = sealed_frame();
    server.inbound.feed(&sealed);
    assert_eq!(server.inbound.next_frame().unwrap().unwrap().payload.len(), 131_039);
}

#[test]
fn chunks_that_change_places_end_the_session_g2() {
    let (mut sealed, mut server) = sealed_frame();
    let (first, second) = sealed[22..22 + 2 * 65_535].split_at_mut(65_535);
    first.swap_with_slice(second);
    server.inbound.feed(&sealed);
    assert_eq!(server.inbound.next_frame(), Err(Violation::Noise(NoiseError::Decrypt)));
}

#[test]
fn a_frame_sent_twice_ends_the_session_g2() {
    let (sealed, mut server) = sealed_frame();
    server.inbound.feed(&sealed);
    assert!(server.inbound.next_frame().unwrap().is_some());
    server.inbound.feed(&sealed);
    assert_eq!(server.inbound.next_frame(), Err(Violation::Noise(NoiseError::Decrypt)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In the header, in chunk 2 (byte 65,557 and on), in any tag.
    #[test]
    fn a_bit_flipped_anywhere_in_a_frame_ends_the_session_for_good_g2(
        byte in prop_oneof![0_usize..22, 65_557_usize..131_092, 0_usize..131_109],
        bit in 0_u32..8,
    ) {
        let (mut sealed, mut server) = sealed_frame();
        sealed[byte] ^= 1 << bit;
        server.inbound.feed(&sealed);
        let ended = Violation::Noise(NoiseError::Decrypt);
        prop_assert_eq!(server.inbound.next_frame(), Err(ended));
        sealed[byte] ^= 1 << bit;
        server.inbound.feed(&sealed);
        prop_assert_eq!(server.inbound.next_frame(), Err(ended), "there is no way back");
    }
}
