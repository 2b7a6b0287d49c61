//! Intake: leases chunks from the queue, assembles batches of them, and acks or releases them.

use std::collections::{HashSet, VecDeque};
use std::mem::take;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::batch::{Batch, BatchLimits, json_estimate};
use super::flush::Flushes;
use super::loaded::{Loaded, LoadedChunk, QuarantineReason, Slice};
use super::pace::{cooldown_time, quarantine_time};
use super::quarantine::{EventId, NEVER_REFUSED, Quarantine};
use super::{Source, SourceError};
use crate::queue::{Ack, ChunkRef, Lease};
use crate::sys::crash_point;

/// Maximum size of one lease: what is leased ahead of need costs memory, and cannot be evicted.
pub(super) const READ_BYTES: usize = 512 * 1024;
/// Maximum size, as JSON, of what is leased to be bisected.
const TO_BISECT_BYTES: usize = 4 * 1024 * 1024;
/// Maximum number of avoided chunks. Beyond it all are forgotten.
const MAX_AVOIDED: usize = 10_000;
/// The wait before an unreadable queue is read again.
const UNREADABLE: Duration = Duration::from_secs(5);

/// Which chunks to lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of them. Those that have failed are bisected if others have passed since.
    All,
    /// Only those that have not failed.
    Fresh,
    /// The newest one of this process's own queue, if it has not failed.
    Newest,
    /// Also those that have failed, if there are no others; each time another event.
    Any,
}

/// The way of events between the queue and batches.
pub(super) struct Intake {
    source: Arc<dyn Source>,
    /// The leased chunks.
    pub(super) loaded: Loaded,
    /// The chunks that are skipped for a while.
    pub(super) quarantine: Quarantine,
    /// The flushes that wait for what is leased.
    pub(super) flushes: Flushes,
    /// Number of accepted requests; a logical clock for the evidence against quarantined events.
    pub(super) accepted: u64,
    /// Leased, and in no batch yet.
    ready: VecDeque<Slice>,
    /// Quarantined events that are tried again.
    pub(super) due: VecDeque<Batch>,
    /// Batches that have failed, while others have passed since.
    pub(super) to_bisect: Vec<Batch>,
    /// The chunks that failed last: probes prefer all others.
    avoid: HashSet<ChunkRef>,
    /// How often a probe had to take an event that had failed.
    rounds: u32,
    /// There may be rows to lease.
    more: bool,
    /// There may be an event that has not failed.
    pub(super) fresh: bool,
    /// Until when the queue is not read, after an error.
    pub(super) unreadable_until: Option<Instant>,
    /// An error of a read that had a batch to return.
    unreported: Option<SourceError>,
    rng: StdRng,
}

impl Intake {
    /// An intake that has leased nothing yet.
    pub(super) fn new(source: Arc<dyn Source>, rng: StdRng) -> Self {
        Self {
            source,
            loaded: Loaded::default(),
            quarantine: Quarantine::default(),
            flushes: Flushes::default(),
            accepted: 0,
            ready: VecDeque::new(),
            due: VecDeque::new(),
            to_bisect: Vec::new(),
            avoid: HashSet::new(),
            rounds: 0,
            more: true,
            fresh: true,
            unreadable_until: None,
            unreported: None,
            rng,
        }
    }

    /// There may be rows to lease.
    pub(super) fn expect_more(&mut self) {
        (self.more, self.fresh) = (true, true);
    }

    /// Whether there is an event that has not failed. Reads the queue if that is not known.
    pub(super) fn has_fresh(&mut self, now: Instant) -> Result<bool, SourceError> {
        if !self.fresh || !self.ready.is_empty() {
            return Ok(self.fresh);
        }
        let found = self.read(1, Wanted::Fresh, now)?;
        self.release_ready(now);
        Ok(found)
    }

    /// The program has opted out: nothing is leased until more is expected. A flush waits only for what is leased.
    pub(super) fn find_nothing(&mut self) {
        self.more = false;
        self.flushes.saw_the_end();
    }

