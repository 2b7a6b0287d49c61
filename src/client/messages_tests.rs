//! Every text that a diagnostic has, in one place to be read: what happened, what the library does now, and what the operator can do,
//! where there is something. A variant that is added and has no line here fails the tests.
//!
//! What stands in for a `reason` or `problem` in them, and errors, have theirs in `messages_reasons_tests.rs`; advice for errors of the system in
//! `shard/advice_tests.rs`, causes of an unfinished shutdown in `worker/stop_tests.rs`, sums of what was held back in
//! `diagnostics/recorder_tests.rs`.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::diagnostics::Diagnostic as D;
use crate::pipeline::DropReason;

const UUID: Uuid = Uuid::from_u128(7);
const ID: &str = "00000000-0000-0000-0000-000000000007";

/// Left: what is recorded. Right: its text.
#[track_caller]
fn all_are(table: &[(D, &str)]) {
    for (diagnostic, text) in table {
        assert_eq!(diagnostic.to_string(), text.replace("{ID}", ID));
    }
}

/// One of each variant: a new one does not compile until it has a number here, and fails until a table has it.
fn number(diagnostic: &D) -> usize {
    match diagnostic {
        D::Dropped { .. } => 0,
        D::KeyMissing => 1,
        D::DeadLettered { .. } => 2,
        D::Quarantined { .. } => 3,
        D::EndpointFailing { .. } => 4,
        D::NotPostHog { .. } => 5,
        D::Paused { .. } => 6,
        D::EndpointRecovered => 7,
        D::QuotaLimited { .. } => 8,
        D::Warned { .. } => 9,
        D::CallbackPanicked { .. } => 10,
        D::StorageFailing { .. } => 11,
        D::StorageRecovered => 12,
        D::InMemory { .. } => 13,
        D::LostWithProcess { .. } => 14,
        D::Salvaged { .. } => 15,
        D::Missing { .. } => 16,
        D::StoreVerified => 17,
        D::Evicted { .. } => 18,
        D::Ephemeral { .. } => 19,
        D::OrphanedQueue { .. } => 20,
        D::OrphanedQueues { .. } => 21,
        D::ShardSkipped { .. } => 22,
        D::CrashReportUnreadable { .. } => 23,
        D::SymbolsUntrusted => 24,
        D::Invalid { .. } => 25,
        D::ManualException => 26,
        D::FlagsUnanswered { .. } => 27,
        D::FlagsUnreadable { .. } => 28,
        D::FlagDefinitionsUnavailable { .. } => 29,
        D::FlagDefinitionsRecovered => 30,
        D::FlagCacheFailed { .. } => 31,
        D::LeftOnDisk { .. } => 32,
        D::Network { .. } => 33,
        D::HostReplaced { .. } => 34,
        D::Exposed { .. } => 35,
        D::LowDiskSpace { .. } => 36,
    }
}

#[test]
fn every_diagnostic_has_its_text_here() {
    let tables = [delivery(), pauses(), queue(), directories(), surroundings(), program(), flags()];
    tables.iter().for_each(|table| all_are(table));
    let seen: BTreeSet<usize> = tables.iter().flatten().map(|(diagnostic, _)| number(diagnostic)).collect();
    assert_eq!(seen, (0..=36).collect());
}

fn delivery() -> Vec<(D, &'static str)> {
    vec![
        (
            D::DeadLettered { uuid: UUID, status: 400, reason: "event submitted without a distinct_id".into() },
            "PostHog rejected event {ID} (HTTP status 400: event submitted without a distinct_id); it is kept as a dead letter and not \
             sent again",
        ),
        (
            D::DeadLettered { uuid: UUID, status: 0, reason: "its record is damaged: it is cut short".into() },
            "event {ID} cannot be read from the queue (its record is damaged: it is cut short) and was not sent; it is kept as a dead \
             letter",
        ),
        (
            D::Quarantined { uuid: UUID, status: 413, reason: String::new() },
            "event {ID} is not accepted (HTTP status 413); it stays queued and is tried again later, and delivery goes on without it",
        ),
        (
            D::Quarantined { uuid: UUID, status: 0, reason: "the connection was closed before an answer came".into() },
            "event {ID} is not accepted (the connection was closed before an answer came); it stays queued and is tried again later, and \
             delivery goes on without it",
        ),
        (
            D::EndpointFailing { reason: "HTTP status 503: down for repairs".into() },
            "events cannot be delivered and stay queued; delivery is tried again: HTTP status 503: down for repairs",
        ),
        (
            D::NotPostHog { status: 200, snippet: "<html>welcome".into() },
            "the server that answers (HTTP status 200) is not PostHog; events stay queued and delivery is tried again; check \
             Config::host, which must be the ingestion host without /batch, and whether a proxy or a captive portal is in between; the \
             answer begins: <html>welcome",
        ),
        (D::EndpointRecovered, "events are delivered again"),
        (
            D::QuotaLimited { kinds: vec!["events".into(), "recordings".into()] },
            "PostHog takes requests but discards what is over quota (events, recordings); those events count as delivered; raise the \
             limit in PostHog's billing settings",
        ),
        (
            D::Warned { uuid: UUID, events: 1, details: "person_processing_disabled".into() },
            "PostHog accepted 1 event with a warning: person_processing_disabled (one of them is {ID})",
        ),
        (
            D::LeftOnDisk {
                events: 2,
                path: "/q/ab/shard-0".into(),
                why: "requests are refused (HTTP status 401: no)".into(),
            },
            "2 events not delivered at shutdown: requests are refused (HTTP status 401: no); what is left stays in /q/ab/shard-0 and is \
             sent by the next process that opens this queue",
        ),
        (
            D::Network { what: "HTTP_PROXY is ignored: it names no host".into() },
            "HTTP_PROXY is ignored: it names no host",
        ),
    ]
}

