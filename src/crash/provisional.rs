//! Places for signals that somebody may repair.
//!
//! A managed runtime repairs thousands of faults a second, and then dies of one: which of them it is nobody knows when it comes. So each
//! is written into one of a few places of the file, where the next overwrites it, and where it is marked when the process lives on. A
//! place belongs to the thread that wrote into it until that comes back from the handler before ours, or, if it never does, until it
//! comes again or the reader finds that it has had time to die. Pure: what is written is for `file.rs`.

#![cfg_attr(
    not(feature = "crash-signals"),
    allow(dead_code, reason = "nobody writes into a place without the handler")
)]

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::format::{HEADER, Kind, Writer};

/// Threads that can be in the handler before ours at once, each with a place.
const PLACES: usize = 8;
/// Bytes of a record in a place. It is given as much of what the program did before as fits.
pub(super) const RECORD_BYTES: usize = 6 * 1024;
/// A place is a mark, and behind it a record.
const PLACE_BYTES: usize = HEADER + RECORD_BYTES;

const FREE: i32 = 0;

#[derive(Debug)]
struct Place {
    /// The thread that has it.
    owner: AtomicI32,
    /// Of the record in it; 0 while there is none that the process may be dying of.
    number: AtomicU64,
    /// When that was written, by the clock of `process::uptime_nanos`.
    written_at: AtomicU64,
}

/// The places of one file.
#[derive(Debug)]
pub(super) struct Places([Place; PLACES]);

/// A record in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) place: usize,
    pub(super) number: u64,
}

impl Places {
    pub(super) const fn new() -> Self {
        Self(
            [const { Place { owner: AtomicI32::new(FREE), number: AtomicU64::new(0), written_at: AtomicU64::new(0) } };
                PLACES],
        )
    }

    /// What the places are before anything was written: marks of nothing, and room.
    pub(super) fn empty() -> Vec<u8> {
        let mut bytes = vec![0; PLACES * PLACE_BYTES];
        for place in bytes.chunks_exact_mut(PLACE_BYTES) {
            let (mark, record) = place.split_at_mut(HEADER);
            Writer::new(mark, Kind::Repaired, 0, 0).finish();
            Writer::padded(record, Kind::Reserved, 0, 0).finish();
        }
        bytes
    }

    /// Where the mark of a place begins, behind the first.
    pub(super) fn mark_at(place: usize) -> u64 {
        (place * PLACE_BYTES) as u64
    }

    /// Where its record begins.
    pub(super) fn record_at(place: usize) -> u64 {
        (place * PLACE_BYTES + HEADER) as u64
    }

    /// A place for this thread: the one it has, since it left the handler of that without coming back, or a free one.
    pub(super) fn claim(&self, thread: i32) -> Option<usize> {
        let own = self.0.iter().position(|place| place.owner.load(Ordering::Acquire) == thread);
        own.or_else(|| {
            self.0.iter().position(|place| {
                place.owner.compare_exchange(FREE, thread, Ordering::Acquire, Ordering::Relaxed).is_ok()
            })
        })
    }

    /// The record in it is whole.
    pub(super) fn note(&self, held: Held, now: u64) {
        if let Some(place) = self.0.get(held.place) {
            place.written_at.store(now, Ordering::Relaxed);
            place.number.store(held.number, Ordering::Release);
        }
    }

    /// The thread gives it back: the process lived on, or nothing was written.
    pub(super) fn release(&self, at: usize, thread: i32) {
        if let Some(place) = self.0.get(at).filter(|place| place.owner.load(Ordering::Acquire) == thread) {
            place.number.store(0, Ordering::Relaxed);
            place.owner.store(FREE, Ordering::Release);
        }
    }

    /// Whether the place still holds that record of that thread.
    pub(super) fn holds(&self, held: Held, thread: i32) -> bool {
        self.0.get(held.place).is_some_and(|place| {
            place.owner.load(Ordering::Acquire) == thread && place.number.load(Ordering::Acquire) == held.number
        })
    }

    /// Records that the process may be dying of.
    pub(super) fn pending(&self) -> impl Iterator<Item = Held> {
        self.0.iter().zip(0..).filter_map(|(place, at)| {
            let number = place.number.load(Ordering::Acquire);
            (number != 0).then_some(Held { place: at, number })
        })
    }

    /// Whether one of them is this thread's.
    pub(super) fn has_pending_of(&self, thread: i32) -> bool {
        let is_pending = |place: &Place| place.number.load(Ordering::Acquire) != 0;
        self.0.iter().any(|place| place.owner.load(Ordering::Acquire) == thread && is_pending(place))
    }

    /// Those among them that were written by then: of these the process did not die.
    pub(super) fn written_by(&self, then: u64) -> impl Iterator<Item = (Held, i32)> {
        self.pending().filter_map(move |held| {
            let place = self.0.get(held.place)?;
            let owner = place.owner.load(Ordering::Acquire);
            (place.written_at.load(Ordering::Relaxed) <= then).then_some((held, owner))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{Tag, scan};
    use super::*;

    #[test]
    fn empty_places_are_records_without_a_byte_in_between() {
        let scanned = scan(&Places::empty());
        assert_eq!((scanned.records.len(), scanned.passed_over), (2 * PLACES, 0));
    }

    #[test]
    fn a_padded_record_has_the_length_of_its_room_whatever_is_in_it() {
        for fields in 0..20 {
            let mut buffer = [7; 300];
            let mut writer = Writer::padded(&mut buffer, Kind::Signal, 0, 1);
            (0..fields).for_each(|value| writer.number(Tag::Pid, value));
            let record = writer.finish().unwrap();
            let scanned = scan(record);
            assert_eq!((record.len(), scanned.records.len(), scanned.passed_over), (300, 1, 0), "{fields}");
        }
    }

    #[test]
    fn a_thread_has_one_place_and_keeps_it_until_it_gives_it_back() {
        let places = Places::new();
        let all: Vec<_> = (1..=9).filter_map(|thread| places.claim(thread)).collect();
        assert_eq!(all, (0..PLACES).collect::<Vec<_>>());
        assert_eq!(places.claim(2), Some(1));
        places.release(1, 3);
        assert_eq!(places.claim(9), None, "it was not the third's to give back");
        places.release(1, 2);
        assert_eq!(places.claim(9), Some(1));
    }

    #[test]
    fn what_had_time_to_kill_is_told_from_what_may_be_killing() {
        let places = Places::new();
        for (thread, at) in [(1, 10), (2, 20)] {
            let place = places.claim(thread).unwrap();
            places.note(Held { place, number: thread as u64 + 100 }, at);
        }
        let survived: Vec<_> = places.written_by(15).collect();
        assert_eq!(survived, [(Held { place: 0, number: 101 }, 1)]);
        places.release(0, 1);
        assert_eq!(places.pending().collect::<Vec<_>>(), [Held { place: 1, number: 102 }]);
        assert!(places.has_pending_of(2) && !places.has_pending_of(1));
        assert!(places.holds(Held { place: 1, number: 102 }, 2) && !places.holds(Held { place: 1, number: 9 }, 2));
    }
}
