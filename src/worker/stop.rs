//! The order in which things end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::pending::{self, Pending};
use super::report::{Endpoint, FlushReport, ShutdownReport};
use super::{Notice, Pipeline, lock};
use crate::crash_point;

/// After the deadline, what was delivered at the last moment still gets so long to be committed.
const GRACE: Duration = Duration::from_millis(250);
/// The last owner that is dropped waits at most so long.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stopping {
    deadline: Instant,
    delivered_before: u64,
    /// Delivery had time, and what it leaves is worth a word.
    had_time: bool,
}

impl Pipeline {
    /// Sends what is queued; resolves when it was tried.
    pub(crate) fn flush(&self) -> Pending<FlushReport> {
        if self.finished.get().is_some() {
            let closed =
                FlushReport { delivered: 0, buried: 0, remaining: self.remaining(), endpoint: Endpoint::Closed };
            return pending::answered(closed);
        }
        let (promise, answer) = pending::pending();
        self.bell.ring(|wanted| wanted.flushes.push(promise));
        // It may have ended between the look above and the ring: then nobody hears it.
        if self.finished.get().is_some() { self.flush() } else { answer }
    }

    /// Closes intake, makes everything durable, delivers for at most `most`, and lets the queue go.
    pub(crate) fn shutdown(&self, most: Duration) -> Pending<ShutdownReport> {
        let (promise, answer) = pending::pending();
        self.bell.begin_stopping();
        // At once, and not when the committer comes to it: after `shutdown` was called, no capture is taken.
        self.shard.journal().close();
        self.admission.close();
        if let Some(report) = self.finished.get() {
            promise.answer(report.clone());
            return answer;
        }
        let now = self.options.clock.now();
        let deadline = now.checked_add(most).unwrap_or(now + Duration::from_secs(86_400 * 365));
        self.bell.ring(|wanted| {
            wanted.stop = Some(wanted.stop.map_or(deadline, |earlier| earlier.min(deadline)));
            wanted.stops.push(promise);
        });
        // It may have ended between the look above and the ring: then nobody hears it.
        if let Some(report) = self.finished.get() {
            return pending::answered(report.clone());
        }
        answer
    }
}

/// The last owner is gone: commits everything and lets the queues go, without sending. Waits a moment, so that a program that drops
/// a client and opens another finds them free, but never on one of our own threads.
pub(crate) fn release<'a>(pipelines: impl Iterator<Item = &'a Pipeline>) {
    let until = Instant::now() + RELEASE_WAIT;
    let released: Vec<_> = pipelines.map(|pipeline| pipeline.shutdown(Duration::ZERO)).collect();
    for pending in released {
        let _ = pending.wait(until.saturating_duration_since(Instant::now()));
    }
}

impl Committer {
    /// The first half: nothing is taken any more, everything taken is made durable, delivery gets its deadline.
    pub(super) fn begin_stop(&mut self) {
        let Some(deadline) = self.asked.stop.take() else { return };
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = stopping.deadline.min(deadline);
            if let Some(delivery) = self.pipeline.delivery() {
                delivery.stop(stopping.deadline, Box::new(|| ()));
            }
            return;
        }
        let pipeline = Arc::clone(&self.pipeline);
        pipeline.shard.journal().close();
        self.stopping =
            Some(Stopping { deadline, delivered_before: self.delivered(), had_time: deadline > self.now() });
        // A sync first: it is the least that can make everything safe, and it needs no room.
        if !pipeline.shard.is_volatile()
            && let Ok(seq) = pipeline.shard.sync()
        {
            pipeline.receipts.synced_up_to(seq);
        }
        if pipeline.shard.journal().uncarried().1 > 0 {
            self.carry();
        }
        crash_point::reach("stop.begun");
        let ended = Arc::downgrade(&pipeline);
        let Some(delivery) = pipeline.delivery() else { return };
        delivery.stop(
            deadline,
            Box::new(move || {
                if let Some(pipeline) = ended.upgrade() {
                    pipeline.bell.ring(|wanted| wanted.delivery_ended = true);
                }
            }),
        );
    }

    /// The second half, when delivery has ended or its time is up.
    pub(super) fn end_stop(&mut self) -> ControlFlow<()> {
        let Some(stopping) = &self.stopping else { return ControlFlow::Continue(()) };
        if !self.asked.delivery_ended && self.now() < stopping.deadline + GRACE {
            return ControlFlow::Continue(());
        }
        let (delivered_before, had_time) = (stopping.delivered_before, stopping.had_time);
        let pipeline = Arc::clone(&self.pipeline);
        if let Some(delivery) = pipeline.delivery() {
            delivery.abandon();
        }
        self.settle_adopted();
        if pipeline.shard.journal().uncarried().1 > 0 {
            self.carry();
        }
        self.settle_own();
        crash_point::reach("stop.committed");
        let report = ShutdownReport {
            delivered: self.delivered().saturating_sub(delivered_before),
            remaining: pipeline.remaining(),
            persisted: !pipeline.shard.is_volatile()
                && pipeline.receipts.synced() >= pipeline.shard.journal().last_seq(),
        };
        pipeline.abandon_adopted();
        pipeline.shard.close();
        lock(&pipeline.unsynced_since).take();
        pipeline.receipts.close();
        pipeline.verdicts.close();
        if pipeline.shard.is_volatile() && report.remaining > 0 {
            (pipeline.options.report)(Notice::LostInMemory { events: report.remaining });
        } else if had_time && report.remaining > 0 {
            (pipeline.options.report)(Notice::LeftOnDisk { events: report.remaining });
        }
        let _ = pipeline.finished.set(report.clone());
        let late = pipeline.bell.listen(Some(self.now()), || self.now());
        self.hear(late);
        for promise in std::mem::take(&mut self.asked.stops) {
            promise.answer(report.clone());
        }
        ControlFlow::Break(())
    }

    /// When the stop has to be looked at again.
    pub(super) fn stop_deadline(&self) -> Option<Instant> {
        self.stopping.as_ref().map(|stopping| stopping.deadline + GRACE)
    }

    fn delivered(&self) -> u64 {
        let adopted = self.pipeline.adopted_shard().map_or(0, |(_, shard)| shard.ledger().delivered);
        self.pipeline.shard.ledger().delivered + adopted
    }
}
