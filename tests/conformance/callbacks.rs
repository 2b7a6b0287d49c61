//! Events that a program captures inside callbacks of this library pass its `before_send` hooks.

use std::sync::{Arc, OnceLock};

use posthog::{Client, DropReason, Outcome};
use serde_json::Value;
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

use crate::fixture::{accepted, event};
use crate::scenario::Scenario;

/// Captures an event for each log line of the library, as a layer that sends logs to PostHog does.
struct Layer(Client);

impl Subscriber for Layer {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "posthog"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.capture(event("of the layer").prop("secret", 1));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A client whose hook removes a secret and marks the event, with a handle for callbacks.
fn scenario(of_the_hook: bool) -> (Scenario, Arc<OnceLock<Client>>) {
    let held: Arc<OnceLock<Client>> = Arc::default();
    let (of_diagnostics, of_before_send) = (Arc::clone(&held), Arc::clone(&held));
    let scenario = Scenario::with(|config| {
        config
            .before_send(move |mut seen| {
                if of_the_hook && let Some(client) = of_before_send.get() {
                    accepted(&client.capture(event("of before_send")));
                }
                seen.remove("secret");
                Some(seen.prop("seen", true))
            })
            .on_diagnostic(move |_| {
                if let Some(client) = of_diagnostics.get() {
                    client.capture(event("of on_diagnostic").prop("secret", 1));
                }
            })
    });
    (scenario, held)
}

/// The name of each event, and whether a hook saw it; checks that the secret is in none.
fn seen(sent: &[Value]) -> Vec<(&str, bool)> {
    assert!(sent.iter().all(|event| event["properties"].get("secret").is_none()), "{sent:#?}");
    sent.iter().map(|event| (event["event"].as_str().unwrap(), event["properties"]["seen"] == true)).collect()
}

#[test]
fn bsh_01_events_of_callbacks_and_log_layers_pass_before_send() {
    let (scenario, held) = scenario(false);
    held.set(scenario.client.clone()).unwrap();
    tracing::subscriber::with_default(Layer(scenario.client.clone()), || {
        assert_eq!(scenario.client.capture(event("")).outcome(), Outcome::Dropped(DropReason::EmptyName));
    });
    assert_eq!(seen(&scenario.sent()), [("of on_diagnostic", true), ("of the layer", true)]);
}

#[test]
fn bsh_01_only_a_hooks_own_captures_skip_before_send() {
    let (scenario, held) = scenario(true);
    held.set(scenario.client.clone()).unwrap();
    accepted(&scenario.client.capture(event("tick").prop("secret", 1)));
    assert_eq!(seen(&scenario.sent()), [("of before_send", false), ("tick", true)]);
}
