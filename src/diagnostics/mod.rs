//! Problems that are nobody's return value: recorded, told to a hook, logged at a bounded rate.
//!
//! A [`Diagnostic`] is one thing that a human might want to know. Whatever this library swallows instead of returning it, it records
//! here: an event that was refused, a hook that panicked, an endpoint that fails, a file that was damaged, a header that is no text.
//!
//! # Rules
//!
//! * Recording never fails, never panics and never waits for anybody else's code: the hook and the log subscriber run outside of the
//!   lock, as callbacks (see `reentry`), and their panics are caught.
//! * What comes in floods (events dropped for want of room) is counted, and recorded once a second.
//! * Each kind has a name that stays, for alarms, and belongs to a [`DiagnosticCategory`], for those who want to hear of some only. A variant
//!   added later must be given both.
//! * The last 128 are kept and can be read. Of each kind and subject at most one line a minute is logged; what is held back is added up, and
//!   logged when the minute has passed, when things work again, and when the client ends. No event goes missing in the sum.
//! * A text says what happened, what the library does now, and what the operator can do. `client/messages_tests.rs` has all of them.
//!
//! # Operations
//!
//! This file says what there is to be told, `text.rs` how, `category.rs` sorts it, `recorder.rs` keeps, passes on and logs it, `flood.rs` counts drops
//! that come in floods; `heard.rs` has what is logged, for tests.

mod category;
mod flood;
#[cfg(test)]
pub(crate) mod heard;
mod recorder;
mod text;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use uuid::Uuid;

use crate::pipeline::DropReason;

pub use category::DiagnosticCategory;
pub(crate) use recorder::{DiagnosticHook, Diagnostics, log_without_client};

