//! The two threads, what they share with the callers, and the order in which they stop.
//!
//! ```text
//! capture --append--> journal        (the caller's thread: no I/O, no lock held for more than a copy)
//!                        |
//! committer  ------------+-- syncs the journal, carries arenas into the store, settles, evicts, adopts
//!                        |
//! delivery   ------------+-- reads chunks, sends them, hands back settlements (a current-thread runtime of its own)
//! ```
//!
//! Rules
//! * All writes to the store and all file creation are the committer's. The delivery only reads (and mends a row that fails its checks); what it decides goes through the
//!   [`outbox`](source) and is committed with the next carry.
//! * Nothing pending means asleep, without a timer. An append rings the [`bell`](bell) only if the committer believes the journal
//!   clean, or if it made an arena half full, or a batch due.
//! * *Sync* is due `sync_interval` after the first unsynced record, at once if a receipt is awaited, and serves all who wait.
//! * *Carry* is due when an arena is half full, at a flush or stop, and when a batch is due (`flush_at` events or `flush_interval`), the
//!   latter not more than about once a second: a commit costs tens of kilobytes of writes whatever it carries.
//! * *Settle* rides on a carry, and has a transaction of its own at the latest after `settle_interval`.
//! * *Compaction* is done once the queue has run empty and its file is large, at most once a minute, and not while stopping.
//! * A step of the store that fails is tried again with growing delay; meanwhile the journal takes records until it is full, receipts
//!   are still served by syncs, and `stats` says that storage is degraded.
//! * Our threads block every signal but the synchronous faults, and are detached: a host that stops waits on an answer with a
//!   deadline, never on a thread.
//! * Opening happens on the committer's thread too: a file system that hangs cannot hang the caller for longer than `open_timeout`.
//!
//! * Who waits for PostHog's word on a single event ([`verdicts`]) has it sent by a flush, and is answered at the latest when that ends.
//! * While the program has opted out nothing is read for sending; what is queued stays.
//!
//! Stopping: intake closes; the journal is synced; everything is carried; delivery goes on until its deadline; what it settled is
//! committed; the shard is let go. Whatever is not delivered by then stays on disk. A second stop waits for the first.
//!
//! In a forked child nothing here is touched: [`Pipeline::is_forked`] is asked first, and what was inherited is leaked.

mod admission;
mod adoption;
mod bell;
mod bounds;
mod committer;
mod drop_reason;
mod due;
mod flush;
pub(crate) mod pending;
mod receipts;
mod recovery;
mod report;
mod source;
mod start;
mod stop;
#[cfg(test)]
mod tests;
mod threads;
mod verdicts;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::delivery::{self, DeliveryHandle, DeliveryOptions, DeliveryState};
use crate::disk::{Disk, fork};
use crate::journal::{Appended, Refused};
use crate::record::frame;
use crate::shard::{Project, Shard, Stranded};
use crate::store::{DeadRecord, Ledger};
use crate::transport::{Transport, TransportOptions};

use admission::Admission;
pub use admission::Overflow;
pub(crate) use admission::{Limits, Unwelcome};
use bell::Bell;
pub use drop_reason::DropReason;
pub use pending::{Pending, PendingFuture, WaitTimeout};
use receipts::Receipts;
pub use report::{DeliveryReport, Endpoint, FlushReport, PersistError, ShutdownReport};
use source::Outbox;
pub(crate) use start::{StartError, start};
use verdicts::Verdicts;

