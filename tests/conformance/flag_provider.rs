//! Definitions of flags (FDL) that several processes share through a provider.

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthog::Config;
use posthog::diagnostics::{Diagnostic, DiagnosticCategory};
use posthog::feature_flags::{
    AsyncFlagDefinitionProvider, FlagContext, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError,
    FlagDefinitionsState, ProviderError, ProviderFuture,
};
use posthog::testing::{Answer, Harness, Route};
use serde_json::json;

use crate::fixture::PATIENCE;
use crate::flag_definitions::{asked, definitions, keys, refresh, state};

/// A scripted provider that records its calls.
#[derive(Default)]
struct Cache {
    calls: Mutex<Vec<&'static str>>,
    /// Another process fetches.
    only_reads: Mutex<bool>,
    fails: Mutex<Option<&'static str>>,
    content: Mutex<Option<FlagDefinitions>>,
}

impl Cache {
    /// A provider that another process has filled.
    fn of(keys: &[&str]) -> Arc<Self> {
        let content = FlagDefinitions::from_json(definitions(keys).to_string());
        Arc::new(Self { only_reads: true.into(), content: Some(content).into(), ..Self::default() })
    }

    fn called<T>(&self, operation: &'static str, outcome: impl FnOnce() -> T) -> Result<T, ProviderError> {
        self.calls.lock().unwrap().push(operation);
        let is_broken = *self.fails.lock().unwrap() == Some(operation);
        if is_broken { Err(format!("{operation} is broken").into()) } else { Ok(outcome()) }
    }

    fn should_fetch(&self) -> Result<bool, ProviderError> {
        self.called("should_fetch", || !*self.only_reads.lock().unwrap())
    }

    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        self.called("read", || self.content.lock().unwrap().clone())
    }

    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        self.called("store", || *self.content.lock().unwrap() = Some(definitions.clone()))
    }

    fn shutdown(&self) -> Result<(), ProviderError> {
        self.called("shutdown", || ())
    }

    /// Takes the calls so far.
    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

struct Blocking(Arc<Cache>);

impl FlagDefinitionProvider for Blocking {
    fn should_fetch(&self) -> Result<bool, ProviderError> {
        self.0.should_fetch()
    }

    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        self.0.read()
    }

    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        self.0.store(definitions)
    }

    fn shutdown(&self) -> Result<(), ProviderError> {
        self.0.shutdown()
    }
}

struct Awaited(Arc<Cache>);

impl AsyncFlagDefinitionProvider for Awaited {
    fn should_fetch(&self) -> ProviderFuture<'_, bool> {
        Box::pin(ready(self.0.should_fetch()))
    }

    fn read(&self) -> ProviderFuture<'_, Option<FlagDefinitions>> {
        Box::pin(ready(self.0.read()))
    }

    /// Not ready at once, so that it has to be awaited.
    fn store<'a>(&'a self, definitions: &'a FlagDefinitions) -> ProviderFuture<'a, ()> {
        Box::pin(async {
            tokio::task::yield_now().await;
            self.0.store(definitions)
        })
    }

    fn shutdown(&self) -> ProviderFuture<'_, ()> {
        Box::pin(ready(self.0.shutdown()))
    }
}

/// Runs a test for both kinds of provider. The client has loaded the provider's definitions and has sent no request.
fn with_a_cache_of_either_kind(keys: &[&str], scenario: impl Fn(Arc<Cache>, Harness)) {
    let blocking = |cache: Arc<Cache>| move |config: Config| config.flag_definitions_provider(Blocking(cache));
    let awaited = |cache: Arc<Cache>| move |config: Config| config.flag_definitions_async_provider(Awaited(cache));
    let begin = |cache: Arc<Cache>, harness: Harness| {
        assert_eq!(refresh(&harness), Ok(()));
        harness.settle();
        assert!(asked(&harness).is_empty());
        cache.calls();
        scenario(cache, harness);
    };
    let (one, other) = (Cache::of(keys), Cache::of(keys));
    let with_key = |config: Config| config.secret_key("phs_secret");
    begin(one.clone(), Harness::new(|config| blocking(one)(with_key(config))).unwrap());
    begin(other.clone(), Harness::new(|config| awaited(other)(with_key(config))).unwrap());
}

