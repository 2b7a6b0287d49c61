//! What the worker says, in the public words.

use crate::delivery;
use crate::diagnostics::Diagnostic;
use crate::flags::loader;
use crate::worker::Notice;

impl From<Notice> for Diagnostic {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Delivery(notice) => notice.into(),
            Notice::FlagDefinitions(notice) => notice.into(),
            Notice::Network(what) => Diagnostic::Network { what },
            Notice::SetAside { path, why, lost } => Diagnostic::SetAside { path, why, lost },
            Notice::Missing { events, after_restart } => Diagnostic::Missing { events, after_restart },
            Notice::Checked => Diagnostic::Checked,
            Notice::SymbolsDistrusted => Diagnostic::SymbolsDistrusted,
            Notice::Storage { problem: Some(problem) } => Diagnostic::StorageFailing { problem },
            Notice::Storage { problem: None } => Diagnostic::StorageRecovered,
            Notice::InMemory { path, problem } => Diagnostic::InMemory { path, problem },
            Notice::LostInMemory { events } => Diagnostic::LostWithProcess { events },
            Notice::Evicted { events, for_age } => Diagnostic::Evicted { events, for_age },
            Notice::Ephemeral { path, what } => Diagnostic::Ephemeral { path, what },
            Notice::Exposed { path, why } => Diagnostic::Exposed { path, why },
            Notice::Stranded(queue) => Diagnostic::StrandedQueue {
                path: queue.path,
                owner: queue.owner.map(|owner| (abbreviated(&owner.api_key), owner.host)),
                events: queue.events,
                bytes: queue.bytes,
            },
            Notice::FlagsUnanswered { why, requests } => Diagnostic::FlagsUnanswered { why, requests },
            Notice::FlagsUnreadable { keys } => Diagnostic::FlagsUnreadable { keys },
            Notice::LeftOnDisk { events } => Diagnostic::LeftOnDisk { events },
            Notice::ShardSkipped { path, why } => Diagnostic::ShardSkipped { path, why },
        }
    }
}

/// Enough of a key to be known by whoever has it.
fn abbreviated(api_key: &str) -> String {
    const KEPT: usize = 8;
    let kept: String = api_key.chars().take(KEPT).collect();
    if kept.len() == api_key.len() { kept } else { kept + "..." }
}

impl From<loader::Notice> for Diagnostic {
    fn from(notice: loader::Notice) -> Self {
        use loader::Notice as N;
        match notice {
            N::Unavailable { why } => Diagnostic::FlagDefinitionsUnavailable { why },
            N::Recovered => Diagnostic::FlagDefinitionsRecovered,
            N::Unreadable { keys } => Diagnostic::FlagsUnreadable { keys },
            N::CacheFailed { operation, why } => Diagnostic::FlagCacheFailed { operation, why },
        }
    }
}

impl From<delivery::Notice> for Diagnostic {
    fn from(notice: delivery::Notice) -> Self {
        use delivery::Notice as N;
        match notice {
            N::NotPostHog { status, snippet } => Diagnostic::NotPostHog { status, snippet },
            N::Paused { status, reason, by_posthog } => Diagnostic::Paused { status, reason, by_posthog },
            N::ServerFailed { text, .. } => Diagnostic::EndpointFailing { reason: text },
            N::Warned { uuid, events, details } => Diagnostic::Warned { uuid, events, details },
            N::AskedAgain { events, reason } => {
                Diagnostic::EndpointFailing { reason: format!("PostHog asks for {events} events again: {reason}") }
            }
            N::TransportFailed { reason } => Diagnostic::EndpointFailing { reason },
            N::Parked { seconds, attempts, reason } => Diagnostic::EndpointFailing {
                reason: format!("{attempts} attempts in a row have failed; the next follows in {seconds} s; {reason}"),
            },
            N::Recovered => Diagnostic::EndpointRecovered,
            N::Suspected { uuid, status, reason } => Diagnostic::Suspected { uuid, status, reason },
            N::RefusingEverything { status, reason } => {
                Diagnostic::EndpointFailing { reason: format!("every event is refused ({status}: {reason})") }
            }
            N::Buried { uuid, status, reason } => Diagnostic::Buried { uuid, status, reason },
            N::QuotaLimited { kinds } => Diagnostic::QuotaLimited { kinds },
            N::CallbackPanicked => Diagnostic::CallbackPanicked { callback: "on_delivery" },
            N::EngineFailed { seconds } => Diagnostic::EndpointFailing {
                reason: format!("the delivery panicked, please report this; it goes on in {seconds} s"),
            },
            N::QueueUnreadable { reason } => Diagnostic::StorageFailing { problem: reason },
        }
    }
}
