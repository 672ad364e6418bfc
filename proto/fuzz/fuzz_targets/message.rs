//! `proto/tests/harness/message.rs` on the fuzzer's bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| proto_fuzz::message::run(data));
