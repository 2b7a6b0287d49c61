//! The loader as callers see it: the current definitions, readable without waiting, and a mailbox for commands to its
//! task.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
#[cfg(feature = "testing")]
use std::time::Instant;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use crate::flags::LocalFlags;
use crate::sys::clock::WallNanos;
use crate::sys::reentry;

/// The definitions that flags are evaluated against.
#[derive(Clone, Debug)]
pub(crate) struct LoadedFlags {
    pub(crate) flags: LocalFlags,
    /// When PostHog or the provider last confirmed that these are the newest definitions.
    pub(crate) fetched_at: WallNanos,
    /// An earlier process fetched them, and they have not been confirmed since.
    pub(crate) is_restored: bool,
    /// PostHog's version of the document.
    pub(super) etag: Option<String>,
    /// A hash of the document.
    pub(super) hash: u64,
}

/// The state of the definitions of flags. See
/// [`Client::flag_definitions_state`](crate::Client::flag_definitions_state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlagDefinitionsState {
    /// No definitions are loaded: no flag is evaluated locally.
    Missing,
    /// An earlier process fetched the definitions, and they have not been confirmed yet.
    Restored,
    /// The last load succeeded.
    Fresh,
    /// The last load failed: the definitions are those of an earlier one.
    Stale,
}

/// Why definitions of flags were not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagDefinitionsError {
    /// The client has neither a secret key ([`Config::secret_key`](crate::Config::secret_key)) nor a provider.
    #[error(
        "feature flag definitions are not loaded: the client has neither a Config::secret_key (POSTHOG_SECRET_KEY) nor a provider"
    )]
    NotConfigured,
    /// PostHog did not respond, or not with definitions. Definitions that were loaded before stay in use.
    #[error("feature flag definitions cannot be loaded: {0}; any that were loaded before stay in use")]
    Unavailable(String),
    /// PostHog rejected the secret key (401, 403), or the quota is exceeded (402). Definitions that were loaded before
    /// are dropped.
    #[error(
        "PostHog refuses feature flag definitions (HTTP status {status}: {why}); any that were loaded before are no longer used; \
         check Config::secret_key (POSTHOG_SECRET_KEY) and the quota"
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// PostHog's message.
        why: String,
    },
    /// The document cannot be parsed. Definitions that were loaded before stay in use.
    #[error("feature flag definitions cannot be read: {0}; any that were loaded before stay in use")]
    Unreadable(String),
    /// The provider has no definitions, or failed. Definitions that were loaded before stay in use.
    #[error("the provider did not return feature flag definitions: {0}; any that were loaded before stay in use")]
    Provider(String),
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// The process is a forked child that has not captured anything yet, or the load was requested by its parent.
    #[error("this forked process has no client of its own before its first capture")]
    Forked,
    /// [`Pending::wait`](crate::Pending::wait) ended before the definitions were loaded. The load goes on.
    #[error("feature flag definitions were not loaded within the time given; the load goes on in the background")]
    Timeout,
}

/// Receives the result of a load.
pub(crate) type Done = Box<dyn FnOnce(Result<(), FlagDefinitionsError>) + Send>;

/// With a clock that stands still, tests wait in real time for a blocking provider, but not longer than this for one
/// that hangs.
#[cfg(feature = "testing")]
const COUNTS_AS_WORKING: Duration = Duration::from_secs(1);

/// The handle of a loader; see the module.
#[derive(Default)]
pub(crate) struct Loader {
    current: ArcSwapOption<LoadedFlags>,
    /// A hash of the document that an earlier process kept. It outlives a reset before the first load, unlike `current`.
    pub(super) restored_hash: Option<u64>,
    generation: AtomicU64,
    /// Why the last load failed, if it did.
    failure: Mutex<Option<String>>,
    mailbox: Mutex<Mailbox>,
    /// Wakes the task. Several commands may cause one wakeup.
    wake: Notify,
    /// Since when a provider is being called on another thread.
    #[cfg(feature = "testing")]
    provider_called_at: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Mailbox {
    /// Callers that wait for the end of a load.
    waiting: Vec<Done>,
    is_stopping: bool,
    is_abandoned: bool,
    is_closed: bool,
    /// Called when loading has stopped and the provider was shut down.
    stopped: Vec<Box<dyn FnOnce() + Send>>,
    /// Definitions that are loaded, or being loaded, are not to be used.
    is_reset: bool,
    /// The store lost the definitions that were kept for the next process.
    kept_was_lost: bool,
    /// The number of commands sent.
    #[cfg(feature = "testing")]
    sent: u64,
    /// The number of commands that the task has seen.
    #[cfg(feature = "testing")]
    seen: u64,
}

/// A command to the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Load,
    /// Drop the definitions and load them again.
    Reset,
    Stop,
}

impl Loader {
    /// A loader that starts with the definitions an earlier process kept, if any.
    pub(crate) fn new(restored: Option<LoadedFlags>) -> Arc<Self> {
        let restored_hash = restored.as_ref().map(|restored| restored.hash);
        Arc::new(Self { current: ArcSwapOption::from_pointee(restored), restored_hash, ..Self::default() })
    }

    /// The current definitions. Never waits.
    pub(crate) fn current(&self) -> Option<Arc<LoadedFlags>> {
        self.current.load_full()
    }

