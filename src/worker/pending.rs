//! An answer that comes later, for threads and for tasks alike.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::disk::fork;
use crate::reentry;

/// An answer that comes later. Await it, or [`wait`](Pending::wait) for it; it works on any executor and without one.
///
/// It always resolves: with the answer, or with an answer that says why there is none (the client was closed, the process is a
/// forked child of the one that asked).
///
/// ```
/// # fn demo(client: posthog::Client) {
/// use std::time::Duration;
/// match client.flush().wait(Duration::from_secs(5)) {
///     Ok(report) => println!("{} events wait for later", report.remaining),
///     Err(timeout) => println!("{timeout}"),
/// }
/// # }
/// ```
#[must_use = "nothing is waited for unless it is awaited or `wait` is called"]
#[derive(Debug)]
pub struct Pending<T> {
    slot: Arc<Slot<T>>,
}

/// The time given to [`Pending::wait`] ran out, or the wait could never have ended because it was made on one of the client's own
/// threads (inside `on_delivery`, say).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer within the time given; what was asked for goes on in the background")]
pub struct WaitTimeout;

/// The side that answers.
#[derive(Debug)]
pub(crate) struct Promise<T: Unanswered> {
    slot: Arc<Slot<T>>,
}

/// What an answer is when nobody can give one any more.
pub(crate) trait Unanswered {
    /// The client was closed, or the thread that should have answered is gone.
    fn closed() -> Self;
    /// Asked in a parent process, waited for in a forked child.
    fn forked() -> Self;
}

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    generation: u64,
    forked: fn() -> T,
}

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Answered(T),
}

/// A promise and what resolves with it.
pub(crate) fn pending<T: Unanswered>() -> (Promise<T>, Pending<T>) {
    let slot = Arc::new(Slot {
        state: Mutex::new(State::Waiting(None)),
        ready: Condvar::new(),
        generation: fork::generation(),
        forked: T::forked,
    });
    (Promise { slot: Arc::clone(&slot) }, Pending { slot })
}

/// One that is resolved already.
pub(crate) fn answered<T: Unanswered>(answer: T) -> Pending<T> {
    let (promise, pending) = pending();
    promise.answer(answer);
    pending
}

impl<T: Clone> Pending<T> {
    /// Waits for the answer, `most` at the longest. May be called again after a timeout.
    ///
    /// # Errors
    ///
    /// [`WaitTimeout`] if there was no answer in time. On a thread of the client itself it comes at once: the answer could only
    /// be given by the very thread that waits.
    pub fn wait(&self, most: Duration) -> Result<T, WaitTimeout> {
        if self.slot.is_forked() {
            return Ok((self.slot.forked)());
        }
        let deadline = Instant::now().checked_add(most);
        let mut state = self.slot.lock();
        loop {
            if let State::Answered(answer) = &*state {
                return Ok(answer.clone());
            }
            if reentry::on_our_thread() {
                return Err(WaitTimeout);
            }
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return Err(WaitTimeout);
            }
            state = self.slot.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The answer, if it is there.
    pub fn try_get(&self) -> Option<T> {
        if self.slot.is_forked() {
            return Some((self.slot.forked)());
        }
        match &*self.slot.lock() {
            State::Answered(answer) => Some(answer.clone()),
            State::Waiting(_) => None,
        }
    }
}

impl<T: Unanswered> Promise<T> {
    /// Gives the answer. The first one counts.
    pub(crate) fn answer(self, answer: T) {
        self.slot.resolve(answer);
    }
}

impl<T: Unanswered> Drop for Promise<T> {
    fn drop(&mut self) {
        if !self.slot.is_forked() {
            self.slot.resolve(T::closed());
        }
    }
}

impl<T> Slot<T> {
    fn resolve(&self, answer: T) {
        let waker = {
            let mut state = self.lock();
            if matches!(*state, State::Answered(_)) {
                return;
            }
            match std::mem::replace(&mut *state, State::Answered(answer)) {
                State::Waiting(waker) => waker,
                State::Answered(_) => None,
            }
        };
        self.ready.notify_all();
        if let Some(waker) = waker {
            // An executor is not our code; what it does on a wake must not take our thread along.
            crate::reentry::caught(|| waker.wake());
        }
    }

    /// Asked before the lock is touched: in a child it may be held by a thread that does not exist there.
    fn is_forked(&self) -> bool {
        fork::generation() != self.generation
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> IntoFuture for Pending<T> {
    type Output = T;
    type IntoFuture = PendingFuture<T>;

    fn into_future(self) -> PendingFuture<T> {
        PendingFuture { slot: self.slot }
    }
}

/// The future of a [`Pending`].
#[derive(Debug)]
pub struct PendingFuture<T> {
    slot: Arc<Slot<T>>,
}

impl<T: Clone> Future for PendingFuture<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if self.slot.is_forked() {
            return Poll::Ready((self.slot.forked)());
        }
        let mut state = self.slot.lock();
        match &mut *state {
            State::Answered(answer) => Poll::Ready(answer.clone()),
            State::Waiting(waker) => {
                match waker {
                    Some(known) => known.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Answer {
        Said(u32),
        Closed,
        Forked,
    }

    impl Unanswered for Answer {
        fn closed() -> Self {
            Answer::Closed
        }
        fn forked() -> Self {
            Answer::Forked
        }
    }

    #[test]
    fn a_thread_and_a_task_get_the_same_answer() {
        let (promise, waiting) = pending::<Answer>();
        assert_eq!((waiting.try_get(), waiting.wait(Duration::ZERO)), (None, Err(WaitTimeout)));
        std::thread::scope(|scope| {
            scope.spawn(|| promise.answer(Answer::Said(4)));
            assert_eq!(waiting.wait(Duration::from_secs(10)), Ok(Answer::Said(4)));
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(waiting.into_future()), Answer::Said(4));
    }

    #[test]
    fn a_task_is_woken_by_an_answer_from_another_thread() {
        let (promise, waiting) = pending::<Answer>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(async {
            let task = waiting.into_future();
            let answering = std::thread::spawn(move || promise.answer(Answer::Said(5)));
            let answer = task.await;
            answering.join().unwrap();
            answer
        });
        assert_eq!(answer, Answer::Said(5));
    }

    #[test]
    fn a_promise_that_is_dropped_resolves_as_closed() {
        let (promise, waiting) = pending::<Answer>();
        drop(promise);
        assert_eq!(waiting.wait(Duration::from_secs(10)), Ok(Answer::Closed));
    }

    #[test]
    fn waiting_on_our_own_thread_ends_at_once() {
        let (_promise, waiting) = pending::<Answer>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                reentry::this_thread_is_ours();
                assert_eq!(waiting.wait(Duration::from_secs(3600)), Err(WaitTimeout));
            });
        });
    }
}
