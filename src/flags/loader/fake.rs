//! A loader whose network, keeper and threads are played by a test, on tokio's paused time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::sys::clock::Clock;
use crate::transport::{Http, Pending, Request, Response, TransportError};

pub(super) const ONE: &str = r#"{"flags":[{"key":"a","active":true,"filters":{"groups":[]}}]}"#;
pub(super) const TWO: &str = r#"{"flags":[{"key":"a","active":true,"filters":{"groups":[]}},{"key":"b","active":true,
    "filters":{"groups":[]}}],"minimal_flag_called_events":true}"#;
pub(super) const DENIED: &str = r#"{"type":"authentication_error","code":"invalid_api_key","detail":"no"}"#;
pub(super) const SECRET: &str = "phx_verysecret";

/// What is to be answered; `None` for never.
pub(super) type Reply = Option<Result<Response, TransportError>>;

pub(super) fn reply(status: u16, body: &str) -> Reply {
    Some(Ok(Response { status, body: body.as_bytes().to_vec(), ..Response::default() }))
}

pub(super) fn tagged(status: u16, body: &str, etag: &str) -> Reply {
    Some(Ok(Response { status, body: body.as_bytes().to_vec(), etag: Some(etag.into()), ..Response::default() }))
}

/// A network that answers in this order, and at last always the same.
#[derive(Default)]
pub(super) struct Network {
    pub(super) replies: Mutex<VecDeque<Reply>>,
    /// The `If-None-Match` of each request.
    pub(super) asked: Mutex<Vec<Option<String>>>,
    /// The next answer waits for this.
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

/// A loader at work.
pub(super) struct Rig {
    pub(super) loader: Arc<Loader>,
    pub(super) network: Arc<Network>,
    pub(super) notices: Arc<Mutex<Vec<Notice>>>,
    pub(super) kept: Arc<Mutex<Vec<Keep>>>,
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
        let network = Arc::new(Network { replies: Mutex::new(replies.into_iter().collect()), ..Network::default() });
        let (notices, kept) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (heard, keeps) = (Arc::clone(&notices), Arc::clone(&kept));
        let mut parts = LoaderParts {
            options: options(),
            http: Arc::clone(&network) as Arc<dyn Http>,
            clock: Clock::System,
            restored: None,
            // At once: paused time would not wait for a thread.
            spawn: Arc::new(|run| {
                run();
                Ok(())
            }),
            keep: Arc::new(move |keep| keeps.lock().unwrap().push(keep)),
            report: Arc::new(move |notice| heard.lock().unwrap().push(notice)),
        };
        edit(&mut parts);
        let loader = Loader::new(parts.restored.as_ref());
        let task = tokio::spawn(serve(parts, Arc::clone(&loader)));
        Self { loader, network, notices, kept, task }
    }

    /// Asks for a load, and waits for what comes of it.
    pub(super) async fn load(&self) -> Result<(), FlagDefinitionsError> {
        self.ask().await.unwrap()
    }

    pub(super) fn ask(&self) -> oneshot::Receiver<Result<(), FlagDefinitionsError>> {
        let (tell, told) = oneshot::channel();
        self.loader.reload(Box::new(move |loaded| _ = tell.send(loaded)));
        told
    }

    /// The network answers with these from now on.
    pub(super) fn then(&self, replies: impl IntoIterator<Item = Reply>) {
        self.network.replies.lock().unwrap().extend(replies);
    }

    pub(super) fn requests(&self) -> usize {
        self.network.asked.lock().unwrap().len()
    }

    pub(super) fn keys(&self) -> Option<usize> {
        self.loader.current().map(|loaded| loaded.flags.len())
    }

    /// The notices so far; forgets them.
    pub(super) fn heard(&self) -> Vec<Notice> {
        std::mem::take(&mut *self.notices.lock().unwrap())
    }

    /// Names of the operations of caches that failed; forgets all notices.
    pub(super) fn cache_failures(&self) -> Vec<&'static str> {
        let failed = |notice| match notice {
            Notice::CacheFailed { operation, .. } => Some(operation),
            _ => None,
        };
        self.heard().into_iter().filter_map(failed).collect()
    }

    /// Stops it, and waits until it has ended.
    pub(super) async fn stop(&mut self) {
        let (tell, told) = oneshot::channel();
        self.loader.stop(Box::new(move || _ = tell.send(())));
        told.await.unwrap();
        (&mut self.task).await.unwrap();
    }
}
