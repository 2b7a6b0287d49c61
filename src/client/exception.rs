//! Captures errors as `$exception` events.
//!
//! Each public method marks its own frame, so that the stack begins with its caller, notes the source line that called
//! it, and passes the error unread. If the client drops the event, the error is not read, and no stack is captured; for
//! the rate limit (`exception_limit.rs`) no more than the type of the error is asked for.

use std::borrow::Cow;
use std::error::Error;
use std::panic::Location;
use std::sync::Arc;

use super::exception_limit::{MISSED_BEFORE, key_of};
use super::receipt::{Outcome, Receipt};
use super::{Client, Shared};
use crate::config::TraceContext;
use crate::context;
use crate::crash::{Edge, Modules, trace};
use crate::event::Event;
#[cfg(feature = "anyhow")]
use crate::event::exception::printed_stack;
#[cfg(feature = "eyre")]
use crate::event::exception::stack_below;
use crate::event::exception::{CallStack, Chain, ExceptionOptions, ExceptionStack, type_of};
use crate::pipeline::Pipeline;
use crate::record::stack::{Image, Stack};
#[cfg(any(feature = "anyhow", feature = "eyre"))]
use crate::record::symbols::Symbol;
use crate::report::{Diagnostic, DropReason};
use crate::sys::reentry;

/// Where an exception is captured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Where the library's own frames end.
    edge: Edge,
    /// The call in the program.
    caller: &'static Location<'static>,
}

impl Site {
    /// The site of a call of the function that owns this local variable. That function must not be inlined into its
    /// caller, and has to be marked with `#[track_caller]`.
    #[inline(always)]
    #[track_caller]
    pub(super) fn above(local: &u8) -> Self {
        Self { edge: Edge::above(local), caller: Location::caller() }
    }

    /// The site of a log line. The place of the line is not a call, so the options have to name it in
    /// `rate_limit_key`.
    #[cfg(any(feature = "log", feature = "tracing"))]
    #[track_caller]
    pub(crate) fn of_line(edge: Edge) -> Self {
        Self { edge, caller: Location::caller() }
    }
}

/// An error that is read only if its event is not dropped.
pub(crate) trait Unread {
    /// Its type, as far as that is known without reading it.
    fn kind(&self) -> Cow<'static, str>;
    fn read(&self) -> Chain<'static>;
}

impl<E: Error + ?Sized> Unread for &E {
    fn kind(&self) -> Cow<'static, str> {
        type_of(*self)
    }

    fn read(&self) -> Chain<'static> {
        Chain::of(*self)
    }
}

