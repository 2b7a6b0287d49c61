//! Problems that are nobody's return value: recorded, told to a hook, logged at a bounded rate.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::limits::DIAGNOSTICS_KEPT;
use crate::reentry;

/// At most one log line of a kind in this time; the next one says how many it stands for.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Something that happened and that a human might want to know.
///
/// Each is put into a bounded ring ([`Client::diagnostics`](crate::Client::diagnostics)), given to the hook
/// ([`Config::on_diagnostic`](crate::Config::on_diagnostic)), and logged through `tracing` under the target `posthog`: at most one
/// line of a kind per minute, with a count of what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Diagnostic {
    /// An event was not accepted. For want of room this is told once a second, with a count.
    Dropped {
        /// Why, by the name of the reason.
        reason: &'static str,
        /// The event's name, where it has one.
        event: String,
        /// What is wrong in detail.
        detail: String,
        /// How many events this stands for.
        count: u64,
    },
    /// PostHog refused an event for good. It lies among the dead letters.
    Buried {
        /// Which.
        uuid: Uuid,
        /// The HTTP status; 0 if it could not be read and was never sent.
        status: u16,
        /// PostHog's words.
        reason: String,
    },
    /// An event was refused and there is no evidence yet that the event is to blame: it stays queued.
    Suspected {
        /// Which.
        uuid: Uuid,
        /// The HTTP status.
        status: u16,
        /// In the words of whoever refused it.
        reason: String,
    },
    /// Events cannot be sent at the moment. They wait.
    EndpointFailing {
        /// What is met.
        reason: String,
    },
    /// Something answered that is not PostHog: a captive portal, a wrong host. Events wait.
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
        /// PostHog's words.
        reason: String,
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
    /// The queue's files cannot be written or read. What is accepted is in the journal; `stats` says how things stand.
    StorageFailing {
        /// What is met.
        problem: String,
    },
    /// Storage works again.
    StorageRecovered,
    /// A file was damaged or foreign; it was renamed and replaced by what could be saved of it.
    SetAside {
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
    /// The last owner of the queue died inside a write to it; the file was checked and is good.
    Checked,
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
    /// The queue of another key or host has events that nobody delivers:
    /// [`Config::also_deliver`](crate::Config::also_deliver) does.
    StrandedQueue {
        /// The name of its directory.
        project: String,
        /// How many events.
        events: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// A queue left by another process was left alone: it is of a newer format, or cannot be opened.
    ShardSkipped {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Something about this machine's network setup: no certificates, a proxy setting that is none.
    Network {
        /// What.
        what: String,
    },
}

impl Diagnostic {
    /// The name of its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Diagnostic::Dropped { reason, .. } => reason,
            Diagnostic::Buried { .. } => "buried",
            Diagnostic::Suspected { .. } => "suspected",
            Diagnostic::EndpointFailing { .. } => "endpoint_failing",
            Diagnostic::NotPostHog { .. } => "not_posthog",
            Diagnostic::Paused { .. } => "paused",
            Diagnostic::EndpointRecovered => "endpoint_recovered",
            Diagnostic::QuotaLimited { .. } => "quota_limited",
            Diagnostic::Warned { .. } => "warned",
            Diagnostic::CallbackPanicked { .. } => "callback_panicked",
            Diagnostic::StorageFailing { .. } => "storage_failing",
            Diagnostic::StorageRecovered => "storage_recovered",
            Diagnostic::SetAside { .. } => "set_aside",
            Diagnostic::Missing { .. } => "missing",
            Diagnostic::Checked => "checked",
            Diagnostic::Evicted { .. } => "evicted",
            Diagnostic::Ephemeral { .. } => "ephemeral",
            Diagnostic::StrandedQueue { .. } => "stranded_queue",
            Diagnostic::ShardSkipped { .. } => "shard_skipped",
            Diagnostic::Network { .. } => "network",
        }
    }

    fn is_good_news(&self) -> bool {
        matches!(self, Diagnostic::EndpointRecovered | Diagnostic::StorageRecovered | Diagnostic::Checked)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Diagnostic::Dropped { reason, event, detail, count } => {
                write!(f, "{count} event(s) dropped ({reason}), the last one {event:?}: {detail}")
            }
            Diagnostic::Buried { uuid, status, reason } => {
                write!(f, "event {uuid} was refused for good ({status}: {reason}); it is among the dead letters")
            }
            Diagnostic::Suspected { uuid, status, reason } => {
                write!(f, "event {uuid} was refused ({status}: {reason}) and is set aside until others are accepted")
            }
            Diagnostic::EndpointFailing { reason } => write!(f, "events cannot be sent and wait on disk: {reason}"),
            Diagnostic::NotPostHog { status, snippet } => {
                write!(f, "whoever answers ({status}) is not PostHog, events wait on disk: {snippet}")
            }
            Diagnostic::Paused { status, reason } => {
                write!(
                    f,
                    "PostHog refuses the key, the quota or the encoding ({status}: {reason}); events wait on disk"
                )
            }
            Diagnostic::EndpointRecovered => f.write_str("events are sent again"),
            Diagnostic::QuotaLimited { kinds } => write!(f, "PostHog drops {} for want of quota", kinds.join(", ")),
            Diagnostic::Warned { uuid, events, details } => {
                write!(f, "PostHog took {events} event(s), {uuid} the first of them, with a warning: {details}")
            }
            Diagnostic::CallbackPanicked { callback } => write!(f, "the program's {callback} panicked"),
            Diagnostic::StorageFailing { problem } => write!(f, "the queue's files cannot be used: {problem}"),
            Diagnostic::StorageRecovered => f.write_str("the queue's files work again"),
            Diagnostic::SetAside { path, why, lost } => {
                write!(f, "a damaged file was set aside as {}: {why}; {lost} events could not be saved", path.display())
            }
            Diagnostic::Missing { events, after_restart: true } => {
                write!(f, "{events} accepted events were lost with a power cut, before they were synced")
            }
            Diagnostic::Missing { events, after_restart: false } => write!(f, "{events} accepted events were damaged"),
            Diagnostic::Checked => f.write_str("the last owner died while it wrote to the queue; the file was checked"),
            Diagnostic::Evicted { events, for_age: true } => {
                write!(f, "{events} queued events were given up for their age")
            }
            Diagnostic::Evicted { events, for_age: false } => {
                write!(f, "{events} queued events were given up for want of room")
            }
            Diagnostic::Ephemeral { path, what } => write!(f, "the queue directory {} is on {what}", path.display()),
            Diagnostic::StrandedQueue { project, events, bytes } => {
                write!(
                    f,
                    "the queue {project} of another key or host holds {events} events ({bytes} bytes) that nobody delivers"
                )
            }
            Diagnostic::ShardSkipped { path, why } => {
                write!(f, "the queue in {} was left alone: {why}", path.display())
            }
            Diagnostic::Network { what } => f.write_str(what),
        }
    }
}

