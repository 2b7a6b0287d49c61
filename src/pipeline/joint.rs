//! One answer made of two: what is asked of both lanes is answered once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::pending::{Pending, Unanswered, pending};

/// Resolves when both have, with what `combine` makes of them.
pub(crate) fn both<T>(first: Pending<T>, second: Pending<T>, combine: fn(T, T) -> T) -> Pending<T>
where
    T: Unanswered + Clone + Send + 'static,
{
    let (promise, answer) = pending();
    let waiting = async move {
        let first = first.await;
        promise.answer(combine(first, second.await));
    };
    Joint::go_on(&Arc::new(Joint { waiting: Mutex::new(Some(Box::pin(waiting))) }));
    answer
}

/// A task without an executor: whoever gives one of the two answers takes it a step further, which is a few instructions.
struct Joint {
    waiting: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl Joint {
    fn go_on(this: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(this));
        let mut waiting = this.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let step = waiting.as_mut().map(|waiting| waiting.as_mut().poll(&mut Context::from_waker(&waker)));
        if step == Some(Poll::Ready(())) {
            *waiting = None;
        }
    }
}

impl Wake for Joint {
    fn wake(self: Arc<Self>) {
        Joint::go_on(&self);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{EndpointStatus, FlushReport, ShutdownReport};

    fn report(delivered: u64) -> ShutdownReport {
        ShutdownReport { delivered, remaining: 1, endpoint: EndpointStatus::Up, persisted: true }
    }

    #[test]
    fn the_answer_comes_with_the_second_of_the_two_whichever_that_is() {
        for first_first in [true, false] {
            let ((first, one), (second, other)) = (pending(), pending());
            let answer = both(one, other, ShutdownReport::with_ai);
            let (early, late) = if first_first { (first, second) } else { (second, first) };
            early.answer(report(2));
            assert_eq!(answer.try_get(), None);
            std::thread::scope(|scope| {
                scope.spawn(|| late.answer(report(3)));
                let expected = ShutdownReport { remaining: 2, ..report(5) };
                assert_eq!(answer.wait(Duration::from_secs(10)), Ok(expected));
            });
        }
    }

    #[test]
    fn a_task_is_woken_by_the_second_answer() {
        let ((first, one), (second, other)) = (pending(), pending());
        let answer = both(one, other, ShutdownReport::with_ai);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(async {
            let task = tokio::spawn(answer);
            tokio::task::yield_now().await;
            first.answer(report(1));
            std::thread::spawn(move || second.answer(report(1)));
            task.await.unwrap()
        });
        assert_eq!(answer.delivered, 2);
    }

    #[test]
    fn a_lane_that_cannot_answer_does_not_keep_the_other_ones_answer_back() {
        let ((first, one), (second, other)) = (pending(), pending());
        let answer = both(one, other, ShutdownReport::with_ai);
        first.answer(report(4));
        drop(second);
        let expected = ShutdownReport { endpoint: EndpointStatus::Closed, persisted: false, ..report(4) };
        assert_eq!(answer.try_get(), Some(expected));
    }

    #[test]
    fn of_two_endpoints_the_one_that_is_worse_off_is_told() {
        let flushed = |endpoint| FlushReport { delivered: 1, dead_lettered: 2, remaining: 3, endpoint };
        let down = || EndpointStatus::Down { reason: "503".into(), retry_in: None };
        let paused = |reason: &str| EndpointStatus::Paused { status: 402, reason: reason.into(), retry_in: None };
        let endpoint = |one, other| flushed(one).with_ai(flushed(other)).endpoint;
        assert_eq!(flushed(EndpointStatus::Up).with_ai(flushed(EndpointStatus::Up)).remaining, 6);
        assert_eq!(endpoint(EndpointStatus::Up, paused("quota")), paused("AI events: quota"));
        assert_eq!(endpoint(down(), EndpointStatus::Up), down());
        assert_eq!(endpoint(down(), paused("quota")), down());
        let said = EndpointStatus::Down { reason: "AI events: 503".into(), retry_in: None };
        assert_eq!(endpoint(EndpointStatus::Up, down()), said);
    }
}
