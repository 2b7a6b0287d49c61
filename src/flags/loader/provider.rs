//! The program's provider: a cache of definitions that several processes share, and how it is called.
//!
//! A provider is code of the program. It may hang, fail or panic, so each call has a timeout and panics are caught. A
//! blocking provider is called on a thread of its own that ends with the call; while one call hangs, no other is made
//! except the final `shutdown`. The futures of an async provider are polled on the delivery thread and dropped after
//! the timeout.

use std::error::Error;
use std::fmt::{self, Debug};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::handle::Loader;
use crate::sys::clock::Clock;
use crate::sys::limits;
use crate::sys::reentry::{calling_out, caught};

/// The error of a provider. Its text is reported in a diagnostic.
pub type ProviderError = Box<dyn Error + Send + Sync>;

/// The future that a method of an [`AsyncFlagDefinitionProvider`] returns.
pub type ProviderFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// Definitions of flags as PostHog serves them: a JSON document with flags, group types and cohorts. A provider stores
/// and returns these bytes unchanged. Cheap to clone.
///
/// ```
/// use posthog::feature_flags::FlagDefinitions;
///
/// let definitions = FlagDefinitions::from_json(r#"{"flags":[]}"#);
/// assert_eq!(definitions.as_json(), br#"{"flags":[]}"#);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct FlagDefinitions {
    json: Arc<[u8]>,
}

impl FlagDefinitions {
    /// Wraps a document. It is parsed when it is used; a document that cannot be parsed counts as a failed read.
    pub fn from_json(json: impl AsRef<[u8]>) -> Self {
        Self { json: Arc::from(json.as_ref()) }
    }

    /// The document, in UTF-8.
    pub fn as_json(&self) -> &[u8] {
        &self.json
    }
}

impl Debug for FlagDefinitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlagDefinitions").field("bytes", &self.json.len()).finish()
    }
}

/// A blocking cache of definitions outside of this process, such as a file, a database or a server. Set with
/// [`Config::flag_definitions_provider`](crate::Config::flag_definitions_provider).
///
/// At each poll the provider decides whether this process requests the definitions from PostHog. One of many processes
/// is enough; the others read what it stored. Methods are called on a thread of their own, one at a time, with a
/// timeout of 10 s. While a call hangs, further calls fail. Panics and errors are reported as
/// [`FlagCacheFailed`](crate::diagnostics::Diagnostic::FlagCacheFailed) and never discard loaded definitions.
///
/// Follows PostHog's specification `flag-definition-loader`.
///
/// ```
/// use std::{fs, path::PathBuf};
/// use posthog::feature_flags::{FlagDefinitionProvider, FlagDefinitions, ProviderError};
///
/// /// One process fetches, the others read its file.
/// struct OnDisk {
///     path: PathBuf,
///     fetches: bool,
/// }
///
/// impl FlagDefinitionProvider for OnDisk {
///     fn should_fetch(&self) -> Result<bool, ProviderError> {
///         Ok(self.fetches)
///     }
///
///     fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
///         Ok(Some(FlagDefinitions::from_json(fs::read(&self.path)?)))
///     }
///
///     fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
///         let new = self.path.with_extension("new");
///         fs::write(&new, definitions.as_json())?;
///         Ok(fs::rename(new, &self.path)?)
///     }
/// }
/// ```
pub trait FlagDefinitionProvider: Send + Sync {
    /// Whether this process requests the definitions from PostHog now. If not, [`read`](Self::read) is called next. If
    /// this fails, PostHog is asked. Not called without a secret key.
    fn should_fetch(&self) -> Result<bool, ProviderError>;

    /// The definitions stored last, by any process. `None` if there are none.
    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError>;

    /// Stores PostHog's response. This process already uses it.
    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError>;

    /// Called once, when the client is shut down. The shutdown does not wait for it longer than its own deadline.
    fn shutdown(&self) -> Result<(), ProviderError> {
        Ok(())
    }
}

/// The async variant of [`FlagDefinitionProvider`]. Set with
/// [`Config::flag_definitions_async_provider`](crate::Config::flag_definitions_async_provider).
///
/// The futures are polled on the client's delivery thread, on a tokio runtime without I/O and without threads for the
/// program. They must not block, because no events are sent in the meantime. Spawn work that needs the program's own
/// runtime there, and await its result here. A future is dropped after 10 s.
///
/// ```
/// use std::sync::Mutex;
/// use posthog::feature_flags::{AsyncFlagDefinitionProvider, FlagDefinitions, ProviderFuture};
///
/// #[derive(Default)]
/// struct InMemory(Mutex<Option<FlagDefinitions>>);
///
/// impl AsyncFlagDefinitionProvider for InMemory {
///     fn should_fetch(&self) -> ProviderFuture<'_, bool> {
///         Box::pin(async { Ok(self.0.lock().unwrap().is_none()) })
///     }
///
///     fn read(&self) -> ProviderFuture<'_, Option<FlagDefinitions>> {
///         Box::pin(async { Ok(self.0.lock().unwrap().clone()) })
///     }
///
///     fn store<'a>(&'a self, definitions: &'a FlagDefinitions) -> ProviderFuture<'a, ()> {
///         Box::pin(async {
///             *self.0.lock().unwrap() = Some(definitions.clone());
///             Ok(())
///         })
///     }
/// }
/// ```
pub trait AsyncFlagDefinitionProvider: Send + Sync {
    /// See [`FlagDefinitionProvider::should_fetch`].
    fn should_fetch(&self) -> ProviderFuture<'_, bool>;

