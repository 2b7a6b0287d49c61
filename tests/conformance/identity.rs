//! alias (ALI), identify and set (IDN), group identify (GRP).

use std::time::{Duration, UNIX_EPOCH};

use posthog::diagnostics::DiagnosticCategory;
use posthog::{DropReason, Event, Outcome};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{accepted, event};
use crate::scenario::Scenario;

const BLANKS: [&str; 3] = ["", " ", "\t\u{a0}\n"];

/// The caller's properties of the one event that was sent.
fn said(scenario: &Scenario) -> Value {
    let mut properties = scenario.sent_one()["properties"].take();
    for own in ["$lib", "$lib_version", "$is_server"] {
        assert!(properties.as_object_mut().unwrap().remove(own).is_some(), "{own}");
    }
    properties
}

#[test]
fn ali_01_alias_enqueues_one_create_alias_of_the_previous_id() {
    let scenario = Scenario::new();
    accepted(&scenario.client.alias("user_1", "anon_1"));
    let sent = scenario.sent_one();
    assert_eq!((&sent["event"], &sent["distinct_id"]), (&json!("$create_alias"), &json!("user_1")));
    assert_eq!(sent["properties"]["alias"], "anon_1");
}

#[test]
fn ali_02_a_blank_id_is_no_event_and_a_recorded_warning() {
    for blank in BLANKS {
        let scenario = Scenario::new();
        let receipt = scenario.client.alias(blank, "anon_1");
        scenario.must_have_dropped(&receipt, DropReason::EmptyDistinctId, DiagnosticCategory::Validation);
        let receipt = scenario.client.alias("user_1", blank);
        scenario.must_have_dropped(&receipt, DropReason::EmptyAlias, DiagnosticCategory::Validation);
    }
}

#[test]
fn ali_03_the_previous_id_is_a_property_too() {
    let scenario = Scenario::new();
    accepted(&scenario.client.alias("user_1", "anon_1"));
    assert_eq!(said(&scenario), json!({"distinct_id": "user_1", "alias": "anon_1"}));
}

