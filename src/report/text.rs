//! The text of a diagnostic, one line for an operator: what happened, what the library does now, and what the operator
//! can do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::diagnostic::{Backlog, Diagnostic};
use super::drop_reason::DropReason;
use crate::sys::wording::{bytes, count, number, time};

const KEY_MISSING: &str = "POSTHOG_API_KEY is not set: this client is disabled and drops every event; set it to the project's API key \
                           (phc_...) to capture";
const MANUAL_EXCEPTION: &str = "a $exception event was captured with Client::capture: it is sent as it is, but PostHog cannot group it with \
                                other exceptions; use Client::capture_exception instead";
const STORE_VERIFIED: &str = "the previous owner of the queue was killed during a write, so the queue's file was verified; any damage is \
                              reported separately";
const SYMBOLS_UNTRUSTED: &str = "the previous owner of the queue died while it resolved the symbols of a stack; stacks of that build are \
                                 sent with addresses only from now on; upload its symbols to PostHog, or give the process more memory \
                                 and deploy another build";

/// A line of the log: a diagnostic, and how many others it stands for.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) diagnostic: Diagnostic,
    /// Number of further diagnostics that the line stands for.
    pub(crate) others: u64,
    /// The period of which the line is the sum, if it is one.
    pub(crate) period: Option<Duration>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(f, self, Within(None))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = Within(self.period);
        write_text(f, &self.diagnostic, within)?;
        let is_summed = matches!(
            self.diagnostic,
            Diagnostic::Dropped { .. }
                | Diagnostic::Evicted { .. }
                | Diagnostic::EventsLost { .. }
                | Diagnostic::MemoryQueueLost { .. }
                | Diagnostic::DeliveryWarning { .. }
                | Diagnostic::FlagRequestsFailed { .. }
        );
        if is_summed || self.others == 0 {
            return Ok(());
        }
        write!(f, " (and {} more like it{within})", number(self.others))
    }
}

/// ` in the last 60 s`, or nothing.
#[derive(Clone, Copy)]
struct Within(Option<Duration>);

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A period of less than a second tells the reader nothing.
        self.0.filter(|period| period.as_secs() > 0).map_or(Ok(()), |period| write!(f, " in the last {}", time(period)))
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic, within: Within) -> fmt::Result {
    match diagnostic {
        Diagnostic::DeadLettered { .. }
        | Diagnostic::Quarantined { .. }
        | Diagnostic::EndpointFailing { .. }
        | Diagnostic::NotPostHog { .. }
        | Diagnostic::Paused { .. }
        | Diagnostic::EndpointRecovered { .. }
        | Diagnostic::QuotaLimited { .. }
        | Diagnostic::DeliveryWarning { .. }
        | Diagnostic::LeftOnDisk { .. }
        | Diagnostic::NetworkConfig { .. } => write_delivery(f, diagnostic, within),
        Diagnostic::StorageFailing { .. }
        | Diagnostic::StorageRecovered
        | Diagnostic::InMemory { .. }
        | Diagnostic::LowDiskSpace { .. }
        | Diagnostic::MemoryQueueLost { .. }
        | Diagnostic::QueueSalvaged { .. }
        | Diagnostic::EventsLost { .. }
        | Diagnostic::StoreVerified
        | Diagnostic::QueueAdopted { .. }
        | Diagnostic::Evicted { .. }
        | Diagnostic::QueueDirEphemeral { .. }
        | Diagnostic::QueueDirExposed { .. }
        | Diagnostic::OrphanedQueue { .. }
        | Diagnostic::OrphanedQueues { .. }
        | Diagnostic::QueueSkipped { .. } => write_queue(f, diagnostic, within),
        Diagnostic::Dropped { reason, event, detail, count } => {
            write_dropped(f, (*reason, event, detail, *count), within)
        }
        Diagnostic::KeyMissing => f.write_str(KEY_MISSING),
        Diagnostic::HostReplaced { given, used } => write!(
            f,
            "the host {given} is PostHog's app; events and flags are sent to its ingestion host {used} instead; set Config::host (POSTHOG_HOST) to that"
        ),
        Diagnostic::CallbackPanicked { callback } => write_panicked(f, callback),
        Diagnostic::CrashReportUnreadable { path, why } => write_unread(f, path.as_deref(), why),
        Diagnostic::SymbolsUntrusted => f.write_str(SYMBOLS_UNTRUSTED),
        Diagnostic::InputIgnored { what } => f.write_str(what),
        Diagnostic::ManualException => f.write_str(MANUAL_EXCEPTION),
        Diagnostic::FlagRequestsFailed { why, requests } => {
            let requests = count(*requests, "request");
            write!(f, "{requests} for feature flags failed{within}: {why}; last known values or defaults are used")
        }
        Diagnostic::FlagsInvalid { keys } => {
            write!(f, "invalid feature flags have no value: {}; all others are evaluated", keys.join(", "))
        }
        Diagnostic::FlagDefinitionsUnavailable { why } => f.write_str(why),
        Diagnostic::FlagDefinitionsRecovered => f.write_str("feature flag definitions are loaded again"),
        Diagnostic::FlagCacheFailed { operation: "keep", why } => {
            write!(f, "feature flag definitions could not be stored for the next start: {why}; storing is tried again")
        }
        Diagnostic::FlagCacheFailed { operation, why } => {
            write!(
                f,
                "the program's provider of feature flag definitions failed ({operation}): {why}; the loaded definitions stay in use"
            )
        }
    }
}

