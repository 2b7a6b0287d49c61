//! The loader of flag definitions on a manual clock: polls, definitions kept over a restart, a provider, and its
//! shutdown with the client.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, Harness, Route};
use crate::Config;
use crate::diagnostics::{Diagnostic, DiagnosticCategory};
use crate::feature_flags::{
    FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, FlagDefinitionsState, ProviderError,
};
use crate::stats::HealthCause;

const MINUTE: Duration = Duration::from_secs(60);
const SECRET: &str = "phx_verysecret";

fn definitions(keys: &[&str]) -> Value {
    let flag = |key: &&str| json!({"key": key, "active": true, "filters": {"groups": [{"properties": []}]}});
    json!({"flags": keys.iter().map(flag).collect::<Vec<_>>(), "group_type_mapping": {}, "cohorts": {}})
}

fn with_key(config: Config) -> Config {
    config.secret_key(SECRET)
}

fn harness(configure: impl FnOnce(Config) -> Config) -> Harness {
    let harness = Harness::new(configure).unwrap();
    harness.settle();
    harness
}

fn requests(harness: &Harness) -> usize {
    harness.server().requests().iter().filter(|request| request.route == Route::FlagDefinitions).count()
}

fn keys(harness: &Harness) -> Option<Vec<String>> {
    harness.client().local_flags().map(|flags| flags.keys().map(str::to_owned).collect())
}

fn reload(harness: &Harness) -> Result<(), FlagDefinitionsError> {
    let loaded = harness.client().reload_flag_definitions();
    harness.settle();
    loaded.try_get().unwrap()
}

fn failures(harness: &Harness, of: DiagnosticCategory) -> Vec<Diagnostic> {
    harness.client().diagnostics().into_iter().filter(|diagnostic| diagnostic.category() == of).collect()
}

#[test]
fn fdl_03_definitions_are_loaded_at_start_and_polled() {
    let harness = harness(with_key);
    assert_eq!((requests(&harness), keys(&harness)), (1, Some(vec![])));
    harness.server().script(Route::FlagDefinitions, [Answer::json(definitions(&["a"])).etag("W/\"1\"")]);
    harness.advance(Duration::from_secs(26));
    assert_eq!(requests(&harness), 1);
    harness.advance(Duration::from_secs(8));
    assert_eq!((requests(&harness), keys(&harness)), (2, Some(vec!["a".into()])));
    harness.server().script(Route::FlagDefinitions, [Answer::status(304)]);
    harness.advance(Duration::from_secs(34));
    let request = harness.server().requests().pop().unwrap();
    assert_eq!(request.url, "http://posthog.test/flags/definitions?token=phc_testing&send_cohorts");
    assert_eq!(request.header("authorization"), Some("Bearer phx_verysecret"));
    assert_eq!(request.header("if-none-match"), Some("W/\"1\""));
    assert_eq!(harness.client().flag_definitions_state(), FlagDefinitionsState::Fresh);
    assert_eq!(harness.client().flag_definitions_age(), Some(Duration::ZERO));
}

#[test]
fn with_neither_key_nor_provider_nothing_is_polled() {
    let harness = harness(|config| config);
    harness.advance(100 * MINUTE);
    assert!(harness.server().requests().is_empty());
    assert_eq!(reload(&harness), Err(FlagDefinitionsError::NotConfigured));
    assert_eq!((keys(&harness), harness.client().flag_definitions_state()), (None, FlagDefinitionsState::Missing));
}

#[test]
fn fdl_02_an_outage_is_reported_at_its_start_and_end() {
    let harness = harness(with_key);
    harness.server().always(Route::FlagDefinitions, Answer::status(503));
    harness.advance(10 * MINUTE);
    assert!(reload(&harness).is_err());
    assert_eq!(harness.client().flag_definitions_age(), Some(10 * MINUTE));
    assert_eq!(harness.client().flag_definitions_state(), FlagDefinitionsState::Stale);
    let has_problem = || harness.client().health().has(HealthCause::FlagDefinitions);
    assert!(has_problem());
    harness.server().always(Route::FlagDefinitions, Answer::ok());
    reload(&harness).unwrap();
    assert!(!has_problem());
    let reported = failures(&harness, DiagnosticCategory::FlagDefinitions);
    assert!(
        matches!(&reported[..], [Diagnostic::FlagDefinitionsUnavailable { .. }, Diagnostic::FlagDefinitionsRecovered]),
        "{reported:?}"
    );
    assert!(!format!("{reported:?}").contains(SECRET));
}