impl Client {
    /// Captures an error, its sources ([`Error::source`]) and the stack of this call as an exception for PostHog's
    /// error tracking. As durable as [`capture`](Self::capture), and the receipt means the same. For a value that is no
    /// error use [`AdHocError`](crate::exceptions::AdHocError); to set more,
    /// [`capture_exception_with`](Self::capture_exception_with).
    ///
    /// Cheap enough for error paths: the stack is captured as raw addresses. Names are looked up when the event is
    /// sent, on the delivery thread, if this build has symbols ([`Config::symbolicate`](crate::Config::symbolicate)),
    /// and by PostHog if symbols were uploaded. If `Display`, `Debug` or `source` of an error panics, the event is sent
    /// without its result, and a diagnostic is recorded.
    ///
    /// An error in a loop does not flood the queue: of one type and source line, ten are captured at once and one more
    /// every ten seconds ([`Config::exception_rate_limit`](crate::Config::exception_rate_limit)).
    ///
    /// The exception belongs to the distinct id of the current [`Context`](crate::Context); without one it belongs to
    /// nobody, and PostHog creates no person. One of the process-wide client has the newest
    /// [breadcrumbs](Self::breadcrumb) as `$exception_steps`, unless the options have that property. Follows PostHog's
    /// specifications `capture-exception`, `exception-event-metadata` and `exception-steps`.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// if let Err(error) = std::fs::read("/etc/mydaemon.toml") {
    ///     client.capture_exception(&error);
    /// }
    /// // A boxed error is passed by reference:
    /// let error: Box<dyn std::error::Error> = "no configuration".into();
    /// client.capture_exception(&*error);
    /// ```
    // None of these methods is inlined, because their frames mark the edge of the stack.
    #[inline(never)]
    #[track_caller]
    pub fn capture_exception<E: Error + ?Sized>(&self, error: &E) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Site::above(&here), &error)
    }

    /// As [`capture_exception`](Self::capture_exception), with options: distinct id, level, properties and more.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::exceptions::{ExceptionOptions, Level};
    ///
    /// if let Err(error) = "x".parse::<u8>() {
    ///     let options = ExceptionOptions::new().level(Level::Warning).prop("area", "import").group("company", "acme");
    ///     client.capture_exception_with(&error, options);
    /// }
    /// ```
    #[inline(never)]
    #[track_caller]
    pub fn capture_exception_with<E: Error + ?Sized>(&self, error: &E, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Site::above(&here), &error)
    }

    /// As [`capture_exception`](Self::capture_exception), for an anyhow error: with all its contexts, and the stack
    /// that it captured itself, if any (`RUST_BACKTRACE=1`). That stack is available only as text, so its names are
    /// looked up during this call, which takes about 100 ms the first time in a large program.
    ///
    /// The type of the exception is that of the outermost error. A text added with `anyhow::Context::context` has no type,
    /// nor has `anyhow!(..)`: the type is then `Error`, and PostHog groups by the stack.
    #[cfg(feature = "anyhow")]
    #[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
    #[inline(never)]
    #[track_caller]
    pub fn capture_anyhow(&self, error: &anyhow::Error) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Site::above(&here), &Anyhow(error))
    }

    /// As [`capture_anyhow`](Self::capture_anyhow), with options.
    #[cfg(feature = "anyhow")]
    #[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
    #[inline(never)]
    #[track_caller]
    pub fn capture_anyhow_with(&self, error: &anyhow::Error, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Site::above(&here), &Anyhow(error))
    }

    /// As [`capture_exception`](Self::capture_exception), for an eyre report: with all its contexts, and the stack that
    /// it captured itself, if any (`RUST_BACKTRACE=1`), and if its handler prints it like eyre's own. The stack's names
    /// are looked up during this call, see [`capture_anyhow`](Self::capture_anyhow).
    #[cfg(feature = "eyre")]
    #[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
    #[inline(never)]
    #[track_caller]
    pub fn capture_eyre(&self, report: &eyre::Report) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Site::above(&here), &Eyre(report))
    }

    /// As [`capture_eyre`](Self::capture_eyre), with options.
    #[cfg(feature = "eyre")]
    #[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
    #[inline(never)]
    #[track_caller]
    pub fn capture_eyre_with(&self, report: &eyre::Report, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Site::above(&here), &Eyre(report))
    }

    pub(crate) fn take_exception(&self, options: ExceptionOptions, site: Site, error: &dyn Unread) -> Receipt {
        let shared = &self.shared;
        let reason = match &shared.pipeline {
            None => DropReason::Disabled,
            Some(pipeline) if pipeline.is_forked() => match shared.child_or_open(pipeline) {
                Some(child) => return child.take_exception(options, site, error),
                None => DropReason::Forked,
            },
            // Checked before the error is read and the stack captured, which would be wasted work.
            Some(_) if shared.rules.is_opted_out() => DropReason::OptedOut,
            // An error that captures itself while it is read would recurse without end.
            Some(_) if reentry::inside().refuses_captures() => DropReason::Reentrant,
            Some(pipeline) => return shared.limit_exception(pipeline, options, site, error),
        };
        shared.count(reason);
        Receipt::dropped(reason)
    }
}

impl CallStack {
    /// The stack of this call, beginning with the function that calls.
    // Not inlined, because its frame marks the edge of the stack.
    #[inline(never)]
    pub fn capture() -> Self {
        let here = 0;
        Self::of(trace(Edge::above(&here)))
    }
}

impl Shared {
    /// Captures an exception unless there are too many of its type and place.
    fn limit_exception(
        &self,
        pipeline: &Pipeline,
        options: ExceptionOptions,
        site: Site,
        error: &dyn Unread,
    ) -> Receipt {
        if options.is_failure()
            && let Some(context) = context::current()
        {
            context.note_exception();
        }
        let limit = &self.exception_limit;
        if limit.is_off() {
            return self.take_exception(pipeline, options, site.edge, error, 0);
        }
        let (kind, clock) = (error.kind(), &pipeline.options().clock);
        // A stack from where the error occurred tells errors apart that are captured in one place.
        let origin = || {
            // Some frames, because the first is that of the conversion that captured the stack.
            let addresses = options.call_stack.as_ref()?.addresses();
            Some(format!("{:x?}", addresses.get(..ORIGIN_FRAMES).unwrap_or(addresses)))
        };
        let given = options.rate_limit_key.clone().or_else(origin);
        let key = key_of(&kind, given.as_deref(), site.caller);
        match limit.admit(key, clock.now()) {
            Some(missed) => {
                let receipt = self.take_exception(pipeline, options, site.edge, error, missed);
                if missed > 0 && !matches!(receipt.outcome(), Outcome::Accepted) {
                    limit.give_back(key, missed);
                }
                receipt
            }
            None => {
                let reason = DropReason::RateLimited;
                self.count(reason);
                let has_stack = options.call_stack.is_some();
                let detail = || limit.explain(&kind, options.rate_limit_key.as_deref(), has_stack, site.caller);
                self.diagnostics.record_drop(reason, EXCEPTION, detail, clock.wall_nanos());
                Receipt::dropped(reason)
            }
        }
    }

