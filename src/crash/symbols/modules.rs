//! The loaded images: the executable and its shared libraries, with their build ids.
//!
//! Listing them reads all their headers, so the list is cached until the loader reports a change. Linux only; on other
//! systems the list is empty, and frames have addresses only.

#![allow(unsafe_code, reason = "the loader's list of images; each block proves itself")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, TryLockError};

use crate::record::stack::Image;

/// The images that were loaded at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modules {
    modules: Arc<[Module]>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Module {
    address: u64,
    size: u64,
    vmaddr: u64,
    is_main: bool,
    build_id: Box<[u8]>,
    path: Box<str>,
}

/// How often an image was loaded and unloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    loaded: u64,
    unloaded: u64,
}

static KEPT: Mutex<Option<(Changes, Modules)>> = Mutex::new(None);

impl Modules {
    /// The images that are loaded now.
    pub(crate) fn loaded() -> Self {
        let changes = loader::changes();
        let mut kept = match KEPT.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another thread is listing them; in a forked child it may never finish.
            Err(TryLockError::WouldBlock) => return Self { modules: loader::list().into() },
        };
        match &*kept {
            Some((at, modules)) if *at == changes => modules.clone(),
            _ => {
                let modules = Self { modules: loader::list().into() };
                *kept = Some((changes, modules.clone()));
                modules
            }
        }
    }

    /// How often an image was loaded since the process began.
    pub(crate) fn times_loaded() -> u64 {
        loader::changes().loaded
    }

    /// Iterates over the images.
    pub(crate) fn images(&self) -> impl Iterator<Item = Image<'_>> {
        self.modules.iter().map(|module| Image {
            address: module.address,
            size: module.size,
            vmaddr: module.vmaddr,
            is_main: module.is_main,
            build_id: &module.build_id,
            path: &module.path,
        })
    }
}

#[cfg(target_os = "linux")]
mod loader {
    use std::ffi::{CStr, c_int, c_void};
    use std::ptr;

    use nix::libc::{PF_R, PT_LOAD, PT_NOTE, dl_iterate_phdr, dl_phdr_info};

    use super::{Changes, Module};

    /// Appended by the kernel to the path of a deleted file.
    const DELETED: &str = " (deleted)";
    const PAGE: u64 = 4096;

    /// The loader's counters of changes.
    pub(super) fn changes() -> Changes {
        let mut changes = Changes::default();
        // SAFETY: `count` uses the pointer as this type, and it outlives the call.
        unsafe { dl_iterate_phdr(Some(count), ptr::from_mut(&mut changes).cast()) };
        changes
    }

    /// Lists the images.
    pub(super) fn list() -> Vec<Module> {
        let mut modules: Vec<Module> = Vec::new();
        // SAFETY: `add` uses the pointer as this type, and it outlives the call.
        unsafe { dl_iterate_phdr(Some(add), ptr::from_mut(&mut modules).cast()) };
        // The executable is listed first, without a name. Its path is read here, and not under the loader's lock.
        if let Some(main) = modules.first_mut() {
            main.is_main = true;
            let path = std::fs::read_link("/proc/self/exe").unwrap_or_default();
            let path = path.to_string_lossy();
            main.path = path.strip_suffix(DELETED).unwrap_or(&path).into();
        }
        modules.retain(|module| module.size > 0);
        modules
    }

    /// Each image has the same counters, so the first ends the iteration.
    ///
    /// # Safety
    ///
    /// Must be called by the loader, with [`Changes`] as the last argument.
    unsafe extern "C" fn count(info: *mut dl_phdr_info, _size: usize, changes: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid image, and `changes` is what the caller above passed.
        let (info, changes) = unsafe { (&*info, &mut *changes.cast::<Changes>()) };
        *changes = Changes { loaded: info.dlpi_adds, unloaded: info.dlpi_subs };
        1
    }

    /// # Safety
    ///
    /// Must be called by the loader, with a list of [`Module`]s as the last argument.
    unsafe extern "C" fn add(info: *mut dl_phdr_info, _size: usize, modules: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid image, and `modules` is what the caller above passed.
        let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Vec<Module>>()) };
        modules.push(read(info));
        0
    }

    /// Runs under the loader's lock and below C frames, so nothing in it panics.
    fn read(info: &dl_phdr_info) -> Module {
        let segments = match info.dlpi_phdr.is_null() {
            true => &[],
            // SAFETY: not null, so the loader's table has that many entries, and is valid during the callback.
            false => unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) },
        };
        let loads = || segments.iter().filter(|segment| segment.p_type == PT_LOAD);
        let start = loads().map(|load| load.p_vaddr).min().unwrap_or(0) & !(PAGE - 1);
        let end = loads().map(|load| load.p_vaddr.saturating_add(load.p_memsz)).max().unwrap_or(0);
        let mut build_id: Box<[u8]> = Box::default();
        for note in segments.iter().filter(|segment| segment.p_type == PT_NOTE) {
            let is_readable = loads().any(|load| {
                load.p_flags & PF_R != 0
                    && load.p_vaddr <= note.p_vaddr
                    && note.p_vaddr.saturating_add(note.p_filesz) <= load.p_vaddr.saturating_add(load.p_filesz)
            });
            if !is_readable {
                continue;
            }
            let address = info.dlpi_addr.wrapping_add(note.p_vaddr) as *const u8;
            // SAFETY: inside a readable segment of an image that stays loaded during the callback; any bytes are valid
            // `u8`s.
            let notes = unsafe { std::slice::from_raw_parts(address, note.p_filesz as usize) };
            if let Some(found) = super::build_id(notes, note.p_align as usize) {
                build_id = found.into();
                break;
            }
        }
        let path = match info.dlpi_name.is_null() {
            true => Box::default(),
            // SAFETY: not null, so it is a C string that lives while the image is loaded.
            false => unsafe { CStr::from_ptr(info.dlpi_name) }.to_string_lossy().into(),
        };
        let address = info.dlpi_addr.wrapping_add(start);
        Module { address, size: end.saturating_sub(start), vmaddr: start, is_main: false, build_id, path }
    }
}

