//! A program that logs with `tracing`: an error that it logs becomes an exception in PostHog, with the fields, the open
//! spans and the lines before it.
//!
//! `cargo run -p examples --bin tracing`. The example starts a PostHog stand-in on loopback and shows what
//! arrives there. All that the program does for it are the two calls at the beginning of `main`.
#![allow(clippy::print_stdout, reason = "the output of the example")]

use std::error::Error;
use std::time::Duration;

use posthog::Config;
use serde_json::Value;
use sink::Sink;
use tracing::{error, info, info_span, warn};
use tracing_subscriber::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let sink = Sink::start();
    let queue = tempfile::tempdir()?;

    // Beside the program's other layers, such as `tracing_subscriber::fmt::layer()`.
    tracing_subscriber::registry().with(posthog::integrations::tracing::layer()).init();
    let client = posthog::init(Config::new("phc_example").host(sink.url()).queue_dir(queue.path()))?;

    for (request_id, amount) in [(1, "12"), (2, "many")] {
        let _request = info_span!("order", request_id).entered();
        order(amount);
    }
    client.close().wait(Duration::from_secs(11))?;

    let events = sink.events();
    for event in events.iter().filter(|event| event.event == "$exception") {
        let property = |name: &str| event.properties.get(name).cloned().unwrap_or_default();
        println!("{}: {}", property("$exception_type"), property("$exception_message"));
        for name in ["amount", "request_id", "log_message", "log_target", "log_spans"] {
            println!("    {name} = {}", property(name));
        }
        for step in property("$exception_steps").as_array().into_iter().flatten() {
            println!("    before it: {}", step.get("$message").and_then(Value::as_str).unwrap_or_default());
        }
    }
    if events.len() == 1 { Ok(()) } else { Err(format!("expected one exception, got {events:?}").into()) }
}

fn order(amount: &str) {
    info!(amount, "an order arrives");
    match amount.parse::<u32>() {
        Ok(amount) if amount > 10 => warn!(amount, "a large order"),
        Ok(_) => {}
        Err(error) => error!(error = &error as &dyn Error, amount, "the order is refused"),
    }
}
