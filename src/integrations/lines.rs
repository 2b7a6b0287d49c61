//! What the layer for `tracing` and the logger for `log` have in common: what becomes of a line, which of its fields are
//! kept, and the events made of it.
//!
//! Formatting a field calls code of the program, which may log again or panic. It is called outside of every lock, as a
//! callback of the library ([`reentry`]), with bounded output.

use std::borrow::Cow;
use std::fmt::{self, Write};

use serde_json::{Map, Value};

use crate::client::{Client, Unread, with_process_wide};
use crate::event::Event;
use crate::event::exception::{Chain, ExceptionOptions, Level, print};
use crate::sys::limits::{NAME_KEPT, beginning};
use crate::sys::reentry;

/// Fields kept of a line, and their bytes.
pub(super) const LINE_FIELDS: Bounds = Bounds { fields: 64, bytes: 16 * 1024 };
/// Bytes kept of one text.
const TEXT_MOST: usize = 4 * 1024;
/// Bytes kept of a message; PostHog keeps as many of an exception's.
const MESSAGE_MOST: usize = 10_000;
/// Bytes of a breadcrumb.
const BREADCRUMB_MOST: usize = 224;

/// What becomes of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventAction {
    /// Nothing.
    Ignore,
    /// A breadcrumb of the process-wide client ([`Client::breadcrumb`]). With another client it does nothing.
    Breadcrumb,
    /// An exception for error tracking ([`Client::capture_exception`](crate::Client::capture_exception)).
    Exception,
    /// An event of its own, named by the message of the line (at most 200 bytes; without a message, by its target). Use
    /// it for lines with a constant message: each different message is another event name. The event belongs to the
    /// distinct id of the current [`Context`](crate::Context); without one it belongs to nobody
    /// ([`Event::new_anon`](crate::Event::new_anon)).
    Event,
}

/// Whether a line is the library's own, which must not be captured: it may be about a capture that failed.
pub(super) fn is_ours(target: &str) -> bool {
    target.strip_prefix("posthog").is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether a package logs an error there that its cause has reported already, as an exception, a panic or a failed
/// response.
pub(super) fn repeats_a_failure(target: &str) -> bool {
    matches!(target, "tower_http::trace::on_failure" | "tower_http::catch_panic")
}

/// Whether lines of this thread are ignored now: the thread is the library's, or the line was logged by code that is
/// called for another line.
#[inline]
pub(super) fn is_refused() -> bool {
    reentry::inside().refuses_captures()
}

/// The client that lines go to.
#[derive(Clone, Debug, Default)]
pub(super) enum Destination {
    /// The process-wide one, looked up for each line.
    #[default]
    ProcessWide,
    Given(Client),
}

impl Destination {
    /// Calls with the client, if there is one.
    #[inline]
    pub(super) fn with(&self, call: impl FnOnce(&Client)) {
        match self {
            Destination::ProcessWide => with_process_wide(|client| _ = client.map(call)),
            Destination::Given(client) => call(client),
        }
    }
}

/// How much is kept of the fields of a line or a span.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) fields: usize,
    pub(super) bytes: usize,
}

/// Fields with their values, as many as the bounds allow.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    entries: Vec<(Cow<'static, str>, Value)>,
    left: Bounds,
}

impl Fields {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { entries: Vec::new(), left: bounds }
    }

    #[cfg(feature = "tracing")]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets a number or a truth value; one of the same name is replaced.
    pub(super) fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) {
        self.put(name.into(), value.into());
    }

    /// Sets a text, which is cut to what is left.
    pub(super) fn set_text(&mut self, name: impl Into<Cow<'static, str>>, text: fmt::Arguments<'_>) {
        let name = name.into();
        let most = self.left.bytes.saturating_sub(name.len()).min(TEXT_MOST);
        let (text, _) = print(most, text);
        self.put(name, text.into());
    }

    /// Sets the fields that were recorded later.
    #[cfg(feature = "tracing")]
    pub(super) fn merge(&mut self, later: Fields) {
        for (name, value) in later.entries {
            self.put(name, value);
        }
    }

    fn put(&mut self, name: Cow<'static, str>, value: Value) {
        let size =
            |name: &str, value: &Value| name.len().saturating_add(value.as_str().map_or(size_of::<u64>(), str::len));
        let known = self.entries.iter_mut().find(|(known, _)| *known == name);
        // The bytes of a value that is replaced can be used again.
        let freed = known.as_ref().map_or(0, |(name, value)| size(name, value));
        let left = self.left.bytes.saturating_add(freed);
        let Some(bytes) = left.checked_sub(size(&name, &value)) else { return };
        if let Some((_, known)) = known {
            *known = value;
        } else if let Some(fields) = self.left.fields.checked_sub(1) {
            self.left.fields = fields;
            self.entries.push((name, value));
        }
        self.left.bytes = bytes;
    }
}

