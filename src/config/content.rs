//! Knobs that change what events say, and the hooks that hear of them.

use std::sync::Arc;

use super::Config;
use crate::delivery::Delivery;
use crate::diagnostics::Diagnostic;
use crate::event::Event;

impl Config {
    /// Marks everything as an import of old events. Default: off.
    pub fn historical_migration(mut self, on: bool) -> Self {
        self.historical_migration = on;
        self
    }

    /// Asks PostHog not to look up where the sending machine is (`$geoip_disable`). Default: off.
    pub fn disable_geoip(mut self, on: bool) -> Self {
        self.disable_geoip = on;
        self
    }

    /// Has PostHog take timestamps as they are (`$ignore_sent_at`) instead of correcting them by the difference between its clock and
    /// ours. Then a retry can never land on another day than the first attempt, which is where PostHog's de-duplication ends; but a
    /// machine whose clock is wrong has wrong times. Default: off.
    pub fn exact_timestamps(mut self, on: bool) -> Self {
        self.exact_timestamps = on;
        self
    }

    /// Adds a hook that sees each event on the caller's thread before anything of it reaches the disk. It returns the event, changed or
    /// not, or `None` to drop it. Hooks run in the order in which they were added. A hook that panics drops the event; in a program
    /// built with `panic = "abort"` it takes the process down, with nothing accepted lost.
    pub fn before_send(mut self, hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        self.before_send.push(Arc::new(hook));
        self
    }

    /// Is told what became of events, on the delivery thread: it must be quick. A panic in it is caught and recorded.
    pub fn on_delivery(mut self, hook: impl Fn(&Delivery<'_>) + Send + Sync + 'static) -> Self {
        self.on_delivery = Some(Arc::new(hook));
        self
    }

    /// Is told of each [`Diagnostic`], on whatever thread it arises: it must be quick.
    pub fn on_diagnostic(mut self, hook: impl Fn(&Diagnostic) + Send + Sync + 'static) -> Self {
        self.on_diagnostic = Some(Arc::new(hook));
        self
    }
}
