//! One miner's connection: opens, waits for the word to start, sends shares by window or by clock, drains,
//! holds until the run is over. One task each, on the thread that owns its `Book`.
//!
//! Must be lean, for it shares the machine with the pool that it measures: one write for all the shares
//! of a turn, one read for many answers, no lock on the way.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::limits::MINING_SERVER_PAYLOAD_MAX;
use proto::net::Link;
use proto::noise::{AuthorityPublicKey, EphemeralSecret};
use tokio::net::TcpSocket;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep_until, timeout};

use super::book::{Book, Span};
use super::options::{Options, Rate};
use super::session::{Opening, Session};

/// From dialling until every channel has work.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// How long answers are waited for after the last share.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(15);
/// Fewer free places than this in a window are left until there are more: a write of one share costs
/// as much as a write of thirty.
const REFILL_MIN: u32 = 32;
/// Shares in one write.
const WRITE_MAX: u32 = 1_024;
/// Hashes tried between two looks at the socket: about half a millisecond.
const HASHES_AT_ONCE: u32 = 4_096;

/// Where the run is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// Connections open and wait.
    Opening,
    /// Shares are sent within the span.
    Running(Span),
    /// Everybody goes home.
    Over,
}

/// What every connection of a run knows.
#[derive(Debug)]
pub(super) struct Plan {
    /// The pool.
    pub(super) address: SocketAddr,
    /// What to open and send.
    pub(super) options: Options,
    /// On each connection.
    pub(super) opening: Opening,
    /// Connections that are open or failed for good.
    pub(super) settled: AtomicUsize,
    /// Connections that have nothing to wait for any more.
    pub(super) drained: AtomicUsize,
}

