//! Last words: what a process says of its end, and how the next one reads it.
//!
//! ```text
//! <shard>/crash/<instance>-<n>.phx      records of one process: first its context, then panics and signals (`format.rs`)
//! <shard>/crash/<instance>-<n>.phx.2    the same, at its second reading
//! <shard>/crash/<instance>-<n>.bad      given up on after several readings; a few are kept for a person to look at
//! ```
//!
//! Purpose. A panic hook and a signal handler run in a process of which nothing can be relied on: no memory, locks held by threads that
//! will not run again, a stack that is nearly used up. So they write one prepared record with one system call and are done. Everything
//! that takes thought is for the reader: whether the process ended by it, names for addresses, the event, its delivery.
//!
//! * `slots.rs`, `budget.rs`, `process.rs`, `unwind.rs`: what a record is made of, without memory and locks.
//! * `images.rs`: libraries that are loaded later. `steps.rs`: what the program did before, copied into each record.
//! * `hook.rs`: the panic hook. `file.rs` and `write.rs`: the open file, the one write, and taking the file away from under the writers.
//! * `provisional.rs`: places in the file for signals that somebody may repair.
//! * `format.rs`: records as bytes; `incident.rs`: from records to what is told. Both pure.
//! * `reader.rs`: files to be read, each a bounded number of times.
//! * `code/`: where a thread is, which images are loaded, what addresses mean. `signal/`: fatal signals.
//!
//! Rules
//! * Between a panic and its record: no allocation, no lock, no unbounded wait, and no system call but those that are listed in
//!   `hook.rs` and `file.rs`.
//! * The hook runs first, and then the hook that was there before; a newer copy of it makes older ones in the chain silent.
//! * A file belongs to the process named in its context. It is read when that process is gone, or by that process itself, after it was
//!   rotated away.
//! * Reading must never become what kills the next process: each reading is counted in the name of the file *before* it begins, and
//!   what the reader itself dies of is not told.
//! * What a process has survived is written into the file that is taken away before it is told: a later reading finds the process gone.
//! * Of files that wait to be read there is a bound, for a process that dies at every start.
//!
//! Operations: [`arm`], [`install_hook`], [`rotate`], [`left_behind`], [`Words`], [`note_step`], [`notice_images`].

#![allow(unsafe_code, reason = "a thread's handle that a hook can reach; the block proves itself")]

mod budget;
pub(crate) mod cause;
mod code;
pub(crate) mod exit_mark;
mod file;
#[cfg(test)]
mod file_tests;
mod format;
#[cfg(fuzzing)]
mod fuzz;
mod hook;
mod images;
mod incident;
#[cfg(test)]
mod incident_tests;
mod process;
mod provisional;
mod reader;
#[cfg(test)]
mod reader_tests;
#[cfg(all(feature = "crash-signals", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod signal;
mod slots;
mod steps;
pub(crate) mod terminate;
mod unwind;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use crate::record::stack::{Image, decode_images, encode_images};
use crate::sys::disk::Disk;
use crate::sys::disk::fork::lock_within;
pub(crate) use code::{Edge, InProcess, Modules, trace};
use file::Share;
use format::{Kind, Tag, Writer};
#[cfg(fuzzing)]
pub(crate) use fuzz::told_of;
pub(crate) use hook::Silenced;
pub(crate) use images::notice_images;
pub(crate) use incident::{End, Incident, Origin, Severity};
pub(crate) use reader::{Words, fatal_left, has_left_behind, left_behind};
#[cfg(test)]
pub(crate) use reader_tests::left_by_nobody;
#[cfg(test)]
pub(crate) use steps::noted_texts;
pub(crate) use steps::{Step, note_step};

/// The folder of a shard that holds last words.
pub(crate) const DIR: &str = "crash";

/// Bytes of a context: the images of a process, and what names it.
const CONTEXT_MOST: usize = 60 * 1024;

/// What a process says of itself while it is well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    /// That no other process has.
    pub(crate) instance: [u8; 16],
    /// Differs after each start of the machine.
    pub(crate) boot_id: [u8; 16],
    pub(crate) executable: String,
    pub(crate) host_name: String,
    pub(crate) lib_version: String,
    /// What was loaded, encoded. Read back; what is written is what is loaded at that moment.
    pub(crate) images: Vec<u8>,
}

/// Where the files of this process go, for whoever makes the next.
struct Armed {
    disk: Disk,
    dir: PathBuf,
    context: Context,
    files: u64,
    pid: u32,
    /// How often something was loaded when the newest file's context was written.
    times_loaded: u64,
    /// The file that is open is another process's.
    is_inherited: bool,
    /// Files that were put aside with words in them, and that the reader has not asked for yet.
    unread: Vec<PathBuf>,
}

