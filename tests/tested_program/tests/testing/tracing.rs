//! The layer for `tracing`, with the real crates, beside other layers.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use posthog::exceptions::ExceptionOptions;
use posthog::integrations::tracing::{CaptureLayer, EventAction, LayerBuilder, default_action, layer, layer_for};
use posthog::testing::{Harness, QueuedEvent, queued};
use posthog::{Config, Context};
use serde_json::{Value, json};
use tracing::{Level, Subscriber, debug, error, info, trace, warn};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::{Context as LayerContext, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, registry};

fn harness() -> Harness {
    Harness::new(|config| config).unwrap()
}

/// Logs with the layer of a new client, and returns what is queued.
fn logged(log: impl FnOnce()) -> Vec<QueuedEvent> {
    logged_with(LayerBuilder::new(), log)
}

fn logged_with(builder: LayerBuilder, log: impl FnOnce()) -> Vec<QueuedEvent> {
    let harness = harness();
    let layer: CaptureLayer<Registry> = builder.client(harness.client()).build();
    tracing::subscriber::with_default(registry().with(layer), log);
    harness.queued()
}

fn exception(event: &QueuedEvent) -> (&Value, &Value, &Value) {
    let first = &event.properties["$exception_list"][0];
    assert_eq!(event.event, "$exception");
    (&first["type"], &first["value"], &event.properties["$exception_level"])
}

#[derive(Debug)]
struct CartUnreadable(std::num::ParseIntError);

impl fmt::Display for CartUnreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the cart cannot be read")
    }
}

impl Error for CartUnreadable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

fn cart_unreadable() -> CartUnreadable {
    CartUnreadable("x".parse::<u8>().unwrap_err())
}

#[test]
fn an_error_field_gives_type_message_and_sources() {
    let events = logged(|| {
        let error = cart_unreadable();
        error!(error = &error as &dyn Error, attempt = 2, second = &error as &dyn Error, "no cart for {}", "ada");
    });
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let expected = (&json!("CartUnreadable"), &json!("the cart cannot be read"), &json!("error"));
    assert_eq!(exception(event), expected);
    let source = &event.properties["$exception_list"][1];
    assert_eq!((&source["value"], &source["type"]), (&json!("invalid digit found in string"), &json!("ParseIntError")));
    let property = |name: &str| &event.properties[name];
    assert_eq!((property("attempt"), property("second")), (&json!(2), &json!("the cart cannot be read")));
    assert_eq!(event.properties.get("error"), None, "it is the exception");
    assert_eq!((property("log_message"), property("log_level")), (&json!("no cart for ada"), &json!("error")));
    assert!(property("log_target").as_str().is_some_and(|target| target.ends_with("tracing_events")));
    assert!(property("log_file").as_str().is_some_and(|file| file.ends_with("testing/tracing.rs")));
    assert!(property("log_line").is_u64() && property("log_module") == property("log_target"));
    let mechanism = &event.properties["$exception_list"][0]["mechanism"];
    assert_eq!((&mechanism["type"], &mechanism["handled"]), (&json!("logger"), &json!(true)));
    assert_eq!(property("$exception_source"), "tracing.layer");
    assert_eq!(property("$process_person_profile"), false, "there is no context");
}

#[test]
fn without_an_error_the_target_is_the_type() {
    let events = logged(|| {
        error!(target: "my_app::cart", size = 3, "cart {} is unreadable", 7);
        error!(target: "my_app::cart", size = 3, full = true);
        error!(error = %cart_unreadable(), "as text");
    });
    let said: Vec<_> = events.iter().map(|event| (exception(event).0.clone(), exception(event).1.clone())).collect();
    assert_eq!(said[0], (json!("my_app::cart"), json!("cart 7 is unreadable")));
    assert_eq!(said[1], (json!("my_app::cart"), json!("size=3 full=true")));
    assert_eq!((&said[2].1, &events[2].properties["error"]), (&json!("as text"), &json!("the cart cannot be read")));
}

#[test]
fn the_stack_begins_at_the_line_without_our_frames() {
    let harness = harness();
    let layer: CaptureLayer<Registry> = layer_for(harness.client());
    tracing::subscriber::with_default(registry().with(layer), || error!("here"));
    harness.deliver().unwrap();
    let taken = harness.server().taken();
    let frames = taken[0]["properties"]["$exception_list"][0]["stacktrace"]["frames"].as_array().unwrap();
    let functions: Vec<&str> = frames.iter().filter_map(|frame| frame["function"].as_str()).collect();
    assert!(!functions.iter().any(|function| function.starts_with("posthog::")), "{functions:?}");
    let own = frames.iter().rfind(|frame| frame["in_app"] == true).unwrap();
    assert!(own["filename"].as_str().is_some_and(|file| file.ends_with("testing/tracing.rs")), "{own}");
    assert_eq!(own["lineno"], taken[0]["properties"]["log_line"]);
}

