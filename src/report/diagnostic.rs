//! Diagnostics: problems that no return value reports.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use super::drop_reason::DropReason;

/// A problem, or the end of one, that no return value reports.
///
/// Each diagnostic is kept in a bounded ring ([`Client::diagnostics`](crate::Client::diagnostics)), passed to the
/// callback ([`Config::on_diagnostic`](crate::Config::on_diagnostic)), and logged through `tracing` under the target
/// `posthog`: at most one line a minute for each kind and subject (a path, a setting). The first is logged at once.
/// Those that follow within the minute are added up and logged when it has passed, when the problem ends, or when the
/// client ends: "62,763 events dropped in the last 60 s". What was held back about the state of the endpoint is not
/// logged once that state has ended: "events are delivered again" stands for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Diagnostic {
    /// Events were not accepted. Drops because the queue or the disk is full are reported once a second, with a count.
    Dropped {
        /// Why.
        reason: DropReason,
        /// The name of the event, or of one of them; empty if it is not known.
        event: String,
        /// What is wrong in detail, and what the operator can do.
        detail: String,
        /// Number of events.
        count: u64,
    },
    /// The client was created by [`Config::from_env`](crate::Config::from_env) and `POSTHOG_API_KEY` is not set, so it
    /// drops every event. Reported once.
    KeyMissing,
    /// The host in the configuration is PostHog's app. Events are sent to the app's ingestion host instead, as
    /// PostHog's own libraries do. Reported once.
    HostReplaced {
        /// The configured host.
        given: String,
        /// The host that is used.
        used: String,
    },
    /// PostHog rejected an event for good. It is among the dead letters.
    DeadLettered {
        /// The event.
        uuid: Uuid,
        /// The HTTP status; 0 if the event could not be read and was never sent.
        status: u16,
        /// PostHog's reason.
        reason: String,
    },
    /// An event was rejected without evidence that it is at fault, or requests with it alone failed twice while others
    /// succeeded. It stays queued and is tried again at growing intervals; delivery continues without it.
    Quarantined {
        /// The event.
        uuid: Uuid,
        /// The HTTP status; 0 if there was no response.
        status: u16,
        /// The server's reason, or the failure.
        reason: String,
    },
    /// Events cannot be delivered and stay queued. Reported when an outage begins, once for each further kind of
    /// failure, and at the first, second, fourth, eighth (and so on) cooldown of the outage.
    EndpointFailing {
        /// The failure.
        reason: String,
        /// What waits for the endpoint.
        backlog: Backlog,
    },
    /// A server that is not PostHog responds: a captive portal, or a wrong host. Events stay queued. Reported once per
    /// outage.
    NotPostHog {
        /// The HTTP status.
        status: u16,
        /// The beginning of the response.
        snippet: String,
        /// What waits for the endpoint.
        backlog: Backlog,
    },
    /// The key, the quota or the encoding is rejected. Events stay queued. Reported once per outage.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// The server's reason.
        reason: String,
        /// Whether the response is PostHog's. Otherwise a proxy or a firewall may have sent it.
        by_posthog: bool,
        /// What waits for the endpoint.
        backlog: Backlog,
    },
    /// Events are delivered again.
    EndpointRecovered {
        /// Time from the first failure to this success.
        after: Duration,
        /// What still waits for the endpoint.
        backlog: Backlog,
    },
    /// PostHog accepts requests and discards events of these kinds, because their quota is used up.
    QuotaLimited {
        /// The kinds, as PostHog names them.
        kinds: Vec<String>,
    },
    /// PostHog accepted events with a warning (protocol V1 only). Reported once for each request and text.
    DeliveryWarning {
        /// The first of the events.
        uuid: Uuid,
        /// Number of events.
        events: u64,
        /// PostHog's text, for example `person_processing_disabled`.
        details: String,
    },
    /// A callback of the program panicked. The panic was caught.
    CallbackPanicked {
        /// The name of the callback.
        callback: &'static str,
    },
    /// The queue's files cannot be written or read, or its directory is out of reach. New events are accepted while the
    /// journal has space for them. [`Stats::storage`](crate::Stats::storage) has the current state.
    StorageFailing {
        /// The failure.
        problem: String,
    },
    /// Storage works again, or the file system has more free space than `min_free_space` again.
    StorageRecovered,
    /// The queue's file system has less free space than [`Config::min_free_space`](crate::Config::min_free_space). New
    /// events are dropped until it has more; accepted events are delivered. Reported at the start and whenever the
    /// state begins.
    LowDiskSpace {
        /// The directory of the queue.
        path: PathBuf,
        /// The free space of the file system.
        free_bytes: u64,
        /// The value of `min_free_space`.
        floor_bytes: u64,
        /// The size of the file system, if known. If it is less than `floor_bytes`, no event will ever be accepted.
        volume_bytes: Option<u64>,
    },
    /// The queue is in memory ([`Config::memory_fallback`](crate::Config::memory_fallback)), or its directory was
    /// deleted. Events are accepted and delivered; those that are queued when the process ends are lost. Reported once.
    InMemory {
        /// The configured directory; empty if none is configured.
        path: PathBuf,
        /// Why it is not used.
        problem: String,
    },
    /// The client was closed while its queue in memory held events. They are lost.
    MemoryQueueLost {
        /// Number of events.
        events: u64,
    },
    /// A file of the queue was damaged or was not this library's. It was renamed, and replaced by a file with all that
    /// could be read; a replacement that was not completed and cannot be used is only renamed.
    QueueSalvaged {
        /// The new name of the damaged file.
        path: PathBuf,
        /// The damage.
        why: String,
        /// Events that could not be read.
        lost: u64,
    },
    /// Accepted events are lost.
    EventsLost {
        /// Number of events.
        events: u64,
        /// Whether the machine restarted before the events were synced. Otherwise their bytes were damaged.
        after_restart: bool,
    },
    /// The previous owner of the queue was killed during a write, so the queue's file was verified. Damage is reported
    /// by a diagnostic of its own.
    StoreVerified,
    /// A queue that another process left, with events in it, is delivered by this process now. Logged at level `INFO`.
    QueueAdopted {
        /// The directory of the queue.
        path: PathBuf,
        /// Number of events in it.
        events: u64,
    },
    /// Queued events were deleted undelivered.
    Evicted {
        /// Number of events.
        events: u64,
        /// Whether they exceeded `max_queue_age`. Otherwise they made room for newer ones.
        for_age: bool,
    },
    /// The queue directory does not outlive the machine or the container. Reported once.
    QueueDirEphemeral {
        /// The directory.
        path: PathBuf,
        /// The kind of file system it is on.
        what: &'static str,
    },
    /// The queue directory or a directory above it belongs to another user, or every user may write to it, so others
    /// can remove or replace the queue. It is used all the same; the files in it are checked for their owner. Reported
    /// once.
    QueueDirExposed {
        /// The directory that others may write to.
        path: PathBuf,
        /// Who may write to it.
        why: String,
    },
    /// The queue of another key or host has events that no process delivers.
    /// [`Config::adopt_queue`](crate::Config::adopt_queue) delivers them; removing the directory discards them.
    OrphanedQueue {
        /// The directory of the queue.
        path: PathBuf,
        /// The key, cut to its first 8 characters, and the host, if the queue could be read.
        owner: Option<(String, String)>,
        /// Number of events.
        events: u64,
        /// Bytes of the events.
        bytes: u64,
    },
    /// More than sixteen orphaned queues were found: the sum of those that are not reported one by one.
    OrphanedQueues {
        /// The directory of all queues.
        path: PathBuf,
        /// Number of further queues.
        queues: u64,
        /// Number of events in them.
        events: u64,
        /// Bytes of the events.
        bytes: u64,
    },
    /// A queue was skipped, with the events in it: its format is newer, it cannot be locked or opened, or it is still
    /// being opened. Another queue is used, and this one is tried again later. Reported once for each reason.
    QueueSkipped {
        /// The directory of the queue.
        path: PathBuf,
        /// Why it was skipped.
        why: String,
    },
    /// Crash reports cannot be written, or a report of an earlier process could not be read or sent in full. A file
    /// that cannot be read is tried again at the next two starts; then it is kept under a name that ends in `.bad`. So is
    /// at once a file of which a part cannot be read or sent, when the other parts are sent.
    CrashReportUnreadable {
        /// The file, if the problem is about one.
        path: Option<PathBuf>,
        /// The problem.
        why: String,
    },
    /// The previous owner of the queue died while it resolved symbols of a stack, perhaps for lack of memory. Stacks of
    /// that build are sent with addresses only from now on, also by later processes; PostHog resolves them if symbols
    /// were uploaded.
    SymbolsUntrusted,
    /// A value that the program set cannot be used and was left out: a super property, a property of a context, a
    /// header.
    InputIgnored {
        /// The value, and why it cannot be used.
        what: String,
    },
    /// `capture` was called with a `$exception` event that the program built itself. The event is sent as it is, but
    /// PostHog groups exceptions by a list that only [`Client::capture_exception`](crate::Client::capture_exception)
    /// builds. Reported once.
    ManualException,
    /// Requests for feature flags failed; the last known values or the defaults of the caller apply. Reported at the
    /// first failure, then at most once a minute.
    FlagRequestsFailed {
        /// The last failure.
        why: String,
        /// Number of requests.
        requests: u64,
    },
    /// Values or definitions of some feature flags are invalid. Those flags have no value; all others have theirs.
    /// Reported at most once a minute.
    FlagsInvalid {
        /// The keys of the first ten flags.
        keys: Vec<String>,
    },
    /// Feature flag definitions cannot be loaded. The present definitions stay in use, unless PostHog rejects the
    /// secret key or the quota. Reported when the failure begins and when its kind changes.
    FlagDefinitionsUnavailable {
        /// The failure.
        why: String,
    },
    /// Feature flag definitions are loaded again.
    FlagDefinitionsRecovered,
    /// The program's provider of feature flag definitions failed, or the definitions cannot be stored for the next
    /// start. The loaded definitions are used all the same. Reported once until the operation succeeds.
    FlagCacheFailed {
        /// `should_fetch`, `read`, `store` or `shutdown` of the provider; `keep` for storing in the queue's file.
        operation: &'static str,
        /// The failure.
        why: String,
    },
    /// A shutdown with time for delivery did not deliver everything. The remaining events are on disk; the next process
    /// that opens the queue sends them.
    LeftOnDisk {
        /// Number of events.
        events: u64,
        /// The directory of the queue.
        path: PathBuf,
        /// Why they were not delivered.
        why: String,
    },
    /// A problem with this machine's network setup: no CA certificates, or an invalid proxy variable.
    NetworkConfig {
        /// The problem.
        what: String,
    },
}

