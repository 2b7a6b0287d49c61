//! Tests of the oracle: it must find each kind of violation. An *acknowledged* event is one that a victim has reported as
//! accepted. A kill may prevent that report for the last event of each thread.

use serde_json::json;

use super::*;

fn key(n: u32) -> Key {
    Key { run: 1, thread: 0, n }
}

fn event(uuid: u128, n: u32) -> Event {
    Event {
        uuid: Uuid::from_u128(uuid),
        event: "tick".to_owned(),
        distinct_id: "victim".to_owned(),
        timestamp: "2026-11-23T10:00:00Z".to_owned(),
        properties: json!({"run": 1, "thread": 0, "n": n}),
        sent_at: String::new(),
        others: serde_json::Value::Null,
        request: 0,
    }
}

/// Two acknowledged events, then a dropped one.
fn history() -> History {
    let acknowledged = |n: u32| Line::Acknowledged(key(n), Uuid::from_u128(u128::from(n)));
    let mut history = History::default();
    history.add(vec![Line::Open, acknowledged(0), acknowledged(1), Line::Dropped(key(2), "full".to_owned())]);
    history
}

fn only_finding(events: &[Event]) -> String {
    let found = findings(&history(), events, Rules::default());
    assert_eq!(found.len(), 1, "{found:?}");
    found.concat()
}

#[test]
fn duplicates_and_the_last_unacknowledged_event_may_arrive() {
    let sent_again = Event { sent_at: "later".to_owned(), request: 4, ..event(1, 1) };
    assert!(findings(&history(), &[event(1, 1), event(0, 0), sent_again, event(3, 3)], Rules::default()).is_empty());
}

#[test]
fn an_acknowledged_event_that_did_not_arrive_is_lost() {
    assert!(only_finding(&[event(0, 0)]).contains("LOST"));
}

#[test]
fn an_event_that_was_never_captured_is_found() {
    assert!(only_finding(&[event(0, 0), event(1, 1), event(4, 4)]).contains("never captured"));
    // Another event was acknowledged with this uuid.
    let swapped = findings(&history(), &[event(0, 1), event(1, 0)], Rules::default());
    assert!(swapped.len() == 1 && swapped.concat().starts_with("2 times: arrived but was never"), "{swapped:?}");
}

#[test]
fn a_dropped_event_must_not_arrive() {
    assert!(only_finding(&[event(0, 0), event(1, 1), event(2, 2)]).contains("refused"));
}

#[test]
fn an_event_with_two_uuids_is_found() {
    let mut history = history();
    history.last.insert((1, 0), 2);
    let found = findings(&history, &[event(0, 0), event(1, 1), event(3, 3), event(33, 3)], Rules::default());
    assert!(found.concat().contains("with two uuids"), "{found:?}");
}

#[test]
fn an_event_that_changed_between_two_attempts_is_found() {
    let moved = Event { timestamp: "2026-11-24T10:00:00Z".to_owned(), ..event(1, 1) };
    assert!(only_finding(&[event(0, 0), event(1, 1), moved]).contains("with a change"));
}

#[test]
fn a_uuid_given_twice_is_found() {
    let mut history = history();
    history.add(vec![Line::Acknowledged(Key { run: 2, ..key(0) }, Uuid::from_u128(1))]);
    assert!(findings(&history, &[event(0, 0)], Rules::default()).concat().contains("two events"));
}

/// The findings for 20 acknowledged events of two threads. The stand-in has received the events in `arrived`.
fn judged(ledger: &Ledger, rules: Rules, arrived: std::ops::Range<u128>) -> Vec<String> {
    let mut history = History::default();
    history.add((0..20).map(|n| Line::Acknowledged(key(n), Uuid::from_u128(u128::from(n)))).collect());
    let unique = arrived.clone().count() as u64;
    ledger_findings(ledger, &history, rules, (&|uuid| arrived.contains(&uuid.as_u128()), unique), 2)
}

#[test]
fn a_ledger_must_balance_be_drained_and_match_what_arrived() {
    let good = Ledger { accepted: 20, delivered: 20, ..Ledger::default() };
    let none = Rules::default();
    assert!(judged(&good, none, 0..20).is_empty());
    for bad in [
        Ledger { accepted: 21, ..good },
        Ledger { accepted: 21, queued: 1, ..good },
        Ledger { accepted: 21, evicted: 1, ..good },
        Ledger { accepted: 21, dead_lettered: 1, ..good },
        Ledger { accepted: 21, damaged: 1, ..good },
        Ledger { accepted: 20, delivered: 19, dead_lettered: 1, ..good },
    ] {
        assert!(!judged(&bad, none, 0..20).is_empty(), "{bad:?}");
    }
    assert!(judged(&Ledger { accepted: 22, delivered: 22, ..good }, none, 0..22).is_empty(), "two are unacknowledged");
    assert!(
        !judged(&Ledger { accepted: 23, delivered: 23, ..good }, none, 0..23).is_empty(),
        "three are unacknowledged"
    );
    assert!(!judged(&good, none, 0..21).is_empty(), "fewer delivered than arrived");
    assert!(
        !judged(&Ledger { accepted: 19, delivered: 19, ..good }, none, 0..19).is_empty(),
        "fewer than acknowledged"
    );
}

#[test]
fn only_poison_is_dead_lettered_and_each_event_once() {
    let poison = Rules { poison: true, ..Rules::default() };
    let good = Ledger { accepted: 20, delivered: 19, dead_lettered: 1, ..Ledger::default() };
    assert!(judged(&good, poison, 0..19).is_empty());
    assert!(!judged(&Ledger { delivered: 20, dead_lettered: 0, ..good }, poison, 0..20).is_empty());
    assert!(!judged(&Ledger { delivered: 16, dead_lettered: 4, ..good }, poison, 0..16).is_empty());
    assert!(findings(&history(), &[event(0, 0)], poison).concat().contains("LOST"), "only poison may be missing");
}

#[test]
fn missing_events_of_a_bounded_queue_must_count_as_evicted() {
    let evicts = Rules { evicts: true, ..Rules::default() };
    let good = Ledger { accepted: 20, delivered: 15, evicted: 5, ..Ledger::default() };
    assert!(judged(&good, evicts, 0..15).is_empty());
    assert!(judged(&good, evicts, 0..18).is_empty(), "three arrived before they were evicted");
    assert!(!judged(&Ledger { delivered: 16, evicted: 4, ..good }, evicts, 0..15).is_empty());
    assert!(!judged(&Ledger { delivered: 14, evicted: 6, ..good }, evicts, 0..21).is_empty());
}
