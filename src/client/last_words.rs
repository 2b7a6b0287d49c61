//! Telling PostHog of last words: those that earlier processes left, and those of panics that this one has survived.
//!
//! A thread of its own, which exists only where there is something to read or a hook is armed. It is none of the two that the queue
//! needs, so it may wait for them: a file of last words is removed when its events are durable in the queue, and not before.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::{Builder, Uuid};

use super::Shared;
use super::incident::event_of;
use super::receipt::Outcome;
use crate::crash::{self, End, GRACE, Incident, Words};
use crate::diagnostics::Diagnostic;
use crate::error::Error;
use crate::pipeline::{self, DropReason, Pipeline};
use crate::sys::clock::WallNanos;
use crate::sys::disk::Disk;
use crate::sys::entropy::random_u64;
use crate::sys::limits::{DETAIL_KEPT, beginning};
use crate::sys::wording;

/// Under a storm of panics the reader does not wait for ever.
const GRACES_MOST: u32 = 5;
/// For an event to become durable. Where that takes longer, the file stays and is read again at the next start.
const DURABLE_WAIT: Duration = Duration::from_secs(30);

impl Shared {
    /// Reads what earlier processes left in this client's shard, if they left something, and what is brought here from other shards.
    pub(super) fn read_last_words(self: &Arc<Self>) {
        let Some(pipeline) = &self.pipeline else { return };
        let Some(dir) = pipeline.crash_dir() else { return };
        let shared = Arc::downgrade(self);
        pipeline.when_last_words_are_found(move || {
            if let Some(shared) = shared.upgrade() {
                shared.start_reader();
            }
        });
        if crash::has_left_behind(&pipeline.options().disk, &dir) {
            self.start_reader();
        }
    }

    /// Lets panics of this process be written where this client reads them, and reads those that the process survives.
    pub(super) fn arm_process_wide(self: &Arc<Self>) -> Result<(), Error> {
        let Some(pipeline) = &self.pipeline else { return Ok(()) };
        let Some(dir) = pipeline.crash_dir() else {
            let why = "the queue is in memory, and last words would end with the process too".to_owned();
            return Err(Error::QueueDir { path: pipeline.options().queue_dir.clone(), why, source: None });
        };
        let disk = &pipeline.options().disk;
        crash::arm(disk, &dir, context(disk)).map_err(|error| Error::QueueDir {
            path: dir,
            why: "the file for crash reports cannot be made in it".to_owned(),
            source: Some(error.into()),
        })?;
        self.is_armed.store(true, Ordering::SeqCst);
        self.start_reader();
        Ok(())
    }

    /// Starts the thread, or has the running one look again.
    pub(super) fn start_reader(self: &Arc<Self>) {
        self.words_are_new.store(true, Ordering::SeqCst);
        if self.words_are_read.swap(true, Ordering::SeqCst) {
            crash::wake_reader();
            return;
        }
        let shared = Arc::downgrade(self);
        if let Err(error) = pipeline::spawn_apart("posthog-crash", move || read(&shared)) {
            self.words_are_read.store(false, Ordering::SeqCst);
            self.diagnostics.record(Diagnostic::CrashReportUnreadable {
                path: None,
                why: format!("no thread could be started to read crash reports: {error}"),
            });
        }
    }
}

/// What the thread does. It holds the client only while it captures: whoever drops the last handle must not wait for a reader.
fn read(shared: &Weak<Shared>) {
    let _silenced = crash::silence_this_thread();
    let mut is_called = false;
    loop {
        let Some(pipeline) = shared.upgrade().and_then(|shared| {
            shared.words_are_new.store(false, Ordering::SeqCst);
            shared.pipeline.as_ref().map(Arc::downgrade)
        }) else {
            return;
        };
        read_left_behind(shared, &pipeline);
        match shared.upgrade().map_or(Next::End, |shared| shared.next()) {
            Next::End => return,
            Next::ReadOn => continue,
            Next::Wait => {}
        }
        // Only the one that waits: another client's would take the calls, and end.
        if !std::mem::replace(&mut is_called, true) {
            crash::call_when_written(std::thread::current());
        }
        crash::wait_until_written();
        // Not before it is known whether the process dies of it, and of what was written while that was waited for.
        for _ in 0..GRACES_MOST {
            std::thread::sleep(GRACE);
            if !crash::was_written() {
                break;
            }
        }
        read_survived(shared, &pipeline);
    }
}

/// What the thread does when it has read what it found.
enum Next {
    /// More came while it read.
    ReadOn,
    /// Something may be written that this process survives.
    Wait,
    End,
}

impl Shared {
    fn next(&self) -> Next {
        if self.is_armed.load(Ordering::SeqCst) {
            return Next::Wait;
        }
        self.words_are_read.store(false, Ordering::SeqCst);
        // Who came before that has started no thread, and relies on this one.
        let is_asked = self.is_armed.load(Ordering::SeqCst) || self.words_are_new.load(Ordering::SeqCst);
        if is_asked && !self.words_are_read.swap(true, Ordering::SeqCst) { Next::ReadOn } else { Next::End }
    }
}

fn read_left_behind(shared: &Weak<Shared>, pipeline: &Weak<Pipeline>) {
    let Some((disk, Some(dir))) = pipeline.upgrade().map(|open| (open.options().disk.clone(), open.crash_dir())) else {
        return;
    };
    match crash::left_behind(&disk, &dir) {
        Ok(paths) => paths.iter().for_each(|path| read_file(shared, &disk, path, End::Gone)),
        Err(error) => unread(shared, Some(&dir), &error),
    }
}

