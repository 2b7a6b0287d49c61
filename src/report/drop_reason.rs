//! [`DropReason`]: why an event was not accepted.

use std::fmt;

/// Why an event was not accepted. [`Stats::dropped`](crate::Stats::dropped) counts each reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The client is disabled ([`Config::disabled`](crate::Config::disabled)), or
    /// [`Config::from_env`](crate::Config::from_env) found no key.
    Disabled,
    /// The client was shut down.
    Closed,
    /// The event's name is empty or blank.
    EmptyName,
    /// The distinct id is empty or blank.
    EmptyDistinctId,
    /// A property cannot be serialized, or the key of a group is neither a string nor a number. The diagnostic names
    /// it.
    Unserializable,
    /// The timestamp is before 1677 or after 2262.
    TimestampOutOfRange,
    /// The event is larger than [`Config::max_event_bytes`](crate::Config::max_event_bytes).
    TooLarge,
    /// A `before_send` hook dropped the event.
    BeforeSend,
    /// A `before_send` hook panicked.
    BeforeSendPanicked,
    /// A callback of the client captured an event whose own callbacks captured again; or one of the client's own
    /// threads captured outside of any callback, for example through a logger that captures what a dependency logs
    /// about a request of the client.
    Reentrant,
    /// The journal is full: events arrive faster than they can be stored, or storage fails (`stats().storage`).
    JournalFull,
    /// The journal's lock was not free in time. The thread that holds it may be stopped.
    JournalBusy,
    /// The queue has reached `max_queue_bytes` or `max_queue_events`.
    QueueFull,
    /// The file system has less free space than `min_free_space`.
    DiskFull,
    /// The journal's file could not be written, or another process has taken it over (`stats().storage`).
    Storage,
    /// This is a forked child that could not open a queue of its own.
    Forked,
    /// The client has opted out ([`Client::opt_out`](crate::Client::opt_out),
    /// [`Config::opted_out`](crate::Config::opted_out)).
    OptedOut,
    /// An alias is empty or blank.
    EmptyAlias,
    /// The type of a group is empty or blank.
    EmptyGroupType,
    /// The key of a group is empty or blank.
    EmptyGroupKey,
    /// [`Client::set_person`](crate::Client::set_person), [`Client::set_person_once`](crate::Client::set_person_once) or
    /// [`Client::unset_person`](crate::Client::unset_person) was called without a property.
    NothingToSet,
    /// [`posthog::capture`](crate::capture) was called before [`init`](crate::init). The first such event is logged;
    /// none is counted.
    NotInitialized,
    /// More exceptions of this type were captured at this place than
    /// [`Config::exception_rate_limit`](crate::Config::exception_rate_limit) allows. The next one that passes has the
    /// number of those before it, in `exception_missed_before`.
    RateLimited,
}

impl DropReason {
    pub(crate) const ALL: [DropReason; 23] = [
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
        DropReason::RateLimited,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// The name in snake case, as in diagnostics and metrics: `queue_full`, `too_large`.
    pub fn name(self) -> &'static str {
        self.name_and_text().0
    }

    fn name_and_text(self) -> (&'static str, &'static str) {
        match self {
            DropReason::Disabled => ("disabled", "the client is disabled"),
            DropReason::Closed => ("closed", "the client was shut down"),
            DropReason::EmptyName => ("empty_name", "the event's name is blank"),
            DropReason::EmptyDistinctId => ("empty_distinct_id", "the distinct id is blank"),
            DropReason::Unserializable => ("unserializable", "a property or group cannot be serialized"),
            DropReason::TimestampOutOfRange => ("timestamp_out_of_range", "the timestamp is before 1677 or after 2262"),
            DropReason::TooLarge => ("too_large", "the event is larger than max_event_bytes"),
            DropReason::BeforeSend => ("before_send", "a before_send hook dropped the event"),
            DropReason::BeforeSendPanicked => ("before_send_panicked", "a before_send hook panicked"),
            DropReason::Reentrant => {
                ("reentrant", "it was captured by a callback of a nested capture, or on a thread of this library")
            }
            DropReason::JournalFull => {
                ("journal_full", "the journal is full: events arrive faster than they can be stored, or storage fails")
            }
            DropReason::JournalBusy => ("journal_busy", "the journal's lock was not free in time"),
            DropReason::QueueFull => ("queue_full", "the queue is full"),
            DropReason::DiskFull => ("disk_full", "the file system has less free space than min_free_space"),
            DropReason::Storage => {
                ("storage", "the journal's file could not be written, or another process has taken it over")
            }
            DropReason::Forked => ("forked", "this forked child could not open a queue"),
            DropReason::OptedOut => ("opted_out", "the client has opted out of capturing"),
            DropReason::EmptyAlias => ("empty_alias", "the alias is blank"),
            DropReason::EmptyGroupType => ("empty_group_type", "the group's type is blank"),
            DropReason::EmptyGroupKey => ("empty_group_key", "the group's key is blank"),
            DropReason::NothingToSet => ("nothing_to_set", "there is no property to set or to remove"),
            DropReason::NotInitialized => ("not_initialized", "posthog::init was not called yet"),
            DropReason::RateLimited => {
                ("rate_limited", "more exceptions of this type and place than the rate limit allows")
            }
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name_and_text().1)
    }
}

impl std::error::Error for DropReason {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_index_and_name() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let names: std::collections::HashSet<_> = DropReason::ALL.map(DropReason::name).into();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
