//! The logger for `log`, around a real logger.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::sync::{Mutex, OnceLock};

use log::kv::{Key, Source, Value as KvValue, VisitSource};
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

fn log_pairs(logger: &dyn Log, level: Level, pairs: &dyn Source) {
    logger.log(
        &Record::builder()
            .level(level)
            .target("my_app")
            .args(format_args!("no cart for ada"))
            .file(Some("cart.rs"))
            .line(Some(7))
            .key_values(&pairs)
            .build(),
    );
}

#[test]
fn an_error_among_the_pairs_gives_type_and_sources() {
    let harness = Harness::new(|config| config).unwrap();
    let logger = Logger::new(Noting::up_to(Level::Warn)).client(harness.client()).event_filter(|metadata| {
        if metadata.level() == Level::Error { EventAction::Exception } else { EventAction::Event }
    });
    let (first, second) = (cart_unreadable(), cart_unreadable());
    let pairs = [
        ("attempt", KvValue::from(2)),
        ("error", KvValue::from_dyn_error(&first)),
        ("second", KvValue::from_dyn_error(&second)),
    ];
    log_pairs(&logger, Level::Error, &pairs);
    log_pairs(&logger, Level::Warn, &pairs);
    let queued = harness.queued();
    let [exception, event] = queued.as_slice() else { panic!("{queued:?}") };
    let list = &exception.properties["$exception_list"];
    let chain = [0, 1].map(|at| (list[at]["type"].clone(), list[at]["value"].clone()));
    let expected = [("CartUnreadable", "the cart cannot be read"), ("ParseIntError", "invalid digit found in string")];
    assert_eq!(chain, expected.map(|(kind, value)| (json!(kind), json!(value))));
    assert!(!list[0]["stacktrace"].is_null());
    let property = |name: &str| exception.properties.get(name).cloned().unwrap_or_default();
    assert_eq!((property("attempt"), property("second")), (json!(2), json!("the cart cannot be read")));
    assert_eq!((property("error"), property("log_message")), (json!(null), json!("no cart for ada")));
    assert_eq!(event.event, "no cart for ada");
    assert_eq!(event.properties["error"], "the cart cannot be read", "an event has no chain");
}

/// Pairs that log when they are visited, and give their error for the first time only.
struct Chatty {
    logger: &'static OnceLock<Logger<&'static Noting>>,
    error: CartUnreadable,
    visits: Cell<u32>,
}

impl Source for Chatty {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), log::kv::Error> {
        self.visits.set(self.visits.get() + 1);
        assert!(self.visits.get() < 1000, "it is visited without end");
        log_pairs(self.logger.get().unwrap(), Level::Error, self);
        let again = Chatty { logger: self.logger, error: cart_unreadable(), visits: Cell::new(1) };
        log_pairs(self.logger.get().unwrap(), Level::Error, &[("error", KvValue::from_dyn_error(&again.error))]);
        match self.visits.get() {
            1..=4 => visitor.visit_pair(Key::from_str("error"), KvValue::from_dyn_error(&self.error)),
            _ => visitor.visit_pair(Key::from_str("visits"), self.visits.get().into()),
        }
    }
}

#[test]
fn pairs_that_log_and_change_do_not_loop_or_lose_the_line() {
    static LOGGER: OnceLock<Logger<&'static Noting>> = OnceLock::new();
    let harness = Harness::new(|config| config.exception_rate_limit(0, std::time::Duration::from_secs(1))).unwrap();
    LOGGER.get_or_init(|| Logger::new(Noting::up_to(Level::Error)).client(harness.client()));
    let chatty = Chatty { logger: &LOGGER, error: cart_unreadable(), visits: Cell::new(0) };
    log_pairs(LOGGER.get().unwrap(), Level::Error, &chatty);
    let visits = chatty.visits.get();
    assert!((2..100).contains(&visits), "{visits}");
    let queued = harness.queued();
    assert!(queued.iter().any(|event| event.properties["$exception_list"][0]["type"] == "CartUnreadable"));
    assert!(queued.iter().any(|event| event.properties["$exception_list"][0]["type"] == "my_app"), "the line itself");
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
                log_pairs(logger, Level::Error, &[("error", KvValue::from_dyn_error(&cart_unreadable()))]);
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
    let messages: Vec<_> = queued.iter().map(message).collect();
    assert_eq!(messages, ["in the hook", "the cart cannot be read", "failure of my_app"]);
    assert_eq!(noting.lines().len(), 4, "all are passed on");
}
