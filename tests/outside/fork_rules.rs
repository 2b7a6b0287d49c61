//! Forked children: the rules and hooks of the parent.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use posthog::diagnostics::Diagnostic;
use posthog::stats::StorageMode;
use posthog::{Client, DropReason, Outcome};

use crate::apart::apart;
use crate::fixture::{PATIENCE, Place, accepted, close_empty, event, eventually, take};
use crate::process::forked;

const HOUR: Duration = Duration::from_secs(3600);
const OPTED_OUT: Outcome = Outcome::Dropped(DropReason::OptedOut);

#[test]
fn opting_out_or_in_applies_to_a_childs_ai_events() {
    apart(
        |place| {
            let client = place.client();
            client.opt_out();
            forked(|| {
                assert_eq!(client.capture_ai(event("no")).outcome(), OPTED_OUT);
                assert!(client.stats().ai.is_none(), "an event that is not wanted opens no queue");
                client.opt_in();
                accepted(&client.capture_ai(event("child's first")));
                client.opt_out();
                assert_eq!(client.capture_ai(event("no")).outcome(), OPTED_OUT);
                client.opt_in();
                accepted(&client.capture_ai(event("child's second")));
                close_empty(&client);
            })
            .must_end_well();
            assert_eq!(client.capture_ai(event("no")).outcome(), OPTED_OUT, "the parent is still opted out");
            client.opt_in();
            accepted(&client.capture_ai(event("parent's")));
            // The child opts out before its first capture, while the parent's AI queue is open.
            forked(|| {
                client.opt_out();
                assert_eq!(client.capture_ai(event("no")).outcome(), OPTED_OUT);
                client.opt_in();
                accepted(&client.capture_ai(event("other child's")));
                close_empty(&client);
            })
            .must_end_well();
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["child's first", "child's second", "other child's", "parent's"]),
    );
}

#[test]
fn a_child_that_opts_out_holds_back_its_ai_events() {
    apart(
        |place| {
            let client = Client::new(place.config().flush_at(1000).flush_interval(HOUR)).unwrap();
            forked(|| {
                accepted(&client.capture_ai(event("ai")));
                take(&client, "tick");
                client.opt_out();
                let report = client.flush().wait(PATIENCE).unwrap();
                assert_eq!((report.delivered, report.remaining), (0, 2));
                client.opt_in();
                eventually("both lanes are empty", || client.stats().queued_events == 0);
                close_empty(&client);
            })
            .must_end_well();
        },
        |fixture| assert_eq!(fixture.names(), ["ai", "tick"]),
    );
}

/// Leaves queues of other projects. A client that opens a queue beside them reports each in a diagnostic.
fn leave_stranded_queues(place: &Place, count: usize) {
    for number in 0..count {
        let config = place.config_for(&format!("phc_other_{number}")).flush_at(1000).flush_interval(HOUR);
        let client = Client::new(config).unwrap();
        take(&client, "stranded");
        client.opt_out();
        assert_eq!(client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap().remaining, 1);
    }
}

#[test]
fn a_capturing_callback_does_not_block_a_childs_opening() {
    // A stall of five seconds for each would exceed the time for opening.
    const STRANDED: usize = 7;
    apart(
        |place| {
            leave_stranded_queues(place, STRANDED);
            let known: Arc<OnceLock<Client>> = Arc::default();
            let outcomes: Arc<Mutex<Vec<(Outcome, StorageMode)>>> = Arc::default();
            let (hook_knows, hook_tells) = (Arc::clone(&known), Arc::clone(&outcomes));
            let hook = move |diagnostic: &Diagnostic| {
                if let (Some(client), Diagnostic::OrphanedQueue { .. }) = (hook_knows.get(), diagnostic) {
                    let outcome = client.capture(event("from the hook")).outcome();
                    hook_tells.lock().unwrap().push((outcome, client.stats().storage));
                }
            };
            let client = Client::new(place.config().on_diagnostic(hook)).unwrap();
            let _ = known.set(client.clone());
            forked(|| {
                take(&client, "child");
                assert_eq!(client.stats().storage, StorageMode::Durable);
                let turned_away = (Outcome::Dropped(DropReason::Forked), StorageMode::Forked);
                assert_eq!(*outcomes.lock().unwrap(), vec![turned_away; STRANDED]);
                close_empty(&client);
            })
            .must_end_well();
            assert!(outcomes.lock().unwrap().is_empty(), "the parent had opened its queue before");
            take(&client, "parent");
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["child", "parent"]),
    );
}

#[test]
fn an_opt_out_by_a_hook_while_a_child_opens_its_queue_applies() {
    apart(
        |place| {
            leave_stranded_queues(place, 1);
            let known: Arc<OnceLock<Client>> = Arc::default();
            let hook_knows = Arc::clone(&known);
            let hook = move |diagnostic: &Diagnostic| {
                if let (Some(client), Diagnostic::OrphanedQueue { .. }) = (hook_knows.get(), diagnostic) {
                    client.opt_out();
                }
            };
            let client = Client::new(place.config().on_diagnostic(hook)).unwrap();
            let _ = known.set(client.clone());
            forked(|| {
                assert_eq!(client.capture(event("no")).outcome(), OPTED_OUT);
                assert!(client.is_opted_out());
            })
            .must_end_well();
            close_empty(&client);
        },
        |fixture| assert!(fixture.names().is_empty()),
    );
}
