//! Which values of which flags have been told with `$feature_flag_called`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::FlagValue;

/// Remembers the last value of a flag that was told for somebody. Bounded: the one that was not looked at for longest goes, one at a time,
/// and is told once more if it comes again. Hashes and no texts, so that an entry is small; two that collide cost one event.
#[derive(Debug)]
pub(crate) struct CalledTracker {
    /// `None` once the client is closed: from then on nothing is remembered, and nothing told.
    told: Mutex<Option<LruCache<u128, u64>>>,
}

impl CalledTracker {
    pub(crate) fn new(most: NonZeroUsize) -> Self {
        // Grows as it is used: a program without flags pays nothing for it.
        Self { told: Mutex::new(Some(LruCache::sparse(most))) }
    }

    /// Whether this value has to be told; from now on it counts as told. One step: of two threads that read a flag at once, one tells.
    pub(crate) fn is_new(
        &self,
        distinct_id: &str,
        groups: &BTreeMap<String, String>,
        key: &str,
        value: Option<&FlagValue>,
    ) -> bool {
        let (whose, value) = (whose(distinct_id, groups, key), hash_of(value));
        let mut told = self.lock();
        // Put anew either way: whoever was read last goes last.
        told.as_mut().is_some_and(|told| told.put(whose, value) != Some(value))
    }

    /// For good.
    pub(crate) fn close(&self) {
        let dropped = self.lock().take();
        drop(dropped);
    }

    /// How many are remembered.
    #[cfg_attr(not(any(test, feature = "testing")), expect(dead_code, reason = "read by tests"))]
    pub(crate) fn len(&self) -> usize {
        self.lock().as_ref().map_or(0, LruCache::len)
    }

    fn lock(&self) -> MutexGuard<'_, Option<LruCache<u128, u64>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Groups come sorted by type, so that their order does not matter.
fn whose(distinct_id: &str, groups: &BTreeMap<String, String>, key: &str) -> u128 {
    let mut hash = Xxh3::new();
    let texts = groups.iter().flat_map(|(group_type, group)| [group_type.as_str(), group.as_str()]);
    for text in [distinct_id, key].into_iter().chain(texts) {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest128()
}

fn hash_of(value: Option<&FlagValue>) -> u64 {
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
    fn a_value_is_told_once_and_again_when_it_changes() {
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
    fn the_one_that_was_not_read_for_longest_goes_and_no_other() {
        let tracker = tracker(3);
        let is_new = |person: &str| tracker.is_new(person, &groups(&[]), "f", None);
        assert!(is_new("a") && is_new("b") && is_new("c") && !is_new("a"));
        assert!(is_new("d"), "takes the place of b");
        assert_eq!((tracker.len(), is_new("a"), is_new("c"), is_new("d")), (3, false, false, false));
        assert!(is_new("b"));
    }

    #[test]
    fn of_many_threads_that_read_a_flag_at_once_one_tells() {
        let tracker = tracker(100);
        let told = std::thread::scope(|scope| {
            let reads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| tracker.is_new("u", &groups(&[]), "f", Some(&true.into())))).collect();
            reads.into_iter().map(|read| read.join().unwrap()).filter(|told| *told).count()
        });
        assert_eq!(told, 1);
    }

    #[test]
    fn a_closed_tracker_is_empty_and_stays_so() {
        let tracker = tracker(10);
        assert!(tracker.is_new("u", &groups(&[]), "f", None));
        tracker.close();
        assert_eq!((tracker.len(), tracker.is_new("v", &groups(&[]), "f", None), tracker.len()), (0, false, 0));
    }
}