/// Everything the worker has to know.
#[derive(Clone)]
pub(crate) struct WorkerOptions {
    /// Whose events.
    pub(crate) project: Project,
    /// Other projects whose queues are delivered too.
    pub(crate) also: Vec<Project>,
    /// Where queues lie.
    pub(crate) queue_dir: PathBuf,
    /// Works in memory when the directory cannot be used.
    pub(crate) memory_fallback: bool,
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
    /// Age of the oldest uncarried event that makes a batch due.
    pub(crate) flush_interval: Duration,
    /// Age of the oldest unsynced event that makes a sync due.
    pub(crate) sync_interval: Duration,
    /// Age of the oldest uncommitted settlement that gives it a transaction of its own.
    pub(crate) settle_interval: Duration,
    /// Bounds of the queue.
    pub(crate) limits: Limits,
    /// Sends nothing until told to.
    pub(crate) held: bool,
    /// How to send.
    pub(crate) delivery: DeliveryOptions,
    /// How to reach the network.
    pub(crate) transport: TransportOptions,
    /// Told about each verdict.
    pub(crate) on_delivery: Option<delivery::OnDelivery>,
    /// Hears of everything a human might want to know.
    pub(crate) report: Arc<dyn Fn(Notice) + Send + Sync>,
    /// The disk.
    pub(crate) disk: Disk,
    /// The time.
    pub(crate) clock: Clock,
}

