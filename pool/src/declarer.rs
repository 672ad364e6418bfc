//! One declarer's task: the link, the setup conversation, the job declaration server, and what that wants
//! done. Spawned by `listener` for each connection to declare.address; owns everything of it.
//!
//! Checks run on tasks of their own (`checks`), so nobody waits for another's; their verdicts come back as
//! inputs. A pushed solution is tried on the jobs that this connection had approved. Must never keep bytes
//! of a declarer who does not go on.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use job_declarator::clock::unix_s;
use proto::connection::{Connection, Setup, SetupMachine, SetupPolicy, SetupStep, Violation};
use proto::declare::server::{Effect, Input, Outbox, Server};
use proto::declare::{Declaration, Solution};
use proto::extranonce::Extranonce;
use proto::job::HeaderFields;
use proto::message::{Received, setup_flags};
use proto::mining::Owner;
use proto::mining::server::FoundBlock;
use proto::net::{Link, LinkError};
use proto::target::Target;
use proto::token::MiningJobToken;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, coop::consume_budget};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info};

use crate::board::{DeclarerSnapshot, History, RefusalRow};
use crate::checks::{Approved, Checked, Checks, Who};
use crate::limits::{
    BOARD_EVERY_MS, CLOSE_WAIT, FIRST_TOKEN_WAIT, FRAME_DEADLINE, SOLUTION_JOBS_MAX,
    WRITE_STALL_MAX,
};
use crate::listener::household;
use crate::miner::{self, Greeting, Names};
use crate::store::{DeclareMode, Route};
use crate::templates::Published;
use crate::turns::Turn;

/// What every declarer may use.
pub struct Declarers {
    /// The pool's handles, as miners have them.
    pub pool: Arc<miner::Shared>,
    /// What SetupConnection is held against here.
    pub setup: SetupPolicy,
    /// Who checks declarations.
    pub checks: Arc<Checks>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the declarer closed the connection")]
    Eof,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    #[error("the declarer does not read what it is sent")]
    Stalled,
    #[error("a frame was begun and not ended")]
    HalfFrame,
    #[error("no token was asked for")]
    NoToken,
    #[error("the pool is stopping")]
    Stopping,
}

/// Serves one declarer from handshake to good-bye.
pub async fn serve(stream: TcpStream, peer: SocketAddr, id: u64, declarers: Arc<Declarers>) {
    let pool = Arc::clone(&declarers.pool);
    let Some(greeting) = Box::pin(miner::greeted(stream, peer, declarers.setup, &pool)).await
    else {
        return;
    };
    pool.metrics.declarer_opened();
    let Names { vendor, firmware, .. } = &*greeting.names;
    info!(declarer = id, %peer, vendor, firmware, "connected");
    let _reader = declarers.checks.enter().await;
    let mut declarer = Box::new(Declarer::new(*greeting, peer, id, declarers));
    let end = declarer.run().await;
    let approved = declarer.approved_count;
    declarer.finish().await;
    info!(declarer = id, %peer, why = %end, approved, "disconnected");
    pool.board.remove_declarer(id).await;
    pool.metrics.declarer_closed();
}

/// A session.
struct Declarer {
    id: u64,
    peer: SocketAddr,
    names: Box<Names>,
    mode: DeclareMode,
    /// Unix seconds.
    opened_at: u32,
    opened_ms: u64,
    link: Link,
    machine: SetupMachine,
    server: Server,
    out: Outbox,
    templates: watch::Receiver<Published>,
    /// What was asked of others and is not answered.
    asked: JoinSet<Answer>,
    /// Turns at being sent transactions, by request.
    providing: HashMap<u32, Turn>,
    /// Jobs that a solution may be for, the newest first.
    approved: VecDeque<Arc<Approved>>,
    /// The last tip and this one.
    tips: [[u8; 32]; 2],
    frame: FrameWatch,
    /// The tip that his last job was on, and how far behind ours he was.
    tip_lag: Option<([u8; 32], Duration)>,
    account: Arc<str>,
    tokens: u64,
    approved_count: u64,
    solutions: u64,
    history: History,
    shown_ms: u64,
    declarers: Arc<Declarers>,
}

/// How long a frame has been on its way: one that is begun holds its bytes here.
#[derive(Debug, Default)]
struct FrameWatch {
    since: Option<Instant>,
}

impl FrameWatch {
    /// Whether the peer is amid a frame now. Bytes that come do not put its end off.
    fn look(&mut self, is_amid: bool, now: Instant) {
        self.since = if is_amid { self.since.or(Some(now)) } else { None };
    }

    fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + FRAME_DEADLINE)
    }
}

