//! Batches (BAT), retries (RTQ), flush (FLU) and shutdown (SHD).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posthog::diagnostics::{Diagnostic, DiagnosticCategory};
use posthog::feature_flags::{FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, ProviderError};
use posthog::reports::{EndpointStatus, FlushReport, WaitTimeout};
use posthog::stats::DeliveryPhase;
use posthog::{Client, Config, DropReason, Outcome};
use sink::{Answer, FlagRoute};
use uuid::Uuid;

use crate::fixture::{Fixture, PATIENCE, event, eventually, take};
use crate::flag_scenario::{definitions, for_all, got};
use crate::scenario::{Scenario, has_recorded};

const HOUR: Duration = Duration::from_secs(3600);

/// Sends nothing except at a flush.
fn patient(config: Config) -> Config {
    config.flush_at(1000).flush_interval(HOUR)
}

fn take_many(client: &Client, count: usize) -> Vec<Uuid> {
    (0..count).map(|_| take(client, "tick")).collect()
}

fn flushed(client: &Client) -> FlushReport {
    client.flush().wait(PATIENCE).unwrap()
}

#[test]
fn bat_01_reaching_flush_at_sends_one_batch_with_all() {
    let scenario = Scenario::with(|config| patient(config).flush_at(2));
    let uuids = take_many(&scenario.client, 2);
    scenario.fixture.must_have_taken(&uuids);
    assert_eq!(scenario.fixture.sink.requests()[0].event_count, 2);
    eventually("the queue is empty", || scenario.client.stats().queued_events == 0);
}

#[test]
fn bat_02_the_interval_sends_what_is_pending() {
    let interval = Duration::from_millis(300);
    let scenario = Scenario::with(|config| config.flush_at(1000).flush_interval(interval));
    let start = Instant::now();
    let uuids = take_many(&scenario.client, 3);
    scenario.fixture.must_have_taken(&uuids);
    let waited = scenario.fixture.sink.requests()[0].arrived - start;
    assert!(waited >= interval, "{waited:?}");
}

#[test]
fn bat_03_a_batch_is_in_the_order_of_capture() {
    let scenario = Scenario::with(patient);
    let uuids = take_many(&scenario.client, 100);
    assert_eq!(flushed(&scenario.client).remaining, 0);
    assert_eq!(scenario.fixture.sink.requests()[0].uuids, uuids);
}

#[test]
fn bat_04_requests_are_bounded_and_captures_never_wait() {
    let scenario = Scenario::with(|config| patient(config).max_batch_events(10));
    let delay = Duration::from_secs(3);
    scenario.fixture.sink.script([Answer::ok().delay(delay)]);
    let mut uuids = take_many(&scenario.client, 25);
    let flush = scenario.client.flush();
    assert!(scenario.fixture.sink.wait_for(|state| !state.requests().is_empty(), PATIENCE));
    // Captures continue while a request is in flight.
    let start = Instant::now();
    uuids.extend(take_many(&scenario.client, 25));
    assert!(start.elapsed() < delay, "{:?}", start.elapsed());
    assert_eq!(flush.wait(PATIENCE).unwrap().endpoint, EndpointStatus::Up);
    flushed(&scenario.client);
    scenario.fixture.must_have_taken(&uuids);
    assert!(scenario.fixture.sink.requests().iter().all(|request| request.event_count <= 10));
}

#[test]
fn rtq_01_after_a_503_the_event_stays_queued() {
    let scenario = Scenario::new();
    scenario.fixture.sink.default_answer(Answer::status(503));
    take(&scenario.client, "tick");
    assert_eq!((flushed(&scenario.client).remaining, scenario.client.stats().queued_events), (1, 1));
}

#[test]
fn rtq_02_a_later_success_delivers_it_and_removes_it() {
    let scenario = Scenario::new();
    scenario.fixture.sink.script([Answer::status(503)]);
    let uuids = take_many(&scenario.client, 1);
    eventually("it is delivered", || scenario.client.stats().delivered == 1);
    scenario.fixture.must_have_taken(&uuids);
    assert_eq!(scenario.client.stats().queued_events, 0);
}

#[test]
fn rtq_03_a_full_queue_keeps_its_bound_and_is_reported() {
    let scenario = Scenario::with(|config| config.max_queue_events(2));
    scenario.fixture.sink.default_answer(Answer::status(503));
    take_many(&scenario.client, 2);
    flushed(&scenario.client);
    eventually("the queue is full", || scenario.client.stats().rejecting == Some(DropReason::QueueFull));
    assert_eq!(scenario.client.capture(event("third")).outcome(), Outcome::Dropped(DropReason::QueueFull));
    assert_eq!(scenario.client.stats().queued_events, 2);
    assert!(has_recorded(&scenario.client, DiagnosticCategory::Capacity), "{:?}", scenario.client.diagnostics());
}

