//! What the victims said against what the stand-in has. Pure: no process, no disk, no network.

use std::collections::{BTreeMap, HashMap};

use sink::Event;
use uuid::Uuid;

use crate::Ledger;
use crate::protocol::{Key, Line};

/// More findings of one kind say no more.
const EXAMPLES: usize = 5;

/// Everything the victims of a stage have said.
#[derive(Debug, Default)]
pub struct History {
    /// The events that were accepted.
    pub acked: HashMap<Uuid, Key>,
    /// The events that were refused, with the reason.
    pub dropped: HashMap<Key, String>,
    /// Each thread's last word.
    last: BTreeMap<(u32, u32), u32>,
    /// Two events were given the same uuid.
    twins: Vec<Uuid>,
}

/// What a judgement without findings was based on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Lives that ended by SIGKILL.
    pub kills: u32,
    /// Events that were acked, and are all at the stand-in.
    pub acked: usize,
    /// Events that arrived again with the same uuid.
    pub duplicates: u64,
}

impl History {
    /// Adds what one life said.
    pub fn add(&mut self, lines: Vec<Line>) {
        for line in lines {
            let key = match line {
                Line::Acked(key, uuid) => {
                    if self.acked.insert(uuid, key).is_some() {
                        self.twins.push(uuid);
                    }
                    key
                }
                Line::Dropped(key, reason) => {
                    self.dropped.insert(key, reason);
                    key
                }
                Line::Open | Line::Ledger(_) => continue,
            };
            let last = self.last.entry((key.life, key.thread)).or_default();
            *last = key.n.max(*last);
        }
    }

    /// Whether the kill may have fallen between this event's acceptance and its acknowledgement.
    fn may_be_unacked(&self, key: &Key) -> bool {
        let next = self.last.get(&(key.life, key.thread)).map_or(0, |last| last.saturating_add(1));
        key.n == next
    }
}

/// What is wrong with the events at the stand-in; empty if nothing is.
pub fn findings(history: &History, events: &[Event]) -> Vec<String> {
    let mut first: HashMap<Uuid, &Event> = HashMap::new();
    let mut by_key: HashMap<Key, Uuid> = HashMap::new();
    let mut foreign = Findings::new("arrived, but was never captured");
    let mut refused = Findings::new("arrived, although `capture` had refused it");
    let mut doubled = Findings::new("arrived under two uuids");
    let mut changed = Findings::new("arrived again, and changed");
    for event in events {
        let original = *first.entry(event.uuid).or_insert(event);
        if !is_same(original, event) {
            changed.add(event.uuid);
        }
        let Some(key) = key_of(event) else {
            foreign.add(event.uuid);
            continue;
        };
        if *by_key.entry(key).or_insert(event.uuid) != event.uuid {
            doubled.add(event.uuid);
        }
        if history.dropped.contains_key(&key) {
            refused.add(event.uuid);
        } else if history.acked.get(&event.uuid).map_or(!history.may_be_unacked(&key), |acked| *acked != key) {
            foreign.add(event.uuid);
        }
    }
    let mut lost = Findings::new("LOST: was acked, and did not arrive");
    history.acked.keys().filter(|uuid| !first.contains_key(uuid)).for_each(|uuid| lost.add(*uuid));
    let mut twins = Findings::new("was given to two events");
    history.twins.iter().for_each(|uuid| twins.add(*uuid));
    [lost, foreign, refused, doubled, changed, twins].iter().filter_map(Findings::report).collect()
}

/// What is wrong with the ledger of a queue that was drained to empty, with a healthy disk and no refusals.
pub fn ledger_findings(ledger: &Ledger, acked: u64, unique: u64) -> Vec<String> {
    let Ledger { accepted, delivered, queued, buried, evicted, damaged, lost_unsynced } = *ledger;
    let rules = [
        (ledger.balances(), "does not balance"),
        (queued == 0, "is not drained"),
        (buried + evicted + damaged + lost_unsynced == 0, "counts losses that nothing has caused"),
        (accepted >= acked, "has accepted less than was acked"),
        (delivered == unique, "has not delivered what arrived"),
    ];
    let broken = rules.iter().filter(|(holds, _)| !holds);
    broken.map(|(_, what)| format!("the ledger {what}: {ledger:?}, {acked} acked, {unique} arrived")).collect()
}

fn is_same(one: &Event, other: &Event) -> bool {
    (&one.event, &one.distinct_id, &one.timestamp, &one.properties)
        == (&other.event, &other.distinct_id, &other.timestamp, &other.properties)
}