fn pauses() -> Vec<(D, &'static str)> {
    let paused = |status, reason: &str, by_posthog| D::Paused { status, reason: reason.into(), by_posthog };
    vec![
        (
            paused(401, "API key is not valid", true),
            "PostHog rejects the API key (HTTP status 401: API key is not valid); events stay queued and delivery is tried again; check \
             the project's API key (phc_...) and that Config::host is its region",
        ),
        (
            paused(402, "billing limit", true),
            "PostHog's quota is used up (HTTP status 402: billing limit); events stay queued and delivery is tried again; raise the limit \
             in PostHog's billing settings",
        ),
        (
            paused(415, "unsupported_content_type", true),
            "PostHog does not accept the encoding of requests (HTTP status 415: unsupported_content_type); events stay queued and \
             delivery is tried again; choose another Config::compression",
        ),
        (
            paused(403, "<html>", false),
            "the server answers, not in PostHog's words, that nothing may pass (HTTP status 403: <html>); events stay queued and delivery \
             is tried again; check Config::host, and proxies and firewalls on the way",
        ),
    ]
}

fn queue() -> Vec<(D, &'static str)> {
    vec![
        (
            D::StorageFailing { problem: "/q: Input/output error (os error 5): the disk reports an error".into() },
            "the queue's storage fails: /q: Input/output error (os error 5): the disk reports an error",
        ),
        (D::StorageRecovered, "the queue's storage works again"),
        (
            D::InMemory { path: "/q".into(), problem: "the queue's directory was deleted".into() },
            "the queue is in memory only and ends with the process, because /q cannot be used: the queue's directory was deleted; events \
             are delivered, and those that are still queued when the process ends are lost",
        ),
        (
            D::LostWithProcess { events: 1 },
            "1 event lost: the queue was in memory only, and the client ended before delivering what was in it",
        ),
        (
            D::Salvaged { path: "/q/damaged-7".into(), why: "its header is damaged".into(), lost: 0 },
            "a damaged or foreign file was found in the queue (its header is damaged) and renamed to /q/damaged-7; the queue goes on \
             without it",
        ),
        (
            D::Salvaged { path: "/q/damaged-7".into(), why: "the file is empty".into(), lost: 2 },
            "a damaged or foreign file was found in the queue (the file is empty) and renamed to /q/damaged-7; the queue goes on without \
             2 events of it that could not be read",
        ),
        (
            D::Missing { events: 2, after_restart: true },
            "2 accepted events lost in a power cut or a crash of the machine, before being synced to the disk (see \
             Config::sync_interval)",
        ),
        (
            D::Missing { events: 1, after_restart: false },
            "1 accepted event lost: the bytes on the disk are damaged or gone; check the disk, and whether somebody changes the queue's \
             files",
        ),
        (
            D::StoreVerified,
            "the previous owner of the queue was killed while it wrote to it, so the queue's file was checked; damage, if any was found, \
             is reported separately",
        ),
        (
            D::Evicted { events: 1_500, for_age: false },
            "1,500 queued events deleted without being delivered: to make room for newer ones (OverflowPolicy::DropOldest)",
        ),
        (
            D::Evicted { events: 1, for_age: true },
            "1 queued event deleted without being delivered: older than Config::max_queue_age",
        ),
    ]
}

fn directories() -> Vec<(D, &'static str)> {
    vec![
        (
            D::InMemory { path: "".into(), problem: "no queue directory is configured".into() },
            "the queue is in memory only and ends with the process, because no queue directory is configured; events are delivered, and \
             those that are still queued when the process ends are lost",
        ),
        (
            D::LowDiskSpace {
                path: "/q".into(),
                free_bytes: 12 << 20,
                floor_bytes: 32 << 20,
                volume_bytes: Some(1 << 30),
            },
            "new events are dropped: the file system of /q has 12 MiB free, less than min_free_space (32 MiB); what is queued is kept and \
             delivered; free some space there, or lower Config::min_free_space",
        ),
        (
            D::LowDiskSpace {
                path: "/q".into(),
                free_bytes: 12 << 20,
                floor_bytes: 32 << 20,
                volume_bytes: Some(20 << 20),
            },
            "new events are dropped: the file system of /q has 12 MiB free, less than min_free_space (32 MiB); what is queued is kept and \
             delivered; it is 20 MiB large in all: lower Config::min_free_space, or use a larger one",
        ),
        (
            D::Exposed { path: "/srv".into(), why: "every user may write to it".into() },
            "other users can remove or replace the queue through /srv: every user may write to it; the queue is used all the same; \
             restrict the directory's owner or mode",
        ),
        (
            D::HostReplaced { given: "https://eu.posthog.com".into(), used: "https://eu.i.posthog.com".into() },
            "the host https://eu.posthog.com is PostHog's app; events and flags go to https://eu.i.posthog.com, its ingestion host: set \
             the host to that",
        ),
    ]
}

