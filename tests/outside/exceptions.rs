//! Captured exceptions at the server: how many arrive, and what they say about the program.

use std::fmt;
use std::time::Duration;

use posthog::exceptions::TraceContext;
use posthog::{Client, DropReason, Outcome, Receipt};
use serde_json::json;

use crate::fixture::{Fixture, accepted};

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
