//! The mailbox of the committer: commands from any thread, and the wake-up of the committer thread.
//!
//! Each lane has a [`Mailbox`]; the mailboxes of all lanes of a client share one [`Wake`], because one thread serves
//! them. Adding a command never waits for the committer: commands gather until it takes them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::outcomes::Awaited;
use super::pending::Promise;
use super::shared::lock;
use crate::queue::Totals;
use crate::report::{DeadLetterError, EndpointStatus, FlushReport, ShutdownReport};

/// Commands for the committer, gathered until it takes them.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// A caller waits for its event to be durable.
    pub(super) sync: bool,
    /// Check the bounds of the queue.
    pub(super) check_bounds: bool,
    /// Look for an orphan to deliver: delivery found nothing to send in this shard.
    pub(super) adopt: bool,
    /// Let go of the orphan that is being delivered: it cannot be read.
    pub(super) abandon: bool,
    /// Begin these flushes.
    pub(super) flushes: Vec<Flush>,
    /// Flushes that delivery has completed, each with the state in which it found the endpoint.
    pub(super) flushed: Vec<(Flush, EndpointStatus)>,
    /// Events to be sent now, because a caller waits for their outcome.
    pub(super) awaited: Vec<Awaited>,
    /// Retry or discard dead letters, and promise the number affected.
    pub(super) dead: Vec<(DeadLetterAction, Promise<Result<u64, DeadLetterError>>)>,
    /// Flag definitions to be stored for the next process; `Some(None)` removes those that are stored.
    pub(super) definitions: Option<Option<Vec<u8>>>,
    /// The loader of flag definitions has ended, and the program's provider was shut down.
    pub(super) loading_ended: bool,
    /// Deadline of delivery in a shutdown. Set after intake has ended.
    pub(super) stop: Option<Instant>,
    /// Callers that wait for the end of a shutdown.
    pub(super) stops: Vec<Promise<ShutdownReport>>,
    /// Delivery has ended, and found the endpoint in this state.
    pub(super) delivery_ended: Option<EndpointStatus>,
}

impl Commands {
    /// Whether a command needs all accepted events to be in the store first.
    pub(super) fn wants_all(&self) -> bool {
        !(self.flushes.is_empty() && self.awaited.is_empty() && self.dead.is_empty())
    }
}

/// A flush that is under way.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) promise: Promise<FlushReport>,
    /// The totals at the time of the call. A fast server may accept events before delivery receives the flush.
    pub(super) before: Totals,
}

/// What to do with all dead letters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeadLetterAction {
    /// Queue them again.
    Retry,
    /// Delete them.
    Discard,
}

/// Wakes the committer thread. The mailboxes of all lanes share one.
#[derive(Debug, Default)]
pub(super) struct Wake {
    state: Mutex<WakeState>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct WakeState {
    is_woken: bool,
    /// Number of wake-ups so far.
    #[cfg(feature = "testing")]
    wakes: u64,
    /// The committer is waiting, and nothing is due now.
    #[cfg(feature = "testing")]
    waited_for: bool,
}

impl Wake {
    /// Wakes the committer thread, or keeps it from falling asleep.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        state.is_woken = true;
        #[cfg(feature = "testing")]
        {
            state.wakes += 1;
        }
        drop(state);
        self.woken.notify_one();
    }

    /// Stays awake until woken, for at most `most`.
    pub(super) fn linger(&self, most: Duration) {
        let until = Instant::now() + most;
        while !self.lock().is_woken && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    /// Waits until woken, or until `until`; without a bound if `None`.
    pub(super) fn wait(&self, until: Option<Instant>, now: impl Fn() -> Instant) {
        let mut state = self.lock();
        while !state.is_woken {
            let left = until.map(|until| until.saturating_duration_since(now()));
            #[cfg(feature = "testing")]
            {
                state.waited_for = left != Some(Duration::ZERO);
            }
            state = match left {
                None => self.woken.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.woken.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        #[cfg(feature = "testing")]
        {
            state.waited_for = false;
        }
        state.is_woken = false;
    }

    fn lock(&self) -> MutexGuard<'_, WakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commands of one lane for the committer. Any thread adds to them; the committer takes them.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// The committer believes that every record in the journal is synced. The next append clears this and wakes it.
    believes_clean: AtomicBool,
    stopping: AtomicBool,
    /// The committer was woken for this lane since it last asked.
    is_woken: AtomicBool,
    commands: Mutex<Commands>,
    wake: Arc<Wake>,
}

impl Mailbox {
    /// A mailbox whose commands wake the thread that waits on `wake`.
    pub(super) fn new(wake: Arc<Wake>) -> Self {
        Self { wake, ..Self::default() }
    }

    /// Adds to the commands and wakes the committer.
    pub(super) fn send(&self, ask: impl FnOnce(&mut Commands)) {
        ask(&mut lock(&self.commands));
        self.wake();
    }

    /// Wakes the committer: something is due that it does not know of.
    pub(super) fn wake(&self) {
        self.is_woken.store(true, Ordering::Release);
        self.wake.wake();
    }

    /// Whether the committer was woken for this lane since the last call. Asked before the commands are taken: one that
    /// is added in between wakes the committer once more.
    pub(super) fn take_woken(&self) -> bool {
        self.is_woken.swap(false, Ordering::AcqRel)
    }

    /// Takes the commands that have gathered.
    pub(super) fn take(&self) -> Commands {
        std::mem::take(&mut *lock(&self.commands))
    }

    /// Whether the next append must wake the committer. Relaxed suffices: the journal's lock is taken between the
    /// committer's store of this flag and its look at the journal, and between that look and any later record.
    #[inline]
    pub(super) fn believes_clean(&self) -> bool {
        self.believes_clean.load(Ordering::Relaxed)
    }

    /// Wakes the committer for a record that it does not expect.
    #[cold]
    pub(super) fn wake_for_records(&self) {
        self.believes_clean.store(false, Ordering::Relaxed);
        self.wake();
    }

    /// Set to true before the committer looks at the journal for the last time before it sleeps.
    pub(super) fn believe_clean(&self, clean: bool) {
        self.believes_clean.store(clean, Ordering::Relaxed);
    }

    /// Whether intake has ended.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends intake. Returns whether it was open.
    pub(super) fn begin_stopping(&self) -> bool {
        !self.stopping.swap(true, Ordering::AcqRel)
    }

    /// Waits as the committer thread does, and takes the commands.
    #[cfg(test)]
    pub(super) fn listen(&self, until: Option<Instant>, now: impl Fn() -> Instant) -> Commands {
        self.wake.wait(until, now);
        self.take()
    }

    /// Number of wake-ups so far, if the committer waits for the next one.
    #[cfg(feature = "testing")]
    pub(super) fn asleep(&self) -> Option<u64> {
        let state = self.wake.lock();
        (state.waited_for && !state.is_woken).then_some(state.wakes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_before_and_during_a_wait_are_received_once() {
        let mailbox = Mailbox::default();
        mailbox.send(|commands| commands.sync = true);
        mailbox.send(|commands| commands.check_bounds = true);
        let commands = mailbox.listen(None, Instant::now);
        assert!(commands.sync && commands.check_bounds);
        std::thread::scope(|scope| {
            scope.spawn(|| mailbox.send(|commands| commands.adopt = true));
            assert!(mailbox.listen(None, Instant::now).adopt);
        });
        assert!(!mailbox.listen(Some(Instant::now()), Instant::now).adopt);
    }
}