/// Where a line was logged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) module: Option<&'a str>,
    pub(super) file: Option<&'a str>,
    pub(super) line: Option<u32>,
}

/// A span that was open when a line was logged.
#[derive(Debug)]
pub(super) struct OpenSpan {
    pub(super) name: &'static str,
    pub(super) fields: Option<Fields>,
}

/// A line that becomes an event.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) place: Place<'a>,
    pub(super) message: String,
    pub(super) fields: Fields,
    /// Outermost first.
    pub(super) spans: Vec<OpenSpan>,
}

impl Line<'_> {
    /// The fields of the spans, outermost first, then those of the line, then what is known of the line itself: of two
    /// values for one name the last counts.
    fn properties(&self) -> Map<String, Value> {
        let inherited = self.spans.iter().filter_map(|span| span.fields.as_ref());
        let fields = inherited.chain([&self.fields]).flat_map(|fields| &fields.entries);
        let mut map: Map<String, Value> = fields.map(|(name, value)| (name.to_string(), value.clone())).collect();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(name.to_owned(), value);
            }
        };
        let text = |text: &str| Some(Value::from(beginning(text, TEXT_MOST)));
        put("log_level", text(self.place.level.as_str()));
        put("log_target", text(self.place.target));
        put("log_message", text(&self.message).filter(|_| !self.message.is_empty()));
        put("log_module", self.place.module.and_then(text));
        put("log_file", self.place.file.and_then(text));
        put("log_line", self.place.line.map(Value::from));
        let names: Vec<&str> = self.spans.iter().map(|span| beginning(span.name, NAME_KEPT)).collect();
        put("log_spans", (!names.is_empty()).then(|| names.into()));
        map
    }

    /// The options of an exception for this line.
    pub(super) fn options(&self, source: &str) -> ExceptionOptions {
        let options = ExceptionOptions::new().level(self.place.level).mechanism("logger").source(source);
        let place = format!("{}:{}", self.place.file.unwrap_or(self.place.target), self.place.line.unwrap_or(0));
        options.props(self.properties()).rate_limit_key(place)
    }

    /// The type of the exception of a line without an error: PostHog groups by type and stack, so this is the target,
    /// which does not change with the values in the message.
    fn exception_type(&self) -> &str {
        if self.place.target.is_empty() { "log" } else { beginning(self.place.target, NAME_KEPT) }
    }

    /// The message; without one, the fields.
    fn text(&self) -> String {
        if !self.message.is_empty() {
            return self.message.clone();
        }
        let fields: Vec<String> =
            self.fields.entries.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect();
        beginning(&fields.join(" "), MESSAGE_MOST).to_owned()
    }

    /// The event of a line that is an event of its own.
    pub(super) fn event(&self) -> Event {
        let message = self.message.trim();
        let name = if message.is_empty() { self.place.target } else { message };
        Event::new_anon(beginning(name, NAME_KEPT)).props(self.properties())
    }
}

impl Unread for Line<'_> {
    fn kind(&self) -> Cow<'static, str> {
        self.exception_type().to_owned().into()
    }

    fn read(&self) -> Chain<'static> {
        Chain::of_message(self.exception_type(), self.text())
    }
}

fn shown(value: &Value) -> Cow<'_, str> {
    value.as_str().map_or_else(|| value.to_string().into(), Cow::Borrowed)
}

/// Formats a message.
pub(super) fn message_of(message: fmt::Arguments<'_>) -> String {
    print(MESSAGE_MOST, message).0
}

/// The text of a breadcrumb, on the stack: `LEVEL target: message name=value ...`. Writing fails once it is full, which
/// stops formatting that never ends.
pub(super) struct BreadcrumbText {
    bytes: [u8; BREADCRUMB_MOST],
    len: usize,
    is_full: bool,
}

impl BreadcrumbText {
    /// Formats a breadcrumb and adds it, if the client keeps breadcrumbs. `write` calls code of the program.
    #[inline]
    pub(super) fn add_to(client: &Client, level: &str, target: &str, write: impl FnOnce(&mut Self)) {
        if !client.keeps_breadcrumbs() {
            return;
        }
        let mut text = Self { bytes: [0; BREADCRUMB_MOST], len: 0, is_full: false };
        for part in [level, " ", target, ":"] {
            let _ = text.write_str(part);
        }
        // A breadcrumb whose formatting panicked has what was written before.
        reentry::calling_out(|| reentry::caught(|| write(&mut text)));
        client.breadcrumb(text.as_str());
    }

