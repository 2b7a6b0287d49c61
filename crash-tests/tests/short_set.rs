//! The short set: each kind of scenario, once or a few times. The runner has the long set.

use std::collections::BTreeSet;
use std::path::Path;

use crash_tests::oracle::Rules;
use crash_tests::scenario::{self, ScenarioResult, points, shared, storms};
use crash_tests::{Failure, Setup};
use rand::rngs::StdRng;
use rand::{RngExt, make_rng};

const RANDOM_KILLS: u32 = 25;

fn victim() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_victim"))
}

fn seed() -> u64 {
    make_rng::<StdRng>().random()
}

fn hold(name: &str, result: Result<ScenarioResult, Failure>) -> ScenarioResult {
    result.unwrap_or_else(|failure| panic!("{name}: {failure}"))
}

fn die_at_each_point(setup: Setup) {
    let mut reached = BTreeSet::new();
    for case in points::one_each(setup) {
        reached.extend(hold(&format!("{case:?}"), points::die_at(victim(), &case)).reached);
    }
    let never: Vec<_> = points::crash_points().iter().filter(|point| !reached.contains(**point)).collect();
    assert!(never.is_empty(), "no run has reached {never:?}");
}

#[test]
fn a_run_that_ends_on_its_own_has_delivered_everything() {
    for setup in [Setup::default(), Setup::default().unmapped()] {
        hold("clean end", scenario::end_cleanly(victim(), setup));
    }
}

#[test]
fn dying_at_any_crash_point_loses_nothing() {
    die_at_each_point(Setup::default().small());
}

#[test]
fn dying_at_any_crash_point_loses_nothing_without_a_mapping() {
    die_at_each_point(Setup::default().small().unmapped());
}

#[test]
fn kills_at_random_moments_lose_nothing() {
    let seed = seed();
    let result = hold(&format!("seed {seed}"), storms::random_kills(victim(), RANDOM_KILLS, seed, Rules::default()));
    assert_eq!(result.summary.kills, RANDOM_KILLS);
    assert!(result.summary.acknowledged > 0, "nothing was acknowledged, so nothing was shown");
}

#[test]
fn refused_events_are_dead_lettered_once_despite_kills() {
    let (seed, rules) = (seed(), Rules { poison: true, ..Rules::default() });
    hold(&format!("seed {seed}"), storms::random_kills(victim(), RANDOM_KILLS, seed, rules));
}

#[test]
fn a_bounded_queue_counts_evictions_despite_kills() {
    let (seed, rules) = (seed(), Rules { evicts: true, ..Rules::default() });
    hold(&format!("seed {seed}"), storms::random_kills(victim(), RANDOM_KILLS, seed, rules));
}

#[test]
fn kills_during_recovery_lose_nothing() {
    let seed = seed();
    hold(&format!("seed {seed}"), storms::kill_during_recovery(victim(), 40, seed));
}

#[test]
fn kills_at_random_moments_lose_no_ai_event_either() {
    let seed = seed();
    let result = hold(&format!("seed {seed}"), storms::kill_with_ai_events(victim(), 15, seed));
    assert!(result.summary.acknowledged > 0, "nothing was acknowledged, so nothing was shown");
}

#[test]
fn what_eight_threads_captured_is_there_after_a_kill() {
    hold("8 threads", scenario::many_threads(victim(), 8, Setup::default()));
}

#[test]
fn a_living_process_delivers_what_a_killed_one_has_left() {
    hold("adoption", shared::adopt_an_orphan(victim(), Setup::default().small()));
}

#[test]
fn processes_sharing_a_directory_lose_nothing_when_killed() {
    let seed = seed();
    hold(&format!("seed {seed}"), shared::kill_all(victim(), 20, seed));
}
