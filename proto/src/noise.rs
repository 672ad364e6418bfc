//! The encrypted link (spec chapter 4): Noise NX over secp256k1 with ElligatorSwift keys, the
//! certificate by which a server proves whose it is, and the sealing of frames. Called by
//! `connection.rs` (frames), `net.rs` (handshakes) and the pool's `keys` command (authority keys).
//!
//! No source of randomness and no clock: secrets, entropy and the time are arguments. Secrets have no
//! `Debug`, and what holds one of ours wipes it when it is dropped; what snow copies is snow's to wipe.
//! `snow` runs the handshake with our own key exchange and ring's cipher. It ends with two keys: frames
//! are ring's alone, each direction is owned apart, and one key serves all pieces of a frame.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::sync::LazyLock;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use secp256k1::ellswift::{ElligatorSwift, ElligatorSwiftParty};
use secp256k1::schnorr::Signature;
use secp256k1::{All, Keypair, PublicKey, Secp256k1, SecretKey, XOnlyPublicKey};
use sha2::{Digest, Sha256};
use snow::params::{
    BaseChoice, CipherChoice, DHChoice, HandshakeChoice, HandshakeModifierList, HandshakePattern,
    HashChoice, NoiseParams,
};
use snow::resolvers::{CryptoResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::limits::{
    ACT_ONE_LEN, ACT_TWO_LEN, CERTIFICATE_LEN, CHUNK_MAX, CLOCK_DRIFT_S, ELLSWIFT_LEN,
    FRAME_HEADER_LEN, FRAMES_MAX, MAC_LEN, SEALED_HEADER_LEN,
};
use crate::message::FrameHeader;

/// Hashed into every handshake: two sides that differ in it cannot talk.
pub const PROTOCOL_NAME: &str = "Noise_NX_Secp256k1+EllSwift_ChaChaPoly_SHA256";
/// The only certificate version there is (SRI's value; the spec names none).
pub const CERTIFICATE_VERSION: u16 = 0;

/// A handshake or a frame that did not hold. Nothing after it can be trusted: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NoiseError {
    /// A tag did not match: altered, out of order, or sealed under another key.
    #[error("decryption failed")]
    Decrypt,
    /// The server is not who it should be, or not any more.
    #[error("certificate refused: {0}")]
    Certificate(#[from] CertificateError),
    /// The session has carried as many frames as one key may.
    #[error("the session has carried {FRAMES_MAX} frames, the most under one key")]
    SessionOver,
}

/// Why a certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// A version that we do not know how to check.
    #[error("version {0}, only 0 is known")]
    Version(u16),
    /// `valid_from` lies ahead of the clock, drift allowed for.
    #[error("not valid before {valid_from}, it is {now}")]
    NotYetValid {
        /// Unix seconds.
        valid_from: u32,
        /// Unix seconds.
        now: u32,
    },
    /// `not_valid_after` lies behind the clock, drift allowed for.
    #[error("not valid after {not_valid_after}, it is {now}")]
    Expired {
        /// Unix seconds.
        not_valid_after: u32,
        /// Unix seconds.
        now: u32,
    },
    /// Not signed by the authority, or not for this key and this span of time.
    #[error("the signature is not the authority's")]
    Signature,
}

/// Key material or its text form that is not what it should be. Ours or the operator's, never a peer's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Zero, or not below the order of the curve.
    #[error("not a secret key of secp256k1")]
    Secret,
    /// No point of the curve has this x.
    #[error("not a public key of secp256k1")]
    Public,
    /// Characters that are none of base58's.
    #[error("not a key: keys are letters and digits without 0, O, I and l")]
    Characters,
    /// The checksum differs: mistyped.
    #[error("a character of it is wrong, missing or too many: its checksum does not fit")]
    Base58,
    /// Of another length, or a key of another kind.
    #[error("not an authority key of this kind and version")]
    Kind,
    /// A line of an identity file.
    #[error("identity: {0}")]
    Identity(String),
    /// The parts of an identity do not belong together.
    #[error("identity: {0}")]
    Certificate(#[from] CertificateError),
}

/// A secret and the one 64-byte encoding of its public point that is ever sent. A point has many
/// encodings, and the bytes sent are the bytes hashed, so the encoding is made once and kept.
#[derive(Clone)]
struct EncodedKey {
    secret: SecretKey,
    encoding: [u8; ELLSWIFT_LEN],
}

impl EncodedKey {
    fn new(secret: [u8; 32], encoding_entropy: [u8; 32]) -> Result<Self, KeyError> {
        let secret = Zeroizing::new(secret);
        let secret = SecretKey::from_slice(&*secret).map_err(|_| KeyError::Secret)?;
        let encoding = ElligatorSwift::from_seckey(&CURVE, secret, Some(encoding_entropy));
        Ok(Self { secret, encoding: encoding.to_array() })
    }
}

impl Zeroize for EncodedKey {
    fn zeroize(&mut self) {
        self.secret.non_secure_erase();
    }
}

