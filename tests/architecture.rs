//! The rules of the house, held against the sources: which floor may see which, where each package and each `unsafe` may stand, how
//! long a file and a function may be, how things are named. Each rule first proves itself on a bad example of its own, so that one
//! that has gone blind fails too. An exception stands in a table with its reason; one that excuses nothing any more fails.

#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use source::{Source, files, heads, sources};

/// A module may use those with a lower number. Modules of the same number do not see each other.
const FLOORS: &[(&str, u8)] = &[
    ("lib", 8),
    ("fuzz", 8),
    ("bin", 8),
    ("testing", 8),
    ("client", 7),
    ("integrations", 7),
    ("config", 6),
    ("error", 6),
    ("diagnostics", 6),
    ("pipeline", 5),
    ("delivery", 4),
    ("flags", 4),
    ("crash", 4),
    ("queue", 3),
    ("context", 2),
    ("event", 2),
    ("record", 1),
    ("sys", 0),
    ("transport", 0),
];

/// From, to, reason.
const NEIGHBOURS_THAT_MAY_MEET: &[(&str, &str, &str)] = &[
    ("config", "error", "a setting that is out of bounds is an error that names it"),
    ("config", "diagnostics", "the hook for diagnostics is a setting"),
    (
        "transport",
        "sys",
        "a Retry-After date is turned into a wait by the wall clock, and errors quote text within limits",
    ),
];

/// A package, and the only modules that may name it.
const PACKAGES: &[(&str, &[&str])] = &[
    ("redb", &["queue"]),
    ("addr2line", &["crash"]),
    ("backtrace", &["crash"]),
    ("object", &["crash"]),
    ("reqwest", &["transport"]),
    ("rustls", &["transport"]),
    ("rmp", &["record"]),
    ("rmp_serde", &["record"]),
    ("signal_hook", &["crash"]),
    // Besides files and locks: a crash point kills its own process, and the worker's threads block their signals.
    ("nix", &["sys", "queue", "crash", "pipeline"]),
];

/// Same input, same bytes: no clock, no disk, no network, no environment.
const PURE: &[&str] = &["event", "record"];
const IMPURE_STD: &[&str] = &["env", "fs", "net", "process", "thread"];

/// Mappings; what a fork does to them; signal handlers; a test that forks; what runs between a fork and an `exec`.
const UNSAFE_FILES: &[&str] = &[
    "src/crash/",
    "src/sys/disk/fork.rs",
    "src/sys/disk/map.rs",
    "tests/outside/process.rs",
    "tests/sink/src/child.rs",
    "crash-tests/src/bin/",
];

const FILE_LINES: usize = 800;
const FUNCTION_LINES: usize = 70;
const PAGE_LINES: usize = 10;

/// Rule, file (or `file::function`), reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("purity", "src/event/uuids.rs", "a uuid must differ: the process id goes into the seed of its generator"),
    ("unsafe", "crash-tests/library/src/lib.rs", "functions that C calls, with strings of C"),
    ("unsafe", "examples/last_words.rs", "it shows what is told of a process that reads where no memory is"),
    ("unsafe", "benches/support/allocations.rs", "what counts allocations is an allocator, unsafe by its trait"),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["common", "data", "handler", "helper", "helpers", "inner", "manager", "misc", "processor", "util", "utils"];
const LIBRARY: &[&str] = &["src/"];
const EVERYWHERE: &[&str] = &["src/", "tests/", "examples/", "benches/", "crash-tests/", "fuzz/"];

static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| sources(EVERYWHERE));

/// A place that breaks a rule.
struct Offence {
    line: usize,
    /// The function it is about, where the rule is about functions.
    function: Option<String>,
    why: String,
}

fn offence(line: usize, why: impl Into<String>) -> Offence {
    Offence { line, function: None, why: why.into() }
}

