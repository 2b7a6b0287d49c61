//! Which flags there are not.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

const KEYS: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// Keys that are neither among the definitions nor known to PostHog: nobody has to be asked for them again until the definitions were
/// refreshed. Learnt only from answers that leave nothing open. Bounded.
#[derive(Debug)]
pub(crate) struct KnownMissing {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the definitions that this goes with: one for each time that they were refreshed, or found to be unchanged.
    generation: u64,
    keys: LruCache<String, ()>,
}

impl Default for KnownMissing {
    fn default() -> Self {
        Self { state: Mutex::new(State { generation: 0, keys: LruCache::sparse(KEYS) }) }
    }
}

impl KnownMissing {
    pub(crate) fn has(&self, generation: u64, key: &str) -> bool {
        self.of(generation).keys.get(key).is_some()
    }

    pub(crate) fn add(&self, generation: u64, key: &str) {
        self.of(generation).keys.put(key.to_owned(), ());
    }

    fn of(&self, generation: u64) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation != generation {
            state.keys.clear();
            state.generation = generation;
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_forgotten_with_the_next_refresh_and_bounded() {
        let missing = KnownMissing::default();
        missing.add(1, "a");
        assert!(missing.has(1, "a") && !missing.has(1, "b"));
        assert!(!missing.has(2, "a") && !missing.has(1, "a"));
        (0..2000).for_each(|number| missing.add(1, &number.to_string()));
        assert_eq!(missing.of(1).keys.len(), KEYS.get());
    }
}
