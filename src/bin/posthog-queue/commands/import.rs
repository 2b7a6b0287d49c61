//! `import`: events of a file into a new queue.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use posthog::inspect::{self, BadLine, ImportOptions};

use crate::events::{events, number};
use crate::files::{self, InFile};
use crate::output::{Output, Unit, visible};
use crate::{Failure, Verdict, quoted};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Nothing is sent before all of the file is in the queue. Then a program of the project that runs delivers it when its own \
queue is empty, or its next start does, or `posthog-queue drain`. An import that was interrupted goes on when it is \
repeated; no event is lost or doubled. The same content is imported once, unless --again is given.")]
pub(crate) struct Args {
    /// JSON lines, one event each, or PostHog's batch object; also compressed with gzip or zstd; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The directory of queues (`Config::queue_dir`)
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The host that the events are for
    #[arg(long, value_name = "URL")]
    host: String,
    /// The project key that the events are for (phc_...)
    #[arg(long, value_name = "KEY")]
    key: String,
    /// The lane
    #[arg(long, value_parser = ["analytics", "ai"], default_value = "analytics")]
    lane: String,
    /// Pass over lines that are no events
    #[arg(long)]
    skip_bad: bool,
    /// Import content that was imported before
    #[arg(long)]
    again: bool,
    /// Remove what an unfinished import has imported, of another file, of this one before it was changed, or damaged; it
    /// is still in that file
    #[arg(long)]
    restart: bool,
}

/// The most bad lines that are printed.
const BAD_SHOWN: u64 = 20;

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let dir = args.dir.map_or_else(inspect::default_queue_dir, Ok)?;
    if args.restart && !output.confirm("Remove what an unfinished import has imported?")? {
        return Err("nothing was changed".into());
    }
    let mut options = ImportOptions::new(args.key, args.host, dir);
    options.lane = args.lane;
    (options.skip_bad, options.again, options.restart) = (args.skip_bad, args.again, args.restart);
    let InFile { mut input, bytes, position } = files::open(&args.file)?;
    let bar = output.progress("Importing", bytes, Unit::Bytes);
    let mut said = 0;
    let imported = inspect::import(&mut *input, &options, &mut |_| bar.at(position.get()), &mut |bad: &BadLine| {
        said += 1;
        if said <= BAD_SHOWN {
            let element = bad.element.map(|at| format!(", event {at}")).unwrap_or_default();
            output.note(&format!("Line {}{element}: {}", bad.line, bad.why));
        }
    });
    drop(bar);
    if said > BAD_SHOWN {
        output.note(&format!("... and {} more bad lines", number(said - BAD_SHOWN)));
    }
    let imported = imported?;
    imported.notes.iter().for_each(|note| output.note(&format!("Note: {note}")));
    if output.is_json() {
        output.json(&imported)?;
    } else if imported.was_imported {
        output.line("Nothing to do: this content was imported before (--again imports it once more).")?;
    } else if let Some(queue) = &imported.queue {
        let resumed = match imported.resumed {
            0 => String::new(),
            resumed => format!(" ({} by an earlier attempt)", number(resumed)),
        };
        output.line(format!("Imported {}{resumed}.", events(imported.events)))?;
        output.line("A running program of this project sends them when its own queue is empty;")?;
        output.line("otherwise its next start does, or this command:")?;
        output.command(&format!("drain {}", quoted(queue.as_os_str())))?;
    } else {
        output.line("The file contains no event; nothing was imported.")?;
    }
    if imported.bad_lines > 0 && !output.is_json() {
        let lines = if imported.bad_lines == 1 { "line that is no event" } else { "lines that are no events" };
        output.line(format!("Passed over: {} {lines}.", number(imported.bad_lines)))?;
    }
    if !imported.left_out.is_empty() && !imported.was_imported && !output.is_json() {
        let fields = imported.left_out.iter().map(|(name, count)| format!("{} ({})", visible(name), number(*count)));
        let fields = fields.collect::<Vec<_>>().join(", ");
        output.line(format!("Left out, because a queue has no place for it: {fields}."))?;
    }
    let is_fine = imported.bad_lines == 0 && imported.notes.is_empty();
    Ok(if is_fine { Verdict::Fine } else { Verdict::Found })
}
