//! A channel's next difficulty, from when its shares came. Called by `mining::server` on every share,
//! every five seconds, and when the client updates its channel. Time is an argument, in milliseconds.
//!
//! Shares are a Poisson process of mean h * integral(dt / D), so the pair (n, x = integral(dt / D)) is all
//! that the times have to say about the hash rate h, whatever D was in between. Three windows forget
//! it at different speeds; the posterior of h in each is Gamma(n + 1/2, x) (design: payouts, section 4).
//! Floats are right here and nowhere near credit: what leaves is a power of two.

use crate::target::Difficulty;

/// How fast each window forgets, seconds: a burst, a few minutes, the quiet average.
const WINDOWS_S: [f64; 3] = [60.0, 180.0, 600.0];
/// The ideal difficulty must be off by this ratio before anything happens. Above sqrt(2), so that the
/// nearest power of two never asks for a change by itself.
const RATIO: f64 = 1.6;
/// How sure we want to be, as a standard normal quantile: P > 0.98. With a look at every share and every five
/// seconds in three windows this is less than one change an hour in the steady state (simulated below).
const SURE: f64 = 2.053_75;
/// The quantile of "as likely above as below".
const MEDIAN: f64 = 0.0;
/// Raising on fewer shares than this would follow luck.
const RAISE_SHARES_MIN: f64 = 3.0;
/// At most times 64 in one step ...
const STEP_UP_LOG2: i16 = 6;
/// ... and a sixteenth: silence is weaker evidence than shares.
const STEP_DOWN_LOG2: i16 = 4;
/// Evidence that survives a change, in shares: enough to start from, too little to hold a change back,
/// and below `RAISE_SHARES_MIN`, so that no two raises come of the same shares.
const KEPT_SHARES: f64 = 2.0;
/// The clock's grain, seconds. Shares of one instant took up to this long: without it three of them
/// would be proof of an infinite rate.
const GRAIN_S: f64 = 0.001;
/// Shares a minute where the policy's own number is no rate at all.
const SHARES_PER_MINUTE: f64 = 12.0;

/// What the pool wants of every channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VardiffPolicy {
    /// Shares a minute of a channel in the steady state.
    pub shares_per_minute: f64,
    /// No channel is given anything easier, whatever its client asks.
    pub floor: Difficulty,
    /// No channel is given anything harder, unless its floor or its client asks for it.
    pub ceiling: Difficulty,
}

impl Default for VardiffPolicy {
    /// 12 shares a minute; 256 is what the ASICs of home miners report at most; no ceiling.
    fn default() -> Self {
        Self {
            shares_per_minute: SHARES_PER_MINUTE,
            floor: Difficulty::from_log2(8),
            ceiling: Difficulty::MAX,
        }
    }
}

/// One channel's difficulty and the evidence for the next.
#[derive(Debug, Clone)]
pub struct Vardiff {
    policy: VardiffPolicy,
    /// The easiest that the client can take (its `max_target`).
    client_easiest: Difficulty,
    /// What the client's last declared rate asked for, before any bound.
    declared: Difficulty,
    current: Difficulty,
    updated_ms: u64,
    windows: [Evidence; 3],
}

impl Vardiff {
    /// A new channel: starts at the difficulty that the declared rate (H/s) asks for. A rate that is no
    /// rate (zero, negative, NaN, infinite) ends at the bounds like any other. `easiest` is what the
    /// client's `max_target` allows at most.
    #[must_use]
    pub fn new(
        policy: VardiffPolicy,
        declared_hash_rate: f32,
        easiest: Difficulty,
        now_ms: u64,
    ) -> Self {
        let mut vardiff = Self {
            policy,
            client_easiest: easiest,
            declared: Difficulty::MIN,
            current: Difficulty::MIN,
            updated_ms: now_ms,
            windows: [Evidence::default(); 3],
        };
        vardiff.declared = vardiff.ideal_for(f64::from(declared_hash_rate));
        vardiff.current = vardiff.bounded(vardiff.declared);
        vardiff
    }

    /// The difficulty of the jobs to be sent now.
    #[must_use]
    pub fn difficulty(&self) -> Difficulty {
        self.current
    }

    /// An accepted share came, of a job of this `difficulty`. Refused ones are no evidence: they would
    /// let a client steer its difficulty with work that it is not credited for.
    pub fn share(&mut self, now_ms: u64, difficulty: Difficulty) {
        self.advance(now_ms);
        // A share of an older, easier job is that much less of a share now. One of a harder job
        // counts as one: there are only those in flight, and single shares must not weigh like many.
        let weight = ratio(difficulty, self.current).min(1.0);
        for window in &mut self.windows {
            window.shares += weight;
        }
    }

    /// Whether the evidence asks for another difficulty; to be asked after every share and every five
    /// seconds. `Some` is already in force here: send it with a fresh job behind.
    pub fn check(&mut self, now_ms: u64) -> Option<Difficulty> {
        self.advance(now_ms);
        let wanted = self.policy_rate() * as_number(self.current);
        for window in self.windows {
            let window = window.exposed_for(GRAIN_S / as_number(self.current));
            let raise = window.shares >= RAISE_SHARES_MIN && wanted * RATIO < window.rate_at(-SURE);
            let lower = wanted / RATIO > window.rate_at(SURE);
            if !raise && !lower {
                continue;
            }
            let ideal = self.ideal_for(window.rate_at(MEDIAN) * HASHES_AT_ONE);
            let log2 = self.current.log2();
            let step = (ideal.log2() - log2).clamp(-STEP_DOWN_LOG2, STEP_UP_LOG2);
            let next = self.bounded(Difficulty::from_log2(log2 + step));
            // At a bound there is nowhere to go; a longer window has nothing else to say.
            if next == self.current {
                return None;
            }
            self.current = next;
            // The window that spoke knows the present best; the others remember another miner.
            self.windows = [window.cut_to(KEPT_SHARES); 3];
            return Some(next);
        }
        None
    }

