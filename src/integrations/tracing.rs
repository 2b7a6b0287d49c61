//! A layer for `tracing-subscriber`: errors that the program logs become exceptions, and the lines before them
//! breadcrumbs.
//!
//! ```no_run
//! use tracing_subscriber::prelude::*;
//!
//! fn main() -> Result<(), posthog::Error> {
//!     // The layer may be installed first: lines before `init` are not captured.
//!     tracing_subscriber::registry().with(posthog::integrations::tracing::layer()).init();
//!     let client = posthog::init(posthog::Config::from_env())?;
//!     posthog::install_panic_hook();
//!
//!     let request = tracing::info_span!("request", request_id = 7, user = "ada");
//!     request.in_scope(|| {
//!         // A breadcrumb: it is in the next crash report, and after a SIGKILL in `Client::previous_run`.
//!         tracing::info!(rows = 3, "read the cart");
//!         if let Err(error) = "x".parse::<u8>() {
//!             // An exception with the type, the message and the sources of the error, the stack of this line, and
//!             // the properties `attempt`, `request_id`, `user`, `log_message`, ...
//!             tracing::error!(error = &error as &dyn std::error::Error, attempt = 2, "cannot read the cart");
//!         }
//!     });
//!     client.close();
//!     Ok(())
//! }
//! ```
//!
//! # What becomes of an event
//!
//! | level | becomes |
//! |---|---|
//! | ERROR | an exception; a breadcrumb if its target is `tower_http::trace::on_failure` or `tower_http::catch_panic` |
//! | WARN, INFO | a breadcrumb, if the client is the process-wide one |
//! | DEBUG, TRACE | nothing; costs nothing, and its fields are not evaluated for this layer |
//!
//! The two targets are those of tower-http's `TraceLayer` ("response failed") and `CatchPanicLayer` ("Service panicked").
//! They repeat what failed: the error that was captured, the panic of which the panic hook sends the stack, or the
//! response that `ServerErrorLayer` of the feature `tower` captures. With none of these, have them become exceptions.
//! An error that the program captures itself is best logged at level WARN, or not at all: as an ERROR it is a second
//! exception.
//!
//! [`LayerBuilder::event_filter`] decides otherwise, by the metadata of an event ([`EventAction`]). [`default_action`]
//! is the table above:
//!
//! ```no_run
//! use posthog::integrations::tracing::{EventAction, LayerBuilder, default_action};
//! use tracing::Level;
//! use tracing_subscriber::prelude::*;
//!
//! let layer = LayerBuilder::new()
//!     .event_filter(|metadata| match *metadata.level() {
//!         // Lines of the target `billing` are events of their own: `tracing::info!(target: "billing", "order paid")`.
//!         _ if metadata.target() == "billing" => EventAction::Event,
//!         Level::ERROR if metadata.target() == "noisy_package" => EventAction::Breadcrumb,
//!         _ => default_action(metadata),
//!     })
//!     .build();
//! tracing_subscriber::registry().with(layer).init();
//! ```
//!
//! # An exception
//!
//! A field that is recorded as an error (`error = &error as &dyn std::error::Error`) gives the type, the message and the
//! sources; of several the first. An error that is recorded as text (`error = %error`) is a property like any other.
//! Without an error the exception's type is the target of the event, its message that of the event. The stack is that
//! of the line, and the level that of the event.
//!
//! | property | meaning |
//! |---|---|
//! | the names of the fields | the fields of the event, and those of the open spans. Of two with one name, that of the event counts, then that of the innermost span |
//! | `log_message` | the message |
//! | `log_level`, `log_target` | `error`, `warning`, `info`, `debug`; the target |
//! | `log_module`, `log_file`, `log_line` | where the event is in the source |
//! | `log_spans` | the names of the open spans, outermost first |
//! | `$exception_steps` | the breadcrumbs before it, if the client is the process-wide one: `LEVEL target: message name=value`, then the fields of the open spans, innermost first, as in ` request{id=7}`, as far as 224 bytes go |
//!
//! At most 64 fields and 16 KiB of an event are kept, and of the innermost 16 spans 16 fields and 2 KiB each; longer
//! texts are cut. A message, a field or a breadcrumb may hold what the program must not send: `before_send` sees it.
//!
//! Exceptions belong to the distinct id of the current [`Context`](crate::Context), like all events without one.
//!
//! # Other layers, filters, loops
//!
//! * The layer has a filter of its own ([per-layer filtering](tracing_subscriber::layer#per-layer-filtering)), so it
//!   never disables an event for another layer. A further filter may be added with `with_filter`, and a filter for all
//!   layers (`LevelFilter`, `EnvFilter` with `with`) applies to this one too. The subscriber must be the `Registry` or
//!   one that supports per-layer filters.
//! * Spans of the levels ERROR, WARN and INFO are kept ([`LayerBuilder::span_filter`]); others are as if they were not
//!   open.
//! * The library's own lines, and those of packages on the library's threads, are never captured. A hook of the program
//!   (`before_send`, `on_diagnostic`) may log errors: they are captured, but what is logged while they are captured is
//!   not.
//! * If records of the crate `log` reach the subscriber through `tracing-log`, they are captured like events of
//!   `tracing`. [`LayerBuilder::event_filter`] is also called with the target `log` for each of them, and that answer
//!   counts. Do not install the logger of the feature `log` as well: each line would be reported twice.

