//! The text of every diagnostic, in one place for review: what happened, what the library does now, and what the
//! operator can do. A variant without a line here fails the tests.
//!
//! The second half has the texts of reasons and errors. Advice for errors of the system is tested beside the queue, and
//! sums of several diagnostics in `recorder/tests.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use crate::error::Error;
use crate::pipeline::{Circumstances, Outage};
use crate::report::{Backlog, Diagnostic as D, DropReason, PersistError};

const UUID: Uuid = Uuid::from_u128(7);
const ID: &str = "00000000-0000-0000-0000-000000000007";

/// Pairs of a diagnostic and its text.
#[track_caller]
fn must_have_texts(table: &[(D, &str)]) {
    for (diagnostic, text) in table {
        assert_eq!(diagnostic.to_string(), text.replace("{ID}", ID));
    }
}

/// A number for each variant. A new variant does not compile until it has one, and fails the test until a table
/// contains it.
fn number(diagnostic: &D) -> usize {
    match diagnostic {
        D::Dropped { .. } => 0,
        D::KeyMissing => 1,
        D::DeadLettered { .. } => 2,
        D::Quarantined { .. } => 3,
        D::EndpointFailing { .. } => 4,
        D::NotPostHog { .. } => 5,
        D::Paused { .. } => 6,
        D::EndpointRecovered { .. } => 7,
        D::QuotaLimited { .. } => 8,
        D::DeliveryWarning { .. } => 9,
        D::CallbackPanicked { .. } => 10,
        D::StorageFailing { .. } => 11,
        D::StorageRecovered => 12,
        D::InMemory { .. } => 13,
        D::MemoryQueueLost { .. } => 14,
        D::QueueSalvaged { .. } => 15,
        D::EventsLost { .. } => 16,
        D::StoreVerified => 17,
        D::Evicted { .. } => 18,
        D::QueueDirEphemeral { .. } => 19,
        D::OrphanedQueue { .. } => 20,
        D::OrphanedQueues { .. } => 21,
        D::QueueSkipped { .. } => 22,
        D::CrashReportUnreadable { .. } => 23,
        D::SymbolsUntrusted => 24,
        D::InputIgnored { .. } => 25,
        D::ManualException => 26,
        D::FlagRequestsFailed { .. } => 27,
        D::FlagsInvalid { .. } => 28,
        D::FlagDefinitionsUnavailable { .. } => 29,
        D::FlagDefinitionsRecovered => 30,
        D::FlagCacheFailed { .. } => 31,
        D::LeftOnDisk { .. } => 32,
        D::NetworkConfig { .. } => 33,
        D::HostReplaced { .. } => 34,
        D::QueueDirExposed { .. } => 35,
        D::LowDiskSpace { .. } => 36,
        D::QueueAdopted { .. } => 37,
    }
}

#[test]
fn every_diagnostic_has_a_pinned_text() {
    let tables = [delivery(), pauses(), queue(), directories(), surroundings(), program(), flags()];
    tables.iter().for_each(|table| must_have_texts(table));
    let seen: BTreeSet<usize> = tables.iter().flatten().map(|(diagnostic, _)| number(diagnostic)).collect();
    assert_eq!(seen, (0..=37).collect());
}

/// An operator changes settings by variables, and may not know the program's code.
#[test]
fn a_text_that_names_a_setting_names_its_variable() {
    let tables = [delivery(), pauses(), queue(), directories(), surroundings(), program(), flags()];
    for (diagnostic, _) in tables.iter().flatten() {
        let text = diagnostic.to_string();
        let named = text.split("Config::").skip(1);
        for setting in named.filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next()) {
            let variable = format!("POSTHOG_{}", setting.to_ascii_uppercase());
            assert!(!crate::config::variable_names().contains(&&*variable) || text.contains(&variable), "{text}");
        }
    }
}

fn backlog() -> Backlog {
    let next_attempt = Some(Duration::from_secs(300));
    Backlog { host: "https://eu.i.posthog.com".into(), events: 1_234, next_attempt, is_cooldown: false }
}

