//! A Stratum V1 device's connection: lines on the socket, `sv1::Session` between them and the mining server.
//! Part of `device.rs`.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::limits::FRAME_HEADER_LEN;
use proto::message::{FrameHeader, Message, Received, Tlvs};
use proto::mining::server::Input;
use proto::mining::{Now, Owner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use super::{Device, Dialect, End, House, Names, is_plain_text};
use crate::limits::{DEVICE_WRITE_STALL, SV1_READ_MAX};
use crate::sv1::{Out, Session, Terms};

/// Serves one connection.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, id: u64, house: Arc<House>) {
    // An answer of some bytes must not wait for the next; a link that is gone says so itself.
    let _ = stream.set_nodelay(true);
    let mut first = [0; FIRST_LOOK];
    let peek = timeout(house.handshake_deadline, stream.peek(&mut first));
    match house.shutdown.run_until_cancelled(peek).await {
        Some(Ok(Ok(count @ 1..))) if speaks_v2(&first[..count]) => {
            let why = "it speaks Stratum V2 on the port for V1: see devices.sv2_address";
            return house.refused(peer, why.to_owned()).await;
        }
        Some(Ok(Ok(1..))) => {}
        Some(Err(_)) => {
            let why = format!("it said nothing for {} s", house.handshake_deadline.as_secs());
            return house.refused(peer, why).await;
        }
        // A probe.
        Some(Ok(Ok(0) | Err(_))) | None => return,
    }
    let terms = Terms { shares_per_minute: house.policy.shares_per_minute, ..Terms::default() };
    let session = Session::new(terms, house.clock.now());
    let device = Device::new(house, peer, id, Dialect::V1, 0, Names::default());
    let mut connection = Box::new(Sv1 { stream, session, device, lines: Vec::new() });
    let end = connection.run().await;
    connection.device.finish(&end).await;
}

/// What a Stratum V2 device says first: a key of so many bytes, which look random.
const FIRST_LOOK: usize = 64;

/// Lines of JSON begin with a brace and are UTF-8, as far as they are here; whatever else a person might type is
/// plain text. A key begins with a brace, too, once in 256.
fn speaks_v2(first: &[u8]) -> bool {
    let is_utf8 = str::from_utf8(first).map_or_else(|error| error.error_len().is_none(), |_| true);
    let is_json = first.starts_with(b"{") && is_utf8;
    !is_json && !is_plain_text(first)
}

/// What it is called among the house's devices: the worker's part of its name, or all of it.
fn called(name: &str) -> Option<Arc<str>> {
    let Owner { account, worker } = Owner::of_identity(name.as_bytes())?;
    Some(if worker.is_empty() { account } else { worker })
}

struct Sv1 {
    stream: TcpStream,
    session: Session,
    device: Device,
    /// Said and not yet sent.
    lines: Vec<u8>,
}

enum Event {
    Bytes(Box<[u8; SV1_READ_MAX]>, usize),
    Work,
    Time,
}

impl Sv1 {
    async fn run(&mut self) -> End {
        let mut event = Event::Time;
        loop {
            let applied = self.apply(event).await;
            // A last word says why.
            let flushed = self.flush().await;
            let next = match applied.and(flushed) {
                Ok(()) => self.next().await,
                Err(end) => Err(end),
            };
            match next {
                Ok(next) => event = next,
                Err(end) => return end,
            }
        }
    }

    /// Only waits.
    async fn next(&mut self) -> Result<Event, End> {
        let due_ms = self.device.deadline_ms();
        let due_ms = self.session.deadline_ms().map_or(due_ms, |session| session.min(due_ms));
        let due = self.device.house.clock.instant(due_ms);
        let mut bytes = Box::new([0; SV1_READ_MAX]);
        tokio::select! {
            biased;
            changed = self.device.work.changed() => {
                changed.map(|()| Event::Work).map_err(|_| End::Stopping)
            }
            () = self.device.house.shutdown.cancelled() => Err(End::Stopping),
            read = self.stream.read(&mut bytes[..]), if self.session.takes_more() => match read? {
                0 => Err(End::Eof),
                count => Ok(Event::Bytes(bytes, count)),
            },
            () = sleep_until(due) => Ok(Event::Time),
        }
    }

    async fn apply(&mut self, event: Event) -> Result<(), End> {
        let now = self.device.house.clock.now();
        let mut out = Out::default();
        let fed = match event {
            Event::Bytes(bytes, count) => self.session.feed(now, &bytes[..count], &mut out),
            Event::Work => {
                self.device.on_work(now)?;
                Ok(())
            }
            Event::Time => Ok(()),
        };
        self.session.time(now, &mut out);
        self.device.keep_time(now)?;
        let asked = self.ask(now, out).await;
        self.learn_its_name();
        self.device.refused_early = self.session.refused();
        if let Some(agent) =
            self.session.user_agent().filter(|_| self.device.names.vendor.is_empty())
        {
            self.device.names.vendor = agent.to_owned();
        }
        fed?;
        asked
    }

    /// Requests to the server and its words to the device, until neither has any.
    async fn ask(&mut self, now: Now, mut out: Out) -> Result<(), End> {
        loop {
            self.lines.append(&mut out.lines);
            for request in std::mem::take(&mut out.requests) {
                self.device.hear(now, request.message(), Tlvs::NONE)?;
            }
            let Device { server, out: said, .. } = &mut self.device;
            server.handle(now, Input::BurstEnd, said)?;
            // Shares are handed in at once, each a batch of one: old devices send few.
            server.close_batch(said);
            self.learn_its_name();
            self.device.carry_out().await?;
            let frames = std::mem::take(&mut self.device.out.frames);
            if frames.is_empty() {
                return Ok(());
            }
            self.hear(now, &frames, &mut out)?;
        }
    }

    /// Later names change nothing.
    fn learn_its_name(&mut self) {
        if self.device.worker.is_none() {
            self.device.worker = self.session.worker().and_then(called);
        }
    }

    /// Our own server's frames, in clear.
    fn hear(&mut self, now: Now, mut frames: &[u8], out: &mut Out) -> Result<(), End> {
        while let Some((head, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*head);
            let Some((payload, after)) = rest.split_at_checked(header.length) else { break };
            frames = after;
            let decoded = Message::decode(header.extension(), header.msg_type, payload);
            if let Ok(Received::Known(message, _)) = decoded {
                let heard = self.session.hear(now, &message, out);
                if heard.is_err() {
                    self.lines.append(&mut out.lines);
                }
                heard?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), End> {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() {
            return Ok(());
        }
        match timeout(DEVICE_WRITE_STALL, self.stream.write_all(&lines)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(End::Stalled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_a_line_also_where_it_begins_with_a_brace() {
        let mut key = [0x9a; FIRST_LOOK];
        assert!(speaks_v2(&key));
        key[0] = b'{';
        assert!(speaks_v2(&key));
        for line in ["{", "{\"id\":1,\"params\":[\"Küche\"]}\n", "no json\r\n"] {
            assert!(!speaks_v2(line.as_bytes()), "{line}");
        }
        let cut = "{\"params\":[\"Kü".as_bytes();
        assert!(!speaks_v2(&cut[..cut.len() - 1]), "in the middle of a letter");
    }
}
