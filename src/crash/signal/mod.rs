//! The handler of fatal signals: it writes a record of the signal, and the process then dies exactly as it would have
//! died without it.
//!
//! ```text
//! kernel -> entry.rs     switches to a stack of ours (`stacks.rs`): an alternate stack may only fit the signal frame
//!        -> handler.rs   classifies the signal, writes one record, decides what happens next
//!        -> walk.rs      return addresses, from unwind tables that were located beforehand
//!        -> entry.rs     back to the stack that the kernel chose; holds nothing from here on
//!        -> previous.rs  the handler that was installed before ours, or the default action
//!        -> entry.rs     again, if a signal passed on without a record was not repaired (`repairs.rs`)
//! ```
//!
//! After a segmentation fault nothing in the process can be trusted. The code in this folder uses system calls,
//! atomics, and memory that was reserved at installation. It allocates nothing, takes no lock, uses no thread-local of
//! ours, and has no unbounded wait.
//!
//! Rules
//! * The exit status, the core dump and the effects of earlier handlers stay as they were. For a fault, the faulting
//!   instruction runs again after the handler returns; any other signal is sent to the same thread again, with its
//!   original `siginfo_t`.
//! * One thread at a time has our stack and the full stack walk. Another thread waits for it for a bounded time, and
//!   otherwise writes a record with what frame pointers show.
//! * A fault inside our handler ends the walk and not the process: the record has the addresses found so far, and the
//!   original signal continues.
//! * Handlers that repair faults (managed runtimes, lazily mapped memory) are called as the kernel would have called
//!   them: on the same stack, with the same mask, while we hold nothing. Once the process has survived a few signals,
//!   no thread waits before that call.
//! * A signal that may be repaired gets a provisional record, in a slot that the next one overwrites, and that is
//!   marked when the signal was repaired. A handler that returns with the disposition unchanged has repaired the fault,
//!   or the fault comes again. A handler that left by a jump is noticed at the next signal of its thread, or by the
//!   reader after the grace period.
//! * A signal that arrives inside an earlier handler which we called is part of the first signal, and has no record of
//!   its own.
//! * A fault at a site where several faults were repaired is passed on at once, without a record. If the handler does
//!   not repair it, it returns with the disposition changed, or aborts; the record is written then.
//!
//! Linux on x86-64 and aarch64. On other systems [`install`] returns an error.

#![allow(unsafe_code, reason = "signal handlers, stacks and memory of other frames; each block proves itself")]

mod entry;
mod handler;
mod previous;
mod repairs;
mod stacks;
mod walk;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use handler::SIGNALS;
pub(super) use handler::is_in_progress;
pub(crate) use stacks::register_thread;

use super::symbols::Modules;

static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

/// Locates the unwind tables of all images again, after one was loaded. Each call leaks some kilobytes, since a handler
/// may be using the old tables; after 100 calls it does nothing, so that a program which loads and unloads libraries
/// all the time does not leak for ever.
pub(super) fn prepare_again() {
    const TIMES: u32 = 100;
    static DONE: AtomicU32 = AtomicU32::new(0);
    if IS_INSTALLED.load(Ordering::SeqCst) && DONE.fetch_add(1, Ordering::Relaxed) < TIMES {
        walk::prepare();
    }
}

/// Installs the handler for [`SIGNALS`]. A second call does nothing. There is no uninstallation: a thread may be inside
/// the handler.
pub(super) fn install() -> io::Result<()> {
    if IS_INSTALLED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    walk::prepare();
    repairs::REPAIR_COUNTS.prefault();
    let here = install as *const () as u64;
    handler::note_linkage(Modules::loaded().images().any(|image| image.is_main && image.contains(here)));
    let installed = stacks::prepare().and_then(|()| previous::install(&SIGNALS, entry::entry));
    if installed.is_err() {
        // The next call tries again.
        IS_INSTALLED.store(false, Ordering::SeqCst);
    }
    installed
}
