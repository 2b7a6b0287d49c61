//! How results are written: tables, JSON, colours, progress bars, questions.
//!
//! Results go to standard output, everything else (progress, questions, errors) to standard error. A colour or a
//! progress bar appears only on a terminal.
//!
//! What is printed comes from programs, servers and file names, so nothing of it may reach a terminal as a command:
//! [`visible`] writes such characters as escapes, and every line for people passes it.

use std::borrow::Cow;
use std::error::Error;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use posthog::inspect::InspectError;
use serde::{Serialize, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};
use terminal_size::{Height, Width, terminal_size_of};

use crate::{Failure, quoted};

/// The heading of the options of every command.
const FOR_ALL: &str = "Options of all commands";

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Write JSON: one object a line, with the keys that docs/operations.md names
    #[arg(long, global = true, help_heading = FOR_ALL)]
    json: bool,
    /// Do not ask before what cannot be undone
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

    /// Writes lines for people. A line of more than 80 columns continues on the next, where a word that is longer, a
    /// path for example, stays whole, so that it can be copied.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        for line in self.safe_lines(line.as_ref()) {
            let written = writeln!(self.out, "{line}");
            self.written(written)?;
        }
        Ok(())
    }

    fn safe_lines(&self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for line in text.split('\n') {
            let line = escaped(line, self.has_colours().then_some(&COLOURS));
            let indent = line.len() - line.trim_start_matches(' ').len();
            lines.extend(if columns(&line) > usize::from(WIDTH) {
                wrap(&line, 0, indent + 2)
            } else {
                vec![line.into()]
            });
        }
        lines
    }

    /// Writes a command on a line of its own, as long as it is, so that it can be copied. The program's name is added.
    pub(crate) fn command(&mut self, words: &str) -> Result<(), Failure> {
        self.verbatim(&format!("    posthog-queue {words}"))
    }

    /// Writes text that is copied as a whole, JSON for example, in lines as long as they are.
    pub(crate) fn verbatim(&mut self, text: &str) -> Result<(), Failure> {
        for line in text.split('\n') {
            let written = writeln!(self.out, "{}", escaped(line, None));
            self.written(written)?;
        }
        Ok(())
    }

    /// Writes one object as a line of JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut line = Vec::new();
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut line, VisibleJson))?;
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
        table.add_rows(rows.iter().map(|row| row.iter().map(|cell| escaped(cell, Some(&COLOURS)))));
        // Spaces at the end of a line would only make copied text wider.
        table.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Writes text for programs as it is.
    pub(crate) fn raw(&mut self, text: &str) -> Result<(), Failure> {
        if self.is_terminal() {
            return self.verbatim(text);
        }
        let written = self.out.write_all(text.as_bytes());
        self.written(written)
    }

    /// Whether text can be shown in place of earlier text.
    pub(crate) fn is_screen(&self) -> bool {
        self.is_terminal() && can_move()
    }

    /// Shows lines in place of what is on the screen, as many as there is room for.
    pub(crate) fn screen(&mut self, lines: &[String]) -> Result<(), Failure> {
        let (Width(wide), Height(high)) = terminal_size_of(io::stdout()).unwrap_or((Width(WIDTH), Height(24)));
        let lines = lines.iter().flat_map(|line| self.safe_lines(line)).collect();
        let written = write!(self.out, "\u{1b}[H\u{1b}[J");
        self.written(written)?;
        for line in that_fit(lines, usize::from(wide.max(1)), usize::from(high)) {
            let written = writeln!(self.out, "{line}");
            self.written(written)?;
        }
        Ok(())
    }

    fn has_colours(&self) -> bool {
        self.is_screen() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// The text in the colour of its meaning, on a terminal only.
    pub(crate) fn toned(&self, tone: Tone, text: &str) -> String {
        let [good, warning, bad, end] = COLOURS;
        let begin = match tone {
            Tone::Good => good,
            Tone::Warning => warning,
            Tone::Bad => bad,
        };
        let text = visible(text);
        if self.has_colours() { format!("{begin}{text}{end}") } else { text.into_owned() }
    }

    /// A progress bar for work of `total` units, with rate and time left. Appears after a second, on a terminal only.
    pub(crate) fn progress(&self, what: &str, total: u64, unit: Unit) -> Progress {
        let shown = !self.args.quiet && io::stderr().is_terminal() && can_move();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let (position, rate) = match unit {
            Unit::Bytes => ("{bytes}/{total_bytes}", "{bytes_per_sec}"),
            Unit::Events => ("{human_pos}/{human_len}", "{per_sec}"),
        };
        let is_wide = terminal_size_of(io::stderr()).is_none_or(|(Width(wide), _)| wide >= WIDTH);
        let template = match is_wide {
            true => format!("{{msg:18}} {{wide_bar}} {position} {rate} {{eta}} left"),
            false => "{msg} {percent}%, {eta} left".to_owned(),
        };
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
        write!(error, "{} [y/N] ", visible(question))?;
        error.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// Writes a note to standard error, also with `--json`, on one line.
    pub(crate) fn note(&mut self, text: &str) {
        // If it fails, `finish` says so.
        let _ = self.flush();
        // There is nobody else to report to.
        let _ = writeln!(io::stderr(), "{}", visible(text));
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
        if let Some(InspectError::Nameless { path }) = failure.downcast_ref() {
            self.note(&format!("Run: posthog-queue repair --host URL --key KEY {}", quoted(path.as_os_str())));
        }
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

/// The codes of the tones, and the one that ends them.
const COLOURS: [&str; 4] = ["\u{1b}[1;32m", "\u{1b}[1;33m", "\u{1b}[1;31m", "\u{1b}[0m"];

/// Whether a terminal obeys codes at all. Progress bars, colours and screens need that.
fn can_move() -> bool {
    std::env::var_os("TERM").is_none_or(|name| name != "dumb")
}

/// Whether a terminal acts on the character, or shows other characters in another order because of it.
fn is_hidden(c: char) -> bool {
    let is_direction =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_direction || matches!(c, '\u{2028}' | '\u{2029}')
}

/// The text on one line, with nothing that a terminal acts on: such characters are written as JSON writes them (`\n`,
/// `\u001b`). Every text that is not of this program passes here before people see it.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, None)
}

/// [`visible`], except for these codes.
fn escaped<'a>(text: &'a str, codes: Option<&[&str]>) -> Cow<'a, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest) = (String::with_capacity(text.len() + 16), text);
    while let Some(c) = rest.chars().next() {
        let code = codes.and_then(|codes| codes.iter().find(|code| rest.starts_with(**code)));
        let taken = match (code, c) {
            (Some(code), _) => {
                out.push_str(code);
                code.len()
            }
            (None, '\n') => push(&mut out, "\\n"),
            (None, '\r') => push(&mut out, "\\r"),
            (None, '\t') => push(&mut out, "\\t"),
            (None, c) => {
                // None of them needs more than four digits.
                if is_hidden(c) {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)))
                } else {
                    out.push(c)
                }
                c.len_utf8()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    Cow::Owned(out)
}

