//! Dead letters that are sent again, or thrown away, because the program says so.
//!
//! One that is sent again goes through the journal like a new event: it counts as accepted once more, is sent under its old uuid and
//! time, and `buried` goes on counting its first end. It leaves the dead letters only when the store has it among what is queued. A
//! process that dies in between has it in both places; sent twice, PostHog keeps one.

use std::sync::Arc;

use super::Pipeline;
use super::committer::Committer;
use super::pending::{self, Pending, Promise, Unanswered};
use crate::queue::store::DeadRecord;
use crate::record::View;
use crate::report::DeadLetterError;

/// What is to be done with all dead letters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeadOrder {
    /// Queue them again.
    Retry,
    /// Forget them.
    Discard,
}

/// An order, and who waits for how many that were.
#[derive(Debug)]
pub(super) struct Ordered {
    order: DeadOrder,
    promise: Promise<Result<u64, DeadLetterError>>,
}

impl Pipeline {
    /// Has that done with all dead letters there are; resolves with how many that were.
    pub(crate) fn order_dead(&self, order: DeadOrder) -> Pending<Result<u64, DeadLetterError>> {
        let (promise, answer) = pending::pending();
        self.mailbox.ring(|wanted| wanted.dead.push(Ordered { order, promise }));
        // It may have ended before: then nobody hears it.
        if self.finished.get().is_some() { pending::answered(Err(DeadLetterError::Closed)) } else { answer }
    }
}

impl Committer {
    /// Does what was asked for. Not while stopping: who waits is told that the client is closed.
    pub(super) fn tend_dead(&mut self) {
        if !self.asked.dead.is_empty() && self.may_try() {
            self.reopen_if_latched();
        }
        for Ordered { order, promise } in std::mem::take(&mut self.asked.dead) {
            if self.stopping.is_none() {
                promise.answer(match order {
                    DeadOrder::Retry => self.retry_dead(),
                    DeadOrder::Discard => self.discard_dead(),
                });
            }
        }
    }

    fn retry_dead(&mut self) -> Result<u64, DeadLetterError> {
        let pipeline = Arc::clone(&self.pipeline);
        if !self.may_try() {
            // Not even begun: what could not be checkpointed would be there twice.
            return Err(self.store_problem());
        }
        // What is refused meanwhile, perhaps one of these once more, is not meant.
        let seqs = pipeline.shard.dead_seqs().map_err(|error| storage(&error))?;
        let (mut total, mut after) = (0, None);
        loop {
            let read = pipeline.shard.dead(after, usize::MAX).map_err(|error| storage(&error))?;
            after = read.last.filter(|last| Some(last) <= seqs.last());
            let meant = read.records.into_iter().filter(|record| Some(&record.seq) <= seqs.last()).collect();
            let (queued, is_full) = self.queue_again(meant)?;
            total += self.remove_dead(queued)?;
            if is_full || after.is_none() {
                return Ok(total);
            }
        }
    }

    /// Queues these again and sees them into the store. Returns which were, and whether there was no room for more.
    fn queue_again(&mut self, records: Vec<DeadRecord>) -> Result<(Vec<u64>, bool), DeadLetterError> {
        let pipeline = Arc::clone(&self.pipeline);
        let (mut queued, mut newest, mut is_full) = (Vec::new(), 0, false);
        for record in records {
            // What cannot be read cannot be sent either.
            let Ok(view) = View::parse(&record.body) else { continue };
            let class = view.head.class as u8;
            let append = || {
                // Where the oldest make room, those that were queued again first would make it for the others, and be nowhere.
                if pipeline.would_evict(record.body.len()) { None } else { pipeline.append(&record.body, class).ok() }
            };
            let appended = append().or_else(|| {
                // The journal may be full, and whether the queue is was looked at before what was acked was committed.
                self.checkpoint();
                self.keep_bounds();
                append()
            });
            let Some(seq) = appended else {
                is_full = true;
                break;
            };
            queued.push(record.seq);
            newest = seq;
        }
        self.checkpoint();
        if pipeline.shard.ledger().accepted < newest {
            return Err(self.store_problem());
        }
        Ok((queued, is_full))
    }

    fn store_problem(&self) -> DeadLetterError {
        let problem = self.pipeline.problem();
        DeadLetterError::Storage(problem.unwrap_or_else(|| "it could not be written".into()))
    }

    fn discard_dead(&mut self) -> Result<u64, DeadLetterError> {
        let seqs = self.pipeline.shard.dead_seqs().map_err(|error| storage(&error))?;
        self.remove_dead(seqs)
    }

    fn remove_dead(&mut self, seqs: Vec<u64>) -> Result<u64, DeadLetterError> {
        let count = seqs.len() as u64;
        if count > 0
            && let Err(error) = self.pipeline.shard.remove_dead(seqs)
        {
            self.store_failed(&error);
            return Err(storage(&error));
        }
        Ok(count)
    }
}

fn storage(error: &crate::queue::QueueError) -> DeadLetterError {
    DeadLetterError::Storage(error.to_string())
}

/// Of both lanes: how many there were in all.
pub(crate) fn sum(
    first: Result<u64, DeadLetterError>,
    second: Result<u64, DeadLetterError>,
) -> Result<u64, DeadLetterError> {
    Ok(first?.saturating_add(second?))
}

impl Unanswered for Result<u64, DeadLetterError> {
    fn closed() -> Self {
        Err(DeadLetterError::Closed)
    }

    fn forked() -> Self {
        Err(DeadLetterError::Forked)
    }
}
