//! One condition on one property, of a feature flag or a cohort.
//!
//! A condition is compiled into a [`Filter`] when the definitions are parsed, and then evaluated with a property as
//! often as the flag is. The reference is PostHog's own flags service (`rust/feature-flags`, `properties/`): a local
//! result has to be the one the service would have given. If that cannot be known, the result is an
//! [`InconclusiveReason`] and PostHog is asked.
//!
//! - Text: a value that is not a string is compared as its JSON. ASCII letters are compared case-insensitively.
//! - `exact` compares lowercased text with a value or each value of a list. In version one of the matching
//!   (`property_matching_version` in the definitions; also used for versions that PostHog has not introduced yet), a
//!   filter that contains only truth values compares truth instead: every property that is not true is `false`.
//!   Version two always compares text. In both, an empty list matches what is true.
//! - Numbers are 64-bit floats and may be given as strings. `between` includes both ends.
//! - Versions are parsed with the crate `semver`, with prereleases and with missing parts as zero. The official SDKs
//!   drop prereleases and reject leading zeros; the service does neither.
//! - Patterns are matched if `regex` interprets them as the service's `fancy-regex` does.
//! - Dates (`date.rs`) are RFC 3339, dates with or without a time, `-7d`, or seconds since 1970. The service reads
//!   dates without an offset in the project's time zone, and counts `-7d` on its clocks. That zone is not in the
//!   definitions, so a result that differs between zones is inconclusive. The official SDKs assume UTC.
//!
//! A property that was not given is inconclusive for every operator, including `is_not_set`: PostHog may know it. So is
//! a property that the operator cannot compare. The service mostly answers `false` then (also for the negated
//! operator), but it can read more formats. So is an unknown operator. `in`, `not_in` and `flag_evaluates_to` are not
//! operators on properties.
//!
//! Evaluating a filter does not allocate, unless text contains non-ASCII letters, is a list or an object, or is long.
//! Nothing here panics or takes more than linear time, whatever the definitions and the property are.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::io::Write;

use regex::{Regex, RegexBuilder};
use semver::{BuildMetadata, Prerelease, Version, VersionReq};
use serde_json::{Map, Number, Value};

use super::date::{Date, range_of_date};
use crate::flags::InconclusiveReason;
use crate::sys::clock::WallNanos;

/// A condition on one property.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// `Err`: the condition cannot be used, and why.
    test: Result<Test, InconclusiveReason>,
    is_negated: bool,
}

#[derive(Clone, Debug)]
enum Test {
    IsSet,
    HasTruth(bool),
    IsOneOf(Choices),
    /// The texts are lowercase in ASCII.
    Contains(Position, Box<[Box<str>]>),
    Matches(Regex),
    /// The function accepts the order of the property and the condition's value. So do those of dates and versions.
    Number(fn(Ordering) -> bool, f64),
    IsBetween(f64, f64),
    Date(fn(Ordering) -> bool, Box<Date>),
    Version(fn(Ordering) -> bool, Version),
    IsInVersions(VersionReq),
}

impl Filter {
    /// Compiles a condition. A missing operator means `exact`. A condition that cannot be used is always inconclusive.
    /// `compares_truth`: as version one of the matching does.
    pub(crate) fn compile(operator: Option<&str>, value: &Value, compares_truth: bool) -> Filter {
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
        let test = match Test::compile(operator, value, compares_truth) {
            // Without a value there is nothing to compare with.
            Ok(test) if value.is_null() && !matches!(test, Test::IsSet) => Err(InconclusiveReason::UnusableCondition),
            test => test,
        };
        Filter { test, is_negated }
    }

    /// Whether the property satisfies the condition. `None`: it was not given. `now` is called only by conditions on
    /// dates.
    pub(crate) fn matches(
        &self,
        property: Option<&Value>,
        now: impl FnOnce() -> WallNanos,
    ) -> Result<bool, InconclusiveReason> {
        let test = self.test.as_ref().map_err(|reason| *reason)?;
        let property = property.ok_or(InconclusiveReason::MissingProperty)?;
        let passes_test = test.passes(property, now).ok_or(InconclusiveReason::UnusableProperty)?;
        Ok(passes_test != self.is_negated)
    }
}

