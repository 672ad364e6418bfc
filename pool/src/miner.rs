//! One mining connection's task: the link, the setup conversation, the mining server, and what the
//! server wants done. Spawned by `listener` for each connection; owns everything of it, so nothing is
//! locked and a slow miner slows only itself.
//!
//! Waiting, acting and writing are apart: `next` only waits, `apply` only acts, then effects are
//! carried out (a found block first) and all that was said goes out in one write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use job_declarator::clock::Clock;
use job_declarator::rate::RateMeter;
use proto::connection::{Connection, Setup, SetupMachine, SetupPolicy, SetupStep, Violation};
use proto::extranonce::ExtranonceAllocator;
use proto::limits::ACT_ONE_LEN;
use proto::message::{EXTENSION_WORKER_HASHRATE, Message, Received, SetupConnection, setup_flags};
use proto::mining::server::{Effect, Input, Outbox, Policy, Server};
use proto::mining::{ChannelId, Committed, Kind, Now};
use proto::net::{Link, LinkError};
use proto::noise::Identity;
use proto::share::Refusal;
use tokio::net::TcpStream;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::sync::watch;
use tokio::task::{coop::consume_budget, yield_now};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::block::BlocksHandle;
use crate::board::{BoardHandle, ChannelKind, ChannelSnapshot, ConnectionSnapshot};
use crate::credit::CreditHandle;
use crate::custom::{CustomJobs, Judge, Verdict};
use crate::handshakes::{Handshakes, Shaken};
use crate::limits::{
    ACT_ONE_PAUSE, ACT_ONE_PAUSE_MAX, BOARD_EVERY_MS, CLOSE_WAIT, COMPLAIN_EVERY_MS,
    WRITE_STALL_MAX,
};
use crate::listener::household;
use crate::metrics::{HandshakeFailure, Metrics};
use crate::pace::Pace;
use crate::places::{Held, NoPlace, Places};
use crate::store::Route;
use crate::templates::{Calls, Published};

/// What every connection may use: values that never change, and handles.
pub struct Shared {
    /// How channels are run.
    pub policy: Arc<Policy>,
    /// What SetupConnection is held against.
    pub setup: SetupPolicy,
    /// Who we are; changes when a certificate is renewed.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// What is mined.
    pub calls: Calls,
    /// Search space.
    pub extranonces: ExtranonceAllocator,
    /// Who judges jobs that miners choose; `None` where none may.
    pub judge: Option<Arc<Judge>>,
    /// Where good shares go.
    pub credit: CreditHandle,
    /// How many channels there may be.
    pub places: Arc<Places>,
    /// How fast what is worth nothing is served.
    pub pace: Pace,
    /// Where blocks go.
    pub blocks: BlocksHandle,
    /// Where the API reads.
    pub board: BoardHandle,
    /// What Prometheus reads.
    pub metrics: Arc<Metrics>,
    /// From accept to the answer of SetupConnection.
    pub handshake_deadline: Duration,
    /// Until a connection must have opened a channel.
    pub first_channel: Duration,
    /// Who computes handshakes.
    pub handshakes: Handshakes,
    /// How long a connection may take to say good-bye.
    pub drain: Duration,
    /// When the next complaint about clients may be written, mono ms.
    pub complain_at_ms: AtomicU64,
    /// Time.
    pub clock: Clock,
    /// The pool is stopping.
    pub shutdown: CancellationToken,
}

impl Shared {
    /// One line now and then for clients that cannot get in: a mistyped key or the wrong protocol is
    /// something that the person beside the device wants to know.
    pub(crate) fn complain(&self, peer: SocketAddr, why: HandshakeFailure, detail: Option<&str>) {
        let wrong = match why {
            HandshakeFailure::Noise | HandshakeFailure::Setup | HandshakeFailure::Closed => true,
            // A bare connect and close is how devices look whether their first pool is back.
            HandshakeFailure::Probe
            | HandshakeFailure::Deadline
            | HandshakeFailure::Full
            | HandshakeFailure::AddressFull => false,
        };
        if wrong && self.may_complain() {
            let detail =
                detail.unwrap_or("it left before it was set up: is its authority key right?");
            warn!(%peer, why = detail, "a client could not get in");
        } else {
            debug!(%peer, why = why.as_str(), detail, "no session");
        }
    }

    /// An open found no place: counted, and said now and then, for the operator can change it.
    fn channels_are_full(&self, peer: SocketAddr, limit: NoPlace) {
        self.metrics.channel_places_full(limit);
        if self.may_complain() {
            warn!(%peer, limit = limit.key(), "no place for another channel");
        }
    }

