//! The logger for `log`, around a real logger.

use std::sync::Mutex;

use log::{Level, Log, Metadata, Record};
use posthog::integrations::log::{EventAction, Logger};
use posthog::testing::{Harness, QueuedEvent};
use posthog::{Config, Event};
use serde_json::json;

/// A logger that notes what it gets, up to a level.
#[derive(Debug)]
struct Noting {
    most: Level,
    lines: Mutex<Vec<String>>,
}

impl Noting {
    fn up_to(most: Level) -> &'static Self {
        Box::leak(Box::new(Self { most, lines: Mutex::default() }))
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Log for &'static Noting {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.most
    }

    fn log(&self, record: &Record<'_>) {
        self.lines.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {
        self.lines.lock().unwrap().push("flushed".into());
    }
}

fn log_to(logger: &dyn Log, level: Level, target: &str, message: &str) {
    let pairs = [("size", log::kv::Value::from(3)), ("name", "ada".into()), ("full", true.into())];
    let record = (level, target, format!("{message} {target}"));
    logger.log(
        &Record::builder()
            .level(record.0)
            .target(record.1)
            .args(format_args!("{}", record.2))
            .module_path(Some("my_app::cart"))
            .file(Some("cart.rs"))
            .line(Some(7))
            .key_values(&pairs)
            .build(),
    );
}

fn message(event: &QueuedEvent) -> &str {
    event.properties["$exception_message"].as_str().unwrap()
}

#[test]
fn records_are_passed_on_and_errors_are_captured() {
    let harness = Harness::new(|config| config).unwrap();
    let noting = Noting::up_to(Level::Warn);
    let logger = Logger::new(noting).client(harness.client());
    // As `tracing` logs what tower-http says of a failure that is reported already.
    log_to(
        &Logger::new(Noting::up_to(Level::Error)).client(harness.client()),
        Level::Error,
        "tower_http::catch_panic",
        "of",
    );
    for level in Level::iter() {
        log_to(&logger, level, "my_app", "cart of");
        assert_eq!(logger.enabled(&Metadata::builder().level(level).target("x").build()), level <= Level::Info);
    }
    logger.flush();
    assert_eq!(noting.lines(), ["ERROR cart of my_app", "WARN cart of my_app", "flushed"]);
    let queued = harness.queued();
    let [event] = queued.as_slice() else { panic!("{queued:?}") };
    let first = &event.properties["$exception_list"][0];
    assert_eq!((&first["type"], &first["value"]), (&json!("my_app"), &json!("cart of my_app")));
    assert_eq!(first["mechanism"]["type"], "logger");
    let names = ["size", "name", "full", "log_module", "log_file", "log_line", "log_level", "$exception_source"];
    let expected = json!([3, "ada", true, "my_app::cart", "cart.rs", 7, "error", "log.logger"]);
    assert_eq!(json!(names.map(|name| event.properties[name].clone())), expected);
    assert!(!first["stacktrace"].is_null());
}

#[test]
fn the_filter_of_the_logger_decides() {
    let harness = Harness::new(|config| config).unwrap();
    let logger = Logger::new(Noting::up_to(Level::Trace)).client(harness.client()).event_filter(|metadata| {
        match metadata.level() {
            Level::Error => panic!("a filter must not panic"),
            Level::Warn => EventAction::Exception,
            Level::Debug => EventAction::Event,
            _ => EventAction::Ignore,
        }
    });
    for level in Level::iter() {
        log_to(&logger, level, "my_app", "order paid by");
    }
    let names: Vec<_> = harness.queued().into_iter().map(|event| event.event).collect();
    assert_eq!(names, ["$exception", "order paid by my_app"]);
}

#[test]
fn a_hook_that_logs_and_own_records_do_not_loop() {
    static LOGGER: std::sync::OnceLock<Logger<&'static Noting>> = std::sync::OnceLock::new();
    fn hook(config: Config) -> Config {
        config.before_send(|event: Event| {
            if let Some(logger) = LOGGER.get() {
                log_to(logger, Level::Error, "hook", "in the");
            }
            Some(event)
        })
    }
    let harness = Harness::new(hook).unwrap();
    let noting = Noting::up_to(Level::Error);
    let logger = LOGGER.get_or_init(|| Logger::new(noting).client(harness.client()));
    log_to(logger, Level::Error, "posthog::delivery", "about");
    assert!(harness.queued().is_empty(), "a record of the library");
    log_to(logger, Level::Error, "my_app", "failure of");
    let queued = harness.queued();
    assert_eq!(queued.iter().map(message).collect::<Vec<_>>(), ["in the hook", "failure of my_app"]);
    assert_eq!(noting.lines().len(), 3, "all are passed on");
}
