//! The stack that a report brings along, of which only the text can be had: what std's `Backtrace` prints.
//!
//! Two lines for each frame, `  3: my_app::run` and `             at ./src/main.rs:7:5`, the second where the file is known. What is
//! inlined into a frame has no number of its own.

use std::collections::VecDeque;
#[cfg(any(feature = "eyre", test))]
use std::fmt::Debug;
use std::fmt::Display;

use super::chain::print;
use super::report::{append_flag, append_number, append_text};
use crate::record::msgpack::{append_array_header, append_map_header, append_str};
use crate::record::stack::{NEAREST_FRAMES, OUTERMOST_FRAMES};
use crate::record::symbols::{crate_of, is_in_app};
use crate::sys::limits::beginning;

/// Bytes of a report's text that are read.
const TEXT_READ: usize = 256 * 1024;
/// Where eyre's reports begin with it.
#[cfg(any(feature = "eyre", test))]
const EYRE_HEADING: &str = "Stack backtrace:";
/// Bytes of a function's or a file's name that are kept.
const NAME_KEPT: usize = 512;
/// Crates whose frames a stack begins with because they captured it.
const CAPTURING: [&str; 6] = ["anyhow", "backtrace", "color_eyre", "eyre", "stable_eyre", "std"];

/// A stack as text, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Printed {
    /// The innermost call first.
    frames: Vec<Frame>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Frame {
    function: String,
    file: Option<(String, Option<u64>)>,
}

impl Printed {
    /// The stack that an error has captured: std's `Backtrace`. Printing it looks up all names, here and now.
    pub(crate) fn of(backtrace: &dyn Display) -> Option<Self> {
        let (text, _) = print(TEXT_READ, format_args!("{backtrace}"));
        Self::parse(&text)
    }

    /// The stack that a report shows below its messages, which is the only way to it.
    #[cfg(any(feature = "eyre", test))]
    pub(crate) fn below(report: &dyn Debug) -> Option<Self> {
        let (text, _) = print(TEXT_READ, format_args!("{report:?}"));
        Self::parse(text.split_once(EYRE_HEADING)?.1)
    }

    /// Reads what std's `Backtrace` prints. `None` if there is no frame in it.
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

    /// Appends the value of `stacktrace`.
    pub(super) fn append(&self, out: &mut Vec<u8>) {
        append_map_header(out, 2);
        append_text(out, "type", "raw");
        append_str(out, "frames");
        append_array_header(out, self.frames.len() as u32);
        for frame in self.frames.iter().rev() {
            frame.append(out);
        }
    }
}

impl Frame {
    fn append(&self, out: &mut Vec<u8>) {
        let file = self.file.as_ref();
        let line = file.and_then(|(_, line)| *line);
        append_map_header(out, 6 + u32::from(file.is_some()) + u32::from(line.is_some()));
        append_text(out, "platform", "native");
        append_text(out, "lang", "rust");
        append_text(out, "function", &self.function);
        append_flag(out, "in_app", is_in_app(&self.function, file.map(|(file, _)| file.as_str()), true));
        append_flag(out, "synthetic", false);
        append_flag(out, "client_resolved", true);
        if let Some((file, _)) = file {
            append_text(out, "filename", file);
        }
        if let Some(line) = line {
            append_number(out, "lineno", line);
        }
    }
}

/// Of a long stack both ends are kept.
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

/// The function of a line that names one: `3: name`, or `name` alone, inlined into the frame before.
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

/// `path:line:column`.
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
