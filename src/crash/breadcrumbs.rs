//! Breadcrumbs: a ring of short texts that say what the program did last. Each record of a crash contains the newest
//! ones, and the next start finds them after a SIGKILL.
//!
//! The ring is static memory, and the hook or handler copies its end into the record. So it needs no file, a forked
//! child's record has the breadcrumbs from before the fork, and the breadcrumbs of a survived panic do not include what
//! happened later. Adding one takes no lock: an entry that two threads wrote at once, or that a crash left half
//! written, does not match its checksum and is skipped.
//!
//! A process that is killed by SIGKILL writes no record. So the process-wide client has a copy of the ring in a mapped
//! file of its shard ([`keep_in`]), which outlives the process, and which the next owner of the shard reads
//! ([`left_in`]). The ring in memory stays what a crash record is made of: a forked child does not have the mapping, and
//! a handler must not touch memory that may fault because a file was truncated. `docs/format.md` describes the file.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::format::{Record, Tag, Writer};
use crate::queue::OwnerPage;
use crate::sys::clock::{WallNanos, system_time};
use crate::sys::disk::Disk;
use crate::sys::limits::beginning;

/// Entries in the ring.
const ENTRIES: usize = 64;
const ENTRY_WORDS: usize = 32;
/// The first words of an entry: its number, time, length and checksum.
const ENTRY_HEAD: usize = 4;
/// Bytes kept of one text.
const TEXT_MOST: usize = (ENTRY_WORDS - ENTRY_HEAD) * WORD;
/// How often a thread copies entries that others have added while it copied.
const CATCH_UPS_MOST: usize = 3;
/// Maximum number of breadcrumbs in a record. Fewer than the ring has: the oldest entries may be overwritten meanwhile.
const REPORTED_MOST: usize = 30;
const WORD: usize = 8;

/// The name of the file in the shard's directory.
pub(crate) const FILE: &str = "breadcrumbs";
/// Size of the file: a header as long as an entry, then the ring.
pub(crate) const FILE_BYTES: usize = (ENTRIES + 1) * ENTRY_WORDS * WORD;
const MAGIC: u64 = u64::from_le_bytes(*b"\x89PHB\r\n\x1a\n");
const VERSION: u64 = 1;

/// The words of an entry.
///
/// * 0: number of the breadcrumb, from 1; 0 if the entry was never used
/// * 1: time
/// * 2: bytes of the text
/// * 3: checksum
/// * 4 and following: the text
type Entry = [AtomicU64; ENTRY_WORDS];

static RING: [Entry; ENTRIES] = [const { [const { AtomicU64::new(0) }; ENTRY_WORDS] }; ENTRIES];

/// Breadcrumbs added so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The copy in a file, if there is one. Set once: there is one process-wide client.
static COPY: OnceLock<FileCopy> = OnceLock::new();

struct FileCopy {
    page: Arc<OwnerPage>,
    salt: u64,
    /// Number of the last entry that was copied.
    copied: AtomicU64,
    /// A thread copies.
    is_busy: AtomicBool,
}

/// A breadcrumb: a short text that says what the program did, see [`Client::breadcrumb`](crate::Client::breadcrumb).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Breadcrumb {
    /// When it was added, by the wall clock at that time.
    pub at: SystemTime,
    /// The text, at most 224 bytes.
    pub text: String,
}

/// Adds a breadcrumb. Takes some nanoseconds.
pub(crate) fn record_breadcrumb(text: &str, at: WallNanos) {
    let number = COUNT.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    let (time, text) = (at.cast_unsigned(), beginning(text, TEXT_MOST).as_bytes());
    let sum = sum(number, time, text);
    if let Some(entry) = entry_of(&RING, number) {
        fill(entry, [number, time, text.len() as u64, sum], text);
    }
    if let Some(copy) = COPY.get() {
        copy.add([number, time, text.len() as u64, sum], text);
    }
}

