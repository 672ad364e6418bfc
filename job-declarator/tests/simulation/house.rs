//! A device of the simulation: the mining server that stands before it in the house, and the device itself,
//! which finds a share when it is told to.

use std::sync::Arc;

use job_declarator::declarator::Published;
use proto::extranonce::ExtranonceAllocator;
use proto::message::setup_flags;
use proto::mining::client::{ChannelKind, Client, ClientOptions, Work};
use proto::mining::grind::Grinder;
use proto::mining::server::{Effect, Input, Outbox, Policy, Server};
use proto::mining::{Committed, CreditGroup, Now};
use proto::target::Difficulty;
use proto::wire::B032;

use super::pool::{decode, frames};

/// A device may have heard so late of its newest job.
const LATE_MAX_MS: u64 = 5_000;

pub struct Device {
    server: Server,
    client: Client,
    published: Published,
    /// What it did before, which a device is late with for some seconds.
    before: Option<Arc<Work>>,
    published_ms: u64,
    nonce: u64,
}

impl Device {
    pub fn new(
        now: Now,
        name: &str,
        extranonces: &ExtranonceAllocator,
        published: &Published,
    ) -> Self {
        let policy = Policy {
            floor: Difficulty::MIN,
            ceiling: Difficulty::from_log2(-31),
            ..Policy::default()
        };
        let flags = setup_flags::REQUIRES_VERSION_ROLLING;
        let active = Arc::clone(&published.active);
        let mut server = Server::new(Arc::new(policy), flags, extranonces.clone(), active, now);
        let mut out = Outbox::default();
        server.set_ceiling(published.ceiling, now, &mut out);
        let kind = ChannelKind::Extended { min_extranonce_size: 8 };
        let mut client = Client::new(ClientOptions::new(kind, &format!("house.{name}")));
        let mut said = Vec::new();
        client.start(&mut said);
        let success = proto::message::SetupConnectionSuccess { used_version: 2, flags: 0 };
        said.clear();
        client.handle(0, success.into(), proto::message::Tlvs::NONE, &mut said).unwrap();
        let published = published.clone();
        let mut device =
            Self { server, client, published, before: None, published_ms: now.mono_ms, nonce: 0 };
        device.say(now, &said);
        device
    }

    /// Other work, or another ceiling.
    pub fn publish(&mut self, now: Now, published: &Published) -> Vec<CreditGroup> {
        let mut out = Outbox::default();
        if published.ceiling != self.published.ceiling {
            self.server.set_ceiling(published.ceiling, now, &mut out);
        }
        if !Arc::ptr_eq(&published.active, &self.published.active) {
            self.before = self.client.work();
            self.published_ms = now.mono_ms;
            let active = Arc::clone(&published.active);
            self.server.handle(now, Input::Template(active), &mut out).unwrap();
            self.server.handle(now, Input::BurstEnd, &mut out).unwrap();
        }
        self.published = published.clone();
        self.take(now, out)
    }

    /// A share is found; of the work before, perhaps, if the device is `late`.
    pub fn find(&mut self, now: Now, late: bool) -> Vec<CreditGroup> {
        let mut groups = Vec::new();
        if self.server.deadline_ms() <= now.mono_ms {
            let mut out = Outbox::default();
            self.server.handle(now, Input::Time, &mut out).unwrap();
            groups.extend(self.take(now, out));
        }
        let late = late && now.mono_ms < self.published_ms + LATE_MAX_MS;
        let work =
            if late { self.before.clone().or(self.client.work()) } else { self.client.work() };
        let Some(work) = work else { return groups };
        let rolled = B032::new(&[7; 8]).unwrap();
        let nonces = (self.nonce, self.nonce + 4_096);
        let mut grinder = Grinder::new(&work, rolled, work.min_ntime, work.version_with(0), nonces);
        let found = grinder.run(4_096);
        self.nonce = grinder.position();
        let Some(found) = found else { return groups };
        let mut said = Vec::new();
        self.client.submit(&work, found, &mut said).unwrap();
        groups.extend(self.say(now, &said));
        groups
    }

    fn say(&mut self, now: Now, said: &[u8]) -> Vec<CreditGroup> {
        let mut out = Outbox::default();
        for (header, payload) in frames(said) {
            let (message, tlvs) = decode(header, payload);
            self.server.handle(now, Input::Message(message, tlvs), &mut out).unwrap();
        }
        self.server.handle(now, Input::BurstEnd, &mut out).unwrap();
        self.server.close_batch(&mut out);
        self.take(now, out)
    }

    fn take(&mut self, now: Now, mut out: Outbox) -> Vec<CreditGroup> {
        let mut groups = Vec::new();
        while !out.effects.is_empty() {
            for effect in std::mem::take(&mut out.effects) {
                if let Effect::Credit(batch) = effect {
                    let committed = Committed { id: batch.id, duplicates: Vec::new() };
                    self.server.handle(now, Input::Committed(committed), &mut out).unwrap();
                    groups.extend(batch.groups);
                }
            }
        }
        let mut said = Vec::new();
        for (header, payload) in frames(&out.frames) {
            let (message, tlvs) = decode(header, payload);
            self.client.handle(now.mono_ms, message, tlvs, &mut said).unwrap();
        }
        assert!(said.is_empty());
        groups
    }
}
