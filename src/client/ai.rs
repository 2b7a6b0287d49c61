//! Capture of AI events, which have a lane of their own: a second queue and delivery engine on the same two threads.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::child::patience;
use super::failure::{Place, explain};
use super::receipt::{self, Receipt};
use super::{Client, Shared};
use crate::error::Error;
use crate::event::Event;
use crate::pipeline::{self, Pipeline};
use crate::report::{Diagnostic, DropReason};
use crate::sys::disk::fork::lock_within;
use crate::sys::limits::OPEN_TIMEOUT;
use crate::sys::wording;

/// Wait after a failed opening. Without it, each AI event would open the lane again and wait for the disk.
const REOPEN_AFTER: Duration = Duration::from_secs(60);

/// The lane of AI events, once it is open.
#[derive(Default)]
pub(super) struct AiLane {
    open: OnceLock<Arc<Pipeline>>,
    /// When opening it last failed. Locked by the thread that opens the lane.
    failed_at: Mutex<Option<Instant>>,
    /// Whether opening it failed, for statistics, which must not wait for an opening.
    pub(super) has_failed: Arc<AtomicBool>,
}

impl AiLane {
    /// The lane, if it is open.
    pub(super) fn get(&self) -> Option<&Arc<Pipeline>> {
        self.open.get()
    }

    pub(super) fn take(&mut self) -> Option<Arc<Pipeline>> {
        self.open.take()
    }
}

impl Client {
    /// Captures an AI event (`$ai_generation`, `$ai_trace` and the like), which may be too large for
    /// [`capture`](Client::capture). The same hooks and settings apply, and the receipt means the same. The event may
    /// have up to 8 MiB, is stored in a queue of its own, and is sent to PostHog's AI endpoint (`/i/v0/ai/batch/`, with
    /// [`CaptureProtocol::V1`](crate::settings::CaptureProtocol::V1) `/i/v1/ai/events`). AI events and other events do
    /// not wait for each other.
    ///
    /// Neither call looks at the name. An `$ai_...` event that is given to `capture` is sent as an analytics event. An
    /// event of another name that is given to this call is sent to the AI endpoint, where V1 rejects it
    /// (`misrouted_event`), so that it becomes a dead letter.
    ///
    /// The first call opens the queue and waits for that: usually about 50 ms, at most 30 s if the disk does not
    /// respond. With [`Config::open_ai_queue`](crate::Config::open_ai_queue) the queue is opened with the client. If it
    /// cannot be opened, a diagnostic reports the reason, AI events are `Dropped(Storage)`, and opening is tried again
    /// after a minute. Other events are not affected.
    ///
    /// Follows PostHog's specification `capture-ai`.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    /// let receipt = client.capture_ai(
    ///     Event::new("$ai_generation", "user_1")
    ///         .prop("$ai_trace_id", "trace_7")
    ///         .prop("$ai_model", "some-model")
    ///         .prop("$ai_input", "a prompt of any length"),
    /// );
    /// # let _ = receipt;
    /// ```
    pub fn capture_ai(&self, event: Event) -> Receipt {
        match self.ai_lane() {
            Ok((client, ai)) => client.shared.capture(&ai, event),
            Err(reason) => Receipt::dropped(reason),
        }
    }

    /// The lane of AI events of this process, opened if necessary, and its client. A refusal is counted.
    pub(super) fn ai_lane(&self) -> Result<(Client, Arc<Pipeline>), DropReason> {
        let shared = &self.shared;
        let lane = match &shared.pipeline {
            None => Err(DropReason::Disabled),
            // Checked first: the lane and the rules that a forked child has inherited are its parent's.
            Some(analytics) if analytics.is_forked() => match shared.child_or_open(analytics) {
                Some(child) => return child.ai_lane(),
                None => Err(DropReason::Forked),
            },
            // An event that will be dropped does not open the lane.
            Some(_) if shared.rules.is_opted_out() => Err(DropReason::OptedOut),
            Some(analytics) => shared.ai_or_open(analytics),
        };
        lane.map(|ai| (self.clone(), ai)).inspect_err(|reason| shared.count(*reason))
    }
}

impl Shared {
    /// Opens the lane if the program configured that, or if an earlier process has left events in it.
    pub(super) fn open_ai_at_start(&self, is_wanted: bool) {
        if let Some(analytics) = &self.pipeline
            && (analytics.has_ai_left_behind() || (is_wanted && self.settings.ai_lane))
        {
            // A failure is reported by a diagnostic. It does not affect other events.
            let _ = self.ai_or_open(analytics);
        }
    }

    pub(super) fn ai_or_open(&self, analytics: &Pipeline) -> Result<Arc<Pipeline>, DropReason> {
        match self.ai.get() {
            Some(ai) => Ok(Arc::clone(ai)),
            None => self.open_ai(analytics),
        }
    }

    #[cold]
    fn open_ai(&self, analytics: &Pipeline) -> Result<Arc<Pipeline>, DropReason> {
        let mut failed_at = lock_within(&self.ai.failed_at, patience(OPEN_TIMEOUT)).ok_or(DropReason::Storage)?;
        if let Some(ai) = self.ai.get() {
            return Ok(Arc::clone(ai));
        }
        if analytics.is_closing() {
            return Err(DropReason::Closed);
        }
        if failed_at.is_some_and(|failed_at| failed_at.elapsed() < REOPEN_AFTER) {
            return Err(DropReason::Storage);
        }
        match self.start_ai(analytics) {
            Ok(ai) => {
                receipt::register(&ai);
                let ai = Arc::clone(self.ai.open.get_or_init(|| ai));
                self.ai.has_failed.store(false, Ordering::Release);
                // If another thread closes the client or opts out meanwhile, either this thread sees that below, or the
                // other thread sees the lane.
                fence(Ordering::SeqCst);
                self.rules.apply_to(&ai);
                if analytics.is_closing() {
                    drop(ai.shutdown(Duration::ZERO));
                }
                Ok(ai)
            }
            // The threads that would serve it are ending.
            Err(_) if analytics.is_closing() => Err(DropReason::Closed),
            Err(error) => {
                *failed_at = Some(Instant::now());
                self.ai.has_failed.store(true, Ordering::Release);
                let problem = format!(
                    "the queue of AI events cannot be opened: {}; AI events are dropped, and opening is tried again after {}",
                    error.describe(),
                    wording::time(REOPEN_AFTER)
                );
                self.diagnostics.record(Diagnostic::StorageFailing { problem });
                Err(DropReason::Storage)
            }
        }
    }

    fn start_ai(&self, analytics: &Pipeline) -> Result<Arc<Pipeline>, Error> {
        let mut options = analytics.options().for_ai();
        options.held = self.rules.is_opted_out();
        let place = Place::of(&options);
        let recorder = Arc::clone(&self.diagnostics);
        options.report = Arc::new(move |diagnostic| recorder.record(of_ai(diagnostic)));
        pipeline::start_beside(options, analytics).map_err(|error| explain(error, &place))
    }
}

/// Names the lane in the text of a diagnostic.
fn of_ai(diagnostic: Diagnostic) -> Diagnostic {
    let said = |text: String| format!("AI events: {text}");
    match diagnostic {
        Diagnostic::EndpointFailing { reason, backlog } => {
            Diagnostic::EndpointFailing { reason: said(reason), backlog }
        }
        Diagnostic::StorageFailing { problem } => Diagnostic::StorageFailing { problem: said(problem) },
        Diagnostic::Paused { status, reason, by_posthog, backlog } => {
            Diagnostic::Paused { status, reason: said(reason), by_posthog, backlog }
        }
        other => other,
    }
}
