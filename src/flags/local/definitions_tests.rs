//! Which defects a document of definitions survives.

use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::flags::{FlagContext, FlagValue, InconclusiveReason, LocalFlags, LocalValue};

const GOOD: &str = r#"{"key": "good", "active": true, "filters": {"groups": [{}]}}"#;

fn with(flag: &str) -> LocalFlags {
    LocalFlags::parse(format!("{{\"flags\": [{flag}, {GOOD}]}}").as_bytes()).unwrap()
}

fn assert_good(flags: &LocalFlags) {
    assert_eq!(flags.evaluate("good", &FlagContext::new("u")), Ok(LocalValue::Boolean(true)));
}

#[test]
fn what_has_no_list_of_flags_is_no_definitions() {
    for text in [
        "",
        "null",
        "[]",
        "{}",
        "<html>",
        "{\"flags\": {}}",
        "{\"flags\": [",
        "{\"detail\": \"no\"}",
        "{\"flags\": null}",
    ] {
        assert!(LocalFlags::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(LocalFlags::parse(b"{\"flags\": [\"\xff\"]}").is_err());
    let none = LocalFlags::parse(b"{\"flags\": []}").unwrap();
    assert!(none.is_empty() && none.keys().len() == 0);
}

#[test]
fn a_flag_that_cannot_be_read_costs_no_other() {
    let deep =
        format!("{{\"key\": \"bad\", \"active\": true, \"filters\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let filters = |filters: &str| format!("{{\"key\": \"bad\", \"active\": true, \"filters\": {filters}}}");
    for bad in [
        deep,
        "{\"key\": \"bad\", \"active\": true, \"name\": \"\\ud800\"}".to_owned(),
        "{\"key\": \"bad\", \"active\": 1e999}".to_owned(),
        "{\"key\": \"bad\"}".to_owned(),
        filters("{\"groups\": {}}"),
        filters("{\"groups\": [3]}"),
        filters("{\"groups\": [{\"rollout_percentage\": \"50\"}]}"),
        filters("{\"groups\": [{\"properties\": [null]}]}"),
        filters("{\"groups\": [{\"variant\": 1}]}"),
        filters("{\"groups\": [], \"multivariate\": {\"variants\": [{\"key\": \"a\"}]}}"),
        filters("{\"groups\": [], \"holdout\": {\"id\": 1}}"),
        filters("{\"groups\": [], \"payloads\": []}"),
        filters("{\"groups\": [], \"aggregation_group_type_index\": \"0\"}"),
    ] {
        let flags = with(&bad);
        assert_good(&flags);
        let start = &bad[..bad.len().min(100)];
        assert_eq!(flags.unreadable(), ["bad"], "{start}");
        assert_eq!(flags.evaluate("bad", &FlagContext::new("u")), Err(InconclusiveReason::Malformed), "{start}");
        assert_eq!(flags.keys().collect::<Vec<_>>(), ["bad", "good"]);
    }
}

#[test]
fn a_flag_without_a_key_is_listed_by_its_position() {
    let flags = with("7");
    assert_good(&flags);
    assert_eq!(flags.unreadable(), ["#0"]);
    let many = vec!["{}"; 1000].join(",");
    assert_eq!(with(&many).unreadable().len(), 100);
}

#[test]
fn the_last_of_several_flags_with_a_key_counts() {
    let flags = with("{\"key\": \"good\", \"active\": false}");
    assert_eq!(flags.len(), 1);
    assert_good(&flags);
}

#[test]
fn other_unreadable_members_count_as_absent() {
    for parts in [
        "\"cohorts\": 3",
        "\"group_type_mapping\": []",
        "\"property_matching_version\": \"x\"",
        "\"minimal_flag_called_events\": 2",
    ] {
        let flags = LocalFlags::parse(format!("{{{parts}, \"flags\": [{GOOD}]}}").as_bytes()).unwrap();
        assert_good(&flags);
        assert!(!flags.wants_minimal_events());
    }
    let nested = format!("{{\"1\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_good(&LocalFlags::parse(format!("{{\"cohorts\": {nested}, \"flags\": [{GOOD}]}}").as_bytes()).unwrap());
}

#[test]
fn the_matching_version_is_that_of_the_definitions() {
    let of = |version: Value| {
        let test = json!({"key": "on", "type": "person", "operator": "exact", "value": "false"});
        let flag = json!({"key": "f", "active": true, "filters": {"groups": [{"properties": [test]}]}});
        let flags = json!({"flags": [flag], "property_matching_version": version});
        let flags = LocalFlags::parse(flags.to_string().as_bytes()).unwrap();
        flags.evaluate("f", &FlagContext::new("u").person_property("on", "else")).map(FlagValue::from)
    };
    for (version, value) in [(json!(null), true), (json!(1), true), (json!(2), false)] {
        assert_eq!(of(version.clone()), Ok(FlagValue::Boolean(value)), "{version}");
    }
}

#[test]
fn definitions_can_be_shared_and_do_not_print_themselves() {
    fn assert_shareable<T: Send + Sync + 'static>() {}
    assert_shareable::<LocalFlags>();
    assert_eq!(format!("{:?}", with("{\"key\": 1}")), "LocalFlags { flags: 1, unreadable: 1, .. }");
}

/// JSON values similar to those in definitions.
fn value() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(
        [
            "key",
            "active",
            "filters",
            "groups",
            "properties",
            "type",
            "cohort",
            "flag",
            "person",
            "group",
            "operator",
            "exact",
            "flag_evaluates_to",
            "value",
            "values",
            "AND",
            "OR",
            "a",
            "b",
            "1",
            "variant",
            "multivariate",
            "variants",
            "payloads",
            "rollout_percentage",
            "aggregation_group_type_index",
            "negation",
            "dependency_chain",
            "early_exit",
            "holdout",
            "id",
            "exclusion_percentage",
            "super_groups",
            "feature_enrollment",
            "is_date_before",
            "-7\u{e9}",
            "regex",
            "(",
            "$feature/a",
        ]
        .as_slice(),
    );
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..3_i64).prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |value| {
        prop_oneof![
            prop::collection::vec(value.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((word.clone(), value), 0..6).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

/// A flag that is well-formed except for its conditions.
fn flag() -> impl Strategy<Value = Value> {
    (value(), prop::collection::vec(value(), 0..3), prop::sample::select(vec!["a", "b", "1"])).prop_map(
        |(extra, properties, key)| {
            let mut filters = extra.as_object().cloned().unwrap_or_default();
            filters.insert("groups".into(), json!([{"properties": properties}, {"rollout_percentage": 50}]));
            json!({"key": key, "id": 1, "active": true, "filters": filters})
        },
    )
}

fn any_context() -> impl Strategy<Value = FlagContext> {
    let properties = prop::collection::vec((prop::sample::select(vec!["key", "a", "$feature/a"]), value()), 0..4);
    (".{0,4}", properties, prop::option::of(".{0,3}")).prop_map(|(id, properties, group)| {
        let context = properties.into_iter().fold(FlagContext::new(id), |context, (name, value)| {
            context.person_property(name, value.clone()).group_property("a", name, value)
        });
        group.into_iter().fold(context, |context, key| context.group("a", key))
    })
}

proptest! {
    #[test]
    fn no_definitions_and_no_context_make_it_panic(
        flags in prop::collection::vec(prop_oneof![value(), flag()], 0..5),
        cohorts in prop::collection::vec(value(), 0..3),
        context in any_context(),
    ) {
        let cohorts: Map<String, Value> =
            cohorts.into_iter().enumerate().map(|(id, cohort)| (id.to_string(), cohort)).collect();
        let text = json!({"flags": flags, "cohorts": cohorts, "group_type_mapping": {"0": "a", "1": "b"}}).to_string();
        let flags = LocalFlags::parse(text.as_bytes()).unwrap();
        let all = flags.evaluate_all(&context, 0);
        prop_assert_eq!(all.len(), flags.len());
        for key in flags.keys() {
            let alone = flags.evaluate(key, &context).ok().map(Into::into);
            prop_assert_eq!(alone, all[key].as_ref().ok().map(|evaluated| evaluated.value.clone()));
        }
        prop_assert!(LocalFlags::parse(&text.as_bytes()[..text.len() / 2]).is_err());
    }

    #[test]
    fn any_bytes_are_definitions_or_not(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _either = LocalFlags::parse(&bytes);
    }
}
