//! Records notices of the pipeline as public diagnostics.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::delivery;
use crate::pipeline::{Floor, Notice, Pipeline};
use crate::recorder::Diagnostics;
use crate::report::Diagnostic;
use crate::sys::wording::{count, time};

/// What the library does while storage fails.
const MEANWHILE: &str = "new events are accepted while the journal has space for them, and storage is tried again";

/// Records a notice of a pipeline as a diagnostic, after `change`.
pub(super) fn record(diagnostics: &Diagnostics, notice: Notice, change: impl FnOnce(Diagnostic) -> Diagnostic) {
    match public(notice) {
        Some(diagnostic) => diagnostics.record(change(diagnostic)),
        None => diagnostics.log_all(),
    }
}

/// Has the pipeline's delivery thread log the lines that are held back, when they are due.
pub(super) fn schedule_log(diagnostics: &Arc<Diagnostics>, pipeline: &Arc<Pipeline>) {
    let (recorder, pipeline) = (Arc::downgrade(diagnostics), Arc::downgrade(pipeline));
    diagnostics.schedule_by(move |after| {
        let recorder = Weak::clone(&recorder);
        let call = move || {
            if let Some(diagnostics) = recorder.upgrade() {
                diagnostics.log_due();
            }
        };
        pipeline.upgrade().is_some_and(|pipeline| pipeline.call_after(after, call))
    });
}

/// The diagnostic of a notice; `None` for the end of the pipeline.
pub(super) fn public(notice: Notice) -> Option<Diagnostic> {
    Some(match notice {
        Notice::Delivery(notice) => notice.into(),
        Notice::Flags(diagnostic) => diagnostic,
        Notice::Network(what) => Diagnostic::NetworkConfig { what },
        Notice::Salvaged { path, why, lost } => Diagnostic::QueueSalvaged { path, why, lost },
        Notice::Missing { events, after_restart } => Diagnostic::EventsLost { events, after_restart },
        Notice::StoreVerified => Diagnostic::StoreVerified,
        Notice::SymbolsUntrusted => Diagnostic::SymbolsUntrusted,
        Notice::Floor(floor) => floor.into(),
        Notice::Storage { problem: Some(problem) } => {
            Diagnostic::StorageFailing { problem: format!("{problem}; {MEANWHILE}") }
        }
        Notice::Storage { problem: None } => Diagnostic::StorageRecovered,
        Notice::InMemory { path, problem } => Diagnostic::InMemory { path, problem },
        Notice::LostInMemory { events } => Diagnostic::MemoryQueueLost { events },
        Notice::Evicted { events, for_age } => Diagnostic::Evicted { events, for_age },
        Notice::Ephemeral { path, what } => Diagnostic::QueueDirEphemeral { path, what },
        Notice::Exposed { path, why } => Diagnostic::QueueDirExposed { path, why },
        Notice::OrphanedQueue(queue) => Diagnostic::OrphanedQueue {
            path: queue.path,
            owner: queue.owner.map(|owner| (abbreviated(&owner.api_key), owner.host)),
            events: queue.events,
            bytes: queue.bytes,
        },
        Notice::MoreOrphanedQueues { path, queues, events, bytes } => {
            Diagnostic::OrphanedQueues { path, queues, events, bytes }
        }
        Notice::LeftOnDisk { events, path, why } => Diagnostic::LeftOnDisk { events, path, why },
        Notice::ShardSkipped { path, why } => Diagnostic::QueueSkipped { path, why },
        Notice::Ended => return None,
    })
}

impl From<Floor> for Diagnostic {
    fn from(floor: Floor) -> Self {
        let Floor { path, free_bytes, floor_bytes, volume_bytes } = floor;
        Diagnostic::LowDiskSpace { path, free_bytes, floor_bytes, volume_bytes }
    }
}

/// The beginning of a key, enough to recognize it.
fn abbreviated(api_key: &str) -> String {
    const KEPT: usize = 8;
    let kept: String = api_key.chars().take(KEPT).collect();
    if kept.len() == api_key.len() { kept } else { kept + "..." }
}

impl From<delivery::Notice> for Diagnostic {
    fn from(notice: delivery::Notice) -> Self {
        use delivery::Notice as N;
        match notice {
            N::NotPostHog { status, snippet } => Diagnostic::NotPostHog { status, snippet },
            N::Paused { status, reason, by_posthog } => Diagnostic::Paused { status, reason, by_posthog },
            N::ServerFailed { text, .. } => Diagnostic::EndpointFailing { reason: text },
            N::Warned { uuid, events, details } => Diagnostic::DeliveryWarning { uuid, events, details },
            N::AskedAgain { events, reason } => Diagnostic::EndpointFailing {
                reason: format!("PostHog asks for a retry of {} ({reason})", count(events, "event")),
            },
            N::TransportFailed { reason } => Diagnostic::EndpointFailing { reason },
            N::Cooldown { seconds, attempts, reason } => Diagnostic::EndpointFailing {
                reason: format!(
                    "{} in a row failed; next attempt in {}; last failure: {reason}",
                    count(attempts.into(), "attempt"),
                    time(Duration::from_secs(seconds))
                ),
            },
            N::Recovered => Diagnostic::EndpointRecovered,
            N::Quarantined { uuid, status, reason } => Diagnostic::Quarantined { uuid, status, reason },
            N::RefusingEverything { status, reason } => Diagnostic::EndpointFailing {
                reason: format!("every event is rejected (HTTP status {status}: {reason})"),
            },
            N::DeadLettered { uuid, status, reason } => Diagnostic::DeadLettered { uuid, status, reason },
            N::QuotaLimited { kinds } => Diagnostic::QuotaLimited { kinds },
            N::CallbackPanicked => Diagnostic::CallbackPanicked { callback: "on_delivery" },
            N::EngineFailed { seconds } => Diagnostic::EndpointFailing {
                reason: format!(
                    "the delivery task panicked, which is a defect of this library (please report it); it is restarted in {}",
                    time(Duration::from_secs(seconds))
                ),
            },
            N::QueueUnreadable { reason } => {
                Diagnostic::StorageFailing { problem: format!("events cannot be read for delivery: {reason}") }
            }
        }
    }
}
