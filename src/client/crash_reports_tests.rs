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
