//! Records diagnostics: keeps them, passes them to the program, and logs them at a bounded rate.
//!
//! * Recording never fails, never panics, and never waits for other code. The program's callback and the log subscriber
//!   run outside the lock, as callbacks (see `reentry`), and their panics are caught.
//! * Drops because of a full queue or disk come in floods. They are counted without a lock, and recorded once a second.
//! * The last 128 diagnostics are kept.
//! * The first diagnostic of a kind and subject is logged at once. Those that follow within [`LOG_INTERVAL`] are held
//!   back and added up, in events. The sum is logged when the interval has passed, when the problem ends, or when the
//!   client ends, whichever comes first. No event is missing from the sum. The delivery thread calls back when an
//!   interval has passed, and only while something may be held back.
//! * A line about a state (the endpoint fails, storage fails) that is held back when the state ends is not logged: it
//!   would report the past as the present. If it is logged later than recorded, it has no figures of then.
//!
//! `facade.rs` publishes statistics through the crate `metrics`, with that feature.
//!
//! `log.rs` writes the lines. The diagnostics themselves and their texts are in the module `report`.

#[cfg(test)]
pub(crate) mod captured_log;
#[cfg(feature = "metrics")]
pub(crate) mod facade;
mod log;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::report::{Backlog, Diagnostic, DropReason, Line};
use crate::sys::clock::{Clock, WallNanos};
use crate::sys::limits::{DETAIL_KEPT, DIAGNOSTICS_KEPT, NAME_KEPT, beginning};
use crate::sys::reentry;
use crate::sys::throttle::SharedThrottle;

use log::log;
pub(crate) use log::{Started, log_closed, log_started, log_without_client};

/// At most one log line of a kind and subject in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// At most one record of drops for each reason in this time, because recording costs more than a capture.
const DROP_INTERVAL: Duration = Duration::from_secs(1);
/// The kind of [`Diagnostic::EndpointRecovered`].
const ENDPOINT_RECOVERED: &str = "endpoint_recovered";
/// Subjects of one kind (paths, keys) that have lines of their own within the interval; all others share one.
const SUBJECTS_MOST: usize = 8;

/// The program's callback for diagnostics.
pub(crate) type DiagnosticHook = Arc<dyn Fn(&Diagnostic) + Send + Sync>;

/// The recorder of a client's diagnostics.
pub(crate) struct Diagnostics {
    hook: Option<DiagnosticHook>,
    clock: Clock,
    /// By [`DropReason`]. Counts without a lock or an allocation, because it is part of a capture.
    drops: [SharedThrottle; DropReason::COUNT],
    state: Mutex<State>,
    /// Schedules a call of [`Diagnostics::log_due`] after a time; `false` if that is not possible.
    scheduler: OnceLock<Box<dyn Fn(Duration) -> bool + Send + Sync>>,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Diagnostic>,
    logged: HashMap<(&'static str, Subject), Logged>,
    /// When the scheduled call of [`Diagnostics::log_due`] comes.
    scheduled_at: Option<Instant>,
}

/// The log state of one kind and subject.
#[derive(Debug)]
struct Logged {
    at: Instant,
    /// The newest diagnostic, with the sum of those held back; if none is held back, the one that was logged.
    newest: Diagnostic,
    /// When the newest was recorded.
    newest_at: Instant,
    /// Diagnostics held back since the last line.
    held_back: u64,
}

impl Diagnostics {
    pub(crate) fn new(hook: Option<DiagnosticHook>, clock: Clock) -> Self {
        Self {
            hook,
            clock,
            drops: [const { SharedThrottle::new() }; DropReason::COUNT],
            state: Mutex::default(),
            scheduler: OnceLock::new(),
        }
    }

    /// A recorder for a forked child, with locks of its own: these may be held by a thread that the child does not
    /// have.
    pub(crate) fn for_child(&self) -> Self {
        Self::new(self.hook.clone(), self.clock.clone())
    }

    /// Sets the scheduler of delayed log lines.
    pub(crate) fn schedule_by(&self, scheduler: impl Fn(Duration) -> bool + Send + Sync + 'static) {
        let _ = self.scheduler.set(Box::new(scheduler));
        self.schedule();
    }