impl Test {
    fn compile(operator: &str, value: &Value, compares_truth: bool) -> Result<Test, InconclusiveReason> {
        let accepts: fn(Ordering) -> bool = match operator {
            "lt" | "semver_lt" | "is_date_before" => Ordering::is_lt,
            "lte" | "semver_lte" => Ordering::is_le,
            "gte" | "semver_gte" => Ordering::is_ge,
            "gt" | "semver_gt" | "is_date_after" => Ordering::is_gt,
            _ => Ordering::is_eq,
        };
        let contains = |position| Some(Test::Contains(position, [lowercase_of(value)].into()));
        let test = match operator {
            "is_set" => Some(Test::IsSet),
            "exact" => Some(Test::exact(value, compares_truth)),
            "starts_with" => contains(Position::Start),
            "ends_with" => contains(Position::End),
            "icontains" => contains(Position::Anywhere),
            "icontains_multi" => {
                let needles = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                Some(Test::Contains(Position::Anywhere, needles.iter().map(lowercase_of).collect()))
            }
            "regex" => compile_pattern(&text_of(value)).map(Test::Matches),
            "gt" | "gte" | "lt" | "lte" => number_of(value).map(|number| Test::Number(accepts, number)),
            "between" => range_of(value).map(|(low, high)| Test::IsBetween(low, high)),
            "is_date_before" | "is_date_after" | "is_date_exact" => {
                value.as_str().and_then(Date::parse).map(|date| Test::Date(accepts, date.into()))
            }
            "semver_eq" | "semver_gt" | "semver_gte" | "semver_lt" | "semver_lte" => {
                version_of(value).map(|version| Test::Version(accepts, version))
            }
            // This version or later, with the same minor version.
            "semver_tilde" => requirement('~', value).map(Test::IsInVersions),
            // This version or later, with the same leftmost part that is not zero.
            "semver_caret" => requirement('^', value).map(Test::IsInVersions),
            "semver_wildcard" => wildcard(value).map(Test::IsInVersions),
            _ => return Err(InconclusiveReason::UnknownOperator),
        };
        test.ok_or(InconclusiveReason::UnusableCondition)
    }

    fn exact(value: &Value, compares_truth: bool) -> Test {
        match value {
            _ if compares_truth && is_truth_value(value) => Test::HasTruth(is_true(value)),
            Value::Array(values) if values.is_empty() => Test::HasTruth(true),
            Value::Array(values) => Test::IsOneOf(Choices::new(values)),
            value => Test::IsOneOf(Choices::new(std::slice::from_ref(value))),
        }
    }

    /// `None` if the operator cannot compare the property.
    fn passes(&self, property: &Value, now: impl FnOnce() -> WallNanos) -> Option<bool> {
        Some(match self {
            Test::IsSet => true,
            Test::HasTruth(truth) => is_true(property) == *truth,
            Test::IsOneOf(choices) => with_text(property, |text| choices.contains(text)),
            Test::Contains(position, needles) => {
                with_text(property, |text| needles.iter().any(|needle| contains(text, needle, *position)))
            }
            Test::Matches(pattern) => with_text(property, |text| pattern.is_match(text)),
            Test::Number(accepts, number) => accepts(number_of(property)?.partial_cmp(number)?),
            Test::IsBetween(low, high) => (*low..=*high).contains(&number_of(property)?),
            Test::Date(accepts, date) => {
                let now = now();
                accepts(range_of_date(property, now)?.order(&date.range(now)?)?)
            }
            Test::Version(accepts, version) => accepts(version_of(property)?.cmp(version)),
            Test::IsInVersions(versions) => versions.matches(&version_of(property)?),
        })
    }
}

/// Up to this many values are compared one by one; longer lists use a hash set.
const FEW: usize = 8;

/// Longer text is lowercased on the heap.
const SHORT: usize = 256;

/// The values of `exact`, lowercased.
#[derive(Clone, Debug)]
enum Choices {
    Few(Box<[Box<str>]>),
    Many { lowercase: HashSet<Box<[u8]>>, longest: usize },
}

