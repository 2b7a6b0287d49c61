//! Several processes, one directory.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sink::State;

use super::{Played, SOME_EVENTS};
use crate::life::Life;
use crate::stage::{PATIENCE, Stage};
use crate::{Failure, Setup};

/// Two processes share the directory; one is killed, and the other delivers what it has left, without being restarted.
pub fn adopt_an_orphan(victim: &Path, setup: Setup) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    stage.sink.stop();
    let life = Life::capturing(1).with(setup);
    let [orphaned, adopting] = [stage.start(&life)?, stage.start(&life)?];
    for life in [&orphaned, &adopting] {
        life.wait_for_acks(SOME_EVENTS, PATIENCE)?;
    }
    let left = orphaned.acked();
    stage.kill(orphaned)?;
    stage.sink.resume();
    let all_left = |state: &State| left.iter().all(|uuid| state.contains(*uuid));
    if !stage.sink.wait_for(all_left, PATIENCE) {
        return Err(Failure::Victim("the living process has not delivered what the dead one has left".to_owned()));
    }
    stage.kill(adopting)?;
    Played::on(stage)
}

/// Two or three processes at a time share the directory, and all are killed, again and again: each finds shards of several dead ones.
pub fn kill_all(victim: &Path, kills: u32, seed: u64) -> Result<Played, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(victim)?;
    let mut left = kills;
    while left > 0 {
        if random.random_ratio(1, 3) {
            stage.sink.stop();
        } else {
            stage.sink.resume();
        }
        let mut living = Vec::new();
        let here = random.random_range(2..=3).min(left);
        left -= here;
        for _ in 0..here {
            let setup = Setup { small_journal: random.random(), no_map: random.random_ratio(1, 3), ..Setup::default() };
            // One that captures nothing has nothing better to do than to adopt.
            let threads = random.random_range(0..=2);
            let life = Life::capturing(threads).with(setup);
            living.push(stage.start(&life)?);
        }
        for life in living {
            thread::sleep(Duration::from_millis(random.random_range(0..=150)));
            stage.kill(life)?;
        }
    }
    Played::on(stage)
}
