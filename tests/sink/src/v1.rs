//! V1 batches: `POST /i/v1/analytics/events`, and `/i/v1/ai/events` for AI events, with a result for each event.

use std::collections::HashSet;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::Answer;
use crate::batch::{Batch, Event, event_of, text_of, uuid_of};
use crate::state::Request;

pub(crate) const PATHS: [&str; 4] = ["/i/v1/analytics/events", "/i/v1/analytics/events/", AI_PATH, "/i/v1/ai/events/"];
const AI_PATH: &str = "/i/v1/ai/events";

const HEADERS: [&str; 5] =
    ["authorization", "posthog-sdk-info", "posthog-attempt", "posthog-request-id", "posthog-request-timestamp"];

/// The batch as far as it can be read, and PostHog's response if it is refused as a whole.
pub(crate) fn validate(request: &Request, body: &Value, events: Vec<Value>) -> (Batch, Option<Answer>) {
    let key = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let mut batch = Batch {
        api_key: key.to_owned(),
        sent_at: request.header("posthog-request-timestamp").unwrap_or_default().to_owned(),
        envelope: body.clone(),
        keeps_uuids: true,
        ..Batch::default()
    };
    let mut refusal = None;
    if key.is_empty() {
        refusal = Some(refused(401, "missing_authorization"));
    } else if HEADERS.iter().any(|name| request.header(name).is_none_or(str::is_empty)) {
        refusal = Some(refused(400, "missing_required_headers"));
    } else if text_of(body, "created_at").is_empty()
        || ["api_key", "token", "sent_at"].iter().any(|key| body.get(key).is_some())
    {
        refusal = Some(refused(400, "invalid_batch"));
    } else if events.is_empty() {
        refusal = Some(refused(400, "empty_batch"));
    }
    let mut seen = HashSet::new();
    for event in events {
        let Some(uuid) = uuid_of(&event).filter(|&uuid| seen.insert(uuid)) else {
            refusal = refusal.or_else(|| Some(refused(400, "invalid_or_duplicate_uuid")));
            continue;
        };
        batch.uuids.push(uuid);
        let has_options = event.get("options").is_some_and(is_all_set);
        match event_of(event, &batch.sent_at) {
            Ok(event) if is_misrouted(request, &event) => {
                batch.left.insert(uuid, "misrouted_event");
            }
            Ok(event) if has_options => batch.events.push(event),
            _ => {
                batch.left.insert(uuid, "invalid event");
            }
        }
    }
    (batch, refusal)
}

/// The response to a taken batch: a result for each event, from `words` in order (the last one applies to all further
/// events), with details after a colon. Events that could not be read are dropped in any case.
pub(crate) fn judge(batch: &mut Batch, words: &[String]) -> String {
    let mut results = serde_json::Map::new();
    for (at, uuid) in batch.uuids.iter().enumerate() {
        let word = words.get(at).or(words.last()).map_or("ok", String::as_str);
        let (result, details) = match batch.left.get(uuid) {
            Some(why) => ("drop", *why),
            None => word.split_once(':').unwrap_or((word, "")),
        };
        if !matches!(result, "ok" | "warning") {
            batch.left.entry(*uuid).or_insert("not accepted");
        }
        if result != "missing" {
            results.insert(key(*uuid), result_of(result, details));
        }
    }
    json!({ "results": results }).to_string()
}

/// Whether the endpoint for AI events got an event of another kind.
fn is_misrouted(request: &Request, event: &Event) -> bool {
    request.path.trim_end_matches('/') == AI_PATH && !event.event.starts_with("$ai_")
}

fn key(uuid: Uuid) -> String {
    uuid.hyphenated().to_string()
}

fn result_of(result: &str, details: &str) -> Value {
    if details.is_empty() { json!({ "result": result }) } else { json!({ "result": result, "details": details }) }
}

fn is_all_set(options: &Value) -> bool {
    options.as_object().is_some_and(|options| options.values().all(|value| !value.is_null()))
}

fn refused(status: u16, tag: &str) -> Answer {
    Answer::status(status).body(json!({ "error": tag, "error_description": tag }).to_string())
}
