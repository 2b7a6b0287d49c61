//! The `Retry-After` header, read leniently.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use crate::sys::clock::WallNanos;

/// When the server wants to hear from us again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryAfter {
    /// After so long.
    In(Duration),
    /// At this wall time, by the server's clock.
    At(WallNanos),
}

impl RetryAfter {
    /// Reads seconds (`120`, and `1.5`, which some servers send) or an HTTP date; `None` if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(seconds) = seconds(text) {
            return Some(RetryAfter::In(seconds));
        }
        static DATE: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
        let at: Timestamp = DATE.parse_timestamp(text).ok()?;
        // Far beyond any cap in either direction: saturate instead of refusing.
        Some(RetryAfter::At(WallNanos::try_from(at.as_nanosecond()).unwrap_or(WallNanos::MAX)))
    }

    /// How long from `wall` on; zero if the time has passed.
    pub(crate) fn wait_at(self, wall: WallNanos) -> Duration {
        match self {
            RetryAfter::In(duration) => duration,
            RetryAfter::At(at) => Duration::from_nanos(u64::try_from(at.saturating_sub(wall)).unwrap_or(0)),
        }
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    // More seconds than fit are as good as for ever; the caller caps them.
    let whole = whole.parse::<u64>().unwrap_or(u64::MAX);
    let partly = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    Some(Duration::from_secs(whole.saturating_add(partly)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_nonsense_is_ignored() {
        let secs = |n| Some(RetryAfter::In(Duration::from_secs(n)));
        for (text, expected) in [
            ("120", secs(120)),
            (" 3 ", secs(3)),
            ("0", secs(0)),
            ("1.5", secs(2)),
            ("2.000", secs(2)),
            ("99999999999999999999999", secs(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(RetryAfter::At(784_111_777_000_000_000))),
            // The weekday is wrong; the date is what counts.
            ("Mon, 06 Nov 1994 08:49:37 GMT", Some(RetryAfter::At(784_111_777_000_000_000))),
            ("", None),
            ("-5", None),
            ("soon", None),
            ("1e9", None),
            (".5", None),
        ] {
            assert_eq!(RetryAfter::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_date_in_the_past_means_now() {
        assert_eq!(RetryAfter::At(5).wait_at(7), Duration::ZERO);
        assert_eq!(RetryAfter::At(9).wait_at(7), Duration::from_nanos(2));
        assert_eq!(RetryAfter::At(i64::MAX).wait_at(i64::MIN), Duration::from_nanos(i64::MAX as u64));
    }
}
