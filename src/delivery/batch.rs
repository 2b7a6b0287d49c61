//! A batch: the events of one request, and how many of them fit into it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::loaded::{Loaded, Slice};
use super::pace::Ticket;
use super::request::Exchange;
use crate::queue::ChunkRef;
use crate::record::Class;

/// The limit on bytes is never reduced below this.
const LEAST_BYTES: usize = 16 * 1024;

/// A stack frame takes some seven bytes in a record and some hundreds in JSON.
const EXCEPTIONS_GROW: usize = 16;

/// The offset of a record's class.
const CLASS: usize = 1;
/// The offset of a record's uuid.
const UUID: std::ops::Range<usize> = 12..28;

/// Some slices.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    /// The records.
    pub(super) slices: Vec<Slice>,
    /// Number of open records.
    pub(super) events: usize,
    /// Their estimated size as JSON.
    pub(super) bytes: usize,
    /// The V1 request these events were last sent as. A part that is cut off is another request.
    pub(super) exchange: Option<Exchange>,
    /// Number of accepted requests when these events, or a batch with them, were first refused.
    pub(super) refused_since: Option<u64>,
    /// The circumstances in which it was last sent.
    pub(super) ticket: Ticket,
    /// The number and the time of the request it was last sent as.
    pub(super) sent: Option<(u64, Instant)>,
    /// The early timeout of that request, if the endpoint was believed to work.
    pub(super) given_up_after: Option<Duration>,
    /// How often these very events have failed since the last accepted request.
    pub(super) failures: u32,
    /// V1 answered `retry` for each of these events, so a smaller request would learn nothing.
    pub(super) asked_again: bool,
    /// It is a part of a batch that is bisected.
    pub(super) is_piece: bool,
    /// How often its only event was quarantined; 0 for all other batches.
    pub(super) quarantined: u32,
}

impl Batch {
    /// A batch of one slice.
    pub(super) fn of(slice: Slice, loaded: &Loaded) -> Self {
        let mut batch = Batch::default();
        batch.push(slice, loaded);
        batch
    }

    /// Adds a slice.
    pub(super) fn push(&mut self, slice: Slice, loaded: &Loaded) {
        self.count_slice(&slice, loaded);
        self.slices.push(slice);
    }

    /// Counts again, after some of its records were decided.
    pub(super) fn count(&mut self, loaded: &Loaded) {
        (self.events, self.bytes) = (0, 0);
        let slices = std::mem::take(&mut self.slices);
        slices.iter().for_each(|slice| self.count_slice(slice, loaded));
        self.slices = slices;
    }

    fn count_slice(&mut self, slice: &Slice, loaded: &Loaded) {
        for (_, _, body) in loaded.open(slice) {
            self.events += 1;
            self.bytes = self.bytes.saturating_add(json_estimate(body));
        }
    }

    /// Its open records: each as a slice, its sequence number, its body.
    pub(super) fn records<'a>(&'a self, loaded: &'a Loaded) -> impl Iterator<Item = (Slice, u64, &'a [u8])> + 'a {
        self.slices.iter().flat_map(|slice| {
            let one = |position| Slice { chunk: slice.chunk, range: position..position + 1 };
            loaded.open(slice).map(move |(position, seq, body)| (one(position), seq, body))
        })
    }

    /// The chunks it has records of, some of them perhaps twice in a row.
    pub(super) fn chunks(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        self.slices.iter().map(|slice| slice.chunk)
    }

    /// The position among the open records of the first one whose uuid an earlier one has.
    pub(super) fn first_repetition(&self, loaded: &Loaded) -> Option<usize> {
        let mut seen = HashSet::with_capacity(self.events);
        self.records(loaded).position(|(.., body)| !seen.insert(uuid_of(body)))
    }

    /// Adds the events of another batch.
    pub(super) fn join(&mut self, other: Batch) {
        self.events = self.events.saturating_add(other.events);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.slices.extend(other.slices);
    }

    /// Splits off the open record at this position. Returns it and the batch of the others.
    pub(super) fn take_out(self, place: usize, loaded: &mut Loaded) -> (Batch, Batch) {
        let [mut rest, from] = self.cut(place, loaded);
        let [one, behind] = from.cut(1, loaded);
        rest.join(behind);
        (one, rest)
    }

    /// Two batches with half of the open records each. The first is empty if there is only one.
    pub(super) fn halves(self, loaded: &mut Loaded) -> [Batch; 2] {
        let half = self.events / 2;
        self.cut(half, loaded)
    }

    /// Two batches, the first with this number of open records.
    pub(super) fn cut(self, events: usize, loaded: &mut Loaded) -> [Batch; 2] {
        let mut missing = events;
        let mut first = Batch { refused_since: self.refused_since, ..Batch::default() };
        let mut second = first.clone();
        for mut slice in self.slices {
            let open: Vec<usize> = loaded.open(&slice).map(|(position, ..)| position - slice.range.start).collect();
            let Some(&cut) = open.get(missing) else {
                missing -= open.len();
                first.push(slice, loaded);
                continue;
            };
            if missing > 0 {
                let rest = slice.split_off(cut, loaded);
                first.push(slice, loaded);
                second.push(rest, loaded);
                missing = 0;
            } else {
                second.push(slice, loaded);
            }
        }
        [first, second]
    }
}