    /// Appends the message.
    #[inline]
    pub(super) fn message(&mut self, message: fmt::Arguments<'_>) {
        let _ = self.write_str(" ");
        let _ = self.write_fmt(message);
    }

    /// Appends a field.
    #[inline]
    pub(super) fn field(&mut self, name: &str, value: fmt::Arguments<'_>) {
        if self.begin_field(name) {
            let _ = self.write_fmt(value);
        }
    }

    /// Appends a field that is a text, without the machinery of formatting.
    #[cfg(feature = "tracing")]
    #[inline]
    pub(super) fn text_field(&mut self, name: &str, value: &str) {
        if self.begin_field(name) {
            let _ = self.write_str(value);
        }
    }

    /// Returns whether there is space for a value.
    #[inline]
    fn begin_field(&mut self, name: &str) -> bool {
        [" ", name, "="].into_iter().all(|part| self.write_str(part).is_ok())
    }

    /// Appends the fields of a span that was open, as ` name{field=value ...}`.
    #[cfg(feature = "tracing")]
    pub(super) fn fields_of_span(&mut self, name: &str, fields: &Fields) {
        if self.is_full {
            return;
        }
        for part in [" ", name, "{"] {
            let _ = self.write_str(part);
        }
        for (nth, (name, value)) in fields.entries.iter().enumerate() {
            let space = if nth > 0 { " " } else { "" };
            let _ = self.write_fmt(format_args!("{space}{name}={}", shown(value)));
        }
        let _ = self.write_str("}");
    }

    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Write for BreadcrumbText {
    #[inline]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = BREADCRUMB_MOST - self.len;
        if self.is_full {
            return Err(fmt::Error);
        }
        let kept = if text.len() <= left { text } else { beginning(text, left) };
        if let Some(place) = self.bytes.get_mut(self.len..self.len + kept.len()) {
            place.copy_from_slice(kept.as_bytes());
            self.len += kept.len();
        }
        self.is_full = kept.len() < text.len();
        if self.is_full { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_this_library_are_its_own() {
        assert!(is_ours("posthog") && is_ours("posthog::delivery"));
        assert!(!is_ours("posthog_worker") && !is_ours("my_app::posthog") && !is_ours(""));
    }

    #[test]
    fn fields_are_bounded_in_number_and_bytes() {
        let mut fields = Fields::new(Bounds { fields: 3, bytes: 40 });
        fields.set_text("a", format_args!("{}", "\u{e9}".repeat(100)));
        assert_eq!(fields.entries, [("a".into(), "\u{e9}".repeat(19).into())]);
        fields.set("b", 1);
        assert_eq!(fields.entries.len(), 1, "no bytes are left");
        let mut fields = Fields::new(Bounds { fields: 3, bytes: 4000 });
        for (name, value) in [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("b", 5)] {
            fields.set(name, value);
        }
        assert_eq!(fields.entries, [("a".into(), 1.into()), ("b".into(), 5.into()), ("c".into(), 3.into())]);
        fields.set("d", 6);
        assert_eq!(fields.entries.len(), 3, "no field is left");
        // The bytes of a value that is replaced are free again.
        let mut fields = Fields::new(Bounds { fields: 3, bytes: 20 });
        for _ in 0..3 {
            fields.set_text("a", format_args!("0123456789"));
        }
        fields.set_text("a", format_args!("9"));
        fields.set_text("b", format_args!("1234567890123456789"));
        assert_eq!(fields.entries, [("a".into(), "9".into()), ("b".into(), "12345678901234567".into())]);
    }

    #[test]
    fn a_breadcrumb_is_cut_between_characters_and_stays_so() {
        let mut text = BreadcrumbText { bytes: [0; BREADCRUMB_MOST], len: 0, is_full: false };
        text.message(format_args!("{}", "\u{e9}".repeat(200)));
        text.field("name", format_args!("value"));
        assert_eq!(text.as_str(), " ".to_owned() + &"\u{e9}".repeat(111));
        // Formatting that never ends is stopped.
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("and so on ")?;
                }
            }
        }
        let mut text = BreadcrumbText { bytes: [0; BREADCRUMB_MOST], len: 0, is_full: false };
        text.message(format_args!("{Endless}"));
        assert_eq!(text.as_str().len(), BREADCRUMB_MOST);
    }
}
