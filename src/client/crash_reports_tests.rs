//! Tests of the reader thread: it also reads reports that arrive while it reads, and a crash wakes only the reader of
//! the client that installed the hooks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::Client;
use crate::crash::{wake_reader, write_report_of_dead_process};
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
