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

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt::{self, Write};

use regex::{Regex, RegexBuilder};
use semver::{BuildMetadata, Prerelease, Version, VersionReq};
use serde_json::{Map, Number, Value};

use super::date::{Date, moment_of};
use crate::flags::InconclusiveReason;
use crate::sys::clock::WallNanos;

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
            "regex" => compile_pattern(&text_of(value)).map(Test::Matches),
            "gt" | "gte" | "lt" | "lte" => number_of(value).map(|number| Test::Number(comparison, number)),
            "between" => range_of(value).map(|(low, high)| Test::IsBetween(low, high)),
            "is_date_before" | "is_date_after" | "is_date_exact" => {
                value.as_str().and_then(Date::parse).map(|date| Test::Date(comparison, date.into()))
            }
            "semver_eq" | "semver_gt" | "semver_gte" | "semver_lt" | "semver_lte" => {
                version_of(value).map(|version| Test::Version(comparison, version))
            }
            "semver_tilde" => tilde(value).map(Test::IsInVersions),
            "semver_caret" => caret(value).map(Test::IsInVersions),
            "semver_wildcard" => wildcard(value).map(Test::IsInVersions),
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

/// As many values are compared one by one; more are looked up.
const FEW: usize = 8;

/// Lists are looked up without an allocation by what is no longer than this.
const SHORT: usize = 256;

/// The values that a property may have, in lowercase.
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

    fn contain(&self, text: &str) -> bool {
        if !text.is_ascii() {
            // The case of other letters depends on their neighbours, and can change how many bytes they take.
            let text = text.to_lowercase();
            return match self {
                Choices::Few(choices) => choices.iter().any(|choice| **choice == text),
                Choices::Many { lowercase, .. } => lowercase.contains(text.as_bytes()),
            };
        }
        match self {
            // A choice has been lowercased already, so this is equality with the lowercased text.
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

/// Nothing but true and false, as values or as words. A list of nothing is that, too.
fn is_truth_value(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::String(word) => word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false"),
        Value::Array(items) => items.iter().all(is_truth_value),
        _ => false,
    }
}

/// True, as a value or as a word; of a list, everything in it.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::String(word) => word.eq_ignore_ascii_case("true"),
        Value::Array(items) => items.iter().all(is_true),
        _ => false,
    }
}

/// What the property has to be, compared with what the condition says.
#[derive(Clone, Copy, Debug)]
enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

impl Comparison {
    fn accepts(self, order: Ordering) -> bool {
        match self {
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Equal => order.is_eq(),
            Comparison::GreaterOrEqual => order.is_ge(),
            Comparison::Greater => order.is_gt(),
        }
    }
}

/// A number, or a string that is one as a whole. Not a number is none.
fn number_of(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.filter(|number| !number.is_nan())
}

/// The two ends of a range, both in it, the lower one first.
fn range_of(value: &Value) -> Option<(f64, f64)> {
    match value.as_array()?.as_slice() {
        [low, high] => Some((number_of(low)?, number_of(high)?)).filter(|(low, high)| low <= high),
        _ => None,
    }
}

/// Longest text, times longest part, that is searched in place. What is beyond that could be searched for a long time, and is copied.
const SEARCHED_IN_PLACE: usize = 1 << 16;

/// Gives the value as text. Without an allocation, but for lists and objects.
fn with_text<R>(value: &Value, read: impl FnOnce(&str) -> R) -> R {
    match value {
        Value::String(text) => read(text),
        Value::Null => read("null"),
        Value::Bool(true) => read("true"),
        Value::Bool(false) => read("false"),
        Value::Number(number) => {
            let number = plain_number(number);
            let mut short = ShortText::default();
            match write!(short, "{number}") {
                Ok(()) => read(short.as_str()),
                Err(_) => read(&number.to_string()),
            }
        }
        Value::Array(_) | Value::Object(_) => read(&in_key_order(value).to_string()),
    }
}

/// The value as text that is kept.
fn text_of(value: &Value) -> String {
    with_text(value, str::to_owned)
}

/// Where in a property a text has to stand.
#[derive(Clone, Copy, Debug)]
enum Place {
    Start,
    End,
    Anywhere,
}

/// A text to look for, whichever case its letters of ASCII have.
#[derive(Clone, Debug)]
struct Part {
    lowercase: Box<str>,
}

impl Part {
    fn new(value: &Value) -> Self {
        Part { lowercase: text_of(value).to_ascii_lowercase().into() }
    }

