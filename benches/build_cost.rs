//! Build time of the library: `cargo bench --bench build_cost`. Takes a minute or more.
//!
//! Measures a cold release build of the library alone, in its own target directory and with the packages already
//! downloaded, and counts the packages.

mod support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Instant;

use support::row;

fn main() {
    support::heading();
    let crates = crates();
    row("compiled packages, including the library", &crates.len().to_string(), "", "");
    let target = support::queue_dir();
    let start = Instant::now();
    let built = cargo()
        .args(["build", "--release", "--lib", "--quiet", "--target-dir"])
        .arg(target.path())
        .stderr(Stdio::inherit())
        .status()
        .expect("cargo can be run");
    assert!(built.success(), "the library does not build");
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let figure = format!("{:.0?} on {processors} processors", start.elapsed());
    row("cold release build of the library", &figure, "", "HTTP, runtime and store alone: 45 s");
}

fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Name and version of each package in a build for this machine, without tests.
fn crates() -> BTreeSet<String> {
    let tree =
        cargo().args(["tree", "--edges", "normal,build", "--prefix", "none"]).output().expect("cargo can be run");
    let text = String::from_utf8_lossy(&tree.stdout);
    text.lines()
        .filter_map(|line| {
            Some(line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).filter(|line| !line.is_empty())
        })
        .collect()
}
