//! Who waits for a power cut to become harmless.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock;
use super::pending::{self, Pending, Promise};
use crate::report::PersistError;

#[derive(Debug, Default)]
struct Waiting {
    list: Vec<Waiter>,
    /// Nobody syncs any more.
    closed: bool,
}

/// A sequence number, and who waits for it.
type Waiter = (u64, Promise<Result<(), PersistError>>);

#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Everything up to here survives a power cut.
    synced: AtomicU64,
    waiting: Mutex<Waiting>,
}

impl Receipts {
    /// Resolves when `seq` is synced; `ring` is called if that has yet to be done.
    pub(super) fn wait_for(&self, seq: u64, ring: impl FnOnce()) -> Pending<Result<(), PersistError>> {
        let (promise, answer) = pending::pending();
        {
            let mut waiting = lock(&self.waiting);
            // Looked at under the lock: the committer raises the mark before it takes the lock to answer.
            if self.synced() >= seq {
                drop(waiting);
                promise.answer(Ok(()));
                return answer;
            }
            if waiting.closed {
                drop(waiting);
                promise.answer(Err(PersistError::Closed));
                return answer;
            }
            waiting.list.push((seq, promise));
        }
        ring();
        answer
    }

    /// Everything up to `seq` survives a power cut now.
    pub(super) fn synced_up_to(&self, seq: u64) {
        self.synced.fetch_max(seq, Ordering::AcqRel);
        let done: Vec<_> = lock(&self.waiting).list.extract_if(.., |(waits_for, _)| *waits_for <= seq).collect();
        for (_, promise) in done {
            promise.answer(Ok(()));
        }
    }

    /// The sync that all who wait now were waiting for has failed.
    pub(super) fn fail(&self, error: &PersistError) {
        let all = std::mem::take(&mut lock(&self.waiting).list);
        for (_, promise) in all {
            promise.answer(Err(error.clone()));
        }
    }

    /// Nobody syncs any more: who waits, or comes later, is told so.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.fail(&PersistError::Closed);
    }

    /// The highest sequence number that survives a power cut.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.waiting).list.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sync_serves_all_who_wait_and_nobody_who_came_later() {
        let receipts = Receipts::default();
        let answers: Vec<_> = (1..=3).map(|seq| receipts.wait_for(seq, || ())).collect();
        receipts.synced_up_to(2);
        let resolved: Vec<_> = answers.iter().map(|answer| answer.try_get()).collect();
        assert_eq!(resolved, [Some(Ok(())), Some(Ok(())), None]);
        let late = receipts.wait_for(1, || panic!("already synced: nobody is rung for"));
        assert_eq!(late.try_get(), Some(Ok(())));
        receipts.fail(&PersistError::Sync("broken".into()));
        assert_eq!(answers[2].try_get(), Some(Err(PersistError::Sync("broken".into()))));
        receipts.close();
        let after = receipts.wait_for(9, || panic!("nobody is left to be rung for"));
        assert_eq!(after.try_get(), Some(Err(PersistError::Closed)));
    }
}
