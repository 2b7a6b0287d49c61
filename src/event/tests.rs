//! From a described event to the content of its record.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Event, Record, Refusal};
use crate::record::{Class, Flags, LIB_VERSION, NoSymbols, Unencodable, View, json::write_event};

const UUID: Uuid = Uuid::from_u128(77);
const NOW: i64 = 1_700_000_000_000_000_000;
const LIMIT: usize = 1 << 20;

fn finish(event: Event) -> Result<Record, Refusal> {
    event.finish(UUID, NOW, LIMIT)
}

fn sent(event: Event) -> Value {
    let record = finish(event).unwrap();
    let mut out = Vec::new();
    write_event(&View::parse(record.body()).unwrap(), &NoSymbols, &mut out).unwrap();
    serde_json::from_slice(&out).unwrap()
}

fn event() -> Event {
    Event::new("run_started", "user_1")
}

#[test]
fn an_event_arrives_as_it_was_described() {
    #[derive(Serialize)]
    struct Spec {
        name: &'static str,
        size: Option<u64>,
    }
    let described = event()
        .prop("text", String::from("caf\u{e9}"))
        .prop("count", 3)
        .prop("ratio", 0.25)
        .prop("ok", true)
        .prop("none", None::<u8>)
        .prop("specs", vec![Spec { name: "a", size: Some(1) }, Spec { name: "b", size: None }])
        .prop("json", json!({"k": [1, {"l": null}]}))
        .group("company", "acme")
        .group("seat", 7);
    let expected = json!({
        "uuid": UUID.to_string(), "event": "run_started", "distinct_id": "user_1", "timestamp": "2023-11-14T22:13:20Z",
        "properties": {
            "text": "caf\u{e9}", "count": 3, "ratio": 0.25, "ok": true, "none": null,
            "specs": [{"name": "a", "size": 1}, {"name": "b", "size": null}], "json": {"k": [1, {"l": null}]},
            "$groups": {"company": "acme", "seat": 7},
            "$lib": "posthog-durable", "$lib_version": env!("CARGO_PKG_VERSION"), "$is_server": true,
        },
    });
    assert_eq!(sent(described), expected);
}

#[test]
fn uuid_and_time_are_the_callers_or_else_the_stamps() {
    let stamped = finish(event()).unwrap();
    let view = View::parse(stamped.body()).unwrap();
    assert_eq!((stamped.uuid, view.head.uuid, view.head.timestamp_nanos), (UUID, UUID, NOW));
    assert!(!view.head.flags.contains(Flags::EXPLICIT_TIMESTAMP));
    assert_eq!(view.head.lib_version, LIB_VERSION);

    let own = Uuid::from_u128(5);
    let given = finish(event().uuid(own).timestamp(UNIX_EPOCH + Duration::from_nanos(1_234_567_891))).unwrap();
    let view = View::parse(given.body()).unwrap();
    assert_eq!((given.uuid, view.head.uuid, view.head.timestamp_nanos), (own, own, 1_234_567_891));
    assert!(view.head.flags.contains(Flags::EXPLICIT_TIMESTAMP));
}

#[test]
fn hints_for_the_server_are_flags_of_the_record() {
    let properties = &sent(event().disable_geoip().personless())["properties"];
    assert_eq!((&properties["$geoip_disable"], &properties["$process_person_profile"]), (&json!(true), &json!(false)));
}

#[test]
fn a_blank_name_or_distinct_id_is_refused() {
    for blank in ["", " ", "\t\n\u{a0}"] {
        assert_eq!(finish(Event::new(blank, "d")).unwrap_err(), Refusal::EmptyName);
        assert_eq!(finish(Event::new("e", blank)).unwrap_err(), Refusal::EmptyDistinctId);
    }
    assert!(finish(Event::new(" e ", "\0")).is_ok(), "unusual is not blank");
    let mut renamed = Event::new("", "");
    renamed.set_name("e");
    renamed.set_distinct_id("d");
    assert!(finish(renamed.clone()).is_ok());
    renamed.set_name(" ");
    assert_eq!(finish(renamed).unwrap_err(), Refusal::EmptyName);
}

#[test]
fn the_first_unencodable_value_refuses_the_event_by_its_key() {
    let deep = (0..100).fold(json!(1), |inside, _| json!([inside]));
    let invalid = event().prop("fine", 1).prop("deep", &deep).prop("deeper", &deep).prop("after", 2);
    assert_eq!((invalid.has("deep"), invalid.get::<i32>("after")), (false, Some(2)));
    let expected = Refusal::Unserializable { key: "deep".into(), reason: Unencodable::TooDeep };
    assert_eq!(finish(invalid).unwrap_err(), expected);
    assert!(matches!(finish(event().group("g", &deep)), Err(Refusal::Unserializable { key, .. }) if &*key == "g"));
}

