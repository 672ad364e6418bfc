//! A stream of frames, cut anywhere and damaged at most once: what comes out is what went in, up to the
//! damage and never past it; memory follows the bytes.

use proto::connection::{Connection, Violation};
use proto::limits::SETUP_PAYLOAD_MAX;
use proto::message::FrameHeader;
use proto::noise::NoiseError;

use super::Bytes;
use super::link::connections;

pub fn run(data: &[u8]) {
    let mut data = Bytes::new(data);
    let limit = match data.byte() % 3 {
        0 => SETUP_PAYLOAD_MAX,
        1 => 70_000,
        _ => 200_000,
    };
    let (mut client, mut server) = connections();
    server.inbound.set_limit(limit);

    let mut sent = Vec::new();
    for _ in 0..=data.byte() % 4 {
        let (header, payload) = frame(&mut data);
        client.outbound.send_frames(&[&header.encode()[..], &payload].concat());
        sent.push((header, payload, client.outbound.pending().len()));
    }
    let mut sealed = client.outbound.pending().to_vec();
    let damaged = (data.byte() % 2 == 1).then(|| {
        let place = data.u32() as usize % sealed.len();
        sealed[place] ^= 1 << (data.byte() % 8);
        place
    });
    check(&mut server, &sent, &sealed, damaged, limit, data.rest());
}

/// Around the ends of chunks more often than chance has it.
fn frame(data: &mut Bytes<'_>) -> (FrameHeader, Vec<u8>) {
    let near = usize::from(data.byte());
    let length = match data.byte() % 4 {
        0 => near,
        1 => SETUP_PAYLOAD_MAX - 128 + near,
        2 => 65_519 - 128 + near,
        _ => 131_038 - 128 + near,
    };
    let payload = vec![data.byte(); length];
    let extension_type = u16::from_le_bytes(data.array());
    (FrameHeader { extension_type, msg_type: data.byte(), length }, payload)
}

/// `sent`: header, payload and where its sealed bytes end.
fn check(
    server: &mut Connection,
    sent: &[(FrameHeader, Vec<u8>, usize)],
    sealed: &[u8],
    damaged: Option<usize>,
    limit: usize,
    cuts: &[u8],
) {
    let mut cuts = cuts.iter().chain(std::iter::repeat(&255));
    let mut rest = sealed;
    let mut expected = sent.iter();
    loop {
        let got = server.inbound.next_frame().map(|frame| frame.map(|f| (f.header, f.payload)));
        match got {
            Ok(Some((header, payload))) => {
                let (sent_header, sent_payload, end) = expected.next().unwrap();
                assert!(header == *sent_header && payload == sent_payload);
                assert!(damaged.is_none_or(|place| place >= *end), "a damaged frame came out");
                assert!(payload.len() <= limit);
            }
            Ok(None) if rest.is_empty() => break,
            Ok(None) => {
                let count = (usize::from(*cuts.next().unwrap()) * 64 + 1).min(rest.len());
                server.inbound.feed(&rest[..count]);
                rest = &rest[count..];
                assert!(server.inbound.reserved() <= 2 * limit + 4 * 65_535, "memory ran ahead");
            }
            Err(Violation::FrameTooLarge { length, .. }) => {
                assert_eq!(length, expected.next().unwrap().1.len());
                assert!(length > limit);
                return;
            }
            Err(Violation::Noise(NoiseError::Decrypt)) => {
                assert!(damaged.is_some());
                return;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(damaged.is_none() && expected.next().is_none(), "something was swallowed");
}
