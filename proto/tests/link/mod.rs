//! Builders that the tests of the link share: an identity, both ends of a handshake, both ends of a
//! connection. Fixed secrets, so every run is the same.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses some of these")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use proto::connection::Connection;
use proto::noise::{
    AuthoritySecretKey, EphemeralSecret, Identity, Initiator, Responder, StaticKey, Transport,
};

/// The unix time at which every test takes place.
pub const NOW: u32 = 1_700_000_000;

pub fn authority() -> AuthoritySecretKey {
    AuthoritySecretKey::from_secret([7; 32]).unwrap()
}

pub fn ephemeral(seed: u8) -> EphemeralSecret {
    EphemeralSecret::new([seed; 32], [seed ^ 0xff; 32]).unwrap()
}

/// Certified by `authority()` from `valid_from` to `not_valid_after`.
pub fn identity_valid(valid_from: u32, not_valid_after: u32) -> Identity {
    let static_key = StaticKey::from_secret([8; 32], [9; 32]).unwrap();
    let x_only = static_key.x_only();
    let certificate = authority().certify(&x_only, valid_from, not_valid_after, &[1; 32]);
    Identity { static_key, certificate, authority: authority().public() }
}

pub fn identity() -> Identity {
    identity_valid(NOW - 3_600, NOW + 3_600)
}

/// Client and server of a finished handshake.
pub fn transports() -> (Transport, Transport) {
    let identity = identity();
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let (act_two, server) = Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap();
    (initiator.finish(&act_two, Some(&identity.authority), NOW).unwrap(), server)
}

/// Client and server that have shaken hands and said nothing yet.
pub fn connections() -> (Connection, Connection) {
    let (client, server) = transports();
    (Connection::new(client), Connection::new(server))
}

/// Carries all that is pending from one end to the other.
pub fn carry(from: &mut Connection, to: &mut Connection) {
    let pending = from.outbound.pending().to_vec();
    to.inbound.feed(&pending);
    from.outbound.advance(pending.len());
}
