//! Values of flags, and when a flag has none.

use serde_json::{Value, json};

use super::*;

const ON: Result<LocalValue<'static>, InconclusiveReason> = Ok(LocalValue::Boolean(true));
const OFF: Result<LocalValue<'static>, InconclusiveReason> = Ok(LocalValue::Boolean(false));

fn parsed(definitions: &Value) -> LocalFlags {
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
    let all = flags.evaluate_all(&user("u3"), 0);
    let exp = all["exp"].as_ref().unwrap();
    assert_eq!(exp.value, "a");
    assert_eq!(exp.payload, Some(json!({"copy": "new"})));
    assert!(exp.is_local);
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
    // The bucket selects b.
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
fn a_match_wins_if_an_unknown_condition_would_agree() {
    let flags = flag("f", json!({"groups": [{"properties": on_plan("pro")}, {"rollout_percentage": 100}]}));
    assert_eq!(flags.evaluate("f", &user("u")), ON);
    for (variant, value) in [("a", Err(InconclusiveReason::MissingProperty)), ("b", Ok(LocalValue::Variant("b")))] {
        let groups = json!([{"properties": on_plan("pro"), "variant": variant}, {}]);
        let flags = flag("exp", json!({"multivariate": variants(), "groups": groups}));
        // The bucket selects b.
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
    // A condition on groups uses the group's bucket: 0.835 and 0.055.
    let flags = flag("exp", json!({"aggregation_group_type_index": 0, "groups": [{"rollout_percentage": 50}]}));
    assert_eq!(flags.evaluate("exp", &user("u0").group("company", "u4")), ON);
    assert_eq!(flags.evaluate("exp", &user("u4").group("company", "u0")), OFF);
    // A condition with `null` is on persons, whatever the flag is on.
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
    let all = flags.evaluate_all(&user("u"), 0);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["broken", "off", "on", "unknown"]);
    assert_eq!(all["off"].as_ref().unwrap().value, false);
    let on = all["on"].as_ref().unwrap();
    assert_eq!((on.id, on.version, on.has_experiment), (Some(4), Some(9), Some(false)));
    assert_eq!(all["broken"], Err(InconclusiveReason::Malformed));
    assert_eq!(all["unknown"], Err(InconclusiveReason::MissingProperty));
    let some = flags.evaluate_all(&user("u").only_keys(["on", "on", "missing"]), 0);
    assert!(some.len() == 2 && some["on"].is_ok());
    assert_eq!(some["missing"], Err(InconclusiveReason::UnknownFlag));
    let nobody = flags.evaluate_all(&FlagContext::from_current(), 0);
    assert!(nobody.len() == 4 && nobody.values().all(Result::is_err));
}

fn on(key: &str, value: Value) -> Value {
    json!({"key": key, "type": "person", "operator": "exact", "value": value})
}

fn conditional(key: &str, properties: Value) -> Value {
    json!({"key": key, "active": true, "filters": {"groups": [{"properties": properties}]}})
}

fn in_cohort(id: Value) -> Value {
    json!({"key": "id", "type": "cohort", "value": id})
}

fn needs(key: &str, value: Value) -> Value {
    json!({"key": key, "type": "flag", "operator": "flag_evaluates_to", "value": value, "dependency_chain": [key]})
}

/// A flag that is on for the members of cohort 1.
fn cohort(definition: Value) -> LocalFlags {
    parsed(&json!({"flags": [conditional("f", json!([in_cohort(json!(1))]))], "cohorts": {"1": definition}}))
}

fn person(properties: Value) -> FlagContext {
    let given = properties.as_object().unwrap().clone();
    given.into_iter().fold(FlagContext::new("u"), |context, (name, value)| context.person_property(name, value))
}

#[test]
fn members_of_a_cohort_are_whom_its_conditions_say() {
    let both = json!({"type": "AND", "values": [on("plan", json!("pro")), on("team", json!("x"))]});
    let either = json!({"type": "OR", "values": [on("plan", json!("pro")), on("team", json!("x"))]});
    let nested = json!({"type": "AND", "values": [either, {"type": "OR", "values": [on("age", json!("7"))]}]});
    for (definition, given, expected) in [
        (&both, json!({"plan": "pro", "team": "x"}), ON),
        (&both, json!({"plan": "pro", "team": "y"}), OFF),
        (&both, json!({"team": "y"}), OFF),
        (&both, json!({"team": "x"}), Err(InconclusiveReason::MissingProperty)),
        (&either, json!({"team": "x"}), ON),
        (&either, json!({"team": "y"}), Err(InconclusiveReason::MissingProperty)),
        (&either, json!({"team": "y", "plan": "free"}), OFF),
        (&nested, json!({"team": "x", "age": 7}), ON),
        (&nested, json!({"team": "x", "age": 8}), OFF),
        (&json!({"type": "AND", "values": []}), json!({}), ON),
        (&json!({"properties": both}), json!({"plan": "pro", "team": "x"}), ON),
        (&json!([on("plan", json!("pro"))]), json!({"plan": "pro"}), ON),
    ] {
        assert_eq!(cohort(definition.clone()).evaluate("f", &person(given.clone())), expected, "{definition} {given}");
    }
}

#[test]
fn an_entry_of_a_cohort_may_be_negated_and_a_cohort_excluded() {
    let mut free = on("plan", json!("free"));
    free["negation"] = json!(true);
    let paying = cohort(json!({"type": "AND", "values": [free]}));
    assert_eq!(paying.evaluate("f", &person(json!({"plan": "pro"}))), ON);
    assert_eq!(paying.evaluate("f", &person(json!({"plan": "free"}))), OFF);
    let everybody = json!({"type": "AND", "values": []});
    for (operator, expected) in [("in", ON), ("not_in", OFF), ("near", Err(InconclusiveReason::UnknownOperator))] {
        let mut member = in_cohort(json!("1"));
        member["operator"] = json!(operator);
        let flags = parsed(&json!({"flags": [conditional("f", json!([member]))], "cohorts": {"1": everybody}}));
        assert_eq!(flags.evaluate("f", &person(json!({}))), expected, "{operator}");
    }
}

#[test]
fn a_cohort_on_which_service_and_sdks_differ_is_inconclusive() {
    let nobody_or_everybody = json!({"type": "OR", "values": []});
    for definition in [
        json!({}),
        json!({"properties": {}}),
        nobody_or_everybody.clone(),
        json!({"type": "AND", "values": [nobody_or_everybody]}),
    ] {
        assert_eq!(
            cohort(definition.clone()).evaluate("f", &person(json!({}))),
            Err(InconclusiveReason::Malformed),
            "{definition}"
        );
    }
    let mut member = in_cohort(json!(1));
    member["operator"] = json!("exact");
    let flags =
        parsed(&json!({"flags": [conditional("f", json!([member]))], "cohorts": {"1": {"type": "AND", "values": []}}}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::UnknownOperator));
}

#[test]
fn an_unknown_cohort_makes_its_dependents_inconclusive() {
    let flags = |other: Value| {
        let one = json!({"type": "OR", "values": [on("plan", json!("pro")), in_cohort(json!(2))]});
        parsed(&json!({"flags": [conditional("f", json!([in_cohort(json!(1))]))], "cohorts": {"1": one, "2": other}}))
    };
    let pro = person(json!({"plan": "pro"}));
    assert_eq!(flags(json!({"type": "AND", "values": []})).evaluate("f", &pro), ON);
    assert_eq!(
        flags(json!({"type": "AND", "values": [in_cohort(json!(3))]})).evaluate("f", &pro),
        Err(InconclusiveReason::UnknownCohort)
    );
    let behavior =
        json!({"type": "AND", "values": [{"key": "$pageview", "type": "behavioral", "value": "performed_event"}]});
    assert_eq!(flags(behavior).evaluate("f", &pro), Err(InconclusiveReason::Malformed));
    assert_eq!(flags(json!("?")).evaluate("f", &pro), Err(InconclusiveReason::Malformed));
    let circle = json!({"type": "AND", "values": [in_cohort(json!(1))]});
    assert_eq!(flags(circle).evaluate("f", &pro), Err(InconclusiveReason::TooDeep));
    let flags = parsed(&json!({"flags": [conditional("f", json!([in_cohort(json!(9)), on("plan", json!("free"))]))]}));
    assert_eq!(flags.evaluate("f", &pro), OFF, "a condition that does not hold settles it");
}

#[test]
fn a_flag_may_depend_on_the_value_of_another() {
    let base = json!({"key": "base", "active": true, "filters": {
        "groups": [{"properties": [on("plan", json!("pro"))]}],
        "multivariate": {"variants": [{"key": "blue", "rollout_percentage": 100}]}}});
    for (wanted, pro, free) in [
        (json!(true), ON, OFF),
        (json!(false), OFF, ON),
        (json!("blue"), ON, OFF),
        (json!("Blue"), OFF, OFF),
        (json!(7), OFF, OFF),
    ] {
        let flags = parsed(&json!({"flags": [conditional("f", json!([needs("base", wanted.clone())])), base]}));
        assert_eq!(flags.evaluate("f", &person(json!({"plan": "pro"}))), pro, "{wanted}");
        assert_eq!(flags.evaluate("f", &person(json!({"plan": "free"}))), free, "{wanted}");
        assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::UnresolvedDependency), "{wanted}");
    }
}