/// An answer to an effect.
enum Answer {
    Allocated { request_id: u32, token: Option<MiningJobToken> },
    Checked(Box<Checked>),
}

/// What `next` waited for.
enum Event {
    Bytes,
    Answered(Answer),
    Template,
    Time,
}

impl Declarer {
    fn new(greeting: Greeting, peer: SocketAddr, id: u64, declarers: Arc<Declarers>) -> Self {
        let Greeting { link, machine, setup, names } = greeting;
        let now = declarers.pool.clock.now();
        let Setup { flags, .. } = setup;
        let mut templates = declarers.pool.calls.to_others.clone();
        let tip = templates.borrow_and_update().active.tip.hash;
        let tells_all = flags & setup_flags::DECLARE_TX_DATA != 0;
        Self {
            id,
            peer,
            names,
            mode: if tells_all { DeclareMode::FullTemplate } else { DeclareMode::CoinbaseOnly },
            opened_at: now.unix_s,
            opened_ms: now.mono_ms,
            link,
            machine,
            server: Server::new(flags, declarers.checks.outputs(), now.mono_ms),
            out: Outbox::default(),
            templates,
            asked: JoinSet::new(),
            providing: HashMap::new(),
            approved: VecDeque::new(),
            tips: [tip; 2],
            frame: FrameWatch::default(),
            tip_lag: None,
            account: "".into(),
            tokens: 0,
            approved_count: 0,
            solutions: 0,
            history: History::default(),
            shown_ms: 0,
            declarers,
        }
    }

