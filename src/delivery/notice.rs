//! What delivery reports: notices for diagnostics, and the outcome of events for the program.

use std::fmt;

use uuid::Uuid;

use super::quarantine::EventId;

/// An occurrence that a human may want to know about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Notice {
    /// A 2xx that is not PostHog's (a captive portal, a wrong host). The events stay queued. Once per outage.
    NotPostHog {
        /// Its status.
        status: u16,
        /// The beginning of its body.
        snippet: String,
    },
    /// The key, the quota or the encoding was refused. Once per outage.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// The text of the response.
        reason: String,
        /// Whether the response is PostHog's.
        by_posthog: bool,
    },
    /// The endpoint responded with a failure. Once per outage.
    ServerFailed {
        /// Its status.
        status: u16,
        /// What the status means, and the beginning of the body.
        text: String,
    },
    /// PostHog accepted events with a warning. Once for each response and text.
    Warned {
        /// The first of the events.
        uuid: Uuid,
        /// Number of events.
        events: u64,
        /// The text of the warning.
        details: String,
    },
    /// PostHog answered `retry` for these events. Once per outage.
    AskedAgain {
        /// Number of events.
        events: u64,
        /// The reason given for the first of them.
        reason: String,
    },
    /// No response. Once per outage.
    TransportFailed {
        /// The chain of errors.
        reason: String,
    },
    /// A whole cycle of attempts failed, and nothing is sent for a while. Reported when the number of cooldowns of an
    /// outage has doubled.
    Cooldown {
        /// The length of the cooldown.
        seconds: u64,
        /// Failed attempts since the last success.
        attempts: u32,
        /// Why the last of them failed.
        reason: String,
    },
    /// The endpoint works again. Once per outage.
    Recovered,
    /// An event was refused without evidence that the event is the cause, or failed alone twice while others passed. It
    /// stays queued and is skipped for a while. Once for each event.
    Quarantined {
        /// The event.
        uuid: Uuid,
        /// The status of the response; 0 if there was none.
        status: u16,
        /// The text of the refusal, or the failure.
        reason: String,
    },
    /// Many requests in a row were refused: treated as an outage. Counted and reported like a cooldown.
    RefusingEverything {
        /// The status of the last refusal.
        status: u16,
        /// The text of the last refusal.
        reason: String,
    },
    /// An event went to the dead letters.
    DeadLettered {
        /// The event.
        uuid: Uuid,
        /// The status of the refusal; 0 if the event could not be read.
        status: u16,
        /// The text of the refusal.
        reason: String,
    },
    /// PostHog accepted the request, and drops these kinds of events because their quota is used up.
    QuotaLimited {
        /// PostHog's names of the kinds.
        kinds: Vec<String>,
    },
    /// A callback of the program panicked.
    CallbackPanicked,
    /// The engine panicked, which is a defect of this library. Another one takes over.
    EngineFailed {
        /// The wait before it does.
        seconds: u64,
    },
    /// The queue could not be read. Reading is tried again.
    QueueUnreadable {
        /// The chain of errors.
        reason: String,
    },
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

/// The ids and uuids of events, in the same order. A program may give several events one uuid, so both are needed.
#[derive(Debug, Default)]
pub(super) struct EventNames {
    pub(super) ids: Vec<EventId>,
    pub(super) uuids: Vec<Uuid>,
}

impl EventNames {
    pub(super) fn push(&mut self, id: EventId, uuid: Uuid) {
        self.ids.push(id);
        self.uuids.push(uuid);
    }
}
