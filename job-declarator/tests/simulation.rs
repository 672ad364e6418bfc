//! The declarator against pools, a node and devices that fail in every way, under virtual time: ten thousand
//! episodes, each from its seed. `SEED=17 cargo test -p job-declarator --test simulation one_seed -- --nocapture`
//! shows one; `SEEDS=100000` runs so many.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "builders outside a #[test] fail it just as well"
)]

#[path = "simulation/mod.rs"]
mod simulation;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use simulation::world::World;

const SEEDS: u64 = 10_000;

/// Runs all seeds on every core; the first that failed.
fn run(seeds: u64) -> Option<u64> {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        while failed.load(Ordering::Relaxed) == u64::MAX {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| World::new(seed, false).run())).is_err() {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    Some(failed.into_inner()).filter(|seed| *seed != u64::MAX)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|number| number.parse().ok())
}

#[test]
fn whatever_fails_the_devices_have_work_and_no_share_is_lost_unseen() {
    if let Some(seed) = run(number("SEEDS").unwrap_or(SEEDS)) {
        panic!("seed {seed}: SEED={seed} cargo test --test simulation one_seed -- --nocapture");
    }
}

#[test]
fn one_seed() {
    let seed = number("SEED");
    World::new(seed.unwrap_or(0), seed.is_some()).run();
}
