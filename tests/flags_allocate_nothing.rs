//! Local evaluation of a boolean flag costs no allocation. A binary of its own, for it counts everything that the process allocates.
#![allow(
    unsafe_code,
    reason = "an allocator is unsafe by its trait; this one counts, and leaves the work to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use posthog::{FlagContext, LocalFlags, LocalValue};
use serde_json::json;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came. The counter is a plain cell of the thread, and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller keeps the allocator's contract, which is handed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller keeps the allocator's contract, which is handed on.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(of: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    of();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn an_evaluation_allocates_nothing() {
    let on = |key: &str, operator: &str, value: serde_json::Value| json!({"key": key, "type": "person", "operator": operator, "value": value});
    let members: Vec<String> = (0..10_000).map(|member| format!("user-{member}@example.com")).collect();
    let flags = json!({"flags": [
        {"key": "base", "active": true, "filters": {"groups": [{"rollout_percentage": 99.9}]}},
        {"key": "f", "active": true, "filters": {"groups": [
            {"properties": [on("plan", "exact", json!(["pro", "team"])), on("seats", "gt", json!(1000))]},
            {"properties": [on("email", "icontains", json!("@other.example"))], "rollout_percentage": 50},
            {"properties": [
                {"key": "id", "type": "cohort", "value": 1},
                {"key": "base", "type": "flag", "operator": "flag_evaluates_to", "value": true, "dependency_chain": ["base"]},
                {"key": "tier", "type": "group", "group_type_index": 0, "operator": "exact", "value": "gold"}
            ], "rollout_percentage": 99.9}
        ]}}
    ], "cohorts": {"1": {"type": "OR", "values": [on("email", "exact", json!(members))]}}, "group_type_mapping": {"0": "company"}});
    let flags = LocalFlags::parse(flags.to_string().as_bytes()).unwrap();
    let context = FlagContext::new("user_1")
        .person_property("plan", "pro")
        .person_property("seats", 12)
        .person_property("email", "user-9999@example.com")
        .group("company", "acme")
        .group_property("company", "tier", "gold");
    assert!(allocations(|| drop(Box::new(1_u8))) > 0, "this counts nothing");
    for key in ["base", "f"] {
        let mut value = None;
        assert_eq!(allocations(|| value = Some(flags.evaluate(key, &context))), 0, "{key}");
        assert_eq!(value, Some(Ok(LocalValue::Boolean(true))), "{key}");
    }
}
