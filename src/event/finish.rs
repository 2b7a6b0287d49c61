//! Finishing an event: makes its record, or says why it cannot be sent.

use uuid::Uuid;

use super::builder::Event;
use super::draft::{self, Draft, Refusal};
use crate::record::msgpack::{Reader, append_map_header, patch_len};
use crate::record::{Class, HEAD_LEN, Head, LIB_VERSION};
use crate::sys::clock::WallNanos;
use crate::sys::limits::{NAME_KEPT, beginning};

/// Uuid and time for an event whose caller did not set them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    /// The uuid, unless the caller set one.
    pub(crate) uuid: Uuid,
    /// The time, unless the caller set one.
    pub(crate) now_nanos: WallNanos,
}

/// A finished event.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its class.
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
        draft::recycle(self.draft);
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

    /// Makes the record, of at most `max_bytes`.
    // Always inlined: a call would return the record through memory for every capture.
    #[inline(always)]
    pub(crate) fn finish(mut self, stamp: &Stamp, max_bytes: usize) -> Result<Record, Refusal> {
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
            uuid: draft.uuid.unwrap_or(stamp.uuid),
            timestamp_nanos: draft.timestamp.unwrap_or(stamp.now_nanos),
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
