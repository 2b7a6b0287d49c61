//! A web service as a daemon: axum, with PostHog for events, errors and flags. Copy it.
//!
//! ```sh
//! POSTHOG_API_KEY=phc_... POSTHOG_QUEUE_DIR=/tmp/shop cargo run -p axum-daemon
//! curl -d '{"user":"user_1","cents":1200}' -H 'content-type: application/json' localhost:3000/orders
//! curl localhost:3000/invoice       # fails: the error becomes an exception in PostHog
//! curl localhost:3000/total         # panics: so does the panic
//! curl localhost:3000/partner       # answers with 502 without an error: so does the response
//! curl localhost:3000/ready; curl localhost:3000/metrics
//! ```
//!
//! What it shows, in this order:
//!
//! * the start: log lines, the process-wide client, panics and fatal signals;
//! * a stop that delivers what is queued, and readiness for systemd;
//! * handlers that capture events, and errors (`anyhow`) that become exceptions with the stack of where they occurred;
//! * the usual layers of tower-http, with one exception for each failure, whatever it is;
//! * a worker that reports a piece of work as done once its event is on the disk;
//! * flags, probes and metrics.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{MatchedPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use posthog::exceptions::{CallStack, ExceptionOptions};
use posthog::feature_flags::FlagContext;
use posthog::integrations::tower::{RequestContextLayer, ServerErrorLayer};
use posthog::{Client, Config, Event};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Orders that wait for the worker. More are refused with 503, so that memory stays bounded.
const WAITING_MAX: usize = 1024;
/// How long requests may go on after a signal. With `shutdown_timeout` (10 s) less than `TimeoutStopSec` of the unit.
const REQUESTS_MOST: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct App {
    client: Client,
    orders: mpsc::Sender<Job>,
}

/// An order, and where its result goes.
type Job = (Order, oneshot::Sender<anyhow::Result<String>>);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Lines go to standard error. Errors also become exceptions, other lines the breadcrumbs of the next exception.
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(lines.with_filter(LevelFilter::INFO))
        .with(posthog::integrations::tracing::layer())
        .init();

    // POSTHOG_API_KEY, POSTHOG_HOST, POSTHOG_QUEUE_DIR and more. Without a key every event is dropped, which is logged.
    let client = posthog::init(Config::from_env().release("axum-daemon", env!("CARGO_PKG_VERSION")))?;
    posthog::install_panic_hook();
    posthog::install_crash_handler();

    let (orders, waiting) = mpsc::channel(WAITING_MAX);
    let worker = tokio::spawn(work(client.clone(), waiting));
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&address).await.with_context(|| format!("cannot listen on {address}"))?;
    // Before the service is ready: without these, a signal ends the process at once.
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(address = %listener.local_addr()?, "listening");
    // For a unit with `Type=notify`. Nothing happens without systemd.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let (stopping, stopped) = oneshot::channel();
    let serving = axum::serve(listener, router(App { client: client.clone(), orders }))
        .with_graceful_shutdown(stop(signals, stopping));
    tokio::select! {
        served = serving => served?,
        // A request that does not end must not keep the events from being delivered.
        () = after(stopped, REQUESTS_MOST) => tracing::warn!("requests were cut off at the stop"),
    }

    // The worker ends when the last request is gone and it has done what it had accepted.
    let _ = tokio::time::timeout(REQUESTS_MOST, worker).await;
    // Delivers for up to `shutdown_timeout`. The next start delivers the rest.
    let report = client.close().await;
    tracing::info!(delivered = report.delivered, left_on_disk = report.remaining, "stopped");
    Ok(())
}

/// Resolves at SIGTERM and SIGINT, and notifies systemd and `main`.
async fn stop((mut terminate, mut interrupt): (Signal, Signal), stopping: oneshot::Sender<()>) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let _ = stopping.send(());
}

/// Resolves this long after the stop began.
async fn after(stopped: oneshot::Receiver<()>, time: Duration) {
    if stopped.await.is_err() {
        // The service ended by itself.
        return std::future::pending().await;
    }
    tokio::time::sleep(time).await;
}

