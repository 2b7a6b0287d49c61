//! Quarantine: chunks that delivery skips for a while because sending them failed while other requests succeeded.
//!
//! A chunk is quarantined when
//! * one of its events was refused on its own, but nothing yet shows that the event rather than the server is at fault,
//!   or
//! * requests that contain it keep failing while others succeed.
//!
//! It is tried again when another request succeeds (only after its first quarantine: the success suggests that the
//! event is at fault, not the server), or when its deadline passes (a later one each time). It leaves quarantine for
//! good when its events are delivered or dead-lettered. The state is in memory only: after a restart every chunk is
//! tried again.

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use crate::queue::ChunkRef;

/// Maximum number of chunks, and also of events. When one of the two is full, it is cleared; the only cost is that some
/// requests are made again.
const MAX_ENTRIES: usize = 10_000;
/// Used in place of the number of accepted requests for an event that failed alone but was never refused. No number of
/// accepted requests exceeds it, so they never count as evidence against the event; only time ends its quarantine.
pub(super) const NEVER_REFUSED: u64 = u64::MAX;
/// An entry that is not found in the queue for this long is removed.
const MISSING: Duration = Duration::from_secs(60);

/// Identifies an event for as long as it is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EventId {
    /// The shard.
    pub(crate) origin: u32,
    /// The sequence number, unique over all lanes of the shard.
    pub(crate) seq: u64,
}

impl EventId {
    /// The event of a chunk with this sequence number.
    pub(super) fn of(chunk: ChunkRef, seq: u64) -> Self {
        Self { origin: chunk.origin, seq }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Number of accepted requests when it was quarantined.
    since: u64,
    until: Instant,
    /// How often it was quarantined.
    times: u32,
    /// Whether the chunk is leased at the moment, because it is being tried again.
    out: bool,
    /// When it was first due but not found in the queue.
    missing_since: Option<Instant>,
    /// Number of events in it.
    events: u64,
}

/// The quarantined chunks, and the events that are the cause.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    chunks: HashMap<ChunkRef, Entry>,
    /// For each event: the number of accepted requests when it was first refused in a request of its own. If more
    /// requests were accepted since, that is evidence against the event.
    events: HashMap<EventId, u64>,
}

impl Quarantine {
    /// Quarantines a chunk. `wait` returns the deadline, given how often the chunk has been quarantined.
    pub(super) fn put(&mut self, chunk: ChunkRef, events: u64, accepted: u64, wait: impl FnOnce(u32) -> Instant) {
        if self.chunks.len() >= MAX_ENTRIES {
            self.chunks.clear();
        }
        let times = self.chunks.get(&chunk).map_or(1, |entry| entry.times.saturating_add(1));
        let entry = Entry { since: accepted, until: wait(times), times, out: false, missing_since: None, events };
        self.chunks.insert(chunk, entry);
    }

    /// How often a chunk was quarantined.
    pub(super) fn times(&self, chunk: ChunkRef) -> u32 {
        self.chunks.get(&chunk).map_or(0, |entry| entry.times)
    }

    /// Ends the quarantine of a chunk, because it has events that did not fail.
    pub(super) fn lift(&mut self, chunk: ChunkRef) {
        self.chunks.remove(&chunk);
    }

    /// Whether a chunk is to be skipped now.
    pub(super) fn skips(&self, chunk: ChunkRef, accepted: u64, now: Instant) -> bool {
        self.chunks.get(&chunk).is_some_and(|entry| !entry.is_due(accepted, now))
    }

    /// A chunk was leased. Returns whether it was quarantined, so that its quarantined events are tried again.
    pub(super) fn take_out(&mut self, chunk: ChunkRef) -> bool {
        self.chunks.get_mut(&chunk).map(|entry| entry.out = true).is_some()
    }

    /// A chunk was released without a decision.
    pub(super) fn retry_ended(&mut self, chunk: ChunkRef) {
        if let Some(entry) = self.chunks.get_mut(&chunk) {
            entry.out = false;
        }
    }

    /// Some records of a chunk were removed. The rest is stored under a new key, and keeps the entry.
    pub(super) fn rename(&mut self, from: ChunkRef, to: ChunkRef) {
        if let Some(entry) = self.chunks.remove(&from) {
            self.chunks.insert(to, entry);
        }
    }

    /// All events of a chunk are decided.
    pub(super) fn forget(&mut self, chunk: ChunkRef, seqs: RangeInclusive<u64>) {
        self.chunks.remove(&chunk);
        self.events.retain(|event, _| event.origin != chunk.origin || !seqs.contains(&event.seq));
    }

    /// Whether the quarantine of any chunk in the queue is over.
    pub(super) fn any_due(&self, accepted: u64, now: Instant) -> bool {
        self.chunks.values().any(|entry| !entry.out && entry.is_due(accepted, now))
    }

