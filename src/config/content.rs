//! Knobs that change what events say, and the hooks that hear of them.

use std::sync::Arc;

use serde::Serialize;

use super::{BeforeSend, Config};
use crate::context;
use crate::delivery::DeliveryNotice;
use crate::diagnostics::Diagnostic;
use crate::error::Error;
use crate::event::Event;
use crate::record::Pairs;

/// What changes what events say.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(crate) disable_geoip: bool,
    pub(crate) exact_timestamps: bool,
    pub(crate) opted_out: bool,
    /// Each name once.
    pub(crate) super_properties: Pairs,
    pub(crate) before_send: Vec<BeforeSend>,
    pub(crate) tracing_hosts: Vec<String>,
}

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

    /// Says whether this program is a server, which is what PostHog takes it for: `$is_server` of every event that does not say it
    /// itself. Default: on.
    pub fn is_server(self, on: bool) -> Self {
        // Every event is a server's unless it says otherwise, so only that has to be said.
        if on { self } else { self.super_property("$is_server", false) }
    }

    /// Sets a property of every event that does not set it itself, after what a [`Context`](crate::Context) says. Encoded once. At run
    /// time: [`Client::register`](crate::Client::register).
    pub fn super_property(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        let pair =
            Pairs::one(key.as_ref(), &value).map_err(|reason| format!("the value of {:?}: {reason}", key.as_ref()));
        self.super_properties.push(pair);
        self
    }

    /// Whether addresses of stacks get names before they are sent, as far as the build that runs then has symbols: on the delivery's
    /// thread, 50 to 300 ms by the size of the executable for the first stack of a place, and nothing for the next. Not where the
    /// executable is larger than 256 MiB, has no build id, or is the forked child of a process that had a client. Without names PostHog
    /// finds them, if symbols were uploaded there: addresses and build ids are sent either way. Default: on.
    pub fn symbolicate(mut self, on: bool) -> Self {
        self.symbolicate = on;
        self
    }

    /// Whether frames of the program's own code are sent with their line of source, and five before and after it, where the source is at
    /// the place that the debug information names: on the machine that built the program. Read when the event is sent; needs
    /// [`symbolicate`](Self::symbolicate). Default: off, for that sends source code to PostHog, and looks for files that a daemon in
    /// production does not have.
    pub fn source_context(mut self, on: bool) -> Self {
        self.source_context = on;
        self
    }

    /// Starts opted out, see [`Client::opt_out`](crate::Client::opt_out). Default: off.
    pub fn opted_out(mut self, opted_out: bool) -> Self {
        self.opted_out = opted_out;
        self
    }

    /// Captures an event `previous_run_ended` when the client takes over the queue of an earlier run: how that ended, how long it was
    /// alive, how much it left queued. Properties: `cause` ([`ExitCause::name`](crate::ExitCause::name)), `signal` and `exit_status` where
    /// there is one, `pid`, `started_at`, `uptime_seconds`, `queued_events`, and `machine_restarted` where that is known; see
    /// [`PreviousRun`](crate::PreviousRun). It belongs to nobody: its distinct id is its own, and PostHog makes no person of it. It goes
    /// through hooks and super properties as any event does, on the thread that makes the client. Default: off.
    pub fn report_previous_run(mut self, on: bool) -> Self {
        self.report_previous_run = on;
        self
    }

    /// The hosts whose requests may carry the context's distinct id and session id, see
    /// [`Client::tracing_headers`](crate::Client::tracing_headers): names as `api.example.com`, without scheme, port or path; each stands
    /// for those below it too. Default: none. May be called several times.
    pub fn tracing_hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.tracing_hosts.extend(hosts.into_iter().map(Into::into));
        self
    }

    /// Adds a hook that sees each event on the caller's thread before anything of it reaches the disk. It returns the event, changed or
    /// not, or `None` to drop it. It sees every event but those that a hook captures itself. Hooks run in the order in which they were added. A hook that panics drops the event; in a program
    /// built with `panic = "abort"` it takes the process down, with nothing accepted lost. At run time:
    /// [`Client::set_before_send`](crate::Client::set_before_send).
    pub fn before_send(mut self, hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        self.before_send.push(BeforeSend::new(hook));
        self
    }

    /// Is told what became of events, on the delivery thread: it must be quick. A panic in it is caught and recorded.
    pub fn on_delivery(mut self, hook: impl Fn(&DeliveryNotice<'_>) + Send + Sync + 'static) -> Self {
        self.on_delivery = Some(Arc::new(hook));
        self
    }

    /// Is told of each [`Diagnostic`], on whatever thread it arises: it must be quick. What is captured inside it passes the
    /// [`before_send`](Self::before_send) hooks like everything else; what is captured while that is told of in its turn is
    /// [`Dropped(Reentrant)`](crate::DropReason::Reentrant), so that this ends.
    pub fn on_diagnostic(mut self, hook: impl Fn(&Diagnostic) + Send + Sync + 'static) -> Self {
        self.on_diagnostic = Some(Arc::new(hook));
        self
    }

    /// The settings that are about what events say, held against their rules.
    pub(super) fn content(self) -> Result<Content, Error> {
        let mut super_properties = Pairs::default();
        for pair in self.super_properties {
            super_properties.merge(&pair.map_err(|why| Error::config("super_property", why))?);
        }
        let pattern = |host: String| {
            let why = || format!("is made of names such as api.example.com; {host:?} is none");
            context::host_pattern(&host).ok_or_else(|| Error::config("tracing_hosts", why()))
        };
        Ok(Content {
            disable_geoip: self.disable_geoip,
            exact_timestamps: self.exact_timestamps,
            opted_out: self.opted_out,
            super_properties,
            before_send: self.before_send,
            tracing_hosts: self.tracing_hosts.into_iter().map(pattern).collect::<Result<_, _>>()?,
        })
    }
}
