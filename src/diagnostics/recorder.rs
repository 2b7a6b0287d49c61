//! Keeps diagnostics, passes them on to the program, and logs them at a bounded rate without losing count.
//!
//! The first diagnostic of a kind is logged at once. Those that follow within [`LOG_INTERVAL`] are held back and added up: events, not
//! diagnostics. The sum is logged when the interval has passed, when what failed works again, and when the client ends, whichever is
//! first. The client's delivery thread is asked to call back when the interval passes, so that nobody has to record anything for that.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::flood::Flood;
use super::text::Line;
use super::{Diagnostic, Subject};
use crate::pipeline::DropReason;
use crate::sys::clock::{Clock, WallNanos};
use crate::sys::limits::{DETAIL_KEPT, DIAGNOSTICS_KEPT, NAME_KEPT, beginning, foreign};
use crate::sys::reentry;

/// At most one log line of a kind and subject in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Subjects of one kind (paths, keys) that have lines of their own within the interval; all others share one.
const SUBJECTS_MOST: usize = 8;

/// The program's ear for diagnostics.
pub(crate) type DiagnosticHook = Arc<dyn Fn(&Diagnostic) + Send + Sync>;

/// Has [`Diagnostics::log_due`] called after that time; `false` if nobody will.
type Reminder = Box<dyn Fn(Duration) -> bool + Send + Sync>;

/// Where diagnostics go.
pub(crate) struct Diagnostics {
    hook: Option<DiagnosticHook>,
    clock: Clock,
    flood: Flood,
    state: Mutex<State>,
    reminder: OnceLock<Reminder>,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Diagnostic>,
    logged: HashMap<(&'static str, Subject), Logged>,
    /// When the reminder comes that was asked for.
    reminded_at: Option<Instant>,
}

/// The lines about one kind and subject.
#[derive(Debug)]
struct Logged {
    at: Instant,
    /// The newest diagnostic, with the sum of those held back; if none is, the one that was logged.
    newest: Diagnostic,
    /// When that one came.
    newest_at: Instant,
    /// Diagnostics held back since the last line.
    held_back: u64,
}

/// A line to be logged.
#[derive(Debug)]
struct Due {
    diagnostic: Diagnostic,
    /// Diagnostics that it stands for besides its own.
    others: u64,
    /// The time that it sums up, if it does.
    period: Option<Duration>,
}

impl Diagnostics {
    pub(crate) fn new(hook: Option<DiagnosticHook>, clock: Clock) -> Self {
        Self { hook, clock, flood: Flood::default(), state: Mutex::default(), reminder: OnceLock::new() }
    }

    /// The same ear with a ring and locks of its own, for a forked child: ours may be held by a thread that it does not have.
    pub(crate) fn for_child(&self) -> Self {
        Self::new(self.hook.clone(), self.clock.clone())
    }

    /// Whom to ask for a reminder, from now on.
    pub(crate) fn remind_by(&self, reminder: impl Fn(Duration) -> bool + Send + Sync + 'static) {
        let _ = self.reminder.set(Box::new(reminder));
        self.ask_for_reminder();
    }

    /// Records one. The hook and the log subscriber are the program's code: they may panic, and they may capture.
    pub(crate) fn record(&self, diagnostic: Diagnostic) {
        if diagnostic.is_recovery() {
            // What was dropped meanwhile belongs before the line that says that all is well again.
            self.record_rest_of_flood();
        }
        let lines = self.take_note(&diagnostic, self.clock.now());
        self.tell(Some(&diagnostic), &lines);
        self.ask_for_reminder();
    }

    /// An event was dropped, one of perhaps very many: recorded at most once a second for each reason.
    pub(crate) fn record_drop(&self, reason: DropReason, event: &str, detail: impl FnOnce() -> String, now: WallNanos) {
        if let Some(count) = self.flood.due(reason, now) {
            let event = beginning(event, NAME_KEPT).to_owned();
            let detail = beginning(&detail(), DETAIL_KEPT).to_owned();
            self.record(Diagnostic::Dropped { reason, event, detail, count });
        }
    }

