//! The HTTP client with its connections: options, TLS configuration, and when the client is replaced by a new one.

use std::cell::Cell;
use std::fmt::{self, Debug};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};
use tokio::time::Instant;
use tower_layer::layer_fn;
use tower_service::Service;

use super::exchange::exchange;
use super::identity::{ClientIdentity, Identity, provider, read_wait};
use super::message::{Http, Pending, Request, TransportError};
use super::proxy::{Proxy, Ways};
use super::resolve;
use crate::sys::throttle::Throttle;

/// How to reach the network.
#[derive(Clone, Debug)]
pub(crate) struct TransportOptions {
    /// Limit for a whole request, from connecting to the last byte of the response.
    pub(crate) request_timeout: Duration,
    /// Limit for DNS, TCP and TLS together.
    pub(crate) connect_timeout: Duration,
    pub(crate) proxy: Proxy,
    /// Certificate authorities trusted in addition to the machine's own, each a PEM text of one or more certificates.
    pub(crate) ca_pem: Vec<Vec<u8>>,
    /// The client's own certificate, for an endpoint that asks for one.
    pub(crate) identity: Option<ClientIdentity>,
    pub(crate) user_agent: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// Shorter than the 60 s after which load balancers commonly close idle connections, so a reused connection is rarely
/// dead.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The shortest time between two reads of the machine's certificates.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(60);

/// The warning about a machine without certificates, on which TLS fails until it has some.
pub(super) const NO_CERTIFICATES: &str = "no CA certificates were found: HTTPS requests will fail until the machine has \
                                          some (package ca-certificates) or SSL_CERT_FILE names a file with them";

/// Everything that was read from options and environment, so that a new client can be built without reading them again.
pub(super) struct Settings {
    pub(super) options: TransportOptions,
    headers: HeaderMap,
    pub(super) ways: Ways,
    machine: MachineCertificates,
    /// As it was read at the start.
    identity: Option<Arc<Identity>>,
    /// The certificates that were read at the start, and those of the options.
    roots: Arc<RootCertStore>,
}

/// Sends requests over the network. Cheap to clone; clones share their connections.
///
/// The client in use is replaced as a whole if its connections or its certificates must not be used again.
#[derive(Clone)]
pub(crate) struct Transport {
    pub(super) settings: Arc<Settings>,
    current: Arc<Mutex<Connections>>,
    /// Locked while a thread reads the machine's certificates. It may hang, as file systems do; then no second thread is
    /// started.
    reading: Arc<AsyncMutex<Throttle>>,
    pub(super) identity: Option<Arc<Identity>>,
}

/// A client with its idle connections.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) client: reqwest::Client,
    roots: Arc<RootCertStore>,
    /// The number of clients before it.
    generation: u64,
}

/// Locks the throttle if the machine's certificates may be read again.
fn begin_reading(reading: &Arc<AsyncMutex<Throttle>>, now: Instant) -> Option<OwnedMutexGuard<Throttle>> {
    let mut throttle = Arc::clone(reading).try_lock_owned().ok()?;
    throttle.admit(now.into_std())?;
    Some(throttle)
}

impl Transport {
    /// Reads the environment and the machine's certificates. Takes tens of milliseconds, so it is not called on a
    /// caller's thread. Also returns problems of this machine that do not prevent the start, for its operator.
    pub(crate) fn new(options: TransportOptions) -> Result<(Self, Vec<String>), TransportError> {
        Self::with_surroundings(options, &|name| std::env::var(name).ok(), Box::new(machine_certificates))
    }

