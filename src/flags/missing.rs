//! Which flags there are not.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

const KEYS: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// Keys that are neither among the definitions nor known to PostHog: nobody has to be asked for them again until the definitions were
/// refreshed, or what PostHog answered is forgotten. Learnt only from answers that leave nothing open. Bounded.
#[derive(Debug)]
pub(crate) struct KnownMissing {
    state: Mutex<State>,
    resets: AtomicU64,
}

/// What is learnt at one is no knowledge at another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Of the definitions: one for each time that they were refreshed, or found to be unchanged.
    generation: u64,
    resets: u64,
}

#[derive(Debug)]
struct State {
    moment: Moment,
    keys: LruCache<String, ()>,
}

impl Default for KnownMissing {
    fn default() -> Self {
        let state = State { moment: Moment::default(), keys: LruCache::sparse(KEYS) };
        Self { state: Mutex::new(state), resets: AtomicU64::new(0) }
    }
}

impl KnownMissing {
    /// Now, with definitions of that generation.
    pub(crate) fn moment(&self, generation: u64) -> Moment {
        Moment { generation, resets: self.resets.load(Ordering::Acquire) }
    }

    /// Forgets everything, what is still being asked for too.
    pub(crate) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn has(&self, moment: Moment, key: &str) -> bool {
        self.of(moment).keys.get(key).is_some()
    }

    pub(crate) fn add(&self, moment: Moment, key: &str) {
        self.of(moment).keys.put(key.to_owned(), ());
    }

    fn of(&self, moment: Moment) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.moment != moment {
            state.keys.clear();
            state.moment = moment;
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
        let (one, two) = (missing.moment(1), missing.moment(2));
        missing.add(one, "a");
        assert!(missing.has(one, "a") && !missing.has(one, "b"));
        assert!(!missing.has(two, "a") && !missing.has(one, "a"));
        (0..2000).for_each(|number| missing.add(one, &number.to_string()));
        assert_eq!(missing.of(one).keys.len(), KEYS.get());
    }

    #[test]
    fn what_is_learnt_of_a_question_that_is_older_than_a_reset_is_not_known_after_it() {
        let missing = KnownMissing::default();
        let before = missing.moment(1);
        missing.add(before, "a");
        missing.reset();
        missing.add(before, "b");
        let after = missing.moment(1);
        assert!(!missing.has(after, "a") && !missing.has(after, "b"));
    }
}
