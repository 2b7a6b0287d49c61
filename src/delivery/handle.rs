//! How other threads talk to the engine: a mailbox that never makes anybody wait.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::flush::EndpointStatus;
use super::state::DeliveryState;

/// Told how the endpoint was found, at the end of a flush or of the engine.
pub(crate) type Done = Box<dyn FnOnce(EndpointStatus) + Send>;

/// The engine, from outside. Clones are the same engine. No call waits.
#[derive(Clone)]
pub(crate) struct DeliveryHandle {
    shared: Arc<Shared>,
}

impl DeliveryHandle {
    /// A handle that no engine listens to yet.
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// The engine's side of it.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// After an engine has ended: takes questions for the next one. False if none is wanted any more.
    pub(super) fn reopen(&self) -> bool {
        let mut inbox = self.shared.inbox();
        inbox.closed = inbox.is_ending();
        inbox.committed = true;
        !inbox.closed
    }

    /// Resolves when no engine is wanted any more.
    pub(super) async fn ending(&self) {
        while !self.shared.inbox().is_ending() {
            self.shared.wake.notified().await;
        }
    }

    /// There are new chunks.
    pub(crate) fn committed(&self) {
        self.ask(|inbox| inbox.committed = true);
    }

    /// Sends what is committed now; `done` is called on the engine's task, or here if the engine has ended.
    pub(crate) fn flush(&self, done: Done) {
        let mut done = Some(done);
        self.ask(|inbox| inbox.flushes.extend(done.take_if(|_| !inbox.closed)));
        if let Some(done) = done {
            call(done, EndpointStatus::Stopped);
        }
    }

    /// Delivers what it can until `deadline`, acks what is known, and ends. A second call can only bring the deadline forward.
    pub(crate) fn stop(&self, deadline: Instant, done: Done) {
        let mut done = Some(done);
        self.ask(|inbox| {
            inbox.stop = Some(inbox.stop.map_or(deadline, |earlier| earlier.min(deadline)));
            inbox.stopped.extend(done.take_if(|_| !inbox.closed));
        });
        if let Some(done) = done {
            call(done, EndpointStatus::Stopped);
        }
    }

    /// Ends at once and acks nothing more.
    pub(crate) fn abandon(&self) {
        self.ask(|inbox| inbox.abandoned = true);
    }

    /// A snapshot for statistics.
    pub(crate) fn state(&self) -> DeliveryState {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it goes by has changed: the source is held back, or the clock was moved.
    pub(crate) fn look_again(&self) {
        self.ask(|_| ());
    }

    /// The thread of the engine's runtime goes to sleep, or was woken.
    #[cfg(feature = "testing")]
    pub(crate) fn parked(&self, parked: bool) {
        self.shared.inbox().parked = parked;
    }

    /// How often it was asked for something so far, if there is nothing left to do before the time or an answer comes.
    #[cfg(feature = "testing")]
    pub(crate) fn asleep(&self) -> Option<u64> {
        let inbox = self.shared.inbox();
        (inbox.closed || (inbox.parked && inbox.heard == inbox.asked)).then_some(inbox.asked)
    }

    fn ask(&self, change: impl FnOnce(&mut Inbox)) {
        {
            let mut inbox = self.shared.inbox();
            change(&mut inbox);
            #[cfg(feature = "testing")]
            {
                inbox.asked += 1;
            }
        }
        self.shared.wake.notify_one();
    }
}

impl Debug for DeliveryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryHandle").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What is asked of the engine.
#[derive(Default)]
pub(super) struct Inbox {
    /// There are new chunks.
    pub(super) committed: bool,
    /// Who began a flush.
    pub(super) flushes: Vec<Done>,
    /// Until when to go on.
    pub(super) stop: Option<Instant>,
    /// Who waits for the end.
    pub(super) stopped: Vec<Done>,
    /// How a stop that came to its end found the endpoint.
    pub(super) found: Option<EndpointStatus>,
    /// To end at once.
    pub(super) abandoned: bool,
    closed: bool,
    /// How often anything was asked.
    #[cfg(feature = "testing")]
    asked: u64,
    /// How much of that the engine has heard.
    #[cfg(feature = "testing")]
    heard: u64,
    #[cfg(feature = "testing")]
    parked: bool,
}

impl Inbox {
    /// The engine has taken out everything that was asked.
    #[cfg(feature = "testing")]
    pub(super) fn heard_all(&mut self) {
        self.heard = self.asked;
    }

    fn is_ending(&self) -> bool {
        self.stop.is_some() || self.abandoned
    }
}

/// The engine's side of the mailbox.
#[derive(Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    state: Mutex<DeliveryState>,
    /// Rings once for any number of requests.
    pub(super) wake: Notify,
}

impl Shared {
    /// What is asked; held for a few instructions only.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a snapshot.
    pub(super) fn publish(&self, state: DeliveryState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Nothing is taken any more; who still waits is told. Also reached when the runtime drops the engine's task.
    pub(super) fn close(&self) {
        let (flushes, stopped, found) = {
            let mut inbox = self.inbox();
            inbox.closed = true;
            let found = inbox.found.take().unwrap_or(EndpointStatus::Stopped);
            (std::mem::take(&mut inbox.flushes), std::mem::take(&mut inbox.stopped), found)
        };
        for done in flushes {
            call(done, EndpointStatus::Stopped);
        }
        for done in stopped {
            call(done, found.clone());
        }
    }
}

/// Calls back; a panic there is not the engine's. False if there was one.
pub(super) fn call(done: Done, endpoint: EndpointStatus) -> bool {
    crate::sys::reentry::caught(|| done(endpoint)).is_some()
}
