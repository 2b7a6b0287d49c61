//! [`Pending`]: the result of a call that takes time, for threads and for tasks alike.
//!
//! A [`Promise`] and a [`Pending`] share one slot. A thread of the library gives the result through the promise; the
//! caller awaits the [`Pending`] or blocks on it. A promise that is dropped resolves too, with the result for a closed
//! client, so no caller waits for ever. In a forked child the slot's lock may be held by a thread that does not exist
//! there; every access therefore compares the fork generation first and gives the result for a forked child.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::flags::{FlagDefinitionsError, RemoteConfigError};
use crate::report::{
    DeadLetterError, DeliveryReport, EndpointStatus, FlushReport, PersistError, ShutdownReport, WaitTimeout,
};
use crate::sys::disk::fork;
use crate::sys::reentry;

/// The result of a call that takes time: await it, or block the thread with [`wait`](Pending::wait). It works on any
/// executor and without one.
///
/// It always resolves: with the result, or with a value that says why there is none (the client was closed, or the
/// process is a forked child of the one that made the call). Dropping it cancels nothing.
///
/// ```
/// # fn demo(client: posthog::Client) {
/// use std::time::Duration;
/// match client.flush().wait(Duration::from_secs(5)) {
///     Ok(report) => println!("{} events are still queued", report.remaining),
///     Err(timeout) => println!("{timeout}"),
/// }
/// # }
/// ```
#[must_use = "the result is lost unless this is awaited or `wait` is called"]
#[derive(Debug)]
pub struct Pending<T> {
    slot: Arc<Slot<T>>,
}

/// The types that a [`Pending`] resolves to, and what [`Pending::wait`] returns for each.
///
/// `wait` adds one failure, the timeout. For a plain value such as [`FlushReport`] it returns `Result<FlushReport,
/// WaitTimeout>`. For a `Result<T, E>` it returns the same `Result<T, E>`, whose error type has a variant `Timeout`, so
/// that there is only one result to match. Implemented by this library alone.
pub trait PendingValue: Clone + sealed::Sealed {
    /// The value of a successful `wait`.
    type Value;
    /// The error of a failed `wait`.
    type Error: From<WaitTimeout>;

    /// The resolved value as the result of `wait`.
    #[doc(hidden)]
    fn into_result(self) -> Result<Self::Value, Self::Error>;
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// Implements [`PendingValue`] for types that are not a `Result`.
macro_rules! plain_pending_values {
    ($($value:ty),* $(,)?) => {
        $(
            impl $crate::pipeline::pending::sealed::Sealed for $value {}

            impl $crate::pipeline::pending::PendingValue for $value {
                type Value = Self;
                type Error = $crate::report::WaitTimeout;

                fn into_result(self) -> Result<Self, $crate::report::WaitTimeout> {
                    Ok(self)
                }
            }
        )*
    };
}
pub(crate) use plain_pending_values;

/// Implements [`PendingValue`] for `Result`s whose error has a variant `Timeout`.
macro_rules! pending_results {
    ($($value:ty, $error:ident;)*) => {
        $(
            impl sealed::Sealed for Result<$value, $error> {}

            impl PendingValue for Result<$value, $error> {
                type Value = $value;
                type Error = $error;

                fn into_result(self) -> Self {
                    self
                }
            }

            impl From<WaitTimeout> for $error {
                fn from(_: WaitTimeout) -> Self {
                    $error::Timeout
                }
            }
        )*
    };
}

plain_pending_values!(FlushReport, ShutdownReport, DeliveryReport);
pending_results! {
    (), PersistError;
    u64, DeadLetterError;
    (), FlagDefinitionsError;
    Option<Value>, RemoteConfigError;
}

/// The side of a [`Pending`] that gives the result.
#[derive(Debug)]
pub(crate) struct Promise<T: Unanswered> {
    /// Taken when the result is given.
    slot: Option<Arc<Slot<T>>>,
    /// Which part of the result it gives.
    part: usize,
}

/// The results of a call that ends without one, because the client is closed or the process was forked.
pub(crate) trait Unanswered: Clone + Send + Sync {
    /// The result when the client is closed, or the thread that should have given it is gone.
    fn closed() -> Self;
    /// The result in a forked child of the process that made the call.
    fn forked() -> Self {
        Self::closed()
    }
}

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    generation: u64,
    forked: fn() -> T,
    /// The result of a dropped promise, and in a forked child, if the caller chose one.
    instead: Option<T>,
    /// Adds a part of the result to the parts before it.
    add: fn(T, T) -> T,
}

