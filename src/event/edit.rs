//! Reading and changing a described event: for `before_send` hooks, and for what the client adds at the moment of
//! capture.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::builder::Event;
use super::draft::{class_of, is_blank};
use crate::record::msgpack::{OPEN_HEADER_LEN, Reader, append_str, text};
use crate::record::values::value_as;
use crate::record::{Class, Entries, Flags, HEAD_LEN, Pairs, json};
use crate::sys::clock::WallNanos;

impl Event {
    /// The event's name.
    pub fn name(&self) -> &str {
        self.identity().string().unwrap_or_default()
    }

    /// The event's distinct id.
    pub fn distinct_id(&self) -> &str {
        let mut reader = self.identity();
        reader.string().and_then(|_name| reader.string()).unwrap_or_default()
    }

    /// The uuid that the caller set, if any. If there is none, the event gets a uuid when it is captured, before the
    /// `before_send` hooks run; in a hook this method returns that uuid.
    pub fn given_uuid(&self) -> Option<Uuid> {
        self.draft.uuid
    }

    /// The time that the caller set, if any. If there is none, it is the time of the capture; in a `before_send` hook
    /// this method returns that time.
    pub fn given_timestamp(&self) -> Option<SystemTime> {
        let nanos = self.draft.timestamp?;
        let distance = Duration::from_nanos(nanos.unsigned_abs());
        if nanos < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
    }

    /// The value of a property, if it exists and is of this type.
    pub fn get<T: DeserializeOwned>(&self, key: impl AsRef<str>) -> Option<T> {
        value_as(self.value_of(key.as_ref())?)
    }

    /// Whether a property exists.
    pub fn has(&self, key: impl AsRef<str>) -> bool {
        self.has_name(key.as_ref().as_bytes())
    }

