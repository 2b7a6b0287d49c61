//! The event that a chain of errors becomes.

use super::chain::{Chain, Link};
use super::options::ExceptionOptions;
use super::printed::Printed;
use crate::event::Event;
use crate::record::msgpack::{append_array_header, append_bool, append_map_header, append_str, append_uint};
use crate::record::stack::{DebugImages, Stack};

/// The stack of the outermost error.
#[derive(Debug)]
pub(crate) enum Trace<'a> {
    /// There is none.
    None,
    /// That of the call which reports it.
    OfTheCall(Stack<'a>),
    /// The one that it brought along.
    Brought(Printed),
}

impl<'a> Trace<'a> {
    /// A stack, unless it is empty.
    pub(crate) fn of_the_call(stack: Stack<'a>) -> Self {
        if stack.is_empty() { Trace::None } else { Trace::OfTheCall(stack) }
    }
}

impl Chain {
    /// The event. What the library says comes last: of a key that is there twice, the last value counts.
    pub(crate) fn describe(&self, trace: &Trace<'_>, options: ExceptionOptions) -> Event {
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
        if let Trace::OfTheCall(stack) = trace {
            let mut images = DebugImages::default();
            images.add(stack);
            if !images.is_empty() {
                event.append("$debug_images", |out| images.append(out));
            }
        }
        event
    }

    fn append_list(&self, mechanism: &str, handled: bool, trace: &Trace<'_>, out: &mut Vec<u8>) {
        append_array_header(out, self.causes.len() as u32 + 1);
        let has_stack = !matches!(trace, Trace::None);
        append_link(&self.outermost, has_stack, out);
        append_str(out, "mechanism");
        append_map_header(out, 4);
        append_text(out, "type", mechanism);
        append_flag(out, "handled", handled);
        append_flag(out, "synthetic", self.is_thrown || matches!(trace, Trace::OfTheCall(_)));
        append_number(out, "exception_id", 0);
        if has_stack {
            append_str(out, "stacktrace");
        }
        match trace {
            Trace::None => {}
            Trace::OfTheCall(stack) => stack.append(out),
            Trace::Brought(printed) => printed.append(out),
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
    /// Sets a property whose value `append` writes: well-formed MessagePack.
    pub(super) fn append(&mut self, key: &str, append: impl FnOnce(&mut Vec<u8>)) {
        append_str(&mut self.draft.body, key);
        append(&mut self.draft.body);
        self.draft.property_count = self.draft.property_count.saturating_add(1);
    }
}

/// An entry of the list up to its mechanism, which the caller appends next, and its stack.
fn append_link(link: &Link, has_stack: bool, out: &mut Vec<u8>) {
    append_map_header(out, 3 + u32::from(link.module.is_some()) + u32::from(has_stack));
    append_text(out, "type", &link.kind);
    append_text(out, "value", &link.message);
    if let Some(module) = &link.module {
        append_text(out, "module", module);
    }
}

pub(super) fn append_text(out: &mut Vec<u8>, key: &str, text: &str) {
    append_str(out, key);
    append_str(out, text);
}

pub(super) fn append_flag(out: &mut Vec<u8>, key: &str, flag: bool) {
    append_str(out, key);
    append_bool(out, flag);
}

pub(super) fn append_number(out: &mut Vec<u8>, key: &str, number: u64) {
    append_str(out, key);
    append_uint(out, number);
}
