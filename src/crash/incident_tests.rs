//! Tests of the conversion from records to incidents.

use super::format::{HEADER, Kind, Tag, Writer, flags, scan};
use super::incident::{Incident, ProcessState, STD_CLEANUP, incidents};

const MILLISECOND: u64 = 1_000_000;

struct Written(Vec<u8>, u64);

impl Written {
    fn new() -> Self {
        Self(Vec::new(), 0)
    }

    fn panic(mut self, thread: u64, message: &str) -> Self {
        self.1 += 1;
        let mut buffer = [0; 1024];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, 0, self.1);
        writer.number(Tag::Pid, 1);
        writer.number(Tag::Tid, thread);
        writer.number(Tag::Time, self.1 * MILLISECOND);
        writer.bytes(Tag::Message, message.as_bytes());
        self.0.extend_from_slice(writer.finish().expect("the buffer is large enough"));
        self
    }

    fn other(self, kind: Kind, panic_number: u64) -> Self {
        self.flagged(kind, 0, panic_number)
    }

    fn flagged(mut self, kind: Kind, set: u32, panic_number: u64) -> Self {
        self.1 += 1;
        let mut buffer = [0; 1024];
        let mut writer = Writer::new(&mut buffer, kind, set, self.1);
        writer.number(Tag::Time, self.1 * MILLISECOND);
        writer.number(Tag::PanicNumber, panic_number);
        writer.number(Tag::Signal, 11);
        writer.number(Tag::FaultAddress, 16);
        self.0.extend_from_slice(writer.finish().expect("the buffer is large enough"));
        self
    }

    /// The message of each incident, and whether it is fatal.
    fn reported(&self, state: ProcessState) -> Vec<(String, bool)> {
        self.incidents(state).into_iter().map(|incident| (incident.message, incident.is_fatal)).collect()
    }

    fn incidents(&self, state: ProcessState) -> Vec<Incident> {
        incidents(&scan(&self.0).records, state)
    }
}

fn reported(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
    expected.iter().map(|(message, fatal)| ((*message).to_owned(), *fatal)).collect()
}

#[test]
fn the_state_of_the_process_decides_which_panic_was_fatal() {
    let two = Written::new().panic(1, "in main").panic(2, "in a thread");
    assert_eq!(two.reported(ProcessState::Alive), reported(&[("in main", false), ("in a thread", false)]));
    assert_eq!(two.reported(ProcessState::Exited(Some(0))), reported(&[("in main", false), ("in a thread", false)]));
    assert_eq!(two.reported(ProcessState::Exited(Some(101))), reported(&[("in main", true), ("in a thread", false)]));
    assert_eq!(two.reported(ProcessState::Gone), reported(&[("in main", false), ("in a thread", true)]));
}

#[test]
fn an_abort_names_its_panic_whatever_came_between() {
    let written = Written::new().panic(1, "ends it").panic(2, "meanwhile").other(Kind::Abort, 1);
    assert_eq!(written.reported(ProcessState::Gone), reported(&[("ends it", true), ("meanwhile", false)]));
}

#[test]
fn a_signal_is_fatal_if_the_process_is_gone() {
    let written = Written::new().panic(1, "caught").other(Kind::Signal, 0);
    assert_eq!(
        written.reported(ProcessState::Gone),
        reported(&[("caught", false), ("Segmentation fault at 0x10", true)])
    );
    assert_eq!(written.reported(ProcessState::Alive), reported(&[("caught", false)]));
    assert_eq!(written.reported(ProcessState::Exited(Some(0))), reported(&[("caught", false)]));
    assert_eq!(written.incidents(ProcessState::Gone)[1].kind, "SIGSEGV");
}

#[test]
fn a_survived_signal_is_not_reported_when_the_process_is_gone() {
    let marked = Written::new().other(Kind::Signal, 0).other(Kind::Signal, 0);
    // A mark has the number of the record that it marks.
    let mut mark = [0; HEADER];
    let mark = Writer::new(&mut mark, Kind::Repaired, 0, 1).finish().expect("the buffer is large enough").to_vec();
    let with_mark = Written([mark, marked.0].concat(), 2);
    let numbers = |written: &Written| {
        written.incidents(ProcessState::Gone).iter().map(|reported| reported.record.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&with_mark), [2]);
    // Long before the process's last record.
    let mut later = Written::new().other(Kind::Signal, 0);
    later.1 += 11_000;
    let later = later.panic(1, "much later");
    assert_eq!(later.reported(ProcessState::Gone), reported(&[("much later", true)]));
    let soon = Written::new().other(Kind::Signal, 0).panic(1, "meanwhile");
    assert_eq!(
        soon.reported(ProcessState::Gone),
        reported(&[("Segmentation fault at 0x10", true), ("meanwhile", false)])
    );
}

#[test]
fn a_panic_during_cleanup_is_chained_to_the_first_panic() {
    let written = Written::new()
        .panic(7, "first")
        .panic(3, "of another thread")
        .panic(7, "second")
        .panic(7, STD_CLEANUP[0])
        .other(Kind::Abort, 4);
    let incidents = written.incidents(ProcessState::Gone);
    let [other, head] = incidents.as_slice() else { panic!("{incidents:?}") };
    assert_eq!((other.message.as_str(), other.is_fatal), ("of another thread", false));
    assert_eq!((head.message.as_str(), head.is_fatal), ("second", true));
    assert_eq!(head.during.as_ref().and_then(|first| first.text(Tag::Message)).as_deref(), Some("first"));
}

#[test]
fn a_panic_that_may_not_unwind_is_reported_by_its_own_message() {
    let written = Written::new().panic(7, "in a callback of C").panic(7, STD_CLEANUP[1]).other(Kind::Abort, 2);
    assert_eq!(written.reported(ProcessState::Gone), reported(&[("in a callback of C", true)]));
    let alone = Written::new().panic(7, STD_CLEANUP[0]);
    assert_eq!(
        alone.reported(ProcessState::Gone),
        reported(&[(STD_CLEANUP[0], true)]),
        "the panic before it was not recorded"
    );
}

#[test]
fn the_death_of_a_forked_child_is_not_that_of_its_parent() {
    let written = Written::new().panic(1, "in main").flagged(Kind::Signal, flags::FORKED_CHILD, 0);
    let fault = ("Segmentation fault at 0x10", true);
    assert_eq!(written.reported(ProcessState::Alive), reported(&[("in main", false), fault]));
    assert_eq!(written.reported(ProcessState::Exited(Some(0))), reported(&[("in main", false), fault]));
    assert_eq!(written.reported(ProcessState::Exited(Some(101))), reported(&[("in main", true), fault]));
    assert_eq!(written.reported(ProcessState::Gone), reported(&[("in main", true), fault]));
}

#[test]
fn an_exit_of_unknown_status_right_after_a_panic_makes_it_fatal() {
    let mut written = Written::new().panic(1, "out of main").panic(2, "in a thread").other(Kind::Exit, 0);
    assert_eq!(written.reported(ProcessState::Gone), reported(&[("out of main", true), ("in a thread", false)]));
    written = Written::new().panic(1, "caught");
    written.1 += 1_000;
    assert_eq!(written.other(Kind::Exit, 0).reported(ProcessState::Gone), reported(&[("caught", false)]));
}
