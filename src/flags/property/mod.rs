//! One condition of a feature flag, or of a cohort, on one property: compiled once when the definitions are read, and then asked with
//! a property as often as the flag is.
//!
//! The reference is PostHog's own flags service (`rust/feature-flags`, `properties/`), because what is evaluated here has to be what it
//! would have answered. Where it cannot be known here what that is, the answer is [`InconclusiveReason`], and PostHog is asked. So:
//!
//! - Text is compared as the service does it (`text.rs`): everything that is not a string as JSON, letters of ASCII in either case.
//! - `exact` compares in lowercase, with one value or each of a list (`exact.rs`). [`MatchingVersion::One`] looks first whether the
//!   filter has nothing but truth values in it, and then compares truths: `false` is what every property is that is not true. Version
//!   two compares text. To both a list of nothing is what is true.
//! - Numbers are 64-bit floats, from strings too (`number.rs`). `between` has both ends in it.
//! - Versions are the crate `semver`'s, prereleases included, with missing parts zero (`version.rs`). The official SDKs drop prereleases
//!   and refuse leading zeros; the service does neither.
//! - Patterns are matched if `regex` reads them as the service's `fancy-regex` does (`pattern.rs`).
//! - Dates are RFC 3339, dates with or without a time, `-7d`, and numbers of seconds (`date.rs`, `relative_date.rs`). The service reads
//!   those without an offset in the project's time zone, and counts `-7d` back on its clocks. We do not know that zone: what would
//!   differ between zones is inconclusive. The official SDKs take UTC.
//!
//! A property that was not given is inconclusive for every operator, `is_not_set` among them: PostHog may know it. So is a property
//! that the operator cannot compare, for which the service's answer is mostly no (also to the negated operator), but it reads more
//! forms than we do. So is an operator that is none of these; `in`, `not_in` and `flag_evaluates_to` are not about properties.
//!
//! Asking costs no allocation, unless text has letters beyond ASCII, is a list or an object, or is long. Nothing here can panic or run for
//! longer than linear time, whatever the definitions or the property.

mod date;
#[cfg(test)]
mod date_tests;
mod exact;
mod number;
mod pattern;
#[cfg(test)]
mod pattern_tests;
mod relative_date;
#[cfg(test)]
mod tests;
mod text;
mod version;
#[cfg(test)]
mod version_tests;

use regex::Regex;
use semver::{Version, VersionReq};
use serde_json::Value;

use crate::sys::clock::WallNanos;

use super::InconclusiveReason;
use date::{Date, moment_of};
use exact::{Choices, is_true, is_truth_value};
use number::{Comparison, number_of, range_of};
use text::{Part, Place, text_of, with_text};
use version::version_of;

/// How `exact` and `is_not` read truth values: what definitions call `property_matching_version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MatchingVersion {
    /// A filter of nothing but truth values asks for the truth of the property. Also for numbers that PostHog has not given yet.
    #[default]
    One,
    /// `true` is what reads `true`, and nothing else.
    Two,
}

/// A condition on one property.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// What cannot be used says why.
    test: Result<Test, InconclusiveReason>,
    is_negated: bool,
}

#[derive(Clone, Debug)]
enum Test {
    IsSet,
    HasTruth(bool),
    IsOneOf(Choices),
    HasPart(Place, Box<[Part]>),
    Matches(Regex),
    Number(Comparison, f64),
    IsBetween(f64, f64),
    Date(Comparison, Box<Date>),
    Version(Comparison, Version),
    IsInVersions(VersionReq),
}

impl Filter {
    /// Compiles a condition; no operator is `exact`. What cannot be used compiles into a filter that is always inconclusive.
    pub(crate) fn compile(operator: Option<&str>, value: &Value, version: MatchingVersion) -> Filter {
        let operator = operator.unwrap_or("exact");
        let (operator, is_negated) = match operator {
            "is_not" => ("exact", true),
            "is_not_set" => ("is_set", true),
            "semver_neq" => ("semver_eq", true),
            "not_icontains"
            | "not_icontains_multi"
            | "not_starts_with"
            | "not_ends_with"
            | "not_regex"
            | "not_between" => (operator.trim_start_matches("not_"), true),
            _ => (operator, false),
        };
        let test = match Test::compile(operator, value, version) {
            // There is nothing to compare with.
            Ok(test) if value.is_null() && !matches!(test, Test::IsSet) => Err(InconclusiveReason::UnusableCondition),
            test => test,
        };
        Filter { test, is_negated }
    }

