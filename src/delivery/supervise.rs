//! Keeping an engine running: one that panics is replaced.
//!
//! A panic in the engine is a defect of ours, but what would follow from it, a daemon whose events pile up until somebody restarts it,
//! would be worse. What the engine had in memory is read and sent again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Notice;
use super::engine::{Engine, EngineParts, run};
use super::handle::DeliveryHandle;
use super::timers::go_by;

/// The wait after the first panic; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait, and how long an engine must have run for its panic to be a first one again.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Delivers until it is told to stop or to abandon.
pub(crate) async fn serve(parts: EngineParts, handle: DeliveryHandle) {
    go_by(&parts.clock);
    let mut wait = FIRST_WAIT;
    loop {
        let began = Instant::now();
        let engine = Engine::new(parts.clone(), &handle);
        // As a task of its own, for the runtime catches what it panics with.
        if !tokio::spawn(run(engine)).await.is_err_and(|error| error.is_panic()) {
            return;
        }
        if began.elapsed() > LONGEST_WAIT {
            wait = FIRST_WAIT;
        }
        (parts.report)(Notice::EngineFailed { seconds: wait.as_secs() });
        tokio::select! {
            () = sleep(wait) => {}
            () = handle.ending() => {}
        }
        wait = (wait * 2).min(LONGEST_WAIT);
        if !handle.reopen() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::engine_tests::{Rig, queue_of};
    use super::super::fake::Reply;
    use super::*;
    use crate::transport::{Http, Pending, Request};

    /// A network whose first calls panic: on the engine's own task.
    struct Panicking {
        left: AtomicU32,
        then: Arc<dyn Http>,
    }

    impl Http for Panicking {
        fn send(&self, request: Request) -> Pending {
            let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            assert!(left.is_err(), "a defect");
            self.then.send(request)
        }
    }

    fn rig(panics: u32) -> Rig {
        let parts = |parts: &mut EngineParts| {
            parts.transport = Arc::new(Panicking { left: panics.into(), then: Arc::clone(&parts.transport) });
        };
        Rig::with(queue_of(3, 10), |_| Reply::ok(), parts)
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_panics_is_replaced_and_what_it_had_is_delivered() {
        let rig = rig(3);
        let begun = Instant::now();
        rig.drained().await;
        assert_eq!((rig.queue.delivered(), begun.elapsed().as_secs()), (30, 1 + 2 + 4));
        assert_eq!(rig.noticed(|notice| matches!(notice, Notice::EngineFailed { .. })), 3);
        assert_eq!(rig.flush().await.endpoint, super::super::EndpointStatus::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_and_a_stop_while_no_engine_runs_do_not_wait_for_one() {
        let rig = rig(u32::MAX);
        rig.until(|rig| rig.noticed(|notice| matches!(notice, Notice::EngineFailed { seconds: 300 })) == 1).await;
        assert_eq!(rig.flush().await.endpoint, super::super::EndpointStatus::Stopped);
        let (queue, took) = rig.stop(Duration::from_secs(10)).await;
        assert_eq!((queue.queued().len(), took), (30, Duration::ZERO));
    }
}
