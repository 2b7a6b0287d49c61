//! Plays all scenarios and as many random kills as wanted: `runner [--kills N] [--seed S] [--only WORDS]`; the last plays
//! only the scenarios whose name has these words in it.
#![allow(clippy::print_stdout, reason = "the runner talks to a human")]

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crash_tests::oracle::{DeliveryOutcome, Rules};
use crash_tests::scenario::{self, Played, points, shared, storms as storm};
use crash_tests::{Failure, Setup};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, make_rng};

const DEFAULT_KILLS: u32 = 100;
/// Kills on one stage, before its queue is drained and judged.
const KILLS_PER_STAGE: u32 = 25;
/// More syncs than a life makes of a heavy backlog.
const SYNCS: u32 = 30;
/// Scenarios wait more than they work: so many are played at a time.
const STAGES: u32 = 4;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, String> {
    let started = Instant::now();
    let Options { kills, seed, only } = Options::from_args(std::env::args().skip(1))?;
    let victim = victim()?;
    println!("seed {seed}, {kills} random kills");
    let mut plays = Vec::new();
    let setups = [Setup::default().small(), Setup::default()];
    for setup in setups.into_iter().flat_map(|setup| [setup, setup.unmapped()]) {
        plays.extend(everything_once(&victim, setup));
    }
    plays.extend(storms(&victim, kills, &mut StdRng::seed_from_u64(seed)));
    plays.retain(|play| play.name.contains(&only));
    let tally = Mutex::new(Tally { complete: only.is_empty(), ..Tally::default() });
    let plays = Mutex::new(VecDeque::from(plays));
    thread::scope(|scope| {
        for _ in 0..STAGES {
            scope.spawn(|| {
                while let Some(Play { name, act }) = next(&plays) {
                    let played = act();
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(&name, played);
                }
            });
        }
    });
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner).report(started))
}

/// A scenario and its name.
struct Play<'a> {
    name: String,
    act: Box<dyn FnOnce() -> Result<Played, Failure> + Send + 'a>,
}

impl<'a> Play<'a> {
    fn new(name: impl Into<String>, act: impl FnOnce() -> Result<Played, Failure> + Send + 'a) -> Self {
        Self { name: name.into(), act: Box::new(act) }
    }
}

fn next<'a>(plays: &Mutex<VecDeque<Play<'a>>>) -> Option<Play<'a>> {
    plays.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn everything_once(victim: &Path, setup: Setup) -> Vec<Play<'_>> {
    let journal = format!(
        "{} journal, {}",
        if setup.small_journal { "small" } else { "default" },
        if setup.no_map { "written" } else { "mapped" }
    );
    let mut plays = vec![
        Play::new(format!("end cleanly ({journal})"), move || scenario::end_cleanly(victim, setup)),
        Play::new(format!("8 threads ({journal})"), move || scenario::many_threads(victim, 8, setup)),
        Play::new(format!("adopt an orphan ({journal})"), move || shared::adopt_an_orphan(victim, setup)),
    ];
    for case in points::all(setup) {
        let name = format!("die at {} ({case}, {journal})", case.point);
        plays.push(Play::new(name, move || points::die_at(victim, &case)));
    }
    let name = format!("die at each sync ({journal})");
    plays.push(Play::new(name, move || points::die_at_each_sync(victim, SYNCS, setup)));
    plays
}

fn storms<'a>(victim: &'a Path, kills: u32, random: &mut StdRng) -> Vec<Play<'a>> {
    let (poison, evicts) = (true, true);
    let plain = Rules::default();
    let mut plays = Vec::new();
    let mut left = kills;
    while left > 0 {
        let here = left.min(KILLS_PER_STAGE);
        left -= here;
        let seed = random.random();
        let name = |what: &str| format!("{here} {what} (stage seed {seed})");
        plays.push(match plays.len() % 6 {
            0 => Play::new(name("short lives"), move || storm::kill_during_recovery(victim, here, seed)),
            1 => Play::new(name("kills of several processes"), move || shared::kill_all(victim, here, seed)),
            2 => Play::new(name("kills with refusals"), move || {
                storm::random_kills(victim, here, seed, Rules { poison, ..plain })
            }),
            3 => Play::new(name("kills of a bounded queue"), move || {
                storm::random_kills(victim, here, seed, Rules { evicts, ..plain })
            }),
            4 => Play::new(name("kills with AI events"), move || storm::kill_with_ai_events(victim, here, seed)),
            _ => Play::new(name("kills"), move || storm::random_kills(victim, here, seed, plain)),
        });
    }
    plays
}

#[derive(Default)]
struct Tally {
    total: DeliveryOutcome,
    reached: BTreeSet<String>,
    failed: u32,
    /// Every scenario is played, so every crash point must be reached.
    complete: bool,
}

impl Tally {
    fn add(&mut self, name: &str, played: Result<Played, Failure>) {
        match played {
            Ok(Played { verdict, reached }) => {
                println!("ok      {name}: {} acked, {} duplicates", verdict.acked, verdict.duplicates);
                self.total.kills += verdict.kills;
                self.total.acked += verdict.acked;
                self.total.duplicates += verdict.duplicates;
                self.reached.extend(reached);
            }
            Err(failure) => {
                println!("FAILED  {name}: {failure}");
                self.failed += 1;
            }
        }
    }

    fn report(mut self, started: Instant) -> bool {
        for point in points::crash_points().iter().filter(|point| self.complete && !self.reached.contains(**point)) {
            println!("FAILED  no life has reached {point}");
            self.failed += 1;
        }
        let DeliveryOutcome { kills, acked, duplicates } = self.total;
        println!();
        println!("  kills               {kills:>9}");
        println!("  acked               {acked:>9}");
        println!("  duplicates          {duplicates:>9}   the same uuid again: PostHog keeps one");
        println!("  failed scenarios    {:>9}", self.failed);
        println!("{} after {:.0?}", if self.failed == 0 { "nothing lost" } else { "FAILED" }, started.elapsed());
        self.failed == 0
    }
}

struct Options {
    kills: u32,
    seed: u64,
    only: String,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { kills: DEFAULT_KILLS, seed: make_rng::<StdRng>().random(), only: String::new() };
        while let Some(arg) = args.next() {
            let number =
                |args: &mut dyn Iterator<Item = String>| args.next().and_then(|number| number.parse::<u64>().ok());
            let known = match arg.as_str() {
                "--kills" => {
                    number(&mut args).and_then(|kills| u32::try_from(kills).ok()).map(|kills| options.kills = kills)
                }
                "--seed" => number(&mut args).map(|seed| options.seed = seed),
                "--only" => args.next().map(|only| options.only = only),
                _ => None,
            };
            known.ok_or_else(|| {
                format!("`{arg}` is not understood; usage: runner [--kills N] [--seed S] [--only WORDS]")
            })?;
        }
        Ok(options)
    }
}

/// The victim is built beside the runner.
fn victim() -> Result<PathBuf, String> {
    let runner = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    let victim = runner.parent().unwrap_or(Path::new(".")).join("victim");
    if victim.is_file() { Ok(victim) } else { Err(format!("{} is missing: build the whole package", victim.display())) }
}
