//! The shapes in which statistics, statuses, diagnostics and reports are serialized, for a program that logs them or
//! returns them from an endpoint.
//!
//! They are written by hand, because the shapes are an interface of their own: units are in the names (`_seconds`,
//! `_bytes`), a status is an object with its stable `name`, and a field of a struct can be renamed without changing
//! what a dashboard reads. Every object has the same keys each time; what is not known is `null`. Times are Unix time
//! in seconds. Keys may be added, and none is renamed or removed within a major version. `docs/monitoring.md` shows
//! them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::diagnostic::{Diagnostic, DiagnosticCategory};
use super::drop_reason::DropReason;
use super::health::{Health, HealthCause, HealthProblem, HealthStatus};
use super::reports::{DeliveryReport, EndpointStatus, FlushReport, ShutdownReport};
use super::stats::{DeliveryPhase, OrphanedQueues, QueueMedium, Stats, StorageMode, ThreadState};

/// An object with these keys.
macro_rules! object {
    ($serializer:expr, $($key:literal: $value:expr),+ $(,)?) => {{
        let mut map = $serializer.serialize_map(None)?;
        $(map.serialize_entry($key, &$value)?;)+
        map.end()
    }};
}

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

fn timestamp(at: Option<SystemTime>) -> Option<f64> {
    at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_secs_f64())
}

/// Serializes as the name alone.
macro_rules! as_name {
    ($($name:ty),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    )+};
}

as_name!(DropReason, DiagnosticCategory, HealthStatus, HealthCause, QueueMedium);

/// The number of dropped events by reason.
struct Dropped<'a>(&'a [(DropReason, u64)]);

impl Serialize for Dropped<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(reason, count)| (reason.name(), count)))
    }
}

impl Serialize for Stats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer,
            "accepted": self.accepted,
            "delivered": self.delivered,
            "queued_events": self.queued_events,
            "queued_bytes": self.queued_bytes,
            "dead_lettered": self.dead_lettered,
            "evicted": self.evicted,
            "damaged": self.damaged,
            "lost_unsynced": self.lost_unsynced,
            "dropped": Dropped(&self.dropped),
            "used_bytes": self.used_bytes,
            "max_bytes": self.max_bytes,
            "max_events": self.max_events,
            "oldest_age_seconds": seconds(self.oldest_age),
            "unsynced_for_seconds": seconds(self.unsynced_for),
            "file_bytes": self.file_bytes,
            "replayed": self.replayed,
            "adopted_events": self.adopted_events,
            "orphaned": self.orphaned,
            "rejecting": self.rejecting,
            "storage": self.storage,
            "medium": self.medium,
            "delivery": self.delivery,
            "commit_thread": self.commit_thread,
            "deliver_thread": self.deliver_thread,
            "consecutive_failures": self.consecutive_failures,
            "failed_attempts": self.failed_attempts,
            "quarantined": self.quarantined,
            "last_error": self.last_error,
            "last_success_timestamp_seconds": timestamp(self.last_success),
            "dir": self.dir.as_ref().map(|dir| dir.to_string_lossy()),
            "flag_definitions_failure": self.flag_definitions_failure,
            "ai_unavailable": self.ai_unavailable,
            "ai": self.ai,
            "analytics": self.analytics,
        )
    }
}

impl Serialize for OrphanedQueues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, "queues": self.queues, "events": self.events)
    }
}

impl Serialize for StorageMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let problem = match self {
            StorageMode::Degraded { problem } | StorageMode::Volatile { problem } => Some(problem),
            _ => None,
        };
        object!(serializer, "name": self.name(), "problem": problem)
    }
}

impl Serialize for DeliveryPhase {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let status = if let DeliveryPhase::Paused { status, .. } = self { Some(status) } else { None };
        object!(serializer, "name": self.name(), "status": status, "retry_in_seconds": seconds(self.retry_in()))
    }
}

impl Serialize for ThreadState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, "name": self.name(), "busy_for_seconds": self.busy_for().as_secs_f64())
    }
}

impl Serialize for HealthProblem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer,
            "cause": self.cause,
            "status": self.cause.status(),
            "lane": self.lane,
            "detail": self.detail,
        )
    }
}

impl Serialize for Health {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer,
            "status": self.status,
            "is_ready": self.is_ready(),
            "is_alive": self.is_alive(),
            "problems": self.problems,
            "oldest_age_seconds": seconds(self.oldest_age),
            "last_success_timestamp_seconds": timestamp(self.last_success),
            "storage": self.storage,
            "medium": self.medium,
            "fill_percent": self.fill_percent,
        )
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer, "kind": self.kind(), "category": self.category(), "message": self.to_string())
    }
}

impl Serialize for EndpointStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, reason, retry_in) = match self {
            EndpointStatus::Refusing { reason } => (None, Some(reason), None),
            EndpointStatus::Down { reason, retry_in } => (None, Some(reason), *retry_in),
            EndpointStatus::Paused { status, reason, retry_in } => (Some(status), Some(reason), *retry_in),
            EndpointStatus::Up | EndpointStatus::Closed | EndpointStatus::Forked => (None, None, None),
        };
        object!(serializer,
            "name": self.name(),
            "status": status,
            "reason": reason,
            "retry_in_seconds": seconds(retry_in),
        )
    }
}

impl Serialize for FlushReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer,
            "delivered": self.delivered,
            "dead_lettered": self.dead_lettered,
            "remaining": self.remaining,
            "endpoint": self.endpoint,
        )
    }
}

impl Serialize for ShutdownReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        object!(serializer,
            "delivered": self.delivered,
            "remaining": self.remaining,
            "endpoint": self.endpoint,
            "persisted": self.persisted,
        )
    }
}

impl Serialize for DeliveryReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, reason) = match self {
            DeliveryReport::DeadLettered { status, reason } => (Some(status), Some(reason.as_str())),
            DeliveryReport::Dropped(reason) => (None, Some(reason.name())),
            DeliveryReport::Delivered | DeliveryReport::Queued { .. } => (None, None),
        };
        let endpoint = if let DeliveryReport::Queued { endpoint } = self { Some(endpoint) } else { None };
        object!(serializer, "name": self.name(), "status": status, "reason": reason, "endpoint": endpoint)
    }
}

#[cfg(test)]
#[path = "serialize_tests.rs"]
mod tests;
