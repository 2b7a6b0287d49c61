//! exception-event-metadata (EXM) and exception-steps (EXS): how an exception was reported, and what callers cannot
//! set.

use std::error::Error;

use posthog::exceptions::{AdHocError, ExceptionOptions, Level};
use posthog::settings::CaptureProtocol;
use serde_json::{Value, json};

use crate::exc::{Wrapped, frames, sent, three_deep, unlinked};
use crate::scenario::Scenario;

fn sent_with(options: ExceptionOptions) -> Value {
    let scenario = unlinked();
    scenario.client.capture_exception_with(&three_deep(), options);
    sent(&scenario)
}

fn mechanism(said: &Value, at: usize) -> &Value {
    &said["$exception_list"][at]["mechanism"]
}

#[test]
fn exm_01_every_entry_has_a_type_and_a_value() {
    let scenario = unlinked();
    scenario.client.capture_exception(&Wrapped { text: "", cause: Some("".into()) });
    let said = sent(&scenario);
    for entry in said["$exception_list"].as_array().unwrap() {
        assert!(entry["type"].as_str().is_some_and(|kind| !kind.is_empty()) && entry["value"] == json!(""), "{entry}");
    }
    assert_eq!(said["$exception_list"][0]["module"], "conformance::exc");
}

#[test]
fn exm_02_every_entry_has_a_mechanism_with_its_id() {
    let said = sent_with(ExceptionOptions::new());
    let ids: Vec<_> = (0..3).map(|at| mechanism(&said, at)["exception_id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [0, 1, 2]);
}

#[test]
fn exm_03_unknown_fields_are_omitted() {
    let said = sent_with(ExceptionOptions::new());
    for at in 0..3 {
        for (name, value) in mechanism(&said, at).as_object().unwrap() {
            assert!(!value.is_null() && *value != json!(""), "{name}");
        }
    }
    assert!(["$exception_source", "$exception_fingerprint"].iter().all(|name| said.get(name).is_none()));
}

#[test]
fn exm_04_an_invalid_override_is_ignored_and_others_are_kept() {
    let said = sent_with(
        ExceptionOptions::new()
            .mechanism(" ")
            .level("loud".parse().unwrap_or_default())
            .source("No Source")
            .fingerprint("")
            .distinct_id("")
            .handled(false),
    );
    let expected = json!({"type": "generic", "handled": false, "synthetic": true, "exception_id": 0});
    assert_eq!((mechanism(&said, 0), &said["$exception_level"]), (&expected, &json!("error")));
    assert!(["$exception_source", "$exception_fingerprint"].iter().all(|name| said.get(name).is_none()));
}

#[test]
fn exm_06_a_manual_capture_is_generic_and_handled() {
    let said = sent_with(ExceptionOptions::new());
    assert_eq!(mechanism(&said, 0), &json!({"type": "generic", "handled": true, "synthetic": true, "exception_id": 0}));
    assert_eq!((&said["$exception_level"], said.get("$exception_source")), (&json!("error"), None));
}

#[test]
fn exm_07_an_integration_names_its_category_and_its_hook() {
    let said = sent_with(ExceptionOptions::new().mechanism("middleware").source("tower.middleware").handled(false));
    let mechanism = mechanism(&said, 0);
    assert_eq!((&mechanism["type"], &mechanism["handled"]), (&json!("middleware"), &json!(false)));
    assert_eq!((&said["$exception_source"], &said["$exception_level"]), (&json!("tower.middleware"), &json!("error")));
}

#[test]
fn exm_08_an_unknown_category_is_kept() {
    assert_eq!(mechanism(&sent_with(ExceptionOptions::new().mechanism("cron_job")), 0)["type"], "cron_job");
}

#[test]
fn exm_09_only_the_outermost_error_has_handled() {
    let said = sent_with(ExceptionOptions::new().handled(false));
    assert_eq!(mechanism(&said, 0)["handled"], json!(false));
    assert!((1..3).all(|at| mechanism(&said, at).get("handled").is_none()));
}

#[test]
fn exm_11_a_stack_of_the_call_and_an_ad_hoc_error_are_synthetic() {
    let scenario = unlinked();
    let without = || ExceptionOptions::new().stack(false);
    scenario.client.capture_exception(&three_deep());
    scenario.client.capture_exception_with(&three_deep(), without());
    scenario.client.capture_exception_with(&AdHocError::new("x"), without());
    let synthetic = |event: &Value| mechanism(&event["properties"], 0)["synthetic"].clone();
    assert_eq!(scenario.sent().iter().map(synthetic).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn exm_12_the_outermost_error_has_neither_parent_nor_source() {
    let said = sent_with(ExceptionOptions::new());
    assert!(["parent_id", "source"].iter().all(|name| mechanism(&said, 0).get(name).is_none()));
}

#[test]
fn exm_13_a_nested_error_is_chained_to_its_parent_as_its_cause() {
    let said = sent_with(ExceptionOptions::new());
    for at in 1..3 {
        let expected =
            json!({"type": "chained", "source": "cause", "synthetic": false, "exception_id": at, "parent_id": at - 1});
        assert_eq!(mechanism(&said, at), &expected);
    }
}

#[test]
fn exm_15_a_chain_has_at_most_fifty_errors() {
    let wrap =
        |inside: Wrapped| Wrapped { text: "outer", cause: Some(Box::new(inside) as Box<dyn Error + Send + Sync>) };
    let deep = (0..80).fold(Wrapped { text: "root", cause: None }, |inside, _| wrap(inside));
    let scenario = unlinked();
    scenario.client.capture_exception(&deep);
    let said = sent(&scenario);
    let list = said["$exception_list"].as_array().unwrap();
    assert_eq!((list.len(), &list[49]["mechanism"]["exception_id"]), (50, &json!(49)));
}

#[test]
fn exm_16_there_are_six_levels_with_aliases_from_loggers() {
    for (words, level) in [
        (&["fatal", "critical", "Alert", "EMERGENCY"][..], "fatal"),
        (&["error"], "error"),
        (&["warning", "warn"], "warning"),
        (&["log"], "log"),
        (&["info", "notice"], "info"),
        (&["debug", " trace "], "debug"),
    ] {
        for word in words {
            assert_eq!(word.parse::<Level>().map(Level::as_str), Ok(level));
        }
    }
    assert_eq!(sent_with(ExceptionOptions::new().level(Level::Warning))["$exception_level"], "warning");
}

#[test]
fn exm_17_a_logger_keeps_its_level_also_if_that_is_fatal() {
    let said = sent_with(ExceptionOptions::new().level(Level::Fatal).mechanism("logger").source("log.logger"));
    let expected = json!({"type": "logger", "handled": true, "synthetic": true, "exception_id": 0});
    assert_eq!((mechanism(&said, 0), &said["$exception_level"]), (&expected, &json!("fatal")));
}

#[test]
fn exm_21_callers_cannot_set_the_librarys_properties() {
    let mut options = ExceptionOptions::new().props([("$exception_list", 1), ("mine", 2)]);
    for key in ["$exception_level", "$exception_source", "$debug_images", "$exception_type", "$exception_message"] {
        options = options.prop(key, "mine");
    }
    let said = sent_with(options);
    assert_eq!((said["$exception_list"].as_array().unwrap().len(), &said["mine"]), (3, &json!(2)));
    assert_eq!((&said["$exception_level"], said.get("$exception_source")), (&json!("error"), None));
    assert!(said["$debug_images"].is_array() && said["$exception_type"] == "Wrapped");
}

#[test]
fn exm_22_keys_of_the_server_are_never_sent() {
    let keys = [
        "$exception_sources",
        "$exception_types",
        "$exception_values",
        "$exception_functions",
        "$exception_fingerprint_version",
        "$exception_fingerprint_record",
        "$exception_issue_id",
        "$exception_release",
        "$cymbal_errors",
    ];
    let said = sent_with(keys.iter().fold(ExceptionOptions::new(), |options, key| options.prop(key, "mine")));
    assert!(keys.iter().all(|key| said.get(key).is_none()), "{said:#}");
}

#[test]
fn exm_23_a_fingerprint_is_sent_only_if_it_is_given() {
    let fingerprint = |options| sent_with(options).get("$exception_fingerprint").cloned();
    assert_eq!(fingerprint(ExceptionOptions::new().prop("$release_id", "r1")), None);
    assert_eq!(fingerprint(ExceptionOptions::new().fingerprint("mine")), Some(json!("mine")));
    assert_eq!(fingerprint(ExceptionOptions::new().prop("$exception_fingerprint", "a key")), Some(json!("a key")));
    assert_eq!(fingerprint(ExceptionOptions::new().prop("$exception_fingerprint", 7)), None);
    assert_eq!(sent_with(ExceptionOptions::new().prop("$release_id", "r1"))["$release_id"], "r1");
}

#[test]
fn exm_24_frames_have_addresses_and_images_are_listed_once() {
    for protocol in [CaptureProtocol::V0, CaptureProtocol::V1] {
        let scenario = Scenario::with(|config| config.protocol(protocol).symbolicate(false));
        scenario.client.capture_exception(&three_deep());
        let said = sent(&scenario);
        let is_hex = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("0x"));
        assert!(frames(&said).iter().all(|frame| is_hex(&frame["instruction_addr"]) && frame["platform"] == "native"));
        let images = said["$debug_images"].as_array().unwrap();
        let mut addresses: Vec<_> = images.iter().map(|image| image["image_addr"].as_str().unwrap()).collect();
        let referred = |address: &str| frames(&said).iter().any(|frame| frame["image_addr"] == address);
        assert!(!images.is_empty() && addresses.iter().all(|address| referred(address)), "{images:#?}");
        addresses.dedup();
        assert_eq!(addresses.len(), images.len());
        for image in images {
            assert_eq!((image["debug_id"].as_str().unwrap().len(), &image["type"]), (36, &json!("elf")));
            assert!(is_hex(&image["image_addr"]) && is_hex(&image["image_vmaddr"]) && image["image_size"].is_u64());
        }
    }
}

#[test]
fn exm_24_without_symbols_a_frame_is_named_by_its_offset() {
    let scenario = unlinked();
    scenario.client.capture_exception(&three_deep());
    let said = sent(&scenario);
    let last = frames(&said).last().unwrap();
    let number = |name: &str| u64::from_str_radix(&last[name].as_str().unwrap()[2..], 16).unwrap();
    let exe = std::env::current_exe().unwrap();
    let place = number("instruction_addr") - number("image_addr");
    assert_eq!(last["function"], format!("{}+{place:#x}", exe.file_name().unwrap().to_str().unwrap()));
    assert_eq!((&last["in_app"], &last["client_resolved"]), (&json!(true), &json!(false)));
}

#[test]
fn exm_25_without_addresses_no_image_is_named() {
    assert!(sent_with(ExceptionOptions::new().stack(false)).get("$debug_images").is_none());
}

#[test]
fn exs_01_steps_of_the_caller_are_passed_on_as_they_are() {
    let steps = json!([{"$message": "opened", "$timestamp": "2026-01-01T00:00:00Z", "n": 1}]);
    assert_eq!(sent_with(ExceptionOptions::new().prop("$exception_steps", &steps))["$exception_steps"], steps);
}
