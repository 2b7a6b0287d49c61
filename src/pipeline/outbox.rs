//! The outbox: what the delivery has in hand, and its decisions that wait for the next commit.
//!
//! Two threads meet here. The delivery reads rows and decides over them; the committer makes transactions that remove and rewrite rows.
//! A row that was read while a transaction changed rows may be gone by then, so a reading that rows have changed under is done again; and
//! a row that an eviction considers is not handed out before that is over.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;

use super::lock;
use super::source::OWN;
use crate::delivery::{Ack, ChunkRef, PaceState, Phase};
use crate::queue::Acked;
use crate::queue::journal::Room;
use crate::queue::store::{Chunk, ChunkKey, Ledger};
use crate::sys::clock::WallNanos;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Up to where each shard was read.
    cursors: HashMap<u32, ChunkKey>,
    /// Read, and neither acked nor given back: with the delivery, and nobody else's to touch.
    handed: BTreeMap<ChunkRef, Room>,
    /// Given back, or made of what was: found again without searching the store. Some may have been evicted since.
    returned: BTreeSet<ChunkRef>,
    /// Acked, and still in the store until the next commit: never read again.
    acked: HashSet<ChunkRef>,
    waiting: Vec<Ack>,
    /// By origin, the transaction that is being made.
    committing: HashMap<u32, Committing>,
    next_attempt: Option<Option<WallNanos>>,
    /// What the store holds, or will after the next commit.
    known_next_attempt: Option<WallNanos>,
    /// A request was made since the process began.
    attempted: bool,
    totals: Totals,
    /// Rows that an eviction has looked at and may take: not to be handed out before it is done.
    going: HashSet<ChunkRef>,
    /// Rises when rows changed in the store: what was read before says nothing about what is there.
    changes: u64,
    /// Rises when a row that was out may be evicted again.
    given_back: u64,
}

/// Events decided in this process, whether that is committed yet or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) delivered: u64,
    pub(super) dead_lettered: u64,
}

/// What a transaction that is being made acks.
#[derive(Clone, Copy, Debug)]
struct Committing {
    delivered: u64,
    dead_lettered: u64,
    /// Events that the ledger had as delivered or dead_lettered before: more of them, and it has taken effect. Nobody but the committer adds
    /// to them, and it makes one transaction at a time.
    before: u64,
}

/// Acks on their way into a transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    origin: u32,
    acks: Vec<Ack>,
    pub(super) next_attempt: Option<Option<WallNanos>>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.acks.is_empty() && self.next_attempt.is_none()
    }

    /// In the shard's words.
    pub(super) fn acked(&self) -> Vec<Acked> {
        let acked = |ack: &Ack| Acked {
            first_seq: ack.chunk.key.first_seq,
            delivered: ack.delivered,
            dead_lettered: ack.dead_lettered.clone(),
            keep: ack.keep.clone(),
        };
        self.acks.iter().map(acked).collect()
    }
}

impl Outbox {
    /// Takes out what waits for a commit in that shard, whose ledger is this.
    pub(super) fn take(&self, origin: u32, ledger: &Ledger) -> Batch {
        let mut state = lock(&self.state);
        let acks: Vec<_> = state.waiting.extract_if(.., |ack| ack.chunk.origin == origin).collect();
        let (delivered, dead_lettered) = events(acks.iter());
        state.committing.insert(origin, Committing { delivered, dead_lettered, before: acked_in(ledger) });
        let next_attempt = if origin == OWN { state.next_attempt.take() } else { None };
        Batch { origin, acks, next_attempt }
    }

    /// The transaction was made: what was acked is gone, what was kept can be read again.
    pub(super) fn committed(&self, batch: Batch) {
        let mut state = lock(&self.state);
        state.committing.remove(&batch.origin);
        state.changes += 1;
        for ack in batch.acks {
            // What it kept may have its name, and may be acked by now.
            if !state.waiting.iter().any(|waiting| waiting.chunk == ack.chunk) {
                state.acked.remove(&ack.chunk);
            }
            if let Some(rest) = rest(&ack) {
                state.given_back += 1;
                // A row that could not be rewritten still stands where it stood.
                state.returned.insert(ack.chunk);
                if !state.handed.contains_key(&rest) {
                    state.returned.insert(rest);
                }
            }
        }
    }

