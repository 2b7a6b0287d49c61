//! Describing an event: its name, properties and groups, and the events about persons and groups.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::draft::{self, Draft, Refusal, class_of, is_blank};
use crate::record::msgpack::{Reader, Token, append_str, begin_map, text};
use crate::record::values::append_entry;
use crate::record::{Flags, HEAD_LEN, NUMBER_EXT, Pairs, Unencodable};
use crate::sys::clock::nanos_since_epoch;
use crate::sys::limits::{NAME_KEPT, beginning};

const SET: &str = "$set";
const SET_ONCE: &str = "$set_once";
const UNSET: &str = "$unset";
const GROUP_SET: &str = "$group_set";

/// An event for PostHog.
///
/// The methods that describe an event take it by value and return it. None of them fails: if the event cannot be sent,
/// the receipt of its capture says so.
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
    // Boxed, because the builder passes the event with every call: one word moves in a register.
    pub(super) draft: Box<Draft>,
}

impl Event {
    /// An event called `name` of the person or thing `distinct_id`.
    #[inline]
    pub fn new(name: impl AsRef<str>, distinct_id: impl AsRef<str>) -> Self {
        Self::described(name.as_ref(), distinct_id.as_ref())
    }

    /// An event without a distinct id. It takes the distinct id of the current [`Context`](crate::Context). If that has
    /// none, it gets a random one and `$process_person_profile: false`, so that PostHog creates no person for it
    /// (unless the event sets that property itself).
    pub fn new_anon(name: impl AsRef<str>) -> Self {
        let mut event = Self::described(name.as_ref(), "");
        event.draft.anonymous = true;
        event
    }