#[test]
fn a_time_that_does_not_fit_is_refused() {
    let far = UNIX_EPOCH + Duration::from_secs(1 << 40);
    assert_eq!(finish(event().timestamp(far)).unwrap_err(), Refusal::TimestampOutOfRange);
}

#[test]
fn an_event_is_refused_one_byte_above_the_limit_and_not_at_it() {
    let described = event().prop("text", "x".repeat(1000)).group("company", "acme");
    let bytes = finish(described.clone()).unwrap().body().len();
    assert!(described.clone().finish(UUID, NOW, bytes).is_ok());
    let expected = Refusal::TooLarge { name: "run_started".into(), bytes, most: bytes - 1 };
    assert_eq!(described.finish(UUID, NOW, bytes - 1).unwrap_err(), expected);
}

#[test]
fn the_class_follows_from_the_name_and_never_sinks() {
    let class = |event: Event| finish(event).unwrap().class;
    for name in ["$identify", "$create_alias", "$groupidentify", "$set"] {
        assert_eq!(class(Event::new(name, "d")), Class::Identity);
    }
    assert_eq!((class(Event::new("$exception", "d")), class(event())), (Class::Exception, Class::Ordinary));
    let mut renamed = Event::new("$exception", "d");
    renamed.set_name("boom");
    assert_eq!(class(renamed.clone()), Class::Exception);
    let record = finish(renamed).unwrap();
    assert_eq!(View::parse(record.body()).unwrap().head.class, Class::Exception);
}

#[test]
fn a_property_reads_back_as_the_type_it_was_set_from() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Spec {
        address: Ipv4Addr,
        tags: Vec<String>,
    }
    let spec = Spec { address: Ipv4Addr::LOCALHOST, tags: vec!["a".into()] };
    let event = event().prop("spec", &spec).prop("n", 1).prop("n", 2);
    assert_eq!(event.get::<Spec>("spec").as_ref(), Some(&spec));
    assert_eq!((event.get::<i32>("n"), event.get::<String>("n"), event.get::<i32>("m")), (Some(2), None, None));
    assert_eq!((event.has("n"), event.has("m")), (true, false));
    assert_eq!(event.keys().collect::<Vec<_>>(), ["spec", "n", "n"]);
}

#[test]
fn a_removed_property_is_gone_however_often_it_was_set() {
    let mut event = event().prop("a", 1).prop("b", "two").prop("a", [3]).prop("c", 4);
    assert!(event.remove("a"));
    assert!(!event.remove("a"));
    assert_eq!(Value::Object(event.properties()), json!({"b": "two", "c": 4}));
    let properties = &sent(event.prop("d", 5))["properties"];
    assert_eq!((properties.get("a"), &properties["b"], &properties["d"]), (None, &json!("two"), &json!(5)));
}

#[test]
fn name_and_distinct_id_change_in_place() {
    let mut event = event().prop("k", "v");
    assert_eq!((event.name(), event.distinct_id()), ("run_started", "user_1"));
    let long = "n".repeat(300);
    event.set_name(&long);
    event.set_distinct_id("");
    event.set_distinct_id("user_2");
    assert_eq!((event.name(), event.distinct_id()), (long.as_str(), "user_2"));
    let sent = sent(event.prop("l", 1));
    assert_eq!((&sent["event"], &sent["distinct_id"]), (&json!(long), &json!("user_2")));
    assert_eq!((&sent["properties"]["k"], &sent["properties"]["l"]), (&json!("v"), &json!(1)));
}

#[test]
fn a_hook_changes_groups_time_and_uuid_of_an_event() {
    let mut event = event().group("company", "acme").group("seat", 7).group("company", "emca").prop("after", 1);
    assert!(event.remove_group("company") && !event.remove_group("company"));
    event.set_group("team", "blue");
    event.set_group("seat", 8);
    event.set_timestamp(UNIX_EPOCH);
    event.set_uuid(Uuid::from_u128(9));
    let sent = sent(event);
    assert_eq!(sent["properties"]["$groups"], json!({"seat": 8, "team": "blue"}));
    assert_eq!((&sent["timestamp"], &sent["properties"]["after"]), (&json!("1970-01-01T00:00:00Z"), &json!(1)));
    assert_eq!(sent["uuid"], json!(Uuid::from_u128(9).to_string()));
}

