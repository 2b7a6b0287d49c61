//! Definitions of flags, as the program sees them.

use std::time::Duration;

use super::Client;
use crate::flags::{FlagDefinitionsError, FlagDefinitionsState, LocalFlags};
use crate::pipeline::Pending;

impl Client {
    /// Loads definitions of flags now, or joins the load that is under way (the first one begins when the client is made: wait for this
    /// before the first evaluation if that must not go to PostHog). Resolves when flags are evaluated with what was loaded. While PostHog
    /// has asked us to wait (`Retry-After`), nothing is asked.
    ///
    /// # Errors
    ///
    /// [`FlagDefinitionsError`] says why nothing was loaded, and whether what was there before is still used.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use std::time::Duration;
    /// if let Ok(Err(error)) = client.reload_flag_definitions().wait(Duration::from_secs(5)) {
    ///     println!("{error}; flags are evaluated with those of {:?} ago", client.flag_definitions_age());
    /// }
    /// ```
    pub fn reload_flag_definitions(&self) -> Pending<Result<(), FlagDefinitionsError>> {
        match self.pipelines() {
            Some((pipeline, _)) => pipeline.refresh_flags(),
            None => self.answer_without_pipeline(),
        }
    }

    /// Forgets the definitions that flags are evaluated with, those that are kept for the next process too, and loads them anew (as soon as
    /// a pause is over that PostHog has asked for). Until then no flag is evaluated here. Wait for
    /// [`reload_flag_definitions`](Self::reload_flag_definitions) to have the new ones. Snapshots stay. Without a secret key and a
    /// provider nothing happens.
    ///
    /// Follows PostHog's specification `flag-definition-loader`.
    pub fn reset_flag_definitions(&self) {
        if let Some((pipeline, _)) = self.pipelines() {
            pipeline.forget_flags();
        }
    }

    /// The definitions that flags are evaluated with at the moment: a snapshot, which stays as it is. `None` if there are none, because
    /// there is neither [`Config::secret_key`](crate::Config::secret_key) nor a provider, nothing was loaded yet, or PostHog refuses the
    /// key. Never waits.
    pub fn local_flags(&self) -> Option<LocalFlags> {
        self.pipelines()?.0.local_flags().map(|loaded| loaded.flags)
    }

    /// How old they are: the time since PostHog, or the program's provider, last said that they are the newest. For those that an earlier
    /// process left, the time since that process had fetched them.
    pub fn flag_definitions_age(&self) -> Option<Duration> {
        self.pipelines()?.0.flags_age()
    }

    /// Whether they are fresh, stale, or those of an earlier process.
    pub fn flag_definitions_state(&self) -> FlagDefinitionsState {
        self.pipelines().map_or(FlagDefinitionsState::Missing, |(pipeline, _)| pipeline.flags_state())
    }
}
