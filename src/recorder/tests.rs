//! When lines are logged, and that no event is missing from a sum.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::recorder::captured_log::{fields_of, lines_of};
use crate::report::{Backlog, EndpointStatus, ShutdownReport};
use crate::sys::clock::ManualClock;

const SECOND: Duration = Duration::from_secs(1);

fn recovered() -> Diagnostic {
    Diagnostic::EndpointRecovered { after: Duration::ZERO, backlog: Backlog::default() }
}

fn failing() -> Diagnostic {
    Diagnostic::EndpointFailing { reason: "refused".into(), backlog: Backlog::default() }
}

struct Rig {
    diagnostics: Diagnostics,
    clock: Arc<ManualClock>,
}

fn rig() -> Rig {
    let clock = ManualClock::at(1_700_000_000_000_000_000);
    Rig { diagnostics: Diagnostics::new(None, Clock::Manual(Arc::clone(&clock))), clock }
}

impl Rig {
    fn drop_one(&self) {
        let now = self.diagnostics.clock.wall_nanos();
        self.diagnostics.record_drop(DropReason::QueueFull, "tick", || "queue is full".into(), now);
    }

    /// Drops `each_ms` events per millisecond. Returns their number.
    fn flood(&self, each_ms: u64, lasts: Duration) -> u64 {
        let ms = lasts.as_millis() as u64;
        for _ in 0..ms {
            (0..each_ms).for_each(|_| self.drop_one());
            self.clock.advance(Duration::from_millis(1));
        }
        each_ms * ms
    }
}

#[test]
fn the_first_drop_is_logged_at_once_and_the_others_as_a_sum() {
    let rig = rig();
    let lines = lines_of(|| {
        assert_eq!(rig.flood(2, 30 * SECOND), 60_000);
        rig.clock.advance(30 * SECOND);
        rig.diagnostics.log_due();
    });
    assert_eq!(
        lines,
        [
            r#"WARN 1 event dropped ("tick"): queue is full"#,
            r#"WARN 59,999 events dropped in the last 60 s (one of them "tick"): queue is full"#,
        ]
    );
    assert!(lines_of(|| rig.diagnostics.log_all()).is_empty(), "no line is logged twice");
}

#[test]
fn held_back_lines_are_logged_before_the_recovery() {
    let rig = rig();
    let lines = lines_of(|| {
        rig.diagnostics.record(failing());
        rig.flood(1, 5 * SECOND);
        rig.diagnostics.record(failing());
        rig.diagnostics.record(recovered());
    });
    let expected = [
        "WARN events cannot be delivered and stay queued; delivery is tried again: refused",
        r#"WARN 1 event dropped ("tick"): queue is full"#,
        r#"WARN 4,999 events dropped in the last 5 s (one of them "tick"): queue is full"#,
    ];
    assert_eq!(lines[..3], expected, "the sum of the drops is still true, and the failure is not");
    assert_eq!(lines[3..], ["INFO events are delivered again"]);
}

#[test]
fn held_back_lines_are_logged_when_the_client_ends() {
    let rig = rig();
    let lines = lines_of(|| {
        rig.flood(1, Duration::from_millis(900));
        (0..3).for_each(|_| rig.diagnostics.record(failing()));
        (0..3).for_each(|_| rig.diagnostics.record(Diagnostic::StoreVerified));
        rig.diagnostics.log_all();
    });
    assert_eq!(lines.len(), 5, "{lines:?}");
    let sum = r#"WARN 899 events dropped (one of them "tick"): queue is full"#;
    assert!(lines[3..].iter().any(|line| line == sum), "{lines:?}");
    assert!(lines[3..].iter().any(|line| line.ends_with("(and 1 more like it)")), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("refused")).count(), 1, "there is no next attempt");
    let dropped: u64 = rig
        .diagnostics
        .recent()
        .iter()
        .map(|diagnostic| if let Diagnostic::Dropped { count, .. } = diagnostic { *count } else { 0 })
        .sum();
    assert_eq!(dropped, 900, "a callback that counts sees every event");
}

#[test]
fn one_call_is_scheduled_while_lines_are_held_back() {
    let rig = rig();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    rig.diagnostics.schedule_by(move |after| {
        assert!(after <= LOG_INTERVAL);
        count.fetch_add(1, Ordering::SeqCst);
        true
    });
    let asked = || asked.load(Ordering::SeqCst);
    rig.diagnostics.record(Diagnostic::StoreVerified);
    assert_eq!(asked(), 0, "nothing is held back");
    lines_of(|| assert_eq!(rig.flood(1, 3 * SECOND), 3_000));
    assert_eq!(asked(), 1);
    rig.clock.advance(LOG_INTERVAL);
    lines_of(|| rig.diagnostics.log_due());
    assert_eq!(asked(), 2, "more drops may have been counted");
    rig.clock.advance(LOG_INTERVAL);
    lines_of(|| rig.diagnostics.log_due());
    assert_eq!(asked(), 2, "a quiet client has no timer");
}