#[derive(Debug)]
enum State<T> {
    Waiting {
        waker: Option<Waker>,
        /// Number of promises that have not given their part.
        missing: usize,
        /// The parts given so far. Empty if the result has one part only.
        given: Vec<Option<T>>,
    },
    Answered(T, Option<OnTaken>),
}

/// A callback that runs on the thread that takes the result, the first time it is taken.
struct OnTaken(Box<dyn FnOnce() + Send>);

impl fmt::Debug for OnTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnTaken").finish_non_exhaustive()
    }
}

/// A promise, and the [`Pending`] that resolves with it.
pub(crate) fn pending<T: Unanswered>() -> (Promise<T>, Pending<T>) {
    let (slot, pending) = slot(1, None, |_, last| last);
    (Promise { slot: Some(slot), part: 0 }, pending)
}

/// As [`pending`]; `instead` is the result if the promise is dropped, and in a forked child.
pub(crate) fn pending_or<T: Unanswered>(instead: T) -> (Promise<T>, Pending<T>) {
    let (slot, pending) = slot(1, Some(instead), |_, last| last);
    (Promise { slot: Some(slot), part: 0 }, pending)
}

/// One result that is the sum of `parts` parts. It resolves when the last part is given. The parts are added in the
/// order of the promises, whatever the order in which they are given. A promise that is dropped contributes
/// [`Unanswered::closed`].
pub(crate) fn pending_sum<T: Unanswered>(parts: usize, add: fn(T, T) -> T) -> (Vec<Promise<T>>, Pending<T>) {
    let (slot, pending) = slot(parts, None, add);
    let promises = (0..parts).map(|part| Promise { slot: Some(Arc::clone(&slot)), part }).collect();
    (promises, pending)
}

fn slot<T: Unanswered>(missing: usize, instead: Option<T>, add: fn(T, T) -> T) -> (Arc<Slot<T>>, Pending<T>) {
    let given = if missing > 1 { vec![None; missing] } else { Vec::new() };
    let slot = Arc::new(Slot {
        state: Mutex::new(State::Waiting { waker: None, missing, given }),
        ready: Condvar::new(),
        generation: fork::generation(),
        forked: T::forked,
        instead,
        add,
    });
    (Arc::clone(&slot), Pending { slot })
}

/// A [`Pending`] that is resolved already.
pub(crate) fn answered<T: Unanswered>(answer: T) -> Pending<T> {
    let (promise, pending) = pending();
    promise.answer(answer);
    pending
}

impl<T: Clone> Pending<T> {
    /// Blocks the calling thread until the result is there, for at most `timeout`. May be called again after a timeout,
    /// because the operation continues in the background.
    ///
    /// # Errors
    ///
    /// A timeout: [`WaitTimeout`], or the variant `Timeout` of the error that the call resolves with (see
    /// [`PendingValue`]). On one of the client's own threads (inside `on_delivery`, for example) the timeout comes at
    /// once, because the result could only be given by the thread that waits.
    pub fn wait(&self, timeout: Duration) -> Result<T::Value, T::Error>
    where
        T: PendingValue,
    {
        self.wait_for_value(timeout)?.into_result()
    }

    /// The result, if it is there already.
    pub fn try_get(&self) -> Option<T> {
        if self.slot.is_forked() {
            return Some(self.slot.forked_answer());
        }
        let answer = taken(&mut self.slot.lock());
        answer.map(given)
    }

