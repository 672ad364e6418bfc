//! `job-declarator/tests/harness/coinbase.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| job_declarator_fuzz::coinbase::run(data));