/// A process that lives so long after what it wrote has survived it.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// Making a file takes a moment.
const ARMED_WAIT: Duration = Duration::from_secs(1);

static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

/// Whether the hook is to be armed by whoever makes the process-wide client.
static IS_WANTED: AtomicBool = AtomicBool::new(false);

/// Puts the panic hook first in the chain; it writes as soon as, and as long as, there is a file.
pub(crate) fn install_hook() {
    slots::touch();
    IS_WANTED.store(true, Ordering::SeqCst);
    hook::install();
}

/// Takes the fatal signals; a record is written as soon as, and as long as, there is a file.
#[cfg(feature = "crash-signals")]
pub(crate) fn install_signals() -> io::Result<()> {
    slots::touch();
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    signal::install()?;
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    return Err(io::Error::from(io::ErrorKind::Unsupported));
    IS_WANTED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Gives this thread an alternate stack for the handler, if it has none.
#[cfg(feature = "crash-signals")]
pub(crate) fn register_thread() -> io::Result<()> {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    return signal::register_thread();
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    return Err(io::Error::from(io::ErrorKind::Unsupported));
}

fn armed() -> io::Result<MutexGuard<'static, Option<Armed>>> {
    let busy = || io::Error::other("another thread is making the file for crash reports");
    lock_within(&ARMED, ARMED_WAIT).ok_or_else(busy)
}

/// Whether somebody has installed the hook, or taken the signals.
pub(crate) fn is_wanted() -> bool {
    IS_WANTED.load(Ordering::SeqCst)
}

/// Lets last words go to `dir`, under a name that `context` makes this process's own.
pub(crate) fn arm(disk: &Disk, dir: &Path, context: Context) -> io::Result<()> {
    disk.make_dir(dir)?;
    process::note_armed();
    process::note_instance(context.instance);
    let mut armed = armed()?;
    if armed.as_ref().is_some_and(|armed| armed.dir == dir && armed.pid == std::process::id()) && file::is_armed() {
        return Ok(());
    }
    // That of the process which forked this one: it goes on writing to its file.
    let is_inherited = armed.as_ref().is_some_and(|armed| armed.pid != std::process::id());
    let fresh = armed.insert(Armed {
        disk: disk.clone(),
        dir: dir.to_path_buf(),
        context,
        files: 0,
        pid: std::process::id(),
        times_loaded: 0,
        is_inherited,
        unread: Vec::new(),
    });
    // What an earlier client's file holds is read by the next process, as it would be without us.
    fresh.next_file()?;
    // Kept for ever, so that the mark is.
    static AT_EXIT: OnceLock<Arc<AtExit>> = OnceLock::new();
    let mark: Weak<AtExit> = Arc::downgrade(AT_EXIT.get_or_init(|| Arc::new(AtExit)));
    exit_mark::mark_at_exit(mark);
    Ok(())
}

/// Notes in the file that the process exits: a panic it says something of was survived.
struct AtExit;

impl exit_mark::ExitMark for AtExit {
    fn process_exits(&self, status: Option<i32>) {
        if !file::holds_words() || is_dying() {
            return;
        }
        let mut buffer = [0; 128];
        let mut writer = Writer::new(&mut buffer, Kind::Exit, 0, hook::next_number());
        writer.number(Tag::Time, process::now_nanos());
        if let Some(status) = status.and_then(|status| u64::try_from(status).ok()) {
            writer.number(Tag::Status, status);
        }
        if let Some(record) = writer.finish() {
            file::write(record, Share::End);
        }
    }
}

/// Whether a thread is in a handler of fatal signals: one that was there before ours may call `exit`, and then it was the signal that
/// ended the process.
fn is_dying() -> bool {
    #[cfg(all(feature = "crash-signals", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    return signal::is_in_progress();
    #[cfg(not(all(
        feature = "crash-signals",
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )))]
    false
}

/// Takes the file away from under the writers, if somebody wrote to it: answers the paths of those that hold words and that nobody was
/// told of yet, complete, while later records go to a new one.
pub(crate) fn rotate() -> io::Result<Vec<PathBuf>> {
    let mut armed = armed()?;
    let Some(armed) = armed.as_mut() else { return Ok(Vec::new()) };
    if file::settle(GRACE) {
        // Written a moment ago: to be looked at again.
        HAS_WRITTEN.store(true, Ordering::SeqCst);
    }
    let written = if file::holds_records() || armed.is_inherited { armed.next_file()? } else { None };
    Ok(std::mem::take(&mut armed.unread).into_iter().chain(written).collect())
}

