//! The owner's words: numbers and short texts on the status page whose meaning belongs to the layer above the queue.
//!
//! They tell an operator, who reads the page without a lock, how the owner is and why records do not leave. An older
//! library leaves them as it finds them, so the owner that writes them repeats its start time in front of them, and
//! they are believed only while it equals the start time of the page's owner.
//!
//! The numbers have a check together, and each text has one, so that what was being replaced when it was read, or when its
//! owner died, or was damaged, is taken for none.

use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Queue;
use super::status_page::StatusPage;
use super::status_page::Word;
use crate::sys::clock::WallNanos;

/// The number of numbers.
pub(crate) const NUMBERS: usize = 30;
/// The number of texts.
pub(crate) const TEXTS: usize = 3;

/// The word that repeats the owner's start time, followed by the time at which the words were written.
const KEPT: usize = 128;
const WRITTEN_AT: usize = 129;
const FIRST_NUMBER: usize = 130;
/// Where each text begins, and the most bytes that it has. Length, check, and then the bytes.
const TEXT_PLACES: [(usize, usize); TEXTS] = [(160, 64), (176, 256), (212, 256)];
/// The check of the numbers and of the time.
const NUMBERS_CHECK: usize = 246;

/// What the owner says of itself. The queue does not know what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnerWords {
    /// When it was written.
    pub(crate) at: WallNanos,
    pub(crate) numbers: [u64; NUMBERS],
    /// A text that is too long is cut when it is written. Empty for none.
    pub(crate) texts: [String; TEXTS],
}

impl Queue {
    /// Puts the words on the status page, for other processes to read.
    pub(crate) fn mirror_owner(&self, words: &OwnerWords) {
        self.while_ours(|page| page.write_owner_words(words));
    }

    /// Changes one number of the words that are on the page.
    pub(crate) fn mirror_owner_number(&self, index: usize, number: u64) {
        self.while_ours(|page| {
            if index < NUMBERS {
                page.put(FIRST_NUMBER + index, number);
                page.put(NUMBERS_CHECK, page.numbers_check());
                page.publish();
            }
        });
    }
}

impl StatusPage {
    pub(super) fn write_owner_words(&self, words: &OwnerWords) {
        self.put(WRITTEN_AT, words.at as u64);
        for (index, number) in words.numbers.iter().enumerate() {
            self.put(FIRST_NUMBER + index, *number);
        }
        self.put(NUMBERS_CHECK, self.numbers_check());
        let texts_stay = self.at(KEPT) == self.started_at;
        for (place, text) in TEXT_PLACES.into_iter().zip(&words.texts) {
            // A text that is there already is left alone, so that it can be read at any moment.
            if !texts_stay || self.text(place, self.started_at).as_deref() != Some(cut(text, place.1)) {
                self.write_text(place, text);
            }
        }
        // Last: until here the words were those of an earlier owner.
        self.put(KEPT, self.started_at);
        self.publish();
    }

    /// The owner's words; `None` if the page's owner has written none.
    #[cfg(any(test, feature = "inspect"))]
    pub(super) fn owner_words(&self) -> Option<OwnerWords> {
        let started_at = self.get(Word::StartedAt);
        if !self.has_owner_words() || !self.owner_words_are_whole() {
            return None;
        }
        Some(OwnerWords {
            at: self.at(WRITTEN_AT) as WallNanos,
            numbers: std::array::from_fn(|index| self.at(FIRST_NUMBER + index)),
            texts: TEXT_PLACES.map(|place| self.text(place, started_at).unwrap_or_default()),
        })
    }

    fn has_owner_words(&self) -> bool {
        self.at(KEPT) != 0 && self.at(KEPT) == self.get(Word::StartedAt)
    }

    /// Whether the numbers of the page's owner, if it has written any, match their check. An older library has none.
    pub(super) fn owner_words_are_whole(&self) -> bool {
        !self.has_owner_words() || !self.has_check() || self.at(NUMBERS_CHECK) == self.numbers_check()
    }

