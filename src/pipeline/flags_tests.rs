//! Questions about flags over a real connection: what arrives, and that each is answered once, whatever becomes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};
use sink::{Answer as Says, FlagRoute, Sink};

use super::Pipeline;
use crate::client::Client;
use crate::config::{Config, FlagsProtocol};
use crate::diagnostics::Diagnostic;
use crate::flags::{Answer, Failure, Question};
use crate::sys::limits::{FLAG_REQUESTS_AT_ONCE, FLAG_REQUESTS_MOST};
use crate::transport::{Http, Method, Pending, Request};

const LONG: Duration = Duration::from_secs(20);

type Answered = Result<Answer, Failure>;

struct Scene {
    client: Client,
    pipeline: Arc<Pipeline>,
    sink: Sink,
    _dir: tempfile::TempDir,
}

fn scene(configure: impl FnOnce(Config) -> Config) -> Scene {
    let (sink, dir) = (Sink::start(), tempfile::tempdir().unwrap());
    let config = Config::new("phc_flags").host(sink.url()).queue_dir(dir.path()).no_proxy().min_free_space(0);
    let client = Client::new(configure(config)).unwrap();
    let pipeline = client.pipelines().unwrap().0;
    Scene { client, pipeline, sink, _dir: dir }
}

impl Scene {
    fn ask(&self) -> Receiver<Answered> {
        let (told, answer) = mpsc::channel();
        let question = Question { distinct_id: "user_1".into(), ..Question::default() };
        // A second answer would panic, for nobody listens any more; the first is what is looked at.
        self.pipeline.ask_flags(question, Box::new(move |answer| told.send(answer).unwrap()));
        answer
    }

