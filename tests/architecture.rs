//! Architecture rules, checked against the sources: which module may use which, where a package and where `unsafe` may
//! be used, how long a file may be, and which folders are free of circular imports.
//!
//! What clippy checks (unwrap, `SAFETY:` comments, printing, the length of functions) is configured in `Cargo.toml` and
//! `clippy.toml`. Each rule is first applied to an example that breaks it, so a rule that no longer finds anything
//! fails too. An exception is listed with its reason, and one that is no longer needed fails unless its table says
//! otherwise.

#[path = "architecture/public_api.rs"]
mod public_api;
#[path = "architecture/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use source::{Source, heads, sources};

/// The layer of each module. A module may use modules of a lower layer only; see also `SAME_LAYER`. A module of this
/// table need not exist.
const LAYERS: &[(&str, u8)] = &[
    ("lib", 8),
    ("fuzz", 8),
    ("bin", 8),
    ("testing", 8),
    ("inspect", 8),
    ("client", 7),
    ("integrations", 7),
    ("config", 6),
    ("error", 6),
    ("recorder", 6),
    ("pipeline", 5),
    ("delivery", 4),
    ("flags", 4),
    ("crash", 4),
    ("report", 3),
    ("context", 2),
    ("event", 2),
    ("queue", 2),
    ("record", 1),
    ("sys", 0),
    ("transport", 0),
];

/// Modules of one layer of which the first may use the second, with the reason.
const SAME_LAYER: &[(&str, &str, &str)] = &[
    ("fuzz", "inspect", "what an operator imports is any bytes too"),
    ("config", "error", "a setting that is out of bounds is an error that names it"),
    ("integrations", "client", "an integration captures with a client, and looks up the process-wide one"),
    ("config", "recorder", "the hook for diagnostics is a setting"),
    ("integrations", "client", "an integration captures with the public calls of a client"),
    (
        "transport",
        "sys",
        "the clock for Retry-After dates, limits for quoted text, the throttle for reading certificates, the guard around a \
         subscriber that panics",
    ),
];

/// The queue stores bytes and knows neither PostHog nor HTTP: besides `sys` it may use nothing of this crate but this,
/// with the reason. An entry that is no longer needed may stay until it is removed.
const QUEUE_MAY_USE: &[(&str, &str)] = &[
    ("sys", "disk, clock and limits"),
    ("record", "the frame around each record, and the class that eviction sorts by"),
];

/// A package, and the only modules that may use it.
const PACKAGES: &[(&str, &[&str])] = &[
    ("redb", &["queue"]),
    ("addr2line", &["crash"]),
    ("backtrace", &["crash"]),
    ("object", &["crash"]),
    ("metrics", &["recorder"]),
    ("reqwest", &["transport"]),
    ("rustls", &["transport"]),
    ("rmp", &["record"]),
    ("rmp_serde", &["record"]),
    ("signal_hook", &["crash", "bin"]),
    // Besides files and locks: a crash point kills its own process, the two threads block their signals, names of users are
    // for an operator, and `--watch` waits for a signal.
    ("nix", &["sys", "queue", "crash", "pipeline", "inspect", "bin"]),
];

/// Modules that give the same bytes for the same input: they read no clock, disk, network or environment.
const PURE: &[&str] = &["event", "record"];
const IMPURE_STD: &[&str] = &["env", "fs", "net", "process", "thread"];

/// Where `unsafe` is allowed: mappings, fork handlers, signal handlers, a test that forks, code between a fork and an
/// `exec`.
const UNSAFE_FILES: &[&str] = &[
    "src/crash/",
    "src/sys/disk/fork.rs",
    "src/sys/disk/map.rs",
    "tests/outside/process.rs",
    "tests/sink/src/child.rs",
    "crash-tests/src/bin/",
];

/// Folders in which no file may import an item from its parent's `mod.rs` if that `mod.rs` uses the file.
const WITHOUT_CIRCLES: &[&str] = &["src/context/", "src/event/", "src/record/", "src/sys/", "src/transport/"];

/// Code of a file, without its tests.
const FILE_LINES: usize = 800;

/// Rule, file, reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("purity", "src/event/uuids.rs", "uuids must differ: the process id goes into the seed of their generator"),
    ("unsafe", "crash-tests/library/src/lib.rs", "functions that C calls, with strings of C"),
    ("unsafe", "examples/crash_report.rs", "it shows the crash report of a process that reads unmapped memory"),
    ("unsafe", "benches/support/allocations.rs", "counting allocations needs an allocator, whose trait is unsafe"),
];

