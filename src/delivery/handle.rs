//! The handle by which other threads talk to the engine, and the state that they see. No call waits.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::engine::{Engine, now};
use super::flush::EndpointStatus;
use super::pace::Health;
use crate::sys::clock::WallNanos;

/// Called at the end of a flush or of the engine, with the endpoint's state.
pub(crate) type Done = Box<dyn FnOnce(EndpointStatus) + Send>;

/// A handle to the engine. Clones refer to the same engine. No call waits.
#[derive(Clone)]
pub(crate) struct DeliveryHandle {
    shared: Arc<Shared>,
}

impl DeliveryHandle {
    /// A handle without an engine.
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// The engine's side.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Accepts messages for the next engine, after one has ended. Returns `false` if no other is wanted.
    pub(super) fn reopen(&self) -> bool {
        let mut inbox = self.shared.inbox();
        inbox.closed = inbox.is_ending();
        inbox.committed = true;
        !inbox.closed
    }

    /// Resolves when no engine is wanted any more.
    pub(super) async fn ending(&self) {
        while !self.shared.inbox().is_ending() {
            self.shared.wake.notified().await;
        }
    }

    /// There are new chunks.
    pub(crate) fn committed(&self) {
        self.post(|inbox| inbox.committed = true);
    }

    /// Sends what is committed now. `done` is called on the engine's task, or here if the engine has ended.
    pub(crate) fn flush(&self, done: Done) {
        let mut done = Some(done);
        self.post(|inbox| inbox.flushes.extend(done.take_if(|_| !inbox.closed)));
        if let Some(done) = done {
            call(done, EndpointStatus::Stopped);
        }
    }

    /// Delivers what it can until `deadline`, acks what is decided, and ends. A second call can only bring the deadline
    /// forward.
    pub(crate) fn stop(&self, deadline: Instant, done: Done) {
        let mut done = Some(done);
        self.post(|inbox| {
            inbox.stop = Some(inbox.stop.map_or(deadline, |earlier| earlier.min(deadline)));
            inbox.stopped.extend(done.take_if(|_| !inbox.closed));
        });
        if let Some(done) = done {
            call(done, EndpointStatus::Stopped);
        }
    }

    /// Ends at once and acks nothing more.
    pub(crate) fn abandon(&self) {
        self.post(|inbox| inbox.abandoned = true);
    }

    /// A snapshot for statistics.
    pub(crate) fn state(&self) -> DeliveryState {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes the engine: the program has opted out, or the clock was moved.
    pub(crate) fn look_again(&self) {
        self.post(|_| ());
    }

    /// The thread of the engine's runtime goes to sleep, or was woken.
    #[cfg(feature = "testing")]
    pub(crate) fn parked(&self, parked: bool) {
        self.shared.inbox().parked = parked;
    }

    /// Number of messages so far, if the engine has nothing to do until a timer or a response.
    #[cfg(feature = "testing")]
    pub(crate) fn asleep(&self) -> Option<u64> {
        let inbox = self.shared.inbox();
        (inbox.closed || (inbox.parked && inbox.received == inbox.posted)).then_some(inbox.posted)
    }

    fn post(&self, change: impl FnOnce(&mut Inbox)) {
        {
            let mut inbox = self.shared.inbox();
            change(&mut inbox);
            #[cfg(feature = "testing")]
            {
                inbox.posted += 1;
            }
        }
        self.shared.wake.notify_one();
    }
}

impl Debug for DeliveryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryHandle").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// The messages to the engine.
#[derive(Default)]
pub(super) struct Inbox {
    /// There are new chunks.
    pub(super) committed: bool,
    /// Flushes that begin.
    pub(super) flushes: Vec<Done>,
    /// The deadline of a stop.
    pub(super) stop: Option<Instant>,
    /// Called when the engine ends.
    pub(super) stopped: Vec<Done>,
    /// The endpoint's state at the end of a stop.
    pub(super) found: Option<EndpointStatus>,
    /// End at once.
    pub(super) abandoned: bool,
    closed: bool,
    /// Number of messages.
    #[cfg(feature = "testing")]
    posted: u64,
    /// Number of messages that the engine has received.
    #[cfg(feature = "testing")]
    received: u64,
    #[cfg(feature = "testing")]
    parked: bool,
}

impl Inbox {
    /// The engine has received all messages.
    #[cfg(feature = "testing")]
    pub(super) fn note_received(&mut self) {
        self.received = self.posted;
    }

    fn is_ending(&self) -> bool {
        self.stop.is_some() || self.abandoned
    }
}

/// The engine's side of the handle.
#[derive(Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    state: Mutex<DeliveryState>,
    /// Wakes the engine once for any number of messages.
    pub(super) wake: Notify,
}

