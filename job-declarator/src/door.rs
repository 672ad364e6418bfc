//! The doors for devices: each accepts connections, holds them against its limits, and hands each to a task of
//! its own. Started by `run.rs`, one for Stratum V2 and one for V1, once there is work.
//!
//! Must never be stopped by a device, nor make those who are in wait for those who knock.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{self, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::device::{Dialect, FromDevice, House, sv1, sv2};
use crate::limits::{DEVICES_DRAIN, DOOR_BACKLOG, DOOR_PAUSE};

/// How many may be in, through both doors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In all, for each door.
    pub connections_max: usize,
    /// From one address: a house's proxy may bring several.
    pub per_address_max: usize,
}

/// A port that is taken and not yet open: who connects before there is work is refused and tries its next pool.
#[derive(Debug)]
pub(crate) struct Door {
    socket: TcpSocket,
    key: &'static str,
    pub(crate) address: SocketAddr,
    dialect: Dialect,
}

impl Door {
    /// Takes the port; `key` is its setting.
    pub(crate) fn take(
        key: &'static str,
        address: SocketAddr,
        dialect: Dialect,
    ) -> io::Result<Self> {
        let taken = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // As every server: a restart finds the port free though old connections linger.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, key, address, dialect })
        };
        taken().map_err(|error| cannot_bind(key, address, &error))
    }

    /// Accepts until the program stops, then gives every connection a moment to end.
    pub(crate) fn open(
        self,
        room: Room,
        house: Arc<House>,
        ids: Arc<AtomicU64>,
    ) -> io::Result<task::JoinHandle<()>> {
        let Self { socket, key, address, dialect } = self;
        let listener =
            socket.listen(DOOR_BACKLOG).map_err(|error| cannot_bind(key, address, &error))?;
        Ok(tokio::spawn(serve(listener, room, house, ids, dialect)))
    }
}

/// What the system says of an address that cannot be had, with the key of the configuration to change.
pub fn cannot_bind(key: &str, address: SocketAddr, error: &io::Error) -> io::Error {
    let why = match error.kind() == io::ErrorKind::AddrInUse {
        true => "another program has this port: stop it, or change",
        false => "choose another with",
    };
    io::Error::new(error.kind(), format!("{key} {address}: {error}; {why} {key}"))
}

async fn serve(
    listener: TcpListener,
    room: Room,
    house: Arc<House>,
    ids: Arc<AtomicU64>,
    dialect: Dialect,
) {
    let mut inside = Inside::default();
    let mut tasks: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            () = house.shutdown.cancelled() => break,
            Some(ended) = tasks.join_next_with_id() => inside.left(ended, &house),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if let Err(why) = inside.enter(peer, room) {
                        debug!(%peer, why, "a connection is refused");
                        let why = why.to_owned();
                        // Those who knock are not waited for: beyond the queue they are not counted.
                        let _ = house.core.try_send(FromDevice::Refused { peer, why, count: 1 });
                        continue;
                    }
                    let (id, house) = (ids.fetch_add(1, Ordering::Relaxed), Arc::clone(&house));
                    let task = match dialect {
                        Dialect::V2 => tasks.spawn(sv2::serve(stream, peer, id, house)),
                        Dialect::V1 => tasks.spawn(sv1::serve(stream, peer, id, house)),
                    };
                    inside.tasks.insert(task.id(), (id, peer));
                }
                // Out of file descriptors, or a device gone before its turn: the next may do better.
                Err(error) => {
                    warn!(%error, "accept failed");
                    sleep(DOOR_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = timeout(DEVICES_DRAIN, all).await;
}

/// Who is in, by address and by task.
#[derive(Debug, Default)]
struct Inside {
    by_address: HashMap<IpAddr, usize>,
    tasks: HashMap<task::Id, (u64, SocketAddr)>,
}

impl Inside {
    /// Or why not.
    fn enter(&mut self, peer: SocketAddr, room: Room) -> Result<(), &'static str> {
        let here = self.by_address.get(&peer.ip()).copied().unwrap_or(0);
        if self.tasks.len() >= room.connections_max {
            return Err("every place is taken: see devices.max_connections");
        }
        if here >= room.per_address_max {
            return Err(
                "its address has all of its places: see devices.max_connections_per_address",
            );
        }
        self.by_address.insert(peer.ip(), here + 1);
        Ok(())
    }

    /// A task has ended, by a panic too: its place is free again.
    fn left(&mut self, ended: Result<(task::Id, ()), task::JoinError>, house: &House) {
        let task = ended.as_ref().map_or_else(task::JoinError::id, |(id, ())| *id);
        let Some((id, peer)) = self.tasks.remove(&task) else { return };
        if let Err(error) = ended {
            tracing::error!(%peer, %error, "a device's task failed; every other goes on");
            // It did not say good-bye itself.
            let why = "its task failed".to_owned();
            let _ = house.core.try_send(FromDevice::Gone(id, peer, why));
        }
        if let Some(here) = self.by_address.get_mut(&peer.ip()) {
            *here -= 1;
            if *here == 0 {
                self.by_address.remove(&peer.ip());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_beyond_the_room_of_an_address_or_of_the_door_is_refused() {
        let room = Room { connections_max: 3, per_address_max: 2 };
        let peer = |ip: u8, port| SocketAddr::from(([10, 0, 0, ip], port));
        let mut inside = Inside::default();
        inside.enter(peer(1, 1), room).unwrap();
        inside.enter(peer(1, 2), room).unwrap();
        assert!(inside.enter(peer(1, 3), room).unwrap_err().contains("per_address"));
        inside.enter(peer(2, 1), room).unwrap();
    }
}