    /// Records a diagnostic. The callback and the log subscriber are the program's code: they may panic, and they may
    /// capture.
    pub(crate) fn record(&self, diagnostic: Diagnostic) {
        if diagnostic.is_recovery() {
            // Drops during the outage are logged before the line that ends it.
            self.record_counted_drops();
        }
        let lines = self.add_to_ring(&diagnostic, self.clock.now());
        self.emit(Some(&diagnostic), &lines);
        self.schedule();
    }

    /// Counts a dropped event, and records the count at most once a second for each reason.
    pub(crate) fn record_drop(&self, reason: DropReason, event: &str, detail: impl FnOnce() -> String, now: WallNanos) {
        let counted = self.drops.get(reason as usize).and_then(|drops| drops.admit(now, DROP_INTERVAL));
        if let Some(count) = counted {
            let event = beginning(event, NAME_KEPT).to_owned();
            let detail = beginning(&detail(), DETAIL_KEPT).to_owned();
            self.record(Diagnostic::Dropped { reason, event, detail, count });
        }
    }

    /// Logs what has been held back for an interval. Called by the scheduler.
    pub(crate) fn log_due(&self) {
        lock(&self.state).scheduled_at = None;
        self.log_held_back(Some(LOG_INTERVAL));
        self.schedule();
    }

    /// Logs everything that is held back, at the end of the client.
    pub(crate) fn log_all(&self) {
        // There is no next attempt, and what is left is reported as such.
        lock(&self.state).forget_held_back(|held_back| held_back.contradicts() == Some(ENDPOINT_RECOVERED));
        self.log_held_back(None);
    }

    /// The newest diagnostics, oldest first.
    pub(crate) fn recent(&self) -> Vec<Diagnostic> {
        lock(&self.state).ring.iter().cloned().collect()
    }

    fn log_held_back(&self, after: Option<Duration>) {
        self.record_counted_drops();
        let lines = lock(&self.state).take_held_back(self.clock.now(), after);
        self.emit(None, &lines);
    }

    /// Records the drops that were counted and not recorded yet.
    fn record_counted_drops(&self) {
        for (reason, count) in self.take_counted_drops() {
            let last = lock(&self.state).last_drop(reason);
            let (event, detail) = last.unwrap_or_else(|| (String::new(), reason.to_string()));
            let diagnostic = Diagnostic::Dropped { reason, event, detail, count };
            let lines = self.add_to_ring(&diagnostic, self.clock.now());
            self.emit(Some(&diagnostic), &lines);
        }
    }

    fn take_counted_drops(&self) -> Vec<(DropReason, u64)> {
        let counts = DropReason::ALL.into_iter().zip(&self.drops).map(|(reason, drops)| (reason, drops.take()));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn emit(&self, diagnostic: Option<&Diagnostic>, lines: &[Line]) {
        reentry::calling_out(|| {
            if let (Some(hook), Some(diagnostic)) = (&self.hook, diagnostic) {
                // A panic of this callback is not reported: reporting is what panicked.
                reentry::caught(|| hook(diagnostic));
            }
            for line in lines {
                reentry::caught(|| log(line));
            }
        });
    }

    /// Puts a diagnostic into the ring. Returns the lines to log now.
    fn add_to_ring(&self, diagnostic: &Diagnostic, now: Instant) -> Vec<Line> {
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
        if diagnostic.is_recovery() {
            state.forget_held_back(|held_back| held_back.contradicts() == Some(diagnostic.kind()));
        }
        let key = state.key_of(diagnostic, now);
        let Some(due) = state.note(key, diagnostic, now) else { return Vec::new() };
        let mut lines = if diagnostic.is_recovery() { state.take_held_back(now, None) } else { Vec::new() };
        lines.push(due);
        lines
    }

    /// Schedules one call at a time, and only if something is held back or may be: drops are counted without the lock.
    fn schedule(&self) {
        let Some(scheduler) = self.scheduler.get() else { return };
        let now = self.clock.now();
        let due = {
            let mut state = lock(&self.state);
            // An overdue call will not come: the delivery thread has ended.
            if state.scheduled_at.is_some_and(|at| now <= at) {
                return;
            }
            let waits =
                |logged: &&Logged| logged.held_back > 0 || (logged.may_have_more() && now < logged.at + LOG_INTERVAL);
            state.scheduled_at = state.logged.values().filter(waits).map(|logged| logged.at + LOG_INTERVAL).min();
            state.scheduled_at
        };
        // Outside the lock, because scheduling wakes a thread.
        if let Some(at) = due
            && !scheduler(at.saturating_duration_since(now))
        {
            lock(&self.state).scheduled_at = None;
        }
    }
}

impl State {
    /// The key of the throttle: kind and subject, or the kind alone if it has many subjects.
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

