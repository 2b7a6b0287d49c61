//! Asking an error, and those beneath it, for all they have to say.

use std::error::Error;
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{io, ptr};

use super::thrown::{self, AdHocError};
use super::type_name::{NAMELESS, in_debug, short};
use crate::sys::reentry;

/// Errors of a chain that are taken: what PostHog's specification allows.
const MOST_ERRORS: usize = 50;
/// Bytes of the outermost message that are kept: what PostHog keeps.
const MESSAGE_KEPT: usize = 10_000;
/// Of each message beneath it: it is usually a part of the one above.
const CAUSE_KEPT: usize = 2_000;

/// One error of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its type.
    pub(super) kind: String,
    /// The module of its type.
    pub(super) module: Option<String>,
    /// What it says.
    pub(super) message: String,
}

/// What an error and those beneath it say, outermost first.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(super) outermost: Link,
    pub(super) causes: Vec<Link>,
    /// It was made from something that is no error.
    pub(super) is_thrown: bool,
    /// What of the errors panicked or failed when it was asked, if anything did.
    pub(crate) broken: Option<&'static str>,
}

impl Chain {
    /// What this error and those beneath it say.
    pub(crate) fn of<E: Error + ?Sized>(error: &E) -> Self {
        Self::read(&error, ptr::from_ref(error).cast(), std::any::type_name::<E>())
    }

    /// Not generic: compiled once. `error` is the reference to it, so that it can be asked whatever its type is.
    fn read(error: &dyn Error, address: *const (), type_name: &'static str) -> Self {
        let mut broken = None;
        let mut note = |what, is_broken: bool| broken = broken.or(is_broken.then_some(what));
        let is_thrown = type_name == std::any::type_name::<AdHocError>();
        let (message, is_broken) = print(MESSAGE_KEPT, format_args!("{error}"));
        note("Display", is_broken);
        let named = if is_thrown { thrown::kind_of(error).map(|kind| (kind, None)) } else { short(type_name) };
        let (kind, module) = named
            .or_else(|| Some((in_debug(&error, &message, &mut note)?, None)))
            .unwrap_or_else(|| (NAMELESS.to_owned(), None));
        let outermost = Link { kind, module, message };
        let mut causes = Vec::new();
        let mut seen: Vec<&(dyn Error + 'static)> = Vec::new();
        let first = ask(error, &mut note);
        let mut next = first;
        while let Some(cause) = next
            && causes.len() + 1 < MOST_ERRORS
            && !seen.iter().any(|other| ptr::eq(*other, cause))
        {
            next = ask(cause, &mut note);
            // An error may begin with the one beneath it, at the same address: only with the same cause it is the outermost again.
            let leads_back = next.zip(first).is_some_and(|(next, first)| ptr::eq(next, first));
            if leads_back && ptr::eq(ptr::from_ref(cause).cast(), address) {
                break;
            }
            let (message, is_broken) = print(CAUSE_KEPT, format_args!("{cause}"));
            note("Display", is_broken);
            causes.push(Link { kind: kind_of_cause(cause, &message, &mut note), module: None, message });
            seen.push(cause);
        }
        Self { outermost, causes, is_thrown, broken }
    }
}

/// The error beneath this one.
fn ask<'e>(error: &'e dyn Error, note: &mut impl FnMut(&'static str, bool)) -> Option<&'e (dyn Error + 'static)> {
    match reentry::calling_out(|| catch_unwind(AssertUnwindSafe(|| error.source()))) {
        Ok(source) => source,
        Err(payload) => {
            // Dropping it would run more of the program's code.
            std::mem::forget(payload);
            note("source", true);
            None
        }
    }
}

/// Behind `dyn Error` the compiler's name is lost.
fn kind_of_cause(cause: &(dyn Error + 'static), message: &str, note: &mut impl FnMut(&'static str, bool)) -> String {
    // Its Debug text begins with how it is stored.
    if cause.is::<io::Error>() {
        return "io::Error".to_owned();
    }
    in_debug(&cause, message, note).unwrap_or_else(|| NAMELESS.to_owned())
}

/// As much as is kept of what somebody else's code prints, and whether that panicked or failed.
pub(super) fn print(most: usize, what: fmt::Arguments<'_>) -> (String, bool) {
    let mut printed = Bounded { text: String::new(), left: most, is_full: false };
    let result = reentry::calling_out(|| catch_unwind(AssertUnwindSafe(|| printed.write_fmt(what))));
    let is_broken = match result {
        Ok(result) => result.is_err() && !printed.is_full,
        Err(payload) => {
            // Dropping it would run more of the program's code.
            std::mem::forget(payload);
            true
        }
    };
    (printed.text, is_broken)
}

/// A text that takes so much and then fails, so that whoever prints without end is stopped.
struct Bounded {
    text: String,
    left: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let kept = crate::sys::limits::beginning(text, self.left);
        self.text.push_str(kept);
        self.left -= kept.len();
        self.is_full = kept.len() < text.len();
        if self.is_full { Err(fmt::Error) } else { Ok(()) }
    }
}
