//! Keeps diagnostics, passes them on to the program, and logs them at a bounded rate.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Diagnostic;
use crate::limits::{DIAGNOSTICS_KEPT, foreign};
use crate::reentry;

/// At most one log line of a kind in this time; the next one says how many it stands for.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

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
                reentry::caught(|| hook(&diagnostic));
            }
            if let Some(held_back) = line {
                reentry::caught(|| log(&diagnostic, held_back));
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

/// Logs what no client is there to keep.
pub(crate) fn log_without_client(diagnostic: &Diagnostic) {
    reentry::calling_out(|| {
        reentry::caught(|| log(diagnostic, 0));
    });
}

fn log(diagnostic: &Diagnostic, held_back: u64) {
    let kind = diagnostic.kind();
    // One line, whatever names of events, paths and words of others are in it.
    let line = foreign(&diagnostic.to_string(), usize::MAX);
    if diagnostic.is_for_information() {
        tracing::info!(target: "posthog", kind, "{line}");
    } else if held_back > 0 {
        tracing::warn!(target: "posthog", kind, held_back, "{line} (and {held_back} like it within the last minute)");
    } else {
        tracing::warn!(target: "posthog", kind, "{line}");
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
            assert!(reentry::inside().depth > 0, "the hook runs as a callback");
            if reentry::inside().depth == 1 {
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
