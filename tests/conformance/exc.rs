//! capture-exception (EXC): the content of an exception, its order, and its stack.

use std::error::Error;
use std::fmt;

use posthog::diagnostics::DiagnosticCategory;
use posthog::exceptions::{AdHocError, ExceptionOptions};
use posthog::{Client, Config, DropReason, Outcome};
use serde_json::{Value, json};

use crate::scenario::{Scenario, has_recorded};

/// An error with a source.
#[derive(Debug)]
pub(crate) struct Wrapped {
    pub(crate) text: &'static str,
    pub(crate) cause: Option<Box<dyn Error + Send + Sync>>,
}

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl Error for Wrapped {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static))
    }
}

pub(crate) fn three_deep() -> Wrapped {
    let root = "x".parse::<u8>().unwrap_err();
    let middle = Wrapped { text: "the setting cannot be read", cause: Some(Box::new(root)) };
    Wrapped { text: "no start", cause: Some(Box::new(middle)) }
}

/// Looking up names takes seconds in a test's executable, so only tests of names do it.
pub(crate) fn unlinked() -> Scenario {
    Scenario::with(|config| config.symbolicate(false))
}

/// The properties of the one event that was sent.
pub(crate) fn sent(scenario: &Scenario) -> Value {
    scenario.sent_one()["properties"].clone()
}

pub(crate) fn frames(properties: &Value) -> &Vec<Value> {
    properties["$exception_list"][0]["stacktrace"]["frames"].as_array().unwrap()
}

fn functions(properties: &Value) -> Vec<String> {
    frames(properties).iter().map(|frame| frame["function"].as_str().unwrap_or_default().to_owned()).collect()
}

#[inline(never)]
fn fails_here(client: &Client) -> posthog::Receipt {
    std::hint::black_box(client.capture_exception(&three_deep()))
}

#[inline(never)]
fn calls_what_fails(client: &Client) -> posthog::Receipt {
    std::hint::black_box(fails_here(client))
}

#[test]
fn exc_01_an_error_is_one_event_with_its_type_message_and_stack() {
    let scenario = unlinked();
    let receipt = fails_here(&scenario.client);
    let event = scenario.sent_one();
    assert_eq!(
        (&event["event"], event["uuid"].as_str()),
        (&json!("$exception"), receipt.uuid().map(|u| u.to_string()).as_deref())
    );
    let said = &event["properties"];
    assert_eq!((&said["$exception_type"], &said["$exception_message"]), (&json!("Wrapped"), &json!("no start")));
    assert_eq!(said["$exception_list"][0]["stacktrace"]["type"], "raw");
    assert!(!frames(said).is_empty());
    assert!(!has_recorded(&scenario.client, DiagnosticCategory::Validation), "{:?}", scenario.client.diagnostics());
}

#[test]
fn exc_02_the_callers_properties_are_merged() {
    let scenario = unlinked();
    let options = ExceptionOptions::new()
        .prop("handled", true)
        .props([("area", "checkout")])
        .group("company", "acme")
        .distinct_id("user_1");
    scenario.client.capture_exception_with(&three_deep(), options);
    let event = scenario.sent_one();
    let said = &event["properties"];
    assert_eq!((&said["handled"], &said["area"]), (&json!(true), &json!("checkout")));
    assert_eq!((&said["$groups"], &event["distinct_id"]), (&json!({"company": "acme"}), &json!("user_1")));
    assert!(said.get("$process_person_profile").is_none(), "it has a distinct id");
}

#[test]
fn exc_02_an_exception_without_an_id_creates_no_person() {
    let scenario = unlinked();
    fails_here(&scenario.client);
    posthog::Context::new().distinct_id("user_2").enter(|| fails_here(&scenario.client));
    let sent = scenario.sent();
    assert_eq!(sent[0]["properties"]["$process_person_profile"], json!(false));
    assert_eq!(
        (&sent[1]["distinct_id"], sent[1]["properties"].get("$process_person_profile")),
        (&json!("user_2"), None)
    );
    assert_ne!(sent[0]["distinct_id"], sent[1]["distinct_id"]);
}

#[test]
fn exc_03_a_value_that_is_no_error_becomes_an_event() {
    let scenario = unlinked();
    scenario.client.capture_exception(&AdHocError::new("a text"));
    scenario.client.capture_exception(&AdHocError::of(&404));
    scenario.client.capture_exception(&AdHocError::of(&json!({"any": ["value"]})));
    let boxed: Box<dyn Error> = "boxed text".into();
    scenario.client.capture_exception(&*boxed);
    let sent = scenario.sent();
    let said = |at: usize| {
        let properties = &sent[at]["properties"];
        (properties["$exception_type"].as_str().unwrap(), properties["$exception_message"].as_str().unwrap())
    };
    assert_eq!((said(0), said(1), said(3)), (("Error", "a text"), ("i32", "404"), ("Error", "boxed text")));
    assert_eq!((said(2).0, said(2).1.contains("value")), ("Value", true));
}