fn router(app: App) -> Router {
    // Captures failed responses of which nothing else was captured, by their route.
    let failed_responses = ServerErrorLayer::new()
        .route(|extensions| extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned()))
        // The service is full: not an error to look into.
        .except([503]);
    Router::new()
        .route("/orders", post(order))
        .route("/invoice", get(invoice))
        .route("/total", get(total))
        .route("/partner", get(partner))
        .route("/checkout", get(checkout))
        // The last layer is the outermost. A panic is reported by the panic hook, so the layer for responses is inside
        // of the one that turns a panic into a response. Their log lines and that of `TraceLayer` are breadcrumbs.
        .layer(failed_responses)
        .layer(CatchPanicLayer::new())
        .layer(TraceLayer::new_for_http())
        // A context for each request: its path and the ids of its session are on every event captured in it.
        .layer(RequestContextLayer::new())
        // Requests to the routes below have no context.
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(app)
}

#[derive(Deserialize)]
struct Order {
    user: String,
    cents: u64,
}

#[derive(Serialize)]
struct Placed {
    event: String,
}

/// Answers once the event of the order is on the disk: what was answered with 202 is never lost.
async fn order(State(app): State<App>, Json(order): Json<Order>) -> Result<Response, AppError> {
    let (reply, done) = oneshot::channel();
    if app.orders.try_send((order, reply)).is_err() {
        return Ok(StatusCode::SERVICE_UNAVAILABLE.into_response());
    }
    let event = done.await.context("the worker ended before the order was placed")??;
    Ok((StatusCode::ACCEPTED, Json(Placed { event })).into_response())
}

async fn work(client: Client, mut orders: mpsc::Receiver<Job>) {
    while let Some((order, reply)) = orders.recv().await {
        // The HTTP client may have disconnected. Its order is placed nevertheless.
        let _ = reply.send(place(&client, &order).await);
    }
}

async fn place(client: &Client, order: &Order) -> anyhow::Result<String> {
    let receipt = client.capture(Event::new("order_placed", &order.user).prop("cents", order.cents));
    let event = receipt.result()?;
    // Without this the event survives the process; with it, a power cut too.
    receipt.persisted().await?;
    tracing::info!(user = order.user, "order placed");
    Ok(event.to_string())
}

/// Fails, as an example.
async fn invoice() -> Result<String, AppError> {
    let template = std::fs::read_to_string("/nonexistent/invoice.html").context("cannot render the invoice")?;
    Ok(template)
}

/// Panics, as an example.
async fn total() -> String {
    let prices: Vec<u64> = Vec::new();
    let cheapest = prices[std::hint::black_box(0)];
    cheapest.to_string()
}

/// Fails without an error, as an example.
async fn partner() -> StatusCode {
    StatusCode::BAD_GATEWAY
}

#[derive(Deserialize)]
struct Visitor {
    user: String,
}

/// A flag decides which page is shown. While PostHog cannot be reached, the last known value applies, else `false`.
async fn checkout(State(app): State<App>, Query(visitor): Query<Visitor>) -> &'static str {
    let flags = app.client.evaluate_flags(FlagContext::new(&visitor.user).only_keys(["new-checkout"])).await;
    app.client.capture(Event::new("checkout_shown", &visitor.user).flags(&flags));
    if flags.is_enabled("new-checkout") { "the new checkout" } else { "the checkout" }
}

/// Liveness: false only if a restart would help. An outage of PostHog is no reason for one.
async fn live(State(app): State<App>) -> StatusCode {
    if app.client.health().is_alive() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Readiness, and the reasons against it. Leave the client out of it if your service is useful without its events.
async fn ready(State(app): State<App>) -> (StatusCode, String) {
    let health = app.client.health();
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{health}\n"))
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.client.stats().to_prometheus())
}

/// The error of a handler. `?` makes one of any error, with the stack of where that happened; otherwise all errors
/// would have the stack of the conversion into a response, and PostHog would group them as one issue.
struct AppError {
    error: anyhow::Error,
    stack: CallStack,
}

impl<E: Into<anyhow::Error>> From<E> for AppError {
    fn from(error: E) -> Self {
        Self { error: error.into(), stack: CallStack::capture() }
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        // Inside the layer's context, so the exception has the path of its request.
        posthog::capture_anyhow_with(&self.error, ExceptionOptions::new().call_stack(&self.stack));
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}
