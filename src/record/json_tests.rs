//! The JSON of a record equals that of serde_json; the V1 form has its fields in the places where V1 expects them.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::json::write_event;
use super::msgpack::{append_map_header, append_str, begin_map, patch_len};
use super::values::append_entry;
use super::{Class, Flags, HEAD_LEN, Head, NoSymbols, View};

/// A body with these properties and groups; keys may be repeated.
fn body_of(head: Head, properties: &[(&str, Value)], groups: &[(&str, Value)]) -> Vec<u8> {
    let mut body = head.encode().to_vec();
    append_str(&mut body, "run_started");
    append_str(&mut body, "user_1");
    let at = begin_map(&mut body);
    for (key, value) in properties {
        append_entry(&mut body, key, value).unwrap();
    }
    patch_len(&mut body, at, properties.len() as u32);
    append_map_header(&mut body, groups.len() as u32);
    for (key, value) in groups {
        append_entry(&mut body, key, value).unwrap();
    }
    body
}

fn head() -> Head {
    Head {
        class: Class::Ordinary,
        flags: Flags::default(),
        lib_version: [3, 20, 1],
        uuid: Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0abc),
        timestamp_nanos: 1_700_000_000_120_000_000,
    }
}

fn sent_text(body: &[u8]) -> String {
    let mut out = b"kept".to_vec();
    write_event(&View::parse(body).unwrap(), &NoSymbols, &mut out).unwrap();
    String::from_utf8(out).unwrap().strip_prefix("kept").unwrap().to_owned()
}

fn sent(body: &[u8]) -> Value {
    serde_json::from_str(&sent_text(body)).unwrap()
}

fn sent_properties(properties: &[(&str, Value)]) -> Value {
    sent(&body_of(head(), properties, &[]))["properties"].clone()
}

fn sent_timestamp(timestamp_nanos: i64) -> String {
    let event = sent(&body_of(Head { timestamp_nanos, ..head() }, &[], &[]));
    event["timestamp"].as_str().unwrap().to_owned()
}

#[test]
fn an_event_is_sent_as_this_text() {
    let body = body_of(head(), &[("plan", json!("pro")), ("n", json!(-3))], &[("company", json!("acme"))]);
    let expected = concat!(
        r#"{"uuid":"0198c0de-0000-7000-8000-000000000abc","event":"run_started","distinct_id":"user_1","#,
        r#""properties":{"plan":"pro","n":-3,"$groups":{"company":"acme"},"#,
        r#""$lib":"posthog-durable","$lib_version":"3.20.1","$is_server":true},"#,
        r#""timestamp":"2023-11-14T22:13:20.12Z"}"#
    );
    assert_eq!(sent_text(&body), expected);
}

#[test]
fn flags_are_sent_as_properties() {
    let mut flags = Flags::GEOIP_DISABLE;
    flags.insert(Flags::PERSONLESS);
    let properties = &sent(&body_of(Head { flags, ..head() }, &[], &[]))["properties"];
    assert_eq!((&properties["$geoip_disable"], &properties["$process_person_profile"]), (&json!(true), &json!(false)));
}

#[test]
fn library_properties_of_the_caller_are_sent_instead() {
    let mut flags = Flags::GEOIP_DISABLE;
    flags.insert(Flags::PERSONLESS);
    let own = ["$lib", "$lib_version", "$is_server", "$geoip_disable", "$process_person_profile"];
    let text = sent_text(&body_of(Head { flags, ..head() }, &own.map(|key| (key, json!("mine"))), &[]));
    for key in own {
        let named = format!("\"{key}\":");
        assert_eq!(text.matches(&named).count(), 1, "{key} in {text}");
        assert!(text.contains(&format!("{named}\"mine\"")), "{key} in {text}");
    }
}

