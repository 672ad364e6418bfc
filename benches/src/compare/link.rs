//! The encrypted link: frames of a share, sealed and opened, beside `codec_sv2` and beside ring alone, and
//! the responder's side of a handshake beside `noise_sv2` and beside the curve operations that it cannot
//! do without. One session serves both sides: what ours seals SRI opens, and the other way round.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use codec_sv2::{
    Decrypted, NoiseDecoder, NoiseEncoder, TransportDecryptState, TransportEncryptState,
};
use framing_sv2::framing::SerializedFrame;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use secp256k1::ellswift::{ElligatorSwift, ElligatorSwiftParty};
use secp256k1::{All, Secp256k1, SecretKey};

use proto::limits::{FRAME_HEADER_LEN, MAC_LEN, SEALED_HEADER_LEN};
use proto::message::FrameHeader;
use proto::mining::Kind;
use proto::noise::{
    AuthoritySecretKey, EphemeralSecret, Identity, Responder, StaticKey, Transport,
};
use proto::target::Difficulty;

use super::Effort;
use super::clock::{rounds, time, try_time};
use super::inputs::{NOW, World, submit};
use super::report::{Goal, Row};

const AUTHORITY: [u8; 32] = [7; 32];

/// Every row about the link.
///
/// # Errors
/// One side does not open what the other sealed, or does not shake hands with it.
pub(super) fn compare(effort: Effort) -> Result<Vec<Row>> {
    let mut rows = frames(effort)?;
    rows.extend(handshakes(effort)?);
    Ok(rows)
}

fn frames(effort: Effort) -> Result<Vec<Row>> {
    let mut frame = Vec::new();
    submit(&World::new(Kind::Extended, Difficulty::MIN)?.claim(1), 1).encode(&mut frame);
    let mut session = Session::new()?;
    let mut ring = Ring::new()?;
    let count = effort.shares;
    let [seal, open, their_seal, their_open, ring_seal, ring_open] = rounds(effort.rounds, || {
        let (their_seal, from_sri) = session.theirs_seal(&frame, count)?;
        let open = session.ours_open(&from_sri, &frame)?;
        let (seal, from_us) = session.ours_seal(&frame, count)?;
        let their_open = session.theirs_open(&from_us, &frame)?;
        let (ring_seal, sealed) = ring.seal(&frame, count)?;
        let ring_open = ring.open(sealed, &frame)?;
        Ok([seal, open, their_seal, their_open, ring_seal, ring_open])
    })?;
    let (faster, within) = (Goal::Faster(6.0), Goal::Within(1.15));
    Ok(vec![
        Row::time("encrypt a share's frame", seal, their_seal, faster),
        Row::time("decrypt a share's frame", open, their_open, faster),
        Row::time("encrypt a share's frame", seal, ring_seal, within).against("ring"),
        Row::time("decrypt a share's frame", open, ring_open, within).against("ring"),
    ])
}

/// Our server and SRI's client, shaken hands.
struct Session {
    ours: Transport,
    seal: TransportEncryptState,
    open: Option<TransportDecryptState>,
    encoder: NoiseEncoder,
    decoder: NoiseDecoder,
}

impl Session {
    fn new() -> Result<Self> {
        let identity = identity()?;
        let (act_one, initiator) = sri_initiator(&identity)?;
        let (act_two, ours) = Responder::new(&identity, ephemeral()?).step(&act_one)?;
        let theirs = initiator.step_2_with_now(act_two, NOW.unix_s).map_err(refused)?;
        let (seal, open) = theirs.split();
        let (encoder, decoder) = (NoiseEncoder::new(), NoiseDecoder::new());
        Ok(Self { ours, seal, open: Some(open), encoder, decoder })
    }

    fn ours_seal(&mut self, frame: &[u8], count: usize) -> Result<(f64, Vec<u8>)> {
        let (header, payload) = frame.split_first_chunk().context("a header")?;
        let header = FrameHeader::decode(*header);
        let mut sealed = Vec::with_capacity(count * sealed_len(frame));
        let figure = try_time(count, || {
            for _ in 0..count {
                self.ours.sealer.seal_frame(header, black_box(payload), &mut sealed)?;
            }
            Ok(())
        })?;
        Ok((figure, sealed))
    }

    fn ours_open(&mut self, sealed: &[u8], frame: &[u8]) -> Result<f64> {
        let mut opened = Vec::with_capacity(frame.len());
        let count = sealed.len() / sealed_len(frame);
        try_time(count, || {
            for sealed in black_box(sealed).chunks(sealed_len(frame)) {
                opened.clear();
                self.ours_open_one(sealed, &mut opened)?;
                ensure!(opened == frame[FRAME_HEADER_LEN..], "we open SRI's frames to others");
            }
            Ok(())
        })
    }

