//! Counts what a thread allocates, for programs that say so of one thing that they do.
#![allow(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one counts, and leaves the work to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came. The counter is a plain cell of the thread, and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps the allocator's contract, which is handed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps the allocator's contract, which is handed on.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How many allocations of this thread that takes. One that grows counts as another.
pub(crate) fn allocations<R>(of: impl FnOnce() -> R) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    drop(of());
    ALLOCATIONS.with(Cell::get) - before
}
