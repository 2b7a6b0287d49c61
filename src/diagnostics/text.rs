//! What is said of each, in a line for a human: what happened, what the library does now, what the operator can do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::Diagnostic;
use crate::pipeline::DropReason;
use crate::sys::wording::{bytes, count, number, time};

const KEY_MISSING: &str = "POSTHOG_API_KEY is not set: this client is disabled and drops every event; set it to the project's API key \
                           (phc_...) to capture";
const HANDMADE: &str = "a $exception event was captured by hand: it is sent as it is, but PostHog groups exceptions only if \
                        Client::capture_exception makes them; use that instead";
const CHECKED: &str = "the previous owner of the queue was killed while it wrote to it, so the queue's file was checked; damage, if any \
                       was found, is reported separately";
const SYMBOLS_DISTRUSTED: &str = "the previous owner of the queue died while it looked up names of functions for a stack; stacks of that \
                                  build are sent with addresses only from now on: upload its symbols to PostHog, or give the process \
                                  more memory and deploy another build";

/// A line of the log: a diagnostic, and what it sums up.
pub(super) struct Line<'a> {
    pub(super) diagnostic: &'a Diagnostic,
    /// Diagnostics that it stands for besides its own.
    pub(super) others: u64,
    /// The time that it sums up, if it does.
    pub(super) period: Option<Duration>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(f, self, Within(None))
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = Within(self.period);
        write_text(f, self.diagnostic, within)?;
        let is_summed = matches!(
            self.diagnostic,
            Diagnostic::Dropped { .. }
                | Diagnostic::Evicted { .. }
                | Diagnostic::Missing { .. }
                | Diagnostic::LostWithProcess { .. }
                | Diagnostic::Warned { .. }
                | Diagnostic::FlagsUnanswered { .. }
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
        // Of what was held back for less than a second no time is worth saying.
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
        | Diagnostic::EndpointRecovered
        | Diagnostic::QuotaLimited { .. }
        | Diagnostic::Warned { .. }
        | Diagnostic::LeftOnDisk { .. }
        | Diagnostic::Network { .. } => write_delivery(f, diagnostic, within),
        Diagnostic::StorageFailing { .. }
        | Diagnostic::StorageRecovered
        | Diagnostic::InMemory { .. }
        | Diagnostic::LowDiskSpace { .. }
        | Diagnostic::LostWithProcess { .. }
        | Diagnostic::Salvaged { .. }
        | Diagnostic::Missing { .. }
        | Diagnostic::StoreVerified
        | Diagnostic::Evicted { .. }
        | Diagnostic::Ephemeral { .. }
        | Diagnostic::Exposed { .. }
        | Diagnostic::OrphanedQueue { .. }
        | Diagnostic::OrphanedQueues { .. }
        | Diagnostic::ShardSkipped { .. } => write_queue(f, diagnostic, within),
        Diagnostic::Dropped { reason, event, detail, count } => {
            write_dropped(f, (*reason, event, detail, *count), within)
        }
        Diagnostic::KeyMissing => f.write_str(KEY_MISSING),
        Diagnostic::HostReplaced { given, used } => write!(
            f,
            "the host {given} is PostHog's app; events and flags go to {used}, its ingestion host: set the host to that"
        ),
        Diagnostic::CallbackPanicked { callback } => write_panicked(f, callback),
        Diagnostic::CrashReportUnreadable { path, why } => write_unread(f, path.as_deref(), why),
        Diagnostic::SymbolsUntrusted => f.write_str(SYMBOLS_DISTRUSTED),
        Diagnostic::Invalid { what } => f.write_str(what),
        Diagnostic::ManualException => f.write_str(HANDMADE),
        Diagnostic::FlagsUnanswered { why, requests } => {
            let requests = count(*requests, "request");
            write!(f, "{requests} for feature flags got no answer{within}: {why}; known values or defaults are used")
        }
        Diagnostic::FlagsUnreadable { keys } => {
            write!(f, "feature flags that cannot be read have no value: {}; all others are evaluated", keys.join(", "))
        }
        Diagnostic::FlagDefinitionsUnavailable { why } => f.write_str(why),
        Diagnostic::FlagDefinitionsRecovered => f.write_str("feature flag definitions are loaded again"),
        Diagnostic::FlagCacheFailed { operation: "keep", why } => {
            write!(f, "feature flag definitions could not be stored for the next start: {why}; it is tried again")
        }
        Diagnostic::FlagCacheFailed { operation, why } => {
            write!(f, "the program's provider of feature flag definitions failed ({operation}): {why}")
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
                "PostHog rejected event {uuid} ({}); it is kept as a dead letter and not sent again",
                Said(*status, reason)
            )
        }
        Diagnostic::Quarantined { uuid, status, reason } => write!(
            f,
            "event {uuid} is not accepted ({}); it stays queued and is tried again later, and delivery goes on without it",
            Said(*status, reason)
        ),
        Diagnostic::EndpointFailing { reason } => {
            write!(f, "events cannot be delivered and stay queued; delivery is tried again: {reason}")
        }
        Diagnostic::NotPostHog { status, snippet } => write!(
            f,
            "the server that answers (HTTP status {status}) is not PostHog; events stay queued and delivery is tried again; check \
             Config::host, which must be the ingestion host without /batch, and whether a proxy or a captive portal is in between; the \
             answer begins: {snippet}"
        ),
        Diagnostic::Paused { status, reason, by_posthog } => write_paused(f, *status, reason, *by_posthog),
        Diagnostic::EndpointRecovered => f.write_str("events are delivered again"),
        Diagnostic::QuotaLimited { kinds } => write!(
            f,
            "PostHog takes requests but discards what is over quota ({}); those events count as delivered; raise the limit in PostHog's \
             billing settings",
            kinds.join(", ")
        ),
        Diagnostic::Warned { uuid, events, details } => {
            let events = count(*events, "event");
            write!(f, "PostHog accepted {events} with a warning{within}: {details} (one of them is {uuid})")
        }
        Diagnostic::LeftOnDisk { events, path, why } => write!(
            f,
            "{} not delivered at shutdown: {why}; what is left stays in {} and is sent by the next process that opens this queue",
            count(*events, "event"),
            path.display()
        ),
        Diagnostic::Network { what } => f.write_str(what),
        _ => Ok(()),
    }
}