    fn ours_open_one(&mut self, sealed: &[u8], opened: &mut Vec<u8>) -> Result<()> {
        let (header, payload) =
            sealed.split_first_chunk::<SEALED_HEADER_LEN>().context("22 bytes")?;
        black_box(self.ours.opener.open_header(header)?);
        Ok(self.ours.opener.open_chunk(payload, opened)?)
    }

    fn theirs_seal(&mut self, frame: &[u8], count: usize) -> Result<(f64, Vec<u8>)> {
        let made = || SerializedFrame::<Vec<u8>>::from_bytes(frame.to_vec()).map_err(refused);
        let frames: Result<Vec<_>> = (0..count).map(|_| made()).collect();
        let frames = frames?;
        let mut sealed = Vec::with_capacity(count * sealed_len(frame));
        let figure = try_time(count, || {
            for frame in frames {
                let made = self.encoder.encode_transport(black_box(frame), &mut self.seal);
                sealed.extend_from_slice(&made.map_err(refused)?[..]);
            }
            Ok(())
        })?;
        Ok((figure, sealed))
    }

    fn theirs_open(&mut self, sealed: &[u8], frame: &[u8]) -> Result<f64> {
        let count = sealed.len() / sealed_len(frame);
        try_time(count, || {
            for sealed in black_box(sealed).chunks(sealed_len(frame)) {
                let mut opened = self.theirs_open_one(sealed)?;
                let same = opened.payload() == &frame[FRAME_HEADER_LEN..];
                ensure!(same, "SRI opens our frames to others");
            }
            Ok(())
        })
    }

    fn theirs_open_one(&mut self, mut sealed: &[u8]) -> Result<Frame> {
        loop {
            let room = self.decoder.writable();
            let (now, later) = sealed.split_at_checked(room.len()).context("a whole frame")?;
            room.copy_from_slice(now);
            sealed = later;
            let state = self.open.take().context("SRI's half of the session has ended")?;
            match self.decoder.next_transport_frame(state).map_err(refused)? {
                Decrypted::Frame(frame, state) => {
                    self.open = Some(state);
                    return Ok(frame);
                }
                Decrypted::Incomplete(_, state) => self.open = Some(state),
            }
        }
    }
}

/// What SRI's decoder hands out.
type Frame = codec_sv2::SerializedFrame;

/// The two seals of a frame and nothing else, in place.
struct Ring {
    key: LessSafeKey,
    nonce: u64,
}

impl Ring {
    fn new() -> Result<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &[3; 32]);
        Ok(Self { key: LessSafeKey::new(key.map_err(|_| anyhow!("a key of 32 bytes"))?), nonce: 0 })
    }

    /// Copies of the frame with room for the tags, sealed where they stand; and the nonce of the first.
    fn seal(&mut self, frame: &[u8], count: usize) -> Result<(f64, (u64, Vec<u8>))> {
        let (header, payload) = frame.split_at(FRAME_HEADER_LEN);
        let one = [header, &[0; MAC_LEN], payload, &[0; MAC_LEN]].concat();
        let mut sealed = one.repeat(count);
        let first = self.nonce;
        let mut done = true;
        let figure = time(count, || {
            for frame in black_box(&mut sealed).chunks_mut(one.len()) {
                let (header, payload) = frame.split_at_mut(SEALED_HEADER_LEN);
                done &= self.seal_piece(header) && self.seal_piece(payload);
            }
        });
        ensure!(done, "ring seals what is far below its limit");
        Ok((figure, (first, sealed)))
    }

    fn seal_piece(&mut self, piece: &mut [u8]) -> bool {
        let (text, tag) = piece.split_at_mut(piece.len() - MAC_LEN);
        let nonce = self.next_nonce();
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), text);
        sealed.is_ok_and(|made| {
            tag.copy_from_slice(made.as_ref());
            true
        })
    }

    fn open(&mut self, (first, mut sealed): (u64, Vec<u8>), frame: &[u8]) -> Result<f64> {
        self.nonce = first;
        let length = sealed_len(frame);
        let mut same = true;
        let figure = time(sealed.len() / length, || {
            for sealed in black_box(&mut sealed).chunks_mut(length) {
                let (header, payload) = sealed.split_at_mut(SEALED_HEADER_LEN);
                same &= self.open_piece(header) == frame.get(..FRAME_HEADER_LEN);
                same &= self.open_piece(payload) == frame.get(FRAME_HEADER_LEN..);
            }
        });
        ensure!(same, "ring opens its own frames to something else");
        Ok(figure)
    }

    fn open_piece<'a>(&mut self, piece: &'a mut [u8]) -> Option<&'a [u8]> {
        let nonce = self.next_nonce();
        Some(self.key.open_in_place(nonce, Aad::empty(), piece).ok()?)
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.nonce.to_le_bytes());
        self.nonce += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// A share's frame has one chunk, so two tags.