    /// See [`FlagDefinitionProvider::read`].
    fn read(&self) -> ProviderFuture<'_, Option<FlagDefinitions>>;

    /// See [`FlagDefinitionProvider::store`].
    fn store<'a>(&'a self, definitions: &'a FlagDefinitions) -> ProviderFuture<'a, ()>;

    /// See [`FlagDefinitionProvider::shutdown`].
    fn shutdown(&self) -> ProviderFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A provider of either kind.
#[derive(Clone)]
pub(crate) enum Provider {
    Sync(Arc<dyn FlagDefinitionProvider>),
    Async(Arc<dyn AsyncFlagDefinitionProvider>),
}

impl Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Sync(_) => "Provider::Sync",
            Provider::Async(_) => "Provider::Async",
        })
    }
}

/// Starts a thread on which code of the program may block.
pub(crate) type Spawn = Arc<dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send + Sync>;

/// Timeout of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls a provider. Errors are one line.
pub(super) struct ProviderCalls {
    spawn: Spawn,
    clock: Clock,
    loader: Arc<Loader>,
    provider: Provider,
    /// Shared with the thread on which a blocking provider is being called.
    in_call: Arc<()>,
}

impl ProviderCalls {
    pub(super) fn new(provider: Provider, spawn: Spawn, clock: Clock, loader: &Arc<Loader>) -> Self {
        Self { spawn, clock, loader: Arc::clone(loader), provider, in_call: Arc::default() }
    }

    pub(super) async fn should_fetch(&self) -> Result<bool, String> {
        match &self.provider {
            Provider::Sync(provider) => self.on_thread(provider, |provider| provider.should_fetch()).await,
            Provider::Async(provider) => self.polled(|| provider.should_fetch()).await,
        }
    }

    pub(super) async fn read(&self) -> Result<Option<FlagDefinitions>, String> {
        match &self.provider {
            Provider::Sync(provider) => self.on_thread(provider, |provider| provider.read()).await,
            Provider::Async(provider) => self.polled(|| provider.read()).await,
        }
    }

    pub(super) async fn store(&self, definitions: FlagDefinitions) -> Result<(), String> {
        match &self.provider {
            Provider::Sync(provider) => self.on_thread(provider, move |provider| provider.store(&definitions)).await,
            Provider::Async(provider) => self.polled(|| provider.store(&definitions)).await,
        }
    }

    /// The last call. It is made even while an earlier call hangs.
    pub(super) async fn shutdown(mut self) -> Result<(), String> {
        self.in_call = Arc::default();
        match &self.provider {
            Provider::Sync(provider) => self.on_thread(provider, |provider| provider.shutdown()).await,
            Provider::Async(provider) => self.polled(|| provider.shutdown()).await,
        }
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        provider: &Arc<dyn FlagDefinitionProvider>,
        call: impl FnOnce(&dyn FlagDefinitionProvider) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, String> {
        if Arc::strong_count(&self.in_call) > 1 {
            return Err("an earlier call has not returned yet".into());
        }
        let (sender, result) = oneshot::channel();
        let (in_call, provider) = (Arc::clone(&self.in_call), Arc::clone(provider));
        let run = move || {
            let result = caught(|| calling_out(|| call(&*provider).map_err(described)));
            drop(in_call);
            let _ = sender.send(result.unwrap_or_else(panicked));
        };
        (self.spawn)(Box::new(run)).map_err(|error| format!("cannot start a thread for the call: {error}"))?;
        self.loader.calls_provider(true);
        let result = self.clock.within(CALL_TIMEOUT, result).await;
        self.loader.calls_provider(false);
        match result {
            Some(Ok(result)) => result,
            Some(Err(_)) => panicked(),
            None => Err(timed_out()),
        }
    }

    async fn polled<'a, T>(&self, call: impl FnOnce() -> ProviderFuture<'a, T>) -> Result<T, String> {
        let Some(future) = caught(|| calling_out(call)) else { return panicked() };
        let polled = Polled { future: Some(future) };
        self.clock.within(CALL_TIMEOUT, polled).await.unwrap_or_else(|| Err(timed_out()))
    }
}

/// A future of the program. Catches panics when it is polled or dropped.
struct Polled<'a, T> {
    future: Option<ProviderFuture<'a, T>>,
}

impl<T> Future for Polled<'_, T> {
    type Output = Result<T, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.future else { return Poll::Ready(panicked()) };
        let polled = caught(|| calling_out(|| future.as_mut().poll(context).map_err(described)));
        polled.unwrap_or_else(|| Poll::Ready(panicked()))
    }
}

impl<T> Drop for Polled<'_, T> {
    fn drop(&mut self) {
        let future = self.future.take();
        caught(|| drop(future));
    }
}

fn described(error: ProviderError) -> String {
    limits::foreign(&error.to_string(), limits::DETAIL_KEPT)
}

fn panicked<T>() -> Result<T, String> {
    Err("it panicked".into())
}

fn timed_out() -> String {
    format!("no result within {CALL_TIMEOUT:?}")
}
