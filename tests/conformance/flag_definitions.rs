//! Definitions of flags (FDL): loaded, polled, cleared.

use std::time::Duration;

use posthog::diagnostics::DiagnosticCategory;
use posthog::feature_flags::{FlagContext, FlagDefinitionsError, FlagDefinitionsState};
use posthog::testing::{Answer, Harness, RecordedRequest, Route};
use serde_json::{Value, json};

use crate::fixture::PATIENCE;
use crate::scenario::has_recorded;

/// The poll interval with its jitter.
const INTERVAL: Duration = Duration::from_secs(33);

/// Definitions of these flags, on for everyone.
pub(crate) fn definitions(keys: &[&str]) -> Value {
    let on = |key: &&str| json!({"key": key, "active": true, "has_experiment": false, "filters": {"groups": [{}]}});
    json!({"flags": keys.iter().map(on).collect::<Vec<_>>(), "group_type_mapping": {"0": "company"}, "cohorts": {}})
}

/// A client that has loaded these flags. The recorded requests are cleared.
fn knowing(keys: &[&str]) -> Harness {
    let harness = Harness::new(|config| config.secret_key("phs_secret")).unwrap();
    harness.settle();
    harness.server().always(Route::FlagDefinitions, Answer::json(definitions(keys)).etag("\"1\""));
    refresh(&harness).unwrap();
    harness.server().forget();
    harness
}

pub(crate) fn refresh(harness: &Harness) -> Result<(), FlagDefinitionsError> {
    harness.client().reload_flag_definitions().wait(PATIENCE)
}

pub(crate) fn keys(harness: &Harness) -> Vec<String> {
    harness.client().local_flags().map(|flags| flags.keys().map(str::to_owned).collect()).unwrap_or_default()
}

pub(crate) fn asked(harness: &Harness) -> Vec<RecordedRequest> {
    let requests = harness.server().requests().into_iter();
    requests.filter(|request| request.route == Route::FlagDefinitions).collect()
}

pub(crate) fn state(harness: &Harness) -> FlagDefinitionsState {
    harness.client().flag_definitions_state()
}

#[test]
fn fdl_01_a_refresh_loads_definitions_and_reports_them_fresh() {
    let harness = knowing(&["a"]);
    harness.server().always(Route::FlagDefinitions, Answer::json(definitions(&["a", "b"])));
    assert_eq!(refresh(&harness), Ok(()));
    let age = harness.client().flag_definitions_age();
    assert_eq!(
        (keys(&harness).join(","), state(&harness), age),
        ("a,b".into(), FlagDefinitionsState::Fresh, Some(Duration::ZERO))
    );
    let on = harness.client().evaluate_flags(FlagContext::new("user_1")).try_get().unwrap();
    assert!(on.is_enabled("a") && on.is_enabled("b"));
}

#[test]
fn fdl_02_a_failed_refresh_keeps_definitions_and_warns() {
    let harness = knowing(&["a"]);
    harness.server().always(Route::FlagDefinitions, Answer::status(503));
    harness.clock().advance(Duration::from_secs(7));
    assert!(matches!(refresh(&harness), Err(FlagDefinitionsError::Unavailable(_))));
    let age = harness.client().flag_definitions_age();
    assert_eq!((keys(&harness).join(","), state(&harness)), ("a".into(), FlagDefinitionsState::Stale));
    assert_eq!(age, Some(Duration::from_secs(7)), "and says how old they are");
    assert!(has_recorded(harness.client(), DiagnosticCategory::FlagDefinitions));
    assert!(harness.client().known_flags("user_1").is_enabled("a"));
}

#[test]
fn fdl_03_it_polls_after_the_interval_without_a_call() {
    let harness = knowing(&["a"]);
    harness.server().always(Route::FlagDefinitions, Answer::json(definitions(&["a", "b"])));
    harness.advance(Duration::from_secs(26));
    assert_eq!((asked(&harness).len(), keys(&harness).len()), (0, 1));
    harness.advance(INTERVAL - Duration::from_secs(26));
    assert_eq!((asked(&harness).len(), keys(&harness).len()), (1, 2));
}