impl Drop for EncodedKey {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl ZeroizeOnDrop for EncodedKey {}

/// A server's long-lived key of the handshake.
#[derive(Clone)]
pub struct StaticKey(EncodedKey);

impl ZeroizeOnDrop for StaticKey {}

impl StaticKey {
    /// Takes 32 secret bytes, and 32 more that choose among the encodings of the public point.
    pub fn from_secret(secret: [u8; 32], encoding_entropy: [u8; 32]) -> Result<Self, KeyError> {
        EncodedKey::new(secret, encoding_entropy).map(Self)
    }

    /// The public point's x, which is what a certificate speaks of.
    #[must_use]
    pub fn x_only(&self) -> [u8; 32] {
        x_only(&self.0.encoding)
    }
}

impl fmt::Debug for StaticKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticKey(x = {})", Hex(&self.x_only()))
    }
}

/// A key for one handshake. It is used up by it, and must come from fresh randomness each time.
pub struct EphemeralSecret(EncodedKey);

impl ZeroizeOnDrop for EphemeralSecret {}

impl EphemeralSecret {
    /// Takes 32 secret bytes, and 32 more that choose among the encodings of the public point.
    pub fn new(secret: [u8; 32], encoding_entropy: [u8; 32]) -> Result<Self, KeyError> {
        EncodedKey::new(secret, encoding_entropy).map(Self)
    }
}

/// The key that signs certificates. Kept off the pool's host: whoever has it can be the pool.
///
/// As text: base58check of the 32 bytes, as SRI writes it.
#[derive(Clone)]
pub struct AuthoritySecretKey(Keypair);

impl Zeroize for AuthoritySecretKey {
    fn zeroize(&mut self) {
        self.0.non_secure_erase();
    }
}

impl Drop for AuthoritySecretKey {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl ZeroizeOnDrop for AuthoritySecretKey {}

impl AuthoritySecretKey {
    /// Takes 32 secret bytes.
    pub fn from_secret(secret: [u8; 32]) -> Result<Self, KeyError> {
        let secret = Zeroizing::new(secret);
        Keypair::from_seckey_slice(&CURVE, &*secret).map(Self).map_err(|_| KeyError::Secret)
    }

    /// The text form. A method and not `Display`, so that it is never printed by accident.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(self.0.secret_bytes());
        Zeroizing::new(bs58::encode(&*secret).with_check().into_string())
    }

    /// What clients pin.
    #[must_use]
    pub fn public(&self) -> AuthorityPublicKey {
        AuthorityPublicKey(self.0.x_only_public_key().0)
    }

    /// Signs that the server with the static key of this x is ours from `valid_from` to
    /// `not_valid_after` (unix seconds, both included). `aux_rand` hardens the signature (BIP340).
    #[must_use]
    pub fn certify(
        &self,
        static_key_x_only: &[u8; 32],
        valid_from: u32,
        not_valid_after: u32,
        aux_rand: &[u8; 32],
    ) -> Certificate {
        let mut certificate = Certificate {
            version: CERTIFICATE_VERSION,
            valid_from,
            not_valid_after,
            signature: [0; 64],
        };
        let digest = certificate.digest(static_key_x_only);
        certificate.signature =
            CURVE.sign_schnorr_with_aux_rand(&digest, &self.0, aux_rand).serialize();
        certificate
    }
}

impl FromStr for AuthoritySecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let secret = Zeroizing::new(from_base58check(text)?);
        Self::from_secret(secret.as_slice().try_into().map_err(|_| KeyError::Kind)?)
    }
}

/// The key that a client pins, printed in every pool address (chapter 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthorityPublicKey(XOnlyPublicKey);

/// U16 before the key's 32 bytes in the text form.
const AUTHORITY_KEY_VERSION: [u8; 2] = [1, 0];

impl AuthorityPublicKey {
    /// The 32 bytes of x.
    #[must_use]
    pub fn x_only(&self) -> [u8; 32] {
        self.0.serialize()
    }

    /// Takes the 32 bytes of x.
    pub fn from_x_only(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        XOnlyPublicKey::from_slice(bytes).map(Self).map_err(|_| KeyError::Public)
    }
}

impl fmt::Display for AuthorityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&AUTHORITY_KEY_VERSION[..], &self.x_only()].concat();
        f.write_str(&bs58::encode(bytes).with_check().into_string())
    }
}

impl FromStr for AuthorityPublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = from_base58check(text)?;
        let key = bytes.strip_prefix(&AUTHORITY_KEY_VERSION).ok_or(KeyError::Kind)?;
        Self::from_x_only(key.try_into().map_err(|_| KeyError::Kind)?)
    }
}

fn from_base58check(text: &str) -> Result<Vec<u8>, KeyError> {
    use bs58::decode::Error::{InvalidCharacter, NonAsciiCharacter};
    let decoded = bs58::decode(text.trim()).with_check(None).into_vec();
    decoded.map_err(|error| {
        let is_no_base58 = matches!(error, InvalidCharacter { .. } | NonAsciiCharacter { .. });
        if is_no_base58 { KeyError::Characters } else { KeyError::Base58 }
    })
}