#[test]
fn ali_04_an_alias_passes_hooks_and_changes_no_identity() {
    let scenario = Scenario::with(|config| config.before_send(|event| Some(event.prop("seen", true))));
    let (uuid, time) = (Uuid::from_u128(7), UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    accepted(&scenario.client.capture(Event::alias("user_1", "anon_1").uuid(uuid).timestamp(time).disable_geoip()));
    let sent = scenario.sent_one();
    assert_eq!((&sent["uuid"], &sent["timestamp"]), (&json!(uuid.to_string()), &json!("2023-11-14T22:13:20Z")));
    assert_eq!((&sent["properties"]["$geoip_disable"], &sent["properties"]["seen"]), (&json!(true), &json!(true)));
    assert_eq!(posthog::context::current_distinct_id(), None);
}

#[test]
fn idn_01_identify_enqueues_one_event_with_its_properties() {
    let scenario = Scenario::new();
    accepted(&scenario.client.identify("user_1", json!({"email": "a@example.com"})));
    let sent = scenario.sent_one();
    assert_eq!((&sent["event"], &sent["distinct_id"]), (&json!("$identify"), &json!("user_1")));
    assert_eq!(sent["properties"]["$set"], json!({"email": "a@example.com"}));
}

#[test]
fn idn_01_properties_are_whatever_serializes_as_pairs() {
    #[derive(Serialize)]
    struct Person {
        plan: &'static str,
    }
    let scenario = Scenario::new();
    accepted(&scenario.client.identify("user_1", Person { plan: "pro" }));
    accepted(&scenario.client.identify("user_1", [("plan", "pro")]));
    accepted(&scenario.client.identify("user_1", std::collections::HashMap::from([("plan", "pro")])));
    accepted(&scenario.client.identify("user_1", ()));
    let sets: Vec<_> = scenario.sent().iter().map(|event| event["properties"]["$set"].clone()).collect();
    let pro = json!({"plan": "pro"});
    assert_eq!(sets, [pro.clone(), pro.clone(), pro, json!({})]);
}

#[test]
fn idn_01_properties_without_names_drop_the_event() {
    for props in [json!("pro"), json!(7), json!([1, 2])] {
        let scenario = Scenario::new();
        let receipt = scenario.client.identify("user_1", props);
        scenario.must_have_dropped(&receipt, DropReason::Unserializable, DiagnosticCategory::Validation);
    }
}

#[test]
fn idn_02_a_missing_id_is_no_event_and_a_recorded_warning() {
    let scenario = Scenario::new();
    let receipt = scenario.client.identify("", [("plan", "pro")]);
    scenario.must_have_dropped(&receipt, DropReason::EmptyDistinctId, DiagnosticCategory::Validation);
    let receipt = scenario.client.set_person("", [("plan", "pro")]);
    scenario.must_have_dropped(&receipt, DropReason::EmptyDistinctId, DiagnosticCategory::Validation);
}

#[test]
fn idn_03_every_call_is_sent_and_none_names_an_anonymous_id() {
    let scenario = Scenario::new();
    for _ in 0..2 {
        let event = Event::identify("user_1").person_property("plan", "pro").person_property_once("since", 2026);
        accepted(&scenario.client.capture(event));
    }
    let sent = scenario.sent();
    assert_eq!(sent.len(), 2);
    for event in sent {
        let properties = &event["properties"];
        assert_eq!((&properties["$set"], &properties["$set_once"]), (&json!({"plan": "pro"}), &json!({"since": 2026})));
        assert!(properties.get("$anon_distinct_id").is_none());
    }
}

#[test]
fn idn_04_an_identify_says_nothing_but_this() {
    let scenario = Scenario::new();
    accepted(&scenario.client.identify("user_1", [("plan", "pro")]));
    assert_eq!(said(&scenario), json!({"$set": {"plan": "pro"}}));
}

#[test]
fn idn_05_set_and_set_once_are_events_unless_empty() {
    let scenario = Scenario::new();
    let receipts = [
        scenario.client.set_person("user_1", ()),
        scenario.client.set_person_once("user_1", json!({})),
        scenario.client.unset_person("user_1", [""; 0]),
    ];
    for receipt in &receipts {
        scenario.must_have_dropped(receipt, DropReason::NothingToSet, DiagnosticCategory::Validation);
    }
    accepted(&scenario.client.set_person("user_1", [("plan", "pro")]));
    accepted(&scenario.client.set_person_once("user_1", [("since", 2026)]));
    accepted(&scenario.client.unset_person("user_1", ["trial", "coupon"]));
    let sent = scenario.sent();
    assert!(sent.iter().all(|event| event["event"] == "$set" && event["distinct_id"] == "user_1"));
    assert_eq!(sent[0]["properties"]["$set"], json!({"plan": "pro"}));
    assert_eq!(sent[1]["properties"]["$set_once"], json!({"since": 2026}));
    assert!(sent[1]["properties"].get("$set").is_none());
    assert_eq!(sent[2]["properties"]["$unset"], json!(["trial", "coupon"]));
    assert!(sent[2]["properties"].get("$set").is_none());
}

#[test]
fn idn_06_an_id_of_white_space_is_an_empty_one() {
    for blank in BLANKS {
        let scenario = Scenario::new();
        for receipt in [
            scenario.client.identify(blank, ()),
            scenario.client.set_person(blank, [("a", 1)]),
            scenario.client.set_person_once(blank, [("a", 1)]),
            scenario.client.set_person(blank, ()),
        ] {
            assert_eq!(receipt.outcome(), Outcome::Dropped(DropReason::EmptyDistinctId));
        }
        scenario.must_have_queued_nothing();
    }
}

#[test]
fn grp_01_group_identify_names_type_key_and_properties() {
    let scenario = Scenario::new();
    accepted(&scenario.client.group_identify("company", "acme", [("plan", "pro")]));
    assert_eq!(scenario.sent_one()["event"], "$groupidentify");
    let expected = json!({"$group_type": "company", "$group_key": "acme", "$group_set": {"plan": "pro"}});
    assert_eq!(said(&scenario), expected);
}

#[test]
fn grp_02_a_blank_type_or_key_drops_the_event() {
    for blank in BLANKS {
        let scenario = Scenario::new();
        let receipt = scenario.client.group_identify(blank, "acme", ());
        scenario.must_have_dropped(&receipt, DropReason::EmptyGroupType, DiagnosticCategory::Validation);
        let receipt = scenario.client.group_identify("company", blank, ());
        scenario.must_have_dropped(&receipt, DropReason::EmptyGroupKey, DiagnosticCategory::Validation);
    }
}

#[test]
fn grp_03_the_distinct_id_is_the_groups_own_unless_one_is_given() {
    let scenario = Scenario::new();
    accepted(&scenario.client.group_identify("company", "acme", ()));
    accepted(&scenario.client.capture(Event::group_identify("company", "acme").with_distinct_id("user_1")));
    let ids: Vec<_> = scenario.sent().iter().map(|event| event["distinct_id"].clone()).collect();
    assert_eq!(ids, ["$company_acme", "user_1"]);
}

#[test]
fn grp_04_properties_are_optional_and_a_key_may_be_a_number() {
    let scenario = Scenario::new();
    accepted(&scenario.client.group_identify("company", 42, ()));
    assert_eq!(said(&scenario), json!({"$group_type": "company", "$group_key": 42, "$group_set": {}}));
    assert_eq!(scenario.sent_one()["distinct_id"], "$company_42");
}

#[test]
fn grp_05_later_events_are_not_put_into_the_group() {
    let scenario = Scenario::new();
    accepted(&scenario.client.group_identify("company", "acme", ()));
    accepted(&scenario.client.capture(event("tick")));
    assert!(scenario.sent()[1]["properties"].get("$groups").is_none());
}