    fn who(&self) -> Who {
        Who { connection: self.id, household: household(self.peer.ip()) }
    }

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
        self.apply(event)?;
        self.carry_out().await;
        self.flush().await?;
        consume_budget().await;
        self.next().await
    }

    /// Only waits. Whatever it was waiting for and did not return is still there the next time.
    async fn next(&mut self) -> Result<Event, End> {
        let reads = self.server.takes_more();
        if !reads {
            // We do not listen: he is not to blame for what stands half in our buffer.
            self.frame.since = None;
        }
        let due = self.due();
        tokio::select! {
            biased;
            () = self.declarers.pool.shutdown.cancelled() => Err(End::Stopping),
            answer = next_answer(&mut self.asked, self.id) => Ok(Event::Answered(answer)),
            changed = self.templates.changed() => {
                changed.map(|()| Event::Template).map_err(|_| End::Stopping)
            }
            filled = self.link.fill(), if reads => match filled? {
                0 => Err(End::Eof),
                _ => Ok(Event::Bytes),
            },
            () = sleep_until(due) => Ok(Event::Time),
        }
    }

    /// When time matters next.
    fn due(&self) -> Instant {
        let clock = self.declarers.pool.clock;
        let shown = self.shown_ms.saturating_add(BOARD_EVERY_MS);
        let server = self.server.deadline_ms().unwrap_or(u64::MAX);
        let due = clock.instant(shown.min(server));
        self.frame.deadline().map_or(due, |frame| frame.min(due))
    }

    /// Only acts.
    fn apply(&mut self, event: Event) -> Result<(), End> {
        let now_ms = self.declarers.pool.clock.now().mono_ms;
        match event {
            Event::Bytes => self.take_frames(now_ms)?,
            Event::Answered(answer) => {
                self.answered(now_ms, answer)?;
                // Frames may have been left in the buffer at the bound of declarations.
                self.take_frames(now_ms)?;
            }
            Event::Template => self.follow(now_ms)?,
            Event::Time => {}
        }
        self.keep_time(now_ms)
    }

    fn answered(&mut self, now_ms: u64, answer: Answer) -> Result<(), End> {
        let input = match answer {
            Answer::Allocated { request_id, token } => {
                self.tokens += u64::from(token.is_some());
                Input::Allocated { request_id, token }
            }
            Answer::Checked(checked) => {
                let Checked { request_id, outcome, approved, providing } = *checked;
                if let Some(turn) = providing {
                    self.providing.insert(request_id, turn);
                }
                if let Some(approved) = approved {
                    self.remember(approved);
                }
                Input::Checked { request_id, outcome }
            }
        };
        self.server.handle(now_ms, input, &mut self.out)?;
        Ok(())
    }

    fn remember(&mut self, approved: Arc<Approved>) {
        let Published { active, tip_at, .. } = self.templates.borrow().clone();
        let tip = approved.record.prev_hash;
        if tip == active.tip.hash && self.tip_lag.is_none_or(|(last, _)| last != tip) {
            let lag = tip_at.elapsed();
            self.declarers.pool.metrics.declarer_lags(lag.as_secs_f64());
            self.tip_lag = Some((tip, lag));
        }
        self.approved_count += 1;
        self.approved.truncate(SOLUTION_JOBS_MAX - 1);
        self.approved.push_front(approved);
    }

    /// Jobs of tips before the last go, with what they hold: their blocks come too late.
    fn follow(&mut self, now_ms: u64) -> Result<(), End> {
        let tip = self.templates.borrow_and_update().active.tip.hash;
        if self.tips.contains(&tip) {
            return Ok(());
        }
        self.tips = [self.tips[1], tip];
        let tips = &self.tips;
        self.approved.retain(|approved| tips.contains(&approved.record.prev_hash));
        self.server.handle(now_ms, Input::NewTip, &mut self.out)?;
        Ok(())
    }

    /// What is due by now. Asked after every event: a declarer who never pauses does not stop the clock.
    fn keep_time(&mut self, now_ms: u64) -> Result<(), End> {
        if self.server.deadline_ms().is_some_and(|deadline| deadline <= now_ms) {
            self.server.handle(now_ms, Input::Time, &mut self.out)?;
        }
        if self.frame.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(End::HalfFrame);
        }
        let waited = Duration::from_millis(now_ms.saturating_sub(self.opened_ms));
        if waited >= FIRST_TOKEN_WAIT && self.account.is_empty() {
            return Err(End::NoToken);
        }
        if now_ms >= self.shown_ms.saturating_add(BOARD_EVERY_MS) {
            self.show(now_ms);
        }
        Ok(())
    }

    /// Every whole frame that has arrived, until the bound of declarations.
    fn take_frames(&mut self, now_ms: u64) -> Result<(), End> {
        while self.server.takes_more() {
            let Connection { inbound, .. } = self.link.connection();
            inbound.set_limit(self.server.payload_max());
            let Some(frame) = inbound.next_frame()? else { break };
            self.frame.since = None;
            match self.machine.receive(frame.message()?, &mut self.out.frames)? {
                SetupStep::Pass(Received::Known(message, _)) => {
                    self.server.handle(now_ms, Input::Message(message), &mut self.out)?;
                }
                SetupStep::Pass(Received::UnknownCore(number)) => {
                    return Err(Violation::UnknownMessage(number).into());
                }
                SetupStep::Pass(Received::UnknownExtension(_)) | SetupStep::Discarded => {}
                SetupStep::Negotiated | SetupStep::Agreed(_) | SetupStep::Refused(_) => {}
            }
        }
        let Connection { inbound, .. } = self.link.connection();
        inbound.set_limit(self.server.payload_max());
        self.frame.look(inbound.is_amid_frame(), Instant::now());
        Ok(())
    }

    /// Does what the server asked for. Solutions first: they are in a race.
    async fn carry_out(&mut self) {
        let effects = std::mem::take(&mut self.out.effects).into_iter();
        let (solutions, rest): (Vec<_>, Vec<_>) =
            effects.partition(|effect| matches!(effect, Effect::Solution(_)));
        for effect in solutions.into_iter().chain(rest) {
            match effect {
                Effect::Solution(solution) => self.solve(&solution).await,
                Effect::Allocate { request_id, account } => self.allocate(request_id, account),
                Effect::Check(declaration) => self.check(declaration),
                Effect::NoToken { request_id } => {
                    debug!(declarer = self.id, request_id, "too many requests for tokens");
                }
                Effect::Refused { request_id, refusal, details } => {
                    self.providing.remove(&request_id);
                    let code = refusal.code();
                    self.declarers.pool.metrics.declaration_answered(code);
                    self.declarers.pool.refused_work(self.peer, code, &details);
                    let row = RefusalRow { at: unix_s().into(), code, reason: details };
                    self.history.refused(row);
                }
                Effect::Declared { request_id } => {
                    self.declarers.pool.metrics.declaration_answered("approved");
                    debug!(declarer = self.id, request_id, "declared");
                }
            }
        }
    }

    fn check(&mut self, declaration: Box<Declaration>) {
        let (checks, who) = (Arc::clone(&self.declarers.checks), self.who());
        let request_id = declaration.request_id;
        // Those that were supplied are being checked: another may be sent some.
        self.providing.remove(&request_id);
        self.asked.spawn(async move {
            let check = tokio::spawn(async move { checks.check(who, declaration).await });
            let checked = AbortOnDropHandle::new(check).await.unwrap_or_else(|panic| {
                error!(%panic, declarer = who.connection, "a check failed");
                Checked::failed(request_id)
            });
            Answer::Checked(Box::new(checked))
        });
    }

    fn allocate(&mut self, request_id: u32, account: Arc<str>) {
        self.account = Arc::clone(&account);
        let (checks, who) = (Arc::clone(&self.declarers.checks), self.who());
        self.asked.spawn(async move {
            Answer::Allocated { request_id, token: checks.allocate(who, account).await }
        });
    }

    /// A solution says nothing of its job: the newest that it solves is meant. What solves none is no
    /// block of ours, and nothing of it is kept.
    async fn solve(&mut self, solution: &Solution) {
        let found = self
            .approved
            .iter()
            .find_map(|approved| Some((solved(approved, solution)?, Arc::clone(&approved.record))));
        let Some((found, record)) = found else {
            debug!(declarer = self.id, "a pushed solution is of no job that was approved here");
            return;
        };
        self.solutions += 1;
        self.declarers.pool.blocks.keep(found, Route::Solution, Some(record)).await;
    }

    /// One write for all that was said. A declarer that does not read is dropped.
    async fn flush(&mut self) -> Result<(), End> {
        let outbound = &mut self.link.connection().outbound;
        outbound.send_frames(&self.out.frames);
        self.out.frames = Vec::new();
        if outbound.pending().is_empty() {
            return Ok(());
        }
        let stop = async {
            self.declarers.pool.shutdown.cancelled().await;
            sleep(self.declarers.pool.drain).await;
        };
        tokio::select! {
            flushed = flush(&mut self.link) => flushed,
            () = stop => Err(End::Stopping),
        }
    }

    /// What was said is read before the link closes.
    async fn finish(mut self: Box<Self>) {
        let outbound = &mut self.link.connection().outbound;
        outbound.send_frames(&self.out.frames);
        // A peer that is gone or does not read has had its time.
        let _ = timeout(CLOSE_WAIT, self.link.close_after_flush()).await;
    }

    /// Publishes this declarer's row.
    fn show(&mut self, now_ms: u64) {
        self.shown_ms = now_ms;
        let (refused, refusals) = self.history.shown();
        self.declarers.pool.board.publish_declarer(DeclarerSnapshot {
            id: self.id,
            peer: self.peer,
            vendor: self.names.vendor.to_string(),
            firmware: self.names.firmware.to_string(),
            mode: self.mode.as_str(),
            opened_at: self.opened_at.into(),
            account: self.account.to_string(),
            tokens: self.tokens,
            approved: self.approved_count,
            refused,
            tip_lag_ms: self.tip_lag.map(|(_, lag)| lag.as_millis() as u64),
            solutions: self.solutions,
            refusals,
        });
    }
}

