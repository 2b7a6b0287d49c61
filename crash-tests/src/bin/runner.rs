//! Runs all scenarios and a number of random kills: `runner [--kills N] [--seed S] [--only TEXT]`. With `--only`, runs
//! only the scenarios whose name contains the text.
#![allow(clippy::print_stdout, reason = "the output of the program")]

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crash_tests::oracle::{Rules, Summary};
use crash_tests::scenario::{self, ScenarioResult, points, shared, storms as storm};
use crash_tests::{Failure, Setup};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, make_rng};

const DEFAULT_KILLS: u32 = 100;
/// Kills in one fixture, before its queue is drained and checked.
const KILLS_PER_SCENARIO: u32 = 25;
/// More syncs than a run needs for a large backlog.
const SYNCS: u32 = 30;
/// Number of scenarios run at a time: they mostly wait.
const PARALLEL: u32 = 4;

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
    println!("seed {seed} (repeat with --seed), {kills} random kills");
    let mut tasks = Vec::new();
    let setups = [Setup::default().small(), Setup::default()];
    for setup in setups.into_iter().flat_map(|setup| [setup, setup.unmapped()]) {
        tasks.extend(everything_once(&victim, setup));
    }
    tasks.extend(storms(&victim, kills, &mut StdRng::seed_from_u64(seed)));
    tasks.retain(|task| task.name.contains(&only));
    let tally = Mutex::new(Tally { complete: only.is_empty(), ..Tally::default() });
    let tasks = Mutex::new(VecDeque::from(tasks));
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(Task { name, act }) = next(&tasks) {
                    let result = act();
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(&name, result);
                }
            });
        }
    });
    Ok(tally.into_inner().unwrap_or_else(PoisonError::into_inner).report(started))
}

/// A scenario and its name.
struct Task<'a> {
    name: String,
    act: Box<dyn FnOnce() -> Result<ScenarioResult, Failure> + Send + 'a>,
}

impl<'a> Task<'a> {
    fn new(name: impl Into<String>, act: impl FnOnce() -> Result<ScenarioResult, Failure> + Send + 'a) -> Self {
        Self { name: name.into(), act: Box::new(act) }
    }
}

fn next<'a>(tasks: &Mutex<VecDeque<Task<'a>>>) -> Option<Task<'a>> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn everything_once(victim: &Path, setup: Setup) -> Vec<Task<'_>> {
    let journal = format!(
        "{} journal, {}",
        if setup.small_journal { "small" } else { "default" },
        if setup.no_map { "written" } else { "mapped" }
    );
    let mut tasks = vec![
        Task::new(format!("end cleanly ({journal})"), move || scenario::end_cleanly(victim, setup)),
        Task::new(format!("8 threads ({journal})"), move || scenario::many_threads(victim, 8, setup)),
        Task::new(format!("adopt an orphan ({journal})"), move || shared::adopt_an_orphan(victim, setup)),
    ];
    for case in points::all(setup) {
        let name = format!("die at {} ({case}, {journal})", case.point);
        tasks.push(Task::new(name, move || points::die_at(victim, &case)));
    }
    let name = format!("die at each sync ({journal})");
    tasks.push(Task::new(name, move || points::die_at_each_sync(victim, SYNCS, setup)));
    tasks
}

fn storms<'a>(victim: &'a Path, kills: u32, random: &mut StdRng) -> Vec<Task<'a>> {
    let (poison, evicts) = (true, true);
    let plain = Rules::default();
    let mut tasks = Vec::new();
    let mut left = kills;
    while left > 0 {
        let here = left.min(KILLS_PER_SCENARIO);
        left -= here;
        let seed = random.random();
        let name = |what: &str| format!("{here} {what} (fixture seed {seed})");
        tasks.push(match tasks.len() % 6 {
            0 => Task::new(name("kills during recovery"), move || storm::kill_during_recovery(victim, here, seed)),
            1 => Task::new(name("kills of several processes"), move || shared::kill_all(victim, here, seed)),
            2 => Task::new(name("kills with refusals"), move || {
                storm::random_kills(victim, here, seed, Rules { poison, ..plain })
            }),
            3 => Task::new(name("kills of a bounded queue"), move || {
                storm::random_kills(victim, here, seed, Rules { evicts, ..plain })
            }),
            4 => Task::new(name("kills with AI events"), move || storm::kill_with_ai_events(victim, here, seed)),
            _ => Task::new(name("kills"), move || storm::random_kills(victim, here, seed, plain)),
        });
    }
    tasks
}

#[derive(Default)]
struct Tally {
    total: Summary,
    reached: BTreeSet<String>,
    failed: u32,
    /// All scenarios are run, so every crash point must be reached.
    complete: bool,
}

impl Tally {
    fn add(&mut self, name: &str, result: Result<ScenarioResult, Failure>) {
        match result {
            Ok(ScenarioResult { summary, reached }) => {
                println!("ok      {name}: {} acknowledged, {} duplicates", summary.acknowledged, summary.duplicates);
                self.total.kills += summary.kills;
                self.total.acknowledged += summary.acknowledged;
                self.total.duplicates += summary.duplicates;
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
            println!("FAILED  crash point {point}: no run reached it");
            self.failed += 1;
        }
        let Summary { kills, acknowledged, duplicates } = self.total;
        println!();
        println!("  kills               {kills:>9}");
        println!("  acknowledged        {acknowledged:>9}");
        println!("  duplicates          {duplicates:>9}   sent again with the same uuid; PostHog keeps one");
        println!("  failed scenarios    {:>9}", self.failed);
        println!(
            "{} in {:.0?}",
            if self.failed == 0 { "PASSED: no event was lost," } else { "FAILED" },
            started.elapsed()
        );
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
                format!("unknown or incomplete argument `{arg}`; usage: runner [--kills N] [--seed S] [--only TEXT]")
            })?;
        }
        Ok(options)
    }
}

/// The victim is built beside the runner.
fn victim() -> Result<PathBuf, String> {
    let runner = std::env::current_exe().map_err(|error| format!("cannot find the path of this program: {error}"))?;
    let victim = runner.parent().unwrap_or(Path::new(".")).join("victim");
    if victim.is_file() { Ok(victim) } else { Err(format!("{} is missing: build the whole package", victim.display())) }
}
