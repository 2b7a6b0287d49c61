//! A program that captures. Its tests, in `tests/`, are those of `posthog::testing`.

use posthog::{Client, Event};

/// Somebody signs up.
pub fn sign_up(posthog: &Client, user: &str, plan: &str) {
    posthog.capture(Event::new("signed_up", user).prop("plan", plan));
}

/// A model is asked something.
pub fn ask(posthog: &Client, user: &str, question: &str) {
    posthog.capture_ai(Event::new("$ai_generation", user).prop("$ai_input", question));
}
