//! The order in which things end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::pending::{self, Pending};
use super::{Notice, Pipeline, lock};
use crate::delivery;
use crate::delivery::Source;
use crate::report::{EndpointStatus, ShutdownReport};
use crate::sys::crash_point;
use crate::sys::wording::time;

/// After the deadline, what was delivered at the last moment still gets so long to be committed.
const GRACE: Duration = Duration::from_millis(250);
/// The last owner that is dropped waits at most so long.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

const OPTED_OUT: &str = "the program has opted out, and nothing is sent until Client::opt_in is called";

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stopping {
    began: Instant,
    deadline: Instant,
    /// Delivery had time, and what it leaves is worth a word.
    had_time: bool,
}

impl Pipeline {
    /// Closes intake, makes everything durable, delivers for at most `most`, and lets the queue go.
    pub(crate) fn shutdown(&self, most: Duration) -> Pending<ShutdownReport> {
        let (promise, answer) = pending::pending();
        self.before_stop.get_or_init(|| self.leases.totals());
        self.mailbox.begin_stopping();
        // At once, and not when the committer comes to it: after `shutdown` was called, no capture is taken. A journal that somebody
        // holds for ever takes none either.
        self.shard.journal().close_within_lock_wait();
        self.admission.close();
        if let Some(report) = self.finished.get() {
            promise.answer(report.clone());
            return answer;
        }
        let now = self.options.clock.now();
        let deadline = now.checked_add(most).unwrap_or(now + Duration::from_secs(86_400 * 365));
        self.mailbox.ring(|wanted| {
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

impl Pipeline {
    /// Events taken since a stop was asked for.
    fn delivered_by_stop(&self) -> u64 {
        let before = self.before_stop.get().copied().unwrap_or_default();
        self.leases.totals().delivered.saturating_sub(before.delivered)
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
                delivery.stop(stopping.deadline, Box::new(|_| ()));
            }
            return;
        }
        let pipeline = Arc::clone(&self.pipeline);
        pipeline.shard.journal().close();
        self.stopping = Some(Stopping { began: self.now(), deadline, had_time: deadline > self.now() });
        // A sync first: it is the least that can make everything safe, and it needs no room.
        if !pipeline.shard.is_volatile()
            && let Ok(seq) = pipeline.shard.sync()
        {
            pipeline.receipts.synced_up_to(seq);
        }
        if pipeline.shard.journal().journaled().1 > 0 {
            self.checkpoint();
        }
        crash_point::reach("stop.begun");
        let ended = Arc::downgrade(&pipeline);
        pipeline.stop_loading();
        let Some(delivery) = pipeline.delivery() else { return };
        delivery.stop(
            deadline,
            Box::new(move |endpoint| {
                if let Some(pipeline) = ended.upgrade() {
                    pipeline.mailbox.ring(|wanted| wanted.delivery_ended = Some(endpoint));
                }
            }),
        );
    }

    /// The second half, when delivery has ended or its time is up.
    pub(super) fn end_stop(&mut self) -> ControlFlow<()> {
        let Some(stopping) = &self.stopping else { return ControlFlow::Continue(()) };
        let loads = self.pipeline.definitions().is_some() && !self.asked.loading_ended;
        let goes_on = self.asked.delivery_ended.is_none() || loads;
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
        let found = self.asked.delivery_ended.take().unwrap_or_else(|| delivery::EndpointStatus::Down {
            reason: "the delivery did not end in time, because the machine is overloaded or a callback of the program does not return".to_owned(),
            until: None,
        });
        let report = ShutdownReport {
            delivered: pipeline.delivered_by_stop(),
            remaining,
            endpoint: match pipeline.endpoint(found) {
                // What was not tried tells nothing.
                EndpointStatus::Up if !had_time && remaining > 0 => EndpointStatus::Closed,
                endpoint => endpoint,
            },
            persisted: !pipeline.shard.is_volatile()
                && pipeline.receipts.synced() >= pipeline.shard.journal().last_seq(),
        };
        pipeline.orphans.end();
        pipeline.abandon_adopted();
        pipeline.shard.close();
        lock(&pipeline.unsynced_since).take();
        pipeline.receipts.close();
        pipeline.outcomes.close();
        if pipeline.shard.is_volatile() && report.remaining > 0 {
            (pipeline.options.report)(Notice::LostInMemory { events: report.remaining });
        } else if had_time && report.remaining > 0 {
            let took = self.now().saturating_duration_since(began);
            let why = if pipeline.is_held() { OPTED_OUT.to_owned() } else { why_left(&report.endpoint, took, most) };
            let path = pipeline.shard.dir().clone();
            (pipeline.options.report)(Notice::LeftOnDisk { events: report.remaining, path, why });
        }
        (pipeline.options.report)(Notice::Ended);
        let _ = pipeline.finished.set(report.clone());
        let late = pipeline.mailbox.listen(Some(self.now()), || self.now());
        self.hear(late);
        self.answer_all_flushes();
        for promise in std::mem::take(&mut self.asked.stops) {
            promise.answer(report.clone());
        }
        ControlFlow::Break(())
    }

    /// When the stop has to be looked at again.
    pub(super) fn stop_deadline(&self) -> Option<Instant> {
        self.stopping.as_ref().map(|stopping| stopping.deadline + GRACE)
    }
}

/// Why a stop that took so long, of the time that it had at most, has left events: what stood in the way, not what it ran into.
fn why_left(endpoint: &EndpointStatus, took: Duration, most: Duration) -> String {
    let is_time_up = took >= most;
    let given = time(most);
    let after =
        if is_time_up { format!("within {given}") } else { format!("and delivery gave up after {}", time(took)) };
    match endpoint {
        EndpointStatus::Paused { reason, .. } => format!("requests are refused ({reason})"),
        EndpointStatus::Refusing { reason } => format!("the server rejects what is left ({reason})"),
        EndpointStatus::Down { reason, retry_in } => {
            let said = if reason.is_empty() { "no attempt was possible" } else { reason };
            let next = match retry_in {
                Some(wait) if !is_time_up && !wait.is_zero() => format!(", the next attempt is due in {}", time(*wait)),
                _ => String::new(),
            };
            format!("the endpoint did not take them {after} ({said}{next})")
        }
        EndpointStatus::Up | EndpointStatus::Closed | EndpointStatus::Forked if is_time_up => {
            format!(
                "the time given to the shutdown ({given}) was used up; give it more, or raise Config::shutdown_timeout"
            )
        }
        EndpointStatus::Up | EndpointStatus::Closed | EndpointStatus::Forked => {
            "they were not sent before it ended".to_owned()
        }
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
