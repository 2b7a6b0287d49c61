//! [`Receipt`]: the result of a capture.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use uuid::Uuid;

use crate::pipeline::{Pending, Pipeline, pending};
use crate::report::{DropReason, PersistError};
use crate::sys::disk::fork;

/// The result of a capture: whether the event was accepted, and under which uuid.
///
/// Small and `Copy`; dropping it changes nothing about the event.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    outcome: Outcome,
    uuid: Option<Uuid>,
    seq: u64,
    pipeline: u64,
    generation: u64,
}

/// Whether an event was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event is in the queue. It survives the process, and leaves the queue only when PostHog has accepted it, or
    /// for a reason that [`Stats`](crate::Stats) counts.
    Accepted,
    /// The event was not accepted, and nothing of it was kept.
    Dropped(DropReason),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Accepted => f.write_str("accepted"),
            Outcome::Dropped(reason) => write!(f, "dropped: {reason}"),
        }
    }
}

impl Receipt {
    #[inline]
    pub(super) fn accepted(uuid: Uuid, seq: u64, pipeline: &Pipeline) -> Self {
        let (pipeline, generation) = (pipeline.id(), pipeline.generation());
        Self { outcome: Outcome::Accepted, uuid: Some(uuid), seq, pipeline, generation }
    }

    #[inline]
    pub(super) fn dropped(reason: DropReason) -> Self {
        Self { outcome: Outcome::Dropped(reason), uuid: None, seq: 0, pipeline: 0, generation: 0 }
    }

    /// Whether the event was accepted.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the event was accepted.
    pub fn is_accepted(&self) -> bool {
        self.outcome == Outcome::Accepted
    }

    /// The event's uuid, or the reason why it was dropped: the same as [`outcome`](Self::outcome), for use with `?`.
    ///
    /// # Errors
    ///
    /// The [`DropReason`] if the event was not accepted.
    ///
    /// ```
    /// # fn demo(client: posthog::Client) -> Result<(), posthog::DropReason> {
    /// use posthog::Event;
    /// let uuid = client.capture(Event::new("paid", "user_1")).result()?;
    /// # let _ = uuid;
    /// # Ok(())
    /// # }
    /// ```
    pub fn result(&self) -> Result<Uuid, DropReason> {
        match (self.outcome, self.uuid) {
            (Outcome::Dropped(reason), _) => Err(reason),
            (Outcome::Accepted, uuid) => Ok(uuid.unwrap_or_default()),
        }
    }

    /// The uuid under which PostHog stores the event; `None` if the event was dropped.
    pub fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    /// The event's sequence number in its queue; 0 if the event was dropped.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Resolves when the event would survive a power cut. Costs one `fdatasync`, shared by all callers that wait at
    /// that moment.
    ///
    /// # Errors
    ///
    /// [`PersistError`] if the event may not survive: the disk failed, the queue is in memory, or the event was
    /// dropped.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use posthog::Event;
    /// # use posthog::reports::PersistError;
    /// # use std::time::Duration;
    /// let receipt = client.capture(Event::new("paid", "user_1"));
    /// let persisted = receipt.persisted().wait(Duration::from_secs(1));
    /// # assert_eq!(persisted, Err(PersistError::Dropped));
    /// ```
    pub fn persisted(&self) -> Pending<Result<(), PersistError>> {
        if !self.is_accepted() {
            return pending::answered(Err(PersistError::Dropped));
        }
        if fork::generation() != self.generation {
            return pending::answered(Err(PersistError::Forked));
        }
        match find(self.pipeline) {
            Some(pipeline) => pipeline.persisted(self.seq),
            None => pending::answered(Err(PersistError::Closed)),
        }
    }
}

/// The pipelines of this process, by fork generation.
///
/// A receipt refers to its pipeline by number. Holding an `Arc` instead would cost each capture two writes to a counter
/// that all threads write, more than the rest of the receipt. Each fork generation (modulo 8) has its own list,
/// because in a forked child the lock of the parent's list may be held by a thread that does not exist there.
static PIPELINES: [RwLock<Vec<Weak<Pipeline>>>; 8] = [const { RwLock::new(Vec::new()) }; 8];

pub(super) fn register(pipeline: &Arc<Pipeline>) {
    let mut known = pipelines().write().unwrap_or_else(PoisonError::into_inner);
    known.retain(|other| other.strong_count() > 0);
    known.push(Arc::downgrade(pipeline));
}

fn find(id: u64) -> Option<Arc<Pipeline>> {
    let known = pipelines().read().unwrap_or_else(PoisonError::into_inner);
    known.iter().filter_map(Weak::upgrade).find(|pipeline| pipeline.id() == id)
}

fn pipelines() -> &'static RwLock<Vec<Weak<Pipeline>>> {
    &PIPELINES[(fork::generation() % PIPELINES.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_stays_small() {
        assert!(size_of::<Receipt>() <= 56, "{}", size_of::<Receipt>());
    }
}
