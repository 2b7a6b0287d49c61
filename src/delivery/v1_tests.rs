//! The engine with a V1 endpoint: results for each event, and requests that keep their id over their attempts.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::engine_tests::{Rig, queue_of};
use super::fake::{FakeQueue, Reply, Seen, chunk_of, record};
use super::notice::asked_again;
use super::*;
use crate::report::{Backlog, Diagnostic, EndpointStatus};

fn v1(parts: &mut EngineParts) {
    parts.options.url = "http://fake/i/v1/analytics/events".into();
    parts.options.protocol = CaptureProtocol::V1;
}

fn start(queue: FakeQueue, script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Rig {
    Rig::with(queue, script, v1)
}

/// Gives these answers in turn, and the last of them from then on.
fn in_turn(answers: &'static [&'static [&'static str]]) -> impl FnMut(&Seen) -> Reply + Send {
    let mut turn = 0;
    move |seen| {
        turn += 1;
        Reply::results(seen, answers[turn.min(answers.len()) - 1])
    }
}

/// Event numbers of each request.
fn sent(rig: &Rig) -> Vec<Vec<u64>> {
    rig.endpoint.seen().into_iter().map(|seen| seen.events).collect()
}

fn headers(rig: &Rig, name: &str) -> Vec<String> {
    rig.endpoint.seen().iter().map(|seen| seen.header(name).to_owned()).collect()
}

fn distinct(values: &[String]) -> usize {
    values.iter().collect::<HashSet<_>>().len()
}

fn reasons(rig: &Rig) -> Vec<(u64, u16, String)> {
    rig.queue.ledger().dead_lettered.iter().map(|dead| (dead.seq, dead.status, dead.reason.clone())).collect()
}

#[tokio::test(start_paused = true)]
async fn headers_state_the_library_and_the_attempt() {
    let rig = start(queue_of(1, 2), in_turn(&[&["ok"]]));
    rig.drained().await;
    let seen = rig.endpoint.seen().remove(0);
    assert_eq!(&*seen.url, "http://fake/i/v1/analytics/events");
    assert_eq!(seen.header("authorization"), "Bearer phc_test");
    assert_eq!(seen.header("content-type"), "application/json");
    assert_eq!(seen.header("posthog-sdk-info"), concat!("posthog-durable/", env!("CARGO_PKG_VERSION")));
    assert_eq!(seen.header("posthog-attempt"), "1");
    assert_eq!(seen.header("posthog-request-timestamp"), "1970-01-01T00:00:01Z");
    assert!(Uuid::parse_str(seen.header("posthog-request-id")).is_ok());
    let mut members: Vec<_> = seen.body.as_object().unwrap().keys().cloned().collect();
    members.sort();
    assert_eq!(members, ["batch", "created_at"]);
    assert_eq!(rig.reported.lock().unwrap().as_slice(), ["[1, 2] Delivered"]);
}

#[tokio::test(start_paused = true)]
async fn an_import_says_so() {
    let rig = Rig::with(queue_of(1, 1), in_turn(&[&["ok"]]), |parts| {
        v1(parts);
        parts.options.historical_migration = true;
    });
    rig.drained().await;
    assert_eq!(rig.endpoint.seen()[0].body["historical_migration"], true);
}

#[tokio::test(start_paused = true)]
async fn each_event_has_a_result_of_its_own() {
    let rig = start(
        queue_of(2, 3),
        in_turn(&[&[
            "ok",
            "warning:person_processing_disabled",
            "drop:bad timestamp",
            "later:busy",
            "warning:person_processing_disabled",
            "drop",
        ]]),
    );
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.endpoint.seen().len()), (4, 1));
    let expected = [(3, "bad timestamp"), (6, "dropped without details")];
    assert_eq!(reasons(&rig), expected.map(|(seq, reason)| (seq, 200, reason.to_owned())));
    let warned = Diagnostic::DeliveryWarning {
        uuid: Uuid::from_u128(2),
        events: 2,
        details: "person_processing_disabled".into(),
    };
    assert_eq!(rig.noticed(|notice| *notice == warned), 1);
    assert_eq!(rig.reported.lock().unwrap()[0], "[1, 2, 4, 5] Delivered");
    assert_eq!(rig.handle.state().phase, Phase::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_limited_event_is_delivered_or_dead_by_its_details() {
    let rig = start(
        queue_of(1, 3),
        in_turn(&[&["limited:person_processing_disabled", "limited:survey_responses_over_quota", "ok"]]),
    );
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.endpoint.seen().len()), (2, 1));
    assert_eq!(reasons(&rig), [(2, 200, "survey_responses_over_quota".to_owned())]);
    let warned = Diagnostic::DeliveryWarning {
        uuid: Uuid::from_u128(1),
        events: 1,
        details: "person_processing_disabled".into(),
    };
    assert_eq!(rig.noticed(|notice| *notice == warned), 1);
}

