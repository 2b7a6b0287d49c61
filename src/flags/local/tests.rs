//! Flags: which value, for whom, and when none.

use serde_json::{Value, json};

use super::*;

const ON: Result<LocalValue<'static>, InconclusiveReason> = Ok(LocalValue::Boolean(true));
const OFF: Result<LocalValue<'static>, InconclusiveReason> = Ok(LocalValue::Boolean(false));

pub(super) fn parsed(definitions: &Value) -> LocalFlags {
    LocalFlags::parse(definitions.to_string().as_bytes()).unwrap()
}

/// An active flag with these filters, and a mapping of one group type.
fn flag(key: &str, filters: Value) -> LocalFlags {
    parsed(
        &json!({"flags": [{"key": key, "active": true, "filters": filters}], "group_type_mapping": {"0": "company"}}),
    )
}

fn variants() -> Value {
    json!({"variants": [{"key": "a", "rollout_percentage": 33.3}, {"key": "b", "rollout_percentage": 66.7}]})
}

fn on_plan(plan: &str) -> Value {
    json!([{"key": "plan", "type": "person", "operator": "exact", "value": plan}])
}

fn user(id: &str) -> FlagContext {
    FlagContext::new(id)
}

#[test]
fn lfe_01_a_matching_active_boolean_flag_is_on() {
    let flags = flag("beta-ui", json!({"groups": [{"rollout_percentage": 100}]}));
    assert_eq!(flags.evaluate("beta-ui", &user("user-123")), ON);
    assert_eq!(flags.evaluate("another", &user("user-123")), Err(InconclusiveReason::UnknownFlag));
    assert_eq!(flags.evaluate("beta-ui", &FlagContext::from_current()), Err(InconclusiveReason::NoDistinctId));
    assert_eq!(flags.evaluate("beta-ui", &user("")), Err(InconclusiveReason::NoDistinctId));
    assert_eq!(flag("none", json!({"groups": []})).evaluate("none", &user("u")), OFF);
}

#[test]
fn lfe_02_a_flag_with_variants_has_the_one_of_the_bucket() {
    let flags = flag("exp", json!({"groups": [{}], "multivariate": variants()}));
    // Buckets 0.644, 0.100 and 0.330.
    for (id, variant) in [("u0", "b"), ("u3", "a"), ("u6", "a")] {
        assert_eq!(flags.evaluate("exp", &user(id)), Ok(LocalValue::Variant(variant)), "{id}");
    }
    let half = json!({"variants": [{"key": "a", "rollout_percentage": 50}]});
    let flags = flag("exp", json!({"groups": [{}], "multivariate": half}));
    assert_eq!(flags.evaluate("exp", &user("u0")), ON, "above all variants it is on, without one");
}

#[test]
fn lfe_03_the_payload_follows_the_value() {
    let payloads = json!({"a": "{\"copy\": \"new\"}", "b": "not json", "true": "7", "c": null, "d": [1]});
    let flags = flag("exp", json!({"groups": [{}], "multivariate": variants(), "payloads": payloads}));
    let all = flags.evaluate_all(&user("u3"), None, 0);
    assert_eq!(all.flags["exp"].value, "a");
    assert_eq!(all.flags["exp"].payload, Some(json!({"copy": "new"})));
    assert!(all.flags["exp"].is_local);
    let payload = |value| flags.payload("exp", value).cloned();
    assert_eq!(payload(LocalValue::Variant("b")), Some(json!("not json")));
    assert_eq!(payload(LocalValue::Boolean(true)), Some(json!(7)));
    assert_eq!(payload(LocalValue::Variant("c")), None);
    assert_eq!(payload(LocalValue::Variant("d")), Some(json!([1])));
    assert_eq!(payload(LocalValue::Boolean(false)), None);
    assert_eq!(flags.payload("other", LocalValue::Boolean(true)), None);
}

