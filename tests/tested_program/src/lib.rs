//! A program that captures, such as users of the library write, with tests such as they write: `tests/testing.rs`, which is also where
//! `posthog::testing` itself is tested.
//!
//! It is a package of its own because a package cannot depend on itself. An integration test of the library that needs the feature
//! `testing` would be left out of `cargo test` without a word; this one is always built, with the feature. It being a member of the
//! workspace also has `cargo test --workspace` build the library with the feature, and with it run the examples in the documentation
//! of `posthog::testing`.
//!
//! Rules: the program takes a client and knows nothing of how it is tested. Its tests sleep for nothing, talk to nobody, and leave
//! nothing behind.

use posthog::{Client, Event};

/// Somebody signs up.
pub fn sign_up(posthog: &Client, user: &str, plan: &str) {
    posthog.capture(Event::new("signed_up", user).prop("plan", plan));
}

/// A model is asked something.
pub fn ask(posthog: &Client, user: &str, question: &str) {
    posthog.capture_ai(Event::new("$ai_generation", user).prop("$ai_input", question));
}