/// SIGNATURE_NOISE_MESSAGE: the authority's word for a static key and a span of time. It is looked at
/// in the handshake alone; one that ends does not end the sessions made under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate {
    /// 0.
    pub version: u16,
    /// Unix seconds, included.
    pub valid_from: u32,
    /// Unix seconds, included.
    pub not_valid_after: u32,
    /// BIP340, by the authority.
    pub signature: [u8; 64],
}

impl Certificate {
    /// The 74 bytes that travel in act 2.
    #[must_use]
    pub fn encode(&self) -> [u8; CERTIFICATE_LEN] {
        let mut bytes = [0; CERTIFICATE_LEN];
        bytes[..10].copy_from_slice(&self.signed_part());
        bytes[10..].copy_from_slice(&self.signature);
        bytes
    }

    /// Reads the 74 bytes; every value of them is a certificate, though few are valid ones.
    #[must_use]
    pub fn decode(bytes: &[u8; CERTIFICATE_LEN]) -> Self {
        let [v0, v1, a0, a1, a2, a3, b0, b1, b2, b3, signature @ ..] = *bytes;
        Self {
            version: u16::from_le_bytes([v0, v1]),
            valid_from: u32::from_le_bytes([a0, a1, a2, a3]),
            not_valid_after: u32::from_le_bytes([b0, b1, b2, b3]),
            signature,
        }
    }

    /// Whether `authority` says, now, that the static key of this x is its own. Clocks may differ by
    /// `CLOCK_DRIFT_S` on each side.
    pub fn verify(
        &self,
        static_key_x_only: &[u8; 32],
        authority: &AuthorityPublicKey,
        now_unix: u32,
    ) -> Result<(), CertificateError> {
        let Self { valid_from, not_valid_after, .. } = *self;
        let now = now_unix;
        self.verify_signature(static_key_x_only, authority)?;
        if now.saturating_add(CLOCK_DRIFT_S) < valid_from {
            return Err(CertificateError::NotYetValid { valid_from, now });
        }
        if now.saturating_sub(CLOCK_DRIFT_S) > not_valid_after {
            return Err(CertificateError::Expired { not_valid_after, now });
        }
        Ok(())
    }

    fn verify_signature(
        &self,
        static_key_x_only: &[u8; 32],
        authority: &AuthorityPublicKey,
    ) -> Result<(), CertificateError> {
        if self.version != CERTIFICATE_VERSION {
            return Err(CertificateError::Version(self.version));
        }
        let signature =
            Signature::from_slice(&self.signature).map_err(|_| CertificateError::Signature)?;
        CURVE
            .verify_schnorr(&signature, &self.digest(static_key_x_only), &authority.0)
            .map_err(|_| CertificateError::Signature)
    }

    /// What the authority signs: SHA-256 of version, both times and the static key's x.
    fn digest(&self, static_key_x_only: &[u8; 32]) -> secp256k1::Message {
        let digest = Sha256::new().chain_update(self.signed_part()).chain_update(static_key_x_only);
        secp256k1::Message::from_digest(digest.finalize().into())
    }

    fn signed_part(&self) -> [u8; 10] {
        let [v0, v1] = self.version.to_le_bytes();
        let [a0, a1, a2, a3] = self.valid_from.to_le_bytes();
        let [b0, b1, b2, b3] = self.not_valid_after.to_le_bytes();
        [v0, v1, a0, a1, a2, a3, b0, b1, b2, b3]
    }
}

/// What a server presents: a static key, the certificate for it, and whose word that is. The
/// authority's secret is not part of it, so a stolen server is an impostor only until the certificate
/// ends.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The handshake key.
    pub static_key: StaticKey,
    /// Signed ahead of time.
    pub certificate: Certificate,
    /// Who signed; clients pin this.
    pub authority: AuthorityPublicKey,
}

impl Identity {
    /// The file form: `key = value` lines. It holds the static secret, so it belongs in a file that
    /// only the pool can read.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let Self { static_key: StaticKey(key), certificate, authority } = self;
        // Room for all of it, so that no part stays behind in a buffer that was outgrown.
        let mut text = Zeroizing::new(String::with_capacity(IDENTITY_TEXT_MAX));
        let secret = Zeroizing::new(key.secret.secret_bytes());
        let written = write!(
            text,
            "# SECRET: what this pool presents to miners, with the key to it. Keep it to yourself.\n\
             authority_public_key = {authority}\n\
             valid_from = {}\n\
             not_valid_after = {}\n\
             signature = {}\n\
             static_encoding = {}\n\
             static_secret = {}\n",
            certificate.valid_from,
            certificate.not_valid_after,
            Hex(&certificate.signature),
            Hex(&key.encoding),
            Hex(&*secret),
        );
        written.expect("a String takes what is written");
        text
    }

    /// Reads the file form and checks that its parts belong together, so that a mangled file is found
    /// at start and not by the first miner. Whether it is valid *now* is `Certificate::verify`'s.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        let fields = IdentityFields::parse(text)?;
        let secret = Zeroizing::new(fields.hex::<32>("static_secret")?);
        let secret = SecretKey::from_slice(&*secret).map_err(|_| KeyError::Secret)?;
        let key = EncodedKey { secret, encoding: fields.hex("static_encoding")? };
        if x_only(&key.encoding) != secret.x_only_public_key(&CURVE).0.serialize() {
            return Err(KeyError::Identity("static_encoding is not of static_secret".to_owned()));
        }
        let identity = Self {
            static_key: StaticKey(key),
            certificate: Certificate {
                version: CERTIFICATE_VERSION,
                valid_from: fields.seconds("valid_from")?,
                not_valid_after: fields.seconds("not_valid_after")?,
                signature: fields.hex("signature")?,
            },
            authority: fields.value("authority_public_key")?.parse()?,
        };
        let x_only = identity.static_key.x_only();
        identity.certificate.verify_signature(&x_only, &identity.authority)?;
        Ok(identity)
    }
}

