//! A Stratum V2 device's connection, from handshake to good-bye. Part of `device.rs`.
//!
//! Waiting, acting and writing are apart: `next` only waits, `apply` only acts, then effects are carried out and
//! all that was said goes out in one write.

use std::net::SocketAddr;
use std::sync::Arc;

use proto::connection::{Connection, Setup, SetupMachine, SetupStep, Violation};
use proto::message::{EXTENSION_WORKER_HASHRATE, Message, Received};
use proto::mining::Now;
use proto::mining::server::Input;
use proto::net::{Link, LinkError};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use super::{Device, Dialect, End, House, Names, is_plain_text};
use crate::keys::ephemeral;
use crate::limits::{DEVICE_GOODBYE, DEVICE_WRITE_STALL};

/// Serves one connection.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, id: u64, house: Arc<House>) {
    let greet = timeout(house.handshake_deadline, Box::pin(greet(stream, peer, id, &house)));
    let greeted = match house.shutdown.run_until_cancelled(greet).await {
        Some(Ok(Ok(greeted))) => greeted,
        // A bare connect and close is how devices look whether their first pool is back.
        Some(Ok(Err(NotGreeted::Probe))) => return,
        Some(Ok(Err(NotGreeted::Why(why)))) => return house.refused(peer, why).await,
        Some(Ok(Err(NotGreeted::Told(why, link)))) => {
            house.refused(peer, why).await;
            // It may read why; whether it did is its business.
            let _ = timeout(DEVICE_GOODBYE, link.close_after_flush()).await;
            return;
        }
        Some(Err(_)) => {
            let limit_s = house.handshake_deadline.as_secs();
            let why = format!("it did not say what it wants within {limit_s} s");
            return house.refused(peer, why).await;
        }
        None => return,
    };
    let mut connection = greeted;
    let end = connection.run().await;
    connection.device.finish(&end).await;
}

enum NotGreeted {
    Probe,
    Why(String),
    /// It is told why, and then hung up on.
    Told(String, Box<Link>),
}

impl From<LinkError> for NotGreeted {
    fn from(error: LinkError) -> Self {
        Self::Why(error.to_string())
    }
}

impl From<Violation> for NotGreeted {
    fn from(error: Violation) -> Self {
        Self::Why(error.to_string())
    }
}

/// Handshake and SetupConnection.
async fn greet(
    stream: TcpStream,
    peer: SocketAddr,
    id: u64,
    house: &Arc<House>,
) -> Result<Box<Sv2>, NotGreeted> {
    let mut first = [0; 16];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(NotGreeted::Probe),
        Ok(count) if speaks_v1(&first[..count]) => {
            let why = "it speaks Stratum V1 on the port for V2: see devices.sv1_address";
            return Err(NotGreeted::Why(why.to_owned()));
        }
        Ok(_) => {}
    }
    let identity = Arc::clone(&house.identity.borrow());
    let ephemeral = ephemeral().map_err(|error| NotGreeted::Why(error.to_string()))?;
    let mut link = Link::accept(stream, &identity, ephemeral).await.map_err(|error| {
        NotGreeted::Why(format!("{error}: is its authority key the one of this program?"))
    })?;
    let mut machine = SetupMachine::new(house.setup);
    let mut frames = Vec::new();
    loop {
        let Connection { inbound, outbound } = link.connection();
        let Some(frame) = inbound.next_frame()? else {
            if link.fill().await? == 0 {
                let why = "it left before it was set up: is its authority key right?";
                return Err(NotGreeted::Why(why.to_owned()));
            }
            continue;
        };
        let received = frame.message()?;
        let names = names_of(&received);
        let step = machine.receive(received, &mut frames)?;
        outbound.send_frames(&frames);
        match step {
            SetupStep::Agreed(setup) => {
                inbound.set_limit(setup.client_payload_max());
                link.flush().await?;
                return Ok(Box::new(Sv2::new(link, machine, setup, names, (peer, id), house)));
            }
            SetupStep::Refused(refusal) => {
                let why = refusal.error_code.printable();
                return Err(NotGreeted::Told(why, Box::new(link)));
            }
            SetupStep::Negotiated | SetupStep::Discarded | SetupStep::Pass(_) => frames.clear(),
        }
    }
}

