//! The V1 endpoint, with each codec.

use std::time::Duration;

use serde_json::json;
use sink::Answer;

use super::batches;
use super::driver::{Adapter, FIRST_RETRY, Test};

/// A response of the V1 endpoint with the same result for each event of the request.
fn verdict(result: &str) -> Answer {
    Answer::results([result])
}

async fn events_have_the_wire_shape(test: &Test<'_>) {
    test.init(json!({})).await;
    test.capture(json!({ "properties": { "plan": "pro" } })).await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!(request.path.trim_end_matches('/'), test.endpoint());
    assert_eq!(request.header("authorization"), Some("Bearer phc_test_key"));
    assert_eq!(
        (request.header("posthog-attempt"), request.header("content-type")),
        (Some("1"), Some("application/json"))
    );
    assert!(request.header("user-agent").is_some_and(|agent| !agent.is_empty()));
    assert!(request.header("posthog-sdk-info").unwrap().starts_with("posthog-durable/"));
    assert!(request.header("posthog-request-timestamp").unwrap().ends_with('Z'));
    uuid::Uuid::parse_str(request.header("posthog-request-id").unwrap()).unwrap();
    let body = &request.envelope;
    assert!(
        ["api_key", "token", "sent_at", "historical_migration"].iter().all(|key| body.get(key).is_none()),
        "{body}"
    );
    body["created_at"].as_str().and_then(|at| at.strip_suffix('Z')).expect("a time in UTC");
    let event = test.sink.events().remove(0);
    assert_eq!((&event.others["options"], &event.properties["plan"]), (&json!({}), &json!("pro")));
}

async fn options_are_not_sent_as_properties(test: &Test<'_>) {
    test.init(json!({})).await;
    let given = json!({
        "cookieless_mode": true, "disable_skew_correction": true, "process_person_profile": false, "product_tour_id": "t",
    });
    test.capture(json!({ "options": given })).await;
    // A null option leaves the property of the same meaning in effect.
    let property = json!({ "$product_tour_id": "t", "$process_person_profile": true });
    let options = json!({ "product_tour_id": null, "process_person_profile": false });
    test.capture(json!({ "properties": property, "options": options })).await;
    test.flush().await;
    test.at_least(1).await;
    let events = test.sink.events();
    assert_eq!(events[0].others["options"], given);
    assert_eq!(events[1].others["options"], json!({ "product_tour_id": "t", "process_person_profile": false }));
    let names = ["$cookieless_mode", "$ignore_sent_at", "$process_person_profile", "$product_tour_id"];
    assert!(events.iter().all(|event| names.iter().all(|name| event.properties.get(name).is_none())));
}

