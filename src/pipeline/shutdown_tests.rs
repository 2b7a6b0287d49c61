//! What is said of events that a shutdown leaves.

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn a_shutdown_reports_the_obstacle_and_not_a_false_timeout() {
    let down = |reason: &str, retry_in| EndpointStatus::Down { reason: reason.into(), retry_in };
    let paused =
        EndpointStatus::Paused { status: 401, reason: "HTTP status 401: API key is not valid".into(), retry_in: None };
    for (endpoint, took, expected) in [
        (paused.clone(), MS(5), "requests are refused (HTTP status 401: API key is not valid)"),
        (paused, MS(10_000), "requests are refused (HTTP status 401: API key is not valid)"),
        (
            EndpointStatus::Refusing { reason: "HTTP status 400: no".into() },
            MS(20),
            "the server rejects what is left (HTTP status 400: no)",
        ),
        (
            down("could not connect", None),
            MS(1200),
            "the endpoint did not take them and delivery gave up after 1 s (could not connect)",
        ),
        (
            down("HTTP status 429", Some(Duration::from_secs(3540))),
            MS(5),
            "the endpoint did not take them and delivery gave up after 5 ms (HTTP status 429, the next attempt is due in 59 min)",
        ),
        (
            down("HTTP status 503", Some(MS(300))),
            MS(10_000),
            "the endpoint did not take them within 10 s (HTTP status 503)",
        ),
        (down("", None), MS(10_000), "the endpoint did not take them within 10 s (no attempt was possible)"),
        (
            EndpointStatus::Up,
            MS(10_100),
            "the time given to the shutdown (10 s) was used up; give it more, or raise Config::shutdown_timeout (POSTHOG_SHUTDOWN_TIMEOUT)",
        ),
        (EndpointStatus::Up, MS(5), "they were not sent before it ended"),
    ] {
        assert_eq!(why_left(&endpoint, took, MS(10_000)), expected);
    }
}