impl Choices {
    fn new(values: &[Value]) -> Self {
        let lowercase = values.iter().map(|value| with_text(value, str::to_lowercase).into_boxed_str());
        if values.len() <= FEW {
            return Choices::Few(lowercase.collect());
        }
        let lowercase: HashSet<Box<[u8]>> = lowercase.map(Box::<[u8]>::from).collect();
        let longest = lowercase.iter().map(|choice| choice.len()).max().unwrap_or(0);
        Choices::Many { lowercase, longest }
    }

    fn contains(&self, text: &str) -> bool {
        if !text.is_ascii() {
            // The lowercase of a non-ASCII letter depends on its neighbours and may have another length.
            let text = text.to_lowercase();
            return match self {
                Choices::Few(choices) => choices.iter().any(|choice| **choice == text),
                Choices::Many { lowercase, .. } => lowercase.contains(text.as_bytes()),
            };
        }
        match self {
            // The choices are lowercase, so this is equality with the lowercased text.
            Choices::Few(choices) => choices.iter().any(|choice| choice.eq_ignore_ascii_case(text)),
            Choices::Many { longest, .. } if text.len() > *longest => false,
            Choices::Many { lowercase, .. } => {
                let mut short = [0; SHORT];
                let Some(short) = short.get_mut(..text.len()) else {
                    return lowercase.contains(text.to_ascii_lowercase().as_bytes());
                };
                short.copy_from_slice(text.as_bytes());
                short.make_ascii_lowercase();
                lowercase.contains(&*short)
            }
        }
    }
}

/// Whether the value is a boolean, `"true"` or `"false"` in any case, or a list of such values (possibly empty).
fn is_truth_value(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::String(word) => word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false"),
        Value::Array(items) => items.iter().all(is_truth_value),
        _ => false,
    }
}

/// Whether the value is `true`, `"true"` in any case, or a list of such values.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::String(word) => word.eq_ignore_ascii_case("true"),
        Value::Array(items) => items.iter().all(is_true),
        _ => false,
    }
}

/// A number, or a string that contains only a number. NaN is rejected.
fn number_of(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| !number.is_nan())
}

/// Both ends of a range, the lower one first.
fn range_of(value: &Value) -> Option<(f64, f64)> {
    match value.as_array()?.as_slice() {
        [low, high] => Some((number_of(low)?, number_of(high)?)).filter(|(low, high)| low <= high),
        _ => None,
    }
}

/// The largest product of text length and needle length that is searched without allocating. The search is quadratic.
const MAX_IN_PLACE_SEARCH: usize = 1 << 16;

/// Calls `read` with the value as text. Allocates only for lists and objects.
fn with_text<R>(value: &Value, read: impl FnOnce(&str) -> R) -> R {
    match value {
        Value::String(text) => read(text),
        Value::Null => read("null"),
        Value::Bool(true) => read("true"),
        Value::Bool(false) => read("false"),
        Value::Number(number) => {
            let number = plain_number(number);
            // Any 64-bit number fits into the buffer.
            let mut buffer = [0; 32];
            let mut free = &mut buffer[..];
            let is_written = write!(free, "{number}").is_ok();
            let free = free.len();
            match std::str::from_utf8(buffer.get(..buffer.len() - free).unwrap_or_default()) {
                Ok(text) if is_written => read(text),
                _ => read(&number.to_string()),
            }
        }
        Value::Array(_) | Value::Object(_) => read(&in_key_order(value).to_string()),
    }
}

/// The value as an owned text.
fn text_of(value: &Value) -> String {
    with_text(value, str::to_owned)
}

/// Where a property has to contain a text.
#[derive(Clone, Copy, Debug)]
enum Position {
    Start,
    End,
    Anywhere,
}

fn lowercase_of(value: &Value) -> Box<str> {
    text_of(value).to_ascii_lowercase().into()
}

/// Whether `text` contains `needle`, which is lowercase, ignoring the case of ASCII letters.
fn contains(text: &str, needle: &str, position: Position) -> bool {
    let (bytes, searched) = (text.as_bytes(), needle.as_bytes());
    let Some(last) = bytes.len().checked_sub(searched.len()) else { return false };
    // Comparing bytes is enough: UTF-8 is self-synchronizing.
    let is_at =
        |from: usize| bytes.get(from..from + searched.len()).is_some_and(|there| there.eq_ignore_ascii_case(searched));
    match position {
        Position::Start => is_at(0),
        Position::End => is_at(last),
        Position::Anywhere if bytes.len().saturating_mul(searched.len()) <= MAX_IN_PLACE_SEARCH => {
            (0..=last).any(is_at)
        }
        Position::Anywhere => text.to_ascii_lowercase().contains(needle),
    }
}