#[test]
fn rtq_04_captures_during_delivery_of_a_full_queue_survive() {
    let scenario = Scenario::with(|config| config.max_queue_events(20));
    scenario.fixture.sink.script([Answer::status(503).delay(Duration::from_millis(200)), Answer::ok()]);
    let mut uuids = take_many(&scenario.client, 20);
    assert!(scenario.fixture.sink.wait_for(|state| !state.requests().is_empty(), PATIENCE));
    // The queue is full and in flight: new events are dropped with that reason, until there is space.
    let mut refused = 0;
    eventually("there is room again", || {
        let receipt = scenario.client.capture(event("meanwhile"));
        refused += u32::from(!receipt.is_accepted());
        uuids.extend(receipt.uuid());
        receipt.is_accepted()
    });
    assert!(refused > 0, "the queue was full");
    scenario.fixture.must_have_taken(&uuids);
}

#[test]
fn rtq_05_outages_are_retried_and_retry_after_is_respected() {
    let scenario = Scenario::new();
    let statuses = [408, 429, 500, 502, 503, 504];
    scenario.fixture.sink.script(statuses.map(Answer::status));
    let uuids = take_many(&scenario.client, 1);
    scenario.fixture.must_have_taken(&uuids);
    let answered: Vec<_> = scenario.fixture.sink.requests().iter().map(|request| request.status).collect();
    assert_eq!(answered, [408, 429, 500, 502, 503, 504, 200]);
    scenario.fixture.sink.clear();
    scenario.fixture.sink.script([Answer::status(429).retry_after(1)]);
    let uuids = take_many(&scenario.client, 1);
    scenario.fixture.must_have_taken(&uuids);
    let requests = scenario.fixture.sink.requests();
    let waited = requests[1].arrived - requests[0].arrived;
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
}

#[test]
fn rtq_06_failed_events_stay_and_rejected_ones_are_dead_letters() {
    let scenario = Scenario::with(|config| config.max_retries(0));
    scenario.fixture.sink.default_answer(Answer::status(503));
    let uuids = take_many(&scenario.client, 1);
    flushed(&scenario.client);
    let is_parked = || matches!(scenario.client.stats().delivery, DeliveryPhase::Cooldown { .. });
    eventually("it is left alone for a while", is_parked);
    assert_eq!(scenario.client.stats().queued_events, 1);
    scenario.fixture.sink.default_answer(Answer::ok());
    // A flush ends the cooldown early, a second after the failure.
    eventually("it is sent", || flushed(&scenario.client).remaining == 0);
    scenario.fixture.must_have_taken(&uuids);
    scenario.fixture.sink.refuse_if(|event| event["event"] == "poison", 400, "failed to hydrate events: poison");
    take(&scenario.client, "poison");
    eventually("it is buried", || {
        take(&scenario.client, "fine");
        flushed(&scenario.client);
        scenario.client.stats().dead_lettered == 1
    });
    let dead_lettered = |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::DeadLettered { status: 400, .. });
    assert!(scenario.client.diagnostics().iter().any(dead_lettered));
}

#[test]
fn rtq_07_the_queue_survives_a_restart_and_is_then_sent() {
    let scenario = Scenario::new();
    scenario.fixture.sink.stop();
    let mut uuids = take_many(&scenario.client, 3);
    assert_eq!(scenario.client.shutdown(Duration::from_millis(100)).wait(PATIENCE).unwrap().remaining, 3);
    let again = scenario.fixture.client();
    uuids.extend(take_many(&again, 1));
    scenario.fixture.sink.resume();
    scenario.fixture.must_have_taken(&uuids);
    eventually("nothing is left", || again.stats().queued_events == 0);
}

#[test]
fn flu_01_a_flush_sends_everything_at_once_and_leaves_nothing() {
    let scenario = Scenario::with(patient);
    let uuids = take_many(&scenario.client, 7);
    let report = flushed(&scenario.client);
    assert_eq!((report.delivered, report.remaining, report.endpoint), (7, 0, EndpointStatus::Up));
    scenario.fixture.must_have_taken(&uuids);
    assert_eq!(scenario.client.stats().queued_events, 0);
}

#[test]
fn flu_02_a_flush_of_nothing_sends_nothing() {
    let scenario = Scenario::new();
    let report = flushed(&scenario.client);
    assert_eq!((report.delivered, report.remaining, report.endpoint), (0, 0, EndpointStatus::Up));
    assert!(scenario.fixture.sink.requests().is_empty());
}

#[test]
fn flu_03_a_flush_that_meets_a_503_says_so_and_keeps_the_event() {
    let scenario = Scenario::with(patient);
    scenario.fixture.sink.default_answer(Answer::status(503));
    take(&scenario.client, "tick");
    let report = flushed(&scenario.client);
    assert!(matches!(&report.endpoint, EndpointStatus::Down { reason, .. } if reason.contains("503")), "{report:?}");
    assert_eq!(report.remaining, 1);
}

