//! `-7d`: so many hours, days, weeks, months or years before now. PostHog counts back on the clocks of the project, which may stand on
//! another day than ours and may have been put forward or back since.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::Offset;

use crate::sys::clock::WallNanos;

use super::date::{FURTHEST_ZONE, HOUR, Moment};

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
    pub(super) fn parse(text: &str) -> Option<Self> {
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

    pub(super) fn before(&self, now: WallNanos) -> Option<Moment> {
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
fn months_before(date: Date, count: i64) -> Option<Date> {
    let mut month = i64::from(date.year()) * 12 + i64::from(date.month()) - 1;
    let mut day = date.day();
    let end = month - count;
    let first_day_of =
        |month: i64| Date::new(month.div_euclid(12).try_into().ok()?, month.rem_euclid(12) as i8 + 1, 1).ok();
    // Every month has 28 days: then it is arithmetic.
    while month > end && day > 28 {
        month -= 1;
        day = day.min(first_day_of(month)?.days_in_month());
    }
    first_day_of(end)?.with().day(day).build().ok()
}

/// Year by year: no year before a leap year is one.
fn years_before(date: Date, count: i64) -> Option<Date> {
    let year = (i64::from(date.year()) - count).try_into().ok()?;
    let is_cut = count > 0 && date.month() == 2 && date.day() == 29;
    Date::new(year, date.month(), if is_cut { 28 } else { date.day() }).ok()
}
