//! One device's connection: the link, the mining server behind it, and what the server wants done. Spawned by
//! `door.rs`; owns everything of it, so nothing is locked and a slow device slows itself alone. Stratum V2 in
//! `device/sv2.rs`, Stratum V1 in `device/sv1.rs`; what both do stands here.
//!
//! A good share is acknowledged when the declarator's task has it, which from then on counts what becomes of it.
//! A found block is on disk before its share is answered. Must never end because a pool or the node is away.

pub(crate) mod sv1;
pub(crate) mod sv2;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::connection::{SetupPolicy, Violation};
use proto::extranonce::ExtranonceAllocator;
use proto::message::{Message, Tlvs};
use proto::mining::server::{Effect, FoundBlock, Input, Outbox, Policy, Server};
use proto::mining::{ChannelId, Committed, CreditBatch, CreditGroup, Kind, Now, Owner};
use proto::net::LinkError;
use proto::noise::Identity;
use proto::share::Refusal;
use proto::target::Target;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::blocks::BlocksHandle;
use crate::clock::Clock;
use crate::declarator::Published;
use crate::limits::{CHANNELS_OF_ONE_MAX, DEVICE_SHOWN_EVERY_MS, OPENS_SAID};
use crate::rate::{HashRates, RateMeter};

/// What every device's task may use: values that never change, and handles.
pub struct House {
    /// How channels are run.
    pub policy: Arc<Policy>,
    /// What SetupConnection is held against.
    pub setup: SetupPolicy,
    /// Who we are; changes when a certificate is renewed.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// What devices do. Closed when the program stops.
    pub work: watch::Receiver<Published>,
    /// Search space.
    pub channels: ExtranonceAllocator,
    /// The declarator's task.
    pub core: mpsc::Sender<FromDevice>,
    /// Where blocks go.
    pub blocks: BlocksHandle,
    /// From accept to the answer of SetupConnection.
    pub handshake_deadline: Duration,
    /// Until a connection must have opened a channel.
    pub first_channel: Duration,
    /// Time.
    pub clock: Clock,
    /// Channels that the whole house may still open.
    pub places: Arc<Semaphore>,
    /// The program is stopping.
    pub shutdown: CancellationToken,
}

/// What a device's task tells the declarator's.
#[derive(Debug)]
pub enum FromDevice {
    /// Good shares.
    Shares(Vec<CreditGroup>),
    /// A block that is on disk.
    Block(Box<FoundBlock>),
    /// How it stands with one connection.
    Shown(Box<DeviceSnapshot>),
    /// A connection has ended, with why.
    Gone(u64, SocketAddr, String),
    /// Somebody was turned away, or refused what he asked for.
    Refused {
        /// Who.
        peer: SocketAddr,
        /// In words.
        why: String,
        /// So many times since the last word.
        count: u64,
    },
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Stratum V2.
    V2,
    /// Stratum V1.
    V1,
}

/// One connection as it was a moment ago. Its texts are a peer's.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceSnapshot {
    /// Counts up within one run.
    pub id: u64,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// What it speaks.
    pub dialect: Dialect,
    /// As it says.
    pub vendor: String,
    /// As it says.
    pub hardware: String,
    /// As it says.
    pub firmware: String,
    /// Unix seconds.
    pub connected_at: u32,
    /// Its channels, by id: mostly one; a proxy has many.
    pub channels: Vec<ChannelSnapshot>,
    /// Shares of a V1 device that were refused before any channel saw them.
    pub refused_early: u64,
}

