//! Definitions of flags: where the loader meets the threads and the store.
//!
//! The loader's task runs on the delivery's runtime ([`crate::flags::loader`]). What it has kept for the next process is written by the
//! committer, in a transaction of its own, and read when the pipeline is opened. The analytics lane has it, never that of AI events.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::lane::Lane;
use super::pending::{self, Pending, Unanswered};
use super::{Notice, Pipeline, WorkerOptions, threads};
use crate::flags::loader::{self, Keep, Loader, LoaderParts, Restored};
use crate::flags::{FlagDefinitionsError, FlagDefinitionsState, LoadedFlags};
use crate::queue::Queue;

/// What could not be written is tried again with a later turn, not sooner than after this.
const KEEP_AGAIN: Duration = Duration::from_secs(60);
/// The name under which the queue stores them.
const META_NAME: &str = "flag_definitions";
/// The name of the operation in diagnostics.
const KEEP: &str = "keep";

/// What a pipeline has of it; `None` where nothing is to be loaded.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    loader: Option<Arc<Loader>>,
    restored: Option<Restored>,
}

impl Definitions {
    /// Reads what an earlier process left. Flags are evaluated with it from here on.
    pub(super) fn open(options: &WorkerOptions, shard: &Queue) -> Self {
        let Some(loads) = options.flag_definitions.as_ref().filter(|_| options.lane == Lane::Analytics) else {
            return Self::default();
        };
        let kept = loads.keep.and_then(|_| shard.meta(META_NAME));
        let restored = kept.and_then(|kept| loader::decode(&kept));
        Self { loader: Some(Loader::new(restored.as_ref())), restored }
    }
}

/// Asking.
impl Pipeline {
    /// What flags are evaluated with here. Never waits.
    pub(crate) fn local_flags(&self) -> Option<LoadedFlags> {
        self.definitions.loader.as_ref()?.current()
    }

    /// Loads definitions now, or joins the load under way.
    pub(crate) fn refresh_flags(&self) -> Pending<Result<(), FlagDefinitionsError>> {
        let Some(loader) = &self.definitions.loader else {
            return pending::answered(Err(FlagDefinitionsError::NotConfigured));
        };
        let (promise, answer) = pending::pending();
        loader.reload(Box::new(move |loaded| promise.answer(loaded)));
        answer
    }

    /// No flag is evaluated here until definitions were loaded anew.
    pub(crate) fn forget_flags(&self) {
        if let Some(loader) = &self.definitions.loader {
            loader.forget();
        }
    }

    /// Rises with each load that worked, also if there was nothing new: what was not among the definitions may be by now.
    pub(crate) fn flags_generation(&self) -> u64 {
        self.definitions.loader.as_ref().map_or(0, |loader| loader.generation())
    }

    /// How they are.
    pub(crate) fn flags_state(&self) -> FlagDefinitionsState {
        self.definitions.loader.as_ref().map_or(FlagDefinitionsState::Missing, |loader| loader.state())
    }

    /// How long ago PostHog, or the provider, last said that what is loaded is the newest.
    pub(crate) fn flags_age(&self) -> Option<Duration> {
        let nanos = self.options.clock.wall_nanos().saturating_sub(self.local_flags()?.fetched_at);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
    }
}

/// Starting and stopping.
impl Pipeline {
    pub(super) fn loader(&self) -> Option<&Arc<Loader>> {
        self.definitions.loader.as_ref()
    }

    /// The loader's task, for the delivery's runtime.
    pub(super) fn loading(self: &Arc<Self>) -> Option<impl Future<Output = ()> + Send + 'static> {
        let loader = Arc::clone(self.loader()?);
        let (keeper, reports): (Weak<Self>, _) = (Arc::downgrade(self), Arc::clone(&self.options.report));
        let parts = LoaderParts {
            options: self.options.flag_definitions.clone()?,
            http: self.network.http(),
            clock: self.options.clock.clone(),
            restored: self.definitions.restored.clone(),
            // One that waits for the client, as any thread of the program may.
            spawn: Arc::new(|run| threads::spawn_apart("posthog-flags", run)),
            keep: Arc::new(move |keep| {
                if let Some(pipeline) = keeper.upgrade() {
                    pipeline.mailbox.ring(|wanted| wanted.definitions = Some(keep));
                }
            }),
            report: Arc::new(move |notice| reports(Notice::FlagDefinitions(notice))),
        };
        Some(loader::serve(parts, loader))
    }

    /// Nothing more is loaded, and the provider is shut down; the committer hears when that is done.
    pub(super) fn stop_loading(self: &Arc<Self>) {
        let Some(loader) = self.loader() else { return };
        let ended = Arc::downgrade(self);
        loader.stop(Box::new(move || {
            if let Some(pipeline) = ended.upgrade() {
                pipeline.mailbox.ring(|wanted| wanted.loading_ended = true);
            }
        }));
    }

    /// What was kept lay in a file that was replaced.
    pub(super) fn kept_definitions_are_lost(&self) {
        if let Some(loader) = self.loader() {
            loader.kept_is_lost();
        }
    }
}

/// When what could not be kept is tried again, and whether that it could not was told.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    after: Option<Instant>,
    was_told: bool,
}

impl Committer {
    /// Keeps what was loaded for the next process. That it cannot is a diagnostic, and changes nothing else.
    pub(super) fn keep_definitions(&mut self) {
        let is_time = self.keeping.after.is_none_or(|after| self.now() >= after);
        if self.asked.definitions.is_none() || self.stopping.is_some() || !is_time || !self.may_try() {
            return;
        }
        let Some(keep) = self.asked.definitions.take() else { return };
        let pipeline = Arc::clone(&self.pipeline);
        if pipeline.shard.is_volatile() {
            return;
        }
        let content = match &keep {
            Keep::These(bytes) => Some(bytes.as_slice()),
            Keep::Nothing => None,
        };
        let kept = if pipeline.has_room_to_keep(content.map_or(0, <[u8]>::len)) {
            pipeline.shard.put_meta(META_NAME, content).map_err(|error| error.to_string())
        } else {
            Err("the disk has less free than that takes beside Config::min_free_space".to_owned())
        };
        let Err(why) = kept else {
            self.keeping = Keeping::default();
            return;
        };
        self.keeping.after = Some(self.now() + KEEP_AGAIN);
        // Unless something newer is to be kept by then.
        self.asked.definitions = Some(keep);
        if !std::mem::replace(&mut self.keeping.was_told, true) {
            let told = loader::Notice::CacheFailed { operation: KEEP, why };
            (pipeline.options.report)(Notice::FlagDefinitions(told));
        }
        // It was not the queue that failed.
        self.reopen_if_latched();
    }
}

impl Pipeline {
    /// The old bytes are there until the new ones are; and the queue comes first.
    fn has_room_to_keep(&self, bytes: usize) -> bool {
        let least = (bytes as u64).saturating_mul(4).saturating_add(self.options.limits.min_free_space);
        bytes == 0 || self.options.disk.free_bytes(self.shard.dir()).map_or(true, |free| free >= least)
    }
}

impl Unanswered for Result<(), FlagDefinitionsError> {
    fn closed() -> Self {
        Err(FlagDefinitionsError::Closed)
    }

    fn forked() -> Self {
        Err(FlagDefinitionsError::Forked)
    }
}
