//! Tests of programs that capture: a manual clock, a scripted server in memory, and a readable queue.
//!
//! With the feature `testing`, as a dev-dependency: `posthog-durable = { version = "..", features = ["testing"] }`.
//! Without the feature none of this is compiled.
//!
//! The client under test is the real one: it journals, stores and delivers, in a temporary directory. Three things
//! around it are replaced:
//!
//! * **Time** stands still until the test moves it, for everything that the client does by time: timestamps, the age at
//!   which a batch is due, syncs, backoff, `Retry-After`, cooldowns, the deadline of a shutdown.
//! * **The network** is a [`Server`] with scripted responses, which records its requests. A request that it cannot
//!   read fails the test that asks for requests.
//! * **The disk** is a temporary directory, removed at the end.
//!
//! [`Receipt::persisted`](crate::Receipt::persisted) resolves while time stands still: a caller that waits has the event
//! synced at once. A [`Server`] without a script knows no flags, definitions and remote config: [`Route::Flags`] is
//! answered with an empty list, so every flag has its default.
//!
//! Random waits are not replaced: a wait after a failure is drawn between zero and a bound, so advance by the bound.
//! The caller's own waits use real time: [`Pending::wait`](crate::Pending::wait),
//! [`OverflowPolicy::Block`](crate::settings::OverflowPolicy::Block), and the second that dropping a client may take.
//!
//! A test captures; it moves the clock ([`Harness::advance`]) or delivers everything at once ([`Harness::deliver`]),
//! which return when the client's threads have done what was due; and it looks at the [queue](Harness::queued), the
//! [server](Harness::server), `stats()` and `diagnostics()`. Nothing sleeps, and nothing depends on the machine's
//! speed.
//!
//! ```
//! use std::time::Duration;
//! use posthog::testing::{Answer, Harness, Route};
//! use posthog::{Client, Event};
//! use posthog::reports::EndpointStatus;
//!
//! // The code under test.
//! fn sign_up(posthog: &Client) {
//!     posthog.capture(Event::new("signed_up", "user_1").prop("plan", "pro"));
//! }
//!
//! # fn main() -> Result<(), posthog::Error> {
//! let harness = Harness::new(|config| config.flush_interval(Duration::from_secs(5)))?;
//! sign_up(harness.client());
//!
//! // It is queued, with the time of the clock.
//! let queued = harness.queued();
//! assert_eq!((queued[0].event.as_str(), &queued[0].properties["plan"]), ("signed_up", &"pro".into()));
//! assert_eq!(queued[0].timestamp, "2025-01-01T00:00:00Z");
//! assert!(harness.server().requests().is_empty());
//!
//! // The batch is due while the server is down; later the server works.
//! harness.server().script(Route::Analytics, [Answer::status(503)]);
//! harness.advance(Duration::from_secs(5));
//! assert_eq!((harness.server().requests().len(), harness.queued().len()), (1, 1));
//! harness.advance(Duration::from_secs(30));
//! let requests = harness.server().requests();
//! assert_eq!((requests.len(), requests[1].attempt, harness.queued().len()), (2, 2, 0));
//! assert_eq!(requests[1].events, requests[0].events);
//!
//! // Deliver everything at once.
//! sign_up(harness.client());
//! let report = harness.deliver().expect("the server answers at once");
//! assert_eq!((report.delivered, report.endpoint), (1, EndpointStatus::Up));
//! # Ok(())
//! # }
//! ```
//!
//! Flags have the values that the test gives them ([`Harness::override_flag`]), or those that the server responds.
//!
//! # The process-wide client
//!
//! Code that calls `posthog::capture` and the other free functions is tested with a harness whose client is the
//! process-wide one for a while: on the thread of the test ([`Harness::global_on_this_thread`]), which does not affect
//! tests on other threads, or on all threads ([`Harness::global_on_all_threads`]), one test at a time.
//!
//! A test of a web service, with the attribute `#[tokio::test]`, whose runtime serves the request on the thread of the
//! test:
//!
//! ```no_run
//! # struct Router; struct Request; struct Response { status: u16 }
//! # fn router() -> Router { Router }
//! # impl Router { async fn oneshot(self, _: Request) -> Result<Response, std::convert::Infallible> { Ok(Response { status: 500 }) } }
//! # fn get(_: &str) -> Request { Request }
//! use posthog::testing::Harness;
//!
//! // #[tokio::test]
//! async fn a_failed_order_is_an_exception() {
//!     let harness = Harness::new(|config| config).unwrap();
//!     let _global = harness.global_on_this_thread();
//!     // `Request::get("/orders")`, and `oneshot` of `tower::ServiceExt`.
//!     let response = router().oneshot(get("/orders")).await.unwrap();
//!     assert_eq!(response.status, 500);
//!     let queued = harness.queued();
//!     assert_eq!((queued.len(), queued[0].event.as_str()), (1, "$exception"));
//! }
//! ```
//!
//! Not for forked children: the clock and the server are in the memory of one process.

mod answer;
#[cfg(test)]
mod definitions_tests;
#[cfg(test)]
mod exceptions_tests;
mod flags;
#[cfg(test)]
mod flags_tests;
mod harness;
#[cfg(test)]
mod health_tests;
#[cfg(test)]
mod messages_tests;
mod queue;
mod server;

pub use answer::Answer;
pub use flags::FlagOverride;
pub use harness::{GlobalClient, Harness, StillClock, captured_flag_reads};
pub use queue::{QueuedEvent, queued};
pub use server::{RecordedRequest, Route, Server};