const LIBRARY: &[&str] = &["src/"];
const EVERYWHERE: &[&str] = &["src/", "tests/", "examples/", "benches/", "crash-tests/", "fuzz/"];

static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| sources(EVERYWHERE));

/// A place that breaks a rule.
struct Violation {
    line: usize,
    why: String,
}

fn violation(line: usize, why: impl Into<String>) -> Violation {
    Violation { line, why: why.into() }
}

/// Applies `rule` to every file below `folders` and fails with the list of violations. Fails too if `rule` does not
/// find one in the text `bad`, taken as the file `bad_path`.
fn check(name: &str, folders: &[&str], (bad_path, bad): (&str, &str), rule: impl Fn(&Source) -> Vec<Violation>) {
    assert!(!rule(&Source::parse(bad_path, bad)).is_empty(), "the rule `{name}` finds nothing in its own bad example");
    let mut found = Vec::new();
    let mut unused: BTreeSet<_> = EXCEPTIONS.iter().filter(|(rule, ..)| *rule == name).map(|(_, at, _)| *at).collect();
    for source in SOURCES.iter().filter(|source| folders.iter().any(|folder| source.path.starts_with(folder))) {
        for Violation { line, why } in rule(source) {
            let is_excepted = EXCEPTIONS.iter().any(|(rule, at, _)| *rule == name && *at == source.path);
            unused.remove(source.path.as_str());
            if !is_excepted {
                found.push(format!("{}:{line}: {why}", source.path));
            }
        }
    }
    found.extend(unused.iter().map(|at| format!("{at}: its exception from `{name}` is no longer needed")));
    assert!(found.is_empty(), "{name}:\n{}\n", found.join("\n"));
}

fn layer_of(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// The modules directly below the crate's root that a file names outside of its tests, each with its line. `*` and
/// `self` are returned as they stand.
fn named_modules(source: &Source) -> Vec<(String, usize)> {
    let tokens = source.shipped();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut named = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let start = at;
        at += 1;
        if !matches!(text(start), "crate" | "super") || text(at) != "::" || (start > 0 && text(start - 1) == "::") {
            continue;
        }
        let mut above = usize::from(text(start) == "super");
        while text(at + 1) == "super" {
            above += 1;
            at += 2;
        }
        let depth = source.depth() + tokens[start].inline_modules;
        // A path that stays inside the file's own module names no other.
        if text(start) == "super" && depth > above {
            continue;
        }
        named.extend(heads(&tokens, at + 1).into_iter().map(|head| (head.text.clone(), head.line)));
    }
    named
}

#[test]
fn every_module_has_a_layer() {
    check("layer", LIBRARY, ("src/attic/mod.rs", "//! Header."), |source| match layer_of(source.module()) {
        Some(_) => Vec::new(),
        None => vec![violation(1, format!("`{}` has no layer: add it to LAYERS", source.module()))],
    });
}

fn breaks_of_the_layers(source: &Source) -> Vec<Violation> {
    let own = source.module();
    let judge = |(other, line): (String, usize)| {
        // In a program, `crate` is the program: it reaches this library by its name only.
        if other == own || own == "lib" || own == "bin" {
            return None;
        }
        let is_allowed = |(from, to, _): &(&str, &str, &str)| *from == own && *to == other;
        let why = match (layer_of(own), layer_of(&other)) {
            (Some(own), Some(other)) if other < own => return None,
            (Some(own), Some(other)) if other == own && SAME_LAYER.iter().any(is_allowed) => return None,
            (Some(own), Some(other)) if other == own => "which is in the same layer",
            (_, Some(_)) => "which is in a higher layer",
            (_, None) => "which is reached through the crate's root: name the module that defines it",
        };
        Some(violation(line, format!("`{own}` uses `{other}`, {why}")))
    };
    named_modules(source).into_iter().filter_map(judge).collect()
}

#[test]
fn a_module_uses_lower_layers_only() {
    for (bad, good) in [
        ("use crate::pipeline::Pipeline;", "use crate::queue::frame;"),
        ("use crate::{sys::clock::Clock, pipeline};", "use crate::{sys::clock::Clock, record::{Frame, map}};"),
        ("fn f() { call!(crate::delivery::open()) }", "#[cfg(test)] mod tests { use crate::client; }"),
        ("use super::super::client;", "use super::arena;"),
        ("mod part { use super::super::super::client; }", "mod part { use super::super::lock; }"),
        ("pub use crate::Error;", "pub(crate) use self::arena::Arena;"),
        ("use crate::*;", "pub(in crate::queue) fn f() {}"),
    ] {
        let violations = |text| breaks_of_the_layers(&Source::parse("src/queue/ring.rs", text)).len();
        assert_eq!((violations(bad), violations(good)), (1, 0), "{bad} | {good}");
    }
    check("layers", LIBRARY, ("src/record.rs", "use super::queue::Queue;"), breaks_of_the_layers);
}

