//! What V1 wants beside the properties is there, once, and of the right type.

use serde_json::{Value, json};

use super::json_tests::{body_of, head};
use super::json_v1::write_event_v1;
use super::{Flags, Head, NoSymbols, View};

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
fn a_personless_event_says_so_as_an_option_unless_the_caller_decided() {
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
fn of_a_repeated_option_the_last_value_counts_also_when_it_is_of_the_wrong_type() {
    let twice = |last: Value| sent(&[("$session_id", json!("first")), ("$session_id", last)]);
    assert_eq!(twice(json!("last"))["session_id"], json!("last"));
    assert!(twice(json!(true)).get("session_id").is_none());
}
