//! The loader, from outside: what is loaded, for anybody to read without waiting, and a mailbox.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "testing")]
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::kept::Restored;
use crate::flags::LocalFlags;
use crate::sys::clock::WallNanos;
use crate::sys::reentry;

/// The definitions that flags are evaluated with at the moment. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LoadedFlags {
    /// Ready to be evaluated.
    pub(crate) flags: LocalFlags,
    /// When PostHog, or the provider, last said that these are the newest.
    pub(crate) fetched_at: WallNanos,
    /// An earlier process fetched them, and nobody has said since that they are the newest.
    pub(crate) is_restored: bool,
}

/// How the definitions of flags are. See [`Client::flag_definitions_state`](crate::Client::flag_definitions_state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlagDefinitionsState {
    /// There are none: no flag is evaluated here.
    Missing,
    /// They are those that an earlier process fetched, and have not been confirmed yet.
    Restored,
    /// The last attempt to load them worked.
    Fresh,
    /// The last attempt to load them failed: they are those of an earlier one.
    Stale,
}

/// Why definitions of flags were not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagDefinitionsError {
    /// There is neither a secret key ([`Config::secret_key`](crate::Config::secret_key)) nor a provider, so there is nobody to load from.
    #[error("feature flag definitions are not loaded: there is neither a Config::secret_key nor a provider")]
    NotConfigured,
    /// No answer, or none that is of use. Definitions that were there already stay.
    #[error("feature flag definitions cannot be loaded: {0}; those loaded before stay in use")]
    Unavailable(String),
    /// PostHog refuses the secret key (401, 403) or the quota is used up (402). Definitions that were there are no longer used.
    #[error(
        "PostHog refuses feature flag definitions (HTTP status {status}: {why}); those loaded before are not used any more; check \
         Config::secret_key and the quota"
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// In PostHog's words.
        why: String,
    },
    /// What came is no document of definitions. Those that were there already stay.
    #[error("feature flag definitions cannot be read: {0}; those loaded before stay in use")]
    Unreadable(String),
    /// The provider has none, or failed. Definitions that were there already stay.
    #[error("the provider of feature flag definitions has none: {0}")]
    Provider(String),
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// This process is a forked child that has captured nothing yet, or it waits for what its parent had asked.
    #[error("this forked process has no client of its own before its first capture")]
    Forked,
}

/// Told what came of a load.
pub(crate) type Done = Box<dyn FnOnce(Result<(), FlagDefinitionsError>) + Send>;
/// Told that nothing more is loaded, and that the provider was shut down.
pub(crate) type Stopped = Box<dyn FnOnce() + Send>;

/// With a clock that stands still a provider that blocks is waited for, in real time; one that hangs only for so long.
#[cfg(feature = "testing")]
const COUNTS_AS_WORKING: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Default)]
pub(crate) struct Loader {
    current: ArcSwapOption<LoadedFlags>,
    generation: AtomicU64,
    is_stale: AtomicBool,
    mailbox: Mutex<Mailbox>,
    /// Rings once for any number of calls.
    wake: Notify,
    /// Since when a provider is asked on another thread.
    #[cfg(feature = "testing")]
    asks_since: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Mailbox {
    /// Who waits for the next end of a load.
    waiting: Vec<Done>,
    is_stopping: bool,
    is_abandoned: bool,
    is_closed: bool,
    stopped: Vec<Stopped>,
    /// What is loaded, or being loaded, is not to be used.
    is_to_be_forgotten: bool,
    /// What was kept for the next process is not there any more.
    is_kept_lost: bool,
    /// How often anything was asked, and how much of that was heard.
    #[cfg(feature = "testing")]
    asked: u64,
    #[cfg(feature = "testing")]
    heard: u64,
}

/// What is asked of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Load,
    /// What is loaded is not to be used any more.
    Forget,
    Stop,
}

impl Loader {
    /// With what an earlier process left, which is evaluated with from now on.
    pub(crate) fn new(restored: Option<&Restored>) -> Arc<Self> {
        let loader = Self::default();
        let current = restored.map(|restored| LoadedFlags {
            flags: restored.flags.clone(),
            fetched_at: restored.fetched_at,
            is_restored: true,
        });
        loader.current.store(current.map(Arc::new));
        Arc::new(loader)
    }

    /// What flags are evaluated with at the moment. Never waits.
    pub(crate) fn current(&self) -> Option<LoadedFlags> {
        self.current.load().as_deref().cloned()
    }

    /// Rises with each load that worked, also if there was nothing new.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How what is loaded is.
    pub(crate) fn state(&self) -> FlagDefinitionsState {
        match &*self.current.load() {
            None => FlagDefinitionsState::Missing,
            Some(loaded) if loaded.is_restored => FlagDefinitionsState::Restored,
            Some(_) if self.is_stale.load(Ordering::Acquire) => FlagDefinitionsState::Stale,
            Some(_) => FlagDefinitionsState::Fresh,
        }
    }

