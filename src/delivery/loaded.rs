//! The leased chunks in memory: their records, the decision over each record, and the closing of a chunk.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use super::quarantine::EventId;
use crate::queue::frame;
use crate::queue::store::{Chunk, DeadRecord};
use crate::queue::{Ack, ChunkRef, Lease};
use crate::sys::clock::WallNanos;

/// Neighbouring records of one leased chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// The chunk.
    pub(super) chunk: ChunkRef,
    /// Positions of the records in it.
    pub(super) range: Range<usize>,
}

impl Slice {
    /// Cuts the slice before its `at`-th record. Both parts refer to the chunk from then on.
    pub(super) fn split_off(&mut self, at: usize, loaded: &mut Loaded) -> Slice {
        let middle = self.range.start.saturating_add(at).min(self.range.end);
        let rest = Slice { chunk: self.chunk, range: middle..self.range.end };
        self.range.end = middle;
        loaded.retain(&rest);
        rest
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Delivered,
    DeadLettered,
}

#[derive(Clone, Debug)]
struct Record {
    seq: u64,
    body: Range<usize>,
    fate: Fate,
}

/// The attempts to send a chunk, in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    /// Number of requests with events of it.
    pub(super) attempts: u32,
    /// When the first of them was sent.
    pub(super) first_attempt: Option<WallNanos>,
    /// Number of accepted requests when it first failed in what looked like an outage.
    pub(super) failed_since: Option<u64>,
    /// An event of it failed alone.
    pub(super) has_failed_alone: bool,
}

#[derive(Clone, Debug)]
struct LoadedChunk {
    chunk: Chunk,
    records: Vec<Record>,
    /// Number of slices that refer to it.
    slices: usize,
    dead_lettered: Vec<DeadRecord>,
    quarantine: Option<QuarantineReason>,
}

/// Why what remains of a chunk is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum QuarantineReason {
    /// Some of its events failed alone while others passed.
    EventsFail,
    /// Some of its events were refused alone.
    EventsRefused,
    /// A bisection of it was given up.
    Whole,
}

/// A chunk that no slice refers to any more.
#[derive(Debug)]
pub(super) struct Closed {
    /// The ack; `None` if nothing was decided.
    pub(super) ack: Option<Ack>,
    /// The chunk.
    pub(super) chunk: ChunkRef,
    /// The name of what remains; `None` if nothing does.
    pub(super) rest: Option<ChunkRef>,
    /// The sequence numbers of what remains.
    pub(super) open: Vec<u64>,
    /// Why what remains is quarantined, if it is.
    pub(super) quarantine: Option<QuarantineReason>,
    /// The first and the last sequence number that the chunk had.
    pub(super) seqs: RangeInclusive<u64>,
}

/// All leased chunks.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    chunks: HashMap<ChunkRef, LoadedChunk>,
    tries: HashMap<ChunkRef, Tries>,
}

/// Maximum number of chunks whose attempts are remembered after their release.
const MAX_TRIES: usize = 10_000;

impl Loaded {
    /// Adds a leased chunk, as one slice of all its records.
    pub(super) fn insert(&mut self, lease: Lease) -> Slice {
        let (reference, chunk) = (lease.row(), lease.chunk);
        let records = open_records(&chunk);
        let slice = Slice { chunk: reference, range: 0..records.len() };
        self.chunks
            .insert(reference, LoadedChunk { chunk, records, slices: 1, dead_lettered: Vec::new(), quarantine: None });
        slice
    }