/// PostHog serializes objects in key order. Another crate of the program may have enabled serde_json's `preserve_order`
/// or `arbitrary_precision`, which would change the text.
pub(in crate::flags) fn in_key_order(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Array(items) => Cow::Owned(items.iter().map(|item| in_key_order(item).into_owned()).collect()),
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            let entries = entries.into_iter().map(|(key, value)| (key.clone(), in_key_order(value).into_owned()));
            Cow::Owned(Value::Object(entries.collect::<Map<_, _>>()))
        }
        Value::Number(number) => match plain_number(number) {
            Cow::Borrowed(_) => Cow::Borrowed(value),
            Cow::Owned(number) => Cow::Owned(Value::Number(number)),
        },
        _ => Cow::Borrowed(value),
    }
}

/// Parses a version like the flags service: a leading `v` is allowed, `3` is `3.0.0`, and `3.08` is `3.8.0`. Does not
/// allocate unless the prerelease or build metadata is longer than eight bytes.
fn version_of(value: &Value) -> Option<Version> {
    with_text(value, parse_version)
}

/// `1.2.*`, `1.*`, `*`, and whatever else the crate `semver` can parse, as in the service.
fn wildcard(value: &Value) -> Option<VersionReq> {
    let text = text_of(value);
    let parts: Vec<_> = without_prefix(&text).split('.').map(without_leading_zeros).collect();
    VersionReq::parse(&parts.join(".")).ok()
}

fn requirement(operator: char, value: &Value) -> Option<VersionReq> {
    VersionReq::parse(&format!("{operator}{}", version_of(value)?)).ok()
}

fn parse_version(text: &str) -> Option<Version> {
    let text = without_prefix(text);
    let (numbers, suffix) = text.split_at(text.find(['-', '+']).unwrap_or(text.len()));
    let mut numbers = numbers.split('.');
    let mut version = Version::new(numbers.next()?.parse().ok()?, 0, 0);
    version.minor = numbers.next().map_or(Some(0), |part| part.parse().ok())?;
    version.patch = numbers.next().map_or(Some(0), |part| part.parse().ok())?;
    if numbers.next().is_some() {
        return None;
    }
    let (prerelease, build) = match suffix.split_once('+') {
        Some((prerelease, build)) => (prerelease, Some(build)),
        None => (suffix, None),
    };
    if let Some(prerelease) = prerelease.strip_prefix('-') {
        version.pre = Prerelease::new(prerelease).ok().filter(|prerelease| !prerelease.is_empty())?;
    }
    if let Some(build) = build {
        version.build = BuildMetadata::new(build).ok().filter(|build| !build.is_empty())?;
    }
    Some(version)
}

fn without_prefix(text: &str) -> &str {
    text.strip_prefix('v').unwrap_or(text).trim()
}

fn without_leading_zeros(part: &str) -> &str {
    if !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return part;
    }
    match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0",
        digits => digits,
    }
}

/// Memory limit of a compiled pattern, and of its cache per matching thread.
const SIZE_LIMIT: usize = 1 << 20;

/// Compiles a pattern if the service interprets it in the same way.
///
/// The service uses `fancy-regex`, which delegates plain patterns to `regex`. Patterns with look-around,
/// back-references or possessive quantifiers are not compiled; PostHog is asked. What is matched here takes linear
/// time.
fn compile_pattern(pattern: &str) -> Option<Regex> {
    if !has_same_meaning(pattern) {
        return None;
    }
    RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build().ok()
}

/// What precedes a position in a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// Nothing that can be repeated: the start, an anchor, `(` or `|`. The service rejects a repeated anchor.
    Nothing,
    Something,
    /// Can be made lazy. Any other quantifier after it makes it possessive in `fancy-regex` but repeats it in `regex`.
    Quantifier,
    LazyQuantifier,
}

