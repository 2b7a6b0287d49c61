//! Versions, and ranges of them.

use serde_json::{Value, json};

use super::tests::ask;
use crate::flags::InconclusiveReason;

fn check(operator: &str, value: &str, properties: &[(&str, bool)]) {
    for (property, expected) in properties {
        assert_eq!(ask(operator, json!(value), json!(property)), Ok(*expected), "{property} {operator} {value}");
    }
}

#[test]
fn a_version_may_have_a_prefix_and_lack_parts() {
    check("semver_eq", "1.2.0", &[("1.2.0", true), ("v1.2", true), ("1.2", true), ("v 1.2 ", true), ("1.2.1", false)]);
    check("semver_eq", "v3.08", &[("3.8.0", true), ("03.08.000", true), ("3.80", false)]);
    check("semver_neq", "2", &[("2.0.0", false), ("2.0.1", true)]);
    assert_eq!(ask("semver_eq", json!("3.1"), json!(3.1)), Ok(true));
}

#[test]
fn versions_are_ordered_by_number_with_prereleases_first() {
    check("semver_gt", "1.9.0", &[("1.10.0", true), ("1.9.0", false), ("1.9.0-beta", false), ("2", true)]);
    check("semver_gte", "1.9.0", &[("1.9", true), ("1.8.99", false), ("1.9.0-beta", false)]);
    check("semver_lt", "1.9.0", &[("1.9.0-beta", true), ("1.9.0", false), ("1.8", true)]);
    check("semver_lte", "1.9.0", &[("1.9.0", true), ("1.9.1", false)]);
    check("semver_gt", "1.0.0-alpha.2", &[("1.0.0-alpha.10", true), ("1.0.0-alpha.1", false), ("1.0.0", true)]);
}

#[test]
fn a_tilde_keeps_the_minor_version() {
    check("semver_tilde", "1.2.3", &[("1.2.3", true), ("1.2.9", true), ("1.2.2", false), ("1.3.0", false)]);
    check("semver_tilde", "v1.02", &[("1.2.0", true), ("1.2.7", true), ("1.3.0", false)]);
    check("semver_tilde", "1.2.3", &[("1.2.4-beta", false)]);
}

#[test]
fn a_caret_keeps_the_leftmost_part_that_is_not_zero() {
    check("semver_caret", "1.2.3", &[("1.2.3", true), ("1.9.0", true), ("2.0.0", false), ("1.2.2", false)]);
    check("semver_caret", "0.2.3", &[("0.2.9", true), ("0.3.0", false)]);
    check("semver_caret", "0.0.3", &[("0.0.3", true), ("0.0.4", false)]);
    check("semver_caret", "1", &[("1.9.9", true), ("2", false)]);
}

#[test]
fn a_wildcard_stands_for_any_number() {
    check("semver_wildcard", "1.2.*", &[("1.2.0", true), ("1.2.99", true), ("1.3.0", false)]);
    check("semver_wildcard", "1.*", &[("1.0.0", true), ("1.99", true), ("2.0.0", false)]);
    check("semver_wildcard", "1.*.*", &[("1.7.3", true), ("0.9.0", false)]);
    check("semver_wildcard", "v3.08.*", &[("3.8.1", true), ("3.9", false)]);
    check("semver_wildcard", "*", &[("0.0.1", true), ("17", true)]);
}

#[test]
fn what_is_no_version_cannot_be_compared() {
    let no_versions: [Value; 12] = [
        json!(""),
        json!("v"),
        json!("latest"),
        json!("1.2.3.4"),
        json!("1..2"),
        json!(".1"),
        json!("1.2.3-"),
        json!("1.2.3+"),
        json!("-1"),
        json!("V1.2.3"),
        json!("99999999999999999999.0.0"),
        json!(["1.2.3"]),
    ];
    for no_version in no_versions {
        for operator in ["semver_eq", "semver_neq", "semver_lt", "semver_tilde", "semver_caret", "semver_wildcard"] {
            let unusable = Err(InconclusiveReason::UnusableProperty);
            assert_eq!(ask(operator, json!("1.2.3"), no_version.clone()), unusable, "{no_version}");
        }
        for operator in ["semver_eq", "semver_neq", "semver_lt", "semver_tilde", "semver_caret"] {
            let unusable = Err(InconclusiveReason::UnusableCondition);
            assert_eq!(ask(operator, no_version.clone(), json!("1.2.3")), unusable, "{no_version}");
        }
    }
    assert_eq!(ask("semver_wildcard", json!("1.*.3"), json!("1.2.3")), Err(InconclusiveReason::UnusableCondition));
}