fn write_paused(f: &mut fmt::Formatter<'_>, status: u16, reason: &str, by_posthog: bool) -> fmt::Result {
    let said = Said(status, reason);
    let (what, remedy) = match (by_posthog, status) {
        (false, _) => (
            "the server answers, not in PostHog's words, that nothing may pass",
            "check Config::host, and proxies and firewalls on the way",
        ),
        (true, 402) => ("PostHog's quota is used up", "raise the limit in PostHog's billing settings"),
        (true, 415) => ("PostHog does not accept the encoding of requests", "choose another Config::compression"),
        (true, _) => {
            ("PostHog rejects the API key", "check the project's API key (phc_...) and that Config::host is its region")
        }
    };
    write!(f, "{what} ({said}); events stay queued and delivery is tried again; {remedy}")
}

fn write_queue(f: &mut fmt::Formatter<'_>, diagnostic: &Diagnostic, within: Within) -> fmt::Result {
    match diagnostic {
        Diagnostic::StorageFailing { problem } => write!(f, "the queue's storage fails: {problem}"),
        Diagnostic::StorageRecovered => f.write_str("the queue's storage works again"),
        Diagnostic::InMemory { path, problem } => write_in_memory(f, path, problem),
        Diagnostic::LowDiskSpace { path, free_bytes, floor_bytes, volume_bytes } => {
            write_floor(f, path, (*free_bytes, *floor_bytes), *volume_bytes)
        }
        Diagnostic::LostWithProcess { events } => write!(
            f,
            "{} lost{within}: the queue was in memory only, and the client ended before delivering what was in it",
            count(*events, "event")
        ),
        Diagnostic::Salvaged { path, why, lost } => {
            write!(f, "a damaged or foreign file was found in the queue ({why}) and renamed to {}; ", path.display())?;
            match lost {
                0 => f.write_str("the queue goes on without it"),
                lost => write!(f, "the queue goes on without {} of it that could not be read", count(*lost, "event")),
            }
        }
        Diagnostic::Missing { events, after_restart: true } => write!(
            f,
            "{} lost{within} in a power cut or a crash of the machine, before being synced to the disk (see Config::sync_interval)",
            count(*events, "accepted event")
        ),
        Diagnostic::Missing { events, after_restart: false } => write!(
            f,
            "{} lost{within}: the bytes on the disk are damaged or gone; check the disk, and whether somebody changes the queue's files",
            count(*events, "accepted event")
        ),
        Diagnostic::StoreVerified => f.write_str(CHECKED),
        Diagnostic::Evicted { events, for_age } => {
            let events = count(*events, "queued event");
            let why = if *for_age {
                "older than Config::max_queue_age"
            } else {
                "to make room for newer ones (OverflowPolicy::DropOldest)"
            };
            write!(f, "{events} deleted without being delivered{within}: {why}")
        }
        Diagnostic::Ephemeral { path, what } => write!(
            f,
            "the queue directory {} is on {what}; choose a directory on a local disk (queue_dir) to keep events longer",
            path.display()
        ),
        Diagnostic::Exposed { path, why } => write!(
            f,
            "other users can remove or replace the queue through {}: {why}; the queue is used all the same; restrict the directory's owner or mode",
            path.display()
        ),
        Diagnostic::OrphanedQueue { path, owner, events, bytes } => {
            write_orphaned(f, path, owner.as_ref(), *events, *bytes)
        }
        Diagnostic::OrphanedQueues { path, queues, events, bytes: size } => write!(
            f,
            "not delivered either: {} ({}) in {} of other keys or hosts under {}; call Config::adopt_queue(key, host) for each to have \
             them delivered, or remove the directories to give them up",
            count(*events, "event"),
            bytes(*size),
            count(*queues, "more queue"),
            path.display()
        ),
        Diagnostic::ShardSkipped { path, why } => {
            write!(f, "the queue in {} is left alone for now, with the events in it: {why}", path.display())
        }
        _ => Ok(()),
    }
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
        "not delivered: {events} ({size}) of {whose}, because no process has that queue open; call Config::adopt_queue(key, host) to \
         have them delivered, or remove {path} to give them up"
    )
}