#[test]
fn lfe_04_a_group_flag_without_the_group_is_inconclusive() {
    let flags = flag("company-beta", json!({"aggregation_group_type_index": 0, "groups": [{}]}));
    assert_eq!(flags.evaluate("company-beta", &user("user-123")), Err(InconclusiveReason::MissingGroup));
    let unlinked = user("user-123").group("company", "");
    assert_eq!(flags.evaluate("company-beta", &unlinked), Err(InconclusiveReason::MissingGroup));
    assert_eq!(flags.evaluate("company-beta", &user("user-123").group("company", "acme")), ON);
    let other = flag("f", json!({"aggregation_group_type_index": 3, "groups": [{}]}));
    assert_eq!(other.evaluate("f", &user("u").group("company", "acme")), Err(InconclusiveReason::Malformed));
}

#[test]
fn lfe_05_what_only_posthog_knows_is_inconclusive() {
    let one = |fields: Value| {
        let mut flag = json!({"key": "f", "active": true, "filters": {"groups": [{}]}});
        flag.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        parsed(&json!({"flags": [flag]}))
    };
    assert_eq!(one(json!({"active": false, "filters": "?"})).evaluate("f", &user("u")), OFF);
    assert_eq!(one(json!({"active": false, "ensure_experience_continuity": true})).evaluate("f", &user("u")), OFF);
    let keeps = one(json!({"ensure_experience_continuity": true}));
    assert_eq!(keeps.evaluate("f", &user("u")), Err(InconclusiveReason::ExperienceContinuity));
    let by_device = one(json!({"bucketing_identifier": "device_id"}));
    assert_eq!(by_device.evaluate("f", &user("u")), Err(InconclusiveReason::MissingDeviceId));
    assert_eq!(by_device.evaluate("f", &user("u").device_id("d")), ON);
    assert_eq!(
        one(json!({"bucketing_identifier": "moon_phase"})).evaluate("f", &user("u")),
        Err(InconclusiveReason::Malformed)
    );
    for broken in [json!({"active": null}), json!({"filters": 3}), json!({"filters": null})] {
        let flags = one(broken);
        assert_eq!(flags.evaluate("f", &user("u")), Err(InconclusiveReason::Malformed));
        assert_eq!(flags.unreadable(), ["f"]);
    }
}

#[test]
fn lfe_05_a_device_is_what_a_flag_by_device_goes_by() {
    let exp = json!({"key": "exp", "active": true, "bucketing_identifier": "device_id",
        "filters": {"groups": [{"rollout_percentage": 50}]}});
    let flags = parsed(&json!({"flags": [exp]}));
    // Buckets 0.835 and 0.055.
    assert_eq!(flags.evaluate("exp", &user("u0").device_id("u4")), ON);
    assert_eq!(flags.evaluate("exp", &user("u4").device_id("u0")), OFF);
}

#[test]
fn lfe_07_an_unknown_operator_costs_only_its_flag() {
    let of =
        |operator: &str| json!({"groups": [{"properties": [{"key": "plan", "operator": operator, "value": "pro"}]}]});
    let flags = parsed(&json!({"flags": [
        {"key": "future", "active": true, "filters": of("resembles")},
        {"key": "present", "active": true, "filters": of("exact")},
    ]}));
    let context = user("u").person_property("plan", "pro");
    assert_eq!(flags.evaluate("future", &context), Err(InconclusiveReason::UnknownOperator));
    assert_eq!(flags.evaluate("present", &context), ON);
}

#[test]
fn lfe_08_a_rollout_is_not_rounded() {
    let flags = flag("fractional-rollout", json!({"groups": [{"rollout_percentage": 0.1}]}));
    // Buckets 0.000014 and 0.000856; 0.001017 and 0.001384.
    for (id, value) in [("user-2912", ON), ("user-4482", ON), ("user-260", OFF), ("user-235", OFF)] {
        assert_eq!(flags.evaluate("fractional-rollout", &user(id)), value, "{id}");
    }
    for (percentage, value) in [(json!(0.0), OFF), (json!(100.0), ON), (json!(null), ON), (json!(0), OFF)] {
        let flags = flag("f", json!({"groups": [{"rollout_percentage": percentage}]}));
        for id in 0..50 {
            assert_eq!(flags.evaluate("f", &user(&format!("user-{id}"))), value, "{percentage}");
        }
    }
}

