//! The commands.

use clap::Subcommand;

use crate::output::Output;
use crate::{Failure, Verdict};

mod crash;
mod prove;
mod status;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what is in the queues, whether it leaves, and if not, why
    Status(status::Args),
    /// Measures a directory's disk, and kills a process on it again and again: is anything lost there?
    Prove(prove::Args),
    /// Shows crash reports that wait to be sent
    Crash(crash::Args),
    /// The process that `prove` kills
    #[command(name = "prove-victim", hide = true)]
    ProveVictim(prove::VictimArgs),
}

impl Command {
    pub(crate) fn run(self, output: &mut Output) -> Result<Verdict, Failure> {
        match self {
            Command::Status(args) => status::run(args, output),
            Command::Prove(args) => prove::run(args, output),
            Command::Crash(args) => crash::run(args, output),
            Command::ProveVictim(args) => prove::run_victim(&args),
        }
    }
}
