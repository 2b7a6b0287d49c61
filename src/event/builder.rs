//! Describing an event.

use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

use super::spare;
use crate::record::msgpack::{append_str, begin_map};
use crate::record::values::append_entry;
use crate::record::{Class, Flags, HEAD_LEN, Pairs, Unencodable};
use crate::sys::clock::{WallNanos, nanos_since_epoch};
use crate::sys::limits::{NAME_KEPT, beginning};

/// Something that happened, as PostHog will see it.
///
/// Every method that describes the event takes it and gives it back, and none of them fails: what cannot be sent is told by the
/// receipt of the capture.
///
/// ```
/// use posthog::Event;
///
/// let event = Event::new("run_started", "user_1")
///     .prop("workspace_id", "ws_abc")
///     .prop("spec_count", 3)
///     .group("company", "acme");
/// assert_eq!(event.get::<u32>("spec_count"), Some(3));
/// ```
#[derive(Clone)]
#[must_use = "an event does nothing until it is captured"]
pub struct Event {
    // Boxed, because the builder hands the event on with every call: one word moves in a register.
    pub(super) draft: Box<Draft>,
}

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
    /// The first thing that went wrong.
    pub(super) flaw: Option<Flaw>,
}

/// Why an event cannot be sent as it was described.
#[derive(Clone, Debug)]
pub(super) enum Flaw {
    Value { key: Box<str>, reason: Unencodable },
    Timestamp,
    EmptyAlias,
    EmptyGroupType,
    EmptyGroupKey,
    NothingToSet,
}

impl Event {
    /// An event of this name, done by this person or thing.
    #[inline]
    pub fn new(name: impl AsRef<str>, distinct_id: impl AsRef<str>) -> Self {
        Self::described(name.as_ref(), distinct_id.as_ref())
    }

    /// An event that names nobody: it is done by whoever the [`Context`](crate::Context) says, and outside of one that knows, by
    /// nobody in particular. Then it gets a distinct id of its own and `$process_person_profile: false`, so that PostHog makes no
    /// person of it (unless the event sets that property itself).
    pub fn new_anon(name: impl AsRef<str>) -> Self {
        let mut event = Self::described(name.as_ref(), "");
        event.draft.anonymous = true;
        event
    }

    /// Sets a property, to whatever serde can serialize, in the shape that JSON has for it. The last value of a key counts.
    ///
    /// * NaN and the infinities become null, as JSON has no word for them. A number that 64 bits do not hold keeps all its digits;
    ///   what reads it at PostHog may round it.
    /// * A `serde_json::Value` or `RawValue` is what it says, whatever features of serde_json the program has turned on.
    /// * A [`Duration`](std::time::Duration) and a [`SystemTime`] are what serde makes of them: maps of seconds and nanoseconds, which
    ///   PostHog cannot use as numbers or times. Send a duration as a number in a unit that the key names (`"took_ms"`), and a time as
    ///   RFC 3339 text (`"2026-01-31T12:00:00Z"`), as the types of jiff, chrono and time can be serialized.
    /// * A value that cannot be serialized, or nests too deep, refuses the event when it is captured (`Dropped(Unserializable)`), and a
    ///   diagnostic says which key it was and why.
    #[inline]
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.set(key, value);
        self
    }

    /// [`prop`](Self::prop) for an event behind a reference.
    #[inline]
    pub fn set(&mut self, key: impl AsRef<str>, value: impl Serialize) {
        let draft = &mut *self.draft;
        match append_entry(&mut draft.body, key.as_ref(), &value) {
            Ok(()) => draft.property_count = draft.property_count.saturating_add(1),
            Err(reason) => draft.remember_value(key.as_ref(), reason),
        }
    }

    /// Sets several properties: those of a map, a struct, or a sequence of pairs.
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::new("run_ended", "user_1").props([("ok", true), ("cached", false)]);
    /// assert_eq!(event.get("ok"), Some(true));
    /// ```
    pub fn props(mut self, props: impl Serialize) -> Self {
        match Pairs::of(&props) {
            Ok(pairs) => pairs.each().for_each(|(_, pair)| self.draft.push_entry(pair)),
            Err(reason) => self.draft.remember_value("props", reason),
        }
        self
    }

    /// Says when it happened, to the nanosecond, if that is not the moment of capture. Years 1677 to 2262; another refuses the event
    /// when it is captured (`Dropped(TimestampOutOfRange)`).
    pub fn timestamp(mut self, time: impl Into<SystemTime>) -> Self {
        self.set_timestamp(time);
        self
    }

    /// [`timestamp`](Self::timestamp) for an event behind a reference.
    pub fn set_timestamp(&mut self, time: impl Into<SystemTime>) {
        match nanos_since_epoch(time.into()) {
            Some(nanos) => {
                self.draft.timestamp = Some(nanos);
                self.draft.flags.insert(Flags::EXPLICIT_TIMESTAMP);
            }
            None => self.draft.remember(Flaw::Timestamp),
        }
    }

    /// Gives the event a uuid of the caller's. PostHog takes two events of one uuid, name, distinct id and day for the same.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.set_uuid(uuid);
        self
    }

    /// [`uuid`](Self::uuid) for an event behind a reference.
    pub fn set_uuid(&mut self, uuid: Uuid) {
        self.draft.uuid = Some(uuid);
    }

    /// Asks PostHog not to look up where the sender's address is.
    pub fn disable_geoip(mut self) -> Self {
        self.draft.flags.insert(Flags::GEOIP_DISABLE);
        self
    }

    /// Asks PostHog not to make or change a person for this event.
    pub fn personless(mut self) -> Self {
        self.draft.flags.insert(Flags::PERSONLESS);
        self
    }

    pub(super) fn described(name: &str, distinct_id: &str) -> Self {
        let mut draft = spare::take();
        draft.body.extend_from_slice(&[0; HEAD_LEN]);
        append_str(&mut draft.body, name);
        append_str(&mut draft.body, distinct_id);
        draft.map_at = begin_map(&mut draft.body);
        draft.class = class_of(name);
        draft.blank_name = is_blank(name);
        draft.blank_distinct_id = is_blank(distinct_id);
        Self { draft }
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
            flaw,
        } = self;
        body.clear();
        groups.clear();
        (*map_at, *property_count, *group_count) = (0, 0, 0);
        (*class, *flags) = (Class::default(), Flags::default());
        (*blank_name, *blank_distinct_id, *anonymous) = (false, false, false);
        (*uuid, *timestamp, *flaw) = (None, None, None);
    }

    /// Adds a property that is encoded already.
    pub(super) fn push_entry(&mut self, pair: &[u8]) {
        self.body.extend_from_slice(pair);
        self.property_count = self.property_count.saturating_add(1);
    }

    #[cold]
    pub(super) fn remember_value(&mut self, key: &str, reason: Unencodable) {
        self.remember(Flaw::Value { key: beginning(key, NAME_KEPT).into(), reason });
    }

    #[cold]
    pub(super) fn remember(&mut self, flaw: Flaw) {
        self.flaw.get_or_insert(flaw);
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
