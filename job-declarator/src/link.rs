//! One link to a pool: dialled, shaken hands on with the pool's key pinned, then bytes both ways. Spawned by
//! `run.rs` for each link that the declarator asks for; what is said on it is the declarator's business.
//!
//! Must never go on with a peer that is not certified by the key in the owner's settings.

use std::time::Duration;

use proto::connection::Connection;
use proto::limits::{DECLARE_SERVER_PAYLOAD_MAX, MINING_SERVER_PAYLOAD_MAX};
use proto::message::FrameHeader;
use proto::net::{Link, LinkError};
use proto::noise::AuthorityPublicKey;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::clock::unix_s;
use crate::declarator::{End, LinkId};
use crate::device::sv2::ephemeral;
use crate::limits::{LINK_CONNECT_MAX, LINK_WRITE_STALL};

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
    let stream = timeout(LINK_CONNECT_MAX, TcpStream::connect(address)).await;
    let stream = stream.map_err(within("connection", LINK_CONNECT_MAX))?;
    let stream = stream.map_err(|error| format!("no connection to {address}: {error}"))?;
    let shaken = Link::connect(stream, Some(authority), ephemeral()?, unix_s());
    let shaken = timeout(LINK_CONNECT_MAX, shaken).await;
    let shaken = shaken.map_err(within("handshake", LINK_CONNECT_MAX))?;
    shaken.map_err(|error| match error {
        LinkError::Violation(why) => format!(
            "the handshake with {address} failed: {why}. Is its authority_key the one that the pool shows?"
        ),
        LinkError::Io(error) => format!("the handshake with {address} failed: {error}"),
    })
}

async fn flush(link: &mut Link) -> Result<(), Ended> {
    while timeout(LINK_WRITE_STALL, link.write_some()).await.map_err(|_| Ended::Stalled)?? {}
    Ok(())
}
