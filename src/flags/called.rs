//! Deduplication of `$feature_flag_called`: which value of which flag was last captured for which person.
//!
//! PostHog wants the event once per person, groups, flag and value. The tracker remembers the last captured value for
//! each person, groups and flag in an LRU cache, so an evicted entry is captured once more. Entries are hashes, which
//! keeps them small; a collision costs one event.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::FlagValue;

/// Remembers captured reads; see the module.
#[derive(Debug)]
pub(crate) struct CalledTracker {
    /// Hash of person, groups and flag to hash of the value. `None` after [`close`](Self::close).
    captured: Mutex<Option<LruCache<u128, u64>>>,
}

impl CalledTracker {
    /// A tracker for `most` entries. Memory is allocated as entries are added, so a program without flags pays nothing.
    pub(crate) fn new(most: NonZeroUsize) -> Self {
        Self { captured: Mutex::new(Some(LruCache::sparse(most))) }
    }

    /// Whether the read of this value has to be captured, and remembers it as captured. Atomic: if two threads read a
    /// flag at the same time, one of them gets `true`.
    pub(crate) fn is_new(
        &self,
        distinct_id: &str,
        groups: &BTreeMap<String, String>,
        key: &str,
        value: Option<&FlagValue>,
    ) -> bool {
        let (entry, value) = (hash_of_entry(distinct_id, groups, key), hash_of_value(value));
        // `put` also marks the entry as recently used.
        self.lock().as_mut().is_some_and(|captured| captured.put(entry, value) != Some(value))
    }

    /// Drops all entries. From now on nothing is remembered and [`is_new`](Self::is_new) returns `false`.
    pub(crate) fn close(&self) {
        let dropped = self.lock().take();
        drop(dropped);
    }

    /// The number of remembered entries.
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "read by tests"))]
    pub(crate) fn len(&self) -> usize {
        self.lock().as_ref().map_or(0, LruCache::len)
    }

    fn lock(&self) -> MutexGuard<'_, Option<LruCache<u128, u64>>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lengths precede texts so that different inputs never concatenate to the same bytes. Groups are sorted by type.
fn hash_of_entry(distinct_id: &str, groups: &BTreeMap<String, String>, key: &str) -> u128 {
    let mut hash = Xxh3::new();
    let texts = groups.iter().flat_map(|(group_type, group)| [group_type.as_str(), group.as_str()]);
    for text in [distinct_id, key].into_iter().chain(texts) {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest128()
}

fn hash_of_value(value: Option<&FlagValue>) -> u64 {
    match value {
        None => 0,
        Some(FlagValue::Boolean(on)) => 1 + u64::from(*on),
        Some(FlagValue::Variant(variant)) => xxh3_64(variant.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(most: usize) -> CalledTracker {
        CalledTracker::new(NonZeroUsize::new(most).unwrap())
    }

    fn groups(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(group_type, key)| ((*group_type).to_owned(), (*key).to_owned())).collect()
    }

    #[test]
    fn a_value_is_new_once_and_again_after_a_change() {
        let tracker = tracker(10);
        let is_new = |value: Option<FlagValue>| tracker.is_new("u", &groups(&[]), "f", value.as_ref());
        let (on, blue) = (Some(FlagValue::Boolean(true)), Some(FlagValue::from("blue")));
        assert!(is_new(on.clone()) && !is_new(on.clone()));
        assert!(is_new(blue.clone()) && !is_new(blue));
        assert!(is_new(None) && !is_new(None));
        assert!(is_new(on));
        assert_eq!(tracker.len(), 1);
    }

    #[test]
    fn another_person_flag_or_group_is_another_value() {
        let tracker = tracker(10);
        let is_new = |person, key, pairs: &[(&str, &str)]| tracker.is_new(person, &groups(pairs), key, None);
        assert!(is_new("u", "f", &[]) && is_new("v", "f", &[]) && is_new("u", "g", &[]));
        assert!(is_new("u", "f", &[("company", "a"), ("team", "b")]));
        assert!(!is_new("u", "f", &[("team", "b"), ("company", "a")]), "in any order");
        assert!(is_new("u", "f", &[("company", "a"), ("team", "c")]));
        assert!(is_new("u", "f", &[("company", "ateam"), ("", "b")]), "lengths count");
    }

    #[test]
    fn only_the_least_recently_read_entry_is_evicted() {
        let tracker = tracker(3);
        let is_new = |person: &str| tracker.is_new(person, &groups(&[]), "f", None);
        assert!(is_new("a") && is_new("b") && is_new("c") && !is_new("a"));
        assert!(is_new("d"), "takes the place of b");
        assert_eq!((tracker.len(), is_new("a"), is_new("c"), is_new("d")), (3, false, false, false));
        assert!(is_new("b"));
    }

    #[test]
    fn of_many_concurrent_reads_one_is_new() {
        let tracker = tracker(100);
        let new = std::thread::scope(|scope| {
            let reads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| tracker.is_new("u", &groups(&[]), "f", Some(&true.into())))).collect();
            reads.into_iter().map(|read| read.join().unwrap()).filter(|new| *new).count()
        });
        assert_eq!(new, 1);
    }

    #[test]
    fn a_closed_tracker_is_empty_and_stays_so() {
        let tracker = tracker(10);
        assert!(tracker.is_new("u", &groups(&[]), "f", None));
        tracker.close();
        assert_eq!((tracker.len(), tracker.is_new("v", &groups(&[]), "f", None), tracker.len()), (0, false, 0));
    }
}
