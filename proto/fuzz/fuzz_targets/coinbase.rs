//! `proto/tests/harness/coinbase.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto_fuzz::coinbase::run(data));