    fn numbers_check(&self) -> u64 {
        self.hash(&mut (WRITTEN_AT..FIRST_NUMBER + NUMBERS).map(|index| self.at(index)))
    }

    fn write_text(&self, (first, most): (usize, usize), text: &str) {
        let text = cut(text, most);
        // The check of no text: until the new check is written, the text is none.
        self.put(first + 1, 0);
        for (index, bytes) in text.as_bytes().chunks(size_of::<u64>()).enumerate() {
            let mut word = [0; size_of::<u64>()];
            word[..bytes.len()].copy_from_slice(bytes);
            self.put(first + 2 + index, u64::from_le_bytes(word));
        }
        self.put(first, text.len() as u64);
        self.put(first + 1, check(text.as_bytes(), self.started_at));
    }

    /// A text of this page's owner, if it is whole.
    fn text(&self, (first, most): (usize, usize), started_at: u64) -> Option<String> {
        let len = usize::try_from(self.at(first)).ok().filter(|len| *len <= most)?;
        let mut bytes: Vec<u8> =
            (0..len.div_ceil(size_of::<u64>())).flat_map(|index| self.at(first + 2 + index).to_le_bytes()).collect();
        bytes.truncate(len);
        let is_whole = self.at(first + 1) == check(&bytes, started_at);
        is_whole.then(|| String::from_utf8(bytes).ok()).flatten()
    }

    fn at(&self, index: usize) -> u64 {
        self.word(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn put(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

/// The check of a text, which belongs to its owner: never 0.
fn check(text: &[u8], started_at: u64) -> u64 {
    xxh3_64_with_seed(text, started_at).max(1)
}

/// The beginning of a text that has room.
fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::disk::Disk;

    fn words(error: &str) -> OwnerWords {
        let texts = ["daemon".to_owned(), error.to_owned(), String::new()];
        OwnerWords { at: 9, numbers: std::array::from_fn(|index| index as u64 + 1), texts }
    }

    fn page(dir: &std::path::Path, map: bool, now: WallNanos) -> StatusPage {
        StatusPage::take_over(&Disk::default(), &dir.join("status"), map, false, now).unwrap().0
    }

    fn read(dir: &std::path::Path) -> Option<OwnerWords> {
        StatusPage::content(&Disk::default(), dir).unwrap().unwrap().owner
    }

    #[test]
    fn what_an_owner_says_is_read_without_its_lock() {
        for map in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let page = page(dir.path(), map, 7);
            assert_eq!(read(dir.path()), None, "it has not said anything yet");
            page.write_owner_words(&words("HTTP status 503"));
            assert_eq!(read(dir.path()), Some(words("HTTP status 503")));
            page.write_owner_words(&words(""));
            assert_eq!(read(dir.path()), Some(words("")));
        }
    }

    #[test]
    fn the_words_of_an_earlier_owner_are_not_those_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        page(dir.path(), true, 7).write_owner_words(&words("HTTP status 503"));
        let next = page(dir.path(), true, 8);
        assert_eq!(read(dir.path()), None);
        next.write_owner_words(&words("HTTP status 503"));
        assert_eq!(read(dir.path()), Some(words("HTTP status 503")), "the text is checked against its owner");
    }

    #[test]
    fn a_text_that_was_not_finished_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let page = page(dir.path(), true, 7);
        page.write_owner_words(&words("HTTP status 503"));
        let (first, _) = TEXT_PLACES[1];
        for (index, torn) in [(first, 14), (first, 999), (first + 1, 0), (first + 3, 7)] {
            let before = page.at(index);
            page.put(index, torn);
            assert_eq!(read(dir.path()), Some(words("")), "word {index}");
            page.put(index, before);
        }
        assert_eq!(read(dir.path()), Some(words("HTTP status 503")));
    }

    #[test]
    fn a_text_is_cut_to_whole_characters() {
        let dir = tempfile::tempdir().unwrap();
        page(dir.path(), true, 7).write_owner_words(&words(&"\u{20ac}".repeat(100)));
        assert_eq!(read(dir.path()).unwrap().texts[1], "\u{20ac}".repeat(85));
    }
}
