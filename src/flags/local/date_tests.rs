//! Dates: their order, and whether it depends on the project's time zone.

use serde_json::{Value, json};

use crate::flags::InconclusiveReason;
use crate::flags::local::property::Filter;
use crate::flags::local::property::tests::{NOW, VERSION_ONE, ask};

/// Expected results of before, exact and after. `None`: depends on the time zone.
fn check(value: Value, property: Value, expected: Option<&str>) {
    for operator in ["is_date_before", "is_date_exact", "is_date_after"] {
        let answer = expected.map(|expected| expected == operator).ok_or(InconclusiveReason::UnusableProperty);
        assert_eq!(ask(operator, value.clone(), property.clone()), answer, "{property} {operator} {value}");
    }
}

const BEFORE: Option<&str> = Some("is_date_before");
const EXACT: Option<&str> = Some("is_date_exact");
const AFTER: Option<&str> = Some("is_date_after");

#[test]
fn instants_are_compared_to_the_nanosecond() {
    let noon = || json!("2024-06-15T12:00:00Z");
    check(noon(), json!("2024-06-15T14:00:00+02:00"), EXACT);
    check(noon(), json!("2024-06-15 12:00:00.000000001z"), AFTER);
    check(noon(), json!("2024-06-15t06:59:59-05:00"), BEFORE);
    check(noon(), json!(1_718_452_800), EXACT);
    check(noon(), json!("1718452800.5"), AFTER);
    check(json!("1969-12-31T23:59:58Z"), json!(-1.5), EXACT);
}

#[test]
fn dates_on_the_projects_clocks_are_compared_with_each_other() {
    check(json!("2024-06-15"), json!("2024-06-14"), BEFORE);
    check(json!("2024-06-15"), json!("2024-06-15 00:00:00"), EXACT);
    check(json!("2024-06-15"), json!("2024-06-15T00:01"), AFTER);
    check(json!("2024-06-15 10:30:00.25"), json!("2024-06-15 10:30:00.3"), AFTER);
}

#[test]
fn a_date_and_an_instant_are_compared_if_no_time_zone_matters() {
    check(json!("2024-06-15"), json!("2024-06-14T07:59:59Z"), BEFORE);
    check(json!("2024-06-15"), json!("2024-06-14T08:00:00Z"), None);
    check(json!("2024-06-15"), json!("2024-06-15T00:00:00Z"), None);
    check(json!("2024-06-15"), json!("2024-06-15T16:00:00Z"), None);
    check(json!("2024-06-15"), json!("2024-06-15T16:00:01Z"), AFTER);
    check(json!("2024-06-15T16:00:01Z"), json!("2024-06-15"), BEFORE);
}

#[test]
fn relative_dates_are_before_now() {
    // Now is 2024-03-31T12:00:00Z.
    for hours in ["-6h", "6h", "-0006h"] {
        check(json!(hours), json!("2024-03-31T05:59:59Z"), BEFORE);
        check(json!(hours), json!("2024-03-31T06:00:00Z"), EXACT);
        check(json!(hours), json!("2024-03-31T06:00:01Z"), AFTER);
    }
    let table = [
        ("-7d", "2024-03-24T10:59:59Z", "2024-03-24T13:00:01Z"),
        ("-2w", "2024-03-17T10:59:59Z", "2024-03-17T13:00:01Z"),
        // Where it is April 1, the result is March 1.
        ("-1m", "2024-02-29T10:59:59Z", "2024-03-01T13:00:01Z"),
        // The day was clipped in February. Where it is April 1, the result is February 1.
        ("-2m", "2024-01-29T10:59:59Z", "2024-02-01T13:00:01Z"),
        ("-13m", "2023-02-28T10:59:59Z", "2023-03-01T13:00:01Z"),
        ("-1y", "2023-03-31T10:59:59Z", "2023-03-31T13:00:01Z"),
    ];
    for (value, before, after) in table {
        check(json!(value), json!(before), BEFORE);
        check(json!(value), json!(after), AFTER);
    }
    check(json!("-7d"), json!("2024-03-24T12:30:00Z"), None);
    check(json!("-7d"), json!("2024-03-24"), None);
    check(json!("-7d"), json!("2024-03-23"), BEFORE);
    check(json!("-1d"), json!("-3d"), BEFORE);
}