    /// A job of a miner's own was refused: said now and then, for the person beside his node can mend it.
    pub(crate) fn refused_work(&self, peer: SocketAddr, code: &str, reason: &str) {
        if self.may_complain() {
            warn!(%peer, code, reason, "a miner's own job is refused");
        } else {
            debug!(%peer, code, reason, "a miner's own job is refused");
        }
    }

    fn may_complain(&self) -> bool {
        let now = self.clock.now().mono_ms;
        let due = self.complain_at_ms.load(Ordering::Relaxed);
        let (next, order) = (now + COMPLAIN_EVERY_MS, Ordering::Relaxed);
        now >= due && self.complain_at_ms.compare_exchange(due, next, order, order).is_ok()
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client closed the connection")]
    Eof,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    #[error("the client does not read what it is sent")]
    Stalled,
    #[error("no channel was opened")]
    NoChannel,
    #[error("the pool is stopping")]
    Stopping,
    #[error("the ledger has ended")]
    LedgerEnded,
}

/// Serves one connection from handshake to good-bye.
///
/// A task is as large as the largest thing it ever waits for, for as long as it lives. What it waits for
/// once is boxed, so that thousands of idle connections do not each carry a handshake.
pub fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    id: u64,
    shared: Arc<Shared>,
) -> impl Future<Output = ()> {
    let opening = Box::pin(open(stream, peer, id, shared));
    async move {
        let Some(mut miner) = opening.await else { return };
        let end = miner.run().await;
        Box::pin(close(miner, end)).await;
    }
}

async fn open(
    stream: TcpStream,
    peer: SocketAddr,
    id: u64,
    shared: Arc<Shared>,
) -> Option<Box<Miner>> {
    let greeting = greeted(stream, peer, shared.setup, &shared).await?;
    shared.metrics.connection_opened();
    let Names { vendor, hardware, .. } = &*greeting.names;
    info!(connection = id, %peer, vendor, hardware, "connected");
    Some(Box::new(Miner::new(greeting, peer, id, shared)))
}

async fn close(miner: Box<Miner>, end: End) {
    let (id, peer, shared) = (miner.id, miner.peer, Arc::clone(&miner.shared));
    let shares: u64 = miner.server.channels().map(|view| view.tally.accepted).sum();
    miner.finish().await;
    info!(connection = id, %peer, why = %end, shares, "disconnected");
    shared.board.remove(id).await;
    shared.metrics.connection_closed();
}

/// A link that has said SetupConnection and been told Success.
pub(crate) struct Greeting {
    pub(crate) link: Link,
    pub(crate) machine: SetupMachine,
    pub(crate) setup: Setup,
    pub(crate) names: Box<Names>,
}

/// What a client calls itself, in its SetupConnection.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) vendor: Box<str>,
    pub(crate) hardware: Box<str>,
    pub(crate) firmware: Box<str>,
}

type NotGreeted = (HandshakeFailure, Option<String>);

/// Handshake and SetupConnection, held against `policy`, within their deadline. `None`: there is no session,
/// which was counted and, where somebody may mend it, said; or the pool stops.
pub(crate) async fn greeted(
    stream: TcpStream,
    peer: SocketAddr,
    policy: SetupPolicy,
    shared: &Shared,
) -> Option<Box<Greeting>> {
    let greet = timeout(shared.handshake_deadline, greet(stream, policy, shared));
    let greeted = shared.shutdown.run_until_cancelled(greet).await?;
    let (why, detail) = match greeted {
        Ok(Ok(greeting)) => return Some(greeting),
        Ok(Err(not_greeted)) => not_greeted,
        Err(_) => (HandshakeFailure::Deadline, None),
    };
    shared.metrics.handshake_failed(why);
    shared.complain(peer, why, detail.as_deref());
    None
}

