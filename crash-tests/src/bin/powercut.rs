//! Cuts the power of real file systems while a victim captures, and compares what arrives with what was promised:
//! `powercut [--cuts N] [--mode clone|unflushed|both] [--fs ext4,xfs,btrfs] [--seed S] [--shared yes]`.
//!
//! What this machine does not allow is skipped with a reason. Fails if a promise was broken. `--shared yes`: the machine
//! has other work, so how long a sync takes says little; events that are lost although they were old enough are counted,
//! and do not fail the run.
#![allow(clippy::print_stdout, reason = "the output of the program")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crash_tests::Failure;
use crash_tests::power::verdict::Figures;
use crash_tests::power::{Bench, FileSystem, Life, Mode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng, make_rng};

const USAGE: &str =
    "usage: powercut [--cuts N] [--mode clone|unflushed|both] [--fs ext4,xfs,btrfs] [--seed S] [--shared yes]";
const DEFAULT_CUTS: u32 = 20;
/// Maximum number of cuts of one file system, before its queue is drained and checked.
const CUTS_PER_LIFE: u32 = 3;
/// Nothing takes this long, unless the kernel hangs.
const PATIENCE: Duration = Duration::from_secs(180);

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
    let Options { cuts, modes, file_systems, seed, is_shared } = Options::from_args(std::env::args().skip(1))?;
    let victim = victim()?;
    let mut bench = match Bench::new() {
        Ok(bench) => bench,
        Err(why) => {
            println!("skipped: no file system can be mounted here: {why}");
            return Ok(true);
        }
    };
    println!("seed {seed} (repeat with --seed), {cuts} power cuts");
    let progress = Arc::new(AtomicU64::new(0));
    watch(Arc::clone(&progress));
    let pairs = modes.iter().flat_map(|mode| file_systems.iter().map(|file_system| (*file_system, *mode)));
    let mut tallies: BTreeMap<(FileSystem, Mode), Figures> = BTreeMap::new();
    for (file_system, mode) in pairs {
        match bench.prepare(file_system, mode) {
            Ok(()) => _ = tallies.insert((file_system, mode), Figures::default()),
            Err(why) => println!("skipped: {} in mode {}: {why}", file_system.name(), mode.name()),
        }
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut failed = 0;
    let count = u32::try_from(tallies.len()).unwrap_or(u32::MAX);
    for (index, ((file_system, mode), tally)) in (0..).zip(&mut tallies) {
        let mut left = cuts / count + u32::from(index < cuts % count);
        while left > 0 {
            let here = left.min(random.random_range(1..=CUTS_PER_LIFE));
            left -= here;
            let life_seed: u64 = random.random();
            let life = Life::new(&mut bench, &victim, StdRng::seed_from_u64(life_seed));
            let name = format!("{} {} (life seed {life_seed})", file_system.name(), mode.name());
            match life.live(*file_system, *mode, here, is_shared) {
                Ok((figures, findings)) => {
                    tally.add(figures);
                    if !findings.is_empty() {
                        failed += 1;
                        println!("FAILED  {name}: {}", Failure::Guarantee(findings));
                    }
                }
                Err(failure) => {
                    failed += 1;
                    println!("FAILED  {name}: {failure}");
                }
            }
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }
    report(&tallies, failed, started);
    Ok(failed == 0)
}

/// Ends the process if a life takes too long. Its mounts, and with them whatever hangs in them, end with it.
fn watch(progress: Arc<AtomicU64>) {
    thread::spawn(move || {
        let mut seen = u64::MAX;
        while seen != progress.load(Ordering::Relaxed) {
            seen = progress.load(Ordering::Relaxed);
            thread::sleep(PATIENCE);
        }
        println!("FAILED  no file system was checked for {PATIENCE:?}: something hangs");
        process::exit(1);
    });
}

fn report(tallies: &BTreeMap<(FileSystem, Mode), Figures>, failed: u32, started: Instant) {
    println!();
    println!("                          accepted            lost,     lost,     lost,    sent  sent again");
    println!("file system  mode   cuts    events  persisted  persisted  older  younger   twice   after a cut");
    let mut total = Figures::default();
    for ((file_system, mode), figures) in tallies {
        print_row(file_system.name(), mode.name(), figures);
        total.add(*figures);
    }
    print_row("all", "", &total);
    let took = started.elapsed();
    if tallies.is_empty() {
        println!("SKIPPED: nothing was shown");
    } else if failed == 0 {
        println!("PASSED: every promise was kept, in {took:.0?}");
    } else {
        println!("FAILED: {failed} file systems, in {took:.0?}");
    }
}

fn print_row(file_system: &str, mode: &str, figures: &Figures) {
    let Figures { cuts, accepted, persisted, lost_persisted, lost_older, lost_younger, doubled, repeated } = figures;
    println!(
        "{file_system:<7} {mode:<9} {cuts:>6} {accepted:>9} {persisted:>10} {lost_persisted:>10} {lost_older:>6} \
         {lost_younger:>8} {doubled:>7} {repeated:>13}"
    );
}

struct Options {
    cuts: u32,
    modes: Vec<Mode>,
    file_systems: Vec<FileSystem>,
    seed: u64,
    is_shared: bool,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            cuts: DEFAULT_CUTS,
            modes: Mode::ALL.to_vec(),
            file_systems: FileSystem::ALL.to_vec(),
            seed: make_rng::<StdRng>().random(),
            is_shared: false,
        };
        while let Some(arg) = args.next() {
            let value = args.next().unwrap_or_default();
            let known = match arg.as_str() {
                "--cuts" => value.parse().ok().map(|cuts| options.cuts = cuts),
                "--seed" => value.parse().ok().map(|seed| options.seed = seed),
                "--shared" => (value == "yes").then(|| options.is_shared = true),
                "--mode" if value == "both" => Some(()),
                "--mode" => {
                    Mode::ALL.into_iter().find(|mode| mode.name() == value).map(|mode| options.modes = vec![mode])
                }
                "--fs" => {
                    let named = |name: &str| FileSystem::ALL.into_iter().find(|known| known.name() == name);
                    let all: Option<Vec<_>> = value.split(',').map(named).collect();
                    all.map(|all| options.file_systems = all)
                }
                _ => None,
            };
            known.ok_or_else(|| format!("unknown or incomplete argument `{arg} {value}`; {USAGE}"))?;
        }
        Ok(options)
    }
}

/// The victim is built beside this program.
fn victim() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find the path of this program: {error}"))?;
    let victim = program.parent().unwrap_or(Path::new(".")).join("victim");
    if victim.is_file() { Ok(victim) } else { Err(format!("{} is missing: build the whole package", victim.display())) }
}
