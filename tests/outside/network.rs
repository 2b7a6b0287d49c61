//! Connections: TLS, proxies, and servers that do not respond.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use posthog::diagnostics::Diagnostic;
use posthog::reports::EndpointStatus;
use posthog::{Client, Error};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sink::{Answer, Sink};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::apart::{Terms, apart_on};
use crate::fixture::{Fixture, PATIENCE, close_empty, eventually, take};

/// A TLS server that forwards everything to a sink.
struct TlsFront {
    url: String,
    ca_pem: String,
}

impl TlsFront {
    fn before(sink: &Sink) -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = tokio_rustls::rustls::crypto::ring::default_provider();
        let config = ServerConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
        let (acceptor, target) = (TlsAcceptor::from(Arc::new(config)), sink.port());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        // Ends with the test process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, acceptor, target));
        });
        Self { url, ca_pem: ca.pem() }
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, target: u16) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that does not trust the certificate fails here.
            let Ok(mut tls) = acceptor.accept(socket).await else { return };
            let mut plain = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
        });
    }
}

#[test]
fn a_private_authority_is_trusted_only_when_it_is_configured() {
    let fixture = Fixture::new();
    let front = TlsFront::before(&fixture.sink);
    let config = || fixture.config().host(&front.url);
    let client = Client::new(config()).unwrap();
    let uuid = take(&client, "tick");
    let is_reported = |found: &Diagnostic| matches!(found, Diagnostic::EndpointFailing { reason, .. } if reason.contains("certificate"));
    eventually("the certificate is refused and named", || client.diagnostics().iter().any(is_reported));
    assert!(matches!(client.flush().wait(PATIENCE).unwrap().endpoint, EndpointStatus::Down { .. }));
    assert_eq!(client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap().remaining, 1);
    drop(client);
    let client = Client::new(config().ca_certificate(front.ca_pem.clone())).unwrap();
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
}

#[test]
fn an_invalid_certificate_or_proxy_is_a_config_error() {
    let fixture = Fixture::new();
    let not_pem = Client::new(fixture.config().ca_certificate("no certificate"));
    let bad_pem =
        Client::new(fixture.config().ca_certificate("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    let ftp = Client::new(fixture.config().proxy("ftp://proxy"));
    let header = Client::new(fixture.config().header("bad name", "x"));
    let no_url = Client::new(fixture.config().proxy("nope"));
    let own = Client::new(fixture.config().header("Content-Type", "x"));
    let expected = [
        (not_pem, "ca_certificate"),
        (bad_pem, "ca_certificate"),
        (ftp, "proxy"),
        (no_url, "proxy"),
        (header, "header"),
        (own, "header"),
    ];
    for (refused, setter) in expected {
        let error = refused.map(drop).unwrap_err();
        assert!(matches!(error, Error::Config { field, .. } if field == setter), "{setter}: {error:?}");
    }
}

/// A proxy that records the first line of each connection and forwards everything to a sink.
struct Proxy {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn before(sink: &Sink) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (asked, target) = (Arc::default(), sink.port());
        let noted = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let noted = Arc::clone(&noted);
                thread::spawn(move || pass_on(client, target, &noted));
            }
        });
        Self { url, asked }
    }
}

fn pass_on(mut client: TcpStream, target: u16, noted: &Mutex<Vec<String>>) {
    let mut first = [0; 2048];
    let count = client.read(&mut first).unwrap_or(0);
    let line = String::from_utf8_lossy(&first[..count]).lines().next().unwrap_or_default().to_owned();
    noted.lock().unwrap().push(line);
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).unwrap();
    server.write_all(&first[..count]).unwrap();
    let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let back = thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut client, &mut server);
    let _ = server.shutdown(Shutdown::Both);
    let _ = back.join();
}

/// A name without an address: only a proxy can reach it.
const ELSEWHERE: &str = "http://posthog.invalid";

#[test]
fn a_configured_proxy_is_used() {
    let fixture = Fixture::new();
    let proxy = Proxy::before(&fixture.sink);
    let client = Client::new(fixture.config().host(ELSEWHERE).proxy(&proxy.url)).unwrap();
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
    let asked = proxy.asked.lock().unwrap();
    assert!(asked[0].starts_with("POST http://posthog.invalid/batch/"), "{asked:?}");
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let proxy = std::cell::OnceCell::new();
    apart_on(
        Fixture::new,
        |fixture| {
            let proxy = proxy.get_or_init(|| Proxy::before(&fixture.sink));
            Terms::default().env("http_proxy", &proxy.url).env("NO_PROXY", "")
        },
        |place| {
            let config = posthog::Config::new(crate::fixture::KEY).host(ELSEWHERE).queue_dir(&place.queue);
            let client = Client::new(config.flush_interval(Duration::from_millis(20))).unwrap();
            take(&client, "tick");
            close_empty(&client);
        },
        |fixture| {
            assert_eq!(fixture.names(), ["tick"]);
            assert!(proxy.get().unwrap().asked.lock().unwrap()[0].starts_with("POST http://posthog.invalid/"));
        },
    );
}

#[test]
fn an_invalid_proxy_setting_is_reported_and_ignored() {
    apart_on(
        Fixture::new,
        |_| Terms::default().env("http_proxy", "socks5://127.0.0.1:9").env("NO_PROXY", ""),
        |place| {
            let config = posthog::Config::new(crate::fixture::KEY).host(&place.host).queue_dir(&place.queue);
            let client = Client::new(config).unwrap();
            let diagnostics = client.diagnostics();
            let names_it =
                |found: &Diagnostic| matches!(found, Diagnostic::NetworkConfig { what } if what.contains("http_proxy"));
            assert!(diagnostics.iter().any(names_it), "{diagnostics:?}");
            take(&client, "tick");
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick"]),
    );
}

#[test]
fn a_silent_server_costs_one_request_timeout() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::hang().discarding()]);
    let client = Client::new(fixture.config().request_timeout(Duration::from_millis(300))).unwrap();
    let began = Instant::now();
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    assert!(began.elapsed() >= Duration::from_millis(300));
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::EndpointFailing { .. })),
        "{diagnostics:?}"
    );
    close_empty(&client);
}

#[test]
fn a_host_that_does_not_resolve_keeps_the_event_and_says_so() {
    let fixture = Fixture::new();
    let client = Client::new(fixture.config().host(ELSEWHERE)).unwrap();
    take(&client, "tick");
    let report = client.flush().wait(PATIENCE).unwrap();
    assert!(matches!(report.endpoint, EndpointStatus::Down { .. }), "{report:?}");
    assert_eq!(report.remaining, 1);
    assert_eq!(client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap().remaining, 1);
}
