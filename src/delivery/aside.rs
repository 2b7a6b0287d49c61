//! Chunks that are stepped over for now, and the events that made them so.
//!
//! Two ways in: an event of the chunk was refused alone without evidence that the event is to blame (a *suspect*), or the chunk as a
//! whole keeps failing while others pass. The way back is evidence, once, or the passing of time, ever more of it. All of this is a
//! memory of this process only; after a restart everything is simply tried again.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::queue::ChunkRef;

/// More than so many chunks or suspects are not remembered: forgetting them all costs some requests, and nothing else.
const MAX_ENTRIES: usize = 10_000;
/// The count of acceptances at the first refusal of an event that was never refused. Nothing is evidence against it, and so it waits
/// for time to pass.
pub(super) const NEVER_REFUSED: u64 = u64::MAX;
/// What cannot be found for so long is gone.
const MISSING: Duration = Duration::from_secs(60);

/// An event's name for as long as it is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EventId {
    /// Whose queue.
    pub(crate) origin: u32,
    /// Where in it; unique over all lanes.
    pub(crate) seq: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Acceptances counted when it was set aside.
    since: u64,
    until: Instant,
    /// How often it was set aside.
    times: u32,
    /// It is loaded and being tried again.
    out: bool,
    /// It could be read again, and was not found.
    missing_since: Option<Instant>,
    /// How many events it has.
    events: u64,
}

/// What is stepped over.
#[derive(Debug, Default)]
pub(super) struct Aside {
    chunks: HashMap<ChunkRef, Entry>,
    /// For each suspect the count of acceptances at its first refusal: more than that is evidence.
    suspects: HashMap<EventId, u64>,
}

impl Aside {
    /// Sets a chunk of so many events aside. `wait` tells until when, given how often that happened.
    pub(super) fn put(&mut self, chunk: ChunkRef, events: u64, accepted: u64, wait: impl FnOnce(u32) -> Instant) {
        if self.chunks.len() >= MAX_ENTRIES {
            self.chunks.clear();
        }
        let times = self.chunks.get(&chunk).map_or(1, |entry| entry.times.saturating_add(1));
        let entry = Entry { since: accepted, until: wait(times), times, out: false, missing_since: None, events };
        self.chunks.insert(chunk, entry);
    }

    /// How often a chunk was set aside.
    pub(super) fn times(&self, chunk: ChunkRef) -> u32 {
        self.chunks.get(&chunk).map_or(0, |entry| entry.times)
    }

    /// A chunk is to be read like any other: it has events that nothing is said against.
    pub(super) fn let_back(&mut self, chunk: ChunkRef) {
        self.chunks.remove(&chunk);
    }

    /// Whether a chunk is to be stepped over.
    pub(super) fn holds(&self, chunk: ChunkRef, accepted: u64, now: Instant) -> bool {
        self.chunks.get(&chunk).is_some_and(|entry| !entry.is_due(accepted, now))
    }

    /// A chunk is read again. Says whether it had been set aside, so that its suspects are to be tried.
    pub(super) fn take_out(&mut self, chunk: ChunkRef) -> bool {
        self.chunks.get_mut(&chunk).map(|entry| entry.out = true).is_some()
    }

    /// A chunk was given back to the queue without a decision.
    pub(super) fn put_back(&mut self, chunk: ChunkRef) {
        if let Some(entry) = self.chunks.get_mut(&chunk) {
            entry.out = false;
        }
    }

    /// What remains of a chunk has another name.
    pub(super) fn rename(&mut self, from: ChunkRef, to: ChunkRef) {
        if let Some(entry) = self.chunks.remove(&from) {
            self.chunks.insert(to, entry);
        }
    }

    /// A chunk is done with, and so are its events.
    pub(super) fn forget(&mut self, chunk: ChunkRef, seqs: RangeInclusive<u64>) {
        self.chunks.remove(&chunk);
        self.suspects.retain(|event, _| event.origin != chunk.origin || !seqs.contains(&event.seq));
    }

    /// Whether a chunk may be read again that could not before.
    pub(super) fn any_due(&self, accepted: u64, now: Instant) -> bool {
        self.chunks.values().any(|entry| !entry.out && entry.is_due(accepted, now))
    }