/// Above the some 600 characters that an identity takes.
const IDENTITY_TEXT_MAX: usize = 1_024;

const IDENTITY_FIELDS: [&str; 6] = [
    "authority_public_key",
    "valid_from",
    "not_valid_after",
    "signature",
    "static_encoding",
    "static_secret",
];

/// Where each field's text stands; no two of one name, no name that we do not know.
struct IdentityFields<'a>([Option<&'a str>; IDENTITY_FIELDS.len()]);

impl<'a> IdentityFields<'a> {
    fn parse(text: &'a str) -> Result<Self, KeyError> {
        let wrong = |number: usize, what| KeyError::Identity(format!("line {number}: {what}"));
        let mut values = [None; IDENTITY_FIELDS.len()];
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // What stands in the line is not repeated: it may be the secret.
            let (name, value) =
                line.split_once('=').ok_or_else(|| wrong(number, "not `name = value`"))?;
            let place = IDENTITY_FIELDS
                .iter()
                .position(|field| *field == name.trim())
                .ok_or_else(|| wrong(number, "a name that is not known"))?;
            if values[place].replace(value.trim()).is_some() {
                return Err(wrong(number, "a name that stood before"));
            }
        }
        Ok(Self(values))
    }

    fn value(&self, name: &str) -> Result<&'a str, KeyError> {
        let place = IDENTITY_FIELDS.iter().position(|field| *field == name);
        let value = place.and_then(|place| self.0[place]);
        value.ok_or_else(|| KeyError::Identity(format!("{name} is missing")))
    }

    fn hex<const N: usize>(&self, name: &str) -> Result<[u8; N], KeyError> {
        let wrong = || KeyError::Identity(format!("{name} is not {N} bytes of hex"));
        from_hex(self.value(name)?).ok_or_else(wrong)
    }

    fn seconds(&self, name: &str) -> Result<u32, KeyError> {
        let wrong = |_| KeyError::Identity(format!("{name} is not unix seconds"));
        self.value(name)?.parse().map_err(wrong)
    }
}

/// The server's side of a handshake: one step.
pub struct Responder {
    state: HandshakeState,
    certificate: [u8; CERTIFICATE_LEN],
}

impl Responder {
    /// Ready for act 1.
    #[must_use]
    pub fn new(identity: &Identity, ephemeral: EphemeralSecret) -> Self {
        let EncodedKey { secret, encoding } = &identity.static_key.0;
        let mut key = Zeroizing::new([0; PRIVATE_LEN]);
        key[..32].copy_from_slice(secret.as_ref());
        key[32..].copy_from_slice(encoding);
        let state = builder(ElligatorSwiftParty::B, ephemeral)
            .local_private_key(&*key)
            .and_then(Builder::build_responder)
            .expect("the one static key of NX is set and every part is resolved");
        Self { state, certificate: identity.certificate.encode() }
    }

    /// Takes act 1; gives act 2 to send and the session that starts behind it. Any 64 bytes are an
    /// ElligatorSwift key, so a peer cannot make this fail; it can only be unable to read the answer.
    pub fn step(
        mut self,
        act_one: &[u8; ACT_ONE_LEN],
    ) -> Result<([u8; ACT_TWO_LEN], Transport), NoiseError> {
        self.state.read_message(act_one, &mut []).map_err(|_| NoiseError::Decrypt)?;
        let mut act_two = [0; ACT_TWO_LEN];
        let written = self.state.write_message(&self.certificate, &mut act_two);
        if written != Ok(ACT_TWO_LEN) {
            return Err(NoiseError::Decrypt);
        }
        Ok((act_two, Transport::new(self.state)?))
    }
}

/// The client's side of a handshake: act 1 on creation, one step to finish.
pub struct Initiator {
    state: HandshakeState,
}

impl Initiator {
    /// The machine, and act 1 to send.
    #[must_use]
    pub fn new(ephemeral: EphemeralSecret) -> (Self, [u8; ACT_ONE_LEN]) {
        let mut state = builder(ElligatorSwiftParty::A, ephemeral)
            .build_initiator()
            .expect("an NX initiator needs no key but its ephemeral one");
        // snow asks for room for a tag even where none is written.
        let mut message = [0; ACT_ONE_LEN + MAC_LEN];
        state.write_message(&[], &mut message).expect("the buffer holds a key and a tag");
        let mut act_one = [0; ACT_ONE_LEN];
        act_one.copy_from_slice(&message[..ACT_ONE_LEN]);
        (Self { state }, act_one)
    }

