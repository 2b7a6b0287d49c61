//! The short set of everything: each way to die, once or a few times. The runner plays the long one.

use std::collections::BTreeSet;
use std::path::Path;

use crash_tests::Failure;
use crash_tests::scenario::{self, Played};
use rand::rngs::StdRng;
use rand::{RngExt, make_rng};

const RANDOM_KILLS: u32 = 40;

fn victim() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_victim"))
}

fn hold(name: &str, played: Result<Played, Failure>) -> Played {
    played.unwrap_or_else(|failure| panic!("{name}: {failure}"))
}

#[test]
fn a_life_that_ends_by_itself_has_delivered_everything() {
    hold("clean end", scenario::end_cleanly(victim()));
}

#[test]
fn dying_at_any_crash_point_loses_nothing() {
    let mut reached = BTreeSet::new();
    for point in scenario::crash_points() {
        reached.extend(hold(point, scenario::die_at(victim(), point, 1)).reached);
    }
    let never: Vec<_> = scenario::crash_points().iter().filter(|point| !reached.contains(**point)).collect();
    assert!(never.is_empty(), "no life has reached {never:?}");
}

#[test]
fn dying_at_the_same_crash_point_twice_running_loses_nothing() {
    for point in scenario::crash_points() {
        hold(point, scenario::die_twice_at(victim(), point));
    }
}

#[test]
fn forty_kills_at_random_moments_lose_nothing() {
    let seed = make_rng::<StdRng>().random();
    let played = hold(&format!("seed {seed}"), scenario::random_kills(victim(), RANDOM_KILLS, seed));
    assert_eq!(played.verdict.kills, RANDOM_KILLS);
    assert!(played.verdict.acked > 0, "nothing was acked, so nothing was shown");
}

#[test]
fn kills_during_recovery_lose_nothing() {
    let seed = make_rng::<StdRng>().random();
    hold(&format!("seed {seed}"), scenario::kill_during_recovery(victim(), 4, seed));
}

#[test]
fn what_eight_threads_captured_is_there_after_a_kill() {
    hold("8 threads", scenario::many_threads(victim(), 8));
}

#[test]
fn a_living_process_delivers_what_a_killed_one_has_left() {
    hold("adoption", scenario::adopt_an_orphan(victim()));
}
