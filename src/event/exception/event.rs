//! Builds the `$exception` event of a chain of errors or of a crash.

use super::chain::{Chain, ChainEntry};
use super::options::ExceptionOptions;
use crate::event::Event;
use crate::record::msgpack::{append_array_header, append_bool, append_map_header, append_str, append_uint};
use crate::record::stack::{Stack, append_debug_images, debug_images};
use crate::record::symbols::{InAppRules, Symbol, converting_frames, module_of};

/// The stack of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExceptionStack<'a> {
    /// Return addresses; without any, there is no stack.
    Captured(Stack<'a>),
    /// Captured by the error itself, and available only as text (`printed.rs`); innermost frame first.
    Printed(Vec<Symbol>),
}

impl Default for ExceptionStack<'_> {
    fn default() -> Self {
        Self::Captured(Stack::default())
    }
}

impl Chain<'_> {
    /// Builds the event. The library's properties come last, because the last value of a repeated key counts.
    pub(crate) fn describe(&self, options: ExceptionOptions) -> Event {
        let ExceptionOptions { mut event, level, handled, mechanism, source, fingerprint, in_app, .. } = options;
        if let Some(first) = self.entries.first() {
            event.set_prop("$exception_type", &first.kind);
            event.set_prop("$exception_message", &first.message);
        }
        event.set_prop("$exception_level", level.as_str());
        if let Some(source) = source {
            event.set_prop("$exception_source", source);
        }
        if let Some(fingerprint) = fingerprint {
            event.set_prop("$exception_fingerprint", fingerprint);
        }
        let mechanism = mechanism.as_deref().unwrap_or("generic");
        event.append("$exception_list", |out| self.append_list(mechanism, handled, &in_app, out));
        let images = debug_images(self.entries.iter().filter_map(|entry| match &entry.stack {
            ExceptionStack::Captured(stack) => Some(stack),
            ExceptionStack::Printed(_) => None,
        }));
        if !images.is_empty() {
            event.append("$debug_images", |out| append_debug_images(&images, out));
        }
        event
    }

    fn append_list(&self, mechanism: &str, handled: bool, in_app: &InAppRules, out: &mut Vec<u8>) {
        append_array_header(out, self.entries.len() as u32);
        for (id, entry) in (0..).zip(&self.entries) {
            let ChainEntry { kind, module, message, thread, stack } = entry;
            let has_stack = !matches!(stack, ExceptionStack::Captured(stack) if stack.is_empty());
            let optional = [module.is_some(), thread.is_some(), has_stack];
            append_map_header(out, 3 + optional.into_iter().map(u32::from).sum::<u32>());
            append_text(out, "type", kind);
            append_text(out, "value", message);
            if let Some(module) = module {
                append_text(out, "module", module);
            }
            if let Some(thread) = *thread {
                append_number(out, "thread_id", thread);
            }
            append_str(out, "mechanism");
            append_map_header(out, if id == 0 { 4 } else { 5 });
            if id == 0 {
                append_text(out, "type", mechanism);
                append_flag(out, "handled", handled);
            } else {
                append_text(out, "type", "chained");
                append_text(out, "source", self.relation);
            }
            append_flag(out, "synthetic", id == 0 && self.is_synthetic);
            append_number(out, "exception_id", id);
            if id > 0 {
                append_number(out, "parent_id", id - 1);
            }
            if has_stack {
                append_str(out, "stacktrace");
                match stack {
                    ExceptionStack::Captured(stack) => stack.append(out),
                    ExceptionStack::Printed(frames) => append_printed(frames, in_app, out),
                }
            }
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

/// Appends the value of `stacktrace`.
fn append_printed(frames: &[Symbol], in_app: &InAppRules, out: &mut Vec<u8>) {
    append_map_header(out, 2);
    append_text(out, "type", "raw");
    append_str(out, "frames");
    append_array_header(out, frames.len() as u32);
    let is_in_app = |frame: &Symbol| in_app.is_in_app(&frame.function, frame.file.as_deref(), true);
    let converting = converting_frames(frames.iter().map(|frame| (frame.function.as_str(), is_in_app(frame))));
    for (at, frame) in frames.iter().enumerate().rev() {
        let Symbol { function, file, line } = frame;
        let module = file.as_ref().and_then(|_| module_of(function));
        let optional = [file.is_some(), line.is_some(), module.is_some()];
        append_map_header(out, 6 + optional.into_iter().map(u32::from).sum::<u32>());
        append_text(out, "platform", "native");
        append_text(out, "lang", "rust");
        append_text(out, "function", function);
        append_flag(out, "in_app", at >= converting && is_in_app(frame));
        append_flag(out, "synthetic", false);
        append_flag(out, "client_resolved", true);
        // As in `json.rs`, not without a file.
        if let Some(module) = module {
            append_text(out, "module", module);
        }
        if let Some(file) = file {
            append_text(out, "filename", file);
        }
        if let Some(line) = *line {
            append_number(out, "lineno", line.into());
        }
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
