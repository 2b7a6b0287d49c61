//! Feature flags, as callers ask for them.
//!
//! Everything goes one way (`evaluate.rs`). A [`FlagContext`](crate::FlagContext) is settled: whose it is, what the client's overrides add to
//! it. It is evaluated here if definitions are loaded. Only if that leaves something open, and the context does not forbid it, PostHog is
//! asked: through the cache, once for all who ask for the same, with the keys that the caller named. What came of it is a
//! [`FeatureFlags`], which never changes again; the single getters (`getters.rs`) are one read of such a snapshot.
//!
//! # Rules
//!
//! * At most one request for a call, and none by a read. What needs no request is there when the call returns, evaluated on the
//!   caller's thread; what needs one is put together on the delivery's thread, which holds no client: neither a call under way nor a
//!   snapshot keeps a client alive.
//! * A value that was evaluated here is never replaced by PostHog's, but where the caller insists on PostHog's
//!   ([`ask_posthog`](crate::FlagContext::ask_posthog)); then what is evaluated here serves if PostHog gives no answer.
//! * A key that is neither among the definitions nor known to PostHog is not asked for again until the definitions are refreshed.
//! * Nobody, a disabled client, no keys: an empty snapshot, no request, no event.
//! * A read of a value captures `$feature_flag_called` (`exposure.rs`) once for each person, groups, flag and value, on the thread that
//!   reads: of a getter, the thread that takes the answer out of its [`Pending`](crate::Pending). An answer that nobody takes was not
//!   read. Payloads and maps of all flags are silent.
//! * Overrides (`settings.rs`) belong to the client, and so to everybody that it evaluates flags for. What is true of one request only
//!   is said in the context of the call, which counts more.
//! * A forked child has a cache, a tracker and overrides of its own: those of its parent may be locked by nobody.
//! * No lock is held while user code runs, and no failure is an error: there is the default, and the snapshot says why.
//!
//! # Operations
//!
//! `evaluate.rs` from a context to a snapshot; `snapshot.rs` the snapshot, `problem.rs` why it lacks something; `getters.rs` one flag,
//! or all, in one call; `exposure.rs` the event; `on_event.rs` flags on captured events; `settings.rs` overrides and resets.

mod evaluate;
mod exposure;
mod getters;
#[cfg(test)]
#[cfg(feature = "testing")]
mod local_tests;
mod on_event;
mod problem;
mod settings;
mod snapshot;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Client;
use crate::config::FlagSettings;
use crate::flags::{CalledTracker, FlagCache, KnownMissing, Overrides};
use crate::sys::clock::Clock;
use crate::sys::disk::fork::lock_within;

pub use getters::{AllFlags, FeatureFlagResult};
pub use problem::FlagsProblem;
pub use snapshot::FeatureFlags;

/// In a forked child the parent's lock may be held by a thread that does not exist there.
const CHILD_WAIT: Duration = Duration::from_secs(1);

/// What a client keeps for its flags.
#[derive(Debug)]
pub(super) struct Flags {
    settings: FlagSettings,
    cache: Arc<FlagCache>,
    missing: Arc<KnownMissing>,
    called: CalledTracker,
    overrides: Mutex<Overrides>,
    /// That flags were asked for nobody is told once.
    told_of_nobody: AtomicBool,
}

impl Flags {
    pub(super) fn new(settings: &FlagSettings, clock: Clock, overrides: Overrides) -> Self {
        Self {
            cache: Arc::new(FlagCache::new(clock, settings.cache_ttl, settings.cache_size)),
            missing: Arc::default(),
            called: CalledTracker::new(settings.called_size),
            overrides: Mutex::new(overrides),
            told_of_nobody: AtomicBool::new(false),
            settings: settings.clone(),
        }
    }

    /// What a forked child begins with: the overrides, but none if another thread of the parent was changing them when it forked.
    pub(super) fn for_child(&self, clock: Clock) -> Self {
        let overrides = lock_within(&self.overrides, CHILD_WAIT).map(|overrides| overrides.clone());
        Self::new(&self.settings, clock, overrides.unwrap_or_default())
    }

    fn overrides(&self) -> MutexGuard<'_, Overrides> {
        self.overrides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Nothing is captured any more, so nothing has to be remembered.
    pub(super) fn close_flags(&self) {
        let client = match &self.shared.pipeline {
            Some(pipeline) if pipeline.is_forked() => self.shared.opened_child(),
            _ => Some(self),
        };
        if let Some(client) = client {
            client.shared.flags.called.close();
        }
    }

    /// How many reads of flags are remembered as told.
    #[cfg(feature = "testing")]
    pub(crate) fn told_flag_reads(&self) -> usize {
        self.for_flags().map_or(0, |client| client.shared.flags.called.len())
    }
}
