//! The V0 endpoint and the AI endpoint.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sink::Answer;

use super::batches;
use super::driver::{Adapter, FIRST_RETRY, Test};

async fn events_have_the_wire_shape(test: &Test<'_>) {
    test.init(json!({ "flush_at": 3 })).await;
    let receipt = test.capture(json!({ "properties": { "plan": "pro", "n": 3 } })).await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!((request.method.as_str(), request.path.trim_end_matches('/')), ("POST", "/batch"));
    assert_eq!((request.api_key.as_str(), request.header("content-encoding")), ("phc_test_key", None));
    assert_eq!(request.header("content-type"), Some("application/json"));
    let event = test.sink.events().remove(0);
    assert_eq!((event.event.as_str(), event.distinct_id.as_str()), ("tick", "user_1"));
    assert_eq!(receipt["uuid"], event.uuid.to_string());
    assert_eq!((&event.properties["plan"], &event.properties["n"]), (&json!("pro"), &json!(3)));
    assert_eq!(event.properties["$lib"], "posthog-durable");
    assert!(event.timestamp.ends_with('Z'), "{}", event.timestamp);
}

async fn what_failed_is_sent_again_after_a_wait(test: &Test<'_>) {
    test.init(json!({ "flush_at": 1, "max_retries": 3 })).await;
    // In pairs, because the waits grow with each failure in a row.
    for (at, statuses) in [[408, 500], [502, 504]].into_iter().enumerate() {
        test.answers(&statuses);
        test.capture(json!({})).await;
        test.flush().await;
        let requests = test.at_least(at * 3 + 3).await.split_off(at * 3);
        assert!(requests.iter().all(|request| request.uuids == requests[0].uuids && request.uuids.len() == 1));
        assert!(requests[1].arrived - requests[0].arrived >= Duration::from_millis(100));
    }
    assert_eq!(test.sink.inspect(|state| (state.unique(), state.duplicates())), (2, 0));
}

async fn a_cycle_ends_after_the_first_attempt_and_its_retries(test: &Test<'_>) {
    test.init(json!({ "max_retries": 3 })).await;
    test.sink.default_answer(Answer::status(503));
    test.capture(json!({})).await;
    test.flush().await;
    test.exactly(4, Duration::from_secs(9)).await;
    assert_eq!(test.get("/state").await["pending_events"], 1, "it is kept");
}

async fn retry_after_is_honoured(test: &Test<'_>) {
    test.init(json!({})).await;
    test.sink.script([Answer::status(429).retry_after(3)]);
    test.capture(json!({})).await;
    test.flush().await;
    let requests = test.at_least(2).await;
    let waited = requests[1].arrived - requests[0].arrived;
    assert!(waited >= Duration::from_millis(2500), "{waited:?}");
}

