//! The connections, and how to make them again.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use reqwest::header::HeaderMap;
use rustls::RootCertStore;
use tower_layer::Layer;
use tower_service::Service;

use super::{TransportError, TransportOptions, resolve, tls};

/// Shorter than the 60 s after which load balancers commonly close idle connections, so that a reused one is rarely a dead one.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// All that was read from options and environment, so that a client can be built again without them.
pub(super) struct Settings {
    pub(super) options: TransportOptions,
    pub(super) headers: HeaderMap,
    pub(super) proxies: Vec<reqwest::Proxy>,
    pub(super) roots: Arc<RootCertStore>,
}

/// The client in use. It is replaced as a whole where its connections are not to be used again.
pub(super) struct Pool {
    settings: Arc<Settings>,
    current: Mutex<Connections>,
}

/// A client with its idle connections.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) client: reqwest::Client,
    /// Counts the clients before it.
    generation: u64,
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Result<Self, TransportError> {
        let client = client(&settings)?;
        Ok(Self { settings, current: Mutex::new(Connections { client, generation: 0 }) })
    }

    /// The same settings, and nothing else in common. Takes no lock: a forked child asks, and a thread that it does not have may have
    /// held it.
    pub(super) fn apart(&self) -> Result<Self, TransportError> {
        Self::new(Arc::clone(&self.settings))
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn current(&self) -> Connections {
        self.lock().clone()
    }

    /// A client without the idle connections of `found_dead`. `None` if none can be built.
    pub(super) fn without(&self, found_dead: &Connections) -> Option<Connections> {
        let mut current = self.lock();
        // Several requests may find out at once; the first of them has replaced the client already.
        if current.generation == found_dead.generation {
            let client = client(&self.settings).ok()?;
            *current = Connections { client, generation: found_dead.generation.wrapping_add(1) };
        }
        Some(current.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(settings: &Settings) -> Result<reqwest::Client, TransportError> {
    let options = &settings.options;
    let mut builder = reqwest::Client::builder()
        // Session tickets are shared mutable state: each client gets a TLS configuration of its own.
        .tls_backend_preconfigured(tls::client_config(&settings.roots)?)
        .timeout(options.request_timeout)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .connector_layer(NotesConnects)
        // Another crate of the program may have compiled these in: bodies are decoded here, where they are bounded.
        .no_gzip()
        .no_deflate()
        .no_brotli()
        .no_zstd()
        .dns_resolver(resolve::SystemResolver::default())
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .user_agent(options.user_agent.as_str())
        .default_headers(settings.headers.clone())
        // reqwest's own reading of the environment is switched off: it is silent about mistakes.
        .no_proxy();
    for proxy in &settings.proxies {
        builder = builder.proxy(proxy.clone());
    }
    builder.build().map_err(|source| TransportError::Setup(source.into()))
}

tokio::task_local! {
    /// Whether the request that is being sent has begun a connection of its own.
    static HAS_CONNECTED: Cell<bool>;
}

/// Does `task`, and tells whether it has connected anew instead of taking a connection that was there.
pub(super) async fn noting_connects<T>(task: impl Future<Output = T>) -> (T, bool) {
    HAS_CONNECTED.scope(Cell::new(false), async { (task.await, HAS_CONNECTED.with(Cell::get)) }).await
}

/// Notes each connection that is begun, for whoever sends the request. (The pool begins them as part of the request's own task.)
#[derive(Clone)]
struct NotesConnects;

impl<S> Layer<S> for NotesConnects {
    type Service = Noting<S>;

    fn layer(&self, connects: S) -> Noting<S> {
        Noting(connects)
    }
}

#[derive(Clone)]
struct Noting<S>(S);

impl<S: Service<T>, T> Service<T> for Noting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, destination: T) -> S::Future {
        // Outside of a request nobody wants to know.
        let _ = HAS_CONNECTED.try_with(|connected| connected.set(true));
        self.0.call(destination)
    }
}
