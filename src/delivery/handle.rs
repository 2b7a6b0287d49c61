//! The handle by which other threads talk to the engine, and the state that they see. No call waits.

use std::fmt::{self, Debug};
use std::mem::{discriminant, take};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::engine::{Engine, now};
use super::pace::Health;
use crate::report::EndpointStatus;
use crate::sys::clock::WallNanos;

/// Called at the end of a flush or of the engine, with the endpoint's state.
pub(crate) type Done = Box<dyn FnOnce(EndpointStatus) + Send>;

/// A handle to the engine. Clones refer to the same engine. No call waits.
#[derive(Clone, Default)]
pub(crate) struct DeliveryHandle {
    inbox: Arc<Mutex<Inbox>>,
    state: Arc<Mutex<DeliveryState>>,
    /// Wakes the engine once for any number of messages.
    pub(super) wake: Arc<Notify>,
}

impl DeliveryHandle {
    /// Tells the engine that there are new chunks.
    pub(crate) fn committed(&self) {
        self.post(|inbox| inbox.committed = true);
    }

    /// Sends what is committed now. `done` is called on the engine's task, or here if the engine has ended.
    pub(crate) fn flush(&self, done: Done) {
        let mut done = Some(done);
        self.post(|inbox| inbox.flushes.extend(done.take_if(|_| !inbox.closed)));
        if let Some(done) = done {
            call(done, EndpointStatus::Closed);
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
            call(done, EndpointStatus::Closed);
        }
    }

    /// Ends at once and acks nothing more.
    pub(crate) fn abandon(&self) {
        self.post(|inbox| inbox.abandoned = true);
    }

    /// A snapshot for statistics.
    pub(crate) fn state(&self) -> DeliveryState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the engine has panicked and the next one is not running yet.
    pub(crate) fn is_restarting(&self) -> bool {
        let inbox = self.inbox();
        inbox.closed && !inbox.is_ending()
    }

    /// Wakes the engine: the program has opted out, or the clock was moved.
    pub(crate) fn look_again(&self) {
        self.post(|_| ());
    }

    /// Notes whether the thread of the engine's runtime sleeps.
    #[cfg(feature = "testing")]
    pub(crate) fn parked(&self, parked: bool) {
        self.inbox().parked = parked;
    }

    /// Number of messages so far, if the engine has nothing to do until a timer or a response.
    #[cfg(feature = "testing")]
    pub(crate) fn asleep(&self) -> Option<u64> {
        let inbox = self.inbox();
        (inbox.closed || (inbox.parked && inbox.received == inbox.posted)).then_some(inbox.posted)
    }

    fn post(&self, change: impl FnOnce(&mut Inbox)) {
        {
            let mut inbox = self.inbox();
            change(&mut inbox);
            #[cfg(feature = "testing")]
            {
                inbox.posted += 1;
            }
        }
        self.wake.notify_one();
    }
}

/// The engine's side.
impl DeliveryHandle {
    /// The messages. The lock is held for a few instructions only.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts no more messages and answers those that wait. Also reached when the runtime drops the engine's task.
    pub(super) fn close(&self) {
        let (flushes, stopped, found) = {
            let mut inbox = self.inbox();
            inbox.closed = true;
            let found = inbox.found.take().unwrap_or(EndpointStatus::Closed);
            (take(&mut inbox.flushes), take(&mut inbox.stopped), found)
        };
        for done in flushes {
            call(done, EndpointStatus::Closed);
        }
        for done in stopped {
            call(done, found.clone());
        }
    }

    /// Accepts messages for the next engine, after one has ended. Returns `false` if no other is wanted.
    pub(super) fn reopen(&self) -> bool {
        let mut inbox = self.inbox();
        inbox.closed = inbox.is_ending();
        inbox.committed = true;
        !inbox.closed
    }

    /// Resolves when no engine is wanted any more.
    pub(super) async fn ending(&self) {
        while !self.inbox().is_ending() {
            self.wake.notified().await;
        }
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
    /// Notes that the engine has received all messages.
    #[cfg(feature = "testing")]
    pub(super) fn note_received(&mut self) {
        self.received = self.posted;
    }

    fn is_ending(&self) -> bool {
        self.stop.is_some() || self.abandoned
    }
}

/// Calls back, and catches a panic of the callback. Returns `false` if there was one.
pub(super) fn call(done: Done, endpoint: EndpointStatus) -> bool {
    crate::sys::reentry::caught(|| done(endpoint)).is_some()
}

/// What the delivery is doing. `until` is wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing to send.
    #[default]
    Idle,
    /// The endpoint is believed to work. Also before the first request of a process with a backlog, which is delayed.
    Sending,
    /// The last attempt failed; the next is due at `until`.
    Backoff { until: WallNanos },
    /// A whole cycle of attempts failed.
    Cooldown { until: WallNanos },
    /// Everything that is queued is in quarantine.
    Quarantined { until: WallNanos },
    /// The key, the quota or the encoding is refused, with this status.
    Paused { status: u16, until: WallNanos },
}