impl FileCopy {
    /// Adds a new entry of the ring to the file, and those that the file does not have yet. One thread at a time does
    /// that, and the others go on: a store into the mapping waits while the file system is frozen or its disk hangs.
    fn add(&self, head: [u64; ENTRY_HEAD], text: &[u8]) {
        for attempt in 0..CATCH_UPS_MOST {
            if self.is_busy.swap(true, Ordering::Acquire) {
                return;
            }
            // No words in a forked child, and after the shard was released.
            if let Some(words) = self.page.words() {
                let entries = words.as_chunks().0.get(1..).unwrap_or_default();
                if attempt > 0 || !self.append(entries, head, text) {
                    self.copy_to(entries);
                }
            }
            self.is_busy.store(false, Ordering::Release);
            // Others may have added entries meanwhile, and left copying them to this thread.
            if COUNT.load(Ordering::Relaxed) == self.copied.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Writes an entry that follows the last one in the file, without reading it from the ring and checking it there.
    fn append(&self, entries: &[Entry], [number, time, len, sum]: [u64; ENTRY_HEAD], text: &[u8]) -> bool {
        let follows = self.copied.load(Ordering::Relaxed).wrapping_add(1) == number;
        let Some(entry) = entry_of(entries, number).filter(|_| follows) else { return false };
        fill(entry, [number, time, len, sum ^ self.salt], text);
        self.copied.store(number, Ordering::Relaxed);
        true
    }

    fn copy_to(&self, entries: &[Entry]) {
        let newest = COUNT.load(Ordering::Relaxed);
        let mut copied = self.copied.load(Ordering::Relaxed).max(newest.saturating_sub(ENTRIES as u64));
        for number in copied.saturating_add(1)..=newest {
            // An entry that its thread has not finished is tried again the next time.
            if self.copy_entry(entries, number) && copied.saturating_add(1) == number {
                copied = number;
            }
        }
        self.copied.store(copied, Ordering::Relaxed);
    }

    fn copy_entry(&self, entries: &[Entry], number: u64) -> bool {
        let mut field = [0; WORD + TEXT_MOST];
        let Some(len) = entry_of(&RING, number).and_then(|entry| copy(entry, number, &mut field)) else { return false };
        if let Some((time, text)) = field.get(..len).and_then(<[u8]>::split_first_chunk::<WORD>)
            && let Some(entry) = entry_of(entries, number)
        {
            let time = u64::from_le_bytes(*time);
            fill(entry, [number, time, text.len() as u64, sum(number, time, text) ^ self.salt], text);
        }
        true
    }
}

/// Keeps later breadcrumbs in this page too, for the next owner of the shard. `started_at` identifies the run.
pub(crate) fn keep_in(page: Arc<OwnerPage>, started_at: WallNanos) {
    let Some(words) = page.words() else { return };
    // Entries of an earlier run are never valid in this one. They are erased because nobody needs them any more.
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    for (word, value) in words.iter().zip([MAGIC, VERSION, started_at.cast_unsigned()]) {
        word.store(value, Ordering::Relaxed);
    }
    let copied = AtomicU64::new(COUNT.load(Ordering::Relaxed));
    let _ = COPY.set(FileCopy { page, salt: salt_of(started_at), copied, is_busy: AtomicBool::new(false) });
}

/// The newest breadcrumbs that the run which began at `started_at` left in this shard, oldest first, at most 30. Empty
/// if it kept none there, or if the file cannot be read.
pub(crate) fn left_in(disk: &Disk, shard_dir: &Path, started_at: WallNanos) -> Vec<Breadcrumb> {
    let bytes = disk.read(&shard_dir.join(FILE), FILE_BYTES as u64).unwrap_or_default();
    in_file(&bytes, started_at)
}

/// The breadcrumbs in the bytes of a file. Whatever does not match its checksum is skipped.
pub(crate) fn in_file(bytes: &[u8], started_at: WallNanos) -> Vec<Breadcrumb> {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at * WORD..).and_then(|rest| rest.first_chunk::<WORD>());
        word.map_or(0, |word| u64::from_le_bytes(*word))
    };
    let expected = [MAGIC, VERSION, started_at.cast_unsigned()];
    if expected.iter().enumerate().any(|(at, expected)| word(bytes, at) != *expected) {
        return Vec::new();
    }
    let salt = salt_of(started_at);
    let decode = |entry: &[u8]| {
        let [number, time, len, check] = std::array::from_fn(|at| word(entry, at));
        let text = entry.get(ENTRY_HEAD * WORD..)?.get(..usize::try_from(len).ok()?)?;
        let is_whole = number != 0 && check == sum(number, time, text) ^ salt;
        is_whole.then(|| (number, Breadcrumb::of(time, text)))
    };
    let mut found: Vec<_> = bytes.chunks_exact(ENTRY_WORDS * WORD).skip(1).filter_map(decode).collect();
    found.sort_unstable_by_key(|(number, _)| *number);
    found.drain(..found.len().saturating_sub(REPORTED_MOST));
    found.into_iter().map(|(_, breadcrumb)| breadcrumb).collect()
}

