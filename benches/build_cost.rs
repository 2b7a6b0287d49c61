//! What a program pays to depend on the library, beside the official client: `cargo bench --bench build_cost`. Takes
//! several minutes.
//!
//! Builds the same small program twice, once with each client, as a user's first release build: in a target directory
//! of its own, with packages that are already downloaded, in the versions that `benches/peers/Cargo.lock` names.
//! Compared are the compiled packages, the time until the program is there, the processor time that this took (which
//! depends less on what else the machine does), and the size of the stripped program.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// The program without a client: what a daemon has anyway is not the cost of a client.
const COMMON: &str = "tokio = { version = \"1\", features = [\"macros\", \"rt-multi-thread\"] }\n";

const OURS: &str = r#"
#[tokio::main]
async fn main() {
    let client = posthog::Client::new(posthog::Config::new("phc_example")).expect("the directory is usable");
    let _ = client.capture(posthog::Event::new("started", "user_1"));
    let _ = client.shutdown(std::time::Duration::from_secs(10)).await;
}
"#;

const THEIRS: &str = r#"
#[tokio::main]
async fn main() {
    let client = posthog_rs::client("phc_example").await;
    client.capture(posthog_rs::Event::new("started", "user_1"));
    client.shutdown().await;
}
"#;

/// What one program cost.
struct Cost {
    packages: usize,
    took: Duration,
    processor: Duration,
    bytes: u64,
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ours = format!("posthog = {{ package = \"posthog-durable\", path = \"{}\" }}\n", root.display());
    let ours = cost(&ours, OURS);
    let theirs = cost("posthog-rs = \"0.30\"\n", THEIRS);
    println!("| a program that captures | with posthog-rs 0.30 | with this library |");
    println!("|---|---|---|");
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    line("compiled packages", &theirs, &ours, |cost| cost.packages.to_string());
    line(&format!("cold release build, {processors} processors"), &theirs, &ours, |cost| format!("{:.0?}", cost.took));
    line("processor time of that build", &theirs, &ours, |cost| format!("{:.0?}", cost.processor));
    line("size, stripped", &theirs, &ours, |cost| format!("{:.1} MB", cost.bytes as f64 / 1e6));
}

fn line(what: &str, theirs: &Cost, ours: &Cost, figure: impl Fn(&Cost) -> String) {
    println!("| {what} | {} | {} |", figure(theirs), figure(ours));
}

/// Builds a program with this dependency.
fn cost(dependency: &str, program: &str) -> Cost {
    let package = support::queue_dir();
    let path = package.path();
    let manifest = format!(
        "[workspace]\n[package]\nname = \"program\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [dependencies]\n{COMMON}{dependency}[profile.release]\nstrip = true\n"
    );
    fs::create_dir(path.join("src")).expect("a directory can be made");
    fs::write(path.join("Cargo.toml"), manifest).expect("a file can be written");
    fs::write(path.join("src/main.rs"), program).expect("a file can be written");
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/Cargo.lock");
    fs::copy(lock, path.join("Cargo.lock")).expect("the versions to compare are known");
    // Removes from the lock what this program does not need, so that the build is only a build.
    let packages = packages(path);
    let (busy, start) = (children(), Instant::now());
    let built = cargo(path).args(["build", "--release", "--quiet"]).stderr(Stdio::inherit()).status();
    assert!(built.expect("cargo can be run").success(), "the program does not build");
    let bytes = fs::metadata(path.join("target/release/program")).expect("the program is there").len();
    Cost { packages, took: start.elapsed(), processor: children().saturating_sub(busy), bytes }
}

/// The processor time of all processes that were started here and have ended.
fn children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A command whose target directory is inside the package, whatever the caller's environment says.
fn cargo(package: &Path) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(package).arg("--config").arg("build.target-dir='target'");
    for (name, _) in std::env::vars_os() {
        // `cargo bench` sets variables for the package that is benched.
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_") && name != "CARGO_HOME") {
            cargo.env_remove(name);
        }
    }
    cargo.env_remove("RUSTFLAGS");
    cargo
}

/// The number of packages in a build for this machine, without the program itself.
fn packages(package: &Path) -> usize {
    let tree = cargo(package).args(["tree", "--edges", "normal,build", "--prefix", "none"]).output();
    let tree = tree.expect("cargo can be run");
    assert!(tree.status.success(), "the packages are not there: {}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8_lossy(&tree.stdout);
    let named = text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    let named: BTreeSet<String> = named.filter(|line| !line.is_empty()).collect();
    named.len().saturating_sub(1)
}
