//! Messages to bytes and back, ours alone: `cargo bench -p benches --bench wire`. Beside SRI's codec they
//! stand in `compare`.

#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::hint::black_box;

use benches::compare::inputs::{CHANNEL, World, submit};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use proto::limits::FRAME_HEADER_LEN;
use proto::message::{FrameHeader, Message};
use proto::mining::Kind;
use proto::target::Difficulty;

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, frame) in frames() {
        let (header, payload) = frame.split_first_chunk::<FRAME_HEADER_LEN>().expect("a frame");
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let header = FrameHeader::decode(*black_box(header));
                let payload = black_box(payload);
                black_box(Message::decode(header.extension(), header.msg_type, payload)).is_ok()
            });
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let world = world(Kind::Extended);
    let share = submit(&world.claim(1), 1);
    let mut out = Vec::new();
    let mut group = criterion.benchmark_group("encode");
    group.bench_function("SubmitSharesExtended", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&share).encode(&mut out);
        });
    });
    group.bench_function("NewExtendedMiningJob of a channel", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&world).job.say_extended(CHANNEL, world.job_id, None, &mut out);
        });
    });
    group.finish();
}

fn world(kind: Kind) -> World {
    World::new(kind, Difficulty::MIN).expect("the inputs of compare can be made")
}

fn frames() -> [(&'static str, Vec<u8>); 3] {
    let (extended, standard) = (world(Kind::Extended), world(Kind::Standard));
    let mut frames = [(); 3].map(|()| Vec::new());
    let [share, lean, job] = &mut frames;
    submit(&extended.claim(1), 1).encode(share);
    submit(&standard.claim(1), 1).encode(lean);
    extended.job.say_extended(CHANNEL, extended.job_id, None, job);
    let [share, lean, job] = frames;
    [("SubmitSharesExtended", share), ("SubmitSharesStandard", lean), ("NewExtendedMiningJob", job)]
}

criterion_group!(benches, decode, encode);
criterion_main!(benches);
