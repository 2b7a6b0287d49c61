//! Errors of requests: where their stack comes from, and the tower layer that captures failed responses.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Future, Ready, ready};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use posthog::exceptions::{CallStack, ExceptionOptions};
use posthog::integrations::tower::{Reported, RequestContextLayer, ServerErrorLayer};
use posthog::testing::Harness;
use serde_json::Value;
use tower_layer::Layer;
use tower_service::Service;

use super::harness;

/// An error type as a server has it, which is captured where it becomes a response.
struct AppError {
    error: Box<dyn Error + Send + Sync>,
    stack: CallStack,
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for AppError {
    #[inline(never)]
    fn from(error: E) -> Self {
        Self { error: error.into(), stack: CallStack::capture() }
    }
}

impl AppError {
    #[inline(never)]
    fn into_response(self, with_its_stack: bool) {
        let options = ExceptionOptions::new();
        let options = if with_its_stack { options.call_stack(&self.stack) } else { options };
        assert!(posthog::capture_exception_with(&*self.error, options).is_accepted());
    }
}

#[inline(never)]
fn load_cart() -> Result<u8, AppError> {
    Ok(std::hint::black_box("cart").parse::<u8>()?)
}

#[inline(never)]
fn load_user() -> Result<u8, AppError> {
    Ok(std::hint::black_box("user").parse::<u8>()?)
}

/// The functions of the stack of each exception that was sent, innermost first.
fn stacks(harness: &Harness) -> Vec<Vec<String>> {
    harness.deliver().unwrap();
    let frames = |event: &Value| event["properties"]["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned();
    let name = |frame: &Value| frame["function"].as_str().unwrap_or_default().to_owned();
    let taken = harness.server().taken();
    taken.iter().map(|event| frames(event).unwrap_or_default().iter().rev().map(name).collect()).collect()
}

#[test]
fn a_call_stack_tells_errors_of_one_response_apart() {
    for with_its_stack in [false, true] {
        let harness = harness();
        let _global = harness.global_on_this_thread();
        for failed in [load_cart(), load_user()] {
            let Err(error) = failed else { panic!("it should fail") };
            error.into_response(with_its_stack);
        }
        let stacks = stacks(&harness);
        let has = |stack: &[String], name: &str| stack.iter().any(|function| function.contains(name));
        assert_eq!(stacks.len(), 2);
        assert_eq!(has(&stacks[0], "load_cart"), with_its_stack, "{:?}", stacks[0]);
        assert_eq!(has(&stacks[1], "load_user"), with_its_stack, "{:?}", stacks[1]);
        assert_eq!(stacks[0] == stacks[1], !with_its_stack, "{stacks:?}");
        assert_eq!(has(&stacks[0], "into_response"), !with_its_stack, "{:?}", stacks[0]);
    }
}

/// Responds with the status that the path names, and with an extension if it was reported already.
#[derive(Clone)]
struct Shop;

impl Service<Request<()>> for Shop {
    type Response = Response<&'static str>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/');
        let (status, is_reported) = path.strip_suffix("/reported").map_or((path, false), |status| (status, true));
        let mut response = Response::builder().status(status).header("x-shop", "open").body("tea").unwrap();
        if is_reported {
            response.extensions_mut().insert(Reported);
        }
        ready(Ok(response))
    }
}

/// What the router of a program leaves in the extensions of a request.
#[derive(Clone)]
struct Matched(&'static str);

/// Polls a future that is ready.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it is ready at once"),
    }
}

fn call<S: Service<Request<()>, Response = Response<&'static str>>>(service: &mut S, path: &str) -> Option<u16> {
    let mut request = Request::get(path).body(()).unwrap();
    request.extensions_mut().insert(Matched("/{status}"));
    let response = now(service.call(request)).ok()?;
    assert_eq!((*response.body(), response.headers()["x-shop"].as_bytes()), ("tea", &b"open"[..]));
    Some(response.status().as_u16())
}

fn layer() -> ServerErrorLayer {
    ServerErrorLayer::new().route(|extensions| extensions.get::<Matched>().map(|path| path.0.to_owned()))
}

