//! Places whose faults somebody repairs, again and again.
//!
//! A safepoint of a managed runtime is thousands of faults of one instruction at one address. A walk and a record for each would cost
//! more than all that the runtime does about them; so a fault that was repaired at its place a few times is passed on at once. What is
//! not repaired there comes back to us, and is told then: `flow.rs`.
//!
//! Lock-free, and bounded: of places that share a row, the one that was survived least makes room.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc::{c_int, siginfo_t};

use super::chain;

/// So often is a place survived before it is familiar.
const SURVIVALS: u64 = 4;
/// Places that are known at once, and those among which one is looked for.
const PLACES: usize = 1024;
const ROW: usize = 4;
/// Addresses in one region are one place: memory that is made when it is touched is touched page after page. A wild address is hardly in
/// a region that the same instruction had repaired.
const REGION_BITS: u32 = 21;
/// Of a word: how often the place was survived. The rest says which it is.
const COUNT: u64 = 0xff;

/// An instruction, and what it faults on. Which, a number says that is hardly ever another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    /// Of what somebody sent: that comes from anywhere, and is never familiar.
    pub(super) const NONE: Self = Self(0);

    /// `info` as the kernel gave it.
    pub(super) fn of(signal: c_int, info: *const siginfo_t, pc: u64) -> Self {
        if !chain::is_forced(info) {
            return Self::NONE;
        }
        // SAFETY: the kernel's, for the duration of the handler; what nobody sent says an address.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr() as u64) };
        Self::at(signal, code, address, pc)
    }

    fn at(signal: c_int, code: c_int, address: u64, pc: u64) -> Self {
        let what = u64::from(signal.cast_unsigned()) << 32 | u64::from(code.cast_unsigned());
        let mixed = [pc, address >> REGION_BITS, what]
            .iter()
            .fold(0u64, |mixed, part| (mixed ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
        // Never 0, which is none.
        Self(mixed & !COUNT | (COUNT + 1))
    }

    /// To be kept in an atomic.
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// What [`Place::word`] was.
    pub(super) fn in_word(word: u64) -> Self {
        Self(word)
    }

    fn row(self) -> usize {
        (self.0 >> 32) as usize % (PLACES / ROW) * ROW
    }
}

/// How often each was survived.
pub(super) struct Survivals([AtomicU64; PLACES]);

/// Of this process.
pub(super) static SURVIVED: Survivals = Survivals::new();

impl Survivals {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES])
    }

    /// Gives it real memory.
    pub(super) fn touch(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Whether the next there is repaired too, as far as anybody can say.
    pub(super) fn is_familiar(&self, place: Place) -> bool {
        place != Place::NONE && self.row_of(place).any(|word| is_of(word, place) && word & COUNT >= SURVIVALS)
    }

    /// Counts that the process has survived one there. What another thread counts at the same moment may be lost.
    pub(super) fn note(&self, place: Place) {
        if place == Place::NONE || self.is_familiar(place) {
            return;
        }
        let row = || place.row()..place.row() + ROW;
        let known = row().find(|at| is_of(self.word(*at), place));
        let Some(at) = known.or_else(|| row().min_by_key(|at| self.word(*at) & COUNT)) else { return };
        let survived = if known.is_some() { self.word(at) & COUNT } else { 0 };
        if let Some(word) = self.0.get(at) {
            word.store(place.0 | (survived + 1), Ordering::Relaxed);
        }
    }

    fn row_of(&self, place: Place) -> impl Iterator<Item = u64> {
        (place.row()..place.row() + ROW).map(|at| self.word(at))
    }

    fn word(&self, at: usize) -> u64 {
        self.0.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

fn is_of(word: u64, place: Place) -> bool {
    word & !COUNT == place.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGV: c_int = 11;

    fn at(pc: u64) -> Place {
        Place::at(SEGV, 2, 0x7f00_0000_0000, pc)
    }

    #[test]
    fn a_place_is_familiar_after_it_was_survived_a_few_times() {
        let survivals = Survivals::new();
        for _ in 0..SURVIVALS {
            assert!(!survivals.is_familiar(at(0x1000)));
            survivals.note(at(0x1000));
        }
        for _ in 0..1000 {
            survivals.note(at(0x1000));
            assert!(survivals.is_familiar(at(0x1000)));
        }
    }

    #[test]
    fn another_instruction_region_or_reason_is_another_place() {
        let place = Place::at(SEGV, 2, 0x7f00_0000_0000, 0x1000);
        assert_eq!(place, Place::at(SEGV, 2, 0x7f00_0000_1000, 0x1000), "the next page");
        for other in [
            Place::at(SEGV, 2, 0x7f00_0000_0000, 0x1001),
            Place::at(SEGV, 2, 0, 0x1000),
            Place::at(SEGV, 2, 0x7f00_0020_0000, 0x1000),
            Place::at(SEGV, 1, 0x7f00_0000_0000, 0x1000),
            Place::at(7, 2, 0x7f00_0000_0000, 0x1000),
        ] {
            assert_ne!(place, other);
        }
    }

    #[test]
    fn what_is_sent_is_never_familiar() {
        let survivals = Survivals::new();
        (0..10).for_each(|_| survivals.note(Place::NONE));
        assert!(!survivals.is_familiar(Place::NONE));
        // SAFETY: a structure of numbers.
        let sent = unsafe { std::mem::zeroed::<siginfo_t>() };
        assert_eq!(Place::of(SEGV, &sent, 0x1000), Place::NONE);
    }

    #[test]
    fn places_that_come_once_do_not_make_those_forgotten_that_come_often() {
        let survivals = Survivals::new();
        let often: Vec<_> = (0..100).map(|number| at(0x40_0000 + number * 7)).collect();
        for place in often.iter().cycle().take(often.len() * 8) {
            survivals.note(*place);
        }
        (0..100_000).for_each(|number| survivals.note(at(0x900_0000 + number * 16)));
        let kept = often.iter().filter(|place| survivals.is_familiar(**place)).count();
        assert!(kept >= 95, "{kept}");
    }
}
