//! The result of each operator, as tables, and properties that hold for all operators.

use proptest::prelude::*;
use serde_json::{Number, Value, json};

use super::{Filter, plain_number};
use crate::flags::InconclusiveReason;

/// Whether truth values are compared as such.
pub(in crate::flags::local) const VERSION_ONE: bool = true;
const VERSION_TWO: bool = false;

/// 2024-03-31 12:00 UTC.
pub(in crate::flags::local) const NOW: i64 = 1_711_886_400_000_000_000;

pub(in crate::flags::local) fn ask(operator: &str, value: Value, property: Value) -> Result<bool, InconclusiveReason> {
    ask_version(VERSION_ONE, operator, value, property)
}

fn ask_version(version: bool, operator: &str, value: Value, property: Value) -> Result<bool, InconclusiveReason> {
    Filter::compile(Some(operator), &value, version).matches(Some(&property), || NOW)
}

/// Checks an operator and its negation.
fn check(operator: &str, opposite: &str, table: &[(Value, Value, bool)]) {
    for (value, property, expected) in table {
        assert_eq!(ask(operator, value.clone(), property.clone()), Ok(*expected), "{property} {operator} {value}");
        assert_eq!(ask(opposite, value.clone(), property.clone()), Ok(!expected), "{property} {opposite} {value}");
    }
}

const OPERATORS: [&str; 35] = [
    "exact",
    "is_not",
    "is_set",
    "is_not_set",
    "icontains",
    "not_icontains",
    "icontains_multi",
    "not_icontains_multi",
    "starts_with",
    "not_starts_with",
    "ends_with",
    "not_ends_with",
    "regex",
    "not_regex",
    "gt",
    "gte",
    "lt",
    "lte",
    "between",
    "not_between",
    "is_date_before",
    "is_date_after",
    "is_date_exact",
    "semver_eq",
    "semver_neq",
    "semver_gt",
    "semver_gte",
    "semver_lt",
    "semver_lte",
    "semver_tilde",
    "semver_caret",
    "semver_wildcard",
    "in",
    "flag_evaluates_to",
    "no such operator",
];

#[test]
fn exact_compares_text_in_either_case_and_looks_into_lists() {
    let table = [
        (json!("Pro"), json!("pRO"), true),
        (json!("pro"), json!("prod"), false),
        (json!("\u{c4}"), json!("\u{e4}"), true),
        // Sigma has two lowercase forms, one of which is used only at the end of words.
        (json!("\u{39f}\u{3a3}"), json!("\u{3bf}\u{3c2}"), true),
        // The lowercase of the Kelvin sign is the ASCII letter k.
        (json!("k"), json!("\u{212a}"), true),
        (json!("\u{212a}"), json!("K"), true),
        (json!(1), json!("1"), true),
        (json!(1), json!(1.0), false),
        (json!(["US", "ca"]), json!("us"), true),
        (json!(["US", "ca"]), json!("de"), false),
        (json!([1, 2.5, null, true]), json!(2.5), true),
        (json!([1, 2.5, null, true]), json!(null), true),
        (json!([1, 2.5, null, true]), json!("TRUE"), true),
        (json!([["a", {"z": 1, "b": 2}]]), json!(["A", {"b": 2, "z": 1}]), true),
        (json!(""), json!(""), true),
    ];
    check("exact", "is_not", &table);
}

#[test]
fn no_operator_is_exact() {
    let filter = Filter::compile(None, &json!("pro"), VERSION_ONE);
    assert_eq!(filter.matches(Some(&json!("PRO")), || NOW), Ok(true));
}

