//! [`EventFilter`]: which of the events in queues are meant.

use std::time::SystemTime;

use uuid::Uuid;

use super::error::InspectError;
use super::reader::{EventPlace, StoredEvent};

/// Where an event is, without the details of [`EventPlace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventState {
    /// In the journal: accepted, and not yet moved into the store.
    Journal,
    /// In the store, where it waits for delivery.
    Queued,
    /// PostHog rejected it for good.
    Dead,
}

impl EventState {
    /// `journal`, `queued` or `dead`.
    pub fn name(self) -> &'static str {
        match self {
            EventState::Journal => "journal",
            EventState::Queued => "queued",
            EventState::Dead => "dead",
        }
    }
}

impl EventPlace {
    /// The state without its details.
    pub fn state(&self) -> EventState {
        match self {
            EventPlace::Journal => EventState::Journal,
            EventPlace::Store { .. } => EventState::Queued,
            EventPlace::DeadLetter { .. } => EventState::Dead,
        }
    }
}

/// Which events are meant: those that match each field that is not empty. Of a field with several values, one must
/// match. The default matches every event.
///
/// ```
/// use posthog::inspect::{EventFilter, EventState};
///
/// let mut filter = EventFilter::default();
/// filter.states = vec![EventState::Dead];
/// filter.events = vec!["checkout".into()];
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventFilter {
    /// Where the event is.
    pub states: Vec<EventState>,
    /// The name of the event.
    pub events: Vec<String>,
    /// The person.
    pub distinct_ids: Vec<String>,
    /// The uuid of the event.
    pub uuids: Vec<Uuid>,
    /// The time of the event is this or later.
    pub since: Option<SystemTime>,
    /// The time of the event is earlier than this.
    pub until: Option<SystemTime>,
}

impl EventFilter {
    /// Whether the event matches. Fails if its content cannot be read and the filter depends on it.
    pub fn matches(&self, event: &StoredEvent<'_>) -> Result<bool, InspectError> {
        if !self.states.is_empty() && !self.states.contains(&event.place.state()) {
            return Ok(false);
        }
        let looks_inside = !(self.events.is_empty() && self.distinct_ids.is_empty() && self.uuids.is_empty())
            || self.since.is_some()
            || self.until.is_some();
        if !looks_inside {
            return Ok(true);
        }
        let summary = event.summary()?;
        let is_one_of = |wanted: &[String], found: &str| wanted.is_empty() || wanted.iter().any(|one| one == found);
        Ok(is_one_of(&self.events, summary.event)
            && is_one_of(&self.distinct_ids, summary.distinct_id)
            && (self.uuids.is_empty() || self.uuids.contains(&summary.uuid))
            && self.since.is_none_or(|since| summary.timestamp >= since)
            && self.until.is_none_or(|until| summary.timestamp < until))
    }
}
