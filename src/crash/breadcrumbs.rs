//! Breadcrumbs: a ring of short texts that say what the program did last; each record of a crash contains the newest
//! ones.
//!
//! The ring is static memory, and the hook or handler copies its end into the record. So it needs no file, a forked
//! child's record has the breadcrumbs from before the fork, and the breadcrumbs of a survived panic do not include what
//! happened later. Adding one takes no lock: an entry that two threads wrote at once, or that a crash left half
//! written, does not match its checksum and is skipped.

use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::format::{Record, Tag, Writer};
use crate::sys::clock::WallNanos;
use crate::sys::limits::beginning;

/// Entries in the ring.
const ENTRIES: usize = 64;
const TEXT_WORDS: usize = 28;
/// Bytes kept of one text.
const TEXT_MOST: usize = TEXT_WORDS * WORD;
/// Maximum number of breadcrumbs in a record. Fewer than the ring has: the oldest entries may be overwritten meanwhile.
const REPORTED_MOST: u64 = 30;
const WORD: usize = 8;

struct Entry {
    /// Number of the breadcrumb, from 1; 0 if the entry was never used.
    number: AtomicU64,
    time: AtomicU64,
    len: AtomicU64,
    sum: AtomicU64,
    text: [AtomicU64; TEXT_WORDS],
}

static RING: [Entry; ENTRIES] = [const {
    Entry {
        number: AtomicU64::new(0),
        time: AtomicU64::new(0),
        len: AtomicU64::new(0),
        sum: AtomicU64::new(0),
        text: [const { AtomicU64::new(0) }; TEXT_WORDS],
    }
}; ENTRIES];

/// Breadcrumbs added so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// A text and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breadcrumb {
    pub(crate) at: WallNanos,
    pub(crate) text: String,
}

/// Adds a breadcrumb. Takes some nanoseconds.
pub(crate) fn record_breadcrumb(text: &str, at: WallNanos) {
    let number = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    if let Some(entry) = entry_of(number) {
        entry.fill(number, at.cast_unsigned(), beginning(text, TEXT_MOST).as_bytes());
    }
}

/// Appends the newest breadcrumbs, newest first, as many as fit. Async-signal-safe.
pub(super) fn append_to(writer: &mut Writer<'_>) {
    let newest = COUNT.load(Ordering::Relaxed);
    for number in (newest.saturating_sub(REPORTED_MOST).saturating_add(1)..=newest).rev() {
        let mut field = [0; WORD + TEXT_MOST];
        if let Some(len) = entry_of(number).and_then(|entry| entry.copy(number, &mut field)) {
            writer.bytes(Tag::Breadcrumb, field.get(..len).unwrap_or_default());
        }
    }
}

/// The breadcrumbs in a record, oldest first.
pub(crate) fn read_from(record: &Record) -> Vec<Breadcrumb> {
    let mut breadcrumbs: Vec<Breadcrumb> = record.all(Tag::Breadcrumb).filter_map(Breadcrumb::decode).collect();
    breadcrumbs.reverse();
    breadcrumbs
}

/// The texts in the ring, for tests.
#[cfg(test)]
pub(crate) fn recorded_texts() -> Vec<String> {
    let mut buffer = vec![0; 16 * 1024];
    let mut writer = Writer::new(&mut buffer, super::format::Kind::Panic, 0, 1);
    append_to(&mut writer);
    let records = writer.finish().map(super::format::scan).unwrap_or_default().records;
    records.iter().flat_map(read_from).map(|breadcrumb| breadcrumb.text).collect()
}

fn entry_of(number: u64) -> Option<&'static Entry> {
    RING.get(number as usize % ENTRIES)
}