async fn greet(
    mut stream: TcpStream,
    policy: SetupPolicy,
    shared: &Shared,
) -> Result<Box<Greeting>, NotGreeted> {
    let identity = Arc::clone(&shared.identity.borrow());
    let fault = |why| move |error: LinkError| (why, Some(error.to_string()));
    await_act_one(&stream).await?;
    let act_one = Link::act_one(&mut stream).await.map_err(fault(HandshakeFailure::Noise))?;
    let shaken = shared.handshakes.shake(act_one, identity).await;
    let shaken = shaken.map_err(|error| (HandshakeFailure::Noise, Some(error.to_string())))?;
    let Shaken { act_two, transport } = *shaken;
    let link = Link::answer(stream, &act_two, transport).await;
    let mut link = link.map_err(fault(HandshakeFailure::Noise))?;
    let mut machine = SetupMachine::new(policy);
    let mut frames = Vec::new();
    loop {
        let Connection { inbound, outbound } = link.connection();
        let violation = |error: Violation| (HandshakeFailure::Setup, Some(error.to_string()));
        let Some(frame) = inbound.next_frame().map_err(violation)? else {
            if link.fill().await.map_err(fault(HandshakeFailure::Closed))? == 0 {
                return Err((HandshakeFailure::Closed, None));
            }
            continue;
        };
        let received = frame.message().map_err(violation)?;
        let names = names_of(&received);
        let step = machine.receive(received, &mut frames).map_err(violation)?;
        outbound.send_frames(&frames);
        match step {
            SetupStep::Agreed(setup) => {
                inbound.set_limit(setup.client_payload_max());
                link.flush().await.map_err(fault(HandshakeFailure::Closed))?;
                let greeting = Greeting { link, machine, setup, names: names.unwrap_or_default() };
                return Ok(Box::new(greeting));
            }
            SetupStep::Refused(refusal) => {
                let why = refusal.error_code.printable();
                // The refusal is read, then the end of the stream (rule S8).
                let _ = timeout(CLOSE_WAIT, link.close_after_flush()).await;
                return Err((HandshakeFailure::Setup, Some(why)));
            }
            SetupStep::Negotiated | SetupStep::Discarded | SetupStep::Pass(_) => frames.clear(),
        }
    }
}

/// Waits until all of act 1 is there, so that a place among the handshakes is never held by a client
/// that trickles its bytes. One that closes before its first byte was a probe.
async fn await_act_one(stream: &TcpStream) -> Result<(), NotGreeted> {
    let mut act_one = [0; ACT_ONE_LEN];
    let mut pause = ACT_ONE_PAUSE;
    loop {
        match stream.peek(&mut act_one).await {
            Ok(0) => return Err((HandshakeFailure::Probe, None)),
            // What a Stratum V1 client says first. No key of 64 random bytes begins so.
            Ok(_) if act_one.starts_with(br#"{"id":"#) || act_one.starts_with(br#"{"method"#) => {
                let why = "it speaks Stratum V1: choose Stratum V2 in its settings";
                return Err((HandshakeFailure::Noise, Some(why.to_owned())));
            }
            Ok(ACT_ONE_LEN) => return Ok(()),
            // The rest of 64 bytes is a moment behind, or never comes; the deadline is the caller's.
            Ok(_) => {
                sleep(pause).await;
                pause = (pause * 2).min(ACT_ONE_PAUSE_MAX);
            }
            Err(error) => return Err((HandshakeFailure::Closed, Some(error.to_string()))),
        }
    }
}

fn names_of(received: &Received<'_>) -> Option<Box<Names>> {
    let Received::Known(Message::SetupConnection(setup), _) = received else { return None };
    let SetupConnection { vendor, hardware_version, firmware, .. } = setup;
    Some(Box::new(Names {
        vendor: vendor.printable().into(),
        hardware: hardware_version.printable().into(),
        firmware: firmware.printable().into(),
    }))
}

/// A session.
struct Miner {
    id: u64,
    peer: SocketAddr,
    names: Box<Names>,
    /// Unix seconds.
    opened_at: u32,
    link: Link,
    machine: SetupMachine,
    server: Server,
    places: Held,
    out: Outbox,
    /// Closed when the pool stops.
    templates: watch::Receiver<Published>,
    /// It is the one of large connections.
    is_large: bool,
    /// When to look at the clock again. Stays set for the nearest moment that was ever due: one early turn is
    /// cheaper than a timer that is set anew at every turn.
    alarm: Pin<Box<Sleep>>,
    /// The tip that this connection was told of last.
    tip_at: Instant,
    /// The ledger's answers to come, in the order they will.
    committed: VecDeque<oneshot::Receiver<Committed>>,
    /// Of a client that selects its own work.
    custom: Option<Box<CustomJobs>>,
    /// By open channel, ids ascending.
    meters: Vec<(ChannelId, Meter)>,
    opened_any: bool,
    /// Refused shares and messages that are no shares, since they were last charged.
    worthless: u32,
    /// The socket is left alone until then, mono ms.
    reads_from_ms: u64,
    shown_ms: u64,
    opened_ms: u64,
    shared: Arc<Shared>,
}

/// What the board shows of a channel beyond the server's own view.
struct Meter {
    rate: RateMeter,
    last_share_at: Option<u64>,
}

/// What `next` waited for.
enum Event {
    Bytes,
    Template,
    Committed(Committed),
    Judged(Box<Verdict>),
    Time,
}

