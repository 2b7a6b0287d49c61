//! [`Health`]: whether a client works, judged from its [`Stats`] alone.
//!
//! The judgement is a pure function of a snapshot ([`Stats::health`]): no I/O, no clock, no memory of earlier
//! snapshots. So what cannot be seen in one snapshot has to be a field of `Stats`, such as the time for which a thread
//! has been awake. Each problem has a cause with a stable name; the worst of them is the status.

use std::cmp::Reverse;
use std::fmt;
use std::time::{Duration, SystemTime};

use super::drop_reason::DropReason;
use super::stats::{DeliveryPhase, QueueMedium, Stats, StorageMode, ThreadState};
use crate::sys::wording::{count, time};

/// A thread that has been awake for longer is stuck: in a disk that does not respond, or in a callback of the program.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// A thread that has been stuck for longer will not come back by itself.
const NOT_ALIVE_AFTER: Duration = Duration::from_secs(300);
/// An event that has been in the store for longer is late.
const LATE_AFTER: Duration = Duration::from_secs(300);
/// Part of the queue's bounds from which on it is nearly full.
const ALMOST_FULL: f64 = 0.8;

/// How a client is: returned by [`Client::health`](crate::Client::health) and [`Stats::health`].
///
/// | status | meaning |
/// |---|---|
/// | [`Ready`](HealthStatus::Ready) | events are accepted, are where they were configured to be, and are delivered |
/// | [`Degraded`](HealthStatus::Degraded) | events are accepted, but are delivered late or not at all at present, or are kept less safely than configured; or the program itself has turned capturing off |
/// | [`Failing`](HealthStatus::Failing) | events that are captured now are dropped, or a thread of the client does not work any more |
///
/// [`HealthCause`] has the rule for each problem.
///
/// # Probes
///
/// *Readiness* asks whether a process can do its work, *liveness* whether it has to be restarted. PostHog being down is
/// a reason for neither: events wait in the queue.
///
/// * For a liveness probe use [`is_alive`](Self::is_alive). It is false only where a restart helps.
/// * For a readiness probe use [`is_ready`](Self::is_ready), if the service is to get no traffic while its events would
///   be dropped; most services should not depend on their analytics and leave it out.
/// * For alarms use the status and the names of the causes.
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// let health = client.health();
/// let http_status = if health.is_alive() { 200 } else { 503 };
/// println!("{http_status} {health}"); // 200 degraded: the client is disabled, and drops every event
/// for problem in &health.problems {
///     println!("{} {}: {}", problem.lane, problem.cause.name(), problem.detail);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The worst of the problems' statuses; `Ready` if there is no problem.
    pub status: HealthStatus,
    /// The problems, the worst first.
    pub problems: Vec<HealthProblem>,
    /// How long the oldest undelivered event has been in the store.
    pub oldest_age: Option<Duration>,
    /// When PostHog last accepted an event, in this process.
    pub last_success: Option<SystemTime>,
    /// Where the queue is kept, and whether that works.
    pub storage: StorageMode,
    /// What the queue is stored on.
    pub medium: Option<QueueMedium>,
    /// How full the queue is ([`Stats::fill`]) in percent, rounded down, at most 100.
    pub fill_percent: u8,
    is_alive: bool,
}

/// The status of a client, in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HealthStatus {
    /// Nothing is wrong.
    Ready,
    /// Events are accepted, and something that was configured or promised is missing.
    Degraded,
    /// Events are dropped, or the client does not work any more.
    Failing,
}

/// A problem of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthProblem {
    /// The kind of problem.
    pub cause: HealthCause,
    /// The queue that has it: `analytics` or `ai`. Problems of the whole client have `analytics`.
    pub lane: &'static str,
    /// What is wrong, what the library does meanwhile, and what the operator can do. The text may change.
    pub detail: String,
}