impl Entry {
    fn fill(&self, number: u64, time: u64, text: &[u8]) {
        self.number.store(number, Ordering::Relaxed);
        self.time.store(time, Ordering::Relaxed);
        self.len.store(text.len() as u64, Ordering::Relaxed);
        for (word, bytes) in self.text.iter().zip(text.chunks(WORD)) {
            let mut value = [0; WORD];
            if let Some(place) = value.get_mut(..bytes.len()) {
                place.copy_from_slice(bytes);
            }
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
        self.sum.store(sum(number, time, text), Ordering::Relaxed);
    }

    /// Copies time and text into `field` and returns the length. `None` if the entry holds another breadcrumb or is
    /// half written.
    fn copy(&self, number: u64, field: &mut [u8; WORD + TEXT_MOST]) -> Option<usize> {
        let (time, len) = (self.time.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        let len = usize::try_from(len).ok().filter(|len| *len <= TEXT_MOST)?;
        let (head, rest) = field.split_first_chunk_mut::<WORD>()?;
        *head = time.to_le_bytes();
        for (place, word) in rest.chunks_exact_mut(WORD).zip(&self.text).take(len.div_ceil(WORD)) {
            place.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let is_whole = self.number.load(Ordering::Relaxed) == number
            && self.sum.load(Ordering::Relaxed) == sum(number, time, rest.get(..len)?);
        is_whole.then_some(WORD.saturating_add(len))
    }
}

fn sum(number: u64, time: u64, text: &[u8]) -> u64 {
    xxh3_64_with_seed(text, number ^ time.rotate_left(32))
}

impl Breadcrumb {
    fn decode(field: &[u8]) -> Option<Self> {
        let (time, text) = field.split_first_chunk()?;
        let at = u64::from_le_bytes(*time).cast_signed();
        Some(Self { at, text: String::from_utf8_lossy(text).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::format::{HEADER, Kind, scan};
    use super::*;

    /// The ring is shared by all tests of the process.
    static ALONE: Mutex<()> = Mutex::new(());

    fn reported(room: usize) -> Vec<Breadcrumb> {
        let mut buffer = vec![0; room];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, 0, 1);
        append_to(&mut writer);
        read_from(&scan(writer.finish().unwrap()).records[0])
    }

    #[test]
    fn a_record_has_the_last_thirty_oldest_first() {
        let _alone = ALONE.lock();
        for number in 0..100 {
            record_breadcrumb(&format!("step {number}"), number);
        }
        let expected: Vec<_> = (70..100).map(|at| Breadcrumb { at, text: format!("step {at}") }).collect();
        assert_eq!(reported(16 * 1024), expected);
    }

    #[test]
    fn a_record_without_space_for_all_has_the_newest() {
        let _alone = ALONE.lock();
        (0..40).for_each(|at| record_breadcrumb("ten bytes.", at));
        let times: Vec<_> = reported(HEADER + 3 * (6 + 8 + 10)).iter().map(|breadcrumb| breadcrumb.at).collect();
        assert_eq!(times, [37, 38, 39]);
    }

    #[test]
    fn a_long_text_is_truncated_and_an_empty_one_is_kept() {
        let _alone = ALONE.lock();
        record_breadcrumb(&("a".to_owned() + &"\u{e9}".repeat(200)), 1);
        record_breadcrumb("", -2);
        let reported = reported(16 * 1024);
        let [.., long, empty] = reported.as_slice() else { panic!("{reported:?}") };
        assert_eq!(long.text, "a".to_owned() + &"\u{e9}".repeat(111), "222 bytes and one more, of 224");
        assert_eq!((empty.at, empty.text.as_str()), (-2, ""));
    }

    #[test]
    fn a_half_written_entry_is_skipped() {
        let _alone = ALONE.lock();
        (0..30).for_each(|at| record_breadcrumb("a whole step", at));
        let newest = COUNT.load(Ordering::Relaxed);
        let torn = entry_of(newest - 3).unwrap();
        torn.text[0].store(0, Ordering::Relaxed);
        let late = entry_of(newest - 5).unwrap();
        late.time.store(77, Ordering::Relaxed);
        entry_of(newest - 7).unwrap().len.store(u64::MAX, Ordering::Relaxed);
        let times: Vec<_> = reported(16 * 1024).iter().map(|breadcrumb| breadcrumb.at).filter(|at| *at > 20).collect();
        assert_eq!(times, [21, 23, 25, 27, 28, 29]);
    }

    #[test]
    fn concurrent_threads_never_mix_their_texts() {
        let _alone = ALONE.lock();
        (0..30).for_each(|at| record_breadcrumb("", at));
        std::thread::scope(|scope| {
            for letter in ["a", "b", "c", "d"] {
                scope.spawn(move || (0..5_000).for_each(|at| record_breadcrumb(&letter.repeat(at as usize % 200), at)));
            }
            for _ in 0..200 {
                for step in reported(16 * 1024) {
                    let first = step.text.get(..1).unwrap_or_default();
                    assert_eq!(step.text, first.repeat(step.text.len()), "{}", step.at);
                    assert!(first.is_empty() || step.text.len() as i64 == step.at % 200);
                }
            }
        });
    }
}