fn delivery() -> Vec<(D, &'static str)> {
    vec![
        (
            D::DeadLettered { uuid: UUID, status: 400, reason: "event submitted without a distinct_id".into() },
            "PostHog rejected event {ID} (HTTP status 400: event submitted without a distinct_id); it is kept as a dead letter and not \
             sent again; see Client::dead_letters",
        ),
        (
            D::DeadLettered { uuid: UUID, status: 0, reason: "its record is damaged: it is cut short".into() },
            "event {ID} cannot be read from the queue (its record is damaged: it is cut short) and was not sent; it is kept as a dead \
             letter",
        ),
        (
            D::Quarantined { uuid: UUID, status: 413, reason: String::new() },
            "event {ID} was not accepted (HTTP status 413); it stays queued and is tried again later, and delivery continues without it",
        ),
        (
            D::Quarantined { uuid: UUID, status: 0, reason: "the connection was closed before an answer came".into() },
            "event {ID} was not accepted (the connection was closed before an answer came); it stays queued and is tried again later, and \
             delivery continues without it",
        ),
        (
            D::EndpointFailing { reason: "HTTP status 503: down for repairs".into(), backlog: backlog() },
            "events cannot be delivered to https://eu.i.posthog.com and stay queued (1,234 waiting); next attempt in 5 min: HTTP status \
             503: down for repairs",
        ),
        (
            D::EndpointFailing { reason: "HTTP status 503".into(), backlog: Backlog::default() },
            "events cannot be delivered and stay queued; delivery is tried again: HTTP status 503",
        ),
        (
            D::NotPostHog { status: 200, snippet: "<html>welcome".into(), backlog: backlog() },
            "the server that responds at https://eu.i.posthog.com (HTTP status 200) is not PostHog; events stay queued (1,234 waiting); \
             next attempt in 5 min; check Config::host (POSTHOG_HOST), which must be the ingestion host without /batch, and any proxy or captive portal in between; the response \
             begins: <html>welcome",
        ),
        (
            D::EndpointRecovered { after: Duration::from_secs(7_260), backlog: backlog() },
            "events are delivered again to https://eu.i.posthog.com, after 2 h of failures (1,234 waiting)",
        ),
        (D::EndpointRecovered { after: Duration::ZERO, backlog: Backlog::default() }, "events are delivered again"),
        (
            D::QuotaLimited { kinds: vec!["events".into(), "recordings".into()] },
            "PostHog accepts requests but discards events over quota (events, recordings); those events count as delivered; raise the \
             limit in PostHog's billing settings",
        ),
        (
            D::DeliveryWarning { uuid: UUID, events: 1, details: "person_processing_disabled".into() },
            "PostHog accepted 1 event with a warning: person_processing_disabled (first event: {ID})",
        ),
        (
            D::LeftOnDisk {
                events: 2,
                path: "/q/ab/shard-0".into(),
                why: "requests are refused (HTTP status 401: no)".into(),
            },
            "2 events not delivered at shutdown: requests are refused (HTTP status 401: no); what remains is kept in \
             /q/ab/shard-0, and the next process that opens this queue sends it",
        ),
        (
            D::NetworkConfig { what: "HTTP_PROXY is ignored: it names no host".into() },
            "HTTP_PROXY is ignored: it names no host",
        ),
    ]
}

