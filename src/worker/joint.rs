//! One answer made of two: what is asked of both lanes is answered once.

use std::future::{Future, IntoFuture};
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
        let first = first.into_future().await;
        promise.answer(combine(first, second.into_future().await));
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