/// The program's ear for diagnostics.
pub(crate) type DiagnosticHook = Arc<dyn Fn(&Diagnostic) + Send + Sync>;

/// Where diagnostics go.
pub(crate) struct Diagnostics {
    hook: Option<DiagnosticHook>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Diagnostic>,
    /// By kind: when a line was last logged, and how many have been held back since.
    logged: HashMap<&'static str, (Instant, u64)>,
}

impl Diagnostics {
    pub(crate) fn new(hook: Option<DiagnosticHook>) -> Self {
        Self { hook, state: Mutex::default() }
    }

    /// The same ear with a ring and locks of its own, for a forked child: ours may be held by a thread that it does not have.
    pub(crate) fn for_child(&self) -> Self {
        Self::new(self.hook.clone())
    }

    /// Records one. The hook and the log subscriber are the program's code: they may panic, and they may capture.
    pub(crate) fn record(&self, diagnostic: Diagnostic) {
        let line = self.take_note(&diagnostic, Instant::now());
        reentry::calling_out(|| {
            if let Some(hook) = &self.hook {
                // Nothing is said about a panic here: saying it is what panicked.
                let _ = catch_unwind(AssertUnwindSafe(|| hook(&diagnostic)));
            }
            if let Some(held_back) = line {
                let _ = catch_unwind(AssertUnwindSafe(|| log(&diagnostic, held_back)));
            }
        });
    }

