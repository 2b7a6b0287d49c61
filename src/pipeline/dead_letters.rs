//! Dead letters that the program retries or discards.
//!
//! A retried dead letter is appended to the journal like a new event: it counts as accepted once more and is sent under
//! its old uuid and time, and `dead_lettered` keeps counting its first outcome. It is removed from the dead letters
//! only after the store has it among the queued events. If the process dies in between, it is in both places; of an
//! event that is sent twice PostHog keeps one.

use std::sync::Arc;

use super::committer::Committer;
use super::mailbox::DeadLetterAction;
use super::pending::{Promise, Unanswered};
use super::shared::Pipeline;
use crate::queue::store::DeadRecord;
use crate::record::View;
use crate::report::DeadLetterError;

impl Pipeline {
    /// Retries or discards all dead letters. The promise is answered with the number of dead letters affected.
    pub(crate) fn command_dead_letters(
        &self,
        action: DeadLetterAction,
        promise: Promise<Result<u64, DeadLetterError>>,
    ) {
        self.mailbox.send(|commands| commands.dead.push((action, promise)));
        self.answer_late_commands();
    }
}

impl Committer {
    /// Carries out commands for dead letters. During a shutdown they are answered as closed.
    pub(super) fn handle_dead_letters(&mut self) {
        if !self.commands.dead.is_empty() && self.may_try() && !self.reopen_if_latched() {
            return;
        }
        for (action, promise) in std::mem::take(&mut self.commands.dead) {
            if self.stopping.is_none() {
                promise.answer(match action {
                    DeadLetterAction::Retry => self.retry_dead(),
                    DeadLetterAction::Discard => self.discard_dead(),
                });
            }
        }
    }

    fn retry_dead(&mut self) -> Result<u64, DeadLetterError> {
        let pipeline = Arc::clone(&self.pipeline);
        if !self.may_try() {
            // Not begun: a record that cannot be checkpointed would be in both places.
            return Err(self.store_problem());
        }
        // Only the dead letters of this moment are retried, and not those that are refused meanwhile.
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

    /// Appends these records and checkpoints them. Returns which were appended, and whether the queue was too full for
    /// the rest.
    fn queue_again(&mut self, records: Vec<DeadRecord>) -> Result<(Vec<u64>, bool), DeadLetterError> {
        let pipeline = Arc::clone(&self.pipeline);
        let (mut queued, mut newest, mut is_full) = (Vec::new(), 0, false);
        for record in records {
            // A record that cannot be decoded cannot be sent.
            let Ok(view) = View::parse(&record.body) else { continue };
            let class = view.head.class as u8;
            let append = || {
                // Where the oldest events are evicted, the records appended first would be evicted by the others, and
                // would be lost.
                if pipeline.would_evict(record.body.len()) { None } else { pipeline.append(&record.body, class).ok() }
            };
            let appended = append().or_else(|| {
                // The journal may be full; and the bounds were checked before the last acks were committed.
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
        if self.reopening.is_some() {
            return Err(self.store_problem());
        }
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

/// The sum of two lanes.
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
