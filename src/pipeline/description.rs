//! What a lane says of itself on the status page of its queue: how delivery is, what the bounds are, why events are
//! dropped. An operator's tool reads it without a lock, also after the process has died.
//!
//! The committer writes it when it is awake anyway: before it falls asleep without a timer, so that the page stays true
//! while the lane is idle; when the pace of delivery has changed; and otherwise at most once a second. Nothing wakes
//! for it but the beginning and the end of an outage. An idle lane writes nothing.
//!
//! A page that only repeats the last good news would call a process well that hangs. So it also says by when the lane
//! writes again ([`LaneState::due_at`]): a reader that finds this time long past knows that the lane hangs.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::shared::Pipeline;
use crate::delivery::{DeliveryHandle, DeliveryState, Phase};
use crate::report::{DropReason, LanePhase, LaneState, StorageMode};
use crate::sys::clock::WallNanos;

/// Minimum time between two descriptions while nothing changes but counts.
const SPACING: Duration = Duration::from_secs(1);

/// When a lane was last described.
#[derive(Debug, Default)]
pub(super) struct Described {
    at: Option<Instant>,
    /// Whether the page said by when the lane writes again.
    is_due: bool,
}

impl Described {
    /// Whether the lane has to be described again.
    fn is_outdated(&self, now: Instant, has_changed: bool, sleeps_without_timer: bool) -> bool {
        let is_old = self.at.is_none_or(|at| now.saturating_duration_since(at) >= SPACING);
        has_changed || sleeps_without_timer || !self.is_due || is_old
    }
}

impl Committer {
    /// Describes the lane on the status page, if that is due. Called after its turn, when the time of the next is
    /// known.
    pub(super) fn describe(&mut self) {
        let pipeline = &self.pipeline;
        if !self.is_due || pipeline.shard.is_volatile() || pipeline.finished.get().is_some() {
            // In a lane that had no turn nothing has changed, and an idle lane writes nothing.
            return;
        }
        let now = pipeline.options.clock.now();
        let has_changed = pipeline.has_pace_changed.swap(false, Ordering::AcqRel);
        if self.described.is_outdated(now, has_changed, self.next_turn.is_none()) {
            let state = pipeline.description(self.next_turn);
            self.described = Described { at: Some(now), is_due: state.due_at.is_some() };
            pipeline.shard.mirror_owner(&state.to_words());
            // Without any these are zeros: the counters of an earlier run are not this one's.
            let counts = pipeline.drop_counts.get().map_or_else(|| vec![0; DropReason::COUNT], |counts| counts());
            pipeline.shard.mirror_counters(&counts);
        }
    }

    /// The lane begins a turn. If the page says that nothing is due, it says now that the end of the turn is: the turn
    /// may hang in a disk that does not respond.
    pub(super) fn describe_begin(&self) {
        let pipeline = &self.pipeline;
        if self.is_due && self.described.at.is_some() && !self.described.is_due && !pipeline.shard.is_volatile() {
            pipeline.shard.mirror_owner_number(LaneState::DUE_AT, pipeline.options.clock.wall_nanos() as u64);
        }
    }

    /// Describes the lane for the last time.
    pub(super) fn describe_end(&self) {
        let pipeline = &self.pipeline;
        if !pipeline.shard.is_volatile() {
            let state = LaneState { due_at: None, storage: StorageMode::Closed, ..pipeline.description(None) };
            pipeline.shard.mirror_owner(&state.to_words());
        }
    }
}

