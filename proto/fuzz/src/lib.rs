//! What the fuzz targets run: the harnesses of `proto/tests/harness`, which the seeded test runs on
//! stable too. A new target is a `run(data)` there, a file in `fuzz_targets` and a `[[bin]]` in the
//! manifest.
//!
//! `cd proto && cargo +nightly fuzz run frame -- -max_total_time=60`

#[path = "../../tests/harness/mod.rs"]
mod harness;
#[path = "../../tests/harness/mining_ops.rs"]
mod mining_ops;

pub use harness::{coinbase, declare_ops, frame, message, noise, sha256};
pub use mining_ops::mining_ops;
