//! The tower layer (CTX-01, CTX-07, CTX-08): a context for each request.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use http::{Request, Response};
use posthog::context::{RequestQuery, current_distinct_id};
use posthog::integrations::tower::RequestContextLayer;
use posthog::{Client, Context, Event};
use serde_json::Value;
use tower_layer::Layer;
use tower_service::Service;

use crate::fixture::accepted;
use crate::scenario::Scenario;

/// A service that captures, before and after an await.
#[derive(Clone)]
struct Shop {
    client: Client,
}

impl Service<Request<&'static str>> for Shop {
    type Response = Response<&'static str>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<&'static str>) -> Self::Future {
        let client = self.client.clone();
        accepted(&client.capture(Event::new_anon("called")));
        if request.uri().path() == "/login" {
            Context::update(|context| context.distinct_id("authenticated"));
        }
        Box::pin(async move {
            tokio::task::yield_now().await;
            accepted(&client.capture(Event::new_anon("served")));
            Ok(Response::builder().status(418).header("x-shop", "open").body("tea").unwrap())
        })
    }
}

fn request(id: &str, path: &str) -> Request<&'static str> {
    let request = Request::post(path).header("Host", "shop.example").header("X-Forwarded-Proto", "https");
    request.header("X-PostHog-Distinct-Id", id).header("User-Agent", "curl/8").body("").unwrap()
}

#[tokio::test]
async fn ctx_01_a_layer_serves_each_request_in_a_context_of_its_own() {
    let scenario = Scenario::new();
    let mut service = RequestContextLayer::new().layer(Shop { client: scenario.client.clone() });
    let (one, two) = (service.call(request("one", "/cart?x=1")), service.call(request("two", "/login")));
    assert_eq!(current_distinct_id(), None);
    let (one, two) = tokio::join!(one, two);
    assert_eq!(current_distinct_id(), None);
    for response in [one.unwrap(), two.unwrap()] {
        assert_eq!(
            (response.status().as_u16(), response.headers()["x-shop"].as_bytes(), *response.body()),
            (418, &b"open"[..], "tea")
        );
    }
    let sent = tokio::task::spawn_blocking(move || scenario.sent()).await.unwrap();
    let mut ids: Vec<_> =
        sent.iter().map(|event| (event["event"].as_str().unwrap(), event["distinct_id"].as_str().unwrap())).collect();
    ids.sort_unstable();
    assert_eq!(ids, [("called", "one"), ("called", "two"), ("served", "authenticated"), ("served", "one")]);
    let facts = ["$current_url", "$request_method", "$request_path", "$user_agent"];
    let expected = ["https://shop.example/cart", "POST", "/cart", "curl/8"];
    assert_eq!(facts.map(|fact| sent[0]["properties"][fact].clone()), expected.map(Value::from));
}

#[tokio::test]
async fn ctx_08_the_scheme_is_that_of_the_first_proxy() {
    let scenario = Scenario::new();
    let mut service = RequestContextLayer::new().layer(Shop { client: scenario.client.clone() });
    for proto in ["HTTPS", "https, http", "http,https"] {
        let request = Request::get("/a?to=https://b.example/c").header("Host", "shop.example");
        drop(service.call(request.header("X-Forwarded-Proto", proto).body("").unwrap()));
    }
    let sent = tokio::task::spawn_blocking(move || scenario.sent()).await.unwrap();
    let said = |fact: &str| sent.iter().map(|event| event["properties"][fact].clone()).collect::<Vec<_>>();
    let url = |scheme: &str| Value::from(format!("{scheme}://shop.example/a"));
    assert_eq!(said("$current_url"), [url("https"), url("https"), url("http")]);
    assert_eq!(said("$request_path"), ["/a"; 3].map(Value::from));
}

#[tokio::test]
async fn ctx_08_of_a_query_only_what_is_asked_for_is_sent() {
    for (query, expected) in [
        (None, ""),
        (Some(RequestQuery::only(["utm_source"])), "?utm_source=mail"),
        (Some(RequestQuery::all()), "?reset_token=abc&utm_source=mail"),
    ] {
        let scenario = Scenario::new();
        let layer = query.map_or_else(RequestContextLayer::new, |query| RequestContextLayer::new().query(query));
        let mut service = layer.layer(Shop { client: scenario.client.clone() });
        drop(service.call(request("one", "/reset?reset_token=abc&utm_source=mail")));
        let sent = tokio::task::spawn_blocking(move || scenario.sent()).await.unwrap();
        let properties = &sent[0]["properties"];
        assert_eq!(properties["$current_url"], format!("https://shop.example/reset{expected}"));
        assert!(expected.contains("reset_token") || !properties.to_string().contains("abc"), "{properties}");
    }
}

/// A service that fails or panics.
struct Broken;

impl Service<Request<&'static str>> for Broken {
    type Response = Response<&'static str>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, &'static str>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Err("not ready"))
    }

    fn call(&mut self, request: Request<&'static str>) -> Self::Future {
        assert_ne!(request.uri().path(), "/panic");
        ready(Err("broken"))
    }
}

#[tokio::test]
async fn ctx_08_errors_and_panics_pass_and_leave_no_context() {
    let mut service = RequestContextLayer::new().layer(Broken);
    let ready = std::future::poll_fn(|task| Service::<Request<&'static str>>::poll_ready(&mut service, task)).await;
    assert_eq!(ready, Err("not ready"));
    assert_eq!(service.call(request("one", "/")).await.unwrap_err(), "broken");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| service.call(request("one", "/panic"))));
    assert!(panicked.is_err());
    assert_eq!(current_distinct_id(), None);
}
