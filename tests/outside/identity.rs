//! Mutual TLS: an endpoint that asks for a client certificate, and clients with a good, a wrong and no certificate.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use posthog::feature_flags::FlagContext;
use posthog::reports::EndpointStatus;
use posthog::{Client, Config, Error};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use sink::{Answer, FlagRoute, Sink};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use crate::apart::{Terms, apart_on};
use crate::fixture::{Fixture, PATIENCE, close_empty, take};

/// A certificate authority.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// A certificate for this name and its key, in PEM.
    fn identity(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (leaf.pem(), key.serialize_pem())
    }
}

/// A TLS server that asks for a client certificate, and forwards everything to a sink.
struct Front {
    url: String,
    ca_pem: String,
    port: u16,
}

impl Front {
    /// Accepts the clients of `trusted`. With TLS 1.2, where the alert about a certificate is part of the handshake. With
    /// TLS 1.3 a client considers the handshake done before the server has looked at its certificate, and the alert may
    /// be lost when the connection is reset.
    fn before(sink: &Sink, trusted: &Authority) -> Self {
        Self::speaking(&version::TLS12, sink, trusted)
    }

    fn speaking(version: &'static SupportedProtocolVersion, sink: &Sink, trusted: &Authority) -> Self {
        let own = Authority::new();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &own.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(trusted.issuer.der().clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![leaf.der().clone()], key);
        let (acceptor, target) = (TlsAcceptor::from(Arc::new(config.unwrap())), sink.port());
        let port = serve(move |socket| {
            let acceptor = acceptor.clone();
            async move {
                let mut tls = match acceptor.accept(socket).into_fallible().await {
                    Ok(tls) => tls,
                    Err((_, mut socket)) => {
                        // A socket that is closed with unread bytes is reset, and the alert is lost.
                        let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
                        return;
                    }
                };
                let mut plain = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.unwrap();
                let _ = copy_bidirectional(&mut tls, &mut plain).await;
            }
        });
        Self { url: format!("https://localhost:{port}"), ca_pem: own.issuer.pem(), port }
    }

    fn config(&self, fixture: &Fixture) -> Config {
        fixture.config().host(&self.url).ca_certificate(self.ca_pem.clone())
    }
}

/// Serves each connection in a task, until the test process ends. Returns the port.
fn serve<T: Future<Output = ()> + Send + 'static>(task: impl Fn(TcpStream) -> T + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(task(socket));
            }
        });
    });
    port
}

/// A proxy that opens a tunnel to `port`, whatever it is asked for, and records the first line of each request.
fn tunnel_to(port: u16) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = Arc::clone(&asked);
    let own = serve(move |mut client| {
        let noted = Arc::clone(&noted);
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match client.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            noted.lock().unwrap().push(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
    });
    (format!("http://127.0.0.1:{own}"), asked)
}

/// The failure that `client` reports, once it contains `expected`.
fn must_fail_with(client: &Client, expected: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let endpoint = client.flush().wait(PATIENCE).unwrap().endpoint;
        if matches!(&endpoint, EndpointStatus::Down { reason, .. } if reason.contains(expected)) {
            return;
        }
        assert!(Instant::now() < deadline, "{expected:?} is not in {endpoint:?}");
    }
}

#[test]
fn all_requests_present_the_clients_certificate() {
    let (fixture, authority) = (Fixture::new(), Authority::new());
    fixture.sink.flags(FlagRoute::Values, Answer::json(&json!({"flags": {"new-ui": {"enabled": true}}})));
    let front = Front::before(&fixture.sink, &authority);
    let (certificate, key) = authority.identity("daemon");
    let client = Client::new(front.config(&fixture).client_identity(certificate, key)).unwrap();
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    let flags = client.evaluate_flags(FlagContext::new("user_1").send_feature_flag_events(false)).wait(PATIENCE);
    assert!(flags.unwrap().is_enabled("new-ui"));
    close_empty(&client);
}

#[test]
fn a_client_certificate_is_presented_with_tls_1_3() {
    let (fixture, authority) = (Fixture::new(), Authority::new());
    let front = Front::speaking(&version::TLS13, &fixture.sink, &authority);
    let none = Client::new(front.config(&fixture)).unwrap();
    let uuid = take(&none, "tick");
    must_fail_with(&none, "");
    assert!(fixture.sink.requests().is_empty());
    drop(none);
    let (certificate, key) = authority.identity("daemon");
    let client = Client::new(front.config(&fixture).client_identity(certificate, key)).unwrap();
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
}

#[test]
fn a_client_certificate_is_presented_through_a_proxy_too() {
    let (fixture, authority) = (Fixture::new(), Authority::new());
    let front = Front::before(&fixture.sink, &authority);
    let (proxy, asked) = tunnel_to(front.port);
    let (certificate, key) = authority.identity("daemon");
    let config = front.config(&fixture).proxy(proxy).client_identity(certificate, key);
    let client = Client::new(config).unwrap();
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
    assert_eq!(asked.lock().unwrap()[0], format!("CONNECT localhost:{} HTTP/1.1", front.port));
}

