//! The stand-in server over a real connection, with requests as plain bytes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn event(n: u128) -> Value {
    json!({"uuid": Uuid::from_u128(n).to_string(), "event": "tick", "distinct_id": "daemon-1", "timestamp": "2026-11-23T10:00:00Z",
        "properties": {"n": n as u64}})
}

fn batch_of(events: &[Value]) -> Vec<u8> {
    json!({"api_key": "phc_x", "historical_migration": false, "sent_at": "2026-11-23T10:00:05Z", "batch": events})
        .to_string()
        .into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn send(sink: &Sink, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(sink.address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: sink\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    stream
}

/// The text of the response; empty if the connection ended without one.
pub(crate) fn receive(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn post(sink: &Sink, body: &[u8]) -> (u16, String) {
    let answer = receive(send(sink, "POST", "/batch/", "", body));
    let status = answer.get(9..12).map_or(0, |status| status.parse().unwrap());
    (status, answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

#[test]
fn a_batch_is_taken_and_each_of_its_events_remembered() {
    let sink = Sink::start();
    assert_eq!(post(&sink, &batch_of(&[event(1), event(2)])), (200, r#"{"status":1}"#.to_owned()));
    let events = sink.events();
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].uuid, Uuid::from_u128(2));
    assert_eq!((events[1].event.as_str(), events[1].distinct_id.as_str()), ("tick", "daemon-1"));
    assert_eq!(
        (events[1].timestamp.as_str(), events[1].sent_at.as_str()),
        ("2026-11-23T10:00:00Z", "2026-11-23T10:00:05Z")
    );
    assert_eq!((&events[1].properties, events[1].request), (&json!({"n": 2}), 0));
    let requests = sink.requests();
    assert_eq!((requests[0].path.as_str(), requests[0].api_key.as_str()), ("/batch/", "phc_x"));
    assert_eq!((requests[0].header("host"), requests[0].event_count), (Some("sink"), 2));
    assert_eq!(requests[0].uuids, [Uuid::from_u128(1), Uuid::from_u128(2)]);
}

#[test]
fn gzip_is_recognized_by_header_or_magic_number() {
    let sink = Sink::start();
    let zipped = gzip(&batch_of(&[event(1)]));
    assert!(
        receive(send(&sink, "POST", "/batch?compression=gzip", "content-encoding: gzip\r\n", &zipped))
            .contains(" 200 ")
    );
    assert!(receive(send(&sink, "POST", "/batch/", "", &zipped)).contains(" 200 "));
    assert_eq!((sink.events().len(), sink.duplicates(), sink.unique()), (2, 1, vec![Uuid::from_u128(1)]));
    assert_eq!(sink.requests()[0].query, "compression=gzip");
    let (status, body) = post(&sink, &zipped[..zipped.len() / 2]);
    assert_eq!(status, 400);
    assert!(body.starts_with("failed to decode request: "), "{body}");
}

#[test]
fn one_bad_event_fails_its_whole_request_as_posthog_does() {
    let sink = Sink::start();
    let bad = |key: &str, value: Value| {
        let mut bad = event(2);
        bad[key] = value;
        batch_of(&[event(1), bad, event(3)])
    };
    let words = |body: &[u8]| post(&sink, body);
    assert_eq!(words(&bad("event", json!(""))), (400, "event submitted with an empty event name".to_owned()));
    assert_eq!(words(&bad("distinct_id", json!(7))), (400, "event submitted without a distinct_id".to_owned()));
    assert_eq!(words(&bad("uuid", json!("x"))).0, 400);
    assert_eq!(words(&batch_of(&[])), (400, "request holds no event".to_owned()));
    assert_eq!(words(br#"{"batch":[{}]}"#), (401, "event submitted without an api_key".to_owned()));
    assert!(words(b"no json").1.starts_with("failed to parse request: "));
    assert!(words(br#"{"api_key":"phc_x"}"#).1.starts_with("failed to parse request: "));
    assert!(sink.events().is_empty());
    assert_eq!(sink.requests()[0].uuids.len(), 3, "refused events are recorded with the request");
}

#[test]
fn answers_come_from_the_script_and_then_from_the_default() {
    let sink = Sink::start();
    sink.script([Answer::status(429).retry_after(7), Answer::ok()]);
    sink.default_answer(Answer::status(503).body("down"));
    let limited = receive(send(&sink, "POST", "/batch/", "", &batch_of(&[event(1)])));
    assert!(limited.contains(" 429 ") && limited.contains("retry-after: 7"), "{limited}");
    assert_eq!(post(&sink, &batch_of(&[event(2)])).0, 200);
    assert_eq!(post(&sink, &batch_of(&[event(3)])), (503, "down".to_owned()));
    assert_eq!(sink.unique(), [Uuid::from_u128(2)]);
    let seen: Vec<_> = sink.requests().iter().map(|request| (request.status, request.taken)).collect();
    assert_eq!(seen, [(429, false), (200, true), (503, false)]);
}

#[test]
fn a_server_that_is_down_judges_no_event() {
    let sink = Sink::start();
    sink.refuse_if(|_| true, 400, "poison");
    sink.default_answer(Answer::status(503));
    assert_eq!(post(&sink, &batch_of(&[event(1)])).0, 503);
    assert_eq!(post(&sink, b"no json").0, 503);
}

#[test]
fn a_request_with_a_poisoned_event_is_refused_by_the_rule() {
    let sink = Sink::start();
    sink.refuse_if(|event| event["properties"]["n"] == 2, 400, "event 2 is poison");
    assert_eq!(post(&sink, &batch_of(&[event(1), event(2)])), (400, "event 2 is poison".to_owned()));
    assert_eq!(post(&sink, &batch_of(&[event(1)])).0, 200);
    sink.refuse_none();
    assert_eq!(post(&sink, &batch_of(&[event(2)])).0, 200);
}

#[test]
fn a_body_above_the_limit_is_refused_compressed_or_not() {
    let sink = Sink::start();
    let body = batch_of(&[event(1), event(2)]);
    sink.size_limit(body.len());
    assert_eq!(post(&sink, &body).0, 200);
    sink.size_limit(body.len() - 1);
    let (status, words) = post(&sink, &gzip(&body));
    assert_eq!((status, words.starts_with("maximum event size exceeded: ")), (413, true));
    assert_eq!(post(&sink, &body).0, 413);
}

#[test]
fn a_closed_connection_may_have_taken_the_events() {
    let sink = Sink::start();
    sink.script([Answer::close(), Answer::close().taking()]);
    assert_eq!(post(&sink, &batch_of(&[event(1)])).0, 0);
    assert!(sink.events().is_empty());
    assert_eq!(post(&sink, &batch_of(&[event(2)])).0, 0);
    assert_eq!(sink.unique(), [Uuid::from_u128(2)]);
}

#[test]
fn a_hanging_answer_is_visible_at_once_and_ends_with_the_sink() {
    let sink = Sink::start();
    sink.script([Answer::hang()]);
    let waiting = send(&sink, "POST", "/batch/", "", &batch_of(&[event(1)]));
    assert!(sink.wait_for(|state| state.contains(Uuid::from_u128(1)), LONG));
    sink.stop();
    assert_eq!(receive(waiting), "");
}

#[test]
fn delayed_answers_wait_side_by_side() {
    let sink = Sink::start();
    let delay = Duration::from_millis(200);
    sink.default_answer(Answer::ok().delay(delay));
    let started = Instant::now();
    let streams: Vec<_> = (0..8).map(|n| send(&sink, "POST", "/batch/", "", &batch_of(&[event(n)]))).collect();
    for stream in streams {
        assert!(receive(stream).contains(" 200 "));
    }
    assert!(started.elapsed() >= delay);
    // Sequential responses would never have two requests waiting.
    assert!(sink.inspect(State::peak_in_flight) > 1);
}

#[test]
fn a_resumed_sink_has_its_old_port_and_its_events() {
    let sink = Sink::start();
    assert_eq!(post(&sink, &batch_of(&[event(1)])).0, 200);
    sink.stop();
    sink.stop();
    assert!(TcpStream::connect(sink.address).is_err(), "a stopped sink must refuse connections");
    sink.resume();
    sink.resume();
    assert_eq!(post(&sink, &batch_of(&[event(2)])).0, 200);
    assert_eq!(sink.events().len(), 2);
}

#[test]
fn another_sink_may_take_over_a_port_that_was_let_go() {
    let first = Sink::start();
    let port = first.port();
    first.stop();
    let second = Sink::on(port);
    assert_eq!((second.port(), second.url()), (port, format!("http://127.0.0.1:{port}")));
    assert_eq!(post(&first, &batch_of(&[event(1)])).0, 200);
    assert_eq!((first.events().len(), second.events().len()), (0, 1));
}

#[test]
fn fast_mode_counts_the_same_events_without_keeping_them() {
    let sink = Sink::start();
    sink.fast_mode(true);
    let quoting = json!({"uuid": Uuid::from_u128(9).to_string(), "event": "tick", "distinct_id": "d",
        "properties": {"text": r#"{"uuid":"00000000-0000-0000-0000-000000000001"}"#}});
    post(&sink, &gzip(&batch_of(&[event(1), event(2), quoting])));
    post(&sink, &batch_of(&[event(2)]));
    assert_eq!(sink.unique(), [1, 2, 9].map(Uuid::from_u128));
    assert_eq!((sink.inspect(State::taken), sink.duplicates()), (4, 1));
    assert!(sink.events().is_empty() && sink.requests()[0].uuids.is_empty());
    assert_eq!(sink.requests()[0].event_count, 3);
    sink.refuse_if(|event| event["event"] == "tick", 400, "no ticks");
    assert_eq!(post(&sink, &batch_of(&[event(5)])).0, 400);
}

#[test]
fn other_paths_and_methods_are_turned_away() {
    let sink = Sink::start();
    assert!(receive(send(&sink, "POST", "/capture/", "", b"{}")).contains(" 404 "));
    assert!(receive(send(&sink, "POST", "/i/v0/ai/batch/", "", &batch_of(&[event(1)]))).contains(" 200 "));
    let mut get = TcpStream::connect(sink.address).unwrap();
    get.write_all(b"GET /batch/ HTTP/1.1\r\nhost: sink\r\nconnection: close\r\n\r\n").unwrap();
    assert!(receive(get).contains(" 405 "));
}

#[test]
fn waiting_gives_up_and_clearing_forgets() {
    let sink = Sink::start();
    assert!(!sink.wait_for(|state| state.taken() > 0, Duration::from_millis(1)));
    post(&sink, &batch_of(&[event(1)]));
    assert!(sink.wait_for(|state| state.taken() > 0, Duration::ZERO));
    sink.clear();
    assert_eq!((sink.inspect(State::taken), sink.requests().len()), (0, 0));
}