impl Miner {
    fn new(greeting: Box<Greeting>, peer: SocketAddr, id: u64, shared: Arc<Shared>) -> Self {
        let Greeting { link, machine, setup, names } = *greeting;
        let mut templates = shared.calls.to_others.clone();
        let Published { active, tip_at, .. } = templates.borrow_and_update().clone();
        let now = shared.clock.now();
        let server = Server::new(
            Arc::clone(&shared.policy),
            setup.flags,
            shared.extranonces.clone(),
            active,
            now,
        );
        let selects_work = setup.flags & setup_flags::REQUIRES_WORK_SELECTION != 0;
        let custom = shared.judge.clone().filter(|_| selects_work);
        let custom = custom.map(|judge| CustomJobs::new(judge, household(peer.ip()), id));
        Self {
            id,
            peer,
            names,
            custom: custom.map(Box::new),
            opened_at: now.unix_s,
            link,
            machine,
            server,
            places: Held::new(Arc::clone(&shared.places), household(peer.ip())),
            out: Outbox::default(),
            templates,
            is_large: false,
            alarm: Box::pin(sleep(Duration::from_millis(BOARD_EVERY_MS))),
            tip_at,
            committed: VecDeque::new(),
            meters: Vec::new(),
            opened_any: false,
            worthless: 0,
            reads_from_ms: 0,
            shown_ms: 0,
            opened_ms: now.mono_ms,
            shared,
        }
    }

    /// Until the connection is to end. What was accepted by then is not lost: `finish` comes after.
    async fn run(&mut self) -> End {
        // Frames may stand in the buffer already, behind SetupConnection.
        let mut event = Event::Bytes;
        loop {
            match self.step(event).await {
                Ok(next) => event = next,
                Err(end) => return end,
            }
        }
    }

    async fn step(&mut self, event: Event) -> Result<Event, End> {
        let is_template = matches!(event, Event::Template);
        self.apply(event)?;
        self.carry_out().await?;
        self.pay();
        self.flush().await?;
        if is_template {
            self.say_owed_jobs().await?;
        }
        // A socket that always has bytes would never give its worker to anybody else.
        consume_budget().await;
        self.next().await
    }

    /// The jobs behind a tip, when every other connection has had its turn to hear of the tip.
    async fn say_owed_jobs(&mut self) -> Result<(), End> {
        let tip_at = self.templates.borrow().tip_at;
        if tip_at != self.tip_at {
            self.tip_at = tip_at;
            self.shared.metrics.job_sent(tip_at.elapsed().as_secs_f64());
            yield_now().await;
        }
        self.server.handle(self.shared.clock.now(), Input::BurstEnd, &mut self.out)?;
        self.carry_out().await?;
        self.flush().await
    }

    /// Whoever has more hash rate loses more on an old tip: the large ones are told first. A receiver that was
    /// not asked yet tells at once what is mined now, so nothing is missed between the two.
    fn listen_as(&mut self, is_large: bool) {
        if is_large == self.is_large {
            return;
        }
        let templates = self.shared.calls.to(is_large);
        // Amid a head start the others are a tip behind: nobody is told of it again.
        if templates.borrow().tip_at >= self.tip_at {
            self.is_large = is_large;
            self.templates = templates;
        }
    }

    /// What was worth nothing is charged to the household; the socket is left alone until it is paid.
    fn pay(&mut self) {
        let worthless = std::mem::take(&mut self.worthless);
        if worthless > 0 {
            let now = self.shared.clock.now().mono_ms;
            let household = household(self.peer.ip());
            self.reads_from_ms = self.shared.pace.charge(household, worthless, now);
        }
    }

    /// Only waits. Whatever it was waiting for and did not return is still there the next time.
    async fn next(&mut self) -> Result<Event, End> {
        let due = self.server.deadline_ms().min(self.shown_ms.saturating_add(BOARD_EVERY_MS));
        // At the bound of open batches the socket is left alone: the store slows the miner, never
        // fills our memory.
        let pauses = self.reads_from_ms > 0 && self.reads_from_ms > self.shared.clock.now().mono_ms;
        let reads = self.server.takes_more() && !pauses;
        let due = if pauses { due.min(self.reads_from_ms) } else { due };
        let due = self.shared.clock.instant(due);
        if due < self.alarm.deadline() || self.alarm.is_elapsed() {
            self.alarm.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            changed = self.templates.changed() => {
                changed.map(|()| Event::Template).map_err(|_| End::Stopping)
            }
            committed = next_committed(&mut self.committed) => Ok(Event::Committed(committed?)),
            verdict = next_judged(&mut self.custom) => Ok(Event::Judged(Box::new(verdict))),
            filled = self.link.fill(), if reads => match filled? {
                0 => Err(End::Eof),
                _ => Ok(Event::Bytes),
            },
            () = self.alarm.as_mut() => Ok(Event::Time),
        }
    }

