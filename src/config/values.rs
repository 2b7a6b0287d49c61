//! Values of settings: choices among a few, and the `before_send` hook.

use std::fmt;
use std::sync::Arc;

use crate::event::Event;

/// How request bodies are compressed.
///
/// [`CaptureProtocol::V0`] servers accept gzip only; [`CaptureProtocol::V1`] servers accept all of these. A choice that
/// the protocol or this build does not support is an error when the client is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// gzip at its fastest level. Measured: on links below about 20 MB/s the link is slower than the compression.
    #[default]
    Gzip,
    /// zlib at its fastest level (`deflate` in HTTP): gzip with another header. V1 only.
    Deflate,
    /// Brotli at quality 4: smaller than gzip, and slower. V1 only; needs the cargo feature `brotli`.
    Brotli,
    /// Zstandard at level 1: smaller than gzip, and a little slower. V1 only; needs the cargo feature `zstd`.
    Zstd,
}

/// The protocol of the endpoint for feature flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FlagsProtocol {
    /// `POST /flags/?v=2`: PostHog Cloud, and self-hosted servers since 2025.
    #[default]
    V2,
    /// `POST /decide/?v=3`, for older self-hosted servers. It returns values and payloads of flags, but no ids and no
    /// reasons.
    Decide,
}

/// A `before_send` hook: sees each event on the caller's thread before any of it reaches the disk, and may change or
/// drop it. Several hooks are a chain: each gets what the one before it returned, and the chain ends when a hook drops
/// the event.
///
/// ```
/// use posthog::{Client, Config};
/// use posthog::settings::BeforeSend;
///
/// # fn main() -> Result<(), posthog::Error> {
/// let client = Client::new(Config::disabled())?;
/// client.set_before_send([BeforeSend::new(|mut event| {
///     event.remove("secret");
///     Some(event)
/// })]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BeforeSend {
    hook: Arc<dyn Fn(Event) -> Option<Event> + Send + Sync>,
}

impl BeforeSend {
    /// A hook that returns the event, changed or not, or `None` to drop it.
    pub fn new(hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        Self { hook: Arc::new(hook) }
    }

    /// Runs the hook. It is code of the program and may panic.
    pub(crate) fn look_at(&self, event: Event) -> Option<Event> {
        (self.hook)(event)
    }
}

impl fmt::Debug for BeforeSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeforeSend").finish_non_exhaustive()
    }
}
