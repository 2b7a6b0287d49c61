//! Dates. One without an offset is read in the time zone of the PostHog project, which definitions do not tell: such dates are
//! compared with each other, and with an instant if the answer is the same wherever the project is.

use std::cmp::Ordering;

use jiff::Timestamp;
use jiff::civil::{self, DateTime};
use jiff::tz::Offset;
use serde_json::Value;

use crate::sys::clock::WallNanos;

const HOUR: i128 = 3_600_000_000_000;

/// No time zone has ever been further from UTC, sun time in the Philippines and in Alaska included.
const FURTHEST_ZONE: i128 = 16 * HOUR;

/// A date that a condition names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Date {
    Fixed(Moment),
    /// Before the time at which it is asked for.
    Relative(RelativeDate),
}

/// What is known of a point in time, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    earliest: i128,
    latest: i128,
    /// What the clocks of the project showed, if that is all that is known.
    wall: Option<i128>,
}

impl Date {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match RelativeDate::parse(text) {
            Some(relative) => Some(Date::Relative(relative)),
            None => parse_fixed(text).map(Date::Fixed),
        }
    }

    pub(super) fn moment(&self, now: WallNanos) -> Option<Moment> {
        match self {
            Date::Fixed(moment) => Some(*moment),
            Date::Relative(relative) => relative.before(now),
        }
    }
}

/// A property as a date: seconds since 1970, or a date as conditions have them.
pub(super) fn moment_of(property: &Value, now: WallNanos) -> Option<Moment> {
    match property {
        Value::Number(seconds) => from_seconds(seconds.as_f64()?),
        Value::String(text) => match text.parse() {
            Ok(seconds) => from_seconds(seconds),
            Err(_) => Date::parse(text)?.moment(now),
        },
        _ => None,
    }
}

impl Moment {
    fn between(earliest: i128, latest: i128) -> Self {
        Moment { earliest, latest, wall: None }
    }

    fn on_the_wall(wall: DateTime) -> Option<Self> {
        let wall = Offset::UTC.to_timestamp(wall).ok()?.as_nanosecond();
        Some(Moment { wall: Some(wall), ..Moment::between(wall - FURTHEST_ZONE, wall + FURTHEST_ZONE) })
    }

    /// `None` if that depends on where the project is.
    pub(super) fn order(&self, other: &Moment) -> Option<Ordering> {
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

/// RFC 3339; or a date, alone or with a time of day, on the project's clocks. PostHog reads much else, and is asked about that.
fn parse_fixed(text: &str) -> Option<Moment> {
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (_, time) = text.split_at_checked("2024-06-15".len())?;
    if time.is_empty() {
        return Moment::on_the_wall(text.parse::<civil::Date>().ok()?.to_datetime(civil::Time::midnight()));
    }
    let [separator, _, _, b':', _, _, seconds @ ..] = time.as_bytes() else { return None };
    let offset = seconds.iter().position(|byte| b"Zz+-".contains(byte)).map(|at| seconds.split_at(at));
    let (seconds, offset) = offset.unwrap_or((seconds, b""));
    // The service refuses a leap second in one form and moves it to another second in others; our parser moves it always.
    if seconds.starts_with(b":60") {
        return None;
    }
    // Our parser knows further forms that the service does not.
    let is_time = seconds.iter().all(|byte| byte.is_ascii_digit() || b":.".contains(byte));
    match (separator, seconds, offset) {
        (b'T' | b' ', _, b"") if is_time => Moment::on_the_wall(text.parse().ok()?),
        (b'T' | b't' | b' ', [b':', ..], b"Z" | b"z" | [_, _, _, b':', _, _]) if is_time => at_instant(text),
        _ => None,
    }
}

fn at_instant(text: &str) -> Option<Moment> {
    let instant = text.parse::<Timestamp>().ok()?.as_nanosecond();
    Some(Moment::between(instant, instant))
}

/// Before 1970, PostHog drops what is beyond whole seconds.
fn from_seconds(seconds: f64) -> Option<Moment> {
    if !seconds.is_finite() {
        return None;
    }
    let nanos = ((seconds % 1.0) * 1e9).round().max(0.0);
    // What is too large for a timestamp is the largest integer, which is too large as well.
    let instant = Timestamp::new(seconds.floor() as i64, nanos as i32).ok()?.as_nanosecond();
    Some(Moment::between(instant, instant))
}

/// PostHog reads no larger ones.
const MAX_COUNT: i64 = 9_999;

/// By which clocks are put forward and back. Not counted for hours, which are meant to be what they are.
const SUMMER_TIME: i128 = HOUR;

/// A time before now.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelativeDate {
    count: i64,
    unit: Unit,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl RelativeDate {
    /// The sign makes no difference: both are before now.
    fn parse(text: &str) -> Option<Self> {
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
        Some(RelativeDate { count, unit })
    }

    fn before(&self, now: WallNanos) -> Option<Moment> {
        let now = i128::from(now);
        let count = i128::from(self.count);
        let fixed = match self.unit {
            Unit::Hour => return Some(Moment::between(now - count * HOUR, now - count * HOUR)),
            Unit::Day => count * 24 * HOUR,
            Unit::Week => count * 7 * 24 * HOUR,
            Unit::Month | Unit::Year => {
                let mut moment: Option<Moment> = None;
                // The project's date is ours, or the one before, or the one after.
                for zone in [-FURTHEST_ZONE, 0, FURTHEST_ZONE] {
                    let at = self.on_the_calendar(now + zone)? - zone;
                    let so_far = moment.unwrap_or(Moment::between(at, at));
                    moment = Some(Moment::between(so_far.earliest.min(at), so_far.latest.max(at)));
                }
                let Moment { earliest, latest, .. } = moment?;
                return Some(Moment::between(earliest - SUMMER_TIME, latest + SUMMER_TIME));
            }
        };
        Some(Moment::between(now - fixed - SUMMER_TIME, now - fixed + SUMMER_TIME))
    }

    fn on_the_calendar(&self, now: i128) -> Option<i128> {
        let now = Offset::UTC.to_datetime(Timestamp::from_nanosecond(now).ok()?);
        let date = match self.unit {
            Unit::Month => months_before(now.date(), self.count)?,
            _ => years_before(now.date(), self.count)?,
        };
        Some(Offset::UTC.to_timestamp(DateTime::from_parts(date, now.time())).ok()?.as_nanosecond())
    }
}

/// PostHog goes back month by month, and a day that one of them does not have stays cut: two months before the 31st of March it is
/// the 28th or 29th of January.
fn months_before(date: civil::Date, count: i64) -> Option<civil::Date> {
    let mut month = i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
    let mut day = date.day();
    let end = month - count;
    let first_day_of =
        |month: i64| civil::Date::new(month.div_euclid(12).try_into().ok()?, month.rem_euclid(12) as i8 + 1, 1).ok();
    // Every month has 28 days: then it is arithmetic.
    while month > end && day > 28 {
        month -= 1;
        day = day.min(first_day_of(month)?.days_in_month());
    }
    first_day_of(end)?.with().day(day).build().ok()
}

/// Year by year: no year before a leap year is one.
fn years_before(date: civil::Date, count: i64) -> Option<civil::Date> {
    let year = (i64::from(date.year()) - count).try_into().ok()?;
    let is_cut = count > 0 && date.month() == 2 && date.day() == 29;
    civil::Date::new(year, date.month(), if is_cut { 28 } else { date.day() }).ok()
}

#[cfg(test)]
#[path = "date_tests.rs"]
mod tests;
