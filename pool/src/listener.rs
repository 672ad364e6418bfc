//! The doors, one for miners and one for declarers: started by `run`. Who comes in has a task of his own
//! (`job_declarator::accept`).
//!
//! Must never wait for a client, nor for those who hear of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use job_declarator::accept::{Full, Guests, Room, accept};
pub(crate) use job_declarator::door::cannot_bind;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{self, JoinSet};

use crate::declarer::{self, Declarers};
use crate::metrics::HandshakeFailure;
use crate::miner::{self, Shared};

/// Who comes in at a door.
pub enum Clients {
    /// Mining connections.
    Miners(Arc<Shared>),
    /// Job declaration connections.
    Declarers(Arc<Declarers>),
}

/// Accepts until the pool stops, then waits for every connection to end.
pub async fn serve(listener: TcpListener, room: Room, clients: Clients) {
    let ids = AtomicU64::new(1);
    let mut tasks = accept(listener, room, &clients, &ids, &clients.shared().shutdown).await;
    while tasks.join_next().await.is_some() {}
}

impl Clients {
    fn shared(&self) -> &Arc<Shared> {
        match self {
            Self::Miners(shared) => shared,
            Self::Declarers(declarers) => &declarers.pool,
        }
    }
}

impl Guests for Clients {
    fn household(&self, address: IpAddr) -> IpAddr {
        household(address)
    }

    fn turned_away(&self, _: SocketAddr, full: Full) {
        self.shared().metrics.handshake_failed(match full {
            Full::All => HandshakeFailure::Full,
            Full::Household => HandshakeFailure::AddressFull,
        });
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

    /// The board may make one wait; the door waits for nobody.
    fn failed(&self, connection: u64, _: SocketAddr) {
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
