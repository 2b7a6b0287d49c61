//! The layer for `tracing` in a global subscriber. There, unlike with a subscriber of a thread, an event that is logged
//! while another is handled reaches every layer again.

use std::fmt;
use std::thread::ThreadId;

use posthog::integrations::tracing::layer_for;
use posthog::testing::{Harness, QueuedEvent};
use posthog::{Client, Config, Event};
use tracing::{Subscriber, error};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, registry};

/// A layer that captures every event of one thread itself: other tests log, too.
struct Capturing(Client, ThreadId);

impl<S: Subscriber> Layer<S> for Capturing {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let Self(client, of) = self;
        if std::thread::current().id() == *of {
            client.capture(Event::new("seen", "layer").prop("target", event.metadata().target()));
        }
    }
}

/// Hooks that log errors while the library calls them.
fn noisy(config: Config) -> Config {
    let config = config.on_diagnostic(|diagnostic| error!("diagnostic: {diagnostic}"));
    config.before_send(|event: Event| {
        error!("before_send sees {}", event.name());
        Some(event)
    })
}

/// A value whose `Debug` logs itself.
struct Logging;

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        error!(value = ?Logging, "while formatting");
        f.write_str("logging")
    }
}

fn messages(queued: &[QueuedEvent]) -> Vec<&str> {
    queued.iter().filter_map(|event| event.properties.get("$exception_message")?.as_str()).collect()
}

#[test]
fn hooks_that_log_and_layers_that_capture_do_not_loop() {
    let harness = Harness::new(noisy).unwrap();
    let client = harness.client();
    let subscriber = registry().with(Capturing(client.clone(), std::thread::current().id())).with(layer_for(client));
    tracing::subscriber::set_global_default(subscriber).unwrap();
    error!("the first");
    let queued = harness.queued();
    // Once for each event that the program captured, by the line or by the other layer. Not for events that were
    // captured inside the hook.
    assert_eq!(messages(&queued), ["before_send sees seen", "before_send sees $exception", "the first"], "{queued:?}");
    // An event without a name: a diagnostic, whose hook logs.
    client.capture(Event::new("", "user_1"));
    let queued = harness.queued();
    let [_, _, _, diagnostic] = messages(&queued)[..] else { panic!("{queued:?}") };
    assert!(diagnostic.starts_with("diagnostic: "), "{queued:?}");
    error!(value = ?Logging, "outer");
    let queued = harness.queued();
    let later = &messages(&queued)[4..];
    assert!(later.len() < 10 && later.contains(&"outer") && later.contains(&"while formatting"), "{queued:?}");
}
