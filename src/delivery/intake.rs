//! From the queue into batches, and back: reading chunks, assembling batches of them, acking what is decided.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::aside::{Aside, EventId, NEVER_REFUSED};
use super::batch::{Batch, BatchLimits, json_estimate};
use super::flush::Flushes;
use super::loaded::{Closed, Loaded, Reason, Slice};
use super::pace::{PaceOptions, park_time, quarantine_time};
use super::{Source, SourceError};
use crate::queue::{Ack, ChunkRef};
use crate::sys::crash_point;

/// One read is at most this much: what is read ahead of need is memory for nothing.
pub(super) const READ_BYTES: usize = 512 * 1024;
/// What failed before is read up to so much, as JSON, to be searched.
const DOUBTED_BYTES: usize = 4 * 1024 * 1024;
/// So many chunks are avoided at most; beyond that all of them are forgotten.
const MAX_AVOIDED: usize = 10_000;
/// How long an unreadable queue is left alone.
const UNREADABLE: Duration = Duration::from_secs(5);

/// What to take from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Whatever there is; what has failed before, and others have passed since, becomes pieces of a search.
    All,
    /// Only what has not failed.
    Fresh,
    /// The newest event of our own, if it has not failed.
    Newest,
    /// What has failed too, where there is nothing else: each time another event.
    Any,
}

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
    pub(super) ready: VecDeque<Slice>,
    /// Suspects that are due.
    pub(super) due: VecDeque<Batch>,
    /// What has failed, and others have passed since.
    pub(super) doubted: Vec<Batch>,
    /// What failed last: probes prefer anything else.
    avoid: HashSet<ChunkRef>,
    /// How often probes had to take what had failed.
    rounds: u32,
    more: bool,
    /// There may be something that has not failed.
    fresh: bool,
    unreadable_until: Option<Instant>,
    /// An error of a read that had a batch to return.
    unreported: Option<SourceError>,
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
            due: VecDeque::new(),
            doubted: Vec::new(),
            avoid: HashSet::new(),
            rounds: 0,
            more: true,
            fresh: true,
            unreadable_until: None,
            unreported: None,
            options,
            rng,
        }
    }

    /// There may be something to read.
    pub(super) fn expect_more(&mut self) {
        (self.more, self.fresh) = (true, true);
    }

    /// Whether there may be something that has not failed.
    pub(super) fn may_have_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether there is an event that has not failed. Reads the queue if that is not known.
    pub(super) fn has_fresh(&mut self, now: Instant, flushes: &mut Flushes) -> Result<bool, SourceError> {
        if !self.fresh || !self.ready.is_empty() {
            return Ok(self.fresh);
        }
        let found = self.read(1, Wanted::Fresh, now, flushes)?;
        self.release_ready(now);
        Ok(found)
    }

    /// The queue is held back: there is nothing to read until more is to be expected. What a flush waits for is in memory, or stays.
    pub(super) fn find_nothing(&mut self, flushes: &mut Flushes) {
        self.more = false;
        flushes.saw_the_end();
    }

    /// Whether there may be something to send that is not under way.
    pub(super) fn has_work(&self) -> bool {
        self.more || !self.ready.is_empty() || !self.due.is_empty() || !self.doubted.is_empty()
    }

    /// Not before this time is reading of any use.
    pub(super) fn unreadable_until(&self) -> Option<Instant> {
        self.unreadable_until
    }

    /// Reads until something is ready. False if there is nothing.
    pub(super) fn read(
        &mut self,
        max_bytes: usize,
        wanted: Wanted,
        now: Instant,
        flushes: &mut Flushes,
    ) -> Result<bool, SourceError> {
        if let Some(error) = self.unreported.take() {
            return Err(error);
        }
        if self.unreadable_until.is_some_and(|until| now < until) {
            return Ok(false);
        }
        self.unreadable_until = None;
        let mut spares_alone = wanted == Wanted::Any;
        let is_fresh = matches!(wanted, Wanted::Fresh | Wanted::Newest);
        let newest = if wanted == Wanted::Newest { self.source.newest() } else { Vec::new() };
        while self.ready.is_empty() && self.more && self.doubted_bytes() < DOUBTED_BYTES {
            let (loaded, aside, avoid, accepted) = (&self.loaded, &self.aside, &self.avoid, self.accepted);
            // Suspects are tried one after the other: not all of them have to be in memory for that.
            let are_suspects_due = !self.due.is_empty();
            let wants = |chunk| {
                let is_skipped = avoid.contains(&chunk)
                    || aside.holds(chunk, accepted, now)
                    || (are_suspects_due && aside.times(chunk) > 0)
                    || (is_fresh && loaded.has_failed(chunk))
                    || (wanted == Wanted::Newest && !newest.contains(&chunk))
                    || (spares_alone && loaded.has_failed_alone(chunk));
                !is_skipped
            };
            let leases = self.source.lease(max_bytes.clamp(1, READ_BYTES), &wants).inspect_err(|error| {
                if matches!(error, SourceError::Unreadable(_)) {
                    self.unreadable_until = Some(now + UNREADABLE);
                }
            })?;
            if !leases.is_empty() {
                for lease in leases {
                    // What is passed over for now is still to come.
                    if !is_fresh {
                        flushes.saw(lease.row());
                    }
                    self.take_in(lease, wanted, now);
                }
            } else if is_fresh {
                self.fresh &= wanted == Wanted::Newest;
                break;
            } else if spares_alone && self.avoid.is_empty() {
                // Nothing else is left.
                spares_alone = false;
            } else if self.avoid.is_empty() {
                (self.more, self.fresh) = (false, false);
                flushes.saw_the_end();
                self.saw_the_end(now);
            } else {
                self.avoid.clear();
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

    /// A batch of what is oldest; or a single event.
    pub(super) fn assemble(
        &mut self,
        limits: &BatchLimits,
        wanted: Wanted,
        small: bool,
        now: Instant,
        flushes: &mut Flushes,
    ) -> Result<Option<Batch>, SourceError> {
        let max_events = if small { 1 } else { limits.events };
        let mut batch = Batch::default();
        while batch.events < max_events {
            let room = limits.bytes.saturating_sub(batch.bytes);
            // To read what was avoided is for a batch that would have nothing else.
            let wanted = if batch.slices.is_empty() || self.avoid.is_empty() { wanted } else { Wanted::Fresh };
            if self.ready.is_empty() {
                match self.read(if small { 1 } else { room }, wanted, now, flushes) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if batch.slices.is_empty() => return Err(error),
                    // What is leased already is sent, and the error is reported by the next read.
                    Err(error) => {
                        self.unreported = Some(error);
                        break;
                    }
                }
            }
            let Some(mut slice) = self.ready.pop_front() else { break };
            match wanted {
                Wanted::Any => self.turn_to_others(&mut slice),
                Wanted::Newest => self.turn_to(slice.range.len().saturating_sub(1), &mut slice),
                Wanted::All | Wanted::Fresh => {}
            }
            let fitting = self.fitting(&slice, max_events - batch.events, room);
            let fits = fitting == slice.range.len();
            // A chunk is divided only if it has to be: whole chunks make whole acks.
            if !fits && !batch.slices.is_empty() {
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

    /// A suspect that is due.
    pub(super) fn take_due(&mut self) -> Option<Batch> {
        self.due.pop_front()
    }

    /// What has failed, and others have passed since.
    pub(super) fn take_doubted(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.doubted)
    }

    /// A batch failed: the next probe takes something else, if there is anything, and once others pass, it is searched.
    pub(super) fn note_failure(&mut self, batch: &Batch) {
        if self.avoid.len() >= MAX_AVOIDED {
            self.avoid.clear();
        }
        for chunk in batch.chunks() {
            let tries = self.loaded.tries(chunk);
            tries.failed_since.get_or_insert(self.accepted);
            tries.has_failed_alone |= batch.events == 1;
            self.avoid.insert(chunk);
        }
    }

    /// How many chunks have failed of late.
    pub(super) fn chunks_that_failed(&self) -> usize {
        self.avoid.len()
    }

    /// Whether something else has failed of late, and is in the queue.
    pub(super) fn has_failed_besides(&self, batch: &Batch) -> bool {
        self.avoid.iter().any(|failed| batch.chunks().all(|chunk| chunk != *failed))
    }

    /// One of so many events, each time another one, however they are counted.
    pub(super) fn next_place(&mut self, events: usize) -> usize {
        self.rounds = self.rounds.wrapping_add(1);
        // Multiples of the golden ratio, modulo 1, never leave a wide gap.
        let turn = u64::from(self.rounds.wrapping_mul(0x9e37_79b9));
        let place = turn.saturating_mul(events as u64) >> 32;
        usize::try_from(place).unwrap_or(0)
    }

    /// The endpoint accepted a request.
    pub(super) fn note_acceptance(&mut self, now: Instant) {
        self.accepted += 1;
        if !self.avoid.is_empty() {
            self.avoid.clear();
            (self.more, self.fresh) = (true, true);
        }
        self.more |= self.aside.any_due(self.accepted, now);
    }

    /// A batch is done with, whatever became of its records.
    pub(super) fn release(&mut self, batch: &Batch, now: Instant) {
        for slice in &batch.slices {
            let closed = self.loaded.release(slice);
            self.ack(closed, now);
        }
    }

    /// What is decided of a batch is acked; what is open of it stays in memory, and is all that the batch holds from now on.
    pub(super) fn ack_decided(&mut self, batch: &mut Batch, now: Instant) {
        for slice in std::mem::take(&mut batch.slices) {
            let mut slice = slice;
            if self.loaded.open(&slice).next().is_none() {
                let closed = self.loaded.release(&slice);
                self.ack(closed, now);
                continue;
            }
            let was = slice.chunk;
            if let Some(ack) = self.loaded.ack_decided(&mut slice) {
                self.aside.rename(was, slice.chunk);
                self.rename_avoided(was, slice.chunk);
                self.hand_over(ack);
            }
            batch.slices.push(slice);
        }
        batch.count(&self.loaded);
    }

    /// All that is read and in no batch goes back to the queue.
    pub(super) fn release_ready(&mut self, now: Instant) {
        for slice in std::mem::take(&mut self.ready) {
            let closed = self.loaded.release(&slice);
            self.ack(closed, now);
        }
        let pieces: Vec<Batch> = self.doubted.drain(..).chain(self.due.drain(..)).collect();
        for piece in &pieces {
            self.release(piece, now);
        }
    }

    /// The end: all that is decided is acked, also of chunks that are under way.
    pub(super) fn close_all(&mut self, now: Instant) {
        for reference in self.loaded.references().collect::<Vec<_>>() {
            let closed = self.loaded.close(reference);
            self.ack(closed, now);
        }
    }

    /// See [`Source::newest`].
    pub(super) fn newest(&self) -> Vec<ChunkRef> {
        self.source.newest()
    }

    pub(super) fn ack(&mut self, closed: Option<Closed>, now: Instant) {
        let Some(closed) = closed else { return };
        if let Some(rest) = closed.rest {
            self.aside.rename(closed.chunk, rest);
            self.rename_avoided(closed.chunk, rest);
        }
        let is_suspect = |&seq: &u64| self.aside.is_suspect(EventId { origin: closed.chunk.origin, seq });
        match (closed.rest, closed.set_aside) {
            (None, _) => self.aside.forget(closed.chunk, closed.seqs),
            (Some(rest), Some(reason)) if reason == Reason::Whole || closed.open.iter().all(is_suspect) => {
                self.put_aside(rest, closed.open.len() as u64, reason, now);
            }
            (Some(rest), set_aside) => {
                // What is undecided for another reason does not wait for the suspects beside it.
                match set_aside {
                    Some(_) => self.aside.let_back(rest),
                    None => self.aside.put_back(rest),
                }
                self.more = true;
                self.fresh |= !self.loaded.has_failed(rest);
            }
        }
        if let Some(ack) = closed.ack {
            self.hand_over(ack);
        }
        if let Some(rest) = closed.rest {
            self.source.release(rest);
        }
    }

    fn rename_avoided(&mut self, from: ChunkRef, to: ChunkRef) {
        if self.avoid.remove(&from) {
            self.avoid.insert(to);
        }
    }

    fn put_aside(&mut self, chunk: ChunkRef, events: u64, reason: Reason, now: Instant) {
        let (options, rng) = (&self.options, &mut self.rng);
        match reason {
            Reason::EventsFail => {
                self.aside.put(chunk, events, NEVER_REFUSED, |times| now + quarantine_time(options, times, rng));
            }
            Reason::EventsRefused | Reason::Whole => {
                self.aside.put(chunk, events, self.accepted, |times| now + park_time(options, times, rng));
            }
        }
        // Evidence may have come while the rest of the chunk was still under way.
        self.more |= self.aside.any_due(self.accepted, now);
    }

    fn hand_over(&mut self, ack: Ack) {
        self.source.ack(ack);
        crash_point::reach("delivery.acked");
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

    /// A probe that has to take what failed takes another event of it each time.
    fn turn_to_others(&mut self, slice: &mut Slice) {
        let skip = self.next_place(slice.range.len());
        self.turn_to(skip, slice);
    }

    fn turn_to(&mut self, skip: usize, slice: &mut Slice) {
        if skip > 0 {
            let later = slice.split_off(skip, &mut self.loaded);
            self.ready.push_back(std::mem::replace(slice, later));
        }
    }
}