/// What a Stratum V1 device says first is a line of JSON. No key of 64 random bytes begins so.
fn speaks_v1(first: &[u8]) -> bool {
    first.len() >= V1_LOOK_MIN && first.starts_with(b"{") && is_plain_text(first)
}

/// Bytes from which that can be told.
const V1_LOOK_MIN: usize = 8;

fn names_of(received: &Received<'_>) -> Names {
    let Received::Known(Message::SetupConnection(setup), _) = received else {
        return Names::default();
    };
    Names {
        vendor: setup.vendor.printable(),
        hardware: setup.hardware_version.printable(),
        firmware: setup.firmware.printable(),
    }
}

struct Sv2 {
    link: Link,
    machine: SetupMachine,
    device: Device,
}

enum Event {
    Bytes,
    Work,
    Time,
}

impl Sv2 {
    fn new(
        link: Link,
        machine: SetupMachine,
        setup: Setup,
        names: Names,
        (peer, id): (SocketAddr, u64),
        house: &Arc<House>,
    ) -> Self {
        let house = Arc::clone(house);
        let device = Device::new(house, peer, id, Dialect::V2, setup.flags, names);
        Self { link, machine, device }
    }

    async fn run(&mut self) -> End {
        // Frames may stand in the buffer already, behind SetupConnection.
        let mut event = Event::Bytes;
        loop {
            let step = async {
                self.apply(&event)?;
                self.device.carry_out().await?;
                self.flush().await?;
                self.next().await
            };
            match step.await {
                Ok(next) => event = next,
                Err(end) => return end,
            }
        }
    }

    /// Only waits.
    async fn next(&mut self) -> Result<Event, End> {
        let due = self.device.house.clock.instant(self.device.deadline_ms());
        tokio::select! {
            biased;
            changed = self.device.work.changed() => {
                changed.map(|()| Event::Work).map_err(|_| End::Stopping)
            }
            () = self.device.house.shutdown.cancelled() => Err(End::Stopping),
            filled = self.link.fill() => match filled? {
                0 => Err(End::Eof),
                _ => Ok(Event::Bytes),
            },
            () = sleep_until(due) => Ok(Event::Time),
        }
    }

    /// Only acts.
    fn apply(&mut self, event: &Event) -> Result<(), End> {
        let now = self.device.house.clock.now();
        match event {
            Event::Bytes => self.take_frames(now)?,
            Event::Work => self.device.on_work(now)?,
            Event::Time => {}
        }
        self.device.keep_time(now)
    }

    /// Every whole frame that has arrived. They are one read's, so the batch that they make is bounded by that.
    fn take_frames(&mut self, now: Now) -> Result<(), End> {
        loop {
            let Connection { inbound, .. } = self.link.connection();
            let Some(frame) = inbound.next_frame().map_err(LinkError::from)? else { break };
            let received = frame.message().map_err(LinkError::from)?;
            match self.machine.receive(received, &mut self.device.out.frames)? {
                SetupStep::Pass(Received::Known(message, tlvs)) => {
                    self.device.hear(now, message, tlvs)?;
                }
                SetupStep::Pass(Received::UnknownCore(number)) => {
                    return Err(Violation::UnknownMessage(number).into());
                }
                SetupStep::Negotiated => {
                    let negotiated = self.machine.has_extension(EXTENSION_WORKER_HASHRATE);
                    self.device.server.set_worker_hashrate(negotiated);
                }
                SetupStep::Pass(Received::UnknownExtension(_))
                | SetupStep::Discarded
                | SetupStep::Agreed(_)
                | SetupStep::Refused(_) => {}
            }
        }
        let Device { server, out, .. } = &mut self.device;
        Ok(server.handle(now, Input::BurstEnd, out)?)
    }

    /// One write for all that was said. A device that does not read is dropped.
    async fn flush(&mut self) -> Result<(), End> {
        let frames = std::mem::take(&mut self.device.out.frames);
        self.link.connection().outbound.send_frames(&frames);
        if !self.link.write_now()? {
            return Ok(());
        }
        while timeout(DEVICE_WRITE_STALL, self.link.write_some())
            .await
            .map_err(|_| End::Stalled)??
        {}
        Ok(())
    }
}
