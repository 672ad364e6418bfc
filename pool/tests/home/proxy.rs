//! A way between a house and a pool that can be cut in several manners.

#![allow(clippy::unwrap_used, reason = "builders outside a #[test] fail it just as well")]

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// How the way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// Every connection is cut, and each new one at once.
    Cut,
    /// What is sent is taken and goes nowhere; nothing comes back. New connections too.
    BlackHole,
    /// Each piece takes this long.
    Slow(u64),
}

/// See above.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Proxy {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (way, seen) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, target, seen.clone()));
            }
        });
        Self { address, way }
    }

    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// One connection, both directions of it.
async fn pass(near: TcpStream, target: SocketAddr, way: watch::Receiver<Way>) {
    if *way.borrow() == Way::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        () = carry(near_in, far_out, way.clone()) => {}
        () = carry(far_in, near_out, way) => {}
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
) {
    let mut bytes = vec![0; 16 * 1024];
    let mut fell_in = false;
    loop {
        let now = *way.borrow_and_update();
        if now == Way::Cut || (fell_in && now == Way::Open) {
            // What fell into the hole is lost: the stream has no meaning any more.
            return;
        }
        tokio::select! {
            changed = way.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            read = from.read(&mut bytes) => {
                let Ok(count @ 1..) = read else { return };
                let now = *way.borrow();
                match now {
                    Way::Cut => return,
                    Way::BlackHole => {
                        fell_in = true;
                        continue;
                    }
                    Way::Slow(ms) => sleep(Duration::from_millis(ms)).await,
                    Way::Open => {}
                }
                if to.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
