//! What wakes the committer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::dead::Ordered;
use super::flush::Flush;
use super::outcomes::Awaited;
use super::pending::Promise;
use crate::delivery;
use crate::flags::loader::Keep;
use crate::report::ShutdownReport;

/// What is asked of the committer, gathered until it looks.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Somebody awaits a receipt.
    pub(super) sync: bool,
    /// The bounds should be looked at again.
    pub(super) look_again: bool,
    /// Delivery found nothing to send in our own shard.
    pub(super) adopt: bool,
    /// The orphan that is being delivered cannot be read.
    pub(super) abandon: bool,
    /// Flushes that begin.
    pub(super) flushes: Vec<Flush>,
    /// Flushes that the delivery is done with, and how it found the endpoint.
    pub(super) flushed: Vec<(Flush, delivery::EndpointStatus)>,
    /// Events to be sent at once, because somebody waits for what becomes of them.
    pub(super) awaited: Vec<Awaited>,
    /// What is to be done with dead letters.
    pub(super) dead: Vec<Ordered>,
    /// What the next process is to find of the definitions of flags.
    pub(super) definitions: Option<Keep>,
    /// No more of them are loaded, and the program's provider was shut down.
    pub(super) loading_ended: bool,
    /// Until when delivery may go on; set once intake has ended.
    pub(super) stop: Option<Instant>,
    /// Who waits for the end.
    pub(super) stops: Vec<Promise<ShutdownReport>>,
    /// Delivery has ended, and found the endpoint so.
    pub(super) delivery_ended: Option<delivery::EndpointStatus>,
}

impl Wanted {
    /// Whether what is asked needs everything to be in the store: to be sent, or to be told from what is there.
    pub(super) fn wants_all(&self) -> bool {
        !(self.flushes.is_empty() && self.awaited.is_empty() && self.dead.is_empty())
    }
}

#[derive(Debug, Default)]
struct State {
    wanted: Wanted,
    rung: bool,
    /// How often it was rung.
    #[cfg(feature = "testing")]
    rings: u64,
    /// The committer waits for it, and for nothing that is due now.
    #[cfg(feature = "testing")]
    waited_for: bool,
}

/// Rung by anybody, heard by the committer.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// The committer believes that everything in the journal is synced: the next record must tell it otherwise.
    believes_clean: AtomicBool,
    stopping: AtomicBool,
    state: Mutex<State>,
    rung: Condvar,
}

impl Mailbox {
    /// Adds to what is wanted and wakes the committer.
    pub(super) fn ring(&self, ask: impl FnOnce(&mut Wanted)) {
        let mut state = self.lock();
        ask(&mut state.wanted);
        state.rung = true;
        #[cfg(feature = "testing")]
        {
            state.rings += 1;
        }
        drop(state);
        self.rung.notify_one();
    }

    /// Whether the next record must ring. Relaxed is enough: the journal's lock lies between the committer's store of this flag and
    /// its look at the journal, and between that look and any later record.
    #[inline]
    pub(super) fn believes_clean(&self) -> bool {
        self.believes_clean.load(Ordering::Relaxed)
    }

    /// A record was appended that the committer does not expect.
    #[cold]
    pub(super) fn ring_for_records(&self) {
        self.believes_clean.store(false, Ordering::Relaxed);
        self.ring(|_| ());
    }

    /// The committer is about to look at the journal for the last time before it sleeps.
    pub(super) fn believe_clean(&self, clean: bool) {
        self.believes_clean.store(clean, Ordering::Relaxed);
    }

    /// Intake has ended.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Marks the end of intake; says whether this was the first to do so.
    pub(super) fn begin_stopping(&self) -> bool {
        !self.stopping.swap(true, Ordering::AcqRel)
    }

    /// Stays awake until rung, for so long at most.
    pub(super) fn linger(&self, most: Duration) {
        let until = Instant::now() + most;
        while !self.lock().rung && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    /// Waits until rung, or until `until`; for ever if `None`. Takes what is wanted.
    pub(super) fn listen(&self, until: Option<Instant>, now: impl Fn() -> Instant) -> Wanted {
        let mut state = self.lock();
        while !state.rung {
            let left = until.map(|until| until.saturating_duration_since(now()));
            #[cfg(feature = "testing")]
            {
                state.waited_for = left != Some(Duration::ZERO);
            }
            state = match left {
                None => self.rung.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.rung.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        #[cfg(feature = "testing")]
        {
            state.waited_for = false;
        }
        state.rung = false;
        std::mem::take(&mut state.wanted)
    }

    /// Takes out the flushes that the delivery is done with: nobody listens any more.
    pub(super) fn take_flushed(&self) -> Vec<(Flush, delivery::EndpointStatus)> {
        std::mem::take(&mut self.lock().wanted.flushed)
    }

    /// How often it was rung so far, if the committer waits for it to be rung again.
    #[cfg(feature = "testing")]
    pub(super) fn asleep(&self) -> Option<u64> {
        let state = self.lock();
        (state.waited_for && !state.rung).then_some(state.rings)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_before_and_during_a_wait_is_heard_once() {
        let mailbox = Mailbox::default();
        mailbox.ring(|wanted| wanted.sync = true);
        mailbox.ring(|wanted| wanted.look_again = true);
        let wanted = mailbox.listen(None, Instant::now);
        assert!(wanted.sync && wanted.look_again);
        std::thread::scope(|scope| {
            scope.spawn(|| mailbox.ring(|wanted| wanted.adopt = true));
            assert!(mailbox.listen(None, Instant::now).adopt);
        });
        assert!(!mailbox.listen(Some(Instant::now()), Instant::now).adopt);
    }
}
