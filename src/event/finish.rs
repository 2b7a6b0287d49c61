//! From a described event to a record, or to the reason why not.

use uuid::Uuid;

use super::builder::{Event, Flaw};
use crate::clock::WallNanos;
use crate::record::encode::{append_map_header, patch_len};
use crate::record::{Class, Flags, HEAD_LEN, Head, LIB_VERSION, Unencodable};

/// What the moment of capture adds to an event that does not say it itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    /// The uuid, unless the caller gave one.
    pub(crate) uuid: Uuid,
    /// The time, unless the caller gave one.
    pub(crate) now_nanos: WallNanos,
}

/// A finished event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// What is stored; give it to [`recycle`](super::recycle) once it is.
    pub(crate) body: Vec<u8>,
    /// How dear it is.
    pub(crate) class: Class,
    /// The uuid it has in the end.
    pub(crate) uuid: Uuid,
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
    /// A property or group.
    #[error("the value of {key:?} cannot be encoded")]
    Unserializable {
        /// Its key, or the group's type.
        key: Box<str>,
        /// What is wrong with it.
        #[source]
        reason: Unencodable,
    },
    /// Before 1677 or after 2262.
    #[error("the timestamp does not fit 64 bits of nanoseconds; give one between the years 1678 and 2261")]
    TimestampOutOfRange,
    /// Larger than one event may be.
    #[error("the event {name:?} takes {bytes} bytes; send less of it, or raise the limit")]
    TooLarge {
        /// Its name.
        name: Box<str>,
        /// Its size as a record.
        bytes: usize,
    },
}

impl Event {
    /// Makes the record, of at most `max_bytes`.
    pub(crate) fn finish(mut self, stamp: &Stamp, max_bytes: usize) -> Result<Record, Refusal> {
        if self.blank_name {
            return Err(Refusal::EmptyName);
        }
        if self.blank_distinct_id {
            return Err(Refusal::EmptyDistinctId);
        }
        if let Some(flaw) = self.flaw {
            return Err((*flaw).into());
        }
        patch_len(&mut self.body, self.map_at, self.property_count);
        match &self.groups {
            None => append_map_header(&mut self.body, 0),
            Some(groups) => {
                append_map_header(&mut self.body, groups.count);
                self.body.extend_from_slice(&groups.entries);
            }
        }
        if self.body.len() > max_bytes {
            return Err(Refusal::TooLarge { name: self.name().into(), bytes: self.body.len() });
        }
        if self.timestamp.is_some() {
            self.flags.insert(Flags::EXPLICIT_TIMESTAMP);
        }
        let head = Head {
            class: self.class,
            flags: self.flags,
            lib_version: LIB_VERSION,
            uuid: self.uuid.unwrap_or(stamp.uuid),
            timestamp_nanos: self.timestamp.unwrap_or(stamp.now_nanos),
        };
        if let Some(place) = self.body.first_chunk_mut::<HEAD_LEN>() {
            *place = head.encode();
        }
        Ok(Record { body: self.body, class: head.class, uuid: head.uuid })
    }
}

impl From<Flaw> for Refusal {
    #[cold]
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Value { key, reason } => Refusal::Unserializable { key, reason },
            Flaw::Timestamp => Refusal::TimestampOutOfRange,
        }
    }
}
