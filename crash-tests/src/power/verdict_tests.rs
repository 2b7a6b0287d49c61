//! Tests of what a power cut may take, and of the ledger after it.

use super::*;
use crate::protocol::Key;

fn uuid(n: u32) -> Uuid {
    Uuid::from_u128(u128::from(n))
}

fn key(thread: u32, n: u32) -> Key {
    Key { run: 0, thread, n }
}

fn accepted(n: u32) -> Line {
    Line::Acknowledged(key(n % 2, n), uuid(n))
}

fn uuids(numbers: impl IntoIterator<Item = u32>) -> HashSet<Uuid> {
    numbers.into_iter().map(uuid).collect()
}

fn arrivals(numbers: impl IntoIterator<Item = u32>) -> Vec<Event> {
    let event = |n| Event {
        uuid: uuid(n),
        event: "tick".to_owned(),
        distinct_id: "victim".to_owned(),
        timestamp: String::new(),
        properties: serde_json::Value::Null,
        sent_at: String::new(),
        others: serde_json::Value::Null,
        request: 0,
    };
    numbers.into_iter().map(event).collect()
}

#[test]
fn a_persisted_event_vouches_for_earlier_ones_of_its_thread() {
    let lines = [accepted(0), accepted(1), accepted(2), Line::Persisted(key(0, 2)), accepted(4)];
    assert_eq!(
        Promised::by(&lines),
        Promised { persisted: uuids([0, 2]), older: uuids([]), accepted: uuids([0, 1, 2, 4]) }
    );
}

#[test]
fn an_event_is_old_when_ten_rounds_are_over_that_began_after_it() {
    let rounds = |count| std::iter::repeat_n(Line::Round, count);
    let lines = |count| -> Vec<Line> {
        let begin = [accepted(0), accepted(1), Line::Persisted(key(1, 1)), Line::Round, accepted(2)];
        begin.into_iter().chain(rounds(count)).chain([accepted(3)]).collect()
    };
    assert_eq!(Promised::by(&lines(9)).older, uuids([]), "the tenth is not over");
    assert_eq!(Promised::by(&lines(10)).older, uuids([0]), "the persisted one is in the other set");
    assert_eq!(Promised::by(&lines(11)).older, uuids([0, 2]));
}

fn promised() -> Promised {
    Promised { persisted: uuids([0, 1]), older: uuids([2, 3]), accepted: uuids(0..8) }
}

#[test]
fn each_loss_is_counted_by_what_was_promised() {
    let all = Figures::of(1, &promised(), &arrivals(0..4), &arrivals(4..8));
    assert_eq!(all, Figures { cuts: 1, accepted: 8, persisted: 2, ..Figures::default() });
    assert!(all.broken(false).is_empty());
    let younger = Figures::of(1, &promised(), &arrivals(0..2), &arrivals(2..5));
    assert_eq!((younger.lost_younger, younger.broken(false)), (3, vec![]));
    let older = Figures::of(1, &promised(), &arrivals(0..2), &arrivals([3, 4]));
    assert_eq!((older.lost_persisted, older.lost_older, older.lost_younger, older.broken(false).len()), (0, 1, 3, 1));
    let persisted = Figures::of(1, &promised(), &[], &arrivals(1..8));
    assert_eq!((persisted.lost_persisted, persisted.broken(false).len()), (1, 1));
}

#[test]
fn an_event_may_come_again_after_a_cut_but_once() {
    let again = Figures::of(1, &promised(), &arrivals(0..8), &arrivals(6..8));
    assert_eq!((again.repeated, again.doubled, again.broken(false)), (2, 0, vec![]));
    let twice = Figures::of(1, &promised(), &arrivals(0..8), &arrivals([6, 6]));
    assert_eq!((twice.repeated, twice.doubled, twice.broken(false).len()), (1, 1, 1));
}

#[test]
fn figures_and_promises_add_up() {
    let mut sum = Promised::by(&[accepted(0), Line::Persisted(key(0, 0))]);
    sum.add(Promised::by(&[accepted(1)]));
    assert_eq!((sum.accepted.len(), sum.persisted.len()), (2, 1));
    let one = Figures::of(1, &promised(), &arrivals(0..8), &arrivals([6, 6]));
    let mut two = one;
    two.add(one);
    assert_eq!((two.cuts, two.accepted, two.doubled, two.repeated), (2, 16, 2, 2));
}

#[test]
fn a_ledger_counts_what_arrived_and_what_is_lost() {
    let good = Ledger { accepted: 10, delivered: 7, lost_unsynced: 3, ..Ledger::default() };
    assert!(ledger_findings(&good, 7, 12, 0).is_empty());
    assert!(ledger_findings(&good, 7, 9, 1).is_empty());
    for (bad, arrived, acknowledged) in [
        (Ledger { accepted: 11, ..good }, 7, 12),
        (Ledger { lost_unsynced: 2, queued: 1, ..good }, 7, 12),
        (Ledger { lost_unsynced: 2, damaged: 1, ..good }, 7, 12),
        (Ledger { lost_unsynced: 2, evicted: 1, ..good }, 7, 12),
        (good, 8, 12),
        (good, 6, 12),
        (good, 7, 9),
    ] {
        assert_eq!(ledger_findings(&bad, arrived, acknowledged, 0).len(), 1, "{bad:?} {arrived} {acknowledged}");
    }
}