    /// Only acts.
    fn apply(&mut self, event: Event) -> Result<(), End> {
        let now = self.shared.clock.now();
        match event {
            Event::Bytes => self.take_frames(now)?,
            Event::Template => {
                let active = Arc::clone(&self.templates.borrow_and_update().active);
                if let Some(custom) = &mut self.custom {
                    custom.follow(active.tip.hash, self.server.open_declared());
                }
                self.server.handle(now, Input::Template(active), &mut self.out)?;
            }
            Event::Committed(committed) => {
                self.server.handle(now, Input::Committed(committed), &mut self.out)?;
                // One commit mostly answers several: all that is known goes out in one write.
                while let Some(committed) = known_committed(&mut self.committed)? {
                    self.server.handle(now, Input::Committed(committed), &mut self.out)?;
                }
                // Frames may have been left in the buffer at the bound of open batches.
                self.take_frames(now)?;
            }
            Event::Judged(mut verdict) => {
                if let Some(custom) = &mut self.custom {
                    custom.take(&mut verdict);
                }
                let Verdict { channel, request_id, verdict, .. } = *verdict;
                let judged = Input::CustomJob { channel, request_id, verdict };
                self.server.handle(now, judged, &mut self.out)?;
            }
            Event::Time => {}
        }
        self.keep_time(now)
    }

    /// What is due by now. Asked after every event, not only when nothing else happened: a client that
    /// never pauses does not stop the clock.
    fn keep_time(&mut self, now: Now) -> Result<(), End> {
        if now.mono_ms >= self.server.deadline_ms() {
            self.server.handle(now, Input::Time, &mut self.out)?;
        }
        if now.mono_ms >= self.shown_ms.saturating_add(BOARD_EVERY_MS) {
            self.show(now);
        }
        let waited = Duration::from_millis(now.mono_ms.saturating_sub(self.opened_ms));
        if waited > self.shared.first_channel && !self.opened_any {
            return Err(End::NoChannel);
        }
        Ok(())
    }

    /// Every whole frame that has arrived, until the bound of open batches.
    fn take_frames(&mut self, now: Now) -> Result<(), End> {
        let mut is_drained = false;
        // Room is counted as if every share of a burst were good. Where some were not there is room
        // left, and nothing must be read before the last frame is taken.
        while !is_drained && self.server.takes_more() {
            is_drained = self.take_burst(now)?;
            self.server.handle(now, Input::BurstEnd, &mut self.out)?;
        }
        Ok(())
    }

    /// Frames until there are none (`true`) or no room for more shares.
    fn take_burst(&mut self, now: Now) -> Result<bool, End> {
        while self.server.takes_more() {
            let Connection { inbound, .. } = self.link.connection();
            let Some(frame) = inbound.next_frame()? else { return Ok(true) };
            match self.machine.receive(frame.message()?, &mut self.out.frames)? {
                SetupStep::Pass(Received::Known(message, tlvs)) => {
                    self.worthless += u32::from(!is_share(&message));
                    // A place is taken before an open and given back if nothing came of it.
                    let no_place = if opens(&message) { self.places.take().err() } else { None };
                    self.server.set_channels_max(self.places.count());
                    self.server.handle(now, Input::Message(message, tlvs), &mut self.out)?;
                    self.places.keep(self.server.channels_open());
                    if let Some(limit) = no_place {
                        self.shared.channels_are_full(self.peer, limit);
                    }
                }
                SetupStep::Pass(Received::UnknownCore(number)) => {
                    return Err(Violation::UnknownMessage(number).into());
                }
                SetupStep::Pass(Received::UnknownExtension(_)) | SetupStep::Discarded => {}
                SetupStep::Negotiated => {
                    let negotiated = self.machine.has_extension(EXTENSION_WORKER_HASHRATE);
                    self.server.set_worker_hashrate(negotiated);
                }
                SetupStep::Agreed(_) | SetupStep::Refused(_) => {}
            }
        }
        Ok(false)
    }

    /// Does what the server asked for. Blocks first of all, whatever stands before them: they are on disk
    /// before their shares are answered, and no slow store holds them back.
    async fn carry_out(&mut self) -> Result<(), End> {
        if self.out.effects.is_empty() {
            return Ok(());
        }
        Box::pin(self.do_effects()).await
    }

