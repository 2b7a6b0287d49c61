//! The rules of the verdict, on statuses that are made by hand.

use std::path::Path;
use std::time::UNIX_EPOCH;

use super::*;
use crate::inspect::status::{DamagedFile, QueueOwner};
use crate::report::{DropReason, LanePhase, LaneState};

const NOW: i64 = 1_700_000_000_000_000_000;
const SECOND: i64 = 1_000_000_000;

/// A queue that nobody has open and that has nothing in it.
fn closed() -> QueueStatus {
    QueueStatus::for_test(Path::new("/q/0123456789abcdef0123456789abcdef/shard-0"), NOW)
}

/// A queue of a living process that has said this of itself.
fn owned(edit: impl FnOnce(&mut LaneState)) -> QueueStatus {
    let mut state = LaneState::for_test(NOW);
    edit(&mut state);
    let owner = QueueOwner {
        pid: Some(4711),
        since: Some(UNIX_EPOCH),
        program: Some("daemon".into()),
        library_version: None,
        adopts: false,
        is_stopped: false,
    };
    QueueStatus { owner: Some(owner), rejecting: state.rejecting, state: Some(state), ..closed() }
}

fn judged(status: &QueueStatus) -> (QueueState, &'static str) {
    let verdict = status.verdict();
    assert!(verdict.findings.iter().all(|finding| finding.state <= verdict.state && !finding.what.is_empty()));
    (verdict.state, verdict.findings.first().map_or("", |finding| finding.cause))
}

#[test]
fn a_queue_without_events_is_fine_whoever_has_it() {
    assert_eq!(judged(&closed()), (QueueState::Fine, ""));
    assert_eq!(judged(&owned(|_| ())), (QueueState::Fine, ""));
    let silent = QueueStatus { state: None, ..owned(|_| ()) };
    assert_eq!(judged(&silent), (QueueState::Fine, ""));
}

#[test]
fn without_an_owner_events_wait_for_a_start() {
    let status = QueueStatus { queued_events: 1, oldest_age: Some(Duration::from_secs(7200)), ..closed() };
    assert_eq!(judged(&status), (QueueState::Waiting, "no_owner"));
    let finding = &status.verdict().findings[0];
    assert_eq!(
        finding.what,
        "no process has the queue open: 1 event waits for a start of the program, the oldest for 2 h"
    );
    assert!(finding.advice.ends_with(&format!("posthog-queue drain {}", status.path.display())), "{}", finding.advice);
}

#[test]
fn an_outage_is_waited_for_and_then_needs_somebody() {
    let failing = |seconds: i64| {
        let mut status = owned(|state| {
            state.phase = LanePhase::Backoff { until: NOW + SECOND };
            state.failing_since = Some(NOW - seconds * SECOND);
            state.last_error = Some("HTTP status 503".into());
        });
        status.queued_events = 3;
        status
    };
    assert_eq!(judged(&failing(300)), (QueueState::Waiting, "endpoint_failing"));
    assert_eq!(judged(&failing(301)), (QueueState::Stuck, "endpoint_failing"));
    assert!(failing(301).verdict().findings[0].what.contains("HTTP status 503"));
}

#[test]
fn what_an_operator_has_to_repair_is_stuck() {
    let until = NOW + SECOND;
    let paused = owned(|state| state.phase = LanePhase::Paused { status: 401, until });
    assert_eq!(judged(&paused), (QueueState::Stuck, "paused"));
    let quarantined = owned(|state| state.phase = LanePhase::Quarantined { until });
    assert_eq!(judged(&quarantined), (QueueState::Stuck, "quarantined"));
    let failing = owned(|state| state.storage = StorageMode::Degraded { problem: "the disk fails".into() });
    assert_eq!(judged(&failing), (QueueState::Stuck, "storage_failing"));
    let full = owned(|state| state.used_bytes = state.max_bytes);
    assert_eq!(judged(&full), (QueueState::Stuck, "almost_full"));
}

#[test]
fn events_that_are_dropped_are_the_worst() {
    let full = owned(|state| state.rejecting = Some(DropReason::QueueFull));
    assert_eq!(judged(&full), (QueueState::Dropping, "rejecting"));
    let chosen = owned(|state| state.rejecting = Some(DropReason::OptedOut));
    assert_eq!(judged(&chosen), (QueueState::Waiting, "opted_out"), "the program wants it so");
}

#[test]
fn an_owner_without_a_sign_of_life_is_not_fine() {
    let late = |seconds: i64| owned(|state| state.due_at = Some(NOW - seconds * SECOND));
    assert_eq!(judged(&late(60)), (QueueState::Fine, ""));
    assert_eq!(judged(&late(61)), (QueueState::Stuck, "hangs"));
    let mut stopped = owned(|_| ());
    if let Some(owner) = &mut stopped.owner {
        owner.is_stopped = true;
    }
    assert_eq!(judged(&stopped), (QueueState::Stuck, "stopped"));
    assert_eq!(stopped.verdict().findings[0].advice, "resume it: kill -CONT 4711");
}

#[test]
fn an_owner_that_says_nothing_is_taken_as_what_it_is() {
    let mut silent = QueueStatus { state: None, queued_events: 3, ..owned(|_| ()) };
    assert_eq!(judged(&silent), (QueueState::Waiting, "undescribed"));
    if let Some(owner) = &mut silent.owner {
        owner.adopts = true;
    }
    assert_eq!(judged(&silent), (QueueState::Waiting, "adopted"));
    let closing = owned(|state| state.storage = StorageMode::Closed);
    assert_eq!(judged(&closing), (QueueState::Fine, ""));
}

#[test]
fn damage_and_a_newer_format_are_said() {
    let file = DamagedFile { path: "/q/damaged-1".into(), bytes: 4096 };
    let aside = QueueStatus { damaged_files: vec![file], damaged: 2, queued_events: 1, ..closed() };
    assert_eq!(judged(&aside), (QueueState::Damaged, "damaged_files"));
    assert_eq!(aside.verdict().findings.len(), 2, "that events wait is said too");
    let unreadable = QueueStatus { store_problem: Some("torn".into()), ..closed() };
    assert_eq!(judged(&unreadable), (QueueState::Damaged, "store_unreadable"));
    let newer = QueueStatus { newer_format: Some(2), ..owned(|_| ()) };
    assert_eq!(judged(&newer), (QueueState::Unknown, "newer_format"));
    let crashed = QueueStatus { crash_reports: 2, ..closed() };
    assert_eq!(judged(&crashed), (QueueState::Waiting, "crash_reports"));
}

#[test]
fn an_import_is_waited_for_while_it_runs_and_stuck_afterwards() {
    let import = "/q/0123456789abcdef0123456789abcdef/importing";
    let unfinished = QueueStatus { queued_events: 1, ..QueueStatus::for_test(Path::new(import), NOW) };
    assert_eq!(judged(&unfinished), (QueueState::Stuck, "unfinished_import"));
    let finding = &unfinished.verdict().findings[0];
    assert!(finding.what.contains("1 event of it is kept") && finding.advice.contains(import), "{finding:?}");
    let running = QueueStatus { owner: owned(|_| {}).owner, ..unfinished };
    assert_eq!(judged(&running), (QueueState::Waiting, "importing"));
}
