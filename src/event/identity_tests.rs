//! Events about persons and groups: their content, and which of them are refused.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Event, Refusal};
use crate::record::{Class, NoSymbols, Pairs, Unencodable, View, json::write_event};

const UUID: Uuid = Uuid::from_u128(77);
const NOW: i64 = 1_700_000_000_000_000_000;

fn sent(event: Event) -> Value {
    let record = event.finish(UUID, NOW, 1 << 20).unwrap();
    let mut out = Vec::new();
    write_event(&View::parse(record.body()).unwrap(), &NoSymbols, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

fn refusal(event: Event) -> Refusal {
    assert_eq!(event.check().unwrap_err(), event.clone().finish(UUID, NOW, 1 << 20).unwrap_err());
    event.check().unwrap_err()
}

#[test]
fn person_properties_gather_in_one_map_wherever_they_come_from() {
    #[derive(Serialize)]
    struct Person {
        plan: &'static str,
    }
    let event = Event::new("upgraded", "user_1")
        .person_property("plan", "free")
        .prop("between", 1)
        .person_properties(Person { plan: "pro" })
        .person_property_once("since", 2026)
        .person_properties([("seats", 3)])
        .person_properties(());
    assert_eq!(event.get::<Value>("$set"), Some(json!({"plan": "pro", "seats": 3})));
    let properties = &sent(event)["properties"];
    assert_eq!((&properties["$set_once"], &properties["between"]), (&json!({"since": 2026}), &json!(1)));
}

#[test]
fn a_set_of_the_caller_is_added_to_or_replaced_if_no_map() {
    let event = Event::new("e", "d").prop("$set", json!({"a": 1, "b": 2})).person_property("b", 3);
    assert_eq!(event.get::<Value>("$set"), Some(json!({"a": 1, "b": 3})));
    let event = Event::new("e", "d").prop("$set", "nonsense").person_property("b", 3);
    assert_eq!(event.get::<Value>("$set"), Some(json!({"b": 3})));
}

#[test]
fn keys_to_remove_gather_in_one_list_each_once() {
    let unset = |event: Event| sent(event)["properties"]["$unset"].clone();
    let event = Event::new("e", "d").unset_person_property("b").prop("between", 1);
    assert_eq!(unset(event.unset_person_properties(["a", "b"]).unset_person_property("c")), json!(["b", "a", "c"]));
    // Both forms that PostHog takes are added to.
    for given in [json!(["x"]), json!({"x": ""})] {
        assert_eq!(unset(Event::new("e", "d").prop("$unset", given).unset_person_property("b")), json!(["x", "b"]));
    }
    assert_eq!(unset(Event::new("e", "d").prop("$unset", "nonsense").unset_person_property("b")), json!(["b"]));
    assert_eq!(unset(Event::new("e", "d").unset_person_properties([""; 0])), Value::Null, "none, and no empty list");
}

#[test]
fn identity_events_are_priority_and_say_what_posthog_expects() {
    for (event, expected) in [
        (Event::identify("user_1"), json!({"$set": {}})),
        (Event::set_person("user_1").person_property("a", 1), json!({"$set": {"a": 1}})),
        (Event::set_person("user_1").unset_person_property("a"), json!({"$unset": ["a"]})),
        (Event::alias("user_1", "anon_1"), json!({"distinct_id": "user_1", "alias": "anon_1"})),
        (
            Event::group_identify("company", 42).group_props([("plan", "pro")]),
            json!({"$group_type": "company", "$group_key": 42, "$group_set": {"plan": "pro"}}),
        ),
        (
            Event::group_identify("company", "acme"),
            json!({"$group_type": "company", "$group_key": "acme", "$group_set": {}}),
        ),
    ] {
        assert_eq!(Value::Object(event.properties()), expected);
        assert_eq!(event.finish(UUID, NOW, 1 << 20).unwrap().class, Class::Identity);
    }
}

#[test]
fn a_group_has_a_distinct_id_of_its_own_unless_one_is_given() {
    assert_eq!(Event::group_identify("company", "acme").distinct_id(), "$company_acme");
    assert_eq!(Event::group_identify("seat", -7).distinct_id(), "$seat_-7");
    assert_eq!(Event::group_identify("seat", json!(-7)).distinct_id(), "$seat_-7");
    assert_eq!(Event::group_identify("seat", u128::MAX).distinct_id(), format!("$seat_{}", u128::MAX));
    assert_eq!(Event::group_identify("company", "acme").with_distinct_id("user_1").distinct_id(), "user_1");
}

#[test]
fn what_is_blank_and_must_not_be_is_refused_by_its_name() {
    for blank in ["", " ", "\t\u{a0}"] {
        assert_eq!(refusal(Event::alias("user_1", blank)), Refusal::EmptyAlias);
        assert_eq!(refusal(Event::alias(blank, "anon_1")), Refusal::EmptyDistinctId);
        assert_eq!(refusal(Event::group_identify(blank, "acme")), Refusal::EmptyGroupType);
        assert_eq!(refusal(Event::group_identify("company", blank)), Refusal::EmptyGroupKey);
        assert_eq!(refusal(Event::identify(blank)), Refusal::EmptyDistinctId);
    }
    assert_eq!(refusal(Event::group_identify("company", None::<&str>)), Refusal::EmptyGroupKey);
}

#[test]
fn a_key_that_is_none_and_properties_that_are_none_are_refused() {
    let key = |reason| Refusal::Unserializable { key: "$group_key".into(), reason };
    assert_eq!(refusal(Event::group_identify("company", [1])), key(Unencodable::NotAKey));
    assert_eq!(refusal(Event::group_identify("company", f64::NAN)), key(Unencodable::NotAKey));
    let set = Refusal::Unserializable { key: "$set".into(), reason: Unencodable::NotPairs };
    assert_eq!(refusal(Event::identify("user_1").person_properties(7)), set);
    let deep = (0..64).fold(json!(1), |inside, _| json!([inside]));
    let too_deep = Refusal::Unserializable { key: "$set".into(), reason: Unencodable::TooDeep };
    assert_eq!(refusal(Event::identify("user_1").person_property("deep", deep)), too_deep);
}

#[test]
fn what_capture_adds_never_replaces_what_the_caller_set() {
    let mut event = Event::new_anon("seen").prop("a", 1);
    assert!(event.is_anonymous() && event.check() == Err(Refusal::EmptyDistinctId));
    event.add_absent(&Pairs::of(&json!({"a": 2, "b": 2})).unwrap());
    event.add_absent(&Pairs::of(&json!({"b": 3, "c": 3})).unwrap());
    assert_eq!(Value::Object(event.properties()), json!({"a": 1, "b": 2, "c": 3}));
    let named = event.clone().with_distinct_id("");
    assert!(!named.is_anonymous(), "an empty id is not a missing id");
    event.attribute_to_nobody("drawn");
    let sent = sent(event);
    assert_eq!(
        (&sent["distinct_id"], &sent["properties"]["$process_person_profile"]),
        (&json!("drawn"), &json!(false))
    );
}

#[test]
fn a_stamp_is_no_timestamp_of_the_callers() {
    let record = Event::new("e", "d").stamped(UUID, NOW).finish(UUID, NOW, 1 << 20).unwrap();
    let head = View::parse(record.body()).unwrap().head;
    assert!(!head.flags.contains(crate::record::Flags::EXPLICIT_TIMESTAMP));
    assert_eq!((head.uuid, head.timestamp_nanos), (UUID, NOW));
}