#[test]
fn the_matching_versions_differ_for_truth_values() {
    // Cases from the tests of PostHog's SDKs.
    let table = [
        (json!(false), json!("banana"), true, false),
        (json!(false), json!(0), true, false),
        (json!(["true", "false"]), json!("true"), false, true),
        (json!(["true", "false"]), json!("pro"), true, false),
        (json!([]), json!(true), true, true),
        (json!([]), json!([]), true, true),
        (json!(true), json!([true]), true, false),
        (json!(false), json!("FALSE"), true, true),
        (json!(false), json!(null), true, false),
        (json!(false), json!(""), true, false),
        (json!([]), json!([true, ["TRUE", []]]), true, true),
        (json!([]), json!([true, false]), false, false),
        (json!([]), json!(false), false, false),
        (json!([]), json!(0), false, false),
        (json!([]), json!("banana"), false, false),
        (json!([true, "PRO"]), json!("TRUE"), true, true),
        (json!([false, "PRO"]), json!("banana"), false, false),
        (json!(["FREE", "PRO"]), json!("pro"), true, true),
    ];
    for (value, property, one, two) in table {
        for (version, expected) in [(VERSION_ONE, one), (VERSION_TWO, two)] {
            let ask = |operator| ask_version(version, operator, value.clone(), property.clone());
            assert_eq!(ask("exact"), Ok(expected), "{property} {value} {version}");
            assert_eq!(ask("is_not"), Ok(!expected), "{property} {value} {version}");
        }
    }
}

#[test]
fn a_long_list_says_the_same_as_a_short_one() {
    let long = "x".repeat(300);
    let mut values: Vec<Value> = (0..10_000).map(|n| json!(format!("User-{n}@Example.com"))).collect();
    values.extend([json!(&long), json!("\u{c4}rger"), json!(7)]);
    let filter = Filter::compile(Some("exact"), &json!(values), VERSION_ONE);
    let table = [
        (json!("uSER-9999@example.COM"), true),
        (json!("user-10000@example.com"), false),
        (json!(long.to_uppercase()), true),
        (json!("x".repeat(299)), false),
        (json!("x".repeat(301)), false),
        (json!("\u{e4}RGER"), true),
        (json!(7), true),
        (json!(8), false),
        (json!(""), false),
    ];
    for (property, expected) in table {
        assert_eq!(filter.matches(Some(&property), || NOW), Ok(expected), "{property}");
    }
}

#[test]
fn whatever_was_given_is_set() {
    for property in [json!(null), json!(false), json!(0), json!(""), json!([]), json!({})] {
        assert_eq!(ask("is_set", json!(null), property.clone()), Ok(true));
        assert_eq!(ask("is_not_set", json!("is_not_set"), property), Ok(false));
    }
}

#[test]
fn icontains_folds_ascii_alone() {
    let table = [
        (json!("@Post"), json!("a@pOSThog.com"), true),
        (json!(2), json!(323), true),
        (json!("ru"), json!(true), true),
        (json!(""), json!(""), true),
        (json!("longer"), json!("long"), false),
        (json!("M\u{dc}NCHEN"), json!("m\u{fc}nchen"), false),
        (json!("m\u{fc}N"), json!("in M\u{fc}nchen"), true),
        (json!("\"a"), json!(["A"]), true),
        (json!("B".repeat(2_000)), json!(format!("{}{}", "a".repeat(50_000), "bB".repeat(1_000))), true),
        (json!("B".repeat(2_000)), json!(format!("{}{}", "a".repeat(50_000), "b".repeat(1_999))), false),
    ];
    check("icontains", "not_icontains", &table);
}

#[test]
fn icontains_multi_wants_one_of_them() {
    let table = [
        (json!(["@a.com", "@B.com"]), json!("x@b.com"), true),
        (json!(["@a.com", "@B.com"]), json!("x@c.com"), false),
        (json!("@A.com"), json!("x@a.com"), true),
        (json!([]), json!("x@a.com"), false),
    ];
    check("icontains_multi", "not_icontains_multi", &table);
}

#[test]
fn lfe_06_starts_and_ends_ignore_ascii_case() {
    let table = [
        (json!("admin@"), json!("Admin@Example.com"), true),
        (json!("dmin"), json!("Admin@Example.com"), false),
        (json!("M\u{fc}"), json!("m\u{fc}nchen"), true),
        (json!("M\u{dc}"), json!("m\u{fc}nchen"), false),
        (json!(12), json!(123), true),
        (json!(""), json!(null), true),
    ];
    check("starts_with", "not_starts_with", &table);
    let table = [
        (json!("@example.COM"), json!("Admin@Example.com"), true),
        (json!("@example"), json!("Admin@Example.com"), false),
        // The bytes end in the middle of a character.
        (json!("\u{fc}"), json!("\u{fc}"), true),
        (json!(23), json!(123), true),
    ];
    check("ends_with", "not_ends_with", &table);
    for operator in ["starts_with", "not_starts_with", "ends_with", "not_ends_with"] {
        let filter = Filter::compile(Some(operator), &json!("admin@"), VERSION_ONE);
        assert_eq!(filter.matches(None, || NOW), Err(InconclusiveReason::MissingProperty));
    }
}

