//! Compares the victims' output with what the stand-in received. Pure: no process, no disk, no network.

use std::collections::{BTreeMap, HashMap};

use sink::Event;
use uuid::Uuid;

use crate::Ledger;
use crate::protocol::{Key, Line};

/// Maximum number of uuids listed for one kind of finding.
const EXAMPLES: usize = 5;

/// How an accepted event may end besides being delivered. By default, in no other way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The stand-in refuses the events selected by [`is_poison`]: each must become a dead letter, once.
    pub poison: bool,
    /// The queue is bounded: missing events must have been counted as evicted.
    pub evicts: bool,
    /// The power was cut: events may be missing that were not synced. [`crate::power::verdict`] judges which.
    pub power_cuts: bool,
}

/// Whether a stand-in with poison refuses this event: one in 40 of each thread, so that many batches contain one.
pub fn is_poison(key: &Key) -> bool {
    key.n % 40 == 13
}

/// All output of the victims of a fixture.
#[derive(Debug, Default)]
pub struct History {
    /// The accepted events.
    pub acknowledged: HashMap<Uuid, Key>,
    /// The refused events, with the reason.
    pub dropped: HashMap<Key, String>,
    /// The last event of each thread.
    last: BTreeMap<(u32, u32), u32>,
    /// Uuids that were given to two events.
    twins: Vec<Uuid>,
}

/// The figures of a scenario that passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Runs that ended by SIGKILL.
    pub kills: u32,
    /// Acknowledged events. Each has arrived at the stand-in, unless the [`Rules`] allow another end.
    pub acknowledged: usize,
    /// Events that arrived again with the same uuid.
    pub duplicates: u64,
}

impl History {
    /// Adds the output of one run.
    pub fn add(&mut self, lines: Vec<Line>) {
        for line in lines {
            let key = match line {
                Line::Acknowledged(key, uuid) => {
                    if self.acknowledged.insert(uuid, key).is_some() {
                        self.twins.push(uuid);
                    }
                    key
                }
                Line::Dropped(key, reason) => {
                    self.dropped.insert(key, reason);
                    key
                }
                Line::Open | Line::Persisted(_) | Line::Round | Line::ChildEnded | Line::Ledger(_) => continue,
            };
            let last = self.last.entry((key.run, key.thread)).or_default();
            *last = key.n.max(*last);
        }
    }

    /// The number of acknowledged events that satisfy `condition`.
    fn count(&self, condition: impl Fn(&Uuid, &Key) -> bool) -> u64 {
        self.acknowledged.iter().filter(|(uuid, key)| condition(uuid, key)).count() as u64
    }

    /// Whether the kill may have happened between this event's acceptance and its acknowledgement.
    fn may_be_unacknowledged(&self, key: &Key) -> bool {
        let next = self.last.get(&(key.run, key.thread)).map_or(0, |last| last.saturating_add(1));
        key.n == next
    }
}

/// What is wrong with the events at the stand-in; empty if nothing is.
pub fn findings(history: &History, events: &[Event], rules: Rules) -> Vec<String> {
    let mut first: HashMap<Uuid, &Event> = HashMap::new();
    let mut by_key: HashMap<Key, Uuid> = HashMap::new();
    let mut foreign = Findings::new("arrived but was never captured");
    let mut refused = Findings::new("arrived although `capture` had refused it");
    let mut doubled = Findings::new("arrived with two uuids");
    let mut changed = Findings::new("arrived again with a change");
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
        } else if history
            .acknowledged
            .get(&event.uuid)
            .map_or(!history.may_be_unacknowledged(&key), |acknowledged| *acknowledged != key)
        {
            foreign.add(event.uuid);
        }
    }
    let mut lost = Findings::new("LOST: acknowledged but did not arrive");
    let may_be_missing = |key: &Key| rules.evicts || rules.power_cuts || (rules.poison && is_poison(key));
    let missing = history.acknowledged.iter().filter(|(uuid, key)| !first.contains_key(uuid) && !may_be_missing(key));
    missing.for_each(|(uuid, _)| lost.add(*uuid));
    let mut twins = Findings::new("the uuid of two events");
    history.twins.iter().for_each(|uuid| twins.add(*uuid));
    [lost, foreign, refused, doubled, changed, twins].iter().filter_map(Findings::report).collect()
}

/// What is wrong with the sum of all shards' ledgers, once everything was delivered. `has_arrived` says whether the
/// stand-in has a uuid, and `unique` how many it has. `cut_off` is the maximum number of accepted events whose
/// acknowledgement a kill has cut off.
pub fn ledger_findings(
    ledger: &Ledger,
    history: &History,
    rules: Rules,
    (has_arrived, unique): (&dyn Fn(&Uuid) -> bool, u64),
    cut_off: u64,
) -> Vec<String> {
    let Ledger { accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced } = *ledger;
    let acknowledged = history.acknowledged.len() as u64;
    let poison = if rules.poison { history.count(|_, key| is_poison(key)) } else { 0 };
    let missing = if rules.evicts { history.count(|uuid, _| !has_arrived(uuid)) } else { 0 };
    // An event whose acknowledgement was cut off may be poison or evicted as well.
    let may_be_more = |allowed: bool, least: u64| least..=least + if allowed { cut_off } else { 0 };
    let evictions = if rules.evicts { missing..=u64::MAX } else { 0..=0 };
    let delivered_wrongly = if rules.evicts {
        // An event that arrived and was evicted before its delivery was committed counts as evicted.
        delivered > unique || unique > delivered + evicted
    } else {
        delivered != unique
    };
    let rules = [
        (ledger.balances(), "does not balance"),
        (queued == 0, "is not drained"),
        (damaged + lost_unsynced == 0, "counts losses without a cause"),
        (
            may_be_more(rules.poison, poison).contains(&dead_lettered),
            "has another number of dead letters than the stand-in refused",
        ),
        (evictions.contains(&evicted), "has a wrong number of evicted events"),
        (may_be_more(true, acknowledged).contains(&accepted), "counts too few or too many accepted events"),
        (!delivered_wrongly, "counts another number of delivered events than arrived"),
    ];
    let broken = rules.iter().filter(|(holds, _)| !holds);
    broken
        .map(|(_, what)| format!("the ledger {what}: {ledger:?}, {acknowledged} acknowledged, {unique} arrived"))
        .collect()
}

fn is_same(one: &Event, other: &Event) -> bool {
    (&one.event, &one.distinct_id, &one.timestamp, &one.properties)
        == (&other.event, &other.distinct_id, &other.timestamp, &other.properties)
}

/// All findings of one kind.
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
