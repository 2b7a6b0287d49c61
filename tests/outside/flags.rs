//! Flags of a daemon that is killed during an outage, and of the next process; payloads of remote config flags.

use nix::sys::signal::{Signal, raise};
use posthog::Client;
use posthog::feature_flags::{FlagContext, FlagDefinitionsError, FlagDefinitionsState, FlagValue, RemoteConfigError};
use serde_json::{Value, json};
use sink::{Answer, FlagRoute};

use crate::apart::apart_to_death;
use crate::fixture::{Fixture, KEY, PATIENCE, Place, close_empty, eventually};

const FLAG: &str = "new-checkout";

fn definitions() -> Value {
    let variants = json!([{"key": "control", "rollout_percentage": 50}, {"key": "test", "rollout_percentage": 50}]);
    let filters = json!({"groups": [{"rollout_percentage": 100}], "multivariate": {"variants": variants}});
    json!({"flags": [{"key": FLAG, "active": true, "filters": filters}], "group_type_mapping": {}, "cohorts": {}})
}

/// A server that responds to the first request for definitions, to later ones as given, and to nothing else.
fn that_answers_once(then: Answer) -> Fixture {
    let fixture = Fixture::new();
    fixture.sink.script_flags(FlagRoute::Definitions, [Answer::json(&definitions()).etag("\"1\"")]);
    fixture.sink.flags(FlagRoute::Definitions, then);
    fixture.sink.flags(FlagRoute::Values, Answer::close());
    fixture.sink.default_answer(Answer::close());
    fixture
}

fn client(place: &Place) -> Client {
    Client::new(place.config().secret_key("phs_outside")).unwrap()
}

/// The flag's value, available when the call returns.
fn value(client: &Client, who: &str) -> FlagValue {
    let flags = client.evaluate_flags(FlagContext::new(who).only_keys([FLAG])).try_get().unwrap();
    assert_eq!(flags.problem(), None);
    flags.get(FLAG).unwrap()
}

/// Loads definitions, meets the failure, and is killed.
fn dies_in_what_comes_then(place: &Place, meets: impl FnOnce(&FlagDefinitionsError), read: &[&str]) {
    let client = client(place);
    eventually("definitions are loaded", || client.local_flags().is_some());
    read.iter().for_each(|who| drop(value(&client, who)));
    let mut met = None;
    // A request made while the first load ends is answered by it.
    eventually("PostHog answers otherwise", || {
        met = client.reload_flag_definitions().wait(PATIENCE).err();
        met.is_some()
    });
    meets(&met.unwrap());
    // Commands sent to the committer before this flush are done when it is answered.
    client.flush().wait(PATIENCE).unwrap();
    raise(Signal::SIGKILL).unwrap();
}

#[test]
fn a_daemon_killed_in_an_outage_restarts_with_its_flags() {
    apart_to_death(
        || that_answers_once(Answer::close()),
        |place| {
            let is_outage =
                |error: &FlagDefinitionsError| assert!(matches!(error, FlagDefinitionsError::Unavailable(_)));
            dies_in_what_comes_then(place, is_outage, &["u0", "u3"]);
        },
        |fixture| {
            fixture.sink.stop();
            let client = client(fixture);
            // Buckets, computed elsewhere: 0.827 of u0 and 0.478 of u3.
            assert_eq!((value(&client, "u0"), value(&client, "u3")), ("test".into(), "control".into()));
            let (state, age) = (client.flag_definitions_state(), client.flag_definitions_age().unwrap());
            assert!(matches!(state, FlagDefinitionsState::Restored | FlagDefinitionsState::Stale), "{state:?}");
            assert!(!age.is_zero() && age < PATIENCE, "{age:?}");

            // The reads of both are delivered when PostHog is back.
            fixture.sink.default_answer(Answer::ok());
            fixture.sink.flags(FlagRoute::Definitions, Answer::json(&definitions()).etag("\"1\""));
            fixture.sink.resume();
            // The first load may still be under way.
            eventually("definitions are loaded", || client.reload_flag_definitions().wait(PATIENCE).is_ok());
            assert_eq!(client.flag_definitions_state(), FlagDefinitionsState::Fresh);
            let mut asked = fixture.sink.requests().into_iter().filter(|request| request.path == "/flags/definitions");
            assert_eq!(asked.next_back().unwrap().status, 304, "it knows which version it has");
            assert!(fixture.sink.wait_for(|state| state.unique() == 4, PATIENCE));
            assert_eq!(fixture.names(), ["$feature_flag_called"; 4]);
            close_empty(&client);
        },
    );
}

#[test]
fn refused_definitions_are_not_used_by_the_next_process() {
    let refused = Answer::status(401).body(r#"{"type":"authentication_error","detail":"no"}"#);
    apart_to_death(
        || that_answers_once(refused),
        |place| {
            let is_refusal = |error: &FlagDefinitionsError| {
                assert!(matches!(error, FlagDefinitionsError::Refused { status: 401, .. }), "{error}");
            };
            dies_in_what_comes_then(place, is_refusal, &[]);
        },
        |fixture| {
            fixture.sink.stop();
            let client = client(fixture);
            assert!(client.local_flags().is_none());
            assert_eq!(client.flag_definitions_state(), FlagDefinitionsState::Missing);
        },
    );
}

#[test]
fn a_remote_config_payload_is_requested_with_the_secret_key() {
    let fixture = Fixture::new();
    let client = client(&fixture);
    let payload = |key: &str| client.get_remote_config_payload(key).wait(PATIENCE);
    assert_eq!(payload("limits"), Err(RemoteConfigError::NotFound));
    fixture.sink.flags(FlagRoute::RemoteConfig, Answer::json(&json!(r#"{"most": 3}"#)));
    assert_eq!(payload("limits"), Ok(Some(json!({"most": 3}))));
    assert_eq!(payload("odd / key?"), Ok(Some(json!({"most": 3}))));
    fixture.sink.flags(FlagRoute::RemoteConfig, Answer::status(200));
    assert_eq!(payload("limits"), Ok(None));
    let is_ours = |request: &sink::Request| request.path.ends_with("/remote_config");
    let requests: Vec<_> = fixture.sink.requests().into_iter().filter(is_ours).collect();
    assert_eq!(requests[0].path, "/api/projects/@current/feature_flags/limits/remote_config");
    assert_eq!(requests[2].path, "/api/projects/@current/feature_flags/odd%20%2F%20key%3F/remote_config");
    for request in requests {
        assert_eq!((request.method.as_str(), request.query), ("GET", format!("token={KEY}")));
        let authorization = request.headers.iter().find(|(name, _)| name == "authorization");
        assert_eq!(authorization.map(|(_, value)| value.as_str()), Some("Bearer phs_outside"));
    }
    fixture.sink.stop();
    let unreachable = payload("limits").unwrap_err();
    assert!(
        matches!(&unreachable, RemoteConfigError::Unavailable(why) if why.contains("no connection")),
        "{unreachable}"
    );
    assert!(client.shutdown(PATIENCE).wait(PATIENCE).is_ok());
}

#[test]
fn a_remote_config_request_that_hangs_ends_with_its_timeout() {
    let fixture = Fixture::new();
    fixture.sink.flags(FlagRoute::RemoteConfig, Answer::hang());
    let config = fixture.config().secret_key("phs_outside").flag_request_timeout(std::time::Duration::from_millis(200));
    let client = Client::new(config).unwrap();
    let late = client.get_remote_config_payload("limits").wait(PATIENCE).unwrap_err();
    assert!(matches!(&late, RemoteConfigError::Unavailable(why) if why.contains("no response in time")), "{late}");
    close_empty(&client);
}