/// Something that happened on one of our threads.
#[derive(Debug)]
pub(crate) enum Notice {
    /// During delivery.
    Delivery(delivery::Notice),
    /// Something about this machine's network setup.
    Network(String),
    /// A file was set aside.
    SetAside {
        /// Its new name.
        path: PathBuf,
        /// What was wrong.
        why: String,
        /// Events that could not be saved.
        lost: u64,
    },
    /// Accepted events that are nowhere.
    Missing {
        /// How many.
        events: u64,
        /// Lost with a power cut, before they were synced.
        after_restart: bool,
    },
    /// The last owner died inside the store; its file was checked.
    Checked,
    /// Storage fails, or works again.
    Storage {
        /// What fails; `None` when it works again.
        problem: Option<String>,
    },
    /// Events were given up for room or age.
    Evicted {
        /// How many.
        events: u64,
        /// For their age; else for room.
        for_age: bool,
    },
    /// The queue directory does not outlive the machine or the container.
    Ephemeral {
        /// Which.
        path: PathBuf,
        /// What it is on.
        what: &'static str,
    },
    /// Another project's queue has events that nobody delivers.
    Stranded(Stranded),
    /// A stop ran out of time.
    LeftOnDisk {
        /// Events that are still queued.
        events: u64,
    },
    /// A shard was left alone: it is of a newer format, or cannot be opened.
    ShardSkipped {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// Where things stand, for statistics.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) ledger: Ledger,
    /// Accepted by this shard, in all its lives.
    pub(crate) accepted: u64,
    /// The ledger of the shard being adopted right now.
    pub(crate) adopted: Option<Ledger>,
    pub(crate) unsynced_for: Option<Duration>,
    pub(crate) uncarried_bytes: u64,
    pub(crate) oldest_at: Option<i64>,
    pub(crate) file_bytes: u64,
    pub(crate) replayed: u64,
    pub(crate) volatile: bool,
    pub(crate) problem: Option<String>,
    pub(crate) full: Option<Unwelcome>,
    pub(crate) closed: bool,
    pub(crate) delivery: DeliveryState,
    pub(crate) dir: PathBuf,
    pub(crate) stranded: Vec<Stranded>,
    /// Wall time of the look.
    pub(crate) now: i64,
}

/// What callers and the two threads share.
pub(crate) struct Pipeline {
    options: WorkerOptions,
    /// Names it among all pipelines of this process.
    id: u64,
    generation: u64,
    shard: Arc<Shard>,
    adopted: Mutex<Option<adoption::Adopted>>,
    /// Shards, by project and number, that are left alone until then.
    avoided: Mutex<HashMap<(usize, u32), Instant>>,
    admission: Admission,
    receipts: Receipts,
    bell: Bell,
    outbox: Outbox,
    verdicts: Verdicts,
    /// What is queued stays queued: the program has opted out.
    held: AtomicBool,
    /// Set before anybody else has the pipeline.
    delivery: OnceLock<DeliveryHandle>,
    transport: Arc<Transport>,
    /// Why storage does not work at the moment.
    problem: Mutex<Option<String>>,
    unsynced_since: Mutex<Option<Instant>>,
    replayed: AtomicU64,
    stranded: Vec<Stranded>,
    finished: OnceLock<ShutdownReport>,
}

impl Pipeline {
    /// Takes a record: after `Ok` it survives the process. `dear` records are taken a little longer than others when room runs out.
    #[inline]
    pub(crate) fn append(&self, body: &[u8], class: u8) -> Result<u64, Unwelcome> {
        let hash = frame::hash_body(body);
        if self.admission.is_open() {
            match self.shard.append(body, hash, class) {
                Ok(appended) => return Ok(self.appended(appended)),
                Err(Refused::Full) => {}
                // Who waits for room waits for the lock as well.
                Err(Refused::Busy) if self.may_block() => {}
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
        self.receipts.wait_for(seq, || self.bell.ring(|wanted| wanted.sync = true))
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

    /// Where things stand.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let store = self.shard.open_store();
        let uncarried = self.shard.journal().uncarried();
        let oldest = store.as_ref().and_then(|store| store.oldest(crate::shard::LANE).ok().flatten());
        let mut ledger = self.shard.ledger();
        // What is settled counts as settled, whether that is committed yet or not; a kill before the commit takes it back.
        let (delivered, buried) = self.outbox.settled_events(source::OWN);
        let delivered = delivered.min(ledger.queued_events);
        let buried = buried.min(ledger.queued_events - delivered);
        ledger.queued_events = ledger.queued_events.saturating_sub(delivered + buried);
        ledger.delivered += delivered;
        ledger.buried += buried;
        Snapshot {
            ledger,
            accepted: self.shard.accepted(),
            adopted: self.adopted_shard().map(|(_, shard)| shard.ledger()),
            unsynced_for: lock(&self.unsynced_since)
                .map(|since| self.options.clock.now().saturating_duration_since(since)),
            uncarried_bytes: uncarried.0,
            oldest_at: oldest.map(|(_, carried_at)| carried_at),
            file_bytes: store.as_ref().and_then(|store| store.file_bytes().ok()).unwrap_or(0),
            replayed: self.replayed.load(Ordering::Relaxed),
            volatile: self.shard.is_volatile(),
            problem: lock(&self.problem).clone(),
            full: self.admission.unwelcome(),
            closed: self.bell.is_stopping(),
            delivery: self.delivery().map(DeliveryHandle::state).unwrap_or_default(),
            dir: self.shard.dir().clone(),
            stranded: self.stranded.clone(),
            now: self.options.clock.wall_nanos(),
        }
    }

    /// Up to `limit` records that were refused for good, oldest first.
    pub(crate) fn dead(&self, limit: usize) -> Vec<DeadRecord> {
        let read = self.shard.open_store().and_then(|store| store.dead(limit).ok());
        read.map(|read| read.records).unwrap_or_default()
    }

    /// Mirrors the caller's counts of refusals to the status page.
    pub(crate) fn mirror_refusals(&self, counts: &[u64]) {
        if self.finished.get().is_none() {
            self.shard.mirror_refusals(counts);
        }
    }

    /// The options it was started with, for a forked child to start its own.
    pub(crate) fn options(&self) -> &WorkerOptions {
        &self.options
    }

    fn delivery(&self) -> Option<&DeliveryHandle> {
        self.delivery.get()
    }

    #[inline]
    fn appended(&self, appended: Appended) -> u64 {
        // The committer is told only of what it does not expect: the first record after it found the journal clean, and thresholds.
        if self.bell.believes_clean() || appended.half_full || appended.records == self.options.flush_at {
            self.bell.ring_for_records();
        }
        appended.seq
    }

    #[cold]
    fn refused(&self, refused: Refused) -> Unwelcome {
        match refused {
            Refused::Full => Unwelcome::JournalFull,
            Refused::Busy => Unwelcome::JournalBusy,
            Refused::Closed => Unwelcome::Closed,
            Refused::Forked => Unwelcome::Forked,
            Refused::Io(error) => {
                self.storage_fails(&error.to_string());
                Unwelcome::Storage
            }
        }
    }

    fn storage_fails(&self, problem: &str) {
        let new = {
            let mut known = lock(&self.problem);
            let new = known.as_deref() != Some(problem);
            *known = Some(problem.to_owned());
            new
        };
        if new {
            (self.options.report)(Notice::Storage { problem: Some(problem.to_owned()) });
        }
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
