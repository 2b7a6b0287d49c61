//! Fatal signals: a record of what the process dies of, and then exactly the death that it would have died.
//!
//! ```text
//! kernel -> entry.rs   onto a stack of our own: the alternate stack of a thread may have room for nothing but the signal's frame
//!        -> flow.rs    who has that stack, what to do when the handler itself faults
//!        -> walk.rs    return addresses, by unwind tables prepared beforehand and reads that cannot fault
//!        -> record.rs  one record, one write
//!        -> entry.rs   back to the stack that the kernel gave; from here on nothing is held that somebody else waits for
//!        -> chain.rs   whoever was there before, or the kernel's default
//!        -> entry.rs   again, for what was passed on without a record and not repaired (familiar.rs)
//! ```
//!
//! Purpose. After a segmentation fault nothing of the process can be trusted. What runs here uses system calls, atomics and memory that
//! was set aside at the start; it allocates nothing, takes no lock, uses no thread-local and waits for nobody without a bound.
//!
//! Rules
//! * The exit status, the core dump and what earlier handlers do stay as they were. A fault of the program is let happen again after we
//!   have looked; any other signal is sent to the same thread again with all it said.
//! * One thread at a time has the prepared stack and the full walk. Others wait for it a moment, or write what their registers say.
//! * A fault inside the handler ends the walk, not the process: the original signal goes its way, with what was known by then.
//! * Handlers that repair faults (managed runtimes, lazy mappings) are called as the kernel would have called them: on its stack, with
//!   its mask, with nothing of ours held. Once the process has survived a few signals, nobody waits for anybody before that.
//! * What may be repaired is written where the next overwrites it, and marked when it was repaired: a handler that comes back with the
//!   disposition unchanged has repaired it, or the fault comes again. One that left by a jump is noticed at the next signal of its thread,
//!   or by the reader, after the time in which one dies.
//! * A signal inside a handler that we have passed another one on to is part of that, and told with it.
//! * A fault at a place where a few were repaired is passed on at once, without a record. If the handler does not repair it, it comes back
//!   with the disposition changed, or aborts: that is told then.
//!
//! Linux on x86-64 and aarch64. Elsewhere [`install`] says that it cannot.

mod chain;
mod entry;
mod familiar;
mod flow;
mod record;
mod registers;
mod stacks;
mod threads;
mod walk;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::libc;

pub(super) use flow::is_in_progress;
pub(super) use stacks::register_thread;

/// What is caught: the faults of a program, and what it is ended by on purpose.
const SIGNALS: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
/// This code is part of the program, and not of a library that it has loaded: its thread-locals are there when a thread begins.
static HAS_STATIC_THREAD_LOCALS: AtomicBool = AtomicBool::new(false);

fn has_static_thread_locals() -> bool {
    HAS_STATIC_THREAD_LOCALS.load(Ordering::Relaxed)
}

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
    familiar::SURVIVED.touch();
    HAS_STATIC_THREAD_LOCALS.store(walk::is_in_the_program(install as *const () as usize), Ordering::SeqCst);
    let installed = stacks::prepare().and_then(|()| chain::take_signals(&SIGNALS, entry::entry));
    if installed.is_err() {
        // To be tried again.
        IS_INSTALLED.store(false, Ordering::SeqCst);
    }
    installed
}