    /// Takes act 2 and checks the certificate in it (rule G3): `authority` is the pinned key. `None`
    /// accepts whoever answers, an attacker too: for tests only.
    pub fn finish(
        mut self,
        act_two: &[u8; ACT_TWO_LEN],
        authority: Option<&AuthorityPublicKey>,
        now_unix: u32,
    ) -> Result<Transport, NoiseError> {
        // ring opens in place, so the room must also hold the tag.
        let mut payload = [0; CERTIFICATE_LEN + MAC_LEN];
        let read = self.state.read_message(act_two, &mut payload);
        if read != Ok(CERTIFICATE_LEN) {
            return Err(NoiseError::Decrypt);
        }
        if let Some(authority) = authority {
            let certificate = payload.first_chunk().ok_or(NoiseError::Decrypt)?;
            // Read here and not from the transport state, which would cut the key to 32 bytes.
            let remote = self.state.get_remote_static().and_then(<[u8]>::first_chunk);
            let static_key = x_only(remote.ok_or(NoiseError::Decrypt)?);
            Certificate::decode(certificate).verify(&static_key, authority, now_unix)?;
        }
        Transport::new(self.state)
    }
}

/// A session's two directions, to be owned apart.
pub struct Transport {
    /// What we send.
    pub sealer: Sealer,
    /// What we receive.
    pub opener: Opener,
}

impl Transport {
    fn new(mut state: HandshakeState) -> Result<Self, NoiseError> {
        if !state.is_handshake_finished() {
            return Err(NoiseError::Decrypt);
        }
        let (mut to_responder, mut to_initiator) = state.dangerously_get_raw_split();
        let [sealing, opening] = match state.is_initiator() {
            true => [&to_responder, &to_initiator],
            false => [&to_initiator, &to_responder],
        };
        let direction =
            |key: &[u8; 32]| Direction { key: BareKey(*key), ready: None, nonce: 0, frames: 0 };
        let transport =
            Self { sealer: Sealer(direction(sealing)), opener: Opener(direction(opening)) };
        to_responder.zeroize();
        to_initiator.zeroize();
        Ok(transport)
    }
}

/// One direction's key and count.
struct Direction {
    key: BareKey,
    /// Made of `key` for as long as frames follow each other.
    ready: Option<Box<LessSafeKey>>,
    nonce: u64,
    frames: u64,
}

impl Direction {
    /// FRAMES_MAX frames of 258 nonces each stay far below the 2^64 that Noise allows.
    fn count_frame(&mut self) -> Result<(), NoiseError> {
        if self.frames >= FRAMES_MAX {
            return Err(NoiseError::SessionOver);
        }
        self.frames += 1;
        Ok(())
    }

    /// The key, and the nonce of the next piece.
    fn next(&mut self) -> (&LessSafeKey, Nonce) {
        let nonce = BareKey::nonce(self.nonce);
        self.nonce += 1;
        (self.ready.get_or_insert_with(|| Box::new(self.key.ready())), nonce)
    }

    fn rest(&mut self) {
        self.ready = None;
    }
}

/// Bytes that a payload of `len` takes on the wire: a tag for every chunk, none for no payload.
#[must_use]
pub fn sealed_payload_len(len: usize) -> usize {
    len + MAC_LEN * len.div_ceil(CHUNK_MAX)
}

/// Frames to bytes.
pub struct Sealer(Direction);

impl Sealer {
    /// No frame follows for now: an idle direction holds its 32 bytes of key and no more.
    pub fn rest(&mut self) {
        self.0.rest();
    }

    /// Appends a frame, sealed: the header alone, then the payload in chunks (rule G4). The length in
    /// the header is set from the payload.
    pub fn seal_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NoiseError> {
        self.0.count_frame()?;
        let start = out.len();
        out.resize(start + SEALED_HEADER_LEN + sealed_payload_len(payload.len()), 0);
        let header = FrameHeader { length: payload.len(), ..header }.encode();
        let mut room = &mut out[start..];
        for piece in std::iter::once(&header[..]).chain(payload.chunks(CHUNK_MAX)) {
            let (sealed, rest) = room.split_at_mut(piece.len() + MAC_LEN);
            let (key, nonce) = self.0.next();
            seal(key, nonce, &[], piece, sealed);
            room = rest;
        }
        Ok(())
    }
}

/// Bytes to frames.
pub struct Opener(Direction);

impl Opener {
    /// No frame follows for now: an idle direction holds its 32 bytes of key and no more.
    pub fn rest(&mut self) {
        self.0.rest();
    }

