//! `proto/tests/harness/declare_ops.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto_fuzz::declare_ops::run(data));