    /// Captures an exception that stands for `missed` others.
    fn take_exception(
        &self,
        pipeline: &Pipeline,
        mut options: ExceptionOptions,
        edge: Edge,
        error: &dyn Unread,
        missed: u64,
    ) -> Receipt {
        for what in std::mem::take(&mut options.invalid) {
            self.diagnostics.record(Diagnostic::InputIgnored { what });
        }
        options.in_app = Arc::clone(&self.settings.in_app);
        let chain = error.read();
        if let Some(what) = chain.failed_call {
            let what = format!("part of a captured error was left out: its {what} panicked or failed");
            self.diagnostics.record(Diagnostic::InputIgnored { what });
        }
        let has_own_stack = chain.entries.iter().any(|entry| matches!(entry.stack, ExceptionStack::Printed(_)));
        let mut event = match options.own_stack.take().filter(|_| !has_own_stack) {
            Some(printed) => chain.with_stack(ExceptionStack::Printed(printed)).describe(options),
            None if (options.stack || options.call_stack.is_some()) && !has_own_stack => {
                let stack = options.call_stack.take().unwrap_or_else(|| CallStack::of(trace(edge)));
                let modules = Modules::loaded();
                let images: Vec<Image<'_>> = modules.images().collect();
                chain.with_stack(ExceptionStack::Captured(Stack::locate(stack.addresses(), &images))).describe(options)
            }
            None => chain.describe(options),
        };
        if missed > 0 {
            event.set_prop(MISSED_BEFORE, missed);
        }
        if !event.has(STEPS)
            && let Some(steps) = self.recent_steps()
        {
            event.set_prop(STEPS, steps);
        }
        self.add_trace(&mut event);
        self.capture(pipeline, event)
    }

    /// Adds the ids of the current trace, both or none.
    fn add_trace(&self, event: &mut Event) {
        let Some(source) = &self.settings.trace_context else { return };
        if [TRACE_ID, SPAN_ID].iter().any(|key| event.has(key)) {
            return;
        }
        // The nesting is counted, as for every callback: an exception captured inside of it calls it once more, and one
        // captured inside of that is refused.
        match reentry::calling_out(|| reentry::caught(|| source.ask())) {
            Some(trace) => {
                if let Some(trace) = trace.filter(TraceContext::is_valid) {
                    event.set_prop(TRACE_ID, trace.trace_id);
                    event.set_prop(SPAN_ID, trace.span_id);
                }
            }
            None => self.diagnostics.record(Diagnostic::CallbackPanicked { callback: "trace_context" }),
        }
    }
}

/// Frames of a given stack that distinguish exceptions for the rate limit.
const ORIGIN_FRAMES: usize = 8;
/// By these PostHog links an exception to the logs and spans of a trace.
const TRACE_ID: &str = "$trace_id";
const SPAN_ID: &str = "$span_id";
/// The breadcrumbs, oldest first.
const STEPS: &str = "$exception_steps";
/// The name of the event.
const EXCEPTION: &str = "$exception";

#[cfg(feature = "anyhow")]
pub(super) struct Anyhow<'e>(pub(super) &'e anyhow::Error);

#[cfg(feature = "anyhow")]
impl Unread for Anyhow<'_> {
    fn kind(&self) -> Cow<'static, str> {
        let error: &(dyn Error + Send + Sync) = self.0.as_ref();
        type_of(error)
    }

    fn read(&self) -> Chain<'static> {
        let is_captured = self.0.backtrace().status() == std::backtrace::BacktraceStatus::Captured;
        let own_stack = if is_captured { printed_stack(self.0.backtrace()) } else { None };
        let error: &(dyn Error + Send + Sync) = self.0.as_ref();
        with_own_stack(Chain::of(error), own_stack)
    }
}

#[cfg(feature = "eyre")]
pub(super) struct Eyre<'e>(pub(super) &'e eyre::Report);

#[cfg(feature = "eyre")]
impl Unread for Eyre<'_> {
    fn kind(&self) -> Cow<'static, str> {
        let error: &(dyn Error + Send + Sync) = self.0.as_ref();
        type_of(error)
    }

    fn read(&self) -> Chain<'static> {
        let error: &(dyn Error + Send + Sync) = self.0.as_ref();
        with_own_stack(Chain::of(error), stack_below(self.0))
    }
}

#[cfg(any(feature = "anyhow", feature = "eyre"))]
fn with_own_stack(chain: Chain<'static>, own_stack: Option<Vec<Symbol>>) -> Chain<'static> {
    match own_stack {
        Some(printed) => chain.with_stack(ExceptionStack::Printed(printed)),
        None => chain,
    }
}
