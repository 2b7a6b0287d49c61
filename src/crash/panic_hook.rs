//! The panic hook: writes a record of a panic before the thread unwinds or the process aborts.
//!
//! Between the panic and the write there is no allocation, no lock and no wait: the process may be out of memory, and
//! other threads may be in any state. So nothing here formats text, logs, or asks for a thread's handle. What the hook
//! needs from the system comes from calls that fill a reserved buffer.

use std::cell::Cell;
use std::panic::{Location, PanicHookInfo};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::buffers::{Buffers, TURNS, with_buffers};
use super::format::{Kind, Tag, Writer, flags};
use super::report_file::Quota;
use super::{breadcrumbs, process, report_file, stack};
use crate::context;
use crate::sys::limits::beginning;

/// Bytes kept of a panic message; PostHog keeps as many.
pub(super) const MESSAGE_MOST: usize = 10_000;
const FILE_NAME_MOST: usize = 512;
/// Maximum bytes of an id or a URL. A longer one is omitted: a truncated id would be that of another person.
const CONTEXT_TEXT_MOST: usize = 2048;
/// Maximum number of frames walked. A deeper stack is a runaway recursion.
const FRAMES_WALKED: usize = 100_000;

static LIMITER: RateLimiter = RateLimiter::new();
static NUMBERS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Whether our hook runs on this thread. If `install` was called twice, the outer hook calls the inner one, which
    /// then only calls the hook before it. Also set on threads that read crash reports.
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// The last recorded panic of each thread, for signal handlers, which must not use thread-locals. The upper half of a
/// word is the thread, the lower half the record's number. Threads that share a word overwrite each other.
static LAST_PANICS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
/// Threads that read crash reports; 0 is a free entry. There is one for each client with something to read. A reader
/// without an entry is reported like any other thread if it crashes.
static READERS: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];
/// Serializes installations. A hook is installed in two steps, take and set; between the two steps of one caller,
/// another caller would take the default hook for the program's.
static INSTALLATION: Mutex<()> = Mutex::new(());

/// Puts our hook first in the chain. Has to be called again after a program sets a hook that does not call the previous
/// one.
pub(super) fn install() {
    let _alone = INSTALLATION.lock().unwrap_or_else(PoisonError::into_inner);
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Frames at or below this address are ours. This needs no symbols, so it works in a stripped program.
        let here = 0u8;
        let deepest = std::ptr::from_ref(std::hint::black_box(&here)).addr();
        let is_outermost = IS_RUNNING.try_with(|inside| !inside.replace(true)).unwrap_or(true);
        if is_outermost {
            write_report(info, deepest);
        }
        previous(info);
        if is_outermost {
            let _ = IS_RUNNING.try_with(|inside| inside.set(false));
        }
    }));
}

/// Disables the hook on this thread until the result is dropped. For threads that read crash reports: a panic during
/// the reading would be reported, read, and panic again.
pub(crate) fn disable_on_this_thread() -> HookDisabled {
    let _ = IS_RUNNING.try_with(|inside| inside.set(true));
    let thread = process::thread_id();
    for place in &READERS {
        if place.compare_exchange(0, thread, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            break;
        }
    }
    HookDisabled(thread)
}

/// The panic hook is disabled on one thread; dropped when that thread has finished reading.
#[derive(Debug)]
pub(crate) struct HookDisabled(i32);

impl Drop for HookDisabled {
    fn drop(&mut self) {
        for place in &READERS {
            let _ = place.compare_exchange(self.0, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
        let _ = IS_RUNNING.try_with(|inside| inside.set(false));
    }
}

/// Whether the thread reads crash reports at the moment. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn is_reader(thread: i32) -> bool {
    READERS.iter().any(|reader| reader.load(Ordering::SeqCst) == thread)
}

/// Number of the last recorded panic of the thread, to which the record of an abort refers. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn last_panic_of(thread: i32) -> Option<u64> {
    let word = last_panic_slot(thread)?.load(Ordering::Relaxed);
    ((word >> 32) as u32 == thread.cast_unsigned()).then_some(word & u64::from(u32::MAX))
}

fn note_panic(thread: i32, number: u64) {
    if let Some(place) = last_panic_slot(thread) {
        place.store(u64::from(thread.cast_unsigned()) << 32 | number & u64::from(u32::MAX), Ordering::Relaxed);
    }
}

fn last_panic_slot(thread: i32) -> Option<&'static AtomicU64> {
    LAST_PANICS.get(thread.cast_unsigned() as usize % LAST_PANICS.len())
}

/// Takes the next record number of this process.
pub(super) fn next_number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