impl Shared {
    /// The messages. The lock is held for a few instructions only.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a snapshot.
    pub(super) fn publish(&self, state: DeliveryState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Accepts no more messages and answers those that wait. Also reached when the runtime drops the engine's task.
    pub(super) fn close(&self) {
        let (flushes, stopped, found) = {
            let mut inbox = self.inbox();
            inbox.closed = true;
            let found = inbox.found.take().unwrap_or(EndpointStatus::Stopped);
            (std::mem::take(&mut inbox.flushes), std::mem::take(&mut inbox.stopped), found)
        };
        for done in flushes {
            call(done, EndpointStatus::Stopped);
        }
        for done in stopped {
            call(done, found.clone());
        }
    }
}

/// Calls back, and catches a panic of the callback. Returns `false` if there was one.
pub(super) fn call(done: Done, endpoint: EndpointStatus) -> bool {
    crate::sys::reentry::caught(|| done(endpoint)).is_some()
}

/// What the delivery is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing to send.
    #[default]
    Idle,
    /// The endpoint is believed to work.
    Sending,
    /// The last attempt failed; the next is due at `until`.
    Backoff {
        /// Wall time.
        until: WallNanos,
    },
    /// A whole cycle of attempts failed.
    Cooldown {
        /// Wall time.
        until: WallNanos,
    },
    /// Everything that is queued is in quarantine.
    Quarantined {
        /// Wall time.
        until: WallNanos,
    },
    /// The key or the quota is refused.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// Wall time.
        until: WallNanos,
    },
}

/// A snapshot for statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeliveryState {
    /// What it is doing.
    pub(crate) phase: Phase,
    /// Failed attempts since the last success.
    pub(crate) consecutive_failures: u32,
    /// Failed attempts of this process, including those.
    pub(crate) failed_attempts: u64,
    /// Number of quarantined events that are skipped.
    pub(crate) quarantined: u64,
    /// The last failure or refusal.
    pub(crate) last_error: Option<String>,
    /// The time since which the endpoint has failed, if it does.
    pub(crate) failing_since: Option<Instant>,
    /// When the endpoint last accepted something.
    pub(crate) last_success: Option<WallNanos>,
}

/// The part of the pace that the queue stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PaceState {
    /// What it is doing.
    pub(crate) phase: Phase,
    /// The `Retry-After` deadline, which the next process honours (`EngineParts::next_attempt`). Cooldowns are not
    /// stored: a restart may be an attempt to repair something.
    pub(crate) next_attempt: Option<WallNanos>,
}

impl Engine {
    /// The endpoint's state, for the end of a flush or a stop.
    pub(super) fn endpoint(&self) -> EndpointStatus {
        let reason = || self.state.last_error.clone().unwrap_or_default();
        match self.phase() {
            Phase::Idle | Phase::Sending | Phase::Quarantined { .. } => {
                let (quarantine, accepted) = (&self.intake.quarantine, self.intake.accepted);
                if quarantine.has_unproven(accepted) && quarantine.skipped(accepted, now()).is_some() {
                    EndpointStatus::Refusing { reason: reason() }
                } else {
                    EndpointStatus::Up
                }
            }
            Phase::Paused { status, until } => {
                EndpointStatus::Paused { status, reason: self.pause_reason.clone(), until: Some(until) }
            }
            Phase::Backoff { until } | Phase::Cooldown { until } => {
                EndpointStatus::Down { reason: reason(), until: Some(until) }
            }
        }
    }

    fn phase(&self) -> Phase {
        let (now, wall) = (now(), self.clock.wall_nanos());
        let retry_after_until = self.pace.retry_after_deadline(now);
        let until = |at: Instant| {
            self.wall_of(retry_after_until.map_or(at, |retry_after_until| retry_after_until.max(at)), now, wall)
        };
        match (self.pace.health(), retry_after_until) {
            (Health::Backoff { until: at }, _) => Phase::Backoff { until: until(at) },
            (Health::Cooldown { until: at }, _) => Phase::Cooldown { until: until(at) },
            (Health::Paused { status, until: at }, _) => Phase::Paused { status, until: until(at) },
            (Health::Up, Some(retry_after_until)) => Phase::Cooldown { until: until(retry_after_until) },
            (Health::Up, None) if self.intake.has_work() || !self.intake.loaded.is_empty() => Phase::Sending,
            (Health::Up, None) => match self.intake.quarantine.skipped(self.intake.accepted, now) {
                Some((_, at)) => Phase::Quarantined { until: self.wall_of(at, now, wall) },
                None => Phase::Idle,
            },
        }
    }

    fn wall_of(&self, at: Instant, now: Instant, wall: WallNanos) -> WallNanos {
        let ahead = at.saturating_duration_since(now).as_nanos();
        wall.saturating_add(i64::try_from(ahead).unwrap_or(i64::MAX))
    }

    /// Publishes what has changed to the handle and the source.
    pub(super) fn publish(&mut self) {
        let (now, phase) = (now(), self.phase());
        // A wall time that is computed again differs by nanoseconds, so a phase that has not changed keeps its old one.
        let same = std::mem::discriminant(&phase) == std::mem::discriminant(&self.reported_pace.phase);
        let failures = self.pace.consecutive_failures();
        let changed = !same || failures != self.state.consecutive_failures;
        let retry_after_until = self.pace.retry_after_deadline(now);
        if changed || retry_after_until.is_some() != self.reported_pace.next_attempt.is_some() {
            let next_attempt = retry_after_until
                .map(|retry_after_until| self.wall_of(retry_after_until, now, self.clock.wall_nanos()));
            self.reported_pace = PaceState { phase, next_attempt };
            self.source.pace(&self.reported_pace);
        }
        self.state.phase = self.reported_pace.phase;
        self.state.quarantined =
            self.intake.quarantine.skipped(self.intake.accepted, now).map_or(0, |(events, _)| events);
        self.state.consecutive_failures = failures;
        self.shared.publish(self.state.clone());
    }
}