    /// Opens the 22 bytes that start a frame.
    pub fn open_header(
        &mut self,
        sealed: &[u8; SEALED_HEADER_LEN],
    ) -> Result<FrameHeader, NoiseError> {
        self.0.count_frame()?;
        let mut bytes = *sealed;
        self.open(&mut bytes)?;
        let header: &[u8; FRAME_HEADER_LEN] = bytes.first_chunk().ok_or(NoiseError::Decrypt)?;
        Ok(FrameHeader::decode(*header))
    }

    /// Appends one chunk of a payload, opened, so that a long payload need not be here whole.
    pub fn open_chunk(&mut self, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let start = out.len();
        out.extend_from_slice(sealed);
        let opened = self.open(&mut out[start..]);
        out.truncate(start + *opened.as_ref().unwrap_or(&0));
        opened.map(|_| ())
    }

    /// Opens in place; how many of the bytes are text.
    fn open(&mut self, sealed: &mut [u8]) -> Result<usize, NoiseError> {
        let (key, nonce) = self.0.next();
        let opened = key.open_in_place(nonce, Aad::empty(), sealed);
        Ok(opened.map_err(|_| NoiseError::Decrypt)?.len())
    }
}

/// `text` and its tag into `out`, which is as long as both.
fn seal(key: &LessSafeKey, nonce: Nonce, authtext: &[u8], text: &[u8], out: &mut [u8]) {
    let (sealed, tag) = out.split_at_mut(text.len());
    sealed.copy_from_slice(text);
    let made = key
        .seal_in_place_separate_tag(nonce, Aad::from(authtext), sealed)
        .expect("no Noise message reaches ring's limit of 256 GiB");
    tag.copy_from_slice(made.as_ref());
}

// ---- snow's parts ----

/// What snow takes as a private key of ours: the secret and its encoding.
const PRIVATE_LEN: usize = 32 + ELLSWIFT_LEN;

/// Its tables cost more to build than a handshake.
static CURVE: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);

fn builder<'k>(party: ElligatorSwiftParty, ephemeral: EphemeralSecret) -> Builder<'k> {
    let params = NoiseParams::new(
        PROTOCOL_NAME.to_owned(),
        BaseChoice::Noise,
        HandshakeChoice {
            pattern: HandshakePattern::NX,
            modifiers: HandshakeModifierList { list: Vec::new() },
        },
        // snow knows no secp256k1; the resolver ignores this and the name above is what is hashed.
        DHChoice::Curve25519,
        CipherChoice::ChaChaPoly,
        HashChoice::SHA256,
    );
    Builder::with_resolver(params, Box::new(Resolver { party, ephemeral: ephemeral.0 }))
}

/// BIP324's shared secret depends on who is who, which a `Dh` of snow is not told: one resolver a role.
struct Resolver {
    party: ElligatorSwiftParty,
    ephemeral: EncodedKey,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(NoRandomness))
    }

    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(EllSwiftDh { party: self.party, key: self.ephemeral.clone() }))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::<BareKey>::default())
    }
}

/// ChaCha20-Poly1305 by ring, kept as the 32 bytes of its key: ring's own form of it is 544 bytes, twice
/// for each idle link, and made of the 32 in some ten nanoseconds.
#[derive(Default)]
struct BareKey([u8; 32]);

impl BareKey {
    fn ready(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &self.0);
        LessSafeKey::new(key.expect("a key of this cipher is 32 bytes"))
    }

    /// Four zero bytes, then the counter (Noise, chapter 12.3).
    fn nonce(counter: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Drop for BareKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Cipher for BareKey {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = *key;
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let sealed = &mut out[..plaintext.len() + MAC_LEN];
        seal(&self.ready(), Self::nonce(nonce), authtext, plaintext, sealed);
        plaintext.len() + MAC_LEN
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, snow::Error> {
        let Some(room) = out.get_mut(..ciphertext.len()) else {
            // snow hands in no more room than the text needs when it reads a handshake.
            let mut room = ciphertext.to_vec();
            let opened = self.decrypt(nonce, authtext, ciphertext, &mut room)?;
            let out = out.get_mut(..opened).ok_or(snow::Error::Decrypt)?;
            out.copy_from_slice(&room[..opened]);
            return Ok(opened);
        };
        room.copy_from_slice(ciphertext);
        let opened = self.ready().open_in_place(Self::nonce(nonce), Aad::from(authtext), room);
        Ok(opened.map_err(|_| snow::Error::Decrypt)?.len())
    }
}

/// snow wants a source; nothing of ours draws from it.
struct NoRandomness;

impl Random for NoRandomness {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
        Err(snow::Error::Rng)
    }
}

/// Holds the ephemeral key from the start; the static one takes its place where snow sets it.
struct EllSwiftDh {
    party: ElligatorSwiftParty,
    key: EncodedKey,
}

