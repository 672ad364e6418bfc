//! Time as `compare` counts it: CPU time of this thread, so that a busy machine disturbs little, in
//! rounds that run every side in turn, so that what disturbs one side disturbs the others too.

use std::time::Duration;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of one operation, over all rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Of the fastest round.
    pub min: f64,
    /// Of the middle round: what ratios are judged by.
    pub median: f64,
}

impl Cost {
    /// A figure that was counted and not timed.
    #[must_use]
    pub fn exact(figure: f64) -> Self {
        Self { min: figure, median: figure }
    }

    /// So many times as much.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { min: self.min * factor, median: self.median * factor }
    }

    /// Of a figure in each round; not a number if there was none.
    #[must_use]
    pub fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let median = rounds.get(rounds.len() / 2).copied().unwrap_or(f64::NAN);
        Self { min: rounds.first().copied().unwrap_or(f64::NAN), median }
    }
}

/// CPU time that this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // A thread's CPU time is never negative and its nanoseconds are below a second.
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Nanoseconds of each of the `operations` that `work` does.
pub fn time(operations: usize, work: impl FnOnce()) -> f64 {
    let start = thread_cpu();
    work();
    thread_cpu().saturating_sub(start).as_nanos() as f64 / operations as f64
}

/// The same for work that ends at the first thing that is not as it should be.
///
/// # Errors
/// That of `work`.
pub fn try_time(operations: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let mut ended = Ok(());
    let figure = time(operations, || ended = work());
    ended.map(|()| figure)
}

/// Runs `round`, which times each of its `N` sides once, `rounds` times.
///
/// # Errors
/// The first of a round: two sides that do not agree.
pub fn rounds<const N: usize>(
    rounds: usize,
    mut round: impl FnMut() -> Result<[f64; N]>,
) -> Result<[Cost; N]> {
    let mut all: [Vec<f64>; N] = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (side, figure) in all.iter_mut().zip(round()?) {
            side.push(figure);
        }
    }
    Ok(all.map(Cost::of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_round_is_judged_and_the_fastest_is_kept() {
        let mut figures = [9.0, 2.0, 7.0, 100.0, 3.0].into_iter();
        let [cost] = rounds(5, || Ok([figures.next().unwrap()])).unwrap();
        assert_eq!(cost, Cost { min: 2.0, median: 7.0 });
    }

    #[test]
    fn work_that_takes_cpu_is_seen_and_sleep_is_not() {
        let mut sum = 0u64;
        let busy = time(1, || {
            for number in 0..1_000_000u64 {
                sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
            }
        });
        let asleep = time(1, || std::thread::sleep(Duration::from_millis(20)));
        assert!(busy > 100_000.0, "a million steps take more than {busy} ns");
        assert!(asleep < 15_000_000.0, "{asleep} ns of CPU in a sleep of 20 ms");
    }
}
