//! Tests of symbol lookup and of its memory use.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::debug_file::{LARGEST_FILE, NAME_KEPT};
use super::{InProcess, KEPT, Known, LINE_KEPT, Modules, lines_around};
use crate::record::Symbols;
use crate::record::stack::Image;
use crate::record::symbols::Symbol;
use crate::sys::limits::beginning;

#[inline(never)]
fn somewhere() -> u64 {
    let mut address = 0;
    backtrace::trace(|frame| {
        address = frame.ip().addr() as u64;
        // Stops at the first frame of this function.
        let mut is_here = false;
        backtrace::resolve_frame(frame, |symbol| {
            is_here |= symbol.name().is_some_and(|name| format!("{name:#}").ends_with("::somewhere"));
        });
        !is_here
    });
    address
}

fn main_image(modules: &Modules) -> Image<'_> {
    modules.images().find(|image| image.is_main).expect("the image of the running executable")
}

#[test]
fn an_address_of_this_build_has_its_function_file_and_line() {
    let modules = Modules::loaded();
    let (here, now) = (somewhere(), main_image(&modules));
    let then = Image { address: 0x7000_0000, path: "/elsewhere", ..now };
    for (image, address) in [(now, here), (then, here - now.address + then.address)] {
        let symbols = InProcess::new(false);
        let found = symbols.resolve(&image, address);
        let last = found.last().unwrap();
        assert!(last.function.ends_with("tests::somewhere"), "{found:#?}");
        assert!(last.file.as_deref().unwrap().ends_with("src/crash/symbols/tests.rs") && last.line.is_some());
        symbols.rest();
        assert_eq!(symbols.resolve(&image, address), found, "from memory");
        assert!(symbols.known().opened.is_empty());
    }
}

#[cfg(feature = "inspect")]
#[test]
fn a_build_that_is_not_loaded_here_needs_a_file_with_its_id() {
    let modules = Modules::loaded();
    let (here, now) = (somewhere(), main_image(&modules));
    let symbols = InProcess::of_any_process();
    assert!(!symbols.resolve(&now, here).is_empty());
    // The file of this build at the path, which is trusted for its own id only.
    assert!(symbols.resolve(&Image { build_id: &[1; 20], ..now }, here).is_empty());
    assert!(symbols.resolve(&Image { build_id: &[1; 20], path: "/elsewhere", ..now }, here).is_empty());
}

#[test]
fn an_address_of_another_build_has_no_name() {
    let modules = Modules::loaded();
    let (here, now) = (somewhere(), main_image(&modules));
    let symbols = InProcess::new(false);
    assert!(symbols.resolve(&Image { build_id: &[1; 20], ..now }, here).is_empty());
    assert!(symbols.resolve(&Image { build_id: &[], ..now }, here).is_empty());
    assert!(symbols.resolve(&now, now.address - 1).is_empty());
    assert!(symbols.resolve(&now, u64::MAX).is_empty());
}

#[test]
fn a_replaced_or_too_large_file_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let exe = std::env::current_exe().unwrap();
    let modules = Modules::loaded();
    let image = Image { path: path.to_str().unwrap(), ..main_image(&modules) };
    let mut known = Known::default();
    assert!(!known.trusts(&image), "not there");
    std::fs::copy(&exe, &path).unwrap();
    assert!(known.trusts(&image) && known.trusts(&image));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    assert!(!known.trusts(&image), "replaced");
    std::fs::copy(&exe, &path).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(LARGEST_FILE + 1).unwrap();
    assert!(!known.trusts(&image), "too large");
}

#[test]
fn names_of_recent_addresses_are_cached() {
    let mut known = Known::default();
    let key = |n: u64| (Box::from([1_u8]), n);
    let named = |n: u64| vec![Symbol { function: n.to_string(), ..Symbol::default() }];
    for n in 0..10 * KEPT.get() as u64 {
        known.names.put(key(n), named(n));
        assert_eq!(known.names.get(&key(0)), Some(&named(0)), "asked for all the time");
        assert!(known.names.len() <= KEPT.get());
    }
    assert_eq!(known.names.get(&key(1)), None);
}

/// Addresses spread over the code of this executable. Only some are return addresses.
fn places(count: u64) -> Vec<u64> {
    let modules = Modules::loaded();
    let main = main_image(&modules);
    let (first, last) = (main.address + main.size / 4, main.address + main.size / 4 * 3);
    (0..count).map(|n| first + (last - first) / count * n).collect()
}

/// The names according to the `backtrace` crate, which parses a whole file at once.
fn by_backtrace(address: u64) -> Vec<Symbol> {
    let mut found = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address as usize), |symbol| {
        let function = symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
        let function = beginning(&function, NAME_KEPT).to_owned();
        let file = symbol.filename().map(|path| path.to_string_lossy().into_owned());
        found.push(Symbol { function, file, line: symbol.lineno() });
    });
    found.retain(|symbol| !symbol.function.is_empty() || symbol.file.is_some());
    found.reverse();
    found
}