use std::error::Error;
use std::fmt::{self, Debug};
use std::sync::Arc;

use ::tracing::field::{Field, Visit};
use ::tracing::span::{Attributes, Id, Record};
use ::tracing::subscriber::Interest;
use ::tracing::{Level as TracingLevel, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Filtered, LevelFilter};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

pub use super::lines::EventAction;
use super::lines::{
    Bounds, BreadcrumbText, Destination, Fields, LINE_FIELDS, Line, OpenSpan, Place, is_ours, is_refused, message_of,
    repeats_a_failure,
};
use crate::client::{Client, Site};
use crate::crash::Edge;
use crate::event::exception::Level;
use crate::sys::reentry;

/// Kept of one span.
const SPAN_FIELDS: Bounds = Bounds { fields: 16, bytes: 2 * 1024 };
/// The number of open spans that go along, from the innermost.
const SPANS_MOST: usize = 16;
const SOURCE: &str = "tracing.layer";
/// The target of records of the crate `log` that `tracing-log` passes on; theirs is in a field.
const OF_LOG: &str = "log";

/// What [`layer`] returns: a layer with the filter that says which events and spans it wants.
pub type CaptureLayer<S> = Filtered<EventLayer, CallsiteFilter, S>;

/// A layer for the process-wide client, which is looked up for each event. Before [`init`](crate::init) it captures
/// nothing. See the [module](self).
pub fn layer<S: Subscriber + for<'span> LookupSpan<'span>>() -> CaptureLayer<S> {
    LayerBuilder::new().build()
}

/// A layer for this client. It keeps the client open: [`close`](Client::close) it when the program ends.
///
/// Breadcrumbs are kept by the process-wide client only.
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// use tracing_subscriber::prelude::*;
///
/// let subscriber = tracing_subscriber::registry().with(posthog::integrations::tracing::layer_for(&client));
/// tracing::subscriber::with_default(subscriber, || tracing::error!(code = 7, "cannot read the cart"));
/// ```
pub fn layer_for<S: Subscriber + for<'span> LookupSpan<'span>>(client: &Client) -> CaptureLayer<S> {
    LayerBuilder::new().client(client).build()
}

