//! From records to what is told: which panic ended the process, which it survived, what belongs together. Pure.
//!
//! The hook cannot know whether somebody will catch the panic; the reader can, from what came after it.
//!
//! | found | told |
//! |---|---|
//! | a panic, and the abort it ended in | fatal |
//! | a panic of the main thread, and exit status 101 | fatal |
//! | a panic of the main thread, and within a second an exit whose status the system does not tell (musl, macOS) | fatal |
//! | a panic in a program built with `panic = "abort"` | fatal |
//! | a panic, then nothing more of a process that is gone | fatal, the last one |
//! | a panic of a process that lives, lived on, or ended with another status | error |
//! | a signal of a process that is gone | fatal |
//! | a signal of a process that lives, or ended by itself: somebody repaired what it was about | nothing |
//! | a signal that is marked as survived, or after which the process still wrote something ten seconds later | nothing |
//! | what a forked child says it died of, whatever became of its parent | fatal |
//! | a panic during the clean-up after a panic | one incident, the first chained to the second |

use std::collections::BTreeSet;

use super::format::{Kind, Record, Tag, flags};
use super::steps::{self, Step};

/// What is known of the process that wrote the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It lives, and has had time to die of what it wrote.
    Alive,
    /// It ended by itself, with this status if that is known.
    Exited(Option<i32>),
    /// It is gone, nobody knows how.
    Gone,
}

/// How an incident stands to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The process ended by it.
    Fatal,
    /// The process lived on.
    Survived,
}

/// What noticed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The panic hook.
    PanicHook,
    /// The handler of fatal signals.
    SignalHandler,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incident {
    /// Of its record, counted by its process.
    pub(crate) number: u64,
    pub(crate) severity: Severity,
    pub(crate) origin: Origin,
    /// The type of the exception.
    pub(crate) kind: String,
    pub(crate) message: String,
    /// Return addresses, the innermost first.
    pub(crate) frames: Vec<u64>,
    pub(crate) facts: Facts,
    /// The panic during whose clean-up this one came.
    pub(crate) during: Option<Box<Incident>>,
}

/// What else a record says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Nanoseconds since 1970.
    pub(crate) time_nanos: Option<u64>,
    pub(crate) uptime_nanos: Option<u64>,
    pub(crate) pid: Option<u64>,
    pub(crate) tid: Option<u64>,
    pub(crate) thread_name: Option<String>,
    /// File, line, column of a panic.
    pub(crate) place: Option<(String, u64, u64)>,
    /// Bytes of the message before it was cut.
    pub(crate) message_bytes: Option<u64>,
    pub(crate) signal: Option<u64>,
    pub(crate) signal_code: Option<i64>,
    pub(crate) fault_address: Option<u64>,
    /// Who sent it, where it was sent.
    pub(crate) sender_pid: Option<u64>,
    pub(crate) sender_uid: Option<u64>,
    /// The handler itself was interrupted; the stack may be incomplete.
    pub(crate) is_nested: bool,
    /// Incidents before this one that could not be written.
    pub(crate) missed: u64,
    /// Written by a child that the process had forked.
    pub(crate) in_forked_child: bool,
    /// It happened while last words were read: told in the same way, it would happen again, and never end.
    pub(crate) while_reading: bool,
    /// Whose request the thread served, as far as its context says it.
    pub(crate) distinct_id: Option<String>,
    pub(crate) session_id: Option<String>,
    pub(crate) current_url: Option<String>,
    pub(crate) request_path: Option<String>,
    /// What the program did before, the oldest first.
    pub(crate) steps: Vec<Step>,
}

/// std's own words when it gives up; the panic before them is what happened.
pub(super) const CLEANUP: [&str; 2] =
    ["panic in a destructor during cleanup", "panic in a function that cannot unwind"];

/// Of a panic that comes out of `main`, what is left to do is destructors and the exit.
const EXIT_FOLLOWS_NANOS: u64 = 1_000_000_000;

/// Nobody takes so long to die.
const DYING_MOST_NANOS: u64 = 10_000_000_000;