    /// The next deadline that has not passed.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.chunks.values().filter(|entry| !entry.out && entry.until > now).map(|entry| entry.until).min()
    }

    /// Called when the whole queue has been read. Removes the entries that are due and were not found for [`MISSING`]:
    /// their rows were evicted or repaired. They are not removed at once, because the rest of a partly acked row can be
    /// read only after the next commit.
    pub(super) fn forget_vanished(&mut self, accepted: u64, now: Instant) {
        self.chunks.retain(|_, entry| {
            if entry.out || !entry.is_due(accepted, now) {
                entry.missing_since = None;
                return true;
            }
            now.saturating_duration_since(*entry.missing_since.get_or_insert(now)) < MISSING
        });
    }

    /// The shards that have quarantined chunks, none of which is due. (A chunk that is due may be unreadable only until
    /// the next commit, so its shard is not stuck.)
    pub(super) fn stuck(&self, accepted: u64, now: Instant) -> BTreeSet<u32> {
        let origins = |is_due: bool| {
            let entries = self.chunks.iter().filter(move |(_, entry)| entry.is_due(accepted, now) == is_due);
            entries.map(|(chunk, _)| chunk.origin).collect::<BTreeSet<_>>()
        };
        &origins(false) - &origins(true)
    }

    /// A shard is not delivered any more.
    pub(super) fn forget_origin(&mut self, origin: u32) {
        self.chunks.retain(|chunk, _| chunk.origin != origin);
        self.events.retain(|event, _| event.origin != origin);
    }

    /// Number of events that are skipped now, and when the first of them is tried again; `None` if there are none.
    pub(super) fn skipped(&self, accepted: u64, now: Instant) -> Option<(u64, Instant)> {
        let held = self.chunks.values().filter(|entry| !entry.out && !entry.is_due(accepted, now));
        held.fold(None, |sum, entry| match sum {
            None => Some((entry.events, entry.until)),
            Some((events, until)) => Some((events.saturating_add(entry.events), entry.until.min(until))),
        })
    }

    /// Whether any event was refused alone and no request was accepted since.
    pub(super) fn has_unproven(&self, accepted: u64) -> bool {
        self.events.values().any(|&since| since == accepted)
    }

    /// Records that an event was refused alone. `since` is the number of accepted requests at its first refusal, or
    /// [`NEVER_REFUSED`] if it failed alone while others passed.
    pub(super) fn quarantine_event(&mut self, event: EventId, since: u64) {
        if self.events.len() >= MAX_ENTRIES {
            self.events.clear();
        }
        let known = self.events.entry(event).or_insert(since);
        *known = since.min(*known);
    }

    /// Whether an event was refused, or failed, alone.
    pub(super) fn has_event(&self, event: EventId) -> bool {
        self.events.contains_key(&event)
    }

    /// Number of accepted requests at the first time that an event was refused alone.
    pub(super) fn refused_since(&self, event: EventId) -> Option<u64> {
        self.events.get(&event).copied().filter(|&since| since != NEVER_REFUSED)
    }

    /// Whether any event is quarantined, which is rare.
    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }
}

impl Entry {
    fn is_due(&self, accepted: u64, now: Instant) -> bool {
        // Evidence is worth one attempt. After that only time counts.
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
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        quarantine.put(CHUNK, 1, 5, |_| now + Duration::from_secs(30));
        let after = |seconds| now + Duration::from_secs(seconds);
        quarantine.forget_vanished(5, after(29));
        quarantine.forget_vanished(5, after(31));
        quarantine.forget_vanished(5, after(90));
        assert!(quarantine.any_due(5, after(90)));
        quarantine.forget_vanished(5, after(91));
        assert!(!quarantine.any_due(5, after(91)));
    }

    #[test]
    fn evidence_brings_a_chunk_back_once_and_then_only_time_does() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        let later = |times: u32| now + Duration::from_secs(30) * times;
        quarantine.put(CHUNK, 3, 5, later);
        assert!(quarantine.skips(CHUNK, 5, now) && !quarantine.any_due(5, now));
        assert!(!quarantine.skips(CHUNK, 6, now) && quarantine.any_due(6, now));
        assert!(quarantine.take_out(CHUNK));
        assert!(!quarantine.any_due(6, now), "it is out already");
        assert_eq!(quarantine.skipped(6, now), None);
        quarantine.put(CHUNK, 2, 6, later);
        assert_eq!(quarantine.skipped(99, now), Some((2, now + Duration::from_secs(60))));
        assert!(quarantine.skips(CHUNK, 99, now));
        assert_eq!(quarantine.next_due(now), Some(now + Duration::from_secs(60)));
        assert!(!quarantine.skips(CHUNK, 6, now + Duration::from_secs(60)));
    }

    #[test]
    fn an_event_that_fails_alone_waits_for_its_deadline() {
        let (mut quarantine, event, now) = (Quarantine::default(), EventId { origin: 0, seq: 1 }, Instant::now());
        quarantine.quarantine_event(event, NEVER_REFUSED);
        quarantine.put(CHUNK, 1, NEVER_REFUSED, |_| now + Duration::from_secs(3));
        assert!(quarantine.has_event(event) && quarantine.refused_since(event).is_none());
        assert!(quarantine.skips(CHUNK, 99, now) && !quarantine.skips(CHUNK, 99, now + Duration::from_secs(3)));
        assert!(!quarantine.has_unproven(99));
        quarantine.quarantine_event(event, 5);
        assert_eq!(quarantine.refused_since(event), Some(5));
    }

    #[test]
    fn the_first_refusal_of_an_event_is_the_one_that_counts() {
        let (mut quarantine, event) = (Quarantine::default(), EventId { origin: 0, seq: 1 });
        quarantine.quarantine_event(event, 3);
        quarantine.quarantine_event(event, 9);
        assert_eq!(quarantine.refused_since(event), Some(3));
        assert!(quarantine.has_unproven(3) && !quarantine.has_unproven(4));
        quarantine.forget(CHUNK, 2..=5);
        assert!(quarantine.has_events());
        quarantine.forget(CHUNK, 0..=1);
        assert!(!quarantine.has_events());
    }
}
