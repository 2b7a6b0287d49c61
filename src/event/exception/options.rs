//! The options of an exception: what a caller can set besides the error.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use uuid::Uuid;

use super::printed::printed_stack;
use crate::event::Event;
use crate::event::draft::is_blank;
use crate::record::symbols::{InAppRules, Symbol};
use crate::record::values::value_as;
use crate::record::{Pairs, Unencodable};
use crate::sys::clock::nanos_since_epoch;
use crate::sys::limits::{NAME_KEPT, beginning};

const FINGERPRINT: &str = "$exception_fingerprint";

/// Keys that belong to the library or to PostHog and cannot be set as properties.
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

/// Options of an exception, for [`Client::capture_exception_with`](crate::Client::capture_exception_with).
///
/// An invalid value is ignored: a blank text, a property that cannot be serialized (recorded as a
/// [`Diagnostic`](crate::diagnostics::Diagnostic)), a time out of range. So an exception is never lost because of its
/// options. Properties that PostHog or this library set themselves, such as `$exception_list`, are ignored.
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// use posthog::exceptions::{ExceptionOptions, Level};
///
/// if let Err(error) = "x".parse::<u8>() {
///     let options = ExceptionOptions::new().distinct_id("user_1").level(Level::Warning).prop("area", "import");
///     client.capture_exception_with(&error, options);
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing by themselves: give them to `capture_exception_with`"]
pub struct ExceptionOptions {
    /// Holds the caller's properties, groups, time and uuid.
    pub(super) event: Event,
    pub(super) level: Level,
    pub(super) handled: bool,
    pub(super) mechanism: Option<String>,
    pub(super) source: Option<String>,
    pub(super) fingerprint: Option<String>,
    /// What the rate limit counts by instead of the place of the call.
    pub(crate) rate_limit_key: Option<String>,
    /// Whether the stack of the call is to be captured.
    pub(crate) stack: bool,
    /// The stack that the error captured itself, as text.
    pub(crate) own_stack: Option<Vec<Symbol>>,
    /// Which frames of a stack that was printed are the program's own.
    pub(crate) in_app: Arc<InAppRules>,
    /// The stack that the program captured where the error occurred.
    pub(crate) call_stack: Option<CallStack>,
    /// Descriptions of invalid options.
    pub(crate) invalid: Vec<String>,
}

impl Default for ExceptionOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ExceptionOptions {
    /// The defaults: a handled error of level [`Level::Error`], with the stack of the call.
    pub fn new() -> Self {
        Self {
            event: Event::new_anon("$exception"),
            level: Level::default(),
            handled: true,
            mechanism: None,
            source: None,
            fingerprint: None,
            rate_limit_key: None,
            stack: true,
            own_stack: None,
            in_app: Arc::default(),
            call_stack: None,
            invalid: Vec::new(),
        }
    }

    /// Sets the person the exception belongs to. Default: the distinct id of the current [`Context`](crate::Context);
    /// without one, the exception belongs to nobody and PostHog creates no person.
    pub fn distinct_id(mut self, distinct_id: impl AsRef<str>) -> Self {
        if !is_blank(distinct_id.as_ref()) {
            self.event.set_distinct_id(distinct_id);
        }
        self
    }

