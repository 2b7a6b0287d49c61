//! `metrics`: the queues as metrics, to standard output or to a file for node_exporter's textfile collector.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use posthog::inspect;

use crate::files::{self, Replacement};
use crate::output::Output;
use crate::target::Target;
use crate::{Failure, Verdict};

/// Everybody may read it: the collector runs as another user.
const MODE: u32 = 0o644;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Write to FILE (mode 0644) instead, in one step: a reader finds the old text or the new one. For the textfile
    /// collector of node_exporter, whose files end in .prom. A regular file or a new one, outside of queues
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &mut Output) -> Result<Verdict, Failure> {
    let file = args.output.as_deref().filter(|path| !files::is_standard(path));
    // Before the queues are read: a mistake is reported at once.
    file.map_or(Ok(()), files::check_target)?;
    let (mut statuses, mut verdict) = (Vec::new(), Verdict::Fine);
    for queue in args.target.queues()? {
        match queue.status() {
            Ok(status) => statuses.push(status),
            Err(error) => {
                // The other queues are still worth a graph.
                output.failed(&error);
                verdict = Verdict::CouldNot;
            }
        }
    }
    let text = inspect::to_prometheus(&statuses);
    match file {
        None => output.raw(&text)?,
        Some(path) => {
            // A collector reads what ends in `.prom`, so it does not see an unfinished one.
            let mut file = Replacement::begin(path, MODE)?;
            file.write(&text)?;
            file.complete()?;
        }
    }
    Ok(verdict)
}
