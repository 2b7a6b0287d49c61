//! Tests that the local evaluation of a boolean flag does not allocate. This is a separate test binary because it
//! counts every allocation of the process.

#[path = "../benches/support/allocations.rs"]
mod allocations;

use allocations::allocations;
use posthog::feature_flags::{FlagContext, LocalFlags, LocalValue};
use serde_json::json;

#[test]
fn an_evaluation_allocates_nothing() {
    let on = |key: &str, operator: &str, value: serde_json::Value| json!({"key": key, "type": "person", "operator": operator, "value": value});
    let members: Vec<String> = (0..10_000).map(|member| format!("user-{member}@example.com")).collect();
    let flags = json!({"flags": [
        {"key": "base", "active": true, "filters": {"groups": [{"rollout_percentage": 99.9}]}},
        {"key": "f", "active": true, "filters": {"groups": [
            {"properties": [on("plan", "exact", json!(["pro", "team"])), on("seats", "gt", json!(1000))]},
            {"properties": [on("email", "icontains", json!("@other.example"))], "rollout_percentage": 50},
            {"properties": [
                {"key": "id", "type": "cohort", "value": 1},
                {"key": "base", "type": "flag", "operator": "flag_evaluates_to", "value": true, "dependency_chain": ["base"]},
                {"key": "tier", "type": "group", "group_type_index": 0, "operator": "exact", "value": "gold"}
            ], "rollout_percentage": 99.9}
        ]}}
    ], "cohorts": {"1": {"type": "OR", "values": [on("email", "exact", json!(members))]}}, "group_type_mapping": {"0": "company"}});
    let flags = LocalFlags::parse(flags.to_string().as_bytes()).unwrap();
    let context = FlagContext::new("user_1")
        .person_property("plan", "pro")
        .person_property("seats", 12)
        .person_property("email", "user-9999@example.com")
        .group("company", "acme")
        .group_property("company", "tier", "gold");
    assert!(allocations(|| drop(Box::new(1_u8))) > 0, "allocations are not counted");
    for key in ["base", "f"] {
        let mut value = None;
        assert_eq!(allocations(|| value = Some(flags.evaluate(key, &context))), 0, "{key}");
        assert_eq!(value, Some(Ok(LocalValue::Boolean(true))), "{key}");
    }
}
