//! Dates. One without an offset is read in the time zone of the PostHog project, which definitions do not tell: such dates are
//! compared with each other, and with an instant if the answer is the same wherever the project is.

use std::cmp::Ordering;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use serde_json::Value;

use crate::clock::WallNanos;

use super::relative_date::RelativeDate;

pub(super) const HOUR: i128 = 3_600_000_000_000;

/// No time zone has ever been further from UTC, sun time in the Philippines and in Alaska included.
pub(super) const FURTHEST_ZONE: i128 = 16 * HOUR;

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
    pub(super) earliest: i128,
    pub(super) latest: i128,
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
    pub(super) fn between(earliest: i128, latest: i128) -> Self {
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
    let offset = time.find(['Z', 'z', '+', '-']).and_then(|at| time.get(at..));
    let is_of_the_usual_signs = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || b":.".contains(&byte));
    match (time.as_bytes(), offset) {
        ([], None) => {
            Moment::on_the_wall(text.parse::<jiff::civil::Date>().ok()?.to_datetime(jiff::civil::Time::midnight()))
        }
        ([b'T' | b' ', hours_and_more @ ..], None) if hours_and_more.len() >= "10:30".len() => {
            is_of_the_usual_signs(time.get(1..)?).then_some(())?;
            Moment::on_the_wall(text.parse().ok()?)
        }
        ([b'T' | b't' | b' ', _, _, b':', _, _, b':', ..], Some("Z" | "z")) => at_instant(text),
        ([b'T' | b't' | b' ', _, _, b':', _, _, b':', ..], Some(offset)) => {
            matches!(offset.as_bytes(), [_, _, _, b':', _, _]).then(|| at_instant(text)).flatten()
        }
        _ => None,
    }
}

fn at_instant(text: &str) -> Option<Moment> {
    let instant = text.parse::<Timestamp>().ok()?.as_nanosecond();
    Some(Moment::between(instant, instant))
}

/// Before 1970, PostHog drops what is beyond whole seconds.
fn from_seconds(seconds: f64) -> Option<Moment> {
    let nanos = ((seconds % 1.0) * 1e9).round().max(0.0);
    // Infinities and what is not a number are nothing that a timestamp can be.
    let whole = Some(seconds.floor()).filter(|whole| (-4e11..4e11).contains(whole))?;
    let instant = Timestamp::new(whole as i64, nanos as i32).ok()?.as_nanosecond();
    Some(Moment::between(instant, instant))
}
