//! How a run ends: functions that run at `exit`, and the cause of the end of an earlier run, judged by the evidence
//! that it left.
//!
//! Observers are called by the C library's exit handlers: with the status on glibc (`on_exit`), without it elsewhere
//! (`atexit`). They are called only in the process that registered them. A forked child inherits the registration, but
//! its exit is not that of its parent.

#![allow(unsafe_code, reason = "registering a function with the C library; each block proves itself")]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use crate::sys::clock::WallNanos;
use crate::sys::disk::OomCount;
use crate::sys::disk::fork::{self, lock_within};

/// A machine's stop is taken for the end of the run only if the run was active this shortly before the next boot. Long
/// enough for a server to boot.
const RESTART_WITHIN: Duration = Duration::from_secs(300);

/// How a run of the program ended.
///
/// Nothing is guessed: each variant says what evidence it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitCause {
    /// The client was closed or its last handle dropped. Nothing is known of what the program did afterwards.
    Clean,
    /// The program called `exit` or returned from `main` without closing the client. Status 101 is that of a Rust
    /// program whose main thread panicked.
    Exited {
        /// The exit status, 0 to 255; `None` where the C library does not provide it (musl, macOS).
        status: Option<i32>,
    },
    /// The program died of a panic. Known only if the panic hook was installed.
    Panicked,
    /// The program died of that signal: a fatal one that the crash handler recorded, or one that
    /// [`drain_on_terminate`](crate::drain_on_terminate) handled.
    Signal(i32),
    /// The program ended without any trace while the machine kept running: by SIGKILL (also from the OOM killer, if
    /// that left no evidence), by another signal without a handler of this library, or by `_exit`.
    Killed,
    /// As [`Killed`](Self::Killed), and after the run's last sign of life the kernel's OOM killer killed a process in
    /// its own control group (cgroup v2).
    OutOfMemory,
    /// The machine stopped during the run: a power failure, a reset, or a kernel crash. Reported only if the machine
    /// booted again within five minutes of the last sign of life, and if an orderly restart would have been recorded,
    /// because SIGTERM had a handler.
    PowerLoss,
    /// There is not enough evidence. The machine was restarted later, or an older version of this library wrote the
    /// queue, or the system does not provide what is needed.
    Unknown,
}

impl ExitCause {
    /// The name used in events: `clean`, `exited`, `panicked`, `signal`, `killed`, `out_of_memory`, `power_loss`,
    /// `unknown`.
    pub fn name(self) -> &'static str {
        match self {
            ExitCause::Clean => "clean",
            ExitCause::Exited { .. } => "exited",
            ExitCause::Panicked => "panicked",
            ExitCause::Signal(_) => "signal",
            ExitCause::Killed => "killed",
            ExitCause::OutOfMemory => "out_of_memory",
            ExitCause::PowerLoss => "power_loss",
            ExitCause::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::Clean => f.write_str("closed"),
            ExitCause::Exited { status: Some(status) } => write!(f, "exited with status {status}"),
            ExitCause::Exited { status: None } => f.write_str("exited"),
            ExitCause::Panicked => f.write_str("panicked"),
            ExitCause::Signal(signal) => write!(f, "died of signal {signal}"),
            ExitCause::Killed => f.write_str("killed (SIGKILL, the OOM killer, or another signal without a handler)"),
            ExitCause::OutOfMemory => f.write_str("killed by the OOM killer"),
            ExitCause::PowerLoss => f.write_str("the machine lost power or was reset"),
            ExitCause::Unknown => f.write_str("unknown"),
        }
    }
}

/// Everything that [`exit_cause`] considers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence {
    /// What the crash reports of that process say that it died of: a panic or a signal.
    pub(crate) fatal: Option<ExitCause>,
    /// The queue was closed in an orderly way.
    pub(crate) closed: bool,
    /// Whether the run was seen to exit, with its status if known.
    pub(crate) exit: Option<Option<i32>>,
    /// Whether an exit would have been recorded.
    pub(crate) watched_exit: bool,
    /// The termination signal that was handled, and of which the process was to die afterwards.
    pub(crate) dying_of: Option<i32>,
    /// SIGTERM had a handler.
    pub(crate) watched_termination: bool,
    /// Whether the machine has not booted since; `None` if the system does not provide it.
    pub(crate) same_boot: Option<bool>,
    /// Wall time of the run's last sign of life.
    pub(crate) seen_at: WallNanos,
    /// Wall time of the machine's last boot.
    pub(crate) booted_at: Option<WallNanos>,
    /// The control group's OOM counter at the last sign of life, and now.
    pub(crate) oom: (Option<OomCount>, Option<OomCount>),
}

