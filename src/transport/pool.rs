//! The HTTP client: its options, its TLS configuration, its connections, and how it is built again.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::message::TransportError;
use super::proxy::{Proxy, Ways};
use super::resolve;
use crate::sys::throttle::Throttle;

/// How to reach the network.
#[derive(Clone, Debug)]
pub(crate) struct TransportOptions {
    /// From the first byte sent to the last byte read, connecting included.
    pub(crate) request_timeout: Duration,
    /// For DNS, TCP and TLS together.
    pub(crate) connect_timeout: Duration,
    /// The way out.
    pub(crate) proxy: Proxy,
    /// Certificate authorities trusted beside the machine's own, each a PEM text of one or more certificates.
    pub(crate) ca_pem: Vec<Vec<u8>>,
    /// The `User-Agent` header.
    pub(crate) user_agent: String,
    /// Sent with every request.
    pub(crate) headers: Vec<(String, String)>,
}

/// Shorter than the 60 s after which load balancers commonly close idle connections, so that a reused one is rarely a dead one.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// At most this often are the machine's certificates read again.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(60);

/// All that was read from options and environment, so that a client can be built again without them.
pub(super) struct Settings {
    pub(super) options: TransportOptions,
    pub(super) headers: HeaderMap,
    pub(super) ways: Ways,
    /// Reads the machine's certificates.
    pub(super) machine: MachineCertificates,
    /// What it read at the start, and what the options add.
    pub(super) roots: Arc<RootCertStore>,
}

/// The client in use. It is replaced as a whole where its connections or its certificates are not to be used again.
pub(super) struct Pool {
    settings: Arc<Settings>,
    current: Mutex<Connections>,
    reading: Mutex<Reading>,
}

/// A client with its idle connections.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) client: reqwest::Client,
    roots: Arc<RootCertStore>,
    /// Counts the clients before it.
    generation: u64,
}

/// When the machine's certificates may be read again.
#[derive(Debug)]
struct Reading {
    throttle: Throttle,
    /// A thread is reading them. It may hang, as file systems do; then no second thread is started.
    is_under_way: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self { throttle: Throttle::new(CERTIFICATES_INTERVAL), is_under_way: false }
    }
}

impl Reading {
    fn begin(&mut self, now: Instant) -> bool {
        let begins = !self.is_under_way && self.throttle.admit(now.into_std()).is_some();
        self.is_under_way |= begins;
        begins
    }
}

impl Pool {
    pub(super) fn new(settings: Arc<Settings>) -> Result<Arc<Self>, TransportError> {
        let roots = Arc::clone(&settings.roots);
        let client = client(&settings, &roots)?;
        let current = Mutex::new(Connections { client, roots, generation: 0 });
        Ok(Arc::new(Self { settings, current, reading: Mutex::default() }))
    }

    /// The same settings, and nothing else in common. Takes no lock: a forked child asks, and a thread that it does not have may have
    /// held it.
    pub(super) fn apart(&self) -> Result<Arc<Self>, TransportError> {
        Self::new(Arc::clone(&self.settings))
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn current(&self) -> Connections {
        lock(&self.current).clone()
    }

    /// A client without the idle connections of `found_dead`. `None` if none can be built.
    pub(super) fn without(&self, found_dead: &Connections) -> Option<Connections> {
        let mut current = lock(&self.current);
        // Several requests may find out at once; the first of them has replaced the client already.
        if current.generation == found_dead.generation {
            self.replace(&mut current, Arc::clone(&found_dead.roots))?;
        }
        Some(current.clone())
    }

    /// A client that trusts whom the machine trusts now, after `failed` trusted somebody too few. `None` if there is nothing new, or the
    /// certificates were read lately.
    pub(super) async fn with_certificates_of_now(self: &Arc<Self>, failed: &Connections) -> Option<Connections> {
        if let Some(newer) = Some(self.current()).filter(|current| !Arc::ptr_eq(&current.roots, &failed.roots)) {
            return Some(newer);
        }
        let roots = self.read_again().await?;
        let mut current = lock(&self.current);
        if roots.is_empty() || roots.roots == current.roots.roots {
            // A file that is being written right now is no reason to trust nobody.
            return None;
        }
        self.replace(&mut current, Arc::new(roots))?;
        Some(current.clone())
    }

    /// What the machine's certificates are now, read on a thread of its own: reading files may take as long as it likes.
    async fn read_again(self: &Arc<Self>) -> Option<RootCertStore> {
        if !lock(&self.reading).begin(Instant::now()) {
            return None;
        }
        let (tell, told) = oneshot::channel();
        let pool = Arc::clone(self);
        let read = move || {
            let settings = &pool.settings;
            let roots = roots((settings.machine)(), &settings.options.ca_pem).ok();
            lock(&pool.reading).is_under_way = false;
            // Nobody listens any more when the request was given up.
            let _ = tell.send(roots);
        };
        if thread::Builder::new().name("posthog-certs".to_owned()).spawn(read).is_err() {
            lock(&self.reading).is_under_way = false;
            return None;
        }
        told.await.ok().flatten()
    }

    fn replace(&self, current: &mut Connections, roots: Arc<RootCertStore>) -> Option<()> {
        let client = client(&self.settings, &roots).ok()?;
        *current = Connections { client, roots, generation: current.generation.wrapping_add(1) };
        Some(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn client(settings: &Settings, roots: &Arc<RootCertStore>) -> Result<reqwest::Client, TransportError> {
    let options = &settings.options;
    let mut builder = reqwest::Client::builder()
        // Session tickets are shared mutable state: each client gets a TLS configuration of its own.
        .tls_backend_preconfigured(client_config(roots)?)
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
    if !settings.ways.are_direct() {
        builder = builder.proxy(settings.ways.clone().into_proxy());
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

pub(super) fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, TransportError> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let (Ok(key), Ok(text)) = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) else {
            return Err(TransportError::BadHeader { name: name.clone() });
        };
        map.append(key, text);
    }
    Ok(map)
}

/// Reads the machine's own certificates, as they are at the moment.
pub(super) type MachineCertificates = Box<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>;

/// As `SSL_CERT_FILE` and `SSL_CERT_DIR` say or where the system keeps them; those that cannot be read are left out, as every TLS library
/// does.
pub(super) fn machine_certificates() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// The machine's and the configured ones together. The machine's may be odd, those of the configuration may not.
pub(super) fn roots(
    machine: Vec<CertificateDer<'static>>,
    configured: &[Vec<u8>],
) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(machine);
    for (index, pem) in configured.iter().enumerate() {
        let bad = || TransportError::BadCertificate { number: index + 1 };
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
        }
        if roots.len() == before {
            return Err(bad());
        }
    }
    Ok(roots)
}

/// A configuration of its own crypto provider: the host program may have installed another one, or none, or two libraries that
/// disagree, and none of that may matter here.
fn client_config(roots: &Arc<RootCertStore>) -> Result<ClientConfig, TransportError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TransportError::Setup(source.into()))?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn certificates_are_read_again_at_most_once_a_minute_and_by_one_at_a_time() {
        let mut reading = Reading::default();
        assert!(reading.begin(Instant::now()));
        reading.is_under_way = false;
        tokio::time::advance(CERTIFICATES_INTERVAL - Duration::from_millis(1)).await;
        assert!(!reading.begin(Instant::now()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(reading.begin(Instant::now()));
        tokio::time::advance(CERTIFICATES_INTERVAL * 9).await;
        assert!(!reading.begin(Instant::now()), "the last one hangs");
    }
}
