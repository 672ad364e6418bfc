//! A miner without a socket, for tests of the server: a `Client`, its outbox, and a search that ends
//! at once because test targets are easy. Frames go in and come out as bytes in clear.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses some of these")]

use std::sync::Arc;

use proto::connection::Violation;
use proto::limits::FRAME_HEADER_LEN;
use proto::message::{FrameHeader, Message, Received, Tlvs};
use proto::mining::client::{Client, ClientOptions, Event, Found, Work};
use proto::mining::grind::Grinder;
use proto::target::Target;
use proto::wire::B032;

/// Nonces that a search may take: a target of one hash in 100,000 is still met in all likelihood.
const SEARCH_MAX: u64 = 1 << 20;

/// Finds a share for `work` with the rolled bytes `rolled` (as many as the work wants) at or below
/// `target`, trying nonces from `from` on.
pub fn find_nonce(work: &Work, rolled: &[u8], target: Target, from: u32) -> Option<Found> {
    let extranonce = B032::new(rolled).expect("rolled bytes are at most 32");
    let version = work.version_with(0);
    let nonces = (u64::from(from), u64::from(from) + SEARCH_MAX);
    let mut grinder = Grinder::new(work, extranonce, work.min_ntime, version, nonces);
    std::iter::from_fn(|| grinder.run(SEARCH_MAX))
        .find(|found| target.is_met_by(&header_hash(work, found)))
}

/// Hash of the header that a share claims.
pub fn header_hash(work: &Work, found: &Found) -> [u8; 32] {
    let mut header = work.header(found.extranonce.as_slice());
    (header.nonce, header.ntime, header.version) = (found.nonce, found.ntime, found.version);
    header.hash()
}

/// A client with what it has said and what it was told.
pub struct TestMiner {
    /// The machine.
    pub client: Client,
    /// Frames in clear that were said and not yet taken.
    pub out: Vec<u8>,
    /// Everything that happened, in order.
    pub events: Vec<Event>,
    /// The miner's clock.
    pub now_ms: u64,
    next_nonce: u32,
}

impl TestMiner {
    /// Says SetupConnection.
    pub fn new(options: ClientOptions) -> Self {
        let mut miner = Self {
            client: Client::new(options),
            out: Vec::new(),
            events: Vec::new(),
            now_ms: 0,
            next_nonce: 0,
        };
        miner.client.start(&mut miner.out);
        miner
    }

    /// Hears whole frames in clear, as a server's outbox has them.
    pub fn hear(&mut self, mut frames: &[u8]) -> Result<(), Violation> {
        while let Some((header, rest)) = frames.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*header);
            let (payload, rest) = rest.split_at(header.length);
            frames = rest;
            let received = Message::decode(header.extension(), header.msg_type, payload)?;
            if let Received::Known(message, tlvs) = received {
                self.hear_message(message, tlvs)?;
            }
        }
        Ok(())
    }

    /// Hears one message.
    pub fn hear_message(&mut self, message: Message<'_>, tlvs: Tlvs<'_>) -> Result<(), Violation> {
        let event = self.client.handle(self.now_ms, message, tlvs, &mut self.out)?;
        self.events.extend(event);
        Ok(())
    }

    /// Takes what was said since the last time.
    pub fn said(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// The work to do now.
    pub fn work(&self) -> Arc<Work> {
        self.client.work().expect("the server gave work")
    }

    /// Finds a share that was not found before, at the work's own target.
    pub fn find(&mut self) -> (Arc<Work>, Found) {
        let work = self.work();
        let rolled = vec![0; work.extranonce_size];
        let found = find_nonce(&work, &rolled, work.target, self.next_nonce)
            .expect("targets of tests are easy");
        self.next_nonce = found.nonce.wrapping_add(1);
        (work, found)
    }

    /// Finds and says a share; its sequence number.
    pub fn mine(&mut self) -> u32 {
        let (work, found) = self.find();
        self.client.submit(&work, found, &mut self.out).expect("the channel is open")
    }
}
