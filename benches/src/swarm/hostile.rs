//! Attackers beside the honest miners, in the middle half of a run: what each does is bounded in count and
//! time, and what became of it is counted. They come from addresses of their own, as a real
//! attacker would, so the pool's limit per address is theirs alone.
//!
//! Must never run but by `--hostile`, which goes where `check_target` lets it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proto::message::{Message, SubmitSharesExtended};
use proto::net::Link;
use proto::noise::AuthorityPublicKey;
use proto::target::{Difficulty, Target};
use proto::wire::B032;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use super::book::{Book, Span};
use super::connection::dial;
use super::options::{Kind, loopback};
use super::session::{Opening, Session};

/// Connections that send a part of a handshake and wait.
const HALF_OPEN: u32 = 200;
/// Connections that ask and never read an answer.
const DEAF: u32 = 20;
/// What one of these sends at most: 64 MB of errors would be due to it.
const DEAF_FRAMES: u32 = 1_000_000;
/// Connections that flood with shares of each wrong kind.
const FLOODS: u32 = 2;
/// Wrong shares in one write, and between two looks at the answers.
const FLOOD_BURST: u32 = 256;
/// Wrong shares of one connection.
const FLOOD_SHARES: u32 = 2_000_000;
/// Connections from one address: more than a pool should let in.
const CROWD: u32 = 1_500;
/// Reconnects of each of the storm's tasks.
const STORM: u32 = 20_000;
const STORM_TASKS: u32 = 8;
/// Files that all of them have open at once.
pub(super) const FILES: usize = (HALF_OPEN + DEAF + 3 * FLOODS + CROWD + STORM_TASKS) as usize;
/// Before somebody who was refused knocks again.
const PAUSE: Duration = Duration::from_millis(50);
/// The attackers' part of the loopback network: 127.200.0.0 and on.
const SOURCE_BLOCK: u8 = 200;

/// What the attackers did and what became of it.
#[derive(Debug, Default)]
pub(super) struct Attack {
    pub(super) counts: BTreeMap<String, u64>,
}

impl Attack {
    fn count(&mut self, what: &str, times: u64) {
        *self.counts.entry(what.to_owned()).or_default() += times;
    }
}

impl Attack {
    /// One burst of a flood and the answers so far. Counted at once: the attack may end in the middle of
    /// any wait.
    fn flooded(&mut self, wrong: Wrong, book: &mut Book, ended: bool) {
        self.count(&format!("wrong shares sent ({wrong:?})"), FLOOD_BURST.into());
        for (code, count) in std::mem::take(&mut book.refused) {
            self.count(&format!("wrong shares answered {code}"), count);
        }
        if ended {
            self.count("flooding connections ended by the pool", 1);
        }
    }
}

/// Where and how long; shared by all attackers of the thread.
#[derive(Clone)]
struct Field {
    address: SocketAddr,
    authority: Option<AuthorityPublicKey>,
    until: Instant,
    attack: Rc<RefCell<Attack>>,
}

/// A way to break the rules of shares.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    JobId,
    Duplicate,
    LowDifficulty,
}

/// Attacks in the middle half of `span`.
pub(super) async fn run(
    address: SocketAddr,
    authority: Option<AuthorityPublicKey>,
    span: Span,
) -> Attack {
    let quarter = (span.until - span.from) / 4;
    let until = span.until - quarter;
    let attack = Rc::new(RefCell::new(Attack::default()));
    let field = Field { address, authority, until, attack: Rc::clone(&attack) };
    sleep((span.from + quarter).saturating_duration_since(Instant::now())).await;
    let mut attackers = JoinSet::new();
    for _ in 0..HALF_OPEN {
        attackers.spawn_local(field.clone().half_open());
    }
    for _ in 0..DEAF {
        attackers.spawn_local(field.clone().deaf());
    }
    for wrong in [Wrong::JobId, Wrong::Duplicate, Wrong::LowDifficulty] {
        for _ in 0..FLOODS {
            attackers.spawn_local(field.clone().flood(wrong));
        }
    }
    for _ in 0..CROWD {
        attackers.spawn_local(field.clone().one_of_a_crowd());
    }
    for _ in 0..STORM_TASKS {
        attackers.spawn_local(field.clone().storm());
    }
    // Nobody attacks after `until`, whatever it waits for; what is left is dropped with the set.
    let _ =
        timeout_at(until.into(), async { while attackers.join_next().await.is_some() {} }).await;
    drop(attackers);
    let counts = std::mem::take(&mut attack.borrow_mut().counts);
    Attack { counts }
}

impl Field {
    fn count(&self, what: &str) {
        self.attack.borrow_mut().count(what, 1);
    }

    fn is_on(&self) -> bool {
        Instant::now() < self.until
    }

