//! Feature flags.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sink::{Answer, FlagRoute, Request};

use super::driver::{Adapter, Test};

/// The response of the harness's server, in the old format.
fn values() -> Answer {
    Answer::status(200).body(json!({ "featureFlags": { "on": true, "off": false, "button": "blue" } }).to_string())
}

async fn ask(test: &Test<'_>, more: Value) -> Value {
    let mut body = json!({ "key": "button", "distinct_id": "user_1", "force_remote": true });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    test.post("/get_feature_flag", Some(body)).await["value"].clone()
}

fn asked(test: &Test<'_>) -> Vec<Request> {
    test.sink.requests().into_iter().filter(|request| request.path.trim_end_matches('/') == "/flags").collect()
}

async fn a_flag_is_a_variant_true_false_or_nothing(test: &Test<'_>) {
    test.init(json!({})).await;
    test.sink.flags(FlagRoute::Values, values());
    assert_eq!(ask(test, json!({})).await, "blue");
    assert_eq!(ask(test, json!({ "key": "on" })).await, true);
    assert_eq!(ask(test, json!({ "key": "off" })).await, false);
    assert_eq!(ask(test, json!({ "key": "none" })).await, Value::Null);
    assert_eq!(asked(test).len(), 4, "each asks the server");
}

async fn the_question_says_all_that_was_given_and_the_rest_is_empty(test: &Test<'_>) {
    test.init(json!({})).await;
    test.sink.flags(FlagRoute::Values, values());
    ask(test, json!({})).await;
    let more = json!({
        "person_properties": { "plan": "pro" }, "groups": { "company": "acme" },
        "group_properties": { "company": { "tier": "gold" } }, "disable_geoip": true,
    });
    ask(test, more).await;
    let requests = asked(test);
    let expected = json!({
        "token": "phc_test_key", "distinct_id": "user_1", "groups": {}, "person_properties": {}, "group_properties": {},
        "geoip_disable": false, "flag_keys_to_evaluate": ["button"],
    });
    assert_eq!((&requests[0].envelope, requests[0].query.as_str()), (&expected, "v=2"));
    assert_eq!(requests[0].header("authorization"), None);
    let full = json!({
        "token": "phc_test_key", "distinct_id": "user_1", "groups": { "company": "acme" },
        "person_properties": { "plan": "pro" }, "group_properties": { "company": { "tier": "gold" } },
        "geoip_disable": true, "flag_keys_to_evaluate": ["button"],
    });
    assert_eq!(requests[1].envelope, full);
}

async fn a_read_is_captured(test: &Test<'_>) {
    test.init(json!({})).await;
    test.sink.flags(FlagRoute::Values, values());
    ask(test, json!({ "groups": { "company": "acme" } })).await;
    test.flush().await;
    let event = test.sink.events().remove(0);
    assert_eq!((event.event.as_str(), event.distinct_id.as_str()), ("$feature_flag_called", "user_1"));
    let said = ["$feature_flag", "$feature_flag_response", "$groups"].map(|key| event.properties[key].clone());
    assert_eq!(said, [json!("button"), json!("blue"), json!({ "company": "acme" })]);
}

async fn gateways_are_asked_again_and_others_are_not(test: &Test<'_>) {
    for (status, attempts) in [(502, 2), (504, 2), (500, 1), (503, 1), (429, 1), (408, 1), (400, 1), (401, 1)] {
        clear(test).await;
        test.init(json!({})).await;
        test.sink.flags(FlagRoute::Values, values());
        test.sink.script_flags(FlagRoute::Values, [Answer::status(status)]);
        let expected = if attempts == 2 { json!("blue") } else { Value::Null };
        assert_eq!((ask(test, json!({})).await, asked(test).len()), (expected, attempts), "{status}");
    }
}

async fn whose_test_it_is_is_said_with_the_question(test: &Test<'_>) {
    test.init(json!({})).await;
    ask(test, json!({})).await;
    assert_eq!(asked(test)[0].header("x-test-id"), test.id());
}

/// Events that the instance still holds would arrive later.
async fn clear(test: &Test<'_>) {
    test.post("/reset", None).await;
    test.sink.clear();
}

async fn all(test: &Test<'_>) {
    a_flag_is_a_variant_true_false_or_nothing(test).await;
    clear(test).await;
    the_question_says_all_that_was_given_and_the_rest_is_empty(test).await;
    clear(test).await;
    a_read_is_captured(test).await;
    gateways_are_asked_again_and_others_are_not(test).await;
    clear(test).await;
    whose_test_it_is_is_said_with_the_question(test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_are_answered_on_one_instance_and_on_many() {
    for protocol in ["v0", "v1"] {
        let adapter = Adapter::start(&["--protocol", protocol]);
        all(&Test::begin(&adapter, None).await).await;
        let ids: Vec<String> = (0..3).map(|number| format!("test_{number}")).collect();
        let each = join_all(ids.iter().map(async |id| all(&Test::begin(&adapter, Some(id)).await).await));
        tokio::time::timeout(Duration::from_secs(120), each).await.unwrap();
    }
}
