//! How a run ended, from the traces that it left.

use std::fmt;
use std::time::Duration;

use crate::sys::clock::WallNanos;
use crate::sys::disk::OomCount;

/// The end of a machine is taken for the end of the run only if that was active so shortly before the machine started again. Long enough
/// for a server to come up.
const SHORTLY: Duration = Duration::from_secs(300);

/// How a run of the program ended.
///
/// What is not known is not guessed: each variant says what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitCause {
    /// The client was closed, or its last handle dropped. Of what the program did afterwards nothing is known.
    Clean,
    /// The program called `exit` or returned from `main`, without closing the client. 101 is what Rust makes of a panic of the main
    /// thread.
    Exited {
        /// What it exited with, 0 to 255; `None` where the C library does not tell (musl, macOS).
        status: Option<i32>,
    },
    /// It panicked, and died of that. Known only where the panic hook was installed.
    Panicked,
    /// It died of that signal: a fatal one that our handler saw, or one that
    /// [`drain_on_terminate`](crate::drain_on_terminate) served.
    Signal(i32),
    /// It ended without a word while the machine went on: SIGKILL, from whomever (also the OOM killer, where that left no proof), another
    /// signal of which it died without a handler of ours, or `_exit`.
    Killed,
    /// As [`Killed`](Self::Killed), and since its last sign of life the kernel's OOM killer had killed in its own control group
    /// (cgroup v2).
    OutOfMemory,
    /// The machine stopped under it: a power cut, a reset, a crash of the kernel. Said only where the machine was started anew within five
    /// minutes after the last sign of life, and where an orderly restart would have left a trace, because SIGTERM had a handler.
    PowerLoss,
    /// None of this can be said. The machine was restarted meanwhile, or an older version of this library wrote the queue, or the system
    /// does not tell what is needed.
    Unknown,
}

impl ExitCause {
    /// As it stands in events: `clean`, `exited`, `panicked`, `signal`, `killed`, `out_of_memory`, `power_loss`, `unknown`.
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
            ExitCause::Clean => f.write_str("closed in good order"),
            ExitCause::Exited { status: Some(status) } => write!(f, "exited with status {status}"),
            ExitCause::Exited { status: None } => f.write_str("exited"),
            ExitCause::Panicked => f.write_str("panicked"),
            ExitCause::Signal(signal) => write!(f, "died of signal {signal}"),
            ExitCause::Killed => f.write_str("killed (SIGKILL, OOM or another signal that nobody handled)"),
            ExitCause::OutOfMemory => f.write_str("killed for want of memory"),
            ExitCause::PowerLoss => f.write_str("the machine stopped"),
            ExitCause::Unknown => f.write_str("not known"),
        }
    }
}

/// What a run left in the crash files, of which it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FatalRecord {
    Panic,
    Signal(i32),
}

/// Everything that the end is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traces {
    /// Found in the crash files of that process.
    pub(crate) fatal: Option<FatalRecord>,
    /// The queue was let go in good order.
    pub(crate) closed: bool,
    /// The mark made at `exit`, with the status if that is known.
    pub(crate) exit: Option<Option<i32>>,
    /// Such a mark would have been made.
    pub(crate) watched_exit: bool,
    /// The signal that was served, and that was to be died of.
    pub(crate) dying_of: Option<i32>,
    /// SIGTERM had a handler.
    pub(crate) watched_termination: bool,
    /// Whether the machine has been up since; `None` if the system does not tell.
    pub(crate) same_boot: Option<bool>,
    /// Wall time of the last sign of life.
    pub(crate) seen_at: WallNanos,
    /// Wall time at which the machine was started.
    pub(crate) booted_at: Option<WallNanos>,
    /// The OOM killer at the last sign of life, and now.
    pub(crate) oom: (Option<OomCount>, Option<OomCount>),
}

/// The end of the run that left those traces.
pub(crate) fn end_of(traces: &Traces) -> ExitCause {
    match (traces.fatal, traces.dying_of) {
        (Some(FatalRecord::Panic), _) => return ExitCause::Panicked,
        (Some(FatalRecord::Signal(signal)), _) => return ExitCause::Signal(signal),
        // Served to the end; else it was killed while that was going on.
        (None, Some(signal)) if traces.closed => return ExitCause::Signal(signal),
        _ => {}
    }
    if traces.closed {
        return ExitCause::Clean;
    }
    if let Some(status) = traces.exit {
        return ExitCause::Exited { status };
    }
    match traces.same_boot {
        // It may have exited, and nothing would say so.
        _ if !traces.watched_exit => ExitCause::Unknown,
        Some(true) if has_oom_killed(traces) => ExitCause::OutOfMemory,
        Some(true) => ExitCause::Killed,
        Some(false) if has_lost_power(traces) => ExitCause::PowerLoss,
        Some(false) | None => ExitCause::Unknown,
    }
}

