//! An event of a file that is imported: from its JSON to a record.
//!
//! What the JSON says is kept: the order of the properties, the value of each number however many digits it has, and the
//! properties that the library would add itself (`$lib`, `$groups`, `$geoip_disable`, `$process_person_profile`), which
//! therefore need no flag of the record. So an event that was exported is sent byte for byte as it was exported. A number
//! that another program has written in an unusual way (`1.10`) is sent as the same number (`1.1`).
//!
//! What stands beside the properties is read as PostHog reads it: `$set` and `$set_once` are merged into those of the
//! properties, and an event without a time is from the moment at which it was sent (`sent_at`), less its `offset`. Fields
//! that have no place in the queue are counted ([`Seen`]) and reported.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeStruct, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::{Event, Record, Refusal};
use crate::record::Unencodable;
use crate::sys::clock::WallNanos;
use crate::sys::limits::{NAME_KEPT, beginning};

/// A JSON object in the order in which it was written.
#[derive(Default)]
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl<'de> Visitor<'de> for Reading {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    fields.push((key, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Reading)
    }
}

impl<'a> Fields<'a> {
    /// The value of a key; of several, the last.
    fn last(&self, wanted: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(key, _)| key == wanted).map(|(_, value)| *value)
    }

    /// [`last`](Self::last), unless it is null.
    fn said(&self, wanted: &str) -> Option<&'a RawValue> {
        self.last(wanted).filter(|value| value.get() != "null")
    }

    /// These fields and more: a key of both has the value that it has there.
    fn with(self, more: Self) -> Self {
        let (mut all, mut places) = (Vec::new(), HashMap::new());
        for (key, value) in self.0.into_iter().chain(more.0) {
            match places.get(&key) {
                Some(at) => {
                    if let Some((_, old)) = all.get_mut::<usize>(*at) {
                        *old = value;
                    }
                }
                None => {
                    places.insert(key.clone(), all.len());
                    all.push((key, value));
                }
            }
        }
        Self(all)
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, Json(value))))
    }
}

/// A key, borrowed unless it has escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl<'de> Visitor<'de> for Reading {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reading)
    }
}

/// The name of the struct as which a number of serde_json may pass itself, with its digits in a field of that name.
const NUMBER: &str = "$serde_json::private::Number";

/// A value of any shape that keeps its order and its digits. Its depth is bounded by what it is serialized into.
struct Json<'a>(&'a RawValue);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.0.get();
        let wrong = |error: serde_json::Error| S::Error::custom(error);
        match text.as_bytes().first() {
            Some(b'{') => {
                let fields: Fields<'_> = serde_json::from_str(text).map_err(wrong)?;
                fields.serialize(serializer)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
                serializer.collect_seq(items.into_iter().map(Json))
            }
            Some(b'"') => serializer.serialize_str(&serde_json::from_str::<String>(text).map_err(wrong)?),
            Some(b't') => serializer.serialize_bool(true),
            Some(b'f') => serializer.serialize_bool(false),
            Some(b'n') => serializer.serialize_unit(),
            // PostHog refuses the whole request with such a number in it.
            _ if !text.parse::<f64>().is_ok_and(f64::is_finite) => {
                Err(S::Error::custom(format!("the number {} is too large", beginning(text, NAME_KEPT))))
            }
            _ => {
                let mut number = serializer.serialize_struct(NUMBER, 1)?;
                number.serialize_field(NUMBER, text)?;
                number.end()
            }
        }
    }
}

/// An event in the text of a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    text: &'a str,
    /// When the batch that it is in was sent, as that says.
    sent_at: Option<&'a RawValue>,
}

impl<'a> Incoming<'a> {
    /// An event that is in no batch.
    pub(super) fn alone(text: &'a str) -> Self {
        Self { text, sent_at: None }
    }
}