    async fn tcp(&self, source: u32) -> std::io::Result<TcpStream> {
        if !self.address.is_ipv4() || !self.address.ip().is_loopback() {
            return TcpStream::connect(self.address).await;
        }
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(loopback(SOURCE_BLOCK, source), 0))?;
        socket.connect(self.address).await
    }

    async fn link(&self, source: u32) -> Result<Link, String> {
        let local = self.address.is_ipv4() && self.address.ip().is_loopback();
        let from = local.then(|| loopback(SOURCE_BLOCK, source));
        dial(self.address, from, self.authority.as_ref()).await
    }

    /// Ten bytes of act 1, then silence, again and again.
    async fn half_open(self) {
        while self.is_on() {
            let Ok(mut stream) = self.tcp(1).await else {
                self.count("half-open handshakes refused");
                sleep(PAUSE).await;
                continue;
            };
            self.count("half-open handshakes begun");
            if stream.write_all(&[7; 10]).await.is_ok() {
                let _ = stream.read(&mut [0; 64]).await;
            }
            self.count("half-open handshakes ended by the pool");
            sleep(PAUSE).await;
        }
    }

    /// Opens a channel, then asks for thousands of refusals and reads none.
    async fn deaf(self) {
        let Ok((mut link, _)) = self.session(2, Target::MAX).await else {
            return self.count("deaf connections refused");
        };
        self.count("deaf connections opened");
        let mut frames = Vec::new();
        for number in 0..DEAF_FRAMES / FLOOD_BURST {
            frames.clear();
            (0..FLOOD_BURST).for_each(|share| wrong_job(number * FLOOD_BURST + share, &mut frames));
            link.connection().outbound.send_frames(&frames);
            if link.flush().await.is_err() {
                return self.count("deaf connections ended by the pool");
            }
            // A socket that always takes more never gives up its turn: the other attackers want theirs.
            tokio::task::yield_now().await;
        }
    }

    /// Shares that are worth nothing, as fast as they are answered.
    async fn flood(self, wrong: Wrong) {
        // Difficulty 1: a share that nobody searched for is too easy.
        let target = match wrong {
            Wrong::LowDifficulty => Difficulty::from_log2(0).target(),
            Wrong::JobId | Wrong::Duplicate => Target::MAX,
        };
        let Ok((mut link, mut session)) = self.session(3, target).await else {
            return self.count("flooding connections refused");
        };
        let mut frames = Vec::new();
        let mut book = Book::default();
        let mut sequence = 0;
        while sequence < FLOOD_SHARES && self.is_on() {
            for _ in 0..FLOOD_BURST {
                sequence += 1;
                match wrong {
                    Wrong::JobId => wrong_job(sequence, &mut frames),
                    Wrong::Duplicate => same_share(&mut session, sequence, 0, &mut frames),
                    Wrong::LowDifficulty => {
                        same_share(&mut session, sequence, sequence, &mut frames);
                    }
                }
            }
            link.connection().outbound.send_frames(&frames);
            frames.clear();
            let heard = match link.flush().await {
                Ok(()) => hear(&mut link, &mut session, &mut book).await,
                Err(error) => Err(error.to_string()),
            };
            let ended = heard.is_err();
            self.attack.borrow_mut().flooded(wrong, &mut book, ended);
            if ended {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// One of too many from one address; who is in stays.
    async fn one_of_a_crowd(self) {
        match self.session(4, Target::MAX).await {
            Ok((mut link, _)) => {
                self.count("crowd let in");
                while link.fill().await.is_ok_and(|count| count > 0) {
                    while matches!(link.connection().inbound.next_frame(), Ok(Some(_))) {}
                }
                self.count("crowd ended by the pool");
            }
            Err(_) => self.count("crowd refused"),
        }
    }

    /// Shakes hands and leaves, as fast as it goes.
    async fn storm(self) {
        for _ in 0..STORM {
            match self.link(5).await {
                Ok(link) => {
                    self.count("storm handshakes");
                    drop(link);
                }
                Err(_) => {
                    self.count("storm handshakes refused");
                    sleep(PAUSE).await;
                }
            }
            if !self.is_on() {
                return;
            }
        }
    }

    /// A connection with one extended channel.
    async fn session(&self, source: u32, max_target: Target) -> Result<(Link, Session), String> {
        let mut link = self.link(source).await?;
        let mut session =
            Session::new(Opening { kind: Kind::Extended, channels: 1, hash_rate: 1.0, max_target });
        let mut frames = Vec::new();
        session.start(&mut frames);
        link.connection().outbound.send_frames(&frames);
        link.flush().await.map_err(|error| error.to_string())?;
        let mut book = Book::default();
        while !session.is_ready() {
            hear(&mut link, &mut session, &mut book).await?;
        }
        Ok((link, session))
    }
}

/// Waits for bytes and takes what they say; answers go out.
async fn hear(link: &mut Link, session: &mut Session, book: &mut Book) -> Result<(), String> {
    if link.fill().await.map_err(|error| error.to_string())? == 0 {
        return Err("closed by the pool".to_owned());
    }
    let mut frames = Vec::new();
    let now = Instant::now();
    while let Some(frame) =
        link.connection().inbound.next_frame().map_err(|error| error.to_string())?
    {
        let said = frame.message().map_err(|error| error.to_string())?;
        session.hear(said, now, &mut frames, book)?;
    }
    link.connection().outbound.send_frames(&frames);
    link.flush().await.map_err(|error| error.to_string())
}

/// A share of a job that no channel was ever given.
fn wrong_job(sequence_number: u32, frames: &mut Vec<u8>) {
    Message::from(SubmitSharesExtended {
        channel_id: 2,
        sequence_number,
        job_id: u32::MAX - 1,
        nonce: sequence_number,
        ntime: 0,
        version: 0,
        extranonce: B032::default(),
    })
    .encode(frames);
}

/// A share of the present work with `nonce` and the first extranonce.
fn same_share(session: &mut Session, sequence_number: u32, nonce: u32, frames: &mut Vec<u8>) {
    let Some((channel_id, work)) = session.first_work() else { return };
    let rolled = work.fixed(nonce);
    Message::from(SubmitSharesExtended {
        channel_id,
        sequence_number,
        job_id: rolled.job_id,
        nonce: rolled.nonce,
        ntime: rolled.ntime,
        version: rolled.version,
        extranonce: rolled.extranonce,
    })
    .encode(frames);
}