fn write_panicked(f: &mut fmt::Formatter<'_>, callback: &str) -> fmt::Result {
    let then = match callback {
        "before_send" => "the event is dropped, because what the hook was to remove may still be in it",
        _ => "the panic was caught, and everything else goes on",
    };
    write!(f, "the program's {callback} callback panicked; {then}")
}

fn write_in_memory(f: &mut fmt::Formatter<'_>, path: &Path, problem: &str) -> fmt::Result {
    f.write_str("the queue is in memory only and ends with the process, because ")?;
    // Without a path where no directory is configured: then the problem says so.
    if !path.as_os_str().is_empty() {
        write!(f, "{} cannot be used: ", path.display())?;
    }
    write!(f, "{problem}; events are delivered, and those that are still queued when the process ends are lost")
}

fn write_floor(f: &mut fmt::Formatter<'_>, path: &Path, (free, floor): (u64, u64), volume: Option<u64>) -> fmt::Result {
    write!(
        f,
        "new events are dropped: the file system of {} has {} free, less than min_free_space ({}); what is queued is kept and delivered; ",
        path.display(),
        bytes(free),
        bytes(floor)
    )?;
    match volume.filter(|size| *size <= floor) {
        Some(size) => {
            write!(f, "it is {} large in all: lower Config::min_free_space, or use a larger one", bytes(size))
        }
        None => f.write_str("free some space there, or lower Config::min_free_space"),
    }
}

fn write_unread(f: &mut fmt::Formatter<'_>, path: Option<&Path>, why: &str) -> fmt::Result {
    match path {
        Some(path) => write!(f, "could not send all of crash report {}: {why}", path.display()),
        None => write!(f, "crashes are not reported for now: {why}"),
    }
}

/// A status, and what was said with it.
struct Said<'a>(u16, &'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Said(status, reason) = self;
        match (*status, reason.is_empty()) {
            // There was no answer, and so no status.
            (0, _) => f.write_str(reason),
            (status, true) => write!(f, "HTTP status {status}"),
            (status, false) => write!(f, "HTTP status {status}: {reason}"),
        }
    }
}
