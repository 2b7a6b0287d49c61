//! Real processes, really killed, judged by an oracle.
//!
//! Purpose: to show that an event whose `capture` returned `Accepted` reaches PostHog, whatever moment the process dies at.
//!
//! The parts:
//! - the *victim* (a program of this package) captures through the real client and says `acked` on its stdout only after
//!   `capture` has returned ([`protocol`]);
//! - a [`Life`] is one run of the victim; a [`Stage`] is a queue directory and a PostHog stand-in on which lives follow each
//!   other or run side by side;
//! - a [`scenario`] plays lives on a stage and kills them: at a named crash point of the library, at a random moment, during
//!   recovery, beside another process;
//! - the [`oracle`] compares what the victims said with what the stand-in has;
//! - [`last_words`] are about processes that die of themselves, by panics and faults, and what the next start tells of them.
//!
//! What the oracle holds: every acked event is at the stand-in, with the properties it was captured with; an event that was
//! refused is not; what arrived without having been acked is at most the one event per thread whose acknowledgement the kill
//! cut off; an event that arrived twice has the same uuid, name, distinct id, timestamp and properties; the ledger balances,
//! and its `delivered` is what the stand-in counted.
//!
//! Operations: `cargo test` runs a short set of everything; `cargo run -p crash-tests --release --bin runner -- --kills 500`
//! the long one. A crash point that no life reached fails both.
//!
//! Limits: this kills processes, not machines. Power cuts are simulated elsewhere, at the disk seam.

pub mod last_words;
mod ledger;
mod life;
pub mod oracle;
mod pages;
pub mod protocol;
pub mod scenario;
mod setup;
mod stage;

pub use ledger::Ledger;
pub use life::{Death, Life, Running};
pub use setup::Setup;
pub use stage::Stage;

/// Why a scenario failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The stage itself did not work: a process that cannot be started, a file that cannot be read.
    #[error("the stage did not hold: {what}")]
    Stage {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A victim did something else than the scenario needs, such as ending by itself.
    #[error("{0}")]
    Victim(String),
    /// The oracle's findings: the library broke its promise.
    #[error("the promise is broken:\n{}", .0.join("\n"))]
    Promise(Vec<String>),
}

impl Failure {
    /// For `map_err` on whatever the stage needs from the system.
    pub(crate) fn stage(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Stage { what, source }
    }
}
