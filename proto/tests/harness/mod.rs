//! What the fuzzer and the seeded test both run: one file a target, each with a `run(data)` that takes
//! any bytes and panics if a promise is broken. `proto/fuzz` calls them with the fuzzer's bytes,
//! `tests/fuzz_seeded.rs` with bytes from fixed seeds. They may use `proto` and `bitcoin` alone.

#![allow(dead_code, unreachable_pub, reason = "the seeded test and the fuzz crate use all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise is a panic here")]

pub mod coinbase;
pub mod declare_ops;
pub mod frame;
pub mod message;
pub mod noise;
pub mod sha256;

#[path = "../declarer/mod.rs"]
mod declarer;
#[path = "../link/mod.rs"]
mod link;

/// Takes decisions off the front of the fuzzer's bytes; zeros when they are used up.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// `N` bytes, the missing ones zero.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }
}
