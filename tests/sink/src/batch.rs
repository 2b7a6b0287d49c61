//! A request's body as events, by PostHog's rules and in PostHog's words.

use std::collections::HashSet;

use memchr::memmem;
use serde_json::Value;
use uuid::Uuid;

use crate::answer::Answer;
use crate::codec::decode;

const UUID_CHARS: usize = 36;

/// One event that was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What PostHog de-duplicates by, together with name, distinct id and day.
    pub uuid: Uuid,
    /// The event's name.
    pub event: String,
    /// Whose event it is.
    pub distinct_id: String,
    /// As sent; empty if absent.
    pub timestamp: String,
    /// As sent; null if absent.
    pub properties: Value,
    /// The request's `sent_at`; empty if absent.
    pub sent_at: String,
    /// What else the event has, as sent: V1's `options`, `session_id` and `window_id`.
    pub others: Value,
    /// Position of its request in [`State::requests`](crate::State::requests).
    pub request: usize,
}

/// The events of one request, and what stands around them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) api_key: String,
    pub(crate) sent_at: String,
    pub(crate) uuids: Vec<Uuid>,
    pub(crate) events: Vec<Event>,
    /// Of a request that is taken, those that are not.
    pub(crate) left: HashSet<Uuid>,
    /// The body without its events.
    pub(crate) envelope: Value,
    /// Whether the uuids are worth keeping with the request too.
    pub(crate) keeps_uuids: bool,
}

/// The body as JSON text. `Err` is PostHog's answer to a body that cannot be read or is too large.
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

/// Reads the uuids alone, without looking at the rest.
pub(crate) fn scan(text: &[u8]) -> Batch {
    const KEY: &[u8] = br#""uuid":""#;
    let uuid_at = |at: usize| {
        let value = text.get(at + KEY.len()..)?.get(..UUID_CHARS)?;
        Uuid::try_parse_ascii(value).ok()
    };
    Batch { uuids: memmem::find_iter(text, KEY).filter_map(uuid_at).collect(), ..Batch::default() }
}

/// The body as a tree, with its events taken out. `Err` is PostHog's answer to a body that is no batch.
pub(crate) fn parse(text: &[u8]) -> Result<(Value, Vec<Value>), Answer> {
    let mut body: Value =
        serde_json::from_slice(text).map_err(|error| refused(400, format!("failed to parse request: {error}")))?;
    match body.get_mut("batch").map(Value::take) {
        Some(Value::Array(events)) => Ok((body, events)),
        _ => Err(refused(400, "failed to parse request: missing field `batch`")),
    }
}

/// The batch, valid or not, as far as it can be read; and PostHog's answer if it is not valid.
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
            Err(words) => refusal = refusal.or_else(|| Some(refused(400, words))),
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

pub(crate) fn refused(status: u16, words: impl Into<String>) -> Answer {
    Answer::status(status).body(words)
}