#[tokio::test(start_paused = true)]
async fn missing_and_unknown_results_count_as_accepted() {
    let rig = start(queue_of(1, 7), |seen| {
        let answer = Reply::results(seen, &["later:busy", "later:full", "ok", "someday", "ok", "ok", "drop:bad"]);
        let mut body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let results = body["results"].as_object_mut().unwrap();
        results.retain(|uuid, _| ![5, 6].map(|number| Uuid::from_u128(number).to_string()).contains(uuid));
        Reply { body: body.to_string(), ..answer }
    });
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), reasons(&rig)), (6, vec![(7, 200, "bad".to_owned())]));
    for (uuid, events, beginning) in [
        (1, 2, r#"unknown result "later": busy, "#),
        (4, 1, r#"unknown result "someday", "#),
        (5, 2, "no result in the response"),
    ] {
        let is_told = |notice: &Diagnostic| {
            matches!(notice, Diagnostic::DeliveryWarning { uuid: first, events: count, details }
                if *first == Uuid::from_u128(uuid) && *count == events && details.starts_with(beginning))
        };
        assert_eq!(rig.noticed(is_told), 1, "{beginning}");
    }
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::DeliveryWarning { .. })), 3);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_of_v1_decides_nothing() {
    let mut answers = 0;
    let rig = start(queue_of(1, 3), move |seen| {
        answers += 1;
        let good = Reply::results(seen, &["drop"]);
        match answers {
            1 => Reply::new(200, "<html>Sign in</html>"),
            2 => Reply::new(200, good.body.split_at(good.body.len() - 2).0),
            3 => Reply::ok(),
            _ => Reply::results(seen, &["ok"]),
        }
    });
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (3, 0));
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::NotPostHog { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_long_leads_to_smaller_requests() {
    // The number of results and the size of their details. The last result alone is longer than what is read.
    for (events, details, fits) in [(1000, 700, true), (200, 5_000, true), (20, 60_000, true), (2, 300_000, false)] {
        let details = format!("warning:{}", "x".repeat(details));
        let rig = start(queue_of(2, events / 2), move |seen| Reply::results(seen, &[&details]));
        if fits {
            rig.drained().await;
            assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (events, 0));
            assert!(rig.endpoint.seen().last().unwrap().at < Duration::from_secs(5), "without a backoff");
        } else {
            rig.until(|rig| rig.endpoint.seen().last().is_some_and(|seen| seen.events.len() == 1)).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let error = rig.handle.state().last_error.unwrap();
            assert!(error.contains("answer to 1 event(s) has more than 264192 bytes"), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_keeps_its_id_over_its_attempts() {
    let mut answers = 0;
    let rig = Rig::with(
        queue_of(1, 10),
        move |seen| {
            answers += 1;
            if answers == 2 || answers == 6 { Reply::results(seen, &["ok"]) } else { Reply::new(503, "") }
        },
        |parts| {
            v1(parts);
            parts.clock = crate::sys::clock::Clock::System;
        },
    );
    rig.drained().await;
    rig.commit(1);
    rig.drained().await;
    let lengths: Vec<_> = sent(&rig).iter().map(Vec::len).collect();
    assert_eq!(lengths, [10, 10, 1, 1, 1, 1]);
    let ids = headers(&rig, "posthog-request-id");
    assert_eq!((distinct(&ids[..2]), distinct(&ids[2..]), distinct(&ids)), (1, 1, 2));
    assert_eq!(headers(&rig, "posthog-attempt"), ["1", "2", "1", "2", "3", "4"]);
    assert_eq!(distinct(&headers(&rig, "posthog-request-timestamp")), 6, "each attempt has its own time");
    let created: Vec<_> = rig.endpoint.seen().iter().map(|seen| seen.body["created_at"].to_string()).collect();
    assert_eq!(distinct(&created), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_waits_for_events_that_have_not_failed() {
    let mut answers = 0;
    let rig = start(queue_of(1, 10), move |seen| {
        answers += 1;
        if answers > 1 { Reply::results(seen, &["ok"]) } else { Reply::new(503, "") }
    });
    rig.until(|rig| !rig.endpoint.seen().is_empty()).await;
    rig.commit(5);
    rig.drained().await;
    // The answer of one event that has not failed says that the others may go again; the rest of its chunk goes with it
    // or after it.
    let first: Vec<_> = (1..=10).collect();
    assert_eq!((sent(&rig)[0].clone(), sent(&rig)[1].clone()), (first.clone(), vec![15]));
    let again = sent(&rig).iter().skip(2).position(|events| *events == first).unwrap() + 2;
    assert_eq!(headers(&rig, "posthog-attempt")[again], "2");
    assert_eq!(headers(&rig, "posthog-request-id")[again], headers(&rig, "posthog-request-id")[0]);
}

#[tokio::test(start_paused = true)]
async fn only_events_to_retry_are_sent_again_as_the_same_request() {
    let rig = start(
        queue_of(2, 4),
        in_turn(&[
            &["ok", "drop:bad", "retry:not_persisted", "retry", "ok", "ok", "ok", "retry"],
            &["retry", "ok", "warning:late"],
            &["ok"],
        ]),
    );
    rig.until(|rig| !rig.endpoint.seen().is_empty()).await;
    // What is decided is acked at once.
    rig.until(|rig| rig.queue.delivered() == 4 && rig.dead_lettered() == [2]).await;
    assert_eq!(rig.queue.queued(), [3, 4, 8]);
    rig.drained().await;
    assert_eq!(sent(&rig), [vec![1, 2, 3, 4, 5, 6, 7, 8], vec![3, 4, 8], vec![3]]);
    assert_eq!(distinct(&headers(&rig, "posthog-request-id")), 1);
    assert_eq!(headers(&rig, "posthog-attempt"), ["1", "2", "3"]);
    assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (7, vec![2]));
    assert_eq!(
        rig.noticed(|notice| notice.clone().with_backlog(Backlog::default()) == asked_again(3, "not_persisted")),
        1
    );
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::EndpointRecovered { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_beside_results_is_honoured() {
    let mut first = true;
    let rig = start(queue_of(1, 2), move |seen| match std::mem::take(&mut first) {
        true => Reply { retry_after: Some(3), ..Reply::results(seen, &["ok", "retry"]) },
        false => Reply::results(seen, &["ok"]),
    });
    rig.drained().await;
    let waited = rig.endpoint.seen()[1].at;
    assert!(waited >= Duration::from_secs(3) && waited < Duration::from_secs(4), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn endless_retries_are_four_requests_and_then_a_cooldown() {
    for words in [&["retry"][..], &["ok", "retry"]] {
        let mut first = true;
        let rig = start(queue_of(1, 2), move |seen| {
            if std::mem::take(&mut first) { Reply::results(seen, words) } else { Reply::results(seen, &["retry"]) }
        });
        tokio::time::sleep(Duration::from_secs(28)).await;
        assert_eq!(headers(&rig, "posthog-attempt"), ["1", "2", "3", "4"]);
        assert!(matches!(rig.handle.state().phase, Phase::Cooldown { .. }));
        rig.until(|rig| rig.endpoint.seen().len() >= 5).await;
        assert_eq!(headers(&rig, "posthog-attempt")[4], "1", "the next cycle's request is another");
        assert_eq!(distinct(&headers(&rig, "posthog-request-id")[..5]), 2);
        assert_eq!(rig.queue.queued().len() as u64, 2 - rig.queue.delivered());
        rig.endpoint.change(|seen| Reply::results(seen, &["ok"]));
        rig.drained().await;
        assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn one_event_with_endless_retries_does_not_block_others() {
    let rig = Rig::with(
        queue_of(40, 10),
        |seen| {
            let words: Vec<_> = seen.events.iter().map(|&event| if event == 5 { "retry" } else { "ok" }).collect();
            Reply::results(seen, &words)
        },
        |parts| {
            v1(parts);
            parts.options.max_batch_events = 20;
        },
    );
    rig.until(|rig| rig.queue.queued() == [5]).await;
    assert!(rig.endpoint.seen().last().unwrap().at < Duration::from_secs(90));
    for _ in 0..20 {
        let first = rig.commit(10);
        let begun = tokio::time::Instant::now();
        rig.until(|rig| rig.queue.queued() == [5]).await;
        assert!(begun.elapsed() < Duration::from_secs(65), "{:?} from event {first} on", begun.elapsed());
    }
    assert_eq!(rig.queue.delivered(), 599);
}

#[tokio::test(start_paused = true)]
async fn equal_uuids_go_in_different_requests() {
    let queue = FakeQueue::default();
    queue.commit_chunk(chunk_of(0, 1, &[record(1), record(2), record(1), record(3)]));
    queue.commit_chunk(chunk_of(0, 5, &[record(1), record(4), record(4)]));
    let rig = start(queue, in_turn(&[&["ok"]]));
    rig.drained().await;
    assert_eq!(rig.queue.delivered(), 7);
    let mut all = Vec::new();
    for events in sent(&rig) {
        assert_eq!(events.iter().collect::<HashSet<_>>().len(), events.len(), "{events:?}");
        all.extend(events);
    }
    all.sort_unstable();
    assert_eq!(all, [1, 1, 1, 2, 3, 4, 4]);
    assert_eq!(distinct(&headers(&rig, "posthog-request-id")), sent(&rig).len());
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_is_bisected_and_its_parts_are_new_requests() {
    let rig = start(queue_of(1, 8), |seen| {
        if seen.events.contains(&3) {
            Reply::new(400, r#"{"error":"bad_event"}"#)
        } else {
            Reply::results(seen, &["ok"])
        }
    });
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (7, vec![3]));
    assert!(headers(&rig, "posthog-attempt").iter().all(|attempt| attempt == "1"));
    assert_eq!(distinct(&headers(&rig, "posthog-request-id")), sent(&rig).len());
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_gives_the_events_back_to_the_queue() {
    let mut first = true;
    let rig = start(queue_of(1, 2), move |seen| match std::mem::take(&mut first) {
        true => Reply { retry_after: Some(600), ..Reply::new(503, "") },
        false => Reply::results(seen, &["ok"]),
    });
    rig.until(|rig| !rig.endpoint.seen().is_empty()).await;
    rig.commit(1);
    rig.drained().await;
    // What has not failed goes first.
    assert_eq!(sent(&rig), [vec![1, 2], vec![3], vec![1, 2]]);
    assert_eq!(headers(&rig, "posthog-attempt"), ["1", "1", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_between_attempts_acks_what_is_decided() {
    let rig = start(queue_of(1, 4), in_turn(&[&["ok", "retry", "drop", "retry"], &["retry"]]));
    rig.until(|rig| !rig.endpoint.seen().is_empty()).await;
    let (queue, took) = rig.stop(Duration::from_secs(60)).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!((queue.delivered(), queue.queued()), (1, vec![2, 4]));
}

#[tokio::test(start_paused = true)]
async fn a_flush_reports_what_was_accepted_and_what_was_not() {
    let rig = start(queue_of(1, 3), in_turn(&[&["ok", "drop", "retry"]]));
    let outcome = rig.flush().await;
    assert_eq!((outcome.delivered, outcome.dead_lettered), (1, 1));
    assert!(
        matches!(outcome.endpoint, EndpointStatus::Down { ref reason, .. } if reason.contains("again")),
        "{outcome:?}"
    );
}
