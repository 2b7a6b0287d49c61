//! For tests of programs that capture: a clock that stands still, a server that is played in memory, a queue that can be read.
//!
//! With the feature `testing`, as a dev-dependency: `posthog-durable = { version = "..", features = ["testing"] }`. Without it none of
//! this is compiled.
//!
//! What is tested is the real client: it journals, stores and delivers as ever, in a temporary directory. Only three things around it
//! are others. *Time* stands still until it is moved, for everything that the client does by time: timestamps, the age at which a batch
//! is due, syncs, backoff, `Retry-After`, parking, deadlines of a shutdown. *The network* is a [`Server`] that answers as it is told
//! and remembers what it was asked; what it cannot read fails the test that asks for it. *Chance* is not: a wait after a failure is drawn between zero and a bound, so advance by the bound.
//! What a caller waits for goes by real time, for the caller's thread is not the client's: [`Pending::wait`](crate::Pending::wait),
//! [`OverflowPolicy::Block`](crate::OverflowPolicy::Block), the second that dropping a client may take.
//!
//! A test has steps. It captures; it moves the clock ([`Harness::advance`]) or has everything sent now ([`Harness::deliver`]), either
//! of which returns when both threads of the client have done what was due; and it looks: at the [`queue`](Harness::queued), at the
//! [`server`](Harness::server), at `stats()` and `diagnostics()`. Nothing sleeps, and nothing depends on the machine's speed.
//!
//! ```
//! use std::time::Duration;
//! use posthog::testing::{Answer, Harness, Route};
//! use posthog::{Client, EndpointStatus, Event};
//!
//! // What is to be tested.
//! fn sign_up(posthog: &Client) {
//!     posthog.capture(Event::new("signed_up", "user_1").prop("plan", "pro"));
//! }
//!
//! # fn main() -> Result<(), posthog::Error> {
//! let harness = Harness::new(|config| config.flush_interval(Duration::from_secs(5)))?;
//! sign_up(harness.client());
//!
//! // It waits to be sent, with the time that the clock shows.
//! let queued = harness.queued();
//! assert_eq!((queued[0].event.as_str(), &queued[0].properties["plan"]), ("signed_up", &"pro".into()));
//! assert_eq!(queued[0].timestamp, "2025-01-01T00:00:00Z");
//! assert!(harness.server().requests().is_empty());
//!
//! // The batch is due, and the server is down; later it is up again.
//! harness.server().script(Route::Analytics, [Answer::status(503)]);
//! harness.advance(Duration::from_secs(5));
//! assert_eq!((harness.server().requests().len(), harness.queued().len()), (1, 1));
//! harness.advance(Duration::from_secs(30));
//! let requests = harness.server().requests();
//! assert_eq!((requests.len(), requests[1].attempt, harness.queued().len()), (2, 2, 0));
//! assert_eq!(requests[1].events, requests[0].events);
//!
//! // Or everything at once.
//! sign_up(harness.client());
//! let report = harness.deliver().expect("the server answers at once");
//! assert_eq!((report.delivered, report.endpoint), (1, EndpointStatus::Up));
//! # Ok(())
//! # }
//! ```
//!
//! Parts: `harness.rs` puts a client together; `clock.rs`, `server.rs` with its `answer.rs` and `body.rs`, and `queue.rs` are what surrounds it;
//! `directory.rs` is where its queue lies. Not for forked children: what they would share is in the memory of one process.

mod answer;
mod body;
mod clock;
#[cfg(test)]
mod definitions_tests;
mod directory;
mod flags;
#[cfg(test)]
mod flags_tests;
mod harness;
#[cfg(test)]
mod messages_tests;
mod queue;
mod server;

pub use answer::Answer;
pub use clock::StillClock;
pub use flags::captured_flag_reads;
pub use harness::Harness;
pub use queue::{QueuedEvent, queued};
pub use server::{RecordedRequest, Route, Server};
