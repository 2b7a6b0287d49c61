//! Addresses of this very process, and of processes that are not.

use super::*;

#[inline(never)]
fn somewhere() -> u64 {
    let mut address = 0;
    backtrace::trace(|frame| {
        address = frame.ip().addr() as u64;
        // The first frame whose code is this function's.
        let mut is_here = false;
        backtrace::resolve_frame(frame, |symbol| {
            is_here |= symbol.name().is_some_and(|name| format!("{name:#}").ends_with("::somewhere"));
        });
        !is_here
    });
    address
}

fn main_image(modules: &Modules) -> Image<'_> {
    modules.images().find(|image| image.is_main).unwrap()
}

#[test]
fn an_address_of_this_build_has_its_function_file_and_line_wherever_the_image_was_loaded() {
    let modules = Modules::loaded();
    let (here, now) = (somewhere(), main_image(&modules));
    let then = Image { address: 0x7000_0000, path: "/elsewhere", ..now };
    for (image, address) in [(now, here), (then, here - now.address + then.address)] {
        let symbols = InProcess::new(false);
        let found = symbols.resolve(&image, address);
        let last = found.last().unwrap();
        assert!(last.function.ends_with("crash::symbols::tests::somewhere"), "{found:#?}");
        assert!(last.file.as_deref().unwrap().ends_with("src/crash/symbols_tests.rs") && last.line.is_some());
        symbols.rest();
        assert_eq!(symbols.resolve(&image, address), found, "from memory");
        assert!(!symbols.known().has_looked_up);
    }
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
fn a_file_that_was_replaced_or_is_too_large_is_not_believed() {
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
fn names_are_kept_for_the_addresses_that_were_asked_for_last() {
    let mut known = Known::default();
    let key = |n: u64| (Box::from([1_u8]), n);
    let named = |n: u64| vec![Symbol { function: n.to_string(), ..Symbol::default() }];
    for n in 0..10 * KEPT as u64 {
        known.keep(key(n), named(n));
        assert_eq!(known.recall(&key(0)), Some(named(0)), "asked for all the time");
        assert!(known.young.len() + known.old.len() <= 2 * KEPT);
    }
    assert_eq!(known.recall(&key(1)), None);
}
