//! The ways to die. Each function plays on a stage of its own and ends with the oracle's judgement.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sink::{Answer, State};

use crate::life::Life;
use crate::oracle::Verdict;
use crate::stage::{PATIENCE, Stage};
use crate::{Failure, Ledger};

/// Enough for several carries and batches.
const SOME_EVENTS: usize = 100;

/// What a scenario leaves behind.
#[derive(Debug, Default)]
pub struct Played {
    /// The judgement.
    pub verdict: Verdict,
    /// The crash points that were reached, whether died at or not.
    pub reached: BTreeSet<String>,
}

impl Played {
    fn on(stage: &Stage, verdict: Verdict) -> Self {
        Self { verdict, reached: stage.reached() }
    }
}

/// Every crash point of the library.
pub fn crash_points() -> &'static [&'static str] {
    posthog::__crash_point_names()
}

/// Dies at `point` when a process reaches it for the `nth` time, with a queue that an earlier victim has left behind.
/// Recovery happens once per life: for its points there is a first time only.
pub fn die_at(victim: &Path, point: &str, nth: u32) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    leave_a_backlog(&mut stage)?;
    stage.sink.resume();
    let dying = stage.start(&Life::capturing(2).dying_at(point, nth))?;
    stage.wait_for_crash(dying)?;
    let verdict = stage.judge()?;
    Ok(Played::on(&stage, verdict))
}

/// Dies at `point` in two lives running: what the second finds was left by a crash at the same place.
pub fn die_twice_at(victim: &Path, point: &str) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    leave_a_backlog(&mut stage)?;
    stage.sink.resume();
    for _ in 0..2 {
        let dying = stage.start(&Life::capturing(1).dying_at(point, 1))?;
        stage.wait_for_crash(dying)?;
    }
    let verdict = stage.judge()?;
    Ok(Played::on(&stage, verdict))
}

/// Kills `kills` lives at random moments, most while they capture, some while they start, in changing weather: the
/// stand-in is up, down, or takes events without saying so.
pub fn random_kills(victim: &Path, kills: u32, seed: u64) -> Result<Played, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(victim)?;
    for _ in 0..kills {
        stage.sink.resume();
        stage.sink.default_answer(Answer::ok());
        match random.random_range(0..10) {
            0 | 1 => stage.sink.stop(),
            2 => stage.sink.default_answer(Answer::status(503)),
            3 => stage.sink.default_answer(Answer::close().taking()),
            4 => stage.sink.default_answer(Answer::ok().delay(Duration::from_millis(50))),
            _ => {}
        }
        let longest = if random.random_range(0..4) == 0 { 20 } else { 300 };
        let life = stage.start(&Life::capturing(random.random_range(1..=4)))?;
        thread::sleep(Duration::from_millis(random.random_range(0..=longest)));
        stage.kill(life)?;
    }
    stage.sink.resume();
    stage.sink.default_answer(Answer::ok());
    let verdict = stage.judge()?;
    Ok(Played::on(&stage, verdict))
}

/// Kills one life after the other while each is still busy with what the one before has left.
pub fn kill_during_recovery(victim: &Path, kills: u32, seed: u64) -> Result<Played, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new(victim)?;
    for _ in 0..kills {
        leave_a_backlog(&mut stage)?;
        let recovering = stage.start(&Life::draining().dying_at("recovery.replayed", 1))?;
        stage.wait_for_crash(recovering)?;
        let recovering = stage.start(&Life::capturing(1))?;
        thread::sleep(Duration::from_millis(random.random_range(0..10)));
        stage.kill(recovering)?;
    }
    stage.sink.resume();
    let verdict = stage.judge()?;
    Ok(Played::on(&stage, verdict))
}

/// Several threads capture, and each event that was acked is there after one kill.
pub fn many_threads(victim: &Path, threads: u32) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    let life = stage.start(&Life::capturing(threads))?;
    life.wait_for_acks(SOME_EVENTS * threads as usize, PATIENCE)?;
    stage.kill(life)?;
    let verdict = stage.judge()?;
    Ok(Played::on(&stage, verdict))
}

/// Two processes share the directory; one is killed, and the other delivers what it has left, without being restarted.
pub fn adopt_an_orphan(victim: &Path) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    stage.sink.stop();
    let [orphaned, adopting] = [stage.start(&Life::capturing(1))?, stage.start(&Life::capturing(1))?];
    for life in [&orphaned, &adopting] {
        life.wait_for_acks(SOME_EVENTS, PATIENCE)?;
    }
    let left: Vec<_> = orphaned.acked();
    stage.kill(orphaned)?;
    stage.sink.resume();
    let all_left = |state: &State| left.iter().all(|uuid| state.contains(*uuid));
    if !stage.sink.wait_for(all_left, PATIENCE) {
        return Err(Failure::Victim("the living process has not delivered what the dead one has left".to_owned()));
    }
    stage.kill(adopting)?;
    // Two shards, two ledgers: the last life reports that of the shard it has taken over.
    let ledger = stage.drain()?;
    let verdict = stage.judge_with(None)?;
    if !ledger.balances() || ledger.queued > 0 {
        return Err(Failure::Promise(vec![format!("after an adoption the ledger does not balance: {ledger:?}")]));
    }
    Ok(Played::on(&stage, verdict))
}

/// A life that ends by itself has delivered everything, and its own counters say so.
pub fn end_cleanly(victim: &Path) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    let life = Life { events: Some(500), ..Life::capturing(2) };
    let running = stage.start(&life)?;
    let ledger = stage.wait_for_end(running)?;
    let all = 1_000;
    let expected = Ledger { accepted: all, delivered: all, ..Ledger::default() };
    let verdict = stage.judge_with(Some(ledger))?;
    if ledger != expected {
        return Err(Failure::Promise(vec![format!("{ledger:?} should be {expected:?}")]));
    }
    Ok(Played::on(&stage, verdict))
}

/// With the stand-in down, a victim captures and is killed.
fn leave_a_backlog(stage: &mut Stage) -> Result<(), Failure> {
    stage.sink.stop();
    let life = stage.start(&Life::capturing(2))?;
    life.wait_for_acks(SOME_EVENTS, PATIENCE)?;
    stage.kill(life)
}