fn write_dropped(
    f: &mut fmt::Formatter<'_>,
    (reason, event, detail, dropped): (DropReason, &str, &str, u64),
    within: Within,
) -> fmt::Result {
    write!(f, "{} dropped{within}", count(dropped, "event"))?;
    match (event, dropped) {
        ("", _) => {}
        (event, 1) => write!(f, " ({event:?})")?,
        (event, _) => write!(f, " (one of them {event:?})")?,
    }
    if detail.is_empty() { write!(f, ": {reason}") } else { write!(f, ": {detail}") }
}

fn write_delivery(f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic, within: Within) -> fmt::Result {
    match diagnostic {
        Diagnostic::DeadLettered { uuid, status: 0, reason } => {
            write!(
                f,
                "event {uuid} cannot be read from the queue ({reason}) and was not sent; it is kept as a dead letter"
            )
        }
        Diagnostic::DeadLettered { uuid, status, reason } => {
            write!(
                f,
                "PostHog rejected event {uuid} ({}); it is kept as a dead letter and not sent again; see Client::dead_letters",
                Response(*status, reason)
            )
        }
        Diagnostic::Quarantined { uuid, status, reason } => write!(
            f,
            "event {uuid} was not accepted ({}); it stays queued and is tried again later, and delivery continues without it",
            Response(*status, reason)
        ),
        Diagnostic::EndpointFailing { reason, backlog } => {
            write!(f, "events cannot be delivered{} and {}: {reason}", To(backlog), Stay(backlog))
        }
        Diagnostic::NotPostHog { status, snippet, backlog } => write!(
            f,
            "the server that responds{} (HTTP status {status}) is not PostHog; events {}; check Config::host (POSTHOG_HOST), which must be the ingestion host without /batch, and any proxy or captive portal in between; the response \
             begins: {snippet}",
            At(backlog),
            Stay(backlog)
        ),
        Diagnostic::Paused { status, reason, by_posthog, backlog } => {
            write_paused(f, &Response(*status, reason), *by_posthog, backlog)
        }
        Diagnostic::EndpointRecovered { after, backlog } => write_recovered(f, *after, backlog),
        Diagnostic::QuotaLimited { kinds } => write!(
            f,
            "PostHog accepts requests but discards events over quota ({}); those events count as delivered; raise the limit in PostHog's \
             billing settings",
            kinds.join(", ")
        ),
        Diagnostic::DeliveryWarning { uuid, events, details } => {
            let events = count(*events, "event");
            write!(f, "PostHog accepted {events} with a warning{within}: {details} (first event: {uuid})")
        }
        Diagnostic::LeftOnDisk { events, path, why } => write!(
            f,
            "{} not delivered at shutdown: {why}; what remains is kept in {}, and the next process that opens this queue sends it",
            count(*events, "event"),
            path.display()
        ),
        Diagnostic::NetworkConfig { what } => f.write_str(what),
        _ => Ok(()),
    }
}

