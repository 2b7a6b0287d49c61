//! A tower layer that captures responses with a status of 500 to 599, and errors of the service.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use serde_json::Value;
use tower_layer::Layer;
use tower_service::Service;

use crate::client::{Client, capture, capture_exception_with};
use crate::context::Context;
use crate::event::Event;
use crate::event::exception::{AdHocError, ExceptionOptions, print};
use crate::sys::reentry;

/// Captures each response with a status of 500 to 599, and each error that the service itself returns, for PostHog's
/// error tracking. Nothing is captured otherwise. The response and the error are passed on unchanged, and a panic of the
/// service passes through.
///
/// An exception is called `Http500` (or as the status is) with a message such as `GET /users/{id}: 500 Internal Server
/// Error`, and has the properties `http_method`, `http_route` (see [`route`](Self::route)), `http_status`, and for an
/// error of the service `http_error`. It has no stack: that would be this layer's, the same for all. PostHog groups them
/// by method, route and status. For the error behind a response, capture that error where it is turned into one
/// (see [`CallStack`](crate::exceptions::CallStack)).
///
/// # One failure, one exception
///
/// Put it inside of a [`RequestContextLayer`](super::RequestContextLayer), which adds the person, the path and the URL.
/// Then a response is not captured if an exception of level error or fatal was captured while its request was served:
/// an error, a logged line (feature `tracing`), or a panic with
/// [`install_panic_hook`](crate::install_panic_hook). The same holds for a response that is marked as [`Reported`], with
/// or without that layer. With [`as_event`](Self::as_event) only the mark counts.
///
/// In axum, whose last layer is the outermost, add the layers in this order:
///
/// ```text
/// Router::new()
///     .route(...)
///     .layer(ServerErrorLayer::new())      // sees each response, and what was captured for it
///     .layer(CatchPanicLayer::new())       // of tower-http: outside, so that a panic is reported by the panic hook only
///     .layer(TraceLayer::new_for_http())   // of tower-http: its "response failed" becomes a breadcrumb
///     .layer(RequestContextLayer::new())   // outermost: all of the above have its context
/// ```
///
/// # Example
///
/// ```
/// use posthog::integrations::tower::{RequestContextLayer, ServerErrorLayer};
/// # struct Router;
/// # impl Router { fn new() -> Self { Self } fn layer<L>(self, _: L) -> Self { self } }
/// # #[derive(Clone)] struct MatchedPath;
/// # impl MatchedPath { fn as_str(&self) -> &str { "" } }
///
/// // In axum, `MatchedPath` is `axum::extract::MatchedPath`.
/// let errors = ServerErrorLayer::new()
///     .route(|extensions| extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned()))
///     .except([503]);
/// let app = Router::new().layer(errors).layer(RequestContextLayer::new());
/// ```
#[derive(Clone, Default)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ServerErrorLayer {
    rules: Arc<Rules>,
}

#[derive(Clone, Default)]
struct Rules {
    /// The process-wide client if there is none.
    client: Option<Client>,
    route: Option<Arc<RouteOf>>,
    except: Vec<u16>,
    /// The name of the event that is captured instead of an exception.
    event: Option<String>,
}

type RouteOf = dyn Fn(&http::Extensions) -> Option<String> + Send + Sync;

impl ServerErrorLayer {
    /// A layer that captures exceptions with the process-wide client ([`init`](crate::init)). If there is none when a
    /// response fails, nothing is captured.
    pub fn new() -> Self {
        Self::default()
    }

    /// Captures with this client.
    pub fn client(self, client: Client) -> Self {
        self.with(|rules| rules.client = Some(client))
    }

    /// Finds the route of a request in its extensions: the pattern that the router matched, such as `/users/{id}`. Do
    /// not return the path, which has ids in it: PostHog would create an issue for each. Default: no route, so that
    /// requests are grouped by method and status only.
    pub fn route(self, route: impl Fn(&http::Extensions) -> Option<String> + Send + Sync + 'static) -> Self {
        self.with(|rules| rules.route = Some(Arc::new(route)))
    }

    /// Captures no response with one of these statuses: 503 of a health check, for example.
    pub fn except(self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.with(|rules| rules.except.extend(statuses))
    }

    /// Captures an event of this name with the same properties, instead of an exception.
    pub fn as_event(self, name: impl Into<String>) -> Self {
        self.with(|rules| rules.event = Some(name.into()))
    }

    fn with(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(Arc::make_mut(&mut self.rules));
        self
    }
}

