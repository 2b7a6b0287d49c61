//! The rate limit of captured exceptions: a token bucket for each type of error and place of the capture.
//!
//! An error in a loop can produce hundreds of thousands of identical exceptions in a minute. All but the first few say
//! nothing new, and each costs a stack walk, space in the queue and a part of the project's quota. As in PostHog's own
//! libraries, a bucket holds ten tokens and gets one more every ten seconds, unless the program sets other numbers.
//! Their buckets are per type of error; here the place of the capture counts too, because in Rust many errors have the
//! same type (`io::Error`, `anyhow::Error`).
//!
//! The bucket is asked before the stack is walked and the error is read. What is dropped is counted in the bucket, and
//! the next exception that passes says how many it stands for ([`MISSED_BEFORE`]).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// The property of an exception that says how many exceptions of its type and place were dropped since the one before
/// it.
pub(super) const MISSED_BEFORE: &str = "exception_missed_before";

/// Number of buckets that are kept. Beyond that the one that was not used for longest is forgotten, and begins full.
const BUCKETS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The buckets of a client.
#[derive(Debug)]
pub(super) struct ExceptionLimit {
    /// Tokens of a full bucket; 0: there is no limit.
    burst: u32,
    /// The time in which a bucket gets one token.
    refill: Duration,
    buckets: Mutex<LruCache<u64, Bucket>>,
}

/// The tokens of one type and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    tokens: u32,
    /// When the last whole token was added.
    filled_at: Instant,
    /// Exceptions dropped since the last one that passed.
    missed: u64,
}

impl ExceptionLimit {
    pub(super) fn new((burst, refill): (u32, Duration)) -> Self {
        Self { burst, refill, buckets: Mutex::new(LruCache::sparse(BUCKETS)) }
    }

    pub(super) fn is_off(&self) -> bool {
        self.burst == 0
    }

    /// Takes a token from the bucket of this key. If there is one, the exception passes, and the result is the number of
    /// those that were dropped before it.
    pub(super) fn admit(&self, key: u64, now: Instant) -> Option<u64> {
        let full = Bucket { tokens: self.burst, filled_at: now, missed: 0 };
        // Held for the look-up only, and by no code of the program.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.get_or_insert_mut(key, || full).take(now, self.burst, self.refill)
    }

    /// Takes back a number that was given to an exception that was dropped for another reason, so that the next one has
    /// it.
    pub(super) fn give_back(&self, key: u64, missed: u64) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&key) {
            bucket.missed = bucket.missed.saturating_add(missed);
        }
    }

    /// The reason of a drop, for an operator.
    pub(super) fn explain(&self, kind: &str, key: Option<&str>, has_stack: bool, place: &Location<'_>) -> String {
        let Self { burst, refill, .. } = self;
        let bucket = match key {
            // Also of a log line, whose place is no call.
            Some(key) => format!("under the key {key}"),
            None if has_stack => format!("at {}:{} with the same call stack", place.file(), place.line()),
            None => format!("at {}:{}", place.file(), place.line()),
        };
        format!(
            "more than {burst} of type {kind} were captured {bucket}; one more is sent every {refill:?}, with the number \
             of those dropped before it ({MISSED_BEFORE}); see Config::exception_rate_limit"
        )
    }
}

impl Bucket {
    /// Adds the tokens that are due, and takes one.
    fn take(&mut self, now: Instant, burst: u32, refill: Duration) -> Option<u64> {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let due = elapsed.as_nanos().checked_div(refill.as_nanos()).unwrap_or(u128::MAX);
        let added = u32::try_from(due).unwrap_or(u32::MAX);
        if added >= burst - self.tokens.min(burst) {
            (self.tokens, self.filled_at) = (burst, self.filled_at.max(now));
        } else {
            // The rest of the time counts for the next token. No overflow: this is at most `now`.
            (self.tokens, self.filled_at) = (self.tokens + added, self.filled_at + refill * added);
        }
        if self.tokens == 0 {
            self.missed = self.missed.saturating_add(1);
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.missed))
    }
}

