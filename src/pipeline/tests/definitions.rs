//! The committer stores definitions of flags for the next process.

use super::*;
use crate::flags::loader::{LoaderOptions, SecretKey};

const NO_SPACE: u32 = 28;

fn loads(options: &mut PipelineOptions) {
    options.flag_definitions = Some(LoaderOptions {
        host: "https://eu.example".into(),
        api_key: "phc_key".into(),
        secret_key: Some(SecretKey::new("phs_1")),
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(10),
        retry_after_cap: HOUR,
        provider: None,
        keep: Some(1 << 20),
    });
}

fn keep(fixture: &Fixture, keep: Option<Vec<u8>>) {
    fixture.pipeline.mailbox.send(|commands| commands.definitions = Some(keep));
}

fn kept(fixture: &Fixture) -> Option<Vec<u8>> {
    fixture.pipeline.shard.meta("flag_definitions")
}

fn is_cache_failure(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::FlagCacheFailed { .. })
}

#[test]
fn the_newest_of_what_is_to_be_kept_is_kept() {
    let mut fixture = fixture(loads);
    keep(&fixture, Some(vec![1]));
    keep(&fixture, Some(vec![2]));
    fixture.settle_down();
    assert_eq!(kept(&fixture), Some(vec![2]));
    keep(&fixture, None);
    fixture.settle_down();
    assert_eq!(kept(&fixture), None);
}

#[test]
fn a_full_disk_keeps_no_definitions_and_reports_it_once() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut fixture = fixture(|options| {
        loads(options);
        options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>);
    });
    fault.arm(NO_SPACE);
    for times in 0..3 {
        keep(&fixture, Some(vec![7; 1000]));
        fixture.advance(HOUR);
        let reported = fixture.diagnostics.lock().unwrap().drain(..).filter(is_cache_failure).count();
        assert_eq!(reported, usize::from(times == 0));
    }
    fault.arm(0);
    fixture.append(30);
    fixture.advance(HOUR);
    assert_eq!((kept(&fixture), fixture.ledger().queued_events), (Some(vec![7; 1000]), 30));
    assert!(fixture.pipeline.current_problem().is_none());
}

#[test]
fn the_lane_of_ai_events_loads_nothing() {
    let mut ai = None;
    let fixture = fixture(|options| {
        loads(options);
        ai = Some(options.for_ai().flag_definitions.is_none());
    });
    assert_eq!(ai, Some(true));
    assert!(fixture.pipeline.definitions().is_some());
}
