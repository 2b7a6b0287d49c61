//! Setting up crash reporting: the panic hook, the handler of fatal signals, and breadcrumbs.

use std::sync::atomic::Ordering;

use super::crash_reports::steps;
use super::{Client, Shared, global};
use crate::crash;
use crate::error::Error;
use crate::recorder::log_without_client;
use crate::report::Diagnostic;

/// Reports panics of this process to PostHog, as [`try_install_panic_hook`] does. An error is logged as a warning.
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

/// Installs a panic hook in front of the current one, which still runs afterwards. For each panic, the hook writes the
/// message, the source location, the thread and the stack to a report file beside the queue, with a single `write()`
/// and without allocating, locking or waiting. A panic that the process survives is sent two seconds later with level
/// `error`. A panic that ends the process is sent by the next process that opens the queue, with level `fatal` and the
/// time at which it happened.
///
/// Panics are reported once both this function and [`init`](crate::init) were called, in either order. Call it again
/// after the program has set a hook that does not call the previous one (`human-panic` and `color-eyre` do so; install
/// this hook after them). If one source location panics repeatedly, the first 16 panics are reported, and then only the
/// 32nd, the 64th and so on.
///
/// Until the event is in the queue, the panic message is in a file that only its owner may read. To keep data on the
/// machine, remove it in [`Config::before_send`](crate::Config::before_send), which is called when the event is
/// captured: the message is in `$exception_message` and in the first entry of `$exception_list`.
///
/// Must not be called while the thread is panicking.
///
/// # Errors
///
/// [`Error::QueueDir`] if the report file cannot be created. The hook is installed but writes nothing.
pub fn try_install_panic_hook() -> Result<(), Error> {
    // The standard library panics if a hook is set during a panic, and that must not end the process.
    if std::thread::panicking() {
        return Err(Error::Resources(std::io::Error::other("a panic hook cannot be installed during a panic")));
    }
    crash::install_hook();
    global::arm_if_wanted()
}

/// Reports fatal signals of this process to PostHog, as [`try_install_crash_handler`] does. An error is logged as a
/// warning.
#[cfg(feature = "crash-signals")]
#[cfg_attr(docsrs, doc(cfg(feature = "crash-signals")))]
pub fn install_crash_handler() {
    if let Err(error) = try_install_crash_handler() {
        log_without_client(&Diagnostic::CrashReportUnreadable { path: None, why: error.describe() });
    }
}

/// Installs a handler for SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP and SIGSYS: null pointers, stack overflows,
/// `abort`, failed allocations. For each, the handler writes one record with one `write()`, and the next process that
/// opens the queue sends it with level `fatal`. The exit status, the core dump and the effect of earlier handlers (such
/// as the standard library's) do not change.
///
/// Call it together with [`install_panic_hook`]: then a panic that aborts is reported once, with its message. Crashes
/// are reported once both this function and [`init`](crate::init) were called, in either order. The handler cannot be
/// removed. A handler that is installed later and does not call the previous one takes its signal away from this one.
///
/// A stack overflow can be reported only on threads with an alternate signal stack, which threads of the standard
/// library have; for other threads see [`register_thread`]. SIGKILL cannot be caught.
///
/// Needs the feature `crash-signals`.
///
/// ```no_run
/// posthog::init(posthog::Config::from_env())?;
/// posthog::crashes::try_install_panic_hook()?;
/// posthog::crashes::try_install_crash_handler()?;
/// # Ok::<(), posthog::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Resources`] on systems without a handler: it exists for Linux on x86-64 and aarch64. [`Error::QueueDir`] if
/// the report file cannot be created.
#[cfg(feature = "crash-signals")]
#[cfg_attr(docsrs, doc(cfg(feature = "crash-signals")))]
pub fn try_install_crash_handler() -> Result<(), Error> {
    crash::install_signals().map_err(Error::Resources)?;
    global::arm_if_wanted()
}

/// Gives the calling thread an alternate signal stack, without which an overflow of its stack cannot be reported.
/// Threads of the standard library have one; threads that C libraries create do not. Takes 64 KiB, which are kept until
/// the process ends.
///
/// ```no_run
/// // In a function that a C library calls on a thread of its own:
/// extern "C" fn on_worker_start() {
///     let _ = posthog::crashes::register_thread();
/// }
/// # on_worker_start();
/// ```
///
/// Needs the feature `crash-signals`.
///
/// # Errors
///
/// [`Error::Resources`] if the memory cannot be allocated, and on systems without the handler.
#[cfg(feature = "crash-signals")]
#[cfg_attr(docsrs, doc(cfg(feature = "crash-signals")))]
pub fn register_thread() -> Result<(), Error> {
    crash::register_thread().map_err(Error::Resources)
}

