//! A new tip on its way to many connections, in pieces: `cargo bench -p benches --bench fanout`. What the
//! whole of it costs a pool's process, beside the same loop, is what the program `fanout` measures.
//!
//! Figures are per connection: one SetNewPrevHash, and the two jobs behind it. `machine` is a mining
//! server and its link, which give bytes to send; `seal` is sealing the same frames and nothing else;
//! `seal and send` adds a loopback socket for each connection, read by another thread.

#![allow(missing_docs, reason = "criterion's macros make the functions")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up says so")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use benches::compare::inputs::{NOW, World};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use proto::connection::Connection;
use proto::job::ActiveTemplate;
use proto::limits::FRAME_HEADER_LEN;
use proto::message::FrameHeader;
use proto::mining::Kind;
use proto::mining::server::{Input, Outbox, Server};
use proto::noise::{
    AuthoritySecretKey, EphemeralSecret, Identity, Initiator, Responder, Sealer, StaticKey,
    Transport,
};
use proto::target::Difficulty;

/// One socket pair each: far below any limit on open files.
const CONNECTIONS: usize = 400;

/// One tip after the other, each with a job sent ahead for the one after.
struct Tips {
    world: World,
    blocks: u32,
}

impl Tips {
    fn new() -> Self {
        Self { world: World::new(Kind::Extended, Difficulty::MIN).unwrap(), blocks: 0 }
    }

    fn next(&mut self) -> Arc<ActiveTemplate> {
        self.blocks += 1;
        Arc::new(self.world.blocks_later(self.blocks).unwrap())
    }
}

/// What a tip makes a server say: first the tip, then the jobs.
fn frames_of(server: &mut Server, tip: Arc<ActiveTemplate>) -> [Vec<u8>; 2] {
    let mut out = Outbox::default();
    server.handle(NOW, Input::Template(tip), &mut out).unwrap();
    let first = std::mem::take(&mut out.frames);
    server.handle(NOW, Input::BurstEnd, &mut out).unwrap();
    [first, out.frames]
}

fn machine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fanout");
    group.throughput(Throughput::Elements(CONNECTIONS as u64));
    let mut tips = Tips::new();
    let mut peers: Vec<(Server, Connection)> = (0..CONNECTIONS)
        .map(|_| (tips.world.server().unwrap(), Connection::new(transport())))
        .collect();
    group.bench_function(BenchmarkId::new("machine", CONNECTIONS), |bencher| {
        bencher.iter(|| {
            let tip = tips.next();
            for (server, Connection { outbound, .. }) in &mut peers {
                for frames in frames_of(server, Arc::clone(&tip)) {
                    outbound.send_frames(&frames);
                    let count = black_box(outbound.pending()).len();
                    outbound.advance(count);
                }
            }
        });
    });
    group.finish();
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fanout");
    group.throughput(Throughput::Elements(CONNECTIONS as u64));
    let writes = writes();
    let mut sealers: Vec<Sealer> = (0..CONNECTIONS).map(|_| transport().sealer).collect();
    let mut sealed = Vec::new();
    group.bench_function(BenchmarkId::new("seal", CONNECTIONS), |bencher| {
        bencher.iter(|| {
            for frames in &writes {
                for sealer in &mut sealers {
                    seal_all(sealer, frames, &mut sealed);
                    black_box(&sealed);
                }
            }
        });
    });
    group.finish();
}

fn seal_and_send(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fanout");
    group.throughput(Throughput::Elements(CONNECTIONS as u64));
    let writes = writes();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut peers = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut reader = TcpStream::connect(address).unwrap();
        let (writer, _) = listener.accept().unwrap();
        writer.set_nodelay(true).unwrap();
        // A thread for each is what a bench can afford; it ends when the writer is dropped.
        thread::spawn(move || while reader.read(&mut [0; 4_096]).is_ok_and(|count| count > 0) {});
        peers.push((transport().sealer, writer));
    }
    let mut sealed = Vec::new();
    group.bench_function(BenchmarkId::new("seal and send", CONNECTIONS), |bencher| {
        bencher.iter(|| {
            for frames in &writes {
                for (sealer, writer) in &mut peers {
                    seal_all(sealer, frames, &mut sealed);
                    writer.write_all(&sealed).unwrap();
                }
            }
        });
    });
    group.finish();
}

/// The frames of each of the two writes of a tip.
fn writes() -> [Vec<(FrameHeader, Vec<u8>)>; 2] {
    let mut tips = Tips::new();
    let mut server = tips.world.server().unwrap();
    // The first tip finds no job sent ahead.
    frames_of(&mut server, tips.next());
    frames_of(&mut server, tips.next()).map(|frames| cut(&frames))
}

fn cut(mut frames: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
    let mut cut = Vec::new();
    while let Some((header, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*header);
        let (payload, rest) = rest.split_at(header.length);
        cut.push((header, payload.to_vec()));
        frames = rest;
    }
    cut
}

fn seal_all(sealer: &mut Sealer, frames: &[(FrameHeader, Vec<u8>)], sealed: &mut Vec<u8>) {
    sealed.clear();
    for (header, payload) in frames {
        sealer.seal_frame(*header, payload, sealed).unwrap();
    }
}

fn transport() -> Transport {
    let authority = AuthoritySecretKey::from_secret([7; 32]).unwrap();
    let static_key = StaticKey::from_secret([8; 32], [9; 32]).unwrap();
    let certificate = authority.certify(&static_key.x_only(), 0, u32::MAX, &[1; 32]);
    let identity = Identity { static_key, certificate, authority: authority.public() };
    let (_, act_one) = Initiator::new(ephemeral(3));
    Responder::new(&identity, ephemeral(5)).step(&act_one).unwrap().1
}

fn ephemeral(seed: u8) -> EphemeralSecret {
    EphemeralSecret::new([seed; 32], [seed ^ 0xff; 32]).unwrap()
}

criterion_group!(benches, machine, seal, seal_and_send);
criterion_main!(benches);