/// What waits while an endpoint fails: part of the diagnostics about an outage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backlog {
    /// The endpoint's scheme and host, such as `https://eu.i.posthog.com`; empty if it is not known.
    pub host: String,
    /// Number of events that wait for delivery, as last stored.
    pub events: u64,
    /// Time until the next request, if that is known.
    pub next_attempt: Option<Duration>,
    /// Whether a whole cycle of attempts has failed, so that the waits between them are 30 s to 5 min.
    pub is_cooldown: bool,
}

impl Backlog {
    /// What is still true of it after some time: the host, and what is left of the wait.
    pub(crate) fn aged(&self, age: Duration) -> Self {
        let next_attempt = self.next_attempt.and_then(|wait| wait.checked_sub(age)).filter(|wait| !wait.is_zero());
        Self { host: self.host.clone(), events: 0, next_attempt, is_cooldown: self.is_cooldown }
    }
}

impl Diagnostic {
    /// Sets the backlog of a diagnostic about an outage. Others stay as they are.
    pub(crate) fn with_backlog(mut self, waiting: Backlog) -> Self {
        if let Some(backlog) = self.backlog_mut() {
            *backlog = waiting;
        }
        self
    }

    fn backlog_mut(&mut self) -> Option<&mut Backlog> {
        match self {
            Diagnostic::EndpointFailing { backlog, .. }
            | Diagnostic::NotPostHog { backlog, .. }
            | Diagnostic::Paused { backlog, .. }
            | Diagnostic::EndpointRecovered { backlog, .. } => Some(backlog),
            _ => None,
        }
    }

