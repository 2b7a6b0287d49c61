//! The queue as the delivery sees it, and the outbox in which its decisions wait for the next commit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::{Pipeline, lock};
use crate::clock::WallNanos;
use crate::delivery::{ChunkRef, PaceState, Phase, Settlement, Source, SourceError};
use crate::journal::Room;
use crate::shard::{LANE, Settled, Shard};
use crate::store::{Chunk, ChunkKey, Removal};

/// Our own shard's number among those that are delivered.
pub(super) const OWN: u32 = 0;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Up to where each shard was read.
    cursors: HashMap<u32, ChunkKey>,
    /// Read, and neither settled nor given back: with the delivery, and nobody else's to touch.
    handed: BTreeMap<ChunkRef, Room>,
    /// Given back, or made of what was: found again without searching the store. Some may have been evicted since.
    returned: BTreeSet<ChunkRef>,
    /// Settled, and still in the store until the next commit: never read again.
    settled: HashSet<ChunkRef>,
    waiting: Vec<Settlement>,
    /// By origin: events delivered and buried in the transaction that is being made.
    committing: HashMap<u32, (u64, u64)>,
    next_attempt: Option<Option<WallNanos>>,
    /// What the store holds, or will after the next commit.
    known_next_attempt: Option<WallNanos>,
    /// A request was made since the process began.
    attempted: bool,
}

/// Settlements on their way into a transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    origin: u32,
    settlements: Vec<Settlement>,
    pub(super) next_attempt: Option<Option<WallNanos>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.settlements.is_empty() && self.next_attempt.is_none()
    }

    /// In the shard's words.
    pub(super) fn settled(&self) -> Vec<Settled> {
        let settled = |settlement: &Settlement| Settled {
            first_seq: settlement.chunk.key.first_seq,
            delivered: settlement.delivered,
            buried: settlement.buried.clone(),
            keep: settlement.keep.clone(),
        };
        self.settlements.iter().map(settled).collect()
    }
}

impl Outbox {
    /// Takes out what waits for a commit in that shard.
    pub(super) fn take(&self, origin: u32) -> Batch {
        let mut state = lock(&self.state);
        let settlements: Vec<_> =
            state.waiting.extract_if(.., |settlement| settlement.chunk.origin == origin).collect();
        state.committing.insert(origin, events(settlements.iter()));
        let next_attempt = if origin == OWN { state.next_attempt.take() } else { None };
        Batch { origin, settlements, next_attempt }
    }

    /// The transaction was made: what was settled is gone, what was kept can be read again.
    pub(super) fn committed(&self, batch: Batch) {
        let mut state = lock(&self.state);
        state.committing.remove(&batch.origin);
        for settlement in batch.settlements {
            // What it kept may have its name, and may be settled by now.
            if !state.waiting.iter().any(|waiting| waiting.chunk == settlement.chunk) {
                state.settled.remove(&settlement.chunk);
            }
            if let Some(rest) = rest(&settlement) {
                // A row that could not be rewritten still stands where it stood.
                state.returned.insert(settlement.chunk);
                if !state.handed.contains_key(&rest) {
                    state.returned.insert(rest);
                }
            }
        }
    }

