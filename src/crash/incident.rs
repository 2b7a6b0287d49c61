//! From records to incidents: which panic ended the process, which ones it survived, and which records belong together.
//! Pure.
//!
//! The hook cannot know whether a panic will be caught. The reader knows, from what came after it.
//!
//! | found | reported as |
//! |---|---|
//! | a panic, and the abort that followed it | fatal |
//! | a panic of the main thread, and exit status 101 | fatal |
//! | a panic of the main thread, and within a second an exit of unknown status (musl, macOS) | fatal |
//! | a panic in a program built with `panic = "abort"` | fatal |
//! | a panic, and no later record of a process that is gone | fatal (the last panic) |
//! | a panic of a process that is alive, or exited with another status | error |
//! | a signal of a process that is gone | fatal |
//! | a signal of a process that is alive or exited on its own: the fault was repaired | not reported |
//! | a signal marked as survived, or followed by another record ten seconds later | not reported |
//! | a signal or panic of which a forked child died, whatever its parent did | fatal |
//! | a panic during the cleanup after a panic | one incident, the first panic chained to the second |

use std::collections::BTreeSet;

use super::format::{Kind, Record, Tag, flags};

/// The state of the process that wrote the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    /// It is alive, and the grace period after its records has passed.
    Alive,
    /// It exited on its own, with this status if known.
    Exited(Option<i32>),
    /// It is gone, in an unknown way.
    Gone,
}

/// A panic or a fatal signal that is to be reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incident {
    pub(crate) record: Record,
    pub(crate) is_fatal: bool,
    pub(crate) kind: String,
    pub(crate) message: String,
    /// The record of the panic whose cleanup raised this one.
    pub(crate) during: Option<Record>,
}

impl Incident {
    fn of(record: &Record, kind: String, message: String) -> Self {
        Self { record: record.clone(), is_fatal: false, kind, message, during: None }
    }

    /// Whether the handler of fatal signals wrote the record; otherwise the panic hook did.
    pub(crate) fn is_signal(&self) -> bool {
        self.record.kind == Kind::Signal
    }
}

/// The type of a panic's exception.
pub(crate) const PANIC: &str = "Panic";

/// Messages of the standard library's own panics when it gives up on a panic. The panic before them is the cause.
pub(super) const STD_CLEANUP: [&str; 2] =
    ["panic in a destructor during cleanup", "panic in a function that cannot unwind"];

/// After a panic leaves `main`, only destructors and the exit remain: an exit within this time is its consequence.
const EXIT_FOLLOWS_NANOS: u64 = 1_000_000_000;

/// A process that writes a record this long after a signal did not die of the signal.
const DYING_MOST_NANOS: u64 = 10_000_000_000;

/// Whether `record` is of a signal that its process is known to have survived.
pub(super) fn is_survived(record: &Record, records: &[Record]) -> bool {
    if !matches!(record.kind, Kind::Signal | Kind::Abort) || record.has_flag(flags::FORKED_CHILD) {
        return false;
    }
    // Record numbers begin with 1, so the mark of an empty slot (0) matches no record.
    let is_mark = |other: &Record| other.kind == Kind::Repaired && other.number == record.number;
    let comes_long_after = |other: &Record| match (record.number(Tag::Time), other.number(Tag::Time)) {
        (Some(then), Some(later)) => {
            !other.has_flag(flags::FORKED_CHILD) && later.saturating_sub(then) > DYING_MOST_NANOS
        }
        _ => false,
    };
    records.iter().any(|other| is_mark(other) || comes_long_after(other))
}

/// The incidents in `records`, in the order in which they happened.
pub(super) fn incidents(records: &[Record], state: ProcessState) -> Vec<Incident> {
    let state = match records.iter().rfind(|record| matches!(record.kind, Kind::Exit | Kind::Survived)) {
        Some(exit) if state == ProcessState::Gone && exit.kind == Kind::Exit => {
            ProcessState::Exited(exit.number(Tag::Status).and_then(|status| i32::try_from(status).ok()))
        }
        // It was alive when the file was rotated away.
        Some(_) if state == ProcessState::Gone => ProcessState::Alive,
        _ => state,
    };
    let (of_children, own): (Vec<_>, Vec<_>) = records
        .iter()
        .filter(|record| !is_survived(record, records))
        .partition(|record| record.has_flag(flags::FORKED_CHILD));
    let mut reported = of_process(&own, state);
    // How a forked child ended is not recorded, and it is not known to be alive. So its own record of a signal is
    // believed, whatever its parent did.
    let children: BTreeSet<_> = of_children.iter().map(|record| record.number(Tag::Pid)).collect();
    for child in children {
        let of_child: Vec<_> = of_children.iter().copied().filter(|record| record.number(Tag::Pid) == child).collect();
        let died = of_child.iter().any(|record| matches!(record.kind, Kind::Signal | Kind::Abort));
        let state = if died || state != ProcessState::Alive { ProcessState::Gone } else { ProcessState::Alive };
        reported.extend(of_process(&of_child, state));
    }
    reported.sort_by_key(|incident| incident.record.number);
    reported
}

fn of_process(records: &[&Record], state: ProcessState) -> Vec<Incident> {
    let panics = panics(records);
    let fatal = fatal_panic(records, &panics, state);
    let with_severity = |(panic, abort_number)| Incident { is_fatal: fatal.contains(&abort_number), ..panic };
    let mut reported: Vec<Incident> = panics.into_iter().map(with_severity).collect();
    if state == ProcessState::Gone {
        reported.extend(records.iter().filter(|record| record.kind == Kind::Signal).map(|record| signal(record)));
    }
    reported
}