#[cfg(not(target_os = "linux"))]
mod loader {
    use super::{Changes, Module};

    pub(super) fn changes() -> Changes {
        Changes::default()
    }

    pub(super) fn list() -> Vec<Module> {
        Vec::new()
    }
}

/// Maximum bytes read of a note segment.
const NOTES_READ: usize = 64 * 1024;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Maximum number of segments read; an executable has about a dozen.
const MOST_SEGMENTS: u64 = 128;
const NOTE_SEGMENT: u32 = 4;
const GNU_BUILD_ID: u32 = 3;

/// The build id in the notes of a segment, whose entries are aligned to `align`.
fn build_id(notes: &[u8], align: usize) -> Option<&[u8]> {
    // Any other value than 8 means 4.
    let align = if align == 8 { 8 } else { 4 };
    let mut rest = notes;
    loop {
        let (name_len, content_len, kind) = (u32_at(rest, 0)?, u32_at(rest, 4)?, u32_at(rest, 8)?);
        let name = rest.get(12..)?.get(..usize::try_from(name_len).ok()?)?;
        let at = name.len().checked_add(12)?.checked_next_multiple_of(align)?;
        let content = rest.get(at..)?.get(..usize::try_from(content_len).ok()?)?;
        if kind == GNU_BUILD_ID && name == b"GNU\0" && !content.is_empty() {
            return Some(content);
        }
        let next = at.checked_add(content.len())?.checked_next_multiple_of(align)?;
        rest = rest.get(next..)?;
    }
}

/// The build id of a 64-bit ELF file.
pub(super) fn build_id_of(file: &File) -> Option<Vec<u8>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    (header.starts_with(b"\x7fELF\x02\x01")).then_some(())?;
    let (start, count) = (u64_at(&header, 32)?, u64::from(u16_at(&header, 56)?));
    (u16_at(&header, 54)? as usize == PROGRAM_HEADER).then_some(())?;
    for place in 0..count.min(MOST_SEGMENTS) {
        let mut segment = [0; PROGRAM_HEADER];
        let at = start.checked_add(place * PROGRAM_HEADER as u64)?;
        file.read_exact_at(&mut segment, at).ok()?;
        if u32_at(&segment, 0)? != NOTE_SEGMENT {
            continue;
        }
        let len = usize::try_from(u64_at(&segment, 32)?).ok()?.min(NOTES_READ);
        let mut notes = vec![0; len];
        file.read_exact_at(&mut notes, u64_at(&segment, 8)?).ok()?;
        let align = usize::try_from(u64_at(&segment, 48)?).unwrap_or(0);
        if let Some(found) = build_id(&notes, align) {
            return Some(found.to_vec());
        }
    }
    None
}

// All supported machines are little-endian.

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_executable_comes_first_and_holds_the_code_that_runs() {
        let modules = Modules::loaded();
        let here = Modules::loaded as *const () as u64;
        let main = modules.images().next().unwrap();
        assert!(main.is_main && main.contains(here) && main.size > 1 << 16, "{main:x?}");
        assert_eq!(main.path, std::env::current_exe().unwrap().to_str().unwrap());
        assert_eq!(modules.images().filter(|image| image.is_main).count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_list_is_made_once_as_long_as_nothing_is_loaded() {
        let (one, other) = (Modules::loaded(), Modules::loaded());
        let is_same = Arc::ptr_eq(&one.modules, &other.modules);
        assert!(is_same || loader::changes() != Changes::default());
        let held = KEPT.lock();
        assert_eq!(
            Modules::loaded().modules,
            loader::list().into(),
            "a thread that finds it locked lists the images itself"
        );
        drop(held);
    }

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name.len() as u32, content.len() as u32, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        for part in [name, content] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let notes = [note(b"GNU\0", 1, &[1; 16]), note(b"stapsdt\0", 3, &[2; 5]), note(b"GNU\0", 3, &[3; 20])].concat();
        assert_eq!(build_id(&notes, 4), Some(&[3; 20][..]));
        assert_eq!(build_id(&notes[..notes.len() - 1], 4), None);
        assert_eq!(build_id(&[0xff; 64], 4), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_file_of_this_process_has_the_build_id_of_its_image() {
        let modules = Modules::loaded();
        let main = modules.images().find(|image| image.is_main).unwrap();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(build_id_of(&file).unwrap_or_default(), main.build_id);
        assert_eq!(build_id_of(&File::open(file!()).unwrap()), None, "a source is no executable");
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_build_id_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), align in 0usize..20) {
            let _found = build_id(&bytes, align);
        }
    }
}
