//! One request: sending it, at most one repetition, decoding the response, and classifying an error.

use std::error::Error;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::Url;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, HeaderMap, HeaderName, RETRY_AFTER};
use tokio::time::Instant;

use super::identity::Identity;
use super::message::{Request, Response, RetryAfter, Source, TransportError};
use super::pool::{Connections, Transport, noting_connects};
use super::proxy::Named;

/// A connection that died while idle is noticed at once. A server that closes it later has worked on the request, which
/// must then not be sent again with an old `sent_at`.
const STALE_WITHIN: Duration = Duration::from_secs(1);

/// Sends a request, and once more if the connection had died while idle or if there are new certificates, within its
/// timeout.
pub(super) async fn exchange(transport: Transport, request: Request) -> Result<Response, TransportError> {
    let began = Instant::now();
    let most = request.max_answer;
    let connections = transport.current();
    let request = prepare(&connections, request)?;
    // The body is shared, not copied.
    let spare = request.try_clone();
    let (error, was_stale) = match attempt(&transport, &connections, request, most).await {
        Ok(response) => return Ok(response),
        Err(failure) => failure,
    };
    let left = || transport.settings.options.request_timeout.saturating_sub(began.elapsed());
    let again = match &error {
        _ if was_stale => transport.without(&connections),
        // Reading the certificates may hang with the file system.
        TransportError::Tls(_) => {
            let newer = transport.with_current_certificates(&connections);
            tokio::time::timeout(left(), newer).await.ok().flatten()
        }
        _ => None,
    };
    match (again, spare) {
        (Some(connections), Some(mut request)) if !left().is_zero() => {
            *request.timeout_mut() = Some(left());
            attempt(&transport, &connections, request, most).await.map_err(|(error, _)| error)
        }
        _ => Err(error),
    }
}

fn prepare(connections: &Connections, request: Request) -> Result<reqwest::Request, TransportError> {
    let mut builder = match request.body.is_empty() {
        false => connections.client.post(&*request.url).body(request.body),
        true => connections.client.get(&*request.url),
    };
    // Responses are small, so compressing them saves nothing.
    builder = builder.header(ACCEPT_ENCODING, "identity");
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    builder.build().map_err(|error| TransportError::Other(error.without_url().into()))
}

/// Sends a request once. An error comes with whether the connection existed before the request and was found dead before
/// the response began.
async fn attempt(
    transport: &Transport,
    connections: &Connections,
    request: reqwest::Request,
    most: usize,
) -> Result<Response, (TransportError, bool)> {
    let (url, began) = (request.url().clone(), Instant::now());
    let failed = |error, was_stale| (classify(error, &url, transport), was_stale);
    let (result, has_connected) = noting_connects(connections.client.execute(request)).await;
    let mut answer = result.map_err(|error| {
        let was_stale = !has_connected && began.elapsed() < STALE_WITHIN && is_hang_up(&error);
        failed(error, was_stale)
    })?;
    let encoding = Encoding::of(answer.headers());
    let mut response = Response {
        status: answer.status().as_u16(),
        retry_after: text(answer.headers(), RETRY_AFTER).and_then(RetryAfter::parse),
        etag: text(answer.headers(), ETAG).map(str::to_owned),
        is_cut: false,
        body: Vec::new(),
    };
    let limit = if encoding.is_some() { encoded_limit(most) } else { most };
    while let Some(part) = answer.chunk().await.map_err(|error| failed(error, false))? {
        let left = limit.saturating_sub(response.body.len());
        response.body.extend(part.iter().take(left));
        if part.len() > left {
            response.is_cut = true;
            break;
        }
    }
    decode(response, encoding, most).map_err(|error| (error, false))
}

