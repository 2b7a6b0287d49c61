//! Which patterns are matched here, and of which PostHog is asked.

use serde_json::json;

use super::tests::ask;
use crate::flags::InconclusiveReason;

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
        // Cannot be read here.
        "?*",
        "(",
        "[a",
        r"(?=a)",
        r"(?<!a)b",
        r"(a)\1",
        r"\Ka",
        r"a\Z",
        r"\h",
        // Possessive there, repeated here.
        "a++",
        "a*+",
        "a?+",
        "a{2}+",
        "a{2}{3}",
        "a??+",
        // An anchor cannot be repeated there.
        "^*a",
        "a$?",
        r"\A+",
        "(?:^)*a",
        "(^|$)?",
        "(?i)*",
        // Literal there, or an error here.
        "a{",
        "{2}",
        "a{,2}",
        "a{2",
        "a}",
        "a]",
        "()*",
        // Other words for other things.
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
