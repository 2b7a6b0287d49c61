//! The panic hook: what a thread says before it unwinds or the process aborts.
//!
//! Between the panic and the write there is no allocation, no lock and no wait for anybody: the process may be out of memory, and
//! other threads may be in any state. So nothing here formats, logs or asks for a thread's handle; what it needs from the system comes
//! by calls that fill a buffer of ours.

use std::cell::Cell;
use std::panic::{Location, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};

use super::budget::Budget;
use super::format::{Kind, Tag, Writer, flags};
use super::slots::{Room, with_room};
use super::{file, process, steps, unwind};
use crate::limits::beginning;

/// Bytes kept of a message: what PostHog keeps.
pub(super) const MESSAGE_MOST: usize = 10_000;
const FILE_NAME_MOST: usize = 512;
/// A stack deeper than this is a recursion that ran away; walking on would only take time.
const FRAMES_WALKED: usize = 100_000;

static BUDGET: Budget = Budget::new();
static NUMBERS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Whether our hook is running on this thread: one that was installed before and is now called by a newer copy of itself has
    /// nothing to add.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread reads last words.
    static READS: Cell<bool> = const { Cell::new(false) };
    /// The number of its last panic; 0 before the first.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

/// Puts our hook first in the chain. To be called again after somebody has set a hook without calling the one before it.
pub(super) fn install() {
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
pub(super) fn silence_this_thread() {
    let _ = INSIDE.try_with(|inside| inside.set(true));
    let _ = READS.try_with(|reads| reads.set(true));
}

/// Whether this thread is one of those.
#[cfg(feature = "crash-signals")]
pub(super) fn is_silenced() -> bool {
    READS.try_with(Cell::get).unwrap_or(false)
}

/// The last panic of this thread that there is a record of. An abort refers to it.
#[cfg(feature = "crash-signals")]
pub(super) fn last_panic_of_this_thread() -> Option<u64> {
    LAST.try_with(Cell::get).ok().filter(|number| *number != 0)
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
        compose(record, thread, info.location(), message_of(info), frames).is_some_and(file::write)
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
    // Last: nothing else gives way to them.
    steps::describe(&mut writer);
    let _ = LAST.try_with(|last| last.set(number));
    writer.finish()
}

fn message_of<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    match payload.downcast_ref::<&'static str>() {
        Some(text) => text,
        None => payload.downcast_ref::<String>().map_or("Box<dyn Any>", String::as_str),
    }
}