    /// Whether there may be events to send besides those in flight.
    pub(super) fn has_work(&self) -> bool {
        self.more || !self.ready.is_empty() || !self.due.is_empty() || !self.to_bisect.is_empty()
    }

    /// Leases chunks until a slice is ready. Returns whether one is.
    pub(super) fn read(&mut self, max_bytes: usize, wanted: Wanted, now: Instant) -> Result<bool, SourceError> {
        if let Some(error) = self.unreported.take() {
            return Err(error);
        }
        if self.unreadable_until.is_some_and(|until| now < until) {
            return Ok(false);
        }
        self.unreadable_until = None;
        let mut spares_alone = wanted == Wanted::Any;
        let is_fresh = matches!(wanted, Wanted::Fresh | Wanted::Newest);
        while self.ready.is_empty() && self.more && self.to_bisect_bytes() < TO_BISECT_BYTES {
            let (loaded, quarantine, avoid, accepted) = (&self.loaded, &self.quarantine, &self.avoid, self.accepted);
            // Quarantined events are tried one at a time, so not all of their chunks have to be leased.
            let are_events_due = !self.due.is_empty();
            let wants = |chunk| {
                let is_skipped = avoid.contains(&chunk)
                    || quarantine.skips(chunk, accepted, now)
                    || (are_events_due && quarantine.times(chunk) > 0)
                    || (is_fresh && loaded.tries_of(chunk).failed_since.is_some())
                    || (spares_alone && loaded.tries_of(chunk).has_failed_alone);
                !is_skipped
            };
            let leases = if wanted == Wanted::Newest {
                self.source.lease_newest(&wants).map(|newest| newest.into_iter().collect())
            } else {
                self.source.lease(max_bytes.clamp(1, READ_BYTES), &wants)
            };
            let leases = leases.inspect_err(|error| {
                if matches!(error, SourceError::Unreadable(_)) {
                    self.unreadable_until = Some(now + UNREADABLE);
                }
            })?;
            if !leases.is_empty() {
                for lease in leases {
                    // Chunks that are passed over here are still to come.
                    if !is_fresh {
                        self.flushes.saw(lease.row());
                    }
                    self.add(lease, wanted, now);
                }
            } else if is_fresh {
                self.fresh &= wanted == Wanted::Newest;
                break;
            } else if spares_alone && self.avoid.is_empty() {
                // There is nothing else.
                spares_alone = false;
            } else if self.avoid.is_empty() {
                (self.more, self.fresh) = (false, false);
                self.saw_the_end(now);
            } else {
                self.avoid.clear();
            }
        }
        Ok(!self.ready.is_empty())
    }

    /// The whole queue has been read.
    fn saw_the_end(&mut self, now: Instant) {
        self.flushes.saw_the_end();
        self.quarantine.forget_vanished(self.accepted, now);
        for origin in self.quarantine.stuck(self.accepted, now) {
            if !self.loaded.references().any(|chunk| chunk.origin == origin) && self.source.stuck(origin) {
                self.quarantine.forget_origin(origin);
            }
        }
    }