    fn note(&mut self, key: (&'static str, Subject), diagnostic: &Diagnostic, now: Instant) -> Option<Line> {
        let Some(logged) = self.logged.get_mut(&key) else {
            let newest = diagnostic.clone();
            self.logged.insert(key, Logged { at: now, newest, newest_at: now, held_back: 0 });
            return Some(Line { diagnostic: diagnostic.clone(), others: 0, period: None });
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

    /// Drops lines that are held back and not true any more.
    fn forget_held_back(&mut self, is_past: impl Fn(&Diagnostic) -> bool) {
        self.logged.values_mut().filter(|logged| is_past(&logged.newest)).for_each(|logged| logged.held_back = 0);
    }

    fn take_held_back(&mut self, now: Instant, after: Option<Duration>) -> Vec<Line> {
        let least = after.unwrap_or_default();
        let is_due = |logged: &Logged| logged.held_back > 0 && now.saturating_duration_since(logged.at) >= least;
        let any = self.logged.values().any(is_due);
        // A recovery is logged with the lines that it ends: otherwise the last line could report a failure.
        let goes_along = |logged: &Logged| any && logged.held_back > 0 && logged.newest.is_recovery();
        let all = self.logged.values_mut();
        let mut due: Vec<&mut Logged> = all.filter(|logged| is_due(logged) || goes_along(logged)).collect();
        due.sort_by_key(|logged| logged.newest_at);
        // One of those held back is the diagnostic of the line itself.
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
    /// Whether drops may have been counted that are not recorded yet.
    fn may_have_more(&self) -> bool {
        use DropReason as R;
        let Diagnostic::Dropped { reason, .. } = &self.newest else { return false };
        matches!(reason, R::JournalFull | R::JournalBusy | R::QueueFull | R::DiskFull | R::Storage | R::Closed)
    }

    /// The line to log now, which stands for `others` further diagnostics.
    fn take(&mut self, now: Instant, others: u64) -> Line {
        let period = (self.held_back > 0).then(|| now.saturating_duration_since(self.at));
        (self.at, self.held_back) = (now, 0);
        let diagnostic = self.newest.clone().aged(now.saturating_duration_since(self.newest_at));
        Line { diagnostic, others, period }
    }
}

/// How diagnostics are grouped for the log: which belong together, and which end which.
impl Diagnostic {
    fn is_informational(&self) -> bool {
        self.is_recovery() || matches!(self, Diagnostic::StoreVerified | Diagnostic::QueueAdopted { .. })
    }

    /// Whether this is the end of a problem. Lines held back about the problem are logged first.
    fn is_recovery(&self) -> bool {
        matches!(
            self,
            Diagnostic::EndpointRecovered { .. } | Diagnostic::StorageRecovered | Diagnostic::FlagDefinitionsRecovered
        )
    }

    /// The kind of recovery that this diagnostic contradicts.
    fn contradicts(&self) -> Option<&'static str> {
        match self {
            Diagnostic::EndpointFailing { .. } | Diagnostic::NotPostHog { .. } | Diagnostic::Paused { .. } => {
                Some(ENDPOINT_RECOVERED)
            }
            Diagnostic::StorageFailing { .. } => Some(Diagnostic::StorageRecovered.kind()),
            Diagnostic::FlagDefinitionsUnavailable { .. } => Some(Diagnostic::FlagDefinitionsRecovered.kind()),
            _ => None,
        }
    }

    /// The subject among diagnostics of the same kind.
    fn subject(&self) -> Subject {
        match self {
            // The first cooldown of an outage is a line of its own: the next attempt is no longer seconds away.
            Diagnostic::EndpointFailing { backlog: Backlog { is_cooldown: true, .. }, .. } => Subject::of(&"cooldown"),
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
            | Diagnostic::QueueAdopted { path, .. }
            | Diagnostic::LeftOnDisk { path, .. } => Subject::of(path),
            Diagnostic::CrashReportUnreadable { path, .. } => Subject::of(path),
            _ => Subject::default(),
        }
    }

    /// Adds the count of an earlier diagnostic of the same kind and subject.
    fn add(&mut self, earlier: &Diagnostic) {
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
struct Subject(u64);

impl Subject {
    fn of(what: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diagnostics").field("state", &self.state).finish_non_exhaustive()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
