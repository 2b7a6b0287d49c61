//! Crash reports: a panicking or faulting process writes a record of the crash to a file; a later reader turns it into
//! an event.
//!
//! ```text
//! <shard>/crash/<instance>-<n>.phx      records of one process: its description, then panics and signals (`format.rs`)
//! <shard>/crash/<instance>-<n>.phx.2    the same file, at its second reading
//! <shard>/crash/<instance>-<n>.bad      given up, as a whole or in part; the newest few are kept for inspection
//! ```
//!
//! A panic hook or a signal handler cannot rely on anything in its process: memory may be exhausted, locks may be held
//! by threads that never run again, the stack may be nearly used up. So the writer writes one prepared record with one
//! system call and does nothing else. Everything that needs computation is left to the reader: whether the process died
//! of the crash, the names of addresses, the event, and its delivery.
//!
//! * `report_file.rs`: the open file, slots for provisional records, the write, rotation, and waking the reader.
//! * `format.rs`: records as bytes. `buffers.rs`, `process.rs`, `breadcrumbs.rs`, `stack.rs`: what a record is made of;
//!   usable without allocation and without locks.
//! * `panic_hook.rs`: the panic hook. `signal/`: the handler of fatal signals.
//! * `reader.rs`: which files are read, and how often. `incident.rs`: from records to incidents, each fatal or
//!   survived; pure.
//! * `symbols/`: the loaded images, and the function, file and line of an address.
//! * `exit.rs`: what runs at `exit`, and the cause of a run's end. `termination.rs`: signals that ask the process to
//!   terminate.
//!
//! Rules
//! * Between a panic and its record: no allocation, no lock, no unbounded wait, and no system calls but those in
//!   `panic_hook.rs` and `report_file.rs`.
//! * Our hook runs before the hook that was installed earlier. A newer copy of our hook makes the older ones in the
//!   chain do nothing.
//! * A file belongs to the process named in its first record. It is read when that process is gone, or by that process
//!   itself after a rotation.
//! * Reading a file must never become what kills each new process: each reading is counted in the file's name *before*
//!   it begins, and a crash of the reader itself is not reported.
//! * When a process reads a crash that it has survived, it first notes the survival in the file: a later reader finds
//!   the process gone, and could not tell.
//! * The number of unread files is bounded, for a process that dies at every start.
//!
//! Operations: [`install_hook`], [`arm`], [`rotate`], [`refresh_images`], [`unread_reports`], [`CrashReport`],
//! [`record_breadcrumb`].

mod breadcrumbs;
mod buffers;
#[cfg(feature = "inspect")]
pub(crate) mod erase;
pub(crate) mod exit;
mod format;
mod incident;
#[cfg(test)]
mod incident_tests;
mod panic_hook;
mod process;
mod reader;
#[cfg(test)]
mod reader_tests;
mod report_file;
#[cfg(test)]
mod report_file_tests;
#[cfg(all(feature = "crash-signals", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod signal;
/// On other systems fatal signals are not handled.
#[cfg(not(all(feature = "crash-signals", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod signal {
    #[cfg(feature = "crash-signals")]
    pub(super) fn install() -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    #[cfg(feature = "crash-signals")]
    pub(crate) fn register_thread() -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_in_progress() -> bool {
        false
    }

    pub(super) fn prepare_again() {}
}
mod stack;
mod symbols;
pub(crate) mod termination;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use crate::sys::disk::Disk;
use crate::sys::disk::fork::lock_within;
pub use breadcrumbs::Breadcrumb;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use breadcrumbs::in_file as breadcrumbs_in_file;
pub(crate) use breadcrumbs::recent as recent_breadcrumbs;
#[cfg(test)]
pub(crate) use breadcrumbs::recorded_texts;
pub(crate) use breadcrumbs::{
    FILE as BREADCRUMBS_FILE, FILE_BYTES as BREADCRUMBS_BYTES, keep_in as keep_breadcrumbs_in,
    left_in as breadcrumbs_left_in, read_from as breadcrumbs_in, record_breadcrumb,
};
use format::{Kind, Writer};
pub(crate) use format::{Record, Tag, flags};
pub(crate) use incident::{Incident, PANIC, ProcessState};
pub(crate) use panic_hook::disable_on_this_thread;
pub(crate) use process::{ProcessInfo, host_name};
#[cfg(feature = "inspect")]
pub(crate) use reader::count_reports;
#[cfg(feature = "inspect")]
pub(crate) use reader::find_reports;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use reader::incidents_of_bytes;
pub(crate) use reader::{CrashReport, adopt_reports, fatal_record_of, has_unread_reports, unread_reports};
#[cfg(test)]
pub(crate) use reader_tests::write_report_of_dead_process;
use report_file::Quota;
pub(crate) use report_file::{set_reader, take_written, wait_until_written, wake_reader};
#[cfg(feature = "crash-signals")]
pub(crate) use signal::register_thread;
pub(crate) use stack::{Edge, trace};
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use symbols::look_up_in_any as look_up_in_any_file;
pub(crate) use symbols::{InProcess, Modules};

