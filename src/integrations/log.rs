//! A logger for the crate `log` that passes each record on to another logger: errors that the program logs become
//! exceptions, and the records before them breadcrumbs.
//!
//! ```no_run
//! # struct Stderr;
//! # impl log::Log for Stderr {
//! #     fn enabled(&self, _: &log::Metadata) -> bool { true }
//! #     fn log(&self, _: &log::Record) {}
//! #     fn flush(&self) {}
//! # }
//! use posthog::integrations::log::Logger;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // `Stderr` is the program's logger, such as `env_logger::Builder::from_default_env().build()`.
//!     log::set_boxed_logger(Box::new(Logger::new(Stderr)))?;
//!     log::set_max_level(log::LevelFilter::Info);
//!     let client = posthog::init(posthog::Config::from_env())?;
//!     posthog::install_panic_hook();
//!
//!     log::info!("read the cart"); // a breadcrumb
//!     log::error!(code = 7; "cannot read the cart"); // an exception with the property `code`
//!     client.close();
//!     Ok(())
//! }
//! ```
//!
//! | level | becomes |
//! |---|---|
//! | error | an exception; a breadcrumb if its target is `tower_http::trace::on_failure` or `tower_http::catch_panic` |
//! | warn, info | a breadcrumb, if the client is the process-wide one |
//! | debug, trace | nothing |
//!
//! The two targets are those of tower-http, which repeat a failure that is reported already: an error that was captured,
//! a panic, a failed response. [`Logger::event_filter`] decides otherwise; [`default_action`] is the table above. An
//! exception has the target of the record as its type, the message as its
//! message, the stack of the line, the key-value pairs of the record as properties, and the properties `log_message`,
//! `log_level`, `log_target`, `log_module`, `log_file`, `log_line` and `$exception_steps`, which are described for the
//! layer of the feature `tracing`. At most 64 pairs and 16 KiB are kept.
//!
//! A pair whose value is an error gives the exception the type, the message and the sources of the error; of several the
//! first. Such a value is made by `:err` in the macros of `log` (which need its feature `kv_std`, as this feature enables
//! it), or by `log::kv::Value::from_dyn_error`:
//!
//! ```
//! if let Err(error) = "x".parse::<u8>() {
//!     log::error!(error:err = error, attempt = 2; "cannot read the cart");
//! }
//! ```
//!
//! The library's own records, and those of packages on the library's threads, are passed on and never captured. A
//! record that is above `log::max_level` costs nothing.
//!
//! A program that passes records of `log` on to `tracing` (with `tracing-log`, which `tracing_subscriber`'s `init`
//! installs by default) uses the layer of the feature `tracing` alone. With both, each record would be reported twice.

use std::error::Error;
use std::fmt;

use ::log::kv::{self, Key, VisitSource, VisitValue};
use ::log::{Level as LogLevel, Log, Metadata, Record};

pub use super::lines::EventAction;
use super::lines::{
    BreadcrumbText, Destination, Fields, LINE_FIELDS, Line, Place, is_ours, is_refused, message_of, repeats_a_failure,
};
use crate::client::{Client, Site};
use crate::crash::Edge;
use crate::event::exception::Level;
use crate::sys::reentry;

const SOURCE: &str = "log.logger";

