//! A logger that captures log lines. A test program of its own, because a process has one logger.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helper functions")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use posthog::feature_flags::{FlagContext, FlagsProblem};
use posthog::{Client, Config, DropReason, Event, Outcome};
use sink::{Answer, Sink};
use tracing::span::{Attributes, Id, Record};

static CLIENT: OnceLock<Client> = OnceLock::new();
/// Lines of dependencies, logged on threads of the library.
static LINES: AtomicU64 = AtomicU64::new(0);
/// Lines of the library itself.
static OWN_LINES: AtomicU64 = AtomicU64::new(0);

/// The library's own lines: level, fields, text.
static OWN_TEXTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether the logger evaluates flags for each of those lines.
static EVALUATES: AtomicBool = AtomicBool::new(false);
/// The result of that evaluation, if it was there at once.
static PROBLEMS: Mutex<Vec<Option<FlagsProblem>>> = Mutex::new(Vec::new());

fn evaluate_for_line(client: &Client) {
    let nobody_known = format!("line_{}", LINES.load(Ordering::SeqCst));
    let flags = client.evaluate_flags(FlagContext::new(nobody_known).ask_posthog(true)).try_get();
    let problem = flags.and_then(|flags| flags.problem().cloned());
    PROBLEMS.lock().unwrap().push(problem);
}

fn capture_line(target: &str) {
    let Some(client) = CLIENT.get() else { return };
    if target != "posthog" && EVALUATES.load(Ordering::SeqCst) {
        evaluate_for_line(client);
    }
    let lines = if target == "posthog" { &OWN_LINES } else { &LINES };
    lines.fetch_add(1, Ordering::SeqCst);
    client.capture(Event::new("log_line", "logger").prop("target", target));
}

/// The logger of packages that use `log`, as reqwest does.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        capture_line(record.target());
    }

    fn flush(&self) {}
}

/// The subscriber of packages that use `tracing`, as this library does.
struct Subscriber;

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        // Own lines below INFO are about requests, as those of dependencies are: they must not be captured either.
        let metadata = event.metadata();
        if metadata.target() == "posthog" {
            let mut line = Line(metadata.level().to_string());
            event.record(&mut line);
            OWN_TEXTS.lock().unwrap().push(line.0);
        }
        let is_about_request = metadata.target() == "posthog" && *metadata.level() > tracing::Level::INFO;
        capture_line(if is_about_request { "posthog request" } else { metadata.target() });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A line with its fields.
struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

/// The first of the library's own lines that begins and continues like this.
#[track_caller]
fn own_line(level: &str, kind: &str) -> String {
    let lines = OWN_TEXTS.lock().unwrap();
    let kind = format!("kind={kind:?}");
    let line = lines.iter().find(|line| line.starts_with(level) && line.contains(&kind));
    line.unwrap_or_else(|| panic!("no line of {kind}: {lines:#?}")).clone()
}

#[track_caller]
fn must_have(line: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(line.contains(part), "{part} is missing in {line}"));
}

#[test]
fn log_lines_of_requests_are_not_captured_but_diagnostics_are() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    tracing::subscriber::set_global_default(Subscriber).unwrap();
    let (sink, dir) = (Sink::start(), tempfile::tempdir().unwrap());
    let config = Config::new("phc_logger_and_the_rest").host(sink.url()).queue_dir(dir.path()).flush_at(1);
    let client = CLIENT.get_or_init(|| Client::new(config).unwrap());
    let queued_lines = OWN_LINES.load(Ordering::SeqCst);
    assert!(matches!(client.capture(Event::new("tick", "user_1")).outcome(), Outcome::Accepted));
    assert!(client.flush().wait(Duration::from_secs(30)).is_ok());
    std::thread::sleep(Duration::from_millis(500));
    assert!(LINES.load(Ordering::SeqCst) > 0, "no package below us has logged anything, so this shows nothing");
    let stats = client.stats();
    assert_eq!(stats.accepted, 1, "{stats:?}");
    let refused = |(reason, count): &(DropReason, u64)| (*reason == DropReason::Reentrant).then_some(*count);
    assert!(stats.dropped.iter().find_map(refused) >= Some(1), "{stats:?}");
    // A flag evaluation inside such a line sends no request either.
    EVALUATES.store(true, Ordering::SeqCst);
    let flags = client.evaluate_flags(FlagContext::new("user_1")).wait(Duration::from_secs(30)).unwrap();
    assert_eq!(flags.problem(), None);
    std::thread::sleep(Duration::from_millis(500));
    EVALUATES.store(false, Ordering::SeqCst);
    let asked = sink.requests().iter().filter(|request| request.path.starts_with("/flags")).count();
    assert_eq!(asked, 1, "each request is the cause of the next");
    let problems = std::mem::take(&mut *PROBLEMS.lock().unwrap());
    let says_why = |problem: &Option<FlagsProblem>| matches!(problem, Some(FlagsProblem::NoAnswer { why }) if why.contains("log record"));
    assert!(!problems.is_empty() && problems.iter().all(says_why), "{problems:?}");
    // A warning of the library itself is captured, also on the delivery thread.
    assert_eq!(OWN_LINES.load(Ordering::SeqCst), queued_lines);
    sink.script([Answer::status(401).body("no such key")]);
    client.capture(Event::new("tick", "user_1"));
    drop(client.flush().wait(Duration::from_secs(30)));
    assert!(OWN_LINES.load(Ordering::SeqCst) > queued_lines);
    assert!(client.stats().accepted > 2, "{:?}", client.stats());
    let closed = client.shutdown(Duration::from_secs(30)).wait(Duration::from_secs(60)).unwrap();
    assert_eq!(closed.remaining, 0, "{closed:?}");
    own_lines_have_their_facts_as_fields_and_no_secret(&sink);
}

fn own_lines_have_their_facts_as_fields_and_no_secret(sink: &Sink) {
    let host = format!("host={:?}", sink.url());
    must_have(
        &own_line("INFO", "started"),
        &[&host, r#"key="phc_logg...""#, "queue_dir=", "queued_events=0", r#"protocol="v0""#, "proxy="],
    );
    let request = [r#"method="POST""#, r#"path="/batch/""#, "status=200", "events=1", "bytes=", "duration_ms="];
    must_have(&own_line("DEBUG", "request"), &request);
    must_have(&own_line("WARN", "paused"), &[&host, "waiting=", "next_attempt_ms=", "status=401"]);
    must_have(&own_line("INFO", "endpoint_recovered"), &[&host, "outage_ms="]);
    must_have(&own_line("INFO", "closed"), &["delivered=", "remaining=0", "queue_dir="]);
    let lines = OWN_TEXTS.lock().unwrap();
    assert!(lines.iter().any(|line| line.contains(r#"path="/flags/""#)), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("phc_logger_and_the_rest")), "{lines:#?}");
}
