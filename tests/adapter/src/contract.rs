//! The requests and responses of the harness's contract.
//!
//! Every response is 200 with a JSON object, because any other status ends a test before its assertions. A failure is
//! in `error`. Unknown fields are ignored, because the contract grows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use posthog::feature_flags::FlagContext;
use posthog::{Event, Outcome, Receipt};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::instance::{Init, Instance, Instances};
use crate::{CaptureProtocol, Encoding};

/// The names of an event's options as properties, from where the library takes them.
const OPTIONS: [(&str, &str); 4] = [
    ("cookieless_mode", "$cookieless_mode"),
    ("disable_skew_correction", "$ignore_sent_at"),
    ("process_person_profile", "$process_person_profile"),
    ("product_tour_id", "$product_tour_id"),
];

#[derive(Debug, Deserialize)]
struct TestId {
    test_id: Option<String>,
}

type Shared = State<Arc<Instances>>;

/// `POST /capture` and `POST /capture_ai`.
#[derive(Debug, Deserialize)]
struct Capture {
    distinct_id: String,
    event: String,
    properties: Option<Map<String, Value>>,
    timestamp: Option<String>,
    options: Option<Map<String, Value>>,
    uuid: Option<String>,
}

/// `POST /get_feature_flag`.
#[derive(Debug, Deserialize)]
struct GetFeatureFlag {
    key: String,
    distinct_id: String,
    person_properties: Option<Map<String, Value>>,
    groups: Option<BTreeMap<String, String>>,
    group_properties: Option<BTreeMap<String, Map<String, Value>>>,
    disable_geoip: Option<bool>,
    force_remote: Option<bool>,
}

pub(crate) fn router(instances: Arc<Instances>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/init", post(init))
        .route("/capture", post(capture))
        .route("/capture_ai", post(capture_ai))
        .route("/get_feature_flag", post(get_feature_flag))
        .route("/flush", post(flush))
        .route("/state", get(state))
        .route("/reset", post(reset))
        .with_state(instances)
}

async fn health(State(instances): Shared) -> Json<Value> {
    let terms = instances.terms();
    let encoding = match terms.encoding {
        Encoding::Gzip => "encoding_gzip",
        Encoding::Deflate => "encoding_deflate",
        Encoding::Br => "encoding_br",
        Encoding::Zstd => "encoding_zstd",
    };
    let capabilities = match terms.protocol {
        CaptureProtocol::V0 => vec!["capture_v0", "capture_ai_v0", encoding],
        CaptureProtocol::V1 => vec!["capture_v1", "capture_ai_v1", encoding],
    };
    Json(json!({
        "sdk_name": "posthog-durable",
        "sdk_version": posthog::VERSION,
        "adapter_version": env!("CARGO_PKG_VERSION"),
        "supports_parallel": true,
        "capabilities": capabilities,
    }))
}

async fn init(State(instances): Shared, Query(id): Query<TestId>, body: Bytes) -> Json<Value> {
    let init: Init = match serde_json::from_slice(&body) {
        Ok(init) => init,
        Err(error) => return failure(&error),
    };
    match instances.init(id.test_id, init).await {
        Ok(()) => Json(json!({ "success": true })),
        Err(error) => failure(&error),
    }
}

async fn capture(State(instances): Shared, Query(id): Query<TestId>, body: Bytes) -> Json<Value> {
    take(&instances, &id, &body, |instance, event| instance.client.capture(event))
}

async fn capture_ai(State(instances): Shared, Query(id): Query<TestId>, body: Bytes) -> Json<Value> {
    // The first AI event opens files.
    tokio::task::block_in_place(|| take(&instances, &id, &body, |instance, event| instance.client.capture_ai(event)))
}