impl fmt::Debug for ServerErrorLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rules { except, event, .. } = &*self.rules;
        f.debug_struct("ServerErrorLayer").field("except", except).field("event", event).finish_non_exhaustive()
    }
}

/// An extension of a response whose error was captured already: [`ServerErrorLayer`] does not capture it again.
///
/// ```
/// use posthog::integrations::tower::Reported;
///
/// let mut response = http::Response::builder().status(500).body(()).unwrap();
/// response.extensions_mut().insert(Reported);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported;

impl<S> Layer<S> for ServerErrorLayer {
    type Service = ServerErrors<S>;

    fn layer(&self, service: S) -> ServerErrors<S> {
        ServerErrors { service, layer: self.clone() }
    }
}

/// The service that [`ServerErrorLayer`] puts around another.
#[derive(Clone, Debug)]
pub struct ServerErrors<S> {
    service: S,
    layer: ServerErrorLayer,
}

impl<S, B, R> Service<Request<B>> for ServerErrors<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Display,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ServerErrorFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(task)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let rules = Arc::clone(&self.layer.rules);
        // The program's code; a panic in it costs the route only.
        let find = |route: &Arc<RouteOf>| reentry::caught(|| route(request.extensions())).flatten();
        let failure = Failure { method: request.method().clone(), route: rules.route.as_ref().and_then(find), rules };
        ServerErrorFuture { response: self.service.call(request), failure }
    }
}

pin_project! {
    /// The future of [`ServerErrors`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are polled"]
    pub struct ServerErrorFuture<F> {
        #[pin]
        response: F,
        failure: Failure,
    }
}

impl<F, R, E> Future for ServerErrorFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Display,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = task::ready!(this.response.poll(task));
        match &result {
            Ok(response) if response.status().is_server_error() => {
                if response.extensions().get::<Reported>().is_none() && !this.failure.is_reported() {
                    this.failure.capture_status(response.status());
                }
            }
            Ok(_) => {}
            Err(error) if !this.failure.is_reported() => this.failure.capture_error(error),
            Err(_) => {}
        }
        Poll::Ready(result)
    }
}

/// Bytes kept of the text of an error.
const TEXT_MOST: usize = 10_000;

/// What is known of a request before its response.
struct Failure {
    method: http::Method,
    route: Option<String>,
    rules: Arc<Rules>,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("method", &self.method).field("route", &self.route).finish_non_exhaustive()
    }
}

impl Failure {
    /// Whether an exception was captured while the request was served. It says more than one without a stack.
    fn is_reported(&self) -> bool {
        self.rules.event.is_none() && Context::current().is_some_and(|context| context.has_exception())
    }

    fn capture_status(&self, status: StatusCode) {
        let number = status.as_u16();
        if !self.rules.except.contains(&number) {
            self.capture(&format!("Http{number}"), &status.to_string(), ("http_status", number.into()));
        }
    }

    fn capture_error(&self, error: &impl Display) {
        // The error is the program's: its `Display` may panic, and the service must not.
        let (text, has_failed) = reentry::calling_out(|| print(TEXT_MOST, format_args!("{error}")));
        let text = if has_failed { "an error that cannot be printed".to_owned() } else { text };
        self.capture("ServiceError", &text, ("http_error", text.as_str().into()));
    }

    fn capture(&self, kind: &str, what: &str, property: (&str, Value)) {
        let (method, route) = (self.method.as_str(), self.route.as_deref());
        let props: BTreeMap<&str, Value> = [("http_method", method.into()), property]
            .into_iter()
            .chain(route.map(|route| ("http_route", route.into())))
            .collect();
        let client = self.rules.client.as_ref();
        if let Some(name) = &self.rules.event {
            let event = Event::new_anon(name).props(&props);
            let _ = match client {
                Some(client) => client.capture(event),
                None => capture(event),
            };
            return;
        }
        let shown = route.map(|route| format!(" {route}")).unwrap_or_default();
        let error = AdHocError::new(format!("{method}{shown}: {what}")).kind(kind);
        let fingerprint = format!("{method}{shown} {kind}");
        let options = ExceptionOptions::new()
            .props(&props)
            .stack(false)
            .mechanism("middleware")
            .source("tower.middleware")
            // One failing route must not use up the tokens of the others.
            .rate_limit_key(&fingerprint)
            .fingerprint(fingerprint);
        let _ = match client {
            Some(client) => client.capture_exception_with(&error, options),
            None => capture_exception_with(&error, options),
        };
    }
}
