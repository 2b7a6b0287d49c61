//! Every way to end in every build: `matrix [--builds debug,release,abort,stripped,musl] [--only WORDS,WORDS] [--times N]`. Prints a table
//! of how each ended, with the client as without, and how many exceptions the next start told; and a list of what did not hold.
#![allow(clippy::print_stdout, reason = "the matrix talks to a human")]

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crash_tests::last_words::{ALL, Build, Ending, HOSTS, Held};

/// Scenarios wait more than they work: so many are played at a time.
const STAGES: usize = 4;
const MUSL: &str = "x86_64-unknown-linux-musl";

/// Name, arguments of cargo, folder below the target directory.
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
            Ok(program) => table.columns.push((profile.0, play(&program, profile.3, &options))),
            Err(why) if profile.3.is_musl => table.notes.push(format!("{}: not built: {why}", profile.0)),
            Err(why) => table.failures.push(format!("{}: not built: {why}", profile.0)),
        }
    }
    table.print(&options);
    println!("{} after {:.0?}", if table.failures.is_empty() { "all held" } else { "FAILED" }, began.elapsed());
    Ok(table.failures.is_empty())
}

/// `dying`, as the profile makes it.
fn build((name, arguments, folder, build): &Profile) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
    // This program lies in the folder of its own profile.
    let target = own.parent().and_then(Path::parent).ok_or("no target directory")?;
    println!("building {name} ..");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "crash-tests", "--bin", "dying", "--target-dir"]).arg(target).args(*arguments);
    if build.is_musl && std::env::var_os("CC_x86_64_unknown_linux_musl").is_none() {
        // One of the dependencies has parts in C that need no C library: the machine's own compiler can build them.
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

type Cell = Result<Held, String>;

/// What came of each scenario, the last time that it held or the first that it did not.
fn play(program: &Path, build: Build, options: &Options) -> Vec<(&'static str, Cell)> {
    let scenarios = ALL.iter().map(|scenario| {
        let hold: Play = Box::new(move || scenario.hold(program, build));
        (scenario.name, hold)
    });
    let hosts = HOSTS.iter().map(|host| {
        let hold: Play = Box::new(move || host.hold(program));
        (host.scenario.name, hold)
    });
    let plays: VecDeque<_> = scenarios.chain(hosts).filter(|(name, _)| options.takes(name)).collect();
    let order: Vec<_> = plays.iter().map(|(name, _)| *name).collect();
    let (plays, cells) = (Mutex::new(plays), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..STAGES {
            scope.spawn(|| {
                while let Some((name, hold)) = next(&plays) {
                    let cell = play_often(&hold, options.times);
                    cells.lock().unwrap_or_else(PoisonError::into_inner).push((name, cell));
                }
            });
        }
    });
    let mut cells = cells.into_inner().unwrap_or_else(PoisonError::into_inner);
    cells.sort_by_key(|(name, _)| order.iter().position(|ordered| ordered == name));
    cells
}

/// Plays one scenario once.
type Play<'a> = Box<dyn Fn() -> Cell + Send + 'a>;

fn next<'a>(plays: &Mutex<VecDeque<(&'static str, Play<'a>)>>) -> Option<(&'static str, Play<'a>)> {
    plays.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

fn play_often(hold: &Play<'_>, times: u32) -> Cell {
    for time in 1..times {
        hold().map_err(|why| format!("time {time}: {why}"))?;
    }
    hold()
}

/// Of all scenarios, the hosts last.
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
                    Ok(Held::Yes { .. }) => {}
                    Ok(Held::NotHere(why)) => self.notes.push(format!("{build}, {scenario}: not here: {why}")),
                    Err(why) => self.failures.push(format!("{build}, {scenario}: {why}")),
                }
            }
            println!();
        }
        let held =
            self.columns.iter().flat_map(|(_, cells)| cells).filter(|(_, cell)| matches!(cell, Ok(Held::Yes { .. })));
        println!(
            "\n{} held, each played {} times: same end with the client, nothing damaged",
            held.count(),
            options.times
        );
        self.notes.iter().for_each(|note| println!("{note}"));
        self.failures.iter().for_each(|failure| println!("FAILED  {failure}"));
    }
}

/// The end and how many exceptions were told.
fn shown(cell: &Cell) -> String {
    match cell {
        Ok(Held::Yes { ending: Ending::Exit(status), told }) => format!("exit {status}, {told}"),
        Ok(Held::Yes { ending: Ending::Signal(signal), told }) => {
            let name = nix::sys::signal::Signal::try_from(*signal).map_or("signal", nix::sys::signal::Signal::as_str);
            format!("{name}, {told}")
        }
        Ok(Held::NotHere(_)) => "not here".to_owned(),
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
                    "`{arg}` is not understood; usage: matrix [--builds A,B] [--only SCENARIO,SCENARIO] [--times N]"
                ));
            }
        }
        let builds = PROFILES.iter().map(|(name, ..)| *name).collect::<Vec<_>>();
        let scenarios = names().collect::<Vec<_>>();
        // What plays nothing holds, and would say so.
        for (words, known) in [(&options.builds, builds), (&options.only, scenarios)] {
            if let Some(unknown) = words.iter().find(|word| !known.contains(&word.as_str())) {
                return Err(format!("`{unknown}` is none of {}", known.join(", ")));
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