/// The panics, not yet judged to be fatal. The panics of the standard library that followed during the cleanup after
/// one belong to it; the number is that of the last of its records, to which an abort refers.
fn panics(records: &[&Record]) -> Vec<(Incident, u64)> {
    let mut panics: Vec<(Incident, u64)> = Vec::new();
    for record in records.iter().copied().filter(|record| record.kind == Kind::Panic) {
        let message = record.bytes(Tag::Message).unwrap_or_default();
        let is_std_message = STD_CLEANUP.iter().any(|text| message == text.as_bytes());
        let thread = record.number(Tag::Tid);
        let is_of_thread = |(panic, _): &(Incident, u64)| panic.record.number(Tag::Tid) == thread;
        let Some(at) = panics.iter().rposition(is_of_thread).filter(|_| is_std_message) else {
            let text = record.text(Tag::Message).unwrap_or_default();
            panics.push((Incident::of(record, PANIC.to_owned(), text), record.number));
            continue;
        };
        // A panic in a destructor: the panic before it was raised during the cleanup after the one before that.
        let before = panics.iter().take(at).rposition(is_of_thread).filter(|_| message == STD_CLEANUP[0].as_bytes());
        let during = before.map(|before| panics.remove(before).0.record);
        let at = if during.is_some() { at.saturating_sub(1) } else { at };
        if let Some((panic, abort_number)) = panics.get_mut(at) {
            (panic.during, *abort_number) = (during, record.number);
        }
    }
    panics
}

/// The numbers of the panics that the process died of.
fn fatal_panic(records: &[&Record], panics: &[(Incident, u64)], state: ProcessState) -> Vec<u64> {
    if state == ProcessState::Alive {
        return Vec::new();
    }
    let aborted: Vec<_> = records
        .iter()
        .filter(|record| record.kind == Kind::Abort)
        .filter_map(|record| record.number(Tag::PanicNumber))
        .collect();
    if !aborted.is_empty() {
        return aborted;
    }
    if records.iter().any(|record| record.kind == Kind::Signal) {
        // It died of that signal.
        return Vec::new();
    }
    let last = match state {
        ProcessState::Exited(Some(101)) => panics.iter().rfind(|(panic, _)| is_main_thread(&panic.record)),
        ProcessState::Exited(None) => {
            panics.iter().rfind(|(panic, _)| is_main_thread(&panic.record) && exit_follows(&panic.record, records))
        }
        ProcessState::Exited(Some(_)) => None,
        ProcessState::Alive | ProcessState::Gone => panics.last(),
    };
    last.map(|(_, abort_number)| *abort_number).into_iter().collect()
}

/// Whether the process exited within [`EXIT_FOLLOWS_NANOS`] of the panic. Only used where the exit status is unknown; a
/// panic caught in `main` right before an exit is then taken for fatal too.
fn exit_follows(panic: &Record, records: &[&Record]) -> bool {
    let exited = records.iter().rfind(|record| record.kind == Kind::Exit).and_then(|exit| exit.number(Tag::Time));
    match (panic.number(Tag::Time), exited) {
        (Some(panicked), Some(exited)) => exited.saturating_sub(panicked) < EXIT_FOLLOWS_NANOS,
        _ => false,
    }
}

fn is_main_thread(record: &Record) -> bool {
    record.number(Tag::Tid) == record.number(Tag::Pid)
}

fn signal(record: &Record) -> Incident {
    let number = record.number(Tag::Signal).and_then(|number| i32::try_from(number).ok()).unwrap_or(0);
    let overflowed = record.has_flag(flags::STACK_OVERFLOW);
    let panicking = record.has_flag(flags::PANICKING);
    let kind = match (overflowed, panicking) {
        (true, _) => "StackOverflow".to_owned(),
        (false, true) => PANIC.to_owned(),
        (false, false) => signal_name(number),
    };
    let message = match (record.number(Tag::FaultAddress), record.number(Tag::SenderPid)) {
        _ if overflowed => "a thread has overflowed its stack".to_owned(),
        // The panic hook did not run: the message could not be formatted.
        _ if panicking => "panic message unavailable (panic while formatting, or out of memory)".to_owned(),
        (Some(address), _) => format!("{} at 0x{address:x}", signal_meaning(number)),
        (None, Some(sender)) if record.number(Tag::Pid) != Some(sender) => {
            format!("{}, sent by process {sender}", signal_meaning(number))
        }
        (None, _) => signal_meaning(number).to_owned(),
    };
    Incident { is_fatal: true, ..Incident::of(record, kind, message) }
}

/// The name as `kill -l` prints it.
fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => format!("SIG{number}"),
    }
}

fn signal_meaning(number: i32) -> &'static str {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(nix::sys::signal::Signal::SIGSEGV) => "Segmentation fault",
        Ok(nix::sys::signal::Signal::SIGBUS) => "Bus error",
        Ok(nix::sys::signal::Signal::SIGILL) => "Illegal instruction",
        Ok(nix::sys::signal::Signal::SIGFPE) => "Arithmetic exception",
        Ok(nix::sys::signal::Signal::SIGABRT) => "Aborted",
        Ok(nix::sys::signal::Signal::SIGTRAP) => "Trap",
        Ok(nix::sys::signal::Signal::SIGSYS) => "Bad system call",
        _ => "Signal",
    }
}
