//! Attempts and retries, with tokio's paused clock: how many, when, with which bytes, and what results from the
//! responses.

use serde_json::Value;
use std::collections::VecDeque;
use tokio::time::Instant;

use super::*;
use crate::transport::Pending;

/// The result of the next attempt.
enum Meets {
    Status(u16, &'static str),
    Refused,
    Silence,
}

/// A scripted transport that records requests and their times.
struct Network {
    script: Mutex<VecDeque<Meets>>,
    asked: Mutex<Vec<(Instant, Request)>>,
}

impl Network {
    fn of(script: impl IntoIterator<Item = Meets>) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.into_iter().collect()), asked: Mutex::default() })
    }

    /// Milliseconds between the attempts.
    fn waits(&self) -> Vec<u128> {
        let asked = self.asked.lock().unwrap();
        asked.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_millis()).collect()
    }
}

impl Http for Network {
    fn send(&self, request: Request) -> Pending {
        self.asked.lock().unwrap().push((Instant::now(), request));
        let met = self.script.lock().unwrap().pop_front().unwrap_or(Meets::Status(200, r#"{"flags":{}}"#));
        Box::pin(async move {
            match met {
                Meets::Status(status, body) => Ok(Response { status, body: body.into(), ..Response::default() }),
                Meets::Refused => Err(TransportError::Connect("refused".into())),
                Meets::Silence => std::future::pending().await,
            }
        })
    }
}

fn remote(network: &Arc<Network>, max_retries: u32, timeout: Duration) -> Arc<RemoteFlags> {
    let options = RemoteOptions {
        url: "http://x/flags/?v=2".into(),
        host: "http://x".into(),
        token: "phc_x".into(),
        secret_key: Some(SecretKey::new("phx_x")),
        timeout,
        max_retries,
    };
    RemoteFlags::new(options, Arc::clone(network) as Arc<dyn Http>, Clock::System, Arc::new(|_| ()))
}

async fn asked(network: &Arc<Network>, max_retries: u32) -> Result<Answer, Failure> {
    remote(network, max_retries, Duration::from_secs(3)).send(&FlagContext::new("user_1")).await
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_is_retried_after_300_and_then_600_ms() {
    for meets in [|| Meets::Refused, || Meets::Status(502, ""), || Meets::Status(504, "")] {
        let network = Network::of([meets(), meets()]);
        assert_eq!(asked(&network, 2).await, Ok(Answer::default()));
        assert_eq!(network.waits(), [300, 600]);
        let (first, last) = {
            let asked = network.asked.lock().unwrap();
            (asked[0].1.body.clone(), asked[2].1.body.clone())
        };
        assert_eq!(first, last);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_are_made_than_are_allowed() {
    for retries in [0, 1, 3] {
        let network = Network::of((0..9).map(|_| Meets::Status(502, "nobody here")));
        let failure = Failure::Status { status: 502, why: "nobody here".into() };
        assert_eq!(asked(&network, retries).await, Err(failure));
        assert_eq!(network.asked.lock().unwrap().len(), retries as usize + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn any_other_status_is_not_retried() {
    for status in [301, 400, 401, 402, 408, 413, 429, 500, 501, 503, 505] {
        let network = Network::of([Meets::Status(status, "no")]);
        assert_eq!(asked(&network, 10).await, Err(Failure::Status { status, why: "no".into() }));
        assert_eq!(network.asked.lock().unwrap().len(), 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_attempt_ends_with_the_timeout() {
    let began = Instant::now();
    let network = Network::of([Meets::Refused, Meets::Silence]);
    assert_eq!(asked(&network, 10).await, Err(Failure::Timeout));
    assert_eq!((began.elapsed(), network.waits()), (Duration::from_secs(3), vec![300]));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_would_reach_the_timeout_is_not_begun() {
    let network = Network::of((0..9).map(|_| Meets::Refused));
    let began = Instant::now();
    let answer = remote(&network, 9, FIRST_WAIT).send(&FlagContext::new("")).await;
    assert!(matches!(answer, Err(Failure::Connection(_))), "{answer:?}");
    assert_eq!((began.elapsed(), network.waits()), (Duration::ZERO, vec![]));
}

#[test]
fn waits_double_up_to_a_bound_for_any_number_of_retries() {
    let millis = [0, 1, 2, 3, 4, 5, 10, u32::MAX].map(|retries| wait_before(retries).as_millis());
    assert_eq!(millis, [300, 600, 1200, 2400, 4800, 5000, 5000, 5000]);
}

#[tokio::test(start_paused = true)]
async fn the_request_is_json_and_has_the_token_in_its_body_alone() {
    let network = Network::of([]);
    asked(&network, 0).await.unwrap();
    let asked = network.asked.lock().unwrap();
    let request = &asked[0].1;
    assert_eq!((request.body.is_empty(), &*request.url), (false, "http://x/flags/?v=2"));
    assert_eq!(request.headers, [("Content-Type", "application/json".to_owned())]);
    assert!(String::from_utf8_lossy(&request.body).contains(r#""token":"phc_x""#));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_response_fails_without_a_retry() {
    let cut = Response { status: 200, is_cut: true, body: br#"{"flags":{}}"#.to_vec(), ..Response::default() };
    assert!(matches!(interpret(Ok(cut)), Err(Failure::Unreadable(_))));
    for body in ["", "<html>log in</html>", "[]", "null", "{}", r#"{"status":1}"#, r#"{"flags":null}"#] {
        let network = Network::of([Meets::Status(200, body)]);
        let answer = asked(&network, 3).await;
        assert!(matches!(answer, Err(Failure::Unreadable(_))), "{body}: {answer:?}");
        assert_eq!(network.asked.lock().unwrap().len(), 1);
    }
}

#[test]
fn only_the_beginning_of_an_error_text_is_kept() {
    let response = Response { status: 500, body: vec![0xC3; 100_000], ..Response::default() };
    let Err(Failure::Status { why, .. }) = interpret(Ok(response)) else { panic!("taken") };
    assert!(why.len() <= NAME_KEPT && !why.is_empty(), "{}", why.len());
}

#[tokio::test(start_paused = true)]
async fn a_payload_has_the_retries_and_the_timeout_of_values() {
    let ask = async |script: Vec<Meets>| {
        let (network, began) = (Network::of(script), Instant::now());
        let (sender, receiver) = std::sync::mpsc::channel();
        let remote = remote(&network, 1, Duration::from_secs(3));
        let task = remote.request_payload("limits", Box::new(move |result| sender.send(result).unwrap()));
        task.unwrap().await;
        assert_eq!(remote.open(), 0);
        (receiver.recv().unwrap(), network.waits(), began.elapsed())
    };
    let payload = || Meets::Status(200, r#""3""#);
    let (result, waits, _) = ask(vec![Meets::Status(502, ""), payload()]).await;
    assert_eq!((result, waits), (Ok(Some(json!(3))), vec![300]));
    let (result, _, took) = ask(vec![Meets::Silence]).await;
    assert_eq!((result, took), (Err(Failure::Timeout.into()), Duration::from_secs(3)));
    let (result, waits, _) = ask(vec![Meets::Refused, Meets::Refused, payload()]).await;
    assert!(matches!(result, Err(RemoteConfigError::Unavailable(_))), "{result:?}");
    assert_eq!(waits, [300]);
}

#[test]
fn a_payload_request_that_is_dropped_has_a_result() {
    let remote = remote(&Network::of([]), 0, Duration::from_secs(3));
    let (sender, receiver) = std::sync::mpsc::channel();
    drop(remote.request_payload("limits", Box::new(move |result| sender.send(result).unwrap())));
    assert_eq!((receiver.recv().unwrap(), remote.open()), (Err(RemoteConfigError::Closed), 0));
}

fn said(context: &FlagContext) -> Value {
    serde_json::from_slice(&body(context, "phc_x")).unwrap()
}

#[test]
fn absent_fields_are_sent_empty_except_keys_and_device() {
    let expected = json!({
        "token": "phc_x", "distinct_id": "user_1", "groups": {}, "person_properties": {}, "group_properties": {},
        "geoip_disable": false,
    });
    assert_eq!(said(&FlagContext::new("user_1")), expected);
}

#[test]
fn every_field_that_is_set_is_sent() {
    let context = FlagContext::new("user_1")
        .device_id("device_1")
        .group("company", "acme")
        .person_property("plan", "pro")
        .group_property("company", "seats", 3)
        .disable_geoip(true)
        .only_keys(["new-ui"])
        .ask_posthog(true);
    let expected = json!({
        "token": "phc_x", "distinct_id": "user_1", "device_id": "device_1", "groups": {"company": "acme"},
        "person_properties": {"plan": "pro"}, "group_properties": {"company": {"seats": 3}}, "geoip_disable": true,
        "flag_keys_to_evaluate": ["new-ui"],
    });
    assert_eq!(said(&context), expected);
    let none = context.only_keys([""; 0]);
    assert_eq!(said(&none)["flag_keys_to_evaluate"], json!([]), "an empty list does not mean all keys");
}