    /// The names of all leased chunks.
    pub(super) fn references(&self) -> impl Iterator<Item = ChunkRef> + Clone + '_ {
        self.chunks.keys().copied()
    }

    /// Whether no chunk is leased.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The open records of a slice: position in the chunk, sequence number, body.
    pub(super) fn open(&self, slice: &Slice) -> impl Iterator<Item = (usize, u64, &[u8])> + '_ {
        let first = slice.range.start;
        let chunk = self.chunks.get(&slice.chunk);
        chunk
            .and_then(|chunk| chunk.records.get(slice.range.clone()).map(|records| (chunk, records)))
            .into_iter()
            .flat_map(move |(chunk, records)| {
                records.iter().enumerate().filter(|(_, record)| record.fate == Fate::Open).filter_map(
                    move |(at, record)| Some((first + at, record.seq, chunk.chunk.frames.get(record.body.clone())?)),
                )
            })
    }

    /// Counts one more slice of the chunk.
    pub(super) fn retain(&mut self, slice: &Slice) {
        if let Some(chunk) = self.chunks.get_mut(&slice.chunk) {
            chunk.slices += 1;
        }
    }

    /// Marks the open records of the slice as delivered.
    pub(super) fn mark_delivered(&mut self, slice: &Slice) {
        for record in self.records_mut(slice) {
            if record.fate == Fate::Open {
                record.fate = Fate::Delivered;
            }
        }
    }

    /// Marks one record as dead.
    pub(super) fn mark_dead_lettered(&mut self, chunk: ChunkRef, position: usize, dead: DeadRecord) {
        if let Some(loaded) = self.chunks.get_mut(&chunk)
            && let Some(record) = loaded.records.get_mut(position)
            && record.fate == Fate::Open
        {
            record.fate = Fate::DeadLettered;
            loaded.dead_lettered.push(dead);
        }
    }

    /// What remains of the chunk when it is closed is quarantined.
    pub(super) fn quarantine(&mut self, chunk: ChunkRef, reason: QuarantineReason) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.quarantine = chunk.quarantine.max(Some(reason));
        }
    }

    /// Whether a chunk has failed.
    pub(super) fn has_failed(&self, chunk: ChunkRef) -> bool {
        self.failed_since(chunk).is_some()
    }

    /// Whether an event of a chunk failed alone.
    pub(super) fn has_failed_alone(&self, chunk: ChunkRef) -> bool {
        self.tries.get(&chunk).is_some_and(|tries| tries.has_failed_alone)
    }

    /// Number of accepted requests when a chunk first failed in what looked like an outage.
    pub(super) fn failed_since(&self, chunk: ChunkRef) -> Option<u64> {
        self.tries.get(&chunk).and_then(|tries| tries.failed_since)
    }

    /// The attempts to send a chunk.
    pub(super) fn tries(&mut self, chunk: ChunkRef) -> &mut Tries {
        if self.tries.len() >= MAX_TRIES {
            let chunks = &self.chunks;
            self.tries.retain(|tried, _| chunks.contains_key(tried));
        }
        self.tries.entry(chunk).or_default()
    }

    /// Drops a slice, whatever became of its records. Closes the chunk if it was the last.
    pub(super) fn release(&mut self, slice: &Slice) -> Option<Closed> {
        let chunk = self.chunks.get_mut(&slice.chunk)?;
        chunk.slices = chunk.slices.saturating_sub(1);
        if chunk.slices == 0 { self.close(slice.chunk) } else { None }
    }

    /// Acks what is decided of a chunk that only this slice refers to. What is open stays leased under its new name.
    pub(super) fn ack_decided(&mut self, slice: &mut Slice) -> Option<Ack> {
        let is_open = |record: &Record| record.fate == Fate::Open;
        self.chunks.get(&slice.chunk).filter(|chunk| chunk.slices == 1 && chunk.records.iter().any(is_open))?;
        let loaded = self.chunks.get(&slice.chunk)?;
        let start = loaded.records.get(..slice.range.start)?.iter().filter(|record| is_open(record)).count();
        let end = start + self.open(slice).count();
        let (whole, quarantine) = (loaded.chunk.clone(), loaded.quarantine);
        let closed = self.close(slice.chunk)?;
        let rest = closed.rest?;
        let chunk = closed.ack.as_ref().and_then(|ack| ack.keep.clone()).unwrap_or(whole);
        let records = open_records(&chunk);
        let kept = LoadedChunk { chunk, records, slices: 1, dead_lettered: Vec::new(), quarantine };
        self.chunks.insert(rest, kept);
        *slice = Slice { chunk: rest, range: start..end };
        closed.ack
    }

    /// Closes a chunk, whatever slices still refer to it.
    pub(super) fn close(&mut self, reference: ChunkRef) -> Option<Closed> {
        let chunk = self.chunks.remove(&reference)?;
        let count = |fate| chunk.records.iter().filter(|record| record.fate == fate).count();
        let delivered = count(Fate::Delivered) as u64;
        let open: Vec<u64> =
            chunk.records.iter().filter(|record| record.fate == Fate::Open).map(|record| record.seq).collect();
        let seq = |record: Option<&Record>| record.map_or(reference.key.first_seq, |record| record.seq);
        let seqs = seq(chunk.records.first())..=seq(chunk.records.last());
        let is_decided = open.is_empty() || delivered > 0 || !chunk.dead_lettered.is_empty();
        let ack = is_decided.then(|| Ack {
            row: reference,
            delivered,
            dead: chunk.dead_lettered,
            keep: chunk.chunk.retain(|seq| open.binary_search(&seq).is_ok()),
        });
        let rest = match &ack {
            Some(ack) => ack.keep.as_ref().map(|kept| ChunkRef { key: kept.key, ..reference }),
            None => Some(reference),
        };
        let tries = self.tries.remove(&reference);
        self.tries.extend(rest.zip(tries));
        Some(Closed { ack, chunk: reference, rest, open, quarantine: chunk.quarantine, seqs })
    }

    fn records_mut(&mut self, slice: &Slice) -> &mut [Record] {
        let chunk = self.chunks.get_mut(&slice.chunk);
        chunk.and_then(|chunk| chunk.records.get_mut(slice.range.clone())).unwrap_or_default()
    }
}

/// The readable records of a chunk, all of them open.
fn open_records(chunk: &Chunk) -> Vec<Record> {
    let (mut records, mut at) = (Vec::with_capacity(chunk.count as usize), 0);
    while let Some((head, body, next)) = frame::parse(&chunk.frames, at, chunk.salt) {
        let from = at + frame::FRAME_HEAD;
        records.push(Record { seq: head.seq, body: from..from + body.len(), fate: Fate::Open });
        at = next;
    }
    records
}

impl EventId {
    /// The event of a chunk with this sequence number.
    pub(super) fn of(chunk: ChunkRef, seq: u64) -> Self {
        Self { origin: chunk.origin, seq }
    }
}
