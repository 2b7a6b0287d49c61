//! The hook that looks at each event before anything of it reaches the disk.

use std::fmt;
use std::sync::Arc;

use crate::event::Event;

/// A `before_send` hook: looks at each event on the caller's thread before anything of it reaches the disk, and may change or drop it.
/// Several are a chain: each gets what the one before it returned, and none is run after one that dropped the event.
///
/// ```
/// use posthog::{BeforeSend, Client, Config};
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

    /// What is left of the event. The program's code: it may panic.
    pub(crate) fn look_at(&self, event: Event) -> Option<Event> {
        (self.hook)(event)
    }
}

impl fmt::Debug for BeforeSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeforeSend").finish_non_exhaustive()
    }
}