/// Whether `record` is of a signal that its process is known to have survived.
pub(super) fn is_survived(record: &Record, records: &[Record]) -> bool {
    let is_of_child = |record: &Record| record.flags & flags::FORKED_CHILD != 0;
    if !matches!(record.kind, Kind::Signal | Kind::Abort) || is_of_child(record) {
        return false;
    }
    // Numbers begin with 1: the mark of an empty place is of none.
    let is_mark = |other: &Record| other.kind == Kind::Repaired && other.number == record.number;
    let comes_long_after = |other: &Record| match (record.number(Tag::Time), other.number(Tag::Time)) {
        (Some(then), Some(later)) => !is_of_child(other) && later.saturating_sub(then) > DYING_MOST_NANOS,
        _ => false,
    };
    records.iter().any(|other| is_mark(other) || comes_long_after(other))
}

/// What is to be told of `records`, in the order in which it happened.
pub(super) fn incidents(records: &[Record], end: End) -> Vec<Incident> {
    let end = match records.iter().rfind(|record| matches!(record.kind, Kind::Exit | Kind::Survived)) {
        Some(exit) if end == End::Gone && exit.kind == Kind::Exit => {
            End::Exited(exit.number(Tag::Status).and_then(|status| i32::try_from(status).ok()))
        }
        // It lived when the file was taken from it.
        Some(_) if end == End::Gone => End::Alive,
        _ => end,
    };
    let (of_children, own): (Vec<_>, Vec<_>) = records
        .iter()
        .filter(|record| !is_survived(record, records))
        .partition(|record| record.flags & flags::FORKED_CHILD != 0);
    let mut told = of_process(&own, end);
    // How a child ended nobody wrote down. It is not known to live, so what it says it died of is believed, however its parent fares.
    let children: BTreeSet<_> = of_children.iter().map(|record| record.number(Tag::Pid)).collect();
    for child in children {
        let of_child: Vec<_> = of_children.iter().copied().filter(|record| record.number(Tag::Pid) == child).collect();
        let died = of_child.iter().any(|record| matches!(record.kind, Kind::Signal | Kind::Abort));
        let end = if died || end != End::Alive { End::Gone } else { End::Alive };
        told.extend(of_process(&of_child, end));
    }
    told.sort_by_key(|incident| incident.number);
    told
}

fn of_process(records: &[&Record], end: End) -> Vec<Incident> {
    let panics = panics(records);
    let fatal = fatal_panic(records, &panics, end);
    let mut told: Vec<Incident> = panics
        .into_iter()
        .map(|panic| {
            let severity = if fatal.contains(&panic.last_number) { Severity::Fatal } else { Severity::Survived };
            panic.tell(severity)
        })
        .collect();
    if end == End::Gone {
        told.extend(records.iter().filter(|record| record.kind == Kind::Signal).map(|record| signal(record)));
    }
    told
}

/// A panic with those it was followed by while it was cleaned up after.
struct Panic<'a> {
    head: &'a Record,
    during: Option<&'a Record>,
    /// Of std's last word about it: what an abort refers to.
    last_number: u64,
}

impl Panic<'_> {
    fn tell(self, severity: Severity) -> Incident {
        let told = |record: &Record| Incident {
            number: record.number,
            severity,
            origin: Origin::PanicHook,
            kind: "Panic".to_owned(),
            message: record.text(Tag::Message).unwrap_or_default(),
            frames: record.addresses(Tag::Frames),
            facts: Facts::of(record),
            during: None,
        };
        Incident { during: self.during.map(|first| Box::new(told(first))), ..told(self.head) }
    }
}