type ActionOf = Box<dyn Fn(&Metadata<'_>) -> EventAction + Send + Sync>;
type IsKept = Box<dyn Fn(&Metadata<'_>) -> bool + Send + Sync>;

/// A layer with other rules than those of [`layer`]. See the [module](self).
#[derive(Default)]
#[must_use = "a builder does nothing by itself: call `build`"]
pub struct LayerBuilder {
    destination: Destination,
    action: Option<ActionOf>,
    keeps_span: Option<IsKept>,
}

impl LayerBuilder {
    /// The rules of [`layer`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Captures with this client. Default: the process-wide client.
    pub fn client(mut self, client: &Client) -> Self {
        self.destination = Destination::Given(client.clone());
        self
    }

    /// Decides what becomes of an event. `filter` is called when the place of an event in the source is reached for the
    /// first time, and its answer [`EventAction::Ignore`] may be kept; then once for each event. So it must answer the
    /// same for the same metadata. A filter that panics ignores the event.
    pub fn event_filter(mut self, filter: impl Fn(&Metadata<'_>) -> EventAction + Send + Sync + 'static) -> Self {
        self.action = Some(Box::new(filter));
        self
    }

    /// Decides which spans are kept for the events inside of them. Default: those of the levels ERROR, WARN and INFO.
    /// Called when the place of a span in the source is reached for the first time, and again if another layer's answer
    /// may change. So it must answer the same for the same metadata.
    pub fn span_filter(mut self, filter: impl Fn(&Metadata<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.keeps_span = Some(Box::new(filter));
        self
    }

    /// The layer.
    pub fn build<S: Subscriber + for<'span> LookupSpan<'span>>(self) -> CaptureLayer<S> {
        let Self { destination, action, keeps_span } = self;
        let rules = Arc::new(Rules { action, keeps_span });
        EventLayer { destination, rules: Arc::clone(&rules) }.with_filter(CallsiteFilter { rules })
    }
}

impl Debug for LayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerBuilder").field("destination", &self.destination).finish_non_exhaustive()
    }
}

/// What becomes of an event unless [`LayerBuilder::event_filter`] says otherwise: the table of the [module](self).
pub fn default_action(metadata: &Metadata<'_>) -> EventAction {
    match *metadata.level() {
        TracingLevel::ERROR if repeats_a_failure(metadata.target()) => EventAction::Breadcrumb,
        TracingLevel::ERROR => EventAction::Exception,
        TracingLevel::WARN | TracingLevel::INFO => EventAction::Breadcrumb,
        _ => EventAction::Ignore,
    }
}

struct Rules {
    action: Option<ActionOf>,
    keeps_span: Option<IsKept>,
}

/// Calls a filter of the program, which may log and so be called again; `None` if it panics.
fn called<T>(filter: impl FnOnce() -> T) -> Option<T> {
    reentry::calling_out(|| reentry::caught(filter))
}

impl Rules {
    #[inline]
    fn action(&self, metadata: &Metadata<'_>) -> EventAction {
        match &self.action {
            Some(filter) => called(|| filter(metadata)).unwrap_or(EventAction::Ignore),
            None => default_action(metadata),
        }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        if is_ours(metadata.target()) {
            return false;
        }
        if metadata.is_event() {
            return self.action(metadata) != EventAction::Ignore;
        }
        match &self.keeps_span {
            Some(filter) => called(|| filter(metadata)).unwrap_or(false),
            None => *metadata.level() <= TracingLevel::INFO,
        }
    }
}

/// The filter of a [`CaptureLayer`]: the events and spans that the layer does not ignore.
pub struct CallsiteFilter {
    rules: Arc<Rules>,
}

impl<S> Filter<S> for CallsiteFilter {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        // A filter that logs is called for its own line, and no deeper.
        reentry::inside().depth <= 1 && self.rules.wants(metadata)
    }

    /// The answer does not change, so it is asked for once, unless another layer's answer does.
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if reentry::inside().depth > 1 {
            return Interest::sometimes();
        }
        if self.rules.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        (self.rules.action.is_none() && self.rules.keeps_span.is_none()).then_some(LevelFilter::INFO)
    }
}

impl Debug for CallsiteFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallsiteFilter")
    }
}

/// The layer inside of a [`CaptureLayer`].
pub struct EventLayer {
    destination: Destination,
    rules: Arc<Rules>,
}

impl Debug for EventLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLayer").field("destination", &self.destination).finish_non_exhaustive()
    }
}

/// The fields of a span, in its extensions.
struct SpanFields(Fields);

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for EventLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.values().is_empty() || is_refused() {
            return;
        }
        let mut recorded = FieldVisitor::new(SPAN_FIELDS, false);
        attributes.record(&mut recorded);
        keep(recorded.fields, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if is_refused() {
            return;
        }
        let mut recorded = FieldVisitor::new(SPAN_FIELDS, false);
        values.record(&mut recorded);
        keep(recorded.fields, id, &context);
    }

    // Not inlined, because its frame marks the edge of the stack.
    #[inline(never)]
    fn on_event(&self, event: &::tracing::Event<'_>, context: Context<'_, S>) {
        let here = 0;
        if is_refused() {
            return;
        }
        let edge = Edge::above(&here);
        self.destination.with(|client| match self.rules.action(event.metadata()) {
            EventAction::Ignore => {}
            EventAction::Breadcrumb => add_breadcrumb(client, event, &context),
            action => capture(client, event, open_spans(event, &context), action, edge),
        });
    }
}

/// Keeps fields with their span. They were formatted before: the program's code must not run under the span's lock.
fn keep<S: Subscriber + for<'span> LookupSpan<'span>>(fields: Fields, id: &Id, context: &Context<'_, S>) {
    let Some(span) = context.span(id).filter(|_| !fields.is_empty()) else { return };
    let mut extensions = span.extensions_mut();
    match extensions.get_mut::<SpanFields>() {
        Some(SpanFields(known)) => known.merge(fields),
        None => {
            extensions.replace(SpanFields(fields));
        }
    }
}

fn open_spans<S: Subscriber + for<'span> LookupSpan<'span>>(
    event: &::tracing::Event<'_>,
    context: &Context<'_, S>,
) -> Vec<OpenSpan> {
    let scope = context.event_scope(event).into_iter().flatten().take(SPANS_MOST);
    let copy = |span: tracing_subscriber::registry::SpanRef<'_, S>| {
        let fields = span.extensions().get::<SpanFields>().map(|SpanFields(fields)| fields.clone());
        OpenSpan { name: span.name(), fields }
    };
    let mut spans: Vec<OpenSpan> = scope.map(copy).collect();
    spans.reverse();
    spans
}