#[test]
fn open_spans_and_their_fields_go_along() {
    let events = logged(|| {
        let outer = tracing::info_span!("request", request_id = 7, user = "ada", late = tracing::field::Empty);
        let _outer = outer.enter();
        outer.record("late", "recorded");
        let inner = tracing::warn_span!("query", user = "of the span", table = "carts", size = 1).entered();
        let _ignored = tracing::debug_span!("detail", secret = 1).entered();
        error!(size = 9, "slow");
        drop(inner);
        error!("after it");
    });
    let [slow, after] = events.as_slice() else { panic!("{events:?}") };
    let properties = |event: &QueuedEvent| {
        let names = ["request_id", "user", "late", "table", "size", "secret", "log_spans"];
        names.map(|name| event.properties.get(name).cloned().unwrap_or_default())
    };
    let spans = json!(["request", "query"]);
    assert_eq!(
        properties(slow),
        [json!(7), json!("of the span"), json!("recorded"), json!("carts"), json!(9), Value::Null, spans]
    );
    assert_eq!(
        properties(after),
        [json!(7), json!("ada"), json!("recorded"), Value::Null, Value::Null, Value::Null, json!(["request"])]
    );
}

/// A layer that notes the level and target of every event.
#[derive(Clone, Default)]
struct Noting(Arc<Mutex<Vec<(Level, String)>>>);

impl<S: Subscriber> Layer<S> for Noting {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        let metadata = event.metadata();
        self.0.lock().unwrap().push((*metadata.level(), metadata.target().to_owned()));
    }
}

impl Noting {
    fn levels(&self) -> Vec<Level> {
        self.0.lock().unwrap().iter().map(|(level, _)| *level).collect()
    }
}

fn one_of_each_level() {
    error!("error");
    warn!("warn");
    info!("info");
    debug!("debug");
    trace!("trace");
}

const ALL: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

#[test]
fn another_layer_still_gets_every_event() {
    let harness = harness();
    for is_outer in [true, false] {
        let noting = Noting::default();
        let all = || noting.clone();
        if is_outer {
            let subscriber = registry().with(layer_for(harness.client())).with(all());
            tracing::subscriber::with_default(subscriber, one_of_each_level);
        } else {
            let subscriber = registry().with(all()).with(layer_for(harness.client()));
            tracing::subscriber::with_default(subscriber, one_of_each_level);
        }
        assert_eq!(noting.levels(), ALL, "outer: {is_outer}");
    }
    assert_eq!(harness.queued().len(), 2);
}

#[test]
fn further_filters_apply_to_the_layer() {
    let harness = harness();
    let noting = Noting::default();
    let only_others = filter_fn(|metadata| metadata.target() != "quiet");
    let subscriber = registry().with(noting.clone()).with(layer_for(harness.client()).with_filter(only_others));
    tracing::subscriber::with_default(subscriber, || {
        error!(target: "quiet", "not captured");
        error!("captured");
        debug!("seen by the other");
    });
    assert_eq!((harness.queued().len(), noting.levels().len()), (1, 3));
    // A filter for all layers.
    let subscriber = registry().with(LevelFilter::OFF).with(layer_for(harness.client()));
    tracing::subscriber::with_default(subscriber, || error!("of no interest"));
    assert_eq!(harness.queued().len(), 1);
}

/// A value that counts how often it is computed.
static COMPUTED: AtomicUsize = AtomicUsize::new(0);

fn computed() -> usize {
    COMPUTED.fetch_add(1, Ordering::SeqCst)
}

#[test]
fn a_disabled_callsite_does_not_compute_its_fields() {
    let events = logged(|| {
        debug!(value = computed(), "debug");
        trace!(value = computed(), "trace");
        error!(target: "posthog::delivery", value = computed(), "a line of the library");
        let _span = tracing::debug_span!("detail", value = computed());
    });
    assert_eq!((COMPUTED.load(Ordering::SeqCst), events.len()), (0, 0));
    let nothing = LayerBuilder::new().event_filter(|_| EventAction::Ignore).span_filter(|_| false);
    logged_with(nothing, || {
        error!(value = computed(), "error");
        let _span = tracing::error_span!("detail", value = computed());
    });
    assert_eq!(COMPUTED.load(Ordering::SeqCst), 0);
    logged(|| error!(value = computed(), "error"));
    assert_eq!(COMPUTED.load(Ordering::SeqCst), 1);
}