#[test]
fn exc_04_frames_lead_from_the_entry_point_to_the_capture() {
    let scenario = Scenario::new();
    calls_what_fails(&scenario.client);
    let said = sent(&scenario);
    let functions = functions(&said);
    let [.., caller, place] = functions.as_slice() else { panic!("{functions:#?}") };
    // The bare name, if the build only has line tables.
    assert!(place.rsplit("::").next() == Some("fails_here"), "{functions:#?}");
    assert!(caller.rsplit("::").next() == Some("calls_what_fails"), "{functions:#?}");
    assert!(functions.iter().all(|function| !function.is_empty()), "{functions:#?}");
    let last = frames(&said).last().unwrap();
    assert!(last["filename"].as_str().unwrap().ends_with("tests/conformance/exc.rs") && last["lineno"].is_u64());
    assert_eq!((&last["in_app"], &last["client_resolved"]), (&json!(true), &json!(true)));
}

#[test]
fn exc_05_a_stack_printed_innermost_first_is_reversed() {
    let scenario = unlinked();
    let printed = "   0: checkout::total\n             at ./src/cart.rs:12:5\n   1: checkout::run\n   2: main\n";
    scenario.client.capture_exception_with(&three_deep(), ExceptionOptions::new().backtrace(printed));
    assert_eq!(functions(&sent(&scenario)), ["main", "checkout::run", "checkout::total"]);
}

#[test]
fn exc_06_each_cause_follows_the_error_that_wraps_it() {
    let scenario = unlinked();
    fails_here(&scenario.client);
    let said = sent(&scenario);
    let list = said["$exception_list"].as_array().unwrap();
    let values: Vec<_> = list.iter().map(|entry| entry["value"].as_str().unwrap()).collect();
    assert_eq!(values, ["no start", "the setting cannot be read", "invalid digit found in string"]);
    let types: Vec<_> = list.iter().map(|entry| entry["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Wrapped", "Wrapped", "ParseIntError"]);
    assert!(list[1].get("stacktrace").is_none() && list[2].get("stacktrace").is_none());
}

#[test]
fn exc_07_an_error_without_a_cause_is_alone_in_the_list() {
    let scenario = unlinked();
    scenario.client.capture_exception(&Wrapped { text: "alone", cause: None });
    assert_eq!(sent(&scenario)["$exception_list"].as_array().unwrap().len(), 1);
}

#[test]
fn exc_08_in_app_frames_have_source_context_if_enabled() {
    let scenario = Scenario::with(|config| config.source_context(true));
    fails_here(&scenario.client);
    let said = sent(&scenario);
    let last = frames(&said).last().unwrap();
    assert_eq!(last["context_line"], "    std::hint::black_box(client.capture_exception(&three_deep()))");
    let lines = |name: &str| last[name].as_array().unwrap().clone();
    assert_eq!((lines("pre_context").len(), lines("post_context").len()), (5, 5));
    assert_eq!(lines("pre_context")[4], "fn fails_here(client: &Client) -> posthog::Receipt {");
    assert_eq!(lines("post_context")[0], "}");
    let foreign = frames(&said).iter().filter(|frame| frame["in_app"] == false);
    assert!(foreign.into_iter().all(|frame| frame.get("context_line").is_none()));
}

#[test]
fn exc_09_without_source_there_are_no_such_fields() {
    let scenario = Scenario::new();
    fails_here(&scenario.client);
    for frame in frames(&sent(&scenario)) {
        assert!(
            ["pre_context", "context_line", "post_context"].iter().all(|name| frame.get(name).is_none()),
            "{frame}"
        );
    }
}

#[test]
fn exc_10_a_stack_that_an_error_brings_along_is_kept() {
    let scenario = unlinked();
    let brought = std::backtrace::Backtrace::force_capture();
    scenario.client.capture_exception_with(&three_deep(), ExceptionOptions::new().backtrace(&brought));
    let disabled = std::backtrace::Backtrace::disabled();
    scenario.client.capture_exception_with(&three_deep(), ExceptionOptions::new().backtrace(&disabled));
    scenario.client.capture_exception_with(&three_deep(), ExceptionOptions::new().stack(false));
    let sent = scenario.sent();
    let entry = |at: usize| &sent[at]["properties"]["$exception_list"][0];
    let last = entry(0)["stacktrace"]["frames"].as_array().unwrap().last().unwrap();
    assert!(
        last["function"].as_str().unwrap().ends_with("exc_10_a_stack_that_an_error_brings_along_is_kept"),
        "{last}"
    );
    assert!(last.get("instruction_addr").is_none() && sent[0]["properties"].get("$debug_images").is_none());
    assert_eq!(entry(0)["mechanism"]["synthetic"], false);
    assert_eq!(
        (entry(1)["mechanism"]["synthetic"].clone(), entry(1)["stacktrace"]["type"].clone()),
        (json!(true), json!("raw"))
    );
    assert_eq!((entry(2)["mechanism"]["synthetic"].clone(), entry(2).get("stacktrace")), (json!(false), None));
}

