//! The open channels of one connection, by id. Used by `server`, which gives ids in ascending order; so a
//! list is in order by itself, and of one channel, as most connections have, it is 16 bytes where a map's
//! first node has room for eleven.

use crate::mining::ChannelId;
use crate::mining::channel::Channel;

/// In ascending order of ids.
#[derive(Debug, Default)]
pub(super) struct Channels(Vec<(ChannelId, Box<Channel>)>);

impl Channels {
    fn position(&self, id: &ChannelId) -> Result<usize, usize> {
        self.0.binary_search_by_key(id, |(id, _)| *id)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains_key(&self, id: &ChannelId) -> bool {
        self.position(id).is_ok()
    }

    pub(super) fn get(&self, id: &ChannelId) -> Option<&Channel> {
        let at = self.position(id).ok()?;
        self.0.get(at).map(|(_, channel)| &**channel)
    }

    pub(super) fn get_mut(&mut self, id: &ChannelId) -> Option<&mut Channel> {
        let at = self.position(id).ok()?;
        self.0.get_mut(at).map(|(_, channel)| &mut **channel)
    }

    /// What was there of this id is gone.
    pub(super) fn insert(&mut self, id: ChannelId, channel: Channel) {
        if self.0.is_empty() {
            self.0.reserve_exact(1);
        }
        match self.position(&id) {
            Ok(at) => *self.0[at].1 = channel,
            Err(at) => self.0.insert(at, (id, Box::new(channel))),
        }
    }

    pub(super) fn remove(&mut self, id: &ChannelId) -> Option<Box<Channel>> {
        let at = self.position(id).ok()?;
        Some(self.0.remove(at).1)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ChannelId> {
        self.0.iter().map(|(id, _)| id)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Channel> {
        self.0.iter().map(|(_, channel)| &**channel)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Channel> {
        self.0.iter_mut().map(|(_, channel)| &mut **channel)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelId, &Channel)> {
        self.0.iter().map(|(id, channel)| (id, &**channel))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ChannelId, &mut Channel)> {
        self.0.iter_mut().map(|(id, channel)| (&*id, &mut **channel))
    }
}