#[test]
fn the_filter_decides_what_becomes_of_an_event() {
    let builder = LayerBuilder::new().event_filter(|metadata| match *metadata.level() {
        _ if metadata.target() == "panics" => panic!("a filter must not panic"),
        Level::TRACE => EventAction::Event,
        Level::INFO => EventAction::Exception,
        _ => EventAction::Ignore,
    });
    let events = logged_with(builder, || {
        trace!(amount = 12.5, "order paid");
        Context::new().distinct_id("user_1").enter(|| trace!(target: "orders", amount = 3));
        info!("an exception of level info");
        error!("ignored");
        error!(target: "panics", "ignored too");
    });
    let [paid, unnamed, exceptional] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((paid.event.as_str(), &paid.properties["amount"]), ("order paid", &json!(12.5)));
    assert_eq!(
        (&paid.properties["log_level"], &paid.properties["$process_person_profile"]),
        (&json!("debug"), &json!(false))
    );
    assert_eq!((unnamed.event.as_str(), unnamed.distinct_id.as_str()), ("orders", "user_1"));
    assert_eq!(exception(exceptional).2, "info");
}

#[test]
fn lines_that_repeat_a_failure_are_no_exceptions() {
    // As `TraceLayer` and `CatchPanicLayer` of tower-http log them.
    let log = || {
        error!(target: "tower_http::trace::on_failure", classification = "Status code: 500", "response failed");
        error!(target: "tower_http::catch_panic", "Service panicked: no carts");
        error!(target: "tower_http::other", "an error of its own");
    };
    let targets = |events: Vec<QueuedEvent>| -> Vec<Value> {
        events.iter().map(|event| event.properties["log_target"].clone()).collect()
    };
    assert_eq!(targets(logged(log)), ["tower_http::other"]);
    // The filter has the last word.
    let builder = LayerBuilder::new().event_filter(|metadata| match metadata.target() {
        "tower_http::catch_panic" => EventAction::Exception,
        _ => default_action(metadata),
    });
    assert_eq!(targets(logged_with(builder, log)), ["tower_http::catch_panic", "tower_http::other"]);
}

#[test]
fn lines_of_the_library_are_never_captured() {
    let events = logged(|| {
        error!(target: "posthog", "an event was dropped");
        error!(target: "posthog::delivery", "an outage");
        // As `tracing-log` passes a record of the crate `log` on.
        error!(target: "log", { log.target = "posthog" }, "an event was dropped");
        error!(target: "log", { log.target = "my_lib::io", log.line = 7_u64, log.file = "io.rs" }, "a record");
        error!(target: "posthog_worker", "of the program");
    });
    let [record, program] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((exception(record).0, exception(program).0), (&json!("my_lib::io"), &json!("posthog_worker")));
    let place = ["log_target", "log_line", "log_file"].map(|name| &record.properties[name]);
    assert_eq!(place, [&json!("my_lib::io"), &json!(7), &json!("io.rs")]);
}

#[test]
fn records_of_log_arrive_through_tracing_log() {
    use log::Log;

    let tracer = tracing_log::LogTracer::new();
    let record = |level, target, text: fmt::Arguments<'_>| {
        let mut builder = log::Record::builder();
        builder.level(level).target(target).module_path(Some("my_lib::io::file")).file(Some("io.rs")).line(Some(7));
        tracer.log(&builder.args(text).build());
    };
    let events = logged(|| {
        let _span = tracing::info_span!("request", request_id = 7).entered();
        record(log::Level::Error, "my_lib::io", format_args!("cannot read {}", "the file"));
        record(log::Level::Error, "posthog::delivery", format_args!("an outage"));
        record(log::Level::Info, "my_lib::io", format_args!("a breadcrumb"));
    });
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(exception(event), (&json!("my_lib::io"), &json!("cannot read the file"), &json!("error")));
    let names = ["log_target", "log_module", "log_file", "log_line", "request_id"];
    let expected = json!(["my_lib::io", "my_lib::io::file", "io.rs", 7, 7]);
    assert_eq!(json!(names.map(|name| event.properties[name].clone())), expected);
    assert!(!event.properties.keys().any(|key| key.starts_with("log.")), "{event:?}");
}