#[test]
fn names_are_those_of_the_backtrace_crate() {
    let modules = Modules::loaded();
    let (main, symbols) = (main_image(&modules), InProcess::new(false));
    let (mut inlined, mut named) = (0, 0);
    for address in places(150) {
        let expected = by_backtrace(address);
        assert_eq!(symbols.resolve(&main, address), expected, "at {address:#x}");
        inlined += usize::from(expected.len() > 1);
        named += usize::from(!expected.is_empty());
    }
    assert!(named > 50, "{named} of 150 have a name, {inlined} an inlined one");
    // The C library only has its symbol table where its debug information is not installed.
    let libc = modules.images().find(|image| image.path.contains("libc.so"));
    for (image, n) in libc.iter().flat_map(|image| (1..13).map(move |n| (image, n))) {
        let address = image.address + image.size / 16 * n;
        // If a function has several names, this library and `backtrace` may choose different ones.
        let count = symbols.resolve(image, address).len();
        assert_eq!(count, by_backtrace(address).len(), "{}+{address:#x}", image.path);
    }
}

const IS_MEASURED: &str = "POSTHOG_MEASURED_LOOK_UP";
const MIB: u64 = 1024 * 1024;

fn rss_anon() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel's figures");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The growth of the process's anonymous memory: at the peak of `work`, and afterwards.
fn growth(work: impl FnOnce()) -> (u64, u64) {
    let (is_done, peak, before) = (AtomicBool::new(false), AtomicU64::new(0), rss_anon());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                peak.fetch_max(rss_anon(), Ordering::SeqCst);
            }
        });
        work();
        is_done.store(true, Ordering::SeqCst);
    });
    (peak.into_inner().saturating_sub(before), rss_anon().saturating_sub(before))
}

#[test]
fn a_look_up_stays_within_its_memory_and_gives_it_back() {
    if std::env::var_os(IS_MEASURED).is_none() {
        let name = "crash::symbols::tests::a_look_up_stays_within_its_memory_and_gives_it_back";
        let mut alone = sink::command(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(IS_MEASURED, "1").output();
        let output = output.unwrap();
        let is_well = output.status.success();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(is_well && said.contains("1 passed"), "{said}");
        eprintln!("{}", said.lines().find(|line| line.starts_with("peak")).unwrap_or_default());
        return;
    }
    let modules = Modules::loaded();
    let (main, symbols) = (main_image(&modules), InProcess::new(false));
    let (mut named, began) = (0, Instant::now());
    let (peak, for_good) = growth(|| {
        for address in places(60) {
            named += usize::from(!symbols.resolve(&main, address).is_empty());
        }
        symbols.rest();
    });
    eprintln!("peak {} KiB, afterwards {} KiB, {named} names in {:?}", peak / 1024, for_good / 1024, began.elapsed());
    assert!(named > 20, "{named}");
    assert!(peak <= 24 * MIB && for_good <= 8 * MIB, "peak {peak}, afterwards {for_good}");
}

fn numbered(lines: u32) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("source.rs");
    let text: String = (1..=lines).map(|line| format!("line {line}\n")).collect();
    std::fs::write(&path, text).expect("a file in it");
    (dir, path.to_str().expect("a path in UTF-8").to_owned())
}

#[test]
fn a_source_line_has_five_lines_on_either_side() {
    let (_dir, path) = numbered(50);
    let found = lines_around(&path, 40).unwrap();
    assert_eq!(found.line, "line 40");
    assert_eq!(found.before, ["line 35", "line 36", "line 37", "line 38", "line 39"]);
    assert_eq!(found.after, ["line 41", "line 42", "line 43", "line 44", "line 45"]);
    let (first, last) = (lines_around(&path, 1).unwrap(), lines_around(&path, 50).unwrap());
    assert_eq!((first.before.len(), first.after.len()), (0, 5));
    assert_eq!((last.before.len(), last.after.len()), (5, 0));
}

#[test]
fn a_missing_file_or_line_has_no_source() {
    let (dir, path) = numbered(3);
    for (file, line) in [(path.as_str(), 0), (&path, 4), (&path, u32::MAX), ("/nowhere/at/all.rs", 1)] {
        assert_eq!(lines_around(file, line), None, "{file}:{line}");
    }
    assert_eq!(lines_around(dir.path().to_str().unwrap(), 1), None, "a directory");
    assert_eq!(lines_around("/dev/zero", 1), None, "a device");
}

#[test]
fn a_line_is_truncated_and_made_valid_text() {
    let (dir, _) = numbered(1);
    let path = dir.path().join("odd");
    std::fs::write(&path, [&[b'x'; 5000][..], b"\r\n\xff\xfe\n"].concat()).unwrap();
    let found = lines_around(path.to_str().expect("a path in UTF-8"), 1).unwrap();
    assert_eq!((found.line.len(), found.after), (LINE_KEPT, vec!["\u{fffd}\u{fffd}".to_owned()]));
}
