//! The fuzz harnesses on fixed seeds: what `proto/fuzz` runs for hours on nightly, a moment of it on
//! every test run. A crash the fuzzer finds becomes a test of its own beside these.

mod harness;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// Runs `harness` on `count` inputs of up to `len_max` bytes; says which seed broke a promise.
fn run_seeds(count: u64, len_max: usize, harness: fn(&[u8])) {
    for seed in 0..count {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut data = vec![0; rng.gen_range(0..=len_max)];
        rng.fill_bytes(&mut data);
        let run = std::panic::catch_unwind(|| harness(&data));
        assert!(run.is_ok(), "seed {seed}");
    }
}

#[test]
fn frames_survive_any_cut_and_no_damage() {
    run_seeds(1_000, 200, harness::frame::run);
}

#[test]
fn messages_are_refused_or_read_and_written_the_same() {
    run_seeds(200_000, 400, harness::message::run);
}

#[test]
fn handshakes_certificates_and_key_files_are_refused_unless_true() {
    run_seeds(2_000, 300, harness::noise::run);
}

#[test]
fn coinbases_are_what_was_put_into_them() {
    run_seeds(3_000, 4_000, harness::coinbase::run);
}

#[test]
fn declarations_are_answered_once_whatever_is_done() {
    run_seeds(2_000, 4_000, harness::declare_ops::run);
}

#[test]
fn every_kernel_hashes_as_sha2_does() {
    run_seeds(1_000, 5_000, harness::sha256::run);
}