    /// The newest diagnostics, oldest first.
    pub(crate) fn recent(&self) -> Vec<Diagnostic> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ring.iter().cloned().collect()
    }

    /// Puts it into the ring. Answers how many of its kind were held back, if a line is to be logged now.
    fn take_note(&self, diagnostic: &Diagnostic, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.ring.len() == DIAGNOSTICS_KEPT {
            state.ring.pop_front();
        }
        state.ring.push_back(diagnostic.clone());
        match state.logged.get_mut(diagnostic.kind()) {
            Some((last, held_back)) if now.saturating_duration_since(*last) < LOG_INTERVAL => {
                *held_back += 1;
                None
            }
            Some((last, held_back)) => {
                *last = now;
                Some(std::mem::take(held_back))
            }
            None => {
                state.logged.insert(diagnostic.kind(), (now, 0));
                Some(0)
            }
        }
    }
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diagnostics").field("state", &self.state).finish_non_exhaustive()
    }
}

fn log(diagnostic: &Diagnostic, held_back: u64) {
    let kind = diagnostic.kind();
    if diagnostic.is_good_news() {
        tracing::info!(target: "posthog", kind, "{diagnostic}");
    } else if held_back > 0 {
        tracing::warn!(target: "posthog", kind, held_back, "{diagnostic} (and {held_back} like it within the last minute)");
    } else {
        tracing::warn!(target: "posthog", kind, "{diagnostic}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing() -> Diagnostic {
        Diagnostic::EndpointFailing { reason: "refused".into() }
    }

    #[test]
    fn one_line_of_a_kind_per_minute_and_it_says_how_many_it_stands_for() {
        let diagnostics = Diagnostics::new(None);
        let now = Instant::now();
        assert_eq!(diagnostics.take_note(&failing(), now), Some(0));
        for _ in 0..7 {
            assert_eq!(diagnostics.take_note(&failing(), now + LOG_INTERVAL / 2), None);
        }
        assert_eq!(diagnostics.take_note(&Diagnostic::Checked, now), Some(0), "another kind has a line of its own");
        assert_eq!(diagnostics.take_note(&failing(), now + LOG_INTERVAL), Some(7));
    }

    #[test]
    fn the_ring_is_bounded_and_keeps_the_newest() {
        let diagnostics = Diagnostics::new(None);
        for events in 0..DIAGNOSTICS_KEPT as u64 + 5 {
            diagnostics.record(Diagnostic::Evicted { events, for_age: false });
        }
        let recent = diagnostics.recent();
        assert_eq!(recent.len(), DIAGNOSTICS_KEPT);
        assert_eq!(recent[0], Diagnostic::Evicted { events: 5, for_age: false });
    }

    #[test]
    fn a_hook_that_panics_or_records_is_survived() {
        let diagnostics = Arc::new(Mutex::new(None::<Arc<Diagnostics>>));
        let again = Arc::clone(&diagnostics);
        let hook: DiagnosticHook = Arc::new(move |_| {
            assert!(reentry::depth() > 0, "the hook runs as a callback");
            if reentry::depth() == 1 {
                again.lock().unwrap().clone().unwrap().record(Diagnostic::Checked);
            }
            panic!("in the hook");
        });
        let made = Arc::new(Diagnostics::new(Some(hook)));
        *diagnostics.lock().unwrap() = Some(Arc::clone(&made));
        made.record(failing());
        assert_eq!(made.recent(), [failing(), Diagnostic::Checked]);
    }
}
