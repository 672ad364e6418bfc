//! A way to cut one route of a found block in a test and leave the rest as it is: a relay between a client and
//! a pool of ours that ends the encryption on both sides, with the pool's own keys, and leaves out the
//! frames that it is told to. Used by the program `relay`, for `scripts/interop`.
//!
//! It can only stand before a pool whose key file it is given. The pool and the client are the shipped ones:
//! neither has a switch for this.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::ValueEnum;
use proto::connection::Frame;
use proto::limits::FRAME_PAYLOAD_MAX;
use proto::net::Link;
use proto::noise::{AuthorityPublicKey, EphemeralSecret, Identity};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// Clients at once: a declarator and its reconnects.
const CLIENTS_MAX: usize = 16;
/// Events that wait to be read; what comes beyond is not told.
const EVENTS_MAX: usize = 1_024;
/// For a handshake, and for one flush.
const STEP_MAX: Duration = Duration::from_secs(20);

/// A message of a client's that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum Left {
    /// A block's way over Job Declaration.
    PushSolution,
    /// A block's way as a share; all shares are left out, for a relay cannot know which are blocks.
    SubmitSharesExtended,
}

impl Left {
    /// Extension, without the channel bit, and number.
    #[must_use]
    pub fn kind(self) -> (u16, u8) {
        match self {
            Self::PushSolution => (0x0000, 0x60),
            Self::SubmitSharesExtended => (0x0000, 0x1b),
        }
    }

    /// The message's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PushSolution => "PushSolution",
            Self::SubmitSharesExtended => "SubmitSharesExtended",
        }
    }
}

/// Which of `out` a frame is, if it is one.
#[must_use]
pub fn left_out(frame: &Frame<'_>, out: &[Left]) -> Option<Left> {
    let kind = (frame.header.extension(), frame.header.msg_type);
    out.iter().copied().find(|left| left.kind() == kind)
}

/// Where a relay stands.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// The pool's port.
    pub to: SocketAddr,
    /// The pool's own.
    pub identity: Identity,
    /// What does not pass from the client to the pool.
    pub out: Vec<Left>,
}

/// Binds a port of 127.0.0.1, and relays as long as the runtime lives. Each message left out is told.
///
/// # Errors
/// No port.
pub async fn serve(options: RelayOptions) -> Result<(SocketAddr, mpsc::Receiver<Left>)> {
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let listener = TcpListener::bind(any).await.context("a port for the relay")?;
    let address = listener.local_addr().context("the relay's port")?;
    let (tell, told) = mpsc::channel(EVENTS_MAX);
    let (options, places) = (Arc::new(options), Arc::new(Semaphore::new(CLIENTS_MAX)));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (options, tell) = (Arc::clone(&options), tell.clone());
            tokio::spawn(async move {
                // Either end may leave at any time; the other is left, too, and says why itself.
                let _ = relay(stream, &options, &tell).await;
                drop(place);
            });
        }
    });
    Ok((address, told))
}

async fn relay(stream: TcpStream, options: &RelayOptions, tell: &mpsc::Sender<Left>) -> Result<()> {
    let RelayOptions { to, identity, out } = options;
    let mut client = timeout(STEP_MAX, Link::accept(stream, identity, ephemeral()?)).await??;
    let mut pool = timeout(STEP_MAX, dial(*to, &identity.authority)).await??;
    for link in [&mut client, &mut pool] {
        link.connection().inbound.set_limit(FRAME_PAYLOAD_MAX);
    }
    let mut passed = Vec::new();
    loop {
        let (from, to, out) = tokio::select! {
            filled = client.fill() => match filled? {
                0 => return Ok(()),
                _ => (&mut client, &mut pool, out.as_slice()),
            },
            filled = pool.fill() => match filled? {
                0 => return Ok(()),
                _ => (&mut pool, &mut client, &[][..]),
            },
        };
        while let Some(frame) = from.connection().inbound.next_frame()? {
            if let Some(left) = left_out(&frame, out) {
                // Nobody has to listen.
                let _ = tell.try_send(left);
                continue;
            }
            passed.extend_from_slice(&frame.header.encode());
            passed.extend_from_slice(frame.payload);
        }
        to.connection().outbound.send_frames(&passed);
        passed.clear();
        timeout(STEP_MAX, to.flush()).await??;
    }
}

async fn dial(to: SocketAddr, authority: &AuthorityPublicKey) -> Result<Link> {
    let stream = TcpStream::connect(to).await.context("the pool")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    Ok(Link::connect(stream, Some(authority), ephemeral()?, now).await?)
}

/// Fresh secrets for one handshake.
fn ephemeral() -> Result<EphemeralSecret> {
    let mut random = [[0; 32]; 2];
    getrandom::fill(random.as_flattened_mut()).context("randomness")?;
    Ok(EphemeralSecret::new(random[0], random[1])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::message::{
        CHANNEL_BIT, FrameHeader, Message, PushSolution, SubmitSharesExtended, SubmitSharesStandard,
    };
    use proto::wire::B032;

    fn left(message: impl Into<Message<'static>>, out: &[Left]) -> Option<Left> {
        let mut bytes = Vec::new();
        message.into().encode(&mut bytes);
        let (header, payload) = bytes.split_first_chunk().unwrap();
        left_out(&Frame { header: FrameHeader::decode(*header), payload }, out)
    }

    #[test]
    fn what_is_named_is_left_out_and_nothing_else() {
        let extranonce = B032::default();
        let (prev_hash, nonce, ntime, nbits, version) = ([0; 32], 0, 0, 0, 0);
        let solution = PushSolution { extranonce, prev_hash, nonce, ntime, nbits, version };
        let (channel_id, sequence_number, job_id) = (1, 1, 1);
        let extended = SubmitSharesExtended {
            channel_id,
            sequence_number,
            job_id,
            nonce,
            ntime,
            version,
            extranonce,
        };
        let standard =
            SubmitSharesStandard { channel_id, sequence_number, job_id, nonce, ntime, version };
        let both = [Left::PushSolution, Left::SubmitSharesExtended];
        assert_eq!(left(solution, &both), Some(Left::PushSolution));
        assert_eq!(left(extended, &both), Some(Left::SubmitSharesExtended));
        assert_eq!(left(extended, &both[..1]), None);
        assert_eq!(left(standard, &both), None);
        assert_eq!(left(solution, &[]), None);
        assert_eq!(Message::from(extended).kind(), (CHANNEL_BIT, 0x1b));
    }
}
