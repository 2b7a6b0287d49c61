//! Tests of exceptions, with well-behaved and misbehaving errors.

use std::error::Error;
use std::fmt::{self, Debug, Display};

use serde_json::{Value, json};
use uuid::Uuid;

use super::chain::{AdHocError, Chain, short};
use super::event::ExceptionStack;
use super::options::ExceptionOptions;
use super::printed::{parse, stack_below};
use crate::record::{NoSymbols, View, json::write_event};

/// An error whose texts are set by the test.
struct Scripted {
    message: Box<dyn Fn() -> String>,
    source: Option<Box<dyn Error>>,
    debug: &'static str,
}

impl Scripted {
    fn new(debug: &'static str, source: Option<Box<dyn Error>>) -> Self {
        Self { message: Box::new(move || format!("says {debug}")), source, debug }
    }
}

impl Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.debug)
    }
}

impl Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&(self.message)())
    }
}

impl Error for Scripted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref()
    }
}

fn kinds<'a>(chain: &'a Chain<'_>) -> Vec<&'a str> {
    chain.entries.iter().map(|entry| entry.kind.as_str()).collect()
}

fn properties(chain: &Chain<'_>, options: ExceptionOptions) -> Value {
    let record = chain.describe(options.distinct_id("user_1")).finish(Uuid::nil(), 0, 1 << 20).unwrap();
    let mut out = Vec::new();
    write_event(&View::parse(record.body()).unwrap(), &NoSymbols, &mut out).unwrap();
    serde_json::from_slice::<Value>(&out).unwrap()["properties"].clone()
}

#[test]
fn a_type_has_its_short_name() {
    for (full, expected) in [
        ("my_app::db::QueryError", Some("QueryError")),
        ("my_app::SendError<alloc::vec::Vec<u8>>", Some("SendError")),
        ("std::io::error::Error", Some("io::Error")),
        ("serde_json::error::Error", Some("serde_json::Error")),
        ("alloc::boxed::Box<my_app::Error>", Some("my_app::Error")),
        ("&mut alloc::sync::Arc<my_app::Failure>", Some("Failure")),
        ("i32", Some("i32")),
        ("Error", Some("Error")),
        ("dyn core::error::Error", None),
        ("alloc::boxed::Box<dyn core::error::Error + core::marker::Send>", None),
        ("", None),
        ("(i32, u8)", None),
        ("[u8]", None),
    ] {
        assert_eq!(short(full).map(|(kind, _)| kind).as_deref(), expected, "{full}");
    }
    assert_eq!(short("my_app::db::QueryError").unwrap().1.as_deref(), Some("my_app::db"));
}

#[test]
fn behind_dyn_a_type_name_is_taken_from_the_debug_text() {
    for (debug, expected) in [
        ("Missing { key: 3 }", "Missing"),
        ("Io(Os { code: 2 })", "Io"),
        ("Closed", "Closed"),
        ("something went wrong", "Error"),
        ("Something went wrong", "Error"),
        ("\"quoted\"", "Error"),
        ("lower { a: 1 }", "Error"),
        ("", "Error"),
        ("404(x)", "Error"),
    ] {
        let error: Box<dyn Error> = Box::new(Scripted::new(debug, None));
        assert_eq!(kinds(&Chain::of(&*error)), [expected], "{debug}");
    }
    let same = Scripted { message: Box::new(|| "Timeout".into()), source: None, debug: "Timeout" };
    assert_eq!(kinds(&Chain::of(&same as &dyn Error)), ["Error"], "a message, not a name");
    let outer = Scripted::new("", Some(Box::new(std::io::Error::other("x"))));
    assert_eq!(kinds(&Chain::of(&outer)), ["Scripted", "io::Error"]);
}

#[test]
fn a_failing_method_of_an_error_costs_only_its_result() {
    let panics = Scripted { message: Box::new(|| panic!("in Display")), source: None, debug: "" };
    let chain = Chain::of(&panics);
    assert_eq!((chain.entries[0].message.as_str(), chain.failed_call), ("", Some("Display")));

    #[derive(Debug)]
    struct Odd;
    impl Display for Odd {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("begun")?;
            Err(fmt::Error)
        }
    }
    impl Error for Odd {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            panic!("in source")
        }
    }
    let chain = Chain::of(&Scripted::new("", Some(Box::new(Odd))));
    assert_eq!((chain.entries.len(), chain.entries[1].message.as_str()), (2, "begun"));
    assert_eq!(chain.failed_call, Some("source"));

    #[derive(Debug)]
    struct Endless;
    impl Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                f.write_str("\u{e9}e")?;
            }
        }
    }
    impl Error for Endless {}
    let chain = Chain::of(&Endless);
    assert_eq!((chain.entries[0].message.len(), chain.failed_call), (9_999, None), "as much as fits of whole letters");
}

#[test]
fn a_cyclic_chain_has_each_error_once() {
    #[derive(Debug)]
    struct Own;
    impl Display for Own {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("own cause")
        }
    }
    impl Error for Own {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }
    assert_eq!(kinds(&Chain::of(&Own)), ["Own"]);
    assert_eq!(kinds(&Chain::of(&Scripted::new("", Some(Box::new(Own))))), ["Scripted", "Own"]);
}

#[test]
fn an_error_that_begins_with_its_cause_is_not_taken_for_it() {
    #[derive(Debug)]
    struct Wrapper(AdHocError);
    impl Display for Wrapper {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }
    impl Error for Wrapper {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }
    assert_eq!(kinds(&Chain::of(&Wrapper(AdHocError::new("inside").kind("Inside")))), ["Wrapper", "Inside"]);
}