    /// Sets a property, as [`Event::prop`] does. `$exception_steps` is passed on unchanged. A text as
    /// `$exception_fingerprint` has the effect of [`fingerprint`](Self::fingerprint).
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        match Pairs::one(key.as_ref(), &value) {
            Ok(pair) => self.take(&pair),
            Err(reason) => self.add_invalid(key.as_ref(), &reason),
        }
        self
    }

    /// Sets several properties, as [`Event::props`] does.
    pub fn props(mut self, props: impl Serialize) -> Self {
        match Pairs::of(&props) {
            Ok(pairs) => self.take(&pairs),
            Err(reason) => self.add_invalid("props", &reason),
        }
        self
    }

    /// Sets the group of this type, as [`Event::group`] does.
    pub fn group(mut self, group_type: impl AsRef<str>, key: impl Serialize) -> Self {
        let group_type = group_type.as_ref();
        self.event.set_group(group_type, key);
        if let Some(refusal) = self.event.draft.invalid.take() {
            let reason = refusal.describe();
            self.invalid
                .push(format!("group {:?} of an exception was left out: {reason}", beginning(group_type, NAME_KEPT)));
        }
        self
    }

    /// Sets the severity. Default: [`Level::Error`].
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// Whether the exception says that something failed, and is no mere note.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.level, Level::Error | Level::Fatal)
    }

    /// Whether the program caught the error. Default: true. False means that it was not caught where it should have
    /// been.
    pub fn handled(mut self, handled: bool) -> Self {
        self.handled = handled;
        self
    }

    /// Makes PostHog group the exception with all others of the same fingerprint.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into()).filter(|text| !is_blank(text)).or(self.fingerprint);
        self
    }

    /// Sets what kind of code reports it: `middleware`, `task`, `logger`, or another word. Default: `generic`, a call
    /// in the program's own code.
    pub fn mechanism(mut self, mechanism: impl Into<String>) -> Self {
        self.mechanism = Some(mechanism.into()).filter(|text| !is_blank(text)).or(self.mechanism);
        self
    }

    /// Sets which hook reports it: lower-case words joined by dots, technology first, such as `tower.middleware`.
    /// Default: none, a call in the program's own code.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into()).filter(|text| is_source(text)).or(self.source);
        self
    }

    /// Sets when it happened. Default: now.
    pub fn timestamp(mut self, time: impl Into<SystemTime>) -> Self {
        let time = time.into();
        if nanos_since_epoch(time).is_some() {
            self.event.set_timestamp(time);
        }
        self
    }

    /// Sets the event's uuid, as [`Event::uuid`] does.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.event.set_uuid(uuid);
        self
    }

    /// Sets what the rate limit ([`Config::exception_rate_limit`](crate::Config::exception_rate_limit)) counts by,
    /// beside the type of the error. Default: the source line that calls the capture function. For a function that
    /// captures the errors of many others, which would all share one bucket: the name of the job, or the place that it
    /// knows the error is from. The number of different keys should be small. A blank text is ignored.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::exceptions::ExceptionOptions;
    ///
    /// fn job_failed(client: &posthog::Client, job: &str, error: &dyn std::error::Error) {
    ///     client.capture_exception_with(error, ExceptionOptions::new().rate_limit_key(job));
    /// }
    /// # job_failed(&client, "import", &std::fmt::Error);
    /// ```
    pub fn rate_limit_key(mut self, key: impl Into<String>) -> Self {
        self.rate_limit_key = Some(key.into()).filter(|text| !is_blank(text)).or(self.rate_limit_key);
        self
    }

    /// Whether the stack of the call is captured. Default: true. A stack that the error captured itself is used in any
    /// case.
    pub fn stack(mut self, stack: bool) -> Self {
        self.stack = stack;
        self
    }

    /// Uses the stack that the error captured itself instead of that of the call: a [`std::backtrace::Backtrace`], or a
    /// value that prints like one. A disabled backtrace is ignored. Printing it looks up its names during this call,
    /// which takes about 100 ms the first time in a large program.
    ///
    /// ```
    /// use posthog::exceptions::ExceptionOptions;
    /// use std::backtrace::Backtrace;
    ///
    /// let options = ExceptionOptions::new().backtrace(&Backtrace::force_capture());
    /// ```
    pub fn backtrace(mut self, backtrace: &(impl Display + ?Sized)) -> Self {
        self.own_stack = printed_stack(&backtrace).or(self.own_stack);
        self
    }

    /// Uses a stack that was captured where the error occurred instead of that of the call: see [`CallStack`]. A stack
    /// that the error captured itself ([`backtrace`](Self::backtrace), or that of an anyhow or eyre report) takes
    /// precedence.
    pub fn call_stack(mut self, stack: &CallStack) -> Self {
        self.call_stack = Some(stack.clone());
        self
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
    fn add_invalid(&mut self, key: &str, reason: &Unencodable) {
        self.invalid.push(format!("property {:?} of an exception was left out: {reason}", beginning(key, NAME_KEPT)));
    }
}

