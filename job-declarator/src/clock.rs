//! The clock that machines are told. Started once by a program; tasks read it and hand the time on. The one
//! place that asks the system for it, beside what needs the calendar alone (`unix_s`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::mining::Now;
use tokio::time::Instant;

/// The clock that machines are told.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Counts from now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono_ms: self.start.elapsed().as_millis() as u64, unix_s: unix_s() }
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
