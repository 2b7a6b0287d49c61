//! A PostHog stand-in on loopback.
