//! The buffers of an event that is being described, and the pool of one per thread that they come from.

use std::cell::Cell;

use uuid::Uuid;

use crate::record::{Class, Flags, Unencodable};
use crate::sys::clock::WallNanos;
use crate::sys::limits::{NAME_KEPT, beginning};

/// An event so far. A thread reuses it for its next event, see `spare`.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    /// The record's body: room for the head, name, distinct id, a map header whose count is open, properties.
    pub(super) body: Vec<u8>,
    /// Where in `body` the map header is.
    pub(super) map_at: usize,
    pub(super) property_count: u32,
    pub(super) group_count: u32,
    /// Groups stand apart until the end: they follow the properties.
    pub(super) groups: Vec<u8>,
    pub(super) class: Class,
    pub(super) flags: Flags,
    pub(super) blank_name: bool,
    pub(super) blank_distinct_id: bool,
    /// Whose it is is decided when it is captured.
    pub(super) anonymous: bool,
    pub(super) uuid: Option<Uuid>,
    pub(super) timestamp: Option<WallNanos>,
    /// The first reason why the event cannot be sent.
    pub(super) invalid: Option<Refusal>,
}

/// Why an event cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nothing but blanks.
    #[error("the event has no name; give it one")]
    EmptyName,
    /// Nothing but blanks.
    #[error("the event has no distinct id; say whose it is")]
    EmptyDistinctId,
    /// Nothing but blanks.
    #[error("the alias is empty; say by which other id the person is known")]
    EmptyAlias,
    /// Nothing but blanks.
    #[error("the group's type is empty; say what kind of group it is")]
    EmptyGroupType,
    /// Nothing, or nothing but blanks.
    #[error("the group's key is empty; say which group it is")]
    EmptyGroupKey,
    /// No property.
    #[error("there is nothing to set; give at least one property")]
    NothingToSet,
    /// A property or group.
    #[error("the value of {key:?} cannot be serialized")]
    Unserializable {
        /// Its key, or the group's type.
        key: Box<str>,
        /// What is wrong with it.
        #[source]
        reason: Unencodable,
    },
    /// Before 1677 or after 2262.
    #[error("the timestamp is out of range; give one between the years 1678 and 2261")]
    TimestampOutOfRange,
    /// Larger than one event may be.
    #[error(
        "the event takes {bytes} bytes, more than the {most} allowed ({}); send less of it, or raise Config::max_event_bytes (that of AI \
         events is fixed)",
        crate::sys::wording::bytes(*most as u64)
    )]
    TooLarge {
        /// Its name.
        name: Box<str>,
        /// Its size as a record.
        bytes: usize,
        /// The size that one may have.
        most: usize,
    },
}

impl Refusal {
    /// What is wrong, with what lies underneath.
    pub(crate) fn describe(&self) -> String {
        match self {
            Refusal::Unserializable { reason, .. } => format!("{self}: {reason}"),
            _ => self.to_string(),
        }
    }
}

impl Draft {
    /// Forgets everything but its buffers.
    #[inline]
    pub(super) fn clear(&mut self) {
        // Each by name, so that no field can be forgotten; made anew and moved, it would be copied twice.
        let Self {
            body,
            map_at,
            property_count,
            group_count,
            groups,
            class,
            flags,
            blank_name,
            blank_distinct_id,
            anonymous,
            uuid,
            timestamp,
            invalid,
        } = self;
        body.clear();
        groups.clear();
        (*map_at, *property_count, *group_count) = (0, 0, 0);
        (*class, *flags) = (Class::default(), Flags::default());
        (*blank_name, *blank_distinct_id, *anonymous) = (false, false, false);
        (*uuid, *timestamp, *invalid) = (None, None, None);
    }

    /// Adds a property that is encoded already.
    pub(super) fn push_entry(&mut self, pair: &[u8]) {
        self.body.extend_from_slice(pair);
        self.property_count = self.property_count.saturating_add(1);
    }

    #[cold]
    pub(super) fn remember_value(&mut self, key: &str, reason: Unencodable) {
        self.remember(Refusal::Unserializable { key: beginning(key, NAME_KEPT).into(), reason });
    }

    #[cold]
    pub(super) fn remember(&mut self, reason: Refusal) {
        self.invalid.get_or_insert(reason);
    }
}

/// How priority events of this name are.
pub(super) fn class_of(name: &str) -> Class {
    match name {
        "$identify" | "$create_alias" | "$groupidentify" | "$set" => Class::Identity,
        "$exception" => Class::Exception,
        _ => Class::Ordinary,
    }
}

pub(super) fn is_blank(text: &str) -> bool {
    text.trim_start().is_empty()
}

/// What a new buffer has room for: an event of about eight properties, twice over.
const FIRST_CAPACITY: usize = 512;
/// Buffers that grew larger are not kept: one huge event must not cost a thread its memory for ever.
const MOST_KEPT: usize = 4096;

thread_local! {
    static SPARE: Cell<Option<Box<Draft>>> = const { Cell::new(None) };
}

/// An empty draft.
#[inline]
pub(super) fn take() -> Box<Draft> {
    // The access fails where a thread-local's destructor captures after this one's ran: then there is no spare.
    SPARE
        .try_with(Cell::take)
        .ok()
        .flatten()
        .unwrap_or_else(|| Box::new(Draft { body: Vec::with_capacity(FIRST_CAPACITY), ..Draft::default() }))
}

/// Keeps a draft's buffers for the thread's next event.
#[inline]
pub(super) fn recycle(mut draft: Box<Draft>) {
    if draft.body.capacity() + draft.groups.capacity() <= MOST_KEPT {
        draft.clear();
        let _no_spare_at_thread_end = SPARE.try_with(|spare| spare.set(Some(draft)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft_of(capacity: usize) -> Box<Draft> {
        Box::new(Draft { body: Vec::with_capacity(capacity), ..Draft::default() })
    }

    #[test]
    fn a_recycled_draft_comes_back_empty_and_once() {
        let mut draft = draft_of(1234);
        draft.body.push(1);
        draft.property_count = 1;
        draft.timestamp = Some(1);
        recycle(draft);
        let again = take();
        assert_eq!(
            (again.body.capacity(), again.body.len(), again.property_count, again.timestamp),
            (1234, 0, 0, None)
        );
        assert_eq!(take().body.capacity(), FIRST_CAPACITY);
    }

    #[test]
    fn buffers_that_grew_large_are_let_go() {
        recycle(draft_of(MOST_KEPT + 1));
        assert_eq!(take().body.capacity(), FIRST_CAPACITY);
    }

    #[test]
    fn an_event_in_a_thread_local_destructor_still_gets_a_draft() {
        struct Last(std::sync::mpsc::Sender<usize>);
        impl Drop for Last {
            fn drop(&mut self) {
                let draft = take();
                self.0.send(draft.body.capacity()).unwrap();
                recycle(draft);
            }
        }
        thread_local! {
            static LAST: Cell<Option<Last>> = const { Cell::new(None) };
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        // Which destructor runs first follows from which thread-local was used first: try both.
        for spare_first in [true, false] {
            let sender = sender.clone();
            let thread = std::thread::spawn(move || {
                if spare_first {
                    recycle(take());
                }
                LAST.set(Some(Last(sender)));
                recycle(take());
            });
            thread.join().unwrap();
            assert_eq!(receiver.recv(), Ok(FIRST_CAPACITY));
        }
    }
}
