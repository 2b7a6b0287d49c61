//! The scenarios: how victims are killed. Each uses a fixture of its own, which the oracle checks at the end.
//!
//! - [`points`]: death at a named crash point of the library. For each point there are situations that lead a run
//!   there: capturing, draining a backlog, starting in an empty directory, opening a store after three owners in a
//!   row died while opening it, adopting an orphan, evicting, compacting.
//! - [`storms`]: SIGKILL at random moments, with a changing server and changing configurations; runs of a few
//!   milliseconds, most of which die while they recover what the previous run left.
//! - [`shared`]: several processes in one directory, killed one by one or all together.
//!
//! The simple scenarios and what all of them share are in this file.
//!
//! A scenario waits for conditions and not for time, except where the moment of a kill is meant to be random. Random
//! numbers come from a seed that is printed; what the threads of a victim do at that moment still varies.

pub mod points;
pub mod shared;
pub mod storms;

use std::collections::BTreeSet;
use std::path::Path;

use crate::fixture::{Fixture, PATIENCE};
use crate::oracle::Summary;
use crate::victim_run::VictimRun;
use crate::{Failure, Ledger, Setup};

/// Enough events for several checkpoints and batches.
pub(crate) const SOME_EVENTS: usize = 100;

/// What a scenario returns when it passed.
#[derive(Debug, Default)]
pub struct ScenarioResult {
    /// The oracle's figures.
    pub summary: Summary,
    /// The crash points that were reached, whether or not a run died there.
    pub reached: BTreeSet<String>,
}

impl ScenarioResult {
    /// Checks the fixture at the end of a scenario.
    pub(crate) fn on(mut fixture: Fixture) -> Result<Self, Failure> {
        let summary = fixture.verify()?;
        Ok(Self { summary, reached: fixture.reached() })
    }
}

/// Several threads capture until a kill, and each event that was acknowledged arrives.
pub fn many_threads(victim: &Path, threads: u32, setup: Setup) -> Result<ScenarioResult, Failure> {
    let mut fixture = Fixture::new(victim)?;
    let run = fixture.start(&VictimRun::capturing(threads).with(setup))?;
    run.wait_for_acknowledged(SOME_EVENTS * threads as usize, PATIENCE)?;
    fixture.kill(run)?;
    ScenarioResult::on(fixture)
}

/// A run that ends on its own has delivered everything, and its own counters agree.
pub fn end_cleanly(victim: &Path, setup: Setup) -> Result<ScenarioResult, Failure> {
    let mut fixture = Fixture::new(victim)?;
    let running = fixture.start(&VictimRun::capturing(2).of(500).with(setup))?;
    let ledger = fixture.wait_for_end(running)?;
    let all = 1_000;
    let expected = Ledger { accepted: all, delivered: all, ..Ledger::default() };
    if ledger != expected {
        return Err(Failure::Guarantee(vec![format!("{ledger:?} should be {expected:?}")]));
    }
    ScenarioResult::on(fixture)
}

/// While the stand-in is down, a victim captures `events` and is killed. The stand-in stays down.
pub(crate) fn leave_a_backlog(fixture: &mut Fixture, events: usize, setup: Setup) -> Result<(), Failure> {
    fixture.sink.stop();
    let run = fixture.start(&VictimRun::capturing(2).with(setup))?;
    run.wait_for_acknowledged(events, PATIENCE)?;
    fixture.kill(run)
}
