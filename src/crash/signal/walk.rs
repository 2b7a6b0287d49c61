//! Walks a stack from registers, in a process in which nothing can be trusted.
//!
//! Optimized code has no frame pointers, so the walk needs the unwind tables that the compiler generated. They are
//! located beforehand; reading them needs neither memory nor a lock. The stack is read only after a system call has
//! confirmed that the page is readable.

use std::ffi::{c_int, c_void};
use std::ops::{ControlFlow, Range};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use framehop::{
    CacheNative, ExplicitModuleSectionInfo, Module, MustNotAllocateDuringUnwind, Unwinder as _, UnwinderNative,
};
use nix::libc;

use super::stacks::Registers;
use crate::crash::buffers::FRAMES_MOST;
use crate::crash::stack::store_frame;
use crate::crash::symbols::loader;

type Tables = UnwinderNative<&'static [u8], MustNotAllocateDuringUnwind>;

/// Everything that a walk needs. Leaked, because a handler may be using it at any time.
struct Walker {
    tables: Tables,
    cache: CacheNative<MustNotAllocateDuringUnwind>,
    code: Vec<Range<u64>>,
}

static WALKER: AtomicPtr<Walker> = AtomicPtr::new(ptr::null_mut());

/// A walk that found no more frames than this has met code without unwind tables, such as musl's `abort`.
const TOO_FEW: usize = 3;
/// Words of the stack that are searched for a return address.
const WORDS_SCANNED: u64 = 256;
/// A deeper stack is a runaway recursion.
const FRAMES_WALKED: usize = 100_000;
const PAGE: u64 = 4096;

/// Locates the unwind tables of all loaded images.
pub(super) fn prepare() {
    let mut walker = Walker { tables: Tables::new(), cache: CacheNative::new_in(), code: Vec::new() };
    loader::each_image(&mut |info, segments| {
        add_object(info.dlpi_addr, segments, &mut walker);
        ControlFlow::Continue(())
    });
    WALKER.store(Box::into_raw(Box::new(walker)), Ordering::Release);
}

/// Walks with unwind tables. Only for the thread on our stack, because the cache of the walk exists once.
pub(super) fn fully(registers: &Registers, frames: &mut [u64; FRAMES_MOST], found: &AtomicUsize) {
    // SAFETY: null, or leaked by `prepare`. Only the owner of our stack gets here, and a walk that faulted is never
    // resumed.
    let Some(walker) = (unsafe { WALKER.load(Ordering::Acquire).as_mut() }) else {
        return by_frame_pointers(registers, frames, found);
    };
    let mut memory = Memory::default();
    let mut from = *registers;
    if !walker.is_code(from.pc) {
        // A call of an invalid address: the walk begins at its return address.
        store_frame(frames, found, from.pc.wrapping_add(1));
        match caller(registers, &mut memory) {
            Some(caller) => from = caller,
            None => return,
        }
    }
    walker.walk(FRAMES_WALKED, &from, &mut memory, frames, found);
    if found.load(Ordering::Relaxed) <= TOO_FEW {
        walker.scan(registers.sp, &mut memory, frames, found);
    }
}

/// Walks along frame pointers. Needs no preparation; in code without frame pointers it finds one frame.
pub(super) fn by_frame_pointers(registers: &Registers, frames: &mut [u64; FRAMES_MOST], found: &AtomicUsize) {
    store_frame(frames, found, registers.pc.wrapping_add(1));
    let mut memory = Memory::default();
    let mut frame = registers.fp;
    while found.load(Ordering::Relaxed) < FRAMES_MOST {
        let (Ok(above), Ok(address)) = (memory.read(frame), memory.read(frame.wrapping_add(8))) else { return };
        if address == 0 {
            return;
        }
        store_frame(frames, found, address);
        if above <= frame {
            return;
        }
        frame = above;
    }
}

