//! Reads an error and its sources as text: types and messages. Also [`AdHocError`], for values that are not errors.
//!
//! An error is foreign code: `Display`, `Debug` and `source` may panic, fail, never end, or form a cycle. Each call is
//! made inside `catch_unwind` with bounded output, and a call that fails costs only what it would have returned
//! ([`Chain::failed_call`]).

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Debug, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{io, ptr};

use super::event::ExceptionStack;
use crate::sys::limits::{NAME_KEPT, beginning};
use crate::sys::reentry;

/// Maximum number of errors taken from a chain, according to PostHog's specification.
const MOST_ERRORS: usize = 50;
/// Bytes kept of the outermost message; PostHog keeps as many.
const MESSAGE_KEPT: usize = 10_000;
/// Bytes kept of each further message, which is usually contained in the one above.
const CAUSE_KEPT: usize = 2_000;

/// One entry of `$exception_list`: an error, a panic or a signal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainEntry<'a> {
    /// The name of its type.
    pub(crate) kind: String,
    /// The module of its type, if known.
    pub(crate) module: Option<String>,
    /// An error's `Display` text.
    pub(crate) message: String,
    /// The thread, if known.
    pub(crate) thread: Option<u64>,
    pub(crate) stack: ExceptionStack<'a>,
}

/// An error and its sources, or a crash and the panics during whose cleanup it happened: each entry is the reason of
/// the one before it.
#[derive(Clone, Debug)]
pub(crate) struct Chain<'a> {
    pub(crate) entries: Vec<ChainEntry<'a>>,
    /// The source of the mechanism `chained` of all entries but the first: `cause` or `context`.
    pub(crate) relation: &'static str,
    /// The first entry is no error, or its stack is not its own.
    pub(crate) is_synthetic: bool,
    /// The first method of an error that panicked or failed, if any.
    pub(crate) failed_call: Option<&'static str>,
}

impl<'a> Chain<'a> {
    /// Reads an error and its sources.
    pub(crate) fn of<E: Error + ?Sized>(error: &E) -> Self {
        Self::read(&error, ptr::from_ref(error).cast(), std::any::type_name::<E>())
    }

    /// A message that is no error, under a type of the caller's choice.
    #[cfg(any(feature = "log", feature = "tracing"))]
    pub(crate) fn of_message(kind: &str, message: String) -> Self {
        let entry = ChainEntry { kind: kind.to_owned(), message, ..ChainEntry::default() };
        Self { entries: vec![entry], relation: "cause", is_synthetic: true, failed_call: None }
    }

    /// Not generic, so it is compiled once. `error` is a reference to the reference, so that it may be unsized.
    fn read(error: &dyn Error, address: *const (), type_name: &'static str) -> Self {
        let mut failed_call = None;
        let mut note = |what, has_failed: bool| failed_call = failed_call.or(has_failed.then_some(what));
        let is_ad_hoc = type_name == std::any::type_name::<AdHocError>();
        let (message, has_failed) = print(MESSAGE_KEPT, format_args!("{error}"));
        note("Display", has_failed);
        let named = if is_ad_hoc { ad_hoc_kind(error).map(|kind| (kind, None)) } else { short(type_name) };
        let (kind, module) = named
            .or_else(|| Some((in_debug(&error, &message, &mut note)?, None)))
            .unwrap_or_else(|| (UNNAMED.to_owned(), None));
        let mut entries = vec![ChainEntry { kind, module, message, ..ChainEntry::default() }];
        let mut seen: Vec<&(dyn Error + 'static)> = Vec::new();
        let first = ask(error, &mut note);
        let mut next = first;
        while let Some(cause) = next
            && entries.len() < MOST_ERRORS
            && !seen.iter().any(|other| ptr::eq(*other, cause))
        {
            next = ask(cause, &mut note);
            // The same address alone does not prove a cycle: a wrapper may have the address of its first field. The
            // cause is the outermost error again only if it also has the same source.
            let leads_back = next.zip(first).is_some_and(|(next, first)| ptr::eq(next, first));
            if leads_back && ptr::eq(ptr::from_ref(cause).cast(), address) {
                break;
            }
            let (message, has_failed) = print(CAUSE_KEPT, format_args!("{cause}"));
            note("Display", has_failed);
            let kind = kind_of_cause(cause, &message, &mut note);
            entries.push(ChainEntry { kind, message, ..ChainEntry::default() });
            seen.push(cause);
        }
        Self { entries, relation: "cause", is_synthetic: is_ad_hoc, failed_call }
    }

    /// Sets the stack of the first entry. One that the call captured is not the error's own.
    pub(crate) fn with_stack(mut self, stack: ExceptionStack<'a>) -> Self {
        self.is_synthetic |= matches!(&stack, ExceptionStack::Captured(stack) if !stack.is_empty());
        if let Some(first) = self.entries.first_mut() {
            first.stack = stack;
        }
        self
    }
}

/// The type of an error as far as it is known without reading the error: the compiler's name; behind `dyn Error` the
/// name at the beginning of the Debug text, of which at most [`DEBUG_READ`] bytes are printed.
pub(crate) fn type_of<E: Error + ?Sized>(error: &E) -> Cow<'static, str> {
    let type_name = std::any::type_name::<E>();
    if type_name == std::any::type_name::<AdHocError>() {
        return ad_hoc_kind(&error).map_or(Cow::Borrowed(UNNAMED), Cow::Owned);
    }
    if !type_name.contains("dyn ") {
        return Cow::Borrowed(type_name);
    }
    in_debug(&error, "", &mut |_, _| ()).map_or(Cow::Borrowed(UNNAMED), Cow::Owned)
}