/// The counter says so, and it is that of the same group.
fn has_oom_killed(traces: &Traces) -> bool {
    match traces.oom {
        (Some(then), Some(now)) => (then.path, then.inode) == (now.path, now.inode) && now.kills > then.kills,
        _ => false,
    }
}

fn has_lost_power(traces: &Traces) -> bool {
    // An orderly restart sends SIGTERM first. With a handler that is an exit, a closed client, or a signal that was served; without one
    // the process is gone as if by a power cut.
    let would_have_said = traces.watched_termination && traces.dying_of.is_none();
    // Active after the start of a machine that it did not run on: then a clock is wrong, or it was another machine.
    let gap = traces.booted_at.and_then(|booted_at| u64::try_from(booted_at.checked_sub(traces.seen_at)?).ok());
    would_have_said && gap.is_some_and(|nanos| Duration::from_nanos(nanos) <= SHORTLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const SEEN: i64 = 1_000_000 * SECOND;

    fn oom(path: u64, inode: u64, kills: u64) -> Option<OomCount> {
        Some(OomCount { path, inode, kills })
    }

    /// Gone without a word, on a machine that has been up.
    fn gone() -> Traces {
        Traces {
            watched_exit: true,
            watched_termination: true,
            same_boot: Some(true),
            seen_at: SEEN,
            oom: (oom(1, 2, 3), oom(1, 2, 3)),
            ..Traces::default()
        }
    }

    /// The same, on a machine that was started so many seconds after the last sign of life.
    fn restarted(seconds: i64) -> Traces {
        Traces { same_boot: Some(false), booted_at: Some(SEEN + seconds * SECOND), ..gone() }
    }

    #[test]
    fn the_table_of_ends_holds() {
        let exited = |status| ExitCause::Exited { status };
        let (panic, fault) = (Some(FatalRecord::Panic), Some(FatalRecord::Signal(11)));
        let table = [
            ("nothing known", Traces::default(), ExitCause::Unknown),
            ("closed", Traces { closed: true, ..gone() }, ExitCause::Clean),
            ("closed, by an older version", Traces { closed: true, ..Traces::default() }, ExitCause::Clean),
            ("closed, and restarted", Traces { closed: true, ..restarted(1) }, ExitCause::Clean),
            ("exited", Traces { exit: Some(Some(3)), ..gone() }, exited(Some(3))),
            ("exited, status unknown", Traces { exit: Some(None), ..gone() }, exited(None)),
            ("exited, and restarted", Traces { exit: Some(Some(0)), ..restarted(1) }, exited(Some(0))),
            ("panicked", Traces { fatal: panic, ..gone() }, ExitCause::Panicked),
            ("panicked and exited", Traces { fatal: panic, exit: Some(Some(101)), ..gone() }, ExitCause::Panicked),
            ("faulted after closing", Traces { fatal: fault, closed: true, ..gone() }, ExitCause::Signal(11)),
            ("drained", Traces { dying_of: Some(15), closed: true, ..gone() }, ExitCause::Signal(15)),
            ("killed while draining", Traces { dying_of: Some(15), ..gone() }, ExitCause::Killed),
            ("restarted while draining", Traces { dying_of: Some(15), ..restarted(1) }, ExitCause::Unknown),
            ("killed", gone(), ExitCause::Killed),
            ("gone, exits unwatched", Traces { watched_exit: false, ..gone() }, ExitCause::Unknown),
            ("gone, boots unknown", Traces { same_boot: None, ..gone() }, ExitCause::Unknown),
            ("oom", Traces { oom: (oom(1, 2, 3), oom(1, 2, 4)), ..gone() }, ExitCause::OutOfMemory),
            ("oom elsewhere", Traces { oom: (oom(1, 2, 3), oom(9, 2, 4)), ..gone() }, ExitCause::Killed),
            ("oom in a new group", Traces { oom: (oom(1, 2, 3), oom(1, 9, 4)), ..gone() }, ExitCause::Killed),
            ("oom, uncounted then", Traces { oom: (None, oom(1, 2, 4)), ..gone() }, ExitCause::Killed),
            ("oom, uncounted now", Traces { oom: (oom(1, 2, 3), None), ..gone() }, ExitCause::Killed),
            ("power", restarted(60), ExitCause::PowerLoss),
            ("power, at the limit", restarted(300), ExitCause::PowerLoss),
            ("idle before the restart", restarted(301), ExitCause::Unknown),
            ("another machine", restarted(-1), ExitCause::Unknown),
            ("start unknown", Traces { booted_at: None, ..restarted(1) }, ExitCause::Unknown),
            ("sigterm unhandled", Traces { watched_termination: false, ..restarted(1) }, ExitCause::Unknown),
            ("restarted, exits unwatched", Traces { watched_exit: false, ..restarted(1) }, ExitCause::Unknown),
            (
                "hostile words",
                Traces { seen_at: i64::MIN, booted_at: Some(i64::MAX), ..restarted(1) },
                ExitCause::Unknown,
            ),
        ];
        for (name, traces, end) in table {
            assert_eq!(end_of(&traces), end, "{name}");
        }
    }
}