fn write_paused(
    f: &mut fmt::Formatter<'_>,
    response: &Response<'_>,
    by_posthog: bool,
    backlog: &Backlog,
) -> fmt::Result {
    let (what, remedy) = match (by_posthog, response.0) {
        (false, _) => (
            "the server rejects all requests, and its response is not PostHog's",
            "check Config::host (POSTHOG_HOST), and proxies and firewalls on the way",
        ),
        (true, 402) => ("PostHog's quota is used up", "raise the limit in PostHog's billing settings"),
        (true, 415) => (
            "PostHog does not accept the encoding of requests",
            "choose another Config::compression (POSTHOG_COMPRESSION)",
        ),
        (true, _) => (
            "PostHog rejects the API key",
            "check the project's API key (phc_...) and that Config::host (POSTHOG_HOST) is its region",
        ),
    };
    write!(f, "{what}{} ({response}); events {}; {remedy}", At(backlog), Stay(backlog))
}

fn write_recovered(f: &mut fmt::Formatter<'_>, after: Duration, backlog: &Backlog) -> fmt::Result {
    write!(f, "events are delivered again{}", To(backlog))?;
    if !after.is_zero() {
        write!(f, ", after {} of failures", time(after))?;
    }
    if backlog.events > 0 { write!(f, " ({} waiting)", number(backlog.events)) } else { Ok(()) }
}

/// ` to https://eu.i.posthog.com`, or nothing.
struct To<'a>(&'a Backlog);

impl fmt::Display for To<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.host.is_empty() { Ok(()) } else { write!(f, " to {}", self.0.host) }
    }
}

/// ` at https://eu.i.posthog.com`, or nothing.
struct At<'a>(&'a Backlog);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.host.is_empty() { Ok(()) } else { write!(f, " at {}", self.0.host) }
    }
}

/// `stay queued (1,234 waiting); next attempt in 2 s`, as far as that is known.
struct Stay<'a>(&'a Backlog);

impl fmt::Display for Stay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Backlog { events, next_attempt, .. } = self.0;
        f.write_str("stay queued")?;
        if *events > 0 {
            write!(f, " ({} waiting)", number(*events))?;
        }
        match next_attempt {
            Some(wait) => write!(f, "; next attempt in {}", time(*wait)),
            None => f.write_str("; delivery is tried again"),
        }
    }
}

fn write_queue(f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic, within: Within) -> fmt::Result {
    match diagnostic {
        Diagnostic::StorageFailing { problem } => write!(f, "the queue's storage fails: {problem}"),
        Diagnostic::StorageRecovered => f.write_str("the queue's storage works again"),
        Diagnostic::InMemory { path, problem } => write_in_memory(f, path, problem),
        Diagnostic::LowDiskSpace { path, free_bytes, floor_bytes, volume_bytes } => {
            write_floor(f, path, (*free_bytes, *floor_bytes), *volume_bytes)
        }
        Diagnostic::MemoryQueueLost { events } => write!(
            f,
            "{} lost{within}: the queue was in memory only, and the client was closed before it was delivered",
            count(*events, "event")
        ),
        Diagnostic::QueueSalvaged { path, why, lost } => {
            write!(f, "a damaged or foreign file of the queue ({why}) was renamed to {}; ", path.display())?;
            match lost {
                0 => f.write_str("the queue continues without it"),
                lost => {
                    write!(f, "the queue continues without {} that could not be read from it", count(*lost, "event"))
                }
            }
        }
        Diagnostic::EventsLost { events, after_restart: true } => write!(
            f,
            "{} lost{within} in a power cut or a crash of the machine, before the sync; lower Config::sync_interval (POSTHOG_SYNC_INTERVAL), or await Receipt::persisted \
             for events that matter",
            count(*events, "accepted event")
        ),
        Diagnostic::EventsLost { events, after_restart: false } => write!(
            f,
            "{} lost{within}: bytes on the disk are damaged or missing; check the disk, and whether another program changes the queue's files",
            count(*events, "accepted event")
        ),
        Diagnostic::StoreVerified => f.write_str(STORE_VERIFIED),
        Diagnostic::QueueAdopted { path, events } => write_adopted(f, path, *events),
        Diagnostic::Evicted { events, for_age } => {
            let events = count(*events, "queued event");
            let why = if *for_age {
                "older than Config::max_queue_age (POSTHOG_MAX_QUEUE_AGE)"
            } else {
                "to make room for newer ones (OverflowPolicy::DropOldest); raise Config::max_queue_bytes (POSTHOG_MAX_QUEUE_BYTES) to keep more"
            };
            write!(f, "{events} deleted without being delivered{within}: {why}")
        }
        Diagnostic::QueueDirEphemeral { path, what } => write!(
            f,
            "the queue directory {} is on {what}; set Config::queue_dir (POSTHOG_QUEUE_DIR) to a directory on a persistent local disk",
            path.display()
        ),
        Diagnostic::QueueDirExposed { path, why } => write!(
            f,
            "other users can remove or replace the queue through {}: {why}; the queue is used all the same; restrict the owner and mode of that directory",
            path.display()
        ),
        Diagnostic::OrphanedQueue { path, owner, events, bytes } => {
            write_orphaned(f, path, owner.as_ref(), *events, *bytes)
        }
        Diagnostic::OrphanedQueues { path, queues, events, bytes: size } => write!(
            f,
            "not delivered either: {} ({}) in {} of other keys or hosts under {}; call Config::adopt_queue(key, host) or set POSTHOG_ADOPT_QUEUE=key@host for each to deliver \
             them, or remove the directories to discard them",
            count(*events, "event"),
            bytes(*size),
            count(*queues, "more queue"),
            path.display()
        ),
        Diagnostic::QueueSkipped { path, why } => {
            write!(f, "the queue in {} is skipped for now, with the events in it: {why}", path.display())
        }
        _ => Ok(()),
    }
}

