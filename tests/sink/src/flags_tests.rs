//! Flag requests over a real connection.

use serde_json::{Value, json};

use crate::tests::{receive, send};
use crate::*;

fn body_of(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn flags_have_a_script_of_their_own() {
    let sink = Sink::start();
    sink.script([Answer::status(503)]);
    let ask = |path: &str| receive(send(&sink, "POST", path, "", br#"{"token":"phc_x","distinct_id":"user_1"}"#));
    assert_eq!(body_of(&ask("/flags/?v=2"))["flags"], json!({}));
    sink.flags(FlagRoute::Values, Answer::json(&json!({"flags": {"a": {"enabled": true}}})));
    sink.script_flags(FlagRoute::Values, [Answer::status(502)]);
    assert!(ask("/flags?v=2").contains(" 502 "));
    assert_eq!(body_of(&ask("/decide/?v=3"))["flags"]["a"]["enabled"], json!(true));
    let requests = sink.requests();
    assert_eq!((requests[2].path.as_str(), requests[2].query.as_str()), ("/decide/", "v=3"));
    assert_eq!((requests[0].api_key.as_str(), &requests[0].envelope["distinct_id"]), ("phc_x", &json!("user_1")));
    assert!(requests.iter().all(|request| !request.taken));
}

#[test]
fn an_invalid_flag_request_and_a_wrong_method_are_refused() {
    let sink = Sink::start();
    for body in [&b"{}"[..], br#"{"token":"phc_x"}"#, b"<html>"] {
        assert!(receive(send(&sink, "POST", "/flags/?v=2", "", body)).contains(" 400 "));
    }
    assert!(receive(send(&sink, "GET", "/flags/?v=2", "", b"")).contains(" 405 "));
    assert!(receive(send(&sink, "POST", "/flags/definitions", "", b"")).contains(" 405 "));
}

#[test]
fn definitions_are_sent_unless_the_etag_matches() {
    let sink = Sink::start();
    sink.flags(FlagRoute::Definitions, Answer::json(&json!({"flags": [{"key": "a"}]})).etag("W/\"1\""));
    let ask = |headers: &str| receive(send(&sink, "GET", "/flags/definitions?send_cohorts", headers, b""));
    assert_eq!(body_of(&ask(""))["flags"][0]["key"], json!("a"));
    let known = ask("if-none-match: W/\"1\"\r\n");
    assert!(known.contains(" 304 ") && known.contains("etag: W/\"1\""), "{known}");
    assert!(ask("if-none-match: W/\"0\"\r\n").contains(" 200 "));
}
