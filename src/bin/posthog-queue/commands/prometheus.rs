//! `metrics`: the queues as metrics, to standard output or to a file for node_exporter's textfile collector.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use posthog::inspect;

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
    /// collector of node_exporter, whose files end in .prom
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, output: &mut Output) -> Result<Verdict, Failure> {
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
    match &args.output {
        None => output.line(text.trim_end_matches('\n'))?,
        Some(path) => {
            replace(path, &text).map_err(|error| format!("{}: {error}; it was not changed", path.display()))?
        }
    }
    Ok(verdict)
}

/// Puts the text in place of a file in one step.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    // A collector reads what ends in `.prom`, so it does not see this one.
    name.push(format!(".{}.new", std::process::id()));
    let unfinished = path.with_file_name(name);
    let written = write_new(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    // Whatever the umask is.
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.write_all(text.as_bytes())
}
