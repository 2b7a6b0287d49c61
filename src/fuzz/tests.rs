//! Each fuzz target on the inputs that the fuzzers have kept.

use std::fs;
use std::path::Path;

use super::*;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 17] = [
    ("arena", arena),
    ("crash_file", crash_file),
    ("debug_file", debug_file),
    ("flags", flags),
    ("flags_answer", flags_answer),
    ("headers", headers),
    ("identity", identity),
    ("import", import),
    ("kept_flags", kept_flags),
    ("proxies", proxies),
    ("queue", queue),
    ("record", record),
    ("remote_config", remote_config),
    ("response", response),
    ("stack", stack),
    ("store_row", store_row),
    ("variables", variables),
];

/// The package as it is published has no corpora.
fn corpora() -> Option<std::path::PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    fuzz.is_dir().then(|| fuzz.join("corpus"))
}

#[test]
fn every_input_that_the_fuzzers_kept_is_handled() {
    let Some(corpora) = corpora() else { return };
    for (name, target) in TARGETS {
        let inputs: Vec<_> = fs::read_dir(corpora.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{name} has a corpus");
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            let result = std::panic::catch_unwind(|| target(&bytes));
            assert!(result.is_ok(), "{name} fails on {}", input.display());
        }
    }
}

#[test]
fn every_fuzz_target_is_replayed_by_the_tests() {
    let Some(corpora) = corpora() else { return };
    let sources = fs::read_dir(corpora.with_file_name("fuzz_targets")).unwrap();
    let mut names: Vec<_> =
        sources.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names, TARGETS.map(|(name, _)| name));
}
