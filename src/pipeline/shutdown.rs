//! Shutdown of a lane (one pipeline of a client: that of ordinary events or that of AI events). Intake ends, everything
//! is synced and checkpointed, delivery goes on until its deadline, its results are committed, and the queue is
//! released.
//!
//! What is not delivered by then stays on disk. A second call waits for the first, and can only bring the deadline
//! forward. The shutdown of a client has the same deadline in all lanes, which end independently of each other.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::pending::{self, Pending, Promise};
use super::shared::{Pipeline, lock};
use super::threads;
use crate::delivery::Source;
use crate::report::{Diagnostic, EndpointStatus, ShutdownReport};
use crate::sys::crash_point;
use crate::sys::wording::time;

/// Time after the deadline in which results of the last moment are still committed.
const GRACE: Duration = Duration::from_millis(250);
/// Number of failures of storage after which a shutdown no longer waits for events that are only in the journal: about
/// half a second.
const FAILURES_MAX: u32 = 3;
/// Longest wait when the last owner of a client is dropped.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

const OPTED_OUT: &str = "the program has opted out, and nothing is sent until Client::opt_in is called";

/// A shutdown that is under way.
#[derive(Debug)]
pub(super) struct Stopping {
    began: Instant,
    deadline: Instant,
    /// Delivery had time, so events that it leaves are reported.
    had_time: bool,
    /// Failures of storage since it began.
    pub(super) storage_failures: u32,
}

impl Pipeline {
    /// Ends intake, makes everything durable, delivers for at most `most`, and releases the queue.
    pub(crate) fn shutdown(&self, most: Duration) -> Pending<ShutdownReport> {
        let (promise, answer) = pending::pending();
        self.begin_shutdown(most, promise);
        answer
    }

    /// Ends intake at once, without waiting for the committer: no event is accepted after `shutdown` was called. If the
    /// journal's lock cannot be taken in time, the journal is not marked as closed, but it accepts nothing either,
    /// since an append needs the same lock.
    pub(crate) fn close_intake(&self) {
        self.before_stop.get_or_init(|| self.leases.totals());
        self.mailbox.begin_stopping();
        self.shard.journal().close_within_lock_wait();
        self.admission.close();
    }

    /// [`shutdown`](Self::shutdown) with the report sent to `promise`.
    pub(crate) fn begin_shutdown(&self, most: Duration, promise: Promise<ShutdownReport>) {
        self.close_intake();
        let now = self.options.clock.now();
        let deadline = now.checked_add(most).unwrap_or(now + Duration::from_secs(86_400 * 365));
        self.mailbox.send(|commands| {
            commands.stop = Some(commands.stop.map_or(deadline, |earlier| earlier.min(deadline)));
            commands.stops.push(promise);
        });
        self.answer_late_commands();
    }
}

impl Pipeline {
    /// Answers the commands that have come since the committer ended, if it has. Called after each command that has to
    /// be answered.
    pub(super) fn answer_late_commands(&self) {
        let Some(report) = self.finished.get() else { return };
        let late = self.mailbox.take();
        for flush in late.flushes {
            self.answer_flush(flush, EndpointStatus::Closed);
        }
        for (flush, endpoint) in late.flushed {
            self.answer_flush(flush, endpoint);
        }
        for promise in late.stops {
            promise.answer(report.clone());
        }
        // Dropping the late commands answers those for dead letters with "closed".
    }

    /// Events delivered since the first shutdown request.
    fn delivered_by_stop(&self) -> u64 {
        let before = self.before_stop.get().copied().unwrap_or_default();
        self.leases.totals().delivered.saturating_sub(before.delivered)
    }
}

/// Called when the last owner of a client is dropped: commits everything and releases the queues, without sending.
/// Waits a moment, so that a program that drops a client and opens another finds the queues free, but never on a thread
/// of the library.
pub(crate) fn release<'a>(pipelines: impl Iterator<Item = &'a Pipeline>) {
    let until = Instant::now() + RELEASE_WAIT;
    let released: Vec<_> = pipelines.map(|pipeline| pipeline.shutdown(Duration::ZERO)).collect();
    for pending in released {
        let _ = pending.wait(until.saturating_duration_since(Instant::now()));
    }
}

