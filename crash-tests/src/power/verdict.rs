//! What a victim's output promises about a power cut, and whether it was kept. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use sink::Event;
use uuid::Uuid;

use crate::Ledger;
use crate::protocol::Line;

/// Rounds of the victim's own measure of the disk after which an accepted event must survive.
///
/// The library promises `sync_interval` and the time of one sync. How long a sync takes depends on the machine and its
/// load, so the victim measures it: a round is a sync interval and some syncs of its own. The library may need a few,
/// as it syncs larger files and commits in between.
const ROUNDS: usize = 10;

/// Events that must be there after a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// The library said that they are persisted, of these or of a later event of the same thread.
    pub persisted: HashSet<Uuid>,
    /// The others that were accepted long enough ago.
    pub older: HashSet<Uuid>,
    /// All that were accepted.
    pub accepted: HashSet<Uuid>,
}

impl Promised {
    /// What follows from the lines that a victim had written before the power was cut.
    pub fn by(lines: &[Line]) -> Self {
        let mut accepted = Vec::new();
        let mut of_threads: BTreeMap<(u32, u32), Vec<Uuid>> = BTreeMap::new();
        let mut persisted = HashSet::new();
        // How many were accepted when a round began.
        let mut rounds = Vec::new();
        for line in lines {
            match line {
                Line::Acknowledged(key, uuid) => {
                    accepted.push(*uuid);
                    of_threads.entry((key.run, key.thread)).or_default().push(*uuid);
                }
                // Nothing durable has a gap before it. A thread writes this line before it captures the next event.
                Line::Persisted(key) => persisted.extend(of_threads.remove(&(key.run, key.thread)).unwrap_or_default()),
                Line::Round => rounds.push(accepted.len()),
                Line::Open | Line::Dropped(..) | Line::ChildEnded | Line::Ledger(_) => {}
            }
        }
        // The last round is not over.
        let old = rounds.len().checked_sub(ROUNDS + 1).map_or(0, |round| rounds[round]);
        let older = accepted[..old].iter().filter(|uuid| !persisted.contains(uuid)).copied().collect();
        Self { persisted, older, accepted: accepted.into_iter().collect() }
    }

    /// The events that must be there and have not arrived.
    pub fn lost(&self, has_arrived: &dyn Fn(Uuid) -> bool) -> Vec<Uuid> {
        self.persisted.union(&self.older).filter(|uuid| !has_arrived(**uuid)).copied().collect()
    }

    /// Adds what follows from another run.
    pub fn add(&mut self, other: Self) {
        self.persisted.extend(other.persisted);
        self.older.extend(other.older);
        self.accepted.extend(other.accepted);
    }
}

/// The figures of one or many file systems whose power was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Power cuts.
    pub cuts: u64,
    /// Events accepted before a cut.
    pub accepted: u64,
    /// Of these, those that the library had called persisted.
    pub persisted: u64,
    /// Of these, those that are lost. Must be 0.
    pub lost_persisted: u64,
    /// Lost although accepted long enough ago for a sync. Must be 0.
    pub lost_older: u64,
    /// Lost, and younger than that.
    pub lost_younger: u64,
    /// Events that the last run sent twice, to a server that answers. Must be 0.
    pub doubled: u64,
    /// Events that arrived before a cut and again after it, because the answer was not yet on the disk.
    pub repeated: u64,
}

impl Figures {
    /// The figures of a life with `cuts`, in which `before` arrived before the last cut and `after` when everything
    /// was delivered.
    pub fn of(cuts: u64, promised: &Promised, before: &[Event], after: &[Event]) -> Self {
        let count = |number: usize| number as u64;
        let mut times: HashMap<Uuid, u64> = HashMap::new();
        after.iter().for_each(|event| *times.entry(event.uuid).or_default() += 1);
        let before: HashSet<Uuid> = before.iter().map(|event| event.uuid).collect();
        let is_lost = |uuid: &&Uuid| !before.contains(uuid) && !times.contains_key(uuid);
        let lost = count(promised.accepted.iter().filter(is_lost).count());
        let lost_persisted = count(promised.persisted.iter().filter(is_lost).count());
        let lost_older = count(promised.older.iter().filter(is_lost).count());
        Self {
            cuts,
            accepted: count(promised.accepted.len()),
            persisted: count(promised.persisted.len()),
            lost_persisted,
            lost_older,
            lost_younger: lost - lost_persisted - lost_older,
            doubled: times.values().map(|times| times - 1).sum(),
            repeated: count(times.keys().filter(|uuid| before.contains(uuid)).count()),
        }
    }

    /// Adds other figures.
    pub fn add(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.accepted += other.accepted;
        self.persisted += other.persisted;
        self.lost_persisted += other.lost_persisted;
        self.lost_older += other.lost_older;
        self.lost_younger += other.lost_younger;
        self.doubled += other.doubled;
        self.repeated += other.repeated;
    }

    /// The promises that these figures break. On a machine that is shared with other work, age is no promise.
    pub fn broken(&self, is_shared: bool) -> Vec<String> {
        let lost_older = if is_shared { 0 } else { self.lost_older };
        let promises = [
            (self.lost_persisted, "persisted events are LOST"),
            (lost_older, "events are LOST that were accepted long enough ago"),
            (self.doubled, "events were sent twice after the last cut"),
        ];
        let broken = promises.into_iter().filter(|(number, _)| *number > 0);
        broken.map(|(number, what)| format!("{number} {what}")).collect()
    }
}

/// What is wrong with a ledger, once everything was delivered: `arrived` events have, all victims have reported
/// `acknowledged`, and kills may have cut off `cut_off` such reports.
pub fn ledger_findings(ledger: &Ledger, arrived: u64, acknowledged: u64, cut_off: u64) -> Vec<String> {
    let Ledger { accepted, delivered, queued, dead_lettered, evicted, damaged, .. } = *ledger;
    let rules = [
        (ledger.balances(), "does not balance"),
        (queued == 0, "is not drained"),
        (dead_lettered + evicted + damaged == 0, "counts losses that a power cut does not cause"),
        // An event leaves for the server only when the transaction that stores it is on the disk.
        (delivered == arrived, "counts another number of delivered events than arrived"),
        // What the disk never saw is counted nowhere.
        (accepted <= acknowledged + cut_off, "counts too many accepted events"),
    ];
    let broken = rules.iter().filter(|(holds, _)| !holds);
    broken
        .map(|(_, what)| format!("the ledger {what}: {ledger:?}, {arrived} arrived, {acknowledged} reported"))
        .collect()
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
