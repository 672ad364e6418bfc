//! `proto/tests/harness/sha256.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto_fuzz::sha256::run(data));
