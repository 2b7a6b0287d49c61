//! The state of one lane that its callers, the committer and its delivery engine share.
//!
//! A [`Pipeline`] is a lane: a queue ([`Queue`]) with its bounds, the mailbox through which any thread gives commands
//! to the committer, and the handle of the delivery engine. Its methods stand in the files of the subjects that they
//! belong to; here are the ones that callers use for every event ([`append`](Pipeline::append),
//! [`persisted`](Pipeline::persisted)) and the state of the storage that is reported to the operator.
//!
//! In a forked child nothing of an inherited pipeline may be touched: [`Pipeline::is_forked`] is asked first.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::admission::Admission;
use super::mailbox::Mailbox;
use super::options::PipelineOptions;
use super::outcomes::Outcomes;
use super::pending::{self, Pending};
use super::start::Network;
use super::threads::Threads;
use super::waiters::Receipts;
use super::{life, orphans};
use crate::delivery::DeliveryHandle;
use crate::flags::RemoteFlags;
use crate::flags::loader::Loader;
use crate::queue::journal::{self, Appended};
use crate::queue::{Leases, OrphanedQueue, Queue, Totals, frame};
use crate::report::{Diagnostic, DropReason, PersistError, QueueMedium, ShutdownReport};
use crate::sys::disk::fork;

/// One lane of a client, shared by its callers and the two threads.
pub(crate) struct Pipeline {
    pub(super) options: PipelineOptions,
    /// Identifies it among all pipelines of this process.
    pub(super) id: u64,
    pub(super) generation: u64,
    pub(super) shard: Arc<Queue>,
    pub(super) life: life::Life,
    pub(super) adopted: Mutex<Option<orphans::Adopted>>,
    pub(super) avoided: orphans::AvoidedShards,
    pub(super) orphans: Arc<orphans::Orphans>,
    pub(super) admission: Admission,
    pub(super) receipts: Receipts,
    pub(super) mailbox: Mailbox,
    pub(super) leases: Leases,
    pub(super) outcomes: Outcomes,
    /// The program has opted out: nothing is sent, and the queue stays as it is.
    pub(super) held: AtomicBool,
    /// The delivery engine. Set before a caller gets the pipeline.
    pub(super) delivery: OnceLock<DeliveryHandle>,
    /// The two threads, shared with the other lanes.
    pub(super) threads: Arc<Threads>,
    pub(super) network: Network,
    pub(super) remote_flags: Arc<RemoteFlags>,
    /// The loader of definitions, if the program configured a source.
    pub(super) definitions: Option<Arc<Loader>>,
    /// Whether delivery failed when its pace last changed.
    pub(super) was_failing: AtomicBool,
    /// Its pace has changed since the status page was last written.
    pub(super) has_pace_changed: AtomicBool,
    /// What the queue is stored on, as found when it was opened.
    pub(super) medium: QueueMedium,
    /// Why the queue is lost at the end of the process, if it is.
    pub(super) in_memory: OnceLock<String>,
    /// Why storage fails at the moment: the text that identifies the failure, and the text for the operator.
    pub(super) problem: Mutex<Option<(String, String)>>,
    /// Why the queue's directory cannot be reached by its path, if so.
    pub(super) out_of_reach: Mutex<Option<String>>,
    pub(super) unsynced_since: Mutex<Option<Instant>>,
    /// The error of a sync that was made between two turns, for the next turn to handle.
    pub(super) sync_failure: Mutex<Option<std::io::Error>>,
    /// The store is being opened again; a read would wait for that.
    pub(super) is_reopening: AtomicBool,
    /// A shutdown has begun, and events in the journal are still to be moved to the store: nothing to send does not mean
    /// that everything is sent. Delivery is woken when this ends.
    pub(super) is_catching_up: AtomicBool,
    pub(super) replayed: AtomicU64,
    pub(super) orphaned: Vec<OrphanedQueue>,
    pub(super) ai_left_behind: bool,
    /// The totals at the time of the first shutdown request.
    pub(super) before_stop: OnceLock<Totals>,
    pub(super) finished: OnceLock<ShutdownReport>,
    /// The client's counts of dropped events, in the lane that has them on its status page.
    pub(super) drop_counts: OnceLock<Box<dyn Fn() -> Vec<u64> + Send + Sync>>,
    /// Called when crash reports of an orphan were moved to this shard.
    pub(super) reports_adopted: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Pipeline {
    /// Appends a record. After `Ok` it survives the death of the process. Records with a `class` above 0 (priority) are
    /// accepted a little longer than others when the queue is nearly full.
    #[inline]
    pub(crate) fn append(&self, body: &[u8], class: u8) -> Result<u64, DropReason> {
        let hash = frame::hash_body(body);
        if self.admission.is_open() {
            match self.shard.append(body, hash, class) {
                Ok(appended) => return Ok(self.appended(appended)),
                Err(journal::AppendError::Full | journal::AppendError::Bounded) => {}
                // A caller that may wait for space waits for the lock as well.
                Err(journal::AppendError::Busy) if self.may_block() => {}
                Err(other) => return Err(self.refused(other)),
            }
        }
        self.append_without_room(body, hash, class)
    }

    /// Resolves when the record with this sequence number would survive a power cut.
    pub(crate) fn persisted(&self, seq: u64) -> Pending<Result<(), PersistError>> {
        if self.shard.is_volatile() {
            return pending::answered(Err(PersistError::Volatile));
        }
        self.receipts.wait_for(seq, || self.mailbox.send(|commands| commands.sync = true))
    }

    /// Whether this process is a forked child of the one that started the pipeline. Checked before anything else is
    /// touched.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        fork::generation() != self.generation
    }

