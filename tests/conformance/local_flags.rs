//! Local evaluation (LFE) through the client. A flag that can be evaluated locally sends no request; one that cannot
//! does.

use posthog::feature_flags::{FlagContext, FlagValue};
use posthog::testing::{Answer, Harness, RecordedRequest, Route};
use serde_json::{Value, json};

use crate::fixture::PATIENCE;

/// A client with these definitions. PostHog returns the variant `remote` for each flag.
fn with_flags(flags: Value) -> Harness {
    with_definitions(json!({"flags": flags, "group_type_mapping": {"0": "company"}, "cohorts": {}}))
}

fn with_definitions(definitions: Value) -> Harness {
    let harness = Harness::new(|config| config.secret_key("phs_secret")).unwrap();
    harness.settle();
    let keys: Vec<_> = definitions["flags"].as_array().unwrap().iter().map(|flag| flag["key"].clone()).collect();
    let remote = json!({"enabled": true, "variant": "remote"});
    let answers = keys.iter().map(|key| (key.as_str().unwrap().to_owned(), remote.clone()));
    let answers = json!({"flags": answers.collect::<serde_json::Map<_, _>>()});
    harness.server().always(Route::Flags, Answer::json(answers));
    harness.server().always(Route::FlagDefinitions, Answer::json(definitions));
    harness.client().reload_flag_definitions().wait(PATIENCE).unwrap();
    harness.server().forget();
    harness
}

fn flag(key: &str, filters: Value) -> Value {
    json!({"key": key, "active": true, "filters": filters})
}

/// A flag that is on for persons with that property.
fn flag_on(key: &str, property: &str, operator: &str, value: Value) -> Value {
    let test = json!([{"key": property, "type": "person", "operator": operator, "value": value}]);
    flag(key, json!({"groups": [{"properties": test, "rollout_percentage": 100}]}))
}

fn asked(harness: &Harness) -> Vec<RecordedRequest> {
    harness.server().requests().into_iter().filter(|request| request.route == Route::Flags).collect()
}

/// The flag's value, evaluated without a request.
fn here(harness: &Harness, key: &str, who: impl Into<FlagContext>) -> FlagValue {
    let value = harness.client().get_feature_flag(key, who).try_get().flatten();
    assert!(asked(harness).is_empty(), "{key} is evaluated here");
    value.unwrap_or_else(|| panic!("{key} has a value"))
}

/// The flag's value from PostHog, because it cannot be evaluated locally. Without a request it has no value.
fn must_be_asked_for(harness: &Harness, key: &str, who: FlagContext) {
    assert_eq!(harness.client().get_feature_flag(key, who.clone().only_locally(true)).try_get(), Some(None), "{key}");
    assert!(asked(harness).is_empty());
    let value = harness.client().get_feature_flag(key, who).wait(PATIENCE).unwrap();
    assert_eq!((value, asked(harness).len()), (Some("remote".into()), 1), "{key}");
    harness.server().forget();
}

#[test]
fn lfe_01_a_matching_active_boolean_flag_is_on() {
    let harness = with_flags(json!([flag_on("beta-ui", "plan", "exact", json!("pro"))]));
    assert_eq!(here(&harness, "beta-ui", FlagContext::new("user-123").person_property("plan", "pro")), true);
    assert_eq!(here(&harness, "beta-ui", FlagContext::new("user-123").person_property("plan", "free")), false);
}

fn experiment() -> Value {
    let variants = json!([{"key": "control", "rollout_percentage": 50}, {"key": "test", "rollout_percentage": 50}]);
    json!({
        "groups": [{"rollout_percentage": 100}], "multivariate": {"variants": variants},
        "payloads": {"control": "{\"color\": \"grey\"}", "test": "{\"color\": \"blue\"}"},
    })
}

#[test]
fn lfe_02_a_multivariate_flag_has_the_variant_of_the_bucket() {
    let harness = with_flags(json!([flag("exp", experiment())]));
    // Buckets 0.644 and 0.100, as computed elsewhere: the first 15 digits of the SHA-1 of `exp.u0variant` and
    // `exp.u3variant`.
    assert_eq!((here(&harness, "exp", "u0"), here(&harness, "exp", "u3")), ("test".into(), "control".into()));
}

#[test]
fn lfe_03_the_payload_follows_the_value() {
    let harness = with_flags(json!([flag("exp", experiment())]));
    for (who, color) in [("u0", "blue"), ("u3", "grey")] {
        let result = harness.client().get_feature_flag_result("exp", who).try_get().flatten().unwrap();
        assert_eq!(result.payload, Some(json!({"color": color})), "{who}");
    }
    assert!(asked(&harness).is_empty());
}

#[test]
fn lfe_04_a_group_flag_without_the_group_asks_posthog() {
    let of_companies = json!({"aggregation_group_type_index": 0, "groups": [{"rollout_percentage": 100}]});
    let harness = with_flags(json!([flag("company-beta", of_companies)]));
    must_be_asked_for(&harness, "company-beta", FlagContext::new("user-123"));
    let with_group = FlagContext::new("user-123").group("company", "acme");
    assert_eq!(here(&harness, "company-beta", with_group), true);
}

