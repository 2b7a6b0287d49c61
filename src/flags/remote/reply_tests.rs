//! Responses as PostHog sends them, and malformed ones.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn reply(body: &Value) -> Answer {
    read(body.to_string().as_bytes()).unwrap()
}

fn flags(body: &Value) -> BTreeMap<String, Evaluated> {
    reply(body).flags
}

fn variant(key: &str) -> FlagValue {
    FlagValue::Variant(key.into())
}

#[test]
fn everything_that_the_newer_shape_says_is_known() {
    let body = json!({
        "flags": {"new-ui": {
            "key": "new-ui", "enabled": true, "variant": "b",
            "reason": {"code": "condition_match", "condition_index": 0, "description": "Matched condition set 1"},
            "metadata": {"id": 42, "version": 7, "description": null, "payload": "{\"color\":\"blue\"}", "has_experiment": false},
        }},
        "errorsWhileComputingFlags": false, "requestId": "r-1", "evaluatedAt": 1_763_892_000_000_i64,
        "minimalFlagCalledEvents": true,
    });
    let flag = Evaluated {
        value: variant("b"),
        payload: Some(json!({"color": "blue"})),
        id: Some(42),
        version: Some(7),
        reason: Some("Matched condition set 1".into()),
        has_experiment: Some(false),
        is_local: false,
    };
    let answer = Answer {
        flags: [("new-ui".to_owned(), flag)].into(),
        request_id: Some("r-1".into()),
        evaluated_at: Some(1_763_892_000_000),
        wants_minimal_events: true,
        ..Answer::default()
    };
    assert_eq!(reply(&body), answer);
}

#[test]
fn a_flag_needs_no_more_than_to_be_on_or_off() {
    let body = json!({"flags": {
        "on": {"enabled": true}, "off": {"enabled": false, "variant": null, "reason": null, "metadata": null},
        "odd": {"enabled": true, "variant": "", "metadata": {"id": 0, "version": -1, "payload": null}, "reason": {"code": "x"}},
        "was": {"enabled": false, "variant": "b"},
    }});
    let flags = flags(&body);
    assert!(flags["on"] == Evaluated::of(true.into()) && flags["off"] == Evaluated::of(false.into()));
    assert_eq!(flags["odd"], Evaluated { reason: Some("x".into()), ..Evaluated::of(true.into()) });
    assert_eq!(flags["was"].value, false);
}

#[test]
fn a_flag_that_failed_has_no_value() {
    let body = json!({"flags": {"a": {"enabled": false, "failed": true}, "b": {"enabled": true, "failed": false}}});
    let reply = reply(&body);
    assert_eq!(reply.flags.keys().collect::<Vec<_>>(), ["b"]);
    assert!(reply.has_errors && reply.unreadable.is_empty());
}

#[test]
fn a_flag_that_cannot_be_read_loses_itself_alone() {
    let body = json!({"flags": {
        "good": {"enabled": true}, "a": 7, "b": {}, "c": {"enabled": "yes"}, "d": {"enabled": true, "variant": 3},
    }});
    let reply = reply(&body);
    assert_eq!(reply.flags.keys().collect::<Vec<_>>(), ["good"]);
    assert!(reply.has_errors);
    assert_eq!(reply.unreadable, ["a", "b", "c", "d"]);
    let many: Map<String, Value> = (0..100).map(|n| ("x".repeat(n * 10), json!(null))).collect();
    let unreadable = read(json!({"flags": many}).to_string().as_bytes()).unwrap().unreadable;
    assert_eq!(unreadable.len(), KEYS_KEPT);
    assert!(unreadable.iter().all(|key| key.len() <= NAME_KEPT));
}

#[test]
fn the_older_shapes_are_read_too() {
    let body = json!({
        "featureFlags": {"on": true, "off": false, "many": "b", "bad": 1},
        "featureFlagPayloads": {"many": "[1]", "on": "plain", "off": {"not": "text"}, "nobody": "1"},
        "errorsWhileComputingFlags": true,
    });
    let reply = reply(&body);
    let payload = |key: &str| reply.flags[key].payload.clone();
    assert_eq!(
        [payload("many"), payload("on"), payload("off")],
        [json!([1]), json!("plain"), json!({"not": "text"})].map(Some)
    );
    assert_eq!((&reply.flags["many"].value, reply.flags.len()), (&variant("b"), 3));
    assert!(reply.has_errors && reply.unreadable == ["bad"]);
    let listed = self::reply(&json!({"featureFlags": ["a", 3, "b"]}));
    assert_eq!(listed.flags.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert!(listed.flags["a"].value == true && listed.has_errors);
}

#[test]
fn of_two_shapes_in_one_answer_the_newer_counts() {
    let body = json!({"flags": {"a": {"enabled": true}}, "featureFlags": {"a": false, "b": true}});
    assert_eq!(flags(&body).keys().collect::<Vec<_>>(), ["a"]);
    assert!(flags(&json!({"flags": null, "featureFlags": {"b": true}})).contains_key("b"));
}

#[test]
fn quota_limited_is_a_list_or_a_bool_and_leaves_no_flags() {
    let limited = |limited: Value| {
        let answer = reply(&json!({"flags": {"a": {"enabled": true}}, "quotaLimited": limited}));
        (answer.is_quota_limited, answer.flags.len())
    };
    assert_eq!(limited(json!(["feature_flags"])), (true, 0));
    assert_eq!(limited(json!(["events", "feature_flags"])), (true, 0));
    assert_eq!(limited(json!(true)), (true, 0));
    for other in [json!(["recordings"]), json!([]), json!(false), json!(null), json!("feature_flags"), json!(["x", 3])]
    {
        assert_eq!(limited(other), (false, 1));
    }
    assert!(reply(&json!({"quotaLimited": ["feature_flags"]})).is_quota_limited);
}

#[test]
fn what_stands_beside_the_flags_may_be_of_any_kind() {
    let body = json!({
        "flags": {}, "requestId": 7, "evaluatedAt": "soon", "errorsWhileComputingFlags": "no", "minimalFlagCalledEvents": 1,
    });
    assert_eq!(reply(&body), Answer::default());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let names = prop_oneof![
        Just("enabled".to_owned()),
        Just("variant".to_owned()),
        Just("metadata".to_owned()),
        Just("payload".to_owned()),
        Just("failed".to_owned()),
        Just("reason".to_owned()),
        ".{0,3}",
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::hash_map(names.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_makes_it_panic_and_a_good_flag_beside_it_is_read(flag: bool, other in any_json(), beside in any_json()) {
        let body = json!({
            "flags": {"good": {"enabled": flag}, "other": other}, "requestId": beside, "evaluatedAt": beside, "reason": beside,
        });
        let reply = reply(&body);
        prop_assert_eq!(&reply.flags["good"].value, &FlagValue::Boolean(flag));
        prop_assert_eq!(reply.unreadable.len() <= 1, true);
        let _any = read(beside.to_string().as_bytes());
    }

    #[test]
    fn no_older_json_makes_it_panic(values in any_json(), payloads in any_json(), limited in any_json()) {
        let body = json!({"featureFlags": values, "featureFlagPayloads": payloads, "quotaLimited": limited});
        let _any = read(body.to_string().as_bytes());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _any = read(&bytes);
    }
}
