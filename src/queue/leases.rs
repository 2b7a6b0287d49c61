//! Leases: which rows of the store are with delivery, which are decided, and which are free.
//!
//! Two threads meet here. Delivery leases rows, sends their events and acks them. The committer makes the transactions
//! that apply the acks, evict rows and checkpoint new ones. A row of the store is in one of three states:
//!
//! | state | meaning | followed by |
//! |---|---|---|
//! | free | in the store only | leased, or evicted |
//! | leased | its bytes are with delivery, and only delivery decides over it | acked, or released and free again |
//! | acked | decided; in the store until the next commit, and never leased again | gone after the commit |
//!
//! An ack may keep some of a row's records. What is kept is a row of its own, named after its first record, and still
//! leased; its bytes come with the ack, so the store writes them without reading the old row again.
//!
//! # Locks
//!
//! * The *row lock* ([`Rows`]) is held from reading rows to noting the result: by delivery for a lease, by the
//!   committer for an eviction, including its transactions. A lease therefore never returns a row that is about to go.
//!   A transaction that applies acks needs the lock only to note that the acked rows are gone: they are not leased
//!   before that, so delivery goes on reading while the disk syncs. Delivery only tries this lock, because a disk that
//!   hangs must not stop the thread that also answers flag requests; if the attempt fails, delivery is woken when the
//!   lock is free.
//! * The table itself has a lock that is held for a few instructions. Acks, releases and statistics need no other, so
//!   they never wait for the disk. Whoever needs both locks takes the row lock first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{OnceLock, PoisonError};

use super::journal::Budget;
use super::store::{Chunk, ChunkKey, DeadRecord, Ledger};
use super::{Queue, QueueError};
use crate::sys::clock::WallNanos;
use crate::sys::sync::{AtomicBool, Mutex, MutexGuard, try_lock};

/// The origin of this process's own shard. Adopted shards have higher numbers.
pub(crate) const OWN: u32 = 0;

/// A row of one of the shards that this process delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkRef {
    /// The shard: [`OWN`], or an adopted one.
    pub(crate) origin: u32,
    pub(crate) key: ChunkKey,
}

/// A row that is leased to delivery, and its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// The shard that the row belongs to.
    pub(crate) origin: u32,
    pub(crate) chunk: Chunk,
}

impl Lease {
    /// The row's name.
    pub(crate) fn row(&self) -> ChunkRef {
        ChunkRef { origin: self.origin, key: self.chunk.key }
    }
}

/// The decision over a leased row. Records that are neither delivered, dead nor kept could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) row: ChunkRef,
    /// Number of records that were delivered.
    pub(crate) delivered: u64,
    /// Records that were rejected for good.
    pub(crate) dead: Vec<DeadRecord>,
    /// The records that are still to be delivered, as the row that replaces this one; `None` if there are none. They
    /// stay leased under the new row's name.
    pub(crate) keep: Option<Chunk>,
}

impl Ack {
    /// The name of the row that replaces this one.
    pub(crate) fn kept_row(&self) -> Option<ChunkRef> {
        self.keep.as_ref().map(|kept| ChunkRef { key: kept.key, ..self.row })
    }
}

/// The table of leases of all shards that this process delivers.
#[derive(Default)]
pub(crate) struct Leases {
    row_lock: Mutex<()>,
    /// Delivery has to be woken when the row lock is free: it found the lock taken, or there is a row that it may have
    /// looked for in vain.
    is_missed: AtomicBool,
    /// Delivery has to be woken by the committer: it could not read the store because of what the committer does with it.
    /// Unlike [`is_missed`](Self::is_missed) it stays set when delivery itself gives the row lock back, and tries again.
    is_turned_away: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The last row read of each shard.
    cursors: HashMap<u32, ChunkKey>,
    /// The leased rows and their sizes.
    leased: BTreeMap<ChunkRef, Budget>,
    /// Free rows behind the cursor: the next read starts before the first of them. Some may have been evicted since.
    released: BTreeSet<ChunkRef>,
    /// Acked rows that are still in the store. A row that keeps its first record is in `leased` under the same name.
    acked: HashSet<ChunkRef>,
    /// Acks for the next commit.
    pending: Vec<Ack>,
    /// Acks in the transaction that is under way, by origin.
    committing: HashMap<u32, Committing>,
    /// A new time for the next commit, before which nothing is sent.
    next_attempt: Option<Option<WallNanos>>,
    /// The time that the store has, or will have after the next commit.
    known_next_attempt: Option<WallNanos>,
    was_attempted: bool,
    totals: Totals,
    /// Counts the occasions on which a row that was leased or acked became free.
    releases: u64,
}

