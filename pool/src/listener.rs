//! The doors: each accepts connections, holds them against its limits, and hands each to a task of its
//! own. Started by `run`, one for miners and one for declarers.
//!
//! Must never be stopped by a client, and never make those who are in wait for those who knock.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub(crate) use job_declarator::door::cannot_bind;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{self, JoinSet};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::declarer::{self, Declarers};
use crate::limits::ACCEPT_PAUSE;
use crate::metrics::HandshakeFailure;
use crate::miner::{self, Shared};

/// How many may be in.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// In all.
    pub connections_max: usize,
    /// From one address (one /64 in IPv6, which one household has).
    pub per_address_max: usize,
}

/// Who comes in at a door.
pub enum Guests {
    /// Mining connections.
    Miners(Arc<Shared>),
    /// Job declaration connections.
    Declarers(Arc<Declarers>),
}

impl Guests {
    fn shared(&self) -> &Arc<Shared> {
        match self {
            Self::Miners(shared) => shared,
            Self::Declarers(declarers) => &declarers.pool,
        }
    }

    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        connection: u64,
        tasks: &mut JoinSet<()>,
    ) -> task::Id {
        match self {
            Self::Miners(shared) => {
                tasks.spawn(miner::serve(stream, peer, connection, Arc::clone(shared))).id()
            }
            Self::Declarers(declarers) => {
                let declarers = Arc::clone(declarers);
                tasks.spawn(declarer::serve(stream, peer, connection, declarers)).id()
            }
        }
    }

    /// Puts right what a task that failed left undone. The board may make one wait; the door waits for
    /// nobody.
    fn failed(&self, connection: u64) {
        let board = self.shared().board.clone();
        let metrics = &self.shared().metrics;
        match self {
            Self::Miners(_) => {
                metrics.connection_closed();
                tokio::spawn(async move { board.remove(connection).await });
            }
            Self::Declarers(_) => {
                metrics.declarer_closed();
                tokio::spawn(async move { board.remove_declarer(connection).await });
            }
        }
    }
}

/// Accepts until the pool stops, then waits for every connection to end.
pub async fn serve(listener: TcpListener, room: Room, guests: Guests) {
    let shared = Arc::clone(guests.shared());
    let mut inside = Inside::default();
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut next_id = 1u64;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(ended) = tasks.join_next_with_id() => inside.left(ended, &guests),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Err(full) = inside.enter(peer, room) {
                        shared.metrics.handshake_failed(full);
                        debug!(%peer, why = full.as_str(), "connection refused");
                        continue;
                    }
                    let task = guests.serve(stream, peer, next_id, &mut tasks);
                    inside.tasks.insert(task, Guest { connection: next_id, peer });
                    next_id += 1;
                }
                // Out of file descriptors, or a client gone before its turn: the next may do better.
                Err(error) => {
                    warn!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Who is in, by household and by task.
#[derive(Debug, Default)]
struct Inside {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    tasks: HashMap<task::Id, Guest>,
}

#[derive(Debug)]
struct Guest {
    connection: u64,
    peer: SocketAddr,
}

impl Inside {
    fn enter(&mut self, peer: SocketAddr, room: Room) -> Result<(), HandshakeFailure> {
        if self.total >= room.connections_max {
            return Err(HandshakeFailure::Full);
        }
        let count = self.by_address.entry(household(peer.ip())).or_default();
        if *count >= room.per_address_max {
            return Err(HandshakeFailure::AddressFull);
        }
        *count += 1;
        self.total += 1;
        Ok(())
    }

    /// A task has ended, by a panic too: its place at the door is free again.
    fn left(&mut self, ended: Result<(task::Id, ()), task::JoinError>, guests: &Guests) {
        let task = ended.as_ref().map_or_else(task::JoinError::id, |(id, ())| *id);
        let Some(Guest { connection, peer }) = self.tasks.remove(&task) else { return };
        if let Err(error) = ended {
            tracing::error!(%peer, %error, "a connection's task failed; every other goes on");
            guests.failed(connection);
        }
        let address = household(peer.ip());
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// What one customer of an internet provider has: an IPv4 address or a /64.
pub(crate) fn household(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
            }
        },
    }
}