#[test]
fn conditions_are_tried_in_the_order_in_which_they_are_defined() {
    let flags = flag(
        "exp",
        json!({"multivariate": variants(), "groups": [
            {"properties": on_plan("pro"), "variant": "none of these"},
            {"properties": on_plan("pro"), "variant": "a"},
            {"properties": on_plan("team"), "variant": "a"},
        ]}),
    );
    // The bucket says b.
    assert_eq!(flags.evaluate("exp", &user("u0").person_property("plan", "pro")), Ok(LocalValue::Variant("b")));
    assert_eq!(flags.evaluate("exp", &user("u0").person_property("plan", "team")), Ok(LocalValue::Variant("a")));
    assert_eq!(flags.evaluate("exp", &user("u0").person_property("plan", "free")), OFF);
}

#[test]
fn early_exit_ends_a_flag_for_those_who_are_meant_and_left_out() {
    for (early_exit, value) in [(true, OFF), (false, ON)] {
        let flags = flag(
            "f",
            json!({"early_exit": early_exit, "groups": [
                {"properties": on_plan("pro"), "rollout_percentage": 0}, {"rollout_percentage": 100}
            ]}),
        );
        assert_eq!(flags.evaluate("f", &user("u").person_property("plan", "pro")), value);
        assert_eq!(flags.evaluate("f", &user("u").person_property("plan", "free")), ON);
    }
    let flags = flag(
        "f",
        json!({"early_exit": true, "groups": [
            {"properties": on_plan("pro")}, {"rollout_percentage": 0}, {}
        ]}),
    );
    assert_eq!(
        flags.evaluate("f", &user("u")),
        Err(InconclusiveReason::MissingProperty),
        "the first could have matched"
    );
}

#[test]
fn a_condition_that_matches_wins_where_an_unknown_one_would_have_given_the_same() {
    let flags = flag("f", json!({"groups": [{"properties": on_plan("pro")}, {"rollout_percentage": 100}]}));
    assert_eq!(flags.evaluate("f", &user("u")), ON);
    for (variant, value) in [("a", Err(InconclusiveReason::MissingProperty)), ("b", Ok(LocalValue::Variant("b")))] {
        let groups = json!([{"properties": on_plan("pro"), "variant": variant}, {}]);
        let flags = flag("exp", json!({"multivariate": variants(), "groups": groups}));
        // The bucket says b.
        assert_eq!(flags.evaluate("exp", &user("u0")), value);
    }
    let groups = json!([{"properties": on_plan("pro"), "rollout_percentage": 0, "variant": "a"}, {}]);
    let flags = flag("exp", json!({"multivariate": variants(), "groups": groups}));
    assert_eq!(flags.evaluate("exp", &user("u0")), Ok(LocalValue::Variant("b")), "its rollout leaves everybody out");
}

#[test]
fn a_condition_may_be_on_a_group_and_another_on_the_person() {
    let tier = json!([{"key": "tier", "type": "group", "group_type_index": 0, "operator": "exact", "value": "gold"}]);
    let flags = flag(
        "f",
        json!({"aggregation_group_type_index": null, "groups": [
            {"aggregation_group_type_index": 0, "properties": tier}, {"properties": on_plan("pro")}
        ]}),
    );
    let gold = user("u").group("company", "acme").group_property("company", "tier", "gold");
    assert_eq!(flags.evaluate("f", &gold), ON);
    assert_eq!(flags.evaluate("f", &user("u").person_property("plan", "pro")), ON);
    assert_eq!(flags.evaluate("f", &user("u").person_property("plan", "free")), Err(InconclusiveReason::MissingGroup));
    // What is on a group decides by the group: buckets 0.835 and 0.055.
    let flags = flag("exp", json!({"aggregation_group_type_index": 0, "groups": [{"rollout_percentage": 50}]}));
    assert_eq!(flags.evaluate("exp", &user("u0").group("company", "u4")), ON);
    assert_eq!(flags.evaluate("exp", &user("u4").group("company", "u0")), OFF);
    // A condition that says null is on persons, whatever the flag is on.
    let groups = json!([{"aggregation_group_type_index": null, "rollout_percentage": 50}]);
    let flags = flag("exp", json!({"aggregation_group_type_index": 0, "groups": groups}));
    assert_eq!(flags.evaluate("exp", &user("u4")), ON);
}

