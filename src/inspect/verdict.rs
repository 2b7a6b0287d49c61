//! [`QueueVerdict`]: whether a queue is well, judged from its [`QueueStatus`] alone.
//!
//! A pure function. What the owner says of itself is judged by the rules of [`Stats::health`](crate::Stats::health);
//! what only an observer can see is added: that nobody has the queue open, that the owner is stopped or hangs, and that
//! files were damaged.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::status::{QueueOwner, QueueStatus};
use crate::report::{HealthCause, HealthProblem, StorageMode};
use crate::sys::clock::elapsed;
use crate::sys::wording::{bytes, count, time};

/// An owner that is so late with its next sign of life hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// An endpoint that has been failing for longer is not waited for any more: an operator should look.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// How a queue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueVerdict {
    /// The worst of the findings' states; `Fine` if there is none.
    pub state: QueueState,
    /// What was found, the worst first.
    pub findings: Vec<QueueFinding>,
}

/// How a queue is, in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum QueueState {
    /// Events leave, or there are none.
    Fine,
    /// Events wait for something that is expected to happen.
    Waiting,
    /// Nothing can be said: a newer version wrote the queue, or the page of a living owner is damaged.
    Unknown,
    /// Events wait for something that an operator has to do.
    Stuck,
    /// A damaged file was set aside, or the store cannot be read.
    Damaged,
    /// Events that are captured now are dropped.
    Dropping,
}

/// Something that an operator should know about a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueFinding {
    /// Its kind: the name of a [`HealthCause`], or `no_owner`, `adopted`, `stopped`, `hangs`, `undescribed`,
    /// `damaged_files`, `page_damaged`, `store_unreadable`, `crash_reports`, `newer_format`, `importing`, `unfinished_import`.
    pub cause: &'static str,
    /// How a queue with this finding and no worse one is.
    pub state: QueueState,
    /// What is wrong, and what happens meanwhile.
    pub what: String,
    /// What the operator can do; empty if there is nothing to do.
    pub advice: String,
}

impl QueueState {
    /// All of them.
    pub(super) const ALL: [QueueState; 6] = [
        QueueState::Fine,
        QueueState::Waiting,
        QueueState::Unknown,
        QueueState::Stuck,
        QueueState::Damaged,
        QueueState::Dropping,
    ];

    /// The name of the variant in snake case: `fine`, `waiting`.
    pub fn name(self) -> &'static str {
        match self {
            QueueState::Fine => "fine",
            QueueState::Waiting => "waiting",
            QueueState::Unknown => "unknown",
            QueueState::Stuck => "stuck",
            QueueState::Damaged => "damaged",
            QueueState::Dropping => "dropping",
        }
    }
}

impl fmt::Display for QueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for QueueState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

fn finding(cause: &'static str, state: QueueState, what: impl Into<String>, advice: impl Into<String>) -> QueueFinding {
    QueueFinding { cause, state, what: what.into(), advice: advice.into() }
}

