//! Runs every crash scenario in every build: `matrix [--builds debug,release,abort,stripped,musl] [--only NAME,NAME]
//! [--times N]`. Prints a table of how each process ended, which must be the same with and without the client, and how
//! many exceptions the next start reported; then the skipped scenarios and the failures.
#![allow(clippy::print_stdout, reason = "the output of the program")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crash_tests::crash_reports::{ALL, Build, Ending, HOSTS, Outcome};

/// Number of scenarios run at a time: they mostly wait.
const PARALLEL: usize = 4;
const MUSL: &str = "x86_64-unknown-linux-musl";

/// Name, arguments for cargo, folder in the target directory, properties of the build.
type Profile = (&'static str, &'static [&'static str], &'static str, Build);

const PROFILES: &[Profile] = &[
    ("debug", &["--profile", "dev"], "debug", PLAIN),
    ("release", &["--profile", "release"], "release", PLAIN),
    ("abort", &["--profile", "abort"], "abort", Build { panics_abort: true, ..PLAIN }),
    ("stripped", &["--profile", "stripped"], "stripped", Build { is_stripped: true, ..PLAIN }),
    ("musl", &["--profile", "release", "--target", MUSL], "x86_64-unknown-linux-musl/release", ON_MUSL),
];
const PLAIN: Build = Build { panics_abort: false, is_stripped: false, is_musl: false };
const ON_MUSL: Build = Build { is_musl: true, ..PLAIN };

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
    let began = Instant::now();
    let options = Options::from_args(std::env::args().skip(1))?;
    let mut table = Table::default();
    for profile in PROFILES.iter().filter(|(name, ..)| options.takes_build(name)) {
        match build(profile) {
            Ok(program) => table.columns.push((profile.0, run_all(&program, profile.3, &options))),
            Err(why) if profile.3.is_musl => table.notes.push(format!("{}: build failed: {why}", profile.0)),
            Err(why) => table.failures.push(format!("{}: build failed: {why}", profile.0)),
        }
    }
    table.print(&options);
    println!("{} in {:.0?}", if table.failures.is_empty() { "PASSED" } else { "FAILED" }, began.elapsed());
    Ok(table.failures.is_empty())
}

/// Builds `dying` with the profile.
fn build((name, arguments, folder, build): &Profile) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("cannot find the path of this program: {error}"))?;
    // This program is in the folder of its own profile.
    let target = own.parent().and_then(Path::parent).ok_or("no target directory")?;
    println!("building {name} ..");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "crash-tests", "--bin", "dying", "--target-dir"]).arg(target).args(*arguments);
    if build.is_musl && std::env::var_os("CC_x86_64_unknown_linux_musl").is_none() {
        // A dependency has C code that needs no C library, so the system's compiler can build it.
        cargo.env("CC_x86_64_unknown_linux_musl", "cc");
    }
    let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error") || line.contains("help:")).collect();
        return Err(errors.join("; "));
    }
    Ok(target.join(folder).join("dying"))
}

type Cell = Result<Outcome, String>;

/// Runs the scenarios. The result of each is that of its last run, or its first failure.
fn run_all(program: &Path, build: Build, options: &Options) -> Vec<(&'static str, Cell)> {
    let scenarios = ALL.iter().map(|scenario| {
        let check: Check = Box::new(move || scenario.check(program, build));
        (scenario.name, check)
    });
    let hosts = HOSTS.iter().map(|host| {
        let check: Check = Box::new(move || host.check(program));
        (host.scenario.name, check)
    });
    let queue: VecDeque<_> = scenarios.chain(hosts).filter(|(name, _)| options.takes(name)).collect();
    let order: Vec<_> = queue.iter().map(|(name, _)| *name).collect();
    let (queue, cells) = (Mutex::new(queue), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some((name, check)) = next(&queue) {
                    let cell = check_repeatedly(&check, options.times);
                    cells.lock().unwrap_or_else(PoisonError::into_inner).push((name, cell));
                }
            });
        }
    });
    let mut cells = cells.into_inner().unwrap_or_else(PoisonError::into_inner);
    cells.sort_by_key(|(name, _)| order.iter().position(|ordered| ordered == name));
    cells
}

/// Runs one scenario once.
type Check<'a> = Box<dyn Fn() -> Cell + Send + 'a>;

