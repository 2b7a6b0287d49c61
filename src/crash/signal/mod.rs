//! Fatal signals: a record of what the process dies of, and then exactly the death that it would have died.
//!
//! ```text
//! kernel -> entry.rs   onto a stack of our own: the alternate stack of a thread may have room for nothing but the signal's frame
//!        -> flow.rs    who is first, what to do when the handler itself faults
//!        -> walk.rs    return addresses, by unwind tables prepared beforehand and reads that cannot fault
//!        -> record.rs  one record, one write
//!        -> chain.rs   whoever was there before, or the kernel's default
//! ```
//!
//! Purpose. After a segmentation fault nothing of the process can be trusted. What runs here uses system calls, atomics and memory that
//! was set aside at the start; it allocates nothing, takes no lock and waits for nobody without a bound.
//!
//! Rules
//! * The exit status, the core dump and what earlier handlers do stay as they were. A fault of the program is let happen again after we
//!   have looked; any other signal is sent to the same thread again with all it said.
//! * The first thread that crashes gets the prepared stack and the full walk. Others write what their registers say.
//! * A fault inside the handler ends the process by the *original* signal, with what was known by then; more entries than any program
//!   has reasons for end it by the kernel's default. It never loops.
//! * Handlers that repair faults (managed runtimes, lazy mappings) come first once the process has survived a few of ours: then a record
//!   is written only of what they did not repair.
//! * A handler before ours that never comes back, because it jumps to where the program goes on, is noticed at the next signal of its
//!   thread, by where the stack was; one that the kernel would have called once is called once.
//! * A record of a signal that the process survives is thrown away by the reader.
//!
//! Linux on x86-64 and aarch64. Elsewhere [`install`] says that it cannot.

mod chain;
mod entry;
mod flow;
mod record;
mod registers;
mod walk;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::libc;

pub(super) use entry::register_thread;
pub(super) use flow::is_in_progress;

/// What is caught: the faults of a program, and what it is ended by on purpose.
const SIGNALS: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

static IS_INSTALLED: AtomicBool = AtomicBool::new(false);

/// Has the handler know what was loaded since. Each time leaves some kilobytes behind, which a handler may have in hand; so a program
/// that loads and unloads all the time is not followed for ever.
pub(super) fn prepare_again() {
    const TIMES: u32 = 100;
    static DONE: AtomicU32 = AtomicU32::new(0);
    if IS_INSTALLED.load(Ordering::SeqCst) && DONE.fetch_add(1, Ordering::Relaxed) < TIMES {
        walk::prepare();
    }
}

/// Takes the signals. A second call changes nothing. For good: a handler cannot be taken out from under threads that may be in it.
pub(super) fn install() -> io::Result<()> {
    if IS_INSTALLED.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    walk::prepare();
    entry::touch_stacks();
    chain::take_signals(&SIGNALS, entry::entry)
}
