//! A stack that an error captured itself, parsed from its text: the format of std's `Backtrace`.
//!
//! A frame has two lines, `  3: my_app::run` and `             at ./src/main.rs:7:5`, the second only if the file is
//! known. A function that is inlined into a frame has no number of its own.

#[cfg(any(feature = "eyre", test))]
use std::fmt::Debug;
use std::fmt::Display;

use super::chain::print;
use crate::record::stack::{NEAREST_FRAMES, OUTERMOST_FRAMES};
use crate::record::symbols::{Symbol, crate_of};
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

/// The stack in a `Backtrace`, innermost frame first. Formatting it looks up all names, during this call.
pub(crate) fn printed_stack(backtrace: &dyn Display) -> Option<Vec<Symbol>> {
    let (text, _) = print(TEXT_READ, format_args!("{backtrace}"));
    parse(&text)
}

/// The stack that a report prints below its messages; the report provides no other access to it.
#[cfg(any(feature = "eyre", test))]
pub(crate) fn stack_below(report: &dyn Debug) -> Option<Vec<Symbol>> {
    let (text, _) = print(TEXT_READ, format_args!("{report:?}"));
    parse(text.split_once(EYRE_HEADING)?.1)
}

/// Parses the text of a `Backtrace`. `None` if it has no frames.
pub(super) fn parse(text: &str) -> Option<Vec<Symbol>> {
    let mut frames: Vec<Symbol> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(place) = line.strip_prefix("at ") {
            if let Some(frame) = frames.last_mut().filter(|frame| frame.file.is_none()) {
                let (file, line) = file_of(place);
                (frame.file, frame.line) = (Some(beginning(file, NAME_KEPT).to_owned()), line);
            }
            continue;
        }
        let Some(function) = function_of(line, !frames.is_empty()) else { continue };
        frames.push(Symbol { function: beginning(function, NAME_KEPT).to_owned(), ..Symbol::default() });
    }
    if frames.len() > NEAREST_FRAMES + OUTERMOST_FRAMES {
        frames.drain(NEAREST_FRAMES..frames.len() - OUTERMOST_FRAMES);
    }
    let capturing = frames.iter().take_while(|frame| CAPTURING.contains(&crate_of(&frame.function))).count();
    if capturing < frames.len() {
        frames.drain(..capturing);
    }
    (!frames.is_empty()).then_some(frames)
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
fn file_of(place: &str) -> (&str, Option<u32>) {
    let Some((file, last)) = numbered(place) else { return (place, None) };
    let (file, line) = numbered(file).unwrap_or((file, last));
    (file, Some(line))
}

fn numbered(text: &str) -> Option<(&str, u32)> {
    let (rest, number) = text.rsplit_once(':')?;
    Some((rest, number.parse().ok()?))
}