/// The kind of a problem, with the rule by which it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthCause {
    /// Failing: the client was shut down.
    Closed,
    /// Failing: one of the two threads has ended although the client is open, by a defect of this library.
    ThreadEnded,
    /// Failing: one of the two threads has been busy for more than a minute: the disk does not respond, or a callback
    /// of the program does not return.
    ThreadStuck,
    /// Failing: ordinary events are dropped (`Stats::rejecting`): the queue, the journal or the disk is full, another
    /// process has taken over the queue, or a forked child could not open one.
    Rejecting,
    /// Degraded: the queue of AI events could not be opened when it was last tried, so AI events are dropped. The next one
    /// tries again.
    AiUnavailable,
    /// Degraded: the queue is in the memory of the process although a directory was configured, or its directory was
    /// deleted.
    InMemory,
    /// Degraded: storage fails, or the directory is out of reach (`StorageMode::Degraded`).
    StorageFailing,
    /// Degraded: the queue holds 80 % of its bound in bytes or events.
    AlmostFull,
    /// Degraded: the key, the quota or the encoding is rejected (`DeliveryPhase::Paused`).
    Paused,
    /// Degraded: the last request failed (`DeliveryPhase::Backoff`, `DeliveryPhase::Cooldown`).
    EndpointFailing,
    /// Degraded: all remaining events are quarantined (`DeliveryPhase::Quarantined`).
    Quarantined,
    /// Degraded: an event has been in the store for more than five minutes, whatever delivery is doing. Also while a
    /// backlog of an outage is delivered.
    Late,
    /// Degraded: feature flag definitions could not be loaded when that was last tried, or PostHog rejects the secret key
    /// (`Stats::flag_definitions_failure`).
    FlagDefinitions,
    /// Degraded: delivery panicked, a defect of this library, and is started again.
    DeliveryRestarting,
    /// Degraded: the client is disabled by the program, or has no key.
    Disabled,
    /// Degraded: the program has opted out.
    OptedOut,
    /// Degraded: this is a forked child that has captured nothing yet.
    NotOpened,
}

impl HealthStatus {
    /// All of them.
    pub(crate) const ALL: [HealthStatus; 3] = [HealthStatus::Ready, HealthStatus::Degraded, HealthStatus::Failing];

    /// The name of the variant in snake case, as in metrics: `ready`, `degraded`, `failing`.
    pub fn name(self) -> &'static str {
        match self {
            HealthStatus::Ready => "ready",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Failing => "failing",
        }
    }
}

impl HealthCause {
    /// All of them.
    pub(crate) const ALL: [HealthCause; 17] = [
        HealthCause::Closed,
        HealthCause::ThreadEnded,
        HealthCause::ThreadStuck,
        HealthCause::Rejecting,
        HealthCause::AiUnavailable,
        HealthCause::InMemory,
        HealthCause::StorageFailing,
        HealthCause::AlmostFull,
        HealthCause::Paused,
        HealthCause::EndpointFailing,
        HealthCause::Quarantined,
        HealthCause::Late,
        HealthCause::FlagDefinitions,
        HealthCause::DeliveryRestarting,
        HealthCause::Disabled,
        HealthCause::OptedOut,
        HealthCause::NotOpened,
    ];

    /// The name of the variant in snake case, as in metrics: `rejecting`, `endpoint_failing`.
    pub fn name(self) -> &'static str {
        match self {
            HealthCause::Closed => "closed",
            HealthCause::ThreadEnded => "thread_ended",
            HealthCause::ThreadStuck => "thread_stuck",
            HealthCause::Rejecting => "rejecting",
            HealthCause::AiUnavailable => "ai_unavailable",
            HealthCause::InMemory => "in_memory",
            HealthCause::StorageFailing => "storage_failing",
            HealthCause::AlmostFull => "almost_full",
            HealthCause::Paused => "paused",
            HealthCause::EndpointFailing => "endpoint_failing",
            HealthCause::Quarantined => "quarantined",
            HealthCause::Late => "late",
            HealthCause::FlagDefinitions => "flag_definitions",
            HealthCause::DeliveryRestarting => "delivery_restarting",
            HealthCause::Disabled => "disabled",
            HealthCause::OptedOut => "opted_out",
            HealthCause::NotOpened => "not_opened",
        }
    }

    /// The status of a client with this problem and no worse one: [`Failing`](HealthStatus::Failing) or
    /// [`Degraded`](HealthStatus::Degraded).
    pub fn status(self) -> HealthStatus {
        match self {
            HealthCause::Closed | HealthCause::ThreadEnded | HealthCause::ThreadStuck | HealthCause::Rejecting => {
                HealthStatus::Failing
            }
            _ => HealthStatus::Degraded,
        }
    }
}

impl Health {
    /// For a readiness probe: whether events that are captured now are accepted. True unless the status is
    /// [`Failing`](HealthStatus::Failing); so it stays true while PostHog is down, and for a client that the program
    /// itself has disabled.
    pub fn is_ready(&self) -> bool {
        self.status != HealthStatus::Failing
    }