    /// Sets a property to any value that serde can serialize, in its JSON form. The last value of a key counts.
    ///
    /// * NaN and the infinities become null, since JSON cannot express them. A number beyond 64 bits is sent with all
    ///   its digits; PostHog may round it.
    /// * A `serde_json::Value` or `RawValue` is sent as it is, whatever features of serde_json the program enables.
    /// * A [`Duration`](std::time::Duration) and a [`SystemTime`] become what serde makes of them: maps of seconds and
    ///   nanoseconds, which PostHog cannot use as numbers or times. Send a duration as a number whose unit is in the
    ///   key (`"took_ms"`), and a time as RFC 3339 text (`"2026-01-31T12:00:00Z"`). The types of jiff and of chrono
    ///   (feature `serde`) are that text. **`time::OffsetDateTime` is a list of numbers by default**: give its field the
    ///   attribute `#[serde(with = "time::serde::rfc3339")]` (feature `serde-well-known` of time) and pass the struct to
    ///   [`props`](Self::props), or format a single value with `time::format_description::well_known::Rfc3339`.
    /// * If a value cannot be serialized, or nests too deep, the event is refused when it is captured
    ///   (`Dropped(Unserializable)`), and a diagnostic names the key and the reason.
    #[inline]
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.set_prop(key, value);
        self
    }

    /// [`prop`](Self::prop) for an event behind a reference: a property of the event. Properties of its person are set
    /// by [`person_property`](Self::person_property).
    #[inline]
    pub fn set_prop(&mut self, key: impl AsRef<str>, value: impl Serialize) {
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

    /// Sets the time of the event, to the nanosecond; by default that is the moment of capture. A [`SystemTime`], a
    /// `chrono::DateTime` and a `time::OffsetDateTime` are accepted as they are; for a `jiff::Timestamp` use
    /// `SystemTime::try_from`. An event with a time before 1677 or after 2262 is refused when it is captured
    /// (`Dropped(TimestampOutOfRange)`).
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
            None => self.draft.remember(Refusal::TimestampOutOfRange),
        }
    }

    /// Sets the uuid of the event. PostHog treats two events with the same uuid, name, distinct id and day as one.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.set_uuid(uuid);
        self
    }

    /// [`uuid`](Self::uuid) for an event behind a reference.
    pub fn set_uuid(&mut self, uuid: Uuid) {
        self.draft.uuid = Some(uuid);
    }

    /// Asks PostHog not to look up the location of the sender's address.
    pub fn disable_geoip(mut self) -> Self {
        self.draft.flags.insert(Flags::GEOIP_DISABLE);
        self
    }

    /// Asks PostHog not to create or change a person for this event.
    pub fn personless(mut self) -> Self {
        self.draft.flags.insert(Flags::PERSONLESS);
        self
    }

    pub(super) fn described(name: &str, distinct_id: &str) -> Self {
        let mut draft = draft::take();
        draft.body.extend_from_slice(&[0; HEAD_LEN]);
        append_str(&mut draft.body, name);
        append_str(&mut draft.body, distinct_id);
        draft.map_at = begin_map(&mut draft.body);
        draft.class = class_of(name);
        draft.blank_name = is_blank(name);
        draft.blank_distinct_id = is_blank(distinct_id);
        Self { draft }
    }

    /// Assigns the event to a group: `key` is the group's id, a string or a number. The last key of a type counts.
    ///
    /// The event is refused when it is captured if the type is blank (`Dropped(EmptyGroupType)`), if the key is blank
    /// or missing (`Dropped(EmptyGroupKey)`), or if the key is a list, a map, a boolean or a number that is not finite
    /// (`Dropped(Unserializable)`).
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::new("run_started", "user_1").group("company", "acme").group("seat", 7);
    /// assert_eq!(event.groups()["company"], "acme");
    /// ```
    pub fn group(mut self, group_type: impl AsRef<str>, key: impl Serialize) -> Self {
        self.set_group(group_type, key);
        self
    }

    /// [`group`](Self::group) for an event behind a reference.
    pub fn set_group(&mut self, group_type: impl AsRef<str>, key: impl Serialize) {
        let (group_type, draft) = (group_type.as_ref(), &mut *self.draft);
        let start = draft.groups.len();
        let appended = append_entry(&mut draft.groups, group_type, &key);
        let refusal = match appended.and_then(|()| is_missing(draft.groups.get(start..).unwrap_or_default())) {
            Ok(_) if is_blank(group_type) => Refusal::EmptyGroupType,
            Ok(true) => Refusal::EmptyGroupKey,
            Ok(false) => {
                draft.group_count = draft.group_count.saturating_add(1);
                return;
            }
            Err(reason) => Refusal::Unserializable { key: beginning(group_type, NAME_KEPT).into(), reason },
        };
        draft.groups.truncate(start);
        draft.remember(refusal);
    }

    /// A `$identify` event: the person exists and has the properties that
    /// [`person_properties`](Self::person_properties) and similar methods set. Each one is sent; the library does not
    /// remember earlier ones.
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::identify("user_1").person_property("plan", "pro").person_property_once("first_seen", "2026-01-01");
    /// assert_eq!(event.name(), "$identify");
    /// ```
    pub fn identify(distinct_id: impl AsRef<str>) -> Self {
        let mut event = Self::described("$identify", distinct_id.as_ref());
        event.merge_into(SET, Pairs::default());
        event
    }

    /// A `$set` event: changes properties of a person and does nothing else.
    pub fn set_person(distinct_id: impl AsRef<str>) -> Self {
        Self::described("$set", distinct_id.as_ref())
    }

    /// A `$create_alias` event: `alias` is another id of the person `previous_id`.
    pub fn alias(previous_id: impl AsRef<str>, alias: impl AsRef<str>) -> Self {
        let (previous_id, alias) = (previous_id.as_ref(), alias.as_ref());
        let mut event = Self::described("$create_alias", previous_id);
        event.set_prop("distinct_id", previous_id);
        event.set_prop("alias", alias);
        if is_blank(alias) {
            event.draft.remember(Refusal::EmptyAlias);
        }
        event
    }

    /// A `$groupidentify` event: the group exists and has the properties that [`group_props`](Self::group_props) sets.
    /// The key is a string or a number. The distinct id is `$<type>_<key>` unless
    /// [`with_distinct_id`](Self::with_distinct_id) sets another.
    pub fn group_identify(group_type: impl AsRef<str>, group_key: impl Serialize) -> Self {
        let group_type = group_type.as_ref();
        let key = key_text(&group_key);
        let mut event = Self::described("$groupidentify", &format!("${group_type}_{}", key.as_deref().unwrap_or("")));
        event.set_prop("$group_type", group_type);
        event.set_prop("$group_key", &group_key);
        event.merge_into(GROUP_SET, Pairs::default());
        if is_blank(group_type) {
            event.draft.remember(Refusal::EmptyGroupType);
        }
        match key {
            Ok(key) if is_blank(&key) => event.draft.remember(Refusal::EmptyGroupKey),
            Ok(_) => {}
            Err(reason) => event.draft.remember_value("$group_key", reason),
        }
        event
    }

    /// Sets another distinct id: [`set_distinct_id`](Self::set_distinct_id) in the form of the builder.
    pub fn with_distinct_id(mut self, distinct_id: impl AsRef<str>) -> Self {
        self.set_distinct_id(distinct_id);
        self
    }

    /// Sets a property of the person (`$set`). Works with any event.
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::new("upgraded", "user_1").person_property("plan", "pro").person_property("seats", 3);
    /// assert_eq!(event.properties()["$set"], serde_json::json!({"plan": "pro", "seats": 3}));
    /// ```
    pub fn person_property(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.merge_one(SET, key.as_ref(), &value);
        self
    }

    /// Sets a property of the person if it has none of that name yet (`$set_once`). Works with any event.
    pub fn person_property_once(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.merge_one(SET_ONCE, key.as_ref(), &value);
        self
    }

    /// Sets several properties of the person (`$set`): those of a map, a struct, or a sequence of pairs.
    pub fn person_properties(mut self, props: impl Serialize) -> Self {
        self.merge_all(SET, &props);
        self
    }

    /// Sets several properties of the person, each if it has none of that name yet (`$set_once`).
    pub fn person_props_once(mut self, props: impl Serialize) -> Self {
        self.merge_all(SET_ONCE, &props);
        self
    }

    /// Removes a property of the person (`$unset`), if the person has it. Works with any event except an exception, for
    /// which PostHog changes no person.
    ///
    /// Do not set and remove the same property in one event: PostHog removes it if the person has it, and otherwise sets
    /// it.
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::new("downgraded", "user_1").unset_person_property("plan").unset_person_property("seats");
    /// assert_eq!(event.properties()["$unset"], serde_json::json!(["plan", "seats"]));
    /// ```
    pub fn unset_person_property(self, key: impl AsRef<str>) -> Self {
        self.unset_person_properties([key])
    }

    /// Removes several properties of the person (`$unset`): see [`unset_person_property`](Self::unset_person_property).
    pub fn unset_person_properties<K: AsRef<str>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        // PostHog takes a list of keys, or the keys of a map, which a hook or another library may have set.
        let mut all: Vec<String> = match self.get(UNSET) {
            Some(Value::Array(keys)) => keys.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::Object(map)) => map.into_iter().map(|(key, _)| key).collect(),
            _ => Vec::new(),
        };
        for key in keys {
            if !all.iter().any(|other| other == key.as_ref()) {
                all.push(key.as_ref().to_owned());
            }
        }
        if !all.is_empty() {
            self.remove(UNSET);
            self.set_prop(UNSET, all);
        }
        self
    }

    /// Sets several properties of the group of a [`group_identify`](Self::group_identify) event (`$group_set`).
    pub fn group_props(mut self, props: impl Serialize) -> Self {
        self.merge_all(GROUP_SET, &props);
        self
    }

    /// Makes the event invalid unless it sets or removes a property of the person.
    pub(crate) fn must_set_something(mut self) -> Self {
        if ![SET, SET_ONCE, UNSET].iter().any(|name| self.has(name)) {
            self.draft.remember(Refusal::NothingToSet);
        }
        self
    }

    fn merge_one(&mut self, name: &str, key: &str, value: &impl Serialize) {
        match Pairs::one(key, value) {
            Ok(pair) => self.merge_into(name, pair),
            Err(reason) => self.draft.remember_value(key, reason),
        }
    }

    fn merge_all(&mut self, name: &str, props: &impl Serialize) {
        match Pairs::of(props) {
            Ok(pairs) if pairs.is_empty() => {}
            Ok(pairs) => self.merge_into(name, pairs),
            Err(reason) => self.draft.remember_value(name, reason),
        }
    }

    /// Adds pairs to the map that is the property `name`. It is a property from the start, so hooks read and change it
    /// like any other.
    fn merge_into(&mut self, name: &str, newer: Pairs) {
        let mut pairs = self.value_of(name).map(Pairs::in_value).unwrap_or_default();
        pairs.merge(&newer);
        self.remove(name);
        match pairs.append_as_map(&mut self.draft.body, name) {
            Ok(()) => self.draft.property_count = self.draft.property_count.saturating_add(1),
            Err(reason) => self.draft.remember_value(name, reason),
        }
    }
}

