//! What the program that uses this library is told about its events.

use uuid::Uuid;

use super::aside::EventId;

/// The fate of some events, told once it is known.
///
/// An event may be told of twice if the process dies between PostHog's answer and the queue's next commit: the event is then sent
/// again, with the same uuid.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DeliveryNotice<'a> {
    /// The events, by the uuids their receipts checkpoint.
    pub uuids: &'a [Uuid],
    /// What became of all of them.
    pub verdict: DeliveryOutcome<'a>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryOutcome<'a> {
    /// PostHog has taken it.
    Delivered,
    /// PostHog never will; it lies among the dead letters of the queue.
    DeadLettered {
        /// The HTTP status of the refusal; 0 if the event could not be read and was never sent.
        status: u16,
        /// In the words of whoever refused it.
        reason: &'a str,
    },
}

/// Events by both of their names, in the same order: a program may give several events one uuid.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) ids: Vec<EventId>,
    pub(super) uuids: Vec<Uuid>,
}

impl Names {
    pub(super) fn push(&mut self, id: EventId, uuid: Uuid) {
        self.ids.push(id);
        self.uuids.push(uuid);
    }
}
