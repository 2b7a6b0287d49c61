//! Requests for flags with a manual clock and a scripted server, payloads of remote config flags, and overridden flags.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, FlagOverride, Harness, Route};
use crate::flags::{self, Failure, FlagContext, FlagValue, RemoteConfigError};
use crate::{Client, Config};

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

const REMOTE_CONFIG: &str =
    "http://posthog.test/api/projects/@current/feature_flags/limits/remote_config?token=phc_testing";

fn payload_of(harness: &Harness, key: &str) -> Result<Option<Value>, RemoteConfigError> {
    let loaded = harness.client().get_remote_config_payload(key);
    harness.settle();
    loaded.try_get().unwrap()
}

#[test]
fn a_remote_config_payload_is_the_servers_answer() {
    let harness = harness(|config| config.secret_key("phx_verysecret"));
    harness.settle();
    harness.server().forget();
    assert_eq!(payload_of(&harness, "limits"), Ok(None), "by default there is none");
    let redacted = json!("\"********* (encrypted)\"");
    let says = [Answer::json(json!("{\"most\": 3}")), Answer::json(redacted), Answer::status(404), Answer::status(401)];
    harness.server().script(Route::RemoteConfig, says);
    assert_eq!(payload_of(&harness, "limits"), Ok(Some(json!({"most": 3}))));
    assert_eq!(payload_of(&harness, "limits"), Err(RemoteConfigError::Encrypted));
    assert_eq!(payload_of(&harness, "limits"), Err(RemoteConfigError::NotFound));
    let refused = payload_of(&harness, "limits").unwrap_err();
    assert!(matches!(refused, RemoteConfigError::Refused { status: 401, .. }), "{refused:?}");
    let requests = harness.server().requests();
    assert!(
        requests.iter().all(|request| (request.route, request.url.as_str()) == (Route::RemoteConfig, REMOTE_CONFIG))
    );
    assert_eq!((requests.len(), requests[0].header("authorization")), (5, Some("Bearer phx_verysecret")));
    let text = format!("{refused} {refused:?} {:?}", harness.client().diagnostics());
    assert!(!text.contains("verysecret") && harness.queued().is_empty(), "{text}");
}

#[test]
fn a_remote_config_payload_ends_with_the_flags_timeout() {
    let harness = harness(|config| config.secret_key("phx_1"));
    harness.server().always(Route::RemoteConfig, Answer::ok().delay(60 * SECOND));
    let loaded = harness.client().get_remote_config_payload("limits");
    harness.advance(3 * SECOND - Duration::from_millis(1));
    assert_eq!(loaded.try_get(), None);
    harness.advance(Duration::from_millis(1));
    let late = loaded.try_get().unwrap().unwrap_err();
    assert!(matches!(&late, RemoteConfigError::Unavailable(why) if why.contains("in time")), "{late:?}");
}

#[test]
fn without_a_secret_key_no_remote_config_is_requested() {
    let harness = harness(|config| config);
    assert_eq!(payload_of(&harness, "limits"), Err(RemoteConfigError::NotConfigured));
    assert_eq!(requests(&harness), 0);
    let client = harness.client().clone();
    assert!(client.close().wait(60 * SECOND).is_ok());
    assert!(payload_of(&harness, "limits").is_err());
    let disabled = Client::new(Config::disabled()).unwrap();
    let said = disabled.get_remote_config_payload("limits").try_get().unwrap();
    assert_eq!(said, Err(RemoteConfigError::Closed));
}

/// The value of a flag for a person, known when the call returns.
fn value(harness: &Harness, who: &str, key: &str) -> Option<FlagValue> {
    let who = FlagContext::new(who).only_keys([key]);
    harness.client().evaluate_flags(who).try_get().expect("no request is needed").get(key)
}