fn read_survived(shared: &Weak<Shared>, pipeline: &Weak<Pipeline>) {
    let Some(disk) = pipeline.upgrade().map(|open| open.options().disk.clone()) else { return };
    match crash::rotate() {
        Ok(paths) => paths.iter().for_each(|path| read_file(shared, &disk, path, End::Alive)),
        Err(error) => unread(shared, None, &error),
    }
}

fn read_file(shared: &Weak<Shared>, disk: &Disk, path: &Path, end: End) {
    let words = match Words::read(disk, path, end) {
        Ok(Some(words)) => words,
        Ok(None) => {
            return unread(
                shared,
                Some(path),
                "reading it was begun several times and never finished, so it is not read again; the file is kept",
            );
        }
        Err(error) => return unread(shared, Some(path), &error),
    };
    if words.passed_over > 0 {
        unread(
            shared,
            Some(words.path()),
            &format!("{} of it are torn or damaged; the rest is sent", wording::bytes(words.passed_over as u64)),
        );
    }
    for incident in &words.incidents {
        if incident.facts.while_reading {
            unread(
                shared,
                Some(words.path()),
                "the process died while it read earlier reports; that crash is not reported",
            );
            continue;
        }
        let Some(told) = tell(shared, &words, incident) else { return };
        match told {
            Told::Durable => {}
            Told::NotNow(why) => {
                let _ = words.put_back(disk);
                return unread(shared, Some(path), &why);
            }
            // The reading counts: a file that can never be told is put aside in the end.
            Told::Refused(why) => return unread(shared, Some(words.path()), &why),
        }
    }
    if let Err(error) = words.done(disk) {
        unread(shared, Some(words.path()), &error);
    }
}

enum Told {
    /// In the queue, or not wanted there.
    Durable,
    /// To be tried again at the next start.
    NotNow(String),
    /// Such an event is not taken, now or later.
    Refused(String),
}

/// `None` if the client is gone.
fn tell(shared: &Weak<Shared>, words: &Words, incident: &Incident) -> Option<Told> {
    let receipt = {
        let shared = shared.upgrade()?;
        let pipeline = shared.pipeline.as_ref()?;
        let mut event = event_of(incident, words.context.as_ref()).uuid(uuid_of(words, incident));
        if let Some(time) = time_of(incident, pipeline.options().clock.wall_nanos()) {
            event.set_timestamp(time);
        }
        shared.capture(pipeline, event)
    };
    let why = match receipt.outcome() {
        Outcome::Accepted => match receipt.persisted().wait(DURABLE_WAIT) {
            Ok(Ok(())) => return Some(Told::Durable),
            Ok(Err(error)) => error.to_string(),
            Err(timeout) => timeout.to_string(),
        },
        // The program does not want it, and will not want it the next time.
        Outcome::Dropped(DropReason::BeforeSend | DropReason::BeforeSendPanicked | DropReason::OptedOut) => {
            return Some(Told::Durable);
        }
        Outcome::Dropped(
            reason @ (DropReason::TooLarge | DropReason::Unserializable | DropReason::TimestampOutOfRange),
        ) => return Some(Told::Refused(reason.to_string())),
        Outcome::Dropped(reason) => reason.to_string(),
    };
    let why = format!("{why}; it is tried again at the next start");
    Some(Told::NotNow(why))
}

fn unread(shared: &Weak<Shared>, path: Option<&Path>, why: &(impl ToString + ?Sized)) {
    if let Some(shared) = shared.upgrade() {
        let why = beginning(&why.to_string(), DETAIL_KEPT).to_owned();
        shared.diagnostics.record(Diagnostic::CrashReportUnreadable { path: path.map(Path::to_path_buf), why });
    }
}

/// The same at each reading, so that an event which is told twice (a kill between the queue and the removal of the file) counts once.
fn uuid_of(words: &Words, incident: &Incident) -> Uuid {
    let Some(context) = &words.context else { return Uuid::now_v7() };
    let millis = incident.facts.time_nanos.unwrap_or(0) / 1_000_000;
    let mut rest = [0; 10];
    for (place, byte) in rest.iter_mut().zip(context.instance) {
        *place = byte;
    }
    for (place, byte) in rest.iter_mut().rev().zip(incident.number.to_le_bytes()) {
        *place ^= byte;
    }
    // Children go on counting where their parent forked them, and several may die of the same thing in the same millisecond.
    for (place, byte) in rest.iter_mut().zip(incident.facts.pid.unwrap_or(0).to_le_bytes()).take(4) {
        *place ^= byte;
    }
    Builder::from_unix_timestamp_millis(millis, &rest).into_uuid()
}

/// What this process says of itself.
fn context(disk: &Disk) -> crash::Context {
    let mut instance = [0; 16];
    for (place, byte) in
        instance.iter_mut().zip([random_u64(), random_u64()].iter().flat_map(|word| word.to_le_bytes()))
    {
        *place = byte;
    }
    let executable = std::env::current_exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    crash::Context {
        instance,
        boot_id: disk.boot_id().to_le_bytes(),
        executable,
        host_name: crash::host_name(),
        lib_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..crash::Context::default()
    }
}

/// When it happened. A time that is still to come was read from a clock that was wrong: better the time at which it is told.
fn time_of(incident: &Incident, now: WallNanos) -> Option<SystemTime> {
    let nanos = incident.facts.time_nanos?;
    let has_been = i64::try_from(nanos).is_ok_and(|nanos| (1..=now).contains(&nanos));
    if has_been { UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)) } else { None }
}