#[test]
fn a_group_is_named_by_a_string_or_a_number_and_by_nothing_else() {
    let refused = |event: Event| finish(event).map(drop).unwrap_err();
    let not_a_key = || Refusal::Unserializable { key: "company".into(), reason: Unencodable::NotAKey };
    assert_eq!(refused(event().group(" ", "acme")), Refusal::EmptyGroupType);
    assert_eq!(refused(event().group("company", "\u{3000}")), Refusal::EmptyGroupKey);
    assert_eq!(refused(event().group("company", None::<&str>)), Refusal::EmptyGroupKey);
    assert_eq!(refused(event().group("company", ["acme"])), not_a_key());
    assert_eq!(refused(event().group("company", json!({"acme": 1}))), not_a_key());
    assert_eq!(refused(event().group("company", true)), not_a_key());
    assert_eq!(refused(event().group("company", f64::NAN)), not_a_key());
    let invalid = event().group("company", ["acme"]).group("seat", 1.5).group("desk", -1);
    assert_eq!(Value::Object(invalid.groups()), json!({"seat": 1.5, "desk": -1}));
}

#[test]
fn what_the_caller_gave_can_be_read() {
    let time = UNIX_EPOCH - Duration::from_millis(1500);
    let event = event().uuid(Uuid::from_u128(4)).timestamp(time).group("g", 1).prop("p", 2);
    assert_eq!((event.given_uuid(), event.given_timestamp()), (Some(Uuid::from_u128(4)), Some(time)));
    assert_eq!(Value::Object(event.groups()), json!({"g": 1}));
    assert_eq!(Event::new("e", "d").given_timestamp(), None::<SystemTime>);
}

#[test]
fn debug_shows_what_will_be_sent() {
    let shown = format!("{:?}", event().prop("n", 1).group("company", "acme").timestamp(UNIX_EPOCH));
    let expected = concat!(
        r#"Event { name: "run_started", distinct_id: "user_1", timestamp: 1970-01-01T00:00:00Z, "#,
        r#"properties: {"n":1}, groups: {"company":"acme"}, .. }"#
    );
    assert_eq!(shown, expected);
}

#[test]
fn a_recycled_event_leaves_nothing_to_the_next() {
    let full = event().prop("secret", 1).group("g", 1).uuid(Uuid::nil()).timestamp(UNIX_EPOCH).personless();
    finish(full).unwrap().recycle();
    let next = finish(event()).unwrap();
    let fresh = std::thread::spawn(|| finish(event()).unwrap().body().to_vec()).join().unwrap();
    assert_eq!(next.body(), fresh);
}

#[test]
fn an_event_moves_as_one_word_and_between_threads() {
    fn crosses<T: Send + Sync + Clone + 'static>() {}
    crosses::<Event>();
    assert_eq!(size_of::<Event>(), size_of::<usize>());
}

#[test]
fn values_of_serde_json_are_what_they_say_wherever_they_stand() {
    // With the feature `__arbitrary_precision` serde_json serializes these numbers as structs.
    let event = event()
        .prop("n", json!(1))
        .prop("list", json!([0.5, -3, {"deep": 7}]))
        .group("seat", json!(2))
        .person_property("age", json!(40))
        .props(json!({"more": 1.5}));
    let sent = sent(event);
    assert_eq!(sent["properties"]["n"], json!(1));
    assert_eq!(sent["properties"]["list"], json!([0.5, -3, {"deep": 7}]));
    assert_eq!(sent["properties"]["more"], json!(1.5));
    assert_eq!(sent["properties"]["$groups"], json!({"seat": 2}));
    assert_eq!(sent["properties"]["$set"], json!({"age": 40}));
}

#[test]
fn times_of_other_crates_are_timestamps_and_text() {
    #[derive(serde::Serialize)]
    struct Times {
        #[serde(with = "time::serde::rfc3339")]
        of_time: time::OffsetDateTime,
        of_chrono: chrono::DateTime<chrono::Utc>,
    }
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
    let times = Times { of_time: at.into(), of_chrono: at.into() };
    for event in [
        Event::new("timed", "user_1").timestamp(times.of_time),
        Event::new("timed", "user_1").timestamp(times.of_chrono),
        Event::new("timed", "user_1").timestamp(SystemTime::try_from(jiff::Timestamp::try_from(at).unwrap()).unwrap()),
    ] {
        assert_eq!(event.given_timestamp(), Some(at));
    }
    let text = "2023-11-14T22:13:20.5Z";
    let rfc3339 = times.of_time.format(&time::format_description::well_known::Rfc3339).unwrap();
    let event = Event::new("timed", "user_1").prop("of_chrono_alone", times.of_chrono).prop("formatted", rfc3339);
    let properties = event.props(&times).properties();
    assert_eq!((&properties["of_time"], &properties["formatted"]), (&text.into(), &text.into()));
    // A digit more is the same time.
    assert_eq!(properties["of_chrono"], "2023-11-14T22:13:20.500Z");
    assert_eq!(properties["of_chrono_alone"], properties["of_chrono"]);
    // What the documentation warns of.
    let event = Event::new("timed", "user_1").prop("at", times.of_time);
    assert!(event.properties()["at"].is_array(), "{event:?}");
}