    async fn do_effects(&mut self) -> Result<(), End> {
        let effects = std::mem::take(&mut self.out.effects).into_iter();
        let (blocks, rest): (Vec<_>, Vec<_>) =
            effects.partition(|effect| matches!(effect, Effect::BlockFound(_)));
        for effect in blocks.into_iter().chain(rest) {
            match effect {
                Effect::BlockFound(found) => {
                    let job = found.worth.declared.and_then(|id| self.custom.as_ref()?.record(id));
                    self.shared.blocks.keep(*found, Route::Share, job).await;
                }
                Effect::Credit(batch) => {
                    let custom = self.custom.as_ref();
                    let declared = custom.map(|jobs| jobs.records_of(&batch)).unwrap_or_default();
                    let submitted = self.shared.credit.submit(batch, declared).await;
                    self.committed.push_back(submitted.map_err(|_| End::LedgerEnded)?);
                }
                said @ (Effect::Acknowledged { .. }
                | Effect::Refused { .. }
                | Effect::Opened(_)
                | Effect::OpenRefused(_)
                | Effect::CustomRefused(_)
                | Effect::Closed(..)) => self.note(said),
                Effect::CustomJob(request) => {
                    // Who did not ask for work selection at setup is refused by the server.
                    if let Some(custom) = &mut self.custom {
                        custom.ask(request);
                    }
                }
                Effect::CustomAccepted(accepted) => {
                    let Some(custom) = &mut self.custom else { continue };
                    let open = self.server.open_declared();
                    let token = custom.accepted(&accepted, open, &self.shared.metrics);
                    custom.use_up(token).await;
                }
            }
        }
        Ok(())
    }

    /// Effects that are only to be counted and said.
    fn note(&mut self, effect: Effect) {
        let metrics = &self.shared.metrics;
        let now = self.shared.clock.now();
        let seconds = now.mono_ms as f64 / 1_000.0;
        match effect {
            Effect::Acknowledged { channel, difficulty, shares, oldest_ms } => {
                metrics.shares_accepted(u64::from(shares), difficulty);
                let waited = now.mono_ms.saturating_sub(oldest_ms);
                metrics.share_acknowledged(waited as f64 / 1_000.0);
                if let Some(meter) = meter_of(&mut self.meters, channel) {
                    meter.last_share_at = Some(u64::from(now.unix_s));
                    meter.rate.share_accepted(seconds, difficulty.hashes() * f64::from(shares));
                }
                debug!(connection = self.id, channel = channel.0, shares, waited, "acknowledged");
            }
            Effect::Refused { channel, refusal } => {
                self.worthless += 1;
                metrics.share_rejected(refusal.code());
                debug!(connection = self.id, channel = channel.0, why = refusal.code(), "refused");
            }
            Effect::Opened(channel) => {
                metrics.channel_opened();
                let rate = RateMeter::new(seconds);
                if self.meters.is_empty() {
                    // Most connections have one channel, and a Vec would make room for four.
                    self.meters.reserve_exact(1);
                }
                self.meters.push((channel, Meter { rate, last_share_at: None }));
                self.opened_any = true;
                self.shown_ms = 0;
                if let Some(view) = self.server.channels().find(|view| view.id == channel) {
                    info!(
                        connection = self.id,
                        channel = channel.0,
                        kind = kind_name(view.kind),
                        account = %view.owner.account,
                        worker = %view.owner.worker,
                        difficulty_log2 = view.difficulty.log2(),
                        "channel opened"
                    );
                }
            }
            Effect::OpenRefused(why) => {
                metrics.channel_refused(why);
                // At debug: a client may ask as often as it likes.
                debug!(connection = self.id, peer = %self.peer, why, "channel refused");
            }
            Effect::Closed(channel, owner) => {
                self.meters.retain(|(id, _)| *id != channel);
                debug!(connection = self.id, channel = channel.0, account = %owner.account, "channel closed");
            }
            Effect::CustomRefused(refused) => {
                let (code, reason) = (refused.refusal.code(), &refused.reason);
                metrics.custom_job_answered(code);
                self.shared.refused_work(self.peer, code, reason);
                if let Some(custom) = &mut self.custom {
                    custom.refused(*refused);
                }
            }
            Effect::BlockFound(_)
            | Effect::Credit(_)
            | Effect::CustomJob(_)
            | Effect::CustomAccepted(_) => {}
        }
    }

    /// One write for all that was said. A client that does not read is dropped.
    async fn flush(&mut self) -> Result<(), End> {
        let outbound = &mut self.link.connection().outbound;
        outbound.send_frames(&self.out.frames);
        // An idle connection holds no buffer.
        self.out.frames = Vec::new();
        if !self.link.write_now()? {
            return Ok(());
        }
        Box::pin(self.flush_slowly()).await
    }

    /// What the socket did not take at once.
    async fn flush_slowly(&mut self) -> Result<(), End> {
        let stop = async {
            self.shared.shutdown.cancelled().await;
            sleep(self.shared.drain).await;
        };
        let flushed = tokio::select! {
            flushed = flush(&mut self.link, WRITE_STALL_MAX) => flushed,
            () = stop => return Err(End::Stopping),
        };
        if matches!(flushed, Err(End::Stalled)) {
            self.shared.metrics.outbox_dropped();
        }
        flushed
    }

