//! The delivery task: receives messages, starts requests, acts on responses, and sleeps until something is due.
//!
//! An engine that panics is replaced ([`serve`]). Such a panic is a defect of this library, but a daemon whose events
//! pile up until it is restarted would be worse. Its leases are released and leased again.
//!
//! Timers go by tokio's clock. With the feature `testing` that clock may stand still: then nothing sleeps, and moving
//! the clock wakes the engine.

use std::collections::HashMap;
use std::future::pending;
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::{Id, JoinSet};

use super::batch::{Batch, BatchLimits};
use super::bisect::Bisection;
use super::flush::Stop;
use super::handle::{Done, call};
use super::intake::{Intake, Wanted};
use super::notice::{engine_failed, queue_unreadable};
use super::outage::{Outage, OutageReports, RecentMentions};
use super::pace::{Health, Pace, Permit};
use super::send::RequestTimeouts;
use super::{DeliveryHandle, DeliveryObserver, DeliveryOptions, DeliveryState, Source, SourceError};
use crate::report::{Diagnostic, EndpointStatus, Report};
use crate::sys::backoff::doubled;
use crate::sys::clock::{Clock, WallNanos};
use crate::transport::{Http, Response, TransportError};

/// The parts of an engine.
#[derive(Clone)]
pub(crate) struct EngineParts {
    /// What to send, where, and how much at once.
    pub(crate) options: DeliveryOptions,
    /// The queue.
    pub(crate) source: Arc<dyn Source>,
    /// The network.
    pub(crate) transport: Arc<dyn Http>,
    /// Wall time.
    pub(crate) clock: Clock,
    /// Receives every diagnostic.
    pub(crate) report: Report,
    /// Observes decided events.
    pub(crate) on_delivery: Option<Arc<dyn DeliveryObserver>>,
    /// The `Retry-After` deadline that an earlier process has stored.
    pub(crate) next_attempt: Option<WallNanos>,
    /// The seed of the jitter. The same seed gives the same waits.
    pub(crate) seed: u64,
}

/// The delivery task.
pub(crate) struct Engine {
    pub(super) options: DeliveryOptions,
    pub(super) clock: Clock,
    pub(super) report: Report,
    pub(super) on_delivery: Option<Arc<dyn DeliveryObserver>>,
    pub(super) intake: Intake,
    pub(super) bisection: Bisection,
    pub(super) pace: Pace,
    pub(super) limits: BatchLimits,
    pub(super) rng: StdRng,
    pub(super) state: DeliveryState,
    pub(super) source: Arc<dyn Source>,
    pub(super) handle: DeliveryHandle,
    /// The `Retry-After` deadline that was last reported to the source.
    pub(super) next_attempt: Option<WallNanos>,
    pub(super) transport: Arc<dyn Http>,
    pub(super) requests: JoinSet<Result<Response, TransportError>>,
    pub(super) in_flight: HashMap<Id, Batch>,
    pub(super) stop: Option<Stop>,
    /// What was reported since the last success.
    pub(super) outage_reports: OutageReports,
    /// Why sending is paused, if it is.
    pub(super) pause_reason: String,
    /// The failed batch that is kept for the next probes.
    pub(super) kept: Option<Batch>,
    pub(super) outage: Outage,
    pub(super) timeouts: RequestTimeouts,
    /// Number of requests sent.
    pub(super) sends: u64,
    /// The number of the latest request that was accepted.
    pub(super) newest_accepted: u64,
    /// The kinds of events that PostHog drops because their quota is used up.
    pub(super) quota_limited: RecentMentions,
}

impl Engine {
    /// An engine that receives messages through the handle. It does nothing before [`run`].
    pub(super) fn new(parts: EngineParts, handle: &DeliveryHandle) -> Self {
        Self {
            intake: Intake::new(Arc::clone(&parts.source), StdRng::seed_from_u64(parts.seed)),
            bisection: Bisection::default(),
            pace: Pace::new(parts.options.pace),
            limits: BatchLimits::new(parts.options.max_batch_events, parts.options.max_batch_bytes),
            rng: StdRng::seed_from_u64(!parts.seed),
            state: DeliveryState { failed_attempts: handle.state().failed_attempts, ..DeliveryState::default() },
            options: parts.options,
            clock: parts.clock,
            report: parts.report,
            on_delivery: parts.on_delivery,
            source: parts.source,
            transport: parts.transport,
            handle: handle.clone(),
            requests: JoinSet::new(),
            in_flight: HashMap::new(),
            stop: None,
            outage_reports: OutageReports::default(),
            pause_reason: String::new(),
            next_attempt: parts.next_attempt,
            kept: None,
            outage: Outage::default(),
            timeouts: RequestTimeouts::default(),
            sends: 0,
            newest_accepted: 0,
            quota_limited: RecentMentions::default(),
        }
    }
}

