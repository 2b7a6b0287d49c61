//! The chunks in memory: their records, what became of each, and the closing of a chunk.

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};

use super::aside::EventId;
use crate::queue::frame;
use crate::queue::store::{Chunk, DeadRecord};
use crate::queue::{Ack, ChunkRef, Lease};
use crate::sys::clock::WallNanos;

/// Neighbouring records of one loaded chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Of which chunk.
    pub(super) chunk: ChunkRef,
    /// Which of its records, by position.
    pub(super) range: Range<usize>,
}

impl Slice {
    /// Cuts the slice before its `at`-th record; both parts count as slices under way from then on.
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

/// How often, and since when, a chunk has been tried in this life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries {
    /// Requests that checkpointed some of it.
    pub(super) attempts: u32,
    /// When the first one went.
    pub(super) first_attempt: Option<WallNanos>,
    /// Acceptances counted when it first failed for no fault of its own.
    pub(super) failed_since: Option<u64>,
    /// An event of it failed on its own.
    pub(super) has_failed_alone: bool,
}

#[derive(Clone, Debug)]
struct LoadedChunk {
    chunk: Chunk,
    records: Vec<Record>,
    /// Slices of it that are queued or under way.
    slices: usize,
    dead_lettered: Vec<DeadRecord>,
    set_aside: Option<Reason>,
}

/// Why what remains of a chunk is not to be read again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// Some of its events failed on their own while others passed.
    EventsFail,
    /// Some of its events were refused on their own.
    EventsRefused,
    /// All of it leads nowhere.
    Whole,
}

/// A chunk that no slice refers to any more.
#[derive(Debug)]
pub(super) struct Closed {
    /// What is to be acked; `None` if nothing was decided.
    pub(super) ack: Option<Ack>,
    /// Which one.
    pub(super) chunk: ChunkRef,
    /// The name under which the rest will be read again; `None` if nothing remains.
    pub(super) rest: Option<ChunkRef>,
    /// The sequence numbers of that.
    pub(super) open: Vec<u64>,
    /// The rest is not to be read again at once.
    pub(super) set_aside: Option<Reason>,
    /// The sequence numbers it had.
    pub(super) seqs: RangeInclusive<u64>,
}

/// The chunks in memory.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    chunks: HashMap<ChunkRef, LoadedChunk>,
    tries: HashMap<ChunkRef, Tries>,
}

/// Tries of so many chunks are remembered while these are not loaded.
const MAX_TRIES: usize = 10_000;

impl Loaded {
    /// Adds a leased chunk, as one slice of all its records.
    pub(super) fn insert(&mut self, lease: Lease) -> Slice {
        let (reference, chunk) = (lease.row(), lease.chunk);
        let records = open_records(&chunk);
        let slice = Slice { chunk: reference, range: 0..records.len() };
        self.chunks
            .insert(reference, LoadedChunk { chunk, records, slices: 1, dead_lettered: Vec::new(), set_aside: None });
        slice
    }