impl Walker {
    fn is_code(&self, address: u64) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }

    fn walk(&mut self, most: usize, from: &Registers, memory: &mut Memory, frames: &mut [u64], found: &AtomicUsize) {
        let mut read = |address| memory.read(address);
        let mut walk = self.tables.iter_frames(from.pc, native(from), &mut self.cache, &mut read);
        let mut is_innermost = true;
        while let Ok(Some(frame)) = walk.next() {
            // The innermost address is that of the instruction itself, all others are return addresses. Readers look up
            // the byte before each address, so this one is stored incremented.
            store_frame(frames, found, frame.address().wrapping_add(u64::from(is_innermost)));
            is_innermost = false;
            if found.load(Ordering::Relaxed) >= most {
                return;
            }
        }
    }

    /// Searches the stack for a return address from which the tables lead on.
    fn scan(&mut self, from: u64, memory: &mut Memory, frames: &mut [u64], found: &AtomicUsize) {
        for word in 0..WORDS_SCANNED {
            let at = from.wrapping_add(word * 8);
            let Ok(candidate) = memory.read(at) else { return };
            let known = frames.get(..found.load(Ordering::Relaxed)).unwrap_or_default();
            if !self.is_code(candidate) || known.contains(&candidate) || !follows_a_call(candidate, memory) {
                continue;
            }
            let registers = Registers { pc: candidate.wrapping_sub(1), sp: at.wrapping_add(8), fp: 0, lr: 0 };
            let mut trial = [0; TOO_FEW + 1];
            let tried = AtomicUsize::new(0);
            self.walk(TOO_FEW + 1, &registers, memory, &mut trial, &tried);
            if tried.into_inner() > TOO_FEW {
                return self.walk(FRAMES_WALKED, &registers, memory, frames, found);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn native(registers: &Registers) -> framehop::x86_64::UnwindRegsX86_64 {
    framehop::x86_64::UnwindRegsX86_64::new(registers.pc, registers.sp, registers.fp)
}

#[cfg(target_arch = "aarch64")]
fn native(registers: &Registers) -> framehop::aarch64::UnwindRegsAarch64 {
    framehop::aarch64::UnwindRegsAarch64::new(registers.lr, registers.sp, registers.fp)
}

/// The caller, when the called function does not exist.
#[cfg(target_arch = "x86_64")]
fn caller(registers: &Registers, memory: &mut Memory) -> Option<Registers> {
    let pc = memory.read(registers.sp).ok()?;
    Some(Registers { pc, sp: registers.sp.wrapping_add(8), ..*registers })
}

#[cfg(target_arch = "aarch64")]
fn caller(registers: &Registers, _: &mut Memory) -> Option<Registers> {
    Some(Registers { pc: registers.lr, ..*registers })
}

/// Whether the bytes before an address are a call instruction.
#[cfg(target_arch = "x86_64")]
fn follows_a_call(address: u64, memory: &mut Memory) -> bool {
    let mut before = |distance: u64| memory.byte(address.wrapping_sub(distance)).unwrap_or(0);
    let is_indirect = |modrm: u8| modrm & 0x38 == 0x10;
    before(5) == 0xe8
        || (before(2) == 0xff && is_indirect(before(1)))
        || (before(3) == 0xff && is_indirect(before(2)))
        || (before(6) == 0xff && is_indirect(before(5)))
}

#[cfg(target_arch = "aarch64")]
fn follows_a_call(address: u64, memory: &mut Memory) -> bool {
    let mut before = |distance: u64| memory.byte(address.wrapping_sub(distance)).unwrap_or(0);
    let word = u32::from_le_bytes([before(4), before(3), before(2), before(1)]);
    // `bl`, and `blr` with any register.
    word >> 26 == 0b10_0101 || word & 0xffff_fc1f == 0xd63f_0000
}

/// Reads memory that may not be mapped.
#[derive(Default)]
struct Memory {
    /// The page that was checked last.
    page: u64,
    is_readable: bool,
}

impl Memory {
    /// Reads one word. A stack holds no unaligned words.
    #[allow(clippy::result_unit_err, reason = "the type that the walk asks for")]
    fn read(&mut self, address: u64) -> Result<u64, ()> {
        if !address.is_multiple_of(8) || !self.has(address) {
            return Err(());
        }
        // SAFETY: aligned, and the kernel has just read from the page. Another thread may unmap it; that is a fault
        // inside the handler, which `handle_nested` handles.
        Ok(unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u64>(address as usize)) })
    }

    fn byte(&mut self, address: u64) -> Option<u8> {
        // SAFETY: as in `read`.
        self.has(address).then(|| unsafe { ptr::read_volatile(ptr::with_exposed_provenance::<u8>(address as usize)) })
    }

    fn has(&mut self, address: u64) -> bool {
        let page = address - address % PAGE;
        if page == 0 {
            return false;
        }
        if self.page != page {
            (self.page, self.is_readable) = (page, is_readable(page));
        }
        self.is_readable
    }
}

/// Whether the page is readable. Asks the kernel for an invalid change of the signal mask: it reads the new mask before
/// it rejects the operation. Unlike the calls that read another process's memory, no sandbox forbids this one.
fn is_readable(page: u64) -> bool {
    let nonsense: c_int = -1;
    // SAFETY: changes nothing, whatever the address.
    let answer = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, nonsense, page, ptr::null::<c_void>(), 8usize) };
    answer == 0 || nix::errno::Errno::last() != nix::errno::Errno::EFAULT
}