fn sealed_len(frame: &[u8]) -> usize {
    frame.len() + 2 * MAC_LEN
}

/// Ours draws its key inside the time, too, and so does the curve alone.
fn handshakes(effort: Effort) -> Result<Vec<Row>> {
    let identity = identity()?;
    let (act_one, _) = sri_initiator(&identity)?;
    handshakes_agree(&identity)?;
    let curve = Secp256k1::new();
    let count = (effort.shares / 64).max(1);
    let [ours, sri, floor] = rounds(effort.rounds, || {
        let ours = try_time(count, || {
            (0..count).try_for_each(|_| ours_respond(&identity, black_box(&act_one)).map(drop))
        })?;
        let sri = try_time(count, || {
            (0..count).try_for_each(|_| theirs_respond(&identity, black_box(act_one)).map(drop))
        })?;
        let floor = try_time(count, || {
            (0..count).try_for_each(|_| curve_alone(&curve, black_box(act_one)))
        })?;
        Ok([ours, sri, floor])
    })?;
    let path = "handshake, responder";
    Ok(vec![
        Row::time(path, ours, sri, Goal::Faster(2.5)),
        Row::time(path, ours, floor, Goal::Within(1.1)).against("keygen + 2 ECDH"),
    ])
}

/// Each side's initiator finishes what the other's responder began.
fn handshakes_agree(identity: &Identity) -> Result<()> {
    let (act_one, initiator) = sri_initiator(identity)?;
    let (act_two, _) = ours_respond(identity, &act_one)?;
    initiator.step_2_with_now(act_two, NOW.unix_s).map_err(refused)?;

    let (initiator, act_one) = proto::noise::Initiator::new(ephemeral()?);
    let act_two = theirs_respond(identity, act_one)?;
    // SRI's certificate starts when it is made.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    initiator.finish(&act_two, Some(&identity.authority), u32::try_from(now.as_secs())?)?;
    Ok(())
}

fn ours_respond(identity: &Identity, act_one: &[u8; 64]) -> Result<([u8; 234], Transport)> {
    Ok(Responder::new(identity, ephemeral()?).step(act_one)?)
}

fn theirs_respond(identity: &Identity, act_one: [u8; 64]) -> Result<[u8; 234]> {
    let (public, valid) = (identity.authority.x_only(), Duration::from_secs(3_600));
    let responder = noise_sv2::Responder::from_authority_kp(&public, &AUTHORITY, valid);
    let (act_two, engine) = responder.map_err(refused)?.step_1(act_one).map_err(refused)?;
    black_box(&engine);
    Ok(act_two)
}

/// A key and its encoding, the ephemeral exchange and the static one.
fn curve_alone(curve: &Secp256k1<All>, theirs: [u8; 64]) -> Result<()> {
    let [secret, entropy] = random()?;
    let secret = SecretKey::from_slice(&secret)?;
    let ours = ElligatorSwift::from_seckey(curve, secret, Some(entropy));
    for _ in 0..2 {
        let theirs = ElligatorSwift::from_array(black_box(theirs));
        let party = ElligatorSwiftParty::B;
        black_box(ElligatorSwift::shared_secret(theirs, ours, secret, party, None));
    }
    Ok(())
}

fn identity() -> Result<Identity> {
    let authority = AuthoritySecretKey::from_secret(AUTHORITY)?;
    let static_key = StaticKey::from_secret([8; 32], [9; 32])?;
    let (from, until) = (NOW.unix_s - 60, NOW.unix_s + 3_600);
    let certificate = authority.certify(&static_key.x_only(), from, until, &[1; 32]);
    Ok(Identity { static_key, certificate, authority: authority.public() })
}

fn ephemeral() -> Result<EphemeralSecret> {
    let [secret, entropy] = random()?;
    Ok(EphemeralSecret::new(secret, entropy)?)
}

fn random() -> Result<[[u8; 32]; 2]> {
    let mut bytes = [[0; 32]; 2];
    getrandom::fill(bytes.as_flattened_mut()).map_err(|error| anyhow!("randomness: {error}"))?;
    Ok(bytes)
}

type SriInitiator = codec_sv2::Handshake<codec_sv2::InitiatorSent>;

fn sri_initiator(identity: &Identity) -> Result<([u8; 64], SriInitiator)> {
    let initiator = noise_sv2::Initiator::from_raw_k(identity.authority.x_only());
    let handshake = codec_sv2::Handshake::initiator(initiator.map_err(refused)?);
    let (act_one, initiator) = handshake.step_0().map_err(refused)?;
    Ok((act_one.payload().try_into()?, initiator))
}

fn refused(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("SRI: {error:?}")
}