    /// A batch of at most this many events, the oldest first.
    pub(super) fn assemble(
        &mut self,
        limits: &BatchLimits,
        max_events: usize,
        wanted: Wanted,
        now: Instant,
    ) -> Result<Option<Batch>, SourceError> {
        let mut batch = Batch::default();
        while batch.events < max_events {
            let room = limits.bytes.saturating_sub(batch.bytes);
            // Avoided chunks are only for a batch that would be empty without them.
            let wanted = if batch.slices.is_empty() || self.avoid.is_empty() { wanted } else { Wanted::Fresh };
            if self.ready.is_empty() {
                match self.read(if max_events == 1 { 1 } else { room }, wanted, now) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if batch.slices.is_empty() => return Err(error),
                    // The queue wakes the engine once it can be read. That wake-up is for a new attempt, so this error
                    // is not kept: the next read would only report it, and no other wake-up would follow.
                    Err(SourceError::Busy) => break,
                    // What is leased already is sent, and the error is reported by the next read.
                    Err(error) => {
                        self.unreported = Some(error);
                        break;
                    }
                }
            }
            let Some(mut slice) = self.ready.pop_front() else { break };
            match wanted {
                Wanted::Any => {
                    let place = self.next_place(slice.range.len());
                    self.turn_to(place, &mut slice);
                }
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

    /// A batch failed. The next probe takes another one if there is any, and this one is bisected once others pass.
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

    /// Number of chunks that have failed since the last acceptance.
    pub(super) fn chunks_that_failed(&self) -> usize {
        self.avoid.len()
    }

    /// Whether another chunk has failed since the last acceptance.
    pub(super) fn has_failed_besides(&self, batch: &Batch) -> bool {
        self.avoid.iter().any(|failed| batch.chunks().all(|chunk| chunk != *failed))
    }

    /// The position of one of these events, each time another one, whatever their number is.
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
        self.more |= self.quarantine.any_due(self.accepted, now);
    }

    /// Drops a batch, whatever became of its records.
    pub(super) fn release(&mut self, batch: &Batch, now: Instant) {
        batch.slices.iter().for_each(|slice| self.release_slice(slice, now));
    }

    /// Acks what is decided of a batch. The batch keeps its open records, which stay leased.
    pub(super) fn ack_decided(&mut self, batch: &mut Batch, now: Instant) {
        for mut slice in take(&mut batch.slices) {
            if self.loaded.open(&slice).next().is_none() {
                self.release_slice(&slice, now);
                continue;
            }
            let was = slice.chunk;
            if let Some(ack) = self.loaded.ack_decided(&mut slice) {
                self.rename(was, slice.chunk);
                self.hand_over(ack);
            }
            batch.slices.push(slice);
        }
        batch.count(&self.loaded);
    }

    /// Releases everything that is leased and in no batch.
    pub(super) fn release_ready(&mut self, now: Instant) {
        for slice in take(&mut self.ready) {
            self.release_slice(&slice, now);
        }
        for piece in take(&mut self.to_bisect).into_iter().chain(take(&mut self.due)) {
            self.release(&piece, now);
        }
    }

    /// Acks all decisions and releases everything, also chunks in flight.
    pub(super) fn close_all(&mut self, now: Instant) {
        for chunk in self.loaded.take_all() {
            self.ack(chunk, now);
        }
    }

    fn release_slice(&mut self, slice: &Slice, now: Instant) {
        if let Some(chunk) = self.loaded.release(slice) {
            self.ack(chunk, now);
        }
    }

    /// Acks what is decided of a chunk that no slice refers to any more, and releases or quarantines the rest.
    fn ack(&mut self, mut chunk: LoadedChunk, now: Instant) {
        let (row, open, ack) = (chunk.row, chunk.open(), chunk.ack());
        let rest = ack.as_ref().map_or(Some(row), Ack::kept_row);
        let has_event = |&seq: &u64| self.quarantine.has_event(EventId::of(row, seq));
        match (rest, chunk.quarantine) {
            (None, _) => {
                self.loaded.forget(row);
                self.quarantine.forget(row, chunk.seqs());
            }
            (Some(rest), Some(reason)) if reason == QuarantineReason::Whole || open.iter().all(has_event) => {
                self.rename(row, rest);
                self.quarantine(rest, open.len() as u64, reason, now);
            }
            (Some(rest), quarantine) => {
                self.rename(row, rest);
                // Other open records do not wait for the quarantined events of their chunk.
                match quarantine {
                    Some(_) => self.quarantine.lift(rest),
                    None => self.quarantine.retry_ended(rest),
                }
                self.more = true;
                self.fresh |= self.loaded.tries_of(rest).failed_since.is_none();
            }
        }
        if let Some(ack) = ack {
            self.hand_over(ack);
        }
        if let Some(rest) = rest {
            self.source.release(rest);
        }
    }

    /// What remains of a chunk is stored under a new key.
    fn rename(&mut self, from: ChunkRef, to: ChunkRef) {
        self.loaded.rename(from, to);
        self.quarantine.rename(from, to);
        if self.avoid.remove(&from) {
            self.avoid.insert(to);
        }
    }

    fn quarantine(&mut self, chunk: ChunkRef, events: u64, reason: QuarantineReason, now: Instant) {
        let rng = &mut self.rng;
        match reason {
            QuarantineReason::EventsFail => {
                self.quarantine.put(chunk, events, NEVER_REFUSED, |times| now + quarantine_time(times, rng));
            }
            QuarantineReason::EventsRefused | QuarantineReason::Whole => {
                self.quarantine.put(chunk, events, self.accepted, |times| now + cooldown_time(times, rng));
            }
        }
        // There may have been evidence while the rest of the chunk was in flight.
        self.more |= self.quarantine.any_due(self.accepted, now);
    }

    fn hand_over(&mut self, ack: Ack) {
        self.source.ack(ack);
        crash_point::reach("delivery.acked");
    }

    /// Number of records from the start of the slice that fit the limits.
    fn fitting(&self, slice: &Slice, events: usize, bytes: usize) -> usize {
        let fitting = self.loaded.open(slice).take(events).scan(bytes, |room, (.., body)| {
            *room = room.checked_sub(json_estimate(body))?;
            Some(())
        });
        fitting.count()
    }

    /// Moves a probe to the event at this position of its chunk.
    fn turn_to(&mut self, skip: usize, slice: &mut Slice) {
        if skip > 0 {
            let later = slice.split_off(skip, &mut self.loaded);
            self.ready.push_back(std::mem::replace(slice, later));
        }
    }

    /// Adds a leased chunk. Its records go into the next batches, or are bisected, or stay in quarantine.
    fn add(&mut self, lease: Lease, wanted: Wanted, now: Instant) {
        let reference = lease.row();
        let failed_since = self.loaded.tries_of(reference).failed_since;
        let is_to_bisect = wanted == Wanted::All && failed_since.is_some_and(|since| self.accepted > since);
        let whole = self.loaded.insert(lease);
        let is_due = self.quarantine.take_out(reference);
        let quarantined = self.quarantine.times(reference).max(1);
        let events = self.quarantined_in(&whole);
        let mut clean = whole.range.start;
        for (position, reason) in events {
            self.queue(reference, clean..position, is_to_bisect);
            clean = position + 1;
            if is_due {
                let slice = Slice { chunk: reference, range: position..position + 1 };
                self.loaded.retain(&slice);
                self.due.push_back(Batch { quarantined, ..Batch::of(slice, &self.loaded) });
            } else {
                self.loaded.quarantine(reference, reason);
            }
        }
        self.queue(reference, clean..whole.range.end, is_to_bisect);
        // The parts refer to the chunk now, the whole no longer does. This closes a chunk without a readable record.
        self.release_slice(&whole, now);
    }

    fn quarantined_in(&self, slice: &Slice) -> Vec<(usize, QuarantineReason)> {
        if !self.quarantine.has_events() {
            return Vec::new();
        }
        let named = self.loaded.open(slice).map(|(position, seq, _)| (position, EventId::of(slice.chunk, seq)));
        let quarantined = named.filter(|&(_, event)| self.quarantine.has_event(event));
        let with_reason = quarantined.map(|(position, event)| match self.quarantine.refused_since(event) {
            Some(_) => (position, QuarantineReason::EventsRefused),
            None => (position, QuarantineReason::EventsFail),
        });
        with_reason.collect()
    }

    fn queue(&mut self, chunk: ChunkRef, range: Range<usize>, is_to_bisect: bool) {
        if range.is_empty() {
            return;
        }
        let slice = Slice { chunk, range };
        self.loaded.retain(&slice);
        if !is_to_bisect {
            return self.ready.push_back(slice);
        }
        // Neighbours are bisected together: of what failed in an outage, nearly all is good.
        let piece = Batch::of(slice, &self.loaded);
        match self.to_bisect.last_mut().filter(|last| last.bytes < READ_BYTES) {
            Some(last) => last.join(piece),
            None => self.to_bisect.push(piece),
        }
    }

    /// The size of what is leased to be bisected.
    fn to_bisect_bytes(&self) -> usize {
        self.to_bisect.iter().map(|piece| piece.bytes).sum()
    }
}
