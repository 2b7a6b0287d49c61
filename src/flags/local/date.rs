//! Dates in conditions and properties.
//!
//! PostHog reads a date without an offset in the time zone of the project, which is not in the definitions. Such dates
//! can be compared with each other. They are compared with an instant only if the result is the same in every time
//! zone.

use std::cmp::Ordering;

use jiff::civil::{self, DateTime};
use jiff::tz::Offset;
use jiff::{Timestamp, Unit};
use serde_json::Value;

use crate::sys::clock::WallNanos;

const HOUR: i128 = 3_600_000_000_000;

/// No time zone has ever been further from UTC, including historical local times in the Philippines and Alaska.
const MAX_UTC_OFFSET: i128 = 16 * HOUR;

/// The date in a condition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Date {
    Fixed(TimeRange),
    /// A duration before now, such as `-7d`.
    ///
    /// PostHog counts back on the project's clocks, which may show another date than ours and may have been shifted by
    /// daylight saving time since. The result is therefore a range.
    Relative(i64, Unit),
}

/// The range in which a point in time lies, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeRange {
    earliest: i128,
    latest: i128,
    /// The local date and time in the project's time zone, if only that is known.
    wall: Option<i128>,
}

impl Date {
    pub(super) fn parse(text: &str) -> Option<Self> {
        parse_relative(text).or_else(|| parse_fixed(text).map(Date::Fixed))
    }

    pub(super) fn range(&self, now: WallNanos) -> Option<TimeRange> {
        match self {
            Date::Fixed(range) => Some(*range),
            Date::Relative(count, unit) => before(now.into(), *count, *unit),
        }
    }
}

/// A property as a date: seconds since 1970, or a date in any form that conditions support.
pub(super) fn range_of_date(property: &Value, now: WallNanos) -> Option<TimeRange> {
    match property {
        Value::Number(seconds) => from_seconds(seconds.as_f64()?),
        Value::String(text) => match text.parse() {
            Ok(seconds) => from_seconds(seconds),
            Err(_) => Date::parse(text)?.range(now),
        },
        _ => None,
    }
}

impl TimeRange {
    fn between(earliest: i128, latest: i128) -> Self {
        TimeRange { earliest, latest, wall: None }
    }

    fn local(wall: DateTime) -> Option<Self> {
        let wall = Offset::UTC.to_timestamp(wall).ok()?.as_nanosecond();
        Some(TimeRange { wall: Some(wall), ..TimeRange::between(wall - MAX_UTC_OFFSET, wall + MAX_UTC_OFFSET) })
    }

    /// `None` if the order depends on the project's time zone.
    pub(super) fn order(&self, other: &TimeRange) -> Option<Ordering> {
        if let (Some(wall), Some(other)) = (self.wall, other.wall) {
            return Some(wall.cmp(&other));
        }
        if self.latest < other.earliest {
            Some(Ordering::Less)
        } else if self.earliest > other.latest {
            Some(Ordering::Greater)
        } else {
            let are_points = self.earliest == self.latest && other.earliest == other.latest;
            are_points.then_some(Ordering::Equal)
        }
    }
}

/// RFC 3339, or a local date with or without a time. PostHog can parse more forms; those are inconclusive.
fn parse_fixed(text: &str) -> Option<TimeRange> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (_, time) = text.split_at_checked("2024-06-15".len())?;
    if time.is_empty() {
        return TimeRange::local(text.parse::<civil::Date>().ok()?.to_datetime(civil::Time::midnight()));
    }
    let [separator, _, _, b':', _, _, seconds @ ..] = time.as_bytes() else { return None };
    let offset = seconds.iter().position(|byte| b"Zz+-".contains(byte)).map(|at| seconds.split_at(at));
    let (seconds, offset) = offset.unwrap_or((seconds, b""));
    // The service rejects a leap second in one form and shifts it in others; `jiff` always shifts it.
    if seconds.starts_with(b":60") {
        return None;
    }
    // `jiff` parses further forms that the service does not.
    let is_time = seconds.iter().all(|byte| byte.is_ascii_digit() || b":.".contains(byte));
    match (separator, seconds, offset) {
        (b'T' | b' ', _, b"") if is_time => TimeRange::local(text.parse().ok()?),
        (b'T' | b't' | b' ', [b':', ..], b"Z" | b"z" | [_, _, _, b':', _, _]) if is_time => at_instant(text),
        _ => None,
    }
}

