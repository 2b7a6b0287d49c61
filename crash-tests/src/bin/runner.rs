//! Plays all scenarios and as many random kills as wanted: `runner [--kills N] [--seed S]`.
#![allow(clippy::print_stdout, reason = "the runner talks to a human")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use crash_tests::oracle::{Rules, Verdict};
use crash_tests::scenario::points::{self, Case};
use crash_tests::scenario::{self, Played, shared, storms};
use crash_tests::{Failure, Setup};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, make_rng};

const DEFAULT_KILLS: u32 = 100;
/// Kills on one stage, before its queue is drained and judged.
const KILLS_PER_STAGE: u32 = 25;
/// More syncs than a life makes of a heavy backlog.
const SYNCS: u32 = 30;

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
    let Options { kills, seed } = Options::from_args(std::env::args().skip(1))?;
    let victim = victim()?;
    println!("seed {seed}, {kills} random kills");
    let mut tally = Tally::default();
    let setups = [Setup::default(), Setup::default().small()];
    for setup in setups.into_iter().flat_map(|setup| [setup, setup.unmapped()]) {
        tally.play_everything_once(&victim, setup);
    }
    tally.play_storms(&victim, kills, &mut StdRng::seed_from_u64(seed));
    Ok(tally.report(started))
}

#[derive(Default)]
struct Tally {
    total: Verdict,
    reached: BTreeSet<String>,
    failed: u32,
}

impl Tally {
    fn play_everything_once(&mut self, victim: &Path, setup: Setup) {
        println!("{setup:?}");
        self.play("end cleanly", || scenario::end_cleanly(victim, setup));
        self.play("8 threads", || scenario::many_threads(victim, 8, setup));
        self.play("adopt an orphan", || shared::adopt_an_orphan(victim, setup));
        for case in points::all(setup) {
            let Case { point, nth, times, .. } = case;
            let name = format!("die at {point}, visit {nth}, {times} running");
            self.play(&name, || points::die_at(victim, &case));
        }
        self.play("die at each sync", || points::die_at_each_sync(victim, SYNCS, setup));
    }

    fn play_storms(&mut self, victim: &Path, kills: u32, random: &mut StdRng) {
        let (poison, evicts) = (true, true);
        let plain = Rules::default();
        let mut left = kills;
        for round in 0.. {
            if left == 0 {
                break;
            }
            let here = left.min(KILLS_PER_STAGE);
            left -= here;
            let seed = random.random();
            let name = |what: &str| format!("{here} {what}, {left} to go (stage seed {seed})");
            match round % 5 {
                0 => self.play(&name("short lives"), || storms::kill_during_recovery(victim, here, seed)),
                1 => self.play(&name("kills of several processes"), || shared::kill_all(victim, here / 2, seed)),
                2 => self.play(&name("kills with refusals"), || {
                    storms::random_kills(victim, here, seed, Rules { poison, ..plain })
                }),
                3 => self.play(&name("kills of a bounded queue"), || {
                    storms::random_kills(victim, here, seed, Rules { evicts, ..plain })
                }),
                _ => self.play(&name("random kills"), || storms::random_kills(victim, here, seed, plain)),
            }
        }
    }

    fn play(&mut self, name: &str, scenario: impl FnOnce() -> Result<Played, Failure>) {
        match scenario() {
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
        for point in points::crash_points().iter().filter(|point| !self.reached.contains(**point)) {
            println!("FAILED  no life has reached {point}");
            self.failed += 1;
        }
        let Verdict { kills, acked, duplicates } = self.total;
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
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { kills: DEFAULT_KILLS, seed: make_rng::<StdRng>().random() };
        while let Some(arg) = args.next() {
            let mut number = || args.next().and_then(|number| number.parse::<u64>().ok());
            let known = match arg.as_str() {
                "--kills" => number().and_then(|kills| u32::try_from(kills).ok()).map(|kills| options.kills = kills),
                "--seed" => number().map(|seed| options.seed = seed),
                _ => None,
            };
            known.ok_or_else(|| format!("`{arg}` is not understood; usage: runner [--kills N] [--seed S]"))?;
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
