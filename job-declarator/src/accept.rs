//! What stands behind every port that strangers connect to, the house's and the pool's: connections are accepted,
//! held against the limits, and each gets a task of its own.
//!
//! Must never be stopped by who connects, nor make those who are in wait for those who knock.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{self, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::limits::ACCEPT_PAUSE;

/// How many may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub connections_max: usize,
    /// Of one household (`Guests::household`).
    pub per_household_max: usize,
}

/// Which of the two is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Every place.
    All,
    /// Every place of its household.
    Household,
}

/// Who comes in at a port, and what becomes of him.
pub trait Guests: Sync {
    /// Whose connections have their places together. An address of its own, if nothing else is said.
    fn household(&self, address: IpAddr) -> IpAddr {
        address
    }

    /// He finds no place; is not waited for.
    fn turned_away(&self, peer: SocketAddr, full: Full);

    /// Starts the task of a connection.
    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        connection: u64,
        tasks: &mut JoinSet<()>,
    ) -> task::Id;

    /// The task of a connection has panicked: what it left undone is put right; is not waited for.
    fn failed(&self, connection: u64, peer: SocketAddr);
}

/// Accepts until `stop`, then closes the port: the tasks that go on. Connections have numbers from `ids`, which
/// several ports may share.
pub async fn accept(
    listener: TcpListener,
    room: Room,
    guests: &impl Guests,
    ids: &AtomicU64,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let mut inside = Inside::default();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next_with_id() => inside.left(ended, guests),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let household = guests.household(peer.ip());
                    if let Err(full) = inside.enter(household, room) {
                        debug!(%peer, ?full, "a connection is refused");
                        guests.turned_away(peer, full);
                        continue;
                    }
                    let connection = ids.fetch_add(1, Ordering::Relaxed);
                    let task = guests.serve(stream, peer, connection, &mut tasks);
                    inside.tasks.insert(task, Guest { connection, peer, household });
                }
                // Out of file descriptors, or a client gone before its turn: the next may do better.
                Err(error) => {
                    warn!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    tasks
}

/// Who is in, by household and by task.
#[derive(Debug, Default)]
struct Inside {
    by_household: HashMap<IpAddr, usize>,
    tasks: HashMap<task::Id, Guest>,
}

#[derive(Debug)]
struct Guest {
    connection: u64,
    peer: SocketAddr,
    household: IpAddr,
}

impl Inside {
    fn enter(&mut self, household: IpAddr, room: Room) -> Result<(), Full> {
        // Each has a task, or is about to.
        if self.tasks.len() >= room.connections_max {
            return Err(Full::All);
        }
        let here = self.by_household.get(&household).copied().unwrap_or(0);
        if here >= room.per_household_max {
            return Err(Full::Household);
        }
        self.by_household.insert(household, here + 1);
        Ok(())
    }

    /// A task has ended, by a panic too: its place is free again.
    fn left(&mut self, ended: Result<(task::Id, ()), task::JoinError>, guests: &impl Guests) {
        let task = ended.as_ref().map_or_else(task::JoinError::id, |(id, ())| *id);
        let Some(Guest { connection, peer, household }) = self.tasks.remove(&task) else { return };
        if let Err(error) = ended {
            error!(%peer, %error, "a connection's task failed; every other goes on");
            guests.failed(connection, peer);
        }
        if let Some(here) = self.by_household.get_mut(&household) {
            *here -= 1;
            if *here == 0 {
                self.by_household.remove(&household);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Says hello and waits for a byte; panics at a `p`.
    #[derive(Default)]
    struct Hosts {
        away: Mutex<Vec<Full>>,
        failed: Mutex<Vec<u64>>,
    }

    impl Guests for Hosts {
        fn turned_away(&self, _: SocketAddr, full: Full) {
            self.away.lock().unwrap().push(full);
        }

        fn serve(
            &self,
            mut stream: TcpStream,
            _: SocketAddr,
            _: u64,
            tasks: &mut JoinSet<()>,
        ) -> task::Id {
            let task = async move {
                stream.write_all(b"h").await.unwrap();
                assert_ne!(stream.read_u8().await.unwrap(), b'p');
            };
            tasks.spawn(task).id()
        }

        fn failed(&self, connection: u64, _: SocketAddr) {
            self.failed.lock().unwrap().push(connection);
        }
    }

    /// Whether there was a place.
    async fn knock(at: SocketAddr) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.read_u8().await.is_ok().then_some(stream)
    }

    #[tokio::test]
    async fn one_beyond_the_room_is_refused_and_a_place_is_free_again_also_after_a_panic() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let (hosts, ids, stop) = (Hosts::default(), AtomicU64::new(7), CancellationToken::new());
        let room = Room { connections_max: 2, per_household_max: 2 };
        let open = accept(listener, room, &hosts, &ids, &stop);
        let guests = async {
            let (mut one, mut two) = (knock(at).await.unwrap(), knock(at).await.unwrap());
            assert!(knock(at).await.is_none(), "two are in");
            assert_eq!(*hosts.away.lock().unwrap(), [Full::All]);
            one.write_all(b"p").await.unwrap();
            two.write_all(b".").await.unwrap();
            // Their ends are heard of in a moment.
            let mut back = Vec::new();
            while back.len() < 2 {
                back.extend(knock(at).await);
            }
            assert_eq!(*hosts.failed.lock().unwrap(), [7], "the first one's");
            stop.cancel();
            back
        };
        let (tasks, back) = tokio::join!(open, guests);
        assert_eq!(tasks.len(), back.len(), "they go on, and the port is closed");
        assert!(TcpStream::connect(at).await.is_err());
    }

    #[test]
    fn one_beyond_the_room_of_a_household_is_refused_and_another_household_is_not() {
        let room = Room { connections_max: 9, per_household_max: 2 };
        let (home, farm) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
        let mut inside = Inside::default();
        inside.enter(home, room).unwrap();
        inside.enter(home, room).unwrap();
        assert_eq!(inside.enter(home, room), Err(Full::Household));
        inside.enter(farm, room).unwrap();
    }
}
