//! The rules of health, each by itself, and the list of all failures with the tests that show what health says of them.

use super::*;
use crate::report::stats::fixtures::{with_ai, working};

const SECOND: Duration = Duration::from_secs(1);

/// The status and the causes, the worst first.
fn judged(stats: &Stats) -> (HealthStatus, Vec<HealthCause>) {
    let health = stats.health();
    (health.status, health.problems.iter().map(|problem| problem.cause).collect())
}

/// Judges a client that works but for one change.
fn with(change: impl FnOnce(&mut Stats)) -> (HealthStatus, Vec<HealthCause>) {
    let mut stats = working();
    change(&mut stats);
    judged(&stats)
}

fn failing(cause: HealthCause) -> (HealthStatus, Vec<HealthCause>) {
    (HealthStatus::Failing, vec![cause])
}

fn degraded(cause: HealthCause) -> (HealthStatus, Vec<HealthCause>) {
    (HealthStatus::Degraded, vec![cause])
}

#[test]
fn a_client_that_works_is_ready_whatever_it_lost_before() {
    assert_eq!(judged(&working()), (HealthStatus::Ready, vec![]));
    let health = working().health();
    assert!(health.is_ready() && health.is_alive());
    assert_eq!((health.to_string().as_str(), health.fill_percent), ("ready", 0));
}

#[test]
fn dropped_events_are_a_failure_unless_the_program_wants_it() {
    let rejecting = |reason| with(|stats| stats.rejecting = Some(reason));
    for reason in [DropReason::QueueFull, DropReason::DiskFull, DropReason::Storage, DropReason::JournalFull] {
        assert_eq!(rejecting(reason), failing(HealthCause::Rejecting), "{reason:?}");
    }
    assert_eq!(rejecting(DropReason::OptedOut), degraded(HealthCause::OptedOut));
    assert_eq!(judged(&Stats::disabled(Vec::new())), degraded(HealthCause::Disabled));
    assert_eq!(judged(&Stats::forked(Vec::new(), false)), degraded(HealthCause::NotOpened));
    assert_eq!(judged(&Stats::forked(Vec::new(), true)), failing(HealthCause::Rejecting));
    assert_eq!(with(|stats| stats.ai_unavailable = true), degraded(HealthCause::AiUnavailable));
    let refused = |stats: &mut Stats| stats.flag_definitions_failure = Some("refused".into());
    assert_eq!(with(refused), degraded(HealthCause::FlagDefinitions));
    for stats in [Stats::disabled(Vec::new()), Stats::forked(Vec::new(), false)] {
        assert!(stats.health().is_ready() && stats.health().is_alive());
    }
}

#[test]
fn a_client_whose_queue_is_gone_needs_a_restart() {
    let rejecting = |reason| Stats { rejecting: Some(reason), ..working() }.health();
    assert!(!rejecting(DropReason::Storage).is_alive(), "another process has its queue");
    assert!(!Stats::forked(Vec::new(), true).health().is_alive(), "a child that could not open one");
    for reason in [DropReason::QueueFull, DropReason::DiskFull, DropReason::JournalFull, DropReason::OptedOut] {
        assert!(rejecting(reason).is_alive(), "{reason:?}");
    }
    let mut stats = with_ai();
    assert!(stats.health().is_alive());
    stats.ai.as_mut().unwrap().rejecting = Some(DropReason::Storage);
    assert!(!stats.health().is_alive(), "each lane has a queue");
    // A queue of AI events that could not be opened is tried again by itself.
    assert!(Stats { ai_unavailable: true, ..working() }.health().is_alive());
    stats.storage = StorageMode::Closed;
    assert!(stats.health().is_alive());
}

#[test]
fn the_detail_of_a_pause_names_its_status_once() {
    for said in ["HTTP status 401: no such key", "HTTP status 401, apparently not from PostHog", "no such key"] {
        let mut stats = working();
        stats.delivery = DeliveryPhase::Paused { status: 401, retry_in: Duration::from_secs(42) };
        stats.last_error = Some(said.into());
        let health = stats.health();
        let [problem] = &health.problems[..] else { panic!("{health:?}") };
        assert!(problem.detail.matches("401").count() == 1, "{health}");
        assert!(problem.detail.starts_with("delivery is paused (HTTP status 401): "), "{health}");
    }
}

#[test]
fn a_closed_client_is_not_ready_and_needs_no_restart() {
    let closed = |stats: &mut Stats| {
        stats.storage = StorageMode::Closed;
        stats.rejecting = Some(DropReason::Closed);
        (stats.commit_thread, stats.deliver_thread) = (ThreadState::Ended, ThreadState::Ended);
    };
    assert_eq!(with(closed), failing(HealthCause::Closed));
    let mut stats = working();
    closed(&mut stats);
    assert!(!stats.health().is_ready() && stats.health().is_alive());
}

