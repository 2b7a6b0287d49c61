//! Ends in the way named by the first argument, with the client (second and third argument: queue directory and host)
//! or without. The exit status must be the same. `read` is the start after a crash.

#![allow(unsafe_code, reason = "ways to die that safe code does not know")]

mod handlers;
mod memory;
mod panics;
mod reporting;
mod signals;
mod surroundings;

use std::path::Path;
use std::time::Duration;

use posthog::Config;

/// The exit status if the machine lacks what the scenario needs.
const UNAVAILABLE: i32 = 77;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let scenario = arguments.get(1).map_or("", String::as_str);
    if scenario == "previous_hook_panics" {
        std::panic::set_hook(Box::new(|_| panic!("in the previous hook")));
    } else {
        // The default hook looks up symbols, which takes a tenth of a second each time.
        std::panic::set_hook(Box::new(|_| {}));
    }
    signals::prepare(scenario);
    handlers::prepare(scenario);
    let mut folder = Path::new(".");
    if let (Some(queue_dir), Some(host)) = (arguments.get(2), arguments.get(3)) {
        folder = Path::new(queue_dir);
        let config = Config::new("phc_dying").queue_dir(queue_dir).host(host).flush_interval(Duration::from_millis(50));
        let client = posthog::init(reporting::configured(scenario, config)).expect("a queue");
        if reporting::reads(scenario) {
            return read(&client);
        }
        surroundings::prepare(scenario, folder);
        reporting::prepare(scenario, &client);
        posthog::install_panic_hook();
        posthog::install_crash_handler();
    } else {
        surroundings::prepare(scenario, folder);
    }
    let is_known = panics::play(scenario)
        || signals::play(scenario)
        || handlers::play(scenario)
        || reporting::play(scenario)
        || memory::play(scenario)
        || surroundings::play(scenario);
    assert!(is_known, "there is no scenario {scenario:?}");
}

/// The next start: reports crashes until its standard input ends, and then prints its diagnostics. Captures an event
/// for each byte of input.
fn read(client: &posthog::Client) {
    for _ in std::io::Read::bytes(std::io::stdin()) {
        client.capture(posthog::Event::new("nudged", "user_1"));
    }
    let _ = client.flush().wait(Duration::from_secs(60));
    #[allow(clippy::print_stdout, reason = "this is how it answers")]
    for diagnostic in client.diagnostics() {
        // The queue of a process that died is left on purpose, and it may have died while the committer wrote.
        use posthog::diagnostics::Diagnostic::{QueueAdopted, StoreVerified};
        if matches!(diagnostic, QueueAdopted { .. } | StoreVerified) {
            continue;
        }
        println!("{diagnostic}");
    }
    let _ = client.shutdown(Duration::ZERO).wait(Duration::from_secs(10));
}
