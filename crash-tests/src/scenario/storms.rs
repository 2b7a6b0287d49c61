//! Scenarios that kill the victim at random moments.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sink::{Answer, Sink};

use super::{SOME_EVENTS, ScenarioResult, leave_a_backlog};
use crate::fixture::Fixture;
use crate::oracle::Rules;
use crate::victim_run::VictimRun;
use crate::{Failure, Setup};

/// Maximum length, in milliseconds, of a run that is killed while it starts or recovers.
const SHORT: u64 = 30;
/// Maximum length, in milliseconds, of a run that is killed while it captures. Runs with AI events have twice as long.
const LONG: u64 = 250;

/// Kills `kills` runs at random moments, most while they capture, some while they start, with a changing server (up,
/// down, slow, responding with 503, or accepting events without a response) and changing configurations.
pub fn random_kills(victim: &Path, kills: u32, seed: u64, rules: Rules) -> Result<ScenarioResult, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = Fixture::with(victim, rules)?;
    for _ in 0..kills {
        change_server_behaviour(&fixture.sink, &mut random);
        let longest = if random.random_ratio(1, 4) { SHORT } else { LONG };
        let setup = any_setup(&mut random, rules);
        let run = fixture.start(&VictimRun::capturing(random.random_range(1..=4)).with(setup))?;
        thread::sleep(Duration::from_millis(random.random_range(0..=longest)));
        fixture.kill(run)?;
    }
    fixture.sink.default_answer(Answer::ok());
    ScenarioResult::on(fixture)
}

/// Kills runs, two thirds of which capture AI events as well. The others must deliver what is left in the queue of AI
/// events, although they do not capture any.
pub fn kill_with_ai_events(victim: &Path, kills: u32, seed: u64) -> Result<ScenarioResult, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = Fixture::new(victim)?;
    for _ in 0..kills {
        change_server_behaviour(&fixture.sink, &mut random);
        let setup = Setup { ai: random.random_ratio(2, 3), ..any_setup(&mut random, Rules::default()) };
        let run = fixture.start(&VictimRun::capturing(random.random_range(1..=2)).with(setup))?;
        thread::sleep(Duration::from_millis(random.random_range(0..=LONG * 2)));
        fixture.kill(run)?;
    }
    fixture.sink.default_answer(Answer::ok());
    ScenarioResult::on(fixture)
}

/// Kills runs at most 30 ms after their start, while they recover what the previous runs left. Before every
/// eighth run, from the fifth on, another run leaves a backlog.
pub fn kill_during_recovery(victim: &Path, kills: u32, seed: u64) -> Result<ScenarioResult, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = Fixture::new(victim)?;
    for kill in 0..kills {
        let setup = any_setup(&mut random, Rules::default());
        if kill % 8 == 4 {
            leave_a_backlog(&mut fixture, SOME_EVENTS, setup)?;
        }
        if random.random() {
            fixture.sink.resume();
        }
        let threads = random.random_range(0..=2);
        let recovering = fixture.start(&VictimRun::capturing(threads).with(setup))?;
        thread::sleep(Duration::from_micros(random.random_range(500..=SHORT * 1_000)));
        fixture.kill(recovering)?;
    }
    ScenarioResult::on(fixture)
}

pub(crate) fn change_server_behaviour(sink: &Sink, random: &mut StdRng) {
    sink.resume();
    sink.default_answer(match random.random_range(0..10) {
        0 | 1 => {
            sink.stop();
            Answer::ok()
        }
        2 => Answer::status(503),
        3 => Answer::close().taking(),
        4 => Answer::ok().delay(Duration::from_millis(50)),
        _ => Answer::ok(),
    });
}

pub(crate) fn any_setup(random: &mut StdRng, rules: Rules) -> Setup {
    Setup {
        small_journal: random.random(),
        no_map: random.random_ratio(1, 3),
        burst: random.random_ratio(1, 10),
        padding: [0, 0, 300, 3_000][random.random_range(0..4)],
        queue_events: if rules.evicts { random.random_range(50..400) } else { 0 },
        ..Setup::default()
    }
}
