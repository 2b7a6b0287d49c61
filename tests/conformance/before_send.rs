//! `before_send` hooks (BSH).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthog::diagnostics::DiagnosticCategory;
use posthog::settings::BeforeSend;
use posthog::{Client, DropReason, Event, Outcome, Receipt};
use serde_json::json;
use uuid::Uuid;

use crate::fixture::{accepted, event, take};
use crate::scenario::{Scenario, has_recorded};

#[test]
fn bsh_01_a_hook_changes_the_event_before_it_is_enqueued() {
    let scenario = Scenario::with(|config| {
        config.before_send(|mut event| {
            event.remove("secret");
            event.set_prop("kept", 1);
            Some(event)
        })
    });
    accepted(&scenario.client.capture(event("tick").prop("secret", "4111 1111 1111 1111")));
    let properties = &scenario.sent_one()["properties"];
    assert_eq!((properties.get("secret"), &properties["kept"]), (None, &json!(1)));
}

#[test]
fn bsh_01_what_a_hook_removes_never_reaches_the_disk() {
    let scenario = Scenario::with(|config| {
        config.flush_at(1000).flush_interval(Duration::from_secs(3600)).before_send(|mut event| {
            assert_ne!(event.name(), "panics");
            event.remove("message");
            (event.name() != "dropped").then_some(event)
        })
    });
    let said = |name: &str| event(name).prop("message", "a-secret").prop("kept", "no-secret");
    for capture in [Client::capture, Client::capture_ai] as [fn(&Client, Event) -> Receipt; 2] {
        accepted(&capture(&scenario.client, said("tick")));
        for name in ["panics", "dropped"] {
            assert!(!capture(&scenario.client, said(name)).is_accepted());
        }
    }
    let (mut folders, mut found) = (vec![scenario.fixture.queue.clone()], (0, 0));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let bytes = std::fs::read(entry.path()).unwrap();
            let count = |text: &str| bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count();
            found = (found.0 + count("no-secret"), found.1 + count("a-secret"));
        }
    }
    assert_eq!(found, (2, 0), "of what is kept, in each lane's journal, and of what is not");
}

#[test]
fn bsh_02_a_hook_that_returns_nothing_drops_the_event() {
    let scenario = Scenario::with(|config| config.before_send(|_| None));
    assert_eq!(scenario.client.capture(event("tick")).outcome(), Outcome::Dropped(DropReason::BeforeSend));
    scenario.must_have_queued_nothing();
}

#[test]
fn bsh_03_a_panicking_hook_drops_the_event_and_is_recorded() {
    let ran_after = Arc::new(Mutex::new(false));
    let after = Arc::clone(&ran_after);
    let scenario = Scenario::with(|config| {
        config.before_send(|event| Some(event.prop("half", true))).before_send(|_| panic!("in the hook")).before_send(
            move |event| {
                *after.lock().unwrap() = true;
                Some(event)
            },
        )
    });
    let receipt = scenario.client.capture(event("tick"));
    scenario.must_have_dropped(&receipt, DropReason::BeforeSendPanicked, DiagnosticCategory::BeforeSend);
    assert!(has_recorded(&scenario.client, DiagnosticCategory::BeforeSend) && !*ran_after.lock().unwrap());
}

#[test]
fn bsh_04_hooks_run_in_order_on_each_others_results() {
    let scenario = Scenario::new();
    let step = |name: &'static str| {
        BeforeSend::new(move |mut event: Event| {
            let so_far = event.get::<String>("steps").unwrap_or_default();
            event.set_prop("steps", so_far + name);
            (event.name() != name).then_some(event)
        })
    };
    scenario.client.set_before_send([step("a"), step("b"), step("c")]);
    take(&scenario.client, "tick");
    assert_eq!(scenario.client.capture(event("b")).outcome(), Outcome::Dropped(DropReason::BeforeSend));
    assert_eq!(scenario.sent_one()["properties"]["steps"], "abc");
}

#[test]
fn bsh_04_changes_to_name_time_and_uuid_take_effect() {
    let uuid = Uuid::from_u128(9);
    let scenario = Scenario::with(|config| {
        config.before_send(move |mut event| {
            if event.name() == "old" {
                event.set_name("new");
                return Some(event.uuid(uuid).timestamp(std::time::UNIX_EPOCH));
            }
            Some(event.prop("seen", true))
        })
    });
    assert_eq!(accepted(&scenario.client.capture(event("old"))), uuid);
    accepted(&scenario.client.identify("user_1", ()));
    accepted(&scenario.client.set_person("user_1", [("a", 1)]));
    accepted(&scenario.client.alias("user_1", "anon_1"));
    accepted(&scenario.client.group_identify("company", "acme", ()));
    let sent = scenario.sent();
    let first = (&sent[0]["event"], &sent[0]["uuid"], &sent[0]["timestamp"]);
    assert_eq!(first, (&json!("new"), &json!(uuid.to_string()), &json!("1970-01-01T00:00:00Z")));
    assert!(sent.len() == 5 && sent[1..].iter().all(|event| event["properties"]["seen"] == true), "{sent:#?}");
}
