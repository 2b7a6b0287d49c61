//! What a flush, a receipt or a shutdown is answered with.

use std::time::Duration;

use super::drop_reason::DropReason;
use super::pending::Unanswered;

/// Why an event is not known to survive a power cut. It survives the death of the process all the same, unless the reason is
/// [`PersistError::Volatile`] or [`PersistError::Dropped`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PersistError {
    /// The event was not accepted in the first place.
    #[error("the event was dropped when it was captured")]
    Dropped,
    /// The queue lives in memory; `stats().storage` says why.
    #[error("the queue is in memory only: the event does not survive the process")]
    Volatile,
    /// The disk could not make it durable. The text is the operating system's.
    #[error("the event may not survive a power cut: {0}")]
    Sync(String),
    /// The client was closed before the sync.
    #[error("the client was closed before the event was synced")]
    Closed,
    /// The event was captured before a fork, by the parent.
    #[error("the event belongs to the parent of this forked process")]
    Forked,
}

/// The endpoint, as a flush or shutdown found it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointStatus {
    /// It takes events, as far as is known. If some remain all the same, they came later, or a shutdown had no time for them.
    Up,
    /// It answers, and has refused what remains; nothing that it took since shows that the events are to blame. They wait on disk and are
    /// tried again when it takes another event, or after half a minute and more.
    Refusing {
        /// What the last refusal said.
        reason: String,
    },
    /// It does not; events wait on disk and are sent when it does again.
    Down {
        /// What the last attempt met.
        reason: String,
        /// Time until the next attempt, if one is planned.
        retry_in: Option<Duration>,
    },
    /// The key, the quota or the encoding is refused; events wait on disk.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// What was said, and whether that is PostHog's way to say it: a proxy may have answered.
        reason: String,
        /// Time until the next attempt, if one is planned.
        retry_in: Option<Duration>,
    },
    /// Delivery was not tried, or has ended: the client is closed.
    Closed,
    /// Delivery was not tried: this process is a forked child that has captured nothing yet, or it waits for what its parent had asked.
    Forked,
}

/// How a flush went. Nothing is lost by a flush that could not send: what remains is sent later.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Events that PostHog took since the flush was asked for.
    pub delivered: u64,
    /// Events that PostHog refused for good since then; they lie among the dead letters.
    pub dead_lettered: u64,
    /// Events still queued, those captured since the flush began included.
    pub remaining: u64,
    /// How the endpoint is: why events remain, if they do.
    pub endpoint: EndpointStatus,
}

/// What became of an event that was to be sent at once. Whatever it says, an event that was accepted is not lost: it was safe before
/// it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryReport {
    /// PostHog has taken it.
    Delivered,
    /// PostHog has refused it for good; it lies among the dead letters.
    DeadLettered {
        /// The HTTP status of the refusal.
        status: u16,
        /// In PostHog's words.
        reason: String,
    },
    /// It is queued, and sent when that is possible.
    Queued {
        /// Why it was not decided now: how the endpoint is. [`EndpointStatus::Refusing`] where the event was refused and it is not clear yet that
        /// the event is to blame; [`EndpointStatus::Up`] where sending is held back by an opt-out, or where too many events were waited for.
        endpoint: EndpointStatus,
    },
    /// It was not accepted in the first place.
    Dropped(DropReason),
}

/// How a shutdown went. What remains is on disk and is sent by the next process that opens the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Events that PostHog took since the shutdown was asked for.
    pub delivered: u64,
    /// Events still queued. Where the queue was in memory they are lost, and a diagnostic says so.
    pub remaining: u64,
    /// How the endpoint is: why events remain, if they do. [`EndpointStatus::Closed`] where there was no time to try.
    pub endpoint: EndpointStatus,
    /// Whether everything that was accepted is safe against a power cut.
    pub persisted: bool,
}

impl EndpointStatus {
    /// Of both lanes: the one that is worse off, and it is said if that is the AI lane.
    fn or_of_ai(self, ai: Self) -> Self {
        let said = |reason| format!("AI events: {reason}");
        match (self, ai) {
            (EndpointStatus::Up, EndpointStatus::Down { reason, retry_in }) => {
                EndpointStatus::Down { reason: said(reason), retry_in }
            }
            (EndpointStatus::Up, EndpointStatus::Refusing { reason }) => {
                EndpointStatus::Refusing { reason: said(reason) }
            }
            (EndpointStatus::Up, EndpointStatus::Paused { status, reason, retry_in }) => {
                EndpointStatus::Paused { status, reason: said(reason), retry_in }
            }
            (EndpointStatus::Up, endpoint) | (endpoint, _) => endpoint,
        }
    }
}

impl FlushReport {
    /// Of both lanes: the sums, and the endpoint that is worse off.
    pub(crate) fn with_ai(self, ai: Self) -> Self {
        let endpoint = self.endpoint.or_of_ai(ai.endpoint);
        Self {
            delivered: self.delivered.saturating_add(ai.delivered),
            dead_lettered: self.dead_lettered.saturating_add(ai.dead_lettered),
            remaining: self.remaining.saturating_add(ai.remaining),
            endpoint,
        }
    }
}

impl ShutdownReport {
    /// Of both lanes.
    pub(crate) fn with_ai(self, ai: Self) -> Self {
        Self {
            delivered: self.delivered.saturating_add(ai.delivered),
            remaining: self.remaining.saturating_add(ai.remaining),
            endpoint: self.endpoint.or_of_ai(ai.endpoint),
            persisted: self.persisted && ai.persisted,
        }
    }
}

impl Unanswered for Result<(), PersistError> {
    fn closed() -> Self {
        Err(PersistError::Closed)
    }

    fn forked() -> Self {
        Err(PersistError::Forked)
    }
}

impl Unanswered for FlushReport {
    fn closed() -> Self {
        FlushReport { delivered: 0, dead_lettered: 0, remaining: 0, endpoint: EndpointStatus::Closed }
    }

    fn forked() -> Self {
        FlushReport { endpoint: EndpointStatus::Forked, ..Self::closed() }
    }
}

impl Unanswered for ShutdownReport {
    fn closed() -> Self {
        ShutdownReport { delivered: 0, remaining: 0, endpoint: EndpointStatus::Closed, persisted: false }
    }

    fn forked() -> Self {
        Self::closed()
    }
}

impl Unanswered for DeliveryReport {
    fn closed() -> Self {
        DeliveryReport::Queued { endpoint: EndpointStatus::Closed }
    }

    fn forked() -> Self {
        DeliveryReport::Queued { endpoint: EndpointStatus::Forked }
    }
}