/// A snapshot for statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeliveryState {
    /// What it is doing.
    pub(crate) phase: Phase,
    /// Failed attempts since the last success.
    pub(crate) consecutive_failures: u32,
    /// Failed attempts of this process, including `consecutive_failures`.
    pub(crate) failed_attempts: u64,
    /// Number of quarantined events that are skipped.
    pub(crate) quarantined: u64,
    /// The last failure or refusal.
    pub(crate) last_error: Option<String>,
    /// When the endpoint began to fail; `None` while it works.
    pub(crate) failing_since: Option<Instant>,
    /// When the endpoint last accepted something.
    pub(crate) last_success: Option<WallNanos>,
}

impl Engine {
    /// The endpoint's state, for the end of a flush or a stop.
    pub(super) fn endpoint(&self) -> EndpointStatus {
        let now = now();
        let reason = || self.state.last_error.clone().unwrap_or_default();
        let retry_in = self.pace.waits_until(now).map(|at| at.saturating_duration_since(now));
        let (quarantine, accepted) = (&self.intake.quarantine, self.intake.accepted);
        match self.pace.health() {
            Health::Paused { status, .. } => {
                EndpointStatus::Paused { status, reason: self.pause_reason.clone(), retry_in }
            }
            Health::Backoff { .. } if self.is_first_send_delayed(now) => EndpointStatus::Up,
            Health::Backoff { .. } | Health::Cooldown { .. } => EndpointStatus::Down { reason: reason(), retry_in },
            Health::Up if retry_in.is_some() => EndpointStatus::Down { reason: reason(), retry_in },
            Health::Up if quarantine.has_unproven(accepted) && quarantine.skipped(accepted, now).is_some() => {
                EndpointStatus::Refusing { reason: reason() }
            }
            Health::Up => EndpointStatus::Up,
        }
    }

    fn phase(&self, now: Instant) -> Phase {
        let waits_until = self.pace.waits_until(now);
        let until = self.wall_of(waits_until.unwrap_or(now), now);
        match self.pace.health() {
            Health::Backoff { .. } if self.is_first_send_delayed(now) => Phase::Sending,
            Health::Backoff { .. } => Phase::Backoff { until },
            Health::Cooldown { .. } => Phase::Cooldown { until },
            Health::Paused { status, .. } => Phase::Paused { status, until },
            Health::Up if waits_until.is_some() => Phase::Cooldown { until },
            Health::Up if self.intake.has_work() || !self.intake.loaded.is_empty() => Phase::Sending,
            Health::Up => match self.intake.quarantine.skipped(self.intake.accepted, now) {
                Some((_, at)) => Phase::Quarantined { until: self.wall_of(at, now) },
                None => Phase::Idle,
            },
        }
    }

    /// Whether delivery waits for nothing but the jitter before the first request of a process with a backlog.
    fn is_first_send_delayed(&self, now: Instant) -> bool {
        self.pace.consecutive_failures() == 0 && self.pace.retry_after_deadline(now).is_none()
    }

    fn wall_of(&self, at: Instant, now: Instant) -> WallNanos {
        let ahead = at.saturating_duration_since(now).as_nanos();
        self.clock.wall_nanos().saturating_add(i64::try_from(ahead).unwrap_or(i64::MAX))
    }

    /// Publishes what has changed to the handle and the source.
    pub(super) fn publish(&mut self) {
        let now = now();
        let (phase, failures) = (self.phase(now), self.pace.consecutive_failures());
        let retry_after_until = self.pace.retry_after_deadline(now);
        // A wall time that is computed again differs by nanoseconds, so a phase that has not changed keeps its old one.
        let has_changed = discriminant(&phase) != discriminant(&self.state.phase)
            || failures != self.state.consecutive_failures
            || retry_after_until.is_some() != self.next_attempt.is_some();
        if has_changed {
            self.state.phase = phase;
            self.next_attempt = retry_after_until.map(|at| self.wall_of(at, now));
        }
        self.state.quarantined =
            self.intake.quarantine.skipped(self.intake.accepted, now).map_or(0, |(events, _)| events);
        self.state.consecutive_failures = failures;
        *self.handle.state.lock().unwrap_or_else(PoisonError::into_inner) = self.state.clone();
        // Last: who is woken by the change finds the new state.
        if has_changed {
            self.source.pace(phase, self.next_attempt);
        }
    }
}