    /// The diagnostic as it is to be logged so long after it was recorded, without what may have changed since.
    pub(crate) fn aged(mut self, age: Duration) -> Self {
        // Less than a second changes nothing that a reader would notice.
        if age >= Duration::from_secs(1)
            && let Some(backlog) = self.backlog_mut()
        {
            *backlog = backlog.aged(age);
        }
        self
    }

    /// The name of the kind, for alarms and metrics. It is part of the public interface and does not change when the
    /// text does.
    ///
    /// It is the name of the variant in snake case (`endpoint_failing`, `storage_failing`, `key_missing`); for
    /// [`Diagnostic::Dropped`] it is the name of the reason ([`DropReason::name`]: `queue_full`, `too_large`). Log
    /// lines have it in the field `kind`.
    ///
    /// ```
    /// use posthog::diagnostics::Diagnostic;
    ///
    /// assert_eq!(Diagnostic::StorageRecovered.kind(), "storage_recovered");
    /// ```
    pub fn kind(&self) -> &'static str {
        self.kind_and_category().0
    }

    /// The subject area.
    pub fn category(&self) -> DiagnosticCategory {
        self.kind_and_category().1
    }

    fn kind_and_category(&self) -> (&'static str, DiagnosticCategory) {
        use DiagnosticCategory as C;
        match self {
            Diagnostic::Dropped { reason, .. } => (reason.name(), category_of(*reason)),
            Diagnostic::KeyMissing => ("key_missing", C::Lifecycle),
            Diagnostic::HostReplaced { .. } => ("host_replaced", C::Delivery),
            Diagnostic::DeadLettered { .. } => ("dead_lettered", C::Delivery),
            Diagnostic::Quarantined { .. } => ("quarantined", C::Delivery),
            Diagnostic::EndpointFailing { .. } => ("endpoint_failing", C::Delivery),
            Diagnostic::NotPostHog { .. } => ("not_posthog", C::Delivery),
            Diagnostic::Paused { .. } => ("paused", C::Delivery),
            Diagnostic::EndpointRecovered { .. } => ("endpoint_recovered", C::Delivery),
            Diagnostic::QuotaLimited { .. } => ("quota_limited", C::Delivery),
            Diagnostic::DeliveryWarning { .. } => ("delivery_warning", C::Delivery),
            Diagnostic::CallbackPanicked { callback: "before_send" } => ("callback_panicked", C::BeforeSend),
            Diagnostic::CallbackPanicked { .. } => ("callback_panicked", C::Callback),
            Diagnostic::StorageFailing { .. } => ("storage_failing", C::Storage),
            Diagnostic::StorageRecovered => ("storage_recovered", C::Storage),
            Diagnostic::LowDiskSpace { .. } => ("low_disk_space", C::Capacity),
            Diagnostic::InMemory { .. } => ("in_memory", C::Storage),
            Diagnostic::MemoryQueueLost { .. } => ("memory_queue_lost", C::Storage),
            Diagnostic::QueueSalvaged { .. } => ("queue_salvaged", C::Storage),
            Diagnostic::EventsLost { .. } => ("events_lost", C::Storage),
            Diagnostic::StoreVerified => ("store_verified", C::Storage),
            Diagnostic::QueueAdopted { .. } => ("queue_adopted", C::Storage),
            Diagnostic::Evicted { .. } => ("evicted", C::Capacity),
            Diagnostic::QueueDirEphemeral { .. } => ("queue_dir_ephemeral", C::Storage),
            Diagnostic::OrphanedQueue { .. } => ("orphaned_queue", C::Storage),
            Diagnostic::QueueDirExposed { .. } => ("queue_dir_exposed", C::Storage),
            Diagnostic::OrphanedQueues { .. } => ("orphaned_queues", C::Storage),
            Diagnostic::QueueSkipped { .. } => ("queue_skipped", C::Storage),
            Diagnostic::CrashReportUnreadable { .. } => ("crash_report_unreadable", C::Storage),
            Diagnostic::SymbolsUntrusted => ("symbols_untrusted", C::Delivery),
            Diagnostic::InputIgnored { .. } => ("input_ignored", C::Validation),
            Diagnostic::ManualException => ("manual_exception", C::Validation),
            Diagnostic::FlagRequestsFailed { .. } => ("flag_requests_failed", C::Flags),
            Diagnostic::FlagsInvalid { .. } => ("flags_invalid", C::Flags),
            Diagnostic::FlagDefinitionsUnavailable { .. } => ("flag_definitions_unavailable", C::FlagDefinitions),
            Diagnostic::FlagDefinitionsRecovered => ("flag_definitions_recovered", C::FlagDefinitions),
            Diagnostic::FlagCacheFailed { .. } => ("flag_cache_failed", C::FlagCache),
            Diagnostic::LeftOnDisk { .. } => ("left_on_disk", C::Delivery),
            Diagnostic::NetworkConfig { .. } => ("network_config", C::Delivery),
        }
    }
}