/// The stack at a place in the program, to be kept in an error and sent when that is captured elsewhere.
///
/// PostHog groups exceptions by type and stack. A server often captures its errors in one place, the `IntoResponse` of
/// its error type, and the stack of *that* call is the same for all errors: all of them become one issue. So take the
/// stack where the error enters the error type, which is the `From` that `?` calls, and give it to
/// [`ExceptionOptions::call_stack`]:
///
/// ```
/// use posthog::exceptions::{CallStack, ExceptionOptions};
///
/// // With anyhow: `anyhow::Error` instead of the box.
/// struct AppError {
///     error: Box<dyn std::error::Error + Send + Sync>,
///     stack: CallStack,
/// }
///
/// impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for AppError {
///     fn from(error: E) -> Self {
///         Self { error: error.into(), stack: CallStack::capture() }
///     }
/// }
///
/// // `impl axum::response::IntoResponse for AppError`
/// impl AppError {
///     fn into_response(self) -> u16 {
///         let options = ExceptionOptions::new().call_stack(&self.stack);
///         posthog::capture_exception_with(&*self.error, options);
///         500
///     }
/// }
///
/// fn handler() -> Result<u8, AppError> {
///     Ok("x".parse::<u8>()?) // the stack is that of this line
/// }
/// # assert_eq!(handler().map_err(AppError::into_response), Err(500));
/// ```
///
/// Taking it costs microseconds: only addresses are kept, and names are looked up when the exception is sent
/// ([`Config::symbolicate`](crate::Config::symbolicate)). Needs no `RUST_BACKTRACE`. With that variable, anyhow and eyre
/// capture a stack of their own, at hundreds of microseconds for each error, and `capture_anyhow` and `capture_eyre` use
/// it. To group by something other than the stack, set [`ExceptionOptions::fingerprint`].
#[derive(Clone, PartialEq, Eq)]
pub struct CallStack {
    /// Return addresses, innermost first.
    addresses: Arc<[u64]>,
}

impl CallStack {
    pub(crate) fn of(addresses: Vec<u64>) -> Self {
        Self { addresses: addresses.into() }
    }

    pub(crate) fn addresses(&self) -> &[u64] {
        &self.addresses
    }
}

impl fmt::Debug for CallStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallStack").field("frames", &self.addresses.len()).finish()
    }
}

/// Whether the text has the form `<technology>.<hook>`.
fn is_source(text: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    text.len() <= NAME_KEPT && text.contains('.') && text.split('.').all(is_word)
}

/// The severity of an exception: `$exception_level`.
///
/// Parses from the names that loggers use, in any case: `critical`, `alert` and `emergency` are fatal, `warn` is a
/// warning, `notice` is info, `trace` is debug.
///
/// ```
/// use posthog::exceptions::Level;
///
/// assert_eq!("WARN".parse(), Ok(Level::Warning));
/// assert!("loud".parse::<Level>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// It ended the program or a part of it.
    Fatal,
    /// Something failed. The default.
    #[default]
    Error,
    /// Something may fail.
    Warning,
    /// A note.
    Log,
    /// Information.
    Info,
    /// Details for debugging.
    Debug,
}

impl Level {
    /// The name that PostHog uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Fatal => "fatal",
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Log => "log",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not the name of a [`Level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an exception level; use fatal, error, warning, log, info or debug")]
#[non_exhaustive]
pub struct ParseLevelError;

impl FromStr for Level {
    type Err = ParseLevelError;

    fn from_str(text: &str) -> Result<Self, ParseLevelError> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "fatal" | "critical" | "alert" | "emergency" => Level::Fatal,
            "error" => Level::Error,
            "warning" | "warn" => Level::Warning,
            "log" => Level::Log,
            "info" | "notice" => Level::Info,
            "debug" | "trace" => Level::Debug,
            _ => return Err(ParseLevelError),
        })
    }
}