/// The operations of the provider whose failures were reported.
fn cache_warnings(harness: &Harness) -> Vec<&'static str> {
    let diagnostics = harness.client().diagnostics();
    let failed = |diagnostic: &Diagnostic| match diagnostic {
        Diagnostic::FlagCacheFailed { operation, .. } => Some(*operation),
        _ => None,
    };
    assert!(
        diagnostics
            .iter()
            .all(|diagnostic| failed(diagnostic).is_none() || diagnostic.category() == DiagnosticCategory::FlagCache)
    );
    diagnostics.iter().filter_map(failed).collect()
}

/// The document contains group types, cohorts and the switch for minimal events, so evaluations are as if it came from
/// PostHog.
#[test]
fn fdl_05_a_provider_supplies_everything_for_evaluation() {
    with_a_cache_of_either_kind(&["a"], |cache, harness| {
        let mut all = definitions(&["a"]);
        all["minimal_flag_called_events"] = true.into();
        all["cohorts"] =
            json!({"7": {"type": "AND", "values": [{"key": "plan", "value": "pro", "operator": "exact"}]}});
        let in_cohort = json!([{"properties": [{"key": "id", "type": "cohort", "value": 7}]}]);
        let of_groups = json!({"aggregation_group_type_index": 0, "groups": [{}]});
        for (key, filters) in [("of-cohort", json!({"groups": in_cohort})), ("of-company", of_groups)] {
            let flag = json!({"key": key, "active": true, "filters": filters});
            all["flags"].as_array_mut().unwrap().push(flag);
        }
        *cache.content.lock().unwrap() = Some(FlagDefinitions::from_json(all.to_string()));
        refresh(&harness).unwrap();
        assert_eq!(cache.calls(), ["should_fetch", "read"]);
        let who = FlagContext::new("u").person_property("plan", "pro").group("company", "acme");
        let flags = harness.client().evaluate_flags(who).try_get().unwrap();
        assert!(flags.is_enabled("a") && flags.is_enabled("of-cohort") && flags.is_enabled("of-company"));
        let called = harness.queued().into_iter().find(|event| event.properties["$feature_flag"] == "a").unwrap();
        assert!(!called.properties.contains_key("$feature/a"), "a minimal event");
    });
}

#[test]
fn fdl_06_a_provider_that_decides_not_to_fetch_is_read() {
    with_a_cache_of_either_kind(&["a"], |cache, harness| {
        cache.store(&FlagDefinitions::from_json(definitions(&["a", "b"]).to_string())).unwrap();
        cache.calls();
        assert_eq!(refresh(&harness), Ok(()));
        assert_eq!((cache.calls(), keys(&harness).join(",")), (vec!["should_fetch", "read"], "a,b".into()));
        assert_eq!((asked(&harness).len(), state(&harness)), (0, FlagDefinitionsState::Fresh));
    });
}

#[test]
fn fdl_07_definitions_that_are_fetched_are_used_and_stored() {
    with_a_cache_of_either_kind(&["a"], |cache, harness| {
        *cache.only_reads.lock().unwrap() = false;
        let document = definitions(&["b", "c"]).to_string();
        harness.server().always(Route::FlagDefinitions, Answer::ok().body(document.clone()));
        assert_eq!(refresh(&harness), Ok(()));
        assert_eq!((asked(&harness).len(), keys(&harness).join(",")), (1, "b,c".into()));
        assert_eq!(cache.calls(), ["should_fetch", "store"]);
        assert_eq!(cache.content.lock().unwrap().as_ref().unwrap().as_json(), document.as_bytes());
    });
}

/// Finishes the first `store` after a message on the channel, and no further one.
struct Slow(Arc<Cache>, Mutex<Option<tokio::sync::oneshot::Receiver<()>>>);