#[test]
fn a_chain_ends_at_fifty() {
    let deep = |len: u32| (1..len).fold(Scripted::new("", None), |inside, _| Scripted::new("", Some(Box::new(inside))));
    assert_eq!(kinds(&Chain::of(&deep(50))).len(), 50);
    assert_eq!(kinds(&Chain::of(&deep(51))).len(), 50);
}

#[test]
fn an_ad_hoc_error_has_a_type_and_a_message() {
    struct Unprintable;
    impl Debug for Unprintable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("in Debug")
        }
    }
    for (error, kind, message) in [
        (AdHocError::new("text"), "Error", "text"),
        (AdHocError::new("").kind("DiskSpace"), "DiskSpace", ""),
        (AdHocError::new("text").kind("no name").kind(""), "Error", "text"),
        (AdHocError::of(&404), "i32", "404"),
        (AdHocError::of(&vec![1, 2]), "Vec", "[1, 2]"),
        (AdHocError::of("text"), "str", "\"text\""),
        (AdHocError::of(&Unprintable), "Unprintable", "a value that cannot be printed"),
    ] {
        let chain = Chain::of(&error);
        assert_eq!((kinds(&chain)[0], chain.entries[0].message.as_str(), chain.is_synthetic), (kind, message, true));
    }
}

#[test]
fn an_invalid_option_is_ignored() {
    let chain = Chain::of(&AdHocError::new("x"));
    let mut options = ExceptionOptions::new()
        .distinct_id(" ")
        .mechanism("")
        .source("Not A Source")
        .source("nodots")
        .fingerprint(" ")
        .prop("bad", std::collections::BTreeMap::from([((1, 2), 3)]))
        .props(3)
        .group("", "acme")
        .prop("good", 1);
    let invalid = std::mem::take(&mut options.invalid);
    assert_eq!(invalid.len(), 3, "{invalid:?}");
    let sent = properties(&chain, options);
    assert_eq!((&sent["good"], sent.get("bad"), sent.get("$groups")), (&json!(1), None, None));
    assert_eq!((sent.get("$exception_source"), sent.get("$exception_fingerprint")), (None, None));
    assert_eq!(sent["$exception_list"][0]["mechanism"]["type"], "generic");
    let good = ExceptionOptions::new().source("tower.middleware").source("bad").mechanism("middleware").mechanism("");
    let sent = properties(&chain, good);
    assert_eq!(sent["$exception_source"], "tower.middleware");
    assert_eq!(sent["$exception_list"][0]["mechanism"]["type"], "middleware");
}

const PRINTED: &str = "   0: std::backtrace_rs::backtrace::libunwind::trace
             at /rustc/abc/library/std/src/../../backtrace/src/backtrace/libunwind.rs:117:9
   1: anyhow::error::<impl anyhow::Error>::msg
             at /home/me/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f/anyhow-1.0.0/src/backtrace.rs:27:14
   2: checkout::total
             at ./src/cart.rs:12:5
      checkout::run
             at ./src/main.rs:40:9
   3: core::ops::function::FnOnce::call_once
   4: _start
";

#[test]
fn an_errors_own_stack_is_sent_without_the_capturing_frames() {
    let printed = ExceptionStack::Printed(parse(PRINTED).unwrap());
    let sent = properties(&Chain::of(&AdHocError::new("x")).with_stack(printed), ExceptionOptions::new());
    let frames = sent["$exception_list"][0]["stacktrace"]["frames"].as_array().unwrap();
    let names: Vec<_> = frames.iter().map(|frame| frame["function"].as_str().unwrap()).collect();
    assert_eq!(names, ["_start", "core::ops::function::FnOnce::call_once", "checkout::run", "checkout::total"]);
    let expected = json!({"platform": "native", "lang": "rust", "function": "checkout::total", "filename": "./src/cart.rs",
        "module": "checkout", "lineno": 12, "in_app": true, "synthetic": false, "client_resolved": true});
    assert_eq!(frames[3], expected);
    assert!(frames[0]["in_app"] == false && frames[1]["in_app"] == false && frames[2]["in_app"] == true);
    assert!(sent.get("$debug_images").is_none());
}

#[test]
fn a_printed_stack_may_be_full_long_or_anything() {
    let full = parse("  12:     0x55d0a1c2a9c1 - checkout::run\n     at src/main.rs:7\n").unwrap();
    assert_eq!(full, parse(" 0: checkout::run\n at src/main.rs:7:1").unwrap());
    let long: String = (0..1000).map(|at| format!("{at}: f{at}\n")).collect();
    let shown = format!("{:?}", parse(&long).unwrap());
    assert!(
        shown.contains("\"f95\"")
            && !shown.contains("\"f96\"")
            && shown.contains("\"f968\"")
            && !shown.contains("\"f967\"")
    );
    for nothing in ["", "disabled backtrace", "at x:1:1", "note: some", "1:", "\u{1f600}: x"] {
        assert_eq!(parse(nothing), None, "{nothing}");
    }
    assert_eq!(
        stack_below(&format_args!("an error\n\nStack backtrace:\n   0: checkout::run")),
        parse("0: checkout::run")
    );
    assert_eq!(stack_below(&format_args!("an error")), None);
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_printed_stack_or_none(text in "([0-9]{0,3}: ?| *at |<|::|x|[:/\\n]|\\PC){0,60}") {
        if let Some(printed) = parse(&text) {
            let chain = Chain::of(&AdHocError::new("x")).with_stack(ExceptionStack::Printed(printed));
            properties(&chain, ExceptionOptions::new());
        }
    }
}