    /// By somebody who wants an answer of PostHog's, whatever is known.
    fn asked_again(&self) -> Answered {
        let (told, answer) = mpsc::channel();
        let question = Question { distinct_id: "user_1".into(), insists: true, ..Question::default() };
        self.pipeline.ask_flags(question, Box::new(move |answer| told.send(answer).unwrap()));
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
fn a_question_arrives_as_posthog_wants_it_and_with_the_programs_headers() {
    let scene = scene(|config| config.header("X-Test-Id", "t-1"));
    scene.sink.flags(FlagRoute::Values, says(&json!({"flags": {"new-ui": {"enabled": true, "variant": "b"}}})));
    let answer = scene.asked().unwrap();
    assert!(answer.flags["new-ui"].value == "b" && !answer.flags["new-ui"].is_local);
    let requests = scene.sink.requests();
    let request = &requests[0];
    assert_eq!((request.method.as_str(), request.path.as_str(), request.query.as_str()), ("POST", "/flags/", "v=2"));
    assert_eq!((request.header("content-type"), request.header("x-test-id")), (Some("application/json"), Some("t-1")));
    assert_eq!((request.header("authorization"), request.header("content-encoding")), (None, None));
    assert!(request.header("user-agent").unwrap().starts_with(crate::record::LIB_NAME));
    assert_eq!((request.api_key.as_str(), &request.envelope["distinct_id"]), ("phc_flags", &json!("user_1")));
}

#[test]
fn the_older_endpoint_is_asked_where_the_configuration_says_so() {
    let scene = scene(|config| config.flags_protocol(FlagsProtocol::Decide));
    scene.sink.flags(FlagRoute::Values, says(&json!({"featureFlags": {"a": false}})));
    assert_eq!(scene.asked().unwrap().flags["a"].value, false);
    let request = scene.sink.requests().remove(0);
    assert_eq!((request.path.as_str(), request.query.as_str()), ("/decide/", "v=3"));
}

#[test]
fn a_server_that_never_answers_costs_the_time_that_is_configured() {
    let scene = scene(|config| config.flag_request_timeout(Duration::from_millis(50)));
    scene.sink.flags(FlagRoute::Values, Says::hang());
    assert_eq!(scene.asked(), Err(Failure::Timeout));
    let told = scene.client.diagnostics();
    assert_eq!(told, [Diagnostic::FlagsUnanswered { why: "no answer in time".into(), requests: 1 }]);
}

#[test]
fn a_server_that_is_not_there_is_told_once_for_many_questions() {
    let scene = scene(|config| config.flag_request_max_retries(0));
    scene.sink.stop();
    let answers: Vec<_> = (0..100).map(|_| scene.ask()).collect();
    for answer in answers {
        let answer = answer.recv_timeout(LONG).unwrap();
        assert!(matches!(answer, Err(Failure::Connection(_))), "{answer:?}");
    }
    assert_eq!(scene.client.diagnostics().len(), 1);
    scene.sink.resume();
    assert_eq!(scene.asked_again(), Ok(Answer::default()));
}

#[test]
fn flags_that_cannot_be_read_are_told() {
    let scene = scene(|config| config);
    scene.sink.flags(FlagRoute::Values, says(&json!({"flags": {"a": {"enabled": true}, "b": {"enabled": "on"}}})));
    for _ in 0..3 {
        let answer = scene.asked().unwrap();
        assert_eq!((answer.flags.len(), answer.has_errors), (1, true));
    }
    assert_eq!(scene.client.diagnostics(), [Diagnostic::FlagsUnreadable { keys: vec!["b".into()] }]);
}

#[test]
fn so_many_questions_are_under_way_so_many_wait_and_all_others_fail_at_once() {
    let scene = scene(|config| config.flag_request_timeout(Duration::from_secs(60)));
    scene.sink.flags(FlagRoute::Values, Says::hang());
    let answers: Vec<_> = (0..FLAG_REQUESTS_MOST).map(|_| scene.ask()).collect();
    for _ in 0..3 {
        assert_eq!(scene.ask().try_recv(), Ok(Err(Failure::Busy)));
    }
    scene.wait_for_requests(FLAG_REQUESTS_AT_ONCE);
    drop(scene.client.shutdown(Duration::ZERO).wait(LONG));
    for answer in answers {
        assert_eq!(answer.recv_timeout(LONG).unwrap(), Err(Failure::Closed));
    }
    assert_eq!(scene.sink.inspect(|state| state.peak_in_flight()), FLAG_REQUESTS_AT_ONCE);
    assert_eq!(scene.pipeline.flag_requests.open.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_closes_answers_at_once_whoever_waits_and_whoever_asks_then() {
    let scene = scene(|config| config.flag_request_timeout(Duration::from_secs(60)));
    scene.sink.flags(FlagRoute::Values, Says::hang());
    let waiting = scene.ask();
    scene.wait_for_requests(1);
    drop(scene.client.shutdown(Duration::ZERO).wait(LONG));
    assert_eq!(waiting.recv_timeout(LONG).unwrap(), Err(Failure::Closed));
    assert_eq!(scene.ask().try_recv(), Ok(Err(Failure::Closed)), "on the caller's thread");
    assert!(scene.client.diagnostics().is_empty());
}

#[test]
fn who_panics_when_he_is_told_takes_nobody_along() {
    let scene = scene(|config| config);
    for _ in 0..3 {
        scene.pipeline.ask_flags(Question::default(), Box::new(|_| panic!("told")));
        assert_eq!(scene.asked(), Ok(Answer::default()));
    }
}

#[test]
fn in_an_outage_few_wait_for_posthog_and_whoever_insists_finds_it_back() {
    let scene = scene(|config| config.flag_request_max_retries(0));
    scene.sink.flags(FlagRoute::Values, Says::status(500));
    for _ in 0..5 {
        assert!(matches!(scene.asked(), Err(Failure::Status { status: 500, .. })));
    }
    assert_eq!(scene.sink.requests().len(), 5, "one that says no is not down");
    scene.sink.flags(FlagRoute::Values, Says::close());
    for _ in 0..20 {
        assert!(matches!(scene.asked(), Err(Failure::Connection(_))));
    }
    assert_eq!(
        scene.sink.requests().len(),
        5 + 1 + 3,
        "the first of them found a connection closed that had served, and asked again"
    );
    scene.sink.flags(FlagRoute::Values, says(&json!({"flags": {"a": {"enabled": true}}})));
    assert!(scene.asked().is_err(), "nobody knows yet");
    assert_eq!(scene.asked_again().unwrap().flags["a"].value, true);
    assert_eq!(scene.asked().unwrap().flags["a"].value, true);
}

/// A network that has a defect where definitions are read.
struct Panicking;

impl Http for Panicking {
    fn send(&self, request: Request) -> Pending {
        assert_ne!(request.method, Method::Get, "a defect");
        Box::pin(std::future::pending())
    }
}

#[test]
fn a_loader_that_panics_is_told_and_whoever_waits_for_it_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new("phc_flags").queue_dir(dir.path()).min_free_space(0).secret_key("phs_test");
    let client = Client::surrounded_by(config, |options| options.network = Some(Arc::new(Panicking))).unwrap();
    let said = client.reload_flag_definitions().wait(LONG).unwrap();
    assert!(said.is_err(), "{said:?}");
    let told = client.diagnostics();
    let is_told =
        |told: &Diagnostic| matches!(told, Diagnostic::FlagDefinitionsUnavailable { why } if why.contains("panicked"));
    assert!(told.iter().any(is_told), "{told:?}");
    assert!(client.shutdown(Duration::ZERO).wait(LONG).is_ok(), "and the rest goes on");
}
