//! The draft of an event that is being described: its buffers, its validity, a pool of one draft per thread, and the
//! record that it becomes.
//!
//! A draft returns to the pool of its thread once its record is stored, so a thread that captures does not allocate.

use std::cell::Cell;

use uuid::Uuid;

use super::builder::Event;
use crate::record::msgpack::{Reader, append_map_header, patch_len};
use crate::record::{Class, Flags, HEAD_LEN, Head, LIB_VERSION, Unencodable};
use crate::sys::clock::WallNanos;
use crate::sys::limits::{NAME_KEPT, beginning};

/// An event that is being described.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    /// The record's body: space for the head, name, distinct id, a map header with an open count, properties.
    pub(super) body: Vec<u8>,
    /// Position of the map header in `body`.
    pub(super) map_at: usize,
    pub(super) property_count: u32,
    pub(super) group_count: u32,
    /// The groups, kept apart until the end because they follow the properties.
    pub(super) groups: Vec<u8>,
    pub(super) class: Class,
    pub(super) flags: Flags,
    pub(super) blank_name: bool,
    pub(super) blank_distinct_id: bool,
    /// Whether the distinct id is determined when the event is captured.
    pub(super) anonymous: bool,
    /// Whether it has the facts of the process that it is about, which may be an earlier one.
    pub(super) has_process_facts: bool,
    pub(super) uuid: Option<Uuid>,
    pub(super) timestamp: Option<WallNanos>,
    /// The first reason why the event cannot be sent.
    pub(super) invalid: Option<Refusal>,
}

/// Why an event cannot be sent. The texts say what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the event has no name; give it one")]
    EmptyName,
    #[error("the event has no distinct id; give one, or use Event::new_anon")]
    EmptyDistinctId,
    #[error("the alias is empty; give the other id of the person")]
    EmptyAlias,
    #[error("the group's type is empty; give one, such as \"company\"")]
    EmptyGroupType,
    #[error("the group's key is empty; give the id of the group")]
    EmptyGroupKey,
    #[error("the event sets no property of the person; set at least one")]
    NothingToSet,
    #[error("the value of {key:?} cannot be serialized")]
    Unserializable {
        /// Its key, or the group's type.
        key: Box<str>,
        #[source]
        reason: Unencodable,
    },
    #[error("the timestamp is out of range; give one between the years 1678 and 2261")]
    TimestampOutOfRange,
    #[error(
        "the event takes {bytes} bytes, more than the {most} allowed ({}); send less data, or \
         raise Config::max_event_bytes (the limit of AI events is fixed)",
        crate::sys::wording::bytes(*most as u64)
    )]
    TooLarge { name: Box<str>, bytes: usize, most: usize },
}

impl Refusal {
    /// The message including its cause.
    pub(crate) fn describe(&self) -> String {
        match self {
            Refusal::Unserializable { reason, .. } => format!("{self}: {reason}"),
            _ => self.to_string(),
        }
    }
}

impl Draft {
    /// Resets everything and keeps the buffers.
    #[inline]
    pub(super) fn clear(&mut self) {
        // Destructured, so that a new field that is not reset here does not compile. `*self = Draft { .. }` would copy
        // the whole draft twice.
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
            has_process_facts,
            uuid,
            timestamp,
            invalid,
        } = self;
        body.clear();
        groups.clear();
        (*map_at, *property_count, *group_count) = (0, 0, 0);
        (*class, *flags) = (Class::default(), Flags::default());
        (*blank_name, *blank_distinct_id, *anonymous, *has_process_facts) = (false, false, false, false);
        (*uuid, *timestamp, *invalid) = (None, None, None);
    }

    /// Adds a property that is already encoded.
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

/// The class of events of this name.
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

/// Capacity of a new buffer: twice an event of about eight properties.
const FIRST_CAPACITY: usize = 512;
/// Buffers that grew larger are freed, so that one huge event does not occupy memory for the life of its thread.
const MOST_KEPT: usize = 4096;

thread_local! {
    static POOLED: Cell<Option<Box<Draft>>> = const { Cell::new(None) };
}

/// Takes the pooled draft of this thread, or a new one.
#[inline]
pub(super) fn take() -> Box<Draft> {
    // The access fails if the destructor of another thread-local captures after this one was destroyed.
    POOLED
        .try_with(Cell::take)
        .ok()
        .flatten()
        .unwrap_or_else(|| Box::new(Draft { body: Vec::with_capacity(FIRST_CAPACITY), ..Draft::default() }))
}

/// Returns a draft to the pool of this thread.
#[inline]
pub(super) fn recycle(mut draft: Box<Draft>) {
    if draft.body.capacity() + draft.groups.capacity() <= MOST_KEPT {
        draft.clear();
        let _no_pool_at_thread_end = POOLED.try_with(|pooled| pooled.set(Some(draft)));
    }
}

/// A finished event.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) class: Class,
    /// Its final uuid.
    pub(crate) uuid: Uuid,
    draft: Box<Draft>,
}

impl Record {
    /// The bytes that are stored.
    #[inline]
    pub(crate) fn body(&self) -> &[u8] {
        &self.draft.body
    }

    /// The event's name, for a report that it was not accepted.
    pub(crate) fn name(&self) -> &str {
        Reader::new(self.draft.body.get(HEAD_LEN..).unwrap_or_default()).string().unwrap_or_default()
    }

    /// Returns the buffers to the pool of this thread.
    #[inline]
    pub(crate) fn recycle(self) {
        recycle(self.draft);
    }
}

impl Event {
    /// Whether it can be sent, apart from its size.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.draft.blank_name {
            return Err(Refusal::EmptyName);
        }
        if self.draft.blank_distinct_id {
            return Err(Refusal::EmptyDistinctId);
        }
        match &self.draft.invalid {
            None => Ok(()),
            Some(refusal) => Err(refusal.clone()),
        }
    }

    /// Makes the record, of at most `max_bytes`. `uuid` and `now_nanos` count unless the caller set others.
    // Always inlined: a call would return the record through memory for every capture.
    #[inline(always)]
    pub(crate) fn finish(mut self, uuid: Uuid, now_nanos: WallNanos, max_bytes: usize) -> Result<Record, Refusal> {
        self.check()?;
        let draft = &mut *self.draft;
        patch_len(&mut draft.body, draft.map_at, draft.property_count);
        append_map_header(&mut draft.body, draft.group_count);
        draft.body.extend_from_slice(&draft.groups);
        let bytes = draft.body.len();
        if bytes > max_bytes {
            return Err(self.too_large(bytes, max_bytes));
        }
        let head = Head {
            class: draft.class,
            flags: draft.flags,
            lib_version: LIB_VERSION,
            uuid: draft.uuid.unwrap_or(uuid),
            timestamp_nanos: draft.timestamp.unwrap_or(now_nanos),
        };
        if let Some(place) = draft.body.first_chunk_mut::<HEAD_LEN>() {
            *place = head.encode();
        }
        Ok(Record { class: head.class, uuid: head.uuid, draft: self.draft })
    }

    #[cold]
    fn too_large(&self, bytes: usize, most: usize) -> Refusal {
        Refusal::TooLarge { name: beginning(self.name(), NAME_KEPT).into(), bytes, most }
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
        // The thread-local that is used first is destroyed last: try both orders.
        for pool_first in [true, false] {
            let sender = sender.clone();
            let thread = std::thread::spawn(move || {
                if pool_first {
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
