//! Negative cache: flag keys that are known not to exist.
//!
//! Without it, every lookup of a misspelt or deleted key would send a request. A key enters the cache when the local
//! definitions do not contain it and a complete response from PostHog did not return it. All keys are dropped when
//! either source may have changed: after a refresh of the definitions, or a reset by the program.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

const MAX_KEYS: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// The negative cache; see the module.
#[derive(Debug)]
pub(crate) struct MissingKeys {
    /// The keys that were found missing in the generation.
    state: Mutex<(Generation, LruCache<String, ()>)>,
    resets: AtomicU64,
}

/// The state of both sources at the time of a lookup. A result obtained in one generation says nothing about another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Successful loads of the definitions, including those that found them unchanged.
    definitions: u64,
    resets: u64,
}

impl Default for MissingKeys {
    fn default() -> Self {
        let state = (Generation::default(), LruCache::sparse(MAX_KEYS));
        Self { state: Mutex::new(state), resets: AtomicU64::new(0) }
    }
}

impl MissingKeys {
    /// The current generation, given the number of loads of the definitions so far.
    pub(crate) fn generation(&self, definitions: u64) -> Generation {
        Generation { definitions, resets: self.resets.load(Ordering::Acquire) }
    }

    /// Begins a new generation: drops all keys and ignores the results of requests that are in flight.
    pub(crate) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether `key` was found missing in this generation.
    pub(crate) fn contains(&self, generation: Generation, key: &str) -> bool {
        self.in_generation(generation).1.get(key).is_some()
    }

    /// Records `key` as missing in this generation. Evicts the least recently used key beyond [`MAX_KEYS`].
    pub(crate) fn insert(&self, generation: Generation, key: &str) {
        self.in_generation(generation).1.put(key.to_owned(), ());
    }

    /// Locks the state. Keys of a different generation are dropped first.
    fn in_generation(&self, generation: Generation) -> MutexGuard<'_, (Generation, LruCache<String, ()>)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != generation {
            state.1.clear();
            state.0 = generation;
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_drops_missing_keys_and_their_number_is_bounded() {
        let missing = MissingKeys::default();
        let (one, two) = (missing.generation(1), missing.generation(2));
        missing.insert(one, "a");
        assert!(missing.contains(one, "a") && !missing.contains(one, "b"));
        assert!(!missing.contains(two, "a") && !missing.contains(one, "a"));
        (0..2000).for_each(|number| missing.insert(one, &number.to_string()));
        assert_eq!(missing.in_generation(one).1.len(), MAX_KEYS.get());
    }

    #[test]
    fn a_result_from_before_a_reset_is_not_known_after_it() {
        let missing = MissingKeys::default();
        let before = missing.generation(1);
        missing.insert(before, "a");
        missing.reset();
        missing.insert(before, "b");
        let after = missing.generation(1);
        assert!(!missing.contains(after, "a") && !missing.contains(after, "b"));
    }
}
