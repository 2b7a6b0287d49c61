//! Properties that a client adds to every evaluation (PPF).

use posthog::feature_flags::{FlagContext, FlagValue};
use serde_json::{Value, json};

use crate::flag_scenario::{for_pros, got};
use crate::scenario::Scenario;

const NONE: [(&str, &str); 0] = [];

fn scenario() -> Scenario {
    Scenario::of_flags(json!({"on": true}))
}

/// Sends a flag request for `who`, and returns the member `part` of its body.
fn requested_part(scenario: &Scenario, who: impl Into<FlagContext>, part: &str) -> Value {
    let _flags = got(scenario.client.reload_feature_flags(who));
    scenario.asked().pop().unwrap()[part].clone()
}

#[test]
fn ppf_01_person_properties_add_up_and_the_newer_wins() {
    let scenario = scenario();
    scenario.client.set_person_properties_for_flags(json!({"plan": "free", "seats": 3}));
    scenario.client.set_person_properties_for_flags([("plan", "pro")]);
    assert_eq!(Value::from(scenario.client.person_properties_for_flags()), json!({"plan": "pro", "seats": 3}));
}

#[test]
fn ppf_02_person_properties_are_used_by_the_next_evaluation() {
    let scenario = scenario();
    let _before = scenario.evaluated("user_1");
    scenario.client.set_person_properties_for_flags([("plan", "pro")]);
    let _after = scenario.evaluated("user_1");
    assert_eq!(scenario.asked()[1]["person_properties"], json!({"plan": "pro"}), "earlier values are not reused");
    let local = Scenario::of_definitions(&[for_pros("pros")]);
    local.client.set_person_properties_for_flags([("plan", "pro")]);
    assert_eq!(got(local.client.get_feature_flag("pros", "user_1")), Some(FlagValue::from(true)));
    assert!(local.asked().is_empty());
}

#[test]
fn ppf_03_a_reset_of_person_properties_keeps_those_of_groups() {
    let scenario = scenario();
    scenario.client.set_person_properties_for_flags([("plan", "pro")]);
    scenario.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    scenario.client.reset_person_properties_for_flags();
    assert!(scenario.client.person_properties_for_flags().is_empty());
    assert_eq!(scenario.client.group_properties_for_flags("company", Some("acme")).len(), 1, "groups keep theirs");
}

#[test]
fn ppf_04_person_properties_are_not_sent_after_a_reset() {
    let scenario = scenario();
    scenario.client.set_person_properties_for_flags([("plan", "pro")]);
    assert_eq!(requested_part(&scenario, "user_1", "person_properties"), json!({"plan": "pro"}));
    scenario.client.reset_person_properties_for_flags();
    assert_eq!(requested_part(&scenario, "user_1", "person_properties"), json!({}));
}

#[test]
fn ppf_05_group_properties_add_up_for_each_type_and_key() {
    let scenario = scenario();
    let set = |key, properties: Value| scenario.client.set_group_properties_for_flags("company", key, properties);
    set(Some("acme"), json!({"tier": "free", "seats": 3}));
    set(Some("acme"), json!({"tier": "gold"}));
    set(None, json!({"tier": "any"}));
    let of = |group_type, key| Value::from(scenario.client.group_properties_for_flags(group_type, key));
    assert_eq!(of("company", Some("acme")), json!({"tier": "gold", "seats": 3}));
    assert_eq!((of("company", None), of("company", Some("other"))), (json!({"tier": "any"}), json!({})));
    assert_eq!(of("team", Some("acme")), json!({}));
}

#[test]
fn ppf_06_group_properties_are_sent_for_members_of_the_group() {
    let scenario = scenario();
    scenario.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    scenario.client.set_group_properties_for_flags("region", None, [("zone", "eu")]);
    let asked =
        |company: &str| requested_part(&scenario, FlagContext::new("u").group("company", company), "group_properties");
    assert_eq!(asked("acme"), json!({"company": {"tier": "gold"}, "region": {"zone": "eu"}}));
    assert_eq!(asked("other"), json!({"region": {"zone": "eu"}}), "those of one group are not sent for another");
}

#[test]
fn ppf_07_a_reset_clears_one_group_type_or_all() {
    let scenario = scenario();
    let set = |group_type| scenario.client.set_group_properties_for_flags(group_type, Some("g"), [("x", 1)]);
    let left = || ["company", "team"].map(|of| scenario.client.group_properties_for_flags(of, Some("g")).len());
    set("company");
    set("team");
    scenario.client.reset_group_properties_for_flags(Some("company"));
    assert_eq!(left(), [0, 1]);
    set("company");
    scenario.client.reset_group_properties_for_flags(None);
    assert_eq!(left(), [0, 0]);
}

#[test]
fn ppf_08_group_properties_are_not_sent_after_a_reset() {
    let scenario = scenario();
    let who = || FlagContext::new("user_1").group("company", "acme");
    scenario.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    assert_eq!(requested_part(&scenario, who(), "group_properties"), json!({"company": {"tier": "gold"}}));
    scenario.client.reset_group_properties_for_flags(None);
    assert_eq!(requested_part(&scenario, who(), "group_properties"), json!({}));
}

#[test]
fn ppf_09_setting_captures_nothing_and_the_context_wins() {
    let scenario = scenario();
    scenario.client.set_person_properties_for_flags(NONE);
    scenario.client.set_group_properties_for_flags("company", Some("acme"), NONE);
    scenario.must_have_queued_nothing();
    assert_eq!(requested_part(&scenario, "user_1", "group_properties"), json!({}));
    scenario.client.set_person_properties_for_flags([("plan", "free"), ("app", "3.2")]);
    scenario.client.set_person_properties_for_flags(NONE);
    scenario.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "free"), ("size", "small")]);
    let who = FlagContext::new("user_1")
        .person_property("plan", "pro")
        .group("company", "acme")
        .group_property("company", "tier", "gold");
    let _flags = got(scenario.client.reload_feature_flags(who));
    let asked = scenario.asked().pop().unwrap();
    assert_eq!(asked["person_properties"], json!({"plan": "pro", "app": "3.2"}));
    assert_eq!(asked["group_properties"], json!({"company": {"tier": "gold", "size": "small"}}));
    assert!(scenario.sent().is_empty());
}
