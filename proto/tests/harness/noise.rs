//! Anything in place of a handshake message, a certificate, a key or an identity file: it is refused,
//! and what is accepted reads back as it was.

use proto::noise::{
    AuthorityPublicKey, AuthoritySecretKey, Certificate, Identity, Initiator, NoiseError, Responder,
};

use super::Bytes;
use super::link::{NOW, ephemeral, identity};

pub fn run(data: &[u8]) {
    let mut data = Bytes::new(data);
    match data.byte() % 5 {
        0 => act_one(&mut data),
        1 => act_two(&mut data),
        2 => certificate(&mut data),
        3 => texts(&mut data),
        _ => identity_file(&mut data),
    }
}

/// Any 64 bytes are answered, and nobody but who sent them could have read the answer.
fn act_one(data: &mut Bytes<'_>) {
    let sent = data.array();
    let identity = identity();
    let (act_two, mut server) = Responder::new(&identity, ephemeral(5)).step(&sent).unwrap();
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let read = initiator.finish(&act_two, Some(&identity.authority), NOW);
    assert_eq!(read.is_ok(), act_one == sent);
    assert_eq!(server.opener.open_header(&data.array()), Err(NoiseError::Decrypt));
}

/// The true act 2 with bytes of the fuzzer's over it.
fn act_two(data: &mut Bytes<'_>) {
    let identity = identity();
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (truth, _) = Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap();
    let mut sent = truth;
    let place = usize::from(data.byte()) % sent.len();
    let over = data.rest();
    let count = over.len().min(sent.len() - place);
    sent[place..place + count].copy_from_slice(&over[..count]);
    let read = initiator.finish(&sent, Some(&identity.authority), NOW);
    assert_eq!(read.is_ok(), sent == truth);
}

fn certificate(data: &mut Bytes<'_>) {
    let bytes = data.array();
    let certificate = Certificate::decode(&bytes);
    assert_eq!(certificate.encode(), bytes);
    let identity = identity();
    let x_only = identity.static_key.x_only();
    assert!(certificate.verify(&x_only, &identity.authority, data.u32()).is_err());
}

fn texts(data: &mut Bytes<'_>) {
    let text = String::from_utf8_lossy(data.rest());
    if let Ok(key) = text.parse::<AuthorityPublicKey>() {
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    if let Ok(key) = text.parse::<AuthoritySecretKey>() {
        assert_eq!(key.to_text().as_str(), text.trim());
    }
    assert!(Identity::from_text(&text).is_err(), "nobody draws a signature");
}

/// The true file with bytes of the fuzzer's over it: refused, or the same identity.
fn identity_file(data: &mut Bytes<'_>) {
    let truth = identity().to_text();
    let mut bytes = truth.as_bytes().to_vec();
    let place = usize::from(u16::from_le_bytes(data.array())) % bytes.len();
    let over = data.rest();
    let count = over.len().min(bytes.len() - place);
    bytes[place..place + count].copy_from_slice(&over[..count]);
    if let Ok(read) = Identity::from_text(&String::from_utf8_lossy(&bytes)) {
        // Another encoding of the same point is another file, as good as the first.
        assert_eq!(read.static_key.x_only(), identity().static_key.x_only());
        assert_eq!(read.certificate, identity().certificate);
        assert_eq!(read.authority, identity().authority);
    }
}
