//! The loaded images: the executable and its shared libraries, with their build ids.
//!
//! Listing them reads all their headers, so the list is cached until the loader reports a change. Linux only; on other
//! systems the list is empty, and frames have addresses only.

#![allow(unsafe_code, reason = "the loader's list of images; each block proves itself")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, TryLockError};

use object::elf::{ELF_NOTE_GNU, FileHeader64, NT_GNU_BUILD_ID, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, Note, NoteIterator, ProgramHeader};
use object::{LittleEndian, pod};

use crate::record::stack::Image;

/// The images that were loaded at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modules {
    modules: Arc<[Module]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Module {
    address: u64,
    size: u64,
    vmaddr: u64,
    is_main: bool,
    build_id: Box<[u8]>,
    path: Box<str>,
}

/// The list, and the loader's counters when it was made.
static KEPT: Mutex<Option<((u64, u64), Modules)>> = Mutex::new(None);

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
        loader::changes().0
    }

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
pub(in crate::crash) mod loader {
    use std::ffi::{CStr, c_int, c_void};
    use std::ops::ControlFlow;
    use std::ptr;

    use nix::libc::{Elf64_Phdr, PF_R, PT_LOAD, PT_NOTE, dl_iterate_phdr, dl_phdr_info};

    use super::Module;

    /// Appended by the kernel to the path of a deleted file.
    const DELETED: &str = " (deleted)";
    const PAGE: u64 = 4096;

    type Visit<'a> = &'a mut dyn FnMut(&dl_phdr_info, &[Elf64_Phdr]) -> ControlFlow<()>;

    /// Calls `visit` with each image and its segments, the executable first. `visit` runs under the loader's lock and
    /// below C frames, so it must not panic.
    pub(in crate::crash) fn each_image(mut visit: Visit<'_>) {
        /// # Safety
        ///
        /// Must be called by the loader, with a [`Visit`] as the last argument.
        unsafe extern "C" fn call(info: *mut dl_phdr_info, _size: usize, visit: *mut c_void) -> c_int {
            // SAFETY: the loader passes a valid image, and `visit` is what the caller below passed.
            let (info, visit) = unsafe { (&*info, &mut *visit.cast::<Visit<'_>>()) };
            let segments = match info.dlpi_phdr.is_null() {
                true => &[],
                // SAFETY: not null, so the loader's table has that many entries, and is valid during the callback.
                false => unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) },
            };
            visit(info, segments).is_break().into()
        }
        // SAFETY: `call` uses the pointer as this type, and it outlives the call.
        unsafe { dl_iterate_phdr(Some(call), ptr::from_mut(&mut visit).cast()) };
    }

    /// How often an image was loaded, and unloaded.
    pub(super) fn changes() -> (u64, u64) {
        let mut changes = (0, 0);
        each_image(&mut |info, _| {
            changes = (info.dlpi_adds, info.dlpi_subs);
            // Each image has the same counters.
            ControlFlow::Break(())
        });
        changes
    }

    pub(super) fn list() -> Vec<Module> {
        let mut modules: Vec<Module> = Vec::new();
        each_image(&mut |info, segments| {
            modules.push(read(info, segments));
            ControlFlow::Continue(())
        });
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

    fn read(info: &dl_phdr_info, segments: &[Elf64_Phdr]) -> Module {
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
    use super::Module;

    pub(super) fn changes() -> (u64, u64) {
        (0, 0)
    }

    pub(super) fn list() -> Vec<Module> {
        Vec::new()
    }
}

/// Maximum bytes read of a note segment.
const NOTES_READ: usize = 64 * 1024;
/// Maximum number of segments read; an executable has about a dozen.
const MOST_SEGMENTS: u16 = 128;

/// The build id in the notes of a segment, whose entries are aligned to `align`.
fn build_id(notes: &[u8], align: usize) -> Option<&[u8]> {
    // Any other value than 8 means 4.
    let align = if align == 8 { 8 } else { 4 };
    let notes = NoteIterator::<FileHeader64<LittleEndian>>::new(LittleEndian, align, notes).ok()?;
    let is_build_id = |note: &Note<'_, _>| note.n_type(LittleEndian) == NT_GNU_BUILD_ID && note.name() == ELF_NOTE_GNU;
    notes.map_while(Result::ok).filter(is_build_id).map(|note| note.desc()).find(|id| !id.is_empty())
}

/// The build id of a 64-bit ELF file. Reads the file instead of mapping it, since it may be truncated meanwhile.
pub(super) fn build_id_of(file: &File) -> Option<Vec<u8>> {
    let bytes = read_at(file, 0, size_of::<FileHeader64<LittleEndian>>())?;
    let (header, _) = pod::from_bytes::<FileHeader64<LittleEndian>>(&bytes).ok()?;
    let segment_len = size_of::<ProgramHeader64<LittleEndian>>();
    let is_read = header.is_supported()
        && header.is_little_endian()
        && usize::from(header.e_phentsize(LittleEndian)) == segment_len;
    is_read.then_some(())?;
    for place in 0..header.e_phnum(LittleEndian).min(MOST_SEGMENTS) {
        let at = header.e_phoff(LittleEndian).checked_add(u64::from(place) * segment_len as u64)?;
        let bytes = read_at(file, at, segment_len)?;
        let (segment, _) = pod::from_bytes::<ProgramHeader64<LittleEndian>>(&bytes).ok()?;
        if segment.p_type(LittleEndian) != PT_NOTE {
            continue;
        }
        let len = usize::try_from(segment.p_filesz(LittleEndian)).ok()?.min(NOTES_READ);
        let notes = read_at(file, segment.p_offset(LittleEndian), len)?;
        let align = usize::try_from(segment.p_align(LittleEndian)).unwrap_or(0);
        if let Some(found) = build_id(&notes, align) {
            return Some(found.to_vec());
        }
    }
    None
}

fn read_at(file: &File, at: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
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
        assert!(is_same || loader::changes() != (0, 0));
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
