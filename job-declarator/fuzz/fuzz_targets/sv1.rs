//! `job-declarator/tests/harness/sv1.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| job_declarator_fuzz::sv1::run(data));