#[test]
fn each_kind_has_its_own_line_and_the_next_has_the_count() {
    let rig = rig();
    let lines = lines_of(|| {
        rig.diagnostics.record(failing());
        for _ in 0..7 {
            rig.clock.advance(SECOND);
            rig.diagnostics.record(failing());
        }
        rig.diagnostics.record(Diagnostic::StoreVerified);
        rig.clock.advance(LOG_INTERVAL);
        rig.diagnostics.record(failing());
    });
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].ends_with("refused (and 7 more like it in the last 67 s)"), "{lines:?}");
}

#[test]
fn subjects_have_their_own_lines_up_to_a_bound() {
    let rig = rig();
    let queue = |number: u64| Diagnostic::OrphanedQueue {
        path: format!("/queue/{number}").into(),
        owner: None,
        events: number,
        bytes: 1,
    };
    let lines = lines_of(|| (1..=3).for_each(|number| rig.diagnostics.record(queue(number))));
    assert_eq!(lines.len(), 3, "one of three orphaned queues was named");
    assert!((1..=3).all(|number| lines[number - 1].contains(&format!("/queue/{number} "))), "{lines:?}");
    let lines = lines_of(|| {
        (4..=1000).for_each(|number| rig.diagnostics.record(queue(number)));
        rig.diagnostics.log_all();
    });
    assert_eq!(lines.len(), SUBJECTS_MOST - 3 + 2, "{lines:?}");
    assert!(lines.last().unwrap().ends_with("(and 990 more like it)"), "{lines:?}");
    assert!(lock(&rig.diagnostics.state).logged.len() <= SUBJECTS_MOST + 1);
}

#[test]
fn the_last_line_of_a_flapping_endpoint_is_its_state() {
    for works_at_last in [true, false] {
        let rig = rig();
        let lines = lines_of(|| {
            for _ in 0..9 {
                rig.diagnostics.record(failing());
                rig.clock.advance(SECOND);
                rig.diagnostics.record(recovered());
                rig.clock.advance(SECOND);
            }
            if !works_at_last {
                rig.diagnostics.record(failing());
            }
            rig.clock.advance(LOG_INTERVAL);
            rig.diagnostics.log_due();
        });
        assert!(lines.len() <= 5, "{lines:?}");
        assert_eq!(lines.last().unwrap().starts_with("INFO"), works_at_last, "{lines:?}");
    }
}

#[test]
fn the_ring_is_bounded_and_keeps_the_newest() {
    let rig = rig();
    for events in 0..DIAGNOSTICS_KEPT as u64 + 5 {
        rig.diagnostics.record(Diagnostic::Evicted { events, for_age: false });
    }
    let recent = rig.diagnostics.recent();
    assert_eq!(recent.len(), DIAGNOSTICS_KEPT);
    assert_eq!(recent[0], Diagnostic::Evicted { events: 5, for_age: false });
}

#[test]
fn a_callback_may_panic_and_may_record() {
    let diagnostics = Arc::new(Mutex::new(None::<Arc<Diagnostics>>));
    let again = Arc::clone(&diagnostics);
    let hook: DiagnosticHook = Arc::new(move |_| {
        assert!(reentry::inside().depth > 0, "the hook runs as a callback");
        if reentry::inside().depth == 1 {
            again.lock().unwrap().clone().unwrap().record(Diagnostic::StoreVerified);
        }
        panic!("in the hook");
    });
    let made = Arc::new(Diagnostics::new(Some(hook), Clock::System));
    *diagnostics.lock().unwrap() = Some(Arc::clone(&made));
    made.record(failing());
    assert_eq!(made.recent(), [failing(), Diagnostic::StoreVerified]);
}

#[test]
fn drops_are_recorded_once_a_second_and_all_are_counted() {
    let Rig { diagnostics, .. } = rig();
    let drop = |reason, ms: i64| diagnostics.record_drop(reason, "tick", String::new, ms * 1_000_000);
    (1..=3_000).for_each(|ms| drop(DropReason::JournalFull, ms));
    let recorded = || -> Vec<_> {
        let counts = diagnostics.recent().into_iter().map(|diagnostic| match diagnostic {
            Diagnostic::Dropped { reason, count, .. } => (reason, count),
            other => panic!("{other:?}"),
        });
        counts.collect()
    };
    assert_eq!(recorded(), [1, 1000, 1000].map(|count| (DropReason::JournalFull, count)));
    drop(DropReason::QueueFull, 1);
    assert_eq!(recorded().last(), Some(&(DropReason::QueueFull, 1)), "each reason has a throttle of its own");
    assert_eq!(diagnostics.take_counted_drops(), [(DropReason::JournalFull, 999)]);
    assert_eq!(diagnostics.take_counted_drops(), []);
}

