//! The panic hook: what a thread says before it unwinds or the process aborts.
//!
//! Between the panic and the write there is no allocation, no lock and no wait for anybody: the process may be out of memory, and
//! other threads may be in any state. So nothing here formats, logs or asks for a thread's handle; what it needs from the system comes
//! by calls that fill a buffer of ours.

use std::cell::Cell;
use std::panic::{Location, PanicHookInfo};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::budget::Budget;
use super::file::Share;
use super::format::{Kind, Tag, Writer, flags};
use super::slots::{Room, with_room};
use super::{file, process, steps, unwind};
use crate::context;
use crate::sys::limits::beginning;

/// Bytes kept of a message: what PostHog keeps.
pub(super) const MESSAGE_MOST: usize = 10_000;
const FILE_NAME_MOST: usize = 512;
/// Bytes of an id or a URL. A longer one is left out: cut, an id would be somebody else's.
const CONTEXT_TEXT_MOST: usize = 2048;
/// A stack deeper than this is a recursion that ran away; walking on would only take time.
const FRAMES_WALKED: usize = 100_000;

static BUDGET: Budget = Budget::new();
static NUMBERS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Whether our hook is running on this thread: one that was installed before and is now called by a newer copy of itself has
    /// nothing to add.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// By thread, for handlers of signals, which must not ask for thread-locals: the upper half of a word is the thread, the lower the number
/// of its last panic. Of threads that would have the same word the one that panicked last has it.
static LAST: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
/// Threads that read last words; 0 is nobody. One for each client that has something to read: those without a place are told if they die.
static READERS: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];
/// The hook is taken and put back in two steps: between the two of one caller, another would take the default for the program's own.
static INSTALLATION: Mutex<()> = Mutex::new(());

/// Puts our hook first in the chain. To be called again after somebody has set a hook without calling the one before it.
pub(super) fn install() {
    let _alone = INSTALLATION.lock().unwrap_or_else(PoisonError::into_inner);
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Frames that lie no higher than this one are ours; known without symbols, so in a stripped program too.
        let here = 0u8;
        let deepest = std::ptr::from_ref(std::hint::black_box(&here)).addr();
        let is_outermost = INSIDE.try_with(|inside| !inside.replace(true)).unwrap_or(true);
        if is_outermost {
            last_words(info, deepest);
        }
        previous(info);
        if is_outermost {
            let _ = INSIDE.try_with(|inside| inside.set(false));
        }
    }));
}

/// See [`super::silence_this_thread`].
pub(super) fn silence_this_thread() -> Silenced {
    let _ = INSIDE.try_with(|inside| inside.set(true));
    let thread = process::thread_id();
    for place in &READERS {
        if place.compare_exchange(0, thread, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            break;
        }
    }
    Silenced(thread)
}

/// As long as the thread reads. Its number is given to another when it has ended.
#[derive(Debug)]
pub(crate) struct Silenced(i32);

impl Drop for Silenced {
    fn drop(&mut self) {
        for place in &READERS {
            let _ = place.compare_exchange(self.0, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
        let _ = INSIDE.try_with(|inside| inside.set(false));
    }
}

/// Whether the thread is one of those. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn is_silenced(thread: i32) -> bool {
    READERS.iter().any(|reader| reader.load(Ordering::SeqCst) == thread)
}

/// The last panic of the thread that there is a record of. An abort refers to it. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn last_panic_of(thread: i32) -> Option<u64> {
    let word = place_of(thread)?.load(Ordering::Relaxed);
    ((word >> 32) as u32 == thread.cast_unsigned()).then_some(word & u64::from(u32::MAX))
}

fn note_panic(thread: i32, number: u64) {
    if let Some(place) = place_of(thread) {
        place.store(u64::from(thread.cast_unsigned()) << 32 | number & u64::from(u32::MAX), Ordering::Relaxed);
    }
}

fn place_of(thread: i32) -> Option<&'static AtomicU64> {
    LAST.get(thread.cast_unsigned() as usize % LAST.len())
}

/// The number of the next record of this process.
pub(super) fn next_number() -> u64 {
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

#[inline(never)]
fn last_words(info: &PanicHookInfo<'_>, deepest: usize) {
    if !file::is_armed() || !BUDGET.allows(info.location()) {
        if file::is_armed() {
            file::count_missed();
        }
        return;
    }
    let thread = process::thread_id();
    let written = with_room(thread, |room| {
        let Room { record, frames } = room;
        let gathered = unwind::gather(frames, deepest, FRAMES_WALKED);
        let frames = frames.get(..gathered).unwrap_or_default();
        compose(record, thread, info.location(), message_of(info), frames)
            .is_some_and(|record| file::write(record, Share::Panic))
    });
    match written {
        // Also where there was no room: the reader makes some, and nobody else would have it look.
        Some(_) => super::wake_reader(),
        None => file::count_missed(),
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
    process::describe(&mut writer, thread);
    if let Some(at) = at {
        writer.bytes(Tag::File, beginning(at.file(), FILE_NAME_MOST).as_bytes());
        writer.number(Tag::Line, u64::from(at.line()));
        writer.number(Tag::Column, u64::from(at.column()));
    }
    writer.addresses(Tag::Frames, frames);
    writer.number(Tag::Missed, file::take_missed());
    writer.number(Tag::MessageBytes, message.len() as u64);
    writer.bytes(Tag::Message, beginning(message, MESSAGE_MOST).as_bytes());
    describe_context(&mut writer);
    // Last: nothing else gives way to them.
    steps::describe(&mut writer);
    note_panic(thread, number);
    writer.finish()
}

/// Whose request the thread serves: what its context adds to every event that names nobody.
fn describe_context(writer: &mut Writer<'_>) {
    context::with_current(|current| {
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
