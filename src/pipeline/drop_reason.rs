//! Why an event was not taken: the answer to a capture, and the name under which it is counted, mirrored and told.

use std::fmt;

/// Why an event was not taken. Each reason has its own count in [`Stats::dropped`](crate::Stats::dropped).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The client was made with [`Config::disabled`](crate::Config::disabled), or by
    /// [`Config::from_env`](crate::Config::from_env) without a key.
    Disabled,
    /// The client was shut down.
    Closed,
    /// The event's name is empty or blank.
    EmptyName,
    /// Its distinct id is empty or blank.
    EmptyDistinctId,
    /// A property cannot be serialized, or a group's key is neither a string nor a number; the diagnostic names it.
    Unserializable,
    /// Its timestamp is before 1677 or after 2262.
    TimestampOutOfRange,
    /// It is larger than [`Config::max_event_bytes`](crate::Config::max_event_bytes).
    TooLarge,
    /// A `before_send` hook dropped it.
    BeforeSend,
    /// A `before_send` hook panicked.
    BeforeSendPanicked,
    /// It was captured from inside a capture that was itself made inside one of our callbacks; or on a thread of ours outside of any
    /// callback, as by a logger that captures what a package below us logs about a request of ours.
    Reentrant,
    /// The journal is full: events come faster than they can be stored, or storage fails (`stats().storage`).
    JournalFull,
    /// The journal's lock was not to be had in time; its holder may be stopped.
    JournalBusy,
    /// The queue has reached `max_queue_bytes` or `max_queue_events`.
    QueueFull,
    /// The file system has less free than `min_free_space`.
    DiskFull,
    /// The journal's file could not be written, or belongs to another process by now (`stats().storage`).
    Storage,
    /// This is a forked child, and no queue of its own could be opened.
    Forked,
    /// [`Client::opt_out`](crate::Client::opt_out) or [`Config::opted_out`](crate::Config::opted_out) said that nothing is to be captured.
    OptedOut,
    /// An alias is empty or blank.
    EmptyAlias,
    /// A group's type is empty or blank.
    EmptyGroupType,
    /// A group's key is empty or blank.
    EmptyGroupKey,
    /// [`Client::set_person`](crate::Client::set) or [`Client::set_person_once`](crate::Client::set_once) was called without a property.
    NothingToSet,
    /// [`posthog::capture`](crate::capture) was called before [`init`](crate::init). No client counts it; the first is logged.
    NotInitialized,
}

impl DropReason {
    pub(crate) const ALL: [DropReason; 22] = [
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
        DropReason::OptedOut,
        DropReason::EmptyAlias,
        DropReason::EmptyGroupType,
        DropReason::EmptyGroupKey,
        DropReason::NothingToSet,
        DropReason::NotInitialized,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();

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
            DropReason::OptedOut => "opted_out",
            DropReason::EmptyAlias => "empty_alias",
            DropReason::EmptyGroupType => "empty_group_type",
            DropReason::EmptyGroupKey => "empty_group_key",
            DropReason::NothingToSet => "nothing_to_set",
            DropReason::NotInitialized => "not_initialized",
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
            DropReason::Unserializable => "a property or group cannot be serialized",
            DropReason::TimestampOutOfRange => "the timestamp is before 1677 or after 2262",
            DropReason::TooLarge => "the event is larger than max_event_bytes",
            DropReason::BeforeSend => "a before_send hook dropped it",
            DropReason::BeforeSendPanicked => "a before_send hook panicked",
            DropReason::Reentrant => {
                "it was captured inside a callback of this library for the second time, or on a thread of this library"
            }
            DropReason::JournalFull => "events come faster than they can be stored, or storage fails",
            DropReason::JournalBusy => "the journal's lock was not free in time",
            DropReason::QueueFull => "the queue is full",
            DropReason::DiskFull => "the file system has less free than min_free_space",
            DropReason::Storage => "the journal's file could not be written, or is another process's by now",
            DropReason::Forked => "no queue could be opened in this forked child",
            DropReason::OptedOut => "the client has opted out of capturing",
            DropReason::EmptyAlias => "the alias is blank",
            DropReason::EmptyGroupType => "the group's type is blank",
            DropReason::EmptyGroupKey => "the group's key is blank",
            DropReason::NothingToSet => "there is no property to set",
            DropReason::NotInitialized => "posthog::init was not called before",
        })
    }
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
}