#[test]
fn numbers_are_compared_as_numbers_even_out_of_strings() {
    check(
        "gt",
        "lte",
        &[
            (json!(1), json!(2), true),
            (json!(1), json!(1), false),
            (json!(9), json!("10"), true),
            (json!("9"), json!(10), true),
            (json!("1e3"), json!(1000.5), true),
            (json!(0), json!(-0.0), false),
            (json!(u64::MAX), json!("inf"), true),
        ],
    );
    check("lt", "gte", &[(json!(1), json!(0.5), true), (json!(1), json!("1.0"), false)]);
    check(
        "between",
        "not_between",
        &[(json!([1, "3"]), json!(3), true), (json!([1, 3]), json!(1), true), (json!([1, 3]), json!(3.1), false)],
    );
    for property in [json!("many"), json!(" 1"), json!(true), json!(null), json!([1]), json!("NaN")] {
        assert_eq!(ask("gt", json!(1), property.clone()), Err(InconclusiveReason::UnusableProperty));
        assert_eq!(ask("not_between", json!([1, 2]), property), Err(InconclusiveReason::UnusableProperty));
    }
    for value in [json!("many"), json!(true), json!([1]), json!("nan")] {
        assert_eq!(ask("gte", value, json!(1)), Err(InconclusiveReason::UnusableCondition));
    }
    for value in [json!(1), json!([1]), json!([2, 1]), json!([1, 2, 3]), json!(["a", 2]), json!([1, "NaN"])] {
        assert_eq!(ask("between", value, json!(1)), Err(InconclusiveReason::UnusableCondition));
    }
}

#[test]
fn an_unknown_operator_on_a_property_is_inconclusive() {
    for operator in ["in", "not_in", "flag_evaluates_to", "not_exact", "not_is_set", "not_", "", "EXACT"] {
        assert_eq!(ask(operator, json!("x"), json!("x")), Err(InconclusiveReason::UnknownOperator), "{operator}");
    }
}

#[test]
fn nothing_to_compare_with_is_inconclusive() {
    for operator in &OPERATORS[..32] {
        let expected = if operator.ends_with("_set") { None } else { Some(InconclusiveReason::UnusableCondition) };
        assert_eq!(ask(operator, json!(null), json!("x")).err(), expected, "{operator}");
    }
}

