//! The shapes of serialized values, held against golden ones.

use serde_json::{Value, json};

use super::*;
use crate::report::stats::fixtures::{with_ai, working};

fn of(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

/// What programs read. A change of this value, except for a new key, is a change of the public interface.
#[test]
fn statistics_have_the_golden_shape() {
    let golden = json!({
        "accepted": 1000, "delivered": 990, "queued_events": 3, "queued_bytes": 600, "dead_lettered": 2, "evicted": 1,
        "damaged": 1, "lost_unsynced": 3, "dropped": {"too_large": 4}, "used_bytes": 4096, "max_bytes": 1 << 30,
        "max_events": null, "oldest_age_seconds": 1.5, "unsynced_for_seconds": 0.02, "file_bytes": 1 << 20,
        "replayed": 0, "adopted_events": 0, "orphaned": {"queues": 0, "events": 0}, "rejecting": null,
        "storage": {"name": "durable", "problem": null}, "medium": "disk",
        "delivery": {"name": "sending", "status": null, "retry_in_seconds": null},
        "commit_thread": {"name": "asleep", "busy_for_seconds": 0.0},
        "deliver_thread": {"name": "working", "busy_for_seconds": 0.25},
        "consecutive_failures": 0, "failed_attempts": 7, "quarantined": 0, "last_error": "HTTP status 503",
        "last_success_timestamp_seconds": 1_700_000_000.5, "dir": "/var/lib/daemon/posthog/p/shard-0",
        "flag_definitions_failure": null, "ai_unavailable": false, "ai": null, "analytics": null,
    });
    assert_eq!(of(&working()), golden);
    let both = of(&with_ai());
    assert_eq!(
        (&both["accepted"], &both["analytics"]["accepted"], &both["ai"]["accepted"]),
        (&json!(1010), &json!(1000), &json!(10))
    );
    assert_eq!(both["ai"]["delivery"], json!({"name": "cooldown", "status": null, "retry_in_seconds": 42.0}));
}

#[test]
fn health_has_the_golden_shape() {
    let storage = StorageMode::Degraded { problem: "the disk is on fire".into() };
    let health = Stats { storage, ..working() }.health();
    assert_eq!(
        of(&health),
        json!({
            "status": "degraded", "is_ready": true, "is_alive": true,
            "problems": [{
                "cause": "storage_failing", "status": "degraded", "lane": "analytics", "detail": "the disk is on fire",
            }],
            "oldest_age_seconds": 1.5, "last_success_timestamp_seconds": 1_700_000_000.5,
            "storage": {"name": "degraded", "problem": "the disk is on fire"}, "medium": "disk", "fill_percent": 0,
        })
    );
}

#[test]
fn diagnostics_and_reports_have_the_golden_shapes() {
    let diagnostic = Diagnostic::Evicted { events: 2, for_age: true };
    assert_eq!(of(&diagnostic), json!({"kind": "evicted", "category": "capacity", "message": diagnostic.to_string()}));
    let paused = EndpointStatus::Paused { status: 401, reason: "no".into(), retry_in: Some(Duration::from_secs(60)) };
    let endpoint = json!({"name": "paused", "status": 401, "reason": "no", "retry_in_seconds": 60.0});
    let flushed = FlushReport { delivered: 1, dead_lettered: 2, remaining: 3, endpoint: paused.clone() };
    assert_eq!(of(&flushed), json!({"delivered": 1, "dead_lettered": 2, "remaining": 3, "endpoint": endpoint}));
    let closed = ShutdownReport { delivered: 1, remaining: 0, endpoint: EndpointStatus::Up, persisted: true };
    let up = json!({"name": "up", "status": null, "reason": null, "retry_in_seconds": null});
    assert_eq!(of(&closed), json!({"delivered": 1, "remaining": 0, "endpoint": up, "persisted": true}));
    assert_eq!(
        of(&DeliveryReport::Queued { endpoint: paused }),
        json!({"name": "queued", "status": null, "reason": null, "endpoint": endpoint})
    );
    let dropped = DeliveryReport::Dropped(DropReason::QueueFull);
    assert_eq!(of(&dropped), json!({"name": "dropped", "status": null, "reason": "queue_full", "endpoint": null}));
}
