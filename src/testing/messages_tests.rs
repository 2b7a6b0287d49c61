//! What a client says by a clock that stands still: sums of what was held back, and why a shutdown leaves events.

use std::time::Duration;

use super::{Answer, Harness, Route};
use crate::client::Outcome;
use crate::event::Event;
use crate::report::{Diagnostic, DropReason};

const SECOND: Duration = Duration::from_secs(1);

/// A queue that is full, in an outage.
fn full() -> Harness {
    let harness = Harness::new(|config| config.max_queue_events(10).flush_at(1000)).unwrap();
    harness.server().always(Route::Analytics, Answer::status(503).body("down for repairs"));
    (0..10).for_each(|_| assert!(harness.client().capture(Event::new("kept", "user_1")).is_accepted()));
    harness.advance(5 * SECOND);
    harness
}

/// Captures so many that are all dropped.
fn drop_many(harness: &Harness, count: usize) {
    for _ in 0..count {
        let outcome = harness.client().capture(Event::new("tick", "user_1")).outcome();
        assert_eq!(outcome, Outcome::Dropped(DropReason::QueueFull));
    }
}

/// How many events the drops recorded so far stand for, one by one.
fn drop_counts(harness: &Harness) -> Vec<u64> {
    let counts =
        |diagnostic: &Diagnostic| if let Diagnostic::Dropped { count, .. } = diagnostic { Some(*count) } else { None };
    harness.client().diagnostics().iter().filter_map(counts).collect()
}

#[test]
fn counted_drops_are_recorded_after_a_minute_without_captures() {
    let harness = full();
    drop_many(&harness, 100);
    assert_eq!(drop_counts(&harness), [1], "the first at once");
    harness.advance(59 * SECOND);
    assert_eq!(drop_counts(&harness), [1]);
    harness.advance(SECOND);
    assert_eq!(drop_counts(&harness), [1, 99]);
    harness.advance(600 * SECOND);
    assert_eq!(drop_counts(&harness), [1, 99], "and nothing twice");
}

#[test]
fn counted_drops_are_recorded_at_recovery_and_shutdown() {
    let harness = full();
    drop_many(&harness, 100);
    harness.server().always(Route::Analytics, Answer::ok());
    harness.advance(50 * SECOND);
    assert_eq!((drop_counts(&harness), harness.queued().len()), (vec![1, 99], 0));

    let harness = full();
    drop_many(&harness, 100);
    harness.client().shutdown(Duration::ZERO).wait(60 * SECOND).unwrap();
    assert_eq!(drop_counts(&harness), [1, 99]);
    assert_eq!(harness.client().stats().dropped_total(), 100);
}

#[test]
fn a_drop_names_the_bound_the_oldest_event_and_the_outage() {
    let harness = full();
    for _ in 0..4 {
        harness.advance(3600 * SECOND);
    }
    drop_many(&harness, 1);
    let text = harness.client().diagnostics().last().unwrap().to_string();
    assert_eq!(
        text,
        "1 event dropped (\"tick\"): queue is full (max_queue_events = 10); oldest event is 4 h old, endpoint http://posthog.test has \
         failed for 4 h (HTTP status 503: down for repairs)"
    );
}

#[test]
fn a_shutdown_ended_by_a_rejected_key_is_no_timeout() {
    let harness = Harness::new(|config| config).unwrap();
    harness.server().always(Route::Analytics, Answer::status(401).body("API key is not valid: made up"));
    harness.client().capture(Event::new("tick", "user_1"));
    let report = harness.client().shutdown(10 * SECOND).wait(60 * SECOND).unwrap();
    assert_eq!(report.remaining, 1);
    let recorded = harness.client().diagnostics();
    let Some(Diagnostic::LeftOnDisk { events: 1, path, why }) = recorded.last() else { panic!("{recorded:?}") };
    assert_eq!(why, "requests are refused (HTTP status 401: API key is not valid: made up)");
    assert_eq!(harness.client().stats().dir.as_ref(), Some(path));
}
