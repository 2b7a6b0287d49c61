//! The two threads, what they share with the callers, and the order in which they stop.
//!
//! ```text
//! capture --append--> journal        (the caller's thread: no I/O, no lock held for more than a copy)
//!                        |
//! committer  ------------+-- syncs the journal, checkpoints arenas into the store, acks, evicts, adopts
//!                        |
//! delivery   ------------+-- reads chunks, sends them, hands back acks (a current-thread runtime of its own)
//! ```
//!
//! Rules
//! * All writes to the store and all file creation are the committer's, but for a shard that is being opened or that gives back its
//!   room ([`opening`]), which nobody else has meanwhile. The delivery only reads (and mends a row that fails its checks); what it decides goes through the
//!   [leases](crate::queue::Leases) and is committed with the next checkpoint.
//! * Nothing pending means asleep, without a timer. An append rings the [`mailbox`](mailbox) only if the committer believes the journal
//!   clean, or if it made an arena half full, or a batch due.
//! * *Sync* is due `sync_interval` after the first unsynced record, at once if a receipt is awaited, and serves all who wait.
//! * *Checkpoint* is due when an arena is half full, at a flush or stop, and when a batch is due (`flush_at` events or `flush_interval`), the
//!   latter not more than about once a second: a commit costs tens of kilobytes of writes whatever it checkpoints.
//! * *Settle* rides on a checkpoint, and has a transaction of its own at the latest after `ack_interval`.
//! * *Bounds* are looked at in each turn. The journal is told how much it may hold, so that nothing is accepted that the store will have
//!   no room for; where the oldest make room, they do so before an arena is checkpointed and, if that was not enough, after it.
//! * *Compaction* is done once little of a large file is used, also while events go on coming, at most once a minute, and not while stopping.
//! * A step of the store that fails is tried again with growing delay; meanwhile the journal takes records until it is full, receipts
//!   are still served by syncs, and `stats` says that storage is degraded.
//! * Our threads block every signal but the synchronous faults, and are detached: a host that stops waits on an answer with a
//!   deadline, never on a thread.
//! * Opening happens on the committer's thread too: a file system that hangs cannot hang the caller for longer than `open_timeout`. A
//!   shard of an earlier process that does not open within a part of that is left to a thread of its own ([`opening`]), another one is
//!   taken, and the first is delivered as an orphan when it is open.
//!
//! * How a run is and how it ends is left for the next one ([`life`]) by a committer that is awake anyway, and at `exit`.
//! * A flush is answered by the committer, once what it acked is committed (or cannot be) and the bounds were looked at again.
//! * Who waits for PostHog's word on a single event ([`outcomes`]) has it sent by a flush, and is answered at the latest when that ends.
//! * Dead letters that are to be sent again are appended to the journal, and taken out of the store once they are checkpointed ([`dead`]).
//! * Definitions of flags are loaded by a task on the delivery's runtime; what it wants kept for the next process is written by the
//!   committer when nothing more urgent fails ([`flags`]).
//! * While the program has opted out nothing is read for sending; what is queued stays.
//!
//! Stopping: intake closes; the journal is synced; everything is checkpointed; delivery goes on until its deadline; what it acked is
//! committed; the shard is let go. Whatever is not delivered by then stays on disk. A second stop waits for the first.
//!
//! Flags are asked for on the delivery's runtime ([`runtime`](runtime), [`flags`](flags)), a bounded number of questions at once, beside
//! what is sent and without a part in its pace: an endpoint that is down for events may still know flags. Whoever asks is answered
//! exactly once, at the latest when the delivery ends.
//!
//! AI events have a pipeline of their own ([`lane`](lane)): another directory, another endpoint, larger arenas, the same code. Whoever
//! asks both lanes for something gets one answer ([`joint`](joint)).
//!
//! In a forked child nothing here is touched: [`Pipeline::is_forked`] is asked first, and what was inherited is leaked.

mod admission;
mod adoption;
pub(crate) mod advice;
mod bounds;
mod circumstances;
mod committer;
#[cfg(feature = "testing")]
mod contents;
mod crash_reports;
mod dead;
mod due;
mod flags;
#[cfg(test)]
mod flags_tests;
mod floor;
mod flush;
mod joint;
mod lane;
mod life;
mod mailbox;
mod notice;
mod opening;
mod outcomes;
mod own;
pub(crate) mod pending;
mod receipts;
mod recovery;
mod runtime;
mod snapshot;
mod source;
mod start;
mod stop;
mod symbols;
#[cfg(test)]
mod tests;
mod threads;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::delivery::{self, DeliveryHandle, DeliveryOptions};
use crate::flags::loader::{Loader, LoaderOptions};
use crate::flags::{RemoteFlags, RemoteOptions};
use crate::queue::frame;
use crate::queue::journal::{self, Appended};
use crate::queue::{Leases, OrphanedQueue, Project, Queue, Totals};
use crate::report::{PersistError, ShutdownReport};
use crate::sys::clock::Clock;
use crate::sys::disk::{Disk, fork};
use crate::transport::{Http, TransportOptions};
pub(crate) use lane::Lane;