    /// Whether the property, `None` if it was not given, is now as the condition wants it. What time it is, only dates ask.
    pub(crate) fn matches(
        &self,
        property: Option<&Value>,
        now: impl FnOnce() -> WallNanos,
    ) -> Result<bool, InconclusiveReason> {
        let test = self.test.as_ref().map_err(|reason| *reason)?;
        let property = property.ok_or(InconclusiveReason::MissingProperty)?;
        let is_passed = test.is_passed_by(property, now).ok_or(InconclusiveReason::UnusableProperty)?;
        Ok(is_passed != self.is_negated)
    }
}

impl Test {
    fn compile(operator: &str, value: &Value, version: MatchingVersion) -> Result<Test, InconclusiveReason> {
        let comparison = match operator {
            "lt" | "semver_lt" | "is_date_before" => Comparison::Less,
            "lte" | "semver_lte" => Comparison::LessOrEqual,
            "gte" | "semver_gte" => Comparison::GreaterOrEqual,
            "gt" | "semver_gt" | "is_date_after" => Comparison::Greater,
            _ => Comparison::Equal,
        };
        let test = match operator {
            "is_set" => Some(Test::IsSet),
            "exact" => Some(Test::exact(value, version)),
            "starts_with" => Some(Test::HasPart(Place::Start, [Part::new(value)].into())),
            "ends_with" => Some(Test::HasPart(Place::End, [Part::new(value)].into())),
            "icontains" => Some(Test::HasPart(Place::Anywhere, [Part::new(value)].into())),
            "icontains_multi" => {
                let parts = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                Some(Test::HasPart(Place::Anywhere, parts.iter().map(Part::new).collect()))
            }
            "regex" => pattern::compile(&text_of(value)).map(Test::Matches),
            "gt" | "gte" | "lt" | "lte" => number_of(value).map(|number| Test::Number(comparison, number)),
            "between" => range_of(value).map(|(low, high)| Test::IsBetween(low, high)),
            "is_date_before" | "is_date_after" | "is_date_exact" => {
                value.as_str().and_then(Date::parse).map(|date| Test::Date(comparison, date.into()))
            }
            "semver_eq" | "semver_gt" | "semver_gte" | "semver_lt" | "semver_lte" => {
                version_of(value).map(|version| Test::Version(comparison, version))
            }
            "semver_tilde" => version::tilde(value).map(Test::IsInVersions),
            "semver_caret" => version::caret(value).map(Test::IsInVersions),
            "semver_wildcard" => version::wildcard(value).map(Test::IsInVersions),
            _ => return Err(InconclusiveReason::UnknownOperator),
        };
        test.ok_or(InconclusiveReason::UnusableCondition)
    }

    fn exact(value: &Value, version: MatchingVersion) -> Test {
        match value {
            _ if version == MatchingVersion::One && is_truth_value(value) => Test::HasTruth(is_true(value)),
            Value::Array(values) if values.is_empty() => Test::HasTruth(true),
            Value::Array(values) => Test::IsOneOf(Choices::new(values)),
            value => Test::IsOneOf(Choices::new(std::slice::from_ref(value))),
        }
    }

    /// `None` if the property is nothing that can be compared so.
    fn is_passed_by(&self, property: &Value, now: impl FnOnce() -> WallNanos) -> Option<bool> {
        Some(match self {
            Test::IsSet => true,
            Test::HasTruth(truth) => is_true(property) == *truth,
            Test::IsOneOf(choices) => with_text(property, |text| choices.contain(text)),
            Test::HasPart(place, parts) => {
                with_text(property, |text| parts.iter().any(|part| part.stands_in(text, *place)))
            }
            Test::Matches(pattern) => with_text(property, |text| pattern.is_match(text)),
            Test::Number(comparison, number) => comparison.accepts(number_of(property)?.partial_cmp(number)?),
            Test::IsBetween(low, high) => (*low..=*high).contains(&number_of(property)?),
            Test::Date(comparison, date) => {
                let now = now();
                comparison.accepts(moment_of(property, now)?.order(&date.moment(now)?)?)
            }
            Test::Version(comparison, version) => comparison.accepts(version_of(property)?.cmp(version)),
            Test::IsInVersions(versions) => versions.matches(&version_of(property)?),
        })
    }
}
