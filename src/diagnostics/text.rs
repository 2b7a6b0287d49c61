//! What is said of each, in a line for a human.

use std::fmt;
use std::path::Path;

use super::Diagnostic;

const SYMBOLS_DISTRUSTED: &str =
    "the last owner of the queue died while it looked up names for a stack; stacks are sent with addresses alone";
const HANDMADE: &str =
    "a $exception event was captured by hand; PostHog groups exceptions only if Client::capture_exception makes them";
const REFUSED_BY_POSTHOG: &str = "PostHog refuses the key, the quota or the encoding";
const REFUSED_BY_A_STRANGER: &str =
    "whoever answers at the host, not in PostHog's words, lets nothing pass; check Config::host and proxies on the way";

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Diagnostic::Dropped { reason, event, detail, count } => {
                write!(f, "{count} event(s) dropped ({}), the last one {event:?}: {detail}", reason.name())
            }
            Diagnostic::KeyMissing => f.write_str("POSTHOG_API_KEY is not set: every event is dropped"),
            Diagnostic::HostReplaced { given, used } => write!(
                f,
                "the host {given} is PostHog's app; events and flags go to {used}, its ingestion host: set the host to that"
            ),
            Diagnostic::Buried { uuid, status, reason } => {
                write!(f, "event {uuid} was refused for good ({status}: {reason}); it is among the dead letters")
            }
            Diagnostic::Suspected { uuid, status, reason } => {
                write!(f, "event {uuid} was refused ({status}: {reason}) and is set aside until others are accepted")
            }
            Diagnostic::EndpointFailing { reason } => write!(f, "events cannot be sent and wait on disk: {reason}"),
            Diagnostic::NotPostHog { status, snippet } => {
                write!(
                    f,
                    "whoever answers ({status}) is not PostHog, events wait on disk; check Config::host: it must be the ingestion host, without /batch: {snippet}"
                )
            }
            Diagnostic::Paused { status, reason, by_posthog } => {
                let who = if *by_posthog { REFUSED_BY_POSTHOG } else { REFUSED_BY_A_STRANGER };
                write!(f, "{who} ({status}: {reason}); events wait on disk")
            }
            Diagnostic::EndpointRecovered => f.write_str("events are sent again"),
            Diagnostic::QuotaLimited { kinds } => write!(f, "PostHog drops {} for want of quota", kinds.join(", ")),
            Diagnostic::Warned { uuid, events, details } => {
                write!(f, "PostHog took {events} event(s), {uuid} the first of them, with a warning: {details}")
            }
            Diagnostic::CallbackPanicked { callback } => write!(f, "the program's {callback} panicked"),
            Diagnostic::StorageFailing { problem } => write!(f, "the queue's files cannot be used: {problem}"),
            Diagnostic::StorageRecovered => f.write_str("the queue's files work again"),
            Diagnostic::InMemory { path, problem } => {
                write!(f, "the queue is in memory and ends with the process, not in {}: {problem}", path.display())
            }
            Diagnostic::LostWithProcess { events } => {
                write!(f, "{events} events that were queued in memory are lost with it")
            }
            Diagnostic::SetAside { path, why, lost } => {
                write!(f, "a damaged file was set aside as {}: {why}; {lost} events could not be saved", path.display())
            }
            Diagnostic::Missing { events, after_restart } => write_missing(f, *events, *after_restart),
            Diagnostic::Checked => f.write_str("the last owner died while it wrote to the queue; the file was checked"),
            Diagnostic::Evicted { events, for_age } => {
                let why = if *for_age { "for their age" } else { "for want of room" };
                write!(f, "{events} queued events were given up {why}")
            }
            Diagnostic::Ephemeral { path, what } => write!(f, "the queue directory {} is on {what}", path.display()),
            Diagnostic::Exposed { path, why } => write_exposed(f, path, why),
            Diagnostic::StrandedQueue { path, owner, events, .. } => write_stranded(f, path, owner.as_ref(), *events),
            Diagnostic::ShardSkipped { path, why } => write_skipped(f, path, why),
            Diagnostic::LastWordsUnread { path, why } => write_unread(f, path.as_deref(), why),
            Diagnostic::SymbolsDistrusted => f.write_str(SYMBOLS_DISTRUSTED),
            Diagnostic::Invalid { what } => write!(f, "left out: {what}"),
            Diagnostic::HandmadeException => f.write_str(HANDMADE),
            Diagnostic::FlagsUnanswered { why, requests } => {
                write!(f, "PostHog gave no answer about flags, {requests} time(s): {why}")
            }
            Diagnostic::FlagsUnreadable { keys } => write!(f, "flags that cannot be read: {}", keys.join(", ")),
            Diagnostic::FlagDefinitionsUnavailable { why } => f.write_str(why),
            Diagnostic::FlagDefinitionsRecovered => f.write_str("definitions of flags are loaded again"),
            Diagnostic::FlagCacheFailed { operation, why } => {
                write!(f, "a cache of flag definitions failed ({operation}): {why}")
            }
            Diagnostic::LeftOnDisk { events } => {
                write!(f, "the shutdown ran out of time; {events} events are left on disk for the next start")
            }
            Diagnostic::Network { what } => f.write_str(what),
        }
    }
}

fn write_missing(f: &mut fmt::Formatter<'_>, events: u64, after_restart: bool) -> fmt::Result {
    if after_restart {
        write!(f, "{events} accepted events were lost with a power cut, before they were synced")
    } else {
        write!(f, "{events} accepted events were damaged")
    }
}

fn write_stranded(
    f: &mut fmt::Formatter<'_>,
    path: &Path,
    owner: Option<&(String, String)>,
    events: u64,
) -> fmt::Result {
    let whose = owner.map(|(key, host)| format!("the key {key} at {host}"));
    let (whose, path) = (whose.as_deref().unwrap_or("another key or host"), path.display());
    let remedy = "call Config::also_deliver(key, host) to have them sent, or remove";
    write!(f, "{events} events wait for {whose}; {remedy} {path} to give them up")
}

fn write_skipped(f: &mut fmt::Formatter<'_>, path: &Path, why: &str) -> fmt::Result {
    write!(f, "the queue in {} is left alone and its events stay there: {why}", path.display())
}

fn write_exposed(f: &mut fmt::Formatter<'_>, path: &Path, why: &str) -> fmt::Result {
    write!(f, "other users may take away or replace the queue through {}: {why}", path.display())
}

fn write_unread(f: &mut fmt::Formatter<'_>, path: Option<&Path>, why: &str) -> fmt::Result {
    match path {
        Some(path) => write!(f, "the last words in {} are not all told: {why}", path.display()),
        None => write!(f, "last words of crashes cannot be told: {why}"),
    }
}