fn write_adopted(f: &mut fmt::Formatter<'_>, path: &Path, events: u64) -> fmt::Result {
    let (events, path) = (count(events, "event"), path.display());
    write!(f, "this process now delivers {events} that another process left in {path}")
}

fn write_orphaned(
    f: &mut fmt::Formatter<'_>,
    path: &Path,
    owner: Option<&(String, String)>,
    events: u64,
    size: u64,
) -> fmt::Result {
    let whose = owner.map(|(key, host)| format!("the key {key} at {host}"));
    let (whose, path) = (whose.as_deref().unwrap_or("another key or host"), path.display());
    let (events, size) = (count(events, "event"), bytes(size));
    write!(
        f,
        "not delivered: {events} ({size}) of {whose}, because no process has that queue open; call Config::adopt_queue(key, host) or set POSTHOG_ADOPT_QUEUE=key@host to \
         deliver them, or remove {path} to discard them"
    )
}

fn write_panicked(f: &mut fmt::Formatter<'_>, callback: &str) -> fmt::Result {
    let then = match callback {
        "before_send" => "the event is dropped, because data that the hook removes may still be in it",
        _ => "the panic was caught and the client continues",
    };
    write!(f, "the program's {callback} callback panicked; {then}")
}

fn write_in_memory(f: &mut fmt::Formatter<'_>, path: &Path, problem: &str) -> fmt::Result {
    f.write_str("the queue is in memory only, because ")?;
    // The path is empty if no directory is configured; the problem says so.
    if !path.as_os_str().is_empty() {
        write!(f, "{} cannot be used: ", path.display())?;
    }
    write!(f, "{problem}; events are delivered, but those still queued when the process ends are lost")
}

fn write_floor(f: &mut fmt::Formatter<'_>, path: &Path, (free, floor): (u64, u64), volume: Option<u64>) -> fmt::Result {
    write!(
        f,
        "new events are dropped: the file system of {} has {} free, less than min_free_space ({}); queued events are kept and delivered; ",
        path.display(),
        bytes(free),
        bytes(floor)
    )?;
    match volume.filter(|size| *size <= floor) {
        Some(size) => {
            write!(
                f,
                "its total size is only {}: lower Config::min_free_space (POSTHOG_MIN_FREE_SPACE), or use a larger file system",
                bytes(size)
            )
        }
        None => f.write_str("free some space there, or lower Config::min_free_space (POSTHOG_MIN_FREE_SPACE)"),
    }
}

fn write_unread(f: &mut fmt::Formatter<'_>, path: Option<&Path>, why: &str) -> fmt::Result {
    match path {
        Some(path) => write!(f, "could not send all of crash report {}: {why}", path.display()),
        None => write!(f, "crashes are not reported for now: {why}"),
    }
}

/// A status with its reason, as they are shown together.
struct Response<'a>(u16, &'a str);

impl fmt::Display for Response<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Response(status, reason) = self;
        match (*status, reason.is_empty()) {
            // There was no response, and so no status.
            (0, _) => f.write_str(reason),
            (status, true) => write!(f, "HTTP status {status}"),
            (status, false) => write!(f, "HTTP status {status}: {reason}"),
        }
    }
}
