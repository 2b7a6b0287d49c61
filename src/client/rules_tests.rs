//! Concurrent changes of rules.

use std::sync::Barrier;

use super::Client;
use crate::config::Config;
use crate::delivery::Source;
use crate::event::Event;

/// Enough rounds for a race to show.
const ROUNDS: usize = 2000;

fn client(folder: &tempfile::TempDir) -> Client {
    let nobody = "http://127.0.0.1:1";
    Client::new(Config::new("phc_rules").host(nobody).queue_dir(folder.path()).no_proxy().min_free_space(0)).unwrap()
}

fn has_ai_lane(client: &Client) -> bool {
    client.lanes().unwrap().len() == 2
}

/// Checks that both lanes hold back events exactly if the client has opted out.
fn must_agree(client: &Client) {
    let held: Vec<_> = client.lanes().unwrap().iter().map(|lane| lane.is_held()).collect();
    assert_eq!(held, [client.is_opted_out(); 2]);
}

#[test]
fn both_lanes_obey_the_last_opt_out() {
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
                    // Each thread changes its value in each round, and neighbours have opposite values.
                    client.set_opted_out((thread + round) % 2 == 0);
                    // All threads change before any checks, and all check before any changes again.
                    together.wait();
                    must_agree(client);
                }
            });
        }
    });
}

#[test]
fn an_ai_lane_opened_during_an_opt_out_obeys_it() {
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let client = client(&folder);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Nothing is opened while the client is opted out.
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
