//! The loader with a provider.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::fake::{ONE, Rig, TWO, reply, tagged};
use super::*;

/// A scripted provider that counts its calls.
#[derive(Default)]
struct Scripted {
    decides: Mutex<Option<Result<bool, &'static str>>>,
    has: Mutex<Option<&'static str>>,
    fails: Mutex<Option<&'static str>>,
    stored: Mutex<Vec<FlagDefinitions>>,
    shutdowns: AtomicUsize,
    /// The future of an async provider never completes.
    hangs: bool,
}

impl Scripted {
    fn fetching(fetches: bool) -> Arc<Self> {
        let scripted = Self::default();
        *scripted.decides.lock().unwrap() = Some(Ok(fetches));
        Arc::new(scripted)
    }

    fn fail(&self, operation: &'static str) {
        *self.fails.lock().unwrap() = Some(operation);
    }

    fn outcome<T>(&self, operation: &'static str, value: T) -> Result<T, ProviderError> {
        let fails = *self.fails.lock().unwrap();
        match fails {
            Some(name) if name == operation => Err(format!("{operation} is broken").into()),
            Some("panic") => panic!("in the program's provider"),
            _ => Ok(value),
        }
    }

    fn decision(&self) -> Result<bool, ProviderError> {
        let decided = self.decides.lock().unwrap().unwrap_or(Ok(true));
        self.outcome("should_fetch", ())?;
        decided.map_err(Into::into)
    }

    fn content(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        self.outcome("read", self.has.lock().unwrap().map(FlagDefinitions::from_json))
    }

    fn keep(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        self.stored.lock().unwrap().push(definitions.clone());
        self.outcome("store", ())
    }

    fn end(&self) -> Result<(), ProviderError> {
        self.shutdowns.fetch_add(1, SeqCst);
        self.outcome("shutdown", ())
    }
}

struct Blocking(Arc<Scripted>);

impl FlagDefinitionProvider for Blocking {
    fn should_fetch(&self) -> Result<bool, ProviderError> {
        self.0.decision()
    }

    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        self.0.content()
    }

    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        self.0.keep(definitions)
    }

    fn shutdown(&self) -> Result<(), ProviderError> {
        self.0.end()
    }
}

struct Awaited(Arc<Scripted>);

impl Awaited {
    fn later<'a, T: Send + 'a>(
        &'a self,
        what: impl FnOnce(&Scripted) -> Result<T, ProviderError> + Send + 'a,
    ) -> ProviderFuture<'a, T> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.0.hangs {
                std::future::pending::<()>().await;
            }
            what(&self.0)
        })
    }
}

impl AsyncFlagDefinitionProvider for Awaited {
    fn should_fetch(&self) -> ProviderFuture<'_, bool> {
        self.later(Scripted::decision)
    }

    fn read(&self) -> ProviderFuture<'_, Option<FlagDefinitions>> {
        self.later(Scripted::content)
    }

    fn store<'a>(&'a self, definitions: &'a FlagDefinitions) -> ProviderFuture<'a, ()> {
        self.later(|scripted| scripted.keep(definitions))
    }

    fn shutdown(&self) -> ProviderFuture<'_, ()> {
        self.later(Scripted::end)
    }
}

/// Runs a test for both kinds of provider.
fn both(scripted: impl Fn() -> Arc<Scripted>) -> [(Arc<Scripted>, Provider); 2] {
    let (first, second) = (scripted(), scripted());
    let providers =
        [Provider::Sync(Arc::new(Blocking(first.clone()))), Provider::Async(Arc::new(Awaited(second.clone())))];
    let [blocking, awaited] = providers;
    [(first, blocking), (second, awaited)]
}

fn rig(provider: Provider, replies: impl IntoIterator<Item = super::fake::Reply>) -> Rig {
    Rig::with(replies, |parts| parts.options.provider = Some(provider))
}

