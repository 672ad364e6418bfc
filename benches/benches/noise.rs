//! The encrypted link, ours alone: `cargo bench -p benches --bench noise`. Beside SRI's and beside ring
//! alone it stands in `compare`.

#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proto::limits::SEALED_HEADER_LEN;
use proto::message::FrameHeader;
use proto::noise::{
    AuthoritySecretKey, EphemeralSecret, Identity, Initiator, Responder, StaticKey, Transport,
};

const NOW: u32 = 1_790_000_000;
/// A share, a job, a job with many outputs.
const LENGTHS: [usize; 3] = [41, 641, 1_900];
/// SubmitSharesExtended; any other is sealed alike.
const HEADER: FrameHeader = FrameHeader { extension_type: 0x8000, msg_type: 0x1b, length: 0 };

fn frames(criterion: &mut Criterion) {
    let (mut client, mut server) = session(&identity());
    let mut group = criterion.benchmark_group("frame");
    for length in LENGTHS {
        let payload = vec![7; length];
        let mut sealed = Vec::new();
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::new("seal", length), |bencher| {
            bencher.iter(|| {
                sealed.clear();
                server.sealer.seal_frame(HEADER, black_box(&payload), &mut sealed)
            });
        });
        let mut opened = Vec::new();
        group.bench_function(BenchmarkId::new("open", length), |bencher| {
            bencher.iter_batched(
                || {
                    let mut sealed = Vec::new();
                    let seal = client.sealer.seal_frame(HEADER, &payload, &mut sealed);
                    seal.expect("the session is young");
                    sealed
                },
                |sealed| {
                    let (header, payload) =
                        sealed.split_first_chunk::<SEALED_HEADER_LEN>().expect("a frame");
                    opened.clear();
                    let header = server.opener.open_header(header);
                    let payload = server.opener.open_chunk(payload, &mut opened);
                    header.is_ok() && payload.is_ok()
                },
                // One at a time, so that the frames are opened in the order they were sealed in.
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn handshake(criterion: &mut Criterion) {
    let identity = identity();
    let mut group = criterion.benchmark_group("handshake");
    let (_, act_one) = Initiator::new(ephemeral(3));
    group.bench_function("responder", |bencher| {
        bencher.iter(|| Responder::new(&identity, ephemeral(5)).step(black_box(&act_one)).is_ok());
    });
    group.bench_function("both sides", |bencher| bencher.iter(|| session(black_box(&identity))));
    group.finish();
}

fn session(identity: &Identity) -> (Transport, Transport) {
    let (initiator, act_one) = Initiator::new(ephemeral(3));
    let step = Responder::new(identity, ephemeral(5)).step(&act_one);
    let (act_two, server) = step.expect("act 1 is an initiator's");
    let client = initiator.finish(&act_two, Some(&identity.authority), NOW);
    (client.expect("act 2 is the responder's"), server)
}

fn identity() -> Identity {
    let authority = AuthoritySecretKey::from_secret([7; 32]).expect("below the order");
    let static_key = StaticKey::from_secret([8; 32], [9; 32]).expect("below the order");
    let certificate = authority.certify(&static_key.x_only(), NOW, NOW + 3_600, &[1; 32]);
    Identity { static_key, certificate, authority: authority.public() }
}

fn ephemeral(seed: u8) -> EphemeralSecret {
    EphemeralSecret::new([seed; 32], [seed ^ 0xff; 32]).expect("below the order")
}

criterion_group!(benches, frames, handshake);
criterion_main!(benches);
