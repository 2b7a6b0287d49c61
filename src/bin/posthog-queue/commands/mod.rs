//! The commands.

use clap::Subcommand;

use crate::output::Output;
use crate::{Failure, Verdict};

mod status;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what is in the queues, whether it leaves, and if not, why
    Status(status::Args),
}

impl Command {
    pub(crate) fn run(self, output: &mut Output) -> Result<Verdict, Failure> {
        match self {
            Command::Status(args) => status::run(args, output),
        }
    }
}