type ActionOf = Box<dyn Fn(&Metadata<'_>) -> EventAction + Send + Sync>;

/// A logger around another logger. See the [module](self).
pub struct Logger<L> {
    inner: L,
    destination: Destination,
    action: Option<ActionOf>,
}

impl<L: Log> Logger<L> {
    /// Passes each record on to `inner`, and captures with the process-wide client, which is looked up for each record.
    pub fn new(inner: L) -> Self {
        Self { inner, destination: Destination::ProcessWide, action: None }
    }

    /// Captures with this client. It is kept open: [`close`](Client::close) it when the program ends.
    #[must_use]
    pub fn client(mut self, client: &Client) -> Self {
        self.destination = Destination::Given(client.clone());
        self
    }

    /// Decides what becomes of a record. Called for each record; a filter that panics ignores it.
    ///
    /// ```
    /// # fn wrap<L: log::Log>(inner: L) -> posthog::integrations::log::Logger<L> {
    /// use posthog::integrations::log::{EventAction, Logger, default_action};
    ///
    /// Logger::new(inner).event_filter(|metadata| match metadata.level() {
    ///     log::Level::Error if metadata.target() == "noisy_package" => EventAction::Breadcrumb,
    ///     _ => default_action(metadata),
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn event_filter(mut self, filter: impl Fn(&Metadata<'_>) -> EventAction + Send + Sync + 'static) -> Self {
        self.action = Some(Box::new(filter));
        self
    }

    fn action(&self, metadata: &Metadata<'_>) -> EventAction {
        if is_ours(metadata.target()) {
            return EventAction::Ignore;
        }
        match &self.action {
            // The filter may log, and is then called again.
            Some(filter) => {
                reentry::calling_out(|| reentry::caught(|| filter(metadata))).unwrap_or(EventAction::Ignore)
            }
            None => default_action(metadata),
        }
    }
}

/// What becomes of a record unless [`Logger::event_filter`] says otherwise: the table of the [module](self).
pub fn default_action(metadata: &Metadata<'_>) -> EventAction {
    match metadata.level() {
        LogLevel::Error if repeats_a_failure(metadata.target()) => EventAction::Breadcrumb,
        LogLevel::Error => EventAction::Exception,
        LogLevel::Warn | LogLevel::Info => EventAction::Breadcrumb,
        _ => EventAction::Ignore,
    }
}

impl<L: Log> Log for Logger<L> {
    /// Whether the other logger wants it, or this one.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata) || (!is_refused() && self.action(metadata) != EventAction::Ignore)
    }

    // Not inlined, because its frame marks the edge of the stack.
    #[inline(never)]
    fn log(&self, record: &Record<'_>) {
        let here = 0;
        if self.inner.enabled(record.metadata()) {
            self.inner.log(record);
        }
        if is_refused() {
            return;
        }
        let edge = Edge::above(&here);
        self.destination.with(|client| match self.action(record.metadata()) {
            EventAction::Ignore => {}
            EventAction::Breadcrumb => add_breadcrumb(client, record),
            action => capture(client, record, action, edge),
        });
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl<L: fmt::Debug> fmt::Debug for Logger<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Logger");
        shown.field("inner", &self.inner).field("destination", &self.destination).finish_non_exhaustive()
    }
}

fn add_breadcrumb(client: &Client, record: &Record<'_>) {
    BreadcrumbText::add_to(client, record.level().as_str(), record.target(), |text| {
        text.message(*record.args());
        let _ = record.key_values().visit(&mut BreadcrumbVisitor(text));
    });
}

fn capture(client: &Client, record: &Record<'_>, action: EventAction, edge: Edge) {
    let takes_error = action == EventAction::Exception;
    let mut seen = FieldVisitor { fields: Fields::new(LINE_FIELDS), takes_error, has_error: false };
    visit(record, &mut seen);
    let FieldVisitor { fields, has_error, .. } = seen;
    let place = Place {
        level: level_of(record.level()),
        target: record.target(),
        module: record.module_path(),
        file: record.file(),
        line: record.line(),
    };
    let line = Line { place, message: message_of(*record.args()), fields, spans: Vec::new() };
    if action == EventAction::Event {
        client.capture(line.event());
    } else if !has_error || !capture_error(client, record, &line, edge) {
        client.take_exception(line.options(SOURCE), Site::of_line(edge), &line);
    }
}

/// Captures the error that a record has. `false` if its source does not give it a second time.
fn capture_error(client: &Client, record: &Record<'_>, line: &Line<'_>, edge: Edge) -> bool {
    let (options, outer) = (line.options(SOURCE), reentry::inside());
    // The error can be reached during the visit only.
    let mut visitor = ErrorVisitor(Some(|error: &(dyn Error + 'static)| {
        reentry::back_in(outer, || client.take_exception(options, Site::of_line(edge), &error));
    }));
    visit(record, &mut visitor);
    visitor.0.is_none()
}

/// Visits the pairs of a record. They are foreign code: a source may do anything.
fn visit<'kvs>(record: &'kvs Record<'kvs>, visitor: &mut dyn VisitSource<'kvs>) {
    reentry::calling_out(|| reentry::caught(|| record.key_values().visit(visitor).is_ok()));
}

fn level_of(level: LogLevel) -> Level {
    match level {
        LogLevel::Error => Level::Error,
        LogLevel::Warn => Level::Warning,
        LogLevel::Info => Level::Info,
        LogLevel::Debug | LogLevel::Trace => Level::Debug,
    }
}

/// Writes pairs into a breadcrumb.
struct BreadcrumbVisitor<'a>(&'a mut BreadcrumbText);

impl<'kvs> VisitSource<'kvs> for BreadcrumbVisitor<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        self.0.field(key.as_str(), format_args!("{value}"));
        Ok(())
    }
}

/// Copies pairs.
struct FieldVisitor {
    fields: Fields,
    /// The first error is not copied: it becomes the exception.
    takes_error: bool,
    has_error: bool,
}

impl<'kvs> VisitSource<'kvs> for FieldVisitor {
    fn visit_pair(&mut self, key: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        if self.takes_error && !self.has_error && value.to_borrowed_error().is_some() {
            self.has_error = true;
            return Ok(());
        }
        value.visit(ValueVisitor { fields: &mut self.fields, name: key.as_str() })
    }
}

/// Passes the first error on.
struct ErrorVisitor<F>(Option<F>);

impl<'kvs, F: FnOnce(&(dyn Error + 'static))> VisitSource<'kvs> for ErrorVisitor<F> {
    fn visit_pair(&mut self, _: Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        if let Some(error) = value.to_borrowed_error()
            && let Some(take) = self.0.take()
        {
            take(error);
        }
        Ok(())
    }
}

struct ValueVisitor<'a> {
    fields: &'a mut Fields,
    name: &'a str,
}

impl<'v> VisitValue<'v> for ValueVisitor<'_> {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        self.fields.set_text(self.name.to_owned(), format_args!("{value}"));
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.fields.set(self.name.to_owned(), value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.fields.set(self.name.to_owned(), value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.fields.set(self.name.to_owned(), value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.fields.set(self.name.to_owned(), value);
        Ok(())
    }
}
