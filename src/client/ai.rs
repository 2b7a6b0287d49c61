//! AI events: the same capture, into a second pipeline.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::child::patience;
use super::failure::{Place, explain};
use super::notices;
use super::receipt::{self, Receipt};
use super::{Client, Shared};
use crate::error::Error;
use crate::event::Event;
use crate::pipeline::{self, Pipeline};
use crate::report::{Diagnostic, DropReason};
use crate::sys::disk::fork::lock_within;
use crate::sys::limits::OPEN_TIMEOUT;
use crate::sys::wording;

/// A lane that could not be opened is not tried again with each event, which would wait for it each time.
const REOPEN_AFTER: Duration = Duration::from_secs(60);

/// The pipeline of AI events.
#[derive(Default)]
pub(super) struct AiLane {
    open: OnceLock<Arc<Pipeline>>,
    /// Held by whoever opens it.
    opening: Mutex<Opening>,
}

#[derive(Default)]
struct Opening {
    failed_at: Option<Instant>,
}

impl AiLane {
    /// The pipeline, if it is open.
    pub(super) fn get(&self) -> Option<&Arc<Pipeline>> {
        self.open.get()
    }

    pub(super) fn take(&mut self) -> Option<Arc<Pipeline>> {
        self.open.take()
    }
}

impl Client {
    /// Takes an AI event (`$ai_generation`, `$ai_trace` and the like): [`capture`](Client::capture) for what is too
    /// large for it. The same hooks and settings apply, and the receipt means the same; but the event may take 8 MiB,
    /// has a queue of its own, and goes to PostHog's AI endpoint (`/i/v0/ai/batch/`). Neither lane waits for the other.
    /// `capture` never reroutes by name: an `$ai_...` event given to it stays with analytics.
    ///
    /// The first call opens that queue, and waits for it: usually some 50 ms, at most 30 s where the disk does not
    /// answer. [`Config::open_ai_queue`](crate::Config::open_ai_queue) has that done with the client. If it cannot be
    /// opened, a diagnostic says why, AI events are `Dropped(Storage)`, it is tried again after a minute, and
    /// everything else goes on as ever.
    ///
    /// What it does follows PostHog's specification `capture-ai`.
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
        let Some(analytics) = &self.shared.pipeline else {
            self.shared.count(DropReason::Disabled);
            return Receipt::dropped(DropReason::Disabled);
        };
        // Asked first: what a child has inherited, of the lane and of the rules, is its parent's.
        let taken = if analytics.is_forked() {
            self.shared.child_or_open(analytics).map(|child| child.capture_ai(event)).ok_or(DropReason::Forked)
        } else if self.shared.rules.is_opted_out() {
            // An event that is not wanted does not open the lane.
            Err(DropReason::OptedOut)
        } else {
            self.shared.ai_or_open(analytics).map(|ai| self.shared.capture(&ai, event))
        };
        taken.unwrap_or_else(|reason| {
            self.shared.count(reason);
            Receipt::dropped(reason)
        })
    }
}

impl Shared {
    /// Opens the lane if it is wanted from the start, or if an earlier process has left events in it.
    pub(super) fn open_ai_at_start(&self, is_wanted: bool) {
        if let Some(analytics) = &self.pipeline
            && (analytics.has_ai_left_behind() || (is_wanted && self.settings.ai_lane))
        {
            // Told by a diagnostic: it is no reason not to take any other event.
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
        let mut opening = lock_within(&self.ai.opening, patience(OPEN_TIMEOUT)).ok_or(DropReason::Storage)?;
        if let Some(ai) = self.ai.get() {
            return Ok(Arc::clone(ai));
        }
        if analytics.is_closing() {
            return Err(DropReason::Closed);
        }
        if opening.failed_at.is_some_and(|failed_at| failed_at.elapsed() < REOPEN_AFTER) {
            return Err(DropReason::Storage);
        }
        match self.start_ai(analytics) {
            Ok(ai) => {
                receipt::register(&ai);
                let ai = Arc::clone(self.ai.open.get_or_init(|| ai));
                // Either this sees that the client was closed or opted out meanwhile, or whoever did that sees the
                // lane.
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
                opening.failed_at = Some(Instant::now());
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
        options.report = Arc::new(move |notice| notices::record(&recorder, notice, of_ai));
        pipeline::start_beside(options, analytics).map_err(|error| explain(error, &place))
    }
}

/// Says in its text which lane it is about.
fn of_ai(diagnostic: Diagnostic) -> Diagnostic {
    let said = |text: String| format!("AI events: {text}");
    match diagnostic {
        Diagnostic::EndpointFailing { reason } => Diagnostic::EndpointFailing { reason: said(reason) },
        Diagnostic::StorageFailing { problem } => Diagnostic::StorageFailing { problem: said(problem) },
        Diagnostic::Paused { status, reason, by_posthog } => {
            Diagnostic::Paused { status, reason: said(reason), by_posthog }
        }
        other => other,
    }
}
