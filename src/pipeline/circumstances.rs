//! Why a capture was turned away, with the figures and the state that explain it to an operator.

use std::path::PathBuf;
use std::time::Duration;

use super::{Pipeline, lock};
use crate::delivery::{self, DeliveryHandle};
use crate::report::DropReason;
use crate::sys::limits::LOCK_WAIT;
use crate::sys::wording::{bytes, number, time};

/// How things stand when an event is turned away. Gathered without I/O: it is the caller's thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    /// Where the queue lies.
    pub(crate) dir: PathBuf,
    pub(crate) journal_bytes: u64,
    pub(crate) max_queue_bytes: u64,
    /// `Some` if it is the number of events that has reached its bound.
    pub(crate) max_queue_events: Option<u64>,
    pub(crate) min_free_space: u64,
    /// What is wrong with storage.
    pub(crate) problem: Option<String>,
    /// How long the oldest event has been in the store.
    pub(crate) oldest: Option<Duration>,
    /// The endpoint that fails, if it does.
    pub(crate) outage: Option<Outage>,
}

/// An endpoint that fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outage {
    pub(crate) host: String,
    pub(crate) lasts: Duration,
    /// What the last attempt said.
    pub(crate) said: String,
}

/// Server texts may be pages of HTML, and the line is about the queue.
const SAID_MOST: usize = 100;

impl Circumstances {
    /// Why an event is turned away for that reason.
    pub(crate) fn explain(&self, reason: DropReason) -> String {
        match reason {
            DropReason::QueueFull => {
                let bound = match self.max_queue_events {
                    Some(events) => format!("max_queue_events = {}", number(events)),
                    None => format!("max_queue_bytes = {}", bytes(self.max_queue_bytes)),
                };
                format!("queue is full ({bound}); {}", self.backlog())
            }
            DropReason::JournalFull => {
                let full = format!("journal is full (journal_bytes = {})", bytes(self.journal_bytes));
                match &self.problem {
                    Some(problem) => format!("{full}, and cannot be moved to the queue: {problem}"),
                    None => format!("{full}: events come faster than they can be stored; raise Config::journal_bytes"),
                }
            }
            DropReason::JournalBusy => format!(
                "the journal's lock was not free within {}: the thread that holds it was stopped, or the machine is overloaded",
                time(LOCK_WAIT)
            ),
            DropReason::DiskFull => format!(
                "the file system of {} has less free than min_free_space ({}); free some space, or lower Config::min_free_space",
                self.dir.display(),
                bytes(self.min_free_space)
            ),
            DropReason::Storage => match &self.problem {
                Some(problem) => format!("the journal in {} could not be written: {problem}", self.dir.display()),
                None => format!("the journal in {} could not be written", self.dir.display()),
            },
            other => other.to_string(),
        }
    }

    /// Why the queue does not get shorter.
    fn backlog(&self) -> String {
        let oldest = self.oldest.map(|age| format!("oldest event is {} old", time(age)));
        match (&self.outage, oldest) {
            (Some(outage), oldest) => {
                let oldest = oldest.map_or(String::new(), |oldest| oldest + ", ");
                let said = crate::sys::limits::beginning(&outage.said, SAID_MOST);
                format!("{oldest}endpoint {} has failed for {} ({said})", outage.host, time(outage.lasts))
            }
            (None, Some(oldest)) => format!("{oldest}; events come faster than they are delivered, raise the bound"),
            (None, None) => "events come faster than they are delivered, raise the bound".to_owned(),
        }
    }
}

impl Pipeline {
    /// How things stand.
    pub(crate) fn circumstances(&self) -> Circumstances {
        let limits = &self.options.limits;
        let since = *lock(&self.failing_since);
        let wall = self.options.clock.wall_nanos();
        let age = |at: i64| Duration::from_nanos(u64::try_from(wall.saturating_sub(at)).unwrap_or(0));
        Circumstances {
            dir: self.shard.dir().clone(),
            journal_bytes: self.options.arena_bytes as u64,
            max_queue_bytes: limits.queue_bytes,
            max_queue_events: Some(limits.queue_events).filter(|_| self.admission.is_full_of_events()),
            min_free_space: limits.min_free_space,
            problem: lock(&self.out_of_reach).clone().or_else(|| self.problem()),
            oldest: self.shard.oldest_at().map(age),
            outage: since.map(|since| Outage {
                host: self.options.project.host.clone(),
                lasts: self.options.clock.now().saturating_duration_since(since),
                said: self
                    .delivery()
                    .and_then(|delivery| DeliveryHandle::state(delivery).last_error)
                    .unwrap_or_default(),
            }),
        }
    }

    /// The delivery says how the endpoint is.
    pub(super) fn note_outage(&self, notice: &delivery::Notice) {
        use delivery::Notice as N;
        let mut since = lock(&self.failing_since);
        match notice {
            N::Recovered => *since = None,
            N::NotPostHog { .. }
            | N::Paused { .. }
            | N::ServerFailed { .. }
            | N::TransportFailed { .. }
            | N::Cooldown { .. }
            | N::RefusingEverything { .. } => {
                since.get_or_insert(self.options.clock.now());
            }
            _ => {}
        }
    }
}
