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

fn keep(bench: &Bench, keep: Option<Vec<u8>>) {
    bench.pipeline.mailbox.send(|commands| commands.definitions = Some(keep));
}

fn kept(bench: &Bench) -> Option<Vec<u8>> {
    bench.pipeline.shard.meta("flag_definitions")
}

fn is_cache_failure(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::FlagCacheFailed { .. })
}

#[test]
fn the_newest_of_what_is_to_be_kept_is_kept() {
    let mut bench = bench(loads);
    keep(&bench, Some(vec![1]));
    keep(&bench, Some(vec![2]));
    bench.settle_down();
    assert_eq!(kept(&bench), Some(vec![2]));
    keep(&bench, None);
    bench.settle_down();
    assert_eq!(kept(&bench), None);
}

#[test]
fn a_full_disk_keeps_no_definitions_and_reports_it_once() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut bench = bench(|options| {
        loads(options);
        options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>);
    });
    fault.arm(NO_SPACE);
    for times in 0..3 {
        keep(&bench, Some(vec![7; 1000]));
        bench.advance(HOUR);
        let told = bench.diagnostics.lock().unwrap().drain(..).filter(is_cache_failure).count();
        assert_eq!(told, usize::from(times == 0));
    }
    fault.arm(0);
    bench.append(30);
    bench.advance(HOUR);
    assert_eq!((kept(&bench), bench.ledger().queued_events), (Some(vec![7; 1000]), 30));
    assert!(bench.pipeline.current_problem().is_none());
}

#[test]
fn the_lane_of_ai_events_loads_nothing() {
    let mut ai = None;
    let bench = bench(|options| {
        loads(options);
        ai = Some(options.for_ai().flag_definitions.is_none());
    });
    assert_eq!(ai, Some(true));
    assert!(bench.pipeline.definitions().is_some());
}
