//! The simulation behind the rule, with fixed seeds: Poisson shares of a miner whose rate is known,
//! against the times of the design's table with room for luck. And what a client can do to it.

use super::*;

const TERA: f64 = 1e12;

/// A miner of `rate` H/s in virtual time.
struct Simulation {
    vardiff: Vardiff,
    rate: f64,
    now_s: f64,
    next_check_s: f64,
    random: u64,
    retargets: usize,
    shares: usize,
}

impl Simulation {
    fn new(seed: u64, declared: f32, rate: f64) -> Self {
        let policy = VardiffPolicy { floor: Difficulty::from_log2(-14), ..Default::default() };
        Self {
            vardiff: Vardiff::new(policy, declared, Difficulty::MIN, 0),
            rate,
            now_s: 0.0,
            next_check_s: 5.0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            retargets: 0,
            shares: 0,
        }
    }

    /// Marsaglia's xorshift, as seconds to the next share.
    fn gap_s(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let uniform = ((self.random >> 11) as f64 + 1.0) / 2f64.powi(53);
        -uniform.ln() * self.vardiff.difficulty().hashes() / self.rate
    }

    fn run_for(&mut self, seconds: f64) {
        let end = self.now_s + seconds;
        self.run_until(end, |_| false);
    }

    /// Runs until `done` or `end_s`. The process has no memory, so a share not yet found when the
    /// difficulty may change is drawn anew.
    fn run_until(&mut self, end_s: f64, done: impl Fn(&Self) -> bool) {
        while self.now_s < end_s && !done(self) {
            let share_s = self.now_s + self.gap_s();
            let found = share_s < self.next_check_s;
            self.now_s = if found { share_s } else { self.next_check_s };
            let now_ms = (self.now_s * 1_000.0) as u64;
            if found {
                self.shares += 1;
                self.vardiff.share(now_ms, self.vardiff.difficulty());
            } else {
                self.next_check_s += 5.0;
            }
            self.retargets += usize::from(self.vardiff.check(now_ms).is_some());
        }
    }

    fn is_near_ideal(&self) -> bool {
        let ideal_hashes = self.rate * 5.0;
        let off = self.vardiff.difficulty().hashes() / ideal_hashes;
        (1.0 / 2.3..=2.3).contains(&off)
    }

    /// Seconds from now until the difficulty is within 2.3 of the ideal.
    fn settle(&mut self) -> f64 {
        let start = self.now_s;
        self.run_until(start + 7_200.0, Self::is_near_ideal);
        self.now_s - start
    }
}

/// Median and 90th percentile of 30 seeds.
fn spread(of: impl Fn(u64) -> f64) -> (f64, f64) {
    let mut results: Vec<f64> = (1..=30).map(of).collect();
    results.sort_by(f64::total_cmp);
    (results[15], results[27])
}

#[test]
fn every_device_is_near_its_difficulty_in_the_times_of_the_table() {
    // (declared, real rate, median s, 90th percentile s): the table's figures with room for luck.
    let cases = [
        (1e12, 0.5 * TERA, 30.0, 60.0),
        (1e12, 1.2 * TERA, 10.0, 60.0),
        (1e12, 6.5 * TERA, 20.0, 90.0),
        (1e12, 200.0 * TERA, 20.0, 40.0),
        (2e14, 200.0 * TERA, 1.0, 30.0),
        (1e12, 5_000.0 * TERA, 3.0, 10.0),
        (1e15, 0.5 * TERA, 150.0, 260.0),
        (1e12, 1e6, 250.0, 600.0),
    ];
    for (declared, rate, median_max, p90_max) in cases {
        let (median, p90) = spread(|seed| Simulation::new(seed, declared, rate).settle());
        assert!(
            median <= median_max && p90 <= p90_max,
            "{rate:.1e} declared {declared:.1e}: {median:.0} s ({p90:.0} s)"
        );
    }
}

#[test]
fn a_miner_that_changes_is_followed() {
    for (factor, median_max, p90_max) in
        [(0.25, 500.0, 1_000.0), (4.0, 130.0, 220.0), (1.0 / 30.0, 280.0, 500.0)]
    {
        let (median, p90) = spread(|seed| {
            let mut miner = Simulation::new(seed, 2e14, 200.0 * TERA);
            miner.run_for(3_600.0);
            miner.rate *= factor;
            miner.settle()
        });
        assert!(
            median <= median_max && p90 <= p90_max,
            "times {factor}: {median:.0} s ({p90:.0} s)"
        );
    }
}