    /// Loads now, or joins the load under way. `done` is called on the task, or here if that has ended.
    pub(crate) fn reload(&self, done: Done) {
        let mut done = Some(done);
        self.ask(|mailbox| mailbox.waiting.extend(done.take_if(|_| !mailbox.is_closed && !mailbox.is_stopping)));
        if let Some(done) = done {
            reentry::caught(|| done(Err(FlagDefinitionsError::Closed)));
        }
    }

    /// Forgets what is loaded, and what was kept of it, and has it loaded anew. No flag is evaluated here until then.
    pub(crate) fn forget(&self) {
        self.ask(|mailbox| mailbox.is_to_be_forgotten = true);
        self.clear();
    }

    /// Ends, and shuts the provider down. `stopped` is called then, on the task, or here if it has ended.
    pub(crate) fn stop(&self, stopped: Stopped) {
        let mut stopped = Some(stopped);
        self.ask(|mailbox| {
            mailbox.is_stopping = true;
            mailbox.stopped.extend(stopped.take_if(|_| !mailbox.is_closed));
        });
        if let Some(stopped) = stopped {
            stopped();
        }
    }

    /// Ends at once: nobody waits any more, not even for the provider.
    pub(crate) fn abandon(&self) {
        self.ask(|mailbox| (mailbox.is_stopping, mailbox.is_abandoned) = (true, true));
    }

    /// What was kept for the next process is gone: it is to be kept again.
    pub(crate) fn kept_is_lost(&self) {
        self.mailbox().is_kept_lost = true;
    }

    /// How often it was asked for something so far, if there is nothing left to do before the time or an answer comes.
    #[cfg(feature = "testing")]
    pub(crate) fn asleep(&self) -> Option<u64> {
        let since = *self.asks_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some_and(|since| since.elapsed() < COUNTS_AS_WORKING) {
            return None;
        }
        let mailbox = self.mailbox();
        (mailbox.is_closed || mailbox.heard == mailbox.asked).then_some(mailbox.asked)
    }

    fn ask(&self, change: impl FnOnce(&mut Mailbox)) {
        {
            let mut mailbox = self.mailbox();
            change(&mut mailbox);
            #[cfg(feature = "testing")]
            {
                mailbox.asked += 1;
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
    /// From now on flags are evaluated with these.
    pub(super) fn publish(&self, loaded: LoadedFlags) {
        self.current.store(Some(Arc::new(loaded)));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// From now on no flag is evaluated here.
    pub(super) fn clear(&self) {
        self.current.store(None);
    }

    pub(super) fn set_stale(&self, is_stale: bool) {
        self.is_stale.store(is_stale, Ordering::Release);
    }

    pub(super) fn takes_forget(&self) -> bool {
        std::mem::take(&mut self.mailbox().is_to_be_forgotten)
    }

    pub(super) fn takes_kept_is_lost(&self) -> bool {
        std::mem::take(&mut self.mailbox().is_kept_lost)
    }

    /// Waits until something is asked.
    pub(super) async fn called(&self) -> Call {
        self.heard(|mailbox| match mailbox {
            Mailbox { is_stopping: true, .. } => Some(Call::Stop),
            Mailbox { is_to_be_forgotten: true, .. } => Some(Call::Forget),
            Mailbox { waiting, .. } => (!waiting.is_empty()).then_some(Call::Load),
        })
        .await
    }

    /// Waits until it is to end.
    pub(super) async fn stopping(&self) {
        self.heard(|mailbox| mailbox.is_stopping.then_some(())).await;
    }

    /// Waits until nobody waits any more.
    pub(super) async fn abandoned(&self) {
        self.heard(|mailbox| mailbox.is_abandoned.then_some(())).await;
    }

    /// Tells all who wait.
    pub(super) fn answer(&self, answer: &Result<(), FlagDefinitionsError>) {
        let waiting = std::mem::take(&mut self.mailbox().waiting);
        for done in waiting {
            reentry::caught(|| done(answer.clone()));
        }
    }

    /// Nothing is loaded any more.
    pub(super) fn close(&self) {
        let (waiting, stopped) = {
            let mut mailbox = self.mailbox();
            mailbox.is_closed = true;
            (std::mem::take(&mut mailbox.waiting), std::mem::take(&mut mailbox.stopped))
        };
        for done in waiting {
            reentry::caught(|| done(Err(FlagDefinitionsError::Closed)));
        }
        for stopped in stopped {
            reentry::caught(stopped);
        }
    }

    /// A provider is asked on another thread, for as long as that lives.
    pub(super) fn asking(&self) -> Asking<'_> {
        #[cfg(feature = "testing")]
        self.asks_since.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
        Asking(self)
    }

    /// Only one of its callers may wait at a time: each call rings once.
    async fn heard<T>(&self, wanted: impl Fn(&Mailbox) -> Option<T>) -> T {
        loop {
            {
                let mut mailbox = self.mailbox();
                #[cfg(feature = "testing")]
                {
                    mailbox.heard = mailbox.asked;
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

/// See [`Loader::asking`].
pub(super) struct Asking<'a>(
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "tests look"))] &'a Loader,
);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        #[cfg(feature = "testing")]
        self.0.asks_since.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("state", &self.state()).finish_non_exhaustive()
    }
}
