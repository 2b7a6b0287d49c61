//! Repairs by earlier handlers: at which sites faults are usually repaired, and which threads are inside an earlier
//! handler now.
//!
//! A safepoint of a managed runtime causes thousands of faults of one instruction at one address. A stack walk and a
//! record for each would cost more than the runtime's own handling. So after a few repairs at a site, further faults
//! there are passed on at once, without a record; if one is not repaired, it comes back to `handler.rs` and is recorded
//! then.
//!
//! A signal that arrives inside an earlier handler belongs to the signal that is being handled. A handler that is left
//! by a jump gives no notice, so an entry may be stale; the mask and stack pointer of the thread's next signal tell
//! whether it is. The entries are not thread-locals, because a thread-local of a library that was loaded later may be
//! allocated with `malloc`.
//!
//! Everything is lock-free and bounded. Of sites that share a row, the one with the fewest repairs is replaced.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc::{c_int, siginfo_t};

use super::previous::{self, bit_of};
use crate::crash::report_file::{Provisional, Recorded};

/// Repairs at a site before its faults are passed on without a record.
const REPAIRS_UNTIL_KNOWN: u64 = 4;
/// Number of sites that are remembered, and of those that are searched for one site.
const SITES: usize = 1024;
const ROW: usize = 4;
/// Addresses in the same region are one site: memory that is allocated on access faults page by page. A wild address is
/// unlikely to be in a region where the same instruction was repaired.
const REGION_BITS: u32 = 21;
/// The bits of a word that hold the number of repairs. The other bits identify the site.
const COUNT: u64 = 0xff;

/// A faulting instruction and the region that it accesses, as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FaultSite(u64);

impl FaultSite {
    /// The site of a signal that was sent: it may come from anywhere, and is never counted.
    pub(super) const NONE: Self = Self(0);

    /// The site of a signal; `info` as given by the kernel.
    pub(super) fn of(signal: c_int, info: *const siginfo_t, pc: u64) -> Self {
        if !previous::is_raised_by_kernel(info) {
            return Self::NONE;
        }
        // SAFETY: the kernel's structure is valid while the handler runs; a signal that was not sent has an address.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr() as u64) };
        Self::at(signal, code, address, pc)
    }