#[test]
fn a_thread_that_ended_or_is_stuck_is_a_failure() {
    let working_for = |seconds: u32| ThreadState::Working { since: SECOND * seconds };
    assert_eq!(with(|stats| stats.commit_thread = working_for(60)).0, HealthStatus::Ready);
    assert_eq!(with(|stats| stats.commit_thread = working_for(61)), failing(HealthCause::ThreadStuck));
    assert_eq!(with(|stats| stats.deliver_thread = working_for(61)), failing(HealthCause::ThreadStuck));
    assert_eq!(with(|stats| stats.commit_thread = ThreadState::Ended), failing(HealthCause::ThreadEnded));
    assert_eq!(with(|stats| stats.deliver_thread = ThreadState::Restarting), degraded(HealthCause::DeliveryRestarting));
    let alive = |state| Stats { commit_thread: state, ..working() }.health().is_alive();
    assert_eq!([working_for(300), working_for(301), ThreadState::Ended].map(alive), [true, false, false]);
}

#[test]
fn each_failure_of_delivery_is_named_and_no_reason_to_restart() {
    let retry_in = 5 * SECOND;
    for (phase, cause) in [
        (DeliveryPhase::Backoff { retry_in }, HealthCause::EndpointFailing),
        (DeliveryPhase::Cooldown { retry_in }, HealthCause::EndpointFailing),
        (DeliveryPhase::Quarantined { retry_in }, HealthCause::Quarantined),
        (DeliveryPhase::Paused { status: 401, retry_in }, HealthCause::Paused),
    ] {
        assert_eq!(with(|stats| stats.delivery = phase), degraded(cause));
        let health = Stats { delivery: phase, ..working() }.health();
        assert!(health.is_ready() && health.is_alive() && health.to_string().contains("503"), "{health}");
    }
    assert_eq!(with(|stats| stats.oldest_age = Some(300 * SECOND)).0, HealthStatus::Ready);
    assert_eq!(with(|stats| stats.oldest_age = Some(301 * SECOND)), degraded(HealthCause::Late));
}

#[test]
fn storage_that_fails_or_is_in_memory_is_never_ready() {
    let problem = || "the disk is on fire".to_owned();
    let failing_storage = with(|stats| stats.storage = StorageMode::Degraded { problem: problem() });
    assert_eq!(failing_storage, degraded(HealthCause::StorageFailing));
    let in_memory = with(|stats| {
        stats.storage = StorageMode::Volatile { problem: problem() };
        stats.medium = Some(QueueMedium::ProcessMemory);
    });
    assert_eq!(in_memory, degraded(HealthCause::InMemory));
    // A directory on another medium was chosen.
    assert_eq!(with(|stats| stats.medium = Some(QueueMedium::MemoryFileSystem)).0, HealthStatus::Ready);
    assert!(QueueMedium::ALL.iter().filter(|medium| medium.is_fallback()).count() == 2);
}

#[test]
fn the_fill_is_by_bytes_or_events_and_that_of_the_fuller_lane() {
    let full = |used_bytes, max_events| Stats { used_bytes, max_bytes: 1000, max_events, ..working() };
    assert_eq!(full(799, None).fill(), 0.799);
    assert_eq!(judged(&full(799, None)).0, HealthStatus::Ready);
    assert_eq!(judged(&full(800, None)), degraded(HealthCause::AlmostFull));
    assert_eq!((full(0, Some(4)).fill(), full(0, Some(4)).health().fill_percent), (0.75, 75));
    assert_eq!((full(1125, None).fill(), full(1125, None).health().fill_percent), (1.125, 100));
    // Of the sums it would be 11 of the two bounds.
    assert_eq!(with_ai().fill(), 0.8);
}

#[test]
fn problems_of_the_ai_lane_say_so_and_the_worst_is_first() {
    let mut stats = with_ai();
    assert_eq!(judged(&stats), (HealthStatus::Degraded, vec![HealthCause::AlmostFull, HealthCause::EndpointFailing]));
    assert!(stats.health().problems.iter().all(|problem| problem.lane == "ai"));
    stats.deliver_thread = ThreadState::Ended;
    let health = stats.health();
    let lanes: Vec<_> = health.problems.iter().map(|problem| (problem.cause, problem.lane)).collect();
    assert_eq!(lanes[0], (HealthCause::ThreadEnded, "analytics"));
    assert_eq!((lanes.len(), health.has(HealthCause::AlmostFull), health.has(HealthCause::Late)), (3, true, false));
    let text = health.to_string();
    assert!(text.starts_with("failing: the thread posthog-deliver has ended"), "{text}");
    assert!(text.contains(" | AI events: the queue is 80 % full (8 events)"), "{text}");
}