/// Fails with the list of offenders, or if `rule` does not see that the file `bad` at path `bad_path` is one.
fn hold(name: &str, folders: &[&str], (bad_path, bad): (&str, &str), rule: impl Fn(&Source) -> Vec<Offence>) {
    assert!(!rule(&Source::parse(bad_path, bad)).is_empty(), "the rule `{name}` does not see its own bad example");
    let mut offenders = Vec::new();
    let mut unused: BTreeSet<_> = EXCEPTIONS.iter().filter(|(rule, ..)| *rule == name).map(|(_, at, _)| *at).collect();
    for source in SOURCES.iter().filter(|source| folders.iter().any(|folder| source.path.starts_with(folder))) {
        for Offence { line, function, why } in rule(source) {
            let subject = function.map_or(source.path.clone(), |function| format!("{}::{function}", source.path));
            let excused = EXCEPTIONS.iter().any(|(rule, at, _)| *rule == name && *at == subject);
            unused.remove(subject.as_str());
            if !excused {
                offenders.push(format!("{}:{line}: {why}", source.path));
            }
        }
    }
    offenders.extend(unused.iter().map(|at| format!("{at}: the exception from `{name}` is not needed any more")));
    assert!(offenders.is_empty(), "{name}:\n{}\n", offenders.join("\n"));
}

fn floor_of(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Module paths that shipped code names: the first segment below the crate's root, with its line; `*` and `self` too.
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
        let deep = source.depth() + tokens[start].inline_modules;
        // Below the root of a module of one's own, everything belongs to that module.
        if text(start) == "super" && deep > above {
            continue;
        }
        named.extend(heads(&tokens, at + 1).into_iter().map(|head| (head.text.clone(), head.line)));
    }
    named
}

#[test]
fn every_module_stands_on_a_floor() {
    hold("floor", LIBRARY, ("src/attic/mod.rs", "//! Page."), |source| match floor_of(source.module()) {
        Some(_) => Vec::new(),
        None => vec![offence(1, format!("`{}` is on no floor: add it to FLOORS", source.module()))],
    });
}

fn breaks_of_the_floors(source: &Source) -> Vec<Offence> {
    let own = source.module();
    let judge = |(other, line): (String, usize)| {
        if other == own || own == "lib" {
            return None;
        }
        let meets = |(from, to, _): &(&str, &str, &str)| *from == own && *to == other;
        let why = match (floor_of(own), floor_of(&other)) {
            (Some(own), Some(other)) if other < own => return None,
            (Some(own), Some(other)) if other == own && NEIGHBOURS_THAT_MAY_MEET.iter().any(meets) => return None,
            (Some(own), Some(other)) if other == own => "a neighbour on the same floor",
            (_, Some(_)) => "on an upper floor",
            (_, None) => "reached through the crate's root: name the module that defines it",
        };
        Some(offence(line, format!("`{own}` names `{other}`, {why}")))
    };
    named_modules(source).into_iter().filter_map(judge).collect()
}

#[test]
fn a_floor_uses_only_what_stands_below_it() {
    for (bad, good) in [
        ("use crate::pipeline::Pipeline;", "use crate::record::frame;"),
        ("use crate::{sys::clock::Clock, pipeline};", "use crate::{sys::clock::Clock, record::{Frame, map}};"),
        ("fn f() { call!(crate::delivery::open()) }", "#[cfg(test)] mod tests { use crate::client; }"),
        ("use super::super::client;", "use super::arena;"),
        ("mod part { use super::super::super::client; }", "mod part { use super::super::lock; }"),
        ("pub use crate::Error;", "pub(crate) use self::arena::Arena;"),
        ("use crate::*;", "pub(in crate::queue) fn f() {}"),
    ] {
        let offences = |text| breaks_of_the_floors(&Source::parse("src/queue/ring.rs", text)).len();
        assert_eq!((offences(bad), offences(good)), (1, 0), "{bad} | {good}");
    }
    hold("floors", LIBRARY, ("src/record.rs", "use super::queue::Queue;"), breaks_of_the_floors);
}

#[test]
fn an_exception_between_neighbours_is_still_needed() {
    for (from, to, reason) in NEIGHBOURS_THAT_MAY_MEET {
        assert!(floor_of(from).is_some() && floor_of(from) == floor_of(to), "{from} and {to} are no neighbours");
        let of_it = |source: &&Source| source.path.starts_with("src/") && source.module() == *from;
        let meets = SOURCES.iter().filter(of_it).any(|source| named_modules(source).iter().any(|(name, _)| name == to));
        assert!(meets, "`{from}` does not name `{to}` any more ({reason})");
    }
}