#[test]
fn fdl_04_definitions_have_their_own_endpoint_and_secret() {
    let harness = knowing(&["a"]);
    refresh(&harness).unwrap();
    let _answer = harness.client().evaluate_flags(FlagContext::new("u").ask_posthog(true)).wait(PATIENCE);
    let requests = harness.server().requests();
    let seen = |request: &RecordedRequest| (request.url.clone(), request.header("authorization").map(str::to_owned));
    let definitions = "http://posthog.test/flags/definitions?token=phc_testing&send_cohorts".to_owned();
    assert_eq!(seen(&requests[0]), (definitions, Some("Bearer phs_secret".into())));
    assert_eq!(seen(&requests[1]), ("http://posthog.test/flags/?v=2".into(), None));
    assert_eq!(requests.len(), 2);
}

#[test]
fn fdl_04_a_known_version_is_not_sent_again_and_is_fresh() {
    let harness = knowing(&["a"]);
    let unchanged = || Answer::status(304).etag("\"2\"");
    harness.server().always(Route::FlagDefinitions, unchanged());
    harness.clock().advance(Duration::from_secs(7));
    assert_eq!((refresh(&harness), refresh(&harness)), (Ok(()), Ok(())));
    let versions: Vec<_> =
        asked(&harness).iter().map(|request| request.header("if-none-match").map(str::to_owned)).collect();
    assert_eq!(versions, [Some("\"1\"".into()), Some("\"2\"".into())]);
    let age = harness.client().flag_definitions_age();
    assert_eq!((keys(&harness).len(), state(&harness), age), (1, FlagDefinitionsState::Fresh, Some(Duration::ZERO)));
}

#[test]
fn fdl_04_a_refused_key_clears_and_is_retried_late() {
    for status in [401, 402, 403] {
        let harness = knowing(&["a"]);
        let refused = Answer::status(status).body(r#"{"type":"authentication_error","detail":"no"}"#);
        harness.server().always(Route::FlagDefinitions, refused);
        assert!(matches!(refresh(&harness), Err(FlagDefinitionsError::Refused { status: of, .. }) if of == status));
        assert_eq!((keys(&harness).len(), state(&harness)), (0, FlagDefinitionsState::Missing));
        harness.advance(Duration::from_secs(299));
        assert_eq!(asked(&harness).len(), 1, "once");
        // A proxy that responds with the same status clears nothing.
        let harness = knowing(&["a"]);
        harness.server().always(Route::FlagDefinitions, Answer::status(status).body("<html>Sign in</html>"));
        assert!(matches!(refresh(&harness), Err(FlagDefinitionsError::Unavailable(_))));
        assert_eq!(keys(&harness).len(), 1);
    }
}

#[test]
fn fdl_04_one_load_at_a_time_and_readers_see_one_set() {
    let harness = knowing(&["a"]);
    let slow = Answer::json(definitions(&["b", "c"])).delay(Duration::from_secs(2));
    harness.server().always(Route::FlagDefinitions, slow);
    let loads = [(); 3].map(|()| harness.client().reload_flag_definitions());
    harness.settle();
    let before = harness.client().local_flags().unwrap();
    assert_eq!((asked(&harness).len(), before.keys().collect::<Vec<_>>()), (1, vec!["a"]));
    harness.advance(Duration::from_secs(2));
    for load in loads {
        assert_eq!(load.try_get(), Some(Ok(())));
    }
    assert_eq!((keys(&harness), before.keys().collect::<Vec<_>>()), (vec!["b".into(), "c".into()], vec!["a"]));
    assert_eq!(asked(&harness).len(), 1);
}

#[test]
fn fdl_04_a_reset_clears_definitions_and_they_are_loaded_again() {
    let harness = knowing(&["a"]);
    let slow = Answer::json(definitions(&["b", "c"])).delay(Duration::from_secs(2));
    harness.server().always(Route::FlagDefinitions, slow);
    let before = harness.client().evaluate_flags("user_1").try_get().unwrap();
    harness.client().reset_flag_definitions();
    assert_eq!((keys(&harness).len(), state(&harness)), (0, FlagDefinitionsState::Missing));
    assert!(harness.client().flag_definitions_age().is_none() && before.is_enabled("a"));
    harness.settle();
    harness.advance(Duration::from_secs(2));
    assert_eq!((keys(&harness).join(","), state(&harness)), ("b,c".into(), FlagDefinitionsState::Fresh));
    let versions: Vec<_> = asked(&harness).iter().map(|request| request.header("if-none-match").is_some()).collect();
    assert_eq!(versions, [false], "nobody asks whether what was cleared is the newest");
}
