//! PostHog's specification `capture-ai`: one test for each requirement, named by its number. AI-09 and AI-10 are about
//! wrappers of model clients, which this library does not have: see `docs/architecture.md`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthog::diagnostics::Diagnostic;
use posthog::reports::{DeliveryReport, EndpointStatus};
use posthog::settings::{CaptureProtocol, Compression};
use posthog::{Client, Config, DropReason, Event, Outcome, Receipt};
use serde_json::{Value, json};
use sink::{Answer, Request, Sink, State};
use tempfile::TempDir;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const ANALYTICS: &str = "/batch/";
const AI: &str = "/i/v0/ai/batch/";
const AI_V1: &str = "/i/v1/ai/events";

struct Fixture {
    sink: Sink,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { sink: Sink::start(), folder: tempfile::tempdir().unwrap() }
    }

    fn client(&self, configure: impl FnOnce(Config) -> Config) -> Client {
        let config = Config::new("phc_ai")
            .host(self.sink.url())
            .queue_dir(self.folder.path())
            .no_proxy()
            .first_send_jitter(Duration::ZERO)
            .retry_backoff(Duration::from_millis(100), Duration::from_millis(100))
            .max_retries(100)
            .min_free_space(0);
        Client::new(configure(config)).unwrap()
    }

    /// The names of the events that the endpoint `path` has accepted.
    fn taken(&self, path: &str) -> Vec<String> {
        self.sink.inspect(|state| {
            let events = state.events().iter().filter(|event| state.requests()[event.request].path == path);
            events.map(|event| event.event.clone()).collect()
        })
    }

    fn wait_for(&self, reached: impl Fn(&State) -> bool) {
        assert!(self.sink.wait_for(reached, PATIENCE), "{:?}", self.sink.requests());
    }
}

fn generation() -> Event {
    Event::new("$ai_generation", "user_1").prop("$ai_model", "m")
}

fn uuid_of(receipt: &Receipt) -> Uuid {
    receipt.uuid().unwrap_or_else(|| panic!("{:?}", receipt.outcome()))
}

fn flush(client: &Client) {
    let report = client.flush().wait(PATIENCE).unwrap();
    assert_eq!(report.remaining, 0, "{report:?}");
}

#[test]
fn ai_01_an_ai_event_is_enqueued_and_its_uuid_and_time_are_sent() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config);
    let uuid = uuid_of(&client.capture_ai(generation()));
    assert_eq!(client.stats().ai.unwrap().queued_events, 1);
    flush(&client);
    let event = fixture.sink.events().remove(0);
    assert_eq!((event.uuid, event.event.as_str(), event.distinct_id.as_str()), (uuid, "$ai_generation", "user_1"));
    assert!(!event.timestamp.is_empty());
    assert_eq!(event.properties["$ai_model"], "m");
}

#[test]
fn ai_02_analytics_and_ai_events_never_share_a_request() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config);
    for _ in 0..3 {
        uuid_of(&client.capture(Event::new("clicked", "user_1")));
        uuid_of(&client.capture_ai(generation()));
    }
    flush(&client);
    assert_eq!(fixture.taken(ANALYTICS), ["clicked"; 3]);
    assert_eq!(fixture.taken(AI), ["$ai_generation"; 3]);
}

#[test]
fn ai_03_capture_does_not_reroute_by_name() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config);
    uuid_of(&client.capture(generation()));
    flush(&client);
    assert_eq!((fixture.taken(ANALYTICS).len(), fixture.taken(AI).len()), (1, 0));
    assert!(client.stats().ai.is_none(), "and the lane is not opened for it");
}

#[test]
fn ai_04_a_uuid_is_generated_unless_one_is_given() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config);
    let given = Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0007);
    assert_eq!(uuid_of(&client.capture_ai(generation().uuid(given))), given);
    let (one, other) = (uuid_of(&client.capture_ai(generation())), uuid_of(&client.capture_ai(generation())));
    assert!(one != other && !one.is_nil());
    flush(&client);
    let mut expected = [given, one, other];
    expected.sort_unstable();
    assert_eq!(fixture.sink.unique(), expected);
}

#[test]
fn ai_05_hooks_and_settings_apply_and_the_queue_opens_lazily() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| {
        config.disable_geoip(true).before_send(|mut event| {
            event.set_prop("hooked", true);
            (event.name() != "secret").then_some(event)
        })
    });
    let ai_dir_exists = || {
        let project = std::fs::read_dir(fixture.folder.path()).unwrap().next().unwrap().unwrap().path();
        project.join("ai").exists()
    };
    assert!(!ai_dir_exists());
    uuid_of(&client.capture_ai(generation()));
    assert!(ai_dir_exists());
    let dropped = client.capture_ai(Event::new("secret", "user_1")).outcome();
    assert_eq!(dropped, Outcome::Dropped(DropReason::BeforeSend));
    uuid_of(&client.capture(Event::new("clicked", "user_1")));
    flush(&client);
    for event in fixture.sink.events() {
        assert_eq!((&event.properties["hooked"], &event.properties["$geoip_disable"]), (&json!(true), &json!(true)));
        assert!(!event.properties["$lib"].is_null() && event.properties["$is_server"] == json!(true));
    }
}

