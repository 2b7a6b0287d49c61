//! Captures log lines, for tests.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The lines that `logging` logs on this thread under the target `posthog`, each as its level and its text.
pub(crate) fn lines_of(logging: impl FnOnce()) -> Vec<String> {
    captured(logging).into_iter().map(|line| line.text).collect()
}

/// The fields of those lines besides the text, each as `name=value`.
pub(crate) fn fields_of(logging: impl FnOnce()) -> Vec<Vec<String>> {
    captured(logging).into_iter().map(|line| line.fields).collect()
}

fn captured(logging: impl FnOnce()) -> Vec<Line> {
    let captured = Captured::default();
    let lines = Arc::clone(&captured.lines);
    tracing::subscriber::with_default(captured, logging);
    std::mem::take(&mut lines.lock().unwrap_or_else(PoisonError::into_inner))
}

#[derive(Default)]
struct Captured {
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Subscriber for Captured {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "posthog"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line { text: event.metadata().level().to_string(), fields: Vec::new() };
        event.record(&mut line);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line {
    text: String,
    fields: Vec<String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => drop(write!(self.text, " {value:?}")),
            name => self.fields.push(format!("{name}={value:?}")),
        }
    }
}
