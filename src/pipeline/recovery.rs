//! Failures of storage: when the store is tried again and opened again, and what happens while the queue's directory is
//! missing.
//!
//! After a failure the store is left alone for a growing delay, from 200 ms to 30 s. Meanwhile the journal accepts
//! records until it is full, receipts are served by syncs, and `Stats::storage` says `Degraded`. A directory that was
//! moved or made inaccessible is looked for with the same delays, and the open files are used until it is back.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::advice::{explain_io, explain_queue};
use super::committer::Committer;
use super::shared::Pipeline;
use super::shared::lock;
use super::source::OWN;
use super::threads;
use crate::queue::{Finding, Ownership, QueueError};

/// Delay after the first failure of the store. Each further failure doubles it.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(30);

/// How long a turn waits for the store to be opened again.
const REOPEN_IN_TURN: Duration = Duration::from_millis(100);

/// When to look again for a directory that is out of reach.
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
    /// Opens the store again if it has latched after a failure. Returns false while it is not open: then nothing may
    /// touch it.
    ///
    /// A large file is checked, and may be rebuilt, which takes minutes on a slow disk. So it is opened on a thread of
    /// its own, for which a turn waits a moment only. Meanwhile this lane's journal is synced, and the other lanes go
    /// on.
    pub(super) fn reopen_if_latched(&mut self) -> bool {
        let pipeline = Arc::clone(&self.pipeline);
        let (reopened, wait) = match self.reopening.take() {
            Some(reopened) => (reopened, Duration::ZERO),
            None if pipeline.shard.open_store().is_some_and(|store| store.is_latched()) => {
                (pipeline.begin_reopening(), REOPEN_IN_TURN)
            }
            None => return true,
        };
        let outcome = match reopened.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {
                self.reopening = Some(reopened);
                return false;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let source = io::Error::other("opening it again panicked, please report this");
                Err(QueueError::Io { path: pipeline.shard.dir().clone(), source })
            }
            Ok(outcome) => outcome,
        };
        pipeline.is_reopening.store(false, Ordering::Release);
        match outcome {
            Ok(findings) => self.reopened(findings),
            Err(error) => {
                self.store_failed(&error);
                // Delivery found the store busy, and waits to be woken.
                pipeline.committed();
            }
        }
        true
    }

    fn reopened(&mut self, findings: Vec<Finding>) {
        let pipeline = Arc::clone(&self.pipeline);
        if !findings.is_empty() {
            pipeline.definitions().inspect(|loader| loader.keep_again());
        }
        pipeline.report_findings(findings);
        // It may be another file now: rows are read again from the start.
        pipeline.leases.lock().forget(OWN);
        pipeline.committed();
        // The number of records in an arena of an earlier run is not known, so they are not counted here.
        let journal = pipeline.shard.journal();
        let waits = journal.journaled().1 > 0 || journal.oldest_sealed().is_some();
        if !waits && pipeline.leases.is_committed() {
            // Nothing waits whose commit would show that storage works.
            self.succeeded();
        }
    }

    /// Checks where the queue's directory is. If it was moved, made inaccessible or deleted, the open files are used
    /// from then on. If it was deleted, the queue is reported as lost at the end of the process.
    pub(super) fn check_directory(&mut self) {
        match self.pipeline.shard.ownership() {
            Ownership::Held => {
                self.reach.again_at = None;
                if self.pipeline.report_in_reach() {
                    self.reach = Reach::default();
                    self.retry_all_now();
                }
            }
            Ownership::OutOfReach { why } => {
                self.pipeline.report_out_of_reach(&why);
                if self.reach.again_at.is_none_or(|at| at <= self.now()) {
                    // No command arrives when it is back.
                    self.reach.again_at = Some(self.now() + self.reach.delay);
                    self.reach.delay = (self.reach.delay * 2).min(RETRY_MOST);
                }
            }
            Ownership::Deleted => {
                self.reach = Reach::default();
                self.pipeline.shard.become_volatile();
                let path = self.pipeline.shard.dir().clone();
                self.pipeline.report_in_memory(path, "the queue's directory was deleted".into());
                self.retry_all_now();
            }
            Ownership::Lost => {
                self.reach = Reach::default();
                lock(&self.pipeline.out_of_reach).take();
                self.pipeline.report_storage_failure(&self.pipeline.shard.why_lost());
            }
        }
    }

    /// Tries again at once what failed because of the directory.
    fn retry_all_now(&mut self) {
        self.waiting.retry_at = None;
        self.waiting.sync_after = None;
        self.swap_after = None;
        self.free_arena_after = None;
        self.retry_delay = RETRY_FIRST;
    }

    /// Storage has failed. Reports either that the directory is out of reach, or what `say` reports.
    pub(super) fn storage_failed(&mut self, say: impl FnOnce(&Pipeline)) {
        self.check_directory();
        if let Some(stopping) = &mut self.stopping {
            stopping.storage_failures = stopping.storage_failures.saturating_add(1);
        }
        if !self.pipeline.shard.is_lost() {
            say(&self.pipeline);
        }
    }

    pub(super) fn store_failed(&mut self, error: &QueueError) {
        self.storage_failed(|pipeline| pipeline.report_shard_failure(error));
        self.failed();
    }

    /// Whether the store may be tried now: not while it is being opened, nor during the delay after a failure.
    pub(super) fn may_try(&self) -> bool {
        self.reopening.is_none() && self.waiting.retry_at.is_none_or(|at| at <= self.now())
    }

    pub(super) fn failed(&mut self) {
        // Several failures within one delay count as one. Otherwise each turn would postpone the next attempt.
        if !self.may_try() {
            return;
        }
        self.waiting.retry_at = Some(self.now() + self.retry_delay);
        self.retry_delay = (self.retry_delay * 2).min(RETRY_MOST);
    }

    pub(super) fn succeeded(&mut self) {
        self.waiting.retry_at = None;
        self.retry_delay = RETRY_FIRST;
        // A successful ack does not prove that an arena can be created.
        if self.swap_after.is_none() {
            self.pipeline.report_storage_works();
        }
    }
}

impl Pipeline {
    /// Opens the store on a new thread. If the system has no thread to give, the calling thread does it.
    fn begin_reopening(self: &Arc<Self>) -> Receiver<Result<Vec<Finding>, QueueError>> {
        // Until it is open, delivery finds the queue busy instead of waiting for the lock of the store.
        self.is_reopening.store(true, Ordering::Release);
        let now = self.options.clock.wall_nanos();
        let (sender, reopened) = mpsc::channel();
        let (shard, pipeline, result) = (Arc::clone(&self.shard), Arc::downgrade(self), sender.clone());
        let started = threads::spawn("posthog-reopen", move || {
            // The committer is woken after a panic too. It finds the channel closed, and tries again after a delay.
            if let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| shard.reopen_store(now))) {
                let _ = result.send(outcome);
            }
            drop(result);
            if let Some(pipeline) = pipeline.upgrade() {
                pipeline.mailbox.wake();
            }
        });
        if started.is_err() {
            let _ = sender.send(self.shard.reopen_store(now));
        }
        reopened
    }

    /// Reports that an operation of the store, or of the journal before it, failed.
    pub(super) fn report_shard_failure(&self, error: &QueueError) {
        self.report_failure_known_as(&error.to_string(), || explain_queue(&self.options.disk, error));
    }

    /// Reports that the active arena cannot be written or synced.
    pub(super) fn report_journal_failure(&self, error: &io::Error) {
        self.report_failure_known_as(&error.to_string(), || explain_io(&self.options.disk, self.shard.dir(), error));
    }
}