fn values() -> impl Strategy<Value = Value> {
    let scalars = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        "-?[0-9]{1,12}[hdwmy\u{e9}]".prop_map(Value::from),
        "v?[0-9*]{1,3}(\\.[0-9*]{1,3}){0,3}([-+][a-z0-9.]{0,4})?".prop_map(Value::from),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
            .prop_map(Value::from),
        "[a\\\\p{}\\[\\]()?*+|^$\u{e9}]{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["true", "FALSE", "pro", "PRO", "1", "nan"]).prop_map(Value::from),
    ];
    scalars.prop_recursive(2, 24, 12, |some| {
        prop_oneof![
            prop::collection::vec(some.clone(), 0..12).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", some, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn an_opposite_says_the_opposite(value in values(), property in values(), now: i64, is_two: bool) {
        let version = if is_two { VERSION_TWO } else { VERSION_ONE };
        let ask = |operator| Filter::compile(Some(operator), &value, version).matches(Some(&property), || now);
        for operator in OPERATORS {
            let _ = ask(operator);
        }
        let pairs = [
            ("is_not", "exact"),
            ("is_not_set", "is_set"),
            ("not_icontains", "icontains"),
            ("not_icontains_multi", "icontains_multi"),
            ("not_starts_with", "starts_with"),
            ("not_ends_with", "ends_with"),
            ("not_regex", "regex"),
            ("not_between", "between"),
            ("semver_neq", "semver_eq"),
            ("lt", "gte"),
            ("gt", "lte"),
            ("semver_lt", "semver_gte"),
            ("semver_gt", "semver_lte"),
        ];
        for (one, other) in pairs {
            prop_assert_eq!(ask(one), ask(other).map(|answer| !answer), "{} {}", one, other);
        }
    }

    #[test]
    fn exact_is_equality_in_lowercase(value in ".*", property in ".*", others in prop::collection::vec(".*", 0..12)) {
        let values: Vec<_> = others.iter().chain([&value]).collect();
        for property in [property, value.to_uppercase()] {
            let expected = values.iter().any(|value| value.to_lowercase() == property.to_lowercase());
            let answer = ask_version(VERSION_TWO, "exact", json!(values), json!(property));
            prop_assert_eq!(answer, Ok(expected));
        }
    }

    #[test]
    fn a_part_is_found_where_it_stands_in_ascii_lowercase(text in "[aA\u{e9}]{0,8}", part in "[aA\u{e9}]{0,3}") {
        let (small, small_part) = (text.to_ascii_lowercase(), part.to_ascii_lowercase());
        let ask = |operator| ask(operator, json!(part), json!(text));
        prop_assert_eq!(ask("icontains"), Ok(small.contains(&small_part)));
        prop_assert_eq!(ask("starts_with"), Ok(small.starts_with(&small_part)));
        prop_assert_eq!(ask("ends_with"), Ok(small.ends_with(&small_part)));
    }
}

fn check_version(operator: &str, value: &str, properties: &[(&str, bool)]) {
    for (property, expected) in properties {
        assert_eq!(ask(operator, json!(value), json!(property)), Ok(*expected), "{property} {operator} {value}");
    }
}

#[test]
fn a_version_may_have_a_prefix_and_lack_parts() {
    check_version(
        "semver_eq",
        "1.2.0",
        &[("1.2.0", true), ("v1.2", true), ("1.2", true), ("v 1.2 ", true), ("1.2.1", false)],
    );
    check_version("semver_eq", "v3.08", &[("3.8.0", true), ("03.08.000", true), ("3.80", false)]);
    check_version("semver_neq", "2", &[("2.0.0", false), ("2.0.1", true)]);
    assert_eq!(ask("semver_eq", json!("3.1"), json!(3.1)), Ok(true));
}

#[test]
fn versions_are_ordered_by_number_with_prereleases_first() {
    check_version("semver_gt", "1.9.0", &[("1.10.0", true), ("1.9.0", false), ("1.9.0-beta", false), ("2", true)]);
    check_version("semver_gte", "1.9.0", &[("1.9", true), ("1.8.99", false), ("1.9.0-beta", false)]);
    check_version("semver_lt", "1.9.0", &[("1.9.0-beta", true), ("1.9.0", false), ("1.8", true)]);
    check_version("semver_lte", "1.9.0", &[("1.9.0", true), ("1.9.1", false)]);
    check_version("semver_gt", "1.0.0-alpha.2", &[("1.0.0-alpha.10", true), ("1.0.0-alpha.1", false), ("1.0.0", true)]);
}

#[test]
fn a_tilde_keeps_the_minor_version() {
    check_version("semver_tilde", "1.2.3", &[("1.2.3", true), ("1.2.9", true), ("1.2.2", false), ("1.3.0", false)]);
    check_version("semver_tilde", "v1.02", &[("1.2.0", true), ("1.2.7", true), ("1.3.0", false)]);
    check_version("semver_tilde", "1.2.3", &[("1.2.4-beta", false)]);
}

#[test]
fn a_caret_keeps_the_leftmost_part_that_is_not_zero() {
    check_version("semver_caret", "1.2.3", &[("1.2.3", true), ("1.9.0", true), ("2.0.0", false), ("1.2.2", false)]);
    check_version("semver_caret", "0.2.3", &[("0.2.9", true), ("0.3.0", false)]);
    check_version("semver_caret", "0.0.3", &[("0.0.3", true), ("0.0.4", false)]);
    check_version("semver_caret", "1", &[("1.9.9", true), ("2", false)]);
}

#[test]
fn a_wildcard_stands_for_any_number() {
    check_version("semver_wildcard", "1.2.*", &[("1.2.0", true), ("1.2.99", true), ("1.3.0", false)]);
    check_version("semver_wildcard", "1.*", &[("1.0.0", true), ("1.99", true), ("2.0.0", false)]);
    check_version("semver_wildcard", "1.*.*", &[("1.7.3", true), ("0.9.0", false)]);
    check_version("semver_wildcard", "v3.08.*", &[("3.8.1", true), ("3.9", false)]);
    check_version("semver_wildcard", "*", &[("0.0.1", true), ("17", true)]);
}

#[test]
fn a_value_that_is_not_a_version_cannot_be_compared() {
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

#[test]
fn a_pattern_is_searched_for_with_case_and_without_anchors() {
    let table = [
        (r"\.com$", json!("value.com"), true),
        (r"\.com$", json!("value.COM"), false),
        (r"\.com$", json!("value.com\n"), false),
        (r"(?i)\.com$", json!("value.COM"), true),
        (r"^(?:[a-z0-9._-]+)@(post|hedge)hog\.(com|dev)$", json!("max@posthog.com"), true),
        (r"^(?:[a-z0-9._-]+)@(post|hedge)hog\.(com|dev)$", json!("max@dog.com"), false),
        (r"^\d{2,3}$", json!(323), true),
        (r"^[]a]+$", json!("]a]"), true),
        (r"^[[:alpha:]&&[^x]]+?$", json!("abc"), true),
        (r"^\p{Greek}+\pL*$", json!("\u{3b1}b"), true),
        ("", json!(""), true),
        ("^true$", json!(true), true),
        ("\u{e9}+", json!("caf\u{e9}"), true),
    ];
    for (pattern, property, expected) in table {
        assert_eq!(ask("regex", json!(pattern), property.clone()), Ok(expected), "{property} {pattern}");
        assert_eq!(ask("not_regex", json!(pattern), property.clone()), Ok(!expected), "{property} {pattern}");
    }
    assert_eq!(ask("regex", json!(4), json!("14")), Ok(true));
}

#[test]
fn what_the_service_may_read_otherwise_is_inconclusive() {
    let patterns = [
        // Rejected by `regex`.
        "?*",
        "(",
        "[a",
        r"(?=a)",
        r"(?<!a)b",
        r"(a)\1",
        r"\Ka",
        r"a\Z",
        r"\h",
        // Possessive in `fancy-regex`, repeated in `regex`.
        "a++",
        "a*+",
        "a?+",
        "a{2}+",
        "a{2}{3}",
        "a??+",
        // `fancy-regex` rejects a repeated anchor.
        "^*a",
        "a$?",
        r"\A+",
        "(?:^)*a",
        "(^|$)?",
        "(?i)*",
        // A literal in `fancy-regex`, or an error in `regex`.
        "a{",
        "{2}",
        "a{,2}",
        "a{2",
        "a}",
        "a]",
        "()*",
        // Syntax that differs between the two.
        r"\bword\b",
        r"\<word\>",
        r"[\b]",
        r"[\A]",
        "(?x) a",
        "(?-i)a",
        "(?ii)a",
        "(?P<name>a)",
        "(?<name>a)",
        "(?>a)",
        "\\\u{e9}",
        r"\",
        "(?R)",
        "(?#a)",
        r"\x{41}",
        r"\e",
    ];
    for pattern in patterns {
        for operator in ["regex", "not_regex"] {
            let answer = ask(operator, json!(pattern), json!("a"));
            assert_eq!(answer, Err(InconclusiveReason::UnusableCondition), "{pattern}");
        }
    }
}

#[test]
fn a_pattern_that_would_grow_too_large_is_inconclusive() {
    let answer = ask("regex", json!("(?:(?:a{100}){100}){100}"), json!("a"));
    assert_eq!(answer, Err(InconclusiveReason::UnusableCondition));
    let answer = ask("regex", json!(format!("{}a{}", "(?:".repeat(50_000), ")".repeat(50_000))), json!("a"));
    assert_eq!(answer, Err(InconclusiveReason::UnusableCondition));
}

#[test]
fn a_pattern_that_backtracks_elsewhere_takes_linear_time() {
    let answer = ask("regex", json!("^(a+)+$"), json!(format!("{}b", "a".repeat(100_000))));
    assert_eq!(answer, Ok(false));
}

#[test]
fn a_number_has_one_text_however_it_was_written() {
    for (written, expected) in [("1", "1"), ("1.50", "1.5"), ("1e2", "100.0"), ("-0.250", "-0.25"), ("7.0", "7.0")] {
        let number: Number = serde_json::from_str(written).unwrap();
        assert_eq!(plain_number(&number).to_string(), expected, "{written}");
    }
    assert_eq!(plain_number(json!(u64::MAX).as_number().unwrap()).to_string(), u64::MAX.to_string());
}