    /// For a liveness probe: false if a restart of the process helps. That is the case if
    ///
    /// * a thread of the client has ended although the client is open, or has been stuck for more than five minutes,
    /// * another process has taken over a queue (its lock file was removed), so that all further events are dropped: the
    ///   next start uses another queue, and the events of this one are delivered by the process that has it,
    /// * this is a forked child that could not open a queue, which it does not try again.
    ///
    /// A client that was closed or disabled, a full queue, a rejected key and an outage are no reasons: a restart would
    /// change nothing, and the events are in the queue. Nor is a queue in memory, whose events a restart would lose.
    pub fn is_alive(&self) -> bool {
        self.is_alive
    }

    /// Whether one of the problems has this cause.
    pub fn has(&self, cause: HealthCause) -> bool {
        self.problems.iter().any(|problem| problem.cause == cause)
    }
}

impl Stats {
    /// Judges the client by this snapshot: see [`Health`] for the meaning of each status, and [`HealthCause`] for the
    /// rules. Reads nothing but the snapshot, so it gives the same for a snapshot that was stored.
    pub fn health(&self) -> Health {
        let mut problems: Vec<_> = self.lanes().flat_map(|(lane, stats)| stats.problems(lane)).collect();
        if self.storage != StorageMode::Closed {
            problems.extend(self.thread_problems());
            if self.ai_unavailable {
                let detail = "the queue of AI events cannot be opened, and AI events are dropped; opening is tried again \
                              by the first one that is captured a minute later; the diagnostic storage_failing says why";
                problems.push(HealthProblem { cause: HealthCause::AiUnavailable, lane: "ai", detail: detail.into() });
            }
            if let Some(detail) = self.flag_definitions_failure.clone() {
                problems.push(HealthProblem { cause: HealthCause::FlagDefinitions, lane: "analytics", detail });
            }
        }
        // Stable: problems of the same severity stay in the order in which they were found.
        problems.sort_by_key(|problem| Reverse(problem.cause.status()));
        let is_gone = |thread: ThreadState| thread == ThreadState::Ended || thread.busy_for() > NOT_ALIVE_AFTER;
        Health {
            status: problems.first().map_or(HealthStatus::Ready, |worst| worst.cause.status()),
            oldest_age: self.oldest_age,
            last_success: self.lanes().filter_map(|(_, lane)| lane.last_success).max(),
            storage: self.storage.clone(),
            medium: self.medium,
            fill_percent: (self.fill() * 100.0).clamp(0.0, 100.0) as u8,
            is_alive: self.storage == StorageMode::Closed
                || !(is_gone(self.commit_thread) || is_gone(self.deliver_thread) || self.lanes().any(has_no_queue)),
            problems,
        }
    }

    /// The problems of one lane.
    pub(crate) fn problems(&self, lane: &'static str) -> Vec<HealthProblem> {
        let problem = |cause, detail: String| HealthProblem { cause, lane, detail };
        // Without a queue there is nothing else to judge.
        match (&self.storage, self.rejecting) {
            (StorageMode::Closed, _) => {
                let detail =
                    "the client was shut down, and drops every event; queued events are sent by the next start";
                return vec![problem(HealthCause::Closed, detail.into())];
            }
            (StorageMode::Disabled, _) => {
                return vec![problem(HealthCause::Disabled, "the client is disabled, and drops every event".into())];
            }
            (StorageMode::Forked, None) => {
                let detail = "this forked process has no queue yet; its first capture opens one";
                return vec![problem(HealthCause::NotOpened, detail.into())];
            }
            _ => {}
        }
        let rejecting = self.rejecting.map(|reason| match reason {
            DropReason::OptedOut => problem(
                HealthCause::OptedOut,
                "the program has opted out: events are dropped, and nothing is sent".into(),
            ),
            reason => problem(HealthCause::Rejecting, format!("events are dropped: {reason}{}", remedy(reason))),
        });
        let (storage, delivery) = (self.storage_problem(), self.delivery_problem());
        let all = [rejecting, storage.map(|(cause, detail)| problem(cause, detail))].into_iter().chain(
            [self.almost_full(), delivery, self.late(), self.restarting()]
                .map(|found| found.map(|(cause, detail)| problem(cause, detail))),
        );
        all.flatten().collect()
    }

    fn storage_problem(&self) -> Option<(HealthCause, String)> {
        match &self.storage {
            StorageMode::Degraded { problem } => Some((HealthCause::StorageFailing, problem.clone())),
            StorageMode::Volatile { problem } => Some((
                HealthCause::InMemory,
                format!(
                    "the queue is in memory only, and queued events are lost when this process ends: {problem}; make the directory usable \
                     and restart the process"
                ),
            )),
            _ => None,
        }
    }