    /// Its number among the pipelines of this process.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The fork generation in which it was started.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Has the committer copy the client's counts of dropped events to the status page when it describes the lane.
    pub(crate) fn count_drops_by(&self, counts: impl Fn() -> Vec<u64> + Send + Sync + 'static) {
        let _ = self.drop_counts.set(Box::new(counts));
    }

    /// Copies the caller's counts of dropped events to the status page.
    pub(crate) fn mirror_refusals(&self, counts: &[u64]) {
        if self.finished.get().is_none() {
            self.shard.mirror_counters(counts);
        }
    }

    /// Whether intake has ended.
    pub(crate) fn is_closing(&self) -> bool {
        self.mailbox.is_stopping()
    }

    /// The options it was started with, for the pipeline of a forked child or of another lane.
    pub(crate) fn options(&self) -> &PipelineOptions {
        &self.options
    }

    pub(super) fn delivery(&self) -> Option<&DeliveryHandle> {
        self.delivery.get()
    }

    #[inline]
    pub(super) fn appended(&self, appended: Appended) -> u64 {
        // The committer is woken only for what it does not expect: the first record after it found the journal clean, a
        // half full arena, a full batch.
        if self.mailbox.believes_clean() || appended.half_full || appended.records == self.options.intervals.flush_at {
            self.mailbox.wake_for_records();
        }
        appended.seq
    }

    #[cold]
    pub(super) fn refused(&self, refused: journal::AppendError) -> DropReason {
        match refused {
            journal::AppendError::Full => {
                self.admission.journal_was_full.store(true, Ordering::Relaxed);
                DropReason::JournalFull
            }
            journal::AppendError::Bounded => DropReason::QueueFull,
            journal::AppendError::Busy => DropReason::JournalBusy,
            journal::AppendError::Closed => DropReason::Closed,
            // The committer has reported why.
            journal::AppendError::Lost => DropReason::Storage,
            journal::AppendError::Forked => DropReason::Forked,
            journal::AppendError::Io(error) => {
                self.report_journal_failure(&error);
                DropReason::Storage
            }
        }
    }

    pub(super) fn report_storage_failure(&self, problem: &str) {
        self.report_failure_known_as(problem, || problem.to_owned());
    }

    /// Reports that storage fails, unless the same failure was reported last. `known_as` identifies the failure; the
    /// explanation contains figures that change.
    pub(super) fn report_failure_known_as(&self, known_as: &str, explain: impl FnOnce() -> String) {
        if self.is_out_of_reach() {
            // That is reported already. Any other failure shows again when the directory is back.
            return;
        }
        if lock(&self.problem).as_ref().is_some_and(|(known, _)| known == known_as) {
            return;
        }
        let problem = explain();
        *lock(&self.problem) = Some((known_as.to_owned(), problem.clone()));
        (self.options.report)(storage_failing(&problem));
    }

    /// Why storage fails at the moment, for the operator.
    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.problem).as_ref().map(|(_, problem)| problem.clone())
    }

    /// Reports that the queue is lost at the end of the process from now on.
    pub(super) fn report_in_memory(&self, path: PathBuf, problem: String) {
        if self.in_memory.set(problem.clone()).is_ok() {
            // Problems with the files no longer matter.
            lock(&self.problem).take();
            lock(&self.out_of_reach).take();
            self.receipts.fail(&PersistError::Volatile);
            (self.options.report)(Diagnostic::InMemory { path, problem });
        }
    }

    pub(super) fn is_out_of_reach(&self) -> bool {
        lock(&self.out_of_reach).is_some()
    }

    /// Reports once that the queue's directory cannot be reached by its path, whatever fails there from now on.
    pub(super) fn report_out_of_reach(&self, why: &str) {
        let dir = self.shard.dir().display();
        let problem = format!(
            "{dir} is out of reach ({why}); events are taken, kept and sent through the files that are open; put the directory back, or \
             restart this process to use a new queue"
        );
        let is_new = lock(&self.out_of_reach).replace(problem.clone()).is_none();
        // The failure was a consequence, and is obsolete when the directory is back.
        lock(&self.problem).take();
        if is_new {
            (self.options.report)(storage_failing(&problem));
        }
    }

    /// Reports that the directory can be reached again. Returns whether it was out of reach.
    pub(super) fn report_in_reach(&self) -> bool {
        let was_out = lock(&self.out_of_reach).take().is_some();
        if was_out {
            (self.options.report)(Diagnostic::StorageRecovered);
        }
        was_out
    }

    pub(super) fn report_storage_works(&self) {
        if lock(&self.problem).take().is_some() {
            (self.options.report)(Diagnostic::StorageRecovered);
        }
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("dir", self.shard.dir()).finish_non_exhaustive()
    }
}

/// The diagnostic of a failure of storage.
pub(super) fn storage_failing(problem: &str) -> Diagnostic {
    let problem =
        format!("{problem}; new events are accepted while the journal has space for them, and storage is tried again");
    Diagnostic::StorageFailing { problem }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_storage_says_what_happens_meanwhile() {
        assert_eq!(
            storage_failing("/q: the disk is full").to_string(),
            "the queue's storage fails: /q: the disk is full; new events are accepted while the journal has space for them, and storage \
             is tried again"
        );
    }
}
