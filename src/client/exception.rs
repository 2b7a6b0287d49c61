//! Errors, as `$exception` events: the same capture, of an event that is made here.
//!
//! Each public call marks its own frame, so that the stack begins with its caller, and hands on a closure that asks the error: a
//! client that takes nothing asks nothing.

use std::error::Error;

use super::receipt::Receipt;
use super::{Client, Shared};
use crate::crash::{Edge, Modules, trace};
use crate::diagnostics::Diagnostic;
use crate::event::exception::{Chain, ExceptionOptions, Printed, Trace};
use crate::pipeline::{DropReason, Pipeline};
use crate::record::stack::{Image, Stack};
use crate::sys::reentry;

/// What a report has to say: its errors, and a stack if it brought one along.
pub(super) type Told = (Chain, Option<Printed>);

impl Client {
    /// Takes an error, with those beneath it ([`Error::source`]) and the stack of this call, as an exception for PostHog's error tracking.
    /// Durable as any [`capture`](Self::capture); the receipt means the same. For what is no error there is
    /// [`AdHocError`](crate::AdHocError); for what else is to be said, [`capture_exception_with`](Self::capture_exception_with).
    ///
    /// Cheap enough for the path of an error: the stack is taken as raw addresses. They get names when the event is sent, on the delivery's
    /// thread, if this build has symbols ([`Config::symbolicate`](crate::Config::symbolicate)), and at PostHog, if symbols were uploaded
    /// there. An error whose `Display`, `Debug` or `source` panics is taken without what that would have said, and recorded.
    ///
    /// The exception is that of the current [`Context`](crate::Context)'s distinct id; without one it is nobody's, and PostHog makes no
    /// person of it. Follows PostHog's specifications `capture-exception` and `exception-event-metadata`.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// if let Err(error) = std::fs::read("/etc/mydaemon.toml") {
    ///     client.capture_exception(&error);
    /// }
    /// // A boxed one is lent like this:
    /// let error: Box<dyn std::error::Error> = "no configuration".into();
    /// client.capture_exception(&*error);
    /// ```
    // Not inlined, none of these: the caller's frame must not be ours.
    #[inline(never)]
    pub fn capture_exception<E: Error + ?Sized>(&self, error: &E) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Edge::above(&here), &|| (Chain::of(error), None))
    }

    /// [`capture_exception`](Self::capture_exception), with more to say: whose it is, how bad, where it was caught.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::{ExceptionOptions, Level};
    ///
    /// if let Err(error) = "x".parse::<u8>() {
    ///     let options = ExceptionOptions::new().level(Level::Warning).prop("area", "import").group("company", "acme");
    ///     client.capture_exception_with(&error, options);
    /// }
    /// ```
    #[inline(never)]
    pub fn capture_exception_with<E: Error + ?Sized>(&self, error: &E, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Edge::above(&here), &|| (Chain::of(error), None))
    }

    /// [`capture_exception`](Self::capture_exception) for a report of anyhow: all its contexts, and the stack that it captured itself, if
    /// it did (`RUST_BACKTRACE=1`). That stack can only be had as text, so its names are looked up here and now: some 100 ms the first
    /// time in a large program.
    #[cfg(feature = "anyhow")]
    #[inline(never)]
    pub fn capture_anyhow(&self, error: &anyhow::Error) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Edge::above(&here), &|| of_anyhow(error))
    }

    /// [`capture_anyhow`](Self::capture_anyhow), with more to say.
    #[cfg(feature = "anyhow")]
    #[inline(never)]
    pub fn capture_anyhow_with(&self, error: &anyhow::Error, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Edge::above(&here), &|| of_anyhow(error))
    }

    /// [`capture_exception`](Self::capture_exception) for a report of eyre: all its contexts, and the stack that it captured itself, if it
    /// did (`RUST_BACKTRACE=1`) and its handler prints it as eyre's own does. Its names are looked up here and now, see
    /// [`capture_anyhow`](Self::capture_anyhow).
    #[cfg(feature = "eyre")]
    #[inline(never)]
    pub fn capture_eyre(&self, report: &eyre::Report) -> Receipt {
        let here = 0;
        self.take_exception(ExceptionOptions::new(), Edge::above(&here), &|| of_eyre(report))
    }

    /// [`capture_eyre`](Self::capture_eyre), with more to say.
    #[cfg(feature = "eyre")]
    #[inline(never)]
    pub fn capture_eyre_with(&self, report: &eyre::Report, options: ExceptionOptions) -> Receipt {
        let here = 0;
        self.take_exception(options, Edge::above(&here), &|| of_eyre(report))
    }

    pub(super) fn take_exception(&self, options: ExceptionOptions, edge: Edge, ask: &dyn Fn() -> Told) -> Receipt {
        let shared = &self.shared;
        let reason = match &shared.pipeline {
            None => DropReason::Disabled,
            Some(pipeline) if pipeline.is_forked() => match shared.child_or_open(pipeline) {
                Some(child) => return child.take_exception(options, edge, ask),
                None => DropReason::Forked,
            },
            // Asked before the error and the stack are: nobody wants to know.
            Some(_) if shared.rules.is_opted_out() => DropReason::OptedOut,
            // An error that captures itself when it is asked would never end.
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
        ask: &dyn Fn() -> Told,
    ) -> Receipt {
        for what in options.take_left_out() {
            self.diagnostics.record(Diagnostic::Invalid { what });
        }
        let (chain, brought) = ask();
        if let Some(what) = chain.broken {
            let what = format!("part of a captured error was left out: its {what} panicked or failed");
            self.diagnostics.record(Diagnostic::Invalid { what });
        }
        let event = match brought.or_else(|| options.take_brought()) {
            Some(printed) => chain.describe(&Trace::Brought(printed), options),
            None if options.wants_stack() => {
                let (addresses, modules) = (trace(edge), Modules::loaded());
                let images: Vec<Image<'_>> = modules.images().collect();
                chain.describe(&Trace::of_the_call(Stack::locate(&addresses, &images)), options)
            }
            None => chain.describe(&Trace::None, options),
        };
        self.capture(pipeline, event)
    }
}

#[cfg(feature = "anyhow")]
fn of_anyhow(error: &anyhow::Error) -> Told {
    let is_captured = error.backtrace().status() == std::backtrace::BacktraceStatus::Captured;
    let brought = if is_captured { Printed::of(error.backtrace()) } else { None };
    let error: &(dyn Error + Send + Sync) = error.as_ref();
    (Chain::of(error), brought)
}

#[cfg(feature = "eyre")]
fn of_eyre(report: &eyre::Report) -> Told {
    let error: &(dyn Error + Send + Sync) = report.as_ref();
    (Chain::of(error), Printed::below(report))
}