#[test]
fn groups_overwrite_a_property_of_their_name_if_there_are_any() {
    let property = [("$groups", json!("mine"))];
    assert_eq!(sent_properties(&property)["$groups"], json!("mine"));
    let text = sent_text(&body_of(head(), &property, &[("team", json!(7)), ("team", json!(8))]));
    assert!(text.contains(r#""$groups":{"team":8}"#) && !text.contains("mine"), "{text}");
}

#[test]
fn of_a_repeated_key_the_last_value_is_sent_and_the_key_once() {
    let few = [("a", json!(1)), ("b", json!(2)), ("a", json!(3))];
    let text = sent_text(&body_of(head(), &few, &[]));
    assert!(text.contains(r#"{"b":2,"a":3,"$lib""#), "{text}");
}

#[test]
fn of_thousands_of_repeated_keys_the_last_values_are_sent() {
    let names: Vec<String> = (0..20_000).map(|at| format!("key{}", at % 5_000)).collect();
    let many: Vec<_> = names.iter().enumerate().map(|(at, name)| (name.as_str(), json!(at))).collect();
    let properties = sent_properties(&many);
    assert_eq!(properties.as_object().map(Map::len), Some(5_003));
    assert_eq!((&properties["key0"], &properties["key4999"]), (&json!(15_000), &json!(19_999)));
}

#[test]
fn a_timestamp_is_utc_with_as_many_digits_as_it_needs() {
    assert_eq!(sent_timestamp(0), "1970-01-01T00:00:00Z");
    assert_eq!(sent_timestamp(1), "1970-01-01T00:00:00.000000001Z");
    assert_eq!(sent_timestamp(-500_000_000), "1969-12-31T23:59:59.5Z");
    assert_eq!(sent_timestamp(i64::MIN), "1677-09-21T00:12:43.145224192Z");
    assert_eq!(sent_timestamp(i64::MAX), "2262-04-11T23:47:16.854775807Z");
}

#[test]
fn what_json_has_no_form_for_is_sent_as_the_nearest_it_has() {
    // 1.0e300 * 1.0e300, bytes, an extension type, and keys that are not strings.
    let values: [(&str, &[u8], &str); 6] = [
        ("infinite", &[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0], "null"),
        ("not a number", &[0xca, 0x7f, 0xc0, 0, 0], "null"),
        ("bytes", &[0xc4, 2, 0, 255], "[0,255]"),
        ("ext", &[0xd4, 1, 9], "null"),
        ("float of 32 bits", &[0xca, 0x3d, 0xcc, 0xcc, 0xcd], "0.1"),
        (
            "keys",
            &[0x84, 0x01, 0xc0, 0xff, 0xc0, 0xc3, 0xc0, 0xa1, b'"', 0xc0],
            r#"{"1":null,"-1":null,"true":null,"\"":null}"#,
        ),
    ];
    for (what, value, expected) in values {
        let mut body = body_of(head(), &[], &[]);
        body.truncate(HEAD_LEN);
        append_str(&mut body, "e");
        append_str(&mut body, "d");
        append_map_header(&mut body, 1);
        append_str(&mut body, "v");
        body.extend_from_slice(value);
        append_map_header(&mut body, 0);
        let text = sent_text(&body);
        assert!(text.contains(&format!("\"v\":{expected},\"$lib\"")), "{what}: {text}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-70_000i64..70_000).prop_map(Value::from),
    ];
    let scalar =
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number, any_text().prop_map(Value::from)];
    scalar.prop_recursive(4, 30, 18, |inside| {
        prop_oneof![
            prop::collection::vec(inside.clone(), 0..18).prop_map(Value::from),
            prop::collection::btree_map(any_text(), inside, 0..18).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// Control characters, quotes, any Unicode, empty text, and lengths around the limits of MessagePack's headers.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,40}", "[\\x00-\\x1f\"\\\\/a]{0,8}", "[a-z]{28,36}", "[a-z]{250,260}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_properties_arrive_as_serde_json_would_have_sent_them(
        properties in prop::collection::btree_map(any_text(), any_value(), 0..10),
    ) {
        let pairs: Vec<_> = properties.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        let mut arrived = sent_properties(&pairs);
        for own in ["$lib", "$lib_version", "$is_server"] {
            arrived.as_object_mut().and_then(|map| map.remove(own)).unwrap();
        }
        // Both sides pass through text, because serde_json's parser may be off by one bit in a float.
        let expected: Value = serde_json::from_str(&serde_json::to_string(&properties).unwrap()).unwrap();
        prop_assert_eq!(arrived, expected);
    }
}

mod v1 {
    use super::super::json::write_event_v1;
    use super::*;

    fn text_of(body: &[u8]) -> String {
        let mut out = b"kept".to_vec();
        write_event_v1(&View::parse(body).unwrap(), &NoSymbols, &mut out).unwrap();
        String::from_utf8(out).unwrap().strip_prefix("kept").unwrap().to_owned()
    }

    fn sent(properties: &[(&str, Value)]) -> Value {
        serde_json::from_str(&text_of(&body_of(head(), properties, &[]))).unwrap()
    }

    #[test]
    fn an_event_is_sent_as_this_text() {
        let properties = [
            ("plan", json!("pro")),
            ("$session_id", json!("s-1")),
            ("$ignore_sent_at", json!(true)),
            ("$window_id", json!(7)),
            ("$process_person_profile", json!(false)),
            ("$cookieless_mode", json!(true)),
            ("$product_tour_id", json!("tour \"1\"")),
            ("$set", json!({"$session_id": "stays"})),
        ];
        let body = body_of(head(), &properties, &[("company", json!("acme"))]);
        let expected = concat!(
            r#"{"uuid":"0198c0de-0000-7000-8000-000000000abc","event":"run_started","distinct_id":"user_1","#,
            r#""properties":{"plan":"pro","$set":{"$session_id":"stays"},"$groups":{"company":"acme"},"#,
            r#""$lib":"posthog-durable","$lib_version":"3.20.1","$is_server":true},"#,
            r#""timestamp":"2023-11-14T22:13:20.12Z","#,
            r#""options":{"cookieless_mode":true,"disable_skew_correction":true,"process_person_profile":false,"#,
            r#""product_tour_id":"tour \"1\""},"session_id":"s-1","window_id":"7"}"#
        );
        assert_eq!(text_of(&body), expected);
    }

    #[test]
    fn options_are_an_object_also_where_there_are_none() {
        let event = sent(&[("plan", json!("pro"))]);
        assert_eq!(event["options"], json!({}));
        assert!(event.get("session_id").is_none() && event.get("window_id").is_none());
    }

    #[test]
    fn what_is_of_the_wrong_type_is_sent_nowhere() {
        for wrong in [json!("true"), json!(1), Value::Null, json!([true]), json!({"a": true})] {
            let event =
                sent(&["$cookieless_mode", "$ignore_sent_at", "$process_person_profile"].map(|k| (k, wrong.clone())));
            assert_eq!(event["options"], json!({}), "{wrong}");
        }
        for wrong in [json!(true), Value::Null, json!(["s"]), json!({"a": "s"})] {
            let event = sent(&["$session_id", "$window_id", "$product_tour_id"].map(|key| (key, wrong.clone())));
            let own = json!({"$lib": "posthog-durable", "$lib_version": "3.20.1", "$is_server": true});
            assert_eq!((&event["options"], &event["properties"]), (&json!({}), &own), "{wrong}");
            assert!(event.get("session_id").is_none() && event.get("window_id").is_none(), "{wrong}");
        }
        assert_eq!(sent(&[("$product_tour_id", json!(5))])["options"], json!({}));
    }

    #[test]
    fn a_session_that_is_a_number_is_sent_as_text() {
        for (number, expected) in
            [(json!(7), "7"), (json!(-7), "-7"), (json!(u64::MAX), "18446744073709551615"), (json!(0.5), "0.5")]
        {
            let event = sent(&[("$session_id", number.clone()), ("$window_id", number)]);
            assert_eq!((&event["session_id"], &event["window_id"]), (&json!(expected), &json!(expected)));
        }
    }

    #[test]
    fn a_personless_event_has_an_option_unless_the_caller_set_it() {
        let personless = |properties: &[(&str, Value)]| {
            let head = Head { flags: Flags::PERSONLESS, ..head() };
            serde_json::from_str::<Value>(&text_of(&body_of(head, properties, &[]))).unwrap()
        };
        assert_eq!(personless(&[])["options"], json!({"process_person_profile": false}));
        assert!(personless(&[])["properties"].get("$process_person_profile").is_none());
        let own = |value: Value| personless(&[("$process_person_profile", value)])["options"].clone();
        assert_eq!(own(json!(true)), json!({"process_person_profile": true}));
        assert_eq!(own(json!("maybe")), json!({"process_person_profile": false}));
    }

    #[test]
    fn the_last_value_of_an_option_counts_even_of_a_wrong_type() {
        let twice = |last: Value| sent(&[("$session_id", json!("first")), ("$session_id", last)]);
        assert_eq!(twice(json!("last"))["session_id"], json!("last"));
        assert!(twice(json!(true)).get("session_id").is_none());
    }
}
