//! What others may know of the delivery: statistics, and what must survive a restart.

use std::time::Instant;

use super::engine::{Engine, now};
use super::flush::EndpointStatus;
use super::pace::Health;
use crate::sys::clock::WallNanos;

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
    /// Nothing to send but what is stepped over: refused without evidence against it, or failing while others pass.
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
    /// Outages counted since the last success.
    pub(crate) consecutive_failures: u32,
    /// Outages counted in this process, those counted above included.
    pub(crate) failed_attempts: u64,
    /// Events that are stepped over.
    pub(crate) suspected: u64,
    /// What the last failure or refusal was.
    pub(crate) last_error: Option<String>,
    /// When the endpoint last accepted something.
    pub(crate) last_success: Option<WallNanos>,
}

/// The pace, for the queue to remember.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PaceState {
    /// What it is doing.
    pub(crate) phase: Phase,
    /// The server asked not to be called before this wall time; given back in `EngineParts::next_attempt` at the next start. Parks
    /// are not kept: a restart is somebody's attempt to make things work.
    pub(crate) next_attempt: Option<WallNanos>,
}

impl Engine {
    /// The endpoint, as a flush or a stop is told.
    pub(super) fn endpoint(&self) -> EndpointStatus {
        let reason = || self.state.last_error.clone().unwrap_or_default();
        match self.phase() {
            Phase::Idle | Phase::Sending | Phase::Quarantined { .. } => {
                let (aside, accepted) = (&self.intake.aside, self.intake.accepted);
                if aside.has_unproven_suspects(accepted) && aside.stepped_over(accepted, now()).is_some() {
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
        let hold = self.pace.active_hold(now);
        let until = |at: Instant| self.wall_of(hold.map_or(at, |hold| hold.max(at)), now, wall);
        match (self.pace.health(), hold) {
            (Health::Backoff { until: at }, _) => Phase::Backoff { until: until(at) },
            (Health::Cooldown { until: at }, _) => Phase::Cooldown { until: until(at) },
            (Health::Paused { status, until: at }, _) => Phase::Paused { status, until: until(at) },
            (Health::Up, Some(hold)) => Phase::Cooldown { until: until(hold) },
            (Health::Up, None) if self.intake.has_work() || !self.intake.loaded.is_empty() => Phase::Sending,
            (Health::Up, None) => match self.intake.aside.stepped_over(self.intake.accepted, now) {
                Some((_, at)) => Phase::Quarantined { until: self.wall_of(at, now, wall) },
                None => Phase::Idle,
            },
        }
    }

    fn wall_of(&self, at: Instant, now: Instant, wall: WallNanos) -> WallNanos {
        let ahead = at.saturating_duration_since(now).as_nanos();
        wall.saturating_add(i64::try_from(ahead).unwrap_or(i64::MAX))
    }

    /// Tells handle and source what has changed.
    pub(super) fn publish(&mut self) {
        let (now, phase) = (now(), self.phase());
        // Computed again at each turn a wall time would differ by nanoseconds: what has not changed keeps its old value.
        let same = std::mem::discriminant(&phase) == std::mem::discriminant(&self.remembered.phase);
        let failures = self.pace.consecutive_failures();
        let changed = !same || failures != self.state.consecutive_failures;
        let hold = self.pace.active_hold(now);
        if changed || hold.is_some() != self.remembered.next_attempt.is_some() {
            let next_attempt = hold.map(|hold| self.wall_of(hold, now, self.clock.wall_nanos()));
            self.remembered = PaceState { phase, next_attempt };
            self.source.pace(&self.remembered);
        }
        self.state.phase = self.remembered.phase;
        self.state.suspected =
            self.intake.aside.stepped_over(self.intake.accepted, now).map_or(0, |(events, _)| events);
        self.state.consecutive_failures = failures;
        self.shared.publish(self.state.clone());
    }
}