/// Calls foreign code; `None` if it panics.
fn call<T>(foreign: impl FnOnce() -> T) -> Option<T> {
    // Dropping the payload of a panic would run more foreign code.
    reentry::calling_out(|| catch_unwind(AssertUnwindSafe(foreign))).map_err(std::mem::forget).ok()
}

/// Calls `source`.
fn ask<'e>(error: &'e dyn Error, note: &mut impl FnMut(&'static str, bool)) -> Option<&'e (dyn Error + 'static)> {
    let source = call(|| error.source());
    note("source", source.is_none());
    source.flatten()
}

/// The type name of a source: behind `dyn Error` only its Debug text is left.
fn kind_of_cause(cause: &(dyn Error + 'static), message: &str, note: &mut impl FnMut(&'static str, bool)) -> String {
    // The Debug text of an `io::Error` begins with the name of an internal type, such as `Os` or `Custom`.
    if cause.is::<io::Error>() {
        return "io::Error".to_owned();
    }
    in_debug(&cause, message, note).unwrap_or_else(|| UNNAMED.to_owned())
}

/// Formats foreign values: at most `most` bytes, and whether formatting panicked or failed.
pub(crate) fn print(most: usize, what: fmt::Arguments<'_>) -> (String, bool) {
    let mut printed = BoundedText { text: String::new(), left: most, is_full: false };
    let result = call(|| printed.write_fmt(what));
    let has_failed = result.is_none_or(|result| result.is_err() && !printed.is_full);
    (printed.text, has_failed)
}

/// A writer that fails once it has `left` bytes, which stops formatting that never ends.
struct BoundedText {
    text: String,
    left: usize,
    is_full: bool,
}

impl Write for BoundedText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let kept = beginning(text, self.left);
        self.text.push_str(kept);
        self.left -= kept.len();
        self.is_full = kept.len() < text.len();
        if self.is_full { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Bytes kept of a value's text.
const TEXT_KEPT: usize = 10_000;

/// Wraps a value that does not implement `Error`, such as a message or a status, so that it can be captured as an
/// exception with [`Client::capture_exception`](crate::Client::capture_exception).
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// use posthog::exceptions::AdHocError;
///
/// client.capture_exception(&AdHocError::new("the disk is nearly full").kind("DiskSpace"));
/// client.capture_exception(&AdHocError::of(&404));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct AdHocError {
    kind: String,
    message: String,
}

impl AdHocError {
    /// An error with this message, of type `Error`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: UNNAMED.to_owned(), message: message.into() }
    }

    /// An error made of a value: its type name and its Debug text. Never fails: if `Debug` panics, only the type is
    /// used.
    pub fn of<T: Debug + ?Sized>(value: &T) -> Self {
        let kind = short(std::any::type_name::<T>()).map_or_else(|| UNNAMED.to_owned(), |(kind, _)| kind);
        let (message, has_failed) = print(TEXT_KEPT, format_args!("{value:?}"));
        Self { kind, message: if has_failed { "a value that cannot be printed".to_owned() } else { message } }
    }

    /// Sets the type, by which PostHog groups exceptions: a name such as `DiskSpace`. A text that is not a type name is
    /// ignored.
    pub fn kind(mut self, kind: impl AsRef<str>) -> Self {
        if kind.as_ref().split("::").all(is_name) {
            self.kind = kind.as_ref().to_owned();
        }
        self
    }
}

