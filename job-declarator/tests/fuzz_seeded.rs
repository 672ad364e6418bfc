//! The fuzz harness on fixed seeds: what `job-declarator/fuzz` runs for hours on nightly, a moment of it
//! on every test run. A crash the fuzzer finds becomes a test of its own beside it.

mod harness;

/// A step of SplitMix64: the same seed, the same bytes.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn declared_coinbases_are_refused_or_what_the_bitcoin_crate_reads() {
    for seed in 0..30_000 {
        let mut state = seed;
        let length = next(&mut state) % 300;
        let data: Vec<u8> = (0..length).map(|_| next(&mut state) as u8).collect();
        let run = std::panic::catch_unwind(|| harness::coinbase::run(&data));
        assert!(run.is_ok(), "seed {seed}");
    }
}

#[test]
fn v1_lines_of_any_shape_end_a_session_or_are_answered() {
    for seed in 0..400 {
        let mut state = seed;
        let mut data = Vec::new();
        for _ in 0..next(&mut state) % 120 {
            let word = harness::sv1::WORDS[next(&mut state) as usize % harness::sv1::WORDS.len()];
            match next(&mut state) % 8 {
                0 => data.push(0xf0 | next(&mut state) as u8),
                1 => data.extend((0..next(&mut state) % 60).map(|_| next(&mut state) as u8)),
                _ => {
                    data.push(word.len() as u8);
                    data.extend_from_slice(word.as_bytes());
                }
            }
        }
        let run = std::panic::catch_unwind(|| harness::sv1::run(&data));
        assert!(run.is_ok(), "seed {seed}");
    }
}