fn pauses() -> Vec<(D, &'static str)> {
    let paused = |status, reason: &str, by_posthog| D::Paused {
        status,
        reason: reason.into(),
        by_posthog,
        backlog: Backlog::default(),
    };
    let waiting = paused(401, "API key is not valid", true).with_backlog(backlog());
    vec![
        (
            waiting,
            "PostHog rejects the API key at https://eu.i.posthog.com (HTTP status 401: API key is not valid); events stay queued (1,234 \
             waiting); next attempt in 5 min; check the project's API key (phc_...) and that Config::host (POSTHOG_HOST) is its region",
        ),
        (
            paused(401, "API key is not valid", true),
            "PostHog rejects the API key (HTTP status 401: API key is not valid); events stay queued; delivery is tried again; check \
             the project's API key (phc_...) and that Config::host (POSTHOG_HOST) is its region",
        ),
        (
            paused(402, "billing limit", true),
            "PostHog's quota is used up (HTTP status 402: billing limit); events stay queued; delivery is tried again; raise the limit \
             in PostHog's billing settings",
        ),
        (
            paused(415, "unsupported_content_type", true),
            "PostHog does not accept the encoding of requests (HTTP status 415: unsupported_content_type); events stay queued; \
             delivery is tried again; choose another Config::compression (POSTHOG_COMPRESSION)",
        ),
        (
            paused(403, "<html>", false),
            "the server rejects all requests, and its response is not PostHog's (HTTP status 403: <html>); events stay queued; delivery \
             is tried again; check Config::host (POSTHOG_HOST), and proxies and firewalls on the way",
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
            "the queue is in memory only, because /q cannot be used: the queue's directory was deleted; events are delivered, but those \
             still queued when the process ends are lost",
        ),
        (
            D::MemoryQueueLost { events: 1 },
            "1 event lost: the queue was in memory only, and the client was closed before it was delivered",
        ),
        (
            D::QueueSalvaged { path: "/q/damaged-7".into(), why: "its header is damaged".into(), lost: 0 },
            "a damaged or foreign file of the queue (its header is damaged) was renamed to /q/damaged-7; the queue continues without it",
        ),
        (
            D::QueueSalvaged { path: "/q/damaged-7".into(), why: "the file is empty".into(), lost: 2 },
            "a damaged or foreign file of the queue (the file is empty) was renamed to /q/damaged-7; the queue continues without 2 events \
             that could not be read from it",
        ),
        (
            D::EventsLost { events: 2, after_restart: true },
            "2 accepted events lost in a power cut or a crash of the machine, before the sync; lower Config::sync_interval (POSTHOG_SYNC_INTERVAL), or await \
             Receipt::persisted for events that matter",
        ),
        (
            D::EventsLost { events: 1, after_restart: false },
            "1 accepted event lost: bytes on the disk are damaged or missing; check the disk, and whether another program changes the \
             queue's files",
        ),
        (
            D::StoreVerified,
            "the previous owner of the queue was killed during a write, so the queue's file was verified; any damage is reported \
             separately",
        ),
        (
            D::Evicted { events: 1_500, for_age: false },
            "1,500 queued events deleted without being delivered: to make room for newer ones (OverflowPolicy::DropOldest); raise \
             Config::max_queue_bytes (POSTHOG_MAX_QUEUE_BYTES) to keep more",
        ),
        (
            D::Evicted { events: 1, for_age: true },
            "1 queued event deleted without being delivered: older than Config::max_queue_age (POSTHOG_MAX_QUEUE_AGE)",
        ),
    ]
}

fn directories() -> Vec<(D, &'static str)> {
    vec![
        (
            D::InMemory { path: "".into(), problem: "no queue directory is configured".into() },
            "the queue is in memory only, because no queue directory is configured; events are delivered, but those still queued when the \
             process ends are lost",
        ),
        (
            D::LowDiskSpace {
                path: "/q".into(),
                free_bytes: 12 << 20,
                floor_bytes: 32 << 20,
                volume_bytes: Some(1 << 30),
            },
            "new events are dropped: the file system of /q has 12 MiB free, less than min_free_space (32 MiB); queued events are kept and \
             delivered; free some space there, or lower Config::min_free_space (POSTHOG_MIN_FREE_SPACE)",
        ),
        (
            D::LowDiskSpace {
                path: "/q".into(),
                free_bytes: 12 << 20,
                floor_bytes: 32 << 20,
                volume_bytes: Some(20 << 20),
            },
            "new events are dropped: the file system of /q has 12 MiB free, less than min_free_space (32 MiB); queued events are kept and \
             delivered; its total size is only 20 MiB: lower Config::min_free_space (POSTHOG_MIN_FREE_SPACE), or use a larger file system",
        ),
        (
            D::QueueDirExposed { path: "/srv".into(), why: "every user may write to it".into() },
            "other users can remove or replace the queue through /srv: every user may write to it; the queue is used all the same; \
             restrict the owner and mode of that directory",
        ),
        (
            D::HostReplaced { given: "https://eu.posthog.com".into(), used: "https://eu.i.posthog.com".into() },
            "the host https://eu.posthog.com is PostHog's app; events and flags are sent to its ingestion host https://eu.i.posthog.com \
             instead; set Config::host (POSTHOG_HOST) to that",
        ),
    ]
}

