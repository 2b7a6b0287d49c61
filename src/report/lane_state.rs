//! [`LaneState`]: what a lane says of itself on the status page of its queue, for processes that look at it from
//! outside.
//!
//! The queue stores numbers and texts; what each of them means is here, in one table that the writer and the reader
//! share.
//! `docs/format.md` has the same table. A number that a reader does not know is taken for the harmless one.

use super::drop_reason::DropReason;
#[cfg(feature = "inspect")]
use super::stats::DeliveryPhase;
use super::stats::{QueueMedium, StorageMode};
use crate::queue::{OWNER_NUMBERS, OwnerWords};
use crate::sys::clock::WallNanos;
#[cfg(feature = "inspect")]
use crate::sys::clock::elapsed;

/// The state of a lane, as its committer last wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LaneState {
    /// When it was written.
    pub(crate) at: WallNanos,
    /// The program, by the name of its file.
    pub(crate) program: String,
    /// The version of the library: major, minor, patch.
    pub(crate) version: [u16; 3],
    pub(crate) phase: LanePhase,
    pub(crate) consecutive_failures: u32,
    pub(crate) failed_attempts: u64,
    pub(crate) quarantined: u64,
    pub(crate) last_error: Option<String>,
    pub(crate) last_success: Option<WallNanos>,
    /// Since when the endpoint has been failing.
    pub(crate) failing_since: Option<WallNanos>,
    /// Whether delivery panicked and is started again.
    pub(crate) restarts: bool,
    pub(crate) max_bytes: u64,
    pub(crate) max_events: Option<u64>,
    pub(crate) used_bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) replayed: u64,
    /// Events of the queue of another process that is being delivered.
    pub(crate) adopted_events: u64,
    pub(crate) rejecting: Option<DropReason>,
    pub(crate) storage: StorageMode,
    pub(crate) medium: Option<QueueMedium>,
    /// By when the lane writes again, unless it hangs. `None`: it waits for the program.
    pub(crate) due_at: Option<WallNanos>,
}

/// What delivery is doing, with the time of the next attempt by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LanePhase {
    Idle,
    Sending,
    Backoff { until: WallNanos },
    Cooldown { until: WallNanos },
    Quarantined { until: WallNanos },
    Paused { status: u16, until: WallNanos },
}

impl LanePhase {
    /// The phase in the words of [`Stats`](super::Stats), as of `now`.
    #[cfg(feature = "inspect")]
    pub(crate) fn as_of(self, now: WallNanos) -> DeliveryPhase {
        let retry_in = |until| elapsed(now, until);
        match self {
            LanePhase::Idle => DeliveryPhase::Idle,
            LanePhase::Sending => DeliveryPhase::Sending,
            LanePhase::Backoff { until } => DeliveryPhase::Backoff { retry_in: retry_in(until) },
            LanePhase::Cooldown { until } => DeliveryPhase::Cooldown { retry_in: retry_in(until) },
            LanePhase::Quarantined { until } => DeliveryPhase::Quarantined { retry_in: retry_in(until) },
            LanePhase::Paused { status, until } => DeliveryPhase::Paused { status, retry_in: retry_in(until) },
        }
    }

    /// When delivery tries again, if it waits for that.
    pub(crate) fn until(self) -> Option<WallNanos> {
        match self {
            LanePhase::Idle | LanePhase::Sending => None,
            LanePhase::Backoff { until }
            | LanePhase::Cooldown { until }
            | LanePhase::Quarantined { until }
            | LanePhase::Paused { until, .. } => Some(until),
        }
    }

    fn number(self) -> u64 {
        match self {
            LanePhase::Idle => 0,
            LanePhase::Sending => 1,
            LanePhase::Backoff { .. } => 2,
            LanePhase::Cooldown { .. } => 3,
            LanePhase::Quarantined { .. } => 4,
            LanePhase::Paused { .. } => 5,
        }
    }

    #[cfg(any(test, feature = "inspect"))]
    fn of(number: u64, status: u64, until: WallNanos) -> Self {
        match number {
            1 => LanePhase::Sending,
            2 => LanePhase::Backoff { until },
            3 => LanePhase::Cooldown { until },
            4 => LanePhase::Quarantined { until },
            5 => LanePhase::Paused { status: u16::try_from(status).unwrap_or(0), until },
            _ => LanePhase::Idle,
        }
    }
}

impl LaneState {
    /// The number that is `due_at`.
    pub(crate) const DUE_AT: usize = 17;

    /// The numbers and texts for the status page.
    pub(crate) fn to_words(&self) -> OwnerWords {
        let time = |at: Option<WallNanos>| at.unwrap_or(0) as u64;
        let (status, [major, minor, patch]) = match self.phase {
            LanePhase::Paused { status, .. } => (status, self.version),
            _ => (0, self.version),
        };
        let (storage, problem) = match &self.storage {
            StorageMode::Degraded { problem } => (1, problem.as_str()),
            StorageMode::Volatile { problem } => (2, problem.as_str()),
            StorageMode::Closed => (3, ""),
            _ => (0, ""),
        };
        let mut numbers = [0; OWNER_NUMBERS];
        let known = [
            self.phase.number(),
            u64::from(status),
            time(self.phase.until()),
            u64::from(self.consecutive_failures),
            self.failed_attempts,
            self.quarantined,
            time(self.last_success),
            time(self.failing_since),
            self.max_bytes,
            self.max_events.unwrap_or(0),
            self.used_bytes,
            self.file_bytes,
            self.rejecting.map_or(0, |reason| reason as u64 + 1),
            storage,
            self.medium
                .and_then(|medium| QueueMedium::ALL.iter().position(|one| *one == medium))
                .map_or(0, |at| at as u64 + 1),
            self.replayed,
            self.adopted_events,
            time(self.due_at),
            u64::from(major) << 32 | u64::from(minor) << 16 | u64::from(patch),
            u64::from(self.restarts),
        ];
        for (number, value) in numbers.iter_mut().zip(known) {
            *number = value;
        }
        let texts = [self.program.clone(), self.last_error.clone().unwrap_or_default(), problem.to_owned()];
        OwnerWords { at: self.at, numbers, texts }
    }

