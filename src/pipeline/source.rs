//! The queue as delivery sees it ([`Source`]): this process's own shard, and the orphaned one that is adopted.

use std::sync::atomic::Ordering;

use super::Pipeline;
use crate::delivery::{Phase, Source, SourceError};
pub(super) use crate::queue::OWN;
use crate::queue::store::ChunkKey;
use crate::queue::{Ack, ChunkRef, Lease, Queue, QueueError, Rows, StoreError};
use crate::report::Diagnostic;
use crate::sys::clock::WallNanos;

impl Pipeline {
    /// The directories of the queues that are open: the pipeline's own, and that of the orphan that is being delivered.
    #[cfg(feature = "inspect")]
    pub(crate) fn open_dirs(&self) -> Vec<std::path::PathBuf> {
        let adopted = self.adopted_shard().map(|(_, shard)| shard.dir().clone());
        std::iter::once(self.shard.dir().clone()).chain(adopted).collect()
    }

    /// Stops sending, or starts it again. Requests that are under way at the moment of the call are not aborted.
    pub(crate) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
        match self.delivery() {
            // Delivery releases its leases, so that those rows can be evicted like all others.
            Some(delivery) if held => delivery.look_again(),
            Some(delivery) => delivery.committed(),
            None => {}
        }
    }

    /// Leases rows of one shard. Damaged rows on the way are repaired, and what is lost by that is reported.
    fn lease_from(
        &self,
        rows: &Rows<'_>,
        from: (u32, &Queue),
        max_bytes: usize,
        wants: &dyn Fn(ChunkRef) -> bool,
    ) -> Result<Vec<Lease>, QueueError> {
        let mut events = 0;
        let leases = rows.lease(from, max_bytes, wants, self.options.clock.wall_nanos(), &mut events);
        if events > 0 {
            (self.options.report)(Diagnostic::EventsLost { events, after_restart: false });
        }
        leases
    }

    /// Whether a read failed only because of what the committer does with the store: it compacts it, or, on a full disk,
    /// closes it within a transaction and opens it again in the reserve's space. That is no failure of the queue, and
    /// delivery is woken when it is over. Until then it does not wait, because the disk may hang.
    fn is_passing(&self, (origin, shard): (u32, &Queue), error: &QueueError) -> bool {
        if error.is_busy() {
            self.leases.turned_away(|| shard.is_busy());
            return true;
        }
        matches!(error, QueueError::Store { source: StoreError::Latched, .. }) && self.leases.waits_for_commit(origin)
    }

    /// A failed read of our own shard.
    fn failed_read(&self, error: QueueError) -> SourceError {
        if self.is_passing((OWN, &self.shard), &error) {
            return SourceError::Busy;
        }
        // The store is latched now, or was meanwhile opened again; if not, the committer opens it.
        self.mailbox.wake();
        SourceError::Unreadable(error.into())
    }
}

impl Source for Pipeline {
    fn lease(&self, max_bytes: usize, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<Lease>, SourceError> {
        // A queue that another process owns by now is sent by that process.
        if self.is_held() || self.shard.is_lost() {
            return Ok(Vec::new());
        }
        // Delivery is woken once the store is open again, or could not be opened.
        if self.is_reopening.load(Ordering::Acquire) {
            return Err(SourceError::Busy);
        }
        // Read before the rows: if the committer clears this later, it wakes delivery again.
        let is_catching_up = self.is_catching_up.load(Ordering::Acquire);
        let Some(rows) = self.leases.try_lock() else { return Err(SourceError::Busy) };
        let own = match self.lease_from(&rows, (OWN, &self.shard), max_bytes, wants) {
            Ok(own) => own,
            Err(error) => {
                drop(rows);
                return Err(self.failed_read(error));
            }
        };
        if !own.is_empty() {
            return Ok(own);
        }
        // Read under the row lock: a shard that the committer releases later is not leased from after that.
        let adopted = self.adopted_shard();
        let leases = match &adopted {
            Some((origin, shard)) => match self.lease_from(&rows, (*origin, shard), max_bytes, wants) {
                Ok(leases) => leases,
                Err(error) if self.is_passing((*origin, shard), &error) => return Err(SourceError::Busy),
                Err(error) => {
                    // A failure of an adopted queue must not stop the delivery of our own.
                    let why = error.to_string();
                    (self.options.report)(Diagnostic::QueueSkipped { path: shard.dir().clone(), why });
                    self.mailbox.send(|commands| commands.abandon = true);
                    Vec::new()
                }
            },
            None => Vec::new(),
        };
        if leases.is_empty() {
            self.mailbox.send(|commands| commands.adopt = true);
            if is_catching_up {
                return Err(SourceError::Busy);
            }
        }
        Ok(leases)
    }

    fn lease_newest(&self, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Option<Lease>, SourceError> {
        if self.is_held() || self.shard.is_lost() {
            return Ok(None);
        }
        if self.is_reopening.load(Ordering::Acquire) {
            return Err(SourceError::Busy);
        }
        let Some(rows) = self.leases.try_lock() else { return Err(SourceError::Busy) };
        let newest = rows.lease_newest((OWN, &self.shard), wants);
        drop(rows);
        newest.map_err(|error| self.failed_read(error))
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    fn stuck(&self, origin: u32) -> bool {
        // This process's own shard is never left to another one.
        let is_adopted = self.adopted_shard().is_some_and(|(adopted, _)| adopted == origin);
        if is_adopted {
            self.mailbox.send(|commands| (commands.abandon, commands.adopt) = (true, true));
        }
        is_adopted
    }

    fn newest(&self) -> Option<ChunkRef> {
        // Rows of adopted shards do not count: their delivery may take long, and the caller of a flush has not captured
        // them.
        let ledger = self.shard.ledger();
        // No row begins above the newest record, and an upper bound is enough.
        let key = ChunkKey::new(ledger.accepted);
        (ledger.queued_events > 0).then_some(ChunkRef { origin: OWN, key })
    }

    fn waiting(&self) -> u64 {
        self.queued_as_committed()
    }

    fn ack(&self, ack: Ack) {
        if self.leases.ack(ack) {
            self.mailbox.wake();
        }
    }

    fn release(&self, row: ChunkRef) {
        self.leases.release(row);
    }

    fn pace(&self, phase: Phase, next_attempt: Option<WallNanos>) {
        if phase != Phase::Idle {
            self.leases.note_attempt();
        }
        // An outage is on the status page and in metrics when it begins and ends, and not with the next captured event.
        let fails = !matches!(phase, Phase::Idle | Phase::Sending);
        let failed = self.was_failing.swap(fails, Ordering::Relaxed);
        self.has_pace_changed.store(true, Ordering::Release);
        if fails || failed {
            self.mailbox.wake();
        }
        // Only the time of the next attempt concerns the next process: to commit each change would cost too much.
        if self.leases.note_next_attempt(next_attempt) {
            self.mailbox.wake();
        }
    }
}
