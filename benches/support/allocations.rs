//! An allocator that counts the allocations of each thread.
#![allow(
    unsafe_code,
    reason = "the trait of an allocator is unsafe; this one counts and forwards to the system's allocator"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is forwarded unchanged to the system's allocator. The counter is a plain cell of the thread and
// does not allocate.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps the allocator's contract, which is passed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps the allocator's contract, which is passed on.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The number of allocations on this thread while `of` runs. A reallocation counts as one.
pub(crate) fn allocations<R>(of: impl FnOnce() -> R) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    drop(of());
    ALLOCATIONS.with(Cell::get) - before
}