#[test]
fn an_exception_within_a_layer_is_still_needed() {
    for (from, to, reason) in SAME_LAYER {
        assert!(layer_of(from).is_some() && layer_of(from) == layer_of(to), "{from} and {to} are not in one layer");
        let of_it = |source: &&Source| source.path.starts_with("src/") && source.module() == *from;
        let is_used =
            SOURCES.iter().filter(of_it).any(|source| named_modules(source).iter().any(|(name, _)| name == to));
        assert!(is_used, "`{from}` does not use `{to}` any more ({reason})");
    }
}

#[test]
fn the_queue_uses_nothing_of_this_crate_but_sys() {
    check("queue", LIBRARY, ("src/queue/ring.rs", "use crate::transport::Http;"), |source| {
        if source.module() != "queue" {
            return Vec::new();
        }
        let named = named_modules(source).into_iter();
        let foreign = named.filter(|(name, _)| name != "queue" && !QUEUE_MAY_USE.iter().any(|(may, _)| may == name));
        foreign.map(|(name, line)| violation(line, format!("the queue uses `{name}`"))).collect()
    });
}

#[test]
fn each_package_is_used_by_its_own_module_only() {
    check("packages", LIBRARY, ("src/client/mod.rs", "use redb::Database;"), |source| {
        let tokens = source.shipped();
        let named = tokens.windows(3).filter(|three| {
            let [before, _, after] = three else { return false };
            before.text != "::" && before.text != "." && (after.text == "::" || before.text == "use")
        });
        let foreign = named.filter_map(|three| {
            let (package, homes) = PACKAGES.iter().find(|(package, _)| *package == three[1].text)?;
            (!homes.contains(&source.module()))
                .then(|| violation(three[1].line, format!("`{package}` belongs to {}", homes.join(", "))))
        });
        foreign.collect()
    });
}

#[test]
fn events_and_records_do_no_io_and_read_no_clock() {
    check("purity", LIBRARY, ("src/event/mod.rs", "fn f() -> SystemTime { SystemTime::now() }"), |source| {
        let tokens = source.shipped();
        let impure = tokens.windows(3).filter(|three| match three {
            [first, _, last] if three[1].text == "::" => {
                last.text == "now" || (first.text == "std" && IMPURE_STD.contains(&last.text.as_str()))
            }
            _ => false,
        });
        let found = impure.map(|three| violation(three[2].line, format!("`{}::{}`", three[0].text, three[2].text)));
        if PURE.contains(&source.module()) { found.collect() } else { Vec::new() }
    });
}

#[test]
fn unsafe_is_used_in_its_files_only() {
    check("unsafe", EVERYWHERE, ("src/queue/store/mod.rs", "fn f() { unsafe { g() } }"), |source| {
        let is_allowed = UNSAFE_FILES.iter().any(|file| source.path.starts_with(file));
        let blocks = source.tokens.iter().filter(|token| token.text == "unsafe" && !is_allowed);
        blocks.map(|token| violation(token.line, format!("`unsafe` belongs to {}", UNSAFE_FILES.join(", ")))).collect()
    });
}

#[test]
fn the_library_writes_nothing_to_stderr() {
    // Clippy's `print_stderr` would forbid it in tests and examples too.
    check("stderr", &["src/", "tests/sink/"], ("src/sys/clock.rs", "fn f() { eprintln!() }"), |source| {
        let tokens = source.shipped();
        let macros = tokens.windows(2).filter(|two| matches!(two[0].text.as_str(), "eprint" | "eprintln"));
        let called = macros.filter(|two| two[1].text == "!");
        called.map(|two| violation(two[0].line, format!("`{}!`", two[0].text))).collect()
    });
}