/// One channel of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelSnapshot {
    /// Standard or extended.
    pub kind: Kind,
    /// What the device is called.
    pub name: Arc<str>,
    /// Measured.
    pub hash_rate: HashRates,
    /// What the pace of shares aims at, H/s: known from the first moment.
    pub aimed_rate: f64,
    /// log2 of the difficulty of its next job.
    pub difficulty_log2: i16,
    /// Good shares.
    pub accepted: u64,
    /// Others, by `Refusal::ALL`'s order.
    pub refused: [u32; Refusal::ALL.len()],
    /// Unix seconds.
    pub last_share_at: Option<u32>,
    /// Difficulty of its best share; zero if there is none.
    pub best_difficulty: f64,
    /// For how long it has been open, ms.
    pub age_ms: u64,
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(crate) enum End {
    #[error("it closed the connection")]
    Eof,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("it broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error(transparent)]
    Sv1(#[from] crate::sv1::End),
    #[error("the link failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("it does not read what it is sent")]
    Stalled,
    #[error("it opened no channel")]
    NoChannel,
    #[error("the program is stopping")]
    Stopping,
}

/// What a device calls itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub(crate) vendor: String,
    pub(crate) hardware: String,
    pub(crate) firmware: String,
}

/// A connection without its link.
pub(crate) struct Device {
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    dialect: Dialect,
    pub(crate) names: Names,
    connected_at: u32,
    opened_ms: u64,
    shown_ms: u64,
    opened_any: bool,
    pub(crate) server: Server,
    pub(crate) out: Outbox,
    pub(crate) work: watch::Receiver<Published>,
    meters: Vec<Meter>,
    /// One for each channel.
    places: Vec<OwnedSemaphorePermit>,
    /// What a V1 device calls itself: it may say so after its channel was opened.
    pub(crate) worker: Option<Arc<str>>,
    pub(crate) refused_early: u64,
    /// Channels that were not opened, by code, since the page was told.
    opens_refused: Vec<(&'static str, u64)>,
    pub(crate) house: Arc<House>,
}

/// What is measured of a channel.
struct Meter {
    channel: ChannelId,
    rate: RateMeter,
    /// Unix seconds.
    last_share_at: Option<u32>,
    opened_ms: u64,
}

/// By what both doors tell what was typed, or written by a program, from a key.
fn is_plain_text(first: &[u8]) -> bool {
    first.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

impl House {
    /// For the page: who was not let in, and why.
    pub(crate) async fn refused(&self, peer: SocketAddr, why: String) {
        warn!(%peer, why, "a device could not get in");
        // The declarator's task may have ended.
        let _ = self.core.send(FromDevice::Refused { peer, why, count: 1 }).await;
    }
}

impl Device {
    pub(crate) fn new(
        house: Arc<House>,
        peer: SocketAddr,
        id: u64,
        dialect: Dialect,
        flags: u32,
        names: Names,
    ) -> Self {
        let mut work = house.work.clone();
        let Published { active, ceiling } = work.borrow_and_update().clone();
        let now = house.clock.now();
        let policy = Arc::clone(&house.policy);
        let mut server = Server::new(policy, flags, house.channels.clone(), active, now);
        let mut out = Outbox::default();
        server.set_ceiling(ceiling, now, &mut out);
        Self {
            id,
            peer,
            dialect,
            names,
            connected_at: now.unix_s,
            opened_ms: now.mono_ms,
            shown_ms: 0,
            opened_any: false,
            server,
            out,
            work,
            meters: Vec::new(),
            places: Vec::new(),
            worker: None,
            refused_early: 0,
            opens_refused: Vec::new(),
            house,
        }
    }

    /// What the device says. The first channel of a connection has its place with it; each further one takes one
    /// of the house's, as long as there are any.
    pub(crate) fn hear(
        &mut self,
        now: Now,
        message: Message<'_>,
        tlvs: Tlvs<'_>,
    ) -> Result<(), Violation> {
        let opens = matches!(
            message,
            Message::OpenStandardMiningChannel(_) | Message::OpenExtendedMiningChannel(_)
        );
        if opens
            && (1..CHANNELS_OF_ONE_MAX).contains(&self.server.channels_open())
            && let Ok(place) = Arc::clone(&self.house.places).try_acquire_owned()
        {
            self.places.push(place);
        }
        self.server.set_channels_max(self.places.len() + 1);
        self.server.handle(now, Input::Message(message, tlvs), &mut self.out)?;
        self.places.truncate(self.server.channels_open().saturating_sub(1));
        Ok(())
    }

    /// When `keep_time` is due, mono ms.
    pub(crate) fn deadline_ms(&self) -> u64 {
        self.server.deadline_ms().min(self.shown_ms.saturating_add(DEVICE_SHOWN_EVERY_MS))
    }

    /// The work is another, or its ceiling is.
    pub(crate) fn on_work(&mut self, now: Now) -> Result<(), End> {
        let Published { active, ceiling } = self.work.borrow_and_update().clone();
        self.server.handle(now, Input::Template(active), &mut self.out)?;
        self.server.handle(now, Input::BurstEnd, &mut self.out)?;
        self.server.set_ceiling(ceiling, now, &mut self.out);
        Ok(())
    }

    /// What is due by now.
    pub(crate) fn keep_time(&mut self, now: Now) -> Result<(), End> {
        if now.mono_ms >= self.server.deadline_ms() {
            self.server.handle(now, Input::Time, &mut self.out)?;
        }
        if now.mono_ms >= self.shown_ms.saturating_add(DEVICE_SHOWN_EVERY_MS) {
            self.show(now);
        }
        let waited = Duration::from_millis(now.mono_ms.saturating_sub(self.opened_ms));
        if waited > self.house.first_channel && !self.opened_any {
            return Err(End::NoChannel);
        }
        Ok(())
    }

    /// Does what the server asked for. A block is on disk first of all; then it goes to the declarator's task, which
    /// sends its share, and in the same moment to the node: the other way round the tip would move under the share.
    pub(crate) async fn carry_out(&mut self) -> Result<(), End> {
        while !self.out.effects.is_empty() {
            let effects = std::mem::take(&mut self.out.effects).into_iter();
            let (blocks, rest): (Vec<_>, Vec<_>) =
                effects.partition(|effect| matches!(effect, Effect::BlockFound(_)));
            for effect in &blocks {
                if let Effect::BlockFound(found) = effect {
                    let finder = self.name_of(&found.owner);
                    self.house.blocks.keep(found, &finder).await;
                }
            }
            let is_block = !blocks.is_empty();
            let handed_in = self.hand_over(blocks.into_iter().chain(rest)).await;
            if is_block {
                // Whatever became of the rest.
                self.house.blocks.offer_now();
            }
            handed_in?;
        }
        Ok(())
    }

    async fn hand_over(&mut self, effects: impl Iterator<Item = Effect>) -> Result<(), End> {
        for effect in effects {
            match effect {
                Effect::BlockFound(mut found) => {
                    found.owner.worker = self.name_of(&found.owner);
                    self.tell(FromDevice::Block(found)).await?;
                }
                Effect::Credit(batch) => self.hand_in(batch).await?,
                said @ (Effect::Acknowledged { .. }
                | Effect::Refused { .. }
                | Effect::Opened(_)
                | Effect::OpenRefused(_)
                | Effect::Closed(..)
                | Effect::CustomJob(_)
                | Effect::CustomAccepted(_)
                | Effect::CustomRefused(_)) => self.note(&said),
            }
        }
        Ok(())
    }

    /// The declarator's task has the shares: from here on they are counted whatever happens.
    async fn hand_in(&mut self, batch: CreditBatch) -> Result<(), End> {
        let CreditBatch { id, mut groups } = batch;
        for group in &mut groups {
            group.owner.worker = self.name_of(&group.owner);
        }
        self.tell(FromDevice::Shares(groups)).await?;
        let committed = Committed { id, duplicates: Vec::new() };
        let now = self.house.clock.now();
        Ok(self.server.handle(now, Input::Committed(committed), &mut self.out)?)
    }

    async fn tell(&self, said: FromDevice) -> Result<(), End> {
        self.house.core.send(said).await.map_err(|_| End::Stopping)
    }

    /// What a device is called: the worker's part of its name, or all of it.
    fn name_of(&self, owner: &Owner) -> Arc<str> {
        match &self.worker {
            Some(worker) => Arc::clone(worker),
            None if owner.worker.is_empty() => Arc::clone(&owner.account),
            None => Arc::clone(&owner.worker),
        }
    }

    /// Effects that are only to be counted and said.
    fn note(&mut self, effect: &Effect) {
        let now = self.house.clock.now();
        let seconds = now.mono_ms as f64 / 1_000.0;
        match effect {
            Effect::Acknowledged { channel, difficulty, shares, .. } => {
                let meter = self.meters.iter_mut().find(|meter| meter.channel == *channel);
                if let Some(Meter { rate, last_share_at, .. }) = meter {
                    rate.share_accepted(seconds, difficulty.hashes() * f64::from(*shares));
                    *last_share_at = Some(now.unix_s);
                }
            }
            Effect::Refused { channel, refusal } => {
                let why = refusal.code();
                debug!(device = self.id, channel = channel.0, why, "share refused");
            }
            Effect::Opened(channel) => {
                self.meters.push(Meter {
                    channel: *channel,
                    rate: RateMeter::new(seconds),
                    last_share_at: None,
                    opened_ms: now.mono_ms,
                });
                self.opened_any = true;
                self.shown_ms = 0;
                if let Some(view) = self.server.channels().find(|view| view.id == *channel) {
                    let (name, difficulty_log2) =
                        (self.name_of(view.owner), view.difficulty.log2());
                    if self.meters.len() <= OPENS_SAID {
                        info!(device = self.id, peer = %self.peer, %name, difficulty_log2, "device mines");
                    } else {
                        debug!(device = self.id, %name, difficulty_log2, "device mines");
                    }
                }
            }
            Effect::OpenRefused(why) => {
                debug!(device = self.id, why, "a device's channel is refused");
                match self.opens_refused.iter_mut().find(|(code, _)| code == why) {
                    Some((_, count)) => *count += 1,
                    None => self.opens_refused.push((*why, 1)),
                }
            }
            Effect::Closed(channel, _) => self.meters.retain(|meter| meter.channel != *channel),
            // No device selects its own work here: the setup refuses it.
            Effect::BlockFound(_)
            | Effect::Credit(_)
            | Effect::CustomJob(_)
            | Effect::CustomAccepted(_)
            | Effect::CustomRefused(_) => {}
        }
    }

    /// A row for the page; one that finds no room is followed by the next.
    fn show(&mut self, now: Now) {
        self.shown_ms = now.mono_ms;
        let seconds = now.mono_ms as f64 / 1_000.0;
        let per_second = self.house.policy.shares_per_minute / 60.0;
        let channels = self.server.channels().map(|view| {
            let meter = self.meters.iter().find(|meter| meter.channel == view.id);
            let hashes = view.difficulty.hashes();
            let best = view.tally.best.map(Target::from_le_bytes);
            ChannelSnapshot {
                kind: view.kind,
                name: self.name_of(view.owner),
                hash_rate: meter.map(|meter| meter.rate.rates(seconds, hashes)).unwrap_or_default(),
                aimed_rate: hashes * per_second,
                difficulty_log2: view.difficulty.log2(),
                accepted: view.tally.accepted,
                refused: view.tally.refused,
                last_share_at: meter.and_then(|meter| meter.last_share_at),
                age_ms: meter.map_or(0, |meter| now.mono_ms.saturating_sub(meter.opened_ms)),
                best_difficulty: best.map_or(0.0, Target::difficulty_for_display),
            }
        });
        let snapshot = DeviceSnapshot {
            id: self.id,
            peer: self.peer,
            dialect: self.dialect,
            vendor: self.names.vendor.clone(),
            hardware: self.names.hardware.clone(),
            firmware: self.names.firmware.clone(),
            connected_at: self.connected_at,
            channels: channels.collect(),
            refused_early: self.refused_early,
        };
        let _ = self.house.core.try_send(FromDevice::Shown(Box::new(snapshot)));
        self.show_refused_opens();
    }

    /// Some in a moment are one line: a proxy may ask for channels by the thousand.
    fn show_refused_opens(&mut self) {
        for (code, count) in std::mem::take(&mut self.opens_refused) {
            let why = format!("a channel is refused: {code}");
            warn!(device = self.id, peer = %self.peer, why, count, "a device asks in vain");
            let said = FromDevice::Refused { peer: self.peer, why, count };
            let _ = self.house.core.try_send(said);
        }
    }

    /// What was accepted and not yet handed in, and a last word.
    pub(crate) async fn finish(mut self, end: &End) {
        self.server.close_batch(&mut self.out);
        let _ = self.carry_out().await;
        self.show_refused_opens();
        info!(device = self.id, peer = %self.peer, why = %end, "a device is gone");
        let _ = self.tell(FromDevice::Gone(self.id, self.peer, end.to_string())).await;
    }
}