/// Appends the escape of one byte.
fn push(out: &mut String, escape: &str) -> usize {
    out.push_str(escape);
    1
}

/// A path for people.
pub(crate) fn shown(path: &Path) -> String {
    visible(&path.to_string_lossy()).into_owned()
}

/// A path as JSON; what is not UTF-8 in it is replaced, as [`shown`] replaces it.
pub(crate) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Paths as JSON: see [`lossy`].
pub(crate) fn lossy_each<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// JSON without characters that a terminal acts on: those that JSON does not require to be escaped are escaped too.
struct VisibleJson;

impl Formatter for VisibleJson {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        CompactFormatter.write_string_fragment(writer, &visible(fragment))
    }

    fn write_raw_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        // In valid JSON of one line, these characters are parts of strings.
        CompactFormatter.write_raw_fragment(writer, &visible(fragment))
    }
}

/// The columns that a text takes on a terminal.
fn columns(text: &str) -> usize {
    let codes = text.matches('\u{1b}').count();
    // Of the codes, the one that ends a tone is shorter.
    let ends = text.matches(COLOURS[3]).count();
    let ends = ends * (COLOURS[0].len() - COLOURS[3].len());
    (text.chars().count() + ends).saturating_sub(codes * COLOURS[0].len())
}

/// The lines that fit on a screen of `wide` columns and `high` lines, of which the last one stays empty; if not all of
/// them do, the last says so.
fn that_fit(lines: Vec<String>, wide: usize, high: usize) -> Vec<String> {
    let rows = |line: &String| columns(line).div_ceil(wide).max(1);
    let room = high.saturating_sub(1);
    let total: usize = lines.iter().map(rows).sum();
    if total <= room {
        return lines;
    }
    let (mut used, mut shown) = (1, Vec::new());
    let all = lines.len();
    for line in lines {
        used += rows(&line);
        if used > room {
            break;
        }
        shown.push(line);
    }
    let more: String = format!("... {} more: enlarge the window", all - shown.len()).chars().take(wide).collect();
    shown.push(more);
    shown
}

