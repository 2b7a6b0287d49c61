//! `posthog-queue`: looks into a queue, checks it, repairs it and moves it. `docs/operations.md` is its manual.
//!
//! Each command is a file in `commands/`, which stands on `posthog::inspect`. What they share is here: which queues a
//! command is about (`target.rs`), how results are written (`output.rs`), and the exit status.

mod commands;
mod events;
mod files;
mod output;
mod target;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use clap::Parser;
use posthog::inspect::InspectError;

use commands::Command;
use output::{Output, visible};

/// Looks into the queues of programs that use posthog-durable: why events do not leave, whether the files are sound, and
/// how to repair, move, deliver or forget what is in them.
#[derive(Debug, Parser)]
#[command(name = "posthog-queue", version, max_term_width = 80, after_help = EXIT_STATUS)]
struct Args {
    #[command(flatten)]
    output: output::OutputArgs,
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  all is well, or the command did what it was asked for
  1  the command found something: events that are stuck, damage, a loss
  2  the command could not be carried out; nothing was changed unless it says so
  141  what reads standard output has ended (`| head`) before all was written

Without a directory, commands use the one that a program with the same environment would use: POSTHOG_QUEUE_DIR, or \
`posthog` below STATE_DIRECTORY, XDG_STATE_HOME or ~/.local/state.";

/// What a command found: its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// All is well. Exit status 0.
    Fine,
    /// Something that an operator should look at. Exit status 1.
    Found,
    /// Status 2, where a command went on after a part of it failed.
    CouldNot,
}

/// Why a command could not be carried out. Printed with its sources; exit status 2.
type Failure = Box<dyn std::error::Error>;

/// The exit status that a shell reports of a process that SIGPIPE has ended, as it ends most tools whose output nobody
/// reads. This one must not end at any write: it may be about to remove a file.
const CLOSED_PIPE: u8 = 141;

fn main() -> ExitCode {
    let args = Args::parse();
    let mut output = Output::new(args.output);
    match args.command.run(&mut output).and_then(|verdict| output.finish().map(|()| verdict)) {
        Ok(verdict) => ExitCode::from(verdict as u8),
        // It is quiet, but it has not done all that it was asked for.
        Err(failure) if output::is_closed_pipe(failure.as_ref()) => ExitCode::from(CLOSED_PIPE),
        Err(failure) => {
            output.failed(failure.as_ref());
            advise(failure.as_ref(), &mut output);
            ExitCode::from(Verdict::CouldNot as u8)
        }
    }
}

/// The command that works, where another user has to run it.
fn advise(failure: &(dyn std::error::Error + 'static), output: &mut Output) {
    let Some(InspectError::OtherUser { user, .. }) = failure.downcast_ref() else { return };
    // `sudo -u` takes a number behind a `#`.
    let user = user.strip_prefix("user ").map_or_else(|| user.clone(), |number| format!("'#{number}'"));
    let command: Vec<_> = std::env::args_os().skip(1).map(|arg| quoted(&arg)).collect();
    output.note(&format!("Run: sudo -u {user} posthog-queue {}", command.join(" ")));
}

/// The argument as a shell reads it back.
pub(crate) fn quoted(arg: &OsStr) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(byte);
    match arg.to_str() {
        Some(text) if !text.is_empty() && text.as_bytes().iter().all(is_plain) => text.to_owned(),
        Some(text) if visible(text) == text => format!("'{}'", text.replace('\'', "'\\''")),
        // Bytes that are no text, or that a terminal would act on.
        _ => {
            let escape = |byte: &u8| match byte {
                byte if is_plain(byte) => char::from(*byte).to_string(),
                byte => format!("\\x{byte:02x}"),
            };
            format!("$'{}'", arg.as_bytes().iter().map(escape).collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_quoted_so_that_a_shell_reads_it_back() {
        for (arg, expected) in [
            (&b"/var/lib/a_b-1.5"[..], "/var/lib/a_b-1.5"),
            (b"", "''"),
            (b"it's $5", "'it'\\''s $5'"),
            (b"/tmp/\xff x", "$'/tmp/\\xff\\x20x'"),
            (b"/tmp/\x1b[2J", "$'/tmp/\\x1b\\x5b2J'"),
        ] {
            assert_eq!(quoted(OsStr::from_bytes(arg)), expected);
        }
    }
}
