//! The functions that the fuzz targets in `fuzz/` call; compiled for them and for tests. Each takes any bytes and panics
//! if a guarantee is broken. This file has the formats of records, files of events and flags; `disk.rs` the files of a queue, `network.rs`
//! responses and headers, `environment.rs` variables and files that they name.
//!
//! `fuzz/corpus/` keeps what the fuzzers have found to be different; the tests run each target on all of it.

mod disk;
mod environment;
mod network;
#[cfg(test)]
mod tests;

pub use disk::{arena, kept_flags, queue, store_row};
pub use environment::{debug_file, identity, proxies, variables};
pub use network::{headers, remote_config, response};
use serde_json::Value;
use uuid::Uuid;

use crate::client::event_of;
use crate::event::Refusal;
use crate::flags::{FlagContext, LocalFlags};
use crate::inspect::records_of_any;
use crate::record::msgpack::{append_map_header, append_str, begin_ext, end_ext};
use crate::record::stack::decode_images;
use crate::record::{Class, Flags, Head, Malformed, NoSymbols, View, json};

/// The extension types of stacks and debug images.
const STACKS: [i8; 2] = [1, 2];
const EVENT_BYTES: usize = 1024 * 1024;

/// A crash report file: whatever it contains, the events made from it can be sent. The same bytes as a breadcrumb file
/// give at most as many breadcrumbs as are reported.
pub fn crash_file(bytes: &[u8]) {
    let started_at = bytes.get(16..24).and_then(|word| word.first_chunk()).map_or(0, |word| i64::from_le_bytes(*word));
    assert!(crate::crash::breadcrumbs_in_file(bytes, started_at).len() <= 30);
    crate::crash::incidents_of_bytes(bytes, |incident, context| {
        let mut event = event_of(incident, context);
        // Where the report names nobody, the client that captures the event gives it an id.
        event.set_distinct_id("user_1");
        match event.finish(Uuid::nil(), 1, EVENT_BYTES) {
            Ok(record) => sent(record.body()).expect("an event made by the library can be sent"),
            Err(refusal) => assert!(matches!(refusal, Refusal::TooLarge { .. }), "{refusal}"),
        }
    });
}

/// A response to a flag request, from PostHog or from anything that answers in its place.
pub fn flags_answer(bytes: &[u8]) {
    if let Ok(reply) = crate::flags::remote::read(bytes) {
        assert!(reply.unreadable.is_empty() || reply.has_errors, "a lost flag is reported as an error");
        assert!(reply.flags.is_empty() || !reply.is_quota_limited, "without quota no flag is evaluated");
    }
}

/// The body of a record: a body that is accepted can be sent.
pub fn record(bytes: &[u8]) {
    let _refused = sent(bytes);
}

/// A file that is imported: each event that is taken of it can be sent, and what is sent is taken again as it is.
pub fn import(bytes: &[u8]) {
    for body in records_of_any(bytes, EVENT_BYTES) {
        sent(&body).expect("an event that is imported can be sent");
        let once = as_sent(&body);
        // The properties that the library adds are among the others then, so the record is a little larger.
        let again = records_of_any(&once, 2 * EVENT_BYTES);
        let [again] = again.as_slice() else {
            panic!("{} is imported as {} events", String::from_utf8_lossy(&once), again.len());
        };
        assert_eq!(String::from_utf8_lossy(&as_sent(again)), String::from_utf8_lossy(&once));
    }
}

fn as_sent(body: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let view = View::parse(body).expect("a record that was made can be read");
    json::write_event(&view, &NoSymbols, &mut text).expect("a parsed record can be sent");
    text
}

/// A stack trace and debug images in an otherwise valid record, which is therefore accepted.
pub fn stack(bytes: &[u8]) {
    let _any = decode_images(bytes);
    for kind in STACKS {
        let head = Head {
            class: Class::Identity,
            flags: Flags::default(),
            lib_version: [1, 2, 3],
            uuid: Uuid::nil(),
            timestamp_nanos: 7,
        };
        let mut body = head.encode().to_vec();
        append_str(&mut body, "$exception");
        append_str(&mut body, "user_1");
        append_map_header(&mut body, 1);
        append_str(&mut body, "stacktrace");
        let at = begin_ext(&mut body, kind);
        body.extend_from_slice(bytes);
        end_ext(&mut body, at);
        append_map_header(&mut body, 0);
        sent(&body).expect("an extension value may hold anything");
    }
}

/// Flag definitions up to the first line feed, followed by an object of properties: each flag has a value or none, and
/// the payload of that value.
pub fn flags(bytes: &[u8]) {
    let (definitions, properties) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let Ok(flags) = LocalFlags::parse(definitions) else { return };
    let properties = serde_json::from_slice::<Value>(properties).unwrap_or_default();
    let mut context = FlagContext::new("user_1").group("company", "acme").device_id("device");
    for (name, value) in properties.as_object().into_iter().flatten() {
        context = context.person_property(name, value).group_property("company", name, value);
    }
    for (key, evaluated) in flags.evaluate_all(&context, 1) {
        let Ok(evaluated) = evaluated else { continue };
        let payload = flags.payload(&key, (&evaluated.value).into());
        assert_eq!(payload, evaluated.payload.as_ref(), "{key:?}");
    }
    for key in flags.keys() {
        let _either = flags.evaluate(key, &context);
    }
}

fn sent(body: &[u8]) -> Result<(), Malformed> {
    let view = View::parse(body)?;
    let (mut v0, mut v1) = (Vec::new(), Vec::new());
    json::write_event(&view, &NoSymbols, &mut v0).expect("a parsed record can be sent");
    json::write_event_v1(&view, &NoSymbols, &mut v1).expect("a parsed record can be sent");
    for text in [v0, v1] {
        serde_json::from_slice::<Value>(&text).expect("the output is JSON");
    }
    Ok(())
}
