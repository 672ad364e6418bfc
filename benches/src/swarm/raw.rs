//! The least that a fan-out can be: one thread that seals frames with each connection's own key and sends
//! them, one socket after the other. What `fanout.rs` holds the pool against. Here a connection is served
//! so far that a client believes it: handshake, SetupConnection, one channel.
//!
//! Must do nothing between two sends that is not sealing, or the limit would be no limit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::connection::{Frame, Inbound};
use proto::limits::ACT_ONE_LEN;
use proto::message::{FrameHeader, Message, SetupConnectionSuccess};
use proto::noise::{
    AuthoritySecretKey, EphemeralSecret, Identity, Responder, Sealer, StaticKey, Transport,
};

use crate::compare::clock::thread_cpu;

/// A client that says nothing for so long ends the loop's opening.
const OPENING_MAX: Duration = Duration::from_secs(20);
/// Long enough for any clock: nobody checks the loop's certificate.
const NOT_AFTER: u32 = u32::MAX;

/// Frames in clear.
#[derive(Debug, Clone, Default)]
pub(super) struct Frames(Vec<(FrameHeader, Vec<u8>)>);

impl Frames {
    pub(super) fn push(&mut self, frame: Frame<'_>) {
        self.0.push((frame.header, frame.payload.to_vec()));
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Of each payload.
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.0.iter().map(|(_, payload)| payload.len()).collect()
    }
}

/// CPU time of the thread, ns: of the first frame to everybody, and of all others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) tip_ns: f64,
    pub(super) jobs_ns: f64,
}

/// The loop's thread; it ends with this.
pub(super) struct RawLoop {
    pub(super) address: SocketAddr,
    go: SyncSender<()>,
    sent: Receiver<Result<Sent>>,
}

/// A socket and the key of what is sent over it.
struct Peer {
    stream: TcpStream,
    sealer: Sealer,
}

impl RawLoop {
    /// Waits for so many connections, says `opening` to each channel and, at every `go`, `tip`.
    pub(super) fn start(connections: usize, opening: Frames, tip: Frames) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the raw loop")?;
        let address = listener.local_addr().context("a port for the raw loop")?;
        let (go, told) = sync_channel(1);
        let (report, sent) = sync_channel(1);
        let work = move || {
            let mut peers = match accept(&listener, connections, &opening) {
                Ok(peers) => peers,
                Err(error) => return drop(report.send(Err(error))),
            };
            while told.recv().is_ok() {
                if report.send(fan_out(&mut peers, &tip)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("raw loop".into()).spawn(work).context("a thread")?;
        Ok(Self { address, go, sent })
    }

    /// Starts a fan-out.
    pub(super) fn go(&self) -> Result<()> {
        self.go.try_send(()).context("the raw loop is gone, or still at it")
    }

    /// What the last one took; waits for its end.
    pub(super) fn sent(&self) -> Result<Sent> {
        self.sent.recv_timeout(OPENING_MAX).context("the raw loop is gone")?
    }
}

fn accept(listener: &TcpListener, connections: usize, opening: &Frames) -> Result<Vec<Peer>> {
    let identity = identity()?;
    let mut peers = Vec::with_capacity(connections);
    for _ in 0..connections {
        let (stream, _) = listener.accept().context("accepting for the raw loop")?;
        peers.push(open(stream, &identity, opening).context("opening for the raw loop")?);
    }
    Ok(peers)
}

fn identity() -> Result<Identity> {
    let authority = AuthoritySecretKey::from_secret([1; 32]).context("a key")?;
    let static_key = StaticKey::from_secret([2; 32], [3; 32]).context("a key")?;
    let certificate = authority.certify(&static_key.x_only(), 0, NOT_AFTER, &[4; 32]);
    Ok(Identity { static_key, certificate, authority: authority.public() })
}

/// As far as one open channel.
fn open(mut stream: TcpStream, identity: &Identity, opening: &Frames) -> Result<Peer> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(OPENING_MAX))?;
    let mut act_one = [0; ACT_ONE_LEN];
    stream.read_exact(&mut act_one)?;
    let mut random = [[0; 32]; 2];
    getrandom::fill(random.as_flattened_mut()).context("randomness")?;
    let ephemeral = EphemeralSecret::new(random[0], random[1])?;
    let (act_two, transport) = Responder::new(identity, ephemeral).step(&act_one)?;
    stream.write_all(&act_two)?;
    let Transport { mut sealer, opener } = transport;
    let mut inbound = Inbound::new(opener);
    hear_one(&mut stream, &mut inbound)?;
    let mut clear = Vec::new();
    Message::from(SetupConnectionSuccess { used_version: 2, flags: 0 }).encode(&mut clear);
    let (header, payload) = clear.split_first_chunk().context("a frame has a header")?;
    let mut sealed = Vec::new();
    sealer.seal_frame(FrameHeader::decode(*header), payload, &mut sealed)?;
    stream.write_all(&sealed)?;
    hear_one(&mut stream, &mut inbound)?;
    sealed.clear();
    for (header, payload) in &opening.0 {
        sealer.seal_frame(*header, payload, &mut sealed)?;
    }
    stream.write_all(&sealed)?;
    stream.set_nonblocking(true)?;
    Ok(Peer { stream, sealer })
}

fn hear_one(stream: &mut TcpStream, inbound: &mut Inbound) -> Result<()> {
    let mut bytes = [0; 4_096];
    while inbound.next_frame()?.is_none() {
        let count = stream.read(&mut bytes)?;
        ensure!(count > 0, "closed by the client");
        inbound.feed(&bytes[..count]);
    }
    Ok(())
}

/// The first frame to everybody, then the others in one write, as a pool does.
fn fan_out(peers: &mut [Peer], frames: &Frames) -> Result<Sent> {
    let (tip, jobs) = frames.0.split_at(1);
    let mut sealed = Vec::with_capacity(4_096);
    let mut send_all = |frames: &[(FrameHeader, Vec<u8>)]| -> Result<f64> {
        let began = thread_cpu();
        for Peer { stream, sealer } in &mut *peers {
            sealed.clear();
            for (header, payload) in frames {
                sealer.seal_frame(*header, payload, &mut sealed)?;
            }
            let written = stream.write(&sealed).context("a socket of the raw loop")?;
            ensure!(written == sealed.len(), "a socket of the raw loop is full");
        }
        Ok(thread_cpu().saturating_sub(began).as_nanos() as f64)
    };
    Ok(Sent { tip_ns: send_all(tip)?, jobs_ns: send_all(jobs)? })
}
