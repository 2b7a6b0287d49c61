//! The HTTP server: one thread, a runtime of its own, one task per connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

use crate::answer::{Answer, Ending};
use crate::batch::{self, Batch};
use crate::flags::{self, FlagRoute};
use crate::state::{Request, Shared};
use crate::v1;

const BACKLOG: u32 = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
const PATHS: [&str; 4] = ["/batch", "/batch/", "/i/v0/ai/batch", "/i/v0/ai/batch/"];

/// Binds `wanted` without listening; returns the socket and its address. Until the socket is dropped, only sockets with
/// `SO_REUSEADDR` can bind the port.
pub(crate) fn reserve(wanted: SocketAddr) -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = reusable(wanted)?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

/// A running server. Dropping it breaks off its connections and waits until the port is closed.
#[derive(Debug)]
pub(crate) struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the server; returns when it accepts connections.
    pub(crate) fn start(address: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            reusable(address)?.listen(BACKLOG)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = Builder::new().name("sink".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server's thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

fn reusable(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or a connection that died in the backlog. The former needs a pause.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Small responses must not wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let serve = service_fn(|request| answer(request, Arc::clone(&shared)));
            // An error is a connection that was closed, by the client or by the script.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await;
        });
    }
}

/// The error with which hyper closes the connection without a response.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed by the script")
    }
}

impl std::error::Error for Closed {}

async fn answer(request: hyper::Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Full<Bytes>>, Closed> {
    let (head, body) = request.into_parts();
    let body: Vec<u8> = match body.collect().await {
        Ok(body) => body.to_bytes().into(),
        Err(_) => return Err(Closed),
    };
    let mut record = Request {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers.iter().map(header_text).collect(),
        wire_bytes: body.len(),
        arrived: Instant::now(),
        api_key: String::new(),
        sent_at: String::new(),
        envelope: serde_json::Value::Null,
        event_count: 0,
        uuids: Vec::new(),
        status: 0,
        taken: false,
    };
    let is_v1 = v1::PATHS.contains(&head.uri.path());
    let (answer, batch) = if let Some(route) = FlagRoute::of(head.uri.path()) {
        if head.method == route.method() {
            flags::decide(&shared, route, &record, &body)
        } else {
            (Answer::status(405), Batch::default())
        }
    } else if !is_v1 && !PATHS.contains(&head.uri.path()) {
        (Answer::status(404), Batch::default())
    } else if head.method != Method::POST {
        (Answer::status(405), Batch::default())
    } else {
        decide(&shared, &record, body, is_v1)
    };
    record.status = answer.status;
    record.taken = answer.takes;
    let _in_flight = shared.arrive(record, batch);
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    match answer.ending {
        Ending::Reply => Ok(response(answer)),
        Ending::Close => Err(Closed),
        Ending::Hang => match std::future::pending::<Infallible>().await {},
    }
}

/// The response to a batch by script and rules, and the batch as far as it could be read.
fn decide(shared: &Shared, request: &Request, body: Vec<u8>, is_v1: bool) -> (Answer, Batch) {
    let (planned, refusal, size_limit, fast) = {
        let mut rules = shared.rules();
        let planned = rules.script.pop_front().unwrap_or_else(|| rules.default.clone());
        (planned, rules.refuse.clone(), rules.size_limit, rules.fast)
    };
    let or_planned = |refused: Answer| if planned.takes { refused } else { planned.clone() };
    let text = match batch::decompress(body, request.header("content-encoding"), size_limit) {
        Ok(text) => text,
        Err(refused) => return (or_planned(refused), Batch::default()),
    };
    if fast && refusal.is_none() {
        let mut batch = batch::scan(&text);
        return (judged(planned, &mut batch, is_v1), batch);
    }
    let (body, events) = match batch::parse(&text) {
        Ok(parsed) => parsed,
        Err(refused) => return (or_planned(refused), Batch::default()),
    };
    let poisoned = refusal.and_then(|refusal| refusal.judge(&events));
    let (mut batch, invalid) = match is_v1 {
        true => v1::validate(request, &body, events),
        false => batch::validate(&body, events),
    };
    if fast {
        batch.events.clear();
        batch.keeps_uuids = false;
    }
    match poisoned.or(invalid) {
        Some(refused) => (or_planned(refused), batch),
        None => (judged(planned, &mut batch, is_v1), batch),
    }
}

/// The planned response, with V1 results if it has any.
fn judged(planned: Answer, batch: &mut Batch, is_v1: bool) -> Answer {
    match &planned.results {
        Some(words) if is_v1 => Answer { body: v1::judge(batch, words), ..planned },
        _ => planned,
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let kind = if answer.body.starts_with('{') { "application/json" } else { "text/plain; charset=utf-8" };
    let mut builder = Response::builder().status(answer.status).header(CONTENT_TYPE, kind);
    for (name, value) in &answer.headers {
        builder = builder.header(name, value);
    }
    // A status or header that HTTP does not allow is a mistake in the test's script.
    builder
        .body(Full::new(answer.body.into()))
        .unwrap_or_else(|error| panic!("the sink's script has an answer that is not valid HTTP: {error}"))
}

fn header_text((name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)) -> (String, String) {
    (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
}