fn surroundings() -> Vec<(D, &'static str)> {
    let owner = Some(("phc_abcd...".to_owned(), "https://eu.i.posthog.com".to_owned()));
    vec![
        (
            D::QueueDirEphemeral {
                path: "/q".into(),
                what: "a container's own layer: events in it are lost with the container",
            },
            "the queue directory /q is on a container's own layer: events in it are lost with the container; set Config::queue_dir (POSTHOG_QUEUE_DIR) \
             to a directory on a persistent local disk",
        ),
        (
            D::OrphanedQueue { path: "/q/cd".into(), owner, events: 1, bytes: 312 },
            "not delivered: 1 event (312 bytes) of the key phc_abcd... at https://eu.i.posthog.com, because no process has that queue \
             open; call Config::adopt_queue(key, host) or set POSTHOG_ADOPT_QUEUE=key@host to deliver them, or remove /q/cd to discard them",
        ),
        (
            D::OrphanedQueues { path: "/q".into(), queues: 3, events: 60, bytes: 5 << 20 },
            "not delivered either: 60 events (5 MiB) in 3 more queues of other keys or hosts under /q; call Config::adopt_queue(key, host) or set POSTHOG_ADOPT_QUEUE=key@host \
             for each to deliver them, or remove the directories to discard them",
        ),
        (
            D::QueueSkipped { path: "/q/ab/shard-1".into(), why: "a newer version of this library wrote it".into() },
            "the queue in /q/ab/shard-1 is skipped for now, with the events in it: a newer version of this library wrote it",
        ),
        (
            D::CrashReportUnreadable {
                path: Some("/q/crash-3".into()),
                why: "12 bytes of it are incomplete or damaged; the other records are sent; the file is kept".into(),
            },
            "could not send all of crash report /q/crash-3: 12 bytes of it are incomplete or damaged; the other records are sent; the file is kept",
        ),
        (
            D::CrashReportUnreadable {
                path: None,
                why: "the thread that reads crash reports cannot be started (EAGAIN); earlier reports are read at the next start".into(),
            },
            "crashes are not reported for now: the thread that reads crash reports cannot be started (EAGAIN); earlier reports are read at the next start",
        ),
        (
            D::QueueAdopted { path: "/q/ab/shard-1".into(), events: 3 },
            "this process now delivers 3 events that another process left in /q/ab/shard-1",
        ),
        (
            D::SymbolsUntrusted,
            "the previous owner of the queue died while it resolved the symbols of a stack; stacks of that build are sent with addresses \
             only from now on; upload its symbols to PostHog, or give the process more memory and deploy another build",
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
            "the program's before_send callback panicked; the event is dropped, because data that the hook removes may still be in it",
        ),
        (
            D::CallbackPanicked { callback: "on_delivery" },
            "the program's on_delivery callback panicked; the panic was caught and the client continues",
        ),
        (
            D::InputIgnored { what: "super property \"x\" was left out: it nests more than 96 levels deep".into() },
            "super property \"x\" was left out: it nests more than 96 levels deep",
        ),
        (
            D::ManualException,
            "a $exception event was captured with Client::capture: it is sent as it is, but PostHog cannot group it with other \
             exceptions; use Client::capture_exception instead",
        ),
    ]
}

fn flags() -> Vec<(D, &'static str)> {
    let cache = |operation| D::FlagCacheFailed { operation, why: "it panicked".into() };
    vec![
        (
            D::FlagRequestsFailed { why: "no answer in time".into(), requests: 1 },
            "1 request for feature flags failed: no answer in time; last known values or defaults are used",
        ),
        (
            D::FlagsInvalid { keys: vec!["a".into(), "b".into()] },
            "invalid feature flags have no value: a, b; all others are evaluated",
        ),
        (
            D::FlagDefinitionsUnavailable { why: "feature flag definitions cannot be loaded: no connection".into() },
            "feature flag definitions cannot be loaded: no connection",
        ),
        (D::FlagDefinitionsRecovered, "feature flag definitions are loaded again"),
        (
            cache("keep"),
            "feature flag definitions could not be stored for the next start: it panicked; storing is tried again",
        ),
        (
            cache("read"),
            "the program's provider of feature flag definitions failed (read): it panicked; the loaded definitions stay in use",
        ),
    ]
}

