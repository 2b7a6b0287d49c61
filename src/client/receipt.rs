//! What a capture answers.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use uuid::Uuid;

use crate::disk::fork;
use crate::worker::{Pending, PersistError, Pipeline, pending};

/// What became of a captured event. Small and inert: it may be dropped, kept or sent elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    outcome: Outcome,
    uuid: Option<Uuid>,
    seq: u64,
    pipeline: u64,
    generation: u64,
}

/// Whether an event was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the queue. It survives the process from now on, and leaves the queue only when PostHog has taken it, or for a reason
    /// that `stats` counts.
    Accepted,
    /// It was not taken, and nothing of it was kept.
    Dropped(DropReason),
}

/// Why an event was not taken. Each reason has its own count in [`Stats::dropped`](crate::Stats::dropped).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The client was made with [`Config::disabled`](crate::Config::disabled).
    Disabled,
    /// The client was shut down.
    Closed,
    /// The event's name is empty or blank.
    EmptyName,
    /// Its distinct id is empty or blank.
    EmptyDistinctId,
    /// A property cannot be serialized; the diagnostic names it.
    Unserializable,
    /// Its timestamp is before 1677 or after 2262.
    TimestampOutOfRange,
    /// It is larger than [`Config::max_event_bytes`](crate::Config::max_event_bytes).
    TooLarge,
    /// A `before_send` hook dropped it.
    BeforeSend,
    /// A `before_send` hook panicked.
    BeforeSendPanicked,
    /// It was captured from inside a capture that was itself made inside one of our callbacks.
    Reentrant,
    /// The journal is full: events come faster than they can be stored, or storage fails (`stats().mode`).
    JournalFull,
    /// The journal's lock was not to be had in time; its holder may be stopped.
    JournalBusy,
    /// The queue has reached `max_queue_bytes` or `max_queue_events`.
    QueueFull,
    /// The file system has less free than `free_space_floor`.
    DiskFull,
    /// The journal's file could not be written.
    Storage,
    /// This is a forked child, and no queue of its own could be opened.
    Forked,
}

impl DropReason {
    pub(super) const ALL: [DropReason; 16] = [
        DropReason::Disabled,
        DropReason::Closed,
        DropReason::EmptyName,
        DropReason::EmptyDistinctId,
        DropReason::Unserializable,
        DropReason::TimestampOutOfRange,
        DropReason::TooLarge,
        DropReason::BeforeSend,
        DropReason::BeforeSendPanicked,
        DropReason::Reentrant,
        DropReason::JournalFull,
        DropReason::JournalBusy,
        DropReason::QueueFull,
        DropReason::DiskFull,
        DropReason::Storage,
        DropReason::Forked,
    ];
    pub(super) const COUNT: usize = Self::ALL.len();

    /// Its name, as in diagnostics: `queue_full` and the like.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Disabled => "disabled",
            DropReason::Closed => "closed",
            DropReason::EmptyName => "empty_name",
            DropReason::EmptyDistinctId => "empty_distinct_id",
            DropReason::Unserializable => "unserializable",
            DropReason::TimestampOutOfRange => "timestamp_out_of_range",
            DropReason::TooLarge => "too_large",
            DropReason::BeforeSend => "before_send",
            DropReason::BeforeSendPanicked => "before_send_panicked",
            DropReason::Reentrant => "reentrant",
            DropReason::JournalFull => "journal_full",
            DropReason::JournalBusy => "journal_busy",
            DropReason::QueueFull => "queue_full",
            DropReason::DiskFull => "disk_full",
            DropReason::Storage => "storage",
            DropReason::Forked => "forked",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropReason::Disabled => "the client is disabled",
            DropReason::Closed => "the client was shut down",
            DropReason::EmptyName => "the event's name is blank",
            DropReason::EmptyDistinctId => "the distinct id is blank",
            DropReason::Unserializable => "a property cannot be serialized",
            DropReason::TimestampOutOfRange => "the timestamp is before 1677 or after 2262",
            DropReason::TooLarge => "the event is larger than max_event_bytes",
            DropReason::BeforeSend => "a before_send hook dropped it",
            DropReason::BeforeSendPanicked => "a before_send hook panicked",
            DropReason::Reentrant => "it was captured from inside our own callbacks, twice over",
            DropReason::JournalFull => "events come faster than they can be stored, or storage fails",
            DropReason::JournalBusy => "the journal's lock was not to be had in time",
            DropReason::QueueFull => "the queue has reached its bounds",
            DropReason::DiskFull => "the file system has reached free_space_floor",
            DropReason::Storage => "the journal's file could not be written",
            DropReason::Forked => "no queue could be opened in this forked child",
        })
    }
}