#[test]
fn the_line_of_an_outage_has_its_facts_as_fields() {
    let backlog = backlog(Duration::from_millis(1_500));
    let rig = rig();
    let fields = fields_of(|| {
        let left = Backlog { next_attempt: None, ..backlog.clone() };
        rig.diagnostics.record(failing().with_backlog(backlog));
        rig.drop_one();
        rig.diagnostics.record(Diagnostic::EndpointRecovered { after: 90 * SECOND, backlog: left });
    });
    let recovery =
        [r#"kind="endpoint_recovered""#, r#"host="https://eu.i.posthog.com""#, "waiting=1234", "outage_ms=90000"];
    let outage =
        [r#"kind="endpoint_failing""#, r#"host="https://eu.i.posthog.com""#, "waiting=1234", "next_attempt_ms=1500"];
    assert_eq!(fields, [&outage[..], &[r#"kind="queue_full""#, "events=1"], &recovery[..]]);
}

fn backlog(next_attempt: Duration) -> Backlog {
    let host = "https://eu.i.posthog.com".into();
    Backlog { host, events: 1_234, next_attempt: Some(next_attempt), is_cooldown: false }
}

#[test]
fn a_line_that_was_held_back_has_no_figures_of_then() {
    let rig = rig();
    let lines = lines_of(|| {
        rig.diagnostics.record(failing().with_backlog(backlog(Duration::from_millis(256))));
        rig.clock.advance(20 * SECOND);
        rig.diagnostics.record(failing().with_backlog(backlog(Duration::from_millis(256))));
        rig.clock.advance(40 * SECOND);
        rig.diagnostics.log_due();
        rig.diagnostics.record(failing().with_backlog(backlog(70 * SECOND)));
        rig.clock.advance(LOG_INTERVAL);
        rig.diagnostics.log_due();
    });
    let (to, refused) = ("WARN events cannot be delivered to https://eu.i.posthog.com and stay queued", "refused");
    let expected = [
        format!("{to} (1,234 waiting); next attempt in 256 ms: {refused}"),
        format!("{to}; delivery is tried again: {refused}"),
        format!("{to}; next attempt in 10 s: {refused}"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_first_cooldown_of_an_outage_is_logged_at_once() {
    let rig = rig();
    let lines = lines_of(|| {
        rig.diagnostics.record(failing().with_backlog(backlog(SECOND)));
        rig.clock.advance(10 * SECOND);
        let cooldown = Backlog { is_cooldown: true, ..backlog(45 * SECOND) };
        rig.diagnostics.record(failing().with_backlog(cooldown));
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("next attempt in 45 s"), "{lines:?}");
}

#[test]
fn a_close_that_leaves_nothing_is_one_line() {
    let dir = std::path::Path::new("/q/ab/shard-0");
    let report = |remaining| ShutdownReport { delivered: 12, remaining, endpoint: EndpointStatus::Up, persisted: true };
    let expected = "INFO client closed: 12 events delivered since the close began, none left in the queue";
    assert_eq!(lines_of(|| log_closed(&report(0), dir)), [expected]);
    let fields = [r#"kind="closed""#, "delivered=12", "remaining=0", r#"queue_dir="/q/ab/shard-0""#];
    assert_eq!(fields_of(|| log_closed(&report(0), dir)), [fields]);
    assert!(lines_of(|| log_closed(&report(1), dir)).is_empty(), "that is a diagnostic");
}

#[test]
fn the_line_of_a_start_has_no_secret() {
    let started = Started {
        host: "https://eu.i.posthog.com",
        key: "phc_abcd...".into(),
        queue_dir: Some(std::path::Path::new("/q/ab/shard-0")),
        queued_events: 3,
        protocol: "v1",
        proxy: None,
    };
    let expected =
        "INFO client started: events go to https://eu.i.posthog.com; 3 events of earlier runs in /q/ab/shard-0";
    assert_eq!(lines_of(|| log_started(&started)), [expected]);
    let version = format!("version={:?}", env!("CARGO_PKG_VERSION"));
    let fields = [
        r#"kind="started""#,
        &version,
        r#"host="https://eu.i.posthog.com""#,
        r#"key="phc_abcd...""#,
        r#"queue_dir="/q/ab/shard-0""#,
        "queued_events=3",
        r#"protocol="v1""#,
        r#"proxy="none""#,
    ];
    assert_eq!(fields_of(|| log_started(&started)), [fields]);
}
