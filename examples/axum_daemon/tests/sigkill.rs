//! The example keeps what it promises: an order that was answered with 202 arrives, whatever kills the process.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sink::Sink;
use uuid::Uuid;

const ENOUGH: Duration = Duration::from_secs(60);
const CLIENTS: usize = 8;
/// Events to wait for before the kill.
const ORDERS: u64 = 200;

/// A running daemon and the address that it listens on.
struct Daemon {
    process: Child,
    url: String,
}

impl Daemon {
    fn start(sink: &Sink, queue: &std::path::Path) -> Self {
        let mut command = sink::command(env!("CARGO_BIN_EXE_axum-daemon"));
        command
            .env("POSTHOG_API_KEY", "phc_example")
            .env("POSTHOG_HOST", sink.url())
            .env("POSTHOG_QUEUE_DIR", queue)
            .env("LISTEN", "127.0.0.1:0")
            // With these, `anyhow` keeps a stack of its own.
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LIB_BACKTRACE")
            // Looking up the names of a debug build takes seconds on a machine that is busy.
            .env("POSTHOG_SHUTDOWN_TIMEOUT", "60s")
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("the daemon starts");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let url = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                line.split_once("listening address=").map(|(_, address)| format!("http://{}", address.trim()))
            })
            .expect("the daemon says where it listens");
        // The rest is read too, so that the daemon never waits for a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { process, url }
    }

    /// SIGKILL.
    fn kill(self) {
        // By `Drop`.
    }

    /// SIGTERM, as systemd and Kubernetes stop a service. It delivers what is queued and exits with 0.
    fn stop(mut self) {
        let kill = std::process::Command::new("kill").arg(self.process.id().to_string()).status();
        assert!(kill.is_ok_and(|status| status.success()));
        assert!(self.process.wait().expect("an end").success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already, unless it is to be killed or a test has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Number of events that the daemon has accepted, by its metrics.
fn accepted(url: &str) -> u64 {
    let (_, metrics) = get(format!("{url}/metrics"));
    let of_lane = |line: &str| line.strip_prefix("posthog_events_accepted_total{")?.rsplit(' ').next()?.parse().ok();
    metrics.lines().find_map(of_lane).unwrap_or(0)
}

fn wait_until(reached: impl Fn() -> bool) {
    let end = std::time::Instant::now() + ENOUGH;
    while !reached() {
        assert!(std::time::Instant::now() < end, "it takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Places orders until the daemon no longer answers. Returns the uuids of those that were answered with 202.
fn place_orders(url: &str, client: usize) -> Vec<Uuid> {
    let http = http();
    let mut placed = Vec::new();
    for number in 0.. {
        let order = json!({ "user": format!("user_{client}"), "cents": number }).to_string();
        let sent = http.post(format!("{url}/orders")).content_type("application/json").send(order);
        let Ok(mut response) = sent else { break };
        // The answer to an order may be cut off by the kill.
        let Ok(body) = response.body_mut().read_to_string() else { break };
        assert_eq!(response.status(), 202, "{body}");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        placed.push(answer["event"].as_str().and_then(|uuid| uuid.parse().ok()).expect("a uuid"));
    }
    placed
}

fn http() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(ENOUGH)).proxy(None).build().into()
}

fn get(url: String) -> (u16, String) {
    let mut response = http().get(url).call().expect("an answer");
    (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
}

fn of_name<'e>(events: &'e [sink::Event], name: &str) -> Vec<&'e sink::Event> {
    events.iter().filter(|event| event.event == name).collect()
}

#[test]
fn each_order_answered_before_a_sigkill_arrives() {
    let (sink, dir) = (Sink::start(), tempfile::tempdir().expect("a directory"));
    let queue = dir.path().join("queue");
    // PostHog is down, so the events are on the disk only when the daemon is killed.
    sink.stop();
    let daemon = Daemon::start(&sink, &queue);
    let url = daemon.url.clone();
    let placing: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let url = url.clone();
            std::thread::spawn(move || place_orders(&url, client))
        })
        .collect();
    wait_until(|| accepted(&url) >= ORDERS);
    daemon.kill();
    let placed: HashSet<Uuid> = placing.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect();
    assert!(placed.len() as u64 >= ORDERS - CLIENTS as u64, "{}", placed.len());

    sink.resume();
    let daemon = Daemon::start(&sink, &queue);
    assert!(sink.wait_for(|state| placed.iter().all(|uuid| state.contains(*uuid)), ENOUGH), "an order is missing");
    daemon.stop();
}

#[test]
fn each_failure_of_a_request_is_one_exception() {
    let (sink, dir) = (Sink::start(), tempfile::tempdir().expect("a directory"));
    let daemon = Daemon::start(&sink, &dir.path().join("queue"));
    for (path, status) in [("invoice", 500), ("total", 500), ("partner", 502)] {
        assert_eq!(get(format!("{}/{path}", daemon.url)).0, status);
    }
    // The panic is reported two seconds later, when it is known that the process has survived it.
    let has_panic =
        |state: &sink::State| state.events().iter().any(|event| event.properties["$exception_type"] == "Panic");
    assert!(sink.wait_for(has_panic, ENOUGH), "no panic");
    daemon.stop();

    let events = sink.events();
    let of_path = |event: &sink::Event| {
        let kind = &event.properties["$exception_list"][0]["type"];
        (event.properties["$request_path"].clone(), kind.clone())
    };
    let mut exceptions: Vec<_> = of_name(&events, "$exception").into_iter().map(of_path).collect();
    exceptions.sort_by_key(|(path, _)| path.to_string());
    let expected = [("/invoice", "Error"), ("/partner", "Http502"), ("/total", "Panic")];
    assert_eq!(exceptions, expected.map(|(path, kind)| (json!(path), json!(kind))));
}

#[test]
fn errors_of_handlers_are_exceptions_of_their_request() {
    let (sink, dir) = (Sink::start(), tempfile::tempdir().expect("a directory"));
    let daemon = Daemon::start(&sink, &dir.path().join("queue"));
    assert_eq!(get(format!("{}/invoice", daemon.url)).0, 500);
    assert_eq!(get(format!("{}/live", daemon.url)).0, 200);
    assert_eq!(get(format!("{}/ready", daemon.url)).0, 200);
    let (status, metrics) = get(format!("{}/metrics", daemon.url));
    assert!(status == 200 && metrics.contains("posthog_events_accepted_total"), "{metrics}");
    let (_, page) = get(format!("{}/checkout?user=user_1", daemon.url));
    assert_eq!(page, "the checkout", "the stand-in has no such flag");
    daemon.stop();

    let events = sink.events();
    let exceptions = of_name(&events, "$exception");
    assert_eq!(exceptions.len(), 1, "{events:?}");
    let properties = &exceptions[0].properties;
    assert_eq!(properties["$request_path"], "/invoice");
    assert_eq!(properties["$exception_list"][0]["value"], "cannot render the invoice");
    let stack = properties["$exception_list"].to_string();
    let is_of_the_response = stack.contains("into_response");
    assert!(stack.contains("axum_daemon::invoice") && !is_of_the_response, "the stack of where it occurred: {stack}");
    assert_eq!(of_name(&events, "checkout_shown").len(), 1);
}
