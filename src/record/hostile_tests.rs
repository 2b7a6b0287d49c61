//! Untrusted bodies: reading them may fail and must not panic, recurse without bound or allocate without bound.

use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::json::write_event;
use super::msgpack::{append_map_header, append_str, begin_map, patch_len};
use super::values::{append_entry, value_as};
use super::{Class, Flags, HEAD_LEN, Head, MAX_DEPTH, Malformed, NoSymbols, View};

fn valid_body() -> Vec<u8> {
    let head = Head {
        class: Class::Identity,
        flags: Flags::default(),
        lib_version: [1, 2, 3],
        uuid: Uuid::nil(),
        timestamp_nanos: 7,
    };
    let mut body = head.encode().to_vec();
    append_str(&mut body, "name");
    append_str(&mut body, "distinct");
    let at = begin_map(&mut body);
    let nested = json!({"list": [1, -2, 3.5, null, true], "text": "\u{e9}\u{1f600}\"", "deep": {"er": {"": []}}});
    for (key, value) in [("flat", json!("value")), ("nested", nested), ("long", json!("x".repeat(300)))] {
        append_entry(&mut body, key, &value).unwrap();
    }
    patch_len(&mut body, at, 3);
    append_map_header(&mut body, 1);
    append_entry(&mut body, "company", "acme").unwrap();
    body
}

/// Reads a whole body. A body that is accepted must be convertible to JSON.
fn read_all(body: &[u8]) -> Result<(), Malformed> {
    let view = View::parse(body)?;
    let mut out = Vec::new();
    write_event(&view, &NoSymbols, &mut out).expect("a parsed body can be sent");
    serde_json::from_slice::<serde_json::Value>(&out).expect("the output is JSON");
    for (_, value) in view.properties.chain(view.groups) {
        let _of_any_type = value_as::<serde_json::Value>(value);
    }
    Ok(())
}

#[test]
fn a_valid_body_is_read_whole() {
    let body = valid_body();
    let view = View::parse(&body).unwrap();
    assert_eq!((view.name, view.distinct_id, view.head.class), ("name", "distinct", Class::Identity));
    assert_eq!((view.properties.len(), view.groups.len()), (3, 1));
    assert_eq!(view.get("flat").and_then(value_as::<String>).as_deref(), Some("value"));
    assert_eq!(view.get("absent"), None);
    assert_eq!(read_all(&body), Ok(()));
}

#[test]
fn a_body_cut_anywhere_is_refused() {
    let body = valid_body();
    for cut in 0..body.len() {
        assert_eq!(read_all(&body[..cut]), Err(Malformed::Truncated), "cut at {cut}");
    }
}

#[test]
fn a_body_with_a_byte_too_many_is_refused() {
    let mut body = valid_body();
    body.push(0xc0);
    assert_eq!(read_all(&body), Err(Malformed::Trailing));
}

#[test]
fn text_that_is_not_utf8_is_refused_wherever_it_stands() {
    let body = valid_body();
    for text in ["name", "distinct", "flat", "value", "list", "company", "acme"] {
        let at = body.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
        let mut damaged = body.clone();
        damaged[at] = 0xff;
        assert_eq!(read_all(&damaged), Err(Malformed::Utf8), "{text}");
    }
}

#[test]
fn a_key_that_is_no_string_is_refused_at_the_top() {
    let mut body = valid_body();
    body.truncate(HEAD_LEN);
    body.extend_from_slice(&[0xa1, b'e', 0xa1, b'd', 0x81, 0x01, 0xc0, 0x80]);
    assert_eq!(read_all(&body), Err(Malformed::Type));
}

#[test]
fn a_million_open_arrays_do_not_end_the_stack() {
    let mut body = valid_body();
    body.truncate(HEAD_LEN);
    body.extend_from_slice(&[0xa1, b'e', 0xa1, b'd', 0x81, 0xa1, b'k']);
    body.resize(body.len() + usize::from(MAX_DEPTH) * 20_000, 0x91);
    assert_eq!(read_all(&body), Err(Malformed::TooDeep));
}

proptest! {
    #[test]
    fn random_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _refused_or_not = read_all(&bytes);
        let mut behind_a_head = valid_body();
        behind_a_head.truncate(HEAD_LEN);
        behind_a_head.extend_from_slice(&bytes);
        let _refused_or_not = read_all(&behind_a_head);
    }

    #[test]
    fn mutated_bodies_are_read_without_panic(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = valid_body();
        for (place, byte) in places {
            let at = place.index(body.len());
            body[at] = byte;
        }
        let _refused_or_not = read_all(&body);
        body.truncate(cut.index(body.len()));
        let _refused_or_not = read_all(&body);
    }

    #[test]
    fn bytes_inserted_or_removed_are_read_without_panic(
        at in any::<prop::sample::Index>(),
        removed in 0usize..8,
        inserted in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut body = valid_body();
        let start = at.index(body.len());
        let end = (start + removed).min(body.len());
        body.splice(start..end, inserted);
        let _refused_or_not = read_all(&body);
    }
}
