//! A test's own miner over a real link: opens a channel, grinds easy shares, and writes down what it was
//! told. Used by the tests that run a whole pool.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test uses its part; builders outside a #[test] fail it just as well"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::message::{Message, Received};
use proto::mining::client::{ChannelKind, Client, ClientOptions, Event};
use proto::mining::grind::Grinder;
use proto::net::{Link, LinkError};
use proto::noise::EphemeralSecret;
use proto::wire::B032;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// How long a test waits for anything before it calls it lost. Generous: machines are slow and shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A connection with one channel.
pub(crate) struct Session {
    pub(crate) link: Link,
    pub(crate) client: Client,
    began: Instant,
    rolled: u128,
    pub(crate) book: Book,
}

/// What became of the shares.
#[derive(Default)]
pub(crate) struct Book {
    /// Sequence numbers and header hashes that no answer came for yet.
    pub(crate) unanswered: VecDeque<(u32, [u8; 32])>,
    /// Hashes that a Success covered.
    pub(crate) acknowledged: Vec<[u8; 32]>,
    /// Codes of refused shares.
    pub(crate) refused: Vec<String>,
}

pub(crate) fn unix_s() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
}

pub(crate) fn ephemeral() -> EphemeralSecret {
    let mut bytes = [[0; 32]; 2];
    bytes.iter_mut().for_each(|half| getrandom::fill(half).unwrap());
    EphemeralSecret::new(bytes[0], bytes[1]).unwrap()
}

/// The encrypted link alone; whoever answers is accepted.
pub(crate) async fn link(at: SocketAddr) -> Result<Link, LinkError> {
    link_on(TcpStream::connect(at).await?).await
}

/// The same on a connection that is there.
pub(crate) async fn link_on(stream: TcpStream) -> Result<Link, LinkError> {
    Link::connect(stream, None, ephemeral(), unix_s()).await
}

/// A connection from a household of its own: any 127.x is ours to come from.
pub(crate) async fn stream_from(household: [u8; 4], at: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((household, 0))).unwrap();
    socket.connect(at).await.unwrap()
}

impl Book {
    /// Which shares an answer speaks of: a Success covers the oldest ones up to its sequence number
    /// that were not refused.
    fn note(&mut self, message: &Message<'_>) {
        if let Message::SubmitSharesError(error) = message {
            self.unanswered.retain(|(sequence, _)| *sequence != error.sequence_number);
            self.refused.push(error.error_code.printable());
        }
        if let Message::SubmitSharesSuccess(success) = message {
            let mut count = 0;
            while let Some((sequence, hash)) = self.unanswered.front().copied() {
                if sequence > success.last_sequence_number {
                    break;
                }
                self.unanswered.pop_front();
                self.acknowledged.push(hash);
                count += 1;
            }
            assert_eq!(count, success.new_submits_accepted_count, "a Success miscounts");
        }
    }
}

impl Session {
    /// Connects and waits until there is work.
    pub(crate) async fn open(
        at: SocketAddr,
        kind: ChannelKind,
        user: &str,
    ) -> Result<Self, LinkError> {
        Self::on(link(at).await?, kind, user).await
    }

    /// The same on a link that is there.
    pub(crate) async fn on(link: Link, kind: ChannelKind, user: &str) -> Result<Self, LinkError> {
        // Next to no hash rate: the pool starts at its floor, and a share is some hundred hashes.
        let options = ClientOptions { nominal_hash_rate: 1.0, ..ClientOptions::new(kind, user) };
        let mut session = Self {
            link,
            client: Client::new(options),
            began: Instant::now(),
            rolled: 0,
            book: Book::default(),
        };
        let mut frames = Vec::new();
        session.client.start(&mut frames);
        session.send(&frames).await?;
        while session.client.work().is_none() {
            session.hear().await?;
        }
        Ok(session)
    }

    pub(crate) async fn send(&mut self, frames: &[u8]) -> Result<(), LinkError> {
        self.link.connection().outbound.send_frames(frames);
        self.link.flush().await
    }

    /// Waits for bytes and takes every frame in them.
    pub(crate) async fn hear(&mut self) -> Result<(), LinkError> {
        if self.link.fill().await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let mut answers = Vec::new();
        let now_ms = self.began.elapsed().as_millis() as u64;
        let Self { link, client, book, .. } = self;
        while let Some(frame) = link.connection().inbound.next_frame()? {
            let Received::Known(message, tlvs) = frame.message()? else { continue };
            book.note(&message);
            let events = client.handle(now_ms, message, tlvs, &mut answers)?;
            if let Some(Event::OpenRefused { code } | Event::SetupRefused { code, .. }) = events {
                panic!("refused: {code}");
            }
        }
        self.send(&answers).await
    }

    /// Grinds one share on the present work and sends it.
    pub(crate) async fn mine_one(&mut self) -> Result<(), LinkError> {
        let frames = self.ground_share();
        self.send(&frames).await
    }

    /// Grinds one share and writes down that it is about to be sent.
    pub(crate) fn ground_share(&mut self) -> Vec<u8> {
        let work = self.client.work().expect("a channel that is open has work");
        loop {
            self.rolled += 1;
            let rolled = self.rolled.to_be_bytes();
            let extranonce = B032::new(&rolled[16 - work.extranonce_size..]).unwrap();
            // A standard channel has no extranonce to roll; version bits take its place.
            let version = work.version ^ ((self.rolled as u32 & 0xffff) << 13 & work.version_mask);
            let nonces = (0, 1 << 32);
            let mut grinder = Grinder::new(&work, extranonce, work.min_ntime, version, nonces);
            let Some(found) = grinder.run(1 << 32) else { continue };
            let mut header = work.header(found.extranonce.as_slice());
            (header.version, header.ntime, header.nonce) =
                (found.version, found.ntime, found.nonce);
            let mut frames = Vec::new();
            let sequence = self.client.submit(&work, found, &mut frames).unwrap();
            self.book.unanswered.push_back((sequence, header.hash()));
            return frames;
        }
    }

    /// Mines until `count` more shares are acknowledged.
    pub(crate) async fn mine_acknowledged(&mut self, count: usize) {
        let goal = self.book.acknowledged.len() + count;
        let mined = timeout(PATIENCE, async {
            while self.book.acknowledged.len() < goal {
                if self.book.unanswered.is_empty() {
                    self.mine_one().await?;
                }
                self.hear().await?;
            }
            Ok::<_, LinkError>(())
        });
        mined.await.expect("no acknowledgement in time").expect("the connection broke");
    }
}
