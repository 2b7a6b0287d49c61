//! Tower layers: one that serves each HTTP request in a [`Context`] of its own, and one that captures responses of
//! failed requests ([`ServerErrorLayer`]).

mod server_errors;

use std::task::{self, Poll};

use http::{HeaderMap, Request, header};
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Context, RequestQuery, ScopedFuture};

pub use server_errors::{Reported, ServerErrorFuture, ServerErrorLayer, ServerErrors};

/// Serves each request in a [`Context`] of its own: distinct id and session id from its tracing headers (see
/// [`Context::from_headers`]), and properties of the request (see [`Context::from_request`]). Events that are captured
/// while the request is served get them. The response is not changed. Queries of URLs are not sent unless
/// [`query`](Self::query) says so.
///
/// Add it last in axum, where the last layer is the outermost: layers and handlers inside of it have the context.
///
/// The ids are those of the sender and not verified; an application that knows the user replaces them with
/// [`Context::update`]. A task that continues after the response has no context unless it is given one
/// ([`Context::current`], [`Context::scope`]).
///
/// ```
/// use posthog::integrations::tower::RequestContextLayer;
/// # struct Router;
/// # impl Router { fn new() -> Self { Self } fn layer(self, _: RequestContextLayer) -> Self { self } }
///
/// let app = Router::new().layer(RequestContextLayer::new());
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RequestContextLayer {
    query: RequestQuery,
}

impl RequestContextLayer {
    /// A layer that sends no queries.
    pub fn new() -> Self {
        Self::default()
    }

    /// What of a request's query is sent in `$current_url`. Default: nothing, for it may hold secrets.
    ///
    /// ```
    /// use posthog::context::RequestQuery;
    /// use posthog::integrations::tower::RequestContextLayer;
    ///
    /// let layer = RequestContextLayer::new().query(RequestQuery::only(["utm_source"]));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn query(mut self, query: RequestQuery) -> Self {
        self.query = query;
        self
    }
}

impl<S> Layer<S> for RequestContextLayer {
    type Service = RequestContext<S>;

    fn layer(&self, service: S) -> RequestContext<S> {
        RequestContext { service, query: self.query.clone() }
    }
}

/// The service that [`RequestContextLayer`] puts around another.
#[derive(Clone, Debug)]
pub struct RequestContext<S> {
    service: S,
    query: RequestQuery,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for RequestContext<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = ScopedFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(task)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (method, url) = (request.method().as_str(), url_of(&request));
        let context = Context::from_request_with(method, &url, request.headers(), &self.query).noting_exceptions();
        context.enter(|| {
            let response = self.service.call(request);
            // Read after the call, because the service may have changed the context.
            Context::current().unwrap_or(context.clone()).scope(response)
        })
    }
}

/// The URL as the sender used it, as far as a server can tell: the request has a path, and the host in a header.
fn url_of<B>(request: &Request<B>) -> String {
    let uri = request.uri();
    let host = text(request.headers(), header::HOST.as_str());
    match host {
        Some(host) if uri.authority().is_none() => {
            // Each proxy appends its value; the first is that of the client's connection.
            let schemes = text(request.headers(), "x-forwarded-proto");
            let scheme = schemes.and_then(|schemes| schemes.split(',').next()).unwrap_or_default();
            let is_https = scheme.trim().eq_ignore_ascii_case("https");
            format!("{}://{host}{uri}", if is_https { "https" } else { "http" })
        }
        _ => uri.to_string(),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
