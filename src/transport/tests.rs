//! Requests over real sockets, and real TLS with a private certificate authority.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::pool::NO_CERTIFICATES;
use super::*;

pub(super) fn options() -> TransportOptions {
    TransportOptions {
        request_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        proxy: Proxy::None,
        ca_pem: Vec::new(),
        identity: None,
        user_agent: "posthog-durable/0.0.0".to_owned(),
        headers: vec![("x-extra".to_owned(), "yes".to_owned())],
    }
}

pub(super) fn transport(options: TransportOptions) -> Transport {
    Transport::with_surroundings(options, &|_| None, Box::new(Vec::new)).unwrap().0
}

pub(super) fn request(url: &str) -> Request {
    let headers = vec![("content-type", "application/json".to_owned())];
    Request { url: url.into(), headers, body: b"{}".to_vec(), max_answer: MAX_RESPONSE_BYTES }
}

/// Reads one request (head and a body of two bytes) and writes `answer`.
pub(super) async fn answer_one(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, answer: &[u8]) -> String {
    let mut seen = Vec::new();
    let is_get = |seen: &[u8]| seen.starts_with(b"GET") && seen.ends_with(b"\r\n\r\n");
    while !seen.ends_with(b"\r\n\r\n{}") && !is_get(&seen) && !seen.starts_with(b"CONNECT") {
        let mut part = [0; 1024];
        match stream.read(&mut part).await.unwrap_or(0) {
            0 => break,
            count => seen.extend_from_slice(&part[..count]),
        }
    }
    // The client may close the connection before it has read a long response.
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    String::from_utf8(seen).unwrap()
}

pub(super) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn exchange(transport: &Transport, answer: &[u8]) -> (Result<Response, TransportError>, String) {
    let (listener, address) = listen().await;
    let server = async { answer_one(listener.accept().await.unwrap().0, answer).await };
    tokio::join!(transport.send(request(&format!("http://{address}/batch/"))), server)
}

