//! What the program puts between us and PostHog: a cache of definitions that several processes share.

use std::error::Error;
use std::fmt::{self, Debug};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::handle::Loader;
use crate::sys::clock::Clock;
use crate::sys::limits;
use crate::sys::reentry::{calling_out, caught};

/// Why a provider could not do what it was asked for. Its text becomes a diagnostic.
pub type ProviderError = Box<dyn Error + Send + Sync>;

/// What an [`AsyncFlagDefinitionProvider`] answers with.
pub type ProviderFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ProviderError>> + Send + 'a>>;

/// Definitions of flags as PostHog serves them: one JSON document with the flags, the group types, the cohorts, and whether small
/// `$feature_flag_called` events are wanted. A provider keeps and gives back these bytes as they are. Cheap to clone.
///
/// ```
/// use posthog::FlagDefinitions;
///
/// let definitions = FlagDefinitions::from_json(r#"{"flags":[]}"#);
/// assert_eq!(definitions.as_json(), br#"{"flags":[]}"#);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct FlagDefinitions {
    json: Arc<[u8]>,
}

impl FlagDefinitions {
    /// The document. It is read when it is used: one that cannot be read is as good as none.
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

/// A cache of definitions outside of this process, which blocks while it is asked: a file, a database, a server of one's own.
/// [`Config::flag_definitions_provider`](crate::Config::flag_definitions_provider) has it used.
///
/// At each poll it decides who asks PostHog: of many processes one is enough, and the others read what that one has stored. It is called
/// on a thread of its own, one call at a time, and waited for 10 s; a call that takes longer is given up, and while it still hangs the
/// provider counts as failing. Panics and errors are diagnostics
/// ([`FlagCacheFailed`](crate::Diagnostic::FlagCacheFailed)), and never cost definitions that are there already.
///
/// Follows PostHog's specification `flag-definition-loader`.
///
/// ```
/// use std::{fs, path::PathBuf};
/// use posthog::{FlagDefinitionProvider, FlagDefinitions, ProviderError};
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
    /// Whether this process is to ask PostHog now. If not, [`read`](Self::read) follows. If this fails, PostHog is asked. Without a
    /// secret key there is nobody to ask: then this is not called.
    fn should_fetch(&self) -> Result<bool, ProviderError>;

    /// The definitions that were stored last, by whichever process; `None` if there are none.
    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError>;

    /// Stores what PostHog has answered. This process evaluates with it already.
    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError>;

    /// Called once, when the client is shut down. A call that is given up then does not keep the shutdown.
    fn shutdown(&self) -> Result<(), ProviderError> {
        Ok(())
    }
}

/// The same as [`FlagDefinitionProvider`] for a cache that is asked without blocking.
/// [`Config::flag_definitions_async_provider`](crate::Config::flag_definitions_async_provider) has it used.
///
/// The futures are polled on the client's own thread, on a tokio runtime without I/O or threads for the program: they must not block,
/// or events are not sent meanwhile. What needs the program's own runtime is spawned there, and its end awaited here. Each future is
/// waited for 10 s and then dropped.
///
/// ```
/// use std::sync::Mutex;
/// use posthog::{AsyncFlagDefinitionProvider, FlagDefinitions, ProviderFuture};
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

/// Either kind.
#[derive(Clone)]
pub(crate) enum Provider {
    /// Blocks while it is asked.
    Sync(Arc<dyn FlagDefinitionProvider>),
    /// Is awaited.
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

/// So long a provider is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The provider, and whoever asks it.
pub(super) struct Consultation {
    spawn: Spawn,
    clock: Clock,
    loader: Arc<Loader>,
    provider: Provider,
    /// A call to one that blocks has not returned.
    hangs: Arc<AtomicBool>,
}

impl Consultation {
    /// If there is a provider.
    pub(super) fn new(provider: Provider, spawn: Spawn, clock: Clock, loader: &Arc<Loader>) -> Self {
        Self { spawn, clock, loader: Arc::clone(loader), provider, hangs: Arc::default() }
    }

    /// Whether PostHog is to be asked. Errors are in one line, here and below.
    pub(super) async fn should_fetch(&self) -> Result<bool, String> {
        match &self.provider {
            Provider::Sync(provider) => self.on_a_thread(provider, |provider| provider.should_fetch()).await,
            Provider::Async(provider) => self.polled(|| provider.should_fetch()).await,
        }
    }

    /// What it has.
    pub(super) async fn read(&self) -> Result<Option<FlagDefinitions>, String> {
        match &self.provider {
            Provider::Sync(provider) => self.on_a_thread(provider, |provider| provider.read()).await,
            Provider::Async(provider) => self.polled(|| provider.read()).await,
        }
    }

    /// Gives it what PostHog has answered.
    pub(super) async fn store(&self, definitions: FlagDefinitions) -> Result<(), String> {
        match &self.provider {
            Provider::Sync(provider) => self.on_a_thread(provider, move |provider| provider.store(&definitions)).await,
            Provider::Async(provider) => self.polled(|| provider.store(&definitions)).await,
        }
    }

    /// The last call, which does not wait for one that hangs.
    pub(super) async fn shutdown(mut self) -> Result<(), String> {
        self.hangs = Arc::default();
        match &self.provider {
            Provider::Sync(provider) => self.on_a_thread(provider, |provider| provider.shutdown()).await,
            Provider::Async(provider) => self.polled(|| provider.shutdown()).await,
        }
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        provider: &Arc<dyn FlagDefinitionProvider>,
        call: impl FnOnce(&dyn FlagDefinitionProvider) -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, String> {
        if self.hangs.swap(true, Ordering::AcqRel) {
            return Err("an earlier call has not returned yet".into());
        }
        let (tell, told) = oneshot::channel();
        let (hangs, provider) = (Returned(Arc::clone(&self.hangs)), Arc::clone(provider));
        let run = move || {
            let answer = caught(|| calling_out(|| call(&*provider).map_err(described)));
            drop(hangs);
            let _ = tell.send(answer.unwrap_or_else(panicked));
        };
        (self.spawn)(Box::new(run)).map_err(|error| format!("no thread to ask it on: {error}"))?;
        let _asking = self.loader.asking();
        match within(&self.clock, PATIENCE, told).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => panicked(),
            None => Err(timed_out()),
        }
    }

    async fn polled<'a, T>(&self, call: impl FnOnce() -> ProviderFuture<'a, T>) -> Result<T, String> {
        let Some(future) = caught(|| calling_out(call)) else { return panicked() };
        within(&self.clock, PATIENCE, Polled { future: Some(future) }).await.unwrap_or_else(|| Err(timed_out()))
    }
}

/// The thread has come back from the program's code, or never went there.
struct Returned(Arc<AtomicBool>);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A future of the program: nothing that it panics with goes further than here.
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
    format!("no answer within {PATIENCE:?}")
}

/// What comes of `task` if that is in time.
pub(super) async fn within<T>(clock: &Clock, most: Duration, task: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = task => Some(done),
        () = clock.sleep(most) => None,
    }
}