/// The folder of a shard that holds its crash reports.
pub(crate) const DIR: &str = "crash";
/// A process that is alive this long after it wrote a record has survived that crash.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// Creating a report file takes milliseconds. A thread waits this long for another thread that does so.
const ARMED_WAIT: Duration = Duration::from_secs(1);

/// Where this process writes its crash reports; used to create the next file.
struct Armed {
    disk: Disk,
    dir: PathBuf,
    process: ProcessInfo,
    files: u64,
    pid: u32,
    /// [`Modules::times_loaded`] when the first record of the newest file was written.
    times_loaded: u64,
    /// The open file belongs to the process that forked this one.
    is_inherited: bool,
    /// Files with records that were rotated away and not yet returned by [`rotate`].
    unread: Vec<PathBuf>,
}

static ARMED: Mutex<Option<Armed>> = Mutex::new(None);
/// Whether the program asked for crash reports. If so, the process-wide client calls [`arm`], no matter whether it was
/// created before or after that.
static IS_REQUESTED: AtomicBool = AtomicBool::new(false);

/// Puts the panic hook first in the chain. It writes records while a report file is open, that is after [`arm`].
pub(crate) fn install_hook() {
    buffers::prefault();
    IS_REQUESTED.store(true, Ordering::SeqCst);
    panic_hook::install();
}

/// Installs the handler of fatal signals. It writes records while a report file is open, that is after [`arm`].
#[cfg(feature = "crash-signals")]
pub(crate) fn install_signals() -> io::Result<()> {
    buffers::prefault();
    signal::install()?;
    IS_REQUESTED.store(true, Ordering::SeqCst);
    Ok(())
}

/// Whether [`install_hook`] or [`install_signals`] was called.
pub(crate) fn is_requested() -> bool {
    IS_REQUESTED.load(Ordering::SeqCst)
}

fn armed() -> io::Result<MutexGuard<'static, Option<Armed>>> {
    let busy = || io::Error::other("another thread is still creating the crash report file");
    lock_within(&ARMED, ARMED_WAIT).ok_or_else(busy)
}

/// Opens a report file in `dir`. Its name contains the instance id of `process`, which no other process has.
pub(crate) fn arm(disk: &Disk, dir: &Path, process: ProcessInfo) -> io::Result<()> {
    disk.make_dir(dir)?;
    process::note_armed();
    process::note_instance(process.instance);
    let mut armed = armed()?;
    if armed.as_ref().is_some_and(|armed| armed.dir == dir && armed.pid == std::process::id())
        && report_file::is_armed()
    {
        return Ok(());
    }
    // If the pid differs, this is a forked child, and its parent still writes to the open file.
    let is_inherited = armed.as_ref().is_some_and(|armed| armed.pid != std::process::id());
    let fresh = armed.insert(Armed {
        disk: disk.clone(),
        dir: dir.to_path_buf(),
        process,
        files: 0,
        pid: std::process::id(),
        times_loaded: 0,
        is_inherited,
        unread: Vec::new(),
    });
    // The records in an earlier client's file are read by the next process.
    fresh.next_file()?;
    // Never dropped: the observer must be alive at exit.
    static AT_EXIT: OnceLock<Arc<AtExit>> = OnceLock::new();
    let observer: Weak<AtExit> = Arc::downgrade(AT_EXIT.get_or_init(|| Arc::new(AtExit)));
    exit::observe_exit(observer);
    Ok(())
}