    fn almost_full(&self) -> Option<(HealthCause, String)> {
        let fill = self.fill();
        let detail = || {
            format!(
                "the queue is {:.0} % full ({}); beyond its bounds Config::overflow (POSTHOG_OVERFLOW) decides what is dropped; see why events are not \
                 delivered, or raise Config::max_queue_bytes (POSTHOG_MAX_QUEUE_BYTES) or max_queue_events",
                fill * 100.0,
                count(self.queued_events, "event")
            )
        };
        (fill >= ALMOST_FULL).then(|| (HealthCause::AlmostFull, detail()))
    }

    fn delivery_problem(&self) -> Option<(HealthCause, String)> {
        let retry = self.delivery.retry_in().map(time)?;
        let said = self.last_error.as_deref().unwrap_or("no reason is known");
        Some(match self.delivery {
            DeliveryPhase::Paused { status, .. } => (
                HealthCause::Paused,
                // The last error names the status, too.
                format!(
                    "delivery is paused (HTTP status {status}): {}; events stay queued, and the next attempt is in {retry}; check the \
                     API key (POSTHOG_API_KEY), the host (POSTHOG_HOST), and the quota in PostHog's billing settings",
                    without_status(said, status)
                ),
            ),
            DeliveryPhase::Quarantined { .. } => (
                HealthCause::Quarantined,
                format!(
                    "all remaining events were rejected or fail ({said}); they stay queued and are tried again in {retry}"
                ),
            ),
            _ => (
                HealthCause::EndpointFailing,
                format!("events cannot be delivered: {said}; they stay queued, and the next attempt is in {retry}"),
            ),
        })
    }

    fn late(&self) -> Option<(HealthCause, String)> {
        let age = self.oldest_age.filter(|age| *age > LATE_AFTER && self.rejecting != Some(DropReason::OptedOut))?;
        let waiting = count(self.queued_events, "event");
        Some((HealthCause::Late, format!("{waiting} not delivered yet, the oldest for {}", time(age))))
    }

    fn restarting(&self) -> Option<(HealthCause, String)> {
        let detail = "delivery panicked, and is started again within five minutes; please report this defect";
        (self.deliver_thread == ThreadState::Restarting).then(|| (HealthCause::DeliveryRestarting, detail.into()))
    }

    fn thread_problems(&self) -> impl Iterator<Item = HealthProblem> {
        let threads = [("posthog-commit", self.commit_thread), ("posthog-deliver", self.deliver_thread)];
        threads.into_iter().filter_map(|(name, state)| {
            let (cause, detail) = if state == ThreadState::Ended {
                let detail = format!("the thread {name} has ended; restart the process, and please report this defect");
                (HealthCause::ThreadEnded, detail)
            } else if state.busy_for() > STUCK_AFTER {
                let detail = format!(
                    "the thread {name} has not finished for {}: the disk does not respond, or a callback of the program (on_diagnostic, \
                     on_delivery) does not return",
                    time(state.busy_for())
                );
                (HealthCause::ThreadStuck, detail)
            } else {
                return None;
            };
            Some(HealthProblem { cause, lane: "analytics", detail })
        })
    }
}

/// Whether a lane has no queue until the process is restarted: another process has taken it over, or a forked child
/// could not open one.
fn has_no_queue((_, lane): (&'static str, &Stats)) -> bool {
    matches!(lane.rejecting, Some(DropReason::Storage | DropReason::Forked))
}

/// A failure without the status that it begins with.
fn without_status(said: &str, status: u16) -> &str {
    said.strip_prefix(&format!("HTTP status {status}")).map_or(said, |rest| rest.trim_start_matches([':', ',', ' ']))
}

/// What an operator can do about dropped events.
fn remedy(reason: DropReason) -> &'static str {
    match reason {
        DropReason::QueueFull => {
            "; see why events are not delivered, or raise Config::max_queue_bytes (POSTHOG_MAX_QUEUE_BYTES) or max_queue_events"
        }
        DropReason::DiskFull => "; free some space, or lower Config::min_free_space (POSTHOG_MIN_FREE_SPACE)",
        DropReason::Storage => "; restart this process to use a new queue",
        DropReason::Forked => "; restart this process to try it again, see the diagnostic storage_failing",
        DropReason::JournalFull => "; check the disk, or raise Config::journal_bytes (POSTHOG_JOURNAL_BYTES)",
        _ => "",
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for HealthCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for HealthProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lane == "ai" {
            f.write_str("AI events: ")?;
        }
        f.write_str(&self.detail)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.name())?;
        for (nth, problem) in self.problems.iter().enumerate() {
            f.write_str(if nth == 0 { ": " } else { " | " })?;
            problem.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
