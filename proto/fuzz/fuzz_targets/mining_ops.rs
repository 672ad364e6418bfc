//! `proto/tests/harness/mining_ops.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto_fuzz::mining_ops(data));
