//! From a described event to a record, or to the reason why not.

use uuid::Uuid;

use super::builder::{Draft, Event, Flaw};
use super::spare;
use crate::record::msgpack::Reader;
use crate::record::msgpack::{append_map_header, patch_len};
use crate::record::{Class, HEAD_LEN, Head, LIB_VERSION, Unencodable};
use crate::sys::clock::WallNanos;
use crate::sys::limits::{NAME_KEPT, beginning};

/// What the moment of capture adds to an event that does not say it itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    /// The uuid, unless the caller gave one.
    pub(crate) uuid: Uuid,
    /// The time, unless the caller gave one.
    pub(crate) now_nanos: WallNanos,
}

/// A finished event.
#[derive(Debug)]
pub(crate) struct Record {
    /// How priority it is.
    pub(crate) class: Class,
    /// The uuid it has in the end.
    pub(crate) uuid: Uuid,
    draft: Box<Draft>,
}

impl Record {
    /// What is stored.
    #[inline]
    pub(crate) fn body(&self) -> &[u8] {
        &self.draft.body
    }

    /// The event's name, for whoever tells that it was not taken.
    pub(crate) fn name(&self) -> &str {
        Reader::new(self.draft.body.get(HEAD_LEN..).unwrap_or_default()).string().unwrap_or_default()
    }

    /// Gives the buffers to this thread's next event.
    #[inline]
    pub(crate) fn recycle(self) {
        spare::recycle(self.draft);
    }
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

impl Event {
    /// Whether it can be sent, but for its size.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.draft.blank_name {
            return Err(Refusal::EmptyName);
        }
        if self.draft.blank_distinct_id {
            return Err(Refusal::EmptyDistinctId);
        }
        match &self.draft.flaw {
            None => Ok(()),
            Some(flaw) => Err(flaw.into()),
        }
    }

    /// Makes the record, of at most `max_bytes`.
    // Always: as a call it would hand the record back through memory, for every capture.
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

impl From<&Flaw> for Refusal {
    #[cold]
    fn from(flaw: &Flaw) -> Self {
        match flaw {
            Flaw::Value { key, reason } => Refusal::Unserializable { key: key.clone(), reason: reason.clone() },
            Flaw::Timestamp => Refusal::TimestampOutOfRange,
            Flaw::EmptyAlias => Refusal::EmptyAlias,
            Flaw::EmptyGroupType => Refusal::EmptyGroupType,
            Flaw::EmptyGroupKey => Refusal::EmptyGroupKey,
            Flaw::NothingToSet => Refusal::NothingToSet,
        }
    }
}
