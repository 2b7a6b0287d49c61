//! The task: what is asked of it, what it may send, what came back, when to wake up again.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::{Id, JoinSet};

use super::batch::{Batch, BatchLimits};
use super::flush::{Endpoint, FlushOutcome, Flushes, Totals};
use super::handle::{FlushDone, Shared, call};
use super::intake::Intake;
use super::pace::{Pace, Permit, Ticket};
use super::split::{Split, Turn};
pub(super) use super::timers::now;
use super::timers::sleep_until;
use super::{
    DeliveryHandle, DeliveryOptions, DeliveryState, Notice, OnDelivery, PaceState, Report, Source, SourceError,
};
use crate::clock::{Clock, WallNanos};
use crate::entropy::random_u64;
use crate::transport::{Post, Response, TransportError};

/// What an engine is made of.
#[derive(Clone)]
pub(crate) struct EngineParts {
    /// What to send, where, and how much at once.
    pub(crate) options: DeliveryOptions,
    /// The queue.
    pub(crate) source: Arc<dyn Source>,
    /// The network.
    pub(crate) transport: Arc<dyn Post>,
    /// Wall time.
    pub(crate) clock: Clock,
    /// Hears of everything.
    pub(crate) report: Report,
    /// The program's own ear.
    pub(crate) on_delivery: Option<OnDelivery>,
    /// What `PaceState::next_attempt` was in an earlier life.
    pub(crate) next_attempt: Option<WallNanos>,
}