    /// Logs what is held back and has been so for an interval. For the reminder.
    pub(crate) fn log_due(&self) {
        lock(&self.state).reminded_at = None;
        self.log_held_back(Some(LOG_INTERVAL));
        self.ask_for_reminder();
    }

    /// Logs all that is held back: the client ends, and nothing may come that would have it logged.
    pub(crate) fn log_all(&self) {
        self.log_held_back(None);
    }

    /// The newest diagnostics, oldest first.
    pub(crate) fn recent(&self) -> Vec<Diagnostic> {
        lock(&self.state).ring.iter().cloned().collect()
    }

    fn log_held_back(&self, after: Option<Duration>) {
        self.record_rest_of_flood();
        let lines = lock(&self.state).take_held_back(self.clock.now(), after);
        self.tell(None, &lines);
    }

    /// What was counted since the last second of a flood that had one.
    fn record_rest_of_flood(&self) {
        for (reason, count) in self.flood.drain() {
            let last = lock(&self.state).last_drop(reason);
            let (event, detail) = last.unwrap_or_else(|| (String::new(), reason.to_string()));
            let diagnostic = Diagnostic::Dropped { reason, event, detail, count };
            let lines = self.take_note(&diagnostic, self.clock.now());
            self.tell(Some(&diagnostic), &lines);
        }
    }

    fn tell(&self, diagnostic: Option<&Diagnostic>, lines: &[Due]) {
        reentry::calling_out(|| {
            if let (Some(hook), Some(diagnostic)) = (&self.hook, diagnostic) {
                // Nothing is said about a panic here: saying it is what panicked.
                reentry::caught(|| hook(diagnostic));
            }
            for line in lines {
                reentry::caught(|| log(line));
            }
        });
    }

    /// Puts it into the ring. Answers what is to be logged now.
    fn take_note(&self, diagnostic: &Diagnostic, now: Instant) -> Vec<Due> {
        let mut state = lock(&self.state);
        if state.ring.len() == DIAGNOSTICS_KEPT {
            state.ring.pop_front();
        }
        state.ring.push_back(diagnostic.clone());
        if let Some(kind) = diagnostic.contradicts()
            && let Some(recovery) = state.logged.get_mut(&(kind, Subject::default()))
        {
            recovery.held_back = 0;
        }
        let key = state.key_of(diagnostic, now);
        let Some(due) = state.note(key, diagnostic, now) else { return Vec::new() };
        let mut lines = if diagnostic.is_recovery() { state.take_held_back(now, None) } else { Vec::new() };
        lines.push(due);
        lines
    }

    /// One at a time, and only if something is held back or may be: a flood is counted where nobody looks.
    fn ask_for_reminder(&self) {
        let Some(reminder) = self.reminder.get() else { return };
        let now = self.clock.now();
        let due = {
            let mut state = lock(&self.state);
            // One that is overdue is not coming: whoever was to call has ended.
            if state.reminded_at.is_some_and(|at| now <= at) {
                return;
            }
            let waits =
                |logged: &&Logged| logged.held_back > 0 || (logged.is_flood() && now < logged.at + LOG_INTERVAL);
            state.reminded_at = state.logged.values().filter(waits).map(|logged| logged.at + LOG_INTERVAL).min();
            state.reminded_at
        };
        // Outside of the lock: whoever is asked wakes a thread.
        if let Some(at) = due
            && !reminder(at.saturating_duration_since(now))
        {
            lock(&self.state).reminded_at = None;
        }
    }
}

impl State {
    /// Under what it is throttled: kind and subject, or kind alone if that has had many subjects.
    fn key_of(&mut self, diagnostic: &Diagnostic, now: Instant) -> (&'static str, Subject) {
        let (kind, subject) = (diagnostic.kind(), diagnostic.subject());
        if self.logged.contains_key(&(kind, subject)) || subject == Subject::default() {
            return (kind, subject);
        }
        self.logged.retain(|(_, subject), logged| {
            *subject == Subject::default() || logged.held_back > 0 || now < logged.at + LOG_INTERVAL
        });
        let subjects = self.logged.keys().filter(|(of, subject)| *of == kind && *subject != Subject::default()).count();
        (kind, if subjects < SUBJECTS_MOST { subject } else { Subject::default() })
    }

