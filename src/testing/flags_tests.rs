//! Requests for flags with a manual clock and a scripted server.

use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::json;

use super::{Answer, Harness, Route};
use crate::Config;
use crate::flags::{self, Failure, FlagContext};

const SECOND: Duration = Duration::from_secs(1);

type Answered = Result<flags::Answer, Failure>;

fn harness(configure: impl FnOnce(Config) -> Config) -> Harness {
    Harness::new(configure).unwrap()
}

fn ask(harness: &Harness) -> Receiver<Answered> {
    let (sender, answer) = mpsc::channel();
    let context = FlagContext::new("user_1");
    let pipeline = harness.client().pipeline().unwrap();
    pipeline.request_flags(context, Box::new(move |answer| sender.send(answer).unwrap()));
    harness.settle();
    answer
}

fn requests(harness: &Harness) -> usize {
    harness.server().requests().len()
}

#[test]
fn the_answer_has_arrived_when_settle_returns() {
    let harness = harness(|config| config);
    for enabled in [true, false] {
        harness.server().script(Route::Flags, [Answer::json(json!({"flags": {"a": {"enabled": enabled}}}))]);
        let answer = ask(&harness).try_recv().unwrap().unwrap();
        assert_eq!(answer.flags["a"].value, enabled);
    }
    assert_eq!(ask(&harness).try_recv().unwrap(), Ok(flags::Answer::default()), "the default response has no flags");
    let requests = harness.server().requests();
    assert_eq!((requests[0].route, requests[0].url.as_str()), (Route::Flags, "http://posthog.test/flags/?v=2"));
    assert_eq!((&requests[0].body["token"], requests[0].header("authorization")), (&json!("phc_testing"), None));
}

#[test]
fn retries_are_sent_only_after_the_clock_has_advanced() {
    for fails in [Answer::unreachable, || Answer::status(502), || Answer::status(504), Answer::timeout] {
        let harness = harness(|config| config.flag_request_max_retries(2));
        harness.server().script(Route::Flags, [fails(), fails()]);
        let answer = ask(&harness);
        let mut seen = vec![requests(&harness)];
        for millis in [299, 1, 599, 1] {
            harness.advance(Duration::from_millis(millis));
            seen.push(requests(&harness));
        }
        assert_eq!(seen, [1, 1, 2, 2, 3]);
        assert_eq!(answer.try_recv().unwrap(), Ok(flags::Answer::default()));
        let bodies: Vec<_> = harness.server().requests().into_iter().map(|request| request.body).collect();
        assert!(bodies[0] == bodies[1] && bodies[1] == bodies[2]);
    }
}

#[test]
fn a_late_response_counts_within_the_timeout() {
    let harness = harness(|config| config);
    harness.server().script(Route::Flags, [Answer::ok().delay(2 * SECOND), Answer::ok().delay(4 * SECOND)]);
    let (early, late) = (ask(&harness), ask(&harness));
    harness.advance(2 * SECOND);
    assert!(early.try_recv().unwrap().is_ok() && late.try_recv().is_err());
    harness.advance(SECOND);
    assert_eq!(late.try_recv().unwrap(), Err(Failure::Timeout));
    harness.advance(60 * SECOND);
    assert_eq!(requests(&harness), 2);
}

#[test]
fn an_outage_is_reported_at_its_start_and_then_once_a_minute() {
    let harness = harness(|config| config);
    harness.server().always(Route::Flags, Answer::status(500));
    let mut reported = Vec::new();
    for _ in 0..3 {
        for _ in 0..100 {
            assert!(ask(&harness).try_recv().unwrap().is_err());
        }
        reported.push(harness.client().diagnostics().len());
        harness.advance(60 * SECOND);
    }
    assert_eq!(reported, [1, 2, 3]);
    let reported: Vec<_> = harness.client().diagnostics().iter().map(ToString::to_string).collect();
    assert_eq!(
        reported[1],
        "100 requests for feature flags failed: HTTP status 500; last known values or defaults are used"
    );
}

#[test]
fn an_answer_over_the_size_limit_is_unreadable() {
    let harness = harness(|config| config);
    let padding = "x".repeat(crate::sys::limits::FLAG_ANSWER_BYTES);
    harness
        .server()
        .script(Route::Flags, [Answer::json(json!({"flags": {"a": {"enabled": true}}, "padding": padding}))]);
    assert!(matches!(ask(&harness).try_recv().unwrap(), Err(Failure::Unreadable(_))));
}
