//! Symbols: the loaded images, and the function, file and line of an address.
//!
//! A stack is captured as raw return addresses (`stack.rs` of the parent folder). Names are looked up when the event is
//! sent, on the delivery thread, in the debug information of the images that are loaded then (`modules.rs`). An address
//! belongs to the image with the same build id, wherever that is loaded now: so the stacks that an earlier process of
//! the same executable left get names, too. An image's file is used only if it still has that build id, since it may
//! have been replaced.
//!
//! Looking up names uses a bounded amount of memory: `debug_file.rs` parses debug information one unit at a time, from
//! mapped files. Nothing is kept open after a request body is finished; names of recent addresses are cached.
//!
//! # Operations
//!
//! [`Modules::loaded`] lists the images, [`InProcess`] implements [`Symbols`] for this process.

mod debug_file;
mod modules;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{BufRead, BufReader, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::record::Symbols;
use crate::record::stack::Image;
use crate::record::symbols::{CONTEXT_LINES, InAppRules, SourceLines, Symbol};
use crate::sys::disk::fork;
use crate::sys::machine;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use debug_file::look_up_in_any;
use debug_file::{DebugFile, LARGEST_FILE, MOST_DECOMPRESSED};
pub(crate) use modules::Modules;
#[cfg(all(feature = "crash-signals", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) use modules::loader;

/// Peak memory of a look-up. If the process's control group has less available, frames get no names.
const MEMORY_NEEDED: u64 = 24 * 1024 * 1024;
/// Names are cached for this many addresses.
const KEPT: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Symbols from the debug information of the images loaded in this process.
#[derive(Debug)]
pub(crate) struct InProcess {
    with_source: bool,
    /// Whether images that are not loaded here are looked up too, in the file at their path.
    of_any_process: bool,
    in_app: Arc<InAppRules>,
    known: Mutex<Known>,
}

/// The path of an image, and its build id.
type BuildAt = (Box<str>, Box<[u8]>);
/// Device, inode, length, and seconds and nanoseconds of the last change.
type FileVersion = [u64; 5];

#[derive(Debug)]
struct Known {
    /// Names by build id and offset.
    names: LruCache<(Box<[u8]>, u64), Vec<Symbol>>,
    /// By path and build id: the file when it was checked, and whether it has that build id.
    files: HashMap<BuildAt, (FileVersion, bool)>,
    /// Debug information by build id, while a request body is composed; `None` if there is none, or not enough memory.
    opened: HashMap<Box<[u8]>, Option<DebugFile>>,
}

impl InProcess {
    /// With `with_source`, also provides the source lines around each location.
    pub(crate) fn new(with_source: bool) -> Self {
        Self { with_source, of_any_process: false, in_app: Arc::default(), known: Mutex::default() }
    }

    /// Also the images of other processes: names come from the file at the path of an image, if it still has the image's
    /// build id.
    #[cfg(feature = "inspect")]
    pub(crate) fn of_any_process() -> Self {
        Self { of_any_process: true, ..Self::new(false) }
    }

    /// With the program's rules about its own frames.
    pub(crate) fn with_rules(self, in_app: Arc<InAppRules>) -> Self {
        Self { in_app, ..self }
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
        if let Some(found) = known.names.get(&key) {
            return found.clone();
        }
        let modules = Modules::loaded();
        let loaded = modules.images().find(|loaded| loaded.build_id == image.build_id);
        let Some(loaded) = loaded.or(self.of_any_process.then_some(*image)) else { return Vec::new() };
        if offset > loaded.size || !known.trusts(&loaded) {
            return Vec::new();
        }
        let decompressed: usize = known.opened.values().flatten().map(DebugFile::decompressed).sum();
        let budget = MOST_DECOMPRESSED.saturating_sub(decompressed);
        let debug_file = known.opened.entry(loaded.build_id.into()).or_insert_with(|| open(&loaded, budget));
        // Not cached: the name may be found when more memory is available.
        let Some(debug_file) = debug_file else { return Vec::new() };
        // The byte before a return address belongs to the call.
        let found = look_up(debug_file, loaded.vmaddr.wrapping_add(offset).wrapping_sub(1));
        known.names.put(key, found.clone());
        found
    }

