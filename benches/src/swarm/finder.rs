//! Makes new tips: one connection that searches for a block every so often and hands it in, on a thread of
//! its own. At the moment of the new tip it searches nothing, so the machine is free for the fan-out.
//!
//! It needs a chain on which a block costs some million hashes, as the embedded one and regtest do.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proto::message::{Message, SubmitSharesExtended};
use proto::net::Link;
use proto::noise::AuthorityPublicKey;
use proto::target::Target;
use tokio::time::{sleep_until, timeout};

use super::TipMaker;
use super::book::{Book, Span};
use super::connection::dial;
use super::options::{Kind, loopback};
use super::session::{Opening, Session};

/// From dialling until there is work.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Hashes tried between two looks at the socket: some 3 ms.
const SLICE: u32 = 20_000;
/// How long a block is searched for before the chain counts as too hard: 10^8 hashes.
const SEARCH_MAX: Duration = Duration::from_secs(20);
/// The block of the loopback network that the finder comes from.
const SOURCE_BLOCK: u8 = 250;

/// A block that was handed in: its hash is the next tip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Submitted {
    /// Header byte order.
    pub(super) hash: [u8; 32],
    /// It was written.
    pub(super) at: Instant,
}

/// Finds a block `every` so often until the span is over. What it could not do is said in the second part.
pub(super) async fn run(
    address: SocketAddr,
    authority: Option<AuthorityPublicKey>,
    every: Duration,
    span: Span,
) -> (Vec<Submitted>, Option<String>) {
    let mut found = Vec::new();
    let ended = async {
        let opened = timeout(OPEN_DEADLINE, Finder::open(address, authority.as_ref())).await;
        let mut finder = opened.map_err(|_| "no work in time".to_owned())??;
        let mut next = span.from + every / 2;
        // The last tip should reach everybody within the span.
        while next + every / 2 < span.until {
            finder.wait_until(next).await?;
            let Some(submitted) = finder.find(span.until).await? else { break };
            found.push(submitted);
            next = (next + every).max(submitted.at + every / 2);
        }
        finder.wait_until(span.until).await
    };
    let why = ended.await.err();
    (found, why)
}

/// The same with blocks from outside the pool, each of which `tips` makes.
pub(super) fn make(
    mut tips: TipMaker,
    every: Duration,
    span: Span,
) -> (Vec<Submitted>, Option<String>) {
    let mut found = Vec::new();
    let mut next = span.from + every / 2;
    while next + every / 2 < span.until {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        match tips() {
            Ok((hash, at)) => found.push(Submitted { hash, at }),
            Err(error) => return (found, Some(format!("{error:#}"))),
        }
        next = (next + every).max(Instant::now());
    }
    (found, None)
}

/// A connection that searches for blocks.
pub(super) struct Finder {
    link: Link,
    session: Session,
    /// What its own shares do is nobody's measurement.
    book: Rc<RefCell<Book>>,
    frames: Vec<u8>,
    sequence: u32,
}

impl Finder {
    /// Dials and opens a channel.
    ///
    /// # Errors
    /// Why not, in few words.
    pub(super) async fn open(
        address: SocketAddr,
        authority: Option<&AuthorityPublicKey>,
    ) -> Result<Self, String> {
        let from = address.is_ipv4().then(|| loopback(SOURCE_BLOCK, 0));
        let link = dial(address, from.filter(|_| address.ip().is_loopback()), authority).await?;
        let session = Session::new(Opening {
            kind: Kind::Extended,
            channels: 1,
            hash_rate: 1e6,
            max_target: Target::MAX,
        });
        let mut finder =
            Self { link, session, book: Rc::default(), frames: Vec::new(), sequence: 0 };
        finder.session.start(&mut finder.frames);
        while !finder.session.is_ready() {
            finder.flush().await?;
            finder.hear().await?;
        }
        Ok(finder)
    }

    async fn hear(&mut self) -> Result<(), String> {
        if self.link.fill().await.map_err(|error| error.to_string())? == 0 {
            return Err("closed by the pool".to_owned());
        }
        let now = Instant::now();
        let mut book = self.book.borrow_mut();
        while let Some(frame) =
            self.link.connection().inbound.next_frame().map_err(|error| error.to_string())?
        {
            let said = frame.message().map_err(|error| error.to_string())?;
            self.session.hear(said, now, &mut self.frames, &mut book)?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), String> {
        self.link.connection().outbound.send_frames(&self.frames);
        self.frames.clear();
        self.link.flush().await.map_err(|error| error.to_string())
    }

    async fn wait_until(&mut self, at: Instant) -> Result<(), String> {
        loop {
            tokio::select! {
                heard = self.hear() => heard?,
                () = sleep_until(at.into()) => return Ok(()),
            }
        }
    }

    /// Listens for so long.
    ///
    /// # Errors
    /// The pool closed.
    pub(super) async fn hear_for(&mut self, time: Duration) -> Result<(), String> {
        self.wait_until(Instant::now() + time).await
    }

    /// Searches until a block is found and hands it in; `None` when the run is over before.
    async fn find(&mut self, until: Instant) -> Result<Option<Submitted>, String> {
        let Some(hash) = self.search(until).await? else { return Ok(None) };
        self.submit(hash).await.map(Some)
    }

    /// Hands in what `search` found.
    ///
    /// # Errors
    /// The pool closed.
    pub(super) async fn submit(&mut self, hash: [u8; 32]) -> Result<Submitted, String> {
        let at = Instant::now();
        self.flush().await?;
        Ok(Submitted { hash, at })
    }

    /// Searches until a block is found, and gives its hash; `None` when the run is over before.
    ///
    /// # Errors
    /// There is none to be found, or the pool closed.
    pub(super) async fn search(&mut self, until: Instant) -> Result<Option<[u8; 32]>, String> {
        let started = Instant::now();
        while Instant::now() < until {
            if started.elapsed() > SEARCH_MAX {
                return Err("no block within 20 s: this chain is too hard".to_owned());
            }
            let found = self.session.first_work().and_then(|(channel, work)| {
                work.next_block(&mut { SLICE }).map(|(rolled, hash)| (channel, rolled, hash))
            });
            let Some((channel_id, rolled, hash)) = found else {
                tokio::select! {
                    biased;
                    heard = self.hear() => heard?,
                    () = tokio::task::yield_now() => {}
                }
                continue;
            };
            self.sequence += 1;
            Message::from(SubmitSharesExtended {
                channel_id,
                sequence_number: self.sequence,
                job_id: rolled.job_id,
                nonce: rolled.nonce,
                ntime: rolled.ntime,
                version: rolled.version,
                extranonce: rolled.extranonce,
            })
            .encode(&mut self.frames);
            return Ok(Some(hash));
        }
        Ok(None)
    }
}
