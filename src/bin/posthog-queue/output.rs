//! How results are written: tables, JSON, colours, progress bars, questions.
//!
//! Results go to standard output, everything else (progress, questions, errors) to standard error. A colour or a
//! progress bar appears only on a terminal.

use std::error::Error;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::time::Duration;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::Failure;

/// The heading of the options of every command.
const FOR_ALL: &str = "Options of all commands";

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Write JSON: one object a line, with the keys that docs/operations.md names
    #[arg(long, global = true, help_heading = FOR_ALL)]
    json: bool,
    /// Do what cannot be undone without asking
    #[arg(long, short, global = true, help_heading = FOR_ALL)]
    yes: bool,
    /// No progress bars
    #[arg(long, short, global = true, help_heading = FOR_ALL)]
    quiet: bool,
}

/// Where results go.
#[derive(Debug)]
pub(crate) struct Output {
    args: OutputArgs,
    out: BufWriter<StdoutLock<'static>>,
    /// Something that was to be written could not be, whatever became of the failure.
    unwritten: Option<io::ErrorKind>,
}

/// Standard output could not be written to. Every command that writes results ends with it; see `main` for the exit
/// status.
#[derive(Debug, thiserror::Error)]
#[error("standard output could not be written to")]
pub(crate) struct Unwritten(#[source] pub(crate) io::Error);

/// Whether the reader of standard output has ended: `posthog-queue list | head`. There is nobody to tell.
pub(crate) fn is_closed_pipe(failure: &(dyn Error + 'static)) -> bool {
    failure.downcast_ref::<Unwritten>().is_some_and(|unwritten| unwritten.0.kind() == io::ErrorKind::BrokenPipe)
}

/// The meaning of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Warning,
    Bad,
}

/// The width that output is made for, on a terminal of that width or more and elsewhere.
const WIDTH: u16 = 80;

impl Output {
    pub(crate) fn new(args: OutputArgs) -> Self {
        Self { args, out: BufWriter::new(io::stdout().lock()), unwritten: None }
    }

    /// Whether JSON is asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.args.json
    }

    /// Whether standard output is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// The failure of a write to standard output, if it is one.
    fn written(&mut self, result: io::Result<()>) -> Result<(), Failure> {
        result.map_err(|error| {
            self.unwritten = Some(error.kind());
            Unwritten(error).into()
        })
    }

    /// Writes one line.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        let written = writeln!(self.out, "{}", line.as_ref());
        self.written(written)
    }

    /// Writes one object as a line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        let written = self.out.write_all(&line);
        self.written(written)
    }

    /// Writes rows under headings, fit for 80 columns.
    pub(crate) fn table(&mut self, headings: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        for line in Self::table_lines(headings, rows) {
            self.line(line)?;
        }
        Ok(())
    }

    /// The lines of a table.
    pub(crate) fn table_lines(headings: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        if !headings.is_empty() {
            table.set_header(headings);
        }
        table.add_rows(rows);
        // Spaces at the end of a line would only make copied text wider.
        table.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Writes text as it is, without the end of a line.
    pub(crate) fn raw(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.out.write_all(text.as_bytes());
        self.written(written)
    }

    /// The text in the colour of its meaning, on a terminal only.
    pub(crate) fn toned(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        let is_wanted = self.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if is_wanted { format!("\u{1b}[1;{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// A progress bar for work of `total` units, with rate and time left. Appears after a second, on a terminal only.
    pub(crate) fn progress(&self, what: &str, total: u64, unit: Unit) -> Progress {
        let shown = !self.args.quiet && io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let (position, rate) = match unit {
            Unit::Bytes => ("{bytes}/{total_bytes}", "{bytes_per_sec}"),
            Unit::Events => ("{human_pos}/{human_len}", "{per_sec}"),
        };
        let template = format!("{{msg:18}} {{wide_bar}} {position} {rate} {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Progress { bar, shown, began: std::time::Instant::now() }
    }

    /// Asks before something that cannot be undone. `--yes` answers; without it and without a terminal the answer is
    /// no.
    pub(crate) fn confirm(&mut self, question: &str) -> Result<bool, Failure> {
        if self.args.yes {
            return Ok(true);
        }
        self.flush()?;
        if !io::stdin().is_terminal() {
            return Err(format!("{question} This cannot be undone: repeat the command with --yes").into());
        }
        let mut error = io::stderr().lock();
        write!(error, "{question} [y/N] ")?;
        error.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Writes a note to standard error, also with `--json`.
    pub(crate) fn note(&mut self, text: &str) {
        // If it fails, `finish` says so.
        let _ = self.flush();
        // There is nobody else to report to.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Writes a failure with its sources; nothing if the reader of standard output has ended.
    pub(crate) fn failed(&mut self, failure: &(dyn Error + 'static)) {
        if is_closed_pipe(failure) {
            return;
        }
        let mut text = format!("posthog-queue: {failure}");
        let mut source = failure.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        self.note(&text);
    }

    /// Makes what was written visible now, as `--watch` needs it.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        let written = self.out.flush();
        self.written(written)
    }

    /// Writes what is still buffered. Fails if anything could not be written.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.flush()?;
        self.unwritten.map_or(Ok(()), |kind| Err(Unwritten(kind.into()).into()))
    }
}

/// The lines of a text of at most 80 columns, the first indented by `first` and the others by `others`. A word that is
/// longer, a path for example, stays whole, so that it can be copied.
pub(crate) fn wrapped(text: &str, first: usize, others: usize) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), " ".repeat(first));
    let mut is_empty = true;
    // The beginning of a text may be a label with its own spaces.
    let label = text.len() - text.trim_start().len();
    line.push_str(text.get(..label).unwrap_or_default());
    for word in text.split_inclusive(' ') {
        if word.trim().is_empty() {
            if !is_empty {
                line.push_str(word);
            }
            continue;
        }
        if !is_empty && line.chars().count() + word.trim_end().chars().count() > usize::from(WIDTH) {
            lines.push(line.trim_end().to_owned());
            line = " ".repeat(others);
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

/// What a progress bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Events,
}

/// A progress bar, removed when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    shown: bool,
    began: std::time::Instant,
}

/// Work that takes less than this shows no bar.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

impl Progress {
    /// Moves the bar to `position`.
    pub(crate) fn at(&self, position: u64) {
        if self.shown && self.bar.is_hidden() && self.began.elapsed() >= SHOWN_AFTER {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(position);
    }

    /// Changes the total of the work.
    pub(crate) fn of(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Writes a note to standard error, above the bar.
    pub(crate) fn note(&self, text: &str) {
        // There is nobody else to report to.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{text}")));
    }

    /// Moves the bar to `position` of `total`, which may turn out to be another than was thought.
    pub(crate) fn at_of(&self, position: u64, total: u64) {
        self.bar.set_length(total.max(position));
        self.at(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// `1 event`, `62,763 events`. The noun is given in the singular, and its plural ends in `s`.
pub(crate) fn count(quantity: u64, noun: &str) -> String {
    let digits = quantity.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let plural = if quantity == 1 { "" } else { "s" };
    format!("{text} {noun}{plural}")
}

/// `1 event is`, `62,763 events are`.
pub(crate) fn are(quantity: u64) -> String {
    format!("{} {}", count(quantity, "event"), if quantity == 1 { "is" } else { "are" })
}