impl AsyncFlagDefinitionProvider for Slow {
    fn should_fetch(&self) -> ProviderFuture<'_, bool> {
        Box::pin(ready(Ok(true)))
    }

    fn read(&self) -> ProviderFuture<'_, Option<FlagDefinitions>> {
        Box::pin(ready(Ok(None)))
    }

    fn store<'a>(&'a self, definitions: &'a FlagDefinitions) -> ProviderFuture<'a, ()> {
        let receiver = self.1.lock().unwrap().take();
        Box::pin(async {
            match receiver {
                Some(receiver) => drop(receiver.await),
                None => std::future::pending().await,
            }
            self.0.store(definitions)
        })
    }
}

#[test]
fn fdl_08_a_provider_is_awaited_but_not_forever() {
    let cache = Arc::new(Cache::default());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let slow = Slow(Arc::clone(&cache), Some(receiver).into());
    let harness = Harness::new(|config| config.secret_key("phs_secret").flag_definitions_async_provider(slow)).unwrap();
    harness.settle();
    let load = harness.client().reload_flag_definitions();
    harness.settle();
    assert_eq!((asked(&harness).len(), load.try_get(), keys(&harness).len()), (1, None, 0));
    assert!(harness.client().local_flags().is_some(), "used already");
    sender.send(()).unwrap();
    assert_eq!((load.wait(PATIENCE), cache.calls()), (Ok(()), vec!["store"]));
    // The next one never finishes storing.
    let load = harness.client().reload_flag_definitions();
    harness.advance(Duration::from_secs(9));
    assert_eq!((asked(&harness).len(), load.try_get()), (2, None));
    harness.advance(Duration::from_secs(1));
    assert_eq!((load.try_get(), cache_warnings(&harness)), (Some(Ok(())), vec!["store"]));
}

#[test]
fn fdl_09_a_failed_or_empty_read_keeps_definitions() {
    for content in [None, Some(r#"{"flags": 7}"#), Some("<html>")] {
        with_a_cache_of_either_kind(&["a"], |cache, harness| {
            *cache.content.lock().unwrap() = content.map(FlagDefinitions::from_json);
            assert!(matches!(refresh(&harness), Err(FlagDefinitionsError::Provider(_))));
            assert_eq!((keys(&harness).join(","), cache_warnings(&harness)), ("a".into(), vec!["read"]));
            assert_eq!((asked(&harness).len(), state(&harness)), (0, FlagDefinitionsState::Stale));
        });
    }
    with_a_cache_of_either_kind(&["a"], |cache, harness| {
        *cache.fails.lock().unwrap() = Some("read");
        assert!(refresh(&harness).is_err());
        assert_eq!((keys(&harness).join(","), cache_warnings(&harness)), ("a".into(), vec!["read"]));
    });
}

#[test]
fn fdl_10_with_a_failing_provider_a_fetch_succeeds_and_warns() {
    for broken in ["should_fetch", "store"] {
        with_a_cache_of_either_kind(&["a"], |cache, harness| {
            *cache.only_reads.lock().unwrap() = false;
            *cache.fails.lock().unwrap() = Some(broken);
            harness.server().always(Route::FlagDefinitions, Answer::json(definitions(&["b", "c"])));
            assert_eq!((refresh(&harness), asked(&harness).len()), (Ok(()), 1));
            assert_eq!((keys(&harness).join(","), cache_warnings(&harness)), ("b,c".into(), vec![broken]));
        });
    }
}

#[test]
fn fdl_11_a_provider_is_shut_down_once_even_if_it_fails() {
    for broken in [None, Some("shutdown")] {
        with_a_cache_of_either_kind(&["a"], |cache, harness| {
            *cache.fails.lock().unwrap() = broken;
            for _ in 0..2 {
                assert_eq!(harness.client().close().wait(PATIENCE).unwrap().remaining, 0);
            }
            assert_eq!(cache.calls(), ["shutdown"]);
            assert_eq!(cache_warnings(&harness), broken.into_iter().collect::<Vec<_>>());
        });
    }
}