    fn source(&self, file: &str, line: u32) -> Option<SourceLines> {
        if self.with_source { lines_around(file, line) } else { None }
    }

    fn is_in_app(&self, function: &str, file: Option<&str>, in_executable: bool) -> bool {
        self.in_app.is_in_app(function, file, in_executable)
    }

    fn rest(&self) {
        if is_inherited() {
            return;
        }
        // The next body is unlikely to need the same debug information.
        self.known().opened = HashMap::new();
    }
}

impl Default for Known {
    fn default() -> Self {
        Self { names: LruCache::sparse(KEPT), files: HashMap::new(), opened: HashMap::new() }
    }
}

impl Known {
    /// Whether the file of a loaded image has the image's build id, and is not too large.
    fn trusts(&mut self, loaded: &Image<'_>) -> bool {
        let Ok(file) = File::open(loaded.path) else { return false };
        let Some(found) = file.metadata().ok().filter(Metadata::is_file) else { return false };
        let (seconds, nanos) = (found.mtime().cast_unsigned(), found.mtime_nsec().cast_unsigned());
        let version = [found.dev(), found.ino(), found.len(), seconds, nanos];
        let key = (Box::from(loaded.path), Box::from(loaded.build_id));
        if let Some((seen, is_trusted)) = self.files.get(&key)
            && *seen == version
        {
            return *is_trusted;
        }
        let is_trusted = found.len() <= LARGEST_FILE && modules::build_id_of(&file).as_deref() == Some(loaded.build_id);
        self.files.insert(key, (version, is_trusted));
        is_trusted
    }
}

/// Whether this is a forked child, in which a thread that does not exist may hold our lock.
fn is_inherited() -> bool {
    fork::generation() != 0
}

/// Opens the debug information of a loaded image, if enough memory is available.
fn open(loaded: &Image<'_>, budget: usize) -> Option<DebugFile> {
    if machine::free_memory().is_some_and(|free| free < MEMORY_NEEDED) {
        return None;
    }
    // Debug information is foreign input, so a panic of the parser is caught.
    catch_unwind(AssertUnwindSafe(|| DebugFile::of_image(Path::new(loaded.path), loaded.build_id, budget)))
        .ok()
        .flatten()
}

/// The functions at an address of a file, outermost first.
fn look_up(file: &mut DebugFile, address: u64) -> Vec<Symbol> {
    let mut symbols = catch_unwind(AssertUnwindSafe(|| file.look_up(address))).unwrap_or_default();
    symbols.retain(|symbol| !symbol.function.is_empty() || symbol.file.is_some());
    symbols.reverse();
    symbols
}

/// Maximum bytes read of a source file.
const FILE_READ: u64 = 4 * 1024 * 1024;
/// Maximum bytes kept of a line.
const LINE_KEPT: usize = 400;

/// The given line of a file, counted from 1, and the lines around it. `None` if it is not a regular file, or has fewer
/// lines.
fn lines_around(file: &str, line: u32) -> Option<SourceLines> {
    let at = usize::try_from(line).ok()?.checked_sub(1)?;
    // The path may be anything by now, and opening a pipe would block.
    std::fs::metadata(file).ok().filter(|metadata| metadata.is_file())?;
    let mut reader = BufReader::new(File::open(file).ok()?.take(FILE_READ));
    let first = at.saturating_sub(CONTEXT_LINES);
    let mut bytes = Vec::new();
    let mut found = SourceLines::default();
    let mut is_found = false;
    for number in 0..=at.saturating_add(CONTEXT_LINES) {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).ok()? == 0 {
            break;
        }
        if number < first {
            continue;
        }
        let text = text_of(&bytes);
        match number {
            _ if number < at => found.before.push(text),
            _ if number == at => (found.line, is_found) = (text, true),
            _ => found.after.push(text),
        }
    }
    is_found.then_some(found)
}

fn text_of(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line.get(..LINE_KEPT).unwrap_or(line)).into_owned()
}