impl Dh for EllSwiftDh {
    fn name(&self) -> &'static str {
        "Secp256k1+EllSwift"
    }

    fn pub_len(&self) -> usize {
        ELLSWIFT_LEN
    }

    fn priv_len(&self) -> usize {
        PRIVATE_LEN
    }

    fn dh_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        let (secret, encoding) = private.split_at(32);
        self.key = EncodedKey {
            secret: SecretKey::from_slice(secret).expect("it was a SecretKey in Responder::new"),
            encoding: encoding.try_into().expect("Responder::new hands over 96 bytes"),
        };
    }

    fn generate(&mut self, _: &mut dyn Random) -> Result<(), snow::Error> {
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.key.encoding
    }

    fn privkey(&self) -> &[u8] {
        self.key.secret.as_ref()
    }

    fn dh(&self, remote: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        // snow hands over its whole 65-byte buffer.
        let remote = *remote.first_chunk::<ELLSWIFT_LEN>().ok_or(snow::Error::Dh)?;
        let (initiator, responder) = match self.party {
            ElligatorSwiftParty::A => (self.key.encoding, remote),
            ElligatorSwiftParty::B => (remote, self.key.encoding),
        };
        let shared = ElligatorSwift::shared_secret(
            ElligatorSwift::from_array(initiator),
            ElligatorSwift::from_array(responder),
            self.key.secret,
            self.party,
            None,
        );
        out.first_chunk_mut::<32>()
            .ok_or(snow::Error::Dh)?
            .copy_from_slice(shared.as_secret_bytes());
        Ok(())
    }
}