impl Armed {
    fn next_file(&mut self) -> io::Result<Option<PathBuf>> {
        let before = self.files;
        self.files = self.files.saturating_add(1);
        let instance: String = self.context.instance.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = |number: u64| format!("{instance}-{number}.{}", reader::EXTENSION);
        let path = self.dir.join(name(self.files));
        // A directory that cannot be listed may still take a file. What goes is told of with the next record, as missed.
        let gone = reader::make_room(&self.disk, &self.dir, &instance, &name(before)).unwrap_or(0);
        (0..gone).for_each(|_| file::count_missed());
        // Before they are listed: what is loaded in between is noticed later.
        self.times_loaded = Modules::times_loaded();
        let written = file::rotate(&path, &self.context.encode())?;
        if std::mem::take(&mut self.is_inherited) {
            return Ok(None);
        }
        if let Some(empty) = written.as_ref().filter(|written| reader::holds_a_context_only(&self.disk, written)) {
            self.disk.remove_file(empty)?;
            return Ok(None);
        }
        Ok(written)
    }
}

impl Context {
    fn encode(&self) -> Vec<u8> {
        let mut buffer = vec![0; CONTEXT_MOST];
        let mut writer = Writer::new(&mut buffer, Kind::Context, 0, 0);
        writer.number(Tag::Pid, u64::from(std::process::id()));
        writer.number(Tag::StartTicks, process::start_ticks(std::process::id()).unwrap_or(0));
        writer.bytes(Tag::Instance, &self.instance);
        writer.bytes(Tag::BootId, &self.boot_id);
        writer.bytes(Tag::Executable, self.executable.as_bytes());
        writer.bytes(Tag::HostName, self.host_name.as_bytes());
        writer.bytes(Tag::LibVersion, self.lib_version.as_bytes());
        writer.bytes(Tag::Images, &encode_images(&Modules::loaded().images().collect::<Vec<_>>()));
        writer.finish().map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// The images that addresses of this process lie in.
    pub(crate) fn images(&self) -> Vec<Image<'_>> {
        decode_images(&self.images).unwrap_or_default()
    }

    fn decode(record: &format::Record) -> Self {
        let sixteen = |tag| record.bytes(tag).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        Self {
            instance: sixteen(Tag::Instance),
            boot_id: sixteen(Tag::BootId),
            executable: record.text(Tag::Executable).unwrap_or_default(),
            host_name: record.text(Tag::HostName).unwrap_or_default(),
            lib_version: record.text(Tag::LibVersion).unwrap_or_default(),
            images: record.bytes(Tag::Images).unwrap_or_default().to_vec(),
        }
    }
}

/// The thread that reads what this process survived; see [`call_when_written`].
static READER: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());

/// Has `reader` woken after each record. Until another is named, for ever: a few bytes are left behind by each call.
pub(crate) fn call_when_written(reader: Thread) {
    READER.store(Box::into_raw(Box::new(reader)), Ordering::Release);
}

/// Sleeps until a record was written, without a timer.
pub(crate) fn wait_until_written() {
    while !was_written() {
        std::thread::park();
    }
}

/// Whether a record was written since this was last asked.
pub(crate) fn was_written() -> bool {
    HAS_WRITTEN.swap(false, Ordering::SeqCst)
}

/// Panics of the thread that calls this are not written while it has the answer: it reads them, and would never come to an end.
pub(crate) fn silence_this_thread() -> Silenced {
    hook::silence_this_thread()
}

/// The name of this machine; empty if it has none.
pub(crate) fn host_name() -> String {
    process::host_name()
}

/// Brings the files of another shard, whose processes are gone, into `to`. Says whether there were some.
pub(crate) fn take_over(disk: &Disk, from: &Path, to: &Path) -> io::Result<bool> {
    let found = left_behind(disk, from)?;
    if !found.is_empty() {
        disk.make_dir(to)?;
    }
    for path in &found {
        if let Some(name) = path.file_name() {
            disk.rename(path, &to.join(name))?;
        }
    }
    Ok(!found.is_empty())
}

static HAS_WRITTEN: AtomicBool = AtomicBool::new(false);

/// Has the reader look. Safe in the hook: waking a thread is one store and, if it sleeps, one system call.
pub(crate) fn wake_reader() {
    HAS_WRITTEN.store(true, Ordering::SeqCst);
    // SAFETY: null, or leaked by `call_when_written`.
    if let Some(reader) = unsafe { READER.load(Ordering::Acquire).as_ref() } {
        reader.unpark();
    }
}
