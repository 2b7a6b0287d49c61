//! Asking the program's provider, which may hang, fail or panic.
//!
//! One that blocks is asked on a thread that ends with the answer; while a call hangs there is no second one (but for the last, the
//! shutdown). One that is awaited is polled here, and dropped when its time is up.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::fetch::within;
use super::mailbox::Loader;
use super::options::LoaderParts;
use super::provider::{FlagDefinitionProvider, FlagDefinitions, Provider, ProviderError, ProviderFuture};
use crate::sys::limits;
use crate::sys::reentry::{calling_out, caught};

/// So long a provider is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The provider, and whoever asks it.
pub(super) struct Consultation {
    parts: LoaderParts,
    loader: Arc<Loader>,
    provider: Provider,
    /// A call to one that blocks has not returned.
    hangs: Arc<AtomicBool>,
}

impl Consultation {
    /// If there is a provider.
    pub(super) fn new(parts: &LoaderParts, loader: &Arc<Loader>) -> Option<Self> {
        let provider = parts.options.provider.clone()?;
        Some(Self { parts: parts.clone(), loader: Arc::clone(loader), provider, hangs: Arc::default() })
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
        (self.parts.spawn)(Box::new(run)).map_err(|error| format!("no thread to ask it on: {error}"))?;
        let _asking = self.loader.asking();
        match within(&self.parts, PATIENCE, told).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => panicked(),
            None => Err(timed_out()),
        }
    }

    async fn polled<'a, T>(&self, call: impl FnOnce() -> ProviderFuture<'a, T>) -> Result<T, String> {
        let Some(future) = caught(|| calling_out(call)) else { return panicked() };
        within(&self.parts, PATIENCE, Polled { future: Some(future) }).await.unwrap_or_else(|| Err(timed_out()))
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
