//! An event of a file that is imported: from its JSON to a record.
//!
//! What the JSON says is kept: the order of the properties, the value of each number however many digits it has, and the
//! properties that the library would add itself (`$lib`, `$groups`, `$geoip_disable`, `$process_person_profile`), which
//! therefore need no flag of the record. So an event that was exported is sent byte for byte as it was exported. A number
//! that another program has written in an unusual way (`1.10`) is sent as the same number (`1.1`).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeStruct, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::event::{Event, Record};
use crate::sys::clock::WallNanos;

/// A JSON object in the order in which it was written.
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
                serializer.collect_map(fields.0.iter().map(|(key, value)| (key, Json(value))))
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
                serializer.collect_seq(items.into_iter().map(Json))
            }
            Some(b'"') => serializer.serialize_str(&serde_json::from_str::<String>(text).map_err(wrong)?),
            Some(b't') => serializer.serialize_bool(true),
            Some(b'f') => serializer.serialize_bool(false),
            Some(b'n') => serializer.serialize_unit(),
            _ => {
                let mut number = serializer.serialize_struct(NUMBER, 1)?;
                number.serialize_field(NUMBER, text)?;
                number.end()
            }
        }
    }
}

/// The elements of PostHog's batch object, if `text` is one: an object with a list `batch`. The error says why none of them
/// can be taken.
pub(super) fn batch_of<'a>(text: &'a str, terms: Terms<'_>) -> Result<Option<Vec<&'a RawValue>>, String> {
    // What is no object is no event either, and then that is said.
    let Ok(fields) = serde_json::from_str::<Fields<'_>>(text) else { return Ok(None) };
    let count = |wanted: &str| fields.0.iter().filter(|(key, _)| key == wanted).count();
    let Some((_, batch)) = fields.0.iter().find(|(key, _)| key == "batch") else { return Ok(None) };
    if count("event") > 0 {
        return Err("it is an event (\"event\") and a batch (\"batch\") at once".into());
    }
    if count("batch") > 1 {
        return Err("it has \"batch\" more than once".into());
    }
    check_key(&fields, terms)?;
    serde_json::from_str(batch.get()).map(Some).map_err(|_| "its \"batch\" is not a list".into())
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

/// The record of one event. An event without a uuid gets one of `uuids`. The error says what is wrong with the text.
pub(super) fn record_of(text: &str, uuids: &mut DerivedUuids, terms: Terms<'_>) -> Result<Record, String> {
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| described(&error))?;
    check_key(&fields, terms)?;
    let last = |wanted: &str| fields.0.iter().rev().find(|(key, _)| key == wanted).map(|(_, value)| *value);
    let name = last("event").and_then(text_of).ok_or("it has no name (\"event\")")?;
    let properties = match last("properties").filter(|value| value.get() != "null") {
        Some(value) => serde_json::from_str(value.get()).map_err(|_| "its \"properties\" are not an object")?,
        None => Fields(Vec::new()),
    };
    let of_properties =
        |wanted: &str| properties.0.iter().rev().find(|(key, _)| key == wanted).map(|(_, value)| *value);
    let distinct_id = last("distinct_id").or_else(|| last("$distinct_id"));
    let distinct_id = distinct_id.or_else(|| of_properties("distinct_id")).and_then(text_of);
    let distinct_id = distinct_id.ok_or("it has no \"distinct_id\"")?;
    let mut event = Event::new(&name, &distinct_id);
    for (key, value) in &properties.0 {
        event.set_prop(key, Json(value));
    }
    // Some libraries put these beside the properties, and PostHog takes them from there too.
    for key in ["$set", "$set_once"] {
        if let Some(value) = last(key).filter(|_| of_properties(key).is_none()) {
            event.set_prop(key, Json(value));
        }
    }
    let timestamp = last("timestamp").filter(|value| value.get() != "null");
    if let Some(value) = timestamp {
        let wrong = "its \"timestamp\" is not a time as RFC 3339 writes it, between the years 1678 and 2261";
        event.set_timestamp(time_of(value).ok_or(wrong)?);
    }
    let uuid = match last("uuid").filter(|value| value.get() != "null").map(text_of) {
        Some(text) => text.and_then(|text| Uuid::parse_str(&text).ok()).ok_or("its \"uuid\" is not a uuid")?,
        None => uuids.next(text),
    };
    event.set_uuid(uuid);
    event.finish(uuid, terms.now, terms.max_event_bytes).map_err(|refusal| refusal.describe())
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
pub(super) struct DerivedUuids {
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
        record_of(text, &mut DerivedUuids::default(), terms)
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
        let mut uuids = DerivedUuids::default();
        let [first, second, third] = [0; 3].map(|_| record_of(text, &mut uuids, TERMS).unwrap().uuid.to_string());
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
        ] {
            let why = record(text, TERMS).map(|record| record.uuid).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
        let large = format!(r#"{{"event":"e","distinct_id":"u","properties":{{"a":"{}"}}}}"#, "x".repeat(2000));
        let terms = Terms { max_event_bytes: 1024, ..TERMS };
        assert!(record(&large, terms).map(|record| record.uuid).unwrap_err().contains("1024"));
    }

    #[test]
    fn a_number_keeps_its_value_if_not_its_spelling() {
        let out = sent(r#"{"event":"e","distinct_id":"u","properties":{"a":1.10,"b":1e2,"c":0.10000000000000000001}}"#);
        assert!(out.contains(r#"{"a":1.1,"b":100.0,"c":0.10000000000000000001"#), "{out}");
    }

    #[test]
    fn a_batch_object_is_its_events_and_an_event_is_none() {
        let text = r#"{"api_key":"phc_1","historical_migration":true,"batch":[{"event":"a"},{"event":"b"}]}"#;
        let batch = batch_of(text, TERMS).unwrap().unwrap();
        assert_eq!(batch.iter().map(|raw| raw.get()).collect::<Vec<_>>().concat(), r#"{"event":"a"}{"event":"b"}"#);
        for text in [r#"{"event":"a","distinct_id":"u"}"#, "no object"] {
            assert!(batch_of(text, TERMS).unwrap().is_none());
        }
        for (text, expected) in [
            (r#"{"event":"a","distinct_id":"u","batch":[{"event":"b"}]}"#, "at once"),
            (r#"{"batch":[{"event":"a"}],"batch":[{"event":"b"}]}"#, "more than once"),
            (r#"{"batch":{"event":"a"}}"#, "not a list"),
            (r#"{"batch":[{"event":"a"}],"api_key":"phc_2"}"#, "\"api_key\" begins with phc_2"),
            (r#"{"batch":[{"event":"a"}],"token":"phc_2"}"#, "another project"),
        ] {
            let why = batch_of(text, TERMS).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
        assert!(is_unfinished(r#"{"batch":["#) && !is_unfinished("{]") && !is_unfinished("{}"));
    }
}
