//! Callers that wait: for a sync that makes their event durable, and for a flush.
//!
//! [`Receipts`] resolves promises for sequence numbers after each sync. A flush goes from the caller to the committer,
//! which checkpoints everything accepted before it, from there to the delivery engine, and back to the committer, which
//! answers it when the results are committed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::committer::Committer;
use super::mailbox::Flush;
use super::pending::{self, Pending, Promise};
use super::shared::{Pipeline, lock};
use crate::report::{DeliveryReport, EndpointStatus, FlushReport, PersistError};

#[derive(Debug, Default)]
struct Waiting {
    /// Sequence numbers, and the promises for them.
    list: Vec<(u64, Promise<Result<(), PersistError>>)>,
    /// No more syncs are made.
    closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Every record up to this sequence number survives a power cut.
    synced: AtomicU64,
    waiting: Mutex<Waiting>,
}

impl Receipts {
    /// Resolves when `seq` is synced. Calls `wake` if a sync is needed for that.
    pub(super) fn wait_for(&self, seq: u64, wake: impl FnOnce()) -> Pending<Result<(), PersistError>> {
        let (promise, answer) = pending::pending();
        {
            let mut waiting = lock(&self.waiting);
            // Read under the lock: the committer raises the mark before it takes the lock to answer.
            if self.synced() >= seq {
                drop(waiting);
                promise.answer(Ok(()));
                return answer;
            }
            if waiting.closed {
                drop(waiting);
                promise.answer(Err(PersistError::Closed));
                return answer;
            }
            waiting.list.push((seq, promise));
        }
        wake();
        answer
    }

    /// Resolves the promises for everything up to `seq`, which survives a power cut now.
    pub(super) fn synced_up_to(&self, seq: u64) {
        self.synced.fetch_max(seq, Ordering::AcqRel);
        let done: Vec<_> = lock(&self.waiting).list.extract_if(.., |(waits_for, _)| *waits_for <= seq).collect();
        for (_, promise) in done {
            promise.answer(Ok(()));
        }
    }

    /// Fails everything that waits: the sync has failed.
    pub(super) fn fail(&self, error: &PersistError) {
        let all = std::mem::take(&mut lock(&self.waiting).list);
        for (_, promise) in all {
            promise.answer(Err(error.clone()));
        }
    }

    /// Ends the waiting: no more syncs are made.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.fail(&PersistError::Closed);
    }

    /// The highest sequence number that survives a power cut.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Number of callers that wait.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.waiting).list.len()
    }
}

impl Pipeline {
    /// Sends what is queued. The promise is answered when it was tried and the results are committed.
    pub(crate) fn flush(&self, promise: Promise<FlushReport>) {
        let before = self.leases.totals();
        self.mailbox.send(|commands| commands.flushes.push(Flush { promise, before }));
        self.answer_late_commands();
    }

    pub(super) fn answer_flush(&self, flush: Flush, endpoint: EndpointStatus) {
        let totals = self.leases.totals();
        flush.promise.answer(FlushReport {
            delivered: totals.delivered.saturating_sub(flush.before.delivered),
            dead_lettered: totals.dead_lettered.saturating_sub(flush.before.dead_lettered),
            remaining: self.remaining(),
            endpoint,
        });
    }

    /// Takes a flush that delivery has completed. The committer answers it, unless it has ended.
    pub(super) fn flush_completed(&self, flush: Flush, endpoint: EndpointStatus) {
        self.mailbox.send(|commands| commands.flushed.push((flush, endpoint)));
        self.answer_late_commands();
    }
}

impl Committer {
    /// Gives flushes to delivery. By now everything accepted before them is checkpointed, or cannot be.
    pub(super) fn begin_flushes(&mut self) {
        for flush in std::mem::take(&mut self.commands.flushes) {
            let pipeline = Arc::clone(&self.pipeline);
            let Some(delivery) = self.pipeline.delivery() else { continue };
            delivery.flush(Box::new(move |endpoint| pipeline.flush_completed(flush, endpoint)));
        }
        let awaited = std::mem::take(&mut self.commands.awaited);
        if let Some(delivery) = self.pipeline.delivery()
            && !awaited.is_empty()
        {
            let pipeline = Arc::clone(&self.pipeline);
            delivery.flush(Box::new(move |endpoint| {
                // Events that were decided are no longer waited for.
                for one in awaited {
                    pipeline.outcomes.give_up(&one, DeliveryReport::Queued { endpoint: endpoint.clone() });
                }
            }));
        }
    }

    /// Answers completed flushes. By now their results are committed, or cannot be.
    pub(super) fn answer_flushes(&mut self) {
        for (flush, endpoint) in std::mem::take(&mut self.commands.flushed) {
            self.pipeline.answer_flush(flush, endpoint);
        }
    }

    /// Answers all flushes at the end, also those that delivery has not received.
    pub(super) fn answer_all_flushes(&mut self) {
        let not_begun = std::mem::take(&mut self.commands.flushes).into_iter();
        self.commands.flushed.extend(not_begun.map(|flush| (flush, EndpointStatus::Closed)));
        self.answer_flushes();
    }
}

impl Pipeline {
    /// Number of events that are accepted and neither delivered nor given up, whether that is committed or not.
    pub(super) fn remaining(&self) -> u64 {
        let (own, accepted) = self.account();
        // By sequence numbers: the number of records in an arena of an earlier run is known only after its checkpoint.
        let in_journal = accepted.saturating_sub(own.accepted);
        let adopted = self.adopted_shard();
        let adopted = adopted.map_or(0, |(origin, shard)| self.leases.ledger(origin, || shard.ledger()).queued_events);
        own.queued_events + in_journal + adopted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sync_serves_all_that_wait_and_none_that_come_later() {
        let receipts = Receipts::default();
        let answers: Vec<_> = (1..=3).map(|seq| receipts.wait_for(seq, || ())).collect();
        receipts.synced_up_to(2);
        let resolved: Vec<_> = answers.iter().map(|answer| answer.try_get()).collect();
        assert_eq!(resolved, [Some(Ok(())), Some(Ok(())), None]);
        let late = receipts.wait_for(1, || panic!("already synced: no wake-up is needed"));
        assert_eq!(late.try_get(), Some(Ok(())));
        receipts.fail(&PersistError::Sync("broken".into()));
        assert_eq!(answers[2].try_get(), Some(Err(PersistError::Sync("broken".into()))));
        receipts.close();
        let after = receipts.wait_for(9, || panic!("there is no committer to wake"));
        assert_eq!(after.try_get(), Some(Err(PersistError::Closed)));
    }
}
