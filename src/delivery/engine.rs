//! The task: what is asked of it, what it may send, what came back, when to wake up again.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::{Id, JoinSet};

use super::batch::{Batch, BatchLimits};
use super::episode::{Episode, Mentions};
use super::failure::Doubt;
use super::flush::{EndpointStatus, Flushes};
use super::handle::{Done, Shared, call};
use super::intake::{Intake, Wanted};
use super::pace::{Health, Pace, Permit, Ticket};
use super::patience::Patience;
use super::split::{Split, Turn};
use super::stop::Stop;
pub(super) use super::timers::now;
use super::timers::sleep_until;
use super::{DeliveryHandle, DeliveryOptions, DeliveryState, Hears, Notice, PaceState, Report, Source, SourceError};
use crate::sys::clock::{Clock, WallNanos};
use crate::sys::entropy::random_u64;
use crate::transport::{Http, Response, TransportError};

/// What an engine is made of.
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
    /// Hears of everything.
    pub(crate) report: Report,
    /// Hears of each answer that decides over events.
    pub(crate) on_delivery: Option<Arc<dyn Hears>>,
    /// What `PaceState::next_attempt` was in an earlier life.
    pub(crate) next_attempt: Option<WallNanos>,
}

/// The delivery task.
pub(crate) struct Engine {
    pub(super) options: DeliveryOptions,
    pub(super) clock: Clock,
    pub(super) report: Report,
    pub(super) on_delivery: Option<Arc<dyn Hears>>,
    pub(super) intake: Intake,
    pub(super) split: Split,
    pub(super) pace: Pace,
    pub(super) limits: BatchLimits,
    pub(super) rng: StdRng,
    pub(super) state: DeliveryState,
    pub(super) source: Arc<dyn Source>,
    pub(super) shared: Arc<Shared>,
    /// What the source was last told of the pace.
    pub(super) remembered: PaceState,
    pub(super) transport: Arc<dyn Http>,
    pub(super) requests: JoinSet<Result<Response, TransportError>>,
    pub(super) under_way: HashMap<Id, (Batch, Ticket)>,
    pub(super) flushes: Flushes,
    pub(super) stop: Option<Stop>,
    /// What was told since the endpoint last worked.
    pub(super) episode: Episode,
    /// Why sending is paused, if it is.
    pub(super) pause_reason: String,
    next_attempt: Option<WallNanos>,
    /// What failed, and is kept for the next probes (`failure.rs`).
    pub(super) again: Option<Batch>,
    /// So far nothing but that has failed.
    pub(super) doubted: Option<Doubt>,
    /// During an outage: from when on an event that has not failed is probed ahead of time.
    pub(super) newcomers_from: Option<Instant>,
    pub(super) patience: Patience,
    /// Requests sent so far.
    pub(super) sends: u64,
    /// The newest of them that was accepted.
    pub(super) newest_accepted: u64,
    /// The kinds that PostHog drops for want of quota.
    pub(super) quota_limited: Mentions,
}

impl Engine {
    /// An engine, to be [`run`], that hears what is asked through the handle.
    pub(super) fn new(parts: EngineParts, handle: &DeliveryHandle) -> Self {
        let pace_options = parts.options.pace.clone();
        Self {
            intake: Intake::new(Arc::clone(&parts.source), pace_options.clone(), random()),
            split: Split::default(),
            pace: Pace::new(pace_options),
            limits: BatchLimits::new(parts.options.max_batch_events, parts.options.max_batch_bytes),
            rng: random(),
            state: DeliveryState { failed_attempts: handle.state().failed_attempts, ..DeliveryState::default() },
            options: parts.options,
            clock: parts.clock,
            report: parts.report,
            on_delivery: parts.on_delivery,
            source: parts.source,
            transport: parts.transport,
            shared: handle.shared(),
            requests: JoinSet::new(),
            under_way: HashMap::new(),
            flushes: Flushes::default(),
            stop: None,
            episode: Episode::default(),
            pause_reason: String::new(),
            remembered: PaceState { next_attempt: parts.next_attempt, ..PaceState::default() },
            next_attempt: parts.next_attempt,
            again: None,
            doubted: None,
            newcomers_from: None,
            patience: Patience::default(),
            sends: 0,
            newest_accepted: 0,
            quota_limited: Mentions::default(),
        }
    }
}