/// Records in the report file that the process exits, and with which status. The reader concludes which panics it
/// survived.
struct AtExit;

impl exit::ExitObserver for AtExit {
    fn on_exit(&self, status: Option<i32>) {
        // A handler that was installed before ours may call `exit`. Then the cause of the end is the signal, not the
        // exit.
        if !report_file::has_anything_to_report() || signal::is_in_progress() {
            return;
        }
        let mut buffer = [0; 128];
        let mut writer = Writer::new(&mut buffer, Kind::Exit, 0, panic_hook::next_number());
        writer.number(Tag::Time, process::now_nanos());
        if let Some(status) = status.and_then(|status| u64::try_from(status).ok()) {
            writer.number(Tag::Status, status);
        }
        if let Some(record) = writer.finish() {
            report_file::write(record, Quota::End);
        }
    }
}

/// Replaces the report file with a new one if it holds records. Returns the paths of complete files with records that
/// no earlier call returned; nothing writes to them any more.
pub(crate) fn rotate() -> io::Result<Vec<PathBuf>> {
    let mut armed = armed()?;
    let Some(armed) = armed.as_mut() else { return Ok(Vec::new()) };
    if report_file::confirm_survived(GRACE) {
        // Some records are younger than the grace period: look again.
        report_file::note_written();
    }
    let written = if report_file::has_records() || armed.is_inherited { armed.next_file()? } else { None };
    Ok(std::mem::take(&mut armed.unread).into_iter().chain(written).collect())
}

/// Begins a new report file if a library was loaded since the current one was created. The first record of a file lists
/// the loaded images, and the signal handler keeps the addresses of their unwind tables; both have to be renewed.
/// Called by a thread that is awake anyway: it costs one call of the dynamic loader, and nothing in a process that is
/// not armed.
pub(crate) fn refresh_images() {
    if !report_file::is_armed() {
        return;
    }
    // If another thread holds the lock, it creates a file itself, which lists what is loaded now.
    let Ok(mut armed) = ARMED.try_lock() else { return };
    let Some(armed) = armed.as_mut().filter(|armed| armed.pid == std::process::id()) else { return };
    let loaded = Modules::times_loaded();
    if armed.times_loaded == loaded {
        return;
    }
    signal::prepare_again();
    // The records in the file belong to the images that it lists. The reader rotates it soon, and the new file lists
    // all images.
    if report_file::has_anything_to_report() {
        return;
    }
    if let Ok(Some(written)) = armed.next_file() {
        // A record was written between the check above and the rotation.
        armed.unread.push(written);
        wake_reader();
    }
}

impl Armed {
    fn next_file(&mut self) -> io::Result<Option<PathBuf>> {
        let before = self.files;
        self.files = self.files.saturating_add(1);
        let instance: String = self.process.instance.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = |number: u64| format!("{instance}-{number}.{}", reader::EXTENSION);
        let path = self.dir.join(name(self.files));
        // A directory that cannot be listed may still accept a file. The next record reports the removed files as
        // missed records.
        let removed = reader::limit_unread(&self.disk, &self.dir, &instance, &name(before)).unwrap_or(0);
        (0..removed).for_each(|_| report_file::count_missed());
        // Read before the images are listed: an image that is loaded in between is then noticed later.
        self.times_loaded = Modules::times_loaded();
        let written = report_file::rotate(&path, &self.process.encode())?;
        if std::mem::take(&mut self.is_inherited) {
            return Ok(None);
        }
        if let Some(empty) = written.as_ref().filter(|written| reader::has_nothing_to_report(&self.disk, written)) {
            self.disk.remove_file(empty)?;
            return Ok(None);
        }
        Ok(written)
    }
}
