//! The images that are loaded: the executable and its shared libraries, with their build ids.
//!
//! Listing them walks all their headers, so the list is kept, and made again only when the loader says that it has changed. Linux only:
//! elsewhere there are none, and frames have addresses alone.

#![allow(unsafe_code, reason = "the loader's list of images; each block proves itself")]

use std::sync::{Arc, Mutex, TryLockError};

use crate::record::stack::Image;

/// What is loaded, at one moment.
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

/// How often something was loaded, and unloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    loaded: u64,
    unloaded: u64,
}

static KEPT: Mutex<Option<(Changes, Modules)>> = Mutex::new(None);

impl Modules {
    /// What is loaded now.
    pub(crate) fn loaded() -> Self {
        let changes = loader::changes();
        let mut kept = match KEPT.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Somebody is listing them; in a forked child perhaps for ever.
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

    /// How often something was loaded since the process began.
    pub(crate) fn times_loaded() -> u64 {
        loader::changes().loaded
    }

    /// Each of them.
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

    use super::super::elf;
    use super::{Changes, Module};

    /// What the kernel writes behind the path of a file that is gone.
    const DELETED: &str = " (deleted)";
    const PAGE: u64 = 4096;

    /// How often the loader's list has changed.
    pub(super) fn changes() -> Changes {
        let mut changes = Changes::default();
        // SAFETY: `count` takes the pointer for what it is, and it lives until the call returns.
        unsafe { dl_iterate_phdr(Some(count), ptr::from_mut(&mut changes).cast()) };
        changes
    }

    /// The loader's list.
    pub(super) fn list() -> Vec<Module> {
        let mut modules: Vec<Module> = Vec::new();
        // SAFETY: `add` takes the pointer for what it is, and it lives until the call returns.
        unsafe { dl_iterate_phdr(Some(add), ptr::from_mut(&mut modules).cast()) };
        // The executable comes first and has no name. Asked for here and not under the loader's lock.
        if let Some(main) = modules.first_mut() {
            main.is_main = true;
            let path = std::fs::read_link("/proc/self/exe").unwrap_or_default();
            let path = path.to_string_lossy();
            main.path = path.strip_suffix(DELETED).unwrap_or(&path).into();
        }
        modules.retain(|module| module.size > 0);
        modules
    }

    /// Every image tells of all: the first ends the walk.
    ///
    /// # Safety
    ///
    /// For the loader to call, with [`Changes`] as the last argument.
    unsafe extern "C" fn count(info: *mut dl_phdr_info, _size: usize, changes: *mut c_void) -> c_int {
        // SAFETY: the loader gives a valid image, and `changes` is what the one caller gave.
        let (info, changes) = unsafe { (&*info, &mut *changes.cast::<Changes>()) };
        *changes = Changes { loaded: info.dlpi_adds, unloaded: info.dlpi_subs };
        1
    }

    /// # Safety
    ///
    /// For the loader to call, with a list of [`Module`]s as the last argument.
    unsafe extern "C" fn add(info: *mut dl_phdr_info, _size: usize, modules: *mut c_void) -> c_int {
        // SAFETY: the loader gives a valid image, and `modules` is what the one caller gave.
        let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Vec<Module>>()) };
        modules.push(read(info));
        0
    }

    /// Runs under the loader's lock, below C: nothing in it panics.
    fn read(info: &dl_phdr_info) -> Module {
        let segments = match info.dlpi_phdr.is_null() {
            true => &[],
            // SAFETY: not null, so the loader says that so many headers are there, and while it calls us they stay.
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
            // SAFETY: inside a readable segment of an image that stays loaded while the loader calls us, and no bytes of any type are
            // no bytes.
            let notes = unsafe { std::slice::from_raw_parts(address, note.p_filesz as usize) };
            if let Some(found) = elf::build_id(notes, note.p_align as usize) {
                build_id = found.into();
                break;
            }
        }
        let path = match info.dlpi_name.is_null() {
            true => Box::default(),
            // SAFETY: not null, so it is a string of C that lives as long as the image is loaded.
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_executable_comes_first_and_holds_the_code_that_runs() {
        let modules = Modules::loaded();
        let here = Modules::loaded as *const () as u64;
        let main = modules.images().next().unwrap();
        assert!(main.is_main && main.contains(here) && main.size > 1 << 16, "{main:x?}");
        assert_eq!(main.path, std::env::current_exe().unwrap().to_str().unwrap());
        assert_eq!(modules.images().filter(|image| image.is_main).count(), 1);
    }

    #[test]
    fn the_list_is_made_once_as_long_as_nothing_is_loaded() {
        let (one, other) = (Modules::loaded(), Modules::loaded());
        let is_same = Arc::ptr_eq(&one.modules, &other.modules);
        assert!(is_same || loader::changes() != Changes::default());
        let held = KEPT.lock();
        assert_eq!(Modules::loaded().modules, loader::list().into(), "who finds it locked lists for himself");
        drop(held);
    }
}