impl fmt::Display for AdHocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for AdHocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(&self.kind).field("message", &self.message).finish()
    }
}

impl Error for AdHocError {}

/// The type set by [`AdHocError::kind`], which the Debug text begins with.
fn ad_hoc_kind(error: &dyn Error) -> Option<String> {
    let (text, _) = print(DEBUG_READ, format_args!("{error:?}"));
    text.split_once(" {").map(|(kind, _)| kind.to_owned())
}

/// The type of an error whose name is not known.
const UNNAMED: &str = "Error";
/// Bytes read of a Debug text: as many as a type name and what follows it may take.
const DEBUG_READ: usize = 128;

/// Wrappers that are removed from a type name.
const WRAPPERS: [&str; 3] = ["alloc::boxed::Box<", "alloc::sync::Arc<", "alloc::rc::Rc<"];

/// The last segment of a compiler's type name, without generics, and its module. `None` for `dyn`.
///
/// If the last segment is `Error`, the segment before it is included: `serde_json::Error`, `io::Error`.
pub(super) fn short(full: &str) -> Option<(String, Option<String>)> {
    let mut path = full.trim_start_matches(['&', ' ']);
    path = path.strip_prefix("mut ").unwrap_or(path);
    while let Some(held) = WRAPPERS.iter().find_map(|holder| path.strip_prefix(holder)) {
        path = held.strip_suffix('>').unwrap_or(held);
    }
    if path.starts_with("dyn ") {
        return None;
    }
    let path = path.split(['<', ',']).next().unwrap_or_default();
    let (module, name) = path.rsplit_once("::").map_or((None, path), |(module, name)| (Some(module), name));
    if !is_name(name) {
        return None;
    }
    let above = module.iter().flat_map(|module| module.rsplit("::")).find(|part| !matches!(*part, "error" | "errors"));
    let named = match above {
        Some(above) if name == UNNAMED => format!("{above}::{name}"),
        _ => name.to_owned(),
    };
    Some((beginning(&named, NAME_KEPT).to_owned(), module.map(|module| beginning(module, NAME_KEPT).to_owned())))
}

/// The type name at the beginning of a Debug text, if it looks like one: `Missing { key: .. }`, `Io(..)`, or `Closed`
/// alone, but not a message.
fn in_debug(value: &dyn Debug, message: &str, note: &mut impl FnMut(&'static str, bool)) -> Option<String> {
    let mut beginning = DebugBeginning(BoundedText { text: String::new(), left: DEBUG_READ, is_full: false });
    let result = call(|| write!(beginning, "{value:?}"));
    let DebugBeginning(BoundedText { text, is_full, .. }) = beginning;
    note("Debug", result.is_none_or(|result| result.is_err() && !is_full));
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end)?;
    let is_whole = rest.is_empty() && text != message && text.len() < DEBUG_READ;
    let looks_like_one = is_whole || rest.starts_with('(') || rest.starts_with(" {");
    (looks_like_one && is_name(name) && name.starts_with(|c: char| c.is_ascii_uppercase())).then(|| name.to_owned())
}

/// Refuses everything after the type name and its bracket: what follows may cost much, as the stack of an `anyhow::Error`.
struct DebugBeginning(BoundedText);

impl Write for DebugBeginning {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.0.write_str(part)?;
        if self.0.text.contains(['(', '{']) {
            self.0.is_full = true;
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// Whether the text is a valid type name.
fn is_name(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}
