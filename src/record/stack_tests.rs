//! Stack traces: from addresses to JSON, and from untrusted bytes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::json::write_ext;
use super::stack::{IMAGES_EXT, Image, STACK_EXT, Stack, append_debug_images, debug_images};
use super::symbols::{NoSymbols, SourceLines, Symbol, Symbols};

const BUILD_ID: [u8; 20] = [
    0x55, 0x53, 0x98, 0xeb, 0xd0, 0x1c, 0x90, 0x28, 0x5a, 0x3d, 0x85, 0x13, 0x8a, 0x19, 0xcb, 0xf9, 0xbb, 0xce, 0xc3,
    0x52,
];

const APP: Image<'_> =
    Image { address: 0x5000, size: 0x1000, vmaddr: 0, is_main: true, build_id: &BUILD_ID, path: "/app/checkout" };
const LIBC: Image<'_> =
    Image { address: 0x9000, size: 0x800, vmaddr: 0, is_main: false, build_id: &[7; 4], path: "/lib/libc.so.6" };
const VDSO: Image<'_> =
    Image { address: 0xf000, size: 0x100, vmaddr: 0x400, is_main: false, build_id: &[], path: "linux-vdso.so.1" };
const LOADED: [Image<'_>; 3] = [APP, LIBC, VDSO];

/// The content of an extension value, without its header.
fn content(append: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    append(&mut out);
    out.split_off(6)
}

fn shown(kind: i8, content: &[u8], symbols: &dyn Symbols) -> Value {
    let mut out = Vec::new();
    write_ext(kind, content, symbols, &mut out);
    serde_json::from_slice(&out).unwrap()
}

fn frames_of(addresses: &[u64], symbols: &dyn Symbols) -> Vec<Value> {
    let stack = Stack::locate(addresses, &LOADED);
    let shown = shown(STACK_EXT, &content(|out| stack.append(out)), symbols);
    assert_eq!(shown["type"], "raw");
    shown["frames"].as_array().unwrap().clone()
}

/// Resolves one address to two functions, one of them inlined into the other.
#[derive(Debug)]
struct Known;

impl Symbols for Known {
    fn resolve(&self, image: &Image<'_>, address: u64) -> Vec<Symbol> {
        let named = |function: &str, line| Symbol {
            function: function.into(),
            file: Some("/app/src/main.rs".into()),
            line: Some(line),
        };
        match address - image.address {
            0x10 => vec![named("checkout::run", 40), named("checkout::total", 12)],
            _ => Vec::new(),
        }
    }

    fn source(&self, _file: &str, line: u32) -> Option<SourceLines> {
        (line == 40).then(|| SourceLines { before: vec!["a".into()], line: "b".into(), after: Vec::new() })
    }
}

#[test]
fn without_symbols_frames_are_named_by_offsets_in_images() {
    let expected = json!([
        {"platform": "native", "lang": "rust", "synthetic": false, "instruction_addr": "0x1", "in_app": false,
            "client_resolved": false},
        {"platform": "native", "lang": "rust", "synthetic": false, "instruction_addr": "0x9100", "image_addr": "0x9000",
            "function": "libc.so.6+0x100", "in_app": false, "client_resolved": false},
        {"platform": "native", "lang": "rust", "synthetic": false, "instruction_addr": "0x5010", "image_addr": "0x5000",
            "function": "checkout+0x10", "in_app": true, "client_resolved": false},
    ]);
    assert_eq!(json!(frames_of(&[0x5010, 0x9100, 1], &NoSymbols)), expected);
}

#[test]
fn inlined_functions_follow_the_one_they_are_inlined_in() {
    let frames = frames_of(&[0x5010], &Known);
    let [physical, inlined] = frames.as_slice() else { panic!("{frames:#?}") };
    let expected = json!({"platform": "native", "lang": "rust", "synthetic": false, "instruction_addr": "0x5010",
        "image_addr": "0x5000", "function": "checkout::run", "module": "checkout", "filename": "/app/src/main.rs", "lineno": 40, "in_app": true,
        "client_resolved": true, "pre_context": ["a"], "context_line": "b", "post_context": []});
    assert_eq!(*physical, expected);
    assert_eq!((&inlined["function"], &inlined["inline"]), (&json!("checkout::total"), &json!(true)));
    assert_eq!(inlined["instruction_addr"], physical["instruction_addr"]);
    assert!(inlined.get("context_line").is_none(), "no source is known for that line");
}

#[test]
fn the_frame_that_converts_an_error_is_not_in_app() {
    /// The innermost frame is a conversion that is inlined into a handler; or a panic inside of one.
    #[derive(Debug)]
    struct Converting {
        panics: bool,
    }
    impl Symbols for Converting {
        fn resolve(&self, image: &Image<'_>, address: u64) -> Vec<Symbol> {
            let named = |function: &str| Symbol { function: function.into(), ..Symbol::default() };
            match address - image.address {
                0x10 if self.panics => vec![named("std::panicking::panic_with_hook")],
                0x10 => Vec::new(),
                0x20 => vec![named("app::get"), named("<app::Error as core::convert::From<E>>::from")],
                _ => vec![named("app::main")],
            }
        }

        fn source(&self, _: &str, _: u32) -> Option<SourceLines> {
            None
        }
    }
    let in_app = |addresses: &[u64], panics| {
        let frames = frames_of(addresses, &Converting { panics });
        frames.iter().map(|frame| frame["in_app"] == true).collect::<Vec<_>>()
    };
    assert_eq!(in_app(&[0x5020, 0x5030], false), [true, true, false], "main, the handler, the conversion");
    assert_eq!(in_app(&[0x5010, 0x5020, 0x5030], true), [true, true, true], "the conversion panicked");
    assert_eq!(in_app(&[0x5010, 0x5020], false), [true, true, true], "an unknown frame is the innermost");
}

#[test]
fn a_frame_without_a_file_has_no_module() {
    #[derive(Debug)]
    struct NamesOnly;
    impl Symbols for NamesOnly {
        fn resolve(&self, _: &Image<'_>, _: u64) -> Vec<Symbol> {
            vec![Symbol { function: "checkout::run".into(), ..Symbol::default() }]
        }

        fn source(&self, _: &str, _: u32) -> Option<SourceLines> {
            None
        }
    }
    let frames = frames_of(&[0x5010], &NamesOnly);
    assert_eq!((&frames[0]["function"], frames[0].get("module")), (&json!("checkout::run"), None));
}

#[test]
fn an_address_after_the_last_call_belongs_to_its_image() {
    assert_eq!(frames_of(&[0x6000], &NoSymbols)[0]["image_addr"], "0x5000");
    assert_eq!(frames_of(&[0x5000], &NoSymbols)[0].get("image_addr"), None);
}

#[test]
fn of_a_deep_stack_both_ends_are_kept() {
    let addresses: Vec<u64> = (1..=10_000).collect();
    let frames = frames_of(&addresses, &NoSymbols);
    let address = |at: usize| frames[at]["instruction_addr"].as_str().unwrap().to_owned();
    assert_eq!(frames.len(), 128);
    assert_eq!([address(0), address(31), address(32), address(127)], ["0x2710", "0x26f1", "0x60", "0x1"]);
    assert_eq!(frames_of(&addresses[..100], &NoSymbols).len(), 100);
}

#[test]
fn debug_images_are_those_with_a_build_id_each_once() {
    let stacks = [&[0x5010, 0x5020, 0xf010][..], &[0x5030]].map(|addresses| Stack::locate(addresses, &LOADED));
    let images = debug_images(stacks.iter());
    let arch = if cfg!(target_arch = "x86_64") { "x86_64" } else { "arm64" };
    let expected = json!([{"type": "elf", "arch": arch, "debug_id": "eb985355-1cd0-2890-5a3d-85138a19cbf9",
        "image_addr": "0x5000", "image_vmaddr": "0x0", "image_size": 4096, "code_file": "/app/checkout"}]);
    assert_eq!(shown(IMAGES_EXT, &content(|out| append_debug_images(&images, out)), &NoSymbols), expected);
    assert!(debug_images([Stack::locate(&[0xf010, 3], &LOADED)].iter()).is_empty());
}

#[test]
fn a_short_build_id_is_a_debug_id_filled_up_with_zeros() {
    assert_eq!(LIBC.debug_id().unwrap().to_string(), "07070707-0000-0000-0000-000000000000");
}

#[test]
fn a_value_that_is_not_a_stack_is_null() {
    let stack = Stack::locate(&[0x5010, 0x9100, 1], &LOADED);
    let good = content(|out| stack.append(out));
    for cut in 0..good.len() {
        assert_eq!(shown(STACK_EXT, &good[..cut], &NoSymbols), Value::Null, "cut at {cut}");
    }
    assert_eq!(shown(STACK_EXT, &[&good[..], &[0xc0]].concat(), &NoSymbols), Value::Null);
    assert_eq!(shown(IMAGES_EXT, &good, &NoSymbols), Value::Null);
    assert_eq!(shown(99, &good, &NoSymbols), Value::Null);
    // Four billion images, and a frame in an image that does not exist.
    assert_eq!(shown(STACK_EXT, &[0x92, 0xdd, 0xff, 0xff, 0xff, 0xff], &NoSymbols), Value::Null);
    assert_eq!(shown(STACK_EXT, &[0x92, 0x90, 0x92, 0x00, 0x01], &NoSymbols), Value::Null);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_stack_reads_back_as_it_was_located(addresses in prop::collection::vec(any::<u64>(), 0..300), near in any::<bool>()) {
        let addresses: Vec<u64> = addresses.iter().map(|at| if near { at % 0x10000 } else { *at }).collect();
        let stack = Stack::locate(&addresses, &LOADED);
        let written = content(|out| stack.append(out));
        prop_assert_eq!(Stack::decode(&written), Some(stack));
    }

    #[test]
    fn any_bytes_are_a_stack_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in -2i8..4) {
        shown(kind, &bytes, &Known);
    }

    #[test]
    fn a_stack_with_a_wrong_byte_is_still_json(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let stack = Stack::locate(&[0x5010, 0x9100, 1, 0xf010], &LOADED);
        let mut written = content(|out| stack.append(out));
        let at = at.index(written.len());
        written[at] = byte;
        shown(STACK_EXT, &written, &Known);
    }
}