/// Events decided in this process, committed or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) delivered: u64,
    /// Moved to the dead letters.
    pub(crate) dead_lettered: u64,
}

impl Totals {
    fn of<'a>(acks: impl Iterator<Item = &'a Ack>) -> Self {
        acks.fold(Self::default(), |sum, ack| Self {
            delivered: sum.delivered + ack.delivered,
            dead_lettered: sum.dead_lettered + ack.dead.len() as u64,
        })
    }
}

/// What a transaction that is under way acks.
#[derive(Debug)]
struct Committing {
    totals: Totals,
    /// The rows, and what is kept of each: until the transaction has ended, the store may still have the whole rows.
    kept: Vec<(ChunkRef, Option<Chunk>)>,
    /// Events that the ledger counted as delivered or dead-lettered before. Once it counts more, the transaction has
    /// taken effect: only the committer adds to the ledger, one transaction at a time.
    before: u64,
}

/// Acks on their way into a transaction.
#[derive(Debug, Default)]
pub(crate) struct PendingAcks {
    origin: u32,
    /// In the order in which they were made.
    pub(crate) acks: Vec<Ack>,
    /// The time before which nothing is sent, if it changes.
    pub(crate) next_attempt: Option<Option<WallNanos>>,
}

/// Holds the row lock: while it exists, no other thread leases, removes or rewrites rows.
pub(crate) struct Rows<'a> {
    leases: &'a Leases,
    guard: Option<MutexGuard<'a, ()>>,
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.leases.wake_missed();
    }
}

impl Leases {
    /// Sets what wakes delivery after it was turned away. Called once.
    pub(crate) fn wake_with(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.wake.set(wake);
    }

