//! Ends in a way that is named by its first argument, with the client (second and third argument: queue directory and host) or without.
//! Whatever the way, the status must be the same. `read` ends in no way: it is the start after one.

#![allow(unsafe_code, reason = "ways to die that safe code does not know")]

mod handlers;
mod memory;
mod panics;
mod signals;
mod surroundings;
mod told;

use std::path::Path;
use std::time::Duration;

use posthog::Config;

/// What this program exits with where the machine has not got what the scenario needs.
const NOT_HERE: i32 = 77;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let scenario = arguments.get(1).map_or("", String::as_str);
    if scenario == "previous_hook_panics" {
        std::panic::set_hook(Box::new(|_| panic!("in the previous hook")));
    } else {
        // The default hook looks for symbols, for a tenth of a second each time.
        std::panic::set_hook(Box::new(|_| {}));
    }
    signals::prepare(scenario);
    handlers::prepare(scenario);
    let mut folder = Path::new(".");
    if let (Some(queue_dir), Some(host)) = (arguments.get(2), arguments.get(3)) {
        folder = Path::new(queue_dir);
        let config = Config::new("phc_dying").queue_dir(queue_dir).host(host).flush_interval(Duration::from_millis(50));
        let client = posthog::init(told::configured(scenario, config)).expect("a queue");
        if told::reads(scenario) {
            return read(&client);
        }
        surroundings::prepare(scenario, folder);
        told::prepare(scenario, &client);
        posthog::install_panic_hook();
        posthog::install_crash_handler();
    } else {
        surroundings::prepare(scenario, folder);
    }
    let is_known = panics::play(scenario)
        || signals::play(scenario)
        || handlers::play(scenario)
        || told::play(scenario)
        || memory::play(scenario)
        || surroundings::play(scenario);
    assert!(is_known, "there is no scenario {scenario:?}");
}

/// The next start: tells until its standard input ends, and then what was amiss. Each byte that comes has it capture something.
fn read(client: &posthog::Client) {
    for _ in std::io::Read::bytes(std::io::stdin()) {
        client.capture(posthog::Event::new("nudged", "user_1"));
    }
    let _ = client.flush().wait(Duration::from_secs(60));
    #[allow(clippy::print_stdout, reason = "this is how it answers")]
    for diagnostic in client.diagnostics() {
        println!("{diagnostic}");
    }
    let _ = client.shutdown(Duration::ZERO).wait(Duration::from_secs(10));
}
