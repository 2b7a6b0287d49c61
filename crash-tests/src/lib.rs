//! Tests with real processes that are killed or crash, checked by an oracle.
//!
//! They show that an event whose `capture` returned `Accepted` reaches PostHog, at whatever moment the process dies,
//! and that crashes are reported.
//!
//! - The *victim* (a program of this package) captures through the real client, and writes `acknowledged` to its stdout
//!   only after `capture` has returned ([`protocol`]).
//! - A [`VictimRun`] is one run of the victim. A [`Fixture`] is a queue directory and a PostHog stand-in that the runs
//!   of a scenario share, one after another or at the same time.
//! - A [`scenario`] starts runs and kills them: at a named crash point of the library, at a random moment, during
//!   recovery, beside another process.
//! - The [`oracle`] compares the victims' output with what the stand-in received.
//! - The [`soak`] inflicts faults of all kinds on two processes for minutes or hours.
//! - [`crash_reports`] is about processes that die of panics and faults, and what the next start reports.
//!
//! The oracle checks that every acknowledged event is at the stand-in with its properties; that no refused event is;
//! that at most one event per thread arrived without having been acknowledged, the one whose acknowledgement the kill
//! cut off; that an event that arrived twice has the same uuid, name, distinct id, timestamp and properties; and that
//! the ledger balances and agrees with the stand-in.
//!
//! `cargo test` runs a short set of everything; `cargo run -p crash-tests --release --bin runner -- --kills 500` the
//! long one. Both fail if a crash point was not reached by any run.
//!
//! The power is cut in [`power`], on file systems of their own (`cargo run -p crash-tests --release --bin powercut`).

pub mod crash_reports;
mod fixture;
mod ledger;
pub mod oracle;
mod pages;
pub mod power;
pub mod protocol;
pub mod scenario;
mod setup;
pub mod soak;
mod victim_run;

pub use fixture::Fixture;
pub use ledger::Ledger;
pub use setup::Setup;
pub use victim_run::{RunEnd, RunningVictim, VictimRun};

/// Why a scenario failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The environment does not work: a process cannot be started, a file cannot be read.
    #[error("the test environment failed: {what}")]
    Environment {
        /// The operation that failed.
        what: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A victim behaved in another way than the scenario needs, such as ending on its own.
    #[error("{0}")]
    Victim(String),
    /// The oracle's findings: the library broke a guarantee.
    #[error("the library broke a guarantee:\n{}", .0.join("\n"))]
    Guarantee(Vec<String>),
}

impl Failure {
    /// Wraps an error of the system, for `map_err`.
    pub(crate) fn environment(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Environment { what, source }
    }
}
