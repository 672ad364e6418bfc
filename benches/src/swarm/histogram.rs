//! Latencies in microseconds, counted in buckets a thirty-second wide: written once per acknowledgement
//! by the connections of one thread, added up at the end. Nothing is allocated after `new`, and no value
//! is ever left out: what is beyond the last bucket counts as the largest.

use std::time::Duration;

/// Buckets in each power of two: a percentile is at most 1/32 above the truth.
const STEPS: u64 = 32;
const STEPS_LOG2: u32 = STEPS.trailing_zeros();
/// Below this every microsecond has a bucket of its own.
const EXACT: u64 = 2 * STEPS;
/// 2^40 us are twelve days: longer than any run.
const LARGEST: u64 = 1 << 40;

/// Counts of latencies.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    largest_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; bucket_of(LARGEST) + 1], count: 0, largest_us: 0 }
    }
}

impl Histogram {
    /// Counts `times` events that took `latency`.
    pub(super) fn record(&mut self, latency: Duration, times: u64) {
        if times == 0 {
            return;
        }
        let us = u64::try_from(latency.as_micros()).unwrap_or(LARGEST).min(LARGEST);
        self.buckets[bucket_of(us)] += times;
        self.count += times;
        self.largest_us = self.largest_us.max(us);
    }

    /// Takes in what another one counted.
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.largest_us = self.largest_us.max(other.largest_us);
    }

    /// Events counted.
    #[must_use]
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Milliseconds within which `percent` of the events were, never less than the truth and at most
    /// 1/32 more; 100 is the largest itself. `None` if nothing was counted.
    #[must_use]
    pub(super) fn percentile_ms(&self, percent: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(end_of(bucket).min(self.largest_us) as f64 / 1_000.0);
            }
        }
        Some(self.largest_us as f64 / 1_000.0)
    }
}

/// The value below which `percent` of `sorted` lie (nearest rank); `None` of nothing.
#[must_use]
pub(super) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

fn bucket_of(us: u64) -> usize {
    if us < EXACT {
        return us as usize;
    }
    // The top five bits behind the leading one choose the step.
    let octave = us.ilog2() - STEPS_LOG2;
    (u64::from(octave) * STEPS + (us >> octave)) as usize
}

/// The largest value of a bucket.
fn end_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < EXACT {
        return bucket;
    }
    let octave = bucket / STEPS - 1;
    ((bucket - octave * STEPS + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_us(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|us| histogram.record(Duration::from_micros(us), 1));
        histogram
    }

    #[test]
    fn every_value_lies_in_its_bucket_and_no_bucket_overlaps_the_next() {
        let mut last = 0;
        for us in (0..100_000).chain((17..40).flat_map(|log2| [(1 << log2) - 1, 1 << log2])) {
            let bucket = bucket_of(us);
            assert!(us <= end_of(bucket), "{us}");
            assert!(bucket == 0 || us > end_of(bucket - 1), "{us}");
            assert!(end_of(bucket) as f64 <= us as f64 * (1.0 + 1.0 / 32.0), "{us}");
            assert!(bucket >= last);
            last = bucket;
        }
    }

    #[test]
    fn percentiles_are_the_ranks_they_say() {
        let histogram = of_us(1..=50);
        assert_eq!(histogram.percentile_ms(50.0), Some(0.025));
        assert_eq!(histogram.percentile_ms(99.0), Some(0.050));
        assert_eq!(histogram.percentile_ms(0.0), Some(0.001));
        let skewed = of_us((0..99).map(|_| 1_000).chain([70_000]));
        assert!(skewed.percentile_ms(99.0).is_some_and(|ms| (1.0..1.04).contains(&ms)));
        assert_eq!(skewed.percentile_ms(100.0), Some(70.0));
    }

    #[test]
    fn nothing_counted_has_no_percentile() {
        assert_eq!(Histogram::default().percentile_ms(50.0), None);
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn added_up_is_the_same_as_counted_together() {
        let mut sum = of_us(1..=30);
        sum.add(&of_us(31..=50));
        assert_eq!(sum.percentile_ms(50.0), of_us(1..=50).percentile_ms(50.0));
        assert_eq!(sum.count(), 50);
    }

    #[test]
    fn a_latency_beyond_every_bucket_counts_as_the_largest() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::MAX, 2);
        assert_eq!(histogram.count(), 2);
        assert_eq!(histogram.percentile_ms(50.0), Some(LARGEST as f64 / 1_000.0));
    }

    #[test]
    fn a_percentile_of_a_list_is_its_nearest_rank() {
        let list = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(percentile(&list, 50.0), Some(2.0));
        assert_eq!(percentile(&list, 51.0), Some(3.0));
        assert_eq!(percentile(&list, 100.0), Some(4.0));
        assert_eq!(percentile(&list, 0.0), Some(1.0));
    }
}