#[test]
fn a_steady_miner_is_left_alone() {
    // Rates all over one octave: the worst lies midway between two powers of two.
    let mut retargets = 0;
    for seed in 1..=24 {
        let rate = 1e12 * 2f64.powf(seed as f64 / 24.0);
        let mut miner = Simulation::new(seed, 1e12, rate);
        miner.run_for(1_800.0);
        let before = miner.retargets;
        miner.run_for(8.0 * 3_600.0);
        retargets += miner.retargets - before;
    }
    let per_hour = retargets as f64 / (24.0 * 8.0);
    assert!(per_hour <= 1.0, "{per_hour:.2} retargets an hour");
}

#[test]
fn a_strong_miner_that_says_little_is_stopped_within_a_few_thousand_shares() {
    let mut miner = Simulation::new(7, 0.0, 5_000.0 * TERA);
    miner.run_for(60.0);
    assert!(miner.is_near_ideal());
    assert!(miner.shares < 5_000, "{} shares in the first minute", miner.shares);
}

#[test]
fn silence_ends_at_the_floor_and_never_panics() {
    let floor = Difficulty::from_log2(8);
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 1e15, Difficulty::MIN, 0);
    assert_eq!(vardiff.difficulty().log2(), 20);
    let mut steps = vec![];
    for check in 1..=100_000u64 {
        steps.extend(vardiff.check(check * 5_000));
    }
    assert_eq!(vardiff.difficulty(), floor);
    assert_eq!(steps.len(), 3, "a sixteenth at a time: {steps:?}");
    assert_eq!(vardiff.check(u64::MAX), None);
}

#[test]
fn one_step_is_at_most_times_64() {
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 0.0, Difficulty::MIN, 0);
    let before = vardiff.difficulty().log2();
    for _ in 0..1_000 {
        vardiff.share(1, vardiff.difficulty());
    }
    assert_eq!(vardiff.check(1).map(Difficulty::log2), Some(before + 6));
    assert_eq!(vardiff.check(1), None, "the same shares do not raise twice");
}

#[test]
fn two_shares_never_raise_and_three_can() {
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 0.0, Difficulty::MIN, 0);
    for _ in 0..2 {
        vardiff.share(1, vardiff.difficulty());
        assert_eq!(vardiff.check(1), None);
    }
    vardiff.share(1, vardiff.difficulty());
    assert!(vardiff.check(1).is_some());
}

#[test]
fn the_floor_the_ceiling_and_the_clients_limit_hold_at_the_start() {
    let [low, high] = [8, 40].map(Difficulty::from_log2);
    let policy = VardiffPolicy { shares_per_minute: 12.0, floor: low, ceiling: high };
    for (rate, log2) in [
        (0.0, 8),
        (-0.0, 8),
        (-1e12, 8),
        (f32::NAN, 8),
        (f32::NEG_INFINITY, 8),
        (f32::MIN_POSITIVE, 8),
        (1e12, 10),
        (f32::MAX, 40),
        (f32::INFINITY, 40),
    ] {
        let vardiff = Vardiff::new(policy, rate, Difficulty::MIN, 0);
        assert_eq!(vardiff.difficulty().log2(), log2, "rate {rate}");
    }
    let limited = Vardiff::new(policy, 1e12, Difficulty::from_log2(50), 0);
    assert_eq!(limited.difficulty().log2(), 50, "a client that can take nothing easier");
}

#[test]
fn a_clients_limit_moves_the_difficulty_up_at_once_and_never_down_p14_p16() {
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 1e12, Difficulty::MIN, 0);
    assert_eq!(vardiff.limit(Difficulty::from_log2(10)), None);
    assert_eq!(vardiff.limit(Difficulty::from_log2(14)), Some(Difficulty::from_log2(14)));
    assert_eq!(vardiff.limit(Difficulty::MIN), None);
    let mut held = Vardiff::new(VardiffPolicy::default(), 1e12, Difficulty::from_log2(10), 0);
    for check in 1..=1_000u64 {
        assert_eq!(held.check(check * 5_000), None, "silence below the client's limit");
    }
}