impl Pipeline {
    fn description(&self, next_turn: Option<Instant>) -> LaneState {
        let store = self.shard.open_store().filter(|_| !self.is_reopening.load(Ordering::Acquire));
        let file_bytes = store.and_then(|store| store.file_bytes().ok()).unwrap_or(0);
        let (limits, arena_bytes) = (&self.options.limits, self.options.queue.arena_bytes as u64);
        let delivery = self.delivery().map(DeliveryHandle::state).unwrap_or_default();
        let (now, at) = (self.options.clock.now(), self.options.clock.wall_nanos());
        LaneState {
            at,
            program: program().to_owned(),
            version: version(),
            phase: phase(delivery.phase),
            consecutive_failures: delivery.consecutive_failures,
            failed_attempts: delivery.failed_attempts,
            quarantined: delivery.quarantined,
            last_success: delivery.last_success,
            failing_since: delivery
                .failing_since
                .map(|since| at.saturating_sub(nanos(now.saturating_duration_since(since)))),
            restarts: self.delivery().is_some_and(DeliveryHandle::is_restarting),
            max_bytes: limits.row_bytes(file_bytes, arena_bytes),
            max_events: Some(limits.queue_events).filter(|most| *most != u64::MAX),
            used_bytes: self.shard.row_bytes().saturating_add(self.shard.journal().journaled_cost()),
            file_bytes,
            replayed: self.replayed.load(Ordering::Relaxed),
            adopted_events: self.adopted_shard().map_or(0, |(_, shard)| shard.ledger().queued_events),
            rejecting: self.rejecting(),
            storage: self.storage(),
            medium: Some(self.medium()),
            due_at: self.due_at(next_turn, &delivery, (now, at)),
            last_error: delivery.last_error,
        }
    }

    /// By when the committer writes to the page again, unless the process hangs. `None` while it waits for the program.
    fn due_at(
        &self,
        next_turn: Option<Instant>,
        delivery: &DeliveryState,
        (now, at): (Instant, WallNanos),
    ) -> Option<WallNanos> {
        let in_time = |wait: Duration| at.saturating_add(nanos(wait));
        let turn = next_turn.map(|turn| in_time(turn.saturating_duration_since(now)));
        let (ledger, accepted) = self.account();
        let has_events = ledger.queued_events > 0 || accepted > ledger.accepted;
        let attempt = match phase(delivery.phase) {
            // A request that is under way succeeds or fails, and either wakes the committer.
            LanePhase::Sending => Some(in_time(self.options.transport.request_timeout)),
            phase => phase.until(),
        };
        turn.max(attempt.filter(|_| has_events))
    }
}

fn phase(phase: Phase) -> LanePhase {
    match phase {
        Phase::Idle => LanePhase::Idle,
        Phase::Sending => LanePhase::Sending,
        Phase::Backoff { until } => LanePhase::Backoff { until },
        Phase::Cooldown { until } => LanePhase::Cooldown { until },
        Phase::Quarantined { until } => LanePhase::Quarantined { until },
        Phase::Paused { status, until } => LanePhase::Paused { status, until },
    }
}

fn nanos(time: Duration) -> WallNanos {
    WallNanos::try_from(time.as_nanos()).unwrap_or(WallNanos::MAX)
}

/// The name of the program's file.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let path = std::env::current_exe().unwrap_or_default();
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    })
}

fn version() -> [u16; 3] {
    let part = |text: &str| text.parse().unwrap_or(0);
    [
        part(env!("CARGO_PKG_VERSION_MAJOR")),
        part(env!("CARGO_PKG_VERSION_MINOR")),
        part(env!("CARGO_PKG_VERSION_PATCH")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_described_when_something_changed_or_a_second_on() {
        let now = Instant::now();
        let of = |age: u64, is_due| Described { at: now.checked_sub(Duration::from_millis(age)), is_due };
        assert!(Described::default().is_outdated(now, false, false));
        assert!(!of(999, true).is_outdated(now, false, false));
        assert!(of(1000, true).is_outdated(now, false, false));
        assert!(of(0, true).is_outdated(now, true, false), "the pace has changed");
        assert!(of(0, true).is_outdated(now, false, true), "it is the last word for long");
        assert!(of(0, false).is_outdated(now, false, false), "the page says that nothing is due");
    }
}
