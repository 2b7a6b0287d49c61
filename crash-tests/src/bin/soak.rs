//! Inflicts random faults on two processes for a while, and checks that nothing was lost and nothing grows:
//! `soak [--minutes N | --seconds N] [--seed S]`. Exit status 1 if an event was lost or something has grown, 3 if it
//! hung.
#![allow(clippy::print_stdout, reason = "the output of the program")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, exit};
use std::thread;
use std::time::{Duration, Instant};

use crash_tests::soak::{self, Course, Options, Progress, Report};
use rand::rngs::StdRng;
use rand::{RngExt, make_rng};

const USAGE: &str = "usage: soak [--minutes N | --seconds N] [--seed S]";
const DEFAULT: Duration = Duration::from_secs(60);
/// Longer than all waits at the end of a soak together.
const GRACE: Duration = Duration::from_secs(15 * 60);
const IS_APART: &str = "POSTHOG_SOAK_IS_APART";

fn main() -> ExitCode {
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            println!("{why}");
            return ExitCode::FAILURE;
        }
    };
    mount_apart();
    let Options { time, seed } = options;
    println!("{} s of faults, seed {seed} (repeat with --seed)", time.as_secs());
    let (began, progress) = (Instant::now(), Progress::default());
    watch(time + GRACE, progress.clone());
    let result = victim().and_then(|victim| {
        soak::run(&victim, options, &progress).map_err(|why| format!("while or after `{}`: {why}", progress.step()))
    });
    let passed = match result {
        Ok(report) => tell(&report),
        Err(why) => {
            println!("{why}");
            false
        }
    };
    println!("{} in {:.0?}", if passed { "PASSED" } else { "FAILED" }, began.elapsed());
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Starts this program again in a mount namespace of its own, if that is allowed: then what is mounted goes with it,
/// however it ends.
fn mount_apart() {
    let unshared = |program: &str, args: &[&str]| {
        let tried = Command::new("unshare").arg("--mount").arg(program).args(args).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    if std::env::var_os(IS_APART).is_some() || !unshared("true", &[]) {
        return;
    }
    if let Ok(own) = std::env::current_exe() {
        let why =
            Command::new("unshare").arg("--mount").arg(own).args(std::env::args_os().skip(1)).env(IS_APART, "1").exec();
        println!("not in a mount namespace of its own: {why}");
    }
}

/// Ends everything if it takes longer than `time`.
fn watch(time: Duration, progress: Progress) {
    thread::spawn(move || {
        thread::sleep(time);
        println!("FAILED: hangs in `{}`", progress.step());
        progress.kill_all();
        exit(3);
    });
}

/// Prints the report. Returns whether nothing has grown.
fn tell(report: &Report) -> bool {
    println!();
    for (fault, count) in &report.faults {
        println!("  {fault:<40}{count:>8}");
    }
    for skipped in &report.skipped {
        println!("  skipped: {skipped}");
    }
    println!();
    let ledger = report.ledger;
    for (what, count) in [
        ("acknowledged", report.acknowledged),
        ("accepted, by the ledger", ledger.accepted),
        ("delivered, by the ledger", ledger.delivered),
        ("dead-lettered (poison)", ledger.dead_lettered),
        ("evicted, damaged, lost", ledger.evicted + ledger.damaged + ledger.lost_unsynced),
        ("sent again with the same uuid", report.duplicates),
        ("days in the timestamps", report.days),
    ] {
        println!("  {what:<40}{count:>8}");
    }
    for (reason, count) in &report.dropped {
        println!("  {:<40}{count:>8}", format!("refused: {reason}"));
    }
    println!("\n  min / median / max of              the first quarter             the last quarter   at most");
    for course in &report.courses {
        let Course { measure, first, last } = course;
        let (median, most) = course.bounds();
        let verdict = if course.is_flat() { "" } else { "   GROWN" };
        println!(
            "  {:<26}{:>26}   {:>26}   - / {median} / {most}{verdict}",
            measure.name,
            first.to_string(),
            last.to_string()
        );
    }
    println!();
    report.courses.iter().all(Course::is_flat)
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { time: DEFAULT, seed: make_rng::<StdRng>().random() };
    while let Some(arg) = args.next() {
        let number = args.next().and_then(|number| number.parse::<u64>().ok());
        let number = number.ok_or_else(|| format!("`{arg}` needs a number; {USAGE}"))?;
        match arg.as_str() {
            "--minutes" => options.time = Duration::from_secs(number.saturating_mul(60)),
            "--seconds" => options.time = Duration::from_secs(number),
            "--seed" => options.seed = number,
            _ => return Err(format!("unknown argument `{arg}`; {USAGE}")),
        }
    }
    Ok(options)
}

/// The victim is built beside this program.
fn victim() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find the path of this program: {error}"))?;
    let victim = own.parent().unwrap_or(Path::new(".")).join("victim");
    if victim.is_file() { Ok(victim) } else { Err(format!("{} is missing: build the whole package", victim.display())) }
}
