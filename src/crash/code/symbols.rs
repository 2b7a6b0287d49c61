//! What an address means, as far as this process can tell: from the debug information of images that it has loaded itself.
//!
//! An address is looked up in the image of the same build id, wherever that lies now; so the stacks that an earlier process of the same
//! executable left have names too. The file is only believed if it has that build id as well: it may have been replaced under us.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::debug_file::{DebugFile, Found, LARGEST_FILE, MOST_DECOMPRESSED};
use super::modules::Modules;
use super::{elf, source};
use crate::record::Symbols;
use crate::record::stack::Image;
use crate::record::symbols::{SourceLines, Symbol};
use crate::sys::disk::fork;
use crate::sys::limits::beginning;
use crate::sys::machine;

/// What looking up may take at its peak. Where the process's control group has less, names are left out.
const MEMORY_NEEDED: u64 = 24 * 1024 * 1024;
/// Addresses whose names are kept, twice over.
pub(super) const KEPT: usize = 512;
/// Functions that may be inlined at one address.
const MOST_INLINED: usize = 32;
/// Bytes of a function's name, or of a file's, that are kept.
pub(super) const NAME_KEPT: usize = 512;

/// The symbols of this process.
#[derive(Debug)]
pub(crate) struct InProcess {
    with_source: bool,
    pub(super) known: Mutex<Known>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    /// Names by build id and offset, those that were asked for lately, and before.
    pub(super) young: HashMap<(Box<[u8]>, u64), Vec<Symbol>>,
    pub(super) old: HashMap<(Box<[u8]>, u64), Vec<Symbol>>,
    /// Which files were looked at, what they were then, and whether they are what is loaded.
    files: HashMap<Box<str>, (Identity, bool)>,
    /// Debug information by build id, while a body is made; `None` where there is none, or no memory for it.
    pub(super) opened: HashMap<Box<[u8]>, Option<DebugFile>>,
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

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
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
        let decompressed: usize = known.opened.values().flatten().map(DebugFile::decompressed).sum();
        let room = MOST_DECOMPRESSED.saturating_sub(decompressed);
        let debug_file = known.opened.entry(loaded.build_id.into()).or_insert_with(|| open(&loaded, room));
        // What is left out for want of memory is not kept as if there were no name.
        let Some(debug_file) = debug_file else { return Vec::new() };
        // The instruction before a return address is the call.
        let found = look_up(debug_file, loaded.vmaddr.wrapping_add(offset).wrapping_sub(1));
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
        // What was read of debug information, which the next body hardly needs.
        self.known().opened = HashMap::new();
    }
}

impl Known {
    pub(super) fn recall(&mut self, key: &(Box<[u8]>, u64)) -> Option<Vec<Symbol>> {
        if let Some(found) = self.young.get(key) {
            return Some(found.clone());
        }
        let (key, found) = self.old.remove_entry(key)?;
        self.keep(key, found.clone());
        Some(found)
    }

    pub(super) fn keep(&mut self, key: (Box<[u8]>, u64), found: Vec<Symbol>) {
        if self.young.len() >= KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, found);
    }

    /// Whether the file of a loaded image is still what was loaded, and not too large.
    pub(super) fn trusts(&mut self, loaded: &Image<'_>) -> bool {
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

/// Whether this is the child of a process that had a client. Our lock may be held there by a thread that does not exist.
fn is_inherited() -> bool {
    fork::generation() != 0
}

/// The debug information of a loaded image, if there is memory to read it in.
fn open(loaded: &Image<'_>, room: usize) -> Option<DebugFile> {
    if machine::free_memory().is_some_and(|free| free < MEMORY_NEEDED) {
        return None;
    }
    // A compiler of any age may have written it.
    catch_unwind(AssertUnwindSafe(|| DebugFile::of_image(Path::new(loaded.path), loaded.build_id, room))).ok().flatten()
}

/// The functions at an address of a file, the outermost first.
fn look_up(file: &mut DebugFile, address: u64) -> Vec<Symbol> {
    let found = catch_unwind(AssertUnwindSafe(|| file.look_up(address))).unwrap_or_default();
    let mut symbols: Vec<_> = found.into_iter().take(MOST_INLINED).map(symbol_of).collect();
    symbols.retain(|symbol| !symbol.function.is_empty() || symbol.file.is_some());
    symbols.reverse();
    symbols
}

fn symbol_of(found: Found) -> Symbol {
    let mut function = String::new();
    if let Some(name) = found.name {
        // The alternate form has neither the hash nor the disambiguators. Writing to a `String` cannot fail.
        let _written = write!(function, "{:#}", backtrace::SymbolName::new(&name));
    }
    let file = found.file.map(|path| beginning(&path, NAME_KEPT).to_owned());
    Symbol { function: beginning(&function, NAME_KEPT).to_owned(), file, line: found.line }
}
