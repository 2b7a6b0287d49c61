//! Reads the crash reports of earlier processes, and the reports of panics that this process survived, and captures
//! each incident as an event.
//!
//! The reader has its own thread, which exists only if there is a report to read or a hook is installed. It is not one
//! of the pipeline's two threads, so it may wait for them: it removes a report file only when the events of the file
//! are durable in the queue.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use uuid::{Builder, Uuid};

use super::Shared;
use super::receipt::Outcome;
use crate::context;
use crate::crash::{
    self, Breadcrumb, CrashReport, GRACE, Incident, PANIC, ProcessInfo, ProcessState, Record, Tag, flags,
};
use crate::error::Error;
use crate::event::Event;
use crate::event::exception::{Chain, ChainEntry, ExceptionOptions, ExceptionStack, Level};
use crate::pipeline::{self, Pipeline};
use crate::record::Pairs;
use crate::record::stack::Stack;
use crate::report::{Diagnostic, DropReason};
use crate::sys::clock::{WallNanos, system_time};
use crate::sys::disk::Disk;
use crate::sys::entropy::random_u64;
use crate::sys::limits::{DETAIL_KEPT, beginning};
use crate::sys::wording;

/// During a storm of panics, the reader waits for at most this many grace periods.
const GRACES_MOST: u32 = 5;
/// How long the reader waits for an event to become durable. After that the file stays, and is read again at the next
/// start.
const DURABLE_WAIT: Duration = Duration::from_secs(30);

impl Shared {
    /// Starts the reader if earlier processes left reports in this client's shard, and whenever reports of another
    /// shard are adopted.
    pub(super) fn read_crash_reports(self: &Arc<Self>) {
        let Some(pipeline) = &self.pipeline else { return };
        let Some(dir) = pipeline.crash_dir() else { return };
        let shared = Arc::downgrade(self);
        pipeline.on_reports_adopted(move || {
            if let Some(shared) = shared.upgrade() {
                shared.start_reader();
            }
        });
        if crash::has_unread_reports(&pipeline.options().disk, &dir) {
            self.start_reader();
        }
    }

    /// Opens the report file of this process, and starts the reader for panics that the process survives.
    pub(super) fn arm_process_wide(self: &Arc<Self>) -> Result<(), Error> {
        let Some(pipeline) = &self.pipeline else { return Ok(()) };
        let Some(dir) = pipeline.crash_dir() else {
            let why = "crash reports need a queue on disk, and this queue is in memory: set queue_dir".to_owned();
            return Err(Error::QueueDir { path: pipeline.options().queue.queue_dir.clone(), why, source: None });
        };
        let disk = &pipeline.options().disk;
        crash::arm(disk, &dir, own_process(disk, self.settings.process_facts())).map_err(|error| Error::QueueDir {
            path: dir,
            why: "the crash report file cannot be created in it".to_owned(),
            source: Some(error.into()),
        })?;
        self.is_armed.store(true, Ordering::SeqCst);
        self.start_reader();
        Ok(())
    }

    /// Starts the reader thread. If it already runs, makes it check for reports again.
    pub(super) fn start_reader(self: &Arc<Self>) {
        self.has_new_reports.store(true, Ordering::SeqCst);
        if self.reader_runs.swap(true, Ordering::SeqCst) {
            crash::wake_reader();
            return;
        }
        let shared = Arc::downgrade(self);
        if let Err(error) = pipeline::spawn_apart("posthog-crash", move || read(&shared)) {
            self.reader_runs.store(false, Ordering::SeqCst);
            self.diagnostics.record(Diagnostic::CrashReportUnreadable {
                path: None,
                why: format!("the thread that reads crash reports cannot be started ({error}); earlier reports are read at the next start"),
            });
        }
    }
}

