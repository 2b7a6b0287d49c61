//! What the documents name is there: each test that stands beside a promise, and each file that a document points to.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands, in its helping functions too")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between backquotes, outside of blocks of code.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|part| part.split('`').skip(1).step_by(2))
}

fn is_name_of_a_test(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.chars().all(is_word) && text.matches('_').count() >= 4
}

fn sources_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_test_that_the_guarantees_name_exists() {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "crash-tests"] {
        sources_below(&root().join(folder), &mut paths);
    }
    let sources: Vec<_> = paths.iter().map(|path| (path, fs::read_to_string(path).unwrap())).collect();
    let document = include_str!("../docs/guarantees.md");
    let mut seen = 0;
    let mut missing = Vec::new();
    for text in quoted(document) {
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
    assert!(missing.is_empty(), "no such test: {missing:#?}");
    assert!(seen > 40, "only {seen} names were found: the document has another form by now");
}

#[test]
fn each_file_that_a_document_points_to_exists() {
    let mut documents = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    documents.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    let mut missing = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            let is_elsewhere = target.contains("://") || target.starts_with('#');
            if !is_elsewhere && !document.with_file_name(target).exists() {
                missing.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
