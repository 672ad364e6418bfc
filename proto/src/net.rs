//! A `Connection` on a TCP stream: the only file that names a socket. Called by the task that owns a
//! link. It moves bytes and nothing else: what they say is `connection.rs`, deadlines are the caller's
//! (`tokio::time::timeout` around any of these; none loses a byte when it is dropped but the handshakes,
//! which take the stream with them).

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::connection::{Connection, Violation};
use crate::limits::{ACT_ONE_LEN, ACT_TWO_LEN, CLOSING_READ_MAX, READ_MAX};
use crate::noise::{
    AuthorityPublicKey, EphemeralSecret, Identity, Initiator, NoiseError, Responder, Transport,
};

/// A link that is of no more use.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The socket failed, or ended inside the handshake.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
}

impl From<NoiseError> for LinkError {
    fn from(error: NoiseError) -> Self {
        Self::Violation(error.into())
    }
}

/// An encrypted link over TCP.
pub struct Link {
    stream: TcpStream,
    connection: Connection,
}

impl Link {
    /// The server's side of the handshake. Bytes that an eager client sent behind act 1 stay in the
    /// socket and are the start of its first frame.
    pub async fn accept(
        mut stream: TcpStream,
        identity: &Identity,
        ephemeral: EphemeralSecret,
    ) -> Result<Self, LinkError> {
        let act_one = Self::act_one(&mut stream).await?;
        let (act_two, transport) = Responder::new(identity, ephemeral).step(&act_one)?;
        Self::answer(stream, &act_two, transport).await
    }

    /// The first half of `accept`, for a server that computes `Responder::step` somewhere else.
    pub async fn act_one(stream: &mut TcpStream) -> Result<[u8; ACT_ONE_LEN], LinkError> {
        stream.set_nodelay(true)?;
        let mut act_one = [0; ACT_ONE_LEN];
        stream.read_exact(&mut act_one).await?;
        Ok(act_one)
    }

    /// The second half: what `Responder::step` gave.
    pub async fn answer(
        mut stream: TcpStream,
        act_two: &[u8; ACT_TWO_LEN],
        transport: Transport,
    ) -> Result<Self, LinkError> {
        stream.write_all(act_two).await?;
        Ok(Self { stream, connection: Connection::new(transport) })
    }

    /// The client's side of the handshake. `authority` is the key the server must be certified by;
    /// `None` accepts whoever answers and is for tests only.
    pub async fn connect(
        mut stream: TcpStream,
        authority: Option<&AuthorityPublicKey>,
        ephemeral: EphemeralSecret,
        now_unix: u32,
    ) -> Result<Self, LinkError> {
        stream.set_nodelay(true)?;
        let (initiator, act_one) = Initiator::new(ephemeral);
        stream.write_all(&act_one).await?;
        let mut act_two = [0; ACT_TWO_LEN];
        stream.read_exact(&mut act_two).await?;
        let transport = initiator.finish(&act_two, authority, now_unix)?;
        Ok(Self { stream, connection: Connection::new(transport) })
    }

    /// Both directions, to take frames from and to send messages into.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Waits for bytes, at most `READ_MAX` of them, and feeds them; 0 when the peer has closed. Call it
    /// when `Inbound::next_frame` has given `None`. Cancel safe.
    pub async fn fill(&mut self) -> Result<usize, LinkError> {
        let Self { stream, connection } = self;
        let count = poll_fn(|context| {
            // On the stack of one poll: the task does not carry it while it waits.
            let mut scratch = [MaybeUninit::uninit(); READ_MAX];
            let mut read = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
            connection.inbound.feed(read.filled());
            Poll::Ready(io::Result::Ok(read.filled().len()))
        });
        Ok(count.await?)
    }

    /// Writes all that is pending. Cancel safe: what was written stays counted.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        while self.write_some().await? {}
        Ok(())
    }

    /// Writes as much of what is pending as the socket takes at once; `true` if something is left.
    pub fn write_now(&mut self) -> Result<bool, LinkError> {
        let Self { stream, connection: Connection { outbound, .. } } = self;
        while !outbound.pending().is_empty() {
            match stream.try_write(outbound.pending()) {
                Ok(count) => outbound.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        if outbound.is_over() {
            return Err(NoiseError::SessionOver.into());
        }
        Ok(false)
    }

    /// One write of what is pending: waits until the peer takes a part of it. `true` while something is
    /// left, so that a deadline can be put around each step and not around a slow peer's whole flush.
    /// Cancel safe.
    pub async fn write_some(&mut self) -> Result<bool, LinkError> {
        let Self { stream, connection: Connection { outbound, .. } } = self;
        if !outbound.pending().is_empty() {
            let pending = outbound.pending();
            let count = poll_fn(|context| Pin::new(&mut *stream).poll_write(context, pending));
            let count = count.await?;
            outbound.advance(count);
        }
        if outbound.is_over() {
            return Err(NoiseError::SessionOver.into());
        }
        Ok(!outbound.pending().is_empty())
    }

    /// Writes all that is pending, says that nothing follows, and waits for the peer to close, so that
    /// a last message (SetupConnection.Error, rule S8) is read and not reset away. Put a deadline
    /// around it: a peer may never close.
    pub async fn close_after_flush(mut self) -> Result<(), LinkError> {
        self.flush().await?;
        self.stream.shutdown().await?;
        let mut dropped = 0;
        while dropped < CLOSING_READ_MAX {
            self.stream.readable().await?;
            let mut scratch = [0; READ_MAX];
            match self.stream.try_read(&mut scratch) {
                Ok(0) => return Ok(()),
                Ok(count) => dropped += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
