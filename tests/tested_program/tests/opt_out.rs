//! Opting out while events are being sent.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helper functions")]

// Here because a process has one global subscriber, and no other test of this program has a subscriber of its own.
#[path = "testing/global_layer.rs"]
mod global_layer;

use std::time::Duration;

use posthog::reports::EndpointStatus;
use posthog::settings::CaptureProtocol;
use posthog::testing::{Answer, Harness, Route};
use tested_program::sign_up;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Long enough for captured events to be sent.
const DUE: Duration = Duration::from_secs(10);

#[test]
fn a_failed_request_is_not_retried_before_opt_in() {
    let harness = Harness::new(|config| config.protocol(CaptureProtocol::V1)).unwrap();
    harness.server().always(Route::Analytics, Answer::status(503));
    sign_up(harness.client(), "user_1", "pro");
    harness.advance(DUE);
    assert_eq!(harness.server().requests().len(), 1);
    harness.client().opt_out();
    harness.advance(HOUR);
    harness.advance(HOUR);
    assert_eq!((harness.server().requests().len(), harness.queued().len()), (1, 1));
    harness.server().always(Route::Analytics, Answer::ok());
    harness.client().opt_in();
    harness.settle();
    let requests = harness.server().requests();
    assert_eq!((requests.len(), harness.queued().len()), (2, 0));
    assert_eq!(requests[1].header("posthog-attempt"), Some("1"), "another request, of the same event");
    assert_eq!(requests[1].events, requests[0].events);
}

#[test]
fn what_was_asked_for_again_waits_as_well() {
    let harness = Harness::new(|config| config.protocol(CaptureProtocol::V1)).unwrap();
    sign_up(harness.client(), "user_1", "pro");
    sign_up(harness.client(), "user_2", "free");
    let taken = harness.queued()[0].uuid;
    let asked_again = harness.queued()[1].uuid;
    let verdicts = format!(r#"{{"results":{{"{taken}":{{"result":"ok"}},"{asked_again}":{{"result":"retry"}}}}}}"#);
    harness.server().script(Route::Analytics, [Answer::status(200).body(verdicts)]);
    harness.advance(DUE);
    harness.client().opt_out();
    harness.advance(HOUR);
    let left: Vec<_> = harness.queued().iter().map(|event| event.uuid).collect();
    assert_eq!((harness.server().requests().len(), left), (1, vec![asked_again]));
    harness.client().opt_in();
    harness.settle();
    assert_eq!((harness.server().requests()[1].events.len(), harness.queued().len()), (1, 0));
    let stats = harness.client().stats();
    assert_eq!((stats.accepted, stats.delivered, stats.queued_events), (2, 2, 0));
}

#[test]
fn a_shutdown_keeps_what_is_held_back_for_the_next_process() {
    let harness = Harness::new(|config| config.max_batch_events(1).flush_at(1000)).unwrap();
    harness.server().script(Route::Analytics, [Answer::ok().delay(SECOND)]);
    for _ in 0..20 {
        sign_up(harness.client(), "user_1", "pro");
    }
    harness.advance(DUE);
    harness.client().opt_out();
    assert!(harness.deliver().is_none(), "the request that is under way is waited for");
    harness.advance(SECOND);
    let report = harness.deliver().unwrap();
    assert_eq!((report.remaining, report.endpoint), (19, EndpointStatus::Up));
    let report = harness.client().shutdown(HOUR).wait(DUE).unwrap();
    assert_eq!((report.delivered, report.remaining, harness.server().requests().len()), (0, 19, 1));
    let harness = harness.restart(|config| config.opted_out(true)).unwrap();
    harness.advance(HOUR);
    assert_eq!((harness.server().requests().len(), harness.queued().len()), (1, 19));
    harness.client().opt_in();
    harness.settle();
    assert_eq!((harness.server().taken().len(), harness.queued().len()), (20, 0));
}
