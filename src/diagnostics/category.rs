//! What a diagnostic is about, for a program that wants to hear of some only.

use super::Diagnostic;
use crate::pipeline::DropReason;

/// What a [`Diagnostic`] is about.
///
/// ```
/// use posthog::{DiagnosticCategory, Config};
///
/// let config = Config::new("phc_example").on_diagnostic(|diagnostic| {
///     if diagnostic.category() == DiagnosticCategory::Storage {
///         eprintln!("look at the disk: {diagnostic}");
///     }
/// });
/// # let _ = config;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DiagnosticCategory {
    /// What the program asked for cannot be sent: a blank id, a value that does not serialize.
    Validation,
    /// A `before_send` hook failed; what it was to look at was dropped.
    BeforeSend,
    /// Another hook or callback of the program failed.
    Callback,
    /// There is no room, or something was given up for want of it.
    Capacity,
    /// The queue's files, and the disk below them.
    Storage,
    /// The way to PostHog, and what PostHog answers.
    Delivery,
    /// Feature flags: what PostHog does not answer, and what it answers and cannot be read.
    Flags,
    /// Definitions of flags, from which they are evaluated here: whether they can be loaded.
    FlagDefinitions,
    /// Caches of such definitions: the program's provider, and what is kept for the next start.
    FlagCache,
    /// The life of the client: without a key, not there yet, closed, forked, called from inside its own callbacks.
    Lifecycle,
}

impl Diagnostic {
    /// What it is about.
    pub fn category(&self) -> DiagnosticCategory {
        match self {
            Diagnostic::Dropped { reason, .. } => category_of(*reason),
            Diagnostic::KeyMissing => DiagnosticCategory::Lifecycle,
            Diagnostic::CallbackPanicked { callback: "before_send" } => DiagnosticCategory::BeforeSend,
            Diagnostic::CallbackPanicked { .. } => DiagnosticCategory::Callback,
            Diagnostic::Invalid { .. } | Diagnostic::ManualException => DiagnosticCategory::Validation,
            Diagnostic::Evicted { .. } | Diagnostic::LowDiskSpace { .. } => DiagnosticCategory::Capacity,
            Diagnostic::FlagsUnanswered { .. } | Diagnostic::FlagsUnreadable { .. } => DiagnosticCategory::Flags,
            Diagnostic::FlagDefinitionsUnavailable { .. } | Diagnostic::FlagDefinitionsRecovered => {
                DiagnosticCategory::FlagDefinitions
            }
            Diagnostic::FlagCacheFailed { .. } => DiagnosticCategory::FlagCache,
            Diagnostic::DeadLettered { .. }
            | Diagnostic::Quarantined { .. }
            | Diagnostic::EndpointFailing { .. }
            | Diagnostic::NotPostHog { .. }
            | Diagnostic::Paused { .. }
            | Diagnostic::EndpointRecovered
            | Diagnostic::QuotaLimited { .. }
            | Diagnostic::Warned { .. }
            | Diagnostic::LeftOnDisk { .. }
            | Diagnostic::SymbolsUntrusted
            | Diagnostic::HostReplaced { .. }
            | Diagnostic::Network { .. } => DiagnosticCategory::Delivery,
            Diagnostic::StorageFailing { .. }
            | Diagnostic::StorageRecovered
            | Diagnostic::InMemory { .. }
            | Diagnostic::LostWithProcess { .. }
            | Diagnostic::Salvaged { .. }
            | Diagnostic::Missing { .. }
            | Diagnostic::StoreVerified
            | Diagnostic::Ephemeral { .. }
            | Diagnostic::Exposed { .. }
            | Diagnostic::OrphanedQueue { .. }
            | Diagnostic::OrphanedQueues { .. }
            | Diagnostic::ShardSkipped { .. }
            | Diagnostic::CrashReportUnreadable { .. } => DiagnosticCategory::Storage,
        }
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
        DropReason::JournalFull | DropReason::JournalBusy | DropReason::QueueFull | DropReason::DiskFull => {
            DiagnosticCategory::Capacity
        }
        DropReason::Storage => DiagnosticCategory::Storage,
        DropReason::Disabled
        | DropReason::NotInitialized
        | DropReason::Closed
        | DropReason::OptedOut
        | DropReason::Reentrant
        | DropReason::Forked => DiagnosticCategory::Lifecycle,
    }
}