/// The body of the reader thread. It does not hold the client while it waits or reads, so that dropping the last handle
/// of the client does not wait for the reader.
fn read(shared: &Weak<Shared>) {
    let _disabled = crash::disable_on_this_thread();
    let mut is_registered = false;
    loop {
        let Some(pipeline) = shared.upgrade().and_then(|shared| {
            shared.has_new_reports.store(false, Ordering::SeqCst);
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
        // Only a reader that waits registers. Otherwise, the reader of another client, which ends after its reports,
        // would replace this one as the thread that is woken.
        if !std::mem::replace(&mut is_registered, true) {
            crash::set_reader(std::thread::current());
        }
        crash::wait_until_written();
        // Waits until it is known whether the process survives the crash. A record that is written meanwhile needs a
        // grace period as well.
        for _ in 0..GRACES_MOST {
            std::thread::sleep(GRACE);
            if !crash::take_written() {
                break;
            }
        }
        read_survived(shared, &pipeline);
    }
}

/// What the reader thread does after it has read all reports.
enum Next {
    /// More reports have arrived: read them.
    ReadOn,
    /// This process writes crash reports: wait for the record of a crash that it survives.
    Wait,
    End,
}

impl Shared {
    fn next(&self) -> Next {
        if self.is_armed.load(Ordering::SeqCst) {
            return Next::Wait;
        }
        self.reader_runs.store(false, Ordering::SeqCst);
        // `start_reader` starts no thread if `reader_runs` was still set: this thread then has to read its reports.
        let is_needed = self.is_armed.load(Ordering::SeqCst) || self.has_new_reports.load(Ordering::SeqCst);
        if is_needed && !self.reader_runs.swap(true, Ordering::SeqCst) { Next::ReadOn } else { Next::End }
    }
}

fn read_left_behind(shared: &Weak<Shared>, pipeline: &Weak<Pipeline>) {
    let Some((disk, Some(dir))) = pipeline.upgrade().map(|open| (open.options().disk.clone(), open.crash_dir())) else {
        return;
    };
    match crash::unread_reports(&disk, &dir) {
        Ok(paths) => paths.iter().for_each(|path| read_file(shared, &disk, path, ProcessState::Gone)),
        Err(error) => record_unreadable(shared, Some(&dir), &error),
    }
}

fn read_survived(shared: &Weak<Shared>, pipeline: &Weak<Pipeline>) {
    let Some(disk) = pipeline.upgrade().map(|open| open.options().disk.clone()) else { return };
    match crash::rotate() {
        Ok(paths) => paths.iter().for_each(|path| read_file(shared, &disk, path, ProcessState::Alive)),
        Err(error) => record_unreadable(shared, None, &error),
    }
}

fn read_file(shared: &Weak<Shared>, disk: &Disk, path: &Path, state: ProcessState) {
    let report = match CrashReport::read(disk, path, state) {
        Ok(Some(report)) => report,
        Ok(None) => {
            return record_unreadable(
                shared,
                Some(path),
                "reading it failed or ended the process three times; it is renamed to .bad, kept for inspection and not read again",
            );
        }
        Err(error) => return record_unreadable(shared, Some(path), &error),
    };
    let mut unsent = Vec::new();
    for incident in &report.incidents {
        if incident.record.has_flag(flags::READING) {
            unsent.push(
                "the process crashed while it read an earlier report, and the report of that crash would crash the reader again"
                    .to_owned(),
            );
            continue;
        }
        let Some(outcome) = capture_incident(shared, &report, incident) else { return };
        match outcome {
            ReportOutcome::Durable => {}
            ReportOutcome::RetryLater(why) => {
                let _ = report.undo_reading(disk);
                return record_unreadable(shared, Some(path), &why);
            }
            ReportOutcome::Rejected(why) => unsent.push(format!("an event of it is never accepted ({why})")),
        }
    }
    if report.damaged_bytes > 0 {
        let bytes = wording::bytes(report.damaged_bytes as u64);
        unsent.push(format!("{bytes} of it are incomplete or damaged"));
    }
    finish(shared, disk, &report, &unsent.join("; "));
}

/// Removes a file of which everything was sent. One of which nothing can be read stays for the next start: what cannot
/// be read today may be readable then. A file with parts that can never be sent is kept, and not read again.
fn finish(shared: &Weak<Shared>, disk: &Disk, report: &CrashReport, unsent: &str) {
    if unsent.is_empty() {
        if let Err(error) = report.remove(disk) {
            record_unreadable(shared, Some(&report.path), &format!("it was sent and cannot be removed: {error}"));
        }
        return;
    }
    let has_none = report.incidents.is_empty();
    if has_none && !report.is_last_attempt() {
        let why =
            format!("{unsent}, and it holds no whole report of a crash; it is kept and read again at the next start");
        return record_unreadable(shared, Some(&report.path), &why);
    }
    let rest = if has_none { "it holds no whole report of a crash" } else { "what else is in it is sent" };
    match report.give_up(disk) {
        Ok(kept) => {
            let why = format!("{unsent}; {rest}; the file is kept under this name and not read again");
            record_unreadable(shared, Some(&kept), &why);
        }
        Err(error) => {
            let why = format!("{unsent}; {rest}; it cannot be renamed ({error}), and is read again at the next start");
            record_unreadable(shared, Some(&report.path), &why);
        }
    }
}

enum ReportOutcome {
    /// The event is durable in the queue, or the program dropped it. The report is not needed any more.
    Durable,
    /// The event was not accepted, or did not become durable in time. The report is read again at the next start.
    RetryLater(String),
    /// The event can never be accepted, for example because it is too large. The file is kept, and not read again.
    Rejected(String),
}

/// Captures the event of an incident and waits until it is durable. `None` if the client is gone.
fn capture_incident(shared: &Weak<Shared>, report: &CrashReport, incident: &Incident) -> Option<ReportOutcome> {
    let receipt = {
        let shared = shared.upgrade()?;
        let pipeline = shared.pipeline.as_ref()?;
        shared.capture(pipeline, event_to_send(report, incident, pipeline.options().clock.wall_nanos()))
    };
    let why = match receipt.outcome() {
        Outcome::Accepted => match receipt.persisted().wait(DURABLE_WAIT) {
            Ok(()) => return Some(ReportOutcome::Durable),
            Err(error) => error.to_string(),
        },
        // The program rejects the event, and would reject it again.
        Outcome::Dropped(DropReason::BeforeSend | DropReason::BeforeSendPanicked | DropReason::OptedOut) => {
            return Some(ReportOutcome::Durable);
        }
        Outcome::Dropped(
            reason @ (DropReason::TooLarge | DropReason::Unserializable | DropReason::TimestampOutOfRange),
        ) => return Some(ReportOutcome::Rejected(reason.to_string())),
        Outcome::Dropped(reason) => reason.to_string(),
    };
    let why = format!("{why}; the file is kept and read again at the next start");
    Some(ReportOutcome::RetryLater(why))
}

fn record_unreadable(shared: &Weak<Shared>, path: Option<&Path>, why: &(impl ToString + ?Sized)) {
    if let Some(shared) = shared.upgrade() {
        let why = beginning(&why.to_string(), DETAIL_KEPT).to_owned();
        shared.diagnostics.record(Diagnostic::CrashReportUnreadable { path: path.map(Path::to_path_buf), why });
    }
}

/// The event of an incident, with its uuid and time. The client that captures it adds its super properties.
pub(crate) fn event_to_send(report: &CrashReport, incident: &Incident, now: WallNanos) -> Event {
    let mut event = event_of(incident, report.process.as_ref()).uuid(uuid_of(report, incident));
    if let Some(time) = time_of(incident, now) {
        event.set_timestamp(time);
    }
    event
}

/// The uuid of an incident's event. If the report names its process, the uuid is the same at each reading: PostHog then
/// counts an event once that is sent twice, because the process was killed before it removed the file.
fn uuid_of(report: &CrashReport, incident: &Incident) -> Uuid {
    let Some(context) = &report.process else { return Uuid::now_v7() };
    let millis = incident.record.number(Tag::Time).unwrap_or(0) / 1_000_000;
    let mut rest = [0; 10];
    for (place, byte) in rest.iter_mut().zip(context.instance) {
        *place = byte;
    }
    for (place, byte) in rest.iter_mut().rev().zip(incident.record.number.to_le_bytes()) {
        *place ^= byte;
    }
    // The pid distinguishes forked children: they continue their parent's numbering, and several may crash for the same
    // reason in the same millisecond.
    for (place, byte) in rest.iter_mut().zip(incident.record.number(Tag::Pid).unwrap_or(0).to_le_bytes()).take(4) {
        *place ^= byte;
    }
    Builder::from_unix_timestamp_millis(millis, &rest).into_uuid()
}

/// Describes this process for its report file.
fn own_process(disk: &Disk, facts: Pairs) -> ProcessInfo {
    let mut instance = [0; 16];
    for (place, byte) in
        instance.iter_mut().zip([random_u64(), random_u64()].iter().flat_map(|word| word.to_le_bytes()))
    {
        *place = byte;
    }
    let executable = std::env::current_exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    ProcessInfo {
        instance,
        boot_id: disk.boot_id().to_le_bytes(),
        executable,
        host_name: crash::host_name(),
        lib_version: env!("CARGO_PKG_VERSION").to_owned(),
        facts,
        ..ProcessInfo::default()
    }
}

/// When the incident happened. `None` if the time is unknown, or is in the future because a clock was wrong; the event
/// then has the current time.
pub(crate) fn time_of(incident: &Incident, now: WallNanos) -> Option<SystemTime> {
    let nanos = WallNanos::try_from(incident.record.number(Tag::Time)?).ok()?;
    (1..=now).contains(&nanos).then(|| system_time(nanos))
}

/// Maximum bytes of `$exception_steps` as JSON.
const STEPS_MOST: usize = 32 * 1024;

/// The `$exception` event of an incident.
pub(crate) fn event_of(incident: &Incident, context: Option<&ProcessInfo>) -> Event {
    let images = context.map(ProcessInfo::images).unwrap_or_default();
    let entry = |record: &Record, kind: &str, message: String| ChainEntry {
        kind: kind.to_owned(),
        module: None,
        message,
        thread: record.number(Tag::Tid),
        stack: ExceptionStack::Captured(Stack::locate(&record.addresses(Tag::Frames), &images)),
    };
    let mut entries = vec![entry(&incident.record, &incident.kind, incident.message.clone())];
    entries
        .extend(incident.during.iter().map(|first| entry(first, PANIC, first.text(Tag::Message).unwrap_or_default())));
    // According to PostHog's specification an exception seen by a hook is not handled, and an exception that is
    // reported later keeps the level and mechanism of the time when it happened.
    let (mechanism, source) =
        if incident.is_signal() { ("signal", "rust.signal_handler") } else { ("panic", "rust.panic_hook") };
    let level = if incident.is_fatal { Level::Fatal } else { Level::Error };
    let options = ExceptionOptions::new().level(level).handled(false).mechanism(mechanism).source(source);
    let chain = Chain { entries, relation: "context", is_synthetic: false, failed_call: None };
    let mut event = chain.describe(options).props(facts(incident, context));
    event.add_process_facts(context.map_or(&Pairs::default(), |context| &context.facts));
    let steps = steps(&crash::breadcrumbs_in(&incident.record));
    if !steps.is_empty() {
        event.set_prop("$exception_steps", steps);
    }
    attribute(&mut event, incident);
    event
}

/// Attributes the event to the person whose request the thread served, as if the thread had captured the event. A panic
/// in a destructor may occur after the thread has left the context of the request; the panic that started the unwinding
/// has the context then.
fn attribute(event: &mut Event, incident: &Incident) {
    let is_known = |record: &Record| record.bytes(Tag::DistinctId).is_some();
    let record = match &incident.during {
        Some(first) if !is_known(&incident.record) && is_known(first) => first,
        _ => &incident.record,
    };
    if let Some(distinct_id) = record.text(Tag::DistinctId) {
        event.set_distinct_id(distinct_id);
    }
    let texts = [
        (context::SESSION_ID, Tag::SessionId),
        (context::CURRENT_URL, Tag::CurrentUrl),
        (context::REQUEST_PATH, Tag::RequestPath),
    ];
    for (key, tag) in texts {
        if let Some(text) = record.text(tag) {
            event.set_prop(key, text);
        }
    }
}

/// Breadcrumbs as the value of `$exception_steps`, oldest first. If not all fit, the newest are kept.
pub(super) fn steps(breadcrumbs: &[Breadcrumb]) -> Vec<Value> {
    let mut values = Vec::new();
    let mut budget = STEPS_MOST;
    for breadcrumb in breadcrumbs.iter().rev() {
        let at = Timestamp::try_from(breadcrumb.at).unwrap_or_default();
        let value = json!({ "$message": breadcrumb.text, "$timestamp": format!("{at:.3}") });
        // The length as JSON, in which a control character takes six bytes.
        let Some(left) = budget.checked_sub(value.to_string().len()) else { break };
        budget = left;
        values.push(value);
    }
    values.reverse();
    values
}

fn facts(incident: &Incident, context: Option<&ProcessInfo>) -> Map<String, Value> {
    let record = &incident.record;
    let number = |tag| record.number(tag).map(Value::from);
    let mut map = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    };
    let text = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Value::from);
    if let Some(file) = record.text(Tag::File) {
        put("$exception_panic_file", Some(file.into()));
        put("$exception_panic_line", Some(record.number(Tag::Line).unwrap_or(0).into()));
        put("$exception_panic_column", Some(record.number(Tag::Column).unwrap_or(0).into()));
    }
    put("crash_thread_name", text(record.text(Tag::ThreadName)));
    put("crash_pid", number(Tag::Pid));
    put("crash_process_survived", Some((!incident.is_fatal).into()));
    put("crash_uptime_ms", record.number(Tag::Uptime).map(|nanos| (nanos / 1_000_000).into()));
    put("crash_message_bytes", number(Tag::MessageBytes));
    put("crash_signal", number(Tag::Signal));
    put("crash_signal_code", record.number(Tag::SignalCode).map(|code| code.cast_signed().into()));
    put("crash_fault_address", record.number(Tag::FaultAddress).map(|address| format!("0x{address:x}").into()));
    put("crash_sender_pid", number(Tag::SenderPid));
    put("crash_sender_uid", number(Tag::SenderUid));
    put("crash_handler_interrupted", record.has_flag(flags::NESTED).then(|| true.into()));
    put("crash_missed_before", record.number(Tag::Missed).filter(|missed| *missed > 0).map(Value::from));
    put("crash_in_forked_child", record.has_flag(flags::FORKED_CHILD).then(|| true.into()));
    if let Some(context) = context {
        put("crash_executable", text(Some(context.executable.clone())));
        put("crash_host_name", text(Some(context.host_name.clone())));
        put("crash_lib_version", text(Some(context.lib_version.clone())));
    }
    map
}