#[test]
fn each_package_is_named_by_its_own_module_alone() {
    hold("packages", LIBRARY, ("src/client/mod.rs", "use redb::Database;"), |source| {
        let tokens = source.shipped();
        let named = tokens.windows(3).filter(|three| {
            let [before, _, after] = three else { return false };
            before.text != "::" && before.text != "." && (after.text == "::" || before.text == "use")
        });
        let foreign = named.filter_map(|three| {
            let (package, homes) = PACKAGES.iter().find(|(package, _)| *package == three[1].text)?;
            (!homes.contains(&source.module()))
                .then(|| offence(three[1].line, format!("`{package}` belongs to {}", homes.join(", "))))
        });
        foreign.collect()
    });
}

#[test]
fn events_and_records_do_no_input_or_output_and_read_no_clock() {
    hold("purity", LIBRARY, ("src/event/mod.rs", "fn f() -> SystemTime { SystemTime::now() }"), |source| {
        let tokens = source.shipped();
        let impure = tokens.windows(3).filter(|three| match three {
            [first, _, last] if three[1].text == "::" => {
                last.text == "now" || (first.text == "std" && IMPURE_STD.contains(&last.text.as_str()))
            }
            _ => false,
        });
        let found = impure.map(|three| offence(three[2].line, format!("`{}::{}`", three[0].text, three[2].text)));
        if PURE.contains(&source.module()) { found.collect() } else { Vec::new() }
    });
}

#[test]
fn unsafe_stands_in_its_files_only() {
    hold("unsafe", EVERYWHERE, ("src/queue/store/mod.rs", "fn f() { unsafe { g() } }"), |source| {
        let allowed = UNSAFE_FILES.iter().any(|file| source.path.starts_with(file));
        let blocks = source.tokens.iter().filter(|token| token.text == "unsafe" && !allowed);
        blocks.map(|token| offence(token.line, format!("`unsafe` belongs to {}", UNSAFE_FILES.join(", ")))).collect()
    });
}

#[test]
fn each_unsafe_is_proven_right_above_it() {
    let far = "// SAFETY: far away.\nfn a() {}\nfn f() {\n    unsafe { g() }\n}";
    hold("safety comment", EVERYWHERE, ("src/sys/disk/map.rs", far), |source| {
        let lines: Vec<_> = source.text.lines().map(str::trim_start).collect();
        let proven = |line: usize| {
            // `let x =` may stand between a proof and its block; attributes may stand between it and an item.
            let above = lines.iter().take(line - 1).rev();
            let mut comment = above.skip_while(|line| line.ends_with(['=', '(']) || line.starts_with("#[")).peekable();
            let is_comment = |line: &&&str| line.starts_with("//");
            comment.peek().is_some_and(is_comment)
                && comment.take_while(is_comment).any(|line| line.contains("SAFETY:") || line.contains("# Safety"))
        };
        let unsafes = source.tokens.iter().filter(|token| token.text == "unsafe");
        unsafes.filter(|token| !proven(token.line)).map(|token| offence(token.line, "no `SAFETY:` above")).collect()
    });
}

#[test]
fn a_file_is_not_too_long() {
    let long = "//! Line.\n".repeat(FILE_LINES + 1);
    hold("file length", EVERYWHERE, ("src/long.rs", &long), |source| match source.text.lines().count() {
        lines if lines > FILE_LINES => vec![offence(lines, format!("{lines} lines, at most {FILE_LINES}"))],
        _ => Vec::new(),
    });
}

#[test]
fn a_function_is_not_too_long() {
    let long = format!("impl A {{\n    fn f() {{\n{}    }}\n}}", "        g();\n".repeat(FUNCTION_LINES - 1));
    hold("function length", EVERYWHERE, ("src/long.rs", &long), |source| {
        let long = source.functions.iter().filter(|function| function.lines > FUNCTION_LINES);
        let offence = |function: &source::Function| Offence {
            line: function.line,
            function: Some(function.name.clone()),
            why: format!("`{}` has {} lines, at most {FUNCTION_LINES}", function.name, function.lines),
        };
        long.map(offence).collect()
    });
}

