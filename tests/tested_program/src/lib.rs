//! A program that captures, with tests that use `posthog::testing` as users of the library do. `tests/testing.rs` also
//! tests `posthog::testing` itself.
//!
//! It is a package of its own so that the feature `testing` is always enabled: an integration test of the library that
//! needs the feature would be skipped by `cargo test`. As a member of the workspace it also makes `cargo test
//! --workspace` build the library with the feature, and run the examples in the documentation of `posthog::testing`.
//!
//! The program takes a client, or uses the process-wide one, and does not know how it is tested. Its tests do not sleep, use no network, and leave no
//! files.

use posthog::{Client, Event};

/// A user signs up.
pub fn sign_up(posthog: &Client, user: &str, plan: &str) {
    posthog.capture(Event::new("signed_up", user).prop("plan", plan));
}

/// A model generates a text.
pub fn ask(posthog: &Client, user: &str, question: &str) {
    posthog.capture_ai(Event::new("$ai_generation", user).prop("$ai_input", question));
}

/// A user signs out; with the process-wide client.
pub fn sign_out(user: &str) {
    posthog::capture(Event::new("signed_out", user));
}
