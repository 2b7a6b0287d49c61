//! Limits: every bound of the library in one place, with its reason, and the functions that cut foreign text to a
//! length.
//!
//! `X_DEFAULT` is the default of a setting of `Config`, and the range `X` what it may be set to. Bounds that depend on
//! each other are related by an assertion.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Bytes of one event, encoded, unless configured otherwise.
pub(crate) const EVENT_BYTES_DEFAULT: usize = 1024 * 1024;
/// The server accepts bodies of 20 MiB; a single event must fit into one with space to spare.
pub(crate) const EVENT_BYTES: RangeInclusive<usize> = 1024..=16 * 1024 * 1024;

/// Bytes of one journal arena.
pub(crate) const JOURNAL_BYTES_DEFAULT: usize = 8 * 1024 * 1024;
/// The minimum also depends on the largest event.
pub(crate) const JOURNAL_BYTES: RangeInclusive<usize> = 64 * 1024..=256 * 1024 * 1024;
const _: () = assert!(
    JOURNAL_BYTES_DEFAULT > 4 * EVENT_BYTES_DEFAULT,
    "the default arena takes four of the largest default events"
);

/// Bytes of one AI event, encoded: the limit of PostHog's AI endpoint.
pub(crate) const AI_EVENT_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of an arena of AI events: room for two of the largest, so that one fits while the other is checkpointed.
pub(crate) const AI_JOURNAL_BYTES: usize = 2 * AI_EVENT_BYTES;
/// Bytes of JSON in one request of AI events.
pub(crate) const AI_BATCH_BYTES: usize = 5 * 1024 * 1024;
/// The most requests of AI events in flight: each may hold one of the largest events in memory, as a record and as
/// JSON.
pub(crate) const AI_IN_FLIGHT_MOST: usize = 2;
/// The smallest limit of the AI queue; with a smaller one a single arena would fill it.
pub(crate) const AI_QUEUE_BYTES_LEAST: u64 = 4 * AI_JOURNAL_BYTES as u64;

/// Number of events that makes a batch due.
pub(crate) const FLUSH_AT_DEFAULT: usize = 20;
pub(crate) const FLUSH_AT: RangeInclusive<usize> = 1..=1_000_000;
/// Age that makes a batch due.
pub(crate) const FLUSH_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
pub(crate) const FLUSH_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
/// Age that makes a sync due.
pub(crate) const SYNC_INTERVAL_DEFAULT: Duration = Duration::from_millis(100);
pub(crate) const SYNC_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);
/// Age at which pending acks get a transaction of their own.
pub(crate) const ACK_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
pub(crate) const ACK_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

/// Retries after the first attempt of one cycle.
pub(crate) const MAX_RETRIES_DEFAULT: u32 = 3;
pub(crate) const MAX_RETRIES: RangeInclusive<u32> = 0..=100;
/// The longest wait after the first failure, and after any.
pub(crate) const RETRY_BACKOFF_DEFAULT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
pub(crate) const RETRY_BACKOFF: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
/// A server may ask for a longer wait by `Retry-After`; this is the longest that is granted.
pub(crate) const RETRY_AFTER_CAP_DEFAULT: Duration = Duration::from_secs(3600);
pub(crate) const RETRY_AFTER_CAP: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Captured exceptions of one type and place: how many may come at once, and the time after which one more may.
pub(crate) const EXCEPTION_RATE_DEFAULT: (u32, Duration) = (10, Duration::from_secs(10));
pub(crate) const EXCEPTION_BURST: RangeInclusive<u32> = 0..=100_000;
pub(crate) const EXCEPTION_REFILL: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// Bytes of the id, the name or the version of a release.
pub(crate) const RELEASE_TEXT_MOST: usize = 256;

/// Requests in flight.
pub(crate) const MAX_IN_FLIGHT_DEFAULT: usize = 4;
pub(crate) const MAX_IN_FLIGHT: RangeInclusive<usize> = 1..=64;
/// Events in one request.
pub(crate) const MAX_BATCH_EVENTS_DEFAULT: usize = 1000;
pub(crate) const MAX_BATCH_EVENTS: RangeInclusive<usize> = 1..=100_000;
/// Bytes of JSON in one request.
pub(crate) const MAX_BATCH_BYTES_DEFAULT: usize = 4 * 1024 * 1024;
pub(crate) const MAX_BATCH_BYTES: RangeInclusive<usize> = 16 * 1024..=19 * 1024 * 1024;

/// For one request, and for connecting within it.
pub(crate) const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
pub(crate) const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
pub(crate) const REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(600);

/// How long closing a client waits for delivery.
pub(crate) const SHUTDOWN_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
pub(crate) const SHUTDOWN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// How long a drain after SIGTERM may send.
pub(crate) const DRAIN_DEADLINE_DEFAULT: Duration = Duration::from_secs(3);
pub(crate) const DRAIN_DEADLINE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);