/// Appends the newest breadcrumbs, newest first, as many as fit. Async-signal-safe.
pub(super) fn append_to(writer: &mut Writer<'_>) {
    let newest = COUNT.load(Ordering::Relaxed);
    for number in (newest.saturating_sub(REPORTED_MOST as u64).saturating_add(1)..=newest).rev() {
        let mut field = [0; WORD + TEXT_MOST];
        if let Some(len) = entry_of(&RING, number).and_then(|entry| copy(entry, number, &mut field)) {
            writer.bytes(Tag::Breadcrumb, field.get(..len).unwrap_or_default());
        }
    }
}

/// The newest breadcrumbs of this process, oldest first.
pub(crate) fn recent() -> Vec<Breadcrumb> {
    let newest = COUNT.load(Ordering::Relaxed);
    let numbers = newest.saturating_sub(REPORTED_MOST as u64).saturating_add(1)..=newest;
    let read = |number| {
        let mut field = [0; WORD + TEXT_MOST];
        let len = copy(entry_of(&RING, number)?, number, &mut field)?;
        Breadcrumb::decode(field.get(..len)?)
    };
    numbers.filter_map(read).collect()
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

fn entry_of(ring: &[Entry], number: u64) -> Option<&Entry> {
    ring.get(number as usize % ENTRIES)
}

fn fill(entry: &Entry, [number, time, len, sum]: [u64; ENTRY_HEAD], text: &[u8]) {
    let (head, place) = entry.split_at(ENTRY_HEAD);
    let [number_word, time_word, len_word, sum_word] = head else { return };
    number_word.store(number, Ordering::Relaxed);
    time_word.store(time, Ordering::Relaxed);
    len_word.store(len, Ordering::Relaxed);
    let (whole, tail) = text.as_chunks::<WORD>();
    for (word, bytes) in place.iter().zip(whole) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    if let (false, Some(word)) = (tail.is_empty(), place.get(whole.len())) {
        let value = tail.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        word.store(value, Ordering::Relaxed);
    }
    sum_word.store(sum, Ordering::Relaxed);
}

/// Copies time and text of an entry into `field` and returns the length. `None` if the entry holds another breadcrumb or
/// is half written.
fn copy(entry: &Entry, number: u64, field: &mut [u8; WORD + TEXT_MOST]) -> Option<usize> {
    let (head, words) = entry.split_first_chunk::<ENTRY_HEAD>()?;
    let [number_word, time, len, check] = head;
    let (time, len) = (time.load(Ordering::Relaxed), len.load(Ordering::Relaxed));
    let len = usize::try_from(len).ok().filter(|len| *len <= TEXT_MOST)?;
    let (head, rest) = field.split_first_chunk_mut::<WORD>()?;
    *head = time.to_le_bytes();
    for (place, word) in rest.chunks_exact_mut(WORD).zip(words).take(len.div_ceil(WORD)) {
        place.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    let is_whole = number_word.load(Ordering::Relaxed) == number
        && check.load(Ordering::Relaxed) == sum(number, time, rest.get(..len)?);
    is_whole.then_some(WORD.saturating_add(len))
}

fn sum(number: u64, time: u64, text: &[u8]) -> u64 {
    xxh3_64_with_seed(text, number ^ time.rotate_left(32))
}

/// Makes an entry valid in one run only, so that a thread which writes late, when the shard has another owner, cannot
/// leave a breadcrumb of this run in the page of that one.
fn salt_of(started_at: WallNanos) -> u64 {
    xxh3_64(&started_at.to_le_bytes())
}

impl Breadcrumb {
    fn decode(field: &[u8]) -> Option<Self> {
        let (time, text) = field.split_first_chunk()?;
        Some(Self::of(u64::from_le_bytes(*time), text))
    }

    fn of(time: u64, text: &[u8]) -> Self {
        Self { at: system_time(time.cast_signed()), text: String::from_utf8_lossy(text).into_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::format::{HEADER, Kind, scan};
    use super::*;
    use crate::sys::clock::nanos_since_epoch;

    /// The ring is shared by all tests of the process.
    static ALONE: Mutex<()> = Mutex::new(());

    fn times(breadcrumbs: &[Breadcrumb]) -> Vec<WallNanos> {
        breadcrumbs.iter().map(|breadcrumb| nanos_since_epoch(breadcrumb.at).unwrap()).collect()
    }

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
        let expected: Vec<_> =
            (70..100).map(|at| Breadcrumb { at: system_time(at), text: format!("step {at}") }).collect();
        assert_eq!(reported(16 * 1024), expected);
    }

    #[test]
    fn a_record_without_space_for_all_has_the_newest() {
        let _alone = ALONE.lock();
        (0..40).for_each(|at| record_breadcrumb("ten bytes.", at));
        assert_eq!(times(&reported(HEADER + 3 * (6 + 8 + 10))), [37, 38, 39]);
    }

    #[test]
    fn a_long_text_is_truncated_and_an_empty_one_is_kept() {
        let _alone = ALONE.lock();
        record_breadcrumb(&("a".to_owned() + &"\u{e9}".repeat(200)), 1);
        record_breadcrumb("", -2);
        let reported = reported(16 * 1024);
        let [.., long, empty] = reported.as_slice() else { panic!("{reported:?}") };
        assert_eq!(long.text, "a".to_owned() + &"\u{e9}".repeat(111), "222 bytes and one more, of 224");
        assert_eq!((empty.at, empty.text.as_str()), (system_time(-2), ""));
    }

    #[test]
    fn a_half_written_entry_is_skipped() {
        let _alone = ALONE.lock();
        (0..30).for_each(|at| record_breadcrumb("a whole step", at));
        let newest = COUNT.load(Ordering::Relaxed);
        let words_of = |number| entry_of(&RING, number).unwrap();
        words_of(newest - 3)[ENTRY_HEAD].store(0, Ordering::Relaxed);
        words_of(newest - 5)[1].store(77, Ordering::Relaxed);
        words_of(newest - 7)[2].store(u64::MAX, Ordering::Relaxed);
        let times: Vec<_> = times(&reported(16 * 1024)).into_iter().filter(|at| *at > 20).collect();
        assert_eq!(times, [21, 23, 25, 27, 28, 29]);
    }

    /// A file of the run that began at 7, with these breadcrumbs.
    fn file(texts: &[(u64, &str)]) -> Vec<u8> {
        let mut words = vec![0_u64; FILE_BYTES / WORD];
        words[..3].copy_from_slice(&[MAGIC, VERSION, 7]);
        for (number, text) in texts {
            let at = (1 + *number as usize % ENTRIES) * ENTRY_WORDS;
            let text = text.as_bytes();
            let head = [*number, number * 1000, text.len() as u64, sum(*number, number * 1000, text) ^ salt_of(7)];
            words[at..at + ENTRY_HEAD].copy_from_slice(&head);
            for (word, bytes) in words[at + ENTRY_HEAD..].iter_mut().zip(text.chunks(WORD)) {
                *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn texts_in(bytes: &[u8]) -> Vec<String> {
        in_file(bytes, 7).into_iter().map(|breadcrumb| breadcrumb.text).collect()
    }

    #[test]
    fn a_file_has_the_last_thirty_oldest_first() {
        let texts: Vec<String> = (0..100).map(|number| format!("step {number}")).collect();
        let numbered: Vec<(u64, &str)> = (1..).zip(texts.iter().map(String::as_str)).collect();
        // Only the last 64 are in the ring; the file was written in this order.
        assert_eq!(texts_in(&file(&numbered)), texts[70..]);
        assert_eq!(in_file(&file(&[(5, "")]), 7), [Breadcrumb { at: system_time(5000), text: String::new() }]);
    }

    #[test]
    fn hostile_bytes_in_a_file_are_skipped() {
        let whole = file(&[(1, "one"), (2, "two"), (3, "three")]);
        assert_eq!(texts_in(&whole), ["one", "two", "three"]);
        let entry = |number: usize| (1 + number) * ENTRY_WORDS * WORD;
        for at in 0..ENTRY_HEAD * WORD + 3 {
            let mut bytes = whole.clone();
            bytes[entry(2) + at] ^= 0x40;
            assert_eq!(texts_in(&bytes), ["one", "three"], "byte {at}");
        }
        for at in 0..3 * WORD {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            assert!(texts_in(&bytes).is_empty(), "byte {at} of the header");
        }
        // Cut anywhere, of another run, and nothing but ones.
        for len in (0..whole.len()).step_by(7) {
            assert!(texts_in(&whole[..len]).len() <= 3);
        }
        assert!(in_file(&whole, 8).is_empty());
        assert!(texts_in(&vec![0xff; FILE_BYTES]).is_empty() && texts_in(&[]).is_empty());
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
                    assert_eq!(step.text, first.repeat(step.text.len()), "{:?}", step.at);
                    assert!(first.is_empty() || step.text.len() as i64 == nanos_since_epoch(step.at).unwrap() % 200);
                }
            }
        });
    }
}
