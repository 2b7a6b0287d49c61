//! Requests for flags over a real connection: their format, and that each gets exactly one result.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};
use sink::{Answer as Says, FlagRoute, Sink};

use super::Pipeline;
use crate::client::Client;
use crate::config::{Config, FlagsProtocol};
use crate::flags::{Answer, Failure, FlagContext, FlagDefinitionsError};
use crate::report::Diagnostic;
use crate::sys::limits::{FLAG_REQUESTS_AT_ONCE, FLAG_REQUESTS_MOST};
use crate::transport::{Http, Pending, Request};

const LONG: Duration = Duration::from_secs(20);

type Answered = Result<Answer, Failure>;

struct Fixture {
    client: Client,
    pipeline: Arc<Pipeline>,
    sink: Sink,
    _dir: tempfile::TempDir,
}

fn fixture(configure: impl FnOnce(Config) -> Config) -> Fixture {
    let (sink, dir) = (Sink::start(), tempfile::tempdir().unwrap());
    let config = Config::new("phc_flags").host(sink.url()).queue_dir(dir.path()).no_proxy().min_free_space(0);
    let client = Client::new(configure(config)).unwrap();
    let pipeline = client.pipeline().unwrap();
    Fixture { client, pipeline, sink, _dir: dir }
}

impl Fixture {
    fn ask(&self) -> Receiver<Answered> {
        let (sender, answer) = mpsc::channel();
        let context = FlagContext::new("user_1");
        // A second result would panic, because the receiver is gone after the first.
        self.pipeline.request_flags(context, Box::new(move |answer| sender.send(answer).unwrap()));
        answer
    }

    /// Sends a request even during an outage.
    fn asked_again(&self) -> Answered {
        let (sender, answer) = mpsc::channel();
        let context = FlagContext::new("user_1").ask_posthog(true);
        self.pipeline.request_flags(context, Box::new(move |answer| sender.send(answer).unwrap()));
        answer.recv_timeout(LONG).unwrap()
    }

    fn asked(&self) -> Answered {
        self.ask().recv_timeout(LONG).unwrap()
    }

    fn wait_for_requests(&self, count: usize) {
        assert!(self.sink.wait_for(|state| state.requests().len() >= count, LONG));
    }
}

fn says(body: &Value) -> Says {
    Says::json(body)
}

#[test]
fn a_request_has_posthogs_format_and_the_programs_headers() {
    let fixture = fixture(|config| config.header("X-Test-Id", "t-1"));
    fixture.sink.flags(FlagRoute::Values, says(&json!({"flags": {"new-ui": {"enabled": true, "variant": "b"}}})));
    let answer = fixture.asked().unwrap();
    assert!(answer.flags["new-ui"].value == "b" && !answer.flags["new-ui"].is_local);
    let requests = fixture.sink.requests();
    let request = &requests[0];
    assert_eq!((request.method.as_str(), request.path.as_str(), request.query.as_str()), ("POST", "/flags/", "v=2"));
    assert_eq!((request.header("content-type"), request.header("x-test-id")), (Some("application/json"), Some("t-1")));
    assert_eq!((request.header("authorization"), request.header("content-encoding")), (None, None));
    assert!(request.header("user-agent").unwrap().starts_with(crate::record::LIB_NAME));
    assert_eq!((request.api_key.as_str(), &request.envelope["distinct_id"]), ("phc_flags", &json!("user_1")));
}

#[test]
fn the_older_endpoint_is_asked_where_the_configuration_says_so() {
    let fixture = fixture(|config| config.flags_protocol(FlagsProtocol::Decide));
    fixture.sink.flags(FlagRoute::Values, says(&json!({"featureFlags": {"a": false}})));
    assert_eq!(fixture.asked().unwrap().flags["a"].value, false);
    let request = fixture.sink.requests().remove(0);
    assert_eq!((request.path.as_str(), request.query.as_str()), ("/decide/", "v=3"));
}

#[test]
fn a_hanging_server_costs_the_configured_timeout() {
    let fixture = fixture(|config| config.flag_request_timeout(Duration::from_millis(50)));
    fixture.sink.flags(FlagRoute::Values, Says::hang());
    assert_eq!(fixture.asked(), Err(Failure::Timeout));
    let reported = fixture.client.diagnostics();
    assert_eq!(reported, [Diagnostic::FlagRequestsFailed { why: "no response in time".into(), requests: 1 }]);
}

#[test]
fn an_unreachable_server_is_reported_once_for_many_requests() {
    let fixture = fixture(|config| config.flag_request_max_retries(0));
    fixture.sink.stop();
    let answers: Vec<_> = (0..100).map(|_| fixture.ask()).collect();
    for answer in answers {
        let answer = answer.recv_timeout(LONG).unwrap();
        assert!(matches!(answer, Err(Failure::Connection(_))), "{answer:?}");
    }
    assert_eq!(fixture.client.diagnostics().len(), 1);
    fixture.sink.resume();
    assert_eq!(fixture.asked_again(), Ok(Answer::default()));
}

