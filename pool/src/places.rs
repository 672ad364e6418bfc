//! Places for channels: how many may be open in the whole pool and for one household. `run` makes the one
//! `Places`, each connection's task (`miner`) has a `Held` of it.
//!
//! Must never lose a place: what a connection holds comes back when it ends, also when its task panics.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::metrics::Metrics;

/// How many channels may be open.
#[derive(Debug, Clone, Copy)]
pub struct ChannelRoom {
    /// In all.
    pub channels_max: usize,
    /// From one household (`listener::household`).
    pub per_household_max: usize,
}

/// Which of the two limits is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// listen.max_channels.
    Pool,
    /// listen.max_channels_per_address.
    Household,
}

impl NoPlace {
    /// The key of the configuration that says so.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Pool => "listen.max_channels",
            Self::Household => "listen.max_channels_per_address",
        }
    }
}

/// All places. Touched when a channel is opened or closed and at no other time.
pub struct Places {
    room: ChannelRoom,
    taken: Mutex<Taken>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_household: HashMap<IpAddr, usize>,
}

impl Places {
    /// Nothing taken yet. Keeps the gauge of open channels.
    #[must_use]
    pub fn new(room: ChannelRoom, metrics: Arc<Metrics>) -> Self {
        Self { room, taken: Mutex::default(), metrics }
    }

    /// Nobody panics while it holds the lock, and if somebody did the counts would still be whole.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, household: IpAddr) -> Result<(), NoPlace> {
        let mut taken = self.taken();
        if taken.total >= self.room.channels_max {
            return Err(NoPlace::Pool);
        }
        let of_household = taken.by_household.get(&household).copied().unwrap_or(0);
        if of_household >= self.room.per_household_max {
            return Err(NoPlace::Household);
        }
        taken.by_household.insert(household, of_household + 1);
        taken.total += 1;
        self.metrics.channels_are(taken.total);
        Ok(())
    }

    fn give_back(&self, household: IpAddr, count: usize) {
        let mut taken = self.taken();
        taken.total = taken.total.saturating_sub(count);
        if let Some(held) = taken.by_household.get_mut(&household) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                taken.by_household.remove(&household);
            }
        }
        self.metrics.channels_are(taken.total);
    }
}

/// The places of one connection; dropping it gives them all back.
pub struct Held {
    places: Arc<Places>,
    household: IpAddr,
    count: usize,
}

impl Held {
    /// None yet, for a connection from this household.
    #[must_use]
    pub fn new(places: Arc<Places>, household: IpAddr) -> Self {
        Self { places, household, count: 0 }
    }

    /// Takes one more.
    ///
    /// # Errors
    /// The limit that is reached; nothing is taken.
    pub fn take(&mut self) -> Result<(), NoPlace> {
        self.places.take(self.household)?;
        self.count += 1;
        Ok(())
    }

    /// How many are held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Gives back what is held above `count`.
    pub fn keep(&mut self, count: usize) {
        let surplus = self.count.saturating_sub(count);
        if surplus > 0 {
            self.count -= surplus;
            self.places.give_back(self.household, surplus);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const FARM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn places(channels_max: usize, per_household_max: usize) -> Arc<Places> {
        let room = ChannelRoom { channels_max, per_household_max };
        Arc::new(Places::new(room, Arc::new(Metrics::new())))
    }

    fn held(places: &Arc<Places>, household: IpAddr, count: usize) -> Held {
        let mut held = Held::new(Arc::clone(places), household);
        (0..count).for_each(|_| held.take().unwrap());
        held
    }

    #[test]
    fn a_household_has_its_limit_over_all_its_connections_and_others_do_not_feel_it() {
        let places = places(100, 3);
        let (_one, mut other) = (held(&places, HOME, 2), held(&places, HOME, 1));
        assert_eq!(other.take(), Err(NoPlace::Household));
        assert_eq!(other.count(), 1);
        held(&places, FARM, 3);
    }

    #[test]
    fn the_pool_has_its_limit_over_all_households() {
        let places = places(3, 2);
        let (_home, mut farm) = (held(&places, HOME, 2), held(&places, FARM, 1));
        assert_eq!(farm.take(), Err(NoPlace::Pool));
    }

    #[test]
    fn what_is_kept_stays_and_the_rest_comes_back() {
        let places = places(3, 3);
        let mut home = held(&places, HOME, 3);
        home.keep(5);
        assert_eq!(home.count(), 3);
        home.keep(1);
        assert_eq!(home.count(), 1);
        let _more = held(&places, HOME, 2);
        assert_eq!(home.take(), Err(NoPlace::Pool));
    }

    #[test]
    fn a_task_that_panics_gives_back_its_places_and_nothing_of_it_is_remembered() {
        let places = places(2, 2);
        let theirs = held(&places, HOME, 2);
        let task = std::thread::spawn(move || {
            let _theirs = theirs;
            panic!("as a bug would");
        });
        assert!(task.join().is_err());
        assert_eq!(places.taken().total, 0);
        assert!(places.taken().by_household.is_empty());
        held(&places, HOME, 2);
    }
}