    fn note(&mut self, key: (&'static str, Subject), diagnostic: &Diagnostic, now: Instant) -> Option<Due> {
        let Some(logged) = self.logged.get_mut(&key) else {
            let newest = diagnostic.clone();
            self.logged.insert(key, Logged { at: now, newest, newest_at: now, held_back: 0 });
            return Some(Due { diagnostic: diagnostic.clone(), others: 0, period: None });
        };
        let mut newest = diagnostic.clone();
        if logged.held_back > 0 {
            newest.add(&logged.newest);
        }
        (logged.newest, logged.newest_at) = (newest, now);
        if now.saturating_duration_since(logged.at) < LOG_INTERVAL {
            logged.held_back = logged.held_back.saturating_add(1);
            return None;
        }
        Some(logged.take(now, logged.held_back))
    }

    fn take_held_back(&mut self, now: Instant, after: Option<Duration>) -> Vec<Due> {
        let least = after.unwrap_or_default();
        let is_due = |logged: &Logged| logged.held_back > 0 && now.saturating_duration_since(logged.at) >= least;
        let any = self.logged.values().any(is_due);
        // A recovery goes along with what it ended: else the last line could say that things fail.
        let goes_along = |logged: &Logged| any && logged.held_back > 0 && logged.newest.is_recovery();
        let all = self.logged.values_mut();
        let mut due: Vec<&mut Logged> = all.filter(|logged| is_due(logged) || goes_along(logged)).collect();
        due.sort_by_key(|logged| logged.newest_at);
        // One of those that are held back is the line's own.
        due.into_iter().map(|logged| logged.take(now, logged.held_back - 1)).collect()
    }

    fn last_drop(&self, reason: DropReason) -> Option<(String, String)> {
        match self.logged.get(&(reason.name(), Subject::default()))?.newest.clone() {
            Diagnostic::Dropped { event, detail, .. } => Some((event, detail)),
            _ => None,
        }
    }
}

impl Logged {
    /// Whether more may have been counted that was not recorded.
    fn is_flood(&self) -> bool {
        use DropReason as R;
        let Diagnostic::Dropped { reason, .. } = &self.newest else { return false };
        matches!(reason, R::JournalFull | R::JournalBusy | R::QueueFull | R::DiskFull | R::Storage | R::Closed)
    }

    /// The line that is logged now, for itself and so many others.
    fn take(&mut self, now: Instant, others: u64) -> Due {
        let period = (self.held_back > 0).then(|| now.saturating_duration_since(self.at));
        (self.at, self.held_back) = (now, 0);
        Due { diagnostic: self.newest.clone(), others, period }
    }
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diagnostics").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Logs what no client is there to keep.
pub(crate) fn log_without_client(diagnostic: &Diagnostic) {
    let line = Due { diagnostic: diagnostic.clone(), others: 0, period: None };
    reentry::calling_out(|| {
        reentry::caught(|| log(&line));
    });
}

fn log(due: &Due) {
    let (kind, held_back) = (due.diagnostic.kind(), due.others);
    // One line, whatever names of events, paths and words of others are in it.
    let line =
        foreign(&Line { diagnostic: &due.diagnostic, others: held_back, period: due.period }.to_string(), usize::MAX);
    if due.diagnostic.is_for_information() {
        tracing::info!(target: "posthog", kind, "{line}");
    } else if held_back > 0 {
        tracing::warn!(target: "posthog", kind, held_back, "{line}");
    } else {
        tracing::warn!(target: "posthog", kind, "{line}");
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