    /// The keys of the properties in the order in which they were set. A key that was set twice occurs twice.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().filter_map(|(key, _)| text(key).ok())
    }

    /// A copy of the properties as the caller set them, without groups and without what the library adds when it sends.
    pub fn properties(&self) -> Map<String, Value> {
        as_map(self.entries())
    }

    /// Removes a property; returns whether it existed.
    pub fn remove(&mut self, key: impl AsRef<str>) -> bool {
        let draft = &mut *self.draft;
        remove_entries(key.as_ref(), &mut draft.body, draft.map_at + OPEN_HEADER_LEN, &mut draft.property_count)
    }

    /// Removes the properties for which `is_wanted` returns false. Groups and flags stay.
    pub(crate) fn keep_only(&mut self, is_wanted: impl Fn(&[u8]) -> bool) {
        let unwanted: Vec<String> = self.keys().filter(|key| !is_wanted(key.as_bytes())).map(str::to_owned).collect();
        for key in unwanted {
            self.remove(key);
        }
    }

    /// Renames the event.
    pub fn set_name(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref();
        self.replace(HEAD_LEN..self.name_end(), name);
        self.draft.blank_name = is_blank(name);
        self.draft.class = self.draft.class.max(class_of(name));
    }

    /// Sets another distinct id. In the form of the builder: [`with_distinct_id`](Self::with_distinct_id).
    pub fn set_distinct_id(&mut self, distinct_id: impl AsRef<str>) {
        let distinct_id = distinct_id.as_ref();
        self.replace(self.name_end()..self.draft.map_at, distinct_id);
        self.draft.blank_distinct_id = is_blank(distinct_id);
        self.draft.anonymous = false;
    }

    /// Removes the event from its group of this type; returns whether it was in one.
    pub fn remove_group(&mut self, group_type: impl AsRef<str>) -> bool {
        let draft = &mut *self.draft;
        remove_entries(group_type.as_ref(), &mut draft.groups, 0, &mut draft.group_count)
    }

    /// A copy of the groups: type to key.
    pub fn groups(&self) -> Map<String, Value> {
        as_map(self.group_entries())
    }

    fn group_entries(&self) -> Entries<'_> {
        Entries::new(self.draft.group_count, &self.draft.groups)
    }

    /// Whether it has no distinct id and needs one.
    #[inline]
    pub(crate) fn is_anonymous(&self) -> bool {
        self.draft.anonymous
    }

    /// Gives an anonymous event the random distinct id `own_id`, without a person (unless the event sets otherwise).
    pub(crate) fn attribute_to_nobody(&mut self, own_id: &str) {
        self.set_distinct_id(own_id);
        self.draft.flags.insert(Flags::PERSONLESS);
    }

    /// Adds the properties that the event does not have yet, as properties or as flags.
    pub(crate) fn add_absent(&mut self, pairs: &Pairs) {
        for (name, pair) in pairs.each() {
            if !self.has_name(name) && !self.has_flag_for(name) {
                self.draft.push_entry(pair);
            }
        }
    }

    /// Adds what the process that the event is about has noted of itself (release, operating system). Those of the
    /// process that captures the event are not added then: it may be a later release.
    pub(crate) fn add_process_facts(&mut self, facts: &Pairs) {
        self.add_absent(facts);
        self.draft.has_process_facts = true;
    }

    /// Whether [`add_process_facts`](Self::add_process_facts) was called.
    #[inline]
    pub(crate) fn has_process_facts(&self) -> bool {
        self.draft.has_process_facts
    }

    /// Whether the event has a flag that is sent as this property. Adding the property too would override the flag.
    fn has_flag_for(&self, name: &[u8]) -> bool {
        let flag = match name {
            b"$process_person_profile" => Flags::PERSONLESS,
            b"$geoip_disable" => Flags::GEOIP_DISABLE,
            _ => return false,
        };
        self.draft.flags.contains(flag)
    }

    /// Sets uuid and time unless the caller did, so that hooks see those that the event will have.
    pub(crate) fn stamped(mut self, uuid: Uuid, now_nanos: WallNanos) -> Self {
        self.draft.uuid.get_or_insert(uuid);
        self.draft.timestamp.get_or_insert(now_nanos);
        self
    }

    /// Whether it is an exception event, or was one before it was renamed.
    #[inline]
    pub(crate) fn is_exception(&self) -> bool {
        self.draft.class == Class::Exception
    }

    /// A property's value as MessagePack.
    pub(super) fn value_of(&self, key: &str) -> Option<&[u8]> {
        self.entries().last(key)
    }

    pub(super) fn has_name(&self, name: &[u8]) -> bool {
        self.entries().any(|(key, _)| key == name)
    }

    /// Name and distinct id.
    fn identity(&self) -> Reader<'_> {
        Reader::new(self.draft.body.get(HEAD_LEN..self.draft.map_at).unwrap_or_default())
    }

    fn name_end(&self) -> usize {
        let mut reader = self.identity();
        let _name = reader.string();
        self.draft.map_at - reader.rest().len()
    }

    fn entries(&self) -> Entries<'_> {
        Entries::new(
            self.draft.property_count,
            self.draft.body.get(self.draft.map_at + OPEN_HEADER_LEN..).unwrap_or_default(),
        )
    }

    fn replace(&mut self, range: Range<usize>, text: &str) {
        let mut encoded = Vec::with_capacity(text.len() + OPEN_HEADER_LEN);
        append_str(&mut encoded, text);
        self.draft.map_at = self.draft.map_at - range.len() + encoded.len();
        self.draft.body.splice(range, encoded);
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Event");
        fields.field("name", &self.name()).field("distinct_id", &self.distinct_id());
        if let Some(uuid) = &self.draft.uuid {
            fields.field("uuid", &format_args!("{uuid}"));
        }
        if let Some(time) = self.draft.timestamp.map(|nanos| jiff::Timestamp::from_nanosecond(nanos.into())) {
            fields.field("timestamp", &format_args!("{}", time.unwrap_or_default()));
        }
        fields.field("properties", &format_args!("{}", Value::Object(self.properties())));
        if self.draft.group_count > 0 {
            fields.field("groups", &format_args!("{}", Value::Object(self.groups())));
        }
        if let Some(reason) = &self.draft.invalid {
            fields.field("invalid", reason);
        }
        fields.finish_non_exhaustive()
    }
}

/// Removes the entries called `name` from the `count` entries that begin at `start`; returns whether there were any.
fn remove_entries(name: &str, bytes: &mut Vec<u8>, start: usize, count: &mut u32) -> bool {
    let len = bytes.len();
    let mut entries = Entries::new(*count, bytes.get(start..).unwrap_or_default());
    let (mut found, mut start) = (Vec::new(), start);
    while let Some((other, _)) = entries.next() {
        let end = len - entries.rest().len();
        if other == name.as_bytes() {
            found.push(start..end);
        }
        start = end;
    }
    // From the last to the first, so that the positions of the others stay valid.
    for range in found.iter().rev() {
        bytes.drain(range.clone());
        *count = count.saturating_sub(1);
    }
    !found.is_empty()
}

/// Converts entries by way of the JSON that is sent, so that the result shows what arrives.
fn as_map(entries: Entries<'_>) -> Map<String, Value> {
    let mut text = Vec::new();
    json::write_entries(entries, &mut text).ok().and_then(|()| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