/// Why nothing is sent although no request of this process has failed.
const RETRY_AFTER_OF_EARLIER: &str = "the server asked an earlier process to wait (Retry-After)";

/// Runs an engine until it is stopped or abandoned.
pub(super) async fn run(mut engine: Engine) {
    engine.begin();
    while engine.receive() {
        engine.start_requests();
        engine.answer_flushes();
        engine.publish();
        if engine.is_over() {
            engine.ack_all();
            break;
        }
        engine.wait().await;
    }
}

impl Engine {
    fn begin(&mut self) {
        let now = now();
        if let Some(at) = self.next_attempt {
            let wait = at.saturating_sub(self.clock.wall_nanos());
            let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(0));
            self.pace.resume_retry_after(now, wait);
            if !wait.is_zero() {
                self.state.last_error = Some(RETRY_AFTER_OF_EARLIER.to_owned());
            }
        }
        match self.intake.read(1, Wanted::All, now) {
            Ok(true) => self.pace.delay_first_send(now, &mut self.rng),
            Err(SourceError::Busy) if self.source.newest().is_some() => {
                self.pace.delay_first_send(now, &mut self.rng);
            }
            Ok(false) => {}
            Err(error) => self.unreadable(&error),
        }
    }

    /// Receives the messages. Returns `false` if the engine is abandoned.
    fn receive(&mut self) -> bool {
        let (committed, flushes, deadline) = {
            let mut inbox = self.handle.inbox();
            if inbox.abandoned {
                return false;
            }
            #[cfg(feature = "testing")]
            inbox.note_received();
            (take(&mut inbox.committed), take(&mut inbox.flushes), inbox.stop)
        };
        if committed || !flushes.is_empty() {
            self.intake.expect_more();
        }
        for done in flushes {
            self.begin_flush(done);
        }
        match (&mut self.stop, deadline) {
            (Some(stop), Some(deadline)) => stop.deadline = deadline,
            (None, Some(deadline)) => self.begin_stop(deadline),
            (_, None) => {}
        }
        true
    }

    fn begin_flush(&mut self, done: Done) {
        let now = now();
        let is_futile = self.pace.flush_is_futile(now);
        if is_futile && (!self.outage.is_unconfirmed || self.pace.retry_after_deadline(now).is_some()) {
            return self.call([done]);
        }
        self.intake.flushes.push(self.source.newest(), done);
        // The last failure is so recent that it is the answer, and no further request is made for this flush.
        self.intake.flushes.has_met_failure |= is_futile;
    }

    fn begin_stop(&mut self, deadline: Instant) {
        self.stop = Some(Stop::new(deadline, self.intake.accepted));
        self.intake.expect_more();
        // Read now, even if nothing may be sent yet: with nothing to send there is nothing to wait for.
        if let Err(error) = self.intake.read(1, Wanted::All, now()) {
            self.unreadable(&error);
        }
    }

    /// Starts the requests that may be sent now.
    fn start_requests(&mut self) {
        while !self.stop.as_ref().is_some_and(|stop| stop.gave_up) {
            let now = now();
            if self.source.is_held() {
                self.release_idle(now);
                self.intake.find_nothing();
                break;
            }
            if self.intake.quarantine.any_due(self.intake.accepted, now) {
                self.intake.expect_more();
            }
            match self.next_request(now) {
                Ok(Some(batch)) => self.send(batch, now),
                Ok(None) => break,
                Err(error) => {
                    self.unreadable(&error);
                    break;
                }
            }
        }
    }

    /// Whether a request may be sent now.
    fn permit(&self, now: Instant) -> Permit {
        let Some(stop) = &self.stop else {
            return self.pace.permit(now, self.in_flight.len(), self.intake.flushes.are_eager());
        };
        if let Some(until) = stop.waits_until(now) {
            return Permit::Wait(until);
        }
        let mut permit = self.pace.permit(now, self.in_flight.len(), true);
        if let Permit::Send { ticket, .. } = &mut permit {
            ticket.of_stop = true;
        }
        permit
    }

    fn next_request(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        let (ticket, small) = match self.permit(now) {
            Permit::Full => return Ok(None),
            Permit::Wait(_) => return self.probe_ahead_of_time(now),
            Permit::Send { .. } if self.is_crowded(now) => return Ok(None),
            Permit::Send { ticket, small } => (ticket, small),
        };
        let batch = if small { self.probe(now)? } else { self.next_batch(now)? };
        Ok(batch.map(|batch| Batch { ticket, ..batch }))
    }

    /// Whether another request must wait: while many fail in a row, one request is under way at a time.
    fn is_crowded(&self, now: Instant) -> bool {
        self.bisection.is_losing() && self.in_flight.values().any(|batch| !self.hangs(batch, now))
    }

    fn next_batch(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        if self.pace.health() == Health::Up {
            self.bisect_kept();
        }
        if self.bisection.is_turn_of_a_piece() && !self.bisection.is_empty() {
            return Ok(self.bisection.pop(&self.limits, &mut self.intake.loaded));
        }
        let max_events = if self.bisection.is_losing() { 1 } else { self.limits.events };
        let fresh = self.intake.assemble(&self.limits, max_events, Wanted::All, now)?;
        self.bisection.push(take(&mut self.intake.to_bisect));
        self.take_due();
        Ok(fresh.or_else(|| self.bisection.pop(&self.limits, &mut self.intake.loaded)))
    }

    /// Quarantined events are tried one at a time: some of them may hang.
    pub(super) fn take_due(&mut self) {
        let is_trying = self.in_flight.values().any(|batch| batch.quarantined > 0);
        if !is_trying && !self.bisection.has_quarantined() && !self.is_last_slot(now()) {
            self.bisection.push(self.intake.due.pop_front());
        }
    }

    async fn wait(&mut self) {
        let wake = self.next_wake();
        let sleep = sleep_until(wake);
        let answer = tokio::select! {
            biased;
            Some(answer) = self.requests.join_next_with_id(), if !self.requests.is_empty() => answer,
            () = self.handle.wake.notified() => return,
            () = sleep => return,
        };
        let (id, result) = match answer {
            Ok((id, result)) => (id, result),
            // A request whose task panicked has failed.
            Err(error) => (error.id(), Err(TransportError::Other(error.into()))),
        };
        if let Some(batch) = self.in_flight.remove(&id) {
            self.on_response(batch, result);
        }
    }

    /// When the engine wakes without a message; `None` while nothing is pending.
    fn next_wake(&self) -> Option<Instant> {
        let now = now();
        let quarantine = &self.intake.quarantine;
        let is_due = quarantine.any_due(self.intake.accepted, now);
        let has_work = is_due || self.has_work();
        let paced = match self.permit(now) {
            Permit::Wait(until) if has_work => Some(until),
            _ => None,
        };
        let ahead = self.probes_ahead_from(now).filter(|&at| at > now);
        let readable = self.intake.unreadable_until.filter(|&at| has_work && at > now);
        let deadline = self.stop.as_ref().map(|stop| stop.deadline);
        [paced, ahead, readable, quarantine.next_due(now), deadline].into_iter().flatten().min()
    }

    fn answer_flushes(&mut self) {
        if self.intake.flushes.is_empty() {
            return;
        }
        let done = self.intake.flushes.take_done(self.intake.loaded.references());
        self.call(done);
        self.fail_flushes_if_down();
    }

    /// Answers all flushes, because the endpoint is down.
    pub(super) fn fail_flushes(&mut self) {
        let all = self.intake.flushes.take_all();
        self.call(all);
    }

    /// Answers flushes. The state is published first, so statistics that are read afterwards agree with the answer.
    fn call(&mut self, done: impl IntoIterator<Item = Done>) {
        for (count, done) in done.into_iter().enumerate() {
            if count == 0 {
                self.publish();
            }
            self.answer_flush(done, self.endpoint());
        }
    }

    fn answer_flush(&self, done: Done, endpoint: EndpointStatus) {
        if !call(done, endpoint) {
            (self.report)(Diagnostic::CallbackPanicked { callback: "on_delivery" });
        }
    }

    /// No row could be leased: reports why, unless the queue is only being written to.
    fn unreadable(&mut self, error: &SourceError) {
        let SourceError::Unreadable(_) = error else { return };
        let reason = error.to_string();
        (self.report)(queue_unreadable(&reason));
        self.state.last_error = Some(reason.clone());
        self.publish();
        for done in self.intake.flushes.take_all() {
            self.answer_flush(done, EndpointStatus::Down { reason: reason.clone(), retry_in: None });
        }
    }

    /// Whether there may be events to send besides those in flight.
    fn has_work(&self) -> bool {
        self.intake.has_work() || !self.bisection.is_empty() || self.kept.is_some()
    }

    fn is_over(&self) -> bool {
        let Some(stop) = &self.stop else { return false };
        let now = now();
        let (retry_after_until, unreadable) = (self.pace.retry_after_deadline(now), self.intake.unreadable_until);
        let next = [retry_after_until, unreadable, stop.waits_until(now)].into_iter().flatten().max();
        let is_done = stop.gave_up || !self.has_work() || next.is_some_and(|next| next >= stop.deadline);
        now >= stop.deadline || (is_done && self.in_flight.is_empty())
    }

    fn ack_all(&mut self) {
        self.handle.inbox().found = Some(self.found_by_stop());
        self.requests.abort_all();
        self.intake.close_all(now());
        self.answer_flushes();
        self.publish();
    }

    /// The endpoint's state, as the reason for what a stop leaves queued.
    fn found_by_stop(&self) -> EndpointStatus {
        let is_silent = |stop: &Stop| !self.in_flight.is_empty() && stop.accepted_before == self.intake.accepted;
        match self.endpoint() {
            EndpointStatus::Up if self.stop.as_ref().is_some_and(is_silent) => {
                EndpointStatus::Down { reason: "no response before the deadline".to_owned(), retry_in: None }
            }
            _ if self.intake.unreadable_until.is_some() => {
                EndpointStatus::Down { reason: self.state.last_error.clone().unwrap_or_default(), retry_in: None }
            }
            endpoint => endpoint,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Also after a panic, or when the runtime is shut down: callers are answered, and the leases end.
        for chunk in self.intake.loaded.references() {
            self.source.release(chunk);
        }
        for done in self.intake.flushes.take_all() {
            self.answer_flush(done, EndpointStatus::Closed);
        }
        self.handle.close();
    }
}

