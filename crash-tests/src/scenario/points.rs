//! Death at a named crash point.

use std::fmt;
use std::path::Path;

use super::{SOME_EVENTS, ScenarioResult, leave_a_backlog};
use crate::fixture::{Fixture, PATIENCE};
use crate::oracle::Rules;
use crate::victim_run::VictimRun;
use crate::{Failure, Setup};

/// After this many deaths in a row during opening, the next owner reads the store row by row.
const DEATHS_UNTIL_UNTRUSTED: u32 = 3;
/// Together with [`HEAVY`]: more than the size up to which an empty store file is not compacted.
const MANY_EVENTS: usize = 1_500;
const HEAVY: u32 = 4_000;
/// A limit that a short run reaches.
const FEW_QUEUED: u32 = 150;

/// A situation that leads a run to a crash point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Situation {
    /// It captures and delivers, including what another run left.
    Capturing,
    /// It captures faster than the committer can checkpoint, into a small journal.
    Bursting,
    /// It delivers what another run left, and ends.
    Draining,
    /// It is the first run in an empty directory.
    Fresh,
    /// Three owners in a row have died while opening the store.
    Untrusted,
    /// The queue has become empty, and its file is large.
    Compacting,
    /// Another process beside it was killed.
    Adopting,
    /// The queue has reached its limit.
    Evicting,
}

/// A crash point, and how runs die there.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The crash point.
    pub point: &'static str,
    /// At which visit; 1 is the first.
    pub nth: u32,
    /// In how many runs in a row.
    pub times: u32,
    /// How the clients are configured.
    pub setup: Setup,
    situation: Situation,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, visit {}", self.situation, self.nth)?;
        if self.times == 1 { Ok(()) } else { write!(f, ", {} runs in a row", self.times) }
    }
}

/// Every crash point of the library that the victim's events reach. Its events have no stacks: `symbols.asked` is
/// reached by the tests of crash reports.
pub fn crash_points() -> &'static [&'static str] {
    posthog::__crash_point_names().strip_suffix(&["symbols.asked"]).expect("it stands last")
}

/// The situations that lead to a crash point. By default, every event does.
fn situations(point: &str) -> &'static [Situation] {
    match point {
        "journal.arena.zeroed" => &[Situation::Fresh],
        "journal.rotated" => &[Situation::Bursting],
        "journal.round.begun" => &[Situation::Capturing, Situation::Bursting],
        "store.opening" | "recovery.replayed" | "recovery.committed" => &[Situation::Draining],
        "store.synced" => &[Situation::Capturing, Situation::Fresh, Situation::Untrusted],
        "store.built" => &[Situation::Fresh, Situation::Untrusted],
        "store.ready" | "store.aside" => &[Situation::Untrusted],
        "store.compacting" => &[Situation::Compacting],
        "adoption.opened" => &[Situation::Adopting],
        "ack.committed" | "stop.begun" | "stop.committed" => &[Situation::Draining],
        "evict.committed" => &[Situation::Evicting],
        _ => &[Situation::Capturing],
    }
}

/// One death at each point, with one configuration: the short set.
pub fn one_each(setup: Setup) -> Vec<Case> {
    let case = |point: &&'static str| Case { point, nth: 1, times: 1, setup, situation: situations(point)[0] };
    crash_points().iter().map(case).collect()
}

/// Every situation of each point with one configuration. With a small journal, where checkpoints are frequent, also a
/// later visit, and two deaths in a row.
pub fn all(setup: Setup) -> Vec<Case> {
    let mut cases = Vec::new();
    for &point in crash_points() {
        for &situation in situations(point) {
            let repeats = matches!(situation, Situation::Capturing | Situation::Bursting | Situation::Evicting);
            let visits: &[u32] = if repeats && setup.small_journal { &[1, 4] } else { &[1] };
            cases.extend(visits.iter().map(|nth| Case { point, nth: *nth, times: 1, setup, situation }));
            if !setup.small_journal {
                continue;
            }
            // What causes the other situations does not happen a second time.
            if repeats || situation == Situation::Draining && point != "ack.committed" {
                cases.push(Case { point, nth: 1, times: 2, setup, situation });
            }
        }
    }
    cases
}

/// Lets runs die at the crash point of a case.
pub fn die_at(victim: &Path, case: &Case) -> Result<ScenarioResult, Failure> {
    let Case { point, nth, times, setup, situation } = *case;
    let rules = Rules { evicts: situation == Situation::Evicting, ..Rules::default() };
    let mut fixture = Fixture::with(victim, rules)?;
    let dying = |run: VictimRun| run.dying_at(point, nth);
    match situation {
        Situation::Fresh | Situation::Evicting => {}
        Situation::Compacting => leave_a_backlog(&mut fixture, MANY_EVENTS, setup.padded(HEAVY))?,
        Situation::Adopting => return die_adopting(fixture, &dying(VictimRun::capturing(1).with(setup))),
        _ => leave_a_backlog(&mut fixture, SOME_EVENTS, setup)?,
    }
    if situation == Situation::Untrusted {
        for _ in 0..DEATHS_UNTIL_UNTRUSTED {
            let opening = fixture.start(&VictimRun::draining().with(setup).dying_at("store.opening", 1))?;
            fixture.wait_for_crash(opening)?;
        }
    }
    if situation == Situation::Evicting {
        fixture.sink.stop();
    } else {
        fixture.sink.resume();
    }
    let run = dying(match situation {
        Situation::Bursting => VictimRun::capturing(4).with(setup.small().padded(1_000).bursting()),
        Situation::Draining | Situation::Compacting | Situation::Untrusted => VictimRun::draining().with(setup),
        Situation::Evicting => VictimRun::capturing(2).with(Setup { queue_events: FEW_QUEUED, ..setup }),
        _ => VictimRun::capturing(2).with(setup),
    });
    for _ in 0..times {
        let mut running = fixture.start(&run)?;
        // A client that is asked to end does not compact any more.
        if situation == Situation::Draining {
            running.request_end();
        }
        fixture.wait_for_crash(running)?;
    }
    ScenarioResult::on(fixture)
}

fn die_adopting(mut fixture: Fixture, adopting: &VictimRun) -> Result<ScenarioResult, Failure> {
    fixture.sink.stop();
    let orphaned = fixture.start(&VictimRun { die_at: None, ..adopting.clone() })?;
    orphaned.wait_for_acknowledged(SOME_EVENTS, PATIENCE)?;
    let adopting = fixture.start(adopting)?;
    adopting.wait_for_acknowledged(SOME_EVENTS, PATIENCE)?;
    fixture.kill(orphaned)?;
    fixture.sink.resume();
    fixture.wait_for_crash(adopting)?;
    ScenarioResult::on(fixture)
}

/// Dies at each sync of the store in turn, while a large backlog is recovered, delivered, acked and compacted away.
pub fn die_at_each_sync(victim: &Path, most: u32, setup: Setup) -> Result<ScenarioResult, Failure> {
    let mut fixture = Fixture::new(victim)?;
    // The file stays large until a run gets as far as compacting it.
    leave_a_backlog(&mut fixture, MANY_EVENTS, setup.padded(HEAVY))?;
    for nth in 1..=most {
        leave_a_backlog(&mut fixture, SOME_EVENTS, setup)?;
        fixture.sink.resume();
        let running = fixture.start(&VictimRun::draining().with(setup).dying_at("store.synced", nth))?;
        if !fixture.wait_for_crash_or_drained(running)? {
            break;
        }
    }
    ScenarioResult::on(fixture)
}