    /// The connection ends; its accepted shares do not. The open batch goes to the ledger, what the
    /// ledger answers in time is acknowledged, and what was said is read before the link closes.
    async fn finish(mut self: Box<Self>) {
        let patience = Instant::now() + self.shared.drain;
        // Shares may have come before the frame that ended it.
        let burst = self.server.handle(self.shared.clock.now(), Input::BurstEnd, &mut self.out);
        debug_assert!(burst.is_ok(), "only a message can be a violation");
        self.server.close_batch(&mut self.out);
        let mut handed_in = self.carry_out().await.is_ok();
        while handed_in && self.server.batches_under_way() > 0 {
            let committed = tokio::select! {
                Ok(committed) = next_committed(&mut self.committed) => committed,
                () = sleep_until(patience) => break,
            };
            let now = self.shared.clock.now();
            let told = self.server.handle(now, Input::Committed(committed), &mut self.out);
            handed_in = told.is_ok() && self.carry_out().await.is_ok();
        }
        let outbound = &mut self.link.connection().outbound;
        outbound.send_frames(&self.out.frames);
        // A peer that is gone or does not read has had its time.
        let _ = timeout(CLOSE_WAIT, self.link.close_after_flush()).await;
    }

    /// Publishes this connection's row.
    fn show(&mut self, now: Now) {
        self.shown_ms = now.mono_ms;
        // Both by ascending id.
        let mut meters = self.meters.iter().peekable();
        let channels = self.server.channels().map(|view| {
            while meters.next_if(|(id, _)| *id < view.id).is_some() {}
            let meter = meters.next_if(|(id, _)| *id == view.id).map(|(_, meter)| meter);
            let codes = Refusal::ALL.iter().zip(view.tally.refused.map(u64::from));
            let rate = meter.map(|meter| {
                meter.rate.rates(now.mono_ms as f64 / 1_000.0, view.difficulty.hashes())
            });
            ChannelSnapshot {
                id: view.id.0,
                kind: match view.kind {
                    Kind::Standard => ChannelKind::Standard,
                    Kind::Extended => ChannelKind::Extended,
                },
                account: Arc::clone(&view.owner.account),
                worker: Arc::clone(&view.owner.worker),
                difficulty_log2: view.difficulty.log2(),
                shares_accepted: view.tally.accepted,
                shares_rejected: codes
                    .filter(|(_, count)| *count > 0)
                    .map(|(refusal, count)| (refusal.code(), count))
                    .collect(),
                work: view.tally.work.to_string(),
                last_share_at: meter.and_then(|meter| meter.last_share_at),
                hash_rate: rate.unwrap_or_default(),
            }
        });
        // The board keeps it, and of an iterator like this a Vec would make room for four.
        let mut rows = Vec::with_capacity(self.server.channels_open());
        rows.extend(channels);
        let row = ConnectionSnapshot {
            id: self.id,
            peer: self.peer,
            vendor: self.names.vendor.to_string(),
            hardware: self.names.hardware.to_string(),
            firmware: self.names.firmware.to_string(),
            opened_at: self.opened_at.into(),
            channels: rows,
            custom_jobs: self.custom.as_ref().map(|custom| custom.shown()),
        };
        self.listen_as(self.shared.board.is_large(row.hash_rate()));
        self.shared.board.publish(row);
    }
}

/// The ledger's next answer; never, while none is due. Cancel safe.
fn next_committed(
    due: &mut VecDeque<oneshot::Receiver<Committed>>,
) -> impl Future<Output = Result<Committed, End>> {
    poll_fn(|context| {
        let Some(first) = due.front_mut() else { return Poll::Pending };
        let committed = ready!(Pin::new(first).poll(context));
        due.pop_front();
        Poll::Ready(committed.map_err(|_| End::LedgerEnded))
    })
}

/// The next answer if it is there already.
fn known_committed(
    due: &mut VecDeque<oneshot::Receiver<Committed>>,
) -> Result<Option<Committed>, End> {
    let answer = match due.front_mut().map(oneshot::Receiver::try_recv) {
        None | Some(Err(TryRecvError::Empty)) => return Ok(None),
        Some(answer) => answer,
    };
    // A receiver that was told something, also that nothing comes, must not be asked again.
    due.pop_front();
    answer.map(Some).map_err(|_| End::LedgerEnded)
}

