//! Scenarios of what a process says of its end, and the stage that they are played on.
//!
//! Purpose: to show that a crash is told by the next start, and that the process ends as it would have ended without the client.
//!
//! - [`Scenario`] says what is expected: [`ALL`] is the list of them (`scenarios.rs`), the program `dying` can play each.
//! - [`Host`] (`hosts.rs`) is a scenario in a program of another language, with handlers of its own: [`HOSTS`] is the list.
//! - [`Stage`] (`stage.rs`) plays one: the process without the client and with it, and then the start after it, against a stand-in of
//!   PostHog. It tells how both ended, which exceptions arrived and what was amiss.
//! - [`Build`] says in which way `dying` was built, since a program whose panics abort ends otherwise, and one that was stripped knows no
//!   names.
//!
//! Operations: [`Scenario::hold`] plays a scenario and compares. `cargo test` does it for the build that it makes;
//! `cargo run -p crash-tests --release --bin matrix` for all of them.
//!
//! Limits: a scenario that this machine cannot play (a processor without some registers, no right to mount) is [`Held::NotHere`], with
//! the reason, and whoever plays it has to say so.

mod hosts;
mod scenarios;
mod stage;

pub use hosts::{HOSTS, Host};
pub use scenarios::ALL;
pub use stage::{Heard, Stage, frames_of, functions_of, left_in};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// What `dying` ends with where the machine has not got what the scenario needs.
pub const NOT_HERE: Ending = Ending::Exit(77);

/// In which way `dying` was built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Build {
    /// With `panic = "abort"`.
    pub panics_abort: bool,
    /// Without symbols, so frames have no names.
    pub is_stripped: bool,
    /// For musl, with which the standard library does not notice that the stack of the main thread has overflowed, and exit marks get no
    /// status.
    pub is_musl: bool,
}

/// An exception that the next start has to tell, or several that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Type of the exception.
    pub kind: &'static str,
    /// Its level.
    pub level: &'static str,
    /// What its message begins with.
    pub message: &'static str,
    /// Frames at the least.
    pub frames: usize,
    /// Not in a function of `dying`.
    pub is_anywhere: bool,
    /// How many of them.
    pub times: usize,
}

/// A way to end, and what is to come of it.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// As `dying` knows it.
    pub name: &'static str,
    ending: Ending,
    told: &'static [Told],
    if_panics_abort: Option<(Ending, &'static [Told])>,
    on_musl: Option<(Ending, &'static [Told])>,
    may_tell_more: bool,
    needs_a_small_disk: bool,
}

/// What a play that held was like.
#[derive(Debug)]
pub enum Held {
    /// As expected.
    Yes {
        /// With the client as without.
        ending: Ending,
        /// Exceptions told.
        told: usize,
    },
    /// Not on this machine, and why.
    NotHere(String),
}

impl Scenario {
    /// Plays it once, and says what is not as it has to be.
    pub fn hold(&self, program: &std::path::Path, build: Build) -> Result<Held, String> {
        let stage = match Stage::new(program, self.needs_a_small_disk) {
            Ok(stage) => stage,
            Err(why) => return Ok(Held::NotHere(why)),
        };
        let without = stage.run(self.name, false)?;
        if without == NOT_HERE {
            return Ok(Held::NotHere("the processor, the kernel or the build has not got what it needs".to_owned()));
        }
        let with = stage.run(self.name, true)?;
        if with != without {
            return Err(format!("{with:?} with the client, {without:?} without"));
        }
        let (ending, told) = self.expected(build);
        if with != ending {
            return Err(format!("{with:?} instead of {ending:?}, with the client and without"));
        }
        let heard = stage.heard(told.iter().map(|told| told.times).sum())?;
        if !heard.amiss.is_empty() {
            return Err(format!("the reader says: {}", heard.amiss.join("; ")));
        }
        self.compare(told, &heard, build)?;
        Ok(Held::Yes { ending: with, told: heard.exceptions.len() })
    }

    fn expected(&self, build: Build) -> (Ending, &'static [Told]) {
        let otherwise = match build {
            Build { panics_abort: true, .. } => self.if_panics_abort,
            Build { is_musl: true, .. } => self.on_musl,
            _ => None,
        };
        otherwise.unwrap_or((self.ending, self.told))
    }

    fn compare(&self, expected: &[Told], heard: &Heard, build: Build) -> Result<(), String> {
        let mut left: Vec<_> = heard.exceptions.iter().collect();
        for told in expected {
            for _ in 0..told.times {
                let at = left.iter().position(|exception| told.is(exception, build)).ok_or_else(|| {
                    format!("{told:?} was not told, but {:?}", left.iter().map(|one| summary(one)).collect::<Vec<_>>())
                })?;
                left.remove(at);
            }
        }
        if left.is_empty() || self.may_tell_more {
            return Ok(());
        }
        Err(format!("told too: {:?}", left.iter().map(|one| summary(one)).collect::<Vec<_>>()))
    }
}

impl Told {
    fn is(&self, properties: &serde_json::Value, build: Build) -> bool {
        let text = |name: &str| properties[name].as_str().unwrap_or_default();
        let functions = functions_of(properties);
        // Of what is inlined, tables of lines know the file and not the whole name.
        let is_of_dying =
            |frame: &serde_json::Value| frame["filename"].as_str().is_some_and(|file| file.contains("bin/dying/"));
        // musl's `abort` has no tables for unwinding: where the walk goes on behind it is a guess, and now and then a wrong one.
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
