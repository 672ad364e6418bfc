//! Opening, updating and closing channels. Part of `mining::server`.

use super::{Effect, GROUP, Outbox, Server};
use crate::connection::Violation;
use crate::limits::{DECLARE_RATE_EVERY_MS, DIFFICULTY_LOG2_MAX, OPEN_EVERY_MS, OPENS_BURST};
use crate::message::{
    OpenExtendedMiningChannel, OpenExtendedMiningChannelSuccess, OpenMiningChannelError,
    OpenStandardMiningChannel, OpenStandardMiningChannelSuccess, UpdateChannel, UpdateChannelError,
    setup_flags,
};
use crate::mining::channel::Channel;
use crate::mining::{ChannelId, Kind, Now, Owner};
use crate::target::{Difficulty, Target};
use crate::vardiff::{Vardiff, VardiffPolicy};
use crate::wire::{B032, Str0255};

/// What both open messages ask.
struct Asked<'a> {
    kind: Kind,
    user_identity: Str0255<'a>,
    nominal_hash_rate: f32,
    max_target: [u8; 32],
    min_extranonce_size: u16,
}

impl Server {
    pub(super) fn open_standard(
        &mut self,
        now: Now,
        open: &OpenStandardMiningChannel<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let asked = Asked {
            kind: Kind::Standard,
            user_identity: open.user_identity,
            nominal_hash_rate: open.nominal_hash_rate,
            max_target: open.max_target,
            min_extranonce_size: 0,
        };
        let opened = self.open(now, open.request_id, &asked, out)?;
        let Some(id) = opened else { return Ok(()) };
        let Some(channel) = self.channels.get(&id) else { return Ok(()) };
        // In a house the job has the rest in the coinbase prefix that the group is sent.
        let extranonce = &channel.prefix.standard()[self.extranonces.layout().lead_len()..];
        out.say(OpenStandardMiningChannelSuccess {
            request_id: open.request_id,
            channel_id: id.0,
            target: channel.vardiff.difficulty().target().to_le_bytes(),
            extranonce_prefix: B032::new(extranonce)
                .expect("EXTRANONCE_LEN is at most 32, asserted in limits.rs"),
            group_channel_id: GROUP.0,
        });
        self.introduce(now, id, out);
        Ok(())
    }