    /// The number of successful loads, including those that found the definitions unchanged.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self) -> FlagDefinitionsState {
        match &*self.current.load() {
            None => FlagDefinitionsState::Missing,
            Some(loaded) if loaded.is_restored => FlagDefinitionsState::Restored,
            Some(_) if self.failure().is_some() => FlagDefinitionsState::Stale,
            Some(_) => FlagDefinitionsState::Fresh,
        }
    }

    /// The time since PostHog or the provider last confirmed the current definitions.
    pub(crate) fn age(&self, now: WallNanos) -> Option<Duration> {
        let nanos = now.saturating_sub(self.current()?.fetched_at);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
    }

    /// Loads definitions now, or joins the load under way. `done` is called on the task, or here if the task has ended.
    pub(crate) fn reload(&self, done: Done) {
        let mut done = Some(done);
        self.send(|mailbox| mailbox.waiting.extend(done.take_if(|_| !mailbox.is_closed && !mailbox.is_stopping)));
        if let Some(done) = done {
            reentry::caught(|| done(Err(FlagDefinitionsError::Closed)));
        }
    }

    /// Drops the definitions, including those kept for the next process, and loads them again.
    pub(crate) fn reset(&self) {
        self.send(|mailbox| mailbox.is_reset = true);
        self.clear();
    }

    /// Stops loading and shuts the provider down. `stopped` is then called on the task, or here if the task has ended.
    pub(crate) fn stop(&self, stopped: Box<dyn FnOnce() + Send>) {
        let mut stopped = Some(stopped);
        self.send(|mailbox| {
            mailbox.is_stopping = true;
            mailbox.stopped.extend(stopped.take_if(|_| !mailbox.is_closed));
        });
        if let Some(stopped) = stopped {
            stopped();
        }
    }

    /// Stops at once, without waiting for the provider's shutdown.
    pub(crate) fn abandon(&self) {
        self.send(|mailbox| (mailbox.is_stopping, mailbox.is_abandoned) = (true, true));
    }

    /// The store lost the definitions kept for the next process. The next load fetches and keeps them again.
    pub(crate) fn keep_again(&self) {
        self.mailbox().kept_was_lost = true;
    }

    /// The number of commands so far, if the task has nothing to do until time passes or a response arrives.
    #[cfg(feature = "testing")]
    pub(crate) fn asleep(&self) -> Option<u64> {
        let mailbox = self.mailbox();
        let called_at = *self.provider_called_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_working = called_at.is_some_and(|called_at| called_at.elapsed() < COUNTS_AS_WORKING);
        let is_asleep = mailbox.seen == mailbox.sent && !is_working;
        (mailbox.is_closed || is_asleep).then_some(mailbox.sent)
    }

    fn send(&self, command: impl FnOnce(&mut Mailbox)) {
        {
            let mut mailbox = self.mailbox();
            command(&mut mailbox);
            #[cfg(feature = "testing")]
            {
                mailbox.sent += 1;
            }
        }
        self.wake.notify_one();
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task's side.
impl Loader {
    /// Replaces the current definitions.
    pub(super) fn publish(&self, loaded: Arc<LoadedFlags>) {
        self.current.store(Some(loaded));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Drops the current definitions: from now on no flag is evaluated locally.
    pub(super) fn clear(&self) {
        self.current.store(None);
    }

    /// Notes how a load ended.
    pub(super) fn note_failure(&self, failure: Option<String>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// Why the last load failed; `None` if it succeeded, and before the first has ended.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a reset was requested since the last call.
    pub(super) fn take_reset(&self) -> bool {
        std::mem::take(&mut self.mailbox().is_reset)
    }

    /// Whether the store lost the kept definitions since the last call.
    pub(super) fn take_kept_was_lost(&self) -> bool {
        std::mem::take(&mut self.mailbox().kept_was_lost)
    }

    /// Waits for a command.
    pub(super) async fn command(&self) -> Command {
        self.received(|mailbox| match mailbox {
            Mailbox { is_stopping: true, .. } => Some(Command::Stop),
            Mailbox { is_reset: true, .. } => Some(Command::Reset),
            Mailbox { waiting, .. } => (!waiting.is_empty()).then_some(Command::Load),
        })
        .await
    }

    /// Waits until the task is to stop.
    pub(super) async fn stopping(&self) {
        self.received(|mailbox| mailbox.is_stopping.then_some(())).await;
    }

    /// Waits until the provider's shutdown no longer has to be awaited.
    pub(super) async fn abandoned(&self) {
        self.received(|mailbox| mailbox.is_abandoned.then_some(())).await;
    }

    /// Gives the result of a load to all callers that wait for one.
    pub(super) fn answer(&self, answer: &Result<(), FlagDefinitionsError>) {
        let waiting = std::mem::take(&mut self.mailbox().waiting);
        for done in waiting {
            reentry::caught(|| done(answer.clone()));
        }
    }

    /// The task has ended: answers all callers that still wait.
    pub(super) fn close(&self) {
        let stopped = {
            let mut mailbox = self.mailbox();
            mailbox.is_closed = true;
            std::mem::take(&mut mailbox.stopped)
        };
        self.answer(&Err(FlagDefinitionsError::Closed));
        for stopped in stopped {
            reentry::caught(stopped);
        }
    }

    /// Notes whether a provider is being called on another thread. For tests.
    pub(super) fn calls_provider(&self, _is_calling: bool) {
        #[cfg(feature = "testing")]
        {
            *self.provider_called_at.lock().unwrap_or_else(PoisonError::into_inner) = _is_calling.then(Instant::now);
        }
    }

    /// Waits until `wanted` finds something in the mailbox. Only one caller may wait at a time: a wakeup reaches one of
    /// them.
    async fn received<T>(&self, wanted: impl Fn(&Mailbox) -> Option<T>) -> T {
        loop {
            {
                let mut mailbox = self.mailbox();
                #[cfg(feature = "testing")]
                {
                    mailbox.seen = mailbox.sent;
                }
                let _ = &mut mailbox;
                if let Some(found) = wanted(&mailbox) {
                    return found;
                }
            }
            self.wake.notified().await;
        }
    }
}

impl Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("state", &self.state()).finish_non_exhaustive()
    }
}
