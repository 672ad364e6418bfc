//! One link to a pool: dialled, shaken hands on with the pool's key pinned, then bytes both ways. Spawned by
//! `run.rs` for each link that the declarator asks for; what is said on it is the declarator's business.
//!
//! Must never go on with a peer that is not certified by the key in the owner's settings.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::connection::Connection;
use proto::limits::{DECLARE_SERVER_PAYLOAD_MAX, MINING_SERVER_PAYLOAD_MAX};
use proto::message::FrameHeader;
use proto::net::{Link, LinkError};
use proto::noise::AuthorityPublicKey;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::clock::unix_s;
use crate::declarator::{End, LinkId};
use crate::keys::ephemeral;
use crate::limits::{LINK_CONNECT_MAX, LINK_FLUSH_MAX, LINK_WRITE_STALL};

/// What a link tells the declarator's task.
#[derive(Debug)]
pub(crate) enum FromLink {
    /// Hands are shaken.
    Up(LinkId),
    /// A frame, in clear.
    Frame(LinkId, FrameHeader, Vec<u8>),
    /// It could not be made or has ended, with why.
    Down(LinkId, String),
    /// The pool does not take what it is sent.
    Stalled(LinkId),
}

/// Where a link leads.
#[derive(Debug, Clone)]
pub(crate) struct Goal {
    pub(crate) link: LinkId,
    /// `host:port`.
    pub(crate) address: String,
    /// The pool's.
    pub(crate) authority: AuthorityPublicKey,
    /// The address is not of the owner's settings: the pool asked for it.
    pub(crate) is_asked_for: bool,
}

/// Until the link ends or `frames` does, which is how it is hung up.
pub(crate) async fn run(
    goal: Goal,
    mut frames: mpsc::Receiver<Vec<u8>>,
    core: mpsc::Sender<FromLink>,
) {
    let id = goal.link;
    let said = match serve(&goal, &mut frames, &core).await {
        Ok(()) => return,
        Err(Ended::Stalled) => FromLink::Stalled(id),
        Err(Ended::Down(why)) => FromLink::Down(id, why),
    };
    // The declarator's task may have ended.
    let _ = core.send(said).await;
}

enum Ended {
    Down(String),
    Stalled,
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Self {
        Self::Down(format!("the connection was lost: {error}"))
    }
}

async fn serve(
    goal: &Goal,
    frames: &mut mpsc::Receiver<Vec<u8>>,
    core: &mpsc::Sender<FromLink>,
) -> Result<(), Ended> {
    let mut link = tokio::select! {
        link = connect(goal) => link.map_err(Ended::Down)?,
        // Hung up before it was up. Nothing is said on a link that is not.
        _ = frames.recv() => return Ok(()),
    };
    link.connection().inbound.set_limit(match goal.link.end {
        End::Mining => MINING_SERVER_PAYLOAD_MAX,
        End::Declare => DECLARE_SERVER_PAYLOAD_MAX,
    });
    let hung_up = |_| Ended::Down("the program is stopping".to_owned());
    core.send(FromLink::Up(goal.link)).await.map_err(hung_up)?;
    loop {
        let Connection { inbound, .. } = link.connection();
        if let Some(frame) = inbound.next_frame().map_err(LinkError::from)? {
            let said = FromLink::Frame(goal.link, frame.header, frame.payload.to_vec());
            core.send(said).await.map_err(hung_up)?;
            continue;
        }
        tokio::select! {
            biased;
            said = frames.recv() => {
                let Some(said) = said else { return Ok(()) };
                link.connection().outbound.send_frames(&said);
                while let Ok(more) = frames.try_recv() {
                    link.connection().outbound.send_frames(&more);
                }
                flush(&mut link).await?;
            }
            filled = link.fill() => {
                if filled? == 0 {
                    return Err(Ended::Down("the pool closed the connection".to_owned()));
                }
            }
        }
    }
}

async fn connect(goal: &Goal) -> Result<Link, String> {
    let Goal { address, authority, .. } = goal;
    let within = |what: &'static str, limit: Duration| {
        move |_| format!("no {what} within {} s from {address}", limit.as_secs())
    };
    let stream = timeout(LINK_CONNECT_MAX, dial(goal)).await;
    let stream = stream.map_err(within("connection", LINK_CONNECT_MAX))?;
    let stream = stream.map_err(|error| format!("no connection to {address}: {error}"))?;
    let ephemeral = ephemeral().map_err(|error| error.to_string())?;
    let shaken = Link::connect(stream, Some(authority), ephemeral, unix_s());
    let shaken = timeout(LINK_CONNECT_MAX, shaken).await;
    let shaken = shaken.map_err(within("handshake", LINK_CONNECT_MAX))?;
    shaken.map_err(|error| match error {
        LinkError::Violation(why) => format!(
            "the handshake with {address} failed: {why}. Is its authority_key the one that the pool shows?"
        ),
        LinkError::Io(error) => format!("the handshake with {address} failed: {error}"),
    })
}

/// Nobody outside has a say in what is dialled at home.
async fn dial(goal: &Goal) -> io::Result<TcpStream> {
    if !goal.is_asked_for {
        return TcpStream::connect(&goal.address).await;
    }
    let found: Vec<SocketAddr> = lookup_host(&goal.address).await?.collect();
    if found.iter().any(|address| is_at_home(address.ip())) {
        let why = "the pool asks for an address in your own network: not followed";
        return Err(io::Error::other(why));
    }
    TcpStream::connect(&found[..]).await
}

fn is_at_home(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified()
        }
        IpAddr::V6(v6) => {
            v6.is_unique_local()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
        }
    }
}

async fn flush(link: &mut Link) -> Result<(), Ended> {
    let written = async {
        while timeout(LINK_WRITE_STALL, link.write_some()).await.map_err(|_| Ended::Stalled)?? {}
        Ok(())
    };
    timeout(LINK_FLUSH_MAX, written).await.map_err(|_| Ended::Stalled)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_at_home_is_known_in_each_of_its_forms() {
        let home = [
            "192.168.1.1",
            "10.9.8.7",
            "172.16.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00::1",
            "::",
            "::ffff:192.168.1.1",
        ];
        for address in home {
            assert!(is_at_home(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "2001:db8::1", "::ffff:1.1.1.1"] {
            assert!(!is_at_home(address.parse().unwrap()), "{address}");
        }
    }
}
