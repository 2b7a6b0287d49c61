//! What a client says by a clock that stands still: sums of what was held back, and why a shutdown leaves events.

use std::time::Duration;

use super::{Answer, Harness, Route};
use crate::client::Outcome;
use crate::diagnostics::Diagnostic;
use crate::event::Event;
use crate::pipeline::DropReason;

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
fn told(harness: &Harness) -> Vec<u64> {
    let counts = |told: &Diagnostic| if let Diagnostic::Dropped { count, .. } = told { Some(*count) } else { None };
    harness.client().diagnostics().iter().filter_map(counts).collect()
}

#[test]
fn what_a_flood_has_held_back_is_recorded_when_the_minute_has_passed_though_nobody_captures_any_more() {
    let harness = full();
    drop_many(&harness, 100);
    assert_eq!(told(&harness), [1], "the first at once");
    harness.advance(59 * SECOND);
    assert_eq!(told(&harness), [1]);
    harness.advance(SECOND);
    assert_eq!(told(&harness), [1, 99]);
    harness.advance(600 * SECOND);
    assert_eq!(told(&harness), [1, 99], "and nothing twice");
}

#[test]
fn what_a_flood_has_held_back_is_recorded_when_the_endpoint_recovers_and_at_a_shutdown() {
    let harness = full();
    drop_many(&harness, 100);
    harness.server().always(Route::Analytics, Answer::ok());
    harness.advance(50 * SECOND);
    assert_eq!((told(&harness), harness.queued().len()), (vec![1, 99], 0));

    let harness = full();
    drop_many(&harness, 100);
    harness.client().shutdown(Duration::ZERO).wait(60 * SECOND).unwrap();
    assert_eq!(told(&harness), [1, 99]);
    assert_eq!(harness.client().stats().dropped_total(), 100);
}

#[test]
fn a_drop_says_the_bound_the_age_of_the_oldest_event_and_the_outage() {
    let harness = full();
    for _ in 0..4 {
        harness.advance(3600 * SECOND);
    }
    drop_many(&harness, 1);
    let said = harness.client().diagnostics().last().unwrap().to_string();
    assert_eq!(
        said,
        "1 event dropped (\"tick\"): queue is full (max_queue_events = 10); oldest event is 4 h old, endpoint http://posthog.test has \
         failed for 4 h (HTTP status 503: down for repairs)"
    );
}

#[test]
fn a_shutdown_that_ends_early_because_the_key_is_refused_does_not_say_that_time_ran_out() {
    let harness = Harness::new(|config| config).unwrap();
    harness.server().always(Route::Analytics, Answer::status(401).body("API key is not valid: made up"));
    harness.client().capture(Event::new("tick", "user_1"));
    let report = harness.client().shutdown(10 * SECOND).wait(60 * SECOND).unwrap();
    assert_eq!(report.remaining, 1);
    let told = harness.client().diagnostics();
    let Some(Diagnostic::LeftOnDisk { events: 1, path, why }) = told.last() else { panic!("{told:?}") };
    assert_eq!(why, "requests are refused (HTTP status 401: API key is not valid: made up)");
    assert_eq!(harness.client().stats().dir.as_ref(), Some(path));
}
