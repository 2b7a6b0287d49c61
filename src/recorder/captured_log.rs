//! Captures log lines, for tests.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The lines that `logging` logs on this thread under the target `posthog`, each as its level and its text.
pub(crate) fn lines_of(logging: impl FnOnce()) -> Vec<String> {
    let captured = Captured::default();
    let lines = Arc::clone(&captured.lines);
    tracing::subscriber::with_default(captured, logging);
    std::mem::take(&mut lines.lock().unwrap_or_else(PoisonError::into_inner))
}

#[derive(Default)]
struct Captured {
    lines: Arc<Mutex<Vec<String>>>,
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
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, " {value:?}");
        }
    }
}