    fn stands_in(&self, text: &str, place: Place) -> bool {
        let (part, bytes) = (self.lowercase.as_bytes(), text.as_bytes());
        let Some(spare) = bytes.len().checked_sub(part.len()) else { return false };
        // Bytes do: a character's bytes are found in UTF-8 only where that character stands.
        let is_at =
            |from: usize| bytes.get(from..from + part.len()).is_some_and(|there| there.eq_ignore_ascii_case(part));
        match place {
            Place::Start => is_at(0),
            Place::End => is_at(spare),
            Place::Anywhere if bytes.len().saturating_mul(part.len()) <= SEARCHED_IN_PLACE => (0..=spare).any(is_at),
            Place::Anywhere => text.to_ascii_lowercase().contains(&*self.lowercase),
        }
    }
}

/// PostHog writes objects in the order of their keys. Here a crate elsewhere in the program can turn that off, or keep the text of numbers.
fn in_key_order(value: &Value) -> Cow<'_, Value> {
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

/// Room for any number that has 64 bits.
#[derive(Default)]
struct ShortText {
    bytes: [u8; 32],
    len: usize,
}

impl ShortText {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Write for ShortText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.saturating_add(text.len());
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Without an allocation, as long as neither a prerelease nor build metadata is longer than eight bytes.
fn version_of(value: &Value) -> Option<Version> {
    with_text(value, parse_version)
}

/// `~`: as the version or later, with the same minor version.
fn tilde(value: &Value) -> Option<VersionReq> {
    requirement('~', value)
}

/// `^`: as the version or later, with the same leftmost part that is not zero.
fn caret(value: &Value) -> Option<VersionReq> {
    requirement('^', value)
}

/// `1.2.*`, `1.*`, `*`; PostHog takes what else the crate can read, too.
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

/// Bytes that a compiled pattern may take, and as much again for each thread that matches it.
const SIZE_LIMIT: usize = 1 << 20;

/// Patterns that the service reads as the crate does.
fn compile_pattern(pattern: &str) -> Option<Regex> {
    if !is_read_alike(pattern) {
        return None;
    }
    RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).dfa_size_limit(SIZE_LIMIT).build().ok()
}

/// What stands before a place in a pattern.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// Nothing that can be repeated: the start, an anchor, `(` or `|`. The service refuses to repeat an anchor.
    Nothing,
    Something,
    /// What can be made lazy. What else follows makes it possessive there, and repeats it here.
    Quantifier,
    LazyQuantifier,
}

/// Goes by what is known to be the same, so that what is new in either crate is not. Whatever `regex` refuses may pass.
fn is_read_alike(pattern: &str) -> bool {
    let mut rest = pattern;
    let mut before = Before::Nothing;
    // For each open group, whether something in it can be repeated.
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

/// The length of an escape: of a class of characters, or of a sign that would mean something else.
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

/// The length of a class in brackets, in which there may be others.
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
                // Right at the beginning it closes nothing.
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

/// The length of what opens a group: a group without a name, or one with some of the flags that both know.
fn group(rest: &str) -> Option<usize> {
    let Some(flags) = rest.strip_prefix("(?") else {
        return Some(1);
    };
    let len = flags.find([':', ')'])?;
    let flags = flags.get(..len)?;
    let is_alike = flags.char_indices().all(|(at, flag)| "ims".contains(flag) && flags.find(flag) == Some(at));
    is_alike.then_some("(?".len() + len + 1)
}

/// The length of `{2}`, `{2,}` or `{2,3}`. What looks like one and is none, the service takes literally.
fn repetition(rest: &str) -> Option<usize> {
    let len = rest.find('}')?;
    let counts = rest.get(1..len)?;
    let (least, most) = counts.split_once(',').unwrap_or((counts, ""));
    let is_count = |count: &str| count.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && is_count(least) && is_count(most)).then_some(len + 1)
}

/// The number as one of 64 bits.
pub(in crate::flags) fn plain_number(number: &Number) -> Cow<'_, Number> {
    if number.as_i64().is_some() || number.as_u64().is_some() {
        return Cow::Borrowed(number);
    }
    // What is beyond all floats stays what it is.
    number.as_f64().and_then(Number::from_f64).map_or(Cow::Borrowed(number), Cow::Owned)
}

#[cfg(test)]
#[path = "property_tests.rs"]
pub(super) mod tests;
