//! From the queue into batches, and back: reading chunks, assembling batches of them, settling what is decided.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::aside::{Aside, EventId};
use super::batch::{Batch, BatchLimits, json_estimate};
use super::flush::Flushes;
use super::loaded::{Closed, Loaded, Slice};
use super::pace::{PaceOptions, park_time};
use super::{ChunkRef, Settlement, Source, SourceError};
use crate::crash_point;
use crate::store::Chunk;

/// Events of a probe that may well be refused.
const SMALL_BATCH: usize = 10;
/// One read is at most this much: what is read ahead of need is memory for nothing.
const READ_BYTES: usize = 512 * 1024;
/// How long an unreadable queue is left alone.
const UNREADABLE: Duration = Duration::from_secs(5);

/// Everything about chunks.
pub(super) struct Intake {
    source: Arc<dyn Source>,
    /// What is in memory.
    pub(super) loaded: Loaded,
    /// What is stepped over.
    pub(super) aside: Aside,
    /// Acceptances so far: the clock by which evidence is told.
    pub(super) accepted: u64,
    /// Read, and in no batch yet.
    ready: VecDeque<Slice>,
    /// Suspects that are due.
    due: Vec<Batch>,
    /// What failed last: probes prefer anything else.
    avoid: HashSet<ChunkRef>,
    /// How often probes have been through all there is.
    rounds: usize,
    more: bool,
    unreadable_until: Option<Instant>,
    options: PaceOptions,
    rng: StdRng,
}

impl Intake {
    /// Nothing is read yet.
    pub(super) fn new(source: Arc<dyn Source>, options: PaceOptions, rng: StdRng) -> Self {
        Self {
            source,
            loaded: Loaded::default(),
            aside: Aside::default(),
            accepted: 0,
            ready: VecDeque::new(),
            due: Vec::new(),
            avoid: HashSet::new(),
            rounds: 0,
            more: true,
            unreadable_until: None,
            options,
            rng,
        }
    }

    /// There may be something to read.
    pub(super) fn expect_more(&mut self) {
        self.more = true;
    }

    /// The queue is held back: there is nothing to read until more is to be expected. What a flush waits for is in memory, or stays.
    pub(super) fn find_nothing(&mut self, flushes: &mut Flushes) {
        self.more = false;
        flushes.saw_the_end();
    }

    /// Whether there may be something to send that is not under way.
    pub(super) fn has_work(&self) -> bool {
        self.more || !self.ready.is_empty() || !self.due.is_empty()
    }

    /// Not before this time is reading of any use.
    pub(super) fn unreadable_until(&self) -> Option<Instant> {
        self.unreadable_until
    }

    /// Reads until something is ready. False if there is nothing.
    pub(super) fn read(&mut self, max_bytes: usize, now: Instant, flushes: &mut Flushes) -> Result<bool, SourceError> {
        if self.unreadable_until.is_some_and(|until| now < until) {
            return Ok(false);
        }
        self.unreadable_until = None;
        while self.ready.is_empty() && self.due.is_empty() && self.more {
            let (loaded, aside, avoid, accepted) = (&self.loaded, &self.aside, &self.avoid, self.accepted);
            let busy = |chunk| loaded.contains(chunk) || avoid.contains(&chunk) || aside.holds(chunk, accepted, now);
            let chunks = self.source.read(max_bytes.clamp(1, READ_BYTES), &busy).inspect_err(|_| {
                self.unreadable_until = Some(now + UNREADABLE);
            })?;
            if !chunks.is_empty() {
                for (reference, chunk) in chunks {
                    flushes.saw(reference);
                    self.take_in(reference, chunk, now);
                }
            } else if self.avoid.is_empty() {
                self.more = false;
                flushes.saw_the_end();
                self.saw_the_end(now);
            } else {
                self.avoid.clear();
                self.rounds = self.rounds.wrapping_add(1);
            }
        }
        Ok(!self.ready.is_empty())
    }

    /// Nothing more can be read.
    fn saw_the_end(&mut self, now: Instant) {
        self.aside.forget_vanished(self.accepted, now);
        for origin in self.aside.stuck(self.accepted, now) {
            if !self.loaded.references().any(|chunk| chunk.origin == origin) && self.source.stuck(origin) {
                self.aside.forget_origin(origin);
            }
        }
    }

    /// A batch of what is oldest; ten events at most, others than last time, if it is to be small.
    pub(super) fn assemble(
        &mut self,
        limits: &BatchLimits,
        small: bool,
        now: Instant,
        flushes: &mut Flushes,
    ) -> Result<Option<Batch>, SourceError> {
        let max_events = if small { limits.events.min(SMALL_BATCH) } else { limits.events };
        let mut batch = Batch::default();
        while batch.events < max_events {
            let room = limits.bytes.saturating_sub(batch.bytes);
            if self.ready.is_empty() && !self.read(if small { 1 } else { room }, now, flushes)? {
                break;
            }
            let Some(mut slice) = self.ready.pop_front() else { break };
            if small {
                self.turn_to_others(&mut slice);
            }
            let fitting = self.fitting(&slice, max_events - batch.events, room);
            let is_other_lane = !batch.slices.is_empty() && slice.chunk.key.lane != batch.lane();
            let fits = fitting == slice.range.len();
            // A chunk is divided only if it has to be: whole chunks make whole settlements.
            if is_other_lane || (!fits && !batch.slices.is_empty()) {
                self.ready.push_front(slice);
                break;
            }
            if !fits {
                let rest = slice.split_off(fitting.max(1), &mut self.loaded);
                self.ready.push_front(rest);
            }
            batch.push(slice, &self.loaded);
        }
        Ok(Some(batch).filter(|batch| batch.events > 0))
    }

