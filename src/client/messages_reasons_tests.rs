//! Every text that stands in for a reason in a diagnostic, and every text of an error: the second half of `messages_tests.rs`.

use std::time::Duration;

use super::notices::public;
use crate::delivery::Notice as Delivered;
use crate::error::Error;
use crate::flags;
use crate::pipeline::{Circumstances, DropReason, Notice, Outage, PersistError};

#[test]
fn what_the_threads_say_is_said_in_words_for_an_operator() {
    let delivered = |notice| public(Notice::Delivery(notice)).unwrap().to_string();
    let failing = "events cannot be delivered and stay queued; delivery is tried again: ";
    for (notice, text) in [
        (
            Delivered::AskedAgain { events: 1, reason: "not_persisted".into() },
            "PostHog asks for 1 event to be sent again (not_persisted)",
        ),
        (
            Delivered::Cooldown { seconds: 300, attempts: 4, reason: "HTTP status 503".into() },
            "4 attempts in a row failed, and the next is made in 5 min; the last one said: HTTP status 503",
        ),
        (
            Delivered::RefusingEverything { status: 400, reason: "no".into() },
            "every event is rejected (HTTP status 400: no)",
        ),
        (
            Delivered::EngineFailed { seconds: 5 },
            "the delivery task panicked, which is a defect of this library (please report it); it goes on in 5 s",
        ),
    ] {
        assert_eq!(delivered(notice), format!("{failing}{text}"));
    }
    assert_eq!(
        delivered(Delivered::QueueUnreadable { reason: "it is being closed".into() }),
        "the queue's storage fails: events cannot be read for delivery: it is being closed"
    );
    assert_eq!(
        public(Notice::Storage { problem: Some("/q: the disk is full".into()) }).unwrap().to_string(),
        "the queue's storage fails: /q: the disk is full; new events are taken while the journal has room for them, and storage is tried \
         again"
    );
    let loaded = public(Notice::Flags(flags::Notice::DefinitionsUnavailable { why: "gone".into() }));
    assert_eq!(loaded.unwrap().to_string(), "gone");
    assert!(public(Notice::Ended).is_none());
}

#[test]
fn a_drop_for_want_of_room_says_which_bound_and_why_the_queue_does_not_empty() {
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
            "journal is full (journal_bytes = 8 MiB): events come faster than they can be stored; raise Config::journal_bytes",
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
             Config::min_free_space",
        ),
        (&ill, DropReason::Storage, "the journal in /q/ab/shard-0 could not be written: /q: the disk is full"),
        (&at, DropReason::Closed, "the client was shut down"),
    ] {
        assert_eq!(circumstances.explain(reason), text);
    }
}

#[test]
fn every_reason_has_its_text_here() {
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
            "a before_send hook dropped it",
            "a before_send hook panicked",
            "it was captured inside a callback of this library for the second time, or on a thread of this library",
            "events come faster than they can be stored, or storage fails",
            "the journal's lock was not free in time",
            "the queue is full",
            "the file system has less free than min_free_space",
            "the journal's file could not be written, or is another process's by now",
            "no queue could be opened in this forked child",
            "the client has opted out of capturing",
            "the alias is blank",
            "the group's type is blank",
            "the group's key is blank",
            "there is no property to set",
            "posthog::init was not called before",
        ]
    );
}

#[test]
fn every_error_has_its_text_here() {
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
             again, or choose a directory on a local disk (queue_dir)",
        ),
        (
            Error::Resources(std::io::ErrorKind::WouldBlock.into()),
            "the system gives this process no further thread; raise the limit (ulimit -u, TasksMax= of systemd, pids.max of the \
             container)",
        ),
        (
            Error::Resources(system(23)),
            "the machine may open no more files (fs.file-max); raise that limit, or find out what keeps so many open",
        ),
        (Error::Resources(std::io::Error::other("a panic hook cannot be installed")), "not possible in this process"),
        (
            Error::AlreadyInitialised,
            "posthog::init was called before in this process; posthog::client() has that client",
        ),
        (
            Error::AlreadyInstalled("drain_on_terminate"),
            "posthog::drain_on_terminate was called before in this process, and stays as it was set up then",
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