impl Committer {
    /// The first half: intake ends, everything accepted is made durable, delivery gets its deadline.
    pub(super) fn begin_stop(&mut self) {
        let Some(deadline) = self.commands.stop.take() else { return };
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = stopping.deadline.min(deadline);
            if let Some(delivery) = self.pipeline.delivery() {
                delivery.stop(stopping.deadline, Box::new(|_| ()));
            }
            return;
        }
        let pipeline = Arc::clone(&self.pipeline);
        pipeline.shard.journal().close();
        self.stopping =
            Some(Stopping { began: self.now(), deadline, had_time: deadline > self.now(), storage_failures: 0 });
        // A sync first: it alone makes everything durable, and it needs no disk space.
        if !pipeline.shard.is_volatile()
            && let Ok(seq) = pipeline.shard.sync()
        {
            pipeline.receipts.synced_up_to(seq);
        }
        if pipeline.shard.journal().journaled().1 > 0 {
            self.checkpoint();
        }
        crash_point::reach("stop.begun");
        self.note_catching_up();
        let ended = Arc::downgrade(&pipeline);
        pipeline.stop_loading();
        let Some(delivery) = pipeline.delivery() else { return };
        delivery.stop(
            deadline,
            Box::new(move |endpoint| {
                if let Some(pipeline) = ended.upgrade() {
                    pipeline.mailbox.send(|commands| commands.delivery_ended = Some(endpoint));
                }
            }),
        );
    }

    /// The second half, after delivery has ended or its time is up.
    pub(super) fn end_stop(&mut self) -> ControlFlow<()> {
        let Some(stopping) = &self.stopping else { return ControlFlow::Continue(()) };
        let loads = self.pipeline.definitions().is_some() && !self.commands.loading_ended;
        let goes_on = self.commands.delivery_ended.is_none() || loads;
        if goes_on && self.now() < stopping.deadline + GRACE {
            return ControlFlow::Continue(());
        }
        let (had_time, began) = (stopping.had_time, stopping.began);
        let most = stopping.deadline.saturating_duration_since(began);
        let pipeline = Arc::clone(&self.pipeline);
        if let Some(delivery) = pipeline.delivery() {
            delivery.abandon();
        }
        if let Some(loader) = pipeline.definitions() {
            loader.abandon();
        }
        self.ack_adopted();
        if pipeline.shard.journal().journaled().1 > 0 {
            self.checkpoint();
        }
        self.ack_own();
        crash_point::reach("stop.committed");
        let remaining = pipeline.remaining();
        let found = self.commands.delivery_ended.take().unwrap_or_else(|| EndpointStatus::Down {
            reason: "the delivery did not end in time, because the machine is overloaded or a callback of the program does not return".to_owned(),
            retry_in: None,
        });
        let report = ShutdownReport {
            delivered: pipeline.delivered_by_stop(),
            remaining,
            endpoint: match found {
                // Nothing was tried, so nothing is known about the endpoint.
                EndpointStatus::Up if !had_time && remaining > 0 => EndpointStatus::Closed,
                endpoint => endpoint,
            },
            persisted: !pipeline.shard.is_volatile()
                && pipeline.receipts.synced() >= pipeline.shard.journal().last_seq(),
        };
        pipeline.orphans.end();
        pipeline.abandon_adopted();
        self.describe_end();
        self.close_shard();
        lock(&pipeline.unsynced_since).take();
        pipeline.receipts.close();
        pipeline.outcomes.close();
        if pipeline.shard.is_volatile() && report.remaining > 0 {
            (pipeline.options.report)(Diagnostic::MemoryQueueLost { events: report.remaining });
        } else if had_time && report.remaining > 0 {
            let took = self.now().saturating_duration_since(began);
            let why = if pipeline.is_held() { OPTED_OUT.to_owned() } else { why_left(&report.endpoint, took, most) };
            let path = pipeline.shard.dir().clone();
            (pipeline.options.report)(Diagnostic::LeftOnDisk { events: report.remaining, path, why });
        }
        (pipeline.options.ended)(&report, pipeline.shard.dir());
        let _ = pipeline.finished.set(report.clone());
        let late = pipeline.mailbox.take();
        self.receive(late);
        self.answer_all_flushes();
        for promise in std::mem::take(&mut self.commands.stops) {
            promise.answer(report.clone());
        }
        ControlFlow::Break(())
    }

    /// Notes whether a shutdown still has events in the journal that may come into the store before its deadline.
    pub(super) fn note_catching_up(&self) {
        let Some(stopping) = &self.stopping else { return };
        let pipeline = &self.pipeline;
        let journal = pipeline.shard.journal();
        let is_behind = journal.journaled().1 > 0 || journal.oldest_sealed().is_some();
        // Without room for an arena the disk is full, which half a second does not change.
        let may_succeed =
            self.reopening.is_some() || (stopping.storage_failures < FAILURES_MAX && self.swap_after.is_none());
        let is_catching_up = is_behind && may_succeed;
        if pipeline.is_catching_up.swap(is_catching_up, Ordering::AcqRel) && !is_catching_up {
            pipeline.committed();
        }
    }

    /// Closes the queue. If its store is being opened again, a thread of its own waits for that and closes it then: the
    /// disk may hang, and the other lanes must not wait for it. Until then the shard stays locked.
    fn close_shard(&self) {
        let shard = Arc::clone(&self.pipeline.shard);
        if self.reopening.is_none() {
            return shard.close();
        }
        // Without a thread the shard is released when the process ends.
        drop(threads::spawn("posthog-close", move || shard.close()));
    }

    /// When the second half of the shutdown starts at the latest; `None` if no shutdown is under way.
    pub(super) fn stop_deadline(&self) -> Option<Instant> {
        self.stopping.as_ref().map(|stopping| stopping.deadline + GRACE)
    }
}

/// Why a shutdown left events in the queue, given the time it took and the time it had. Names what prevented delivery
/// rather than the deadline, if that is known.
fn why_left(endpoint: &EndpointStatus, took: Duration, most: Duration) -> String {
    let is_time_up = took >= most;
    let given = time(most);
    let after =
        if is_time_up { format!("within {given}") } else { format!("and delivery gave up after {}", time(took)) };
    match endpoint {
        EndpointStatus::Paused { reason, .. } => format!("requests are refused ({reason})"),
        EndpointStatus::Refusing { reason } => format!("the server rejects what is left ({reason})"),
        EndpointStatus::Down { reason, retry_in } => {
            let last = if reason.is_empty() { "no attempt was possible" } else { reason };
            let next = match retry_in {
                Some(wait) if !is_time_up && !wait.is_zero() => format!(", the next attempt is due in {}", time(*wait)),
                _ => String::new(),
            };
            format!("the endpoint did not take them {after} ({last}{next})")
        }
        EndpointStatus::Up | EndpointStatus::Closed | EndpointStatus::Forked if is_time_up => {
            format!(
                "the time given to the shutdown ({given}) was used up; give it more, or raise Config::shutdown_timeout (POSTHOG_SHUTDOWN_TIMEOUT)"
            )
        }
        EndpointStatus::Up | EndpointStatus::Closed | EndpointStatus::Forked => {
            "they were not sent before it ended".to_owned()
        }
    }
}

#[cfg(test)]
#[path = "shutdown_tests.rs"]
mod tests;