#[test]
fn ai_05_persisted_and_closing_work_as_for_capture() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config);
    let receipt = client.capture_ai(generation());
    assert_eq!(receipt.persisted().wait(PATIENCE), Ok(()));
    assert!(client.shutdown(PATIENCE).wait(PATIENCE).unwrap().persisted);
    assert_eq!(client.capture_ai(generation()).outcome(), Outcome::Dropped(DropReason::Closed));
    let disabled = Client::new(Config::disabled()).unwrap();
    assert_eq!(disabled.capture_ai(generation()).outcome(), Outcome::Dropped(DropReason::Disabled));
}

#[test]
fn ai_05_an_immediate_ai_capture_returns_posthogs_result() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config.before_send(|event| (event.name() != "secret").then_some(event)));
    let said = |event: Event| client.capture_ai_immediate(event).wait(PATIENCE).unwrap();
    client.opt_out();
    assert_eq!(said(generation()), DeliveryReport::Dropped(DropReason::OptedOut));
    assert!(client.stats().ai.is_none(), "the lane is not opened for it");
    client.opt_in();
    assert_eq!(said(generation()), DeliveryReport::Delivered);
    assert_eq!(said(Event::new("secret", "user_1")), DeliveryReport::Dropped(DropReason::BeforeSend));
    assert_eq!(fixture.taken(AI), ["$ai_generation"]);
    fixture.sink.default_answer(Answer::status(503));
    let report = said(generation());
    assert!(matches!(report, DeliveryReport::Queued { endpoint: EndpointStatus::Down { .. } }), "{report:?}");
    assert_eq!(client.stats().queued_events, 1);
    fixture.sink.default_answer(Answer::ok());
    fixture.wait_for(|state| state.taken() == 2);
    client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!(said(generation()), DeliveryReport::Dropped(DropReason::Closed));
}

#[test]
fn ai_06_a_retry_sends_the_same_envelope() {
    let fixture = Fixture::new();
    // Accepted, but without a response, and then with an error status: the client must send the event again.
    fixture.sink.script([Answer::close().taking(), Answer::status(503).taking()]);
    let client = fixture.client(|config| config);
    let uuid = uuid_of(&client.capture_ai(generation().prop("nested", json!({"b": [1, 2.5], "a": null}))));
    let _ = client.flush().wait(PATIENCE);
    fixture.wait_for(|state| state.taken() == 3);
    let events = fixture.sink.events();
    assert_eq!(events[0].uuid, uuid);
    for again in &events[1..] {
        let envelope = |event: &sink::Event| {
            (
                event.uuid,
                event.event.clone(),
                event.distinct_id.clone(),
                event.timestamp.clone(),
                event.properties.clone(),
            )
        };
        assert_eq!(envelope(again), envelope(&events[0]));
    }
}

#[test]
fn ai_07_a_too_large_event_is_reported_by_name_and_size_only() {
    let fixture = Fixture::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let client =
        fixture.client(|config| config.on_diagnostic(move |diagnostic| hears.lock().unwrap().push(diagnostic.clone())));
    let event = generation().prop("$ai_input", "secret ".repeat(1_300_000));
    assert_eq!(client.capture_ai(event).outcome(), Outcome::Dropped(DropReason::TooLarge));
    let heard = heard.lock().unwrap();
    let [Diagnostic::Dropped { reason: DropReason::TooLarge, event, detail, .. }] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert_eq!(event, "$ai_generation");
    assert!(detail.contains("91000") && !detail.contains("secret"), "{detail}");
    assert_eq!(client.stats().dropped, [(DropReason::TooLarge, 1)]);
}

#[test]
fn ai_08_an_unreachable_endpoint_is_only_reported() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let client =
        fixture.client(|config| config.on_diagnostic(move |diagnostic| hears.lock().unwrap().push(diagnostic.clone())));
    let uuid = uuid_of(&client.capture_ai(generation()));
    let report = client.flush().wait(PATIENCE).unwrap();
    assert_eq!(report.remaining, 1);
    let is_reported = |found: &Diagnostic| matches!(found, Diagnostic::EndpointFailing { reason, .. } if reason.starts_with("AI events: "));
    assert!(heard.lock().unwrap().iter().any(is_reported), "{heard:?}");
    fixture.sink.resume();
    fixture.wait_for(|state| state.contains(uuid));
}