#[test]
fn a_process_started_in_an_outage_uses_kept_definitions() {
    let first = harness(with_key);
    first.server().script(Route::FlagDefinitions, [Answer::json(definitions(&["a", "b"])).etag("\"7\"")]);
    reload(&first).unwrap();
    first.settle();
    first.server().always(Route::FlagDefinitions, Answer::unreachable());
    first.advance(MINUTE);
    first.server().forget();

    let next = first.restart(with_key).unwrap();
    assert_eq!(keys(&next), Some(vec!["a".into(), "b".into()]), "before any request was answered");
    next.settle();
    assert_eq!(next.client().flag_definitions_state(), FlagDefinitionsState::Restored);
    assert_eq!(next.client().flag_definitions_age(), Some(MINUTE));
    assert_eq!(next.server().requests()[0].header("if-none-match"), Some("\"7\""));

    next.server().always(Route::FlagDefinitions, Answer::status(304));
    reload(&next).unwrap();
    assert_eq!(next.client().flag_definitions_state(), FlagDefinitionsState::Fresh);
    assert_eq!(next.client().flag_definitions_age(), Some(Duration::ZERO));

    // A client that does not keep definitions, or has no secret key, does not find them.
    let unkept = next.restart(|config| with_key(config).keep_flag_definitions(false)).unwrap();
    assert_eq!(keys(&unkept), None);
    let keyless = unkept.restart(|config| config).unwrap();
    assert_eq!(keys(&keyless), None);
}

#[test]
fn fdl_04_definitions_of_a_revoked_key_are_not_restored() {
    let first = harness(with_key);
    assert!(keys(&first).is_some());
    let refused = json!({"type": "authentication_error", "code": "invalid_api_key", "detail": "no"});
    first.server().always(Route::FlagDefinitions, Answer::status(401).body(refused.to_string()));
    assert!(matches!(reload(&first), Err(FlagDefinitionsError::Refused { status: 401, .. })));
    first.settle();
    assert_eq!(keys(&first), None);
    first.server().always(Route::FlagDefinitions, Answer::unreachable());
    let next = first.restart(with_key).unwrap();
    assert_eq!(keys(&next), None);
}

/// Whether any file below `dir` contains `needle`.
fn contains(dir: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return contains(&path, needle);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[test]
fn the_secret_key_is_never_written_to_disk() {
    let mut place = None;
    let dir = tempfile::tempdir().unwrap();
    let harness = harness(|config| {
        place = Some(dir.path().to_path_buf());
        with_key(config).queue_dir(dir.path())
    });
    reload(&harness).unwrap();
    harness.settle();
    let place = place.unwrap();
    assert!(contains(&place, b"flag_definitions"), "the definitions are kept");
    assert!(!contains(&place, SECRET.as_bytes()));
}

#[derive(Default)]
struct Shared {
    stored: Mutex<Vec<FlagDefinitions>>,
    fetches: std::sync::atomic::AtomicBool,
    shutdowns: AtomicUsize,
    fails: bool,
}

struct Cache(Arc<Shared>);

impl FlagDefinitionProvider for Cache {
    fn should_fetch(&self) -> Result<bool, ProviderError> {
        Ok(self.0.fetches.load(SeqCst))
    }

    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        Ok(self.0.stored.lock().unwrap().last().cloned())
    }

    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        self.0.stored.lock().unwrap().push(definitions.clone());
        Ok(())
    }

    fn shutdown(&self) -> Result<(), ProviderError> {
        self.0.shutdowns.fetch_add(1, SeqCst);
        if self.0.fails { Err("no way out".into()) } else { Ok(()) }
    }
}

#[test]
fn fdl_05_one_process_fetches_and_the_other_reads() {
    let shared = Arc::new(Shared::default());
    shared.fetches.store(true, SeqCst);
    let fetching = harness(|config| with_key(config).flag_definitions_provider(Cache(shared.clone())));
    assert_eq!((requests(&fetching), shared.stored.lock().unwrap().len()), (1, 1));
    shared.fetches.store(false, SeqCst);
    let reading = harness(|config| config.flag_definitions_provider(Cache(shared.clone())));
    assert_eq!((requests(&reading), keys(&reading)), (0, Some(vec![])));
}

#[test]
fn fdl_11_the_provider_is_shut_down_once_with_the_client() {
    for fails in [false, true] {
        let shared = Arc::new(Shared { fails, ..Shared::default() });
        let harness = harness(|config| with_key(config).flag_definitions_provider(Cache(shared.clone())));
        let closed = harness.client().close();
        assert!(closed.wait(MINUTE).is_ok());
        assert_eq!(shared.shutdowns.load(SeqCst), 1);
        let reported = failures(&harness, DiagnosticCategory::FlagCache);
        let shutdowns = reported
            .iter()
            .filter(|reported| matches!(reported, Diagnostic::FlagCacheFailed { operation: "shutdown", .. }))
            .count();
        assert_eq!(shutdowns, usize::from(fails), "{reported:?}");
        assert_eq!(reload(&harness), Err(FlagDefinitionsError::Closed));
        drop(harness);
        assert_eq!(shared.shutdowns.load(SeqCst), 1);
    }
}
