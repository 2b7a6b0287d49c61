//! What a diagnostic is about, for a program that wants to hear of some only.

use super::Diagnostic;
use crate::worker::DropReason;

/// What a [`Diagnostic`] is about.
///
/// ```
/// use posthog::{Category, Config};
///
/// let config = Config::new("phc_example").on_diagnostic(|diagnostic| {
///     if diagnostic.category() == Category::Storage {
///         eprintln!("look at the disk: {diagnostic}");
///     }
/// });
/// # let _ = config;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Category {
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
    pub fn category(&self) -> Category {
        match self {
            Diagnostic::Dropped { reason, .. } => category_of(*reason),
            Diagnostic::KeyMissing => Category::Lifecycle,
            Diagnostic::CallbackPanicked { callback: "before_send" } => Category::BeforeSend,
            Diagnostic::CallbackPanicked { .. } => Category::Callback,
            Diagnostic::Invalid { .. } | Diagnostic::HandmadeException => Category::Validation,
            Diagnostic::Evicted { .. } | Diagnostic::DiskFloor { .. } => Category::Capacity,
            Diagnostic::FlagsUnanswered { .. } | Diagnostic::FlagsUnreadable { .. } => Category::Flags,
            Diagnostic::FlagDefinitionsUnavailable { .. } | Diagnostic::FlagDefinitionsRecovered => {
                Category::FlagDefinitions
            }
            Diagnostic::FlagCacheFailed { .. } => Category::FlagCache,
            Diagnostic::Buried { .. }
            | Diagnostic::Suspected { .. }
            | Diagnostic::EndpointFailing { .. }
            | Diagnostic::NotPostHog { .. }
            | Diagnostic::Paused { .. }
            | Diagnostic::EndpointRecovered
            | Diagnostic::QuotaLimited { .. }
            | Diagnostic::Warned { .. }
            | Diagnostic::LeftOnDisk { .. }
            | Diagnostic::SymbolsDistrusted
            | Diagnostic::HostReplaced { .. }
            | Diagnostic::Network { .. } => Category::Delivery,
            Diagnostic::StorageFailing { .. }
            | Diagnostic::StorageRecovered
            | Diagnostic::InMemory { .. }
            | Diagnostic::LostWithProcess { .. }
            | Diagnostic::SetAside { .. }
            | Diagnostic::Missing { .. }
            | Diagnostic::Checked
            | Diagnostic::Ephemeral { .. }
            | Diagnostic::Exposed { .. }
            | Diagnostic::StrandedQueue { .. }
            | Diagnostic::StrandedQueues { .. }
            | Diagnostic::ShardSkipped { .. }
            | Diagnostic::LastWordsUnread { .. } => Category::Storage,
        }
    }
}

fn category_of(reason: DropReason) -> Category {
    match reason {
        DropReason::EmptyName
        | DropReason::EmptyDistinctId
        | DropReason::EmptyAlias
        | DropReason::EmptyGroupType
        | DropReason::EmptyGroupKey
        | DropReason::NothingToSet
        | DropReason::Unserializable
        | DropReason::TimestampOutOfRange
        | DropReason::TooLarge => Category::Validation,
        DropReason::BeforeSend | DropReason::BeforeSendPanicked => Category::BeforeSend,
        DropReason::JournalFull | DropReason::JournalBusy | DropReason::QueueFull | DropReason::DiskFull => {
            Category::Capacity
        }
        DropReason::Storage => Category::Storage,
        DropReason::Disabled
        | DropReason::NotInitialised
        | DropReason::Closed
        | DropReason::OptedOut
        | DropReason::Reentrant
        | DropReason::Forked => Category::Lifecycle,
    }
}
