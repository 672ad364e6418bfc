//! What the fuzz target runs: the harness of `job-declarator/tests/harness`, which the seeded test runs on
//! stable too.
//!
//! `cd job-declarator && cargo +nightly fuzz run coinbase -- -max_total_time=60`

#[path = "../../tests/harness/mod.rs"]
mod harness;

pub use harness::{coinbase, sv1};
