//! Scenarios of processes that crash: the next start must report the crash, and the process must end as without the
//! client.
//!
//! - A [`Scenario`] says what is expected. [`ALL`] is the list (`scenarios.rs`); the program `dying` runs each.
//! - A [`Host`] (`hosts.rs`) is a scenario with a host program in another language, with signal handlers of its own.
//!   [`HOSTS`] is the list.
//! - A [`Fixture`] (`fixture.rs`) runs the process without the client and with it, and then the next start, with a
//!   PostHog stand-in. It returns how both ended, which exceptions arrived, and problems of the next start.
//! - A [`Build`] says how `dying` was built: with `panic = "abort"` it ends differently, and the frames of a stripped
//!   program have no names.
//!
//! [`Scenario::check`] runs a scenario and compares. `cargo test` does so for its own build, `cargo run -p crash-tests
//! --release --bin matrix` for all builds.
//!
//! A scenario that this machine cannot run (a processor without certain registers, no right to mount) returns
//! [`Outcome::Skipped`] with the reason, which the caller prints.

mod fixture;
mod hosts;
mod scenarios;

pub use fixture::{Fixture, Reported, frames_of, functions_of, left_in};
pub use hosts::{HOSTS, Host};
pub use scenarios::ALL;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// On its own, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// How `dying` ends if the machine lacks what the scenario needs.
pub const UNAVAILABLE: Ending = Ending::Exit(77);

/// How `dying` was built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Build {
    /// With `panic = "abort"`.
    pub panics_abort: bool,
    /// Without symbols, so frames have no names.
    pub is_stripped: bool,
    /// For musl, where the standard library does not detect a stack overflow of the main thread, and the exit status is
    /// not recorded.
    pub is_musl: bool,
}

/// An exception that the next start must report, or several of the same kind.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The type of the exception.
    pub kind: &'static str,
    /// Its level.
    pub level: &'static str,
    /// What its message begins with.
    pub message: &'static str,
    /// The minimum number of frames.
    pub frames: usize,
    /// No frame needs to be in a function of `dying`.
    pub is_anywhere: bool,
    /// The number of such exceptions.
    pub times: usize,
}

/// A way to end, and what must be reported.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The name that `dying` takes.
    pub name: &'static str,
    ending: Ending,
    exceptions: &'static [Expected],
    if_panics_abort: Option<(Ending, &'static [Expected])>,
    on_musl: Option<(Ending, &'static [Expected])>,
    may_report_more: bool,
    needs_a_small_disk: bool,
}

/// The result of a scenario that did not fail.
#[derive(Debug)]
pub enum Outcome {
    /// As expected.
    Passed {
        /// How the process ended, with and without the client.
        ending: Ending,
        /// The number of reported exceptions.
        reported: usize,
    },
    /// It cannot be run on this machine, and why.
    Skipped(String),
}

impl Scenario {
    /// Runs it once, and returns how it differs from what is expected.
    pub fn check(&self, program: &std::path::Path, build: Build) -> Result<Outcome, String> {
        let fixture = match Fixture::new(program, self.needs_a_small_disk) {
            Ok(fixture) => fixture,
            Err(why) => return Ok(Outcome::Skipped(why)),
        };
        let without = fixture.run(self.name, false)?;
        if without == UNAVAILABLE {
            return Ok(Outcome::Skipped("the processor, the kernel or the build lacks what it needs".to_owned()));
        }
        let with = fixture.run(self.name, true)?;
        if with != without {
            return Err(format!("ended by {with:?} with the client, but by {without:?} without"));
        }
        let (ending, expected) = self.expected(build);
        if with != ending {
            return Err(format!("ended by {with:?} instead of {ending:?}, with and without the client"));
        }
        let reported = fixture.reported(expected.iter().map(|one| one.times).sum())?;
        if !reported.problems.is_empty() {
            return Err(format!("problems of the next start: {}", reported.problems.join("; ")));
        }
        self.compare(expected, &reported, build)?;
        Ok(Outcome::Passed { ending: with, reported: reported.exceptions.len() })
    }

    fn expected(&self, build: Build) -> (Ending, &'static [Expected]) {
        let otherwise = match build {
            Build { panics_abort: true, .. } => self.if_panics_abort,
            Build { is_musl: true, .. } => self.on_musl,
            _ => None,
        };
        otherwise.unwrap_or((self.ending, self.exceptions))
    }

    fn compare(&self, expected: &[Expected], reported: &Reported, build: Build) -> Result<(), String> {
        let mut left: Vec<_> = reported.exceptions.iter().collect();
        for one in expected {
            for _ in 0..one.times {
                let at = left.iter().position(|exception| one.is(exception, build)).ok_or_else(|| {
                    format!(
                        "{one:?} was not reported; the others are {:?}",
                        left.iter().map(|other| summary(other)).collect::<Vec<_>>()
                    )
                })?;
                left.remove(at);
            }
        }
        if left.is_empty() || self.may_report_more {
            return Ok(());
        }
        Err(format!("unexpected exceptions: {:?}", left.iter().map(|other| summary(other)).collect::<Vec<_>>()))
    }
}

impl Expected {
    fn is(&self, properties: &serde_json::Value, build: Build) -> bool {
        let text = |name: &str| properties[name].as_str().unwrap_or_default();
        let functions = functions_of(properties);
        // Line tables have the file of an inlined function, but not its full name.
        let is_of_dying =
            |frame: &serde_json::Value| frame["filename"].as_str().is_some_and(|file| file.contains("bin/dying/"));
        // musl's `abort` has no unwind tables: the walk beyond it is a guess, and sometimes wrong.
        let is_guessed = build.is_musl
            && text("$exception_source") == "rust.signal_handler"
            && matches!(self.kind, "Panic" | "SIGABRT");
        text("$exception_type") == self.kind
            && text("$exception_level") == self.level
            && text("$exception_message").starts_with(self.message)
            && functions.len() >= self.frames
            && (build.is_stripped || is_guessed || self.is_anywhere || frames_of(properties).iter().any(is_of_dying))
    }
}

fn summary(properties: &serde_json::Value) -> String {
    let functions = functions_of(properties);
    let message: String = properties["$exception_message"].as_str().unwrap_or_default().chars().take(80).collect();
    format!(
        "{} {} {message:?}, {} frames: {}",
        properties["$exception_level"],
        properties["$exception_type"],
        functions.len(),
        functions.iter().rev().take(6).cloned().collect::<Vec<_>>().join(" < ")
    )
}