#[tokio::test]
async fn a_request_has_the_configured_headers_and_asks_no_encoding() {
    let (response, seen) = exchange(
        &transport(options()),
        b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nbusy",
    )
    .await;
    let response = response.unwrap();
    assert_eq!((response.status, response.body.as_slice()), (429, &b"busy"[..]));
    assert_eq!(response.retry_after, Some(RetryAfter::In(Duration::from_secs(7))));
    let seen = seen.to_lowercase();
    assert!(seen.starts_with("post /batch/ http/1.1\r\n"));
    assert!(seen.contains("user-agent: posthog-durable/0.0.0\r\n") && seen.contains("x-extra: yes\r\n"));
    assert!(seen.contains("accept-encoding: identity\r\n"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn encoded(status: u16, encoding: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-encoding: {encoding}\r\nretry-after: 7\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn an_unrequested_encoding_is_decoded_or_named() {
    let transport = transport(options());
    let send =
        async |status, encoding: &str, body: &[u8]| exchange(&transport, &encoded(status, encoding, body)).await.0;
    let good = send(200, "gzip", &gzip(br#"{"status":1}"#)).await.unwrap();
    assert_eq!((good.body.as_slice(), good.is_cut), (&br#"{"status":1}"#[..], false));
    let long = send(200, "gzip", &gzip(&vec![b'x'; 3 * MAX_RESPONSE_BYTES])).await.unwrap();
    assert_eq!((long.body.len(), long.is_cut), (MAX_RESPONSE_BYTES, true));
    let odd = send(200, "br", b"odd").await.unwrap_err().describe();
    assert!(odd.contains(r#"Content-Encoding "br", which was not requested"#), "{odd}");
    let damaged = send(200, "gzip", br#"{"status":1}"#).await.unwrap_err().describe();
    assert!(damaged.contains(r#"Content-Encoding "gzip", but its body is damaged"#), "{damaged}");
    // An error status counts whatever its body is, and so does its Retry-After.
    let busy = send(503, "br", b"odd").await.unwrap();
    assert_eq!((busy.status, busy.retry_after), (503, Some(RetryAfter::In(Duration::from_secs(7)))));
    assert!(busy.body.is_empty());
}

/// For each of `turns`: answers a number of requests on one connection, reads one more, and ends the connection as
/// given. Returns the number of requests read.
fn keep_alive(turns: &'static [(usize, End)]) -> (SocketAddr, std::thread::JoinHandle<usize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let mut requests = 0;
        for &(answers, end) in turns {
            let mut stream = listener.accept().unwrap().0;
            for _ in 0..answers {
                requests += read_request(&mut stream);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
            // The connection must end while the next request is in flight.
            requests += read_request(&mut stream);
            match end {
                End::Close => {}
                End::Garbage => drop(stream.write_all(b"SSH-2.0-OpenSSH\r\n\r\n")),
                End::Silence => std::thread::sleep(Duration::from_secs(2)),
                End::CloseLate => std::thread::sleep(Duration::from_millis(1500)),
            }
        }
        requests
    };
    (address, std::thread::spawn(serve))
}

#[derive(Clone, Copy)]
enum End {
    Close,
    Garbage,
    Silence,
    CloseLate,
}

fn read_request(stream: &mut std::net::TcpStream) -> usize {
    let (mut seen, mut part) = (Vec::new(), [0; 1024]);
    while !seen.ends_with(b"\r\n\r\n{}") {
        match stream.read(&mut part).unwrap_or(0) {
            0 => return 0,
            count => seen.extend_from_slice(&part[..count]),
        }
    }
    1
}

#[tokio::test]
async fn only_a_connection_that_died_while_idle_is_tried_again() {
    let send = async |turns, requests: &[bool]| {
        let (address, server) = keep_alive(turns);
        let transport = transport(TransportOptions { request_timeout: Duration::from_millis(1800), ..options() });
        for (number, is_good) in requests.iter().enumerate() {
            let result = transport.send(request(&format!("http://{address}/"))).await;
            assert_eq!(result.is_ok(), *is_good, "request {number}: {result:?}");
        }
        drop(transport);
        // On another thread, because this one has to close the connections.
        tokio::task::spawn_blocking(move || server.join().unwrap()).await.unwrap()
    };
    assert_eq!(send(&[(1, End::Close), (1, End::Close)], &[true, true]).await, 3, "the second request was sent twice");
    assert_eq!(send(&[(2, End::Close), (0, End::Close)], &[true, true, false]).await, 4, "and never a third time");
    assert_eq!(send(&[(0, End::Close)], &[false]).await, 1, "a new connection");
    assert_eq!(send(&[(1, End::Garbage)], &[true, false]).await, 2, "garbage is a response");
    assert_eq!(send(&[(1, End::Silence)], &[true, false]).await, 2, "a timeout is not a dead connection");
    assert_eq!(send(&[(1, End::CloseLate)], &[true, false]).await, 2, "the server had worked on the request");
}

#[tokio::test]
async fn a_get_request_has_no_body_and_its_response_an_etag() {
    let (listener, address) = listen().await;
    let url = format!("http://{address}/flags/definitions?token=x");
    let answer = b"HTTP/1.1 200 OK\r\netag: W/\"a\"\r\ncontent-length: 2\r\n\r\n{}";
    let get = Request { body: Vec::new(), max_answer: 2, ..request(&url) };
    let transport = transport(options());
    let server = async { answer_one(listener.accept().await.unwrap().0, answer).await };
    let (response, seen) = tokio::join!(transport.send(get), server);
    let response = response.unwrap();
    assert_eq!((response.etag.as_deref(), response.is_cut), (Some("W/\"a\""), false));
    assert!(seen.starts_with("GET /flags/definitions?token=x HTTP/1.1\r\n"), "{seen}");
    assert!(seen.ends_with("\r\n\r\n"), "{seen}");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (response, _) = exchange(
        &transport(options()),
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/login\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(response.unwrap().status, 302);
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    answer.resize(answer.len() + 3 * MAX_RESPONSE_BYTES, b'x');
    let (response, _) = exchange(&transport(options()), &answer).await;
    let response = response.unwrap();
    assert_eq!((response.body.len(), response.is_cut), (MAX_RESPONSE_BYTES, true));
}

#[tokio::test]
async fn refused_silent_and_broken_have_errors_of_their_own() {
    let (listener, address) = listen().await;
    let silent = transport(TransportOptions { request_timeout: Duration::from_millis(50), ..options() });
    let timeout = silent.send(request(&format!("http://{address}/"))).await.unwrap_err();
    assert!(matches!(timeout, TransportError::Timeout(_)), "{timeout:?}");
    drop(listener);
    let refused = silent.send(request(&format!("http://{address}/"))).await.unwrap_err();
    assert!(matches!(refused, TransportError::Connect(_)), "{refused:?}");
    assert!(!refused.describe().contains(&address.to_string()), "the URL is not repeated: {}", refused.describe());
    let (broken, _) = exchange(&transport(options()), b"SSH-2.0-OpenSSH\r\n\r\n").await;
    assert!(matches!(broken, Err(TransportError::Other(_))), "{broken:?}");
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn pem(&self) -> Vec<u8> {
        self.issuer.pem().into_bytes()
    }

    async fn serve_once(&self, listener: TcpListener, name: &str) -> Option<String> {
        self.serve(&listener, name).await
    }

    /// Serves TLS for `name` once; `None` if the handshake failed.
    async fn serve(&self, listener: &TcpListener, name: &str) -> Option<String> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let stream: TcpStream = listener.accept().await.unwrap().0;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.ok()?;
        Some(answer_one(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await)
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_only_when_configured() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (trusted, name, expected) in
        [(&ours, "localhost", true), (&theirs, "localhost", false), (&ours, "elsewhere", false)]
    {
        let (listener, address) = listen().await;
        let transport = transport(TransportOptions { ca_pem: vec![trusted.pem()], ..options() });
        let url = format!("https://localhost:{}/", address.port());
        let (response, _) = tokio::join!(transport.send(request(&url)), ours.serve_once(listener, name));
        match response {
            Ok(response) => assert!(expected && response.body == b"ok"),
            Err(error) => assert!(!expected && matches!(error, TransportError::Tls(_)), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn replaced_certificates_are_used_within_a_minute() {
    let (old, new) = (Authority::new(), Authority::new());
    let trusted = Arc::new(std::sync::Mutex::new((0, old.pem())));
    let machine = Arc::clone(&trusted);
    let read = move || {
        let (times, pem) = &mut *machine.lock().unwrap();
        *times += 1;
        CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
    };
    // The reading is waited for for a part of these.
    let minute = Duration::from_secs(60);
    let patient = TransportOptions { request_timeout: minute, connect_timeout: minute, ..options() };
    let (transport, _) = Transport::with_surroundings(patient, &|_| None, Box::new(read)).unwrap();
    let times = || trusted.lock().unwrap().0;
    let serve = async |server: &Authority, times: usize| {
        let (listener, address) = listen().await;
        let url = format!("https://localhost:{}/", address.port());
        let serve = async {
            for _ in 0..times {
                server.serve(&listener, "localhost").await;
            }
        };
        tokio::join!(transport.send(request(&url)), serve).0
    };
    assert!(serve(&old, 1).await.is_ok());
    assert_eq!(times(), 1);
    // An untrusted server: the certificates are read again and have not changed.
    assert!(matches!(serve(&new, 1).await, Err(TransportError::Tls(_))));
    assert_eq!(times(), 2);
    trusted.lock().unwrap().1 = new.pem();
    assert!(matches!(serve(&new, 1).await, Err(TransportError::Tls(_))));
    assert_eq!(times(), 2, "not twice a minute");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    // The failed attempt and, with the new certificates, the response; one request for its sender.
    assert_eq!(serve(&new, 2).await.unwrap().body, b"ok");
    assert_eq!(times(), 3);
    assert!(serve(&new, 1).await.is_ok());
    // A file that is empty for a moment does not replace the certificates.
    trusted.lock().unwrap().1 = Vec::new();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    assert!(matches!(serve(&old, 1).await, Err(TransportError::Tls(_))));
    assert!(serve(&new, 1).await.is_ok());
}

#[tokio::test]
async fn without_certificates_there_is_a_warning_and_no_panic() {
    let (bare, warnings) = Transport::with_surroundings(options(), &|_| None, Box::new(Vec::new)).unwrap();
    assert_eq!(warnings, [NO_CERTIFICATES]);
    let (listener, address) = listen().await;
    let url = format!("https://localhost:{}/", address.port());
    let (authority, again) = (Authority::new(), bare.reconnect().unwrap());
    let (response, _) = tokio::join!(again.send(request(&url)), authority.serve_once(listener, "localhost"));
    assert!(matches!(response, Err(TransportError::Tls(_))), "{response:?}");
}

#[test]
fn a_malformed_certificate_or_header_is_an_error_that_names_it() {
    let good = Authority::new().pem();
    let build = |options| Transport::with_surroundings(options, &|_| None, Box::new(Vec::new)).map(|_| ()).unwrap_err();
    let bad_pem = build(TransportOptions { ca_pem: vec![good, b"not a certificate".to_vec()], ..options() });
    assert!(matches!(bad_pem, TransportError::BadCertificate { number: 2 }), "{bad_pem:?}");
    let bad_header = build(TransportOptions { headers: vec![("bad name".into(), "x".into())], ..options() });
    assert!(bad_header.to_string().contains("bad name"));
}