/// Bytes of the rows of a queue.
pub(crate) const QUEUE_BYTES_DEFAULT: u64 = 1024 * 1024 * 1024;
pub(crate) const QUEUE_BYTES: RangeInclusive<u64> = 1024 * 1024..=1 << 40;
/// The largest event that fits into an empty queue of `queue_bytes`: a row may take twice the bytes of its event.
pub(crate) fn event_bytes_most(queue_bytes: u64) -> usize {
    const AROUND: usize = 4096;
    usize::try_from(queue_bytes / 2).unwrap_or(usize::MAX).saturating_sub(AROUND)
}
/// Bytes of the file system that are left to other programs.
pub(crate) const MIN_FREE_SPACE_DEFAULT: u64 = 32 * 1024 * 1024;
/// Above the maximum, a mistaken unit is more likely than a disk of that size.
pub(crate) const MIN_FREE_SPACE: RangeInclusive<u64> = 0..=1 << 40;
/// How long a capture may wait for space, if configured to wait.
pub(crate) const BLOCK: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// Memory for pages of the store. Most pages are read once, so a larger cache gains little.
pub(crate) const STORE_CACHE_BYTES: usize = 2 * 1024 * 1024;
/// Disk space reserved for deletes on a full disk.
pub(crate) const RESERVE_BYTES: u64 = 1024 * 1024;
/// How long a capture may wait for the journal's lock. The holder copies a few hundred bytes, unless its process is
/// stopped.
pub(crate) const LOCK_WAIT: Duration = Duration::from_millis(50);
/// How long opening a queue may take. Verifying a queue of a gigabyte after a crash inside the store takes seconds.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// For one flag request, all its attempts and waits included.
pub(crate) const FLAG_REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3);
pub(crate) const FLAG_REQUEST_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);
/// Retries after the first attempt.
pub(crate) const FLAG_REQUEST_MAX_RETRIES_DEFAULT: u32 = 1;
pub(crate) const FLAG_REQUEST_MAX_RETRIES: RangeInclusive<u32> = 0..=10;
/// Flag requests in flight: each may need a connection, and a process typically has about a thousand descriptors.
pub(crate) const FLAG_REQUESTS_AT_ONCE: usize = 64;
/// Flag requests in flight and waiting. With responses in 50 ms, the last of them is answered before its timeout.
pub(crate) const FLAG_REQUESTS_MOST: usize = 1024;
/// Bytes of a response to a flag request: thousands of flags with payloads.
pub(crate) const FLAG_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// How long a response to a flag request is used again.
pub(crate) const FLAG_CACHE_TTL_DEFAULT: Duration = Duration::from_secs(60);
pub(crate) const FLAG_CACHE_TTL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
/// Responses to flag requests that are kept.
pub(crate) const FLAG_CACHE_SIZE_DEFAULT: usize = 1000;
pub(crate) const FLAG_CACHE_SIZE: RangeInclusive<usize> = 1..=1_000_000;
/// Reads of flags that are remembered as reported by a `$feature_flag_called` event.
pub(crate) const FLAG_CALLED_SIZE_DEFAULT: usize = 50_000;
pub(crate) const FLAG_CALLED_SIZE: RangeInclusive<usize> = 1..=10_000_000;

/// Interval between loads of flag definitions.
pub(crate) const FLAG_POLL_INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
pub(crate) const FLAG_POLL_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
/// For one request for flag definitions.
pub(crate) const FLAG_DEFINITIONS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of compressed flag definitions that are kept in the queue's file. This kind of JSON shrinks to a tenth.
pub(crate) const FLAG_DEFINITIONS_KEPT: usize = 4 * 1024 * 1024;

/// Diagnostics that are kept for the program to read.
pub(crate) const DIAGNOSTICS_KEPT: usize = 128;
/// Bytes that a diagnostic keeps of a name or a key.
pub(crate) const NAME_KEPT: usize = 200;
/// Bytes that a diagnostic keeps of a message from outside.
pub(crate) const DETAIL_KEPT: usize = 1024;

/// The beginning of a text: at most `most` bytes, cut between characters.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// The beginning of a text from outside (a server's message, a network error), at most `most` bytes, safe for one line
/// of a log: line breaks, terminal control characters and changes of writing direction are escaped. All foreign text
/// that is logged, reported or shown passes through this function.
pub(crate) fn foreign(text: &str, most: usize) -> String {
    let mut kept = String::with_capacity(text.len().min(most));
    for char in text.chars() {
        let before = kept.len();
        if is_unprintable(char) {
            kept.extend(char.escape_default());
        } else {
            kept.push(char);
        }
        if kept.len() > most {
            kept.truncate(before);
            break;
        }
    }
    kept
}

/// Control characters, line and paragraph separators, and marks that change the direction of writing.
fn is_unprintable(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_outside_is_one_line_and_commands_no_terminal() {
        for (text, expected) in [
            ("<html>\r\n\t<b>", "<html>\\r\\n\\t<b>"),
            ("\u{1b}[2J\u{7}\0", "\\u{1b}[2J\\u{7}\\u{0}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("a\u{2028}b\u{202e}c\u{2066}", "a\\u{2028}b\\u{202e}c\\u{2066}"),
            ("caf\u{e9} \"x\" C:\\new", "caf\u{e9} \"x\" C:\\new"),
        ] {
            assert_eq!(foreign(text, 1000), expected);
            assert_eq!(foreign(expected, 1000), expected, "escaping is idempotent");
        }
    }

    #[test]
    fn no_escape_is_cut_in_two() {
        assert_eq!((foreign("ab\ncd", 3).as_str(), foreign("ab\ncd", 4).as_str()), ("ab", "ab\\n"));
        assert_eq!(foreign("\u{fc}\u{fc}", 3), "\u{fc}");
    }
}