#[test]
fn a_new_declaration_counts_once() {
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 1e12, Difficulty::MIN, 0);
    assert_eq!(vardiff.declare(1e12), None);
    assert_eq!(vardiff.declare(1e15), Some(Difficulty::from_log2(20)));
    for check in 1..=60u64 {
        vardiff.check(check * 5_000);
    }
    let by_silence = vardiff.difficulty();
    assert!(by_silence.log2() < 20);
    assert_eq!(vardiff.declare(1e15), None);
    assert_eq!(vardiff.difficulty(), by_silence);
    assert_eq!(vardiff.declare(f32::NAN), None, "no rate asks for the floor, where it is already");
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 1e12, Difficulty::MIN, 1_000_000);
    vardiff.share(1_005_000, vardiff.difficulty());
    let before = vardiff.windows;
    for now_ms in [900_000, 0, 1_004_999, 1_005_000] {
        assert_eq!(vardiff.check(now_ms), None);
        assert_eq!(vardiff.windows, before);
    }
    let [.., ten_minutes] = before;
    let once_in_5_s = 1024.0 / 5.0;
    let shown = ten_minutes.shares / ten_minutes.exposure;
    assert!((shown / once_in_5_s - 1.0).abs() < 0.01, "{before:?}");
}

#[test]
fn shares_of_an_easier_job_in_flight_do_not_raise_again() {
    let mut vardiff = Vardiff::new(VardiffPolicy::default(), 0.0, Difficulty::MIN, 0);
    let easy = vardiff.difficulty();
    for _ in 0..1_000 {
        vardiff.share(1, easy);
    }
    assert!(vardiff.check(1).is_some());
    let raised = vardiff.difficulty();
    for _ in 0..40 {
        vardiff.share(2_000, easy);
        assert_eq!(vardiff.check(2_000), None);
    }
    assert_eq!(vardiff.difficulty(), raised);
}

#[test]
fn the_normal_quantile_agrees_with_tables_of_chi_squared() {
    // (shares, chi-squared / 2 at the probability, its standard normal quantile); 2a degrees of freedom.
    // 0.98 is 2.05375, 0.02 its negative.
    let table = [
        (0.0, 5.411_89 / 2.0, 2.053_75),   // 1 degree, 0.98
        (1.5, 11.667_84 / 2.0, 2.053_75),  // 4 degrees, 0.98
        (4.5, 21.160_77 / 2.0, 2.053_75),  // 10 degrees, 0.98
        (4.5, 3.059_05 / 2.0, -2.053_75),  // 10 degrees, 0.02
        (14.5, 47.961_80 / 2.0, 2.053_75), // 30 degrees, 0.98
        (14.5, 16.306_17 / 2.0, -2.053_75),
    ];
    for (shares, value, quantile) in table {
        let rate_at = |z| Evidence { shares, exposure: 1.0 }.rate_at(z);
        let around = rate_at(quantile - 0.06)..rate_at(quantile + 0.06);
        assert!(around.contains(&value), "{shares} shares: {value} in {around:?}");
    }
    // A hundred thousand shares: mean plus or minus 2.05375 standard deviations, in the limit.
    for sign in [-1.0, 1.0] {
        let a = 100_000.5f64;
        let value = a + sign * 2.053_75 * a.sqrt();
        let rate_at = |z| Evidence { shares: 1e5, exposure: 1.0 }.rate_at(z);
        let around = rate_at(sign * 2.053_75 - 0.01)..rate_at(sign * 2.053_75 + 0.01);
        assert!(around.contains(&value), "{value} in {around:?}");
    }
}

#[test]
fn absurd_policies_and_extremes_give_finite_difficulties() {
    for shares_per_minute in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300] {
        for bounds in [(Difficulty::MIN, Difficulty::MAX), (Difficulty::MAX, Difficulty::MIN)] {
            let policy = VardiffPolicy { shares_per_minute, floor: bounds.0, ceiling: bounds.1 };
            let mut vardiff = Vardiff::new(policy, 1e12, Difficulty::MIN, 0);
            for step in 0..1_000u64 {
                vardiff.share(step.pow(3), vardiff.difficulty());
                vardiff.check(step.pow(3));
            }
            for _ in 0..100_000 {
                vardiff.share(1_000_000_000, Difficulty::MAX);
            }
            vardiff.check(1_000_000_000);
            let log2 = vardiff.difficulty().log2();
            assert!((Difficulty::MIN.log2()..=Difficulty::MAX.log2()).contains(&log2));
        }
    }
}
