//! A loader with a scripted transport, store and threads, for tests with tokio's paused clock.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::handle::LoadedFlags;
use super::*;
use crate::report::Diagnostic;
use crate::sys::clock::Clock;
use crate::transport::{Http, Pending, Request, Response, TransportError};

pub(super) const ONE: &str = r#"{"flags":[{"key":"a","active":true,"filters":{"groups":[]}}]}"#;
pub(super) const TWO: &str = r#"{"flags":[{"key":"a","active":true,"filters":{"groups":[]}},{"key":"b","active":true,
    "filters":{"groups":[]}}],"minimal_flag_called_events":true}"#;
pub(super) const DENIED: &str = r#"{"type":"authentication_error","code":"invalid_api_key","detail":"no"}"#;
pub(super) const SECRET: &str = "phx_verysecret";

/// A scripted response. `None`: the server never responds.
pub(super) type Reply = Option<Result<Response, TransportError>>;

pub(super) fn reply(status: u16, body: &str) -> Reply {
    Some(Ok(Response { status, body: body.as_bytes().to_vec(), ..Response::default() }))
}

pub(super) fn tagged(status: u16, body: &str, etag: &str) -> Reply {
    Some(Ok(Response { status, body: body.as_bytes().to_vec(), etag: Some(etag.into()), ..Response::default() }))
}

/// A transport that gives scripted responses in order, and then 503.
#[derive(Default)]
pub(super) struct Network {
    pub(super) replies: Mutex<VecDeque<Reply>>,
    /// The `If-None-Match` of each request.
    pub(super) asked: Mutex<Vec<Option<String>>>,
    /// The next response waits for this.
    held: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Network {
    pub(super) fn hold(&self, until: oneshot::Receiver<()>) {
        *self.held.lock().unwrap() = Some(until);
    }
}

impl Http for Network {
    fn send(&self, request: Request) -> Pending {
        let etag = request.headers.iter().find(|(name, _)| *name == "if-none-match").map(|(_, value)| value.clone());
        self.asked.lock().unwrap().push(etag);
        let reply = self.replies.lock().unwrap().pop_front().unwrap_or_else(|| reply(503, ""));
        let held = self.held.lock().unwrap().take();
        Box::pin(async move {
            if let Some(held) = held {
                let _ = held.await;
            }
            match reply {
                Some(reply) => reply,
                None => std::future::pending().await,
            }
        })
    }
}

/// A running loader.
pub(super) struct Rig {
    pub(super) loader: Arc<Loader>,
    pub(super) network: Arc<Network>,
    pub(super) diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    pub(super) kept: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
    pub(super) task: JoinHandle<()>,
}

pub(super) fn options() -> LoaderOptions {
    LoaderOptions {
        host: "https://ph.test".into(),
        api_key: "phc_1".into(),
        secret_key: Some(SecretKey::new(SECRET)),
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(10),
        retry_after_cap: Duration::from_secs(3600),
        provider: None,
        keep: Some(1 << 20),
    }
}

impl Rig {
    pub(super) fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::with(replies, |_| ())
    }

    pub(super) fn with(replies: impl IntoIterator<Item = Reply>, edit: impl FnOnce(&mut LoaderParts)) -> Self {
        Self::start(None, replies, edit)
    }

    /// A loader that starts with what an earlier process kept.
    pub(super) fn restored(restored: Option<LoadedFlags>, replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::start(restored, replies, |_| ())
    }

    fn start(
        restored: Option<LoadedFlags>,
        replies: impl IntoIterator<Item = Reply>,
        edit: impl FnOnce(&mut LoaderParts),
    ) -> Self {
        let network = Arc::new(Network { replies: Mutex::new(replies.into_iter().collect()), ..Network::default() });
        let (diagnostics, kept) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (reported, keeps) = (Arc::clone(&diagnostics), Arc::clone(&kept));
        let mut parts = LoaderParts {
            options: options(),
            http: Arc::clone(&network) as Arc<dyn Http>,
            clock: Clock::System,
            // Runs on this thread: the paused clock would not wait for another one.
            spawn: Arc::new(|run| {
                run();
                Ok(())
            }),
            keep: Arc::new(move |keep| keeps.lock().unwrap().push(keep)),
            report: Arc::new(move |diagnostic| reported.lock().unwrap().push(diagnostic)),
        };
        edit(&mut parts);
        let loader = Loader::new(restored);
        let task = tokio::spawn(serve(parts, Arc::clone(&loader)));
        Self { loader, network, diagnostics, kept, task }
    }

    /// Requests a load and waits for its result.
    pub(super) async fn load(&self) -> Result<(), FlagDefinitionsError> {
        self.ask().await.unwrap()
    }

    pub(super) fn ask(&self) -> oneshot::Receiver<Result<(), FlagDefinitionsError>> {
        let (sender, result) = oneshot::channel();
        self.loader.reload(Box::new(move |loaded| _ = sender.send(loaded)));
        result
    }

    /// Adds scripted responses.
    pub(super) fn then(&self, replies: impl IntoIterator<Item = Reply>) {
        self.network.replies.lock().unwrap().extend(replies);
    }

    pub(super) fn requests(&self) -> usize {
        self.network.asked.lock().unwrap().len()
    }

    pub(super) fn keys(&self) -> Option<usize> {
        self.loader.current().map(|loaded| loaded.flags.len())
    }

    /// Takes the diagnostics so far.
    pub(super) fn reported(&self) -> Vec<Diagnostic> {
        std::mem::take(&mut *self.diagnostics.lock().unwrap())
    }

    /// Takes the diagnostics so far and returns the operations that failed.
    pub(super) fn cache_failures(&self) -> Vec<&'static str> {
        let failed = |diagnostic| match diagnostic {
            Diagnostic::FlagCacheFailed { operation, .. } => Some(operation),
            _ => None,
        };
        self.reported().into_iter().filter_map(failed).collect()
    }

    /// Stops the loader and waits until its task has ended.
    pub(super) async fn stop(&mut self) {
        let (sender, result) = oneshot::channel();
        self.loader.stop(Box::new(move || _ = sender.send(())));
        result.await.unwrap();
        (&mut self.task).await.unwrap();
    }
}