#[test]
fn a_dependency_that_cannot_be_followed_is_inconclusive() {
    let unresolved = Err(InconclusiveReason::UnresolvedDependency);
    let flags = parsed(&json!({"flags": [conditional("f", json!([needs("gone", json!(true))]))]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), unresolved);
    let inactive = json!({"key": "base", "active": false});
    let flags = parsed(&json!({"flags": [conditional("f", json!([needs("base", json!(false))])), inactive]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), ON);
    let mut circle = needs("base", json!(true));
    circle["dependency_chain"] = json!([]);
    let flags = parsed(&json!({"flags": [conditional("f", json!([circle])), inactive]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::TooDeep));
    let a = conditional("a", json!([needs("b", json!(true))]));
    let b = conditional("b", json!([needs("a", json!(true))]));
    let flags = parsed(&json!({"flags": [a, b, conditional("f", json!([needs("a", json!(true))]))]}));
    for key in ["a", "b", "f"] {
        assert_eq!(flags.evaluate(key, &person(json!({}))), Err(InconclusiveReason::TooDeep), "{key}");
    }
    let by_id = json!({"key": "base", "id": 12, "active": true, "filters": {"groups": [{}]}});
    let flags = parsed(&json!({"flags": [by_id, conditional("f", json!([needs("12", json!(true))]))]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), ON);
}

#[test]
fn a_property_named_like_a_flag_is_an_ordinary_property() {
    let base = json!({"key": "base", "active": true, "filters": {"groups": [{}]}});
    for (operator, value) in [("exact", json!(true)), ("is_not", json!("false"))] {
        let test = json!({"key": "$feature/base", "type": "person", "operator": operator, "value": value});
        let flags = parsed(&json!({"flags": [base, conditional("f", json!([test]))]}));
        assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::MissingProperty), "{operator}");
        assert_eq!(flags.evaluate("f", &person(json!({"$feature/base": "true"}))), ON, "{operator}");
    }
}

#[test]
fn whom_it_is_about_need_not_be_given_as_a_property() {
    let flags = parsed(&json!({"flags": [conditional("f", json!([on("distinct_id", json!("u"))]))]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), ON);
    assert_eq!(flags.evaluate("f", &person(json!({"distinct_id": "given"}))), OFF);
    let key =
        json!([{"key": "$group_key", "type": "group", "group_type_index": 0, "operator": "exact", "value": "acme"}]);
    let flags = parsed(&json!({"flags": [conditional("f", key)], "group_type_mapping": {"0": "company"}}));
    assert_eq!(flags.evaluate("f", &person(json!({})).group("company", "acme")), ON);
    assert_eq!(flags.evaluate("f", &person(json!({})).group("company", "other")), OFF);
}

#[test]
fn shared_dependencies_are_evaluated_once() {
    // Each depends on the next twice, so there are 2^60 paths to the last.
    let step = |key: usize| {
        conditional(
            &key.to_string(),
            json!([needs(&(key + 1).to_string(), json!(true)), needs(&(key + 1).to_string(), json!(true))]),
        )
    };
    let mut list: Vec<_> = (0..60).map(step).collect();
    list.push(conditional("60", json!([in_cohort(json!("0"))])));
    let cohort = |id: usize| {
        (id.to_string(), json!({"type": "AND", "values": [in_cohort(json!(id + 1)), in_cohort(json!(id + 1))]}))
    };
    let mut cohorts: serde_json::Map<_, _> = (0..30).map(cohort).collect();
    cohorts.insert("30".into(), json!({"type": "AND", "values": []}));
    let flags = parsed(&json!({"flags": list, "cohorts": cohorts}));
    assert_eq!(flags.evaluate("0", &person(json!({}))), ON);
    assert_eq!(flags.evaluate_all(&person(json!({})), 0).values().filter(|flag| flag.is_ok()).count(), 61);
}

#[test]
fn what_depends_too_deep_is_inconclusive_from_there_on() {
    let mut list: Vec<_> = (0..100_000)
        .map(|key| conditional(&key.to_string(), json!([needs(&(key + 1).to_string(), json!(true))])))
        .collect();
    list.push(conditional("100000", json!([])));
    let flags = parsed(&json!({"flags": list}));
    assert_eq!(flags.evaluate("0", &person(json!({}))), Err(InconclusiveReason::TooDeep));
    assert_eq!(flags.evaluate("99950", &person(json!({}))), ON);
}

// Buckets, compared with Python's `hashlib`:
// `int(hashlib.sha1(f"{key}.{id}{salt}".encode()).hexdigest()[:15], 16)`, the salt being "" or "variant".

/// Key, id, whether it is the bucket for variants, digits.
const VECTORS: &[(&str, &str, bool, u64)] = &[
    ("beta-feature", "distinct_id", false, 0xe02_7150_eee6_0115),
    ("beta-feature", "distinct_id", true, 0x3a7_20bf_a0d6_d711),
    ("multivariate-flag", "user_1", false, 0x393_e5b6_3464_2ed2),
    ("multivariate-flag", "user_1", true, 0xb1b_20fe_cf94_b2e3),
    ("simple-flag", "distinct_id_0", false, 0xc8a_0536_2b9f_414f),
    ("simple-flag", "distinct_id_1", false, 0x56f_7099_7ddf_6067),
    ("new-ui", "user-123", false, 0x6c1_3817_d3ad_390c),
    ("new-ui", "user-123", true, 0xcb6_2ab3_9e67_2561),
    ("checkout", "user@example.com", false, 0xab5_bbad_6195_04d1),
    ("company-beta", "acme", false, 0x69d_71cc_59ef_a2fa),
    ("a", "", false, 0x246_791d_ceeb_2859),
    ("neue-oberfl\u{e4}che", "j\u{fc}rgen", false, 0xb50_2555_44cc_5ab9),
    ("\u{65d7}", "\u{5229}\u{7528}\u{8005}", false, 0x5a0_15b2_b7dd_0990),
    ("\u{65d7}", "\u{5229}\u{7528}\u{8005}", true, 0x0da_94cd_74c9_3f89),
    ("flag", "\u{1f980}", false, 0x4ed_76c6_66fa_94b7),
    ("flag", "0190b2f0-7b1c-7c3e-9d4a-2f6e8a1b3c5d", false, 0xf0f_a982_8e8d_2671),
    ("flag.with.dots", "id.with.dots", false, 0x38e_ea84_f521_3a17),
    ("f", "42", false, 0x605_b016_3661_6618),
];

/// `hashlib.sha1(f"holdout-{id}".encode())`.
const HOLDOUTS: &[(&str, u64)] = &[
    ("user_1", 0x5be_dc75_9164_6b96),
    ("acme", 0xed4_dede_49a8_577b),
    ("\u{5229}\u{7528}\u{8005}", 0x14d_24ca_d1d4_c2c9),
];

fn share(digits: u64) -> f64 {
    digits as f64 / 1_152_921_504_606_846_975_u64 as f64
}

#[test]
fn buckets_are_those_of_every_other_library() {
    for &(key, id, is_variant_bucket, digits) in VECTORS {
        let bucket = if is_variant_bucket { variant_bucket(key, id) } else { rollout_bucket(key, id) };
        assert_eq!(bucket.to_bits(), share(digits).to_bits(), "{key:?} {id:?}");
    }
    for &(id, digits) in HOLDOUTS {
        assert_eq!(holdout_bucket(id).to_bits(), share(digits).to_bits(), "{id:?}");
    }
}

#[test]
fn ids_longer_than_a_block_of_the_hash_are_hashed_to_their_end() {
    assert_eq!(rollout_bucket("k", &"x".repeat(60)), share(0x269_703b_bef5_ae40));
    assert_eq!(variant_bucket("k", &"x".repeat(200)), share(0x0b4_9738_a7d9_1946));
}

#[test]
fn one_block_and_any_length_give_the_same_hash() {
    for len in 0..=130 {
        let id = "x".repeat(len);
        let one = hash_one_block(&["k", ".", &id, "variant"]);
        assert_eq!(one.is_some(), len + 9 < LENGTH_AT, "{len}");
        assert!(one.is_none_or(|one| one == hash_any_length(&["k", ".", &id, "variant"])), "{len}");
    }
}