/// The wait after the first panic. Each further panic doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait. After an engine has run for longer, its panic counts as the first.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Runs engines until delivery is stopped or abandoned.
pub(crate) async fn serve(parts: EngineParts, handle: DeliveryHandle) {
    go_by(&parts.clock);
    let mut panics = 0_u32;
    loop {
        let began = tokio::time::Instant::now();
        let engine = Engine::new(parts.clone(), &handle);
        // A task of its own, because the runtime catches the panics of tasks.
        if !tokio::spawn(run(engine)).await.is_err_and(|error| error.is_panic()) {
            return;
        }
        panics = if began.elapsed() > LONGEST_WAIT { 1 } else { panics.saturating_add(1) };
        let wait = doubled(FIRST_WAIT, panics).min(LONGEST_WAIT);
        (parts.report)(engine_failed(wait));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = handle.ending() => {}
        }
        if !handle.reopen() {
            return;
        }
    }
}

#[cfg(feature = "testing")]
thread_local! {
    /// The clock of the engine on this thread, if that clock stands still.
    static STILL: std::cell::OnceCell<std::sync::Arc<crate::sys::clock::still::StillTime>> = const { std::cell::OnceCell::new() };
}

/// Makes the timers of this thread go by `clock`, if it is one that stands still.
pub(super) fn go_by(clock: &Clock) {
    #[cfg(feature = "testing")]
    if let Clock::Still(still) = clock {
        let _ = STILL.with(|known| known.set(std::sync::Arc::clone(still)));
    }
    let _ = clock;
}

