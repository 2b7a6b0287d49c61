//! Death at a named place.

use std::fmt;
use std::path::Path;

use super::{Played, SOME_EVENTS, leave_a_backlog};
use crate::life::Life;
use crate::oracle::Rules;
use crate::stage::{PATIENCE, Stage};
use crate::{Failure, Setup};

/// So many deaths in a row while opening make the next owner read the store row by row.
const DEATHS_BEFORE_DISTRUST: u32 = 3;
/// Together with [`HEAVY`], more than the file that is left alone when the queue has run empty.
const MANY_EVENTS: usize = 1_500;
const HEAVY: u32 = 4_000;
/// A bound that a short life reaches.
const FEW_QUEUED: u32 = 150;

/// How a life is led to a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plot {
    /// It captures and delivers, with what another has left.
    Capturing,
    /// It captures faster than the committer can carry, into a small journal.
    Bursting,
    /// It delivers what another has left, and ends.
    Draining,
    /// It is the first one in an empty directory.
    Fresh,
    /// Three owners in a row have died while opening the store.
    Untrusted,
    /// The queue has run empty, and its file is large.
    Compacting,
    /// Another process beside it was killed.
    Adopting,
    /// The queue has reached its bound.
    Evicting,
}

/// One death to be died.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Where.
    pub point: &'static str,
    /// At which visit; 1 is the first.
    pub nth: u32,
    /// In how many lives running.
    pub times: u32,
    /// How the clients are configured.
    pub setup: Setup,
    plot: Plot,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, visit {}", self.plot, self.nth)?;
        if self.times == 1 { Ok(()) } else { write!(f, ", {} lives running", self.times) }
    }
}

/// Every crash point of the library that lies on the way of the victim's events. None of them has a stack: `symbols.asked` is reached by
/// the tests of last words.
pub fn crash_points() -> &'static [&'static str] {
    posthog::__crash_point_names().strip_suffix(&["symbols.asked"]).expect("it stands last")
}

/// The plots that lead to a place; one that is not named here is on every event's way.
fn plots(point: &str) -> &'static [Plot] {
    match point {
        "journal.arena.zeroed" => &[Plot::Fresh],
        "journal.rotated" => &[Plot::Bursting],
        "journal.round.begun" => &[Plot::Capturing, Plot::Bursting],
        "store.opening" | "recovery.replayed" | "recovery.committed" => &[Plot::Draining],
        "store.synced" => &[Plot::Capturing, Plot::Fresh, Plot::Untrusted],
        "store.built" => &[Plot::Fresh, Plot::Untrusted],
        "store.ready" | "store.aside" => &[Plot::Untrusted],
        "store.compacting" => &[Plot::Compacting],
        "adoption.opened" => &[Plot::Adopting],
        "ack.committed" | "stop.begun" | "stop.committed" => &[Plot::Draining],
        "evict.committed" => &[Plot::Evicting],
        _ => &[Plot::Capturing],
    }
}

/// One death at each place, under one setup: the short set.
pub fn one_each(setup: Setup) -> Vec<Case> {
    let case = |point: &&'static str| Case { point, nth: 1, times: 1, setup, plot: plots(point)[0] };
    crash_points().iter().map(case).collect()
}

/// Every plot of each place under one setup; with a small journal, where carries are frequent and do not have to be waited for, also a
/// later visit, and two deaths running.
pub fn all(setup: Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for &point in crash_points() {
        for &plot in plots(point) {
            let repeats = matches!(plot, Plot::Capturing | Plot::Bursting | Plot::Evicting);
            let visits: &[u32] = if repeats && setup.small_journal { &[1, 4] } else { &[1] };
            cases.extend(visits.iter().map(|nth| Case { point, nth: *nth, times: 1, setup, plot }));
            if !setup.small_journal {
                continue;
            }
            // What makes the others happen once does not happen a second time.
            if repeats || plot == Plot::Draining && point != "ack.committed" {
                cases.push(Case { point, nth: 1, times: 2, setup, plot });
            }
        }
    }
    cases
}

/// Dies one death, or several running.
pub fn die_at(victim: &Path, case: &Case) -> Result<Played, Failure> {
    let Case { point, nth, times, setup, plot } = *case;
    let rules = Rules { evicts: plot == Plot::Evicting, ..Rules::default() };
    let mut stage = Stage::with(victim, rules)?;
    let dying = |life: Life| life.dying_at(point, nth);
    match plot {
        Plot::Fresh | Plot::Evicting => {}
        Plot::Compacting => leave_a_backlog(&mut stage, MANY_EVENTS, setup.padded(HEAVY))?,
        Plot::Adopting => return die_adopting(stage, &dying(Life::capturing(1).with(setup))),
        _ => leave_a_backlog(&mut stage, SOME_EVENTS, setup)?,
    }
    if plot == Plot::Untrusted {
        for _ in 0..DEATHS_BEFORE_DISTRUST {
            let opening = stage.start(&Life::draining().with(setup).dying_at("store.opening", 1))?;
            stage.wait_for_crash(opening)?;
        }
    }
    if plot == Plot::Evicting {
        stage.sink.stop();
    } else {
        stage.sink.resume();
    }
    let life = dying(match plot {
        Plot::Bursting => Life::capturing(4).with(setup.small().padded(1_000).bursting()),
        Plot::Draining | Plot::Compacting | Plot::Untrusted => Life::draining().with(setup),
        Plot::Evicting => Life::capturing(2).with(Setup { queue_events: FEW_QUEUED, ..setup }),
        _ => Life::capturing(2).with(setup),
    });
    for _ in 0..times {
        let mut running = stage.start(&life)?;
        // A client that is told to end does not compact any more.
        if plot == Plot::Draining {
            running.tell_to_end();
        }
        stage.wait_for_crash(running)?;
    }
    Played::on(stage)
}

fn die_adopting(mut stage: Stage, adopting: &Life) -> Result<Played, Failure> {
    stage.sink.stop();
    let orphaned = stage.start(&Life { die_at: None, ..adopting.clone() })?;
    orphaned.wait_for_acks(SOME_EVENTS, PATIENCE)?;
    let adopting = stage.start(adopting)?;
    adopting.wait_for_acks(SOME_EVENTS, PATIENCE)?;
    stage.kill(orphaned)?;
    stage.sink.resume();
    stage.wait_for_crash(adopting)?;
    Played::on(stage)
}

/// Dies at each sync of the store in turn, while a heavy backlog is recovered, delivered, settled and compacted away.
pub fn die_at_each_sync(victim: &Path, most: u32, setup: Setup) -> Result<Played, Failure> {
    let mut stage = Stage::new(victim)?;
    // The file stays large until a life gets as far as to compact it.
    leave_a_backlog(&mut stage, MANY_EVENTS, setup.padded(HEAVY))?;
    for nth in 1..=most {
        leave_a_backlog(&mut stage, SOME_EVENTS, setup)?;
        stage.sink.resume();
        let running = stage.start(&Life::draining().with(setup).dying_at("store.synced", nth))?;
        if !stage.wait_for_crash_or_drained(running)? {
            break;
        }
    }
    Played::on(stage)
}
