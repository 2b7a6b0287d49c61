//! The cache of PostHog's responses (FFC).

use std::sync::Barrier;
use std::thread;

use posthog::feature_flags::{FlagContext, FlagsProblem};
use serde_json::{Value, json};
use sink::{Answer, FlagRoute};

use crate::flag_scenario::{flags, got, keys};
use crate::scenario::Scenario;

fn two() -> Value {
    json!({"button": "blue", "on": true})
}

#[test]
fn ffc_01_an_answer_leaves_values_and_payloads() {
    let scenario = Scenario::of_flags(two());
    assert!(scenario.client.known_flags("user_1").is_empty());
    let _loaded = got(scenario.client.reload_feature_flags("user_1"));
    let known = scenario.client.known_flags("user_1");
    assert_eq!((known.get("button"), known.payload("button")), (Some("blue".into()), Some(json!({"of": "button"}))));
}

#[test]
fn ffc_02_the_same_context_is_served_without_a_request() {
    let scenario = Scenario::of_flags(two());
    assert_eq!(scenario.evaluated("user_1").len(), 2);
    scenario.fixture.sink.stop();
    // The result is available at once.
    assert_eq!(scenario.client.get_feature_flag("button", "user_1").try_get(), Some(Some("blue".into())));
    assert_eq!(scenario.client.is_feature_enabled("on", "user_1").try_get(), Some(true));
    assert_eq!(scenario.client.get_all_flags("user_1").try_get().unwrap().len(), 2);
    assert_eq!(scenario.asked().len(), 1);
    for other in [FlagContext::new("user_2"), FlagContext::new("user_1").group("company", "acme")] {
        assert!(scenario.evaluated(other).is_empty());
    }
}

#[test]
fn ffc_03_a_reset_forgets_them() {
    let scenario = Scenario::of_flags(two());
    assert_eq!(scenario.evaluated("user_1").len(), 2);
    scenario.client.reset_feature_flags();
    assert!(scenario.client.known_flags("user_1").is_empty());
    assert_eq!((scenario.evaluated("user_1").len(), scenario.asked().len()), (2, 2));
}

#[test]
fn ffc_04_partial_and_quota_limited_answers_remove_nothing() {
    let scenario = Scenario::of_flags(two());
    assert_eq!(scenario.evaluated("user_1").len(), 2);
    let mut partial = flags(json!({"button": "red", "new": true, "broken": true}));
    partial["errorsWhileComputingFlags"] = json!(true);
    partial["flags"]["broken"]["failed"] = json!(true);
    partial["flags"]["new"]["metadata"]["payload"] = json!("{no json");
    scenario.answer_flags(Answer::json(&partial));
    let merged = got(scenario.client.reload_feature_flags("user_1"));
    assert_eq!((keys(&merged), merged.problem()), (vec!["button", "new", "on"], Some(&FlagsProblem::Incomplete)));
    assert_eq!((merged.get("button"), merged.get("on")), (Some("red".into()), Some(true.into())));
    assert_eq!(merged.payload("new"), Some(json!("{no json")));
    scenario.answer_flags(Answer::json(&json!({"flags": {}, "quotaLimited": ["feature_flags"]})));
    let limited = got(scenario.client.reload_feature_flags("user_1"));
    assert_eq!((keys(&limited), limited.problem()), (vec!["button", "new", "on"], Some(&FlagsProblem::QuotaLimited)));
    assert_eq!(scenario.client.known_flags("user_1").len(), 3);
}

#[test]
fn ffc_04_a_read_during_a_response_sees_one_answer() {
    let scenario = Scenario::of_flags(json!({"a": "one", "b": "one"}));
    let _first = scenario.evaluated("user_1");
    let others = (0..20).map(|round| if round % 2 == 0 { "two" } else { "one" });
    let answers: Vec<_> = others.map(|value| Answer::json(&flags(json!({"a": value, "b": value})))).collect();
    scenario.fixture.sink.script_flags(FlagRoute::Values, answers);
    let together = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            together.wait();
            (0..20).for_each(|_| drop(got(scenario.client.reload_feature_flags("user_1"))));
        });
        together.wait();
        for _ in 0..2000 {
            let known = scenario.client.known_flags(FlagContext::new("user_1").send_feature_flag_events(false));
            assert!(known.get("a").is_some() && known.get("a") == known.get("b"));
        }
    });
    assert_eq!(scenario.asked().len(), 21);
}
