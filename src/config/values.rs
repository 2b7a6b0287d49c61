//! Values of settings: choices among a few, and the `before_send` hook.

use std::fmt;
use std::sync::Arc;

use crate::event::Event;

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