use admission::Admission;
pub use admission::OverflowPolicy;
pub(crate) use admission::{AppendError, Limits};
#[cfg_attr(not(test), allow(unused_imports, reason = "named by tests alone"))]
pub(crate) use circumstances::{Circumstances, Outage};
pub(crate) use dead::{DeadOrder, sum};
pub(crate) use floor::Floor;
pub(crate) use joint::both;
pub(crate) use life::LastRun;
use mailbox::Mailbox;
pub(crate) use notice::Notice;
use outcomes::Outcomes;
pub use pending::{Pending, PendingValue};
use receipts::Receipts;
pub(crate) use snapshot::Snapshot;
use start::Network;
pub(crate) use start::{StartError, start};
pub(crate) use stop::release;
pub(crate) use threads::spawn_apart;

/// Everything the worker has to know.
#[derive(Clone)]
pub(crate) struct WorkerOptions {
    /// Whose events.
    pub(crate) project: Project,
    /// Which of them.
    pub(crate) lane: Lane,
    /// Other projects whose queues are delivered too.
    pub(crate) also: Vec<Project>,
    /// Where queues lie.
    pub(crate) queue_dir: PathBuf,
    /// Works in memory when the directory cannot be used.
    pub(crate) memory_fallback: bool,
    /// Bytes of the largest event, encoded. Held by whoever makes the records.
    pub(crate) max_event_bytes: usize,
    /// Bytes of one arena.
    pub(crate) arena_bytes: usize,
    /// Memory for pages of the store.
    pub(crate) cache_bytes: usize,
    /// Room kept for deletes on a full disk.
    pub(crate) reserve_bytes: u64,
    /// How long an append may wait for the journal's lock.
    pub(crate) lock_wait: Duration,
    /// How long opening may take.
    pub(crate) open_timeout: Duration,
    /// Events that make a batch due.
    pub(crate) flush_at: u64,
    /// Age of the oldest journaled event that makes a batch due.
    pub(crate) flush_interval: Duration,
    /// Age of the oldest unsynced event that makes a sync due.
    pub(crate) sync_interval: Duration,
    /// Age of the oldest uncommitted ack that gives it a transaction of its own.
    pub(crate) ack_interval: Duration,
    /// Bounds of the queue.
    pub(crate) limits: Limits,
    /// Sends nothing until told to.
    pub(crate) held: bool,
    /// How to send.
    pub(crate) delivery: DeliveryOptions,
    /// How to ask for flags.
    pub(crate) flags: RemoteOptions,
    /// Where their definitions are loaded from, if they are.
    pub(crate) flag_definitions: Option<LoaderOptions>,
    /// How to reach the network.
    pub(crate) transport: TransportOptions,
    /// What requests go through instead, where the network is played by somebody.
    pub(crate) network: Option<Arc<dyn Http>>,
    /// Told about each verdict.
    pub(crate) on_delivery: Option<delivery::OnDelivery>,
    /// Hears of everything a human might want to know.
    pub(crate) report: Arc<dyn Fn(Notice) + Send + Sync>,
    /// The disk.
    pub(crate) disk: Disk,
    /// The time.
    pub(crate) clock: Clock,
}

/// What callers and the two threads share.
pub(crate) struct Pipeline {
    options: WorkerOptions,
    /// Names it among all pipelines of this process.
    id: u64,
    generation: u64,
    shard: Arc<Queue>,
    life: life::Life,
    adopted: Mutex<Option<adoption::Adopted>>,
    avoided: adoption::AvoidedShards,
    orphans: Arc<opening::Orphans>,
    admission: Admission,
    receipts: Receipts,
    mailbox: Mailbox,
    leases: Leases,
    outcomes: Outcomes,
    /// What is queued stays queued: the program has opted out.
    held: AtomicBool,
    /// Set before anybody else has the pipeline.
    delivery: OnceLock<DeliveryHandle>,
    /// The delivery's, for whatever else asks PostHog; set with it.
    runtime: OnceLock<tokio::runtime::Handle>,
    network: Network,
    remote_flags: Arc<RemoteFlags>,
    /// The loader of definitions, if the program configured a source.
    definitions: Option<Arc<Loader>>,
    /// Why the queue ends with the process, if it does.
    in_memory: OnceLock<String>,
    /// Why storage does not work at the moment: in the words by which a failure is known again, and in those for an operator.
    problem: Mutex<Option<(String, String)>>,
    /// Since when the endpoint has failed, if it does.
    failing_since: Mutex<Option<Instant>>,
    /// Why the queue's directory is out of reach, if it is.
    out_of_reach: Mutex<Option<String>>,
    unsynced_since: Mutex<Option<Instant>>,
    replayed: AtomicU64,
    orphaned: Vec<OrphanedQueue>,
    ai_left_behind: bool,
    /// What had been decided when a stop was first asked for.
    before_stop: OnceLock<Totals>,
    finished: OnceLock<ShutdownReport>,
    /// Called when last words of another shard's owner were brought here.
    reports_adopted: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Pipeline {
    /// Takes a record: after `Ok` it survives the process. `priority` records are taken a little longer than others when room runs out.
    #[inline]
    pub(crate) fn append(&self, body: &[u8], class: u8) -> Result<u64, AppendError> {
        let hash = frame::hash_body(body);
        if self.admission.is_open() {
            match self.shard.append(body, hash, class) {
                Ok(appended) => return Ok(self.appended(appended)),
                Err(journal::AppendError::Full | journal::AppendError::Bounded) => {}
                // Who waits for room waits for the lock as well.
                Err(journal::AppendError::Busy) if self.may_block() => {}
                Err(other) => return Err(self.refused(other)),
            }
        }
        self.append_without_room(body, hash, class)
    }

    /// Resolves when the record of that sequence number would survive a power cut.
    pub(crate) fn persisted(&self, seq: u64) -> Pending<Result<(), PersistError>> {
        if self.shard.is_volatile() {
            return pending::answered(Err(PersistError::Volatile));
        }
        self.receipts.wait_for(seq, || self.mailbox.ring(|wanted| wanted.sync = true))
    }

    /// Whether this process is a forked child of the one that started the pipeline. Asked before anything else is touched.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        fork::generation() != self.generation
    }