#[inline(never)]
fn write_report(info: &PanicHookInfo<'_>, deepest: usize) {
    if !report_file::is_armed() {
        return;
    }
    if !LIMITER.allows(info.location()) {
        return report_file::count_missed();
    }
    let thread = process::thread_id();
    let written = with_buffers(thread, TURNS, |buffers| {
        let Buffers { record, frames } = buffers;
        let gathered = stack::gather(frames, deepest, FRAMES_WALKED);
        let frames = frames.get(..gathered).unwrap_or_default();
        compose(record, thread, info.location(), message_of(info), frames)
            .is_some_and(|record| report_file::write(record, Quota::Panic))
    });
    match written {
        // Also if the file was full: only the reader rotates it.
        Some(_) => report_file::wake_reader(),
        None => report_file::count_missed(),
    }
}

fn compose<'a>(
    out: &'a mut [u8],
    thread: i32,
    at: Option<&Location<'_>>,
    message: &str,
    frames: &[u64],
) -> Option<&'a [u8]> {
    let mut set = process::forked_flag();
    if cfg!(panic = "abort") {
        set |= flags::PANIC_ABORTS;
    }
    let number = next_number();
    let mut writer = Writer::new(out, Kind::Panic, set, number);
    process::append_to(&mut writer, thread);
    if let Some(at) = at {
        writer.bytes(Tag::File, beginning(at.file(), FILE_NAME_MOST).as_bytes());
        writer.number(Tag::Line, u64::from(at.line()));
        writer.number(Tag::Column, u64::from(at.column()));
    }
    writer.addresses(Tag::Frames, frames);
    writer.number(Tag::Missed, report_file::take_missed());
    writer.number(Tag::MessageBytes, message.len() as u64);
    writer.bytes(Tag::Message, beginning(message, MESSAGE_MOST).as_bytes());
    append_context(&mut writer);
    // Last, so that breadcrumbs get only the space that the other fields leave.
    breadcrumbs::append_to(&mut writer);
    note_panic(thread, number);
    writer.finish()
}

/// Appends the identity and request of the thread's current context, which events of this thread would have too.
fn append_context(writer: &mut Writer<'_>) {
    context::with_current(|current| {
        current.note_exception();
        let texts = [
            (Tag::DistinctId, current.known_distinct_id()),
            (Tag::SessionId, current.known_text(context::SESSION_ID)),
            (Tag::CurrentUrl, current.known_text(context::CURRENT_URL)),
            (Tag::RequestPath, current.known_text(context::REQUEST_PATH)),
        ];
        for (tag, text) in texts {
            if let Some(text) = text.filter(|text| text.len() <= CONTEXT_TEXT_MOST) {
                writer.bytes(tag, text.as_bytes());
            }
        }
    });
}

fn message_of<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    match payload.downcast_ref::<&'static str>() {
        Some(text) => text,
        None => payload.downcast_ref::<String>().map_or("Box<dyn Any>", String::as_str),
    }
}

/// Locations that are counted separately. Locations that hash to the same entry share it.
const LOCATIONS: usize = 64;
/// The number of panics of one location that are all recorded. Later only the 32nd, the 64th and so on are recorded.
const UNLIMITED: u32 = 16;

/// Limits the records of one source location: a loop that panics a million times must not fill the file. An entry is
/// one word, so that no lock is needed: the upper half identifies the location, the lower half is its count.
#[derive(Debug)]
pub(super) struct RateLimiter([AtomicU64; LOCATIONS]);

impl RateLimiter {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; LOCATIONS])
    }

    /// Counts a panic at `at` and returns whether it is recorded.
    pub(super) fn allows(&self, at: Option<&Location<'_>>) -> bool {
        let place = at.map_or(1, fingerprint);
        let Some(word) = self.0.get(place as usize % LOCATIONS) else { return true };
        let mut count = 1;
        let counted = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let known = (word >> 32) as u32 == place;
            count = if known { (word as u32).saturating_add(1) } else { 1 };
            Some(u64::from(place) << 32 | u64::from(count))
        });
        counted.is_err() || count <= UNLIMITED || count.is_power_of_two()
    }
}

/// Never 0, which is an unused entry.
fn fingerprint(at: &Location<'_>) -> u32 {
    // The address of the file name is the same for all panics of a file, and good enough to tell files apart.
    let file = at.file().as_ptr().addr() as u64;
    let mixed = (file ^ u64::from(at.line()) << 40 ^ u64::from(at.column()) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_at_one_location_does_not_silence_another() {
        let limiter = RateLimiter::new();
        let here = Location::caller();
        let written = (0..10_000).filter(|_| limiter.allows(Some(here))).count();
        // 16, then 32, 64, .. 8192.
        assert_eq!(written, 16 + 9);
        assert!(limiter.allows(Some(Location::caller())));
        assert!(limiter.allows(None));
    }
}
