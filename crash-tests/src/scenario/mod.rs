//! The ways to die. Each plays on a stage of its own and ends with the oracle's judgement.
//!
//! - [`points`]: death at a named place of the library. For each place there is a plot that leads a life there: capturing,
//!   draining a backlog, starting in an empty directory, finding a store that three owners in a row died of, adopting an orphan,
//!   evicting, compacting.
//! - [`storms`]: SIGKILL at random moments, in changing weather and under changing setups; lives of a few milliseconds, most of which
//!   die while they recover what the one before has left.
//! - [`shared`]: several processes on one directory, killed one by one or all together.
//!
//! Here are the plain ones, and what all of them share.
//!
//! Rules: a scenario waits for conditions and not for time, except where the moment of a kill is meant to be random; randomness
//! comes from a seed that is printed, though what the threads of a victim do at that moment is the machine's.

pub mod points;
pub mod shared;
pub mod storms;

use std::collections::BTreeSet;
use std::path::Path;

use crate::life::Life;
use crate::oracle::DeliveryOutcome;
use crate::stage::{PATIENCE, Stage};
use crate::{Failure, Ledger, Setup};

/// Enough for several carries and batches.
pub(crate) const SOME_EVENTS: usize = 100;

/// What a scenario leaves behind.
#[derive(Debug, Default)]
pub struct Played {
    /// The judgement.
    pub verdict: DeliveryOutcome,
    /// The crash points that were reached, whether died at or not.
    pub reached: BTreeSet<String>,
}

impl Played {
    /// Ends a scenario.
    pub(crate) fn on(mut stage: Stage) -> Result<Self, Failure> {
        let verdict = stage.judge()?;
        Ok(Self { verdict, reached: stage.reached() })
    }
}

/// Several threads capture, and each event that was acked is there after one kill.
pub fn many_threads(victim: &Path, threads: u32, setup: Setup) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    let life = stage.start(&Life::capturing(threads).with(setup))?;
    life.wait_for_acks(SOME_EVENTS * threads as usize, PATIENCE)?;
    stage.kill(life)?;
    Played::on(stage)
}

/// A life that ends by itself has delivered everything, and its own counters say so.
pub fn end_cleanly(victim: &Path, setup: Setup) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    let running = stage.start(&Life::capturing(2).of(500).with(setup))?;
    let ledger = stage.wait_for_end(running)?;
    let all = 1_000;
    let expected = Ledger { accepted: all, delivered: all, ..Ledger::default() };
    if ledger != expected {
        return Err(Failure::Promise(vec![format!("{ledger:?} should be {expected:?}")]));
    }
    Played::on(stage)
}

/// With the stand-in down, a victim captures `events` and is killed. The stand-in stays down.
pub(crate) fn leave_a_backlog(stage: &mut Stage, events: usize, setup: Setup) -> Result<(), Failure> {
    stage.sink.stop();
    let life = stage.start(&Life::capturing(2).with(setup))?;
    life.wait_for_acks(events, PATIENCE)?;
    stage.kill(life)
}
