//! Installing the panic hook.

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
        log_without_client(&Diagnostic::LastWordsUnread { path: None, why: error.describe() });
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