#[test]
fn who_is_held_out_gets_the_variant_of_the_holdout() {
    let flags = flag(
        "exp",
        json!({"holdout": {"id": 7, "exclusion_percentage": 20}, "groups": [{}], "multivariate": variants()}),
    );
    // Holdout buckets 0.127 and 0.808.
    assert_eq!(flags.evaluate("exp", &user("u6")), Ok(LocalValue::Variant("holdout-7")));
    assert_eq!(flags.evaluate("exp", &user("u0")), Ok(LocalValue::Variant("b")));
    let older = flag("exp", json!({"holdout_groups": [{"rollout_percentage": 10}], "groups": [{}]}));
    assert_eq!(older.evaluate("exp", &user("u0")), Err(InconclusiveReason::Malformed));
}

#[test]
fn early_access_counts_more_than_conditions() {
    let newer = flag("f", json!({"feature_enrollment": true, "groups": [{}]}));
    let enrolled = |value: Value| user("u").person_property("$feature_enrollment/f", value);
    for (value, expected) in [(json!(true), ON), (json!("true"), ON), (json!(false), OFF), (json!("no"), OFF)] {
        assert_eq!(newer.evaluate("f", &enrolled(value)), expected);
    }
    assert_eq!(newer.evaluate("f", &user("u")), Err(InconclusiveReason::MissingProperty));
    let wants = json!([{"key": "$feature_enrollment/f", "type": "person", "operator": "exact", "value": ["true"]}]);
    let older = flag("f", json!({"super_groups": [{"properties": wants, "rollout_percentage": 100}], "groups": [{}]}));
    assert_eq!(older.evaluate("f", &enrolled(json!("true"))), ON);
    assert_eq!(older.evaluate("f", &enrolled(json!("false"))), OFF);
    assert_eq!(older.evaluate("f", &user("u")), Err(InconclusiveReason::MissingProperty));
}

#[test]
fn all_flags_at_once_are_those_one_by_one() {
    let flags = parsed(&json!({"minimal_flag_called_events": true, "flags": [
        {"key": "on", "id": 4, "version": 9, "has_experiment": false, "active": true, "filters": {"groups": [{}]}},
        {"key": "off", "active": false},
        {"key": "unknown", "active": true, "filters": {"groups": [{"properties": on_plan("pro")}]}},
        {"key": "broken", "active": 3},
    ]}));
    assert!(flags.wants_minimal_events());
    let all = flags.evaluate_all(&user("u"), None, 0);
    assert_eq!(all.flags.keys().collect::<Vec<_>>(), ["off", "on"]);
    let on = &all.flags["on"];
    assert_eq!((on.id, on.version, on.has_experiment), (Some(4), Some(9), Some(false)));
    let unresolved = [("broken", InconclusiveReason::Malformed), ("unknown", InconclusiveReason::MissingProperty)];
    assert_eq!(all.unresolved, unresolved.map(|(key, why)| (key.to_owned(), why)));
    let keys = ["on", "on", "missing"].map(str::to_owned);
    let some = flags.evaluate_all(&user("u"), Some(&keys), 0);
    assert_eq!(some.flags.len(), 1);
    assert_eq!(some.unresolved, [("missing".to_owned(), InconclusiveReason::UnknownFlag)]);
    let nobody = flags.evaluate_all(&FlagContext::from_current(), None, 0);
    assert!(nobody.flags.is_empty() && nobody.unresolved.len() == 4);
}
