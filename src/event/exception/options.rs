//! What a caller says about an exception besides the error itself.

use std::fmt::Display;
use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

use super::level::Level;
use super::printed::Printed;
use crate::event::Event;
use crate::event::draft::is_blank;
use crate::record::values::value_as;
use crate::record::{Pairs, Unencodable};
use crate::sys::clock::nanos_since_epoch;
use crate::sys::limits::{NAME_KEPT, beginning};

const FINGERPRINT: &str = "$exception_fingerprint";

/// Keys that are the library's, or PostHog's own: no property of a caller.
const RESERVED: [&str; 15] = [
    "$exception_list",
    "$exception_level",
    "$exception_source",
    "$exception_type",
    "$exception_message",
    "$debug_images",
    "$exception_sources",
    "$exception_types",
    "$exception_values",
    "$exception_functions",
    "$exception_fingerprint_version",
    "$exception_fingerprint_record",
    "$exception_issue_id",
    "$exception_release",
    "$cymbal_errors",
];

/// What is said about an exception besides the error itself, for
/// [`Client::capture_exception_with`](crate::Client::capture_exception_with).
///
/// What cannot be used is as if it was not said: a blank text, a property that cannot be serialized (which is recorded as a
/// [`Diagnostic`](crate::Diagnostic)), a time out of range. So an exception is never lost for what was said about it. Properties that
/// PostHog or this library sets themselves (`$exception_list` and its like) are ignored.
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// use posthog::{ExceptionOptions, Level};
///
/// if let Err(error) = "x".parse::<u8>() {
///     let options = ExceptionOptions::new().distinct_id("user_1").level(Level::Warning).prop("area", "import");
///     client.capture_exception_with(&error, options);
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing by themselves: give them to `capture_exception_with`"]
pub struct ExceptionOptions {
    /// An event that has the caller's own properties, groups, time and uuid.
    pub(super) event: Event,
    pub(super) level: Level,
    pub(super) handled: bool,
    pub(super) mechanism: Option<String>,
    pub(super) source: Option<String>,
    pub(super) fingerprint: Option<String>,
    stack: bool,
    brought: Option<Printed>,
    left_out: Vec<String>,
}

impl Default for ExceptionOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ExceptionOptions {
    /// An error that the program caught, of level [`Level::Error`], with the stack of the call, and nothing else to say.
    pub fn new() -> Self {
        Self {
            event: Event::new_anon("$exception"),
            level: Level::default(),
            handled: true,
            mechanism: None,
            source: None,
            fingerprint: None,
            stack: true,
            brought: None,
            left_out: Vec::new(),
        }
    }

    /// Whose the exception is. Without it: whose the current [`Context`](crate::Context) says; without that, nobody's, and PostHog makes no
    /// person of it.
    pub fn distinct_id(mut self, distinct_id: impl AsRef<str>) -> Self {
        if !is_blank(distinct_id.as_ref()) {
            self.event.set_distinct_id(distinct_id);
        }
        self
    }

    /// Sets a property, as [`Event::prop`] does. `$exception_steps` are passed on as they are; a text as `$exception_fingerprint` counts
    /// like [`fingerprint`](Self::fingerprint).
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        match Pairs::one(key.as_ref(), &value) {
            Ok(pair) => self.take(&pair),
            Err(reason) => self.leave_out(key.as_ref(), &reason),
        }
        self
    }

    /// Sets several properties, as [`Event::props`] does.
    pub fn props(mut self, props: impl Serialize) -> Self {
        match Pairs::of(&props) {
            Ok(pairs) => self.take(&pairs),
            Err(reason) => self.leave_out("props", &reason),
        }
        self
    }

    /// Says which group of this type it belongs to, as [`Event::group`] does.
    pub fn group(mut self, group_type: impl AsRef<str>, key: impl Serialize) -> Self {
        let group_type = group_type.as_ref();
        self.event.set_group(group_type, key);
        if let Some(refusal) = self.event.draft.invalid.take() {
            let reason = refusal.describe();
            self.left_out
                .push(format!("group {:?} of an exception was left out: {reason}", beginning(group_type, NAME_KEPT)));
        }
        self
    }

    /// How bad it is. Default: [`Level::Error`].
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Whether the program caught it. Default: true; false says that it escaped whatever should have caught it.
    pub fn handled(mut self, handled: bool) -> Self {
        self.handled = handled;
        self
    }

    /// Has PostHog put it together with all exceptions of this fingerprint, whatever they are.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into()).filter(|text| !is_blank(text)).or(self.fingerprint);
        self
    }

    /// What kind of boundary reports it: `middleware`, `task`, `logger`, or another word. Default: `generic`, for a call in the program's
    /// own code.
    pub fn mechanism(mut self, mechanism: impl Into<String>) -> Self {
        self.mechanism = Some(mechanism.into()).filter(|text| !is_blank(text)).or(self.mechanism);
        self
    }

    /// Which hook reports it: lower-case words joined by dots, technology first, as `tower.middleware`. Default: none, for a call in the
    /// program's own code.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into()).filter(|text| is_source(text)).or(self.source);
        self
    }

    /// When it happened, if that is not now.
    pub fn timestamp(mut self, time: impl Into<SystemTime>) -> Self {
        let time = time.into();
        if nanos_since_epoch(time).is_some() {
            self.event.set_timestamp(time);
        }
        self
    }

    /// Gives the event a uuid of the caller's, as [`Event::uuid`] does.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.event.set_uuid(uuid);
        self
    }

    /// Whether the stack of the call is captured. Default: true. A report that brought a stack along keeps that one either way.
    pub fn stack(mut self, stack: bool) -> Self {
        self.stack = stack;
        self
    }

    /// The stack that the error captured when it arose, which counts instead of that of the call: a [`std::backtrace::Backtrace`], or
    /// what prints as one. One that is disabled is as if it was not given. Printing it looks up its names here and now: some 100 ms the
    /// first time in a large program.
    ///
    /// ```
    /// use posthog::ExceptionOptions;
    /// use std::backtrace::Backtrace;
    ///
    /// let options = ExceptionOptions::new().backtrace(&Backtrace::force_capture());
    /// ```
    pub fn backtrace(mut self, backtrace: &(impl Display + ?Sized)) -> Self {
        self.brought = Printed::of(&backtrace).or(self.brought);
        self
    }

    /// The stack that the error brought along.
    pub(crate) fn take_brought(&mut self) -> Option<Printed> {
        self.brought.take()
    }

    /// Whether the stack of the call is wanted.
    pub(crate) fn wants_stack(&self) -> bool {
        self.stack
    }

    /// What was said and cannot be used, and why.
    pub(crate) fn take_left_out(&mut self) -> Vec<String> {
        std::mem::take(&mut self.left_out)
    }

    fn take(&mut self, pairs: &Pairs) {
        for ((key, value), (_, pair)) in pairs.entries().zip(pairs.each()) {
            if key == FINGERPRINT.as_bytes() {
                let text = value_as::<String>(value).filter(|text| !is_blank(text));
                self.fingerprint = self.fingerprint.take().or(text);
            } else if !RESERVED.iter().any(|reserved| reserved.as_bytes() == key) {
                self.event.draft.push_entry(pair);
            }
        }
    }

    #[cold]
    fn leave_out(&mut self, key: &str, reason: &Unencodable) {
        self.left_out.push(format!("property {:?} of an exception was left out: {reason}", beginning(key, NAME_KEPT)));
    }
}

/// `<technology>.<hook>`, which names no route, no class and no user.
fn is_source(text: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    text.len() <= NAME_KEPT && text.contains('.') && text.split('.').all(is_word)
}