/// Accepts only syntax that is known to mean the same in both crates, so that new syntax in either is rejected.
/// Patterns that `regex` rejects may pass.
fn has_same_meaning(pattern: &str) -> bool {
    let mut rest = pattern;
    let mut before = Before::Nothing;
    // For each open group, whether it contains something that can be repeated.
    let mut groups = vec![false];
    while let Some(next) = rest.chars().next() {
        let len = match next {
            '\\' => escape(rest, false),
            '[' => class(rest),
            '(' => group(rest),
            '{' => repetition(rest),
            '}' | ']' => None,
            _ => Some(next.len_utf8()),
        };
        let Some(token) = len.and_then(|len| rest.get(..len)) else { return false };
        rest = rest.get(token.len()..).unwrap_or_default();
        before = match next {
            '(' if token.ends_with(')') => Before::Nothing,
            '(' => {
                groups.push(false);
                Before::Nothing
            }
            ')' => match groups.pop() {
                Some(true) => Before::Something,
                _ => Before::Nothing,
            },
            '^' | '$' | '|' => Before::Nothing,
            '\\' if matches!(token, "\\A" | "\\z") => Before::Nothing,
            '?' if before == Before::Quantifier => Before::LazyQuantifier,
            '*' | '+' | '?' | '{' if before == Before::Something => Before::Quantifier,
            '*' | '+' | '?' | '{' => return false,
            _ => Before::Something,
        };
        if before == Before::Something
            && let Some(has_something) = groups.last_mut()
        {
            *has_something = true;
        }
    }
    true
}

/// The length of an escape: a character class, or punctuation.
fn escape(rest: &str, is_in_class: bool) -> Option<usize> {
    match rest.chars().nth(1)? {
        'd' | 'D' | 'w' | 'W' | 's' | 'S' | 'n' | 'r' | 't' => Some(2),
        'A' | 'z' if !is_in_class => Some(2),
        'p' | 'P' if rest.get(2..)?.starts_with('{') => Some(rest.find('}')? + 1),
        'p' | 'P' => Some(3),
        '<' | '>' => None,
        sign => sign.is_ascii_punctuation().then_some(2),
    }
}

/// The length of a bracketed class, including nested ones.
fn class(rest: &str) -> Option<usize> {
    let mut at = 0;
    let mut depth = 0_usize;
    loop {
        let here = rest.get(at..)?;
        match here.chars().next()? {
            '\\' => at += escape(here, true)?,
            '[' => {
                depth += 1;
                at += if here.starts_with("[^") { 2 } else { 1 };
                // A `]` directly after the opening is a literal.
                at += usize::from(rest.get(at..)?.starts_with(']'));
            }
            ']' => {
                depth -= 1;
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            other => at += other.len_utf8(),
        }
    }
}

/// The length of the opening of a group: unnamed, or with some of the flags that both crates know.
fn group(rest: &str) -> Option<usize> {
    let Some(flags) = rest.strip_prefix("(?") else {
        return Some(1);
    };
    let len = flags.find([':', ')'])?;
    let flags = flags.get(..len)?;
    let is_alike = flags.char_indices().all(|(at, flag)| "ims".contains(flag) && flags.find(flag) == Some(at));
    is_alike.then_some("(?".len() + len + 1)
}

/// The length of `{2}`, `{2,}` or `{2,3}`. The service takes malformed repetitions literally, so they are rejected.
fn repetition(rest: &str) -> Option<usize> {
    let len = rest.find('}')?;
    let counts = rest.get(1..len)?;
    let (least, most) = counts.split_once(',').unwrap_or((counts, ""));
    let is_count = |count: &str| count.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && is_count(least) && is_count(most)).then_some(len + 1)
}

/// The number as PostHog has it: with 64 bits.
///
/// If another crate of the program has enabled serde_json's `arbitrary_precision`, a number is the text that was parsed
/// (`1.50`, `1e2`). Code that compares or hashes the text of a number has to convert it with this function first.
pub(super) fn plain_number(number: &Number) -> Cow<'_, Number> {
    if number.as_i64().is_some() || number.as_u64().is_some() {
        return Cow::Borrowed(number);
    }
    // A number too large for a float stays as it is.
    number.as_f64().and_then(Number::from_f64).map_or(Cow::Borrowed(number), Cow::Owned)
}

#[cfg(test)]
#[path = "property_tests.rs"]
pub(super) mod tests;