#[cfg(feature = "anyhow")]
#[test]
fn exc_10_a_report_of_anyhow_has_all_its_contexts() {
    let scenario = unlinked();
    let report = anyhow::Error::new(three_deep()).context("while starting");
    scenario.client.capture_anyhow(&report);
    scenario.client.capture_anyhow_with(&anyhow::anyhow!("a message"), ExceptionOptions::new().prop("n", 1));
    let sent = scenario.sent();
    let list = sent[0]["properties"]["$exception_list"].as_array().unwrap();
    let values: Vec<_> = list.iter().map(|entry| entry["value"].as_str().unwrap()).collect();
    assert_eq!(values, ["while starting", "no start", "the setting cannot be read", "invalid digit found in string"]);
    assert!(list[0]["stacktrace"]["frames"].is_array(), "its own, or that of the call");
    assert_eq!(
        (&sent[1]["properties"]["$exception_message"], &sent[1]["properties"]["n"]),
        (&json!("a message"), &json!(1))
    );
}

#[cfg(feature = "eyre")]
#[test]
fn exc_10_a_report_of_eyre_has_all_its_contexts() {
    let scenario = unlinked();
    let report = eyre::Report::new(three_deep()).wrap_err("while starting");
    scenario.client.capture_eyre(&report);
    let said = sent(&scenario);
    assert_eq!(said["$exception_list"].as_array().unwrap().len(), 4);
    assert_eq!(said["$exception_message"], "while starting");
}

#[test]
fn exc_11_a_client_that_drops_the_event_does_not_read_the_error() {
    /// Must not be read.
    #[derive(Debug)]
    struct Silent;
    impl fmt::Display for Silent {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("asked")
        }
    }
    impl Error for Silent {}
    let scenario = unlinked();
    scenario.client.opt_out();
    assert_eq!(scenario.client.capture_exception(&Silent).outcome(), Outcome::Dropped(DropReason::OptedOut));
    let disabled = Client::new(Config::disabled()).unwrap();
    assert_eq!(disabled.capture_exception(&Silent).outcome(), Outcome::Dropped(DropReason::Disabled));
    assert_eq!(posthog::capture_exception(&Silent).outcome(), Outcome::Dropped(DropReason::NotInitialized));
    scenario.must_have_queued_nothing();
    assert!(!has_recorded(&scenario.client, DiagnosticCategory::Validation));
}

#[test]
fn exc_11_an_error_that_panics_is_recorded_and_still_sent() {
    #[derive(Debug)]
    struct Panics;
    impl fmt::Display for Panics {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("in Display")
        }
    }
    impl Error for Panics {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            panic!("in source")
        }
    }
    let scenario =
        Scenario::with(|config| config.symbolicate(false).before_send(|event| Some(event.prop("seen", true))));
    assert!(scenario.client.capture_exception(&Panics).is_accepted());
    assert!(has_recorded(&scenario.client, DiagnosticCategory::Validation));
    let said = sent(&scenario);
    assert_eq!((&said["$exception_type"], &said["$exception_message"]), (&json!("Panics"), &json!("")));
    assert_eq!(said["seen"], json!(true), "hooks as ever");
}

#[test]
fn exc_11_an_error_that_captures_itself_terminates() {
    struct Reports(Client);
    impl fmt::Debug for Reports {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Reports")
        }
    }
    impl fmt::Display for Reports {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:?}", self.0.capture_exception(self).outcome())
        }
    }
    impl Error for Reports {}
    let scenario = unlinked();
    scenario.client.capture_exception(&Reports(scenario.client.clone()));
    let sent = scenario.sent();
    let said: Vec<_> = sent.iter().map(|event| event["properties"]["$exception_message"].as_str().unwrap()).collect();
    assert_eq!(said, ["Dropped(Reentrant)", "Accepted"]);
}

#[test]
fn exc_11_hooks_see_the_list_and_may_change_it() {
    let scenario = Scenario::with(|config| {
        config.symbolicate(false).before_send(|event| {
            let mut list: Value = event.get("$exception_list")?;
            let frames = list[0]["stacktrace"]["frames"].as_array_mut()?;
            let last = frames.pop()?;
            frames.clear();
            frames.push(last);
            list[0]["value"] = json!("hidden");
            Some(event.prop("$exception_list", list))
        })
    });
    fails_here(&scenario.client);
    let said = sent(&scenario);
    assert_eq!((&said["$exception_list"][0]["value"], frames(&said).len()), (&json!("hidden"), 1));
    assert!(frames(&said)[0]["instruction_addr"].as_str().unwrap().starts_with("0x"));
}
