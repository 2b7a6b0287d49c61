//! The commands.

use clap::Subcommand;

use crate::output::Output;
use crate::{Failure, Verdict};

mod crash;
mod dead;
mod drain;
mod export;
mod forget;
mod import;
mod list;
mod prometheus;
mod prove;
mod repair;
mod show;
mod status;
mod status_text;
mod verify;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what is in the queues, whether it leaves, and if not, why
    Status(status::Args),
    /// Measures a directory's disk, and kills a process on it again and again: is anything lost there?
    ///
    /// Measures the disk, kills a process with SIGKILL while it captures there, again and again, and simulates power
    /// cuts. Writes only to a new directory below DIR, which is removed afterwards, also when the command is interrupted.
    /// Sends nothing. Needs 64 MiB of space and less than a minute.
    Prove(prove::Args),
    /// Shows crash reports that wait to be sent
    Crash(crash::Args),
    /// The process that `prove` kills
    #[command(name = "prove-victim", hide = true)]
    ProveVictim(prove::VictimArgs),
    /// Lists the events that wait, and those that PostHog has rejected
    List(list::Args),
    /// Shows whole events as JSON
    Show(show::Args),
    /// Writes events to a file in PostHog's batch format; they stay in the queue
    Export(export::Args),
    /// Reads events of a file into a new queue of a project
    Import(import::Args),
    /// Delivers the queues that no process has open, to their own host and key or to others
    Drain(drain::Args),
    /// Checks every checksum, row and count, and says what is damaged and what can be saved
    Verify(verify::Args),
    /// Saves what can be read of damaged queues; the damaged files are kept
    Repair(repair::Args),
    /// Shows, retries or discards events that PostHog rejected for good
    Dead(dead::Args),
    /// Removes a person from the queues
    Forget(forget::Args),
    /// Writes metrics of the queues for Prometheus
    Metrics(prometheus::Args),
}

impl Command {
    pub(crate) fn run(self, output: &mut Output) -> Result<Verdict, Failure> {
        match self {
            Command::Status(args) => status::run(&args, output),
            Command::Metrics(args) => prometheus::run(&args, output),
            Command::Prove(args) => prove::run(args, output),
            Command::Crash(args) => crash::run(args, output),
            Command::ProveVictim(args) => prove::run_victim(&args),
            Command::List(args) => list::run(args, output),
            Command::Show(args) => show::run(args, output),
            Command::Export(args) => export::run(args, output),
            Command::Import(args) => import::run(args, output),
            Command::Drain(args) => drain::run(args, output),
            Command::Verify(args) => verify::run(args, output),
            Command::Repair(args) => repair::run(args, output),
            Command::Dead(args) => dead::run(args, output),
            Command::Forget(args) => forget::run(args, output),
        }
    }
}