/// A group's key as text for a distinct id.
pub(super) fn key_text(key: &impl Serialize) -> Result<String, Unencodable> {
    let encoded = Pairs::one("", key)?;
    let value = encoded.entries().next().map(|(_, value)| value);
    match key_token(value.unwrap_or_default())? {
        Token::Str(key) => Ok(text(key)?.to_owned()),
        Token::Unsigned(key) => Ok(key.to_string()),
        Token::Signed(key) => Ok(key.to_string()),
        Token::F32(key) => Ok(key.to_string()),
        Token::F64(key) => Ok(key.to_string()),
        Token::Ext(NUMBER_EXT, key) => Ok(text(key)?.to_owned()),
        _ => Ok(String::new()),
    }
}

/// Whether the key of an encoded pair is missing or blank.
fn is_missing(pair: &[u8]) -> Result<bool, Unencodable> {
    let mut reader = Reader::new(pair);
    reader.string_bytes()?;
    match key_token(reader.rest())? {
        Token::Nil => Ok(true),
        Token::Str(key) => Ok(is_blank(text(key)?)),
        _ => Ok(false),
    }
}

/// Reads a group's key; `Nil` if it is missing, an error if it is neither a string nor a number.
fn key_token(value: &[u8]) -> Result<Token<'_>, Unencodable> {
    let token = Reader::new(value).token()?;
    match token {
        Token::F32(key) if !key.is_finite() => Err(Unencodable::NotAKey),
        Token::F64(key) if !key.is_finite() => Err(Unencodable::NotAKey),
        Token::Nil | Token::Str(_) | Token::Unsigned(_) | Token::Signed(_) | Token::F32(_) | Token::F64(_) => Ok(token),
        Token::Ext(NUMBER_EXT, _) => Ok(token),
        _ => Err(Unencodable::NotAKey),
    }
}