fn add_breadcrumb<S: Subscriber + for<'span> LookupSpan<'span>>(
    client: &Client,
    event: &::tracing::Event<'_>,
    context: &Context<'_, S>,
) {
    let metadata = event.metadata();
    if metadata.target() != OF_LOG {
        return BreadcrumbText::add_to(client, metadata.level().as_str(), metadata.target(), |text| {
            event.record(&mut BreadcrumbVisitor(text));
            // All requests share the ring: the fields of the spans tell their breadcrumbs apart. They were formatted when
            // they were recorded, so no code of the program runs while they are locked.
            for span in context.event_scope(event).into_iter().flatten().take(SPANS_MOST) {
                if let Some(SpanFields(fields)) = span.extensions().get::<SpanFields>() {
                    text.fields_of_span(span.name(), fields);
                }
            }
        });
    }
    let mut seen = FieldVisitor::new(LINE_FIELDS, false);
    event.record(&mut seen);
    let target = seen.of_log.target.unwrap_or_else(|| OF_LOG.to_owned());
    if !is_ours(&target) {
        BreadcrumbText::add_to(client, metadata.level().as_str(), &target, |text| {
            text.message(format_args!("{}", seen.message));
        });
    }
}

fn capture(client: &Client, event: &::tracing::Event<'_>, spans: Vec<OpenSpan>, action: EventAction, edge: Edge) {
    let metadata = event.metadata();
    let mut seen = FieldVisitor::new(LINE_FIELDS, action == EventAction::Exception);
    event.record(&mut seen);
    let FieldVisitor { message, fields, of_log, has_error, .. } = seen;
    let place = Place {
        level: level_of(*metadata.level()),
        target: of_log.target.as_deref().unwrap_or(metadata.target()),
        module: of_log.module.as_deref().or(metadata.module_path()),
        file: of_log.file.as_deref().or(metadata.file()),
        line: of_log.line.or(metadata.line()),
    };
    if is_ours(place.target) {
        return;
    }
    let line = Line { place, message, fields, spans };
    if action == EventAction::Event {
        client.capture(line.event());
    } else if has_error {
        let options = line.options(SOURCE);
        // The error can be reached during the visit only.
        event.record(&mut ErrorVisitor(Some(|error: &(dyn Error + 'static)| {
            client.take_exception(options, Site::of_line(edge), &error);
        })));
    } else {
        client.take_exception(line.options(SOURCE), Site::of_line(edge), &line);
    }
}

fn level_of(level: TracingLevel) -> Level {
    match level {
        TracingLevel::ERROR => Level::Error,
        TracingLevel::WARN => Level::Warning,
        TracingLevel::INFO => Level::Info,
        _ => Level::Debug,
    }
}

/// Where a record of the crate `log` came from, in the fields that `tracing-log` gives it.
#[derive(Default)]
struct OfLog {
    target: Option<String>,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
}

/// Copies message and fields.
struct FieldVisitor {
    message: String,
    fields: Fields,
    of_log: OfLog,
    /// The first error is not a field: it becomes the exception.
    takes_error: bool,
    has_error: bool,
}

impl FieldVisitor {
    fn new(bounds: Bounds, takes_error: bool) -> Self {
        let (message, of_log) = (String::new(), OfLog::default());
        Self { message, fields: Fields::new(bounds), of_log, takes_error, has_error: false }
    }
}

impl Visit for FieldVisitor {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = message_of(format_args!("{value:?}")),
            name => self.fields.set_text(name, format_args!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = message_of(format_args!("{value}")),
            "log.target" => self.of_log.target = Some(value.to_owned()),
            "log.module_path" => self.of_log.module = Some(value.to_owned()),
            "log.file" => self.of_log.file = Some(value.to_owned()),
            name => self.fields.set_text(name, format_args!("{value}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if self.takes_error && !self.has_error {
            self.has_error = true;
            return;
        }
        self.fields.set_text(field.name(), format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "log.line" => self.of_log.line = u32::try_from(value).ok(),
            name => self.fields.set(name, value),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.set(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.set(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.set(field.name(), value);
    }
}

/// Writes message and fields into a breadcrumb.
struct BreadcrumbVisitor<'a>(&'a mut BreadcrumbText);

impl Visit for BreadcrumbVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.0.message(format_args!("{value:?}")),
            name => self.0.field(name, format_args!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.0.message(format_args!("{value}")),
            name => self.0.text_field(name, value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.field(field.name(), format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.field(field.name(), format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.0.field(field.name(), format_args!("{value}"));
    }
}

/// Passes the first error on.
struct ErrorVisitor<F>(Option<F>);

impl<F: FnOnce(&(dyn Error + 'static))> Visit for ErrorVisitor<F> {
    fn record_error(&mut self, _: &Field, value: &(dyn Error + 'static)) {
        if let Some(take) = self.0.take() {
            take(value);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}
