//! When the store fails: how soon it is tried again, and when it counts as working.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Pipeline;
use super::advice::{explain_io, explain_queue};
use super::committer::Committer;
use super::lock;
use super::source::OWN;
use crate::queue::{Ownership, QueueError};

/// After a failure of the store it is tried again after this, and then after twice as long each time.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// When a directory that is out of reach is looked for again.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) again_at: Option<Instant>,
    delay: Duration,
}

impl Default for Reach {
    fn default() -> Self {
        Self { again_at: None, delay: RETRY_FIRST }
    }
}

impl Committer {
    /// Opens a store that shut itself after a failure, its own or a reader's.
    pub(super) fn reopen_if_latched(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        if !pipeline.shard.open_store().is_some_and(|store| store.is_latched()) {
            return;
        }
        match pipeline.shard.reopen_store(pipeline.options.clock.wall_nanos()) {
            Ok(findings) => {
                if !findings.is_empty() {
                    pipeline.definitions().inspect(|loader| loader.keep_again());
                }
                pipeline.report_findings(findings);
                // The file may be another one now: rows are found again from the start.
                pipeline.leases.lock().forget(OWN);
                pipeline.committed();
                // How many records an arena of an earlier life holds is not known, so it does not count among the journaled.
                let journal = pipeline.shard.journal();
                let waits = journal.journaled().1 > 0 || journal.oldest_sealed().is_some();
                if !waits && pipeline.leases.is_committed() {
                    // Nothing waits that could show it otherwise.
                    self.worked();
                }
            }
            Err(error) => self.store_failed(&error),
        }
    }

    /// Looks where the queue's directory is. One that was moved, made inaccessible or deleted is no reason to stop: what is open goes on.
    /// Of one that was deleted it is said that it ends with the process.
    pub(super) fn look_after_directory(&mut self) {
        match self.pipeline.shard.ownership() {
            Ownership::Held => {
                self.reach.again_at = None;
                if self.pipeline.comes_into_reach() {
                    self.reach = Reach::default();
                    self.try_all_again();
                }
            }
            Ownership::OutOfReach { why } => {
                self.pipeline.goes_out_of_reach(&why);
                if self.reach.again_at.is_none_or(|at| at <= self.now()) {
                    // Nobody rings when it is back.
                    self.reach.again_at = Some(self.now() + self.reach.delay);
                    self.reach.delay = (self.reach.delay * 2).min(RETRY_MOST);
                }
            }
            Ownership::Deleted => {
                self.reach = Reach::default();
                self.pipeline.shard.become_volatile();
                let path = self.pipeline.shard.dir().clone();
                self.pipeline.is_in_memory(path, "the queue's directory was deleted".into());
                self.try_all_again();
            }
            Ownership::Lost => {
                self.reach = Reach::default();
                lock(&self.pipeline.out_of_reach).take();
                self.pipeline.storage_fails(&self.pipeline.shard.why_lost());
            }
        }
    }

    /// Whatever failed for a reason that is no more is tried again at once.
    fn try_all_again(&mut self) {
        self.waiting.retry_at = None;
        self.waiting.sync_after = None;
        self.swap_after = None;
        self.spare_after = None;
        self.retry_delay = RETRY_FIRST;
    }

    /// Storage has failed; where that comes of the directory's being out of reach, this is what is said.
    pub(super) fn storage_failed(&mut self, say: impl FnOnce(&Pipeline)) {
        self.look_after_directory();
        if !self.pipeline.shard.is_lost() {
            say(&self.pipeline);
        }
    }

    pub(super) fn store_failed(&mut self, error: &QueueError) {
        self.storage_failed(|pipeline| pipeline.shard_fails(error));
        self.failed();
    }

    /// Whether the store may be tried: not within the delay after a failure.
    pub(super) fn may_try(&self) -> bool {
        self.waiting.retry_at.is_none_or(|at| at <= self.now())
    }

    pub(super) fn failed(&mut self) {
        // Several failures within one delay are one: otherwise each turn would push the next attempt further away.
        if !self.may_try() {
            return;
        }
        self.waiting.retry_at = Some(self.now() + self.retry_delay);
        self.retry_delay = (self.retry_delay * 2).min(RETRY_MOST);
    }

    pub(super) fn worked(&mut self) {
        self.waiting.retry_at = None;
        self.retry_delay = RETRY_FIRST;
        // A ack that worked does not make another arena.
        if self.swap_after.is_none() {
            self.pipeline.storage_works();
        }
    }
}

impl Pipeline {
    /// A step of the store failed, or of the journal on its way there.
    pub(super) fn shard_fails(&self, error: &QueueError) {
        self.storage_fails_by(&error.to_string(), || explain_queue(&self.options.disk, error));
    }

    /// The active arena cannot be written or synced.
    pub(super) fn journal_fails(&self, error: &io::Error) {
        self.storage_fails_by(&error.to_string(), || explain_io(&self.options.disk, self.shard.dir(), error));
    }
}
