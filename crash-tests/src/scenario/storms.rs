//! Death at random moments.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sink::Answer;

use super::{Played, SOME_EVENTS, leave_a_backlog};
use crate::life::Life;
use crate::oracle::Rules;
use crate::stage::Stage;
use crate::{Failure, Setup};

/// A life in milliseconds, at most: of those that die while they recover, and of the others.
const SHORT: u64 = 30;
const LONG: u64 = 250;

/// Kills `kills` lives at random moments, most while they capture, some while they start, in changing weather (the stand-in is up, down,
/// slow, or takes events without saying so) and under changing setups.
pub fn random_kills(victim: &Path, kills: u32, seed: u64, rules: Rules) -> Result<Played, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::with(victim, rules)?;
    for _ in 0..kills {
        change_the_weather(&stage, &mut random);
        let longest = if random.random_ratio(1, 4) { SHORT } else { LONG };
        let setup = any_setup(&mut random, rules);
        let life = stage.start(&Life::capturing(random.random_range(1..=4)).with(setup))?;
        thread::sleep(Duration::from_millis(random.random_range(0..=longest)));
        stage.kill(life)?;
    }
    stage.sink.default_answer(Answer::ok());
    Played::on(stage)
}

/// Kills lives that capture on both lanes, most of them; the others must find what is left on a lane that they have no use for.
pub fn kill_with_ai_events(victim: &Path, kills: u32, seed: u64) -> Result<Played, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(victim)?;
    for _ in 0..kills {
        change_the_weather(&stage, &mut random);
        let setup = Setup { ai: random.random_ratio(2, 3), ..any_setup(&mut random, Rules::default()) };
        let life = stage.start(&Life::capturing(random.random_range(1..=2)).with(setup))?;
        thread::sleep(Duration::from_millis(random.random_range(0..=LONG * 2)));
        stage.kill(life)?;
    }
    stage.sink.default_answer(Answer::ok());
    Played::on(stage)
}

/// Lives of a few milliseconds, each killed while it is busy with what those before have left: in an empty directory at first, then
/// over a backlog.
pub fn kill_during_recovery(victim: &Path, kills: u32, seed: u64) -> Result<Played, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(victim)?;
    for kill in 0..kills {
        let setup = any_setup(&mut random, Rules::default());
        if kill % 8 == 4 {
            leave_a_backlog(&mut stage, SOME_EVENTS, setup)?;
        }
        if random.random() {
            stage.sink.resume();
        }
        let threads = random.random_range(0..=2);
        let recovering = stage.start(&Life::capturing(threads).with(setup))?;
        thread::sleep(Duration::from_micros(random.random_range(500..=SHORT * 1_000)));
        stage.kill(recovering)?;
    }
    Played::on(stage)
}

fn change_the_weather(stage: &Stage, random: &mut StdRng) {
    stage.sink.resume();
    stage.sink.default_answer(match random.random_range(0..10) {
        0 | 1 => {
            stage.sink.stop();
            Answer::ok()
        }
        2 => Answer::status(503),
        3 => Answer::close().taking(),
        4 => Answer::ok().delay(Duration::from_millis(50)),
        _ => Answer::ok(),
    });
}

fn any_setup(random: &mut StdRng, rules: Rules) -> Setup {
    Setup {
        small_journal: random.random(),
        no_map: random.random_ratio(1, 3),
        burst: random.random_ratio(1, 10),
        padding: [0, 0, 300, 3_000][random.random_range(0..4)],
        queue_events: if rules.evicts { random.random_range(50..400) } else { 0 },
        ai: false,
    }
}
