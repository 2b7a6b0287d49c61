//! The fixture of the requirements' tests: a client, a stand-in for PostHog, and the events that arrived.

use std::sync::{Arc, Mutex};

use posthog::diagnostics::{Diagnostic, DiagnosticCategory};
use posthog::{Client, Config, DropReason, Outcome, Receipt};
use serde_json::Value;

use crate::fixture::{Fixture, PATIENCE};

/// A client with its fixture.
pub(crate) struct Scenario {
    pub(crate) fixture: Fixture,
    pub(crate) client: Client,
    /// Each event that arrived, as JSON.
    arrived: Arc<Mutex<Vec<Value>>>,
}

impl Scenario {
    pub(crate) fn new() -> Self {
        Self::with(|config| config)
    }

    pub(crate) fn with(set: impl FnOnce(Config) -> Config) -> Self {
        Self::on(Fixture::new(), set)
    }

    /// A client on a fixture that exists.
    pub(crate) fn on(fixture: Fixture, set: impl FnOnce(Config) -> Config) -> Self {
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&arrived);
        // A rule that rejects nothing and records every event.
        let look = move |event: &Value| {
            seen.lock().unwrap().push(event.clone());
            false
        };
        fixture.sink.refuse_if(look, 400, "");
        let client = Client::new(set(fixture.config())).unwrap();
        Self { fixture, client, arrived }
    }

    /// Flushes, and returns all events that have arrived so far.
    pub(crate) fn sent(&self) -> Vec<Value> {
        self.client.flush().wait(PATIENCE).unwrap();
        self.arrived.lock().unwrap().clone()
    }

    /// The one event that was sent.
    pub(crate) fn sent_one(&self) -> Value {
        let sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:#?}");
        sent[0].clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.sent().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect()
    }

    /// Checks that nothing was queued or sent, and that a diagnostic of that category was recorded.
    pub(crate) fn must_have_dropped(&self, receipt: &Receipt, reason: DropReason, category: DiagnosticCategory) {
        assert_eq!((receipt.outcome(), receipt.uuid()), (Outcome::Dropped(reason), None));
        let recorded =
            |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::Dropped { reason: of, .. } if *of == reason);
        let diagnostics = self.client.diagnostics();
        let found = diagnostics
            .iter()
            .find(|diagnostic| recorded(diagnostic))
            .unwrap_or_else(|| panic!("{reason:?} in {diagnostics:?}"));
        assert_eq!(found.category(), category);
        self.must_have_queued_nothing();
    }

    pub(crate) fn must_have_queued_nothing(&self) {
        assert_eq!(self.client.stats().accepted, 0);
        assert!(self.sent().is_empty() && self.fixture.sink.requests().is_empty());
    }
}

/// Whether a diagnostic of that category was recorded.
pub(crate) fn has_recorded(client: &Client, category: DiagnosticCategory) -> bool {
    client.diagnostics().iter().any(|diagnostic| diagnostic.category() == category)
}
