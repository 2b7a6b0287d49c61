//! Feature flags, as callers see them.
//!
//! An evaluation (`evaluate.rs`) completes the [`FlagContext`](crate::feature_flags::FlagContext): distinct id,
//! defaults and the client's overrides. It evaluates the flags locally if definitions are loaded. If that leaves flags
//! undecided and the context allows a request, PostHog is asked through the cache, so that concurrent callers share one
//! request. The result is a [`FeatureFlags`] snapshot (`snapshot.rs`), which never changes. The single-flag getters are
//! one read of such a snapshot.
//!
//! # Rules
//!
//! * At most one request per evaluation, and none per read. If no request is needed, the evaluation is done on the
//!   caller's thread and the result is available when the call returns. Otherwise it is completed on the delivery
//!   thread. Neither a pending evaluation nor a snapshot keeps a client alive.
//! * A local value takes precedence over PostHog's, unless the caller requested PostHog's
//!   ([`ask_posthog`](crate::feature_flags::FlagContext::ask_posthog)). Then the local values are the fallback for a
//!   failed request.
//! * A key that neither the definitions nor PostHog know is not requested again until the definitions are refreshed.
//! * Without a distinct id, with a disabled client or without keys, the snapshot is empty: no request and no event.
//! * A read of a value captures `$feature_flag_called` (`exposure.rs`) once per person, groups, flag and value, on the
//!   thread that reads. For a getter that is the thread that takes the result out of its [`Pending`](crate::Pending); a
//!   result that is never taken is not a read. Payloads and maps of all flags are not reads.
//! * Overrides (`settings.rs`) apply to everyone the client evaluates flags for. Properties of a single request belong
//!   in its context, which takes precedence.
//! * A forked child has its own cache, tracker and overrides, because the parent's locks may be held by threads that do
//!   not exist in the child.
//! * No lock is held while user code runs. A failure is never an error: the caller gets a default, and the snapshot
//!   says why.
//!
//! `settings.rs` also contains the calls about loaded definitions, `remote_config.rs` the one for remote config payloads.

mod evaluate;
mod exposure;
#[cfg(test)]
#[cfg(feature = "testing")]
mod local_tests;
mod remote_config;
mod settings;
mod snapshot;
#[cfg(feature = "testing")]
mod test_values;
#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Client;
use crate::config::FlagSettings;
use crate::flags::{CalledTracker, FlagCache, MissingKeys, Overrides};
use crate::sys::clock::Clock;
use crate::sys::disk::fork::lock_within;

pub use evaluate::{AllFlags, FeatureFlagResult};
pub use snapshot::{FeatureFlags, FlagsProblem};

/// How long a forked child waits for a lock that it inherited. It may be held by a thread that does not exist in the
/// child.
const CHILD_WAIT: Duration = Duration::from_secs(1);

/// The state of a client's flags.
#[derive(Debug)]
pub(super) struct Flags {
    settings: FlagSettings,
    cache: Arc<FlagCache>,
    missing: Arc<MissingKeys>,
    called: CalledTracker,
    overrides: Mutex<Overrides>,
    #[cfg(feature = "testing")]
    test_values: Mutex<test_values::TestValues>,
    /// A missing distinct id is reported once.
    reported_nobody: AtomicBool,
}

impl Flags {
    pub(super) fn new(settings: &FlagSettings, clock: Clock, overrides: Overrides) -> Self {
        // The bounds of both sizes start at one.
        let size = |most| NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        Self {
            cache: Arc::new(FlagCache::new(clock, settings.cache_ttl, size(settings.cache_size))),
            missing: Arc::default(),
            called: CalledTracker::new(size(settings.called_size)),
            overrides: Mutex::new(overrides),
            #[cfg(feature = "testing")]
            test_values: Mutex::default(),
            reported_nobody: AtomicBool::new(false),
            settings: settings.clone(),
        }
    }

    /// The state of a forked child: the parent's overrides, or none if another thread was changing them during the
    /// fork.
    pub(super) fn for_child(&self, clock: Clock) -> Self {
        let overrides = lock_within(&self.overrides, CHILD_WAIT).map(|overrides| overrides.clone());
        Self::new(&self.settings, clock, overrides.unwrap_or_default())
    }

    fn overrides(&self) -> MutexGuard<'_, Overrides> {
        self.overrides.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Frees the memory of captured reads: a closed client captures nothing.
    pub(super) fn close_flags(&self) {
        let client = match &self.shared.pipeline {
            Some(pipeline) if pipeline.is_forked() => self.shared.opened_child(),
            _ => Some(self),
        };
        if let Some(client) = client {
            client.shared.flags.called.close();
        }
    }

    /// The number of reads that are remembered as captured.
    #[cfg(feature = "testing")]
    pub(crate) fn captured_flag_reads(&self) -> usize {
        self.for_flags().map_or(0, |client| client.shared.flags.called.len())
    }
}