    /// The transaction failed: everything waits again. The acked rows stay hidden, so nothing is sent twice.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut state = lock(&self.state);
        state.committing.remove(&batch.origin);
        // Before what has come since, which may be about what these keep.
        state.waiting.splice(0..0, batch.acks);
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
        let is_acked = state.acked.contains(&chunk);
        let kept = state.waiting.iter().find(|ack| ack.chunk == chunk).and_then(|found| found.keep.clone());
        move |seq| !is_acked || kept.as_ref().is_some_and(|kept| kept.contains(&seq))
    }

    /// The ledger of that shard, in which what is acked counts as acked, whether that is committed yet or not. A kill before the
    /// commit takes it back.
    pub(super) fn ledger(&self, origin: u32, committed: impl FnOnce() -> Ledger) -> Ledger {
        // Under the lock: nothing goes from here into the ledger between the two looks, or is missed on its way back.
        let state = lock(&self.state);
        let mut ledger = committed();
        let (mut delivered, mut dead_lettered) = events(state.waiting.iter().filter(|ack| ack.chunk.origin == origin));
        let under_way = state.committing.get(&origin).filter(|under_way| acked_in(&ledger) == under_way.before);
        if let Some(under_way) = under_way {
            delivered += under_way.delivered;
            dead_lettered += under_way.dead_lettered;
        }
        let delivered = delivered.min(ledger.queued_events);
        let dead_lettered = dead_lettered.min(ledger.queued_events - delivered);
        ledger.queued_events -= delivered + dead_lettered;
        if ledger.queued_events == 0 {
            ledger.queued_bytes = 0;
        }
        ledger.delivered += delivered;
        ledger.dead_lettered += dead_lettered;
        ledger
    }

    /// Whether everything in a row is acked.
    pub(super) fn is_acked(&self, chunk: ChunkRef) -> bool {
        let state = lock(&self.state);
        state.acked.contains(&chunk) && !state.waiting.iter().any(|one| one.chunk == chunk && one.keep.is_some())
    }

    /// Events decided so far.
    pub(super) fn totals(&self) -> Totals {
        lock(&self.state).totals
    }

    /// Whether a row is with the delivery, or acked. If not, it is kept from the delivery until [`Outbox::evicted`].
    pub(super) fn is_out_or_stays(&self, chunk: ChunkRef) -> bool {
        let mut state = lock(&self.state);
        let is_out = state.handed.contains_key(&chunk) || state.acked.contains(&chunk);
        if !is_out {
            state.going.insert(chunk);
        }
        is_out
    }

    /// An eviction is done. Says whether the delivery was kept from a row meanwhile.
    pub(super) fn evicted(&self) -> bool {
        let mut state = lock(&self.state);
        state.changes += 1;
        let going = std::mem::take(&mut state.going);
        going.iter().any(|chunk| state.returned.contains(chunk))
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
        !state.handed.keys().any(of) && !state.acked.iter().any(of)
    }

    /// Takes note of a decision. False: it is nobody's business any more.
    pub(super) fn ack(&self, ack: Ack) -> bool {
        let mut state = lock(&self.state);
        let size = state.handed.remove(&ack.chunk);
        if size.is_none() && ack.chunk.origin != OWN {
            // Of an orphan that was let go meanwhile: its next owner sends it again.
            return false;
        }
        state.totals.delivered += ack.delivered;
        state.totals.dead_lettered += ack.dead_lettered.len() as u64;
        state.acked.insert(ack.chunk);
        // Still with the delivery.
        if let Some(rest) = rest(&ack) {
            let events = ack.keep.as_ref().map_or(0, Vec::len) as u64;
            state.handed.insert(rest, Room { events, bytes: size.map_or(0, |size| size.bytes) });
        }
        add(&mut state.waiting, ack);
        true
    }

    /// The delivery has let go of a row.
    pub(super) fn give_back(&self, chunk: ChunkRef) {
        let mut state = lock(&self.state);
        // Unless its shard was let go meanwhile.
        if state.handed.remove(&chunk).is_some() {
            state.returned.insert(chunk);
            state.given_back += 1;
        }
    }

    /// Rises when a row that was with the delivery, or acked, may be taken by an eviction again.
    pub(super) fn given_back(&self) -> u64 {
        lock(&self.state).given_back
    }

    /// Rows that stand where the reading has been already.
    pub(super) fn returned(&self, chunks: impl Iterator<Item = ChunkRef>) {
        let mut state = lock(&self.state);
        state.returned.extend(chunks);
        state.given_back += 1;
    }

    /// Takes note of the pace. Says whether that has to be committed.
    pub(super) fn note_pace(&self, pace: &PaceState) -> bool {
        let mut state = lock(&self.state);
        state.attempted |= pace.phase != Phase::Idle;
        // Most changes of pace are of no concern to the next process: a commit for each would cost more than the batch it is about.
        if state.known_next_attempt == pace.next_attempt {
            return false;
        }
        state.known_next_attempt = pace.next_attempt;
        state.next_attempt = Some(pace.next_attempt);
        true
    }

    /// What an earlier process left in the store.
    pub(super) fn remember_next_attempt(&self, next_attempt: Option<WallNanos>) {
        lock(&self.state).known_next_attempt = next_attempt;
    }

    /// A shard was let go: nothing of it is our business any more. What it acked and did not commit is sent again by its next owner.
    pub(super) fn let_go(&self, origin: u32) {
        self.forget(origin);
        let mut state = lock(&self.state);
        state.handed.retain(|chunk, _| chunk.origin != origin);
        state.acked.retain(|chunk| chunk.origin != origin);
        state.waiting.retain(|ack| ack.chunk.origin != origin);
        state.committing.remove(&origin);
    }

    /// A store was reopened and may be another file: its rows are found again from the start, but for what is with the delivery or
    /// waits to be acked.
    pub(super) fn forget(&self, origin: u32) {
        let mut state = lock(&self.state);
        state.cursors.remove(&origin);
        state.changes += 1;
        state.given_back += 1;
        state.returned.retain(|chunk| chunk.origin != origin);
    }

    /// Where to read on: before the lowest row that was handed out and given back, else after the last one read.
    /// And how often rows had changed by then.
    pub(super) fn resume(&self, origin: u32, busy: &dyn Fn(ChunkRef) -> bool) -> (Option<ChunkKey>, u64) {
        let mut state = lock(&self.state);
        let cursor = state.cursors.get(&origin).copied();
        let is_wanted = |chunk: &ChunkRef| chunk.origin == origin && !busy(*chunk) && !state.going.contains(chunk);
        let given_back = state.returned.iter().copied().find(is_wanted);
        let Some(chunk) = given_back else { return (cursor, state.changes) };
        let before = chunk.key.first_seq.checked_sub(1).map(|first_seq| ChunkKey { first_seq, ..chunk.key });
        match before {
            Some(before) if cursor.is_some_and(|cursor| cursor > before) => {
                state.cursors.insert(origin, before);
                (Some(before), state.changes)
            }
            _ => (cursor, state.changes),
        }
    }

    /// Notes the rows that were read, from after `after` up to `last` or the end, and leaves out those that are not to be handed out.
    /// `None` if rows have changed since `resume`: then they have to be read again.
    pub(super) fn hand_out(
        &self,
        origin: u32,
        (after, changes): (Option<ChunkKey>, u64),
        last: Option<ChunkKey>,
        chunks: Vec<Chunk>,
        busy: &dyn Fn(ChunkRef) -> bool,
    ) -> Option<Vec<(ChunkRef, Chunk)>> {
        let mut state = lock(&self.state);
        if state.changes != changes {
            return None;
        }
        if let Some(last) = last {
            state.cursors.insert(origin, last);
        }
        // Whoever was returned there was found again just now, or has been evicted: looked for once more, it would never be found.
        let was_read = |key: ChunkKey| after.is_none_or(|after| key > after) && last.is_none_or(|last| key <= last);
        state.returned.retain(|chunk| chunk.origin != origin || busy(*chunk) || !was_read(chunk.key));
        let mut handed = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let named = ChunkRef { origin, key: chunk.key };
            if state.acked.contains(&named) {
                continue;
            }
            if state.going.contains(&named) {
                state.returned.insert(named);
            } else if !busy(named) {
                let bytes = Chunk::page_bytes_with(chunk.frames.len());
                state.handed.insert(named, Room { events: chunk.count.into(), bytes });
                handed.push((named, chunk));
            } else if !state.handed.contains_key(&named) {
                // Stepped over for the time being: the reading will not come by here again.
                state.returned.insert(named);
            }
        }
        Some(handed)
    }
}

