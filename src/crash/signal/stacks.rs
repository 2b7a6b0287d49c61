//! Stacks of our own, each between two pages that nobody may touch: what does not fit faults, and overwrites nothing.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc;

/// Bytes of each stack. The walk was seen to need 16 KiB.
pub(super) const STACK_BYTES: usize = 128 * 1024;
/// Of the alternate stack that a thread is given.
const ALTERNATE_BYTES: usize = 64 * 1024;

/// Where the stack begins that the first thread goes on with; the entry reads it.
pub(super) static EMERGENCY_TOP: AtomicUsize = AtomicUsize::new(0);
/// The lowest byte of the one for faults of the handler itself: without it they would land on the stack whose signal frame is still
/// needed.
static NESTED_BOTTOM: AtomicUsize = AtomicUsize::new(0);

/// Maps both, with real memory: at the time of need the process may be at its limit.
pub(super) fn prepare() -> io::Result<()> {
    let (emergency, nested) = (map(STACK_BYTES)?, map(STACK_BYTES)?);
    for bottom in [emergency, nested] {
        for offset in (0..STACK_BYTES).step_by(1024) {
            // SAFETY: inside the mapping, which nobody uses yet: the handler is installed after this.
            unsafe { ptr::write_volatile(bottom.cast::<u8>().add(offset), 0) };
        }
    }
    NESTED_BOTTOM.store(nested.expose_provenance(), Ordering::SeqCst);
    EMERGENCY_TOP.store(emergency.expose_provenance().saturating_add(STACK_BYTES), Ordering::SeqCst);
    Ok(())
}

/// The alternate stack of the thread that is on the first one.
pub(super) fn nested() -> libc::stack_t {
    let bottom = ptr::with_exposed_provenance_mut(NESTED_BOTTOM.load(Ordering::SeqCst));
    libc::stack_t { ss_sp: bottom, ss_flags: 0, ss_size: STACK_BYTES }
}

/// So many bytes for a stack, below and above which nothing is. Never unmapped.
fn map(bytes: usize) -> io::Result<*mut c_void> {
    // SAFETY: asks only.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let whole = bytes.saturating_add(page.saturating_mul(2));
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: inside the mapping, which is longer by two pages.
    let bottom = unsafe { memory.byte_add(page) };
    // SAFETY: a part of the mapping that was just made.
    if unsafe { libc::mprotect(bottom, bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: the whole mapping, which nobody has seen.
        unsafe { libc::munmap(memory, whole) };
        return Err(error);
    }
    Ok(bottom)
}

/// Gives this thread an alternate stack if it has none, so that an overflow of its own stack can be told of. It is never given back: a
/// signal may arrive until the very end of the thread.
pub(in crate::crash) fn register_thread() -> io::Result<()> {
    let mut current = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: asks only, into memory of ours.
    if unsafe { libc::sigaltstack(ptr::null(), &mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if current.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    let stack = libc::stack_t { ss_sp: map(ALTERNATE_BYTES)?, ss_flags: 0, ss_size: ALTERNATE_BYTES };
    // SAFETY: the memory was just mapped and is never unmapped.
    if unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_lies_between_pages_that_nobody_may_touch() {
        let bottom = map(STACK_BYTES).unwrap().addr();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line_of = |address: usize| {
            let line = maps.lines().find(|line| {
                let (range, _) = line.split_once(' ').unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let number = |text| usize::from_str_radix(text, 16).unwrap();
                (number(from)..number(to)).contains(&address)
            });
            line.unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned()
        };
        assert_eq!(line_of(bottom), "rw-p");
        assert_eq!(line_of(bottom + STACK_BYTES - 1), "rw-p");
        assert_eq!([line_of(bottom - 1), line_of(bottom + STACK_BYTES)], ["---p", "---p"]);
    }
}