    /// Takes the row lock, for the committer: waits while delivery reads rows.
    pub(crate) fn lock(&self) -> Rows<'_> {
        let guard = self.row_lock.lock().unwrap_or_else(PoisonError::into_inner);
        Rows { leases: self, guard: Some(guard) }
    }

    /// Takes the row lock if it is free, for delivery. `None`: delivery is woken when the lock is free.
    pub(crate) fn try_lock(&self) -> Option<Rows<'_>> {
        let guard = try_lock(&self.row_lock).or_else(|| {
            self.is_missed.store(true, Ordering::SeqCst);
            // Once more: the lock may have been released before its holder could see that somebody waits.
            try_lock(&self.row_lock)
        })?;
        Some(Rows { leases: self, guard: Some(guard) })
    }

    fn wake_missed(&self) {
        if self.is_missed.swap(false, Ordering::SeqCst)
            && let Some(wake) = self.wake.get()
        {
            wake();
        }
    }

    /// Whether a transaction of this shard is under way. If so, delivery is woken when it has ended.
    pub(crate) fn waits_for_commit(&self, origin: u32) -> bool {
        let table = self.table();
        let is_under_way = table.committing.contains_key(&origin);
        // Under the table's lock, which the end of the transaction takes before it wakes.
        self.is_turned_away.fetch_or(is_under_way, Ordering::SeqCst);
        is_under_way
    }

    /// Delivery found the store busy, and is woken when the committer has done what it is doing; at once, if that is
    /// done already.
    pub(crate) fn turned_away(&self, is_busy: impl FnOnce() -> bool) {
        self.is_turned_away.store(true, Ordering::SeqCst);
        if !is_busy() {
            self.wake_turned_away();
        }
    }

    /// Wakes delivery if it was turned away. Called by the committer after each of its turns.
    pub(crate) fn wake_turned_away(&self) {
        if self.is_turned_away.swap(false, Ordering::SeqCst) {
            self.is_missed.store(true, Ordering::SeqCst);
            self.wake_missed();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a decision. Returns `false` if the row's shard was let go meanwhile: its next owner sends the row again.
    pub(crate) fn ack(&self, ack: Ack) -> bool {
        self.table().ack(ack)
    }

    /// Ends a lease without a decision.
    pub(crate) fn release(&self, row: ChunkRef) {
        let mut table = self.table();
        // Unless its shard was let go meanwhile.
        if table.leased.remove(&row).is_some() {
            table.released.insert(row);
            table.releases += 1;
        }
    }

    /// Takes the acks of a shard, whose ledger this is, for a transaction.
    pub(crate) fn take_acks(&self, origin: u32, ledger: &Ledger) -> PendingAcks {
        let mut table = self.table();
        let acks: Vec<_> = table.pending.extract_if(.., |ack| ack.row.origin == origin).collect();
        let kept = acks.iter().map(|ack| (ack.row, ack.keep.clone())).collect();
        let committing = Committing { totals: Totals::of(acks.iter()), kept, before: decided_in(ledger) };
        table.committing.insert(origin, committing);
        let next_attempt = if origin == OWN { table.next_attempt.take() } else { None };
        PendingAcks { origin, acks, next_attempt }
    }

    /// The transaction failed: its acks wait again. Acked rows stay hidden, so nothing is sent twice.
    pub(crate) fn put_back(&self, failed: PendingAcks) {
        let mut table = self.table();
        table.committing.remove(&failed.origin);
        // Before later acks, which may be about what these keep.
        table.pending.splice(0..0, failed.acks);
        if table.next_attempt.is_none() {
            table.next_attempt = failed.next_attempt;
        }
        drop(table);
        self.wake_turned_away();
    }

    /// Whether nothing waits for a commit.
    pub(crate) fn is_committed(&self) -> bool {
        let table = self.table();
        table.pending.is_empty() && table.next_attempt.is_none()
    }

    /// Whether anything of this shard waits for a commit.
    pub(crate) fn has_pending(&self, origin: u32) -> bool {
        let table = self.table();
        table.pending.iter().any(|ack| ack.row.origin == origin) || (origin == OWN && table.next_attempt.is_some())
    }

    /// Number of acked rows that wait for a commit.
    pub(crate) fn pending_rows(&self) -> usize {
        self.table().pending.len()
    }

    /// Which records of a row are still to be delivered.
    #[cfg(feature = "testing")]
    pub(crate) fn still_open(&self, row: ChunkRef) -> impl Fn(u64) -> bool + use<> {
        use crate::queue::frame;
        let table = self.table();
        let is_acked = table.acked.contains(&row);
        let kept = table.kept_of(row).into_iter();
        let kept: HashSet<u64> =
            kept.flat_map(|kept| frame::frames(&kept.frames, kept.salt).map(|(head, _)| head.seq)).collect();
        move |seq| !is_acked || kept.contains(&seq)
    }

    /// A shard's ledger in which acked events count as decided before they are committed. A kill before the commit
    /// takes that back.
    pub(crate) fn ledger(&self, origin: u32, committed: impl FnOnce() -> Ledger) -> Ledger {
        // Under the lock, so that no ack moves from the table into the ledger, or back, between the two reads.
        let table = self.table();
        let mut ledger = committed();
        let Totals { mut delivered, mut dead_lettered } =
            Totals::of(table.pending.iter().filter(|ack| ack.row.origin == origin));
        let committing = table.committing.get(&origin).filter(|committing| decided_in(&ledger) == committing.before);
        if let Some(committing) = committing {
            delivered += committing.totals.delivered;
            dead_lettered += committing.totals.dead_lettered;
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

    /// Whether every record of a row is decided.
    pub(crate) fn is_acked(&self, row: ChunkRef) -> bool {
        let table = self.table();
        table.acked.contains(&row) && table.kept_of(row).is_none()
    }

    /// Events decided so far.
    pub(crate) fn totals(&self) -> Totals {
        self.table().totals
    }

    /// The size of all leased rows of this process's own shard.
    pub(crate) fn leased(&self) -> Budget {
        let table = self.table();
        let own = table.leased.iter().filter(|(row, _)| row.origin == OWN).map(|(_, size)| size);
        own.fold(Budget::default(), |sum, size| Budget {
            events: sum.events.saturating_add(size.events),
            bytes: sum.bytes.saturating_add(size.bytes),
        })
    }

    /// Whether no row of a shard is leased or acked.
    pub(crate) fn has_nothing_of(&self, origin: u32) -> bool {
        let table = self.table();
        let is_of = |row: &ChunkRef| row.origin == origin;
        !table.leased.keys().any(is_of) && !table.acked.iter().any(is_of)
    }

    /// Rises when a row that was leased or acked becomes free, and may be evicted.
    pub(crate) fn releases(&self) -> u64 {
        self.table().releases
    }

    /// Whether this process has sent a request.
    pub(crate) fn was_attempted(&self) -> bool {
        self.table().was_attempted
    }

    /// Records that this process has sent a request.
    pub(crate) fn note_attempt(&self) {
        self.table().was_attempted = true;
    }

    /// Records the time before which nothing is sent. Returns whether it changed and has to be committed.
    pub(crate) fn note_next_attempt(&self, next_attempt: Option<WallNanos>) -> bool {
        let mut table = self.table();
        if table.known_next_attempt == next_attempt {
            return false;
        }
        table.known_next_attempt = next_attempt;
        table.next_attempt = Some(next_attempt);
        true
    }

    /// Records the time that an earlier process has left in the store.
    pub(crate) fn remember_next_attempt(&self, next_attempt: Option<WallNanos>) {
        self.table().known_next_attempt = next_attempt;
    }
}

impl Rows<'_> {
    /// Leases the next free rows of a shard that `wants` accepts: as many as fit `max_bytes`, and at least one if there
    /// is one. Damaged rows on the way are replaced by what can be saved of them; `damaged` counts the events lost.
    pub(crate) fn lease(
        &self,
        (origin, queue): (u32, &Queue),
        max_bytes: usize,
        wants: &dyn Fn(ChunkRef) -> bool,
        now: WallNanos,
        damaged: &mut u64,
    ) -> Result<Vec<Lease>, QueueError> {
        loop {
            let after = self.leases.table().resume(origin, wants);
            let read = queue.read(after, max_bytes)?;
            let mut repaired = Vec::new();
            if !read.damaged.is_empty() {
                repaired = read.damaged.iter().filter_map(|row| Some(row.keep.as_ref()?.key)).collect();
                *damaged += queue.repair(read.damaged, now)?;
            }
            let is_end = read.last.is_none() && repaired.is_empty();
            let mut table = self.leases.table();
            let leases = table.lease(origin, after, read.last, read.chunks, wants);
            // What was saved of a row stands behind the cursor by now.
            if !repaired.is_empty() {
                table.released.extend(repaired.into_iter().map(|key| ChunkRef { origin, key }));
                table.releases += 1;
            }
            if is_end || !leases.is_empty() {
                return Ok(leases);
            }
        }
    }

    /// Leases the newest row of a shard if it is free and `wants` accepts it. The rows before it are not read, so that
    /// takes no longer with a long backlog.
    pub(crate) fn lease_newest(
        &self,
        (origin, queue): (u32, &Queue),
        wants: &dyn Fn(ChunkRef) -> bool,
    ) -> Result<Option<Lease>, QueueError> {
        let Some(chunk) = queue.newest()? else { return Ok(None) };
        let lease = Lease { origin, chunk };
        let row = lease.row();
        let mut table = self.leases.table();
        if !table.is_free(row) || !wants(row) {
            return Ok(None);
        }
        table.released.remove(&row);
        table.leased.insert(row, cost(&lease.chunk));
        Ok(Some(lease))
    }

    /// The transaction was committed: acked rows are gone, and what they kept is a row of the store. Until this is
    /// noted under the row lock, a lease that reads the store as it was before the commit finds those rows acked.
    ///
    /// If a kept row becomes free, delivery is woken when the row lock is: it may have looked for the row before the
    /// commit, when it was not in the store yet.
    pub(crate) fn committed(&self, committed: PendingAcks) {
        let mut table = self.leases.table();
        table.committing.remove(&committed.origin);
        let is_turned_away = self.leases.is_turned_away.swap(false, Ordering::SeqCst);
        self.leases.is_missed.fetch_or(is_turned_away, Ordering::SeqCst);
        for ack in committed.acks {
            // What it kept may have its name, and may be acked by now.
            if !table.pending.iter().any(|pending| pending.row == ack.row) {
                table.acked.remove(&ack.row);
            }
            if let Some(kept) = ack.kept_row() {
                table.releases += 1;
                // Where the store did not find the row that was meant, that row still stands.
                table.released.insert(ack.row);
                if table.is_free(kept) {
                    table.released.insert(kept);
                    self.leases.is_missed.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    /// Whether a row is leased or acked, so that it must not be evicted.
    pub(crate) fn is_out(&self, row: ChunkRef) -> bool {
        let table = self.leases.table();
        table.leased.contains_key(&row) || table.acked.contains(&row)
    }

    /// A shard was let go: forgets everything about it. Its next owner sends what was acked and not committed again.
    pub(crate) fn let_go(&self, origin: u32) {
        self.forget(origin);
        let mut table = self.leases.table();
        table.leased.retain(|row, _| row.origin != origin);
        table.acked.retain(|row| row.origin != origin);
        table.pending.retain(|ack| ack.row.origin != origin);
        table.committing.remove(&origin);
    }

    /// A store was opened again and may be another file: its free rows are read from the start.
    pub(crate) fn forget(&self, origin: u32) {
        let mut table = self.leases.table();
        table.cursors.remove(&origin);
        table.releases += 1;
        table.released.retain(|row| row.origin != origin);
    }
}

impl Table {
    fn is_free(&self, row: ChunkRef) -> bool {
        !self.leased.contains_key(&row) && !self.acked.contains(&row)
    }

    /// The row after which to read: the cursor, or the place before the first released row that is wanted.
    fn resume(&self, origin: u32, wants: &dyn Fn(ChunkRef) -> bool) -> Option<ChunkKey> {
        let cursor = self.cursors.get(&origin).copied();
        let is_next = |row: &ChunkRef| row.origin == origin && self.is_free(*row) && wants(*row);
        let Some(row) = self.released.iter().copied().find(is_next) else { return cursor };
        let before = row.key.first_seq.checked_sub(1).map(ChunkKey::new);
        if before < cursor { before } else { cursor }
    }

    /// Leases those of `chunks` that are free and wanted. They were read from after `after` to `last`, or to the end.
    fn lease(
        &mut self,
        origin: u32,
        after: Option<ChunkKey>,
        last: Option<ChunkKey>,
        chunks: Vec<Chunk>,
        wants: &dyn Fn(ChunkRef) -> bool,
    ) -> Vec<Lease> {
        match last.or(after) {
            Some(cursor) => self.cursors.insert(origin, cursor),
            None => self.cursors.remove(&origin),
        };
        // Released rows in this stretch were read just now, or are gone from the store.
        let was_read = |key: ChunkKey| after.is_none_or(|after| key > after) && last.is_none_or(|last| key <= last);
        self.released.retain(|row| row.origin != origin || !was_read(row.key));
        let mut leases = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let lease = Lease { origin, chunk };
            let row = lease.row();
            if self.acked.contains(&row) || self.leased.contains_key(&row) {
                continue;
            }
            if !wants(row) {
                // Behind the cursor now: found again once it is wanted.
                self.released.insert(row);
                continue;
            }
            self.leased.insert(row, cost(&lease.chunk));
            leases.push(lease);
        }
        leases
    }

    fn ack(&mut self, ack: Ack) -> bool {
        let size = self.leased.remove(&ack.row);
        if size.is_none() && ack.row.origin != OWN {
            return false;
        }
        self.totals.delivered += ack.delivered;
        self.totals.dead_lettered += ack.dead.len() as u64;
        self.acked.insert(ack.row);
        if let (Some(row), Some(kept)) = (ack.kept_row(), &ack.keep) {
            self.leased.insert(row, Budget { events: kept.count.into(), bytes: size.map_or(0, |size| size.bytes) });
        }
        // Applied in this order, also where it is about what an earlier one keeps and no row of the store is yet.
        self.pending.push(ack);
        true
    }

    /// What the acks that are not committed yet leave of an acked row.
    fn kept_of(&self, row: ChunkRef) -> Option<&Chunk> {
        // Pending acks may be about what those of the transaction keep.
        let committing = self.committing.get(&row.origin).into_iter().flat_map(|committing| &committing.kept);
        let committing = committing.map(|(row, keep)| (*row, keep.as_ref()));
        let pending = self.pending.iter().map(|ack| (ack.row, ack.keep.as_ref()));
        let (mut name, mut kept) = (Some(row), None);
        for (acked, keep) in committing.chain(pending) {
            if name == Some(acked) {
                (name, kept) = (keep.map(|chunk| ChunkRef { key: chunk.key, ..row }), keep);
            }
        }
        kept
    }
}

/// Events that the ledger counts as delivered or dead-lettered.
fn decided_in(ledger: &Ledger) -> u64 {
    ledger.delivered.saturating_add(ledger.dead_lettered)
}

/// What a leased chunk takes of the queue's budget.
fn cost(chunk: &Chunk) -> Budget {
    Budget { events: chunk.count.into(), bytes: Chunk::page_bytes_with(chunk.frames.len()) }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
