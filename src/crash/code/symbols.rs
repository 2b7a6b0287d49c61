//! What an address means, as far as this process can tell: from the debug information of images that it has loaded itself.
//!
//! An address is looked up in the image of the same build id, wherever that lies now; so the stacks that an earlier process of the same
//! executable left have names too. The file is only believed if it has that build id as well: it may have been replaced under us.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::modules::Modules;
use super::{elf, source};
use crate::disk::fork;
use crate::limits::beginning;
use crate::record::Symbols;
use crate::record::stack::Image;
use crate::record::symbols::{SourceLines, Symbol};

/// Larger files are not looked into: their debug information would take too long, and too much memory.
const LARGEST_FILE: u64 = 256 * 1024 * 1024;
/// Addresses whose names are kept, twice over.
const KEPT: usize = 512;
/// Functions that may be inlined at one address.
const MOST_INLINED: usize = 32;
/// Bytes of a function's name, or of a file's, that are kept.
const NAME_KEPT: usize = 512;

/// The symbols of this process.
#[derive(Debug)]
pub(crate) struct InProcess {
    with_source: bool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Names by build id and offset, those that were asked for lately, and before.
    young: HashMap<(Box<[u8]>, u64), Vec<Symbol>>,
    old: HashMap<(Box<[u8]>, u64), Vec<Symbol>>,
    /// Which files were looked at, what they were then, and whether they are what is loaded.
    files: HashMap<Box<str>, (Identity, bool)>,
    has_looked_up: bool,
}

/// A file as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl InProcess {
    /// With the lines of source around each place, if they are wanted.
    pub(crate) fn new(with_source: bool) -> Self {
        Self { with_source, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Symbols for InProcess {
    fn resolve(&self, image: &Image<'_>, address: u64) -> Vec<Symbol> {
        if image.build_id.is_empty() || is_inherited() {
            return Vec::new();
        }
        let Some(offset) = address.checked_sub(image.address) else { return Vec::new() };
        let mut known = self.known();
        let key = (Box::from(image.build_id), offset);
        if let Some(found) = known.recall(&key) {
            return found;
        }
        let modules = Modules::loaded();
        let Some(loaded) = modules.images().find(|loaded| loaded.build_id == image.build_id) else { return Vec::new() };
        if offset > loaded.size || !known.trusts(&loaded) {
            return Vec::new();
        }
        known.has_looked_up = true;
        let found = look_up(loaded.address.wrapping_add(offset));
        known.keep(key, found.clone());
        found
    }

    fn source(&self, file: &str, line: u32) -> Option<SourceLines> {
        if self.with_source { source::lines_around(file, line) } else { None }
    }

    fn rest(&self) {
        if is_inherited() {
            return;
        }
        let mut known = self.known();
        if std::mem::take(&mut known.has_looked_up) {
            // What was read of debug information: tens of megabytes, which the next body hardly needs.
            backtrace::clear_symbol_cache();
        }
    }
}

impl Known {
    fn recall(&mut self, key: &(Box<[u8]>, u64)) -> Option<Vec<Symbol>> {
        if let Some(found) = self.young.get(key) {
            return Some(found.clone());
        }
        let (key, found) = self.old.remove_entry(key)?;
        self.keep(key, found.clone());
        Some(found)
    }

    fn keep(&mut self, key: (Box<[u8]>, u64), found: Vec<Symbol>) {
        if self.young.len() >= KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, found);
    }

    /// Whether the file of a loaded image is still what was loaded, and not too large.
    fn trusts(&mut self, loaded: &Image<'_>) -> bool {
        let Ok(file) = File::open(loaded.path) else { return false };
        let Some(identity) = Identity::of(&file) else { return false };
        if let Some((seen, is_trusted)) = self.files.get(loaded.path)
            && *seen == identity
        {
            return *is_trusted;
        }
        let is_trusted = identity.len <= LARGEST_FILE && elf::build_id_of(&file).as_deref() == Some(loaded.build_id);
        self.files.insert(loaded.path.into(), (identity, is_trusted));
        is_trusted
    }
}

impl Identity {
    fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok().filter(|metadata| metadata.is_file())?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Whether this is the child of a process that had a client. Our lock, and that of the lookup itself, which is one for the whole process,
/// may be held there by a thread that does not exist.
fn is_inherited() -> bool {
    fork::generation() != 0
}

/// The functions at a return address of this process, the outermost first.
fn look_up(address: u64) -> Vec<Symbol> {
    let Ok(address) = usize::try_from(address) else { return Vec::new() };
    let mut found = Vec::new();
    // It reads debug information that a compiler of any age may have written.
    let looked = catch_unwind(AssertUnwindSafe(|| {
        // Looks at the instruction before a return address by itself.
        backtrace::resolve(ptr::without_provenance_mut(address), |symbol| {
            if found.len() < MOST_INLINED {
                found.push(symbol_of(symbol));
            }
        });
    }));
    if looked.is_err() {
        return Vec::new();
    }
    found.retain(|symbol| !symbol.function.is_empty() || symbol.file.is_some());
    found.reverse();
    found
}

fn symbol_of(symbol: &backtrace::Symbol) -> Symbol {
    let mut function = String::new();
    if let Some(name) = symbol.name() {
        // The alternate form has neither the hash nor the disambiguators. Writing to a `String` cannot fail.
        let _written = write!(function, "{name:#}");
    }
    let file = symbol.filename().map(|path| beginning(&path.to_string_lossy(), NAME_KEPT).to_owned());
    Symbol { function: beginning(&function, NAME_KEPT).to_owned(), file, line: symbol.lineno() }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
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
        modules.images().find(|image| image.is_main).expect("an executable runs this")
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
            assert!(last.function.ends_with("symbols::tests::somewhere"), "{found:#?}");
            assert!(last.file.as_deref().unwrap().ends_with("src/crash/code/symbols.rs") && last.line.is_some());
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
}
