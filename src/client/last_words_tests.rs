//! The thread that tells of last words: that it looks again at what comes while it reads, and that it is the one that is called.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::Client;
use crate::crash::{left_by_nobody, wake_reader};
use crate::{Config, Event};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(dir: &Path) -> Config {
    Config::new("phc_words").queue_dir(dir).host("http://127.0.0.1:9")
}

fn is_told(event: &Event) -> bool {
    event.name() == "$exception"
}

/// Where this project's first shard has its last words.
fn crash_dir(dir: &Path) -> PathBuf {
    let client = Client::new(config(dir)).unwrap();
    let crash_dir = client.pipelines().and_then(|(pipeline, _)| pipeline.crash_dir()).unwrap();
    std::fs::create_dir_all(&crash_dir).unwrap();
    client.close().wait(PATIENCE).unwrap();
    crash_dir
}

/// A client whose reader stands still in each file until it is let go on.
fn standing_still(dir: &Path) -> (Client, Receiver<()>, Sender<()>) {
    let (reads, reading) = channel();
    let (go_on, gone_on) = channel::<()>();
    let gone_on = std::sync::Mutex::new(gone_on);
    let client = Client::new(config(dir).before_send(move |event| {
        if is_told(&event) {
            let _ = reads.send(());
            let _ = gone_on.lock().unwrap().recv_timeout(PATIENCE);
        }
        Some(event)
    }));
    (client.unwrap(), reading, go_on)
}

#[test]
fn what_is_brought_while_the_thread_reads_is_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let words = crash_dir(dir.path());
    left_by_nobody(&words, "one-1.phx");
    let (client, reading, go_on) = standing_still(dir.path());
    reading.recv_timeout(PATIENCE).expect("the first");
    left_by_nobody(&words, "two-1.phx");
    client.shared.start_reader();
    go_on.send(()).unwrap();
    reading.recv_timeout(PATIENCE).expect("the second");
    go_on.send(()).unwrap();
}

#[test]
fn a_client_that_is_armed_while_its_thread_reads_is_called_from_then_on_and_no_other() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let words = crash_dir(dir.path());
    left_by_nobody(&words, "one-1.phx");
    let (client, reading, go_on) = standing_still(dir.path());
    reading.recv_timeout(PATIENCE).expect("the first");
    // As `arm_process_wide` does, without a file.
    client.shared.is_armed.store(true, Ordering::SeqCst);
    client.shared.start_reader();
    go_on.send(()).unwrap();
    // Another client reads what was left to it, and nothing else.
    left_by_nobody(&crash_dir(other_dir.path()), "other-1.phx");
    let (other, other_reading, other_go_on) = standing_still(other_dir.path());
    other_reading.recv_timeout(PATIENCE).expect("the other's");
    other_go_on.send(()).unwrap();
    while Arc::clone(&other.shared).words_are_read.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    left_by_nobody(&words, "two-1.phx");
    wake_reader();
    reading.recv_timeout(PATIENCE).expect("called, though another thread has read meanwhile");
    go_on.send(()).unwrap();
}