fn take(
    instances: &Instances,
    id: &TestId,
    body: &[u8],
    capture: impl FnOnce(&Instance, Event) -> Receipt,
) -> Json<Value> {
    let Some(instance) = instances.get(id.test_id.as_deref()) else { return failure(&"no /init before") };
    let event =
        match serde_json::from_slice::<Capture>(body).map_err(|error| error.to_string()).and_then(Capture::event) {
            Ok(event) => event,
            Err(error) => return failure(&error),
        };
    let receipt = capture(&instance, event);
    match receipt.outcome() {
        Outcome::Accepted => Json(json!({ "success": true, "uuid": receipt.uuid().map(|uuid| uuid.to_string()) })),
        Outcome::Dropped(reason) => failure(&reason),
    }
}

impl Capture {
    fn event(self) -> Result<Event, String> {
        let mut event = Event::new(self.event, self.distinct_id);
        for (key, value) in self.properties.into_iter().flatten() {
            event.set_prop(key, value);
        }
        let options = self.options.unwrap_or_default();
        for (option, property) in OPTIONS {
            // A null option is unset: it must not hide the property of the same meaning.
            if let Some(value) = options.get(option).filter(|value| !value.is_null()) {
                event.set_prop(property, value);
            }
        }
        if let Some(text) = self.timestamp {
            let time: jiff::Timestamp = text.parse().map_err(|error| format!("timestamp: {error}"))?;
            event = event.timestamp(SystemTime::try_from(time).map_err(|error| format!("timestamp: {error}"))?);
        }
        match self.uuid {
            Some(text) => Ok(event.uuid(Uuid::parse_str(&text).map_err(|error| format!("uuid: {error}"))?)),
            None => Ok(event),
        }
    }
}

async fn get_feature_flag(State(instances): Shared, Query(id): Query<TestId>, body: Bytes) -> Json<Value> {
    let Some(instance) = instances.get(id.test_id.as_deref()) else { return failure(&"no /init before") };
    let asked: GetFeatureFlag = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return failure(&error),
    };
    let key = asked.key.clone();
    let value = instance.client.get_feature_flag(key, asked.context()).await;
    Json(json!({ "success": true, "value": value }))
}

impl GetFeatureFlag {
    fn context(self) -> FlagContext {
        let mut context = FlagContext::new(self.distinct_id).ask_posthog(self.force_remote.unwrap_or(false));
        for (name, value) in self.person_properties.into_iter().flatten() {
            context = context.person_property(name, value);
        }
        for (group_type, key) in self.groups.into_iter().flatten() {
            context = context.group(group_type, key);
        }
        for (group_type, properties) in self.group_properties.into_iter().flatten() {
            for (name, value) in properties {
                context = context.group_property(group_type.as_str(), name, value);
            }
        }
        match self.disable_geoip {
            Some(disable) => context.disable_geoip(disable),
            None => context,
        }
    }
}

async fn flush(State(instances): Shared, Query(id): Query<TestId>) -> Json<Value> {
    let Some(instance) = instances.get(id.test_id.as_deref()) else { return failure(&"no /init before") };
    match instance.flush().await {
        Some(report) => Json(json!({ "success": true, "events_flushed": report.delivered })),
        None => failure(&"the flush did not end in time"),
    }
}

async fn state(State(instances): Shared, Query(id): Query<TestId>) -> Json<Value> {
    let Some(instance) = instances.get(id.test_id.as_deref()) else { return failure(&"no /init before") };
    let stats = instance.client.stats();
    Json(json!({
        "pending_events": stats.queued_events,
        "total_events_captured": stats.accepted,
        "total_events_sent": stats.delivered,
        "total_retries": stats.failed_attempts,
        "last_error": stats.last_error,
    }))
}

async fn reset(State(instances): Shared, Query(id): Query<TestId>) -> Json<Value> {
    instances.reset(id.test_id.as_deref()).await;
    Json(json!({ "success": true }))
}

fn failure(error: &dyn std::fmt::Display) -> Json<Value> {
    Json(json!({ "success": false, "uuid": null, "error": error.to_string() }))
}