/// The next verdict on a custom job; never, for a client that has none. Cancel safe.
fn next_judged(custom: &mut Option<Box<CustomJobs>>) -> impl Future<Output = Verdict> {
    poll_fn(|context| match custom {
        Some(custom) => custom.poll_next(context),
        None => Poll::Pending,
    })
}

fn meter_of(meters: &mut [(ChannelId, Meter)], channel: ChannelId) -> Option<&mut Meter> {
    let at = meters.binary_search_by_key(&channel, |(id, _)| *id).ok()?;
    Some(&mut meters[at].1)
}

/// Writes all that is pending, however long a slow peer takes over it; `Stalled` once it has taken nothing
/// for `stall_max`.
async fn flush(link: &mut Link, stall_max: Duration) -> Result<(), End> {
    while timeout(stall_max, link.write_some()).await.map_err(|_| End::Stalled)?? {}
    Ok(())
}

fn opens(message: &Message<'_>) -> bool {
    matches!(message, Message::OpenStandardMiningChannel(_) | Message::OpenExtendedMiningChannel(_))
}

fn is_share(message: &Message<'_>) -> bool {
    matches!(message, Message::SubmitSharesStandard(_) | Message::SubmitSharesExtended(_))
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Standard => "standard",
        Kind::Extended => "extended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job_declarator::clock::unix_s;
    use job_declarator::keys::ephemeral;
    use proto::noise::AuthoritySecretKey;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    #[test]
    fn an_idle_connections_task_and_session_fit_where_they_are_kept() {
        fn task<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        // An allocator's sizes are 512 and 1,024; the runtime adds some hundred bytes to a task.
        assert!(task(serve) <= 512 - 128, "{}", task(serve));
        assert!(size_of::<Miner>() <= 1_024, "{}", size_of::<Miner>());
    }

    /// A link with megabytes to say, and the bare stream that its peer reads from.
    async fn with_much_to_say() -> (Link, TcpStream) {
        let authority = AuthoritySecretKey::from_secret([1; 32]).unwrap();
        let identity = crate::keys::make_identity(&authority, None, unix_s(), 1).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (initiator, act_one) = proto::noise::Initiator::new(ephemeral().unwrap());
        tokio::io::AsyncWriteExt::write_all(&mut peer, &act_one).await.unwrap();
        let mut link = Link::accept(stream, &identity, ephemeral().unwrap()).await.unwrap();
        let mut act_two = [0; proto::limits::ACT_TWO_LEN];
        peer.read_exact(&mut act_two).await.unwrap();
        initiator.finish(&act_two, None, unix_s()).unwrap();
        let header = proto::message::FrameHeader { extension_type: 9, msg_type: 1, length: 60_000 };
        let frame = [&header.encode()[..], &[0; 60_000]].concat();
        for _ in 0..400 {
            link.connection().outbound.send_frames(&frame);
        }
        (link, peer)
    }

    const STALL_MAX: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn a_peer_that_reads_slowly_stays_though_all_of_it_takes_longer_than_a_stall() {
        let (mut link, mut peer) = with_much_to_say().await;
        let pending = link.connection().outbound.pending().len();
        let began = Instant::now();
        let reads = async {
            let (mut taken, mut piece) = (0, vec![0; pending / 12]);
            while taken < pending {
                sleep(STALL_MAX / 8).await;
                taken += peer.read(&mut piece).await.unwrap();
            }
            peer
        };
        let (flushed, _peer) = tokio::join!(flush(&mut link, STALL_MAX), reads);
        assert!(flushed.is_ok(), "{flushed:?}");
        assert!(began.elapsed() > STALL_MAX, "it was not slow");
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_for_so_long_is_given_up() {
        let (mut link, _peer) = with_much_to_say().await;
        let flushed = flush(&mut link, STALL_MAX / 8).await;
        assert!(matches!(flushed, Err(End::Stalled)), "{flushed:?}");
    }

    #[tokio::test]
    async fn a_ledger_that_ends_is_an_end_of_the_connection_and_no_panic() {
        let (answers, due): (Vec<_>, VecDeque<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        let mut due: VecDeque<oneshot::Receiver<Committed>> = due;
        let mut answers = answers.into_iter();
        let answer: oneshot::Sender<Committed> = answers.next().unwrap();
        answer.send(Committed { id: 0, duplicates: vec![] }).unwrap();
        assert_eq!(next_committed(&mut due).await.unwrap().id, 0);
        assert!(matches!(known_committed(&mut due), Ok(None)));
        drop(answers);
        assert!(matches!(known_committed(&mut due), Err(End::LedgerEnded)));
        assert!(matches!(next_committed(&mut due).await, Err(End::LedgerEnded)));
        assert!(matches!(known_committed(&mut due), Ok(None)));
    }
}