    pub(super) fn open_extended(
        &mut self,
        now: Now,
        open: &OpenExtendedMiningChannel<'_>,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        let asked = Asked {
            kind: Kind::Extended,
            user_identity: open.user_identity,
            nominal_hash_rate: open.nominal_hash_rate,
            max_target: open.max_target,
            min_extranonce_size: open.min_extranonce_size,
        };
        let opened = self.open(now, open.request_id, &asked, out)?;
        let Some(id) = opened else { return Ok(()) };
        let Some(channel) = self.channels.get(&id) else { return Ok(()) };
        out.say(OpenExtendedMiningChannelSuccess {
            request_id: open.request_id,
            channel_id: id.0,
            target: channel.vardiff.difficulty().target().to_le_bytes(),
            extranonce_size: self.extranonces.layout().rollable_len() as u16,
            extranonce_prefix: B032::new(channel.prefix.as_bytes())
                .expect("a prefix is a part of EXTRANONCE_LEN, at most 32 by limits.rs"),
            group_channel_id: GROUP.0,
        });
        self.introduce(now, id, out);
        Ok(())
    }

    /// The new channel's id; `None` once the refusal is said.
    fn open(
        &mut self,
        now: Now,
        request_id: u32,
        asked: &Asked<'_>,
        out: &mut Outbox,
    ) -> Result<Option<ChannelId>, Violation> {
        if self.policy.bad_floats_end_connection && !is_rate(asked.nominal_hash_rate) {
            return Err(Violation::BadFloat("nominal_hash_rate"));
        }
        let opened = match self.may_open(now) {
            true => self.channel_for(now, asked),
            false => Err("channel-capacity-exhausted"),
        };
        match opened {
            Ok(channel) => {
                let id = ChannelId(self.next_channel);
                self.next_channel += 1;
                self.channels.insert(id, channel);
                out.effects.push(Effect::Opened(id));
                Ok(Some(id))
            }
            Err(code) => {
                let error_code = Str0255::text(code);
                out.say(OpenMiningChannelError { request_id, error_code });
                out.effects.push(Effect::OpenRefused(code));
                Ok(None)
            }
        }
    }

    /// Takes one from the connection's budget of opens, which fills up again over time.
    fn may_open(&mut self, now: Now) -> bool {
        let refilled = now.mono_ms.saturating_sub(self.opens_counted_ms) / OPEN_EVERY_MS;
        self.opens_counted_ms += refilled * OPEN_EVERY_MS;
        self.opens_left = self.opens_left.saturating_add(refilled).min(OPENS_BURST);
        let may = self.opens_left > 0;
        self.opens_left = self.opens_left.saturating_sub(1);
        may
    }

    fn channel_for(&self, now: Now, asked: &Asked<'_>) -> Result<Channel, &'static str> {
        let requires = |flag| self.flags & flag != 0;
        match asked.kind {
            Kind::Standard if requires(setup_flags::REQUIRES_WORK_SELECTION) => {
                return Err("standard-channels-not-supported-for-custom-work");
            }
            Kind::Extended if requires(setup_flags::REQUIRES_STANDARD_JOBS) => {
                return Err("extended-channels-not-supported-for-standard-jobs");
            }
            Kind::Standard | Kind::Extended => {}
        }
        let owner =
            Owner::of_identity(asked.user_identity.as_slice()).ok_or("invalid-user-identity")?;
        if !is_rate(asked.nominal_hash_rate) {
            return Err("invalid-nominal-hashrate");
        }
        let easiest = self.easiest_for(asked.max_target).ok_or("max-target-out-of-range")?;
        if usize::from(asked.min_extranonce_size) > self.extranonces.layout().rollable_len() {
            return Err("min-extranonce-size-too-large");
        }
        // Channel ids are not reused, so their end is also a bound on what one connection may open.
        if self.channels.len() >= self.channels_max || self.next_channel == u32::MAX {
            return Err("channel-capacity-exhausted");
        }
        let prefix = self.extranonces.allocate().ok_or("channel-capacity-exhausted")?;
        let policy = VardiffPolicy {
            shares_per_minute: self.policy.shares_per_minute,
            floor: self.policy.floor,
            ceiling: self.ceiling,
        };
        let vardiff = Vardiff::new(policy, asked.nominal_hash_rate, easiest, now.mono_ms);
        Ok(Channel::new(asked.kind, owner, prefix, vardiff, now.mono_ms, &self.given))
    }

    /// The easiest difficulty that a client's limit allows; `None` if no difficulty of ours is within
    /// it (rule P4).
    fn easiest_for(&self, max_target: [u8; 32]) -> Option<Difficulty> {
        Difficulty::easiest_within(Target::from_le_bytes(max_target))
            .filter(|easiest| easiest.log2() <= DIFFICULTY_LOG2_MAX)
    }

    /// Nothing is said when an update is accepted, but a target that must get harder is (rules P14,
    /// P15).
    pub(super) fn on_update(
        &mut self,
        now: Now,
        update: &UpdateChannel,
        out: &mut Outbox,
    ) -> Result<(), Violation> {
        if self.policy.bad_floats_end_connection && !is_rate(update.nominal_hash_rate) {
            return Err(Violation::BadFloat("nominal_hash_rate"));
        }
        let id = ChannelId(update.channel_id);
        let easiest = self.easiest_for(update.maximum_target);
        let checked = match (self.channels.get_mut(&id), easiest) {
            (None, _) => Err("invalid-channel-id"),
            (Some(_), _) if !is_rate(update.nominal_hash_rate) => Err("invalid-nominal-hashrate"),
            (Some(_), None) => Err("max-target-out-of-range"),
            (Some(channel), Some(easiest)) => Ok((channel, easiest)),
        };
        let (channel, easiest) = match checked {
            Ok(checked) => checked,
            Err(code) => {
                let error_code = Str0255::text(code);
                out.say(UpdateChannelError { channel_id: id.0, error_code });
                return Ok(());
            }
        };
        let before = channel.vardiff.difficulty();
        if now.mono_ms >= channel.declared_at_ms.saturating_add(DECLARE_RATE_EVERY_MS) {
            channel.declared_at_ms = now.mono_ms;
            channel.vardiff.declare(update.nominal_hash_rate);
        }
        channel.vardiff.limit(easiest);
        if channel.vardiff.difficulty() != before {
            self.announce_target(now, id, out);
        }
        Ok(())
    }

    /// A group's id closes every member (rule P13). Shares already accepted stay credited; nothing
    /// more is said about them.
    pub(super) fn on_close(&mut self, id: ChannelId, out: &mut Outbox) {
        let closed: Vec<ChannelId> = if id == GROUP {
            self.channels.keys().copied().collect()
        } else {
            self.channels.keys().copied().filter(|channel| *channel == id).collect()
        };
        for id in closed {
            if let Some(channel) = self.channels.remove(&id) {
                out.effects.push(Effect::Closed(id, channel.owner));
            }
        }
        self.early.retain(|share| self.channels.contains_key(&share.channel()));
    }
}

/// A finite number that is not negative, nor the negative zero (rule G13).
fn is_rate(rate: f32) -> bool {
    rate.is_finite() && rate.is_sign_positive()
}
