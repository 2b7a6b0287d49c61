//! What is no error, as one.

use std::error::Error;
use std::fmt::{self, Debug};

use super::chain::print;
use super::type_name::{NAMELESS, is_name, short};

/// Bytes of a value's text that are kept.
const TEXT_KEPT: usize = 10_000;

/// An error made of something that is none: a text, a status, a value that went wrong. For
/// [`Client::capture_exception`](crate::Client::capture_exception).
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// use posthog::AdHocError;
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
    /// One of this text, of the type `Error`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { kind: NAMELESS.to_owned(), message: message.into() }
    }

    /// One of a value: its type, and its Debug text. Never fails: of a value whose `Debug` panics the type is left.
    pub fn of<T: Debug + ?Sized>(value: &T) -> Self {
        let kind = short(std::any::type_name::<T>()).map_or_else(|| NAMELESS.to_owned(), |(kind, _)| kind);
        let (message, is_broken) = print(TEXT_KEPT, format_args!("{value:?}"));
        Self { kind, message: if is_broken { "a value that cannot be printed".to_owned() } else { message } }
    }

    /// Says what the type is called, by which PostHog groups: a name such as `DiskSpace`. Anything else is ignored.
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

/// The kind of one that is known as an error only: its Debug text begins with it.
pub(super) fn kind_of(thrown: &dyn Error) -> Option<String> {
    let (text, _) = print(super::type_name::DEBUG_READ, format_args!("{thrown:?}"));
    text.split_once(" {").map(|(kind, _)| kind.to_owned())
}