/// Adds a loaded image, whose addresses are those in its headers plus `bias`, to the walker.
fn add_object(bias: u64, headers: &[libc::Elf64_Phdr], walker: &mut Walker) {
    // The bias is negative, in wrapping arithmetic, if an image is loaded below its linked address.
    let place = |header: &libc::Elf64_Phdr| {
        let start = bias.wrapping_add(header.p_vaddr);
        start..start.saturating_add(header.p_memsz)
    };
    let loaded = || headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let code = loaded().find(|header| header.p_flags & libc::PF_X != 0).map(place);
    let index = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME).map(place);
    let (Some(code), Some(index)) = (code, index) else { return };
    walker.code.push(code.clone());
    let start = loaded().map(|header| place(header).start).min().unwrap_or(bias);
    let end = loaded().map(|header| place(header).end).max().unwrap_or(bias);
    let Some(segment_end) = loaded().map(place).find(|segment| segment.contains(&index.start)).map(|found| found.end)
    else {
        return;
    };
    // SAFETY: a segment that the loader has mapped, and that stays mapped while the image is loaded. If an image is
    // unloaded later, reading its range is a fault inside the handler, which `handle_nested` handles.
    let bytes = |range: &Range<u64>| unsafe {
        let start = ptr::with_exposed_provenance::<u8>(range.start as usize);
        std::slice::from_raw_parts(start, (range.end - range.start) as usize)
    };
    let Some(frames) = frames_of(&index, bytes(&index), segment_end) else { return };
    let relative = |range: &Range<u64>| range.start.wrapping_sub(bias)..range.end.wrapping_sub(bias);
    walker.tables.add_module(Module::new(
        String::new(),
        start..end,
        bias,
        ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: Some(relative(&code)),
            text: Some(bytes(&code)),
            eh_frame_svma: Some(relative(&frames)),
            eh_frame: Some(bytes(&frames)),
            eh_frame_hdr_svma: Some(relative(&index)),
            eh_frame_hdr: Some(bytes(&index)),
            ..Default::default()
        },
    ));
}

/// Locates the unwind tables through their index, which holds the distance in the one encoding that linkers write.
/// Their length is not stored; they end with the segment at the latest.
fn frames_of(index: &Range<u64>, bytes: &[u8], segment_end: u64) -> Option<Range<u64>> {
    const VERSION: u8 = 1;
    const RELATIVE_FOUR_BYTES: u8 = 0x1b;
    let [VERSION, RELATIVE_FOUR_BYTES, _, _, distance @ ..] = bytes else { return None };
    let distance = i32::from_le_bytes(*distance.first_chunk()?);
    let start = index.start.wrapping_add(4).wrapping_add_signed(i64::from(distance));
    (start < segment_end).then_some(start..segment_end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::symbols::{InProcess, Modules};
    use crate::record::Symbols;

    #[inline(never)]
    fn victim() -> u32 {
        std::hint::black_box(7)
    }

    /// What PostHog finds for an address, and this library too: the function of the byte before it.
    fn function_at(address: u64) -> String {
        let modules = Modules::loaded();
        let image = modules.images().find(|image| image.contains(address)).unwrap();
        let found = InProcess::new(false).resolve(&image, address);
        found.first().map(|symbol| symbol.function.clone()).unwrap_or_default()
    }

    #[test]
    fn a_fault_on_a_first_instruction_has_its_own_function() {
        assert_eq!(std::hint::black_box(victim)(), 7);
        let first = victim as *const () as u64;
        let registers = Registers { pc: first, sp: 0, fp: 0, lr: 0 };
        let (mut frames, found) = ([0; FRAMES_MOST], AtomicUsize::new(0));
        by_frame_pointers(&registers, &mut frames, &found);
        assert_eq!((found.into_inner(), frames[0]), (1, first + 1));
        assert!(function_at(frames[0]).ends_with("victim"), "{}", function_at(frames[0]));
        assert!(!function_at(first).ends_with("victim"), "the byte before belongs to another function");
        // With tables, which end here at once because nothing is at the stack pointer.
        let mut walker = Walker { tables: Tables::new(), cache: CacheNative::new_in(), code: Vec::new() };
        loader::each_image(&mut |info, segments| {
            add_object(info.dlpi_addr, segments, &mut walker);
            ControlFlow::Continue(())
        });
        let (mut frames, found) = ([0; FRAMES_MOST], AtomicUsize::new(0));
        walker.walk(1, &registers, &mut Memory::default(), &mut frames, &found);
        assert_eq!((found.into_inner(), frames[0]), (1, first + 1));
    }
}
