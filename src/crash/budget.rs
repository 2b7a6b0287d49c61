//! How often one place in a program may say its last words: a loop that panics a million times must not fill the file in which the
//! panic that matters is looked for.

use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

/// Places that are told apart. Where more panic, some share a count.
const PLACES: usize = 64;
/// Panics of one place that are all written; after them only the 32nd, the 64th and so on.
const FREE_OF_CHARGE: u32 = 16;

/// Place and count in one word, so that no lock is needed: the upper half says which place, the lower how often.
#[derive(Debug)]
pub(super) struct Budget([AtomicU64; PLACES]);

impl Budget {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES])
    }

    /// Counts a panic; whether it may be written.
    pub(super) fn allows(&self, at: Option<&Location<'_>>) -> bool {
        let place = at.map_or(1, fingerprint);
        let Some(word) = self.0.get(place as usize % PLACES) else { return true };
        let mut count = 1;
        let counted = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let known = (word >> 32) as u32 == place;
            count = if known { (word as u32).saturating_add(1) } else { 1 };
            Some(u64::from(place) << 32 | u64::from(count))
        });
        counted.is_err() || count <= FREE_OF_CHARGE || count.is_power_of_two()
    }
}

/// Never 0, which an unused word has.
fn fingerprint(at: &Location<'_>) -> u32 {
    // The text of a file's name lies at one address for all panics of a crate: good enough to tell places apart.
    let file = at.file().as_ptr().addr() as u64;
    let mixed = (file ^ u64::from(at.line()) << 40 ^ u64::from(at.column()) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_at_one_place_is_thinned_out_and_another_place_is_still_heard() {
        let budget = Budget::new();
        let here = Location::caller();
        let written = (0..10_000).filter(|_| budget.allows(Some(here))).count();
        // 16, then 32, 64, .. 8192.
        assert_eq!(written, 16 + 9);
        assert!(budget.allows(Some(Location::caller())));
        assert!(budget.allows(None));
    }
}