/// The subject area of a [`Diagnostic`], for programs that handle only some of them.
///
/// ```
/// use posthog::Config;
/// use posthog::diagnostics::DiagnosticCategory;
///
/// let config = Config::new("phc_example").on_diagnostic(|diagnostic| {
///     if diagnostic.category() == DiagnosticCategory::Storage {
///         eprintln!("check the disk: {diagnostic}");
///     }
/// });
/// # let _ = config;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiagnosticCategory {
    /// A value that the program passed is invalid: a blank id, a value that cannot be serialized.
    Validation,
    /// A `before_send` hook dropped an event or panicked.
    BeforeSend,
    /// Another callback of the program panicked.
    Callback,
    /// The queue or the disk is full, or events were evicted.
    Capacity,
    /// The queue's files, and the disk below them.
    Storage,
    /// Requests to PostHog, and its responses.
    Delivery,
    /// Values of feature flags.
    Flags,
    /// Loading of feature flag definitions.
    FlagDefinitions,
    /// Caches of feature flag definitions: the program's provider, and the copy for the next start.
    FlagCache,
    /// The life of the client: no key, not initialized, closed, forked, called from inside its own callbacks.
    Lifecycle,
}

impl DiagnosticCategory {
    /// The name of the variant in snake case, for labels and logs: `storage`, `flag_definitions`.
    pub fn name(self) -> &'static str {
        match self {
            DiagnosticCategory::Validation => "validation",
            DiagnosticCategory::BeforeSend => "before_send",
            DiagnosticCategory::Callback => "callback",
            DiagnosticCategory::Capacity => "capacity",
            DiagnosticCategory::Storage => "storage",
            DiagnosticCategory::Delivery => "delivery",
            DiagnosticCategory::Flags => "flags",
            DiagnosticCategory::FlagDefinitions => "flag_definitions",
            DiagnosticCategory::FlagCache => "flag_cache",
            DiagnosticCategory::Lifecycle => "lifecycle",
        }
    }
}

impl fmt::Display for DiagnosticCategory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn category_of(reason: DropReason) -> DiagnosticCategory {
    match reason {
        DropReason::EmptyName
        | DropReason::EmptyDistinctId
        | DropReason::EmptyAlias
        | DropReason::EmptyGroupType
        | DropReason::EmptyGroupKey
        | DropReason::NothingToSet
        | DropReason::Unserializable
        | DropReason::TimestampOutOfRange
        | DropReason::TooLarge => DiagnosticCategory::Validation,
        DropReason::BeforeSend | DropReason::BeforeSendPanicked => DiagnosticCategory::BeforeSend,
        DropReason::JournalFull
        | DropReason::JournalBusy
        | DropReason::QueueFull
        | DropReason::DiskFull
        | DropReason::RateLimited => DiagnosticCategory::Capacity,
        DropReason::Storage => DiagnosticCategory::Storage,
        DropReason::Disabled
        | DropReason::NotInitialized
        | DropReason::Closed
        | DropReason::OptedOut
        | DropReason::Reentrant
        | DropReason::Forked => DiagnosticCategory::Lifecycle,
    }
}
