//! The results of calls about delivery and durability: flush, shutdown, receipts, dead letters.

use std::fmt;
use std::time::Duration;

use super::drop_reason::DropReason;
use crate::sys::wording::time;

/// [`Pending::wait`](crate::Pending::wait) ended without a result. What was asked for goes on.
///
/// Either the time given ran out, or the thread is one of the client's own (inside `on_delivery`, for example), which
/// alone could give the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no result within the time given; what was asked for goes on in the background")]
pub struct WaitTimeout;

/// Why an event may not survive a power cut. It still survives the process, unless the error is
/// [`PersistError::Volatile`] or [`PersistError::Dropped`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PersistError {
    /// The event was not accepted in the first place.
    #[error("the event was dropped when it was captured")]
    Dropped,
    /// The queue is in memory; `stats().storage` says why.
    #[error("the queue is in memory only: the event does not survive the process")]
    Volatile,
    /// The sync failed. The text is the operating system's.
    #[error("the event may not survive a power cut: {0}")]
    Sync(String),
    /// The client was closed before the sync.
    #[error("the client was closed before the event was synced")]
    Closed,
    /// The event was captured before a fork, by the parent.
    #[error("the event belongs to the parent of this forked process")]
    Forked,
    /// [`Pending::wait`](crate::Pending::wait) ended before the sync. The sync goes on.
    #[error("the event was not synced within the time given; the sync goes on in the background")]
    Timeout,
}

impl PersistError {
    /// The name of the variant in snake case, for labels and logs: `volatile`, `sync`. It does not change when a text
    /// does.
    pub fn name(&self) -> &'static str {
        match self {
            PersistError::Dropped => "dropped",
            PersistError::Volatile => "volatile",
            PersistError::Sync(_) => "sync",
            PersistError::Closed => "closed",
            PersistError::Forked => "forked",
            PersistError::Timeout => "timeout",
        }
    }
}

/// Why dead letters could not be queued again or discarded, or only some of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeadLetterError {
    /// The queue's storage failed, with this text. All dead letters are kept; some may also be queued.
    #[error("the queue's storage failed and all dead letters are kept: {0}")]
    Storage(String),
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// This process is a forked child that has captured nothing yet, or the call was made by its parent.
    #[error("this forked process has no queue of its own before its first capture")]
    Forked,
    /// [`Pending::wait`](crate::Pending::wait) ended before the dead letters were handled. The call goes on.
    #[error("the dead letters were not handled within the time given; the call goes on in the background")]
    Timeout,
}

/// The state of the endpoint when a flush or a shutdown ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointStatus {
    /// It accepts events, as far as is known. Remaining events were captured later, or the shutdown had no time for
    /// them.
    Up,
    /// It responds, and rejects the remaining events without evidence that the events are at fault. They stay queued
    /// and are tried again when it accepts another event, or after at least half a minute.
    Refusing {
        /// The reason of the last rejection.
        reason: String,
    },
    /// It does not respond. Events stay queued.
    Down {
        /// The last failure.
        reason: String,
        /// Time until the next attempt, if one is planned.
        retry_in: Option<Duration>,
    },
    /// It rejects the key, the quota or the encoding. Events stay queued.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// The server's reason, and whether the response is PostHog's or may be a proxy's.
        reason: String,
        /// Time until the next attempt, if one is planned.
        retry_in: Option<Duration>,
    },
    /// The client is closed: delivery was not tried, or has ended.
    Closed,
    /// Delivery was not tried: this process is a forked child that has captured nothing yet, or the call was made by
    /// its parent.
    Forked,
}

/// The result of a flush. A flush that could not send loses nothing: the remaining events are sent later.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushReport {
    /// Events that PostHog accepted since the flush was called.
    pub delivered: u64,
    /// Events that PostHog rejected for good since then. They are among the dead letters.
    pub dead_lettered: u64,
    /// Events still queued, including those captured since the flush was called.
    pub remaining: u64,
    /// The state of the endpoint: why events remain, if any do.
    pub endpoint: EndpointStatus,
}

/// The result of [`capture_immediate`](crate::Client::capture_immediate). An event that was accepted is never lost,
/// whatever the result: it was in the queue before it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryReport {
    /// PostHog has accepted the event.
    Delivered,
    /// PostHog has rejected the event for good. It is among the dead letters.
    DeadLettered {
        /// The HTTP status of the response.
        status: u16,
        /// PostHog's reason.
        reason: String,
    },
    /// The event is queued, and is sent when that is possible.
    Queued {
        /// Why the event is still queued. [`EndpointStatus::Refusing`]: it was rejected without evidence that it is at
        /// fault. [`EndpointStatus::Up`]: the client has opted out, or too many callers waited at the same time.
        endpoint: EndpointStatus,
    },
    /// The event was not accepted in the first place.
    Dropped(DropReason),
}