fn at_instant(text: &str) -> Option<TimeRange> {
    let instant = text.parse::<Timestamp>().ok()?.as_nanosecond();
    Some(TimeRange::between(instant, instant))
}

/// For times before 1970, PostHog drops the fraction of a second.
fn from_seconds(seconds: f64) -> Option<TimeRange> {
    if !seconds.is_finite() {
        return None;
    }
    let nanos = ((seconds % 1.0) * 1e9).round().max(0.0);
    // The cast saturates. A saturated value is out of range for a timestamp as well.
    let instant = Timestamp::new(seconds.floor() as i64, nanos as i32).ok()?.as_nanosecond();
    Some(TimeRange::between(instant, instant))
}

/// The largest count that PostHog accepts.
const MAX_COUNT: i64 = 9_999;

/// The largest shift of daylight saving time. Not applied to hours, which are exact.
const DAYLIGHT_SAVING: i128 = HOUR;

/// The sign is optional and makes no difference.
fn parse_relative(text: &str) -> Option<Date> {
    let text = text.strip_prefix('-').unwrap_or(text);
    let unit = match text.bytes().last()? {
        b'h' => Unit::Hour,
        b'd' => Unit::Day,
        b'w' => Unit::Week,
        b'm' => Unit::Month,
        b'y' => Unit::Year,
        _ => return None,
    };
    let digits = text.get(..text.len() - 1)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse().ok().filter(|count| *count <= MAX_COUNT)?;
    Some(Date::Relative(count, unit))
}

/// The time `count` units before now.
fn before(now: i128, count: i64, unit: Unit) -> Option<TimeRange> {
    let hours = match unit {
        Unit::Hour => 1,
        Unit::Day => 24,
        Unit::Week => 7 * 24,
        _ => {
            // The project's date is ours, the one before, or the one after.
            let [a, b, c] =
                [-MAX_UTC_OFFSET, 0, MAX_UTC_OFFSET].map(|zone| Some(by_calendar(now + zone, count, unit)? - zone));
            let (a, b, c) = (a?, b?, c?);
            return Some(TimeRange::between(a.min(b).min(c) - DAYLIGHT_SAVING, a.max(b).max(c) + DAYLIGHT_SAVING));
        }
    };
    let at = now - i128::from(count) * hours * HOUR;
    let shift = if unit == Unit::Hour { 0 } else { DAYLIGHT_SAVING };
    Some(TimeRange::between(at - shift, at + shift))
}

fn by_calendar(now: i128, count: i64, unit: Unit) -> Option<i128> {
    let now = Offset::UTC.to_datetime(Timestamp::from_nanosecond(now).ok()?);
    let date = match unit {
        Unit::Month => months_before(now.date(), count)?,
        _ => years_before(now.date(), count)?,
    };
    Some(Offset::UTC.to_timestamp(DateTime::from_parts(date, now.time())).ok()?.as_nanosecond())
}

/// PostHog steps back month by month and clips the day in each: two months before March 31 is January 28 or 29.
fn months_before(date: civil::Date, count: i64) -> Option<civil::Date> {
    let mut month = i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
    let mut day = date.day();
    let end = month - count;
    let first_day_of =
        |month: i64| civil::Date::new(month.div_euclid(12).try_into().ok()?, month.rem_euclid(12) as i8 + 1, 1).ok();
    // Every month has 28 days, so no more clipping can happen.
    while month > end && day > 28 {
        month -= 1;
        day = day.min(first_day_of(month)?.days_in_month());
    }
    first_day_of(end)?.with().day(day).build().ok()
}

/// PostHog steps back year by year. The year before a leap year is never one, so February 29 becomes 28.
fn years_before(date: civil::Date, count: i64) -> Option<civil::Date> {
    let year = (i64::from(date.year()) - count).try_into().ok()?;
    let is_cut = count > 0 && date.month() == 2 && date.day() == 29;
    civil::Date::new(year, date.month(), if is_cut { 28 } else { date.day() }).ok()
}

#[cfg(test)]
#[path = "date_tests.rs"]
mod tests;
