//! A stack that an error captured itself, parsed from its text: the format of std's `Backtrace`.
//!
//! A frame has two lines, `  3: my_app::run` and `             at ./src/main.rs:7:5`, the second only if the file is
//! known. A function that is inlined into a frame has no number of its own.

use std::collections::VecDeque;
#[cfg(any(feature = "eyre", test))]
use std::fmt::Debug;
use std::fmt::Display;

use super::chain::print;
use crate::record::stack::{NEAREST_FRAMES, OUTERMOST_FRAMES};
use crate::record::symbols::crate_of;
use crate::sys::limits::beginning;

/// Maximum bytes read of a text.
const TEXT_READ: usize = 256 * 1024;
/// The heading before the stack in the Debug text of an eyre report.
#[cfg(any(feature = "eyre", test))]
const EYRE_HEADING: &str = "Stack backtrace:";
/// Maximum bytes kept of a function or file name.
const NAME_KEPT: usize = 512;
/// Crates whose frames at the beginning of a stack are those that captured it.
const CAPTURING: [&str; 6] = ["anyhow", "backtrace", "color_eyre", "eyre", "stable_eyre", "std"];

/// A parsed stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PrintedStack {
    /// Innermost first.
    pub(super) frames: Vec<Frame>,
}

/// A frame. The file is given with its line, if known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) function: String,
    pub(super) file: Option<(String, Option<u64>)>,
}

impl PrintedStack {
    /// The stack in a `Backtrace`. Formatting it looks up all names, during this call.
    pub(crate) fn of(backtrace: &dyn Display) -> Option<Self> {
        let (text, _) = print(TEXT_READ, format_args!("{backtrace}"));
        Self::parse(&text)
    }

    /// The stack that a report prints below its messages; the report provides no other access to it.
    #[cfg(any(feature = "eyre", test))]
    pub(crate) fn below(report: &dyn Debug) -> Option<Self> {
        let (text, _) = print(TEXT_READ, format_args!("{report:?}"));
        Self::parse(text.split_once(EYRE_HEADING)?.1)
    }

    /// Parses the text of a `Backtrace`. `None` if it has no frames.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut outermost: VecDeque<Frame> = VecDeque::new();
        let mut current: Option<Frame> = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(place) = line.strip_prefix("at ") {
                if let Some(frame) = &mut current {
                    frame.file.get_or_insert_with(|| file_of(place));
                }
                continue;
            }
            let Some(function) = function_of(line, current.is_some()) else { continue };
            let frame = Frame { function: beginning(function, NAME_KEPT).to_owned(), file: None };
            keep(current.replace(frame), &mut frames, &mut outermost);
        }
        keep(current, &mut frames, &mut outermost);
        frames.extend(outermost);
        let capturing = frames.iter().take_while(|frame| CAPTURING.contains(&crate_of(&frame.function))).count();
        if capturing < frames.len() {
            frames.drain(..capturing);
        }
        (!frames.is_empty()).then_some(Self { frames })
    }
}

/// Keeps the nearest and the outermost frames.
fn keep(frame: Option<Frame>, nearest: &mut Vec<Frame>, outermost: &mut VecDeque<Frame>) {
    let Some(frame) = frame else { return };
    if nearest.len() < NEAREST_FRAMES {
        nearest.push(frame);
        return;
    }
    if outermost.len() == OUTERMOST_FRAMES {
        outermost.pop_front();
    }
    outermost.push_back(frame);
}

/// The function name in a line: `3: name`, or `name` alone if inlined into the frame before.
fn function_of(line: &str, has_frame: bool) -> Option<&str> {
    let numbered = line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
    let numbered = numbered.map(|(number, name)| (number, name.trim_start()));
    match numbered {
        // With `RUST_BACKTRACE=full` the address comes first.
        Some((_, name)) if name.starts_with("0x") => Some(name.split_once(" - ").map_or(name, |(_, name)| name)),
        Some((_, name)) => Some(name),
        None => (has_frame && (!line.contains(' ') || line.starts_with('<'))).then_some(line),
    }
}

/// Splits `path:line:column`.
fn file_of(place: &str) -> (String, Option<u64>) {
    let numbered = |text: &str| text.rsplit_once(':').and_then(|(file, n)| Some((file.to_owned(), n.parse().ok()?)));
    let (file, line) = match numbered(place) {
        Some((file, line)) => match numbered(&file) {
            Some((file, line)) => (file, Some(line)),
            None => (file, Some(line)),
        },
        None => (place.to_owned(), None),
    };
    (beginning(&file, NAME_KEPT).to_owned(), line)
}
