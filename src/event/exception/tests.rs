//! What errors of every kind say, honest and not.

use std::error::Error;
use std::fmt::{self, Debug, Display};

use serde_json::{Value, json};
use uuid::Uuid;

use super::chain::Chain;
use super::options::ExceptionOptions;
use super::printed::Printed;
use super::report::Trace;
use super::thrown::AdHocError;
use super::type_name::short;
use crate::event::Stamp;
use crate::record::{NoSymbols, View, json::write_event};

/// An error whose every word is as the test wants it.
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

fn kinds(chain: &Chain) -> Vec<&str> {
    std::iter::once(&chain.outermost).chain(&chain.causes).map(|link| link.kind.as_str()).collect()
}

fn properties(chain: &Chain, trace: &Trace<'_>, options: ExceptionOptions) -> Value {
    let stamp = Stamp { uuid: Uuid::nil(), now_nanos: 0 };
    let record = chain.describe(trace, options.distinct_id("user_1")).finish(&stamp, 1 << 20).unwrap();
    let mut out = Vec::new();
    write_event(&View::parse(record.body()).unwrap(), &NoSymbols, &mut out).unwrap();
    serde_json::from_slice::<Value>(&out).unwrap()["properties"].clone()
}

#[test]
fn a_type_is_named_by_its_last_part_and_one_called_error_by_the_part_before_too() {
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
fn behind_dyn_a_type_is_what_its_debug_text_begins_with_if_that_looks_like_one() {
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
fn what_panics_fails_or_never_ends_costs_only_what_it_would_have_said() {
    let panics = Scripted { message: Box::new(|| panic!("in Display")), source: None, debug: "" };
    let chain = Chain::of(&panics);
    assert_eq!((chain.outermost.message.as_str(), chain.broken), ("", Some("Display")));

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
    assert_eq!((chain.causes.len(), chain.causes[0].message.as_str()), (1, "begun"));
    assert_eq!(chain.broken, Some("source"));

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
    assert_eq!((chain.outermost.message.len(), chain.broken), (9_999, None), "as much as fits of whole letters");
}

#[test]
fn a_chain_that_leads_in_a_circle_has_each_error_once() {
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
fn what_is_no_error_has_a_type_and_a_text() {
    struct Unprintable;
    impl Debug for Unprintable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("in Debug")
        }
    }
    for (thrown, kind, message) in [
        (AdHocError::new("text"), "Error", "text"),
        (AdHocError::new("").kind("DiskSpace"), "DiskSpace", ""),
        (AdHocError::new("text").kind("no name").kind(""), "Error", "text"),
        (AdHocError::of(&404), "i32", "404"),
        (AdHocError::of(&vec![1, 2]), "Vec", "[1, 2]"),
        (AdHocError::of("text"), "str", "\"text\""),
        (AdHocError::of(&Unprintable), "Unprintable", "a value that cannot be printed"),
    ] {
        let chain = Chain::of(&thrown);
        assert_eq!((kinds(&chain)[0], chain.outermost.message.as_str(), chain.is_thrown), (kind, message, true));
    }
}

#[test]
fn what_is_malformed_is_as_if_it_was_not_said() {
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
    let left_out = options.take_left_out();
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    let sent = properties(&chain, &Trace::None, options);
    assert_eq!((&sent["good"], sent.get("bad"), sent.get("$groups")), (&json!(1), None, None));
    assert_eq!((sent.get("$exception_source"), sent.get("$exception_fingerprint")), (None, None));
    assert_eq!(sent["$exception_list"][0]["mechanism"]["type"], "generic");
    let good = ExceptionOptions::new().source("tower.middleware").source("bad").mechanism("middleware").mechanism("");
    let sent = properties(&chain, &Trace::None, good);
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
fn a_stack_that_an_error_brought_along_is_sent_without_the_frames_that_captured_it() {
    let printed = Printed::parse(PRINTED).unwrap();
    let sent = properties(&Chain::of(&AdHocError::new("x")), &Trace::Brought(printed), ExceptionOptions::new());
    let frames = sent["$exception_list"][0]["stacktrace"]["frames"].as_array().unwrap();
    let names: Vec<_> = frames.iter().map(|frame| frame["function"].as_str().unwrap()).collect();
    assert_eq!(names, ["_start", "core::ops::function::FnOnce::call_once", "checkout::run", "checkout::total"]);
    let expected = json!({"platform": "native", "lang": "rust", "function": "checkout::total", "filename": "./src/cart.rs",
        "lineno": 12, "in_app": true, "synthetic": false, "client_resolved": true});
    assert_eq!(frames[3], expected);
    assert!(frames[0]["in_app"] == false && frames[1]["in_app"] == false && frames[2]["in_app"] == true);
    assert!(sent.get("$debug_images").is_none());
}

#[test]
fn a_printed_stack_may_be_full_long_or_anything() {
    let full = Printed::parse("  12:     0x55d0a1c2a9c1 - checkout::run\n     at src/main.rs:7\n").unwrap();
    assert_eq!(full, Printed::parse(" 0: checkout::run\n at src/main.rs:7:1").unwrap());
    let long: String = (0..1000).map(|at| format!("{at}: f{at}\n")).collect();
    let shown = format!("{:?}", Printed::parse(&long).unwrap());
    assert!(
        shown.contains("\"f95\"")
            && !shown.contains("\"f96\"")
            && shown.contains("\"f968\"")
            && !shown.contains("\"f967\"")
    );
    for nothing in ["", "disabled backtrace", "at x:1:1", "note: some", "1:", "\u{1f600}: x"] {
        assert_eq!(Printed::parse(nothing), None, "{nothing}");
    }
    assert_eq!(
        Printed::below(&format_args!("an error\n\nStack backtrace:\n   0: checkout::run")),
        Printed::parse("0: checkout::run")
    );
    assert_eq!(Printed::below(&format_args!("an error")), None);
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_printed_stack_or_none(text in "([0-9]{0,3}: ?| *at |<|::|x|[:/\\n]|\\PC){0,60}") {
        if let Some(printed) = Printed::parse(&text) {
            properties(&Chain::of(&AdHocError::new("x")), &Trace::Brought(printed), ExceptionOptions::new());
        }
    }
}
