//! What a capture answers.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use uuid::Uuid;

use crate::pipeline::{DropReason, Pending, PersistError, Pipeline, pending};
use crate::sys::disk::fork;

/// What became of a captured event. Small and inert: it may be dropped, kept or sent elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    outcome: Outcome,
    uuid: Option<Uuid>,
    seq: u64,
    pipeline: u64,
    generation: u64,
}

/// Whether an event was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the queue. It survives the process from now on, and leaves the queue only when PostHog has taken it, or for a reason
    /// that `stats` counts.
    Accepted,
    /// It was not taken, and nothing of it was kept.
    Dropped(DropReason),
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

    /// Whether the event was taken.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the event was taken.
    pub fn is_accepted(&self) -> bool {
        self.outcome == Outcome::Accepted
    }

    /// The event's uuid, under which PostHog has it; `None` if it was not taken.
    pub fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    /// The event's sequence number in its queue; 0 if it was not taken.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Resolves when the event would survive a power cut: one `fdatasync`, shared by all who wait at that moment.
    ///
    /// # Errors
    ///
    /// [`PersistError`] says why it is not known to: the disk failed, the queue is in memory, the event was dropped.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use posthog::{Event, PersistError};
    /// # use std::time::Duration;
    /// let receipt = client.capture(Event::new("paid", "user_1"));
    /// let persisted = receipt.persisted().wait(Duration::from_secs(1));
    /// # assert_eq!(persisted, Ok(Err(PersistError::Dropped)));
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

/// The pipelines of this process. A receipt names its pipeline by number: holding it would cost each capture two writes to a counter
/// that every thread writes, more than the rest of its bookkeeping. One list for each generation of forks: the lock of the parent's
/// may be held, in a child, by a thread that does not exist there.
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
    fn a_receipt_stays_small_enough_to_be_given_away_freely() {
        assert!(size_of::<Receipt>() <= 56, "{}", size_of::<Receipt>());
    }
}