    /// Like [`Transport::new`], with environment and certificates as arguments.
    pub(super) fn with_surroundings(
        options: TransportOptions,
        env: &dyn Fn(&'static str) -> Option<String>,
        machine: MachineCertificates,
    ) -> Result<(Self, Vec<String>), TransportError> {
        let (ways, mut warnings) = Ways::new(&options.proxy, env)?;
        let roots = roots(machine(), &options.ca_pem)?;
        if roots.is_empty() {
            warnings.push(NO_CERTIFICATES.to_owned());
        }
        let headers = header_map(&options.headers)?;
        let identity = options.identity.clone().map(Identity::new).transpose()?;
        let settings = Settings { options, headers, ways, machine, identity, roots: Arc::new(roots) };
        Ok((Self::with_settings(Arc::new(settings))?, warnings))
    }

    fn with_settings(settings: Arc<Settings>) -> Result<Self, TransportError> {
        let roots = Arc::clone(&settings.roots);
        let identity = settings.identity.as_ref().map(|identity| identity.for_child());
        let client = client(&settings, &roots, identity.as_ref())?;
        let current = Arc::new(Mutex::new(Connections { client, roots, generation: 0 }));
        let reading = Arc::new(AsyncMutex::new(Throttle::new(CERTIFICATES_INTERVAL)));
        Ok(Self { settings, current, reading, identity })
    }

    /// A transport with the same settings and no connections, for a forked child, which must not use its parent's
    /// sockets. Takes no lock, since a thread of the parent may hold it.
    pub(crate) fn reconnect(&self) -> Result<Self, TransportError> {
        Self::with_settings(Arc::clone(&self.settings))
    }

    /// Host and port of the proxy of requests to `url`, and where it was set; without its credentials.
    pub(crate) fn proxy_of(&self, url: &str) -> Option<String> {
        self.settings.ways.to(&url.parse().ok()?).map(ToString::to_string)
    }

    pub(super) fn current(&self) -> Connections {
        lock(&self.current).clone()
    }

    /// A client without the idle connections of `found_dead`; `None` if none can be built.
    pub(super) fn without(&self, found_dead: &Connections) -> Option<Connections> {
        let mut current = lock(&self.current);
        // Several requests may notice at once; the first of them replaces the client.
        if current.generation == found_dead.generation {
            self.replace(&mut current, Arc::clone(&found_dead.roots))?;
        }
        Some(current.clone())
    }

    /// A client with the machine's present certificates, after TLS failed with those of `failed`. `None` if they have
    /// not changed, were read within the last minute, or cannot be read in time.
    pub(super) async fn with_current_certificates(&self, failed: &Connections) -> Option<Connections> {
        if let Some(newer) = Some(self.current()).filter(|current| !Arc::ptr_eq(&current.roots, &failed.roots)) {
            return Some(newer);
        }
        // On a thread of its own, because reading files may hang.
        let reading = begin_reading(&self.reading, Instant::now())?;
        let (sender, receiver) = oneshot::channel();
        let transport = self.clone();
        let read = move || {
            let newer = transport.read_again();
            drop(reading);
            // Fails if the request did not wait for it. Then the next one uses what was read.
            let _ = sender.send(newer);
        };
        thread::Builder::new().name("posthog-certs".to_owned()).spawn(read).ok()?;
        let wait = read_wait(self.settings.options.connect_timeout);
        tokio::time::timeout(wait, receiver).await.ok()?.ok().flatten()
    }

    /// Reads the machine's certificates, and replaces the client if they have changed.
    fn read_again(&self) -> Option<Connections> {
        let roots = roots((self.settings.machine)(), &self.settings.options.ca_pem).ok()?;
        let mut current = lock(&self.current);
        if roots.is_empty() || roots.roots == current.roots.roots {
            // The file may be being written; an empty set must not replace a good one.
            return None;
        }
        self.replace(&mut current, Arc::new(roots))?;
        Some(current.clone())
    }

    fn replace(&self, current: &mut Connections, roots: Arc<RootCertStore>) -> Option<()> {
        let client = client(&self.settings, &roots, self.identity.as_ref()).ok()?;
        *current = Connections { client, roots, generation: current.generation.wrapping_add(1) };
        Some(())
    }
}

impl Http for Transport {
    fn send(&self, request: Request) -> Pending {
        Box::pin(exchange(self.clone(), request))
    }
}

impl Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Proxies contain passwords and headers contain keys, so neither is shown.
        f.debug_struct("Transport")
            .field("request_timeout", &self.settings.options.request_timeout)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn client(
    settings: &Settings,
    roots: &Arc<RootCertStore>,
    identity: Option<&Arc<Identity>>,
) -> Result<reqwest::Client, TransportError> {
    let options = &settings.options;
    let (presented, timeout) = (identity.cloned(), options.connect_timeout);
    let mut builder = reqwest::Client::builder()
        // Session tickets are shared mutable state, so each client gets its own TLS configuration.
        .tls_backend_preconfigured(client_config(roots, identity)?)
        .timeout(options.request_timeout)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .connector_layer(layer_fn(move |inner| Connecting { inner, timeout, identity: presented.clone() }))
        // Another crate of the program may enable these features of reqwest. Bodies are decoded here, with a bound.
        .no_gzip()
        .no_deflate()
        .no_brotli()
        .no_zstd()
        .dns_resolver(resolve::SystemResolver::default())
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .user_agent(options.user_agent.as_str())
        .default_headers(settings.headers.clone())
        // reqwest's own reading of the environment is disabled, because it ignores mistakes silently.
        .no_proxy();
    if let Some(proxy) = settings.ways.proxy() {
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|source| TransportError::Setup(source.into()))
}

tokio::task_local! {
    /// Whether the current request has opened a new connection.
    static HAS_CONNECTED: Cell<bool>;
}

/// Runs `task`; returns its result and whether it opened a new connection instead of reusing one.
pub(super) async fn noting_connects<T>(task: impl Future<Output = T>) -> (T, bool) {
    HAS_CONNECTED.scope(Cell::new(false), async { (task.await, HAS_CONNECTED.with(Cell::get)) }).await
}

/// A connector that records new connections in [`HAS_CONNECTED`], and reads the client's identity again before it makes
/// one. reqwest makes connections in the task of the request, within its timeout for connecting.
#[derive(Clone)]
struct Connecting<S> {
    inner: S,
    timeout: Duration,
    identity: Option<Arc<Identity>>,
}

impl<S, T> Service<T> for Connecting<S>
where
    S: Service<T> + Clone + Send + 'static,
    S::Future: Send,
    T: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, destination: T) -> Self::Future {
        // Fails outside of `noting_connects`.
        let _ = HAS_CONNECTED.try_with(|connected| connected.set(true));
        let Some(identity) = self.identity.clone() else { return Box::pin(self.inner.call(destination)) };
        // The service that is ready is the one to call; its clone may not be.
        let another = self.inner.clone();
        let (mut ready, timeout) = (std::mem::replace(&mut self.inner, another), self.timeout);
        Box::pin(async move {
            identity.refresh(timeout).await;
            ready.call(destination).await
        })
    }
}

fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, TransportError> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let (Ok(key), Ok(text)) = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) else {
            return Err(TransportError::BadHeader { name: name.clone() });
        };
        map.append(key, text);
    }
    Ok(map)
}

pub(super) type MachineCertificates = Box<dyn Fn() -> Vec<CertificateDer<'static>> + Send + Sync>;

/// The machine's certificates, from `SSL_CERT_FILE` and `SSL_CERT_DIR` or the system's store. Unreadable ones are left
/// out, as in other TLS libraries.
fn machine_certificates() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// The machine's and the configured certificates. Invalid certificates of the machine are skipped, invalid configured
/// ones are an error.
fn roots(machine: Vec<CertificateDer<'static>>, configured: &[Vec<u8>]) -> Result<RootCertStore, TransportError> {
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

/// Fails unless the text has certificates in PEM.
pub(crate) fn check_certificates(pem: &[u8]) -> Result<(), TransportError> {
    roots(Vec::new(), &[pem.to_vec()]).map(drop)
}

fn client_config(roots: &Arc<RootCertStore>, identity: Option<&Arc<Identity>>) -> Result<ClientConfig, TransportError> {
    let config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|source| TransportError::Setup(source.into()))?
        .with_root_certificates(Arc::clone(roots));
    let Some(identity) = identity else { return Ok(config.with_no_client_auth()) };
    let resolver: Arc<dyn ResolvesClientCert> = Arc::<Identity>::clone(identity);
    let mut config = config.with_client_cert_resolver(resolver);
    // A resumed session would keep the certificate that it began with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate() -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(vec!["authority".to_owned()]).unwrap().self_signed(&key).unwrap().der().clone()
    }

    /// A transport whose machine has other certificates at each look, and gives them from the second on when it is told
    /// to.
    fn with_slow_certificates(connect_timeout: Duration) -> (Transport, mpsc::Sender<()>) {
        let options = TransportOptions {
            request_timeout: Duration::from_secs(60),
            connect_timeout,
            proxy: Proxy::None,
            ca_pem: Vec::new(),
            identity: None,
            user_agent: "tests".into(),
            headers: Vec::new(),
        };
        let (sender, receiver) = mpsc::channel();
        let (looks, receiver) = (AtomicU32::new(0), Mutex::new(receiver));
        let machine = move || {
            if looks.fetch_add(1, Ordering::SeqCst) > 0 {
                lock(&receiver).recv().unwrap();
            }
            vec![certificate()]
        };
        (Transport::with_surroundings(options, &|_| None, Box::new(machine)).unwrap().0, sender)
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_that_are_read_late_are_used_later() {
        let (transport, go_on) = with_slow_certificates(Duration::from_secs(1));
        let (first, began) = (transport.current(), Instant::now());
        assert!(transport.with_current_certificates(&first).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_millis(250), "a quarter of the time for connecting");
        tokio::time::advance(CERTIFICATES_INTERVAL).await;
        assert!(transport.with_current_certificates(&first).await.is_none());
        assert_eq!(began.elapsed(), CERTIFICATES_INTERVAL + Duration::from_millis(250), "it is waited for once");
        go_on.send(()).unwrap();
        // The thread that reads holds this until it has replaced the client.
        let _read = transport.reading.lock().await;
        let second = transport.with_current_certificates(&first).await.unwrap();
        assert_eq!((first.generation, second.generation), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_are_read_again_at_most_once_a_minute() {
        let reading = Arc::new(AsyncMutex::new(Throttle::new(CERTIFICATES_INTERVAL)));
        assert!(begin_reading(&reading, Instant::now()).is_some());
        tokio::time::advance(CERTIFICATES_INTERVAL - Duration::from_millis(1)).await;
        assert!(begin_reading(&reading, Instant::now()).is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        let under_way = begin_reading(&reading, Instant::now());
        assert!(under_way.is_some());
        tokio::time::advance(CERTIFICATES_INTERVAL * 9).await;
        assert!(begin_reading(&reading, Instant::now()).is_none(), "the previous read still runs");
    }
}
