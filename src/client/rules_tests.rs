//! Rules that many threads change at once.

use std::sync::Barrier;

use super::Client;
use crate::config::Config;
use crate::delivery::Source;
use crate::event::Event;

/// Without what makes them agree, some of so many end otherwise.
const ROUNDS: usize = 2000;

fn client(folder: &tempfile::TempDir) -> Client {
    let nobody = "http://127.0.0.1:1";
    Client::new(Config::new("phc_rules").host(nobody).queue_dir(folder.path()).no_proxy().min_free_space(0)).unwrap()
}

fn has_ai_lane(client: &Client) -> bool {
    client.pipelines().unwrap().1.is_some()
}

/// What both lanes do is what the client says.
fn must_agree(client: &Client) {
    let (analytics, ai) = client.pipelines().unwrap();
    assert_eq!((analytics.is_held(), ai.unwrap().is_held()), (client.is_opted_out(), client.is_opted_out()));
}

#[test]
fn both_lanes_hold_back_what_the_client_says_whoever_opted_last() {
    const THREADS: usize = 4;
    let folder = tempfile::tempdir().unwrap();
    let client = client(&folder);
    client.capture_ai(Event::new("ai", "user_1"));
    let together = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (client, together) = (&client, &together);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    together.wait();
                    // Each says something else than a moment ago, and so do any two of them.
                    client.set_opted_out((thread + round) % 2 == 0);
                    // Nobody looks before all have opted, and nobody opts before all have looked.
                    together.wait();
                    must_agree(client);
                }
            });
        }
    });
}

#[test]
fn a_lane_that_is_opened_while_others_opt_holds_back_what_the_client_says() {
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let client = client(&folder);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // While it is opted out nothing is opened.
                while !has_ai_lane(&client) {
                    client.capture_ai(Event::new("ai", "user_1"));
                }
            });
            for out in [true, false].into_iter().cycle() {
                if has_ai_lane(&client) {
                    break;
                }
                client.set_opted_out(out);
            }
        });
        must_agree(&client);
    }
}
