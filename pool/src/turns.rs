//! Turns at what is scarce and room for what is large, both bounded in all and for one household, so that
//! nobody has all of either. Taken by `checks` for every declaration.
//!
//! Must never lose a turn or a byte: what is taken comes back when its holder is dropped, also when its
//! task panics or is given up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// So many at once, in all and from one household. Whoever finds none waits; the one who waits the longest
/// is next. A clone is the same turns.
#[derive(Debug, Clone)]
pub struct Turns {
    all: Arc<Semaphore>,
    of_household: usize,
    households: Arc<Mutex<HashMap<IpAddr, Weak<Semaphore>>>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    of_all: Option<OwnedSemaphorePermit>,
    _of_household: OwnedSemaphorePermit,
    /// Kept so that all turns of one household are counted by one semaphore.
    _counter: Arc<Semaphore>,
}

impl Turns {
    /// At least one of each.
    #[must_use]
    pub fn new(all: usize, of_household: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all.max(1))),
            of_household: of_household.max(1),
            households: Arc::default(),
        }
    }

    /// Waits for a turn. Cancel safe.
    pub async fn take(&self, household: IpAddr) -> Turn {
        let mut turn = self.take_own(household).await;
        turn.of_all = Some(acquire(&self.all).await);
        turn
    }

    /// As `take`; `None` if there is none of all within so long. How long it waits for its own household is
    /// that one's doing.
    pub async fn take_within(&self, household: IpAddr, limit: Duration) -> Option<Turn> {
        let mut turn = self.take_own(household).await;
        turn.of_all = Some(timeout(limit, acquire(&self.all)).await.ok()?);
        Some(turn)
    }

    /// First its own: who waits behind his own household waits in nobody else's way.
    async fn take_own(&self, household: IpAddr) -> Turn {
        let counter = self.counter(household);
        let of_household = acquire(&counter).await;
        Turn { of_all: None, _of_household: of_household, _counter: counter }
    }

    fn counter(&self, household: IpAddr) -> Arc<Semaphore> {
        let mut households = unpoisoned(&self.households);
        if let Some(counter) = households.get(&household).and_then(Weak::upgrade) {
            return counter;
        }
        // Rows of those who are gone go when somebody comes.
        households.retain(|_, counter| counter.strong_count() > 0);
        let counter = Arc::new(Semaphore::new(self.of_household));
        households.insert(household, Arc::downgrade(&counter));
        counter
    }
}

impl Turn {
    /// Others may have it; only its household goes on having one fewer, until it is dropped.
    pub fn rest(&mut self) {
        self.of_all = None;
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.expect("no semaphore of turns is ever closed")
}

/// What names a thing that several may hold: a hash of it.
pub type Name = [u8; 32];

/// Room for so many bytes, in all and for one household. What several hold is counted once in all, and once
/// for each household that holds it: whoever goes leaves nobody with what was never charged to him.
#[derive(Debug, Clone)]
pub struct Room {
    all_max: usize,
    of_household_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: Count,
    by_household: HashMap<IpAddr, Count>,
}

/// What is held, each thing once.
#[derive(Debug, Default)]
struct Count {
    bytes: usize,
    things: HashMap<Name, Thing>,
}

#[derive(Debug)]
struct Thing {
    bytes: usize,
    holders: usize,
}

/// A part of the room, until it is dropped.
#[derive(Debug)]
pub struct Held {
    room: Room,
    household: IpAddr,
    alone: usize,
    things: Vec<Name>,
    charged: usize,
}

/// Bytes that a thing costs beside itself: its row in two tables. Its name with each holder is the holder's
/// own.
pub const THING_OVERHEAD: usize = 160;

impl Room {
    /// All of it free.
    #[must_use]
    pub fn new(all_max: usize, of_household_max: usize) -> Self {
        Self { all_max, of_household_max, taken: Arc::default() }
    }

    /// Takes so many bytes for what nobody else has, and for things that others may hold, each by its name
    /// and length; `None`, and nothing is taken, if there is not enough. No name may come twice.
    #[must_use]
    pub fn take(&self, household: IpAddr, alone: usize, things: &[(Name, usize)]) -> Option<Held> {
        let mut taken = unpoisoned(&self.taken);
        let Taken { all, by_household } = &mut *taken;
        let fits = |count: &Count, max: usize| {
            count.more(alone, things).checked_add(count.bytes).is_some_and(|sum| sum <= max)
        };
        let nothing = Count::default();
        let own = by_household.get(&household).unwrap_or(&nothing);
        let charged = own.more(alone, things);
        if !fits(all, self.all_max) || !fits(own, self.of_household_max) {
            return None;
        }
        all.add(alone, things);
        by_household.entry(household).or_default().add(alone, things);
        let things = things.iter().map(|(name, _)| *name).collect();
        Some(Held { room: self.clone(), household, alone, things, charged })
    }

    /// How much is taken in all.
    #[must_use]
    pub fn taken(&self) -> usize {
        unpoisoned(&self.taken).all.bytes
    }
}

impl Count {
    /// What these would add.
    fn more(&self, alone: usize, things: &[(Name, usize)]) -> usize {
        let new = things.iter().filter(|(name, _)| !self.things.contains_key(name));
        new.fold(alone, |sum, (_, len)| sum.saturating_add(*len).saturating_add(THING_OVERHEAD))
    }

