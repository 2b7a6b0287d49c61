//! Parsing the body of a request into events, with PostHog's rules and messages.

use std::collections::HashMap;

use memchr::memmem;
use serde_json::Value;
use uuid::Uuid;

use crate::answer::Answer;
use crate::codec::decode;

const UUID_CHARS: usize = 36;

/// A taken event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// PostHog de-duplicates by uuid, name, distinct id and day.
    pub uuid: Uuid,
    /// The event's name.
    pub event: String,
    /// Its distinct id.
    pub distinct_id: String,
    /// As sent; empty if absent.
    pub timestamp: String,
    /// As sent; null if absent.
    pub properties: Value,
    /// The request's `sent_at`; empty if absent.
    pub sent_at: String,
    /// All other fields as sent: V1's `options`, `session_id` and `window_id`.
    pub others: Value,
    /// Position of its request in [`State::requests`](crate::State::requests).
    pub request: usize,
}

/// The events of one request, and the rest of its body.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) api_key: String,
    pub(crate) sent_at: String,
    pub(crate) uuids: Vec<Uuid>,
    pub(crate) events: Vec<Event>,
    /// Events of a taken request that are not taken themselves, with the reason.
    pub(crate) left: HashMap<Uuid, &'static str>,
    /// The body without its events.
    pub(crate) envelope: Value,
    /// Whether the uuids are also kept with the request.
    pub(crate) keeps_uuids: bool,
}

/// The body as JSON text. `Err` is PostHog's response to a body that cannot be decoded or is too large.
pub(crate) fn decompress(body: Vec<u8>, encoding: Option<&str>, size_limit: usize) -> Result<Vec<u8>, Answer> {
    if body.len() > size_limit {
        return Err(too_large(body.len(), size_limit));
    }
    match decode(encoding, body, size_limit) {
        Ok(text) if text.len() > size_limit => Err(too_large(text.len(), size_limit)),
        Ok(text) => Ok(text),
        Err(error) => Err(refused(400, format!("failed to decode request: {error}"))),
    }
}

/// Reads only the uuids, without parsing the rest.
pub(crate) fn scan(text: &[u8]) -> Batch {
    const KEY: &[u8] = br#""uuid":""#;
    let uuid_at = |at: usize| {
        let value = text.get(at + KEY.len()..)?.get(..UUID_CHARS)?;
        Uuid::try_parse_ascii(value).ok()
    };
    Batch { uuids: memmem::find_iter(text, KEY).filter_map(uuid_at).collect(), ..Batch::default() }
}

/// The body as a tree without its events, and the events. `Err` is PostHog's response to a body that is not a batch.
pub(crate) fn parse(text: &[u8]) -> Result<(Value, Vec<Value>), Answer> {
    let mut body: Value =
        serde_json::from_slice(text).map_err(|error| refused(400, format!("failed to parse request: {error}")))?;
    match body.get_mut("batch").map(Value::take) {
        Some(Value::Array(events)) => Ok((body, events)),
        _ => Err(refused(400, "failed to parse request: missing field `batch`")),
    }
}

/// The batch as far as it can be read, and PostHog's response if it is not valid.
pub(crate) fn validate(body: &Value, events: Vec<Value>) -> (Batch, Option<Answer>) {
    let mut batch = Batch {
        api_key: text_of(body, "api_key"),
        sent_at: text_of(body, "sent_at"),
        keeps_uuids: true,
        envelope: body.clone(),
        ..Batch::default()
    };
    let mut refusal = if batch.api_key.is_empty() {
        Some(refused(401, "event submitted without an api_key"))
    } else if events.is_empty() {
        Some(refused(400, "request holds no event"))
    } else {
        None
    };
    for event in events {
        batch.uuids.extend(uuid_of(&event));
        match event_of(event, &batch.sent_at) {
            Ok(event) => batch.events.push(event),
            Err(message) => refusal = refusal.or_else(|| Some(refused(400, message))),
        }
    }
    (batch, refusal)
}

pub(crate) fn event_of(mut value: Value, sent_at: &str) -> Result<Event, &'static str> {
    let event = text_of(&value, "event");
    if event.is_empty() {
        return Err("event submitted with an empty event name");
    }
    let distinct_id = text_of(&value, "distinct_id");
    if distinct_id.is_empty() {
        return Err("event submitted without a distinct_id");
    }
    let uuid = uuid_of(&value);
    let properties = value.get_mut("properties").map(Value::take).unwrap_or_default();
    let timestamp = text_of(&value, "timestamp");
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, _| !["uuid", "event", "distinct_id", "timestamp", "properties"].contains(&name.as_str()));
    }
    Ok(Event {
        uuid: uuid.ok_or("failed to parse request: event without a valid uuid")?,
        event,
        distinct_id,
        timestamp,
        properties,
        sent_at: sent_at.to_owned(),
        others: value,
        request: 0,
    })
}

pub(crate) fn uuid_of(event: &Value) -> Option<Uuid> {
    event.get("uuid")?.as_str()?.parse().ok()
}

pub(crate) fn text_of(object: &Value, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn too_large(bytes: usize, limit: usize) -> Answer {
    refused(413, format!("maximum event size exceeded: payload of {bytes} bytes is above {limit}"))
}

pub(crate) fn refused(status: u16, message: impl Into<String>) -> Answer {
    Answer::status(status).body(message)
}
