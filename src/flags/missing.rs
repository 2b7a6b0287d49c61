//! Which flags there are not.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::clock::WallNanos;

const KEYS: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// Keys that are neither among the definitions nor known to PostHog: nobody has to be asked for them again until the definitions were
/// refreshed. Learnt only from answers that leave nothing open. Bounded.
#[derive(Debug)]
pub(crate) struct KnownMissing {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the definitions that this goes with were fetched, or were found to be unchanged.
    as_of: WallNanos,
    keys: LruCache<String, ()>,
}

impl Default for KnownMissing {
    fn default() -> Self {
        Self { state: Mutex::new(State { as_of: 0, keys: LruCache::sparse(KEYS) }) }
    }
}

impl KnownMissing {
    pub(crate) fn has(&self, as_of: WallNanos, key: &str) -> bool {
        self.of(as_of).keys.get(key).is_some()
    }

    pub(crate) fn add(&self, as_of: WallNanos, key: &str) {
        self.of(as_of).keys.put(key.to_owned(), ());
    }

    fn of(&self, as_of: WallNanos) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.as_of != as_of {
            state.keys.clear();
            state.as_of = as_of;
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