/// The events of a line: those of PostHog's batch object with their numbers, or one. The error says why none of them can
/// be taken.
pub(super) fn events_of<'a>(
    text: &'a str,
    seen: &mut Seen,
    terms: Terms<'_>,
) -> Result<Vec<(Option<u64>, Incoming<'a>)>, String> {
    let alone = vec![(None, Incoming::alone(text))];
    // An event may have a property of that name, but not at the top.
    if !text.contains("\"batch\"") {
        return Ok(alone);
    }
    // What is no object is no event either, and then that is said.
    let Ok(fields) = serde_json::from_str::<Fields<'_>>(text) else { return Ok(alone) };
    let count = |wanted: &str| fields.0.iter().filter(|(key, _)| key == wanted).count();
    let Some(batch) = fields.last("batch") else { return Ok(alone) };
    if count("event") > 0 {
        return Err("it is an event (\"event\") and a batch (\"batch\") at once".into());
    }
    if count("batch") > 1 {
        return Err("it has \"batch\" more than once".into());
    }
    check_key(&fields, terms)?;
    let events: Vec<&RawValue> = serde_json::from_str(batch.get()).map_err(|_| "its \"batch\" is not a list")?;
    let sent_at = fields.said("sent_at");
    seen.leave_out_others(&fields, &["batch", "api_key", "token", "sent_at"]);
    let events = events.into_iter().map(|event| Incoming { text: event.get(), sent_at });
    Ok(events.zip(1..).map(|(event, at)| (Some(at), event)).collect())
}

/// Fails if an event or batch says that it is of another project.
fn check_key(fields: &Fields<'_>, terms: Terms<'_>) -> Result<(), String> {
    let keys = fields.0.iter().filter(|(key, _)| key == "api_key" || key == "token");
    match keys.filter_map(|(name, value)| Some((name, text_of(value)?))).find(|(_, key)| key.trim() != terms.api_key) {
        Some((name, key)) => {
            let begins: String = key.chars().take(8).collect();
            Err(format!(
                "it is of another project: its \"{name}\" begins with {begins}; import it with that key (--key), or remove \
                 \"{name}\" from it"
            ))
        }
        None => Ok(()),
    }
}

/// Whether `text` is one JSON object, and no more.
pub(super) fn is_object(text: &str) -> bool {
    serde_json::from_str::<Fields<'_>>(text).is_ok()
}

/// Whether `text` is the beginning of JSON, and no more.
pub(super) fn is_unfinished(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_err_and(|error| error.is_eof())
}

/// How events become records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// The project that they are imported into.
    pub(super) api_key: &'a str,
    pub(super) max_event_bytes: usize,
    /// The time of events that have none.
    pub(super) now: WallNanos,
}

/// What is remembered of the events of a file: their uuids, and the fields that were left out.
#[derive(Debug, Default)]
pub(super) struct Seen {
    uuids: DerivedUuids,
    left_out: BTreeMap<String, u64>,
}

/// The most names of fields that are remembered; the others are counted together.
const NAMES_MOST: usize = 100;
/// What they are counted as.
const OTHER_NAMES: &str = "(others)";

impl Seen {
    /// The fields that were left out, each with how often it was met.
    pub(super) fn left_out(&self) -> BTreeMap<String, u64> {
        self.left_out.clone()
    }