fn key_of(event: &Event) -> Option<Key> {
    let number = |name: &str| u32::try_from(event.properties.get(name)?.as_u64()?).ok();
    Some(Key { life: number("life")?, thread: number("thread")?, n: number("n")? })
}

/// Findings of one kind.
struct Findings {
    what: &'static str,
    uuids: Vec<Uuid>,
}

impl Findings {
    fn new(what: &'static str) -> Self {
        Self { what, uuids: Vec::new() }
    }

    fn add(&mut self, uuid: Uuid) {
        self.uuids.push(uuid);
    }

    fn report(&self) -> Option<String> {
        let examples: Vec<_> = self.uuids.iter().take(EXAMPLES).map(Uuid::to_string).collect();
        let count = self.uuids.len();
        (count > 0).then(|| format!("{count} times: {}: {}", self.what, examples.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(n: u32) -> Key {
        Key { life: 1, thread: 0, n }
    }

    fn event(uuid: u128, n: u32) -> Event {
        Event {
            uuid: Uuid::from_u128(uuid),
            event: "tick".to_owned(),
            distinct_id: "victim".to_owned(),
            timestamp: "2026-11-23T10:00:00Z".to_owned(),
            properties: json!({"life": 1, "thread": 0, "n": n}),
            sent_at: String::new(),
            request: 0,
        }
    }

    /// Two acked, then one refused.
    fn history() -> History {
        let acked = |n: u32| Line::Acked(key(n), Uuid::from_u128(u128::from(n)));
        let mut history = History::default();
        history.add(vec![Line::Open, acked(0), acked(1), Line::Dropped(key(2), "full".to_owned())]);
        history
    }

    fn only_finding(events: &[Event]) -> String {
        let found = findings(&history(), events);
        assert_eq!(found.len(), 1, "{found:?}");
        found.concat()
    }

    #[test]
    fn what_was_acked_and_the_one_whose_ack_was_cut_off_may_arrive_again_and_again() {
        let sent_again = Event { sent_at: "later".to_owned(), request: 4, ..event(1, 1) };
        assert!(findings(&history(), &[event(1, 1), event(0, 0), sent_again, event(3, 3)]).is_empty());
    }

    #[test]
    fn an_acked_event_that_did_not_arrive_is_lost() {
        assert!(only_finding(&[event(0, 0)]).contains("LOST"));
    }

    #[test]
    fn an_event_that_nobody_captured_is_foreign() {
        assert!(only_finding(&[event(0, 0), event(1, 1), event(4, 4)]).contains("never captured"));
        // Acked under this uuid was another event.
        let swapped = findings(&history(), &[event(0, 1), event(1, 0)]);
        assert!(swapped.len() == 1 && swapped.concat().starts_with("2 times: arrived, but was never"), "{swapped:?}");
    }

    #[test]
    fn a_refused_event_must_not_arrive() {
        assert!(only_finding(&[event(0, 0), event(1, 1), event(2, 2)]).contains("refused"));
    }

    #[test]
    fn an_event_under_a_second_uuid_is_doubled() {
        let mut history = history();
        history.last.insert((1, 0), 2);
        let found = findings(&history, &[event(0, 0), event(1, 1), event(3, 3), event(33, 3)]);
        assert!(found.concat().contains("under two uuids"), "{found:?}");
    }

    #[test]
    fn an_event_that_changed_between_two_attempts_is_found() {
        let moved = Event { timestamp: "2026-11-24T10:00:00Z".to_owned(), ..event(1, 1) };
        assert!(only_finding(&[event(0, 0), event(1, 1), moved]).contains("changed"));
    }

    #[test]
    fn a_uuid_given_twice_is_found() {
        let mut history = history();
        history.add(vec![Line::Acked(Key { life: 2, ..key(0) }, Uuid::from_u128(1))]);
        assert!(findings(&history, &[event(0, 0)]).concat().contains("two events"));
    }

    #[test]
    fn a_ledger_must_balance_be_drained_and_agree_with_the_stand_in() {
        let good = Ledger { accepted: 5, delivered: 5, ..Ledger::default() };
        assert!(ledger_findings(&good, 4, 5).is_empty());
        for (bad, acked, unique) in [
            (Ledger { accepted: 6, ..good }, 4, 5),
            (Ledger { accepted: 6, queued: 1, ..good }, 4, 5),
            (Ledger { accepted: 6, evicted: 1, ..good }, 4, 5),
            (good, 6, 5),
            (good, 4, 6),
        ] {
            assert_eq!(ledger_findings(&bad, acked, unique).len(), 1, "{bad:?}");
        }
    }
}