    /// What the numbers and texts mean.
    #[cfg(any(test, feature = "inspect"))]
    pub(crate) fn of_words(words: &OwnerWords) -> Self {
        let number = |at: usize| words.numbers.get(at).copied().unwrap_or(0);
        let time = |at: usize| Some(number(at) as WallNanos).filter(|at| *at != 0);
        let indexed = |at: usize| usize::try_from(number(at)).ok()?.checked_sub(1);
        let [program, last_error, problem] = words.texts.clone();
        let version = number(18);
        let part = |shift: u32| u16::try_from(version >> shift & 0xFFFF).unwrap_or(0);
        Self {
            at: words.at,
            program,
            version: [part(32), part(16), part(0)],
            phase: LanePhase::of(number(0), number(1), number(2) as WallNanos),
            consecutive_failures: u32::try_from(number(3)).unwrap_or(u32::MAX),
            failed_attempts: number(4),
            quarantined: number(5),
            last_success: time(6),
            failing_since: time(7),
            max_bytes: number(8),
            max_events: Some(number(9)).filter(|most| *most != 0),
            used_bytes: number(10),
            file_bytes: number(11),
            rejecting: indexed(12).and_then(|at| DropReason::ALL.get(at).copied()),
            storage: match number(13) {
                1 => StorageMode::Degraded { problem },
                2 => StorageMode::Volatile { problem },
                3 => StorageMode::Closed,
                _ => StorageMode::Durable,
            },
            medium: indexed(14).and_then(|at| QueueMedium::ALL.get(at).copied()),
            replayed: number(15),
            adopted_events: number(16),
            due_at: time(Self::DUE_AT),
            last_error: Some(last_error).filter(|text| !text.is_empty()),
            restarts: number(19) == 1,
        }
    }
}

#[cfg(test)]
impl LaneState {
    /// A lane that works and has nothing to do.
    pub(crate) fn for_test(at: WallNanos) -> Self {
        Self {
            at,
            program: "daemon".into(),
            version: [0, 1, 0],
            phase: LanePhase::Idle,
            consecutive_failures: 0,
            failed_attempts: 0,
            quarantined: 0,
            last_error: None,
            last_success: None,
            failing_since: None,
            restarts: false,
            max_bytes: 1 << 30,
            max_events: None,
            used_bytes: 0,
            file_bytes: 0,
            replayed: 0,
            adopted_events: 0,
            rejecting: None,
            storage: StorageMode::Durable,
            medium: Some(QueueMedium::Disk),
            due_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> LaneState {
        LaneState {
            at: 1_700_000_000_000_000_000,
            program: "daemon".into(),
            version: [1, 22, 333],
            phase: LanePhase::Paused { status: 401, until: 1_700_000_300_000_000_000 },
            consecutive_failures: 2,
            failed_attempts: 3,
            quarantined: 4,
            last_error: Some("HTTP status 401".into()),
            last_success: Some(5),
            failing_since: Some(6),
            restarts: true,
            max_bytes: 7,
            max_events: Some(8),
            used_bytes: 9,
            file_bytes: 10,
            replayed: 11,
            adopted_events: 12,
            rejecting: Some(DropReason::RateLimited),
            storage: StorageMode::Degraded { problem: "the disk is full".into() },
            medium: Some(QueueMedium::DeletedFiles),
            due_at: Some(13),
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let all = [
            LanePhase::Idle,
            LanePhase::Sending,
            LanePhase::Backoff { until: 1 },
            LanePhase::Cooldown { until: 2 },
            LanePhase::Quarantined { until: 3 },
            LanePhase::Paused { status: 402, until: 4 },
        ];
        for phase in all {
            let state = LaneState { phase, ..state() };
            assert_eq!(LaneState::of_words(&state.to_words()), state);
        }
        for rejecting in DropReason::ALL {
            let state = LaneState { rejecting: Some(rejecting), ..state() };
            assert_eq!(LaneState::of_words(&state.to_words()), state);
        }
        let none = LaneState {
            last_error: None,
            last_success: None,
            failing_since: None,
            max_events: None,
            rejecting: None,
            storage: StorageMode::Durable,
            medium: None,
            due_at: None,
            restarts: false,
            ..state()
        };
        assert_eq!(LaneState::of_words(&none.to_words()), none);
    }

    #[test]
    fn numbers_of_a_later_version_are_harmless() {
        let mut words = state().to_words();
        words.numbers = [u64::MAX; OWNER_NUMBERS];
        let read = LaneState::of_words(&words);
        assert_eq!((read.phase, read.rejecting, read.medium), (LanePhase::Idle, None, None));
        assert_eq!(read.storage, StorageMode::Durable);
    }
}