/// The uuid of a record, also of one that is malformed otherwise.
pub(super) fn uuid_of(body: &[u8]) -> Uuid {
    body.get(UUID).and_then(|bytes| Uuid::from_slice(bytes).ok()).unwrap_or_default()
}

/// The estimated size of a record as JSON: more than its MessagePack, plus the members that every event has.
pub(super) fn json_estimate(body: &[u8]) -> usize {
    match body.get(CLASS).map(|&class| Class::from_u8(class)) {
        Some(Class::Exception) => body.len().saturating_mul(EXCEPTIONS_GROW),
        _ => body.len().saturating_mul(3) / 2 + 200,
    }
}

/// The limits of one batch. The limit on bytes adapts, because a proxy may accept less than PostHog, and a slow link
/// may not transfer within the timeout what a fast one does.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    /// Events in one batch.
    pub(super) events: usize,
    /// Estimated bytes of JSON in one batch.
    pub(super) bytes: usize,
    most_bytes: usize,
}

impl BatchLimits {
    /// The configured limits.
    pub(super) fn new(events: usize, bytes: usize) -> Self {
        let bytes = bytes.max(LEAST_BYTES);
        Self { events: events.max(1), bytes, most_bytes: bytes }
    }

    /// A batch of this size was too large. One below the least limit must have failed for another reason.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if bytes > LEAST_BYTES {
            self.bytes = (bytes / 2).clamp(LEAST_BYTES, self.bytes);
        }
    }

    /// A batch was accepted. Some fifty of them double the limit, so that it does not oscillate.
    pub(super) fn grow(&mut self) {
        self.bytes = self.bytes.saturating_add(self.bytes / 64).min(self.most_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::chunk;
    use super::*;

    #[test]
    fn halves_hold_every_record_once_wherever_the_cut_falls() {
        for counts in [vec![2], vec![1, 1], vec![3, 4], vec![1, 9, 1], vec![7, 1, 1], vec![100]] {
            let mut loaded = Loaded::default();
            let (mut batch, mut seq) = (Batch::default(), 1);
            for count in counts {
                let slice = loaded.insert(chunk(0, seq, count));
                seq += count;
                batch.push(slice, &loaded);
            }
            let events = batch.events;
            let [first, second] = batch.halves(&mut loaded);
            assert_eq!((first.events, second.events), (events / 2, events - events / 2));
            let all = first.slices.iter().chain(&second.slices);
            let seqs: Vec<u64> = all.flat_map(|slice| loaded.open(slice).map(|(_, seq, _)| seq)).collect();
            assert_eq!(seqs, (1..seq).collect::<Vec<_>>());
            for slice in first.slices.iter().chain(&second.slices) {
                loaded.release(slice);
            }
            assert!(loaded.is_empty(), "each slice was counted");
        }
    }

    #[test]
    fn an_exception_counts_for_the_text_that_its_addresses_become() {
        let (mut ordinary, mut exception) = ([0; 2000], [0; 2000]);
        (ordinary[CLASS], exception[CLASS]) = (Class::Ordinary as u8, Class::Exception as u8);
        assert_eq!((json_estimate(&ordinary), json_estimate(&exception)), (3200, 32_000));
    }

    #[test]
    fn limits_shrink_to_what_came_through_and_grow_back() {
        let mut limits = BatchLimits::new(1000, 4 << 20);
        limits.shrink(2 << 20);
        assert_eq!(limits.bytes, 1 << 20);
        limits.shrink(LEAST_BYTES);
        assert_eq!(limits.bytes, 1 << 20, "so little is never too much");
        limits.shrink(LEAST_BYTES + 1);
        assert_eq!(limits.bytes, LEAST_BYTES);
        (0..600).for_each(|_| limits.grow());
        assert_eq!(limits.bytes, 4 << 20);
    }
}