/// Decodes the body of a response. If that fails, a successful response is an error. A failure is described by its
/// status and headers, so its body is left out instead.
fn decode(mut response: Response, encoding: Option<Encoding>, most: usize) -> Result<Response, TransportError> {
    let Some(encoding) = encoding.filter(|_| !response.body.is_empty()) else { return Ok(response) };
    match encoding.decode(&response.body, response.is_cut, most) {
        Ok((body, is_cut)) => (response.body, response.is_cut) = (body, is_cut),
        Err(error) if (200..300).contains(&response.status) => return Err(error),
        Err(_) => response.body.clear(),
    }
    Ok(response)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the connection was closed or reset before a response began. (hyper does not distinguish an empty response
/// from one that broke off within its head.)
fn is_hang_up(error: &reqwest::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let is_closed =
        |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof);
    !error.is_timeout()
        && !error.is_connect()
        && in_chain(error, &|link| {
            link.downcast_ref::<io::Error>().is_some_and(|error| is_closed(error.kind()))
                // An error of hyper whose type reqwest does not export.
                || link.to_string() == "connection closed before message completed"
        })
}

/// Classifies an error of reqwest by what the operator can do about it. `url` determines the proxy of the request.
fn classify(error: reqwest::Error, url: &Url, transport: &Transport) -> TransportError {
    let error = error.without_url();
    let ways = &transport.settings.ways;
    let proxy = ways.to(url);
    // hyper-util does not export the error type.
    let has = |text: &str| in_chain(&error, &|link| link.to_string().starts_with(text));
    // A TLS or proxy failure is also a connect failure and may be a timeout, so the most specific class comes first.
    if in_chain(&error, &refuses_the_client) {
        let advice = advice(transport.identity.as_deref());
        return TransportError::ClientCertificate { advice, source: with_proxy(error, proxy) };
    }
    if in_chain(&error, &|link| link.is::<rustls::Error>()) {
        return TransportError::Tls(with_proxy(error, proxy));
    }
    if error.is_timeout() && !has("tunnel error") {
        return TransportError::Timeout(with_proxy(error, proxy));
    }
    match proxy {
        Some(named) if has(PROXY_UNREACHABLE) || (error.is_connect() && !has("tunnel error")) => {
            TransportError::ProxyDown { proxy: named.to_string(), remedy: remedy(named), source: error.into() }
        }
        Some(named) if has("tunnel error") => {
            TransportError::Proxy { proxy: named.to_string(), remedy: remedy(named), source: error.into() }
        }
        None if error.is_connect() => TransportError::Connect(match ways.hint(url) {
            Some(hint) => Note { note: hint.to_owned(), source: error.into() }.into(),
            None => error.into(),
        }),
        _ => TransportError::Other(with_proxy(error, proxy)),
    }
}

/// Whether the endpoint has sent an alert about the client's certificate.
fn refuses_the_client(link: &(dyn Error + 'static)) -> bool {
    use rustls::AlertDescription as Alert;
    matches!(
        link.downcast_ref::<rustls::Error>(),
        Some(rustls::Error::AlertReceived(
            Alert::CertificateRequired
                | Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied
                // The signature of the certificate, or of the client, does not verify.
                | Alert::DecryptError
        ))
    )
}

/// What to do about a refused client certificate.
fn advice(identity: Option<&Identity>) -> String {
    let Some(identity) = identity else {
        return "it has none: configure one (Config::client_identity)".to_owned();
    };
    let advice = "check that it has not expired and that the endpoint trusts its issuer (files are read again for each \
                  connection)";
    match identity.problem() {
        Some(problem) => format!("{advice}; the one in use is older than its files, because {problem}"),
        None => advice.to_owned(),
    }
}

/// The text of hyper-util's error if the proxy could not be reached.
const PROXY_UNREACHABLE: &str = "tunnel error: failed to create underlying connection";

/// A remedy if the proxy is not wanted.
fn remedy(named: &Named) -> &'static str {
    if named.is_of_environment() { ", or name PostHog's host in no_proxy to go without it" } else { "" }
}

/// An error with an additional note.
#[derive(Debug, thiserror::Error)]
#[error("{note}")]
struct Note {
    note: String,
    source: Source,
}

/// The error with a note of the proxy that the request went through, which may have caused it.
fn with_proxy(error: reqwest::Error, proxy: Option<&Arc<Named>>) -> Source {
    match proxy {
        Some(named) => Note { note: format!("through the proxy {named}"), source: error.into() }.into(),
        None => error.into(),
    }
}

fn in_chain(error: &(dyn Error + 'static), wanted: &dyn Fn(&(dyn Error + 'static)) -> bool) -> bool {
    if wanted(error) {
        return true;
    }
    // `source` of an `io::Error` returns the source of the wrapped error and skips the wrapped error itself.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(link) => in_chain(link, wanted),
        None => error.source().is_some_and(|link| in_chain(link, wanted)),
    }
}

/// The most characters of an encoding's name that an error quotes.
const NAME_KEPT: usize = 40;

/// The encoding of a response's body.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Deflate,
    /// An unknown encoding, with its name.
    Unknown(String),
}