impl QueueStatus {
    /// Judges the queue. Reads nothing but this status.
    pub fn verdict(&self) -> QueueVerdict {
        let mut findings = match (self.newer_format, &self.owner) {
            (Some(version), _) => vec![finding(
                "newer_format",
                QueueState::Unknown,
                format!("a newer version of this library wrote the queue (format {version})"),
                "use the posthog-queue of that version",
            )],
            (None, owner) if self.is_import => vec![self.finding_of_import(owner.as_ref())],
            (None, Some(_)) => self.findings_of_owner(),
            (None, None) => self.findings_without_owner(),
        };
        findings.extend(self.findings_of_files());
        // Stable: findings of the same severity stay in the order in which they were found.
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.state));
        QueueVerdict { state: findings.first().map_or(QueueState::Fine, |worst| worst.state), findings }
    }

    /// An import that is under way or was not finished. Nobody else uses its queue.
    fn finding_of_import(&self, owner: Option<&QueueOwner>) -> QueueFinding {
        let events = count(self.queued_events, "event");
        if let Some(owner) = owner {
            let process = owner.pid.map_or("a process".to_owned(), |pid| format!("process {pid}"));
            let what = format!("{process} imports: {events} so far; nothing of it is sent before the import has ended");
            return finding("importing", QueueState::Waiting, what, "");
        }
        let what = format!("an import was not finished: {events} of it are kept here and not sent");
        let what = if self.queued_events == 1 { what.replace(" are kept", " is kept") } else { what };
        let advice = format!("repeat the same import, which goes on, or give it up: remove {}", self.path.display());
        finding("unfinished_import", QueueState::Stuck, what, advice)
    }

    fn findings_of_owner(&self) -> Vec<QueueFinding> {
        let Some(owner) = &self.owner else { return Vec::new() };
        let process = owner.pid.map_or("its process".to_owned(), |pid| format!("process {pid}"));
        if owner.is_stopped {
            let resume = owner.pid.map_or("resume it".to_owned(), |pid| format!("resume it: kill -CONT {pid}"));
            let what = format!("{process} is stopped (SIGSTOP, or a debugger): nothing is captured or sent");
            return vec![finding("stopped", QueueState::Stuck, what, resume)];
        }
        if self.is_page_damaged {
            let what = format!(
                "the status page of {process} is damaged, so what is in the queue is not known; the process goes on, and \
                 writes the page again with what it captures and sends"
            );
            let advice = format!("look again, or read the queue itself: posthog-queue verify {}", self.path.display());
            return vec![finding("page_damaged", QueueState::Unknown, what, advice)];
        }
        let Some(state) = &self.state else { return self.findings_of_silent_owner(&process) };
        let overdue = state.due_at.map(|at| elapsed(at, self.now)).filter(|late| *late > HANGS_AFTER);
        if let Some(late) = overdue {
            let what = format!(
                "{process} hangs: it has given no sign of life for {}; {} in the queue",
                time(late),
                count(self.queued_events, "event")
            );
            let advice =
                "check whether the disk responds (dmesg), or restart the program: what is in the queue is kept";
            return vec![finding("hangs", QueueState::Stuck, what, advice)];
        }
        if state.storage == StorageMode::Closed {
            // The program is being shut down, and releases the queue in a moment.
            return Vec::new();
        }
        let problems = self.as_stats().map(|stats| stats.problems(self.lane)).unwrap_or_default();
        problems.into_iter().map(|problem| self.of_problem(problem)).collect()
    }

    /// An owner that says nothing of itself: it has just begun, its library is older, or it only drains the queue.
    fn findings_of_silent_owner(&self, process: &str) -> Vec<QueueFinding> {
        if self.owner.as_ref().is_some_and(|owner| owner.adopts) {
            let waiting = count(self.queued_events, "event");
            let what = format!("{process} sends what another process has left here: {waiting} to go");
            return vec![finding("adopted", QueueState::Waiting, what, "")];
        }
        if self.queued_events == 0 {
            return Vec::new();
        }
        let waiting = count(self.queued_events, "event");
        let what = format!("{process} has the queue open and does not say how delivery is; {waiting} in the queue");
        let advice =
            "if it has just been started, look again; a program with an older version of this library never says it";
        vec![finding("undescribed", QueueState::Waiting, what, advice)]
    }

    fn of_problem(&self, problem: HealthProblem) -> QueueFinding {
        let is_long = self.oldest_age.is_some_and(|age| age > STUCK_AFTER)
            || self
                .state
                .as_ref()
                .and_then(|state| state.failing_since)
                .is_some_and(|at| elapsed(at, self.now) > STUCK_AFTER);
        let (state, advice) = match problem.cause {
            HealthCause::Rejecting => (QueueState::Dropping, ""),
            HealthCause::EndpointFailing if is_long => {
                let advice = "check that this machine reaches the host (name, route, proxy, firewall), and \
                              https://status.posthog.com";
                (QueueState::Stuck, advice)
            }
            HealthCause::Quarantined => (QueueState::Stuck, "see which they are with: posthog-queue list"),
            HealthCause::Paused | HealthCause::AlmostFull | HealthCause::StorageFailing | HealthCause::InMemory => {
                (QueueState::Stuck, "")
            }
            _ => (QueueState::Waiting, ""),
        };
        finding(problem.cause.name(), state, problem.detail, advice)
    }

    fn findings_without_owner(&self) -> Vec<QueueFinding> {
        let mut findings = Vec::new();
        if self.queued_events > 0 {
            let age = self.oldest_age.map(|age| format!(", the oldest for {}", time(age))).unwrap_or_default();
            let failed = self.delivery.as_ref().filter(|delivery| delivery.consecutive_failures > 0);
            let failed = failed.and_then(|delivery| delivery.last_error.as_deref());
            let failed = failed.map(|error| format!("; the last process could not send: {error}")).unwrap_or_default();
            let what = format!(
                "no process has the queue open: {} for a start of the program{age}{failed}",
                if self.queued_events == 1 {
                    "1 event waits".to_owned()
                } else {
                    format!("{} wait", count(self.queued_events, "event"))
                },
            );
            let advice = format!("start the program, or send them with: posthog-queue drain {}", self.path.display());
            findings.push(finding("no_owner", QueueState::Waiting, what, advice));
        }
        if let Some(problem) = &self.store_problem {
            let what = format!("the store cannot be read: {problem}");
            let project = if self.needs_project { "--host URL --key KEY " } else { "" };
            let advice = format!(
                "the next start of the program saves what can be read, or: posthog-queue repair {project}{}",
                self.path.display()
            );
            findings.push(finding("store_unreadable", QueueState::Damaged, what, advice));
        }
        if self.crash_reports > 0 {
            let reports = count(self.crash_reports, "crash report");
            let what = format!("{reports} not sent yet; the next start of the program sends them");
            findings.push(finding("crash_reports", QueueState::Waiting, what, ""));
        }
        findings
    }

    fn findings_of_files(&self) -> Vec<QueueFinding> {
        if self.damaged_files.is_empty() {
            return Vec::new();
        }
        let taken = self.damaged_files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
        let what = format!(
            "{} set aside ({}) when it was replaced; {} lost in the life of the queue",
            count(self.damaged_files.len() as u64, "damaged file"),
            bytes(taken),
            count(self.damaged, "event"),
        );
        let names: Vec<_> = self.damaged_files.iter().map(|file| file.path.display().to_string()).collect();
        let advice = format!("keep a copy if you want to report it, then remove {}", names.join(", "));
        vec![finding("damaged_files", QueueState::Damaged, what, advice)]
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
