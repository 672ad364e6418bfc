//! The `mining_ops` fuzz harness on fixed seeds, for machines without cargo-fuzz. A seed that fails is
//! its own reproduction.

#[path = "harness/mining_ops.rs"]
mod mining_ops;

use mining_ops::mining_ops;

/// SplitMix64 bytes.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) as u8
        })
        .collect()
}

#[test]
fn random_operations_break_no_invariant() {
    for seed in 0..200 {
        mining_ops(&noise(seed, 2_000));
    }
}

#[test]
fn operations_without_bytes_break_no_invariant() {
    mining_ops(&[]);
    for byte in 0..=255 {
        mining_ops(&[byte; 300]);
    }
}
