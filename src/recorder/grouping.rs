//! How diagnostics are grouped for the log: which belong together, and which end which.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::report::Diagnostic;

impl Diagnostic {
    pub(super) fn is_for_information(&self) -> bool {
        self.is_recovery() || matches!(self, Diagnostic::StoreVerified | Diagnostic::KeyMissing)
    }

    /// Whether this is the end of a problem. Lines held back about the problem are logged first.
    pub(super) fn is_recovery(&self) -> bool {
        matches!(
            self,
            Diagnostic::EndpointRecovered | Diagnostic::StorageRecovered | Diagnostic::FlagDefinitionsRecovered
        )
    }

    /// The kind of recovery that this diagnostic contradicts.
    pub(super) fn contradicts(&self) -> Option<&'static str> {
        match self {
            Diagnostic::EndpointFailing { .. } | Diagnostic::NotPostHog { .. } | Diagnostic::Paused { .. } => {
                Some(Diagnostic::EndpointRecovered.kind())
            }
            Diagnostic::StorageFailing { .. } => Some(Diagnostic::StorageRecovered.kind()),
            Diagnostic::FlagDefinitionsUnavailable { .. } => Some(Diagnostic::FlagDefinitionsRecovered.kind()),
            _ => None,
        }
    }

    /// The subject among diagnostics of the same kind.
    pub(super) fn subject(&self) -> Subject {
        match self {
            Diagnostic::CallbackPanicked { callback } => Subject::of(callback),
            Diagnostic::InputIgnored { what } | Diagnostic::NetworkConfig { what } => Subject::of(what),
            Diagnostic::EventsLost { after_restart, .. } => Subject::of(after_restart),
            Diagnostic::Evicted { for_age, .. } => Subject::of(for_age),
            Diagnostic::DeliveryWarning { details, .. } => Subject::of(details),
            Diagnostic::FlagCacheFailed { operation, .. } => Subject::of(operation),
            Diagnostic::InMemory { path, .. }
            | Diagnostic::QueueSalvaged { path, .. }
            | Diagnostic::QueueDirEphemeral { path, .. }
            | Diagnostic::OrphanedQueue { path, .. }
            | Diagnostic::QueueSkipped { path, .. }
            | Diagnostic::LeftOnDisk { path, .. } => Subject::of(path),
            Diagnostic::CrashReportUnreadable { path, .. } => Subject::of(path),
            _ => Subject::default(),
        }
    }

    /// Adds the count of an earlier diagnostic of the same kind and subject.
    pub(super) fn add(&mut self, earlier: &Diagnostic) {
        match (self, earlier) {
            (Diagnostic::Dropped { count: sum, .. }, Diagnostic::Dropped { count: more, .. })
            | (Diagnostic::Evicted { events: sum, .. }, Diagnostic::Evicted { events: more, .. })
            | (Diagnostic::EventsLost { events: sum, .. }, Diagnostic::EventsLost { events: more, .. })
            | (Diagnostic::MemoryQueueLost { events: sum }, Diagnostic::MemoryQueueLost { events: more })
            | (Diagnostic::DeliveryWarning { events: sum, .. }, Diagnostic::DeliveryWarning { events: more, .. })
            | (
                Diagnostic::FlagRequestsFailed { requests: sum, .. },
                Diagnostic::FlagRequestsFailed { requests: more, .. },
            ) => {
                *sum = sum.saturating_add(*more);
            }
            _ => {}
        }
    }
}

/// The subject of a diagnostic among those of its kind, such as a path or a setting, as a hash. The default is for
/// kinds without subjects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Subject(u64);

impl Subject {
    fn of(what: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}