#[test]
fn a_failed_response_becomes_an_exception_and_stays_as_it_is() {
    let harness = harness();
    let _global = harness.global_on_this_thread();
    let mut service = layer().except([503]).layer(Shop);
    for status in [200, 404, 500, 503, 502] {
        assert_eq!(call(&mut service, &format!("/{status}")), Some(status));
    }
    assert_eq!(call(&mut service, "/500/reported"), Some(500));
    let queued = harness.queued();
    let of = |key: &str| queued.iter().map(|event| event.properties[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("$exception_type"), ["Http500", "Http502"]);
    assert_eq!(
        of("$exception_message"),
        ["GET /{status}: 500 Internal Server Error", "GET /{status}: 502 Bad Gateway"]
    );
    assert_eq!(of("$exception_fingerprint"), ["GET /{status} Http500", "GET /{status} Http502"]);
    assert_eq!((of("http_status"), of("http_route")), (vec![500.into(), 502.into()], vec!["/{status}".into(); 2]));
    assert_eq!(
        (of("http_method"), of("$exception_source")),
        (vec!["GET".into(); 2], vec!["tower.middleware".into(); 2])
    );
    let first = &queued[0].properties["$exception_list"][0];
    assert_eq!((&first["mechanism"]["type"], first.get("stacktrace")), (&"middleware".into(), None));
}

/// A service that captures an error of the level in its path, and answers with 500.
struct Capturing;

impl Service<Request<()>> for Capturing {
    type Response = Response<&'static str>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let error = "cart".parse::<u8>().unwrap_err();
        // In another context than that of the request, and in one that the program has changed.
        posthog::Context::update(|context| context.distinct_id("user_1"));
        let options = ExceptionOptions::new().level(request.uri().path()[1..].parse().unwrap());
        posthog::Context::new().enter(|| _ = posthog::capture_exception_with(&error, options));
        ready(Ok(Response::builder().status(500).header("x-shop", "open").body("tea").unwrap()))
    }
}

#[test]
fn an_error_captured_in_a_request_is_its_only_exception() {
    let captured = |outer: bool, path: &str| -> Vec<Value> {
        let harness = harness();
        let _global = harness.global_on_this_thread();
        let mut service = layer().layer(Capturing);
        let mut inside = RequestContextLayer::new().layer(layer().layer(Capturing));
        let status = if outer { call(&mut inside, path) } else { call(&mut service, path) };
        assert_eq!(status, Some(500));
        harness.queued().iter().map(|event| event.properties["$exception_type"].clone()).collect()
    };
    assert_eq!(captured(true, "/error"), ["ParseIntError"]);
    assert_eq!(captured(true, "/warning"), ["ParseIntError", "Http500"], "a warning is not why the request failed");
    assert_eq!(captured(false, "/error"), ["ParseIntError", "Http500"], "nothing notes what is captured");
}

#[test]
fn a_failed_response_may_become_an_event_of_another_client() {
    let harness = harness();
    let layer = ServerErrorLayer::new().client(harness.client().clone()).as_event("server_error");
    assert_eq!(call(&mut layer.layer(Shop), "/500"), Some(500));
    let queued = harness.queued();
    let [event] = &queued[..] else { panic!("{queued:?}") };
    assert_eq!((event.event.as_str(), &event.properties["http_status"]), ("server_error", &500.into()));
    assert!(event.properties.get("http_route").is_none() && event.properties.get("$exception_list").is_none());
}

/// An error whose text panics, if the number is odd.
#[derive(Debug)]
struct Broken(u32);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        assert!(self.0.is_multiple_of(2), "a text that panics");
        f.write_str("out of order")
    }
}

/// A service that fails, or panics.
struct Failing(u32);

impl Service<Request<()>> for Failing {
    type Response = Response<&'static str>;
    type Error = Broken;
    type Future = Ready<Result<Self::Response, Broken>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Err(Broken(0)))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        assert_ne!(request.uri().path(), "/panic", "the service panics");
        ready(Err(Broken(self.0)))
    }
}

#[test]
fn errors_of_a_service_are_captured_and_panics_pass() {
    let harness = harness();
    let _global = harness.global_on_this_thread();
    for number in [0, 1] {
        let mut service = layer().layer(Failing(number));
        assert_eq!(call(&mut service, "/"), None);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(&mut service, "/panic")));
        assert!(panicked.is_err());
    }
    let errors: Vec<_> = harness.queued().into_iter().map(|event| event.properties["http_error"].clone()).collect();
    assert_eq!(errors, ["out of order", "an error that cannot be printed"]);
}