/// The cause of the end of the run that left this evidence.
pub(crate) fn exit_cause(evidence: &Evidence) -> ExitCause {
    if evidence.fatal.is_some() || evidence.closed {
        // If it was not closed, it was killed while it handled the signal that was to end it.
        return evidence.fatal.or(evidence.dying_of.map(ExitCause::Signal)).unwrap_or(ExitCause::Clean);
    }
    if let Some(status) = evidence.exit {
        return ExitCause::Exited { status };
    }
    match evidence.same_boot {
        // Then an exit would have left no trace either.
        _ if !evidence.watched_exit => ExitCause::Unknown,
        Some(true) if oom_killed(evidence) => ExitCause::OutOfMemory,
        Some(true) => ExitCause::Killed,
        Some(false) if has_lost_power(evidence) => ExitCause::PowerLoss,
        Some(false) | None => ExitCause::Unknown,
    }
}

/// Whether the counter has grown, and belongs to the same control group.
fn oom_killed(evidence: &Evidence) -> bool {
    match evidence.oom {
        (Some(then), Some(now)) => (then.path, then.inode) == (now.path, now.inode) && now.kills > then.kills,
        _ => false,
    }
}

fn has_lost_power(evidence: &Evidence) -> bool {
    // An orderly restart sends SIGTERM first. With a handler it leads to an exit, a closed client, or a recorded
    // signal; without a handler it looks like a power failure.
    let would_be_recorded = evidence.watched_termination && evidence.dying_of.is_none();
    // Negative if the run was active after the boot of a machine that it did not run on: then a clock is wrong, or it
    // was another machine.
    let gap = evidence.booted_at.and_then(|booted_at| u64::try_from(booted_at.checked_sub(evidence.seen_at)?).ok());
    would_be_recorded && gap.is_some_and(|nanos| Duration::from_nanos(nanos) <= RESTART_WITHIN)
}

/// Is notified when the process exits.
pub(crate) trait ExitObserver: Send + Sync {
    /// Called on the thread that exits, while other threads still run. `status` is the exit status as the parent sees
    /// it, if known.
    fn on_exit(&self, status: Option<i32>);
}

/// An observer, and the process that registered it.
struct Entry {
    pid: u32,
    generation: u64,
    observer: Weak<dyn ExitObserver>,
}

static OBSERVERS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Forked children inherit it, as they inherit the registration with the C library.
static REGISTERED: AtomicBool = AtomicBool::new(false);
/// In a forked child, a thread that does not exist there may hold the lock.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// Has `observer` notified when this process exits, while it is alive. Returns `false` if that cannot be guaranteed.
pub(crate) fn observe_exit(observer: Weak<dyn ExitObserver>) -> bool {
    if !REGISTERED.swap(true, Ordering::AcqRel) && !register() {
        REGISTERED.store(false, Ordering::Release);
        return false;
    }
    let Some(mut observers) = lock_within(&OBSERVERS, LOCK_WAIT) else { return false };
    let (pid, generation) = (std::process::id(), fork::generation());
    observers.retain(|entry| entry.observer.strong_count() > 0);
    observers.push(Entry { pid, generation, observer });
    true
}

