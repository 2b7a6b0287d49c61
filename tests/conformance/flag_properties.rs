//! Properties that are set for evaluations of flags (PPF).

use posthog::{FlagContext, FlagValue};
use serde_json::{Value, json};

use crate::flag_scene::{for_pros, got};
use crate::scene::Scene;

const NONE: [(&str, &str); 0] = [];

fn scene() -> Scene {
    Scene::of_flags(json!({"on": true}))
}

/// What a question that is put now says of `part`.
fn next_question(scene: &Scene, who: impl Into<FlagContext>, part: &str) -> Value {
    let _flags = got(scene.client.reload_feature_flags(who));
    scene.asked().pop().unwrap()[part].clone()
}

#[test]
fn ppf_01_properties_of_persons_add_up_and_the_newer_value_counts() {
    let scene = scene();
    scene.client.set_person_properties_for_flags(json!({"plan": "free", "seats": 3}));
    scene.client.set_person_properties_for_flags([("plan", "pro")]);
    assert_eq!(Value::from(scene.client.person_properties_for_flags()), json!({"plan": "pro", "seats": 3}));
}

#[test]
fn ppf_02_properties_of_persons_are_in_the_next_question_and_in_evaluations_here() {
    let scene = scene();
    let _before = scene.evaluated("user_1");
    scene.client.set_person_properties_for_flags([("plan", "pro")]);
    let _after = scene.evaluated("user_1");
    assert_eq!(scene.asked()[1]["person_properties"], json!({"plan": "pro"}), "what was known before is not of it");
    let local = Scene::of_definitions(&[for_pros("pros")]);
    local.client.set_person_properties_for_flags([("plan", "pro")]);
    assert_eq!(got(local.client.get_feature_flag("pros", "user_1")), Some(FlagValue::from(true)));
    assert!(local.asked().is_empty());
}

#[test]
fn ppf_03_a_reset_clears_those_of_persons() {
    let scene = scene();
    scene.client.set_person_properties_for_flags([("plan", "pro")]);
    scene.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    scene.client.reset_person_properties_for_flags();
    assert!(scene.client.person_properties_for_flags().is_empty());
    assert_eq!(scene.client.group_properties_for_flags("company", Some("acme")).len(), 1, "and no others");
}

#[test]
fn ppf_04_the_next_question_after_a_reset_is_without_those_of_persons() {
    let scene = scene();
    scene.client.set_person_properties_for_flags([("plan", "pro")]);
    assert_eq!(next_question(&scene, "user_1", "person_properties"), json!({"plan": "pro"}));
    scene.client.reset_person_properties_for_flags();
    assert_eq!(next_question(&scene, "user_1", "person_properties"), json!({}));
}

#[test]
fn ppf_05_properties_of_groups_are_by_type_and_key_and_add_up() {
    let scene = scene();
    let set = |key, properties: Value| scene.client.set_group_properties_for_flags("company", key, properties);
    set(Some("acme"), json!({"tier": "free", "seats": 3}));
    set(Some("acme"), json!({"tier": "gold"}));
    set(None, json!({"tier": "any"}));
    let of = |group_type, key| Value::from(scene.client.group_properties_for_flags(group_type, key));
    assert_eq!(of("company", Some("acme")), json!({"tier": "gold", "seats": 3}));
    assert_eq!((of("company", None), of("company", Some("other"))), (json!({"tier": "any"}), json!({})));
    assert_eq!(of("team", Some("acme")), json!({}));
}

#[test]
fn ppf_06_properties_of_groups_are_in_the_next_question_of_who_belongs_to_them() {
    let scene = scene();
    scene.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    scene.client.set_group_properties_for_flags("region", None, [("zone", "eu")]);
    let asked =
        |company: &str| next_question(&scene, FlagContext::new("u").group("company", company), "group_properties");
    assert_eq!(asked("acme"), json!({"company": {"tier": "gold"}, "region": {"zone": "eu"}}));
    assert_eq!(asked("other"), json!({"region": {"zone": "eu"}}), "what is true of one group is not said of another");
}

#[test]
fn ppf_07_a_reset_clears_those_of_all_groups_or_of_one_type() {
    let scene = scene();
    let set = |group_type| scene.client.set_group_properties_for_flags(group_type, Some("g"), [("x", 1)]);
    let left = || ["company", "team"].map(|of| scene.client.group_properties_for_flags(of, Some("g")).len());
    set("company");
    set("team");
    scene.client.reset_group_properties_for_flags(Some("company"));
    assert_eq!(left(), [0, 1]);
    set("company");
    scene.client.reset_group_properties_for_flags(None);
    assert_eq!(left(), [0, 0]);
}

#[test]
fn ppf_08_the_next_question_after_a_reset_is_without_those_of_groups() {
    let scene = scene();
    let who = || FlagContext::new("user_1").group("company", "acme");
    scene.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    assert_eq!(next_question(&scene, who(), "group_properties"), json!({"company": {"tier": "gold"}}));
    scene.client.reset_group_properties_for_flags(None);
    assert_eq!(next_question(&scene, who(), "group_properties"), json!({}));
}

#[test]
fn ppf_09_they_are_no_event_nothing_if_empty_and_less_than_what_a_call_says() {
    let scene = scene();
    scene.client.set_person_properties_for_flags(NONE);
    scene.client.set_group_properties_for_flags("company", Some("acme"), NONE);
    scene.must_have_queued_nothing();
    assert_eq!(next_question(&scene, "user_1", "group_properties"), json!({}));
    scene.client.set_person_properties_for_flags([("plan", "free"), ("app", "3.2")]);
    scene.client.set_person_properties_for_flags(NONE);
    scene.client.set_group_properties_for_flags("company", Some("acme"), [("tier", "free"), ("size", "small")]);
    let who = FlagContext::new("user_1")
        .person_property("plan", "pro")
        .group("company", "acme")
        .group_property("company", "tier", "gold");
    let _flags = got(scene.client.reload_feature_flags(who));
    let asked = scene.asked().pop().unwrap();
    assert_eq!(asked["person_properties"], json!({"plan": "pro", "app": "3.2"}));
    assert_eq!(asked["group_properties"], json!({"company": {"tier": "gold", "size": "small"}}));
    assert!(scene.sent().is_empty());
}