#[test]
fn a_drop_names_the_bound_and_why_the_queue_is_full() {
    let at = Circumstances {
        dir: "/q/ab/shard-0".into(),
        journal_bytes: 8 << 20,
        max_queue_bytes: 64 << 20,
        min_free_space: 32 << 20,
        ..Circumstances::default()
    };
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let outage = Outage { host: "https://eu.i.posthog.com".into(), lasts: hours(4), said: "HTTP status 503".into() };
    let down = Circumstances { oldest: Some(hours(5)), outage: Some(outage), ..at.clone() };
    let ill = Circumstances { problem: Some("/q: the disk is full".into()), ..at.clone() };
    let many = Circumstances { max_queue_events: Some(10_000), ..at.clone() };
    for (circumstances, reason, text) in [
        (
            &down,
            DropReason::QueueFull,
            "queue is full (max_queue_bytes = 64 MiB); oldest event is 5 h old, endpoint https://eu.i.posthog.com has failed for 4 h \
             (HTTP status 503)",
        ),
        (
            &many,
            DropReason::QueueFull,
            "queue is full (max_queue_events = 10,000); events come faster than they are delivered, raise the bound",
        ),
        (
            &at,
            DropReason::JournalFull,
            "journal is full (journal_bytes = 8 MiB): events come faster than they can be stored; raise Config::journal_bytes (POSTHOG_JOURNAL_BYTES)",
        ),
        (
            &ill,
            DropReason::JournalFull,
            "journal is full (journal_bytes = 8 MiB), and cannot be moved to the queue: /q: the disk is full",
        ),
        (
            &at,
            DropReason::JournalBusy,
            "the journal's lock was not free within 50 ms: the thread that holds it was stopped, or the machine is overloaded",
        ),
        (
            &at,
            DropReason::DiskFull,
            "the file system of /q/ab/shard-0 has less free than min_free_space (32 MiB); free some space, or lower \
             Config::min_free_space (POSTHOG_MIN_FREE_SPACE)",
        ),
        (&ill, DropReason::Storage, "the journal in /q/ab/shard-0 could not be written: /q: the disk is full"),
        (&at, DropReason::Closed, "the client was shut down"),
    ] {
        assert_eq!(circumstances.explain(reason), text);
    }
}

#[test]
fn every_drop_reason_has_a_pinned_text() {
    let texts: Vec<String> = DropReason::ALL.map(|reason| reason.to_string()).into();
    assert_eq!(
        texts,
        [
            "the client is disabled",
            "the client was shut down",
            "the event's name is blank",
            "the distinct id is blank",
            "a property or group cannot be serialized",
            "the timestamp is before 1677 or after 2262",
            "the event is larger than max_event_bytes",
            "a before_send hook dropped the event",
            "a before_send hook panicked",
            "it was captured by a callback of a nested capture, or on a thread of this library",
            "the journal is full: events arrive faster than they can be stored, or storage fails",
            "the journal's lock was not free in time",
            "the queue is full",
            "the file system has less free space than min_free_space",
            "the journal's file could not be written, or another process has taken it over",
            "this forked child could not open a queue",
            "the client has opted out of capturing",
            "the alias is blank",
            "the group's type is blank",
            "the group's key is blank",
            "there is no property to set or to remove",
            "posthog::init was not called yet",
            "more exceptions of this type and place than the rate limit allows",
        ]
    );
}

#[test]
fn every_error_has_a_pinned_text() {
    let system = std::io::Error::from_raw_os_error;
    for (error, text) in [
        (
            Error::config("flush_at", "must be from 1 to 1000000; it is 0"),
            "invalid configuration: flush_at must be from 1 to 1000000; it is 0",
        ),
        (
            Error::QueueDir { path: "/q".into(), why: "its disk is full".into(), source: None },
            "cannot use queue directory \"/q\": its disk is full",
        ),
        (
            Error::Timeout { path: "/q".into() },
            "opening the queue in \"/q\" took longer than 30 s: its file system does not answer, or a large queue is being checked; try \
             again, or choose a directory on a local disk (queue_dir, POSTHOG_QUEUE_DIR)",
        ),
        (
            Error::Resources(std::io::ErrorKind::WouldBlock.into()),
            "the system cannot start another thread for this process; raise the limit (ulimit -u, TasksMax= of systemd, pids.max of the \
             container)",
        ),
        (
            Error::Resources(system(23)),
            "the machine may open no more files (fs.file-max); raise that limit, or find out what keeps so many open",
        ),
        (
            Error::Resources(std::io::Error::other("a panic hook cannot be installed")),
            "this is not possible in this process",
        ),
        (
            Error::AlreadyInitialized,
            "posthog::init was called before in this process; posthog::client() returns that client",
        ),
        (
            Error::AlreadyInstalled("drain_on_terminate"),
            "posthog::drain_on_terminate was called before in this process; the first call stays in effect",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
    let persisted = [
        PersistError::Dropped,
        PersistError::Volatile,
        PersistError::Sync("Input/output error".into()),
        PersistError::Closed,
        PersistError::Forked,
    ];
    assert_eq!(
        persisted.map(|error| error.to_string()),
        [
            "the event was dropped when it was captured",
            "the queue is in memory only: the event does not survive the process",
            "the event may not survive a power cut: Input/output error",
            "the client was closed before the event was synced",
            "the event belongs to the parent of this forked process",
        ]
    );
}