    /// Which chunks are in memory.
    pub(super) fn references(&self) -> impl Iterator<Item = ChunkRef> + '_ {
        self.chunks.keys().copied()
    }

    /// Whether none is.
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

    /// One more slice refers to the chunk.
    pub(super) fn retain(&mut self, slice: &Slice) {
        if let Some(chunk) = self.chunks.get_mut(&slice.chunk) {
            chunk.slices += 1;
        }
    }

    /// PostHog took the open records of the slice.
    pub(super) fn mark_delivered(&mut self, slice: &Slice) {
        for record in self.records_mut(slice) {
            if record.fate == Fate::Open {
                record.fate = Fate::Delivered;
            }
        }
    }

    /// One record goes to the dead letters.
    pub(super) fn mark_dead_lettered(&mut self, chunk: ChunkRef, position: usize, dead: DeadRecord) {
        if let Some(loaded) = self.chunks.get_mut(&chunk)
            && let Some(record) = loaded.records.get_mut(position)
            && record.fate == Fate::Open
        {
            record.fate = Fate::DeadLettered;
            loaded.dead_lettered.push(dead);
        }
    }

    /// What remains of the chunk when it is closed is not to be read again at once.
    pub(super) fn set_aside(&mut self, chunk: ChunkRef, reason: Reason) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.set_aside = chunk.set_aside.max(Some(reason));
        }
    }

    /// Whether a chunk has failed since it was first tried.
    pub(super) fn has_failed(&self, chunk: ChunkRef) -> bool {
        self.failed_since(chunk).is_some()
    }

    /// Whether an event of a chunk failed on its own.
    pub(super) fn has_failed_alone(&self, chunk: ChunkRef) -> bool {
        self.tries.get(&chunk).is_some_and(|tries| tries.has_failed_alone)
    }

    /// The count of acceptances when a chunk first failed for no fault of its own, as far as one could tell then.
    pub(super) fn failed_since(&self, chunk: ChunkRef) -> Option<u64> {
        self.tries.get(&chunk).and_then(|tries| tries.failed_since)
    }

    /// The tries of a chunk.
    pub(super) fn tries(&mut self, chunk: ChunkRef) -> &mut Tries {
        if self.tries.len() >= MAX_TRIES {
            let chunks = &self.chunks;
            self.tries.retain(|tried, _| chunks.contains_key(tried));
        }
        self.tries.entry(chunk).or_default()
    }

    /// A slice is done with, whatever became of its records. Closes the chunk if it was the last.
    pub(super) fn release(&mut self, slice: &Slice) -> Option<Closed> {
        let chunk = self.chunks.get_mut(&slice.chunk)?;
        chunk.slices = chunk.slices.saturating_sub(1);
        if chunk.slices == 0 { self.close(slice.chunk) } else { None }
    }

    /// Settles what is decided of a chunk that only this slice refers to; what is open stays loaded, under its new name.
    pub(super) fn ack_decided(&mut self, slice: &mut Slice) -> Option<Ack> {
        let is_open = |record: &Record| record.fate == Fate::Open;
        self.chunks.get(&slice.chunk).filter(|chunk| chunk.slices == 1 && chunk.records.iter().any(is_open))?;
        let loaded = self.chunks.get(&slice.chunk)?;
        let start = loaded.records.get(..slice.range.start)?.iter().filter(|record| is_open(record)).count();
        let end = start + self.open(slice).count();
        let (whole, quarantine) = (loaded.chunk.clone(), loaded.set_aside);
        let closed = self.close(slice.chunk)?;
        let rest = closed.rest?;
        let chunk = closed.ack.as_ref().and_then(|ack| ack.keep.clone()).unwrap_or(whole);
        let records = open_records(&chunk);
        let kept = LoadedChunk { chunk, records, slices: 1, dead_lettered: Vec::new(), set_aside: quarantine };
        self.chunks.insert(rest, kept);
        *slice = Slice { chunk: rest, range: start..end };
        closed.ack
    }

    /// Closes a chunk, whatever still refers to it.
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
        Some(Closed { ack, chunk: reference, rest, open, set_aside: chunk.set_aside, seqs })
    }

    fn records_mut(&mut self, slice: &Slice) -> &mut [Record] {
        let chunk = self.chunks.get_mut(&slice.chunk);
        chunk.and_then(|chunk| chunk.records.get_mut(slice.range.clone())).unwrap_or_default()
    }
}

/// The readable records of a chunk, all of them open.
fn open_records(chunk: &Chunk) -> Vec<Record> {
    let mut records = Vec::with_capacity(chunk.count as usize);
    let mut frames = frame::frames(&chunk.frames, chunk.salt);
    let mut start = frames.position();
    while let Some((head, body)) = frames.next() {
        let from = start + frame::FRAME_HEAD;
        records.push(Record { seq: head.seq, body: from..from + body.len(), fate: Fate::Open });
        start = frames.position();
    }
    records
}

impl EventId {
    /// The event of a chunk with this sequence number.
    pub(super) fn of(chunk: ChunkRef, seq: u64) -> Self {
        Self { origin: chunk.origin, seq }
    }
}