#[test]
fn a_file_is_not_too_long() {
    let long = format!("//! Header.\n{}#[cfg(test)]\nmod tests {{\n}}\n", "fn f() {}\n".repeat(FILE_LINES));
    let tested = format!("//! Header.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(FILE_LINES));
    assert_eq!(Source::parse("src/short.rs", &tested).code_lines(), 1);
    check("file length", EVERYWHERE, ("src/long.rs", &long), |source| match source.code_lines() {
        lines if lines > FILE_LINES => {
            vec![violation(lines, format!("{lines} lines without its tests, at most {FILE_LINES}"))]
        }
        _ => Vec::new(),
    });
}

#[test]
fn each_file_begins_with_a_header() {
    check("header", EVERYWHERE, ("src/queue/store/mod.rs", "use std::fs;"), |source| {
        let has_header = source.text.starts_with("//! ");
        if has_header { Vec::new() } else { vec![violation(1, "does not begin with a `//!` header")] }
    });
}

/// The items that a file imports or names from its parent's `mod.rs` by `super::Name`, outside of tests.
fn taken_from_the_parent(source: &Source) -> Vec<(String, usize)> {
    let tokens = source.shipped();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut taken = Vec::new();
    for at in 0..tokens.len() {
        let begins = text(at) == "super" && text(at + 1) == "::" && (at == 0 || text(at - 1) != "::");
        if begins && tokens[at].inline_modules == 0 && text(at + 2) != "super" {
            taken.extend(heads(&tokens, at + 2).into_iter().map(|head| (head.text.clone(), head.line)));
        }
    }
    taken
}

/// The child modules that a `mod.rs` uses itself; declaring one and re-exporting from it is no use.
fn used_children(parent: &Source) -> BTreeSet<String> {
    let tokens = parent.shipped();
    let mut used = BTreeSet::new();
    let mut is_reexport = false;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "use" => is_reexport = at > 0 && (tokens[at - 1].text == "pub" || tokens[at - 1].text == ")"),
            ";" => is_reexport = false,
            _ => {}
        }
        let is_path = tokens.get(at + 1).is_some_and(|next| next.text == "::");
        let begins = at == 0 || tokens[at - 1].text != "::";
        if is_path && begins && !is_reexport {
            used.insert(token.text.clone());
        }
    }
    used
}

/// Items of a `mod.rs` that `child` takes although that `mod.rs` uses `child`.
fn circles(child: &Source, parent: &Source) -> Vec<Violation> {
    let stem = child.path.trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
    if !used_children(parent).contains(stem) {
        return Vec::new();
    }
    let is_defined = |name: &str| parent.types.iter().any(|(defined, _)| defined == name);
    let taken = taken_from_the_parent(child).into_iter().filter(|(name, _)| is_defined(name));
    taken.map(|(name, line)| violation(line, format!("takes `{name}` from {}, which uses it", parent.path))).collect()
}

#[test]
fn no_file_imports_a_type_from_a_mod_rs_that_uses_it() {
    let parent = Source::parse("src/record/mod.rs", "mod part; use part::Part; struct Whole(Part);");
    let child = Source::parse("src/record/part.rs", "use super::Whole; struct Part;");
    assert_eq!(circles(&child, &parent).len(), 1, "the rule finds nothing in its own bad example");
    let parents: BTreeMap<&str, &Source> =
        SOURCES.iter().filter_map(|source| Some((source.path.strip_suffix("mod.rs")?, source))).collect();
    let mut found = Vec::new();
    for child in SOURCES.iter().filter(|source| WITHOUT_CIRCLES.iter().any(|folder| source.path.starts_with(folder))) {
        let folder = child.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if let Some(parent) = parents.get(format!("{folder}/").as_str()).filter(|parent| parent.path != child.path) {
            let circles = circles(child, parent);
            found.extend(circles.into_iter().map(|Violation { line, why }| format!("{}:{line}: {why}", child.path)));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_public_interface_is_that_of_its_file() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, found) = (root.join("api/public-api.txt"), public_api::public_api(root));
    if std::env::var_os("POSTHOG_WRITE_API").is_some() {
        std::fs::write(&path, &found).expect("the file can be written");
    }
    let listed = std::fs::read_to_string(&path).expect("api/public-api.txt can be read");
    let (found, listed): (BTreeSet<_>, BTreeSet<_>) = (found.lines().collect(), listed.lines().collect());
    let removed: Vec<_> = listed.difference(&found).collect();
    let added: Vec<_> = found.difference(&listed).collect();
    assert!(
        removed.is_empty() && added.is_empty(),
        "the public interface changed. Removed:\n{removed:#?}\nAdded:\n{added:#?}\nIf that is intended, say so in CHANGELOG.md and \
         write the file: POSTHOG_WRITE_API=1 cargo test --test architecture"
    );
    assert!(found.len() > 1_000, "only {} lines were found: has the form of the sources changed?", found.len());
}
