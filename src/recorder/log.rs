//! Lines of the log, through `tracing` under the target `posthog`: a text for a reader, and its facts as fields for
//! programs that filter and count. No line contains a key, a password or the content of an event.

use std::path::Path;
use std::time::Duration;

use crate::report::{Backlog, Diagnostic, Line, ShutdownReport};
use crate::sys::limits::{NAME_KEPT, foreign};
use crate::sys::reentry;
use crate::sys::wording::count;

/// Logs a diagnostic when there is no client.
pub(crate) fn log_without_client(diagnostic: &Diagnostic) {
    let line = Line { diagnostic: diagnostic.clone(), others: 0, period: None };
    reentry::calling_out(|| {
        reentry::caught(|| log(&line));
    });
}

pub(super) fn log(line: &Line) {
    let diagnostic = &line.diagnostic;
    let (kind, held_back) = (diagnostic.kind(), Some(line.others).filter(|others| *others > 0));
    let Facts { host, waiting, next_attempt_ms, outage_ms, events, status, path, uuid } = Facts::of(diagnostic);
    // One line, even if names of events, paths or texts of servers contain line breaks.
    let text = foreign(&line.to_string(), usize::MAX);
    if diagnostic.is_informational() {
        tracing::info!(target: "posthog", kind, held_back, host, waiting, outage_ms, events, path, "{text}");
    } else {
        tracing::warn!(
            target: "posthog",
            kind, held_back, host, waiting, next_attempt_ms, events, status, path, uuid,
            "{text}"
        );
    }
}

/// The facts of a diagnostic that its line has as fields, besides the kind. A field without a value is left out.
#[derive(Default)]
struct Facts<'a> {
    host: Option<&'a str>,
    waiting: Option<u64>,
    next_attempt_ms: Option<u64>,
    outage_ms: Option<u64>,
    events: Option<u64>,
    status: Option<u16>,
    path: Option<String>,
    uuid: Option<String>,
}

impl<'a> Facts<'a> {
    fn of(diagnostic: &'a Diagnostic) -> Self {
        let of_backlog = |backlog: &'a Backlog| Self {
            host: Some(&*backlog.host).filter(|host| !host.is_empty()),
            // None is known for a line that was held back.
            waiting: Some(backlog.events).filter(|events| *events > 0),
            next_attempt_ms: backlog.next_attempt.map(milliseconds),
            ..Self::default()
        };
        // Without a response there is no status.
        let answered = |status: &u16| Some(*status).filter(|status| *status > 0);
        let shown = |path: &Path| Some(foreign(&path.to_string_lossy(), usize::MAX)).filter(|path| !path.is_empty());
        match diagnostic {
            Diagnostic::EndpointFailing { backlog, .. } => of_backlog(backlog),
            Diagnostic::EndpointRecovered { after, backlog } => {
                Self { outage_ms: Some(milliseconds(*after)), ..of_backlog(backlog) }
            }
            Diagnostic::NotPostHog { status, backlog, .. } | Diagnostic::Paused { status, backlog, .. } => {
                Self { status: answered(status), ..of_backlog(backlog) }
            }
            Diagnostic::DeadLettered { uuid, status, .. } | Diagnostic::Quarantined { uuid, status, .. } => {
                Self { uuid: Some(uuid.to_string()), status: answered(status), ..Self::default() }
            }
            Diagnostic::Dropped { count: events, .. }
            | Diagnostic::Evicted { events, .. }
            | Diagnostic::EventsLost { events, .. }
            | Diagnostic::MemoryQueueLost { events }
            | Diagnostic::DeliveryWarning { events, .. } => Self { events: Some(*events), ..Self::default() },
            Diagnostic::OrphanedQueue { path, events, .. }
            | Diagnostic::OrphanedQueues { path, events, .. }
            | Diagnostic::QueueAdopted { path, events }
            | Diagnostic::LeftOnDisk { path, events, .. }
            | Diagnostic::QueueSalvaged { path, lost: events, .. } => {
                Self { events: Some(*events), path: shown(path), ..Self::default() }
            }
            Diagnostic::InMemory { path, .. }
            | Diagnostic::LowDiskSpace { path, .. }
            | Diagnostic::QueueDirEphemeral { path, .. }
            | Diagnostic::QueueDirExposed { path, .. }
            | Diagnostic::QueueSkipped { path, .. }
            | Diagnostic::CrashReportUnreadable { path: Some(path), .. } => {
                Self { path: shown(path), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The facts of a client that has started, for its line in the log. No secret is among them.
pub(crate) struct Started<'a> {
    pub(crate) host: &'a str,
    /// The beginning of the key.
    pub(crate) key: String,
    /// `None` for a queue in memory.
    pub(crate) queue_dir: Option<&'a Path>,
    /// Number of events that an earlier run left.
    pub(crate) queued_events: u64,
    pub(crate) protocol: &'static str,
    /// Host and port of the proxy and where it was set, without its credentials.
    pub(crate) proxy: Option<String>,
}

/// Logs that a client has started. Not a diagnostic: nothing is to be done about it.
pub(crate) fn log_started(started: &Started<'_>) {
    let Started { host, key, queue_dir, queued_events, protocol, proxy } = started;
    let (proxy, events) = (proxy.as_deref().unwrap_or("none"), count(*queued_events, "event"));
    let (version, key) = (env!("CARGO_PKG_VERSION"), foreign(key, NAME_KEPT));
    let queue_dir = queue_dir.map_or_else(|| "(memory)".to_owned(), |dir| foreign(&dir.to_string_lossy(), usize::MAX));
    reentry::calling_out(|| {
        reentry::caught(|| {
            tracing::info!(
                target: "posthog",
                kind = "started", version, host, key, queue_dir, queued_events, protocol, proxy,
                "client started: events go to {host}; {events} of earlier runs in {queue_dir}"
            );
        });
    });
}

/// Logs that a client was closed and has delivered everything. What is left otherwise is a diagnostic.
pub(crate) fn log_closed(report: &ShutdownReport, queue_dir: &Path) {
    let ShutdownReport { delivered, remaining, .. } = report;
    if *remaining > 0 {
        return;
    }
    let (queue_dir, events) = (foreign(&queue_dir.to_string_lossy(), usize::MAX), count(*delivered, "event"));
    reentry::calling_out(|| {
        reentry::caught(|| {
            tracing::info!(
                target: "posthog",
                kind = "closed", delivered, remaining, queue_dir,
                "client closed: {events} delivered since the close began, none left in the queue"
            );
        });
    });
}
