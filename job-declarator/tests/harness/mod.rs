//! What the fuzzer and the seeded test both run: a `run(data)` that takes any bytes and panics if a
//! promise is broken. `job-declarator/fuzz` calls it with the fuzzer's bytes, `tests/fuzz_seeded.rs` with
//! bytes from fixed seeds.

#![allow(dead_code, unreachable_pub, reason = "the seeded test and the fuzz crate use all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise is a panic here")]

pub mod coinbase;
pub mod sv1;
#[path = "../common/sv1.rs"]
mod sv1_rig;