fn notify_observers(status: Option<i32>) {
    // A `vfork` child shares its parent's memory and differs in its pid only.
    let (pid, generation) = (std::process::id(), fork::generation());
    let Some(observers) = lock_within(&OBSERVERS, LOCK_WAIT) else { return };
    let ours = observers.iter().filter(|entry| (entry.pid, entry.generation) == (pid, generation));
    let ours: Vec<_> = ours.filter_map(|entry| entry.observer.upgrade()).collect();
    drop(observers);
    for observer in ours {
        observer.on_exit(status);
        // This may be the last reference; dropping the observer here would run its destructor during the exit.
        std::mem::forget(observer);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn register() -> bool {
    use std::ffi::{c_int, c_void};

    // SAFETY: as declared by glibc.
    unsafe extern "C" {
        fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    }
    extern "C" fn exits(status: c_int, _: *mut c_void) {
        // A panic must not leave a C callback. A parent sees eight bits of the status.
        let _ = catch_unwind(AssertUnwindSafe(|| notify_observers(Some(status & 0xff))));
    }
    // SAFETY: the function has the required type, is never unloaded, and uses no argument.
    unsafe { on_exit(exits, std::ptr::null_mut()) == 0 }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn register() -> bool {
    extern "C" fn exits() {
        let _ = catch_unwind(AssertUnwindSafe(|| notify_observers(None)));
    }
    // SAFETY: the function has the required type and is never unloaded.
    unsafe { nix::libc::atexit(exits) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const SEEN: i64 = 1_000_000 * SECOND;

    fn oom(path: u64, inode: u64, kills: u64) -> Option<OomCount> {
        Some(OomCount { path, inode, kills })
    }

    /// The run ended without a trace, on a machine that has not booted since.
    fn gone() -> Evidence {
        Evidence {
            watched_exit: true,
            watched_termination: true,
            same_boot: Some(true),
            seen_at: SEEN,
            oom: (oom(1, 2, 3), oom(1, 2, 3)),
            ..Evidence::default()
        }
    }

    /// The same, on a machine that booted this many seconds after the last sign of life.
    fn restarted(seconds: i64) -> Evidence {
        Evidence { same_boot: Some(false), booted_at: Some(SEEN + seconds * SECOND), ..gone() }
    }

    #[test]
    fn the_table_of_ends_holds() {
        let exited = |status| ExitCause::Exited { status };
        let (panic, fault) = (Some(ExitCause::Panicked), Some(ExitCause::Signal(11)));
        let table = [
            ("nothing known", Evidence::default(), ExitCause::Unknown),
            ("closed", Evidence { closed: true, ..gone() }, ExitCause::Clean),
            ("closed, by an older version", Evidence { closed: true, ..Evidence::default() }, ExitCause::Clean),
            ("closed, and restarted", Evidence { closed: true, ..restarted(1) }, ExitCause::Clean),
            ("exited", Evidence { exit: Some(Some(3)), ..gone() }, exited(Some(3))),
            ("exited, status unknown", Evidence { exit: Some(None), ..gone() }, exited(None)),
            ("exited, and restarted", Evidence { exit: Some(Some(0)), ..restarted(1) }, exited(Some(0))),
            ("panicked", Evidence { fatal: panic, ..gone() }, ExitCause::Panicked),
            ("panicked and exited", Evidence { fatal: panic, exit: Some(Some(101)), ..gone() }, ExitCause::Panicked),
            ("faulted after closing", Evidence { fatal: fault, closed: true, ..gone() }, ExitCause::Signal(11)),
            ("drained", Evidence { dying_of: Some(15), closed: true, ..gone() }, ExitCause::Signal(15)),
            ("killed while draining", Evidence { dying_of: Some(15), ..gone() }, ExitCause::Killed),
            ("restarted while draining", Evidence { dying_of: Some(15), ..restarted(1) }, ExitCause::Unknown),
            ("killed", gone(), ExitCause::Killed),
            ("gone, exits unwatched", Evidence { watched_exit: false, ..gone() }, ExitCause::Unknown),
            ("gone, boots unknown", Evidence { same_boot: None, ..gone() }, ExitCause::Unknown),
            ("oom", Evidence { oom: (oom(1, 2, 3), oom(1, 2, 4)), ..gone() }, ExitCause::OutOfMemory),
            ("oom elsewhere", Evidence { oom: (oom(1, 2, 3), oom(9, 2, 4)), ..gone() }, ExitCause::Killed),
            ("oom in a new group", Evidence { oom: (oom(1, 2, 3), oom(1, 9, 4)), ..gone() }, ExitCause::Killed),
            ("oom, uncounted then", Evidence { oom: (None, oom(1, 2, 4)), ..gone() }, ExitCause::Killed),
            ("oom, uncounted now", Evidence { oom: (oom(1, 2, 3), None), ..gone() }, ExitCause::Killed),
            ("power", restarted(60), ExitCause::PowerLoss),
            ("power, at the limit", restarted(300), ExitCause::PowerLoss),
            ("idle before the restart", restarted(301), ExitCause::Unknown),
            ("another machine", restarted(-1), ExitCause::Unknown),
            ("start unknown", Evidence { booted_at: None, ..restarted(1) }, ExitCause::Unknown),
            ("sigterm unhandled", Evidence { watched_termination: false, ..restarted(1) }, ExitCause::Unknown),
            ("restarted, exits unwatched", Evidence { watched_exit: false, ..restarted(1) }, ExitCause::Unknown),
            (
                "extreme values",
                Evidence { seen_at: i64::MIN, booted_at: Some(i64::MAX), ..restarted(1) },
                ExitCause::Unknown,
            ),
        ];
        for (name, evidence, end) in table {
            assert_eq!(exit_cause(&evidence), end, "{name}");
        }
    }
}
