//! The queue, to be read.

use std::fmt;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::server::Route;
use crate::client::Client;
use crate::record::{NoSymbols, View, json};

/// An event that was accepted and neither delivered nor given up.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct QueuedEvent {
    /// Its name.
    pub event: String,
    /// Who did it.
    pub distinct_id: String,
    /// As they are sent, what the library adds included; groups are in `$groups`.
    pub properties: Map<String, Value>,
    /// When it happened: RFC 3339, in UTC.
    pub timestamp: String,
    /// What PostHog de-duplicates by.
    pub uuid: Uuid,
    /// Where it will go.
    pub route: Route,
}

impl fmt::Debug for QueuedEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As short as a failed assertion can be read.
        let Self { event, distinct_id, properties, timestamp, route, .. } = self;
        write!(f, "{route:?}: {event:?} of {distinct_id:?} at {timestamp} with {}", Value::from(properties.clone()))
    }
}

/// The events in the queue of this client, oldest first, analytics before AI events. Reads the files as they are: whatever delivery
/// has not heard the server's verdict on is still there. Works with any client; while one is at work, what is seen is a moment of it.
pub fn queued(client: &Client) -> Vec<QueuedEvent> {
    let Some((analytics, ai)) = client.pipelines() else { return Vec::new() };
    let lanes = [(Some(analytics), Route::Analytics), (ai, Route::Ai)];
    let records = lanes.into_iter().flat_map(|(pipeline, route)| {
        let records = pipeline.map(|pipeline| pipeline.contents()).unwrap_or_default();
        records.into_iter().map(move |record| (record, route))
    });
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