    /// Its number among the pipelines of this process.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The fork generation that it belongs to.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Mirrors the caller's counts of refusals to the status page.
    pub(crate) fn mirror_refusals(&self, counts: &[u64]) {
        if self.finished.get().is_none() {
            self.shard.mirror_counters(counts);
        }
    }

    /// Whether nothing is taken any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.mailbox.is_stopping()
    }

    /// The options it was started with, for a forked child or for the other lane to start its own.
    pub(crate) fn options(&self) -> &WorkerOptions {
        &self.options
    }

    fn delivery(&self) -> Option<&DeliveryHandle> {
        self.delivery.get()
    }

    #[inline]
    fn appended(&self, appended: Appended) -> u64 {
        // The committer is told only of what it does not expect: the first record after it found the journal clean, and thresholds.
        if self.mailbox.believes_clean() || appended.half_full || appended.records == self.options.flush_at {
            self.mailbox.ring_for_records();
        }
        appended.seq
    }

    #[cold]
    fn refused(&self, refused: journal::AppendError) -> AppendError {
        match refused {
            journal::AppendError::Full => AppendError::JournalFull,
            journal::AppendError::Bounded => AppendError::QueueFull,
            journal::AppendError::Busy => AppendError::JournalBusy,
            journal::AppendError::Closed => AppendError::Closed,
            // The committer has said why.
            journal::AppendError::Lost => AppendError::Storage,
            journal::AppendError::Forked => AppendError::Forked,
            journal::AppendError::Io(error) => {
                self.journal_fails(&error);
                AppendError::Storage
            }
        }
    }

    fn storage_fails(&self, problem: &str) {
        self.storage_fails_by(problem, || problem.to_owned());
    }

    /// `known_as` stays the same while the same goes on; the explanation has figures in it that change.
    fn storage_fails_by(&self, known_as: &str, explain: impl FnOnce() -> String) {
        if self.is_out_of_reach() {
            // That is said already; whatever else there is shows again when the directory is back.
            return;
        }
        if lock(&self.problem).as_ref().is_some_and(|(known, _)| known == known_as) {
            return;
        }
        let problem = explain();
        *lock(&self.problem) = Some((known_as.to_owned(), problem.clone()));
        (self.options.report)(Notice::Storage { problem: Some(problem) });
    }

    /// Why storage does not work at the moment.
    fn problem(&self) -> Option<String> {
        lock(&self.problem).as_ref().map(|(_, problem)| problem.clone())
    }

    /// From now on the queue ends with the process.
    fn is_in_memory(&self, path: PathBuf, problem: String) {
        if self.in_memory.set(problem.clone()).is_ok() {
            // What was said of the files does not matter any more.
            lock(&self.problem).take();
            lock(&self.out_of_reach).take();
            self.receipts.fail(&PersistError::Volatile);
            (self.options.report)(Notice::InMemory { path, problem });
        }
    }

    fn is_out_of_reach(&self) -> bool {
        lock(&self.out_of_reach).is_some()
    }

    /// The queue's directory cannot be reached by its path. Said once, whatever is met there from now on.
    fn goes_out_of_reach(&self, why: &str) {
        let dir = self.shard.dir().display();
        let problem = format!(
            "{dir} is out of reach ({why}); events are taken, kept and sent through the files that are open; put the directory back, or \
             restart this process to use a new queue"
        );
        let is_new = lock(&self.out_of_reach).replace(problem.clone()).is_none();
        // Met on the way there, and no longer true when it is back.
        lock(&self.problem).take();
        if is_new {
            (self.options.report)(Notice::Storage { problem: Some(problem) });
        }
    }

    /// `true` if it was out of reach.
    fn comes_into_reach(&self) -> bool {
        let was_out = lock(&self.out_of_reach).take().is_some();
        if was_out {
            (self.options.report)(Notice::Storage { problem: None });
        }
        was_out
    }

    fn storage_works(&self) {
        if lock(&self.problem).take().is_some() {
            (self.options.report)(Notice::Storage { problem: None });
        }
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("dir", self.shard.dir()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
