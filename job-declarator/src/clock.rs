//! The clock that machines are told. Started once by a program; tasks read it and hand the time on. The one
//! place that asks the system for it, beside what needs the calendar alone (`unix_s`).

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::mining::Now;
use tokio::time::Instant;

use crate::limits::CLOCK_OFF_MAX_S;

/// The clock that machines are told.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// Seconds by which the calendar is set right.
    off_s: &'static AtomicI32,
}

impl Clock {
    /// Counts from now.
    #[must_use]
    pub fn start() -> Self {
        // For as long as the program, whose every task has one.
        Self { start: Instant::now(), off_s: Box::leak(Box::default()) }
    }

    /// What a Bitcoin node says the time is: where this computer's calendar is far from it, the node's counts, for
    /// it is the one that blocks are held against. By how many seconds ours was ahead, if it was told anew.
    #[must_use]
    pub fn heed(&self, node_s: u32) -> Option<i32> {
        let ahead = i64::from(unix_s()) - i64::from(node_s);
        let ahead = i32::try_from(ahead).unwrap_or(if ahead < 0 { i32::MIN } else { i32::MAX });
        let is_off = ahead.unsigned_abs() > CLOCK_OFF_MAX_S;
        let off = if is_off { ahead.saturating_neg() } else { 0 };
        let before = self.off_s.swap(off, Ordering::Relaxed);
        // A template is a moment old when it is heard of.
        (before.abs_diff(off) > CLOCK_OFF_MAX_S / 2).then_some(-off)
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Now {
        let unix_s = unix_s().saturating_add_signed(self.off_s.load(Ordering::Relaxed));
        Now { mono_ms: self.start.elapsed().as_millis() as u64, unix_s }
    }

    /// The moment that a machine names, for timers.
    #[must_use]
    pub fn instant(&self, mono_ms: u64) -> Instant {
        // Deadlines are hours away at most; one that is beyond all reckoning is thirty years from the start.
        self.start + Duration::from_millis(mono_ms.min(30 * 365 * 86_400_000))
    }
}

/// Seconds since 1970; a clock before that or after 2106 reads as the nearest end.
#[must_use]
pub fn unix_s() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_heeded_only_where_its_time_is_far_from_ours() {
        let clock = Clock::start();
        let near = |ours: u32, theirs: u32| ours.abs_diff(theirs) <= 2;
        assert_eq!(clock.heed(unix_s() - CLOCK_OFF_MAX_S + 2), None);
        assert!(near(clock.now().unix_s, unix_s()));

        let ahead = clock.heed(unix_s() - 3 * 3_600).unwrap();
        assert!(near(ahead as u32, 3 * 3_600));
        assert!(near(clock.now().unix_s, unix_s() - 3 * 3_600));
        assert_eq!(clock.heed(unix_s() - 3 * 3_600 - 5), None, "it was told");

        let behind = clock.heed(unix_s() + 600).unwrap();
        assert!(near(behind.unsigned_abs(), 600) && behind < 0);
        assert_eq!(clock.heed(unix_s()), Some(0), "it is right again");
        assert!(near(clock.now().unix_s, unix_s()));
        assert!(clock.heed(0).unwrap() > 0 && clock.heed(u32::MAX).unwrap() < 0);
    }
}