#[test]
fn unreadable_flags_are_reported() {
    let fixture = fixture(|config| config);
    fixture.sink.flags(FlagRoute::Values, says(&json!({"flags": {"a": {"enabled": true}, "b": {"enabled": "on"}}})));
    for _ in 0..3 {
        let answer = fixture.asked().unwrap();
        assert_eq!((answer.flags.len(), answer.has_errors), (1, true));
    }
    assert_eq!(fixture.client.diagnostics(), [Diagnostic::FlagsInvalid { keys: vec!["b".into()] }]);
}

#[test]
fn requests_beyond_the_limits_wait_or_fail_at_once() {
    let fixture = fixture(|config| config.flag_request_timeout(Duration::from_secs(60)));
    fixture.sink.flags(FlagRoute::Values, Says::hang());
    let answers: Vec<_> = (0..FLAG_REQUESTS_MOST).map(|_| fixture.ask()).collect();
    for _ in 0..3 {
        assert_eq!(fixture.ask().try_recv(), Ok(Err(Failure::Busy)));
    }
    fixture.wait_for_requests(FLAG_REQUESTS_AT_ONCE);
    drop(fixture.client.shutdown(Duration::ZERO).wait(LONG));
    for answer in answers {
        assert_eq!(answer.recv_timeout(LONG).unwrap(), Err(Failure::Closed));
    }
    assert_eq!(fixture.sink.inspect(|state| state.peak_in_flight()), FLAG_REQUESTS_AT_ONCE);
    assert_eq!(fixture.pipeline.remote_flags.open(), 0);
}

#[test]
fn a_closing_client_answers_open_and_new_requests_at_once() {
    let fixture = fixture(|config| config.flag_request_timeout(Duration::from_secs(60)));
    fixture.sink.flags(FlagRoute::Values, Says::hang());
    let waiting = fixture.ask();
    fixture.wait_for_requests(1);
    drop(fixture.client.shutdown(Duration::ZERO).wait(LONG));
    assert_eq!(waiting.recv_timeout(LONG).unwrap(), Err(Failure::Closed));
    assert_eq!(fixture.ask().try_recv(), Ok(Err(Failure::Closed)), "on the caller's thread");
    assert!(fixture.client.diagnostics().is_empty());
}

#[test]
fn a_panic_in_a_callback_affects_no_other_request() {
    let fixture = fixture(|config| config);
    for _ in 0..3 {
        fixture.pipeline.request_flags(FlagContext::new(""), Box::new(|_| panic!("in a callback")));
        assert_eq!(fixture.asked(), Ok(Answer::default()));
    }
}

#[test]
fn an_outage_limits_requests_until_one_succeeds() {
    let fixture = fixture(|config| config.flag_request_max_retries(0));
    fixture.sink.flags(FlagRoute::Values, Says::status(500));
    for _ in 0..5 {
        assert!(matches!(fixture.asked(), Err(Failure::Status { status: 500, .. })));
    }
    assert_eq!(fixture.sink.requests().len(), 5, "an error status is a response");
    fixture.sink.flags(FlagRoute::Values, Says::close());
    for _ in 0..20 {
        assert!(matches!(fixture.asked(), Err(Failure::Connection(_))));
    }
    assert_eq!(
        fixture.sink.requests().len(),
        5 + 1 + 3,
        "the first of them retried on a new connection, because its pooled connection was closed"
    );
    fixture.sink.flags(FlagRoute::Values, says(&json!({"flags": {"a": {"enabled": true}}})));
    assert!(fixture.asked().is_err(), "the outage has not been probed yet");
    assert_eq!(fixture.asked_again().unwrap().flags["a"].value, true);
    assert_eq!(fixture.asked().unwrap().flags["a"].value, true);
}

/// A transport that panics when definitions are requested.
struct Panicking;

impl Http for Panicking {
    fn send(&self, request: Request) -> Pending {
        assert!(!request.body.is_empty(), "a defect");
        Box::pin(std::future::pending())
    }
}

#[test]
fn a_panic_of_the_loader_is_reported_to_its_callers() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new("phc_flags").queue_dir(dir.path()).min_free_space(0).secret_key("phs_test");
    let client = Client::surrounded_by(config, |options| options.network = Some(Arc::new(Panicking))).unwrap();
    let said = client.reload_flag_definitions().wait(LONG);
    assert!(said.as_ref().is_err_and(|error| *error != FlagDefinitionsError::Timeout), "{said:?}");
    let reported = client.diagnostics();
    let is_reported = |reported: &Diagnostic| matches!(reported, Diagnostic::FlagDefinitionsUnavailable { why } if why.contains("panicked"));
    assert!(reported.iter().any(is_reported), "{reported:?}");
    assert!(client.shutdown(Duration::ZERO).wait(LONG).is_ok(), "and the rest goes on");
}