#[test]
fn ai_08_an_unusable_directory_drops_ai_events_only() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config);
    let project = std::fs::read_dir(fixture.folder.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(project.join("ai"), "in the way").unwrap();
    for _ in 0..2 {
        assert_eq!(client.capture_ai(generation()).outcome(), Outcome::Dropped(DropReason::Storage));
    }
    let is_reported =
        |found: &Diagnostic| matches!(found, Diagnostic::StorageFailing { problem } if problem.contains("AI events"));
    assert_eq!(client.diagnostics().iter().filter(|diagnostic| is_reported(diagnostic)).count(), 1);
    let uuid = uuid_of(&client.capture(Event::new("clicked", "user_1")));
    flush(&client);
    assert_eq!(fixture.sink.unique(), [uuid]);
}

#[test]
fn ai_11_the_request_is_a_v0_batch_to_the_ai_endpoint() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config.historical_migration(true));
    let uuid = uuid_of(&client.capture_ai(generation()));
    flush(&client);
    let request: Request = fixture.sink.requests().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", AI));
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    assert_eq!((request.api_key.as_str(), &request.uuids[..]), ("phc_ai", &[uuid][..]));
    assert!(!request.sent_at.is_empty());
}

#[test]
fn ai_11_v1_has_an_ai_endpoint_with_a_result_for_each_event() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config.protocol(CaptureProtocol::V1).compression(Compression::Deflate));
    let uuid = uuid_of(&client.capture_ai(generation().prop("$session_id", "s-1")));
    uuid_of(&client.capture(Event::new("tick", "user_1")));
    flush(&client);
    let requests = fixture.sink.requests();
    let request = requests.iter().find(|request| request.path == AI_V1).unwrap();
    assert_eq!((request.header("content-encoding"), request.query.as_str()), (Some("deflate"), ""));
    assert_eq!(request.header("authorization"), Some("Bearer phc_ai"));
    assert_eq!(request.header("posthog-attempt"), Some("1"));
    assert_eq!((&request.uuids[..], requests.len()), (&[uuid][..], 2));
    assert_eq!(fixture.taken("/i/v1/analytics/events"), ["tick"]);
    let ai = fixture.sink.events().into_iter().find(|event| event.uuid == uuid).unwrap();
    assert_eq!(ai.others, json!({"options": {}, "session_id": "s-1"}));

    // PostHog rejects an event that is not an AI event, and only this one: other events of the request are delivered.
    let misrouted = uuid_of(&client.capture_ai(Event::new("clicked", "user_1")));
    let good = uuid_of(&client.capture_ai(generation()));
    flush(&client);
    let deadline = Instant::now() + PATIENCE;
    while client.dead_letters(9).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let dead = client.dead_letters(9);
    assert_eq!((dead.len(), dead[0].status, dead[0].reason.as_str()), (1, 200, "misrouted_event"));
    assert_eq!(dead[0].event["uuid"], misrouted.to_string());
    assert!(fixture.sink.inspect(|state| state.contains(good) && !state.contains(misrouted)));
    let stats = client.stats();
    assert_eq!((stats.delivered, stats.dead_lettered, stats.queued_events), (3, 1, 0));
}

#[test]
fn ai_11_a_retry_of_v1_has_the_same_request_id() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::results(["retry:not_persisted"]), Answer::status(503)]);
    let client = fixture.client(|config| config.protocol(CaptureProtocol::V1));
    let uuid = uuid_of(&client.capture_ai(generation()));
    fixture.wait_for(|state| state.contains(uuid));
    let requests = fixture.sink.requests();
    let header = |name: &str| requests.iter().map(|request| request.header(name).unwrap()).collect::<Vec<_>>();
    assert_eq!(header("posthog-attempt"), ["1", "2", "3"]);
    let ids = header("posthog-request-id");
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{ids:?}");
    assert!(requests.iter().all(|request| request.path == AI_V1 && request.uuids == [uuid]));
}

#[test]
fn ai_11_a_batch_aims_at_five_mebibytes() {
    let fixture = Fixture::new();
    let client = fixture.client(|config| config.compression(Compression::None).flush_at(1_000));
    let text = Value::from("x".repeat(700_000));
    let uuids: Vec<_> = (0..12).map(|_| uuid_of(&client.capture_ai(generation().prop("$ai_input", &text)))).collect();
    flush(&client);
    assert_eq!(fixture.sink.unique().len(), uuids.len());
    let requests = fixture.sink.requests();
    assert!(requests.iter().all(|request| request.wire_bytes < 6 * 1024 * 1024));
    assert!(requests.iter().any(|request| request.event_count > 2), "{}", requests.len());
}
