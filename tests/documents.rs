//! Documents are consistent with the repository: tests that they name exist, files that they link to exist, and all
//! sources and texts are ASCII.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

#[path = "../benches/peers/src/chart.rs"]
mod chart;

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The texts between backquotes, outside of blocks of code.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2))
}

fn is_name_of_a_test(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.chars().all(is_word) && text.matches('_').count() >= 4
}

/// The files below `dir` with one of these extensions; build directories are left out.
fn files_below(dir: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files_below(&path, extensions, found);
        } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
            found.push(path);
        }
    }
}

#[test]
fn each_test_that_the_documents_name_exists() {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "crash-tests"] {
        files_below(&root().join(folder), &["rs"], &mut paths);
    }
    let sources: Vec<_> = paths.iter().map(|path| (path, fs::read_to_string(path).unwrap())).collect();
    let documents = [
        ("guarantees", include_str!("../docs/guarantees.md"), 40),
        ("conformance", include_str!("../docs/conformance.md"), 60),
        ("runs", include_str!("../docs/runs.md"), 20),
        ("crashes", include_str!("../docs/crashes.md"), 8),
        ("deployment", include_str!("../docs/deployment.md"), 15),
    ];
    for (document, text, least) in documents {
        let seen = must_name_existing_tests(&sources, document, text);
        assert!(seen > least, "only {seen} names of tests were found in {document}: has its form changed?");
    }
}

/// The number of tests that a document names.
fn must_name_existing_tests(sources: &[(&PathBuf, String)], document: &str, text: &str) -> usize {
    let mut seen = 0;
    let mut missing = Vec::new();
    for text in quoted(text) {
        let (file, name) = match text.split_once(": ") {
            Some((file, name)) => (root().join(file), name),
            None => (root().to_path_buf(), text),
        };
        if is_name_of_a_test(name) {
            let wanted = format!("fn {name}(");
            let exists = sources.iter().any(|(path, source)| path.starts_with(&file) && source.contains(&wanted));
            seen += 1;
            if !exists {
                missing.push(text);
            }
        }
    }
    assert!(missing.is_empty(), "{document} names tests that do not exist: {missing:#?}");
    seen
}

/// The reverse: each test of a requirement is in the table of `docs/conformance.md`.
#[test]
fn each_test_of_a_requirement_is_in_the_table_of_conformance() {
    let mut paths = Vec::new();
    files_below(&root().join("tests/conformance"), &["rs"], &mut paths);
    let table = include_str!("../docs/conformance.md");
    let sources = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect::<String>();
    let mut count = 0;
    let mut missing = Vec::new();
    for part in sources.split("fn ").skip(1) {
        let name = part.split('(').next().unwrap_or_default();
        let number = name.split('_').nth(1);
        let is_of_a_requirement = number.is_some_and(|number| number.len() == 2 && number.parse::<u8>().is_ok());
        if is_of_a_requirement {
            count += 1;
            missing.extend((!table.contains(&format!("`{name}`"))).then_some(name));
        }
    }
    assert!(count > 60 && missing.is_empty(), "{count} tests, of which the table does not name: {missing:#?}");
}

/// A reader of the package, without a checkout, can follow the links of the readme.
#[test]
fn each_file_that_the_readme_links_to_is_part_of_the_package() {
    let manifest = include_str!("../Cargo.toml");
    let included = manifest.lines().find(|line| line.starts_with("include = ")).unwrap();
    let targets: Vec<_> = links(include_str!("../README.md")).filter(|target| !target.contains("://")).collect();
    let is_in = |target: &&str| {
        let top = target.split('/').next().unwrap_or_default();
        included.contains(&format!("\"/{top}\""))
    };
    assert!(targets.len() > 3 && targets.iter().all(is_in), "{targets:?} of {included}");
}

/// The targets of the links in a text.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

#[test]
fn each_file_that_a_document_links_to_exists() {
    let mut documents: Vec<_> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name)).into();
    documents.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut missing = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        for target in links(&text) {
            let is_elsewhere = target.contains("://") || target.starts_with('#');
            if !is_elsewhere && !document.with_file_name(target).exists() {
                missing.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `cargo run --manifest-path benches/peers/Cargo.toml -- chart` draws it anew.
#[test]
fn the_chart_of_the_readme_shows_the_recorded_figures() {
    let drawn = chart::draw(include_str!("../docs/performance.md")).unwrap();
    assert!(drawn == include_str!("../docs/peers.svg"), "docs/peers.svg is not the chart of these figures:\n{drawn}");
    assert!(include_str!("../README.md").contains("(docs/peers.svg)"));
}

/// A newcomer reads all of it.
#[test]
fn the_readme_is_short_enough_to_be_read() {
    let lines = include_str!("../README.md").lines().count();
    assert!(lines <= 150, "{lines} lines; what is more belongs to docs/");
}

#[test]
fn sources_and_texts_are_ascii() {
    let mut paths: Vec<_> =
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Cargo.toml"].map(|name| root().join(name)).into();
    for folder in ["src", "tests", "examples", "benches", "crash-tests", "fuzz", "docs"] {
        files_below(&root().join(folder), &["rs", "md", "toml"], &mut paths);
    }
    assert!(paths.len() > 200);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = (1..).zip(text.lines()).filter(|(_, line)| !line.is_ascii()).map(|(at, _)| at).collect();
        assert!(lines.is_empty(), "{}: lines {lines:?} are not ASCII", path.display());
    }
}