#[test]
fn a_leap_day_is_cut_in_the_year_before_and_stays_cut() {
    let leap_day = 1_709_208_000_000_000_000;
    for (value, property, expected) in [
        ("-4y", "2020-02-28T10:59:59Z", Ok(false)),
        // February 28, where it is February 29, 2024 now.
        ("-4y", "2020-02-28T12:00:00Z", Err(InconclusiveReason::UnusableProperty)),
        ("-4y", "2020-03-01T13:00:01Z", Ok(true)),
        ("-3y", "2021-03-01T13:00:01Z", Ok(true)),
    ] {
        let filter = Filter::compile(Some("is_date_after"), &json!(value), VERSION_ONE);
        assert_eq!(filter.matches(Some(&json!(property)), || leap_day), expected, "{property} {value}");
    }
}

#[test]
fn the_largest_relative_dates_are_dates() {
    for value in ["-9999h", "-9999d", "-9999w", "-9999m", "-9999y"] {
        check(json!(value), json!("2024-01-01T00:00:00Z"), AFTER);
    }
    let filter = Filter::compile(Some("is_date_after"), &json!("-9999y"), VERSION_ONE);
    for now in [i64::MIN, 0, i64::MAX] {
        assert_eq!(filter.matches(Some(&json!("2262-04-12T00:00:00Z")), || now), Ok(true));
    }
}

#[test]
fn a_value_that_is_not_a_date_is_inconclusive() {
    let no_dates: [Value; 32] = [
        json!("2024-06-15T10:30:60"),
        json!("2024-06-15 10:30:60"),
        json!("2016-12-31T23:59:60Z"),
        json!("2016-12-31 23:59:60.5z"),
        json!("2024-06-15T10:30:60+02:00"),
        json!("-7\u{e9}"),
        json!("-99999999999d"),
        json!("-10000d"),
        json!("-99999999999999999999999d"),
        json!("-d"),
        json!("--7d"),
        json!("-1.5d"),
        json!("7 days"),
        json!(""),
        json!("-"),
        json!("\u{e9}"),
        json!("2024-06-1\u{e9}"),
        json!("2024-13-01"),
        json!("2024-02-30"),
        json!("20240615T103000Z"),
        json!("2024-06-15T10"),
        json!("2024-06-15T10:30Z"),
        json!("2024-06-15T10:30:00+0500"),
        json!("2024-06-15T10:30:00+05:00[Asia/Tashkent]"),
        json!("9999-12-31T23:59:59-23:00"),
        json!("June 15, 2024"),
        json!("2024/06/15"),
        json!(null),
        json!(true),
        json!(["2024-06-15"]),
        json!("nan"),
        json!("inf"),
    ];
    for no_date in no_dates {
        for operator in ["is_date_before", "is_date_exact", "is_date_after"] {
            let answer = ask(operator, json!("2024-06-15"), no_date.clone());
            assert_eq!(answer, Err(InconclusiveReason::UnusableProperty), "{no_date}");
            let answer = ask(operator, no_date.clone(), json!("2024-06-15"));
            assert_eq!(answer, Err(InconclusiveReason::UnusableCondition), "{no_date}");
        }
    }
    for seconds in [json!(1e300), json!(-1e300), json!(u64::MAX)] {
        assert_eq!(ask("is_date_after", json!("2024-06-15"), seconds), Err(InconclusiveReason::UnusableProperty));
    }
    // The service does not compare numbers as dates in conditions.
    assert_eq!(
        ask("is_date_after", json!(1_700_000_000), json!("2024-06-15")),
        Err(InconclusiveReason::UnusableCondition)
    );
    let filter = Filter::compile(Some("is_date_after"), &json!("-7d"), VERSION_ONE);
    assert_eq!(filter.matches(None, || NOW), Err(InconclusiveReason::MissingProperty));
}
