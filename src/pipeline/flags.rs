//! Feature flags in the pipeline: their tasks run on the delivery thread's runtime, and the committer stores their
//! definitions.
//!
//! Everything else about flags is in [`crate::flags`]. The pipeline contributes a runtime, a transport, and one row of
//! the store, in which the loaded definitions are kept for the next process. The row is written in a transaction of its
//! own. Only the analytics queue has it; the AI queue loads no definitions.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::committer::Committer;
use super::options::Lane;
use super::{Pipeline, PipelineOptions, threads};
use crate::flags::loader::{self, Loader, LoaderParts};
use crate::flags::remote::{Done, PayloadDone};
use crate::flags::{Failure, FlagContext, RemoteConfigError, RemoteFlags};
use crate::queue::Queue;
use crate::report::Diagnostic;
use crate::sys::reentry;
use crate::transport::Http;

/// The wait before a failed write of the definitions is retried.
const KEEP_RETRY: Duration = Duration::from_secs(60);
/// The name of the definitions in the queue.
const META_NAME: &str = "flag_definitions";

/// The loader of definitions, with those that an earlier process kept. `None` if the program configured no source.
pub(super) fn open_definitions(options: &PipelineOptions, shard: &Queue) -> Option<Arc<Loader>> {
    let loads = options.flag_definitions.as_ref().filter(|_| options.lane == Lane::Analytics)?;
    let kept = loads.keep.and_then(|_| shard.meta(META_NAME));
    Some(Loader::new(kept.and_then(|kept| loader::decode(&kept))))
}

/// Requests for flag values go through the pipeline's transport.
pub(super) fn remote_flags(options: &PipelineOptions, http: Arc<dyn Http>) -> Arc<RemoteFlags> {
    RemoteFlags::new(options.flags.clone(), http, options.clock.clone(), Arc::clone(&options.report))
}

impl Pipeline {
    /// Requests flag values, see [`RemoteFlags::request`]. A forked child sends nothing.
    pub(crate) fn request_flags(&self, context: FlagContext, done: Done) {
        if self.is_forked() {
            _ = reentry::caught(|| done(Err(Failure::Closed)));
            return;
        }
        if let Some(task) = self.remote_flags.request(context, done) {
            self.spawn(task);
        }
    }

    /// Requests the payload of a remote config flag, see [`RemoteFlags::request_payload`]. A forked child sends nothing.
    pub(crate) fn request_flag_payload(&self, key: &str, done: PayloadDone) {
        if self.is_forked() {
            _ = reentry::caught(|| done(Err(RemoteConfigError::Forked)));
            return;
        }
        if let Some(task) = self.remote_flags.request_payload(key, done) {
            self.spawn(task);
        }
    }

    /// The loader of definitions. `None` if the program configured no source.
    pub(crate) fn definitions(&self) -> Option<&Arc<Loader>> {
        self.definitions.as_ref()
    }

    /// The loader's task, for the delivery thread's runtime.
    pub(super) fn loading(self: &Arc<Self>) -> Option<impl Future<Output = ()> + Send + 'static> {
        let loader = Arc::clone(self.definitions()?);
        let keeper: Weak<Self> = Arc::downgrade(self);
        let parts = LoaderParts {
            options: self.options.flag_definitions.clone()?,
            http: self.network.http(),
            clock: self.options.clock.clone(),
            // Not one of the client's own threads: the provider is the program's code and may wait for the client.
            spawn: Arc::new(|run| threads::spawn_apart("posthog-flags", run)),
            keep: Arc::new(move |keep| {
                if let Some(pipeline) = keeper.upgrade() {
                    pipeline.mailbox.send(|commands| commands.definitions = Some(keep));
                }
            }),
            report: Arc::clone(&self.options.report),
        };
        Some(loader::serve(parts, loader))
    }

    /// Stops loading and shuts the provider down. The committer is notified when that is done.
    pub(super) fn stop_loading(self: &Arc<Self>) {
        let Some(loader) = self.definitions() else { return };
        let ended = Arc::downgrade(self);
        loader.stop(Box::new(move || {
            if let Some(pipeline) = ended.upgrade() {
                pipeline.mailbox.send(|commands| commands.loading_ended = true);
            }
        }));
    }

    /// Whether the disk can hold the old and the new bytes at the same time without using the space that events need.
    fn has_space_to_keep(&self, bytes: usize) -> bool {
        let least = (bytes as u64).saturating_mul(4).saturating_add(self.options.limits.min_free_space);
        bytes == 0 || self.options.disk.free_bytes(self.shard.dir()).map_or(true, |free| free >= least)
    }
}

impl Committer {
    /// Stores loaded definitions for the next process. A failure is reported once, retried, and affects nothing else.
    pub(super) fn keep_definitions(&mut self) {
        let is_due = self.keep_again_at.is_none_or(|at| self.now() >= at);
        if self.commands.definitions.is_none() || self.stopping.is_some() || !is_due || !self.may_try() {
            return;
        }
        let Some(keep) = self.commands.definitions.take() else { return };
        let pipeline = Arc::clone(&self.pipeline);
        if pipeline.shard.is_volatile() {
            return;
        }
        let kept = if pipeline.has_space_to_keep(keep.as_ref().map_or(0, Vec::len)) {
            pipeline.shard.put_meta(META_NAME, keep.as_deref()).map_err(|error| error.to_string())
        } else {
            Err("the disk does not have enough free space above Config::min_free_space".to_owned())
        };
        let Err(why) = kept else {
            self.keep_again_at = None;
            return;
        };
        let is_first = self.keep_again_at.replace(self.now() + KEEP_RETRY).is_none();
        // Newer definitions replace these if they arrive before the retry.
        self.commands.definitions = Some(keep);
        if is_first {
            (pipeline.options.report)(Diagnostic::FlagCacheFailed { operation: loader::KEEP, why });
        }
        // The failure may have latched the store, which the queue still needs.
        self.reopen_if_latched();
    }
}
