//! The V1 endpoint, with each codec.

use std::time::Duration;

use serde_json::json;
use sink::Answer;

use super::driver::{Adapter, FIRST_RETRY, Test};

/// An answer of the V1 endpoint that says the same of each event of the request.
fn verdict(result: &str) -> Answer {
    Answer::results([result])
}

async fn events_have_the_wire_shape(test: &Test<'_>) {
    test.sink.default_answer(verdict("ok"));
    test.init(json!({})).await;
    test.capture(json!({
        "properties": { "plan": "pro" },
        "options": { "cookieless_mode": true, "process_person_profile": false, "product_tour_id": "t" },
    }))
    .await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!(request.path.trim_end_matches('/'), "/i/v1/analytics/events");
    assert_eq!(request.header("authorization"), Some("Bearer phc_test_key"));
    assert_eq!(request.header("posthog-attempt"), Some("1"));
    assert!(request.header("posthog-sdk-info").unwrap().starts_with("posthog-durable/"));
    assert!(request.header("posthog-request-timestamp").unwrap().ends_with('Z'));
    uuid::Uuid::parse_str(request.header("posthog-request-id").unwrap()).unwrap();
    let body = &request.envelope;
    assert!(
        ["api_key", "token", "sent_at", "historical_migration"].iter().all(|key| body.get(key).is_none()),
        "{body}"
    );
    assert!(body["created_at"].is_string());
    let event = test.sink.events().remove(0);
    let options = json!({ "cookieless_mode": true, "process_person_profile": false, "product_tour_id": "t" });
    assert_eq!((&event.others["options"], &event.properties["plan"]), (&options, &json!("pro")));
    assert!(event.properties.get("$cookieless_mode").is_none());
}

async fn a_retry_has_the_same_id_and_another_attempt_and_time(test: &Test<'_>) {
    test.sink.script([Answer::status(503), Answer::status(500)]);
    test.sink.default_answer(verdict("ok"));
    test.init(json!({})).await;
    test.capture(json!({})).await;
    test.flush().await;
    let requests = test.at_least(3).await;
    let header =
        |name: &str| requests.iter().map(|request| request.header(name).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(header("posthog-attempt"), ["1", "2", "3"]);
    assert!(header("posthog-request-id").windows(2).all(|two| two[0] == two[1]));
    assert!(header("posthog-request-timestamp").windows(2).all(|two| two[0] != two[1]));
    test.capture(json!({})).await;
    test.flush().await;
    let next = test.at_least(4).await.remove(3);
    assert_eq!(next.header("posthog-attempt"), Some("1"));
    assert_ne!(next.header("posthog-request-id"), Some(header("posthog-request-id")[0].as_str()));
}

async fn an_event_that_is_to_be_retried_is_and_one_that_is_dropped_is_not(test: &Test<'_>) {
    test.sink.script([verdict("retry").header("retry-after", "1")]);
    test.sink.default_answer(verdict("drop"));
    test.init(json!({})).await;
    test.capture(json!({})).await;
    test.flush().await;
    let requests = test.at_least(2).await;
    assert_eq!(requests[0].header("posthog-request-id"), requests[1].header("posthog-request-id"));
    assert!(requests[1].arrived - requests[0].arrived >= Duration::from_millis(900));
    test.exactly(2, FIRST_RETRY).await;
}

async fn what_is_refused_is_not_tried_again(test: &Test<'_>) {
    for status in [400, 401, 402, 403, 413] {
        test.post("/reset", None).await;
        test.sink.clear();
        test.init(json!({ "max_retries": 3 })).await;
        test.sink.default_answer(Answer::status(status).body(r#"{"error":"refused","error_description":"no"}"#));
        test.capture(json!({})).await;
        test.flush().await;
        test.exactly(1, FIRST_RETRY).await;
    }
}

async fn historical_migration_is_said_only_if_it_is_one(test: &Test<'_>) {
    test.sink.default_answer(verdict("ok"));
    test.init(json!({ "historical_migration": true })).await;
    test.capture(json!({})).await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!(request.envelope["historical_migration"], true);
}

async fn a_body_is_compressed_if_that_is_asked(test: &Test<'_>, codec: &str) {
    test.sink.default_answer(verdict("ok"));
    test.init(json!({ "enable_compression": true })).await;
    test.capture(json!({})).await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!((request.header("content-encoding"), request.query.as_str()), (Some(codec), ""));
    assert_eq!(test.sink.events()[0].event, "tick", "it can be read");
}

async fn all(adapter: &Adapter, id: Option<&str>, codec: &str) {
    let test = || Test::begin(adapter, id);
    events_have_the_wire_shape(&test().await).await;
    a_retry_has_the_same_id_and_another_attempt_and_time(&test().await).await;
    an_event_that_is_to_be_retried_is_and_one_that_is_dropped_is_not(&test().await).await;
    what_is_refused_is_not_tried_again(&test().await).await;
    historical_migration_is_said_only_if_it_is_one(&test().await).await;
    a_body_is_compressed_if_that_is_asked(&test().await, codec).await;
}

#[tokio::test]
async fn every_check_holds_one_after_the_other_on_one_instance() {
    all(&Adapter::start(&["--protocol", "v1"]), None, "gzip").await;
}

#[tokio::test]
async fn every_check_holds_for_many_instances_at_once() {
    let adapter = Adapter::start(&["--protocol", "v1", "--encoding", "deflate"]);
    let ids: Vec<_> = (0..8).map(|id| format!("test-{id}")).collect();
    futures_util::future::join_all(ids.iter().map(|id| all(&adapter, Some(id), "deflate"))).await;
}

#[tokio::test]
async fn every_codec_is_claimed_alone_and_can_be_read() {
    for codec in ["gzip", "deflate", "br", "zstd"] {
        let adapter = Adapter::start(&["--protocol", "v1", "--encoding", codec]);
        let test = Test::begin(&adapter, None).await;
        assert_eq!(test.get("/health").await["capabilities"], json!(["capture_v1", format!("encoding_{codec}")]));
        a_body_is_compressed_if_that_is_asked(&test, codec).await;
    }
}