#[test]
fn an_overridden_flag_has_its_value_in_every_call() {
    let harness = harness(|config| config);
    harness.override_flag("beta", FlagOverride::new("test").payload(json!({"off": 20})));
    harness.override_flag("beta", FlagOverride::new(false).only_for("user_2"));
    let client = harness.client();
    assert_eq!(
        (value(&harness, "user_1", "beta"), value(&harness, "user_2", "beta")),
        (Some("test".into()), Some(false.into()))
    );
    assert_eq!(client.is_feature_enabled("beta", "user_1").try_get(), Some(true));
    assert_eq!(client.get_feature_flag("beta", "user_2").try_get(), Some(Some(false.into())));
    let result = client.get_feature_flag_result("beta", "user_1").try_get().unwrap().unwrap();
    assert_eq!((result.variant.as_deref(), result.payload), (Some("test"), Some(json!({"off": 20}))));
    assert_eq!(client.get_feature_flag_payload("beta", "user_1").try_get(), Some(Some(json!({"off": 20}))));
    assert_eq!(client.get_feature_flag_payload_of("beta", "user_1", "test").try_get(), Some(Some(json!({"off": 20}))));
    assert_eq!(client.get_feature_flag_payload_of("beta", "user_2", "test").try_get(), Some(None));
    assert_eq!(client.known_flags("user_1").get("beta"), Some("test".into()));
    let forced = FlagContext::new("user_1").only_keys(["beta"]).ask_posthog(true);
    assert_eq!(client.evaluate_flags(forced).try_get().unwrap().get("beta"), Some("test".into()));
    assert_eq!(requests(&harness), 0);
}

#[test]
fn flags_beside_overridden_ones_are_evaluated_as_always() {
    let harness = harness(|config| config);
    harness.override_flag("beta", true);
    let both = json!({"flags": {"beta": {"enabled": false}, "other": {"enabled": true}}});
    harness.server().always(Route::Flags, Answer::json(both));
    let all = harness.client().get_all_flags("user_1");
    let named = harness.client().evaluate_flags(FlagContext::new("user_1").only_keys(["other"]));
    harness.settle();
    let expected = BTreeMap::from([("beta".to_owned(), FlagValue::from(true)), ("other".to_owned(), true.into())]);
    assert_eq!(all.try_get(), Some(expected));
    assert_eq!(named.try_get().unwrap().keys().collect::<Vec<_>>(), ["other"], "only what is asked for");
    harness.override_flag("more", true);
    harness.clear_flag_override("beta");
    assert_eq!(harness.client().known_flags("user_1").get("beta"), Some(false.into()));
    assert_eq!(value(&harness, "user_1", "more"), Some(true.into()));
    harness.clear_flag_overrides();
    assert_eq!(harness.client().known_flags("user_1").get("more"), None);
}

#[test]
fn an_override_precedes_the_definition_of_its_flag() {
    let variants = json!([{"key": "control", "rollout_percentage": 100}]);
    let filters = json!({"groups": [{"rollout_percentage": 100}], "multivariate": {"variants": variants},
        "payloads": {"control": "1", "test": "2"}});
    let flag = json!({"key": "beta", "active": true, "filters": filters});
    let harness = harness(|config| config.secret_key("phs_1"));
    let document = json!({"flags": [flag], "group_type_mapping": {}, "cohorts": {}});
    // The load at the start is over; a call during it would join it.
    harness.settle();
    harness.server().always(Route::FlagDefinitions, Answer::json(document));
    let reloaded = harness.client().reload_flag_definitions();
    harness.settle();
    reloaded.try_get().unwrap().unwrap();
    let client = harness.client();
    let payload = |who: &str| client.get_feature_flag_payload_of("beta", who, "test").try_get().unwrap();
    assert_eq!((value(&harness, "user_1", "beta"), payload("user_1")), (Some("control".into()), Some(json!(2))));
    harness.override_flag("beta", FlagOverride::new("test").payload(7).only_for("user_1"));
    assert_eq!((value(&harness, "user_1", "beta"), payload("user_1")), (Some("test".into()), Some(json!(7))));
    assert_eq!((value(&harness, "user_2", "beta"), payload("user_2")), (Some("control".into()), Some(json!(2))));
}

#[test]
fn a_read_of_an_overridden_flag_is_captured_and_says_so() {
    let harness = harness(|config| config);
    harness.override_flag("beta", FlagOverride::new("test").payload(json!(1)));
    for _ in 0..2 {
        assert!(harness.client().is_feature_enabled("beta", "user_1").wait(SECOND).unwrap());
    }
    let queued = harness.queued();
    assert_eq!((queued.len(), queued[0].event.as_str()), (1, "$feature_flag_called"));
    let properties = &queued[0].properties;
    assert_eq!(properties["$feature_flag_response"], "test");
    assert_eq!(properties["locally_evaluated"], true);
    assert_eq!(properties["$feature_flag_reason"], "overridden by a test");
    assert!(properties.get("$feature_flag_error").is_none());
    harness.override_flag("beta", true);
    assert!(harness.client().is_feature_enabled("beta", "user_1").wait(SECOND).unwrap());
    assert_eq!(harness.queued().len(), 2, "another value is another read");
}
