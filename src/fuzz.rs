//! What the fuzz targets in `fuzz/` call; compiled for them alone. Each takes any bytes, and panics where a promise is broken.

use serde_json::Value;
use uuid::Uuid;

use crate::client::event_of;
use crate::event::Stamp;
use crate::flags::{FlagContext, LocalFlags};
use crate::record::msgpack::{append_map_header, append_str, begin_ext, end_ext};
use crate::record::stack::decode_images;
use crate::record::{Class, Flags, Head, Malformed, NoSymbols, View, json};

/// The extension types of stacks and debug images.
const STACKS: [i8; 2] = [1, 2];
const EVENT_BYTES: usize = 1024 * 1024;

/// A file of last words: whatever stands in it, what is told of it can be sent.
pub fn crash_file(bytes: &[u8]) {
    crate::crash::told_of(bytes, |incident, context| {
        let stamp = Stamp { uuid: Uuid::nil(), now_nanos: 1 };
        if let Ok(record) = event_of(incident, context).finish(&stamp, EVENT_BYTES) {
            sent(record.body()).expect("what we have made can be sent");
        }
    });
}

/// What PostHog, or whoever answers in its place, says about flags.
pub fn flags_answer(bytes: &[u8]) {
    if let Ok(reply) = crate::flags::remote::read(bytes) {
        assert!(reply.unreadable.is_empty() || reply.answer.has_errors, "what was lost is said to be");
        assert!(reply.answer.flags.is_empty() || !reply.answer.is_quota_limited, "without quota nothing is evaluated");
    }
}

/// The body of a record: what is accepted can be sent.
pub fn record(bytes: &[u8]) {
    let _refused = sent(bytes);
}

/// Stacks and debug images in a record that is good otherwise, which therefore is accepted.
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
        append_str(&mut body, "somebody");
        append_map_header(&mut body, 1);
        append_str(&mut body, "stacktrace");
        let at = begin_ext(&mut body, kind);
        body.extend_from_slice(bytes);
        end_ext(&mut body, at);
        append_map_header(&mut body, 0);
        sent(&body).expect("an extension value may hold anything");
    }
}

/// Definitions up to the first line feed, and after it an object of properties: whatever they are, a flag has a value or none, with the
/// payload of that value.
pub fn flags(bytes: &[u8]) {
    let (definitions, properties) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let Ok(flags) = LocalFlags::parse(definitions) else { return };
    let properties = serde_json::from_slice::<Value>(properties).unwrap_or_default();
    let mut context = FlagContext::new("somebody").group("company", "acme").device_id("device");
    for (name, value) in properties.as_object().into_iter().flatten() {
        context = context.person_property(name, value).group_property("company", name, value);
    }
    let all = flags.evaluate_all(&context, None, 1);
    for (key, evaluated) in &all.flags {
        let payload = flags.payload(key, (&evaluated.value).into());
        assert_eq!(payload, evaluated.payload.as_ref(), "{key:?}");
    }
    for key in flags.keys() {
        let _either = flags.evaluate(key, &context);
    }
}

fn sent(body: &[u8]) -> Result<(), Malformed> {
    let view = View::parse(body)?;
    let (mut v0, mut v1) = (Vec::new(), Vec::new());
    json::write_event(&view, &NoSymbols, &mut v0).expect("what was parsed can be sent");
    json::write_event_v1(&view, &NoSymbols, &mut v1).expect("what was parsed can be sent");
    for text in [v0, v1] {
        serde_json::from_slice::<Value>(&text).expect("what is sent is JSON");
    }
    Ok(())
}
