//! The doors for devices, one for Stratum V2 and one for V1: started by `run.rs`, open once there is work. Who comes
//! in has a task of his own (`accept.rs`).
//!
//! Must never wait for a device, nor for those who hear of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{self, JoinSet};
use tokio::time::timeout;

use crate::accept::{Full, Guests, Room, accept};
use crate::device::{Dialect, FromDevice, House, sv1, sv2};
use crate::limits::{DEVICES_DRAIN, DOOR_BACKLOG};

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
        Ok(tokio::spawn(serve(listener, room, Devices { house, dialect }, ids)))
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

async fn serve(listener: TcpListener, room: Room, devices: Devices, ids: Arc<AtomicU64>) {
    let mut tasks = accept(listener, room, &devices, &ids, &devices.house.shutdown).await;
    let all = async { while tasks.join_next().await.is_some() {} };
    let _ = timeout(DEVICES_DRAIN, all).await;
}

/// Who comes in at one of the doors. An address is a household: a proxy may bring several connections.
struct Devices {
    house: Arc<House>,
    dialect: Dialect,
}

impl Guests for Devices {
    fn turned_away(&self, peer: SocketAddr, full: Full) {
        let why = match full {
            Full::All => "every place is taken: see devices.max_connections",
            Full::Household => {
                "its address has all of its places: see devices.max_connections_per_address"
            }
        };
        let why = why.to_owned();
        // Beyond the queue they are not counted.
        let _ = self.house.core.try_send(FromDevice::Refused { peer, why, count: 1 });
    }

    fn serve(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        connection: u64,
        tasks: &mut JoinSet<()>,
    ) -> task::Id {
        let house = Arc::clone(&self.house);
        let task = match self.dialect {
            Dialect::V2 => tasks.spawn(sv2::serve(stream, peer, connection, house)),
            Dialect::V1 => tasks.spawn(sv1::serve(stream, peer, connection, house)),
        };
        task.id()
    }

    fn failed(&self, connection: u64, peer: SocketAddr) {
        // It did not say good-bye itself.
        let why = "its task failed".to_owned();
        let _ = self.house.core.try_send(FromDevice::Gone(connection, peer, why));
    }
}