/// Runs until it is stopped or abandoned.
pub(super) async fn run(mut engine: Engine) {
    engine.begin();
    while engine.hear() {
        engine.fill();
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
            self.pace.resume_hold(now, Duration::from_nanos(u64::try_from(wait).unwrap_or(0)));
        }
        match self.intake.read(1, Wanted::All, now, &mut self.flushes) {
            Ok(true) => self.pace.delay_first_send(now, &mut self.rng),
            Err(SourceError::Busy) if !self.intake.newest().is_empty() => {
                self.pace.delay_first_send(now, &mut self.rng);
            }
            Ok(false) => {}
            Err(error) => self.unreadable(&error),
        }
    }

    /// Takes in what is asked. False: nothing more is to be done.
    fn hear(&mut self) -> bool {
        let (committed, flushes, deadline) = {
            let mut inbox = self.shared.inbox();
            if inbox.abandoned {
                return false;
            }
            #[cfg(feature = "testing")]
            inbox.heard_all();
            (std::mem::take(&mut inbox.committed), std::mem::take(&mut inbox.flushes), inbox.stop)
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
        if is_futile && (self.doubted.is_none() || self.pace.active_hold(now).is_some()) {
            return self.call([done]);
        }
        self.flushes.push(self.intake.newest(), done);
        // The failure is so fresh that this flush would rather be told of it than cause another.
        self.flushes.has_met_failure |= is_futile;
    }

    fn begin_stop(&mut self, deadline: Instant) {
        self.stop = Some(Stop::new(deadline, self.intake.accepted));
        self.intake.expect_more();
        // Looked at now, though nothing may be sent perhaps: with nothing to send there is nothing to wait for.
        if let Err(error) = self.intake.read(1, Wanted::All, now(), &mut self.flushes) {
            self.unreadable(&error);
        }
    }

    /// Starts what may be started.
    fn fill(&mut self) {
        while !self.stop.as_ref().is_some_and(Stop::gave_up) {
            let now = now();
            if self.source.is_held() {
                self.let_go(now);
                self.intake.find_nothing(&mut self.flushes);
                break;
            }
            if self.intake.aside.any_due(self.intake.accepted, now) {
                self.intake.expect_more();
            }
            match self.next_request(now) {
                Ok(Some((batch, ticket))) => self.send(batch, ticket, now),
                Ok(None) => break,
                Err(error) => {
                    self.unreadable(&error);
                    break;
                }
            }
        }
    }

    /// Whether a request may go now.
    fn permit(&self, now: Instant) -> Permit {
        let Some(stop) = &self.stop else {
            return self.pace.permit(now, self.under_way.len(), self.flushes.are_eager());
        };
        if let Some(until) = stop.waits_until(now) {
            return Permit::Wait(until);
        }
        match self.pace.permit(now, self.under_way.len(), true) {
            Permit::Send { ticket, small } => Permit::Send { ticket: ticket.of_stop(), small },
            other => other,
        }
    }

    fn next_request(&mut self, now: Instant) -> Result<Option<(Batch, Ticket)>, SourceError> {
        let permit = self.permit(now);
        match permit {
            _ if self.is_crowded(permit, now) => Ok(None),
            Permit::Send { ticket, small } => Ok(self.next_batch(small, now)?.map(|batch| (batch, ticket))),
            Permit::Wait(_) => self.confirmation(now),
            Permit::Full => Ok(None),
        }
    }

    fn next_batch(&mut self, small: bool, now: Instant) -> Result<Option<Batch>, SourceError> {
        if small {
            return self.probe(now);
        }
        if self.pace.health() == Health::Up {
            self.search_what_failed();
        }
        let turn = self.split.turn();
        if turn == Turn::Piece && !self.split.is_empty() {
            return Ok(self.split.pop(&self.limits, &mut self.intake.loaded));
        }
        let (limits, is_losing) = (self.limits, self.split.is_losing());
        let fresh = self.intake.assemble(&limits, Wanted::All, is_losing, now, &mut self.flushes)?;
        self.split.push(self.intake.take_doubted());
        self.take_due();
        Ok(fresh.or_else(|| self.split.pop(&self.limits, &mut self.intake.loaded)))
    }

    async fn wait(&mut self) {
        let wake = self.next_wake();
        let sleep = sleep_until(wake);
        let answer = tokio::select! {
            biased;
            Some(answer) = self.requests.join_next_with_id(), if !self.requests.is_empty() => answer,
            () = self.shared.wake.notified() => return,
            () = sleep => return,
        };
        let (id, result) = match answer {
            Ok((id, result)) => (id, result),
            // A request that panicked is one that failed.
            Err(error) => (error.id(), Err(TransportError::Other(error.into()))),
        };
        if let Some((batch, ticket)) = self.under_way.remove(&id) {
            self.answered(batch, ticket, result);
        }
    }

    /// When to look again without being asked; `None` while nothing is pending.
    fn next_wake(&self) -> Option<Instant> {
        let now = now();
        let aside = &self.intake.aside;
        let is_due = aside.any_due(self.intake.accepted, now);
        let has_work = is_due || self.has_work();
        let paced = match self.permit(now) {
            Permit::Wait(until) if has_work => Some(until),
            _ => None,
        };
        let confirmed = self.confirms_at(now).filter(|&at| at > now);
        let readable = self.intake.unreadable_until().filter(|&at| has_work && at > now);
        let deadline = self.stop.as_ref().map(|stop| stop.deadline);
        [paced, confirmed, readable, aside.next_due(now), deadline].into_iter().flatten().min()
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let loaded: Vec<_> = self.intake.loaded.references().collect();
        let done = self.flushes.take_done(loaded.iter().copied());
        self.call(done);
        self.fail_flushes_if_down();
    }

    /// The endpoint is found down: everybody who waits is told.
    pub(super) fn fail_flushes(&mut self) {
        let all = self.flushes.take_all();
        self.call(all);
    }

    /// Tells those whose flush is over. Whoever is told, and asks for statistics then, sees the same state.
    fn call(&mut self, done: impl IntoIterator<Item = Done>) {
        for (count, done) in done.into_iter().enumerate() {
            if count == 0 {
                self.publish();
            }
            self.tell_end(done, self.endpoint());
        }
    }

    fn tell_end(&self, done: Done, endpoint: EndpointStatus) {
        if !call(done, endpoint) {
            (self.report)(Notice::CallbackPanicked);
        }
    }

    /// No row could be leased: reports why, unless the queue is only being written to.
    fn unreadable(&mut self, error: &SourceError) {
        let SourceError::Unreadable(_) = error else { return };
        let reason = error.to_string();
        (self.report)(Notice::QueueUnreadable { reason: reason.clone() });
        self.state.last_error = Some(reason.clone());
        self.publish();
        for done in self.flushes.take_all() {
            self.tell_end(done, EndpointStatus::Down { reason: reason.clone(), until: None });
        }
    }

    /// Whether there may be something to send that is not under way.
    fn has_work(&self) -> bool {
        self.intake.has_work() || !self.split.is_empty() || self.again.is_some()
    }

    fn is_over(&self) -> bool {
        let Some(stop) = &self.stop else { return false };
        let now = now();
        let (hold, unreadable) = (self.pace.active_hold(now), self.intake.unreadable_until());
        let next = [hold, unreadable, stop.waits_until(now)].into_iter().flatten().max();
        let is_done = stop.gave_up() || !self.has_work() || next.is_some_and(|next| next >= stop.deadline);
        now >= stop.deadline || (is_done && self.under_way.is_empty())
    }

    fn ack_all(&mut self) {
        self.shared.inbox().found = Some(self.found_by_stop());
        self.requests.abort_all();
        self.intake.close_all(now());
        self.answer_flushes();
        self.publish();
    }
}

impl Engine {
    /// Why a stop leaves what it leaves.
    fn found_by_stop(&self) -> EndpointStatus {
        let is_silent = |stop: &Stop| !self.under_way.is_empty() && stop.has_had_no_success(self.intake.accepted);
        match self.endpoint() {
            EndpointStatus::Up if self.stop.as_ref().is_some_and(is_silent) => {
                EndpointStatus::Down { reason: "no answer before the time was up".to_owned(), until: None }
            }
            _ if self.intake.unreadable_until().is_some() => {
                EndpointStatus::Down { reason: self.state.last_error.clone().unwrap_or_default(), until: None }
            }
            endpoint => endpoint,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Also on the way out of a panic or of a runtime that is shut down: nobody waits for ever, and what was read can be read again.
        for chunk in self.intake.loaded.references() {
            self.source.release(chunk);
        }
        for done in self.flushes.take_all() {
            self.tell_end(done, EndpointStatus::Stopped);
        }
        self.shared.close();
    }
}

impl Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("pace", &self.pace).field("state", &self.state).finish_non_exhaustive()
    }
}

/// Chance for jitter.
fn random() -> StdRng {
    StdRng::seed_from_u64(random_u64())
}