    fn add(&mut self, alone: usize, things: &[(Name, usize)]) {
        self.bytes += alone;
        for (name, len) in things {
            let new = Thing { bytes: len + THING_OVERHEAD, holders: 0 };
            let thing = self.things.entry(*name).or_insert(new);
            if thing.holders == 0 {
                self.bytes += thing.bytes;
            }
            thing.holders += 1;
        }
    }

    fn remove(&mut self, alone: usize, things: &[Name]) {
        self.bytes -= alone;
        for name in things {
            let Some(thing) = self.things.get_mut(name) else { continue };
            thing.holders -= 1;
            if thing.holders == 0 {
                self.bytes -= thing.bytes;
                self.things.remove(name);
            }
        }
    }
}

impl Held {
    /// Bytes that its household was charged for it: what it did not hold before.
    #[must_use]
    pub fn charged(&self) -> usize {
        self.charged
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = unpoisoned(&self.room.taken);
        taken.all.remove(self.alone, &self.things);
        if let Some(own) = taken.by_household.get_mut(&self.household) {
            own.remove(self.alone, &self.things);
            if own.bytes == 0 {
                taken.by_household.remove(&self.household);
            }
        }
    }
}

/// Nobody panics while it holds one of these, and if somebody did the counts would still be whole.
fn unpoisoned<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const FARM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const GRID: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

    /// Whether a turn is there without waiting.
    async fn now(turns: &Turns, household: IpAddr) -> Option<Turn> {
        tokio::select! {
            biased;
            turn = turns.take(household) => Some(turn),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_household_never_has_all_turns_and_another_does_not_wait_for_it() {
        let turns = Turns::new(3, 2);
        let (one, _two) = (now(&turns, HOME).await.unwrap(), now(&turns, HOME).await.unwrap());
        assert!(now(&turns, HOME).await.is_none());
        let _farm = now(&turns, FARM).await.expect("there is one turn left");
        assert!(now(&turns, FARM).await.is_none(), "three are taken");
        drop(one);
        assert!(now(&turns, FARM).await.is_some());
    }

    #[tokio::test]
    async fn a_turn_that_rests_is_missed_by_its_household_alone() {
        let turns = Turns::new(2, 1);
        let mut held = now(&turns, HOME).await.unwrap();
        held.rest();
        assert!(now(&turns, HOME).await.is_none());
        let farm = now(&turns, FARM).await.unwrap();
        let _grid = now(&turns, GRID).await.unwrap();
        drop((held, farm));
        assert!(now(&turns, HOME).await.is_some());
    }

    #[tokio::test]
    async fn a_turn_that_was_given_up_while_it_was_waited_for_is_nobodys() {
        let turns = Turns::new(1, 1);
        let held = now(&turns, HOME).await.unwrap();
        assert!(now(&turns, HOME).await.is_none() && now(&turns, FARM).await.is_none());
        drop(held);
        assert!(now(&turns, FARM).await.is_some());
        assert_eq!(unpoisoned(&turns.households).len(), 1, "rows of the gone stay");
    }

    #[test]
    fn room_is_bounded_in_all_and_for_a_household_and_comes_back() {
        let room = Room::new(10, 6);
        let home = room.take(HOME, 6, &[]).unwrap();
        assert!(room.take(HOME, 1, &[]).is_none(), "one beyond a household's");
        let farm = room.take(FARM, 4, &[]).unwrap();
        assert!(room.take(FARM, 1, &[]).is_none(), "one beyond all");
        assert_eq!(room.taken(), 10);
        drop(home);
        assert_eq!(room.taken(), 4);
        assert!(room.take(FARM, 2, &[]).is_some() && room.take(FARM, usize::MAX, &[]).is_none());
        drop(farm);
        assert_eq!(room.taken(), 0);
        assert!(unpoisoned(&room.taken).by_household.is_empty());
    }

    #[test]
    fn what_several_hold_counts_once_in_all_and_once_for_each_household() {
        const LIST: (Name, usize) = ([1; 32], 1_000);
        const OTHER: (Name, usize) = ([2; 32], 500);
        let (list, other) = (LIST.1 + THING_OVERHEAD, OTHER.1 + THING_OVERHEAD);
        let room = Room::new(10_000, list + other + 20);
        let first = room.take(HOME, 10, &[LIST]).unwrap();
        let second = room.take(HOME, 10, &[LIST, OTHER]).unwrap();
        assert_eq!((first.charged(), second.charged()), (list + 10, other + 10));
        assert!(room.take(HOME, 1, &[LIST]).is_none(), "one byte beyond the household's");
        let farm = room.take(FARM, 10, &[LIST]).unwrap();
        assert_eq!(farm.charged(), list + 10, "it pays for what another holds, too");
        assert_eq!(room.taken(), list + other + 30);
        // Who came first goes; what the others hold of the same stays theirs.
        drop((first, second));
        assert_eq!(room.taken(), list + 10);
        let own = |household| unpoisoned(&room.taken).by_household.get(&household).map(|c| c.bytes);
        assert_eq!((own(HOME), own(FARM)), (None, Some(list + 10)));
        drop(farm);
        assert_eq!(room.taken(), 0);
        assert!(unpoisoned(&room.taken).all.things.is_empty());
    }

    #[test]
    fn a_task_that_panics_gives_back_what_it_held() {
        let room = Room::new(1, 1);
        let held = room.take(HOME, 1, &[]).unwrap();
        let task = std::thread::spawn(move || {
            let _held = held;
            panic!("as a bug would");
        });
        assert!(task.join().is_err());
        assert!(room.take(FARM, 1, &[]).is_some());
    }
}
