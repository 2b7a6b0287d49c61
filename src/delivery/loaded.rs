//! The leased chunks in memory: their records, the decision over each record, and the ack of a chunk.

use std::collections::HashMap;
use std::mem::take;
use std::ops::{Range, RangeInclusive};

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

#[derive(Clone, Debug)]
struct Record {
    seq: u64,
    body: Range<usize>,
    /// Neither delivered nor dead.
    is_open: bool,
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

/// A leased chunk.
#[derive(Clone, Debug)]
pub(super) struct LoadedChunk {
    /// Its name.
    pub(super) row: ChunkRef,
    chunk: Chunk,
    records: Vec<Record>,
    /// Number of slices that refer to it.
    slices: usize,
    delivered: u64,
    dead_lettered: Vec<DeadRecord>,
    /// Why what remains of it is to be quarantined, if it is.
    pub(super) quarantine: Option<QuarantineReason>,
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
        let loaded = LoadedChunk::new(lease.row(), lease.chunk);
        let slice = Slice { chunk: loaded.row, range: 0..loaded.records.len() };
        self.chunks.insert(loaded.row, loaded);
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
                records.iter().enumerate().filter(|(_, record)| record.is_open).filter_map(move |(at, record)| {
                    Some((first + at, record.seq, chunk.chunk.frames.get(record.body.clone())?))
                })
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
        if let Some(loaded) = self.chunks.get_mut(&slice.chunk) {
            loaded.delivered += loaded.decide(slice);
        }
    }

    /// Marks the one record of the slice as dead.
    pub(super) fn mark_dead_lettered(&mut self, slice: &Slice, dead: DeadRecord) {
        if let Some(loaded) = self.chunks.get_mut(&slice.chunk)
            && loaded.decide(slice) > 0
        {
            loaded.dead_lettered.push(dead);
        }
    }

    /// What remains of the chunk when it is closed is quarantined.
    pub(super) fn quarantine(&mut self, chunk: ChunkRef, reason: QuarantineReason) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.quarantine = chunk.quarantine.max(Some(reason));
        }
    }

    /// The attempts to send a chunk.
    pub(super) fn tries_of(&self, chunk: ChunkRef) -> Tries {
        self.tries.get(&chunk).copied().unwrap_or_default()
    }

    /// The attempts to send a chunk, to be changed.
    pub(super) fn tries(&mut self, chunk: ChunkRef) -> &mut Tries {
        if self.tries.len() >= MAX_TRIES {
            let chunks = &self.chunks;
            self.tries.retain(|tried, _| chunks.contains_key(tried));
        }
        self.tries.entry(chunk).or_default()
    }

    /// Some records of a chunk were removed. The rest is stored under a new key, and keeps its attempts.
    pub(super) fn rename(&mut self, from: ChunkRef, to: ChunkRef) {
        if let Some(tries) = self.tries.remove(&from) {
            self.tries.insert(to, tries);
        }
    }

    /// All records of a chunk are decided.
    pub(super) fn forget(&mut self, chunk: ChunkRef) {
        self.tries.remove(&chunk);
    }

    /// Drops a slice, whatever became of its records. Returns the chunk if it was the last.
    pub(super) fn release(&mut self, slice: &Slice) -> Option<LoadedChunk> {
        let chunk = self.chunks.get_mut(&slice.chunk)?;
        chunk.slices = chunk.slices.saturating_sub(1);
        if chunk.slices == 0 { self.chunks.remove(&slice.chunk) } else { None }
    }

    /// Takes all chunks, whatever slices still refer to them.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = LoadedChunk> + use<> {
        take(&mut self.chunks).into_values()
    }

    /// Acks what is decided of a chunk that only this slice refers to. What is open stays leased under its new name.
    pub(super) fn ack_decided(&mut self, slice: &mut Slice) -> Option<Ack> {
        let loaded = self.chunks.get_mut(&slice.chunk).filter(|loaded| loaded.slices == 1)?;
        let open_before = |end| loaded.records.iter().take(end).filter(|record| record.is_open).count();
        let range = open_before(slice.range.start)..open_before(slice.range.end);
        let quarantine = loaded.quarantine;
        let ack = loaded.ack()?;
        self.chunks.remove(&slice.chunk);
        let (rest, kept) = ack.kept_row().zip(ack.keep.clone())?;
        self.chunks.insert(rest, LoadedChunk { quarantine, ..LoadedChunk::new(rest, kept) });
        *slice = Slice { chunk: rest, range };
        Some(ack)
    }
}

impl LoadedChunk {
    /// A chunk with one slice, whose readable records are open.
    fn new(row: ChunkRef, chunk: Chunk) -> Self {
        let (mut records, mut at) = (Vec::with_capacity(chunk.count as usize), 0);
        while let Some((head, body, next)) = frame::parse(&chunk.frames, at, chunk.salt) {
            let from = at + frame::FRAME_HEAD;
            records.push(Record { seq: head.seq, body: from..from + body.len(), is_open: true });
            at = next;
        }
        Self { row, chunk, records, slices: 1, delivered: 0, dead_lettered: Vec::new(), quarantine: None }
    }

    /// The first and the last sequence number that the chunk had.
    pub(super) fn seqs(&self) -> RangeInclusive<u64> {
        let seq = |record: Option<&Record>| record.map_or(self.row.key.first_seq, |record| record.seq);
        seq(self.records.first())..=seq(self.records.last())
    }

    /// The sequence numbers of what remains.
    pub(super) fn open(&self) -> Vec<u64> {
        self.records.iter().filter(|record| record.is_open).map(|record| record.seq).collect()
    }

    /// The ack of what is decided; `None` if nothing is.
    pub(super) fn ack(&mut self) -> Option<Ack> {
        let open = self.open();
        let is_decided = open.is_empty() || self.delivered > 0 || !self.dead_lettered.is_empty();
        is_decided.then(|| Ack {
            row: self.row,
            delivered: self.delivered,
            dead: take(&mut self.dead_lettered),
            keep: self.chunk.retain(|seq| open.binary_search(&seq).is_ok()),
        })
    }

    /// Closes the open records of a slice. Returns their number.
    fn decide(&mut self, slice: &Slice) -> u64 {
        let records = self.records.get_mut(slice.range.clone()).unwrap_or_default();
        records.iter_mut().map(|record| u64::from(take(&mut record.is_open))).sum()
    }
}