/// Dials and shakes hands.
///
/// # Errors
/// Why not, in few words.
pub(super) async fn dial(
    to: SocketAddr,
    from: Option<std::net::IpAddr>,
    authority: Option<&AuthorityPublicKey>,
) -> Result<Link, String> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| format!("socket: {error}"))?;
    if let Some(from) = from {
        let bound = socket.bind(SocketAddr::new(from, 0));
        bound.map_err(|error| format!("bind: {error}"))?;
    }
    let stream = socket.connect(to).await.map_err(|error| format!("connect: {error}"))?;
    let mut random = [[0; 32]; 2];
    getrandom::fill(random.as_flattened_mut()).map_err(|error| format!("randomness: {error}"))?;
    let ephemeral = EphemeralSecret::new(random[0], random[1]);
    let ephemeral = ephemeral.map_err(|error| format!("key: {error}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    let link = Link::connect(stream, authority, ephemeral, now).await;
    let mut link = link.map_err(|error| format!("handshake: {error}"))?;
    link.connection().inbound.set_limit(MINING_SERVER_PAYLOAD_MAX);
    Ok(link)
}

/// Runs connection `index` to the end; what it saw is in `book`.
pub(super) async fn run(
    plan: Arc<Plan>,
    index: usize,
    book: Rc<RefCell<Book>>,
    doors: Rc<Semaphore>,
    phase: watch::Receiver<Phase>,
) {
    let mut miner = {
        let _door = doors.acquire().await;
        let opened = timeout(OPEN_DEADLINE, Miner::open(&plan, index, Rc::clone(&book))).await;
        plan.settled.fetch_add(1, Ordering::Relaxed);
        match opened.unwrap_or_else(|_| Err("not open in time".to_owned())) {
            Ok(miner) => miner,
            Err(why) => {
                book.borrow_mut().failed(&why);
                plan.drained.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    };
    book.borrow_mut().opened += 1;
    let ended = miner.mine(&plan, phase).await;
    let mut book = book.borrow_mut();
    if let Err(why) = ended {
        book.dropped(&why);
    }
    book.unanswered += u64::from(miner.session.outstanding());
    book.tips_of(miner.session.tips());
    if !miner.is_drained {
        plan.drained.fetch_add(1, Ordering::Relaxed);
    }
}

/// An open connection.
struct Miner {
    link: Link,
    session: Session,
    book: Rc<RefCell<Book>>,
    frames: Vec<u8>,
    /// Where in the interval between two shares this connection's turn is, 0 to 1.
    turn: f64,
    made: u64,
    is_drained: bool,
}

/// What is to be done now.
struct Turn {
    /// Shares to make.
    want: u32,
    /// When to look again, if nothing comes.
    wake: Instant,
}

impl Miner {
    async fn open(plan: &Plan, index: usize, book: Rc<RefCell<Book>>) -> Result<Self, String> {
        let Options { authority, connections, .. } = &plan.options;
        let source = plan.options.source(index, plan.address);
        let link = dial(plan.address, source, authority.as_ref()).await?;
        let kind = plan.options.kind.of(index);
        let session = Session::new(Opening { kind, ..plan.opening });
        let turn = index as f64 / *connections as f64;
        let mut miner =
            Self { link, session, book, frames: Vec::new(), turn, made: 0, is_drained: false };
        miner.session.start(&mut miner.frames);
        while !miner.session.is_ready() {
            miner.flush().await?;
            miner.hear().await?;
        }
        Ok(miner)
    }

    /// Waits for bytes and takes all that is said in them. Cancel safe: the wait comes first.
    async fn hear(&mut self) -> Result<(), String> {
        let count = self.link.fill().await.map_err(|error| error.to_string())?;
        if count == 0 {
            return Err("closed by the pool".to_owned());
        }
        let now = Instant::now();
        let mut book = self.book.borrow_mut();
        book.bytes_in += count as u64;
        book.reads += 1;
        while let Some(frame) =
            self.link.connection().inbound.next_frame().map_err(|error| error.to_string())?
        {
            let said = frame.message().map_err(|error| error.to_string())?;
            self.session.hear(said, now, &mut self.frames, &mut book)?;
        }
        Ok(())
    }

    /// One write for all that is to be said.
    async fn flush(&mut self) -> Result<(), String> {
        if self.frames.is_empty() {
            return Ok(());
        }
        let outbound = &mut self.link.connection().outbound;
        outbound.send_frames(&self.frames);
        self.frames.clear();
        {
            let mut book = self.book.borrow_mut();
            book.bytes_out += outbound.pending().len() as u64;
            book.writes += 1;
        }
        self.session.sent(Instant::now());
        self.link.flush().await.map_err(|error| error.to_string())
    }

    async fn mine(&mut self, plan: &Plan, mut phase: watch::Receiver<Phase>) -> Result<(), String> {
        let span = loop {
            match *phase.borrow_and_update() {
                Phase::Opening => {}
                Phase::Running(span) => break span,
                Phase::Over => return Ok(()),
            }
            self.hear_until_changed(&mut phase).await?;
        };
        self.send_shares(plan, span).await?;
        plan.drained.fetch_add(1, Ordering::Relaxed);
        self.is_drained = true;
        while !matches!(*phase.borrow_and_update(), Phase::Over) {
            self.hear_until_changed(&mut phase).await?;
        }
        Ok(())
    }

    async fn hear_until_changed(
        &mut self,
        phase: &mut watch::Receiver<Phase>,
    ) -> Result<(), String> {
        tokio::select! {
            heard = self.hear() => heard?,
            // The run's owner is gone: the phase stays what it is, and the task ends with its runtime.
            _ = phase.changed() => {}
        }
        self.flush().await
    }

    /// Until the span is over and every share is answered, or nothing more is to be waited for.
    async fn send_shares(&mut self, plan: &Plan, span: Span) -> Result<(), String> {
        self.book.borrow_mut().span = Some(span);
        let mut alarm = std::pin::pin!(sleep_until(span.from.into()));
        loop {
            let now = Instant::now();
            let Some(turn) = self.turn_at(now, plan, span) else { return Ok(()) };
            let made = self.session.make_shares(turn.want, HASHES_AT_ONCE, &mut self.frames);
            self.made += u64::from(made);
            self.book.borrow_mut().submitted += u64::from(made);
            self.flush().await?;
            // In the middle of a search; without work there is nothing to search in.
            if made < turn.want && self.session.is_ready() {
                self.hear_if_any().await?;
            } else {
                set(alarm.as_mut(), turn.wake);
                tokio::select! {
                    biased;
                    heard = self.hear() => heard?,
                    () = alarm.as_mut() => {}
                }
            }
        }
    }

    /// In the middle of a search: what is there is heard, and others have their turn.
    async fn hear_if_any(&mut self) -> Result<(), String> {
        tokio::select! {
            biased;
            heard = self.hear() => heard,
            () = tokio::task::yield_now() => Ok(()),
        }
    }

    /// What is due at `now`; `None` when the connection has done its part.
    fn turn_at(&self, now: Instant, plan: &Plan, span: Span) -> Option<Turn> {
        if now < span.from {
            return Some(Turn { want: 0, wake: span.from });
        }
        let outstanding = self.session.outstanding();
        let Options { window, connections, idle, shares_per_second, .. } = plan.options;
        let left = plan.options.shares_per_connection.map(|all| all.saturating_sub(self.made));
        if left == Some(0) && outstanding == 0 {
            return None;
        }
        let room = window.saturating_sub(outstanding);
        let turn = match shares_per_second {
            Rate::PerSecond(rate) if rate > 0.0 && !idle => {
                self.by_the_clock(now, span, rate / connections as f64, room)
            }
            Rate::Max if !idle && now < span.until && room >= REFILL_MIN.min(window) => {
                Turn { want: room, wake: span.until }
            }
            Rate::PerSecond(_) | Rate::Max => Turn { want: 0, wake: span.until },
        };
        let end = span.until + DRAIN_MAX;
        let left = left.map_or(u32::MAX, |left| u32::try_from(left).unwrap_or(u32::MAX));
        match turn.want.min(left) {
            _ if now >= end => None,
            0 if now >= span.until && outstanding == 0 => None,
            0 if now >= span.until => Some(Turn { want: 0, wake: end }),
            want if want > WRITE_MAX => Some(Turn { want: WRITE_MAX, wake: now }),
            0 if left == 0 => Some(Turn { want: 0, wake: end }),
            want => Some(Turn { want, ..turn }),
        }
    }

    /// Share k is due at (k + `self.turn`) / `rate`. What is due before the end of the span is sent, also
    /// by a task that had to wait for its turn.
    fn by_the_clock(&self, now: Instant, span: Span, rate: f64, room: u32) -> Turn {
        let due = |at: Instant| ((at - span.from).as_secs_f64() * rate - self.turn).ceil() as u64;
        let behind = due(now.min(span.until)).saturating_sub(self.made);
        let want = u32::try_from(behind).unwrap_or(u32::MAX).min(room);
        if u64::from(want) < behind {
            // Only an answer helps.
            self.book.borrow_mut().held_back += 1;
            return Turn { want, wake: span.until + DRAIN_MAX };
        }
        let next = (self.made + behind) as f64 + self.turn;
        let next = Duration::try_from_secs_f64(next / rate).unwrap_or(Duration::MAX);
        let wake = span.from.checked_add(next).unwrap_or(span.until).min(span.until);
        Turn { want, wake }
    }
}

fn set(alarm: std::pin::Pin<&mut Sleep>, at: Instant) {
    let at = at.into();
    if alarm.deadline() != at {
        alarm.reset(at);
    }
}