/// The result of a shutdown. The remaining events are on disk; the next process that opens the queue sends them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Events that PostHog accepted since the shutdown was called.
    pub delivered: u64,
    /// Events still queued. If the queue was in memory they are lost, and a diagnostic reports it.
    pub remaining: u64,
    /// The state of the endpoint: why events remain, if any do. [`EndpointStatus::Closed`] if there was no time to try.
    pub endpoint: EndpointStatus,
    /// Whether all accepted events would survive a power cut.
    pub persisted: bool,
}

impl fmt::Display for EndpointStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, retry_in) = match self {
            EndpointStatus::Up => return f.write_str("the endpoint accepts events"),
            EndpointStatus::Refusing { reason } => {
                return write!(f, "the endpoint rejects the remaining events: {reason}");
            }
            EndpointStatus::Closed => return f.write_str("the client is closed"),
            EndpointStatus::Forked => return f.write_str("this forked process has not captured anything yet"),
            EndpointStatus::Down { reason, retry_in } => (format!("the endpoint is down: {reason}"), retry_in),
            EndpointStatus::Paused { status, reason, retry_in } => {
                (format!("delivery is paused (HTTP status {status}): {reason}"), retry_in)
            }
        };
        f.write_str(&what)?;
        retry_in.map_or(Ok(()), |wait| write!(f, "; next attempt in {}", time(wait)))
    }
}

impl fmt::Display for DeliveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeliveryReport::Delivered => f.write_str("delivered"),
            DeliveryReport::DeadLettered { status: 0, reason } => write!(f, "dead-lettered: {reason}"),
            DeliveryReport::DeadLettered { status, reason } => {
                write!(f, "dead-lettered (HTTP status {status}): {reason}")
            }
            DeliveryReport::Queued { endpoint } => write!(f, "queued: {endpoint}"),
            DeliveryReport::Dropped(reason) => write!(f, "dropped: {reason}"),
        }
    }
}

impl EndpointStatus {
    /// The name of the variant in snake case, for labels and logs: `up`, `down`. It does not change when a text does.
    pub fn name(&self) -> &'static str {
        match self {
            EndpointStatus::Up => "up",
            EndpointStatus::Refusing { .. } => "refusing",
            EndpointStatus::Down { .. } => "down",
            EndpointStatus::Paused { .. } => "paused",
            EndpointStatus::Closed => "closed",
            EndpointStatus::Forked => "forked",
        }
    }

    /// The worse status of both lanes. The reason says so if it is that of the AI lane.
    fn or_of_ai(self, ai: Self) -> Self {
        let of_ai = |reason| format!("AI events: {reason}");
        match (self, ai) {
            (EndpointStatus::Up, EndpointStatus::Down { reason, retry_in }) => {
                EndpointStatus::Down { reason: of_ai(reason), retry_in }
            }
            (EndpointStatus::Up, EndpointStatus::Refusing { reason }) => {
                EndpointStatus::Refusing { reason: of_ai(reason) }
            }
            (EndpointStatus::Up, EndpointStatus::Paused { status, reason, retry_in }) => {
                EndpointStatus::Paused { status, reason: of_ai(reason), retry_in }
            }
            (EndpointStatus::Up, endpoint) | (endpoint, _) => endpoint,
        }
    }
}

impl DeliveryReport {
    /// The name of the variant in snake case, for labels and logs: `delivered`, `queued`.
    pub fn name(&self) -> &'static str {
        match self {
            DeliveryReport::Delivered => "delivered",
            DeliveryReport::DeadLettered { .. } => "dead_lettered",
            DeliveryReport::Queued { .. } => "queued",
            DeliveryReport::Dropped(_) => "dropped",
        }
    }
}

impl FlushReport {
    /// The report of both lanes: the sums, and the worse status.
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
    /// The report of both lanes: the sums, and the worse status.
    pub(crate) fn with_ai(self, ai: Self) -> Self {
        Self {
            delivered: self.delivered.saturating_add(ai.delivered),
            remaining: self.remaining.saturating_add(ai.remaining),
            endpoint: self.endpoint.or_of_ai(ai.endpoint),
            persisted: self.persisted && ai.persisted,
        }
    }
}