#[test]
fn each_folder_opens_with_a_page_and_each_file_with_a_sentence() {
    let short = "//! Too short for a folder.\n\nuse std::fs;";
    hold("page", EVERYWHERE, ("src/queue/store/mod.rs", short), |source| {
        // A folder of tests needs no page.
        let is_test = source.tokens.iter().all(|token| token.in_test);
        let is_door = !is_test && (source.path.ends_with("/mod.rs") || source.path.ends_with("src/lib.rs"));
        let wanted = if is_door { PAGE_LINES } else { 1 };
        let page = source.text.lines().take_while(|line| line.starts_with("//!")).count();
        if page < wanted {
            return vec![offence(1, format!("opens with {page} lines of `//!`, at least {wanted}"))];
        }
        Vec::new()
    });
}

#[test]
fn each_folder_of_the_library_has_a_door() {
    let folders: BTreeSet<_> = SOURCES.iter().filter_map(|source| source.path.rsplit_once('/')).collect();
    let folders: BTreeSet<_> = folders.iter().map(|(folder, _)| *folder).filter(|f| f.starts_with("src/")).collect();
    let closed = folders.iter().filter(|folder| {
        let door = format!("{folder}/mod.rs");
        **folder != "src/bin" && !SOURCES.iter().any(|source| source.path == door)
    });
    assert_eq!(closed.collect::<Vec<_>>(), Vec::<&&str>::new(), "folders without a mod.rs");
}

#[test]
fn nothing_has_an_empty_name() {
    hold("names", EVERYWHERE, ("src/queue/store/mod.rs", "struct RowManager;"), |source| {
        let mut found = Vec::new();
        for part in source.path.trim_end_matches(".rs").split(['/', '_']).filter(|part| EMPTY_NAMES.contains(part)) {
            found.push(offence(1, format!("`{part}` in a path says nothing")));
        }
        for (name, line) in &source.types {
            for word in words(name).filter(|word| EMPTY_NAMES.contains(&word.as_str())) {
                found.push(offence(*line, format!("`{word}` in the type `{name}` says nothing")));
            }
        }
        found
    });
}

/// The words of a name in camel case, in lower case.
fn words(name: &str) -> impl Iterator<Item = String> {
    let starts: Vec<_> = name.char_indices().filter(|(_, c)| c.is_uppercase()).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([name.len()]).collect::<Vec<_>>();
    starts.into_iter().zip(ends).map(|(start, end)| name[start..end].to_lowercase()).collect::<Vec<_>>().into_iter()
}

#[test]
fn the_library_prints_nothing_and_leaves_nothing_to_do() {
    const MACROS: &[&str] = &["dbg", "eprint", "eprintln", "print", "println", "todo", "unimplemented"];
    hold("macros", &["src/", "tests/sink/"], ("src/clock.rs", "fn f() { println!() }"), |source| {
        let tokens = source.shipped();
        let called = tokens.windows(2).filter(|two| two[1].text == "!" && MACROS.contains(&two[0].text.as_str()));
        let prints_by_trade = source.module() == "bin";
        called.filter(|_| !prints_by_trade).map(|two| offence(two[0].line, format!("`{}!`", two[0].text))).collect()
    });
}

#[test]
fn the_library_unwraps_nothing() {
    hold("unwrap", &["src/", "tests/sink/"], ("src/clock.rs", "fn f() { g().unwrap() }"), |source| {
        let tokens = source.shipped();
        let calls = tokens.windows(3).filter(|three| three[1].text == "unwrap" && three[2].text == "(");
        let calls = calls.filter(|three| matches!(three[0].text.as_str(), "." | "::"));
        calls.map(|three| offence(three[1].line, "`unwrap()` outside tests")).collect()
    });
}

#[test]
fn sources_and_texts_are_ascii() {
    hold("ascii", EVERYWHERE, ("src/clock.rs", "// \u{2026}"), |source| non_ascii(&source.text));
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let texts = files(&["README.md", "CHANGELOG.md", "Cargo.toml", "docs", "crash-tests", "tests"], "md");
    for path in texts.iter().chain(&files(&["Cargo.toml", "crash-tests", "tests", "benches"], "toml")) {
        let text = std::fs::read_to_string(root.join(path)).expect("a listed file can be read");
        let lines: Vec<_> = non_ascii(&text).iter().map(|offence| offence.line).collect();
        assert!(lines.is_empty(), "{path}: lines {lines:?} are not ASCII");
    }
}

fn non_ascii(text: &str) -> Vec<Offence> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_ascii());
    lines.map(|(at, _)| offence(at + 1, "not ASCII")).collect()
}