#[tokio::test(start_paused = true)]
async fn fdl_06_a_provider_that_decides_not_to_fetch_is_read() {
    for (scripted, provider) in both(|| Scripted::fetching(false)) {
        *scripted.has.lock().unwrap() = Some(TWO);
        let rig = rig(provider, []);
        rig.load().await.unwrap();
        assert_eq!((rig.requests(), rig.keys(), rig.loader.state()), (0, Some(2), FlagDefinitionsState::Fresh));
        assert!(rig.reported().is_empty() && scripted.stored.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_07_fdl_08_a_fetched_document_is_used_and_then_stored() {
    for (scripted, provider) in both(|| Scripted::fetching(true)) {
        let rig = rig(provider, [tagged(200, TWO, "1"), tagged(200, TWO, "1")]);
        for times in 1..3 {
            rig.load().await.unwrap();
            assert_eq!((rig.requests(), rig.keys(), scripted.stored.lock().unwrap().len()), (times, Some(2), times));
        }
        assert_eq!(*rig.network.asked.lock().unwrap(), [None, None], "it gets the whole document each time");
    }
}

#[tokio::test(start_paused = true)]
async fn fft_10_minimal_events_survive_the_way_through_a_provider() {
    let writing = Scripted::fetching(true);
    let first = rig(Provider::Sync(Arc::new(Blocking(writing.clone()))), [reply(200, TWO)]);
    first.load().await.unwrap();
    let stored = writing.stored.lock().unwrap().pop().unwrap();
    assert_eq!(stored.as_json(), TWO.as_bytes());

    let reading = Scripted::fetching(false);
    *reading.has.lock().unwrap() = Some(TWO);
    let second = rig(Provider::Sync(Arc::new(Blocking(reading))), []);
    second.load().await.unwrap();
    assert!(second.loader.current().unwrap().flags.wants_minimal_events());
}

#[tokio::test(start_paused = true)]
async fn fdl_09_a_failed_or_invalid_read_keeps_the_definitions() {
    for (scripted, provider) in both(|| Scripted::fetching(false)) {
        *scripted.has.lock().unwrap() = Some(TWO);
        let rig = rig(provider, []);
        rig.load().await.unwrap();
        for (has, fails) in [(Some(TWO), Some("read")), (None, None), (Some("{\"flags\":"), None), (Some("[]"), None)] {
            (*scripted.has.lock().unwrap(), *scripted.fails.lock().unwrap()) = (has, fails);
            assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Provider(_))), "{has:?}");
            assert_eq!((rig.requests(), rig.keys(), rig.loader.state()), (0, Some(2), FlagDefinitionsState::Stale));
        }
        assert_eq!(rig.reported().len(), 1, "reported once, until it has worked again");
        *scripted.has.lock().unwrap() = Some(ONE);
        rig.load().await.unwrap();
        *scripted.has.lock().unwrap() = None;
        assert!(rig.load().await.is_err());
        assert_eq!((rig.cache_failures(), rig.keys()), (vec!["read"], Some(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_09_with_nothing_loaded_and_a_key_posthog_is_asked() {
    for (scripted, provider) in both(|| Scripted::fetching(false)) {
        let rig = rig(provider, [reply(200, ONE)]);
        rig.load().await.unwrap();
        assert_eq!((rig.requests(), rig.keys(), rig.cache_failures()), (1, Some(1), vec!["read"]));
        assert_eq!(scripted.stored.lock().unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_key_there_is_only_what_the_provider_has() {
    for (scripted, provider) in both(|| Scripted::fetching(true)) {
        let rig = Rig::with([], |parts| (parts.options.provider, parts.options.secret_key) = (Some(provider), None));
        assert!(matches!(rig.load().await, Err(FlagDefinitionsError::Provider(_))));
        *scripted.has.lock().unwrap() = Some(ONE);
        rig.load().await.unwrap();
        assert_eq!((rig.requests(), rig.keys()), (0, Some(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_10_a_failed_decision_is_a_request_and_a_warning() {
    for fails in ["should_fetch", "panic"] {
        for (scripted, provider) in both(|| Scripted::fetching(false)) {
            scripted.fail(fails);
            let rig = rig(provider, [reply(200, ONE)]);
            rig.load().await.unwrap();
            assert_eq!((rig.requests(), rig.keys()), (1, Some(1)));
            assert_eq!(rig.cache_failures()[0], "should_fetch");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_10_a_store_that_fails_keeps_the_fresh_copy() {
    for (scripted, provider) in both(|| Scripted::fetching(true)) {
        scripted.fail("store");
        let rig = rig(provider, [reply(200, ONE)]);
        rig.load().await.unwrap();
        assert_eq!((rig.keys(), rig.loader.state()), (Some(1), FlagDefinitionsState::Fresh));
        assert_eq!(rig.cache_failures(), ["store"]);
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_08_a_hanging_provider_has_ten_seconds() {
    let hanging = Provider::Async(Arc::new(Awaited(Arc::new(Scripted { hangs: true, ..Scripted::default() }))));
    let blocking = Provider::Sync(Arc::new(Blocking(Scripted::fetching(false))));
    for (provider, waits) in [(hanging, 20), (blocking, 10)] {
        let threads = Arc::new(Mutex::new(Vec::new()));
        let started = Arc::clone(&threads);
        let mut rig = Rig::with([reply(200, ONE), reply(200, TWO)], |parts| {
            parts.options.provider = Some(provider);
            // A thread that does not run until it is released.
            parts.spawn = Arc::new(move |run| {
                started.lock().unwrap().push(run);
                Ok(())
            });
        });
        let began = Instant::now();
        rig.load().await.unwrap();
        // `should_fetch`, and `store` if `should_fetch` is not known to hang.
        assert_eq!((began.elapsed(), rig.keys()), (Duration::from_secs(waits), Some(1)));
        assert!(threads.lock().unwrap().len() <= 1, "one thread at most hangs");
        assert_eq!(rig.cache_failures(), ["should_fetch", "store"]);
        rig.stop().await;
        assert_eq!(rig.cache_failures(), ["shutdown"]);
    }
}

#[tokio::test(start_paused = true)]
async fn fdl_11_shutdown_is_called_once_and_its_failure_is_a_warning() {
    for fails in [false, true] {
        for (scripted, provider) in both(|| Scripted::fetching(false)) {
            *scripted.has.lock().unwrap() = Some(ONE);
            let mut rig = rig(provider, []);
            rig.load().await.unwrap();
            if fails {
                scripted.fail("shutdown");
            }
            rig.loader.stop(Box::new(|| ()));
            rig.stop().await;
            rig.loader.stop(Box::new(|| ()));
            assert_eq!(scripted.shutdowns.load(SeqCst), 1);
            assert_eq!(rig.cache_failures().len(), usize::from(fails));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_loader_does_not_wait_for_the_shutdown() {
    let hanging = Arc::new(Scripted { hangs: true, ..Scripted::default() });
    let mut rig = rig(Provider::Async(Arc::new(Awaited(hanging))), []);
    let began = Instant::now();
    rig.loader.abandon();
    (&mut rig.task).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}