    fn leave_out(&mut self, name: &str) {
        let is_new = !self.left_out.contains_key(name);
        let name = if is_new && self.left_out.len() >= NAMES_MOST { OTHER_NAMES } else { beginning(name, NAME_KEPT) };
        let count = self.left_out.entry(name.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
    }

    fn leave_out_others(&mut self, fields: &Fields<'_>, known: &[&str]) {
        let others = fields.0.iter().filter(|(key, value)| value.get() != "null" && !known.contains(&key.as_ref()));
        others.for_each(|(key, _)| self.leave_out(key));
    }
}

/// The fields of an event that are read.
const OF_EVENT: [&str; 12] = [
    "uuid",
    "event",
    "distinct_id",
    "$distinct_id",
    "properties",
    "timestamp",
    "sent_at",
    "offset",
    "$set",
    "$set_once",
    "api_key",
    "token",
];

/// The record of one event. An event without a uuid gets one that `seen` derives. The error says what is wrong with the
/// text.
pub(super) fn record_of(event: Incoming<'_>, seen: &mut Seen, terms: Terms<'_>) -> Result<Record, String> {
    let Incoming { text, sent_at } = event;
    if let Some(column) = lone_surrogate(text) {
        return Err(format!(
            "the escape in column {column} is one half of a character, and the other half is not beside it (a lone \
             surrogate), so it stands for no character; replace it, for example by \\ufffd"
        ));
    }
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| described(&error))?;
    check_key(&fields, terms)?;
    let name = fields.last("event").and_then(text_of).ok_or("it has no name (\"event\")")?;
    let properties = match fields.said("properties") {
        Some(value) => serde_json::from_str(value.get()).map_err(|_| "its \"properties\" are not an object")?,
        None => Fields::default(),
    };
    let distinct_id = fields.last("distinct_id").or_else(|| fields.last("$distinct_id"));
    let distinct_id = distinct_id.or_else(|| properties.last("distinct_id")).and_then(text_of);
    let distinct_id = distinct_id.ok_or("it has no \"distinct_id\"")?;
    let mut event = Event::new(&name, &distinct_id);
    let mut left_out = Vec::new();
    set_properties(&mut event, &fields, &properties, &mut left_out);
    let timestamp = fields.said("timestamp");
    if let Some(value) = timestamp {
        let wrong = "its \"timestamp\" is not a time as RFC 3339 writes it, between the years 1678 and 2261";
        event.set_timestamp(time_of(value).ok_or(wrong)?);
    }
    let (sent_at, offset) = (fields.said("sent_at").or(sent_at), fields.said("offset"));
    match timestamp.map_or_else(|| captured_at(sent_at, offset), |_| None) {
        Some(time) => event.set_timestamp(time),
        // With a time of its own, only the server that received it could tell how wrong its clock was.
        None => {
            left_out.extend(sent_at.map(|_| "sent_at"));
            left_out.extend(offset.map(|_| "offset"));
        }
    }
    let uuid = match fields.said("uuid").map(text_of) {
        Some(text) => text.and_then(|text| Uuid::parse_str(&text).ok()).ok_or("its \"uuid\" is not a uuid")?,
        None => seen.uuids.next(text),
    };
    event.set_uuid(uuid);
    let record = event.finish(uuid, terms.now, terms.max_event_bytes).map_err(|refusal| match refusal {
        Refusal::Unserializable { key, reason: Unencodable::Refused(why) } => format!("the value of {key:?}: {why}"),
        refusal => refusal.describe(),
    })?;
    left_out.into_iter().for_each(|name| seen.leave_out(name));
    seen.leave_out_others(&fields, &OF_EVENT);
    Ok(record)
}

/// Sets the properties. Some libraries put `$set` and `$set_once` beside them. PostHog merges those into the ones
/// among them, and they win over them.
fn set_properties(event: &mut Event, fields: &Fields<'_>, properties: &Fields<'_>, left_out: &mut Vec<&'static str>) {
    let mut beside = Vec::new();
    for name in ["$set", "$set_once"] {
        let Some(value) = fields.said(name) else { continue };
        match serde_json::from_str::<Fields<'_>>(value.get()) {
            Ok(more) => beside.push((name, more)),
            Err(_) => left_out.push(name),
        }
    }
    for (key, value) in &properties.0 {
        if !beside.iter().any(|(name, _)| name == key) {
            event.set_prop(key, Json(value));
        }
    }
    for (name, more) in beside {
        let base = properties.last(name).and_then(|value| serde_json::from_str::<Fields<'_>>(value.get()).ok());
        event.set_prop(name, base.unwrap_or_default().with(more));
    }
}

/// The time of an event that has none: when it was sent, less how many milliseconds earlier it was captured.
fn captured_at(sent_at: Option<&RawValue>, offset: Option<&RawValue>) -> Option<SystemTime> {
    let sent_at = time_of(sent_at?)?;
    match offset {
        None => Some(sent_at),
        Some(offset) => {
            let milliseconds: f64 = offset.get().parse().ok()?;
            sent_at.checked_sub(Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?)
        }
    }
}

/// The column, from 1, of an escape that is half of a character and has no other half beside it. JSON allows it; text that
/// is UTF-8 cannot contain it.
fn lone_surrogate(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let escape = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\\')) {
        at += found;
        at += match escape(at) {
            Some(0xd800..=0xdbff) if matches!(escape(at + 6), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => return Some(text.get(..at)?.chars().count() + 1),
            _ => 2,
        };
    }
    None
}

/// Why a text is no JSON object, without the number of its line, which is always 1.
fn described(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let why = text.split(" at line ").next().unwrap_or_default();
    format!("it is not a JSON object: {why} (column {})", error.column())
}

