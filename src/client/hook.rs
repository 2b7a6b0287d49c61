//! Installing the panic hook and the handler of fatal signals.

use super::global;
use crate::crash;
use crate::diagnostics::{Diagnostic, log_without_client};
use crate::error::Error;

/// Has panics of this process told to PostHog, as [`try_install_panic_hook`] does. What goes wrong is logged as a warning.
///
/// ```no_run
/// posthog::init(posthog::Config::new("phc_example").queue_dir("/var/lib/mydaemon/posthog"))?;
/// posthog::install_panic_hook();
/// # Ok::<(), posthog::Error>(())
/// ```
pub fn install_panic_hook() {
    if let Err(error) = try_install_panic_hook() {
        log_without_client(&Diagnostic::CrashReportUnreadable { path: None, why: error.describe() });
    }
}

/// Puts a panic hook first in the chain; the hook that was there before runs after it. With a single prepared `write()`, without
/// allocating, locking or waiting for anybody, it leaves the message, the place, the thread and the stack in a file beside the queue.
/// A panic that the process survives is told two seconds later with level `error`; one that it ends by is told by the next process
/// that opens the queue, with level `fatal` and its own time.
///
/// Panics are told from when both this and [`init`](crate::init) were called, in either order. Calling it again puts the hook first
/// again, after somebody has set one that does not call the one before (`human-panic` and `color-eyre` do that: install ours after
/// them). Of a place that panics all the time, the first 16 panics are told and then fewer and fewer.
///
/// The message of a panic is on disk, in a file that only its owner may read, until its event is in the queue. What must not leave the
/// machine is taken out by [`Config::before_send`](crate::Config::before_send), which sees the event when it is told: it stands in
/// `$exception_message` and in the first entry of `$exception_list`.
///
/// Must not be called while the thread panics.
///
/// # Errors
///
/// [`Error::QueueDir`] if the file cannot be made: the hook is in place, and has nowhere to write.
pub fn try_install_panic_hook() -> Result<(), Error> {
    // The standard library panics where a hook is changed during a panic, and this is no reason to end a process.
    if std::thread::panicking() {
        return Err(Error::Resources(std::io::Error::other("a panic hook cannot be installed during a panic")));
    }
    crash::install_hook();
    global::arm_if_wanted()
}

/// Has fatal signals of this process told to PostHog, as [`try_install_crash_handler`] does. What goes wrong is logged as a warning.
#[cfg(feature = "crash-signals")]
pub fn install_crash_handler() {
    if let Err(error) = try_install_crash_handler() {
        log_without_client(&Diagnostic::CrashReportUnreadable { path: None, why: error.describe() });
    }
}

/// Takes SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP and SIGSYS: a null pointer, an overflown stack, an `abort`, memory that ran
/// out. As a panic, each leaves one record with one `write()`, and is told by the next process that opens the queue, with level
/// `fatal`. Exit status, core dump and the handlers that were there before (the standard library's among them) stay as they are.
///
/// Call it beside [`install_panic_hook`]: with both, a panic that aborts is told once, with its message. Told are crashes from when both
/// this and [`init`](crate::init) were called, in either order; for good. A handler that is installed later, and does not call the one
/// before it, takes its signal away from us.
///
/// Threads that were not made by the standard library have no stack to tell of an overflow of their own: see [`register_thread`].
/// Nobody can tell of SIGKILL.
///
/// Needs the feature `crash-signals`.
///
/// ```no_run
/// posthog::init(posthog::Config::from_env())?;
/// posthog::try_install_panic_hook()?;
/// posthog::try_install_crash_handler()?;
/// # Ok::<(), posthog::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Resources`] where there is no such handler: it exists for Linux on x86-64 and aarch64. [`Error::QueueDir`] if the file cannot
/// be made.
#[cfg(feature = "crash-signals")]
pub fn try_install_crash_handler() -> Result<(), Error> {
    crash::install_signals().map_err(Error::Resources)?;
    global::arm_if_wanted()
}

/// Gives the calling thread what it needs to tell that its stack has overflowed, if it lacks it: threads of the standard library have it,
/// those that C libraries make do not. 64 KiB, kept until the process ends.
///
/// ```no_run
/// // In a function that a C library calls on a thread of its own:
/// extern "C" fn on_worker_start() {
///     let _ = posthog::register_thread();
/// }
/// # on_worker_start();
/// ```
///
/// Needs the feature `crash-signals`.
///
/// # Errors
///
/// [`Error::Resources`] if the system gives no memory, and on systems without the handler.
#[cfg(feature = "crash-signals")]
pub fn register_thread() -> Result<(), Error> {
    crash::register_thread().map_err(Error::Resources)
}