fn x_only(encoding: &[u8; ELLSWIFT_LEN]) -> [u8; 32] {
    let point = PublicKey::from_ellswift(ElligatorSwift::from_array(*encoding));
    point.x_only_public_key().0.serialize()
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        let digit = |ascii: u8| char::from(ascii).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_700_000_000;

    fn identity(valid_from: u32, not_valid_after: u32) -> Identity {
        let authority = AuthoritySecretKey::from_secret([7; 32]).expect("below the order");
        let static_key = StaticKey::from_secret([8; 32], [9; 32]).expect("below the order");
        let certificate =
            authority.certify(&static_key.x_only(), valid_from, not_valid_after, &[1; 32]);
        Identity { static_key, certificate, authority: authority.public() }
    }

    fn handshake(identity: &Identity) -> (Transport, Transport) {
        let (initiator, act_one) =
            Initiator::new(EphemeralSecret::new([3; 32], [4; 32]).expect("below the order"));
        let ephemeral = EphemeralSecret::new([5; 32], [6; 32]).expect("below the order");
        let (act_two, server) = Responder::new(identity, ephemeral).step(&act_one).expect("acts");
        let client = initiator.finish(&act_two, Some(&identity.authority), NOW).expect("certified");
        (client, server)
    }

    #[test]
    fn a_session_carries_frames_both_ways() {
        let (mut client, mut server) = handshake(&identity(NOW, NOW));
        for (from, to) in
            [(&mut client.sealer, &mut server.opener), (&mut server.sealer, &mut client.opener)]
        {
            let mut sealed = Vec::new();
            let header = FrameHeader { extension_type: 0x8000, msg_type: 0x1b, length: 5 };
            from.seal_frame(header, b"share", &mut sealed).expect("the session is young");
            let (head, payload) = sealed.split_first_chunk().expect("a header is first");
            assert_eq!(to.open_header(head), Ok(header));
            let mut opened = Vec::new();
            for chunk in payload.chunks(CHUNK_MAX + MAC_LEN) {
                to.open_chunk(chunk, &mut opened).expect("untouched");
            }
            assert_eq!(opened, b"share");
        }
    }

    #[test]
    fn the_session_ends_at_frames_max() {
        let (mut client, mut server) = handshake(&identity(NOW, NOW));
        let header = FrameHeader { extension_type: 0, msg_type: 0, length: 0 };
        client.sealer.0.frames = FRAMES_MAX - 1;
        server.opener.0.frames = FRAMES_MAX - 1;
        let mut sealed = Vec::new();
        assert_eq!(client.sealer.seal_frame(header, &[], &mut sealed), Ok(()));
        let sealed_header = sealed.first_chunk().expect("22 bytes");
        assert_eq!(server.opener.open_header(sealed_header), Ok(header));
        let over = client.sealer.seal_frame(header, &[], &mut sealed);
        assert_eq!(over, Err(NoiseError::SessionOver));
        assert_eq!(sealed.len(), SEALED_HEADER_LEN, "nothing is written past the end");
        assert_eq!(server.opener.open_header(&[0; 22]), Err(NoiseError::SessionOver));
    }

    #[test]
    fn authority_keys_read_as_the_spec_prints_them() {
        let text = "9bXiEd8boQVhq7WddEcERUL5tyyJVFYdU8th3HfbNXK3Yw6GRXh";
        let x = from_hex("76637000979c1c11af0c300bcd8c7fe48610fce9b9c11e3daee35ae0b08a7455")
            .expect("64 digits");
        let key: AuthorityPublicKey = text.parse().expect("the vector of chapter 4.7");
        assert_eq!(key.x_only(), x);
        assert_eq!(key.to_string(), text);

        let mistyped = text.replace('9', "8");
        assert!(matches!(mistyped.parse::<AuthorityPublicKey>(), Err(KeyError::Base58)));
        for none in ["pool.example:34254", "9bXiEd8boQVhq7Wdd0", "\u{e4}"] {
            assert!(matches!(none.parse::<AuthorityPublicKey>(), Err(KeyError::Characters)));
        }
        let secret = AuthoritySecretKey::from_secret([7; 32]).expect("below the order");
        let again: AuthoritySecretKey = secret.to_text().parse().expect("as written");
        assert_eq!(again.public(), secret.public());
        let swapped = secret.to_text().parse::<AuthorityPublicKey>();
        assert_eq!(swapped, Err(KeyError::Kind), "a secret is not taken for a public key");
    }

    #[test]
    fn what_holds_a_secret_wipes_it_when_it_is_dropped() {
        fn wipes<T: ZeroizeOnDrop>(_: &T) {}
        let mut key = EncodedKey::new([8; 32], [9; 32]).expect("below the order");
        wipes(&StaticKey(key.clone()));
        wipes(&EphemeralSecret(key.clone()));
        key.zeroize();
        assert_ne!(key.secret.secret_bytes(), [8; 32]);
        let mut authority = AuthoritySecretKey::from_secret([7; 32]).expect("below the order");
        wipes(&authority);
        wipes(&authority.to_text());
        authority.zeroize();
        assert_ne!(authority.0.secret_bytes(), [7; 32]);
        let text = identity(NOW, NOW + 1).to_text();
        wipes(&text);
        assert!(text.len() < IDENTITY_TEXT_MAX, "it was outgrown");
    }

    #[test]
    fn secrets_are_scalars_of_the_curve() {
        for bad in [[0; 32], [0xff; 32]] {
            assert_eq!(StaticKey::from_secret(bad, [1; 32]).err(), Some(KeyError::Secret));
            assert_eq!(EphemeralSecret::new(bad, [1; 32]).err(), Some(KeyError::Secret));
            assert_eq!(AuthoritySecretKey::from_secret(bad).err(), Some(KeyError::Secret));
        }
    }

    #[test]
    fn a_certificate_holds_through_the_drift_and_no_second_longer() {
        let identity = identity(NOW, NOW + 100);
        let check = |now| {
            let x_only = identity.static_key.x_only();
            identity.certificate.verify(&x_only, &identity.authority, now)
        };
        assert_eq!(check(NOW - CLOCK_DRIFT_S), Ok(()));
        let early = NOW - CLOCK_DRIFT_S - 1;
        assert_eq!(
            check(early),
            Err(CertificateError::NotYetValid { valid_from: NOW, now: early })
        );
        assert_eq!(check(NOW + 100 + CLOCK_DRIFT_S), Ok(()));
        let late = NOW + 100 + CLOCK_DRIFT_S + 1;
        let expired = CertificateError::Expired { not_valid_after: NOW + 100, now: late };
        assert_eq!(check(late), Err(expired));
    }

    #[test]
    fn a_certificate_may_reach_to_the_ends_of_time_r05() {
        let identity = identity(0, u32::MAX);
        let x_only = identity.static_key.x_only();
        for now in [0, NOW, u32::MAX] {
            assert_eq!(identity.certificate.verify(&x_only, &identity.authority, now), Ok(()));
        }
    }

    #[test]
    fn every_certificate_version_but_zero_is_refused_r07() {
        let identity = identity(NOW, NOW);
        let x_only = identity.static_key.x_only();
        for version in 1..=u16::MAX {
            let certificate = Certificate { version, ..identity.certificate };
            let refused = certificate.verify(&x_only, &identity.authority, NOW);
            assert_eq!(refused, Err(CertificateError::Version(version)));
        }
    }

    #[test]
    fn certificates_read_back_as_written() {
        let certificate = identity(NOW, NOW + 1).certificate;
        assert_eq!(Certificate::decode(&certificate.encode()), certificate);
    }

    #[test]
    fn an_identity_file_reads_back_and_any_change_is_noticed() {
        let text = identity(NOW, NOW + 1).to_text();
        assert_eq!(Identity::from_text(&text).expect("as written").to_text(), text);

        let refused = |text: &str| Identity::from_text(text).expect_err("it was changed");
        let later = text.replace("not_valid_after = 17", "not_valid_after = 18");
        assert_eq!(refused(&later), KeyError::Certificate(CertificateError::Signature));
        let other_secret = text.replace(&Hex(&[8; 32]).to_string(), &Hex(&[7; 32]).to_string());
        assert!(matches!(refused(&other_secret), KeyError::Identity(_)));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let without = text.replace(line, "");
            assert!(matches!(refused(&without), KeyError::Identity(_)), "{line} is needed");
            let twice = format!("{}{line}\n", *text);
            assert!(matches!(refused(&twice), KeyError::Identity(_)), "{line} stands twice");
        }
    }

    #[test]
    fn no_text_for_people_shows_a_secret() {
        let identity = identity(NOW, NOW);
        assert!(!format!("{identity:?}").contains(&Hex(&[8; 32]).to_string()));
        let text = format!("static_secret {}", Hex(&[8; 32]));
        let error = Identity::from_text(&text).expect_err("no equals sign");
        assert!(!error.to_string().contains("0808"));
    }
}