    /// The transaction failed: everything waits again. The settled rows stay hidden, so nothing is sent twice.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut state = lock(&self.state);
        state.committing.remove(&batch.origin);
        // Before what has come since, which may be about what these keep.
        state.waiting.splice(0..0, batch.settlements);
        if state.next_attempt.is_none() {
            state.next_attempt = batch.next_attempt;
        }
    }

    /// Whether anything waits for a commit.
    pub(super) fn is_empty(&self) -> bool {
        let state = lock(&self.state);
        state.waiting.is_empty() && state.next_attempt.is_none()
    }

    /// Rows that wait for a commit.
    pub(super) fn waiting_rows(&self) -> usize {
        lock(&self.state).waiting.len()
    }

    /// Which records of a row are still to be delivered: all of them, or these, or none.
    #[cfg(feature = "testing")]
    pub(super) fn still_open(&self, chunk: ChunkRef) -> impl Fn(u64) -> bool + use<> {
        let state = lock(&self.state);
        let is_settled = state.settled.contains(&chunk);
        let kept =
            state.waiting.iter().find(|settlement| settlement.chunk == chunk).and_then(|found| found.keep.clone());
        move |seq| !is_settled || kept.as_ref().is_some_and(|kept| kept.contains(&seq))
    }

    /// Events of that shard delivered and buried whose commit is still to come, or under way.
    pub(super) fn settled_events(&self, origin: u32) -> (u64, u64) {
        let state = lock(&self.state);
        let (delivered, buried) = events(state.waiting.iter().filter(|settlement| settlement.chunk.origin == origin));
        let committing = state.committing.get(&origin).copied().unwrap_or_default();
        (delivered + committing.0, buried + committing.1)
    }

    /// Whether a row is with the delivery, or settled.
    pub(super) fn is_out(&self, chunk: ChunkRef) -> bool {
        let state = lock(&self.state);
        state.handed.contains_key(&chunk) || state.settled.contains(&chunk)
    }

    /// What of our own shard is with the delivery.
    pub(super) fn under_way(&self) -> Room {
        let state = lock(&self.state);
        let own = state.handed.iter().filter(|(chunk, _)| chunk.origin == OWN).map(|(_, size)| size);
        own.fold(Room { events: 0, bytes: 0 }, |sum, size| Room {
            events: sum.events.saturating_add(size.events),
            bytes: sum.bytes.saturating_add(size.bytes),
        })
    }

    /// Whether a request was made since the process began.
    pub(super) fn was_attempted(&self) -> bool {
        lock(&self.state).attempted
    }

    /// Whether nothing of that shard is with the delivery or waits for a commit.
    pub(super) fn has_nothing_of(&self, origin: u32) -> bool {
        let state = lock(&self.state);
        let of = |chunk: &ChunkRef| chunk.origin == origin;
        !state.handed.keys().any(of) && !state.settled.iter().any(of)
    }

    /// What an earlier process left in the store.
    pub(super) fn remember_next_attempt(&self, next_attempt: Option<WallNanos>) {
        lock(&self.state).known_next_attempt = next_attempt;
    }

    /// A shard was let go: nothing of it is our business any more. What it settled and did not commit is sent again by its next owner.
    pub(super) fn let_go(&self, origin: u32) {
        self.forget(origin);
        let mut state = lock(&self.state);
        state.handed.retain(|chunk, _| chunk.origin != origin);
        state.settled.retain(|chunk| chunk.origin != origin);
        state.waiting.retain(|settlement| settlement.chunk.origin != origin);
        state.committing.remove(&origin);
    }

    /// A store was reopened and may be another file: its rows are found again from the start, but for what is with the delivery or
    /// waits to be settled.
    pub(super) fn forget(&self, origin: u32) {
        let mut state = lock(&self.state);
        state.cursors.remove(&origin);
        state.returned.retain(|chunk| chunk.origin != origin);
    }

    /// Where to read on: before the lowest row that was handed out and given back, else after the last one read.
    fn resume(&self, origin: u32, busy: &dyn Fn(ChunkRef) -> bool) -> Option<ChunkKey> {
        let mut state = lock(&self.state);
        let cursor = state.cursors.get(&origin).copied();
        let given_back = state.returned.iter().copied().find(|chunk| chunk.origin == origin && !busy(*chunk));
        let Some(chunk) = given_back else { return cursor };
        let before = chunk.key.first_seq.checked_sub(1).map(|first_seq| ChunkKey { first_seq, ..chunk.key });
        match before {
            Some(before) if cursor.is_some_and(|cursor| cursor > before) => {
                state.cursors.insert(origin, before);
                Some(before)
            }
            _ => cursor,
        }
    }

    /// Notes the rows that were read, from after `after` up to `last` or the end, and leaves out those that are not to be handed out.
    fn hand_out(
        &self,
        origin: u32,
        after: Option<ChunkKey>,
        last: Option<ChunkKey>,
        chunks: Vec<Chunk>,
        busy: &dyn Fn(ChunkRef) -> bool,
    ) -> Vec<(ChunkRef, Chunk)> {
        let mut state = lock(&self.state);
        if let Some(last) = last {
            state.cursors.insert(origin, last);
        }
        // Whoever was returned there was found again just now, or has been evicted: looked for once more, it would never be found.
        let was_read = |key: ChunkKey| after.is_none_or(|after| key > after) && last.is_none_or(|last| key <= last);
        state.returned.retain(|chunk| chunk.origin != origin || busy(*chunk) || !was_read(chunk.key));
        let mut handed = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let named = ChunkRef { origin, key: chunk.key };
            if state.settled.contains(&named) {
                continue;
            }
            if !busy(named) {
                let bytes = Chunk::page_bytes_with(chunk.frames.len());
                state.handed.insert(named, Room { events: chunk.count.into(), bytes });
                handed.push((named, chunk));
            } else if !state.handed.contains_key(&named) {
                // Stepped over for the time being: the reading will not come by here again.
                state.returned.insert(named);
            }
        }
        handed
    }
}

/// What a settlement keeps, by its new name.
fn rest(settlement: &Settlement) -> Option<ChunkRef> {
    let first_seq = *settlement.keep.as_ref()?.iter().min()?;
    Some(ChunkRef { key: ChunkKey { first_seq, ..settlement.chunk.key }, ..settlement.chunk })
}

/// Adds a settlement to those that wait for a commit: to an earlier one where it is about what that one keeps, which is no row yet.
fn add(waiting: &mut Vec<Settlement>, settlement: Settlement) {
    let same_row = waiting.iter_mut().find(|earlier| rest(earlier) == Some(settlement.chunk));
    match same_row {
        Some(earlier) => {
            earlier.delivered += settlement.delivered;
            earlier.buried.extend(settlement.buried);
            earlier.keep = settlement.keep;
        }
        None => waiting.push(settlement),
    }
}

/// Events delivered and buried.
fn events<'a>(settlements: impl Iterator<Item = &'a Settlement>) -> (u64, u64) {
    settlements.fold((0, 0), |(delivered, buried), settlement| {
        (delivered + settlement.delivered, buried + settlement.buried.len() as u64)
    })
}