/// What a ack keeps, by its new name.
fn rest(ack: &Ack) -> Option<ChunkRef> {
    let first_seq = *ack.keep.as_ref()?.iter().min()?;
    Some(ChunkRef { key: ChunkKey { first_seq, ..ack.chunk.key }, ..ack.chunk })
}

/// Adds a ack to those that wait for a commit: to an earlier one where it is about what that one keeps, which is no row yet.
fn add(waiting: &mut Vec<Ack>, ack: Ack) {
    let same_row = waiting.iter_mut().find(|earlier| rest(earlier) == Some(ack.chunk));
    match same_row {
        Some(earlier) => {
            earlier.delivered += ack.delivered;
            earlier.dead_lettered.extend(ack.dead_lettered);
            earlier.keep = ack.keep;
        }
        None => waiting.push(ack),
    }
}

/// Events that are delivered or dead_lettered there.
fn acked_in(ledger: &Ledger) -> u64 {
    ledger.delivered.saturating_add(ledger.dead_lettered)
}

/// Events delivered and dead_lettered.
fn events<'a>(acks: impl Iterator<Item = &'a Ack>) -> (u64, u64) {
    acks.fold((0, 0), |(delivered, dead_lettered), ack| {
        (delivered + ack.delivered, dead_lettered + ack.dead_lettered.len() as u64)
    })
}