impl Encoding {
    /// The encoding named in the headers; `None` if the body is not encoded.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(CONTENT_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let all = values.collect::<Vec<_>>().join(",").to_ascii_lowercase();
        let mut codings = all.split(',').map(str::trim).filter(|coding| !matches!(*coding, "" | "identity"));
        match (codings.next(), codings.next()) {
            (None, _) => None,
            (Some("gzip" | "x-gzip"), None) => Some(Encoding::Gzip),
            (Some("deflate"), None) => Some(Encoding::Deflate),
            _ => Some(Encoding::Unknown(all.chars().take(NAME_KEPT).collect())),
        }
    }

    /// Decodes `raw` to at most `most` bytes; the flag is set if the result is incomplete. `is_cut` says whether `raw`
    /// is incomplete.
    fn decode(&self, raw: &[u8], is_cut: bool, most: usize) -> Result<(Vec<u8>, bool), TransportError> {
        // Servers use "deflate" for two formats. zlib's begins with two bytes that are a multiple of 31.
        let is_zlib = matches!(raw, [first, second, ..]
            if first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31));
        let mut body = Vec::new();
        let up_to = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
        let read = match self {
            Encoding::Gzip => MultiGzDecoder::new(raw).take(up_to).read_to_end(&mut body),
            Encoding::Deflate if is_zlib => ZlibDecoder::new(raw).take(up_to).read_to_end(&mut body),
            Encoding::Deflate => DeflateDecoder::new(raw).take(up_to).read_to_end(&mut body),
            Encoding::Unknown(_) => return Err(self.unreadable("which was not requested and cannot be decoded")),
        };
        if read.is_err() && !is_cut && body.len() <= most {
            return Err(self.unreadable("but its body is damaged or not encoded that way"));
        }
        let is_cut = is_cut || body.len() > most;
        body.truncate(most);
        Ok((body, is_cut))
    }

    fn unreadable(&self, problem: &'static str) -> TransportError {
        let encoding = match self {
            Encoding::Gzip => "gzip".to_owned(),
            Encoding::Deflate => "deflate".to_owned(),
            Encoding::Unknown(name) => name.clone(),
        };
        TransportError::Encoding { encoding, problem }
    }
}

/// The most encoded bytes that can contain `most` decoded bytes: incompressible data grows a little by its framing.
fn encoded_limit(most: usize) -> usize {
    most.saturating_add(most / 64).saturating_add(1024)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn encoding(values: &[&str]) -> Option<Encoding> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, value.parse().unwrap());
        }
        Encoding::of(&headers)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_table_of_encodings_holds() {
        let unknown = |name: &str| Some(Encoding::Unknown(name.to_owned()));
        for (values, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["Identity"], None),
            (&["gzip"], Some(Encoding::Gzip)),
            (&["GZIP"], Some(Encoding::Gzip)),
            (&["x-gzip"], Some(Encoding::Gzip)),
            (&["identity, gzip"], Some(Encoding::Gzip)),
            (&["identity", "gzip"], Some(Encoding::Gzip)),
            (&["deflate"], Some(Encoding::Deflate)),
            (&["br"], unknown("br")),
            (&["gzip, br"], unknown("gzip, br")),
            (&["gzip", "gzip"], unknown("gzip,gzip")),
        ] {
            assert_eq!(encoding(values), expected, "{values:?}");
        }
        assert_eq!(encoding(&[&"x".repeat(9000)]), unknown(&"x".repeat(NAME_KEPT)));
    }

    #[test]
    fn gzip_and_both_forms_of_deflate_are_decoded() {
        let text = b"{\"status\":1}".repeat(100);
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(&text).unwrap();
        let mut plain = DeflateEncoder::new(Vec::new(), Compression::fast());
        plain.write_all(&text).unwrap();
        let twice = [gzip(&text[..7]), gzip(&text[7..])].concat();
        for (encoding, raw) in [
            (Encoding::Gzip, gzip(&text)),
            (Encoding::Gzip, twice),
            (Encoding::Deflate, zlib.finish().unwrap()),
            (Encoding::Deflate, plain.finish().unwrap()),
        ] {
            assert_eq!(encoding.decode(&raw, false, text.len()).unwrap(), (text.clone(), false), "{encoding:?}");
        }
        let response = |body: &[u8]| Response { body: body.to_vec(), ..Response::default() };
        assert_eq!(decode(response(&text), None, 9).unwrap().body, text);
        assert_eq!(decode(response(b""), Some(Encoding::Gzip), 9).unwrap().body, b"", "a response without a body");
    }

    #[test]
    fn what_is_decoded_is_bounded_and_no_bomb_is_blown_up() {
        let bomb = gzip(&vec![b' '; 64 << 20]);
        let (body, is_cut) = Encoding::Gzip.decode(&bomb, false, 1000).unwrap();
        assert_eq!((body.len(), is_cut, body.capacity() < 1 << 16), (1000, true, true));
        let text: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let raw = gzip(&text);
        assert!(raw.len() <= encoded_limit(text.len()), "incompressible data is read completely");
        let (body, is_cut) = Encoding::Gzip.decode(&raw[..raw.len() / 2], true, text.len()).unwrap();
        assert!(is_cut && text.starts_with(&body) && body.len() > text.len() / 4);
    }

    #[test]
    fn what_cannot_be_decoded_is_named() {
        let raw = gzip(b"hello");
        for (encoding, raw, name) in [
            (Encoding::Gzip, &raw[..raw.len() - 3], "gzip"),
            (Encoding::Gzip, b"{\"status\":1}", "gzip"),
            (Encoding::Deflate, b"{\"status\":1}", "deflate"),
            (Encoding::Unknown("br".to_owned()), b"x", "br"),
        ] {
            let error = encoding.decode(raw, false, 100).unwrap_err().to_string();
            assert!(error.contains(&format!("Content-Encoding {name:?}")), "{error}");
        }
    }
}
