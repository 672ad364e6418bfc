//! How fast a household is served with what is worth nothing: refused shares, and messages that are no
//! shares. Each `miner` task says what it was sent and is told how long its socket is to be left alone.
//!
//! Must never slow down a household whose shares are good, and never forget one that is in debt.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::limits::{WORTHLESS_BURST, WORTHLESS_EVERY_US, WORTHLESS_SWEEP_MS};

/// One for the pool.
#[derive(Debug, Default)]
pub struct Pace {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// When what a household was served is paid for, us; none that is.
    paid_us: HashMap<IpAddr, u64>,
    swept_ms: u64,
}

impl Pace {
    /// Books `worthless` messages of `household` at `now_ms` (mono) and gives the moment (mono, ms) from
    /// which the connection that sent them may be read again: `now_ms` while no more came than
    /// `WORTHLESS_BURST` and one in each `WORTHLESS_EVERY_US`.
    pub fn charge(&self, household: IpAddr, worthless: u32, now_ms: u64) -> u64 {
        // Nobody panics while it holds the lock, and if somebody did the books would still be whole.
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.sweep(now_ms);
        let now_us = now_ms.saturating_mul(1_000);
        let paid = books.paid_us.entry(household).or_insert(now_us);
        let cost = u64::from(worthless).saturating_mul(WORTHLESS_EVERY_US);
        *paid = (*paid).max(now_us).saturating_add(cost);
        let free = u64::from(WORTHLESS_BURST) * WORTHLESS_EVERY_US;
        now_ms.max(paid.saturating_sub(free) / 1_000)
    }
}

impl Books {
    /// Who has paid is forgotten, so there are as many as connected with nothing good in the last second,
    /// and those in debt.
    fn sweep(&mut self, now_ms: u64) {
        if now_ms < self.swept_ms.saturating_add(WORTHLESS_SWEEP_MS) {
            return;
        }
        self.swept_ms = now_ms;
        self.paid_us.retain(|_, paid| *paid > now_ms.saturating_mul(1_000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const PER_S: u64 = 1_000_000 / WORTHLESS_EVERY_US;

    #[test]
    fn a_burst_is_free_and_one_beyond_waits() {
        let pace = Pace::default();
        assert_eq!(pace.charge(HOME, WORTHLESS_BURST, 5_000), 5_000);
        let beyond = (1_000 / WORTHLESS_EVERY_US as u32).max(1);
        assert!(pace.charge(HOME, beyond, 5_000) > 5_000);
        assert_eq!(pace.charge(OTHER, WORTHLESS_BURST, 5_000), 5_000, "no debt of somebody else");
    }

    #[test]
    fn a_flood_gets_so_many_a_second_however_many_connections_send_it() {
        let pace = Pace::default();
        let mut ready = [0u64; 20];
        let mut served = 0;
        for now_ms in 0..10_000 {
            for from in &mut ready {
                if *from <= now_ms {
                    *from = pace.charge(HOME, 250, now_ms);
                    served += 250;
                }
            }
        }
        let allowed = u64::from(WORTHLESS_BURST) + 10 * PER_S;
        assert!(served + 250 >= allowed && served <= allowed + 20 * 250, "{served} of {allowed}");
    }

    #[test]
    fn a_farm_whose_devices_are_all_a_moment_late_never_waits() {
        let pace = Pace::default();
        // Two thousand devices at twelve shares a minute, all of them stale.
        for now_ms in (0..60_000).step_by(5) {
            assert_eq!(pace.charge(HOME, 2, now_ms), now_ms);
        }
    }

    #[test]
    fn who_has_paid_is_forgotten_and_who_has_not_is_not() {
        let pace = Pace::default();
        pace.charge(HOME, 1, 0);
        pace.charge(OTHER, WORTHLESS_BURST * 2, 0);
        pace.charge(OTHER, 1, WORTHLESS_SWEEP_MS);
        let books = pace.books.lock().unwrap();
        assert_eq!(books.paid_us.keys().collect::<Vec<_>>(), [&OTHER]);
    }

    #[test]
    fn numbers_beyond_all_reckoning_are_a_long_wait_and_no_panic() {
        let pace = Pace::default();
        assert!(pace.charge(HOME, u32::MAX, u64::MAX) >= u64::MAX / 2_000);
        assert!(pace.charge(HOME, u32::MAX, 0) > 0);
    }
}
