//! Accepted shares to hash rates, with how far they can be trusted. Kept by whoever serves a channel: the
//! pool's `miner.rs`, the declarator's `device.rs`; shown on pages. Pure; time is a number.

use serde::Serialize;

/// Over the last minute, five minutes and hour, older shares fading out.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct HashRates {
    /// Fades with a time constant of 60 s.
    #[serde(rename = "1m")]
    pub minute: HashRate,
    /// Fades with a time constant of 300 s.
    #[serde(rename = "5m")]
    pub five_minutes: HashRate,
    /// Fades with a time constant of 3,600 s.
    #[serde(rename = "1h")]
    pub hour: HashRate,
}

/// Hashes per second. Few shares say little: the true rate is within the band 19 times out of 20.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct HashRate {
    /// The estimate.
    pub estimate: f64,
    /// Lower end of the band.
    pub low: f64,
    /// Upper end of the band.
    pub high: f64,
}

impl HashRates {
    /// Of all together. The channels err independently, so the bands add up as squares.
    #[must_use]
    pub fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        let mut sums = [(0.0, 0.0, 0.0); 3];
        for rates in all {
            for (sum, rate) in sums.iter_mut().zip([rates.minute, rates.five_minutes, rates.hour]) {
                sum.0 += rate.estimate;
                sum.1 += (rate.estimate - rate.low).powi(2);
                sum.2 += (rate.high - rate.estimate).powi(2);
            }
        }
        let [minute, five_minutes, hour] = sums.map(|(estimate, below, above)| HashRate {
            estimate,
            low: (estimate - below.sqrt()).max(0.0),
            high: estimate + above.sqrt(),
        });
        Self { minute, five_minutes, hour }
    }
}

/// Turns accepted shares into hash rates. Times are seconds of a monotonic clock.
#[derive(Debug, Clone)]
pub struct RateMeter {
    windows: [RateWindow; 3],
}

impl RateMeter {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(now_s: f64) -> Self {
        Self { windows: [60.0, 300.0, 3_600.0].map(|fading_s| RateWindow::new(fading_s, now_s)) }
    }

    /// A share was accepted whose target takes this many hashes on average.
    pub fn share_accepted(&mut self, now_s: f64, hashes: f64) {
        for window in &mut self.windows {
            window.fade_to(now_s);
            window.hashes += hashes;
            window.squares += hashes * hashes;
        }
    }

    /// The rates now. `hashes` is what a share takes at the present difficulty: how much a silence says.
    #[must_use]
    pub fn rates(&self, now_s: f64, hashes: f64) -> HashRates {
        let [minute, five_minutes, hour] = self.windows.map(|mut window| {
            window.fade_to(now_s);
            window.rate(hashes)
        });
        HashRates { minute, five_minutes, hour }
    }
}

/// Sums that fade exponentially, and the time that they stand for.
#[derive(Debug, Clone, Copy)]
struct RateWindow {
    fading_s: f64,
    at_s: f64,
    exposure_s: f64,
    hashes: f64,
    squares: f64,
}

impl RateWindow {
    fn new(fading_s: f64, now_s: f64) -> Self {
        Self { fading_s, at_s: now_s, exposure_s: 0.0, hashes: 0.0, squares: 0.0 }
    }

    fn fade_to(&mut self, now_s: f64) {
        let passed = (now_s - self.at_s).max(0.0);
        let kept = (-passed / self.fading_s).exp();
        self.hashes *= kept;
        self.squares *= kept * kept;
        self.exposure_s = self.exposure_s * kept + self.fading_s * (1.0 - kept);
        self.at_s = self.at_s.max(now_s);
    }

    fn rate(&self, hashes_per_share: f64) -> HashRate {
        // In the first second anything divided by the time would be nonsense.
        let exposure = self.exposure_s.max(1.0);
        let estimate = self.hashes / exposure;
        // Shares that count fully, if all counted alike (Kish): the weight behind the estimate.
        let count = if self.squares > 0.0 { self.hashes * self.hashes / self.squares } else { 0.0 };
        let (low, high) = poisson_band(count);
        // What silence alone allows: with nothing seen, up to 3.7 shares could have been expected.
        let silent = poisson_band(0.0).1 * hashes_per_share / exposure;
        if count == 0.0 {
            return HashRate { estimate: 0.0, low: 0.0, high: silent };
        }
        HashRate {
            estimate,
            low: estimate * low / count,
            high: (estimate * high / count).max(silent),
        }
    }
}

/// Expected counts that a Poisson count of `n` is compatible with, 2.5 % beyond each end
/// (Wilson-Hilferty's approximation of chi-square; 3.7 for n = 0, within 2 % from there on).
fn poisson_band(n: f64) -> (f64, f64) {
    const Z: f64 = 1.96;
    let cube_at = |k: f64, z: f64| k * (1.0 - 1.0 / (9.0 * k) + z / (3.0 * k.sqrt())).powi(3);
    let low = if n > 0.0 { cube_at(n, -Z).max(0.0) } else { 0.0 };
    (low, cube_at(n + 1.0, Z))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_band_of_a_count_is_that_of_the_tables() {
        for (n, low, high) in [(0.0, 0.0, 3.69), (1.0, 0.025, 5.57), (10.0, 4.80, 18.39)] {
            let band = poisson_band(n);
            assert!((band.0 - low).abs() < 0.05 && (band.1 - high).abs() < 0.1, "{n}: {band:?}");
        }
    }

    #[test]
    fn a_silent_channel_is_known_to_be_slow_only_after_a_while() {
        let meter = RateMeter::new(100.0);
        let early = meter.rates(101.0, 1e12).minute;
        let late = meter.rates(700.0, 1e12).minute;
        assert_eq!((early.estimate, early.low), (0.0, 0.0));
        assert!(early.high > 3e12 && late.high < 7e10, "{early:?} {late:?}");
    }

    #[test]
    fn many_channels_together_are_known_better_than_each() {
        let one = HashRate { estimate: 10.0, low: 5.0, high: 17.0 };
        let rates = HashRates { minute: one, five_minutes: one, hour: one };
        let sum = HashRates::sum([rates; 100]).hour;
        assert_eq!((sum.estimate, sum.low, sum.high), (1_000.0, 950.0, 1_070.0));
        assert_eq!(HashRates::sum([]), HashRates::default());
    }

    #[test]
    fn a_steady_channel_is_measured_by_all_windows() {
        let mut meter = RateMeter::new(0.0);
        for share in 1..=4_000 {
            meter.share_accepted(f64::from(share) * 5.0, 5e12);
        }
        let rates = meter.rates(20_000.0, 5e12);
        for rate in [rates.minute, rates.five_minutes, rates.hour] {
            assert!((rate.estimate / 1e12 - 1.0).abs() < 0.06, "{rate:?}");
            assert!(rate.low < 1e12 && rate.high > 1e12, "{rate:?}");
        }
        assert!(rates.hour.high - rates.hour.low < 0.12e12, "many shares, a narrow band");
    }

    #[test]
    fn the_band_holds_the_truth_nineteen_times_of_twenty() {
        let mut state = 7u64;
        let mut uniform = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let mut held = 0;
        for _ in 0..400 {
            let (mut meter, mut now) = (RateMeter::new(0.0), 0.0);
            while now < 600.0 {
                meter.share_accepted(now, 5e12);
                now += -5.0 * uniform().ln();
            }
            let rate = meter.rates(600.0, 5e12).five_minutes;
            held += u32::from(rate.low <= 1e12 && 1e12 <= rate.high);
        }
        assert!((360..=396).contains(&held), "{held} of 400");
    }
}
