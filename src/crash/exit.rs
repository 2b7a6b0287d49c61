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

use crate::queue::RunRecord;
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

/// The cause of the end of a run. `fatal` is what its crash reports say that it died of, `booted_at` the wall time of
/// the machine's last boot if that was after the run, `oom` the present OOM counter of the control group.
pub(crate) fn exit_cause(
    run: &RunRecord,
    fatal: Option<ExitCause>,
    booted_at: Option<WallNanos>,
    oom: Option<OomCount>,
) -> ExitCause {
    if fatal.is_some() || run.closed {
        // If it was not closed, it was killed while it handled the signal that was to end it.
        return fatal.or(run.dying_of.map(ExitCause::Signal)).unwrap_or(ExitCause::Clean);
    }
    if let Some(status) = run.exit {
        return ExitCause::Exited { status };
    }
    match run.same_boot {
        // Then an exit would have left no trace either.
        _ if !run.heartbeat.watches_exit => ExitCause::Unknown,
        Some(true) if has_oom_kill(run.heartbeat.oom, oom) => ExitCause::OutOfMemory,
        Some(true) => ExitCause::Killed,
        Some(false) if has_lost_power(run, booted_at) => ExitCause::PowerLoss,
        Some(false) | None => ExitCause::Unknown,
    }
}

/// Whether the counter has grown, and belongs to the same control group.
fn has_oom_kill(then: Option<OomCount>, now: Option<OomCount>) -> bool {
    then.zip(now).is_some_and(|(then, now)| (then.path, then.inode) == (now.path, now.inode) && now.kills > then.kills)
}

fn has_lost_power(run: &RunRecord, booted_at: Option<WallNanos>) -> bool {
    // An orderly restart sends SIGTERM first. With a handler it leads to an exit, a closed client, or a recorded
    // signal; without a handler it looks like a power failure.
    let would_be_recorded = run.heartbeat.watches_termination && run.dying_of.is_none();
    // Negative if the run was active after the boot of a machine that it did not run on: then a clock is wrong, or it
    // was another machine.
    let gap = booted_at.and_then(|booted_at| u64::try_from(booted_at.checked_sub(run.heartbeat.at)?).ok());
    would_be_recorded && gap.is_some_and(|nanos| Duration::from_nanos(nanos) <= RESTART_WITHIN)
}

/// Is notified when the process exits.
pub(crate) trait ExitObserver: Send + Sync {
    /// Called on the thread that exits, while other threads still run. `status` is the exit status as the parent sees
    /// it, if known.
    fn on_exit(&self, status: Option<i32>);
}

/// An observer, and the process that registered it.
struct Registration {
    process: (u32, u64),
    observer: Weak<dyn ExitObserver>,
}

static OBSERVERS: Mutex<Vec<Registration>> = Mutex::new(Vec::new());
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
    observers.retain(|known| known.observer.strong_count() > 0);
    observers.push(Registration { process: this_process(), observer });
    true
}

fn this_process() -> (u32, u64) {
    // A `vfork` child shares its parent's memory and differs in its pid only.
    (std::process::id(), fork::generation())
}

