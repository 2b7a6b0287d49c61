//! What delivery reports: diagnostics whose text is made of several facts, and the outcome of events for the program.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::report::{Backlog, Diagnostic};
use crate::sys::wording::{count, time};

/// PostHog answered `retry` for these events; `reason` is given for the first of them.
pub(super) fn asked_again(events: u64, reason: &str) -> Diagnostic {
    failing(format!("PostHog asks for a retry of {} ({reason})", count(events, "event")))
}

/// A whole cycle of attempts failed, and nothing is sent for a while.
pub(super) fn cooldown(attempts: u32, reason: &str) -> Diagnostic {
    failing(format!("{} in a row failed; last failure: {reason}", count(attempts.into(), "attempt")))
}

/// Many requests in a row were refused, which is treated as an outage.
pub(super) fn refusing_everything(status: u16, reason: &str) -> Diagnostic {
    failing(format!("every event is rejected (HTTP status {status}: {reason})"))
}

/// The engine panicked. Another one takes over after this time.
pub(super) fn engine_failed(wait: Duration) -> Diagnostic {
    failing(format!(
        "the delivery task panicked, which is a defect of this library (please report it); it is restarted in {}",
        time(wait)
    ))
}

/// The endpoint fails. The engine adds the backlog when it reports that.
pub(super) fn failing(reason: String) -> Diagnostic {
    Diagnostic::EndpointFailing { reason, backlog: Backlog::default() }
}

/// The queue could not be read. Reading is tried again.
pub(super) fn queue_unreadable(reason: &str) -> Diagnostic {
    Diagnostic::StorageFailing { problem: format!("events cannot be read for delivery: {reason}") }
}

/// What became of some events.
///
/// An event may be reported twice if the process dies between PostHog's response and the queue's next commit. The event
/// is then sent again, with the same uuid.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DeliveryNotice<'a> {
    /// The uuids of the events, as in their receipts.
    pub uuids: &'a [Uuid],
    /// What became of all of them.
    pub outcome: DeliveryOutcome<'a>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryOutcome<'a> {
    /// PostHog has accepted it.
    Delivered,
    /// PostHog has refused it for good. It is among the dead letters of the queue.
    DeadLettered {
        /// The HTTP status of the refusal; 0 if the event could not be read and was never sent.
        status: u16,
        /// The text of the refusal.
        reason: &'a str,
    },
}

impl DeliveryOutcome<'_> {
    /// The name of the variant in snake case, for labels and logs: `delivered`, `dead_lettered`. It does not change when
    /// a text does.
    pub fn name(&self) -> &'static str {
        match self {
            DeliveryOutcome::Delivered => "delivered",
            DeliveryOutcome::DeadLettered { .. } => "dead_lettered",
        }
    }
}

impl fmt::Display for DeliveryOutcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeliveryOutcome::Delivered => f.write_str("delivered"),
            DeliveryOutcome::DeadLettered { status: 0, reason } => write!(f, "dead-lettered: {reason}"),
            DeliveryOutcome::DeadLettered { status, reason } => {
                write!(f, "dead-lettered (HTTP status {status}): {reason}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_endpoint_has_a_reason_for_an_operator() {
        let secs = Duration::from_secs;
        for (diagnostic, reason) in [
            (asked_again(1, "not_persisted"), "PostHog asks for a retry of 1 event (not_persisted)"),
            (cooldown(4, "HTTP status 503"), "4 attempts in a row failed; last failure: HTTP status 503"),
            (refusing_everything(400, "no"), "every event is rejected (HTTP status 400: no)"),
            (
                engine_failed(secs(5)),
                "the delivery task panicked, which is a defect of this library (please report it); it is restarted in 5 s",
            ),
        ] {
            assert_eq!(diagnostic, failing(reason.into()));
        }
        let problem = "events cannot be read for delivery: it is being closed".into();
        assert_eq!(queue_unreadable("it is being closed"), Diagnostic::StorageFailing { problem });
    }
}
