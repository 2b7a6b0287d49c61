//! Several processes in one directory.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sink::State;

use super::{SOME_EVENTS, ScenarioResult};
use crate::fixture::{Fixture, PATIENCE};
use crate::victim_run::VictimRun;
use crate::{Failure, Setup};

/// Two processes share the directory; one is killed, and the other delivers its events without a restart.
pub fn adopt_an_orphan(victim: &Path, setup: Setup) -> Result<ScenarioResult, Failure> {
    let mut fixture = Fixture::new(victim)?;
    fixture.sink.stop();
    let run = VictimRun::capturing(1).with(setup);
    let [orphaned, adopting] = [fixture.start(&run)?, fixture.start(&run)?];
    for run in [&orphaned, &adopting] {
        run.wait_for_acknowledged(SOME_EVENTS, PATIENCE)?;
    }
    let left = orphaned.acknowledged();
    fixture.kill(orphaned)?;
    fixture.sink.resume();
    let all_left = |state: &State| left.iter().all(|uuid| state.contains(*uuid));
    if !fixture.sink.wait_for(all_left, PATIENCE) {
        return Err(Failure::Victim("the living process has not delivered what the dead one has left".to_owned()));
    }
    fixture.kill(adopting)?;
    ScenarioResult::on(fixture)
}

/// Two or three processes at a time share the directory, and all are killed, repeatedly: each later start
/// finds shards of several dead processes.
pub fn kill_all(victim: &Path, kills: u32, seed: u64) -> Result<ScenarioResult, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut fixture = Fixture::new(victim)?;
    let mut left = kills;
    while left > 0 {
        if random.random_ratio(1, 3) {
            fixture.sink.stop();
        } else {
            fixture.sink.resume();
        }
        let mut living = Vec::new();
        let here = random.random_range(2..=3).min(left);
        left -= here;
        for _ in 0..here {
            let setup = Setup { small_journal: random.random(), no_map: random.random_ratio(1, 3), ..Setup::default() };
            // A run that captures nothing spends its time on adoption.
            let threads = random.random_range(0..=2);
            let run = VictimRun::capturing(threads).with(setup);
            living.push(fixture.start(&run)?);
        }
        for run in living {
            thread::sleep(Duration::from_millis(random.random_range(0..=150)));
            fixture.kill(run)?;
        }
    }
    ScenarioResult::on(fixture)
}
