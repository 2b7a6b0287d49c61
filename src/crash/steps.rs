//! What the program did last: a ring of short texts, for whoever asks what led to a crash.
//!
//! It lies in memory that is there from the start, and the hook or the handler copies its end into the record of the crash: so it needs
//! no file of its own, a forked child's record tells what the parent did before the fork, and what a survived panic is told with does not
//! depend on what the process did since. Noting takes no lock: a slot that two threads wrote at once, or that a crash cut in half, does
//! not fit its checksum and is passed over.

use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::format::{Record, Tag, Writer};
use crate::sys::clock::WallNanos;
use crate::sys::limits::beginning;

/// Texts that are kept.
const SLOTS: usize = 64;
const TEXT_WORDS: usize = 28;
/// Bytes kept of one text.
const TEXT_MOST: usize = TEXT_WORDS * WORD;
/// Texts that a record is given. Less than there are slots: the oldest are being overwritten while it is written.
const TOLD: u64 = 30;
const WORD: usize = 8;

struct Slot {
    /// Which one it is, counted from 1; 0 while there was none.
    number: AtomicU64,
    time: AtomicU64,
    len: AtomicU64,
    sum: AtomicU64,
    text: [AtomicU64; TEXT_WORDS],
}

static RING: [Slot; SLOTS] = [const {
    Slot {
        number: AtomicU64::new(0),
        time: AtomicU64::new(0),
        len: AtomicU64::new(0),
        sum: AtomicU64::new(0),
        text: [const { AtomicU64::new(0) }; TEXT_WORDS],
    }
}; SLOTS];

/// How many there were.
static NOTED: AtomicU64 = AtomicU64::new(0);

/// One thing that the program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at: WallNanos,
    pub(crate) text: String,
}

/// Notes a text: some nanoseconds.
pub(crate) fn note_step(text: &str, at: WallNanos) {
    let number = NOTED.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    if let Some(slot) = slot_of(number) {
        slot.fill(number, at.cast_unsigned(), beginning(text, TEXT_MOST).as_bytes());
    }
}

/// Gives a record the last texts, the newest first, as many as it has room for. Async-signal-safe.
pub(super) fn describe(writer: &mut Writer<'_>) {
    let newest = NOTED.load(Ordering::Relaxed);
    for number in (newest.saturating_sub(TOLD).saturating_add(1)..=newest).rev() {
        let mut field = [0; WORD + TEXT_MOST];
        if let Some(len) = slot_of(number).and_then(|slot| slot.copy(number, &mut field)) {
            writer.bytes(Tag::Step, field.get(..len).unwrap_or_default());
        }
    }
}

/// What stands of them in a record, the oldest first.
pub(super) fn of(record: &Record) -> Vec<Step> {
    let mut steps: Vec<Step> = record.all(Tag::Step).filter_map(Step::decode).collect();
    steps.reverse();
    steps
}

/// What is in the ring, for tests of who puts something there.
#[cfg(test)]
pub(crate) fn noted_texts() -> Vec<String> {
    let mut buffer = vec![0; 16 * 1024];
    let mut writer = Writer::new(&mut buffer, super::format::Kind::Panic, 0, 1);
    describe(&mut writer);
    let records = writer.finish().map(super::format::scan).unwrap_or_default().records;
    records.iter().flat_map(of).map(|step| step.text).collect()
}

fn slot_of(number: u64) -> Option<&'static Slot> {
    RING.get(number as usize % SLOTS)
}

impl Slot {
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

    /// Time and text into `field`; answers how long that is, unless the slot holds another one, or a part of it.
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

impl Step {
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

    /// The ring is one for the whole process.
    static ALONE: Mutex<()> = Mutex::new(());

    fn told(room: usize) -> Vec<Step> {
        let mut buffer = vec![0; room];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, 0, 1);
        describe(&mut writer);
        of(&scan(writer.finish().unwrap()).records[0])
    }

    #[test]
    fn a_record_is_given_the_last_thirty_the_oldest_first() {
        let _alone = ALONE.lock();
        for number in 0..100 {
            note_step(&format!("step {number}"), number);
        }
        let expected: Vec<_> = (70..100).map(|at| Step { at, text: format!("step {at}") }).collect();
        assert_eq!(told(16 * 1024), expected);
    }

    #[test]
    fn a_record_without_room_for_all_is_given_the_newest() {
        let _alone = ALONE.lock();
        (0..40).for_each(|at| note_step("ten bytes.", at));
        let times: Vec<_> = told(HEADER + 3 * (6 + 8 + 10)).iter().map(|step| step.at).collect();
        assert_eq!(times, [37, 38, 39]);
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_an_empty_one_is_one() {
        let _alone = ALONE.lock();
        note_step(&("a".to_owned() + &"\u{e9}".repeat(200)), 1);
        note_step("", -2);
        let told = told(16 * 1024);
        let [.., long, empty] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(long.text, "a".to_owned() + &"\u{e9}".repeat(111), "222 bytes and one more, of 224");
        assert_eq!((empty.at, empty.text.as_str()), (-2, ""));
    }

    #[test]
    fn a_slot_that_was_written_by_halves_is_passed_over() {
        let _alone = ALONE.lock();
        (0..30).for_each(|at| note_step("a whole step", at));
        let newest = NOTED.load(Ordering::Relaxed);
        let torn = slot_of(newest - 3).unwrap();
        torn.text[0].store(0, Ordering::Relaxed);
        let late = slot_of(newest - 5).unwrap();
        late.time.store(77, Ordering::Relaxed);
        slot_of(newest - 7).unwrap().len.store(u64::MAX, Ordering::Relaxed);
        let times: Vec<_> = told(16 * 1024).iter().map(|step| step.at).filter(|at| *at > 20).collect();
        assert_eq!(times, [21, 23, 25, 27, 28, 29]);
    }

    #[test]
    fn threads_that_note_at_once_never_make_a_text_that_nobody_wrote() {
        let _alone = ALONE.lock();
        (0..30).for_each(|at| note_step("", at));
        std::thread::scope(|scope| {
            for letter in ["a", "b", "c", "d"] {
                scope.spawn(move || (0..5_000).for_each(|at| note_step(&letter.repeat(at as usize % 200), at)));
            }
            for _ in 0..200 {
                for step in told(16 * 1024) {
                    let first = step.text.get(..1).unwrap_or_default();
                    assert_eq!(step.text, first.repeat(step.text.len()), "{}", step.at);
                    assert!(first.is_empty() || step.text.len() as i64 == step.at % 200);
                }
            }
        });
    }
}
