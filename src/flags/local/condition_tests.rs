//! Cohorts and dependencies: who is a member, and what depends on what.

use serde_json::{Value, json};

use super::tests::parsed;
use super::*;

const ON: Result<LocalValue<'static>, InconclusiveReason> = Ok(LocalValue::Boolean(true));
const OFF: Result<LocalValue<'static>, InconclusiveReason> = Ok(LocalValue::Boolean(false));

fn on(key: &str, value: Value) -> Value {
    json!({"key": key, "type": "person", "operator": "exact", "value": value})
}

fn flag(key: &str, properties: Value) -> Value {
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
    parsed(&json!({"flags": [flag("f", json!([in_cohort(json!(1))]))], "cohorts": {"1": definition}}))
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
        let flags = parsed(&json!({"flags": [flag("f", json!([member]))], "cohorts": {"1": everybody}}));
        assert_eq!(flags.evaluate("f", &person(json!({}))), expected, "{operator}");
    }
}

#[test]
fn a_cohort_that_the_service_reads_otherwise_than_its_libraries_do_is_inconclusive() {
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
        parsed(&json!({"flags": [flag("f", json!([member]))], "cohorts": {"1": {"type": "AND", "values": []}}}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::UnknownOperator));
}

#[test]
fn a_cohort_that_is_not_known_makes_those_inconclusive_that_are_made_of_it() {
    let flags = |other: Value| {
        let one = json!({"type": "OR", "values": [on("plan", json!("pro")), in_cohort(json!(2))]});
        parsed(&json!({"flags": [flag("f", json!([in_cohort(json!(1))]))], "cohorts": {"1": one, "2": other}}))
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
    let flags = parsed(&json!({"flags": [flag("f", json!([in_cohort(json!(9)), on("plan", json!("free"))]))]}));
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
        let flags = parsed(&json!({"flags": [flag("f", json!([needs("base", wanted.clone())])), base]}));
        assert_eq!(flags.evaluate("f", &person(json!({"plan": "pro"}))), pro, "{wanted}");
        assert_eq!(flags.evaluate("f", &person(json!({"plan": "free"}))), free, "{wanted}");
        assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::UnresolvedDependency), "{wanted}");
    }
}

#[test]
fn a_dependency_that_cannot_be_followed_is_inconclusive() {
    let unresolved = Err(InconclusiveReason::UnresolvedDependency);
    let flags = parsed(&json!({"flags": [flag("f", json!([needs("gone", json!(true))]))]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), unresolved);
    let inactive = json!({"key": "base", "active": false});
    let flags = parsed(&json!({"flags": [flag("f", json!([needs("base", json!(false))])), inactive]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), ON);
    let mut circle = needs("base", json!(true));
    circle["dependency_chain"] = json!([]);
    let flags = parsed(&json!({"flags": [flag("f", json!([circle])), inactive]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::TooDeep));
    let a = flag("a", json!([needs("b", json!(true))]));
    let b = flag("b", json!([needs("a", json!(true))]));
    let flags = parsed(&json!({"flags": [a, b, flag("f", json!([needs("a", json!(true))]))]}));
    for key in ["a", "b", "f"] {
        assert_eq!(flags.evaluate(key, &person(json!({}))), Err(InconclusiveReason::TooDeep), "{key}");
    }
    let by_id = json!({"key": "base", "id": 12, "active": true, "filters": {"groups": [{}]}});
    let flags = parsed(&json!({"flags": [by_id, flag("f", json!([needs("12", json!(true))]))]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), ON);
}

#[test]
fn a_property_that_is_named_like_a_flag_is_a_property_and_not_the_value_of_the_flag() {
    let base = json!({"key": "base", "active": true, "filters": {"groups": [{}]}});
    for (operator, value) in [("exact", json!(true)), ("is_not", json!("false"))] {
        let test = json!({"key": "$feature/base", "type": "person", "operator": operator, "value": value});
        let flags = parsed(&json!({"flags": [base, flag("f", json!([test]))]}));
        assert_eq!(flags.evaluate("f", &person(json!({}))), Err(InconclusiveReason::MissingProperty), "{operator}");
        assert_eq!(flags.evaluate("f", &person(json!({"$feature/base": "true"}))), ON, "{operator}");
    }
}

#[test]
fn whom_it_is_about_need_not_be_given_as_a_property() {
    let flags = parsed(&json!({"flags": [flag("f", json!([on("distinct_id", json!("u"))]))]}));
    assert_eq!(flags.evaluate("f", &person(json!({}))), ON);
    assert_eq!(flags.evaluate("f", &person(json!({"distinct_id": "given"}))), OFF);
    let key =
        json!([{"key": "$group_key", "type": "group", "group_type_index": 0, "operator": "exact", "value": "acme"}]);
    let flags = parsed(&json!({"flags": [flag("f", key)], "group_type_mapping": {"0": "company"}}));
    assert_eq!(flags.evaluate("f", &person(json!({})).group("company", "acme")), ON);
    assert_eq!(flags.evaluate("f", &person(json!({})).group("company", "other")), OFF);
}

#[test]
fn shared_dependencies_are_evaluated_once_however_many_ways_lead_to_them() {
    // Each needs the next twice: two to the power of sixty ways to the last.
    let step = |key: usize| {
        flag(
            &key.to_string(),
            json!([needs(&(key + 1).to_string(), json!(true)), needs(&(key + 1).to_string(), json!(true))]),
        )
    };
    let mut list: Vec<_> = (0..60).map(step).collect();
    list.push(flag("60", json!([in_cohort(json!("0"))])));
    let cohort = |id: usize| {
        (id.to_string(), json!({"type": "AND", "values": [in_cohort(json!(id + 1)), in_cohort(json!(id + 1))]}))
    };
    let mut cohorts: serde_json::Map<_, _> = (0..30).map(cohort).collect();
    cohorts.insert("30".into(), json!({"type": "AND", "values": []}));
    let flags = parsed(&json!({"flags": list, "cohorts": cohorts}));
    assert_eq!(flags.evaluate("0", &person(json!({}))), ON);
    assert_eq!(flags.evaluate_all(&person(json!({})), None, 0).flags.len(), 61);
}

#[test]
fn what_depends_too_deep_is_inconclusive_from_there_on() {
    let mut list: Vec<_> =
        (0..100_000).map(|key| flag(&key.to_string(), json!([needs(&(key + 1).to_string(), json!(true))]))).collect();
    list.push(flag("100000", json!([])));
    let flags = parsed(&json!({"flags": list}));
    assert_eq!(flags.evaluate("0", &person(json!({}))), Err(InconclusiveReason::TooDeep));
    assert_eq!(flags.evaluate("99950", &person(json!({}))), ON);
}