/// The delivery task.
pub(crate) struct Engine {
    pub(super) options: DeliveryOptions,
    pub(super) clock: Clock,
    pub(super) report: Report,
    pub(super) on_delivery: Option<OnDelivery>,
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
    pub(super) transport: Arc<dyn Post>,
    pub(super) requests: JoinSet<Result<Response, TransportError>>,
    pub(super) under_way: HashMap<Id, (Batch, Ticket)>,
    flushes: Flushes,
    /// Until when to go on.
    stop: Option<Instant>,
    /// The endpoint failed while we are stopping: no more attempts.
    gave_up: bool,
    next_attempt: Option<WallNanos>,
    /// What failed, to be sent again as the same request (`again.rs`).
    pub(super) again: Option<Batch>,
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
            state: DeliveryState::default(),
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
            gave_up: false,
            remembered: PaceState { next_attempt: parts.next_attempt, ..PaceState::default() },
            next_attempt: parts.next_attempt,
            again: None,
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
            engine.settle_all();
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
        match self.intake.read(1, now, &mut self.flushes) {
            Ok(true) => self.pace.delay_first_send(now, &mut self.rng),
            Ok(false) => {}
            Err(error) => self.unreadable(&error),
        }
    }

    /// Takes in what is asked. False: nothing more is to be done.
    fn hear(&mut self) -> bool {
        let (committed, flushes, stops) = {
            let mut inbox = self.shared.inbox();
            if inbox.abandoned {
                return false;
            }
            #[cfg(feature = "testing")]
            inbox.heard_all();
            let stops = inbox.stop.is_some() && self.stop.is_none();
            self.stop = inbox.stop;
            (std::mem::take(&mut inbox.committed) || stops, std::mem::take(&mut inbox.flushes), stops)
        };
        if committed || !flushes.is_empty() {
            self.intake.expect_more();
        }
        for done in flushes {
            self.begin_flush(done);
        }
        self.gave_up |= stops && self.pace.flush_is_futile(now());
        true
    }

    fn begin_flush(&mut self, done: FlushDone) {
        let totals = self.intake.totals;
        if self.pace.flush_is_futile(now()) {
            let endpoint = self.endpoint();
            self.call(done, totals, endpoint);
        } else {
            self.flushes.push(self.intake.newest(), totals, done);
        }
    }

    /// Starts what may be started.
    fn fill(&mut self) {
        while !self.gave_up {
            let now = now();
            let eager = self.stop.is_some() || !self.flushes.is_empty();
            if self.intake.aside.any_due(self.intake.accepted, now) {
                self.intake.expect_more();
            }
            let Permit::Send { ticket, small } = self.pace.permit(now, self.under_way.len(), eager) else { break };
            match self.next_batch(small, now) {
                Ok(Some(batch)) => self.send(batch, ticket, now),
                Ok(None) => break,
                Err(error) => {
                    self.unreadable(&error);
                    break;
                }
            }
        }
    }

    fn next_batch(&mut self, small: bool, now: Instant) -> Result<Option<Batch>, SourceError> {
        if let Some(again) = self.again.take() {
            return Ok(Some(again));
        }
        let turn = self.split.turn();
        if turn == Turn::Piece && !self.split.is_empty() {
            return Ok(self.split.pop(&mut self.intake.loaded));
        }
        let fresh = self.intake.assemble(&self.limits, small, now, &mut self.flushes)?;
        self.split.push(self.intake.take_due());
        Ok(fresh.or_else(|| self.split.pop(&mut self.intake.loaded)))
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
        let eager = self.stop.is_some() || !self.flushes.is_empty();
        let aside = &self.intake.aside;
        let is_due = aside.any_due(self.intake.accepted, now);
        let has_work = is_due || self.has_work();
        let paced = match self.pace.permit(now, self.under_way.len(), eager) {
            Permit::Wait(until) if has_work => Some(until),
            _ => None,
        };
        let readable = self.intake.unreadable_until().filter(|&at| has_work && at > now);
        [paced, readable, aside.next_due(now), self.stop].into_iter().flatten().min()
    }

    fn answer_flushes(&mut self) {
        if self.flushes.is_empty() {
            return;
        }
        let loaded: Vec<_> = self.intake.loaded.references().collect();
        let endpoint = self.endpoint();
        for (totals, done) in self.flushes.take_done(loaded.iter().copied()) {
            self.call(done, totals, endpoint.clone());
        }
    }

    /// The endpoint is found down: everybody who waits is told.
    pub(super) fn fail_flushes(&mut self) {
        let endpoint = self.endpoint();
        for (totals, done) in self.flushes.take_all() {
            self.call(done, totals, endpoint.clone());
        }
        self.gave_up |= self.stop.is_some();
    }

    fn call(&self, done: FlushDone, at_begin: Totals, endpoint: Endpoint) {
        let totals = self.intake.totals;
        let delivered = totals.delivered.saturating_sub(at_begin.delivered);
        let buried = totals.buried.saturating_sub(at_begin.buried);
        if !call(done, FlushOutcome { delivered, buried, endpoint }) {
            (self.report)(Notice::CallbackPanicked);
        }
    }

    fn unreadable(&mut self, error: &SourceError) {
        let reason = format!("{error}: {}", error.0);
        (self.report)(Notice::QueueUnreadable { reason: reason.clone() });
        self.state.last_error = Some(reason.clone());
        let endpoint = Endpoint::Down { reason, until: None };
        for (totals, done) in self.flushes.take_all() {
            self.call(done, totals, endpoint.clone());
        }
    }

    /// Whether there may be something to send that is not under way.
    fn has_work(&self) -> bool {
        self.intake.has_work() || !self.split.is_empty() || self.again.is_some()
    }

    fn is_over(&self) -> bool {
        let Some(deadline) = self.stop else { return false };
        let is_done = self.gave_up || !self.has_work();
        now() >= deadline || (is_done && self.under_way.is_empty())
    }

    fn settle_all(&mut self) {
        self.requests.abort_all();
        self.intake.close_all(now());
        self.answer_flushes();
        self.publish();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Also on the way out of a panic or of a runtime that is shut down: nobody waits for ever, and what was read can be read again.
        for chunk in self.intake.loaded.references() {
            self.source.give_back(chunk);
        }
        for (totals, done) in self.flushes.take_all() {
            self.call(done, totals, Endpoint::Stopped);
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
