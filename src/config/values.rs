//! Values of settings: choices among a few, and functions of the program (the `before_send` hook, the trace).

use std::fmt;
use std::sync::Arc;

use crate::event::Event;

/// The protocol of the endpoint for feature flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FlagsProtocol {
    /// `POST /flags/?v=2`: PostHog Cloud, and self-hosted servers since 2025.
    #[default]
    V2,
    /// `POST /decide/?v=3`, for older self-hosted servers. It returns values and payloads of flags, but no ids and no
    /// reasons.
    Decide,
}

/// A `before_send` hook: sees each event on the caller's thread before any of it reaches the disk, and may change or
/// drop it. Several hooks are a chain: each gets what the one before it returned, and the chain ends when a hook drops
/// the event.
///
/// ```
/// use posthog::{Client, Config};
/// use posthog::settings::BeforeSend;
///
/// # fn main() -> Result<(), posthog::Error> {
/// let client = Client::new(Config::disabled())?;
/// client.set_before_send([BeforeSend::new(|mut event| {
///     event.remove("secret");
///     Some(event)
/// })]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BeforeSend {
    hook: Arc<dyn Fn(Event) -> Option<Event> + Send + Sync>,
}

impl BeforeSend {
    /// A hook that returns the event, changed or not, or `None` to drop it.
    pub fn new(hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        Self { hook: Arc::new(hook) }
    }

    /// Runs the hook. It is code of the program and may panic.
    pub(crate) fn look_at(&self, event: Event) -> Option<Event> {
        (self.hook)(event)
    }
}

/// The trace and the span that an exception belongs to, as the function given to
/// [`Config::trace_context`](crate::Config::trace_context) returns them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
}

impl TraceContext {
    /// The ids as W3C Trace Context writes them: 32 and 16 lower-case hexadecimal digits. They are sent as they are
    /// given, so that PostHog finds the logs and spans with the same ids. An id that is blank, or only zeros as that of
    /// an invalid context is, belongs to no trace: then neither is sent.
    pub fn new(trace_id: impl fmt::Display, span_id: impl fmt::Display) -> Self {
        Self { trace_id: trace_id.to_string(), span_id: span_id.to_string() }
    }

    /// Whether it names a trace and a span.
    pub(crate) fn is_valid(&self) -> bool {
        [&self.trace_id, &self.span_id].iter().all(|id| id.len() <= ID_KEPT && id.chars().any(|c| !" 0".contains(c)))
    }
}

/// Maximum bytes of an id.
const ID_KEPT: usize = 128;

/// A function of the program that returns the trace of the calling thread.
#[derive(Clone)]
pub(crate) struct TraceSource(Arc<dyn Fn() -> Option<TraceContext> + Send + Sync>);

impl TraceSource {
    pub(super) fn new(source: impl Fn() -> Option<TraceContext> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// Runs the function. It is code of the program and may panic.
    pub(crate) fn ask(&self) -> Option<TraceContext> {
        (self.0)()
    }
}

impl fmt::Debug for BeforeSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeforeSend").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_without_both_ids_names_no_trace() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert!(TraceContext::new(trace, span).is_valid());
        for (trace, span) in [("", span), (trace, " "), ("00000000000000000000000000000000", span), (trace, "0")] {
            assert!(!TraceContext::new(trace, span).is_valid(), "{trace:?} {span:?}");
        }
        assert!(!TraceContext::new("1".repeat(129), span).is_valid());
    }
}