    /// The client says the easiest it can take from now on (UpdateChannel's `maximum_target`). `Some` if
    /// the difficulty in force changes with it.
    pub fn limit(&mut self, easiest: Difficulty) -> Option<Difficulty> {
        self.client_easiest = easiest;
        self.move_to(self.bounded(self.current))
    }

    /// The hardest that the channel is given from now on, in the policy's place. `Some` if the difficulty in
    /// force changes with it: a channel above it comes down, one below has room and no reason yet.
    pub fn set_ceiling(&mut self, ceiling: Difficulty) -> Option<Difficulty> {
        self.policy.ceiling = ceiling;
        self.move_to(self.bounded(self.current))
    }

    /// The client says its hash rate anew (UpdateChannel), H/s. `Some` if the difficulty changes with
    /// it. Saying the same again changes nothing: what the shares have shown since weighs more.
    pub fn declare(&mut self, hash_rate: f32) -> Option<Difficulty> {
        let declared = self.ideal_for(f64::from(hash_rate));
        if declared == self.declared {
            return None;
        }
        self.declared = declared;
        self.windows = [Evidence::default(); 3];
        self.move_to(self.bounded(declared))
    }

    fn advance(&mut self, now_ms: u64) {
        // A clock that went back adds nothing; it goes on from where it was at most.
        let elapsed_ms = now_ms.saturating_sub(self.updated_ms);
        if elapsed_ms == 0 {
            return;
        }
        self.updated_ms = now_ms;
        let elapsed_s = elapsed_ms as f64 / 1_000.0;
        let difficulty = as_number(self.current);
        for (window, forget_s) in self.windows.iter_mut().zip(WINDOWS_S) {
            let kept = (-elapsed_s / forget_s).exp();
            window.shares *= kept;
            window.exposure = window.exposure * kept + forget_s * (1.0 - kept) / difficulty;
        }
    }

    /// Wanted shares per second.
    fn policy_rate(&self) -> f64 {
        let per_minute = self.policy.shares_per_minute;
        let usable = per_minute.is_finite() && per_minute > 0.0;
        (if usable { per_minute } else { SHARES_PER_MINUTE }) / 60.0
    }

    /// The power of two nearest to what this rate (H/s) should have, before any bound.
    fn ideal_for(&self, hashes_per_s: f64) -> Difficulty {
        Difficulty::nearest_to_hashes(hashes_per_s / self.policy_rate())
    }

    /// The floor wins over the ceiling (a test network's difficulty lies below any floor), and what
    /// the client cannot take wins over both.
    fn bounded(&self, wanted: Difficulty) -> Difficulty {
        wanted.min(self.policy.ceiling).max(self.policy.floor).max(self.client_easiest)
    }

    fn move_to(&mut self, next: Difficulty) -> Option<Difficulty> {
        let changed = next != self.current;
        self.current = next;
        changed.then_some(next)
    }
}

/// Expected hashes of a share of difficulty 1.
const HASHES_AT_ONE: f64 = 4_294_967_296.0;

/// 2^k as a float: exact for every `Difficulty`.
fn as_number(difficulty: Difficulty) -> f64 {
    2f64.powi(i32::from(difficulty.log2()))
}

fn ratio(a: Difficulty, b: Difficulty) -> f64 {
    2f64.powi(i32::from(a.log2()) - i32::from(b.log2()))
}

/// What one window remembers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Evidence {
    /// Shares, forgotten with time.
    shares: f64,
    /// integral(dt / D), seconds, forgotten alike: shares expected of a rate of one 2^32 hashes a second.
    exposure: f64,
}

impl Evidence {
    /// Shape of the posterior: Jeffreys' prior adds the half.
    fn shape(self) -> f64 {
        self.shares + 0.5
    }

    /// The rate, in 2^32 hashes per second, that the posterior puts `z` standard deviations from its
    /// middle, by Wilson and Hilferty: the cube root of a Gamma variable is very nearly normal. Within
    /// 0.003 of the true probability at 0.02 and 0.98 for every shape from 1/2 up, at the cost of a square
    /// root (this is asked of every share), and without overflow at any size.
    fn rate_at(self, z: f64) -> f64 {
        let shape = self.shape();
        let root = 1.0 - (9.0 * shape).recip() + z / (3.0 * shape.sqrt());
        shape * (root * root * root) / self.exposure
    }

    /// The same shares over a little more time.
    fn exposed_for(self, more: f64) -> Self {
        Self { exposure: self.exposure + more, ..self }
    }

    /// The same rate said with at most `shares` shares.
    fn cut_to(self, shares: f64) -> Self {
        let kept = (shares / self.shares.max(shares)).min(1.0);
        Self { shares: self.shares * kept, exposure: self.exposure * kept }
    }
}

#[cfg(test)]
#[path = "vardiff/tests.rs"]
mod tests;