fn surroundings() -> Vec<(D, &'static str)> {
    let owner = Some(("phc_abcd...".to_owned(), "https://eu.i.posthog.com".to_owned()));
    vec![
        (
            D::Ephemeral {
                path: "/q".into(),
                what: "a container's own layer: events in it are lost with the container",
            },
            "the queue directory /q is on a container's own layer: events in it are lost with the container; choose a directory on a \
             local disk (queue_dir) to keep events longer",
        ),
        (
            D::OrphanedQueue { path: "/q/cd".into(), owner, events: 1, bytes: 312 },
            "not delivered: 1 event (312 bytes) of the key phc_abcd... at https://eu.i.posthog.com, because no process has that queue \
             open; call Config::adopt_queue(key, host) to have them delivered, or remove /q/cd to give them up",
        ),
        (
            D::OrphanedQueues { path: "/q".into(), queues: 3, events: 60, bytes: 5 << 20 },
            "not delivered either: 60 events (5 MiB) in 3 more queues of other keys or hosts under /q; call Config::adopt_queue(key, \
             host) for each to have them delivered, or remove the directories to give them up",
        ),
        (
            D::ShardSkipped { path: "/q/ab/shard-1".into(), why: "a newer version of this library wrote it".into() },
            "the queue in /q/ab/shard-1 is left alone for now, with the events in it: a newer version of this library wrote it",
        ),
        (
            D::CrashReportUnreadable {
                path: Some("/q/crash-3".into()),
                why: "12 bytes of it are incomplete or damaged; the other records are sent".into(),
            },
            "could not send all of crash report /q/crash-3: 12 bytes of it are incomplete or damaged; the other records are sent",
        ),
        (
            D::CrashReportUnreadable {
                path: None,
                why: "the thread that reads crash reports cannot be started (EAGAIN); earlier reports are read at the next start".into(),
            },
            "crashes are not reported for now: the thread that reads crash reports cannot be started (EAGAIN); earlier reports are read at the next start",
        ),
        (
            D::SymbolsUntrusted,
            "the previous owner of the queue died while it looked up names of functions for a stack; stacks of that build are sent \
             with addresses only from now on: upload its symbols to PostHog, or give the process more memory and deploy another build",
        ),
    ]
}

fn program() -> Vec<(D, &'static str)> {
    let dropped = |event: &str, detail: &str, count| D::Dropped {
        reason: DropReason::QueueFull,
        event: event.into(),
        detail: detail.into(),
        count,
    };
    vec![
        (dropped("tick", "queue is full", 1), r#"1 event dropped ("tick"): queue is full"#),
        (dropped("tick", "queue is full", 62_763), r#"62,763 events dropped (one of them "tick"): queue is full"#),
        (dropped("", "", 2), "2 events dropped: the queue is full"),
        (
            D::KeyMissing,
            "POSTHOG_API_KEY is not set: this client is disabled and drops every event; set it to the project's API key (phc_...) to \
             capture",
        ),
        (
            D::CallbackPanicked { callback: "before_send" },
            "the program's before_send callback panicked; the event is dropped, because what the hook was to remove may still be in it",
        ),
        (
            D::CallbackPanicked { callback: "on_delivery" },
            "the program's on_delivery callback panicked; the panic was caught, and everything else goes on",
        ),
        (
            D::Invalid { what: "super property \"x\" was left out: it nests more than 96 levels deep".into() },
            "super property \"x\" was left out: it nests more than 96 levels deep",
        ),
        (
            D::ManualException,
            "a $exception event was captured by hand: it is sent as it is, but PostHog groups exceptions only if \
             Client::capture_exception makes them; use that instead",
        ),
    ]
}

fn flags() -> Vec<(D, &'static str)> {
    let cache = |operation| D::FlagCacheFailed { operation, why: "it panicked".into() };
    vec![
        (
            D::FlagsUnanswered { why: "no answer in time".into(), requests: 1 },
            "1 request for feature flags got no answer: no answer in time; known values or defaults are used",
        ),
        (
            D::FlagsUnreadable { keys: vec!["a".into(), "b".into()] },
            "feature flags that cannot be read have no value: a, b; all others are evaluated",
        ),
        (
            D::FlagDefinitionsUnavailable { why: "feature flag definitions cannot be loaded: no connection".into() },
            "feature flag definitions cannot be loaded: no connection",
        ),
        (D::FlagDefinitionsRecovered, "feature flag definitions are loaded again"),
        (
            cache("keep"),
            "feature flag definitions could not be stored for the next start: it panicked; it is tried again",
        ),
        (cache("read"), "the program's provider of feature flag definitions failed (read): it panicked"),
    ]
}
