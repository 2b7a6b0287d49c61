//! Which records make which incidents.

use super::format::{HEADER, Kind, Tag, Writer, flags, scan};
use super::incident::{CLEANUP, End, Incident, Severity, incidents};

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
        self.0.extend_from_slice(writer.finish().expect("room for it"));
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
        self.0.extend_from_slice(writer.finish().expect("room for it"));
        self
    }

    /// Message and whether fatal, of each.
    fn told(&self, end: End) -> Vec<(String, bool)> {
        self.incidents(end)
            .into_iter()
            .map(|incident| (incident.message, incident.severity == Severity::Fatal))
            .collect()
    }

    fn incidents(&self, end: End) -> Vec<Incident> {
        incidents(&scan(&self.0).records, end)
    }
}

fn told(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
    expected.iter().map(|(message, fatal)| ((*message).to_owned(), *fatal)).collect()
}

#[test]
fn the_end_of_the_process_says_which_panic_was_fatal() {
    let two = Written::new().panic(1, "in main").panic(2, "in a thread");
    assert_eq!(two.told(End::Alive), told(&[("in main", false), ("in a thread", false)]));
    assert_eq!(two.told(End::Exited(Some(0))), told(&[("in main", false), ("in a thread", false)]));
    assert_eq!(two.told(End::Exited(Some(101))), told(&[("in main", true), ("in a thread", false)]));
    assert_eq!(two.told(End::Gone), told(&[("in main", false), ("in a thread", true)]));
}

#[test]
fn an_abort_names_its_panic_whatever_came_between() {
    let written = Written::new().panic(1, "ends it").panic(2, "meanwhile").other(Kind::Abort, 1);
    assert_eq!(written.told(End::Gone), told(&[("ends it", true), ("meanwhile", false)]));
}

#[test]
fn a_signal_is_told_if_the_process_is_gone_and_then_it_is_what_ended_it() {
    let written = Written::new().panic(1, "caught").other(Kind::Signal, 0);
    assert_eq!(written.told(End::Gone), told(&[("caught", false), ("Segmentation fault at 0x10", true)]));
    assert_eq!(written.told(End::Alive), told(&[("caught", false)]));
    assert_eq!(written.told(End::Exited(Some(0))), told(&[("caught", false)]));
    assert_eq!(written.incidents(End::Gone)[1].kind, "SIGSEGV");
}

#[test]
fn a_signal_is_not_told_if_it_was_survived_though_the_process_is_gone() {
    let marked = Written::new().other(Kind::Signal, 0).other(Kind::Signal, 0);
    // A mark has the number of what it marks.
    let mut mark = [0; HEADER];
    let mark = Writer::new(&mut mark, Kind::Repaired, 0, 1).finish().expect("room for it").to_vec();
    let with_mark = Written([mark, marked.0].concat(), 2);
    let numbers = |written: &Written| written.incidents(End::Gone).iter().map(|told| told.number).collect::<Vec<_>>();
    assert_eq!(numbers(&with_mark), [2]);
    // Long before the last thing that the process wrote.
    let mut later = Written::new().other(Kind::Signal, 0);
    later.1 += 11_000;
    let later = later.panic(1, "much later");
    assert_eq!(later.told(End::Gone), told(&[("much later", true)]));
    let soon = Written::new().other(Kind::Signal, 0).panic(1, "meanwhile");
    assert_eq!(soon.told(End::Gone), told(&[("Segmentation fault at 0x10", true), ("meanwhile", false)]));
}

#[test]
fn a_panic_during_cleanup_is_one_incident_with_the_first_chained_to_it() {
    let written = Written::new()
        .panic(7, "first")
        .panic(3, "of another thread")
        .panic(7, "second")
        .panic(7, CLEANUP[0])
        .other(Kind::Abort, 4);
    let incidents = written.incidents(End::Gone);
    let [other, head] = incidents.as_slice() else { panic!("{incidents:?}") };
    assert_eq!((other.message.as_str(), other.severity), ("of another thread", Severity::Survived));
    assert_eq!((head.message.as_str(), head.severity), ("second", Severity::Fatal));
    assert_eq!(head.during.as_ref().map(|first| first.message.as_str()), Some("first"));
}

#[test]
fn a_panic_that_may_not_unwind_is_told_by_its_own_words() {
    let written = Written::new().panic(7, "in a callback of C").panic(7, CLEANUP[1]).other(Kind::Abort, 2);
    assert_eq!(written.told(End::Gone), told(&[("in a callback of C", true)]));
    let alone = Written::new().panic(7, CLEANUP[0]);
    assert_eq!(alone.told(End::Gone), told(&[(CLEANUP[0], true)]), "the one before it was lost");
}

#[test]
fn what_a_forked_child_died_of_is_told_and_is_not_what_its_parent_ended_by() {
    let written = Written::new().panic(1, "in main").flagged(Kind::Signal, flags::FORKED_CHILD, 0);
    let fault = ("Segmentation fault at 0x10", true);
    assert_eq!(written.told(End::Alive), told(&[("in main", false), fault]));
    assert_eq!(written.told(End::Exited(Some(0))), told(&[("in main", false), fault]));
    assert_eq!(written.told(End::Exited(Some(101))), told(&[("in main", true), fault]));
    assert_eq!(written.told(End::Gone), told(&[("in main", true), fault]));
}

#[test]
fn where_no_status_is_told_an_exit_right_after_a_panic_of_the_main_thread_is_its_consequence() {
    let mut written = Written::new().panic(1, "out of main").panic(2, "in a thread").other(Kind::Exit, 0);
    assert_eq!(written.told(End::Gone), told(&[("out of main", true), ("in a thread", false)]));
    written = Written::new().panic(1, "caught");
    written.1 += 1_000;
    assert_eq!(written.other(Kind::Exit, 0).told(End::Gone), told(&[("caught", false)]));
}
