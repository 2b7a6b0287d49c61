//! What the victims said against what the stand-in has. Pure: no process, no disk, no network.

use std::collections::{BTreeMap, HashMap};

use sink::Event;
use uuid::Uuid;

use crate::Ledger;
use crate::protocol::{Key, Line};

/// More findings of one kind say no more.
const EXAMPLES: usize = 5;

/// What a stage lets happen to accepted events, besides being delivered. Nothing, unless it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The stand-in refuses the events that [`is_poison`] names: they must end among the dead letters, each once.
    pub poison: bool,
    /// The queue is bounded: what is missing must have been counted as evicted.
    pub evicts: bool,
}

/// Whether a stand-in with poison refuses this event: so many of them that hardly a whole batch is accepted.
pub fn is_poison(key: &Key) -> bool {
    key.n % 40 == 13
}

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
pub struct DeliveryOutcome {
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

    /// How many of the acked events `condition` holds for.
    fn count(&self, condition: impl Fn(&Uuid, &Key) -> bool) -> u64 {
        self.acked.iter().filter(|(uuid, key)| condition(uuid, key)).count() as u64
    }

    /// Whether the kill may have fallen between this event's acceptance and its acknowledgement.
    fn may_be_unacked(&self, key: &Key) -> bool {
        let next = self.last.get(&(key.life, key.thread)).map_or(0, |last| last.saturating_add(1));
        key.n == next
    }
}

/// What is wrong with the events at the stand-in; empty if nothing is.
pub fn findings(history: &History, events: &[Event], rules: Rules) -> Vec<String> {
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
        let Some(key) = Key::of(&event.properties) else {
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
    let may_be_missing = |key: &Key| rules.evicts || (rules.poison && is_poison(key));
    let missing = history.acked.iter().filter(|(uuid, key)| !first.contains_key(uuid) && !may_be_missing(key));
    missing.for_each(|(uuid, _)| lost.add(*uuid));
    let mut twins = Findings::new("was given to two events");
    history.twins.iter().for_each(|uuid| twins.add(*uuid));
    [lost, foreign, refused, doubled, changed, twins].iter().filter_map(Findings::report).collect()
}

/// What is wrong with the ledgers of all shards together, once everything was delivered. `has_arrived` tells of each uuid whether the
/// stand-in has it, `unique` how many it has, and `lives` how many threads a kill may have cut off.
pub fn ledger_findings(
    ledger: &Ledger,
    history: &History,
    rules: Rules,
    (has_arrived, unique): (&dyn Fn(&Uuid) -> bool, u64),
    cut_off: u64,
) -> Vec<String> {
    let Ledger { accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced } = *ledger;
    let acked = history.acked.len() as u64;
    let poison = if rules.poison { history.count(|_, key| is_poison(key)) } else { 0 };
    let missing = if rules.evicts { history.count(|uuid, _| !has_arrived(uuid)) } else { 0 };
    // An event whose acknowledgement was cut off is poison, or evicted, all the same.
    let may_be_more = |allowed: bool, least: u64| least..=least + if allowed { cut_off } else { 0 };
    let evictions = if rules.evicts { missing..=u64::MAX } else { 0..=0 };
    let delivered_wrongly = if rules.evicts {
        // What arrived and was evicted before that was committed counts as evicted.
        delivered > unique || unique > delivered + evicted
    } else {
        delivered != unique
    };
    let rules = [
        (ledger.balances(), "does not balance"),
        (queued == 0, "is not drained"),
        (damaged + lost_unsynced == 0, "counts losses that nothing has caused"),
        (may_be_more(rules.poison, poison).contains(&dead_lettered), "does not dead_letter what the stand-in refused"),
        (evictions.contains(&evicted), "does not count what was evicted"),
        (may_be_more(true, acked).contains(&accepted), "has not accepted what was acked"),
        (!delivered_wrongly, "has not delivered what arrived"),
    ];
    let broken = rules.iter().filter(|(holds, _)| !holds);
    broken.map(|(_, what)| format!("the ledger {what}: {ledger:?}, {acked} acked, {unique} arrived")).collect()
}

fn is_same(one: &Event, other: &Event) -> bool {
    (&one.event, &one.distinct_id, &one.timestamp, &one.properties)
        == (&other.event, &other.distinct_id, &other.timestamp, &other.properties)
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
#[path = "oracle_tests.rs"]
mod tests;