impl Pipeline {
    /// Holds back what is queued, or lets it go. What is under way at the moment of the call still goes.
    pub(crate) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
        if !held {
            self.committed();
        }
    }

    /// Chunks of one shard that are neither busy nor settled.
    fn read_from(
        &self,
        origin: u32,
        shard: &Shard,
        max_bytes: usize,
        busy: &dyn Fn(ChunkRef) -> bool,
    ) -> Result<Vec<(ChunkRef, Chunk)>, SourceError> {
        loop {
            let after = self.outbox.resume(origin, busy);
            let read = shard.read(after, max_bytes).map_err(|error| SourceError(error.into()))?;
            let mut salvaged = Vec::new();
            if !read.damaged.is_empty() {
                let removals = read.damaged.into_iter().map(crate::store::DamagedRow::removal).collect();
                salvaged = self.mend(shard, removals)?;
            }
            let end = read.last.is_none() && salvaged.is_empty();
            let chunks = self.outbox.hand_out(origin, after, read.last, read.chunks, busy);
            // What was saved stands where the damaged row stood, behind the cursor by now.
            let salvaged = salvaged.into_iter().map(|key| ChunkRef { origin, key });
            lock(&self.outbox.state).returned.extend(salvaged);
            if end || !chunks.is_empty() {
                return Ok(chunks);
            }
        }
    }

    /// Replaces damaged rows by what can be saved of them; answers where that is.
    fn mend(&self, shard: &Shard, removals: Vec<Removal>) -> Result<Vec<ChunkKey>, SourceError> {
        let salvaged = removals.iter().filter_map(|removal| Some(removal.keep.as_ref()?.key)).collect();
        let events =
            shard.mend(removals, self.options.clock.wall_nanos()).map_err(|error| SourceError(error.into()))?;
        (self.options.report)(super::Notice::Missing { events, after_restart: false });
        Ok(salvaged)
    }
}

impl Source for Pipeline {
    fn read(&self, max_bytes: usize, busy: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<(ChunkRef, Chunk)>, SourceError> {
        if self.held.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        // A failed read shuts the store; the committer opens it again.
        let own = self.read_from(OWN, &self.shard, max_bytes, busy).inspect_err(|_| self.bell.ring(|_| ()))?;
        if !own.is_empty() {
            return Ok(own);
        }
        let adopted = self.adopted_shard();
        let chunks = match &adopted {
            Some((origin, shard)) => self.read_from(*origin, shard, max_bytes, busy).unwrap_or_else(|error| {
                // Somebody else's queue must not stand in the way of ours.
                let why = format!("{error}: {}", error.0);
                (self.options.report)(super::Notice::ShardSkipped { path: shard.dir().clone(), why });
                self.bell.ring(|wanted| wanted.abandon = true);
                Vec::new()
            }),
            None => Vec::new(),
        };
        if chunks.is_empty() {
            self.bell.ring(|wanted| wanted.adopt = true);
        }
        Ok(chunks)
    }

    fn newest(&self) -> Vec<ChunkRef> {
        let own = (OWN, Arc::clone(&self.shard));
        let shards = std::iter::once(own).chain(self.adopted_shard());
        shards
            .filter_map(|(origin, shard)| {
                let ledger = shard.ledger();
                // No row begins above the newest record: an upper bound serves as well as the row's own number.
                let key = ChunkKey { lane: LANE, first_seq: ledger.accepted };
                (ledger.queued_events > 0).then_some(ChunkRef { origin, key })
            })
            .collect()
    }

    fn settle(&self, settlement: Settlement) {
        {
            let mut state = lock(&self.outbox.state);
            let size = state.handed.remove(&settlement.chunk);
            if size.is_none() && settlement.chunk.origin != OWN {
                // Of an orphan that was let go meanwhile: its next owner sends it again.
                return;
            }
            state.settled.insert(settlement.chunk);
            // Still with the delivery.
            if let Some(rest) = rest(&settlement) {
                let events = settlement.keep.as_ref().map_or(0, Vec::len) as u64;
                state.handed.insert(rest, Room { events, bytes: size.map_or(0, |size| size.bytes) });
            }
            add(&mut state.waiting, settlement);
        }
        self.bell.ring(|_| ());
    }

    fn give_back(&self, chunk: ChunkRef) {
        let mut state = lock(&self.outbox.state);
        // Unless its shard was let go meanwhile.
        if state.handed.remove(&chunk).is_some() {
            state.returned.insert(chunk);
        }
    }

    fn pace(&self, pace: &PaceState) {
        {
            let mut state = lock(&self.outbox.state);
            state.attempted |= pace.phase != Phase::Idle;
            // Most changes of pace are of no concern to the next process: a commit for each would cost more than the batch it is about.
            if state.known_next_attempt == pace.next_attempt {
                return;
            }
            state.known_next_attempt = pace.next_attempt;
            state.next_attempt = Some(pace.next_attempt);
        }
        self.bell.ring(|_| ());
    }
}