    /// When time will have brought the next chunk back, not counting those that it has.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.chunks.values().filter(|entry| !entry.out && entry.until > now).map(|entry| entry.until).min()
    }

    /// All of the queue has been looked through: what could be read again and is not found for a while is gone, evicted or salvaged.
    /// Not at once, for what remains of a row can be read only after a commit.
    pub(super) fn forget_vanished(&mut self, accepted: u64, now: Instant) {
        self.chunks.retain(|_, entry| {
            if entry.out || !entry.is_due(accepted, now) {
                entry.missing_since = None;
                return true;
            }
            now.saturating_duration_since(*entry.missing_since.get_or_insert(now)) < MISSING
        });
    }

    /// The queues of which something is stepped over, and nothing is due: what is due may only wait for a commit.
    pub(super) fn stuck(&self, accepted: u64, now: Instant) -> BTreeSet<u32> {
        let origins = |is_due: bool| {
            let entries = self.chunks.iter().filter(move |(_, entry)| entry.is_due(accepted, now) == is_due);
            entries.map(|(chunk, _)| chunk.origin).collect::<BTreeSet<_>>()
        };
        &origins(false) - &origins(true)
    }

    /// That queue is read no more.
    pub(super) fn forget_origin(&mut self, origin: u32) {
        self.chunks.retain(|chunk, _| chunk.origin != origin);
        self.suspects.retain(|event, _| event.origin != origin);
    }

    /// How many events are stepped over now, and when the first of them will be tried again; `None` if none is.
    pub(super) fn stepped_over(&self, accepted: u64, now: Instant) -> Option<(u64, Instant)> {
        let held = self.chunks.values().filter(|entry| !entry.out && !entry.is_due(accepted, now));
        held.fold(None, |sum, entry| match sum {
            None => Some((entry.events, entry.until)),
            Some((events, until)) => Some((events.saturating_add(entry.events), entry.until.min(until))),
        })
    }

    /// Whether an event was refused alone, and nothing was accepted since.
    pub(super) fn has_unproven_suspects(&self, accepted: u64) -> bool {
        self.suspects.values().any(|&since| since == accepted)
    }

    /// Remembers that an event was refused alone, `since` so many acceptances.
    pub(super) fn suspect(&mut self, event: EventId, since: u64) {
        if self.suspects.len() >= MAX_ENTRIES {
            self.suspects.clear();
        }
        let known = self.suspects.entry(event).or_insert(since);
        *known = since.min(*known);
    }

    /// Remembers that an event failed alone while others passed. That is no refusal.
    pub(super) fn suspect_of_failing(&mut self, event: EventId) {
        self.suspect(event, NEVER_REFUSED);
    }

    /// Whether an event was refused or failed alone.
    pub(super) fn is_suspect(&self, event: EventId) -> bool {
        self.suspects.contains_key(&event)
    }

    /// The count of acceptances at an event's first lone refusal.
    pub(super) fn refused_since(&self, event: EventId) -> Option<u64> {
        self.suspects.get(&event).copied().filter(|&since| since != NEVER_REFUSED)
    }

    /// Whether there are suspects at all, which is almost never.
    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }
}

impl Entry {
    fn is_due(&self, accepted: u64, now: Instant) -> bool {
        // Evidence is worth one attempt; who fails that one waits for the time to pass.
        now >= self.until || (self.times == 1 && accepted > self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::store::ChunkKey;

    const CHUNK: ChunkRef = ChunkRef { origin: 0, key: ChunkKey::new(7) };

    #[test]
    fn what_cannot_be_found_for_a_minute_is_forgotten() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        aside.put(CHUNK, 1, 5, |_| now + Duration::from_secs(30));
        let after = |seconds| now + Duration::from_secs(seconds);
        aside.forget_vanished(5, after(29));
        aside.forget_vanished(5, after(31));
        aside.forget_vanished(5, after(90));
        assert!(aside.any_due(5, after(90)));
        aside.forget_vanished(5, after(91));
        assert!(!aside.any_due(5, after(91)));
    }

    #[test]
    fn evidence_brings_a_chunk_back_once_and_then_only_time_does() {
        let (mut aside, now) = (Aside::default(), Instant::now());
        let later = |times: u32| now + Duration::from_secs(30) * times;
        aside.put(CHUNK, 3, 5, later);
        assert!(aside.holds(CHUNK, 5, now) && !aside.any_due(5, now));
        assert!(!aside.holds(CHUNK, 6, now) && aside.any_due(6, now));
        assert!(aside.take_out(CHUNK));
        assert!(!aside.any_due(6, now), "it is out already");
        assert_eq!(aside.stepped_over(6, now), None);
        aside.put(CHUNK, 2, 6, later);
        assert_eq!(aside.stepped_over(99, now), Some((2, now + Duration::from_secs(60))));
        assert!(aside.holds(CHUNK, 99, now));
        assert_eq!(aside.next_due(now), Some(now + Duration::from_secs(60)));
        assert!(!aside.holds(CHUNK, 6, now + Duration::from_secs(60)));
    }

    #[test]
    fn what_fails_alone_waits_for_time_and_a_later_refusal_counts_as_the_first() {
        let (mut aside, event, now) = (Aside::default(), EventId { origin: 0, seq: 1 }, Instant::now());
        aside.suspect_of_failing(event);
        aside.put(CHUNK, 1, NEVER_REFUSED, |_| now + Duration::from_secs(3));
        assert!(aside.is_suspect(event) && aside.refused_since(event).is_none());
        assert!(aside.holds(CHUNK, 99, now) && !aside.holds(CHUNK, 99, now + Duration::from_secs(3)));
        assert!(!aside.has_unproven_suspects(99));
        aside.suspect(event, 5);
        assert_eq!(aside.refused_since(event), Some(5));
    }

    #[test]
    fn the_first_refusal_of_a_suspect_is_the_one_that_counts() {
        let (mut aside, event) = (Aside::default(), EventId { origin: 0, seq: 1 });
        aside.suspect(event, 3);
        aside.suspect(event, 9);
        assert_eq!(aside.refused_since(event), Some(3));
        assert!(aside.has_unproven_suspects(3) && !aside.has_unproven_suspects(4));
        aside.forget(CHUNK, 2..=5);
        assert!(aside.has_suspects());
        aside.forget(CHUNK, 0..=1);
        assert!(!aside.has_suspects());
    }
}