impl Client {
    /// Adds a breadcrumb: a short text about what the program does. The last 30 of them, oldest first, each with its
    /// time, are
    ///
    /// - in the report of a panic or a fatal signal and in the exceptions of this client, as `$exception_steps`, together
    ///   with the names of the events that it captured while [`install_panic_hook`](crate::install_panic_hook) or a crash
    ///   handler was installed ([`Config::breadcrumb_events`](crate::Config::breadcrumb_events));
    /// - in [`PreviousRun::breadcrumbs`](crate::crashes::PreviousRun::breadcrumbs) at the next start, however this
    ///   process ended, also after SIGKILL.
    ///
    /// Works with the client of [`init`](crate::init); with other clients, and after [`opt_out`](Client::opt_out), it
    /// does nothing. At most 224 bytes of the text are kept. Takes some nanoseconds: no allocation, no lock, no system
    /// call. The texts are in a mapped file beside the queue, which only its owner may read, and leave the machine only
    /// with these or with the event of [`Config::report_previous_run`](crate::Config::report_previous_run), which
    /// [`Config::before_send`](crate::Config::before_send) receives. In a forked child, and where the library does not
    /// map files (file systems other than ext2/3/4 and tmpfs, so network file systems, too), they are in memory only,
    /// and a SIGKILL loses them.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.breadcrumb("connected to the database");
    /// ```
    pub fn breadcrumb(&self, text: impl AsRef<str>) {
        self.shared.leave_breadcrumb(text.as_ref());
    }
}

#[cfg(any(feature = "log", feature = "tracing"))]
impl Client {
    /// Whether a breadcrumb would be kept.
    #[inline]
    pub(crate) fn keeps_breadcrumbs(&self) -> bool {
        self.shared.keeps_breadcrumbs.load(Ordering::Relaxed) && !self.shared.rules.is_opted_out()
    }
}

impl Shared {
    /// This client is the process-wide one: breadcrumbs are kept from now on.
    pub(super) fn keep_breadcrumbs(&self) {
        let Some(pipeline) = &self.pipeline else { return };
        if let Err(error) = pipeline.keep_breadcrumbs() {
            let why = format!("breadcrumbs are in memory only, and a SIGKILL loses them: their file failed ({error})");
            self.diagnostics.record(Diagnostic::InputIgnored { what: why });
        }
        self.keeps_breadcrumbs.store(true, Ordering::Relaxed);
    }

    /// The newest breadcrumbs as the value of `$exception_steps`, if this client keeps them.
    pub(super) fn recent_steps(&self) -> Option<Vec<serde_json::Value>> {
        let steps = self.keeps_breadcrumbs.load(Ordering::Relaxed).then(|| steps(&crash::recent_breadcrumbs()))?;
        Some(steps).filter(|steps| !steps.is_empty())
    }

    fn leave_breadcrumb(&self, text: &str) {
        let is_kept = self.keeps_breadcrumbs.load(Ordering::Relaxed);
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| is_kept) else { return };
        // Also in a forked child, which inherits both the hook and the ring.
        let rules = self.opened_child().map_or(&self.rules, |child| &child.shared.rules);
        if !rules.is_opted_out() {
            crash::record_breadcrumb(text, pipeline.options().clock.wall_nanos());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Event};

    #[test]
    fn names_of_events_are_no_breadcrumbs_if_turned_off() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new("phc_quiet").queue_dir(dir.path()).host("http://127.0.0.1:9").min_free_space(0);
        let client = Client::new(config.breadcrumb_events(false)).unwrap();
        // As after `init` and `install_panic_hook`.
        client.shared.is_armed.store(true, Ordering::SeqCst);
        assert!(client.capture(Event::new("no_breadcrumb_of_this", "user_1")).is_accepted());
        assert!(!crash::recorded_texts().iter().any(|text| text == "no_breadcrumb_of_this"));
    }

    #[test]
    fn a_client_that_is_not_process_wide_notes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(Config::new("phc_quiet").queue_dir(dir.path()).host("http://127.0.0.1:9")).unwrap();
        client.breadcrumb("of another client");
        client.capture(Event::new("of_another_client", "user_1"));
        let disabled = Client::new(Config::disabled()).unwrap();
        disabled.breadcrumb("of another client");
        crate::breadcrumb("before init");
        let recorded = crash::recorded_texts();
        assert!(!recorded.iter().any(|text| text.contains("another") || text == "before init"), "{recorded:?}");
    }
}