async fn a_retry_has_the_same_id_and_another_attempt_and_time(test: &Test<'_>) {
    test.sink.script([Answer::status(503), Answer::status(500)]);
    test.init(json!({})).await;
    test.capture(json!({})).await;
    test.flush().await;
    let requests = test.at_least(3).await;
    let header =
        |name: &str| requests.iter().map(|request| request.header(name).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(header("posthog-attempt"), ["1", "2", "3"]);
    assert!(header("posthog-request-id").windows(2).all(|two| two[0] == two[1]));
    assert!(header("posthog-request-timestamp").windows(2).all(|two| two[0] != two[1]));
    test.sink.script([Answer::status(408), Answer::status(504)]);
    test.capture(json!({})).await;
    test.flush().await;
    let next = test.at_least(6).await.split_off(3);
    assert_eq!(
        next.iter().map(|request| request.header("posthog-attempt").unwrap()).collect::<Vec<_>>(),
        ["1", "2", "3"]
    );
    assert_ne!(next[0].header("posthog-request-id"), Some(header("posthog-request-id")[0].as_str()));
}

async fn only_the_events_with_the_result_retry_are_sent_again(test: &Test<'_>) {
    test.sink.script([Answer::results(["ok", "drop", "limited", "retry", "unknown_result", "missing"])]);
    test.init(json!({ "flush_at": 10 })).await;
    for _ in 0..6 {
        test.capture(json!({})).await;
    }
    test.flush().await;
    let requests = test.at_least(2).await;
    assert_eq!((requests[0].uuids.len(), &requests[1].uuids[..]), (6, &requests[0].uuids[3..4]));
    assert_eq!(requests[0].header("posthog-request-id"), requests[1].header("posthog-request-id"));
    assert_eq!(requests[1].header("posthog-attempt"), Some("2"));
    test.exactly(2, FIRST_RETRY).await;
}

async fn retry_after_is_honoured(test: &Test<'_>) {
    test.init(json!({})).await;
    for (at, answer) in [Answer::status(503), verdict("retry")].into_iter().enumerate() {
        test.sink.script([answer.retry_after(3)]);
        test.capture(json!({})).await;
        test.flush().await;
        let requests = test.at_least(at * 2 + 2).await;
        let waited = requests[at * 2 + 1].arrived - requests[at * 2].arrived;
        assert!(waited >= Duration::from_millis(2500), "{waited:?}");
    }
}

async fn what_is_refused_is_not_tried_again(test: &Test<'_>) {
    for status in [400, 401, 402, 403, 413, 415] {
        test.post("/reset", None).await;
        test.sink.clear();
        test.init(json!({ "max_retries": 3 })).await;
        test.sink.default_answer(Answer::status(status).body(r#"{"error":"refused","error_description":"no"}"#));
        test.capture(json!({})).await;
        test.flush().await;
        test.exactly(1, FIRST_RETRY).await;
    }
}

async fn settings_apply_to_the_envelope_and_its_events(test: &Test<'_>) {
    test.init(json!({ "historical_migration": true, "disable_geoip": true })).await;
    test.capture(json!({})).await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!(request.envelope["historical_migration"], true);
    assert_eq!(test.sink.events()[0].properties["$geoip_disable"], true);
}

async fn a_body_is_compressed_if_compression_is_enabled(test: &Test<'_>, codec: &str) {
    test.init(json!({ "enable_compression": true })).await;
    test.capture(json!({})).await;
    test.flush().await;
    let request = test.at_least(1).await.remove(0);
    assert_eq!((request.header("content-encoding"), request.query.as_str()), (Some(codec), ""));
    assert_eq!(test.sink.events()[0].event, test.event(), "it can be read");
}

async fn ai_events_have_an_endpoint_of_their_own(test: &Test<'_>) {
    test.init(json!({})).await;
    let given = "0198c0de-0000-7000-8000-000000000abc";
    let event = json!({ "distinct_id": "user_1", "event": "$ai_generation", "uuid": given });
    assert_eq!(test.post("/capture_ai", Some(event)).await["uuid"], given);
    test.capture(json!({ "event": "$ai_span" })).await;
    test.flush().await;
    let requests = test.at_least(2).await;
    let events = test.sink.events();
    let at = |name: &str| &*requests[events.iter().find(|event| event.event == name).unwrap().request].path;
    assert_eq!([at("$ai_generation"), at("$ai_span")], ["/i/v1/ai/events", "/i/v1/analytics/events"]);
    assert_eq!(events.iter().find(|event| event.event == "$ai_generation").unwrap().uuid.to_string(), given);
}

async fn all(adapter: &Adapter, id: Option<&str>, codec: &str) {
    ai_events_have_an_endpoint_of_their_own(&Test::begin(adapter, id).await).await;
    all_of(codec, || Test::begin(adapter, id)).await;
    all_of(codec, || async { Test::begin(adapter, id).await.of_ai() }).await;
}

async fn all_of<'a, F: Future<Output = Test<'a>>>(codec: &str, test: impl Fn() -> F) {
    events_have_the_wire_shape(&test().await).await;
    a_retry_has_the_same_id_and_another_attempt_and_time(&test().await).await;
    options_are_not_sent_as_properties(&test().await).await;
    only_the_events_with_the_result_retry_are_sent_again(&test().await).await;
    retry_after_is_honoured(&test().await).await;
    what_is_refused_is_not_tried_again(&test().await).await;
    settings_apply_to_the_envelope_and_its_events(&test().await).await;
    a_body_is_compressed_if_compression_is_enabled(&test().await, codec).await;
    batches::all(test).await;
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
async fn the_adapter_claims_only_the_codec_that_it_uses() {
    for codec in ["gzip", "deflate", "br", "zstd"] {
        let adapter = Adapter::start(&["--protocol", "v1", "--encoding", codec]);
        let test = Test::begin(&adapter, None).await;
        assert_eq!(
            test.get("/health").await["capabilities"],
            json!(["capture_v1", "capture_ai_v1", format!("encoding_{codec}")])
        );
        a_body_is_compressed_if_compression_is_enabled(&test, codec).await;
    }
}