fn notify_observers(status: Option<i32>) {
    let this_process = this_process();
    let Some(observers) = lock_within(&OBSERVERS, LOCK_WAIT) else { return };
    let ours = observers.iter().filter(|known| known.process == this_process);
    let ours: Vec<_> = ours.filter_map(|known| known.observer.upgrade()).collect();
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
    use crate::queue::Heartbeat;

    const SECOND: i64 = 1_000_000_000;
    const SEEN: i64 = 1_000_000 * SECOND;

    fn oom(path: u64, inode: u64, kills: u64) -> Option<OomCount> {
        Some(OomCount { path, inode, kills })
    }

    /// What is known of a run: the arguments of [`exit_cause`].
    #[derive(Clone, Copy, Default)]
    struct Evidence {
        run: RunRecord,
        fatal: Option<ExitCause>,
        booted_at: Option<WallNanos>,
        oom: Option<OomCount>,
    }

    impl Evidence {
        fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }
    }

    /// The run ended without a trace, on a machine that has not booted since.
    fn gone() -> Evidence {
        let heartbeat = Heartbeat {
            watches_exit: true,
            watches_termination: true,
            at: SEEN,
            oom: oom(1, 2, 3),
            ..Heartbeat::default()
        };
        let run = RunRecord { same_boot: Some(true), heartbeat, ..RunRecord::default() };
        Evidence { run, oom: oom(1, 2, 3), ..Evidence::default() }
    }

    /// The same, on a machine that booted this many seconds after the last sign of life.
    fn restarted(seconds: i64) -> Evidence {
        gone().but(|of| {
            of.run.same_boot = Some(false);
            of.booted_at = Some(SEEN + seconds * SECOND);
        })
    }

    #[test]
    fn the_table_of_ends_holds() {
        let exited = |status| ExitCause::Exited { status };
        let (panic, fault) = (Some(ExitCause::Panicked), Some(ExitCause::Signal(11)));
        let table = [
            ("nothing known", Evidence::default(), ExitCause::Unknown),
            ("closed", gone().but(|of| of.run.closed = true), ExitCause::Clean),
            ("closed, by an older version", Evidence::default().but(|of| of.run.closed = true), ExitCause::Clean),
            ("closed, and restarted", restarted(1).but(|of| of.run.closed = true), ExitCause::Clean),
            ("exited", gone().but(|of| of.run.exit = Some(Some(3))), exited(Some(3))),
            ("exited, status unknown", gone().but(|of| of.run.exit = Some(None)), exited(None)),
            ("exited, and restarted", restarted(1).but(|of| of.run.exit = Some(Some(0))), exited(Some(0))),
            ("panicked", gone().but(|of| of.fatal = panic), ExitCause::Panicked),
            (
                "panicked and exited",
                gone().but(|of| (of.fatal, of.run.exit) = (panic, Some(Some(101)))),
                ExitCause::Panicked,
            ),
            (
                "faulted after closing",
                gone().but(|of| (of.fatal, of.run.closed) = (fault, true)),
                ExitCause::Signal(11),
            ),
            ("drained", gone().but(|of| (of.run.dying_of, of.run.closed) = (Some(15), true)), ExitCause::Signal(15)),
            ("killed while draining", gone().but(|of| of.run.dying_of = Some(15)), ExitCause::Killed),
            ("restarted while draining", restarted(1).but(|of| of.run.dying_of = Some(15)), ExitCause::Unknown),
            ("killed", gone(), ExitCause::Killed),
            ("gone, exits unwatched", gone().but(|of| of.run.heartbeat.watches_exit = false), ExitCause::Unknown),
            ("gone, boots unknown", gone().but(|of| of.run.same_boot = None), ExitCause::Unknown),
            ("oom", gone().but(|of| of.oom = oom(1, 2, 4)), ExitCause::OutOfMemory),
            ("oom elsewhere", gone().but(|of| of.oom = oom(9, 2, 4)), ExitCause::Killed),
            ("oom in a new group", gone().but(|of| of.oom = oom(1, 9, 4)), ExitCause::Killed),
            (
                "oom, uncounted then",
                gone().but(|of| (of.run.heartbeat.oom, of.oom) = (None, oom(1, 2, 4))),
                ExitCause::Killed,
            ),
            ("oom, uncounted now", gone().but(|of| of.oom = None), ExitCause::Killed),
            ("power", restarted(60), ExitCause::PowerLoss),
            ("power, at the limit", restarted(300), ExitCause::PowerLoss),
            ("idle before the restart", restarted(301), ExitCause::Unknown),
            ("another machine", restarted(-1), ExitCause::Unknown),
            ("start unknown", restarted(1).but(|of| of.booted_at = None), ExitCause::Unknown),
            (
                "sigterm unhandled",
                restarted(1).but(|of| of.run.heartbeat.watches_termination = false),
                ExitCause::Unknown,
            ),
            (
                "restarted, exits unwatched",
                restarted(1).but(|of| of.run.heartbeat.watches_exit = false),
                ExitCause::Unknown,
            ),
            (
                "extreme values",
                restarted(1).but(|of| (of.run.heartbeat.at, of.booted_at) = (i64::MIN, Some(i64::MAX))),
                ExitCause::Unknown,
            ),
        ];
        for (name, evidence, end) in table {
            assert_eq!(exit_cause(&evidence.run, evidence.fatal, evidence.booted_at, evidence.oom), end, "{name}");
        }
    }
}