/// Monotonic time. In tests tokio's own clock may be paused.
pub(super) fn now() -> Instant {
    #[cfg(feature = "testing")]
    if let Some(now) = STILL.with(|still| still.get().map(|still| still.now())) {
        return now;
    }
    tokio::time::Instant::now().into_std()
}

/// Sleeps until `at`, or for ever.
pub(super) async fn sleep_until(at: Option<Instant>) {
    #[cfg(feature = "testing")]
    if STILL.with(|still| still.get().is_some()) {
        return pending().await;
    }
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
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
    async fn the_leases_of_an_engine_that_panics_are_delivered() {
        let rig = rig(3);
        let begun = tokio::time::Instant::now();
        rig.drained().await;
        assert_eq!((rig.queue.delivered(), begun.elapsed().as_secs()), (30, 1 + 2 + 4));
        assert_eq!(
            rig.noticed(|notice| (0..9).any(|exponent| *notice == engine_failed(FIRST_WAIT * (1 << exponent)))),
            3
        );
        assert_eq!(rig.flush().await.endpoint, EndpointStatus::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_and_a_stop_while_no_engine_runs_do_not_wait_for_one() {
        let rig = rig(u32::MAX);
        rig.until(|rig| rig.noticed(|notice| *notice == engine_failed(LONGEST_WAIT)) == 1).await;
        assert_eq!(rig.flush().await.endpoint, EndpointStatus::Closed);
        let (queue, took) = rig.stop(Duration::from_secs(10)).await;
        assert_eq!((queue.queued().len(), took), (30, Duration::ZERO));
    }
}