impl Receipt {
    pub(super) fn accepted(uuid: Uuid, seq: u64, pipeline: u64) -> Self {
        Self { outcome: Outcome::Accepted, uuid: Some(uuid), seq, pipeline, generation: fork::generation() }
    }

    pub(super) fn dropped(reason: DropReason) -> Self {
        Self { outcome: Outcome::Dropped(reason), uuid: None, seq: 0, pipeline: 0, generation: 0 }
    }

    /// Whether the event was taken.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the event was taken.
    pub fn is_accepted(&self) -> bool {
        self.outcome == Outcome::Accepted
    }

    /// The event's uuid, under which PostHog has it; `None` if it was not taken.
    pub fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    /// Resolves when the event would survive a power cut: one `fdatasync`, shared by all who wait at that moment.
    ///
    /// # Errors
    ///
    /// [`PersistError`] says why it is not known to: the disk failed, the queue is in memory, the event was dropped.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use posthog::{Event, PersistError};
    /// # use std::time::Duration;
    /// let receipt = client.capture(Event::new("paid", "user_1"));
    /// let persisted = receipt.persisted().wait(Duration::from_secs(1));
    /// # assert_eq!(persisted, Ok(Err(PersistError::Dropped)));
    /// ```
    pub fn persisted(&self) -> Pending<Result<(), PersistError>> {
        if !self.is_accepted() {
            return pending::answered(Err(PersistError::Dropped));
        }
        if fork::generation() != self.generation {
            return pending::answered(Err(PersistError::Forked));
        }
        match find(self.pipeline) {
            Some(pipeline) => pipeline.persisted(self.seq),
            None => pending::answered(Err(PersistError::Closed)),
        }
    }
}

/// The pipelines of this process. A receipt names its pipeline by number: holding it would cost each capture two writes to a counter
/// that every thread writes, more than the rest of its bookkeeping. One list for each generation of forks: the lock of the parent's
/// may be held, in a child, by a thread that does not exist there.
static PIPELINES: [RwLock<Vec<Weak<Pipeline>>>; 8] = [const { RwLock::new(Vec::new()) }; 8];

pub(super) fn register(pipeline: &Arc<Pipeline>) {
    let mut known = pipelines().write().unwrap_or_else(PoisonError::into_inner);
    known.retain(|other| other.strong_count() > 0);
    known.push(Arc::downgrade(pipeline));
}

fn find(id: u64) -> Option<Arc<Pipeline>> {
    let known = pipelines().read().unwrap_or_else(PoisonError::into_inner);
    known.iter().filter_map(Weak::upgrade).find(|pipeline| pipeline.id() == id)
}

fn pipelines() -> &'static RwLock<Vec<Weak<Pipeline>>> {
    &PIPELINES[(fork::generation() % PIPELINES.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_count_and_a_name_of_its_own() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let names: std::collections::HashSet<_> = DropReason::ALL.map(DropReason::name).into();
        assert_eq!(names.len(), DropReason::COUNT);
    }

    #[test]
    fn a_receipt_stays_small_enough_to_be_given_away_freely() {
        assert!(size_of::<Receipt>() <= 56, "{}", size_of::<Receipt>());
    }
}