/// A string, or the digits of a number: some programs number their users.
fn text_of(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str(value.get()).ok(),
        b'-' | b'0'..=b'9' => Some(value.get().to_owned()),
        _ => None,
    }
}

fn time_of(value: &RawValue) -> Option<SystemTime> {
    let text: String = serde_json::from_str(value.get()).ok()?;
    let time: Timestamp = text.trim().parse().ok()?;
    SystemTime::try_from(time).ok()
}

/// Uuids of events that have none. Each depends on the text of the event alone, so that it is the same each time and
/// wherever the event stands: the first 128 bits of the SHA-256 of the text, as a uuid of version 8. Events with the same
/// text are events of their own: from the second on, the number of those before it (8 bytes, little-endian) is hashed
/// behind the text.
///
/// Needs about 20 bytes of memory for each event without a uuid.
#[derive(Debug, Default)]
struct DerivedUuids {
    /// The beginnings of the hashes of all texts.
    seen: HashSet<u64>,
    /// Of those that were seen more than once, how often.
    repeated: HashMap<u64, u64>,
}

impl DerivedUuids {
    fn next(&mut self, text: &str) -> Uuid {
        let text = Sha256::new().chain_update(text.as_bytes());
        let hash = text.clone().finalize();
        let hash = match hash.first_chunk().map(|begin| u64::from_le_bytes(*begin)).filter(|&of| !self.seen.insert(of))
        {
            None => hash,
            Some(of) => {
                let before = self.repeated.entry(of).or_insert(0);
                *before += 1;
                text.chain_update(before.to_le_bytes()).finalize()
            }
        };
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::json::write_event;
    use crate::record::{NoSymbols, View};

    const TERMS: Terms<'_> = Terms { api_key: "phc_1", max_event_bytes: 1024 * 1024, now: 1_000_000_000 };

    fn record(text: &str, terms: Terms<'_>) -> Result<Record, String> {
        record_of(Incoming::alone(text), &mut Seen::default(), terms)
    }

    fn sent(text: &str) -> String {
        let record = record(text, TERMS).unwrap();
        let mut out = Vec::new();
        write_event(&View::parse(record.body()).unwrap(), &NoSymbols, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_exported_event_is_sent_byte_for_byte_as_it_was() {
        let text = concat!(
            r#"{"uuid":"0197a1b2-0000-7000-8000-000000000001","event":"run \"done\"","distinct_id":"user_1","#,
            r#""properties":{"z":1,"a":{"y":[1,2.5,-3,true,null,""#,
            "\u{e9}",
            r#"\n"],"b":{}},"big":123456789012345678901234567890,"#,
            r#""tiny":1e-7,"empty":[],"$groups":{"company":"acme"},"$lib":"posthog-durable","$lib_version":"0.0.9","#,
            r#""$is_server":true,"$geoip_disable":true,"$process_person_profile":false},"#,
            r#""timestamp":"2026-01-31T12:00:00.123456789Z"}"#
        );
        assert_eq!(sent(text), text);
    }

    #[test]
    fn other_places_of_ids_and_person_properties_are_read() {
        let text = r#"{"event":"e","properties":{"distinct_id":7},"$set":{"plan":"pro"}}"#;
        let out = sent(text);
        assert!(out.contains(r#""distinct_id":"7","properties":{"distinct_id":7,"$set":{"plan":"pro"}"#), "{out}");
        assert!(out.contains(r#""timestamp":"1970-01-01T00:00:01Z""#), "{out}");
        assert_eq!(sent(text), out, "the derived uuid is the same each time");
        // printf %s TEXT | sha256sum; version and variant replace six bits.
        let text = r#"{"event":"e","distinct_id":"u"}"#;
        let mut seen = Seen::default();
        let mut next = |_| record_of(Incoming::alone(text), &mut seen, TERMS).unwrap().uuid.to_string();
        let [first, second, third] = [0, 1, 2].map(&mut next);
        assert_eq!(
            [first.as_str(), &second, &third],
            [
                "004403e9-a37e-8222-a323-ef1a1748485d",
                "77fdaacc-e9ee-8c31-8a07-4509eeeefe2e",
                "20ab2ea4-9772-8b30-baaf-6928302dd050"
            ]
        );
    }

    #[test]
    fn a_text_that_is_no_event_says_what_is_wrong() {
        let deep =
            format!(r#"{{"event":"e","distinct_id":"u","properties":{{"a":{}1{}}}}}"#, "[".repeat(99), "]".repeat(99));
        for (text, expected) in [
            ("", "not a JSON object"),
            ("[1]", "not a JSON object"),
            (r#"{"event":"e","distinct_id":"u""#, "EOF"),
            (r#"{"distinct_id":"u"}"#, "no name"),
            (r#"{"event":" ","distinct_id":"u"}"#, "no name"),
            (r#"{"event":"e"}"#, "distinct_id"),
            (r#"{"event":"e","distinct_id":"u","properties":[]}"#, "properties"),
            (r#"{"event":"e","distinct_id":"u","uuid":"x"}"#, "uuid"),
            (r#"{"event":"e","distinct_id":"u","timestamp":"yesterday"}"#, "RFC 3339"),
            (r#"{"event":"e","distinct_id":"u","timestamp":"9999-12-31T23:59:59Z"}"#, "between the years"),
            (r#"{"event":"e","distinct_id":"u","timestamp":"2300-01-01T00:00:00Z"}"#, "between the years"),
            (r#"{"event":"e","distinct_id":"u","api_key":"phc_2"}"#, "another project"),
            (r#"{"event":"e","distinct_id":"u","token":7}"#, "another project"),
            (&deep, "nests"),
            (r#"{"event":"e","distinct_id":"u","properties":{"a":[1e400]}}"#, "\"a\": the number 1e400 is too large"),
        ] {
            let why = record(text, TERMS).map(|record| record.uuid).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
        let large = format!(r#"{{"event":"e","distinct_id":"u","properties":{{"a":"{}"}}}}"#, "x".repeat(2000));
        let terms = Terms { max_event_bytes: 1024, ..TERMS };
        assert!(record(&large, terms).map(|record| record.uuid).unwrap_err().contains("1024"));
    }

    #[test]
    fn person_properties_beside_the_others_are_merged_into_them() {
        let text = r#"{"event":"e","distinct_id":"u","$set":{"b":2,"c":3},"$set_once":{"d":4},"properties":{"x":1,
            "$set":{"a":0,"b":1},"$set_once":"none"}}"#;
        let out = sent(text);
        assert!(out.contains(r#""properties":{"x":1,"$set":{"a":0,"b":2,"c":3},"$set_once":{"d":4}"#), "{out}");
        let mut seen = Seen::default();
        let text = r#"{"event":"e","distinct_id":"u","$set":[1],"properties":{"$set":{"a":0}}}"#;
        let record = record_of(Incoming::alone(text), &mut seen, TERMS).unwrap();
        assert_eq!(seen.left_out(), BTreeMap::from([("$set".into(), 1)]), "what is no object is not merged");
        assert_eq!(View::parse(record.body()).unwrap().distinct_id, "u");
        assert!(sent(text).contains(r#""$set":{"a":0}"#));
    }

    #[test]
    fn an_event_without_a_time_is_from_when_it_was_sent() {
        let mut seen = Seen::default();
        let mut time = |text: &str| {
            let events = events_of(text, &mut seen, TERMS).unwrap();
            let record = record_of(events[0].1, &mut seen, TERMS).unwrap();
            View::parse(record.body()).unwrap().head.timestamp_nanos
        };
        let second = 1_000_000_000;
        for (fields, expected) in [
            (r#""sent_at":"1970-01-01T00:01:00Z""#, 60 * second),
            (r#""sent_at":"1970-01-01T00:01:00Z","offset":1500"#, 58 * second + second / 2),
            (r#""sent_at":"1970-01-01T00:01:00Z","offset":0,"timestamp":null"#, 60 * second),
            (r#""sent_at":"1970-01-01T00:01:00Z","timestamp":"1970-01-01T00:00:30Z""#, 30 * second),
            (r#""sent_at":"1970-01-01T00:01:00Z","offset":"x""#, TERMS.now),
            (r#""sent_at":"1970-01-01T00:01:00Z","offset":1e300"#, TERMS.now),
            (r#""sent_at":"yesterday""#, TERMS.now),
            (r#""offset":1500"#, TERMS.now),
        ] {
            assert_eq!(time(&format!(r#"{{"event":"e","distinct_id":"u",{fields}}}"#)), expected, "{fields}");
        }
        let batch = r#"{"sent_at":"1970-01-01T00:02:00Z","batch":[{"event":"e","distinct_id":"u","offset":1000}]}"#;
        assert_eq!(time(batch), 119 * second);
        assert_eq!(seen.left_out(), BTreeMap::from([("offset".into(), 3), ("sent_at".into(), 4)]));
    }

    #[test]
    fn names_of_fields_that_are_left_out_are_bounded() {
        let mut seen = Seen::default();
        (0..300).for_each(|n| seen.leave_out(&format!("field-{n}")));
        seen.leave_out(&"x".repeat(10_000));
        seen.leave_out("field-7");
        let left_out = seen.left_out();
        assert_eq!((left_out.len(), left_out["field-7"], left_out[OTHER_NAMES]), (NAMES_MOST + 1, 2, 201));
    }

    #[test]
    fn half_of_a_character_is_named_with_its_place() {
        for (text, column) in [
            (r#"{"event":"e\ud83d","distinct_id":"u"}"#, 12),
            (r#"{"event":"e\udE00","distinct_id":"u"}"#, 12),
            (r#"{"event":"\\\ud83d\u0041","distinct_id":"u"}"#, 13),
            (r#"{"event":"e","distinct_id":"u","properties":{"a":["\ud83d\ud83d\ude00"]}}"#, 52),
            (r#"{"event":"e","distinct_id":"u","properties":{"\ud83d":1}}"#, 47),
            ("{\"event\":\"\u{e9}\\ud83d\",\"distinct_id\":\"u\"}", 12),
        ] {
            let why = record(text, TERMS).map(|record| record.uuid).unwrap_err();
            assert!(why.contains(&format!("column {column} ")) && why.contains("surrogate"), "{text}: {why}");
        }
        assert!(sent(r#"{"event":"\ud83d\ude00 \\ud83d","distinct_id":"u"}"#).contains("\u{1f600} \\\\ud83d"));
    }

    #[test]
    fn a_number_keeps_its_value_if_not_its_spelling() {
        let out = sent(r#"{"event":"e","distinct_id":"u","properties":{"a":1.10,"b":1e2,"c":0.10000000000000000001}}"#);
        assert!(out.contains(r#"{"a":1.1,"b":100.0,"c":0.10000000000000000001"#), "{out}");
    }

    #[test]
    fn a_batch_object_is_its_events_and_an_event_is_none() {
        let mut seen = Seen::default();
        let mut texts = |text: &'static str| -> Vec<_> {
            let events = events_of(text, &mut seen, TERMS).unwrap();
            events.into_iter().map(|(element, event)| (element, event.text)).collect()
        };
        let text = r#"{"api_key":"phc_1","historical_migration":true,"batch":[{"event":"a"},{"event":"b"}]}"#;
        assert_eq!(texts(text), [(Some(1), r#"{"event":"a"}"#), (Some(2), r#"{"event":"b"}"#)]);
        for text in [r#"{"event":"a","distinct_id":"u","properties":{"batch":[]}}"#, "no object \"batch\""] {
            assert_eq!(texts(text), [(None, text)]);
        }
        assert_eq!(seen.left_out(), BTreeMap::from([("historical_migration".into(), 1)]));
        for (text, expected) in [
            (r#"{"event":"a","distinct_id":"u","batch":[{"event":"b"}]}"#, "at once"),
            (r#"{"batch":[{"event":"a"}],"batch":[{"event":"b"}]}"#, "more than once"),
            (r#"{"batch":{"event":"a"}}"#, "not a list"),
            (r#"{"batch":[{"event":"a"}],"api_key":"phc_2"}"#, "\"api_key\" begins with phc_2"),
            (r#"{"batch":[{"event":"a"}],"token":"phc_2"}"#, "another project"),
        ] {
            let why = events_of(text, &mut Seen::default(), TERMS).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
        assert!(is_unfinished(r#"{"batch":["#) && !is_unfinished("{]") && !is_unfinished("{}"));
    }
}
