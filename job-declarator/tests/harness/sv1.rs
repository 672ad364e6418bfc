//! A Stratum V1 connection that is sent any bytes, in pieces of any size, with a real mining server behind the
//! session: whatever comes, each answer is a whole line of JSON (`Rig` asserts it), what waits for the server is
//! bounded, and there are no more words than a few times what was heard.

use job_declarator::limits::SV1_UNANSWERED_MAX;

use super::sv1_rig::{Rig, active};

/// Each piece is led by a byte that says how long it is, or what happens instead.
pub fn run(data: &[u8]) {
    let mut rig = Rig::new();
    let (mut rest, mut fed, mut jobs) = (data, 0, 0_usize);
    while let Some((lead, after)) = rest.split_first() {
        rest = after;
        match lead {
            0xf0..=0xf7 => rig.wait(u64::from(lead & 7) * 100),
            0xf8..=0xfb => {
                jobs += 1;
                rig.template(active(900_000, *lead));
            }
            0xfc..=0xff => {
                jobs += 1;
                rig.template(active(900_000 + u32::from(lead & 3), 1));
            }
            length => {
                let (piece, after) = rest.split_at(rest.len().min(usize::from(*length)));
                rest = after;
                fed += piece.len();
                rig.feed(piece);
            }
        }
        if rig.ended.is_some() {
            return;
        }
        assert!(rig.session.unanswered() <= SV1_UNANSWERED_MAX);
    }
    assert!(rig.text.len() <= 8 * fed + 4_000 * (jobs + 2) + 40_000, "{} of {fed}", rig.text.len());
}

/// What devices say, for seeds: pieces of it make conversations.
pub const WORDS: [&str; 10] = [
    "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"fw\"]}\n",
    "{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"a.b\",\"d=0.001\"]}\n",
    "{\"id\":3,\"method\":\"mining.configure\",\"params\":[[\"version-rolling\"],{}]}\n",
    "{\"id\":4,\"method\":\"mining.suggest_difficulty\",\"params\":[0.5]}\n",
    "{\"id\":5,\"method\":\"mining.submit\",\"params\":[\"a\",\"1\",\"",
    "00000000000000000000000000000000",
    "\",\"6b49d200\",\"00000000\",\"00000000\"]}\n",
    "{\"id\":6,\"method\":\"mining.extranonce.subscribe\",\"params\":null}\r\n",
    "{\"id\":null,\"method\":\"mining.ping\"}\n",
    "{\"id\":\"\u{e9}\",\"method\":\"no\",\"params\":[[[[[[[\n",
];