    fn at(signal: c_int, code: c_int, address: u64, pc: u64) -> Self {
        let what = u64::from(signal.cast_unsigned()) << 32 | u64::from(code.cast_unsigned());
        let mixed = [pc, address >> REGION_BITS, what]
            .iter()
            .fold(0u64, |mixed, part| (mixed ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        // Never 0, which is `NONE`.
        Self(mixed & !COUNT | (COUNT + 1))
    }

    fn row(self) -> usize {
        (self.0 >> 32) as usize % (SITES / ROW) * ROW
    }
}

/// The number of repairs at each site.
pub(super) struct RepairCounts([AtomicU64; SITES]);

/// Repairs in this process.
pub(super) static REPAIR_COUNTS: RepairCounts = RepairCounts::new();

impl RepairCounts {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; SITES])
    }

    /// Makes the kernel allocate its memory.
    pub(super) fn prefault(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Whether a fault at this site is likely to be repaired, too.
    pub(super) fn is_known_repairable(&self, site: FaultSite) -> bool {
        site != FaultSite::NONE
            && self.row_of(site).any(|word| is_of(word, site) && word & COUNT >= REPAIRS_UNTIL_KNOWN)
    }

    /// Counts a repair at the site. A count by another thread at the same moment may be lost.
    pub(super) fn count(&self, site: FaultSite) {
        if site == FaultSite::NONE || self.is_known_repairable(site) {
            return;
        }
        let row = || site.row()..site.row() + ROW;
        let known = row().find(|at| is_of(self.word(*at), site));
        let Some(at) = known.or_else(|| row().min_by_key(|at| self.word(*at) & COUNT)) else { return };
        let repaired = if known.is_some() { self.word(at) & COUNT } else { 0 };
        if let Some(word) = self.0.get(at) {
            word.store(site.0 | (repaired + 1), Ordering::Relaxed);
        }
    }

    fn row_of(&self, site: FaultSite) -> impl Iterator<Item = u64> {
        (site.row()..site.row() + ROW).map(|at| self.word(at))
    }

    fn word(&self, at: usize) -> u64 {
        self.0.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

fn is_of(word: u64, site: FaultSite) -> bool {
    word & !COUNT == site.0
}

/// Number of entries, and of those that are searched for one thread. A thread that finds no free entry takes that of
/// another, whose nested signals may then be recorded twice.
const ENTRIES: usize = 1024;
const PROBED: usize = 16;
/// If the mask does not decide, a signal at most this many bytes below the call's stack pointer is taken to be inside
/// the call.
const DEEPEST: u64 = 64 * 1024;

struct CallEntry {
    /// Thread, signal and whether it is blocked; 0 if the entry is free.
    who: AtomicU64,
    /// See [`bits_of`].
    recorded: AtomicU64,
    /// The stack pointer when the earlier handler was called.
    stack: AtomicU64,
    /// The [`FaultSite`] of the signal.
    site: AtomicU64,
}

static CALLS: [CallEntry; ENTRIES] = [const {
    CallEntry { who: AtomicU64::new(0), recorded: AtomicU64::new(0), stack: AtomicU64::new(0), site: AtomicU64::new(0) }
}; ENTRIES];

/// A call of an earlier handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) signal: i32,
    /// Whether the kernel blocks the signal while its handler runs (the default).
    pub(super) is_blocked: bool,
    /// The record of the signal that it handles, written before the call.
    pub(super) recorded: Recorded,
    pub(super) site: FaultSite,
    /// The stack pointer at the call.
    pub(super) stack: u64,
}

/// The bit of [`bits_of`] that stands for a signal without a record.
pub(super) const UNRECORDED: u64 = 1 << 6;
const SLOT_AT: u32 = 2;
const SLOT_MASK: u64 = 0xf;
const NUMBER_AT: u32 = 8;

/// A record as one word, whose two lowest bits are unused.
pub(super) fn bits_of(recorded: Recorded) -> u64 {
    match recorded {
        Recorded::None => UNRECORDED,
        Recorded::Provisional(record) => (record.slot as u64 + 1) << SLOT_AT | record.number << NUMBER_AT,
        Recorded::Final => 0,
    }
}

/// The inverse of [`bits_of`].
pub(super) fn recorded_in(bits: u64) -> Recorded {
    match (bits >> SLOT_AT & SLOT_MASK) as usize {
        0 if bits & UNRECORDED != 0 => Recorded::None,
        0 => Recorded::Final,
        slot => Recorded::Provisional(Provisional { slot: slot - 1, number: bits >> NUMBER_AT }),
    }
}

impl Call {
    /// Whether the call is still in progress when `signal` interrupts a thread with this mask and stack pointer. Pure.
    pub(super) fn goes_on(&self, signal: i32, mask: u64, stack: u64) -> bool {
        if self.is_blocked && mask & bit_of(self.signal) != 0 {
            return true;
        }
        // Some handlers unblock their signal when they give up; or it was never blocked.
        signal != self.signal && stack <= self.stack && self.stack.wrapping_sub(stack) <= DEEPEST
    }
}

/// Notes that the thread is about to make the call.
pub(super) fn enter(thread: i32, call: &Call) {
    let who = word_of(thread, call);
    let own = entries_of(thread).find(|entry| thread_in(entry.who.load(Ordering::Relaxed)) == thread);
    let free = || {
        entries_of(thread)
            .find(|entry| entry.who.compare_exchange(0, who, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    };
    if let Some(entry) = own.or_else(free).or_else(|| entries_of(thread).next()) {
        entry.stack.store(call.stack, Ordering::Relaxed);
        entry.site.store(call.site.0, Ordering::Relaxed);
        entry.recorded.store(bits_of(call.recorded), Ordering::Relaxed);
        entry.who.store(who, Ordering::Relaxed);
    }
}

/// Notes that the thread has returned from its call.
pub(super) fn leave(thread: i32) {
    for entry in entries_of(thread) {
        let who = entry.who.load(Ordering::Relaxed);
        if thread_in(who) == thread {
            let _ = entry.who.compare_exchange(who, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// The call that the thread began and has not returned from.
pub(super) fn call_of(thread: i32) -> Option<Call> {
    let entry = entries_of(thread).find(|entry| thread_in(entry.who.load(Ordering::Relaxed)) == thread)?;
    let (stack, site) = (entry.stack.load(Ordering::Relaxed), FaultSite(entry.site.load(Ordering::Relaxed)));
    let recorded = recorded_in(entry.recorded.load(Ordering::Relaxed));
    let who = entry.who.load(Ordering::Relaxed);
    let call = Call { signal: (who as u8).into(), is_blocked: who & IS_BLOCKED != 0, recorded, site, stack };
    // Unless another thread took the entry meanwhile.
    (thread_in(who) == thread).then_some(call)
}

const IS_BLOCKED: u64 = 1 << 8;

fn word_of(thread: i32, call: &Call) -> u64 {
    let blocked = if call.is_blocked { IS_BLOCKED } else { 0 };
    u64::from(thread.cast_unsigned()) << 32 | blocked | u64::from(call.signal as u8)
}

fn thread_in(who: u64) -> i32 {
    ((who >> 32) as u32).cast_signed()
}

fn entries_of(thread: i32) -> impl Iterator<Item = &'static CallEntry> {
    let first = (thread.cast_unsigned().wrapping_mul(0x9e37_79b9) >> 16) as usize;
    (0..PROBED).filter_map(move |step| CALLS.get(first.wrapping_add(step) % ENTRIES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGV: c_int = 11;

    fn at(pc: u64) -> FaultSite {
        FaultSite::at(SEGV, 2, 0x7f00_0000_0000, pc)
    }

    #[test]
    fn a_site_is_known_repairable_after_a_few_repairs() {
        let counts = RepairCounts::new();
        for _ in 0..REPAIRS_UNTIL_KNOWN {
            assert!(!counts.is_known_repairable(at(0x1000)));
            counts.count(at(0x1000));
        }
        for _ in 0..1000 {
            counts.count(at(0x1000));
            assert!(counts.is_known_repairable(at(0x1000)));
        }
    }

    #[test]
    fn another_instruction_region_or_code_is_another_site() {
        let site = FaultSite::at(SEGV, 2, 0x7f00_0000_0000, 0x1000);
        assert_eq!(site, FaultSite::at(SEGV, 2, 0x7f00_0000_1000, 0x1000), "the next page");
        for other in [
            FaultSite::at(SEGV, 2, 0x7f00_0000_0000, 0x1001),
            FaultSite::at(SEGV, 2, 0, 0x1000),
            FaultSite::at(SEGV, 2, 0x7f00_0020_0000, 0x1000),
            FaultSite::at(SEGV, 1, 0x7f00_0000_0000, 0x1000),
            FaultSite::at(7, 2, 0x7f00_0000_0000, 0x1000),
        ] {
            assert_ne!(site, other);
        }
    }

    #[test]
    fn a_sent_signal_is_never_known_repairable() {
        let counts = RepairCounts::new();
        (0..10).for_each(|_| counts.count(FaultSite::NONE));
        assert!(!counts.is_known_repairable(FaultSite::NONE));
        // SAFETY: a structure of numbers.
        let sent = unsafe { std::mem::zeroed::<siginfo_t>() };
        assert_eq!(FaultSite::of(SEGV, &sent, 0x1000), FaultSite::NONE);
    }

    #[test]
    fn rare_sites_do_not_displace_frequent_ones() {
        let counts = RepairCounts::new();
        let often: Vec<_> = (0..100).map(|number| at(0x40_0000 + number * 7)).collect();
        for site in often.iter().cycle().take(often.len() * 8) {
            counts.count(*site);
        }
        (0..100_000).for_each(|number| counts.count(at(0x900_0000 + number * 16)));
        let kept = often.iter().filter(|site| counts.is_known_repairable(**site)).count();
        assert!(kept >= 95, "{kept}");
    }

    const ABRT: i32 = 6;

    fn call(is_blocked: bool) -> Call {
        let recorded = Recorded::Provisional(Provisional { slot: 7, number: 9 });
        Call { signal: SEGV, is_blocked, recorded, site: FaultSite::NONE, stack: 0x10_0000 }
    }

    #[test]
    fn a_call_is_in_progress_while_its_signal_is_blocked() {
        let blocked = bit_of(SEGV);
        for (call, signal, mask, stack, expected, why) in [
            (call(true), ABRT, blocked, 0x0f_f000, true, "it aborts"),
            (call(true), SEGV, blocked, 0x50_0000, true, "on a stack of its own"),
            (call(true), SEGV, 0, 0x10_1000, false, "it jumped, and the thread faults again"),
            (call(true), SEGV, 0, 0x0f_f000, false, "it jumped, and the thread faults again, deeper"),
            (call(true), ABRT, 0, 0x0f_f000, true, "it unblocked the signal and aborts"),
            (call(true), ABRT, 0, 0x20_0000, false, "it jumped, and the thread aborts"),
            (call(false), SEGV, 0, 0x0f_f000, false, "a second signal, which the handler does not block"),
            (call(false), ABRT, blocked, 0x0f_f000, true, "never blocked by the kernel"),
        ] {
            assert_eq!(call.goes_on(signal, mask, stack), expected, "{why}");
        }
    }

    #[test]
    fn a_thread_finds_its_own_call_among_many() {
        let first = 7_000_000;
        for thread in first..first + 300 {
            enter(thread, &Call { stack: thread as u64, ..call(true) });
        }
        let kept = (first..first + 300).filter(|thread| {
            call_of(*thread).is_some_and(|found| found == Call { stack: *thread as u64, ..call(true) })
        });
        assert!(kept.count() > 290, "few entries were taken by other threads");
        (first..first + 300).for_each(leave);
        assert!((first..first + 300).all(|thread| call_of(thread).is_none()));
    }
}