/// The lines of a text of at most 80 columns, the first indented by `first` and the others by `others`. A word that is
/// longer, a path for example, stays whole, so that it can be copied.
pub(crate) fn wrapped(text: &str, first: usize, others: usize) -> Vec<String> {
    wrap(&visible(text), first, others)
}

fn wrap(text: &str, first: usize, others: usize) -> Vec<String> {
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
        if !is_empty && columns(&line) + columns(word.trim_end()) > usize::from(WIDTH) {
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
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{}", visible(text))));
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

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn a_terminal_acts_on_nothing_that_is_visible() {
        assert!(matches!(visible("plain \u{e9} \u{65e5}"), Cow::Borrowed(_)));
        let text = "a\u{1b}[31m\n\r\t\u{0}\u{7f}\u{9b}\u{202e}\u{2066}\u{200f}\u{2028}z";
        assert_eq!(visible(text), r"a\u001b[31m\n\r\t\u0000\u007f\u009b\u202e\u2066\u200f\u2028z");
        let coloured = format!("{}a\u{1b}[2J{}", COLOURS[1], COLOURS[3]);
        assert_eq!(escaped(&coloured, Some(&COLOURS)), format!("{}a\\u001b[2J{}", COLOURS[1], COLOURS[3]));
    }

    #[test]
    fn json_says_the_same_in_characters_that_are_shown() {
        let text = "\"\\\u{1b}\u{9b}\u{7f}\u{202e}\n\u{e9}";
        let raw = RawValue::from_string("{\"\u{9b}\":\"\u{202e}\"}".to_owned()).unwrap();
        let mut out = Vec::new();
        let value = (text, &raw);
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, VisibleJson)).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(!out.contains(is_hidden), "{out:?}");
        let read: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&read[0], &read[1]["\u{9b}"]), (&text.into(), &"\u{202e}".into()));
    }

    #[test]
    fn a_screen_has_no_more_rows_than_the_window() {
        let lines: Vec<_> = ["a".repeat(30), String::new(), "b".repeat(5), "c".into()].to_vec();
        let rows = |lines: &[String], wide| lines.iter().map(|line| columns(line).div_ceil(wide).max(1)).sum::<usize>();
        assert_eq!(that_fit(lines.clone(), 10, 7), lines, "six rows, and one for the cursor");
        for (wide, high) in [(10, 6), (10, 5), (10, 2), (3, 4), (1, 3), (80, 3)] {
            let shown = that_fit(lines.clone(), wide, high);
            assert!(rows(&shown, wide) < high || wide < 5, "{wide} {high}: {shown:?}");
            assert!(shown.last().unwrap().starts_with(&"..."[..wide.min(3)]), "{shown:?}");
        }
        let toned = format!("{}abc{} {}d{}", COLOURS[0], COLOURS[3], COLOURS[2], COLOURS[3]);
        assert_eq!(columns(&toned), 5);
    }

    #[test]
    fn a_long_path_stays_whole_on_a_line_of_its_own() {
        let path = format!("/{}", "p".repeat(90));
        let lines = wrapped(&format!("Kept: {path} and more"), 2, 4);
        assert_eq!(lines, ["  Kept:".to_owned(), format!("    {path}"), "    and more".to_owned()]);
    }
}