/// The bucket of an exception: its type, and the key that the program gave it or else the place of the capture.
pub(super) fn key_of(kind: &str, given: Option<&str>, place: &Location<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    kind.hash(&mut hasher);
    match given {
        Some(key) => key.hash(&mut hasher),
        None => (place.file(), place.line(), place.column()).hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::{Clock, ManualClock};

    const SECOND: Duration = Duration::from_secs(1);

    fn passes(limit: &ExceptionLimit, key: u64, now: Instant, times: u32) -> Vec<u64> {
        (0..times).filter_map(|_| limit.admit(key, now)).collect()
    }

    #[test]
    fn a_bucket_passes_ten_and_then_one_every_ten_seconds() {
        let manual = ManualClock::at(0);
        let (clock, limit) = (Clock::Manual(manual.clone()), ExceptionLimit::new((10, 10 * SECOND)));
        assert_eq!(passes(&limit, 1, clock.now(), 100), [0; 10]);
        let mut passed = Vec::new();
        for _ in 0..30 {
            manual.advance(SECOND);
            passed.extend(passes(&limit, 1, clock.now(), 5));
        }
        assert_eq!(passed, [90 + 9 * 5, 49, 49], "each says how many were dropped before it");
        manual.advance(1_000_000 * SECOND);
        assert_eq!(passes(&limit, 1, clock.now(), 100).len(), 10, "a full bucket gets no more");
    }

    #[test]
    fn time_counts_for_the_next_token_whatever_its_parts_are() {
        let start = Instant::now();
        let limit = ExceptionLimit::new((2, 10 * SECOND));
        assert_eq!(passes(&limit, 1, start, 2), [0; 2]);
        // 15 s: one token, and half of the next.
        assert_eq!(passes(&limit, 1, start + 15 * SECOND, 2), [0]);
        assert_eq!(passes(&limit, 1, start + 19 * SECOND, 1), [0; 0]);
        assert_eq!(passes(&limit, 1, start + 20 * SECOND, 1), [2]);
        // A thread that read the clock earlier and comes later.
        assert_eq!(passes(&limit, 1, start + 5 * SECOND, 1), [0; 0]);
        assert_eq!(passes(&limit, 1, start + 30 * SECOND, 1), [1]);
    }

    #[test]
    fn each_key_has_a_bucket_and_their_number_is_bounded() {
        let (now, limit) = (Instant::now(), ExceptionLimit::new((1, SECOND)));
        for key in 0..5_000 {
            assert_eq!(passes(&limit, key, now, 2), [0], "{key}");
            assert_eq!(limit.admit(0, now), None, "a bucket that is used is kept");
        }
        assert_eq!(limit.buckets.lock().unwrap().len(), BUCKETS.get());
    }

    #[test]
    fn a_count_that_was_not_sent_goes_to_the_next_one() {
        let (now, limit) = (Instant::now(), ExceptionLimit::new((1, SECOND)));
        passes(&limit, 1, now, 5);
        assert_eq!(passes(&limit, 1, now + SECOND, 1), [4]);
        limit.give_back(1, 4);
        limit.give_back(2, 4);
        assert_eq!(passes(&limit, 1, now + 2 * SECOND, 1), [4]);
    }

    #[test]
    fn the_reason_of_a_drop_names_what_makes_the_bucket() {
        let (limit, here) = (ExceptionLimit::new((10, 10 * SECOND)), Location::caller());
        let begins = |text: String, bucket: &str| {
            let expected = format!("more than 10 of type io::Error were captured {bucket}; one more is sent every 10s");
            assert!(text.starts_with(&expected), "{text}");
        };
        let at = format!("at {}:{}", here.file(), here.line());
        begins(limit.explain("io::Error", None, false, here), &at);
        begins(limit.explain("io::Error", None, true, here), &format!("{at} with the same call stack"));
        begins(limit.explain("io::Error", Some("src/main.rs:7"), true, here), "under the key src/main.rs:7");
    }

    #[test]
    fn type_and_place_or_the_given_key_make_the_bucket() {
        let (here, there) = (Location::caller(), { Location::caller() });
        let keys = [
            key_of("io::Error", None, here),
            key_of("io::Error", None, there),
            key_of("fmt::Error", None, here),
            key_of("io::Error", Some("upload"), here),
        ];
        assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(key_of("io::Error", Some("upload"), there), keys[3]);
        assert_eq!(key_of("io::Error", None, here), keys[0]);
    }

    proptest::proptest! {
        #[test]
        fn any_times_and_numbers_pass_no_more_than_they_should(
            burst in 1u32..=u32::MAX, refill in 1u64..=u64::MAX, steps in proptest::collection::vec(0u64..=u64::MAX / 64, 0..40)
        ) {
            let (start, limit) = (Instant::now(), ExceptionLimit::new((burst, Duration::from_nanos(refill))));
            let (mut at, mut passed, mut missed) = (Duration::ZERO, 0u128, 0u64);
            for step in &steps {
                at += Duration::from_nanos(*step);
                if let Some(before) = limit.admit(1, start + at) {
                    passed += 1;
                    missed += before;
                }
            }
            assert!(passed <= u128::from(burst) + at.as_nanos() / u128::from(refill));
            assert!(passed + u128::from(missed) <= steps.len() as u128);
        }
    }
}