/// Something that happened and that a human might want to know.
///
/// Each is put into a bounded ring ([`Client::diagnostics`](crate::Client::diagnostics)), given to the hook
/// ([`Config::on_diagnostic`](crate::Config::on_diagnostic)), and logged through `tracing` under the target `posthog`: at most one
/// line a minute of a kind and of what it is about (a path, a setting). The first is logged at once. What follows within the minute is
/// added up and logged at its end, when things work again, or when the client ends: "62,763 events dropped in the last 60 s".
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Diagnostic {
    /// An event was not accepted. For want of room this is told once a second, with a count.
    Dropped {
        /// Why.
        reason: DropReason,
        /// The event's name, where it has one; of several, that of one of them.
        event: String,
        /// What is wrong in detail, and what to do.
        detail: String,
        /// How many events this stands for.
        count: u64,
    },
    /// The client was made by [`Config::from_env`](crate::Config::from_env), and `POSTHOG_API_KEY` is not set: it drops every event.
    /// Logged as information: a program that runs without a key is no mistake.
    KeyMissing,
    /// PostHog's app was given as the host. As PostHog's own libraries do, this one sends to the app's ingestion host instead. Told once.
    HostReplaced {
        /// The host that was given.
        given: String,
        /// The host that is used.
        used: String,
    },
    /// PostHog refused an event for good. It lies among the dead letters.
    DeadLettered {
        /// Which.
        uuid: Uuid,
        /// The HTTP status; 0 if it could not be read and was never sent.
        status: u16,
        /// PostHog's words.
        reason: String,
    },
    /// An event was refused and there is no evidence yet that the event is to blame, or sending it on its own failed twice while
    /// others passed: it stays queued, and is tried again ever more rarely.
    Quarantined {
        /// Which.
        uuid: Uuid,
        /// The HTTP status; 0 if there was no answer.
        status: u16,
        /// In the words of whoever refused it, or what failed.
        reason: String,
    },
    /// Events cannot be sent at the moment. They wait. Told when an outage begins, once for each further kind of failure, and when the
    /// number of times that the endpoint was left alone for a while has doubled (the first, second, fourth, eighth time, and so on).
    EndpointFailing {
        /// What is met.
        reason: String,
    },
    /// Something answered that is not PostHog: a captive portal, a wrong host. Events wait; told once per outage.
    NotPostHog {
        /// Its status.
        status: u16,
        /// How its answer begins.
        snippet: String,
    },
    /// The key, the quota or the encoding is refused. Events wait; told once per episode.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// In the words of whoever answered.
        reason: String,
        /// These are PostHog's words. Else it may be a proxy or a firewall that answered.
        by_posthog: bool,
    },
    /// Sending works again.
    EndpointRecovered,
    /// PostHog takes requests and says that it drops these kinds for want of quota.
    QuotaLimited {
        /// As PostHog names them.
        kinds: Vec<String>,
    },
    /// PostHog took events and has something to say about them (V1 only); told once for each request and text.
    Warned {
        /// The first of them.
        uuid: Uuid,
        /// How many.
        events: u64,
        /// What it says, such as `person_processing_disabled`.
        details: String,
    },
    /// A hook or callback of the program panicked.
    CallbackPanicked {
        /// Which.
        callback: &'static str,
    },
    /// The queue's files cannot be written or read, or its directory is out of reach. What is accepted is in the journal; `stats` says how
    /// things stand.
    StorageFailing {
        /// What is met.
        problem: String,
    },
    /// Storage works again, or there is room again on the file system that had reached its floor.
    StorageRecovered,
    /// The file system of the queue has less free than [`Config::min_free_space`](crate::Config::min_free_space): no event is taken until it
    /// has more. What was accepted is delivered. Told at the start and whenever it begins.
    LowDiskSpace {
        /// Where the queue lies.
        path: PathBuf,
        /// What the file system has free.
        free_bytes: u64,
        /// The floor.
        floor_bytes: u64,
        /// How large the file system is, if it tells: where that is less than the floor, nothing will ever be taken.
        volume_bytes: Option<u64>,
    },
    /// The queue is in memory ([`Config::memory_fallback`](crate::Config::memory_fallback)), or its directory was deleted. Events are taken
    /// and delivered, and those that are queued when the process ends are lost. Told once.
    InMemory {
        /// Where the queue should be.
        path: PathBuf,
        /// Why it is not.
        problem: String,
    },
    /// The client was closed with events in a queue in memory: they are lost.
    LostWithProcess {
        /// How many.
        events: u64,
    },
    /// A file was damaged or foreign; it was renamed and replaced by what could be saved of it.
    Salvaged {
        /// Its new name.
        path: PathBuf,
        /// What was wrong.
        why: String,
        /// Events that could not be saved.
        lost: u64,
    },
    /// Accepted events that are nowhere.
    Missing {
        /// How many.
        events: u64,
        /// The machine was restarted before they were synced; else their bytes were damaged.
        after_restart: bool,
    },
    /// The last owner of the queue died inside a write to it, and the file was checked. Damage that was found is a diagnostic of its own.
    StoreVerified,
    /// Queued events were given up.
    Evicted {
        /// How many.
        events: u64,
        /// For their age; else for want of room.
        for_age: bool,
    },
    /// The queue directory does not outlive the machine or the container. Told once.
    Ephemeral {
        /// Which.
        path: PathBuf,
        /// What it is on.
        what: &'static str,
    },
    /// The queue's directory or one above it belongs to another user, or every user may write to it: they could take the queue away, or
    /// put another one in its place. It is used all the same; what is in it is held against its owner. Told once.
    Exposed {
        /// The directory that others may write.
        path: PathBuf,
        /// How, and what to do.
        why: String,
    },
    /// The queue of another key or host has events that nobody delivers, because no process has it open:
    /// [`Config::adopt_queue`](crate::Config::adopt_queue) does. Who wants to give them up removes the directory.
    OrphanedQueue {
        /// Its directory.
        path: PathBuf,
        /// The key, cut to its first 8 characters, and the host, if the queue could be asked.
        owner: Option<(String, String)>,
        /// How many events.
        events: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// More queues of that kind than are told one by one, which the first sixteen are.
    OrphanedQueues {
        /// Where all of them lie.
        path: PathBuf,
        /// How many there are besides.
        queues: u64,
        /// Events in them.
        events: u64,
        /// Bytes in them.
        bytes: u64,
    },
    /// A queue is left alone, with the events in it: it is of a newer format, cannot be had or opened, or is not open yet. Another one is
    /// used, and this one tried again later. Told once for each reason.
    ShardSkipped {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Crash reports cannot be written, or one of an earlier process cannot be read completely. A file that cannot be read now is tried
    /// again at the next starts, three times in all; then it stays in the directory under a name that ends in `.bad`.
    CrashReportUnreadable {
        /// The file, if it is about one.
        path: Option<PathBuf>,
        /// Why.
        why: String,
    },
    /// The last owner of the queue died while it looked up the names of a stack, for want of memory perhaps. Addresses of that build are
    /// sent without names from now on, by later processes too: PostHog finds the names if symbols were uploaded.
    SymbolsUntrusted,
    /// Something the program said cannot be used and was left out: a super property, a property of a context, a header.
    Invalid {
        /// What, and why.
        what: String,
    },
    /// `capture` was given a `$exception` that the program made by hand. It is sent as it is; but PostHog groups exceptions by a list
    /// that only [`Client::capture_exception`](crate::Client::capture_exception) makes. Told once.
    ManualException,
    /// PostHog gave no answer about flags: what is known of them, or the caller's default, stands. Told at the first, and then once a
    /// minute.
    FlagsUnanswered {
        /// Why, the last time.
        why: String,
        /// How many requests this stands for.
        requests: u64,
    },
    /// Flags whose values or definitions cannot be read. They have no value; all others have theirs. Told once a minute.
    FlagsUnreadable {
        /// The first of them, at most ten.
        keys: Vec<String>,
    },
    /// Definitions of flags cannot be loaded. Those that are there are used on, and get older; if PostHog refuses the secret key or the
    /// quota, they are not. Told when that begins, and when it becomes something else.
    FlagDefinitionsUnavailable {
        /// What is met.
        why: String,
    },
    /// Definitions of flags are loaded again.
    FlagDefinitionsRecovered,
    /// The program's provider of definitions failed, or what was loaded cannot be kept in the queue's file for the next start. What is
    /// loaded is used all the same. Told once until the same has worked again.
    FlagCacheFailed {
        /// `should_fetch`, `read`, `store` or `shutdown` of the provider; `keep` of the queue's file.
        operation: &'static str,
        /// What is met.
        why: String,
    },
    /// A shutdown that had time for it did not deliver everything. What is left lies on the disk, and the next process that opens the queue
    /// sends it.
    LeftOnDisk {
        /// How many events.
        events: u64,
        /// The directory of the queue.
        path: PathBuf,
        /// Why they were not delivered.
        why: String,
    },
    /// Something about this machine's network setup: no certificates, a proxy setting that is none.
    Network {
        /// What.
        what: String,
    },
}

impl Diagnostic {
    /// The name of its kind, for alarms and metrics: it stays what it is, whatever the text becomes. The name of the variant in
    /// snake case (`endpoint_failing`, `not_posthog`, `storage_failing`, `key_missing`); for [`Diagnostic::Dropped`] the name of its
    /// reason instead, as [`DropReason::name`] has it (`queue_full`, `too_large`). In log lines it is the field `kind`.
    ///
    /// ```
    /// use posthog::Diagnostic;
    ///
    /// assert_eq!(Diagnostic::EndpointRecovered.kind(), "endpoint_recovered");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Diagnostic::Dropped { reason, .. } => reason.name(),
            Diagnostic::KeyMissing => "key_missing",
            Diagnostic::HostReplaced { .. } => "host_replaced",
            Diagnostic::DeadLettered { .. } => "dead_lettered",
            Diagnostic::Quarantined { .. } => "quarantined",
            Diagnostic::EndpointFailing { .. } => "endpoint_failing",
            Diagnostic::NotPostHog { .. } => "not_posthog",
            Diagnostic::Paused { .. } => "paused",
            Diagnostic::EndpointRecovered => "endpoint_recovered",
            Diagnostic::QuotaLimited { .. } => "quota_limited",
            Diagnostic::Warned { .. } => "warned",
            Diagnostic::CallbackPanicked { .. } => "callback_panicked",
            Diagnostic::StorageFailing { .. } => "storage_failing",
            Diagnostic::StorageRecovered => "storage_recovered",
            Diagnostic::LowDiskSpace { .. } => "low_disk_space",
            Diagnostic::InMemory { .. } => "in_memory",
            Diagnostic::LostWithProcess { .. } => "lost_with_process",
            Diagnostic::Salvaged { .. } => "salvaged",
            Diagnostic::Missing { .. } => "missing",
            Diagnostic::StoreVerified => "store_verified",
            Diagnostic::Evicted { .. } => "evicted",
            Diagnostic::Ephemeral { .. } => "ephemeral",
            Diagnostic::OrphanedQueue { .. } => "orphaned_queue",
            Diagnostic::Exposed { .. } => "exposed",
            Diagnostic::OrphanedQueues { .. } => "orphaned_queues",
            Diagnostic::ShardSkipped { .. } => "shard_skipped",
            Diagnostic::CrashReportUnreadable { .. } => "crash_report_unreadable",
            Diagnostic::SymbolsUntrusted => "symbols_untrusted",
            Diagnostic::Invalid { .. } => "invalid",
            Diagnostic::ManualException => "manual_exception",
            Diagnostic::FlagsUnanswered { .. } => "flags_unanswered",
            Diagnostic::FlagsUnreadable { .. } => "flags_unreadable",
            Diagnostic::FlagDefinitionsUnavailable { .. } => "flag_definitions_unavailable",
            Diagnostic::FlagDefinitionsRecovered => "flag_definitions_recovered",
            Diagnostic::FlagCacheFailed { .. } => "flag_cache_failed",
            Diagnostic::LeftOnDisk { .. } => "left_on_disk",
            Diagnostic::Network { .. } => "network",
        }
    }

    fn is_for_information(&self) -> bool {
        self.is_recovery() || matches!(self, Diagnostic::StoreVerified | Diagnostic::KeyMissing)
    }

    /// Something works again: what was held back about it is logged first.
    fn is_recovery(&self) -> bool {
        matches!(
            self,
            Diagnostic::EndpointRecovered | Diagnostic::StorageRecovered | Diagnostic::FlagDefinitionsRecovered
        )
    }

    /// The kind of the recovery that is not true any more once this has happened.
    fn contradicts(&self) -> Option<&'static str> {
        match self {
            Diagnostic::EndpointFailing { .. } | Diagnostic::NotPostHog { .. } | Diagnostic::Paused { .. } => {
                Some(Diagnostic::EndpointRecovered.kind())
            }
            Diagnostic::StorageFailing { .. } => Some(Diagnostic::StorageRecovered.kind()),
            Diagnostic::FlagDefinitionsUnavailable { .. } => Some(Diagnostic::FlagDefinitionsRecovered.kind()),
            _ => None,
        }
    }

    /// What it is about, among those of its kind.
    fn subject(&self) -> Subject {
        match self {
            Diagnostic::CallbackPanicked { callback } => Subject::of(callback),
            Diagnostic::Invalid { what } | Diagnostic::Network { what } => Subject::of(what),
            Diagnostic::Missing { after_restart, .. } => Subject::of(after_restart),
            Diagnostic::Evicted { for_age, .. } => Subject::of(for_age),
            Diagnostic::Warned { details, .. } => Subject::of(details),
            Diagnostic::FlagCacheFailed { operation, .. } => Subject::of(operation),
            Diagnostic::InMemory { path, .. }
            | Diagnostic::Salvaged { path, .. }
            | Diagnostic::Ephemeral { path, .. }
            | Diagnostic::OrphanedQueue { path, .. }
            | Diagnostic::ShardSkipped { path, .. }
            | Diagnostic::LeftOnDisk { path, .. } => Subject::of(path),
            Diagnostic::CrashReportUnreadable { path, .. } => Subject::of(path),
            _ => Subject::default(),
        }
    }

    /// Adds what an earlier one of its kind and subject has counted.
    fn add(&mut self, earlier: &Diagnostic) {
        match (self, earlier) {
            (Diagnostic::Dropped { count: sum, .. }, Diagnostic::Dropped { count: more, .. })
            | (Diagnostic::Evicted { events: sum, .. }, Diagnostic::Evicted { events: more, .. })
            | (Diagnostic::Missing { events: sum, .. }, Diagnostic::Missing { events: more, .. })
            | (Diagnostic::LostWithProcess { events: sum }, Diagnostic::LostWithProcess { events: more })
            | (Diagnostic::Warned { events: sum, .. }, Diagnostic::Warned { events: more, .. })
            | (Diagnostic::FlagsUnanswered { requests: sum, .. }, Diagnostic::FlagsUnanswered { requests: more, .. }) =>
            {
                *sum = sum.saturating_add(*more);
            }
            _ => {}
        }
    }
}

/// What a diagnostic is about, among those of its kind: a path, a setting. The default is nothing in particular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Subject(u64);

impl Subject {
    fn of(what: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}