/// The next answer; never, while none is due. Cancel safe.
async fn next_answer(asked: &mut JoinSet<Answer>, declarer: u64) -> Answer {
    loop {
        match asked.join_next().await {
            None => std::future::pending().await,
            Some(Ok(answer)) => return answer,
            // It has nothing in it that could.
            Some(Err(panic)) => error!(%panic, declarer, "a task that asks for an answer failed"),
        }
    }
}

/// The block that a solution makes of a job, if it does: proof of work comes before anything else.
fn solved(approved: &Approved, solution: &Solution) -> Option<FoundBlock> {
    let record = &approved.record;
    if (solution.prev_hash, solution.nbits) != (record.prev_hash, record.nbits) {
        return None;
    }
    let extranonce: Extranonce = solution.extranonce.as_slice().try_into().ok()?;
    let job = approved.job.job();
    let header = HeaderFields {
        version: solution.version,
        prev_hash: solution.prev_hash,
        merkle_root: job.merkle_root(&extranonce),
        ntime: solution.ntime,
        nbits: solution.nbits,
        nonce: solution.nonce,
    };
    let hash = header.hash();
    if !Target::from_compact(record.nbits).is_met_by(&hash) {
        return None;
    }
    let owner = Owner { account: record.account.as_str().into(), worker: "".into() };
    let worth = approved.worth();
    Some(FoundBlock { hash, header, extranonce, job: job.clone(), worth, owner })
}

/// Writes all that is pending; `Stalled` once a peer has taken nothing for too long.
async fn flush(link: &mut Link) -> Result<(), End> {
    while timeout(WRITE_STALL_MAX, link.write_some()).await.map_err(|_| End::Stalled)?? {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_trickles_has_the_deadline_of_its_first_byte() {
        let start = Instant::now();
        let mut frame = FrameWatch::default();
        frame.look(false, start);
        assert_eq!(frame.deadline(), None);
        for second in 1..20 {
            frame.look(true, start + Duration::from_secs(second));
        }
        let deadline = start + Duration::from_secs(1) + FRAME_DEADLINE;
        assert_eq!(frame.deadline(), Some(deadline));
        frame.look(false, start + Duration::from_secs(20));
        frame.look(true, start + Duration::from_secs(21));
        assert!(frame.deadline() > Some(deadline), "it is another frame's");
    }
}
