//! Requests to the server (HTTP) for flags.

use std::time::Duration;

use posthog::feature_flags::{FeatureFlags, FlagContext, FlagsProblem};
use posthog::testing::{Answer, Harness, RecordedRequest, Route};
use posthog::{Config, Pending};
use serde_json::json;

fn asking(configure: impl FnOnce(Config) -> Config) -> Harness {
    let harness = Harness::new(configure).unwrap();
    harness.server().always(Route::Flags, Answer::json(json!({"flags": {"a": {"enabled": true}}})));
    harness
}

fn ask(harness: &Harness) -> Pending<FeatureFlags> {
    let who = FlagContext::new("user_1").person_property("plan", "pro").group("company", "acme");
    let answer = harness.client().evaluate_flags(who);
    harness.settle();
    answer
}

fn asked(harness: &Harness) -> Vec<RecordedRequest> {
    harness.server().requests().into_iter().filter(|request| request.route == Route::Flags).collect()
}

/// The number of requests after each of these waits.
fn requests_after<const N: usize>(harness: &Harness, pauses: [u64; N]) -> [usize; N] {
    pauses.map(|millis| {
        harness.advance(Duration::from_millis(millis));
        asked(harness).len()
    })
}

/// Fails the first attempt with `fails`. A second one must follow 300 ms later and succeed.
fn must_be_repeated_once(fails: Answer) {
    let harness = asking(|config| config);
    harness.server().script(Route::Flags, [fails]);
    let answer = ask(&harness);
    assert_eq!(requests_after(&harness, [0, 299, 1, 5000]), [1, 1, 2, 2]);
    assert!(answer.try_get().unwrap().is_enabled("a"));
}

#[test]
fn http_05_a_request_without_response_is_retried_after_300_ms() {
    must_be_repeated_once(Answer::unreachable());
    must_be_repeated_once(Answer::timeout());
    let harness = asking(|config| config);
    harness.server().always(Route::Flags, Answer::unreachable());
    let answer = ask(&harness);
    assert_eq!(requests_after(&harness, [300, 600, 5000]), [2, 2, 2], "one retry by default");
    assert!(matches!(answer.try_get().unwrap().problem(), Some(FlagsProblem::NoAnswer { .. })));
}

#[test]
fn http_06_a_request_is_retried_once_after_502_and_504() {
    must_be_repeated_once(Answer::status(502));
    must_be_repeated_once(Answer::status(504));
}

#[test]
fn http_07_no_other_status_is_retried_and_known_flags_stay() {
    for status in [400, 401, 402, 403, 404, 408, 429, 500, 501, 503, 505, 529] {
        let harness = asking(|config| config);
        assert!(ask(&harness).try_get().unwrap().problem().is_none());
        harness.server().always(Route::Flags, Answer::status(status));
        // The cached answer is no longer fresh.
        harness.advance(Duration::from_secs(61));
        let flags = ask(&harness).try_get().unwrap();
        assert_eq!(requests_after(&harness, [300, 600, 5000]), [2, 2, 2], "{status}");
        assert!(flags.is_enabled("a") && flags.problem().is_some(), "{status}");
    }
}

#[test]
fn http_08_without_retries_there_is_one_request() {
    for fails in [Answer::unreachable(), Answer::status(502), Answer::status(504)] {
        let harness = asking(|config| config.flag_request_max_retries(0));
        harness.server().always(Route::Flags, fails);
        assert!(ask(&harness).try_get().unwrap().problem().is_some());
        assert_eq!(requests_after(&harness, [300, 600, 5000]), [1, 1, 1]);
    }
}

#[test]
fn http_09_waits_double_and_end_with_the_timeout() {
    let harness = asking(|config| config.flag_request_max_retries(2));
    harness.server().always(Route::Flags, Answer::status(502));
    let answer = ask(&harness);
    assert_eq!(requests_after(&harness, [299, 1, 599, 1, 5000]), [1, 2, 2, 3, 3]);
    assert!(answer.try_get().unwrap().problem().is_some());
    // 300 + 600 + 1200 ms are less than 3 s; with 2400 ms more they are not.
    let harness = asking(|config| config.flag_request_max_retries(10));
    harness.server().always(Route::Flags, Answer::status(502));
    let answer = ask(&harness);
    assert_eq!(requests_after(&harness, [300, 600, 1200]), [2, 3, 4]);
    assert!(answer.try_get().is_some(), "a wait that would end too late is not begun");
    assert_eq!(requests_after(&harness, [5000]), [4]);
}

#[test]
fn http_10_a_retry_repeats_the_request_and_captures_nothing() {
    let harness = asking(|config| config.flag_request_max_retries(2));
    harness.server().script(Route::Flags, [Answer::unreachable(), Answer::status(504)]);
    let answer = ask(&harness);
    harness.client().set_person_properties_for_flags([("plan", "free")]);
    assert_eq!(requests_after(&harness, [300, 600]), [2, 3]);
    let bodies: Vec<_> = asked(&harness).into_iter().map(|request| request.body).collect();
    assert_eq!((&bodies[1], &bodies[2]), (&bodies[0], &bodies[0]));
    assert_eq!(
        (&bodies[0]["groups"], &bodies[0]["person_properties"]["plan"]),
        (&json!({"company": "acme"}), &json!("pro"))
    );
    assert!(harness.queued().is_empty(), "a retry captures no event");
    // The read is captured as without the retry.
    assert!(answer.try_get().unwrap().is_enabled("a"));
    let events = harness.queued();
    assert_eq!((events.len(), events[0].properties.get("$feature_flag_error")), (1, None));
}
