//! What is asked of PostHog about flags, and what it answers.
//!
//! `POST {host}/flags/?v=2`, or `POST {host}/decide/?v=3` for servers that know nothing newer. Both take the same body ([`Question`]),
//! and either may answer in either shape: one object for each flag, or a map of values beside a map of payloads (`reply.rs`).
//!
//! # Rules
//!
//! * The token is in the body, and there is no `Authorization` header: the token is public, and evaluates nobody's definitions.
//! * `groups`, `person_properties` and `group_properties` are always there, and so is `geoip_disable`; what PostHog looks up by default
//!   depends on the server's version. `flag_keys_to_evaluate` is there only if keys were named.
//! * A flag that PostHog could not evaluate (`failed`) has no value: its `enabled` is `false` for those who do not look, and would be
//!   taken for an answer. A flag that cannot be read loses itself alone. Both make the answer one with errors.
//! * A payload is often JSON in a string; it is read, and left a string where it is none.
//! * An answer that is cut, no JSON, or no answer to this question is a [`Failure::Unreadable`](super::Failure::Unreadable), and never one without flags: a
//!   captive portal must not switch everything off.
//! * A request is sent again, with the same bytes, if there was no answer at all, or a gateway's 502 or 504: after 300 ms, then 600 ms,
//!   doubling up to 5 s. No other status is worth it: the caller waits. Connections that break while the body is read count as no
//!   answer.
//! * One bound holds for all of it ([`RemoteOptions::timeout`]): attempts, waits, and whatever whoever asks waits for before. A wait that would reach
//!   the bound is not begun. So an attempt that hangs to the end is not repeated, and a call never takes longer than its bound says.
//! * Nothing here is remembered: what is known of flags is the cache's business, and what is told of failures the worker's.
//!
//! Parts: `question.rs` the request, `exchange.rs` the attempts, `reply.rs` the answer.

mod reply;
mod request;

pub(crate) use reply::Reply;
#[cfg(fuzzing)]
pub(crate) use reply::read;
pub(crate) use request::{Question, RemoteOptions, ask};
