//! Panics once and prints the cost: the number of calls of the system's allocator and of system calls that write. Given
//! a queue directory and a host, it initializes the client and installs the panic hook first.

#![allow(unsafe_code, reason = "wraps the system's allocator with a counter")]

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::catch_unwind;

use posthog::Config;

thread_local! {
    /// The allocator calls of this thread. Those of the library's threads are not counted.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn allocations() -> u64 {
    ALLOCATIONS.get()
}

// Defining `malloc` here overrides the C library's for the whole process, including the unwinder and the dynamic
// loader, which a Rust allocator would not see.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod before_malloc {
    use super::*;

    fn count_one() {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    }

    // SAFETY: as declared by the C library.
    unsafe extern "C" {
        fn __libc_malloc(size: usize) -> *mut c_void;
        fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
        fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
        fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
    }

    // SAFETY: the one definition of that name in this program, with the C library's own type.
    #[unsafe(no_mangle)]
    extern "C" fn malloc(size: usize) -> *mut c_void {
        count_one();
        // SAFETY: passes on its own arguments.
        unsafe { __libc_malloc(size) }
    }

    // SAFETY: the one definition of that name in this program, with the C library's own type.
    #[unsafe(no_mangle)]
    extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
        count_one();
        // SAFETY: passes on its own arguments.
        unsafe { __libc_calloc(count, size) }
    }

    // SAFETY: the one definition of that name in this program, with the C library's own type.
    #[unsafe(no_mangle)]
    extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
        count_one();
        // SAFETY: passes on its own arguments.
        unsafe { __libc_realloc(old, size) }
    }

    // SAFETY: the one definition of that name in this program, with the C library's own type.
    #[unsafe(no_mangle)]
    extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
        count_one();
        // SAFETY: passes on its own arguments.
        unsafe { __libc_memalign(align, size) }
    }

    // SAFETY: the one definition of that name in this program, with the C library's own type.
    #[unsafe(no_mangle)]
    extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> i32 {
        count_one();
        // SAFETY: passes on its own arguments; the caller of `posix_memalign` guarantees that `out` is writable.
        unsafe {
            out.write(__libc_memalign(align, size));
            if out.read().is_null() { 12 } else { 0 }
        }
    }
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let arguments: Vec<String> = std::env::args().collect();
    if let (Some(queue_dir), Some(host)) = (arguments.get(1), arguments.get(2)) {
        posthog::init(Config::new("phc_dying").queue_dir(queue_dir).host(host)).expect("a queue");
        posthog::install_panic_hook();
        // Long enough for the client's threads to become idle.
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    // A warm-up: what the first call initializes is not counted.
    let _warm = writes();
    // The values of the context are copied into the record as well.
    let request = posthog::Context::new().distinct_id("user_7").session_id("session_7");
    let (allocated, written) = request.enter(|| {
        let (start, before) = (allocations(), writes());
        let first = allocations();
        let reading = first - start;
        let caught = catch_unwind(|| panic!("a literal"));
        let allocated = allocations() - first;
        assert!(caught.is_err() && (reading > 0 || cfg!(not(target_env = "gnu"))), "allocator calls are counted");
        (allocated, writes() - before)
    });
    #[allow(clippy::print_stdout, reason = "this is what the program is for")]
    {
        println!("{allocated} {written}");
    }
}

/// The number of system calls that write, made by this thread so far.
fn writes() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").expect("the kernel's counters");
    let line = io.lines().find_map(|line| line.strip_prefix("syscw: ")).expect("a count of writes");
    line.parse().expect("a number")
}
