//! What the program puts between us and PostHog: a cache of definitions that several processes share.

use std::error::Error;
use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

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