fn panics<'a>(records: &[&'a Record]) -> Vec<Panic<'a>> {
    let mut panics: Vec<Panic<'a>> = Vec::new();
    for record in records.iter().copied().filter(|record| record.kind == Kind::Panic) {
        let message = record.bytes(Tag::Message).unwrap_or_default();
        let is_last_word = CLEANUP.iter().any(|text| message == text.as_bytes());
        let thread = record.number(Tag::Tid);
        let earlier = panics.iter().rposition(|panic| panic.head.number(Tag::Tid) == thread);
        let Some(at) = earlier.filter(|_| is_last_word) else {
            panics.push(Panic { head: record, during: None, last_number: record.number });
            continue;
        };
        // "In a destructor": the panic before it came while the one before that was cleaned up after.
        let before = panics.iter().take(at).rposition(|panic| panic.head.number(Tag::Tid) == thread);
        let during = before.filter(|_| message == CLEANUP[0].as_bytes()).map(|before| panics.remove(before).head);
        let at = if during.is_some() { at.saturating_sub(1) } else { at };
        if let Some(panic) = panics.get_mut(at) {
            panic.last_number = record.number;
            panic.during = during;
        }
    }
    panics
}

/// The numbers of the panics that the process ended by.
fn fatal_panic(records: &[&Record], panics: &[Panic<'_>], end: End) -> Vec<u64> {
    if end == End::Alive {
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
        // It ended by that.
        return Vec::new();
    }
    let last = match end {
        End::Exited(Some(101)) => panics.iter().rfind(|panic| is_main_thread(panic.head)),
        End::Exited(None) => {
            panics.iter().rfind(|panic| is_main_thread(panic.head) && exit_follows(panic.head, records))
        }
        End::Exited(Some(_)) => None,
        End::Alive | End::Gone => panics.last(),
    };
    last.map(|panic| panic.last_number).into_iter().collect()
}

/// Whether the process exited so soon after that it was because of it, whether the panic came out of `main` or was caught there. Asked only
/// where the system does not tell exit marks the status.
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
    let facts = Facts::of(record);
    let number = facts.signal.and_then(|number| i32::try_from(number).ok()).unwrap_or(0);
    let overflowed = record.flags & flags::STACK_OVERFLOW != 0;
    let panicking = record.flags & flags::PANICKING != 0;
    let kind = match (overflowed, panicking) {
        (true, _) => "StackOverflow".to_owned(),
        (false, true) => "Panic".to_owned(),
        (false, false) => signal_name(number),
    };
    let message = match (facts.fault_address, facts.sender_pid) {
        _ if overflowed => "a thread has overflowed its stack".to_owned(),
        // Its hook was not reached: the text could not be made.
        _ if panicking => "panic message unavailable (panic while formatting, or out of memory)".to_owned(),
        (Some(address), _) => format!("{} at 0x{address:x}", signal_meaning(number)),
        (None, Some(sender)) if facts.pid != Some(sender) => {
            format!("{}, sent by process {sender}", signal_meaning(number))
        }
        (None, _) => signal_meaning(number).to_owned(),
    };
    Incident {
        number: record.number,
        severity: Severity::Fatal,
        origin: Origin::SignalHandler,
        kind,
        message,
        frames: record.addresses(Tag::Frames),
        facts,
        during: None,
    }
}

/// As `kill -l` writes it.
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

impl Facts {
    fn of(record: &Record) -> Self {
        let place = record
            .text(Tag::File)
            .map(|file| (file, record.number(Tag::Line).unwrap_or(0), record.number(Tag::Column).unwrap_or(0)));
        Self {
            time_nanos: record.number(Tag::Time),
            uptime_nanos: record.number(Tag::Uptime),
            pid: record.number(Tag::Pid),
            tid: record.number(Tag::Tid),
            thread_name: record.text(Tag::ThreadName),
            place,
            message_bytes: record.number(Tag::MessageBytes),
            signal: record.number(Tag::Signal),
            signal_code: record.number(Tag::SignalCode).map(u64::cast_signed),
            fault_address: record.number(Tag::FaultAddress),
            sender_pid: record.number(Tag::SenderPid),
            sender_uid: record.number(Tag::SenderUid),
            is_nested: record.flags & flags::NESTED != 0,
            missed: record.number(Tag::Missed).unwrap_or(0),
            in_forked_child: record.flags & flags::FORKED_CHILD != 0,
            while_reading: record.flags & flags::READING != 0,
            distinct_id: record.text(Tag::DistinctId),
            session_id: record.text(Tag::SessionId),
            current_url: record.text(Tag::CurrentUrl),
            request_path: record.text(Tag::RequestPath),
            steps: steps::of(record),
        }
    }
}
