//! Whatever else asks PostHog does so on the delivery's runtime: it has the connections, and no other thread is needed.

use std::future::Future;
use std::time::Duration;

use super::Pipeline;

impl Pipeline {
    /// Runs `task` on the delivery's runtime; no call waits. False: there is none, because this is a forked child, or the client closes.
    /// A task is dropped where it stands when the delivery ends: what it owes to somebody, its `drop` has to say.
    ///
    /// A clock that stands still takes a task to have done what was due when it waits for [`Clock::sleep`](crate::sys::clock::Clock::sleep)
    /// or for an answer.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        // In this order: in a forked child nothing that was inherited is touched.
        if self.is_forked() || self.is_closing() {
            return false;
        }
        let Some(runtime) = self.runtime.get() else { return false };
        drop(runtime.spawn(task));
        // The thread may be taken to be asleep until it has seen this, and with it the task that stands before it in the queue.
        #[cfg(feature = "testing")]
        if let Some(delivery) = self.delivery() {
            delivery.look_again();
        }
        true
    }

    /// Has `call` called on the delivery's thread after that time; it must not block. False, as [`spawn`](Self::spawn): nobody will.
    pub(crate) fn call_after(&self, after: Duration, call: impl FnOnce() + Send + 'static) -> bool {
        let clock = self.options.clock.clone();
        self.spawn(async move {
            clock.sleep(after).await;
            call();
        })
    }
}