#[test]
fn flu_04_a_flush_sends_in_batches_and_can_be_waited_for() {
    let scenario = Scenario::with(|config| patient(config).max_batch_events(10));
    take_many(&scenario.client, 45);
    let together = [scenario.client.flush(), scenario.client.flush()];
    let left = together.map(|flush| flush.wait(PATIENCE).unwrap().remaining);
    assert_eq!((left, scenario.fixture.sink.requests().len()), ([0, 0], 5));
    scenario.fixture.sink.default_answer(Answer::hang());
    take(&scenario.client, "tick");
    assert_eq!(scenario.client.flush().wait(Duration::from_millis(50)), Err(WaitTimeout));
    assert_eq!(scenario.client.stats().queued_events, 1);
}

#[test]
fn shd_01_a_shutdown_delivers_and_then_drops_captures() {
    let scenario = Scenario::with(patient);
    let uuids = take_many(&scenario.client, 3);
    let report = scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!((report.delivered, report.remaining, report.persisted), (3, 0, true));
    assert_eq!(scenario.client.capture(event("late")).outcome(), Outcome::Dropped(DropReason::Closed));
    scenario.fixture.must_have_taken(&uuids);
    // Not on disk either: the next client on the queue finds nothing.
    let again = scenario.fixture.client();
    assert_eq!((again.stats().queued_events, again.stats().accepted), (0, 3));
}

#[test]
fn shd_02_a_second_shutdown_does_nothing_and_says_the_same() {
    let scenario = Scenario::new();
    take(&scenario.client, "tick");
    let first = scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    let requests = scenario.fixture.sink.requests().len();
    assert_eq!(scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap(), first);
    assert_eq!(scenario.client.capture(event("late")).outcome(), Outcome::Dropped(DropReason::Closed));
    assert_eq!(scenario.fixture.sink.requests().len(), requests);
}

#[test]
fn shd_03_a_shutdown_with_a_503_reports_it_and_keeps_the_event() {
    let scenario = Scenario::with(|config| patient(config).max_retries(2));
    scenario.fixture.sink.default_answer(Answer::status(503));
    take(&scenario.client, "tick");
    let report = scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, report.persisted), (1, true));
    assert!(has_recorded(&scenario.client, DiagnosticCategory::Delivery), "{:?}", scenario.client.diagnostics());
}

#[test]
fn shd_04_a_shutdown_out_of_time_says_what_remains() {
    let scenario = Scenario::with(patient);
    scenario.fixture.sink.default_answer(Answer::hang());
    take_many(&scenario.client, 2);
    let together = [HOUR, Duration::from_millis(200)].map(|most| scenario.client.shutdown(most));
    let reports = together.map(|shutdown| shutdown.wait(PATIENCE).unwrap());
    assert_eq!((reports[0].remaining, &reports[0]), (2, &reports[1]));
    let is_reported =
        |found: &Diagnostic| matches!(found, Diagnostic::LeftOnDisk { events: 2, why, .. } if why.contains("within "));
    assert!(scenario.client.diagnostics().iter().any(is_reported), "{:?}", scenario.client.diagnostics());
}

#[test]
fn shd_04_a_shutdown_ends_what_there_is_of_flags() {
    let fixture = Fixture::new();
    fixture.sink.flags(FlagRoute::Definitions, Answer::json(&definitions(&[for_all("on")])));
    let shut_down = Arc::new(AtomicUsize::new(0));
    let cabinet = Cabinet(Arc::clone(&shut_down));
    let scenario =
        Scenario::on(fixture, |config| config.secret_key("phs_conformance").flag_definitions_provider(cabinet));
    scenario.load();
    let flags = scenario.evaluated("user_1");
    scenario.fixture.sink.flags(FlagRoute::Values, Answer::hang());
    let waiting = scenario.client.is_feature_enabled_or("elsewhere", "user_1", true);
    scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert!(waiting.wait(PATIENCE).unwrap(), "who waits for PostHog has the default");
    assert_eq!(shut_down.load(Ordering::Relaxed), 1);
    let asked = scenario.fixture.sink.requests().len();
    // The snapshot stays and reports no reads any more; new ones send no request.
    assert!(flags.is_enabled("on"));
    assert_eq!(got(scenario.client.get_feature_flag("other", "user_2")), None);
    let reloaded = scenario.client.reload_flag_definitions().wait(PATIENCE);
    assert!(reloaded.as_ref().is_err_and(|error| *error != FlagDefinitionsError::Timeout), "{reloaded:?}");
    assert_eq!((scenario.fixture.sink.requests().len(), scenario.fixture.names().len()), (asked, 0));
}

/// A provider without definitions, which counts its shutdowns.
struct Cabinet(Arc<AtomicUsize>);

impl FlagDefinitionProvider for Cabinet {
    fn should_fetch(&self) -> Result<bool, ProviderError> {
        Ok(true)
    }

    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        Ok(None)
    }

    fn store(&self, _definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        Ok(())
    }

    fn shutdown(&self) -> Result<(), ProviderError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
