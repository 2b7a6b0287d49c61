//! Numbers, sizes and times as text for log lines, errors and diagnostics.

use std::fmt::Display;
use std::time::Duration;

/// `1 event`, `62,763 events`. The noun is given in the singular and its plural ends in `s`.
pub(crate) fn count(quantity: u64, noun: &'static str) -> impl Display {
    let plural = if quantity == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", number(quantity))
}

/// `62,763`.
pub(crate) fn number(number: u64) -> impl Display {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `312 bytes`, `64 MiB`, `1.5 GiB`. Rounded down, so that free space is never shown as more than it is.
pub(crate) fn bytes(bytes: u64) -> impl Display {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        None => count(bytes, "byte").to_string(),
        Some((unit, shift)) => {
            let whole = bytes >> shift;
            let tenths = (bytes - (whole << shift)).saturating_mul(10) >> shift;
            if whole >= 10 || tenths == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
        }
    }
}

/// `5 ms`, `43 s`, `4 h`, `3 days`. Seconds are rounded to the nearest, larger units down.
pub(crate) fn time(time: Duration) -> impl Display {
    // To the nearest, so that 5.99 s is shown as 6 s.
    let (millis, seconds) = (time.as_millis(), time.saturating_add(Duration::from_millis(500)).as_secs());
    let seconds = if millis < 1000 { 0 } else { seconds };
    match seconds {
        0 => format!("{millis} ms"),
        1..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sizes_and_times_have_units_and_the_right_plural() {
        let counts = [0, 1, 2, 999, 1000, 62_763, 1_234_567].map(|many| count(many, "event").to_string());
        let expected = ["0 events", "1 event", "2 events", "999 events", "1,000 events", "62,763 events"];
        assert_eq!(counts[..6], expected);
        assert_eq!(counts[6], "1,234,567 events");
        let sizes = [0, 1, 312, 1024, 1536, 64 << 20, (3 << 30) - 1, 10 << 40, u64::MAX];
        assert_eq!(
            sizes.map(|size| bytes(size).to_string()),
            ["0 bytes", "1 byte", "312 bytes", "1 KiB", "1.5 KiB", "64 MiB", "2.9 GiB", "10 TiB", "16777215 TiB"]
        );
        let times = [0, 5, 43_999, 119_999, 120_000, 7_199_999, 14_400_000, 259_200_000];
        assert_eq!(
            times.map(|millis| time(Duration::from_millis(millis)).to_string()),
            ["0 ms", "5 ms", "44 s", "2 min", "2 min", "2 h", "4 h", "3 days"]
        );
    }
}