/// The code in the documentation of [`Config::trace_context`].
#[test]
fn an_exception_has_the_ids_of_its_opentelemetry_span() {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
    use posthog::exceptions::TraceContext;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let harness = Harness::new(|config| {
        config.trace_context(|| {
            let context = opentelemetry::Context::current();
            let span = context.span();
            let ids = span.span_context();
            ids.is_valid().then(|| TraceContext::new(ids.trace_id(), ids.span_id()))
        })
    });
    let harness = harness.unwrap();
    // Without an exporter a span has the ids of its remote parent.
    let subscriber = registry().with(tracing_opentelemetry::layer()).with(layer_for(harness.client()));
    let (trace, span) = (TraceId::from(0x0af7_6519_16cd_43dd_u128), SpanId::from(0xb7ad_6b71_u64));
    tracing::subscriber::with_default(subscriber, || {
        error!("outside of any span");
        let request = tracing::info_span!("request");
        let parent = SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default());
        request.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).unwrap();
        request.in_scope(|| {
            error!("in a span");
            harness.client().capture_exception(&cart_unreadable());
        });
    });
    let queued = harness.queued();
    let ids = |event: &QueuedEvent| ["$trace_id", "$span_id"].map(|name| event.properties.get(name).cloned());
    let expected = ["00000000000000000af7651916cd43dd", "00000000b7ad6b71"].map(|id| Some(json!(id)));
    assert_eq!([&queued[0], &queued[1], &queued[2]].map(ids), [[None, None], expected.clone(), expected]);
}

struct Panicking;

impl fmt::Debug for Panicking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("half")?;
        panic!("in Debug")
    }
}

#[test]
fn values_that_panic_while_formatted_do_no_harm() {
    let events = logged(|| {
        let _span = tracing::info_span!("span", of_span = ?Panicking).entered();
        error!(value = ?Panicking, "panics");
    });
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((exception(event).1, &event.properties["value"]), (&json!("panics"), &json!("half")));
    assert_eq!(event.properties["of_span"], "half");
}

#[test]
fn long_values_and_deep_spans_are_bounded() {
    let events = logged(|| {
        let spans: Vec<_> = (0..40).map(|_| tracing::info_span!("span", text = "s".repeat(10_000)).entered()).collect();
        error!(text = "x".repeat(100_000), "{}", "m".repeat(100_000));
        // Innermost first.
        spans.into_iter().rev().for_each(drop);
    });
    let properties = &events[0].properties;
    let len = |name: &str| properties[name].as_str().unwrap().len();
    assert_eq!((len("text"), len("log_message"), properties["log_spans"].as_array().unwrap().len()), (4096, 4096, 16));
    assert!(Value::from(properties.clone()).to_string().len() < 64 * 1024);
}

#[test]
fn the_process_wide_client_is_looked_up_for_each_line() {
    fn subscriber<S>(inner: S) -> impl Subscriber
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        inner.with(layer())
    }
    let dir = tempfile::tempdir().unwrap();
    tracing::subscriber::with_default(subscriber(registry()), || {
        error!("before init");
        let config = Config::new("phc_layer").host("http://127.0.0.1:9").queue_dir(dir.path()).opted_out(true);
        let client = posthog::init(config).unwrap();
        info!("while opted out");
        client.opt_in();
        info!(rows = 3, user = "ada", error = &cart_unreadable() as &dyn Error, "read {}", "the cart");
        warn!(target: "my_app", "{}", "long ".repeat(100));
        debug!("ignored");
        let request = tracing::info_span!("request", id = 7, user = "ada");
        request.in_scope(|| tracing::info_span!("no fields").in_scope(|| info!(size = 2, "in a request")));
        error!("failed");
        posthog::capture_exception(&cart_unreadable());
        let own = ExceptionOptions::new().prop("$exception_steps", ["of the caller"]);
        posthog::capture_exception_with(&cart_unreadable(), own);
        let queued = queued(&client);
        let [logged, captured, with_own] = queued.as_slice() else { panic!("{queued:?}") };
        let steps = logged.properties["$exception_steps"].as_array().unwrap();
        let texts: Vec<&str> = steps.iter().map(|step| step["$message"].as_str().unwrap()).collect();
        let first = "INFO testing::tracing_events: read the cart rows=3 user=ada error=the cart cannot be read";
        let third = "INFO testing::tracing_events: in a request size=2 request{id=7 user=ada}";
        assert_eq!(texts, [first, &format!("WARN my_app: {}", "long ".repeat(100))[..224], third]);
        assert_eq!(captured.properties["$exception_steps"], logged.properties["$exception_steps"]);
        assert_eq!(with_own.properties["$exception_steps"], json!(["of the caller"]));
        client.shutdown(std::time::Duration::ZERO).wait(std::time::Duration::from_secs(30)).unwrap();
    });
}