    fn wait_for_value(&self, timeout: Duration) -> Result<T, WaitTimeout> {
        if self.slot.is_forked() {
            return Ok(self.slot.forked_answer());
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.slot.lock();
        loop {
            if let Some(answer) = taken(&mut state) {
                drop(state);
                return Ok(given(answer));
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
}

/// The result, and its callback, which runs without the lock.
fn taken<T: Clone>(state: &mut State<T>) -> Option<(T, Option<OnTaken>)> {
    match state {
        State::Answered(answer, on_taken) => Some((answer.clone(), on_taken.take())),
        State::Waiting { .. } => None,
    }
}

fn given<T>((answer, on_taken): (T, Option<OnTaken>)) -> T {
    if let Some(OnTaken(run)) = on_taken {
        run();
    }
    answer
}

impl<T: Unanswered> Promise<T> {
    /// Gives the result. Only the first result counts.
    pub(crate) fn answer(mut self, answer: T) {
        if let Some(slot) = self.slot.take() {
            slot.resolve(self.part, answer, None);
        }
    }

    /// As [`answer`](Self::answer). `on_taken` runs on the thread that takes the result first, and never if none does.
    pub(crate) fn answer_and(mut self, answer: T, on_taken: impl FnOnce() + Send + 'static) {
        if let Some(slot) = self.slot.take() {
            slot.resolve(self.part, answer, Some(OnTaken(Box::new(on_taken))));
        }
    }
}

impl<T: Unanswered> Drop for Promise<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take().filter(|slot| !slot.is_forked()) {
            let answer = slot.instead.clone().unwrap_or_else(T::closed);
            slot.resolve(self.part, answer, None);
        }
    }
}

impl<T> Slot<T> {
    fn resolve(&self, part: usize, answer: T, on_taken: Option<OnTaken>) {
        let waker = {
            let mut state = self.lock();
            let State::Waiting { waker, missing, given } = &mut *state else { return };
            let answer = match given.get_mut(part) {
                None => answer,
                Some(own) => {
                    *own = Some(answer);
                    *missing -= 1;
                    if *missing > 0 {
                        return;
                    }
                    let Some(sum) = std::mem::take(given).into_iter().flatten().reduce(self.add) else { return };
                    sum
                }
            };
            let waker = waker.take();
            *state = State::Answered(answer, on_taken);
            waker
        };
        self.ready.notify_all();
        if let Some(waker) = waker {
            // A waker is code of the executor: its panic must not end the thread that gives the result.
            reentry::caught(|| reentry::calling_out(|| waker.wake()));
        }
    }

    /// Whether this is a forked child. Checked before the lock is taken: see the module documentation.
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

impl<T: Clone> Future for Pending<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if self.slot.is_forked() {
            return Poll::Ready(self.slot.forked_answer());
        }
        let mut state = self.slot.lock();
        if let State::Waiting { waker, .. } = &mut *state {
            match waker {
                Some(known) => known.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
        }
        let answer = taken(&mut state);
        drop(state);
        answer.map_or(Poll::Pending, |answer| Poll::Ready(given(answer)))
    }
}

impl Unanswered for Result<(), PersistError> {
    fn closed() -> Self {
        Err(PersistError::Closed)
    }

    fn forked() -> Self {
        Err(PersistError::Forked)
    }
}

impl Unanswered for FlushReport {
    fn closed() -> Self {
        FlushReport { delivered: 0, dead_lettered: 0, remaining: 0, endpoint: EndpointStatus::Closed }
    }

    fn forked() -> Self {
        FlushReport { endpoint: EndpointStatus::Forked, ..Self::closed() }
    }
}

impl Unanswered for ShutdownReport {
    fn closed() -> Self {
        ShutdownReport { delivered: 0, remaining: 0, endpoint: EndpointStatus::Closed, persisted: false }
    }
}

impl Unanswered for DeliveryReport {
    fn closed() -> Self {
        DeliveryReport::Queued { endpoint: EndpointStatus::Closed }
    }

    fn forked() -> Self {
        DeliveryReport::Queued { endpoint: EndpointStatus::Forked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callback_runs_once_on_the_thread_that_takes_the_result() {
        let (promise, waiting) = pending::<Answer>();
        let (sender, taken_on) = std::sync::mpsc::channel();
        let answering = std::thread::spawn(move || {
            promise.answer_and(Answer::Value(6), move || sender.send(std::thread::current().id()).unwrap());
        });
        answering.join().unwrap();
        assert!(taken_on.try_recv().is_err(), "not taken yet");
        assert_eq!((waiting.try_get(), waiting.try_get()), (Some(Answer::Value(6)), Some(Answer::Value(6))));
        assert_eq!(taken_on.iter().collect::<Vec<_>>(), [std::thread::current().id()]);
    }

    #[test]
    fn a_dropped_promise_resolves_with_the_chosen_result() {
        let (promise, waiting) = pending_or(Answer::Value(7));
        drop(promise);
        assert_eq!(waiting.try_get(), Some(Answer::Value(7)));
    }

    plain_pending_values!(Answer);

    #[derive(Clone, Debug, PartialEq)]
    enum Answer {
        Value(u32),
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
            scope.spawn(|| promise.answer(Answer::Value(4)));
            assert_eq!(waiting.wait(Duration::from_secs(10)), Ok(Answer::Value(4)));
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(waiting), Answer::Value(4));
    }

    #[test]
    fn a_task_is_woken_by_an_answer_from_another_thread() {
        let (promise, waiting) = pending::<Answer>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(async {
            let task = waiting;
            let answering = std::thread::spawn(move || promise.answer(Answer::Value(5)));
            let answer = task.await;
            answering.join().unwrap();
            answer
        });
        assert_eq!(answer, Answer::Value(5));
    }

    #[test]
    fn a_dropped_promise_resolves_as_closed() {
        let (promise, waiting) = pending::<Answer>();
        drop(promise);
        assert_eq!(waiting.wait(Duration::from_secs(10)), Ok(Answer::Closed));
    }

    fn sum(first: Answer, second: Answer) -> Answer {
        match (first, second) {
            (Answer::Value(first), Answer::Value(second)) => Answer::Value(10 * first + second),
            _ => Answer::Closed,
        }
    }

    fn two_parts() -> (Promise<Answer>, Promise<Answer>, Pending<Answer>) {
        let (mut promises, waiting) = pending_sum(2, sum);
        let (second, first) = (promises.pop().unwrap(), promises.pop().unwrap());
        (first, second, waiting)
    }

    #[test]
    fn a_sum_resolves_with_its_last_part_whichever_that_is() {
        for first_first in [true, false] {
            let (first, second, waiting) = two_parts();
            let (early, late) = if first_first { (first, second) } else { (second, first) };
            let (earlier, later) = if first_first { (2, 3) } else { (3, 2) };
            early.answer(Answer::Value(earlier));
            assert_eq!(waiting.try_get(), None);
            std::thread::scope(|scope| {
                scope.spawn(|| late.answer(Answer::Value(later)));
                until_there(&waiting);
            });
            assert_eq!(waiting.try_get(), Some(Answer::Value(23)));
        }
    }

    fn until_there(waiting: &Pending<Answer>) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while waiting.try_get().is_none() {
            assert!(Instant::now() < deadline, "the last part is given in time");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_task_is_woken_by_the_last_part_of_a_sum() {
        let (first, second, waiting) = two_parts();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(async {
            let task = tokio::spawn(waiting);
            tokio::task::yield_now().await;
            first.answer(Answer::Value(1));
            std::thread::spawn(move || second.answer(Answer::Value(1)));
            task.await.unwrap()
        });
        assert_eq!(answer, Answer::Value(11));
    }

    #[test]
    fn a_dropped_part_counts_as_closed_and_blocks_no_answer() {
        let (first, second, waiting) = two_parts();
        first.answer(Answer::Value(4));
        drop(second);
        assert_eq!(waiting.try_get(), Some(Answer::Closed));
    }

    #[test]
    fn waiting_on_a_thread_of_the_client_ends_at_once() {
        let (_promise, waiting) = pending::<Answer>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                reentry::this_thread_is_ours();
                assert_eq!(waiting.wait(Duration::from_secs(3600)), Err(WaitTimeout));
            });
        });
    }
}
