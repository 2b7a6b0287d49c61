//! Checks of events and batches that are the same for V0 and V1.

use serde_json::json;
use sink::Answer;

use super::driver::Test;

async fn what_was_given_arrives_unchanged(test: &Test<'_>) {
    test.init(json!({ "enable_compression": false })).await;
    let given = json!({
        "text": "hello", "number": 42, "truth": true, "like_a_time": "2025-01-02T08:34:05+05:30",
        "$set": { "name": "Test" }, "$set_once": { "source": "ad" }, "$groups": { "company": "acme" },
    });
    test.capture(json!({ "properties": given })).await;
    test.flush().await;
    assert_eq!(test.at_least(1).await[0].header("content-encoding"), None);
    let event = test.sink.events().remove(0);
    for (name, value) in given.as_object().unwrap() {
        assert_eq!(&event.properties[name], value, "{name}");
    }
    assert!(event.properties.get("distinct_id").is_none());
    assert!(
        event.timestamp.ends_with('Z') && event.timestamp.parse::<jiff::Timestamp>().is_ok(),
        "{}",
        event.timestamp
    );
}

async fn a_timestamp_with_an_offset_is_the_same_instant_in_utc(test: &Test<'_>) {
    test.init(json!({})).await;
    test.capture(json!({ "timestamp": "2026-01-02T03:04:05.678+05:30" })).await;
    test.flush().await;
    test.at_least(1).await;
    assert_eq!(test.sink.events()[0].timestamp, "2026-01-01T21:34:05.678Z");
}

async fn a_full_batch_is_sent_without_a_flush(test: &Test<'_>) {
    // The interval is too long to cause the request.
    test.init(json!({ "flush_at": 3, "flush_interval_ms": 600_000 })).await;
    for _ in 0..3 {
        test.capture(json!({})).await;
    }
    assert_eq!(test.at_least(1).await[0].event_count, 3);
}

async fn a_flush_of_nothing_sends_nothing(test: &Test<'_>) {
    test.init(json!({})).await;
    test.flush().await;
    test.capture(json!({})).await;
    test.flush().await;
    let counts: Vec<_> = test.at_least(1).await.iter().map(|request| request.event_count).collect();
    assert_eq!(counts, [1]);
}

async fn a_batch_that_is_sent_again_is_the_same_batch(test: &Test<'_>) {
    test.init(json!({ "flush_at": 10 })).await;
    // The server accepts it all the same, so that both attempts can be read.
    test.sink.script([Answer::status(503).taking()]);
    for _ in 0..3 {
        test.capture(json!({ "properties": { "same": true } })).await;
    }
    test.flush().await;
    test.at_least(2).await;
    let sent: Vec<_> = test.sink.events().into_iter().map(|event| (event.uuid, event.timestamp)).collect();
    assert_eq!((sent.len(), &sent[..3]), (6, &sent[3..]));
    assert_eq!(test.sink.unique().len(), 3, "events with equal content are distinct");
}

/// Runs every check of this file, each with an instance of its own.
pub(crate) async fn all<'a, F: Future<Output = Test<'a>>>(test: impl Fn() -> F) {
    what_was_given_arrives_unchanged(&test().await).await;
    a_timestamp_with_an_offset_is_the_same_instant_in_utc(&test().await).await;
    a_full_batch_is_sent_without_a_flush(&test().await).await;
    a_flush_of_nothing_sends_nothing(&test().await).await;
    a_batch_that_is_sent_again_is_the_same_batch(&test().await).await;
}
