//! An answer that comes later, for threads and for tasks alike.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::sys::disk::fork;
use crate::sys::reentry;

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
pub(crate) trait Unanswered: Clone + Send + Sync {
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
    /// The answer when nobody can give one, where the caller has said it.
    instead: Option<T>,
}

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Answered(T, Option<OnTaken>),
}

/// Runs on the thread that takes the answer, when it is taken for the first time: what follows from somebody's reading it.
struct OnTaken(Box<dyn FnOnce() + Send>);

impl fmt::Debug for OnTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnTaken").finish_non_exhaustive()
    }
}

/// A promise and what resolves with it.
pub(crate) fn pending<T: Unanswered>() -> (Promise<T>, Pending<T>) {
    promise(None)
}

/// The same, with the answer for when nobody can give one.
pub(crate) fn pending_or<T: Unanswered>(instead: T) -> (Promise<T>, Pending<T>) {
    promise(Some(instead))
}

fn promise<T: Unanswered>(instead: Option<T>) -> (Promise<T>, Pending<T>) {
    let slot = Arc::new(Slot {
        state: Mutex::new(State::Waiting(None)),
        ready: Condvar::new(),
        generation: fork::generation(),
        forked: T::forked,
        instead,
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
            return Ok(self.slot.forked_answer());
        }
        let deadline = Instant::now().checked_add(most);
        let mut state = self.slot.lock();
        loop {
            if let Some(answer) = taken(&mut state) {
                drop(state);
                return Ok(answer.given());
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
            return Some(self.slot.forked_answer());
        }
        let answer = taken(&mut self.slot.lock());
        answer.map(Answered::given)
    }
}

/// An answer on its way out of the lock.
struct Answered<T>(T, Option<OnTaken>);

impl<T> Answered<T> {
    fn given(self) -> T {
        if let Some(OnTaken(run)) = self.1 {
            run();
        }
        self.0
    }
}

fn taken<T: Clone>(state: &mut State<T>) -> Option<Answered<T>> {
    match state {
        State::Answered(answer, on_taken) => Some(Answered(answer.clone(), on_taken.take())),
        State::Waiting(_) => None,
    }
}

impl<T: Unanswered> Promise<T> {
    /// Gives the answer. The first one counts.
    pub(crate) fn answer(self, answer: T) {
        self.slot.resolve(answer, None);
    }

    /// The same; `on_taken` runs when somebody takes the answer, on his thread, and never if nobody does.
    pub(crate) fn answer_and(self, answer: T, on_taken: impl FnOnce() + Send + 'static) {
        self.slot.resolve(answer, Some(OnTaken(Box::new(on_taken))));
    }
}

impl<T: Unanswered> Drop for Promise<T> {
    fn drop(&mut self) {
        if !self.slot.is_forked() {
            self.slot.resolve(self.slot.instead.clone().unwrap_or_else(T::closed), None);
        }
    }
}

impl<T> Slot<T> {
    fn resolve(&self, answer: T, on_taken: Option<OnTaken>) {
        let waker = {
            let mut state = self.lock();
            if matches!(*state, State::Answered(..)) {
                return;
            }
            match std::mem::replace(&mut *state, State::Answered(answer, on_taken)) {
                State::Waiting(waker) => waker,
                State::Answered(..) => None,
            }
        };
        self.ready.notify_all();
        if let Some(waker) = waker {
            // An executor is not our code; what it does on a wake must not take our thread along.
            reentry::caught(|| reentry::calling_out(|| waker.wake()));
        }
    }

    /// Asked before the lock is touched: in a child it may be held by a thread that does not exist there.
    fn is_forked(&self) -> bool {
        fork::generation() != self.generation
    }

    fn forked_answer(&self) -> T
    where
        T: Clone,
    {
        self.instead.clone().unwrap_or_else(self.forked)
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
            return Poll::Ready(self.slot.forked_answer());
        }
        let mut state = self.slot.lock();
        if let State::Waiting(waker) = &mut *state {
            match waker {
                Some(known) => known.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
        }
        let answer = taken(&mut state);
        drop(state);
        answer.map_or(Poll::Pending, |answer| Poll::Ready(answer.given()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_taking_an_answer_happens_once_and_on_the_thread_that_takes_it() {
        let (promise, waiting) = pending::<Answer>();
        let (tell, told) = std::sync::mpsc::channel();
        let answering = std::thread::spawn(move || {
            promise.answer_and(Answer::Said(6), move || tell.send(std::thread::current().id()).unwrap());
        });
        answering.join().unwrap();
        assert!(told.try_recv().is_err(), "nobody has looked");
        assert_eq!((waiting.try_get(), waiting.try_get()), (Some(Answer::Said(6)), Some(Answer::Said(6))));
        assert_eq!(told.iter().collect::<Vec<_>>(), [std::thread::current().id()]);
    }

    #[test]
    fn a_promise_that_is_dropped_resolves_as_whoever_asked_has_said() {
        let (promise, waiting) = pending_or(Answer::Said(7));
        drop(promise);
        assert_eq!(waiting.try_get(), Some(Answer::Said(7)));
    }

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
