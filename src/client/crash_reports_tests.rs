//! Tests of the reader thread: it also reads reports that arrive while it reads, and a crash wakes only the reader of
//! the client that installed the hooks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::Client;
use crate::crash::{wake_reader, write_report_of_dead_process};
use crate::report::Diagnostic;
use crate::{Config, Event};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(dir: &Path) -> Config {
    Config::new("phc_reports").queue_dir(dir).host("http://127.0.0.1:9")
}

fn is_exception(event: &Event) -> bool {
    event.name() == "$exception"
}

/// The crash directory of the project's first shard.
fn crash_dir(dir: &Path) -> PathBuf {
    let client = Client::new(config(dir)).unwrap();
    let crash_dir = client.pipeline().and_then(|pipeline| pipeline.crash_dir()).unwrap();
    std::fs::create_dir_all(&crash_dir).unwrap();
    client.close().wait(PATIENCE).unwrap();
    crash_dir
}

/// A client whose reader blocks in `before_send` for each report until the test lets it continue.
fn with_blocked_reader(dir: &Path) -> (Client, Receiver<()>, Sender<()>) {
    let (started, reading) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    let client = Client::new(config(dir).before_send(move |event| {
        if is_exception(&event) {
            let _ = started.send(());
            let _ = may_go_on.lock().unwrap().recv_timeout(PATIENCE);
        }
        Some(event)
    }));
    (client.unwrap(), reading, go_on)
}

#[test]
fn reports_that_arrive_while_the_thread_reads_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let reports = crash_dir(dir.path());
    write_report_of_dead_process(&reports, "one-1.phx");
    let (client, reading, go_on) = with_blocked_reader(dir.path());
    reading.recv_timeout(PATIENCE).expect("the first report is read");
    write_report_of_dead_process(&reports, "two-1.phx");
    client.shared.start_reader();
    go_on.send(()).unwrap();
    reading.recv_timeout(PATIENCE).expect("the second report is read");
    go_on.send(()).unwrap();
}

#[test]
fn only_the_reader_of_the_armed_client_is_woken() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let reports = crash_dir(dir.path());
    write_report_of_dead_process(&reports, "one-1.phx");
    let (client, reading, go_on) = with_blocked_reader(dir.path());
    reading.recv_timeout(PATIENCE).expect("the first report is read");
    // As `arm_process_wide` does, but without a report file.
    client.shared.is_armed.store(true, Ordering::SeqCst);
    client.shared.start_reader();
    go_on.send(()).unwrap();
    // The other client reads the report of a dead process, and nothing else.
    write_report_of_dead_process(&crash_dir(other_dir.path()), "other-1.phx");
    let (other, other_reading, other_go_on) = with_blocked_reader(other_dir.path());
    other_reading.recv_timeout(PATIENCE).expect("the other client's report is read");
    other_go_on.send(()).unwrap();
    while Arc::clone(&other.shared).reader_runs.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    write_report_of_dead_process(&reports, "two-1.phx");
    wake_reader();
    reading.recv_timeout(PATIENCE).expect("the reader of the armed client is woken");
    go_on.send(()).unwrap();
}

#[test]
fn a_crash_has_the_release_of_the_process_that_crashed() {
    let dir = tempfile::tempdir().unwrap();
    write_report_of_dead_process(&crash_dir(dir.path()), "one-1.phx");
    let (seen, captured) = channel();
    let config = config(dir.path()).release("checkout", "2.0").before_send(move |event| {
        let _ = seen.send((event.name().to_owned(), event.properties()));
        Some(event)
    });
    let client = Client::new(config).unwrap();
    client.capture(Event::new("of_this_run", "user_1"));
    let [one, other] = [(); 2].map(|()| captured.recv_timeout(PATIENCE).expect("both events are captured"));
    let (crash, own) = if one.0 == "$exception" { (one.1, other.1) } else { (other.1, one.1) };
    assert_eq!((&own["$app_namespace"], &own["$app_version"]), (&"checkout".into(), &"2.0".into()));
    assert_eq!((crash.get("$app_namespace"), &crash["$app_version"]), (None, &"1.0".into()));
    assert_eq!(crash.get("$os"), None, "that process has noted none");
}

/// Starts a client on a queue with a crash report. Returns the reports' names and what was said of them when the reader
/// is done, and the number of exceptions that were captured.
fn after_a_start(dir: &Path, config: Config) -> (Vec<String>, String, usize) {
    let (say, said) = channel();
    let (seen, captured) = channel();
    let config = config
        .on_diagnostic(move |diagnostic| {
            if let Diagnostic::CrashReportUnreadable { path, why } = diagnostic {
                let _ = say.send(format!("{}: {why}", path.as_ref().unwrap().file_name().unwrap().display()));
            }
        })
        .before_send(move |event| {
            is_exception(&event).then(|| seen.send(()));
            Some(event)
        });
    let client = Client::new(config).unwrap();
    let said = said.recv_timeout(PATIENCE).expect("the reader says what it could not send");
    client.close().wait(PATIENCE).unwrap();
    drop(client);
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    (names, said, captured.try_iter().count())
}

#[test]
fn a_report_that_is_wholly_unreadable_is_never_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let reports = crash_dir(dir.path());
    let bytes = [7; 9000];
    std::fs::write(reports.join("one-1.phx"), bytes).unwrap();
    for expected in ["one-1.phx.1", "one-1.phx.2", "one-1.bad"] {
        let (names, said, captured) = after_a_start(&reports, config(dir.path()));
        assert_eq!((names, captured), (vec![expected.to_owned()], 0), "{said}");
        assert!(said.starts_with(&format!("{expected}: ")) && said.contains("8.7 KiB of it are"), "{said}");
        assert_eq!(said.contains("is kept and read again at the next start"), expected != "one-1.bad", "{said}");
        assert_eq!(std::fs::read(reports.join(expected)).unwrap(), bytes);
    }
}

#[test]
fn a_report_that_is_damaged_in_part_is_kept_when_the_rest_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let reports = crash_dir(dir.path());
    write_report_of_dead_process(&reports, "one-1.phx");
    let mut bytes = std::fs::read(reports.join("one-1.phx")).unwrap();
    bytes.extend([7; 100]);
    std::fs::write(reports.join("one-1.phx"), &bytes).unwrap();
    let (names, said, captured) = after_a_start(&reports, config(dir.path()));
    assert_eq!((names, captured), (vec!["one-1.bad".to_owned()], 1), "{said}");
    assert!(said.contains("100 bytes of it are") && said.contains("not read again"), "{said}");
    assert_eq!(std::fs::read(reports.join("one-1.bad")).unwrap(), bytes);
}

#[test]
fn an_event_that_is_never_accepted_does_not_hold_back_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let reports = crash_dir(dir.path());
    write_report_of_dead_process(&reports, "one-1.phx");
    let bytes = std::fs::read(reports.join("one-1.phx")).unwrap();
    std::fs::write(reports.join("one-1.phx"), [&bytes[..], &bytes[..]].concat()).unwrap();
    let first = std::sync::atomic::AtomicBool::new(true);
    let config = config(dir.path()).before_send(move |mut event| {
        if is_exception(&event) && first.swap(false, Ordering::SeqCst) {
            event.set_prop("large", "x".repeat(8 << 20));
        }
        Some(event)
    });
    let (names, said, captured) = after_a_start(&reports, config);
    assert_eq!((names, captured), (vec!["one-1.bad".to_owned()], 2), "{said}");
    assert!(said.contains("is never accepted") && said.contains("what else is in it is sent"), "{said}");
}