#[test]
fn a_refused_client_certificate_is_named_and_nothing_is_lost() {
    let (fixture, authority) = (Fixture::new(), Authority::new());
    let front = Front::before(&fixture.sink, &authority);
    let none = Client::new(front.config(&fixture)).unwrap();
    let uuid = take(&none, "tick");
    must_fail_with(&none, "it has none: configure one (Config::client_identity)");
    drop(none);
    let (certificate, key) = Authority::new().identity("daemon");
    let wrong = Client::new(front.config(&fixture).client_identity(certificate, key)).unwrap();
    must_fail_with(&wrong, "refuses this client's certificate; check that it has not expired");
    assert!(fixture.sink.requests().is_empty());
    drop(wrong);
    let (certificate, key) = authority.identity("daemon");
    let right = Client::new(front.config(&fixture).client_identity(certificate, key)).unwrap();
    fixture.must_have_taken(&[uuid]);
    close_empty(&right);
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart() {
    let (fixture, authority) = (Fixture::new(), Authority::new());
    let front = Front::before(&fixture.sink, &authority);
    let [certificate, key] = files(&fixture);
    let write = |(certificate_pem, key_pem): (String, String)| {
        std::fs::write(&certificate, certificate_pem).unwrap();
        std::fs::write(&key, key_pem).unwrap();
    };
    write(Authority::new().identity("daemon"));
    let client = Client::new(front.config(&fixture).client_identity_files(&certificate, &key)).unwrap();
    let uuid = take(&client, "tick");
    must_fail_with(&client, "refuses this client's certificate");
    // Half of a renewal: the old identity stays in use, and the report says why.
    std::fs::write(&key, "").unwrap();
    must_fail_with(&client, "of the private key is empty");
    write(authority.identity("daemon"));
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
}

fn files(fixture: &Fixture) -> [PathBuf; 2] {
    ["client.crt", "client.key"].map(|name| fixture.folder().join(name))
}

#[test]
fn an_unusable_client_identity_is_a_config_error() {
    let fixture = Fixture::new();
    let [certificate, key] = files(&fixture);
    let (good, its_key) = Authority::new().identity("daemon");
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(&certificate, &good).unwrap();
    std::fs::write(&key, " \n").unwrap();
    let given = |certificate: &str, key: &str| fixture.config().client_identity(certificate, key);
    for (config, expected) in [
        (given("", &its_key), "no PEM block of this kind (BEGIN CERTIFICATE)"),
        (given(&its_key, &its_key), "no PEM block of this kind (BEGIN CERTIFICATE)"),
        (given(&good.replace("-----END", "----END"), &its_key), "not valid PEM"),
        (given(&good, ""), "no valid PEM block of this kind (BEGIN PRIVATE KEY)"),
        (given(&good, &good), "no valid PEM block of this kind (BEGIN PRIVATE KEY)"),
        (given(&good, encrypted), "is encrypted; store it without a passphrase"),
        (given(&good, &other_key), "does not belong to the certificate"),
        (fixture.config().client_identity_files(&certificate, &key), "of the private key is empty"),
        (fixture.config().client_identity_files("/nowhere/client.crt", &key), "/nowhere/client.crt"),
        (fixture.config().client_identity_files(&certificate, ""), "names no file for the private key"),
    ] {
        let shown = format!("{config:?}");
        let error = Client::new(config).unwrap_err();
        assert!(matches!(error, Error::Config { field: "client_identity", .. }), "{error:?}");
        let text = format!("{error} {error:?} {shown}");
        assert!(text.contains(expected), "{expected}: {text}");
        let secret = |pem: &str| pem.lines().nth(1).is_some_and(|line| text.contains(line));
        assert!(!secret(&its_key) && !secret(&other_key) && !text.contains("c2VjcmV0"), "{text}");
    }
}

#[test]
fn the_environment_names_the_files_of_a_client_identity() {
    apart_on(
        Fixture::new,
        |fixture| {
            let queue = fixture.queue.to_str().unwrap();
            Terms::default()
                .env("POSTHOG_API_KEY", "phc_env")
                .env("POSTHOG_QUEUE_DIR", queue)
                .env("POSTHOG_CLIENT_CERT", "/nowhere/env.crt")
        },
        |_| {
            let refused = || Client::new(Config::from_env().no_proxy()).unwrap_err().to_string();
            let text = refused();
            assert!(text.contains("client_identity names no file for the private key (POSTHOG_CLIENT_KEY)"), "{text}");
            let config = Config::from_env().client_identity_files("/nowhere/own.crt", "/nowhere/own.key");
            let text = Client::new(config.no_proxy().shutdown_timeout(Duration::ZERO)).unwrap_err().to_string();
            assert!(text.contains("/nowhere/own.crt"), "a setter takes precedence: {text}");
        },
        |_| (),
    );
}