    /// Suspects that are due, each a batch of its own.
    pub(super) fn take_due(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.due)
    }

    /// What failed is not to be what the next probe tries, if there is anything else.
    pub(super) fn avoid(&mut self, chunks: impl Iterator<Item = ChunkRef>) {
        self.avoid.extend(chunks);
    }

    /// The endpoint accepted a request.
    pub(super) fn note_acceptance(&mut self, now: Instant) {
        self.accepted += 1;
        if !self.avoid.is_empty() {
            self.avoid.clear();
            self.more = true;
        }
        self.more |= self.aside.any_due(self.accepted, now);
    }

    /// A batch is done with, whatever became of its records.
    pub(super) fn release(&mut self, batch: &Batch, now: Instant) {
        for slice in &batch.slices {
            let closed = self.loaded.release(slice);
            self.settle(closed, now);
        }
    }

    /// What is decided of a batch is settled; what is open of it stays in memory, and is all that the batch holds from now on.
    pub(super) fn settle_decided(&mut self, batch: &mut Batch, now: Instant) {
        for slice in std::mem::take(&mut batch.slices) {
            let mut slice = slice;
            if self.loaded.open(&slice).next().is_none() {
                let closed = self.loaded.release(&slice);
                self.settle(closed, now);
                continue;
            }
            let was = slice.chunk;
            if let Some(settlement) = self.loaded.settle_decided(&mut slice) {
                self.aside.rename(was, slice.chunk);
                self.hand_over(settlement);
            }
            batch.slices.push(slice);
        }
        batch.count(&self.loaded);
    }

    /// All that is read and in no batch goes back to the queue.
    pub(super) fn release_ready(&mut self, now: Instant) {
        for slice in std::mem::take(&mut self.ready) {
            let closed = self.loaded.release(&slice);
            self.settle(closed, now);
        }
        for batch in self.take_due() {
            self.release(&batch, now);
        }
    }

    /// The end: all that is decided is settled, also of chunks that are under way.
    pub(super) fn close_all(&mut self, now: Instant) {
        for reference in self.loaded.references().collect::<Vec<_>>() {
            let closed = self.loaded.close(reference);
            self.settle(closed, now);
        }
    }

    /// See [`Source::newest`].
    pub(super) fn newest(&self) -> Vec<ChunkRef> {
        self.source.newest()
    }

    fn settle(&mut self, closed: Option<Closed>, now: Instant) {
        let Some(closed) = closed else { return };
        match closed.rest {
            None => self.aside.forget(closed.chunk, closed.seqs),
            Some(rest) if closed.set_aside => {
                let (options, rng) = (&self.options, &mut self.rng);
                self.aside.rename(closed.chunk, rest);
                self.aside.put(rest, closed.open, self.accepted, |times| now + park_time(options, times, rng));
                // Evidence may have come while the rest of the chunk was still under way.
                self.more |= self.aside.any_due(self.accepted, now);
            }
            Some(rest) => {
                self.aside.rename(closed.chunk, rest);
                self.aside.put_back(rest);
                self.more = true;
            }
        }
        if let Some(settlement) = closed.settlement {
            self.hand_over(settlement);
        }
        if let Some(rest) = closed.rest {
            self.source.give_back(rest);
        }
    }

    fn hand_over(&mut self, settlement: Settlement) {
        self.source.settle(settlement);
        crash_point::reach("delivery.settled");
    }

    fn take_in(&mut self, reference: ChunkRef, chunk: Chunk, now: Instant) {
        let whole = self.loaded.insert(reference, chunk);
        let is_due = self.aside.take_out(reference);
        let suspects = self.suspects_of(&whole);
        let mut clean = whole.range.start;
        for position in suspects {
            self.queue(reference, clean..position);
            clean = position + 1;
            if is_due {
                let slice = Slice { chunk: reference, range: position..position + 1 };
                self.loaded.retain(&slice);
                self.due.push(Batch::of(slice, &self.loaded));
            } else {
                self.loaded.set_aside(reference);
            }
        }
        self.queue(reference, clean..whole.range.end);
        // The parts are counted; the whole no longer is. A chunk without a readable record is closed by this.
        let closed = self.loaded.release(&whole);
        self.settle(closed, now);
    }

    fn suspects_of(&self, slice: &Slice) -> Vec<usize> {
        if !self.aside.has_suspects() {
            return Vec::new();
        }
        let is_suspect = |seq| self.aside.suspected_since(EventId::of(slice.chunk, seq)).is_some();
        self.loaded.open(slice).filter(|&(_, seq, _)| is_suspect(seq)).map(|(position, ..)| position).collect()
    }

    fn queue(&mut self, chunk: ChunkRef, range: Range<usize>) {
        if !range.is_empty() {
            let slice = Slice { chunk, range };
            self.loaded.retain(&slice);
            self.ready.push_back(slice);
        }
    }

    /// How many records from the start of the slice are within the limits.
    fn fitting(&self, slice: &Slice, events: usize, bytes: usize) -> usize {
        let mut room = bytes;
        let fits = |body: &[u8]| {
            let estimate = json_estimate(body);
            let fits = estimate <= room;
            room = room.saturating_sub(estimate);
            fits
        };
        self.loaded.open(slice).take(events).map(|(_, _, body)| body).map(fits).take_while(|&fits| fits).count()
    }

    /// A probe that has been through all chunks goes on with later events of each.
    fn turn_to_others(&mut self, slice: &mut Slice) {
        let skip = self.rounds.wrapping_mul(SMALL_BATCH).checked_rem(slice.range.len()).unwrap_or(0);
        if skip > 0 {
            let later = slice.split_off(skip, &mut self.loaded);
            self.ready.push_back(std::mem::replace(slice, later));
        }
    }
}