async fn what_is_refused_is_not_tried_again(test: &Test<'_>) {
    for (status, body) in [
        (400, "event submitted with an empty event name"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (413, r#"{"error":"payload_too_large"}"#),
    ] {
        test.post("/reset", None).await;
        test.sink.clear();
        test.init(json!({ "max_retries": 3 })).await;
        test.sink.default_answer(Answer::status(status).body(body));
        test.capture(json!({})).await;
        test.flush().await;
        test.exactly(1, FIRST_RETRY).await;
    }
}

async fn a_reset_discards_queued_events_and_retries(test: &Test<'_>) {
    test.init(json!({})).await;
    test.sink.default_answer(Answer::status(503));
    test.capture(json!({})).await;
    test.flush().await;
    test.post("/reset", None).await;
    test.sink.clear();
    test.sink.default_answer(Answer::ok());
    test.init(json!({})).await;
    test.flush().await;
    test.exactly(0, FIRST_RETRY).await;
}

async fn a_body_is_compressed_if_compression_is_enabled(test: &Test<'_>) {
    test.init(json!({ "enable_compression": true })).await;
    test.capture(json!({})).await;
    test.flush().await;
    assert_eq!(test.at_least(1).await[0].header("content-encoding"), Some("gzip"));
    assert_eq!(test.sink.events()[0].event, "tick");
}

async fn settings_apply_to_the_request_and_its_events(test: &Test<'_>) {
    test.init(json!({ "disable_geoip": true, "api_key": "phc_specific_key_12345" })).await;
    test.capture(json!({})).await;
    test.flush().await;
    assert_eq!(test.at_least(1).await[0].api_key, "phc_specific_key_12345");
    assert_eq!(test.sink.events()[0].properties["$geoip_disable"], true);
}

async fn ai_events_have_an_endpoint_of_their_own(test: &Test<'_>) {
    test.init(json!({})).await;
    let given = "0198c0de-0000-7000-8000-000000000abc";
    let event = json!({ "distinct_id": "user_1", "event": "$ai_generation", "properties": null, "timestamp": null });
    let with = |key: &str, value: &str| {
        let mut event = event.clone();
        event[key] = json!(value);
        event
    };
    assert_eq!(test.post("/capture_ai", Some(with("uuid", given))).await["uuid"], given);
    let made = test.post("/capture_ai", Some(with("timestamp", "2025-01-02T08:34:05+05:30"))).await["uuid"].take();
    test.capture(json!({ "event": "$ai_span" })).await;
    test.flush().await;
    test.at_least(2).await;
    let events = test.sink.events();
    let on = |path: &str| {
        let of = |event: &&sink::Event| test.sink.requests()[event.request].path.trim_end_matches('/') == path;
        events.iter().filter(of).collect::<Vec<_>>()
    };
    let (plain, ai) = (on("/batch"), on("/i/v0/ai/batch"));
    assert_eq!((plain.len(), plain[0].event.as_str()), (1, "$ai_span"));
    assert_eq!(ai.iter().map(|event| json!(event.uuid.to_string())).collect::<Vec<_>>(), [json!(given), made]);
    assert_eq!(ai[1].timestamp, "2025-01-02T03:04:05Z");
}

async fn all(adapter: &Adapter, id: Option<&str>) {
    let test = || Test::begin(adapter, id);
    events_have_the_wire_shape(&test().await).await;
    what_failed_is_sent_again_after_a_wait(&test().await).await;
    a_cycle_ends_after_the_first_attempt_and_its_retries(&test().await).await;
    retry_after_is_honoured(&test().await).await;
    what_is_refused_is_not_tried_again(&test().await).await;
    a_reset_discards_queued_events_and_retries(&test().await).await;
    a_body_is_compressed_if_compression_is_enabled(&test().await).await;
    settings_apply_to_the_request_and_its_events(&test().await).await;
    ai_events_have_an_endpoint_of_their_own(&test().await).await;
    batches::all(test).await;
}

#[tokio::test]
async fn every_check_holds_one_after_the_other_on_one_instance() {
    all(&Adapter::start(&[]), None).await;
}

#[tokio::test]
async fn every_check_holds_for_many_instances_at_once() {
    let adapter = Adapter::start(&[]);
    let ids: Vec<_> = (0..12).map(|id| format!("test-{id}")).collect();
    let checks: Vec<_> = ids.iter().map(|id| all(&adapter, Some(id))).collect();
    join_all(checks).await;
}

#[tokio::test]
async fn every_request_carries_the_id_of_its_test() {
    let adapter = Adapter::start(&[]);
    let test = Test::begin(&adapter, Some("abc")).await;
    test.init(json!({})).await;
    test.capture(json!({})).await;
    test.flush().await;
    assert_eq!(test.at_least(1).await[0].header("x-test-id"), Some("abc"));
}

#[tokio::test]
async fn the_adapter_claims_what_its_mode_supports() {
    let adapter = Adapter::start(&[]);
    let test = Test::begin(&adapter, None).await;
    let health = test.get("/health").await;
    assert_eq!(health["capabilities"], json!(["capture_v0", "capture_ai_v0", "encoding_gzip"]));
    assert_eq!((&health["sdk_name"], &health["supports_parallel"]), (&json!("posthog-durable"), &json!(true)));
}
