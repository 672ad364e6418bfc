//! Turns at what is scarce and room for what is large, both bounded in all and for one household, so that
//! nobody has all of either. Taken by `checks` for every declaration.
//!
//! Must never lose a turn or a byte: what is taken comes back when its holder is dropped, also when its
//! task panics or is given up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    _of_all: OwnedSemaphorePermit,
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
        let counter = self.counter(household);
        // First its own: who waits behind his own household waits in nobody else's way.
        let of_household = acquire(&counter).await;
        Turn { _of_all: acquire(&self.all).await, _of_household: of_household, _counter: counter }
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

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.expect("no semaphore of turns is ever closed")
}

/// Room for so much, in all and for one household; the unit is its user's.
#[derive(Debug, Clone)]
pub struct Room {
    all_max: usize,
    of_household_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_household: HashMap<IpAddr, usize>,
}

/// A part of the room, until it is dropped.
#[derive(Debug)]
pub struct Held {
    room: Room,
    household: IpAddr,
    amount: usize,
}

impl Room {
    /// All of it free.
    #[must_use]
    pub fn new(all_max: usize, of_household_max: usize) -> Self {
        Self { all_max, of_household_max, taken: Arc::default() }
    }

    /// Takes so much; `None`, and nothing is taken, if there is not enough.
    #[must_use]
    pub fn take(&self, household: IpAddr, amount: usize) -> Option<Held> {
        let mut taken = unpoisoned(&self.taken);
        let before = taken.by_household.get(&household).copied().unwrap_or(0);
        let total = taken.total.checked_add(amount).filter(|sum| *sum <= self.all_max)?;
        let own = before.checked_add(amount).filter(|sum| *sum <= self.of_household_max)?;
        taken.total = total;
        taken.by_household.insert(household, own);
        Some(Held { room: self.clone(), household, amount })
    }

    /// How much is taken in all.
    #[must_use]
    pub fn taken(&self) -> usize {
        unpoisoned(&self.taken).total
    }
}

impl Held {
    /// Gives back what is held beyond this amount.
    pub fn shrink_to(&mut self, amount: usize) {
        let surplus = self.amount.saturating_sub(amount);
        self.amount -= surplus;
        let mut taken = unpoisoned(&self.room.taken);
        taken.total = taken.total.saturating_sub(surplus);
        if let Some(own) = taken.by_household.get_mut(&self.household) {
            *own = own.saturating_sub(surplus);
            if *own == 0 {
                taken.by_household.remove(&self.household);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink_to(0);
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
        let home = room.take(HOME, 6).unwrap();
        assert!(room.take(HOME, 1).is_none(), "one beyond a household's");
        let farm = room.take(FARM, 4).unwrap();
        assert!(room.take(FARM, 1).is_none(), "one beyond all");
        assert_eq!(room.taken(), 10);
        let mut home = home;
        home.shrink_to(4);
        home.shrink_to(5);
        assert_eq!(room.taken(), 8);
        assert!(room.take(HOME, 3).is_none() && room.take(HOME, 2).is_some());
        drop(home);
        assert!(room.take(FARM, 2).is_some() && room.take(FARM, usize::MAX).is_none());
        drop(farm);
        assert_eq!(room.taken(), 0);
        assert!(unpoisoned(&room.taken).by_household.is_empty());
    }

    #[test]
    fn a_task_that_panics_gives_back_what_it_held() {
        let room = Room::new(1, 1);
        let held = room.take(HOME, 1).unwrap();
        let task = std::thread::spawn(move || {
            let _held = held;
            panic!("as a bug would");
        });
        assert!(task.join().is_err());
        assert!(room.take(FARM, 1).is_some());
    }
}
