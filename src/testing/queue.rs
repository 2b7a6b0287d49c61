//! Reads the queue of a client.

use std::fmt;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::server::Route;
use crate::client::Client;
use crate::record::{NoSymbols, View, json};

/// A queued event: accepted, and neither delivered nor deleted.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct QueuedEvent {
    /// The name.
    pub event: String,
    /// The distinct id.
    pub distinct_id: String,
    /// The properties as they are sent, including those that the library adds; groups are in `$groups`.
    pub properties: Map<String, Value>,
    /// The time: RFC 3339, in UTC.
    pub timestamp: String,
    /// The uuid by which PostHog de-duplicates.
    pub uuid: Uuid,
    /// The kind of request that will deliver it.
    pub route: Route,
}

impl fmt::Debug for QueuedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Short enough to be readable in a failed assertion.
        let Self { event, distinct_id, properties, timestamp, route, .. } = self;
        write!(f, "{route:?}: {event:?} of {distinct_id:?} at {timestamp} with {}", Value::from(properties.clone()))
    }
}

/// The queued events of a client, oldest first, ordinary events before AI events. Reads the files as they are: events
/// whose delivery is not decided yet are included. Works with any client; while a client is active, the result is a
/// snapshot.
pub fn queued(client: &Client) -> Vec<QueuedEvent> {
    let lanes = client.lanes().unwrap_or_default().into_iter().zip([Route::Analytics, Route::Ai]);
    let records = lanes.flat_map(|(lane, route)| lane.contents().into_iter().map(move |record| (record, route)));
    records.filter_map(|(record, route)| read(&record, route)).collect()
}

fn read(record: &[u8], route: Route) -> Option<QueuedEvent> {
    let view = View::parse(record).ok()?;
    let mut text = Vec::new();
    json::write_event(&view, &NoSymbols, &mut text).ok()?;
    let Value::Object(mut event) = serde_json::from_slice(&text).ok()? else { return None };
    let mut string = |name: &str| match event.remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let (name, distinct_id, timestamp) = (string("event")?, string("distinct_id")?, string("timestamp")?);
    let Some(Value::Object(properties)) = event.remove("properties") else { return None };
    Some(QueuedEvent { event: name, distinct_id, properties, timestamp, uuid: view.head.uuid, route })
}
