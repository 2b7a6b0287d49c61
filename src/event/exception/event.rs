//! Builds the `$exception` event of a chain of errors or of a crash.

use super::chain::{Chain, ChainEntry};
use super::options::{ExceptionOptions, Level};
use super::printed::{Frame, PrintedStack};
use crate::event::Event;
use crate::record::msgpack::{append_array_header, append_bool, append_map_header, append_str, append_uint};
use crate::record::stack::{DebugImages, Stack};
use crate::record::symbols::is_in_app;

/// The stack of the outermost error.
#[derive(Debug)]
pub(crate) enum ExceptionStack<'a> {
    /// There is none.
    None,
    /// Captured by the call that reports the error.
    Captured(Stack<'a>),
    /// Captured earlier by the error itself, and available only as text.
    Printed(PrintedStack),
}

impl<'a> ExceptionStack<'a> {
    /// A captured stack, unless it is empty.
    pub(crate) fn captured(stack: Stack<'a>) -> Self {
        if stack.is_empty() { ExceptionStack::None } else { ExceptionStack::Captured(stack) }
    }
}

impl Chain {
    /// Builds the event. The library's properties come last, because the last value of a repeated key counts.
    pub(crate) fn describe(&self, trace: &ExceptionStack<'_>, options: ExceptionOptions) -> Event {
        let ExceptionOptions { mut event, level, handled, mechanism, source, fingerprint, .. } = options;
        event.set("$exception_type", &self.outermost.kind);
        event.set("$exception_message", &self.outermost.message);
        event.set("$exception_level", level.as_str());
        if let Some(source) = source {
            event.set("$exception_source", source);
        }
        if let Some(fingerprint) = fingerprint {
            event.set("$exception_fingerprint", fingerprint);
        }
        let mechanism = mechanism.as_deref().unwrap_or("generic");
        event.append("$exception_list", |out| self.append_list(mechanism, handled, trace, out));
        if let ExceptionStack::Captured(stack) = trace {
            let mut images = DebugImages::default();
            images.add(stack);
            if !images.is_empty() {
                event.append("$debug_images", |out| images.append(out));
            }
        }
        event
    }

    fn append_list(&self, mechanism: &str, handled: bool, trace: &ExceptionStack<'_>, out: &mut Vec<u8>) {
        append_array_header(out, self.causes.len() as u32 + 1);
        let has_stack = !matches!(trace, ExceptionStack::None);
        append_link(&self.outermost, has_stack, out);
        append_str(out, "mechanism");
        append_map_header(out, 4);
        append_text(out, "type", mechanism);
        append_flag(out, "handled", handled);
        append_flag(out, "synthetic", self.is_ad_hoc || matches!(trace, ExceptionStack::Captured(_)));
        append_number(out, "exception_id", 0);
        if has_stack {
            append_str(out, "stacktrace");
        }
        match trace {
            ExceptionStack::None => {}
            ExceptionStack::Captured(stack) => stack.append(out),
            ExceptionStack::Printed(printed) => printed.append(out),
        }
        for (parent, cause) in self.causes.iter().enumerate() {
            append_link(cause, false, out);
            append_str(out, "mechanism");
            append_map_header(out, 5);
            append_text(out, "type", "chained");
            append_text(out, "source", "cause");
            append_flag(out, "synthetic", false);
            append_number(out, "exception_id", parent as u64 + 1);
            append_number(out, "parent_id", parent as u64);
        }
    }
}

impl Event {
    /// Sets a property to the MessagePack value that `append` writes.
    pub(super) fn append(&mut self, key: &str, append: impl FnOnce(&mut Vec<u8>)) {
        append_str(&mut self.draft.body, key);
        append(&mut self.draft.body);
        self.draft.property_count = self.draft.property_count.saturating_add(1);
    }
}

impl PrintedStack {
    /// Appends the value of `stacktrace`.
    fn append(&self, out: &mut Vec<u8>) {
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

/// What a crash's event is built of.
#[derive(Debug)]
pub(crate) struct Crash<'a> {
    /// The crash, followed by the panic during whose cleanup it happened, and so on.
    pub(crate) entries: Vec<Entry<'a>>,
    /// `panic` or `signal`.
    pub(crate) mechanism: &'static str,
    /// What detected it: `$exception_source`.
    pub(crate) source: &'static str,
    pub(crate) level: Level,
}

/// One entry of `$exception_list`.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) kind: &'a str,
    pub(crate) message: &'a str,
    pub(crate) thread: Option<u64>,
    pub(crate) stack: Stack<'a>,
}

impl Crash<'_> {
    /// Builds the event. According to PostHog's specification an exception seen by a hook is not handled, and an
    /// exception that is reported later keeps the level and mechanism of the time when it happened.
    pub(crate) fn describe(&self) -> Event {
        let mut event = Event::new_anon("$exception");
        if let Some(first) = self.entries.first() {
            event.set("$exception_type", first.kind);
            event.set("$exception_message", first.message);
        }
        event.set("$exception_level", self.level.as_str());
        event.set("$exception_source", self.source);
        event.append("$exception_list", |out| self.append_list(out));
        let mut images = DebugImages::default();
        for entry in &self.entries {
            images.add(&entry.stack);
        }
        if !images.is_empty() {
            event.append("$debug_images", |out| images.append(out));
        }
        event
    }

    fn append_list(&self, out: &mut Vec<u8>) {
        append_array_header(out, self.entries.len() as u32);
        for (id, entry) in self.entries.iter().enumerate() {
            let has_stack = !entry.stack.is_empty();
            append_map_header(out, 3 + u32::from(entry.thread.is_some()) + u32::from(has_stack));
            append_text(out, "type", entry.kind);
            append_text(out, "value", entry.message);
            if let Some(thread) = entry.thread {
                append_number(out, "thread_id", thread);
            }
            append_str(out, "mechanism");
            match id {
                0 => {
                    append_map_header(out, 4);
                    append_text(out, "type", self.mechanism);
                    append_flag(out, "handled", false);
                    append_flag(out, "synthetic", false);
                    append_number(out, "exception_id", 0);
                }
                _ => {
                    append_map_header(out, 5);
                    append_text(out, "type", "chained");
                    append_text(out, "source", "context");
                    append_flag(out, "synthetic", false);
                    append_number(out, "exception_id", id as u64);
                    append_number(out, "parent_id", id.saturating_sub(1) as u64);
                }
            }
            if has_stack {
                append_str(out, "stacktrace");
                entry.stack.append(out);
            }
        }
    }
}

/// Appends an entry of the list, up to the mechanism and the stack, which the caller appends.
fn append_link(link: &ChainEntry, has_stack: bool, out: &mut Vec<u8>) {
    append_map_header(out, 3 + u32::from(link.module.is_some()) + u32::from(has_stack));
    append_text(out, "type", &link.kind);
    append_text(out, "value", &link.message);
    if let Some(module) = &link.module {
        append_text(out, "module", module);
    }
}

fn append_text(out: &mut Vec<u8>, key: &str, text: &str) {
    append_str(out, key);
    append_str(out, text);
}

fn append_flag(out: &mut Vec<u8>, key: &str, flag: bool) {
    append_str(out, key);
    append_bool(out, flag);
}

fn append_number(out: &mut Vec<u8>, key: &str, number: u64) {
    append_str(out, key);
    append_uint(out, number);
}