fn next<'a>(queue: &Mutex<VecDeque<(&'static str, Check<'a>)>>) -> Option<(&'static str, Check<'a>)> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn check_repeatedly(check: &Check<'_>, times: u32) -> Cell {
    for time in 1..times {
        check().map_err(|why| format!("time {time}: {why}"))?;
    }
    check()
}

/// The names of all scenarios, the hosts last.
fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|scenario| scenario.name).chain(HOSTS.iter().map(|host| host.scenario.name))
}

#[derive(Default)]
struct Table {
    columns: Vec<(&'static str, Vec<(&'static str, Cell)>)>,
    failures: Vec<String>,
    notes: Vec<String>,
}

impl Table {
    fn print(&mut self, options: &Options) {
        println!();
        print!("| scenario |");
        self.columns.iter().for_each(|(name, _)| print!(" {name} |"));
        print!("\n| --- |");
        self.columns.iter().for_each(|_| print!(" --- |"));
        println!();
        for scenario in names().filter(|name| options.takes(name)) {
            print!("| `{scenario}` |");
            for (build, cells) in &self.columns {
                let Some((_, cell)) = cells.iter().find(|(name, _)| *name == scenario) else { continue };
                print!(" {} |", shown(cell));
                match cell {
                    Ok(Outcome::Passed { .. }) => {}
                    Ok(Outcome::Skipped(why)) => self.notes.push(format!("{build}, {scenario}: skipped: {why}")),
                    Err(why) => self.failures.push(format!("{build}, {scenario}: {why}")),
                }
            }
            println!();
        }
        let held = self
            .columns
            .iter()
            .flat_map(|(_, cells)| cells)
            .filter(|(_, cell)| matches!(cell, Ok(Outcome::Passed { .. })));
        println!(
            "\n{} passed (each run {} times): every process ended as without the client, and every expected exception was reported",
            held.count(),
            options.times
        );
        self.notes.iter().for_each(|note| println!("{note}"));
        self.failures.iter().for_each(|failure| println!("FAILED  {failure}"));
    }
}

/// How the process ended, and how many exceptions were reported.
fn shown(cell: &Cell) -> String {
    match cell {
        Ok(Outcome::Passed { ending: Ending::Exit(status), reported }) => format!("exit {status}, {reported}"),
        Ok(Outcome::Passed { ending: Ending::Signal(signal), reported }) => {
            let name = nix::sys::signal::Signal::try_from(*signal).map_or("signal", nix::sys::signal::Signal::as_str);
            format!("{name}, {reported}")
        }
        Ok(Outcome::Skipped(_)) => "skipped".to_owned(),
        Err(_) => "FAILED".to_owned(),
    }
}

struct Options {
    builds: Vec<String>,
    only: Vec<String>,
    times: u32,
}

impl Options {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { builds: Vec::new(), only: Vec::new(), times: 1 };
        while let Some(arg) = args.next() {
            let value = args.next();
            let words = value.iter().flat_map(|value| value.split(',')).map(str::to_owned);
            let mut is_known = true;
            match (arg.as_str(), value.as_ref().and_then(|value| value.parse().ok())) {
                ("--builds", _) => options.builds.extend(words),
                ("--only", _) => options.only.extend(words),
                ("--times", Some(times)) => options.times = times,
                _ => is_known = false,
            }
            if !is_known {
                return Err(format!(
                    "unknown or incomplete argument `{arg}`; usage: matrix [--builds A,B] [--only SCENARIO,SCENARIO] [--times N]"
                ));
            }
        }
        let builds = PROFILES.iter().map(|(name, ..)| *name).collect::<Vec<_>>();
        let scenarios = names().collect::<Vec<_>>();
        // An unknown name would run nothing, and so pass.
        for (words, known) in [(&options.builds, builds), (&options.only, scenarios)] {
            if let Some(unknown) = words.iter().find(|word| !known.contains(&word.as_str())) {
                return Err(format!("unknown name `{unknown}`; known: {}", known.join(", ")));
            }
        }
        Ok(options)
    }

    fn takes_build(&self, name: &str) -> bool {
        self.builds.is_empty() || self.builds.iter().any(|build| build == name)
    }

    fn takes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|scenario| scenario == name)
    }
}
