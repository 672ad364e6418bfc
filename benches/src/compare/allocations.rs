//! Counts what is allocated while it is asked to, and otherwise only asks whether it is: allocations are
//! counted apart from the timed rounds, so that the count costs no side any time. `bin/compare.rs` makes
//! it the global allocator; without that every count is zero.
//!
//! The only unsafe code of this package. A crate that counts does so at every allocation, which would
//! slow down the side that allocates more.

#![expect(unsafe_code, reason = "an allocator can only be wrapped by the unsafe trait that it is")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES_KEPT: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, watched.
#[derive(Debug)]
pub struct Counting;

/// What was allocated during a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Calls that asked for memory, growth of what was there included.
    pub allocations: u64,
    /// Bytes asked for and not given back.
    pub bytes_kept: i64,
}

/// Counts during `work`. For one thread at a time: what other threads allocate meanwhile counts too.
pub fn during<T>(work: impl FnOnce() -> T) -> (Counted, T) {
    ALLOCATIONS.store(0, Relaxed);
    BYTES_KEPT.store(0, Relaxed);
    COUNTING.store(true, Relaxed);
    let made = work();
    COUNTING.store(false, Relaxed);
    let (allocations, bytes_kept) = (ALLOCATIONS.load(Relaxed), BYTES_KEPT.load(Relaxed));
    (Counted { allocations, bytes_kept }, made)
}

fn count(allocations: u64, bytes: i64) {
    if COUNTING.load(Relaxed) {
        ALLOCATIONS.fetch_add(allocations, Relaxed);
        BYTES_KEPT.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: every call goes to `System` with the caller's own arguments and its answer comes back as it
// is; counting touches three atomics and never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller keeps `alloc_zeroed`'s contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: `pointer` came from `System` by one of these functions, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(1, new_size as i64 - layout.size() as i64);
        // SAFETY: `pointer` came from `System` by one of these functions, with this layout.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