#[test]
fn lfe_05_inactive_is_off_and_devices_bucket_by_device() {
    let mut inactive = flag("off", json!({"groups": [{"rollout_percentage": 100}]}));
    inactive["active"] = false.into();
    let mut by_device = flag("exp", json!({"groups": [{"rollout_percentage": 50}]}));
    by_device["bucketing_identifier"] = "device_id".into();
    let harness = with_flags(json!([inactive, by_device]));
    assert_eq!(here(&harness, "off", "user_1"), false);
    // Buckets 0.055 of u4 and 0.835 of u0.
    assert_eq!(here(&harness, "exp", FlagContext::new("u0").device_id("u4")), true);
    assert_eq!(here(&harness, "exp", FlagContext::new("u4").device_id("u0")), false);
    must_be_asked_for(&harness, "exp", FlagContext::new("u4"));
}

/// Circular and deep dependencies give neither a wrong value nor an endless evaluation.
#[test]
fn lfe_05_what_cannot_be_known_here_asks_posthog() {
    let mut keeps = flag("keeps", json!({"groups": [{}]}));
    keeps["ensure_experience_continuity"] = true.into();
    let tests = |tests: Value| json!({"groups": [{"properties": tests, "rollout_percentage": 100}]});
    let needs =
        |key: &str| tests(json!([{"key": key, "type": "flag", "operator": "flag_evaluates_to", "value": true}]));
    let harness = with_flags(json!([
        keeps,
        flag("static-cohort", tests(json!([{"key": "id", "type": "cohort", "value": 99}]))),
        flag_on("missing-property", "plan", "exact", json!("pro")),
        flag("missing-dependency", needs("nowhere")),
        flag("itself", needs("itself")),
        flag("circle-1", needs("circle-2")),
        flag("circle-2", needs("circle-1")),
        flag("malformed", json!({"groups": "all"})),
        flag("well", json!({"groups": [{}]})),
    ]));
    for key in ["keeps", "static-cohort", "missing-property", "missing-dependency", "itself", "circle-1", "malformed"] {
        must_be_asked_for(&harness, key, FlagContext::new("user_1"));
    }
    assert_eq!(here(&harness, "well", "user_1"), true);
}

#[test]
fn lfe_06_starts_and_ends_ignore_case_and_can_be_negated() {
    // The operator, its value, a property that satisfies it, and one that does not.
    for (operator, value, on, off) in [
        ("starts_with", json!("ADMIN@"), json!("admin@example.com"), json!("the-admin@example.com")),
        ("not_starts_with", json!("ADMIN@"), json!("the-admin@example.com"), json!("admin@example.com")),
        ("ends_with", json!(".COM"), json!("a@example.com"), json!("a@example.org")),
        ("not_ends_with", json!(".COM"), json!("a@example.org"), json!("a@example.com")),
        ("starts_with", json!(12), json!(123), json!(312)),
        ("ends_with", json!("23"), json!(123), json!(12.3)),
        ("starts_with", json!("TR"), json!(true), json!(false)),
        // Only ASCII letters are folded.
        ("starts_with", json!("\u{dc}b"), json!("\u{dc}B"), json!("\u{fc}b")),
    ] {
        let harness = with_flags(json!([flag_on("f", "p", operator, value.clone())]));
        let is = |property: Value| here(&harness, "f", FlagContext::new("u").person_property("p", property));
        assert_eq!((is(on), is(off)), (true.into(), false.into()), "{operator} {value}");
        must_be_asked_for(&harness, "f", FlagContext::new("u"));
    }
}

#[test]
fn lfe_07_an_operator_that_is_not_known_costs_only_its_flag() {
    let harness = with_flags(json!([
        flag_on("future", "plan", "resembles", json!("pro")),
        flag_on("present", "plan", "exact", json!("pro")),
    ]));
    let who = FlagContext::new("u").person_property("plan", "pro");
    must_be_asked_for(&harness, "future", who.clone());
    assert_eq!(here(&harness, "present", who), true);
}

#[test]
fn lfe_08_a_rollout_is_never_rounded() {
    let rollout = |key: &str, percentage: Value| flag(key, json!({"groups": [{"rollout_percentage": percentage}]}));
    let absent = flag("absent", json!({"groups": [{"properties": []}]}));
    let harness = with_flags(json!([
        rollout("fractional-rollout", json!(0.1)),
        rollout("none", json!(0.0)),
        rollout("all", json!(100.0)),
        absent,
    ]));
    // Buckets 0.000014 and 0.000856; 0.001017 and 0.001384: rounded to 0 the first two would be off, to 1 the others
    // on.
    for (who, is_on) in [("user-2912", true), ("user-4482", true), ("user-260", false), ("user-235", false)] {
        assert_eq!(here(&harness, "fractional-rollout", who), is_on, "{who}");
    }
    for user in 0..200 {
        let who = format!("user-{user}");
        let values = ["none", "all", "absent"].map(|key| here(&harness, key, &who));
        assert_eq!(values, [false, true, true].map(FlagValue::from), "{who}");
    }
}
