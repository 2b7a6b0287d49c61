//! Captures errors as `$exception` events.
//!
//! Each public method marks its own frame, so that the stack begins with its caller, and passes a closure that reads
//! the error. If the client drops the event, the error is not read.

use std::error::Error;

use super::receipt::Receipt;
use super::{Client, Shared};
use crate::crash::{Edge, Modules, trace};
#[cfg(feature = "anyhow")]
use crate::event::exception::printed_stack;
#[cfg(feature = "eyre")]
use crate::event::exception::stack_below;
use crate::event::exception::{Chain, ExceptionOptions, ExceptionStack};
use crate::pipeline::Pipeline;
use crate::record::stack::{Image, Stack};
#[cfg(any(feature = "anyhow", feature = "eyre"))]
use crate::record::symbols::Symbol;
use crate::report::{Diagnostic, DropReason};
use crate::sys::reentry;

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
    /// The exception belongs to the distinct id of the current [`Context`](crate::Context); without one it belongs to
    /// nobody, and PostHog creates no person. Follows PostHog's specifications `capture-exception` and
    /// `exception-event-metadata`.
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
    pub fn capture_exception<E: Error + ?Sized>(&self, error: &E) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Edge::above(&here), &|| Chain::of(error))
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
    pub fn capture_exception_with<E: Error + ?Sized>(&self, error: &E, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Edge::above(&here), &|| Chain::of(error))
    }

    /// As [`capture_exception`](Self::capture_exception), for an anyhow error: with all its contexts, and the stack
    /// that it captured itself, if any (`RUST_BACKTRACE=1`). That stack is available only as text, so its names are
    /// looked up during this call, which takes about 100 ms the first time in a large program.
    #[cfg(feature = "anyhow")]
    #[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
    #[inline(never)]
    pub fn capture_anyhow(&self, error: &anyhow::Error) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Edge::above(&here), &|| of_anyhow(error))
    }

    /// As [`capture_anyhow`](Self::capture_anyhow), with options.
    #[cfg(feature = "anyhow")]
    #[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
    #[inline(never)]
    pub fn capture_anyhow_with(&self, error: &anyhow::Error, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Edge::above(&here), &|| of_anyhow(error))
    }

    /// As [`capture_exception`](Self::capture_exception), for an eyre report: with all its contexts, and the stack that
    /// it captured itself, if any (`RUST_BACKTRACE=1`), and if its handler prints it like eyre's own. The stack's names
    /// are looked up during this call, see [`capture_anyhow`](Self::capture_anyhow).
    #[cfg(feature = "eyre")]
    #[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
    #[inline(never)]
    pub fn capture_eyre(&self, report: &eyre::Report) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Edge::above(&here), &|| of_eyre(report))
    }

    /// As [`capture_eyre`](Self::capture_eyre), with options.
    #[cfg(feature = "eyre")]
    #[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
    #[inline(never)]
    pub fn capture_eyre_with(&self, report: &eyre::Report, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Edge::above(&here), &|| of_eyre(report))
    }

    pub(crate) fn take_exception(
        &self,
        options: ExceptionOptions,
        edge: Edge,
        ask: &dyn Fn() -> Chain<'static>,
    ) -> Receipt {
        let shared = &self.shared;
        let reason = match &shared.pipeline {
            None => DropReason::Disabled,
            Some(pipeline) if pipeline.is_forked() => match shared.child_or_open(pipeline) {
                Some(child) => return child.take_exception(options, edge, ask),
                None => DropReason::Forked,
            },
            // Checked before the error is read and the stack captured, which would be wasted work.
            Some(_) if shared.rules.is_opted_out() => DropReason::OptedOut,
            // An error that captures itself while it is read would recurse without end.
            Some(_) if reentry::inside().refuses_captures() => DropReason::Reentrant,
            Some(pipeline) => return shared.take_exception(pipeline, options, edge, ask),
        };
        shared.count(reason);
        Receipt::dropped(reason)
    }
}

impl Shared {
    fn take_exception(
        &self,
        pipeline: &Pipeline,
        mut options: ExceptionOptions,
        edge: Edge,
        ask: &dyn Fn() -> Chain<'static>,
    ) -> Receipt {
        for what in std::mem::take(&mut options.invalid) {
            self.diagnostics.record(Diagnostic::InputIgnored { what });
        }
        let chain = ask();
        if let Some(what) = chain.failed_call {
            let what = format!("part of a captured error was left out: its {what} panicked or failed");
            self.diagnostics.record(Diagnostic::InputIgnored { what });
        }
        let has_own_stack = chain.entries.iter().any(|entry| matches!(entry.stack, ExceptionStack::Printed(_)));
        let event = match options.own_stack.take().filter(|_| !has_own_stack) {
            Some(printed) => chain.with_stack(ExceptionStack::Printed(printed)).describe(options),
            None if options.stack && !has_own_stack => {
                let (addresses, modules) = (trace(edge), Modules::loaded());
                let images: Vec<Image<'_>> = modules.images().collect();
                chain.with_stack(ExceptionStack::Captured(Stack::locate(&addresses, &images))).describe(options)
            }
            None => chain.describe(options),
        };
        self.capture(pipeline, event)
    }
}

#[cfg(feature = "anyhow")]
fn of_anyhow(error: &anyhow::Error) -> Chain<'static> {
    let is_captured = error.backtrace().status() == std::backtrace::BacktraceStatus::Captured;
    let own_stack = if is_captured { printed_stack(error.backtrace()) } else { None };
    let error: &(dyn Error + Send + Sync) = error.as_ref();
    with_own_stack(Chain::of(error), own_stack)
}

#[cfg(feature = "eyre")]
fn of_eyre(report: &eyre::Report) -> Chain<'static> {
    let error: &(dyn Error + Send + Sync) = report.as_ref();
    with_own_stack(Chain::of(error), stack_below(report))
}

#[cfg(any(feature = "anyhow", feature = "eyre"))]
fn with_own_stack(chain: Chain<'static>, own_stack: Option<Vec<Symbol>>) -> Chain<'static> {
    match own_stack {
        Some(printed) => chain.with_stack(ExceptionStack::Printed(printed)),
        None => chain,
    }
}
