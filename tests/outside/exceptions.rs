//! Captured exceptions at the server: how many arrive, and what they say about the program.

use std::fmt;
use std::time::Duration;

use posthog::exceptions::{ExceptionOptions, TraceContext};
use posthog::{Client, DropReason, Outcome, Receipt};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::apart::{Terms, apart_on};
use crate::fixture::{Fixture, accepted, close_empty, event, take};

/// Longer than any test takes, so that no token is added meanwhile.
const A_DAY: Duration = Duration::from_secs(86_400);

fn fails(client: &Client) -> Receipt {
    client.capture_exception(&fmt::Error)
}

#[test]
fn only_so_many_exceptions_of_a_place_are_delivered() {
    let fixture = Fixture::new();
    let config = fixture.config().symbolicate(false).exception_rate_limit(3, A_DAY);
    let client = Client::new(config).unwrap();
    let receipts: Vec<Receipt> = (0..500).map(|_| fails(&client)).collect();
    let (passed, dropped) = receipts.split_at(3);
    let dropped_outcome = Outcome::Dropped(DropReason::RateLimited);
    assert!(dropped.iter().all(|receipt| receipt.outcome() == dropped_outcome));
    let elsewhere = client.capture_exception(&fmt::Error);
    let uuids: Vec<_> = passed.iter().chain([&elsewhere]).map(accepted).collect();
    fixture.must_have_taken(&uuids);
    assert_eq!(client.stats().dropped, [(DropReason::RateLimited, 497)]);
}

#[test]
fn without_a_limit_every_exception_is_delivered() {
    let fixture = Fixture::new();
    let client = Client::new(fixture.config().symbolicate(false).exception_rate_limit(0, A_DAY)).unwrap();
    let uuids: Vec<_> = (0..50).map(|_| accepted(&fails(&client))).collect();
    fixture.must_have_taken(&uuids);
}

#[test]
fn an_exception_arrives_with_the_ids_of_its_trace() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";
    let fixture = Fixture::new();
    let config = fixture.config().symbolicate(false).trace_context(|| Some(TraceContext::new(TRACE, SPAN)));
    let client = Client::new(config).unwrap();
    fixture.must_have_taken(&[accepted(&fails(&client))]);
    let properties = &fixture.sink.events()[0].properties;
    assert_eq!((&properties["$trace_id"], &properties["$span_id"]), (&json!(TRACE), &json!(SPAN)));
}

#[test]
fn the_release_id_of_the_environment_is_in_every_event() {
    apart_on(
        Fixture::new,
        |_| Terms::default().env("POSTHOG_RELEASE_ID", " 01a03d94-7dd8-0000-e1cb-2a269e5ea0b5\n"),
        |place| {
            let client = Client::new(place.config().symbolicate(false).release("checkout", "1.4.0")).unwrap();
            take(&client, "plain");
            accepted(&fails(&client));
            accepted(&client.capture(event("explicit").prop("$release_id", "another")));
            close_empty(&client);
        },
        |fixture| {
            let id_of = |name: &str| {
                let events = fixture.sink.events();
                let found = events.iter().find(|event| event.event == name).unwrap();
                found.properties["$release_id"].clone()
            };
            for name in ["plain", "$exception"] {
                assert_eq!(id_of(name), "01a03d94-7dd8-0000-e1cb-2a269e5ea0b5", "{name}");
            }
            assert_eq!(id_of("explicit"), "another");
        },
    );
}

#[test]
fn the_program_chooses_which_frames_are_its_own() {
    // By paths of sources, because a build with few debug information has functions without their path.
    let relative = "tests/outside/exceptions.rs";
    let here = format!("{}/{relative}", env!("CARGO_MANIFEST_DIR"));
    let fixture = Fixture::new();
    let config =
        fixture.config().in_app_exclude([here.as_str(), relative, "shop::generated"]).in_app_include(["/rustc/"]);
    let client = Client::new(config).unwrap();
    let captured = accepted(&fails(&client));
    // A stack that another error brings along, as text.
    let printed = "0: shop::generated::parse\n at ./src/main.rs:7:5
                   1: shop::cart::Cart::total\n at ./src/cart.rs:1:1";
    let options = ExceptionOptions::new().backtrace(printed);
    let brought = accepted(&client.capture_exception_with(&fmt::Error, options));
    fixture.must_have_taken(&[captured, brought]);
    let events = fixture.sink.events();
    let frames = |uuid: Uuid| {
        let event = events.iter().find(|event| event.uuid == uuid).unwrap();
        event.properties["$exception_list"][0]["stacktrace"]["frames"].as_array().unwrap().clone()
    };
    let own = frames(captured);
    let last = own.last().unwrap();
    assert!(last["filename"].as_str().unwrap().ends_with(relative) && last["in_app"] == false, "{last}");
    let is_of_std = |frame: &&Value| frame["filename"].as_str().is_some_and(|file| file.starts_with("/rustc/"));
    let of_std: Vec<_> = own.iter().filter(is_of_std).collect();
    assert!(!of_std.is_empty() && of_std.iter().all(|frame| frame["in_app"] == true), "{of_std:#?}");
    let said: Vec<_> = frames(brought).iter().map(|frame| (frame["in_app"].clone(), frame["module"].clone())).collect();
    assert_eq!(said, [(json!(true), json!("shop::cart")), (json!(false), json!("shop::generated"))]);
}
