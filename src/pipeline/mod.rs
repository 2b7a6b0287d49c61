//! The lanes of a client, the two threads that serve them, and the order in which they stop.
//!
//! ```text
//! capture --append--> journal        (the caller's thread: no I/O, no lock held for more than a copy)
//!                        |
//! committer  ------------+-- syncs journals, checkpoints arenas into stores, commits acks, evicts, looks for orphans
//!                        |
//! delivery   ------------+-- reads rows, sends them, hands in acks (a current-thread tokio runtime)
//! ```
//!
//! A lane ([`Pipeline`]) has a queue in its own directory, its own bounds, and a delivery engine with its own endpoint.
//! A client has the analytics lane, and the lane of AI events once there are any ([`options`]). The same two threads
//! ([`threads`]) serve all lanes: one committer ([`committer`]) and one delivery runtime. A lane waits for the other at
//! most for a single disk operation.
//!
//! Rules
//! * The committer makes all writes to stores and creates all files. The exception is a shard that is being opened or
//!   reopened, or that is empty and being given up: no other thread uses it meanwhile ([`orphans`], [`recovery`]).
//!   Delivery only reads (and repairs a row that fails its checks). Its decisions go through the
//!   [leases](crate::queue::Leases) and are committed with the next checkpoint.
//! * With nothing pending both threads sleep without a timer. An append wakes the committer only if the committer last
//!   found the journal without new records, or if the append made an arena half full or completed a batch
//!   ([`mailbox`]).
//! * A *sync* is due `sync_interval` after the first unsynced record, and at once if a receipt is awaited. It serves
//!   all that wait.
//! * A *checkpoint* is due when an arena is half full, at a flush or shutdown, and when a batch is due (`flush_at`
//!   events or `flush_interval`), the latter about once a second at most: a commit writes tens of kilobytes whatever it
//!   contains.
//! * *Acks* are committed with a checkpoint, and in a transaction of their own after `ack_interval` at the latest.
//! * The *bounds* are checked each time the committer runs ([`bounds`]). It tells the journal how much it may accept
//!   (the budget), so that nothing is accepted for which the store would have no space ([`admission`]).
//! * An operation of the store that fails is tried again with growing delay ([`recovery`]). Meanwhile the journal
//!   accepts records until it is full, receipts are served by syncs, and `Stats::storage` says that storage is
//!   degraded.
//! * A start waits for the disk for `open_timeout` at most. If opening the shard of an earlier process uses up a part
//!   of that time, the start takes another shard, and the slow one is delivered as an orphan once it is open
//!   ([`start`], [`orphans`]).
//! * A flush is answered by the committer, after the results are committed and the bounds are checked again
//!   ([`waiters`]). If a caller waits for the outcome of a single event, a flush sends that event at once
//!   ([`outcomes`]).
//! * Dead letters that are retried are appended to the journal, and removed after their checkpoint ([`dead_letters`]).
//! * Signs of life of this run, and how it ends, are recorded for the next run of the program ([`life`]).
//! * Requests for flags and the loader of their definitions run on the delivery's runtime, and do not influence the
//!   pace of events ([`flags`]).
//! * While the program has opted out, nothing is read for sending, and the queue stays as it is.
//!
//! Shutdown ([`shutdown`]): intake ends, the journal is synced, everything is checkpointed, delivery goes on until its
//! deadline, its acks are committed, and the shard is released. What is not delivered by then stays on disk.
//!
//! In a forked child nothing here is touched: [`Pipeline::is_forked`] is asked first, and what was inherited is leaked.

mod admission;
pub(crate) mod advice;
mod bounds;
mod committer;
mod dead_letters;
mod description;
mod flags;
#[cfg(test)]
mod flags_tests;
mod life;
mod mailbox;
mod options;
mod orphans;
mod outcomes;
mod owner;
pub(crate) mod pending;
mod recovery;
mod shared;
mod shutdown;
mod source;
mod start;
mod stats;
mod symbols;
#[cfg(test)]
mod tests;
mod threads;
mod waiters;

pub use admission::OverflowPolicy;
#[cfg_attr(not(test), allow(unused_imports, reason = "named by tests alone"))]
pub(crate) use admission::{Circumstances, Limits, Outage};
pub(crate) use committer::Intervals;
pub(crate) use dead_letters::sum;
pub use life::PreviousRun;
pub(crate) use mailbox::DeadLetterAction;
pub(crate) use options::{Lane, PipelineOptions, ask_all};
pub use pending::{Pending, PendingValue};
pub(crate) use shared::Pipeline;
use shared::lock;
pub(crate) use shutdown::release;
pub(crate) use start::{StartError, abbreviated, start, start_beside};
pub(crate) use threads::spawn_apart;