#[test]
fn every_cause_has_a_name_of_its_own_and_a_severity() {
    let names: std::collections::HashSet<_> = HealthCause::ALL.map(HealthCause::name).into();
    assert_eq!(names.len(), HealthCause::ALL.len());
    for (at, cause) in HealthCause::ALL.into_iter().enumerate() {
        assert_eq!(cause as usize, at, "{cause} is at its place in ALL");
        assert_ne!(cause.status(), HealthStatus::Ready);
    }
}

/// Each row of the table "By failure" in `docs/guarantees.md` (the beginning of its first cell), and the test that
/// shows what health says of it, or why it says nothing.
const ROWS: &[(&str, Seen)] = &[
    ("return from `main`", Test("health_after_a_restart_or_a_clock_that_was_set_is_ready")),
    ("power cut", Nothing("it is over when a client can be asked; counted in lost_unsynced")),
    ("server down for days", Test("health_sees_an_outage_and_its_end_but_no_reason_to_restart")),
    ("401, 402, 403, 415", Test("health_sees_a_rejected_key_and_a_used_up_quota")),
    ("one event makes each request", Test("health_sees_that_only_rejected_events_are_left")),
    ("400 or 413", Test("health_sees_that_only_rejected_events_are_left")),
    ("disk full", Test("health_sees_a_full_disk_and_a_full_queue")),
    ("read-only or unusable directory", Test("health_sees_a_queue_in_memory")),
    ("the queue directory is deleted", Test("health_sees_a_directory_that_is_deleted_moved_or_taken")),
    ("the queue directory is out of reach", Test("health_sees_a_directory_that_is_deleted_moved_or_taken")),
    ("the lock file is removed", Test("health_sees_a_directory_that_is_deleted_moved_or_taken")),
    (
        "the program closes the library's descriptors",
        Nothing("the files are opened again; if that fails it is an I/O error"),
    ),
    ("files restored as sparse files", Test("health_sees_a_full_disk_and_a_full_queue")),
    ("I/O error, a failed sync", Test("health_sees_a_disk_that_fails_until_it_works_again")),
    ("a queue file is damaged", Nothing("the queue continues with what could be read; the rest is counted in damaged")),
    ("a queue that takes long to open", Nothing("another shard is open, or the client is in memory, a row of its own")),
    ("a shard of a newer version", Nothing("another shard is open; reported by queue_skipped")),
    ("a shard that cannot be opened", Nothing("another shard is open; reported by queue_skipped")),
    ("a queue, a shard or a file in it that another", Nothing("another shard is open; reported by queue_skipped")),
    ("files of an older version", Nothing("they are delivered as all others")),
    ("two processes", Nothing("each has a queue of its own")),
    ("fork", Test("a_child_that_has_captured_nothing_has_no_queue")),
    ("an ambiguous response", Test("health_sees_an_outage_and_its_end_but_no_reason_to_restart")),
    ("the wall clock is set", Test("health_after_a_restart_or_a_clock_that_was_set_is_ready")),
    ("AI events", Test("health_sees_the_ai_endpoint_and_an_ai_queue_that_cannot_open")),
    ("one of the two endpoints is down", Test("health_sees_the_ai_endpoint_and_an_ai_queue_that_cannot_open")),
    ("the client is shut down", Test("health_sees_what_the_program_has_turned_off_or_closed")),
];

enum Seen {
    Test(&'static str),
    Nothing(&'static str),
}
use Seen::{Nothing, Test};

#[test]
fn each_failure_of_the_guarantees_has_its_test_of_health() {
    let guarantees = include_str!("../../docs/guarantees.md");
    let table = guarantees.split("## By failure").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1).collect();
    let tests = [
        include_str!("../testing/health_tests.rs"),
        include_str!("../pipeline/tests/health.rs"),
        include_str!("../../tests/outside/fork.rs"),
    ];
    assert_eq!(rows.len(), ROWS.len(), "rows of the table");
    for (row, (begins, seen)) in rows.iter().zip(ROWS) {
        assert!(row.starts_with(begins), "{begins:?} is not the beginning of {row}");
        match seen {
            Test(name) => assert!(tests.iter().any(|tests| tests.contains(&format!("fn {name}("))), "{name}"),
            Nothing(why) => assert!(!why.is_empty()),
        }
    }
}
