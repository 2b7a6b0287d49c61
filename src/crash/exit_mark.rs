//! What runs at `exit`, and when `main` returns: it marks the pages of those who asked for it.
//!
//! On glibc it hears the status (`on_exit`), elsewhere only that it was so (`atexit`). It is the process that registered it that is
//! marked, and no child: what is registered is inherited by a fork, and a child that exits has not ended its parent.

#![allow(unsafe_code, reason = "registering a function with the C library; each block proves itself")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use crate::sys::disk::fork::{self, lock_within};

/// Somebody who wants it written down.
pub(crate) trait ExitMark: Send + Sync {
    /// The process exits, with this status (as its parent sees it) if that is known. On the thread that exits, while others are at work.
    fn process_exits(&self, status: Option<i32>);
}

/// Whose mark, in which process.
struct Entry {
    pid: u32,
    generation: u64,
    mark: Weak<dyn ExitMark>,
}

static MARKS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Inherited by children, as what was registered is.
static REGISTERED: AtomicBool = AtomicBool::new(false);
/// A thread that a child does not have may hold the lock there.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// Has `mark` told when this process exits, as long as it lives. `false` if that cannot be promised.
pub(crate) fn mark_at_exit(mark: Weak<dyn ExitMark>) -> bool {
    if !REGISTERED.swap(true, Ordering::AcqRel) && !register() {
        REGISTERED.store(false, Ordering::Release);
        return false;
    }
    let Some(mut marks) = lock_within(&MARKS, LOCK_WAIT) else { return false };
    let (pid, generation) = (std::process::id(), fork::generation());
    marks.retain(|entry| entry.mark.strong_count() > 0);
    marks.push(Entry { pid, generation, mark });
    true
}

fn process_exits(status: Option<i32>) {
    // The process of a child that shares its parent's memory (`vfork`) differs in its number alone.
    let (pid, generation) = (std::process::id(), fork::generation());
    let Some(marks) = lock_within(&MARKS, LOCK_WAIT) else { return };
    let ours = marks.iter().filter(|entry| (entry.pid, entry.generation) == (pid, generation));
    let ours: Vec<_> = ours.filter_map(|entry| entry.mark.upgrade()).collect();
    drop(marks);
    for mark in ours {
        mark.process_exits(status);
        // It is not ours to end what it belongs to, should we be the last who have it.
        std::mem::forget(mark);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn register() -> bool {
    use std::ffi::{c_int, c_void};

    // SAFETY: as glibc declares it.
    unsafe extern "C" {
        fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn exits(status: c_int, _: *mut c_void) {
        // No panic may leave it. Of the status a parent sees eight bits.
        let _ = catch_unwind(AssertUnwindSafe(|| process_exits(Some(status & 0xff))));
    }
    // SAFETY: the function is of that type and lives for ever; it uses no argument.
    unsafe { on_exit(exits, std::ptr::null_mut()) == 0 }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn register() -> bool {
    extern "C" fn exits() {
        let _ = catch_unwind(AssertUnwindSafe(|| process_exits(None)));
    }
    // SAFETY: the function is of that type and lives for ever.
    unsafe { nix::libc::atexit(exits) == 0 }
}
