//! The event of a crash that a hook or a handler has seen.

use super::Level;
use super::report::{append_flag, append_number, append_text};
use crate::event::Event;
use crate::record::msgpack::{append_array_header, append_map_header, append_str};
use crate::record::stack::{DebugImages, Stack};

/// A crash, as far as its event has to know it.
#[derive(Debug)]
pub(crate) struct Crash<'a> {
    /// The first is what happened; each of the others is what the one before it came during.
    pub(crate) entries: Vec<Entry<'a>>,
    /// The kind of place that noticed it: `panic`, `signal`.
    pub(crate) mechanism: &'static str,
    /// What noticed it.
    pub(crate) source: &'static str,
    pub(crate) level: Level,
}

/// One link.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) kind: &'a str,
    pub(crate) message: &'a str,
    pub(crate) thread: Option<u64>,
    pub(crate) stack: Stack<'a>,
}

impl Crash<'_> {
    /// The event. As PostHog's specification has it: what a hook has seen is not handled by that, and a crash that is told later keeps
    /// the level and the boundary of the moment at which it happened.
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
